"""Works run by executors: thousands in flight, stopped as far as can be, lost never."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import executor_works
import outcome
import pytest
import trio
import trio.testing
from leftovers import nothing_left
from support import NOON, PATIENCE, at, bounded, noon

from trio_gokugen import (
    DeadlineExceededError,
    ExecutorDispatcher,
    ExecutorLostError,
    ForeignError,
    HeapRepository,
    HookAction,
    Interval,
    InvalidTaskError,
    LeakedCancelledError,
    PartialHooks,
    Retry,
    Schedule,
    Scheduler,
    SchedulerAlreadyRunningError,
    Snooze,
    StopReason,
    SystemClock,
    Task,
    TaskQuery,
    TaskState,
    TrioClock,
    WorkLostError,
    WorkRegistry,
    WorkStoppedError,
    WorkTimeoutError,
    _executor_order,
    current_scheduler,
    current_task,
    fixed,
    open_scheduler,
    report_progress,
)
from trio_gokugen import _executor_calls as calls
from trio_gokugen._conditions import scheduler as running_scheduler
from trio_gokugen._executor_calls import Landed, call_by_path, call_here
from trio_gokugen._in_flight import Flight, InFlightDispatcher
from trio_gokugen._results import Unkept
from trio_gokugen._taken_apart import put_together
from trio_gokugen.abc import TaskResult
from trio_gokugen.testing import (
    SAME_PROCESS_CHECKS,
    STOPPING_CHECKS,
    check_dispatcher,
    conformance_works,
)

CONFORMANCE_WORKS = "trio_gokugen.testing:conformance_works"
WORKS = "executor_works:works"


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Nothing is left after any of these tests, and no run that was to be stopped."""
    with nothing_left(tmp_path / "temporary", monkeypatch):
        yield
    assert not calls._stopped
    assert not calls._under_way


@pytest.fixture
def threads() -> Generator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def processes(max_workers: int = 1) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(max_workers, mp_context=spawn)


class Manual(Executor):
    """Runs what it has been given when the test says so, in a thread of its own."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, fn: Callable[..., Any], /, *args: Any
    ) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, lambda: fn(*args)))
        return future

    async def run_all(self) -> None:
        waiting, self.waiting = self.waiting, []
        for future, call in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(await trio.to_thread.run_sync(call))


def opened(
    works: WorkRegistry, executor: Executor, max_in_flight: int = 1_000, **options: Any
) -> Any:
    dispatcher = ExecutorDispatcher(works, executor, max_in_flight=max_in_flight)
    options.setdefault("clock", TrioClock(NOON, 0.0))
    return open_scheduler(works, dispatcher=dispatcher, **options)


def never() -> None:
    raise AssertionError("it was called")


def now(scheduler: Scheduler) -> datetime:
    assert scheduler._engine is not None
    return scheduler._engine.clock.now()


async def until(true: Callable[[], bool]) -> None:
    """Wait, in real time: a mock clock may stand still."""
    late = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < late
        await trio.lowlevel.checkpoint()
        time.sleep(0.001)  # noqa: ASYNC251 (others have to get on, who are not in Trio)


# -- the promises -------------------------------------------------------------------


async def test_threads_keep_the_promises(autojump_clock: trio.testing.MockClock) -> None:
    """
    Threads pass the suite, but for what needs the works to be in the same Trio loop.
    """
    with ThreadPoolExecutor(6) as pool:
        await check_dispatcher(
            lambda works, n: ExecutorDispatcher(works, pool, max_in_flight=n),
            skip=SAME_PROCESS_CHECKS,
        )
        await check_dispatcher(
            lambda works, n: ExecutorDispatcher(works, pool, max_in_flight=n),
            only=[
                "plain_functions_run_in_threads",
                "the_clock_waits_for_threads",
                "an_exit_is_reported",
            ],
        )


@pytest.mark.long
async def test_processes_keep_the_promises(autojump_clock: trio.testing.MockClock) -> None:
    """
    Processes pass the suite, but for what needs works to be in the same process, and to
    be stopped.
    """
    with processes(5) as pool:
        await check_dispatcher(
            lambda _, n: ExecutorDispatcher(CONFORMANCE_WORKS, pool, max_in_flight=n),
            skip=SAME_PROCESS_CHECKS | STOPPING_CHECKS,
        )


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
async def test_a_forked_process_may_run_async_works(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An async work runs in a process that was forked off in a Trio program, too.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        await check_dispatcher(
            lambda _, n: ExecutorDispatcher(CONFORMANCE_WORKS, pool, max_in_flight=n),
            only=["param_is_passed_by_keyword", "an_exception_group_is_reported"],
        )


# -- how many -----------------------------------------------------------------------


async def test_thousands_are_in_flight_without_a_thread_each(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    As many runs as `max_in_flight` says wait for one thread: no more, and all run in the
    end. None of them has a thread, or a Trio task.
    """
    works = WorkRegistry()
    gate = threading.Event()
    counts: list[int] = []

    @works.register
    def work(n: int) -> None:
        gate.wait()
        counts.append(n)

    async with opened(works, threads, 1_500) as scheduler:
        await trio.testing.wait_all_tasks_blocked()
        tasks = trio.lowlevel.current_statistics().tasks_living
        running = threading.active_count()
        await scheduler.add_tasks(
            [at(0, f"t{n}", "work", param={"n": n}) for n in range(2_000)]
        )
        try:
            await until(lambda: scheduler.statistics().running == 1_500)
            assert scheduler.statistics().max_workers == 1_500
            assert trio.lowlevel.current_statistics().tasks_living == tasks
            assert threading.active_count() == running + 1
        finally:
            gate.set()
        await scheduler.drain()
        assert scheduler.statistics().done == 2_000
    assert sorted(counts) == list(range(2_000))


async def test_the_bound_may_be_changed_while_running(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A larger `max_in_flight` has more runs begin at once; with a smaller one none begins
    before there is room.
    """
    works = WorkRegistry()
    works.register("work", lambda: None)
    executor = Manual()
    dispatcher = ExecutorDispatcher(works, executor, max_in_flight=2)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, dispatcher=dispatcher, clock=clock) as scheduler:
        await scheduler.add_tasks([at(0, f"t{n}", "work") for n in range(9)])
        await until(lambda: len(executor.waiting) == 2)
        dispatcher.max_in_flight = 5
        await until(lambda: len(executor.waiting) == 5)
        dispatcher.max_in_flight = 1
        await executor.run_all()
        await until(lambda: len(executor.waiting) == 1)
        assert dispatcher.statistics().running == dispatcher.max_in_flight == 1
        dispatcher.max_in_flight = 3
        await until(lambda: len(executor.waiting) == 3)
        await executor.run_all()
        await until(lambda: bool(executor.waiting))
        await executor.run_all()
        await scheduler.drain()


REFUSED: dict[str, tuple[Any, Any, Any, type[Exception], str]] = {
    "no executor": (WORKS, None, 1, TypeError, "executor: must be a concurrent.futures.E"),
    "no path": ("works", Manual(), 1, ValueError, "works: must be a registry, or its"),
    "no module": (":works", Manual(), 1, ValueError, "works: must be a registry, or its"),
    "unknown module": ("no_such:works", Manual(), 1, ImportError, "no_such"),
    "unknown name": (
        "executor_works:workz",
        Manual(),
        1,
        ImportError,
        "works: 'executor_works' has no 'workz'",
    ),
    "a module": ("os:path", Manual(), 1, TypeError, "works: 'os:path' must be a registry"),
    "a mapping": ("os:environ", Manual(), 1, TypeError, "'os:environ' must be a registry"),
    "a class": (
        "trio_gokugen:WorkRegistry",
        Manual(),
        1,
        TypeError,
        "must be a registry of works, not <class",
    ),
    "no registry": (
        None,
        Manual(),
        1,
        TypeError,
        "must be a registry of works, or its imp",
    ),
    "none in flight": (WORKS, Manual(), 0, ValueError, "max_in_flight: must be at least 1"),
    "a bool": (WORKS, Manual(), True, TypeError, "max_in_flight: must be an int"),
    "text": (WORKS, Manual(), "1", TypeError, "max_in_flight: must be an int"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_what_cannot_be_is_refused(how: str) -> None:
    """
    A dispatcher that could not work is not made, and the error says what is wrong.
    """
    works, executor, bound, error, message = REFUSED[how]
    with pytest.raises(error, match=message):
        ExecutorDispatcher(works, executor, max_in_flight=bound)


def test_works_in_other_processes_need_an_import_path() -> None:
    """
    A registry as it is cannot be sent to a pool of processes, which is said at once.
    """
    with processes() as pool, pytest.raises(TypeError, match=r"ProcessPoolExecutor runs"):
        ExecutorDispatcher(executor_works.works, pool)


async def test_it_serves_one_scheduler_at_a_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A dispatcher that is at work cannot be started again; one that has ended can.
    """
    works = WorkRegistry()
    works.register("work", lambda: 1, retain=True)
    executor = Manual()
    dispatcher = ExecutorDispatcher(works, executor)
    for _ in range(2):
        async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
            with pytest.raises(ExceptionGroup) as caught:
                async with open_scheduler(works, dispatcher=dispatcher):
                    pass
            assert caught.group_contains(SchedulerAlreadyRunningError)
            task = await scheduler.add_task("work", after=0)
            await until(lambda: bool(executor.waiting))
            await executor.run_all()
            assert (await scheduler.wait(task.id)).result == 1


# -- stopping -----------------------------------------------------------------------


async def test_what_has_not_begun_can_be_interrupted(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    A run that waits for the executor is cancelled at once, and its work never called.
    """
    works = WorkRegistry()
    gate = threading.Event()
    works.register("wait", gate.wait)
    works.register("never", never, timeout=1)
    async with opened(works, threads) as scheduler:
        first = await scheduler.add_task("wait", after=0)
        other = await scheduler.add_task("never", after=0)
        await until(lambda: scheduler.statistics().running == 2)
        ended = await scheduler.interrupt(other.id)
        assert ended.state is TaskState.CANCELLED
        assert (await scheduler.get(first.id)).state is TaskState.DISPATCHED
        gate.set()
        assert (await scheduler.wait(first.id)).state is TaskState.DONE


@pytest.mark.parametrize("fails", [False, True])
async def test_what_runs_in_a_thread_goes_on(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor, fails: bool
) -> None:
    """
    A plain function that runs cannot be stopped: the run has ended when it has. If it
    returns, the task is done; if it raises, it was cancelled.
    """
    works = WorkRegistry()
    began, gate = threading.Event(), threading.Event()

    @works.register
    def work() -> None:
        began.set()
        gate.wait()
        if fails:
            raise ValueError("no luck")

    async with opened(works, threads) as scheduler:
        task = await scheduler.add_task("work", after=0)
        await until(began.is_set)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.interrupt, task.id)
            nursery.start_soon(scheduler.interrupt, task.id)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert (await scheduler.get(task.id)).state is TaskState.DISPATCHED
            gate.set()
        ended = await scheduler.get(task.id)
        assert ended.state is (TaskState.CANCELLED if fails else TaskState.DONE)


async def test_an_async_work_in_a_thread_can_be_stopped(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    An async work in a thread is cancelled where it awaits: by an interrupt, by its
    deadline, and by a shutdown, after which its task is scheduled.
    """
    works = WorkRegistry()
    began = threading.Event()

    @works.register
    async def never_end() -> None:
        began.set()
        await trio.sleep_forever()

    async with opened(works, threads) as scheduler:
        task = await scheduler.add_task("never_end", after=0)
        await until(began.is_set)
        assert (await scheduler.interrupt(task.id)).state is TaskState.CANCELLED
        began.clear()
        task = await scheduler.add_task("never_end", after=0, deadline=noon(5))
        await until(began.is_set)
        autojump_clock.jump(5)
        ended = await scheduler.wait(task.id)
        assert ended.state is TaskState.FAILED
        assert ended.done_at == noon(5)
        assert "has passed: the work was cancelled" in (ended.err or "")
        began.clear()
        task = await scheduler.add_task("never_end", after=0)
        await until(began.is_set)
        await scheduler.stop(grace=0)
        stored = await scheduler._repository.get(task.id)
        assert (stored.state, stored.interruptions) == (TaskState.SCHEDULED, 1)


async def test_a_deadline_stops_what_has_not_begun(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    At its deadline a run that waits for the executor has failed, and is never called; one
    that runs goes on, and fails if it raises. A later deadline changes nothing.
    """
    works = WorkRegistry()
    began, gate = threading.Event(), threading.Event()

    @works.register
    def work() -> None:
        began.set()
        gate.wait()
        raise ValueError("no luck")

    works.register("never", never)
    works.register("fine", lambda: None)
    async with opened(works, threads) as scheduler:
        runs = await scheduler.add_task("work", after=0, deadline=noon(7))
        await until(began.is_set)
        waits = [
            await scheduler.add_task(work_id, after=0, deadline=noon(n))
            for n, work_id in ((9, "fine"), (5, "never"), (8, "never"))
        ]
        await until(lambda: scheduler.statistics().running == 4)
        for task, n in ((waits[1], 5), (waits[2], 8)):
            autojump_clock.jump(noon(n).timestamp() - now(scheduler).timestamp())
            ended = await scheduler.wait(task.id)
            assert ended.done_at == noon(n)
            assert "the work was not started" in (ended.err or "")
        assert (await scheduler.get(runs.id)).state is TaskState.DISPATCHED
        gate.set()
        ended = await scheduler.wait(runs.id)
        assert "has passed: the work was cancelled" in (ended.err or "")
        assert "no luck" in (ended.err or "")
        ended = await scheduler.wait(waits[0].id)
        assert ended.state is TaskState.DONE


async def test_deadlines_follow_a_wall_clock_that_is_set(
    mock_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    If the wall clock is set ahead, a deadline is noticed at the next look at it.
    """
    works = WorkRegistry()
    began = threading.Event()
    moment = [NOON]

    @works.register
    async def never_end() -> None:
        began.set()
        await trio.sleep_forever()

    clock = SystemClock(30.0, read=lambda: moment[0])
    async with opened(works, threads, clock=clock) as scheduler:
        task = await scheduler.add_task("never_end", after=0, deadline=noon(3_600))
        await until(began.is_set)
        moment[0] = noon(3_600)
        mock_clock.jump(30)
        ended = await scheduler.wait(task.id)
        assert "has passed: the work was cancelled" in (ended.err or "")


async def test_deadlines_of_the_past_are_forgotten(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    Of runs that have ended long before their deadlines nothing is kept.
    """
    works = WorkRegistry()
    works.register("work", lambda: None)
    dispatcher = ExecutorDispatcher(works, threads)
    async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
        for n in range(200):
            task = await scheduler.add_task("work", after=0, deadline=noon(1e8 + n))
            await scheduler.wait(task.id)
        assert len(dispatcher._bounds) <= 66
        autojump_clock.jump(1e9)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert not dispatcher._bounds
    assert scheduler.statistics().done == 200


@pytest.mark.parametrize("fails", ["no", "cancelled", "late"])
async def test_a_time_out_counts_from_the_call(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor, fails: str
) -> None:
    """
    An async work is cancelled when its time-out is over; what a plain function returns
    stands, and what it raises too late is the time-out's fault.
    """
    works = WorkRegistry()

    @works.register(timeout=0.01)
    async def slow() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if fails == "late":
                raise ValueError("on its way out") from None
            raise

    @works.register(timeout=0.01)
    def plain() -> None:
        time.sleep(0.02)
        if fails != "no":
            raise ValueError("no luck")

    @works.register(timeout=3600)
    def quick() -> None:
        raise ValueError("by itself")

    async with opened(works, threads) as scheduler:
        ended = {}
        for work_id in ("slow", "plain", "quick"):
            task = await scheduler.add_task(work_id, after=0)
            ended[work_id] = await scheduler.wait(task.id)
    late = "WorkTimeoutError: the work was cancelled after its timeout of 0.01 s"
    assert (ended["slow"].err or "").startswith(late)
    assert ("on its way out" in (ended["slow"].err or "")) is (fails == "late")
    if fails == "no":
        assert ended["plain"].state is TaskState.DONE
    else:
        assert (ended["plain"].err or "").startswith(late)
    assert (ended["quick"].err or "").startswith("ValueError: by itself")


async def test_a_shutdown_puts_back_what_has_not_begun(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    When the scheduler is cancelled, what waits for the executor is scheduled again, and
    what runs is waited for.
    """
    works = WorkRegistry()
    began, gate = threading.Event(), threading.Event()

    @works.register
    def work(n: int) -> None:
        assert n == 0
        began.set()
        gate.wait()

    async with opened(works, threads) as scheduler:
        await scheduler.add_tasks(
            [at(0, f"t{n}", "work", param={"n": n}) for n in range(3)]
        )
        await until(lambda: began.is_set() and scheduler.statistics().running == 3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.stop, 0)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert scheduler.statistics().state == "stopping"
            gate.set()
        found = await scheduler._repository.find(TaskQuery())
    states = {task.id: (task.state, task.interruptions) for task in found}
    assert states == {
        "t0": (TaskState.DONE, 0),
        "t1": (TaskState.SCHEDULED, 1),
        "t2": (TaskState.SCHEDULED, 1),
    }


async def test_what_is_claimed_as_it_ends_is_put_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A run that is started when the dispatcher has ended, or the deadline is there, has not
    begun.
    """
    works = WorkRegistry()
    works.register("work", lambda: None)
    dispatcher = ExecutorDispatcher(works, Manual())
    with pytest.raises(WorkStoppedError) as caught:
        dispatcher._start_run(
            Task(id="t", work_id="work", scheduled_at=NOON, created_at=NOON)
        )
    error = caught.value
    late = attrs.evolve(run_of("work"), deadline=noon(5))
    async with open_scheduler(works, dispatcher=dispatcher, clock=TrioClock(NOON)):
        await trio.sleep(5)
        with pytest.raises(DeadlineExceededError) as exceeded:
            dispatcher._start_run(late)
    assert not exceeded.value.started
    assert (error.reason, error.started) == (StopReason.SHUTDOWN, False)


# -- an executor that is lost -------------------------------------------------------


class Replacing(PartialHooks):
    """Gives a dispatcher another executor when the one it has is lost."""

    def __init__(self, *others: Executor) -> None:
        self.dispatcher: Any = None
        self.others = list(others)
        self.errors: list[Exception] = []

    async def on_dispatch_error(self, error: Exception, action: HookAction) -> HookAction:
        self.errors.append(error)
        if not self.others:
            return action
        self.dispatcher.executor = self.others.pop()
        return HookAction.RETRY


async def test_a_broken_pool_fails_its_runs_and_is_replaced(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    When a process of a pool dies, the attempt has failed, which its `Retry` says what
    becomes of; a hook is told, and may give another pool.
    """
    log = tmp_path / "log"
    with processes() as first, processes() as second:
        hooks = Replacing(second)
        hooks.dispatcher = ExecutorDispatcher(WORKS, first)
        async with open_scheduler(
            executor_works.works, dispatcher=hooks.dispatcher, hooks=hooks
        ) as scheduler:
            task = await scheduler.add_task("die_and_retry", {"file": str(log)}, after=0)
            ended = await scheduler.wait(task.id)
        assert (ended.state, ended.attempt, ended.retries) == (TaskState.DONE, 2, 1)
        broken = (
            "WorkLostError: the run was lost: its executor has broken, BrokenProcessPool: "
        )
        assert ended.errors[0].err.startswith(broken)
        [error] = hooks.errors
        assert isinstance(error, ExecutorLostError)
        assert isinstance(error.__cause__, concurrent.futures.BrokenExecutor)
        lines = [line.split() for line in log.read_text().splitlines()]
        assert [attempt for attempt, _ in lines] == [f"{task.id}-1", f"{task.id}-2"]
        assert lines[0][1] != lines[1][1]
        assert hooks.dispatcher.executor is second


@pytest.mark.parametrize("at_most_once", [False, True])
async def test_an_executor_that_was_shut_down_takes_nothing(
    autojump_clock: trio.testing.MockClock, at_most_once: bool
) -> None:
    """
    If the executor was shut down, what is due goes back to scheduled, and the error is
    for the hooks: raised, if none decides otherwise. Nothing is taken a second time.
    """
    works = WorkRegistry()
    works.register("work", lambda: None, at_most_once=at_most_once)
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    hooks = Replacing()
    repository = HeapRepository()
    with bounded(), pytest.raises(ExceptionGroup) as caught:
        async with opened(works, pool, repository=repository, hooks=hooks) as scheduler:
            await scheduler.add_task("work", after=0, id="t")
            await trio.sleep_forever()
    assert caught.group_contains(ExecutorLostError, match="cannot schedule new futures")
    assert len(hooks.errors) == 1
    found = await repository.get("t")
    assert (found.state, found.attempt) == (TaskState.SCHEDULED, 1)


async def test_what_is_lost_meanwhile_is_not_claimed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    While the dispatcher waits for a task to fall due, its executor may break: then that
    task is not claimed.
    """
    works = WorkRegistry()
    works.register("work", lambda: None)
    broken, other = Manual(), Manual()
    hooks = Replacing(other)
    hooks.dispatcher = ExecutorDispatcher(works, broken)
    async with open_scheduler(works, dispatcher=hooks.dispatcher, hooks=hooks) as scheduler:
        first = await scheduler.add_task("work", after=0)
        await until(lambda: bool(broken.waiting))
        for _ in range(10):
            await trio.lowlevel.checkpoint()  # it waits for the next
        broken.waiting[0][0].set_exception(concurrent.futures.BrokenExecutor("broken"))
        assert (await scheduler.wait(first.id)).state is TaskState.FAILED
        second = await scheduler.add_task("work", after=5)
        await trio.sleep(5)
        await until(lambda: bool(other.waiting))
        await other.run_all()
        ended = await scheduler.wait(second.id)
    assert (ended.state, ended.attempt, len(hooks.errors)) == (TaskState.DONE, 1, 1)


async def test_an_executor_that_refuses_for_another_reason(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What else an executor raises at a submission is how that run has ended.
    """

    class Picky(Executor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            raise OSError("too many")

    works = WorkRegistry()
    works.register("work", lambda: None)
    with bounded():
        async with opened(works, Picky()) as scheduler:
            task = await scheduler.add_task("work", after=0)
            ended = await scheduler.wait(task.id)
    assert (ended.err or "").startswith("OSError: too many")


@pytest.mark.parametrize("error", [OSError("no process"), ValueError("no luck")])
async def test_what_is_queued_although_its_run_has_failed(
    autojump_clock: trio.testing.MockClock, error: Exception
) -> None:
    """
    A pool that can start no process may have the call in its queue all the same: the run
    has failed, and what is left in the queue does nothing.
    """

    class Exhausted(Manual):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            super().submit(*args, **kwargs)
            if len(self.waiting) == 1:
                raise error
            return self.waiting[-1][0]

    works = WorkRegistry()
    works.register("work", lambda: ran.append(1), retry=Retry(2, wait=fixed(1)))
    ran: list[int] = []
    executor = Exhausted()
    async with opened(works, executor) as scheduler:
        task = await scheduler.add_task("work", after=0)
        await until(lambda: len(executor.waiting) == 1)
        await trio.sleep(1)
        await until(lambda: len(executor.waiting) == 2)
        await executor.run_all()
        ended = await scheduler.wait(task.id)
    assert (ended.state, ended.attempt) == (TaskState.DONE, 2)
    assert str(error) in ended.errors[0].err
    assert ran == [1]


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("path", [False, True])
async def test_what_has_begun_is_not_refused(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, path: bool, ended: bool
) -> None:
    """
    A call that a thread has begun, when its pool cannot start another, is the run: what
    becomes of it is told, and it is not called again.
    """
    log = tmp_path / "log"
    go = tmp_path / "go"

    class Exhausted(Executor):
        def submit(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
            self, fn: Callable[..., Any], /
        ) -> Future[Any]:
            began.append(threads.submit(fn))
            if ended:
                go.touch()
                began[-1].result()
            while not log.exists():
                time.sleep(0.001)
            raise RuntimeError("can't start new thread")

    began: list[Future[Any]] = []
    works = executor_works.works
    executor = Exhausted()
    with ThreadPoolExecutor(1) as threads, bounded():
        dispatcher = ExecutorDispatcher(WORKS if path else works, executor)
        hooks = PartialHooks(on_dispatch_error=ignore)
        async with open_scheduler(works, dispatcher=dispatcher, hooks=hooks) as scheduler:
            param = {"began": str(log), "until": str(go)}
            task = await scheduler.add_task("wait", param, after=0)
            await until(lambda: bool(began))
            go.touch()
            done = await scheduler.wait(task.id)
    assert (done.state, done.attempt) == (TaskState.DONE, 1)
    assert len(log.read_text().splitlines()) == 1


async def ignore(error: Exception, action: HookAction) -> HookAction:
    return HookAction.IGNORE if isinstance(error, ExecutorLostError) else action


async def test_a_pool_that_can_start_no_process_runs_nothing_twice(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A call that a pool of processes has queued, and then could start no process for, is not
    made by the others: its run has failed.
    """
    log, go = tmp_path / "log", tmp_path / "go"
    works = executor_works.works
    with processes(2) as pool:
        inside: Any = pool
        spawn = inside._spawn_process

        def fail() -> None:
            inside._spawn_process = spawn
            time.sleep(0.1)  # as long as the pool needs to take the call from its queue
            raise OSError("no more processes")

        async with open_scheduler(
            works, dispatcher=ExecutorDispatcher(WORKS, pool)
        ) as scheduler:
            param = {"began": str(log), "until": str(go)}
            busy = await scheduler.add_task("wait", param, after=0)
            await until(log.exists)
            inside._spawn_process = fail
            task = await scheduler.add_task("take_note", {"file": str(log)}, after=0)
            failed = await scheduler.wait(task.id)
            go.touch()
            assert (await scheduler.wait(busy.id)).state is TaskState.DONE
            for n in range(4):  # whatever is queued has been taken from the queue by then
                other = await scheduler.add_task("double", {"number": n}, after=0)
                assert (await scheduler.wait(other.id)).result == 2 * n
    assert (failed.err or "").startswith("OSError: no more processes")
    assert len(log.read_text().splitlines()) == 1


class Sending(Executor):
    """Pickles what it is given, as it is submitted, and maybe in another thread."""

    def __init__(self, *, refuses: bool, thread: bool) -> None:
        self.refuses = refuses
        self.thread = thread

    def submit(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, fn: Callable[..., Any], /
    ) -> Future[Any]:
        future: Future[Any] = Future()
        if self.thread:
            with ThreadPoolExecutor(1) as other:
                sent = other.submit(pickle.dumps, fn).result()
        else:
            sent = pickle.dumps(fn)
        if self.refuses:
            raise RuntimeError("no more")
        future.set_result(pickle.loads(sent)())  # noqa: S301 (our own)
        return future


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("refuses", [False, True])
async def test_an_executor_that_sends_at_once(
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    refuses: bool,
    thread: bool,
) -> None:
    """
    A run whose call was sent is lost if the executor refuses it then: it may have begun.
    An executor that waits until it is sent need not wait for ever.
    """
    monkeypatch.setattr(_executor_order, "PATIENCE", 0.01)
    works = executor_works.works
    executor = Sending(refuses=refuses, thread=thread)
    with bounded():
        async with open_scheduler(
            works,
            dispatcher=ExecutorDispatcher(WORKS, executor),
            hooks=PartialHooks(on_dispatch_error=ignore),
        ) as scheduler:
            task = await scheduler.add_task("double", {"number": 1}, after=0)
            ended = await scheduler.wait(task.id)
    if refuses:
        assert (ended.err or "").startswith("WorkLostError: the run was lost: its executor")
        assert "RuntimeError: no more" in (ended.err or "")
    else:
        assert ended.result == 2


async def test_an_executor_that_turns_out_to_run_works_elsewhere(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Of a registry that cannot be sent it is said what to give instead.
    """
    works = executor_works.works
    executor = Sending(refuses=False, thread=False)
    with bounded():
        async with opened(works, executor) as scheduler:
            task = await scheduler.add_task("double", {"number": 1}, after=0)
            ended = await scheduler.wait(task.id)
    assert (ended.err or "").startswith("TypeError: works: must be the import path")


def test_a_call_that_fails_by_itself_is_told_all_the_same() -> None:
    """
    A call that was refused and has begun ends, whatever it raises before it calls a work.
    """

    def fail() -> Landed:
        raise LookupError("no such work")

    order = _executor_order.Order(fail)
    landed = order()
    assert not order.withdraw()
    future = order.future()
    assert future is not None
    assert future.result() is landed
    assert isinstance(landed.payload, LookupError)


def test_a_call_that_was_withdrawn_is_sent_as_nothing() -> None:
    """
    What is sent of a call that was withdrawn calls nothing.
    """
    order = _executor_order.far_order("x", WORKS, run_of("double", number=1), 0.0)
    assert pickle.loads(pickle.dumps(order))() == Landed("value", 2)  # noqa: S301 (our own)
    assert not order.withdraw()
    order = _executor_order.far_order("x", WORKS, run_of("double", number=1), 0.0)
    assert order.withdraw()
    assert pickle.loads(pickle.dumps(order))() == Landed("refused")  # noqa: S301 (our own)


async def test_an_executor_that_refuses_what_it_has_queued(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A pool that can start no thread may have the call in its queue all the same: the run
    goes back, and what is left in the queue does nothing.
    """

    class Exhausted(Manual):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            super().submit(*args, **kwargs)
            raise RuntimeError("can't start new thread")

    works = WorkRegistry()
    works.register("work", lambda: ran.append(1))
    ran: list[int] = []
    executor, other = Exhausted(), Manual()
    hooks = Replacing(other)
    hooks.dispatcher = ExecutorDispatcher(works, executor)
    async with open_scheduler(works, dispatcher=hooks.dispatcher, hooks=hooks) as scheduler:
        task = await scheduler.add_task("work", after=0)
        await until(lambda: bool(other.waiting))
        await executor.run_all()
        assert ran == []
        await other.run_all()
        assert (await scheduler.wait(task.id)).state is TaskState.DONE
    assert ran == [1]


async def test_runs_that_somebody_else_cancels_go_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What an executor lets go, shut down with `cancel_futures`, goes back to scheduled.
    """
    works = WorkRegistry()
    works.register("work", lambda: None)
    executor = Manual()
    async with opened(works, executor) as scheduler:
        task = await scheduler.add_task("work", after=0)
        await until(lambda: bool(executor.waiting))
        executor.waiting.pop()[0].cancel()
        await until(lambda: bool(executor.waiting))
        again = await scheduler.get(task.id)
        assert (again.attempt, again.interruptions) == (2, 1)
        await executor.run_all()
        assert (await scheduler.wait(task.id)).state is TaskState.DONE


# -- what comes back ----------------------------------------------------------------


async def test_what_a_work_wants_comes_back_from_a_process(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    `Snooze`, `Retry.after`, a failure with a `Retry`, and `Discard` do in a process what
    they do here; results come back, and errors tell where they were raised.
    """
    log = tmp_path / "log"
    with processes() as pool:
        dispatcher = ExecutorDispatcher(WORKS, pool)
        async with open_scheduler(
            executor_works.works, dispatcher=dispatcher, clock=TrioClock(NOON, 0.0)
        ) as scheduler:
            task = await scheduler.add_task("turns", {"log": str(log)}, after=0)
            ended = await scheduler.wait(task.id)
            assert (ended.state, ended.attempt, ended.retries) == (TaskState.FAILED, 4, 2)
            assert ended.done_at == noon(5 + 7 + 1)
            assert (ended.err or "").startswith("Discard: enough")
            assert 'raise Discard("enough")' in (ended.err or "")
            failed = [each.err.splitlines()[0] for each in ended.errors]
            assert failed == ["RetryAfter: 0:00:07", "ValueError: no luck"]

            task = await scheduler.add_task("double", {"number": 21}, after=0)
            assert (await scheduler.wait(task.id)).result == 42

            for work_id, kind, words in (
                ("raise_unpicklable", "UnpicklableError: cannot be sent", "of type lock"),
                ("raise_unreadable", "UnreadableError: cannot be read", "be put together"),
            ):
                task = await scheduler.add_task(work_id, after=0)
                ended = await scheduler.wait(task.id)
                err = ended.err or ""
                assert f"ForeignError: executor_works.{kind} (which could" in err
                assert words in err
                assert ended.retries == 1  # as its class is what `retry_on` names
            task = await scheduler.add_task("retain_lock", after=0)
            ended = await scheduler.wait(task.id)
            assert (ended.err or "").startswith("what the work returned cannot be kept")
            for work_id in ("leave", "leave_a_nursery"):
                task = await scheduler.add_task(work_id, after=0)
                ended = await scheduler.wait(task.id)
                assert ended.state is TaskState.FAILED
                assert "ForeignError: builtins.SystemExit" in (ended.err or "")
            task = await scheduler.add_task("return_lock", after=0)
            assert (await scheduler.wait(task.id)).state is TaskState.DONE
            # The pool is as good as ever.
            task = await scheduler.add_task("double", {"number": 4}, after=0)
            assert (await scheduler.wait(task.id)).result == 8


def run_of(work_id: str, task_id: str = "t", **param: Any) -> Task:
    return Task(
        id=task_id, work_id=work_id, param=param, scheduled_at=NOON, created_at=NOON
    )


def test_a_call_by_path_tells_what_it_did() -> None:
    """
    What is called in another process comes back as what can be sent from there.
    """

    def call(work_id: str, path: str = WORKS, **param: Any) -> Landed:
        return call_by_path("x", path, run_of(work_id, **param).to_json())

    assert call("double", number=3) == Landed("value", 6)
    assert call("return_lock") == Landed("value", None)
    assert call("give_much") == Landed("value", None)
    unkept = call("retain_lock")
    assert isinstance(unkept.payload, Unkept)
    for work_id, path, kind in (
        ("raise_unpicklable", WORKS, ForeignError),
        ("raise_unreadable", WORKS, ExceptionGroup),
        ("no such work", WORKS, LookupError),
        ("double", "executor_works:nowhere", ImportError),
        ("double", "executor_works:not_here", TypeError),
        ("double", WORKS, TypeError),
    ):
        landed = call(work_id, path)
        error = came_back(landed)
        assert isinstance(error, kind)
        [note] = error.__notes__
        assert note.startswith("In its process:\n")
        assert "in call_by_path" not in note


def came_back(landed: Landed) -> BaseException:
    """What has become of an error that was sent from another process."""
    assert landed.left == "apart"
    return put_together(pickle.loads(pickle.dumps(landed)).payload)  # noqa: S301 (our own)


def test_a_group_is_sent_in_parts() -> None:
    """
    What is in a group comes back for itself, and a Ctrl-C as one that was elsewhere.
    """
    run = run_of("leave", by="BaseExceptionGroup")
    group = came_back(call_by_path("x", CONFORMANCE_WORKS, run.to_json()))
    assert isinstance(group, ExceptionGroup)
    assert group.message == "group"
    [interrupt] = group.exceptions
    assert isinstance(interrupt, ForeignError)
    assert interrupt.kinds[0] == "builtins.KeyboardInterrupt"


def test_a_work_cannot_pretend_to_have_been_stopped() -> None:
    """
    A `WorkStoppedError` of the work's own, or a leaked cancellation in a group, is a
    failure like others.
    """
    works = WorkRegistry()

    @works.register
    def pretend() -> None:
        raise WorkStoppedError(StopReason.INTERRUPT)

    async def cancelled() -> BaseException:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.sleep_forever()
            except trio.Cancelled as error:
                return error
        raise AssertionError

    @works.register
    async def leak() -> None:
        raise BaseExceptionGroup("group", [await cancelled(), ValueError("x")])

    @works.register
    async def leak_only() -> None:
        raise BaseExceptionGroup("group", [await cancelled()])

    def error(work_id: str) -> BaseException:
        landed = call_here("x", works.get(work_id), run_of(work_id), None)
        assert landed.left == "error"
        raised: BaseException = landed.payload
        return raised

    assert isinstance(error("pretend"), RuntimeError)
    assert isinstance(error("leak_only"), LeakedCancelledError)
    rest = error("leak")
    assert isinstance(rest, ExceptionGroup)
    assert [type(each) for each in rest.exceptions] == [ValueError]


def test_a_run_that_is_stopped_before_it_is_called_is_refused() -> None:
    """
    A call that finds its run stopped does not call the work. Of the stopped that never
    come, the latest are remembered.
    """
    works = WorkRegistry()
    called: list[str] = []
    works.register("plain", lambda: called.append("plain"))

    async def work() -> None:
        called.append("async")

    works.register("async", work)
    key = "x"
    for work_id in ("plain", "async"):
        calls.stop(key)
        landed = call_here(key, works.get(work_id), run_of(work_id), None)
        assert landed == Landed("refused")
        again = call_here(key, works.get(work_id), run_of(work_id), None)
        assert again.left == "value"
    assert called == ["plain", "async"]
    for n in range(calls.REMEMBERED + 5):
        calls.stop(f"x{n}")
    assert len(calls._stopped) == calls.REMEMBERED
    assert "x4" not in calls._stopped
    calls._stopped.clear()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_process_that_is_forked_off_can_run_works() -> None:
    """
    In a process that is forked off while a run is looked up nothing waits for that, and no
    run is known.
    """
    calls._stopped["x"] = None
    under_way: Any = None
    calls._under_way["y"] = under_way
    with calls._lock:
        child = os.fork()
        if not child:
            known = calls._stopped or calls._under_way
            ok = not known and calls._lock.acquire(timeout=5)
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    calls._forget()
    assert not calls._stopped
    assert not calls._under_way


def test_what_a_condition_has_spent_is_no_time_for_the_work() -> None:
    """
    The time-out of a work is that of its condition, too: there is what that has left.
    """
    works = WorkRegistry()
    works.register("sleep", sleep_long, timeout=3_600)

    @works.register(timeout=3_600)
    def fail() -> None:
        raise ValueError("no luck")

    for work_id, spent, kind in (
        ("sleep", 3_599.99, WorkTimeoutError),
        ("fail", 3_600, WorkTimeoutError),
        ("fail", 1_800, ValueError),
    ):
        landed = call_here("x", works.get(work_id), run_of(work_id), None, spent)
        assert type(landed.payload) is kind
    run = run_of("sleep_in_time")
    order = _executor_order.far_order("x", WORKS, run, 3_599.99)
    sent = pickle.loads(pickle.dumps(order))  # noqa: S301 (our own)
    assert isinstance(came_back(sent()), WorkTimeoutError)


async def sleep_long() -> None:
    """For so long, in real time, as the time-out would have to be waited for."""
    await trio.sleep(PATIENCE)


@pytest.mark.parametrize("path", [False, True])
async def test_a_work_has_what_its_condition_has_left(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor, path: bool
) -> None:
    """
    A work is cancelled when its condition and itself have taken its time-out, together;
    also if it is found by its path.
    """
    works = WorkRegistry()

    @works.condition
    async def slow(schedule: Schedule, last: Task | None) -> bool:
        await trio.sleep(3_599.99)
        return True

    works.register("sleep_in_time", sleep_long, timeout=3_600)
    dispatcher = ExecutorDispatcher(works, threads)
    if path:
        dispatcher._path = WORKS
    async with open_scheduler(
        works, dispatcher=dispatcher, clock=TrioClock(NOON, 0.0)
    ) as scheduler:
        await scheduler.add_schedule(
            "s", Interval(1e6, anchor=NOON), "sleep_in_time", when="slow"
        )
        await trio.sleep(1e6 + 3_600)
        [task] = await scheduler.find(TaskQuery(states={TaskState.FAILED}))
    assert (task.err or "").startswith("WorkTimeoutError")


async def test_a_work_may_be_called_where_trio_runs() -> None:
    """
    An executor that calls where it is asked, in a Trio program, can run async works.
    """
    landed = call_here("x", conformance_works.get("echo"), run_of("echo"), None)
    assert landed == Landed("value", None)


async def test_works_see_nothing_of_the_scheduler(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    In a work there is `current_task`, and no `current_scheduler`: that is of another loop.
    """
    works = WorkRegistry()

    @works.register
    async def work() -> None:
        assert current_task().id == "t"
        with pytest.raises(RuntimeError, match="a work in a process,"):
            current_scheduler()

    async with opened(works, threads) as scheduler:
        await scheduler.add_task("work", after=0, id="t")
        ended = await scheduler.wait("t")
    assert ended.state is TaskState.DONE, ended.err


def test_an_end_that_nobody_asked_for() -> None:
    """
    A run that was stopped where it ran, and not from here, is lost.
    """

    class Nothing(InFlightDispatcher):
        pass

    dispatcher = Nothing(WorkRegistry(), 1)
    flight = Flight(run_of("work"))
    ended = dispatcher._outcome(flight, Landed("stopped"))
    assert isinstance(ended, outcome.Error)
    assert isinstance(ended.error, WorkLostError)
    with pytest.raises(NotImplementedError):
        dispatcher._launch(flight)
    with pytest.raises(NotImplementedError):
        dispatcher._stop(flight)


# -- conditions ---------------------------------------------------------------------


async def test_conditions_are_asked_in_trio(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    A condition is asked before the work is called, in the scheduler's loop: it may put
    the run off, skip it, or fail.
    """
    works = WorkRegistry()
    ran: list[str] = []
    answers: list[Any] = [True, Snooze(3), ValueError("broken"), True, False, True]

    @works.condition
    async def says(schedule: Schedule, last: Task | None) -> Any:
        assert current_scheduler() is scheduler
        assert current_task().when == "says"
        await trio.sleep(1)
        answer = answers.pop(0)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    @works.register
    def work() -> None:
        assert current_task().when == "says"
        ran.append(current_task().id)

    async with opened(works, threads) as scheduler:
        await scheduler.add_schedule("s", Interval(100, anchor=NOON), "work", when="says")
        await trio.sleep(550)
        found = await scheduler.find(TaskQuery(schedule_ids={"s"}))
    states = [task.state.value for task in found]
    assert states == ["done", "failed", "done", "cancelled", "done", "scheduled"]
    assert ran == [found[0].id, found[2].id, found[4].id]
    assert found[0].done_at == noon(101)


@pytest.mark.parametrize(
    "how", ["interrupt", "deadline", "time-out", "stop", "cancel", "leave"]
)
async def test_a_run_may_be_stopped_while_its_condition_is_asked(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor, how: str
) -> None:
    """
    While a condition is asked, a run is bound by deadline and time-out, and can be
    stopped; then its work does not begin.
    """
    works = WorkRegistry()
    asked = trio.Event()

    @works.condition
    async def slow(schedule: Schedule, last: Task | None) -> bool:
        asked.set()
        if how == "leave":
            raise KeyboardInterrupt
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if how == "interrupt":
                raise ValueError("on its way out") from None
            raise
        return True

    works.register("never", never, timeout=9 if how == "time-out" else 20)

    repository = HeapRepository()

    async def main(scope: trio.CancelScope) -> None:
        async with opened(works, threads, repository=repository) as scheduler:
            await scheduler.add_schedule(
                "s",
                Interval(100, anchor=NOON),
                "never",
                when="slow",
                deadline_after=7 if how == "deadline" else None,
            )
            await asked.wait()
            states = {TaskState.DISPATCHED}
            [task] = await scheduler.find(TaskQuery(schedule_ids={"s"}, states=states))
            if how == "interrupt":
                await scheduler.interrupt(task.id)
            elif how == "stop":
                await scheduler.stop(0)
            elif how == "cancel":
                scope.cancel()
            else:
                await scheduler.wait(task.id)

    with trio.CancelScope() as scope:
        if how == "leave":
            with pytest.raises(BaseExceptionGroup) as caught:
                await main(scope)
            assert caught.group_contains(KeyboardInterrupt)
        else:
            await main(scope)
    [first, *_] = await repository.find(TaskQuery(schedule_ids={"s"}))
    states = {
        "interrupt": (TaskState.CANCELLED, None),
        "stop": (TaskState.SCHEDULED, None),
        "cancel": (TaskState.SCHEDULED, None),
        "deadline": (TaskState.FAILED, noon(107)),
        "time-out": (TaskState.FAILED, noon(109)),
        "leave": (TaskState.FAILED, noon(100)),
    }
    assert (first.state, first.done_at) == states[how]
    words = {"deadline": "was not started", "time-out": "timeout of 9", "leave": "Keyboard"}
    assert words.get(how, "") in (first.err or "")


# -- progress -----------------------------------------------------------------------


async def test_progress_is_recorded_from_threads(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    What a work tells of its progress is seen while it runs, and the last of it is there
    before the run has ended.
    """
    works = WorkRegistry()
    gate = threading.Event()

    @works.register
    def work() -> None:
        report_progress(0.25, "began")
        gate.wait()
        for n in range(100):
            report_progress(0.5 + n / 200)
        report_progress(1, "all of it")

    @works.register
    async def work_async() -> None:
        report_progress(0.5)

    async with opened(works, threads) as scheduler:
        task = await scheduler.add_task("work", after=0)
        seen: list[Any] = []
        while not seen:
            progress = (await scheduler.get(task.id)).progress
            seen += [] if progress is None else [progress]
        assert (seen[0].fraction, seen[0].note) == (0.25, "began")
        gate.set()
        ended = await scheduler.wait(task.id)
        assert ended.progress is not None
        assert (ended.progress.fraction, ended.progress.note) == (1.0, "all of it")
        task = await scheduler.add_task("work_async", after=0)
        ended = await scheduler.wait(task.id)
        assert ended.progress is not None
        assert ended.progress.fraction == 0.5


async def test_progress_of_a_lost_run_is_dropped(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    A run that has lost its task can tell what it likes, and harms nobody.
    """
    works = WorkRegistry()
    gate = threading.Event()
    began = threading.Event()

    @works.register
    def work() -> None:
        began.set()
        gate.wait()
        report_progress(0.25)

    async with opened(works, threads) as scheduler:
        task = await scheduler.add_task("work", after=0)
        await until(began.is_set)
        run = await scheduler.get(task.id)
        await scheduler._repository.revert(run)  # by somebody else
        gate.set()
        ended = await scheduler.wait(task.id)
    assert (ended.state, ended.attempt) == (TaskState.DONE, 2)


async def test_progress_that_is_told_at_the_end_is_let_go(
    autojump_clock: trio.testing.MockClock, threads: ThreadPoolExecutor
) -> None:
    """
    When the dispatcher is stopped, what is not recorded yet keeps no run from ending.
    """
    works = WorkRegistry()
    began, gate = threading.Event(), threading.Event()

    @works.register
    def work() -> None:
        began.set()
        gate.wait()
        report_progress(0.5)

    dispatcher = ExecutorDispatcher(works, threads)
    repository = HeapRepository()

    async def open_gate() -> None:
        await until(lambda: not dispatcher._serving)
        gate.set()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with open_scheduler(works, repository, dispatcher) as scheduler:
                await scheduler.add_task("work", after=0, id="t")
                await until(began.is_set)
                nursery.start_soon(open_gate)
                scope.cancel()
    ended = await repository.get("t")
    assert (ended.state, ended.progress) == (TaskState.DONE, None)


@pytest.mark.parametrize("listens", [False, True])
async def test_progress_of_runs_that_nobody_records(
    autojump_clock: trio.testing.MockClock, listens: bool
) -> None:
    """
    Where there is no scheduler, or it does not come to record what is told, runs end all
    the same, each once.
    """
    works = WorkRegistry()
    works.register("work", lambda: report_progress(0.5))
    telling = trio.Event()

    class Busy:
        async def progress(self, fraction: float, note: str | None = None) -> None:
            telling.set()
            await trio.sleep_forever()

    results: list[str] = []

    class Results:
        def send_nowait(self, value: TaskResult, /) -> None:
            results.append(value.run.id)

    executor = Manual()
    dispatcher = ExecutorDispatcher(works, executor)
    token = running_scheduler.set(Busy()) if listens else None  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with trio.open_nursery() as nursery:
        await dispatcher.start(nursery, Results(), TrioClock(NOON))
        for task_id in "abc":
            dispatcher._start_run(run_of("work", task_id))
        await executor.run_all()
        if listens:
            await telling.wait()
            assert results == []
            dispatcher.cancel(run_of("work", "a"), StopReason.INTERRUPT)
            nursery.cancel_scope.cancel()
        else:
            await until(lambda: len(results) == 3)
            nursery.cancel_scope.cancel()
    assert sorted(results) == ["a", "b", "c"]
    if token is not None:
        running_scheduler.reset(token)


async def test_progress_is_told_otherwise_in_the_scheduler_s_own_loop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work that runs in the scheduler's own loop, or in a thread of that, is told how it can
    tell of its progress: as it then does.
    """
    works = WorkRegistry()
    told: list[str] = []

    def refused() -> None:
        with pytest.raises(RuntimeError, match="executors and on Dask") as caught:
            report_progress(0.5)
        told.append(str(caught.value).partition(": here, ")[2])

    @works.register
    async def in_trio() -> None:
        refused()
        await current_scheduler().progress(0.25)

    @works.register
    def in_thread() -> None:
        refused()
        trio.from_thread.run(current_scheduler().progress, 0.5)

    async with open_scheduler(works) as scheduler:
        for work_id, fraction in (("in_trio", 0.25), ("in_thread", 0.5)):
            task = await scheduler.add_task(work_id, after=0)
            progress = (await scheduler.wait(task.id)).progress
            assert progress is not None
            assert progress.fraction == fraction
    assert told == [
        "await current_scheduler().progress(...)",
        "trio.from_thread.run(current_scheduler().progress, ...)",
    ]


def test_progress_may_be_told_inside_works_only() -> None:
    """
    Where nothing can be told, that is said; and a value that cannot be used is refused.
    """
    with pytest.raises(RuntimeError, match="inside a work that an executor runs"):
        report_progress(0.5)
    with pytest.raises(InvalidTaskError, match="fraction"):
        report_progress(2)
    error = came_back(call_by_path("x", WORKS, run_of("tell", until="x").to_json()))
    assert isinstance(error, RuntimeError)
    assert "this executor brings back nothing before the work has ended" in str(error)


def test_progress_is_told_from_inside_a_work() -> None:
    """
    Where there is no work, nor a scheduler, an error says what it is for.
    """
    words = "report_progress.. is for use inside a work that an executor runs"
    with pytest.raises(RuntimeError, match=words):
        report_progress(0.5)
