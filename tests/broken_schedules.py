"""Repositories that keep tasks well, and schedules badly: each breaks a promise."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import attrs
from broken import breaks

from trio_gokugen import HeapStore, Late, Schedule, Task, TaskState
from trio_gokugen._heaps import Heap
from trio_gokugen._recurrence import Step
from trio_gokugen._schedule import (
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    ScheduleChanged,
    TriggerSchedule,
    evolved,
)
from trio_gokugen.abc import Claimed, DispatchTask, OnSchedule


@breaks("an_occurrence_is_a_task")
class ForgetsMeta(HeapStore):
    def _keep_step(self, step: Step | None) -> None:
        if step is not None and step.successor is not None:
            step.successor = attrs.evolve(step.successor, meta={})
        super()._keep_step(step)


@breaks("schedules_are_kept_losslessly")
class ForgetsHowLate(HeapStore):
    async def get_schedule(self, schedule_id: str) -> Schedule:
        return attrs.evolve(await super().get_schedule(schedule_id), late=Late())


@breaks("the_next_is_made_by_the_claim")
class ForgetsTheNext(HeapStore):
    def _keep_step(self, step: Step | None) -> None:
        if step is not None and step.task is not None:
            step.successor = None
        super()._keep_step(step)


@breaks("an_occurrence_may_have_another_work")
class ForgetsTheNextOfAnotherWork(HeapStore):
    def _keep_step(self, step: Step | None) -> None:
        task, successor = (None, None) if step is None else (step.task, step.successor)
        if task is not None and successor is not None and task.work_id != successor.work_id:
            assert step is not None
            step.successor = None
        super()._keep_step(step)


@breaks("the_next_waits_for_the_end", "a_lost_run_has_a_next_one")
class DoesNotSeeEnds(HeapStore):
    def _follow(self, task: Task, at: datetime | None = None) -> None:
        if not task.state.ended:
            super()._follow(task, at)


@breaks("an_interval_counts_from_the_end")
class CountsFromTheStart(HeapStore):
    def _follow(self, task: Task, at: datetime | None = None) -> None:
        if task.done_at is not None:
            task = attrs.evolve(task, done_at=task.dispatched_at)
        super()._follow(task, at)


@breaks("what_is_cancelled_is_skipped")
class DoesNotSeeCancellations(HeapStore):
    def _follow(self, task: Task, at: datetime | None = None) -> None:
        if task.state is not TaskState.CANCELLED:
            super()._follow(task, at)


@breaks("what_is_postponed_leaves_its_place")
class DoesNotHearWhen(HeapStore):
    def _follow(self, task: Task, at: datetime | None = None) -> None:
        super()._follow(task)


@breaks("a_lost_run_has_a_next_one")
class CountsClaimsOnly(HeapStore):
    def _dispatch(self, operation: DispatchTask) -> Task:
        task = super()._dispatch(operation)
        if (schedule := self._schedules.get(task.schedule_id or "")) is not None:
            runs = {"runs": schedule.runs - 1}
            self._schedules[schedule.id] = evolved(schedule, runs)
        return task


class _Taking(HeapStore):
    """Takes tasks as if it were another time."""

    def time(self, entry: Any, at: datetime) -> datetime:
        return at

    def _take(
        self, entry: Any, heap: Heap, at: datetime, claimed: Claimed, *, at_most_once: bool
    ) -> Task:
        at = self.time(entry, at)
        return super()._take(entry, heap, at, claimed, at_most_once=at_most_once)


@breaks("what_is_late_is_merged", "what_is_too_late_moves", "a_schedule_ends")
class IsNeverLate(_Taking):
    def time(self, entry: Any, at: datetime) -> datetime:
        due: datetime = entry[0]
        return due


@breaks("the_next_may_replace_the_one_before")
class ReplacesNothing(HeapStore):
    def _cancel_runs(self, schedule_id: str, at: datetime) -> list[Task]:
        return []


class _Changing(HeapStore):
    """Hears only some of what is said."""

    deaf: type[Any] = type(None)

    def _change_schedule(self, operation: OnSchedule) -> ScheduleChanged:
        change = operation.change
        if isinstance(change, self.deaf):
            schedule = self._schedules.get(change.schedule_id)
            return ScheduleChanged(schedule, changed=False)
        return super()._change_schedule(operation)


@breaks("a_schedule_is_paused_and_resumed")
class DoesNotPause(_Changing):
    deaf = PauseSchedule


@breaks("a_schedule_is_removed")
class DoesNotRemove(_Changing):
    deaf = RemoveSchedule


@breaks("a_schedule_is_triggered")
class DoesNotTrigger(_Changing):
    deaf = TriggerSchedule


@breaks("a_schedule_is_changed")
class KeepsWhatWasPutFirst(HeapStore):
    def _change_schedule(self, operation: OnSchedule) -> ScheduleChanged:
        change = operation.change
        there = self._schedules.get(change.schedule_id)
        if isinstance(change, PutSchedule) and there is not None:
            return ScheduleChanged(there, changed=False)
        return super()._change_schedule(operation)


@breaks("a_schedule_begins_to_wait")
class DoesNotKnowWhatRuns(HeapStore):
    def _run_of(self, schedule: Schedule) -> Task | None:
        return super()._run_of(schedule) if schedule.awaited_id is not None else None


@breaks("schedules_go_on_whatever_happens")
class CountsRunsTwice(HeapStore):
    def _keep_step(self, step: Step | None) -> None:
        if step is not None and step.dropped:
            assert step.schedule is not None
            dropped = step.schedule.dropped + 1
            step.schedule = evolved(step.schedule, {"dropped": dropped})
        super()._keep_step(step)
