"""Ids of tasks that are added in transactions of the user's own."""

from __future__ import annotations

import random
import time

import trio
from sqlalchemy import create_engine

from trio_gokugen._ids import IdMaker
from trio_gokugen.sql import open_sql_repository


class SlowRandom(random.Random):
    """Lets other threads go first."""

    def getrandbits(self, k: int, /) -> int:
        time.sleep(0.001)
        return 0


async def test_many_threads_add_tasks(sqlite_url: str) -> None:
    """
    Threads that add tasks at the same moment get an id for each.
    """
    ids: list[str] = []
    engine = create_engine(sqlite_url)
    async with open_sql_repository(sqlite_url) as repository:
        repository._make_id = IdMaker(SlowRandom())

        def add() -> None:
            with engine.connect() as connection:
                for _ in range(3):
                    task = repository.add_task_in(connection, "work", after=0)
                    ids.append(task.id)
                    connection.commit()

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(trio.to_thread.run_sync, add)
    engine.dispose()
    assert len(set(ids)) == 24
