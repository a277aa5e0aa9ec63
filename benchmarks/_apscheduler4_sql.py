"""A rival's side: APScheduler 4, SQLAlchemy data store on a SQLite file, on asyncio.

Set up as in `_apscheduler4`, and the file with the settings of ours. The engine is
`aiosqlite`: a synchronous one was tried, and was slower. Whether all is recorded is seen
in the file, as the scheduler's own `get_jobs` fails with that engine now and then.
"""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

from apscheduler import AsyncScheduler
from apscheduler.datastores.sqlalchemy import SQLAlchemyDataStore
from apscheduler.executors.async_ import AsyncJobExecutor
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from ._databases import new_file, settle
from ._turns import Stopwatch, answer, serve, turns

WORKERS = 100
LEFT = "SELECT count(*) FROM jobs"


def added(count: int) -> None:
    async def run(path: Path) -> float:
        left = count
        all_run = asyncio.Event()

        async def work() -> None:
            nonlocal left
            left -= 1
            if not left:
                all_run.set()

        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")

        @event.listens_for(engine.sync_engine, "connect")
        def connected(connection: sqlite3.Connection, _: object) -> None:
            settle(connection, "full")

        scheduler = AsyncScheduler(
            SQLAlchemyDataStore(engine),
            max_concurrent_jobs=WORKERS,
            job_executors={"async": AsyncJobExecutor()},
            cleanup_interval=None,
        )
        async with scheduler:
            await scheduler.configure_task("work", func=work, max_running_jobs=None)
            await scheduler.start_in_background()
            file = sqlite3.connect(path)
            with Stopwatch() as watch:
                for _ in range(count):
                    await scheduler.add_job("work")
                await all_run.wait()
                while file.execute(LEFT).fetchone() != (0,):  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(0.001)
            file.close()
        await engine.dispose()
        return watch.seconds

    for _ in turns():
        with new_file() as path:
            answer(asyncio.run(run(path)))


if __name__ == "__main__":
    serve({"added": added})
