"""What operations make of the tasks that they name.

All these tasks are read by one statement; what becomes of them is decided in Python, by
the same table that every repository asks; and what has changed is written by one statement
for each kind of change. So a batch of a hundred costs hardly more round trips than one.

An id that is taken is found out by trying: only if the database refuses the new rows, all
is undone, and the batch begun anew with a look first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
import outcome
from sqlalchemy import Row

from trio_gokugen import _transitions
from trio_gokugen._errors import (
    REFUSALS,
    KeyExistsError,
    LostRunError,
    TaskNotFoundError,
)
from trio_gokugen._task import Task, TaskState
from trio_gokugen.abc import (
    Added,
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

from ._ends import EndRun, after, end_key, end_runs
from ._occurrences import follow
from ._ongoing import Key, LookFirstError, Ongoing, chunks
from ._rows import end_of, is_unreadable, life_of, new_row, plan_of, progress_of, task_of


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
    progressed: bool = False
    dispatched: bool = False
    """Whether it has been dispatched by one of the operations."""

    changed_at: datetime | None = None
    """When it was updated."""

    @property
    def is_changed(self) -> bool:
        """Whether anything may have changed of it, which was there before."""
        assert self.stored is not None
        return self.replanned or self.task.attempt != self.stored.attempt

    @property
    def moves_its_schedule(self) -> bool:
        """Whether the plan may have changed: not by a note on progress."""
        task, stored = self.task, self.stored
        assert stored is not None
        return task.state is not stored.state or task.scheduled_at != stored.scheduled_at

    @property
    def has_only_ended(self) -> bool:
        """Whether its run, or it itself, has ended, and nothing else has changed."""
        return not self.is_changed and self.task.state is not TaskState.DISPATCHED


class Changes:
    """See above."""

    def __init__(self, ongoing: Ongoing, *, careful: bool = False) -> None:
        self._ongoing = ongoing
        self._careful = careful
        self._entries: dict[str, _Entry] = {}
        self._holders: dict[str, str] = {}
        """By key, the task that had it at first, or has been added since."""

        self._unreadable: dict[str, str] = {}
        """By key, the task that has it and cannot be read: nobody can have it instead."""

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
        self._follow(ended[index] for index in sorted(ended))
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
        keys: set[str] = set()
        runs: dict[str, Task] = {}
        for operation in operations:
            match operation:
                case AddTasks(tasks=tasks):
                    keys.update(task.key for task in tasks if task.key is not None)
                    if self._careful:
                        ids.update(task.id for task in tasks)
                case UpdateTask() | CancelTask() | DispatchTask():
                    ids.add(operation.task_id)
                case EndTask() | RetryTask() | NoteProgress() | RevertTask() | CancelRun():
                    runs[operation.run.id] = operation.run
                case _:
                    raise TypeError(f"not an operation on tasks: {operation!r}")
        self._read_tasks(ids, runs)
        self._read_holders(keys)

    def _read_tasks(self, ids: set[str], runs: Mapping[str, Task]) -> None:
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

    def _read_holders(self, keys: set[str]) -> None:
        """Read the tasks that have these keys."""
        ongoing = self._ongoing
        for chunk in chunks(sorted(keys)):
            listed = {"keys": ongoing.dialect.listed(chunk)}
            for row in ongoing.execute(ongoing.say.holders, listed):
                task = task_of(row)
                if is_unreadable(row, task):
                    self._unreadable[row.unique_key] = task.id
                    continue
                key, owner = ongoing.key_of(row), row.dispatched_by
                self._entries.setdefault(task.id, _Entry(task, task, key, owner))
                self._holders[row.unique_key] = task.id

    def _carry_out(self, operation: Operation) -> Any:
        match operation:
            case AddTasks():
                return self._add(operation)
            case UpdateTask() | CancelTask() | DispatchTask():
                return self._change_scheduled(operation)
            case RetryTask() | NoteProgress():
                return self._change_run(operation)
            case EndTask() | RevertTask() | CancelRun():
                return self._end_run(operation)
            case _:
                raise TypeError(f"not an operation on tasks: {operation!r}")

    def _add(self, operation: AddTasks) -> Added:
        try:
            added = _transitions.added(
                operation.tasks,
                operation.if_exists,
                self._entries.__contains__,
                self._holder_of,
            )
        except REFUSALS:
            if not self._careful:
                raise LookFirstError from None  # an id before may be taken, too
            raise
        for task in added.changed:
            entry = self._entries[task.id]
            entry.task, entry.replanned, entry.progressed = task, True, True
        for task in added.new:
            running = task.state is TaskState.DISPATCHED
            owner = self._ongoing.name if running else None
            self._entries[task.id] = _Entry(task, None, None, owner)
            if task.key is not None:
                self._holders[task.key] = task.id
        return added

    def _holder_of(self, key: str) -> Task | None:
        if key in self._unreadable:
            raise KeyExistsError(key, self._unreadable[key])
        task_id = self._holders.get(key)
        if task_id is None:
            return None
        task = self._entries[task_id].task
        return None if task.state.ended else task

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

    def _change_run(self, operation: RetryTask | NoteProgress) -> Task:
        run = operation.run
        entry = self._entry(run.id)
        if isinstance(operation, NoteProgress):
            task = _transitions.progressed(entry.task, run, operation.progress)
            self._move_run(entry, run, task)
            entry.progressed = True
        else:
            at, again_at, err = operation.at, operation.scheduled_at, operation.err
            task = _transitions.retried(entry.task, run, at, again_at, err)
            self._move_run(entry, run, task)
            entry.replanned = True
        return task

    def _end_run(self, operation: EndRun) -> Task:
        entry = self._entry(operation.run.id)
        return self._move_run(entry, operation.run, after(operation, entry.task))

    def _move_run(self, entry: _Entry, run: Task, task: Task) -> Task:
        """Hold what becomes of a run's task, if the run is ours."""
        if entry.owner != self._ongoing.name:
            raise LostRunError(run.id, run.attempt)
        entry.task = task
        return task

    # -- writing it -------------------------------------------------------------------

    def _write(self) -> None:
        entries = [e for e in self._entries.values() if e.task is not e.stored]
        for entry in entries:
            if entry.task.state is TaskState.SCHEDULED:
                self._ongoing.note_pending(entry.task)
        there = [entry for entry in entries if entry.stored is not None]
        for chunk in chunks([entry for entry in there if entry.is_changed]):
            self._write_changed(chunk)
        for chunk in chunks([entry for entry in there if entry.has_only_ended]):
            self._write_ended(chunk)
        self._write_progress([entry for entry in there if entry.progressed])
        # Last, as those that have ended may have held a key that a new one has. Rows are
        # made as they are written: there may be very many.
        new = [entry for entry in entries if entry.stored is None]
        for chunk in chunks(new):
            rows = [new_row(entry.task, entry.owner) for entry in chunk]
            self._ongoing.execute_many(self._ongoing.say.add, rows)
        self._begin_leases([entry for entry in new if entry.dispatched])

    def _follow(self, ended: Iterable[Task]) -> None:
        """Have schedules follow what became of their tasks."""
        changed = [
            entry.task
            for entry in self._entries.values()
            if entry.stored is not None and entry.moves_its_schedule
        ]
        moments = {
            each.task.id: at for each in self._entries.values() if (at := each.changed_at)
        }
        follow(self._ongoing, [*ended, *changed], moments)

    def _write_progress(self, entries: Sequence[_Entry]) -> None:
        rows = [{"row": each.key, **progress_of(each.task)} for each in entries]
        self._ongoing.execute_many(self._ongoing.say.note_progress, rows)

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
        alike: dict[tuple[Any, ...], list[_Entry]] = {}
        for entry in entries:
            assert entry.stored is not None
            more = entry.task.interruptions - entry.stored.interruptions
            alike.setdefault((more, *end_key(entry.task)), []).append(entry)
        rows = [
            {
                "more": more,
                **end_of(same[0].task),
                "rows": self._ongoing.dialect.listed([entry.key for entry in same]),
            }
            for (more, *_), same in alike.items()
        ]
        self._ongoing.execute_many(self._ongoing.say.end, rows)


def _has_its_task(run: Task | None, row: Row[Any]) -> bool:
    if run is None or row.state != TaskState.DISPATCHED.value:
        return False
    return (row.attempt, row.created_at) == (run.attempt, run.created_at)
