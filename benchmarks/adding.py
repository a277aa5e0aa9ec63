"""`add_task` while many tasks are pending, and while few are.

The tasks are pending for moments of a year to come, and so are those that are added:
the timer sleeps, and is reset by the few that come before all others. After a hundred
the added ones are cancelled, outside the time, so that the number stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from itertools import islice

import trio

from trio_gokugen import HeapRepository, Scheduler, WorkerPoolDispatcher, WorkRegistry

from ._measure import Row, Scale, Side, at_most, compare
from ._pending import fill, moments, tomorrow
from ._turns import answer, serve, turns

HUNDRED = 100


async def work() -> None:
    pass


def add_into(pending: int, hundreds: int) -> None:
    async def run() -> None:
        works = WorkRegistry()
        works.register("work", work)
        repository = HeapRepository()
        since = tomorrow()
        await fill(repository, pending, since)
        scheduler = Scheduler(works, repository, WorkerPoolDispatcher(works))
        some = moments(2, since)
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            for _ in turns():
                seconds = 0.0
                for _ in range(hundreds):
                    to_come = list(islice(some, HUNDRED))
                    start = time.perf_counter()
                    tasks = [
                        await scheduler.add_task("work", at=moment) for moment in to_come
                    ]
                    seconds += time.perf_counter() - start
                    for task in tasks:
                        await scheduler.cancel(task.id)
                answer(seconds)
            nursery.cancel_scope.cancel()

    trio.run(run)


def measure(scale: Scale) -> Iterator[Row]:
    many = scale(1_000_000, quick=10_000)
    hundreds = scale(20, quick=1)
    pair = compare(
        partial(Side, "adding", "add_into", many, hundreds),
        partial(Side, "adding", "add_into", 1_000, hundreds),
        repeats=scale(15, quick=2),
    )
    yield at_most(1.5, f"`add_task` into {many:,} pending", "into 1,000 pending", pair.cost)


if __name__ == "__main__":
    serve({"add_into": add_into})
