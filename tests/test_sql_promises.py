"""The promises of `trio_gokugen.abc`, held by databases of both kinds."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio.testing
from postgresql import Server
from sqlalchemy import Connection, Engine, create_engine, delete, event

from trio_gokugen.sql import ScheduleRow, SQLRepository, TaskRow, open_sql_repository
from trio_gokugen.sql._open import _engine
from trio_gokugen.testing import REPOSITORY_CHECKS, check_repository

pytestmark = pytest.mark.long

PARTS = 4
"""In which the checks are done: on a busy machine, no test may take minutes."""

UNCOVERED = pytest.mark.uncovered


@attrs.define
class Databases:
    """Databases whose tables are made once: each opening finds them empty.

    What is opened is new each time, but for the engine, which is one as a URL makes it.
    """

    url: Callable[[], str]
    free: list[Engine] = attrs.field(factory=list[Engine])

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[SQLRepository]:
        engine = self.free.pop() if self.free else _engine(self.url(), "off")
        async with open_sql_repository(engine) as repository:
            with engine.begin() as connection:
                connection.execute(delete(TaskRow))
                connection.execute(delete(ScheduleRow))
            yield repository
        self.free.append(engine)

    async def check(self, part: int) -> None:
        await check_repository(self.open, only=REPOSITORY_CHECKS[part::PARTS])
        for engine in self.free:
            engine.dispose()


@pytest.mark.parametrize(
    "part",
    # The two that are slow run few lines that the others don't.
    [0, pytest.param(1, marks=UNCOVERED), 2, pytest.param(3, marks=UNCOVERED)],
)
async def test_sqlite_in_memory(autojump_clock: trio.testing.MockClock, part: int) -> None:
    """
    A database in memory keeps all promises.
    """
    await Databases(lambda: "sqlite://").check(part)


@UNCOVERED
@pytest.mark.parametrize("part", range(PARTS))
async def test_a_sqlite_file(
    autojump_clock: trio.testing.MockClock, fast_path: Path, part: int
) -> None:
    """
    A file keeps all promises.
    """
    numbers = itertools.count()
    await Databases(lambda: f"sqlite:///{fast_path / str(next(numbers))}.db").check(part)


@UNCOVERED
@pytest.mark.parametrize("part", range(PARTS))
async def test_postgresql(
    autojump_clock: trio.testing.MockClock, postgresql_server: Server, part: int
) -> None:
    """
    A PostgreSQL database keeps all promises.
    """
    with ExitStack() as stack:
        new_database = postgresql_server.new_database
        await Databases(lambda: stack.enter_context(new_database())).check(part)


async def test_an_engine_of_the_users_own(
    autojump_clock: trio.testing.MockClock, fast_path: Path
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
        engine = create_engine(f"sqlite:///{fast_path / str(number)}.db")

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
    await check_repository(open_own, only=REPOSITORY_CHECKS[3::5])
