"""Over stores that take their time after the effect, as one in threads does.

What is in such a store runs ahead of what the scheduler knows: between the two anything
can happen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import attrs
import outcome
import pytest
import trio
import trio.testing
from stores import ListStore
from support import NOON, Bench, TroubledRepository, at, noon, open_bench, stored

from trio_gokugen import (
    AlreadyDispatchedError,
    HeapRepository,
    HookAction,
    InvalidTaskError,
    PartialHooks,
    PassThroughHooks,
    RepositoryError,
    Scheduler,
    SchedulerAlreadyRunningError,
    SchedulerNotRunningError,
    Task,
    TaskState,
    TimedRepository,
    TrioClock,
    WorkerPoolDispatcher,
    WorkRegistry,
    open_scheduler,
)
from trio_gokugen._ledger import Ledger
from trio_gokugen._observers import Observers
from trio_gokugen._update_loop import UpdateLoop
from trio_gokugen.abc import (
    ANY_TASK,
    CancelTask,
    ClaimTasks,
    EndTask,
    Operation,
    RecoverAction,
    RevertTask,
    TaskFilter,
    TaskResult,
    UpdateTask,
)


class SlowRepository(HeapRepository):
    """Carries out at once, and answers a second later, whoever is cancelled."""

    def __init__(self, seconds: float = 1, kind: type[Operation] | None = None) -> None:
        super().__init__()
        self.seconds = seconds
        self.kind = kind

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        outcomes = await super().apply(operations)
        if self.kind is None or any(isinstance(each, self.kind) for each in operations):
            with trio.CancelScope(shield=True):
                await trio.sleep(self.seconds)
        return outcomes


class HastyRepository(HeapRepository):
    """Does not yield while it applies, though it should."""

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        applying = super().apply(operations)
        applying.send(None)
        try:
            applying.send(outcome.Value(None))  # at once what Trio would, a step later
        except StopIteration as end:
            outcomes: Sequence[outcome.Outcome[Any]] = end.value
            return outcomes
        raise AssertionError("more than one checkpoint")


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
async def test_a_claim_that_lands_after_the_cancellation(
    autojump_clock: trio.testing.MockClock, how: str
) -> None:
    """
    A claim that was written as the scheduler was cancelled, or stopped without grace,
    fails no task: those it claimed go back to scheduled.
    """
    repository = SlowRepository(5, ClaimTasks)
    with trio.move_on_after(2 if how == "cancelled" else 1000):
        async with open_bench(repository, grace=0) as (scheduler, _):
            await scheduler.add_tasks([at(1, "a", "sleep"), at(1, "b", "sleep")])
            await trio.sleep(2)
            if how == "cancelled":
                await trio.sleep_forever()
    for task in repository.store.snapshot():
        assert (task.state, task.attempt, task.interruptions) == (TaskState.SCHEDULED, 1, 1)


async def test_an_error_on_the_way_out_fails_no_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work that raises as the scheduler is cancelled from outside goes back to scheduled,
    as it does when the scheduler stops.
    """
    works = WorkRegistry()

    @works.register
    async def rude() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ConnectionError("lost")

    repository = HeapRepository()
    with trio.move_on_after(5):
        async with open_scheduler(works, repository) as scheduler:
            await scheduler.add_task("rude", after=0, id="a")
            await trio.sleep_forever()
    assert (await repository.get("a")).state is TaskState.SCHEDULED


async def test_drain_and_interrupt_wait_for_a_claim_under_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    While a claim is in the store, and not yet noted, `drain` goes on waiting, and an
    interruption finds the run.
    """
    repository = SlowRepository(3)
    async with open_bench(repository) as (scheduler, bench):
        await scheduler.add_tasks([at(10, "a", "sleep"), at(10, "b", "sleep")])
        await trio.sleep_until(11)
        assert (await repository.get("a")).state is TaskState.DISPATCHED
        assert bench.log == []
        with pytest.raises(AlreadyDispatchedError):
            await scheduler.cancel("a")
        assert (await scheduler.interrupt("a")).state is TaskState.CANCELLED
        await scheduler.drain()
        assert (await repository.get("b")).state is TaskState.DONE

        await scheduler.add_tasks([at(200, "c", "sleep")])
        await trio.sleep_until(201)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.interrupt, "c")
            nursery.start_soon(scheduler.drain)
        assert (await repository.get("c")).state is TaskState.CANCELLED


async def test_drain_over_a_hasty_store(autojump_clock: trio.testing.MockClock) -> None:
    """
    A claim that is through as `drain` wakes keeps it waiting, though nothing is pending
    any more and no batch comes between.
    """
    for _ in range(20):  # as Trio's order is random
        repository = HastyRepository()
        await repository.add([stored(f"t{n}", seconds=-n) for n in range(30)])
        async with open_bench(repository, max_workers=3) as (scheduler, bench):
            await scheduler.drain()
            assert scheduler.statistics().done == 30
            assert len(bench.log) == 30


async def test_everything_over_a_slow_store(autojump_clock: trio.testing.MockClock) -> None:
    """
    Over a slow store every task runs once, those due together in few batches.
    """
    repository = SlowRepository(0.5)
    async with open_bench(repository, max_workers=5) as (scheduler, bench):
        await scheduler.add_tasks(
            [at(n // 10, str(n), "sleep", param={"seconds": 1}) for n in range(60)]
        )
        await scheduler.drain()
    assert sorted(bench.ids(), key=int) == [str(n) for n in range(60)]
    assert {task.attempt for task in repository.store.snapshot()} == {1}


async def test_a_batch_that_cannot_even_be_made(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If the clock, the dispatcher or the store break their word, the error leaves `run`, and
    nobody waits for ever.
    """

    class BrokenClock(TrioClock):
        broken = False

        def now(self) -> Any:
            if self.broken:
                raise ArithmeticError("no time")
            return super().now()

    class ForgetfulRepository(HeapRepository):
        broken = False

        async def apply(
            self, operations: Sequence[Operation]
        ) -> Sequence[outcome.Outcome[Any]]:
            outcomes = await super().apply(operations)
            return outcomes[1:] if self.broken else outcomes

    clock = BrokenClock(NOON, 0.0)
    repository = ForgetfulRepository()
    for culprit in (clock, repository):
        bench = Bench()
        refused = False

        scheduler = Scheduler(
            bench.works, repository, WorkerPoolDispatcher(bench.works), clock=clock
        )

        async def ask(scheduler: Scheduler = scheduler) -> None:
            nonlocal refused
            with pytest.raises(SchedulerNotRunningError):
                await scheduler.cancel("a")
            refused = True

        async with trio.open_nursery() as callers:
            error = ArithmeticError if culprit is clock else ValueError
            with pytest.RaisesGroup(error, flatten_subgroups=True):
                async with trio.open_nursery() as nursery:
                    await nursery.start(scheduler.run)
                    culprit.broken = True
                    callers.start_soon(ask)
                    await trio.sleep_forever()
            culprit.broken = False
        assert refused


async def test_a_dispatcher_that_cannot_tell_who_is_free(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An error of the dispatcher's own, as a claim is made, goes to `on_dispatch_error`.
    """

    class Confused(WorkerPoolDispatcher):
        confused = True

        def _free(self) -> int:
            if self.confused:
                self.confused = False
                raise ArithmeticError("how many?")
            return super()._free()

    errors: list[Exception] = []

    async def retry(error: Exception, action: HookAction) -> HookAction:
        errors.append(error)
        return HookAction.RETRY

    bench = Bench()
    pool = Confused(bench.works)
    pool.confused = False
    hooks = PartialHooks(on_dispatch_error=retry)
    async with open_scheduler(
        bench.works, None, pool, hooks=hooks, clock=TrioClock(NOON, 0)
    ) as scheduler:
        await scheduler.add_tasks([at(5, "a")])
        await trio.testing.wait_all_tasks_blocked()
        pool.confused = True
        await scheduler.drain()
    assert [str(error) for error in errors] == ["how many?"]
    assert bench.log == [("a", 5.0)]


async def test_a_hook_that_retries_at_once_keeps_nobody_from_running(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A hook that asks for a retry without waiting leaves room for others.
    """

    class Failing(HeapRepository):
        failing = True

        async def recover(
            self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
        ) -> list[Task]:
            if self.failing:
                raise RepositoryError("down")
            return await super().recover(action, at, only)

        async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
            if self.failing:
                raise RepositoryError("down")
            return await super().wait_until_due(only)

    async def retry(*_: Any) -> HookAction:
        return HookAction.RETRY

    hooks = PartialHooks(on_get_next_error=retry, on_update_error=retry)
    repository = Failing()

    async def heal() -> None:
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        repository.failing = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(heal)
        async with open_bench(repository, hooks=hooks) as (scheduler, bench):
            repository.failing = True
            nursery.start_soon(heal)
            await scheduler.add_task("note", after=0, id="a")
            await scheduler.drain()
    assert bench.log == [("a", 0.0)]


async def test_hooks_during_recovery_may_call_the_scheduler(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A hook that is asked while tasks are being recovered may use the scheduler.
    """
    repository = TroubledRepository()
    bench = Bench()
    answers: list[Task] = []

    async def fail_once() -> None:
        repository.before_recover = None
        raise RepositoryError("down")

    async def add(*_: Any) -> HookAction:
        answers.append(await scheduler.add_task("note", after=0, id="a"))
        return HookAction.RETRY

    repository.before_recover = fail_once
    scheduler = Scheduler(
        bench.works,
        repository,
        WorkerPoolDispatcher(bench.works),
        PartialHooks(on_update_error=add),
        clock=TrioClock(NOON, 0),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        await scheduler.drain()
        await scheduler.stop()
    assert bench.log == [("a", 0.0)]
    assert len(answers) == 1


async def test_recovered_tasks_are_counted_and_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Tasks that are failed at the start are told to the hooks, and counted, as others are.
    """
    repository = HeapRepository()
    await repository.add([stored("a", state=TaskState.DISPATCHED, attempt=1)])
    told: list[str] = []

    async def done(task: Task) -> None:
        told.append(task.id)

    hooks = PartialHooks(on_task_done=done)
    async with open_bench(repository, recover="fail", hooks=hooks) as (scheduler, _):
        assert scheduler.statistics().failed == 1
    assert told == ["a"]


async def test_a_refused_start_leaves_no_scheduler_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A scheduler whose repository serves another says so, and then is as stopped as before.
    """
    bench = Bench()
    repository = HeapRepository()
    async with open_scheduler(bench.works, repository):
        second = Scheduler(bench.works, repository, WorkerPoolDispatcher(bench.works))
        for _ in range(2):
            with pytest.raises(SchedulerAlreadyRunningError):
                await second.run()
            assert second.statistics().state == "stopped"
            with pytest.raises(SchedulerNotRunningError):
                await second.add_task("note", after=0)


async def test_a_work_registered_while_the_loop_sleeps(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work that is registered while the loop sleeps for another's task runs on time.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_task("note", after=1000, id="far")
        await trio.testing.wait_all_tasks_blocked()
        bench.works.register("late", bench.note)
        await scheduler.add_task("late", after=5, id="near")
        await scheduler.drain()
    assert bench.log == [("near", 5.0), ("far", 1000.0)]


@pytest.mark.parametrize("task_id", [7, None, ["a"], "", "\0"])
async def test_ids_of_the_wrong_type(
    autojump_clock: trio.testing.MockClock, task_id: Any
) -> None:
    """
    What cannot be an id is refused at the call, by every call that takes one.
    """
    async with open_bench() as (scheduler, _):
        calls: list[Callable[[Any], Any]] = [
            scheduler.get,
            scheduler.wait,
            scheduler.cancel,
            scheduler.interrupt,
            scheduler.update,
        ]
        for call in calls:
            with pytest.raises(InvalidTaskError) as caught:
                await call(task_id)
            assert caught.value.field == "task_id"
        with pytest.raises(TypeError, match="query"):
            await scheduler.find({"states": 1})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_hooks_are_looked_at_when_they_are_given() -> None:
    """
    Hooks of which one is missing, or is no async function, are refused with its name.
    """

    @attrs.define
    class Half(PassThroughHooks):
        on_update: Any = None

    works = WorkRegistry()
    for hooks in (Half(), object(), Half(on_update=print)):
        with pytest.raises(TypeError, match=r"hooks\.on_"):
            Scheduler(works, HeapRepository(), WorkerPoolDispatcher(works), hooks)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_stop_called_by_a_work_and_by_a_hook(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work, or a hook, that stops its scheduler is cancelled with the others, and the
    scheduler stops in good order; it does not wait long for a hook that waits for it.
    """
    works = WorkRegistry()

    @works.register
    async def suicide() -> None:
        await scheduler.stop(5)

    async def stop(task: Task) -> None:
        await scheduler.stop(math.inf)

    for by_hook in (False, True):
        start = trio.current_time()
        bench = Bench(works=works) if not by_hook else Bench()
        repository = HeapRepository()
        scheduler = Scheduler(
            bench.works,
            repository,
            WorkerPoolDispatcher(bench.works),
            PartialHooks(on_task_done=stop) if by_hook else None,
            clock=TrioClock(NOON),
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            await scheduler.add_task("sleep", {"seconds": 3}, after=0, id="a")
            if not by_hook:
                await scheduler.add_task("suicide", after=1, id="b")
        assert scheduler.statistics().state == "stopped"
        assert trio.current_time() - start == (8.0 if by_hook else 6.0)
        assert (await repository.get("a")).state is TaskState.DONE


async def test_a_result_that_is_written_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A store that breaks its word, and raises though it has written, costs a warning: the
    task ends once, and who waits for it is told.
    """
    repository = TroubledRepository()
    apply = repository.store.apply
    lost = False

    async def lose_the_answer(operations: Sequence[Operation]) -> Any:
        nonlocal lost
        outcomes = await apply(operations)
        if not lost and any(isinstance(each, EndTask) for each in operations):
            lost = True
            raise RepositoryError("connection lost")
        return outcomes

    async def retry(*_: Any) -> HookAction:
        return HookAction.RETRY

    repository.store.apply = lose_the_answer  # type: ignore[method-assign]
    hooks = PartialHooks(on_update_error=retry)
    async with open_bench(repository, hooks=hooks) as (scheduler, bench):
        await scheduler.add_task("note", at=noon(5), id="a")
        assert (await scheduler.wait("a")).state is TaskState.DONE
    assert lost
    assert bench.log == [("a", 5.0)]


async def test_two_runs_of_one_task(autojump_clock: trio.testing.MockClock) -> None:
    """
    If a task is taken back behind the scheduler's back, and claimed anew while its first
    run goes on, each run is on its own, and the later one counts.
    """
    repository = HeapRepository()
    async with open_bench(repository) as (scheduler, bench):
        await scheduler.add_tasks([at(0, "a", "sleep")])
        await trio.sleep(10)
        await repository.revert(await repository.get("a"))
        ended = await scheduler.wait("a")
        assert trio.current_time() == 70.0
        assert scheduler.statistics().running == 0
    assert bench.starts == [("a", 0.0), ("a", 10.0)]
    assert (ended.state, ended.attempt, ended.done_at) == (TaskState.DONE, 2, noon(70))


async def test_a_settled_result_is_not_kept_for_the_last_write() -> None:
    """
    Of a batch that broke off, only results that were not noted yet are written again.
    """
    ledger = Ledger()
    loop = UpdateLoop(
        WorkRegistry(),
        HeapRepository(),
        TrioClock(NOON),
        PassThroughHooks(),
        Observers(None, []),
        ledger,
        WorkerPoolDispatcher(WorkRegistry()),
    )
    settled, other = (
        TaskResult(stored(each, state=TaskState.DISPATCHED), outcome.Value(None))
        for each in ("a", "b")
    )
    ledger.claimed([other.run], 0.0)
    loop._release([settled, other])
    assert loop._unwritten == [other]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
async def test_a_simple_store_that_fails_within_a_claim(
    autojump_clock: trio.testing.MockClock, fails_at: int
) -> None:
    """
    Of a claim in the middle of which a store without transactions fails, what was taken
    is run; the rest is claimed once the store works.
    """

    class Failing(ListStore):
        calls = 0

        async def mark_dispatched(
            self, task_id: str, at: datetime, *, at_most_once: bool = False
        ) -> Task:
            self.calls += 1
            if self.calls == fails_at:
                raise RepositoryError("down")
            return await super().mark_dispatched(task_id, at, at_most_once=at_most_once)

    async def retry(*_: Any) -> HookAction:
        return HookAction.RETRY

    repository = TimedRepository(Failing())
    hooks = PartialHooks(on_dispatch_error=retry)
    async with open_bench(repository, hooks=hooks) as (scheduler, bench):
        await scheduler.add_tasks([at(5, str(n)) for n in range(3)])
        await scheduler.drain()
        assert {task.attempt for task in await scheduler.find()} == {1}
    assert sorted(bench.log) == [("0", 5.0), ("1", 5.0), ("2", 5.0)]


async def test_a_claim_that_lands_after_the_grace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What a claim brings that is under way when the grace is over is put back, and does not
    hold the scheduler up.
    """
    repository = SlowRepository(10, ClaimTasks)
    async with open_bench(repository, grace=1, max_workers=2) as (scheduler, bench):
        await scheduler.add_tasks([at(0, "a", "stubborn", param={"seconds": 40})])
        await scheduler.add_tasks([at(15, "b", "sleep", param={"seconds": 100_000})])
        await trio.sleep_until(16)
    assert trio.current_time() == 50.0
    assert bench.ids() == ["a"]
    b = await repository.get("b")
    assert (b.state, b.attempt, b.interruptions) == (TaskState.SCHEDULED, 1, 1)


async def test_drain_is_answered_if_the_scheduler_ends_as_it_reads(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Who drains, or waits, while the scheduler ends is told so, though it was just reading.
    """

    class SlowReads(HeapRepository):
        async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
            return await super().get_next(only)

        async def get(self, task_id: str) -> Task:
            await trio.sleep(50)
            return await super().get(task_id)

    refused: list[str] = []

    async def expect(call: Any, *args: Any) -> None:
        with pytest.raises(SchedulerNotRunningError):
            await call(*args)
        refused.append(call.__name__)

    async with trio.open_nursery() as callers:
        async with open_bench(SlowReads(), grace=0) as (scheduler, _):
            await scheduler.add_tasks([at(1000, "a")])
            callers.start_soon(expect, scheduler.drain)
            callers.start_soon(expect, scheduler.wait, "a")
            await trio.sleep(1)
        callers.cancel_scope.deadline = trio.current_time() + 1000
    assert sorted(refused) == ["drain", "wait"]


async def test_waiting_on_a_ledger_that_is_closed() -> None:
    """
    Who begins to wait after everybody was answered is answered, too.
    """
    ledger = Ledger()
    ledger.close()
    await ledger.wait_until(lambda: False)
    with pytest.raises(SchedulerNotRunningError):
        await ledger.watch("a").wait()


async def test_two_updates_that_do_not_go_together(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Of two updates at once, one of the work and one of its param, each of which is right by
    itself, no mixture comes out: one that does not fit any more is refused.
    """
    works = WorkRegistry()

    @works.register
    async def a(x: int) -> None: ...

    @works.register
    async def b(y: int) -> None: ...

    refused: list[str] = []

    async def update(task_id: str, **changes: Any) -> None:
        try:
            assert await scheduler.update(task_id, **changes)
        except InvalidTaskError as error:
            refused.append(error.field)

    async with open_scheduler(works) as scheduler:
        for _ in range(20):
            task = await scheduler.add_task("a", {"x": 1}, after=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(update, task.id, work_id="b", param={"y": 1}))
                nursery.start_soon(partial(update, task.id, param={"x": 2}))
            ended = await scheduler.wait(task.id)
            assert ended.state is TaskState.DONE
            assert (ended.work_id, ended.param) == ("b", {"y": 1})
    assert set(refused) <= {"param"}


async def test_two_updates_that_go_together(autojump_clock: trio.testing.MockClock) -> None:
    """
    Of two updates at once, one of the work and one of its param, none is lost.
    """
    works = WorkRegistry()
    seen: list[tuple[str, int]] = []

    @works.register
    async def a(x: int = 0) -> None:
        seen.append(("a", x))

    @works.register
    async def b(x: int = 0) -> None:
        seen.append(("b", x))

    async with open_scheduler(works) as scheduler:
        for _ in range(20):
            task = await scheduler.add_task("a", after=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(scheduler.update, task.id, work_id="b"))
                nursery.start_soon(partial(scheduler.update, task.id, param={"x": 1}))
            await scheduler.wait(task.id)
    assert seen == [("b", 1)] * 20


async def test_exceptions_that_cannot_be_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work that raises what can hardly be looked at fails, and ends nothing else.
    """
    works = WorkRegistry()

    class UntoldError(Exception):
        @property
        def __notes__(self) -> Any:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
            raise SystemExit

    @works.register
    async def untold() -> None:
        raise UntoldError

    @works.register
    async def deep() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as leaked:
                error: BaseException = leaked
                for _ in range(5000):
                    error = BaseExceptionGroup[Any]("deeper", [error])
                kept.append(error)
        raise kept.pop()

    kept: list[BaseException] = []
    async with open_scheduler(works) as scheduler:
        for work_id in ("untold", "deep"):
            task = await scheduler.add_task(work_id, after=0)
            assert (await scheduler.wait(task.id)).state is TaskState.FAILED


async def test_stop_while_the_last_write_is_made(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Who stops a scheduler that is ending already, cancelled and at its last write, gets back
    when it has ended.
    """
    repository = SlowRepository(3)
    bench = Bench()
    scheduler = Scheduler(
        bench.works, repository, WorkerPoolDispatcher(bench.works), clock=TrioClock(NOON, 0)
    )
    async with trio.open_nursery() as stoppers, trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        await scheduler.add_tasks([at(4, "a", "sleep")])
        await trio.sleep_until(10)
        nursery.cancel_scope.cancel()
        stoppers.cancel_scope.shield = True
        stoppers.start_soon(stop_later, scheduler)
    assert trio.current_time() == 13.0
    assert (await repository.get("a")).state is TaskState.SCHEDULED


async def stop_later(scheduler: Scheduler) -> None:
    await trio.sleep(1)
    await scheduler.stop()
    assert scheduler.statistics().state == "stopped"
    assert trio.current_time() == 13.0


class FailsToCancel(HeapRepository):
    """Can carry out anything but a cancel, and answers claims ten seconds late."""

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        if any(isinstance(each, CancelTask) for each in operations):
            await trio.lowlevel.checkpoint()
            return [outcome.Error(RepositoryError("down")) for _ in operations]
        outcomes = await super().apply(operations)
        if any(isinstance(each, ClaimTasks) for each in operations):
            with trio.CancelScope(shield=True):
                await trio.sleep(10)
        return outcomes


@pytest.mark.parametrize("call", ["drain", "interrupt"])
async def test_a_decision_while_a_batch_is_under_way(
    autojump_clock: trio.testing.MockClock, call: str
) -> None:
    """
    A hook's decision about one batch does not make another one look written.
    """

    async def ignore(*_: Any) -> HookAction:
        await trio.sleep(3)
        return HookAction.IGNORE

    async def cancel() -> None:
        await trio.sleep_until(3)
        with pytest.raises(RepositoryError):
            await scheduler.cancel("none")
        assert trio.current_time() == 6

    hooks = PartialHooks(on_update_error=ignore)
    async with open_bench(FailsToCancel(), hooks=hooks) as (scheduler, bench):
        await scheduler.add_tasks([at(5, "a", "sleep")])  # claimed at 5, told at 15
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            await trio.sleep_until(8)
            if call == "drain":
                await scheduler.drain()
                assert trio.current_time() == 75
            else:
                interrupted = await scheduler.interrupt("a")
                assert interrupted.state is TaskState.CANCELLED
                assert trio.current_time() == 15
    # Interrupted in the step in which it was started, it may not have got to run.
    assert bench.starts in ([("a", 15.0)], [("a", 15.0)] if call == "drain" else [])


async def test_drain_waits_for_what_a_hook_has_in_hand(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An add that failed, and which a hook is going to have retried, is not forgotten.
    """

    async def retry(*_: Any) -> HookAction:
        await trio.sleep(5)
        return HookAction.RETRY

    async def add() -> None:
        await scheduler.add_tasks([at(0, "a")])

    repository = TroubledRepository()
    failed = False

    async def before_apply(operations: Sequence[Operation]) -> None:
        nonlocal failed
        if not failed:
            failed = True
            raise RepositoryError("down")

    repository.before_apply = before_apply
    hooks = PartialHooks(on_update_error=retry)
    async with (
        open_bench(repository, hooks=hooks) as (scheduler, bench),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(add)
        await trio.sleep(1)
        assert scheduler.statistics().queued == 1
        await scheduler.drain()
    assert bench.log == [("a", 5.0)]


class TellsEachApart(HeapRepository):
    """Fails each operation with an error of its own while it is down."""

    down = False
    spared = ""
    """The task that it is not down for."""

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        if not self.down:
            return await super().apply(operations)
        outcomes: list[outcome.Outcome[Any]] = []
        for number, each in enumerate(operations):
            if isinstance(each, EndTask | RevertTask) and each.run.id == self.spared:
                outcomes += await super().apply([each])
            else:
                outcomes.append(outcome.Error(RepositoryError(f"down {number}")))
        await trio.lowlevel.checkpoint()
        return outcomes


async def test_hooks_are_asked_once_for_errors_of_one_kind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A batch that fails operation by operation is one failure for the hooks; who asked gets
    the error of what was asked.
    """
    asked: list[tuple[int, str]] = []

    async def ignore(
        operations: Sequence[Operation], error: Exception, action: HookAction
    ) -> HookAction:
        asked.append((len(operations), str(error)))
        return HookAction.IGNORE

    async def cancel(task_id: str) -> None:
        try:
            await scheduler.cancel(task_id)
        except RepositoryError as error:
            told.append(str(error))

    told: list[str] = []
    repository = TellsEachApart()
    hooks = PartialHooks(on_update_error=ignore)
    async with open_bench(repository, hooks=hooks) as (scheduler, _):
        repository.down = True
        async with trio.open_nursery() as nursery:
            for n in range(4):
                nursery.start_soon(cancel, str(n))
    assert asked == [(4, "down 0")]
    assert sorted(told) == ["down 0", "down 1", "down 2", "down 3"]


@pytest.mark.parametrize("spared", ["", "a", "b"])
async def test_all_that_could_not_be_recorded_is_told(
    autojump_clock: trio.testing.MockClock, spared: str
) -> None:
    """
    The error of the last write counts all the runs that it is about, and has the errors of
    all of them; what was to leave after them leaves with it.
    """
    repository = TellsEachApart()
    works = WorkRegistry()
    everybody_runs = trio.Event()

    @works.register
    async def give_up() -> None:
        await everybody_runs.wait()
        raise SystemExit(3)

    @works.register
    async def go_on() -> None:
        await trio.sleep_forever()

    def told(error: BaseException) -> bool:
        causes = error.__cause__
        assert isinstance(causes, ExceptionGroup)
        return len(causes.exceptions) == lost

    repository.spared = spared
    lost = 2 if spared else 3
    expected: list[Any] = [
        pytest.RaisesExc(RepositoryError, match=f"the outcome of {lost} runs", check=told),
        pytest.RaisesExc(SystemExit),
    ]
    if spared != "a":
        expected.append(pytest.RaisesExc(RepositoryError, match="down 0"))
    with pytest.RaisesGroup(*expected, flatten_subgroups=True):
        clock = TrioClock(NOON, 0.0)
        async with open_scheduler(works, repository, clock=clock) as scheduler:
            await scheduler.add_tasks(
                [at(0, "a", "give_up"), at(0, "b", "go_on"), at(0, "c", "go_on")]
            )
            await trio.testing.wait_all_tasks_blocked()
            repository.down = True
            everybody_runs.set()
            await trio.sleep_forever()


async def test_a_hook_that_updates_what_it_decides_about(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Updates of one task go one at a time, but not behind one that waits for a hook: the hook
    may itself be who asks.
    """
    works = WorkRegistry()
    seen: list[int] = []

    @works.register
    async def see(x: int) -> None:
        seen.append(x)

    async def update_instead(*_: Any) -> HookAction:
        assert await scheduler.update("a", param={"x": 3})
        return HookAction.IGNORE

    repository = TroubledRepository()
    failed = False

    async def before_apply(operations: Sequence[Operation]) -> None:
        nonlocal failed
        if not failed and any(isinstance(each, UpdateTask) for each in operations):
            failed = True
            raise RepositoryError("down")

    repository.before_apply = before_apply
    hooks = PartialHooks(on_update_error=update_instead)
    async with open_scheduler(works, repository, hooks=hooks) as scheduler:
        await scheduler.add_task("see", {"x": 1}, after=5, id="a")
        with pytest.raises(RepositoryError, match="down"):
            await scheduler.update("a", param={"x": 2})
        await scheduler.drain()
    assert seen == [3]
