"""Checks: of the tasks that have not ended, no two have the same key."""

from __future__ import annotations

import attrs
import trio

from trio_gokugen._errors import (
    AlreadyDispatchedError,
    KeyExistsError,
    RefusedError,
    TaskExistsError,
)
from trio_gokugen._query import TaskQuery
from trio_gokugen._retry import Retry, fixed
from trio_gokugen._task import Task, TaskState
from trio_gokugen.abc import AddTasks, CancelTask, EndTask, TaskRepository

from ._expect import expect, expect_equal
from ._repository_kit import (
    EPOCH,
    RepositoryChecks,
    claimed_ids,
    expect_kept,
    moment,
    new,
    refusal,
)

checks = RepositoryChecks()


@checks
async def a_key_is_refused_while_it_is_held(repository: TaskRepository) -> None:
    """A key is free once its task has ended, and no sooner; the error says who has it."""
    held = refusal(repository, "an add of a held key", KeyExistsError, key="k", task_id="a")
    await repository.add([new("a", key="k")])
    async with held:
        await repository.add([new("one"), new("b", key="k")])
    run = await repository.mark_dispatched("a", EPOCH)
    async with refusal(
        repository, "an add of a running task's key", KeyExistsError, key="k", task_id="a"
    ):
        await repository.add([new("b", key="k")])
    reverted = await repository.revert(run)
    async with refusal(
        repository, "an add of a reverted task's key", KeyExistsError, key="k", task_id="a"
    ):
        await repository.add([new("b", key="k")])
    run = await repository.mark_dispatched("a", EPOCH)
    done = await repository.mark_done(run, moment(1))
    await repository.add([new("b", key="k")])
    await expect_kept(repository, "both", done, new("b", key="k"))
    expect_equal("the key of what was reverted", reverted.key, "k")


@checks
async def every_end_frees_a_key(repository: TaskRepository) -> None:
    """A key is free after a cancellation, an interruption, a failure and a deadline."""
    await repository.add([new("a", key="k")])
    await repository.cancel("a", EPOCH)
    await repository.add([new("b", key="k")])
    run = await repository.mark_dispatched("b", EPOCH)
    await repository.mark_cancelled(run, EPOCH)
    await repository.add([new("c", key="k")])
    run = await repository.mark_dispatched("c", EPOCH)
    await repository.mark_done(run, EPOCH, "no luck")
    await repository.add([new("d", key="k", deadline=moment(1))])
    await repository.claim(9, moment(2))
    await repository.add([new("e", key="k")])
    found = await repository.find(TaskQuery(keys={"k", "other"}))
    expect_equal("who has had the key", {task.id for task in found}, set("abcde"))


@checks
async def a_key_given_twice_is_refused(repository: TaskRepository) -> None:
    """Two tasks of one call cannot have the same key, unless one of them has ended."""
    async with refusal(
        repository, "an add of a key twice", KeyExistsError, key="k", task_id="a"
    ):
        await repository.add([new("a", key="k"), new("b"), new("c", key="k")])
    ended = new("a", key="k", state=TaskState.DONE, done_at=EPOCH)
    await repository.add([ended, new("b", key="k"), new("c")])
    await expect_kept(repository, "a task", ended, new("b", key="k"))


@checks
async def an_id_is_refused_before_a_key(repository: TaskRepository) -> None:
    """If both are taken, it is the id that is named: this very task was added before."""
    await repository.add([new("a", key="k")])
    async with refusal(repository, "an add again", TaskExistsError, task_id="a"):
        await repository.add([new("a", key="k")])


@checks
async def return_gives_the_holder_of_a_key(repository: TaskRepository) -> None:
    """With "return" the task that has the key is returned, and only others are added."""
    held = new("a", 5, key="k", param={"n": 1})
    await repository.add([held])
    added = await repository.add(
        [new("b", key="k"), new("c"), new("d", key="l"), new("e", key="l")], "return"
    )
    there = [held, new("c"), *[new("d", key="l")] * 2]
    expect_equal("what there is", [*added.tasks], there)
    expect_equal("what is new", [*added.new], there[1:3])
    expect_equal("what has changed", [*added.changed], [])
    await expect_kept(repository, "a task", held, new("c"), new("d", key="l"))
    run = await repository.mark_dispatched("a", moment(5))
    added = await repository.add([new("a", key="k")], "return")
    expect_equal("what there is of one that runs", [*added.tasks], [run])
    expect_equal("what is new then", [*added.new], [])
    found = {task.id for task in await repository.find(TaskQuery())}
    expect_equal("all ids", found, set("acd"))


@checks
async def replace_changes_the_holder_of_a_key(repository: TaskRepository) -> None:
    """With "replace" the task that has the key is scheduled like the new one."""
    held = new("a", 5, key="k", param={"n": 1}, meta={"m": 1}, deadline=moment(9))
    await repository.add([held, new("first", 7)])
    other = new(
        "b",
        7,
        key="k",
        work_id="other",
        priority=3,
        retry=Retry(2, wait=fixed(1)),
        created_at=moment(2),
    )
    added = await repository.add([other], "replace")
    expected = attrs.evolve(other, id="a", created_at=EPOCH)
    for what, found in (("there is", added.tasks), ("has changed", added.changed)):
        expect_equal(f"what {what}", [*found], [expected])
    expect_equal("what is new", [*added.new], [])
    await expect_kept(repository, "the task", expected)
    expect_equal("what is claimed too early", await claimed_ids(repository, at=6), [])
    expect_equal("the order", await claimed_ids(repository, at=7), ["a", "first"])


@checks
async def replace_keeps_the_place_among_the_oldest(repository: TaskRepository) -> None:
    """What is replaced was added first, and of equals goes first still."""
    await repository.add([new("a", 5, key="k"), new("b", 5)])
    await repository.add([new("c", 5, key="k"), new("d", 4, key="l")], "replace")
    await repository.add([new("e", 5, key="l")], "replace")
    expect_equal("the order", await claimed_ids(repository), ["a", "b", "d"])


@checks
async def replace_refuses_what_runs(repository: TaskRepository) -> None:
    """With "replace" nothing is added if the task that has the key is running."""
    await repository.add([new("a", key="k")])
    await repository.mark_dispatched("a", EPOCH)
    async with refusal(
        repository, "a replacement of what runs", AlreadyDispatchedError, task_id="a"
    ):
        await repository.add([new("one"), new("b", key="k")], "replace")


@checks
async def keys_are_followed_within_a_batch(repository: TaskRepository) -> None:
    """An end in a batch frees a key for what comes after it, and for nothing before."""
    await repository.add([new("a", key="k"), new("b", key="l")])
    run = await repository.mark_dispatched("b", EPOCH)
    outcomes = await repository.apply(
        [
            AddTasks([new("c", key="k")]),
            CancelTask("a", moment(1)),
            AddTasks([new("d", key="k")]),
            AddTasks([new("e", key="l")]),
            EndTask(run, moment(1)),
            AddTasks([new("f", key="l")]),
            AddTasks([new("g", 3, key="l")], "replace"),
        ]
    )
    refused = [getattr(each, "error", None) for each in outcomes]
    kinds = [type(each).__name__ for each in refused if each is not None]
    expect_equal("the errors", kinds, ["KeyExistsError"] * 2)
    expect(refused[0] is not None and refused[3] is not None, "others were refused")
    replaced = new("f", 3, key="l")
    expect_equal("what was replaced", [*outcomes[6].unwrap().tasks], [replaced])
    await expect_kept(repository, "a task after the batch", new("d", key="k"), replaced)


@checks
async def a_key_is_had_by_one(repository: TaskRepository) -> None:
    """However many add a task of a key at once, one of them is kept."""
    kept: list[Task] = []

    async def add(number: int) -> None:
        try:
            kept.extend((await repository.add([new(f"t{number}", key="k")])).new)
        except RefusedError as error:
            expect(isinstance(error, KeyExistsError), f"it raised {error!r}")

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(add, number)
    expect_equal("the tasks", await repository.find(TaskQuery()), kept)
    expect_equal("how many there are", len(kept), 1)
