"""What is done to tasks as they are added."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from support import NOON, at, noon, open_bench
from trio.testing import MockClock

from trio_gokugen import (
    InvalidTaskError,
    TaskParam,
    TaskState,
    WorkNotFoundError,
    randomised,
    run_now,
)

TICK = timedelta(microseconds=1)


# -- at random ------------------------------------------------------------------------


@given(
    earlier=st.floats(0, 1e6),
    later=st.floats(0, 1e6),
    deadline=st.none() | st.floats(1e-6, 1e6),
    seed=st.integers(),
)
def test_a_moment_within_the_range(
    earlier: float, later: float, deadline: float | None, seed: int
) -> None:
    """
    A random moment is within its range and before the deadline, and nothing else changes.
    """
    end = None if deadline is None else max(noon(deadline), NOON + TICK)
    before = at(0, "t", param={"a": 1}, meta={"b": 2}, priority=3, deadline=end)
    mutate = randomised(random=random.Random(seed), earlier=earlier, later=later)
    after = mutate(before, noon(-5))
    assert noon(-earlier) <= after.scheduled_at <= noon(later)
    assert end is None or after.scheduled_at < end
    assert attrs.evolve(after, scheduled_at=NOON) == before
    again = randomised(random=random.Random(seed), earlier=earlier, later=later)
    assert again(before, NOON) == after


def test_every_moment_of_the_range_is_as_likely() -> None:
    """
    Each moment of the range comes, both its ends too, and none more often than others.
    """
    mutate = randomised(
        random=random.Random(1), earlier=timedelta(microseconds=1), later=2e-6
    )
    found = [(mutate(at(0, "t"), NOON).scheduled_at - NOON) // TICK for _ in range(4_000)]
    assert {each: 900 < found.count(each) < 1_100 for each in set(found)} == {
        -1: True,
        0: True,
        1: True,
        2: True,
    }


def test_no_range() -> None:
    """
    Of a range that is nothing, nothing changes.
    """
    mutate = randomised(random=random.Random())
    assert mutate(at(7, "t"), NOON) == at(7, "t")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"earlier": -1}, "earlier"),
        ({"later": timedelta(-1)}, "later"),
        ({"later": float("nan")}, "later"),
        ({"later": float("inf")}, "later"),
        ({"earlier": "1h"}, "earlier"),
        ({"earlier": True}, "earlier"),
        ({"later": timedelta(days=40_000)}, "later"),
        ({"random": random}, "random"),
        ({"random": None}, "random"),
    ],
    ids=str,
)
def test_a_bad_range(arguments: dict[str, Any], field: str) -> None:
    """
    A range that cannot be used is refused as it is made, by the name of the argument.
    """
    with pytest.raises(InvalidTaskError) as caught:
        given: dict[str, Any] = {"random": random.Random(), **arguments}
        randomised(**given)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("moment", "arguments"),
    [
        (datetime(1, 1, 1, tzinfo=UTC), {"earlier": 1}),
        (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), {"later": 2}),
    ],
    ids=["first", "last"],
)
def test_a_range_beyond_all_years(moment: datetime, arguments: dict[str, Any]) -> None:
    """
    A range that leads beyond the years there are is refused, whatever chance says.
    """
    mutate = randomised(random=random.Random(), **arguments)
    with pytest.raises(InvalidTaskError) as caught:
        mutate(TaskParam(work_id="w", scheduled_at=moment), NOON)
    assert caught.value.field == "scheduled_at"


# -- now ------------------------------------------------------------------------------


async def test_what_is_told_to_run_now_runs_now(autojump_clock: MockClock) -> None:
    """
    Tasks of any time, past and to come, run at the moment they are added.
    """
    async with open_bench() as (scheduler, bench):
        await trio.sleep(7)
        params = [at(1e6, "late"), at(-50, "early")]
        tasks = await scheduler.add_tasks(params, mutate=run_now)
        assert [task.scheduled_at for task in tasks] == [noon(7), noon(7)]
        one = await scheduler.add_task("note", at=noon(900), id="one", mutate=run_now)
        assert one.scheduled_at == noon(7)
        await scheduler.drain()
    assert sorted(bench.starts) == [("early", 7.0), ("late", 7.0), ("one", 7.0)]
    assert params == [at(1e6, "late"), at(-50, "early")]


async def test_now_is_after_the_deadline(autojump_clock: MockClock) -> None:
    """
    A task whose deadline has passed cannot run now: all are refused, by the index of it.
    """
    async with open_bench() as (scheduler, _):
        await trio.sleep(7)
        with pytest.raises(InvalidTaskError) as caught:
            await scheduler.add_tasks(
                [at(100, "a"), at(5, "b", deadline=noon(7))], mutate=run_now
            )
        assert (caught.value.field, caught.value.index) == ("deadline", 1)
        assert await scheduler.find() == []


# -- a scheduler with mutators --------------------------------------------------------


async def test_many_at_random(autojump_clock: MockClock) -> None:
    """
    Of tasks that were to run at once, each runs at a moment of its own, as it was stored.
    """
    mutate = randomised(random=random.Random(1), later=60)
    async with open_bench() as (scheduler, bench):
        tasks = await scheduler.add_tasks(
            [at(10, f"t{n}") for n in range(5)], mutate=mutate
        )
        one = await scheduler.add_task("note", after=10, id="one", mutate=mutate)
        await scheduler.drain()
        moments = {task.id: task.scheduled_at for task in [*tasks, one]}
        assert len(set(moments.values())) == 6
        assert all(noon(10) <= moment <= noon(70) for moment in moments.values())
    assert bench.ids() == sorted(moments, key=lambda task_id: moments[task_id])


async def test_a_mutator_of_your_own(autojump_clock: MockClock) -> None:
    """
    Any function of a task and the moment is a mutator; what it makes is checked.
    """

    def urgent(param: TaskParam, now: datetime) -> TaskParam:
        assert now == noon(3)
        return attrs.evolve(param, priority=9, meta={"at": now.isoformat()})

    def unknown(param: TaskParam, now: datetime) -> TaskParam:
        return attrs.evolve(param, work_id="nobody's")

    def nothing(param: TaskParam, now: datetime) -> Any:
        return None

    def broken(param: TaskParam, now: datetime) -> Any:
        raise ZeroDivisionError

    async with open_bench() as (scheduler, _):
        await trio.sleep(3)
        task = await scheduler.add_task("note", after=0, mutate=urgent)
        assert (task.priority, task.meta) == (9, {"at": "2030-06-01T12:00:03+00:00"})
        assert (await scheduler.wait(task.id)).state is TaskState.DONE
        with pytest.raises(WorkNotFoundError):
            await scheduler.add_task("note", after=0, mutate=unknown)
        with pytest.raises(WorkNotFoundError) as not_found:
            await scheduler.add_tasks([at(0, "a")], mutate=unknown)
        assert not_found.value.index == 0
        with pytest.raises(ZeroDivisionError):
            await scheduler.add_tasks([at(0, "a")], mutate=broken)
        with pytest.raises(InvalidTaskError, match="task 0: mutate: must return a TaskPar"):
            await scheduler.add_tasks([at(0, "a")], mutate=nothing)
        not_a_function: Any = 7
        with pytest.raises(InvalidTaskError, match="mutate: must be a function, not 7"):
            await scheduler.add_task("note", after=0, mutate=not_a_function)
        assert len(await scheduler.find()) == 1
