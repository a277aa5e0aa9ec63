"""What a scheduler does while all that is pending is far ahead: nothing.

A wake-up is the end of a wait of Trio's loop, if it was to last. The one that ends a bare
`trio.sleep` of the same length does not count. The clock is to be read again every 30 s
(the default), which is longer than the measurement, or every 2 s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import attrs
import trio
import trio.testing

from trio_gokugen import (
    HeapRepository,
    Scheduler,
    SystemClock,
    WorkerPoolDispatcher,
    WorkRegistry,
)

from ._measure import Row, Scale, Side, ask_once, note
from ._pending import fill, tomorrow
from ._turns import answer, serve, turns

NEGLIGIBLE = 0.001
"""As a share of one processor."""


async def work() -> None:
    pass


@attrs.define(eq=False)
class WakeUps(trio.abc.Instrument):
    """Counts how often the process was woken."""

    number: int = 0

    def after_io_wait(self, timeout: float) -> None:
        # Without a timeout Trio had more to do: it has only looked at its sockets.
        self.number += timeout > 0


async def watch(seconds: float) -> tuple[int, float]:
    """Wake-ups, and seconds of processor time, while nothing is done but sleep."""
    await trio.testing.wait_all_tasks_blocked()
    wake_ups = WakeUps()
    trio.lowlevel.add_instrument(wake_ups)
    start = time.process_time()
    await trio.sleep(seconds)
    used = time.process_time() - start
    trio.lowlevel.remove_instrument(wake_ups)
    return wake_ups.number, used


def ours(milliseconds: int, pending: int, max_sleep: int) -> None:
    async def run() -> tuple[int, float]:
        works = WorkRegistry()
        works.register("work", work)
        repository = HeapRepository()
        await fill(repository, pending, tomorrow())
        clock = SystemClock(max_sleep / 1000)
        dispatcher = WorkerPoolDispatcher(works)
        scheduler = Scheduler(works, repository, dispatcher, clock=clock)
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            seen = await watch(milliseconds / 1000)
            nursery.cancel_scope.cancel()
        return seen

    for _ in turns():
        answer(trio.run(run))


def bare(milliseconds: int) -> None:
    for _ in turns():
        answer(trio.run(watch, milliseconds / 1000))


def measure(scale: Scale) -> Iterator[Row]:
    pending = scale(100_000, quick=1_000)
    length = scale(10_000, quick=500)
    bare_wake_ups, bare_used = ask_once(partial(Side, "idle", "bare", length))
    note(f"idle bare: {bare_wake_ups}, {bare_used:.3g}")
    for max_sleep in 30_000, 2_000:
        our_wake_ups, our_used = ask_once(
            partial(Side, "idle", "ours", length, pending, max_sleep)
        )
        note(f"idle ours {max_sleep}: {our_wake_ups}, {our_used:.3g}")
        what = (
            f"idle for {length / 1000:g} s with {pending:,} pending far ahead,"
            f" clock read every {max_sleep / 1000:g} s"
        )
        wake_ups = our_wake_ups - bare_wake_ups
        allowed = length // max_sleep
        yield Row(
            f"{what}: wake-ups",
            "capped re-checks",
            f"{wake_ups} / {allowed}",
            f"<= {allowed}",
            wake_ups <= allowed,
        )
        share = (our_used - bare_used) / (length / 1000)
        yield Row(
            f"{what}: processor",
            "bare `trio.sleep`",
            f"{share:+.3%} of one",
            f"<= {NEGLIGIBLE:.1%}",
            share <= NEGLIGIBLE,
        )


if __name__ == "__main__":
    serve({"ours": ours, "bare": bare})
