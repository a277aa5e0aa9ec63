"""Timers that do a thing wrong, each another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

import attrs
import trio
from broken import breaks, times_badly
from stores import SlowlyReadStore

from trio_gokugen import HeapRepository, HookTimer, Task
from trio_gokugen.abc import (
    ANY_TASK,
    AddTasks,
    CancelTask,
    ClaimTasks,
    Clock,
    DispatchTask,
    Operation,
    RecoverAction,
    RevertTask,
    TaskFilter,
    UpdateTask,
)

# -- start and stop -------------------------------------------------------------------


@breaks("the_timer_is_started_once")
class StartsAgain(HeapRepository):
    def start_timer(self, clock: Clock) -> None:
        self.stop_timer()
        super().start_timer(clock)


@breaks("the_timer_can_be_stopped_twice")
class StopsOnlyOnce(HeapRepository):
    started = False

    def start_timer(self, clock: Clock) -> None:
        super().start_timer(clock)
        self.started = True

    def stop_timer(self) -> None:
        if not self.started:
            raise RuntimeError("not started")
        self.started = False
        super().stop_timer()


@breaks("the_timer_can_be_stopped_twice")
class KeepsTheFirstClock(HeapRepository):
    clock: Clock | None = None

    def start_timer(self, clock: Clock) -> None:
        self.clock = self.clock or clock
        super().start_timer(self.clock)


# -- whom it tells of, and when -------------------------------------------------------


@breaks("the_timer_tells_on_time")
class ComesLate(HeapRepository):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        await super().wait_until_due(only)
        await trio.sleep(0.001)
        return await super().wait_until_due(only)


@breaks("the_timer_tells_on_time")
class ComesEarly(HeapRepository):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        head = await self.get_next(only)
        return head or await super().wait_until_due(only)


@breaks("the_timer_tells_of_the_first")
class TellsOfAnother(HeapRepository):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        task = await super().wait_until_due(only)
        due = [t for t in self.store.snapshot() if t.scheduled_at <= task.scheduled_at]
        return min(due, key=lambda t: t.id)


@breaks("the_timer_tells_of_what_is_overdue")
class AlwaysSleeps(HeapRepository):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        await trio.sleep(1)
        return await super().wait_until_due(only)


@breaks("waiting_changes_nothing")
class TakesWhatItTellsOf(HeapRepository):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        task = await super().wait_until_due(only)
        return await self.mark_dispatched(task.id, task.scheduled_at)


@breaks("waiting_is_a_checkpoint")
class TellsAtOnce(HeapRepository):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        for task in self.store.snapshot():
            return task
        return await super().wait_until_due(only)


@breaks("waiting_is_a_checkpoint")
class CannotBeCancelled(HeapRepository):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        task: Task | None = None
        with trio.CancelScope(shield=True):
            task = await super().wait_until_due(only)
        assert task is not None
        return task


@breaks("the_timer_respects_the_filter")
class TellsOfAnyWork(HeapRepository):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        return await super().wait_until_due()


@breaks("the_timer_respects_the_pools")
class TellsOfAnyPool(HeapRepository):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        return await super().wait_until_due(attrs.evolve(only, pools=None))


@times_badly("the_timer_hears_of_room")
class CountsByItself(HookTimer):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        return await super().wait_until_due(only.counting())


@times_badly("several_may_wait")
class WakesOnlyTheLast(HookTimer):
    def appeared(self, tasks: Iterable[Task]) -> None:
        sleepers = dict(self._sleepers)
        for sleeper in list(sleepers)[:-1]:
            del self._sleepers[sleeper]
        super().appeared(tasks)
        self._sleepers.update(sleepers)


@times_badly("nothing_pending_does_not_wake", "the_timer_hears_of_a_cancel")
class Polls(HookTimer):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        task: Task | None = None
        while task is None:
            with trio.move_on_after(10):
                task = await super().wait_until_due(only)
        return task


@breaks("distant_moments_are_harmless")
class AddsAYear(HeapRepository):
    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        head = await self.get_next(only)
        if head is not None:
            head.scheduled_at.replace(year=head.scheduled_at.year + 1)
        return await super().wait_until_due(only)


class Unlimited:
    """A clock that nobody sets, as it thinks."""

    max_sleep = math.inf

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def now(self) -> datetime:
        return self.clock.now()

    def deadline_for(self, moment: datetime) -> float:
        return self.clock.deadline_for(moment)


@times_badly("a_clock_set_forward_is_noticed")
class SleepsAsLongAsItTakes(HookTimer):
    def start_timer(self, clock: Clock) -> None:
        super().start_timer(Unlimited(clock))


@times_badly("a_clock_set_back_is_noticed", "the_timer_hears_of_a_postponement")
class SleepsOnce(HookTimer):
    """Tells of the task that it slept for, whatever has become of it."""

    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        head = await self._store.get_next(only)
        assert head is not None
        assert self._clock is not None
        await trio.sleep_until(self._clock.deadline_for(head.scheduled_at))
        return head


@breaks("a_cancelled_wait_leaves_nothing")
class ThinksSomebodyWaits(HeapRepository):
    waiting = False

    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        assert not self.waiting
        self.waiting = True
        task = await super().wait_until_due(only)
        self.waiting = False
        return task


# -- what it hears of -----------------------------------------------------------------


class Deaf(HookTimer):
    """Does not hear of some operations."""

    def hears(self, operation: Operation) -> bool:
        raise NotImplementedError

    def observe(self, operation: Operation, result: Any) -> None:
        if self.hears(operation):
            super().observe(operation, result)


@times_badly(
    "the_timer_hears_of_an_add",
    "the_timer_hears_of_the_first_task",
    "the_timer_hears_of_an_overdue_task",
)
class DeafToAdds(Deaf):
    def hears(self, operation: Operation) -> bool:
        return not isinstance(operation, AddTasks)


@times_badly("the_timer_hears_of_an_advance", "the_timer_hears_of_a_change_of_work")
class DeafToUpdates(Deaf):
    def hears(self, operation: Operation) -> bool:
        return not isinstance(operation, UpdateTask)


@times_badly("the_timer_hears_of_a_cancel", "the_timer_hears_of_a_batch")
class DeafToCancels(Deaf):
    def hears(self, operation: Operation) -> bool:
        return not isinstance(operation, CancelTask)


@times_badly("the_timer_hears_of_a_dispatch")
class DeafToDispatches(Deaf):
    def hears(self, operation: Operation) -> bool:
        return not isinstance(operation, DispatchTask)


@times_badly("the_timer_hears_of_a_dispatch", "the_timer_hears_of_an_expiry")
class DeafToClaims(Deaf):
    def hears(self, operation: Operation) -> bool:
        return not isinstance(operation, ClaimTasks)


@times_badly("the_timer_hears_of_a_revert")
class DeafToReverts(Deaf):
    def hears(self, operation: Operation) -> bool:
        return not isinstance(operation, RevertTask)


@breaks("the_timer_hears_of_a_recovery")
class DeafToRecovery(HeapRepository):
    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        return await self.store.recover(action, at, only)


@times_badly("the_timer_outlasts_what_moves_nothing")
class StopsAtACancel(HookTimer):
    def observe(self, operation: Operation, result: Any) -> None:
        super().observe(operation, result)
        if isinstance(operation, CancelTask):
            self.stop_timer()


@times_badly(
    "the_timer_hears_of_an_add",
    "the_timer_hears_of_an_advance",
    "the_timer_hears_of_a_change_of_work",
    "the_timer_hears_of_a_revert",
    "the_timer_hears_of_a_batch",
    store_type=SlowlyReadStore,
)
class TakesItsEventLate(HookTimer):
    """Only once it has read the next task, and so loses what lands in between."""

    event = trio.Event()

    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        assert self._clock is not None
        while True:
            head = await self._store.get_next(only)
            if head is not None and head.scheduled_at <= self._clock.now():
                return head
            self.event = trio.Event()
            wake_at = math.inf
            if head is not None:
                wake_at = self._clock.deadline_for(head.scheduled_at)
            with trio.move_on_at(wake_at):
                await self.event.wait()

    @property
    def watched(self) -> bool:
        return True

    def observe(self, operation: Operation, result: Any) -> None:
        self.event.set()
