"""What can go wrong with a call of a repository, and which calls it happens to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import attrs
import trio

from trio_gokugen._errors import RepositoryError
from trio_gokugen.abc import Operation


@attrs.frozen(eq=False)
class Call:
    """A call that was made."""

    method: str
    arguments: Mapping[str, Any]
    """By name, those left out as well."""

    at: float
    """When, by Trio's clock."""

    @property
    def operations(self) -> Sequence[Operation]:
        """The operations of a call of `apply`; none for any other."""
        operations: Sequence[Operation] = self.arguments.get("operations", ())
        return operations


When: TypeAlias = int | Callable[[Call], bool] | None
"""Which calls of a method: from the n-th on, those that satisfy something, or all."""

Error: TypeAlias = BaseException | Callable[[], BaseException]
"""What a failing call raises, or what makes it, an exception type for example."""


def injected() -> BaseException:
    return RepositoryError("a fault was injected here")


@attrs.define(eq=False)
class Fault:
    """Something that goes wrong with calls of a method."""

    method: str
    after: bool
    """Whether it happens only after the call was carried out."""

    when: When
    times: int | None
    error: Error | None
    seconds: float
    happened: int = attrs.field(default=0, init=False)
    """How often it has happened so far."""

    _seen: int = attrs.field(default=0, init=False)

    def strikes(self, call: Call) -> bool:
        """Whether it happens to this call. Counts it, so ask once."""
        if call.method != self.method or self.happened == self.times:
            return False
        self._seen += 1
        if isinstance(self.when, int):
            strikes = self._seen >= self.when
        else:
            strikes = self.when is None or self.when(call)
        self.happened += strikes
        return strikes

    async def wait(self) -> None:
        """Take the time it takes, a checkpoint in any case."""
        await trio.sleep(self.seconds)

    def strike(self) -> None:
        """Raise the error, if it is one."""
        if isinstance(self.error, BaseException):
            raise self.error
        if self.error is not None:
            raise self.error()
