"""The seams: what a store, a timer, an executor, a registry and a clock must promise.

The scheduler knows its parts by these Protocols only, so any of them can be replaced.
Who writes a store finds here, too, what all stores share: `transitions`, which says what
may happen to a task in each state, and what becomes of it, and `find_order`.
`trio_gokugen.testing` has suites that check an implementation against what is promised
here.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeAlias

import attrs
import outcome
import trio

from . import _recurrence as recurrence
from . import _schedule_changes as schedule_changes
from . import _transitions as transitions
from ._conditions import Condition, Skipped, ask
from ._errors import StopReason
from ._json import JSON
from ._key_limits import KeyLimit, KeyRoom
from ._operations import (
    ANY_TASK,
    AddTasks,
    CancelRun,
    CancelTask,
    Claimed,
    ClaimTasks,
    DeleteEnded,
    DispatchTask,
    EndTask,
    Free,
    IfExists,
    NoteProgress,
    OfPools,
    OnSchedule,
    Operation,
    RecoverAction,
    Renewed,
    RetryTask,
    RevertTask,
    Start,
    TaskFilter,
    UpdateTask,
)
from ._query import TaskQuery, find_order
from ._retry import Retry
from ._schedule import (
    ChangeSchedule,
    Dropped,
    FoundSchedules,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    ResumeSchedule,
    Schedule,
    ScheduleChanged,
    ScheduleUpdate,
    TriggerSchedule,
    UpdateSchedule,
)
from ._task import ENDED, Progress, Task, TaskState, TaskUpdate
from ._transitions import Added
from ._trigger import Trigger

__all__ = [
    "ANY_TASK",
    "ENDED",
    "AddTasks",
    "Added",
    "CancelRun",
    "CancelTask",
    "ChangeSchedule",
    "ClaimTasks",
    "Claimed",
    "Clock",
    "Condition",
    "DeleteEnded",
    "DispatchTask",
    "Dispatcher",
    "DispatcherStatistics",
    "EndTask",
    "Fetch",
    "FetchErrors",
    "Free",
    "HookAction",
    "IfExists",
    "KeyLimit",
    "KeyRoom",
    "Listener",
    "LoopHooks",
    "NoteProgress",
    "OfPools",
    "OnSchedule",
    "Operation",
    "PauseSchedule",
    "PoolErrors",
    "PutSchedule",
    "RecoverAction",
    "RemoveSchedule",
    "Renewed",
    "RepositoryLike",
    "ResultChannel",
    "ResumeSchedule",
    "RetryTask",
    "RevertTask",
    "ScheduleChanged",
    "ScheduleUpdate",
    "Skipped",
    "Start",
    "StopReason",
    "TaskFilter",
    "TaskRepository",
    "TaskResult",
    "TimerLike",
    "Trigger",
    "TriggerSchedule",
    "UpdateSchedule",
    "UpdateTask",
    "Work",
    "WorkRegistry",
    "ask",
    "find_order",
    "recurrence",
    "schedule_changes",
    "transitions",
]


# -- time ---------------------------------------------------------------------------


class Clock(Protocol):
    """The only reader of the time. Knows the moment, and when to wake for another."""

    @property
    def max_sleep(self) -> float:
        """Longest time, in seconds, to sleep without another look at the clock.

        Finite where the time may be set, or the machine suspended; else infinite.
        """
        ...

    def now(self) -> datetime:
        """The present moment, aware and in UTC."""
        ...

    def deadline_for(self, moment: datetime) -> float:
        """The moment as a time of Trio's clock, as far as can be told now.

        Later than `trio.current_time` for every moment that is still to come, so that
        who sleeps until then and looks again gets on.
        """
        ...


# -- where tasks are kept -----------------------------------------------------------


class RepositoryLike(Protocol):
    """Where tasks are kept. Knows nothing of timers, workers, loops or the time.

    Every method is a checkpoint and atomic under cancellation: it takes effect and
    returns, or raises `trio.Cancelled` having changed nothing. A `RefusedError` or an
    `InvalidTaskError` is the store's definite answer; any other error means that it
    failed, and that nothing was changed: a store that has lost sight of a write must find
    out what became of it before it raises.

    Pending tasks are ordered by the earliest `scheduled_at`, then the largest
    `priority`, then the oldest: the one added first.
    """

    async def add(self, tasks: Sequence[Task], if_exists: IfExists = "raise") -> Added:
        """Keep tasks, in whatever state they are: all or, if one is refused, none.

        Of the tasks that have not ended no two have the same `key`. If one has that of a
        new task, that is refused; with ``"return"`` it is left out, and the other returned
        in its place; with ``"replace"`` the other is scheduled like the new one instead,
        and keeps its id and its place among the oldest. What was given before it in the
        same call counts as there.

        Returns:
          What there is now for each task that was given, and what of it is new.

        Raises:
          TaskExistsError: names the first id that is taken, or given twice.
          KeyExistsError: names the first key that is taken, and who has it.
          AlreadyDispatchedError: a task that was to be replaced is running.
        """
        ...

    async def get(self, task_id: str) -> Task:
        """The task as it stands.

        Raises:
          TaskNotFoundError: if there is no such task.
        """
        ...

    async def update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        """Change a scheduled task. Its place among the oldest stays.

        Returns:
          The task as it now stands, and whether anything has changed.

        Raises:
          TaskNotFoundError, AlreadyDispatchedError, AlreadyCancelledError,
          AlreadyDoneError: it can no longer be changed.
          InvalidTaskError: its deadline would not be after its `scheduled_at`.
        """
        ...

    async def cancel(self, task_id: str, at: datetime) -> tuple[Task, bool]:
        """Cancel a scheduled task.

        Returns:
          The task as it now stands, and whether it was this call that cancelled it.

        Raises:
          TaskNotFoundError, AlreadyDispatchedError, AlreadyDoneError: it is too late.
        """
        ...

    async def mark_dispatched(
        self, task_id: str, at: datetime, *, at_most_once: bool = False
    ) -> Task:
        """Record that a worker takes a due task, and count the attempt.

        With `at_most_once` the attempt is not to be repeated if it is lost.

        Returns:
          The task as it now stands, last-second updates included: dispatched, or failed
          if its deadline has passed.

        Raises:
          TaskNotFoundError, AlreadyDispatchedError, AlreadyCancelledError,
          AlreadyDoneError: it is not to be had.
          NotDueError: its `scheduled_at` is later than `at`.
        """
        ...

    async def claim(self, limit: int, at: datetime, only: TaskFilter = ANY_TASK) -> Claimed:
        """Do `mark_dispatched` to the first due tasks, as one step.

        What is due of a schedule is taken as `recurrence.take` says: it may be dispatched
        for another of its moments, or put off, and what comes after it is made. If it
        `replaces` what runs of the schedule, that is cancelled.

        Returns:
          At most `limit` dispatched tasks, and those that have ended instead: they were
          past their deadline, or, of a schedule, have no moment left, or were replaced at
          once. Also the tasks that are `made`, or put off, and pending now; the runs that
          are `replaced`, as they have ended; and what is `dropped`, which does not run.
        """
        ...

    async def mark_done(
        self, run: Task, at: datetime, err: str | None = None, result: JSON = None
    ) -> Task:
        """End the run's task: done, or failed if there is an `err`.

        The `result` is kept with the task, if there is one: any JSON value.

        `run` is the snapshot that `claim` gave; a run that has lost its task since is
        refused.

        Raises:
          TaskNotFoundError, NotDispatchedError, AlreadyCancelledError,
          AlreadyDoneError: there is no such run to end.
          LostRunError: the task has been dispatched anew.
        """
        ...

    async def retry(
        self, run: Task, at: datetime, scheduled_at: datetime, err: str | None = None
    ) -> Task:
        """Put the run's task back to scheduled, for a later attempt.

        If there is an `err`, the run has failed: that is counted in `retries`, and kept in
        `errors`, of which the last ten are. Its place among the oldest stays. Raises what
        `mark_done` does.

        Raises:
          InvalidTaskError: its deadline is not after `scheduled_at`.
        """
        ...

    async def note_progress(self, run: Task, progress: Progress) -> Task:
        """Record how far the run has come, which stays whatever becomes of the task.

        Raises what `mark_done` does.
        """
        ...

    async def mark_cancelled(self, run: Task, at: datetime) -> Task:
        """End the run's task as cancelled. Raises what `mark_done` does."""
        ...

    async def revert(self, run: Task) -> Task:
        """Put the run's task back to scheduled, and count the interruption.

        Its place among the oldest stays. Raises what `mark_done` does.
        """
        ...

    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        """Revert or fail tasks that are dispatched and nobody runs, if they pass `only`.

        Called before anything is dispatched. A task that is marked `at_most_once` is not
        reverted, it fails. A store that several schedulers share leaves the tasks of the
        living alone.

        Returns:
          Those tasks as they now stand.
        """
        ...

    @property
    def lease(self) -> float:
        """Seconds for which a claimed task is left to its run, unless that is renewed.

        Infinite for a store that is not shared.
        """
        ...

    async def renew(
        self, runs: Sequence[Task], action: RecoverAction, at: datetime
    ) -> Renewed:
        """Renew the leases of runs, and recover tasks of others that have expired.

        A run that still has its task has it for `lease` seconds from now, or longer. Tasks
        whose lease is over are recovered as by `recover`, whoever had claimed them.
        """
        ...

    async def delete_ended(
        self,
        before: datetime | None = None,
        states: Collection[TaskState] = ENDED,
        limit: int | None = None,
    ) -> list[str]:
        """Forget tasks in these ended states, at most `limit`, oldest end first.

        With `before`, only those that ended earlier than that.

        Returns:
          The ids of exactly the tasks that were deleted.

        Raises:
          InvalidTaskError: names ``states`` if one of them is not an ended one.
        """
        ...

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        """Carry out operations one after the other, as one step if the store can.

        Returns:
          For each what its method would have returned or raised, in the same order.

        Raises:
          Any error of the store, which then has carried out none of them.
        """
        ...

    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        """The first pending task that passes the filter, due or not."""
        ...

    async def find(
        self, query: TaskQuery, limit: int | None = None, after: Task | None = None
    ) -> list[Task]:
        """Tasks that match, by `scheduled_at`, largest priority, `created_at`, id.

        With `after`, the last task of the page before, only those that follow it; it
        need not exist any more.
        """
        ...

    async def count_pending(self) -> Mapping[str, int]:
        """How many tasks are scheduled, by work id."""
        ...

    async def count_pools(self) -> Mapping[str, int]:
        """How many tasks are scheduled, by the pool that they name.

        Those that name none are not counted, and should not be gone through: mostly there
        are no others, and the scheduler asks this again and again.
        """
        ...

    async def change_schedule(self, change: ChangeSchedule) -> ScheduleChanged:
        """Add, change or remove a schedule, together with its next occurrence.

        From then on whatever happens to a task that is the next occurrence of a schedule
        makes the one after, in the same step: see `recurrence` and `schedule_changes`.

        Raises:
          ScheduleNotFoundError: there is no such schedule.
          InvalidTaskError, InvalidTriggerError: it would not be one that can be.
          NoSchedulesError: this store keeps none.
        """
        ...

    async def get_schedule(self, schedule_id: str) -> Schedule:
        """The schedule as it stands. Raises `ScheduleNotFoundError`, `NoSchedulesError`."""
        ...

    async def find_schedules(
        self, limit: int | None = None, after: str | None = None
    ) -> FoundSchedules:
        """Schedules by id; with `after`, those whose id is greater than this.

        Those that cannot be read are not among them, nor counted by `limit`: what is wrong
        with them is told beside.
        """
        ...


class TimerLike(Protocol):
    """Knows when the next task falls due. Reset by every mutation that can move it."""

    def start_timer(self, clock: Clock) -> None:
        """Begin to tell the time by `clock`.

        Raises:
          SchedulerAlreadyRunningError: if it was started and not stopped.
        """
        ...

    def stop_timer(self) -> None:
        """Stop. Stopping twice is harmless."""
        ...

    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        """Sleep until a task that passes the filter is due, and return the first.

        Looks again whenever the first may have changed. With nothing pending it does
        not wake at all. A checkpoint; cancellation changes nothing.
        """
        ...


class TaskRepository(RepositoryLike, TimerLike, Protocol):
    """Tasks, and the timer that watches them: what a scheduler is made with."""

    @property
    def poll(self) -> float:
        """How often, in seconds, to look for what others have changed.

        Infinite if nobody else does, or if they say so.
        """
        ...

    async def serve(self, claim: Callable[[str], None]) -> None:
        """Do whatever goes on beside the calls, until cancelled: run by the scheduler.

        The timer is started then. What others change is noticed here, and ended tasks
        that are not to be kept are deleted. An error ends the scheduler.

        Args:
          claim: To be called with the id of a work, beside resetting the timer, when
            others have told that a task of it is due: then the scheduler, if it knows the
            work, claims at once, and needs no look before.
        """
        ...


# -- what is run, and where ---------------------------------------------------------


@attrs.frozen
class Work:
    """A function that tasks name."""

    work_id: str
    function: Callable[..., Any]
    """Called with the task's `param` as keyword arguments."""

    in_thread: bool = False
    """A plain function, to be called in a thread."""

    in_process: bool = False
    """One that is to be called in another process rather than in a thread.

    It is found there by its module and its qualified name. A dispatcher that has no
    processes may call it in a thread.
    """

    timeout: float | None = None
    """Seconds that one attempt may take."""

    at_most_once: bool = False
    """An attempt that is lost must not be repeated."""

    retry: Retry | None = None
    """Whether a task that has none of its own is tried again if it has failed."""

    retain: bool = False
    """What the function returns is kept on the task, as JSON."""

    check_param: Callable[[Mapping[str, Any]], None] = lambda _: None
    """Raises `InvalidTaskError` if the function cannot be called with that."""


class WorkRegistry(Protocol):
    """Names to works."""

    @property
    def work_ids(self) -> frozenset[str]:
        """The names known now; the same object for as long as they are the same."""
        ...

    def get(self, work_id: str) -> Work:
        """The work of this name.

        Raises:
          WorkNotFoundError: if there is none.
        """
        ...

    def get_condition(self, name: str) -> Condition:
        """The condition of this name.

        Raises:
          ConditionNotFoundError: if there is none.
        """
        ...


@attrs.define(eq=False)
class TaskResult:
    """How one run ended."""

    run: Task
    """The snapshot that was fetched."""

    outcome: outcome.Outcome[Any]
    """What the work returned or raised.

    A value that is not to be kept, as its work has no `retain`, may be None instead. What a
    work in another process raises may be told by another exception, if it cannot be sent or
    is a `SystemExit`.

    A run that was stopped has a `WorkStoppedError`, a `DeadlineExceededError` or a
    `WorkTimeoutError`, which says by what, and by what first; never a `trio.Cancelled`.
    """


class ResultChannel(Protocol):
    """Where results go: the sending end of an unbounded channel."""

    def send_nowait(self, value: TaskResult, /) -> None:
        """Put a result. Never blocks, and is never refused."""
        ...


class Fetch(Protocol):
    """How a dispatcher comes by tasks to run."""

    async def __call__(self, free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
        """Wait until a task is due, then claim as many as there are free workers.

        `free` is called at the moment of the claim: it may have become smaller, or
        larger. `start` is called with each task as soon as it is recorded as dispatched,
        without a checkpoint between, so that nothing can come between the two. It must
        not block; if it raises an `Exception`, that is how the run has ended.

        Returns:
          How many were started; maybe none, then call again.
        """
        ...


@attrs.frozen
class DispatcherStatistics:
    """A dispatcher, as it stood when it was asked."""

    max_workers: float
    running: int

    pools: frozenset[str] = frozenset()
    """The names of the pools that tasks can choose."""


class FetchErrors(ExceptionGroup[Exception]):
    """Several calls of `fetch` have failed that went on side by side.

    What a dispatcher raises then: the hooks are asked about the first error, which has the
    others in its notes, and not about the group.
    """

    def derive(self, excs: Sequence[Any], /) -> Any:
        """What is left of it without the others, of its kind."""
        return FetchErrors(self.message, excs)


class PoolErrors(FetchErrors):
    """Some of several pools have failed, by errors of their own, and the others can go on.

    What a dispatcher raises that leaves these pools alone until `go_on` is called: so
    `dispatch` is called again at once, and the hooks are asked beside.
    """

    go_on: Callable[[], None]
    """Lets these pools fetch again, soon. Set by whoever raises it."""

    def derive(self, excs: Sequence[Any], /) -> Any:
        """What is left of it without the others, of its kind."""
        errors = PoolErrors(self.message, excs)
        errors.go_on = self.go_on
        return errors


class Dispatcher(Protocol):
    """The only bridge to workers.

    Before the work of a run begins that has a `when`, its condition must be asked, by
    ``await ask(works.get_condition(run.when), run)`` in Trio, and within the bounds of the
    run: what that raises is the outcome, and the work does not begin.
    """

    async def start(
        self, nursery: trio.Nursery, results: ResultChannel, clock: Clock
    ) -> None:
        """Open for business. All it starts, it starts in the nursery.

        Cancelling the nursery cancels every running work, with a result for each. Once the
        nursery has ended, the dispatcher may be started again; and if it raises, in the
        same one, where a pool that is added to others has it.
        """
        ...

    async def dispatch(self, fetch: Fetch) -> None:
        """Block until a worker is free, and only then fetch tasks.

        Returns once those that were fetched have started. Cancellation either starts
        none, or comes after all of them have started. An error of `fetch` leaves it as it
        is, in no group.

        One that fetches for several side by side may go on instead, until it is cancelled:
        who returns would take from the others what they wait for. If a task is due and
        `free` says 0, whoever stands in front holds back: the scheduler cancels such a
        call, and calls again.
        """
        ...

    def cancel(self, run: Task, reason: StopReason) -> bool:
        """Cancel a running work. Its result comes when it has ended.

        Args:
          run: The snapshot that was fetched, or one of the same id, attempt and
            `created_at`.
          reason: What the result is to say.

        Returns:
          Whether there is such a run. Cancelling one twice is harmless, and the first
          reason stands.
        """
        ...

    def statistics(self) -> DispatcherStatistics:
        """How it stands. May be called at any time."""
        ...


# -- hooks --------------------------------------------------------------------------


class HookAction(enum.Enum):
    """What the scheduler is to do about an error."""

    RAISE = "raise"
    """Let it leave `Scheduler.run`, which ends."""

    IGNORE = "ignore"
    """Go on without what failed: whoever waits for it gets the error."""

    RETRY = "retry"
    """Do the same again, after whatever the hook has awaited."""


class LoopHooks(Protocol):
    """Async callables that see every step, and decide what an error means.

    A hook may call the scheduler. A slow one delays other hooks, never the answer to a
    caller. An error that a hook raises leaves `Scheduler.run`.

    The hooks for errors are told what was decided so far, `HookAction.RAISE` to begin
    with, and return what is to be done.
    """

    async def on_get_next_error(self, error: Exception, action: HookAction) -> HookAction:
        """The repository failed to tell which task is next."""
        ...

    async def on_get_next(self, task: Task) -> None:
        """The task was first in line as it fell due."""
        ...

    async def on_dispatch_error(self, error: Exception, action: HookAction) -> HookAction:
        """Due tasks could not be claimed, and none of them was started.

        Or a dispatcher has failed: if it is that of one of several pools, this may be
        called for others meanwhile.
        """
        ...

    async def on_dispatch(self, task: Task) -> None:
        """The task was recorded as dispatched, and handed to a worker."""
        ...

    async def on_update_error(
        self, operations: Sequence[Operation], error: Exception, action: HookAction
    ) -> HookAction:
        """The repository failed to carry out these operations.

        A result that is ignored leaves its task dispatched until it is recovered.
        """
        ...

    async def on_update(self, operation: Operation, task: Task) -> None:
        """The operation took effect; `task` is how it left the task."""
        ...

    async def on_dropped(self, dropped: Dropped) -> None:
        """Occurrences of a schedule do not run: too late, or one ran still."""
        ...

    async def on_task_done(self, task: Task) -> None:
        """The task has ended with its run: done, failed, or cancelled while running.

        Not called for a run after which the task is to run again. Cancelled are also the
        occurrences that a condition has skipped.

        Also called for a task that failed because its deadline passed.
        """
        ...


Listener: TypeAlias = Callable[[Task], Awaitable[None]]
"""An async function of an ended task, added with `add_on_task_done`."""
