"""Sides, their comparison, and the rows of the table.

A side is a process of its own, so that neither pays for what the other keeps in memory.
The two sides of a comparison take turns, and each pair of turns gives one ratio: what
else the machine has to do at that time slows both, and changes the ratio little.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

ROOT = Path(__file__).parent.parent


class Side:
    """A process that measures something whenever it is asked to."""

    def __init__(
        self, module: str, name: str, *numbers: int, python: str = sys.executable
    ) -> None:
        """Start it.

        Args:
          module: The module of this package that has the side.
          name: Which of its sides; see `_turns.serve`.
          numbers: What the side is called with.
          python: The interpreter, if it needs another one.
        """
        self.name = " ".join((module, name, *map(str, numbers)))
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.{module}", name, *map(str, numbers)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self) -> Any:
        """Let it have a turn, and return its answer."""
        self.tell()
        return self.hear()

    def tell(self) -> None:
        """Let it have a turn, and don't wait."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """Its answer, once it has been told."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name!r} has ended")
        return json.loads(line)


def ask_once(start: Callable[[], Side]) -> Any:
    """The answer of a fresh process."""
    with start() as side:
        return side.ask()


@attrs.frozen
class Ratios:
    """The ratios of several pairs of turns."""

    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.median:.2f}"
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return f"{self.median:.2f} ({low:.2f} to {high:.2f})"


@attrs.frozen
class Pair:
    """What two sides that took turns have answered: seconds, or bytes."""

    ours: Sequence[float]
    other: Sequence[float]

    @property
    def cost(self) -> Ratios:
        """How many times what the other costs ours does."""
        return Ratios([a / b for a, b in zip(self.ours, self.other, strict=True)])

    @property
    def speed(self) -> Ratios:
        """How many times as fast as the other ours is."""
        return Ratios([b / a for a, b in zip(self.ours, self.other, strict=True)])


def compare(ours: Callable[[], Side], other: Callable[[], Side], repeats: int) -> Pair:
    """Ask two sides by turns, after one turn each to warm up, which does not count."""
    with ExitStack() as stack:
        order = [(stack.enter_context(start()), list[float]()) for start in (ours, other)]
        pair = Pair(order[0][1], order[1][1])
        for side, _ in order:
            side.ask()
        for _ in range(repeats):
            for side, answers in order:
                answers.append(side.ask())
            # Who goes second finds the caches as the other has left them.
            order.reverse()
        for side, answers in order:
            note(f"{side.name}: {statistics.median(answers):.3g}")
    return pair


def note(text: str) -> None:
    """Say how it goes, to whoever looks on."""
    sys.stderr.write(f"  {text}\n")


@attrs.frozen
class Scale:
    """How much is done: enough for figures, or just enough to see that it works."""

    quick: bool

    def __call__(self, full: int, *, quick: int) -> int:
        return quick if self.quick else full


@attrs.frozen
class Row:
    """A line of the table."""

    what: str
    against: str
    ratio: str
    must_reach: str = ""
    reached: bool | None = None


def at_least(bound: float, what: str, against: str, ratios: Ratios) -> Row:
    reached = ratios.median >= bound
    return Row(what, against, str(ratios), f">= {bound:g}", reached)


def at_most(bound: float, what: str, against: str, ratios: Ratios) -> Row:
    reached = ratios.median <= bound
    return Row(what, against, str(ratios), f"<= {bound:g}", reached)


def unjudged(what: str, against: str, ratios: Ratios) -> Row:
    return Row(what, against, str(ratios))
