"""How late works start, at one every millisecond, on the real clock.

How late is what the wall clock shows as the work begins, less the appointed time.
Against one Trio task that sleeps until such moments, one after the other. Each turn
gives the 99th percentile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import trio

from trio_gokugen import (
    HeapRepository,
    Scheduler,
    TaskParam,
    WorkerPoolDispatcher,
    WorkRegistry,
    current_task,
)

from ._measure import Row, Scale, Side, at_most, compare
from ._turns import answer, serve, turns

MILLISECOND = timedelta(milliseconds=1)


def p99(delays: Sequence[timedelta]) -> float:
    ordered = sorted(delays)
    return ordered[math.ceil(0.99 * len(ordered)) - 1].total_seconds()


def soon(count: int) -> list[datetime]:
    """One moment a millisecond, beginning when the tasks have been added."""
    start = datetime.now(UTC) + timedelta(seconds=0.2) + count * MILLISECOND / 10
    return [start + number * MILLISECOND for number in range(count)]


def ours(count: int) -> None:
    async def run() -> float:
        delays: list[timedelta] = []
        works = WorkRegistry()

        @works.register
        async def work() -> None:
            now = datetime.now(UTC)
            delays.append(now - current_task().scheduled_at)

        dispatcher = WorkerPoolDispatcher(works)
        scheduler = Scheduler(works, HeapRepository(), dispatcher)
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            moments = soon(count)
            await scheduler.add_tasks(
                [TaskParam(work_id="work", scheduled_at=moment) for moment in moments]
            )
            assert datetime.now(UTC) < moments[0]
            await scheduler.drain()
            nursery.cancel_scope.cancel()
        assert len(delays) == count
        return p99(delays)

    for _ in turns():
        answer(trio.run(run))


def bare(count: int) -> None:
    async def run() -> float:
        delays: list[timedelta] = []
        moments = soon(count)
        start = trio.current_time() - datetime.now(UTC).timestamp()
        for moment in moments:
            await trio.sleep_until(start + moment.timestamp())
            delays.append(datetime.now(UTC) - moment)
        return p99(delays)

    for _ in turns():
        answer(trio.run(run))


def measure(scale: Scale) -> Iterator[Row]:
    count = scale(2_000, quick=200)
    pair = compare(
        partial(Side, "lateness", "ours", count),
        partial(Side, "lateness", "bare", count),
        repeats=scale(11, quick=1),
    )
    yield at_most(
        1.5,
        "lateness p99 at 1,000 tasks a second",
        "`trio.sleep_until` in one task",
        pair.cost,
    )


if __name__ == "__main__":
    serve({"ours": ours, "bare": bare})
