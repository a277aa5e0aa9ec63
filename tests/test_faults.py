"""Faults that a scheduler of this kind easily has, and that this one must not have.

For each a scenario that shows it; and the fault put back into the library, with which the
scenario must fail. So the scenario is known to look at the right thing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

import attrs
import outcome
import pytest
import trio
import trio.testing
from support import NOON, TroubledRepository, at, noon, open_bench, stored

from trio_gokugen import (
    HeapRepository,
    HookAction,
    PartialHooks,
    RepositoryError,
    Scheduler,
    SchedulerNotRunningError,
    StopReason,
    Task,
    TaskParam,
    TaskState,
    WorkerPoolDispatcher,
    WorkRegistry,
    WorkStoppedError,
    _dispatch_loop,
    _heap_repository,
    _task,
    _transitions,
    _update_loop,
    _worker_pool,
    open_scheduler,
)
from trio_gokugen._heap_repository import HeapStore
from trio_gokugen._observers import Observers
from trio_gokugen._timer import HookTimer
from trio_gokugen._update_queue import UpdateQueue
from trio_gokugen.abc import (
    ANY_TASK,
    ClaimTasks,
    EndTask,
    Operation,
    TaskFilter,
    TaskResult,
)

PutBack = Callable[[pytest.MonkeyPatch], None]


@attrs.frozen
class Fault:
    """What must not be, as a scenario that shows it and a patch that brings it back."""

    name: str
    scenario: Callable[[], Awaitable[None]]
    put_back: PutBack


FAULTS: list[Fault] = []


def fault(put_back: PutBack) -> Callable[[Callable[[], Awaitable[None]]], None]:
    def note(scenario: Callable[[], Awaitable[None]]) -> None:
        FAULTS.append(Fault(getattr(scenario, "__name__", ""), scenario, put_back))

    return note


# -- the loops ---------------------------------------------------------------------------


def _swallow(patch: pytest.MonkeyPatch) -> None:
    async def decide(self: Any, items: Any, error: Exception) -> None:
        await trio.sleep_forever()

    patch.setattr(_update_loop.UpdateLoop, "_decide", decide)


@fault(_swallow)
async def an_error_of_the_update_loop_blocks() -> None:
    repository = TroubledRepository()

    async def fail(_: object) -> None:
        raise RepositoryError("down")

    with pytest.RaisesGroup(
        pytest.RaisesExc(RepositoryError),
        pytest.RaisesExc(RepositoryError),
        flatten_subgroups=True,
    ):
        async with open_bench(repository) as (scheduler, _):
            repository.before_apply = fail
            await scheduler.add_task("note", after=0)


def _forget_callers(patch: pytest.MonkeyPatch) -> None:
    def close(self: UpdateQueue) -> list[TaskResult]:
        self._closed = True
        return [item for item in self._items if isinstance(item, TaskResult)]

    patch.setattr(UpdateQueue, "close", close)


@fault(_forget_callers)
async def callers_hang_when_it_stops() -> None:
    repository = TroubledRepository()
    works = WorkRegistry()
    scheduler = Scheduler(works, repository, WorkerPoolDispatcher(works))

    async def hang(_: object) -> None:
        await trio.sleep_forever()

    async def refused() -> None:
        with pytest.raises(SchedulerNotRunningError):
            await scheduler.delete_ended()

    async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        repository.before_apply = hang
        for _ in range(2):
            callers.start_soon(refused)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


def _one_in_hand(patch: pytest.MonkeyPatch) -> None:
    honest = WorkerPoolDispatcher._free
    patch.setattr(WorkerPoolDispatcher, "_free", lambda self: honest(self) + 1)


@fault(_one_in_hand)
async def a_task_waits_for_a_worker_with_its_fate_sealed() -> None:
    async with open_bench(max_workers=1) as (scheduler, bench):
        await scheduler.add_tasks([at(0, "plug", "sleep"), at(1, "a"), at(2, "b")])
        await trio.sleep(30)
        assert await scheduler.cancel("a")
        assert await scheduler.update("b", scheduled_at=noon(100))
        await scheduler.drain()
    assert bench.starts == [("plug", 0.0), ("b", 100.0)]


def _hooks_in_the_loop(patch: pytest.MonkeyPatch) -> None:
    original = _update_loop.UpdateLoop._write

    async def write(self: Any, items: Any) -> Any:
        failed = await original(self, items)
        while self._observers._events:
            hook, args = self._observers._events.popleft()
            await hook(*args)
        return failed

    async def idle(self: Observers) -> None:
        await trio.sleep_forever()

    patch.setattr(_update_loop.UpdateLoop, "_write", write)
    patch.setattr(Observers, "run", idle)


@fault(_hooks_in_the_loop)
async def a_hook_that_calls_the_scheduler_blocks() -> None:
    async def cancel_other(task: Task) -> None:
        assert await scheduler.cancel("b")

    async with open_bench(hooks=PartialHooks(on_task_done=cancel_other)) as (
        scheduler,
        bench,
    ):
        await scheduler.add_tasks([at(1, "a"), at(50, "b")])
        await scheduler.drain()
    assert bench.log == [("a", 1.0)]


def _late_loop(patch: pytest.MonkeyPatch) -> None:
    original = _update_loop.UpdateLoop.run

    async def run(self: Any, nursery: trio.Nursery) -> None:
        await trio.sleep(5)
        await original(self, nursery)

    patch.setattr(_update_loop.UpdateLoop, "run", run)


@fault(_late_loop)
async def overdue_tasks_meet_a_loop_that_does_not_run_yet() -> None:
    repository = HeapRepository()
    await repository.add([stored("a", seconds=-60)])
    async with open_bench(repository) as (scheduler, bench):
        await scheduler.drain()
    assert bench.log == [("a", 0.0)]


# -- the timer ---------------------------------------------------------------------------


def _deaf_timer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HookTimer, "vanished", lambda self, task_id: None)
    patch.setattr(HookTimer, "appeared", lambda self, tasks: None)


@fault(_deaf_timer)
async def the_timer_keeps_the_old_time() -> None:
    async with open_bench() as (scheduler, bench):
        await scheduler.add_tasks([at(100, "a"), at(200, "b")])
        await trio.sleep(5)
        await scheduler.update("b", scheduled_at=noon(10))
        await scheduler.drain()
    assert bench.log == [("b", 10.0), ("a", 100.0)]


def _stale_minimum(patch: pytest.MonkeyPatch) -> None:
    first: list[datetime] = []

    def cached(self: HookTimer, tasks: Iterable[Task]) -> None:
        moment = min(task.scheduled_at for task in tasks)
        if not first or moment < first[0]:
            first[:] = [moment]
            self.reset()

    patch.setattr(HookTimer, "appeared", cached)


@fault(_stale_minimum)
async def after_the_queue_was_empty_nothing_wakes() -> None:
    async with open_bench() as (scheduler, bench):
        await trio.testing.wait_all_tasks_blocked()  # somebody must be asleep already
        await scheduler.add_task("note", after=5, id="a")
        await scheduler.drain()
        await trio.testing.wait_all_tasks_blocked()
        await scheduler.add_task("note", after=5, id="b")
        await scheduler.drain()
    assert bench.log == [("a", 5.0), ("b", 10.0)]


def _event_after_reading(patch: pytest.MonkeyPatch) -> None:
    async def wait_until_due(self: HookTimer, only: TaskFilter = ANY_TASK) -> Task:
        assert self._clock is not None
        while True:
            head = await self._store.get_next(only)
            sleeper = _timer_sleeper(head)
            self._sleepers[sleeper] = None
            try:
                if head is not None and head.scheduled_at <= self._clock.now():
                    return head
                await self._sleep(self._clock, sleeper)
            finally:
                del self._sleepers[sleeper]

    patch.setattr(HookTimer, "wait_until_due", wait_until_due)


def _timer_sleeper(head: Task | None) -> Any:
    from trio_gokugen._timer import _Sleeper  # noqa: PLC0415

    return _Sleeper(ANY_TASK, reading=False, head=head)


@fault(_event_after_reading)
async def a_mutation_during_the_read_is_lost() -> None:
    repository = HeapRepository()
    read = repository.store.get_next
    slow = False

    async def get_next(only: TaskFilter = ANY_TASK) -> Task | None:
        found = await read(only)
        if slow:
            await trio.sleep(2)
        return found

    repository.store.get_next = get_next  # type: ignore[method-assign]
    async with open_bench(repository) as (scheduler, bench):
        await scheduler.add_tasks([at(50, "late")])
        await trio.testing.wait_all_tasks_blocked()
        slow = True
        await scheduler.add_tasks([at(40, "again")])  # makes it read once more
        await trio.sleep(1)
        await scheduler.add_tasks([at(10, "soon")])
        await trio.sleep(5)
        slow = False
        await scheduler.drain()
    assert bench.log == [("soon", 10.0), ("again", 40.0), ("late", 50.0)]


def _never_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_dispatch_loop, "IGNORED_PAUSE", float("inf"))


@fault(_never_again)
async def after_an_ignored_error_the_timer_is_never_armed() -> None:
    repository = TroubledRepository()

    async def fail_once() -> None:
        repository.before_wait = None
        raise RepositoryError("down")

    async def ignore(*_: Any) -> HookAction:
        return HookAction.IGNORE

    repository.before_wait = fail_once
    async with open_bench(repository, hooks=PartialHooks(on_get_next_error=ignore)) as (
        scheduler,
        bench,
    ):
        await scheduler.add_task("note", after=5, id="a")
        await scheduler.drain()
    assert bench.log == [("a", 5.0)]


# -- runs --------------------------------------------------------------------------------


def _start_before_the_claim(patch: pytest.MonkeyPatch) -> None:
    original = _update_loop.UpdateLoop._write

    async def write(self: Any, items: Any) -> Any:
        for item in items:
            start = getattr(item, "start", None)
            head = None if start is None else await self._repository.get_next()
            if start is not None and head is not None:
                start(head)
        return await original(self, items)

    patch.setattr(_update_loop.UpdateLoop, "_write", write)


@fault(_start_before_the_claim)
async def work_starts_though_its_claim_failed() -> None:
    repository = TroubledRepository()
    failures = 0

    async def fail_three_times(operations: Sequence[Operation]) -> None:
        nonlocal failures
        if isinstance(operations[0], ClaimTasks) and failures < 3:
            failures += 1
            raise RepositoryError("down")

    async def ignore(*_: Any) -> HookAction:
        return HookAction.IGNORE

    repository.before_apply = fail_three_times
    async with open_bench(repository, hooks=PartialHooks(on_dispatch_error=ignore)) as (
        scheduler,
        bench,
    ):
        await scheduler.add_task("note", after=0, id="a")
        await scheduler.drain()
    assert bench.log == [("a", 3.0)]


def _stopped_is_done(patch: pytest.MonkeyPatch) -> None:
    def recording(
        run: Task, ended: outcome.Outcome[Any], works: object, now: datetime
    ) -> Operation:
        if isinstance(ended, outcome.Error):
            return EndTask(run, now, "context canceled")
        return EndTask(run, now)

    patch.setattr(_update_loop, "recording", recording)


@fault(_stopped_is_done)
async def interrupted_work_is_recorded_as_ended() -> None:
    repository = HeapRepository()
    async with open_bench(repository, grace=0) as (scheduler, _):
        await scheduler.add_task("sleep", after=0, id="a")
        await trio.sleep(5)
    assert (await repository.get("a")).state is TaskState.SCHEDULED


def _lost_in_dispatch(patch: pytest.MonkeyPatch) -> None:
    async def finish(self: Any) -> None:
        self.queue.close()

    patch.setattr(_update_loop.UpdateLoop, "finish", finish)


@fault(_lost_in_dispatch)
async def interrupted_work_stays_dispatched() -> None:
    repository = HeapRepository()
    with trio.move_on_after(5):
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_task("sleep", after=0, id="a")
            await trio.sleep_forever()
    assert (await repository.get("a")).state is TaskState.SCHEDULED


def _any_cancellation_is_ours(patch: pytest.MonkeyPatch) -> None:
    def last_outcome(worker: Any, result: Any, left: Any) -> outcome.Outcome[Any]:
        return outcome.Error(WorkStoppedError(StopReason.INTERRUPT))

    patch.setattr(_worker_pool, "_last_outcome", last_outcome)


@fault(_any_cancellation_is_ours)
async def a_leaked_cancellation_is_taken_for_ours() -> None:
    works = WorkRegistry()
    leaked: list[trio.Cancelled] = []

    @works.register
    async def leak() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as error:
                leaked.append(error)
        raise leaked[0]

    async with open_scheduler(works) as scheduler:
        await scheduler.add_task("leak", after=0, id="a")
        await trio.sleep(5)
        task = await scheduler.get("a")
    assert (task.state, task.attempt) == (TaskState.FAILED, 1)
    assert task.err is not None
    assert task.err.startswith("LeakedCancelledError: ")


def _whatever_is_done(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        _update_loop, "recording", lambda run, ended, works, now: EndTask(run, now)
    )


@fault(_whatever_is_done)
async def a_failed_work_counts_as_done() -> None:
    async with open_bench() as (scheduler, _):
        await scheduler.add_task("fail", after=0, id="a")
        assert (await scheduler.wait("a")).state is TaskState.FAILED


def _burn_unknown(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_dispatch_loop.DispatchLoop, "_known", lambda self, only: only)


@fault(_burn_unknown)
async def a_task_of_an_unknown_work_is_burned() -> None:
    repository = HeapRepository()
    await repository.add([stored("a", "other"), stored("b")])
    async with open_bench(repository) as (scheduler, _):
        await scheduler.wait("b")
        await trio.sleep(5)
        assert (await scheduler.get("a")).state is TaskState.SCHEDULED


def _late_all_the_same(patch: pytest.MonkeyPatch) -> None:
    original = _transitions.dispatched

    def dispatched(task: Task, at: datetime) -> Task:
        taken = original(_task.evolve(task, {"deadline": None}), at)
        return _task.evolve(taken, {"deadline": task.deadline})

    patch.setattr(_transitions, "dispatched", dispatched)


@fault(_late_all_the_same)
async def a_deadline_that_has_passed_still_starts_the_work() -> None:
    async with open_bench(max_workers=1) as (scheduler, _):
        await scheduler.add_tasks([at(0, "plug", "sleep"), at(1, "a", deadline=noon(2))])
        ended = await scheduler.wait("a")
    assert (ended.state, ended.attempt) == (TaskState.FAILED, 0)


def _by_moment_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_heap_repository, "find_order", lambda task: (task.scheduled_at,))


@fault(_by_moment_only)
async def pages_lose_tasks_of_one_moment() -> None:
    async with open_bench() as (scheduler, _):
        await scheduler.add_tasks([at(99, str(n)) for n in range(10)])
        found: list[Task] = []
        while page := await scheduler.find(limit=3, after=found[-1] if found else None):
            found += page
        assert len(found) == 10


def _report_and_keep(patch: pytest.MonkeyPatch) -> None:
    original = HeapStore._delete_ended

    def delete_ended(self: HeapStore, operation: Any) -> list[str]:
        deleted = original(self, operation)
        return [*deleted, "running"]

    patch.setattr(HeapStore, "_delete_ended", delete_ended)


@fault(_report_and_keep)
async def deleting_reports_what_it_did_not_delete() -> None:
    async with open_bench() as (scheduler, _):
        await scheduler.add_tasks([at(0, "ended"), at(0, "running", "sleep")])
        await trio.sleep(1)
        assert await scheduler.delete_ended() == ["ended"]
        assert [task.id for task in await scheduler.find()] == ["running"]


def _keep_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HeapStore, "_keep", lambda self, task_id: None)


@fault(_keep_all)
async def ended_tasks_are_never_freed() -> None:
    async with open_bench(HeapRepository(keep_ended=3)) as (scheduler, _):
        await scheduler.add_tasks([at(n, str(n)) for n in range(10)])
        await scheduler.drain()
        assert [task.id for task in await scheduler.find()] == ["7", "8", "9"]


def _share_parameters(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(_task._CHECKS, "param", lambda value, field: value)
    checks = tuple(
        (f, (lambda v, _: v) if f == "param" else c) for f, c in _task._PARAM_CHECKS
    )
    patch.setattr(_task, "_PARAM_CHECKS", checks)


@fault(_share_parameters)
async def a_stored_task_shares_the_callers_parameters() -> None:
    param: dict[str, Any] = {"seconds": 1}
    task = TaskParam(work_id="sleep", scheduled_at=NOON, param=param)
    param["seconds"] = 1000
    async with open_bench() as (scheduler, _):
        [added] = await scheduler.add_tasks([task])
        ended = await scheduler.wait(added.id)
        assert ended.done_at == noon(1)


def _one_at_a_time(patch: pytest.MonkeyPatch) -> None:
    async def take_all(self: UpdateQueue) -> list[Any]:
        await trio.lowlevel.checkpoint()
        while not self._items:  # noqa: ASYNC110 (that it wakes for nothing is the fault)
            await trio.sleep(0.001)
        return [self._items.pop(0)]

    patch.setattr(UpdateQueue, "take_all", take_all)


@fault(_one_at_a_time)
async def a_transaction_for_every_row() -> None:
    repository = TroubledRepository()
    async with open_bench(repository, max_workers=100) as (scheduler, _):
        await scheduler.add_tasks([at(5, str(n)) for n in range(100)])
        before = len(repository.batches)
        await scheduler.drain()
        assert len(repository.batches) - before <= 4


# ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.name))
async def test_the_fault_is_not_there(
    autojump_clock: trio.testing.MockClock, fault: Fault
) -> None:
    """
    The scenario that would show the fault ends well.
    """
    with trio.fail_after(100_000):
        await fault.scenario()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: str(fault.name))
async def test_the_fault_would_be_seen(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    """
    With the fault put back, the scenario fails, or never ends.
    """
    fault.put_back(monkeypatch)
    shown: BaseException | None = None
    try:
        with trio.fail_after(100_000):
            await fault.scenario()
    except BaseException as error:  # noqa: BLE001 (whatever shows it)
        shown = error
    assert shown is not None
