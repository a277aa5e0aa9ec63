"""What tests of a failing database begin with."""

from __future__ import annotations

import random
from collections.abc import Sequence

import trio
from sqlalchemy.exc import DBAPIError

from trio_gokugen import (
    BackoffHooks,
    ChainHooks,
    HookAction,
    PassThroughHooks,
    RepositoryError,
)
from trio_gokugen.abc import Operation


class Watch(PassThroughHooks):
    """Notes the errors that hooks are told of."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self._failed = trio.Event()

    async def failure(self) -> Exception:
        """Wait for the next error."""
        await self._failed.wait()
        return self.errors[-1]

    def _note(self, error: Exception) -> None:
        self.errors.append(error)
        self._failed.set()
        self._failed = trio.Event()

    async def on_get_next_error(self, error: Exception, action: HookAction) -> HookAction:
        self._note(error)
        return action

    async def on_dispatch_error(self, error: Exception, action: HookAction) -> HookAction:
        self._note(error)
        return action

    async def on_update_error(
        self, operations: Sequence[Operation], error: Exception, action: HookAction
    ) -> HookAction:
        self._note(error)
        return action


def patient(watch: Watch) -> ChainHooks:
    """Hooks that watch, and try again."""
    return ChainHooks(watch, BackoffHooks(source=random.Random(0)))


def original(error: Exception) -> BaseException:
    """What the driver raised, of the error of a repository."""
    assert isinstance(error, RepositoryError)
    cause = error.__cause__
    if isinstance(cause, DBAPIError):
        cause = cause.orig
    assert cause is not None
    return cause
