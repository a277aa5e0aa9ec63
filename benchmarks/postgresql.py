"""Due no-op tasks in PostgreSQL, claimed, run and recorded by a hundred workers a process.

All sides have the same server, with its defaults, and each a database of its own, emptied
for each turn. The tasks are stored beforehand, and the tables vacuumed and analyzed, on
all sides alike. The time begins with the start of the first scheduler, or worker, and ends
when the last task is recorded. The bare side does the same in one thread: in groups of a
hundred it records the last and claims the next in one transaction, with the statements
that the library sends, as it sends them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import trio
from psycopg.types.json import Json

from trio_gokugen import open_scheduler
from trio_gokugen.sql import open_sql_repository

from ._databases import (
    COLUMNS,
    DATABASE,
    Texts,
    count_in,
    execute,
    make_tables,
    new_database,
    server,
)
from ._measure import Row, Scale, Side, at_least, compare
from ._turns import Stopwatch, answer, serve, turns
from .sqlite import GROUP, installed, noop, noop_works

LEASE = timedelta(seconds=30)
ENDED = "SELECT count(*) FROM gokugen_task WHERE state = 'done'"


def new_row(task_id: str, moment: datetime) -> dict[str, Any]:
    """A new task, as a parameter of `Texts.add`."""
    return {
        **dict.fromkeys(COLUMNS),
        "id": task_id,
        "work_id": "noop",
        "pool": "",
        "state": "scheduled",
        "scheduled_at": moment,
        "priority": 0,
        "created_at": moment,
        "param": Json({}),
        "meta": Json({}),
        "attempt": 0,
        "interruptions": 0,
        "at_most_once": 0,
    }


def store(url: str, texts: Texts, count: int) -> None:
    """Have these tasks, and no others, in the database, all of them due."""
    now = datetime.now(UTC)
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("TRUNCATE gokugen_task RESTART IDENTITY")
        rows = [new_row(f"{number:036}", now) for number in range(count)]
        cursor.executemany(texts.add.text.encode(), rows)
    execute(url, "VACUUM ANALYZE gokugen_task")


def check(url: str, count: int) -> None:
    assert count_in(url, ENDED) == count


def ours(processes: int, count: int) -> None:
    url = new_database()
    texts = Texts(make_tables(url))
    os.environ[DATABASE] = url
    with ExitStack() as stack:
        sides = [
            stack.enter_context(Side("postgresql", "process")) for _ in range(processes)
        ]
        for _ in turns():
            store(url, texts, count)
            for side in sides:
                side.tell()
            times = [side.hear() for side in sides]
            check(url, count)
            answer(max(end for _, end in times) - min(start for start, _ in times))


def process() -> None:
    """One process of ours: tells when it began and ended, on the machine's clock."""

    async def run() -> None:
        url = os.environ[DATABASE]
        async with open_sql_repository(url) as repository:
            for _ in turns():
                with Stopwatch() as watch:
                    async with open_scheduler(
                        noop_works(), repository, max_workers=GROUP
                    ) as scheduler:
                        await scheduler.drain()
                        end = time.perf_counter()
                answer((watch.start, end))

    trio.run(run)


def bare(count: int) -> None:
    url = new_database()
    texts = Texts(make_tables(url))
    with psycopg.connect(url) as connection:
        for _ in turns():
            store(url, texts, count)
            with Stopwatch() as watch:
                bare_runs(connection, texts)
            check(url, count)
            answer(watch.seconds)


def bare_runs(connection: psycopg.Connection[Any], texts: Texts) -> None:
    run: list[Sequence[Any]] = []
    with connection.cursor() as cursor:
        while True:
            bare_record(cursor, texts, run)
            run = bare_claim(cursor, texts)
            connection.commit()
            if not run:
                return
            for _ in run:
                noop()


def bare_claim(cursor: psycopg.Cursor[Any], texts: Texts) -> list[Sequence[Any]]:
    how = texts.claim.with_(
        named="",
        work="noop",
        at=datetime.now(UTC),
        limit=GROUP,
        once=[],
        name="bare",
        lease=LEASE,
    )
    return cursor.execute(texts.claim.text.encode(), how).fetchall()


def bare_record(
    cursor: psycopg.Cursor[Any], texts: Texts, run: Sequence[Sequence[Any]]
) -> None:
    if not run:
        return
    now = datetime.now(UTC)
    done = texts.end_runs.with_(
        ids=[row[2] for row in run],
        run_attempt=1,
        name="bare",
        more=0,
        state="done",
        done_at=now,
        ended_at=now,
    )
    cursor.execute(texts.end_runs.text.encode(), done)
    assert len(cursor.fetchall()) == len(run)


def measure(scale: Scale) -> Iterator[Row]:
    count = scale(5_000, quick=300)
    repeats = scale(11, quick=1)
    with server():
        pair = compare(
            partial(Side, "postgresql", "ours", 1, count),
            partial(Side, "postgresql", "bare", count),
            repeats,
        )
        against = "bare `psycopg`, 1 thread, groups of 100"
        yield at_least(0.25, runs(1), against, pair.speed)
        pair = compare(
            partial(Side, "postgresql", "ours", 2, count),
            partial(Side, "postgresql", "ours", 1, count),
            repeats,
        )
        yield at_least(1.5, runs(2), "1 process", pair.speed)


def measure_procrastinate(scale: Scale) -> Iterator[Row]:
    version = installed("procrastinate")
    against = f"procrastinate {version}, 100 at a time"
    if version is None:
        yield Row(runs(1), against, "is not installed")
        return
    yield rival(scale, 10, against, scale(1_000, quick=200), "_procrastinate")


def measure_pgqueuer(scale: Scale) -> Iterator[Row]:
    version = installed("pgqueuer")
    against = f"PgQueuer {version}, batches of 100, asyncpg, uvloop"
    if version is None:
        yield Row(runs(1), against, "is not installed")
        return
    yield rival(scale, 1, against, scale(5_000, quick=300), "_pgqueuer")


def rival(scale: Scale, bound: float, against: str, count: int, module: str) -> Row:
    with server():
        pair = compare(
            partial(Side, "postgresql", "ours", 1, count),
            partial(Side, module, "stored", count),
            repeats=scale(9, quick=1),
        )
    return at_least(bound, runs(1), against, pair.speed)


def runs(processes: int) -> str:
    by = "1 process" if processes == 1 else f"{processes} processes"
    return f"PostgreSQL: due no-op tasks claimed, run and recorded by {by}"


if __name__ == "__main__":
    sides: dict[str, Callable[..., None]] = {
        "ours": ours,
        "process": process,
        "bare": bare,
    }
    serve(sides)
