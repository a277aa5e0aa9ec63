"""Checks: who runs when, and that every worker comes back."""

from __future__ import annotations

from collections import Counter, deque
from functools import partial

import trio

from trio_gokugen._errors import StopReason
from trio_gokugen._task import Task
from trio_gokugen.abc import ANY_TASK, Free, Start, TaskFilter

from ._dispatcher_kit import (
    Bench,
    DispatcherChecks,
    OpenDispatcher,
    bench,
    expect_value,
    run_of,
    same_process,
)
from ._expect import expect, expect_equal, refused
from ._works import Occupancy
from ._yields import cancelled_at

checks = DispatcherChecks()


@checks
async def a_started_dispatcher_is_idle(open_dispatcher: OpenDispatcher) -> None:
    """Once started it has all its workers free, and runs nothing."""
    for max_workers in (1, 4):
        async with bench(open_dispatcher, max_workers) as b:
            statistics = b.dispatcher.statistics()
            expect_equal("max_workers", statistics.max_workers, max_workers)
            await b.expect_all_free("the start")


@checks
async def statistics_count_the_runs(open_dispatcher: OpenDispatcher) -> None:
    """The statistics are a snapshot, and tell how many works run."""
    async with bench(open_dispatcher) as b:
        runs = [run_of("take", f"t{n}", seconds=0.2) for n in range(2)]
        snapshots = [b.dispatcher.statistics()]
        await b.dispatch(*runs)
        snapshots.append(b.dispatcher.statistics())
        await b.results.wait_for(*runs)
        snapshots.append(b.dispatcher.statistics())
        running = [snapshot.running for snapshot in snapshots]
        expect_equal("running before, while and after", running, [0, 2, 0])


@checks
async def dispatch_waits_for_a_worker(open_dispatcher: OpenDispatcher) -> None:
    """Tasks are fetched only once a worker is free: what is chosen is up to date."""
    async with bench(open_dispatcher, 2) as b:
        busy = [run_of("take", f"t{n}", seconds=0.2 + n / 10) for n in range(2)]
        await b.dispatch(*busy)
        fetched_after: list[int] = []

        async def fetch(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
            del start, only
            fetched_after.append(len(b.results))
            expect(free() > 0, "tasks were fetched with no worker free")
            await trio.lowlevel.checkpoint()
            return 0

        await b.dispatcher.dispatch(fetch)
        expect_equal("runs that had ended when tasks were fetched", fetched_after, [1])


@checks
async def free_tells_of_the_moment(open_dispatcher: OpenDispatcher) -> None:
    """`free` tells how many workers are free when it is called, not when it was given."""
    async with bench(open_dispatcher, 3) as b:
        busy = [run_of("take", f"t{n}", seconds=0.2) for n in range(2)]
        await b.dispatch(*busy)
        counts: list[int] = []
        last = run_of("take", "last", seconds=0.2)

        async def fetch(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
            del only
            counts.append(free())
            await b.results.wait_for(*busy)
            counts.append(free())
            start(last)
            counts.append(free())
            return 1

        await b.dispatcher.dispatch(fetch)
        expect_equal("free while two run, none, and one", counts, [1, 3, 2])
        await b.results.wait_for(last)


@checks
async def all_workers_work_at_once(open_dispatcher: OpenDispatcher) -> None:
    """As many works as there are workers run at the same time, fetched in one."""
    async with bench(open_dispatcher, 4) as b:
        runs = [run_of("take", f"t{n}", seconds=0.2) for n in range(4)]
        waiting = deque(runs)
        await b.dispatcher.dispatch(b.fetch_of(waiting))
        expect_equal("how many were left", len(waiting), 0)
        expect_equal("how many run", b.dispatcher.statistics().running, 4)
        await b.results.wait_for(*runs)


@checks
@same_process
async def never_more_runs_than_workers(open_dispatcher: OpenDispatcher) -> None:
    """Never do more works run than there are workers, and all that there are do."""
    async with bench(open_dispatcher, 3) as b:
        Occupancy.now = Occupancy.most = 0
        runs = [run_of("occupy", f"t{n}", seconds=1 + n % 4 / 4) for n in range(20)]
        await b.outcomes_of(*runs)
        expect_equal("the most works that ran at a time", Occupancy.most, 3)
        expect_equal("works that still run", Occupancy.now, 0)


@checks
async def every_run_is_reported_once(open_dispatcher: OpenDispatcher) -> None:
    """Every run has one result, which holds the very snapshot that was started."""
    async with bench(open_dispatcher, 3) as b:
        works = ("echo", "without_checkpoint", "plain_echo", "fail_twice", "leak")
        runs = [run_of(works[n % 5], f"t{n}") for n in range(30)]
        # While it waits for a worker, a work may be run again by its task's next attempt.
        runs += [run_of("echo", "again", value=n) for n in range(3)]
        for run in runs:
            await b.outcome_of(run)
        await trio.sleep(1)
        reported = Counter(id(result.run) for result in b.results)
        expected = Counter(id(run) for run in runs)
        expect(
            reported == expected,
            f"{len(runs)} runs have {len(b.results)} results,"
            f" {len(expected - reported)} of them have none of their own",
        )


@checks
async def results_may_come_late(open_dispatcher: OpenDispatcher) -> None:
    """Works that end in another order than they started have each its own outcome."""
    async with bench(open_dispatcher, 5) as b:
        runs = [run_of("take", f"t{n}", seconds=0.3 - n / 20, value=n) for n in range(5)]
        for number, result in enumerate(await b.outcomes_of(*runs)):
            expect_value(f"run {number}", result, number)


@checks
async def a_fetch_may_come_back_with_nothing(open_dispatcher: OpenDispatcher) -> None:
    """Dispatch returns when nothing was fetched, and takes up no worker."""
    async with bench(open_dispatcher, 2) as b:
        for _ in range(5):
            expect_equal("free workers", await b.count_free(), 2)
        expect_equal("results", list(b.results), [])


@checks
async def an_error_of_the_fetch_gets_out(open_dispatcher: OpenDispatcher) -> None:
    """What the fetch raises leaves dispatch as it is, and takes up no worker."""
    async with bench(open_dispatcher, 1) as b:

        async def fetch(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
            del free, start, only
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError("of the fetch")

        for _ in range(3):
            with refused("dispatch with a fetch that fails", ZeroDivisionError):
                await b.dispatcher.dispatch(fetch)
        await b.expect_all_free("fetches that failed")
        expect_value("a work", await b.outcome_of(run_of("echo", value=1)), 1)


@checks
async def another_task_may_start_runs(open_dispatcher: OpenDispatcher) -> None:
    """Whoever has claimed a task may start it, while the fetch waits for the answer."""
    async with bench(open_dispatcher, 2) as b:
        runs = [run_of("tell_current_task", f"t{n}") for n in range(2)]

        async def fetch(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
            del only

            async def start_runs() -> None:
                for run in runs:
                    expect(free() > 0, "there is no worker free")
                    b.start(run, start)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(start_runs)
            return len(runs)

        await b.dispatcher.dispatch(fetch)
        outcomes = await b.results.wait_for(*runs)
        for run, result in zip(runs, outcomes, strict=True):
            expect_value("a work that tells its task", result, [run.to_json()] * 3)


_ENDS = [
    run_of("echo", value=1),
    run_of("without_checkpoint"),
    run_of("plain_echo"),
    run_of("fail", message="no luck"),
    run_of("plain_fail", message="no luck"),
    run_of("fail_twice"),
    run_of("leak"),
    run_of("unheard of"),
    run_of("echo", unknown="argument"),
]


async def _expect_slots_given_back(b: Bench, *runs: Task) -> None:
    for run in runs:
        for _ in range(3):
            await b.outcome_of(run)
            b.results.clear()
        await b.expect_all_free(f"three runs of {run.work_id} with {run.param}")


@checks
async def a_worker_is_free_after_any_end(open_dispatcher: OpenDispatcher) -> None:
    """However a work ends, its worker is free again, and takes the next."""
    async with bench(open_dispatcher, 2) as b:
        await _expect_slots_given_back(b, *_ENDS)


@checks
async def a_worker_is_free_after_a_base_exception(
    open_dispatcher: OpenDispatcher,
) -> None:
    """A work that raises what is not an `Exception` gives its worker back, too."""
    async with bench(open_dispatcher, 2) as b:
        for by in ("KeyboardInterrupt", "SystemExit", "BaseExceptionGroup"):
            await _expect_slots_given_back(b, run_of("leave", by=by))
        await _expect_slots_given_back(b, run_of("plain_leave"))


@checks
async def a_cancelled_dispatch_is_atomic(open_dispatcher: OpenDispatcher) -> None:
    """Cancelled at whatever point, dispatch starts all that were fetched, or none."""
    number = 0
    was_cancelled = True
    while was_cancelled:
        async with bench(open_dispatcher, 2) as b:
            runs = [run_of("take", name, seconds=0.2) for name in "ab"]
            waiting = deque(runs)
            call = partial(b.dispatcher.dispatch, b.fetch_of(waiting))
            attempt = await cancelled_at(number, call)
            expect(len(waiting) in {0, 2}, f"{len(waiting)} of 2 were left, at {number}")
            started = [run for run in runs if run not in waiting]
            await b.results.wait_for(*started)
            await b.expect_all_free(f"a dispatch that was cancelled at {number}")
            expect_equal("how many results there are", len(b.results), len(started))
        was_cancelled = attempt.was_cancelled
        number += 1


@checks
async def a_cancelled_wait_for_a_worker_leaves_nothing(
    open_dispatcher: OpenDispatcher,
) -> None:
    """Cancelled while all workers are busy, dispatch fetches nothing, and may come back."""
    for number in (1, 2):
        async with bench(open_dispatcher, 1) as b:
            await b.dispatch(run_of("take", seconds=0.2))
            run = run_of("echo", value=1)
            waiting = deque([run])
            call = partial(b.dispatcher.dispatch, b.fetch_of(waiting))
            attempt = await cancelled_at(number, call)
            expect(attempt.was_cancelled, "dispatch has not waited for a worker")
            expect_equal("how many were left", len(waiting), 1)
            expect_value("the next run", await b.outcome_of(run), 1)
            await b.expect_all_free("a wait that was cancelled")


@checks
async def cancel_knows_what_runs(open_dispatcher: OpenDispatcher) -> None:
    """Cancelling a task that doesn't run, or has ended, is answered with `False`."""
    async with bench(open_dispatcher, 2) as b:
        cancel = b.dispatcher.cancel
        run = run_of("echo", "t", value=1)
        expect_equal("cancel of nothing", cancel(run, StopReason.INTERRUPT), False)  # noqa: FBT003
        expect_value("a work", await b.outcome_of(run), 1)
        expect_equal("cancel of the ended", cancel(run, StopReason.SHUTDOWN), False)  # noqa: FBT003
        again = run_of("echo", "t", value=2)
        expect_value("the work, again", await b.outcome_of(again), 2)
