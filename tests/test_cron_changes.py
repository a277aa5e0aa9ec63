"""Cron where clocks are set: compared with a look at the clock in every minute.

The oracle uses no trick: it goes through the minutes one by one, of the world for what
follows the clocks, and of the calendar for what is meant for fixed times. Transitions
that are alike, by the time of the day and by how far clocks are set, stand for each other,
unless `GOKUGEN_ALL_CHANGES` is set: then every zone is looked at in all of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

import attrs
import pytest
from cronsim import CronSim

from trio_gokugen import Cron, Except
from trio_gokugen._cron import DST
from trio_gokugen.abc import Trigger

MINUTE = timedelta(minutes=1)
AROUND = timedelta(hours=5)
MARGIN = timedelta(days=2)
SINCE, UNTIL = datetime(2000, 1, 1, tzinfo=UTC), datetime(2037, 12, 31, tzinfo=UTC)

ALL = bool(os.environ.get("GOKUGEN_ALL_CHANGES"))
"""Whether those that are alike are looked at too, by hand: it takes half an hour."""

PIECES = range(300 if ALL else 1)
"""Of the changes, for no test may take minutes."""

EXPRESSIONS = [
    "* * * * *",
    "*/7 0-3 * * *",
    "*/10 3 * * *",
    "0 */2 * * *",
    "0 0 * * *",
    "30 2 * * *",
    "30 1 * * *",
    "15,45 1-2 * * *",
    "20 2/3 * * *",
    "59 23 L * *",
    "0 0 1 * *",
    "5 0 * * MON",
    "0 1 * 4,10 SUN",
]


SHAPES: list[tuple[str, DST]] = [
    ("15,45 */2 * * *", "debian"),
    ("15,45 0-4 * * *", "debian"),
    ("15,45 0-4 * * *", "match"),
]


def changes(zone: ZoneInfo) -> Iterator[datetime]:
    """The moments at which the clocks of a zone are set."""
    step = timedelta(days=3)
    moment = SINCE
    offset = moment.astimezone(zone).utcoffset()
    while moment < UNTIL:
        low, high = moment, moment + step
        moment = high
        if high.astimezone(zone).utcoffset() != offset:
            while high - low > MINUTE:
                middle = low + (high - low) // MINUTE // 2 * MINUTE
                if middle.astimezone(zone).utcoffset() == offset:
                    low = middle
                else:
                    high = middle
            yield high
            offset = moment.astimezone(zone).utcoffset()


@cache
def changes_to_look_at() -> list[tuple[str, datetime]]:
    """All of all zones, or one of those that are alike: some forty."""
    found: dict[tuple[object, ...], tuple[str, datetime]] = {}
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        for change in changes(zone):
            before = (change - MINUTE).astimezone(zone)
            after = change.astimezone(zone)
            shift = after.replace(tzinfo=None) - before.replace(tzinfo=None)
            which = (name, change) if ALL else (before.hour, before.minute, shift)
            found.setdefault(which, (name, change))
    assert len(found) > (15_000 if ALL else 30)
    return [*found.values()]


@attrs.frozen
class Around:
    """The hours around a change: what the clocks show, and when it is so late."""

    world: list[tuple[datetime, datetime]]
    """Each minute, with what a clock on the wall shows in it."""

    calendar: list[tuple[datetime, datetime]]
    """Each local minute, with its first, or the first that there is after it."""

    @classmethod
    def change(cls, name: str, change: datetime) -> Around:
        zone = ZoneInfo(name)
        since = change - AROUND
        minutes = (since + number * MINUTE for number in range(2 * AROUND // MINUTE))
        world = [(each, each.astimezone(zone)) for each in minutes]
        calendar: list[tuple[datetime, datetime]] = []
        # Clocks may be set by a whole day.
        local = (since + 2 * AROUND + MARGIN).replace(tzinfo=None)
        there = local.replace(tzinfo=zone)
        for number in range(2 * (AROUND + MARGIN) // MINUTE):
            each = local - number * MINUTE
            if not is_missing(each, zone):
                there = each.replace(tzinfo=zone)
            moment = there.astimezone(UTC)
            if since <= moment < since + 2 * AROUND:
                calendar.append((moment, each))
        return cls(world, calendar)


def fits(rule: CronSim, local: datetime) -> bool:
    return (
        local.minute in rule.minutes
        and local.hour in rule.hours
        and local.month in rule.months
        and rule.match_day(local.date())
    )


def is_missing(local: datetime, zone: ZoneInfo) -> bool:
    there = local.replace(tzinfo=zone).astimezone(UTC).astimezone(zone)
    return there.replace(tzinfo=None) != local


def moments_of(cron: Trigger, since: datetime) -> list[datetime]:
    found: list[datetime] = []
    moment = cron.next_after(since - timedelta(microseconds=1))
    while moment is not None and moment < since + 2 * AROUND:
        assert not found or moment > found[-1]
        found.append(moment)
        moment = cron.next_after(moment)
    return found


@pytest.mark.uncovered
@pytest.mark.parametrize("piece", PIECES)
def test_every_kind_of_change(piece: int) -> None:
    """
    Around a change, what follows the clocks comes whenever these show what fits, and what
    is meant for fixed times comes once for each of them.
    """
    for name, change in changes_to_look_at()[piece :: len(PIECES)]:
        around = Around.change(name, change)
        for expression in EXPRESSIONS:
            check(expression, name, change, around)


def check(expression: str, name: str, change: datetime, around: Around) -> None:
    rule = CronSim(expression, datetime(2000, 1, 1))
    world = [moment for moment, local in around.world if fits(rule, local)]
    calendar = sorted({moment for moment, local in around.calendar if fits(rule, local)})
    starred = any(part.startswith("*") for part in expression.split()[:2])
    expected: dict[DST, list[datetime]] = {
        "debian": world if starred else calendar,
        "match": world,
    }
    for dst, moments in expected.items():
        cron = Cron(expression, name, dst=dst)
        assert moments_of(cron, change - AROUND) == moments, (cron, change)


@pytest.mark.parametrize("piece", PIECES)
def test_all_moments_between_two_have_the_same_next(piece: int) -> None:
    """
    Whatever the moment that is asked for, between two there is but one answer.
    """
    for name, change in changes_to_look_at()[piece :: len(PIECES)]:
        since = change - AROUND
        for expression, dst in SHAPES:
            cron = Cron(expression, name, dst=dst)
            last = cron.next_after(since + 2 * AROUND - timedelta(microseconds=1))
            moments = [*moments_of(cron, since), last]
            for number in range(0, 2 * AROUND // MINUTE, 7):
                moment = since + number * MINUTE + timedelta(seconds=number % 60 + 0.5)
                later = next(each for each in moments if each is None or each > moment)
                assert cron.next_after(moment) == later, (cron, moment)


@pytest.mark.parametrize("piece", PIECES)
def test_days_are_left_out_around_changes(piece: int) -> None:
    """
    Around a change, `Except` leaves out what is on its days by the clock, and no more.
    """
    for name, change in changes_to_look_at()[piece :: len(PIECES)]:
        zone = ZoneInfo(name)
        cron = Cron("*/30 * * * *", name)
        moments = moments_of(cron, change - AROUND)
        days = {each.astimezone(zone).date() for each in moments}
        for left_out in [*[{day} for day in days], days]:
            left = [
                each for each in moments if each.astimezone(zone).date() not in left_out
            ]
            trigger = Except(cron, left_out, name)
            assert moments_of(trigger, change - AROUND) == left, (trigger, change)


def test_seconds_follow_the_clocks_only_if_starred() -> None:
    """
    What has a second is meant for fixed times as much as what has none.
    """
    nightly = Cron("30 30 2 * * *", "Europe/Berlin")
    spring = datetime(2030, 3, 31, tzinfo=UTC)
    assert nightly.next_after(spring) == spring.replace(hour=1)
    autumn = datetime(2030, 10, 27, tzinfo=UTC)
    once = autumn.replace(minute=30, second=30)
    assert nightly.next_after(autumn) == once
    assert nightly.next_after(once) == autumn.replace(day=28, hour=1, minute=30, second=30)
    starred = Cron("*/30 30 2 * * *", "Europe/Berlin")
    twice = [once.replace(second=0), once, once.replace(hour=1, second=0)]
    moment = autumn
    for each in twice:
        found = starred.next_after(moment)
        assert found == each
        moment = each
