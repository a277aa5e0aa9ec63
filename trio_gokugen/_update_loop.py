"""The only writer: takes all that waits, writes it as one batch, answers everybody.

    callers, dispatch loop ──request──▶┌───────┐  batch   ┌────────────┐
                                       │ queue │ ───────▶ │ repository │
    workers ────────────────result────▶└───────┘          └────────────┘
                                                             │ outcomes
              answers, waiters, hooks ◀── settle ◀───────────┘

Nothing is answered before the batch that holds it is written. Between the writing and the
last answer there is no checkpoint: what the store knows and what the ledger says change
together.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import outcome
import trio

from ._errors import (
    REFUSALS,
    RepositoryError,
    StopReason,
    WorkStoppedError,
)
from ._hooks import decision
from ._ledger import Ledger
from ._observers import Observers
from ._outcomes import recording
from ._schedule import TriggerSchedule
from ._task import Task, TaskState, run_key
from ._update_queue import Item, Request, UpdateQueue
from .abc import (
    Added,
    AddTasks,
    CancelTask,
    Claimed,
    ClaimTasks,
    Clock,
    Dispatcher,
    HookAction,
    LoopHooks,
    NoteProgress,
    OnSchedule,
    Operation,
    RepositoryLike,
    RetryTask,
    ScheduleChanged,
    TaskResult,
    UpdateTask,
    WorkRegistry,
)

logger = logging.getLogger("trio_gokugen.update")

_Failed: TypeAlias = list[tuple[Item, Exception]]
"""What the store failed to write, and its error for each."""

RECORD_LIMIT = 5.0
"""Seconds that a scheduler which has been cancelled takes to record what is left."""


class UpdateLoop:
    """See above."""

    def __init__(
        self,
        works: WorkRegistry,
        repository: RepositoryLike,
        clock: Clock,
        hooks: LoopHooks,
        observers: Observers,
        ledger: Ledger,
        dispatcher: Dispatcher,
    ) -> None:
        self.queue = UpdateQueue()
        self._works = works
        self._repository = repository
        self._dispatcher = dispatcher
        self._clock = clock
        self._hooks = hooks
        self._observers = observers
        self._ledger = ledger
        self._unwritten: list[TaskResult] = []
        self._leaving: list[BaseException] = []
        self.undecided = 0
        """How many items wait for a hook to say what becomes of them."""

        self.deciding: set[trio.lowlevel.Task] = set()
        """Where these hooks are called."""

        self._starts_nothing = False
        self._began = -math.inf
        """When the last batch was begun: leases of what it claims count from then."""

        self._void: list[Task] = []
        """Runs whose task was taken from them, and may have ended without them."""

    def send_nowait(self, value: TaskResult, /) -> None:
        """Take a worker's result: the loop is the dispatcher's `ResultChannel`."""
        self._ledger.reported(value.run)
        self.queue.send_nowait(value)

    @trio.lowlevel.enable_ki_protection
    async def run(self, nursery: trio.Nursery) -> None:
        """Write batches until cancelled.

        A batch that the store could not write stays apart, in a task of the nursery,
        until a hook has decided about it, and those that come later are served
        meanwhile: the hook itself may be one who asks.
        """
        while True:
            items = await self.queue.take_all()
            for group in await self._write(items):
                for item, _ in group:
                    if isinstance(item, Request):
                        item.lay_down()
                self.undecided += len(group)
                nursery.start_soon(self._decide, group)
            if self._void:
                nursery.start_soon(self._look_after, self._void)
                self._void = []
            if self._leaving:
                self._raise_leaving()

    @trio.lowlevel.enable_ki_protection
    async def _look_after(self, runs: Sequence[Task]) -> None:
        """Tell who waits for the tasks of void runs, if they have ended elsewhere."""
        for run in runs:
            try:
                task = await self._repository.get(run.id)
            except Exception as error:  # noqa: BLE001 (it is for who waits)
                self._ledger.give_up(run.id, error)
            else:
                if not task.state.ended:
                    self._ledger.tell_lost(run)  # a later attempt answers for the task
                    continue
                if run_key(task) == run_key(run):
                    # It was this very run that ended, by a write whose answer was lost.
                    self._ledger.ended(task)
                    self._observers.tell_done(task)
                else:
                    self._ledger.tell(task)

    def start_nothing(self) -> None:
        """From now on, put back what a claim that is under way brings."""
        self._starts_nothing = True

    async def finish(self) -> None:
        """Record what is left once the works have ended: in one write, under a shield.

        Runs without a result go back to scheduled. Who still waits is refused.

        Raises:
          RepositoryError: if that failed, or took longer than `RECORD_LIMIT` seconds.
        """
        results = self._unwritten + self.queue.close()
        reported = {run_key(result.run) for result in results}
        results += [
            TaskResult(run, outcome.Error(WorkStoppedError(StopReason.SHUTDOWN)))
            for run in self._ledger.runs.values()
            if run_key(run) not in reported
        ]
        try:
            if results:
                await self._write_last(results)
        except RepositoryError as error:
            for result in results:
                if result.run.id in self._ledger.runs:
                    self._note_leaving(result)
            if self._leaving:
                raise BaseExceptionGroup(
                    "outcomes could not be recorded, of works that were left by",
                    [error, *self._leaving],
                ) from None
            raise
        finally:
            self.queue.close()
            self._ledger.close()
        self._raise_leaving()

    async def _write_last(self, results: Sequence[TaskResult]) -> None:
        deadline = trio.current_time() + RECORD_LIMIT
        failed: Sequence[_Failed] = ()
        with trio.CancelScope(deadline=deadline, shield=True) as scope:
            failed = await self._write(results)
        if scope.cancelled_caught:
            raise RepositoryError(
                f"the outcome of {len(results)} runs could not be recorded within"
                f" {RECORD_LIMIT} s: their tasks stay dispatched until recovered"
            )
        if failed:
            raise RepositoryError(
                f"the outcome of {sum(map(len, failed))} runs could not be recorded: their"
                " tasks stay dispatched until recovered"
            ) from _as_one([each for group in failed for each in group])

    # -- a batch ----------------------------------------------------------------------

    async def _write(self, items: Sequence[Item]) -> list[_Failed]:
        """Write a batch, and settle what was written.

        Returns:
          What the store failed to write, in groups that a hook is to decide about.
        """
        self._ledger.writing = True
        self._began = trio.current_time()
        try:
            taken, operations = self._take(items)
            if not operations:
                return []
            try:
                outcomes = await self._repository.apply(operations)
            except Exception as error:  # noqa: BLE001 (the hooks decide what it means)
                return self._set_apart([(item, error) for item in taken])
            return self._set_apart(self._settle(taken, operations, outcomes))
        except BaseException:
            self._release(items)
            raise
        finally:
            self._ledger.batch_written()

    def _take(self, items: Sequence[Item]) -> tuple[list[Item], list[Operation]]:
        """What is still wanted of a batch, and how it is done."""
        now = self._clock.now()
        taken: list[Item] = []
        operations: list[Operation] = []
        for item in items:
            if isinstance(item, TaskResult):
                operations.append(recording(item.run, item.outcome, self._works, now))
            elif item.take():
                try:
                    operations.append(item.make(now))
                except Exception as error:  # noqa: BLE001 (it is for who asked)
                    item.settle(outcome.Error(error))
                    continue
            else:
                continue
            taken.append(item)
        return taken, operations

    def _settle(
        self,
        items: Sequence[Item],
        operations: Sequence[Operation],
        outcomes: Sequence[outcome.Outcome[Any]],
    ) -> _Failed:
        """Note what was written, and answer; return what the store failed to write."""
        failed: _Failed = []
        watched = self._observers.present
        for item, operation, result in zip(items, operations, outcomes, strict=True):
            if isinstance(result, outcome.Value):
                if isinstance(item, TaskResult):
                    self._settle_result(item, operation, result.value)
                    if watched:
                        self._tell(operation, result.value)
                else:
                    self._settle_request(item, operation, result.value)
                continue
            assert isinstance(result, outcome.Error)
            if isinstance(result.error, REFUSALS):
                self._settle_refused(item, result)
            else:
                failed.append((item, cast("Exception", result.error)))
        return failed

    def _settle_result(self, result: TaskResult, operation: Operation, task: Task) -> None:
        if isinstance(operation, RetryTask):
            self._ledger.retrying(result.run, task)
        else:
            self._ledger.recorded(result.run, task)
        if not isinstance(result.outcome, outcome.Value):
            self._note_leaving(result)

    def _tell(self, operation: Operation, task: Task) -> None:
        """Tell who watches what has become of a run."""
        self._observers.tell("on_update", operation, task)
        if task.state.ended:
            self._observers.tell_done(task)

    def _settle_request(self, request: Request, operation: Operation, result: Any) -> None:
        ledger, observers = self._ledger, self._observers
        match operation, result:
            case ClaimTasks(), Claimed() as claimed:
                self._settle_claim(request, claimed)
            case AddTasks(), Added() as added:
                self._settle_added(operation, added)
            case OnSchedule(), ScheduleChanged() as change:
                self._settle_change(operation, change)
            case CancelTask(), (Task() as task, True):
                ledger.ended(task)
                observers.tell("on_update", operation, task)
            case (UpdateTask(), (Task() as task, True)) | (NoteProgress(), Task() as task):
                observers.tell("on_update", operation, task)
            case _:
                pass  # nothing changed, or ended tasks were deleted
        request.settle(outcome.Value(result))

    def _settle_added(self, operation: AddTasks, added: Added) -> None:
        self._ledger.added += len(added.new)
        if self._observers.present:
            for task in (*added.new, *added.changed):
                self._observers.tell("on_update", operation, task)

    def _settle_claim(self, request: Request, claimed: Claimed) -> None:
        for task in claimed.expired:
            self._ledger.ended(task)
            if task.state is TaskState.FAILED:  # what is cancelled here has never run
                self._observers.tell_done(task)
        for dropped in claimed.dropped:
            self._observers.tell("on_dropped", dropped)
        self._ledger.claimed(claimed.tasks, self._began)
        for run in claimed.replaced:
            self._ledger.tell(run)
            self._dispatcher.cancel(run, StopReason.REPLACED)
        self._start(request, claimed.tasks)

    def _settle_change(self, operation: OnSchedule, change: ScheduleChanged) -> None:
        if change.task is not None and change.task.state.ended:
            self._ledger.ended(change.task)
        if isinstance(operation.change, TriggerSchedule):
            self._ledger.added += 1
        for task in change.task, change.made:
            if task is not None:
                self._observers.tell("on_update", operation, task)
        for dropped in change.dropped:
            self._observers.tell("on_dropped", dropped)

    def _start(self, claim: Request, tasks: Sequence[Task]) -> None:
        """Have claimed tasks run, in the same step in which they are noted."""
        assert claim.start is not None
        watched = self._observers.present
        for task in tasks:
            if self._starts_nothing:
                stopped = WorkStoppedError(StopReason.SHUTDOWN, started=False)
                self.send_nowait(TaskResult(task, outcome.Error(stopped)))
                continue
            if watched:
                self._observers.tell("on_dispatch", task)
            try:
                claim.start(task)
            except Exception as error:  # noqa: BLE001 (it is the outcome of the run)
                self.send_nowait(TaskResult(task, outcome.Error(error)))

    def _settle_refused(self, item: Item, result: outcome.Error) -> None:
        if isinstance(item, Request):
            item.settle(result)
            return
        # Somebody has taken the task from its run: what the run reports is void.
        if not _was_replaced(item):
            logger.warning("the outcome of %r is dropped: %s", item.run.id, result.error)
        self._ledger.lost(item.run)
        self._void.append(item.run)
        self._note_leaving(item)

    def _release(self, items: Sequence[Item]) -> None:
        """Keep results for the last write, and refuse requests, that are not settled."""
        for item in items:
            if isinstance(item, TaskResult):
                if item.run.id in self._ledger.runs:
                    self._unwritten.append(item)
            else:
                item.lay_down()
                item.refuse()

    # -- what could not be written ----------------------------------------------------

    def _set_apart(self, failed: _Failed) -> list[_Failed]:
        """Group by kind of error what failed, so that a hook is asked once for each.

        A claim's error is the dispatch loop's business.
        """
        groups: dict[type[Exception], _Failed] = {}
        for item, error in failed:
            if isinstance(item, Request) and item.start is not None:
                item.settle(outcome.Error(error))
            else:
                groups.setdefault(type(error), []).append((item, error))
        return list(groups.values())

    @trio.lowlevel.enable_ki_protection
    async def _decide(self, failed: _Failed) -> None:
        """Ask the hooks about what could not be written, and do as they say."""
        now = self._clock.now()
        items = [item for item, _ in failed]
        operations = [
            recording(item.run, item.outcome, self._works, now)
            if isinstance(item, TaskResult)
            else item.make(now)
            for item in items
        ]
        _, error = failed[0]  # and others like it
        here = trio.lowlevel.current_task()
        self.deciding.add(here)
        try:
            action = await decision(self._hooks.on_update_error, operations, error=error)
        except BaseException:
            self._release(items)
            raise
        finally:
            self.deciding.discard(here)
            self.undecided -= len(failed)
        if action is HookAction.RETRY:
            self.queue.put_back(items)
            return
        for item, its_error in failed:
            if isinstance(item, Request):
                item.settle(outcome.Error(its_error))
            elif action is HookAction.IGNORE:
                self._ledger.lost(item.run)
                self._ledger.give_up(item.run.id, its_error)
                self._note_leaving(item)
            else:
                self._unwritten.append(item)
        self._ledger.noted()
        if action is not HookAction.IGNORE:
            raise error
        self._raise_leaving()

    # -- works that ended in what is not an Exception ---------------------------------

    def _note_leaving(self, result: TaskResult) -> None:
        if isinstance(result.outcome, outcome.Error):
            error = result.outcome.error
            if not isinstance(error, Exception):
                self._leaving.append(error)

    def _raise_leaving(self) -> None:
        """Let a `KeyboardInterrupt` or the like go on, now that it is recorded."""
        leaving, self._leaving = self._leaving, []
        if len(leaving) == 1:
            raise leaving[0]
        if leaving:
            raise BaseExceptionGroup("works were left by", leaving)


def _was_replaced(result: TaskResult) -> bool:
    if not isinstance(result.outcome, outcome.Error):
        return False
    error = result.outcome.error
    return isinstance(error, WorkStoppedError) and error.reason is StopReason.REPLACED


def _as_one(failed: _Failed) -> Exception:
    """The error, or a group of them, if there are several."""
    errors = list({id(error): error for _, error in failed}.values())
    if len(errors) == 1:
        return errors[0]
    return ExceptionGroup(f"{len(errors)} changes could not be written", errors)
