"""Runs that end, which is what a scheduler writes most: without a look before.

Of a dispatched task nothing changes but that it ends: as it was claimed, so it stands. So
the statement that ends runs tells which of them still had their tasks. What is not among
these is looked at, and so is what ends in a way of its own: see `_changes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from trio_gokugen import _transitions
from trio_gokugen._task import Task, TaskState
from trio_gokugen.abc import (
    AddTasks,
    CancelRun,
    CancelTask,
    DispatchTask,
    EndTask,
    NoteProgress,
    Operation,
    RetryTask,
    RevertTask,
    UpdateTask,
)

from ._ongoing import LookFirstError, Ongoing, chunks
from ._rows import end_of, with_progress

EndRun: TypeAlias = EndTask | RevertTask | CancelRun

_End: TypeAlias = tuple[int, Task, Task]
"""The number of an operation, the run that it ends, and what becomes of the task."""


WAYS = 4
"""In so many ways runs may end, each of which takes a statement."""


def after(operation: EndRun, task: Task) -> Task:
    """The task, once its run has ended so."""
    match operation:
        case EndTask(run=run, at=at, err=err, result=result):
            return _transitions.ended(task, run, at, err, result)
        case RevertTask(run=run):
            return _transitions.reverted(task, run)
        case _:
            return _transitions.interrupted(task, operation.run, operation.at)


def end_runs(ongoing: Ongoing, operations: Sequence[Operation]) -> dict[int, Task]:
    """End the runs that have their tasks, and that nothing else is about.

    Returns:
      The tasks, by the number of the operation.

    Raises:
      LookFirstError: a run was taken for that of another task.
    """
    keyed = any(isinstance(each, AddTasks) and has_keys(each) for each in operations)
    alone = _named_once(operations)
    alike: dict[tuple[Any, ...], dict[str, _End]] = {}
    for index, operation in enumerate(operations):
        if not isinstance(operation, EndRun):
            continue
        run = operation.run
        if keyed and run.key is not None:
            continue  # before it ends, another of its key may be to be added
        if run.id in alone and run.state is TaskState.DISPATCHED:
            task = after(operation, run)
            how = type(operation), run.attempt, *end_key(task)
            alike.setdefault(how, {})[run.id] = index, run, task
    ended: dict[int, Task] = {}
    for ends in sorted(alike.values(), key=len, reverse=True)[:WAYS]:
        for chunk in chunks(sorted(ends)):
            ended |= _end_alike(ongoing, {each: ends[each] for each in chunk})
    return ended


def _end_alike(ongoing: Ongoing, ends: Mapping[str, _End]) -> Iterator[tuple[int, Task]]:
    """End runs that all end in the same way, by the id of their tasks."""
    _, run, task = next(iter(ends.values()))
    parameters = {
        "ids": ongoing.dialect.listed(ends),
        "name": ongoing.name,
        "run_attempt": run.attempt,
        "more": task.interruptions - run.interruptions,
        **end_of(task),
    }
    for row in ongoing.execute(ongoing.say.end_runs, parameters).all():
        index, run, task = ends[row[0]]
        if row[1] != run.created_at:
            raise LookFirstError
        if task.state is TaskState.SCHEDULED:
            ongoing.note_pending(task)
        if row[2] is not None:
            task = with_progress(task, row[2])
        ongoing.seal = row[3]
        yield index, task


def end_key(task: Task) -> tuple[Any, ...]:
    """What tells apart the ways in which tasks have ended."""
    end = end_of(task)
    end["result"] = json.dumps(end["result"])  # 0, False and 0.0 are not the same
    return tuple(end.values())


def has_keys(operation: AddTasks) -> bool:
    """Whether one of the tasks that are to be added has a key."""
    return any(task.key is not None for task in operation.tasks)


def _named_once(operations: Iterable[Operation]) -> set[str]:
    """The ids that one operation is about, and no other."""
    once: set[str] = set()
    more: set[str] = set()
    for operation in operations:
        match operation:
            case UpdateTask() | CancelTask() | DispatchTask():
                task_id = operation.task_id
            case EndTask() | RetryTask() | NoteProgress() | RevertTask() | CancelRun():
                task_id = operation.run.id
            case _:
                continue  # what is running can't be added, nor deleted
        (more if task_id in once else once).add(task_id)
    return once - more
