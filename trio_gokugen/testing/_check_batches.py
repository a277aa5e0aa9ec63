"""Checks: a batch of operations does what the operations do one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
import outcome

from trio_gokugen._errors import (
    AlreadyDispatchedError,
    InvalidTaskError,
    LostRunError,
    TaskExistsError,
    TaskNotFoundError,
)
from trio_gokugen._task import Task, TaskState, TaskUpdate
from trio_gokugen.abc import (
    AddTasks,
    CancelRun,
    CancelTask,
    ClaimTasks,
    DeleteEnded,
    DispatchTask,
    EndTask,
    Operation,
    RevertTask,
    TaskFilter,
    TaskRepository,
    UpdateTask,
)

from ._expect import expect_equal, expect_error
from ._repository_kit import (
    EPOCH,
    OpenRepository,
    RepositoryChecks,
    add_dispatched,
    contents,
    expect_kept,
    moment,
    new,
    unchanged,
)
from ._walk import Walk, comparable_error, comparable_tasks

checks = RepositoryChecks()

_LONG = 400
"""Steps of a history."""


def _comparable(result: outcome.Outcome[Any]) -> object:
    """What two outcomes of the same operation must agree in."""
    if isinstance(result, outcome.Error):
        return comparable_error(result.error)
    return result


async def _one_by_one(
    repository: TaskRepository, operations: Sequence[Operation]
) -> list[outcome.Outcome[Any]]:
    return [await outcome.acapture(each.carry_out, repository) for each in operations]


async def _runs(repository: TaskRepository) -> dict[str, Task]:
    """Runs of tasks a, b, c, d; and z, which has lost its task."""
    runs = {name: await add_dispatched(repository, name) for name in "abcdz"}
    await repository.revert(runs["z"])
    await repository.mark_dispatched("z", moment(1))
    return runs


def _operations(runs: dict[str, Task]) -> list[Operation]:
    """Every kind of operation, carried out and refused; the last ones need the first."""
    at = moment(5)
    return [
        AddTasks([new("e", 3), new("f", 4, deadline=moment(4.5)), new("g", 90)]),
        AddTasks([new("h"), new("a")]),
        UpdateTask("e", TaskUpdate(priority=4, param={"b": 1})),
        UpdateTask("e", TaskUpdate(priority=4)),
        UpdateTask("a", TaskUpdate(priority=4)),
        UpdateTask("g", TaskUpdate(deadline=moment(80))),
        AddTasks([new("i", 2), new("j", 2), new("k", 2, work_id="other")]),
        CancelTask("i", at),
        CancelTask("i", at),
        CancelTask("b", at),
        CancelTask("unknown", at),
        DispatchTask("g", at),
        DispatchTask("j", at),
        DispatchTask("j", at),
        ClaimTasks(9, at, TaskFilter(frozenset({"other"}))),
        EndTask(runs["a"], at),
        EndTask(runs["a"], at),
        EndTask(runs["b"], at, "no luck"),
        EndTask(runs["z"], at),
        RevertTask(runs["c"]),
        RevertTask(runs["c"]),
        CancelRun(runs["d"], at),
        CancelRun(runs["z"], at),
        ClaimTasks(9, moment(6)),
        DeleteEnded(states={TaskState.DONE}),
        DeleteEnded(limit=0),
    ]


@checks.of_several
async def a_batch_equals_single_steps(open_repository: OpenRepository) -> None:
    """A batch gives the outcomes that its operations would have had one by one."""
    async with open_repository() as in_bulk, open_repository() as in_steps:
        outcomes = await in_bulk.apply(_operations(await _runs(in_bulk)))
        expected = await _one_by_one(in_steps, _operations(await _runs(in_steps)))
        operations = _operations(await _runs_of(in_steps))
        expect_equal("the number of outcomes", len(outcomes), len(expected))
        for operation, one, other in zip(operations, outcomes, expected, strict=True):
            expect_equal(
                f"the outcome of {operation}", _comparable(one), _comparable(other)
            )
        in_the_end = await contents(in_steps)
        expect_equal("in the end", await contents(in_bulk), in_the_end)


async def _runs_of(repository: TaskRepository) -> dict[str, Task]:
    """Stand-ins, to show an operation in a message."""
    task = await repository.get("z")
    return {name: attrs.evolve(task, id=name) for name in "abcdz"}


@checks
async def a_refusal_harms_no_other(repository: TaskRepository) -> None:
    """A refused operation in the middle changes nothing, and the others take effect."""
    run = await add_dispatched(repository, "a")
    lost = attrs.evolve(run, attempt=7)
    task = new("b", 3)
    outcomes = await repository.apply(
        [
            AddTasks([task]),
            AddTasks([new("c"), new("a")]),
            UpdateTask("b", TaskUpdate(deadline=moment(1))),
            EndTask(lost, moment(5)),
            UpdateTask("a", TaskUpdate(priority=1)),
            CancelTask("unknown", moment(5)),
            EndTask(run, moment(5)),
        ]
    )
    expect_equal("the number of outcomes", len(outcomes), 7)
    expect_equal("what an add returns", [*outcomes[0].unwrap().new], [task])
    errors = [getattr(each, "error", None) for each in outcomes]
    what = "the outcome of operation"
    expect_error(f"{what} 1", errors[1], TaskExistsError, task_id="a")
    expect_error(f"{what} 2", errors[2], InvalidTaskError, field="deadline")
    expect_error(f"{what} 3", errors[3], LostRunError, task_id="a", attempt=7)
    expect_error(f"{what} 4", errors[4], AlreadyDispatchedError, task_id="a")
    expect_error(f"{what} 5", errors[5], TaskNotFoundError, task_id="unknown")
    done = attrs.evolve(run, state=TaskState.DONE, done_at=moment(5))
    expect_equal(f"{what} 6", outcomes[6], outcome.Value(done))
    await expect_kept(repository, "a task after the batch", task, done)
    expect_equal("all tasks", (await contents(repository)).tasks, [done, task])


@checks
async def a_batch_is_in_order(repository: TaskRepository) -> None:
    """An operation sees what the ones before it in the batch have done."""
    outcomes = await repository.apply(
        [
            ClaimTasks(9, EPOCH),
            AddTasks([new("a"), new("b")]),
            UpdateTask("b", TaskUpdate(priority=1)),
            ClaimTasks(1, EPOCH),
            ClaimTasks(9, EPOCH),
            CancelTask("a", EPOCH),
            DeleteEnded(),
        ]
    )
    claims = [outcomes[index].unwrap() for index in (0, 3, 4)]
    claimed = [[task.id for task in claim.tasks] for claim in claims]
    expect_equal("three claims", claimed, [[], ["b"], ["a"]])
    error = getattr(outcomes[5], "error", None)
    expect_error("a cancel after the claim", error, AlreadyDispatchedError)
    expect_equal("what was deleted", outcomes[6].unwrap(), [])


@checks
async def an_empty_batch_changes_nothing(repository: TaskRepository) -> None:
    """No operations have no outcomes, and no effect."""
    await repository.add([new("a")])
    async with unchanged(repository, "an empty batch"):
        expect_equal("the outcomes", list(await repository.apply([])), [])


@checks
async def many_can_be_ended_at_once(repository: TaskRepository) -> None:
    """A big batch is one like any other."""
    tasks = [new(f"t{n}", n % 7) for n in range(250)]
    await repository.apply([AddTasks([task]) for task in tasks])
    claimed = await repository.claim(1_000, moment(7))
    expect_equal("how many were claimed", len(claimed.tasks), len(tasks))
    outcomes = await repository.apply([EndTask(run, EPOCH) for run in claimed.tasks])
    ended: list[Task] = [each.unwrap() for each in outcomes]
    states = {task.state for task in ended}
    expect_equal("the states they ended in", states, {TaskState.DONE})
    ids = [task.id for task in ended]
    expect_equal("the order of outcomes", ids, [run.id for run in claimed.tasks])
    expect_equal("how many are left", len(await repository.delete_ended()), 250)


# -- long, random histories -----------------------------------------------------------


async def _expect_walk(repository: TaskRepository, walk: Walk, most: int) -> None:
    while walk.steps < _LONG:
        operations = walk.next_operations(walk.random.randint(1, most))
        expected = walk.carry_out(operations)
        outcomes = (
            await _one_by_one(repository, operations)
            if most == 1
            else await repository.apply(operations)
        )
        for operation, one, other in zip(operations, outcomes, expected, strict=True):
            what = f"the outcome of {operation}, at step {walk.steps} of a history"
            expect_equal(what, walk.comparable(one), walk.comparable(other))
        what = f"the next task, at step {walk.steps} of a history"
        expect_equal(what, await repository.get_next(), walk.next_task())
    now = await contents(repository)
    expected_tasks = comparable_tasks(walk.tasks())
    expect_equal("in the end", comparable_tasks(now.tasks), expected_tasks)
    pending = [task for task in walk.tasks() if task.state is TaskState.SCHEDULED]
    pools = Counter(task.pool for task in pending if task.pool is not None)
    expect_equal("pending tasks of pools, in the end", now.pools, dict(pools))


@checks.of_several
async def a_long_history_is_as_of_a_list(open_repository: OpenRepository) -> None:
    """After any history of single steps all is as a plain list of tasks would have it."""
    for deadlines in (False, True):
        async with open_repository() as repository:
            await _expect_walk(repository, Walk(1, deadlines=deadlines), 1)


@checks.of_several
async def a_history_of_batches_is_as_of_a_list(open_repository: OpenRepository) -> None:
    """After any history of batches all is as a plain list of tasks would have it."""
    for deadlines in (False, True):
        async with open_repository() as repository:
            await _expect_walk(repository, Walk(2, deadlines=deadlines), 12)
