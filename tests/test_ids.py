import os
import random
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import moments

from trio_gokugen._ids import IdMaker, _note_fork

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
FIRST = datetime.min.replace(tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)


def milliseconds(made: str) -> int:
    return uuid.UUID(made).int >> 80


class AtTheLimit(random.Random):
    """Starts every count so high that the next step leads beyond its bits."""

    def getrandbits(self, k: int, /) -> int:
        return (1 << 74) - 1


class BeforeCarry(random.Random):
    """Starts every count so that the next step is carried into the upper bits."""

    def getrandbits(self, k: int, /) -> int:
        return (1 << 62) - 1 if k > 32 else 0


@given(moments, st.integers())
@example(FIRST, 0)
@example(EPOCH - timedelta(microseconds=1), 0)
@example(EPOCH, 0)
@example(LAST, 0)
def test_an_id_is_a_uuid_of_version_7(moment: datetime, seed: int) -> None:
    """
    An id is a UUID of version 7 as RFC 9562 lays it out, stamped with its millisecond.
    """
    made = IdMaker(random.Random(seed))(moment)
    parsed = uuid.UUID(made)
    assert made == str(parsed)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    elapsed = max(EPOCH, moment) - EPOCH
    assert milliseconds(made) == elapsed // timedelta(milliseconds=1)


def test_the_zone_of_the_moment_is_nothing_to_the_id() -> None:
    """
    The same moment in another time zone makes the same id.
    """
    elsewhere = NOON.astimezone(timezone(timedelta(hours=-14)))
    assert IdMaker(random.Random(1))(elsewhere) == IdMaker(random.Random(1))(NOON)


@given(
    st.lists(moments | st.sampled_from([FIRST, EPOCH, NOON, LAST]), max_size=20),
    st.integers(),
)
@example([LAST, LAST, FIRST, EPOCH], 0)
@example([NOON, NOON - timedelta(days=365), NOON], 0)
def test_ids_increase_whatever_the_clock_does(clock: list[datetime], seed: int) -> None:
    """
    Each id is greater than the one before, as text and as a number, in any order of
    moments.
    """
    make = IdMaker(random.Random(seed))
    made = [make(moment) for moment in clock]
    assert made == sorted(set(made))
    numbers = [uuid.UUID(each).int for each in made]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("moment", [FIRST, EPOCH, NOON, LAST], ids=str)
def test_ids_increase_within_a_tick(moment: datetime) -> None:
    """
    Ten thousand ids of one moment are stamped with it, and each is greater than the one
    before.
    """
    make = IdMaker()
    made = [make(moment) for _ in range(10_000)]
    assert made == sorted(set(made))
    assert {milliseconds(each) for each in made} == {milliseconds(IdMaker()(moment))}


def test_a_clock_that_goes_backwards_does_not_take_the_ids_along() -> None:
    """
    While the clock shows earlier moments than it did, ids keep the latest stamp.
    """
    make = IdMaker()
    stamp = milliseconds(make(NOON))
    for days in range(1, 100):
        assert milliseconds(make(NOON - timedelta(days=days))) == stamp
    assert milliseconds(make(NOON + timedelta(milliseconds=1))) == stamp + 1


@pytest.mark.parametrize("moment", [FIRST, NOON, LAST], ids=str)
def test_a_tick_that_is_used_up_goes_on_with_the_next(moment: datetime) -> None:
    """
    When a millisecond has no ids left, the next ids take the milliseconds after it, and
    are UUIDs of version 7 still.
    """
    make = IdMaker(AtTheLimit())
    made = [make(moment) for _ in range(5)]
    assert made == sorted(set(made))
    first = milliseconds(made[0])
    assert [milliseconds(each) for each in made] == [*range(first, first + 5)]
    for each in made:
        assert (uuid.UUID(each).version, uuid.UUID(each).variant) == (
            7,
            uuid.RFC_4122,
        )


def test_a_count_goes_on_in_the_upper_bits() -> None:
    """
    When the lower bits of the count are used up, it goes on in the upper ones, within the
    same millisecond.
    """
    make = IdMaker(BeforeCarry())
    made = [make(NOON) for _ in range(3)]
    assert made == sorted(set(made))
    assert len({milliseconds(each) for each in made}) == 1
    assert [each[14:] for each in made] == [
        "7000-bfff-ffffffffffff",
        "7001-8000-000000000000",
        "7001-8000-000000000001",
    ]


def test_programs_make_different_ids_at_the_same_moment() -> None:
    """
    Ids that many programs make at the same moment are all different.
    """
    makers = [IdMaker() for _ in range(100)]
    made = [make(NOON) for make in makers for _ in range(100)]
    assert len(set(made)) == 10_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_program_makes_ids_of_its_own() -> None:
    """
    A program that was forked makes other ids than the one it was forked from, though
    both began with the same maker.
    """
    program = """
import os
from datetime import UTC, datetime, timedelta
from trio_gokugen._ids import IdMaker

make = IdMaker()
moment = datetime(2024, 2, 29, 12, tzinfo=UTC)
make(moment)
child = os.fork()
made = [make(moment), make(moment + timedelta(seconds=1))]
if child:
    os.waitpid(child, 0)
os.write(1, " ".join([*made, ""]).encode())
os._exit(0)
"""
    run = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert len(set(run.stdout.split())) == 4


def test_a_fork_is_noticed() -> None:
    """
    A maker that finds itself in another process draws new random numbers, and its ids go
    on increasing.
    """
    one, other = IdMaker(), IdMaker()
    for maker in (one, other):
        maker._random.seed(7)
    _note_fork()
    first, second = one(NOON), other(NOON)
    assert first != second
    assert one(NOON) > first
    assert one._forks == other._forks == IdMaker.forks
