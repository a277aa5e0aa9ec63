"""Changes made in the user's own transactions, and how the timer hears of them.

It must hear of them after the commit, of which SQLAlchemy tells just before. On PostgreSQL
a notification is sent with the commit itself. On SQLite there is one writer at a time: so
whoever is told of a commit to come, and then gets to write, knows it is through.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, cast
from weakref import WeakSet

import attrs
import trio
from sqlalchemy import Connection, event
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from trio_gokugen._errors import RepositoryError, TaskExistsError, shown
from trio_gokugen._task import Task
from trio_gokugen.abc import Added, AddTasks, CancelTask, IfExists, Operation

from ._core import SQLCore
from ._dialects import Lane, lane_of
from ._failures import failures

_ADDING = "adding a task"
KEY = "_key"
"""What both databases say if it is a key that is taken: of the index, or of its column."""


@attrs.frozen
class _NothingAddedError(Exception):
    """What was to be added was there. All is to be undone, so that its row is let go."""

    added: Added


class Theirs:
    """See above."""

    def __init__(self, core: SQLCore) -> None:
        self._core = core
        self._watched: WeakSet[Connection] = WeakSet()
        self._committed = trio.Event()
        self._reset: Callable[[], None] = lambda: None
        self.token = trio.lowlevel.current_trio_token()

    # -- in the user's thread -------------------------------------------------------------

    def add(
        self,
        where: Session | Connection,
        task: Task,
        if_exists: IfExists,
        reset: Callable[[], None],
    ) -> Task:
        """Write a new task, unless another has its key; return what there is then."""
        with failures(_ADDING):
            connection = self._connection(where)
            try:
                added = self._add(connection, AddTasks([task], if_exists))
            except IntegrityError as error:
                if KEY in str(error.orig):
                    raise RepositoryError(
                        f"the key {task.key!r} was taken by a transaction that yours does"
                        " not see: begin yours anew"
                    ) from error
                raise TaskExistsError(task.id) from None
            if added.new or added.changed:
                self._tell(connection, {lane_of(task): task.scheduled_at}, reset)
            return added.tasks[0]

    def _add(self, connection: Connection, operation: AddTasks) -> Added:
        try:
            return self._add_or_nothing(connection, operation)
        except IntegrityError:
            # Somebody else has taken the id or the key since the look: look again.
            return self._add_or_nothing(connection, operation)

    def _add_or_nothing(self, connection: Connection, operation: AddTasks) -> Added:
        try:
            added: Added = self._apply(connection, operation, _ADDING)
        except _NothingAddedError as nothing:
            return nothing.added
        return added

    def cancel(
        self,
        where: Session | Connection,
        task_id: str,
        at: datetime,
        reset: Callable[[], None],
    ) -> bool:
        """Cancel a task."""
        what = "cancelling a task"
        with failures(what):
            connection = self._connection(where)
            _, changed = self._apply(connection, CancelTask(task_id, at), what)
            if changed:
                self._tell(connection, {}, reset)
            return bool(changed)

    def _connection(self, where: Session | Connection) -> Connection:
        if isinstance(where, Session):
            where = where.connection()
        if not isinstance(where, Connection):
            raise TypeError(
                f"where: must be a SQLAlchemy Session or Connection, not {shown(where)}"
            )
        ours = self._core.engine.dialect
        if (where.dialect.name, where.dialect.driver) != (ours.name, ours.driver):
            raise ValueError(
                f"where: is a connection to {where.dialect.name} by {where.dialect.driver},"
                f" and the repository's database is one of {ours.name} by {ours.driver}"
            )
        return where

    def _apply(self, connection: Connection, operation: Operation, what: str) -> Any:
        part = self._core.dialect.part_of(connection)
        with failures(what, let=IntegrityError), part:
            transaction = self._core.transaction(connection, careful=True)
            [result] = transaction.apply([operation])
            value = result.unwrap()  # in here, so that what is refused holds no lock
            if isinstance(value, Added) and not (value.new or value.changed):
                raise _NothingAddedError(value)  # nor what only was there
            return value

    def _tell(
        self,
        connection: Connection,
        appeared: Mapping[Lane, datetime],
        reset: Callable[[], None],
    ) -> None:
        self._reset = reset
        if self._core.dialect.notify(connection, appeared):
            return
        if connection not in self._watched:
            self._watched.add(connection)
            event.listen(connection, "commit", self._commits)
        driver = cast("sqlite3.Connection", connection.connection.driver_connection)
        if not driver.in_transaction:
            self._commits(connection)  # by itself, it has been

    def _commits(self, _: Connection) -> None:
        with suppress(trio.RunFinishedError):  # then nobody sleeps who could be woken
            self.token.run_sync_soon(self._committed.set)

    # -- in Trio ------------------------------------------------------------------------

    async def serve(self) -> None:
        """Reset the timer after commits, until cancelled."""
        while True:
            await self._committed.wait()
            self._committed = trio.Event()
            with suppress(RepositoryError):  # who looks then will see it, too
                await self._core.wait_for_writers()
            self._reset()
