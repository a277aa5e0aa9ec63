"""Schedules that somebody adds, changes or removes."""

from __future__ import annotations

from datetime import datetime

from trio_gokugen import _schedule_changes, _transitions
from trio_gokugen._recurrence import Step
from trio_gokugen._schedule import (
    ChangeSchedule,
    PutSchedule,
    RemoveSchedule,
    Schedule,
    ScheduleChanged,
)
from trio_gokugen._task import UNCHANGED, Task, TaskState, evolve
from trio_gokugen._triggers import check_readable
from trio_gokugen.abc import OnSchedule

from ._occurrences import add
from ._ongoing import Key, Ongoing
from ._rows import is_unreadable, life_of, plan_of, task_of
from ._schedule_rows import (
    UNREADABLE,
    Unreadable,
    definition_of,
    progress_of,
    row_of,
    schedule_of,
)


def change_schedule(ongoing: Ongoing, operation: OnSchedule) -> ScheduleChanged:
    """Change a schedule, together with its next occurrence."""
    change = operation.change
    if isinstance(change, PutSchedule):
        check_readable(change.schedule.trigger)
    elif (update := getattr(change, "update", None)) and update.trigger is not UNCHANGED:
        check_readable(update.trigger)
    say = ongoing.say
    this = {"schedule": change.schedule_id}
    key, head, found = _locked(ongoing, change.schedule_id)
    schedule = None if found is None else _readable(found, change)
    if found is not None and schedule is None:
        step: Step | None = _removed(head, change.at)
    else:
        run = None if schedule is None else _run_of(ongoing, schedule)
        step = _schedule_changes.change(schedule, head, change, ongoing.new_id, run)
    if step is None:
        return ScheduleChanged(schedule, changed=False)
    if step.task is not None:
        row = {"row": key, **life_of(step.task), **plan_of(step.task)}
        ongoing.execute(say.change, row)
        if step.task.state is TaskState.SCHEDULED:
            ongoing.note_pending(step.task)
    if step.schedule is None:
        ongoing.execute(say.remove_schedule, this)
        ongoing.unknown.forget(change.schedule_id)
    elif schedule is None:
        ongoing.execute(say.add_schedule, row_of(step.schedule))
    else:
        columns = {**definition_of(step.schedule), **progress_of(step.schedule)}
        ongoing.execute(say.define, {**this, **columns})
    if step.successor is not None:
        add(ongoing, [step.successor])
    return _told(step)


def _removed(head: Task | None, at: datetime) -> Step:
    """A schedule that cannot be read is removed."""
    return Step(None, None if head is None else _transitions.cancelled(head, at))


def _told(step: Step) -> ScheduleChanged:
    return ScheduleChanged(
        step.schedule,
        changed=True,
        task=step.task,
        made=step.successor,
        dropped=[*step.dropped],
    )


def _readable(found: Schedule | Unreadable, change: ChangeSchedule) -> Schedule | None:
    """The schedule; or none, if it cannot be read and is to be removed."""
    if isinstance(found, Schedule):
        return found
    if isinstance(change, RemoveSchedule):
        return None
    raise found


def _locked(
    ongoing: Ongoing, schedule_id: str
) -> tuple[Key | None, Task | None, Schedule | Unreadable | None]:
    """A schedule and its next occurrence, which nobody else can change meanwhile."""
    which = {"ids": ongoing.dialect.listed([schedule_id])}
    pending_of = {"schedule": schedule_id}
    while True:
        # The task first, as everybody does it.
        pending_id = ongoing.execute(ongoing.say.pending_of, pending_of).scalar()
        key, head = _head(ongoing, pending_id)
        row = ongoing.execute(ongoing.say.schedules, which).mappings().one_or_none()
        if row is None:
            return None, None, None
        if row["pending_id"] != pending_id:
            continue  # it was taken before we had it
        try:
            return key, head, schedule_of(row)
        except UNREADABLE as error:
            return key, head, error


def _run_of(ongoing: Ongoing, schedule: Schedule) -> Task | None:
    """What a schedule waits for, or else its last run.

    Not locked: who ends it has the schedule follow, which is locked, and comes after us.
    """
    if schedule.awaited_id is None:
        which = {"ids": ongoing.dialect.listed([schedule.id])}
        runs = map(task_of, ongoing.execute(ongoing.say.running_of, which))
        return _schedule_changes.last_of(
            run for run in runs if run.state is TaskState.DISPATCHED
        )
    row = ongoing.execute(ongoing.say.get, {"id": schedule.awaited_id}).one_or_none()
    if row is None:
        return None
    task = task_of(row)
    if is_unreadable(row, task) and row.state == TaskState.DISPATCHED.value:
        return evolve(task, {"state": TaskState.DISPATCHED})  # it runs all the same
    return task


def _head(ongoing: Ongoing, pending_id: object) -> tuple[Key | None, Task | None]:
    if not isinstance(pending_id, str):
        return None, None
    which = {"ids": ongoing.dialect.listed([pending_id])}
    row = ongoing.execute(ongoing.say.read, which).one_or_none()
    if row is None:
        return None, None
    task = task_of(row)
    if is_unreadable(row, task) or task.state is not TaskState.SCHEDULED:
        return None, None
    return ongoing.key_of(row), task
