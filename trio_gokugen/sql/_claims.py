"""The first pending tasks: found, and claimed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeAlias

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
        wanted = min(operation.limit - len(claimed.tasks), CHUNK)
        if not _claim_some(asking, operation.at, wanted, claimed):
            break
    return claimed


_Place: TypeAlias = tuple[datetime, int, int]
"""Where a task is in the order of dispatch: its moment, its priority, less than nothing,
and its age."""

_START: _Place = datetime.min.replace(tzinfo=UTC), -(2**63) + 1, -1


class _Asking:
    """Asks for the first pending tasks that a filter accepts, as it counts on by itself."""

    def __init__(self, ongoing: Ongoing, only: TaskFilter) -> None:
        self.ongoing = ongoing
        self.only = only.counting()
        self._limits = tuple(room.limit for room in only.rooms)
        self._from = _START
        self._page = 0

    def limit(self, wanted: int) -> int:
        """How many to ask for: more, the more there were for which there is no room."""
        return max(wanted, self._page)

    def rows(self, ask: FirstPending, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """What `ask` finds, or one that asks within limits, if there are such."""
        if not self._limits:
            return _due(self.ongoing, ask, self.only, parameters)
        dialect, say = self.ongoing.dialect, self.ongoing.say
        within = say.within(self._limits, locked=ask is say.claim)
        full = {
            f"full{number}": dialect.listed(_spelled(room.full()))
            for number, room in enumerate(self.only.rooms)
        }
        at, less, sequence = self._from
        place = {"from_at": at, "from_priority": -less, "from_sequence": sequence}
        return _due(self.ongoing, within, self.only, {**parameters, **full, **place})

    def accepts(self, row: Row[Any], task: Task) -> bool:
        """Whether the task is within all limits; it is not found again."""
        if not self._limits:
            return True
        self._from = task.scheduled_at, -task.priority, row.sequence
        return self.only.accepts(task)

    def grow(self, limit: int) -> None:
        """Ask for more than so many from now on: not all of them had room."""
        self._page = min(10 * limit, CHUNK)

    def go_back(self, made: Sequence[Task]) -> None:
        """Find new tasks, too, wherever they are."""
        for task in made:
            self._from = min(self._from, (task.scheduled_at, -task.priority, -1))


def _spelled(values: Sequence[str]) -> list[str]:
    """Values as JSON, in whatever way an engine may write them: with escapes, or without.

    What is no text without them is left out: it can only have come from somebody else.
    """
    spelled = dict.fromkeys(values)
    for each in values:
        plain = json.dumps(json.loads(each), ensure_ascii=False)
        with suppress(UnicodeEncodeError):
            plain.encode()
            spelled[plain] = None
    return [*spelled]


def _claim_some(asking: _Asking, at: datetime, wanted: int, claimed: Claimed) -> bool:
    """Claim some due tasks, not more than wanted; return whether there may be more."""
    ongoing, only = asking.ongoing, asking.only
    limit = asking.limit(wanted)
    taken = 0
    say = ongoing.say
    once = ongoing.dialect.listed(sorted(only.at_most_once))
    how = {"once": once, **ongoing.leased(at)}
    to_claim: list[Key] = []
    rows = asking.rows(say.claim, {"at": at, "limit": limit, **how})
    taking = Taking(ongoing, rows, at)
    for row in rows:
        if taken == wanted:
            break
        # Only what is found without limits is claimed as it is found.
        stamp = None if only.rooms else row[-1]
        task = task_of(row)
        if is_unreadable(row, task):
            taking.fail(row, _unread(task, at, claimed=stamp is not None))
            continue
        if not asking.accepts(row, task):
            asking.grow(limit)
            continue
        at_most_once = task.work_id in only.at_most_once
        if task.schedule_id is not None:
            task = taking.take(row, task, at_most_once=at_most_once)
            if task.state is TaskState.DISPATCHED:
                taken += 1
                only.take(task)
            continue
        task = _transitions.dispatched(task, at, at_most_once=at_most_once)
        if task.state is not TaskState.DISPATCHED:
            taking.fail(row, task)
            continue
        taken += 1
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
    _add(claimed, found)
    due = [task for task in found.made if task.scheduled_at <= at]
    asking.go_back(due)
    return taken == wanted or len(rows) == limit or bool(due)


def _unread(task: Task, at: datetime, *, claimed: bool) -> Task:
    """As a task ends that cannot be read, and may have been claimed before it was read."""
    if claimed:
        task = attrs.evolve(task, dispatched_at=at, attempt=task.attempt + 1)
    return attrs.evolve(task, done_at=at)


def _add(claimed: Claimed, found: Claimed) -> None:
    """Add what was found to what has been claimed before."""
    claimed.tasks += found.tasks
    claimed.expired += found.expired
    claimed.made += found.made
    claimed.replace(found.replaced)
    claimed.dropped += found.dropped


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
            if is_unreadable(row, task) or asking.accepts(row, task):
                return task
        asking.grow(limit)
        limit = asking.limit(limit)
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
