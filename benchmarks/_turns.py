"""Inside a process that is measured: set up, then measure once a turn.

Needs no more than the standard library, as the interpreter of a rival has no more.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Self


def turns() -> Iterator[None]:
    """Every turn of this process, as it comes. Blocks in between, all of it."""
    for _ in sys.stdin:
        yield


def answer(value: object) -> None:
    """Tell what was measured in this turn."""
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


class Stopwatch:
    """Times a block, begun with no garbage left. The collector stays enabled."""

    def __enter__(self) -> Self:
        gc.collect()
        self.start = time.perf_counter()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = time.perf_counter() - self.start


def serve(sides: Mapping[str, Callable[..., None]]) -> None:
    """Be the side that the command line names, with the numbers that follow."""
    name, *numbers = sys.argv[1:]
    sides[name](*map(int, numbers))
