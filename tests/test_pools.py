"""Pools: each on its own, within its rate, and changed while it runs."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from support import NOON, TroubledRepository, at, open_bench, stored

from trio_gokugen import (
    JSON,
    HeapRepository,
    Interval,
    InvalidTaskError,
    KeyLimit,
    PartialHooks,
    Pool,
    PoolExistsError,
    PoolNotFoundError,
    PoolsDispatcher,
    Rate,
    RepositoryError,
    Retry,
    Scheduler,
    SchedulerAlreadyRunningError,
    Snooze,
    Task,
    TaskParam,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    WorkRegistry,
    _dispatch_loop,
    current_scheduler,
    current_task,
    open_scheduler,
)
from trio_gokugen.abc import (
    ANY_TASK,
    ClaimTasks,
    Fetch,
    Free,
    HookAction,
    KeyRoom,
    Operation,
    PoolErrors,
    Start,
    TaskFilter,
    TaskRepository,
)
from trio_gokugen.sql import open_sql_repository
from trio_gokugen.testing import check_dispatcher

pytestmark = pytest.mark.tables

mood: contextvars.ContextVar[str] = contextvars.ContextVar("mood", default="calm")


class Steps(trio.abc.Instrument):
    """Counts what Trio does."""

    count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += 1


async def steps_in(seconds: float) -> int:
    """How many steps Trio makes while nothing happens."""
    await trio.testing.wait_all_tasks_blocked()
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    await trio.sleep(seconds)
    trio.lowlevel.remove_instrument(steps)
    return steps.count


async def test_it_is_a_dispatcher(autojump_clock: trio.testing.MockClock) -> None:
    """
    It keeps a dispatcher's promises with workers of its own.
    """
    await check_dispatcher(lambda works, size: PoolsDispatcher(works, default=size))


async def test_it_is_one_by_another(autojump_clock: trio.testing.MockClock) -> None:
    """
    So it does with a dispatcher in place of workers.
    """
    await check_dispatcher(
        lambda works, size: PoolsDispatcher(
            works, default=Pool(WorkerPoolDispatcher(works, size))
        )
    )


def note_works(names: Sequence[str], seconds: float = 0) -> tuple[WorkRegistry, list[Any]]:
    """Works that note what has started when, and take a while."""
    works = WorkRegistry()
    log: list[tuple[str, float]] = []

    async def note() -> None:
        log.append((current_task().id, trio.current_time()))
        await trio.sleep(seconds)

    for name in names:
        works.register(name, note)
    return works, log


async def test_a_full_pool_keeps_nobody_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    However many tasks wait for a full pool, another starts on time; and the works that no
    pool names have one of their own.
    """
    works, log = note_works(["slow", "quick", "other"], seconds=100)
    dispatcher = PoolsDispatcher(
        works,
        {"a": Pool(2, works=["slow"]), "b": Pool(1, works=["quick"])},
        default=3,
    )
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
        await scheduler.add_tasks(
            [at(0, f"s{n}", "slow") for n in range(5)]
            + [at(5, "q0", "quick"), at(6, "q1", "quick"), at(7, "o0", "other")]
        )
        await trio.sleep(50)
        assert scheduler.statistics().max_workers == 6
        assert scheduler.statistics().running == 4
        assert {name: each.running for name, each in dispatcher.pools.items()} == {
            "default": 1,
            "a": 2,
            "b": 1,
        }
        await scheduler.drain()
    assert sorted(log, key=lambda each: (each[1], each[0])) == [
        ("s0", 0.0),
        ("s1", 0.0),
        ("q0", 5.0),
        ("o0", 7.0),
        ("s2", 100.0),
        ("s3", 100.0),
        ("q1", 105.0),
        ("s4", 200.0),
    ]


PoolTask: TypeAlias = tuple[str, int, int, int]
"""Its work, when it is due, how many seconds it takes, and its priority."""

tasks_of_pools = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "x", "y"]),
        st.integers(0, 20),
        st.integers(0, 8),
        st.integers(0, 2),
    ),
    max_size=40,
)
some_rate = st.none() | st.builds(
    Rate, st.integers(1, 3), st.sampled_from([1, 2.5, 7, timedelta(seconds=4)])
)


BELONGS = {"a": 0, "b": 1, "c": 1, "x": 2, "y": 2}
"""To which of three pools works belong: two of them to none in particular."""


def starts_in(
    mine: Sequence[tuple[int, PoolTask]], make: Any, url: str | None = None
) -> dict[str, float]:
    """When each task starts, by its number; in a database, if there is one."""
    works = WorkRegistry()
    starts: dict[str, float] = {}

    async def work(seconds: float) -> None:
        starts[current_task().id] = trio.current_time()
        await trio.sleep(seconds)

    for name in BELONGS:
        works.register(name, work)

    async def main() -> None:
        async with AsyncExitStack() as stack:
            repository: TaskRepository = HeapRepository()
            if url is not None:
                opened = open_sql_repository(url)
                repository = await stack.enter_async_context(opened)
            scheduler = await stack.enter_async_context(
                open_scheduler(
                    works,
                    repository,
                    dispatcher=make(works),
                    clock=TrioClock(NOON, 0.0),
                )
            )
            await scheduler.add_tasks(
                [
                    at(due, str(n), name, param={"seconds": takes}, priority=priority)
                    for n, (name, due, takes, priority) in mine
                ]
            )
            await scheduler.drain()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return starts


def check_as_if_alone(
    tasks: Sequence[PoolTask],
    sizes: Sequence[int],
    rates: Sequence[Rate | None],
    url: str | None = None,
) -> None:
    together = starts_in(
        [*enumerate(tasks)],
        lambda works: PoolsDispatcher(
            works,
            {
                "one": Pool(sizes[0], works={"a"}, rate=rates[0]),
                "two": Pool(sizes[1], works={"b", "c"}, rate=rates[1]),
            },
            default=Pool(sizes[2], rate=rates[2]),
        ),
        url,
    )
    alone: dict[str, float] = {}
    for index in range(3):
        mine = [each for each in enumerate(tasks) if BELONGS[each[1][0]] == index]
        pool = Pool(sizes[index], rate=rates[index])
        alone |= starts_in(
            mine, lambda works, pool=pool: PoolsDispatcher(works, default=pool)
        )
    assert together == alone


@pytest.mark.uncovered
@given(
    tasks=tasks_of_pools,
    sizes=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    rates=st.lists(some_rate, min_size=3, max_size=3),
)
def test_each_pool_is_as_if_it_were_alone(
    tasks: list[PoolTask], sizes: list[int], rates: list[Rate | None]
) -> None:
    """
    Each task starts at the very moment at which a pool of workers that is alone starts it:
    no pool idles while it has due tasks, and none takes another's.
    """
    check_as_if_alone(tasks, sizes, rates)


@pytest.mark.parametrize("rates", [[None] * 3, [None, Rate(1, 2.5), Rate(2, 7)]])
def test_each_pool_is_as_if_it_were_alone_in_a_database(
    database_url: str, rates: list[Rate | None]
) -> None:
    """
    The same with the tasks in a database: one pool is flooded, others have a few.
    """
    few = [(name, 3 * n, n % 4, n % 2) for n, name in enumerate("bxcyb")]
    flood = [("a", n % 5, 1 + n % 3, n % 3) for n in range(25)]
    check_as_if_alone([*flood, *few], [2, 1, 2], rates, database_url)


@pytest.mark.uncovered
@given(
    due=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    limit=st.integers(1, 4),
    per=st.sampled_from([1.0, 3.0, 7.5]),
)
def test_a_rate_is_kept_exactly(due: list[int], limit: int, per: float) -> None:
    """
    A task starts as it is due, or at the very moment at which the last but so many has
    started a period ago.
    """
    works, log = note_works(["note"])

    async def main() -> None:
        dispatcher = PoolsDispatcher(works, default=Pool(50, rate=Rate(limit, per)))
        clock = TrioClock(NOON, 0.0)
        async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
            await scheduler.add_tasks([at(when, f"{n}") for n, when in enumerate(due)])
            await scheduler.drain()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    expected: list[float] = []
    for number, when in enumerate(sorted(due)):
        before = expected[number - limit] + per if number >= limit else 0.0
        expected.append(max(float(when), before))
    assert [when for _, when in log] == expected


@attrs.frozen
class Wanted:
    """A task of a made-up history: when it is due, and by what it is counted."""

    due: int
    priority: int
    customer: str | None
    region: int


def expected_starts(
    tasks: Sequence[Wanted], takes: Sequence[float], workers: int, limits: tuple[int, int]
) -> dict[str, float]:
    """When each starts: the first of those that are due for whose values there is room."""
    waiting = sorted(range(len(tasks)), key=lambda n: (tasks[n].due, -tasks[n].priority, n))
    running: dict[int, float] = {}
    starts: dict[str, float] = {}
    now = 0.0
    while waiting or running:
        running = {n: end for n, end in running.items() if end > now}
        for n in [*waiting]:
            mine = [tasks[m] for m in running]
            customers = [m.customer for m in mine if m.customer is not None]
            if (
                tasks[n].due <= now
                and len(running) < workers
                and customers.count(tasks[n].customer or "") < limits[0]
                and [m.region for m in mine].count(tasks[n].region) < limits[1]
            ):
                waiting.remove(n)
                running[n] = now + takes[n]
                starts[str(n)] = now
        later = [*running.values(), *(float(tasks[n].due) for n in waiting)]
        now = min((each for each in later if each > now), default=now)
    return starts


some_tasks = st.lists(
    st.builds(
        Wanted,
        due=st.integers(0, 5),
        priority=st.integers(0, 1),
        customer=st.sampled_from(["a", "b", "ä", None]),
        region=st.integers(0, 2),
    ),
    max_size=30,
)


def starts_within_limits(
    tasks: Sequence[Wanted], workers: int, limits: tuple[int, int], url: str | None
) -> None:
    # No two end at the same time, nor as one is due.
    takes = [1 + 2.0 ** -(n + 5) for n in range(len(tasks))]
    works = WorkRegistry()
    starts: dict[str, float] = {}

    @works.register
    async def work(takes: float, customer: str | None = None) -> None:
        starts[current_task().id] = trio.current_time()
        await trio.sleep(takes)

    params: list[TaskParam] = []
    for n, task in enumerate(tasks):
        param: dict[str, JSON] = {"takes": takes[n]}
        if task.customer is not None:
            param["customer"] = task.customer
        fields: dict[str, Any] = {"priority": task.priority, "meta": {"r": task.region}}
        params.append(at(task.due, str(n), "work", param=param, **fields))

    async def main() -> None:
        by_value = KeyLimit(limits[0], param="customer"), KeyLimit(limits[1], meta="r")
        pool = Pool(workers, limits=by_value)
        async with AsyncExitStack() as stack:
            repository: TaskRepository = HeapRepository()
            if url is not None:
                repository = await stack.enter_async_context(open_sql_repository(url))
            scheduler = await stack.enter_async_context(
                open_scheduler(
                    works,
                    repository,
                    PoolsDispatcher(works, default=pool),
                    clock=TrioClock(NOON, 0.0),
                )
            )
            await scheduler.add_tasks(params)
            await scheduler.drain()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert starts == expected_starts(tasks, takes, workers, limits)


some_limits = st.tuples(st.integers(1, 3), st.integers(1, 3))


@pytest.mark.uncovered
@given(tasks=some_tasks, workers=st.integers(1, 5), limits=some_limits)
def test_limits_by_value_are_kept(
    tasks: list[Wanted], workers: int, limits: tuple[int, int]
) -> None:
    """
    Each task starts at the very moment at which there is a worker, and room for it by each
    of its values; and none before.
    """
    starts_within_limits(tasks, workers, limits, None)


@settings(max_examples=10)
@given(tasks=some_tasks, workers=st.integers(1, 5), limits=some_limits)
def test_limits_by_value_are_kept_in_a_database(
    tasks: list[Wanted], workers: int, limits: tuple[int, int]
) -> None:
    """
    The same with the tasks in a SQLite file.
    """
    with TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/tasks.db"
        starts_within_limits(tasks, workers, limits, url)


async def test_a_rate_counts_only_what_is_within_the_limits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What has to wait for its value takes nothing of the rate from others; and what has room
    waits for the rate.
    """
    works, log = note_works(["work"], seconds=25)
    pool = Pool(9, rate=Rate(2, per=10), limits=[KeyLimit(1, meta="of")])
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works, dispatcher=PoolsDispatcher(works, default=pool), clock=clock
    ) as scheduler:
        await scheduler.add_tasks(
            [at(0, f"{of}{n}", "work", meta={"of": of}) for of in "abc" for n in range(2)]
        )
        await scheduler.drain()
    assert sorted(log, key=lambda each: (each[1], each[0])) == [
        ("a0", 0.0),
        ("b0", 0.0),
        ("c0", 10.0),
        ("a1", 25.0),
        ("b1", 25.0),
        ("c1", 35.0),
    ]


async def test_each_pool_counts_for_itself(autojump_clock: trio.testing.MockClock) -> None:
    """
    Of the same value, one runs in each of two pools at a time.
    """
    works, log = note_works(["mine", "other"], seconds=10)
    by_owner = [KeyLimit(1, meta="of")]
    dispatcher = PoolsDispatcher(
        works,
        {"p": Pool(5, works=["mine"], limits=by_owner)},
        default=Pool(5, limits=by_owner),
    )
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
        await scheduler.add_tasks(
            [
                at(0, f"{work_id}{n}", work_id, meta={"of": "me"})
                for work_id in ("mine", "other")
                for n in range(2)
            ]
        )
        await scheduler.drain()
    assert sorted(log) == [("mine0", 0), ("mine1", 10), ("other0", 0), ("other1", 10)]


@pytest.mark.parametrize("how", ["interrupted", "failed", "retried", "snoozed", "expired"])
async def test_however_a_run_ends_its_value_is_free(
    autojump_clock: trio.testing.MockClock, how: str
) -> None:
    """
    The next one of the same value starts when the one before has ended, whatever has
    become of that.
    """
    works = WorkRegistry()
    log: list[tuple[str, float]] = []

    @works.register(timeout=5 if how == "expired" else None)
    async def work() -> None:
        task = current_task()
        log.append((task.id, trio.current_time()))
        await trio.sleep(5 if task.id == "a" and how != "expired" else 9)
        if task.id != "a" or task.attempt > 1:
            return
        if how == "failed":
            raise OSError("as it is meant to")
        if how == "retried":
            raise Retry.after(100)
        if how == "snoozed":
            raise Snooze(100)
        await trio.sleep(100)

    pool = Pool(9, limits=[KeyLimit(1, meta="of")])
    clock = TrioClock(NOON, 0.0)
    dispatcher = PoolsDispatcher(works, default=pool)
    async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
        await scheduler.add_tasks([at(0, name, "work", meta={"of": "me"}) for name in "ab"])
        await trio.sleep(5)
        if how == "interrupted":
            await scheduler.interrupt("a")
        await scheduler.drain()
    assert log[:2] == [("a", 0), ("b", 5)]
    # In the next scheduler, nothing is left of what has run in this one.
    log.clear()
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
        task = await scheduler.add_task("work", after=0, meta={"of": "me"}, id="c")
        await trio.sleep(1)
        assert (await scheduler.get(task.id)).state is TaskState.DISPATCHED


async def test_what_a_stop_puts_back_is_not_counted_on(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    Runs that a shutdown has put back start again with the next scheduler: no place is
    taken up by what ran before.
    """
    works, log = note_works(["work"], seconds=100)
    pool = Pool(9, limits=[KeyLimit(1, meta="of")])
    dispatcher = PoolsDispatcher(works, default=pool)
    async with open_sql_repository(f"sqlite:///{tmp_path / 'tasks.db'}") as repository:
        for seconds in 1, 150:
            clock = TrioClock(NOON, 0.0)
            async with open_scheduler(
                works, repository, dispatcher, clock=clock, grace=0
            ) as scheduler:
                if not log:
                    await scheduler.add_tasks(
                        [at(0, name, "work", meta={"of": "me"}) for name in "ab"]
                    )
                await trio.sleep(seconds)
    assert log == [("a", 0), ("a", 1), ("b", 101)]


async def test_occurrences_keep_to_the_limits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Occurrences of schedules are counted by their values, beside other tasks.
    """
    works, log = note_works(["work"], seconds=10)
    dispatcher = PoolsDispatcher(works, default=Pool(9, limits=[KeyLimit(1, meta="of")]))
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
        for name in "st":
            await scheduler.add_schedule(
                name, Interval(100, anchor=NOON), "work", meta={"of": "me"}, overlap="allow"
            )
        await scheduler.add_task("work", at=NOON, meta={"of": "you"})
        await trio.sleep(299)
    assert [when for _, when in log] == [0, 100, 110, 200, 210]


async def test_what_did_not_start_counts_for_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A run that its dispatcher refuses takes no room, and counts for no rate.
    """
    works, log = note_works(["mine"])

    class Refusing(WorkerPoolDispatcher):
        refused = 0

        async def dispatch(self, fetch: Fetch) -> None:
            async def fetch_some(
                free: Free, start: Start, only: TaskFilter = ANY_TASK
            ) -> int:
                def refuse(run: Task) -> None:
                    if self.refused < 3:
                        self.refused += 1
                        raise OSError("not today")
                    start(run)

                return await fetch(free, refuse, only)

            await super().dispatch(fetch_some)

    limits = [KeyLimit(1, meta="who")]
    pool = Pool(Refusing(works, 5), limits=limits, rate=Rate(1, per=1000))
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works, dispatcher=PoolsDispatcher(works, default=pool), clock=clock
    ) as scheduler:
        await scheduler.add_tasks(
            [at(n, str(n), "mine", meta={"who": "me"}) for n in range(4)]
        )
        await scheduler.drain()
    assert log == [("3", 3.0)]


async def test_a_pool_is_paused_and_resumed(autojump_clock: trio.testing.MockClock) -> None:
    """
    Nothing starts in a paused pool, and what runs there goes on; what fell due meanwhile
    starts when it is resumed. Both can be said twice.
    """
    works, log = note_works(["mine", "other"], seconds=10)
    dispatcher = PoolsDispatcher(works, {"p": Pool(5, works=["mine"], paused=True)})
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
        await scheduler.add_tasks(
            [at(n, f"m{n}", "mine") for n in (1, 30)] + [at(2, "o", "other")]
        )
        await trio.sleep(5)
        assert log == [("o", 2.0)]
        assert dispatcher.pools["p"].paused
        assert dispatcher.resume("p")
        assert not dispatcher.resume("p")
        await trio.sleep(20)
        assert log[1:] == [("m1", 5.0)]
        assert dispatcher.pause("p")
        assert not dispatcher.pause("p")
        await trio.sleep(75)
        assert log[2:] == []
        dispatcher.resume("p")
        await scheduler.drain()
    assert log[2:] == [("m30", 100.0)]


async def test_the_only_pool_can_be_paused(autojump_clock: trio.testing.MockClock) -> None:
    """
    So it is for the default pool, which is the only one.
    """
    works, log = note_works(["mine"])
    dispatcher = PoolsDispatcher(works)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
        await scheduler.add_task("mine", after=5)
        dispatcher.pause("default")
        await trio.sleep(10)
        dispatcher.resume("default")
        await scheduler.drain()
    assert [when for _, when in log] == [10.0]


async def test_a_pool_is_resized(autojump_clock: trio.testing.MockClock) -> None:
    """
    A pool gets more workers, which start at once what waits, or fewer, as runs end.
    """
    works, log = note_works(["mine"], seconds=10)
    dispatcher = PoolsDispatcher(works, {"p": Pool(1, works=["mine"])})
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
        await scheduler.add_tasks([at(0, f"{n}", "mine") for n in range(7)])
        await trio.sleep(5)
        dispatcher.resize("p", 3)
        await trio.sleep(6)
        dispatcher.resize("p", 1)
        assert dispatcher.pools["p"].max_workers == 1
        await scheduler.drain()
    assert [when for _, when in log] == [0.0, 5.0, 5.0, 10.0, 20.0, 30.0, 40.0]


async def test_pools_are_added_while_it_runs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A pool that is added takes its works from the default pool at once, also if that was
    the only one; works that are registered later find their pool.
    """
    works, log = note_works(["slow", "mine"], seconds=10)
    dispatcher = PoolsDispatcher(works, default=1)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
        await scheduler.add_tasks(
            [at(0, f"s{n}", "slow") for n in range(2)]
            + [at(0, f"m{n}", "mine", priority=-1) for n in range(2)]
        )
        await trio.sleep(3)
        dispatcher.add("p", Pool(1, works=["mine", "later"]))
        await trio.sleep(1)
        dispatcher.add("q", Pool(1, works=["latest"]))
        works.register("later", works.get("mine").function)
        works.register("latest", works.get("mine").function)
        works.register("others", works.get("mine").function)
        await scheduler.add_tasks(
            [at(4, name, name) for name in ("later", "latest", "others")]
        )
        await scheduler.drain()
    assert sorted(log, key=lambda each: (each[1], each[0])) == [
        ("s0", 0.0),
        ("m0", 3.0),
        ("latest", 4.0),
        ("s1", 10.0),
        ("m1", 13.0),
        ("others", 20.0),
        ("later", 23.0),
    ]


async def test_the_default_pool_leaves_works_to_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    From the moment on that a pool is added for a work, no other runs it.
    """
    works, log = note_works(["mine"], seconds=10)
    dispatcher = PoolsDispatcher(works, {"q": Pool(1, works=["other"])}, default=9)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
        await trio.sleep(1)
        dispatcher.add("p", Pool(1, works=["mine"]))
        await scheduler.add_tasks([at(2, f"{n}", "mine") for n in range(3)])
        await scheduler.drain()
    assert [when for _, when in log] == [2.0, 12.0, 22.0]


@pytest.mark.parametrize("why", ["full", "paused", "rate", "limits", "idle"])
async def test_who_waits_does_nothing(
    autojump_clock: trio.testing.MockClock, why: str
) -> None:
    """
    A pool that is full, paused, bound by its rate or its limits, or has nothing to do makes
    no step, whatever is due for it.
    """
    seconds = 1e6 if why in {"full", "limits"} else 0
    works, _ = note_works(["mine", "other"], seconds)
    pool = Pool(
        1 if why == "full" else 5,
        works=["mine"],
        paused=why == "paused",
        rate=Rate(1, per=1e6) if why == "rate" else None,
        limits=[KeyLimit(1, meta="of")] if why == "limits" else [],
    )
    dispatcher = PoolsDispatcher(works, {"p": pool})
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works, dispatcher=dispatcher, clock=clock, grace=0
    ) as scheduler:
        if why != "idle":
            await scheduler.add_tasks(
                [at(0, f"{n}", "mine", meta={"of": "me"}) for n in range(9)]
            )
        await trio.sleep(1)
        # Its own end, and what the deadline of a far-off rate may need.
        assert await steps_in(1000) <= 2


async def test_a_claim_is_only_for_who_has_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    No claim, and no look at what is next, is made for a pool that is full.
    """
    works, _ = note_works(["mine", "other"], seconds=50)
    repository = TroubledRepository()
    dispatcher = PoolsDispatcher(works, {"p": Pool(1, works=["mine"])})
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works, repository, dispatcher, clock=clock, grace=0
    ) as scheduler:
        await scheduler.add_tasks([at(0, f"{n}", "mine") for n in range(9)])
        await trio.sleep(1)
        repository.batches.clear()
        await scheduler.add_tasks([at(n, f"o{n}", "other") for n in (2, 3, 4)])
        await trio.sleep(10)
        claims = [
            each
            for batch in repository.batches
            for each in batch
            if isinstance(each, ClaimTasks)
        ]
        assert len(claims) == 3
        assert all(each.only.unnamed == frozenset({"other"}) for each in claims)


async def test_what_runs_in_a_pool_can_be_interrupted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A run is found in whatever pool it is; and all end with the scheduler.
    """
    works, _ = note_works(["mine", "other"], seconds=50)
    dispatcher = PoolsDispatcher(works, {"p": Pool(2, works=["mine"])})
    repository = HeapRepository()
    async with open_scheduler(works, repository, dispatcher, grace=1) as scheduler:
        tasks = [
            await scheduler.add_task(name, after=0) for name in ("mine", "other", "mine")
        ]
        await trio.sleep(1)
        for task in tasks[:2]:
            await scheduler.interrupt(task.id)
        states = [(await scheduler.wait(task.id)).state for task in tasks[:2]]
        assert states == [TaskState.CANCELLED] * 2
    assert (await repository.get(tasks[2].id)).state is TaskState.SCHEDULED
    assert dispatcher.statistics().running == 0


def failing_claims(times: int) -> tuple[TroubledRepository, list[RepositoryError]]:
    repository = TroubledRepository()
    errors: list[RepositoryError] = []

    async def fail(operations: Sequence[Operation]) -> None:
        if len(errors) < times and any(isinstance(o, ClaimTasks) for o in operations):
            errors.append(RepositoryError(f"no {len(errors)}"))
            raise errors[-1]

    repository.before_apply = fail
    return repository, errors


@pytest.mark.parametrize("pools", [0, 2])
async def test_an_error_is_told_as_it_is(
    autojump_clock: trio.testing.MockClock, pools: int
) -> None:
    """
    What a claim raises is what the hook is asked about, not a group; and if it is to be
    tried again, every pool goes on.
    """
    works, log = note_works(["w0", "w1", "other"])
    dispatcher = PoolsDispatcher(
        works, {f"p{n}": Pool(1, works=[f"w{n}"]) for n in range(pools)}
    )
    repository, errors = failing_claims(3)
    told: list[Exception] = []

    async def on_dispatch_error(error: Exception, _: HookAction) -> HookAction:
        told.append(error)
        return HookAction.RETRY

    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works,
        repository,
        dispatcher,
        clock=clock,
        hooks=PartialHooks(on_dispatch_error=on_dispatch_error),
    ) as scheduler:
        await scheduler.add_tasks([at(1, "0", "w0"), at(1, "1", "w1"), at(1, "2", "other")])
        await scheduler.drain()
    assert sorted(log) == [("0", 1.0), ("1", 1.0), ("2", 1.0)]
    assert told == errors


async def test_errors_of_several_pools_are_all_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If two pools fail at once, by errors of their own, one is told, and the other in its
    notes; and the scheduler ends by it.
    """

    class Failing(WorkerPoolDispatcher):
        async def dispatch(self, fetch: Fetch) -> None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            raise OSError(f"pool of {self.max_workers}")

    works, _ = note_works(["mine"])
    dispatcher = PoolsDispatcher(
        works,
        {"p": Pool(Failing(works, 3), works=["mine"])},
        default=Pool(Failing(works, 4)),
    )
    with pytest.RaisesGroup(OSError, flatten_subgroups=True) as caught:
        await Scheduler(works, HeapRepository(), dispatcher).run()
    [error] = caught.value.exceptions
    assert isinstance(error, OSError)
    assert {str(error), *getattr(error, "__notes__", [])} in (
        {"pool of 3", "and another pool: OSError: pool of 4"},
        {"pool of 4", "and another pool: OSError: pool of 3"},
    )


@pytest.mark.parametrize("_", range(8))
async def test_a_decision_is_kept_whoever_else_fails(
    autojump_clock: trio.testing.MockClock, _: int
) -> None:
    """
    What a hook has decided to raise ends the scheduler, also if another pool fails in the
    same moment, before or after, for which it would have been asked whether to go on.
    """

    moment = trio.Event()  # who is woken by it is not cancelled in the same step

    class Failing(WorkerPoolDispatcher):
        async def dispatch(self, fetch: Fetch) -> None:
            await moment.wait()
            raise OSError("beside it")

    class Lost(HeapRepository):
        async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
            await moment.wait()
            raise RepositoryError("decided")

    async def on_get_next_error(error: Exception, _: HookAction) -> HookAction:
        return HookAction.RAISE

    asked: list[Exception] = []

    async def on_dispatch_error(error: Exception, _: HookAction) -> HookAction:
        asked.append(error)
        return HookAction.RETRY if len(asked) < 9 else HookAction.RAISE

    works, _log = note_works(["mine"])
    pools = {"p": Pool(Failing(works, 3), works=["mine"])}
    hooks = PartialHooks(
        on_get_next_error=on_get_next_error, on_dispatch_error=on_dispatch_error
    )
    scheduler = Scheduler(works, Lost(), PoolsDispatcher(works, pools), hooks=hooks)
    with pytest.RaisesGroup(RepositoryError, flatten_subgroups=True) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run)
            await trio.testing.wait_all_tasks_blocked()
            moment.set()
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    assert error.__notes__ == ["and another pool: OSError: beside it"]
    assert asked == []


class FailsAtTheEnd(WorkerPoolDispatcher):
    """Waits until it is cancelled, and fails on its way out."""

    async def dispatch(self, fetch: Fetch) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("too late")


async def test_an_error_beside_a_cancellation_is_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A pool that fails on its way out of a cancellation is heard.
    """

    works, _ = note_works(["mine"])
    dispatcher = PoolsDispatcher(works, {"p": Pool(FailsAtTheEnd(works), works=["mine"])})

    async def fetch(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
        await trio.sleep_forever()
        raise AssertionError

    async with trio.open_nursery() as nursery:
        await dispatcher.start(
            nursery, trio.open_memory_channel[Any](9)[0], TrioClock(NOON)
        )
        with (
            trio.move_on_after(1),
            pytest.RaisesGroup(pytest.RaisesExc(OSError, match="too late")) as caught,
        ):
            await dispatcher.dispatch(fetch)
        assert isinstance(caught.value, PoolErrors)
        nursery.cancel_scope.cancel()


async def test_an_interrupt_is_not_taken_for_an_error(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What is no `Exception` leaves in its group.
    """

    class Interrupted(WorkerPoolDispatcher):
        async def dispatch(self, fetch: Fetch) -> None:
            await trio.lowlevel.checkpoint()
            raise KeyboardInterrupt

    works, _ = note_works(["mine"])
    dispatcher = PoolsDispatcher(works, {"p": Pool(Interrupted(works), works=["mine"])})
    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        await Scheduler(works, HeapRepository(), dispatcher).run()


async def test_it_serves_one_scheduler_at_a_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A second scheduler is refused, and so is a pool whose dispatcher is another's; once a
    scheduler has ended, the next may have it.
    """
    works, log = note_works(["mine"])
    dispatcher = PoolsDispatcher(works, {"p": Pool(2, works=["mine"])})
    busy = WorkerPoolDispatcher(works)
    async with open_scheduler(works, dispatcher=busy):
        async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
            await scheduler.add_task("mine", after=0)
            await scheduler.drain()
            with pytest.raises(SchedulerAlreadyRunningError):
                await Scheduler(works, HeapRepository(), dispatcher).run()
        async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
            await scheduler.add_task("mine", after=0)
            await scheduler.drain()
        with pytest.RaisesGroup(SchedulerAlreadyRunningError, flatten_subgroups=True):
            async with open_scheduler(works, dispatcher=dispatcher):
                dispatcher.add("q", Pool(busy, works=["other"]))
                await trio.sleep(1)
    assert len(log) == 2


async def test_a_pool_that_is_added_sees_the_scheduler(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Works of a pool that is added while others run see the scheduler's context, and nothing
    of whoever has added it.
    """
    works = WorkRegistry()
    seen: list[tuple[str, Scheduler]] = []

    @works.register
    async def mine() -> None:
        seen.append((mood.get(), current_scheduler()))

    dispatcher = PoolsDispatcher(works, {"p": Pool(1, works=["other"])})
    async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
        await trio.sleep(1)
        mood.set("of whoever adds it")
        dispatcher.add("q", Pool(1, works=["mine"]))
        await scheduler.add_task("mine", after=1)
        await scheduler.drain()
    assert seen == [("calm", scheduler)]


def test_it_may_be_used_in_another_trio_run() -> None:
    """
    A rate is counted anew in another Trio run, whose clock is another.
    """
    works, log = note_works(["mine"])
    dispatcher = PoolsDispatcher(works, default=Pool(1, rate=Rate(1, per=1000)))

    async def main() -> None:
        async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
            await scheduler.add_task("mine", after=5)
            await scheduler.drain()

    for start in 1e6, 0.0:
        clock = trio.testing.MockClock(autojump_threshold=0)
        clock.jump(start)
        trio.run(main, clock=clock)
    assert [when for _, when in log] == [1e6 + 5, 5.0]


async def test_one_that_is_refused_disturbs_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    After a second scheduler was refused, the first goes on: pools can be added, and an
    error is got over.
    """
    works, log = note_works(["mine", "other"])
    dispatcher = PoolsDispatcher(works, {"p": Pool(1, works=["mine"])})
    repository, _ = failing_claims(0)

    async def retry(error: Exception, _: HookAction) -> HookAction:
        return HookAction.RETRY

    hooks = PartialHooks(on_dispatch_error=retry)
    async with open_scheduler(works, repository, dispatcher, hooks=hooks) as scheduler:
        with pytest.raises(SchedulerAlreadyRunningError):
            await Scheduler(works, HeapRepository(), dispatcher).run()
        dispatcher.add("q", Pool(1, works=["other"]))
        for work_id in "mine", "other":
            await scheduler.add_task(work_id, after=1)
        await scheduler.drain()
        failing = failing_claims(1)[0].before_apply
        repository.before_apply = failing
        await scheduler.add_task("other", after=1)
        await scheduler.drain()
    assert len(log) == 3


async def test_a_task_of_a_new_work_is_claimed_when_it_is_told_of(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If somebody else tells of a task of a work that was registered since, the default pool
    looks again, though it sleeps by the works of then.
    """
    works, log = note_works(["mine"])
    repository = Told()
    dispatcher = PoolsDispatcher(works, {"p": Pool(1, works=["mine"])})
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, repository, dispatcher, clock=clock):
        await trio.sleep(5)
        await repository.store.add([stored("first", "mine")])  # of which nobody hears
        repository.tell("mine")
        await trio.sleep(5)
        works.register("later", works.get("mine").function)
        await repository.store.add([stored("theirs", "later")])
        repository.tell("later")
        await trio.sleep(5)
    assert log == [("first", 5.0), ("theirs", 10.0)]


class Told(HeapRepository):
    """Hears of others' tasks."""

    tell: Callable[[str], None]

    async def serve(self, claim: Callable[[str], None]) -> None:
        self.tell = claim
        await trio.sleep_forever()


def test_a_pool_of_pools_has_no_limits_of_its_own() -> None:
    """
    Pools within a pool would each count for themselves, so limits are theirs.
    """
    works = WorkRegistry()
    for limits in {"rate": Rate(1, 1)}, {"limits": [KeyLimit(1, param="a")]}:
        inner = PoolsDispatcher(works, {"p": Pool(1, works=["a"])})
        pool: Any = AnyPool(inner, **limits)
        with pytest.raises(ValueError, match="'default' has pools in it"):
            PoolsDispatcher(works, default=pool)


async def test_filters_are_not_remembered_for_ever(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Which pools are likely to find more is forgotten if it is of very many; nothing is lost.
    """
    monkeypatch.setattr(_dispatch_loop, "MANY", 0)
    names = ["a", "b", "c"]
    works, log = note_works(names)
    dispatcher = PoolsDispatcher(works, {name: Pool(1, works=[name]) for name in names})
    async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
        await scheduler.add_tasks(
            [at(0, f"{name}{n}", name) for name in names for n in range(3)]
        )
        await scheduler.drain()
    assert len(log) == 9


@pytest.mark.parametrize("others", [0, 1])
async def test_values_that_a_database_does_not_know(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, others: int
) -> None:
    """
    What SQLite cannot be asked for is looked for row by row, however many must wait.
    """
    name = 'so "called"'
    tasks = [stored(f"x{n}", param={name: "x"}) for n in range(30)]
    tasks += [stored(f"y{n}", param={name: "y"}) for n in range(others)]
    only = TaskFilter(rooms=(KeyRoom(KeyLimit(1, param=name), {'"x"': 1}),))
    async with open_sql_repository(f"sqlite:///{tmp_path / 'tasks.db'}") as repository:
        await repository.add(tasks)
        first = await repository.get_next(only)
        assert (first is not None and first.id) == ("y0" if others else False)
        claimed = await repository.claim(99, NOON, only)
        assert [task.id for task in claimed.tasks] == ["y0"] * others


async def test_pools_on_a_database(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    The same on a SQLite file: a full pool keeps nobody waiting.
    """
    works, log = note_works(["slow", "quick"], seconds=100)
    dispatcher = PoolsDispatcher(works, {"a": Pool(2, works=["slow"])}, default=3)
    clock = TrioClock(NOON, 0.0)
    async with open_sql_repository(f"sqlite:///{tmp_path / 'tasks.db'}") as repository:
        async with open_scheduler(
            works, repository, dispatcher, clock=clock, grace=0
        ) as scheduler:
            await scheduler.add_tasks([at(0, f"s{n}", "slow") for n in range(9)])
            await trio.sleep(10)
            await scheduler.add_tasks([at(20, f"q{n}", "quick") for n in range(3)])
            await trio.sleep(40)
    assert sorted(log) == [
        *[(f"q{n}", 20.0) for n in range(3)],
        *[(f"s{n}", 0.0) for n in range(2)],
    ]


AnyPool: Any = Pool
AnyRate: Any = Rate
AnyDispatcher: Any = PoolsDispatcher
AnyWorkers: Any = WorkerPoolDispatcher


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda works: Pool(0), ValueError, "workers: must be at least 1, not 0"),
        (lambda works: Pool(True), TypeError, "workers: must be an abc.Dispatcher"),
        (lambda works: AnyPool(2.5), TypeError, "must be an abc.Dispatcher, and 2.5"),
        (lambda works: Pool(1, works="mine"), TypeError, "works: must be names of works"),
        (lambda works: AnyPool(1, works=3), TypeError, "must be names of works, not 3"),
        (lambda works: Pool(1, works=["\0"]), InvalidTaskError, "works"),
        (lambda works: AnyPool(1, rate=3), TypeError, "rate: must be a Rate, not 3"),
        (
            lambda works: AnyPool(1, limits="a"),
            TypeError,
            "must be a list of KeyLimits, not 'a'",
        ),
        (
            lambda works: AnyPool(1, limits=3),
            TypeError,
            "must be a list of KeyLimits, not 3",
        ),
        (
            lambda works: AnyPool(1, limits=[3]),
            TypeError,
            "limits: must be a list of KeyLimits, not 3",
        ),
        (
            lambda works: KeyLimit(0, param="a"),
            ValueError,
            "must be at least 1, not 0",
        ),
        (lambda works: KeyLimit(True, param="a"), TypeError, "must be an int, not"),
        (lambda works: KeyLimit(1), InvalidTaskError, "param: must be given, or else meta"),
        (
            lambda works: KeyLimit(1, param="a", meta="b"),
            InvalidTaskError,
            "param: must be given, or else meta, and not both",
        ),
        (lambda works: KeyLimit(1, meta="\0"), InvalidTaskError, "meta: must not"),
        (lambda works: AnyPool(1, paused=1), TypeError, "paused: must be a bool, not 1"),
        (lambda works: Rate(0, 1), ValueError, "limit: must be at least 1, not 0"),
        (lambda works: Rate(True, 1), TypeError, "limit: must be an int, not True"),
        (lambda works: Rate(1, 0), InvalidTaskError, "per: must be more than nothing"),
        (lambda works: Rate(1, -1), InvalidTaskError, "per: must not be negative"),
        (lambda works: AnyRate(1, "1s"), InvalidTaskError, "per: must be a timedelta"),
        (
            lambda works: PoolsDispatcher(works, default=Pool(1, works=["a"])),
            ValueError,
            "default: is for the works that no other pool has",
        ),
        (
            lambda works: PoolsDispatcher(works, default=True),
            TypeError,
            "default: must be a Pool or a number, not True",
        ),
        (
            lambda works: AnyDispatcher(works, [Pool(1)]),
            TypeError,
            "pools: must be Pools by name, not",
        ),
        (
            lambda works: AnyDispatcher(works, {"p": 3}),
            TypeError,
            "pools: 'p' must be a Pool, not 3",
        ),
        (
            lambda works: PoolsDispatcher(works, {"": Pool(1, works=["a"])}),
            InvalidTaskError,
            "pools",
        ),
        (
            lambda works: PoolsDispatcher(works, {"default": Pool(1, works=["a"])}),
            ValueError,
            "pools: 'default' is the pool for all other works: use default=",
        ),
        (
            lambda works: PoolsDispatcher(works).add("default", Pool(1)),
            PoolExistsError,
            "there is a pool 'default' already",
        ),
        (
            lambda works: AnyDispatcher({"a": Pool(2)}),
            TypeError,
            "works: must be a registry of works, not",
        ),
        (
            lambda works: AnyDispatcher(None, default=Pool(WorkerPoolDispatcher(works))),
            TypeError,
            "works: must be a registry of works, not None",
        ),
        (
            lambda works: AnyWorkers(5),
            TypeError,
            "works: must be a registry of works, not 5",
        ),
        (
            lambda works: AnyWorkers(WorkRegistry),
            TypeError,
            "works: must be a registry of works, not <class",
        ),
        (
            lambda works: PoolsDispatcher(
                works, {"p": Pool(works=["a", "b"]), "q": Pool(works=["c", "b"])}
            ),
            PoolExistsError,
            "'b' is a work of the pool 'p' already",
        ),
        (
            lambda works: PoolsDispatcher(works, {"p" * 501: Pool(1)}),
            InvalidTaskError,
            "pools: must not be longer than 500 bytes",
        ),
        (
            lambda works: PoolsDispatcher(works).pause("q"),
            PoolNotFoundError,
            "there is no pool 'q'",
        ),
        (
            lambda works: PoolsDispatcher(works).resize("default", 0),
            ValueError,
            "max_workers: must be at least 1",
        ),
        (
            lambda works: PoolsDispatcher(
                works, default=Pool(PoolsDispatcher(works))
            ).resize("default", 3),
            TypeError,
            "'default' has a dispatcher of its own",
        ),
    ],
)
def test_what_cannot_be_used_is_told(
    make: Callable[[WorkRegistry], object], error: type[Exception], match: str
) -> None:
    """
    Each error names what it is about.
    """
    with pytest.raises(error, match=match):
        make(WorkRegistry())


def test_a_dispatcher_is_of_one_pool() -> None:
    """
    Two pools cannot have the same workers; and a pool that was refused is not there.
    """
    works = WorkRegistry()
    shared = WorkerPoolDispatcher(works)
    dispatcher = PoolsDispatcher(works, default=Pool(shared))
    with pytest.raises(ValueError, match="'p' must have its own dispatcher"):
        dispatcher.add("p", Pool(shared, works=["a"]))
    assert list(dispatcher.pools) == ["default"]


async def test_tasks_of_no_work_are_left(autojump_clock: trio.testing.MockClock) -> None:
    """
    A pool may name works that are not registered: their tasks wait for them.
    """
    repository = HeapRepository()
    async with open_bench(repository) as (scheduler, bench):
        await scheduler.add_tasks([TaskParam(id="a", work_id="note", scheduled_at=NOON)])
        await scheduler.drain()
        works = bench.works
    dispatcher = PoolsDispatcher(works, {"p": Pool(1, works=["note", "unheard of"])})
    clock = TrioClock(NOON, trio.current_time())
    async with open_scheduler(works, repository, dispatcher, clock=clock) as scheduler:
        await scheduler.add_tasks([at(1, "b")])
        await scheduler.drain()
    assert bench.ids() == ["a", "b"]


def test_the_pools_are_only_told() -> None:
    """
    Whoever would put a pool into what tells of them is refused.
    """
    pools: Any = PoolsDispatcher(WorkRegistry()).pools
    with pytest.raises(TypeError, match="does not support item assignment"):
        pools["p"] = Pool(1)
    assert list(pools) == ["default"]
