"""A scheduler among several on one database, in a process of its own.

Its arguments are the database's URL, its name, and a file to which it appends a line for
each run. It works until its standard input is closed, and outlives the database's end.
"""

from __future__ import annotations

import os
import sys

import trio

from trio_gokugen import BackoffHooks, WorkRegistry, current_task, open_scheduler
from trio_gokugen.sql import open_sql_repository

LEASE = 2.0
MAX_WORKERS = 50


async def main(url: str, name: str, log: str) -> None:
    works = WorkRegistry()
    file = os.open(log, os.O_WRONLY | os.O_APPEND)

    def note() -> None:
        task = current_task()
        # One call, so that lines of several processes don't mix.
        os.write(file, f"{task.id} {task.attempt} {name}\n".encode())

    @works.register("nothing")
    async def nothing() -> None:
        note()

    @works.register("hang")
    async def hang() -> None:
        """Keep whoever is the first to run it busy until it is killed."""
        note()
        if current_task().attempt == 1:
            await trio.sleep_forever()

    async with (
        open_sql_repository(url, name=name, lease=LEASE, poll=0.5) as repository,
        open_scheduler(
            works,
            repository,
            max_workers=MAX_WORKERS,
            hooks=BackoffHooks(longest=0.5),
        ),
    ):
        # Abandoned, if the scheduler fails: then this is to end, and to say why.
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
