"""Lengths of time, as users give them: seconds, or a `timedelta`."""

from __future__ import annotations

from datetime import datetime, timedelta

from ._errors import InvalidTaskError, shown

TICK = timedelta(microseconds=1)
"""The least distance of two moments."""

LONGEST = timedelta(days=36_525)
"""Of what is given as a length of time: so it is kept exactly, everywhere."""


def length(value: object, field: str) -> timedelta:
    """A length of time, given as such or in seconds, that is not negative."""
    try:
        found = value if isinstance(value, timedelta) else timedelta(seconds=_number(value))
    except (TypeError, ValueError, OverflowError):
        raise InvalidTaskError(
            field, f"must be a timedelta or a number of seconds, not {shown(value)}"
        ) from None
    if found < timedelta(0):
        raise InvalidTaskError(field, f"must not be negative, not {shown(value)}")
    if found > LONGEST:
        raise InvalidTaskError(
            field, f"must be at most {LONGEST.days} days, not {shown(value)}"
        )
    return found


def jitter(value: float | timedelta) -> timedelta:
    """What is given as `jitter`."""
    return length(value, "jitter")


def later(moment: datetime, length: timedelta) -> datetime | None:
    """So much later; none if it leaves the years there are, and never comes."""
    try:
        return moment + length
    except OverflowError:
        return None


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return value
