"""Keeps Trio's mock clock from jumping while something outside of Trio is at work.

`trio.testing.MockClock` jumps ahead when all tasks are blocked; it cannot see that one
of them waits for a thread or a subprocess, and jumps over it (python-trio/trio#456).
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol, cast

import attrs
import trio


class JumpingClock(Protocol):
    """A clock of Trio's that jumps: `trio.testing.MockClock`, which is slow to import."""

    autojump_threshold: float


def jumping_clock() -> JumpingClock | None:
    """This run's clock, if it is one that can jump."""
    clock = trio.lowlevel.current_clock()
    if hasattr(clock, "autojump_threshold"):
        return cast("JumpingClock", clock)
    return None


@attrs.define
class _Hold:
    holders: int = 0
    threshold: float = math.inf


_hold: trio.lowlevel.RunVar[_Hold] = trio.lowlevel.RunVar("trio_gokugen_autojump_hold")


@contextmanager
def autojump_held() -> Generator[None]:
    """While inside, the mock clock does not jump; under a real clock, does nothing.

    May be entered by many tasks at once: the last to leave lets go.
    """
    clock = jumping_clock()
    if clock is None:
        yield
        return
    try:
        hold = _hold.get()
    except LookupError:
        hold = _Hold()
        _hold.set(hold)
    if hold.holders == 0:
        hold.threshold = clock.autojump_threshold
        clock.autojump_threshold = math.inf
    hold.holders += 1
    try:
        yield
    finally:
        hold.holders -= 1
        if hold.holders == 0:
            clock.autojump_threshold = hold.threshold
