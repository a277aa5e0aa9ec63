"""What may happen to a task in each state, and what becomes of it: in one place.

Every repository asks here, so that every repository answers alike. Each function takes
the task as it stands and returns the task as it will stand, or raises the refusal.

    scheduled ──dispatch──▶ dispatched ──end──▶ done, failed
        │  ▲                   │    │
        │  └───revert, retry───┘    └─interrupt──▶ cancelled
        └──────────────cancel────────────────────────▲
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import attrs

from ._errors import (
    AlreadyCancelledError,
    AlreadyDispatchedError,
    AlreadyDoneError,
    DeadlineExceededError,
    KeyExistsError,
    LostRunError,
    NotDispatchedError,
    NotDueError,
    TaskExistsError,
)
from ._json import JSON
from ._task import (
    KEPT_ERRORS,
    FailedAttempt,
    Progress,
    Task,
    TaskState,
    TaskUpdate,
    check_deadline,
    evolve,
    made_of,
)


class Action(enum.Enum):
    """What one may want to do to a task."""

    UPDATE = "update"
    CANCEL = "cancel"
    DISPATCH = "dispatch"
    END = "end"
    REVERT = "revert"
    INTERRUPT = "interrupt"


Refusal: TypeAlias = (
    AlreadyCancelledError | AlreadyDispatchedError | AlreadyDoneError | NotDispatchedError
)

_SCHEDULED = TaskState.SCHEDULED
_DISPATCHED = TaskState.DISPATCHED
_CANCELLED = TaskState.CANCELLED
_DONE = TaskState.DONE
_FAILED = TaskState.FAILED

_UNLESS_SCHEDULED: dict[TaskState, type[Refusal]] = {
    TaskState.DISPATCHED: AlreadyDispatchedError,
    TaskState.CANCELLED: AlreadyCancelledError,
    TaskState.DONE: AlreadyDoneError,
    TaskState.FAILED: AlreadyDoneError,
}
_UNLESS_DISPATCHED: dict[TaskState, type[Refusal]] = {
    TaskState.SCHEDULED: NotDispatchedError,
    TaskState.CANCELLED: AlreadyCancelledError,
    TaskState.DONE: AlreadyDoneError,
    TaskState.FAILED: AlreadyDoneError,
}
TABLE: dict[Action, dict[TaskState, type[Refusal]]] = {
    Action.UPDATE: _UNLESS_SCHEDULED,
    # Cancelling what is cancelled is not refused: it changes nothing.
    Action.CANCEL: {
        state: refusal
        for state, refusal in _UNLESS_SCHEDULED.items()
        if state is not TaskState.CANCELLED
    },
    Action.DISPATCH: _UNLESS_SCHEDULED,
    Action.END: _UNLESS_DISPATCHED,
    Action.REVERT: _UNLESS_DISPATCHED,
    Action.INTERRUPT: _UNLESS_DISPATCHED,
}
"""For each action, the states in which it is refused, and with what error."""


def check(task: Task, action: Action) -> None:
    """Raise the refusal, if the task's state does not allow the action.

    Hot paths ask by identity first, as the members of an enumeration are slow to hash.
    """
    refusal = TABLE[action].get(task.state)
    if refusal is not None:
        raise refusal(task.id)


def _check_run(task: Task, run: Task, action: Action) -> None:
    if task.state is not _DISPATCHED:
        check(task, action)
    # The id may be used again, for another task, once the first is forgotten.
    if task.attempt != run.attempt or task.created_at != run.created_at:
        raise LostRunError(task.id, run.attempt)


def updated(task: Task, update: TaskUpdate) -> Task:
    """The task with the changes made; the same object if there are none."""
    if task.state is not _SCHEDULED:
        check(task, Action.UPDATE)
    changes = update.changes(task)
    if not changes:
        return task
    new = evolve(task, changes)
    check_deadline(new.scheduled_at, new.deadline)
    return new


@attrs.define
class Added:
    """What has become of tasks that were to be added."""

    new: Sequence[Task]
    """Those that are there now, and were not before."""

    changed: Sequence[Task]
    """Tasks that were there, and are scheduled like new ones instead."""

    tasks: Sequence[Task]
    """What there is now for each that was given."""


def added(
    tasks: Sequence[Task],
    if_exists: str,
    is_taken: Callable[[str], bool],
    holder_of: Callable[[str], Task | None],
) -> Added:
    """What becomes of tasks that are to be added; see `RepositoryLike.add`.

    Args:
      tasks: In the order in which they were given.
      if_exists: What becomes of one whose key is another's.
      is_taken: Whether there is a task of this id.
      holder_of: The task of this key that has not ended, if there is one.
    """
    new: dict[str, Task] = {}
    changed: dict[str, Task] = {}
    holders: dict[str, Task] = {}
    ids: list[str] = []
    for task in tasks:
        key = None if task.state.ended else task.key
        holder = None if key is None else holders.get(key) or holder_of(key)
        if holder is None or if_exists == "raise":
            if is_taken(task.id) or task.id in new:
                raise TaskExistsError(task.id)
            if key is not None:
                if holder is not None:
                    raise KeyExistsError(key, holder.id)
                holders[key] = task
            new[task.id] = task
        elif if_exists == "replace":
            task = replaced(holder, task)  # noqa: PLW2901 (it is what there is now)
            (new if task.id in new else changed)[task.id] = task
            holders[key or ""] = task
        else:
            task = holder  # noqa: PLW2901 (it is what there is now)
            holders[key or ""] = task
        ids.append(task.id)
    there = {task.id: task for task in holders.values()} | new
    return Added([*new.values()], [*changed.values()], [there[each] for each in ids])


_REPLACED = (
    "work_id",
    "param",
    "meta",
    "priority",
    "scheduled_at",
    "deadline",
    "retry",
    "pool",
)


def replaced(task: Task, new: Task) -> Task:
    """The task of a key, made like a new one that has the same."""
    if task.state is not _SCHEDULED:
        check(task, Action.UPDATE)
    changes = {field: getattr(new, field) for field in _REPLACED}
    # What has failed before was something else.
    return evolve(task, {**changes, "retries": 0, "errors": (), "progress": None})


def cancelled(task: Task, at: datetime) -> Task:
    """The task, cancelled; the same object if it was before."""
    if task.state is not _SCHEDULED:
        check(task, Action.CANCEL)
        return task  # cancelled it is: only that is neither scheduled nor refused
    return evolve(task, {"state": _CANCELLED, "cancelled_at": at})


def dispatched(task: Task, at: datetime, *, at_most_once: bool = False) -> Task:
    """The task, handed to a worker; or failed, if its deadline passed before."""
    if task.state is not _SCHEDULED:
        check(task, Action.DISPATCH)
    if task.scheduled_at > at:
        raise NotDueError(task.id)
    if task.deadline is None or at < task.deadline:
        fields = task.__dict__.copy()
        fields["state"] = _DISPATCHED
        fields["dispatched_at"] = at
        fields["attempt"] = task.attempt + 1
        fields["at_most_once"] = at_most_once
        return made_of(fields)
    error = DeadlineExceededError(task.deadline.isoformat(), started=False)
    err = f"{type(error).__name__}: {error}"
    return evolve(task, {"state": _FAILED, "done_at": at, "err": err})


def ended(
    task: Task, run: Task, at: datetime, err: str | None, result: JSON = None
) -> Task:
    """The task, done, or failed if there is an `err`, by the given run of it."""
    if task is not run or task.state is not _DISPATCHED:  # mostly it is the very same
        _check_run(task, run, Action.END)
    fields = task.__dict__.copy()
    fields["state"] = _DONE if err is None else _FAILED
    fields["done_at"] = at
    fields["err"] = err
    if result is not None:
        fields["result"] = result
    return made_of(fields)


def retried(
    task: Task, run: Task, at: datetime, scheduled_at: datetime, err: str | None
) -> Task:
    """The task, scheduled for another attempt. This one failed, if there is an `err`."""
    _check_run(task, run, Action.REVERT)
    changes: dict[str, Any] = {"state": _SCHEDULED, "scheduled_at": scheduled_at}
    if err is not None:
        failed = FailedAttempt(attempt=task.attempt, at=at, err=err)
        changes["retries"] = task.retries + 1
        changes["errors"] = (*task.errors, failed)[-KEPT_ERRORS:]
    check_deadline(scheduled_at, task.deadline)
    return evolve(task, changes)


def progressed(task: Task, run: Task, progress: Progress) -> Task:
    """The task, whose run has come so far."""
    _check_run(task, run, Action.END)
    return evolve(task, {"progress": progress})


def reverted(task: Task, run: Task) -> Task:
    """The task, back to scheduled after its run was interrupted."""
    _check_run(task, run, Action.REVERT)
    interruptions = task.interruptions + 1
    return evolve(task, {"state": _SCHEDULED, "interruptions": interruptions})


def interrupted(task: Task, run: Task, at: datetime) -> Task:
    """The task, cancelled together with its run."""
    _check_run(task, run, Action.INTERRUPT)
    return evolve(task, {"state": _CANCELLED, "cancelled_at": at})
