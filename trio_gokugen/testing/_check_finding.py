"""Checks: what is looked for is found, all of it, once, in order."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import attrs

from trio_gokugen._query import TaskQuery, find_order
from trio_gokugen._task import Task, TaskState, TaskUpdate
from trio_gokugen.abc import TaskRepository

from ._expect import expect, expect_equal
from ._repository_kit import RepositoryChecks, moment, new

checks = RepositoryChecks()

_S = TaskState
_TASKS = [
    new("e", 9, work_id="one", meta={"k": 1, "l": "x"}, deadline=moment(20)),
    new("d", 9, work_id="two", priority=2, meta={"k": True}),
    new("c", 3, work_id="one", priority=-1, meta={"k": None}, created_at=moment(-5)),
    new("b", 3, work_id="ONE", meta={"k": {"m": [1, {"n": None}]}}),
    new("a", 3, work_id="two", meta={"k": "1"}, deadline=moment(30.000001)),
    new("f", 3, work_id="one", created_at=moment(-2), param={"k": 1}),
    new("g", 5, work_id="one", state=_S.DISPATCHED, dispatched_at=moment(6), attempt=1),
    new("h", 5, work_id="two", state=_S.DONE, done_at=moment(8), meta={"l": "x"}),
    new("i", 6, work_id="two", state=_S.FAILED, done_at=moment(9), err="x", priority=2),
    new("j", 7, work_id="one", state=_S.CANCELLED, cancelled_at=moment(2)),
    new("k", 7, work_id="two", state=_S.CANCELLED, cancelled_at=moment(4), priority=7),
    new(
        "l",
        8,
        state=_S.DONE,
        dispatched_at=moment(8),
        done_at=moment(8.000001),
        meta={"k": 1.0, "": []},
    ),
]


def _ids(tasks: Sequence[Task]) -> list[str]:
    return [task.id for task in tasks]


async def _expect_found(
    repository: TaskRepository, *queries: tuple[TaskQuery, str]
) -> None:
    await repository.add(_TASKS)
    for query, expected in queries:
        found = _ids(await repository.find(query))
        expect_equal(f"the tasks found by {query}", found, list(expected))


@checks
async def find_finds_everything_in_order(repository: TaskRepository) -> None:
    """Tasks come by `scheduled_at`, largest priority, `created_at`, id."""
    await _expect_found(repository, (TaskQuery(), "fabcghikjlde"))
    ids = ["Z", "y", "yy", "y ", "ä", "z", "\uffee", "\U0001f552", "~", "É", "9", "10"]
    await repository.add([new(task_id, 100) for task_id in ids])
    query = TaskQuery(scheduled_at=(moment(100), None))
    found = _ids(await repository.find(query))
    expect_equal("ids in the order of their letters' numbers", found, sorted(ids))


@checks
async def find_gives_whole_tasks(repository: TaskRepository) -> None:
    """What is found is each task as it stands now, with all its fields."""
    await repository.add(_TASKS)
    updated, _ = await repository.update("e", TaskUpdate(param={"new": [1]}))
    found = {task.id: task for task in await repository.find(TaskQuery())}
    expected = {task.id: task for task in [updated, *_TASKS[1:]]}
    expect_equal("all tasks", found, expected)


@checks
async def find_by_ids(repository: TaskRepository) -> None:
    """Only tasks with one of the ids are found; with none given, no task is."""
    await _expect_found(
        repository,
        (TaskQuery(ids={"l", "b", "B", "?"}), "bl"),
        (TaskQuery(ids=["a"], work_ids={"one"}), ""),
        (TaskQuery(ids=set()), ""),
    )


@checks
async def find_by_states(repository: TaskRepository) -> None:
    """Only tasks in one of the states are found; with none given, no task is."""
    await _expect_found(
        repository,
        (TaskQuery(states={_S.SCHEDULED}), "fabcde"),
        (TaskQuery(states={_S.DISPATCHED}), "g"),
        (TaskQuery(states=[_S.DONE, _S.FAILED]), "hil"),
        (TaskQuery(states=(_S.CANCELLED,)), "kj"),
        (TaskQuery(states=()), ""),
        (TaskQuery(states=set(_S)), "fabcghikjlde"),
    )


@checks
async def find_by_schedule_ids(repository: TaskRepository) -> None:
    """Only tasks of these schedules are found, in whatever state."""
    await repository.add(
        [
            attrs.evolve(task, schedule_id=name, nominal_at=moment(1))
            for task, name in zip(_TASKS, ["s", "S", "t"] * 4, strict=True)
        ]
    )
    for schedule_ids, expected in (
        ({"s", "?"}, "begj"),
        ({"S", "t"}, "acdfhikl"),
        (set[str](), ""),
    ):
        found = _ids(await repository.find(TaskQuery(schedule_ids=schedule_ids)))
        expect_equal(f"tasks of {schedule_ids}", sorted(found), list(expected))
    since = (moment(1), None)
    query = TaskQuery(schedule_ids={"s"}, states={_S.SCHEDULED}, nominal_at=since)
    found = _ids(await repository.find(query, limit=1))
    expect_equal("the first pending one", found, ["b"])


@checks
async def find_by_pools(repository: TaskRepository) -> None:
    """Only tasks that name one of these pools are found, in whatever state."""
    names = ["p", "P", None]
    await repository.add(
        [
            attrs.evolve(task, pool=name)
            for task, name in zip(_TASKS, names * 4, strict=True)
        ]
    )
    for query, expected in (
        (TaskQuery(pools={"p", "?"}), "begj"),
        (TaskQuery(pools={"p", "P"}), "abdeghjk"),
        (TaskQuery(pools=()), ""),
        (TaskQuery(pools={""}), ""),
        (TaskQuery(pools={"p"}, states={_S.SCHEDULED}), "be"),
        (TaskQuery(pools={"p"}, work_ids={"one"}), "gje"),
        (TaskQuery(pools={"p"}, ids={"b", "c"}), "b"),
    ):
        found = _ids(await repository.find(query))
        expect_equal(f"tasks of {query}", sorted(found), sorted(expected))


@checks
async def find_by_work_ids(repository: TaskRepository) -> None:
    """Only tasks of one of the works are found, by exactly that name."""
    await _expect_found(
        repository,
        (TaskQuery(work_ids={"one"}), "fcgje"),
        (TaskQuery(work_ids={"ONE"}), "b"),
        (TaskQuery(work_ids={"two", "ONE", "unheard of"}), "abhikd"),
        (TaskQuery(work_ids={"unheard of"}), ""),
        (TaskQuery(work_ids=()), ""),
    )


@checks
async def find_by_scheduled_at(repository: TaskRepository) -> None:
    """A range of moments includes its beginning and excludes its end."""
    await _expect_found(
        repository,
        (TaskQuery(scheduled_at=(moment(5), moment(7))), "ghi"),
        (TaskQuery(scheduled_at=(moment(5.000001), moment(7.000001))), "ikj"),
        (TaskQuery(scheduled_at=(moment(8), None)), "lde"),
        (TaskQuery(scheduled_at=(None, moment(5))), "fabc"),
        (TaskQuery(scheduled_at=(None, None)), "fabcghikjlde"),
        (TaskQuery(scheduled_at=(moment(5), moment(5))), ""),
    )


@checks
async def find_by_other_moments(repository: TaskRepository) -> None:
    """The other moments are ranges alike; a task without the moment is not in any."""
    await _expect_found(
        repository,
        (TaskQuery(created_at=(moment(-5), moment(-2))), "c"),
        (TaskQuery(created_at=(None, moment(0))), "fc"),
        (TaskQuery(deadline=(moment(20), moment(30))), "e"),
        (TaskQuery(deadline=(moment(30.000001), None)), "a"),
        (TaskQuery(deadline=(None, None)), "ae"),
        (TaskQuery(cancelled_at=(moment(2), moment(4))), "j"),
        (TaskQuery(cancelled_at=(None, None)), "kj"),
        (TaskQuery(dispatched_at=(None, moment(8))), "g"),
        (TaskQuery(dispatched_at=(None, None)), "gl"),
        (TaskQuery(done_at=(moment(8), moment(8.000001))), "h"),
        (TaskQuery(done_at=(moment(8.000001), None)), "il"),
    )


@checks
async def find_by_priority(repository: TaskRepository) -> None:
    """A priority is found exactly, or in a range that excludes its end."""
    await _expect_found(
        repository,
        (TaskQuery(priority=2), "id"),
        (TaskQuery(priority=0), "fabghjle"),
        (TaskQuery(priority=(1, None)), "ikd"),
        (TaskQuery(priority=(2, 7)), "id"),
        (TaskQuery(priority=(None, 0)), "c"),
        (TaskQuery(priority=(None, None)), "fabcghikjlde"),
    )


@checks
async def find_by_meta(repository: TaskRepository) -> None:
    """Entries of `meta` are compared as JSON: 1 is 1.0, not true; null is not nothing."""
    await _expect_found(
        repository,
        (TaskQuery(meta={"k": 1}), "le"),
        (TaskQuery(meta={"k": 1.0}), "le"),
        (TaskQuery(meta={"k": True}), "d"),
        (TaskQuery(meta={"k": None}), "c"),
        (TaskQuery(meta={"k": "1"}), "a"),
        (TaskQuery(meta={"k": {"m": [1, {"n": None}]}}), "b"),
        (TaskQuery(meta={"k": {"m": [1]}}), ""),
        (TaskQuery(meta={"k": {}}), ""),
        (TaskQuery(meta={"l": "x"}), "he"),
        (TaskQuery(meta={"l": "x", "k": 1}), "e"),
        (TaskQuery(meta={"": []}), "l"),
        (TaskQuery(meta={"K": 1}), ""),
        (TaskQuery(meta={}), "fabcghikjlde"),
    )


@checks
async def find_by_several_fields(repository: TaskRepository) -> None:
    """A task must match every field that is given."""
    await _expect_found(
        repository,
        (TaskQuery(states={_S.DONE}, work_ids={"two"}), "h"),
        (TaskQuery(states={_S.SCHEDULED}, priority=0, work_ids={"one"}), "fe"),
        (TaskQuery(meta={"k": 1}, scheduled_at=(moment(9), None)), "e"),
        (TaskQuery(states={_S.DONE}, cancelled_at=(None, None)), ""),
        (TaskQuery(done_at=(None, moment(9)), meta={"l": "x"}, priority=(0, 1)), "h"),
    )


@checks
async def find_respects_the_limit(repository: TaskRepository) -> None:
    """At most `limit` tasks are found: the first ones."""
    await repository.add(_TASKS)
    for limit, expected in ((0, ""), (1, "f"), (4, "fabc"), (99, "fabcghikjlde")):
        found = _ids(await repository.find(TaskQuery(), limit))
        expect_equal(f"the first {limit} tasks", found, list(expected))
    found = _ids(await repository.find(TaskQuery(states={_S.CANCELLED}), limit=1))
    expect_equal("the first cancelled task", found, ["k"])


async def _pages(repository: TaskRepository, query: TaskQuery, size: int) -> list[str]:
    ids: list[str] = []
    page = await repository.find(query, size)
    while page:
        expect(len(page) <= size, f"a page of {size} has {len(page)} tasks")
        ids += _ids(page)
        page = await repository.find(query, size, after=page[-1])
    return ids


@checks
async def pages_are_complete(repository: TaskRepository) -> None:
    """Pages, each after the last task of the one before, give every task once."""
    await repository.add(_TASKS)
    # Equal in all but their ids, so that pages end between them.
    await repository.add([new(f"t{n}", 3) for n in range(10)])
    for query in (TaskQuery(), TaskQuery(states={_S.SCHEDULED}, priority=(0, None))):
        everything = _ids(await repository.find(query))
        for size in (1, 2, 3, 7):
            pages = await _pages(repository, query, size)
            expect_equal(f"{query} in pages of {size}", pages, everything)


def _many_tasks(random: Random) -> list[Task]:
    return [
        attrs.evolve(
            random.choice(_TASKS),
            id=f"t{n}",
            work_id=random.choice("abc"),
            pool=random.choice([None, None, "p", "q"]),
            scheduled_at=moment(random.randrange(4)),
            priority=random.randrange(2),
            created_at=moment(-random.randrange(3)),
        )
        for n in random.sample(range(100), 60)
    ]


def _any_query(random: Random) -> TaskQuery:
    low, high = sorted(random.sample(range(5), 2))
    return TaskQuery(
        states=random.choice([None, set(random.sample([*_S], random.randrange(5)))]),
        work_ids=random.choice([None, None, {"a"}, {"c", "b", "?"}]),
        pools=random.choice([None, None, {"p"}, {"q", "p", "?"}]),
        scheduled_at=random.choice([None, (moment(low), moment(high))]),
        priority=random.choice([None, None, 1]),
        meta=random.choice([{}, {}, {"k": 1}]),
    )


@checks
async def any_search_finds_what_matches(repository: TaskRepository) -> None:
    """Whatever is asked for together, with a limit or as a page, it is found in order."""
    random = Random(0)
    tasks = sorted(_many_tasks(random), key=find_order)
    await repository.add(tasks)
    for _ in range(100):
        query = _any_query(random)
        limit = random.choice([None, 1, 5, 100])
        after = random.choice([None, random.choice(tasks)])
        expected = [
            task
            for task in tasks
            if query.matches(task)
            and (after is None or find_order(task) > find_order(after))
        ][:limit]
        found = _ids(await repository.find(query, limit, after))
        where = f"{query}, at most {limit}, after {after and after.id}"
        expect_equal(f"the tasks found by {where}", found, _ids(expected))


@checks
async def a_page_follows_a_task_that_is_gone(repository: TaskRepository) -> None:
    """The task a page follows may have been deleted, or moved: its old place counts."""
    await repository.add(_TASKS)
    by_id = {task.id: task for task in _TASKS}
    await repository.delete_ended()
    await repository.update("d", TaskUpdate(scheduled_at=moment(0)))
    await repository.update("f", TaskUpdate(scheduled_at=moment(100)))
    for task_id, expected in (
        ("h", "ef"),  # deleted, as the next three
        ("i", "ef"),
        ("k", "ef"),
        ("l", "ef"),
        ("d", "ef"),
        ("f", "abcgef"),
    ):
        found = _ids(await repository.find(TaskQuery(), after=by_id[task_id]))
        expect_equal(f"what follows {task_id} as it was", found, list(expected))
