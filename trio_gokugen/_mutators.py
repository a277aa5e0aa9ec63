"""Mutators: what is done to a task as it is added."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random
from typing import TypeAlias

import attrs

from ._errors import InvalidTaskError, shown
from ._lengths import TICK, length
from ._task import TaskParam

Mutator: TypeAlias = "Callable[[TaskParam, datetime], TaskParam]"
"""Makes of a new task another, and is told the moment."""


def run_now(param: TaskParam, now: datetime) -> TaskParam:
    """Have a task run now, whenever it was to run: for `mutate` of `add_tasks`.

    Raises:
      InvalidTaskError: its deadline has passed.
    """
    return attrs.evolve(param, scheduled_at=now)


def randomised(
    *,
    random: Random,
    earlier: float | timedelta = 0,
    later: float | timedelta = 0,
) -> Mutator:
    """Have tasks run at random moments around those at which they were to run.

    Each moment of the range is as likely as any other, to the microsecond. None comes at
    or after the deadline of its task.

    Args:
      random: Where chance comes from: a `random.Random` of your own, which may be seeded.
      earlier: By at most so many seconds earlier, or a timedelta.
      later: By at most so many seconds later, or a timedelta.

    Returns:
      What `mutate` of `add_task` and of `add_tasks` takes.

    Raises:
      InvalidTaskError: an argument cannot be used; `field` names it. Also as a task is
        added for which the range leads beyond the years 1 to 9999.
    """
    if not isinstance(random, Random):
        raise InvalidTaskError("random", f"must be a random.Random, not {shown(random)}")
    before, after = length(earlier, "earlier"), length(later, "later")

    def mutate(param: TaskParam, now: datetime) -> TaskParam:  # noqa: ARG001 (a Mutator)
        try:
            first = param.scheduled_at - before
            last = param.scheduled_at + after
        except OverflowError:
            raise InvalidTaskError(
                "scheduled_at", "may leave the years 1 to 9999 when it is randomised"
            ) from None
        if param.deadline is not None:
            last = min(last, param.deadline - TICK)
        part = random.randrange((last - first) // TICK + 1)
        return attrs.evolve(param, scheduled_at=first + part * TICK)

    return mutate


def mutated(
    param: TaskParam, mutate: Mutator | None, now: datetime, index: int | None = None
) -> TaskParam:
    """What a mutator makes of a new task.

    Raises:
      InvalidTaskError: it makes no task of it, or one that cannot be; `index` tells of
        which.
    """
    if mutate is None:
        return param
    if not callable(mutate):
        raise InvalidTaskError("mutate", f"must be a function, not {shown(mutate)}")
    try:
        new: object = mutate(param, now)
    except InvalidTaskError as error:
        raise InvalidTaskError(error.field, error.reason, index) from None
    if not isinstance(new, TaskParam):
        raise InvalidTaskError(
            "mutate", f"must return a TaskParam, not {shown(new)}", index
        )
    return new
