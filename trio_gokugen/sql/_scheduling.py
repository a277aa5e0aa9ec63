"""Schedules that somebody adds, changes or removes.

All that is to be known of them is read by few statements, however many they are, and what
has changed is written by one statement for each kind of change. So who adds the same
schedules at each start pays for reading them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import outcome

from trio_gokugen import _schedule_changes, _transitions
from trio_gokugen._errors import REFUSALS
from trio_gokugen._recurrence import Step
from trio_gokugen._schedule import (
    ChangeSchedule,
    PutSchedule,
    RemoveSchedule,
    Schedule,
    ScheduleChanged,
)
from trio_gokugen._task import UNCHANGED, Task, TaskState, evolve
from trio_gokugen._triggers import check_readable

from ._occurrences import add, hold
from ._ongoing import Held, Key, Ongoing, chunks
from ._rows import is_unreadable, life_of, plan_of, task_of
from ._schedule_rows import definition_of, progress_of, row_of


def change_schedules(
    ongoing: Ongoing, changes: Sequence[ChangeSchedule]
) -> list[outcome.Outcome[Any]]:
    """Change schedules, together with their next occurrences, one after the other."""
    outcomes: list[outcome.Outcome[Any]] = []
    for once in _named_once(changes):
        changing = _Changing(ongoing, [each.schedule_id for each in once])
        for change in once:
            try:
                outcomes.append(outcome.Value(changing.change(change)))
            except REFUSALS as error:
                outcomes.append(outcome.Error(error))
        changing.write()
    return outcomes


def _named_once(changes: Sequence[ChangeSchedule]) -> Iterator[list[ChangeSchedule]]:
    """The changes in lists, in none of which two are of one schedule."""
    once: dict[str, ChangeSchedule] = {}
    for change in changes:
        if change.schedule_id in once:
            yield [*once.values()]
            once = {}
        once[change.schedule_id] = change
    yield [*once.values()]


class _Changing:
    """Some schedules and their next occurrences, which nobody else can change now."""

    def __init__(self, ongoing: Ongoing, schedule_ids: Sequence[str]) -> None:
        self._ongoing = ongoing
        hold(ongoing, schedule_ids)
        held = [ongoing.held[each] for each in schedule_ids]
        self._heads = self._read_heads(held)
        schedules = [each.schedule for each in held if each.schedule is not None]
        self._awaited = self._read_awaited(schedules)
        self._running = self._read_running(schedules)
        self._changed: list[tuple[Key, Task]] = []
        self._added: list[Schedule] = []
        self._defined: list[Schedule] = []
        self._removed: list[str] = []
        self._successors: list[Task] = []

    # -- reading ----------------------------------------------------------------------

    def _read_heads(self, held: Sequence[Held]) -> dict[str, tuple[Key, Task]]:
        """The next occurrences that are pending, by their ids."""
        ongoing = self._ongoing
        heads: dict[str, tuple[Key, Task]] = {}
        ids = {each.pending_id for each in held if each.pending_id is not None}
        for chunk in chunks(sorted(ids)):
            listed = {"ids": ongoing.dialect.listed(chunk)}
            for row in ongoing.execute(ongoing.say.read, listed):
                task = task_of(row)
                if not is_unreadable(row, task) and task.state is TaskState.SCHEDULED:
                    heads[task.id] = ongoing.key_of(row), task
        return heads

    def _read_awaited(self, schedules: Sequence[Schedule]) -> dict[str, Task]:
        """What schedules wait for, by its id.

        Not locked: who ends it has the schedule follow, which is locked, and comes after
        us.
        """
        ongoing = self._ongoing
        awaited: dict[str, Task] = {}
        ids = {each.awaited_id for each in schedules if each.awaited_id is not None}
        for chunk in chunks(sorted(ids)):
            listed = {"ids": ongoing.dialect.listed(chunk)}
            for row in ongoing.execute(ongoing.say.look, listed):
                task = task_of(row)
                if is_unreadable(row, task) and row.state == TaskState.DISPATCHED.value:
                    task = evolve(
                        task, {"state": TaskState.DISPATCHED}
                    )  # it runs all the same
                awaited[task.id] = task
        return awaited

    def _read_running(self, schedules: Sequence[Schedule]) -> dict[str, list[Task]]:
        """The runs of schedules that wait for none, by schedule. Not locked, either."""
        ongoing = self._ongoing
        running: dict[str, list[Task]] = {}
        ids = [each.id for each in schedules if each.awaited_id is None]
        for chunk in chunks(ids):
            listed = {"ids": ongoing.dialect.listed(chunk)}
            found = map(task_of, ongoing.execute(ongoing.say.running_of, listed))
            for task in (each for each in found if each.state is TaskState.DISPATCHED):
                running.setdefault(task.schedule_id or "", []).append(task)
        return running

    def _run_of(self, schedule: Schedule) -> Task | None:
        """What a schedule waits for, or else its last run."""
        if schedule.awaited_id is not None:
            return self._awaited.get(schedule.awaited_id)
        return _schedule_changes.last_of(self._running.get(schedule.id, []))

    # -- changing ---------------------------------------------------------------------

    def change(self, change: ChangeSchedule) -> ScheduleChanged:
        """What becomes of a schedule. It is still to be written."""
        if isinstance(change, PutSchedule):
            check_readable(change.schedule.trigger)
        elif (update := getattr(change, "update", None)) and (
            update.trigger is not UNCHANGED
        ):
            check_readable(update.trigger)
        held = self._ongoing.held[change.schedule_id]
        key, head = self._heads.get(held.pending_id or "", (None, None))
        schedule = held.schedule
        if held.error is None:
            run = None if schedule is None else self._run_of(schedule)
            new_id = self._ongoing.new_id
            step = _schedule_changes.change(schedule, head, change, new_id, run)
        elif isinstance(change, RemoveSchedule):
            step = _removed(head, change.at)
        else:
            raise held.error
        if step is None:
            return ScheduleChanged(schedule, changed=False)
        self._note(change.schedule_id, schedule, key, step)
        return _told(step)

    def _note(
        self, schedule_id: str, before: Schedule | None, key: Key | None, step: Step
    ) -> None:
        """Note what is to be written."""
        if step.task is not None:
            assert key is not None
            self._changed.append((key, step.task))
        if step.successor is not None:
            self._successors.append(step.successor)
        if step.schedule is None:
            self._removed.append(schedule_id)
        elif before is None:
            self._added.append(step.schedule)
        else:
            self._defined.append(step.schedule)
        self._ongoing.held[schedule_id] = Held(step.schedule)

    def write(self) -> None:
        """Write what has changed."""
        ongoing = self._ongoing
        for _, task in self._changed:
            if task.state is TaskState.SCHEDULED:
                ongoing.note_pending(task)
        say = ongoing.say
        rows = [
            {"row": key, **life_of(task), **plan_of(task)} for key, task in self._changed
        ]
        ongoing.execute_many(say.change, rows)
        ongoing.execute_many(
            say.remove_schedule, [{"schedule": each} for each in self._removed]
        )
        for each in self._removed:
            ongoing.unknown.forget(each)
        # By their ids, so that two who add the same ones do not wait for each other.
        added = sorted(self._added, key=lambda schedule: schedule.id)
        ongoing.execute_many(say.add_schedule, [row_of(each) for each in added])
        rows = [
            {"schedule": each.id, **definition_of(each), **progress_of(each)}
            for each in self._defined
        ]
        ongoing.execute_many(say.define, rows)
        add(ongoing, self._successors)


def _removed(head: Task | None, at: datetime) -> Step:
    """A schedule that cannot be read is removed."""
    return Step(None, None if head is None else _transitions.cancelled(head, at))


def _told(step: Step) -> ScheduleChanged:
    return ScheduleChanged(
        step.schedule,
        changed=True,
        task=step.task,
        made=step.successor,
        dropped=[*step.dropped],
    )
