"""What the checks of a dispatcher have in common: somebody who feeds it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

import attrs
import outcome
import trio

from trio_gokugen._clock import TrioClock
from trio_gokugen._task import Task, TaskState
from trio_gokugen.abc import (
    ANY_TASK,
    Dispatcher,
    Fetch,
    Free,
    Start,
    TaskFilter,
    TaskResult,
    WorkRegistry,
)

from ._expect import expect, expect_equal, expect_error
from ._repository_kit import EPOCH
from ._suite import Check
from ._works import conformance_works

OpenDispatcher: TypeAlias = Callable[
    [WorkRegistry, int], AbstractAsyncContextManager[Dispatcher]
]
"""Gives a context manager around a fresh dispatcher for these works, of that size."""

DispatcherCheck: TypeAlias = Callable[[OpenDispatcher], Awaitable[None]]


class DispatcherChecks(list[Check[OpenDispatcher]]):
    """The checks of a module. Used as a decorator, it adds one."""

    def __call__(self, function: DispatcherCheck) -> DispatcherCheck:
        """Add a check."""
        self.append(Check(function))
        return function


SAME_PROCESS_CHECKS: set[str] = set()
STOPPING_CHECKS: set[str] = set()


def same_process(function: DispatcherCheck) -> DispatcherCheck:
    """Note that a check is of works that share memory and clock with the suite."""
    SAME_PROCESS_CHECKS.add(function.__name__)
    return function


def stopping(function: DispatcherCheck) -> DispatcherCheck:
    """Note that a check is of works that are cancelled while they run."""
    STOPPING_CHECKS.add(function.__name__)
    return function


def run_of(work_id: str, task_id: str | None = None, /, **param: Any) -> Task:
    """A task of one of the conformance works, as a claim gives it."""
    return Task(
        id=work_id if task_id is None else task_id,
        work_id=work_id,
        param=param,
        state=TaskState.DISPATCHED,
        attempt=1,
        scheduled_at=EPOCH,
        created_at=EPOCH,
        dispatched_at=EPOCH,
    )


async def a_few_steps() -> None:
    """Let works begin that were started in this process.

    Not by a sleep: while works run elsewhere, the clock stands still.
    """
    for _ in range(10):
        await trio.lowlevel.checkpoint()


class Results(list[TaskResult]):
    """What has been reported, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._news = trio.lowlevel.ParkingLot()

    def send_nowait(self, value: TaskResult, /) -> None:
        """Take a result, as the scheduler's `ResultChannel`."""
        self.append(value)
        self._news.unpark_all()

    def of(self, run: Task) -> list[TaskResult]:
        """The results of this very run."""
        return [result for result in self if result.run is run]

    async def wait_for(self, *runs: Task) -> list[outcome.Outcome[Any]]:
        """Wait until each of the runs has ended. Returns how."""
        while not all(self.of(run) for run in runs):
            await self._news.park()
        return [self.of(run)[0].outcome for run in runs]


@attrs.define(eq=False)
class Bench:
    """A dispatcher that is open for business, and who feeds it."""

    dispatcher: Dispatcher
    nursery: trio.Nursery
    clock: TrioClock
    results: Results

    def fetch_of(self, runs: deque[Task]) -> Fetch:
        """A fetch that takes of these runs as many as there are workers free."""

        async def fetch(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
            del only
            await trio.lowlevel.checkpoint()
            expect(free() > 0, "tasks were fetched with no worker free")
            number = min(free(), len(runs))
            for _ in range(number):
                self.start(runs.popleft(), start)
            # Whoever claims does not come back at once.
            await trio.lowlevel.cancel_shielded_checkpoint()
            return number

        return fetch

    def start(self, run: Task, start: Start) -> None:
        """Start a run as the scheduler does: an error is how it has ended."""
        try:
            start(run)
        except Exception as error:  # noqa: BLE001 (that it is an Exception is all)
            self.results.send_nowait(TaskResult(run, outcome.Error(error)))

    async def dispatch(self, *runs: Task) -> None:
        """Return once these runs have started; it may take workers to get free."""
        waiting = deque(runs)
        fetch = self.fetch_of(waiting)
        while waiting:
            before = len(waiting)
            await self.dispatcher.dispatch(fetch)
            expect(len(waiting) < before, "dispatch returned without having fetched")

    async def outcomes_of(self, *runs: Task) -> list[outcome.Outcome[Any]]:
        """Start these runs, and wait for them to end. Returns how."""
        await self.dispatch(*runs)
        return await self.results.wait_for(*runs)

    async def outcome_of(self, run: Task) -> outcome.Outcome[Any]:
        """Start this run, and wait for its end. Returns how."""
        [result] = await self.outcomes_of(run)
        return result

    async def count_free(self) -> int:
        """How many workers are free, as a fetch that takes nothing is told."""
        counts: list[int] = []

        async def fetch(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
            del start, only
            await trio.lowlevel.checkpoint()
            counts.append(free())
            return 0

        await self.dispatcher.dispatch(fetch)
        expect_equal("how often one dispatch has fetched", len(counts), 1)
        return counts[0]

    async def expect_all_free(self, what: str) -> None:
        """Every worker must be free again."""
        statistics = self.dispatcher.statistics()
        expect_equal(f"running, after {what}", statistics.running, 0)
        free = await self.count_free()
        expect_equal(f"free workers, after {what}", free, statistics.max_workers)


@asynccontextmanager
async def bench(
    open_dispatcher: OpenDispatcher, max_workers: int = 3
) -> AsyncGenerator[Bench]:
    """A dispatcher that is started, in a nursery that is cancelled at the end."""
    async with open_dispatcher(conformance_works, max_workers) as dispatcher:
        results = Results()
        ended = False
        async with trio.open_nursery() as nursery:
            clock = TrioClock(EPOCH)
            await dispatcher.start(nursery, results, clock)
            yield Bench(dispatcher, nursery, clock, results)
            ended = True
            nursery.cancel_scope.cancel()
        expect(ended, "the nursery that the dispatcher was given has been cancelled")


def expect_value(what: str, actual: outcome.Outcome[Any], expected: object) -> None:
    """It must be this value."""
    expect_equal(f"the outcome of {what}", actual, outcome.Value(expected))


def expect_failure(
    what: str,
    actual: outcome.Outcome[Any],
    error_type: type[BaseException],
    **fields: object,
) -> None:
    """It must be such an error, with these values in its fields."""
    error = actual.error if isinstance(actual, outcome.Error) else actual
    expect_error(f"the outcome of {what}", error, error_type, **fields)
