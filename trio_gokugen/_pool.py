"""What a pool of workers is like, as its user says it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import timedelta

import attrs

from ._arguments import check_part
from ._errors import InvalidTaskError, shown
from ._json import name as as_name
from ._key_limits import KeyLimit
from ._lengths import length
from ._limits import at_least_one
from .abc import Dispatcher


def _period(value: float | timedelta) -> float:
    return length(value, "per").total_seconds()


@attrs.frozen
class Rate:
    """How often runs may start: at most `limit` within any span of `per` seconds.

    What counts is when a run is handed to the pool's dispatcher. If it waits there for a
    turn, as there are fewer threads or processes than workers, or more in flight than an
    executor has workers, many may begin together later: have as many of both.

    Raises:
      TypeError, ValueError: names the argument that cannot be used.
    """

    limit: int
    per: float = attrs.field(converter=_period)
    """Seconds, or a timedelta."""

    def __attrs_post_init__(self) -> None:
        at_least_one(self.limit, "limit")
        if not self.per:
            raise InvalidTaskError("per", "must be more than nothing")


def _work_ids(value: Collection[str]) -> frozenset[str]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"works: must be names of works, not {shown(value)}")
    return frozenset(as_name(each, "works") for each in value)


def _limits(value: Iterable[KeyLimit]) -> tuple[KeyLimit, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"limits: must be a list of KeyLimits, not {shown(value)}")
    limits = tuple(value)
    for each in limits:
        if not isinstance(each, KeyLimit):
            raise TypeError(f"limits: must be a list of KeyLimits, not {shown(each)}")
    return limits


@attrs.frozen
class Pool:
    """What a pool of a `PoolsDispatcher` is like.

    Raises:
      TypeError, ValueError: names the argument that cannot be used.
    """

    workers: int | Dispatcher = 10
    """How many works run at a time; or where they run, a dispatcher of its own."""

    works: frozenset[str] = attrs.field(default=frozenset(), converter=_work_ids)
    """The names of the works that run here, which may be registered later.

    Of tasks that name no pool. Those that name this one run here, whatever their work.
    """

    rate: Rate | None = None
    """How often runs are handed to the workers, at most. However often, by default."""

    limits: tuple[KeyLimit, ...] = attrs.field(default=(), converter=_limits)
    """How many run at a time that have the same value in their `param` or `meta`."""

    paused: bool = False
    """Whether it starts nothing until it is resumed."""

    def __attrs_post_init__(self) -> None:
        if self.rate is not None and not isinstance(self.rate, Rate):
            raise TypeError(f"rate: must be a Rate, not {shown(self.rate)}")
        if not isinstance(self.paused, bool):
            raise TypeError(f"paused: must be a bool, not {shown(self.paused)}")
        if not isinstance(self.workers, int) or isinstance(self.workers, bool):
            check_part(self.workers, Dispatcher, "workers")
        else:
            at_least_one(self.workers, "workers")


@attrs.frozen
class PoolStatistics:
    """A pool, as it stood when it was asked."""

    max_workers: float
    running: int
    paused: bool
    rate: Rate | None

    works: frozenset[str] | None
    """The works that run in it; none for those that no other pool has."""

    limits: tuple[KeyLimit, ...]
