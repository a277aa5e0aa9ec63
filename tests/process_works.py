"""Works for tests that run them in processes: functions of a module."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from trio_gokugen import (
    Discard,
    InvalidTaskError,
    Retry,
    Snooze,
    WorkLostError,
    WorkRegistry,
    current_scheduler,
    current_task,
    fixed,
    report_progress,
)

works: WorkRegistry = WorkRegistry()
F = TypeVar("F", bound=Callable[..., Any])


def in_process(function: F) -> F:
    return works.register(process=True, retain=True)(function)


@in_process
def where() -> int:
    return os.getpid()


@in_process
def echo(value: Any = None, **more: Any) -> Any:
    return [value, more] if more else value


works.register("echo_in_vain", echo, process=True)


@in_process
def change(items: list[Any]) -> int:
    items[0]["deep"] = "changed"
    items.append(current_task().param)
    return len(items)


@in_process
def task_there() -> str:
    return current_task().to_json()


@in_process
def scheduler_there() -> None:
    current_scheduler()


@in_process
def progress_there() -> None:
    report_progress(0.5)


@in_process
def hold(started: str, go: str) -> int:
    """Tell that it runs, then wait to be let go."""
    Path(started).write_text(str(os.getpid()))
    Path(go).read_text()
    return os.getpid()


def spin(started: str) -> None:
    """Tell that it runs, then never end, and never let anybody in."""
    Path(started).write_text(str(os.getpid()))
    while True:
        pass


works.register("spin", spin, process=True)
works.register("spin_in_time", spin, process=True, timeout=5)
works.register("spin_once", spin, process=True, at_most_once=True)
works.register("hold_in_time", hold, process=True, retain=True, timeout=5)
works.register("hold_once", hold, process=True, at_most_once=True)


# -- what dies --------------------------------------------------------------------------


@in_process
def die(how: str) -> None:
    if how == "exit":
        os._exit(3)
    if how == "sys.exit":
        sys.exit(4)
    if how == "sys.exit of nothing":
        sys.exit()
    if how == "sys.exit with a text":
        sys.exit("no more")
    if how == "segfault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)


once_more = Retry(2, wait=fixed(1), retry_on=WorkLostError)


@works.register(process=True, retain=True, retry=once_more)
def die_at_first() -> int:
    if current_task().attempt == 1:
        os._exit(3)
    return current_task().attempt


def die_at_once() -> None:
    """What a process does that does not come to run anything."""
    os._exit(5)


# -- what is raised ---------------------------------------------------------------------


class OwnError(Exception):
    """It can be taken apart, and put together."""

    def __init__(self, text: str, *more: Any) -> None:
        super().__init__(text, *more)
        self.code = 7


class UnmakeableError(Exception):
    """Its arguments are not what it is made with: not to be pickled, either."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class OnlyThereError(LookupError):
    """In the parent it cannot be made."""

    def __init__(self, pid: int) -> None:
        if pid != os.getpid():
            raise ArithmeticError("not here")
        super().__init__(pid)

    def __str__(self) -> str:
        return "only over there"


class UnreducibleError(Exception):
    def __reduce_ex__(self, protocol: Any, /) -> Any:
        raise ArithmeticError("not me")


class ExitingError(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class ImpostorError(Exception):
    def __reduce__(self) -> Any:
        return OwnError, ("somebody else",)


class NothingError(Exception):
    def __reduce__(self) -> Any:
        return str, ("no exception",)


class LeavingError(Exception):
    """Whoever makes it anew exits."""

    def __init__(self, text: str | None = None) -> None:
        if text is not None:
            raise SystemExit(text)
        self.args = ("here",)


class ContainerError(Exception):
    def __reduce__(self) -> Any:
        return type(self), (), None, iter([1])


def local_error() -> Exception:
    class LocalError(Exception):
        pass

    return LocalError("made here")


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(50):
        found = [found]
    return found


def deep_error() -> Exception:
    found = OwnError("inmost")
    for _ in range(50):
        outer = OwnError("outer")
        vars(outer)["inner"] = found
        found = outer
    return found


TOKYO = ZoneInfo("Asia/Tokyo")
NOTED = OwnError("noted")
NOTED.add_note("look here")


class Raised:
    """Errors that come back as they are, and others."""

    whole: ClassVar[dict[str, BaseException]] = {
        "plain": ValueError("no luck"),
        "own": OwnError("own", 1, None, True, 2.5, b"b", ("t", [1, {2}, frozenset("a")])),
        "values": OwnError("v", Decimal("1.5"), UUID(int=7), timedelta(1), {"a": (1,)}, 1j),
        "moments": OwnError("m", datetime(2030, 1, 1, tzinfo=UTC), datetime(2030, 1, 1)),
        "errors": OwnError("e", KeyError("inner"), ValueError),
        "system": FileNotFoundError(2, "no such file", "here"),
        "group": ExceptionGroup("two", [ValueError(1), ExceptionGroup("g", [OSError(2)])]),
        "library": InvalidTaskError("param", "is odd"),
        "noted": NOTED,
    }
    lost: ClassVar[dict[str, tuple[BaseException, str]]] = {
        "unmakeable": (UnmakeableError(1, 2), "it cannot be put together: TypeError"),
        "leaving": (LeavingError(), "it cannot be put together: SystemExit"),
        "unreducible": (UnreducibleError("x"), "it cannot be taken apart: ArithmeticError"),
        "exiting": (ExitingError("x"), "it cannot be taken apart: SystemExit"),
        "local": (local_error(), "is not found by its name"),
        "lock": (OwnError("locked", threading.Lock()), "made with a value of type lock"),
        "deep": (OwnError("deep", deep()), "nests too deep"),
        "deep error": (deep_error(), "nests too deep"),
        "impostor": (ImpostorError("x"), "it came out as something else"),
        "nothing": (NothingError("x"), "gave no exception"),
        "container": (ContainerError("x"), "it is a container"),
        "inside": (OwnError("holds", local_error()), "is not found by its name"),
    }


@in_process
def fail(kind: str, which: str) -> None:
    raise Raised.whole[which] if kind == "whole" else Raised.lost[which][0]


@works.register(process=True, retry=Retry(2, wait=fixed(1), retry_on=LookupError))
def fail_only_there() -> None:
    raise OnlyThereError(os.getpid())


@works.register(process=True, retain=True)
def wish(what: str) -> int:
    attempt = current_task().attempt
    if attempt == 1 and what == "snooze":
        raise Snooze(30)
    if attempt == 1 and what == "snooze until":
        raise Snooze(
            at=current_task().scheduled_at.astimezone(TOKYO) + timedelta(seconds=30)
        )
    if attempt == 1 and what == "after":
        raise Retry.after(30)
    if what == "discard":
        raise Discard("not worth it")
    return attempt


@in_process
def leave() -> None:
    raise KeyboardInterrupt


# -- what is returned -------------------------------------------------------------------


async def coroutine() -> None:
    """What no process awaits."""


class Unreadable(dict[str, Any]):
    def items(self) -> Any:
        raise ArithmeticError("not for you")


def give(what: str) -> Any:
    return {
        "object": object(),
        "large": "x" * 100_000,
        "many": ["刻" * 8_000] * 3,  # fewer characters than bytes
        "coroutine": coroutine() if what == "coroutine" else None,
        "unreadable": Unreadable(a=1),
    }[what]


works.register("give", give, process=True)
works.register("give_to_keep", give, process=True, retain=True)
works.register("give_in_thread", give, retain=True)


@in_process
def signals() -> list[str]:
    """Whether a Ctrl-C and a SIGTERM would get through to this process."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    both = signal.SIGINT, signal.SIGTERM
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.raise_signal(signal.SIGTERM)
    return [str(ignored), *(str(each in blocked) for each in both)]


@in_process
def end_a_program() -> int:
    """What a work starts ends by a SIGTERM."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE
    ) as program:
        program.terminate()
        return program.wait()


@in_process
def end_a_fork() -> int:
    """So does what it forks off."""
    there, here = os.pipe()
    fork = os.fork()
    if not fork:
        os.write(here, b"x")  # from now on it hears of signals
        while True:
            time.sleep(1)
    os.read(there, 1)
    os.close(there)
    os.close(here)
    os.kill(fork, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])


@in_process
def leave_behind(started: str, how: str, then: str) -> None:
    """Have something stay that does not end before this process, and tell of it."""
    if how == "program":
        left = subprocess.Popen(["sleep", str(STAYS)], close_fds=False).pid  # noqa: S607 (of the system)
    else:
        left = os.fork()
        if not left:
            time.sleep(STAYS)
            os._exit(0)
    Path(started).write_text(str(left))
    if then == "die":
        os._exit(3)
    while True:
        pass


STAYS = 30
"""Seconds of real time. A process that is waited for only then has ended too late."""


@in_process
def fork_that_comes_back() -> list[bool]:
    """What a fork finds, which does not end in the work, but returns from it."""
    from multiprocessing import resource_tracker  # noqa: PLC0415 (there it is imported)

    there, here = os.pipe()
    if not os.fork():
        tracker = resource_tracker.getfd()
        assert tracker is not None
        os.write(here, b"x" if stat.S_ISFIFO(os.fstat(tracker).st_mode) else b"-")
        return []
    os.close(here)
    with os.fdopen(there, "rb") as pipe:
        found = pipe.read()  # once the fork has ended
    os.wait()
    return [found == b"x"]


@in_process
def nap() -> None:
    time.sleep(0.01)


@in_process
def stay() -> None:
    """Keep this process from ending by itself."""
    threading.Thread(target=threading.Event().wait).start()


# -- what another process does not find -------------------------------------------------


class Plain:
    def method(self) -> None: ...

    def __call__(self) -> None: ...

    @staticmethod
    def static() -> str:
        return "static"

    @classmethod
    def of_class(cls) -> str:
        return cls.__name__


works.register("static", Plain.static, process=True, retain=True)
works.register("of_class", Plain.of_class, process=True, retain=True)


def hidden() -> int:
    """Its name stands for something else."""
    return 0


found_elsewhere = hidden
globals()["hidden"] = where


def renamed(function: Any) -> Any:
    """A decorator that puts something in the place of what is registered."""

    def inner() -> None:
        function()

    return inner


@renamed
@works.register(process=True)
def wrapped_afterwards() -> None: ...
