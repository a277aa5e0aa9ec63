"""Calls hooks and listeners, in a task of its own, in the order things happened.

Never from the update loop: a hook may call the scheduler, which that loop would have to
answer, and a slow hook must delay nobody but later hooks. What they have not seen yet
waits in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ._hooks import PassThroughHooks
from ._task import Task
from ._users_code import call
from .abc import Listener, LoopHooks


class Observers:
    """Who watches the scheduler, and what they have still to see."""

    def __init__(self, hooks: LoopHooks | None, listeners: list[Listener]) -> None:
        self._hooks = hooks
        self._listeners = listeners
        self._events: deque[tuple[Callable[..., Awaitable[None]], tuple[Any, ...]]]
        self._events = deque()
        self._busy = False
        self.trio_task: trio.lowlevel.Task | None = None
        """Where hooks and listeners are called."""

        self._arrived = trio.Event()
        self._seen_all = trio.Event()

    @property
    def present(self) -> bool:
        """Whether anybody watches: if not, there is no need to tell."""
        return self._hooks is not None or bool(self._listeners)

    @property
    def waiting(self) -> int:
        """How many events have still to be seen."""
        return len(self._events) + self._busy

    def tell(self, name: str, *args: Any) -> None:
        """Have the hook of this name called."""
        if self._hooks is None:
            return
        hook = getattr(self._hooks, name)
        # What does nothing need not be called.
        if getattr(hook, "__func__", None) is not getattr(PassThroughHooks, name):
            self._put(hook, *args)

    def tell_done(self, task: Task) -> None:
        """Have `on_task_done` and the listeners called."""
        self.tell("on_task_done", task)
        if self._listeners:
            self._put(self._call_listeners, task)

    @trio.lowlevel.enable_ki_protection
    async def run(self) -> None:
        """Deliver events until cancelled. An error of a hook ends it."""
        self.trio_task = trio.lowlevel.current_task()
        while True:
            while self._events:
                hook, args = self._events.popleft()
                self._busy = True
                await call(hook, *args)
                self._busy = False
            self._seen_all.set()
            self._arrived = trio.Event()
            await self._arrived.wait()

    async def wait_seen_all(self) -> None:
        """Wait until there is nothing left to see."""
        while self.waiting:
            if self._seen_all.is_set():
                self._seen_all = trio.Event()
            await self._seen_all.wait()

    def _put(self, hook: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._events.append((hook, args))
        self._arrived.set()

    async def _call_listeners(self, task: Task) -> None:
        # A copy, as a listener may remove itself; one that was removed is not called.
        for listener in tuple(self._listeners):
            if listener in self._listeners:
                await listener(task)
