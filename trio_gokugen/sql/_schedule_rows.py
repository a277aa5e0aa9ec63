"""Schedules as rows, and rows as schedules."""

from __future__ import annotations

from typing import Any, TypeAlias

from sqlalchemy import RowMapping

from trio_gokugen._errors import GokugenError
from trio_gokugen._schedule import Late, Schedule
from trio_gokugen._triggers import trigger_from_data

from ._errors import DamagedScheduleError, UnknownScheduleError
from ._schema import Damaged

DEFINITION = (
    "rule",
    "work_id",
    "param",
    "meta",
    "priority",
    "deadline_after",
    "jitter",
    "late",
    "overlap",
    "counted_from",
    "condition",
)
"""The columns that a user says."""

Unreadable: TypeAlias = DamagedScheduleError | UnknownScheduleError
"""Why a schedule cannot be read."""

UNREADABLE = DamagedScheduleError, UnknownScheduleError
PROGRESS = (
    "paused",
    "next_at",
    "last_at",
    "runs",
    "dropped",
    "pending_id",
    "awaited_id",
    "queued_at",
    "skipped_from",
    "ended_id",
)
"""The columns that its occurrences change."""


def schedule_of(row: RowMapping) -> Schedule:
    """The schedule of a row.

    Raises:
      DamagedScheduleError: it cannot be read, by nobody.
      UnknownScheduleError: others may be able to read it.
    """
    values: dict[str, Any] = {str(column): value for column, value in row.items()}
    damaged = [column for column, value in values.items() if isinstance(value, Damaged)]
    if damaged:
        raise DamagedScheduleError(row["id"], f"{', '.join(damaged)} is damaged")
    try:
        rule, late = values.pop("rule"), values.pop("late")
        after, paused = values.pop("counted_from"), values.pop("paused")
        when = values.pop("condition")
        return Schedule(
            **values,
            trigger=trigger_from_data(rule),
            late=Late(**late),
            after=after,
            when=when,
            paused=paused == 1,
        )
    except (GokugenError, TypeError) as error:
        raise UnknownScheduleError(row["id"], str(error)) from error


def definition_of(schedule: Schedule) -> dict[str, Any]:
    """The columns that a user says."""
    return {
        "rule": schedule.trigger.to_data(),
        "work_id": schedule.work_id,
        "param": schedule.param,
        "meta": schedule.meta,
        "priority": schedule.priority,
        "deadline_after": schedule.deadline_after,
        "jitter": schedule.jitter,
        "late": schedule.late.to_data(),
        "overlap": schedule.overlap,
        "counted_from": schedule.after,
        "condition": schedule.when,
    }


def progress_of(schedule: Schedule) -> dict[str, Any]:
    """The columns that its occurrences change."""
    progress = {each: getattr(schedule, each) for each in PROGRESS}
    return {**progress, "paused": int(schedule.paused)}


def row_of(schedule: Schedule) -> dict[str, Any]:
    """A new row."""
    return {
        "id": schedule.id,
        "created_at": schedule.created_at,
        **definition_of(schedule),
        **progress_of(schedule),
    }
