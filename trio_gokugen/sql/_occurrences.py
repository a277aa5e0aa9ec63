"""Schedules that follow what becomes of their tasks, in the same transaction.

A schedule is read, and locked, once in a transaction, see `hold`.
In which order that is done, says `_order`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from types import MappingProxyType

from sqlalchemy import RowMapping

from trio_gokugen import _recurrence
from trio_gokugen._schedule import Schedule
from trio_gokugen._task import Task

from ._ongoing import Held, Ongoing, chunks
from ._rows import new_row
from ._schedule_rows import UNREADABLE, Unreadable, progress_of, schedule_of


class Schedules:
    """The schedules of some tasks: read and locked, stepped on, and written."""

    def __init__(self, ongoing: Ongoing, schedule_ids: Iterable[str]) -> None:
        self._ongoing = ongoing
        self._changed: dict[str, None] = {}
        self._successors: list[Task] = []
        hold(ongoing, schedule_ids)

    def of(self, task: Task) -> Schedule | None:
        """The schedule of a task; none if it was removed, or cannot be read."""
        held = self._ongoing.held.get(task.schedule_id or "")
        return None if held is None else held.schedule

    def error_of(self, task: Task) -> Unreadable | None:
        """Why the schedule of a task cannot be read, if that is so."""
        held = self._ongoing.held.get(task.schedule_id or "")
        return None if held is None else held.error

    def step(self, step: _recurrence.Step) -> None:
        """This becomes of a schedule."""
        assert step.schedule is not None
        self._ongoing.held[step.schedule.id] = Held(step.schedule)
        self._changed[step.schedule.id] = None
        if step.successor is not None:
            self._successors.append(step.successor)

    def follow(self, task: Task, at: datetime | None = None) -> None:
        """Have its schedule follow what became of a task.

        Args:
          task: As it was left.
          at: When it was changed, if it does not say so itself.
        """
        schedule = self.of(task)
        if schedule is None:
            return
        step = _recurrence.follow(schedule, task, self._ongoing.new_id, at)
        if step is not None:
            self.step(step)

    def write(self) -> None:
        """Write what has changed."""
        held = self._ongoing.held
        changed = [(each, held[each].schedule) for each in self._changed]
        rows = [
            {"schedule": each, **progress_of(schedule)}
            for each, schedule in changed
            if schedule is not None
        ]
        self._ongoing.execute_many(self._ongoing.say.step, rows)
        add(self._ongoing, self._successors)


def hold(ongoing: Ongoing, schedule_ids: Iterable[str]) -> None:
    """Read schedules, and lock them, unless that was done before."""
    missing = sorted({*schedule_ids} - ongoing.held.keys())
    if missing and ongoing.ahead is not None:
        ahead, ongoing.ahead = ongoing.ahead, None
        ahead(missing)
        return
    if (
        missing
        and ongoing.dialect.locks_rows
        and missing[0] < max(ongoing.held, default="")
    ):
        with ongoing.hurried():
            _hold(ongoing, missing)
    else:
        _hold(ongoing, missing)


def _hold(ongoing: Ongoing, schedule_ids: list[str]) -> None:
    for chunk in chunks(schedule_ids):
        listed = {"ids": ongoing.dialect.listed(chunk)}
        rows = ongoing.execute(ongoing.say.schedules, listed).mappings()
        found = {row["id"]: _held(row) for row in rows}
        ongoing.held.update((each, found.get(each, Held(None))) for each in chunk)


def _held(row: RowMapping) -> Held:
    try:
        return Held(schedule_of(row))
    except UNREADABLE as error:
        pending_id: object = row["pending_id"]
        return Held(None, error, pending_id if isinstance(pending_id, str) else None)


def schedules_of(tasks: Iterable[Task]) -> set[str]:
    """The ids of the schedules of tasks."""
    return {task.schedule_id for task in tasks if task.schedule_id is not None}


def add(ongoing: Ongoing, tasks: Collection[Task]) -> None:
    """Add tasks that are occurrences."""
    for task in tasks:
        ongoing.note_pending(task)
    ongoing.execute_many(ongoing.say.add, [new_row(task, None) for task in tasks])


def follow(
    ongoing: Ongoing,
    tasks: Iterable[Task],
    moments: Mapping[str, datetime] = MappingProxyType({}),
) -> None:
    """Have schedules follow what became of their tasks, which is written already.

    Args:
      ongoing: The transaction.
      tasks: As they were left.
      moments: By id, when they were changed, if they do not say so themselves.
    """
    theirs = [task for task in tasks if task.schedule_id is not None]
    schedules = Schedules(ongoing, schedules_of(theirs))
    for task in theirs:
        schedules.follow(task, moments.get(task.id))
    schedules.write()
