"""Opening a repository: what is said to it, and what it makes of that."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tracemalloc
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.pool import QueuePool
from support import at, open_bench, stored

from trio_gokugen import TaskExistsError, TaskQuery, TaskState
from trio_gokugen.sql import SQLCore, open_sql_repository

MANY = 40_000
"""More tasks than a statement may have parameters, on SQLite."""


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        ({"url": "mysql://x"}, ValueError, "url"),
        ({"url": "tasks.db"}, ValueError, "url"),
        ({"url": "sqlite://tasks.db"}, ValueError, "url"),
        ({"url": None}, ValueError, "url"),
        ({"url": Path("tasks.db")}, ValueError, "url"),
        ({"url": "sqlite+aiosqlite:///x"}, ValueError, "url"),
        ({"url": "postgresql+asyncpg://x"}, ValueError, "url"),
        ({"synchronous": "sometimes"}, ValueError, "synchronous"),
        ({"name": ""}, ValueError, "name"),
        ({"name": "x" * 101}, ValueError, "name"),
        ({"name": 5}, ValueError, "name"),
        ({"lease": 0}, ValueError, "lease"),
        ({"lease": float("nan")}, ValueError, "lease"),
        ({"lease": float("inf")}, ValueError, "lease"),
        ({"lease": timedelta(days=1_000)}, ValueError, "lease"),
        ({"lease": "30"}, TypeError, "lease"),
        ({"poll": -1}, ValueError, "poll"),
        ({"poll": True}, TypeError, "poll"),
        ({"keep_ended": -1}, ValueError, "keep_ended"),
        ({"keep_ended": timedelta(seconds=-1)}, ValueError, "keep_ended"),
        ({"keep_ended": 1.5}, TypeError, "keep_ended"),
    ],
    ids=str,
)
async def test_bad_arguments(
    arguments: dict[str, Any], error: type[Exception], names: str, tmp_path: Path
) -> None:
    """
    What cannot be used is refused at the call by an error that names it; no file is made.
    """
    given: dict[str, Any] = {"url": f"sqlite:///{tmp_path / 'tasks.db'}"} | arguments
    with pytest.raises(error, match=f"^{names}: "):
        async with open_sql_repository(**given):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_an_engine_of_another_database_is_refused() -> None:
    """
    An engine that is neither of pysqlite nor of psycopg is refused.
    """
    engine = create_engine("sqlite+pysqlite://")
    engine.dialect.driver = "pysqlcipher"
    with pytest.raises(ValueError, match=r"^engine: must be of"):
        async with open_sql_repository(engine):
            pass
    with pytest.raises(ValueError, match=r"^engine: must be of"):
        SQLCore(engine, name="x")


@pytest.mark.parametrize("kind", [str, make_url], ids=["text", "URL"])
@pytest.mark.parametrize(
    ("synchronous", "number"), [("off", 0), ("normal", 1), ("full", 2), ("extra", 3)]
)
async def test_how_sqlite_writes(
    sqlite_url: str, kind: Any, synchronous: Any, number: int
) -> None:
    """
    A file is written ahead, and as durably as is asked for.
    """
    async with open_sql_repository(kind(sqlite_url), synchronous=synchronous) as repository:
        with repository.store.engine.connect() as connection:
            assert connection.scalar(text("PRAGMA synchronous")) == number
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
            assert connection.scalar(text("PRAGMA busy_timeout")) == 10_000


async def test_it_is_durable_unless_said_otherwise(sqlite_url: str) -> None:
    """
    By default a commit is on the disk before it is answered.
    """
    async with open_sql_repository(sqlite_url) as repository:
        with repository.store.engine.connect() as connection:
            assert connection.scalar(text("PRAGMA synchronous")) == 2


async def test_what_is_in_a_url_stays(postgresql_url: str) -> None:
    """
    Options that a URL of PostgreSQL gives stand, in place of ours.
    """
    url = f"{postgresql_url}&options=-c%20timezone%3DAsia/Tokyo&connect_timeout=3"
    async with open_sql_repository(url) as repository:
        with repository.store.engine.connect() as connection:
            assert connection.scalar(text("SHOW timezone")) == "Asia/Tokyo"


async def test_an_engine_of_ones_own_stays_open(sqlite_url: str) -> None:
    """
    An engine that was given is not disposed of, and its settings are left as they are.
    """
    engine = create_engine(sqlite_url)
    async with open_sql_repository(engine) as repository:
        await repository.count_pending()
        with engine.connect() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "delete"
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedin() > 0
    engine.dispose()


async def test_tasks_are_there_after_opening_again(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    What was added is there when the database is opened again, and runs.
    """
    async with open_sql_repository(database_url) as repository:
        async with open_bench(repository) as (scheduler, bench):
            await scheduler.add_tasks([at(5, "a", param={}), at(1e6, "b")])
            await scheduler.wait("a")
            assert bench.starts == [("a", 5.0)]
    async with open_sql_repository(database_url) as repository:
        async with open_bench(repository) as (scheduler, bench):
            [a, b] = await scheduler.find()
            assert (a.state, b.state) == (TaskState.DONE, TaskState.SCHEDULED)
            await scheduler.drain()
            assert bench.starts == [("b", 1e6)]


def test_sqlite_alone_needs_no_psycopg() -> None:
    """
    With SQLite, nothing is needed that only PostgreSQL needs; with neither, no SQLAlchemy.
    """
    program = """
import sys, trio
import trio_gokugen, trio_gokugen.testing
assert not {"sqlalchemy", "alembic", "psycopg", "filelock"} & set(sys.modules)
sys.modules["psycopg"] = None
from trio_gokugen.sql import open_sql_repository
async def main():
    async with open_sql_repository("sqlite://") as repository:
        assert await repository.get_next() is None
    try:
        async with open_sql_repository("postgresql://x/y"):
            pass
    except ModuleNotFoundError as error:
        assert "pip install trio_gokugen[postgresql]" in str(error)
    else:
        raise AssertionError
trio.run(main)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


# -- keeping it small ------------------------------------------------------------------


async def _ended(
    url: str, keep: int | timedelta, count: int, pause: float, every: float = 1
) -> list[str]:
    """Run so many tasks, one a second, and tell which are kept some time after that."""
    async with open_sql_repository(url, keep_ended=keep) as repository:
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_tasks([at(n * every, f"{n:04}") for n in range(count)])
            await scheduler.drain()
            await trio.sleep(pause)
            return [task.id for task in await scheduler.find(limit=None)]


async def test_so_many_ended_tasks_are_kept(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    Of ended tasks the latest are kept, as many as was said, within a minute.
    """
    kept = await _ended(database_url, 10, 50, 61)
    assert kept == [f"{n:04}" for n in range(40, 50)]


async def test_ended_tasks_are_kept_for_so_long(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    Ended tasks are kept for as long as was said, and deleted within a minute after.
    """
    kept = await _ended(database_url, timedelta(minutes=10), 50, 600)
    assert "0049" in kept
    kept = await _ended(database_url, timedelta(minutes=10), 0, 700)
    assert kept == []


@pytest.mark.uncovered
async def test_none_is_kept(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    With `keep_ended=0` none is kept, however many have ended at once.
    """
    assert await _ended(sqlite_url, 0, 2_500, 61, every=0) == []


async def test_nothing_wakes_for_nothing(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    With `keep_ended`, a scheduler that has nothing to do is not woken for that.
    """
    async with open_sql_repository(sqlite_url, keep_ended=10) as repository:
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_tasks([at(n, str(n)) for n in range(5)])
            await scheduler.drain()
            await trio.sleep(1_000)
            statements = 0

            def count(*_: object) -> None:
                nonlocal statements
                statements += 1

            event.listen(repository.store.engine, "before_cursor_execute", count)
            await trio.sleep(3_600)
            assert statements == 0


@pytest.mark.uncovered
async def test_the_file_is_used_again(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    Where ended tasks are deleted, the file does not grow with every task.
    """
    file = tmp_path / "tasks.db"
    sizes: list[int] = []
    async with open_sql_repository(f"sqlite:///{file}", synchronous="off") as repository:
        async with open_bench(repository) as (scheduler, _):
            for turn in range(8):
                await scheduler.add_tasks([at(0, f"{turn} {n}") for n in range(1_000)])
                await scheduler.drain()
                deleted = await scheduler.delete_ended()
                assert len(deleted) == 1_000
                with closing(sqlite3.connect(file)) as connection:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                sizes.append(file.stat().st_size)
    # How full its pages are differs by some; 6,000 more tasks would be four times as much.
    assert max(sizes[2:]) < sizes[1] * 1.1


async def test_many_are_deleted_in_steps(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    However many ended tasks are deleted, others are served in between.
    """
    async with open_sql_repository(sqlite_url, synchronous="off") as repository:
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_tasks([at(0, f"{n:04}") for n in range(3_500)])
            await scheduler.drain()
            sizes: list[int] = []
            original = repository.apply

            async def apply(operations: Any) -> Any:
                outcomes = await original(operations)
                sizes.extend(len(each.unwrap()) for each in outcomes)
                return outcomes

            repository.apply = apply  # type: ignore[method-assign]
            deleted = await scheduler.delete_ended(limit=2_500)
            assert deleted == [f"{n:04}" for n in range(2_500)]
            assert sizes == [1_000, 1_000, 500]
            assert len(await scheduler.delete_ended()) == 1_000
            assert await scheduler.find(TaskQuery(states={TaskState.DONE})) == []


@pytest.mark.uncovered
async def test_very_many_are_added_at_once(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    Many tasks are added in one step, all or none, by statements of bounded size.
    """
    async with open_sql_repository(sqlite_url, synchronous="off") as repository:
        async with open_bench(repository) as (scheduler, _):
            params = [at(1e6, f"{n:06}") for n in range(MANY)]
            await scheduler.add_tasks(params)
            assert await repository.count_pending() == {"note": MANY}
            with pytest.raises(TaskExistsError) as caught:
                await scheduler.add_tasks([at(1e6, "new"), *reversed(params)])
            assert caught.value.task_id == f"{MANY - 1:06}"
            assert await repository.count_pending() == {"note": MANY}


@pytest.mark.uncovered
async def test_what_adding_many_takes(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    What is in memory while tasks are added is hardly more than the tasks themselves.
    """
    peaks: list[float] = []
    for count in 10_000, 20_000:
        tasks = [stored(f"{count} {n}", param={"text": "x" * 500}) for n in range(count)]
        async with open_sql_repository(sqlite_url, synchronous="off") as repository:
            await repository.get_next()  # so that all is imported
            tracemalloc.start()
            await repository.add(tasks)
            peaks.append(tracemalloc.get_traced_memory()[1] / count)
            tracemalloc.stop()
    assert max(peaks) < 500
