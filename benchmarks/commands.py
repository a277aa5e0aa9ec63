"""`true`, many times, some at a time: as a command of due tasks, and by Trio alone.

The tasks are in the repository beforehand. The start of the scheduler is in the time, and
so is that every task is recorded. What a command writes is kept, in both cases read from a
pipe: of `true`, nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import trio

from trio_gokugen import (
    CommandRegistry,
    HeapRepository,
    Scheduler,
    Task,
    WorkerPoolDispatcher,
)

from ._measure import Row, Scale, Side, at_least, compare
from ._turns import Stopwatch, answer, serve, turns


def commands(max_workers: int, count: int) -> None:
    async def run() -> float:
        works = CommandRegistry({"true": {"argv": ["true"]}})
        repository = HeapRepository(keep_ended=count)
        dispatcher = WorkerPoolDispatcher(works, max_workers)
        scheduler = Scheduler(works, repository, dispatcher)
        past = datetime.now(UTC) - timedelta(hours=1)
        await repository.add(
            [
                Task(
                    id=f"task-{number}",
                    work_id="true",
                    scheduled_at=past,
                    created_at=past,
                )
                for number in range(count)
            ]
        )
        async with trio.open_nursery() as nursery:
            with Stopwatch() as watch:
                await nursery.start(scheduler.run)
                await scheduler.drain()
            assert scheduler.statistics().done == count
            nursery.cancel_scope.cancel()
        return watch.seconds

    for _ in turns():
        answer(trio.run(run))


def bare(max_workers: int, count: int) -> None:
    async def run() -> float:
        limiter = trio.CapacityLimiter(max_workers)

        async def one() -> None:
            async with limiter:
                await trio.run_process(["true"])

        with Stopwatch() as watch:
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(one)
        return watch.seconds

    for _ in turns():
        answer(trio.run(run))


def measure(scale: Scale) -> Iterator[Row]:
    max_workers, count = 8, scale(400, quick=20)
    pair = compare(
        partial(Side, "commands", "commands", max_workers, count),
        partial(Side, "commands", "bare", max_workers, count),
        repeats=scale(15, quick=2),
    )
    yield at_least(
        0.8,
        f"`true` as a command, {max_workers} at a time",
        "bare `trio.run_process`",
        pair.speed,
    )


if __name__ == "__main__":
    serve({"commands": commands, "bare": bare})
