"""From a commit in another process to the start of the work here, on PostgreSQL.

The other process commits a transaction of its own that adds a task which is due; here a
scheduler sleeps. Against one that commits the same row by bare psycopg, with a
notification, to a Trio task that waits for nothing else. Each turn gives the median of
many. Measured from the call of `commit`, which is judged, and from its return: then
without the writing of the other side's commit, which both have, but with that of the
claim, which only ours has.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import count

import psycopg
import trio
from sqlalchemy import create_engine

from trio_gokugen import WorkRegistry, open_scheduler
from trio_gokugen.sql import open_sql_repository

from ._databases import DATABASE, Texts, make_tables, new_database, server
from ._measure import Row, Scale, Side, at_most, compare, unjudged
from ._turns import answer, serve, turns
from .postgresql import new_row

PAUSE = 0.02
"""Seconds, so that all is asleep again."""


async def time_them(
    times: int, since: int, committer: Side, noticed: Callable[[], Awaitable[float]]
) -> float:
    """The median of so many times from a commit until it is noticed."""
    seconds: list[float] = []
    for _ in range(times):
        await trio.sleep(PAUSE)
        committer.tell()
        end = await noticed()
        seconds.append(end - committer.hear()[since])
    return statistics.median(seconds)


def ours(times: int, since: int) -> None:
    async def run() -> None:
        url = os.environ[DATABASE] = new_database()
        works = WorkRegistry()
        send, receive = trio.open_memory_channel[float](1)

        @works.register
        async def noop() -> None:
            send.send_nowait(time.perf_counter())

        async with (
            open_sql_repository(url) as repository,
            open_scheduler(works, repository) as scheduler,
        ):
            with Side("notified", "committer") as committer:
                for _ in turns():
                    median = await time_them(times, since, committer, receive.receive)
                    await scheduler.drain()
                    answer(median)

    trio.run(run)


def committer() -> None:
    async def run() -> None:
        url = os.environ[DATABASE]
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
        async with open_sql_repository(url) as repository:
            for _ in turns():
                with engine.connect() as connection:
                    repository.add_task_in(connection, "noop", after=0)
                    start = time.perf_counter()
                    connection.commit()
                    end = time.perf_counter()
                answer((start, end))

    trio.run(run)


def bare(times: int, since: int) -> None:
    async def run() -> None:
        url = os.environ[DATABASE] = new_database()
        make_tables(url)
        with (
            psycopg.connect(url, autocommit=True) as connection,
            Side("notified", "bare_committer") as committer,
        ):
            connection.execute("LISTEN bare")

            async def notified() -> float:
                while not list(connection.notifies(timeout=0)):
                    await trio.lowlevel.wait_readable(connection.fileno())
                return time.perf_counter()

            for _ in turns():
                answer(await time_them(times, since, committer, notified))

    trio.run(run)


def bare_committer() -> None:
    url = os.environ[DATABASE]
    texts = Texts(make_tables(url))
    numbers = count()
    with psycopg.connect(url) as connection:
        for _ in turns():
            row = new_row(f"{next(numbers):036}", datetime.now(UTC))
            connection.execute(texts.add.text.encode(), row)
            connection.execute("SELECT pg_notify('bare', '')")
            start = time.perf_counter()
            connection.commit()
            end = time.perf_counter()
            answer((start, end))


def measure(scale: Scale) -> Iterator[Row]:
    times = scale(100, quick=10)
    against = "bare `psycopg` notification to a Trio task"
    with server():
        for since, from_ in enumerate(("the call of `commit`", "the return of `commit`")):
            pair = compare(
                partial(Side, "notified", "ours", times, since),
                partial(Side, "notified", "bare", times, since),
                repeats=scale(7, quick=1),
            )
            what = f"PostgreSQL: from {from_} elsewhere to the start of the work, p50"
            if since:
                yield unjudged(what, against, pair.cost)
            else:
                yield at_most(3, what, against, pair.cost)


if __name__ == "__main__":
    sides: dict[str, Callable[..., None]] = {
        "ours": ours,
        "committer": committer,
        "bare": bare,
        "bare_committer": bare_committer,
    }
    serve(sides)
