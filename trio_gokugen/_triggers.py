"""Triggers made of moments, and of other triggers; and all of them of JSON."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import Any, cast

import attrs

from ._calendar_interval import CalendarInterval, day_of
from ._cron import Cron
from ._errors import GokugenError, InvalidTriggerError, shown
from ._interval import Interval
from ._json import JSON
from ._lengths import TICK
from ._local_time import Never, Twice, local_of, occurrence, zone_of
from ._task import as_utc
from ._trigger import BaseTrigger, Trigger, not_later

DAY = timedelta(days=1)

MOST_STEPS = 1_000
"""So often `Both` looks for a moment that both have."""

MOST_DEEP = 20
"""So deep triggers may be made of others."""

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def _each(values: object, argument: str) -> list[object]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidTriggerError(argument, f"must be a list, not {shown(values)}")
    return list(cast("Iterable[object]", values))


def _days(values: object) -> frozenset[date]:
    return frozenset(day_of(each, "calendar") for each in _each(values, "calendar"))


def _moments(values: object) -> tuple[datetime, ...]:
    moments = {
        as_utc(cast("datetime", each), "moments") for each in _each(values, "moments")
    }
    if not moments:
        raise InvalidTriggerError("moments", "is empty: give at least one moment")
    return tuple(sorted(moments))


def _checked(triggers: Sequence[object]) -> tuple[Trigger, ...]:
    for each in triggers:
        if isinstance(each, type) or not isinstance(each, Trigger):
            raise InvalidTriggerError(
                "triggers", f"{shown(each)} is not a trigger: give each one for itself"
            )
    if not triggers:
        raise InvalidTriggerError("triggers", "is empty: give at least one trigger")
    checked = tuple(cast("Sequence[Trigger]", triggers))
    if max(map(_depth, checked)) >= MOST_DEEP:
        raise InvalidTriggerError("triggers", f"are nested deeper than {MOST_DEEP} levels")
    return checked


def _depth(trigger: Trigger) -> int:
    """How deep others are nested in it."""
    if isinstance(trigger, Except):
        return 1 + _depth(trigger.trigger)
    if isinstance(trigger, Either | Both):
        return 1 + max(map(_depth, trigger.triggers))
    return 0


def _trigger(value: object) -> Trigger:
    return _checked((value,))[0]


def _within(trigger: Trigger) -> str:
    return f"({trigger})"


@attrs.frozen
class At(BaseTrigger):
    """Single moments.

    Args:
      moments: The moments, in any order.

    Raises:
      InvalidTaskError: a moment is not an aware datetime.
      InvalidTriggerError: there is none.
    """

    moments: tuple[datetime, ...] = attrs.field(converter=_moments)

    def __str__(self) -> str:
        return f"at {', '.join(each.isoformat() for each in self.moments)}"

    def explain(self) -> str:
        """What it means, in words."""
        if len(self.moments) == 1:
            return f"Once, at {self.moments[0].isoformat()}"
        return f"{len(self.moments)} times, first at {self.moments[0].isoformat()}"

    def to_data(self) -> dict[str, JSON]:
        """The trigger as JSON values; `trigger_from_data` makes it of them again."""
        return {"at": [each.isoformat() for each in self.moments]}

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment that is later, in UTC; or none.

        Raises:
          InvalidTaskError: the moment is not aware.
        """
        index = bisect_right(self.moments, as_utc(moment, "moment"))
        return self.moments[index] if index < len(self.moments) else None


@attrs.frozen(init=False)
class Either(BaseTrigger):
    """The moments of all of some triggers.

    Args:
      triggers: One or more triggers.
    """

    triggers: tuple[Trigger, ...]

    def __init__(self, *triggers: Trigger) -> None:
        object.__setattr__(self, "triggers", _checked(triggers))

    def __str__(self) -> str:
        return " or ".join(map(_within, self.triggers))

    def explain(self) -> str:
        """What it means, in words."""
        return "; or: ".join(each.explain() for each in self.triggers)

    def to_data(self) -> dict[str, JSON]:
        """The trigger as JSON values; `trigger_from_data` makes it of them again."""
        return {"either": [each.to_data() for each in self.triggers]}

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment that is later, in UTC; or none.

        Raises:
          InvalidTaskError: the moment is not aware.
        """
        found = [each.next_after(moment) for each in self.triggers]
        return min((each for each in found if each is not None), default=None)


@attrs.frozen(init=False)
class Both(BaseTrigger):
    """The moments that all of some triggers have.

    Args:
      triggers: One or more triggers.

    Raises:
      InvalidTriggerError: they have none after 2000 that is found in `MOST_STEPS`.
    """

    triggers: tuple[Trigger, ...]

    def __init__(self, *triggers: Trigger) -> None:
        object.__setattr__(self, "triggers", tuple(_in_both(_checked(triggers))))
        if self.next_after(_LONG_AGO) is None:
            raise InvalidTriggerError("triggers", "have no moment that is found in all")

    def __str__(self) -> str:
        return " and ".join(map(_within, self.triggers))

    def explain(self) -> str:
        """What it means, in words."""
        return "; and at the same time: ".join(each.explain() for each in self.triggers)

    def to_data(self) -> dict[str, JSON]:
        """The trigger as JSON values; `trigger_from_data` makes it of them again."""
        return {"both": [each.to_data() for each in self.triggers]}

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment that is later, in UTC; or none.

        After `MOST_STEPS` moments that not all have, it is none, too.

        Raises:
          InvalidTaskError: the moment is not aware.
        """
        latest = self.triggers[0].next_after(moment)
        agreed = 1
        for step in range(1, MOST_STEPS):
            if latest is None or agreed == len(self.triggers):
                return latest
            trigger = self.triggers[step % len(self.triggers)]
            found = trigger.next_after(latest - TICK)
            agreed = agreed + 1 if found == latest else 1
            latest = found
        return None


def _in_both(triggers: Iterable[Trigger]) -> Iterator[Trigger]:
    """Those within a `Both` in its place: or each of its steps would take many."""
    for each in triggers:
        if isinstance(each, Both):
            yield from each.triggers
        else:
            yield each


@attrs.frozen
class Except(BaseTrigger):
    """The moments of a trigger, but for those on some days.

    Args:
      trigger: Another trigger.
      calendar: The days that are left out: holidays, for example.
      tz: The zone in which it must be one of these days.

    Raises:
      InvalidTriggerError: an argument cannot be used.
    """

    trigger: Trigger = attrs.field(converter=_trigger)
    calendar: frozenset[date] = attrs.field(converter=_days)
    tz: str = "UTC"

    def __attrs_post_init__(self) -> None:
        zone_of(self.tz)

    def __str__(self) -> str:
        return f"{_within(self.trigger)} except on {len(self.calendar)} days ({self.tz})"

    def explain(self) -> str:
        """What it means, in words."""
        days = ", ".join(each.isoformat() for each in sorted(self.calendar))
        return f"{self.trigger.explain()}; but not on {days} ({self.tz})"

    def to_data(self) -> dict[str, JSON]:
        """The trigger as JSON values; `trigger_from_data` makes it of them again."""
        days = [each.isoformat() for each in sorted(self.calendar)]
        return {"except": days, "of": self.trigger.to_data(), "tz": self.tz}

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment that is later, in UTC; or none.

        Raises:
          InvalidTaskError: the moment is not aware.
        """
        zone = zone_of(self.tz)
        found = self.trigger.next_after(moment)
        while found is not None:
            try:
                day = local_of(found, zone)[0].date()
                if day not in self.calendar:
                    return found
                following = _end_of_day(found, day, zone)
            except OverflowError:
                return None
            found = self.trigger.next_after(following - TICK)
            if found is not None and found < following:  # it may be somebody's own
                raise InvalidTriggerError("trigger", not_later(following - TICK, found))
        return None


def _end_of_day(found: datetime, day: date, zone: tzinfo) -> datetime:
    """When a day, of which a moment is given, is over by the clock.

    Where clocks are set back after midnight it is the day before once more, and then this
    day begins again.
    """
    midnight = datetime.combine(day, time())
    begin = occurrence(midnight, zone)
    if isinstance(begin, Twice) and found < begin.second:
        return begin.first + (begin.end - midnight)
    match occurrence(midnight + DAY, zone):
        case Never(change=change):
            return change
        case Twice(first=first, second=second):
            return first if found < first else second
        case moment:
            return moment


# -- from JSON ----------------------------------------------------------------------


def trigger_from_json(text: str) -> Trigger:
    """The trigger that `to_json` made the text of.

    Raises:
      InvalidTriggerError: it is not what a trigger makes.
      InvalidTaskError: a moment in it is not aware.
    """
    try:
        data = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise InvalidTriggerError("text", f"{shown(text)} is not JSON") from None
    return trigger_from_data(data)


def trigger_from_data(data: object) -> Trigger:
    """The trigger that `to_data` made these values of. Raises as `trigger_from_json`."""
    what = shown(data)
    values = dict(cast("Mapping[str, Any]", data)) if isinstance(data, Mapping) else {}
    for kind, made_of in _KINDS.items():
        if kind not in values:
            continue
        if unknown := values.keys() - {kind} - SAID[kind]:
            known = ", ".join(sorted(SAID[kind])) or "nothing else"
            reason = f"takes {known}, and not {shown(min(unknown, key=str))}"
            raise InvalidTriggerError(kind, reason)
        try:
            return made_of(values.pop(kind), **values)
        except GokugenError:
            raise
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidTriggerError(kind, f"cannot be read: {error}") from None
    raise InvalidTriggerError("trigger", f"{what} is not what a trigger makes")


def check_readable(trigger: Trigger) -> None:
    """Raise an `InvalidTriggerError` for one that cannot be made of its data again."""
    try:
        is_same = bool(trigger_from_data(trigger.to_data()) == trigger)
        cause: Exception | None = None
    except Exception as error:  # noqa: BLE001 (a trigger of somebody's own fails in any way)
        is_same, cause = False, error
    if not is_same:
        raise InvalidTriggerError(
            "trigger",
            f"{shown(trigger)} cannot be kept outside of memory: use the triggers of"
            " trio_gokugen, or combine them",
        ) from cause


def _interval(every: str, *, anchor: str | None = None) -> Trigger:
    return Interval(
        every, anchor=None if anchor is None else datetime.fromisoformat(anchor)
    )


def _calendar_interval(every: Mapping[str, Any], **values: Any) -> Trigger:
    return CalendarInterval(**every, **values)


def _at(moments: Iterable[str]) -> Trigger:
    return At([datetime.fromisoformat(each) for each in moments])


def _either(triggers: Iterable[object]) -> Trigger:
    return Either(*map(trigger_from_data, triggers))


def _both(triggers: Iterable[object]) -> Trigger:
    return Both(*map(trigger_from_data, triggers))


def _except(days: Iterable[str], *, of: object, tz: str = "UTC") -> Trigger:
    return Except(trigger_from_data(of), days, tz)


SAID: Mapping[str, frozenset[str]] = {
    "cron": frozenset({"tz", "dst"}),
    "every": frozenset({"anchor"}),
    "calendar_interval": frozenset({"at", "tz", "start", "missing"}),
    "either": frozenset(),
    "both": frozenset(),
    "except": frozenset({"of", "tz"}),
    "at": frozenset(),
}
"""What else is said of a trigger, by the key that tells its kind."""

_KINDS: dict[str, Callable[..., Trigger]] = {
    "cron": Cron,
    "every": _interval,
    "calendar_interval": _calendar_interval,
    "either": _either,
    "both": _both,
    "except": _except,
    "at": _at,
}
"""By the key that a trigger of this kind alone has; `at` is also a calendar's."""
