"""What the checks of a timer have in common: somebody who waits, and when it returns."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime

import attrs
import trio

from trio_gokugen._clock import TrioClock, later
from trio_gokugen._task import Task
from trio_gokugen.abc import ANY_TASK, Clock, TaskFilter, TaskRepository

from ._expect import expect, expect_equal
from ._repository_kit import EPOCH, moment
from ._yields import counted_steps

A_TICK = 1e-6
"""Seconds: the precision of moments."""

LONG = 1_000.0
"""Seconds: longer than anything that a check waits for."""


@contextmanager
def timed(repository: TaskRepository, clock: Clock | None = None) -> Generator[Clock]:
    """Start the timer, with the present as the epoch unless a clock is given."""
    clock = TrioClock(EPOCH) if clock is None else clock
    repository.start_timer(clock)
    try:
        yield clock
    finally:
        repository.stop_timer()


@attrs.define(eq=False)
class SteppedClock:
    """A wall clock, which somebody sets now and then."""

    max_sleep: float = 30.0
    offset: float = 0.0
    _start: float = attrs.field(factory=trio.current_time)

    def now(self) -> datetime:
        return later(EPOCH, trio.current_time() - self._start + self.offset)

    def deadline_for(self, moment: datetime) -> float:
        seconds = (moment - self.now()).total_seconds()
        return trio.current_time() + (max(seconds, A_TICK) if seconds > 0 else 0)


def expect_time(what: str, actual: datetime, at: float, until: float = 0) -> None:
    """It must be that moment, give or take a tick, or one until the second."""
    latest = max(at, until)
    expect(
        moment(at - A_TICK) <= actual <= moment(latest + A_TICK),
        f"{what} at {actual}, where {moment(at)} was expected",
    )


@attrs.define(eq=False)
class Waiter:
    """Somebody in `wait_until_due`, in a Trio task of its own."""

    _repository: TaskRepository
    _clock: Clock
    _only: TaskFilter = ANY_TASK
    _task: Task | None = None
    _returned: trio.Event = attrs.field(factory=trio.Event)
    _returned_at: datetime = EPOCH
    _trio_task: trio.lowlevel.Task | None = None

    async def run(self) -> None:
        """Wait once."""
        self._trio_task = trio.lowlevel.current_task()
        self._task = await self._repository.wait_until_due(self._only)
        self._returned_at = self._clock.now()
        self._returned.set()

    def expect_asleep(self) -> None:
        """It must not have returned."""
        expect(not self._returned.is_set(), f"the timer woke too early, for {self._task}")

    async def expect_idle(self) -> None:
        """It must not be woken, for a long time."""
        await trio.sleep(1)  # what went before may still be on its mind
        with counted_steps() as steps:
            await trio.sleep(LONG)
            woken = 0 if self._trio_task is None else steps.of(self._trio_task)
        self.expect_asleep()
        expect_equal("how often the timer woke with nothing pending", woken, 0)

    async def expect_return(self, task_id: str, at: float, until: float = 0) -> None:
        """It must return that task when the clock shows that time."""
        with trio.move_on_after(LONG):
            await self._returned.wait()
        told = None if self._task is None else self._task.id
        expect_equal(f"whom the timer told of, {at} s from the epoch", told, task_id)
        expect_time(f"the timer told of {told}", self._returned_at, at, until)


@asynccontextmanager
async def waiting(
    repository: TaskRepository, clock: Clock, only: TaskFilter = ANY_TASK
) -> AsyncGenerator[Waiter]:
    """Somebody waits, for as long as the block lasts. Takes one second to fall asleep."""
    async with trio.open_nursery() as nursery:
        waiter = Waiter(repository, clock, only)
        nursery.start_soon(waiter.run)
        await trio.sleep(1)
        yield waiter
        nursery.cancel_scope.cancel()
