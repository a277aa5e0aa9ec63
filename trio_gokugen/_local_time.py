"""What a zone's clocks show, as moments: also where clocks are set forward, or back.

A *local time* is naive: what a clock on the wall shows. As clocks are set forward, some
local times never come (a gap); as they are set back, some come twice (an overlap). In
both, what PEP 495 calls the fold tells the offset before the change from the one after.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import attrs

from ._errors import InvalidTriggerError, shown

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

SECOND = timedelta(seconds=1)


@attrs.frozen
class Never:
    """A local time in a gap."""

    change: datetime
    """The moment at which clocks are set."""

    end: datetime
    """The local time that they are set to."""


@attrs.frozen
class Twice:
    """A local time in an overlap."""

    first: datetime
    second: datetime
    begin: datetime
    """The local time that clocks are set back to."""

    end: datetime
    """The local time that they show no more, being set."""


Occurrence: TypeAlias = datetime | Never | Twice
"""When a local time comes: nearly always it is a single moment."""


def zone_of(name: str) -> ZoneInfo:
    """A zone by its name in the tz database.

    Raises:
      InvalidTriggerError: there is none of this name.
    """
    try:
        # ZoneInfo takes some other things, too, and makes no zone of them.
        if isinstance(name, str):
            return _zone(name)
    except (ValueError, OSError, LookupError):
        pass
    raise InvalidTriggerError(
        "tz",
        f"{shown(name)} is not known here: give the name of a zone, such as"
        ' "Europe/Berlin"; where the system has no tz database, install tzdata',
    )


@lru_cache(maxsize=1_000)
def _zone(name: str) -> ZoneInfo:
    from zoneinfo import ZoneInfo  # noqa: PLC0415 (slow to import, and not always wanted)

    return ZoneInfo(name)


def local_of(moment: datetime, zone: tzinfo) -> tuple[datetime, bool]:
    """The local time at a moment, to the second, and whether it is there again.

    Raises:
      OverflowError: it is beyond the year 9999.
    """
    try:
        here = moment.astimezone(zone)
    except OverflowError:
        if moment.year > 1:
            raise
        # West of Greenwich it is still the year 0.
        return datetime.min, False  # noqa: DTZ901 (a local time, of no zone)
    return here.replace(tzinfo=None, microsecond=0, fold=0), here.fold == 1


def occurrence(local: datetime, zone: tzinfo) -> Occurrence:
    """When a local time comes.

    Raises:
      OverflowError: beyond the years 1 to 9999.
    """
    before = _offset(local, zone)
    after = _offset(local.replace(fold=1), zone)
    if before == after:
        return _moment(local, before)
    if before < after:
        change = _change(_moment(local, after), _moment(local, before), zone)
        return Never(change, _local(change, after))
    first, second = _moment(local, before), _moment(local, after)
    change = _change(first, second, zone)
    return Twice(first, second, _local(change, after), _local(change, before))


def settled(local: datetime, zone: tzinfo) -> datetime:
    """The one moment for a local time: the first; or that of the change, if it never comes.

    Raises:
      OverflowError: beyond the years 1 to 9999.
    """
    match occurrence(local, zone):
        case Never(change=change):
            return change
        case Twice(first=first):
            return first
        case moment:
            return moment


def _offset(local: datetime, zone: tzinfo) -> timedelta:
    offset = zone.utcoffset(local)
    assert offset is not None
    return offset


def _moment(local: datetime, offset: timedelta) -> datetime:
    return (local - offset).replace(tzinfo=UTC)


def _local(moment: datetime, offset: timedelta) -> datetime:
    return (moment + offset).replace(tzinfo=None)


def _change(low: datetime, high: datetime, zone: tzinfo) -> datetime:
    """The moment of the change, which is after `low`, and not after `high`."""
    # Clocks are set at full seconds: so there is one between the two, or it is `high`.
    low, high = low.replace(microsecond=0), high.replace(microsecond=0)
    before = low.astimezone(zone).utcoffset()
    while high - low > SECOND:
        middle = low + (high - low) // SECOND // 2 * SECOND
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high
