"""Connections of SQLite and PostgreSQL on which one statement fails, once.

What is counted is what goes to the database: every statement, every commit, and every
rollback of a transaction that is under way.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import attrs
import psycopg
from sqlalchemy import Dialect, Engine, event

COMMIT = "COMMIT"
ROLLBACK = "ROLLBACK"


@attrs.define(eq=False)
class Fault:
    """Strikes at one statement."""

    number: int
    """Which one, of all that are sent on whatever connection; the first is 1."""

    strike: Callable[[Any, str, Callable[[], Any]], Any]
    """Called with the connection, the statement, and what would carry it out."""

    counts: Callable[[str], bool] = lambda _: True
    """Which statements are counted."""

    counted: int = 0
    struck_at: str | None = None
    """The statement that failed."""

    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    def meet(self, connection: Any, statement: str, do: Callable[[], Any]) -> Any:
        """Carry out a statement, unless it is its turn to fail."""
        if not self.counts(statement):
            return do()
        with self._lock:
            self.counted += 1
            its_turn = self.counted == self.number
        if not its_turn:
            return do()
        self.struck_at = statement
        return self.strike(connection, statement, do)


@contextmanager
def faulty(fault: Fault) -> Generator[None]:
    """Within, every connection that SQLAlchemy makes has the fault."""

    def connect(dialect: Dialect, _: object, args: list[Any], given: dict[str, Any]) -> Any:
        if dialect.name == "sqlite":
            given["factory"] = lambda *args, **given: SQLiteConnection(
                fault, *args, **given
            )
            return None
        connection = PostgreSQLConnection.connect(*args, **given)
        connection.cursor_factory = PostgreSQLCursor
        connection.fault = fault
        return connection

    event.listen(Engine, "do_connect", connect)
    try:
        yield
    finally:
        event.remove(Engine, "do_connect", connect)


# -- SQLite -----------------------------------------------------------------------------


class SQLiteCursor(sqlite3.Cursor):
    """Of a connection with a fault."""

    def execute(self, sql: str, parameters: Any = (), /) -> SQLiteCursor:
        do = super().execute
        self._owner.meet(sql, lambda: do(sql, parameters))
        return self

    def executemany(self, sql: str, parameters: Any, /) -> SQLiteCursor:
        do = super().executemany
        self._owner.meet(sql, lambda: do(sql, parameters))
        return self

    @property
    def _owner(self) -> SQLiteConnection:
        assert isinstance(self.connection, SQLiteConnection)
        return self.connection


class SQLiteConnection(sqlite3.Connection):
    """Has a fault."""

    def __init__(self, fault: Fault, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self._fault = fault

    def meet(self, statement: str, do: Callable[[], Any]) -> Any:
        return self._fault.meet(self, statement, do)

    def cursor(self, factory: Any = SQLiteCursor) -> Any:
        return super().cursor(factory)

    def commit(self) -> None:
        self.meet(COMMIT, super().commit)

    def rollback(self) -> None:
        if self.in_transaction:
            self.meet(ROLLBACK, super().rollback)
        else:
            super().rollback()


def locked(connection: sqlite3.Connection, statement: str, do: Callable[[], Any]) -> None:
    """Somebody else has locked the file; what was done before is still to be undone."""
    raise _sqlite_error("database is locked", sqlite3.SQLITE_BUSY)


def full(connection: sqlite3.Connection, statement: str, do: Callable[[], Any]) -> None:
    """There is no room left: SQLite has undone the whole transaction by itself."""
    if connection.in_transaction:
        sqlite3.Connection.rollback(connection)
    raise _sqlite_error("database or disk is full", sqlite3.SQLITE_FULL)


def closed(connection: sqlite3.Connection, statement: str, do: Callable[[], Any]) -> Any:
    """The connection is gone."""
    connection.close()
    return do()


def _sqlite_error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


# -- PostgreSQL -------------------------------------------------------------------------


class PostgreSQLCursor(psycopg.Cursor[Any]):
    """Of a connection with a fault."""

    def execute(self, query: Any, params: Any = None, **given: Any) -> Any:
        do = super().execute
        self._met(query, lambda: do(query, params, **given))
        return self

    def executemany(self, query: Any, params_seq: Any, **given: Any) -> None:
        do = super().executemany
        self._met(query, lambda: do(query, params_seq, **given))

    def _met(self, query: Any, do: Callable[[], Any]) -> None:
        fault = getattr(self.connection, "fault", None)
        if fault is None:  # what SQLAlchemy says as it connects
            do()
        else:
            fault.meet(self.connection, str(query), do)


class PostgreSQLConnection(psycopg.Connection[Any]):
    """Has a fault."""

    fault: Fault | None = None

    def commit(self) -> None:
        self._end(COMMIT, super().commit)

    def rollback(self) -> None:
        self._end(ROLLBACK, super().rollback)

    def _end(self, statement: str, do: Callable[[], Any]) -> None:
        idle = self.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
        if self.fault is None or idle:
            do()
        else:
            self.fault.meet(self, statement, do)


@attrs.define
class Terminator:
    """Ends other sessions of a PostgreSQL server."""

    admin: psycopg.Connection[Any]
    wrote: bool = False
    """Whether the transaction that was ended had changed anything."""

    def before(
        self, connection: psycopg.Connection[Any], statement: str, do: Callable[[], Any]
    ) -> Any:
        """The statement does not reach the server."""
        self.terminate(connection)
        return do()

    def before_the_answer(
        self, connection: psycopg.Connection[Any], statement: str, do: Callable[[], Any]
    ) -> None:
        """The statement takes effect, and its answer is lost."""
        written = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"
        self.wrote = psycopg.Cursor(connection).execute(written).fetchone() == (True,)
        do()
        self.terminate(connection)
        connection.close()
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    def terminate(self, connection: psycopg.Connection[Any]) -> None:
        """End a session, and wait until it has ended."""
        pid = connection.info.backend_pid
        self.admin.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
