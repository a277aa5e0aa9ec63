"""Several schedulers, and the user's own transactions, on real databases."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest
import trio
from faulty_driver import Fault, faulty
from postgresql import Server
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.orm import Session
from support import Bench, noon, same_everywhere, stored

from trio_gokugen import (
    AlreadyDispatchedError,
    BackoffHooks,
    Scheduler,
    Task,
    TaskExistsError,
    TaskNotFoundError,
    TaskState,
    TaskUpdate,
    open_scheduler,
)
from trio_gokugen.abc import (
    ANY_TASK,
    AddTasks,
    ClaimTasks,
    DispatchTask,
    Operation,
    RecoverAction,
    TaskFilter,
)
from trio_gokugen.sql import NameTakenError, SQLRepository, open_sql_repository

pytestmark = pytest.mark.tables

NEVER = 1e6
"""Seconds between two looks of who is to be told."""

PROMPTLY = 5.0
"""Seconds after which a test fails: what is told takes milliseconds."""


def now(seconds: float = 0) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def stored_at(task_id: str, moment: datetime) -> Task:
    """A task as a repository has it."""
    return Task(id=task_id, work_id="note", scheduled_at=moment, created_at=now())


async def until_started(bench: Bench) -> None:
    """Return soon after a work has started."""
    while not bench.log:  # noqa: ASYNC110 (a work's own log, without an event)
        await trio.sleep(0.001)


@asynccontextmanager
async def open_bench(
    repository: SQLRepository, **options: Any
) -> AsyncGenerator[tuple[Scheduler, Bench]]:
    """A scheduler on the wall clock, and a bench of works."""
    bench = Bench()
    async with open_scheduler(bench.works, repository, **options) as scheduler:
        yield scheduler, bench


@contextmanager
def users_engine(url: str, **options: Any) -> Generator[Engine]:
    """An engine as a user has it."""
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(parsed, **options)
    try:
        yield engine
    finally:
        engine.dispose()


def of_connection(engine: Engine) -> Connection:
    return engine.connect()


def of_session(engine: Engine) -> Session:
    return Session(engine)


each_kind = pytest.mark.parametrize("open_where", [of_connection, of_session])
Open = Callable[[Engine], Any]


# -- names ----------------------------------------------------------------------------


async def test_a_name_is_of_one(database_url: str) -> None:
    """
    A second scheduler of a name is refused while the first lives, and no longer.
    """
    async with open_sql_repository(database_url, name="a/b ü") as first:
        assert first.name == "a/b ü"
        with pytest.raises(NameTakenError, match="a scheduler named 'a/b ü' is already"):
            async with open_sql_repository(database_url, name="a/b ü"):
                raise AssertionError
        async with open_sql_repository(database_url, name="another"):
            pass
    async with open_sql_repository(database_url, name="a/b ü"):
        pass


_CHILD = """
import sys, trio
from trio_gokugen import WorkRegistry, open_scheduler
from trio_gokugen.sql import open_sql_repository

works = WorkRegistry()

@works.register("sleep")
async def sleep():
    print("started", flush=True)
    await trio.sleep_forever()

async def main(url):
    async with open_sql_repository(url, name="me", lease=3600) as repository:
        async with open_scheduler(works, repository) as scheduler:
            await scheduler.add_task("sleep", after=0, id="a")
            await trio.sleep_forever()

trio.run(main, sys.argv[1])
"""


@contextmanager
def running(url: str) -> Generator[subprocess.Popen[bytes]]:
    """Another process that works on a database, killed at the end."""
    command = [sys.executable, "-c", _CHILD, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            yield child
        finally:
            child.kill()


async def test_a_kill_frees_the_name(database_url: str) -> None:
    """
    A name is refused while another process has it, is free when that is killed, and who
    has it then takes up at once what the dead had left running.
    """
    with running(database_url) as child:
        assert child.stdout is not None
        assert await trio.to_thread.run_sync(child.stdout.readline) == b"started\n"
        with pytest.raises(NameTakenError):
            async with open_sql_repository(database_url, name="me"):
                raise AssertionError
    with trio.fail_after(PROMPTLY):
        async with (
            until_free(database_url) as repository,
            open_bench(repository) as (
                scheduler,
                bench,
            ),
        ):
            await until_started(bench)
            task = await scheduler.get("a")
            await scheduler.interrupt("a")
    assert (task.attempt, task.interruptions) == (2, 1)


async def test_a_server_that_hangs_as_one_listens(
    postgresql_server: Server, autojump_clock: trio.testing.MockClock
) -> None:
    """
    What is said to the server to begin to listen, and to end it, is said in a thread: so
    Trio goes on, however long the server takes to answer.
    """
    said: list[str] = []

    def say(connection: object, statement: str, do: Callable[[], Any]) -> Any:
        trio.from_thread.run_sync(said.append, statement)  # fails in Trio's own thread
        return do()

    for number, statement in enumerate(("LISTEN gokugen_task", "UNLISTEN gokugen_task"), 1):
        with (
            postgresql_server.new_database() as url,
            faulty(Fault(1, say, statement.__eq__)),
        ):
            async with (
                open_sql_repository(url) as repository,
                open_bench(repository) as (scheduler, _),
            ):
                await scheduler.add_task("note", after=1)
                await scheduler.drain()
        assert said[number - 1 :] == [statement]


async def test_a_name_is_free_at_once(
    postgresql_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A name is let go of before the connection is closed: some time after that a server
    would do so by itself, and who takes the name meanwhile would find it taken.
    """
    held = (
        "SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database"
        " WHERE datname = current_database() AND locktype = 'advisory'"
    )
    found: list[object] = []
    close = psycopg.Connection[Any].close

    def watched(connection: psycopg.Connection[Any]) -> None:
        if connection is not admin:
            found.extend(admin.execute(held).fetchone() or ())
        close(connection)

    with postgresql_server.new_database() as url, psycopg.connect(url) as admin:
        with monkeypatch.context() as patch:
            async with open_sql_repository(url, name="me"):
                assert admin.execute(held).fetchone() == (1,)
                patch.setattr(psycopg.Connection, "close", watched)
    assert set(found) == {0}


@asynccontextmanager
async def until_free(url: str) -> AsyncGenerator[SQLRepository]:
    """A repository named "me": a server takes a moment to see that a client has died."""
    while True:
        opening = open_sql_repository(url, name="me")
        try:
            repository = await opening.__aenter__()
        except NameTakenError:
            await trio.sleep(0.01)
            continue
        break
    try:
        yield repository
    finally:
        await opening.__aexit__(None, None, None)


async def test_default_names_on_sqlite(sqlite_url: str) -> None:
    """
    Who names no name gets the first number that is free.
    """
    async with open_sql_repository(sqlite_url) as first:
        async with (
            open_sql_repository(sqlite_url) as second,
            open_sql_repository(sqlite_url) as third,
        ):
            assert [first.name, second.name, third.name] == ["1", "2", "3"]
        async with open_sql_repository(sqlite_url) as again:
            assert again.name == "2"


async def test_default_names_on_postgresql(postgresql_url: str) -> None:
    """
    Who names no name gets one that nobody had before.
    """
    names: set[str] = set()
    for _ in range(3):
        async with open_sql_repository(postgresql_url) as repository:
            names.add(repository.name)
    assert len(names) == 3


async def test_a_name_is_of_the_file(tmp_path: Path) -> None:
    """
    However a SQLite file is called, a name on it is taken once.
    """
    (tmp_path / "link.db").symlink_to(tmp_path / "tasks.db")
    (tmp_path / "sub").mkdir()
    async with open_sql_repository(f"sqlite:///{tmp_path}/tasks.db", name="me"):
        for url in (
            f"sqlite:///{tmp_path}/sub/../tasks.db",
            f"sqlite:///{tmp_path}/link.db",
            f"sqlite:///file:{tmp_path}/tasks.db?uri=true",
        ):
            with pytest.raises(NameTakenError):
                async with open_sql_repository(url, name="me"):
                    raise AssertionError(url)


async def test_names_in_memory() -> None:
    """
    A database in memory is nobody else's, and so is every name on it.
    """
    for url in ("sqlite://", "sqlite:///:memory:"):
        async with (
            open_sql_repository(url, name="me"),
            open_sql_repository(url, name="me") as second,
        ):
            assert second.name == "me"


# -- leases ---------------------------------------------------------------------------


async def test_a_task_is_added_and_dispatched_in_one_batch(database_url: str) -> None:
    """
    A task that is added and dispatched in one batch has its lease, as any other.
    """
    async with (
        open_sql_repository(database_url, name="a") as first,
        open_sql_repository(database_url, name="b") as second,
    ):
        batch: list[Operation] = [AddTasks([stored("x")]), DispatchTask("x", noon())]
        added, dispatched = await first.apply(batch)
        assert [*added.unwrap().new] == [stored("x")]
        run = dispatched.unwrap()
        assert await second.recover(RecoverAction.REVERT, noon(29)) == []
        assert (await first.renew([run], RecoverAction.REVERT, noon(29))).lost == []


async def test_leases_are_judged_by_the_servers_clock(postgresql_url: str) -> None:
    """
    However wrong the clocks of the machines are, a lease on PostgreSQL is as long as it
    is by the server's.
    """
    async with (
        open_sql_repository(postgresql_url, name="a", lease=0.5) as first,
        open_sql_repository(postgresql_url, name="b", lease=0.5) as second,
    ):
        await first.add([stored("x")])
        [run] = (await first.claim(1, noon())).tasks
        far, long_ago = datetime(9000, 1, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)
        assert await second.recover(RecoverAction.REVERT, far) == []
        assert (await second.renew([], RecoverAction.REVERT, far)).recovered == []
        assert (await first.renew([run], RecoverAction.REVERT, far)).lost == []
        await trio.sleep(0.6)
        renewed = await second.renew([], RecoverAction.REVERT, long_ago)
        assert [task.id for task in renewed.recovered] == ["x"]
        assert (await first.renew([run], RecoverAction.REVERT, far)).lost == [run]


# -- in the user's own transaction ----------------------------------------------------


@each_kind
async def test_a_commit_starts_the_task(database_url: str, open_where: Open) -> None:
    """
    A task added in a user's transaction isn't there before the commit, and starts after it.
    """
    async with (
        open_sql_repository(database_url, poll=NEVER) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        with users_engine(database_url) as engine, open_where(engine) as where:
            task = repository.add_task_in(where, "note", after=0, id="a", meta={"k": 1})
            # Long enough for whoever is told too early.
            await trio.sleep(0.1)
            assert bench.log == []
            with pytest.raises(TaskNotFoundError):
                await scheduler.get("a")
            where.commit()
            with trio.fail_after(PROMPTLY):
                ended = await scheduler.wait("a")
    assert bench.ids() == ["a"]
    assert (ended.id, ended.meta, ended.created_at) == ("a", {"k": 1}, task.created_at)


@each_kind
async def test_a_rollback_leaves_no_task(database_url: str, open_where: Open) -> None:
    """
    What was added or cancelled in a transaction that is rolled back was not.
    """
    async with (
        open_sql_repository(database_url, poll=NEVER) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await scheduler.add_task("note", after=3600, id="b")
        with users_engine(database_url) as engine, open_where(engine) as where:
            repository.add_task_in(where, "note", after=0, id="a")
            assert repository.cancel_in(where, "b") is True
            where.rollback()
        with pytest.raises(TaskNotFoundError):
            await scheduler.get("a")
        assert (await scheduler.get("b")).state is TaskState.SCHEDULED
        assert bench.log == []


@each_kind
async def test_a_commit_cancels_the_task(database_url: str, open_where: Open) -> None:
    """
    A task cancelled in a user's transaction is cancelled once that is committed, and who
    cancels it again is told.
    """
    async with (
        open_sql_repository(database_url, poll=NEVER) as repository,
        open_bench(repository) as (scheduler, _),
    ):
        await scheduler.add_task("note", after=3600, id="a")
        with users_engine(database_url) as engine, open_where(engine) as where:
            assert repository.cancel_in(where, "a") is True
            assert repository.cancel_in(where, "a") is False
            with pytest.raises(TaskNotFoundError):
                repository.cancel_in(where, "unknown")
            assert (await scheduler.get("a")).state is TaskState.SCHEDULED
            where.commit()
        assert (await scheduler.get("a")).state is TaskState.CANCELLED


def in_trio_thread(function: Callable[[], None]) -> Any:
    return trio.to_thread.run_sync(function)


async def in_any_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    await trio.to_thread.run_sync(thread.join)


async def here(function: Callable[[], None]) -> None:
    function()


@pytest.mark.parametrize("somewhere", [in_trio_thread, in_any_thread, here])
@each_kind
async def test_whatever_thread_it_happens_in(
    database_url: str, open_where: Open, somewhere: Any
) -> None:
    """
    A transaction may be carried out in any thread, and its task starts all the same.
    """
    async with (
        open_sql_repository(database_url, poll=NEVER) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await scheduler.add_task("note", after=3600, id="b")
        with users_engine(database_url) as engine:

            def work() -> None:
                with open_where(engine) as where:
                    repository.add_task_in(where, "note", after=0, id="a")
                    repository.cancel_in(where, "b")
                    where.commit()

            with trio.fail_after(PROMPTLY):
                await somewhere(work)
                await until_started(bench)
        assert (await scheduler.get("b")).state is TaskState.CANCELLED


@each_kind
async def test_a_refused_add_leaves_the_transaction_usable(
    database_url: str, open_where: Open
) -> None:
    """
    If an id is taken, the user's transaction goes on, with what was in it before.
    """
    async with (
        open_sql_repository(database_url, poll=NEVER) as repository,
        open_bench(repository) as (scheduler, _),
    ):
        await scheduler.add_task("note", after=3600, id="b")
        with users_engine(database_url) as engine, open_where(engine) as where:
            repository.add_task_in(where, "note", after=3600, id="a")
            for taken in ("a", "b"):
                with pytest.raises(TaskExistsError, match=f"'{taken}'"):
                    repository.add_task_in(where, "note", after=3600, id=taken)
            repository.add_task_in(where, "note", after=3600, id="c")
            where.commit()
        assert {task.id for task in await scheduler.find()} == {"a", "b", "c"}


async def test_a_commit_that_nobody_waits_for(database_url: str) -> None:
    """
    A commit after the end of the scheduler is fine, and the next one runs the task.
    """
    with users_engine(database_url) as engine, engine.connect() as connection:
        async with open_sql_repository(database_url) as repository:
            repository.add_task_in(connection, "note", after=0, id="a")
        connection.commit()
    async with (
        open_sql_repository(database_url, poll=NEVER) as repository,
        open_bench(repository) as (scheduler, _),
    ):
        with trio.fail_after(PROMPTLY):
            await scheduler.wait("a")


async def test_a_cancelled_task_does_not_start_meanwhile(postgresql_url: str) -> None:
    """
    A task that is cancelled in a transaction isn't started while that is open, nor after
    its commit; after a rollback it is.
    """
    async with (
        open_sql_repository(postgresql_url, poll=NEVER) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        with users_engine(postgresql_url) as engine, engine.connect() as connection:
            for task_id in "ab":
                await scheduler.add_task("note", at=now(0.3), id=task_id)
                assert repository.cancel_in(connection, task_id) is True
                await trio.sleep(0.4)
                # The others are not kept back.
                await scheduler.add_task("note", after=0, id=f"beside {task_id}")
                with trio.fail_after(PROMPTLY):
                    await scheduler.wait(f"beside {task_id}")
                assert task_id not in [what for what, _ in bench.log]
                if task_id == "a":
                    connection.commit()
                else:
                    connection.rollback()
            with trio.fail_after(PROMPTLY):
                await scheduler.wait("b")
        assert (await scheduler.get("a")).state is TaskState.CANCELLED


async def test_who_waits_for_a_transaction_does_not_hammer(postgresql_url: str) -> None:
    """
    While a due task is held by a user's transaction, it is asked for now and then, and
    not as often as the database can answer.
    """
    async with (
        open_sql_repository(postgresql_url, poll=NEVER) as repository,
        open_bench(repository) as (scheduler, _),
    ):
        await scheduler.add_task("note", at=now(0.2), id="a")
        statements = 0
        with users_engine(postgresql_url) as engine, engine.connect() as connection:
            repository.cancel_in(connection, "a")
            await trio.sleep(0.3)

            def count(*_: Any) -> None:
                nonlocal statements
                statements += 1

            event.listen(repository.store.engine, "before_cursor_execute", count)
            await trio.sleep(1)
            event.remove(repository.store.engine, "before_cursor_execute", count)
            connection.rollback()
        with trio.fail_after(PROMPTLY):
            await scheduler.wait("a")
    assert 1 <= statements <= 100


async def test_a_refused_cancel_holds_nothing(postgresql_url: str) -> None:
    """
    A task that cannot be cancelled, as it runs, is not kept from ending by the
    transaction that has tried.
    """
    async with (
        open_sql_repository(postgresql_url, poll=NEVER) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await scheduler.add_task("sleep", {"seconds": 0.3}, after=0, id="a")
        await until_started(bench)
        with users_engine(postgresql_url) as engine, engine.connect() as connection:
            with pytest.raises(AlreadyDispatchedError):
                repository.cancel_in(connection, "a")
            with trio.fail_after(PROMPTLY):
                ended = await scheduler.wait("a")
    assert ended.state is TaskState.DONE


@pytest.mark.parametrize("level", [None, "AUTOCOMMIT"])
@each_kind
async def test_nobody_writes_between_look_and_cancel(
    sqlite_url: str, open_where: Open, level: str | None
) -> None:
    """
    Between the moment a user's transaction looks at a task, and that it cancels it, no
    other process can start it.
    """
    options = {} if level is None else {"isolation_level": level}
    async with open_sql_repository(sqlite_url) as repository:
        await repository.add([stored("a")])
        with users_engine(sqlite_url, **options) as engine, open_where(engine) as where:
            refused: list[str] = []

            def write(connection: object, cursor: object, statement: str, *_: Any) -> None:
                if not statement.startswith("SELECT"):
                    return
                other = sqlite3.connect(make_url(sqlite_url).database or "", timeout=0)
                try:
                    other.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    refused.append(str(error))
                finally:
                    other.close()

            event.listen(engine, "after_cursor_execute", write)
            assert repository.cancel_in(where, "a") is True
            where.commit()
        assert refused == ["database is locked"]
        assert (await repository.get("a")).state is TaskState.CANCELLED


async def test_autocommit(database_url: str) -> None:
    """
    Over a connection that commits every statement, a task starts at once.
    """
    async with (
        open_sql_repository(database_url, poll=NEVER) as repository,
        open_bench(repository) as (scheduler, _),
    ):
        with (
            users_engine(database_url, isolation_level="AUTOCOMMIT") as engine,
            engine.connect() as connection,
        ):
            repository.add_task_in(connection, "note", after=0, id="a")
            with trio.fail_after(PROMPTLY):
                await scheduler.wait("a")
            repository.add_task_in(connection, "note", after=3600, id="b")
            assert repository.cancel_in(connection, "b") is True
            assert (await scheduler.get("b")).state is TaskState.CANCELLED


# -- what other processes change ------------------------------------------------------


async def test_a_file_is_looked_at_every_half_second(sqlite_url: str) -> None:
    """
    What another process adds to a SQLite file is noticed within a second.
    """
    async with (
        open_sql_repository(sqlite_url) as repository,
        open_sql_repository(sqlite_url) as other,
        open_bench(repository) as (_, bench),
    ):
        await trio.sleep(0.05)
        await other.add([stored_at("a", now())])
        with trio.fail_after(1):
            await until_started(bench)


async def _add_first(other: SQLRepository) -> None:
    await other.add([stored_at("a", now())])


async def _make_earlier(other: SQLRepository) -> None:
    await other.update("later", TaskUpdate(scheduled_at=now()))


@pytest.mark.parametrize("change", [_add_first, _make_earlier])
@pytest.mark.parametrize("first", [True, False])
async def test_a_commit_elsewhere_wakes(
    postgresql_url: str, change: Callable[[SQLRepository], Any], first: bool
) -> None:
    """
    What another process makes the first of its work starts, though nobody looks for it.
    """
    async with (
        open_sql_repository(postgresql_url, poll=NEVER) as repository,
        open_sql_repository(postgresql_url) as other,
        open_bench(repository) as (scheduler, bench),
    ):
        await scheduler.add_task("note", at=now(3600), id="later")
        if not first:
            await scheduler.add_task("sleep", at=now(1800), id="another")
        await trio.sleep(0.1)
        await change(other)
        with trio.fail_after(PROMPTLY):
            await until_started(bench)


async def _notify(other: SQLRepository, payload: str) -> None:
    with other.store.engine.begin() as connection:
        connection.execute(text("SELECT pg_notify('gokugen_task', :x)"), {"x": payload})


async def _add_in(other: SQLRepository) -> None:
    with other.store.engine.begin() as connection:
        other.add_task_in(connection, "note", after=0)


async def _add_two(other: SQLRepository) -> None:
    unknown = attrs.evolve(stored_at("b", now()), work_id="unknown")
    await other.add([stored_at("a", now()), unknown])


async def _add_unknown(other: SQLRepository) -> None:
    await other.add([attrs.evolve(stored_at("b", now()), work_id="unknown")])


async def _add_later(other: SQLRepository) -> None:
    await other.add([stored_at("a", now(60))])


async def _cancel_in(other: SQLRepository) -> None:
    with other.store.engine.begin() as connection:
        other.cancel_in(connection, "later")


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (_add_first, "claim"),
        (_make_earlier, "claim"),
        (_add_in, "claim"),
        (_add_later, "look"),
        (_cancel_in, "look"),
        (_add_two, "look"),
        (_add_unknown, "look"),
        (partial(_notify, payload=""), "look"),
        (partial(_notify, payload="somebody"), "look"),
        (partial(_notify, payload="[" * 3_000), "look"),
        (partial(_notify, payload='["x", "note"]'), "look"),
        (partial(_notify, payload='["x", "note", null]'), "look"),
        (partial(_notify, payload='["x", "note", "2020-01-01"]'), "look"),
        (partial(_notify, payload='["x", [], "2020-01-01T00:00Z"]'), "look"),
        (partial(_notify, payload='["x", "note", "2020-01-01T00:00Z"]'), "claim"),
    ],
    ids=same_everywhere,
)
async def test_what_is_told_as_due_is_claimed_without_a_look(
    postgresql_url: str, change: Callable[[SQLRepository], Any], answer: str
) -> None:
    """
    Told by another process that a task is due, a scheduler claims at once; told anything
    else, or nothing that can be read, it looks.
    """
    async with (
        open_sql_repository(postgresql_url, poll=NEVER) as repository,
        open_sql_repository(postgresql_url) as other,
        open_bench(repository) as (scheduler, _),
    ):
        await scheduler.add_task("note", at=now(3600), id="later")
        await trio.sleep(0.1)
        answers: list[str] = []
        answered = trio.Event()
        store = repository.store
        get_next, apply = store.get_next, store.apply

        async def look(only: TaskFilter = ANY_TASK) -> Any:
            task = await get_next(only)  # in which it may be told to claim instead
            answers.append("look")
            answered.set()
            return task

        async def claim(operations: Sequence[Operation]) -> Any:
            answers.extend("claim" for each in operations if isinstance(each, ClaimTasks))
            answered.set()
            return await apply(operations)

        store.get_next = look  # type: ignore[method-assign]  # watched
        store.apply = claim  # type: ignore[method-assign]  # watched
        await change(other)
        with trio.fail_after(PROMPTLY):
            await answered.wait()
        assert answers[0] == answer


async def test_a_revert_elsewhere_wakes(postgresql_url: str) -> None:
    """
    What another process puts back starts here, though nobody looks for it.
    """
    async with (
        open_sql_repository(postgresql_url, poll=NEVER) as repository,
        open_sql_repository(postgresql_url) as other,
    ):
        await other.add([stored_at("a", now())])
        [run] = (await other.claim(1, now())).tasks
        async with open_bench(repository) as (_, bench):
            await trio.sleep(0.1)
            assert bench.log == []
            await other.revert(run)
            with trio.fail_after(PROMPTLY):
                await until_started(bench)


_LISTENERS = "SELECT {} FROM pg_stat_activity WHERE query LIKE 'LISTEN %' AND pid <> {}"
_TERMINATE = text(_LISTENERS.format("pg_terminate_backend(pid, 5000)", "pg_backend_pid()"))


async def test_a_lost_connection_is_made_anew(postgresql_url: str) -> None:
    """
    If the connection that listens is lost, what was added meanwhile starts, the name is
    held again, and what comes later is heard.
    """
    async with (
        open_sql_repository(postgresql_url, name="me", poll=NEVER) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        with users_engine(postgresql_url) as engine, engine.connect() as connection:
            await trio.sleep(0.05)
            # Nobody listens when this is committed.
            assert connection.execute(_TERMINATE).all() == [(True,)]
            repository.add_task_in(connection, "note", after=0, id="a")
            connection.commit()
            with trio.fail_after(PROMPTLY):
                await scheduler.wait("a")
            repository.add_task_in(connection, "note", after=0, id="b")
            connection.commit()
            with trio.fail_after(PROMPTLY):
                await scheduler.wait("b")
        with pytest.raises(NameTakenError):
            async with open_sql_repository(postgresql_url, name="me"):
                raise AssertionError
    assert bench.ids() == ["a", "b"]


async def test_a_restart_of_the_server_is_outlived(
    mortal_server: Server, mortal_url: str
) -> None:
    """
    A scheduler whose hooks are patient goes on when its server is there again, and hears
    of what others change.
    """
    async with (
        open_sql_repository(mortal_url, name="me", poll=NEVER) as repository,
        open_bench(repository, hooks=BackoffHooks(longest=0.1)) as (scheduler, bench),
    ):
        await scheduler.add_task("note", after=0.3, id="a")
        await trio.to_thread.run_sync(mortal_server.stop)
        await trio.sleep(0.5)
        assert bench.log == []
        await trio.to_thread.run_sync(mortal_server.start)
        with trio.fail_after(PROMPTLY):
            await scheduler.wait("a")
            with users_engine(mortal_url) as engine, engine.begin() as connection:
                repository.add_task_in(connection, "note", after=0, id="b")
            await scheduler.wait("b")
    assert bench.ids() == ["a", "b"]


async def test_a_name_that_was_taken_meanwhile(postgresql_url: str) -> None:
    """
    A scheduler whose name somebody else has taken while its connection was lost ends, once
    its lease is over.
    """
    hold = text(
        "SELECT pg_advisory_lock(hashtextextended("
        "CAST(CAST('gokugen_task' AS regclass) AS oid) || '\\:me', 0))"
    )
    with (
        pytest.RaisesGroup(NameTakenError, flatten_subgroups=True),
        users_engine(postgresql_url) as engine,
        engine.connect() as thief,
    ):
        async with (
            open_sql_repository(postgresql_url, name="me", lease=0.3) as repository,
            open_bench(repository),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(trio.to_thread.run_sync, partial(thief.execute, hold))
            await trio.sleep(0.1)  # it is in the queue for the name
            with engine.connect() as connection:
                assert connection.execute(_TERMINATE).all() == [(True,)]
            with trio.fail_after(PROMPTLY):
                await trio.sleep_forever()
