"""What becomes of a schedule that somebody adds, changes, pauses or removes."""

from __future__ import annotations

from datetime import datetime
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
    ended,
    has_passed,
    later,
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

_TIMING = "trigger", "after"
"""What the nominal times of a schedule come from."""


def change(
    schedule: Schedule | None,
    head: Task | None,
    operation: ChangeSchedule,
    new_id: NewId,
) -> Step | None:
    """What a user says. None if it changes nothing.

    Args:
      schedule: As it stands, if it is there.
      head: The pending task that is its next occurrence, if there is one.
      operation: What is said.
      new_id: Makes ids.

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
            step = _changed(schedule, operation.schedule, head, at, new_id)
        case UpdateSchedule():
            new = operation.update.changed(schedule)
            step = _changed(schedule, new, head, at, new_id)
        case PauseSchedule():
            step = _paused(schedule, head, at)
        case ResumeSchedule():
            step = _resumed(schedule, at, new_id, catch_up=operation.catch_up)
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
        run = Task(
            id=schedule.awaited_id, work_id=schedule.work_id, scheduled_at=at, created_at=at
        )
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


def _changed(
    schedule: Schedule, new: Schedule, head: Task | None, at: datetime, new_id: NewId
) -> Step | None:
    """A schedule gets another definition. None if it is the same."""
    if all(equal(getattr(schedule, f), getattr(new, f)) for f in DEFINITION):
        return None
    result = attrs.evolve(schedule, **new.definition)
    nominal, dropped = schedule.next_at, list[Dropped]()
    if any(getattr(schedule, field) != getattr(new, field) for field in _TIMING):
        # By another clock than that of the last claim, it may be sooner than that.
        nominal = _first(result, max(at, schedule.last_at or at))
        dropped = uncounted(schedule)
        result = evolved(result, counted(schedule, dropped))
    if head is not None:
        step = moved(result, head, nominal, at)
    elif schedule.awaited_id is not None and result.waits_for_end:
        step = Step(evolved(result, {"next_at": nominal}))
    else:
        step = planned(result, nominal, at, new_id, {"awaited_id": None})
    return Step(step.schedule, step.task, step.successor, dropped)


def _paused(schedule: Schedule, head: Task | None, at: datetime) -> Step | None:
    """No occurrence runs until it is resumed. None if it is paused."""
    if schedule.paused:
        return None
    task = None if head is None else _transitions.cancelled(head, at)
    dropped = uncounted(schedule)
    changes = {"paused": True, "pending_id": None, **counted(schedule, dropped)}
    return Step(evolved(schedule, changes), task, None, dropped)


def _resumed(
    schedule: Schedule, at: datetime, new_id: NewId, *, catch_up: bool
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
        return Step(evolved(schedule, {"next_at": nominal}), dropped=dropped)
    step = planned(schedule, nominal, at, new_id)
    return Step(step.schedule, None, step.successor, dropped)


def _run_now(schedule: Schedule, at: datetime, new_id: NewId) -> Task:
    """A run of it now, beside its plan."""
    task = occurrence(schedule, at, new_id(at), at)
    deadline = later(at, schedule.deadline_after)
    return evolve(task, {"nominal_at": None, "scheduled_at": at, "deadline": deadline})
