"""Works that are found by import path, in the processes of a pool and on a cluster."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import trio

from trio_gokugen import (
    Discard,
    Retry,
    Schedule,
    Snooze,
    Task,
    WorkLostError,
    WorkRegistry,
    current_task,
    fixed,
    report_progress,
)

works = WorkRegistry()


def wait_for(file: str) -> None:
    """Wait, in real time, for a file that the test makes."""
    while not Path(file).exists():
        time.sleep(0.005)


def note(file: str) -> None:
    """Add a line to a file: which attempt, in which process."""
    with Path(file).open("a", encoding="utf-8") as log:
        log.write(f"{current_task().id}-{current_task().attempt} {os.getpid()}\n")


@works.register(retain=True)
def double(number: int) -> int:
    return 2 * number


@works.register
def nothing() -> None:
    pass


@works.register
def take_note(file: str) -> None:
    note(file)


@works.register
def wait(began: str, until: str) -> None:
    note(began)
    wait_for(until)


works.register("wait_once", wait, at_most_once=True)


@works.register
async def never_end(began: str) -> None:
    note(began)
    await trio.sleep_forever()


@works.condition
async def take_an_hour(schedule: Schedule, last: Task | None) -> bool:
    await trio.sleep(3_599.99)
    return True


@works.register(timeout=3_600)
def fail_late() -> None:
    time.sleep(0.02)  # it is real time that it exceeds: more than its condition has left
    raise ValueError("later than an hour after its condition was asked")


@works.register
def die(file: str) -> None:
    """End the process, the first time."""
    note(file)
    if current_task().attempt == 1:
        os._exit(1)


works.register("die_and_retry", die, retry=Retry(3, wait=fixed(1), retry_on=WorkLostError))


@works.register
def leave() -> None:
    sys.exit(3)


@works.register
def be_interrupted(began: str, until: str) -> None:
    """By a Ctrl-C, which a terminal sends to all processes of a program."""
    note(began)
    wait_for(until)
    raise KeyboardInterrupt


@works.register
async def leave_a_nursery() -> None:
    async with trio.open_nursery():
        raise SystemExit


@works.register(retry=Retry(wait=fixed(1)))
def turns(log: str) -> None:
    """Snooze, be tried again, and give up."""
    note(log)
    match current_task().attempt:
        case 1:
            raise Snooze(5)
        case 2:
            raise Retry.after(7)
        case 3:
            raise ValueError("no luck")
        case _:
            raise Discard("enough")


class UnpicklableError(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class UnreadableError(Exception):
    """Can be pickled, and not be read again."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


@works.register(retry=Retry(2, wait=fixed(1), retry_on=UnpicklableError))
def raise_unpicklable() -> None:
    raise UnpicklableError("cannot be sent")


@works.register(retry=Retry(2, wait=fixed(1), retry_on=UnreadableError))
async def raise_unreadable() -> None:
    async with trio.open_nursery():
        raise UnreadableError("cannot be ", "read")


@works.register
def return_lock() -> Any:
    return threading.Lock()


works.register("retain_lock", return_lock, retain=True)


@works.register
def tell(until: str) -> None:
    report_progress(0.25, "began")
    wait_for(until)
    report_progress(0.75)


not_here = WorkRegistry() if "GOKUGEN_TEST_HERE" in os.environ else None


class FrozenError(Exception):
    """Nothing can be put on it."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@works.register
def raise_frozen() -> None:
    raise FrozenError("as it is")


@works.register(retry=Retry(3, wait=fixed(1)))
def discard_with_more() -> None:
    wish: Any = Discard("gone for good")
    wish.response = threading.Lock()
    raise wish


@works.register
def give_much() -> bytes:
    return b"x" * 1_000_000


@works.register(timeout=3_600)
async def sleep_in_time() -> None:
    """For so long, in real time, as its time-out would have to be waited for."""
    await trio.sleep(30)


@works.register
async def sleep(seconds: float, began: str | None = None) -> None:
    if began is not None:
        note(began)
    await trio.sleep(seconds)
