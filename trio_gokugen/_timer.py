"""The timer for any store, and the joint that resets it on every mutation.

A mutation that lands while the timer reads the next task must not be lost: so a sleeper
has its event ready *before* it reads, and while it reads, any mutation sets it.

    mutation ──▶ TimedRepository ──▶ store
                      │ reset
                      ▼
                  HookTimer ──▶ whoever sleeps in `wait_until_due`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

import attrs
import outcome
import trio

from ._errors import REFUSALS, SchedulerAlreadyRunningError
from ._query import TaskQuery
from ._repository import BulkRepository
from ._schedule import FoundSchedules, Schedule
from ._task import Task, TaskState
from .abc import (
    ANY_TASK,
    Added,
    AddTasks,
    CancelRun,
    CancelTask,
    Claimed,
    ClaimTasks,
    Clock,
    DispatchTask,
    EndTask,
    OnSchedule,
    Operation,
    RecoverAction,
    Renewed,
    RepositoryLike,
    RetryTask,
    RevertTask,
    TaskFilter,
    UpdateTask,
)

S = TypeVar("S", bound=RepositoryLike)


@attrs.define(eq=False)
class _Sleeper:
    """Somebody in `wait_until_due`."""

    only: TaskFilter
    event: trio.Event = attrs.field(factory=trio.Event)
    reading: bool = True
    head: Task | None = None
    """The task slept for; none if nothing is pending."""

    def wake(self) -> None:
        """Have it look again."""
        self.event.set()


@attrs.define(eq=False)
class HookTimer:
    """Tells when the next task of a store is due. Needs only its `get_next`.

    Who waits with a filter that has `rooms` is woken when one of them has room again.
    Whoever changes the store must say so, by `observe`, `appeared`, `vanished` or
    `reset`: `TimedRepository` does.
    """

    _store: RepositoryLike
    _clock: Clock | None = attrs.field(default=None, init=False)
    _sleepers: dict[_Sleeper, None] = attrs.field(factory=dict[_Sleeper, None], init=False)

    def start_timer(self, clock: Clock) -> None:
        """Begin to tell the time by `clock`."""
        if self._clock is not None:
            raise SchedulerAlreadyRunningError("repository's scheduler")
        self._clock = clock

    def stop_timer(self) -> None:
        """Stop. Stopping twice is harmless."""
        self._clock = None
        self.reset()

    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        """Sleep until a task that passes the filter is due, and return the first."""
        sleeper = _Sleeper(only)
        self._sleepers[sleeper] = None
        for room in only.rooms:
            room.listeners[sleeper.wake] = None
        try:
            while True:
                self._started()
                # Take the event before reading: a mutation that lands during the read
                # would otherwise be lost.
                sleeper.event = trio.Event()
                sleeper.reading = True
                sleeper.head = await self._store.get_next(only)
                sleeper.reading = False
                clock = self._started()  # unless it was stopped meanwhile
                if sleeper.head is not None and sleeper.head.scheduled_at <= clock.now():
                    return sleeper.head
                await self._sleep(clock, sleeper)
        finally:
            del self._sleepers[sleeper]
            for room in only.rooms:
                del room.listeners[sleeper.wake]

    def _started(self) -> Clock:
        if self._clock is None:
            raise RuntimeError("the timer is not started: call start_timer")
        return self._clock

    async def _sleep(self, clock: Clock, sleeper: _Sleeper) -> None:
        if sleeper.head is None:
            await sleeper.event.wait()
            return
        wake_at = min(
            clock.deadline_for(sleeper.head.scheduled_at),
            trio.current_time() + clock.max_sleep,
        )
        with trio.CancelScope(deadline=wake_at):
            await sleeper.event.wait()

    @property
    def watched(self) -> bool:
        """Whether anybody sleeps, and wants to be told."""
        return bool(self._sleepers)

    # -- what has changed -----------------------------------------------------------

    def reset(self) -> None:
        """Anything may have changed: look again."""
        for sleeper in self._sleepers:
            sleeper.event.set()

    def appeared(self, tasks: Iterable[Task]) -> None:
        """These tasks are now pending, where and when they say."""
        there = [*tasks]
        firsts = _firsts(there)
        for sleeper in self._sleepers:
            head, accepts = sleeper.head, sleeper.only.accepts
            if sleeper.reading:
                sleeper.event.set()
                continue
            for task in there if sleeper.only.rooms else firsts:
                if (head is None or task.scheduled_at < head.scheduled_at) and accepts(
                    task
                ):
                    sleeper.event.set()
                    break

    def vanished(self, task_id: str) -> None:
        """The task is not pending any more, or not where it was."""
        for sleeper in self._sleepers:
            head = sleeper.head
            if sleeper.reading or (head is not None and head.id == task_id):
                sleeper.event.set()

    def observe(self, operation: Operation, result: Any) -> None:
        """The operation took effect, and returned this."""
        match operation, result:
            case AddTasks(), Added() as added:
                for task in added.changed:
                    self.vanished(task.id)
                there = (*added.new, *added.changed)
                self.appeared([t for t in there if t.state is TaskState.SCHEDULED])
            case OnSchedule(), _:
                self.reset()
            case UpdateTask(), (Task() as task, True):
                self.vanished(task.id)
                self.appeared([task])
                self._next_appeared(task)
            case CancelTask() | DispatchTask(), (Task() as task) | (Task() as task, True):
                self.vanished(operation.task_id)
                self._next_appeared(task)
            case ClaimTasks(), Claimed() as claimed:
                self._claimed(claimed)
            case EndTask() | CancelRun(), Task() as task:
                self._next_appeared(task)
            case RevertTask() | RetryTask(), Task() as task:
                self.appeared([task])
            case _:
                pass  # ended tasks, ended or deleted, are nobody's next

    def _claimed(self, claimed: Claimed) -> None:
        for task in (*claimed.tasks, *claimed.expired, *claimed.made):
            self.vanished(task.id)
        self.appeared(claimed.made)

    def _next_appeared(self, task: Task) -> None:
        """With a task of a schedule the next one may have become pending."""
        if task.schedule_id is not None:
            self.reset()


def _firsts(tasks: Sequence[Task]) -> Iterable[Task]:
    """The earliest of each pool and work: who asks for no more, needs no other."""
    if len(tasks) == 1:
        return tasks
    firsts: dict[tuple[str | None, str], Task] = {}
    for task in tasks:
        kind = task.pool, task.work_id
        first = firsts.get(kind)
        if first is None or task.scheduled_at < first.scheduled_at:
            firsts[kind] = task
    return firsts.values()


class TimedRepository(BulkRepository, Generic[S]):
    """A store joined with a timer, which makes it a `TaskRepository`.

    Every change goes through `apply`, and so past the timer. Change the store behind its
    back, and the timer must be told: `timer.reset()`.
    """

    def __init__(self, store: S) -> None:
        self.store: S = store
        self.timer: HookTimer = HookTimer(store)

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        try:
            outcomes = await self.store.apply(operations)
        except BaseException:
            # Nothing has happened, if the store keeps its promise; an outcome that the
            # store itself does not know is worth a look.
            self.timer.reset()
            raise
        if not self.timer.watched:
            return outcomes
        for operation, result in zip(operations, outcomes, strict=True):
            if isinstance(result, outcome.Value):
                self.timer.observe(operation, result.value)
            elif not isinstance(cast("outcome.Error", result).error, REFUSALS):
                self.timer.reset()  # maybe it happened, maybe not
        return outcomes

    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        try:
            return await self.store.recover(action, at, only)
        finally:
            self.timer.reset()

    @property
    def lease(self) -> float:
        return self.store.lease

    async def renew(
        self, runs: Sequence[Task], action: RecoverAction, at: datetime
    ) -> Renewed:
        renewed = await self.store.renew(runs, action, at)
        if renewed.recovered:
            self.timer.reset()
        return renewed

    @property
    def poll(self) -> float:
        return math.inf

    async def serve(self, claim: Callable[[str], None]) -> None:
        await trio.sleep_forever()

    async def get(self, task_id: str) -> Task:
        return await self.store.get(task_id)

    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        return await self.store.get_next(only)

    async def find(
        self, query: TaskQuery, limit: int | None = None, after: Task | None = None
    ) -> list[Task]:
        return await self.store.find(query, limit, after)

    async def count_pending(self) -> Mapping[str, int]:
        return await self.store.count_pending()

    async def count_pools(self) -> Mapping[str, int]:
        return await self.store.count_pools()

    async def get_schedule(self, schedule_id: str) -> Schedule:
        return await self.store.get_schedule(schedule_id)

    async def find_schedules(
        self, limit: int | None = None, after: str | None = None
    ) -> FoundSchedules:
        return await self.store.find_schedules(limit, after)

    def start_timer(self, clock: Clock) -> None:
        self.timer.start_timer(clock)

    def stop_timer(self) -> None:
        self.timer.stop_timer()

    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        return await self.timer.wait_until_due(only)
