"""Schedules of a TOML file: a table for each, with the arguments of `add_schedule`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time
from typing import Any, cast

import attrs

from ._cron import Cron
from ._errors import InvalidTaskError, InvalidTriggerError, shown
from ._interval import EPOCH, Interval, seconds_or_duration
from ._schedule import Late, Schedule
from ._toml_tables import read_tables
from ._trigger import Trigger
from ._triggers import trigger_from_data

_LATE = tuple(field.name for field in attrs.fields(Late))
_GOES_WITH = {"tz": "cron", "dst": "cron", "anchor": "every"}
_TRIGGERS = "cron", "every", "trigger"
_WRONG = InvalidTaskError, InvalidTriggerError
_OBJECTS = "param", "meta"
_ANY: dict[str, Any] = {
    "id": "any",
    "work_id": "any",
    "trigger": Interval(1),
    "created_at": EPOCH,
}
"""A schedule that there may be, to try a single value in."""


class SchedulesTOML:
    """What is found in a TOML file."""

    def __init__(self, text: str) -> None:
        self.schedules: list[Schedule] = []
        self.errors = read_tables(text, "schedule", self._take)

    def _take(self, name: str, table: dict[str, Any]) -> list[tuple[str, str]]:
        one = _One(name, table)
        if one.schedule is not None:
            self.schedules.append(one.schedule)
        return one.errors


class _One:
    """A table, the schedule that it makes, and all that is wrong with it."""

    def __init__(self, name: str, table: dict[str, Any]) -> None:
        self.errors: list[tuple[str, str]] = []
        self.schedule: Schedule | None = None
        self._table = table
        values = {**_ANY, "id": name}
        if "work_id" not in table:
            self._say("work_id", "is missing: it is the name of a work")
        for key, value in table.items():
            if key in _READERS:
                values |= self._tried(key, value)
            elif key == "late":
                values |= self._late(value)
            elif key not in {*_TRIGGERS, *_GOES_WITH}:
                self._say(key, f"is not known: there are {', '.join(_KEYS)}")
        self._attempt(lambda: values.update(trigger=self._trigger()))
        self._attempt(lambda: self._make(values))

    def _say(self, field: str, reason: str) -> None:
        self.errors.append((field, f"{field}: {reason}"))

    def _attempt(self, step: Callable[[], object]) -> None:
        try:
            step()
        except _WRONG as error:
            self._say(error.field, error.reason)

    def _tried(self, key: str, value: Any) -> dict[str, Any]:
        """A value that is of use by itself; or nothing."""
        try:
            return {key: _read(key, value)}
        except _WRONG as error:
            faults = _faults_within(key, value) or [(error.field, error.reason)]
            for field, reason in faults:
                self._say(field, reason)
            return {}

    def _make(self, values: dict[str, Any]) -> None:
        self.schedule = Schedule(**values)

    def _late(self, value: Any) -> dict[str, Late]:
        if not isinstance(value, dict):
            self._say("late", f"must be a table, as {{window = 60}}, not {shown(value)}")
            return {}
        good: dict[str, Any] = {}
        for key, each in cast("dict[str, Any]", value).items():
            if key not in _LATE:
                self._say(f"late.{key}", f"is not known: there are {', '.join(_LATE)}")
                continue
            try:
                read = seconds_or_duration(each, key) if key == "window" else each
                Late(**{key: read})
            except InvalidTaskError as error:
                self._say(f"late.{error.field}", error.reason)
            else:
                good[key] = read
        return {"late": Late(**good)}

    def _trigger(self) -> Trigger:
        table = self._table
        given = [key for key in _TRIGGERS if key in table]
        for key, other in _GOES_WITH.items():
            if key in table and other not in table:
                self._say(key, f"goes with {other}, which there is not")
        if len(given) != 1:
            what = " and ".join(given) if given else "none"
            raise InvalidTriggerError(
                given[-1] if given else "trigger",
                f"there must be one of {', '.join(_TRIGGERS)}, and there is {what}",
            )
        value = table[given[0]]
        if given[0] == "trigger":
            return _from_data(value)
        if given[0] == "every":
            anchor = table.get("anchor")
            if _is_local(anchor):
                self._say("anchor", _with_zone(cast("date", anchor)))
            else:
                self._attempt(lambda: Interval(1, anchor=anchor))
            return Interval(value, anchor=None if self.errors else anchor)
        return self._cron(value, table.get("tz", "UTC"), table.get("dst", "debian"))

    def _cron(self, expression: Any, tz: Any, dst: Any) -> Trigger:
        """Each argument by itself first, so that each is told of."""
        self._attempt(lambda: Cron("* * * * *", tz))
        self._attempt(lambda: Cron("* * * * *", dst=dst))
        try:
            cron = Cron(expression)
        except InvalidTriggerError as error:
            raise InvalidTriggerError("cron", error.reason) from None
        return cron if self.errors else Cron(expression, tz, dst=dst)


def _is_local(value: object) -> bool:
    """Whether it is a date or a moment of TOML's that has no time zone."""
    return isinstance(value, date) and getattr(value, "tzinfo", None) is None


def _with_zone(local: date) -> str:
    """How TOML has a moment, of which only the local time is said."""
    if not isinstance(local, datetime):
        local = datetime.combine(local, time())
    utc = f"{local.isoformat()}Z"
    return f"has no time zone: write {utc} for UTC, or +01:00 and the like for Z"


# -- the values of single keys --------------------------------------------------------


def _read(key: str, value: Any) -> Any:
    """The value that a schedule has, if it is of use by itself."""
    read = _READERS[key](key, value)
    Schedule(**{**_ANY, key: read})
    return read


def _faults_within(key: str, value: Any) -> list[tuple[str, str]]:
    """What is wrong with the values of an object, which may have lines of their own."""
    faults: list[tuple[str, str]] = []
    if key in _OBJECTS and isinstance(value, dict):
        for name, each in cast("dict[str, Any]", value).items():
            try:
                _read(key, {name: each})
            except _WRONG as error:
                faults.append((error.field, error.reason))
    return faults


def _as_it_is(_: str, value: Any) -> Any:
    return value


def _length(key: str, value: Any) -> Any:
    return seconds_or_duration(value, key)


def _paused(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidTaskError(key, f"must be true or false, not {shown(value)}")
    return value


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "work_id": _as_it_is,
    "param": _as_it_is,
    "priority": _as_it_is,
    "meta": _as_it_is,
    "deadline_after": _length,
    "jitter": _length,
    "overlap": _as_it_is,
    "after": _as_it_is,
    "when": _as_it_is,
    "pool": _as_it_is,
    "paused": _paused,
}
"""What makes of a value the one that a schedule has, or refuses it."""

_KEYS = *_TRIGGERS, *_GOES_WITH, *_READERS, "late"


def _from_data(value: Any) -> Trigger:
    """A trigger in its JSON form, in which TOML's own dates and times may be, too."""
    try:
        return trigger_from_data(_plain(value))
    except RecursionError:
        raise InvalidTriggerError("trigger", "nests too deep") from None
    except (InvalidTaskError, InvalidTriggerError) as error:
        raise InvalidTriggerError("trigger", str(error)) from None


def _plain(value: Any) -> Any:
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list):
        return [_plain(each) for each in cast("list[object]", value)]
    if isinstance(value, dict):
        said = cast("dict[str, Any]", value)
        return {key: _plain(each) for key, each in said.items()}
    return value
