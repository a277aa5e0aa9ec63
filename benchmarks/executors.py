"""Works on executors: what a run in flight takes, and how many a cluster gets through.

On the cluster both sides do the same: 1,000 calls of a function that does nothing, with a
key of its own each, on two workers with one thread each, and all results fetched. The bare
side calls `client.submit` and `client.gather`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import distributed
import trio

from trio_gokugen import (
    ExecutorDispatcher,
    HeapRepository,
    Scheduler,
    TaskParam,
    WorkRegistry,
    open_scheduler,
)
from trio_gokugen.dask import open_dask_dispatcher

from ._measure import Ratios, Row, Scale, Side, ask_once, at_least, at_most, compare
from ._pending import tomorrow
from ._turns import Stopwatch, answer, serve, turns
from .memory import NUMBERS, Scales

WORKERS = 2
KIB = 1024

works = WorkRegistry()


@works.register
def nothing() -> None:
    pass


# -- in flight ----------------------------------------------------------------------


def in_flight(tasks: int) -> None:
    """Answers with bytes per task, from its addition on, and with how many threads more."""
    gate = threading.Event()
    waiting = WorkRegistry()

    @waiting.register
    def wait(order: int) -> None:  # noqa: ARG001 (as large a param as elsewhere)
        gate.wait()

    async def run(pool: ThreadPoolExecutor) -> tuple[float, int]:
        dispatcher = ExecutorDispatcher(waiting, pool, max_in_flight=tasks)
        scheduler = Scheduler(waiting, HeapRepository(), dispatcher)
        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            scales = Scales(traced=True)
            threads = threading.active_count()
            now = tomorrow().replace(year=2000)
            await scheduler.add_tasks(
                [
                    TaskParam(
                        work_id="wait", scheduled_at=now, param={"order": NUMBERS + n}
                    )
                    for n in range(tasks)
                ]
            )
            while scheduler.statistics().running < tasks:  # noqa: ASYNC110 (once only)
                await trio.sleep(0.01)
            weight = scales.weight()
            more = threading.active_count() - threads
            gate.set()
            await scheduler.drain()
            await scheduler.stop()
        return weight / tasks, more

    for _ in turns():
        with ThreadPoolExecutor(1) as pool:
            answer(trio.run(run, pool))


# -- on a cluster -------------------------------------------------------------------


@contextmanager
def cluster() -> Iterator[Any]:
    open_cluster: Any = distributed.LocalCluster
    with open_cluster(
        n_workers=WORKERS,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as opened:
        yield opened


def ours(tasks: int) -> None:
    async def run(opened: Any) -> None:
        async with (
            open_dask_dispatcher(opened, "benchmarks.executors:works") as dispatcher,
            open_scheduler(works, dispatcher=dispatcher) as scheduler,
        ):
            for _ in turns():
                now = tomorrow().replace(year=2000)
                params = [
                    TaskParam(work_id="nothing", scheduled_at=now) for _ in range(tasks)
                ]
                with Stopwatch() as watch:
                    await scheduler.add_tasks(params)
                    await scheduler.drain()
                answer(watch.seconds)

    with cluster() as opened:
        trio.run(run, opened)


def bare(tasks: int) -> None:
    open_client: Any = distributed.Client
    with cluster() as opened, open_client(opened) as client:
        for _ in turns():
            with Stopwatch() as watch:
                futures = [client.submit(nothing, pure=False) for _ in range(tasks)]
                client.gather(futures)
            answer(watch.seconds)
            del futures


def measure(scale: Scale) -> Iterator[Row]:
    tasks = scale(10_000, quick=1_000)
    weight, threads = ask_once(partial(Side, "executors", "in_flight", tasks))
    what = f"{tasks:,} tasks in flight on a pool of one thread"
    yield at_most(4, f"{what}, memory per task", "1 KiB", Ratios([weight / KIB]))
    yield at_most(1, f"{what}, threads beside Trio's", "the pool's one", Ratios([threads]))

    tasks = scale(1_000, quick=50)
    pair = compare(
        partial(Side, "executors", "ours", tasks),
        partial(Side, "executors", "bare", tasks),
        scale(5, quick=1),
    )
    what = f"no-op through Dask, {tasks:,} tasks, {WORKERS} workers"
    yield at_least(0.7, what, "client.submit, bare", pair.speed)


if __name__ == "__main__":
    serve({"in_flight": in_flight, "ours": ours, "bare": bare})
