"""Checks: what a claim gets."""

from __future__ import annotations

import attrs

from trio_gokugen._task import Task, TaskState, TaskUpdate
from trio_gokugen.abc import TaskFilter, TaskRepository

from ._expect import expect, expect_equal
from ._repository_kit import (
    EPOCH,
    RepositoryChecks,
    claimed_ids,
    expect_kept,
    moment,
    new,
    unchanged,
)

checks = RepositoryChecks()


def _run_of(task: Task, at: float) -> Task:
    return attrs.evolve(
        task,
        state=TaskState.DISPATCHED,
        dispatched_at=moment(at),
        attempt=task.attempt + 1,
    )


@checks
async def claim_dispatches(repository: TaskRepository) -> None:
    """A claimed task is dispatched: the moment recorded, the attempt counted."""
    tasks = [new("a", 1, param={"b": 1}), new("b", 2, attempt=4, deadline=moment(99))]
    await repository.add(tasks)
    claimed = await repository.claim(10, moment(5))
    expected = [_run_of(task, 5) for task in tasks]
    expect_equal("the claimed tasks", list(claimed.tasks), expected)
    expect_equal("the expired tasks", list(claimed.expired), [])
    await expect_kept(repository, "a claimed task", *expected)


@checks
async def claim_takes_only_what_is_due(repository: TaskRepository) -> None:
    """A task is claimed from its `scheduled_at` on, not a microsecond before."""
    await repository.add([new("a", 1), new("b", 2.000001), new("c", 2)])
    expect_equal("a claim", await claimed_ids(repository, at=2), ["a", "c"])
    async with unchanged(repository, "a claim with nothing due"):
        expect_equal("a claim", await claimed_ids(repository, at=2), [])
    expect_equal("a later claim", await claimed_ids(repository, at=3), ["b"])


@checks
async def claim_respects_the_limit(repository: TaskRepository) -> None:
    """No more tasks are claimed than asked for; the others stay pending."""
    await repository.add([new(name) for name in "abcde"])
    async with unchanged(repository, "a claim of none"):
        expect_equal("a claim of none", await claimed_ids(repository, 0), [])
    for limit, expected in ((1, ["a"]), (3, ["b", "c", "d"]), (3, ["e"]), (3, [])):
        ids = await claimed_ids(repository, limit)
        expect_equal(f"a claim of {limit}", ids, expected)


@checks
async def claim_respects_the_filter(repository: TaskRepository) -> None:
    """Only tasks of the works named are claimed, or ended because they have expired."""
    await repository.add(
        [
            new("a", work_id="one", deadline=moment(1)),
            new("b", work_id="one"),
            new("c", work_id="two", deadline=moment(1)),
            new("d", work_id="two"),
            new("e", work_id="three"),
        ]
    )
    only = TaskFilter(frozenset({"two", "unheard of"}))
    claimed = await repository.claim(10, moment(5), only)
    expect_equal("the claimed", [task.id for task in claimed.tasks], ["d"])
    expect_equal("the expired", [task.id for task in claimed.expired], ["c"])
    async with unchanged(repository, "a claim of no works"):
        nothing = await repository.claim(10, moment(5), TaskFilter(frozenset()))
        expect_equal("a claim of no works", list(nothing.tasks), [])


@checks
async def claim_ends_what_has_expired(repository: TaskRepository) -> None:
    """Tasks whose deadline is here end as failed, and are told, not claimed."""
    tasks = [new("a", deadline=moment(5)), new("b", deadline=moment(5.000001))]
    await repository.add(tasks)
    claimed = await repository.claim(10, moment(5))
    expect_equal("the claimed", list(claimed.tasks), [_run_of(tasks[1], 5)])
    expect_equal("the expired", [task.id for task in claimed.expired], ["a"])
    ended = claimed.expired[0]
    expected = attrs.evolve(
        tasks[0], state=TaskState.FAILED, done_at=moment(5), err=ended.err
    )
    expect_equal("the expired task", ended, expected)
    expect("deadline" in (ended.err or "").lower(), f"err does not say why: {ended.err}")
    await expect_kept(repository, "the expired task", ended)


@checks
async def expired_tasks_take_no_place(repository: TaskRepository) -> None:
    """Expired tasks do not count against the limit of a claim."""
    await repository.add([new(f"x{n}", deadline=moment(1)) for n in range(5)])
    await repository.add([new("a"), new("b"), new("c")])
    claimed = await repository.claim(2, moment(5))
    expect_equal("the claimed", [task.id for task in claimed.tasks], ["a", "b"])
    expired = sorted(task.id for task in claimed.expired)
    expect_equal("the expired", expired, [f"x{n}" for n in range(5)])


@checks
async def claim_sees_the_last_change(repository: TaskRepository) -> None:
    """What is claimed is as it stands now: updated, without what was cancelled."""
    await repository.add([new(name) for name in "abcd"])
    await repository.update("a", TaskUpdate(scheduled_at=moment(50)))
    await repository.update("b", TaskUpdate(param={"last": "second"}))
    await repository.cancel("c", EPOCH)
    tasks = (await repository.claim(10, moment(5))).tasks
    expect_equal("the claimed", [task.id for task in tasks], ["b", "d"])
    expect_equal("param", tasks[0].param, {"last": "second"})
