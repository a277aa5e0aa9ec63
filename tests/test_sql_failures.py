"""Databases that are locked, full, read-only, damaged, gone, or not there at all.

The scheduler tells the hooks, and with `BackoffHooks` goes on by itself once it can.
"""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
import trio.testing
from postgresql import Server
from sql_support import Watch, original, patient
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import NullPool, Pool, QueuePool
from support import at, open_bench, stored

from trio_gokugen import (
    RepositoryError,
    TaskState,
)
from trio_gokugen._autojump import autojump_held
from trio_gokugen.sql import (
    NameTakenError,
    NotADatabaseError,
    SQLRepository,
    open_sql_repository,
)


@contextmanager
def own_engine(
    file: Path, options: str = "", timeout: float = 0.05, pool: type[Pool] = QueuePool
) -> Generator[Engine]:
    """An engine that waits for others for a moment only."""
    url = f"sqlite:///file:{file}?{options}&uri=true"
    engine = create_engine(url, connect_args={"timeout": timeout}, poolclass=pool)
    try:
        yield engine
    finally:
        engine.dispose()


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


async def make(url: str, *ids: str) -> None:
    """Make a database with tasks that are due."""
    async with open_sql_repository(url, synchronous="off") as repository:
        await repository.add([stored(id) for id in ids])


# -- a SQLite file ----------------------------------------------------------------------


async def test_a_file_that_is_locked(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    While somebody keeps the file locked, changes wait, and come through once it is free.
    """
    file, watch = tmp_path / "tasks.db", Watch()
    await make(f"sqlite:///{file}")
    with own_engine(file) as engine:
        async with (
            open_sql_repository(engine) as repository,
            open_bench(repository, hooks=patient(watch)) as (scheduler, bench),
        ):
            with closing(sqlite3.connect(file)) as other:
                other.execute("BEGIN IMMEDIATE")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(scheduler.add_tasks, [at(1, "a")])
                    error = await watch.failure()
                    assert str(error) == (
                        "writing changes failed: OperationalError: database is locked"
                    )
                    assert isinstance(original(error), sqlite3.OperationalError)
                    assert await scheduler.find() == []  # who reads does not wait
                    other.rollback()
            await scheduler.drain()
            assert bench.ids() == ["a"]


async def test_a_disk_that_is_full(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A change for which there is no room waits for room, and smaller ones go on.
    """
    file, watch = tmp_path / "tasks.db", Watch()
    await make(f"sqlite:///{file}")
    pages = 30
    with own_engine(file) as engine:

        @event.listens_for(engine, "checkout")
        def set_limit(connection: sqlite3.Connection, *_: object) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages}")

        async with (
            open_sql_repository(engine) as repository,
            open_bench(repository, hooks=patient(watch)) as (scheduler, bench),
        ):
            async with trio.open_nursery() as nursery:
                large = at(1, "large", meta={"text": "x" * 200_000})
                nursery.start_soon(scheduler.add_tasks, [large])
                error = await watch.failure()
                assert str(error) == (
                    "writing changes failed: OperationalError: database or disk is full"
                )
                assert isinstance(original(error), sqlite3.OperationalError)
                await scheduler.add_tasks([at(1, "small")])
                assert [task.id for task in await scheduler.find()] == ["small"]
                pages = 1_000_000
            await scheduler.drain()
            assert sorted(bench.ids()) == ["large", "small"]


async def test_a_file_that_may_only_be_read(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    Of a file that may only be read, tasks can be told; they run once it may be written.
    """
    file, watch = tmp_path / "tasks.db", Watch()
    await make(f"sqlite:///{file}", "a")
    mode = "ro"
    # A connection that were kept would go on as it was made.
    with own_engine(file, pool=NullPool) as engine:

        @event.listens_for(engine, "do_connect")
        def connect(
            dialect: object, record: object, args: list[Any], given: dict[str, Any]
        ) -> None:
            args[0] = f"file:{file}?mode={mode}"

        async with open_sql_repository(engine) as repository:
            with pytest.RaisesGroup(RepositoryError, flatten_subgroups=True):
                async with open_bench(repository, hooks=watch):
                    await trio.sleep(1)
            [error] = watch.errors
            assert str(error) == (
                "writing changes failed: OperationalError: attempt to write a readonly"
                " database"
            )
            assert isinstance(original(error), sqlite3.OperationalError)
            assert (await repository.get("a")).state is TaskState.SCHEDULED
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_all, repository, watch)
                await watch.failure()
                mode = "rw"
            assert (await repository.get("a")).state is TaskState.DONE


async def run_all(repository: SQLRepository, watch: Watch) -> None:
    async with open_bench(repository, hooks=patient(watch)) as (scheduler, _):
        await scheduler.drain()


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """
    A file that is no database is refused by name, and left as it is.
    """
    file = tmp_path / "notes.txt"
    file.write_text("Buy milk.\n" * 1000)
    with pytest.raises(NotADatabaseError) as raised:
        async with open_sql_repository(f"sqlite:///{file}"):
            raise AssertionError
    assert str(raised.value) == (f"opening {file} failed: file is not a database")
    assert isinstance(original(raised.value), sqlite3.DatabaseError)
    assert file.read_text() == "Buy milk.\n" * 1000
    assert files(tmp_path) == [file]


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    """
    If a file cannot be made, the error says which, and what may be the reason.
    """
    file = tmp_path / "nowhere" / "tasks.db"
    with pytest.raises(RepositoryError) as raised:
        async with open_sql_repository(f"sqlite:///{file}"):
            raise AssertionError
    assert str(raised.value) == (
        f"opening {file} failed: OperationalError: unable to open database file: is its"
        " directory there, and may it be written to?"
    )
    assert isinstance(original(raised.value), sqlite3.OperationalError)
    assert files(tmp_path) == []


async def test_a_file_beside_which_no_other_can_be_made(tmp_path: Path) -> None:
    """
    If the file that holds the scheduler's name cannot be made, the error says which.
    """
    lock = tmp_path / "tasks.db.one.lock"
    lock.mkdir()
    with pytest.raises(RepositoryError) as raised:
        async with open_sql_repository(f"sqlite:///{tmp_path}/tasks.db", name="one"):
            raise AssertionError
    assert str(raised.value).startswith(f"taking a name failed: {lock}: ")
    assert isinstance(original(raised.value), OSError)


@pytest.mark.parametrize("what", ["gokugen_task", "gokugen_task_pending"])
async def test_a_page_that_is_damaged(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, what: str
) -> None:
    """
    If a page of the file is damaged, whoever needs it is told that, and what helps.
    """
    file, watch = tmp_path / "tasks.db", Watch()
    await make(f"sqlite:///{file}", *map(str, range(1000)))
    smash(file, what)
    async with open_sql_repository(f"sqlite:///{file}") as repository:
        with pytest.raises(ExceptionGroup) as raised:
            async with open_bench(repository, hooks=watch):
                await trio.sleep(1)
    assert raised.group_contains(NotADatabaseError)
    # What is counted is beside what is dispatched, and may have been told of it, too.
    assert 1 <= len(watch.errors) <= 2
    for error in watch.errors:
        assert str(error).endswith(
            " failed: database disk image is malformed: restore the file from a backup, or"
            " get what can be read by the command .recover of sqlite3"
        )
        assert isinstance(original(error), sqlite3.DatabaseError)


def smash(file: Path, what: str) -> None:
    """Write rubbish over the first page of a table or an index."""
    with closing(sqlite3.connect(file)) as connection:
        [(page,)] = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = ?", [what]
        )
        [(size,)] = connection.execute("PRAGMA page_size")
    with file.open("r+b") as stream:
        stream.seek((page - 1) * size)
        stream.write(b"rubbish!" * (size // 8))


async def test_a_file_that_is_deleted(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    Once the file has been deleted, nothing more is acknowledged; and when it is put back,
    the scheduler goes on by itself.
    """
    file, watch = tmp_path / "tasks.db", Watch()
    await make(f"sqlite:///{file}", "a")
    async with (
        open_sql_repository(f"sqlite:///{file}") as repository,
        open_bench(repository, hooks=patient(watch)) as (scheduler, bench),
    ):
        await scheduler.drain()
        backup = sqlite3.connect(tmp_path / "backup.db")
        with closing(sqlite3.connect(file)) as source:
            source.backup(backup)
        backup.close()
        for each in files(tmp_path):
            if each.name.startswith("tasks.db"):
                each.unlink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.add_tasks, [at(1, "b")])
            error = await watch.failure()
            assert str(error).endswith(f"{file} has been deleted, or moved: put it back")
            assert not file.exists()
            (tmp_path / "backup.db").rename(file)
        await scheduler.drain()
        assert bench.ids() == ["a", "b"]


# -- PostgreSQL -------------------------------------------------------------------------


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """
    If there is no server, opening says where it was looked for.
    """
    url = f"postgresql://someone:secret@/tasks?host={tmp_path}"
    with pytest.raises(RepositoryError) as raised:
        async with open_sql_repository(url):
            raise AssertionError
    assert str(raised.value).startswith("opening postgresql")
    assert f"{tmp_path}" in str(raised.value)
    assert "secret" not in str(raised.value)
    assert isinstance(original(raised.value), psycopg.OperationalError)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_a_server_that_is_started_again(
    autojump_clock: trio.testing.MockClock, mortal_server: Server, how: int
) -> None:
    """
    While the server is down, or has crashed, changes wait for it; then all goes on.
    """
    watch = Watch()
    with mortal_server.new_database() as url:
        async with (
            open_sql_repository(url) as repository,
            open_bench(repository, hooks=patient(watch)) as (scheduler, bench),
        ):
            await scheduler.add_tasks([at(1, "a"), at(5, "long", "sleep")])
            await trio.sleep(10)
            with autojump_held():
                await trio.to_thread.run_sync(mortal_server.stop, how)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scheduler.add_tasks, [at(1, "b")])
                error = await watch.failure()
                assert isinstance(original(error), psycopg.OperationalError)
                with autojump_held():
                    await trio.to_thread.run_sync(mortal_server.start)
            await scheduler.drain()
            tasks = await scheduler.find()
            assert {task.id: task.state for task in tasks} == dict.fromkeys(
                ["a", "b", "long"], TaskState.DONE
            )
            assert sorted(bench.ids()) == ["a", "b", "long"]


async def test_sessions_that_are_ended(
    autojump_clock: trio.testing.MockClock, postgresql_server: Server
) -> None:
    """
    When the server ends all sessions, the scheduler makes new ones, and keeps its name.
    """
    watch = Watch()
    with (
        postgresql_server.new_database() as url,
        psycopg.connect(url, autocommit=True) as admin,
    ):
        async with (
            open_sql_repository(url, name="one") as repository,
            open_bench(repository, hooks=patient(watch)) as (scheduler, bench),
        ):
            await scheduler.add_tasks([at(1, "a")])
            admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid != pg_backend_pid()"
            )
            await scheduler.add_tasks([at(2, "b")])
            assert isinstance(original(watch.errors[0]), psycopg.OperationalError)
            await trio.sleep(10)
            with pytest.raises(NameTakenError):
                async with open_sql_repository(url, name="one"):
                    raise AssertionError
            assert bench.ids() == ["a", "b"]
