"""Plain functions in threads: how they call Trio, are stopped, and are limited."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from leftovers import nothing_left
from support import NOON, PATIENCE, bounded, noon

from trio_gokugen import (
    HeapRepository,
    Interval,
    TaskQuery,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    WorkRegistry,
    autojump_held,
    current_task,
    open_scheduler,
)


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Nothing is left after any of these tests."""
    with nothing_left(tmp_path / "temporary", monkeypatch):
        yield


class Works:
    """A registry of works in threads, and the events by which a test follows them."""

    def __init__(self) -> None:
        self.works = WorkRegistry()
        self.started = threading.Semaphore(0)
        self.go = threading.Event()
        self.works.register("polite", self.polite)
        self.works.register("polite_in_time", self.polite, timeout=5)
        self.works.register("polite_once", self.polite, at_most_once=True)
        self.works.register("deaf", self.deaf)
        self.works.register("deaf_in_time", self.deaf, timeout=5)

    def polite(self) -> None:
        """Look up now and then, and never end by itself."""
        self.started.release()
        while True:
            trio.from_thread.check_cancelled()
            self.go.wait(0.001)

    def deaf(self) -> str:
        """Wait to be let go, and look up for nobody."""
        self.started.release()
        self.go.wait(PATIENCE)
        return "done"

    async def wait_started(self, number: int = 1) -> None:
        with autojump_held():
            for _ in range(number):
                assert await trio.to_thread.run_sync(self.started.acquire, True, PATIENCE)


# -- calling Trio -----------------------------------------------------------------------


async def test_a_thread_may_call_trio(autojump_clock: trio.testing.MockClock) -> None:
    """
    `trio.from_thread` works in a thread: what it calls is part of the run.
    """
    works = WorkRegistry()
    seen: list[Any] = []

    async def there(*values: int) -> int:
        await trio.lowlevel.checkpoint()
        seen.append((threading.get_ident(), current_task().id))
        return sum(values)

    @works.register(retain=True)
    def calls() -> list[Any]:
        trio.from_thread.check_cancelled()
        return [
            trio.from_thread.run(there, 1, 2),
            trio.from_thread.run_sync(trio.current_time),
            threading.get_ident() != seen[0][0],
        ]

    async with open_scheduler(works, clock=TrioClock(NOON, 0.0)) as scheduler:
        await scheduler.add_task("calls", after=7, id="a")
        task = await scheduler.wait("a")
    assert task.result == [3, 7.0, True]
    assert seen == [(threading.get_ident(), "a")]


async def test_what_a_thread_calls_is_cancelled_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work that waits in Trio, by `trio.from_thread.run`, ends when it is interrupted.
    """
    works = WorkRegistry()
    waiting = trio.Event()

    async def wait() -> None:
        waiting.set()
        await trio.sleep_forever()

    works.register("waits", lambda: trio.from_thread.run(wait))
    async with open_scheduler(works, clock=TrioClock(NOON, 0.0)) as scheduler:
        await scheduler.add_task("waits", after=0, id="a")
        with autojump_held():
            await waiting.wait()
        task = await scheduler.interrupt("a")
    assert task.state is TaskState.CANCELLED


# -- being stopped ----------------------------------------------------------------------


async def test_a_thread_that_looks_up_is_interrupted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work that calls `check_cancelled` ends when it is interrupted, and is cancelled.
    """
    bench = Works()
    async with open_scheduler(bench.works, clock=TrioClock(NOON, 0.0)) as scheduler:
        await scheduler.add_task("polite", after=0, id="a")
        await bench.wait_started()
        task = await scheduler.interrupt("a")
        assert trio.current_time() == 0
    assert task.state is TaskState.CANCELLED


@pytest.mark.parametrize("bound", ["deadline", "timeout"])
async def test_a_thread_that_looks_up_keeps_its_bounds(
    autojump_clock: trio.testing.MockClock, bound: str
) -> None:
    """
    A work that calls `check_cancelled` ends at its deadline, or after its time-out, and
    has failed for that.
    """
    bench = Works()
    work_id, deadline = "polite_in_time", None
    if bound == "deadline":
        work_id, deadline = "polite", noon(5)
    async with open_scheduler(bench.works, clock=TrioClock(NOON, 0.0)) as scheduler:
        await scheduler.add_task(work_id, after=0, deadline=deadline, id="a")
        await bench.wait_started()
        autojump_clock.jump(5)
        task = await scheduler.wait("a")
    assert task.state is TaskState.FAILED
    assert task.err is not None
    named = "DeadlineExceededError" if bound == "deadline" else "WorkTimeoutError"
    assert task.err.startswith(named)
    assert "in polite" in task.err
    assert task.done_at == noon(5)


@pytest.mark.parametrize("how", ["stop", "cancelled"])
@pytest.mark.parametrize("work_id", ["polite", "polite_once"])
async def test_a_thread_that_looks_up_goes_with_the_scheduler(
    autojump_clock: trio.testing.MockClock, how: str, work_id: str
) -> None:
    """
    A work that calls `check_cancelled` ends with the scheduler: it runs again, unless it
    must not.
    """
    bench, repository = Works(), HeapRepository()
    with trio.CancelScope() as scope:
        async with open_scheduler(bench.works, repository) as scheduler:
            await scheduler.add_task(work_id, after=0, id="a")
            await bench.wait_started()
            if how == "stop":
                await scheduler.stop(grace=0)
            else:
                scope.cancel()
                await trio.sleep_forever()
    task = await repository.get("a")
    once = work_id == "polite_once"
    assert task.state is (TaskState.FAILED if once else TaskState.SCHEDULED)
    assert task.interruptions == (0 if once else 1)


@pytest.mark.parametrize("how", ["interrupt", "deadline", "timeout", "stop"])
async def test_a_thread_that_does_not_look_up_is_waited_for(
    autojump_clock: trio.testing.MockClock, how: str
) -> None:
    """
    A work that is stopped and does not notice is waited for, and is done when it returns.
    """
    bench, repository = Works(), HeapRepository()
    work_id = "deaf_in_time" if how == "timeout" else "deaf"
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(bench.works, repository, clock=clock) as scheduler:
        deadline = noon(5) if how == "deadline" else None
        await scheduler.add_task(work_id, after=0, deadline=deadline, id="a")
        await bench.wait_started()
        async with trio.open_nursery() as nursery:
            if how == "interrupt":
                nursery.start_soon(scheduler.interrupt, "a")
            elif how == "stop":
                nursery.start_soon(scheduler.stop, 0)
            autojump_clock.jump(5)
            await trio.testing.wait_all_tasks_blocked()
            assert scheduler.statistics().running == 1
            assert (await repository.get("a")).state is TaskState.DISPATCHED
            bench.go.set()
    assert (await repository.get("a")).state is TaskState.DONE


# -- limits -----------------------------------------------------------------------------


async def test_so_many_threads_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """
    No more threads than `max_threads` are at work; async works do not wait for them.
    """
    bench = Works()
    bench.works.register("sleep", trio.sleep)
    pool = WorkerPoolDispatcher(bench.works, max_threads=2)
    async with open_scheduler(bench.works, dispatcher=pool) as scheduler:
        for number in range(3):
            await scheduler.add_task("deaf", after=0, id=str(number))
        await bench.wait_started(2)
        task = await scheduler.add_task("sleep", {"seconds": 0}, after=0)
        assert (await scheduler.wait(task.id)).state is TaskState.DONE
        assert not bench.started.acquire(blocking=False)
        assert pool.statistics().running == 3
        bench.go.set()
        await bench.wait_started()
        for number in range(3):
            assert (await scheduler.wait(str(number))).state is TaskState.DONE


async def test_threads_of_another_pool_do_not_count(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Each pool has a limit of its own, and Trio's own is not among them.
    """
    bench, other = Works(), Works()
    trio.to_thread.current_default_thread_limiter().total_tokens = 3
    pools = [WorkerPoolDispatcher(each.works, max_threads=2) for each in (bench, other)]
    async with (
        open_scheduler(bench.works, dispatcher=pools[0]) as scheduler,
        open_scheduler(other.works, dispatcher=pools[1]) as second,
    ):
        for number in range(2):
            await scheduler.add_task("deaf", after=0, id=str(number))
            await second.add_task("deaf", after=0, id=str(number))
        await bench.wait_started(2)
        await other.wait_started(2)
        bench.go.set()
        other.go.set()


async def test_threads_have_no_limit_by_default(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    By default as many works run in threads as there are workers, also when these become
    more.
    """
    bench = Works()
    pool = WorkerPoolDispatcher(bench.works, 1)
    async with open_scheduler(bench.works, dispatcher=pool) as scheduler:
        for _ in range(60):
            await scheduler.add_task("deaf", after=0)
        await bench.wait_started()
        pool.max_workers = 60
        await bench.wait_started(59)
        bench.go.set()


async def test_the_number_of_threads_is_changed_while_it_runs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A limit of threads can be set, changed and lifted at any time: what runs is counted and
    not disturbed, and what waits begins as soon as there is room.
    """
    bench = Works()
    pool = WorkerPoolDispatcher(bench.works, 10)
    assert pool.max_threads is None
    async with open_scheduler(bench.works, dispatcher=pool) as scheduler:
        await scheduler.add_task("deaf", after=0)
        await scheduler.add_task("deaf", after=0)
        await bench.wait_started(2)
        pool.max_threads = 3
        assert pool.max_threads == 3
        for _ in range(6):
            await scheduler.add_task("deaf", after=0)
        await bench.wait_started()
        await trio.testing.wait_all_tasks_blocked()
        assert not bench.started.acquire(blocking=False)
        pool.max_threads = 4
        await bench.wait_started()
        pool.max_threads = None
        await bench.wait_started(4)
        with pytest.raises(ValueError, match="max_threads: must be at least 1"):
            pool.max_threads = 0
        bench.go.set()


@pytest.mark.parametrize("how", ["interrupt", "deadline", "stop"])
async def test_who_is_stopped_before_its_turn_never_starts(
    autojump_clock: trio.testing.MockClock, how: str
) -> None:
    """
    A work that waits for a thread and is stopped has not started.
    """
    bench, repository = Works(), HeapRepository()
    pool = WorkerPoolDispatcher(bench.works, max_threads=1)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(bench.works, repository, pool, clock=clock) as scheduler:
        await scheduler.add_task("polite", after=0)
        await bench.wait_started()
        deadline = noon(5) if how == "deadline" else None
        await scheduler.add_task("polite_once", after=0, id="a", deadline=deadline)
        await trio.testing.wait_all_tasks_blocked()
        if how == "interrupt":
            await scheduler.interrupt("a")
        elif how == "deadline":
            autojump_clock.jump(5)
            await scheduler.wait("a")
        await scheduler.stop(grace=0)
    assert not bench.started.acquire(blocking=False)
    task = await repository.get("a")
    if how == "interrupt":
        assert task.state is TaskState.CANCELLED
    elif how == "stop":
        assert (task.state, task.interruptions) == (TaskState.SCHEDULED, 1)
    else:
        assert task.err is not None
        assert task.err.splitlines()[0].endswith("the work was not started")


@pytest.mark.parametrize("max_threads", [None, 1])
async def test_a_time_out_is_that_of_a_condition_and_its_work(
    autojump_clock: trio.testing.MockClock, max_threads: int | None
) -> None:
    """
    A work has what its condition has left of its time-out, whether threads have a limit or
    not.
    """
    bench = Works()

    @bench.works.register(timeout=5)
    def polite_until_late() -> None:
        bench.started.release()
        for _ in range(10_000):  # in real time: it looks up long before that is over
            trio.from_thread.check_cancelled()
            bench.go.wait(0.001)

    @bench.works.condition
    async def slow(*_: Any) -> bool:
        await trio.sleep(3)
        return True

    pool = WorkerPoolDispatcher(bench.works, max_threads=max_threads)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(bench.works, dispatcher=pool, clock=clock) as scheduler:
        await scheduler.add_schedule(
            "s", Interval(100, anchor=NOON), "polite_until_late", when="slow"
        )
        await trio.sleep(103)
        await bench.wait_started()
        states = {TaskState.DISPATCHED}
        [task] = await scheduler.find(TaskQuery(states=states))
        autojump_clock.jump(2)
        ended = await scheduler.wait(task.id)
    assert ended.done_at == noon(105)
    assert ended.err is not None
    assert ended.err.startswith("WorkTimeoutError")


async def test_a_time_out_does_not_run_while_a_work_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    The time-out of a work that waits for a thread begins when it gets one.
    """
    bench = Works()
    pool = WorkerPoolDispatcher(bench.works, max_threads=1)
    async with open_scheduler(bench.works, dispatcher=pool) as scheduler:
        await scheduler.add_task("deaf", after=0)
        await bench.wait_started()
        await scheduler.add_task("polite_in_time", after=0, id="a")
        await trio.testing.wait_all_tasks_blocked()
        autojump_clock.jump(1_000)
        await trio.testing.wait_all_tasks_blocked()
        bench.go.set()
        await bench.wait_started()
        autojump_clock.jump(4.5)
        await trio.testing.wait_all_tasks_blocked()
        assert pool.statistics().running == 1
        autojump_clock.jump(0.5)
        with bounded():
            task = await scheduler.wait("a")
    assert task.err is not None
    assert task.err.startswith("WorkTimeoutError")


async def test_a_limited_thread_may_fail(autojump_clock: trio.testing.MockClock) -> None:
    """
    With a limit, too, what a work raises is its failure, and its place is given back.
    """
    works = WorkRegistry()

    @works.register
    def fail() -> None:
        raise ValueError("no luck")

    pool = WorkerPoolDispatcher(works, max_threads=1)
    async with open_scheduler(works, dispatcher=pool) as scheduler:
        for _ in range(2):
            task = await scheduler.add_task("fail", after=0)
            ended = await scheduler.wait(task.id)
            assert ended.err is not None
            assert ended.err.startswith("ValueError: no luck")
