"""Works run by a pool of workers in the scheduler's nursery.

A worker is a Trio task that lives for many runs: starting a Trio task costs three times
what waking one does. A `trio.CapacityLimiter` says how many runs there may be; workers
are made when there is none idle.

What must not leak from one run to the next:

* context variables: before it waits for its next run, a worker puts a fresh copy of the
  pool's context in place of its own, which Trio uses from the next step on;
* a cancellation: a worker's cancel scope serves all its runs, but once it has been
  cancelled the worker ends, and another takes its place;
* a cancel scope that a work has entered and never left: the worker ends likewise.
"""

from __future__ import annotations

import contextvars
import functools
import math
import os
import sys
from collections.abc import Awaitable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import attrs
import outcome
import trio
from trio.lowlevel import reschedule, wait_task_rescheduled

from ._autojump import autojump_held
from ._conditions import ask
from ._current_task import running
from ._errors import (
    DeadlineExceededError,
    LeakedCancelledError,
    SchedulerAlreadyRunningError,
    StopReason,
    WorkNotFoundError,
    WorkStoppedError,
    WorkTimeoutError,
    not_stopped,
)
from ._json import fresh
from ._limits import at_least_one
from ._registries import check_works
from ._task import RunKey, Task, evolve, run_key
from .abc import (
    Clock,
    DispatcherStatistics,
    Fetch,
    ResultChannel,
    TaskResult,
    Work,
    WorkRegistry,
)

if TYPE_CHECKING:
    from ._processes import Processes


@attrs.define(eq=False)
class _Worker:
    """A Trio task that runs works, one after the other."""

    idle: dict[_Worker, None]
    """The pool's idle workers."""

    run: Task | None
    """What it runs; none while it is idle."""

    key: RunKey = attrs.field(init=False)
    """Of its run, or of the last one."""

    has_token: bool = False
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    reason: StopReason | None = None
    """Why the scope was cancelled."""

    stopped_at: float = math.inf
    """When it was, on Trio's clock."""

    started: bool = True
    """Whether the work has: not while a condition is asked, or it waits for its turn."""

    until_timeout: trio.CancelScope | None = None
    """What cancels the run at its time-out, if it has one."""

    left: float = math.inf
    """Seconds that are left of the time-out, while the work waits for its turn."""

    exceeded: Exception | None = None
    """The bound that was the first to cancel the run."""

    trio_task: trio.lowlevel.Task = attrs.field(init=False)

    def wait(self) -> None:
        """Note that the work waits for its turn: its time-out does not run meanwhile."""
        self.started = False
        if self.until_timeout is not None and not self.until_timeout.cancel_called:
            # Its condition may have taken some of it.
            self.left = self.until_timeout.deadline - trio.current_time()
            self.until_timeout.deadline = math.inf

    def begin(self) -> None:
        """Note that it has got its turn, and begins."""
        self.started = True
        if self.until_timeout is not None:
            self.until_timeout.deadline = trio.current_time() + self.left

    def stop_waiting(self, _: object) -> trio.lowlevel.Abort:
        """What Trio calls to cancel its wait for a run."""
        del self.idle[self]
        return trio.lowlevel.Abort.SUCCEEDED


class WorkerPoolDispatcher:
    """Runs works in Trio tasks, in threads, and in processes that it starts.

    Async functions run as Trio tasks, others in threads, where `trio.from_thread` works.
    One that is cancelled in a thread is waited for: it ends sooner if it calls
    `trio.from_thread.check_cancelled` now and then. Works registered with `process` run in
    processes, which are the pool's own: started when they are needed, kept for the next
    work, and ended with the scheduler. One whose work is cancelled is killed at once; if
    one dies, the run in it fails with a `WorkerDiedError`, and no other.

    At most `max_workers` run at a time. The number may be changed while running: work
    that runs is not disturbed, and new work starts once there is room for it.

    Works in threads, and those in processes, may have a limit of their own below that,
    `max_threads` and `max_processes`, which may be changed likewise. One
    that waits there for its turn takes up a worker, and counts as running; it has not
    started, its `timeout` not begun, and if it is cancelled it never starts.

    Args:
      works: What tasks can name.
      max_workers: How many works may run at a time, of whatever kind.
      max_processes: How many in processes: by default as many as there are processors for
        this program, since more would only share these.
      max_threads: How many in threads: by default as many as there are workers. No other
        pool's threads are counted, nor those of `trio.to_thread`.

    Raises:
      TypeError: for a number that is not an int; or this is no registry of works.
      ValueError: for one below 1.
    """

    def __init__(
        self,
        works: WorkRegistry,
        max_workers: int = 10,
        *,
        max_processes: int | None = None,
        max_threads: int | None = None,
    ) -> None:
        check_works(works)
        self._works = works
        self._max_workers = at_least_one(max_workers, "max_workers")
        self._limiter = trio.CapacityLimiter(max_workers)
        # The pool is the limit; Trio's default of 40 threads would be a second one.
        self._unlimited = trio.CapacityLimiter(math.inf)
        self._threads = trio.CapacityLimiter(math.inf)
        self.max_threads = max_threads
        if max_processes is None:
            max_processes = _processors()
        self._process_limiter = trio.CapacityLimiter(
            at_least_one(max_processes, "max_processes")
        )
        self._processes: Processes | None = None
        """None before the first work that needs one."""
        # A task that was taken back and claimed anew may have two.
        self._runs: dict[RunKey, _Worker] = {}
        self._idle: dict[_Worker, None] = {}
        self._bounded: dict[trio.CancelScope, datetime] = {}
        self._first_bounded = trio.Event()
        self._ended = -math.inf
        """When it ended, on Trio's clock: later than all, while it serves."""

    @property
    def max_workers(self) -> int:
        """How many works may run at a time: at least 1."""
        return self._max_workers

    @max_workers.setter
    def max_workers(self, value: int) -> None:
        self._max_workers = at_least_one(value, "max_workers")
        self._limiter.total_tokens = value

    @property
    def max_threads(self) -> int | None:
        """How many may run in threads at a time; `None` for as many as workers."""
        limit = self._threads.total_tokens
        return None if limit == math.inf else int(limit)

    @max_threads.setter
    def max_threads(self, value: int | None) -> None:
        limit = math.inf if value is None else at_least_one(value, "max_threads")
        self._threads.total_tokens = limit

    @property
    def max_processes(self) -> int:
        """How many may run in processes at a time: at least 1."""
        return int(self._process_limiter.total_tokens)

    @max_processes.setter
    def max_processes(self, value: int) -> None:
        self._process_limiter.total_tokens = at_least_one(value, "max_processes")

    def statistics(self) -> DispatcherStatistics:
        return DispatcherStatistics(self.max_workers, len(self._runs))

    # -- what the scheduler calls -----------------------------------------------------

    async def start(
        self, nursery: trio.Nursery, results: ResultChannel, clock: Clock
    ) -> None:
        """Let workers live in the nursery until it is cancelled."""
        _check_main_is_guarded()
        # Works may take their time to end, and their results are for their own scheduler.
        if self._ended == math.inf or self._runs:
            raise SchedulerAlreadyRunningError("dispatcher's scheduler")
        self._ended = math.inf
        self._nursery = nursery
        self._results = results
        self._clock = clock
        self._context = contextvars.copy_context()
        await nursery.start(self._serve)

    async def dispatch(self, fetch: Fetch) -> None:
        """Block until a worker is free, and only then fetch tasks."""
        if not self._free():
            gate = object()
            await self._limiter.acquire_on_behalf_of(gate)
            self._limiter.release_on_behalf_of(gate)
        await fetch(self._free, self._start_run)

    def cancel(self, run: Task, reason: StopReason) -> bool:
        """Cancel a running work. Its result comes when it has ended."""
        worker = self._runs.get(run_key(run))
        if worker is None:
            return False
        if worker.reason is None:
            worker.reason = reason
            worker.stopped_at = trio.current_time()
            worker.scope.cancel()
        return True

    def _free(self) -> int:
        return max(0, int(self._limiter.available_tokens))

    def _start_run(self, run: Task) -> None:
        if self._ended < math.inf:
            # The scheduler was cancelled while the claim was being written.
            raise WorkStoppedError(StopReason.SHUTDOWN, started=False)
        if self._idle:
            worker, _ = self._idle.popitem()
            worker.run = run
            reschedule(worker.trio_task)
        else:
            worker = _Worker(self._idle, run)
            self._context.run(self._nursery.start_soon, self._live, worker)
        worker.key = run_key(run)
        self._runs[worker.key] = worker
        try:
            self._limiter.acquire_on_behalf_of_nowait(worker)
        except trio.WouldBlock:
            # The pool was shrunk while the claim was written: the worker waits.
            worker.has_token = False
        else:
            worker.has_token = True

    @trio.lowlevel.enable_ki_protection
    async def _serve(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look at the clock now and then, for the deadlines of works that run.

        Their scopes tell Trio's time: if the wall clock is set, or the machine wakes from
        suspension, they must be moved.
        """
        task_status.started()
        try:
            while True:
                if self._bounded:
                    await trio.sleep(self._clock.max_sleep)
                else:
                    self._first_bounded = trio.Event()
                    await self._first_bounded.wait()
                for scope, deadline in self._bounded.items():
                    if not scope.cancel_called:  # it must stay known when it was
                        scope.deadline = self._clock.deadline_for(deadline)
        finally:
            self._ended = trio.current_time()
            # The pool may be started anew before these have ended.
            processes, self._processes = self._processes, None
            if processes is not None:
                await processes.aclose()

    # -- a worker's life --------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _live(self, worker: _Worker) -> None:
        """Run works until cancelled, and report a result for every one of them."""
        worker.trio_task = trio.lowlevel.current_task()
        result: outcome.Outcome[Any] | None = None
        left: BaseException | None = None
        try:
            with worker.scope:
                trio_task, stop_waiting = worker.trio_task, worker.stop_waiting
                scopes = _open_scopes(trio_task)
                while worker.run is not None and worker.reason is None:
                    if not worker.has_token:
                        await self._limiter.acquire_on_behalf_of(worker)
                        worker.has_token = True
                    result = await self._begin(worker, worker.run)
                    if (
                        worker.reason is not None
                        or _open_scopes(trio_task) is not scopes
                        or (not isinstance(result, outcome.Value) and _cancelled())
                    ):
                        break
                    self._report(worker, worker.run, result)
                    if len(self._idle) + len(self._runs) >= self._max_workers:
                        break  # the pool has become smaller
                    # What became of this run must not be taken for the next one's, if
                    # that is stopped before it has begun.
                    result = None
                    trio_task.context = self._context.copy()
                    self._idle[worker] = None
                    await wait_task_rescheduled(stop_waiting)
        except BaseException as error:
            left = error
            if worker.run is None:
                raise
        # Only out here, with all scopes of the work left behind, can be told whose
        # cancellation it was.
        if worker.run is not None:
            self._report(worker, worker.run, _last_outcome(worker, result, left))
            await trio.lowlevel.checkpoint_if_cancelled()

    def _begin(self, worker: _Worker, run: Task) -> Awaitable[outcome.Outcome[Any]]:
        """The call of a run's work, to be awaited. Not async, to spare a frame."""
        running.set(run)
        try:
            work = self._works.get(run.work_id)
        except WorkNotFoundError as error:
            return _failed(error)
        if run.deadline is None and work.timeout is None:
            return self._call(work, run, worker)
        return self._call_bounded(work, run, worker)

    def _call(
        self, work: Work, run: Task, worker: _Worker
    ) -> Awaitable[outcome.Outcome[Any]]:
        """What a work returned or raised. Lets a `trio.Cancelled` and the like through."""
        if run.when is not None:
            return self._call_if_wanted(work, run, worker)
        if work.in_process:
            return self._call_in_process(work, run, worker)
        if work.in_thread:
            return self._call_in_thread(work, run, worker)
        return _call_async(work, run)

    async def _call_if_wanted(
        self, work: Work, run: Task, worker: _Worker
    ) -> outcome.Outcome[Any]:
        assert run.when is not None
        worker.started = False
        try:
            await ask(self._works.get_condition(run.when), run)
            worker.started = True
        except Exception as error:  # noqa: BLE001 (it is the outcome)
            return outcome.Error(not_stopped(error))
        return await self._call(work, evolve(run, {"when": None}), worker)

    async def _call_in_thread(
        self, work: Work, run: Task, worker: _Worker
    ) -> outcome.Outcome[Any]:
        try:
            if self._threads.total_tokens == math.inf:
                # Counted all the same: there may be a limit by the next one's turn.
                return await self._in_thread(work, run, self._threads)
            worker.wait()
            async with self._threads:
                await trio.lowlevel.checkpoint_if_cancelled()
                worker.begin()
                return await self._in_thread(work, run, self._unlimited)
        except Exception as error:  # noqa: BLE001 (it is the outcome)
            return outcome.Error(not_stopped(error))

    async def _in_thread(
        self, work: Work, run: Task, limiter: trio.CapacityLimiter
    ) -> outcome.Outcome[Any]:
        with autojump_held():
            value = await trio.to_thread.run_sync(
                functools.partial(work.function, **fresh(run.param)),
                # True would let the thread go on, and its task be run again meanwhile.
                abandon_on_cancel=False,
                limiter=limiter,
            )
        return outcome.Value(value)

    async def _call_in_process(
        self, work: Work, run: Task, worker: _Worker
    ) -> outcome.Outcome[Any]:
        worker.wait()
        try:
            async with self._process_limiter:
                await trio.lowlevel.checkpoint_if_cancelled()
                if self._processes is None:
                    from ._processes import Processes  # noqa: PLC0415 (of an extra)

                    self._processes = Processes()
                await self._processes.make_ready()
                await trio.lowlevel.checkpoint_if_cancelled()
                worker.begin()
                return await self._processes.call(work, run)
        except Exception as error:  # noqa: BLE001 (it is the outcome)
            return outcome.Error(not_stopped(error))

    async def _call_bounded(
        self, work: Work, run: Task, worker: _Worker
    ) -> outcome.Outcome[Any]:
        """Call the work within its task's deadline and its own timeout."""
        until_deadline = trio.CancelScope()
        if run.deadline is not None:
            if run.deadline <= self._clock.now():
                late = DeadlineExceededError(run.deadline.isoformat(), started=False)
                return outcome.Error(late)
            until_deadline.deadline = self._clock.deadline_for(run.deadline)
            self._bounded[until_deadline] = run.deadline
            self._first_bounded.set()
        until_timeout = trio.CancelScope()
        if work.timeout is not None:
            until_timeout.deadline = trio.current_time() + work.timeout
            worker.until_timeout = until_timeout
        result: outcome.Outcome[Any] | None = None
        left: BaseException | None = None
        try:
            with until_deadline, until_timeout:
                try:
                    result = await self._call(work, run, worker)
                except BaseException as error:
                    left = error  # its traceback tells where the work was
                    raise
        except Exception as error:  # noqa: BLE001 (it is the outcome)
            result = outcome.Error(error)  # of a group, what is not a cancellation
        finally:
            self._bounded.pop(until_deadline, None)
            fired = [s for s in (until_deadline, until_timeout) if s.cancel_called]
            first = min(fired, key=lambda scope: scope.deadline, default=None)
            if first is not None and first.deadline <= min(worker.stopped_at, self._ended):
                by_timeout = first is until_timeout
                worker.exceeded = _exceeded(work, run, worker, by_timeout=by_timeout)
                worker.exceeded.__cause__ = (
                    result.error if isinstance(result, outcome.Error) else left
                )
        if isinstance(result, outcome.Value):
            return result  # it had ended before the cancellation reached it
        if worker.exceeded is not None:
            return outcome.Error(worker.exceeded)
        assert result is not None
        return result

    def _report(self, worker: _Worker, run: Task, result: outcome.Outcome[Any]) -> None:
        worker.run = worker.exceeded = worker.until_timeout = None
        worker.started = True
        # Not if a mock clock has shown the same moment when its id was used again.
        if self._runs.get(worker.key) is worker:
            del self._runs[worker.key]
        if worker.has_token:
            self._limiter.release_on_behalf_of(worker)
        self._results.send_nowait(TaskResult(run, result))


def _check_main_is_guarded() -> None:
    """Stop a script that is run anew in each process that it starts."""
    module = sys.modules.get("multiprocessing.process")
    # What `multiprocessing` itself looks at before it starts a process.
    if module is not None and getattr(module.current_process(), "_inheriting", False):
        raise RuntimeError(
            "this process was started to run works, and runs the whole script again:"
            ' put its trio.run under if __name__ == "__main__":'
        )


def _processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # pragma: no cover: only Windows and macOS get here


# A Ctrl-C that comes in here has interrupted the work, whose own frame is one below.
@trio.lowlevel.disable_ki_protection
async def _call_async(work: Work, run: Task) -> outcome.Outcome[Any]:
    try:
        return outcome.Value(await work.function(**fresh(run.param)))
    except Exception as error:  # noqa: BLE001 (it is the outcome)
        return outcome.Error(not_stopped(error))


def _cancelled() -> bool:
    return trio.current_effective_deadline() == -math.inf


async def _failed(error: Exception) -> outcome.Outcome[Any]:
    return outcome.Error(error)


def _exceeded(work: Work, run: Task, worker: _Worker, *, by_timeout: bool) -> Exception:
    if by_timeout:
        assert work.timeout is not None
        return WorkTimeoutError(work.timeout)
    assert run.deadline is not None
    return DeadlineExceededError(run.deadline.isoformat(), started=worker.started)


def _open_scopes(trio_task: trio.lowlevel.Task) -> object:
    """Changes when the task enters a cancel scope, and back when it leaves.

    Trio has no public way to see that a scope was left open, which an async generator
    that is not run to its end does to whoever iterates over it.
    """
    return trio_task._cancel_status  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _last_outcome(
    worker: _Worker,
    result: outcome.Outcome[Any] | None,
    left: BaseException | None,
) -> outcome.Outcome[Any]:
    """What became of the run that was a worker's last.

    `result` is what the work returned or raised, if it came to that; `left` what came
    out of the worker's cancel scope. A value stands, whoever had cancelled the work
    meanwhile. Otherwise the first cancellation is what counts, and what the work raised
    on its way out is kept as the cause.
    """
    if left is None and result is not None:
        if isinstance(result, outcome.Value):
            return result
        left = cast("outcome.Error", result).error
    error = None if left is None else _without_cancelled(left)
    if worker.exceeded is not None and (error is None or isinstance(error, Exception)):
        return outcome.Error(worker.exceeded)
    reason = worker.reason
    if reason is None and _cancelled():
        reason = StopReason.SHUTDOWN  # not ours, and not the work's: from outside
    if error is not None and (reason is None or not isinstance(error, Exception)):
        return outcome.Error(error)
    stopped = (
        LeakedCancelledError()
        if reason is None
        else WorkStoppedError(reason, started=worker.started)
    )
    stopped.__cause__ = left if reason is None else error
    return outcome.Error(stopped)


def _without_cancelled(error: BaseException) -> BaseException | None:
    """What is left of an exception, or a group, without Trio's cancellations."""
    group = BaseExceptionGroup("wrapped, as a group can be split", [error])
    try:
        rest = group.split(trio.Cancelled)[1]
    except Exception:  # noqa: BLE001 (too deep, or its class can't be split)
        leaves = [each for each in _leaves(error) if not isinstance(each, trio.Cancelled)]
        return BaseExceptionGroup(f"{type(error).__name__}, of", leaves) if leaves else None
    return None if rest is None else rest.exceptions[0]


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions that a group is made of in the end, however deep."""
    left = [error]
    while left:
        each = left.pop()
        if isinstance(each, BaseExceptionGroup):
            left += reversed(cast("BaseExceptionGroup[BaseException]", each).exceptions)
        else:
            yield each
