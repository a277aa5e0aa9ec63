"""Repositories that do a thing wrong, each another, in batches or when others interfere."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import outcome
import trio
from broken import breaks
from stores import ListStore

from trio_gokugen import JSON, HeapRepository, Task, TaskQuery, TaskState, TaskUpdate
from trio_gokugen._task import ENDED
from trio_gokugen.abc import (
    ANY_TASK,
    Added,
    AddTasks,
    Claimed,
    EndTask,
    IfExists,
    Operation,
    RecoverAction,
    TaskFilter,
)

T = TypeVar("T")

# -- batches --------------------------------------------------------------------------


@breaks("delete_ended_refuses_other_states")
class DeletesNothingOfOtherStates(HeapRepository):
    async def delete_ended(
        self,
        before: datetime | None = None,
        states: Collection[TaskState] = ENDED,
        limit: int | None = None,
    ) -> list[str]:
        return await super().delete_ended(before, ENDED.intersection(states), limit)


@breaks("a_batch_equals_single_steps")
class ForgetsErrInBatches(HeapRepository):
    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        if len(operations) > 1:
            operations = [
                EndTask(each.run, each.at) if isinstance(each, EndTask) else each
                for each in operations
            ]
        return await super().apply(operations)


@breaks("a_refusal_harms_no_other", "a_batch_equals_single_steps")
class StopsAtTheFirstRefusal(ListStore):
    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        outcomes: list[outcome.Outcome[Any]] = []
        for operation in operations:
            outcomes.append(await outcome.acapture(operation.carry_out, self))
            if isinstance(outcomes[-1], outcome.Error):
                return outcomes + [outcomes[-1]] * (len(operations) - len(outcomes))
        return outcomes


@breaks("a_batch_is_in_order")
class AddsLast(ListStore):
    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        order = sorted(operations, key=lambda each: isinstance(each, AddTasks))
        outcomes = dict(zip(order, await super().apply(order), strict=True))
        return [outcomes[operation] for operation in operations]


@breaks("an_empty_batch_changes_nothing")
class CannotDoNothing(HeapRepository):
    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        assert operations
        return await super().apply(operations)


@breaks("many_can_be_ended_at_once")
class DoesAHundredAtMost(HeapRepository):
    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        return await super().apply(operations[:100])


# -- cancellation ---------------------------------------------------------------------


@breaks("every_method_is_a_checkpoint")
class DoesNotYield(ListStore):
    async def get(self, task_id: str) -> Task:
        return self.find_one(task_id)


@breaks("a_cancelled_call_changes_nothing")
class ShieldsItsChanges(HeapRepository):
    async def add(self, tasks: Sequence[Task], if_exists: IfExists = "raise") -> Added:
        with trio.CancelScope(shield=True):
            await super().add(tasks, if_exists)
        return Added(tasks, (), tasks)


@breaks("a_cancelled_call_changes_nothing", "changes_are_atomic")
class ChangesFirst(HeapRepository):
    async def cancel(self, task_id: str, at: datetime) -> tuple[Task, bool]:
        with trio.CancelScope(shield=True):
            await super().cancel(task_id, at)
        return await self.get(task_id), True


@breaks("changes_are_atomic")
class RevertsOneByOne(HeapRepository):
    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        if action is not RecoverAction.REVERT:
            return await super().recover(action, at, only)
        orphans = await self.find(TaskQuery(states={TaskState.DISPATCHED}))
        return [await self.revert(run) for run in orphans]


@breaks("changes_are_atomic")
class AppliesOneByOne(ListStore):
    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        await trio.lowlevel.checkpoint()
        return [await outcome.acapture(each.carry_out, self) for each in operations]


@breaks("reads_can_be_cancelled")
class FindsNothingIfCancelled(HeapRepository):
    async def find(
        self, query: TaskQuery, limit: int | None = None, after: Task | None = None
    ) -> list[Task]:
        try:
            return await super().find(query, limit, after)
        except trio.Cancelled:
            return []


@breaks("a_cancelled_change_can_be_repeated")
class NeverUnlocks(HeapRepository):
    def __init__(self) -> None:
        super().__init__()
        self.lock = trio.Lock()

    async def add(self, tasks: Sequence[Task], if_exists: IfExists = "raise") -> Added:
        if any(task.id == "new" for task in tasks):
            await self.lock.acquire()
            added = await super().add(tasks, if_exists)
            self.lock.release()
            return added
        return await super().add(tasks, if_exists)


# -- concurrency ----------------------------------------------------------------------


class Torn(ListStore):
    """Lets others in between what it reads and what it writes."""

    async def torn(self, task_id: str, change: Callable[[], T]) -> T:
        before = dict(self.tasks)
        result = change()
        after = self.tasks.get(task_id)
        self.tasks = before
        await trio.lowlevel.checkpoint()
        if after is not None:
            self.put(after)
        return result


@breaks("each_task_is_claimed_once")
class ClaimsInTwoSteps(Torn):
    async def claim(self, limit: int, at: datetime, only: TaskFilter = ANY_TASK) -> Claimed:
        await trio.lowlevel.checkpoint()
        due = [task for task in self.pending(only) if task.scheduled_at <= at][:limit]
        await trio.lowlevel.checkpoint()
        return Claimed([self.put(_dispatched(task, at)) for task in due], [])


def _dispatched(task: Task, at: datetime) -> Task:
    one = ListStore()
    one.put(task)
    return one.do_dispatch(task.id, at)


@breaks("a_task_is_dispatched_or_cancelled")
class CancelsInTwoSteps(Torn):
    async def cancel(self, task_id: str, at: datetime) -> tuple[Task, bool]:
        await trio.lowlevel.checkpoint()
        return await self.torn(task_id, lambda: self.do_cancel(task_id, at))


@breaks("a_task_is_claimed_or_postponed")
class UpdatesInTwoSteps(Torn):
    async def update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        await trio.lowlevel.checkpoint()
        return await self.torn(task_id, lambda: self.do_update(task_id, update))


@breaks("a_run_ends_once")
class EndsInTwoSteps(Torn):
    async def mark_done(
        self, run: Task, at: datetime, err: str | None = None, result: JSON = None
    ) -> Task:
        await trio.lowlevel.checkpoint()
        return await self.torn(run.id, lambda: self.do_end(run, at, err, result))


@breaks("an_id_is_added_once")
class AddsInTwoSteps(Torn):
    async def add(self, tasks: Sequence[Task], if_exists: IfExists = "raise") -> Added:
        await trio.lowlevel.checkpoint()
        before = dict(self.tasks)
        self.do_add(tasks)
        self.tasks = before
        await trio.lowlevel.checkpoint()
        for task in tasks:
            self.put(task)
        return Added(tasks, (), tasks)


@breaks("no_change_is_lost")
class WritesAllThatItHasRead(ListStore):
    async def add(self, tasks: Sequence[Task], if_exists: IfExists = "raise") -> Added:
        everything = dict(self.tasks)
        await trio.lowlevel.checkpoint()
        self.tasks = everything
        self.do_add(tasks)
        return Added(tasks, (), tasks)


@breaks("no_change_is_lost")
class CountsBesides(HeapRepository):
    """A count that is read, and written back later."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    async def add(self, tasks: Sequence[Task], if_exists: IfExists = "raise") -> Added:
        count = self.count
        added = await super().add(tasks, if_exists)
        self.count = count + len(tasks)
        return added

    async def count_pending(self) -> Mapping[str, int]:
        await super().count_pending()
        return {"work": self.count}
