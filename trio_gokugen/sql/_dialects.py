"""Where SQLite and PostgreSQL differ.

*Writers.* SQLite has one at a time, so a transaction that is going to write takes the
lock when it begins: one that has read, and wants to write then, may be refused at once.
PostgreSQL locks rows; a claim steps over those that somebody else has locked.

*Time.* The processes that share a SQLite file are on one machine, so its clock judges
their leases, and the scheduler's clock is what they are told. Those that share a
PostgreSQL may be anywhere: there the database's own clock judges.

*Lists.* A list goes into a statement as one value, so that the statement is the same for
any length: as JSON on SQLite, as an array on PostgreSQL.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    Engine,
    Interval,
    Select,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    func,
    literal,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.pool import StaticPool

from .._json import JSON, same
from ._rows import COLUMNS
from ._schema import TASK, Moment

# A partial index is used for what a statement says, not for what it is told.
PENDING = TASK.c.state == literal_column("'scheduled'")
RUNNING = TASK.c.state == literal_column("'dispatched'")
ORDER = TASK.c.scheduled_at, TASK.c.priority.desc(), TASK.c.sequence
"""The order of dispatch."""

_SCHEMA_LOCK = 0x676F6B7567656E  # "gokugen"

CHANNEL = "gokugen_task"
"""Where PostgreSQL is told that something is to be done earlier than before."""

AT: BindParameter[datetime] = bindparam("at", type_=Moment)
LEASE: BindParameter[timedelta] = bindparam("lease", type_=Interval)
LIMIT: BindParameter[int] = bindparam("limit", type_=BigInteger)


class Dialect(ABC):
    """How one kind of database is spoken to."""

    shares: bool
    """Whether processes on several machines may share it."""

    @abstractmethod
    def prepared(self, engine: Engine) -> Engine:
        """The engine, with its transactions left to `begin` and `commit`."""

    @contextmanager
    def transaction(self, engine: Engine) -> Generator[Connection]:
        """A transaction that is going to write: committed at the end, unless it raised."""
        with engine.connect() as connection:
            self.begin(connection)
            try:
                yield connection
            except BaseException:
                self.roll_back(connection)
                raise
            self.commit(connection)

    @abstractmethod
    def begin(self, connection: Connection) -> None:
        """Begin a transaction that is going to write."""

    @abstractmethod
    def commit(self, connection: Connection) -> None:
        """Commit it."""

    @abstractmethod
    def roll_back(self, connection: Connection) -> None:
        """Undo it. Raises nothing: a connection that is gone has done so by itself."""

    @abstractmethod
    def part_of(self, connection: Connection) -> AbstractContextManager[object]:
        """A part of a transaction that may fail, and leave the rest as it was."""

    @abstractmethod
    def notify(self, connection: Connection, sender: str = "") -> bool:
        """Have all others look again once the transaction is committed, if possible.

        Returns:
          Whether the database tells them.
        """

    @abstractmethod
    def lock_schema(self, connection: Connection) -> None:
        """Let nobody else change the tables until the transaction ends."""

    @abstractmethod
    def among(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        """Whether a column has one of the values of a list, given by `listed`."""

    @abstractmethod
    def listed(self, values: Collection[Any]) -> Any:
        """A list as a parameter."""

    @abstractmethod
    def heads(self, *, locked: bool) -> Select[Any]:
        """The first pending tasks of the listed ``works``, at most ``limit``.

        Those until ``at``; `locked`, nobody else can take them meanwhile.
        """

    @abstractmethod
    def locked(self, statement: Select[Any], *, skip: bool = False) -> Select[Any]:
        """The rows of a statement, which nobody else can change meanwhile."""

    @property
    @abstractmethod
    def lease_end(self) -> ColumnElement[datetime]:
        """When a lease ends that begins now."""

    @abstractmethod
    def leased(self, at: datetime, lease: timedelta) -> dict[str, Any]:
        """The parameters of `lease_end`."""

    @property
    @abstractmethod
    def now(self) -> ColumnElement[datetime]:
        """What leases are judged by."""

    @abstractmethod
    def has_meta(
        self, connection: Connection, wanted: Mapping[str, JSON]
    ) -> ColumnElement[bool]:
        """Whether a task's `meta` has these entries."""


class SQLite(Dialect):
    """One file, one writer."""

    shares = False

    def prepared(self, engine: Engine) -> Engine:
        return engine.execution_options(isolation_level="AUTOCOMMIT")

    def begin(self, connection: Connection) -> None:
        connection.begin()  # for SQLAlchemy; the database is told below
        driver = connection.connection.driver_connection
        assert driver is not None
        if driver.in_transaction:
            if isinstance(connection.engine.pool, StaticPool):
                raise InvalidRequestError(
                    "somebody else has a transaction under way on this database in memory,"
                    " which has one connection only"
                )
            driver.rollback()  # begun by a listener of the user's own engine
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def commit(self, connection: Connection) -> None:
        connection.exec_driver_sql("COMMIT")

    def roll_back(self, connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.rollback()

    def part_of(self, connection: Connection) -> AbstractContextManager[object]:
        return nullcontext()  # a statement that fails undoes nothing but itself

    def notify(self, connection: Connection, sender: str = "") -> bool:
        return False

    def lock_schema(self, connection: Connection) -> None:
        pass  # whoever writes has locked the whole file

    def among(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        values = func.json_each(bindparam(name, type_=Text)).table_valued("value")
        return column.in_(select(values.c.value))

    def listed(self, values: Collection[Any]) -> Any:
        return json.dumps(list(values), ensure_ascii=False)

    def heads(self, *, locked: bool) -> Select[Any]:
        works = func.json_each(bindparam("works", type_=Text)).table_valued("value")
        head, each = TASK.alias("head"), TASK.alias("each")
        of_one_work = (
            select(each.c.sequence)
            .where(
                each.c.state == literal_column("'scheduled'"),
                each.c.work_id == works.c.value,
                each.c.scheduled_at <= AT,
            )
            .order_by(each.c.scheduled_at, each.c.priority.desc(), each.c.sequence)
            .limit(LIMIT)
            .correlate(works)
        )
        first = (
            select(head.c.sequence)
            .select_from(works.join(head, head.c.sequence.in_(of_one_work)))
            .order_by(head.c.scheduled_at, head.c.priority.desc(), head.c.sequence)
            .limit(LIMIT)
        )
        return select(*COLUMNS).where(TASK.c.sequence.in_(first)).order_by(*ORDER)

    def locked(self, statement: Select[Any], *, skip: bool = False) -> Select[Any]:
        return statement  # whoever writes has locked the whole file

    @property
    def lease_end(self) -> ColumnElement[datetime]:
        return bindparam("lease_until", type_=Moment)

    def leased(self, at: datetime, lease: timedelta) -> dict[str, Any]:
        return {"lease_until": at + lease}

    @property
    def now(self) -> ColumnElement[datetime]:
        return AT

    def has_meta(
        self, connection: Connection, wanted: Mapping[str, JSON]
    ) -> ColumnElement[bool]:
        def has(meta: str) -> bool:
            try:
                found: Any = json.loads(meta)
            except (TypeError, ValueError, RecursionError):
                return False
            return isinstance(found, dict) and all(
                key in found and same(value, found[key]) for key, value in wanted.items()
            )

        driver = connection.connection.driver_connection
        assert driver is not None
        driver.create_function("gokugen_has_meta", 1, has, deterministic=True)
        return func.gokugen_has_meta(cast(TASK.c.meta, Text)) == 1


class PostgreSQL(Dialect):
    """Many processes, on many machines."""

    shares = True

    def prepared(self, engine: Engine) -> Engine:
        return engine

    def begin(self, connection: Connection) -> None:
        connection.begin()

    def commit(self, connection: Connection) -> None:
        connection.commit()

    def roll_back(self, connection: Connection) -> None:
        connection.rollback()

    def part_of(self, connection: Connection) -> AbstractContextManager[object]:
        return connection.begin_nested()

    def notify(self, connection: Connection, sender: str = "") -> bool:
        connection.execute(select(func.pg_notify(CHANNEL, sender)))
        return True

    def lock_schema(self, connection: Connection) -> None:
        connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA_LOCK)))

    def among(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        return column == any_(bindparam(name, type_=ARRAY(column.type)))

    def listed(self, values: Collection[Any]) -> Any:
        return list(values)

    def heads(self, *, locked: bool) -> Select[Any]:
        work = func.unnest(bindparam("works", type_=ARRAY(Text))).column_valued("work")
        head = TASK.alias("head")
        of_one_work = (
            select(head.c.scheduled_at, head.c.priority, head.c.sequence)
            .where(
                head.c.state == literal_column("'scheduled'"),
                head.c.work_id == work,
                head.c.scheduled_at <= AT,
            )
            .order_by(head.c.scheduled_at, head.c.priority.desc(), head.c.sequence)
            .limit(LIMIT)
            .lateral("of_one_work")
        )
        first = (
            select(work.label("work_id"), of_one_work.c.sequence)
            .join(of_one_work, true())
            .order_by(
                of_one_work.c.scheduled_at,
                of_one_work.c.priority.desc(),
                of_one_work.c.sequence,
            )
            .limit(LIMIT)
            .cte("first")
        )
        if not locked:
            return (
                select(*COLUMNS)
                .where(TASK.c.sequence.in_(select(first.c.sequence)))
                .order_by(*ORDER)
            )
        # How many of each work are to be had; which ones, is seen when they are locked.
        shares = (
            select(first.c.work_id, func.count().label("count"))
            .group_by(first.c.work_id)
            .subquery("shares")
        )
        mine = (
            select(*COLUMNS)
            .where(PENDING, TASK.c.work_id == shares.c.work_id, TASK.c.scheduled_at <= AT)
            .order_by(*ORDER)
            .limit(shares.c.count)
            .with_for_update(skip_locked=True)
            .lateral("mine")
        )
        return (
            select(mine)
            .select_from(shares)
            .join(mine, true())
            .order_by(mine.c.scheduled_at, mine.c.priority.desc(), mine.c.sequence)
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
        return func.clock_timestamp()

    def has_meta(
        self, connection: Connection, wanted: Mapping[str, JSON]
    ) -> ColumnElement[bool]:
        entries = [
            cast(TASK.c.meta, JSONB).op("->")(key)
            == cast(literal(json.dumps(value), Text), JSONB)
            for key, value in wanted.items()
        ]
        return and_(true(), *entries)


def dialect_of(engine: Engine) -> Dialect:
    """How the database of an engine is spoken to.

    Raises:
      ValueError: if it is neither SQLite nor PostgreSQL by psycopg.
    """
    driver = f"{engine.dialect.name}+{engine.dialect.driver}"
    if driver == "sqlite+pysqlite":
        return SQLite()
    if driver == "postgresql+psycopg":
        return PostgreSQL()
    raise ValueError(
        f"engine: must be of sqlite+pysqlite or postgresql+psycopg, not of {driver}"
    )
