"""The statements, made once for each kind of database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any

import attrs
from sqlalchemy import (
    CTE,
    BigInteger,
    BindParameter,
    ColumnElement,
    Delete,
    Executable,
    FromClause,
    Insert,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    not_,
    or_,
    select,
    union_all,
    update,
)

from trio_gokugen._key_limits import KeyLimit

from ._dialects import AT, LIMIT, PENDING, RUNNING, Dialect
from ._rows import COLUMNS, END, LIFE, PLAN
from ._schedule_rows import DEFINITION, PROGRESS
from ._schema import SCHEDULE, TASK, Moment

_MINE = TASK.c.dispatched_by == bindparam("name", type_=Text)


_FROM_AT: BindParameter[datetime] = bindparam("from_at", type_=Moment)
_FROM_PRIORITY: BindParameter[int] = bindparam("from_priority", type_=BigInteger)
_FROM_SEQUENCE: BindParameter[int] = bindparam("from_sequence", type_=BigInteger)
_BEHIND: list[ColumnElement[bool]] = [
    TASK.c.scheduled_at >= _FROM_AT,  # said apart, as an index can be asked for it
    or_(
        TASK.c.scheduled_at > _FROM_AT,
        TASK.c.priority < _FROM_PRIORITY,
        and_(TASK.c.priority == _FROM_PRIORITY, TASK.c.sequence > _FROM_SEQUENCE),
    ),
]
"""Whether a task is behind a place, in the order of dispatch."""


def _values_of(names: Sequence[str]) -> dict[str, BindParameter[Any]]:
    return {each: bindparam(each, type_=TASK.c[each].type) for each in names}


@attrs.frozen
class FirstPending:
    """How the first pending tasks of some lanes are asked for."""

    of_one: Select[Any]
    of_many: Select[Any]
    past_locked: Select[Any] | None = None
    """Said if the one for many finds none; see `Dialect.heads_past_locked`."""


def pending_pools() -> CTE:
    """The pools that pending tasks name, in the column ``value``; empty for those without.

    Each is found by the index from the one before, however many tasks it has. The last one
    is null.
    """
    first = select(func.min(TASK.c.pool).label("value")).where(PENDING)
    pools = first.cte("pending_pools", recursive=True)
    next_ = select(func.min(TASK.c.pool)).where(PENDING, TASK.c.pool > pools.c.value)
    more = select(next_.correlate(pools).scalar_subquery())
    return pools.union_all(more.where(pools.c.value.is_not(None)))


def pending_lanes(pools: FromClause) -> CTE:
    """The lanes of these pools that have pending tasks, found likewise.

    With columns ``pool`` and ``work_id``; the last work of each pool is null.
    """
    work_id, pool = func.min(TASK.c.work_id), pools.c.value
    first = select(work_id).where(PENDING, TASK.c.pool == pool).correlate(pools)
    seeds = select(pool.label("pool"), first.scalar_subquery().label("work_id"))
    lanes = seeds.cte("pending_lanes", recursive=True)
    next_ = select(work_id).where(
        PENDING, TASK.c.pool == lanes.c.pool, TASK.c.work_id > lanes.c.work_id
    )
    more = select(lanes.c.pool, next_.correlate(lanes).scalar_subquery())
    return lanes.union_all(more.where(lanes.c.work_id.is_not(None)))


def _first_pending(
    dialect: Dialect, *, locked: bool, besides: Sequence[ColumnElement[bool]] = ()
) -> FirstPending:
    return FirstPending(
        dialect.heads_of_one(locked=locked, besides=besides),
        dialect.heads(locked=locked, besides=besides),
        dialect.heads_past_locked(besides) if locked else None,
    )


class Statements:
    """What is said to the database, but for searches, which are made as they come."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._within: dict[tuple[bool, tuple[KeyLimit, ...]], FirstPending] = {}
        self._make_reading(dialect)
        self._make_changing(dialect)
        self._make_ending(dialect)
        self._make_claiming(dialect)
        self._make_leases(dialect)
        self._make_schedules(dialect)

    def within(self, limits: tuple[KeyLimit, ...], *, locked: bool) -> FirstPending:
        """The first pending tasks, without those whose values are listed for a limit.

        The lists are ``full0`` for the first limit, and so on. Only those behind a place,
        of which ``from_at`` is the moment, ``from_priority`` and ``from_sequence``.
        """
        made = self._within.get((locked, limits))
        if made is None:
            besides = [*_BEHIND]
            for number, limit in enumerate(limits):
                values = TASK.c.param if limit.meta is None else TASK.c.meta
                value = self._dialect.value_of(values, limit.name)
                full = self._dialect.among(value, f"full{number}")
                besides.append(or_(value.is_(None), not_(full)))
            made = _first_pending(self._dialect, locked=locked, besides=besides)
            self._within[locked, limits] = made
        return made

    def _make_reading(self, dialect: Dialect) -> None:
        self.get: Select[Any] = select(*COLUMNS).where(
            TASK.c.id == bindparam("id", type_=Text)
        )
        self.read: Select[Any] = dialect.locked(
            select(*COLUMNS).where(dialect.among(TASK.c.id, "ids")).order_by(TASK.c.id)
        )
        self.first: FirstPending = _first_pending(dialect, locked=False)
        self.pending_lanes: Select[Any] = select(pending_lanes(pending_pools()))
        self.lanes_of_pools: Select[Any] = select(
            pending_lanes(dialect.rows_of("names", Text()))
        )
        lane = TASK.c.pool, TASK.c.work_id
        self.count_pending: Select[Any, Any, int] = (
            select(*lane, func.count()).where(PENDING).group_by(*lane)
        )
        named = TASK.c.pool > literal_column("''")
        self.count_pools: Select[Any, int] = (
            select(TASK.c.pool, func.count()).where(PENDING, named).group_by(TASK.c.pool)
        )

    def _make_changing(self, dialect: Dialect) -> None:
        this_row = dialect.key == bindparam("row", type_=dialect.key.type)
        self.add: Insert = insert(TASK)
        self.change: Update = (
            update(TASK).where(this_row).values(**_values_of(LIFE + PLAN), lease_until=None)
        )
        self.note_progress: Update = (
            update(TASK).where(this_row).values(_values_of(["progress"]))
        )
        self.holders: Select[Any] = dialect.locked(
            select(*COLUMNS)
            .where(
                dialect.among(TASK.c.unique_key, "keys"),
                TASK.c.unique_key.is_not(None),
                TASK.c.ended_at.is_(None),
            )
            .order_by(TASK.c.id)
        )
        self.fail: Update = (
            update(TASK)
            .where(this_row)
            .values(
                state="failed",
                err=bindparam("err", type_=Text),
                done_at=bindparam("done_at", type_=Moment),
                ended_at=bindparam("done_at", type_=Moment),
                lease_until=None,
            )
        )

    def _make_ending(self, dialect: Dialect) -> None:
        end = update(TASK).values(
            **_values_of(END),
            interruptions=TASK.c.interruptions + bindparam("more", type_=BigInteger),
            lease_until=None,
        )
        self.end: Update = end.where(dialect.among(dialect.key, "rows"))
        self.end_runs: Executable = end.where(
            dialect.among(TASK.c.id, "ids"),
            TASK.c.attempt == bindparam("run_attempt", type_=BigInteger),
            _MINE,
            # Said by the state, the planner may take the index of what is running.
            TASK.c.lease_until.is_not(None),
        ).returning(TASK.c.id, TASK.c.created_at, TASK.c.progress, dialect.stamp)

    def _make_claiming(self, dialect: Dialect) -> None:
        claim = update(TASK).values(
            state="dispatched",
            attempt=TASK.c.attempt + 1,
            at_most_once=case((dialect.among(TASK.c.work_id, "once"), 1), else_=0),
            dispatched_at=AT,
            dispatched_by=bindparam("name", type_=Text),
            lease_until=dialect.lease_end,
        )
        past_locked = dialect.heads_past_locked()
        self.claim: FirstPending = FirstPending(
            dialect.claiming(dialect.heads_of_one(locked=True), claim),
            dialect.claiming(dialect.heads(locked=True), claim),
            None if past_locked is None else dialect.claiming(past_locked, claim),
        )
        self.claim_rows: Update = claim.where(dialect.among(dialect.key, "rows"))

    def _make_leases(self, dialect: Dialect) -> None:
        self.take: Update = (
            update(TASK)
            .where(TASK.c.id == bindparam("task", type_=Text))
            .values(dispatched_by=bindparam("name"), lease_until=dialect.lease_end)
        )
        ours = RUNNING, _MINE, dialect.among(TASK.c.id, "ids")
        renewed = update(TASK).values(lease_until=dialect.lease_end)
        if dialect.locks_rows:
            # What is locked is being ended, most likely by ourselves: who waited for it,
            # while others wait for what he has renewed, might wait in a circle.
            free = dialect.locked(select(dialect.key).where(*ours), skip=True)
            renewed = renewed.where(dialect.is_one_of(free))
        else:
            renewed = renewed.where(*ours)
        run = TASK.c.id, TASK.c.attempt, TASK.c.created_at
        self.renew: Executable = renewed.returning(*run)
        self.ours: Executable = select(*run).where(*ours)
        # In no order, or SQLite would take the whole table in that order.
        orphans = select(*COLUMNS).where(RUNNING)
        expired = TASK.c.lease_until < dialect.now
        self.expired: Select[Any] = dialect.locked(orphans.where(expired), skip=True)
        self.left: Select[Any] = dialect.locked(orphans.where(_MINE | expired), skip=True)

    def _make_schedules(self, dialect: Dialect) -> None:
        id_ = SCHEDULE.c.id
        this = id_ == bindparam("schedule", type_=Text)
        columns = {each.name: bindparam(each.name, type_=each.type) for each in SCHEDULE.c}
        self.get_schedule: Select[Any] = select(SCHEDULE).where(
            id_ == bindparam("id", type_=Text)
        )
        self.find_schedules: Select[Any] = (
            select(SCHEDULE)
            .where(id_ > bindparam("after", type_=Text))
            .order_by(id_)
            .limit(LIMIT)
        )
        # In the same order everywhere: see `_order`.
        self.schedules: Select[Any] = dialect.locked(
            select(SCHEDULE).where(dialect.among(id_, "ids")).order_by(id_)
        )
        self.pending_of: Select[Any] = select(SCHEDULE.c.pending_id).where(
            dialect.among(id_, "ids"), SCHEDULE.c.pending_id.is_not(None)
        )
        # To return something makes it one statement, however many they are.
        self.add_schedule: Executable = insert(SCHEDULE).returning(id_)
        self.step: Update = (
            update(SCHEDULE).where(this).values({each: columns[each] for each in PROGRESS})
        )
        self.define: Update = self.step.values({each: columns[each] for each in DEFINITION})
        self.remove_schedule: Delete = delete(SCHEDULE).where(this)
        self.running_of: Select[Any] = select(*COLUMNS).where(
            RUNNING, TASK.c.ended_at.is_(None), dialect.among(TASK.c.schedule_id, "ids")
        )
        self.look: Select[Any] = select(*COLUMNS).where(dialect.among(TASK.c.id, "ids"))
        self._make_locks(dialect)

    def _make_locks(self, dialect: Dialect) -> None:
        """What locks tasks before schedules are locked: see `_order`."""
        id_, run = SCHEDULE.c.id, TASK.alias("run")
        replaces = select(id_).where(
            dialect.among(id_, "schedules"), SCHEDULE.c.overlap == "replace"
        )
        replaced = select(run.c.id).where(
            run.c.state == literal_column("'dispatched'"),
            run.c.ended_at.is_(None),
            run.c.schedule_id.in_(replaces),
        )
        named = select(dialect.rows_of("ids", Text()).c.value)
        these = dialect.is_one_of(union_all(named, replaced))
        self.lock_tasks: Select[Any] = dialect.locked(
            select(TASK.c.id).where(these).order_by(TASK.c.id)
        )


@cache
def statements(kind: type[Dialect]) -> Statements:
    """What is said to databases of a kind: to make it takes longer than to open one."""
    return Statements(kind())
