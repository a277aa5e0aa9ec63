"""What is said to the database: never anything that goes through the whole table."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event

from trio_gokugen import Task, TaskState
from trio_gokugen._task import TaskUpdate
from trio_gokugen.abc import (
    AddTasks,
    CancelTask,
    ClaimTasks,
    DeleteEnded,
    EndTask,
    RecoverAction,
    TaskFilter,
    UpdateTask,
)
from trio_gokugen.sql import SQLCore, migrate
from trio_gokugen.sql._transaction import Transaction

NOW = datetime(2030, 1, 1, tzinfo=UTC)
WORKS = frozenset({"a", "b"})


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
    ]
    transaction.apply([AddTasks(new)])
    one = TaskFilter(frozenset({"a"}), frozenset({"a"}))
    for only in TaskFilter(), TaskFilter(WORKS), one:
        transaction.first(only)
        [claimed] = transaction.apply([ClaimTasks(1, NOW, only)])
        [run] = claimed.unwrap().tasks
        transaction.renew([run], RecoverAction.REVERT, NOW)
        transaction.apply([EndTask(run, NOW, "wrong" if only is one else None)])
    [changed] = transaction.apply([UpdateTask("5", TaskUpdate(priority=1))])
    changed.unwrap()
    transaction.recover(RecoverAction.REVERT, NOW, TaskFilter())
    transaction.apply([CancelTask("5", NOW)])
    transaction.delete_surplus(3, 1)
    ended = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED})
    for before in None, NOW:
        transaction.apply([DeleteEnded(before, ended, 1)])


@pytest.fixture
def engine(tmp_path: Path) -> Generator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'tasks.db'}")
    migrate(engine)
    yield engine
    engine.dispose()


def test_no_statement_goes_through_the_whole_table(engine: Engine) -> None:
    """
    Whatever is said, its rows are found by an index: with a million rows it takes as long
    as with a few.
    """
    core = SQLCore(engine, name="test")
    said: dict[str, Any] = {}

    @event.listens_for(engine, "before_cursor_execute")
    def note(_: object, __: object, text: str, given: Any, ___: object, many: bool) -> None:
        said[text] = given[0] if many else given

    with core.dialect.transaction(core.dialect.prepared(engine)) as connection:
        live(core.transaction(connection))

    assert engine.url.database is not None
    with closing(sqlite3.connect(engine.url.database)) as file:
        for text, given in said.items():
            if "gokugen_task" in text:
                for *_, step in file.execute(f"EXPLAIN QUERY PLAN {text}", given):
                    assert not is_whole(step), text
    assert len(said) > 15


def is_whole(step: str) -> bool:
    """Whether a step of a plan goes through all tasks, in whatever state they are."""
    partial = "gokugen_task_pending", "gokugen_task_dispatched", "gokugen_task_ended"
    through_all = step.startswith(("SCAN gokugen_task", "SCAN head", "SCAN each"))
    return through_all and not step.endswith(partial)
