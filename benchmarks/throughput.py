"""Due no-op tasks, from the start of the scheduler until the last one is recorded.

The tasks are in the repository beforehand, as after a restart. The start of the
scheduler, with its look for tasks to recover, is in the time, and so is `drain`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import trio

from trio_gokugen import (
    HeapRepository,
    Scheduler,
    Task,
    WorkerPoolDispatcher,
    WorkRegistry,
)

from ._measure import Row, Scale, Side, at_least, compare
from ._turns import Stopwatch, answer, serve, turns


async def noop() -> None:
    pass


def stored(max_workers: int, count: int) -> None:
    async def run() -> float:
        works = WorkRegistry()
        works.register("noop", noop)
        repository = HeapRepository()
        dispatcher = WorkerPoolDispatcher(works, max_workers)
        scheduler = Scheduler(works, repository, dispatcher)
        past = datetime.now(UTC) - timedelta(hours=1)
        await repository.add(
            [
                Task(
                    id=f"task-{number}",
                    work_id="noop",
                    scheduled_at=past + timedelta(microseconds=number),
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

        async def worker(token: object) -> None:
            await noop()
            limiter.release_on_behalf_of(token)

        with Stopwatch() as watch:
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    token = object()
                    await limiter.acquire_on_behalf_of(token)
                    nursery.start_soon(worker, token)
        return watch.seconds

    for _ in turns():
        answer(trio.run(run))


def measure(scale: Scale) -> Iterator[Row]:
    count = scale(20_000, quick=1_000)
    for max_workers in 10, 100:
        pair = compare(
            partial(Side, "throughput", "stored", max_workers, count),
            partial(Side, "throughput", "bare", max_workers, count),
            repeats=scale(15, quick=2),
        )
        yield at_least(
            0.6,
            f"due no-op tasks dispatched, run and recorded, {max_workers} workers",
            "bare trio: `CapacityLimiter`, `start_soon`",
            pair.speed,
        )


if __name__ == "__main__":
    serve({"stored": stored, "bare": bare})
