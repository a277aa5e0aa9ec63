"""Leases that are renewed, and tasks that others have let go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs
from sqlalchemy import Executable, Select

from trio_gokugen._repository import recovery
from trio_gokugen._task import Task
from trio_gokugen.abc import RecoverAction, TaskFilter

from ._changes import Changes
from ._occurrences import follow, hold, schedules_of
from ._ongoing import Key, Ongoing, chunks
from ._rows import is_unreadable, task_of
from ._taking import write_failed


def renew(ongoing: Ongoing, runs: Sequence[Task], at: datetime) -> list[Task]:
    """Renew the leases of runs; return those that have lost their tasks."""
    how = ongoing.leased(at)
    left = _without(runs, ongoing, ongoing.say.renew, how)
    if not left or not ongoing.dialect.locks_rows:
        return left
    # Others hold what was stepped over: as long as they do, nobody takes it for left.
    return _without(left, ongoing, ongoing.say.ours, how)


def _without(
    runs: Sequence[Task], ongoing: Ongoing, which: Executable, how: Mapping[str, Any]
) -> list[Task]:
    """The runs but for those that a statement finds."""
    found: set[tuple[str, int, datetime]] = set()
    for chunk in chunks(sorted(run.id for run in runs)):
        listed = {"ids": ongoing.dialect.listed(chunk), **how}
        found.update(tuple(row) for row in ongoing.execute(which, listed))
    return [run for run in runs if (run.id, run.attempt, run.created_at) not in found]


def recover(
    ongoing: Ongoing,
    left: Select[Any],
    action: RecoverAction,
    at: datetime,
    only: TaskFilter,
) -> list[Task]:
    """Recover tasks that nobody runs any more, of all those that a statement finds."""
    if action is RecoverAction.LEAVE:
        return []
    orphans: dict[Key, Task] = {}
    failed: dict[Key, Task] = {}
    for row in ongoing.execute(left, {"at": at, "name": ongoing.name}):
        task = task_of(row)
        if not only.accepts(task):
            continue
        if is_unreadable(row, task):
            failed[ongoing.key_of(row)] = attrs.evolve(task, done_at=at)
        else:
            orphans[ongoing.key_of(row)] = task
    write_failed(ongoing, failed)
    hold(ongoing, schedules_of([*failed.values(), *orphans.values()]))
    follow(ongoing, failed.values())
    changes = Changes(ongoing)
    found = sorted(orphans.items())
    ends = recovery([task for _, task in found], action, at)
    return [*failed.values(), *changes.end_found(found, ends)]
