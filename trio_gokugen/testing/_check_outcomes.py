"""Checks: what a work returns or raises is what is reported, and stays its own."""

from __future__ import annotations

import threading
from typing import Any

import outcome
import trio

from trio_gokugen._current_task import current_task
from trio_gokugen._errors import WorkNotFoundError

from ._dispatcher_kit import (
    DispatcherChecks,
    OpenDispatcher,
    bench,
    expect_failure,
    expect_value,
    run_of,
    same_process,
)
from ._expect import expect, expect_equal, refused

checks = DispatcherChecks()


@checks
async def a_value_is_reported(open_dispatcher: OpenDispatcher) -> None:
    """What a work with `retain` returns is its outcome."""
    async with bench(open_dispatcher) as b:
        for work_id in ("echo", "plain_echo", "without_checkpoint"):
            value: object
            for value in (None, 0, "text", [1, {"a": None}], {"刻": 1.5}):
                run = run_of(work_id, value=value)
                expect_value(work_id, await b.outcome_of(run), value)


@checks
async def param_is_passed_by_keyword(open_dispatcher: OpenDispatcher) -> None:
    """The task's `param`, all of it, are the work's keyword arguments."""
    async with bench(open_dispatcher) as b:
        run = run_of("keywords", a=1, b=[2], self="s", task_id="t")
        expected = [["a", 1], ["b", [2]], ["self", "s"], ["task_id", "t"]]
        expect_value("keywords", await b.outcome_of(run), expected)
        expect_value("keywords", await b.outcome_of(run_of("keywords")), [])


@checks
async def an_exception_is_reported(open_dispatcher: OpenDispatcher) -> None:
    """What a work raises is its outcome, with its arguments."""
    async with bench(open_dispatcher) as b:
        for work_id in ("fail", "plain_fail"):
            result = await b.outcome_of(run_of(work_id, message="no luck"))
            expect_failure(work_id, result, ValueError, args=("no luck",))


@checks
async def an_exception_group_is_reported(open_dispatcher: OpenDispatcher) -> None:
    """A group of exceptions is reported as the group it is."""
    async with bench(open_dispatcher) as b:
        result = await b.outcome_of(run_of("fail_twice"))
        expect_failure("fail_twice", result, ExceptionGroup, message="two failures")
        error: Any = getattr(result, "error", None)
        kinds = [type(each).__name__ for each in error.exceptions]
        expect_equal("what is in the group", kinds, ["ValueError", "TypeError"])


@checks
async def a_call_that_does_not_fit_is_reported(open_dispatcher: OpenDispatcher) -> None:
    """A `param` that the work does not take is that run's failure."""
    async with bench(open_dispatcher) as b:
        for work_id in ("echo", "plain_echo"):
            result = await b.outcome_of(run_of(work_id, unknown="argument"))
            expect_failure(work_id, result, TypeError)


@checks
async def an_unknown_work_is_reported(open_dispatcher: OpenDispatcher) -> None:
    """A task whose work is not known ends with an error, and harms nobody."""
    async with bench(open_dispatcher) as b:
        result = await b.outcome_of(run_of("unheard of"))
        expect_failure("it", result, WorkNotFoundError, work_id="unheard of")


@checks
@same_process
async def a_base_exception_is_reported(open_dispatcher: OpenDispatcher) -> None:
    """What is not an `Exception` is reported like one, where that is the program."""
    async with bench(open_dispatcher, 2) as b:
        other = run_of("take", seconds=0.3, value=1)
        await b.dispatch(other)
        for by, error_type in (
            ("KeyboardInterrupt", KeyboardInterrupt),
            ("BaseExceptionGroup", BaseExceptionGroup),
        ):
            result = await b.outcome_of(run_of("leave", by=by))
            expect_failure(f"a work left by {by}", result, error_type)
        result = await b.outcome_of(run_of("plain_leave"))
        expect_failure("plain_leave", result, KeyboardInterrupt)
        [result] = await b.results.wait_for(other)
        expect_value("another work", result, 1)


@checks
@same_process
async def an_exit_is_reported(open_dispatcher: OpenDispatcher) -> None:
    """A work that calls `sys.exit` does what it says, where that is the program."""
    async with bench(open_dispatcher) as b:
        result = await b.outcome_of(run_of("leave", by="SystemExit"))
        expect_failure("a work left by SystemExit", result, SystemExit, code=3)


@checks
async def an_exit_ends_its_run(open_dispatcher: OpenDispatcher) -> None:
    """A work that exits, or is left by a Ctrl-C, wherever it is, ends its run only."""
    async with bench(open_dispatcher, 2) as b:
        other = run_of("take", seconds=0.3, value=1)
        await b.dispatch(other)
        for by in ("SystemExit", "KeyboardInterrupt", "BaseExceptionGroup"):
            result = await b.outcome_of(run_of("leave", by=by))
            expect_failure(f"a work left by {by}", result, BaseException)
        result = await b.outcome_of(run_of("plain_leave"))
        expect_failure("plain_leave", result, BaseException)
        [result] = await b.results.wait_for(other)
        expect_value("another work", result, 1)


@checks
async def a_leaked_cancellation_is_a_failure(open_dispatcher: OpenDispatcher) -> None:
    """A `Cancelled` of the work's own is that run's failure, and cancels nobody else."""
    async with bench(open_dispatcher, 2) as b:
        other = run_of("take", seconds=0.3, value=1)
        await b.dispatch(other)
        for _ in range(3):
            result = await b.outcome_of(run_of("leak"))
            expect_failure("a work that leaks a cancellation", result, Exception)
        [result] = await b.results.wait_for(other)
        expect_value("another work", result, 1)


@checks
async def param_is_fresh_for_each_run(open_dispatcher: OpenDispatcher) -> None:
    """A work may change what it is called with: the task and its next run don't see it."""
    async with bench(open_dispatcher) as b:
        run = run_of("change_param", items=[{"deep": "first"}])
        before = run.to_json()
        for _ in range(2):
            expect_value("change_param", await b.outcome_of(run), 2)
            b.results.clear()
        expect_equal("the task, after its work has run", run.to_json(), before)


@checks
async def current_task_is_the_run(open_dispatcher: OpenDispatcher) -> None:
    """Inside a work `current_task()` is the snapshot that was fetched."""
    async with bench(open_dispatcher, 3) as b:
        runs = [run_of("tell_current_task", f"t{n}") for n in range(3)]
        for run, result in zip(runs, await b.outcomes_of(*runs), strict=True):
            expect_value(run.work_id, result, [run.to_json()] * 3)
        for number in range(3):
            run = run_of("plain_tell_current_task", f"p{number}")
            expect_value(run.work_id, await b.outcome_of(run), [run.to_json()])
        with refused("current_task() outside of a work", RuntimeError):
            current_task()


@checks
async def context_variables_do_not_leak(open_dispatcher: OpenDispatcher) -> None:
    """A context variable that a work sets is as it was in the next run of the worker."""
    async with bench(open_dispatcher, 1) as b:
        for number in range(3):
            for work_id in ("set_variable", "plain_set_variable"):
                run = run_of(work_id, f"{work_id} {number}", value=f"v{number}")
                expect_value(work_id, await b.outcome_of(run), None)


@checks
@same_process
async def plain_functions_run_in_threads(open_dispatcher: OpenDispatcher) -> None:
    """A plain function runs in a thread, where it holds up nobody else."""
    async with bench(open_dispatcher, 2) as b:
        result = await b.outcome_of(run_of("tell_thread"))
        expect(isinstance(result, outcome.Value), f"it ended with {result}")
        main = outcome.Value(threading.get_ident())
        expect(result != main, "a plain function ran in Trio's own thread")
        meeting = [run_of("meet", f"m{n}") for n in range(2)]
        for result in await b.outcomes_of(*meeting):
            expect_value("a plain function that waits for another", result, "met")


@checks
@same_process
async def the_clock_waits_for_threads(open_dispatcher: OpenDispatcher) -> None:
    """While a plain function runs, a mock clock doesn't jump: it would lose the time."""
    async with bench(open_dispatcher, 2) as b:
        naps = [run_of("nap", f"n{n}", seconds=0.01 * (1 + n)) for n in range(2)]
        began = trio.current_time()
        with trio.move_on_after(1_000):
            await b.outcomes_of(*naps)
        expect_equal("seconds that passed meanwhile", trio.current_time() - began, 0.0)
        await trio.sleep(5)
        expect_equal("seconds, later", trio.current_time() - began, 5.0)
