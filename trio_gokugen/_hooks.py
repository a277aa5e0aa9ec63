"""Ready-made `LoopHooks`."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from ._callables import check_async
from ._errors import RepositoryError, shown
from ._schedule import Dropped
from ._task import Task
from ._users_code import call
from .abc import HookAction, LoopHooks, Operation

logger = logging.getLogger("trio_gokugen.hooks")

HOOKS = (
    "on_get_next_error",
    "on_get_next",
    "on_dispatch_error",
    "on_dispatch",
    "on_update_error",
    "on_update",
    "on_dropped",
    "on_task_done",
)


def checked_hooks(hooks: LoopHooks) -> LoopHooks:
    """The hooks, or a `TypeError` that names the one that is no async function."""
    if isinstance(hooks, type):
        raise TypeError(f"hooks: must be an instance, {hooks.__name__}(), not the class")
    if isinstance(hooks, list | tuple):
        raise TypeError("hooks: must be one object: ChainHooks makes one of several")
    for name in HOOKS:
        check_async(getattr(hooks, name, None), f"hooks.{name}")
    return hooks


async def decision(
    hook: Callable[..., Awaitable[HookAction]], *args: Any, error: Exception
) -> HookAction:
    """What a hook decides about an error, told `args`, the error, and `RAISE`.

    Raises:
      TypeError: if it is no decision, as of a hook that has forgotten its ``return``.
    """
    action: object = await call(hook, *args, error, HookAction.RAISE)
    return _checked(action, hook, error)


def _checked(
    action: object, hook: Callable[..., Awaitable[HookAction]], error: Exception
) -> HookAction:
    if not isinstance(action, HookAction):
        name = getattr(hook, "__qualname__", repr(hook))
        raise TypeError(f"{name} must return a HookAction, not {shown(action)}") from error
    return action


class PassThroughHooks:
    """Watches nothing, and leaves every error as it was decided so far: raised.

    A base to derive from: override what is of interest.
    """

    async def on_get_next_error(self, error: Exception, action: HookAction) -> HookAction:
        return action

    async def on_get_next(self, task: Task) -> None:
        pass

    async def on_dispatch_error(self, error: Exception, action: HookAction) -> HookAction:
        return action

    async def on_dispatch(self, task: Task) -> None:
        pass

    async def on_update_error(
        self, operations: Sequence[Operation], error: Exception, action: HookAction
    ) -> HookAction:
        return action

    async def on_update(self, operation: Operation, task: Task) -> None:
        pass

    async def on_dropped(self, dropped: Dropped) -> None:
        pass

    async def on_task_done(self, task: Task) -> None:
        pass


class PartialHooks(PassThroughHooks):
    """Any subset of the hooks, given as async functions."""

    def __init__(
        self,
        *,
        on_get_next_error: (
            Callable[[Exception, HookAction], Awaitable[HookAction]] | None
        ) = None,
        on_get_next: Callable[[Task], Awaitable[None]] | None = None,
        on_dispatch_error: (
            Callable[[Exception, HookAction], Awaitable[HookAction]] | None
        ) = None,
        on_dispatch: Callable[[Task], Awaitable[None]] | None = None,
        on_update_error: (
            Callable[[Sequence[Operation], Exception, HookAction], Awaitable[HookAction]]
            | None
        ) = None,
        on_update: Callable[[Operation, Task], Awaitable[None]] | None = None,
        on_dropped: Callable[[Dropped], Awaitable[None]] | None = None,
        on_task_done: Callable[[Task], Awaitable[None]] | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "on_get_next_error": on_get_next_error,
            "on_get_next": on_get_next,
            "on_dispatch_error": on_dispatch_error,
            "on_dispatch": on_dispatch,
            "on_update_error": on_update_error,
            "on_update": on_update,
            "on_dropped": on_dropped,
            "on_task_done": on_task_done,
        }
        for name, hook in given.items():
            if hook is None:
                continue
            check_async(hook, name)
            # An attribute of the instance hides the method of the class.
            setattr(self, name, hook)


class ChainHooks:
    """Several hooks, one after the other.

    For an error, each is told what the one before decided, and the last one's decision
    is what counts.
    """

    def __init__(self, *hooks: LoopHooks) -> None:
        self._hooks = tuple(checked_hooks(each) for each in hooks)

    async def on_get_next_error(self, error: Exception, action: HookAction) -> HookAction:
        for hooks in self._hooks:
            decided = await hooks.on_get_next_error(error, action)
            action = _checked(decided, hooks.on_get_next_error, error)
        return action

    async def on_get_next(self, task: Task) -> None:
        for hooks in self._hooks:
            await hooks.on_get_next(task)

    async def on_dispatch_error(self, error: Exception, action: HookAction) -> HookAction:
        for hooks in self._hooks:
            decided = await hooks.on_dispatch_error(error, action)
            action = _checked(decided, hooks.on_dispatch_error, error)
        return action

    async def on_dispatch(self, task: Task) -> None:
        for hooks in self._hooks:
            await hooks.on_dispatch(task)

    async def on_update_error(
        self, operations: Sequence[Operation], error: Exception, action: HookAction
    ) -> HookAction:
        for hooks in self._hooks:
            decided = await hooks.on_update_error(operations, error, action)
            action = _checked(decided, hooks.on_update_error, error)
        return action

    async def on_update(self, operation: Operation, task: Task) -> None:
        for hooks in self._hooks:
            await hooks.on_update(operation, task)

    async def on_dropped(self, dropped: Dropped) -> None:
        for hooks in self._hooks:
            await hooks.on_dropped(dropped)

    async def on_task_done(self, task: Task) -> None:
        for hooks in self._hooks:
            await hooks.on_task_done(task)


class BackoffHooks(PassThroughHooks):
    """Retries what a failing repository could not do, for programs that outlive it.

    Waits before each retry: `initial` seconds at first, twice as long each time, at most
    `longest`, and of that a random part between a half and all ("equal jitter", see
    Marc Brooker, *Exponential Backoff and Jitter*, 2015). Reading, claiming and writing
    each begin anew when they have succeeded. Failures are logged as warnings, the first
    in a row with its traceback. Errors that are no `RepositoryError` are left as they
    are.
    """

    def __init__(
        self,
        *,
        initial: float = 0.1,
        longest: float = 30.0,
        source: random.Random | None = None,
    ) -> None:
        if not 0 < initial <= longest:
            raise ValueError(
                f"initial: must be positive and at most longest, {longest}, not {initial}"
            )
        self._initial = initial
        self._longest = longest
        self._random = source if source is not None else random.Random()
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}

    async def on_get_next_error(self, error: Exception, action: HookAction) -> HookAction:
        return await self._back_off("reading the next task", error, action)

    async def on_dispatch_error(self, error: Exception, action: HookAction) -> HookAction:
        return await self._back_off("claiming due tasks", error, action)

    async def on_update_error(
        self, operations: Sequence[Operation], error: Exception, action: HookAction
    ) -> HookAction:
        return await self._back_off("writing changes", error, action)

    async def on_get_next(self, task: Task) -> None:
        self._failures.pop("reading the next task", None)

    async def on_dispatch(self, task: Task) -> None:
        self._failures.pop("claiming due tasks", None)

    async def on_update(self, operation: Operation, task: Task) -> None:
        self._failures.pop("writing changes", None)

    async def _back_off(
        self, what: str, error: Exception, action: HookAction
    ) -> HookAction:
        if not isinstance(error, RepositoryError):
            return action
        failures = self._failures.get(what, 0)
        # Those who fail while others pause are of the same round, however many they are.
        if trio.current_time() < self._until.get(what, -math.inf):
            failures = max(failures - 1, 0)
        self._failures[what] = failures + 1
        # Doubling for longer than a float can hold would overflow.
        doubled = self._initial * 2.0 ** min(failures, 1000)
        pause = min(doubled, self._longest) * self._random.uniform(0.5, 1)
        self._until[what] = trio.current_time() + pause
        logger.warning(
            "%s failed, %d in a row, to be retried in %.3g s: %s",
            what,
            failures + 1,
            pause,
            error,
            exc_info=None if failures else error,
        )
        try:
            await trio.sleep(pause)
        except trio.Cancelled:
            self._until.pop(what, None)
            raise
        return HookAction.RETRY
