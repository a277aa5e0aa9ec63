"""What is said to the database: never anything that goes through the whole table."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest
from databases import engine_of
from sqlalchemy import Engine, event, text

from trio_gokugen import Interval, Schedule, Task, TaskQuery, TaskState
from trio_gokugen._task import TaskUpdate
from trio_gokugen.abc import (
    ENDED,
    AddTasks,
    CancelTask,
    ChangeSchedule,
    ClaimTasks,
    DeleteEnded,
    EndTask,
    OfPools,
    OnSchedule,
    PauseSchedule,
    PutSchedule,
    RecoverAction,
    RemoveSchedule,
    TaskFilter,
    UpdateTask,
)
from trio_gokugen.sql import SQLCore, migrate
from trio_gokugen.sql._search import search
from trio_gokugen.sql._transaction import Transaction

NOW = datetime(2030, 1, 1, tzinfo=UTC)
WORKS = frozenset({"a", "b"})
PARTIAL = "gokugen_task_pending", "gokugen_task_dispatched", "gokugen_task_ended"
"""The indices of the tasks in some states only."""


def a_task(task_id: str, work_id: str = "a") -> Task:
    return Task(id=task_id, work_id=work_id, scheduled_at=NOW, created_at=NOW)


def live(transaction: Transaction) -> None:
    """Say all that is said while tasks live."""
    new = [
        a_task("0"),
        a_task("1"),
        a_task("2"),
        a_task("3", "b"),
        a_task("4", "b"),
        a_task("5", "c"),
        *(attrs.evolve(a_task(f"named {n}"), pool="p") for n in range(2)),
    ]
    transaction.apply([AddTasks(new)])
    one = TaskFilter(frozenset({"a"}), frozenset({"a"}))
    named = OfPools(frozenset({"p"}), frozenset({"unheard of"}))
    of_pool, unnamed = TaskFilter(pools=named), TaskFilter(WORKS, pools=OfPools())
    for only in TaskFilter(), TaskFilter(WORKS), one, of_pool, unnamed:
        transaction.first(only)
        [claimed] = transaction.apply([ClaimTasks(1, NOW, only)])
        [run] = claimed.unwrap().tasks
        transaction.renew([run], RecoverAction.REVERT, NOW)
        transaction.apply([EndTask(run, NOW, "wrong" if only is one else None)])
    [changed] = transaction.apply([UpdateTask("5", TaskUpdate(priority=1))])
    changed.unwrap()
    transaction.recover(RecoverAction.REVERT, NOW, TaskFilter())
    transaction.apply([CancelTask("5", NOW)])
    for schedule_id in "s", "t":
        schedule = Schedule(
            id=schedule_id,
            trigger=Interval(60),
            work_id=schedule_id,
            created_at=NOW,
            overlap="replace" if schedule_id == "s" else "skip",
        )
        change(transaction, PutSchedule(schedule, NOW))
        change(transaction, PutSchedule(attrs.evolve(schedule, priority=1), NOW))
    only = TaskFilter(frozenset({"s", "t"}))
    replaced: list[Task] = []
    for minute in 1, 2:
        at = NOW + timedelta(minutes=minute)
        [result] = transaction.apply([ClaimTasks(2, at, only)])
        claimed = result.unwrap()
        replaced += claimed.replaced
        ended = [run for run in claimed.tasks if run.work_id == "t"]
        transaction.apply([EndTask(run, at) for run in ended])
    assert [task.schedule_id for task in replaced] == ["s"]
    change(transaction, PauseSchedule("s", NOW))
    for schedule_id in "s", "t":
        change(transaction, RemoveSchedule(schedule_id, NOW))
    transaction.delete_surplus(3, 1)
    for before in None, NOW:
        transaction.apply([DeleteEnded(before, ENDED, 1)])


def change(transaction: Transaction, said: ChangeSchedule) -> None:
    [changed] = transaction.apply([OnSchedule(said)])
    assert changed.unwrap().changed


def what_is_said(engine: Engine) -> dict[str, Any]:
    """All that is said of tasks, and with what parameters."""
    migrate(engine)
    core = SQLCore(engine, name="test")
    said: dict[str, Any] = {}

    @event.listens_for(engine, "before_cursor_execute")
    def note(_: object, __: object, words: str, given: Any, *rest: bool) -> None:
        if "gokugen_task" in words or "gokugen_schedule" in words:
            said[words] = given[0] if rest[-1] else given

    with core.dialect.transaction(core.dialect.prepared(engine)) as connection:
        live(core.transaction(connection))
        running = TaskQuery(states={TaskState.DISPATCHED})
        of_schedule = TaskQuery(schedule_ids={"s"})
        pending_of = TaskQuery(schedule_ids={"s"}, states={TaskState.SCHEDULED})
        of_pool = TaskQuery(pools={"p"}, states={TaskState.SCHEDULED})
        of_both = attrs.evolve(of_pool, work_ids=WORKS)
        named = TaskQuery(ids={"0"})
        queries = TaskQuery(), running, named, of_schedule, pending_of, of_pool, of_both
        for query in queries:
            statement, given = search(core.dialect, connection, query, 1, a_task("0"))
            connection.execute(statement, given)
        connection.execute(core._statements.count_pending)
        connection.execute(core._statements.count_pools)
    assert len(said) > 15
    return said


def test_no_statement_goes_through_the_whole_file(tmp_path: Path) -> None:
    """
    Whatever is said, its rows are found by an index: with a million rows it takes as long
    as with a few.
    """
    path = tmp_path / "tasks.db"
    with engine_of(f"sqlite:///{path}") as engine:
        said = what_is_said(engine)
    with closing(sqlite3.connect(path)) as file:
        for text, given in said.items():
            for *_, step in file.execute(f"EXPLAIN QUERY PLAN {text}", given):
                assert not is_whole(step), text


def is_whole(step: str) -> bool:
    """Whether a step of a plan goes through all tasks, in whatever state they are."""
    through_all = step.startswith(("SCAN gokugen_", "SCAN head", "SCAN each"))
    return through_all and not step.endswith(PARTIAL)


def test_no_statement_goes_through_the_whole_table(postgresql_url: str) -> None:
    """
    There is an index for whatever is said on PostgreSQL, too, if that wants to take it.
    """
    with engine_of(postgresql_url) as engine:
        said = what_is_said(engine)
    with psycopg.connect(postgresql_url) as connection:
        connection.execute("SET enable_seqscan = off")
        for text, given in said.items():
            explain = f"EXPLAIN (FORMAT JSON) {text}".encode()
            row = connection.execute(explain, given).fetchone()
            assert row is not None
            for step in steps(row[0][0]["Plan"]):
                assert not goes_through_all(step), (text, step)


FILL = """
    INSERT INTO gokugen_task (
        id, work_id, state, scheduled_at, priority, created_at, param, meta,
        attempt, interruptions, at_most_once, lease_until
    )
    SELECT 'old ' || n, 'a', 'dispatched', now(), 0, now(), '{}', '{}', 1, 0, 0, now()
    FROM generate_series(1, 500) AS n
"""
FILL_MORE = """
    INSERT INTO gokugen_task (
        id, work_id, state, scheduled_at, priority, created_at, param, meta,
        attempt, interruptions, at_most_once, done_at, ended_at
    )
    SELECT 'old ' || n, 'a', 'done', now(), 0, now(), '{}', '{}', 1, 0, 0, now(), now()
    FROM generate_series(501, 20000) AS n
"""
END = """
    UPDATE gokugen_task SET state = 'done', lease_until = NULL, ended_at = now()
    WHERE state = 'dispatched'
"""
READ = """
    SELECT seq_tup_read, idx_tup_fetch FROM pg_stat_xact_user_tables
    WHERE relname = 'gokugen_task'
"""


@pytest.mark.parametrize("analyzed", [False, True])
def test_no_statement_reads_the_whole_table(postgresql_url: str, *, analyzed: bool) -> None:
    """
    While thousands of tasks have ended, what is said of a few others reads few rows, even
    if the planner of PostgreSQL knows nothing of the table yet.
    """
    new = [a_task("p0"), a_task("p1"), a_task("p2", "b")]
    running = TaskQuery(states={TaskState.DISPATCHED}, work_ids={"a"})
    with (
        engine_of(postgresql_url) as engine,
        psycopg.connect(postgresql_url, autocommit=True) as other,
    ):
        migrate(engine)
        core = SQLCore(engine, name="test")
        other.execute("ALTER TABLE gokugen_task SET (autovacuum_enabled = off)")
        other.execute(FILL)
        other.execute(FILL_MORE)
        if analyzed:  # when there was more to do
            other.execute("ANALYZE gokugen_task")
        other.execute(END)
        with core.dialect.transaction(core.dialect.prepared(engine)) as connection:
            core.transaction(connection).apply([AddTasks(new)])
        with other.transaction():
            other.execute("SELECT id FROM gokugen_task WHERE id = 'p0' FOR UPDATE")
            with core.dialect.transaction(core.dialect.prepared(engine)) as connection:
                transaction = core.transaction(connection)
                claim = ClaimTasks(1, NOW, TaskFilter(WORKS))
                [past_locked] = transaction.apply([claim])
                [first] = past_locked.unwrap().tasks
                assert first.id == "p1"
                live(transaction)
                [deleted] = transaction.apply([DeleteEnded(None, ENDED, 500)])
                assert len(deleted.unwrap()) == 500
                statement, given = search(core.dialect, connection, running, 1, None)
                assert connection.execute(statement, given).all() == []
                read = connection.execute(text(READ)).one()
    assert sum(read) < 5_000


def test_to_count_pools_reads_nobody_without_one(tmp_path: Path) -> None:
    """
    However many pending tasks name no pool, those that name one are found by an index.
    """
    path = tmp_path / "tasks.db"
    with engine_of(f"sqlite:///{path}") as engine:
        said = what_is_said(engine)
    [(text, given)] = [each for each in said.items() if COUNT_POOLS in each[0]]
    with closing(sqlite3.connect(path)) as file:
        [(*_, step)] = file.execute(f"EXPLAIN QUERY PLAN {text}", given)
    assert step == "SEARCH gokugen_task USING INDEX gokugen_task_pending (pool>?)"


COUNT_POOLS = "SELECT gokugen_task.pool, count(*)"
FILL_PENDING = """
    INSERT INTO gokugen_task (
        id, work_id, pool, state, scheduled_at, priority, created_at, param, meta,
        attempt, interruptions, at_most_once
    )
    SELECT 'new ' || n, 'a', CASE WHEN n > 19990 THEN 'p' ELSE '' END, 'scheduled', now(),
        0, now(), '{}', '{}', 0, 0, 0
    FROM generate_series(1, 20000) AS n
"""


@pytest.mark.parametrize("analyzed", [False, True])
def test_to_count_pools_reads_few_rows(postgresql_url: str, *, analyzed: bool) -> None:
    """
    The same on PostgreSQL, even if its planner knows nothing of the table yet.
    """
    with engine_of(postgresql_url) as engine:
        migrate(engine)
        core = SQLCore(engine, name="test")
        with engine.begin() as connection:
            connection.execute(
                text("ALTER TABLE gokugen_task SET (autovacuum_enabled = off)")
            )
            connection.execute(text(FILL_PENDING))
            if analyzed:
                connection.execute(text("ANALYZE gokugen_task"))
            before = connection.execute(text(READ)).one()
            assert connection.execute(core._statements.count_pools).all() == [("p", 10)]
            read = connection.execute(text(READ)).one()
    assert sum(read) - sum(before) < 100


HISTORY = """
    INSERT INTO gokugen_task (
        id, work_id, state, scheduled_at, priority, created_at, param, meta, attempt,
        interruptions, at_most_once, done_at, ended_at, schedule_id, nominal_at
    )
    SELECT 'old ' || n, 'a', 'done', t, 0, t, '{}', '{}', 1, 0, 0, t, t, 's', t
    FROM (
        SELECT n, TIMESTAMPTZ '2000-01-01 00:00Z' + n * INTERVAL '1 minute' AS t
        FROM generate_series(1, 20000) AS n
    ) AS moments
"""


def test_a_page_of_a_schedule_is_not_all_of_it(postgresql_url: str) -> None:
    """
    However long the history of a schedule, to find a page of it, or what is pending of it,
    reads few rows.
    """
    middle = datetime(2000, 1, 8, tzinfo=UTC)
    after = Task(id="old", work_id="a", scheduled_at=middle, created_at=middle)
    live: frozenset[TaskState] = frozenset(TaskState) - ENDED
    with engine_of(postgresql_url) as engine:
        migrate(engine)
        core = SQLCore(engine, name="test")
        with engine.begin() as connection:
            connection.execute(text(HISTORY))
            connection.execute(text("ANALYZE gokugen_task"))
            before = connection.execute(text(READ)).one()
            for states, found in (None, 10), (live, 0):
                query = TaskQuery(schedule_ids={"s", "t"}, states=states)
                statement, given = search(core.dialect, connection, query, 10, after)
                assert len(connection.execute(statement, given).all()) == found
            read = connection.execute(text(READ)).one()
    assert sum(read) - sum(before) < 100


def steps(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A step of a plan of PostgreSQL, and those below."""
    yield plan
    for each in plan.get("Plans", []):
        yield from steps(each)


def goes_through_all(step: dict[str, Any]) -> bool:
    """Whether a step of a plan goes through all tasks, in whatever state they are."""
    if "Index Name" in step:
        return "Index Cond" not in step and step["Index Name"] not in PARTIAL
    relation = str(step.get("Relation Name"))
    return step["Node Type"] == "Seq Scan" and relation.startswith("gokugen_")
