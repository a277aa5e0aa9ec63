"""What tests of commands begin with, and what they must leave: nothing."""

from __future__ import annotations

import os
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import psutil  # type: ignore[import-untyped]
import trio
from support import NOON

from trio_gokugen import (
    Command,
    CommandRegistry,
    Task,
    TrioClock,
    autojump_held,
    open_scheduler,
)

MARK = "GOKUGEN_TEST"
"""The variable by which what a test has started is known, whoever has adopted it."""

SOON = 10.0
"""Real seconds, in which a process that was killed is gone, however busy the machine."""


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def marked(token: str) -> list[psutil.Process]:
    """The processes of this mark that run."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == token and is_running(process):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def gone(pid: int) -> bool:
    """Whether a process ends soon, or has."""
    return eventually(lambda: not psutil.pid_exists(pid) or not is_running_pid(pid))


def is_running_pid(pid: int) -> bool:
    try:
        return is_running(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def eventually(is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + SOON
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def our_children() -> set[psutil.Process]:
    """All but those of a database's server, which starts and ends some as it likes."""
    return {each for each in psutil.Process().children(recursive=True) if not _serves(each)}


def _serves(process: psutil.Process) -> bool:
    try:
        return bool(process.name().startswith("postgres"))
    except psutil.NoSuchProcess:
        return True  # it has ended


def our_threads() -> set[str]:
    """Threads that do something: Trio keeps some for a while, which do not."""
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if not name.startswith("Trio thread")}


@attrs.define(eq=False)
class Shop:
    """Makes commands that can be found again, in a folder of their own."""

    folder: Path
    token: str = attrs.field(factory=lambda: uuid.uuid4().hex)
    left_on_purpose: list[int] = attrs.field(factory=list[int])

    def command(self, *argv: str, **fields: Any) -> Command:
        """A command that bears the mark."""
        fields["env"] = {**fields.get("env", {}), MARK: self.token}
        return Command(argv, **fields)

    def python(self, source: str, *arguments: str, **fields: Any) -> Command:
        """A program in Python, which starts fast."""
        path = self.folder / f"{uuid.uuid4().hex}.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        return self.command(sys.executable, "-I", "-S", str(path), *arguments, **fields)

    def fifo(self) -> Path:
        """A pipe with a name."""
        path = self.folder / uuid.uuid4().hex
        os.mkfifo(path)
        return path

    def running(self) -> list[psutil.Process]:
        return marked(self.token)

    @contextmanager
    def leaving_nothing(self) -> Generator[None]:
        """Afterwards there is no process, child, thread or open file more than before."""
        us = psutil.Process()
        children = our_children()
        threads = our_threads()
        files = us.num_fds()
        yield
        assert our_children() <= children
        assert us.num_fds() <= files
        assert our_threads() <= threads
        still = self.running()
        for pid in self.left_on_purpose:
            with suppress(psutil.NoSuchProcess):
                psutil.Process(pid).kill()
            assert gone(pid)
        assert {each.pid for each in still} <= {*self.left_on_purpose}
        assert eventually(lambda: not self.running())


async def hear(fifo: Path) -> str:
    """What a process tells by a named pipe, once it does."""
    with autojump_held():
        return await trio.to_thread.run_sync(fifo.read_text)


async def run_one(
    command: Command | CommandRegistry, param: Any = None, **fields: Any
) -> Task:
    """Run a command, or the one that is called so, as a task."""
    works = command
    if isinstance(works, Command):
        works = CommandRegistry({"command": works})
    async with open_scheduler(works, clock=TrioClock(NOON)) as scheduler:
        task = await scheduler.add_task("command", param, after=0, **fields)
        return await scheduler.wait(task.id)


def result_of(task: Task) -> Any:
    """The result of a task that is done."""
    assert task.err is None, task.err
    return task.result


WAIT = """
    import signal, sys
    def leave(*_):
        print("leaving", flush=True)
        sys.exit(7)
    signal.signal(signal.SIGTERM, leave)
    print("here", flush=True)
    open(sys.argv[1], "w").write("ready")
    signal.pause()
"""


IGNORE = """
    import signal, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(sys.argv[1], "w").write("ready")
    while True:
        signal.pause()
"""


async def stop_all(commands: Sequence[Command], fifos: Sequence[Path]) -> None:
    """Run commands, and cancel them at once as soon as each has told something."""
    async with trio.open_nursery() as nursery:
        for command in commands:
            nursery.start_soon(command.run, {})
        for fifo in fifos:
            await hear(fifo)
        nursery.cancel_scope.cancel()
