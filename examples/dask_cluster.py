"""Work on a cluster: two Dask workers beside this process, each a process of its own.

    pip install "trio_gokugen[dask]"
    python examples/dask_cluster.py

A real cluster has an address, and this module installed on it; the rest is the same.
"""

import logging
import os
import signal
from tempfile import TemporaryDirectory
from typing import Any

import dask.config
import trio
from distributed import LocalCluster

from trio_gokugen import (
    PartialHooks,
    Retry,
    Task,
    WorkRegistry,
    current_task,
    fixed,
    open_scheduler,
    report_progress,
)
from trio_gokugen.abc import NoteProgress, Operation
from trio_gokugen.dask import open_dask_dispatcher

works = WorkRegistry()


@works.register(retain=True)
def count_primes(below: int) -> int:
    report_progress(0.5, "still counting")
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, below))


@works.register(retry=Retry(3, wait=fixed(0.1)), retain=True)
def fragile() -> str:
    if current_task().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # the worker, that is
    return "came through"


async def tell(operation: Operation, task: Task) -> None:
    if isinstance(operation, NoteProgress) and task.progress is not None:
        print(f"{task.id}: {task.progress.fraction:.0%}, {task.progress.note}")


async def main(cluster: Any) -> None:
    async with (
        # By the import path of the registry: the workers import it, too.
        open_dask_dispatcher(cluster, "dask_cluster:works") as dispatcher,
        open_scheduler(
            works, dispatcher=dispatcher, hooks=PartialHooks(on_update=tell)
        ) as scheduler,
    ):
        for below in (10_000, 20_000):
            await scheduler.add_task(
                "count_primes", {"below": below}, after=0, id=f"primes below {below}"
            )
        await scheduler.drain()
        await scheduler.add_task("fragile", after=0, id="fragile")
        await scheduler.drain()
        for task in await scheduler.find():
            print(f"{task.id}: {task.result}, at attempt {task.attempt}")
            for failed in task.errors:
                print(f"  attempt {failed.attempt}: {failed.err.partition(',')[0]}")


def start_cluster() -> Any:
    """Two workers with one thread each, which say nothing of their own."""
    return LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )


if __name__ == "__main__":
    # Dask keeps files of its own there, for the scheduler and the workers.
    with (
        TemporaryDirectory() as directory,
        dask.config.set(temporary_directory=directory),
        start_cluster() as cluster,
    ):
        trio.run(main, cluster)
