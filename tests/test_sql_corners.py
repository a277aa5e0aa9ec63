"""What seldom happens: races that are lost, databases away at the wrong moment."""

from __future__ import annotations

import logging
import runpy
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio
import trio.testing
from faulty_driver import COMMIT, Fault, faulty
from postgresql import Server
from sql_support import original
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import IntegrityError
from support import at, noon, open_bench, stored

import trio_gokugen.sql
from trio_gokugen import (
    HookAction,
    InvalidTaskError,
    PartialHooks,
    RepositoryError,
    SchedulerNotRunningError,
    TaskExistsError,
    TaskNotFoundError,
    TaskQuery,
    TaskState,
    WorkRegistry,
)
from trio_gokugen._autojump import autojump_held
from trio_gokugen.abc import AddTasks
from trio_gokugen.sql import _open, migrate, open_sql_repository
from trio_gokugen.testing import FaultyRepository


def users_engine(url: str, **options: Any) -> Engine:
    """An engine as a user has it."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    return create_engine(parsed, **options)


def inserts(statement: str) -> bool:
    return "INSERT INTO gokugen_task" in statement


# -- values that are no bool ------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_at_most_once_is_a_bool(value: Any) -> None:
    """
    `at_most_once` that is no bool is refused by name, of a task as of a work.
    """
    with pytest.raises(InvalidTaskError, match=r"^at_most_once: must be a bool"):
        stored("a", at_most_once=value)
    works = WorkRegistry()
    with pytest.raises(TypeError, match=r"^at_most_once: must be a bool"):
        works.register("work", print, at_most_once=value)
    assert works.work_ids == frozenset()


# -- looking for ends elsewhere ---------------------------------------------------------


async def test_a_hook_ends_the_scheduler_that_cannot_look(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    A hook that says RAISE ends the scheduler when ends elsewhere cannot be looked for.
    """
    error = RepositoryError("gone")

    async def end(error: Exception, action: HookAction) -> HookAction:
        return HookAction.RAISE

    async with open_sql_repository(sqlite_url, poll=1) as mine:
        await mine.add([stored("a", "unknown", seconds=100)])
        repository = FaultyRepository(mine)
        repository.fail("find", error)
        with pytest.RaisesGroup(
            pytest.RaisesExc(check=lambda raised: raised is error),
            SchedulerNotRunningError,
            flatten_subgroups=True,
        ):
            async with open_bench(
                repository, hooks=PartialHooks(on_get_next_error=end)
            ) as (scheduler, _):
                await scheduler.wait("a")
    assert trio.current_time() == 1


# -- a commit of which nobody knows -----------------------------------------------------


@pytest.mark.parametrize("away", [2, 60], ids=["for a moment", "too long"])
@pytest.mark.parametrize("commits", [True, False])
async def test_a_server_that_goes_in_a_commit(
    autojump_clock: trio.testing.MockClock,
    mortal_server: Server,
    commits: bool,
    away: float,
) -> None:
    """
    Whoever changes something as the server goes is told whether it took effect, if the
    server is there again soon; and if not, that it is not known.
    """

    def stop(
        connection: psycopg.Connection[Any], statement: str, do: Callable[[], Any]
    ) -> None:
        if commits:
            do()
        mortal_server.stop(signal.SIGINT)
        connection.close()
        raise psycopg.OperationalError("the connection is lost")

    async def start() -> None:
        await trio.sleep(away)
        with autojump_held():
            await trio.to_thread.run_sync(mortal_server.start)

    with mortal_server.new_database() as url:
        async with open_sql_repository(url) as repository, trio.open_nursery() as nursery:
            fault = Fault(1, stop, COMMIT.__eq__)
            with faulty(fault):
                repository.store.engine.dispose()
                nursery.start_soon(start)
                if commits and away < 10:
                    await repository.add([stored("a")])
                else:
                    with pytest.raises(RepositoryError) as raised:
                        await repository.add([stored("a")])
                    unknown = "; whether it took effect is not known"
                    assert str(raised.value).endswith(unknown) is (away > 10)
                    assert isinstance(original(raised.value), psycopg.OperationalError)
        async with open_sql_repository(url) as repository:
            assert len(await repository.find(TaskQuery())) == commits


# -- ids and rows that are refused ------------------------------------------------------


async def test_an_id_that_is_taken_after_the_look(postgresql_url: str) -> None:
    """
    If somebody takes an id between a look at it and its use, the batch is refused as if it
    had been taken before; and the other tasks of it aren't added.
    """
    async with (
        open_sql_repository(postgresql_url) as theirs,
        open_sql_repository(postgresql_url) as repository,
    ):
        await theirs.add([stored("old")])

        def take(connection: object, statement: str, do: Callable[[], Any]) -> Any:
            trio.from_thread.run(theirs.add, [stored("new")])
            return do()

        # The first time it is found that "old" is taken, and then it is looked first.
        with faulty(Fault(2, take, inserts)):
            repository.store.engine.dispose()
            [outcome_of_old, outcome_of_rest] = await repository.apply(
                [AddTasks([stored("old")]), AddTasks([stored("new"), stored("other")])]
            )
        with pytest.raises(TaskExistsError, match="'old'"):
            outcome_of_old.unwrap()
        with pytest.raises(TaskExistsError, match="'new'"):
            outcome_of_rest.unwrap()
        assert {task.id for task in await repository.find(TaskQuery())} == {"old", "new"}


async def test_an_index_of_the_users_own(database_url: str) -> None:
    """
    What a unique index of the user's own refuses is an error of the repository, and
    nothing of the batch is written; what it allows goes on.
    """
    async with open_sql_repository(database_url) as repository:
        with repository.store.engine.begin() as connection:
            index = "CREATE UNIQUE INDEX of_mine ON gokugen_task (work_id)"
            connection.execute(text(index))
        await repository.add([stored("a", "one")])
        with pytest.raises(RepositoryError) as raised:
            await repository.add([stored("b", "two"), stored("c", "one")])
        assert isinstance(raised.value.__cause__, IntegrityError)
        await repository.add([stored("d", "two")])
        assert {task.id for task in await repository.find(TaskQuery())} == {"a", "d"}


async def test_a_transaction_that_is_always_in_the_way(postgresql_url: str) -> None:
    """
    A change that the database undoes again and again, for others' sake, fails in the end,
    and says why.
    """
    async with open_sql_repository(postgresql_url) as repository:
        with repository.store.engine.begin() as connection:
            for statement in (
                (
                    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
                    " $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '40001'; END $$"
                ),
                (
                    "CREATE TRIGGER refusing BEFORE INSERT ON gokugen_task"
                    " FOR EACH ROW EXECUTE FUNCTION refuse()"
                ),
            ):
                connection.execute(text(statement))
        with pytest.raises(RepositoryError, match="not now") as raised:
            await repository.add([stored("a")])
        assert isinstance(original(raised.value), psycopg.errors.SerializationFailure)
        assert await repository.find(TaskQuery()) == []


async def test_an_id_that_is_taken_during_the_users_transaction(
    postgresql_url: str,
) -> None:
    """
    If somebody takes an id between a look at it and its use in a transaction of the
    user's, that is told, and the transaction goes on.
    """
    async with open_sql_repository(postgresql_url) as repository:

        def take(connection: object, statement: str, do: Callable[[], Any]) -> Any:
            trio.from_thread.run(repository.add, [stored("b")])
            return do()

        def change() -> None:
            with engine.begin() as connection:
                repository.add_task_in(connection, "note", after=3600, id="a")
                with pytest.raises(TaskExistsError, match="'b'"):
                    repository.add_task_in(connection, "note", after=3600, id="b")
                repository.add_task_in(connection, "note", after=3600, id="c")

        engine = users_engine(postgresql_url)
        with faulty(Fault(2, take, inserts)):
            engine.connect().close()
        await trio.to_thread.run_sync(change)
        engine.dispose()
        assert {task.id for task in await repository.find(TaskQuery())} == {"a", "b", "c"}


# -- the user's own transactions --------------------------------------------------------


def begin_nothing(engine: Engine) -> Connection:
    return engine.connect()


def begin_by_reading(engine: Engine) -> Connection:
    connection = engine.connect()
    connection.execute(text("SELECT 1"))
    return connection


@pytest.mark.parametrize("begin", [begin_nothing, begin_by_reading])
@pytest.mark.parametrize("options", [{}, {"isolation_level": "AUTOCOMMIT"}], ids=str)
async def test_what_is_refused_locks_nothing(
    sqlite_url: str, begin: Callable[[Engine], Connection], options: dict[str, Any]
) -> None:
    """
    A change that is refused in a transaction of the user's, before any other, keeps nobody
    from writing to the file.
    """
    async with open_sql_repository(sqlite_url) as repository:
        await repository.add([stored("a")])
        engine = users_engine(sqlite_url, **options)
        with begin(engine) as connection:
            with pytest.raises(TaskNotFoundError):
                repository.cancel_in(connection, "unknown")
            with pytest.raises(TaskExistsError):
                repository.add_task_in(connection, "note", after=0, id="a")
            with closing(sqlite3.connect(make_url(sqlite_url).database or "")) as other:
                other.execute("PRAGMA busy_timeout = 0")
                other.execute("BEGIN IMMEDIATE")
        engine.dispose()


async def test_a_place_that_is_none(sqlite_url: str) -> None:
    """
    What is neither a session nor a connection is refused by name.
    """
    async with open_sql_repository(sqlite_url) as repository:
        where: Any = repository.store.engine
        with pytest.raises(TypeError, match=r"^where: must be a SQLAlchemy Session or"):
            repository.add_task_in(where, "note", after=0)
        with pytest.raises(TypeError, match=r"^where: must be a SQLAlchemy Session or"):
            repository.cancel_in(where, "a")


# -- opening ----------------------------------------------------------------------------

_MIGRATE = """
import sys
from sqlalchemy import create_engine
from trio_gokugen.sql import migrate
migrate(create_engine(sys.argv[1]))
"""


def test_another_migrates_at_the_same_moment(database_url: str) -> None:
    """
    If another process makes the tables after one has seen that there are none, they are
    left as they are.
    """
    engine = users_engine(database_url)

    def make(connection: object, statement: str, do: Callable[[], Any]) -> Any:
        url = engine.url.render_as_string(hide_password=False)
        subprocess.run([sys.executable, "-c", _MIGRATE, url], check=True)
        return do()

    def locks(statement: str) -> bool:
        return statement == "BEGIN IMMEDIATE" or "pg_advisory_xact_lock" in statement

    statements: list[str] = []
    event.listen(
        engine, "before_cursor_execute", lambda *args: statements.append(str(args[2]))
    )
    fault = Fault(1, make, locks)
    with faulty(fault):
        migrate(engine)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM gokugen_task")) == 0
    engine.dispose()
    assert fault.struck_at is not None
    assert [each for each in statements if "CREATE" in each] == []


async def test_a_new_file_that_another_writes_to(sqlite_url: str) -> None:
    """
    Opening a file of somebody else's waits until what he writes is written.
    """
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO theirs VALUES (1)")
        opened = trio.Event()

        async def open_it() -> None:
            async with open_sql_repository(sqlite_url) as repository:
                await repository.add([stored("a")])
                opened.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_it)
            await trio.sleep(0.3)
            assert not opened.is_set()
            other.commit()
        assert opened.is_set()
        assert other.execute("SELECT * FROM theirs").fetchall() == [(1,)]


async def test_a_file_that_another_does_not_let_go_of(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Opening a file to which somebody else writes for longer than SQLite waits fails, and
    leaves it as it is.
    """
    monkeypatch.setattr(_open, "BUSY_TIMEOUT", 1.0)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RepositoryError, match="database is locked"):
            async with open_sql_repository(sqlite_url):
                raise AssertionError
        other.rollback()
        tables = other.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("theirs",)]


async def test_a_file_that_may_not_be_written_ahead(tmp_path: Path) -> None:
    """
    Opening a file of somebody else's that may only be read fails at once, and says why.
    """
    with closing(sqlite3.connect(tmp_path / "tasks.db")) as other:
        other.execute("CREATE TABLE theirs (x)")
    url = f"sqlite:///file:{tmp_path}/tasks.db?mode=ro&uri=true"
    with trio.fail_after(5):
        with pytest.raises(RepositoryError, match="readonly database"):
            async with open_sql_repository(url):
                raise AssertionError


async def test_without_psycopg(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without psycopg, opening PostgreSQL says what is to be installed.
    """
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install trio_gokugen\[postgresql\]"
    ):
        async with open_sql_repository("postgresql://x/y"):
            raise AssertionError


def test_without_sqlalchemy(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without SQLAlchemy, importing what is for databases says what is to be installed.
    """
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    assert trio_gokugen.sql.__file__ is not None
    with pytest.raises(ModuleNotFoundError, match=r'pip install "trio_gokugen\[sql\]"'):
        runpy.run_path(trio_gokugen.sql.__file__)


# -- keeping it small -------------------------------------------------------------------


async def test_ended_tasks_of_before_are_deleted_at_once(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    However many ended tasks there are that are not to be kept, they are deleted at the
    start.
    """
    async with open_sql_repository(sqlite_url, synchronous="off") as repository:
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_tasks([at(0, f"{n:04}") for n in range(2_500)])
            await scheduler.drain()
    async with open_sql_repository(sqlite_url, keep_ended=5) as repository:
        async with open_bench(repository) as (scheduler, _):
            await trio.sleep(1)
            assert len(await scheduler.find(limit=None)) == 5


async def test_deleting_goes_on_when_it_can(
    autojump_clock: trio.testing.MockClock,
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    If ended tasks cannot be deleted, that is logged; and they are within a minute after.
    """
    caplog.set_level(logging.WARNING, "trio_gokugen.sql")
    engine = users_engine(sqlite_url, connect_args={"timeout": 0.05})
    file = make_url(sqlite_url).database or ""
    async with open_sql_repository(engine, keep_ended=0) as repository:
        await repository.add([stored("a")])
        await repository.cancel("a", noon())
        with closing(sqlite3.connect(file)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(repository.serve, lambda _: None)
                await trio.sleep(30)
                [task] = await repository.find(TaskQuery())
                assert task.state is TaskState.CANCELLED
                other.rollback()
                await trio.sleep(31)
                assert await repository.find(TaskQuery()) == []
                nursery.cancel_scope.cancel()
    engine.dispose()
    [message] = caplog.messages
    assert message.startswith("ended tasks are kept for now: deleting ended tasks failed")


async def test_a_change_that_commits_by_itself_is_heard_of(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    A task that is added on a connection that commits by itself is started at once.
    """
    async with open_sql_repository(sqlite_url) as repository:
        async with open_bench(repository) as (scheduler, bench):
            await trio.sleep(10)

            def add() -> None:
                engine = create_engine(sqlite_url, isolation_level="AUTOCOMMIT")
                with engine.connect() as connection:
                    repository.add_task_in(connection, "note", at=noon(), id="a")
                engine.dispose()

            await trio.to_thread.run_sync(add)
            with trio.fail_after(1):
                await scheduler.wait("a")
            assert bench.ids() == ["a"]
