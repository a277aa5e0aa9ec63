"""Schedules as JSON, and JSON as schedules."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any, cast

import attrs

from ._errors import GokugenError, InvalidTaskError
from ._json import JSON
from ._schedule import Late, Schedule
from ._triggers import check_readable, trigger_from_data

_MOMENTS = "created_at", "next_at", "last_at", "queued_at", "skipped_from"
BEGINNING = '{"trigger":'
"""How a schedule begins as JSON, and no task does."""


def schedule_to_json(schedule: Schedule) -> str:
    """A schedule as one line of JSON. Nothing is lost.

    Raises:
      InvalidTriggerError: its trigger could not be read again.
    """
    check_readable(schedule.trigger)
    fields: dict[str, JSON] = {"trigger": schedule.trigger.to_data()}
    for field in attrs.fields_dict(Schedule):
        fields.setdefault(field, _plain(getattr(schedule, field)))
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> JSON:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Late):
        return value.to_data()
    return cast("JSON", value)


def schedule_from_json(line: str) -> Schedule:
    """The schedule that `schedule_to_json` wrote.

    Raises:
      InvalidTaskError, InvalidTriggerError: it is not such a line; `field` names the
        culprit.
    """
    try:
        values: dict[str, Any] = json.loads(line)
        for field in _MOMENTS:
            if values[field] is not None:
                values[field] = datetime.fromisoformat(values[field])
        values["late"] = Late(**values["late"])
        values["trigger"] = trigger_from_data(values["trigger"])
        return Schedule(**values)
    except GokugenError:
        raise
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidTaskError("schedule", f"cannot be read: {error}") from None
