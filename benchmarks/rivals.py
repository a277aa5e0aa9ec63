"""Due no-op tasks, against other schedulers that keep them in memory.

Once with the tasks stored beforehand, as in `throughput`. And once their whole life:
while the scheduler runs, one loop adds them one by one, each due at once, both sides by
the call that they have for one task. Either way the time ends when the last task has
been run and recorded. Not to be judged, the whole life with our tasks added by one call:
the rivals have none for many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

import trio

from trio_gokugen import (
    HeapRepository,
    Scheduler,
    TaskParam,
    WorkerPoolDispatcher,
    WorkRegistry,
)

from ._measure import Row, Scale, Side, at_least, compare, unjudged
from ._turns import Stopwatch, answer, serve, turns

APSCHEDULER_4 = "4.0.0a6"


def added(max_workers: int, count: int, *, in_one_call: bool) -> None:
    async def run() -> float:
        left = count
        all_run = trio.Event()
        works = WorkRegistry()

        @works.register
        async def work() -> None:
            nonlocal left
            left -= 1
            if not left:
                all_run.set()

        dispatcher = WorkerPoolDispatcher(works, max_workers)
        scheduler = Scheduler(works, HeapRepository(), dispatcher)
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            with Stopwatch() as watch:
                if in_one_call:
                    now = datetime.now(UTC)
                    await scheduler.add_tasks(
                        TaskParam(work_id="work", scheduled_at=now) for _ in range(count)
                    )
                else:
                    for _ in range(count):
                        await scheduler.add_task("work", after=0)
                await all_run.wait()
                await scheduler.drain()
            nursery.cancel_scope.cancel()
        return watch.seconds

    for _ in turns():
        answer(trio.run(run))


def measure_4(scale: Scale) -> Iterator[Row]:
    against = f"APScheduler {APSCHEDULER_4}, memory store, on trio, `add_job`"
    if _apscheduler() != APSCHEDULER_4:
        yield Row("due no-op tasks", against, "is not installed")
        return
    yield from _measure(
        scale, 4, against, lambda name, *numbers: Side("_apscheduler4", name, *numbers)
    )


def measure_3(scale: Scale) -> Iterator[Row]:
    against = "APScheduler 3.11, memory job store, asyncio, `add_job`"
    given = os.environ.get("APSCHEDULER3_PYTHON")
    if given is None:
        yield Row("due no-op tasks", against, "no `APSCHEDULER3_PYTHON` is given")
        return
    # Not resolved: the link is what tells Python its environment.
    python = str(Path(given).absolute())
    yield from _measure(
        scale,
        1,
        against,
        lambda name, _, count: Side("_apscheduler3", name, count, python=python),
    )


def _measure(
    scale: Scale, bound: float, against: str, rival: Callable[[str, int, int], Side]
) -> Iterator[Row]:
    count = scale(4_000, quick=200)
    for max_workers in 10, 100:
        ways = (
            ("stored beforehand", "throughput", "stored", "stored"),
            ("one `add_task` each included", "rivals", "added", "added"),
            ("one `add_tasks` included", "rivals", "added_in_one_call", "added"),
        )
        for what, module, ours, theirs in ways:
            pair = compare(
                partial(Side, module, ours, max_workers, count),
                partial(rival, theirs, max_workers, count),
                repeats=scale(9, quick=1),
            )
            row = f"due no-op tasks, {what}, {max_workers} workers"
            if ours == "added_in_one_call":
                yield unjudged(row, against, pair.speed)
            else:
                yield at_least(bound, row, against, pair.speed)


def _apscheduler() -> str | None:
    try:
        return metadata.version("apscheduler")
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    serve(
        {
            "added": partial(added, in_one_call=False),
            "added_in_one_call": partial(added, in_one_call=True),
        }
    )
