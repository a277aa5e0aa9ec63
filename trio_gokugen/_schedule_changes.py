"""What becomes of a schedule that somebody adds, changes, pauses or removes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, assert_never

import attrs

from . import _transitions
from ._errors import ScheduleNotFoundError
from ._interval import Interval
from ._recurrence import (
    Choice,
    NewId,
    Step,
    counted,
    deadline_of,
    ended,
    has_passed,
    latest,
    moved,
    occurrence,
    planned,
    uncounted,
    what_is_dropped,
)
from ._schedule import (
    DEFINITION,
    ChangeSchedule,
    Dropped,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    ResumeSchedule,
    Schedule,
    TriggerSchedule,
    UpdateSchedule,
    evolved,
)
from ._task import Task, equal, evolve

_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_TIMING = "trigger", "after"
"""What the nominal times of a schedule come from."""


def change(
    schedule: Schedule | None,
    head: Task | None,
    operation: ChangeSchedule,
    new_id: NewId,
    run: Task | None = None,
) -> Step | None:
    """What a user says. None if it changes nothing.

    Args:
      schedule: As it stands, if it is there.
      head: The pending task that is its next occurrence, if there is one.
      operation: What is said.
      new_id: Makes ids.
      run: The task whose end it waits for, if that is there; if it waits for none, the
        `last_of` its runs.

    Raises:
      ScheduleNotFoundError: it is not there.
    """
    at = operation.at
    step: Step | None
    if schedule is None:
        if isinstance(operation, PutSchedule):
            return _added(operation.schedule, at, new_id)
        if isinstance(operation, RemoveSchedule):
            return None
        raise ScheduleNotFoundError(operation.schedule_id)
    match operation:
        case PutSchedule():
            step = _changed(schedule, operation.schedule, head, run, at, new_id)
        case UpdateSchedule():
            new = operation.update.changed(schedule)
            step = _changed(schedule, new, head, run, at, new_id)
        case PauseSchedule():
            step = _paused(schedule, head, at)
        case ResumeSchedule():
            catch_up = operation.catch_up
            step = _resumed(schedule, run, at, new_id, catch_up=catch_up)
        case TriggerSchedule():
            step = Step(schedule, successor=_run_now(schedule, at, new_id))
        case RemoveSchedule():
            task = None if head is None else _transitions.cancelled(head, at)
            step = Step(None, task, None, uncounted(schedule))
        case _:
            assert_never(operation)
    return step


def first_step(schedule: Schedule, at: datetime, new_id: NewId) -> Step:
    """A schedule goes on as it stands, or begins if it is new; its next task is made."""
    if schedule.awaited_id is not None:
        run = _stand_in(schedule, schedule.awaited_id, at)
        return ended(schedule, run, at, new_id) or Step(schedule)
    if schedule.next_at is None and schedule.last_at is None:
        return _added(schedule, at, new_id)
    return planned(schedule, schedule.next_at, at, new_id)


def _added(schedule: Schedule, at: datetime, new_id: NewId) -> Step:
    """A new schedule."""
    return planned(schedule, _first(schedule, at), at, new_id)


def _first(schedule: Schedule, at: datetime) -> datetime | None:
    trigger = schedule.trigger
    if isinstance(trigger, Interval) and trigger.anchor is not None and trigger.anchor > at:
        return trigger.anchor
    return schedule.following(at)


def last_of(runs: Iterable[Task]) -> Task | None:
    """Of runs of a schedule, the one of its last occurrence that was in its plan."""
    return max(
        (run for run in runs if run.nominal_at is not None),
        key=lambda run: (run.nominal_at or _LONG_AGO, run.created_at, run.id),
        default=None,
    )


def _without_lost(schedule: Schedule, run: Task | None) -> Schedule:
    """The schedule, not waiting for a task that has ended, or is not there any more."""
    if schedule.awaited_id is None or (run is not None and not run.state.ended):
        return schedule
    return evolved(schedule, {"awaited_id": None})


def _changed(
    schedule: Schedule,
    new: Schedule,
    head: Task | None,
    run: Task | None,
    at: datetime,
    new_id: NewId,
) -> Step | None:
    """A schedule gets another definition. None if it is the same, and goes on."""
    if all(equal(getattr(schedule, f), getattr(new, f)) for f in DEFINITION):
        return _revived(schedule, head, run, at, new_id)
    waited = schedule.waits_for_end
    schedule = _without_lost(schedule, run)
    result = attrs.evolve(schedule, **new.definition)
    nominal, dropped = schedule.next_at, list[Dropped]()
    timing = any(getattr(schedule, field) != getattr(new, field) for field in _TIMING)
    if timing or (nominal is None and schedule.awaited_id is None):
        # By another clock than that of the last claim, it may be sooner than that.
        nominal = _first(result, max(at, schedule.last_at or at))
        dropped = uncounted(schedule)
        result = evolved(result, counted(schedule, dropped))
    if head is not None and schedule.overlap != result.overlap:
        result = evolved(result, {"queued_at": None})  # it is late, as any other
    if run is not None and not waited and result.waits_for_end:
        step = _awaiting(result, head, run, nominal, at)
    elif head is not None:
        step = moved(result, head, nominal, at)
    elif schedule.awaited_id is not None and result.waits_for_end:
        step = Step(evolved(result, {"next_at": nominal}))
    else:
        step = planned(result, nominal, at, new_id, {"awaited_id": None})
    return Step(step.schedule, step.task, step.successor, dropped)


def _awaiting(
    schedule: Schedule, head: Task | None, run: Task, nominal: datetime | None, at: datetime
) -> Step:
    """The next occurrence is to wait for the end of a run, beside which it was to be."""
    changes = {"next_at": nominal, "pending_id": None, "awaited_id": run.id}
    task = None if head is None else _transitions.cancelled(head, at)
    return Step(evolved(schedule, changes), task)


def _revived(
    schedule: Schedule, head: Task | None, run: Task | None, at: datetime, new_id: NewId
) -> Step | None:
    """A schedule that has stopped before its end goes on. None if it has not.

    Its trigger may have failed; or who took, or ended, its last task could not read it; or
    somebody has deleted that task.
    """
    if schedule.paused or head is not None:
        return None
    if schedule.awaited_id is not None:
        return _after_lost(schedule, run, at, new_id)
    nominal = schedule.next_at or _first(schedule, max(at, schedule.last_at or at))
    return None if nominal is None else planned(schedule, nominal, at, new_id)


def _after_lost(
    schedule: Schedule, run: Task | None, at: datetime, new_id: NewId
) -> Step | None:
    """It waits for a task that has ended, or is not there. None if that is not so."""
    if run is None:
        assert schedule.awaited_id is not None
        run = _stand_in(schedule, schedule.awaited_id, at)
        return ended(schedule, run, schedule.last_at or at, new_id)
    if not run.state.ended:
        return None
    return ended(schedule, run, run.ended_at or at, new_id)


def _stand_in(schedule: Schedule, task_id: str, at: datetime) -> Task:
    """In place of a task of which only the id is known."""
    return Task(id=task_id, work_id=schedule.work_id, scheduled_at=at, created_at=at)


def _paused(schedule: Schedule, head: Task | None, at: datetime) -> Step | None:
    """No occurrence runs until it is resumed. None if it is paused."""
    if schedule.paused:
        return None
    task = None if head is None else _transitions.cancelled(head, at)
    dropped = uncounted(schedule)
    changes = {"paused": True, "pending_id": None, **counted(schedule, dropped)}
    return Step(evolved(schedule, changes), task, None, dropped)


def _resumed(
    schedule: Schedule, run: Task | None, at: datetime, new_id: NewId, *, catch_up: bool
) -> Step | None:
    """Occurrences run again. None if it is not paused."""
    if not schedule.paused:
        return None
    changes: dict[str, Any] = {"paused": False}
    dropped: list[Dropped] = []
    nominal = schedule.next_at
    if nominal is not None and not catch_up and has_passed(schedule, nominal, at):
        if schedule.after == "end":
            choice = Choice(None, schedule.following(at))
        else:
            choice = Choice(None, schedule.following(latest(schedule, nominal, at)))
        dropped = what_is_dropped(schedule, nominal, choice)
        nominal = choice.following
    changes |= counted(schedule, dropped)
    schedule = evolved(schedule, changes)
    if schedule.awaited_id is not None:
        schedule = evolved(schedule, {"next_at": nominal})
        step = _after_lost(schedule, run, at, new_id) or Step(schedule)
    else:
        step = planned(schedule, nominal, at, new_id)
    return Step(step.schedule, None, step.successor, dropped)


def _run_now(schedule: Schedule, at: datetime, new_id: NewId) -> Task:
    """A run of it now, beside its plan."""
    task = occurrence(schedule, at, new_id(at), at)
    deadline = deadline_of(schedule, at)
    now = {"nominal_at": None, "scheduled_at": at, "deadline": deadline}
    return evolve(task, now if task.when is None else {**now, "when": None})
