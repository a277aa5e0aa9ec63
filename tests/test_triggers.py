"""Triggers: intervals, single moments, and what is made of others."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_gokugen import (
    At,
    Both,
    CalendarInterval,
    Cron,
    Either,
    Except,
    Interval,
    InvalidTaskError,
    InvalidTriggerError,
    trigger_from_data,
    trigger_from_json,
)
from trio_gokugen._trigger import BaseTrigger
from trio_gokugen.abc import Trigger

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
BERLIN = ZoneInfo("Europe/Berlin")


def first_of(trigger: Trigger, count: int, moment: datetime = NOON) -> list[str]:
    """The next moments, as text."""
    found: list[str] = []
    for _ in range(count):
        later = trigger.next_after(moment)
        if later is None:
            break
        found.append(f"{later:%Y-%m-%d %H:%M:%S}")
        moment = later
    return found


# -- intervals ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "seconds"),
    [
        (7, 7),
        (0.5, 0.5),
        (timedelta(minutes=1), 60),
        ("7s", 7),
        ("@every 7s", 7),
        (" @every  1h30m ", 5400),
        ("1w2d", 9 * 86400),
        ("1.5s", 1.5),
        ("90m", 5400),
    ],
)
def test_the_length_of_an_interval(every: Any, seconds: float) -> None:
    """
    The distance is given in seconds, as a timedelta, or as text.
    """
    assert Interval(every) == Interval(timedelta(seconds=seconds))
    assert trigger_from_json(Interval(every).to_json()) == Interval(every)


@pytest.mark.parametrize(
    "every",
    [
        *("", "7", "s", "@every", "1m1h", "-7s", "1e3s", "٣s", "7 s", "9999999999s"),
        *(True, None, [7], float("nan"), float("inf"), 1e300),
    ],
    ids=repr,
)
def test_intervals_that_are_refused(every: Any) -> None:
    """
    What is no length of time is refused.
    """
    with pytest.raises(InvalidTriggerError, match=r"^every: must be seconds, a timedelta"):
        Interval(every)


@pytest.mark.parametrize("every", [0, -1, "0s", timedelta(0), 1e-9])
def test_intervals_of_nothing(every: Any) -> None:
    """
    An interval must be longer than nothing, or it would never end.
    """
    with pytest.raises(InvalidTriggerError, match=r"^every: must be more than nothing"):
        Interval(every)


def test_an_interval_goes_on_from_its_anchor() -> None:
    """
    The first moment is the anchor, and there is none before it.
    """
    anchor = NOON.astimezone(BERLIN) + timedelta(seconds=3)
    trigger = Interval("1m", anchor=anchor)
    assert first_of(trigger, 2) == ["2030-01-01 12:00:03", "2030-01-01 12:01:03"]
    assert trigger.next_after(datetime.min.replace(tzinfo=UTC)) == anchor
    assert str(trigger) == "@every 1m from 2030-01-01T12:00:03+00:00"
    assert trigger.explain() == "Every 1m, counted from 2030-01-01T12:00:03+00:00"
    with pytest.raises(InvalidTaskError, match=r"^anchor: is a naive datetime"):
        Interval("1m", anchor=datetime(2030, 1, 1))


def test_an_interval_without_an_anchor_is_aligned() -> None:
    """
    Without an anchor an hour's interval gives full hours, before 1970, too.
    """
    trigger = Interval("1h")
    assert first_of(trigger, 1, NOON + MICROSECOND) == ["2030-01-01 13:00:00"]
    before = datetime(1960, 1, 1, 0, 30, tzinfo=UTC)
    assert first_of(trigger, 1, before) == ["1960-01-01 01:00:00"]
    assert str(Interval(90061.5)) == "@every 1d1h1m1.5s"
    assert trigger.explain() == "Every 1h, counted from 1970-01-01, UTC"
    assert trigger.next_after(datetime.max.replace(tzinfo=UTC)) is None


def test_an_interval_is_asked_in_any_zone() -> None:
    """
    What follows on a moment is the same in whatever zone that is told, in UTC; a moment
    that tells none is refused.
    """
    trigger = Interval("7s")
    later = trigger.next_after(NOON.astimezone(BERLIN))
    assert later == trigger.next_after(NOON)
    assert later is not None
    assert later.tzinfo is UTC
    with pytest.raises(InvalidTaskError, match=r"^moment: is a naive datetime"):
        trigger.next_after(datetime(2030, 1, 1))


# -- intervals of the calendar ------------------------------------------------------


def test_the_31st() -> None:
    """
    Where a month has no such day, it is the last one, or none.
    """
    clamped = CalendarInterval(months=1, start=date(2030, 1, 31), at=time(9))
    assert first_of(clamped, 3) == [
        "2030-01-31 09:00:00",
        "2030-02-28 09:00:00",
        "2030-03-31 09:00:00",
    ]
    skipped = CalendarInterval(months=1, start="2030-01-31", at="09:00", missing="skip")
    assert first_of(skipped, 3) == [
        "2030-01-31 09:00:00",
        "2030-03-31 09:00:00",
        "2030-05-31 09:00:00",
    ]
    assert str(clamped) == "every 1 months at 09:00:00 from 2030-01-31 (UTC)"
    assert clamped.explain() == "Every 1 months at 09:00:00 from 2030-01-31 (UTC)"
    assert skipped.explain().endswith("left out where there is no such day")


def test_leap_days() -> None:
    """
    A leap day comes each fourth year, but for some centuries.
    """
    trigger = CalendarInterval(years=1, start=date(2024, 2, 29), missing="skip")
    after = datetime(2095, 1, 1, tzinfo=UTC)
    assert first_of(trigger, 2, after) == ["2096-02-29 00:00:00", "2104-02-29 00:00:00"]


def test_years_months_weeks_and_days_add_up() -> None:
    """
    Distances of all kinds are added, and counted from the first day.
    """
    trigger = CalendarInterval(months=1, weeks=1, days=1, start=date(2030, 1, 1))
    assert first_of(trigger, 3, datetime(2029, 1, 1, tzinfo=UTC)) == [
        "2030-01-01 00:00:00",
        "2030-02-09 00:00:00",
        "2030-03-17 00:00:00",
    ]


def test_days_of_a_zone() -> None:
    """
    It is the zone's clock that shows the time: each day has one, also where clocks are set.
    """
    trigger = CalendarInterval(days=1, at="02:30", tz="Europe/Berlin")
    assert first_of(trigger, 3, datetime(2030, 3, 29, 12, tzinfo=UTC)) == [
        "2030-03-30 01:30:00",
        "2030-03-31 01:00:00",
        "2030-04-01 00:30:00",
    ]
    assert first_of(trigger, 2, datetime(2030, 10, 26, 12, tzinfo=UTC)) == [
        "2030-10-27 00:30:00",
        "2030-10-28 01:30:00",
    ]


def test_a_day_that_never_was() -> None:
    """
    Where a day was left out, none comes twice in its place.
    """
    trigger = CalendarInterval(days=1, tz="Pacific/Apia")
    found = first_of(trigger, 3, datetime(2011, 12, 28, 12, tzinfo=UTC))
    assert found == ["2011-12-29 10:00:00", "2011-12-30 10:00:00", "2011-12-31 10:00:00"]


@pytest.mark.parametrize("tz", ["UTC", "Asia/Tokyo", "America/New_York"])
def test_the_ends_of_the_calendar(tz: str) -> None:
    """
    There is an answer from the year 1 to the year 9999.
    """
    trigger = CalendarInterval(days=1, tz=tz, start=date.min)
    first = datetime.min.replace(tzinfo=UTC)
    found = trigger.next_after(first)
    assert found is not None
    assert first < found <= first + timedelta(days=2)
    assert trigger.next_after(datetime.max.replace(tzinfo=UTC)) is None
    late = CalendarInterval(days=1, tz="America/New_York", at="23:00")
    assert late.next_after(datetime(9999, 12, 31, 12, tzinfo=UTC)) is None
    rare = CalendarInterval(years=999_999, start=date(2030, 1, 2))
    assert first_of(rare, 3) == ["2030-01-02 00:00:00"]


@pytest.mark.parametrize("at", ["02:00:00.5", "02:00:00.000001", "02:59:59.999999"])
def test_a_part_of_a_second_as_clocks_are_set(at: str) -> None:
    """
    A time with a part of a second comes once a day, also as clocks are set.
    """
    trigger = CalendarInterval(days=1, at=at, tz="Europe/Berlin")
    spring = datetime(2030, 3, 30, 12, tzinfo=UTC)
    change = datetime(2030, 3, 31, 1, tzinfo=UTC)
    assert trigger.next_after(spring) == change
    autumn = datetime(2030, 10, 26, 12, tzinfo=UTC)
    found = trigger.next_after(autumn)
    assert found is not None
    assert found == datetime.fromisoformat(f"2030-10-27T{at}+02:00")
    following = trigger.next_after(found)
    assert following == datetime.fromisoformat(f"2030-10-28T{at}+01:00")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "days: is missing: give years, months, weeks or days"),
        ({"days": 0}, "days: is missing"),
        ({"months": -1}, "months: must be 0 or more"),
        ({"weeks": 10**9}, "weeks: must be 0 or more, and not millions"),
        ({"years": 1.5}, "years: must be an int, not 1.5"),
        ({"days": True}, "days: must be an int, not True"),
        ({"days": 1, "at": "noon"}, "at: must be a time without a zone"),
        ({"days": 1, "at": time(tzinfo=UTC)}, "at: must be a time without a zone"),
        ({"days": 1, "at": 9}, "at: must be a time without a zone"),
        ({"days": 1, "start": "today"}, "start: must be a date"),
        ({"days": 1, "start": NOON}, "start: must be a date"),
        ({"days": 1, "missing": "last"}, "missing: must be 'clamp' or 'skip'"),
        ({"days": 1, "tz": "Mars"}, "tz: 'Mars' is not known here"),
    ],
)
def test_calendar_intervals_that_are_refused(given: dict[str, Any], message: str) -> None:
    """
    What cannot be used is refused, by its name.
    """
    with pytest.raises(InvalidTriggerError, match=f"^{message}"):
        CalendarInterval(**given)


# -- single moments, and triggers of triggers ---------------------------------------


def test_single_moments() -> None:
    """
    Moments may be given in any order and zone, and twice.
    """
    later = (NOON + timedelta(days=1)).astimezone(BERLIN)
    trigger = At([later, NOON, later])
    assert first_of(trigger, 5) == ["2030-01-02 12:00:00"]
    assert trigger.next_after(NOON - MICROSECOND) == NOON
    assert str(trigger) == "at 2030-01-01T12:00:00+00:00, 2030-01-02T12:00:00+00:00"
    assert trigger.explain() == "2 times, first at 2030-01-01T12:00:00+00:00"
    assert At([NOON]).explain() == "Once, at 2030-01-01T12:00:00+00:00"


def test_either() -> None:
    """
    The moments of all, those that several have but once.
    """
    trigger = Either(Cron("0 */12 * * *"), Interval("8h"), At([NOON]))
    assert first_of(trigger, 4) == [
        "2030-01-01 16:00:00",
        "2030-01-02 00:00:00",
        "2030-01-02 08:00:00",
        "2030-01-02 12:00:00",
    ]
    assert str(Either(Interval(1), At([NOON]))) == (
        "(@every 1s) or (at 2030-01-01T12:00:00+00:00)"
    )
    assert Either(Interval(1), Interval(2)).explain() == (
        "Every 1s, counted from 1970-01-01, UTC; or: Every 2s, counted from 1970-01-01, UTC"
    )
    assert Either(At([NOON])).next_after(NOON) is None


def test_both() -> None:
    """
    The moments that all have.
    """
    trigger = Both(Cron("0 9 * * *"), Cron("0 * * * MON"), Interval("1m"))
    assert first_of(trigger, 2) == ["2030-01-07 09:00:00", "2030-01-14 09:00:00"]
    assert str(trigger).startswith("(0 9 * * * (UTC)) and (0 * * * MON (UTC)) and ")
    assert "; and at the same time: " in trigger.explain()
    once = Both(At([NOON]), Interval("1h"))
    assert once.next_after(NOON - MICROSECOND) == NOON
    assert once.next_after(NOON) is None


def test_both_of_what_never_meets() -> None:
    """
    Triggers that have no moment in common are refused, however many they have.
    """
    odd = Interval(2, anchor=datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    for other in odd, At([NOON + timedelta(seconds=1)]):
        with pytest.raises(InvalidTriggerError, match=r"^triggers: have no moment"):
            Both(Interval(2), other)


def test_except() -> None:
    """
    Nothing on the days of a calendar, as they are in its zone.
    """
    days = [date(2030, 1, 2), "2030-01-04"]
    trigger = Except(Cron("0 9 * * *"), days)
    assert first_of(trigger, 2) == ["2030-01-03 09:00:00", "2030-01-05 09:00:00"]
    assert str(trigger) == "(0 9 * * * (UTC)) except on 2 days (UTC)"
    assert trigger.explain() == (
        "At 09:00 every day, UTC; but not on 2030-01-02, 2030-01-04 (UTC)"
    )
    tokyo = Except(Interval("6h"), ["2030-01-02"], "Asia/Tokyo")
    assert first_of(tokyo, 2) == ["2030-01-02 18:00:00", "2030-01-03 00:00:00"]


def test_except_skips_whole_days() -> None:
    """
    A day with very many moments is left at once, and the last day there is, too.
    """
    trigger = Except(Interval(0.000001), [NOON.date()])
    assert first_of(trigger, 1) == ["2030-01-02 00:00:00"]
    last = Except(Interval("1h"), [date.max])
    assert last.next_after(datetime(9999, 12, 30, 23, 30, tzinfo=UTC)) is None
    assert Except(At([NOON]), []).next_after(NOON) is None


def test_except_of_a_trigger_that_does_not_go_on() -> None:
    """
    A trigger of somebody's own that stays on a day that is left out is an error, and does
    not keep everybody waiting.
    """

    class Stuck(BaseTrigger):
        def next_after(self, moment: datetime) -> datetime | None:
            return moment

        def explain(self) -> str:
            raise NotImplementedError

        def to_data(self) -> Any:
            raise NotImplementedError

    trigger = Except(Stuck(), [NOON.date()])
    with pytest.raises(
        InvalidTriggerError, match=r"^trigger: next_after\(2030-01-01T23:59"
    ):
        trigger.next_after(NOON)


def nested(levels: int) -> Trigger:
    """A trigger made of others, so many levels deep."""
    trigger: Trigger = Interval(1)
    for level in range(levels):
        trigger = [Either(trigger), Except(trigger, []), Both(Cron("0 0 * * *"), trigger)][
            level % 3
        ]
    return trigger


def as_data(levels: int) -> dict[str, Any]:
    data: dict[str, Any] = {"every": "1s"}
    for _ in range(levels):
        data = {"either": [data]}
    return data


def test_triggers_are_nested() -> None:
    """
    So deep as is allowed a trigger works, and is read again.
    """
    trigger = nested(20)
    assert trigger_from_data(trigger.to_data()) == trigger
    assert first_of(trigger, 1) == ["2030-01-02 00:00:00"]


def test_both_within_both_are_one() -> None:
    """
    What all of some have, and all of others, is what all of them have.
    """
    one, other, third = Interval(2), Interval(3), Interval(5)
    assert Both(Both(one, other), third) == Both(one, other, third)


not_a_trigger: Any = "1h"
a_class: Any = Interval
a_list: Any = [Interval(1)]
a_number: Any = 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: At([]), "moments: is empty"),
        (lambda: At("2030-01-01"), "moments: must be a list, not '2030"),
        (lambda: At(NOON), "moments: must be a list, not datetime"),
        (Either, "triggers: is empty"),
        (lambda: Either(Interval(1), not_a_trigger), "triggers: '1h' is not a trigger"),
        (
            lambda: Either(a_list),
            r"triggers: \[.*\] is not a trigger: give each one for itself",
        ),
        (lambda: Both(a_class), "triggers: <class .* is not a trigger"),
        (lambda: Except(None, []), "triggers: None is not a trigger"),
        (lambda: Except(Interval(1), "2030-01-01"), "calendar: must be a list"),
        (lambda: Except(Interval(1), [5]), "calendar: must be a date"),
        (lambda: Except(Interval(1), [], "Mars"), "tz: 'Mars' is not known"),
        (lambda: trigger_from_json("{"), "text: '{' is not JSON"),
        (lambda: trigger_from_json(a_number), "text: 5 is not JSON"),
        (lambda: trigger_from_json("[]"), r"trigger: \[\] is not what a trigger makes"),
        (lambda: trigger_from_data({"x": 1}), "trigger: {'x': 1} is not what"),
        (lambda: trigger_from_data({"cron": "61 * * * *"}), "expression: the minute"),
        (
            lambda: trigger_from_data({"every": "1s", "x": 1}),
            "every: takes anchor, and not 'x'",
        ),
        (
            lambda: trigger_from_data({"every": "1s", "anchor": "x"}),
            "every: cannot be read",
        ),
        (lambda: trigger_from_data({"at": 5}), "at: cannot be read"),
        (
            lambda: trigger_from_data({"at": "09:00", "months": 1}),
            "at: takes nothing else, and not 'months'",
        ),
        (lambda: trigger_from_json('{"either":[' * 5000), "text: .* is not JSON"),
        (lambda: nested(21), "triggers: are nested deeper than 20 levels"),
        (lambda: trigger_from_data(as_data(400)), "triggers: are nested deeper"),
    ],
)
def test_what_is_refused(make: Any, message: str) -> None:
    """
    What cannot be used is refused, by its name.
    """
    with pytest.raises(InvalidTriggerError, match=f"^{message}"):
        make()


# -- all of them --------------------------------------------------------------------

NEWYEAR = datetime(2000, 1, 1, tzinfo=UTC)
MOMENTS = st.datetimes(datetime(1999, 1, 1), datetime(2038, 1, 1)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia"])
SIMPLE: st.SearchStrategy[Trigger] = st.one_of(
    st.builds(
        Cron,
        st.sampled_from(
            ["@daily", "30 2 * * *", "*/7 1-3 * * *", "0 12 L * *", "5 4 3 2 *"]
        ),
        ZONES,
        dst=st.sampled_from(["debian", "match"]),
    ),
    st.builds(
        Interval,
        st.timedeltas(timedelta(microseconds=1), timedelta(days=1000)),
        anchor=st.none() | MOMENTS,
    ),
    st.builds(
        CalendarInterval,
        months=st.integers(0, 20),
        days=st.integers(1, 40),
        at=st.times(),
        tz=ZONES,
        start=st.dates(date(1990, 1, 1), date(2035, 1, 1)),
        missing=st.sampled_from(["clamp", "skip"]),
    ),
    st.builds(At, st.lists(MOMENTS, min_size=1, max_size=4)),
)
TRIGGERS = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.builds(Either, inner, inner),
        st.builds(Both, inner.filter(lambda each: each.next_after(NEWYEAR) is not None)),
        st.builds(
            Except,
            inner,
            st.lists(st.dates(date(1999, 1, 1), date(2038, 1, 1)), max_size=4),
            ZONES,
        ),
    ),
    max_leaves=4,
)


@given(TRIGGERS, MOMENTS, st.floats(0, 1, exclude_max=True))
def test_any_trigger(trigger: Trigger, moment: datetime, part: float) -> None:
    """
    The next moment is strictly later; from anywhere before it, it is the same; and as JSON
    and back it is the same trigger.
    """
    again = trigger_from_data(trigger.to_data())
    assert again == trigger
    assert str(again) == str(trigger)
    assert again.explain()
    later = trigger.next_after(moment)
    if later is None:
        return
    assert later > moment
    assert later.tzinfo is UTC
    between = moment + (later - moment) * part
    if between < later:
        assert trigger.next_after(between) == later


@given(TRIGGERS, st.datetimes().map(lambda moment: moment.replace(tzinfo=UTC)))
def test_any_moment(trigger: Trigger, moment: datetime) -> None:
    """
    There is an answer for every moment, if only that there is none.
    """
    later = trigger.next_after(moment)
    assert later is None or later > moment


def test_a_calendar_interval_at_the_end_of_time() -> None:
    """
    The last of many months are found, and after them there is nothing.
    """
    monthly = CalendarInterval(months=1, start="2000-01-31", at="12:00")
    late = datetime(9999, 12, 5, tzinfo=UTC)
    last = datetime(9999, 12, 31, 12, tzinfo=UTC)
    assert monthly.next_after(late) == last
    assert monthly.next_after(last) is None


@pytest.mark.parametrize("units", [(0, 0, 0, 1), (0, 0, 3, 5), (0, 5, 0, 0), (1, 1, 1, 1)])
@pytest.mark.parametrize("missing", ["clamp", "skip"])
def test_a_calendar_interval_is_found_from_anywhere(
    units: tuple[int, int, int, int], missing: Any
) -> None:
    """
    From wherever one looks, the next moment is that of the first day which is later.
    """
    years, months, weeks, days = units
    trigger = CalendarInterval(
        years=years,
        months=months,
        weeks=weeks,
        days=days,
        start="2024-01-31",
        missing=missing,
    )
    moments: list[datetime] = []
    moment = trigger.next_after(datetime(2023, 12, 1, tzinfo=UTC))
    while moment is not None and moment.year < 2050:
        moments.append(moment)
        moment = trigger.next_after(moment)
    for day in range(0, 2_000, 7):
        start = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=day)
        assert trigger.next_after(start) == min(m for m in moments if m > start)
