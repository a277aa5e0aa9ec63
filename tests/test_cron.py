"""Cron: what expressions mean, and what is refused."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cronsim import CronSim

from trio_gokugen import Cron, InvalidTaskError, InvalidTriggerError
from trio_gokugen._cron import LONGEST

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "expression",
    [
        "* * * * *",
        "*/15 * * * *",
        "5-59/20 8-17 * * mon-fri",
        "0 0 1,15 * *",
        "0 0 L * *",
        "0 0 LW * *",
        "0 9 * * 5L",
        "0 9 * * 5#2",
        "0 9 13 * FRI",
        "0 9 */2 * FRI",
        "0 0 29 2 *",
        "0 0 * 2 MON#5",
        "7 30 9 * JAN,jul SUN",
        "*/7 * * * * *",
    ],
)
def test_expressions_are_those_of_cronsim(expression: str) -> None:
    """
    Where no clock is set, the moments are those of cronsim.
    """
    cron = Cron(expression)
    theirs = CronSim(expression, NOON)
    moment = NOON
    for _ in range(200):
        found = cron.next_after(moment)
        assert found == next(theirs)
        assert found is not None
        assert found.tzinfo is UTC
        moment = found


@pytest.mark.parametrize(
    ("nickname", "expression"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@midnight", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        (" @Annually ", "0 0 1 1 *"),
    ],
)
def test_nicknames(nickname: str, expression: str) -> None:
    """
    A nickname is another way to write an expression.
    """
    moment: datetime | None = NOON
    for _ in range(20):
        assert moment is not None
        assert Cron(nickname).next_after(moment) == Cron(expression).next_after(moment)
        moment = Cron(nickname).next_after(moment)


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("0 17-17/3 * * *", "0 17 * * *"),
        ("0 1,5-5/2,9 * * *", "0 1,5,9 * * *"),
        ("0 0 * * MON-mon/2", "0 0 * * MON"),
        ("15-15/07 0 * * *", "15 0 * * *"),
        ("0 5-15/5 * * *", "0 5,10,15 * * *"),
        ("0 1-11/5 * * *", "0 1,6,11 * * *"),
        ("0 15/3 * * *", "0 15,18,21 * * *"),
    ],
)
def test_steps_end_with_their_range(expression: str, same: str) -> None:
    """
    Steps go to the end of their range, also of one that has a single value.
    """
    moment: datetime | None = NOON
    for _ in range(20):
        assert moment is not None
        assert Cron(expression).next_after(moment) == Cron(same).next_after(moment)
        moment = Cron(expression).next_after(moment)


def test_the_next_is_strictly_later() -> None:
    """
    A moment that fits is not its own next, and a microsecond before it, it is the next.
    """
    cron = Cron("0 12 * * *", "Asia/Tokyo")
    noon = NOON.replace(hour=3)
    assert cron.next_after(noon) == noon + timedelta(days=1)
    assert cron.next_after(noon - timedelta(microseconds=1)) == noon
    assert cron.next_after(noon + timedelta(microseconds=1)) == noon + timedelta(days=1)


@pytest.mark.parametrize("tz", ["UTC", "America/New_York", "Pacific/Kiritimati"])
def test_the_ends_of_the_calendar(tz: str) -> None:
    """
    From the year 1 to the year 9999 there is an answer.
    """
    cron = Cron("0 0 1 1 *", tz)
    first = datetime.min.replace(tzinfo=UTC)
    found = cron.next_after(first)
    assert found is not None
    assert found > first
    assert cron.next_after(found - timedelta(microseconds=1)) == found
    assert cron.next_after(datetime.max.replace(tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("expression", "field"),
    [
        ("61 * * * *", "the minute, '61',"),
        ("60 * * * * *", "the second, '60',"),
        ("* 24 * * *", "the hour, '24',"),
        ("* * 15W * *", "the day of month, '15W',"),
        ("* * 0 * *", "the day of month, '0',"),
        ("* * * Foo *", "the month, 'Foo',"),
        ("* * * * FRI-MON", "the day of week, 'FRI-MON',"),
        ("* * * * mon#6", "the day of week, 'mon#6',"),
        ("*/0 * * * *", r"the minute, '\*/0',"),
        ("5-5/0 * * * *", "the minute, '5-5/0',"),
        ("? * * * *", r"the minute, '\?',"),
        (
            "9 9 32 13 8",
            "the day of month, '32', .*; the month, '13', .*; the day of week, '8',",
        ),
        ("* * * *", "'. . . .' has 4 fields"),
        ("", "'' has 0 fields"),
        ("0 0 30 2 *", "'0 0 30 2 .' never comes true"),
        ("0 0 31 2,4,6,9,11 *", ".* never comes true"),
        ("0 0 LW * */7", "'0 0 LW . ./7' never comes true: there is no such day"),
        ("@reboot", "'@reboot' is not known: there are @yearly"),
        (" @Every 1h", r"' @Every 1h' is none of cron's: use Interval\('1h'\)"),
        ("*" * (LONGEST + 1), "is longer than 1000 characters"),
        (5, "must be a string, not 5"),
        (None, "must be a string, not None"),
        (["* * * * *"], r"must be a string, not \['"),
    ],
)
def test_expressions_that_are_refused(expression: str, field: str) -> None:
    """
    What cannot be used is refused at once, with the field that is wrong.
    """
    with pytest.raises(InvalidTriggerError, match=f"^expression: {field}") as caught:
        Cron(expression)
    assert caught.value.field == "expression"


@pytest.mark.parametrize("expression", ["30 2 * 3 0L", "0,59 30 2 25-31 3 SUN"])
def test_a_time_that_never_comes_is_refused(expression: str) -> None:
    """
    What is only ever meant for times over which clocks are set forward is refused if it
    follows the clocks; where it does not, it comes at the changes.
    """
    with pytest.raises(InvalidTriggerError, match="never comes true in Europe/Berlin"):
        Cron(expression.replace("25-31 3 SUN", "* 3 0L"), "Europe/Berlin", dst="match")
    assert Cron("30 2 * 3 0L", "Europe/Berlin").next_after(NOON) is not None
    assert Cron("30 2 * 3 0L", "Asia/Tokyo", dst="match").next_after(NOON) is not None


@pytest.mark.parametrize(
    "tz",
    ["Mars/Phobos", "", "../etc/passwd", "Europe", "\0", None, 5, ["UTC"], (1, 2)],
)
def test_zones_that_are_not_known(tz: str) -> None:
    """
    A zone that is not known is refused, whatever it is.
    """
    with pytest.raises(InvalidTriggerError, match=r"^tz: .* is not known here"):
        Cron("0 9 * * *", tz)


def test_other_arguments() -> None:
    """
    A wrong word for what becomes of changes is refused, and so is a naive moment.
    """
    wrong: Any = "skip"
    with pytest.raises(InvalidTriggerError, match=r"^dst: must be 'debian' or 'match'"):
        Cron("0 9 * * *", dst=wrong)
    with pytest.raises(InvalidTaskError, match=r"^moment: is a naive datetime"):
        Cron("0 9 * * *").next_after(datetime(2030, 1, 1))


def test_in_words() -> None:
    """
    An expression can be read, and is explained.
    """
    cron = Cron("*/5 9-17 * * MON-FRI", "Europe/Berlin")
    assert str(cron) == "*/5 9-17 * * MON-FRI (Europe/Berlin)"
    assert cron.explain() == (
        "Every fifth minute from 09:00 through 17:59 on Monday through Friday,"
        " Europe/Berlin"
    )
    assert str(Cron("@daily", dst="match")) == "@daily (UTC, match)"


def test_it_is_a_value() -> None:
    """
    Triggers that are made alike are equal, and can be keys.
    """
    assert len({Cron("0 9 * * *"), Cron("0 9 * * *"), Cron("0 9 * * *", "Asia/Tokyo")}) == 2


def test_many_at_once_do_not_disturb_each_other() -> None:
    """
    Of one expression many moments may be asked for, in any order.
    """
    cron = Cron("*/20 7 * * *")
    source = random.Random(1)
    moments = [NOON + timedelta(minutes=source.randrange(100_000)) for _ in range(200)]
    expected = [next(CronSim("*/20 7 * * *", each)) for each in moments]
    assert [cron.next_after(each) for each in moments] == expected
