"""What several do at the same moment, or meanwhile, must not do to others."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
import trio
from sqlalchemy import Engine, create_engine, make_url
from support import noon, stored

from trio_gokugen import AlreadyDoneError, Task, TaskState
from trio_gokugen.abc import ClaimTasks, EndTask, RecoverAction, TaskFilter
from trio_gokugen.sql import SQLRepository, open_sql_repository

SOON = 5.0
"""Seconds after which a test fails: what it waits for takes milliseconds."""


def now(seconds: float = 0) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


def due(task_id: str, work_id: str = "note", at: float = -1) -> Task:
    return Task(id=task_id, work_id=work_id, scheduled_at=now(at), created_at=now())


def engine_for(url: str) -> Engine:
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"))


@asynccontextmanager
async def two(url: str) -> AsyncGenerator[tuple[SQLRepository, SQLRepository]]:
    async with open_sql_repository(url) as first, open_sql_repository(url) as second:
        yield first, second


async def test_news_of_what_is_due_do_not_depend_on_what_seems_to_be_pending(
    postgresql_url: str,
) -> None:
    """
    A task that is due is told of, though an earlier one seems to be pending: it may have
    been claimed by somebody who cannot see the new one yet.
    """
    async with two(postgresql_url) as (first, other):
        await other.add([due("before")])
        with psycopg.connect(postgresql_url, autocommit=True) as connection:
            connection.execute("LISTEN gokugen_task")
            await other.add([due("after", at=0)])
            await other.add([due("tomorrow", at=86_400)])
            await other.add([due("next day", at=2 * 86_400)])
            await first.add([due("another work", "other", at=86_400)])
            told = [each.payload for each in connection.notifies(timeout=0.2)]
    assert len(told) == 2


@pytest.mark.parametrize("many", [1, 3])
async def test_what_somebody_holds_hides_nothing_of_other_works(
    postgresql_url: str, many: int
) -> None:
    """
    However many of the first tasks are locked by somebody's transaction, those of other
    works are claimed.
    """
    engine = engine_for(postgresql_url)
    both = TaskFilter(frozenset({"held", "free"}))
    async with open_sql_repository(postgresql_url) as repository:
        held = [due(f"held {number}", "held", -9) for number in range(many)]
        await repository.add([*held, due("free", "free")])
        with engine.connect() as connection:
            for task in held:
                repository.cancel_in(connection, task.id)
            claimed = await repository.claim(1, now(), both)
            assert [task.id for task in claimed.tasks] == ["free"]
            assert (await repository.claim(1, now(), both)).tasks == []
            connection.rollback()
        claimed = await repository.claim(9, now(), both)
        assert len(claimed.tasks) == many
    engine.dispose()


async def test_a_change_that_waits_keeps_no_lease_from_being_renewed(
    postgresql_url: str,
) -> None:
    """
    While a change waits for a task that somebody's transaction holds, leases are renewed.
    """
    engine = engine_for(postgresql_url)
    async with open_sql_repository(postgresql_url) as repository:
        await repository.add([due("run"), due("held", at=60)])
        [run] = (await repository.claim(1, now())).tasks
        with engine.connect() as connection:
            repository.cancel_in(connection, "held")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(repository.cancel, "held", now())
                await trio.sleep(0.3)  # in its thread it waits, of which nothing tells
                with trio.fail_after(SOON):
                    renewed = await repository.renew([run], RecoverAction.REVERT, now())
                assert renewed.lost == []
                connection.commit()
    engine.dispose()


async def test_no_more_are_deleted_than_were_asked_for(postgresql_url: str) -> None:
    """
    `limit` holds, whatever the planner believes of the size of the table.
    """
    async with open_sql_repository(postgresql_url) as repository:
        done = [stored(str(n), state=TaskState.DONE, done_at=noon(n)) for n in range(10)]
        await repository.add(done[:1])
        with psycopg.connect(postgresql_url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE gokugen_task")
        await repository.add(done[1:])
        with trio.fail_after(SOON):
            assert await repository.delete_ended(limit=2) == ["0", "1"]


@pytest.mark.parametrize("errors", [["boom"], [None], list("abcdef")], ids=str)
async def test_a_run_of_a_row_that_was_damaged_meanwhile(
    database_url: str, errors: list[str | None]
) -> None:
    """
    A row that was damaged while its task ran does not keep what became of the run from
    being recorded.
    """
    async with open_sql_repository(database_url) as repository:
        tasks = [stored(str(number)) for number in range(len(errors))]
        await repository.add(tasks)
        runs = (await repository.claim(9, noon())).tasks
        with repository.store.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE gokugen_task SET meta = '[1]'")
        ends = [EndTask(run, noon(1), err) for run, err in zip(runs, errors, strict=True)]
        ended = [each.unwrap() for each in await repository.apply(ends)]
        assert [task.err for task in ended] == errors
        with repository.store.engine.connect() as connection:
            rows = connection.exec_driver_sql("SELECT state, err FROM gokugen_task")
            assert {row.err for row in rows} == set(errors)


async def test_a_damaged_task_is_not_taken_for_one_that_runs(database_url: str) -> None:
    """
    A task that cannot be read has failed, for who wants to cancel it, and for a run of a
    task of its id that is over.
    """
    async with open_sql_repository(database_url) as repository:
        await repository.add([stored("a")])
        [run] = (await repository.claim(1, noon())).tasks
        await repository.revert(run)
        with repository.store.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE gokugen_task SET meta = '[1]'")
        with pytest.raises(AlreadyDoneError):
            await repository.cancel("a", noon())
        with pytest.raises(AlreadyDoneError):
            await repository.mark_done(run, noon())


async def test_a_claim_tells_of_a_damaged_task_what_is_stored(database_url: str) -> None:
    """
    A task that cannot be read as it is claimed is told of as it is stored then.
    """
    async with open_sql_repository(database_url) as repository:
        await repository.add([stored("a")])
        with repository.store.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE gokugen_task SET meta = '[1]'")
        [claimed] = await repository.apply([ClaimTasks(1, noon())])
        [failed] = claimed.unwrap().expired
        task = await repository.get("a")
        assert task.state is failed.state is TaskState.FAILED
        assert (task.attempt, task.dispatched_at) == (failed.attempt, failed.dispatched_at)


async def test_where_is_of_the_repositorys_kind_of_database(postgresql_url: str) -> None:
    """
    A connection to another kind of database is refused.
    """
    engine = create_engine("sqlite://")
    async with open_sql_repository(postgresql_url) as repository:
        with (
            engine.connect() as connection,
            pytest.raises(ValueError, match=r"^where: is a connection to sqlite by pysql"),
        ):
            repository.add_task_in(connection, "note", after=0)
    engine.dispose()
