"""A repository that was closed has left nothing open, however that came about."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
import trio
import trio.testing
from faulty_driver import COMMIT, Fault, Terminator, closed, faulty
from sqlalchemy import create_engine, text
from support import at, open_bench, stored

from trio_gokugen import RepositoryError, TaskState
from trio_gokugen.sql import NameTakenError, SchemaError, open_sql_repository


class StopError(Exception):
    """Raised in a block, to leave it."""


async def leave_in_order(url: str) -> None:
    async with (
        open_sql_repository(url) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await scheduler.add_tasks([at(n, str(n)) for n in range(5)])
        await scheduler.drain()
        assert len(bench.ids()) == 5


async def leave_by_an_error(url: str) -> None:
    with pytest.RaisesGroup(StopError, flatten_subgroups=True):
        async with (
            open_sql_repository(url) as repository,
            open_bench(repository) as (scheduler, _),
        ):
            await scheduler.add_task("sleep", after=0)
            raise StopError


async def leave_cancelled(url: str) -> None:
    with trio.move_on_after(5):
        async with (
            open_sql_repository(url) as repository,
            open_bench(repository) as (scheduler, _),
        ):
            await scheduler.add_task("sleep", after=0)
            await trio.sleep_forever()


async def leave_while_threads_are_at_work(url: str) -> None:
    """The block is cancelled in each of several calls, as its thread is at work."""
    with trio.CancelScope() as scope:
        async with open_sql_repository(url) as repository, trio.open_nursery() as nursery:

            def cancel(connection: object, statement: str, do: Callable[[], Any]) -> Any:
                trio.from_thread.run_sync(scope.cancel)
                return do()

            with faulty(Fault(1, cancel)):
                repository.store.engine.dispose()
                for _ in range(5):
                    nursery.start_soon(repository.count_pending)
                nursery.start_soon(repository.add, [stored("a")])
                await trio.sleep_forever()
    assert scope.cancelled_caught


async def meet_a_name_that_is_taken(url: str) -> None:
    async with open_sql_repository(url, name="one"):
        with pytest.raises(NameTakenError):
            async with open_sql_repository(url, name="one"):
                raise AssertionError


async def meet_tables_that_are_newer(url: str) -> None:
    await leave_in_order(url)
    async with open_sql_repository(url) as repository:
        with repository.store.engine.begin() as connection:
            connection.execute(text("UPDATE gokugen_version SET version_num = '9999'"))
    with pytest.raises(SchemaError):
        async with open_sql_repository(url):
            raise AssertionError


async def be_cancelled_as_it_opens(url: str) -> None:
    with trio.CancelScope() as scope:

        def cancel(connection: object, statement: str, do: Callable[[], Any]) -> Any:
            trio.from_thread.run_sync(scope.cancel)
            return do()

        with faulty(Fault(3, cancel)):
            async with open_sql_repository(url):
                await trio.sleep_forever()
    assert scope.cancelled_caught


WAYS: list[Callable[[str], Awaitable[None]]] = [
    leave_in_order,
    leave_by_an_error,
    leave_cancelled,
    leave_while_threads_are_at_work,
    meet_a_name_that_is_taken,
    meet_tables_that_are_newer,
    be_cancelled_as_it_opens,
]


def in_use() -> tuple[int, list[str], list[str]]:
    """Descriptors, files, and threads but for those that Trio keeps for later.

    While a thread of Trio's is at work, it has another name.
    """
    process = psutil.Process()
    files = sorted(file.path for file in process.open_files())
    names = {each.name for each in threading.enumerate()}
    at_work = sorted(each for each in names if not each.startswith("Trio thread"))
    return process.num_fds(), files, at_work


async def checked(way: Callable[[str], Awaitable[None]], url: str) -> None:
    before = in_use()
    await way(url)
    assert in_use() == before


@pytest.mark.parametrize("way", WAYS)
async def test_a_sqlite_file(
    autojump_clock: trio.testing.MockClock,
    way: Callable[[str], Awaitable[None]],
    sqlite_url: str,
) -> None:
    """
    However a repository in a file is left, no file of it is open afterwards, and no
    thread at work.
    """
    await checked(way, sqlite_url)
    names = {path.name for path in await directory_of(sqlite_url)}
    assert names <= {"tasks.db", "tasks.db.1.lock", "tasks.db.one.lock"}


async def directory_of(url: str) -> list[Path]:
    parent = trio.Path(url.removeprefix("sqlite:///")).parent
    return [Path(each) for each in await parent.iterdir()]


@pytest.mark.parametrize("way", WAYS)
async def test_postgresql(
    autojump_clock: trio.testing.MockClock,
    way: Callable[[str], Awaitable[None]],
    postgresql_url: str,
) -> None:
    """
    However a repository on PostgreSQL is left, no connection of it is there afterwards,
    and no thread at work.
    """
    with psycopg.connect(postgresql_url, autocommit=True) as admin:
        await checked(way, postgresql_url)
        wait_for_sessions(admin)


def wait_for_sessions(admin: psycopg.Connection[Any]) -> None:
    """Wait until the server has ended the sessions of connections that were closed."""
    sessions = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid != pg_backend_pid() AND backend_type = 'client backend'"
    )
    until = time.monotonic() + 10
    while admin.execute(sessions).fetchone() != (0,):
        assert time.monotonic() < until, "connections are left"
        admin.execute("SELECT pg_sleep(0.01)")


async def test_an_engine_of_ones_own(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    An engine of the user's own gets back every connection, and is not closed.
    """
    url = database_url.replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url)
    pool = engine.pool
    async with (
        open_sql_repository(engine) as repository,
        open_bench(repository) as (scheduler, _),
    ):
        await scheduler.add_tasks([at(1, "a")])
        await scheduler.drain()
    assert engine.pool is pool
    assert "Current Checked out connections: 0" in pool.status()
    engine.dispose()


async def test_the_thread_under_way_is_waited_for(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    Closing waits for a commit that is under way; it is there the next time.
    """
    fault = Fault(0, closed, COMMIT.__eq__)
    with faulty(fault), trio.CancelScope() as scope:
        async with open_sql_repository(sqlite_url) as repository:

            def cancel(connection: object, statement: str, do: Callable[[], Any]) -> Any:
                trio.from_thread.run_sync(scope.cancel)
                # With the token, or it would be cancelled as the caller is.
                wait = trio.testing.wait_all_tasks_blocked
                trio.from_thread.run(wait, trio_token=token)
                return do()

            token = trio.lowlevel.current_trio_token()
            fault.strike, fault.number = cancel, fault.counted + 1
            await repository.add([stored("a")])
            await trio.sleep_forever()
    async with open_sql_repository(sqlite_url) as repository:
        assert (await repository.get("a")).state is TaskState.SCHEDULED


def test_opening_that_fails_on_postgresql(postgresql_url: str) -> None:
    """
    Whichever statement the connection is lost in as a repository is opened, no connection
    is left.
    """

    async def main() -> None:
        with suppress(RepositoryError):
            async with open_sql_repository(postgresql_url):
                pass

    with psycopg.connect(postgresql_url, autocommit=True) as admin:
        before = in_use()
        for number in itertools.count(1):
            fault = Fault(number, Terminator(admin).before)
            with faulty(fault):
                trio.run(main)
            assert in_use() == before, fault.struck_at
            if fault.struck_at is None:
                break
        wait_for_sessions(admin)
