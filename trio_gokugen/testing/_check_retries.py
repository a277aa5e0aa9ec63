"""Checks: what is tried again, what a work returns, and how far it has come."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import attrs

from trio_gokugen._errors import InvalidTaskError, LostRunError, NotDispatchedError
from trio_gokugen._retry import Retry, exponential, fixed
from trio_gokugen._task import KEPT_ERRORS, FailedAttempt, Progress, Task, TaskState
from trio_gokugen.abc import EndTask, NoteProgress, RetryTask, TaskRepository

from ._expect import expect_equal
from ._repository_kit import (
    RepositoryChecks,
    add_dispatched,
    claimed_ids,
    expect_kept,
    moment,
    new,
    refusal,
)

checks = RepositoryChecks()

_HALF = Progress(fraction=0.5, note="halfway", at=moment(4))


@checks
async def rare_fields_are_kept(repository: TaskRepository) -> None:
    """What few tasks have is kept, to the letter."""
    tasks = [
        new("a", key="刻"),
        new("w", when="condition"),
        new("errors only", errors=(_failed(1),)),
        new("b", retry=Retry(3, wait=fixed(1.5), jitter=2, retry_on=(OSError, KeyError))),
        new("c", retry=Retry(None, wait=exponential(0.1, factor=1.5, longest=9))),
        new(
            "d",
            retries=2,
            errors=[FailedAttempt(attempt=1, at=moment(1), err="no\nluck"), _failed(2)],
        ),
        *(
            new(f"result {number}", state=TaskState.DONE, done_at=moment(5), result=result)
            for number, result in enumerate(_RESULTS)
        ),
        new("e", state=TaskState.DISPATCHED, attempt=1, progress=_HALF),
    ]
    await repository.add(tasks)
    await expect_kept(repository, "a task that was added", *tasks)


_RESULTS: tuple[Any, ...] = (0, False, "", [], {}, [None], {"a": [1, 2.5, "x"]}, 2**63 - 1)


def _failed(attempt: int) -> FailedAttempt:
    return FailedAttempt(attempt=attempt, at=moment(attempt), err=f"error {attempt}")


@checks
async def retry_schedules_the_task_anew(repository: TaskRepository) -> None:
    """What has failed is scheduled for later, counted, and its error kept."""
    run = await add_dispatched(repository, "a", key="k", priority=3)
    retried = await repository.retry(run, moment(1), moment(5), "error 1")
    expected = attrs.evolve(
        run,
        state=TaskState.SCHEDULED,
        scheduled_at=moment(5),
        retries=1,
        errors=(_failed(1),),
    )
    expect_equal("what retry returns", retried, expected)
    await expect_kept(repository, "the task", expected)
    expect_equal("what is claimed too early", await claimed_ids(repository, at=4.9), [])
    [run] = (await repository.claim(1, moment(5))).tasks
    expect_equal(
        "the attempt, and what it knows", (run.attempt, run.errors), (2, (_failed(1),))
    )
    done = await repository.mark_done(run, moment(6))
    expect_equal("the errors in the end", (done.retries, done.errors), (1, (_failed(1),)))
    await expect_kept(repository, "the task in the end", done)


@checks
async def retry_without_an_error_counts_nothing(repository: TaskRepository) -> None:
    """What was snoozed has not failed, and was not interrupted."""
    run = await add_dispatched(repository, "a")
    snoozed = await repository.retry(run, moment(1), moment(5))
    expected = attrs.evolve(run, state=TaskState.SCHEDULED, scheduled_at=moment(5))
    expect_equal("what retry returns", snoozed, expected)
    await expect_kept(repository, "the task", expected)


@checks
async def the_last_errors_are_kept(repository: TaskRepository) -> None:
    """All failures are counted, and the last of them kept."""
    await repository.add([new("a")])
    task = new("a")
    for attempt in range(1, KEPT_ERRORS + 4):
        [run] = (await repository.claim(1, moment(attempt))).tasks
        err = f"error {attempt}"
        task = await repository.retry(run, moment(attempt), moment(attempt), err)
    expect_equal("how many", task.retries, KEPT_ERRORS + 3)
    attempts = [each.attempt for each in task.errors]
    expect_equal("whose errors", attempts, [*range(4, KEPT_ERRORS + 4)])
    await expect_kept(repository, "the task", task)


@checks
async def retry_keeps_the_place_among_the_oldest(repository: TaskRepository) -> None:
    """A task that is tried again was added before others, and of equals goes first."""
    await repository.add([new("a"), new("b", 5)])
    [run] = (await repository.claim(1, moment(0))).tasks
    await repository.retry(run, moment(1), moment(5), "no luck")
    expect_equal("the order", await claimed_ids(repository), ["a", "b"])


@checks
async def retry_must_come_before_the_deadline(repository: TaskRepository) -> None:
    """A retry that would leave no time to start in is refused, and changes nothing."""
    run = await add_dispatched(repository, "a", deadline=moment(5))
    async with refusal(repository, "such a retry", InvalidTaskError, field="deadline"):
        await repository.retry(run, moment(1), moment(5), "no luck")


@checks
async def only_a_run_is_retried_or_progresses(repository: TaskRepository) -> None:
    """A run that has lost its task, and one that was none, are refused."""
    first = await add_dispatched(repository, "a")
    await repository.revert(first)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "retry": lambda: repository.retry(first, moment(2), moment(3), "x"),
        "note_progress": lambda: repository.note_progress(first, _HALF),
    }
    for what, call in calls.items():
        async with refusal(
            repository, f"{what} of what is scheduled", NotDispatchedError, task_id="a"
        ):
            await call()
    await repository.mark_dispatched("a", moment(5))
    for what, call in calls.items():
        async with refusal(
            repository,
            f"{what} by a run that has lost its task",
            LostRunError,
            task_id="a",
            attempt=1,
        ):
            await call()


@checks
async def a_result_is_kept(repository: TaskRepository) -> None:
    """What a work has returned is kept with its task, whatever JSON it is."""
    for number, result in enumerate(_RESULTS):
        run = await add_dispatched(repository, f"t{number}")
        done = await repository.mark_done(run, moment(1), None, result)
        expected = attrs.evolve(run, state=TaskState.DONE, done_at=moment(1), result=result)
        expect_equal("what mark_done returns", done, expected)
        await expect_kept(repository, "the task", expected)


@checks
async def results_are_kept_of_many(repository: TaskRepository) -> None:
    """Of runs that end in one batch each has its own result, or none."""
    runs = [await add_dispatched(repository, f"t{number}") for number in range(12)]
    results: list[Any] = [None, 1, 1, 2, 0, False, 0.0, "", {}, [], None, [1]]
    ends = [
        EndTask(run, moment(1), result=result)
        for run, result in zip(runs, results, strict=True)
    ]
    ended = [each.unwrap() for each in await repository.apply(ends)]
    told = [json.dumps(task.result) for task in ended]
    expect_equal("what they return", told, [json.dumps(each) for each in results])
    await expect_kept(repository, "a task", *ended)


@checks
async def progress_is_kept(repository: TaskRepository) -> None:
    """How far a run has come is seen while it runs, and stays when it is tried again."""
    run = await add_dispatched(repository, "a")
    noted = await repository.note_progress(run, _HALF)
    expected = attrs.evolve(run, progress=_HALF)
    expect_equal("what note_progress returns", noted, expected)
    await expect_kept(repository, "the task", expected)
    await repository.retry(noted, moment(4), moment(5), "no luck")
    [run] = (await repository.claim(1, moment(5))).tasks
    expect_equal("what the next attempt knows", run.progress, _HALF)
    last = Progress(fraction=1, at=moment(6))
    outcomes = await repository.apply(
        [
            NoteProgress(run, _HALF),
            NoteProgress(run, last),
            EndTask(run, moment(6), result=[1]),
            NoteProgress(run, _HALF),
        ]
    )
    ended = outcomes[2].unwrap()
    expect_equal("the end", (ended.progress, ended.result), (last, [1]))
    await expect_kept(repository, "the task in the end", ended)


@checks
async def what_is_noted_leaves_the_run_alone(repository: TaskRepository) -> None:
    """After a note on its progress a run has its task still, and can end it or go on."""
    runs = [await add_dispatched(repository, name) for name in "abc"]
    noted = [await repository.note_progress(run, _HALF) for run in runs]
    reverted = await repository.revert(noted[0])
    expect_equal("what is reverted", reverted.progress, _HALF)
    outcomes = await repository.apply(
        [NoteProgress(runs[1], _HALF), RetryTask(runs[1], moment(5), moment(6), "x")]
    )
    retried: Task = outcomes[1].unwrap()
    expect_equal("what is tried again", (retried.progress, retried.retries), (_HALF, 1))
    cancelled = await repository.mark_cancelled(noted[2], moment(7))
    expect_equal("what is cancelled", cancelled.progress, _HALF)
    await expect_kept(repository, "a task", reverted, retried, cancelled)
