"""Intervals: moments in equal distances, whatever clocks show."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from ._errors import InvalidTaskError, InvalidTriggerError, shown
from ._json import JSON
from ._task import as_utc, as_utc_or_none
from ._trigger import BaseTrigger

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_EVERY = re.compile(
    r"(?:@every\s+)?(?=\d)"
    r"(?:(\d{1,9})w)?(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?"
    r"(?:(\d{1,9}(?:\.\d{1,6})?)s)?",
    re.ASCII,
)


def duration(value: object) -> timedelta:
    """A length of time: a timedelta, seconds, or text such as ``1h30m``."""
    try:
        found = read_duration(value)
    except (OverflowError, ValueError):
        found = None
    if found is None:
        raise InvalidTriggerError(
            "every",
            "must be seconds, a timedelta or text with units like '1h30m' or '90s', not"
            f" {shown(value)}",
        )
    if found <= timedelta(0):
        raise InvalidTriggerError("every", f"must be more than nothing, not {shown(value)}")
    return found


def read_duration(value: object) -> timedelta | None:
    """A length of time, which may be none at all; or `None` for what is not one."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return timedelta(seconds=value)
    parts = _EVERY.fullmatch(value.strip()) if isinstance(value, str) else None
    if parts is None:
        return None
    weeks, days, hours, minutes, seconds = (float(each or 0) for each in parts.groups())
    return timedelta(days, seconds, minutes=minutes, hours=hours, weeks=weeks)


def _optional_moment(value: datetime | None) -> datetime | None:
    return as_utc_or_none(value, "anchor")


@attrs.frozen
class Interval(BaseTrigger):
    """Moments in equal distances, whatever clocks show.

    Args:
      every: The distance: seconds, a timedelta, or text such as ``"7s"``, ``"1h30m"`` or
        ``"@every 7s"``, of weeks, days, hours, minutes and seconds in this order.
      anchor: The first moment. By default there is none, and one of the moments is
        midnight of 1 January 1970, UTC: so an hour's interval gives full hours.

    Raises:
      InvalidTriggerError: `every` cannot be used.
      InvalidTaskError: `anchor` is not an aware datetime.
    """

    every: timedelta = attrs.field(converter=duration)
    anchor: datetime | None = attrs.field(
        default=None,
        kw_only=True,
        converter=_optional_moment,
    )

    def __str__(self) -> str:
        since = "" if self.anchor is None else f" from {self.anchor.isoformat()}"
        return f"@every {_text_of(self.every)}{since}"

    def explain(self) -> str:
        """What it means, in words."""
        since = "1970-01-01, UTC" if self.anchor is None else self.anchor.isoformat()
        return f"Every {_text_of(self.every)}, counted from {since}"

    def to_data(self) -> dict[str, JSON]:
        """The trigger as JSON values; `trigger_from_data` makes it of them again."""
        anchor = None if self.anchor is None else self.anchor.isoformat()
        return {"every": _text_of(self.every), "anchor": anchor}

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment that is later, in UTC; none after the year 9999.

        Raises:
          InvalidTaskError: the moment is not aware.
        """
        # As the scheduler's own moments are: no call then, each occurrence asks for one.
        if type(moment) is not datetime or moment.tzinfo is not UTC:
            moment = as_utc(moment, "moment")
        anchor, every = self.anchor, self.every
        if anchor is None:
            anchor = EPOCH
        elif moment < anchor:
            return anchor
        try:
            return moment + (every - (moment - anchor) % every)
        except OverflowError:
            return None


def _text_of(length: timedelta) -> str:
    minutes, seconds = divmod(length.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(length.days, "d"), (hours, "h"), (minutes, "m")]
    text = "".join(f"{number}{unit}" for number, unit in parts if number)
    if seconds or length.microseconds:
        exact = f"{seconds}.{length.microseconds:06}".rstrip("0").rstrip(".")
        text += f"{exact}s"
    return text


def seconds_or_duration(value: object, field: str) -> Any:
    """A length of time as a file has it: text like '1h30m', or what is checked elsewhere.

    Raises:
      InvalidTaskError: names the field.
    """
    if not isinstance(value, str):
        return value
    try:
        found = read_duration(value)
    except OverflowError:
        found = None
    if found is None:
        raise InvalidTaskError(
            field, f"must be seconds, or text like '1h30m', not {shown(value)}"
        )
    return found
