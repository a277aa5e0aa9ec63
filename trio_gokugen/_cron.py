"""Cron: the fields by cronsim, what becomes of clocks that are set by rules of our own.

cronsim is asked for local times only, as if no clock were ever set. Which moments those
are that never come, or come twice, is decided here, so that it holds in every zone: where
clocks are set by half an hour, at midnight, or by a day.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import attrs
from cronsim import CronSim, CronSimError
from cronsim.cronsim import Field

from ._errors import InvalidTriggerError, shown
from ._json import JSON
from ._local_time import SECOND, Twice, local_of, occurrence, zone_of
from ._task import as_utc
from ._trigger import BaseTrigger

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

DST: TypeAlias = Literal["debian", "match"]

LONGEST = 1_000
"""Characters of an expression."""

NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

_FIELDS = {
    Field.SECOND: ("second", "0 to 59"),
    Field.MINUTE: ("minute", "0 to 59"),
    Field.HOUR: ("hour", "0 to 23"),
    Field.DAY: ("day of month", "1 to 31, L for the last day and LW for the last weekday"),
    Field.MONTH: ("month", "1 to 12 or JAN to DEC"),
    Field.DOW: (
        "day of week",
        "0 to 7 or SUN to SAT, 5L for the last Friday of the month and 5#2 for its second",
    ),
}
_SINGLE = re.compile(r"\b(\w+)-\1/0*[1-9]\d*", re.ASCII | re.IGNORECASE)
"""Steps in a range of one value, as ``17-17/3``. cronsim would go on to the last hour."""

_YEARS = 50
"""So far ahead cronsim looks for what fits, and so do we."""

_ANY = datetime(2000, 1, 1)  # noqa: DTZ001 (a local time, of no zone)


@attrs.frozen
class Cron(BaseTrigger):
    """Moments by a cron expression, as Debian's cron understands it.

    Args:
      expression: Five fields, ``minute hour day-of-month month day-of-week``, or six, with
        the second first. Each is ``*``, a number, a name, a range ``1-5``, steps ``*/15``
        or ``10-50/20``, or a list of these; or all is ``@hourly``, ``@daily``,
        ``@weekly``, ``@monthly`` or ``@yearly``. As day of month, ``L`` is the last day
        and ``LW`` the last weekday; as day of week, ``5L`` is the last Friday of the month
        and ``5#2`` the second. If both days are restricted, one that fits is enough; if
        one begins with ``*``, both must fit.
      tz: The zone whose clocks are meant, by its name in the tz database.
      dst: What becomes of local times that never come, or come twice, when clocks are set
        forward, or back. With ``"debian"``, what is meant for fixed times runs once for
        each of them: at the moment of the change if the time never comes, and the first
        time if it comes twice; if the second, minute or hour begins with ``*``, it follows
        the clock. With ``"match"``, all follows the clock: a time that never comes is left
        out, and one that comes twice is taken twice.

    Raises:
      InvalidTriggerError: the expression cannot be used, or never comes true; the zone is
        not known.
    """

    expression: str
    tz: str = "UTC"
    dst: DST = attrs.field(default="debian", kw_only=True)

    def __attrs_post_init__(self) -> None:
        zone_of(self.tz)
        if self.dst not in get_args(DST):
            raise InvalidTriggerError(
                "dst", f"must be 'debian' or 'match', not {shown(self.dst)}"
            )
        if not isinstance(self.expression, str):
            raise InvalidTriggerError(
                "expression", f"must be a string, not {shown(self.expression)}"
            )
        if self.expression.strip().lower().startswith("@every"):
            raise InvalidTriggerError(
                "expression",
                f"{shown(self.expression)} is none of cron's: use Interval('1h')",
            )
        _rule(self.expression)
        # The day may be there, and the time never: as clocks are set forward on that day.
        if not _comes_true(self.expression, self.tz, self.dst):
            raise InvalidTriggerError(
                "expression",
                f"{shown(self.expression)} never comes true in {self.tz}: clocks are always"
                " set forward over it",
            )

    def __str__(self) -> str:
        return f"{self.expression} ({self.tz}{', match' if self.dst == 'match' else ''})"

    def explain(self) -> str:
        """What it means, in words."""
        return f"{_rule(self.expression).sim.explain()}, {self.tz}"

    def to_data(self) -> dict[str, JSON]:
        """The trigger as JSON values; `trigger_from_data` makes it of them again."""
        return {"cron": self.expression, "tz": self.tz, "dst": self.dst}

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment that is later, in UTC; none if there is none in 50 years.

        Raises:
          InvalidTaskError: the moment is not aware.
        """
        return _next(self.expression, self.tz, self.dst, as_utc(moment, "moment"))


def _next(expression: str, tz: str, dst: DST, moment: datetime) -> datetime | None:
    try:
        return _search(_rule(expression), zone_of(tz), dst, moment)
    except (OverflowError, StopIteration):
        return None


@lru_cache(maxsize=1_000)
def _comes_true(expression: str, tz: str, dst: DST) -> bool:
    return _next(expression, tz, dst, _ANY.replace(tzinfo=UTC)) is not None


def _search(rule: _Rule, zone: ZoneInfo, dst: DST, moment: datetime) -> datetime | None:
    follows = rule.follows or dst == "match"
    local, again = local_of(moment, zone)
    if follows and not again and isinstance(now := occurrence(local, zone), Twice):
        sooner = _before_clocks_are_set(rule, local, now)
        if sooner is not None:
            return sooner
        local = now.end - SECOND
    last_year = local.year + _YEARS
    while local.year <= last_year:
        local = rule.after(local)
        found = occurrence(local, zone)
        if isinstance(found, datetime):
            return found
        if isinstance(found, Twice):
            if found.first > moment:
                return found.first
            if follows:
                return found.second
        elif found.change > moment and not follows:
            return found.change
        local = found.end - SECOND
    return None


def _before_clocks_are_set(rule: _Rule, local: datetime, now: Twice) -> datetime | None:
    """What fits between the first time that it is so late, and the end of the second."""
    following = rule.after(local)
    if following < now.end:
        return now.first + (following - local)
    repeated = rule.after(now.begin - SECOND)
    return now.second + (repeated - local) if repeated < now.end else None


class _Rule:
    """An expression, as cronsim has read it."""

    def __init__(self, sim: CronSim) -> None:
        self.sim = sim
        self.follows = any(part.startswith("*") for part in sim.parts[:3])
        """Whether it follows the clocks when these are set."""

        _, self._last_minute, self._last_second = self._last = _times(sim, max)
        hour, minute, second = _times(sim, min)
        # From the beginning of a minute, an hour or a day to before the next one's first.
        self._to_minute = timedelta(minutes=1, seconds=second - 1)
        self._to_hour = timedelta(hours=1, minutes=minute, seconds=second - 1)
        self._to_day = timedelta(days=1, hours=hour, minutes=minute, seconds=second - 1)

    def after(self, local: datetime) -> datetime:
        """The next local time that fits.

        Raises:
          StopIteration: there is none in 50 years.
          OverflowError: there is none before the year 10,000.
        """
        sim = object.__new__(CronSim)
        sim.__dict__.update(self.sim.__dict__)
        sim.dt = self._skipped(local)
        return next(sim)

    def _skipped(self, local: datetime) -> datetime:
        """A time up to which nothing fits: cronsim would go there hour by hour."""
        minute, second = local.minute, local.second
        if (local.hour, minute, second) >= self._last:
            return local.replace(hour=0, minute=0, second=0) + self._to_day
        if (minute, second) >= (self._last_minute, self._last_second):
            return local.replace(minute=0, second=0) + self._to_hour
        if second >= self._last_second:
            return local.replace(second=0) + self._to_minute
        return local


def _times(sim: CronSim, which: Callable[[set[int]], int]) -> tuple[int, int, int]:
    return which(sim.hours), which(sim.minutes), which(sim.seconds)


@lru_cache(maxsize=1_000)
def _rule(expression: str) -> _Rule:
    if len(expression) > LONGEST:
        raise InvalidTriggerError("expression", f"is longer than {LONGEST} characters")
    nickname = expression.strip().lower()
    if nickname.startswith("@") and nickname not in NICKNAMES:
        known = ", ".join(NICKNAMES)
        raise InvalidTriggerError(
            "expression", f"{shown(expression)} is not known: there are {known}"
        )
    try:
        plain = _SINGLE.sub(r"\1", expression)
        sim = CronSim(NICKNAMES.get(nickname, plain), _ANY)
        rule = _Rule(sim)
        rule.after(_ANY)
    except CronSimError:
        raise InvalidTriggerError("expression", _what_is_wrong(expression)) from None
    except StopIteration:
        raise InvalidTriggerError(
            "expression", f"{shown(expression)} never comes true: there is no such day"
        ) from None
    return rule


def _what_is_wrong(expression: str) -> str:
    parts = expression.upper().split()
    if len(parts) not in {5, 6}:
        return (
            f"{shown(expression)} has {len(parts)} fields: give minute, hour, day of"
            " month, month and day of week, and the second before these if you want"
        )
    fields = [*Field][6 - len(parts) :]
    wrong: list[str] = []
    for field, part, given in zip(fields, parts, expression.split(), strict=True):
        try:
            field.parse(part)
        except CronSimError:
            name, takes = _FIELDS[field]
            wrong.append(f"the {name}, {shown(given)}, cannot be used: it takes {takes}")
    if wrong:
        return "; ".join(wrong)
    return f"{shown(expression)} never comes true: no such month has so many days"
