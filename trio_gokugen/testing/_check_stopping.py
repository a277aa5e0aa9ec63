"""Checks: work can be stopped, and its outcome says by what."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import attrs
import outcome
import trio
import trio.lowlevel

from trio_gokugen._errors import (
    DeadlineExceededError,
    StopReason,
    WorkStoppedError,
    WorkTimeoutError,
)
from trio_gokugen._task import Task
from trio_gokugen.abc import ANY_TASK, Free, Start, TaskFilter

from ._dispatcher_kit import (
    Bench,
    DispatcherChecks,
    OpenDispatcher,
    a_few_steps,
    bench,
    expect_failure,
    expect_value,
    run_of,
    same_process,
    stopping,
)
from ._expect import expect, expect_equal
from ._repository_kit import moment
from ._timer_kit import expect_time
from ._works import TIMEOUT

checks = DispatcherChecks()


def _until(deadline: float, run: Task) -> Task:
    return attrs.evolve(run, deadline=moment(deadline))


def _expect_deadline(
    what: str, result: outcome.Outcome[Any], deadline: float, *, started: bool = True
) -> None:
    expect_failure(
        what,
        result,
        DeadlineExceededError,
        deadline=moment(deadline).isoformat(),
        started=started,
    )


# -- by the clock -----------------------------------------------------------------------


@checks
@stopping
@same_process
async def a_deadline_stops_the_work(open_dispatcher: OpenDispatcher) -> None:
    """At the task's deadline the work is cancelled, and the outcome says so."""
    async with bench(open_dispatcher) as b:
        run = _until(7, run_of("never_end"))
        _expect_deadline("a work with a deadline", await b.outcome_of(run), 7)
        expect_time("it ended", b.clock.now(), 7)
        in_time = _until(12, run_of("take", seconds=4, value=1))
        expect_value("a work that ends before", await b.outcome_of(in_time), 1)


@checks
@stopping
@same_process
async def a_deadline_can_be_too_late_to_start(open_dispatcher: OpenDispatcher) -> None:
    """A work whose task's deadline is here is not started, and the outcome says so."""
    async with bench(open_dispatcher) as b:
        for wait in (5, 1):
            await trio.sleep(wait)
            result = await b.outcome_of(_until(5, run_of("without_checkpoint")))
            _expect_deadline("a work that is late", result, 5, started=False)
        await b.expect_all_free("runs that were too late")


@checks
@stopping
@same_process
async def a_timeout_stops_the_work(open_dispatcher: OpenDispatcher) -> None:
    """An attempt that takes longer than the work's timeout is cancelled, and says so."""
    async with bench(open_dispatcher) as b:
        result = await b.outcome_of(run_of("in_time", seconds=TIMEOUT + 1))
        expect_failure("it", result, WorkTimeoutError, seconds=TIMEOUT)
        expect_time("it ended", b.clock.now(), TIMEOUT)
        in_time = run_of("in_time", seconds=TIMEOUT - 1, value=1)
        expect_value("a work that ends before", await b.outcome_of(in_time), 1)


@checks
@stopping
@same_process
async def the_first_to_fire_is_named(open_dispatcher: OpenDispatcher) -> None:
    """With a deadline and a timeout, the outcome names the one that came first."""
    async with bench(open_dispatcher) as b:
        work = run_of("in_time", seconds=1_000)
        result = await b.outcome_of(_until(TIMEOUT - 1, work))
        _expect_deadline("a work with an earlier deadline", result, TIMEOUT - 1)
        result = await b.outcome_of(_until(TIMEOUT * 9, work))
        expect_failure("it", result, WorkTimeoutError, seconds=TIMEOUT)


# -- by a caller ------------------------------------------------------------------------


async def _outcome_of_cancelled(
    b: Bench, run: Task, *reasons: StopReason
) -> outcome.Outcome[Any]:
    await b.dispatch(run)
    await a_few_steps()
    for reason in reasons:
        cancelled = b.dispatcher.cancel(run, reason)
        expect(cancelled, "cancel of a run that is under way was answered with False")
    [result] = await b.results.wait_for(run)
    return result


@checks
@stopping
async def cancel_stops_the_work(open_dispatcher: OpenDispatcher) -> None:
    """Work that is cancelled ends, and the outcome says for what reason."""
    async with bench(open_dispatcher) as b:
        for reason in StopReason:
            result = await _outcome_of_cancelled(b, run_of("never_end"), reason)
            expect_failure(
                "a work that was stopped", result, WorkStoppedError, reason=reason
            )
            b.results.clear()
        await b.expect_all_free("runs that were stopped")


@checks
@stopping
async def the_first_reason_stands(open_dispatcher: OpenDispatcher) -> None:
    """Work cancelled twice was stopped for the first reason."""
    first, second = StopReason.INTERRUPT, StopReason.SHUTDOWN
    async with bench(open_dispatcher) as b:
        for one, other in ((first, second), (second, first)):
            run = run_of("never_end")
            result = await _outcome_of_cancelled(b, run, one, other)
            expect_failure("it", result, WorkStoppedError, reason=one)


@checks
@stopping
async def cancel_stops_only_that_work(open_dispatcher: OpenDispatcher) -> None:
    """Cancelling one work leaves others alone, and those the worker runs later."""
    async with bench(open_dispatcher, 2) as b:
        other = run_of("take", "other", seconds=0.4, value=1)
        await b.dispatch(other)
        await _outcome_of_cancelled(b, run_of("never_end"), StopReason.INTERRUPT)
        later = run_of("take", "later", seconds=0.1, value=2)
        expect_value("a work that runs later", await b.outcome_of(later), 2)
        [result] = await b.results.wait_for(other)
        expect_value("another work", result, 1)


@checks
@stopping
async def cancel_stops_only_that_attempt(open_dispatcher: OpenDispatcher) -> None:
    """Cancelling another attempt of the same task leaves this one alone."""
    async with bench(open_dispatcher, 2) as b:
        run = run_of("take", seconds=0.1, value=1)
        await b.dispatch(run)
        await a_few_steps()
        another = attrs.evolve(run, attempt=run.attempt + 1)
        known = b.dispatcher.cancel(another, StopReason.INTERRUPT)
        expect_equal("cancel of an attempt that does not run", known, False)  # noqa: FBT003
        [result] = await b.results.wait_for(run)
        expect_value("the attempt that runs", result, 1)


@checks
@stopping
async def an_id_may_be_used_again(open_dispatcher: OpenDispatcher) -> None:
    """A run that has lost its task goes on, whatever is added under its id meanwhile.

    Two runs of one id and attempt are two, by the moments their tasks were created at.
    """
    async with bench(open_dispatcher, 2) as b:
        old = run_of("never_end", "nightly")
        new = attrs.evolve(old, created_at=old.created_at + timedelta(days=1))
        await b.dispatch(old)
        await b.dispatch(new)
        await a_few_steps()
        expect_equal("running", b.dispatcher.statistics().running, 2)
        known = b.dispatcher.cancel(old, StopReason.LOST_LEASE)
        expect(known, "cancel of the run that came first returned False")
        [result] = await b.results.wait_for(old)
        expect_failure("the first", result, WorkStoppedError, reason=StopReason.LOST_LEASE)
        expect_equal("running, after the first", b.dispatcher.statistics().running, 1)
        known = b.dispatcher.cancel(new, StopReason.INTERRUPT)
        expect(known, "cancel of the run that came second returned False")
        [result] = await b.results.wait_for(new)
        expect_failure("the second", result, WorkStoppedError, reason=StopReason.INTERRUPT)
        await b.expect_all_free("both have ended")


@checks
@stopping
async def cancel_may_come_at_once(open_dispatcher: OpenDispatcher) -> None:
    """Work can be cancelled in the very step in which it was started."""
    async with bench(open_dispatcher, 1) as b:
        for _ in range(3):  # by a new worker, and by one that has worked before
            run = run_of("never_end")

            async def fetch(
                free: Free, start: Start, only: TaskFilter = ANY_TASK, run: Task = run
            ) -> int:
                del free, only
                await trio.lowlevel.checkpoint()
                start(run)
                known = b.dispatcher.cancel(run, StopReason.INTERRUPT)
                expect(known, "cancel of a run that was just started returned False")
                return 1

            await b.dispatcher.dispatch(fetch)
            [result] = await b.results.wait_for(run)
            expect_failure("it", result, WorkStoppedError, reason=StopReason.INTERRUPT)
            b.results.clear()
            expect_value("the next", await b.outcome_of(run_of("echo", value=1)), 1)


@checks
@stopping
@same_process
async def a_stop_outweighs_an_error(open_dispatcher: OpenDispatcher) -> None:
    """Work that fails as it is cancelled was stopped, and the outcome says by what."""
    async with bench(open_dispatcher) as b:
        run = run_of("fail_when_cancelled", message="no luck")
        result = await _outcome_of_cancelled(b, run, StopReason.INTERRUPT)
        expect_failure("it", result, WorkStoppedError, reason=StopReason.INTERRUPT)


@checks
@stopping
@same_process
async def a_deadline_outweighs_an_error(open_dispatcher: OpenDispatcher) -> None:
    """Work that fails as its deadline cancels it has exceeded the deadline."""
    async with bench(open_dispatcher) as b:
        run = _until(3, run_of("fail_when_cancelled", message="no luck"))
        _expect_deadline("it", await b.outcome_of(run), 3)


@checks
@stopping
@same_process
async def a_value_stands(open_dispatcher: OpenDispatcher) -> None:
    """Work that returns before a cancellation takes effect has its value as outcome."""
    async with bench(open_dispatcher) as b:
        run = run_of("insist", seconds=0.3, value=1)
        for reason in StopReason:
            result = await _outcome_of_cancelled(b, run, reason)
            expect_value("a work that returned all the same", result, 1)
            b.results.clear()
        later = run_of("take", seconds=0.1, value=2)
        expect_value("a work that runs later", await b.outcome_of(later), 2)


@checks
@stopping
@same_process
async def a_value_stands_after_a_deadline(open_dispatcher: OpenDispatcher) -> None:
    """Work that returns though its time is over has its value as outcome."""
    async with bench(open_dispatcher) as b:
        late = _until(3, run_of("insist", seconds=4, value=1))
        expect_value("a work past its deadline", await b.outcome_of(late), 1)
        slow = run_of("insist_in_time", seconds=TIMEOUT + 1, value=2)
        expect_value("a work past its timeout", await b.outcome_of(slow), 2)


# -- by the end of the nursery ----------------------------------------------------------


@checks
@stopping
async def a_cancelled_nursery_stops_all(open_dispatcher: OpenDispatcher) -> None:
    """When the nursery is cancelled, every run is stopped, and has one result."""
    async with bench(open_dispatcher, 4) as b:
        long = [run_of("never_end", f"t{n}") for n in range(2)]
        await b.dispatch(*long)
        await a_few_steps()
        just_started = [run_of("never_end", f"j{n}") for n in range(2)]
        await b.dispatch(*just_started)
    runs = long + just_started
    expect_equal("how many results there are", len(b.results), len(runs))
    for run in runs:
        expect(b.results.of(run), f"the run {run.id} has no result")
        result = b.results.of(run)[0].outcome
        expect_failure("it", result, WorkStoppedError, reason=StopReason.SHUTDOWN)


@checks
@stopping
@same_process
async def a_cancelled_nursery_waits(open_dispatcher: OpenDispatcher) -> None:
    """Work that doesn't end at once when the nursery is cancelled is waited for."""
    async with bench(open_dispatcher, 3) as b:
        runs = [
            run_of("insist", seconds=0.2, value=None),
            run_of("nap", seconds=0.05),
            run_of("take", seconds=0.0),
        ]
        await b.dispatch(*runs[:2])
        await trio.lowlevel.checkpoint()
        await b.dispatch(runs[2])
    expect_equal("how many results there are", len(b.results), len(runs))
    for run in runs[:2]:
        expect(b.results.of(run), f"the run {run.id} has no result")
        expect_value("work that goes on", b.results.of(run)[0].outcome, None)
