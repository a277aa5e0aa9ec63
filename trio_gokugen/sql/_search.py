"""A query as a statement."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    false,
    literal_column,
    or_,
    select,
)

from trio_gokugen._query import TaskQuery
from trio_gokugen._task import Task, TaskState

from ._dialects import Dialect
from ._rows import COLUMNS
from ._schema import TASK

_MOMENTS = (
    "scheduled_at",
    "created_at",
    "deadline",
    "cancelled_at",
    "dispatched_at",
    "done_at",
)
_FIND_ORDER = (
    TASK.c.scheduled_at,
    TASK.c.priority.desc(),
    TASK.c.created_at,
    TASK.c.id,
)


def search(
    dialect: Dialect,
    connection: Connection,
    query: TaskQuery,
    limit: int | None,
    after: Task | None,
) -> tuple[Select[Any], dict[str, Any]]:
    """What `RepositoryLike.find` is asked for, as a statement and its parameters."""
    parameters: dict[str, Any] = {}
    conditions = [*_conditions(query)]
    for column, values in ((TASK.c.id, query.ids), (TASK.c.work_id, query.work_ids)):
        if values is not None:
            name = f"{column.name}_list"
            conditions.append(dialect.among(column, name))
            parameters[name] = dialect.listed(values)
    if query.meta:
        conditions.append(dialect.has_meta(connection, query.meta))
    if after is not None:
        conditions.append(_follows(after))
    statement = select(*COLUMNS).where(*conditions)
    if query.states == {TaskState.DISPATCHED}:
        # They are few, and better found first and sorted then, than the other way about.
        running = select(dialect.key).where(*conditions)
        statement = select(*COLUMNS).where(dialect.is_one_of(running))
    statement = statement.order_by(*_FIND_ORDER)
    if limit is not None:
        statement = statement.limit(min(limit, 2**62))
    return statement, parameters


def _conditions(query: TaskQuery) -> Iterator[ColumnElement[bool]]:
    if query.states is not None:
        yield _in_states(query.states)
    for field in _MOMENTS:
        if (between := getattr(query, field)) is not None:
            yield from _within(TASK.c[field], between)
    if isinstance(query.priority, int):
        yield TASK.c.priority == query.priority
    elif query.priority is not None:
        yield from _within(TASK.c.priority, query.priority)


def _in_states(states: Collection[TaskState]) -> ColumnElement[bool]:
    # Said, and not told later, so that a partial index of that state is of use.
    return or_(
        false(), *(TASK.c.state == literal_column(f"'{each.value}'") for each in states)
    )


def _within(
    column: ColumnElement[Any], between: tuple[Any, Any]
) -> list[ColumnElement[bool]]:
    low, high = between
    conditions: list[ColumnElement[bool]] = [column.is_not(None)]
    if low is not None:
        conditions.append(column >= low)
    if high is not None:
        conditions.append(column < high)
    return conditions


def _follows(task: Task) -> ColumnElement[bool]:
    """What comes after the task, in the order of `find`."""
    at, priority, created_at = TASK.c.scheduled_at, TASK.c.priority, TASK.c.created_at
    same_moment = or_(
        priority < task.priority,
        and_(
            priority == task.priority,
            or_(
                created_at > task.created_at,
                and_(created_at == task.created_at, TASK.c.id > task.id),
            ),
        ),
    )
    # The first condition alone is what an index is good for.
    return and_(at >= task.scheduled_at, or_(at > task.scheduled_at, same_moment))
