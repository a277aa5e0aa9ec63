"""Task ids: UUIDs of version 7 (RFC 9562), which sort in the order they were made.

The first 48 bits are the milliseconds of the Unix epoch. Within one millisecond, and
while the clock goes backwards, the remaining bits count up from a random start by a
random step (method 2 of section 6.2 of the RFC), so the order holds and ids of several
processes do not collide.
"""

from __future__ import annotations

import os
import random
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_RANDOM_BITS = 74
_COUNTER_LIMIT = 1 << _RANDOM_BITS
_LOW_BITS = 62
_VERSION_AND_VARIANT = (7 << 76) | (0b10 << 62)


class IdMaker:
    """Makes ids that increase strictly, whatever the clock does."""

    def __init__(self, source: random.Random | None = None) -> None:
        # Unique, not secret: a generator of its own, seeded by the system, is enough, and
        # spares a system call for every id.
        self._random = source if source is not None else random.Random(os.urandom(32))
        self._process = os.getpid()
        self._millisecond = -1
        self._counter = 0

    def __call__(self, moment: datetime) -> str:
        """The next id, stamped with `moment`, or with a later one already used."""
        if os.getpid() != self._process:
            # A fork must not go on with the same numbers as the process it came from.
            self._process = os.getpid()
            self._random.seed(os.urandom(32))
        millisecond = max(0, (moment - _EPOCH) // _MILLISECOND)
        if millisecond > self._millisecond:
            self._millisecond = millisecond
            # The top bit stays free, so that counting up seldom overflows.
            self._counter = self._random.getrandbits(_RANDOM_BITS - 1)
        else:
            self._counter += 1 + self._random.getrandbits(32)
            if self._counter >= _COUNTER_LIMIT:
                self._millisecond += 1
                self._counter = self._random.getrandbits(_RANDOM_BITS - 1)
        high, low = divmod(self._counter, 1 << _LOW_BITS)
        number = (self._millisecond << 80) | _VERSION_AND_VARIANT | (high << 64) | low
        d = "%032x" % number  # noqa: UP031 (half as long as an f-string takes)
        return "-".join((d[:8], d[8:12], d[12:16], d[16:20], d[20:]))
