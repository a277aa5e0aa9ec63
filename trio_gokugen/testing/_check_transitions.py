"""Checks: what may happen to a task in each state, and what becomes of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs

from trio_gokugen._errors import (
    AlreadyCancelledError,
    AlreadyDispatchedError,
    AlreadyDoneError,
    NotDispatchedError,
    NotDueError,
)
from trio_gokugen._task import Task, TaskState, TaskUpdate
from trio_gokugen.abc import TaskRepository

from ._expect import expect, expect_equal
from ._repository_kit import (
    RepositoryChecks,
    add_dispatched,
    add_in_state,
    expect_kept,
    moment,
    new,
    refusal,
    unchanged,
)

checks = RepositoryChecks()

_WHILE_SCHEDULED: Mapping[TaskState, type[Exception]] = {
    TaskState.DISPATCHED: AlreadyDispatchedError,
    TaskState.CANCELLED: AlreadyCancelledError,
    TaskState.DONE: AlreadyDoneError,
    TaskState.FAILED: AlreadyDoneError,
}
_WHILE_DISPATCHED: Mapping[TaskState, type[Exception]] = {
    TaskState.SCHEDULED: NotDispatchedError,
    TaskState.CANCELLED: AlreadyCancelledError,
    TaskState.DONE: AlreadyDoneError,
    TaskState.FAILED: AlreadyDoneError,
}


async def _expect_refused(
    repository: TaskRepository,
    what: str,
    refusals: Mapping[TaskState, type[Exception]],
    call: Callable[[Task], Awaitable[object]],
) -> None:
    for state, error_type in refusals.items():
        task = await add_in_state(repository, f"{what}, {state.value}", state)
        async with refusal(
            repository, f"{what} of a {state.value} task", error_type, task_id=task.id
        ):
            # As a run of the right attempt: what it lacks is only the state.
            await call(task)


# -- while scheduled ------------------------------------------------------------------


@checks
async def update_only_while_scheduled(repository: TaskRepository) -> None:
    """Only a scheduled task is updated; otherwise the error names the state."""
    await _expect_refused(
        repository,
        "update",
        _WHILE_SCHEDULED,
        lambda task: repository.update(task.id, TaskUpdate(priority=9)),
    )


@checks
async def an_empty_update_is_refused_alike(repository: TaskRepository) -> None:
    """An update that changes nothing is refused in the same states."""
    await _expect_refused(
        repository,
        "an empty update",
        _WHILE_SCHEDULED,
        lambda task: repository.update(task.id, TaskUpdate()),
    )


@checks
async def cancel_only_while_scheduled(repository: TaskRepository) -> None:
    """A task that is dispatched or has ended by a run cannot be cancelled."""
    refusals = dict(_WHILE_SCHEDULED)
    del refusals[TaskState.CANCELLED]
    await _expect_refused(
        repository,
        "cancel",
        refusals,
        lambda task: repository.cancel(task.id, moment(20)),
    )


@checks
async def cancel_ends_the_task(repository: TaskRepository) -> None:
    """Cancelling makes the task cancelled at that moment, and nothing else."""
    task = new("a", 7, priority=2, param={"b": 1}, deadline=moment(9))
    await repository.add([task])
    cancelled, changed = await repository.cancel("a", moment(5))
    expected = attrs.evolve(task, state=TaskState.CANCELLED, cancelled_at=moment(5))
    expect_equal("the cancelled task", cancelled, expected)
    expect(changed, "a task was cancelled by nobody")
    await expect_kept(repository, "the cancelled task", expected)
    expect_equal("the next task", await repository.get_next(), None)


@checks
async def cancel_twice_changes_nothing(repository: TaskRepository) -> None:
    """Cancelling a cancelled task returns it as it is, with `False`."""
    task = await add_in_state(repository, "a", TaskState.CANCELLED)
    async with unchanged(repository, "cancelling again"):
        again = await repository.cancel("a", moment(20))
    expect_equal("what the second cancel returned", again, (task, False))


@checks
async def mark_dispatched_only_while_scheduled(repository: TaskRepository) -> None:
    """Only a scheduled task is dispatched; otherwise the error names the state."""
    await _expect_refused(
        repository,
        "mark_dispatched",
        _WHILE_SCHEDULED,
        lambda task: repository.mark_dispatched(task.id, moment(20)),
    )


@checks
async def mark_dispatched_begins_an_attempt(repository: TaskRepository) -> None:
    """Dispatching records the moment and counts the attempt, and changes nothing else."""
    task = new("a", 7, priority=2, meta={"b": 1}, deadline=moment(9))
    await repository.add([task])
    await repository.update("a", TaskUpdate(param={"last": "second"}))
    run = await repository.mark_dispatched("a", moment(8))
    expected = attrs.evolve(
        task,
        param={"last": "second"},
        state=TaskState.DISPATCHED,
        dispatched_at=moment(8),
        attempt=1,
    )
    expect_equal("the dispatched task", run, expected)
    await expect_kept(repository, "the dispatched task", expected)
    expect_equal("the next task", await repository.get_next(), None)


@checks
async def mark_dispatched_refuses_what_is_not_due(repository: TaskRepository) -> None:
    """No task is dispatched before its `scheduled_at`; at that very moment it is."""
    await repository.add([new("a", 7)])
    async with refusal(repository, "dispatching early", NotDueError, task_id="a"):
        await repository.mark_dispatched("a", moment(6.999999))
    run = await repository.mark_dispatched("a", moment(7))
    expect_equal("its state", run.state, TaskState.DISPATCHED)


@checks
async def mark_dispatched_ends_what_has_expired(repository: TaskRepository) -> None:
    """A task whose deadline is here ends as failed, says why, and counts no attempt."""
    tasks = [new("a", 7, deadline=moment(9)), new("b", 7, deadline=moment(9))]
    await repository.add(tasks)
    for task, at in zip(tasks, (moment(9), moment(12)), strict=True):
        ended = await repository.mark_dispatched(task.id, at)
        expected = attrs.evolve(task, state=TaskState.FAILED, done_at=at, err=ended.err)
        expect_equal("the expired task", ended, expected)
        expect(
            "deadline" in (ended.err or "").lower(),
            f"err does not say that the deadline has passed: {ended.err!r}",
        )
        await expect_kept(repository, "the expired task", ended)
    run = await add_dispatched(repository, "c", at=8, deadline=moment(8.000001))
    expect_equal("its state, before the deadline", run.state, TaskState.DISPATCHED)


# -- while dispatched -----------------------------------------------------------------


@checks
async def mark_done_only_while_dispatched(repository: TaskRepository) -> None:
    """Only a dispatched task is ended; otherwise the error names the state."""
    await _expect_refused(
        repository,
        "mark_done",
        _WHILE_DISPATCHED,
        lambda task: repository.mark_done(task, moment(20)),
    )
    await _expect_refused(
        repository,
        "mark_done with an err",
        _WHILE_DISPATCHED,
        lambda task: repository.mark_done(task, moment(20), "it failed"),
    )


@checks
async def mark_done_ends_the_task(repository: TaskRepository) -> None:
    """Without an `err` the task is done, with one it has failed, at that moment."""
    for task_id, err, state in (
        ("a", None, TaskState.DONE),
        ("b", "no luck", TaskState.FAILED),
        ("c", "", TaskState.FAILED),
    ):
        run = await add_dispatched(repository, task_id, param={"b": 1}, priority=3)
        ended = await repository.mark_done(run, moment(30), err)
        expected = attrs.evolve(run, state=state, done_at=moment(30), err=err)
        expect_equal(f"the task ended with err={err!r}", ended, expected)
        await expect_kept(repository, "the ended task", expected)


@checks
async def mark_cancelled_only_while_dispatched(repository: TaskRepository) -> None:
    """Only a dispatched task is ended as cancelled by its run."""
    await _expect_refused(
        repository,
        "mark_cancelled",
        _WHILE_DISPATCHED,
        lambda task: repository.mark_cancelled(task, moment(20)),
    )


@checks
async def mark_cancelled_ends_the_task(repository: TaskRepository) -> None:
    """The run's task ends as cancelled, at that moment."""
    run = await add_dispatched(repository, "a", param={"b": 1})
    ended = await repository.mark_cancelled(run, moment(30))
    expected = attrs.evolve(run, state=TaskState.CANCELLED, cancelled_at=moment(30))
    expect_equal("the task", ended, expected)
    await expect_kept(repository, "the task", expected)


@checks
async def revert_only_while_dispatched(repository: TaskRepository) -> None:
    """Only a dispatched task is put back; otherwise the error names the state."""
    await _expect_refused(repository, "revert", _WHILE_DISPATCHED, repository.revert)


@checks
async def revert_puts_the_task_back(repository: TaskRepository) -> None:
    """The task is scheduled again, to run as it was, with the interruption counted."""
    run = await add_dispatched(
        repository, "a", at=7, priority=2, deadline=moment(9), param={"b": 1}
    )
    reverted = await repository.revert(run)
    expected = attrs.evolve(run, state=TaskState.SCHEDULED, interruptions=1)
    expect_equal("the task", reverted, expected)
    await expect_kept(repository, "the task", expected)
    expect_equal("the next task", await repository.get_next(), expected)


@checks
async def a_state_can_be_left_again(repository: TaskRepository) -> None:
    """A task that was put back can be updated, dispatched, cancelled as any other."""
    history: list[Any] = []
    for task_id in ("updated", "dispatched", "cancelled"):
        run = await add_dispatched(repository, task_id)
        await repository.revert(run)
    updated, changed = await repository.update("updated", TaskUpdate(priority=5))
    history += [updated.priority, changed]
    run = await repository.mark_dispatched("dispatched", moment(4))
    history += [run.attempt, run.interruptions, run.dispatched_at]
    history += [(await repository.mark_done(run, moment(5))).state]
    history += [(await repository.cancel("cancelled", moment(5)))[1]]
    expect_equal(
        "what became of tasks that were put back",
        history,
        [5, True, 2, 1, moment(4), TaskState.DONE, True],
    )
