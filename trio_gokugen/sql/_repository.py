"""The repository: tasks in a database, a timer, and what goes on beside the calls."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import outcome
import trio
from sqlalchemy import Connection
from sqlalchemy.orm import Session

from trio_gokugen._arguments import (
    check_if_exists,
    check_key,
    checked_id,
    new_param,
)
from trio_gokugen._clock import SystemClock, default_clock
from trio_gokugen._errors import RepositoryError
from trio_gokugen._ids import IdMaker
from trio_gokugen._json import JSON
from trio_gokugen._retry import Retry
from trio_gokugen._task import Task, new_task
from trio_gokugen._timer import TimedRepository
from trio_gokugen.abc import Clock, IfExists, Operation

from ._core import SQLCore
from ._names import HeldName, Told
from ._theirs import Theirs

logger = logging.getLogger("trio_gokugen.sql")

SOON = 60.0
"""Seconds after which ended tasks that are not to be kept are deleted at the latest."""

MANY = 1_000
"""So many at a time; and after so many changes at once."""


class SQLRepository(TimedRepository[SQLCore]):
    """A `TaskRepository` in a database. Made by `open_sql_repository`."""

    def __init__(
        self,
        core: SQLCore,
        held: HeldName,
        *,
        poll: float,
        keep_ended: int | timedelta | None,
    ) -> None:
        super().__init__(core)
        self._held = held
        self._poll = poll
        self._keep_ended = keep_ended
        self._clock: Clock = default_clock()
        self._make_id = IdMaker()
        self._ids_turn = threading.Lock()  # callers are in threads of their own
        self._theirs = Theirs(core)
        self._changes = 0
        self._changed = trio.Event()
        self._changed_much = trio.Event()

    @property
    def name(self) -> str:
        """Who it is that runs the tasks which are claimed through this."""
        return self._held.name

    @property
    def poll(self) -> float:
        return self._poll

    def start_timer(self, clock: Clock) -> None:
        self.store.check_open()
        super().start_timer(clock)
        self._clock = clock

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        outcomes = await super().apply(operations)
        self._changes += len(operations)
        self._changed.set()
        if self._changes >= MANY:
            self._changed_much.set()
        return outcomes

    # -- in the caller's own transaction --------------------------------------------------

    def add_task_in(
        self,
        where: Session | Connection,
        work_id: str,
        param: Mapping[str, JSON] | None = None,
        *,
        at: datetime | None = None,
        after: float | timedelta | None = None,
        priority: int = 0,
        deadline: datetime | None = None,
        meta: Mapping[str, JSON] | None = None,
        id: str | None = None,
        key: str | None = None,
        if_exists: IfExists = "raise",
        retry: Retry | None = None,
        pool: str | None = None,
    ) -> Task:
        """Add a task in a transaction of your own: it is there if that is committed.

        Blocks, as all that is done with `where`: so call it in the thread in which you use
        that. Once it is committed, schedulers on the database are told, and a task that
        is due starts. Until then who adds a task of the same id or key waits for you, and
        with it all that this scheduler writes: so commit soon.

        Args:
          where: A SQLAlchemy session or connection, on the repository's database.
          work_id: Name of a work. Whether a scheduler knows it, is not checked; a task
            of an unknown work waits for a program that knows it.
          param: Keyword arguments for the work. They are not checked against it.
          at: As in `Scheduler.add_task`, and so are the others.
          after: Seconds from now, instead of `at`.
          priority: The larger goes first.
          deadline: Moment from which on it must not start.
          meta: A JSON object of your own.
          id: An id of your own.
          key: Among tasks that have not ended, no two have the same.
          if_exists: If another has it: ``"raise"``, ``"return"`` or ``"replace"``.
          retry: Whether it is tried again if it fails.
          pool: The pool it runs in. Whether a scheduler has it, is not checked, either.

        Returns:
          The task, as it will be stored; or the one that has the key.

        Raises:
          InvalidTaskError: a value cannot be used.
          TaskExistsError, KeyExistsError, AlreadyDispatchedError: as in
            `Scheduler.add_task`. Your transaction can go on.
          RepositoryError: the database failed.
        """
        now = self._now()
        new = new_param(
            now, work_id, param, at, after, priority, deadline, meta, id, key, retry, pool
        )
        check_if_exists(if_exists)
        check_key(new, if_exists)
        with self._ids_turn:
            task_id = self._make_id(now) if new.id is None else new.id
        task = new_task(new, task_id, now)
        return self._theirs.add(where, task, if_exists, self.timer.reset)

    def cancel_in(self, where: Session | Connection, task_id: str) -> bool:
        """Cancel a task in a transaction of your own: it is cancelled if that is committed.

        Until then the task is yours: it is not started. So commit soon.

        Returns:
          True if this cancels it, False if it had been cancelled before.

        Raises:
          TaskNotFoundError, AlreadyDispatchedError, AlreadyDoneError: it is too late.
          RepositoryError: the database failed.
        """
        task_id = checked_id(task_id)
        cancelled = self._theirs.cancel(where, task_id, self._now(), self.timer.reset)
        with suppress(trio.RunFinishedError):  # then it is looked for at the next start
            self._theirs.token.run_sync_soon(self._note_change)
        return cancelled

    def _note_change(self) -> None:
        self._changed.set()

    def _now(self) -> datetime:
        """What the clock shows, from whatever thread."""
        if trio.lowlevel.in_trio_run() or isinstance(self._clock, SystemClock):
            return self._clock.now()
        return trio.from_thread.run_sync(self._clock.now, trio_token=self._theirs.token)

    # -- beside the calls ----------------------------------------------------------------

    async def serve(self, claim: Callable[[str], None]) -> None:
        """Notice what others change, and delete what is not to be kept, until cancelled."""

        def hear(told: Told | None) -> None:
            self.timer.reset()
            if told is not None:
                work_id, first = told
                if first <= self._clock.now():
                    claim(work_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._theirs.serve)
            nursery.start_soon(self._held.listen, hear, self.lease)
            if self._poll < math.inf:
                nursery.start_soon(self._look_for_changes)
            if self._keep_ended is not None:
                nursery.start_soon(self._delete_old)

    async def _look_for_changes(self) -> None:
        while True:
            await trio.sleep(self._poll)
            self.timer.reset()

    async def _delete_old(self) -> None:
        """Delete ended tasks: not one by one, and not all at once."""
        while True:
            self._changes = 0
            self._changed = trio.Event()
            self._changed_much = trio.Event()
            try:
                while len(await self._delete_some()) == MANY:
                    pass
            except RepositoryError as error:
                logger.warning("ended tasks are kept for now: %s", error)
                await trio.sleep(SOON)
                continue
            if not isinstance(self._keep_ended, timedelta):
                await self._changed.wait()
            with trio.move_on_after(SOON):
                await self._changed_much.wait()

    async def _delete_some(self) -> list[str]:
        keep = self._keep_ended
        if isinstance(keep, timedelta):
            before = self._clock.now() - keep
            return await self.delete_ended(before, limit=MANY)
        assert keep is not None
        return await self.store.delete_surplus(keep, MANY)
