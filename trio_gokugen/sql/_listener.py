"""Hears what other processes have changed, over a PostgreSQL connection of its own.

Whoever makes a task due soon, or the first of its work, sends a notification with the
commit, whichever process it is; here it wakes the timer. The same session holds the
scheduler's name: if the process ends, in whatever way, the server closes the session, and
the name is free.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import psycopg
import trio
from sqlalchemy import Engine

from trio_gokugen._autojump import autojump_held
from trio_gokugen._errors import RepositoryError

from ._errors import NameTakenError
from ._failures import as_failure, failures
from ._names import HeldName, Told
from ._postgresql import CHANNEL, News

logger = logging.getLogger("trio_gokugen.sql")

_HOLD = (
    "SELECT pg_try_advisory_lock(hashtextextended("
    "'gokugen_task'::regclass::oid || ':' || %(name)s, 0))"
)
LONGEST_PAUSE = 5.0
"""Seconds between two attempts to connect again."""


class ListeningSession(HeldName):
    """A connection that listens, and holds a name."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.name = name
        self._engine = engine
        self._connection: psycopg.Connection[Any] | None = None

    # -- in a thread --------------------------------------------------------------------

    def connect(self) -> None:
        """Connect, take the name, and listen.

        Raises:
          NameTakenError: if somebody else has it.
          RepositoryError: if the database fails.
        """
        what = "connecting, to listen"
        try:
            with failures(what):
                pooled = self._engine.raw_connection()
        except psycopg.Error as error:  # as it is, which it is not for other connections
            raise as_failure(what, error) from error
        connection = cast("psycopg.Connection[Any]", pooled.driver_connection)
        pooled.detach()  # it is ours for good
        try:
            self._set_up(connection)
        except BaseException as error:
            connection.close()
            if isinstance(error, psycopg.Error):
                raise as_failure(what, error) from error
            raise
        self._connection = connection

    def _set_up(self, connection: psycopg.Connection[Any]) -> None:
        connection.rollback()
        connection.autocommit = True
        found = connection.execute(_HOLD, {"name": self.name}).fetchone()
        if found != (True,):
            raise NameTakenError(self.name)

    def release(self) -> None:
        """Let go of the name, and close the connection."""
        assert self._connection is not None
        # By itself, the server would let go of it some time after the connection is closed:
        # who takes it at once would find it taken.
        with suppress(psycopg.Error):
            self._connection.execute("SELECT pg_advisory_unlock_all()")
        self._connection.close()

    # -- in Trio ------------------------------------------------------------------------

    async def listen(self, changed: Callable[[Told | None], None], patience: float) -> None:
        # A connection that is lost is noticed at once, and made anew.
        while True:
            assert self._connection is not None
            try:
                await self._hear(self._connection, changed)
            except (psycopg.Error, OSError, ValueError) as error:
                logger.warning("the connection that listens is lost: %s", error)
            self._connection.close()
            await self._connect_again(patience)

    async def _hear(
        self,
        connection: psycopg.Connection[Any],
        changed: Callable[[Told | None], None],
    ) -> None:
        # Only now: what nobody reads would wait in the server.
        await _in_thread(connection.execute, f"LISTEN {CHANNEL}")
        try:
            changed(None)  # what was missed meanwhile may be anything
            await self._hear_more(connection, changed)
        finally:
            with suppress(psycopg.Error), trio.CancelScope(shield=True):
                await _in_thread(connection.execute, f"UNLISTEN {CHANNEL}")

    async def _hear_more(
        self,
        connection: psycopg.Connection[Any],
        changed: Callable[[Told | None], None],
    ) -> None:
        while True:
            # Before the first wait, too: some may have come while it was connected.
            heard = [News.read(each.payload) for each in connection.notifies(timeout=0)]
            for news in heard:
                if news.sender == self.name:
                    continue
                if news.work_id is None or news.first is None:
                    changed(None)
                else:
                    changed((news.work_id, news.first))
            await trio.lowlevel.wait_readable(connection.fileno())

    async def _connect_again(self, patience: float) -> None:
        """Connect, with pauses that grow, however long it takes."""
        pause = 0.05
        until = trio.current_time() + patience
        while True:
            try:
                await _in_thread(self.connect)
            except NameTakenError:
                if trio.current_time() >= until:
                    raise
            except RepositoryError as error:
                logger.warning("%s", error)
                until = trio.current_time() + patience
            else:
                return
            await trio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE)


async def _in_thread(function: Callable[..., object], *args: object) -> None:
    """Say something to the server, which may hang, while Trio goes on."""
    with autojump_held():
        await trio.to_thread.run_sync(function, *args, abandon_on_cancel=False)
