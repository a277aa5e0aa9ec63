"""Checks: which run a task belongs to, and what becomes of those that are lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs

from trio_gokugen._errors import LostRunError
from trio_gokugen._task import Task, TaskState
from trio_gokugen.abc import RecoverAction, TaskFilter, TaskRepository

from ._expect import expect, expect_equal
from ._repository_kit import (
    RepositoryChecks,
    add_dispatched,
    add_in_state,
    contents,
    expect_kept,
    moment,
    new,
    refusal,
    unchanged,
)

checks = RepositoryChecks()


@checks
async def a_lost_run_is_refused(repository: TaskRepository) -> None:
    """A run whose task was taken back and dispatched anew cannot end or revert it."""
    first = await add_dispatched(repository, "a")
    await repository.revert(first)
    second = await repository.mark_dispatched("a", moment(5))
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "mark_done": lambda: repository.mark_done(first, moment(6)),
        "mark_done with an err": lambda: repository.mark_done(first, moment(6), "x"),
        "mark_cancelled": lambda: repository.mark_cancelled(first, moment(6)),
        "revert": lambda: repository.revert(first),
    }
    for what, call in calls.items():
        async with refusal(
            repository,
            f"{what} by a run that has lost its task",
            LostRunError,
            task_id="a",
            attempt=first.attempt,
        ):
            await call()
    ended = await repository.mark_done(second, moment(7))
    expect_equal("the state, by the right run", ended.state, TaskState.DONE)


@checks
async def interruptions_are_counted(repository: TaskRepository) -> None:
    """Every revert counts one interruption, every dispatch one attempt."""
    await repository.add([new("a")])
    for count in (1, 2, 3):
        [run] = (await repository.claim(1, moment(count))).tasks
        reverted = await repository.revert(run)
        expect_equal(
            "attempt and interruptions",
            (reverted.attempt, reverted.interruptions),
            (count, count),
        )


async def _with_orphans(repository: TaskRepository) -> list[Task]:
    """Add a task in every other state, and two that a scheduler has left running."""
    for state in TaskState:
        if state is not TaskState.DISPATCHED:
            await add_in_state(repository, state.value, state)
    orphans = [
        new(
            name,
            state=TaskState.DISPATCHED,
            attempt=attempt,
            interruptions=1,
            dispatched_at=moment(2),
        )
        for name, attempt in (("orphan", 2), ("other orphan", 5))
    ]
    await repository.add(orphans)
    return orphans


async def _expect_recovered(
    repository: TaskRepository, action: RecoverAction, expected: list[Task]
) -> None:
    ids = {task.id for task in expected}
    others = [t for t in (await contents(repository)).tasks if t.id not in ids]
    recovered = await repository.recover(action, moment(9))
    expect_equal(
        "the recovered tasks", sorted(recovered, key=lambda task: task.id), expected
    )
    await expect_kept(repository, "a recovered task", *expected)
    await expect_kept(repository, "a task that nobody had left running", *others)
    again = await repository.recover(action, moment(9))
    expect_equal("what is recovered the second time", again, [])


@checks
async def recover_reverts(repository: TaskRepository) -> None:
    """Tasks left running are put back, interrupted once more; others stay."""
    orphans = await _with_orphans(repository)
    expected = [
        attrs.evolve(task, state=TaskState.SCHEDULED, interruptions=2) for task in orphans
    ]
    await _expect_recovered(repository, RecoverAction.REVERT, expected)


@checks
async def recover_fails(repository: TaskRepository) -> None:
    """Tasks left running end as failed, at that moment, and say why; others stay."""
    orphans = await _with_orphans(repository)
    recovered = await repository.recover(RecoverAction.FAIL, moment(9))
    errors = {task.id: task.err for task in recovered}
    expect(all(errors.values()), f"a recovered task does not say why: {errors}")
    expected = [
        attrs.evolve(
            task, state=TaskState.FAILED, done_at=moment(9), err=errors.get(task.id)
        )
        for task in orphans
    ]
    ordered = sorted(recovered, key=lambda task: task.id)
    expect_equal("the recovered tasks", ordered, expected)
    await expect_kept(repository, "a recovered task", *expected)
    await _expect_recovered(repository, RecoverAction.FAIL, [])


@checks
async def recover_can_leave(repository: TaskRepository) -> None:
    """With `LEAVE` nothing is recovered, and nothing changed."""
    await _with_orphans(repository)
    async with unchanged(repository, "recovering nothing"):
        left = await repository.recover(RecoverAction.LEAVE, moment(9))
        expect_equal("what was recovered", left, [])


@checks
async def recover_heeds_the_filter(repository: TaskRepository) -> None:
    """Only tasks of the works that were asked for are recovered."""
    orphans = await _with_orphans(repository)
    chosen = attrs.evolve(orphans[0], id="chosen", work_id="chosen work")
    await repository.add([chosen])
    only = TaskFilter(frozenset({"chosen work"}))
    recovered = await repository.recover(RecoverAction.REVERT, moment(9), only)
    expected = attrs.evolve(chosen, state=TaskState.SCHEDULED, interruptions=2)
    expect_equal("what was recovered of one work", recovered, [expected])
    await expect_kept(repository, "a task of another work", *orphans)


@checks
async def an_attempt_may_be_the_only_one(repository: TaskRepository) -> None:
    """A dispatched task says whether its attempt may be repeated, as who took it did."""
    await repository.add([new(name, work_id=name) for name in "abcd"])
    for task_id, once in {"a": True, "b": False}.items():
        run = await repository.mark_dispatched(task_id, moment(1), at_most_once=once)
        expect_equal(f"at_most_once of {task_id}", run.at_most_once, once)
    only = TaskFilter(None, frozenset({"c", "unheard of"}))
    claimed = (await repository.claim(5, moment(1), only)).tasks
    marks = {task.id: task.at_most_once for task in claimed}
    expect_equal("at_most_once of the claimed", marks, {"c": True, "d": False})
    await expect_kept(repository, "a claimed task", *claimed)


@checks
async def recover_repeats_nothing_that_must_not_be(repository: TaskRepository) -> None:
    """A lost attempt that must not be repeated ends the task as failed, and says why."""
    await repository.add([new("once", work_id="once"), new("more")])
    only = TaskFilter(None, frozenset({"once"}))
    await repository.claim(5, moment(1), only)
    recovered = await repository.recover(RecoverAction.REVERT, moment(9))
    states = {task.id: task.state for task in recovered}
    expected = {"once": TaskState.FAILED, "more": TaskState.SCHEDULED}
    expect_equal("the states of the recovered", states, expected)
    [once] = [task for task in recovered if task.id == "once"]
    expect(once.err, "the task that has failed does not say why")
    await expect_kept(repository, "a recovered task", *recovered)


@checks
async def the_next_attempt_may_differ(repository: TaskRepository) -> None:
    """Whether an attempt may be repeated is told anew for each."""
    await repository.add([new("a")])
    first = await repository.mark_dispatched("a", moment(1), at_most_once=True)
    await repository.revert(first)
    second = await repository.mark_dispatched("a", moment(2))
    expect(not second.at_most_once, "the second attempt may not be repeated either")


@checks
async def renewing_changes_no_task(repository: TaskRepository) -> None:
    """Runs that are renewed in time have their tasks, which stay as they are."""
    expect(repository.lease > 0, f"a lease of {repository.lease} s is none")
    runs = [await add_dispatched(repository, name) for name in "ab"]
    async with unchanged(repository, "a renewal"):
        renewed = await repository.renew(runs, RecoverAction.REVERT, moment(0.001))
        expect_equal("the lost runs", renewed.lost, [])
        expect_equal("the recovered tasks", renewed.recovered, [])
    for run in runs:
        ended = await repository.mark_done(run, moment(2))
        expect_equal("the state after it", ended.state, TaskState.DONE)
