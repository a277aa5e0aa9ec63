"""A transaction that is under way, as all see it who say something in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeAlias, cast

import attrs
from sqlalchemy import Connection, CursorResult, Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import Executable

from trio_gokugen._schedule import Schedule
from trio_gokugen._task import Task

from ._dialects import Dialect, Lane, lane_of
from ._errors import UnknownScheduleError
from ._schedule_rows import Unreadable
from ._statements import Statements

logger = logging.getLogger("trio_gokugen.sql")

CHUNK = 1_000
"""So many rows go into one statement."""


MOMENT = "50ms"
"""So long somebody is waited for who may wait for us."""

_HURRY = text(
    "SELECT current_setting('lock_timeout'), set_config('lock_timeout', :wait, true)"
)
_NOT_AVAILABLE = "55P03"

Key: TypeAlias = int | str
"""What a row is found by; see `Dialect.key`."""


class LookFirstError(Exception):
    """An id is taken, or a run was taken for that of another task of its id.

    All is to be undone, and begun anew, carefully.
    """


LEFT_FOR = 60.0
"""Seconds after which it is looked again whether a schedule is known now."""


@attrs.define(eq=False)
class Unknown:
    """Schedules that are not known here: what is due of them is left to others."""

    now: float = 0.0
    """On Trio's clock. Set from time to time, as threads cannot look at it."""

    _until: dict[str, float] = attrs.field(factory=dict[str, float])
    _told: set[str] = attrs.field(factory=set[str])

    def note(self, error: UnknownScheduleError) -> None:
        """This one is not, for now."""
        self._until[error.schedule_id] = self.now + LEFT_FOR
        if error.schedule_id not in self._told:
            self._told.add(error.schedule_id)
            logger.warning("%s; until then its tasks are left to others", error)

    def ids(self) -> list[str]:
        """Those that are to be passed over."""
        return [each for each, until in [*self._until.items()] if until > self.now]

    def forget(self, schedule_id: str) -> None:
        """This one is another now."""
        self._until.pop(schedule_id, None)
        self._told.discard(schedule_id)


class InTheWayError(Exception):
    """Somebody else holds what is wanted, and may wait for what is held here.

    All is to be undone, so that he gets on, and begun anew.
    """


@attrs.define
class Held:
    """A schedule as it stands in the transaction, where nobody else can change it."""

    schedule: Schedule | None
    """None if it is not there, or cannot be read."""

    error: Unreadable | None = None
    """Why it cannot be read."""

    unread_id: str | None = None
    """The id of its next occurrence, if it cannot be read."""

    @property
    def pending_id(self) -> str | None:
        """The id of the task that is its next occurrence."""
        return self.unread_id if self.schedule is None else self.schedule.pending_id


@attrs.define(eq=False)
class Ongoing:
    """See above. Another begins it, and ends it."""

    connection: Connection
    dialect: Dialect
    say: Statements
    name: str
    """Who it is that runs what is claimed."""

    lease: timedelta
    """For how long."""

    new_id: Callable[[datetime], str]
    """Makes ids of tasks."""

    unknown: Unknown
    """What others may know, but not we."""

    appeared: dict[Lane, datetime] = attrs.field(factory=dict[Lane, datetime])
    """By pool and work, the first moment for which a task has become pending."""

    held: dict[str, Held] = attrs.field(factory=dict[str, Held])
    """By id, the schedules that were asked for."""

    locked: set[str] = attrs.field(factory=set[str])
    """The ids of tasks that were locked because of their schedules."""

    ahead: Callable[[Iterable[str]], None] | None = None
    """Locks what is still to come, and these schedules, before the first is locked."""

    patient: bool = False
    """Whether to wait for others in any case: they have been in the way too often."""

    seal: str | None = None
    """What to ask for, if nobody knows whether it was committed; see `Dialect.seal`."""

    def execute(
        self, statement: Executable, parameters: Mapping[str, Any]
    ) -> CursorResult[*tuple[Any, ...]]:
        """Say something."""
        return self.connection.execute(statement, parameters)

    def execute_many(
        self, statement: Executable, rows: Collection[Mapping[str, Any]]
    ) -> None:
        """Say something of each row."""
        if rows:
            self.connection.execute(statement, [*rows])

    def lock_tasks(self, task_ids: Collection[str], replaced: Collection[str] = ()) -> None:
        """Lock tasks, and what runs of schedules that replace their runs, by their ids."""
        listed = self.dialect.listed
        which = {"ids": listed(task_ids), "schedules": listed(replaced)}
        self.locked.update(self.execute(self.say.lock_tasks, which).scalars())

    @contextmanager
    def hurried(self) -> Generator[None]:
        """Within, nobody is waited for longer than a moment, as he may wait for us.

        Raises:
          InTheWayError: that was too short.
        """
        if self.patient:
            yield
            return
        before = self.connection.scalar(_HURRY, {"wait": MOMENT})
        try:
            yield
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _NOT_AVAILABLE:
                raise
            raise InTheWayError from error
        self.connection.execute(_HURRY, {"wait": before})

    def key_of(self, row: Row[Any]) -> Key:
        """What this row, which has the columns of a task, is found by."""
        return cast("Key", getattr(row, self.dialect.key.name))

    def leased(self, at: datetime) -> dict[str, Any]:
        """Who runs what is claimed now, and for how long, as parameters."""
        return {"name": self.name, **self.dialect.leased(at, self.lease)}

    def note_pending(self, task: Task) -> None:
        """A task has become pending."""
        lane = lane_of(task)
        first = self.appeared.get(lane)
        if first is None or task.scheduled_at < first:
            self.appeared[lane] = task.scheduled_at


def chunks(items: Collection[Any]) -> Iterator[list[Any]]:
    """The items in lists that are short enough for one statement."""
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
