"""What a worker keeps apart: runs, contexts, cancellations, scopes left open."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from support import (
    NOON,
    Bench,
    TroubledRepository,
    at,
    bounded,
    noon,
    open_bench,
    stored,
)

from trio_gokugen import (
    AlreadyDoneError,
    ExecutorDispatcher,
    HeapRepository,
    NotDispatchedError,
    Scheduler,
    SchedulerAlreadyRunningError,
    StopReason,
    SystemClock,
    Task,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    WorkRegistry,
    WorkStoppedError,
    current_task,
    open_scheduler,
)
from trio_gokugen.abc import ClaimTasks, EndTask, Operation
from trio_gokugen.testing import seeded_order

mood: contextvars.ContextVar[str] = contextvars.ContextVar("mood", default="calm")


async def run_one(works: WorkRegistry, work_id: str, **fields: Any) -> Task:
    async with open_scheduler(works, clock=TrioClock(NOON)) as scheduler:
        task = await scheduler.add_task(work_id, after=0, **fields)
        return await scheduler.wait(task.id)


async def test_contexts_are_kept_apart(autojump_clock: trio.testing.MockClock) -> None:
    """
    A work sees the context that the scheduler was opened in, and nothing of what other
    runs have set, though a worker runs many.
    """
    works = WorkRegistry()
    seen: list[tuple[str, str]] = []

    @works.register
    async def moody() -> None:
        async def inner() -> None:
            seen.append((mood.get(), current_task().id))

        await inner()
        mood.set("wild")
        await trio.lowlevel.checkpoint()
        assert mood.get() == "wild"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inner)

    mood.set("cheerful")
    async with open_scheduler(works, max_workers=1, clock=TrioClock(NOON)) as scheduler:
        mood.set("later")
        for n in range(3):
            await scheduler.add_task("moody", after=n, id=str(n))
        await scheduler.drain()
    assert seen == [(each, str(n)) for n in range(3) for each in ("cheerful", "wild")]


async def leave_open() -> AsyncGenerator[int]:
    with trio.CancelScope():
        while True:
            yield 1


@pytest.mark.parametrize("how", ["generator", "scope", "cancelled"])
async def test_a_scope_left_open_harms_nobody_else(
    autojump_clock: trio.testing.MockClock, how: str
) -> None:
    """
    A work that leaves a cancel scope open fails, and the error says why; the next run is
    not inside that scope.
    """
    works = WorkRegistry()
    kept: list[Any] = []

    @works.register
    async def careless() -> None:
        if how == "generator":
            generator = leave_open()
            kept.append(generator)
            async for _ in generator:
                break
            return
        scope = trio.CancelScope()
        kept.append(scope)
        scope.__enter__()
        if how == "cancelled":
            scope.cancel()
            await trio.lowlevel.checkpoint()

    @works.register
    async def fine() -> None:
        await trio.sleep(1)

    async with open_scheduler(works, max_workers=1) as scheduler:
        careless_task = await scheduler.add_task("careless", after=0)
        fine_task = await scheduler.add_task("fine", after=1)
        ended = await scheduler.wait(careless_task.id)
        assert (await scheduler.wait(fine_task.id)).state is TaskState.DONE
    assert ended.state is TaskState.FAILED
    assert ended.err is not None
    assert "Cancel scope stack corrupted" in ended.err
    if how == "generator":
        await kept[0].aclose()


async def test_a_work_that_swallows_its_cancellation(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work that returns though it was cancelled is done; one that raises something else
    is stopped for the reason it was cancelled for.
    """
    works = WorkRegistry()

    @works.register(timeout=5)
    async def swallow() -> None:
        with contextlib.suppress(trio.Cancelled):
            await trio.sleep_forever()

    @works.register(timeout=5)
    async def turn() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            raise ConnectionError("lost") from None

    @works.register(timeout=5)
    async def group() -> None:
        async def fail() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ConnectionError("lost")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)

    assert (await run_one(works, "swallow")).state is TaskState.DONE
    for work_id in ("turn", "group"):
        ended = await run_one(works, work_id)
        assert ended.state is TaskState.FAILED
        assert ended.err is not None
        assert ended.err.startswith("WorkTimeoutError")
        assert "ConnectionError: lost" in ended.err


async def test_the_first_limit_to_pass_is_named(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    With a deadline and a timeout, the error names the one that passed first, though the
    other passes while the work cleans up.
    """
    works = WorkRegistry()

    async def slow_to_leave() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(100)

    works.register("five", slow_to_leave, timeout=5)
    works.register("fifty", slow_to_leave, timeout=50)
    for work_id, error in (
        ("five", "WorkTimeoutError"),
        ("fifty", "DeadlineExceededError"),
    ):
        start = noon(trio.current_time())
        async with open_scheduler(works, clock=TrioClock(NOON, 0)) as scheduler:
            task = await scheduler.add_task(
                work_id, at=start, deadline=noon(trio.current_time() + 20)
            )
            ended = await scheduler.wait(task.id)
        assert ended.err is not None
        assert ended.err.startswith(error)


async def test_own_errors_within_a_limit(autojump_clock: trio.testing.MockClock) -> None:
    """
    A work with a timeout that fails by itself, or in a group, fails with its own error.
    """
    works = WorkRegistry()

    @works.register(timeout=5)
    async def fail() -> None:
        raise LookupError("mine")

    @works.register(timeout=5)
    async def group() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise LookupError("mine")

    for work_id in ("fail", "group"):
        ended = await run_one(works, work_id)
        assert ended.err is not None
        assert "LookupError: mine" in ended.err
        assert "Timeout" not in ended.err


async def test_a_leaked_cancellation_within_a_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Of a group that mixes a leaked cancellation with an error, the error is what counts.
    """
    works = WorkRegistry()

    leaked: list[BaseException] = []

    @works.register
    async def leak() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                leaked.append(error)
        raise BaseExceptionGroup("both", [*leaked, LookupError("mine")])

    ended = await run_one(works, "leak")
    assert ended.err is not None
    assert ended.err.startswith("ExceptionGroup: both")
    assert "LookupError: mine" in ended.err


async def test_a_sync_function_that_returns_a_coroutine(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A plain function that returns a coroutine fails, instead of ending with nothing done,
    and the coroutine is closed.
    """
    works = WorkRegistry()

    async def real() -> None: ...

    def wrapper() -> Any:
        return real()

    works.register("wrapped", wrapper)
    ended = await run_one(works, "wrapped")
    assert ended.err is not None
    assert "appears to be asynchronous" in ended.err


async def test_threads_are_not_limited_by_trios_own_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    As many plain functions run at a time as there are workers, be it more than 40.
    """
    works = WorkRegistry()
    inside = 0
    all_in = trio.Event()

    def count() -> None:
        nonlocal inside
        inside += 1
        if inside == 60:
            all_in.set()

    @works.register
    def block() -> None:
        trio.from_thread.run_sync(count)
        trio.from_thread.run(all_in.wait)

    async with open_scheduler(works, max_workers=60, clock=TrioClock(NOON)) as scheduler:
        await scheduler.add_tasks([at(0, str(n), "block") for n in range(60)])
        await scheduler.drain()
        assert scheduler.statistics().done == 60


async def test_a_thread_that_asks_sees_its_cancellation(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A plain function that asks is told of its interruption; its slot is free afterwards.
    """
    works = WorkRegistry()
    entered = trio.Event()

    @works.register
    def patient() -> None:
        trio.from_thread.run_sync(entered.set)
        while True:
            trio.from_thread.check_cancelled()

    works.register("partial", functools.partial(patient))
    async with open_scheduler(works, max_workers=1) as scheduler:
        for work_id in ("patient", "partial"):
            entered = trio.Event()
            task = await scheduler.add_task(work_id, after=0)
            await entered.wait()
            assert (await scheduler.interrupt(task.id)).state is TaskState.CANCELLED
        assert scheduler.statistics().running == 0


async def test_a_work_that_is_gone_when_its_task_is_due(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A registry that forgets a work between the claim and the call fails that task.
    """
    bench = Bench()

    class Forgetful(WorkRegistry):
        def get(self, work_id: str) -> Any:
            return WorkRegistry().get(work_id)

    works = Forgetful()
    works.register("note", bench.note)
    repository = HeapRepository()
    await repository.add([stored("a")])
    async with open_scheduler(works, repository, clock=TrioClock(NOON)) as scheduler:
        ended = await scheduler.wait("a")
    assert ended.err is not None
    assert ended.err.startswith("WorkNotFoundError: no work is registered as 'note'")


async def test_a_work_that_is_gone_as_it_returns(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A registry that forgets a work while it runs has its task done; what it returned is
    not kept, as nobody says any more that it is to be.
    """
    gone: list[str] = []

    class Forgetful(WorkRegistry):
        def get(self, work_id: str) -> Any:
            return super().get("nothing" if work_id in gone else work_id)

    works = Forgetful()

    @works.register(retain=True)
    async def give(*, leave: bool) -> int:
        if leave:
            gone.append("give")
        return 1

    async with open_scheduler(works, clock=TrioClock(NOON)) as scheduler:
        results: list[tuple[TaskState, object]] = []
        for leave in False, True:
            task = await scheduler.add_task("give", {"leave": leave}, after=1)
            ended = await scheduler.wait(task.id)
            results.append((ended.state, ended.result))
    assert results == [(TaskState.DONE, 1), (TaskState.DONE, None)]


async def test_a_dispatcher_that_fails_to_start_a_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A run that its dispatcher could not start has failed, and the others start.
    """

    class Picky(WorkerPoolDispatcher):
        def _start_run(self, run: Task) -> None:
            if run.id == "a":
                raise OSError("no such executor")
            super()._start_run(run)

    bench = Bench()
    async with open_scheduler(
        bench.works, dispatcher=Picky(bench.works), clock=TrioClock(NOON)
    ) as scheduler:
        await scheduler.add_tasks([at(0, "a"), at(0, "b")])
        failed = await scheduler.wait("a")
        assert (await scheduler.wait("b")).state is TaskState.DONE
    assert failed.err is not None
    assert failed.err.startswith("OSError: no such executor")


async def test_a_pool_that_shrinks_while_a_claim_is_written(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Of tasks that were claimed for more workers than there are by the time it is written,
    no more run at a time than the pool has now; one that waits can be interrupted.
    """
    repository = TroubledRepository()
    bench = Bench()
    pool = WorkerPoolDispatcher(bench.works, 3)

    async def shrink(operations: Sequence[Operation]) -> None:
        if isinstance(operations[0], ClaimTasks):
            pool.max_workers = 1

    repository.before_apply = shrink
    async with open_scheduler(
        bench.works, repository, pool, clock=TrioClock(NOON)
    ) as scheduler:
        await scheduler.add_tasks(
            [at(0, str(n), "sleep", param={"seconds": 10}) for n in range(3)]
        )
        await trio.sleep(1)
        first = bench.ids()
        waiting = sorted({"0", "1", "2"} - set(first))
        assert len(first) == 1
        assert scheduler.statistics().running == 3
        ended = await scheduler.interrupt(waiting[0])
        assert ended.state is TaskState.CANCELLED
        await scheduler.drain()
    assert bench.starts == [(first[0], 0.0), (waiting[1], 10.0)]


async def test_workers_are_let_go_when_the_pool_shrinks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A pool that has become smaller keeps no more Trio tasks than it has workers.
    """
    bench = Bench()
    pool = WorkerPoolDispatcher(bench.works, 50)
    async with open_scheduler(bench.works, None, pool, clock=TrioClock(NOON)) as scheduler:
        await scheduler.add_tasks([at(0, str(n), "sleep") for n in range(50)])
        await trio.sleep(1)
        pool.max_workers = 2
        await scheduler.drain()
        assert len(pool._idle) <= 2
        assert pool.statistics().running == 0


class WallClock(SystemClock):
    """A wall clock that goes with Trio's, until somebody sets it."""

    def __init__(self) -> None:
        self.ahead = 0.0
        super().__init__(max_sleep=30, read=self._show)

    def _show(self) -> datetime:
        return noon(trio.current_time() + self.ahead)


@pytest.mark.parametrize(("step", "ends"), [(0.0, 100.0), (50.0, 50.0), (-40.0, 140.0)])
async def test_the_wall_clock_is_set_while_a_work_runs(
    autojump_clock: trio.testing.MockClock, step: float, ends: float
) -> None:
    """
    The deadline of a running work follows the wall clock when that is set, noticed after
    at most `max_sleep` seconds.
    """
    bench = Bench()
    clock = WallClock()
    async with open_scheduler(bench.works, clock=clock) as scheduler:
        await scheduler.add_task(
            "sleep", {"seconds": 1000}, after=0, deadline=noon(100), id="a"
        )
        await trio.sleep(10)
        clock.ahead = step
        ended = await scheduler.wait("a")
        assert trio.current_time() == ends
        await trio.sleep(100)  # with no deadline to watch, nobody wakes
    assert bench.log == [("a", 0.0), ("a cancelled", ends)]
    assert ended.state is TaskState.FAILED


@pytest.mark.parametrize("step", [70.0, -70.0])
async def test_the_wall_clock_is_set_while_a_task_waits(
    autojump_clock: trio.testing.MockClock, step: float
) -> None:
    """
    A task follows the wall clock when that is set, in either direction.
    """
    bench = Bench()
    clock = WallClock()
    async with open_scheduler(bench.works, clock=clock) as scheduler:
        await scheduler.add_task("note", at=noon(100), id="a")
        await trio.sleep(10)
        clock.ahead = step
        await scheduler.drain()
    assert bench.log == [("a", 30.0 if step > 0 else 170.0)]


def test_a_run_stopped_before_it_begins_is_not_taken_for_the_last_one() -> None:
    """
    A task that is interrupted between its claim and its first step is cancelled without
    having run, whatever became of the run before it on the same worker.
    """
    seen: set[bool] = set()

    async def play() -> None:
        async with open_bench(max_workers=1) as (scheduler, bench):
            await scheduler.add_task("note", after=0, id="first")
            await scheduler.wait("first")
            await scheduler.add_task("note", after=0, id="second")
            ended: Task | None = None
            while ended is None:
                try:
                    ended = await scheduler.interrupt("second")
                except NotDispatchedError:
                    await trio.lowlevel.checkpoint()
                except AlreadyDoneError:
                    ended = await scheduler.get("second")
            ran = "second" in bench.ids()
            assert ran is (ended.state is TaskState.DONE)
            seen.add(ran)

    for seed in range(60):
        with seeded_order(seed):
            trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))
    assert False in seen


def test_leaving_at_once_after_a_claim() -> None:
    """
    A scheduler that stops without grace as tasks are being claimed counts each run that
    began, and none that did not.
    """

    async def play() -> None:
        repository = HeapRepository()
        async with open_bench(repository, max_workers=2, grace=0) as (scheduler, bench):
            await scheduler.add_tasks([at(n // 2 * 0.25, str(n)) for n in range(12)])
            await trio.sleep(1)
        for task in repository.store.snapshot():
            assert (task.state is TaskState.DONE) is (task.id in bench.ids())

    for seed in range(60):
        with seeded_order(seed):
            trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_pool_may_serve_one_scheduler_after_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A dispatcher whose scheduler has stopped can be given to another.
    """
    bench = Bench()
    pool = WorkerPoolDispatcher(bench.works, 2)
    for n in range(3):
        scheduler = Scheduler(bench.works, HeapRepository(), pool, clock=TrioClock(NOON))
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            await scheduler.add_task("note", after=1, id=str(n))
            await scheduler.drain()
            await scheduler.stop()
    assert bench.ids() == ["0", "1", "2"]


async def test_a_nursery_left_open(autojump_clock: trio.testing.MockClock) -> None:
    """
    A work that abandons a generator with a nursery in it ends the scheduler, as Trio has
    it, but not before its task is recorded as failed: a restart does not run into it again.
    """
    works = WorkRegistry()
    repository = HeapRepository()
    abandoned: list[AsyncGenerator[int]] = []

    async def numbers() -> AsyncGenerator[int]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 3)
            yield 1

    @works.register
    async def first_number() -> None:
        abandoned.append(numbers())
        async for _ in abandoned[0]:
            break

    with pytest.RaisesGroup(
        pytest.RaisesExc(RuntimeError, match="Nursery stack corrupted"),
        flatten_subgroups=True,
    ):
        async with open_scheduler(works, repository) as scheduler:
            await scheduler.add_task("first_number", after=0, id="a")
            await trio.sleep_forever()
    task = await repository.get("a")
    assert task.state is TaskState.FAILED
    assert task.err is not None
    assert "corrupted" in task.err.splitlines()[0]


@pytest.mark.parametrize("bound", ["timeout", "deadline"])
@pytest.mark.parametrize("leaves", ["by the cancellation", "by an error"])
@pytest.mark.parametrize("stop", ["interrupt", "shutdown"])
@pytest.mark.parametrize("stopped_at", [3, 7])
async def test_the_first_to_cancel_is_named(
    autojump_clock: trio.testing.MockClock,
    bound: str,
    leaves: str,
    stop: str,
    stopped_at: float,
) -> None:
    """
    Of a bound at 5 and a stop, both before a work has cleaned up at 10, the earlier counts.
    """
    works = WorkRegistry()
    repository = HeapRepository()

    async def slow_to_leave() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep_until(10)
            if leaves == "by an error":
                raise ValueError("boom")

    works.register("work", slow_to_leave, timeout=5 if bound == "timeout" else None)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, repository, clock=clock) as scheduler:
        deadline = noon(5) if bound == "deadline" else None
        await scheduler.add_task("work", at=noon(), deadline=deadline, id="a")
        await trio.sleep_until(stopped_at)
        if stop == "shutdown":
            await scheduler.stop(grace=0)
        else:
            await scheduler.interrupt("a")
        assert trio.current_time() == 10
    task = await repository.get("a")
    if stopped_at > 5:
        assert task.state is TaskState.FAILED
        assert task.err is not None
        named = "WorkTimeoutError" if bound == "timeout" else "DeadlineExceededError"
        assert task.err.startswith(named)
        assert ("ValueError: boom" in task.err) == (leaves == "by an error")
    elif stop == "interrupt":
        assert task.state is TaskState.CANCELLED
    else:
        assert (task.state, task.interruptions) == (TaskState.SCHEDULED, 1)


async def test_a_pool_whose_works_still_end_serves_nobody_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Works that take their time to end report to their own scheduler: another one cannot
    have the pool before.
    """
    bench = Bench()
    pool = WorkerPoolDispatcher(bench.works, 1)
    repository = HeapRepository()
    first = Scheduler(bench.works, repository, pool, clock=TrioClock(NOON, 0.0))
    second = Scheduler(bench.works, HeapRepository(), pool)
    async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
        await nursery.start(first.run)
        await first.add_tasks([at(0, "a", "stubborn", param={"seconds": 5})])
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
        outer.start_soon(refused_until_the_end, second)
    assert (await repository.get("a")).state is TaskState.DONE
    assert trio.current_time() == 5
    async with trio.open_nursery() as nursery:
        await nursery.start(second.run)
        await second.stop()


async def refused_until_the_end(scheduler: Scheduler) -> None:
    with pytest.raises(SchedulerAlreadyRunningError, match="dispatcher"):
        await scheduler.run()


@pytest.mark.parametrize("cancelled_at", [3, 7])
async def test_a_bound_that_came_before_a_cancellation_from_outside(
    autojump_clock: trio.testing.MockClock, cancelled_at: float
) -> None:
    """
    A time-out at 5 counts if the scheduler is cancelled later, while the work cleans up.
    """
    works = WorkRegistry()
    repository = HeapRepository()

    @works.register(timeout=5)
    async def slow_to_leave() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep_until(10)

    with trio.move_on_at(cancelled_at):
        async with open_scheduler(works, repository) as scheduler:
            await scheduler.add_task("slow_to_leave", after=0, id="a")
            await trio.sleep_forever()
    task = await repository.get("a")
    if cancelled_at < 5:
        assert (task.state, task.interruptions) == (TaskState.SCHEDULED, 1)
    else:
        assert task.state is TaskState.FAILED
        assert task.err is not None
        assert task.err.startswith("WorkTimeoutError")


@pytest.mark.parametrize("limit", [10, None])
async def test_when_a_deadline_fired_stays_known(
    autojump_clock: trio.testing.MockClock, limit: float | None
) -> None:
    """
    A look at the wall clock while a work cleans up does not move the deadline that has
    cancelled it: what comes later is later still.
    """
    works = WorkRegistry()

    async def slow_to_leave() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep_until(100)

    works.register("work", slow_to_leave, timeout=limit)
    clock = SystemClock(max_sleep=30, read=lambda: noon(trio.current_time()))
    async with open_scheduler(works, clock=clock) as scheduler:
        await scheduler.add_task("work", at=noon(), deadline=noon(5), id="a")
        await trio.sleep_until(50)
        task = await scheduler.interrupt("a")
    assert task.state is TaskState.FAILED
    assert task.err is not None
    assert task.err.startswith("DeadlineExceededError")


@pytest.mark.parametrize("reason", list(StopReason))
@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_work_cannot_say_that_it_was_stopped(
    autojump_clock: trio.testing.MockClock, reason: StopReason, in_thread: bool
) -> None:
    """
    A work that raises what tells that a work was stopped has failed, and not been stopped.
    """
    works = WorkRegistry()

    def pretend_in_thread() -> None:
        raise WorkStoppedError(reason)

    async def pretend() -> None:
        raise WorkStoppedError(reason)

    works.register("pretend", pretend_in_thread if in_thread else pretend)
    task = await run_one(works, "pretend")
    assert (task.state, task.attempt) == (TaskState.FAILED, 1)
    assert task.err is not None
    assert task.err.startswith("RuntimeError: the work raised a WorkStoppedError")


@pytest.mark.parametrize("bound", ["timeout", "deadline"])
async def test_where_a_work_was_as_its_time_ran_out(
    autojump_clock: trio.testing.MockClock, bound: str
) -> None:
    """
    Of a work that ran into a bound, `err` tells by which line it was cancelled.
    """
    works = WorkRegistry()

    async def hang_here() -> None:
        await trio.sleep_forever()

    works.register("work", hang_here, timeout=5 if bound == "timeout" else None)
    deadline = noon(5) if bound == "deadline" else None
    async with open_scheduler(works, clock=TrioClock(NOON, 0.0)) as scheduler:
        await scheduler.add_task("work", at=noon(), deadline=deadline, id="a")
        task = await scheduler.wait("a")
    assert task.err is not None
    assert "in hang_here" in task.err
    assert "await trio.sleep_forever()" in task.err


class Indivisible(BaseExceptionGroup[BaseException]):
    def derive(self, excs: Any, /) -> Any:
        raise ArithmeticError("cannot be divided")


async def test_a_group_that_cannot_be_split(autojump_clock: trio.testing.MockClock) -> None:
    """
    A group whose class does not let itself be split is the failure of its work, and of
    nothing else; what is in it leaves if it must.
    """
    works = WorkRegistry()
    repository = HeapRepository()

    @works.register
    async def stopped() -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            raise Indivisible("odd", [cancelled, ValueError(1)]) from None

    @works.register
    async def give_up() -> None:
        raise Indivisible("odd", [SystemExit(3)])

    with pytest.RaisesGroup(pytest.RaisesExc(SystemExit), flatten_subgroups=True):
        async with open_scheduler(works, repository) as scheduler:
            await scheduler.add_task("stopped", after=0, id="a")
            await trio.sleep(1)
            assert (await scheduler.interrupt("a")).state is TaskState.CANCELLED
            await scheduler.add_task("give_up", after=0, id="b")
            await trio.sleep_forever()
    assert (await repository.get("b")).state is TaskState.FAILED


@pytest.mark.parametrize("later", [0.0, 1.0], ids=["at the same moment", "later"])
@pytest.mark.parametrize("where", ["pool", "executor"])
async def test_an_id_is_used_again_while_its_run_goes_on(
    autojump_clock: trio.testing.MockClock, where: str, later: float
) -> None:
    """
    A run that has lost its task goes on beside that of another task, which was added under
    its id: each has its own result, and neither is taken for the other.
    """
    works = WorkRegistry()
    go_on = threading.Event(), threading.Event()
    begun: list[datetime] = []

    @works.register(retain=True)
    def wait() -> int:
        begun.append(current_task().created_at)
        number = len(begun)
        trio_token.run_sync_soon(has_begun[number - 1].set)
        go_on[number - 1].wait()
        return number

    trio_token = trio.lowlevel.current_trio_token()
    has_begun = trio.Event(), trio.Event()
    repository = HeapRepository()
    with ThreadPoolExecutor(2) as threads:
        dispatcher = (
            WorkerPoolDispatcher(works, 2)
            if where == "pool"
            else ExecutorDispatcher(works, threads, max_in_flight=2)
        )
        clock = TrioClock(NOON, 0.0)
        with bounded():
            async with open_scheduler(
                works, repository, dispatcher, clock=clock
            ) as scheduler:
                await scheduler.add_task("wait", after=0, id="nightly")
                await has_begun[0].wait()
                run = await repository.get("nightly")
                # As another scheduler does that has taken the task, in a shared store.
                await repository.apply([EndTask(run, clock.now())])
                assert dispatcher.cancel(run, StopReason.LOST_LEASE)
                await scheduler.delete_ended(before=clock.now() + timedelta(1))
                autojump_clock.jump(later)
                await scheduler.add_task("wait", after=0, id="nightly")
                await has_begun[1].wait()
                go_on[0].set()
                while later and dispatcher.statistics().running == 2:
                    await trio.lowlevel.checkpoint()
                go_on[1].set()
                ended = await scheduler.wait("nightly")
    assert dispatcher.statistics().running == 0
    assert ended.state is TaskState.DONE
    assert ended.result == 2 or not later  # else the two cannot be told apart
    assert begun == [NOON, NOON + timedelta(seconds=later)]
