"""How a scheduler ends: in good order, cancelled, or by an error; and begins again."""

from __future__ import annotations

import math
from typing import Any

import outcome
import pytest
import trio
import trio.testing
from support import NOON, Bench, TroubledRepository, at, noon, open_bench, stored

from trio_gokugen import (
    HeapRepository,
    HookAction,
    PartialHooks,
    RepositoryError,
    Scheduler,
    SchedulerNotRunningError,
    Task,
    TaskNotFoundError,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    WorkRegistry,
    current_task,
    open_scheduler,
)
from trio_gokugen.abc import ClaimTasks, EndTask, RecoverAction, RevertTask
from trio_gokugen.testing import FaultyRepository

# -- in good order -----------------------------------------------------------------------


async def test_leaving_waits_for_running_work(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Work that ends by itself within the grace is done; what is not due yet stays.
    """
    repository = HeapRepository()
    async with open_bench(repository, grace=30) as (scheduler, bench):
        await scheduler.add_tasks(
            [at(0, "a", "sleep", param={"seconds": 20}), at(15, "later")]
        )
        await trio.sleep(5)
        assert scheduler.statistics().state == "running"
    assert trio.current_time() == 20.0
    assert bench.log == [("a", 0.0), ("a done", 20.0)]
    assert (await repository.get("a")).state is TaskState.DONE
    assert await repository.get("later") == stored("later", seconds=15)


async def test_after_the_grace_work_is_cancelled_and_scheduled_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Work still running after the grace is cancelled; its task is scheduled again, and
    the interruption is counted apart from its attempts.
    """
    repository = HeapRepository()
    async with open_bench(repository, grace=7) as (scheduler, bench):
        await scheduler.add_tasks([at(0, "a", "sleep"), at(0, "b", "stubborn")])
        await trio.sleep(5)
    assert trio.current_time() == 60.0
    assert sorted(bench.log) == [
        ("a", 0.0),
        ("a cancelled", 12.0),
        ("b", 0.0),
        ("b done", 60.0),
    ]
    assert await repository.get("a") == stored(
        "a", "sleep", attempt=1, interruptions=1, dispatched_at=NOON
    )
    assert (await repository.get("b")).state is TaskState.DONE

    async with open_bench(repository) as (scheduler, bench):
        ended = await scheduler.wait("a")
    assert (ended.state, ended.attempt, ended.interruptions) == (TaskState.DONE, 2, 1)
    assert bench.log == [("a", 60.0), ("a done", 120.0)]


@pytest.mark.parametrize("grace", [0, 0.0])
async def test_no_grace(autojump_clock: trio.testing.MockClock, grace: float) -> None:
    """
    Without grace, leaving cancels running work at once.
    """
    repository = HeapRepository()
    async with open_bench(repository, grace=grace) as (scheduler, bench):
        await scheduler.add_tasks([at(0, "a", "sleep")])
        await trio.sleep(5)
    assert trio.current_time() == 5.0
    assert bench.log == [("a", 0.0), ("a cancelled", 5.0)]
    assert (await repository.get("a")).state is TaskState.SCHEDULED


async def test_while_stopping_calls_are_answered_and_nothing_starts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Until the last work has ended the scheduler serves its callers, but starts nothing.
    """
    repository = HeapRepository()
    works = WorkRegistry()
    seen: list[Any] = []

    @works.register
    async def busy() -> None:
        await trio.sleep(10)
        seen.append(scheduler.statistics().state)
        added = await scheduler.add_task("busy", after=0, id="next")
        seen.append(await scheduler.update(added.id, priority=1))
        seen.append((await scheduler.get("next")).priority)

    async with open_scheduler(works, repository) as scheduler:
        await scheduler.add_task("busy", after=0, id="first")
        await trio.sleep(1)
    assert seen == ["stopping", True, 1]
    assert (await repository.get("first")).state is TaskState.DONE
    assert (await repository.get("next")).state is TaskState.SCHEDULED


async def test_hooks_see_everything_before_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Leaving the block waits until the hooks have seen what happened.
    """
    seen: list[tuple[str, float]] = []

    async def slow(task: Task) -> None:
        await trio.sleep(1)
        seen.append((task.id, trio.current_time()))

    hooks = PartialHooks(on_task_done=slow)
    async with open_bench(hooks=hooks, grace=30) as (scheduler, _):
        await scheduler.add_tasks([at(0, str(n)) for n in range(3)])
        await scheduler.drain()
    assert sorted(task_id for task_id, _ in seen) == ["0", "1", "2"]
    assert [when for _, when in seen] == [1.0, 2.0, 3.0]


async def test_a_hook_that_never_ends_does_not_keep_the_scheduler(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Hooks are waited for as long as the grace lasts, or 5 s where that is longer.
    """
    for grace, waited in ((0, 5.0), (20, 20.0)):

        async def stuck(task: Task) -> None:
            await trio.sleep_forever()

        before = trio.current_time()
        async with open_bench(
            hooks=PartialHooks(on_task_done=stuck), grace=grace, clock=TrioClock(NOON)
        ) as (scheduler, _):
            await scheduler.add_tasks([at(0, "a")])
            await scheduler.drain()
        assert trio.current_time() == before + waited


async def test_stop_may_be_called_by_many(autojump_clock: trio.testing.MockClock) -> None:
    """
    Whoever stops it, and however often, gets back when it has stopped.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_tasks([at(0, "a", "sleep")])
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.stop)
            nursery.start_soon(scheduler.stop, 10)
        assert trio.current_time() == 11.0
        assert scheduler.statistics().state == "stopped"
    assert bench.log == [("a", 0.0), ("a cancelled", 11.0)]


async def test_stopped_before_it_has_begun(autojump_clock: trio.testing.MockClock) -> None:
    """
    A scheduler that still recovers, from a store that does not answer, serves its callers,
    starts nothing, and stops at once.
    """
    repository = TroubledRepository()
    repository.before_recover = trio.sleep_forever
    bench = Bench()
    scheduler = Scheduler(bench.works, repository, WorkerPoolDispatcher(bench.works))

    async with trio.open_nursery() as nursery:

        async def start() -> None:
            await nursery.start(scheduler.run)
            with pytest.raises(SchedulerNotRunningError):
                await scheduler.find()

        nursery.start_soon(start)
        await trio.sleep(1)
        await scheduler.add_task("note", after=0)
        await trio.sleep(1)
        await scheduler.stop()
        assert scheduler.statistics().state == "stopped"
    assert trio.current_time() == 2.0
    assert bench.log == []


# -- cancelled ---------------------------------------------------------------------------


async def test_cancelled_from_outside(autojump_clock: trio.testing.MockClock) -> None:
    """
    A cancellation from outside cancels running work at once, and is recorded.
    """
    repository = HeapRepository()
    log: list[tuple[str, float]] = []
    with trio.move_on_after(5):
        async with open_bench(repository) as (scheduler, bench):
            log = bench.log
            await scheduler.add_tasks([at(0, "a", "sleep"), at(9, "b")])
            await trio.sleep_forever()
    assert trio.current_time() == 5.0
    assert log == [("a", 0.0), ("a cancelled", 5.0)]
    assert await repository.get("a") == stored(
        "a", "sleep", attempt=1, interruptions=1, dispatched_at=NOON
    )
    assert await repository.get("b") == stored("b", seconds=9)


async def test_an_error_in_the_block_cancels_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An exception in the block leaves it in a group, and cancels running work at once.
    """
    repository = HeapRepository()
    with pytest.RaisesGroup(pytest.RaisesExc(KeyError, match="oops")):
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_tasks([at(0, "a", "sleep")])
            await trio.sleep(5)
            raise KeyError("oops")
    assert trio.current_time() == 5.0
    assert (await repository.get("a")).state is TaskState.SCHEDULED


async def test_recording_is_limited_in_time(autojump_clock: trio.testing.MockClock) -> None:
    """
    A store that does not answer keeps a cancelled scheduler for 5 s, and the error says
    what could not be recorded.
    """
    repository = TroubledRepository()

    async def hang(_: object) -> None:
        await trio.sleep(60)

    with (
        pytest.RaisesGroup(
            pytest.RaisesExc(RepositoryError, match="1 runs could not be recorded within"),
            flatten_subgroups=True,
        ),
        trio.CancelScope() as scope,
    ):
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_tasks([at(0, "a", "sleep")])
            await trio.sleep(3)
            repository.before_apply = hang
            scope.cancel()
            await trio.sleep_forever()
    assert trio.current_time() == 8.0
    assert (await repository.get("a")).state is TaskState.DISPATCHED


async def test_the_last_write_fails(autojump_clock: trio.testing.MockClock) -> None:
    """
    If the last outcomes cannot be written, the scheduler's end says so.
    """
    repository = TroubledRepository()

    async def fail(_: object) -> None:
        raise OSError("disk full")

    with (
        pytest.RaisesGroup(
            pytest.RaisesExc(RepositoryError, match="stay dispatched"),
            flatten_subgroups=True,
        ),
        trio.CancelScope() as scope,
    ):
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_tasks([at(0, "a", "sleep")])
            await trio.sleep(3)
            repository.before_apply = fail
            scope.cancel()
            await trio.sleep_forever()
    assert (await repository.get("a")).state is TaskState.DISPATCHED


async def test_an_error_and_then_the_last_write_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An error of the store that ends the run is not hidden by a second one.
    """
    repository = TroubledRepository()

    async def fail(operations: Any) -> None:
        raise OSError(type(operations[0]).__name__)

    with pytest.RaisesGroup(
        pytest.RaisesExc(OSError, match="CancelTask"),
        pytest.RaisesExc(OSError, match="CancelTask"),
        pytest.RaisesExc(RepositoryError, match="stay dispatched"),
        flatten_subgroups=True,
    ):
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_tasks([at(0, "a", "sleep")])
            await trio.sleep(3)
            repository.before_apply = fail
            await scheduler.cancel("a")


async def test_whoever_waits_when_it_stops_is_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Callers that wait as the scheduler ends are told so, one and all.
    """
    for cancelled in (False, True):
        bench = Bench()
        scheduler = Scheduler(
            bench.works,
            HeapRepository(),
            WorkerPoolDispatcher(bench.works),
            clock=TrioClock(NOON),
            grace=0,
        )
        told: list[str] = []

        async def expect(call: Any, *args: Any, told: list[str] = told) -> None:
            with pytest.raises(SchedulerNotRunningError):
                await call(*args)
            told.append(call.__name__)

        async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            await scheduler.add_tasks([at(0, "a", "sleep"), at(999, "b")])
            await trio.sleep(1)
            callers.start_soon(expect, scheduler.wait, "a")
            callers.start_soon(expect, scheduler.wait, "b")
            callers.start_soon(expect, scheduler.drain)
            await trio.testing.wait_all_tasks_blocked()
            if cancelled:
                nursery.cancel_scope.cancel()
            else:
                await scheduler.stop()
        assert sorted(told) == ["drain", "wait", "wait"]


@pytest.mark.parametrize("call", ["add", "update", "cancel", "delete"])
async def test_a_change_under_way_when_it_is_cancelled_is_refused(
    autojump_clock: trio.testing.MockClock, call: str
) -> None:
    """
    A change that is with the store as the scheduler is cancelled is refused, and has
    not been made.
    """
    repository = TroubledRepository()
    bench = Bench()
    scheduler = Scheduler(
        bench.works, repository, WorkerPoolDispatcher(bench.works), clock=TrioClock(NOON)
    )
    refused = False

    async def hang(_: object) -> None:
        repository.before_apply = None
        await trio.sleep(60)

    async def change() -> None:
        nonlocal refused
        with pytest.raises(SchedulerNotRunningError):
            if call == "add":
                await scheduler.add_task("note", after=0, id="new")
            elif call == "update":
                await scheduler.update("a", priority=1)
            elif call == "cancel":
                await scheduler.cancel("a")
            else:
                await scheduler.delete_ended()
        refused = True

    async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        await scheduler.add_tasks([at(999, "a")])
        repository.before_apply = hang
        callers.start_soon(change)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert refused
    assert [task.id for task in repository.store.snapshot()] == ["a"]
    assert await repository.get("a") == stored("a", seconds=999)


async def test_a_result_under_way_when_it_is_cancelled_is_recorded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A result that is with the store as the scheduler is cancelled is written again.
    """
    repository = TroubledRepository()

    async def hang(operations: Any) -> None:
        if isinstance(operations[0], EndTask):
            repository.before_apply = None
            await trio.sleep(60)

    repository.before_apply = hang
    with trio.move_on_after(5):
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_tasks([at(0, "a")])
            await trio.sleep_forever()
    assert (await repository.get("a")).state is TaskState.DONE
    assert trio.current_time() == 5.0


async def test_a_caller_cancelled_before_its_turn_has_changed_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A caller that is cancelled while its request waits has changed nothing.
    """
    repository = TroubledRepository()

    async def hang(_: object) -> None:
        repository.before_apply = None
        await trio.sleep(10)

    async with open_bench(repository) as (scheduler, _), trio.open_nursery() as nursery:
        await scheduler.add_tasks([at(999, "a")])
        repository.before_apply = hang
        nursery.start_soon(scheduler.cancel, "a")
        await trio.sleep(1)
        with trio.move_on_after(1):
            await scheduler.add_task("note", after=0, id="b")
        assert trio.current_time() == 2.0
        await scheduler.wait("a")
        assert [task.id for task in await scheduler.find()] == ["a"]


async def test_a_caller_cancelled_during_its_turn_gets_its_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A caller that is cancelled while its change is being written stays until it is.
    """
    repository = TroubledRepository()

    async def hang(_: object) -> None:
        repository.before_apply = None
        await trio.sleep(10)

    async with open_bench(repository) as (scheduler, _):
        repository.before_apply = hang
        with trio.move_on_after(1) as scope:
            task = await scheduler.add_task("note", after=100)
            assert (await repository.get(task.id)).state is TaskState.SCHEDULED
        assert scope.cancelled_caught
        assert trio.current_time() == 10.0
        assert len(await scheduler.find()) == 1


# -- what works may do -------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_is_no_exception_leaves_after_it_is_recorded(
    autojump_clock: trio.testing.MockClock, error: type[BaseException]
) -> None:
    """
    A work that raises what is no `Exception` ends as failed, and then it leaves `run`.
    """
    repository = HeapRepository()
    works = WorkRegistry()

    @works.register
    async def rude() -> None:
        raise error("bye")

    @works.register
    async def sleep() -> None:
        await trio.sleep_forever()

    with pytest.RaisesGroup(pytest.RaisesExc(error, match="bye"), flatten_subgroups=True):
        async with open_scheduler(works, repository) as scheduler:
            await scheduler.add_task("sleep", after=0, id="b")
            await scheduler.add_task("rude", after=5, id="a")
            await trio.sleep_forever()
    assert trio.current_time() == 5.0
    ended = await repository.get("a")
    assert ended.state is TaskState.FAILED
    assert ended.err is not None
    assert ended.err.startswith(f"{error.__name__}: bye")
    assert (await repository.get("b")).state is TaskState.SCHEDULED


async def test_two_works_leave_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """
    Of two works that end in what is no `Exception`, neither is lost.
    """
    repository = HeapRepository()
    works = WorkRegistry()

    @works.register
    async def rude(code: int) -> None:
        raise SystemExit(code)

    with pytest.RaisesGroup(
        pytest.RaisesExc(SystemExit), pytest.RaisesExc(SystemExit), flatten_subgroups=True
    ):
        async with open_scheduler(works, repository, clock=TrioClock(NOON)) as scheduler:
            await scheduler.add_tasks(
                [at(0, str(n), "rude", param={"code": n}) for n in range(2)]
            )
            await trio.sleep_forever()
    for task_id in ("0", "1"):
        assert (await repository.get(task_id)).state is TaskState.FAILED


async def test_a_rude_work_while_the_scheduler_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What is no `Exception` is recorded and leaves `run` even during a cancellation.
    """
    repository = HeapRepository()
    works = WorkRegistry()

    @works.register
    async def rude() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise SystemExit(3)

    with pytest.RaisesGroup(SystemExit, flatten_subgroups=True), trio.move_on_after(5):
        async with open_scheduler(works, repository) as scheduler:
            await scheduler.add_task("rude", after=0, id="a")
            await trio.sleep_forever()
    assert (await repository.get("a")).state is TaskState.FAILED


# -- beginning again ---------------------------------------------------------------------


@pytest.mark.parametrize("recover", ["revert", "fail", "leave"])
async def test_recovery(autojump_clock: trio.testing.MockClock, recover: Any) -> None:
    """
    Tasks found dispatched at the start are scheduled again, failed, or left, as told.
    """
    repository = HeapRepository()
    await repository.add(
        [stored("a", state=TaskState.DISPATCHED, attempt=1, dispatched_at=noon(-9))]
    )
    async with open_bench(repository, recover=recover) as (scheduler, bench):
        await scheduler.drain()
    task = await repository.get("a")
    if recover == "revert":
        assert bench.log == [("a", 0.0)]
        assert (task.state, task.attempt, task.interruptions) == (TaskState.DONE, 2, 1)
    elif recover == "fail":
        assert (task.state, task.attempt, task.done_at) == (TaskState.FAILED, 1, NOON)
        assert task.err is not None
        assert "the run was lost" in task.err
    else:
        assert (task.state, task.attempt) == (TaskState.DISPATCHED, 1)
    if recover != "revert":
        assert bench.log == []


async def test_a_crash_is_recovered_from_a_dump(
    autojump_clock: trio.testing.MockClock, tmp_path: Any
) -> None:
    """
    What was dumped while running goes on after a crash: pending tasks on time, running
    ones once more.
    """
    path = tmp_path / "tasks.jsonl"
    repository = HeapRepository()
    async with open_bench(repository, grace=0) as (scheduler, _):
        await scheduler.add_tasks([at(0, "a", "sleep"), at(0, "b"), at(100, "c")])
        await trio.sleep(5)
        await repository.dump(path)

    second = HeapRepository()
    await second.load(path)
    async with open_bench(second) as (scheduler, bench):
        await scheduler.drain()
    assert bench.log == [("a", 5.0), ("a done", 65.0), ("c", 100.0)]
    assert (await second.get("a")).attempt == 2
    assert (await second.get("b")).attempt == 1


async def test_tasks_overdue_at_the_start(autojump_clock: trio.testing.MockClock) -> None:
    """
    Tasks that fell due while nothing ran start at once, in order.
    """
    repository = HeapRepository()
    await repository.add([stored(str(n), seconds=-n) for n in range(100)])
    async with open_bench(repository, max_workers=1) as (scheduler, bench):
        await scheduler.drain()
    assert bench.log == [(str(n), 0.0) for n in reversed(range(100))]


@pytest.mark.parametrize("earlier", [True, False])
async def test_a_run_that_has_lost_its_task(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, earlier: bool
) -> None:
    """
    The result of a run that has lost its task is dropped, and changes nothing. Who waits
    for the task hears of its end by whoever has it now, at the latest as the lost run
    reports.
    """
    repository = HeapRepository()
    async with open_bench(repository) as (scheduler, bench), trio.open_nursery() as nursery:
        await scheduler.add_tasks([at(0, "a", "sleep")])
        await trio.sleep(1)
        # Somebody else takes the task back, and runs it anew.
        run = await repository.get("a")
        [first, second] = await repository.apply([RevertTask(run)] * 2)
        assert isinstance(first, outcome.Value)
        assert isinstance(second, outcome.Error)
        rerun = await repository.mark_dispatched("a", noon(1))
        ended: list[Task] = []

        async def wait() -> None:
            ended.append(await scheduler.wait("a"))

        nursery.start_soon(wait)
        if earlier:
            await repository.mark_done(rerun, noon(2))
        await trio.sleep_until(70)
        assert bench.log == [("a", 0.0), ("a done", 60.0)]
        assert scheduler.statistics().done == 0
        if earlier:
            assert [(task.attempt, task.done_at) for task in ended] == [(2, noon(2))]
        else:
            assert ended == []
            assert (await scheduler.get("a")).state is TaskState.DISPATCHED
            nursery.cancel_scope.cancel()
    [record] = caplog.records
    assert "the outcome of 'a' is dropped" in record.getMessage()


async def test_waiting_for_a_task_that_is_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Who waits for a task that somebody ends, and deletes, behind the scheduler's back is
    told that there is none, as its run reports.
    """
    repository = HeapRepository()
    async with open_bench(repository) as (scheduler, _):
        await scheduler.add_tasks([at(0, "a", "sleep")])
        await trio.sleep(1)
        await repository.mark_done(await repository.get("a"), noon(1))
        await repository.delete_ended()
        run = scheduler._engine
        assert run is not None
        waiter = run.ledger.watch("a")
        with pytest.raises(TaskNotFoundError):
            await waiter.wait()


async def test_a_rude_work_that_has_lost_its_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What is no `Exception` leaves `run` even if the outcome is void, or was ignored.
    """
    works = WorkRegistry()

    @works.register
    async def rude() -> None:
        await trio.sleep(5)
        raise SystemExit(3)

    async def ignore(*_: Any) -> HookAction:
        return HookAction.IGNORE

    async def fail(operations: Any) -> None:
        if isinstance(operations[0], EndTask):
            raise RepositoryError("down")

    for lost in (True, False):
        repository = TroubledRepository()
        hooks = PartialHooks(on_update_error=ignore)
        with pytest.RaisesGroup(SystemExit, flatten_subgroups=True):
            async with open_scheduler(works, repository, hooks=hooks) as scheduler:
                task = await scheduler.add_task("rude", after=0)
                await trio.sleep(1)
                if lost:
                    await repository.revert(await repository.get(task.id))
                    await repository.cancel(task.id, NOON)
                else:
                    repository.before_apply = fail
                await trio.sleep_forever()


async def test_an_interrupt_by_the_keyboard_within_the_store(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What is no `Exception` and is raised within the store leaves `run`, while a claim is
    written as while a caller's change is; results are recorded all the same.
    """

    async def fail(operations: Any) -> None:
        if isinstance(operations[-1], kind):
            repository.before_apply = None
            raise KeyboardInterrupt

    for kind in (ClaimTasks, EndTask):
        repository = TroubledRepository()
        repository.before_apply = fail
        with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
            async with open_bench(repository) as (scheduler, _):
                await scheduler.add_tasks([at(trio.current_time() + 1, "a")])
                await trio.sleep_forever()
        state = TaskState.DONE if kind is EndTask else TaskState.SCHEDULED
        assert (await repository.get("a")).state is state


@pytest.mark.parametrize("second_at", [1, 100])
async def test_a_second_stop_that_has_less_patience_with_hooks(
    autojump_clock: trio.testing.MockClock, second_at: float
) -> None:
    """
    Of several stops the one whose grace ends first counts, for hooks that hang, too.
    """

    async def hang(task: Task) -> None:
        await trio.sleep_forever()

    hooks = PartialHooks(on_task_done=hang)
    async with open_bench(hooks=hooks) as (scheduler, _):
        await scheduler.add_tasks([at(0, "a")])
        await scheduler.wait("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.stop, 1000)
            await trio.sleep_until(second_at)
            await scheduler.stop(0)
            assert trio.current_time() == second_at + 5
        assert trio.current_time() == second_at + 5


async def test_a_timer_that_cannot_be_stopped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A scheduler whose repository fails to stop its timer has ended all the same: nobody
    hangs, and it can be run again.
    """
    repository = FaultyRepository(HeapRepository())
    bench = Bench()
    scheduler = Scheduler(bench.works, repository, WorkerPoolDispatcher(bench.works))
    repository.fail("stop_timer", RepositoryError("stuck"))
    with pytest.RaisesGroup(pytest.RaisesExc(RepositoryError, match="stuck")):
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            await scheduler.stop()
    assert scheduler.statistics().state == "stopped"
    await scheduler.stop()
    repository.stop_timer()
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        await scheduler.stop()


async def test_a_stop_after_which_nothing_can_be_recorded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What keeps a stopped scheduler from recording the last outcomes leaves `run` in a group,
    as its errors always do.
    """

    async def hang(*_: Any) -> HookAction:
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    repository = FaultyRepository(HeapRepository())
    bench = Bench()
    scheduler = Scheduler(
        bench.works,
        repository,
        WorkerPoolDispatcher(bench.works),
        PartialHooks(on_update_error=hang),
    )
    left: list[BaseException] = []

    async def run(task_status: trio.TaskStatus[None]) -> None:
        try:
            await scheduler.run(task_status=task_status)
        except BaseExceptionGroup as error:
            left.append(error)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        await scheduler.add_task("sleep", after=0)
        await trio.sleep(1)
        repository.fail("apply", RepositoryError("down"), times=None)
        await scheduler.stop(0)
    assert trio.current_time() == 6
    with pytest.RaisesGroup(pytest.RaisesExc(RepositoryError, match="the outcome of 1")):
        raise left[0]


async def test_a_hook_that_asks_for_a_stop_and_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A hook that stops the scheduler, and does not wait for the end, sees what follows.
    """
    seen: list[str] = []

    async def stop(task: Task) -> None:
        seen.append(task.id)
        with trio.move_on_after(0):
            await scheduler.stop()
        await trio.sleep(1)

    hooks = PartialHooks(on_task_done=stop)
    async with open_bench(hooks=hooks) as (scheduler, _):
        await scheduler.add_tasks([at(0, str(n)) for n in range(5)])
        await trio.sleep(1)
    assert sorted(seen) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("by_child", [False, True])
@pytest.mark.parametrize("deciding", [False, True])
async def test_a_hook_that_waits_for_the_end_is_not_waited_for_long(
    autojump_clock: trio.testing.MockClock, by_child: bool, deciding: bool
) -> None:
    """
    A stop that a hook waits for, itself or by a child, does not wait for the hook as long
    as for others: five seconds for one that watches, and not at all for one that has to
    decide what becomes of a result.
    """

    async def stop(*_: Any) -> Any:
        if by_child:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scheduler.stop, math.inf)
        else:
            await scheduler.stop(math.inf)
        raise AssertionError("the end comes first")

    repository = FaultyRepository(HeapRepository())
    hooks = (
        PartialHooks(on_update_error=stop) if deciding else PartialHooks(on_task_done=stop)
    )
    async with open_bench(repository, hooks=hooks) as (scheduler, _):
        await scheduler.add_tasks([at(0, "a", "sleep", param={"seconds": 3})])
        await trio.sleep(1)
        if deciding:
            repository.fail("apply", RepositoryError("down"))
        end = 3 if deciding else 8
        await trio.sleep_until(end - 0.5)
        assert scheduler.statistics().state == ("running" if deciding else "stopping")
        await trio.sleep_until(end + 0.5)
        assert scheduler.statistics().state == "stopped"
    assert (await repository.get("a")).state is TaskState.DONE


async def test_a_stop_waits_for_the_attempt_that_runs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    The result of a run that has lost its task is not taken for that of the next one: a stop
    waits until that, too, has ended, and answers callers meanwhile.
    """
    repository = HeapRepository()
    works = WorkRegistry()

    @works.register
    async def work() -> None:
        if current_task().attempt == 1:
            with trio.CancelScope(shield=True):
                await trio.sleep_until(5)
            return
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(20)

    async with open_scheduler(works, repository, clock=TrioClock(NOON, 0.0)) as scheduler:
        await scheduler.add_tasks([at(0, "a", "work")])
        await trio.sleep(1)
        await repository.recover(RecoverAction.REVERT, noon(1))
        await trio.sleep_until(6)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.stop, 0)
            await trio.sleep_until(18)
            await scheduler.add_tasks([at(100, "late", "work")])
        assert trio.current_time() == 26
