"""Something done to a Trio task at its k-th checkpoint, whichever that is.

For promises like "cancelled at any point, it changes nothing" every point must be
tried, of code that nothing is known about: an instrument looks at it from outside.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any

import attrs
import outcome
import trio


@attrs.define(eq=False)
class _AtYield(trio.abc.Instrument):
    """Counts the times that a Trio task yields, and acts at one of them."""

    _trio_task: trio.lowlevel.Task
    _number: int
    _act: Callable[[], object]
    yields: int = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._trio_task:
            self.yields += 1
            if self.yields == self._number:
                self._act()


@contextmanager
def at_yield(number: int, act: Callable[[], object]) -> Generator[None]:
    """Act when the block yields to other Trio tasks for that time, 1 for the first."""
    with _instrument(_AtYield(trio.lowlevel.current_task(), number, act)):
        yield


@attrs.define(eq=False)
class _StepLimit(trio.abc.Instrument):
    """Acts when Trio has made so many steps, of whatever tasks."""

    _left: int
    _act: Callable[[], object]

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self._left -= 1
        if self._left == 0:
            self._act()


@contextmanager
def step_limit(number: int, act: Callable[[], object]) -> Generator[None]:
    """Act when that many steps have been made while in the block."""
    with _instrument(_StepLimit(number, act)):
        yield


@attrs.define(eq=False)
class Steps(trio.abc.Instrument):
    """How often Trio tasks were woken."""

    _counts: Counter[trio.lowlevel.Task] = attrs.field(factory=Counter[trio.lowlevel.Task])

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._counts[task] += 1

    def of(self, task: trio.lowlevel.Task) -> int:
        """How often this one was."""
        return self._counts[task]


@contextmanager
def counted_steps() -> Generator[Steps]:
    """Count the steps of Trio tasks while in the block."""
    steps = Steps()
    with _instrument(steps):
        yield steps


@contextmanager
def _instrument(instrument: trio.abc.Instrument) -> Generator[None]:
    trio.lowlevel.add_instrument(instrument)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(instrument)


@attrs.frozen
class Cancelled:
    """A call that was to be cancelled at its k-th checkpoint."""

    was_cancelled: bool
    """Whether there was such a checkpoint."""

    result: outcome.Value[Any] | None
    """What the call returned; none if it raised `trio.Cancelled`."""


async def cancelled_at(number: int, call: Callable[[], Awaitable[Any]]) -> Cancelled:
    """Make a call, and cancel it at that checkpoint; 0 is before the first."""
    result: outcome.Value[Any] | None = None
    with trio.CancelScope() as scope:
        if number == 0:
            scope.cancel()
        with at_yield(number, scope.cancel):
            result = outcome.Value(await call())
    return Cancelled(scope.cancel_called, result)
