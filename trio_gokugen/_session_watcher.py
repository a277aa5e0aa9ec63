"""Waiting for what commands have started to end: one watcher for all of a Trio run.

There is no event for the end of a session, so it has to be looked for, again and again.
Each look is made in a thread, and serves all that are waiting: a hundred sessions, whose
members ignore that they are to end, take about as much as one, and Trio's loop is not held
up.

It is the thread that counts the time, too. Processes live in real time, whatever Trio's
clock shows.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Sequence

import attrs
import trio

from . import _process_session as process_session

SHORTEST_PAUSE, LONGEST_PAUSE = 0.001, 0.05
"""Seconds between two looks at the same session: each pause is twice the one before."""


@attrs.frozen
class Waited:
    """What has become of a session by the end of the wait."""

    has_ended: bool
    others: set[int]
    """The groups in it, besides that of its leader, that were sent signals."""


@attrs.define(eq=False)
class _Waiting:
    """A session that somebody waits for."""

    session: int
    until: float
    look_at: float
    signals: Sequence[signal.Signals] = ()
    """What its other groups are to be sent, when it is looked at first."""

    others: set[int] = attrs.field(factory=set[int], init=False)
    """Those groups."""

    member: int = attrs.field(init=False)
    """Who is looked at: the leader at first, whose number is the session's."""

    pause: float = attrs.field(default=SHORTEST_PAUSE / 2, init=False)
    has_ended: bool = attrs.field(default=False, init=False)
    failed: Exception | None = attrs.field(default=None, init=False)
    over: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self.member = self.session


@attrs.define(eq=False)
class _Watcher:
    _waiting: list[_Waiting] = attrs.field(factory=list[_Waiting], init=False)
    """If there are none, nobody watches."""

    _has_more: threading.Event = attrs.field(factory=threading.Event, init=False)

    # Whatever else the program has threads for must not keep this one waiting.
    _threads: trio.CapacityLimiter = attrs.field(
        factory=lambda: trio.CapacityLimiter(math.inf), init=False
    )

    async def wait(
        self, session: int, seconds: float, signals: Sequence[signal.Signals]
    ) -> Waited:
        now = time.monotonic()
        waiting = _Waiting(session, now + seconds, now, signals)
        if not self._waiting:
            trio.lowlevel.spawn_system_task(
                self._watch, name="trio_gokugen watcher of commands"
            )
        self._waiting.append(waiting)
        self._has_more.set()
        await waiting.over.wait()
        if waiting.failed is not None:
            raise RuntimeError(str(waiting.failed)) from waiting.failed
        return Waited(waiting.has_ended, waiting.others)

    async def _watch(self) -> None:
        # Who waits does so for a time only, and under a shield: even as a run ends.
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
        if unsent := {each.session: each.signals for each in due if each.signals}:
            others = process_session.send_to_others(unsent)
            for each in due:
                if each.session in others:  # else it is tried again
                    each.others |= others[each.session]
                    each.signals = ()
        alive = process_session.living({each.session: each.member for each in due})
        over: set[_Waiting] = set()
        for each in due:
            each.has_ended = each.session not in alive
            if each.has_ended or each.until <= now:
                over.add(each)
            else:
                each.member = alive[each.session]
                each.pause = min(2 * each.pause, LONGEST_PAUSE)
                each.look_at = min(now + each.pause, each.until)
        return over


_watcher: trio.lowlevel.RunVar[_Watcher] = trio.lowlevel.RunVar("trio_gokugen_watcher")


async def wait_for_end(
    leader: trio.Process, seconds: float, *signals: signal.Signals
) -> Waited:
    """Wait until all in a session have ended.

    Real seconds. To be called under a shield, as it need not be cancelled: it waits no
    longer than that.

    Args:
      leader: The process that leads it.
      seconds: The longest to wait.
      signals: What the groups besides the leader's are sent before.

    Raises:
      RuntimeError: there is no thread to wait in.
    """
    if process_session.has_gone(leader):
        return Waited(has_ended=True, others=set())
    try:
        watcher = _watcher.get()
    except LookupError:
        watcher = _Watcher()
        _watcher.set(watcher)
    return await watcher.wait(leader.pid, seconds, signals)
