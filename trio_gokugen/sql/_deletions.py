"""Ended tasks that are deleted, oldest end first."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, select, tuple_

from trio_gokugen.abc import ENDED, DeleteEnded

from ._ongoing import CHUNK, Ongoing
from ._schema import EPOCH, TASK

_MANY = 2**62
_ENDED = TASK.c.ended_at.is_not(None)


def delete_ended(ongoing: Ongoing, operation: DeleteEnded) -> list[str]:
    """Delete ended tasks; return their ids."""
    left = _MANY if operation.limit is None else min(operation.limit, _MANY)
    which: ColumnElement[bool] = _ENDED
    # All of them need not be named: without statistics it would mislead the planner.
    if not set(operation.states) >= ENDED:
        states = [state.value for state in operation.states]
        which = and_(which, TASK.c.state.in_(states))
    if operation.before is not None:
        which = and_(which, TASK.c.ended_at < operation.before)
    deleted: list[str] = []
    while left > 0:
        limit = min(left, CHUNK)
        chunk = _delete(ongoing, which, limit)
        deleted += chunk
        left -= len(chunk)
        if len(chunk) < limit:
            break
    return deleted


def delete_surplus(ongoing: Ongoing, keep: int, limit: int) -> list[str]:
    """Delete at most `limit` ended tasks, so that `keep` are left."""
    # The last that is too many, as the database has it: it may be one that can't be read.
    last = (
        select(TASK.c.ended_at, TASK.c.sequence)
        .where(_ENDED)
        .order_by(TASK.c.ended_at.desc(), TASK.c.sequence.desc())
        .offset(keep)
        .limit(1)
    )
    surplus = tuple_(TASK.c.ended_at, TASK.c.sequence) <= last.scalar_subquery()
    return _delete(ongoing, and_(_ENDED, surplus), limit)


def _delete(ongoing: Ongoing, which: ColumnElement[bool], limit: int) -> list[str]:
    dialect = ongoing.dialect
    oldest = (
        select(dialect.key)
        .where(which)
        .order_by(TASK.c.ended_at, TASK.c.sequence)
        .limit(limit)
    )
    statement = (
        delete(TASK)
        .where(dialect.is_one_of(dialect.locked(oldest, skip=True)))
        .returning(TASK.c.ended_at, TASK.c.sequence, TASK.c.id)
    )
    rows = [tuple(row) for row in ongoing.execute(statement, {})]
    rows.sort(key=_by_end)
    return [task_id for _, _, task_id in rows]


def _by_end(row: tuple[Any, ...]) -> tuple[datetime, int]:
    ended_at, sequence, _ = row
    return (ended_at if isinstance(ended_at, datetime) else EPOCH), sequence
