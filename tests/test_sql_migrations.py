"""The tables: made, brought up to date, refused."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from databases import engine_of, url_for_engine
from sqlalchemy import bindparam, inspect, text
from sqlalchemy.orm import Session
from support import NOON, noon, stored

from trio_gokugen import Interval, Late, Progress, Schedule, TaskQuery, TaskState, sql
from trio_gokugen.abc import ClaimTasks, OfPools, RecoverAction, TaskFilter
from trio_gokugen.sql import SchemaError, TaskRow, _migrate, open_sql_repository
from trio_gokugen.sql._schema import Base, Moment

MIGRATIONS = Path(sql.__file__).parent / "migrations"
TABLES = {"gokugen_schedule", "gokugen_task", "gokugen_version"}


def migrate(url: str) -> None:
    with engine_of(url) as engine:
        sql.migrate(engine)


def tables(url: str) -> set[str]:
    with engine_of(url) as engine:
        return set(inspect(engine).get_table_names())


def execute(url: str, statement: str) -> None:
    with engine_of(url) as engine, engine.begin() as connection:
        connection.execute(text(statement))


def test_all_revisions_are_known() -> None:
    """
    The revisions that the package knows by heart are those of its migrations.
    """
    scripts = ScriptDirectory(str(MIGRATIONS)).walk_revisions()
    assert tuple(script.revision for script in reversed([*scripts])) == _migrate.REVISIONS


def test_migrations_make_what_is_mapped(database_url: str) -> None:
    """
    What the migrations make of an empty database is what the package works with.
    """
    migrate(database_url)
    with engine_of(database_url) as engine, engine.connect() as connection:
        options = {"version_table": "gokugen_version", "compare_type": True}
        context = MigrationContext.configure(connection, opts=options)
        differences = compare_metadata(context, Base.metadata)
        key = inspect(connection).get_pk_constraint("gokugen_task")
    if not database_url.startswith("postgresql"):
        assert key["constrained_columns"] == ["sequence"]
        assert differences == []
        return
    # There the unique index is that of the primary key.
    [(what, index)] = differences
    assert (what, index.name) == ("add_index", "gokugen_task_id")
    assert (key["name"], key["constrained_columns"]) == ("gokugen_task_id", ["id"])


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    """
    A database that is up to date is left alone, without Alembic even being imported.
    """
    migrate(database_url)
    program = f"""
import sys
from sqlalchemy import create_engine
from trio_gokugen.sql import migrate
migrate(create_engine({url_for_engine(database_url)!r}))
assert "alembic" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_many_threads_and_processes_open_at_once(database_url: str) -> None:
    """
    However many open a new database at once, it is made once, and nobody fails.
    """
    url = url_for_engine(database_url)
    program = f"""
import sys, threading
from sqlalchemy import create_engine
from trio_gokugen.sql import migrate
sys.stdin.readline()
failed = []
def run():
    try:
        engine = create_engine({url!r})
        migrate(engine)
        engine.dispose()
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=run) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(str(failed) if failed else 0)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()  # all at once
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert tables(database_url) == TABLES


def test_threads_of_one_process_migrate_several_databases(tmp_path: Path) -> None:
    """
    Threads that migrate different databases at once don't get in each other's way.
    """
    urls = [f"sqlite:///{tmp_path / str(n)}.db" for n in range(8)]
    threads = [threading.Thread(target=lambda u=url: migrate(u)) for url in urls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(tables(url) == TABLES for url in urls)


async def test_a_newer_database_is_refused(database_url: str) -> None:
    """
    Tables of a later version are left alone, with an error that says so.
    """
    async with open_sql_repository(database_url):
        pass
    await trio.to_thread.run_sync(
        execute, database_url, "UPDATE gokugen_version SET version_num = '9999'"
    )
    for migrates in True, False:
        with pytest.raises(SchemaError, match="newer version") as caught:
            async with open_sql_repository(database_url, migrate=migrates):
                pass
        assert caught.value.found == "9999"


async def test_tables_may_be_made_by_somebody_else(database_url: str) -> None:
    """
    With `migrate=False` nothing is made, and what is missing is told.
    """
    with pytest.raises(SchemaError, match="migrate=True") as caught:
        async with open_sql_repository(database_url, migrate=False):
            pass
    assert caught.value.found is None
    assert tables(database_url) == set()
    migrate(database_url)
    async with open_sql_repository(database_url, migrate=False) as repository:
        assert await repository.get_next() is None


def upgrade_to(revision: str, url: str) -> None:
    """Make the tables as they were once."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["version_table"] = "gokugen_version"
    with engine_of(url) as engine, engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


OF_0001 = """
    INSERT INTO gokugen_task (
        id, work_id, state, scheduled_at, priority, created_at, deadline, param, meta, err,
        attempt, interruptions, at_most_once, cancelled_at, dispatched_at, done_at,
        ended_at, dispatched_by, lease_until
    ) VALUES
        ('later', 'note', 'scheduled', :noon, -1, :noon, :later, '{"k": 1e22}', '{"m": ""}',
            NULL, 2, 1, 0, NULL, NULL, NULL, NULL, 'dead', NULL),
        ('first', 'note', 'scheduled', :noon, 0, :noon, NULL, '{}', '{}',
            NULL, 0, 0, 0, NULL, NULL, NULL, NULL, NULL, NULL),
        ('run', 'note', 'dispatched', :noon, 0, :noon, NULL, '{}', '{}',
            NULL, 1, 0, 1, NULL, :noon, NULL, NULL, 'dead', :past),
        ('done', 'note', 'done', :noon, 0, :noon, NULL, '{}', '{}',
            NULL, 1, 0, 0, NULL, :noon, :later, :later, 'dead', NULL),
        ('failed', 'note', 'failed', :noon, 0, :noon, NULL, '{}', '{}',
            'wrong', 1, 0, 0, NULL, :noon, :later, :later, 'dead', NULL),
        ('gone', 'note', 'cancelled', :noon, 0, :noon, NULL, '{}', '{}',
            NULL, 0, 0, 0, :later, NULL, NULL, :later, NULL, NULL)
"""
"""What the first version may have left."""

LEFT = [
    stored("done", state=TaskState.DONE, attempt=1, dispatched_at=NOON, done_at=noon(9)),
    stored(
        "failed",
        state=TaskState.FAILED,
        attempt=1,
        dispatched_at=NOON,
        done_at=noon(9),
        err="wrong",
    ),
    stored("first"),
    stored("gone", state=TaskState.CANCELLED, cancelled_at=noon(9)),
    stored(
        "run", state=TaskState.DISPATCHED, attempt=1, dispatched_at=NOON, at_most_once=True
    ),
    stored(
        "later",
        priority=-1,
        deadline=noon(9),
        param={"k": 1e22},
        meta={"m": ""},
        attempt=2,
        interruptions=1,
    ),
]
"""The same as tasks, in the order of `find`."""


async def test_tables_of_the_first_version_are_brought_up_to_date(
    database_url: str,
) -> None:
    """
    Nothing is lost that the first version had written: the tasks are found as they were,
    the pending ones come in order, and what a dead scheduler was running is recovered.
    """
    upgrade_to("0001", database_url)
    moment = Moment()
    with engine_of(database_url) as engine, engine.begin() as connection:
        moments = {"past": datetime(2020, 1, 1, tzinfo=UTC), "noon": NOON, "later": noon(9)}
        values = (bindparam(name, at, moment) for name, at in moments.items())
        said = text(OF_0001).bindparams(*values)
        connection.execute(said)
    async with open_sql_repository(database_url) as repository:
        assert await repository.find(TaskQuery()) == LEFT
        [recovered] = await repository.recover(RecoverAction.FAIL, noon(10))
        assert recovered.id == "run"
        [claimed] = await repository.apply([ClaimTasks(9, noon(1))])
        assert [task.id for task in claimed.unwrap().tasks] == ["first", "later"]
        await repository.add([stored("new")])
    assert tables(database_url) == TABLES


OF_0003 = """
    INSERT INTO gokugen_schedule (
        id, rule, work_id, param, meta, priority, deadline_after, jitter, late, overlap,
        counted_from, paused, created_at, next_at, last_at, runs, dropped, pending_id,
        awaited_id, queued_at, skipped_from
    ) VALUES
        ('s', '{"every": "10s", "anchor": null}', 'note', '{}', '{}', 0, 1000000, 2000000,
            '{"window": 3.0, "run": "all", "limit": 4}', 'queue', 'start', 0, :noon, :later,
            :noon, 5, 6, 'head', 'run', :noon, :later)
"""
TASKS_OF_0003 = """
    INSERT INTO gokugen_task (
        id, work_id, state, scheduled_at, priority, created_at, param, meta, attempt,
        interruptions, at_most_once, cancelled_at, dispatched_at, done_at, ended_at,
        dispatched_by, lease_until, schedule_id, nominal_at
    ) VALUES
        ('head', 'note', 'scheduled', :later, 0, :noon, '{}', '{}', 0, 0, 0, NULL, NULL,
            NULL, NULL, NULL, NULL, 's', :later),
        ('run', 'note', 'dispatched', :noon, 0, :noon, '{}', '{}', 1, 0, 0, NULL, :noon,
            NULL, NULL, 'dead', :past, 's', :noon),
        ('gone', 'note', 'cancelled', :noon, 1, :noon, '{}', '{}', 0, 0, 0, :later, NULL,
            NULL, :later, NULL, NULL, 's', :noon),
        ('other', 'note', 'done', :noon, 0, :noon, '{}', '{}', 1, 0, 0, NULL, :noon,
            :later, :later, 'dead', NULL, NULL, NULL)
"""
"""A schedule and its tasks, as the third revision had them."""


async def test_schedules_are_brought_up_to_date(database_url: str) -> None:
    """
    Schedules of the third revision, and their tasks, are found as they were.
    """
    upgrade_to("0003", database_url)
    moment = Moment()
    with engine_of(database_url) as engine, engine.begin() as connection:
        moments = {"past": datetime(2020, 1, 1, tzinfo=UTC), "noon": NOON, "later": noon(9)}
        for statement in OF_0003, TASKS_OF_0003:
            values = [
                bindparam(name, at, moment)
                for name, at in moments.items()
                if f":{name}" in statement
            ]
            connection.execute(text(statement).bindparams(*values))
    async with open_sql_repository(database_url) as repository:
        [schedule] = await repository.find_schedules()
        expected = Schedule(
            id="s",
            trigger=Interval(10),
            work_id="note",
            created_at=NOON,
            deadline_after=1,
            jitter=2,
            late=Late(window=3, run="all", limit=4),
            overlap="queue",
            next_at=noon(9),
            last_at=NOON,
            runs=5,
            dropped=6,
            pending_id="head",
            awaited_id="run",
            queued_at=NOON,
            skipped_from=noon(9),
        )
        assert schedule == expected
        of_schedule = TaskQuery(schedule_ids={"s"})
        found = await repository.find(of_schedule)
        assert [(each.id, each.nominal_at) for each in found] == [
            ("gone", NOON),
            ("run", NOON),
            ("head", noon(9)),
        ]
        assert await repository.find(of_schedule, 1, found[0]) == found[1:2]
    assert tables(database_url) == TABLES


RARE_OF_0005 = """
    UPDATE gokugen_task SET unique_key = 'k', progress = '{"fraction": 0.5, "note": null,
        "at": "2030-06-01T12:00:00+00:00"}',
        rare = '{"retry": null, "retries": 2, "errors": [], "when": null}'
    WHERE id = 'later'
"""
"""What few tasks of the fifth revision have."""


async def test_tasks_of_before_name_no_pool(database_url: str) -> None:
    """
    Tasks of the fifth revision, in each state, and schedules name no pool: they are found
    and claimed as those that are added now.
    """
    upgrade_to("0005", database_url)
    moment = Moment()
    with engine_of(database_url) as engine, engine.begin() as connection:
        moments = {"past": datetime(2020, 1, 1, tzinfo=UTC), "noon": NOON, "later": noon(9)}
        for statement in OF_0001, OF_0003, RARE_OF_0005:
            values = [
                bindparam(name, at, moment)
                for name, at in moments.items()
                if f":{name}" in statement
            ]
            said = text(statement.replace("T12:00:00+", r"T12\:00\:00+"))
            connection.execute(said.bindparams(*values))
    rare: dict[str, Any] = {
        "key": "k",
        "retries": 2,
        "progress": Progress(fraction=0.5, at=NOON),
    }
    expected = [attrs.evolve(t, **rare) if t.id == "later" else t for t in LEFT]
    async with open_sql_repository(database_url) as repository:
        found = await repository.find(TaskQuery())
        assert found == expected
        assert {task.pool for task in found} == {None}
        assert [each.pool for each in await repository.find_schedules()] == [None]
        await repository.add([stored("new"), stored("named", pool="p")])
        unnamed = TaskFilter(frozenset({"note"}), pools=OfPools())
        claimed = await repository.claim(9, noon(1), unnamed)
        assert [task.id for task in claimed.tasks] == ["first", "new", "later"]
    assert tables(database_url) == TABLES


def test_a_migration_that_fails_leaves_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A migration that breaks off has changed nothing, and the next one succeeds.
    """
    upgrade = _migrate._upgrade

    def break_off(connection: Any) -> None:
        upgrade(connection)
        raise ZeroDivisionError

    monkeypatch.setattr(_migrate, "_upgrade", break_off)
    with pytest.raises(ZeroDivisionError):
        migrate(database_url)
    assert tables(database_url) == set()
    monkeypatch.undo()
    migrate(database_url)
    assert tables(database_url) == TABLES


async def test_a_row_is_found_by_its_id(database_url: str) -> None:
    """
    For the ORM the primary key is the id, on every database.
    """
    async with open_sql_repository(database_url) as repository:
        await repository.add([stored("a"), stored("b")])
    with engine_of(database_url) as engine, Session(engine) as session:
        row = session.get(TaskRow, "b")
        assert row is not None
        assert (row.id, row.sequence) == ("b", 2)
