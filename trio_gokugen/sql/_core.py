"""Tasks in a database: everything but the timer.

Every call is one hop into a thread, and every batch of changes is one transaction in it.
A thread is never abandoned: a call that was cancelled while its transaction was under
way returns what became of it. While a thread is at work, Trio's mock clock does not jump.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

import attrs
import outcome
import trio
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from trio_gokugen._autojump import autojump_held
from trio_gokugen._errors import (
    RepositoryError,
    ScheduleNotFoundError,
    TaskNotFoundError,
)
from trio_gokugen._ids import IdMaker
from trio_gokugen._query import TaskQuery
from trio_gokugen._repository import BulkRepository
from trio_gokugen._schedule import FoundSchedules, Schedule
from trio_gokugen._task import Task
from trio_gokugen.abc import ANY_TASK, Operation, RecoverAction, Renewed, TaskFilter

from ._dialects import Dialect
from ._engines import dialect_of
from ._failures import as_failure, failures, given_back
from ._ongoing import InTheWayError, LookFirstError, Ongoing, Unknown
from ._rows import task_of
from ._schedule_rows import UNREADABLE, schedule_of
from ._search import search
from ._statements import statements
from ._transaction import Transaction

T = TypeVar("T")

READERS = 4
"""So many threads read at a time, beside the one that writes."""

FIND_OUT = 10.0
"""Seconds to find out what became of a commit in which the connection was lost."""

_MANY = 2**62

LONGEST_WAIT = 0.05
"""Seconds, before a transaction is begun anew that was in another's way."""

HURRIES = 5
"""So often a transaction is begun anew so that it is not in the way of others."""

MOST_REFUSALS = 10
"""So often a batch is begun anew because somebody else has taken an id of it."""


@attrs.frozen
class _LostSightError(Exception):
    """The connection was lost in a commit, which may have succeeded or not."""

    seal: str
    result: Any
    error: SQLAlchemyError


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
        self.engine = engine
        self.dialect: Dialect = dialect_of(engine)
        self._writing = self.dialect.prepared(engine)
        self._reading = self.dialect.for_reading(engine)
        self.name = name
        self._lease = lease
        self._statements = statements(type(self.dialect))
        self._closed = False
        self._unknown = Unknown()
        self._make_id = IdMaker()
        self._id_lock = threading.Lock()
        self._writer = trio.CapacityLimiter(1)
        # A database in memory has one connection, which cannot be used by two threads.
        alone = isinstance(engine.pool, StaticPool)
        self._readers = self._writer if alone else trio.CapacityLimiter(READERS)
        # Where a change may wait for a row, leases must not.
        shared = not alone and self.dialect.locks_rows
        self._renewer = trio.CapacityLimiter(1) if shared else self._writer

    @property
    def lease(self) -> float:
        return self._lease

    def close(self) -> None:
        """Have no more to do with the database: who asks from now on is refused."""
        self._closed = True

    def check_open(self) -> None:
        """Raise a `RepositoryError` once it is closed.

        Its name may be another's then, who would take our runs for those of a dead one.
        """
        if self._closed:
            raise RepositoryError(
                "the repository is closed: use it inside its block, async with"
                " open_sql_repository(...)"
            )

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
            return self.transaction(connection).first(only)

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
            pending: dict[str, int] = {}
            for _, work_id, number in rows:
                pending[work_id] = pending.get(work_id, 0) + number
            return pending

        return await self._read("counting tasks", count)

    async def count_pools(self) -> Mapping[str, int]:
        def count(connection: Connection) -> dict[str, int]:
            rows = connection.execute(self._statements.count_pools)
            # Others are damaged, and their tasks have failed to whoever reads them.
            return {pool: number for pool, number in rows if isinstance(pool, str)}

        return await self._read("counting the tasks of pools", count)

    async def get_schedule(self, schedule_id: str) -> Schedule:
        def get(connection: Connection) -> Schedule | None:
            found = connection.execute(self._statements.get_schedule, {"id": schedule_id})
            row = found.mappings().one_or_none()
            return None if row is None else schedule_of(row)

        schedule = await self._read("reading a schedule", get)
        if schedule is None:
            raise ScheduleNotFoundError(schedule_id)
        return schedule

    async def find_schedules(
        self, limit: int | None = None, after: str | None = None
    ) -> FoundSchedules:
        def find(connection: Connection) -> FoundSchedules:
            found, last = FoundSchedules(), after or ""
            missing = _MANY if limit is None else min(limit, _MANY)
            while missing > 0:
                which = {"after": last, "limit": missing}
                rows = connection.execute(self._statements.find_schedules, which).mappings()
                read = rows.all()
                for row in read:
                    last = row["id"]
                    try:
                        found.append(schedule_of(row))
                    except UNREADABLE as error:
                        found.unreadable[error.schedule_id] = error
                # In place of those that could not be read, others.
                more = len(read) == missing
                missing = limit - len(found) if more and limit is not None else 0
            return found

        return await self._read("reading schedules", find)

    # -- changing ---------------------------------------------------------------------

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        return await self._write("writing changes", lambda t: t.apply(operations))

    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        return await self._write("recovering tasks", lambda t: t.recover(action, at, only))

    async def renew(
        self, runs: Sequence[Task], action: RecoverAction, at: datetime
    ) -> Renewed:
        return await self._write(
            "renewing leases", lambda t: t.renew(runs, action, at), self._renewer
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

    def transaction(
        self, connection: Connection, *, careful: bool = False, patient: bool = True
    ) -> Transaction:
        """What is done in a transaction that is under way."""
        self.check_open()
        ongoing = Ongoing(
            connection,
            self.dialect,
            self._statements,
            self.name,
            timedelta(seconds=self._lease),
            self._new_id,
            self._unknown,
            patient=patient,
        )
        return Transaction(ongoing, careful=careful)

    def _new_id(self, moment: datetime) -> str:
        with self._id_lock:  # leases are renewed in a thread of their own
            return self._make_id(moment)

    async def _read(self, what: str, read: Callable[[Connection], T]) -> T:
        def in_thread() -> T:
            with failures(what):
                return self._using(self._reading, read)

        return await self._in_thread(in_thread, self._readers)

    async def _write(
        self,
        what: str,
        change: Callable[[Transaction], T],
        limiter: trio.CapacityLimiter | None = None,
    ) -> T:
        def in_thread() -> T:
            with failures(what):
                for count in range(MOST_REFUSALS):
                    try:
                        return self._transact_twice(change, patient=count >= HURRIES)
                    except InTheWayError:
                        pass
                    except DBAPIError as error:
                        if not self.dialect.is_in_the_way(error):
                            raise
                    # All of it is undone; who was in the way has got on meanwhile.
                    time.sleep(random.uniform(0, LONGEST_WAIT))
                return self._transact_twice(change, patient=True)

        try:
            return await self._in_thread(in_thread, limiter or self._writer)
        except _LostSightError as lost:
            committed = await self._has_committed(lost.seal)
            if committed:
                result: T = lost.result
                return result
            failure = as_failure(what, lost.error)
            if committed is None:
                failure = RepositoryError(f"{failure}; whether it took effect is not known")
            raise failure from lost.error

    def _transact_twice(self, change: Callable[[Transaction], T], *, patient: bool) -> T:
        try:
            return self._transact(change, patient=patient)
        except (IntegrityError, LookFirstError):
            return self._transact_carefully(change, patient=patient)

    def _transact_carefully(
        self, change: Callable[[Transaction], T], *, patient: bool
    ) -> T:
        for _ in range(MOST_REFUSALS):
            try:
                return self._transact(change, careful=True, patient=patient)
            except IntegrityError:
                continue  # since the look somebody has taken an id
        # What is taken now is something else.
        return self._transact(change, careful=True, patient=patient)

    def _transact(
        self,
        change: Callable[[Transaction], T],
        *,
        careful: bool = False,
        patient: bool,
    ) -> T:
        def transact(connection: Connection) -> T:
            try:
                self.dialect.begin(connection)
                transaction = self.transaction(connection, careful=careful, patient=patient)
                result = change(transaction)
                seal, appeared = transaction.ongoing.seal, transaction.ongoing.appeared
                if seal is None or appeared:
                    seal = self.dialect.seal(connection, appeared, self.name)
            except BaseException:
                self.dialect.roll_back(connection)
                raise
            self._commit(connection, seal, result)
            return result

        return self._using(self._writing, transact)

    def _using(self, engine: Engine, use: Callable[[Connection], T]) -> T:
        """Use a connection; and again, if there are values that its driver cannot read.

        They are few: it is only then that all are read with more care, which takes longer.
        """
        try:
            with given_back(engine.connect()) as connection:
                return use(connection)
        except (SQLAlchemyError, ValueError, RecursionError) as error:
            if not self.dialect.was_unreadable(error):
                raise
        with (
            given_back(engine.connect()) as connection,
            self.dialect.read_with_care(connection),
        ):
            return use(connection)

    def _commit(self, connection: Connection, seal: str | None, result: object) -> None:
        try:
            self.dialect.commit(connection)
        except SQLAlchemyError as error:
            self.dialect.roll_back(connection)
            if seal is None:
                raise
            raise _LostSightError(seal, result, error) from error

    async def _has_committed(self, seal: str) -> bool | None:
        """Whether a transaction was committed; none if the database does not say."""

        def ask(connection: Connection) -> bool | None:
            return self.dialect.has_committed(connection, seal)

        answer: bool | None = None
        until = trio.current_time() + FIND_OUT
        # A caller who has been cancelled must know, too.
        with trio.CancelScope(shield=True):
            while answer is None and trio.current_time() < until:
                with suppress(RepositoryError):
                    answer = await self._read("asking what became of a commit", ask)
                if answer is None:
                    await trio.sleep(FIND_OUT / 100)
        return answer

    async def _in_thread(
        self, function: Callable[[], T], limiter: trio.CapacityLimiter
    ) -> T:
        self.check_open()
        self._unknown.now = trio.current_time()
        with autojump_held():
            return await trio.to_thread.run_sync(
                # True would let a transaction commit whose caller has been cancelled.
                function,
                abandon_on_cancel=False,
                limiter=limiter,
            )
