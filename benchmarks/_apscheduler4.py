"""A rival's sides: APScheduler 4, memory data store, on Trio.

Set up in its favour. A job is added by the id of its task: adding it by its function
puts the task's `max_running_jobs` back to 1, each time. There is no limit there, as
`max_concurrent_jobs` is the limit: once a task has reached its own, all waiting jobs
are looked at whenever one ends. Executors of threads and processes are left out.
"""

from __future__ import annotations

from functools import partial

import trio
from apscheduler import AsyncScheduler
from apscheduler.executors.async_ import AsyncJobExecutor

from ._turns import Stopwatch, answer, serve, turns


def run_jobs(max_workers: int, count: int, *, stored_before: bool) -> None:
    async def run() -> float:
        left = count
        all_run = trio.Event()

        async def work() -> None:
            nonlocal left
            left -= 1
            if not left:
                all_run.set()

        async def add_jobs() -> None:
            for _ in range(count):
                await scheduler.add_job("work")

        scheduler = AsyncScheduler(
            max_concurrent_jobs=max_workers,
            job_executors={"async": AsyncJobExecutor()},
            cleanup_interval=None,
        )
        async with scheduler:
            await scheduler.configure_task("work", func=work, max_running_jobs=None)
            await (add_jobs() if stored_before else scheduler.start_in_background())
            with Stopwatch() as watch:
                await (scheduler.start_in_background() if stored_before else add_jobs())
                await all_run.wait()
                while await scheduler.get_jobs():
                    await trio.lowlevel.checkpoint()
        return watch.seconds

    for _ in turns():
        answer(trio.run(run))


if __name__ == "__main__":
    serve(
        {
            "stored": partial(run_jobs, stored_before=True),
            "added": partial(run_jobs, stored_before=False),
        }
    )
