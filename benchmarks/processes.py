"""A CPU-bound function of a millisecond in two processes, against bare trio-parallel.

The processes have been started before, and have run the function once. Our tasks are in
the repository by then, and fall due all at once; a turn ends when all are recorded.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import trio
import trio_parallel  # type: ignore[import-untyped]

from trio_gokugen import TaskParam, WorkerPoolDispatcher, WorkRegistry, open_scheduler

from ._measure import Row, Scale, Side, at_least, compare
from ._turns import Stopwatch, answer, serve, turns

PROCESSES = 2


def busy() -> None:
    """Take a millisecond of a processor's time."""
    end = time.process_time() + 0.001
    while time.process_time() < end:
        pass


def warm_up() -> None:
    """Keep the process until the other one is there, too."""
    time.sleep(1)


def in_processes(count: int) -> None:
    works = WorkRegistry()
    works.register("busy", busy, process=True)
    works.register("warm_up", warm_up, process=True)

    async def run() -> float:
        dispatcher = WorkerPoolDispatcher(works, max_processes=PROCESSES)
        async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
            for _ in range(PROCESSES):
                await scheduler.add_task("warm_up", after=0)
            await scheduler.drain()
            due = datetime.now(UTC) + timedelta(seconds=2)
            await scheduler.add_tasks(
                [TaskParam(work_id="busy", scheduled_at=due) for _ in range(count)]
            )
            await trio.sleep((due - datetime.now(UTC)).total_seconds())
            with Stopwatch() as watch:
                await scheduler.drain()
            assert scheduler.statistics().done == count + PROCESSES
        return watch.seconds

    for _ in turns():
        answer(trio.run(run))


def bare(count: int) -> None:
    async def run() -> float:
        limiter = trio.CapacityLimiter(PROCESSES)
        async with trio_parallel.open_worker_context() as context:
            call = partial(context.run_sync, kill_on_cancel=True, limiter=limiter)
            async with trio.open_nursery() as nursery:
                for _ in range(PROCESSES):
                    nursery.start_soon(call, warm_up)
            with Stopwatch() as watch:
                async with trio.open_nursery() as nursery:
                    for _ in range(count):
                        nursery.start_soon(call, busy)
        return watch.seconds

    for _ in turns():
        answer(trio.run(run))


def measure(scale: Scale) -> Iterator[Row]:
    count = scale(2_000, quick=20)
    pair = compare(
        partial(Side, "processes", "in_processes", count),
        partial(Side, "processes", "bare", count),
        repeats=scale(9, quick=2),
    )
    yield at_least(
        0.8,
        f"{count:,} times a CPU-bound function of 1 ms, {PROCESSES} processes",
        "bare trio-parallel",
        pair.speed,
    )


if __name__ == "__main__":
    serve({"in_processes": in_processes, "bare": bare})
