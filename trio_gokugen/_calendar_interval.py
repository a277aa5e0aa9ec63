"""Intervals of the calendar: months have different lengths, and days, too."""

from __future__ import annotations

import calendar
from bisect import bisect_left
from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import attrs

from ._errors import InvalidTriggerError, shown
from ._json import JSON
from ._local_time import local_of, settled, zone_of
from ._task import as_utc
from ._trigger import BaseTrigger

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

MOST_UNITS = 1_000_000

Missing: TypeAlias = Literal["clamp", "skip"]

_UNITS = "years", "months", "weeks", "days"


def _time(value: object) -> time:
    try:
        found = time.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, time) or found.tzinfo is not None:
        raise InvalidTriggerError(
            "at", f"must be a time without a zone, or text like '09:30', not {shown(value)}"
        )
    return found.replace(fold=0)


def _date(value: object) -> date:
    return day_of(value, "start")


def day_of(value: object, argument: str) -> date:
    try:
        found = date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, date) or isinstance(found, datetime):
        raise InvalidTriggerError(
            argument, f"must be a date, or text like '2030-12-24', not {shown(value)}"
        )
    return found


@attrs.frozen
class CalendarInterval(BaseTrigger):
    """Moments in equal distances of the calendar: each month, every other week.

    Args:
      years: With the next three, the distance; together they must be more than nothing.
      months: See `years`.
      weeks: See `years`.
      days: See `years`.
      at: The time of the day: a `datetime.time`, or text such as ``"09:30"``.
      tz: The zone whose calendar and clocks are meant, by its name in the tz database.
      start: The first day; all others are counted from it.
      missing: What becomes of the 29th, 30th or 31st in a month without one: with
        ``"clamp"`` it is the month's last day, with ``"skip"`` it is left out.

    A time that never comes, as clocks are set forward, is the moment at which they are; of
    one that comes twice, it is the first.

    Raises:
      InvalidTriggerError: an argument cannot be used.
    """

    years: int = attrs.field(default=0, kw_only=True)
    months: int = attrs.field(default=0, kw_only=True)
    weeks: int = attrs.field(default=0, kw_only=True)
    days: int = attrs.field(default=0, kw_only=True)
    at: time = attrs.field(default=time(), kw_only=True, converter=_time)
    tz: str = attrs.field(default="UTC", kw_only=True)
    start: date = attrs.field(default=date(1970, 1, 1), kw_only=True, converter=_date)
    missing: Missing = attrs.field(default="clamp", kw_only=True)

    def __attrs_post_init__(self) -> None:
        zone_of(self.tz)
        for field in _UNITS:
            number = getattr(self, field)
            if isinstance(number, bool) or not isinstance(number, int):
                raise InvalidTriggerError(field, f"must be an int, not {shown(number)}")
            if not 0 <= number < MOST_UNITS:
                raise InvalidTriggerError(
                    field, f"must be 0 or more, and not millions, not {shown(number)}"
                )
        if not any(getattr(self, field) for field in _UNITS):
            raise InvalidTriggerError(
                "days", "is missing: give years, months, weeks or days"
            )
        if self.missing not in get_args(Missing):
            raise InvalidTriggerError(
                "missing", f"must be 'clamp' or 'skip', not {shown(self.missing)}"
            )

    def __str__(self) -> str:
        every = " ".join(
            f"{getattr(self, field)} {field}" for field in _UNITS if getattr(self, field)
        )
        return f"every {every} at {self.at.isoformat()} from {self.start} ({self.tz})"

    def explain(self) -> str:
        """What it means, in words."""
        skipped = (
            " and left out where there is no such day" if self.missing == "skip" else ""
        )
        text = str(self)
        return f"{text[0].upper()}{text[1:]}{skipped}"

    def to_data(self) -> dict[str, JSON]:
        """The trigger as JSON values; `trigger_from_data` makes it of them again."""
        every: dict[str, JSON] = {
            field: getattr(self, field) for field in _UNITS if getattr(self, field)
        }
        return {
            "calendar_interval": every,
            "at": self.at.isoformat(),
            "tz": self.tz,
            "start": self.start.isoformat(),
            "missing": self.missing,
        }

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment that is later, in UTC; none after the year 9999.

        Raises:
          InvalidTaskError: the moment is not aware.
        """
        moment = as_utc(moment, "moment")
        zone = zone_of(self.tz)
        try:
            local = local_of(moment, zone)[0]
            # What has passed by the clock has passed: it came, or clocks were set over it.
            passed = local.time() >= self.at
            number = self._first_from(local.toordinal() + passed)
            while True:
                found = self._moment(number, zone)
                if found is not None and found > moment:
                    return found
                number += 1
        except OverflowError:
            return None

    def _first_from(self, ordinal: int) -> int:
        """The number of the first day that is not before another."""
        months, days = self.years * 12 + self.months, self.weeks * 7 + self.days
        distance = max(0, ordinal - self.start.toordinal())
        low = distance // (months * 31 + days)
        high = -(-distance // (months * 28 + days))
        numbers = range(date.max.toordinal() + 1)
        return bisect_left(numbers, ordinal, low, high, key=self._ordinal)

    def _moment(self, number: int, zone: ZoneInfo) -> datetime | None:
        """The moment of this number; none if it is left out."""
        day, there = self._day(number)
        if not there and self.missing == "skip":
            return None
        return settled(datetime.combine(day, self.at), zone)

    def _ordinal(self, number: int) -> int:
        try:
            return self._day(number)[0].toordinal()
        except OverflowError:
            return date.max.toordinal()

    def _day(self, number: int) -> tuple[date, bool]:
        """The day of this number, and whether it is there, or the last of its month."""
        more = timedelta(days=number * (self.weeks * 7 + self.days))
        if not (self.years or self.months):
            return self.start + more, True
        month = self.start.year * 12 + self.start.month - 1
        month += number * (self.years * 12 + self.months)
        year, month = divmod(month, 12)
        if year > date.max.year:
            raise OverflowError
        last = calendar.monthrange(year, month + 1)[1]
        day = date(year, month + 1, min(self.start.day, last))
        return day + more, self.start.day <= last
