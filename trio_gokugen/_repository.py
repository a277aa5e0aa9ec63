"""Two half-made repositories, so that an implementer writes every operation once.

A store with transactions writes `apply`, and inherits the methods for single operations
from `BulkRepository`. A store without writes those methods, and inherits `apply`, `claim`
and `recover` from `SimpleRepository`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

import outcome
import trio

from ._errors import NoSchedulesError, RefusedError
from ._json import JSON
from ._query import TaskQuery
from ._schedule import ChangeSchedule, FoundSchedules, Schedule, ScheduleChanged
from ._task import ENDED, Progress, Task, TaskState, TaskUpdate
from .abc import (
    ANY_TASK,
    Added,
    AddTasks,
    CancelRun,
    CancelTask,
    Claimed,
    ClaimTasks,
    DeleteEnded,
    DispatchTask,
    EndTask,
    IfExists,
    NoteProgress,
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

RECOVERED = "the run was lost: its scheduler ended without recording the outcome"
"""The `err` of a task failed by `recover`."""


async def recover_runs(
    repository: RepositoryLike,
    orphans: Sequence[Task],
    action: RecoverAction,
    at: datetime,
) -> list[Task]:
    """Revert or fail tasks that nobody runs, in one batch: see `recover`."""
    outcomes = await repository.apply(recovery(orphans, action, at))
    return [each.unwrap() for each in outcomes]


def recovery(
    orphans: Sequence[Task], action: RecoverAction, at: datetime
) -> list[EndTask | RevertTask]:
    """What becomes of tasks that nobody runs."""
    if action is RecoverAction.LEAVE:
        return []
    return [
        EndTask(run, at, RECOVERED)
        if run.at_most_once or action is RecoverAction.FAIL
        else RevertTask(run)
        for run in orphans
    ]


class Unshared:
    """What a store need not do that only one scheduler uses at a time."""

    @property
    def lease(self) -> float:
        return math.inf

    async def renew(
        self, runs: Sequence[Task], action: RecoverAction, at: datetime
    ) -> Renewed:
        await trio.lowlevel.checkpoint()
        return Renewed([], [])


class NoSchedules:
    """What a store answers that keeps tasks only."""

    async def change_schedule(self, change: ChangeSchedule) -> ScheduleChanged:
        await trio.lowlevel.checkpoint()
        raise NoSchedulesError

    async def get_schedule(self, schedule_id: str) -> Schedule:
        await trio.lowlevel.checkpoint()
        raise NoSchedulesError

    async def find_schedules(
        self, limit: int | None = None, after: str | None = None
    ) -> FoundSchedules:
        await trio.lowlevel.checkpoint()
        return FoundSchedules()


class BulkRepository(Unshared, ABC):
    """Single operations, made from `apply`."""

    @abstractmethod
    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        """See `RepositoryLike.apply`."""

    async def _apply_one(self, operation: Operation) -> Any:
        [result] = await self.apply([operation])
        return result.unwrap()

    async def add(self, tasks: Sequence[Task], if_exists: IfExists = "raise") -> Added:
        return cast("Added", await self._apply_one(AddTasks(tasks, if_exists)))

    async def update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        return cast("tuple[Task, bool]", await self._apply_one(UpdateTask(task_id, update)))

    async def cancel(self, task_id: str, at: datetime) -> tuple[Task, bool]:
        return cast("tuple[Task, bool]", await self._apply_one(CancelTask(task_id, at)))

    async def mark_dispatched(
        self, task_id: str, at: datetime, *, at_most_once: bool = False
    ) -> Task:
        operation = DispatchTask(task_id, at, at_most_once)
        return cast("Task", await self._apply_one(operation))

    async def claim(self, limit: int, at: datetime, only: TaskFilter = ANY_TASK) -> Claimed:
        return cast("Claimed", await self._apply_one(ClaimTasks(limit, at, only)))

    async def mark_done(
        self, run: Task, at: datetime, err: str | None = None, result: JSON = None
    ) -> Task:
        return cast("Task", await self._apply_one(EndTask(run, at, err, result)))

    async def retry(
        self, run: Task, at: datetime, scheduled_at: datetime, err: str | None = None
    ) -> Task:
        operation = RetryTask(run, at, scheduled_at, err)
        return cast("Task", await self._apply_one(operation))

    async def note_progress(self, run: Task, progress: Progress) -> Task:
        return cast("Task", await self._apply_one(NoteProgress(run, progress)))

    async def mark_cancelled(self, run: Task, at: datetime) -> Task:
        return cast("Task", await self._apply_one(CancelRun(run, at)))

    async def revert(self, run: Task) -> Task:
        return cast("Task", await self._apply_one(RevertTask(run)))

    async def delete_ended(
        self,
        before: datetime | None = None,
        states: Collection[TaskState] = ENDED,
        limit: int | None = None,
    ) -> list[str]:
        operation = DeleteEnded(before, states, limit)
        return cast("list[str]", await self._apply_one(operation))

    async def change_schedule(self, change: ChangeSchedule) -> ScheduleChanged:
        return cast("ScheduleChanged", await self._apply_one(OnSchedule(change)))


class SimpleRepository(Unshared, NoSchedules, ABC):
    """Bulk operations, made from the single ones, which a subclass writes.

    Slow, as every operation is a write of its own, and without the atomicity of a
    transaction: a batch in the middle of which the store fails stays half done, and the
    outcomes say which half. A cancellation waits for the end of the batch.
    """

    @abstractmethod
    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        """See `RepositoryLike.get_next`."""

    @abstractmethod
    async def mark_dispatched(
        self, task_id: str, at: datetime, *, at_most_once: bool = False
    ) -> Task:
        """See `RepositoryLike.mark_dispatched`."""

    async def claim(self, limit: int, at: datetime, only: TaskFilter = ANY_TASK) -> Claimed:
        await trio.lowlevel.checkpoint()
        tasks: list[Task] = []
        expired: list[Task] = []
        only = only.counting()
        with trio.CancelScope(shield=True):
            while len(tasks) < limit:
                head = await self.get_next(only)
                if head is None or head.scheduled_at > at:
                    break
                try:
                    once = head.work_id in only.at_most_once
                    taken = await self.mark_dispatched(head.id, at, at_most_once=once)
                except RefusedError:
                    continue  # somebody else was faster: look again
                except Exception:
                    # What was taken must be run; the next claim will fail, if at all.
                    if tasks or expired:
                        break
                    raise
                if taken.state is TaskState.DISPATCHED:
                    tasks.append(taken)
                    only.take(taken)
                else:
                    expired.append(taken)
        return Claimed(tasks, expired)

    @abstractmethod
    async def find(
        self, query: TaskQuery, limit: int | None = None, after: Task | None = None
    ) -> list[Task]:
        """See `RepositoryLike.find`."""

    async def count_pools(self) -> Mapping[str, int]:
        # All that is scheduled is gone through: a store that knows better says so.
        scheduled = await self.find(TaskQuery(states={TaskState.SCHEDULED}))
        return Counter(task.pool for task in scheduled if task.pool is not None)

    async def recover(
        self: RepositoryLike,
        action: RecoverAction,
        at: datetime,
        only: TaskFilter = ANY_TASK,
    ) -> list[Task]:
        dispatched = frozenset({TaskState.DISPATCHED})
        orphans = await self.find(TaskQuery(states=dispatched, work_ids=only.work_ids))
        return await recover_runs(self, orphans, action, at)

    async def apply(
        self: RepositoryLike, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        await trio.lowlevel.checkpoint()
        outcomes: list[outcome.Outcome[Any]] = []
        with trio.CancelScope(shield=True):
            for operation in operations:
                try:
                    outcomes.append(outcome.Value(await operation.carry_out(self)))
                except Exception as error:  # noqa: BLE001 (it is the outcome)
                    outcomes.append(outcome.Error(error))
        return outcomes
