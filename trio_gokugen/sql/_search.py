"""A query as a statement."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Text,
    and_,
    false,
    literal_column,
    or_,
    select,
    true,
    union_all,
)

from trio_gokugen._query import TaskQuery
from trio_gokugen._task import ENDED, Task, TaskState

from ._dialects import PENDING, Dialect
from ._rows import COLUMNS
from ._schema import TASK
from ._statements import pending_lanes, pending_pools

_MOMENTS = (
    "scheduled_at",
    "created_at",
    "deadline",
    "cancelled_at",
    "dispatched_at",
    "done_at",
    "nominal_at",
)
_PENDING = frozenset({TaskState.SCHEDULED})
_RUNNING = frozenset({TaskState.DISPATCHED})


def _find_order(rows: FromClause = TASK) -> tuple[ColumnElement[Any], ...]:
    return rows.c.scheduled_at, rows.c.priority.desc(), rows.c.created_at, rows.c.id


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
    lists = {
        "ids": query.ids,
        "works": query.work_ids,
        "schedules": query.schedule_ids,
        "keys": query.keys,
        # Of tasks that name none it is empty.
        "pools": query.pools and [name for name in query.pools if name],
    }
    for name, values in lists.items():
        if values is not None:
            parameters[name] = dialect.listed(values)
    if query.meta:
        conditions.append(dialect.has_meta(connection, query.meta))
    if after is not None:
        conditions.append(_follows(after))
    most = None if limit is None else min(limit, 2**62)
    if query.ids is not None or query.states == _RUNNING or _is_of_few(query):
        statement = _few(dialect, query, conditions)
    elif query.keys is not None:
        if query.schedule_ids is not None:
            conditions.append(dialect.among(TASK.c.schedule_id, "schedules"))
        which = TASK.c.unique_key, "keys"
        statement = _of_several(dialect, query, conditions, most, *which)
    elif query.schedule_ids is not None:
        which = TASK.c.schedule_id, "schedules"
        statement = _of_several(dialect, query, conditions, most, *which)
    else:
        statement = _many(dialect, query, conditions, most)
    return statement.limit(most), parameters


def _is_of_few(query: TaskQuery) -> bool:
    """Whether it is for what is pending or running of schedules or keys: that is few."""
    named = query.schedule_ids is not None or query.keys is not None
    if not named or query.states is None:
        return False
    return ENDED.isdisjoint(query.states)


def _few(
    dialect: Dialect, query: TaskQuery, conditions: Sequence[ColumnElement[bool]]
) -> Select[Any]:
    """They are better found first, and sorted then, than the other way about."""
    found = select(dialect.key).where(*conditions, *_states_and_works(dialect, query))
    if query.ids is not None:
        found = found.where(dialect.among(TASK.c.id, "ids"))
    if query.schedule_ids is not None:
        found = found.where(dialect.among(TASK.c.schedule_id, "schedules"))
    if query.keys is not None:
        found = found.where(dialect.among(TASK.c.unique_key, "keys"))
    if _is_of_few(query):
        found = found.where(TASK.c.ended_at.is_(None))  # by the index of these
    return select(*COLUMNS).where(dialect.is_one_of(found)).order_by(*_find_order())


def _of_several(
    dialect: Dialect,
    query: TaskQuery,
    conditions: Sequence[ColumnElement[bool]],
    limit: int | None,
    column: ColumnElement[Any],
    name: str,
) -> Select[Any]:
    """The first of each schedule, or of each key, by the index of these."""
    first = select(*COLUMNS).where(*conditions, *_states_and_works(dialect, query))
    values = dialect.rows_of(name, Text())
    of_one = first.where(column == values.c.value)
    found = dialect.of_each(values, of_one.order_by(*_find_order()).limit(limit))
    rows = found.subquery("found")
    return select(rows).order_by(*_find_order(rows))


def _many(
    dialect: Dialect,
    query: TaskQuery,
    conditions: Sequence[ColumnElement[bool]],
    limit: int | None,
) -> Select[Any]:
    """Those that are pending, each lane's by the index of these, and those that are not."""
    first = select(*COLUMNS).where(*conditions).order_by(*_find_order()).limit(limit)
    found: list[Select[Any]] = []
    if query.states is None or TaskState.SCHEDULED in query.states:
        lanes = _pending_lanes(dialect, query)
        lane = TASK.c.pool == lanes.c.pool, TASK.c.work_id == lanes.c.work_id
        found.append(dialect.of_each(lanes, first.where(PENDING, *lane)))
    if query.states != _PENDING:
        not_pending = TASK.c.state != literal_column("'scheduled'")
        found.append(first.where(not_pending, *_states_and_works(dialect, query)))
    rows = union_all(*(select(each.subquery()) for each in found)).subquery("found")
    return select(rows).order_by(*_find_order(rows))


def _pending_lanes(dialect: Dialect, query: TaskQuery) -> FromClause:
    """The pools and works whose pending tasks are looked for."""
    pools: FromClause = pending_pools()
    if query.pools is not None:
        pools = dialect.rows_of("pools", Text())
    if query.work_ids is None:
        return pending_lanes(pools)
    works = dialect.rows_of("works", Text())
    pairs = select(pools.c.value.label("pool"), works.c.value.label("work_id"))
    return pairs.join_from(pools, works, true()).subquery("lanes")


def _states_and_works(dialect: Dialect, query: TaskQuery) -> Iterator[ColumnElement[bool]]:
    if query.states is not None:
        yield _in_states(query.states)
    if query.work_ids is not None:
        yield dialect.among(TASK.c.work_id, "works")
    if query.pools is not None:
        yield dialect.among(TASK.c.pool, "pools")


def _conditions(query: TaskQuery) -> Iterator[ColumnElement[bool]]:
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
