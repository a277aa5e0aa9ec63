"""The first pending tasks: found, and claimed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
from sqlalchemy import Row, Select

from trio_gokugen import _transitions
from trio_gokugen._task import Task, TaskState
from trio_gokugen.abc import Claimed, ClaimTasks, TaskFilter

from ._dialects import Lane
from ._ongoing import CHUNK, Key, Ongoing
from ._rows import is_unreadable, task_of
from ._statements import FirstPending
from ._taking import Taking

LAST = datetime.max.replace(tzinfo=UTC)


def claim(ongoing: Ongoing, operation: ClaimTasks) -> Claimed:
    """Claim due tasks."""
    claimed = Claimed([], [])
    asking = _Asking(ongoing, operation.only)
    # So many that are past their deadline are enough for one transaction.
    while len(claimed.tasks) < operation.limit and len(claimed.expired) < CHUNK:
        limit = min(operation.limit - len(claimed.tasks), CHUNK)
        if not _claim_some(asking, operation.at, limit, claimed):
            break
    return claimed


class _Asking:
    """Asks for the first pending tasks that a filter accepts, as it counts on by itself."""

    def __init__(self, ongoing: Ongoing, only: TaskFilter) -> None:
        self.ongoing = ongoing
        self.only = only.counting()
        self._limits = tuple(room.limit for room in only.rooms)
        self._passed: list[str] = []

    def rows(self, ask: FirstPending, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """What `ask` finds, or one that asks within limits, if there are such."""
        if not self._limits:
            return _due(self.ongoing, ask, self.only, parameters)
        dialect, say = self.ongoing.dialect, self.ongoing.say
        within = say.within(self._limits, locked=ask is say.claim)
        full = {
            f"full{number}": dialect.listed([dialect.kept_as(each) for each in room.full()])
            for number, room in enumerate(self.only.rooms)
        }
        passed = {"passed": dialect.listed(self._passed)}
        return _due(self.ongoing, within, self.only, {**parameters, **full, **passed})

    def accepts(self, task: Task) -> bool:
        """Whether the task is within all limits; if not, it is not found again."""
        if not self._limits or self.only.accepts(task):
            return True
        self._passed.append(task.id)
        return False


def _claim_some(asking: _Asking, at: datetime, limit: int, claimed: Claimed) -> bool:
    """Claim some due tasks; return whether there may be more."""
    ongoing, only = asking.ongoing, asking.only
    say = ongoing.say
    once = ongoing.dialect.listed(sorted(only.at_most_once))
    how = {"once": once, **ongoing.leased(at)}
    to_claim: list[Key] = []
    rows = asking.rows(say.claim, {"at": at, "limit": limit, **how})
    taking = Taking(ongoing, rows, at)
    for row in rows:
        # Only what is found without limits is claimed as it is found.
        stamp = None if only.rooms else row[-1]
        task = task_of(row)
        if is_unreadable(row, task):
            if stamp is not None:  # then it has been claimed before it was read
                attempt = task.attempt + 1
                task = attrs.evolve(task, dispatched_at=at, attempt=attempt)
            taking.fail(row, attrs.evolve(task, done_at=at))
            continue
        if not asking.accepts(task):
            continue
        at_most_once = task.work_id in only.at_most_once
        if task.schedule_id is not None:
            task = taking.take(row, task, at_most_once=at_most_once)
            if task.state is TaskState.DISPATCHED:
                only.take(task)
            continue
        task = _transitions.dispatched(task, at, at_most_once=at_most_once)
        if task.state is not TaskState.DISPATCHED:
            taking.fail(row, task)
            continue
        only.take(task)
        taking.claimed.tasks.append(task)
        if stamp is None:
            to_claim.append(ongoing.key_of(row))
        else:
            ongoing.seal = stamp
    if to_claim:
        keys = ongoing.dialect.listed(to_claim)
        ongoing.execute(say.claim_rows, {"rows": keys, "at": at, **how})
    found = taking.write()
    claimed.tasks += found.tasks
    claimed.expired += found.expired
    claimed.made += found.made
    claimed.replace(found.replaced)
    claimed.dropped += found.dropped
    return len(rows) == limit or any(task.scheduled_at <= at for task in found.made)


def schedules_ahead(ongoing: Ongoing, operation: ClaimTasks) -> set[str]:
    """The schedules whose tasks it would find now."""
    limit = min(operation.limit, CHUNK)
    which = {"at": operation.at, "limit": limit}
    rows = _Asking(ongoing, operation.only).rows(ongoing.say.first, which)
    return {row.schedule_id for row in rows if isinstance(row.schedule_id, str)}


def first(ongoing: Ongoing, only: TaskFilter) -> Task | None:
    """The first pending task, due or not."""
    asking = _Asking(ongoing, only)
    limit = 1
    while rows := asking.rows(ongoing.say.first, {"at": LAST, "limit": limit}):
        for row in rows:
            task = task_of(row)
            # One that cannot be read is not counted by what it may have been.
            if is_unreadable(row, task) or asking.accepts(task):
                return task
        limit = min(10 * limit, CHUNK)
    return None


def _due(
    ongoing: Ongoing, ask: FirstPending, only: TaskFilter, parameters: Mapping[str, Any]
) -> Sequence[Row[Any]]:
    """The rows of the first pending tasks that a filter accepts."""
    lanes = _lanes(ongoing, only)
    if not lanes:
        return []
    unknown = ongoing.dialect.listed(ongoing.unknown.ids())
    parameters = {"unknown": unknown, **parameters}
    if len(lanes) == 1:
        [(pool, work)] = lanes
        one = {"named": pool, "work": work, **parameters}
        return ongoing.execute(ask.of_one, one).all()
    listed = {**ongoing.dialect.listed_lanes(lanes), **parameters}
    rows = ongoing.execute(ask.of_many, listed).all()
    if not rows and ask.past_locked is not None:
        rows = ongoing.execute(ask.past_locked, listed).all()
    return rows


def _lanes(ongoing: Ongoing, only: TaskFilter) -> list[Lane]:
    """The lanes that a filter accepts and that may have pending tasks."""
    pools, works = only.pools, only.unnamed
    if pools is None:
        return _pending(ongoing, only, ongoing.say.pending_lanes, {})
    lanes = [] if works is None else [("", work) for work in sorted(works)]
    names = sorted(name for name in pools.names if name)
    if works is None:
        names.append("")
    if names:
        listed = {"names": ongoing.dialect.listed(names)}
        lanes += _pending(ongoing, only, ongoing.say.lanes_of_pools, listed)
    return lanes


def _pending(
    ongoing: Ongoing, only: TaskFilter, ask: Select[Any], parameters: Mapping[str, Any]
) -> list[Lane]:
    """The lanes that a statement finds, of works that a filter accepts."""
    return [
        (pool, work)
        for pool, work in ongoing.execute(ask, parameters)
        if isinstance(pool, str) and isinstance(work, str)  # others are damaged
        if only.work_ids is None or work in only.work_ids
    ]
