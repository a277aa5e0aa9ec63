"""Running a program to its end, and to that of all that it has started.

Who stops a command must wait until it has stopped, and what it writes on its way out must
be read, or it would wait for a reader. And once it has ended, nobody must wait for the end
of its pipes: they are held open by whatever it has left behind. So the pipes are ours, and
so are, in this process, both ends of each; one task of the Trio run reads what comes out
of all of them, for as long as it is wanted, and what is left in one at the end is taken
then. Commands that run at the same time share it.

Processes live in real time, whatever Trio's clock shows. With a mock clock, that stands
still while a command runs, and the grace period is counted by the system's own.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import logging
import os
import selectors
import signal
import subprocess
import sys
from array import array
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import attrs
import trio

from . import _process_session as process_session
from ._autojump import autojump_held
from ._errors import HAD_WRITTEN
from ._session_watcher import wait_for_end

logger = logging.getLogger("trio_gokugen.commands")

_POSIX = sys.platform != "win32"

if sys.platform != "win32":  # pragma: no branch: which Windows takes
    import fcntl
    import termios

AFTER_KILL = 1.0
"""Seconds, the longest to wait until those who were killed are seen to have ended."""

_CONTINUATION = {bytes([byte]) for byte in range(0x80, 0xC0)}
"""Bytes of UTF-8 that begin no character."""

_LONGEST_CHARACTER = 4

CHUNK = 64 * 1024
"""Bytes that are read at once: what a pipe holds."""


@attrs.frozen
class Program:
    """What is to be run."""

    argv: Sequence[str]
    env: Mapping[str, str] = attrs.field(repr=False)  # it may have secrets
    cwd: str | None
    stdin: str | None = attrs.field(repr=False)
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


@attrs.define(eq=False)
class _Reader:
    """Reads all pipes of a Trio run: what is read, is added to outputs."""

    _selector: Any = attrs.field(factory=selectors.DefaultSelector, init=False)
    _scope: trio.CancelScope = attrs.field(
        factory=functools.partial(trio.CancelScope, shield=True), init=False
    )

    @property
    def has_ended(self) -> bool:
        return self._scope.cancel_called

    def add(self, fd: int, output: Output) -> None:
        self._selector.register(fd, selectors.EVENT_READ, output)

    def remove(self, fd: int) -> None:
        self._selector.unregister(fd)
        if not self._selector.get_map():
            self._scope.cancel()

    def close(self) -> None:
        self._selector.close()

    async def run(self) -> None:
        """Read, a chunk of each pipe at a time, until there are no pipes any more.

        Which may be after the Trio run was to end: what is stopped then is read, too.
        """
        with self._selector, self._scope:
            while True:
                await trio.lowlevel.wait_readable(self._selector)
                for key, _ in self._selector.select(0):
                    _read(key.fd, key.data)


def _read(fd: int, output: Output, most: int = CHUNK) -> int:
    try:
        data = os.read(fd, most)
    except BlockingIOError:
        return 0
    output.add(data)
    return len(data)


_reader: trio.lowlevel.RunVar[_Reader | None] = trio.lowlevel.RunVar("trio_gokugen_reader")


def _reader_from(fd: int, output: Output) -> _Reader:
    """The reader of this run, which reads this pipe, too."""
    reader = _reader.get(None)
    if reader is not None and not reader.has_ended:
        reader.add(fd, output)
        return reader
    reader = _Reader()
    try:
        reader.add(fd, output)
    except BaseException:
        # Before it runs: a reader that has nothing to read would never end.
        reader.close()
        raise
    _reader.set(reader)
    trio.lowlevel.spawn_system_task(reader.run, name="trio_gokugen reader of commands")
    return reader


@contextlib.contextmanager
def _pipe_to(output: Output) -> Generator[int]:
    """A pipe to an output: what a process writes in it is read. Gives the end to write."""
    read, write = os.pipe()
    os.set_blocking(read, False)  # the process may take back what it has written
    try:
        reader = _reader_from(read, output)
        try:
            yield write
        finally:
            reader.remove(read)
            # What is there by now, and no more: whoever has left the session may hold the
            # pipe, and write for ever.
            left = array("i", [0])
            fcntl.ioctl(read, termios.FIONREAD, left)
            while left[0] > 0 and (taken := _read(read, output, left[0])):
                left[0] -= taken
    finally:
        os.close(read)
        os.close(write)


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

    If cancelled, and likewise if the process has ended and left others in its group:
    SIGTERM to its session, and SIGKILL after the grace period, until all of that have
    ended. If it was cancelled, what is raised has a note of what was written.

    Raises:
      OSError: the program could not be started.
    """
    outputs = Output(program.output_limit), Output(program.output_limit)
    try:
        with autojump_held():
            if not _POSIX:
                returncode = await _run_simply(program, *outputs)
            else:
                with _pipe_to(outputs[0]) as stdout, _pipe_to(outputs[1]) as stderr:
                    returncode = await _Run(program, stdout, stderr).run()
    except BaseException as stopped:
        if told := [text for output in outputs if (text := output.told(output.limit)[0])]:
            stopped.add_note(HAD_WRITTEN + "\n".join(told))
        raise
    return Ended(returncode, *outputs)


async def _run_simply(program: Program, stdout: Output, stderr: Output) -> int:
    """Without a group of processes: on Windows, which has none."""
    ended = await trio.run_process(
        program.argv,
        stdin=(program.stdin or "").encode(),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        cwd=program.cwd,
        env=program.env,
    )
    stdout.add(ended.stdout)
    stderr.add(ended.stderr)
    return ended.returncode


@attrs.define(eq=False)
class _Run:
    """A program that runs. Trio tells it when the process has started."""

    _program: Program
    _stdout: int
    _stderr: int
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    _writing: trio.CancelScope = attrs.field(
        factory=functools.partial(trio.CancelScope, shield=True), init=False
    )
    _process: trio.Process | None = attrs.field(default=None, init=False)
    _was_stopped: bool = attrs.field(default=False, init=False)
    _others: set[int] = attrs.field(factory=set[int], init=False)
    """The groups that were seen in its session, besides its own."""

    async def run(self) -> int:
        """Run it, and return its code."""
        if self._program.stdin is None:
            return await self._run()
        failed: OSError | None = None
        returncode = 0
        async with trio.open_nursery() as self._nursery:
            try:
                returncode = await self._run()
            except OSError as error:
                failed = error  # and not within a group
            finally:
                self._writing.cancel()
        if failed is not None:
            raise failed
        return returncode

    async def _run(self) -> int:
        program = self._program
        try:
            ended = await trio.run_process(
                program.argv,
                stdin=subprocess.DEVNULL if program.stdin is None else subprocess.PIPE,
                stdout=self._stdout,
                stderr=self._stderr,
                check=False,
                cwd=program.cwd,
                env=program.env,
                start_new_session=True,
                deliver_cancel=self._stop,
                task_status=self,
            )
            assert self._process is not None
            await self._stop(self._process)
        finally:
            if self._was_stopped:
                assert self._process is not None
                process_session.reap(self._process, self._others)
        return ended.returncode

    def started(self, value: trio.Process | None = None) -> None:
        assert value is not None
        self._process = value
        if self._nursery is not None:
            assert value.stdin is not None
            self._nursery.start_soon(self._write, value.stdin)

    async def _write(self, stream: trio.abc.SendStream) -> None:
        assert self._program.stdin is not None
        # Once it wants no more, it gets no more. It may leave it to others to read.
        with self._writing, contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                await stream.send_all(self._program.stdin.encode())

    # Trio calls it in a task of its own, and waits for the process if it fails.
    @trio.lowlevel.enable_ki_protection
    async def _stop(self, process: trio.Process) -> None:
        """End all that is left in the process's session, if there is anybody in its group.

        To look for others, each time a command has ended, would take too long.
        """
        # What was stopped, as by Ctrl-Z, sees a SIGTERM once it goes on.
        signals = signal.SIGTERM, signal.SIGCONT
        if not process_session.send(process, *signals):
            return
        self._was_stopped = True
        with trio.CancelScope(shield=True):
            try:
                await self._wait_for_end(process, self._program.grace, *signals)
            except RuntimeError:
                # There is no thread to look for others in: so here, which takes a moment.
                process_session.send_to_others({process.pid: [signal.SIGKILL]})
                raise
            finally:
                # Also if it cannot be waited for, as Trio then waits for the process. And
                # if all have ended: who was born while they were looked at was not seen.
                process_session.send(process, signal.SIGKILL)
            if not await self._wait_for_end(process, AFTER_KILL, signal.SIGKILL):
                logger.warning(
                    "something that process %d has started does not end, though it was"
                    " killed: it is left",
                    process.pid,
                )

    async def _wait_for_end(
        self, process: trio.Process, seconds: float, *signals: signal.Signals
    ) -> bool:
        waited = await wait_for_end(process, seconds, *signals)
        self._others |= waited.others
        return waited.has_ended
