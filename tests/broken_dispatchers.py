"""Dispatchers that do a thing wrong, each another."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import attrs
import outcome
import trio

from trio_gokugen import (
    DeadlineExceededError,
    LeakedCancelledError,
    StopReason,
    Task,
    WorkerPoolDispatcher,
    WorkNotFoundError,
    WorkStoppedError,
    WorkTimeoutError,
)
from trio_gokugen._current_task import running
from trio_gokugen._task import run_key
from trio_gokugen.abc import (
    ANY_TASK,
    Clock,
    Condition,
    Dispatcher,
    DispatcherStatistics,
    Fetch,
    Free,
    ResultChannel,
    Start,
    TaskFilter,
    TaskResult,
    Work,
    WorkRegistry,
)

BROKEN: list[tuple[str, Callable[[WorkRegistry, int], Dispatcher]]] = []
"""The name of a check, and what makes a dispatcher that it must find broken."""

C = TypeVar("C", bound=type[WorkerPoolDispatcher])


def breaks(*names: str) -> Callable[[C], C]:
    """List a class of dispatchers as broken in these promises."""

    def list_it(broken: C) -> C:
        BROKEN.extend((name, broken) for name in names)
        return broken

    return list_it


class Altered(WorkerPoolDispatcher):
    """Right, but for what is altered on the way in and out."""

    clock: Clock
    results: ResultChannel
    nursery: trio.Nursery

    def alter_run(self, run: Task) -> Task:
        return run

    def alter(self, run: Task, result: outcome.Outcome[Any]) -> Sequence[TaskResult]:
        return [TaskResult(run, result)]

    async def start(
        self, nursery: trio.Nursery, results: ResultChannel, clock: Clock
    ) -> None:
        self.clock = clock
        self.results = results
        self.nursery = nursery
        self.runs: dict[str, Task] = {}
        await super().start(nursery, self, clock)

    def send_nowait(self, value: TaskResult, /) -> None:
        for altered in self.alter(self.runs.pop(value.run.id), value.outcome):
            self.results.send_nowait(altered)

    def _start_run(self, run: Task) -> None:
        self.runs[run.id] = run
        super()._start_run(self.alter_run(run))

    def take_a_worker(self) -> None:
        """Give one of the slots to nobody, for ever."""
        self._limiter.acquire_on_behalf_of_nowait(object())


def error_of(result: outcome.Outcome[Any]) -> BaseException | None:
    return result.error if isinstance(result, outcome.Error) else None


# -- workers --------------------------------------------------------------------------


@breaks("a_started_dispatcher_is_idle")
class HasOneMore(WorkerPoolDispatcher):
    def statistics(self) -> DispatcherStatistics:
        return attrs.evolve(super().statistics(), max_workers=self.max_workers + 1)


@breaks("statistics_count_the_runs")
class SaysThatNothingRuns(WorkerPoolDispatcher):
    def statistics(self) -> DispatcherStatistics:
        return attrs.evolve(super().statistics(), running=0)


@breaks("dispatch_waits_for_a_worker")
class FetchesFirst(WorkerPoolDispatcher):
    async def dispatch(self, fetch: Fetch) -> None:
        await fetch(lambda: max(1, self._free()), self._start_run)


@breaks("free_tells_of_the_moment")
class CountsOnce(WorkerPoolDispatcher):
    async def dispatch(self, fetch: Fetch) -> None:
        async def fetch_at_once(
            free: Free, start: Start, only: TaskFilter = ANY_TASK
        ) -> int:
            count = free()
            return await fetch(lambda: count, start, only)

        await super().dispatch(fetch_at_once)


@breaks("all_workers_work_at_once")
class WorksOneByOne(WorkerPoolDispatcher):
    def __init__(self, works: WorkRegistry, max_workers: int = 10) -> None:
        super().__init__(works, 1)


@breaks("never_more_runs_than_workers")
class WorksTooMuch(WorkerPoolDispatcher):
    def __init__(self, works: WorkRegistry, max_workers: int = 10) -> None:
        super().__init__(works, max_workers + 1)


@breaks("every_run_is_reported_once", "a_cancelled_nursery_stops_all")
class ReportsTwice(Altered):
    def alter(self, run: Task, result: outcome.Outcome[Any]) -> Sequence[TaskResult]:
        return [TaskResult(run, result)] * 2


@breaks("every_run_is_reported_once")
class ReportsACopy(Altered):
    def alter(self, run: Task, result: outcome.Outcome[Any]) -> Sequence[TaskResult]:
        return [TaskResult(attrs.evolve(run), result)]


@breaks("results_may_come_late")
class ReportsInTheOrderOfStart(Altered):
    def send_nowait(self, value: TaskResult, /) -> None:
        first = next(iter(self.runs))
        self.results.send_nowait(TaskResult(self.runs.pop(first), value.outcome))


@breaks("a_fetch_may_come_back_with_nothing")
class NeverComesBackWithNothing(WorkerPoolDispatcher):
    async def dispatch(self, fetch: Fetch) -> None:
        async def fetch_some(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
            number = 0
            while not number:
                number = await fetch(free, start, only)
                await trio.sleep(1)
            return number

        await super().dispatch(fetch_some)


@breaks("an_error_of_the_fetch_gets_out")
class SwallowsErrors(WorkerPoolDispatcher):
    async def dispatch(self, fetch: Fetch) -> None:
        try:
            await super().dispatch(fetch)
        except ZeroDivisionError:
            await trio.sleep(1)


@breaks("an_error_of_the_fetch_gets_out")
class ForgetsAWorkerAfterAnError(Altered):
    async def dispatch(self, fetch: Fetch) -> None:
        try:
            await super().dispatch(fetch)
        except ZeroDivisionError:
            self.take_a_worker()
            raise


@breaks("another_task_may_start_runs")
class WantsToBeCalledFromTheFetch(WorkerPoolDispatcher):
    async def dispatch(self, fetch: Fetch) -> None:
        mine = trio.lowlevel.current_task()

        async def checked(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
            def start_here(run: Task) -> None:
                if trio.lowlevel.current_task() is not mine:
                    raise RuntimeError("called from another task")
                start(run)

            return await fetch(free, start_here, only)

        await super().dispatch(checked)


@breaks("a_worker_is_free_after_any_end")
class ForgetsAWorkerAfterAFailure(Altered):
    def alter(self, run: Task, result: outcome.Outcome[Any]) -> Sequence[TaskResult]:
        if isinstance(error_of(result), ValueError):
            self.take_a_worker()
        return super().alter(run, result)


@breaks("a_worker_is_free_after_a_base_exception")
class ForgetsAWorkerAfterAKeyboardInterrupt(Altered):
    def alter(self, run: Task, result: outcome.Outcome[Any]) -> Sequence[TaskResult]:
        if isinstance(error_of(result), KeyboardInterrupt):
            self.take_a_worker()
        return super().alter(run, result)


@breaks("a_cancelled_dispatch_is_atomic")
class StartsWhatItFetchedLater(WorkerPoolDispatcher):
    async def dispatch(self, fetch: Fetch) -> None:
        fetched: list[Task] = []

        async def fetch_only(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
            return await fetch(free, fetched.append, only)

        await super().dispatch(fetch_only)
        for run in fetched:
            await trio.lowlevel.checkpoint()
            self._start_run(run)


@breaks("a_cancelled_wait_for_a_worker_leaves_nothing")
class KeepsItsPlaceInTheQueue(WorkerPoolDispatcher):
    async def dispatch(self, fetch: Fetch) -> None:
        if not self._free():
            self._nursery.start_soon(self.wait_for_a_worker)
        await super().dispatch(fetch)

    async def wait_for_a_worker(self) -> None:
        await self._limiter.acquire_on_behalf_of(object())


@breaks("cancel_knows_what_runs")
class AlwaysSaysItCancelled(WorkerPoolDispatcher):
    def cancel(self, run: Task, reason: StopReason) -> bool:
        super().cancel(run, reason)
        return True


# -- outcomes -------------------------------------------------------------------------


class Translating(Altered):
    """Reports another outcome."""

    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        """Another outcome, or none to leave it as it is."""
        raise NotImplementedError

    def alter(self, run: Task, result: outcome.Outcome[Any]) -> Sequence[TaskResult]:
        return super().alter(run, self.translate(run, result) or result)


@breaks("a_value_is_reported")
class DropsValues(Translating):
    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        return outcome.Value(None) if isinstance(result, outcome.Value) else None


@breaks("an_exception_is_reported")
class WrapsExceptions(Translating):
    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        error = error_of(result)
        return outcome.Error(RuntimeError(str(error))) if error else None


@breaks("an_exception_group_is_reported")
class TakesTheFirstOfAGroup(Translating):
    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        error = error_of(result)
        if isinstance(error, ExceptionGroup):
            return outcome.Error(cast("Any", error).exceptions[0])
        return None


@breaks("a_call_that_does_not_fit_is_reported")
class IgnoresWhatDoesNotFit(Translating):
    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        return outcome.Value(None) if isinstance(error_of(result), TypeError) else None


@breaks("an_unknown_work_is_reported")
class BurnsWhatIsUnknown(Translating):
    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        unknown = isinstance(error_of(result), WorkNotFoundError)
        return outcome.Value(None) if unknown else None


@breaks("a_base_exception_is_reported")
class LetsKeyboardInterruptsOut(Altered):
    def alter(self, run: Task, result: outcome.Outcome[Any]) -> Sequence[TaskResult]:
        if isinstance(error_of(result), KeyboardInterrupt):
            self.nursery.cancel_scope.cancel()
        return super().alter(run, result)


@breaks("an_exit_is_reported")
class TakesAnExitForAFailure(Translating):
    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        left = isinstance(error_of(result), SystemExit)
        return outcome.Error(ValueError("left")) if left else None


@breaks("an_exit_ends_its_run")
class LetsExitsOut(Altered):
    def alter(self, run: Task, result: outcome.Outcome[Any]) -> Sequence[TaskResult]:
        if isinstance(error_of(result), SystemExit):
            self.nursery.cancel_scope.cancel()
        return super().alter(run, result)


@breaks("a_leaked_cancellation_is_a_failure")
class TakesALeakForAnEnd(Translating):
    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        leaked = isinstance(error_of(result), LeakedCancelledError)
        return outcome.Value(None) if leaked else None


class OtherWorks:
    """Works that are called in another way."""

    def __init__(self, works: WorkRegistry, alter: Callable[[Work], Work]) -> None:
        self.works = works
        self.alter = alter

    @property
    def work_ids(self) -> frozenset[str]:
        return self.works.work_ids

    def get(self, work_id: str) -> Work:
        return self.alter(self.works.get(work_id))

    def get_condition(self, name: str) -> Condition:
        return self.works.get_condition(name)


class Calling(WorkerPoolDispatcher):
    """Calls works in another way."""

    def __init__(self, works: WorkRegistry, max_workers: int = 10) -> None:
        super().__init__(OtherWorks(works, self.alter), max_workers)

    def alter(self, work: Work) -> Work:
        return attrs.evolve(work, function=self.wrapped(work), in_thread=False)

    def wrapped(self, work: Work) -> Callable[..., Awaitable[Any]]:
        async def call(**param: Any) -> Any:
            return await self.call(work, param)

        return call

    async def call(self, work: Work, param: dict[str, Any]) -> Any:
        if work.in_thread:
            return await trio.to_thread.run_sync(lambda: work.function(**param))
        return await work.function(**param)


@breaks("param_is_passed_by_keyword")
class LeavesOutSelf(Calling):
    async def call(self, work: Work, param: dict[str, Any]) -> Any:
        param.pop("self", None)
        return await super().call(work, param)


@breaks("param_is_fresh_for_each_run")
class PassesTheTasksOwnParam(Calling):
    async def call(self, work: Work, param: dict[str, Any]) -> Any:
        return await super().call(work, cast("Any", running.get().param))


@breaks("current_task_is_the_run")
class SaysItIsAnotherTask(Calling):
    async def call(self, work: Work, param: dict[str, Any]) -> Any:
        running.set(attrs.evolve(running.get(), attempt=7))
        return await super().call(work, param)


@breaks("plain_functions_run_in_threads")
class CallsPlainFunctionsItself(Calling):
    async def call(self, work: Work, param: dict[str, Any]) -> Any:
        if work.in_thread:
            return work.function(**param)
        return await super().call(work, param)


@breaks("the_clock_waits_for_threads")
class LetsTheClockJump(Calling):
    pass


@breaks("context_variables_do_not_leak")
class SharesItsContext(WorkerPoolDispatcher):
    async def start(
        self, nursery: trio.Nursery, results: ResultChannel, clock: Clock
    ) -> None:
        await super().start(nursery, results, clock)
        self._context = cast("Any", Shared(self._context))


class Shared:
    """A context that is its own copy."""

    def __init__(self, context: contextvars.Context) -> None:
        self.run = context.run
        self.context = context.copy()

    def copy(self) -> contextvars.Context:
        return self.context


# -- stopping -------------------------------------------------------------------------


@breaks("a_deadline_stops_the_work")
class IgnoresDeadlines(Altered):
    def alter_run(self, run: Task) -> Task:
        return attrs.evolve(run, deadline=None)


@breaks("a_deadline_can_be_too_late_to_start")
class StartsLate(Altered):
    def alter_run(self, run: Task) -> Task:
        if run.deadline is not None and run.deadline <= self.clock.now():
            return attrs.evolve(run, deadline=None)
        return run


@breaks("a_timeout_stops_the_work")
class IgnoresTimeouts(Calling):
    def alter(self, work: Work) -> Work:
        return attrs.evolve(work, timeout=None)


@breaks("the_first_to_fire_is_named")
class AlwaysNamesTheDeadline(Translating):
    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        if run.deadline is None or not isinstance(error_of(result), WorkTimeoutError):
            return None
        return outcome.Error(DeadlineExceededError(run.deadline.isoformat(), started=True))


@breaks("cancel_stops_the_work")
class OnlySaysItCancelled(WorkerPoolDispatcher):
    def cancel(self, run: Task, reason: StopReason) -> bool:
        return run_key(run) in self._runs


@breaks("cancel_stops_the_work")
class AlwaysSaysShutdown(WorkerPoolDispatcher):
    def cancel(self, run: Task, reason: StopReason) -> bool:
        return super().cancel(run, StopReason.SHUTDOWN)


@breaks("the_first_reason_stands")
class TakesTheLastReason(WorkerPoolDispatcher):
    def cancel(self, run: Task, reason: StopReason) -> bool:
        if (worker := self._runs.get(run_key(run))) is not None:
            worker.reason = None
        return super().cancel(run, reason)


@breaks("cancel_stops_only_that_work")
class CancelsAll(WorkerPoolDispatcher):
    def cancel(self, run: Task, reason: StopReason) -> bool:
        for worker in self._runs.values():
            assert worker.run is not None
            super().cancel(worker.run, reason)
        return run_key(run) in self._runs


@breaks("cancel_stops_only_that_attempt")
class CancelsWhateverAttempt(WorkerPoolDispatcher):
    def cancel(self, run: Task, reason: StopReason) -> bool:
        attempts = [w.run for w in self._runs.values() if w.run and w.run.id == run.id]
        for each in attempts:
            super().cancel(each, reason)
        return bool(attempts)


@breaks("an_id_may_be_used_again")
class CancelsTheLatestOfAnId(WorkerPoolDispatcher):
    def cancel(self, run: Task, reason: StopReason) -> bool:
        known = {(w.run.id, w.run.attempt): w.run for w in self._runs.values() if w.run}
        return super().cancel(known.get((run.id, run.attempt), run), reason)


@breaks("cancel_may_come_at_once")
class CancelsOnlyWhatHasRunForAWhile(Altered):
    def __init__(self, works: WorkRegistry, max_workers: int = 10) -> None:
        super().__init__(works, max_workers)
        self.started_at: dict[str, float] = {}

    def alter_run(self, run: Task) -> Task:
        self.started_at[run.id] = trio.current_time()
        return run

    def cancel(self, run: Task, reason: StopReason) -> bool:
        return self.started_at[run.id] < trio.current_time() and super().cancel(run, reason)


@breaks("a_stop_outweighs_an_error", "a_deadline_outweighs_an_error")
class ReportsWhatTheStoppedRaised(Translating):
    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        error = error_of(result)
        if isinstance(error, WorkStoppedError | DeadlineExceededError) and error.__cause__:
            return outcome.Error(error.__cause__)
        return None


@breaks("a_value_stands")
class DropsTheValueOfTheCancelled(Translating):
    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        reason = self.cancelled.get(run.id)
        if reason is None or not isinstance(result, outcome.Value):
            return None
        return outcome.Error(WorkStoppedError(reason))

    def __init__(self, works: WorkRegistry, max_workers: int = 10) -> None:
        super().__init__(works, max_workers)
        self.cancelled: dict[str, StopReason] = {}

    def cancel(self, run: Task, reason: StopReason) -> bool:
        self.cancelled[run.id] = reason
        return super().cancel(run, reason)


@breaks("a_value_stands_after_a_deadline")
class DropsTheValueOfTheLate(Translating):
    def translate(self, run: Task, result: outcome.Outcome[Any]) -> Any:
        if run.deadline is None or run.deadline > self.clock.now():
            return None
        return outcome.Error(DeadlineExceededError(run.deadline.isoformat(), started=True))


@breaks("a_cancelled_nursery_stops_all")
class DropsResultsOfTheStopped(Altered):
    def alter(self, run: Task, result: outcome.Outcome[Any]) -> Sequence[TaskResult]:
        stopped = isinstance(error_of(result), WorkStoppedError)
        return [] if stopped else super().alter(run, result)


@breaks("a_cancelled_nursery_waits")
class AbandonsThreads(Calling):
    async def call(self, work: Work, param: dict[str, Any]) -> Any:
        if work.in_thread:
            return await trio.to_thread.run_sync(
                lambda: work.function(**param), abandon_on_cancel=True
            )
        return await super().call(work, param)
