"""Running a program to its end, and to that of all that it has started.

Who stops a command must wait until it has stopped, and what it writes on its way out must
be read, or it would wait for a reader. So what attends to the pipes is shielded, and goes
on until the process has ended. It does not go on until the pipes have ended: they are held
open by whatever the process has left behind.

Processes live in real time, whatever Trio's clock shows. With a mock clock, that stands
still while a command runs, and the grace period is counted by the system's own.
"""

from __future__ import annotations

import codecs
import contextlib
import math
import os
import signal
import subprocess
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import cast

import attrs
import trio

from . import _process_group as process_group
from ._autojump import autojump_held

if sys.platform != "win32":  # pragma: no branch: which Windows takes
    import fcntl
    import termios

_POSIX = sys.platform != "win32"

AFTER_KILL = 1.0
"""Seconds, the longest to wait until a group that was killed is seen to have ended."""

_CONTINUATION = {bytes([byte]) for byte in range(0x80, 0xC0)}
"""Bytes of UTF-8 that begin no character."""

_LONGEST_CHARACTER = 4

# Threads that wait for a group to end. The workers are the limit, not this.
_threads = trio.CapacityLimiter(math.inf)


@attrs.frozen
class Program:
    """What is to be run."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str | None
    stdin: str | None
    grace: float
    output_limit: int


@attrs.define(eq=False)
class Output:
    """What a process has written: its first bytes and its last, and how many there were."""

    limit: int
    _first: bytearray = attrs.field(factory=bytearray, init=False)
    _last: bytearray = attrs.field(factory=bytearray, init=False)
    _total: int = attrs.field(default=0, init=False)

    def add(self, data: bytes | bytearray) -> None:
        self._total += len(data)
        if room := self.limit // 2 - len(self._first):
            self._first += data[:room]
            data = data[room:]
        self._last += data
        if (excess := len(self._last) - (self.limit - self.limit // 2)) > 0:
            del self._last[:excess]

    def told(self, limit: int) -> tuple[str, int]:
        """At most so many bytes of it as text, and how many bytes are not in it.

        What is not UTF-8 is written as an escape, and so is a NUL, which cannot be stored.
        """
        if self._total <= limit:
            return _as_text(self._first + self._last), 0
        kept = self._first + self._last
        half = limit // 2
        first = _without_partial_end(kept[:half])
        last = _without_partial_begin(kept[len(kept) - (limit - half) :])
        dropped = self._total - len(first) - len(last)
        return f"{_as_text(first)}\n[{dropped} bytes dropped]\n{_as_text(last)}", dropped


def _as_text(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "backslashreplace").replace("\0", "\\0")


def _without_partial_end(data: bytearray) -> bytearray:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(bytes(data))
    partial, _ = decoder.getstate()
    return data[: len(data) - len(partial)]


def _without_partial_begin(data: bytearray) -> bytearray:
    for begin in range(_LONGEST_CHARACTER):
        if bytes(data[begin : begin + 1]) not in _CONTINUATION:
            return data[begin:]
    return data  # it was not UTF-8 anyway


@attrs.frozen
class Ended:
    """How a program has ended, and what it has written."""

    returncode: int
    """Negative for a signal."""

    stdout: Output
    stderr: Output


@trio.lowlevel.enable_ki_protection
async def run_program(program: Program) -> Ended:
    """Run a program, and return when it and all in its process group have ended.

    If cancelled, and likewise if the process has ended and left others: SIGTERM to its
    group, and SIGKILL after the grace period. If it was cancelled, what is raised has a
    note of what was written.

    Raises:
      OSError: the program could not be started.
    """
    outputs = Output(program.output_limit), Output(program.output_limit)
    failed: OSError | None = None
    returncode = 0
    try:
        with autojump_held():
            async with trio.open_nursery() as nursery:
                pipes = _Pipes(nursery, (program.stdin or "").encode(), outputs)
                try:
                    returncode = await _run(program, pipes)
                except OSError as error:
                    failed = error  # and not within a group
                finally:
                    pipes.stop()
    except BaseException as stopped:
        if any(told := [output.told(program.output_limit)[0] for output in outputs]):
            stopped.add_note("the command had written: " + "\n".join(filter(None, told)))
        raise
    if failed is not None:
        raise failed
    return Ended(returncode, *outputs)


async def _run(program: Program, pipes: _Pipes) -> int:
    async def stop(process: trio.Process) -> None:
        await _stop_group(process, program.grace)

    try:
        ended = await trio.run_process(
            program.argv,
            stdin=subprocess.DEVNULL if program.stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
            cwd=program.cwd,
            env=program.env,
            start_new_session=_POSIX,
            deliver_cancel=stop if _POSIX else None,
            task_status=pipes,
        )
        assert pipes.process is not None
        if _POSIX:  # pragma: no branch: which Windows takes
            await stop(pipes.process)
    finally:
        if _POSIX and pipes.process is not None:
            process_group.reap(pipes.process.pid)
    await pipes.finish()
    return ended.returncode


async def _stop_group(process: trio.Process, grace: float) -> None:
    """End all that is left of a process's group."""
    with trio.CancelScope(shield=True):
        for seconds, *signals in (
            # What was stopped, as by Ctrl-Z, sees a SIGTERM once it goes on.
            (grace, signal.SIGTERM, signal.SIGCONT),
            (AFTER_KILL, signal.SIGKILL),
        ):
            if not process_group.send(process, *signals):
                return
            if await trio.to_thread.run_sync(
                process_group.wait_for_end, process.pid, seconds, limiter=_threads
            ):
                return


@attrs.define(eq=False)
class _Pipes:
    """What Trio tells that the process has started: from then on its pipes are attended."""

    _nursery: trio.Nursery
    _stdin: bytes
    _outputs: Sequence[Output]
    process: trio.Process | None = attrs.field(default=None, init=False)
    _readers: list[tuple[trio.abc.ReceiveStream, Output]] = attrs.field(
        factory=list[tuple[trio.abc.ReceiveStream, Output]], init=False
    )
    _scopes: list[trio.CancelScope] = attrs.field(
        factory=list[trio.CancelScope], init=False
    )
    _read_all: list[trio.Event] = attrs.field(factory=list[trio.Event], init=False)

    def started(self, value: trio.Process | None = None) -> None:
        assert value is not None
        self.process = value
        for stream, output in zip((value.stdout, value.stderr), self._outputs, strict=True):
            assert stream is not None
            self._readers.append((stream, output))
            self._nursery.start_soon(self._read, stream, output, self._new_scope())
        if value.stdin is not None:
            self._nursery.start_soon(self._write, value.stdin, self._new_scope())

    def _new_scope(self) -> trio.CancelScope:
        scope = trio.CancelScope(shield=True)
        self._scopes.append(scope)
        return scope

    async def _read(
        self, stream: trio.abc.ReceiveStream, output: Output, scope: trio.CancelScope
    ) -> None:
        read_all = trio.Event()
        self._read_all.append(read_all)
        with scope:
            async with stream:
                async for data in stream:
                    output.add(data)
        read_all.set()

    async def _write(self, stream: trio.abc.SendStream, scope: trio.CancelScope) -> None:
        with scope, contextlib.suppress(trio.BrokenResourceError):  # it wants no more
            async with stream:
                await stream.send_all(self._stdin)

    async def finish(self) -> None:
        """Take what the process has written, and not been read yet, and no more.

        Whoever has left the group may hold the pipe, and write for ever.
        """
        if sys.platform == "win32":  # pragma: no cover: only Windows gets here
            # Its pipes do not tell: wait for their end, but not for ever.
            with trio.move_on_after(AFTER_KILL, shield=True):
                for each in self._read_all:
                    await each.wait()
            return
        for stream, output in self._readers:
            fd = cast("trio.lowlevel.FdStream", stream).fileno()
            if fd < 0:
                continue  # it came to its end
            left = array("i", [0])
            fcntl.ioctl(fd, termios.FIONREAD, left)
            if left[0]:
                output.add(os.read(fd, left[0]))

    def stop(self) -> None:
        """Let go of the pipes."""
        for scope in self._scopes:
            scope.cancel()
