"""A suite of named checks, and the running of them.

A check is an async function whose name says what is checked and whose docstring is the
promise, in a sentence. All checks of a suite run, each on a fresh subject, and one
`AssertionError` names the promises that were broken.

Time is virtual, so nothing waits for long. A subject may work in threads, as long as it
holds Trio's autojump meanwhile: so no check counts on something taking no steps, or
waits for all tasks to be blocked. To let things settle a check sleeps: the clock moves
only once nothing is under way, in threads neither.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Generic, TypeVar, cast

import attrs
import trio
import trio.testing

from trio_gokugen._autojump import jumping_clock

from ._yields import step_limit

S = TypeVar("S")

HANGS_AFTER = 3600.0
"""Virtual seconds in which every check has long come to its end."""

SPINS_AFTER = 500_000
"""Steps of Trio tasks in which it has, too: who never sleeps stops the clock."""


@attrs.frozen
class Check(Generic[S]):
    """One promise, and the function that tries to break it."""

    function: Callable[[S], Awaitable[None]]

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def promise(self) -> str:
        return " ".join((inspect.getdoc(self.function) or "").split())

    async def run(self, subject: S) -> AssertionError | None:
        """The failure, if the promise is broken."""
        try:
            with trio.move_on_after(HANGS_AFTER) as scope:
                with step_limit(SPINS_AFTER, scope.cancel):
                    await self.function(subject)
        except Exception as error:  # noqa: BLE001 (whatever it is breaks the promise)
            failure = AssertionError(f"{self.name}: {self.promise} {_detail(error)}")
            failure.__cause__ = error
            return failure
        if scope.cancelled_caught:
            return AssertionError(f"{self.name}: {self.promise} (It hangs.)")
        return None


class Suite(Generic[S]):
    """Checks of one kind of subject."""

    def __init__(self, name: str, checks: Collection[Check[S]]) -> None:
        self._name = name
        self._checks = {check.name: check for check in checks}
        if len(self._checks) < len(checks):
            raise ValueError(f"{name}: two checks have the same name")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all checks, in the order they run."""
        return tuple(self._checks)

    async def run(
        self, subject: S, only: Collection[str] | None, skip: Collection[str]
    ) -> None:
        """Run the chosen checks, in this Trio run if its clock jumps.

        Otherwise in a Trio run of their own, on a clock that does, in a thread.
        """
        checks = self._chosen(only, skip)
        clock = jumping_clock()
        if clock is not None and clock.autojump_threshold < math.inf:
            await self._run(checks, subject)
            return

        def run_in_a_thread() -> None:
            jumping = trio.testing.MockClock(autojump_threshold=0)
            trio.run(self._run, checks, subject, clock=jumping)

        await trio.to_thread.run_sync(run_in_a_thread)

    async def _run(self, checks: Collection[Check[S]], subject: S) -> None:
        failures: list[AssertionError] = []
        for check in checks:
            failure = await check.run(subject)
            if failure is not None:
                failures.append(failure)
        if failures:
            lines = "".join(f"\n- {failure}" for failure in failures)
            raise AssertionError(
                f"{self._name}: {len(failures)} of {len(checks)} promises are broken"
                + lines
            ) from ExceptionGroup("broken promises", failures)

    def _chosen(
        self, only: Collection[str] | None, skip: Collection[str]
    ) -> list[Check[S]]:
        for argument, names in (("only", only), ("skip", skip)):
            if isinstance(names, str):
                raise TypeError(f"{argument}: must be a collection of names, not one")
            if unknown := set(names or ()) - self._checks.keys():
                raise ValueError(
                    f"{argument}: there is no check {min(unknown)!r};"
                    f" there are {', '.join(self.names)}"
                )
        return [
            check
            for name, check in self._checks.items()
            if (only is None or name in only) and name not in skip
        ]


def _detail(error: Exception) -> str:
    return f"({'; '.join(_described(leaf) for leaf in _leaves(error))})"


def _described(error: BaseException) -> str:
    if isinstance(error, AssertionError):
        return str(error)
    return f"It raised {type(error).__name__}: {error}"


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        for each in group.exceptions:
            yield from _leaves(each)
    else:
        yield error
