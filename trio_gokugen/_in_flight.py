"""Runs in flight: what is the same for all that run works elsewhere.

A run in flight is no Trio task and no thread, but a small object that the executor's
future calls when it is done. What is done is collected in Trio, all there is at a time.

An executor cannot stop what runs, as a rule. Then the run has ended when its work has, and
not before: the task would run again meanwhile.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections import deque
from collections.abc import Generator
from concurrent.futures import Executor
from datetime import datetime
from typing import Any, cast

import attrs
import outcome
import trio

from ._autojump import autojump_held
from ._conditions import ask
from ._conditions import scheduler as running_scheduler
from ._current_task import running
from ._errors import (
    DeadlineExceededError,
    GokugenError,
    LeakedCancelledError,
    SchedulerAlreadyRunningError,
    StopReason,
    WorkLostError,
    WorkStoppedError,
    WorkTimeoutError,
    not_stopped,
    shown,
)
from ._executor_calls import Landed, resolve
from ._limits import at_least_one
from ._registries import is_registry
from ._taken_apart import put_together
from ._task import Progress, RunKey, Task, run_key
from .abc import Clock, DispatcherStatistics, Fetch, ResultChannel, TaskResult, WorkRegistry

MAX_IN_FLIGHT = 1_000


@attrs.define(eq=False)
class Flight:
    """A run that was started and has not been reported."""

    run: Task
    handle: Any = None
    """What its executor knows it by, once it has it."""

    executor: Executor | None = None
    """Who has it, if it is one of several that take the place of one another."""

    scope: trio.CancelScope | None = None
    """While its condition is asked."""

    stopped: Exception | None = None
    """What the run has failed with if its work does not return all the same."""

    spent: float = 0.0
    """Seconds of its time-out that its condition has taken."""

    ended: outcome.Outcome[Any] | None = None
    """How it has ended, once it has: while its last progress is written."""


@attrs.define(order=True)
class _Bound:
    deadline: datetime
    number: int
    flight: Flight = attrs.field(order=False)


class InFlightDispatcher:
    """What dispatchers have in common whose runs are in flight: how they are kept.

    A subclass knows how a run is launched, how it is stopped, and what has become of it.
    """

    def __init__(self, works: WorkRegistry | str, max_in_flight: int) -> None:
        self._path = works if isinstance(works, str) else None
        self._works = resolve(works) if isinstance(works, str) else works
        if not is_registry(self._works):
            raise TypeError(
                "works: must be a registry of works, or its import path 'module:name',"
                f" not {shown(works)}"
            )
        self._max_in_flight = at_least_one(max_in_flight, "max_in_flight")
        self._flights: dict[RunKey, Flight] = {}
        self._landed: deque[tuple[Flight, Landed | BaseException]] = deque()
        """What other threads have brought: appended there, and collected in Trio."""

        self._told: deque[tuple[Flight, Progress]] = deque()
        self._news: dict[Flight, Progress] = {}
        """The last progress of runs that is not recorded yet."""

        self._telling: Flight | None = None
        self._has_news = trio.Event()
        self._recording = False
        self._room = trio.lowlevel.ParkingLot()
        self._bounds: list[_Bound] = []
        self._bounded = 0
        """How many have been put into `_bounds`."""

        self._new_bound = trio.Event()
        self._hold = contextlib.ExitStack()
        """Keeps a mock clock from jumping, while anything is in flight."""

        self._aloft = 0
        self._serving = False
        self._token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery
        self._results: ResultChannel
        self._clock: Clock

    @property
    def max_in_flight(self) -> int:
        """How many runs there may be at a time, running or waiting: at least 1."""
        return self._max_in_flight

    @max_in_flight.setter
    def max_in_flight(self, value: int) -> None:
        self._max_in_flight = at_least_one(value, "max_in_flight")
        self._room.unpark_all()

    def statistics(self) -> DispatcherStatistics:
        return DispatcherStatistics(self._max_in_flight, len(self._flights))

    # -- for a subclass ---------------------------------------------------------------

    async def _ready(self) -> None:
        """Return when runs can be launched, or raise an `ExecutorLostError`."""

    def _launch(self, flight: Flight) -> None:
        """Have the work begin, which must land. What this raises is how it ended."""
        raise NotImplementedError

    def _stop(self, flight: Flight) -> None:
        """Keep a work from beginning, or stop it, as far as can be. It must land."""
        raise NotImplementedError

    def _land(self, flight: Flight, landed: Landed | BaseException) -> None:
        """Take what has become of a run that was launched. From any thread.

        The loop cannot have ended: whoever serves in it waits for all runs to land.
        """
        self._landed.append((flight, landed))
        self._token.run_sync_soon(self._collect, idempotent=True)

    def _tell(self, flight: Flight, progress: Progress) -> None:
        """Take what a work has told of itself. From any thread, before it lands."""
        self._told.append((flight, progress))
        self._token.run_sync_soon(self._collect, idempotent=True)

    # -- what the scheduler calls -----------------------------------------------------

    async def start(
        self, nursery: trio.Nursery, results: ResultChannel, clock: Clock
    ) -> None:
        """Be at work in the nursery until it is cancelled, and all runs have ended."""
        if self._serving or self._flights:
            raise SchedulerAlreadyRunningError("dispatcher's scheduler")
        self._token = trio.lowlevel.current_trio_token()
        self._nursery = nursery
        self._results = results
        self._clock = clock
        await nursery.start(self._serve)

    async def dispatch(self, fetch: Fetch) -> None:
        """Block until there is room for a run, and only then fetch tasks."""
        await self._ready()
        while not self._free():
            await self._room.park()
            await self._ready()
        await fetch(self._free, self._start_run)

    def cancel(self, run: Task, reason: StopReason) -> bool:
        """Stop a run. Its result comes when its work has ended."""
        flight = self._flights.get(run_key(run))
        if flight is None:
            return False
        self._stop_for(flight, WorkStoppedError(reason))
        return True

    def _free(self) -> int:
        return max(0, self._max_in_flight - len(self._flights))

    def _start_run(self, run: Task) -> None:
        if not self._serving:
            # The scheduler was cancelled while the claim was being written.
            raise WorkStoppedError(StopReason.SHUTDOWN, started=False)
        self._works.get(run.work_id)  # must be known here, too
        if run.deadline is not None and run.deadline <= self._clock.now():
            raise DeadlineExceededError(run.deadline.isoformat(), started=False)
        flight = Flight(run)
        self._flights[run_key(run)] = flight
        if run.deadline is not None:
            self._bound(run.deadline, flight)
        if run.when is not None:
            flight.scope = trio.CancelScope()
            self._nursery.start_soon(self._ask_first, flight, flight.scope)
        else:
            self._lift(flight)

    def _lift(self, flight: Flight) -> None:
        if not self._aloft:
            self._hold.enter_context(autojump_held())
        self._aloft += 1
        try:
            self._launch(flight)
        except BaseException as error:  # noqa: BLE001 (it is the outcome)
            self._land(flight, error)

    @trio.lowlevel.enable_ki_protection
    async def _ask_first(self, flight: Flight, scope: trio.CancelScope) -> None:
        """Ask the condition of a run, and have its work begin if it is to."""
        run = flight.run
        assert run.when is not None
        running.set(run)
        timeout = self._works.get(run.work_id).timeout
        failed: BaseException | None = None
        began = trio.current_time()
        try:
            with scope, trio.CancelScope() as until_timeout:
                if timeout is not None:
                    until_timeout.deadline = began + timeout
                await ask(self._works.get_condition(run.when), run)
            if timeout is not None and until_timeout.cancelled_caught:
                failed = WorkTimeoutError(timeout)
        except BaseException as error:
            if trio.current_effective_deadline() == -math.inf and _has_cancelled(error):
                self._stop_for(flight, WorkStoppedError(StopReason.SHUTDOWN))
                self._report(flight, outcome.Error(_not_started(flight.stopped)))
                raise
            # It is the outcome; and a cancellation that is nobody's, a fault of its own.
            leaked = _has_cancelled(error)
            failed = LeakedCancelledError() if leaked else not_stopped(error)
        flight.scope = None
        flight.spent = trio.current_time() - began
        if flight.stopped is not None and not leaves(failed):
            stopped = _not_started(flight.stopped)
            stopped.__cause__ = failed
            self._report(flight, outcome.Error(stopped))
        elif failed is not None:
            self._report(flight, outcome.Error(failed))
        else:
            self._lift(flight)

    # -- stopping ---------------------------------------------------------------------

    def _stop_for(self, flight: Flight, error: Exception) -> None:
        """Stop a run for the first reason there is."""
        if flight.stopped is not None:
            return
        flight.stopped = error
        if flight.scope is not None:
            flight.scope.cancel()
        elif flight.ended is None:
            self._stop(flight)

    def _bound(self, deadline: datetime, flight: Flight) -> None:
        if len(self._bounds) > 2 * len(self._flights) + 64:
            # Most are of runs that have ended long before their deadlines.
            self._bounds = [b for b in self._bounds if self._is_aloft(b.flight)]
            heapq.heapify(self._bounds)
        self._bounded += 1
        heapq.heappush(self._bounds, _Bound(deadline, self._bounded, flight))
        self._new_bound.set()

    def _is_aloft(self, flight: Flight) -> bool:
        return self._flights.get(run_key(flight.run)) is flight

    async def _watch_deadlines(self) -> None:
        """Look at the clock when a deadline comes, and now and then: it may be set."""
        while True:
            now = self._clock.now()
            while self._bounds and self._bounds[0].deadline <= now:
                bound = heapq.heappop(self._bounds)
                if self._is_aloft(bound.flight):
                    moment = bound.deadline.isoformat()
                    late = DeadlineExceededError(moment, started=True)
                    self._stop_for(bound.flight, late)
            wake = math.inf
            if self._bounds:
                longest = trio.current_time() + self._clock.max_sleep
                wake = min(self._clock.deadline_for(self._bounds[0].deadline), longest)
            self._new_bound = trio.Event()
            with trio.CancelScope(deadline=wake):
                await self._new_bound.wait()

    # -- serving ----------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _serve(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Watch deadlines and record progress until cancelled; then wait for all runs."""
        self._serving = True
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_deadlines)
                nursery.start_soon(self._record_progress)
        finally:
            self._serving = False
            self._bounds = []
            for flight in list(self._flights.values()):
                self._stop_for(flight, WorkStoppedError(StopReason.SHUTDOWN))
            with trio.CancelScope(shield=True):
                while self._aloft:
                    await self._room.park()

    def _collect(self) -> None:
        """In Trio: take what other threads have brought."""
        while self._told:
            flight, progress = self._told.popleft()
            # A thread that a work has left behind may tell when nobody asks any more.
            if self._recording and self._is_aloft(flight) and flight.ended is None:
                self._news[flight] = progress
                self._has_news.set()
        while self._landed:
            flight, landed = self._landed.popleft()
            if flight.ended is not None:
                continue  # its future has called twice
            self._aloft -= 1
            flight.handle = None
            try:
                flight.ended = self._outcome(flight, landed)
            except BaseException as error:  # noqa: BLE001 (Trio would crash by it)
                flight.ended = outcome.Error(error)
            if flight is not self._telling and flight not in self._news:
                self._report(flight, flight.ended)
        if not self._aloft:
            self._hold.close()
            self._room.unpark_all()

    def _report(self, flight: Flight, result: outcome.Outcome[Any]) -> None:
        # Not if a mock clock has shown the same moment when its id was used again.
        if self._is_aloft(flight):
            del self._flights[run_key(flight.run)]
        self._room.unpark_all()
        self._results.send_nowait(TaskResult(flight.run, result))

    def _outcome(
        self, flight: Flight, landed: Landed | BaseException
    ) -> outcome.Outcome[Any]:
        """What is reported of a run. A value stands, whoever had stopped it meanwhile."""
        stopped = flight.stopped
        if isinstance(landed, BaseException):
            error = landed
        elif landed.left == "value":
            return outcome.Value(landed.payload)
        elif landed.left == "refused":
            return outcome.Error(_not_started(stopped))
        elif landed.left == "stopped":
            return outcome.Error(_nobody() if stopped is None else stopped)
        elif landed.left == "apart":
            error = put_together(landed.payload)
        else:
            error = landed.payload
        error = not_stopped(error)
        if stopped is not None and not leaves(error):
            stopped.__cause__, error = error, stopped
        return outcome.Error(error)

    # -- progress ---------------------------------------------------------------------

    async def _record_progress(self) -> None:
        """Have the scheduler record what works tell, one at a time, the last of each."""
        scheduler = running_scheduler.get(None)
        self._recording = True
        try:
            while True:
                while self._news:
                    flight = next(iter(self._news))
                    with self._telling_of(flight) as progress:
                        if scheduler is None:  # whoever feeds us has no use for it
                            continue
                        running.set(flight.run)
                        with contextlib.suppress(GokugenError):
                            # The run has lost its task, or the hooks have decided that
                            # this may be lost.
                            await scheduler.progress(progress.fraction, progress.note)
                self._has_news = trio.Event()
                await self._has_news.wait()
        finally:
            self._recording = False
            for flight in list(self._news):
                with self._telling_of(flight):
                    pass

    @contextlib.contextmanager
    def _telling_of(self, flight: Flight) -> Generator[Progress]:
        """Its news, after which it is reported, if it has landed meanwhile."""
        self._telling = flight
        try:
            yield self._news.pop(flight)
        finally:
            self._telling = None
            if flight.ended is not None and flight not in self._news:
                self._report(flight, flight.ended)


def _not_started(stopped: Exception | None) -> Exception:
    """The same reason, of a work that has not begun."""
    if isinstance(stopped, DeadlineExceededError):
        return DeadlineExceededError(stopped.deadline, started=False)
    if isinstance(stopped, WorkStoppedError):
        return WorkStoppedError(stopped.reason, started=False)
    # It was the executor itself that has let it go.
    return WorkStoppedError(StopReason.LOST_EXECUTOR, started=False)


def _nobody() -> Exception:
    return WorkLostError("it was stopped where it ran, and not from here")


def _has_cancelled(error: BaseException) -> bool:
    """Whether it is a cancellation of Trio's, or a group with one in it."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return any(map(_has_cancelled, group.exceptions))
    return isinstance(error, trio.Cancelled)


def leaves(error: BaseException | None) -> bool:
    """Whether it is none that a stop outweighs: a Ctrl-C, or the like."""
    return error is not None and not isinstance(error, Exception)
