"""The suite for repositories: right ones pass, and whatever is wrong is found."""

from __future__ import annotations

import math
import traceback
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import broken_order
import broken_rare
import broken_schedules
import broken_steps
import broken_stores
import broken_timers
import outcome
import pytest
import trio
import trio.testing
from broken import BROKEN
from stores import ListStore, SlowlyReadStore, ThreadedStore

from trio_gokugen import HeapRepository, Task, TimedRepository
from trio_gokugen._heap_repository import HeapStore
from trio_gokugen.abc import Added, IfExists, Operation, TaskRepository
from trio_gokugen.testing import REPOSITORY_CHECKS, FaultyRepository, check_repository

LISTED = (
    broken_order,
    broken_rare,
    broken_schedules,
    broken_steps,
    broken_stores,
    broken_timers,
)
"""To be imported is what they are there for."""

# -- right ones -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        HeapRepository,
        pytest.param(lambda: TimedRepository(ListStore()), marks=pytest.mark.uncovered),
        pytest.param(lambda: TimedRepository(ThreadedStore()), marks=pytest.mark.uncovered),
        pytest.param(
            lambda: TimedRepository(SlowlyReadStore()), marks=pytest.mark.uncovered
        ),
        lambda: FaultyRepository(HeapRepository()),
    ],
    ids=["heap", "list", "threads", "slow", "faultless"],
)
async def test_a_right_one_passes(
    autojump_clock: trio.testing.MockClock, make: Callable[[], TaskRepository]
) -> None:
    """
    A repository that keeps its promises passes the whole suite, on virtual time.
    """
    await check_repository(make)


async def test_it_may_be_given_context_managers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Each check has a fresh repository, which is closed after it.
    """
    opened: list[TaskRepository] = []
    closed: list[TaskRepository] = []

    @asynccontextmanager
    async def open_repository() -> AsyncGenerator[HeapRepository]:
        repository = HeapRepository()
        opened.append(repository)
        yield repository
        closed.append(repository)

    await check_repository(open_repository, only=REPOSITORY_CHECKS[:5])
    assert closed == opened
    assert len(opened) == 5


@pytest.mark.parametrize("threshold", [None, math.inf])
def test_it_needs_no_mock_clock(threshold: float | None) -> None:
    """
    In a Trio run whose clock doesn't jump, the suite runs on one that does.
    """
    clocks: list[trio.abc.Clock] = []

    def make() -> HeapRepository:
        clocks.append(trio.lowlevel.current_clock())
        return HeapRepository()

    async def main() -> None:
        await check_repository(make, only=["the_timer_tells_on_time"])
        with pytest.raises(AssertionError, match="get_refuses_an_unknown_id"):
            await check_repository(
                lambda: TimedRepository(broken_stores.RaisesKeyErrors()),
                only=["get_refuses_an_unknown_id"],
            )

    clock = None
    if threshold is not None:
        clock = trio.testing.MockClock(autojump_threshold=threshold)
    trio.run(main, clock=clock)
    [used] = clocks
    assert isinstance(used, trio.testing.MockClock)
    assert used is not clock


class UnhurriedStore(HeapStore):
    """Carries out what it has begun, whoever is cancelled meanwhile."""

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        outcomes: list[outcome.Outcome[Any]] = []
        with trio.CancelScope(shield=True):
            outcomes += await super().apply(operations)
        return outcomes


async def test_a_change_may_be_made_though_it_was_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A cancelled call that has taken effect, and returns, is right, too.
    """
    await check_repository(
        lambda: TimedRepository(UnhurriedStore()),
        only=["a_cancelled_change_can_be_repeated"],
    )


# -- wrong ones -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "make"), BROKEN, ids=[f"{make.__name__}-{name}" for name, make in BROKEN]
)
async def test_a_broken_promise_is_named(
    autojump_clock: trio.testing.MockClock,
    name: str,
    make: Callable[[], TaskRepository],
) -> None:
    """
    A repository that breaks a promise fails the check of this promise.
    """
    with pytest.raises(AssertionError, match=f"1 of 1 promises .*\n- {name}: "):
        await check_repository(make, only=[name])


def test_every_check_can_fail() -> None:
    """
    For every check there is a repository that it finds broken.
    """
    assert set(REPOSITORY_CHECKS) - {name for name, _ in BROKEN} == set()


async def test_all_that_is_broken_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    One error names all broken promises, says what they are and how they are broken.
    """
    with pytest.raises(AssertionError) as caught:
        await check_repository(lambda: TimedRepository(broken_order.OldestById()))

    lines = str(caught.value).split("\n")
    assert lines[0].startswith("check_repository: ")
    assert lines[0].endswith(f" of {len(REPOSITORY_CHECKS)} promises are broken")
    assert (
        "- then_the_oldest: Among equals the one added first is next, whatever its id and"
        " `created_at`. (the next task by get_next: 'a', where 'z' is right)"
    ) in lines
    shown = "".join(traceback.format_exception(caught.value))
    assert "in _expect_order" in shown
    assert f"broken promises ({len(lines) - 1} sub-exceptions)" in shown


async def test_a_part_that_differs_is_shown(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Of two big values only the part is shown in which they differ.
    """
    with pytest.raises(AssertionError) as caught:
        await check_repository(
            lambda: TimedRepository(broken_stores.KeepsMilliseconds()),
            only=["moments_are_kept_exactly"],
        )
    assert "a task, as it is kept.scheduled_at: datetime" in str(caught.value)

    with pytest.raises(AssertionError, match=r"json_is_.*\.\.\., where .*\.\.\. is right"):
        await check_repository(
            lambda: TimedRepository(broken_stores.MakesIntegersOfFloats()),
            only=["json_is_kept_losslessly"],
        )


async def test_errors_of_the_repository_are_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Whatever a repository raises breaks the promise, out of a nursery as well.
    """

    class Failing(HeapRepository):
        async def add(self, tasks: Sequence[Task], if_exists: IfExists = "raise") -> Added:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.fail, "one")
                nursery.start_soon(self.fail, "two")
            return Added(tasks, (), tasks)

        async def fail(self, message: str) -> None:
            raise OSError(message)

    with pytest.raises(AssertionError) as caught:
        await check_repository(Failing, only=["cancel_ends_the_task"])
    for message in ("one", "two"):
        assert f"It raised OSError: {message}" in str(caught.value)


async def test_a_repository_that_hangs_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A check that doesn't come to an end fails, and the suite goes on.
    """

    class Hanging(HeapRepository):
        async def get(self, task_id: str) -> Task:
            await trio.sleep_forever()
            raise AssertionError

    with pytest.raises(AssertionError) as caught:
        await check_repository(Hanging, only=["cancel_ends_the_task", "then_the_oldest"])
    assert str(caught.value) == (
        "check_repository: 1 of 2 promises are broken\n- cancel_ends_the_task: Cancelling"
        " makes the task cancelled at that moment, and nothing else. (It hangs.)"
    )


async def test_what_is_no_exception_ends_the_suite(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A cancellation of the suite, or a `KeyboardInterrupt`, is not taken for a failure.
    """
    with trio.move_on_after(0) as scope:
        await check_repository(HeapRepository)
    assert scope.cancelled_caught

    class Interrupted(HeapRepository):
        async def get(self, task_id: str) -> Task:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await check_repository(Interrupted, only=["cancel_ends_the_task"])


# -- which checks ---------------------------------------------------------------------


async def test_checks_can_be_chosen(autojump_clock: trio.testing.MockClock) -> None:
    """
    Only the checks named run, without those that are to be skipped.
    """
    names = ["get_refuses_an_unknown_id", "every_change_refuses_an_unknown_id"]

    def make() -> TaskRepository:
        return TimedRepository(broken_stores.RaisesKeyErrors())

    with pytest.raises(AssertionError, match="2 of 2"):
        await check_repository(make, only=names)
    with pytest.raises(AssertionError, match="1 of 1"):
        await check_repository(make, only=names, skip=names[:1])
    await check_repository(make, only=names, skip=names)
    await check_repository(make, only=[])
    await check_repository(make, skip=REPOSITORY_CHECKS)


async def test_a_wrong_choice_is_refused() -> None:
    """
    A name that is not a check's is an error, as is a string for a collection of names.
    """
    with pytest.raises(ValueError, match="only: there is no check 'add'; there are add_"):
        await check_repository(HeapRepository, only=["add"])
    with pytest.raises(ValueError, match="skip: there is no check 'x'"):
        await check_repository(HeapRepository, skip=["x"])
    for choice in ({"only": "add"}, {"skip": "add"}):
        with pytest.raises(TypeError, match="must be a collection of names, not one"):
            await check_repository(HeapRepository, **choice)
