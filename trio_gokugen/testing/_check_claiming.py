"""Checks: what a claim gets."""

from __future__ import annotations

import attrs

from trio_gokugen._json import JSON
from trio_gokugen._task import Task, TaskState, TaskUpdate
from trio_gokugen.abc import KeyLimit, KeyRoom, OfPools, TaskFilter, TaskRepository

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
async def claim_respects_the_pools(repository: TaskRepository) -> None:
    """Tasks go to the pool that they name; those that name none, to that of their work."""
    where = {"a": "p", "b": None, "c": "q", "d": "p", "e": None, "f": "P"}
    await repository.add(
        [
            new(name, work_id="one" if name in "abc" else "two", pool=pool)
            for name, pool in where.items()
        ]
    )
    p, one = frozenset({"p"}), frozenset({"one"})
    for only, expected in (
        (TaskFilter(pools=OfPools(works=frozenset())), ""),
        (TaskFilter(pools=OfPools(frozenset({""}), frozenset())), ""),
        (TaskFilter(pools=OfPools(works=one)), "b"),
        (TaskFilter(pools=OfPools()), "be"),
        (TaskFilter(one, pools=OfPools()), "b"),
        (TaskFilter(pools=OfPools(p, frozenset())), "ad"),
        (TaskFilter(pools=OfPools(p | {"r"}, one)), "abd"),
        (TaskFilter(one, pools=OfPools(p)), "ab"),
        (TaskFilter(pools=OfPools(p | {"q"})), "abcde"),
        (TaskFilter(one), "abc"),
        (TaskFilter(), "abcdef"),
    ):
        head = await repository.get_next(only)
        first = None if head is None else head.id
        expect_equal(f"what is next of {only}", first, expected[:1] or None)
        claimed = await repository.claim(10, moment(5), only)
        ids = "".join(task.id for task in claimed.tasks)
        expect_equal(f"a claim of {only}", ids, expected)
        for run in claimed.tasks:
            await repository.revert(run)


@checks
async def a_task_changes_its_pool(repository: TaskRepository) -> None:
    """A task that is given another pool, or none, is claimed for that."""
    await repository.add([new(name, pool="p") for name in "abc"])
    await repository.update("b", TaskUpdate(pool="q"))
    await repository.update("a", TaskUpdate(pool=None))
    for names, expected in ((), "a"), ({"q"}, "b"), ({"p"}, "c"):
        only = TaskFilter(pools=OfPools(frozenset(names)))
        claimed = await repository.claim(10, moment(5), only)
        expect_equal(f"tasks of {names}", "".join(t.id for t in claimed.tasks), expected)
    pools = [(await repository.get(task_id)).pool for task_id in "abc"]
    expect_equal("the pools of the tasks", pools, [None, "q", "p"])


@checks
async def claim_respects_the_rooms(repository: TaskRepository) -> None:
    """A claim takes of each value only as many as there is room for, beside those running.

    Whoever has no room keeps nobody waiting, and is claimed once there is room.
    """
    values: dict[str, JSON] = {"a": "x", "b": "x", "c": 'ä"\n', "d": 1, "e": True, "f": "x"}
    values |= {"g": 'ä"\n', "h": 1, "i": None, "j": [1], "k": {}, "l": 1.5, "m": 1.5}
    values |= {"n": "1", "o": "true"}
    await repository.add(
        [new(name, param={"customer": value}) for name, value in values.items()]
    )
    await repository.add([new("p"), new("q", meta={"customer": "x"})])
    limit = KeyLimit(2, param="customer")
    room = KeyRoom(limit, {'"x"': 1, "1": 2, "true": 1, "1.5": 1})
    only = TaskFilter(rooms=(room,))
    async with unchanged(repository, "a claim of none"):
        await repository.claim(0, moment(5), only)
    expect_equal("a claim of one", await _ids(repository, 1, only), ["a"])
    room.begin(new("a", param={"customer": "x"}))
    rest = ["c", "e", "g", "i", "j", "k", "l", "n", "o", "p", "q"]
    expect_equal("a claim of all", await _ids(repository, 99, only), rest)
    expect_equal("how many run", room.running, {'"x"': 2, "1": 2, "true": 1, "1.5": 1})
    expect_equal("a claim of what has room", await _ids(repository, 99, only), ["m"])
    expect_equal(
        "a claim with no room",
        await _ids(repository, 99, TaskFilter(rooms=(KeyRoom(limit, {'"x"': 2, "1": 2}),))),
        [],
    )
    room.running.clear()
    expect_equal("a claim with room again", await _ids(repository, 1, only), ["b"])
    expect_equal("a claim without limits", await claimed_ids(repository), ["d", "f", "h"])


@checks
async def claim_respects_several_rooms(repository: TaskRepository) -> None:
    """A task is claimed only if there is room for it by each of several limits."""
    pairs = [("x", 1), ("x", 2), ("y", 1), ("y", 2), ("z", 3), ("z", 1)]
    for name in ("customer", "a.b", "$c", "0", "it's", 'so "called"', "d\\e", "[0]"):
        await repository.add(
            [
                new(f"{name} {one}{two}", param={name: one}, meta={"n": two})
                for one, two in pairs
            ]
        )
        limits = KeyLimit(1, param=name), KeyLimit(1, meta="n")
        only = TaskFilter(rooms=tuple(KeyRoom(limit, {}) for limit in limits))
        for expected in ["x1", "y2", "z3"], ["x2", "y1"], ["z1"]:
            ids = [f"{name} {each}" for each in expected]
            first = await repository.get_next(only)
            expect_equal("what is next", None if first is None else first.id, ids[0])
            expect_equal("a claim", await _ids(repository, 99, only), ids)


async def _ids(repository: TaskRepository, limit: int, only: TaskFilter) -> list[str]:
    return [task.id for task in (await repository.claim(limit, moment(5), only)).tasks]


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
