"""The works that `check_dispatcher` has run.

Functions of this module and nothing else, so that an executor in another process can
import them by name. What they return is JSON, and to be kept: a dispatcher may drop what
others return. What they raise can be pickled, but for what is said to need the process of
the suite.
"""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from typing import Any

import trio

from trio_gokugen._current_task import current_task
from trio_gokugen._work_registry import WorkRegistry

conformance_works: WorkRegistry = WorkRegistry()
"""What the dispatcher in question is made with."""

TIMEOUT = 5.0
"""Seconds that an attempt of the work ``in_time`` may take."""

_register = conformance_works.register(retain=True)


@_register
async def echo(value: Any = None) -> Any:
    """Return the value."""
    await trio.lowlevel.checkpoint()
    return value


@_register
def plain_echo(value: Any = None) -> Any:
    """Return the value, from a function that is not async."""
    return value


@_register
async def without_checkpoint(value: Any = None) -> Any:
    """Return the value at once."""
    return value


@_register
async def keywords(**param: Any) -> list[Any]:
    """Return what it was called with."""
    await trio.lowlevel.checkpoint()
    return [list(item) for item in sorted(param.items())]


@_register
async def take(seconds: float, value: Any = None) -> Any:
    """Take some time, then return the value."""
    await trio.sleep(seconds)
    return value


conformance_works.register("in_time", take, timeout=TIMEOUT, retain=True)


@_register
async def never_end() -> None:
    """Go on until cancelled."""
    await trio.sleep_forever()


@_register
async def insist(seconds: float, value: Any = None) -> Any:
    """Take some time, cancelled or not, then return the value."""
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)
    return value


conformance_works.register("insist_in_time", insist, timeout=TIMEOUT, retain=True)


@_register
async def fail_when_cancelled(message: str) -> None:
    """Go on until cancelled, and then fail."""
    try:
        await trio.sleep_forever()
    except trio.Cancelled:
        raise ValueError(message) from None


@_register
async def change_param(items: list[Any]) -> int:
    """Change what it was called with, and return how much there was of it."""
    await trio.lowlevel.checkpoint()
    items.append({"more": items[0]})
    items[0]["deep"] = "changed"
    return len(items)


# -- ways to fail -----------------------------------------------------------------------


@_register
async def fail(message: str) -> None:
    """Fail."""
    await trio.lowlevel.checkpoint()
    raise ValueError(message)


@_register
def plain_fail(message: str) -> None:
    """Fail, in a function that is not async."""
    raise ValueError(message)


@_register
async def fail_twice() -> None:
    """Fail with a group of errors, as a nursery does."""
    await trio.lowlevel.checkpoint()
    raise ExceptionGroup("two failures", [ValueError("one"), TypeError("two")])


@_register
async def leave(by: str) -> None:
    """Raise what is not an `Exception`."""
    await trio.lowlevel.checkpoint()
    ways: dict[str, BaseException] = {
        "KeyboardInterrupt": KeyboardInterrupt(),
        "SystemExit": SystemExit(3),
        "BaseExceptionGroup": BaseExceptionGroup("group", [KeyboardInterrupt()]),
    }
    raise ways[by]


@_register
def plain_leave() -> None:
    """Raise what is not an `Exception`, in a function that is not async."""
    raise KeyboardInterrupt


@_register
async def leak() -> None:
    """Let out a `trio.Cancelled` of a scope of its own."""
    caught: BaseException | None = None
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.sleep_forever()
        except trio.Cancelled as error:
            caught = error
    assert caught is not None
    raise caught


# -- what they see ----------------------------------------------------------------------


@_register
async def tell_current_task() -> list[str]:
    """Return its task, as it is seen before and after a checkpoint and in a child."""
    seen = [current_task().to_json()]

    async def look() -> None:
        await trio.lowlevel.checkpoint()
        seen.append(current_task().to_json())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
    return [*seen, current_task().to_json()]


@_register
def plain_tell_current_task() -> list[str]:
    """Return its task."""
    return [current_task().to_json()]


_variable: ContextVar[str] = ContextVar("trio_gokugen_testing_variable")


@_register
async def set_variable(value: str) -> str | None:
    """Set a context variable, and return what it was before."""
    before = _variable.get(None)
    _variable.set(value)
    await trio.lowlevel.checkpoint()
    return before


@_register
def plain_set_variable(value: str) -> str | None:
    """Set a context variable, and return what it was before."""
    before = _variable.get(None)
    _variable.set(value)
    return before


@_register
def tell_thread() -> int:
    """Return which thread it runs in. Needs the process of the suite."""
    return threading.get_ident()


@_register
def nap(seconds: float) -> None:
    """Hold up its thread, in real time."""
    time.sleep(seconds)


PATIENCE = 2.0
"""Seconds, in real time, that a thread waits for another."""

_meeting = threading.Barrier(2)


@_register
def meet() -> str:
    """Wait for another run, which must be under way. Needs the process of the suite."""
    try:
        _meeting.wait(PATIENCE)
    except threading.BrokenBarrierError:
        _meeting.reset()
        raise
    return "met"


class Occupancy:
    """How many runs of the work ``occupy`` there are, in this process."""

    now: int = 0
    most: int = 0


@_register
async def occupy(seconds: float) -> None:
    """Take some time, and be counted meanwhile. Needs the process of the suite."""
    Occupancy.now += 1
    Occupancy.most = max(Occupancy.most, Occupancy.now)
    try:
        await trio.sleep(seconds)
    finally:
        Occupancy.now -= 1
