"""What a pending task takes in memory, in fresh processes.

Counted by tracemalloc: what Python has allocated. For a cross-check, not judged, by how
much the process has grown, where the system tells.

On both sides a task has an id, two moments and a `param` with one entry, all its own.
Ours come by `add_task`, into a scheduler that runs; theirs are put into a list that
`heapq` keeps, and nothing more: no dict to find them by id.
"""

from __future__ import annotations

import gc
import heapq
import os
import tracemalloc
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice
from pathlib import Path

import trio

from trio_gokugen import HeapRepository, Scheduler, WorkerPoolDispatcher, WorkRegistry

from ._measure import Pair, Row, Scale, Side, ask_once, at_most, unjudged
from ._pending import PlainTask, moments, tomorrow
from ._turns import answer, serve, turns

STATUS = Path("/proc/self/statm")

NUMBERS = 1_000_000
"""The tasks' params hold numbers beyond this one: small ones Python keeps anyway."""


class Scales:
    """Weighs what is allocated between two looks."""

    def __init__(self, *, traced: bool) -> None:
        gc.collect()
        self._traced = traced
        if traced:
            tracemalloc.start()
        self._before = self._now()

    def weight(self) -> int:
        gc.collect()
        return self._now() - self._before

    def _now(self) -> int:
        if self._traced:
            return tracemalloc.get_traced_memory()[0]
        pages = int(STATUS.read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


async def work(order: int) -> None:
    pass


def ours(pending: int, traced: int) -> None:
    async def run() -> float:
        works = WorkRegistry()
        works.register("work", work)
        dispatcher = WorkerPoolDispatcher(works)
        scheduler = Scheduler(works, HeapRepository(), dispatcher)
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            scales = Scales(traced=bool(traced))
            numbers = count(NUMBERS)
            for moment in islice(moments(1, tomorrow()), pending):
                await scheduler.add_task("work", {"order": next(numbers)}, at=moment)
            weight = scales.weight()
            nursery.cancel_scope.cancel()
        return weight / pending

    for _ in turns():
        answer(trio.run(run))


def bare(pending: int, traced: int) -> None:
    for _ in turns():
        heap: list[tuple[datetime, int, int, PlainTask]] = []
        scales = Scales(traced=bool(traced))
        numbers = count(NUMBERS)
        for moment in islice(moments(1, tomorrow()), pending):
            number = next(numbers)
            plain = PlainTask(
                id=str(uuid.uuid4()),
                work_id="work",
                scheduled_at=moment,
                created_at=datetime.now(UTC),
                param={"order": number},
            )
            heapq.heappush(heap, (moment, 0, number, plain))
        answer(scales.weight() / pending)


def measure(scale: Scale) -> Iterator[Row]:
    pending = scale(50_000, quick=2_000)
    what = f"memory per pending task, {pending:,} of them"
    against = "bare attrs slots object and heap entry"

    def weigh(traced: int) -> Pair:
        sides = (
            partial(Side, "memory", each, pending, traced) for each in ("ours", "bare")
        )
        return Pair(*([ask_once(side)] for side in sides))

    yield at_most(2, f"{what}, as allocated", against, weigh(1).cost)
    if STATUS.exists():
        yield unjudged(f"{what}, as the process grows", against, weigh(0).cost)


if __name__ == "__main__":
    serve({"ours": ours, "bare": bare})
