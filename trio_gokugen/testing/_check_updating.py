"""Checks: what an update changes, and what it must not."""

from __future__ import annotations

from typing import Any

import attrs

from trio_gokugen._errors import InvalidTaskError
from trio_gokugen._task import Task, TaskState, TaskUpdate
from trio_gokugen.abc import TaskRepository

from ._expect import expect, expect_equal
from ._repository_kit import (
    RepositoryChecks,
    claimed_ids,
    expect_kept,
    moment,
    new,
    refusal,
    unchanged,
)

checks = RepositoryChecks()

_TASK = new(
    "a", 7, priority=2, param={"b": 1}, meta={"c": 2}, deadline=moment(60), attempt=3
)


_CHANGES: list[dict[str, Any]] = [
    {"work_id": "other"},
    {"scheduled_at": moment(30)},
    {"scheduled_at": moment(-30)},
    {"param": {"b": [1, {"c": None}]}},
    {"priority": -4},
    {"deadline": moment(90)},
    {"meta": {"d": "e"}},
    {"scheduled_at": moment(1), "priority": 1, "param": {}, "work_id": "third"},
]


async def _expect_update(
    repository: TaskRepository, update: TaskUpdate, **changes: Any
) -> Task:
    before = await repository.get("a")
    expected = attrs.evolve(before, **changes)
    task, changed = await repository.update("a", update)
    expect_equal(f"the task after {update}", task, expected)
    expect_equal(f"whether {update} has changed anything", changed, bool(changes))
    await expect_kept(repository, f"the task after {update}", expected)
    return task


@checks
async def update_changes_each_field(repository: TaskRepository) -> None:
    """Each field of an update changes that field of the task, and no other."""
    await repository.add([_TASK])
    for changes in _CHANGES:
        await _expect_update(repository, TaskUpdate(**changes), **changes)


@checks
async def update_says_that_nothing_changed(repository: TaskRepository) -> None:
    """An update to the values a task has, or to none, changes nothing: `False`."""
    await repository.add([_TASK, new("b", 7)])
    same = TaskUpdate(
        work_id="work",
        scheduled_at=moment(7),
        param={"b": 1},
        priority=2,
        deadline=moment(60),
        meta={"c": 2},
    )
    async with unchanged(repository, "an update to the same values"):
        await _expect_update(repository, same)
        await _expect_update(repository, TaskUpdate())
        _, changed = await repository.update("b", TaskUpdate(deadline=None))
        expect(not changed, "taking away a deadline that there is none, was a change")


@checks
async def update_with_none_clears(repository: TaskRepository) -> None:
    """`None` takes the deadline away, and empties `param` and `meta`."""
    await repository.add([_TASK])
    await _expect_update(repository, TaskUpdate(deadline=None), deadline=None)
    await _expect_update(repository, TaskUpdate(param=None), param={})
    await _expect_update(repository, TaskUpdate(meta=None), meta={})


@checks
async def update_leaves_out_what_is_unchanged(repository: TaskRepository) -> None:
    """A field left out of the update stays, a deadline for example."""
    await repository.add([_TASK])
    task = await _expect_update(repository, TaskUpdate(priority=9), priority=9)
    expect_equal("deadline", task.deadline, moment(60))


@checks
async def update_tells_values_of_json_apart(repository: TaskRepository) -> None:
    """1 and true are different values, as are a null and nothing: a change."""
    await repository.add([_TASK])
    for value in ({"b": True}, {"b": 1}, {"b": "1"}, {"b": None}, {}, {"b": 0}):
        _, changed = await repository.update("a", TaskUpdate(param=value))
        expect(changed, f"an update to param={value} was not taken for a change")
        kept = repr((await repository.get("a")).param)
        expect_equal("param, as it is kept", kept, repr(value))


@checks
async def update_refuses_a_bad_deadline(repository: TaskRepository) -> None:
    """A deadline must stay after `scheduled_at`, whichever of them is changed."""
    await repository.add([_TASK])
    for update in (
        TaskUpdate(deadline=moment(7)),
        TaskUpdate(deadline=moment(6), priority=5),
        TaskUpdate(scheduled_at=moment(60)),
        TaskUpdate(scheduled_at=moment(61), meta={}),
        TaskUpdate(scheduled_at=moment(50), deadline=moment(40)),
    ):
        async with refusal(repository, str(update), InvalidTaskError, field="deadline"):
            await repository.update("a", update)


@checks
async def update_moves_both_at_once(repository: TaskRepository) -> None:
    """`scheduled_at` and the deadline are judged as they will be, in every direction."""
    await repository.add([_TASK])
    both: list[dict[str, Any]] = [
        {"scheduled_at": moment(100), "deadline": moment(101)},
        {"scheduled_at": moment(3), "deadline": moment(4)},
        {"scheduled_at": moment(500), "deadline": None},
        {"deadline": moment(501)},
    ]
    for changes in both:
        await _expect_update(repository, TaskUpdate(**changes), **changes)


@checks
async def update_of_the_work_counts(repository: TaskRepository) -> None:
    """A task moved to another work is claimed, and counted, as one of that work."""
    await repository.add([new("a"), new("b")])
    await repository.update("a", TaskUpdate(work_id="other"))
    pending = await repository.count_pending()
    expect_equal("pending tasks", dict(pending), {"work": 1, "other": 1})


@checks
async def update_does_not_duplicate(repository: TaskRepository) -> None:
    """A task moved to and fro is one task, and runs once, when it was last moved to."""
    await repository.add([new("a", 10), new("b", 20)])
    for at in (5, 30, 5, 30, 15, 25):
        await repository.update("a", TaskUpdate(scheduled_at=moment(at), priority=at))
    expect_equal("what is due early", await claimed_ids(repository, at=24), ["b"])
    expect_equal("what is due later", await claimed_ids(repository, at=99), ["a"])
    expect_equal("what is left", await claimed_ids(repository), [])
    expect_equal("its state", (await repository.get("a")).state, TaskState.DISPATCHED)
