"""Waiting for process groups to end: one watcher for all that a Trio run waits for.

There is no event for the end of a group, so it has to be looked for, again and again. Each
look is made in a thread, and serves all that are waiting: a hundred groups, whose members
ignore that they are to end, take about as much as one, and Trio's loop is not held up.

It is the thread that counts the time, too. Processes live in real time, whatever Trio's
clock shows.
"""

from __future__ import annotations

import math
import threading
import time

import attrs
import trio

from . import _process_group as process_group

SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.05
"""Seconds between two looks at the same group: each pause is twice the one before."""


@attrs.define(eq=False)
class _Waiting:
    """A group that somebody waits for."""

    group: int
    until: float
    look_at: float
    member: int = attrs.field(init=False)
    """Who is looked at: the leader at first, whose number is the group's."""

    pause: float = attrs.field(default=SHORTEST_PAUSE / 2, init=False)
    has_ended: bool = attrs.field(default=False, init=False)
    failed: Exception | None = attrs.field(default=None, init=False)
    over: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.member = self.group


@attrs.define(eq=False)
class _Watcher:
    _waiting: list[_Waiting] = attrs.field(factory=list[_Waiting], init=False)
    """If there are none, nobody watches."""

    _has_more: threading.Event = attrs.field(factory=threading.Event, init=False)

    # Whatever else the program has threads for must not keep this one waiting.
    _threads: trio.CapacityLimiter = attrs.field(
        factory=lambda: trio.CapacityLimiter(math.inf), init=False
    )

    async def wait(self, group: int, seconds: float) -> bool:
        now = time.monotonic()
        waiting = _Waiting(group, now + seconds, now)
        if not self._waiting:
            trio.lowlevel.spawn_system_task(
                self._watch, name="trio_gokugen watcher of commands"
            )
        self._waiting.append(waiting)
        self._has_more.set()
        await waiting.over.wait()
        if waiting.failed is not None:
            raise waiting.failed
        return waiting.has_ended

    async def _watch(self) -> None:
        # Who waits does so for some seconds only, and under a shield: even as a run ends.
        with trio.CancelScope(shield=True):
            while self._waiting:
                over = await self._next_over()
                self._waiting = [each for each in self._waiting if each not in over]
                for each in over:
                    each.over.set()

    async def _next_over(self) -> set[_Waiting]:
        """Look once, at those whose turn it is; gives those that need not wait any more."""
        waiting = [*self._waiting]
        try:
            return await trio.to_thread.run_sync(self._look, waiting, limiter=self._threads)
        except Exception as error:  # noqa: BLE001 (there may be no thread: told to all)
            for each in waiting:
                each.failed = error
            return {*waiting}

    def _look(self, waiting: list[_Waiting]) -> set[_Waiting]:
        first = min(each.look_at for each in waiting)
        self._has_more.wait(max(0, first - time.monotonic()))
        self._has_more.clear()
        now = time.monotonic()
        # Those whose turn it is soon have it now, and are together from now on.
        due = [each for each in waiting if each.look_at <= now + each.pause / 2]
        alive = process_group.living({each.group: each.member for each in due})
        over: set[_Waiting] = set()
        for each in due:
            each.has_ended = each.group not in alive
            if each.has_ended or each.until <= now:
                over.add(each)
            else:
                each.member = alive[each.group]
                each.pause = min(2 * each.pause, LONGEST_PAUSE)
                each.look_at = min(now + each.pause, each.until)
        return over


_watcher: trio.lowlevel.RunVar[_Watcher] = trio.lowlevel.RunVar("trio_gokugen_watcher")


async def wait_for_end(group: int, seconds: float) -> bool:
    """Wait until all in a group have ended, and tell whether they have.

    Real seconds. To be called under a shield, as it need not be cancelled: it waits no
    longer than that.

    Raises:
      RuntimeError: there is no thread to wait in.
    """
    try:
        watcher = _watcher.get()
    except LookupError:
        watcher = _Watcher()
        _watcher.set(watcher)
    return await watcher.wait(group, seconds)
