"""Conditions: functions that say whether an occurrence of a schedule runs, as it is due.

Asked by a worker, within the run: so a condition may take its time, is bound by the same
deadline and time-out as the work, and can be interrupted. To wait, or to be skipped, is an
outcome of the run, as if the work had raised it.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Protocol, TypeAlias

import trio

from ._errors import (
    RefusedError,
    RepositoryError,
    ScheduleNotFoundError,
    TaskNotFoundError,
    shown,
)
from ._retry import Snooze
from ._schedule import Schedule
from ._task import Task

logger = logging.getLogger("trio_gokugen.conditions")

ASK_AGAIN = 1.0
"""Seconds after which it is asked again, if the store did not tell of the schedule."""


class Answer(enum.Enum):
    """What a condition says about an occurrence."""

    RUN = "run"
    """The work runs. Or `True`."""

    SKIP = "skip"
    """This occurrence is cancelled. Or `False`."""

    STOP = "stop"
    """So it is, and the schedule is paused: nothing of it runs before it is resumed."""


Condition: TypeAlias = Callable[[Schedule, Task | None], Awaitable[Answer | Snooze | bool]]
"""An async function of a schedule, and of its last run that was done or has failed."""


class Skipped(Exception):  # noqa: N818 (it is no error)
    """A condition has said that a run is not to be."""


class Asked(Protocol):
    """The part of a scheduler that conditions and dispatchers have to do with."""

    async def get(self, task_id: str) -> Task:
        """The task as it stands."""
        ...

    async def get_schedule(self, id: str) -> Schedule:
        """The schedule as it stands."""
        ...

    async def pause_schedule(self, id: str) -> bool:
        """Let no occurrence run until it is resumed."""
        ...

    async def progress(self, fraction: float, note: str | None = None) -> None:
        """Tell from inside a work how far it has come."""
        ...


scheduler: ContextVar[Asked] = ContextVar("trio_gokugen_current_scheduler")
"""Set by a scheduler in the context of its run, and so of all that runs in it."""


async def ask(condition: Condition, run: Task) -> None:
    """Return if the work is to run.

    Raises:
      Skipped, Snooze: it is not, or not yet.
    """
    asked = scheduler.get()
    assert run.schedule_id is not None
    try:
        schedule = await asked.get_schedule(run.schedule_id)
        last = await _last(asked, schedule)
    except ScheduleNotFoundError:
        raise Skipped from None  # it was removed, and cannot be asked about any more
    except RefusedError:
        raise
    except RepositoryError as error:
        raise _later(run, error) from error
    answer: Any = await _answer(condition, schedule, last)
    # It may have kept a cancellation out, or have let the deadline pass without a look:
    # then no work starts any more.
    await trio.lowlevel.checkpoint()
    if answer is True or answer is Answer.RUN:
        return
    if isinstance(answer, Snooze):
        # It may be the same each time, and must not remember where it was raised.
        raise answer.with_traceback(None)
    if answer is Answer.STOP:
        await _stop(asked, run, schedule.id)
    elif answer is not False and answer is not Answer.SKIP:
        raise TypeError(
            f"the condition {run.when!r} must answer an Answer, a Snooze, True or False,"
            f" not {shown(answer)}"
        )
    raise Skipped


def _later(run: Task, error: RepositoryError) -> Snooze:
    logger.warning("whether %r is to run is asked later: %s", run.id, error)
    return Snooze(ASK_AGAIN)


async def _stop(asked: Asked, run: Task, schedule_id: str) -> None:
    try:
        await asked.pause_schedule(schedule_id)
    except ScheduleNotFoundError:
        return  # it has stopped for good
    except RefusedError:
        raise
    except RepositoryError as error:
        raise _later(run, error) from error


@trio.lowlevel.disable_ki_protection
async def _answer(condition: Condition, schedule: Schedule, last: Task | None) -> Any:
    # A Ctrl-C that comes in here has interrupted the condition, as it does a work.
    return await condition(schedule, last)


async def _last(asked: Asked, schedule: Schedule) -> Task | None:
    if schedule.ended_id is None:
        return None
    try:
        return await asked.get(schedule.ended_id)
    except TaskNotFoundError:
        return None  # it has been forgotten since
