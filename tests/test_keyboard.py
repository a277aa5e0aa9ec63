"""A Ctrl-C at any line of the library's own code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator
from types import FrameType
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from support import NOON, Bench

import trio_gokugen
from trio_gokugen import (
    HeapRepository,
    SchedulerNotRunningError,
    TaskState,
    TrioClock,
    open_scheduler,
)

HERE = trio_gokugen.__file__.removesuffix("__init__.py")


@attrs.define(eq=False)
class AtLine:
    """Sends this process a SIGINT before the k-th line of the library's that is run."""

    line: int
    count: int = 0
    where: str = ""

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.line:
                self.where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
        return self.trace


async def play(bench: Bench, repository: HeapRepository, interrupt: AtLine) -> None:
    async with open_scheduler(
        bench.works, repository, max_workers=3, clock=TrioClock(NOON, 0.0)
    ) as scheduler:

        async def client(number: int) -> None:
            for work_id in ("note", "sleep", "fail"):
                param = {"seconds": 2} if work_id == "sleep" else None
                task = await scheduler.add_task(work_id, param, after=number % 2)
                await scheduler.wait(task.id)

        sys.settrace(interrupt.trace)
        try:
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(client, number)
        finally:
            sys.settrace(None)


@pytest.fixture
def sigint() -> Generator[None]:
    """A SIGINT is a `KeyboardInterrupt`, also in what a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.uncovered
@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("part", range(4))
def test_an_interrupt_at_any_line(part: int) -> None:
    """
    Wherever a Ctrl-C comes, nothing but a `KeyboardInterrupt` leaves the program, no task
    is left dispatched, and no run is lost count of.
    """
    previous = sys.gettrace()
    line, seen = 1 + part * 10, 0
    while True:
        bench, repository, interrupt = Bench(), HeapRepository(), AtLine(line)
        error: BaseException | None = None
        try:
            trio.run(
                play,
                bench,
                repository,
                interrupt,
                clock=trio.testing.MockClock(autojump_threshold=0),
            )
        except BaseException as left:  # noqa: BLE001 (looked at below)
            error = left
        finally:
            sys.settrace(previous)
        if interrupt.count < line:
            break
        if error is not None:
            group = BaseExceptionGroup("all that left", [error])
            _, others = group.split((KeyboardInterrupt, SchedulerNotRunningError))
            assert others is None, interrupt.where
            seen += 1
        for task in repository.store.snapshot():
            assert task.state is not TaskState.DISPATCHED, interrupt.where
            # A work may have been interrupted before it came to say that it began.
            assert task.attempt - bench.ids().count(task.id) in {0, 1}, interrupt.where
        line += 40
    assert seen > 10
