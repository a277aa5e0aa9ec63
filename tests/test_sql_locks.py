"""In which order rows are locked on PostgreSQL: nobody waits in a circle."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import outcome
import pytest
import trio
from databases import engine_of
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from support import NOON, noon, stored

from trio_gokugen import (
    HeapRepository,
    Interval,
    RepositoryError,
    Schedule,
    Task,
    TaskQuery,
    TaskState,
)
from trio_gokugen._schedule import Overlap, PutSchedule, TriggerSchedule
from trio_gokugen.abc import (
    CancelTask,
    ClaimTasks,
    EndTask,
    OnSchedule,
    Operation,
    RecoverAction,
)
from trio_gokugen.sql import SQLRepository, open_sql_repository
from trio_gokugen.sql._core import HURRIES

SOON = 10.0
"""Seconds after which a test fails: what it waits for takes milliseconds."""


def put(schedule_id: str, seconds: float = 10, overlap: Overlap = "allow") -> OnSchedule:
    trigger = Interval(seconds)
    schedule = Schedule(
        id=schedule_id, trigger=trigger, work_id="w", created_at=NOON, overlap=overlap
    )
    return OnSchedule(PutSchedule(schedule, NOON))


class Errors:
    """What the database has said to repositories."""

    def __init__(self) -> None:
        self.states: list[str] = []

    async def wait(self) -> None:
        """Wait for the first, of which nothing tells."""
        while not self.states:  # noqa: ASYNC110 (a thread notes it, and wakes nobody)
            await trio.sleep(0.01)

    def of(self, repository: SQLRepository) -> None:
        @event.listens_for(repository.store.engine, "handle_error")
        def note(context: Any) -> None:
            self.states.append(getattr(context.original_exception, "sqlstate", ""))


@asynccontextmanager
async def two(
    url: str,
) -> AsyncGenerator[tuple[SQLRepository, SQLRepository, Errors]]:
    errors = Errors()
    async with open_sql_repository(url) as one, open_sql_repository(url) as other:
        errors.of(one)
        errors.of(other)
        yield one, other, errors


@contextmanager
def holding(url: str, statement: str) -> Generator[Callable[[], None]]:
    """Have somebody else hold the rows of a statement, until told to let go."""
    with engine_of(url) as engine, engine.connect() as connection:
        connection.execute(text(f"{statement} FOR UPDATE"))
        yield connection.rollback
        connection.rollback()


async def results(
    repository: SQLRepository, operations: Sequence[Operation]
) -> list[outcome.Outcome[Any]]:
    with trio.fail_after(SOON):
        return [*await repository.apply(operations)]


async def test_a_run_that_somebody_holds_is_not_lost(postgresql_url: str) -> None:
    """
    To renew leases waits for nobody: a run whose row is held, as it is being ended, is
    stepped over, and is not lost.
    """
    async with open_sql_repository(postgresql_url) as repository:
        await repository.add([stored("a"), stored("b"), stored("c")])
        runs = (await repository.claim(9, noon())).tasks
        await repository.mark_done(runs[2], noon())
        query = "SELECT lease_until FROM gokugen_task WHERE id IN ('a', 'b') ORDER BY id"

        def leases() -> Sequence[Any]:
            with repository.store.engine.connect() as connection:
                return connection.execute(text(query)).scalars().all()

        before = leases()
        with (
            holding(postgresql_url, "SELECT 1 FROM gokugen_task WHERE id = 'a'"),
            trio.fail_after(SOON),
        ):
            renewed = await repository.renew(runs, RecoverAction.REVERT, noon())
        assert [run.id for run in renewed.lost] == ["c"]
        assert leases()[0] == before[0]
        assert leases()[1] > before[1]


def busy(ids: Sequence[str], runs: list[Task], seconds: float) -> list[Operation]:
    """All that can be said of schedules, in any order."""
    found = random.sample(runs, len(runs))
    operations: list[Operation] = [EndTask(run, noon(seconds)) for run in found[::2]]
    operations += [
        put(schedule_id, random.choice([1, 2]), "replace")
        for schedule_id in random.sample(ids, len(ids))
    ]
    operations.append(ClaimTasks(9, noon(seconds)))
    operations += [EndTask(run, noon(seconds)) for run in found[1::2]]
    operations.append(ClaimTasks(9, noon(seconds)))
    return operations


async def test_whoever_is_about_the_same_schedules_gets_on(postgresql_url: str) -> None:
    """
    Two that change the same schedules in other orders, and claim their tasks and end them
    in the same batches, are in no deadlock.
    """
    ids = [f"s{number}" for number in range(12)]
    async with two(postgresql_url) as (one, other, errors):

        async def work(repository: SQLRepository) -> None:
            runs: list[Task] = []
            for seconds in range(25):
                done = await repository.apply(busy(ids, runs, seconds))
                values = [each.value for each in done if isinstance(each, outcome.Value)]
                claims = [each for each in values if hasattr(each, "tasks")]
                runs = [task for claim in claims for task in claim.tasks]
                await repository.renew(runs, RecoverAction.REVERT, noon(seconds))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work, one)
                nursery.start_soon(work, other)
    assert "40P01" not in errors.states


@pytest.mark.parametrize("times", [1, HURRIES + 1], ids=["a moment", "long"])
async def test_a_schedule_that_is_wanted_out_of_order(
    postgresql_url: str, times: int
) -> None:
    """
    Who holds schedules, and wants one that comes before these, does not wait for it for
    long: all is undone, and begun anew. If that was of no use, it waits.
    """
    async with two(postgresql_url) as (repository, _, errors):
        for schedule_id, seconds in ("a", 20), ("b", 10), ("z", 100):
            await results(repository, [put(schedule_id, seconds)])
        first = "SELECT 1 FROM gokugen_task WHERE schedule_id = 'b'"
        wanted = "SELECT 1 FROM gokugen_schedule WHERE id = 'a'"
        # What a claim would find first is held, so that it finds what was not foreseen.
        with holding(postgresql_url, first), holding(postgresql_url, wanted) as let_go:
            tried: list[str] = []

            @event.listens_for(repository.store.engine, "before_cursor_execute")
            def count(*args: Any) -> None:
                if "FROM gokugen_schedule" in args[2] and args[3]["ids"] == ["a"]:
                    tried.append(args[2])
                    if len(tried) == times:
                        threading.Timer(0.1, let_go).start()

            done = await results(repository, [put("z", 100), ClaimTasks(1, noon(20))])
    [task] = done[1].unwrap().tasks
    assert task.schedule_id == "a"
    assert set(errors.states) == {"55P03"}
    assert len(errors.states) == (HURRIES if times > HURRIES else len(tried) - 1)


async def test_what_goes_wrong_in_a_hurry(postgresql_url: str) -> None:
    """
    Something else than somebody in the way is told as it is.
    """
    async with open_sql_repository(postgresql_url) as repository:
        for schedule_id, seconds in ("a", 20), ("b", 10), ("z", 100):
            await results(repository, [put(schedule_id, seconds)])

        @event.listens_for(repository.store.engine, "before_cursor_execute")
        def fail(*args: Any) -> None:
            if "FROM gokugen_schedule" in args[2] and args[3]["ids"] == ["a"]:
                raise OperationalError("a statement", {}, ValueError("broken"))

        with (
            holding(postgresql_url, "SELECT 1 FROM gokugen_task WHERE schedule_id = 'b'"),
            pytest.raises(RepositoryError, match="broken"),
        ):
            await results(repository, [put("z", 100), ClaimTasks(1, noon(20))])


async def test_a_new_occurrence_that_somebody_holds(postgresql_url: str) -> None:
    """
    If the next occurrence is taken as its schedule is about to be changed, and somebody
    holds the one after, the change comes once he lets go.
    """
    async with two(postgresql_url) as (repository, other, errors):
        await results(repository, [put("s")])
        held: list[Any] = []
        looked, taken = threading.Event(), threading.Event()

        @event.listens_for(repository.store.engine, "after_cursor_execute")
        def wait(*args: Any) -> None:
            if "SELECT gokugen_schedule.pending_id" in args[2] and not looked.is_set():
                looked.set()
                taken.wait(SOON)

        async def change() -> None:
            [changed] = await results(repository, [put("s", 12)])
            held.append(changed.unwrap().task)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            await trio.to_thread.run_sync(looked.wait, SOON)
            await other.claim(1, noon(10))
            statement = "SELECT 1 FROM gokugen_task WHERE state = 'scheduled'"
            with holding(postgresql_url, statement):
                taken.set()
                with trio.fail_after(SOON):
                    await errors.wait()
    assert held[0].nominal_at == noon(12)
    assert set(errors.states) == {"55P03"}


async def test_a_run_that_has_just_begun_is_replaced(postgresql_url: str) -> None:
    """
    A run that begins as a claim is about to replace what runs is replaced, too.
    """
    async with two(postgresql_url) as (repository, other, _):
        await results(repository, [put("s", overlap="replace")])
        await repository.change_schedule(TriggerSchedule("s", noon(10)))

        @event.listens_for(repository.store.engine, "after_cursor_execute")
        def begin(*args: Any) -> None:
            if "gokugen_task AS run" in args[2] and not begun:
                begun.append(None)
                trio.from_thread.run(run)

        begun: list[Any] = []

        async def run() -> None:
            begun.append((await other.claim(1, noon(10))).tasks)

        claimed = await repository.claim(1, noon(10))
        [started] = begun[1]
        assert [task.id for task in claimed.replaced] == [started.id]
        assert (await repository.get(started.id)).state is TaskState.CANCELLED
        assert [task.nominal_at for task in claimed.tasks] == [noon(10)]


@pytest.mark.parametrize("kind", ["heap", "sql"])
async def test_several_groups_of_a_batch(database_url: str, kind: str) -> None:
    """
    Operations of all kinds are carried out in their order, though all is locked before.
    """
    async with open_sql_repository(database_url) as sql:
        repository = HeapRepository() if kind == "heap" else sql
        assert [*await repository.apply([])] == []
        first = await repository.apply([put("s"), put("s", 5), put("t", 6)])
        assert [each.unwrap().changed for each in first] == [True, True, True]
        pending = await repository.find(TaskQuery(states={TaskState.SCHEDULED}))
        assert [task.nominal_at for task in pending] == [noon(5), noon(6)]
        done = await repository.apply(
            [
                CancelTask(pending[1].id, noon(1)),
                ClaimTasks(9, noon(20)),
                put("t", 12),
                ClaimTasks(9, noon(24)),
            ]
        )
        tasks = [[t.schedule_id for t in done[n].unwrap().tasks] for n in (1, 3)]
        assert tasks == [["s", "t"], ["t"]]
