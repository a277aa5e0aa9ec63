"""Schedules as rows, and rows as schedules."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypeAlias, cast

from sqlalchemy import RowMapping

from trio_gokugen._errors import GokugenError, InvalidTriggerError, shown
from trio_gokugen._local_time import zone_of
from trio_gokugen._schedule import Late, Schedule
from trio_gokugen._trigger import Trigger
from trio_gokugen._triggers import SAID, trigger_from_data

from ._errors import DamagedScheduleError, UnknownScheduleError

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
    "pool",
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


_MAYBE_MOMENT = datetime, type(None)
_MAYBE_TEXT = str, type(None)
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "rule": (dict,),
    "work_id": (str,),
    "param": (dict,),
    "meta": (dict,),
    "priority": (int,),
    "deadline_after": (timedelta, type(None)),
    "jitter": (timedelta,),
    "late": (dict,),
    "overlap": (str,),
    "counted_from": (str,),
    "condition": _MAYBE_TEXT,
    "pool": _MAYBE_TEXT,
    "paused": (int,),
    "created_at": (datetime,),
    "next_at": _MAYBE_MOMENT,
    "last_at": _MAYBE_MOMENT,
    "runs": (int,),
    "dropped": (int,),
    "pending_id": _MAYBE_TEXT,
    "awaited_id": _MAYBE_TEXT,
    "queued_at": _MAYBE_MOMENT,
    "skipped_from": _MAYBE_MOMENT,
    "ended_id": _MAYBE_TEXT,
}
"""What the columns have, in their order: in SQLite a column may have anything."""

_readable: set[tuple[type, ...]] = set()
"""The types of the columns of schedules that could be read."""

_COUNTS = range(2**62)
_FLAGS = range(2)


def schedule_of(row: RowMapping) -> Schedule:
    """The schedule of a row.

    Raises:
      DamagedScheduleError: it cannot be read, by nobody.
      UnknownScheduleError: others may be able to read it.
    """
    values: dict[str, Any] = {column: row[column] for column in _TYPES}
    damaged = _damaged(values)
    if damaged:
        raise _damage(values["id"], f"{', '.join(damaged)} is damaged")
    rule, late = values.pop("rule"), values.pop("late")
    after, paused = values.pop("counted_from"), values.pop("paused")
    when = values.pop("condition")
    trigger = _trigger_of(values["id"], rule)
    try:
        return Schedule(
            **values,
            trigger=trigger,
            late=Late(**late),
            after=after,
            when=when,
            paused=paused == 1,
        )
    except (GokugenError, TypeError) as error:
        raise _damage(values["id"], str(error)) from error


def _damaged(values: dict[str, Any]) -> list[str]:
    """The columns that have what was not written there."""
    types = tuple(map(type, values.values()))
    if types not in _readable:
        damaged = [
            each for each, value in values.items() if type(value) not in _TYPES[each]
        ]
        if damaged:
            return damaged
        _readable.add(types)
    ranges = {"paused": _FLAGS, "runs": _COUNTS, "dropped": _COUNTS}
    return [each for each, among in ranges.items() if values[each] not in among]


def _damage(schedule_id: object, reason: str) -> DamagedScheduleError:
    name = schedule_id if isinstance(schedule_id, str) else shown(schedule_id)
    return DamagedScheduleError(name, reason)


def _trigger_of(schedule_id: str, rule: object) -> Trigger:
    try:
        return trigger_from_data(rule)
    except Exception as error:  # whatever has become of it
        if _may_be_known(rule):
            raise UnknownScheduleError(schedule_id, str(error)) from error
        raise _damage(schedule_id, str(error)) from error


def _may_be_known(rule: object) -> bool:
    """Whether a trigger that cannot be made here may be made by others.

    It, or one that it is made of, is of another kind, has something more to say, or is of a
    zone that is not there.
    """
    left = [rule]
    while left:
        data = left.pop()
        if not isinstance(data, dict) or not data:
            continue
        said = cast("dict[str, Any]", data)
        kind = next((each for each in SAID if each in said), None)
        if kind is None or said.keys() - {kind} - SAID[kind]:
            return True
        if isinstance(zone := said.get("tz"), str) and not _is_there(zone):
            return True
        more = said["of"] if kind == "except" and "of" in said else said[kind]
        left += cast("list[object]", more) if isinstance(more, list) else [more]
    return False


def _is_there(zone: str) -> bool:
    try:
        zone_of(zone)
    except InvalidTriggerError:
        return False
    return True


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
        "pool": schedule.pool,
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
