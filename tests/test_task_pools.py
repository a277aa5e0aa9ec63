"""Tasks and schedules that name the pool they run in."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from databases import engine_of
from sqlalchemy.orm import Session
from support import NOON, at, noon, stored

from trio_gokugen import (
    HeapRepository,
    Interval,
    InvalidTaskError,
    PartialHooks,
    Pool,
    PoolExistsError,
    PoolNotFoundError,
    PoolsDispatcher,
    RepositoryError,
    Retry,
    Schedule,
    Scheduler,
    SchedulesRefusedError,
    Task,
    TaskParam,
    TaskQuery,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    WorkRegistry,
    current_task,
    fixed,
    open_scheduler,
)
from trio_gokugen.abc import Fetch, HookAction, OfPools, TaskFilter, TaskRepository
from trio_gokugen.sql import open_sql_repository


class Bench:
    """A scheduler with the pools ``a`` and ``b`` of one worker each, and one by default.

    The pool ``a`` is for the work of the same name.
    """

    def __init__(self) -> None:
        self.works = WorkRegistry()
        self.log: list[tuple[str, float]] = []
        self.pools = PoolsDispatcher(
            self.works, {"a": Pool(1, works=["a"]), "b": Pool(1)}, default=1
        )
        for name in "a", "other":
            self.works.register(name, self._note)

    async def _note(self, seconds: float = 0) -> None:
        self.log.append((current_task().id, trio.current_time()))
        await trio.sleep(seconds)

    @asynccontextmanager
    async def open(
        self, repository: TaskRepository | None = None
    ) -> AsyncGenerator[Scheduler]:
        clock = TrioClock(NOON, 0.0)
        async with open_scheduler(
            self.works, repository, self.pools, clock=clock, grace=0
        ) as scheduler:
            yield scheduler

    async def wait_idle(self, scheduler: Scheduler) -> list[tuple[str, float]]:
        """What has started when, once nothing is left."""
        await scheduler.drain()
        log, self.log = self.log, []
        return sorted(log, key=lambda each: each[1])


@pytest.mark.parametrize("kind", ["heap", "sql"])
async def test_a_task_runs_in_the_pool_that_it_names(
    autojump_clock: trio.testing.MockClock, database_url: str, kind: str
) -> None:
    """
    Whatever its work, and however many wait for the pool that is for its work; those that
    name none run in that.
    """
    bench = Bench()
    long = {"seconds": 50}
    tasks = [
        TaskParam(id="a0", work_id="a", scheduled_at=NOON, param=long),
        TaskParam(id="a1", work_id="a", scheduled_at=noon(1)),
        TaskParam(id="b0", work_id="a", scheduled_at=noon(1), pool="b", param=long),
        TaskParam(id="o0", work_id="other", scheduled_at=noon(2), param=long),
        TaskParam(id="o1", work_id="other", scheduled_at=noon(3), pool="a"),
        TaskParam(id="b1", work_id="other", scheduled_at=noon(4), pool="b"),
        TaskParam(id="o2", work_id="other", scheduled_at=noon(5)),
    ]
    async with (
        open_sql_repository(database_url) as stored,
        bench.open(stored if kind == "sql" else HeapRepository()) as scheduler,
    ):
        await scheduler.add_tasks(tasks)
        log = await bench.wait_idle(scheduler)
        found = await scheduler.find(TaskQuery(pools={"a", "b"}))
    # One worker each: what comes second waits for the end of what came first.
    starts = {"a0": 0, "b0": 1, "o0": 2, "a1": 50, "o1": 50, "b1": 51, "o2": 52}
    assert dict(log) == starts
    assert [(task.id, task.pool) for task in found] == [
        ("b0", "b"),
        ("o1", "a"),
        ("b1", "b"),
    ]


async def test_a_function_of_the_task_may_choose(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What is given as `mutate` chooses the pool as a task is added.
    """
    bench = Bench()

    def by_length(param: TaskParam, now: datetime) -> TaskParam:
        return attrs.evolve(param, pool="b" if param.param["seconds"] == 9 else None)

    async with bench.open() as scheduler:
        for seconds in 5, 9, 5, 9:
            task = await scheduler.add_task(
                "other", {"seconds": seconds}, after=0, mutate=by_length
            )
            assert task.pool == ("b" if seconds == 9 else None)
        log = await bench.wait_idle(scheduler)
    assert [moment for _, moment in log] == [0, 0, 5, 9]


async def test_a_pool_that_is_not_there_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A pool that the dispatcher does not have is refused wherever it is named, and nothing is
    changed; the pool for all others has no name to be chosen by.
    """
    bench = Bench()
    schedule = Schedule(
        id="s", trigger=Interval(9), work_id="a", created_at=NOON, pool="gone"
    )
    async with bench.open() as scheduler:
        task = await scheduler.add_task("a", after=99, pool="b")
        await scheduler.add_schedule("kept", Interval(99), "a", pool="a")
        with pytest.raises(PoolNotFoundError, match="no pool 'gone'"):
            await scheduler.add_task("a", after=0, pool="gone")
        with pytest.raises(PoolNotFoundError, match="no pool 'default'"):
            await scheduler.add_task("a", after=0, pool="default")
        with pytest.raises(PoolNotFoundError):
            await scheduler.add_tasks([at(0, "x", "a"), at(0, "y", "a", pool="gone")])
        with pytest.raises(PoolNotFoundError):
            await scheduler.update(task.id, pool="gone", priority=3)
        with pytest.raises(PoolNotFoundError):
            await scheduler.add_schedule("s", Interval(9), "a", pool="gone")
        with pytest.raises(SchedulesRefusedError, match="no pool 'gone'"):
            await scheduler.add_schedules([schedule])
        with pytest.raises(PoolNotFoundError):
            await scheduler.update_schedule("kept", pool="gone")
        wrong: Any
        for wrong in "", 7:
            with pytest.raises(InvalidTaskError) as caught:
                await scheduler.add_task("a", after=0, pool=wrong)
            assert caught.value.field == "pool"
        assert [each.id for each in await scheduler.find_schedules()] == ["kept"]
        left = await scheduler.find(TaskQuery(schedule_ids=None, priority=0))
        assert {(each.schedule_id, each.pool) for each in left} == {
            (None, "b"),
            ("kept", "a"),
        }


async def test_a_task_is_moved_to_another_pool(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A task that waits for a full pool starts at once where it is moved to; or where its
    work runs, if it is to name none any more.
    """
    bench = Bench()
    async with bench.open() as scheduler:
        await scheduler.add_task("other", {"seconds": 90}, after=0, pool="b")
        waiting = [
            await scheduler.add_task("other", {"seconds": 90}, after=1, pool="b")
            for _ in range(3)
        ]
        await trio.sleep(2)
        assert await scheduler.update(waiting[0].id, pool="a")
        await trio.sleep(1)
        assert await scheduler.update(waiting[1].id, pool=None)
        assert not await scheduler.update(waiting[2].id, pool="b")
        log = await bench.wait_idle(scheduler)
    assert [moment for _, moment in log] == [0, 2, 3, 90]


async def test_a_schedule_names_a_pool(autojump_clock: trio.testing.MockClock) -> None:
    """
    Its occurrences run there, one that is told to run now, too; and a change of it changes
    the next one.
    """
    bench = Bench()
    async with bench.open() as scheduler:
        every = Interval(10, anchor=NOON)
        made = await scheduler.add_schedule("s", every, "other", pool="b")
        assert made.pool == "b"
        assert await scheduler.add_schedule("s", every, "other", pool="b") == made
        now = await scheduler.trigger_schedule("s")
        assert now.pool == "b"
        await trio.sleep(15)
        [next_] = await scheduler.find(TaskQuery(states={TaskState.SCHEDULED}))
        assert (next_.pool, next_.scheduled_at) == ("b", noon(20))
        assert (await scheduler.update_schedule("s", pool="a")).pool == "a"
        assert (await scheduler.get(next_.id)).pool == "a"
        await trio.sleep(10)
        assert (await scheduler.add_schedule("s", every, "other")).pool is None
        [next_] = await scheduler.find(TaskQuery(states={TaskState.SCHEDULED}))
        assert next_.pool is None
        await scheduler.remove_schedule("s")
    assert [moment for _, moment in bench.log] == [0, 10, 20]


async def test_whoever_has_no_pools_leaves_such_tasks(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A scheduler without the pool leaves them scheduled, for one that has it: also what
    `drain` waits for is only what runs there.
    """
    url = f"sqlite:///{tmp_path / 'tasks.db'}"
    bench = Bench()
    async with open_sql_repository(url) as repository:
        async with bench.open(repository) as scheduler:
            tasks = [
                await scheduler.add_task("a", after=5, pool=pool) for pool in ("b", None)
            ]
        clock = TrioClock(NOON, 0.0)
        async with open_scheduler(bench.works, repository, clock=clock) as scheduler:
            await scheduler.drain()
            states = [(await scheduler.get(task.id)).state for task in tasks]
            with pytest.raises(PoolNotFoundError):
                await scheduler.add_task("a", after=0, pool="b")
        assert states == [TaskState.SCHEDULED, TaskState.DONE]
        async with bench.open(repository) as scheduler:
            await scheduler.drain()
            assert (await scheduler.get(tasks[0].id)).state is TaskState.DONE
    assert [moment for _, moment in bench.log] == [5, 5]


async def test_a_pool_that_is_added_takes_what_waits_for_it(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    What was added, in a transaction of the user's own, for a pool that is not there yet
    starts when it is.
    """
    bench = Bench()
    async with open_sql_repository(database_url) as repository:

        def add() -> str:
            with engine_of(database_url) as engine, Session(engine) as session:
                task = repository.add_task_in(session, "a", at=NOON, pool="new")
                session.commit()
                return task.id

        async with bench.open(repository) as scheduler:
            task_id = await trio.to_thread.run_sync(add)
            await trio.sleep(10)
            assert (await scheduler.get(task_id)).state is TaskState.SCHEDULED
            bench.pools.add("new", Pool(1))
            task = await scheduler.wait(task_id)
            assert (task.state, task.pool) == (TaskState.DONE, "new")


async def test_the_pool_stays(autojump_clock: trio.testing.MockClock) -> None:
    """
    Whatever happens to a task, it is in its pool: tried again, interrupted, replaced by
    its key, dumped and loaded.
    """
    bench = Bench()
    tries: list[str | None] = []

    @bench.works.register(retry=Retry(2, wait=fixed(1)))
    async def fails() -> None:
        tries.append(current_task().pool)
        raise RuntimeError("as it is meant to")

    repository = HeapRepository()
    async with bench.open(repository) as scheduler:
        failed = await scheduler.add_task("fails", after=0, pool="b")
        assert (await scheduler.wait(failed.id)).pool == "b"
        assert tries == ["b", "b"]
        await scheduler.add_task("a", after=50, key="k", pool="b")
        again = await scheduler.add_task(
            "a", {"seconds": 70}, after=0, key="k", if_exists="replace", pool="a"
        )
        assert again.pool == "a"
        await trio.sleep(1)
    reverted = await repository.get(again.id)
    assert (reverted.state, reverted.pool) == (TaskState.SCHEDULED, "a")


async def test_a_dumped_task_is_loaded_with_its_pool(tmp_path: Path) -> None:
    """
    A dump has the pools of tasks and schedules.
    """
    bench, repository, other = Bench(), HeapRepository(), HeapRepository()
    async with bench.open(repository) as scheduler:
        await scheduler.add_task("a", after=50, pool="b", id="t")
        await scheduler.add_schedule("s", Interval(60), "a", pool="b")
        await repository.dump(tmp_path / "dump")
    await other.load(tmp_path / "dump")
    assert (await other.get("t")).pool == "b"
    assert (await other.get_schedule("s")).pool == "b"


async def test_pools_in_a_pool_are_chosen_by_their_names(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Of a pool whose workers are pools, tasks choose one of these, also if it is that for
    all other works.
    """
    bench = Bench()
    inner = PoolsDispatcher(bench.works, {"x": Pool(1), "y": Pool(1, works=["a"])})
    last = PoolsDispatcher(bench.works, {"z": Pool(1)}, default=1)
    bench.pools = PoolsDispatcher(
        bench.works,
        {"in": Pool(inner, works=["a"]), "beside": Pool(1)},
        default=Pool(last),
    )
    assert bench.pools.statistics().pools == {"x", "y", "z", "beside"}
    async with bench.open() as scheduler:
        with pytest.raises(PoolNotFoundError):
            await scheduler.add_task("a", after=0, pool="in")
        for pool in "x", "y", "z", "beside", None:
            for _ in range(2):
                await scheduler.add_task("other", {"seconds": 9}, after=0, pool=pool)
        log = await bench.wait_idle(scheduler)
    assert [moment for _, moment in log] == [0] * 5 + [9] * 5


class Wrapped:
    """What stands in front of a dispatcher, and is none of a kind that is known."""

    def __init__(self, dispatcher: PoolsDispatcher) -> None:
        self._dispatcher = dispatcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dispatcher, name)


async def test_pools_behind_something_are_seen(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    The names of pools are what a dispatcher tells of itself, of whatever class it is.
    """
    bench = Bench()
    inner: Any = Wrapped(PoolsDispatcher(bench.works, {"x": Pool(1)}))
    bench.pools = PoolsDispatcher(bench.works, {"in": Pool(inner, works=["a"])})
    async with bench.open() as scheduler:
        with pytest.raises(PoolNotFoundError):
            await scheduler.add_task("a", after=0, pool="in")
        task = await scheduler.add_task("other", after=0, pool="x")
        assert (await scheduler.wait(task.id)).state is TaskState.DONE


def test_a_name_is_of_one_pool() -> None:
    """
    Neither may a pool have the name of one that is in another.
    """
    works = WorkRegistry()
    inner = PoolsDispatcher(works, {"x": Pool(1)})
    dispatcher = PoolsDispatcher(works, {"in": Pool(inner)})
    with pytest.raises(PoolExistsError, match="'x'"):
        dispatcher.add("x", Pool(1))
    with pytest.raises(PoolExistsError, match="'x'"):
        dispatcher.add("y", Pool(PoolsDispatcher(works, {"x": Pool(1)})))
    assert dispatcher.statistics().pools == {"x"}


async def test_drain_leaves_what_runs_in_pools_of_others(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    A scheduler without pools does not wait for what another runs in one that is named.
    """
    bench, other = Bench(), Bench()
    async with (
        open_sql_repository(database_url) as mine,
        open_sql_repository(database_url) as theirs,
        bench.open(theirs) as scheduler,
        open_scheduler(other.works, mine) as without,
    ):
        await scheduler.add_task("a", {"seconds": 100}, after=0, pool="b")
        await trio.sleep(1)
        with trio.fail_after(50):
            await without.drain()
        assert scheduler.statistics().running == 1


LEFT = (
    "{} tasks are left scheduled, as the dispatcher has no pool {!r}: they wait for a"
    " scheduler that has it"
)


@pytest.mark.parametrize("has_pools", [True, False])
async def test_pools_unknown_here_are_left_to_others(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    *,
    has_pools: bool,
) -> None:
    """
    A stored task that names a pool which the dispatcher does not have stays scheduled, is
    counted, is logged once for its pool, and keeps neither `drain` nor others waiting.

    To a dispatcher without pools all that are named are unknown.
    """
    bench = Bench()
    repository = HeapRepository()
    await repository.add([stored(f"x{n}", "a", -n, pool="gone") for n in range(3)])
    await repository.add([stored("y", "unheard of", pool="gone")])
    await repository.add([stored("z", "a", pool="b"), stored("last", "other", 120)])
    pools = bench.pools if has_pools else None
    clock = TrioClock(NOON, 0.0)
    with caplog.at_level(logging.WARNING, "trio_gokugen"):
        async with open_scheduler(bench.works, repository, pools, clock=clock) as scheduler:
            await scheduler.drain()
            assert trio.current_time() == 120
            await scheduler.add_task("other", after=60)
            await scheduler.drain()
            unknown = scheduler.statistics().unknown_pools
            pending = await scheduler.find(TaskQuery(states={TaskState.SCHEDULED}))
    left = {"gone": 4} if has_pools else {"gone": 4, "b": 1}
    assert unknown == left
    ids = {task.id for task in pending}
    assert ids == {"x0", "x1", "x2", "y"} | (set() if has_pools else {"z"})
    assert sorted(record.getMessage() for record in caplog.records) == sorted(
        [
            "1 tasks are left scheduled, as no work is registered as 'unheard of'",
            *(LEFT.format(count, name) for name, count in left.items()),
        ]
    )


async def test_what_is_left_to_others_runs_there(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    database_url: str,
) -> None:
    """
    Of schedulers that share a database, the one without the pool says that it leaves its
    tasks, and the other runs them.
    """
    bench, other = Bench(), Bench()
    async with (
        open_sql_repository(database_url) as mine,
        open_sql_repository(database_url) as theirs,
    ):
        await mine.add([stored("a", "a", 10, pool="b")])
        async with open_scheduler(other.works, mine, clock=TrioClock(NOON, 0.0)) as without:
            await trio.sleep(1)
            assert without.statistics().unknown_pools == {"b": 1}
            async with bench.open(theirs) as scheduler:
                await scheduler.wait("a")
                assert scheduler.statistics().unknown_pools == {}
    assert bench.log == [("a", 10)]
    told = [record.getMessage() for record in caplog.records if is_warning(record)]
    assert told == [LEFT.format(1, "b")]


async def test_who_sleeps_looks_for_what_others_have_added(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    Where others may add tasks, those of unknown works and pools are found though nothing
    falls due here.
    """
    bench = Bench()
    async with (
        open_sql_repository(database_url, poll=5) as mine,
        open_sql_repository(database_url) as theirs,
        open_scheduler(bench.works, mine) as scheduler,
    ):
        await trio.sleep(1)
        await theirs.add([stored("p", "a", pool="gone"), stored("w", "unheard of")])
        assert scheduler.statistics().unknown_pools == {}
        await trio.sleep(40)
        assert scheduler.statistics().unknown_pools == {"gone": 1}
        assert scheduler.statistics().unknown_works == {"unheard of": 1}
        await theirs.cancel("p", NOON)
        await trio.sleep(40)
        assert scheduler.statistics().unknown_pools == {}


def is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


async def test_a_pool_that_is_added_is_known(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    At the next look, a pool that was added since is none of those that are not there.
    """
    bench = Bench()
    repository = HeapRepository()
    await repository.add([stored("a", "a", 1_000, pool="new")])
    await repository.add([stored(f"{n}", "a", 40 * n) for n in range(3)])
    async with bench.open(repository) as scheduler:
        await trio.sleep(1)
        bench.pools.add("new", Pool(1))
        await trio.sleep(20)
        assert scheduler.statistics().unknown_pools == {"new": 1}
        await trio.sleep(40)
        assert scheduler.statistics().unknown_pools == {}
    assert len([record for record in caplog.records if is_warning(record)]) == 1


async def test_a_look_that_fails_is_repeated(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Works and pools are looked for together, at most every 30 seconds; if one of both cannot
    be counted, a hook decides, and both are looked for again at once.
    """
    works = WorkRegistry()
    works.register("work", trio.sleep)
    looks: list[tuple[str, float]] = []

    class Counted(HeapRepository):
        async def count_pending(self) -> Mapping[str, int]:
            looks.append(("works", trio.current_time()))
            return await super().count_pending()

        async def count_pools(self) -> Mapping[str, int]:
            looks.append(("pools", trio.current_time()))
            if len(looks) == 2:
                raise RepositoryError("down")
            return await super().count_pools()

    async def on_get_next_error(_: Exception, __: HookAction) -> HookAction:
        assert scheduler.statistics().unknown_works == {}
        return HookAction.RETRY

    repository = Counted()
    await repository.add([stored("x", "unheard of", pool="gone")])
    hooks = PartialHooks(on_get_next_error=on_get_next_error)
    async with open_scheduler(works, repository, hooks=hooks) as scheduler:
        for _ in range(5):
            await scheduler.add_task("work", {"seconds": 0}, after=0)
            await trio.sleep(10)
        assert scheduler.statistics().unknown_works == {"unheard of": 1}
        assert scheduler.statistics().unknown_pools == {"gone": 1}
    both = "works", "pools"
    assert looks == [(each, at) for at in (0, 0, 30) for each in both]


async def test_a_group_of_somebody_else_is_told_as_it_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Only errors of several fetches are taken apart for the hook; and an error that is raised
    again and again does not grow.
    """

    class Failing(WorkerPoolDispatcher):
        def __init__(self, works: WorkRegistry, error: Exception) -> None:
            super().__init__(works)
            self.error = error

        async def dispatch(self, fetch: Fetch) -> None:
            await trio.sleep(1)
            raise self.error

    group = ExceptionGroup("mine", [OSError("a"), KeyError("b")])
    error = OSError("c")
    told: list[Exception] = []

    async def on_dispatch_error(error: Exception, _: HookAction) -> HookAction:
        told.append(error)
        return HookAction.RETRY if len(told) < 9 else HookAction.RAISE

    works = WorkRegistry()
    for dispatcher in (
        Failing(works, group),
        PoolsDispatcher(works, {"p": Pool(Failing(works, error))}, default=Pool(1)),
    ):
        told.clear()
        hooks = PartialHooks(on_dispatch_error=on_dispatch_error)
        with pytest.raises(ExceptionGroup):
            async with open_scheduler(works, dispatcher=dispatcher, hooks=hooks):
                await trio.sleep(1_000)
        assert len(told) == 9
        assert all(each is told[0] for each in told)
        assert told[0] in (group, error)
    assert not hasattr(error, "__notes__")


@pytest.mark.parametrize("has_pools", [True, False])
async def test_works_that_are_registered_later_are_noticed(
    autojump_clock: trio.testing.MockClock, database_url: str, *, has_pools: bool
) -> None:
    """
    A task of a work that was registered while the scheduler slept, added by another
    program, starts soon after: nobody tells of either.
    """
    bench = Bench()
    pools = bench.pools if has_pools else None
    async with (
        open_sql_repository(database_url, poll=5) as mine,
        open_sql_repository(database_url) as theirs,
        open_scheduler(bench.works, mine, pools) as scheduler,
    ):
        await trio.sleep(1)
        bench.works.register("late", bench._note)
        now = datetime.now(UTC)
        task = Task(id="t", work_id="late", scheduled_at=now, created_at=now)
        await theirs.add([task])
        await trio.sleep(60)
        assert (await scheduler.get("t")).state is TaskState.DONE


async def test_a_pool_of_nameless_pools_cannot_be_named(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A pool with pools in it that have no names is none that a task can name; once one of a
    name is added, that can be named, and what is added for it runs.
    """
    works = WorkRegistry()
    works.register("work", trio.sleep)
    inner = PoolsDispatcher(works, default=3)
    dispatcher = PoolsDispatcher(works, {"n": Pool(inner)})
    assert dispatcher.statistics().pools == frozenset()
    async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
        for name in "n", "late":
            with pytest.raises(PoolNotFoundError):
                await scheduler.add_task("work", {"seconds": 0}, after=0, pool=name)
        await trio.sleep(1)
        inner.add("late", Pool(1))
        task = await scheduler.add_task("work", {"seconds": 0}, after=0, pool="late")
        await scheduler.drain()
        assert (await scheduler.get(task.id)).state is TaskState.DONE


@pytest.mark.parametrize("depth", [1, 2])
def test_a_name_is_that_of_one_pool(depth: int) -> None:
    """
    A name that some pool has already, around it or beside it, is refused to one that is
    added inside, and the other way round; what was refused may be used elsewhere.
    """
    works = WorkRegistry()
    innermost = inner = PoolsDispatcher(works)
    for _ in range(depth - 1):
        inner = PoolsDispatcher(works, {"between": Pool(inner)})
    other = PoolsDispatcher(works, {"other": Pool(1)})
    outer = PoolsDispatcher(
        works, {"n": Pool(inner), "o": Pool(other), "mail": Pool(1, paused=True)}
    )
    for name in "mail", "other", "n", "o":
        with pytest.raises(PoolExistsError, match=f"there is a pool '{name}' already"):
            innermost.add(name, Pool(1))
    innermost.add("mine", Pool(1))
    with pytest.raises(PoolExistsError, match="there is a pool 'mine' already"):
        outer.add("mine", Pool(1))
    refused = PoolsDispatcher(works, {"mail": Pool(1)})
    with pytest.raises(PoolExistsError, match="there is a pool 'mail' already"):
        outer.add("p", Pool(refused))
    refused.add("mine", Pool(1))
    for name, inside in ("p", "n"), ("p", "p"):
        pool = Pool(PoolsDispatcher(works, {inside: Pool(1)}))
        with pytest.raises(PoolExistsError, match=f"there is a pool '{inside}' already"):
            outer.add(name, pool)
    assert outer.statistics().pools == {"mine", "mail", "other"}


async def test_many_tasks_cost_no_more_for_many_sleepers(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Of many tasks that appear at once each sleeper is asked about one of each pool and work,
    the first: the sleeper for whom it is the next wakes on time.
    """
    asked = 0
    accepts = TaskFilter.accepts

    def counted(self: TaskFilter, task: Task) -> bool:
        nonlocal asked
        asked += 1
        return accepts(self, task)

    repository = HeapRepository()
    repository.start_timer(TrioClock(NOON, 0.0))
    names = [f"p{n}" for n in range(10)]
    woken: list[tuple[str, float]] = []

    async def sleep(name: str) -> None:
        only = TaskFilter(pools=OfPools(frozenset({name}), frozenset()))
        task = await repository.wait_until_due(only)
        woken.append((task.id, trio.current_time()))

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(sleep, name)
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr(TaskFilter, "accepts", counted)
        await repository.add(
            [
                stored(f"{name}-{n}", "greet", seconds=99 - n, pool=name)
                for name in names
                for n in range(90)
            ]
        )
        assert asked <= len(names) ** 2
        monkeypatch.undo()
    assert sorted(woken) == sorted((f"{name}-89", 10.0) for name in names)
