"""Rows that cannot be read: their tasks have failed, and all others go on."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
import trio.testing
from sqlalchemy import make_url
from support import NOON, at, noon, open_bench, stored

from trio_gokugen import (
    KeyLimit,
    PartialHooks,
    Pool,
    PoolsDispatcher,
    Task,
    TaskQuery,
    TaskState,
    TrioClock,
    WorkRegistry,
    current_scheduler,
    current_task,
    open_scheduler,
)
from trio_gokugen.abc import KeyRoom, TaskFilter
from trio_gokugen.sql import open_sql_repository

pytestmark = pytest.mark.tables

DAMAGE = "UPDATE gokugen_task SET {} = {} WHERE id = 'bad'"
LETTER = "CAST(x'ff' AS TEXT)"
"""On SQLite, text that is none."""

DEEP = f"'{'[' * 2_000}{']' * 2_000}'"
LONG_NUMBER = f"""'{{"a": {"9" * 5_000}}}'"""

DAMAGES_OF_DUE_TASKS = [
    ("param", "'{'"),
    ("param", "'[1]'"),
    ("param", "'1'"),
    ("param", "7"),
    ("param", "x'ff'"),
    ("param", LETTER),
    ("param", DEEP),
    ("param", LONG_NUMBER),
    ("meta", "''"),
    ("meta", "'null'"),
    ("meta", LETTER),
    ("meta", DEEP),
    ("priority", "'high'"),
    ("priority", "0.5"),
    ("attempt", "'many'"),
    ("interruptions", "x'00'"),
    ("at_most_once", "'yes'"),
    ("at_most_once", "2"),
    ("created_at", "'yesterday'"),
    ("created_at", "9223372036854775807"),
    ("created_at", "1.5"),
    ("scheduled_at", "-9223372036854775807"),
    ("scheduled_at", "1.5"),
    ("deadline", "'tomorrow'"),
    ("deadline", "9223372036854775807"),
    ("cancelled_at", "'now'"),
    ("dispatched_at", LETTER),
    ("done_at", "'now'"),
    ("err", "x'ff'"),
    ("err", LETTER),
    ("rare", "'{'"),
    ("rare", "'[]'"),
    ("rare", "7"),
    ("rare", """'{"retry":null,"retries":"x","errors":[],"when":null}'"""),
    ("rare", """'{"retry":7,"retries":1,"errors":[],"when":null}'"""),
    ("rare", """'{"retry":null,"retries":1,"errors":7,"when":null}'"""),
    ("rare", """'{"retry":null,"retries":1,"errors":[],"when":7}'"""),
    ("result", LETTER),
    ("result", DEEP),
    ("progress", "'half'"),
    ("progress", "'0.5'"),
    ("progress", """'{"fraction":0.5}'"""),
    ("unique_key", "x'ff'"),
    ("unique_key", LETTER),
]


@pytest.mark.parametrize(("column", "value"), DAMAGES_OF_DUE_TASKS)
async def test_a_due_task_on_sqlite(
    autojump_clock: trio.testing.MockClock, sqlite_file: Path, column: str, value: str
) -> None:
    """
    A task of which a column cannot be read fails as it falls due, and says which it was;
    the others run, and nothing else is disturbed by it.
    """
    url = f"sqlite:///{sqlite_file}"
    await make(url)
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as connection:
        connection.execute(DAMAGE.format(column, value))
    await check_that_it_fails(url, column)


DAMAGES_ON_POSTGRESQL = [
    ("param", "'[1]'"),
    ("param", "'1'"),
    ("param", DEEP),
    ("param", LONG_NUMBER),
    ("meta", "'null'"),
    ("at_most_once", "2"),
    ("created_at", "'-infinity'"),
    ("created_at", "'infinity'"),
    ("scheduled_at", "'-infinity'"),
    ("scheduled_at", "'4000-01-01 BC'"),
    ("deadline", "'infinity'"),
    ("cancelled_at", "'20000-01-01'"),
    ("rare", "'[1]'"),
    ("result", DEEP),
    ("progress", "'1'"),
]


@pytest.mark.parametrize(("column", "value"), DAMAGES_ON_POSTGRESQL)
async def test_a_due_task_on_postgresql(
    autojump_clock: trio.testing.MockClock, postgresql_url: str, column: str, value: str
) -> None:
    """
    A task of which a column cannot be read fails as it falls due, and says which it was;
    the others run, and nothing else is disturbed by it.
    """
    await make(postgresql_url)
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(DAMAGE.format(column, value).encode())
    await check_that_it_fails(postgresql_url, column)


NEVER_DUE_ON_SQLITE = [
    ("state", "'asleep'"),
    ("state", LETTER),
    ("scheduled_at", "'soon'"),
    ("scheduled_at", "9223372036854775807"),
    ("work_id", LETTER),
    ("work_id", "x'ff'"),
    ("pool", LETTER),
    ("pool", "x'ff'"),
]


@pytest.mark.parametrize(("column", "value"), NEVER_DUE_ON_SQLITE)
async def test_a_task_that_cannot_fall_due_on_sqlite(
    autojump_clock: trio.testing.MockClock, sqlite_file: Path, column: str, value: str
) -> None:
    """
    A task of which it cannot be read when it is due, or for what, is told as failed; the
    others run, and nothing else is disturbed by it.
    """
    url = f"sqlite:///{sqlite_file}"
    await make(url)
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as connection:
        connection.execute(DAMAGE.format(column, value))
    await check_that_it_is_left(url, column)


@pytest.mark.parametrize(
    ("column", "value"), [("state", "'asleep'"), ("scheduled_at", "'infinity'")]
)
async def test_a_task_that_cannot_fall_due_on_postgresql(
    autojump_clock: trio.testing.MockClock, postgresql_url: str, column: str, value: str
) -> None:
    """
    A task of which it cannot be read when it is due, or for what, is told as failed; the
    others run, and nothing else is disturbed by it.
    """
    await make(postgresql_url)
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(DAMAGE.format(column, value).encode())
    await check_that_it_is_left(postgresql_url, column)


async def test_an_id_that_cannot_be_read(
    autojump_clock: trio.testing.MockClock, sqlite_file: Path
) -> None:
    """
    A task whose id cannot be read fails as it falls due, and the others run.
    """
    url = f"sqlite:///{sqlite_file}"
    await make(url)
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as connection:
        connection.execute(DAMAGE.format("id", LETTER))
    async with open_sql_repository(url) as repository, open_bench(repository) as bench:
        await bench[0].drain()
        assert sorted(bench[1].ids()) == ["first", "last"]
        tasks = await bench[0].find(TaskQuery(states={TaskState.FAILED}))
        assert [task.err for task in tasks] == [
            "the stored task cannot be read: id is damaged"
        ]


SET_VALUES = b"""UPDATE gokugen_task SET meta = '{"a":1}', param = '{"a":2}'"""

DAMAGES_BESIDE_LIMITS = [
    ("id", LETTER),
    ("param", "'{'"),
    ("param", "'[1]'"),
    ("param", "x'ff'"),
    ("param", LETTER),
    ("param", DEEP),
    ("meta", "'null'"),
    ("meta", "''"),
]


@pytest.mark.parametrize(("column", "value"), DAMAGES_BESIDE_LIMITS)
async def test_limits_by_value_on_sqlite(
    autojump_clock: trio.testing.MockClock, sqlite_file: Path, column: str, value: str
) -> None:
    """
    The same where so many of a value may run, which is looked for in all of them.
    """
    url = f"sqlite:///{sqlite_file}"
    await make(url)
    with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as connection:
        connection.execute(
            """UPDATE gokugen_task SET meta = '{"a":1}', param = '{"a":2}'"""
        )
        connection.execute(DAMAGE.format(column, value))
    await check_that_others_run_within_limits(url)


@pytest.mark.parametrize("value", ["'[1]'", "'1'", "'null'"])
async def test_limits_by_value_on_postgresql(
    autojump_clock: trio.testing.MockClock, postgresql_url: str, value: str
) -> None:
    """
    The same where so many of a value may run, which is looked for in all of them.
    """
    await make(postgresql_url)
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(SET_VALUES)
        connection.execute(DAMAGE.format("meta", value).encode())
    await check_that_others_run_within_limits(postgresql_url)


async def test_limits_by_what_is_not_text(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    A value that somebody else has written, and that cannot be encoded, counts as any other.
    """
    await make(database_url)
    values = """UPDATE gokugen_task SET meta = '{"a":"\\ud800"}', param = '{"a":2}'"""
    say(database_url, values)
    ran = await ran_within_limits(database_url)
    assert ran == [("first", 0.0), ("bad", 10.0), ("last", 20.0)]


NO_TEXT = [
    r'{"b":["\\\u0000"]}',
    r'{"\uD800":1}',
    r'{"b":"\udfff\udbff"}',
    r'{"b":"\\ud83d\ude00"}',
]
"""JSON with an escape that stands for no text."""


@pytest.mark.parametrize("column", ["param", "meta"])
@pytest.mark.parametrize("value", NO_TEXT)
async def test_json_that_the_database_does_not_look_into(
    database_url: str, column: str, value: str
) -> None:
    """
    Of what PostgreSQL keeps, but refuses to look into, nothing else is disturbed: neither
    limits by value nor a search.
    """
    one: dict[str, Any] = {"a": 1}
    text_too: dict[str, Any] = {"a": 2, "b": "\\u0000 \\ud800 😀"}
    async with open_sql_repository(database_url, synchronous="off") as repository:
        await repository.add(
            [stored("first", param=one, meta=one), stored("bad"), stored("last")]
        )
        await repository.add([stored("text", param=text_too, meta=text_too)])
        change(database_url, column, value)
        limits = KeyLimit(1, param="a"), KeyLimit(1, meta="a")
        only = TaskFilter(rooms=tuple(KeyRoom(each) for each in limits))
        only.take(stored("running", param=one, meta=one))
        next_ = await repository.get_next(only)
        assert next_ is not None
        assert next_.id == "bad"
        claimed = await repository.claim(5, NOON, only)
        assert [task.id for task in claimed.tasks] == ["bad", "last", "text"]
        found = await repository.find(TaskQuery(meta=one))
        assert [task.id for task in found] == ["first"]
        found = await repository.find(TaskQuery(meta=text_too))
        assert [task.id for task in found] == ["text"]


@pytest.mark.parametrize("value", ["1e400", "-1e400"])
async def test_limits_by_numbers_that_are_too_large(database_url: str, value: str) -> None:
    """
    A number that somebody else has written, and that is beyond all floats, counts as any
    other.
    """
    async with open_sql_repository(database_url, synchronous="off") as repository:
        await repository.add([stored("bad"), stored("last", param={"a": 1})])
        change(database_url, "param", f'{{"a":{value}}}')
        only = TaskFilter(rooms=(KeyRoom(KeyLimit(1, param="a")),))
        [bad] = (await repository.claim(1, NOON, only)).tasks
        assert bad.id == "bad"
        only.take(bad)
        await repository.add([stored("like it", priority=1)])
        change(database_url, "param", f'{{"a":{value}}}', "like it")
        next_ = await repository.get_next(only)
        assert next_ is not None
        assert next_.id == "last"
        [last] = (await repository.claim(5, NOON, only)).tasks
        assert last.id == "last"


def say(url: str, statement: str) -> None:
    """Say something to the database as nobody of ours does."""
    if url.startswith("sqlite"):
        file = make_url(url).database or ""
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            connection.execute(statement)
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(statement.encode())


def change(url: str, column: str, value: str, task_id: str = "bad") -> None:
    """Write a value as nobody does."""
    changed = DAMAGE.format(column, f"'{value}'").replace("'bad'", f"'{task_id}'")
    say(url, changed)


async def check_that_others_run_within_limits(url: str) -> None:
    assert await ran_within_limits(url) == [("first", 0.0), ("last", 10.0)]
    async with open_sql_repository(url, synchronous="off") as repository:
        failed = await repository.find(TaskQuery(states={TaskState.FAILED}))
        assert [(task.err or "")[:32] for task in failed] == [
            "the stored task cannot be read: "
        ]


async def ran_within_limits(url: str) -> list[tuple[str, float]]:
    works = WorkRegistry()
    ran: list[tuple[str, float]] = []

    @works.register
    async def note(a: int) -> None:
        ran.append((current_task().id, trio.current_time()))
        await trio.sleep(10)

    limits = [KeyLimit(1, param="a"), KeyLimit(1, meta="a")]
    async with open_sql_repository(url, synchronous="off") as repository:
        async with open_scheduler(
            works,
            repository,
            PoolsDispatcher(works, default=Pool(5, limits=limits)),
            clock=TrioClock(NOON, 0.0),
        ) as scheduler:
            await scheduler.drain()
    return ran


@pytest.mark.parametrize("value", ["'half'", "'{}'", """'{"fraction":2}'"""])
async def test_progress_of_a_run_that_ends(
    autojump_clock: trio.testing.MockClock, sqlite_file: Path, value: str
) -> None:
    """
    A run whose progress cannot be read ends as it would, and only then is found damaged.
    """

    async def work() -> None:
        await current_scheduler().progress(0.5)
        with closing(sqlite3.connect(sqlite_file, isolation_level=None)) as connection:
            connection.execute(DAMAGE.format("progress", value))
        await trio.sleep(1)

    done: list[TaskState] = []

    async def note(task: Task) -> None:
        done.append(task.state)

    hooks = PartialHooks(on_task_done=note)
    async with (
        open_sql_repository(f"sqlite:///{sqlite_file}", synchronous="off") as repository,
        open_bench(repository, hooks=hooks) as (scheduler, bench),
    ):
        bench.works.register("work", work)
        await scheduler.add_task("work", after=0, id="bad")
        await scheduler.drain()
        assert done == [TaskState.DONE]
        err = "the stored task cannot be read: progress is damaged"
        assert read(await repository.get("bad")) == ("bad", TaskState.FAILED, err)


async def check_that_it_is_left(url: str, column: str) -> None:
    async with (
        open_sql_repository(url, synchronous="off") as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await repository.count_pending()
        assert await repository.count_pools() == {}
        await scheduler.drain()
        assert sorted(bench.ids()) == ["first", "last"]
        err = f"the stored task cannot be read: {column} is damaged"
        assert read(await scheduler.wait("bad")) == ("bad", TaskState.FAILED, err)
        assert {task.id for task in await scheduler.find()} == {
            *("first", "bad", "last", "ended")
        }
        assert set(await scheduler.delete_ended()) == {"first", "last", "ended"}


async def make(url: str) -> None:
    async with open_sql_repository(url, synchronous="off") as repository:
        await repository.add([stored("first"), stored("bad"), stored("last")])
        await repository.add([stored("ended", state=TaskState.DONE, done_at=noon())])


async def check_that_it_fails(url: str, column: str) -> None:
    async with open_sql_repository(url, synchronous="off") as repository:
        err = f"the stored task cannot be read: {column} is damaged"
        assert read(await repository.get("bad")) == ("bad", TaskState.FAILED, err)
        assert await repository.count_pending() == {"note": 3}
        assert await repository.find(TaskQuery(meta={"x": 1})) == []
        async with open_bench(repository) as (scheduler, bench):
            await scheduler.drain()
            await scheduler.add_tasks([at(1, "later")])
            await scheduler.drain()
            assert sorted(bench.ids()) == ["first", "last", "later"]
            bad = await scheduler.wait("bad")
            assert read(bad) == ("bad", TaskState.FAILED, err)
            assert scheduler.statistics().failed == 1
            assert {task.id for task in await scheduler.find()} == {
                *("first", "bad", "last", "ended", "later")
            }
            assert await repository.count_pending() == {}
            assert set(await scheduler.delete_ended()) == {
                *("first", "bad", "last", "ended", "later")
            }


def read(task: Task) -> tuple[str, TaskState, str | None]:
    return task.id, task.state, task.err
