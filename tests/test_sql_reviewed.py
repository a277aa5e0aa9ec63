"""Faults that a review has found, none of which may come back."""

from __future__ import annotations

import random
import sqlite3
import string
import threading
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing
from sqlalchemy import create_engine, text
from support import NOON, noon, open_bench, stored

from trio_gokugen import (
    BackoffHooks,
    HeapRepository,
    HookAction,
    Interval,
    InvalidTaskError,
    LostRunError,
    PartialHooks,
    RepositoryError,
    Schedule,
    Task,
    TaskExistsError,
    TaskParam,
    TaskQuery,
    TaskState,
    TaskUpdate,
    WorkRegistry,
    open_scheduler,
)
from trio_gokugen._schedule import ScheduleUpdate
from trio_gokugen.abc import (
    AddTasks,
    CancelTask,
    OfPools,
    PutSchedule,
    RecoverAction,
    TaskFilter,
    TaskRepository,
)
from trio_gokugen.sql import SQLRepository, open_sql_repository
from trio_gokugen.sql._rows import FIELDS
from trio_gokugen.testing import FaultyRepository

PRIVATE = "not-for-everybody"


def execute(repository: SQLRepository, statement: str) -> None:
    with repository.store.engine.begin() as connection:
        connection.execute(text(statement))


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
async def test_any_isolation_level_of_an_engine_will_do(
    postgresql_url: str, level: Any
) -> None:
    """
    Whatever isolation an engine asks for, no two claims get the same task.
    """
    url = postgresql_url.replace("postgresql:", "postgresql+psycopg:")
    engine = create_engine(url, isolation_level=level)
    claimed: list[str] = []
    async with (
        open_sql_repository(engine, name="one") as one,
        open_sql_repository(engine, name="two") as two,
    ):
        await one.add([stored(str(n)) for n in range(200)])

        async def claim(repository: SQLRepository) -> None:
            while tasks := (await repository.claim(7, noon(1))).tasks:
                claimed.extend(task.id for task in tasks)

        async with trio.open_nursery() as nursery:
            for repository in one, two:
                nursery.start_soon(claim, repository)
        await one.add([stored(f"c{n}") for n in range(200)])
        cancels = [CancelTask(f"c{n}", noon(1)) for n in range(200)]
        async with trio.open_nursery() as nursery:
            for repository in one, two:
                nursery.start_soon(repository.apply, cancels)
    assert sorted(claimed) == sorted(map(str, range(200)))
    engine.dispose()


@pytest.mark.parametrize("waits", [False, True], ids=["at the start", "at a renewal"])
async def test_a_running_row_that_cannot_be_read_spoils_nothing(
    autojump_clock: trio.testing.MockClock, sqlite_url: str, waits: bool
) -> None:
    """
    A task that was left running, and cannot be read, ends as failed; others go on.
    """
    async with open_sql_repository(sqlite_url, name="dead") as repository:
        run = stored("a", state=TaskState.DISPATCHED, dispatched_at=NOON, attempt=1)
        await repository.add([run, stored("b")])
        execute(repository, "UPDATE gokugen_task SET param = '{' WHERE id = 'a'")
        ends = 5_000_000 if waits else -5_000_000
        late = f"UPDATE gokugen_task SET lease_until = lease_until + {ends}"  # noqa: S608 (ours)
        execute(repository, late)
    async with open_sql_repository(sqlite_url, name="me", lease=3, poll=1) as repository:
        async with open_bench(repository) as (scheduler, bench):
            ended = await scheduler.wait("a")
            assert ended.state is TaskState.FAILED
            assert "cannot be read: param" in (ended.err or "")
            await scheduler.wait("b")
            await trio.sleep(10)
            assert bench.ids() == ["b"]
        running = "SELECT count(*) FROM gokugen_task WHERE state = 'dispatched'"
        with repository.store.engine.connect() as connection:
            assert connection.scalar(text(running)) == 0


async def test_a_thread_keeps_its_task_to_the_end(sqlite_url: str) -> None:
    """
    While a thread goes on, though its scheduler is cancelled, nobody else gets its task.
    """
    works = WorkRegistry()
    ended = threading.Event()
    go_on = threading.Event()
    running = trio.Event()

    @works.register
    def work() -> None:
        trio.from_thread.run_sync(running.set)
        go_on.wait(60)
        ended.set()

    async def run() -> None:
        async with open_sql_repository(sqlite_url, name="a", lease=1) as repository:
            async with open_scheduler(works, repository) as scheduler:
                await scheduler.add_task("work", after=0, id="t")
                await trio.sleep_forever()

    async with open_sql_repository(sqlite_url, name="b", lease=1) as other:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await running.wait()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                for _ in range(15):
                    await trio.sleep(0.1)
                    renewed = await other.renew([], RecoverAction.REVERT, datetime.now(UTC))
                    assert renewed.recovered == []
                    assert not ended.is_set()
                go_on.set()
        [task] = [await other.get("t")]
        assert task.state in {TaskState.DONE, TaskState.SCHEDULED}


async def test_many_expired_tasks_are_not_all_of_one_transaction(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    A claim goes through a bounded number of tasks that are past their deadline.
    """
    async with open_sql_repository(sqlite_url, synchronous="off") as repository:
        await repository.add([stored(str(n), deadline=noon(1)) for n in range(2_500)])
        await repository.add([stored("last", seconds=1)])
        sizes: list[int] = []
        tasks: list[str] = []
        while not tasks:
            claimed = await repository.claim(1, noon(2))
            sizes.append(len(claimed.expired))
            tasks += [task.id for task in claimed.tasks]
        assert tasks == ["last"]
        assert sum(sizes) == 2_500
        assert max(sizes) <= 1_000


async def test_two_who_want_the_same_rows_both_get_on(postgresql_url: str) -> None:
    """
    Two that change, or add, the same many tasks in other orders are not in a deadlock.
    """
    async with (
        open_sql_repository(postgresql_url) as one,
        open_sql_repository(postgresql_url) as two,
    ):
        ids = [f"{n:05}" for n in range(3_000)]
        await one.add([stored(each) for each in ids])
        results: list[Any] = []

        async def change(repository: SQLRepository) -> None:
            mine = random.sample(ids, len(ids))
            results.append(await repository.apply([CancelTask(i, NOON) for i in mine]))

        async with trio.open_nursery() as nursery:
            for repository in one, two:
                nursery.start_soon(change, repository)
        changed = [each.unwrap()[1] for result in results for each in result]
        assert changed.count(True) == len(ids)

        async def add(repository: SQLRepository, step: int) -> None:
            tasks = [AddTasks([stored(f"new {each}")]) for each in ids[:500][::step]]
            results.append(await repository.apply(tasks))

        results.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(add, one, 1)
            nursery.start_soon(add, two, -1)
        errors = [e.error for result in results for e in result if hasattr(e, "error")]
        assert len(errors) == 500
        assert all(isinstance(error, TaskExistsError) for error in errors)


@pytest.mark.parametrize("query", ["vfs=unix-dotfile&uri=true"])
async def test_a_file_that_cannot_be_written_ahead_is_refused(
    tmp_path: Any, query: str
) -> None:
    """
    Where there can be no write-ahead log, opening says so, and returns.
    """
    with pytest.raises(RepositoryError, match="write-ahead log"):
        async with open_sql_repository(f"sqlite:///file:{tmp_path}/x.db?{query}"):
            pass


async def test_no_password_is_told(tmp_path: Any) -> None:
    """
    An error of opening names the database without any password.
    """
    url = f"postgresql://u:s3cret@/db?host={tmp_path}&password=s3cret"
    with pytest.raises(RepositoryError) as caught:
        async with open_sql_repository(url):
            pass
    assert "s3cret" not in str(caught.value)


async def test_no_param_is_told(sqlite_url: str) -> None:
    """
    What tasks are called with is not in the traceback of a failure.
    """
    async with open_sql_repository(sqlite_url) as repository:
        execute(repository, "ALTER TABLE gokugen_task RENAME COLUMN err TO gone")
        with pytest.raises(RepositoryError) as caught:
            await repository.add([stored("a", param={"token": PRIVATE})])
        told = "".join(traceback.format_exception(caught.value))
        assert PRIVATE not in told


@pytest.mark.parametrize("keep", [10**20, timedelta.max])
async def test_however_many_are_kept(
    autojump_clock: trio.testing.MockClock, sqlite_url: str, keep: Any
) -> None:
    """
    A `keep_ended` beyond all numbers keeps all.
    """
    async with open_sql_repository(sqlite_url, keep_ended=keep) as repository:
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_task("note", after=0, id="a")
            await scheduler.wait("a")
            await trio.sleep(1_000)
            assert (await scheduler.get("a")).state is TaskState.DONE


async def test_a_damaged_end_keeps_nobody_from_deleting(sqlite_url: str) -> None:
    """
    Ended tasks are deleted, though of one it cannot be read when it ended.
    """
    async with open_sql_repository(sqlite_url) as repository:
        done = [stored(i, state=TaskState.DONE, done_at=NOON) for i in ("a", "b")]
        await repository.add(done)
        execute(repository, "UPDATE gokugen_task SET ended_at = 'x' WHERE id = 'a'")
        # Some are kept, and of those nobody can tell how old they are.
        assert await repository.store.delete_surplus(1, 9) == ["b"]
        assert await repository.delete_ended() == ["a"]


async def test_a_repository_that_is_closed(database_url: str) -> None:
    """
    After its block, a repository does nothing more: its name may be another's.
    """
    async with open_sql_repository(database_url) as repository:
        await repository.add([stored("a")])
    closed = pytest.raises(RepositoryError, match=r"^the repository is closed: use it in")
    with pytest.RaisesGroup(RepositoryError, flatten_subgroups=True):
        async with open_scheduler(WorkRegistry(), repository):
            raise AssertionError("it must not start")
    for call in (
        lambda: repository.add([stored("b")]),
        lambda: repository.get("a"),
        repository.count_pending,
        repository.count_pools,
    ):
        with closed:
            await call()
    with repository.store.engine.connect() as connection:
        with closed:
            repository.add_task_in(connection, "note", after=0)
        with closed:
            repository.cancel_in(connection, "a")
    repository.store.engine.dispose()
    async with open_sql_repository(database_url) as other:
        assert [task.id for task in await other.find(TaskQuery())] == ["a"]


async def test_a_run_cannot_end_another_task_of_its_id(database_url: str) -> None:
    """
    A run whose task was forgotten, and its id used again, is refused.
    """
    async with open_sql_repository(database_url) as repository:
        await repository.add([stored("a")])
        [run] = (await repository.claim(1, noon(1))).tasks
        await repository.recover(RecoverAction.FAIL, noon(1))
        await repository.delete_ended()
        await repository.add([stored("a", created_at=noon(2), seconds=2)])
        [new] = (await repository.claim(1, noon(3))).tasks
        with pytest.raises(LostRunError):
            await repository.mark_done(run, noon(3))
        renewed = await repository.renew([run], RecoverAction.LEAVE, noon(3))
        assert renewed.lost == [run]
        assert (await repository.mark_done(new, noon(4))).state is TaskState.DONE


async def test_engines_that_will_not_do(tmp_path: Any) -> None:
    """
    An engine that gives each thread a database of its own, or commits by itself, is
    refused by an error that says what to do.
    """
    with pytest.raises(ValueError, match="StaticPool"):
        async with open_sql_repository(create_engine("sqlite://")):
            pass

    class Committing(sqlite3.Connection):
        autocommit = True

    engine = create_engine(
        f"sqlite:///{tmp_path}/x.db", connect_args={"factory": Committing}
    )
    with pytest.raises(RepositoryError, match="autocommit"):
        async with open_sql_repository(engine):
            pass
    engine.dispose()


@pytest.mark.parametrize("name", ["日" * 12, "a" * 101, "%" * 34])
async def test_names_that_are_too_long(sqlite_url: str, name: str) -> None:
    """
    A name that cannot become the name of a file is refused as one.
    """
    with pytest.raises(ValueError, match=r"^name: must not be longer"):
        async with open_sql_repository(sqlite_url, name=name):
            pass


async def test_many_who_fail_at_once_wait_no_longer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    However many changes a store that is down for a moment refuses, they are tried again
    as soon as one would be.
    """
    hooks = BackoffHooks(initial=1, longest=1_000)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(
                hooks.on_update_error, (), RepositoryError("down"), HookAction.RAISE
            )
    assert trio.current_time() <= 1


async def test_a_hook_that_waits_for_long_does_not_cost_the_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A renewal that fails is tried again soon, however long a hook would rather wait.
    """

    async def wait_for_long(*_: Any) -> HookAction:
        await trio.sleep(10_000)
        return HookAction.RETRY

    async with open_sql_repository("sqlite://", lease=30) as repository:
        faulty = FaultyRepository(repository)
        faulty.fail("renew", times=2)
        hooks = PartialHooks(on_update_error=wait_for_long)
        async with open_bench(faulty, hooks=hooks) as (scheduler, bench):
            await scheduler.add_task("sleep", {"seconds": 100}, after=0, id="a")
            await scheduler.wait("a")
            assert bench.log == [("a", 0.0), ("a done", 100.0)]


@pytest.mark.parametrize("text_", ["x" * 1_001, "日" * 334])
def test_ids_that_no_index_takes(text_: str) -> None:
    """
    An id, or the name of a work, of more than 1,000 bytes is refused when it is given.
    """
    for field, ids in ("id", (text_, "work")), ("work_id", ("a", text_)):
        with pytest.raises(InvalidTaskError, match="longer than 1000 bytes") as caught:
            stored(*ids)
        assert caught.value.field == field
    assert stored("日" * 333).id == "日" * 333


@pytest.mark.parametrize("longest", ["x" * 500, "日" * 166])
def test_pools_that_no_index_takes(longest: str) -> None:
    """
    The name of a pool of more than 500 bytes is refused when it is given, by its field.
    """
    moment: dict[str, Any] = {"scheduled_at": NOON}
    schedule: dict[str, Any] = {"id": "s", "work_id": "w", "trigger": Interval(1)}
    given: list[Callable[..., Any]] = [
        lambda pool: stored("a", pool=pool),
        lambda pool: TaskParam(work_id="w", pool=pool, **moment),
        lambda pool: TaskUpdate(pool=pool),
        lambda pool: Schedule(created_at=NOON, pool=pool, **schedule),
        lambda pool: ScheduleUpdate(pool=pool).changed(
            Schedule(created_at=NOON, **schedule)
        ),
    ]
    for give in given:
        assert give(longest).pool == longest
        with pytest.raises(InvalidTaskError, match="longer than 500 bytes") as caught:
            give(longest + "日")
        assert caught.value.field == "pool"


async def test_the_longest_names_of_all(url: str | None) -> None:
    """
    Names of any length that is permitted are kept, and found, all at once.
    """
    letters = string.ascii_letters + string.digits
    source = random.Random(3)

    def name(length: int) -> str:
        # What has a pattern would be compressed.
        return "".join(source.choices(letters, k=length))

    ids = [name(1_000) for _ in range(5)]
    work, pool, key = name(1_000), name(500), name(1_000)
    async with AsyncExitStack() as stack:
        repository: TaskRepository = HeapRepository()
        if url is not None:
            repository = await stack.enter_async_context(open_sql_repository(url))
        await repository.add(
            [
                stored(
                    each, work, pool=pool, key=f"{n}{key[1:]}", schedule_id=each, when=key
                )
                for n, each in enumerate(ids)
            ]
        )
        query = TaskQuery(pools={pool}, work_ids={work}, schedule_ids=set(ids))
        assert {task.id for task in await repository.find(query)} == {*ids}
        await repository.update(ids[0], TaskUpdate(priority=2**62))
        only = TaskFilter(pools=OfPools(frozenset({pool})))
        [run, *_] = (await repository.claim(5, NOON, only)).tasks
        assert run.id == ids[0]
        await repository.mark_done(run, NOON, name(1_000))
        assert await repository.count_pools() == {}
        schedule = Schedule(
            id=name(1_000),
            work_id=work,
            trigger=Interval(1),
            created_at=NOON,
            pool=pool,
            when=key,
        )
        await repository.change_schedule(PutSchedule(schedule, NOON))
        assert await repository.count_pools() == {pool: 1}


async def test_a_lost_connection_of_the_users_own(postgresql_url: str) -> None:
    """
    A connection that is lost, of whatever kind, is a `RepositoryError` of `add_task_in`.
    """
    url = postgresql_url.replace("postgresql:", "postgresql+psycopg:")
    end = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name = 'users'"
    )
    async with open_sql_repository(postgresql_url) as repository:
        for level in "AUTOCOMMIT", "READ COMMITTED":
            engine = create_engine(
                f"{url}&application_name=users", isolation_level=cast("Any", level)
            )
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
                with repository.store.engine.connect() as other:
                    assert other.execute(end).all() == [(True,)]
                with pytest.raises(RepositoryError):
                    repository.add_task_in(connection, "note", after=0)
                connection.invalidate()
            engine.dispose()


async def test_renewals_that_fail_at_the_end_are_nobodys_error(sqlite_url: str) -> None:
    """
    While a cancelled scheduler waits for a thread, a store that fails adds no error.
    """
    works = WorkRegistry()
    go_on = threading.Event()
    running = trio.Event()

    @works.register
    def work() -> None:
        trio.from_thread.run_sync(running.set)
        go_on.wait(60)

    async with open_sql_repository(sqlite_url, lease=0.3) as repository:
        faulty = FaultyRepository(repository)
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                async with open_scheduler(works, faulty) as scheduler:
                    await scheduler.add_task("work", after=0, id="t")
                    await trio.sleep_forever()

            nursery.start_soon(run)
            await running.wait()
            fault = faulty.fail("renew", times=None)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                while not fault.happened:  # noqa: ASYNC110 (it happens in real time)
                    await trio.sleep(0.01)
            go_on.set()
        assert (await repository.get("t")).state is TaskState.DONE


async def test_each_field_comes_back_in_its_place(database_url: str) -> None:
    """
    No field of a task is taken for another that is much like it, and none is left out.
    """
    full = stored(
        "full",
        "work",
        7,
        param={"of": "param"},
        meta={"of": "meta"},
        priority=3,
        state=TaskState.FAILED,
        err="wrong",
        attempt=5,
        interruptions=2,
        at_most_once=True,
        created_at=noon(1),
        deadline=noon(9),
        cancelled_at=noon(2),
        dispatched_at=noon(4),
        done_at=noon(6),
        schedule_id="schedule",
        nominal_at=noon(3),
    )
    values = [repr(value) for value in vars(full).values()]
    assert len({*values}) == len(values)
    assert {*FIELDS} == vars(full).keys()
    async with open_sql_repository(database_url) as repository:
        await repository.add([full])
        assert await repository.get("full") == full


async def test_what_a_filter_does_not_accept_is_not_recovered(tmp_path: Path) -> None:
    """
    Of the runs that somebody has left, those are taken up that the filter is for.
    """
    async with open_sql_repository(f"sqlite:///{tmp_path / 'tasks.db'}") as repository:
        await repository.add(
            [Task(id=w, work_id=w, scheduled_at=NOON, created_at=NOON) for w in "ab"]
        )
        assert len((await repository.claim(2, noon(10))).tasks) == 2
        only = TaskFilter(work_ids=frozenset({"a"}))
        [recovered] = await repository.recover(RecoverAction.REVERT, noon(10), only)
        assert recovered.id == "a"
        assert (await repository.get("b")).state is TaskState.DISPATCHED
