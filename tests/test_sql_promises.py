"""The promises of `trio_gokugen.abc`, held by databases of both kinds."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio.testing
from postgresql import Server
from sqlalchemy import Connection, create_engine, delete, event

from trio_gokugen.sql import ScheduleRow, SQLRepository, TaskRow, open_sql_repository
from trio_gokugen.testing import REPOSITORY_CHECKS, check_repository


@attrs.define
class Databases:
    """Databases of a server, made once and used again."""

    server: Server
    stack: ExitStack
    free: list[str] = attrs.field(factory=list[str])

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[SQLRepository]:
        if not self.free:
            self.free.append(self.stack.enter_context(self.server.new_database()))
        url = self.free.pop()
        async with open_sql_repository(url) as repository:
            with repository.store.engine.begin() as connection:
                connection.execute(delete(TaskRow))
                connection.execute(delete(ScheduleRow))
            yield repository
        self.free.append(url)


async def test_sqlite_in_memory(autojump_clock: trio.testing.MockClock) -> None:
    """
    A database in memory keeps promises as a file does, which is held to all of them.
    """
    only = REPOSITORY_CHECKS[::4]  # what differs is its one connection
    await check_repository(lambda: open_sql_repository("sqlite://"), only=only)


async def test_a_sqlite_file(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A file keeps all promises.
    """
    number = 0

    @asynccontextmanager
    async def open_file() -> AsyncGenerator[SQLRepository]:
        nonlocal number
        number += 1
        url = f"sqlite:///{tmp_path / str(number)}.db"
        async with open_sql_repository(url, synchronous="off") as repository:
            yield repository

    await check_repository(open_file)


async def test_postgresql(
    autojump_clock: trio.testing.MockClock, postgresql_server: Server
) -> None:
    """
    A PostgreSQL database keeps all promises.
    """
    with ExitStack() as stack:
        await check_repository(Databases(postgresql_server, stack).open)


async def test_an_engine_of_the_users_own(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    An engine that somebody else has made will do, even one that begins transactions by
    a listener, as SQLAlchemy's documentation of SQLite has it.
    """
    number = 0

    @asynccontextmanager
    async def open_own() -> AsyncGenerator[SQLRepository]:
        nonlocal number
        number += 1
        engine = create_engine(f"sqlite:///{tmp_path / str(number)}.db")

        @event.listens_for(engine, "connect")
        def leave_transactions_alone(connection: Any, _: object) -> None:
            connection.isolation_level = None
            connection.execute("PRAGMA synchronous = off")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        async with open_sql_repository(engine) as repository:
            yield repository
        engine.dispose()

    # What differs is how transactions begin and end, in whatever they do: some will tell.
    await check_repository(open_own, only=REPOSITORY_CHECKS[::5])
