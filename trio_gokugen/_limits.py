"""How many of something there may be at a time, as whoever makes it says."""

from __future__ import annotations

from ._errors import shown


def at_least_one(value: int, argument: str) -> int:
    """The value, which must be a number from 1 on.

    Raises:
      TypeError: it is no int.
      ValueError: it is below 1.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument}: must be an int, not {shown(value)}")
    if value < 1:
        raise ValueError(f"{argument}: must be at least 1, not {shown(value)}")
    return value
