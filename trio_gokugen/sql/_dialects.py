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

from abc import ABC, abstractmethod
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeAlias

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    FromClause,
    Select,
    Text,
    Update,
    bindparam,
    literal_column,
    not_,
    or_,
    select,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import TypeEngine

from trio_gokugen._json import JSON
from trio_gokugen._task import Task

from ._failures import given_back
from ._rows import COLUMNS
from ._schema import TASK, Moment

# A partial index is used for what a statement says, not for what it is told.
PENDING = TASK.c.state == literal_column("'scheduled'")
RUNNING = TASK.c.state == literal_column("'dispatched'")
AT: BindParameter[datetime] = bindparam("at", type_=Moment)
LIMIT: BindParameter[int] = bindparam("limit", type_=BigInteger)


Lane: TypeAlias = tuple[str, str]
"""A pool and a work; the pool is empty for tasks that name none."""


def lane_of(task: Task) -> Lane:
    """The pool and the work of a task."""
    return task.pool or "", task.work_id


def dispatch_order(rows: FromClause = TASK) -> tuple[ColumnElement[Any], ...]:
    """The order of dispatch."""
    return rows.c.scheduled_at, rows.c.priority.desc(), rows.c.sequence


class Dialect(ABC):
    """How one kind of database is spoken to."""

    locks_rows: ClassVar[bool]
    """Whether who writes locks rows, and not all of the database."""

    key: ClassVar[ColumnElement[Any]]
    """The primary key, which rows are found by once they are known."""

    @abstractmethod
    def prepared(self, engine: Engine) -> Engine:
        """The engine, with its transactions left to `begin` and `commit`."""

    def for_reading(self, engine: Engine) -> Engine:
        """The engine, without transactions: for single statements that read."""
        return engine.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def transaction(self, engine: Engine) -> Generator[Connection]:
        """A transaction that is going to write: committed at the end, unless it raised."""
        with given_back(engine.connect()) as connection:
            try:
                self.begin(connection)
                yield connection
                self.commit(connection)
            except BaseException:
                self.roll_back(connection)
                raise

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
    def seal(
        self, connection: Connection, appeared: Mapping[Lane, datetime], sender: str
    ) -> str | None:
        """The last word before a commit.

        Args:
          connection: In the transaction.
          appeared: By pool and work, the first moment for which tasks have become
            pending. If that is soon, or the first of all for these, others are told with
            the commit.
          sender: Who it is that tells them.

        Returns:
          What to ask `has_committed` for, if nobody knows whether the commit succeeded.
        """

    @abstractmethod
    def has_committed(self, connection: Connection, seal: str) -> bool | None:
        """Whether a transaction was committed; none as long as it is under way."""

    @abstractmethod
    def was_unreadable(self, error: Exception) -> bool:
        """Whether the driver could not read what the database has sent."""

    @abstractmethod
    def read_with_care(self, connection: Connection) -> AbstractContextManager[object]:
        """Within, values that cannot be read are `Damaged`, and spoil no others."""

    def is_in_the_way(self, error: DBAPIError) -> bool:
        """Whether two transactions were in each other's way, and this one was undone."""
        return getattr(error.orig, "sqlstate", None) in {"40P01", "40001"}

    @abstractmethod
    def part_of(self, connection: Connection) -> AbstractContextManager[object]:
        """A part of a transaction that may fail, and leave the rest as it was."""

    @abstractmethod
    def notify(self, connection: Connection, appeared: Mapping[Lane, datetime]) -> bool:
        """Have all others look again once the transaction is committed, if possible.

        Args:
          connection: In the transaction.
          appeared: As for `seal`.

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
    def is_one_of(self, keys: Select[Any] | CompoundSelect[Any]) -> ColumnElement[bool]:
        """Whether a row is one of those that have these keys, which are found before."""

    @abstractmethod
    def listed(self, values: Collection[Any]) -> Any:
        """A list as a parameter."""

    @abstractmethod
    def rows_of(self, name: str, type_: TypeEngine[Any]) -> FromClause:
        """A list, given by `listed`, as a table with one column, ``value``."""

    @abstractmethod
    def listed_lanes(self, lanes: Collection[Lane]) -> dict[str, Any]:
        """A list of lanes as parameters."""

    @abstractmethod
    def lanes(self) -> FromClause:
        """That list as a table, with the columns ``pool`` and ``work_id``."""

    @abstractmethod
    def of_each(self, values: FromClause, first: Select[Any]) -> Select[Any]:
        """The first rows for each row of another table, without order.

        Args:
          values: That table.
          first: Selects `COLUMNS` of `TASK` for one row of it, whose columns it names; in
            an order, and limited.
        """

    def heads(
        self, *, locked: bool, besides: Sequence[ColumnElement[bool]] = ()
    ) -> Select[Any]:
        """The first pending tasks of the listed lanes, at most ``limit``.

        Those until ``at``; `locked`, nobody else can take them meanwhile.

        Args:
          locked: See above.
          besides: What else is asked of them.
        """
        lanes = self.lanes()
        due = self.due(lanes, locked=locked, besides=besides)
        heads = self.of_each(lanes, due).subquery("heads")
        return select(heads).order_by(*dispatch_order(heads)).limit(LIMIT)

    def heads_past_locked(
        self, besides: Sequence[ColumnElement[bool]] = ()
    ) -> Select[Any] | None:
        """The same, locked, though others hold as many of the first as are asked for.

        More are locked than are taken, so it is said only if `heads` finds none. None
        where nobody holds single rows.
        """
        del besides
        return None

    def heads_of_one(
        self, *, locked: bool, besides: Sequence[ColumnElement[bool]] = ()
    ) -> Select[Any]:
        """The same of one lane: of the pool ``named``, and ``work``."""
        return self.due(None, locked=locked, besides=besides)

    def due(
        self,
        lane: FromClause | None,
        *,
        locked: bool,
        besides: Sequence[ColumnElement[bool]] = (),
    ) -> Select[Any]:
        """The first pending tasks of a lane until ``at``, at most ``limit``.

        But for those of the schedules that are listed as ``unknown``.

        Args:
          lane: What has its ``pool`` and ``work_id``; without it, these are parameters.
          locked: Whether nobody else can take them meanwhile.
          besides: What else is asked of them.
        """
        pool: ColumnElement[str] = bindparam("named", type_=Text)
        work_id: ColumnElement[str] = bindparam("work", type_=Text)
        if lane is not None:
            pool, work_id = lane.c.pool, lane.c.work_id
        of_schedule = TASK.c.schedule_id
        due = (
            select(*COLUMNS)
            .where(PENDING, TASK.c.pool == pool, TASK.c.work_id == work_id)
            .where(TASK.c.scheduled_at <= AT)
            .where(or_(of_schedule.is_(None), not_(self.among(of_schedule, "unknown"))))
            .where(*besides)
            .order_by(*dispatch_order())
            .limit(LIMIT)
        )
        return self.locked(due, skip=True) if locked else due

    @property
    @abstractmethod
    def stamp(self) -> ColumnElement[Any]:
        """What `seal` would return, to be returned by a change."""

    @abstractmethod
    def claiming(self, heads: Select[Any], claim: Update) -> Select[Any]:
        """Find rows and claim them, if that is a way to go to the database only once.

        Args:
          heads: Finds, and locks, the rows.
          claim: Claims all rows.

        Returns:
          A statement for the rows as they were found. The last column is the `stamp`
          if the row has been claimed; if it is null, that is still to do, unless it is too
          late for its deadline.
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
    def value_of(self, values: ColumnElement[Any], name: str) -> ColumnElement[str]:
        """A value in a JSON object, as the text it is kept as; null if it is not there.

        Also null for an object that cannot be read.
        """

    @abstractmethod
    def has_meta(
        self, connection: Connection, wanted: Mapping[str, JSON]
    ) -> ColumnElement[bool]:
        """Whether a task's `meta` has these entries."""
