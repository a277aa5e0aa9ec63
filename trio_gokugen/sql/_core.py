"""Tasks in a database: everything but the timer.

Every call is one hop into a thread, and every batch of changes is one transaction in it.
A thread is never abandoned: a call that was cancelled while its transaction was under
way returns what became of it. While a thread is at work, Trio's mock clock does not jump.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import outcome
import trio
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import StaticPool

from .._autojump import autojump_held
from .._errors import TaskNotFoundError
from .._repository import BulkRepository
from .._task import Task, TaskQuery
from ..abc import ANY_TASK, Operation, RecoverAction, Renewed, TaskFilter
from ._dialects import Dialect, dialect_of
from ._failures import failures
from ._rows import task_of
from ._search import search
from ._statements import Statements
from ._transaction import LookFirstError, Transaction

T = TypeVar("T")

LAST = datetime.max.replace(tzinfo=UTC)
READERS = 4
"""So many threads read at a time, beside the one that writes."""

MOST_REFUSALS = 100
"""So often a batch is begun anew because somebody else has taken an id of it."""


class SQLCore(BulkRepository):
    """A `RepositoryLike` in a database whose tables are there: see `migrate`.

    Has no timer: join it with one by a `TimedRepository`, as `SQLRepository` is.
    """

    def __init__(self, engine: Engine, *, name: str, lease: float = 30.0) -> None:
        """Work on an engine's database.

        Args:
          engine: Of SQLite or of PostgreSQL.
          name: Who runs what is claimed. No other scheduler on the database may have it.
          lease: Seconds for which a run keeps its task, unless it is renewed.
        """
        self.dialect: Dialect = dialect_of(engine)
        self.engine: Engine = self.dialect.prepared(engine)
        self.name = name
        self._lease = lease
        self._statements = Statements(self.dialect)
        self._writer = trio.CapacityLimiter(1)
        # A database in memory has one connection, which cannot be used by two threads.
        alone = isinstance(engine.pool, StaticPool)
        self._readers = self._writer if alone else trio.CapacityLimiter(READERS)

    @property
    def lease(self) -> float:
        return self._lease

    # -- reading ----------------------------------------------------------------------

    async def get(self, task_id: str) -> Task:
        def get(connection: Connection) -> Task | None:
            row = connection.execute(self._statements.get, {"id": task_id}).one_or_none()
            return None if row is None else task_of(row)

        task = await self._read("reading a task", get)
        if task is None:
            raise TaskNotFoundError(task_id)
        return task

    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        def get_next(connection: Connection) -> Task | None:
            works = self.transaction(connection).works(only)
            if not works:
                return None
            parameters = {"works": self.dialect.listed(works), "at": LAST, "limit": 1}
            row = connection.execute(self._statements.heads, parameters).one_or_none()
            return None if row is None else task_of(row)

        return await self._read("reading the next task", get_next)

    async def find(
        self, query: TaskQuery, limit: int | None = None, after: Task | None = None
    ) -> list[Task]:
        def find(connection: Connection) -> list[Task]:
            found = search(self.dialect, connection, query, limit, after)
            return [task_of(row) for row in connection.execute(*found)]

        return await self._read("searching tasks", find)

    async def count_pending(self) -> Mapping[str, int]:
        def count(connection: Connection) -> dict[str, int]:
            rows = connection.execute(self._statements.count_pending)
            return {work_id: count for work_id, count in rows}

        return await self._read("counting tasks", count)

    # -- changing ---------------------------------------------------------------------

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        return await self._write("writing changes", lambda t: t.apply(operations))

    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        return await self._write(
            "recovering tasks", lambda t: t.recover(action, at, only)
        )

    async def renew(
        self, runs: Sequence[Task], action: RecoverAction, at: datetime
    ) -> Renewed:
        return await self._write(
            "renewing leases", lambda t: t.renew(runs, action, at)
        )

    async def delete_surplus(self, keep: int, limit: int) -> list[str]:
        """Delete ended tasks, oldest end first, that are more than so many."""
        return await self._write(
            "deleting ended tasks", lambda t: t.delete_surplus(keep, limit)
        )

    async def wait_for_writers(self) -> None:
        """Return once all that write to a SQLite file now have ended."""
        await self._write("waiting for a commit", lambda _: None)

    # -- threads ----------------------------------------------------------------------

    def transaction(self, connection: Connection, *, careful: bool = False) -> Transaction:
        """What is done in a transaction that is under way."""
        lease = timedelta(seconds=self._lease)
        return Transaction(
            connection, self.dialect, self._statements, self.name, lease, careful=careful
        )

    async def _read(self, what: str, read: Callable[[Connection], T]) -> T:
        def in_thread() -> T:
            with failures(what), self.engine.connect() as connection:
                return read(connection)

        return await self._in_thread(in_thread, self._readers)

    async def _write(self, what: str, change: Callable[[Transaction], T]) -> T:
        def in_thread() -> T:
            with failures(what):
                for refusals in range(MOST_REFUSALS):
                    try:
                        return self._transact(change, careful=refusals > 0)
                    except (IntegrityError, LookFirstError):
                        continue
                return self._transact(change, careful=True)

        return await self._in_thread(in_thread, self._writer)

    def _transact(self, change: Callable[[Transaction], T], *, careful: bool) -> T:
        with self.dialect.transaction(self.engine) as connection:
            return change(self.transaction(connection, careful=careful))

    async def _in_thread(self, function: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
        with autojump_held():
            return await trio.to_thread.run_sync(
                # True would let a transaction commit whose caller has been cancelled.
                function, abandon_on_cancel=False, limiter=limiter
            )
