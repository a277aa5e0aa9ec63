"""One statement of a whole life fails, whichever it is: the life comes to the same end.

By default one statement in three fails in a way, and on SQLite each of the three ways has
others; with `GOKUGEN_ALL_FAULTS` in the environment every one fails in every way.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import psycopg
import pytest
import trio
import trio.testing
from faulty_driver import COMMIT, ROLLBACK, Fault, Terminator, closed, faulty, full, locked
from postgresql import Server
from sql_support import Watch, original, patient
from support import at, noon, open_bench

from trio_gokugen import (
    RepositoryError,
    Task,
    TaskQuery,
    TaskState,
)
from trio_gokugen.sql import SQLRepository, open_sql_repository

pytestmark = [
    pytest.mark.long,
    pytest.mark.uncovered,
    pytest.mark.usefixtures("quiet"),
]

STEP = 1 if os.environ.get("GOKUGEN_ALL_FAULTS") else 3
"""From one statement of a life that fails to the next."""

T = TypeVar("T")
Strike = Callable[[Any, str, Callable[[], Any]], Any]


@pytest.fixture
def quiet() -> Generator[None]:
    """Nothing is logged: to write down each failure would take a fifth of the time."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@attrs.define
class Life:
    """What becomes of some tasks, from the first opening to the last closing."""

    url: str
    told: list[Exception] = attrs.field(factory=list[Exception])
    """Errors that came to a caller of what only reads, or who opened the repository."""

    watch: Watch = attrs.field(factory=Watch)
    runs: list[str] = attrs.field(factory=list[str])
    """The task of each run that began, in order."""

    end: dict[str, tuple[TaskState, str | None, int, int]] = attrs.field(factory=dict)
    """By task: how it ended, with what error, and its attempts and interruptions."""

    deleted: list[str] = attrs.field(factory=list[str])
    was_open: bool = False

    @property
    def errors(self) -> list[Exception]:
        return [*self.told, *self.watch.errors]

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call what only reads, and again if it fails."""
        while True:
            try:
                return await call()
            except RepositoryError as error:
                self.told.append(error)

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[SQLRepository]:
        """Open the repository, and try again if that fails."""
        while True:
            manager = open_sql_repository(self.url, name="one", lease=30, synchronous="off")
            try:
                repository = await manager.__aenter__()
            except RepositoryError as error:
                self.told.append(error)
                continue
            try:
                yield repository
            finally:
                await manager.__aexit__(None, None, None)
            return

    async def live(self) -> None:
        async with (
            self.open() as repository,
            open_bench(repository, hooks=patient(self.watch)) as (scheduler, bench),
        ):
            # What changes something is retried by the hooks: it raises nothing here.
            many = [at(10 * n, id) for n, id in enumerate("abc", 1)]
            await scheduler.add_tasks(
                [*many, at(40, "d", "fail"), at(90, "e", meta={"x": 1})]
            )
            # Longer than a lease: what runs must be renewed.
            await scheduler.add_task("sleep", {"seconds": 45.0}, id="long", after=5)
            assert await scheduler.cancel("b")
            assert await scheduler.update("c", scheduled_at=noon(70), priority=3)
            task = await self.patiently(lambda: scheduler.get("c"))
            assert (task.scheduled_at, task.priority) == (noon(70), 3)
            marked = TaskQuery(meta={"x": 1})
            [task] = await self.patiently(lambda: scheduler.find(marked))
            assert task.id == "e"
            await self.patiently(lambda: scheduler.wait("long"))
            self.deleted = await scheduler.delete_ended(before=noon(15))
            await self.patiently(scheduler.drain)
            tasks = await self.patiently(scheduler.find)
            assert await self.patiently(repository.count_pending) == {}
            assert scheduler.statistics().running == 0
        self.runs = bench.ids()
        self.end = {task.id: _end(task) for task in tasks}


def _end(task: Task) -> tuple[TaskState, str | None, int, int]:
    err = None if task.err is None else task.err.splitlines()[0]
    return task.state, err, task.attempt, task.interruptions


DONE = (TaskState.DONE, None, 1, 0)
FAILED = (TaskState.FAILED, "ValueError: boom", 1, 0)
RUNS = ["long", "a", "d", "c", "e"]
END = {"long": DONE, "c": DONE, "d": FAILED, "e": DONE}
DELETED = ["b", "a"]


def lived(life: Life, fault: Fault) -> None:
    """Live with a fault: everything happens all the same, and once."""
    with faulty(fault):
        trio.run(life.live, clock=trio.testing.MockClock(autojump_threshold=0))
    where = f"statement {fault.number}: {fault.struck_at}"
    assert (life.runs, life.end, life.deleted) == (RUNS, END, DELETED), where
    for error in life.errors:
        assert isinstance(original(error), sqlite3.Error | psycopg.Error), where


def told_of(fault: Fault) -> set[int]:
    """How many errors somebody may be told of."""
    # What fails as a connection is given back is nobody's business.
    # And the connection that listens is made anew by who listens.
    nobodys = {
        ROLLBACK,
        "PRAGMA read_uncommitted = 0",
        "LISTEN gokugen_task",
        "UNLISTEN gokugen_task",
        "SELECT pg_advisory_unlock_all()",
    }
    return {0, 1} if fault.struck_at in nobodys else {1}


def opened(url: str, fault: Fault) -> None:
    """Open a database with a fault, and again if that fails."""

    async def main() -> None:
        async with Life(url).open():
            pass

    with faulty(fault):
        trio.run(main)


# -- SQLite -----------------------------------------------------------------------------


def reaches_the_file(statement: str) -> bool:
    return not statement.startswith("PRAGMA read_uncommitted")


SQLITE = [
    (1, locked, reaches_the_file),
    (2, full, reaches_the_file),
    (3, closed, lambda _: True),
]
"""The first statement to fail, how it does, and whether it is counted."""


@pytest.mark.parametrize(("first", "strike", "counts"), SQLITE)
def test_any_statement_on_sqlite(
    first: int, strike: Strike, counts: Callable[[str], bool], fast_path: Path
) -> None:
    """
    Whichever statement on a SQLite file fails, the scheduler goes on by itself: nothing
    is lost, and nothing is run twice.
    """
    new = fast_path / "new.db"
    opened(f"sqlite:///{new}", Fault(0, strike))
    for number in itertools.count(min(first, STEP), STEP):
        file = shutil.copy(new, fast_path / f"{number}.db")
        fault = Fault(number, strike, counts)
        life = Life(f"sqlite:///{file}")
        lived(life, fault)
        if fault.struck_at is None:
            assert life.errors == []
            break
        assert len(life.errors) in told_of(fault), fault.struck_at


@pytest.mark.parametrize(("strike", "counts"), [ways for _, *ways in SQLITE])
def test_any_statement_that_makes_a_sqlite_file(
    strike: Strike, counts: Callable[[str], bool], fast_path: Path
) -> None:
    """
    Whichever statement fails as a SQLite file is made, the next attempt makes it.
    """
    for number in itertools.count(1):
        fault = Fault(number, strike, counts)
        opened(f"sqlite:///{fast_path}/{number}.db", fault)
        if fault.struck_at is None:
            break


# -- PostgreSQL -------------------------------------------------------------------------


def test_any_statement_on_postgresql(postgresql_server: Server) -> None:
    """
    Whichever statement on PostgreSQL a connection is lost in before it reaches the
    server, the scheduler goes on by itself: nothing is lost, and nothing is run twice.
    """
    with postgresql_server.new_database() as url, connected(url) as admin:
        opened(url, Fault(0, locked))
        terminator = Terminator(admin)
        for number in itertools.count(1, STEP):
            admin.execute("TRUNCATE gokugen_task")
            fault = Fault(number, terminator.before)
            life = Life(url)
            lived(life, fault)
            if fault.struck_at is None:
                assert life.errors == []
                break
            assert len(life.errors) in told_of(fault), fault.struck_at


def test_the_answer_to_any_commit_on_postgresql(postgresql_server: Server) -> None:
    """
    Whichever commit on PostgreSQL a connection is lost in after it took effect, nobody
    hears of it: whoever asked for the change gets the answer.
    """
    with postgresql_server.new_database() as url, connected(url) as admin:
        opened(url, Fault(0, locked))
        terminator = Terminator(admin)
        for number in itertools.count(1):
            admin.execute("TRUNCATE gokugen_task")
            commits = COMMIT.__eq__
            fault = Fault(number, terminator.before_the_answer, commits)
            life = Life(url)
            lived(life, fault)
            if fault.struck_at is None:
                assert life.errors == []
                break
            # Of a transaction that has changed nothing, it is true that it failed.
            assert len(life.errors) == (0 if terminator.wrote else 1)


def test_any_statement_that_makes_a_postgresql(postgresql_server: Server) -> None:
    """
    Whichever statement a connection is lost in as the tables are made on PostgreSQL, the
    next attempt makes them.
    """
    with postgresql_server.new_database() as url, connected(url) as admin:
        for number in itertools.count(1):
            fault = Fault(number, Terminator(admin).before)
            opened(url, fault)
            if fault.struck_at is None:
                break
            admin.execute("DROP TABLE gokugen_task, gokugen_schedule, gokugen_version")


@contextmanager
def connected(url: str) -> Generator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as admin:
        yield admin
