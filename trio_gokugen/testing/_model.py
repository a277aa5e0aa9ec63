"""A repository at its plainest: a list of tasks, and everything by looking through it.

What a store does with its indices and its transactions must look just like this.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, assert_never

import outcome

from trio_gokugen import _transitions
from trio_gokugen._errors import (
    InvalidTaskError,
    NoSchedulesError,
    RefusedError,
    TaskNotFoundError,
)
from trio_gokugen._task import Task, TaskState
from trio_gokugen.abc import (
    Added,
    AddTasks,
    CancelRun,
    CancelTask,
    Claimed,
    ClaimTasks,
    DeleteEnded,
    DispatchTask,
    EndTask,
    NoteProgress,
    OnSchedule,
    Operation,
    RetryTask,
    RevertTask,
    TaskFilter,
    UpdateTask,
)


class Model:
    """Tasks in the order they were added."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.ends: list[str] = []
        """Ids of ended tasks, in the order they ended."""

    def pending(self, only: TaskFilter) -> list[Task]:
        """The scheduled tasks of the filter, who goes first first."""
        return sorted(
            (
                task
                for task in self.tasks
                if task.state is TaskState.SCHEDULED and only.accepts(task)
            ),
            key=lambda task: (task.scheduled_at, -task.priority),
        )

    def apply(self, operations: Sequence[Operation]) -> list[outcome.Outcome[Any]]:
        """What each operation returns or raises."""
        outcomes: list[outcome.Outcome[Any]] = []
        for operation in operations:
            try:
                outcomes.append(outcome.Value(self._carry_out(operation)))
            except (RefusedError, InvalidTaskError) as error:
                outcomes.append(outcome.Error(error))
        return outcomes

    def _carry_out(self, operation: Operation) -> Any:
        match operation:
            case AddTasks():
                return self._add(operation)
            case ClaimTasks():
                return self._claim(operation)
            case DeleteEnded():
                return self._delete_ended(operation)
            case UpdateTask(task_id=task_id) | CancelTask(task_id=task_id):
                before = self._get(task_id)
                after = self._put(_changed(before, operation))
                return after, after is not before
            case DispatchTask(task_id=task_id):
                return self._put(_changed(self._get(task_id), operation))
            case EndTask() | RetryTask() | NoteProgress() | RevertTask() | CancelRun():
                run = operation.run
                return self._put(_changed(self._get(run.id), operation))
            case OnSchedule():  # pragma: no cover: nobody walks there
                raise NoSchedulesError
            case _:
                assert_never(operation)

    def _add(self, operation: AddTasks) -> Added:
        ids = {task.id for task in self.tasks}
        holders = {task.key: task for task in self.tasks if not task.state.ended}
        added = _transitions.added(
            operation.tasks, operation.if_exists, ids.__contains__, holders.get
        )
        for task in added.changed:
            self._put(task)
        tasks = added.new
        self.tasks += tasks
        ended = [task for task in tasks if task.state.ended]
        by_age = sorted(ended, key=_end)
        kept = [self._get(task_id) for task_id in self.ends]
        in_order = not (by_age and kept) or _end(kept[-1]) <= _end(by_age[0])
        ends = (*kept, *by_age)
        self.ends = [task.id for task in (ends if in_order else sorted(ends, key=_end))]
        return added

    def _claim(self, operation: ClaimTasks) -> Claimed:
        claimed: list[Task] = []
        expired: list[Task] = []
        only = operation.only.counting()
        for task in self.pending(operation.only):
            if len(claimed) == operation.limit or task.scheduled_at > operation.at:
                break
            if not only.accepts(task):
                continue
            once = task.work_id in operation.only.at_most_once
            taken = _transitions.dispatched(task, operation.at, at_most_once=once)
            self._put(taken)
            if taken.state.ended:
                expired.append(taken)
            else:
                claimed.append(taken)
                only.take(taken)
        return Claimed(claimed, expired)

    def _delete_ended(self, operation: DeleteEnded) -> list[str]:
        deleted = [
            task_id
            for task_id in self.ends
            if (task := self._get(task_id)).state in operation.states
            and (operation.before is None or _end(task) < operation.before)
        ][: operation.limit]
        self.tasks = [task for task in self.tasks if task.id not in deleted]
        self.ends = [task_id for task_id in self.ends if task_id not in deleted]
        return deleted

    def _get(self, task_id: str) -> Task:
        for task in self.tasks:
            if task.id == task_id:
                return task
        raise TaskNotFoundError(task_id)

    def _put(self, task: Task) -> Task:
        self.tasks = [task if each.id == task.id else each for each in self.tasks]
        if task.state.ended and task.id not in self.ends:
            self.ends.append(task.id)
        return task


def _changed(task: Task, operation: Operation) -> Task:
    """The task as an operation on this one task leaves it."""
    match operation:
        case UpdateTask(update=update):
            task = _transitions.updated(task, update)
        case CancelTask(at=at):
            task = _transitions.cancelled(task, at)
        case DispatchTask(at=at, at_most_once=once):
            task = _transitions.dispatched(task, at, at_most_once=once)
        case EndTask(run=run, at=at, err=err, result=result):
            task = _transitions.ended(task, run, at, err, result)
        case RetryTask(run=run, at=at, scheduled_at=again_at, err=err):
            task = _transitions.retried(task, run, at, again_at, err)
        case NoteProgress(run=run, progress=progress):
            task = _transitions.progressed(task, run, progress)
        case RevertTask(run=run):
            task = _transitions.reverted(task, run)
        case CancelRun(run=run, at=at):
            task = _transitions.interrupted(task, run, at)
        case _:
            raise TypeError(f"not an operation on one task: {operation}")
    return task


def _end(task: Task) -> datetime:
    return task.created_at if task.ended_at is None else task.ended_at
