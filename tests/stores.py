"""Repositories that are nothing but correct, to put beside the real ones."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import attrs
import outcome
import trio

from trio_gokugen import (
    JSON,
    BulkRepository,
    HeapStore,
    Progress,
    SimpleRepository,
    Task,
    TaskExistsError,
    TaskNotFoundError,
    TaskQuery,
    TaskState,
    TaskUpdate,
    _transitions,
)
from trio_gokugen._autojump import autojump_held
from trio_gokugen._query import find_order
from trio_gokugen._repository import NoSchedules, recover_runs
from trio_gokugen._task import ENDED
from trio_gokugen.abc import (
    ANY_TASK,
    Added,
    DeleteEnded,
    IfExists,
    Operation,
    RecoverAction,
    TaskFilter,
)
from trio_gokugen.testing._model import Model

T = TypeVar("T")


class ListStore(SimpleRepository):
    """Tasks in a dict, which keeps their order. What changes them is not async."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task] = {}

    # -- the plain functions ------------------------------------------------------------

    def find_one(self, task_id: str) -> Task:
        try:
            return self.tasks[task_id]
        except KeyError:
            raise TaskNotFoundError(task_id) from None

    def put(self, task: Task) -> Task:
        self.tasks[task.id] = task
        return task

    def place(self, task: Task) -> Any:
        """What pending tasks are sorted by, the oldest of equals being first."""
        return task.scheduled_at, -task.priority

    def do_add(self, tasks: Sequence[Task]) -> None:
        ids = set(self.tasks)
        for task in tasks:
            if task.id in ids:
                raise TaskExistsError(task.id)
            ids.add(task.id)
        for task in tasks:
            self.put(task)

    def holder(self, key: str) -> Task | None:
        tasks = (task for task in self.tasks.values() if not task.state.ended)
        return next((task for task in tasks if task.key == key), None)

    def do_add_by_key(self, tasks: Sequence[Task], if_exists: IfExists) -> Added:
        if all(task.key is None for task in tasks):
            self.do_add(tasks)
            return Added(tasks, (), tasks)
        added = _transitions.added(tasks, if_exists, self.tasks.__contains__, self.holder)
        for task in added.changed:
            self.put(task)
        self.do_add(added.new)
        return added

    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        before = self.find_one(task_id)
        after = self.put(_transitions.updated(before, update))
        return after, after is not before

    def do_cancel(self, task_id: str, at: datetime) -> tuple[Task, bool]:
        before = self.find_one(task_id)
        after = self.put(_transitions.cancelled(before, at))
        return after, after is not before

    def do_dispatch(self, task_id: str, at: datetime) -> Task:
        return self.put(_transitions.dispatched(self.find_one(task_id), at))

    def do_mark(self, task_id: str, at: datetime, *, at_most_once: bool) -> Task:
        task = self.do_dispatch(task_id, at)
        if task.state is TaskState.DISPATCHED:
            task = self.put(attrs.evolve(task, at_most_once=at_most_once))
        return task

    def do_end(self, run: Task, at: datetime, err: str | None, result: JSON = None) -> Task:
        return self.put(_transitions.ended(self.find_one(run.id), run, at, err, result))

    def do_retry(
        self, run: Task, at: datetime, scheduled_at: datetime, err: str | None
    ) -> Task:
        task = self.find_one(run.id)
        return self.put(_transitions.retried(task, run, at, scheduled_at, err))

    def do_note(self, run: Task, progress: Progress) -> Task:
        return self.put(_transitions.progressed(self.find_one(run.id), run, progress))

    def do_cancel_run(self, run: Task, at: datetime) -> Task:
        return self.put(_transitions.interrupted(self.find_one(run.id), run, at))

    def do_revert(self, run: Task) -> Task:
        return self.put(_transitions.reverted(self.find_one(run.id), run))

    def do_delete(
        self,
        before: datetime | None,
        states: Collection[TaskState],
        limit: int | None,
    ) -> list[str]:
        DeleteEnded(before, states, limit)  # refuses other states
        ends = sorted(
            (task.ended_at, number, task.id)
            for number, task in enumerate(self.tasks.values())
            if task.ended_at is not None
            and task.state in states
            and (before is None or task.ended_at < before)
        )
        ids = [task_id for _, _, task_id in ends[:limit]]
        for task_id in ids:
            del self.tasks[task_id]
        return ids

    def pending(self, only: TaskFilter) -> list[Task]:
        scheduled = [t for t in self.tasks.values() if t.state is TaskState.SCHEDULED]
        return sorted(filter(only.accepts, scheduled), key=self.place)

    def do_find(
        self, query: TaskQuery, limit: int | None, after: Task | None
    ) -> list[Task]:
        found = sorted(filter(query.matches, self.tasks.values()), key=find_order)
        if after is not None:
            found = [task for task in found if find_order(task) > find_order(after)]
        return found[:limit]

    # -- as a repository ------------------------------------------------------------------

    async def step(self, function: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return function()

    async def add(self, tasks: Sequence[Task], if_exists: IfExists = "raise") -> Added:
        return await self.step(lambda: self.do_add_by_key(tasks, if_exists))

    async def get(self, task_id: str) -> Task:
        return await self.step(lambda: self.find_one(task_id))

    async def update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        return await self.step(lambda: self.do_update(task_id, update))

    async def cancel(self, task_id: str, at: datetime) -> tuple[Task, bool]:
        return await self.step(lambda: self.do_cancel(task_id, at))

    async def mark_dispatched(
        self, task_id: str, at: datetime, *, at_most_once: bool = False
    ) -> Task:
        return await self.step(lambda: self.do_mark(task_id, at, at_most_once=at_most_once))

    async def mark_done(
        self, run: Task, at: datetime, err: str | None = None, result: JSON = None
    ) -> Task:
        return await self.step(lambda: self.do_end(run, at, err, result))

    async def retry(
        self, run: Task, at: datetime, scheduled_at: datetime, err: str | None = None
    ) -> Task:
        return await self.step(lambda: self.do_retry(run, at, scheduled_at, err))

    async def note_progress(self, run: Task, progress: Progress) -> Task:
        return await self.step(lambda: self.do_note(run, progress))

    async def mark_cancelled(self, run: Task, at: datetime) -> Task:
        return await self.step(lambda: self.do_cancel_run(run, at))

    async def revert(self, run: Task) -> Task:
        return await self.step(lambda: self.do_revert(run))

    async def delete_ended(
        self,
        before: datetime | None = None,
        states: Collection[TaskState] = ENDED,
        limit: int | None = None,
    ) -> list[str]:
        return await self.step(lambda: self.do_delete(before, states, limit))

    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        return await self.step(lambda: next(iter(self.pending(only)), None))

    async def find(
        self, query: TaskQuery, limit: int | None = None, after: Task | None = None
    ) -> list[Task]:
        return await self.step(lambda: self.do_find(query, limit, after))

    async def count_pending(self) -> Mapping[str, int]:
        return await self.step(
            lambda: Counter(task.work_id for task in self.pending(ANY_TASK))
        )


class ThreadedStore(NoSchedules, BulkRepository):
    """Works in threads, one at a time, as a store on a disk does."""

    def __init__(self) -> None:
        self._model = Model()
        self._lock = threading.Lock()
        self._limiter = trio.CapacityLimiter(1)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        def locked() -> T:
            with self._lock:
                return function()

        with autojump_held():
            return await trio.to_thread.run_sync(locked, limiter=self._limiter)

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        return await self._in_thread(lambda: self._model.apply(operations))

    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        query = TaskQuery(states={TaskState.DISPATCHED}, work_ids=only.work_ids)
        orphans = await self.find(query)
        return await recover_runs(self, orphans, action, at)

    async def get(self, task_id: str) -> Task:
        tasks = {task.id: task for task in await self.find(TaskQuery())}
        if task_id not in tasks:
            raise TaskNotFoundError(task_id)
        return tasks[task_id]

    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        return await self._in_thread(lambda: next(iter(self._model.pending(only)), None))

    async def find(
        self, query: TaskQuery, limit: int | None = None, after: Task | None = None
    ) -> list[Task]:
        def find() -> list[Task]:
            found = sorted(filter(query.matches, self._model.tasks), key=find_order)
            if after is not None:
                found = [task for task in found if find_order(task) > find_order(after)]
            return found[:limit]

        return await self._in_thread(find)

    async def count_pending(self) -> Mapping[str, int]:
        return await self._in_thread(
            lambda: Counter(task.work_id for task in self._model.pending(ANY_TASK))
        )

    async def count_pools(self) -> Mapping[str, int]:
        def count() -> Mapping[str, int]:
            pending = self._model.pending(ANY_TASK)
            return Counter(task.pool for task in pending if task.pool is not None)

        return await self._in_thread(count)


class SlowlyReadStore(HeapStore):
    """Takes its time between reading the next task and telling it."""

    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        task = await super().get_next(only)
        for _ in range(10):
            await trio.lowlevel.checkpoint()
        return task
