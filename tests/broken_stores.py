"""Stores that do a thing wrong, each another: what they keep, and what they allow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, cast

import attrs
import trio
from broken import breaks
from stores import ListStore

from trio_gokugen import (
    JSON,
    AlreadyCancelledError,
    AlreadyDispatchedError,
    NotDispatchedError,
    Task,
    TaskNotFoundError,
    TaskState,
    TaskUpdate,
)
from trio_gokugen._task import UNCHANGED
from trio_gokugen.abc import ANY_TASK, RecoverAction, Renewed, TaskFilter

# -- adding ---------------------------------------------------------------------------


@breaks("add_keeps_tasks_in_any_state")
class AddsAllAsScheduled(ListStore):
    def do_add(self, tasks: Sequence[Task]) -> None:
        super().do_add([attrs.evolve(t, state=TaskState.SCHEDULED) for t in tasks])


@breaks("add_is_all_or_none", "add_refuses_an_id_given_twice")
class AddsOneByOne(ListStore):
    def do_add(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            super().do_add([task])


@breaks("add_refuses_the_id_of_an_ended_task")
class AddsInPlaceOfTheEnded(ListStore):
    def do_add(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            if task.id in self.tasks and self.tasks[task.id].state.ended:
                del self.tasks[task.id]
        super().do_add(tasks)


@breaks("add_of_nothing_changes_nothing")
class CannotAddNothing(ListStore):
    def do_add(self, tasks: Sequence[Task]) -> None:
        self.first = tasks[0]
        super().do_add(tasks)


@breaks("add_keeps_nothing_of_the_caller")
class KeepsTheCallersList(ListStore):
    def __init__(self) -> None:
        super().__init__()
        self.given: Sequence[Task] = ()

    def do_add(self, tasks: Sequence[Task]) -> None:
        super().do_add(tasks)
        self.given = tasks

    def find_one(self, task_id: str) -> Task:
        if task_id not in {task.id for task in self.given}:
            raise TaskNotFoundError(task_id)
        return super().find_one(task_id)


@breaks("get_refuses_an_unknown_id", "every_change_refuses_an_unknown_id")
class RaisesKeyErrors(ListStore):
    def find_one(self, task_id: str) -> Task:
        return self.tasks[task_id]


@breaks("a_snapshot_never_changes")
class ChangesInPlace(ListStore):
    def put(self, task: Task) -> Task:
        kept = self.tasks.setdefault(task.id, task)
        kept.__dict__.update(task.__dict__)
        return kept


@breaks("json_is_kept_losslessly")
class MakesIntegersOfFloats(ListStore):
    def put(self, task: Task) -> Task:
        def number(text: str) -> float:
            return int(float(text)) if float(text).is_integer() else float(text)

        param = json.loads(json.dumps(task.param), parse_float=number)
        return super().put(attrs.evolve(task, param={**param, "floats": [1]}))


@breaks("moments_are_kept_exactly")
class KeepsMilliseconds(ListStore):
    def put(self, task: Task) -> Task:
        rest = timedelta(microseconds=task.scheduled_at.microsecond % 1000)
        return super().put(attrs.evolve(task, scheduled_at=task.scheduled_at - rest))


@breaks("texts_and_numbers_are_kept_exactly")
class IgnoresCase(ListStore):
    def put(self, task: Task) -> Task:
        return super().put(attrs.evolve(task, id=task.id.lower()))


# -- transitions ----------------------------------------------------------------------


def forced(task: Task, state: TaskState) -> Task:
    return attrs.evolve(task, state=state)


@breaks("update_only_while_scheduled")
class UpdatesAnything(ListStore):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        task = self.find_one(task_id)
        changes = update.changes(task)
        if not changes:
            return super().do_update(task_id, update)
        return self.put(attrs.evolve(task, **changes)), True


@breaks("an_empty_update_is_refused_alike")
class LooksForChangesFirst(ListStore):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        task = self.find_one(task_id)
        return super().do_update(task_id, update) if update.changes(task) else (task, False)


@breaks("cancel_only_while_scheduled")
class CancelsWhatRuns(ListStore):
    def do_cancel(self, task_id: str, at: datetime) -> tuple[Task, bool]:
        task = self.find_one(task_id)
        if task.state is TaskState.DISPATCHED:
            self.put(forced(task, TaskState.SCHEDULED))
        return super().do_cancel(task_id, at)


@breaks("cancel_ends_the_task")
class ForgetsWhenItWasCancelled(ListStore):
    def do_cancel(self, task_id: str, at: datetime) -> tuple[Task, bool]:
        task, changed = super().do_cancel(task_id, at)
        return self.put(attrs.evolve(task, cancelled_at=None)), changed


@breaks("cancel_twice_changes_nothing")
class CancelsAgain(ListStore):
    def do_cancel(self, task_id: str, at: datetime) -> tuple[Task, bool]:
        task, _ = super().do_cancel(task_id, at)
        return self.put(attrs.evolve(task, cancelled_at=at)), True


@breaks("mark_dispatched_only_while_scheduled")
class DispatchesTheCancelled(ListStore):
    def do_dispatch(self, task_id: str, at: datetime) -> Task:
        task = self.find_one(task_id)
        if task.state is TaskState.CANCELLED:
            self.put(forced(task, TaskState.SCHEDULED))
        return super().do_dispatch(task_id, at)


@breaks(
    "mark_dispatched_begins_an_attempt",
    "claim_dispatches",
    "interruptions_are_counted",
    "a_lost_run_is_refused",
)
class DoesNotCountAttempts(ListStore):
    def do_dispatch(self, task_id: str, at: datetime) -> Task:
        before = self.find_one(task_id)
        after = super().do_dispatch(task_id, at)
        return self.put(attrs.evolve(after, attempt=before.attempt))


@breaks("mark_dispatched_refuses_what_is_not_due")
class DispatchesEarly(ListStore):
    def do_dispatch(self, task_id: str, at: datetime) -> Task:
        return super().do_dispatch(task_id, max(at, self.find_one(task_id).scheduled_at))


@breaks("mark_dispatched_ends_what_has_expired", "claim_ends_what_has_expired")
class IgnoresDeadlines(ListStore):
    def do_dispatch(self, task_id: str, at: datetime) -> Task:
        task = self.find_one(task_id)
        self.put(attrs.evolve(task, deadline=None))
        dispatched = super().do_dispatch(task_id, at)
        return self.put(attrs.evolve(dispatched, deadline=task.deadline))


@breaks("mark_dispatched_ends_what_has_expired", "claim_ends_what_has_expired")
class DoesNotSayWhyItFailed(ListStore):
    def do_dispatch(self, task_id: str, at: datetime) -> Task:
        task = super().do_dispatch(task_id, at)
        return self.put(attrs.evolve(task, err="failed" if task.err else None))


@breaks("mark_done_only_while_dispatched")
class EndsTheCancelled(ListStore):
    def do_end(self, run: Task, at: datetime, err: str | None, result: JSON = None) -> Task:
        try:
            return super().do_end(run, at, err, result)
        except AlreadyCancelledError:
            return self.put(attrs.evolve(run, state=TaskState.DONE, done_at=at))


@breaks("mark_done_ends_the_task")
class TakesAnEmptyErrorForNone(ListStore):
    def do_end(self, run: Task, at: datetime, err: str | None, result: JSON = None) -> Task:
        return super().do_end(run, at, err or None)


@breaks("mark_cancelled_only_while_dispatched")
class CancelsRunsOfTheScheduled(ListStore):
    def do_cancel_run(self, run: Task, at: datetime) -> Task:
        try:
            return super().do_cancel_run(run, at)
        except NotDispatchedError:
            return self.do_cancel(run.id, at)[0]


@breaks("mark_cancelled_ends_the_task")
class EndsTheInterruptedAsFailed(ListStore):
    def do_cancel_run(self, run: Task, at: datetime) -> Task:
        return self.do_end(run, at, "interrupted")


@breaks("revert_only_while_dispatched")
class RevertsTheScheduled(ListStore):
    def do_revert(self, run: Task) -> Task:
        try:
            return super().do_revert(run)
        except NotDispatchedError:
            return self.find_one(run.id)


@breaks("revert_puts_the_task_back", "a_lost_run_is_refused")
class TakesTheAttemptBack(ListStore):
    def do_revert(self, run: Task) -> Task:
        task = super().do_revert(run)
        return self.put(attrs.evolve(task, attempt=task.attempt - 1))


@breaks("interruptions_are_counted", "revert_puts_the_task_back")
class DoesNotCountInterruptions(ListStore):
    def do_revert(self, run: Task) -> Task:
        return self.put(attrs.evolve(super().do_revert(run), interruptions=0))


@breaks("a_state_can_be_left_again")
class NeverUpdatesTheReverted(ListStore):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        if self.find_one(task_id).dispatched_at is not None:
            raise AlreadyDispatchedError(task_id)
        return super().do_update(task_id, update)


# -- updates --------------------------------------------------------------------------


def without(update: TaskUpdate, **changes: Any) -> TaskUpdate:
    return attrs.evolve(update, **changes)


@breaks("update_changes_each_field")
class NeverUpdatesMeta(ListStore):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        return super().do_update(task_id, without(update, meta=UNCHANGED))


@breaks("update_says_that_nothing_changed")
class AlwaysSaysItChanged(ListStore):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        return super().do_update(task_id, update)[0], True


@breaks("update_with_none_clears")
class TakesNoneForUnchanged(ListStore):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        if update.deadline is None:
            update = without(update, deadline=UNCHANGED)
        return super().do_update(task_id, update)


@breaks("update_leaves_out_what_is_unchanged")
class TakesUnchangedForNone(ListStore):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        if update.deadline is UNCHANGED:
            update = without(update, deadline=None)
        return super().do_update(task_id, update)


@breaks("update_tells_values_of_json_apart")
class ComparesAsPythonDoes(ListStore):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        if update.param == self.find_one(task_id).param:
            update = without(update, param=UNCHANGED)
        return super().do_update(task_id, update)


@breaks("update_refuses_a_bad_deadline")
class DropsABadDeadline(ListStore):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        task = attrs.evolve(self.find_one(task_id), deadline=None)
        changes = update.changes(task)
        at = changes.get("scheduled_at", task.scheduled_at)
        if changes.get("deadline", at) <= at:
            update = without(update, deadline=UNCHANGED)
        return super().do_update(task_id, update)


@breaks("update_moves_both_at_once")
class MovesOneAfterTheOther(ListStore):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        first = super().do_update(task_id, without(update, scheduled_at=UNCHANGED))
        rest = TaskUpdate(scheduled_at=update.scheduled_at)
        task, changed = super().do_update(task_id, rest)
        return task, changed or first[1]


@breaks("update_of_the_work_counts")
class CountsByTheFirstWork(ListStore):
    def __init__(self) -> None:
        super().__init__()
        self.works: dict[str, str] = {}

    def do_add(self, tasks: Sequence[Task]) -> None:
        super().do_add(tasks)
        self.works |= {task.id: task.work_id for task in tasks}

    async def count_pending(self) -> Mapping[str, int]:
        await super().count_pending()
        works = list(self.works.values())
        return {work_id: works.count(work_id) for work_id in works}


@breaks("pending_tasks_are_counted", "pending_tasks_are_counted_by_pool")
class CountsTheDispatched(ListStore):
    async def count_pending(self) -> Mapping[str, int]:
        await super().count_pending()
        works = [task.work_id for task in self.tasks.values() if not task.state.ended]
        return {work_id: works.count(work_id) for work_id in works}

    async def count_pools(self) -> Mapping[str, int]:
        await super().count_pools()
        tasks = [task for task in self.tasks.values() if not task.state.ended]
        return Counter(task.pool for task in tasks if task.pool is not None)


@breaks("pending_tasks_are_counted_by_pool")
class CountsThoseOfNoPool(ListStore):
    async def count_pools(self) -> Mapping[str, int]:
        await super().count_pools()
        return Counter(task.pool or "" for task in self.pending(ANY_TASK))


@breaks("pending_tasks_are_counted_by_pool")
class CountsPoolsByWork(ListStore):
    async def count_pools(self) -> Mapping[str, int]:
        await super().count_pools()
        tasks = [task for task in self.pending(ANY_TASK) if task.pool is not None]
        works = {(task.pool, task.work_id): task for task in tasks}
        return Counter(str(pool) for pool, _ in works)


@breaks("pending_tasks_are_counted_by_pool")
class CountsByTheFirstPool(ListStore):
    def __init__(self) -> None:
        super().__init__()
        self.pools: dict[str, str] = {}

    def do_add(self, tasks: Sequence[Task]) -> None:
        super().do_add(tasks)
        self.pools |= {task.id: task.pool for task in tasks if task.pool is not None}

    async def count_pools(self) -> Mapping[str, int]:
        await super().count_pools()
        pending = {task.id for task in self.pending(ANY_TASK)}
        return Counter(pool for task_id, pool in self.pools.items() if task_id in pending)


# -- recovery and ends ----------------------------------------------------------------


@breaks("recover_reverts")
class RecoversWithoutCounting(ListStore):
    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        return [
            self.put(attrs.evolve(task, interruptions=1))
            for task in await super().recover(action, at, only)
        ]


@breaks("recover_reverts", "recover_fails")
class ForgetsToSayWhatItRecovered(ListStore):
    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        await super().recover(action, at, only)
        return []


@breaks("recover_fails")
class AlwaysReverts(ListStore):
    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        if action is RecoverAction.FAIL:
            action = RecoverAction.REVERT
        return await super().recover(action, at, only)


@breaks("recover_heeds_the_filter")
class RecoversWhateverIsThere(ListStore):
    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        return await super().recover(action, at)


@breaks("recover_can_leave")
class NeverLeaves(ListStore):
    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        if action is RecoverAction.LEAVE:
            action = RecoverAction.REVERT
        return await super().recover(action, at, only)


@breaks("an_attempt_may_be_the_only_one", "recover_repeats_nothing_that_must_not_be")
class ForgetsWhatMustNotBeRepeated(ListStore):
    def do_mark(self, task_id: str, at: datetime, *, at_most_once: bool) -> Task:
        return super().do_mark(task_id, at, at_most_once=False)


@breaks("the_next_attempt_may_differ")
class NeverRepeatsAgain(ListStore):
    def do_mark(self, task_id: str, at: datetime, *, at_most_once: bool) -> Task:
        once = at_most_once or self.find_one(task_id).at_most_once
        return super().do_mark(task_id, at, at_most_once=once)


@breaks("recover_repeats_nothing_that_must_not_be")
class RepeatsWhatMustNotBe(ListStore):
    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        for task in self.tasks.values():
            self.put(attrs.evolve(task, at_most_once=False))
        return await super().recover(action, at, only)


@breaks("renewing_changes_no_task")
class LosesEveryRun(ListStore):
    async def renew(
        self, runs: Sequence[Task], action: RecoverAction, at: datetime
    ) -> Renewed:
        await trio.lowlevel.checkpoint()
        return Renewed(list(runs), [])


_Before = datetime | None
_States = Collection[TaskState]


@breaks("delete_ended_deletes_all_ended", "delete_ended_respects_the_limit")
class DeletesInTheOrderOfAge(ListStore):
    def do_delete(self, before: _Before, states: _States, limit: int | None) -> list[str]:
        age = list(self.tasks)
        ids = sorted(super().do_delete(before, states, None), key=age.index)
        return ids[:limit]


@breaks("delete_ended_leaves_the_living")
class DeletesWhatRuns(ListStore):
    def do_delete(self, before: _Before, states: _States, limit: int | None) -> list[str]:
        for task in list(self.tasks.values()):
            if task.state is TaskState.DISPATCHED:
                del self.tasks[task.id]
        return super().do_delete(before, states, limit)


@breaks("delete_ended_respects_the_states")
class DeletesInAnyState(ListStore):
    def do_delete(self, before: _Before, states: _States, limit: int | None) -> list[str]:
        return super().do_delete(before, cast("_States", states and set(_ENDED)), limit)


_ENDED = (TaskState.CANCELLED, TaskState.DONE, TaskState.FAILED)


@breaks("delete_ended_respects_before")
class DeletesWhatEndedJustThen(ListStore):
    def do_delete(self, before: _Before, states: _States, limit: int | None) -> list[str]:
        if before is not None:
            before += timedelta(microseconds=1)
        return super().do_delete(before, states, limit)


@breaks("delete_ended_respects_the_limit")
class TakesNoLimitForNone(ListStore):
    def do_delete(self, before: _Before, states: _States, limit: int | None) -> list[str]:
        return super().do_delete(before, states, limit or None)


@breaks("delete_ended_knows_every_way_to_end")
class NeverDeletesTheCancelled(ListStore):
    def do_delete(self, before: _Before, states: _States, limit: int | None) -> list[str]:
        kept = {i: t for i, t in self.tasks.items() if t.dispatched_at and t.cancelled_at}
        deleted = super().do_delete(before, states, limit)
        self.tasks |= kept
        return deleted


@breaks("a_deleted_id_is_free")
class RemembersTheDeleted(ListStore):
    def __init__(self) -> None:
        super().__init__()
        self.deleted: set[str] = set()

    def do_add(self, tasks: Sequence[Task]) -> None:
        super().do_add([task for task in tasks if task.id not in self.deleted])

    def do_delete(self, before: _Before, states: _States, limit: int | None) -> list[str]:
        ids = super().do_delete(before, states, limit)
        self.deleted |= set(ids)
        return ids
