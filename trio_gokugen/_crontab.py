"""Schedules of a crontab: one a line, of works in place of commands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from ._cron import Cron
from ._errors import GokugenError, InvalidTaskError, InvalidTriggerError, shown
from ._interval import EPOCH, Interval
from ._json import JSON, json_object
from ._local_time import zone_of
from ._schedule import Schedule
from ._trigger import Trigger

_SETTING = re.compile(r"([A-Za-z_]\w*)\s*=\s*(.*)")
_FIELD = re.compile(r"[\d*/,-]+")
"""What could be one more field of cron."""

_FIELDS = 5
_FORM = "write minute, hour, day of month, month and day of week, or @daily, or @every 1h,"
_SOME_TRIGGER = Interval(1)


class Crontab:
    """What is found in a crontab."""

    def __init__(self, text: str) -> None:
        self.schedules: list[Schedule] = []
        self.errors: list[tuple[int, str]] = []
        self._lines: dict[str, int] = {}
        self._tz = "UTC"
        for number, line in enumerate(text.split("\n"), 1):
            for error in self._read(number, line.strip()):
                self.errors.append((number, error))

    def _read(self, number: int, line: str) -> Iterator[str]:
        """Take a line; gives what is wrong with it."""
        if "\0" in line:
            yield "has a NUL character: write the file as text, in UTF-8"
        elif setting := _SETTING.fullmatch(line):
            yield from self._set(*setting.groups())
        elif line and not line.startswith("#"):
            yield from self._add(number, line)

    def _set(self, variable: str, value: str) -> Iterator[str]:
        if variable != "CRON_TZ":
            yield (
                f"{variable}: no command is started here that it could be set for: remove"
                " the line (only CRON_TZ counts, the time zone of the lines after it)"
            )
            return
        if value[:1] in {'"', "'"} and value[-1:] == value[:1]:
            value = value[1:-1]
        try:
            zone_of(value)
        except GokugenError as error:
            yield f"CRON_TZ{str(error).removeprefix('tz')}"
        else:
            self._tz = value

    def _add(self, number: int, line: str) -> Iterator[str]:
        count = _fields_of(line)
        words = line.split(maxsplit=count)
        if len(words) <= count:
            yield f"{shown(line)} is too short: {_FORM} and after it the name of a work"
            return
        work_id, *rest = words[count].split(maxsplit=1)
        if _FIELD.fullmatch(work_id):
            yield (
                f"{shown(work_id)} is where the name of a work belongs: a crontab has five"
                " fields, and seconds are for a TOML file"
            )
            return
        schedule_id, said = _own_id(work_id, rest[0] if rest else "")
        schedule, errors = self._made(schedule_id, work_id, words[:count], said)
        for error in errors:
            yield f"schedule {shown(schedule_id)}: {error}"
        if schedule is None:
            return
        if before := self._lines.get(schedule.id):
            yield (
                f"schedule {shown(schedule.id)}: another in line {before} has this id: give"
                f" one of them an id of its own, as in {work_id} id=its-name"
            )
            return
        self._lines[schedule.id] = number
        self.schedules.append(schedule)

    def _made(
        self, schedule_id: str, work_id: str, fields: list[str], said: str
    ) -> tuple[Schedule | None, list[GokugenError]]:
        """The schedule, of what could be read of it; and all that is wrong with it."""
        values: dict[str, Any] = {"trigger": _SOME_TRIGGER}
        errors: list[GokugenError] = []
        for field, read in (
            ("trigger", lambda: self._trigger(fields)),
            ("param", lambda: _param(said)),
        ):
            try:
                values[field] = read()
            except (InvalidTaskError, InvalidTriggerError) as error:
                errors.append(error)
        try:
            made = Schedule(id=schedule_id, work_id=work_id, created_at=EPOCH, **values)
        except InvalidTaskError as error:
            return None, [*errors, error]
        return made, errors

    def _trigger(self, fields: list[str]) -> Trigger:
        if fields[0].lower() == "@every":
            return Interval(fields[1])
        return Cron(" ".join(fields), self._tz)


def _fields_of(line: str) -> int:
    """How many words say when."""
    if not line.startswith("@"):
        return _FIELDS
    return 2 if line.split(maxsplit=1)[0].lower() == "@every" else 1


def _own_id(work_id: str, rest: str) -> tuple[str, str]:
    """The id of a schedule, and what is left of its line."""
    if not rest.startswith("id="):
        return work_id, rest
    word, *left = rest.split(maxsplit=1)
    return word.removeprefix("id="), left[0] if left else ""


def _param(said: str) -> dict[str, JSON]:
    if not said:
        return {}
    if not said.startswith("{"):
        raise InvalidTaskError(
            "param",
            f"must be a JSON object, the last thing in the line, not {shown(said)}: a"
            " comment needs a line of its own",
        )
    try:
        return json_object(json.loads(said), "param")
    except GokugenError:
        raise
    except (ValueError, RecursionError) as error:
        # Not where: the line that it counts is not that of the file.
        what = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise InvalidTaskError(
            "param", f"must be a JSON object, the last thing in the line: {what}"
        ) from None
