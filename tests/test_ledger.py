"""What a scheduler keeps in mind of the runs that are under way."""

from __future__ import annotations

import math
from collections.abc import Callable

import attrs
import pytest
import trio.testing
from support import noon, stored

from trio_gokugen import Task, TaskState
from trio_gokugen._ledger import Ledger


def same(run: Task) -> Task:
    """The run itself."""
    return run


def copied(run: Task) -> Task:
    """Another object for the same run, as somebody's dispatcher may give back."""
    return attrs.evolve(run)


@pytest.mark.parametrize("given_back", [same, copied])
def test_results_that_come_in(given_back: Callable[[Task], Task]) -> None:
    """
    Each run is waited for until its own result has come in, and no other's: be it one of
    several attempts at a task, or told twice.
    """
    ledger = Ledger()
    first, second, third, other = (
        *(stored("a", attempt=attempt) for attempt in (1, 2, 3)),
        stored("b", attempt=1),
    )
    for run in first, second, third, other:
        ledger.claimed([run], 0.0)  # each attempt has lost its task to the next

    def reported(run: Task) -> list[Task]:
        ledger.reported(given_back(run))
        return list(ledger.unreported.values())

    assert reported(second) == [first, third, other]
    assert reported(second) == [first, third, other]
    assert reported(third) == [first, other]
    assert reported(third) == [first, other]
    assert reported(first) == [other]
    ledger.lost(other)
    assert reported(other) == []
    assert reported(other) == []


@pytest.mark.parametrize("given_back", [same, copied])
def test_runs_that_cannot_be_told_apart(given_back: Callable[[Task], Task]) -> None:
    """
    Each of two runs is waited for, though a mock clock has shown the same moment when the
    id of the first was used again.
    """
    ledger = Ledger()
    first, again = stored("a", attempt=1), stored("a", attempt=1)
    for run in first, again:
        ledger.claimed([run], 0.0)
    ledger.reported(given_back(first))
    assert len(ledger.unreported) == 1
    ledger.reported(given_back(again))
    assert not ledger.unreported


@pytest.mark.parametrize("given_back", [same, copied])
def test_runs_that_are_over(given_back: Callable[[Task], Task]) -> None:
    """
    A run is under way until its own result is in the store, or lost: that of an earlier
    attempt at its task does not end it.
    """
    ledger = Ledger()
    first, second = (stored("a", attempt=attempt) for attempt in (1, 2))
    for run in first, second:
        ledger.claimed([run], 0.0)
    ledger.lost(given_back(first))
    assert ledger.runs == {"a": second}
    ended = attrs.evolve(second, state=TaskState.DONE, done_at=noon(1))
    ledger.recorded(given_back(second), ended)
    assert not ledger.runs
    assert (ledger.done, ledger.held_since) == (1, math.inf)


async def test_the_last_result_wakes_who_waits() -> None:
    """
    Who waits until no result is missing goes on with the last, before that is written.
    """
    ledger = Ledger()
    runs = [stored(each) for each in "ab"]
    ledger.claimed(runs, 0.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ledger.wait_until, lambda: not ledger.unreported)
        await trio.testing.wait_all_tasks_blocked()
        for run in runs:
            assert nursery.child_tasks
            ledger.reported(run)
            await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
