"""The scheduler: what a program talks to."""

from __future__ import annotations

import math
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Literal, cast

import attrs
import trio

from . import _transitions
from ._arguments import (
    Recover,
    check_if_exists,
    check_limit,
    check_part,
    checked_grace,
    checked_id,
    new_param,
    recover_action,
)
from ._callables import check_async
from ._clock import default_clock
from ._conditions import scheduler as running_scheduler
from ._current_task import current_task
from ._engine import Engine
from ._errors import (
    AlreadyDispatchedError,
    InvalidTaskError,
    NotRunningHereError,
    SchedulerAlreadyRunningError,
    SchedulerNotRunningError,
    StopReason,
    TaskNotFoundError,
    WorkNotFoundError,
    shown,
)
from ._heap_repository import HeapRepository
from ._hooks import checked_hooks
from ._ids import IdMaker
from ._json import JSON
from ._mutators import Mutator, mutated
from ._query import TaskQuery
from ._retry import Retry
from ._schedules import Schedules
from ._task import (
    ENDED,
    UNCHANGED,
    Maybe,
    Progress,
    Task,
    TaskParam,
    TaskState,
    TaskUpdate,
    new_task,
)
from ._worker_pool import WorkerPoolDispatcher
from .abc import (
    Added,
    AddTasks,
    CancelTask,
    Clock,
    DeleteEnded,
    Dispatcher,
    IfExists,
    Listener,
    LoopHooks,
    NoteProgress,
    RecoverAction,
    TaskFilter,
    TaskRepository,
    UpdateTask,
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


_DELETED_AT_A_TIME = 1_000

_FIRST_PAUSE = 1 / 512
"""Seconds before another look for what others may have ended; longer each time."""


class Scheduler(Schedules):
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
        self._updating: dict[str, trio.Event] = {}
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

    # -- tasks ------------------------------------------------------------------------

    async def add_task(
        self,
        work_id: str,
        param: Mapping[str, JSON] | None = None,
        *,
        at: datetime | None = None,
        after: float | timedelta | None = None,
        priority: int = 0,
        deadline: datetime | None = None,
        meta: Mapping[str, JSON] | None = None,
        id: str | None = None,
        key: str | None = None,
        if_exists: IfExists = "raise",
        retry: Retry | None = None,
        mutate: Mutator | None = None,
    ) -> Task:
        """Have a work run at a moment, or after some time.

        Args:
          work_id: Name of a registered work.
          param: Keyword arguments for the work, as a JSON object.
          at: Earliest moment to start: aware; one that has passed means now.
          after: Seconds from now, instead of `at`.
          priority: Among tasks due at the same moment, the larger goes first.
          deadline: Moment from which on it must not start, and is cancelled if running.
          meta: A JSON object of your own: to search by, never passed to the work.
          id: An id of your own, which makes it safe to repeat an add whose answer was
            lost: the second is a `TaskExistsError`.
          key: What makes it unique: of the tasks that have not ended, no two have the same.
          if_exists: If another has this key: ``"raise"`` a `KeyExistsError`; ``"return"``
            that one, and add none; or ``"replace"`` what is to be done and when by what is
            given here, as one does to wait until things have calmed down.
          retry: Whether it is tried again if it fails, instead of what its work says.
          mutate: Makes of the new task another, and is told the moment: what `randomised`
            gives, or a function of your own.

        Returns:
          The task as it was stored; or the one that has the key, as it is now.

        Raises:
          InvalidTaskError: a value cannot be used; `field` names it.
          WorkNotFoundError: no such work is registered.
          TaskExistsError: a task of this id is there.
          KeyExistsError: a task of this key is there that has not ended.
          AlreadyDispatchedError: that task was to be replaced, and runs already.
        """
        engine = self._running()
        now = engine.clock.now()
        new = new_param(
            now, work_id, param, at, after, priority, deadline, meta, id, key, retry
        )
        check_if_exists(if_exists)
        new = mutated(new, mutate, now)
        self._check(new.work_id, new.param)
        [task] = await self._add(engine, [new], if_exists)
        return task

    async def add_tasks(
        self,
        params: Iterable[TaskParam],
        *,
        if_exists: IfExists = "raise",
        mutate: Mutator | None = None,
    ) -> list[Task]:
        """Add many tasks in one go: all of them or, if one is refused, none.

        Args:
          params: What each is made from.
          if_exists: What becomes of one whose `key` another has, as in `add_task`.
          mutate: Makes of each another, before it is checked, and is told the moment:
            `run_now`, what `randomised` gives, or a function of your own.

        Returns:
          The tasks as they were stored, in the same order.

        Raises:
          InvalidTaskError, WorkNotFoundError: as `add_task`; `index` tells which.
          TaskExistsError: an id is taken, or given twice.
          KeyExistsError: a key is.
          AlreadyDispatchedError: a task that was to be replaced runs already.
        """
        engine = self._running()
        if not isinstance(params, Iterable):
            raise InvalidTaskError("params", f"must be TaskParams, not {shown(params)}")
        check_if_exists(if_exists)
        now = engine.clock.now()
        new: list[TaskParam] = []
        for index, given in enumerate(params):
            if not isinstance(given, TaskParam):
                raise InvalidTaskError(
                    "params", f"must be TaskParam, not {type(given).__name__}", index
                )
            param = mutated(given, mutate, now, index)
            self._check(param.work_id, param.param, index)
            new.append(param)
        return await self._add(engine, new, if_exists)

    async def _add(
        self, engine: Engine, params: Sequence[TaskParam], if_exists: IfExists
    ) -> list[Task]:
        now = engine.clock.now()
        tasks = [
            new_task(param, self._make_id(now) if param.id is None else param.id, now)
            for param in params
        ]
        added: Added = await engine.updates.queue.ask(lambda _: AddTasks(tasks, if_exists))
        engine.dispatches.notice_new_works()
        return list(added.tasks)

    async def update(
        self,
        task_id: str,
        *,
        scheduled_at: Maybe[datetime] = UNCHANGED,
        work_id: Maybe[str] = UNCHANGED,
        param: Maybe[Mapping[str, JSON] | None] = UNCHANGED,
        priority: Maybe[int] = UNCHANGED,
        deadline: Maybe[datetime | None] = UNCHANGED,
        meta: Maybe[Mapping[str, JSON] | None] = UNCHANGED,
    ) -> bool:
        """Change a task that has not been dispatched. What is not given stays.

        Returns:
          Whether anything has changed. If this returns, no worker has the task yet, and
          it will run as changed.

        Raises:
          InvalidTaskError: a value cannot be used, or does not go with the others.
          WorkNotFoundError: no such work is registered.
          TaskNotFoundError, AlreadyDispatchedError, AlreadyCancelledError,
          AlreadyDoneError: it can no longer be changed.
        """
        engine = self._running()
        task_id = checked_id(task_id)
        update = TaskUpdate(
            work_id=work_id,
            scheduled_at=scheduled_at,
            param=param,
            priority=priority,
            deadline=deadline,
            meta=meta,
        )

        def operation(now: datetime) -> UpdateTask:
            return UpdateTask(task_id, update, now)

        if update.work_id is UNCHANGED and update.param is UNCHANGED:
            _, changed = await engine.updates.queue.ask(operation)
        else:
            # What is checked must still be so as it is written.
            async with self._turn_to_update(task_id) as end_turn:
                await self._check_update(task_id, update)
                _, changed = await engine.updates.queue.ask(operation, laid_down=end_turn)
        engine.dispatches.notice_new_works()
        return bool(changed)

    async def cancel(self, task_id: str) -> bool:
        """Keep a task from running.

        Returns:
          True if this cancelled it, False if it had been cancelled before. Either way
          it does not run.

        Raises:
          TaskNotFoundError, AlreadyDispatchedError, AlreadyDoneError: it is too late.
        """
        engine = self._running()
        task_id = checked_id(task_id)
        _, changed = await engine.updates.queue.ask(lambda now: CancelTask(task_id, now))
        return bool(changed)

    async def interrupt(self, task_id: str) -> Task:
        """Cancel a running work, and return when it has really ended.

        The work sees a cancellation at its next checkpoint, and may take its time to
        clean up; cancelling this call does not take the interruption back.

        Returns:
          The task: cancelled, or done or failed if the work had ended before it noticed.

        Raises:
          TaskNotFoundError, NotDispatchedError, AlreadyCancelledError,
          AlreadyDoneError: there is nothing to interrupt.
          NotRunningHereError: another scheduler runs it.
          LostRunError: the run had lost its task, which goes on without it.
        """
        engine = self._running()
        task_id = checked_id(task_id)
        ledger = engine.ledger
        while task_id not in ledger.runs:
            version = ledger.version
            task = await self._repository.get(task_id)
            _transitions.check(task, _transitions.Action.INTERRUPT)
            if ledger.writing:
                await ledger.wait_until_written()  # its claim, or its end, maybe
            elif version == ledger.version:
                raise NotRunningHereError(task_id)
            self._running()
        task = await self._interrupt_run(engine, ledger.runs[task_id])
        if task.state.ended:
            return task
        # It had failed before, and was to be tried again.
        try:
            await engine.updates.queue.ask(lambda now: CancelTask(task_id, now))
        except AlreadyDispatchedError:
            return await self.interrupt(task_id)
        return await self._repository.get(task_id)

    async def _interrupt_run(self, engine: Engine, run: Task) -> Task:
        waiter = engine.ledger.watch(run.id, run)
        # If the dispatcher does not know it any more, its result is on the way.
        self._dispatcher.cancel(run, StopReason.INTERRUPT)
        try:
            return await waiter.wait()
        finally:
            engine.ledger.unwatch(waiter)

    async def progress(self, fraction: float, note: str | None = None) -> None:
        """Tell from inside a work how far it has come: `get` shows it from then on.

        It stays with the task, also if that is tried again.

        Args:
          fraction: From 0 to 1.
          note: At most 1,000 characters.

        Raises:
          InvalidTaskError: a value cannot be used; `field` names it.
          RuntimeError: not called from inside a work.
          NotDispatchedError, LostRunError, AlreadyCancelledError, AlreadyDoneError: the run
            has lost its task.
        """
        engine = self._running()
        run = current_task()
        told = Progress(fraction=fraction, note=note, at=engine.clock.now())
        await engine.updates.queue.ask(lambda _: NoteProgress(run, told))

    async def get(self, task_id: str) -> Task:
        """The task as it stands, or a `TaskNotFoundError`."""
        self._running()
        return await self._repository.get(checked_id(task_id))

    async def find(
        self,
        query: TaskQuery | None = None,
        *,
        limit: int | None = 100,
        after: Task | None = None,
    ) -> list[Task]:
        """Tasks that match, by `scheduled_at`, largest priority, `created_at` and id.

        Args:
          query: What to look for; all tasks by default.
          limit: At most so many; `None` for all of them.
          after: The last task of the page before, to get the next page.
        """
        self._running()
        check_limit(limit)
        query = TaskQuery() if query is None else query
        if not isinstance(query, TaskQuery):
            raise TypeError(f"query: must be a TaskQuery, not {shown(query)}")
        if after is not None and not isinstance(after, Task):
            raise TypeError(f"after: must be a Task of a page before, not {shown(after)}")
        return await self._repository.find(query, limit, after)

    async def wait(self, task_id: str) -> Task:
        """Wait until the task has ended, in whatever state, and return it.

        Raises:
          TaskNotFoundError: there is no such task.
        """
        engine = self._running()
        ledger = engine.ledger
        task_id = checked_id(task_id)
        engine.dispatches.notice_new_works()
        # Wait first and read then: an end that comes in between would be missed.
        waiter = ledger.watch(task_id)
        try:
            try:
                task = await self._repository.get(task_id)
            except TaskNotFoundError:
                if waiter.ended is None:
                    raise
                return waiter.ended  # it has ended and been forgotten meanwhile
            return task if task.state.ended else await waiter.wait()
        finally:
            ledger.unwatch(waiter)

    async def drain(self) -> None:
        """Wait until nothing is pending or running, here or in another scheduler.

        Tasks whose work is not registered here do not count: they would never run. Of a
        schedule there is always something pending, unless it is paused.
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
            known = TaskFilter(self._works.work_ids)
            pending = await self._repository.get_next(known)
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
        if await self._repository.find(running, 1):
            return True
        # What was put back between the two looks.
        return await self._repository.get_next(TaskFilter(work_ids)) is not None

    async def delete_ended(
        self,
        *,
        before: datetime | None = None,
        states: Collection[TaskState] = ENDED,
        limit: int | None = None,
    ) -> list[str]:
        """Forget ended tasks, oldest end first.

        Many are deleted in several steps, so that nobody else waits for long; cancelled
        in between, this has deleted some of them.

        Args:
          before: Only those that ended before this moment.
          states: Only those in these states, which must be ended ones.
          limit: At most so many.

        Returns:
          The ids of exactly those that were deleted.
        """
        engine = self._running()
        check_limit(limit)
        left = math.inf if limit is None else limit
        deleted: list[str] = []
        while left:
            step = int(min(left, _DELETED_AT_A_TIME))
            some = await self._delete_some(engine, DeleteEnded(before, states, step))
            deleted += some
            left -= len(some)
            if len(some) < step:
                break
        return deleted

    async def _delete_some(self, engine: Engine, operation: DeleteEnded) -> list[str]:
        deleted: list[str] = await engine.updates.queue.ask(lambda _: operation)
        return deleted

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

    # -- checks -----------------------------------------------------------------------

    def _running(self) -> Engine:
        if self._engine is None or self._engine.ended.is_set():
            raise SchedulerNotRunningError
        return self._engine

    def _check(
        self, work_id: str, param: Mapping[str, JSON], index: int | None = None
    ) -> None:
        try:
            self._works.get(work_id).check_param(param)
        except WorkNotFoundError:
            raise WorkNotFoundError(work_id, index) from None
        except InvalidTaskError as error:
            raise InvalidTaskError(error.field, error.reason, index) from None

    def _check_condition(self, name: str | None) -> None:
        if name is not None:
            self._works.get_condition(name)

    @asynccontextmanager
    async def _turn_to_update(self, task_id: str) -> AsyncGenerator[Callable[[], None]]:
        """Let updates of a task's work and param go one at a time.

        Gives what ends the turn early: an update that waits for a hook's decision must
        not keep one from going on that the hook itself asks for.
        """
        while task_id in self._updating:
            await self._updating[task_id].wait()
        through = self._updating[task_id] = trio.Event()

        def end() -> None:
            if not through.is_set():
                through.set()
                del self._updating[task_id]

        try:
            yield end
        finally:
            end()

    async def _check_update(self, task_id: str, update: TaskUpdate) -> None:
        """Check that the work will take the param.

        A task of a work that is not known here is somebody else's to check.
        """
        task = await self._repository.get(task_id)
        _transitions.check(task, _transitions.Action.UPDATE)
        param = task.param if update.param is UNCHANGED else (update.param or {})
        if update.work_id is not UNCHANGED:
            self._check(update.work_id, param)
        elif task.work_id in self._works.work_ids:
            self._check(task.work_id, param)


def current_scheduler() -> Scheduler:
    """The scheduler that runs what calls this: a work, a hook, or a condition.

    Works in the tasks and threads that these start, too.

    Raises:
      RuntimeError: outside of these.
    """
    try:
        return cast("Scheduler", running_scheduler.get())
    except LookupError:
        raise RuntimeError(
            "current_scheduler() is for use inside a work or a hook"
        ) from None


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
