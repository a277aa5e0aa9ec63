"""Many schedules that are due at the same moment, and as many plain tasks.

They are in the repository beforehand. A turn ends when all have run once, and are
recorded: of the schedules each has its next occurrence pending by then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import trio

from trio_gokugen import (
    HeapRepository,
    Interval,
    Schedule,
    Scheduler,
    Task,
    WorkerPoolDispatcher,
    WorkRegistry,
)
from trio_gokugen.abc import PutSchedule

from ._measure import Row, Scale, Side, at_least, compare
from ._turns import Stopwatch, answer, serve, turns

HOUR = timedelta(hours=1)


async def noop() -> None:
    pass


async def add_tasks(repository: HeapRepository, due: datetime, count: int) -> None:
    await repository.add(
        [
            Task(id=f"task-{number}", work_id="noop", scheduled_at=due, created_at=due)
            for number in range(count)
        ]
    )


async def add_schedules(repository: HeapRepository, due: datetime, count: int) -> None:
    for number in range(count):
        schedule = Schedule(
            id=f"schedule-{number}",
            trigger=Interval(HOUR, anchor=due),
            work_id="noop",
            created_at=due,
        )
        await repository.change_schedule(PutSchedule(schedule, due - HOUR))


async def run_all(
    add: Callable[[HeapRepository, datetime, int], Awaitable[None]],
    max_workers: int,
    count: int,
) -> float:
    works = WorkRegistry()
    works.register("noop", noop)
    repository = HeapRepository(keep_ended=count)
    scheduler = Scheduler(works, repository, WorkerPoolDispatcher(works, max_workers))
    await add(repository, datetime.now(UTC) - timedelta(minutes=1), count)
    async with trio.open_nursery() as nursery:
        with Stopwatch() as watch:
            await nursery.start(scheduler.run)
            while scheduler.statistics().done < count:  # noqa: ASYNC110 (costs no more)
                await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    return watch.seconds


def plain(max_workers: int, count: int) -> None:
    for _ in turns():
        answer(trio.run(run_all, add_tasks, max_workers, count))


def scheduled(max_workers: int, count: int) -> None:
    for _ in turns():
        answer(trio.run(run_all, add_schedules, max_workers, count))


def measure(scale: Scale) -> Iterator[Row]:
    count = scale(10_000, quick=100)
    for max_workers in 10, 100:
        pair = compare(
            partial(Side, "schedules", "scheduled", max_workers, count),
            partial(Side, "schedules", "plain", max_workers, count),
            repeats=scale(9, quick=2),
        )
        yield at_least(
            0.6,
            f"{count:,} schedules due in the same second, {max_workers} workers",
            "as many plain tasks",
            pair.speed,
        )


if __name__ == "__main__":
    serve({"plain": plain, "scheduled": scheduled})
