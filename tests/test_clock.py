import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, TypeVar, cast

import pytest
import trio
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from strategies import moments
from trio.testing import MockClock

from trio_gokugen import InvalidTaskError, SystemClock, TrioClock
from trio_gokugen._clock import default_clock, later
from trio_gokugen.abc import Clock

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
FIRST = datetime.min.replace(tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)
HALF_A_CENTURY = 50 * 365 * 86400.0

T = TypeVar("T")


def at_time(present: float, call: Callable[[], T]) -> T:
    """What the call gives in a Trio run whose mock clock shows that time."""

    async def main() -> T:
        clock.jump(present)
        return call()

    clock = MockClock()
    return trio.run(main, clock=clock)


def stopped(moment: datetime) -> SystemClock:
    """A wall clock that shows one moment for ever."""
    # A cast, as `read` is unknown to pyright.
    return cast("Callable[..., SystemClock]", SystemClock)(read=lambda: moment)


presents = st.floats(0, 1e15) | st.sampled_from([0.0, 1.0, 2.0**33, 1e12])

# -- the wall clock -----------------------------------------------------------------


def test_the_wall_clock_is_read() -> None:
    """
    `SystemClock` shows what the wall clock shows, in UTC.
    """
    before = datetime.now(UTC)
    shown = SystemClock().now()
    assert before <= shown <= datetime.now(UTC)
    assert shown.tzinfo is UTC


async def test_the_wall_clock_tells_how_far_a_moment_is(autojump_clock: MockClock) -> None:
    """
    A moment is as far ahead on Trio's clock as it is on the wall clock.
    """
    await trio.sleep(5)
    clock = stopped(NOON)
    assert clock.deadline_for(NOON + 7 * SECOND) == 12
    assert clock.deadline_for(NOON + timedelta(days=365)) == 5 + 365 * 86400


@pytest.mark.parametrize("moment", [NOON, NOON - SECOND, FIRST], ids=str)
async def test_a_moment_of_the_past_is_now(
    moment: datetime, autojump_clock: MockClock
) -> None:
    """
    A moment that has come is now on Trio's clock, on every clock.
    """
    await trio.sleep(5)
    for clock in (stopped(NOON), TrioClock(NOON)):
        assert clock.deadline_for(moment) == 5


def test_nobody_sleeps_long_under_the_wall_clock() -> None:
    """
    Under the wall clock one sleeps at most 30 seconds, or what was asked for; under
    Trio's as long as one likes.
    """
    assert SystemClock().max_sleep == 30
    assert SystemClock(0.5).max_sleep == 0.5
    assert TrioClock(NOON).max_sleep == math.inf


@pytest.mark.parametrize("wrong", [0, -1, math.inf, math.nan], ids=str)
def test_the_longest_sleep_is_a_positive_number(wrong: float) -> None:
    """
    A longest sleep that is not a positive, finite number of seconds is refused.
    """
    with pytest.raises(ValueError, match=r"^max_sleep: must be positive and finite"):
        SystemClock(wrong)


# -- what is promised of every clock ------------------------------------------------


@settings(max_examples=150)
@given(presents, moments, moments, st.sampled_from(["wall", "trio"]))
@example(1e12, NOON, NOON + timedelta(microseconds=1), "wall")
@example(1e12, NOON, NOON + timedelta(microseconds=1), "trio")
@example(1e300, NOON, LAST, "wall")
@example(1e300, NOON, LAST, "trio")
@example(0.0, FIRST, LAST, "trio")
@example(0.0, LAST, FIRST, "trio")
def test_a_moment_to_come_is_not_now(
    present: float, shown: datetime, moment: datetime, kind: str
) -> None:
    """
    A moment still to come is later than the present on Trio's clock, however little; one
    that has come is not.
    """

    def look() -> None:
        clock: Clock = stopped(shown) if kind == "wall" else TrioClock(shown)
        deadline = clock.deadline_for(moment)
        if clock.now() < moment:
            assert deadline > trio.current_time()
        else:
            assert deadline == trio.current_time()
        assert not math.isnan(deadline)

    at_time(present, look)


# -- Trio's clock -------------------------------------------------------------------


async def test_trios_clock_goes_with_trio(autojump_clock: MockClock) -> None:
    """
    `TrioClock` starts at its epoch as it is made, and goes on as Trio's clock does.
    """
    await trio.sleep(1_000)
    clock = TrioClock(NOON)
    assert clock.now() == NOON
    await trio.sleep(0.000001)
    assert clock.now() == NOON + timedelta(microseconds=1)
    await trio.sleep(365 * 86400)
    assert clock.now() == NOON + timedelta(days=365, microseconds=1)
    assert clock.now().tzinfo is UTC


@given(
    st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
    st.floats(0, HALF_A_CENTURY),
    st.timedeltas(timedelta(0), timedelta(seconds=HALF_A_CENTURY)),
)
def test_half_a_century_is_exact(epoch: datetime, start: float, ahead: timedelta) -> None:
    """
    Within half a century, sleeping until a moment wakes at exactly that moment.
    """
    moment = epoch + ahead

    async def main() -> None:
        await trio.sleep_until(start)
        clock = TrioClock(epoch)
        await trio.sleep_until(clock.deadline_for(moment))
        assert clock.now() == moment

    trio.run(main, clock=MockClock(autojump_threshold=0))


@given(moments, moments, presents)
@example(FIRST, LAST, 0.0)
@example(FIRST, LAST - timedelta(microseconds=1), 1e12)
@example(datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC), LAST - timedelta(microseconds=2), 0.1)
def test_every_moment_comes_after_a_look_or_two(
    epoch: datetime, moment: datetime, start: float
) -> None:
    """
    Whoever sleeps until any moment of the years 1 to 9999 and looks again sees that it
    has come, at the third look at the latest, and not long past: on a clock that shows
    trillions of seconds, by the few milliseconds that it can tell apart.
    """

    async def main() -> None:
        jumping.jump(start)
        clock = TrioClock(epoch)
        for _ in range(3):
            await trio.sleep_until(clock.deadline_for(moment))
        tick = timedelta(seconds=4 * math.ulp(trio.current_time()), microseconds=2)
        assert clock.now() >= moment
        assert clock.now() - max(moment, epoch) <= tick

    jumping = MockClock(autojump_threshold=0)
    trio.run(main, clock=jumping)


@pytest.mark.parametrize(
    ("passed", "shown"),
    [(1e12, LAST), (1e300, LAST), (2.6e11, LAST), (1e9, NOON + 10**9 * SECOND)],
    ids=str,
)
def test_the_last_moment_lasts(passed: float, shown: datetime) -> None:
    """
    When Trio's clock has gone beyond the year 9999, the last moment is shown; and it has
    come.
    """

    async def main() -> None:
        clock = TrioClock(NOON)
        jumping.jump(passed)
        assert clock.now() == shown
        assert clock.deadline_for(shown) == trio.current_time()

    jumping = MockClock()
    trio.run(main, clock=jumping)


async def test_a_clock_can_have_started_in_the_past(autojump_clock: MockClock) -> None:
    """
    A clock may be given when, on Trio's clock, it showed its epoch: before or after now.
    """
    await trio.sleep(10)
    assert TrioClock(NOON, start=4).now() == NOON + 6 * SECOND
    assert TrioClock(NOON, start=14).now() == NOON - 4 * SECOND
    assert TrioClock(NOON, start=4).deadline_for(NOON + 7 * SECOND) == 11
    assert TrioClock(NOON, start=1e300).now() == FIRST


async def test_an_epoch_of_another_zone_is_the_same_moment(
    autojump_clock: MockClock,
) -> None:
    """
    An epoch may be of any time zone; the clock shows UTC.
    """
    clock = TrioClock(NOON.astimezone(timezone(timedelta(hours=-9, seconds=7))))
    assert clock.epoch == NOON
    assert clock.now() == NOON
    assert clock.now().tzinfo is UTC


@pytest.mark.parametrize(
    "wrong",
    [
        datetime(2024, 2, 29, 12),
        "2024-02-29T12:00:00Z",
        0.0,
        FIRST.replace(tzinfo=timezone(timedelta(hours=14))),
    ],
    ids=["naive", "text", "number", "too early"],
)
def test_an_epoch_must_be_a_moment(wrong: Any) -> None:
    """
    An epoch that is no moment of UTC is refused.
    """
    with pytest.raises(InvalidTaskError) as caught:
        TrioClock(wrong)
    assert caught.value.field == "epoch"


def test_a_start_goes_with_an_epoch() -> None:
    """
    A clock that is given when it started, and not what it showed then, is refused.
    """
    with pytest.raises(ValueError, match=r"^start: goes with an epoch"):
        TrioClock(start=5)


def test_a_clock_made_beforehand_starts_when_it_is_looked_at() -> None:
    """
    A clock that was made outside of `trio.run` shows its epoch when it is first read.
    """
    clock = TrioClock(NOON)

    async def main() -> None:
        await trio.sleep(100)
        assert clock.now() == NOON
        await trio.sleep(100)
        assert clock.now() == NOON + 100 * SECOND

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_clocks_without_an_epoch_agree() -> None:
    """
    Without an epoch, all clocks of a Trio run show the same time, which began at the
    present; in the next run it begins anew.
    """

    async def main() -> tuple[datetime, datetime]:
        before = datetime.now(UTC)
        first = TrioClock()
        assert before <= first.now() <= datetime.now(UTC)
        start = first.now()
        await trio.sleep(365 * 86400)
        second = TrioClock()
        assert second.now() == first.now() == start + timedelta(days=365)
        assert made_before.now() == first.now()
        moment = start + timedelta(days=400)
        assert second.deadline_for(moment) == first.deadline_for(moment)
        return before, start

    made_before = TrioClock()
    trio.run(main, clock=MockClock(autojump_threshold=0))
    made_before = TrioClock()
    before, start = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert before <= start <= datetime.now(UTC)


# -- the choice ---------------------------------------------------------------------


async def test_a_clock_that_jumps_is_gone_by(autojump_clock: MockClock) -> None:
    """
    Under a mock clock, everything lives on Trio's time.
    """
    assert isinstance(default_clock(), TrioClock)


async def test_a_mock_clock_that_stands_is_gone_by(mock_clock: MockClock) -> None:
    """
    Under a mock clock that does not jump by itself, everything lives on Trio's time too.
    """
    assert isinstance(default_clock(), TrioClock)


async def test_otherwise_the_wall_clock_is_gone_by() -> None:
    """
    Under Trio's real clock, appointed times are those of the wall clock.
    """
    assert isinstance(default_clock(), SystemClock)


# -- arithmetic ---------------------------------------------------------------------


@given(moments, st.floats(allow_nan=False))
@example(NOON, math.inf)
@example(NOON, -math.inf)
@example(NOON, 1e300)
def test_a_moment_beyond_the_range_is_the_last_or_the_first(
    moment: datetime, seconds: float
) -> None:
    """
    A moment so many seconds later is the last, or the first, when it cannot be told.
    """
    try:
        expected = moment + timedelta(seconds=seconds)
    except OverflowError:
        assume(seconds != 0)
        expected = LAST if seconds > 0 else FIRST
    assert later(moment, seconds) == expected


@pytest.mark.parametrize(
    ("make", "error", "field"),
    [
        (lambda: SystemClock(cast("float", "x")), TypeError, "max_sleep"),
        (lambda: SystemClock(True), TypeError, "max_sleep"),
        (lambda: SystemClock(math.nan), ValueError, "max_sleep"),
        (lambda: SystemClock(-(10**5000)), ValueError, "max_sleep"),
        (lambda: TrioClock(NOON, cast("float", "x")), TypeError, "start"),
        (lambda: SystemClock(10**400), ValueError, "max_sleep"),
        (lambda: TrioClock(NOON, math.nan), ValueError, "start"),
        (lambda: TrioClock(NOON, 10**5000), ValueError, "start"),
    ],
    ids=["text", "bool", "nan", "less", "start text", "huge", "start nan", "start huge"],
)
def test_clocks_made_of_what_is_no_number(
    make: Callable[[], object], error: type[Exception], field: str
) -> None:
    """
    A clock says which of its numbers is none.
    """
    with pytest.raises(error, match=f"^{field}: "):
        make()
