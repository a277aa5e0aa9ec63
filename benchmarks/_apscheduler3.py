"""A rival's sides: APScheduler 3, memory job store, on asyncio.

Run by an interpreter of its own, as it cannot be installed beside APScheduler 4. It has
no limit of how many jobs run at a time. Set up in its favour: without a
`misfire_grace_time`, it would skip every job that is more than a second late.
"""

from __future__ import annotations

import asyncio
from datetime import UTC
from functools import partial

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from ._turns import Stopwatch, answer, serve, turns


def run_jobs(count: int, *, stored_before: bool) -> None:
    async def run() -> float:
        left = count
        all_run = asyncio.Event()

        async def work() -> None:
            nonlocal left
            left -= 1
            if not left:
                all_run.set()

        def add_jobs() -> None:
            for _ in range(count):
                scheduler.add_job(work)

        scheduler = AsyncIOScheduler(
            timezone=UTC, job_defaults={"misfire_grace_time": None}
        )
        # What is added to one that was never started is stored only by its start.
        scheduler.start(paused=stored_before)
        if stored_before:
            add_jobs()
        with Stopwatch() as watch:
            if stored_before:
                scheduler.resume()
            else:
                add_jobs()
            await all_run.wait()
            await asyncio.sleep(0)  # for the last job's end to be noted
        assert not scheduler.get_jobs()
        scheduler.shutdown()
        await asyncio.sleep(0)
        return watch.seconds

    for _ in turns():
        answer(asyncio.run(run()))


if __name__ == "__main__":
    serve(
        {
            "stored": partial(run_jobs, stored_before=True),
            "added": partial(run_jobs, stored_before=False),
        }
    )
