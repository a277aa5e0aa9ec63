"""Schedules that follow what becomes of their tasks, in the same transaction.

Whoever needs both locks tasks first, and schedules then, so that nobody waits in a circle.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from types import MappingProxyType

from trio_gokugen import _recurrence
from trio_gokugen._schedule import Schedule
from trio_gokugen._task import Task

from ._ongoing import Ongoing, chunks
from ._rows import new_row
from ._schedule_rows import UNREADABLE, Unreadable, progress_of, schedule_of


class Schedules:
    """The schedules of some tasks: read and locked, stepped on, and written."""

    def __init__(self, ongoing: Ongoing, schedule_ids: Iterable[str]) -> None:
        self._ongoing = ongoing
        self._known: dict[str, Schedule] = {}
        self.unreadable: dict[str, Unreadable] = {}
        """Those that cannot be read."""

        self._changed: dict[str, None] = {}
        self._successors: list[Task] = []
        for chunk in chunks(sorted(set(schedule_ids))):
            listed = {"ids": ongoing.dialect.listed(chunk)}
            for row in ongoing.execute(ongoing.say.schedules, listed).mappings():
                try:
                    self._known[row["id"]] = schedule_of(row)
                except UNREADABLE as error:
                    self.unreadable[row["id"]] = error

    def of(self, task: Task) -> Schedule | None:
        """The schedule of a task; none if it was removed, or cannot be read."""
        return self._known.get(task.schedule_id or "")

    def step(self, step: _recurrence.Step) -> None:
        """This becomes of a schedule."""
        assert step.schedule is not None
        self._known[step.schedule.id] = step.schedule
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
        rows = [
            {"schedule": each, **progress_of(self._known[each])} for each in self._changed
        ]
        self._ongoing.execute_many(self._ongoing.say.step, rows)
        add(self._ongoing, self._successors)


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
    if not theirs:
        return
    schedules = Schedules(ongoing, (task.schedule_id or "" for task in theirs))
    for task in theirs:
        schedules.follow(task, moments.get(task.id))
    schedules.write()
