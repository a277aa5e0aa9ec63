"""The wall clock, and Trio's clock: the only two places that read the time.

Under Trio's mock clock everything is to live on Trio's time, so that a year of appointed
times passes in seconds; in production the wall clock is what people mean, and it may be
set, or stand still while the machine sleeps. `default_clock` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import attrs
import trio

from ._autojump import jumping_clock
from ._errors import shown
from ._task import as_utc
from .abc import Clock

_LAST = datetime.max.replace(tzinfo=UTC)
_FIRST = datetime.min.replace(tzinfo=UTC)


def _wall_clock() -> datetime:
    return datetime.now(UTC)


def later(moment: datetime, seconds: float) -> datetime:
    """The moment that many seconds later, or the last (first) one that can be told."""
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError:
        return _LAST if seconds > 0 else _FIRST


def _deadline(clock: Clock, moment: datetime) -> float:
    # The seconds from now are a float, and rounding may make them too few, even none.
    # A moment still to come must be at least one tick away, or who sleeps until then
    # would find it still to come, and sleep for no time at all, for ever.
    now = clock.now()
    present = trio.current_time()
    if moment <= now:
        return present
    return max(present + (moment - now).total_seconds(), math.nextafter(present, math.inf))


def _is_finite(value: object, argument: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{argument}: must be a number of seconds, not {shown(value)}")
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@attrs.define(eq=False)
class SystemClock:
    """The wall clock.

    It may be set in either direction, and the machine may be suspended: nobody sleeps
    longer than `max_sleep` seconds without another look at it.
    """

    max_sleep: float = 30.0
    _read: Callable[[], datetime] = attrs.field(
        default=_wall_clock, kw_only=True, alias="read"
    )

    def __attrs_post_init__(self) -> None:
        if not _is_finite(self.max_sleep, "max_sleep") or self.max_sleep <= 0:
            raise ValueError(
                f"max_sleep: must be positive and finite, not {shown(self.max_sleep)}"
            )

    def now(self) -> datetime:
        """The wall clock's time, in UTC."""
        return self._read()

    def deadline_for(self, moment: datetime) -> float:
        """When Trio's clock will show it is that moment, unless the clock is set."""
        return _deadline(self, moment)


_run_epoch: trio.lowlevel.RunVar[datetime] = trio.lowlevel.RunVar("trio_gokugen_epoch")


def _epoch_of_this_run() -> datetime:
    """What the wall clock showed when Trio's clock showed 0.

    One for all of a Trio run, so that a scheduler opened later goes on in the same time.
    """
    try:
        return _run_epoch.get()
    except LookupError:
        epoch = later(_wall_clock(), -trio.current_time())
        _run_epoch.set(epoch)
        return epoch


@attrs.define(eq=False)
class TrioClock:
    """Trio's own clock, real or mock: ``epoch + (trio.current_time() - start)``.

    Starts at `epoch` when it is made, or first read if that is outside `trio.run`.
    Without an epoch it starts at the present, and all such clocks of one Trio run agree.
    """

    epoch: datetime | None = None
    """What it shows at the start. Aware."""

    start: float | None = None
    """The time of Trio's clock at which it starts."""

    @property
    def max_sleep(self) -> float:
        """Infinite: nobody can set Trio's clock behind Trio's back."""
        return math.inf

    def __attrs_post_init__(self) -> None:
        if self.epoch is None and self.start is not None:
            raise ValueError("start: goes with an epoch, which is not given")
        if self.start is not None and not _is_finite(self.start, "start"):
            raise ValueError(f"start: must be finite, not {shown(self.start)}")
        if self.epoch is not None:
            self.epoch = as_utc(self.epoch, "epoch")
        if trio.lowlevel.in_trio_run():
            self._started()

    def _started(self) -> tuple[datetime, float]:
        if self.epoch is None:
            self.epoch, self.start = _epoch_of_this_run(), 0.0
        elif self.start is None:
            self.start = trio.current_time()
        assert self.start is not None
        return self.epoch, self.start

    def now(self) -> datetime:
        """The present moment, in UTC, as far as the years 1 to 9999 reach."""
        epoch, start = self._started()
        return later(epoch, trio.current_time() - start)

    def deadline_for(self, moment: datetime) -> float:
        """The time of Trio's clock that is this moment."""
        epoch, start = self._started()
        exact = start + (moment - epoch).total_seconds()
        present = trio.current_time()
        if exact <= present:
            return _deadline(self, moment)
        return exact


def default_clock() -> SystemClock | TrioClock:
    """Trio's clock if this run has one that can jump, otherwise the wall clock."""
    return SystemClock() if jumping_clock() is None else TrioClock()
