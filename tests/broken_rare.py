"""Stores that do a thing wrong, each another: keys, retries, results and progress."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs
import trio
from broken import breaks
from stores import ListStore

from trio_gokugen import (
    JSON,
    AlreadyDispatchedError,
    HeapStore,
    KeyExistsError,
    Progress,
    Task,
    TaskExistsError,
    TaskState,
)
from trio_gokugen.abc import Added, AddTasks, EndTask, IfExists, NoteProgress, RetryTask

# -- keys -------------------------------------------------------------------------------


@breaks("a_key_is_refused_while_it_is_held", "a_key_is_had_by_one")
class KnowsNoKeys(ListStore):
    def holder(self, key: str) -> Task | None:
        return None


@breaks("a_key_is_refused_while_it_is_held")
class FreesTheKeysOfRuns(ListStore):
    def holder(self, key: str) -> Task | None:
        task = super().holder(key)
        return None if task is None or task.state is TaskState.DISPATCHED else task


@breaks("every_end_frees_a_key")
class KeepsTheKeysOfTheCancelled(ListStore):
    def holder(self, key: str) -> Task | None:
        there = (task for task in self.tasks.values() if task.key == key)
        kept = (task for task in there if task.state is not TaskState.DONE)
        return next(kept, None)


@breaks("a_key_given_twice_is_refused")
class LooksBeforeOnly(ListStore):
    def do_add_by_key(self, tasks: Sequence[Task], if_exists: IfExists) -> Added:
        for task in tasks:
            holder = None if task.key is None else self.holder(task.key)
            if holder is not None and if_exists == "raise":
                raise KeyExistsError(task.key or "", holder.id)
        self.do_add(tasks)
        return Added(tasks, (), tasks)


@breaks("an_id_is_refused_before_a_key")
class LooksForKeysFirst(ListStore):
    def do_add_by_key(self, tasks: Sequence[Task], if_exists: IfExists) -> Added:
        try:
            return super().do_add_by_key(tasks, if_exists)
        except TaskExistsError:
            holders = (self.holder(task.key) for task in tasks if task.key is not None)
            for holder in holders:
                if holder is not None:
                    raise KeyExistsError(holder.key or "", holder.id) from None
            raise


@breaks("return_gives_the_holder_of_a_key")
class ReturnsWhatWasGiven(ListStore):
    def do_add_by_key(self, tasks: Sequence[Task], if_exists: IfExists) -> Added:
        super().do_add_by_key(tasks, if_exists)
        return Added(tasks, (), tasks)


@breaks("replace_changes_the_holder_of_a_key")
class ReplacesTheTimeOnly(ListStore):
    def do_add_by_key(self, tasks: Sequence[Task], if_exists: IfExists) -> Added:
        before = dict(self.tasks)
        added = super().do_add_by_key(tasks, if_exists)
        for task_id, task in before.items():
            moved = attrs.evolve(
                task,
                scheduled_at=self.tasks[task_id].scheduled_at,
                deadline=self.tasks[task_id].deadline,
            )
            self.put(moved)
        return added


@breaks("replace_keeps_the_place_among_the_oldest")
class ReplacedAreYoung(ListStore):
    def do_add_by_key(self, tasks: Sequence[Task], if_exists: IfExists) -> Added:
        added = super().do_add_by_key(tasks, if_exists)
        if if_exists == "replace":
            for task in added.tasks:
                self.tasks[task.id] = self.tasks.pop(task.id)
        return added


@breaks("replace_refuses_what_runs")
class LeavesRunsAlone(ListStore):
    def do_add_by_key(self, tasks: Sequence[Task], if_exists: IfExists) -> Added:
        try:
            return super().do_add_by_key(tasks, if_exists)
        except AlreadyDispatchedError:
            return super().do_add_by_key(tasks, "return")


@breaks("keys_are_followed_within_a_batch")
class FreesKeysAfterTheBatch(HeapStore):
    async def apply(self, operations: Sequence[Any]) -> Any:
        last = [each for each in operations if isinstance(each, AddTasks)]
        if len(operations) > len(last) > 1:
            outcomes = dict(zip(last, await super().apply(last), strict=True))
            others = [each for each in operations if each not in outcomes]
            outcomes |= dict(zip(others, await super().apply(others), strict=True))
            return [outcomes[each] for each in operations]
        return await super().apply(operations)


@breaks("a_key_is_had_by_one")
class LooksAndAddsLater(ListStore):
    async def add(self, tasks: Sequence[Task], if_exists: IfExists = "raise") -> Added:
        for task in tasks:
            if task.key is not None and self.holder(task.key) is not None:
                return await super().add(tasks, if_exists)
        await trio.lowlevel.checkpoint()
        self.do_add(tasks)
        return Added(tasks, (), tasks)


# -- retries ----------------------------------------------------------------------------


@breaks("rare_fields_are_kept")
class ForgetsWhatIsRare(ListStore):
    def do_add(self, tasks: Sequence[Task]) -> None:
        super().do_add([attrs.evolve(task, retry=None) for task in tasks])


@breaks("retry_schedules_the_task_anew")
class RetriesAtOnce(ListStore):
    def do_retry(
        self, run: Task, at: datetime, scheduled_at: datetime, err: str | None
    ) -> Task:
        task = super().do_retry(run, at, scheduled_at, err)
        return self.put(attrs.evolve(task, scheduled_at=run.scheduled_at))


@breaks("retry_without_an_error_counts_nothing")
class CountsWhatIsSnoozed(ListStore):
    def do_retry(
        self, run: Task, at: datetime, scheduled_at: datetime, err: str | None
    ) -> Task:
        return super().do_retry(run, at, scheduled_at, err or "snoozed")


@breaks("the_last_errors_are_kept")
class KeepsTheFirstErrors(ListStore):
    def do_retry(
        self, run: Task, at: datetime, scheduled_at: datetime, err: str | None
    ) -> Task:
        before = self.find_one(run.id).errors
        task = super().do_retry(run, at, scheduled_at, err)
        kept = (before + task.errors[-1:])[:10]
        return self.put(attrs.evolve(task, errors=kept))


@breaks("retry_keeps_the_place_among_the_oldest")
class RetriedAreYoung(ListStore):
    def do_retry(
        self, run: Task, at: datetime, scheduled_at: datetime, err: str | None
    ) -> Task:
        task = super().do_retry(run, at, scheduled_at, err)
        self.tasks[task.id] = self.tasks.pop(task.id)
        return task


@breaks("retry_must_come_before_the_deadline")
class RetriesTooLate(ListStore):
    def do_retry(
        self, run: Task, at: datetime, scheduled_at: datetime, err: str | None
    ) -> Task:
        task = self.find_one(run.id)
        if task.deadline is not None and scheduled_at >= task.deadline:
            return self.do_end(run, at, "it is too late to try again")
        return super().do_retry(run, at, scheduled_at, err)


@breaks("only_a_run_is_retried_or_progresses")
class TakesAnybodysWord(HeapStore):
    def _retry(self, operation: RetryTask) -> Task:
        task = self._entry(operation.run.id)[4]
        return super()._retry(attrs.evolve(operation, run=task))

    def _note_progress(self, operation: NoteProgress) -> Task:
        task = self._entry(operation.run.id)[4]
        return super()._note_progress(attrs.evolve(operation, run=task))


# -- results and progress ---------------------------------------------------------------


@breaks("a_result_is_kept")
class KeepsTrueResultsOnly(ListStore):
    def do_end(self, run: Task, at: datetime, err: str | None, result: JSON = None) -> Task:
        return super().do_end(run, at, err, result or None)


@breaks("results_are_kept_of_many")
class TakesTheFirstResultForAll(HeapStore):
    async def apply(self, operations: Sequence[Any]) -> Any:
        results = [each.result for each in operations if isinstance(each, EndTask)]
        if len(results) == len(operations) > 1:
            operations = [attrs.evolve(each, result=results[1]) for each in operations]
        return await super().apply(operations)


@breaks("progress_is_kept")
class ForgetsProgressAtTheEnd(ListStore):
    def do_end(self, run: Task, at: datetime, err: str | None, result: JSON = None) -> Task:
        task = super().do_end(run, at, err, result)
        return self.put(attrs.evolve(task, progress=None))


@breaks("progress_is_kept", "what_is_noted_leaves_the_run_alone")
class StartsAnewAtEachAttempt(ListStore):
    def do_retry(
        self, run: Task, at: datetime, scheduled_at: datetime, err: str | None
    ) -> Task:
        task = super().do_retry(run, at, scheduled_at, err)
        return self.put(attrs.evolve(task, progress=None))


@breaks("what_is_noted_leaves_the_run_alone")
class TakesANoteForARun(ListStore):
    def do_note(self, run: Task, progress: Progress) -> Task:
        task = super().do_note(run, progress)
        return self.put(attrs.evolve(task, attempt=task.attempt + 1))
