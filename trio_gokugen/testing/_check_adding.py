"""Checks: what is added is there, and nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import attrs

from trio_gokugen._errors import TaskExistsError, TaskNotFoundError
from trio_gokugen._query import TaskQuery
from trio_gokugen._task import Task, TaskState, TaskUpdate
from trio_gokugen.abc import TaskRepository

from ._expect import expect_equal, refused
from ._repository_kit import (
    EPOCH,
    RepositoryChecks,
    add_dispatched,
    expect_kept,
    moment,
    new,
    refusal,
    unchanged,
)

checks = RepositoryChecks()


@checks
async def add_keeps_tasks_in_any_state(repository: TaskRepository) -> None:
    """Tasks are kept as they are given, in whatever state."""
    tasks = [
        new("scheduled", 7, priority=3, param={"a": 1}, meta={"b": 2}),
        new("with a deadline", 7, deadline=moment(9)),
        new(
            "dispatched",
            state=TaskState.DISPATCHED,
            attempt=3,
            interruptions=1,
            dispatched_at=moment(8),
        ),
        new("cancelled", state=TaskState.CANCELLED, cancelled_at=moment(5)),
        new("done", state=TaskState.DONE, attempt=1, done_at=moment(6)),
        new("failed", state=TaskState.FAILED, done_at=moment(6), err="no luck"),
    ]
    await repository.add(tasks)
    await expect_kept(repository, "a task that was added", *tasks)
    found = {task.id for task in await repository.find(TaskQuery())}
    expect_equal("the ids of all tasks", found, {task.id for task in tasks})


@checks
async def add_is_all_or_none(repository: TaskRepository) -> None:
    """If an id is taken, none of the tasks is kept, and the error names that id."""
    await repository.add([new("taken"), new("taken, too")])
    async with refusal(
        repository, "an add of a taken id", TaskExistsError, task_id="taken"
    ):
        await repository.add([new("one"), new("taken", 5), new("taken, too"), new("z")])


@checks
async def add_refuses_an_id_given_twice(repository: TaskRepository) -> None:
    """If an id is given twice in one call, none of the tasks is kept."""
    async with refusal(
        repository, "an add of an id twice", TaskExistsError, task_id="twice"
    ):
        await repository.add([new("one"), new("twice"), new("twice", 5)])


@checks
async def add_refuses_the_id_of_an_ended_task(repository: TaskRepository) -> None:
    """An id stays taken after its task has ended."""
    await repository.add([new("a", state=TaskState.DONE, done_at=EPOCH)])
    async with refusal(repository, "an add again", TaskExistsError, task_id="a"):
        await repository.add([new("a")])


@checks
async def add_of_nothing_changes_nothing(repository: TaskRepository) -> None:
    """Adding no tasks is no error, and changes nothing."""
    await repository.add([new("a")])
    async with unchanged(repository, "adding nothing"):
        await repository.add([])


@checks
async def add_keeps_nothing_of_the_caller(repository: TaskRepository) -> None:
    """What a caller does with the own objects after the call changes no task."""
    values: dict[str, Any] = {"list": [1, 2]}
    task = new("a", param=values, meta=values)
    tasks = [task]
    await repository.add(tasks)
    update = TaskUpdate(param=values, priority=1)
    updated, _ = await repository.update("a", update)
    tasks.clear()
    values["list"].append(3)
    await expect_kept(repository, "the task", updated)
    expect_equal("param", (await repository.get("a")).param, {"list": [1, 2]})


@checks
async def get_refuses_an_unknown_id(repository: TaskRepository) -> None:
    """An id that was never added is a `TaskNotFoundError`, which is a `LookupError`."""
    await repository.add([new("a")])
    with refused("get of an unknown id", TaskNotFoundError, task_id="b"):
        await repository.get("b")
    with refused("get of an unknown id", LookupError):
        await repository.get("b")


@checks
async def every_change_refuses_an_unknown_id(repository: TaskRepository) -> None:
    """Every method that takes a task or an id refuses one that is not there."""
    await repository.add([new("a")])
    run = new("b", state=TaskState.DISPATCHED, attempt=1, dispatched_at=EPOCH)
    for what, call in (
        ("update", lambda: repository.update("b", TaskUpdate(priority=1))),
        ("cancel", lambda: repository.cancel("b", EPOCH)),
        ("mark_dispatched", lambda: repository.mark_dispatched("b", EPOCH)),
        ("mark_done", lambda: repository.mark_done(run, EPOCH)),
        ("mark_cancelled", lambda: repository.mark_cancelled(run, EPOCH)),
        ("revert", lambda: repository.revert(run)),
    ):
        async with refusal(repository, what, TaskNotFoundError, task_id="b"):
            await call()


@checks
async def a_snapshot_never_changes(repository: TaskRepository) -> None:
    """A task that was read or returned stays as it was, whatever happens later."""
    snapshots: list[tuple[Task, str]] = []

    def keep(task: Task) -> Task:
        snapshots.append((task, task.to_json()))
        return task

    await repository.add([keep(new("a", param={"list": [1]}))])
    keep(await repository.get("a"))
    updated, _ = await repository.update("a", TaskUpdate(priority=1, param={"b": 2}))
    keep(updated)
    run = keep(await repository.mark_dispatched("a", EPOCH))
    keep(await repository.revert(run))
    run = keep(await repository.mark_dispatched("a", EPOCH))
    keep(await repository.mark_done(run, EPOCH, "err"))
    for snapshot, before in snapshots:
        expect_equal("a snapshot, later", snapshot.to_json(), before)


# -- nothing is lost ----------------------------------------------------------------------

_VALUES: dict[str, Any] = {
    "null": None,
    "booleans": [True, False],
    "integers": [0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63)],
    "floats": [0.0, 1.0, 0.1, -2.5, 1e308, 5e-324, 1e22, 123456789.123456789],
    "text": ["", " ", "'", '"', "\\", "%", "\n\r\t\b\x01\x7f", "ß", "刻限", "\U0001f552"],
    "": {"": [[], {}, [[]], [{}]]},
    "ключ.with [marks] $ ?": {"deep": {"deeper": [{"deepest": [1, "1", True, None]}]}},
    "long": "刻" * 10_000,
}


@checks
async def json_is_kept_losslessly(repository: TaskRepository) -> None:
    """`param` and `meta` come back as they were, of the same types."""
    await repository.add([new("added", param=_VALUES, meta=_VALUES), new("updated")])
    await repository.update("updated", TaskUpdate(param=_VALUES, meta=_VALUES))
    for task in await repository.find(TaskQuery()):
        for field, value in (("param", task.param), ("meta", task.meta)):
            _expect_same_json(f"{field} of the task {task.id}", value)


def _expect_same_json(what: str, actual: object) -> None:
    # As text, because 1, 1.0 and True are equal in Python.
    expect_equal(
        what, json.dumps(actual, sort_keys=True), json.dumps(_VALUES, sort_keys=True)
    )


@checks
async def moments_are_kept_exactly(repository: TaskRepository) -> None:
    """Every moment comes back to the microsecond, the first and the last there is too."""
    first = datetime.min.replace(tzinfo=UTC)
    last = datetime.max.replace(tzinfo=UTC)
    odd = datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    task = Task(
        id="early",
        work_id="work",
        scheduled_at=first,
        created_at=first,
        deadline=odd,
        cancelled_at=first,
        dispatched_at=odd,
        done_at=last,
    )
    tasks = [
        task,
        attrs.evolve(task, id="odd", scheduled_at=odd, created_at=odd, deadline=last),
        attrs.evolve(task, id="late", scheduled_at=last, created_at=last, deadline=None),
        attrs.evolve(task, id="fine", scheduled_at=datetime(1, 1, 1, 0, 0, 0, 1, UTC)),
    ]
    await repository.add(tasks)
    await expect_kept(repository, "a task", *tasks)
    expect_equal(
        "ids in order", await _found_ids(repository), ["early", "fine", "odd", "late"]
    )
    updated, _ = await repository.update(
        "early", TaskUpdate(scheduled_at=last, deadline=None)
    )
    expect_equal("scheduled_at", updated.scheduled_at, last)
    await expect_kept(repository, "the updated task", updated)


async def _found_ids(repository: TaskRepository) -> list[str]:
    return [task.id for task in await repository.find(TaskQuery())]


@checks
async def texts_and_numbers_are_kept_exactly(repository: TaskRepository) -> None:
    """Ids, work ids, priorities and errors come back as they were, none mixed up."""
    names = ["a", "A", "a ", " a", "ä", "a\u0308", "'; --", "%", "\n", "刻限", "x" * 500]
    tasks = [
        new(name, work_id=name, priority=priority, state=TaskState.FAILED, err=name)
        for name, priority in zip(names, range(-5, 6), strict=True)
    ]
    tasks += [
        new("least", priority=-(2**63)),
        new("most", priority=2**63 - 1),
        new("long", state=TaskState.FAILED, err="line\n\t刻\n" * 2_000),
    ]
    await repository.add(tasks)
    await expect_kept(repository, "a task", *tasks)
    run = await add_dispatched(repository, "run")
    ended = await repository.mark_done(run, EPOCH, tasks[-1].err)
    expect_equal("err", ended.err, tasks[-1].err)
    await expect_kept(repository, "the task that ended", ended)
