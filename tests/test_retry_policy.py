"""`Retry` as a value: how long it waits, what it takes, what it can be stored as."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import retries

from trio_gokugen import Discard, InvalidTaskError, Retry, Snooze, exponential, fixed
from trio_gokugen._retry import retry_from_data, wish

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)
LONGEST = timedelta(days=36_525)
WEST = timezone(timedelta(hours=-5))


def waits(retry: Retry, number: int = 6) -> list[float]:
    return [retry.delay("t1", failed).total_seconds() for failed in range(1, number + 1)]


def test_exponential_waits_double_up_to_the_longest() -> None:
    """
    Each wait is so many times as long as the one before, and none longer than said.
    """
    assert waits(Retry(wait=exponential())) == [1, 2, 4, 8, 16, 32]
    bounded = exponential(0.5, factor=3, longest=10)
    assert waits(Retry(wait=bounded)) == [0.5, 1.5, 4.5, 10, 10, 10]
    assert waits(Retry(wait=exponential(7, factor=1)), 2) == [7, 7]


def test_fixed_waits_are_alike() -> None:
    """
    A fixed wait is the same each time, as seconds or as a length of time.
    """
    assert waits(Retry(wait=fixed(1.5)), 3) == [1.5, 1.5, 1.5]
    assert fixed(timedelta(seconds=2)) == fixed(2)


def test_a_function_says_how_long() -> None:
    """
    A function of how many attempts have failed says how long to wait.
    """
    assert waits(Retry(wait=lambda failed: failed * 10), 3) == [10, 20, 30]
    assert waits(Retry(wait=lambda failed: timedelta(minutes=failed)), 2) == [60, 120]


@given(
    st.floats(1, 1e300) | st.integers(1, 10**400),
    st.timedeltas(timedelta(0), LONGEST),
    st.integers(1, 2**63 - 1),
)
def test_no_wait_is_too_long(factor: float, first: timedelta, failed: int) -> None:
    """
    However often a task has failed, its wait is a length of time, and within bounds.
    """
    retry = Retry(None, wait=exponential(first, factor=factor, longest=LONGEST), jitter=9)
    assert timedelta(0) <= retry.delay("t", failed) <= LONGEST


@given(st.text(max_size=8), st.integers(1, 9))
def test_jitter_is_a_part_and_the_same(task_id: str, failed: int) -> None:
    """
    Jitter makes a wait longer by less than it is, the same for the same attempt.
    """
    retry = Retry(wait=fixed(10), jitter=3)
    delay = retry.delay(task_id, failed)
    assert timedelta(seconds=10) <= delay < timedelta(seconds=13)
    assert delay == retry.delay(task_id, failed)


def test_jitter_spreads_tasks() -> None:
    """
    Tasks that have failed together come back one by one, over all of the jitter.
    """
    retry = Retry(wait=fixed(0), jitter=10)
    delays = sorted(retry.delay(f"t{n}", 1).total_seconds() for n in range(1_000))
    assert len(set(delays)) == 1_000
    assert all(abs(delays[n] - n / 100) < 1 for n in range(1_000))


def anything(value: Any) -> Any:
    """What type checkers would refuse here."""
    return value


class OwnError(ValueError):
    pass


@pytest.mark.parametrize(
    ("retry_on", "error", "wanted"),
    [
        pytest.param(Exception, OwnError(), True, id="a base class"),
        pytest.param(Exception, KeyboardInterrupt(), False, id="no exception"),
        pytest.param(OSError, ConnectionError(), True, id="a class"),
        pytest.param(OSError, OwnError(), False, id="another class"),
        pytest.param((OSError, OwnError), OwnError(), True, id="one of two"),
        pytest.param([OSError, OwnError], OwnError(), True, id="one of a list"),
        pytest.param(
            OSError, ExceptionGroup("", [OSError(), ConnectionError()]), True, id="a group"
        ),
        pytest.param(
            OSError, ExceptionGroup("", [OSError(), OwnError()]), False, id="a mixed group"
        ),
        pytest.param(lambda e: "now" in str(e), OwnError("not now"), True, id="a function"),
        pytest.param(
            lambda e: "now" in str(e), OwnError("never"), False, id="which says no"
        ),
    ],
)
def test_errors_are_told_apart(
    retry_on: Any,
    error: BaseException,
    wanted: bool,
) -> None:
    """
    An error is worth another attempt if it is of a class that was named, or said so.
    """
    assert Retry(retry_on=retry_on).wants(error) is wanted


def test_what_is_stored_tells_the_same_errors_apart() -> None:
    """
    A policy that was stored and read knows the classes that it was made with.
    """
    retry = retry_from_data(Retry(retry_on=(OwnError, KeyError)).to_data())
    assert retry.wants(OwnError())
    assert retry.wants(KeyError())
    assert not retry.wants(ValueError())


@given(retries)
def test_a_policy_goes_into_json_and_back(retry: Retry) -> None:
    """
    A policy without functions of one's own is the same after it was stored.
    """
    assert retry_from_data(retry.to_data()) == retry


@pytest.mark.parametrize(
    ("make", "field"),
    [
        pytest.param(lambda: Retry(0), "max_attempts", id="no attempt"),
        pytest.param(lambda: Retry(anything(1.5)), "max_attempts", id="half an attempt"),
        pytest.param(lambda: Retry(True), "max_attempts", id="a truth"),
        pytest.param(lambda: Retry(wait=3), "wait", id="a number to wait"),
        pytest.param(lambda: Retry(wait=timedelta), "wait", id="a class to wait"),
        pytest.param(lambda: Retry(jitter=-1), "jitter", id="negative jitter"),
        pytest.param(lambda: Retry(jitter=anything("1")), "jitter", id="text as jitter"),
        pytest.param(lambda: Retry(retry_on=int), "retry_on", id="no class of errors"),
        pytest.param(lambda: Retry(retry_on=()), "retry_on", id="nothing"),
        pytest.param(lambda: Retry(retry_on="ValueError"), "retry_on", id="a short name"),
        pytest.param(lambda: Retry(retry_on=(OSError, 3)), "retry_on", id="a number"),
        pytest.param(lambda: fixed(-1), "seconds", id="negative wait"),
        pytest.param(lambda: fixed(float("nan")), "seconds", id="nan"),
        pytest.param(lambda: fixed(LONGEST * 2), "seconds", id="too long"),
        pytest.param(lambda: exponential(-1), "first", id="negative first"),
        pytest.param(lambda: exponential(factor=0.5), "factor", id="shorter and shorter"),
        pytest.param(lambda: exponential(factor=float("nan")), "factor", id="nan factor"),
        pytest.param(
            lambda: exponential(factor=anything("2")), "factor", id="text as factor"
        ),
        pytest.param(lambda: exponential(longest=-1), "longest", id="negative longest"),
        pytest.param(lambda: Retry.after(-1), "seconds", id="after a negative time"),
        pytest.param(Snooze, "after", id="snooze for nothing"),
        pytest.param(lambda: Snooze(1, at=NOON), "after", id="snooze twice"),
        pytest.param(lambda: Snooze(-1), "after", id="snooze backwards"),
        pytest.param(
            lambda: Snooze(at=NOON.replace(tzinfo=None)), "at", id="snooze until noon"
        ),
        pytest.param(
            lambda: Snooze(at=datetime.max.replace(tzinfo=WEST)), "at", id="snooze too far"
        ),
    ],
)
def test_bad_values_are_refused(make: Any, field: str) -> None:
    """
    What cannot be used is refused as it is made, by an error that names the argument.
    """
    with pytest.raises(InvalidTaskError) as caught:
        make()
    assert caught.value.field == field


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"max_attempts": 1, "wait": 3, "jitter": 0, "retry_on": []},
        {"max_attempts": 1, "wait": {"kind": "odd"}, "jitter": 0, "retry_on": []},
        {"max_attempts": 0, "wait": {"kind": "fixed", "seconds": 1}, "jitter": 0},
        {
            "max_attempts": 1,
            "wait": {"kind": "fixed", "secs": 1},
            "jitter": 0,
            "retry_on": [],
        },
        {
            "max_attempts": 1,
            "wait": {"kind": "fixed", "seconds": 1},
            "jitter": 0,
            "retry_on": "builtins.OSError",
        },
    ],
    ids=["nothing", "number", "odd kind", "missing", "unknown", "no list"],
)
def test_damaged_data_is_refused(data: Any) -> None:
    """
    What is no policy is refused when it is read.
    """
    with pytest.raises(InvalidTaskError):
        retry_from_data(data)


@pytest.mark.parametrize(
    "error",
    [Snooze(3), Snooze(at=NOON), Discard("why"), Retry.after(3)],
    ids=["snooze", "snooze until", "discard", "retry after"],
)
def test_wishes_survive_pickling(error: Any) -> None:
    """
    What a work raises on purpose may come from another process.
    """
    back = pickle.loads(pickle.dumps(error))  # noqa: S301 (our own)
    assert type(back) is type(error)
    assert back.args == error.args
    assert vars(back) == vars(error)


def test_a_wish_is_found_in_nurseries() -> None:
    """
    What is raised on purpose within nurseries is found, if nothing else was raised there.
    """
    snooze = Snooze(1)
    alone = ExceptionGroup("outer", [ExceptionGroup("inner", [snooze])])
    assert wish(snooze) is snooze
    assert wish(alone) is snooze
    assert wish(ExceptionGroup("two", [snooze, ValueError()])) is None
    assert wish(ValueError()) is None


def test_wishes_say_what_they_are() -> None:
    """
    As text, they say for how long, or until when.
    """
    assert str(Snooze(90)) == "for 0:01:30"
    assert str(Snooze(at=NOON)) == f"until {NOON.isoformat()}"
