"""How PostgreSQL is spoken to: many processes, on many machines."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from typing import cast as cast_

import attrs
from sqlalchemy import (
    ARRAY,
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    FromClause,
    Interval,
    Select,
    Text,
    Update,
    and_,
    any_,
    bindparam,
    case,
    cast,
    column,
    exists,
    func,
    literal,
    not_,
    or_,
    select,
    text,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.exc import DataError
from sqlalchemy.types import TypeEngine

from trio_gokugen._json import JSON

from ._dialects import AT, LIMIT, PENDING, Dialect, Lane, dispatch_order
from ._failures import FAILURES, as_failure
from ._rows import COLUMNS
from ._schema import TASK, Damaged, Moment

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")

CHANNEL = "gokugen_task"
"""Where it is told that something is to be done earlier than before."""

ISOLATION = "READ COMMITTED"
PREPARED = "gokugen_prepared"
"""The option of an engine whose connections all have this isolation from the start."""

SOON = timedelta(seconds=10)
"""Whatever is due so soon is told: `poll` would find it too late."""

LEASE: BindParameter[timedelta] = bindparam("lease", type_=Interval)

_SCHEMA_LOCK = 0x676F6B7567656E  # "gokugen"


_XACT_ID = cast(func.pg_current_xact_id_if_assigned(), Text)
_TRANSACTION: Select[str] = select(_XACT_ID)
_PG_NOTIFY = func.pg_notify(CHANNEL, bindparam("news", type_=Text))
_STATUS = text("SELECT pg_xact_status(CAST(CAST(:seal AS text) AS xid8))")


def _transaction_and_news() -> Select[str, Any]:
    lists = func.unnest(
        bindparam("pools", type_=ARRAY(Text)),
        bindparam("works", type_=ARRAY(Text)),
        bindparam("moments", type_=ARRAY(TIMESTAMP(timezone=True))),
    )
    appeared = lists.table_valued("pool", "work_id", "scheduled_at", name="appeared")
    appeared = appeared.render_derived()
    earlier = exists().where(
        PENDING,
        TASK.c.pool == appeared.c.pool,
        TASK.c.work_id == appeared.c.work_id,
        TASK.c.scheduled_at < type_coerce(appeared.c.scheduled_at, Moment),
    )
    first = exists(select(1).select_from(appeared).where(~earlier))
    # An earlier one that is due may be claimed already, by somebody who does not see ours.
    soon = bindparam("first", type_=Moment) < func.statement_timestamp() + SOON
    return select(_XACT_ID, case((or_(soon, first), cast(_PG_NOTIFY, Text))))


_TRANSACTION_AND_NEWS = _transaction_and_news()


@attrs.frozen
class News:
    """What is told with a commit.

    Of several works, and of tasks that name a pool, only that there is something.
    """

    sender: str
    work_id: str | None = None
    first: datetime | None = None
    """When the first task of the work is due, of those that are told of."""

    @classmethod
    def of(cls, sender: str, appeared: Mapping[Lane, datetime]) -> News:
        """What is to be told, if these tasks have become pending."""
        if len(appeared) != 1:
            return cls(sender)
        [((pool, work_id), first)] = appeared.items()
        return cls(sender) if pool else cls(sender, work_id, first)

    def text(self) -> str:
        first = None if self.first is None else self.first.isoformat()
        return json.dumps([self.sender, self.work_id, first])

    @classmethod
    def read(cls, text: str) -> News:
        """What was told. What others have said on the channel may mean anything."""
        try:
            sender, work_id, told = json.loads(text)
            first = None if told is None else datetime.fromisoformat(told)
        except (ValueError, TypeError, RecursionError):
            return cls("")
        if not isinstance(work_id, str) or first is None or first.tzinfo is None:
            return cls(str(sender))
        return cls(str(sender), work_id, first)


_PAIRS = r"\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F].."
"""In JSON, a backslash that is text, and a character that takes two escapes."""

_NO_TEXT = r"\\u(0000|[dD][89a-fA-F])"
"""But for these, an escape of what no text has."""


def _if_text(values: ColumnElement[Any], found: ColumnElement[T]) -> ColumnElement[T]:
    """What is found in JSON, or null if there is an escape in that which is no text.

    The database keeps such JSON, but refuses to look into it: whatever is asked of all
    rows would fail by one that somebody else has written.
    """
    text = cast(values, Text)
    has_no_escapes = func.strpos(text, r"\u") == 0  # mostly, and seen sooner
    rest = func.regexp_replace(text, _PAIRS, " ", "g")
    return case((or_(has_no_escapes, not_(rest.regexp_match(_NO_TEXT))), found))


def _careful(loader: type[Any]) -> type[Any]:
    """A psycopg loader that does as the other does, if that can."""
    from psycopg import DataError  # noqa: PLC0415 (with SQLite it need not be there)
    from psycopg.adapt import Loader  # noqa: PLC0415

    class Careful(Loader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._load = loader(oid, context).load

        def load(self, data: Any) -> Any:
            try:
                return self._load(data)
            except (DataError, ValueError, RecursionError):
                return Damaged()

    return Careful


class PostgreSQL(Dialect):
    """Many processes, on many machines."""

    locks_rows = True
    key: ClassVar[ColumnElement[Any]] = TASK.c.id

    def prepared(self, engine: Engine) -> Engine:
        if engine.get_execution_options().get(PREPARED):
            return engine
        # Whatever the user's own engine does: with less, locks hold nothing; with more,
        # who waits for a row is told that he comes too late.
        return engine.execution_options(isolation_level=ISOLATION)

    def begin(self, connection: Connection) -> None:
        connection.begin()

    def commit(self, connection: Connection) -> None:
        connection.commit()

    def roll_back(self, connection: Connection) -> None:
        with suppress(*FAILURES):
            connection.rollback()

    def seal(
        self, connection: Connection, appeared: Mapping[Lane, datetime], sender: str
    ) -> str | None:
        if not appeared:
            return connection.scalar(_TRANSACTION)
        moments = list(appeared.values())
        told = {"news": News.of(sender, appeared).text(), "first": min(moments)}
        parameters = {**self.listed_lanes(appeared), "moments": moments, **told}
        return cast_("str | None", connection.scalar(_TRANSACTION_AND_NEWS, parameters))

    def has_committed(self, connection: Connection, seal: str) -> bool | None:
        status = connection.scalar(_STATUS, {"seal": seal})
        return None if status == "in progress" else status == "committed"

    def was_unreadable(self, error: Exception) -> bool:
        return isinstance(error, DataError | ValueError | RecursionError)

    @contextmanager
    def read_with_care(self, connection: Connection) -> Generator[None]:
        from psycopg.pq import Format  # noqa: PLC0415 (with SQLite it need not be there)

        driver = connection.connection.driver_connection
        assert driver is not None
        oid = driver.adapters.types["timestamptz"].oid
        before = driver.adapters.get_loader(oid, Format.TEXT)
        driver.adapters.register_loader(oid, _careful(before))
        try:
            yield
        finally:
            driver.adapters.register_loader(oid, before)

    @contextmanager
    def part_of(self, connection: Connection) -> Generator[None]:
        from psycopg import Error  # noqa: PLC0415 (with SQLite it need not be there)

        driver = cast_("psycopg.Connection[Any]", connection.connection.driver_connection)
        part: AbstractContextManager[object] = (
            driver.transaction()  # which is committed at its end
            if driver.autocommit
            else connection.begin_nested()
        )
        try:
            with part:
                yield
        except Error as error:  # as it is, if it is not by way of SQLAlchemy
            raise as_failure("a transaction", error) from error

    def notify(self, connection: Connection, appeared: Mapping[Lane, datetime]) -> bool:
        connection.execute(select(_PG_NOTIFY), {"news": News.of("", appeared).text()})
        return True

    def lock_schema(self, connection: Connection) -> None:
        connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))

    def among(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        return column == any_(bindparam(name, type_=ARRAY(column.type)))

    def is_one_of(self, keys: Select[Any] | CompoundSelect[Any]) -> ColumnElement[bool]:
        # As an array, the keys are found once, and their rows by the primary key, whatever
        # the planner knows of the table. With IN it may go through the table, and look for
        # the keys again at each row: of a limited deletion that would leave nothing.
        return self.key == any_(func.array(keys.scalar_subquery()))

    def listed(self, values: Collection[Any]) -> Any:
        return list(values)

    def rows_of(self, name: str, type_: TypeEngine[Any]) -> FromClause:
        values = func.unnest(bindparam(name, type_=ARRAY(type_)))
        return values.table_valued(column("value", type_), name=name).render_derived()

    def listed_lanes(self, lanes: Collection[Lane]) -> dict[str, Any]:
        return {"pools": [pool for pool, _ in lanes], "works": [work for _, work in lanes]}

    def lanes(self) -> FromClause:
        lists = (bindparam(name, type_=ARRAY(Text)) for name in ("pools", "works"))
        columns = column("pool", Text), column("work_id", Text)
        return func.unnest(*lists).table_valued(*columns, name="lanes").render_derived()

    def of_each(self, values: FromClause, first: Select[Any]) -> Select[Any]:
        of_one = first.lateral("of_one")
        return select(of_one).select_from(values).join(of_one, true())

    def heads(
        self, *, locked: bool, besides: Sequence[ColumnElement[bool]] = ()
    ) -> Select[Any]:
        if not locked:
            return super().heads(locked=False, besides=besides)
        lanes = self.lanes()
        due = self.due(lanes, locked=False, besides=besides)
        heads = self.of_each(lanes, due).subquery("heads")
        first = (
            select(heads.c.pool, heads.c.work_id)
            .order_by(*dispatch_order(heads))
            .limit(LIMIT)
            .subquery("first")
        )
        # How many of each lane are to be had; which ones, is seen when they are locked.
        shares = (
            select(first.c.pool, first.c.work_id, func.count().label("count"))
            .group_by(first.c.pool, first.c.work_id)
            .subquery("shares")
        )
        due = self.due(shares, locked=True, besides=besides)
        due = due.limit(shares.c.count)
        mine = due.lateral("mine")
        found = select(mine).select_from(shares).join(mine, true())
        return found.order_by(*dispatch_order(mine))

    def heads_past_locked(self, besides: Sequence[ColumnElement[bool]] = ()) -> Select[Any]:
        return super().heads(locked=True, besides=besides)

    @property
    def stamp(self) -> ColumnElement[Any]:
        return _XACT_ID

    def claiming(self, heads: Select[Any], claim: Update) -> Select[Any]:
        found = heads.cte("found")
        in_time = or_(found.c.deadline.is_(None), found.c.deadline > AT)
        # Of rows that are locked none escapes, so it need not tell which it has claimed:
        # nobody changes an id, and no trigger of somebody's own has a say.
        rows = select(found.c.id).where(in_time)
        taken = claim.where(self.is_one_of(rows)).cte("taken")
        columns = (found.c[each.name] for each in COLUMNS)
        return (
            select(*columns, case((in_time, self.stamp)))
            .add_cte(taken)
            .order_by(found.c.scheduled_at, found.c.priority.desc(), found.c.sequence)
        )

    def locked(self, statement: Select[Any], *, skip: bool = False) -> Select[Any]:
        return statement.with_for_update(skip_locked=skip)

    @property
    def lease_end(self) -> ColumnElement[datetime]:
        return func.clock_timestamp() + LEASE

    def leased(self, at: datetime, lease: timedelta) -> dict[str, Any]:
        return {"lease": lease}

    @property
    def now(self) -> ColumnElement[datetime]:
        # Of what may change within the statement, no index would be asked.
        return func.statement_timestamp()

    def value_of(self, values: ColumnElement[Any], name: str) -> ColumnElement[str]:
        text = cast(literal(name, Text), Text)  # or it might be the number of an item
        return _if_text(values, cast(values.op("->")(text), Text))

    def has_meta(
        self, connection: Connection, wanted: Mapping[str, JSON]
    ) -> ColumnElement[bool]:
        meta = _if_text(TASK.c.meta, cast(TASK.c.meta, JSONB))
        entries = [
            meta.op("->")(key) == cast(literal(json.dumps(value), Text), JSONB)
            for key, value in wanted.items()
        ]
        return and_(true(), *entries)
