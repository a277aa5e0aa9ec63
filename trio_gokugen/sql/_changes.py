"""What operations make of the tasks that they name.

All these tasks are read by one statement; what becomes of them is decided in Python, by
the same table that every repository asks; and what has changed is written by one statement
for each kind of change. So a batch of a hundred costs hardly more round trips than one.

An id that is taken is found out by trying: only if the database refuses the new rows, all
is undone, and the batch begun anew with a look first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import attrs
import outcome
from sqlalchemy import Row

from trio_gokugen import _transitions
from trio_gokugen._errors import REFUSALS, LostRunError, TaskExistsError, TaskNotFoundError
from trio_gokugen._task import Task, TaskState
from trio_gokugen.abc import (
    AddTasks,
    CancelRun,
    CancelTask,
    DispatchTask,
    EndTask,
    Operation,
    RevertTask,
    UpdateTask,
)

from ._ends import EndRun, after, end_runs
from ._occurrences import follow
from ._ongoing import Key, LookFirstError, Ongoing, chunks
from ._rows import END, end_of, is_unreadable, life_of, new_row, plan_of, task_of


@attrs.define(eq=False)
class _Entry:
    """A task that operations are about."""

    task: Task
    stored: Task | None
    """As the database has it; none if it is new."""

    key: Key | None
    """What its row is found by; none if it is new."""

    owner: str | None
    replanned: bool = False
    dispatched: bool = False
    """Whether it has been dispatched by one of the operations."""

    changed_at: datetime | None = None
    """When it was updated."""


class Changes:
    """See above."""

    def __init__(self, ongoing: Ongoing, *, careful: bool = False) -> None:
        self._ongoing = ongoing
        self._careful = careful
        self._entries: dict[str, _Entry] = {}

    def carry_out(self, operations: Sequence[Operation]) -> list[outcome.Outcome[Any]]:
        """Carry out operations one after the other.

        Raises:
          LookFirstError: they are to be carried out carefully.
        """
        ended = {} if self._careful else end_runs(self._ongoing, operations)
        self._read(each for index, each in enumerate(operations) if index not in ended)
        outcomes: list[outcome.Outcome[Any]] = []
        for index, operation in enumerate(operations):
            try:
                result = ended.get(index) or self._carry_out(operation)
                outcomes.append(outcome.Value(result))
            except REFUSALS as error:
                outcomes.append(outcome.Error(error))
        self._write()
        self._follow(ended.values())
        return outcomes

    def end_found(
        self, found: Iterable[tuple[Key, Task]], operations: Iterable[EndRun]
    ) -> list[Task]:
        """End runs whose tasks have been read, and locked, by row."""
        for key, task in found:
            self._entries[task.id] = _Entry(task, task, key, self._ongoing.name)
        ended = [self._end_run(each) for each in operations]
        self._write()
        self._follow(())
        return ended

    def _read(self, operations: Iterable[Operation]) -> None:
        ids: set[str] = set()
        runs: dict[str, Task] = {}
        for operation in operations:
            match operation:
                case AddTasks(tasks=tasks):
                    if self._careful:
                        ids.update(task.id for task in tasks)
                case UpdateTask() | CancelTask() | DispatchTask():
                    ids.add(operation.task_id)
                case EndTask() | RevertTask() | CancelRun():
                    runs[operation.run.id] = operation.run
                case _:
                    raise TypeError(f"not an operation on tasks: {operation!r}")
        ongoing = self._ongoing
        # In the same order everywhere: two who lock many seldom wait for each other then.
        for chunk in chunks(sorted(ids | runs.keys())):
            listed = {"ids": ongoing.dialect.listed(chunk)}
            for row in ongoing.execute(ongoing.say.read, listed):
                task = task_of(row)
                if is_unreadable(row, task) and _has_its_task(runs.get(task.id), row):
                    task = runs[task.id]  # as it was claimed: it was damaged since
                key, owner = ongoing.key_of(row), row.dispatched_by
                self._entries[task.id] = _Entry(task, task, key, owner)

    def _carry_out(self, operation: Operation) -> Any:
        match operation:
            case AddTasks(tasks=tasks):
                return self._add(tasks)
            case UpdateTask() | CancelTask() | DispatchTask():
                return self._change_scheduled(operation)
            case EndTask() | RevertTask() | CancelRun():
                return self._end_run(operation)
            case _:
                raise TypeError(f"not an operation on tasks: {operation!r}")

    def _add(self, tasks: Sequence[Task]) -> None:
        new: dict[str, _Entry] = {}
        for task in tasks:
            if task.id in self._entries or task.id in new:
                if not self._careful:
                    raise LookFirstError  # an id before this one may be taken, too
                raise TaskExistsError(task.id)
            running = task.state is TaskState.DISPATCHED
            owner = self._ongoing.name if running else None
            new[task.id] = _Entry(task, None, None, owner)
        self._entries |= new

    def _entry(self, task_id: str) -> _Entry:
        try:
            return self._entries[task_id]
        except KeyError:
            raise TaskNotFoundError(task_id) from None

    def _change_scheduled(
        self, operation: UpdateTask | CancelTask | DispatchTask
    ) -> tuple[Task, bool] | Task:
        entry = self._entry(operation.task_id)
        before = entry.task
        match operation:
            case UpdateTask(update=update):
                entry.task = _transitions.updated(before, update)
                entry.changed_at = operation.at
                entry.replanned |= entry.task is not before
            case CancelTask(at=at):
                entry.task = _transitions.cancelled(before, at)
            case _:
                at, once = operation.at, operation.at_most_once
                entry.task = _transitions.dispatched(before, at, at_most_once=once)
                entry.owner = self._ongoing.name
                entry.dispatched = True
                return entry.task
        return entry.task, entry.task is not before

    def _end_run(self, operation: EndRun) -> Task:
        run = operation.run
        entry = self._entry(run.id)
        task = after(operation, entry.task)
        if entry.owner != self._ongoing.name:
            raise LostRunError(run.id, run.attempt)
        entry.task = task
        return task

    # -- writing it -------------------------------------------------------------------

    def _write(self) -> None:
        new: list[_Entry] = []
        ended: list[_Entry] = []
        changed: list[_Entry] = []
        for entry in self._entries.values():
            if entry.task is entry.stored:
                continue
            if entry.task.state is TaskState.SCHEDULED:
                self._ongoing.note_pending(entry.task)
            if entry.stored is None:
                new.append(entry)
            elif entry.replanned or entry.task.attempt != entry.stored.attempt:
                changed.append(entry)
            else:
                ended.append(entry)
        # Rows are made as they are written: there may be very many.
        for chunk in chunks(new):
            rows = [new_row(entry.task, entry.owner) for entry in chunk]
            self._ongoing.execute_many(self._ongoing.say.add, rows)
        self._begin_leases([entry for entry in new if entry.dispatched])
        for chunk in chunks(changed):
            self._write_changed(chunk)
        for chunk in chunks(ended):
            self._write_ended(chunk)

    def _follow(self, ended: Iterable[Task]) -> None:
        """Have schedules follow what became of their tasks."""
        changed = [
            entry.task
            for entry in self._entries.values()
            if entry.stored is not None and entry.task is not entry.stored
        ]
        moments = {
            each.task.id: at for each in self._entries.values() if (at := each.changed_at)
        }
        follow(self._ongoing, [*ended, *changed], moments)

    def _write_changed(self, entries: Sequence[_Entry]) -> None:
        """Write whatever may have changed, task by task."""
        ongoing = self._ongoing
        rows = [
            {"row": each.key, **life_of(each.task), **plan_of(each.task)}
            for each in entries
        ]
        ongoing.execute_many(ongoing.say.change, rows)
        self._begin_leases([entry for entry in entries if entry.dispatched])

    def _begin_leases(self, entries: Sequence[_Entry]) -> None:
        """Write who runs tasks that were dispatched one by one."""
        rows = [
            {"task": each.task.id, **self._ongoing.leased(each.task.dispatched_at)}
            for each in entries
            if each.task.state is TaskState.DISPATCHED
            and each.task.dispatched_at is not None
        ]
        self._ongoing.execute_many(self._ongoing.say.take, rows)

    def _write_ended(self, entries: Sequence[_Entry]) -> None:
        """Write how runs and tasks have ended: those that did alike, by one statement."""
        alike: dict[tuple[Any, ...], list[Key | None]] = {}
        for entry in entries:
            assert entry.stored is not None
            more = entry.task.interruptions - entry.stored.interruptions
            how = (more, *end_of(entry.task).values())
            alike.setdefault(how, []).append(entry.key)
        rows = [
            {
                "more": more,
                **dict(zip(END, end, strict=True)),
                "rows": self._ongoing.dialect.listed(keys),
            }
            for (more, *end), keys in alike.items()
        ]
        self._ongoing.execute_many(self._ongoing.say.end, rows)


def _has_its_task(run: Task | None, row: Row[Any]) -> bool:
    if run is None or row.state != TaskState.DISPATCHED.value:
        return False
    return (row.attempt, row.created_at) == (run.attempt, run.created_at)
