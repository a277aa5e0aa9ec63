"""A repository that fails when it is told to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import outcome
import trio

from trio_gokugen._json import JSON
from trio_gokugen._query import TaskQuery
from trio_gokugen._schedule import FoundSchedules, Schedule
from trio_gokugen._task import ENDED, Progress, Task, TaskState, TaskUpdate
from trio_gokugen.abc import (
    ANY_TASK,
    Added,
    ChangeSchedule,
    Claimed,
    Clock,
    IfExists,
    Operation,
    RecoverAction,
    Renewed,
    ScheduleChanged,
    TaskFilter,
    TaskRepository,
)

from ._faults import Call, Error, Fault, When, injected

_TIMER = frozenset({"start_timer", "stop_timer"})
"""The methods that are not async."""

_METHODS = _TIMER | {
    "add",
    "apply",
    "cancel",
    "change_schedule",
    "claim",
    "count_pending",
    "count_pools",
    "delete_ended",
    "find",
    "find_schedules",
    "get",
    "get_next",
    "get_schedule",
    "mark_cancelled",
    "mark_dispatched",
    "mark_done",
    "recover",
    "note_progress",
    "renew",
    "retry",
    "revert",
    "serve",
    "update",
    "wait_until_due",
}


class FaultyRepository:
    """Stands in front of a repository; its calls fail or take their time, if told so.

    ::

        repository = FaultyRepository(HeapRepository())
        repository.fail("apply", OSError("disk full"), when=3)
        repository.fail("get_next", times=None)  # until it is healed
        repository.fail("apply", after=True, when=lambda call: any(
            isinstance(operation, EndTask) for operation in call.operations
        ))
        repository.delay("wait_until_due", 5)

    Faults happen to the calls that are made of this object. What the repository behind
    it calls of itself is not among them: its timer reads the next task without it, for
    example, so have "wait_until_due" fail instead of "get_next".
    """

    def __init__(self, repository: TaskRepository) -> None:
        self._repository = repository
        self._faults: list[Fault] = []
        self.calls: list[Call] = []
        """All calls made so far."""

    # -- what is to go wrong ----------------------------------------------------------

    def fail(
        self,
        method: str,
        error: Error = injected,
        *,
        when: When = None,
        times: int | None = 1,
        after: bool = False,
    ) -> Fault:
        """Have calls of a method fail.

        Args:
          method: Its name.
          error: What they raise; a `RepositoryError` by default.
          when: Which calls: those that satisfy a predicate, or from the n-th on,
            counted from now, 1 being the next.
          times: How many calls; `None` for as long as it is not removed.
          after: Carry the call out, and then fail. Nobody knows then whether it has
            taken effect, as when a connection is lost before the answer comes.

        Returns:
          The fault, which counts how often it has happened, and can be given to `heal`.
        """
        return self._put(Fault(method, after, when, times, error, 0.0))

    def delay(
        self,
        method: str,
        seconds: float,
        *,
        when: When = None,
        times: int | None = 1,
        after: bool = False,
    ) -> Fault:
        """Have calls of a method take so many seconds longer. The rest is as in `fail`.

        With `after` it is the answer that is late, and no cancellation makes it come
        any sooner: what has taken effect must return.
        """
        if method in _TIMER:
            raise ValueError(f"method: {method} is not async, and so cannot be delayed")
        return self._put(Fault(method, after, when, times, None, seconds))

    def heal(self, *faults: Fault) -> None:
        """Remove these faults, or all of them."""
        self._faults = [each for each in self._faults if faults and each not in faults]

    def _put(self, fault: Fault) -> Fault:
        if fault.method not in _METHODS:
            raise ValueError(f"method: a repository has no {fault.method!r}")
        self._faults.append(fault)
        return fault

    # -- calls ------------------------------------------------------------------------

    def _begin(self, method: str, arguments: Mapping[str, Any]) -> list[Fault]:
        call = Call(method, arguments, trio.current_time())
        self.calls.append(call)
        return [fault for fault in self._faults if fault.strikes(call)]

    async def _call(self, method: str, **arguments: Any) -> Any:
        faults = self._begin(method, arguments)
        for fault in faults:
            if not fault.after:
                await fault.wait()
                fault.strike()
        result = await getattr(self._repository, method)(**arguments)
        for fault in faults:
            if fault.after:
                with trio.CancelScope(shield=True):
                    await fault.wait()
                fault.strike()
        return result

    def _call_timer(self, method: str, **arguments: Any) -> None:
        faults = self._begin(method, arguments)
        for fault in faults:
            if not fault.after:
                fault.strike()
        getattr(self._repository, method)(**arguments)
        for fault in faults:
            fault.strike()

    async def add(self, tasks: Sequence[Task], if_exists: IfExists = "raise") -> Added:
        added: Added = await self._call("add", tasks=tasks, if_exists=if_exists)
        return added

    async def get(self, task_id: str) -> Task:
        task: Task = await self._call("get", task_id=task_id)
        return task

    async def update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        result: tuple[Task, bool] = await self._call(
            "update", task_id=task_id, update=update
        )
        return result

    async def cancel(self, task_id: str, at: datetime) -> tuple[Task, bool]:
        result: tuple[Task, bool] = await self._call("cancel", task_id=task_id, at=at)
        return result

    async def mark_dispatched(
        self, task_id: str, at: datetime, *, at_most_once: bool = False
    ) -> Task:
        task: Task = await self._call(
            "mark_dispatched", task_id=task_id, at=at, at_most_once=at_most_once
        )
        return task

    async def claim(self, limit: int, at: datetime, only: TaskFilter = ANY_TASK) -> Claimed:
        claimed: Claimed = await self._call("claim", limit=limit, at=at, only=only)
        return claimed

    async def mark_done(
        self, run: Task, at: datetime, err: str | None = None, result: JSON = None
    ) -> Task:
        task: Task = await self._call("mark_done", run=run, at=at, err=err, result=result)
        return task

    async def retry(
        self, run: Task, at: datetime, scheduled_at: datetime, err: str | None = None
    ) -> Task:
        task: Task = await self._call(
            "retry", run=run, at=at, scheduled_at=scheduled_at, err=err
        )
        return task

    async def note_progress(self, run: Task, progress: Progress) -> Task:
        task: Task = await self._call("note_progress", run=run, progress=progress)
        return task

    async def mark_cancelled(self, run: Task, at: datetime) -> Task:
        task: Task = await self._call("mark_cancelled", run=run, at=at)
        return task

    async def revert(self, run: Task) -> Task:
        task: Task = await self._call("revert", run=run)
        return task

    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        tasks: list[Task] = await self._call("recover", action=action, at=at, only=only)
        return tasks

    @property
    def lease(self) -> float:
        return self._repository.lease

    @property
    def poll(self) -> float:
        return self._repository.poll

    async def renew(
        self, runs: Sequence[Task], action: RecoverAction, at: datetime
    ) -> Renewed:
        renewed: Renewed = await self._call("renew", runs=runs, action=action, at=at)
        return renewed

    async def serve(self, claim: Callable[[str], None]) -> None:
        await self._call("serve", claim=claim)

    async def delete_ended(
        self,
        before: datetime | None = None,
        states: Collection[TaskState] = ENDED,
        limit: int | None = None,
    ) -> list[str]:
        ids: list[str] = await self._call(
            "delete_ended", before=before, states=states, limit=limit
        )
        return ids

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        outcomes: Sequence[outcome.Outcome[Any]] = await self._call(
            "apply", operations=operations
        )
        return outcomes

    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        task: Task | None = await self._call("get_next", only=only)
        return task

    async def find(
        self, query: TaskQuery, limit: int | None = None, after: Task | None = None
    ) -> list[Task]:
        tasks: list[Task] = await self._call("find", query=query, limit=limit, after=after)
        return tasks

    async def count_pending(self) -> Mapping[str, int]:
        pending: Mapping[str, int] = await self._call("count_pending")
        return pending

    async def count_pools(self) -> Mapping[str, int]:
        pools: Mapping[str, int] = await self._call("count_pools")
        return pools

    async def change_schedule(self, change: ChangeSchedule) -> ScheduleChanged:
        changed: ScheduleChanged = await self._call("change_schedule", change=change)
        return changed

    async def get_schedule(self, schedule_id: str) -> Schedule:
        schedule: Schedule = await self._call("get_schedule", schedule_id=schedule_id)
        return schedule

    async def find_schedules(
        self, limit: int | None = None, after: str | None = None
    ) -> FoundSchedules:
        schedules: FoundSchedules = await self._call(
            "find_schedules", limit=limit, after=after
        )
        return schedules

    def start_timer(self, clock: Clock) -> None:
        self._call_timer("start_timer", clock=clock)

    def stop_timer(self) -> None:
        self._call_timer("stop_timer")

    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        task: Task = await self._call("wait_until_due", only=only)
        return task
