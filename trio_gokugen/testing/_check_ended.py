"""Checks: ended tasks are forgotten when asked for, and only those."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from trio_gokugen._errors import InvalidTaskError, TaskNotFoundError
from trio_gokugen._query import TaskQuery
from trio_gokugen._task import TaskState
from trio_gokugen.abc import RecoverAction, TaskRepository

from ._expect import expect_equal, refused
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


async def _add_ended(repository: TaskRepository) -> None:
    """End tasks in another order than the one they are added in."""
    await repository.add(
        [new(name) for name in ("done 4", "failed 2", "cancelled 3", "done 1")]
    )
    runs = {
        name: await repository.mark_dispatched(name, moment(0))
        for name in ("done 4", "failed 2", "done 1")
    }
    await repository.mark_done(runs["done 1"], moment(1))
    await repository.mark_done(runs["failed 2"], moment(2), "no luck")
    await repository.cancel("cancelled 3", moment(3))
    await repository.mark_done(runs["done 4"], moment(4))


async def _expect_deleted(
    repository: TaskRepository, expected: list[str], **arguments: Any
) -> None:
    before = {task.id for task in await repository.find(TaskQuery())}
    deleted = await repository.delete_ended(**arguments)
    expect_equal(f"what delete_ended({arguments}) returned", deleted, expected)
    after = {task.id for task in await repository.find(TaskQuery())}
    expect_equal("the ids that are gone", before - after, set(expected))
    for task_id in expected:
        with refused("get of a deleted task", TaskNotFoundError, task_id=task_id):
            await repository.get(task_id)


@checks
async def delete_ended_deletes_all_ended(repository: TaskRepository) -> None:
    """Without arguments all ended tasks are deleted; their ids come oldest end first."""
    await _add_ended(repository)
    await _expect_deleted(repository, ["done 1", "failed 2", "cancelled 3", "done 4"])
    async with unchanged(repository, "deleting once more"):
        expect_equal("the second time", await repository.delete_ended(), [])


@checks
async def delete_ended_leaves_the_living(repository: TaskRepository) -> None:
    """Scheduled and dispatched tasks are never deleted."""
    living = [
        await add_in_state(repository, state.value, state)
        for state in (TaskState.SCHEDULED, TaskState.DISPATCHED)
    ]
    reverted = await repository.revert(await add_dispatched(repository, "reverted"))
    await _add_ended(repository)
    await repository.delete_ended(before=moment(999))
    await expect_kept(repository, "a task that has not ended", *living, reverted)


@checks
async def delete_ended_refuses_other_states(repository: TaskRepository) -> None:
    """Asked to delete tasks that have not ended, it refuses, and deletes nothing."""
    await _add_ended(repository)
    await add_in_state(repository, "a", TaskState.DISPATCHED)
    states: Collection[TaskState]
    for states in (
        {TaskState.SCHEDULED},
        {TaskState.DISPATCHED, TaskState.DONE},
        set(TaskState),
    ):
        async with refusal(
            repository, f"delete_ended of {states}", InvalidTaskError, field="states"
        ):
            await repository.delete_ended(states=states)


@checks
async def delete_ended_respects_the_states(repository: TaskRepository) -> None:
    """Only tasks in the states given are deleted."""
    await _add_ended(repository)
    await _expect_deleted(repository, [], states=())
    await _expect_deleted(repository, ["cancelled 3"], states={TaskState.CANCELLED})
    await _expect_deleted(
        repository, ["done 1", "done 4"], states=[TaskState.DONE, TaskState.CANCELLED]
    )
    await _expect_deleted(repository, ["failed 2"], states={TaskState.FAILED})


@checks
async def delete_ended_respects_before(repository: TaskRepository) -> None:
    """Only tasks that ended earlier than `before` are deleted, whenever scheduled."""
    await _add_ended(repository)
    await _expect_deleted(repository, [], before=moment(1))
    await _expect_deleted(repository, ["done 1"], before=moment(1.000001))
    await _expect_deleted(repository, ["failed 2"], before=moment(3))
    states: Collection[TaskState] = {TaskState.DONE}
    await _expect_deleted(repository, [], before=moment(4), states=states)
    await _expect_deleted(repository, ["done 4"], before=moment(5), states=states)


@checks
async def delete_ended_respects_the_limit(repository: TaskRepository) -> None:
    """At most `limit` tasks are deleted, those that ended first."""
    await _add_ended(repository)
    await _expect_deleted(repository, [], limit=0)
    await _expect_deleted(repository, ["done 1"], limit=1)
    await _expect_deleted(
        repository, ["cancelled 3"], limit=1, states={TaskState.CANCELLED}
    )
    await _expect_deleted(repository, ["failed 2", "done 4"], limit=9)


@checks
async def delete_ended_knows_every_way_to_end(repository: TaskRepository) -> None:
    """Expired and interrupted tasks, and those added as ended, are deleted alike."""
    await repository.add(
        [
            new("added", state=TaskState.CANCELLED, cancelled_at=moment(1)),
            new("expired", deadline=moment(1)),
            new("claimed", deadline=moment(1)),
        ]
    )
    await repository.mark_dispatched("expired", moment(5))
    await repository.claim(1, moment(6))
    run = await add_dispatched(repository, "interrupted")
    await repository.mark_cancelled(run, moment(8))
    orphan = new("lost", state=TaskState.DISPATCHED, attempt=1, dispatched_at=moment(2))
    await repository.add([orphan])
    await repository.recover(RecoverAction.FAIL, moment(9))
    await _expect_deleted(
        repository,
        ["added", "expired", "claimed", "interrupted", "lost"],
        before=moment(10),
    )


@checks
async def a_deleted_id_is_free(repository: TaskRepository) -> None:
    """The id of a deleted task may be used again, for a task of its own."""
    await add_in_state(repository, "a", TaskState.DONE)
    await repository.delete_ended()
    task = new("a", 9, priority=4)
    await repository.add([task])
    await expect_kept(repository, "the new task", task)
    expect_equal("the next task", await repository.get_next(), task)
    expect_equal("what is deleted now", await repository.delete_ended(), [])
