"""Several pools against one, and a pool that starts on time beside a full one.

As many no-op tasks of four works, in four pools of 25 workers or in one of 100: they are
in the repository beforehand, and a turn ends when all are recorded.

Behind a full pool wait many tasks, or none; for another pool one task after the other
falls due. How late it is, is what the wall clock shows as its work begins, less the
appointed time. Each turn gives the median.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import trio

from trio_gokugen import (
    HeapRepository,
    Pool,
    PoolsDispatcher,
    Scheduler,
    Task,
    WorkerPoolDispatcher,
    WorkRegistry,
    current_task,
)
from trio_gokugen.abc import Dispatcher, TaskRepository
from trio_gokugen.sql import open_sql_repository

from ._databases import new_file, remove_files
from ._measure import Row, Scale, Side, at_least, at_most, compare
from ._turns import Stopwatch, answer, serve, turns

WORKS = [f"noop-{number}" for number in range(4)]
CHUNK = 10_000


async def noop() -> None:
    pass


async def run_all(dispatcher: Dispatcher, works: WorkRegistry, count: int) -> float:
    repository = HeapRepository(keep_ended=count)
    past = datetime.now(UTC) - timedelta(hours=1)
    await repository.add(
        [
            Task(
                id=f"task-{number}",
                work_id=WORKS[number % len(WORKS)],
                scheduled_at=past + timedelta(microseconds=number),
                created_at=past,
            )
            for number in range(count)
        ]
    )
    scheduler = Scheduler(works, repository, dispatcher)
    async with trio.open_nursery() as nursery:
        with Stopwatch() as watch:
            await nursery.start(scheduler.run)
            await scheduler.drain()
        assert scheduler.statistics().done == count
        nursery.cancel_scope.cancel()
    return watch.seconds


def noops() -> WorkRegistry:
    works = WorkRegistry()
    for name in WORKS:
        works.register(name, noop)
    return works


def four(count: int) -> None:
    works = noops()
    for _ in turns():
        pools = {name: Pool(25, works={name}) for name in WORKS}
        answer(trio.run(run_all, PoolsDispatcher(works, pools), works, count))


def one(count: int) -> None:
    works = noops()
    for _ in turns():
        answer(trio.run(run_all, WorkerPoolDispatcher(works, 100), works, count))


@asynccontextmanager
async def opened(path: str | None) -> AsyncGenerator[TaskRepository]:
    if path is None:
        yield HeapRepository()
        return
    async with open_sql_repository(f"sqlite:///{path}") as repository:
        yield repository


async def start_beside(path: str | None, waiting: int, count: int) -> None:
    works = WorkRegistry()
    late: list[float] = []

    @works.register
    async def for_ever() -> None:
        await trio.sleep(math.inf)

    @works.register
    async def note() -> None:
        late.append((datetime.now(UTC) - current_task().scheduled_at).total_seconds())

    dispatcher = PoolsDispatcher(
        works, {"full": Pool(10, works={"for_ever"}), "other": Pool(10, works={"note"})}
    )
    past = datetime.now(UTC) - timedelta(hours=1)
    async with opened(path) as repository:
        for begin in range(0, waiting + 10, CHUNK):
            await repository.add(
                [
                    Task(
                        id=f"task-{number}",
                        work_id="for_ever",
                        scheduled_at=past,
                        created_at=past,
                    )
                    for number in range(begin, min(begin + CHUNK, waiting + 10))
                ]
            )
        scheduler = Scheduler(works, repository, dispatcher)
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            while dispatcher.pools["full"].running < 10:  # noqa: ASYNC110 (before the time)
                await trio.sleep(0.01)
            for _ in turns():
                late.clear()
                for _ in range(count):
                    task = await scheduler.add_task("note", after=0.02)
                    await scheduler.wait(task.id)
                answer(statistics.median(late))
            nursery.cancel_scope.cancel()


def heap(waiting: int, count: int) -> None:
    trio.run(start_beside, None, waiting, count)


def sqlite(waiting: int, count: int) -> None:
    with new_file() as path:
        trio.run(start_beside, str(path), waiting, count)


def measure(scale: Scale) -> Iterator[Row]:
    count = scale(20_000, quick=1_000)
    pair = compare(
        partial(Side, "pools", "four", count),
        partial(Side, "pools", "one", count),
        repeats=scale(15, quick=2),
    )
    yield at_least(
        0.8,
        "due no-op tasks in 4 pools of 25 workers",
        "`WorkerPoolDispatcher` of 100",
        pair.speed,
    )
    waiting = scale(1_000_000, quick=20_000)
    for side, what in ("heap", "in memory"), ("sqlite", "SQLite, FULL"):
        with ExitStack() as stack:
            stack.callback(remove_files)
            pair = compare(
                partial(Side, "pools", side, waiting, scale(50, quick=3)),
                partial(Side, "pools", side, 0, scale(50, quick=3)),
                repeats=scale(9, quick=2),
            )
        yield at_most(
            2,
            f"{what}: lateness beside a full pool for which {waiting:,} tasks are due",
            "beside one for which none is",
            pair.cost,
        )


if __name__ == "__main__":
    serve({"four": four, "one": one, "heap": heap, "sqlite": sqlite})
