"""Checks: many callers at once get answers that fit together."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import outcome
import trio

from trio_gokugen._errors import RefusedError, TaskExistsError
from trio_gokugen._task import Task, TaskState, TaskUpdate
from trio_gokugen.abc import AddTasks, TaskRepository

from ._expect import expect, expect_equal
from ._repository_kit import EPOCH, RepositoryChecks, contents, moment, new

checks = RepositoryChecks()


_ROUNDS = 100
_MOST_STEPS = 5


async def _all_at_once(
    chance: random.Random, *calls: Callable[[], Awaitable[Any]]
) -> list[outcome.Outcome[Any]]:
    """The outcomes of calls made by as many Trio tasks, in the order of the calls.

    Some start a few steps later than others, so that by and by each step of one falls
    between any two of another.
    """
    outcomes: dict[int, outcome.Outcome[Any]] = {}

    async def make(number: int, call: Callable[[], Awaitable[Any]]) -> None:
        for _ in range(chance.randrange(_MOST_STEPS)):
            await trio.lowlevel.checkpoint()
        outcomes[number] = await outcome.acapture(call)

    async with trio.open_nursery() as nursery:
        for number, call in enumerate(calls):
            nursery.start_soon(make, number, call)
    return [outcomes[number] for number in range(len(calls))]


def _errors(outcomes: list[outcome.Outcome[Any]]) -> list[BaseException]:
    return [each.error for each in outcomes if isinstance(each, outcome.Error)]


@checks
async def each_task_is_claimed_once(repository: TaskRepository) -> None:
    """However many claim at once, each due task goes to one of them."""
    ids = [f"t{n}" for n in range(60)]
    await repository.add([new(task_id) for task_id in ids])
    runs: list[Task] = []

    async def claim_all(limit: int) -> None:
        while tasks := (await repository.claim(limit, EPOCH)).tasks:
            runs.extend(tasks)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(claim_all, 1 + number % 3)
    taken = Counter(run.id for run in runs)
    expect_equal("how often each task was claimed", taken, Counter(ids))
    expect_equal("the attempts", {run.attempt for run in runs}, {1})


@checks
async def a_task_is_dispatched_or_cancelled(repository: TaskRepository) -> None:
    """When a task is dispatched, claimed and cancelled at once, one of them succeeds."""
    chance = random.Random(1)
    for number in range(_ROUNDS):
        task_id = f"t{number}"
        await repository.add([new(task_id)])
        cancel, dispatch, claim = await _all_at_once(
            chance,
            partial(repository.cancel, task_id, EPOCH),
            partial(repository.mark_dispatched, task_id, EPOCH),
            partial(repository.claim, 1, EPOCH),
        )
        winners = [
            name
            for name, succeeded in (
                ("cancel", isinstance(cancel, outcome.Value)),
                ("mark_dispatched", isinstance(dispatch, outcome.Value)),
                ("claim", claim.unwrap().tasks),
            )
            if succeeded
        ]
        expect(len(winners) == 1, f"who succeeded: {winners}")
        expect_equal(
            f"the state, after {winners}",
            (await repository.get(task_id)).state,
            TaskState.CANCELLED if winners == ["cancel"] else TaskState.DISPATCHED,
        )


@checks
async def a_task_is_claimed_or_postponed(repository: TaskRepository) -> None:
    """When a task is claimed and postponed at once, it runs now or later, not both."""
    later = TaskUpdate(scheduled_at=moment(50))
    chance = random.Random(1)
    for number in range(_ROUNDS):
        task_id = f"t{number}"
        await repository.add([new(task_id)])
        update, claim = await _all_at_once(
            chance,
            partial(repository.update, task_id, later),
            partial(repository.claim, 1, EPOCH),
        )
        claimed = bool(claim.unwrap().tasks)
        updated = isinstance(update, outcome.Value)
        expect_equal("whether it was postponed as well", updated, not claimed)
        task = await repository.get(task_id)
        at = EPOCH if claimed else later.scheduled_at
        expect_equal("when it is scheduled", task.scheduled_at, at)


@checks
async def a_run_ends_once(repository: TaskRepository) -> None:
    """When several end the same run at once, one of them does, and the others hear it."""
    await repository.add([new(f"t{n}") for n in range(_ROUNDS)])
    chance = random.Random(1)
    for run in (await repository.claim(_ROUNDS, EPOCH)).tasks:
        outcomes = await _all_at_once(
            chance,
            partial(repository.mark_done, run, moment(1)),
            partial(repository.mark_done, run, moment(1), "no luck"),
            partial(repository.mark_cancelled, run, moment(1)),
            partial(repository.revert, run),
        )
        errors = _errors(outcomes)
        expect_equal(f"how many were refused: {outcomes}", len(errors), 3)
        for error in errors:
            expect(isinstance(error, RefusedError), f"it was refused by {error!r}")
        [winner] = [each.value for each in outcomes if isinstance(each, outcome.Value)]
        expect_equal("the task", await repository.get(run.id), winner)


@checks
async def an_id_is_added_once(repository: TaskRepository) -> None:
    """When several add tasks of the same ids at once, one add keeps all, the rest none."""
    outcomes = await _all_at_once(
        random.Random(1),
        *[
            partial(repository.add, [new(name, priority=n) for name in ("a", f"{n}", "b")])
            for n in range(8)
        ],
    )
    errors = _errors(outcomes)
    expect_equal("how many were refused", len(errors), 7)
    for error in errors:
        expect(isinstance(error, TaskExistsError), f"it was refused by {error!r}")
    number = [isinstance(each, outcome.Value) for each in outcomes].index(True)
    tasks = {task.id: task for task in (await contents(repository)).tasks}
    expect_equal("the ids kept", set(tasks), {"a", f"{number}", "b"})
    priorities = {tasks["a"].priority, tasks["b"].priority}
    expect_equal("the priorities kept", priorities, {number})


@checks
async def no_change_is_lost(repository: TaskRepository) -> None:
    """Changes of many callers, in batches and not, all take effect."""
    await repository.add([new("shared")])

    async def add(number: int) -> None:
        await repository.add([new(f"one {number}")])
        await repository.apply(
            [AddTasks([new(f"two {number}")]), AddTasks([new(f"three {number}")])]
        )
        await repository.update("shared", TaskUpdate(priority=number))
        await repository.cancel(f"two {number}", EPOCH)

    async with trio.open_nursery() as nursery:
        for number in range(1, 13):
            nursery.start_soon(add, number)
    tasks = (await contents(repository)).tasks
    expect_equal("how many tasks there are", len(tasks), 37)
    cancelled = [task for task in tasks if task.state is TaskState.CANCELLED]
    expect_equal("how many are cancelled", len(cancelled), 12)
    expect_equal("pending tasks", dict(await repository.count_pending()), {"work": 25})
