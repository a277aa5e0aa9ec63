"""Due tasks of schedules that are taken: dispatched, or moved, as their schedules say.

Each schedule is read once for all its tasks that a claim has found, whatever becomes of
these, and written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from trio_gokugen import _recurrence, _transitions
from trio_gokugen._schedule import Schedule
from trio_gokugen._task import Task, TaskState, evolve
from trio_gokugen.abc import CancelRun, Claimed

from ._changes import Changes
from ._errors import UnknownScheduleError
from ._occurrences import Schedules
from ._ongoing import Key, Ongoing
from ._rows import life_of, plan_of, task_of


class Taking:
    """What becomes of some rows that were found by a claim."""

    def __init__(self, ongoing: Ongoing, rows: Iterable[Row[Any]], at: datetime) -> None:
        self._ongoing = ongoing
        self._at = at
        ids = {row.schedule_id for row in rows if isinstance(row.schedule_id, str)}
        new = ids - ongoing.held.keys()
        if new and ongoing.dialect.locks_rows:
            # Tasks first, as everybody does it: else who ends one of these, and then wants
            # its schedule, would wait for us, and we for him.
            with ongoing.hurried() if ongoing.held else nullcontext():
                ongoing.lock_tasks([], new)
        self._schedules = Schedules(ongoing, ids)
        self._taken: dict[Key, Task] = {}
        self._failed: dict[Key, Task] = {}
        self._replacing: dict[str, None] = {}
        self.claimed = Claimed([], [])
        """What the claim has found."""

    def take(self, row: Row[Any], task: Task, *, at_most_once: bool) -> Task:
        """Take a task, which may have been recorded as dispatched already.

        Returns:
          The task as it will stand.
        """
        schedule = self._schedules.of(task)
        error = self._schedules.error_of(task)
        if isinstance(error, UnknownScheduleError):
            self._ongoing.unknown.note(error)
            # As it was: it may have been recorded as dispatched.
            self._taken[self._ongoing.key_of(row)] = task
            return task
        if error is not None:
            err = f"{type(error).__name__}: {error}"
            task = evolve(
                task, {"state": TaskState.FAILED, "err": err, "done_at": self._at}
            )
        elif schedule is None:
            task = _transitions.dispatched(task, self._at, at_most_once=at_most_once)
        else:
            task = self._take(schedule, task, at_most_once=at_most_once)
        self._taken[self._ongoing.key_of(row)] = task
        if task.state is TaskState.DISPATCHED:
            self.claimed.tasks.append(task)
        elif task.state is TaskState.SCHEDULED:
            self.claimed.made.append(task)
            self._ongoing.note_pending(task)
        else:
            self.claimed.expired.append(task)
        return task

    def _take(self, schedule: Schedule, task: Task, *, at_most_once: bool) -> Task:
        step = _recurrence.take(
            schedule, task, self._at, self._ongoing.new_id, at_most_once=at_most_once
        )
        self._schedules.step(step)
        self.claimed.dropped += step.dropped
        if step.successor is not None:
            self.claimed.made.append(step.successor)
        assert step.task is not None
        if _recurrence.replaces(schedule, step.task):
            self._replacing[schedule.id] = None
            self._replace_taken(schedule.id)
        return step.task

    def _replace_taken(self, schedule_id: str) -> None:
        """Cancel what was taken of a schedule just now."""
        replaced = {
            key: _transitions.interrupted(task, task, self._at)
            for key, task in self._taken.items()
            if task.schedule_id == schedule_id and task.state is TaskState.DISPATCHED
        }
        self._taken |= replaced
        self.claimed.replace([*replaced.values()])

    def fail(self, row: Row[Any], task: Task) -> None:
        """Have a task fail, or one that cannot be read; its schedule follows."""
        self._failed[self._ongoing.key_of(row)] = task
        self._schedules.follow(task)
        self.claimed.expired.append(task)

    def write(self) -> Claimed:
        """Write all that, and tell what was found."""
        ongoing = self._ongoing
        write_failed(ongoing, self._failed)
        self._replace_runs()
        rows = [
            {"row": key, **life_of(task), **plan_of(task)}
            for key, task in self._taken.items()
        ]
        ongoing.execute_many(ongoing.say.change, rows)
        dispatched = [
            {"task": task.id, **ongoing.leased(self._at)}
            for task in self._taken.values()
            if task.state is TaskState.DISPATCHED
        ]
        ongoing.execute_many(ongoing.say.take, dispatched)
        self._schedules.write()
        return self.claimed

    def _replace_runs(self) -> None:
        """Cancel what runs of schedules whose next occurrence is taken."""
        if not self._replacing:
            return
        ongoing = self._ongoing
        runs = self._runs()
        new = {task.id for _, task in runs} - ongoing.locked
        if new and ongoing.dialect.locks_rows:
            with ongoing.hurried():
                ongoing.lock_tasks(new)
            runs = self._runs()  # as they are now
        ends = [CancelRun(task, self._at) for _, task in runs]
        self.claimed.replace(Changes(ongoing).end_found(runs, ends))

    def _runs(self) -> list[tuple[Key, Task]]:
        """What runs of schedules whose next occurrence is taken, beside that."""
        ongoing = self._ongoing
        taken = {task.id for task in self._taken.values()}
        which = {"ids": ongoing.dialect.listed(self._replacing)}
        rows = ongoing.execute(ongoing.say.running_of, which)
        runs = [(ongoing.key_of(row), task_of(row)) for row in rows]
        return [
            (key, task)
            for key, task in runs
            if task.id not in taken and task.state is TaskState.DISPATCHED
        ]


def write_failed(ongoing: Ongoing, tasks: Mapping[Key, Task]) -> None:
    """Write that tasks have failed, by row, and leave the rest of the rows as it is."""
    rows = [
        {"row": row, "err": task.err, "done_at": task.done_at}
        for row, task in tasks.items()
    ]
    ongoing.execute_many(ongoing.say.fail, rows)
