"""The scheduler: what a program talks to."""

from __future__ import annotations

import math
from collections.abc import (
    AsyncGenerator,
    Mapping,
)
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Literal, cast

import attrs
import trio

from ._arguments import (
    Recover,
    check_part,
    checked_grace,
    recover_action,
)
from ._callables import check_async
from ._clock import default_clock
from ._conditions import scheduler as running_scheduler
from ._current_task import running
from ._engine import Engine
from ._errors import (
    SchedulerAlreadyRunningError,
)
from ._heap_repository import HeapRepository
from ._hooks import checked_hooks
from ._ids import IdMaker
from ._query import TaskQuery
from ._schedules import Schedules
from ._task import (
    TaskState,
)
from ._tasks import Tasks
from ._worker_pool import WorkerPoolDispatcher
from .abc import (
    Clock,
    Dispatcher,
    Listener,
    LoopHooks,
    OfPools,
    RecoverAction,
    TaskFilter,
    TaskRepository,
    WorkRegistry,
)


@attrs.frozen
class SchedulerStatistics:
    """A scheduler, as it stood when it was asked. Counts are those of its last run."""

    state: Literal["running", "stopping", "stopped"]

    running: int = 0
    """Tasks that are with a worker, or whose outcome is not recorded yet."""

    max_workers: float = 0
    queued: int = 0
    """Requests and results that wait for the update loop, or for a hook's decision."""

    unseen: int = 0
    """Events that hooks and listeners have not seen yet."""

    added: int = 0
    """By callers: what schedules make by themselves is not among these."""

    dispatched: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    reverted: int = 0
    """Runs that were cut short, and whose tasks are scheduled again."""

    retried: int = 0
    """Runs that have failed or were snoozed, and whose tasks are scheduled again."""

    unknown_works: Mapping[str, int] = attrs.field(factory=dict[str, int])
    """Pending tasks whose work is not registered here, by work id, at the last look."""

    unknown_pools: Mapping[str, int] = attrs.field(factory=dict[str, int])
    """Pending tasks that name a pool which is not here, by pool, at the last look."""


_FIRST_PAUSE = 1 / 512
"""Seconds before another look for what others may have ended; longer each time."""


class Scheduler(Tasks, Schedules):
    """Runs tasks at their appointed times.

    Made for ``await nursery.start(scheduler.run)``; `open_scheduler` does that, and
    stops it at the end. Its methods may be called from anywhere in the same Trio run:
    from works and hooks, too. Each is a checkpoint, and says at once, with a
    `SchedulerNotRunningError`, if the scheduler does not run; who waits when it stops
    is told the same.

    A caller that is cancelled while it waits for a change has changed nothing, or, if
    the change was being written, gets its answer first.
    """

    def __init__(
        self,
        works: WorkRegistry,
        repository: TaskRepository,
        dispatcher: Dispatcher,
        hooks: LoopHooks | None = None,
        *,
        clock: Clock | None = None,
        grace: float | timedelta = 30.0,
        recover: Recover = "revert",
    ) -> None:
        """Make a scheduler; it does nothing before it is run.

        Args:
          works: What tasks can name.
          repository: Where tasks are kept. Serves one running scheduler at a time.
          dispatcher: Where works run.
          hooks: Who watches, and decides about errors. By default every error is raised.
          clock: The wall clock by default; Trio's own clock under a mock clock.
          grace: Seconds that running work gets to end by itself when stopped.
          recover: What becomes of tasks found dispatched at the start: ``"revert"`` them
            to scheduled, ``"fail"`` them, or ``"leave"`` them.
        """
        check_part(works, WorkRegistry, "works")
        check_part(repository, TaskRepository, "repository")
        check_part(dispatcher, Dispatcher, "dispatcher")
        if clock is not None:
            check_part(clock, Clock, "clock")
        self._works = works
        self._repository = repository
        self._dispatcher = dispatcher
        self._hooks = None if hooks is None else checked_hooks(hooks)
        self._clock = clock
        self._grace = checked_grace(grace)
        self._recover = recover_action(recover)
        self._listeners: list[Listener] = []
        self._make_id = IdMaker()
        self._turns: dict[tuple[str, str], trio.Event] = {}
        self._engine: Engine | None = None

    # -- running ----------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Dispatch tasks as they fall due, until cancelled or stopped.

        Made for ``await nursery.start(scheduler.run)``, which returns once tasks left
        running by an earlier program are recovered, and the loops exist.

        An error of the repository that no hook catches, and an error of a hook, end the
        run, as does what a work raises that is no `Exception`, after it was recorded.
        Cancelled, it cancels the running work at once and puts it back to scheduled; for
        that write, after the last work has ended, the store has 5 s, if it heeds a
        cancellation.

        Raises:
          SchedulerAlreadyRunningError: if it, its repository or its dispatcher runs
            already.
          ExceptionGroup: with the errors of its loops; with a `RepositoryError` if the last
            outcomes could not be recorded.
        """
        if self._engine is not None and not self._engine.ended.is_set():
            raise SchedulerAlreadyRunningError
        clock = default_clock() if self._clock is None else self._clock
        self._engine = Engine(
            self._works,
            self._repository,
            self._dispatcher,
            self._hooks,
            self._listeners,
            clock,
        )
        token = running_scheduler.set(self)
        try:
            await self._engine.run(self._recover, task_status)
        finally:
            running_scheduler.reset(token)

    async def stop(self, grace: float | timedelta | None = None) -> None:
        """Stop, and return once everything has ended.

        Nothing more is dispatched; running work has `grace` seconds to end by itself,
        then it is cancelled, and its tasks go back to scheduled. Hooks have as long, or 5 s
        more, to see everything that happened. Until the very end the other methods are at
        work. If it is not running, returns at once. Of several calls the one whose grace
        ends first counts.

        Cancelling the call does not take the stop back. A work or a hook may call this,
        and is cancelled as the others are: a hook that waits for this, 5 s after the last
        work has ended.
        """
        seconds = self._grace if grace is None else checked_grace(grace)
        if self._engine is None or self._engine.ended.is_set():
            await trio.lowlevel.checkpoint()
        else:
            await self._engine.stop(seconds)

    async def drain(self) -> None:
        """Wait until nothing is pending or running, here or in another scheduler.

        Tasks whose work is not registered here do not count, nor do those that name a pool
        that is not here: they would never run. Of a schedule there is always something
        pending, unless it is paused.
        """
        engine = self._running()
        ledger, queue = engine.ledger, engine.updates.queue

        pause = _FIRST_PAUSE

        def at_rest() -> bool:
            busy = queue or engine.updates.undecided or ledger.writing
            return not ledger.runs and not busy

        while True:
            engine.dispatches.notice_new_works()
            await ledger.wait_until(at_rest)
            self._running()
            version = ledger.version
            pending = await self._repository.get_next(self._ours())
            self._running()
            # What was read counts only if nothing went on before it, nor meanwhile.
            if version == ledger.version and at_rest():
                if pending is None and not await self._others_are_busy():
                    return
                # Another scheduler may end it, of which nothing is heard here.
                shared = self._repository.poll < math.inf
                with trio.move_on_after(pause if shared else math.inf):
                    await ledger.wait_until_written()
                pause = min(2 * pause, self._repository.poll)
            self._running()

    async def _others_are_busy(self) -> bool:
        """Whether there are tasks that other schedulers run, or have put back just now."""
        if self._repository.poll == math.inf or self._recover is RecoverAction.LEAVE:
            return False
        work_ids = self._works.work_ids
        running = TaskQuery(states={TaskState.DISPATCHED}, work_ids=work_ids)
        if any(map(self._ours().accepts, await self._repository.find(running))):
            return True
        # What was put back between the two looks.
        return await self._repository.get_next(self._ours()) is not None

    def _ours(self) -> TaskFilter:
        """The tasks that may run here."""
        pools = OfPools(self._dispatcher.statistics().pools)
        return TaskFilter(self._works.work_ids, pools=pools)

    # -- watching ---------------------------------------------------------------------

    def statistics(self) -> SchedulerStatistics:
        """How it stands. May be called at any time."""
        engine = self._engine
        if engine is None:
            return SchedulerStatistics("stopped")
        ledger = engine.ledger
        return SchedulerStatistics(
            state=engine.state,
            running=len(ledger.runs),
            max_workers=self._dispatcher.statistics().max_workers,
            queued=len(engine.updates.queue) + engine.updates.undecided,
            unseen=engine.observers.waiting,
            added=ledger.added,
            dispatched=ledger.dispatched,
            done=ledger.done,
            failed=ledger.failed,
            cancelled=ledger.cancelled,
            reverted=ledger.reverted,
            retried=ledger.retried,
            unknown_works=dict(ledger.unknown_works),
            unknown_pools=dict(ledger.unknown_pools),
        )

    def add_on_task_done(self, listener: Listener) -> None:
        """Have an async function called with each task whose run is over from now on.

        It is called after `LoopHooks.on_task_done`, and under the same rules.
        """
        check_async(listener, "listener")
        self._listeners.append(listener)

    def remove_on_task_done(self, listener: Listener) -> None:
        """Call it no more. May be called by a listener, of itself, too.

        Raises:
          ValueError: if it was not added, or has been removed.
        """
        try:
            self._listeners.remove(listener)
        except ValueError:
            raise ValueError(f"listener: {listener!r} has not been added") from None


def current_scheduler() -> Scheduler:
    """The scheduler that runs what calls this: a work, a hook, or a condition.

    Works in the tasks and threads that these start, too.

    Raises:
      RuntimeError: outside of these, or in a work in a process, in an executor or on Dask.
    """
    try:
        return cast("Scheduler", running_scheduler.get())
    except LookupError:
        why = " is for use inside a work, a hook or a condition"
        if running.get(None) is not None:
            why = (
                ": a work in a process, in an executor or on Dask is outside of the"
                " scheduler's Trio loop, and has none; what it returns is kept by retain,"
                " and report_progress() tells how far it is, except from processes"
            )
        raise RuntimeError(f"current_scheduler(){why}") from None


_MAX_WORKERS = 10


@asynccontextmanager
async def open_scheduler(
    works: WorkRegistry,
    repository: TaskRepository | None = None,
    dispatcher: Dispatcher | None = None,
    *,
    max_workers: int = _MAX_WORKERS,
    hooks: LoopHooks | None = None,
    clock: Clock | None = None,
    grace: float | timedelta = 30.0,
    recover: Recover = "revert",
) -> AsyncGenerator[Scheduler]:
    """A scheduler that runs for as long as the block does.

    Entering and leaving are checkpoints. Leaving stops dispatching and waits for the
    work still going, at most `grace` seconds, then cancels it; an exception in the
    block, or a cancellation from outside, cancels it at once. Like a nursery, the block
    raises its errors in an `ExceptionGroup`.

    Args:
      works: What tasks can name.
      repository: Where tasks are kept: in memory by default.
      dispatcher: Where works run: by default a `WorkerPoolDispatcher`.
      max_workers: How many works that one runs at a time. A dispatcher of your own knows
        its own limit, and is not given another.
      hooks: Who watches, and decides about errors. By default every error is raised.
      clock: The wall clock by default; Trio's own clock under a mock clock.
      grace: Seconds that running work gets to end by itself.
      recover: What becomes of tasks found dispatched at the start: ``"revert"`` them to
        scheduled, ``"fail"`` them, or ``"leave"`` them.
    """
    if dispatcher is not None and max_workers != _MAX_WORKERS:
        raise TypeError("max_workers: is for the default dispatcher; set it on your own")
    scheduler = Scheduler(
        works,
        HeapRepository() if repository is None else repository,
        WorkerPoolDispatcher(works, max_workers) if dispatcher is None else dispatcher,
        hooks,
        clock=clock,
        grace=grace,
        recover=recover,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        yield scheduler
        await scheduler.stop()
