"""A transaction that is under way, as all see it who say something in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, TypeAlias, cast

import attrs
from sqlalchemy import Connection, CursorResult, Row
from sqlalchemy.sql import Executable

from trio_gokugen._task import Task

from ._dialects import Dialect
from ._errors import UnknownScheduleError
from ._statements import Statements

logger = logging.getLogger("trio_gokugen.sql")

CHUNK = 1_000
"""So many rows go into one statement."""


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

    appeared: dict[str, datetime] = attrs.field(factory=dict[str, datetime])
    """By work, the first moment for which a task has become pending."""

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

    def key_of(self, row: Row[Any]) -> Key:
        """What this row, which has the columns of a task, is found by."""
        return cast("Key", getattr(row, self.dialect.key.name))

    def leased(self, at: datetime) -> dict[str, Any]:
        """Who runs what is claimed now, and for how long, as parameters."""
        return {"name": self.name, **self.dialect.leased(at, self.lease)}

    def note_pending(self, task: Task) -> None:
        """A task has become pending."""
        first = self.appeared.get(task.work_id)
        if first is None or task.scheduled_at < first:
            self.appeared[task.work_id] = task.scheduled_at


def chunks(items: Collection[Any]) -> Iterator[list[Any]]:
    """The items in lists that are short enough for one statement."""
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
