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
_VERSION = 7 << 12
_VARIANT = 0b10 << 14
_HIGH_BITS = 12 + 14
"""Those beside the version and those beside the variant, which are seldom others."""

_LOW_BITS = 48
_TOO_MUCH = 1 << _LOW_BITS


class IdMaker:
    """Makes ids that increase strictly, whatever the clock does."""

    forks = 0
    """How often this process was forked from one that made ids, or from its child."""

    def __init__(self, source: random.Random | None = None) -> None:
        # Unique, not secret: a generator of its own, seeded by the system, is enough, and
        # spares a system call for every id.
        self._random = source if source is not None else random.Random(os.urandom(32))
        self._forks = IdMaker.forks
        self._moment: datetime | None = None
        self._millisecond = -1
        self._high = self._low = 0
        self._head = ""
        """What ids begin with, until the millisecond or the upper bits are others."""

    def __call__(self, moment: datetime) -> str:
        """The next id, stamped with `moment`, or with a later one already used."""
        if self._forks != IdMaker.forks:
            # A fork must not go on with the same numbers as the process it came from.
            self._forks = IdMaker.forks
            self._random.seed(os.urandom(32))
        if moment is not self._moment:  # as it is for all that is made in one batch
            self._moment = moment
            millisecond = max(0, (moment - _EPOCH) // _MILLISECOND)
            if millisecond > self._millisecond:
                self._begin(millisecond)
                return self._head + self._low.to_bytes(6, "big").hex()
        self._low = low = self._low + 1 + self._random.getrandbits(32)
        if low >= _TOO_MUCH:
            self._carry()
            low = self._low
        return self._head + low.to_bytes(6, "big").hex()

    def _carry(self) -> None:
        self._low -= _TOO_MUCH
        self._high += 1
        if self._high >> _HIGH_BITS:
            self._begin(self._millisecond + 1)
        else:
            self._write_head()

    def _begin(self, millisecond: int) -> None:
        self._millisecond = millisecond
        # The top bit stays free, so that counting up seldom overflows.
        counter = self._random.getrandbits(_HIGH_BITS + _LOW_BITS - 1)
        self._high, self._low = divmod(counter, _TOO_MUCH)
        self._write_head()

    def _write_head(self) -> None:
        d = f"{self._millisecond:012x}"
        third, fourth = divmod(self._high, 1 << 14)
        self._head = f"{d[:8]}-{d[8:]}-{_VERSION | third:x}-{_VARIANT | fourth:x}-"


def _note_fork() -> None:
    IdMaker.forks += 1


if hasattr(os, "register_at_fork"):  # pragma: no branch: Windows has no fork
    # To ask for the process with each id would be a system call.
    os.register_at_fork(after_in_child=_note_fork)
