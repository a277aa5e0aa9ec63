"""Whole lives of no-op tasks in a SQLite file, a new one each turn, on a real disk.

All are added, in one call and one transaction, while the scheduler runs; they are claimed,
run and recorded by a hundred workers. The time begins with the adding, and ends when the
last is recorded. The bare side does the same without a scheduler: it adds all by one
transaction, and then, in groups of a hundred, records the last group and claims the next
by another, with the statements that the library sends, as it sends them. The rivals have
no call to add many: they are asked for one after the other.

And `add_task` from a hundred callers at a time, of which each waits until its task is
kept, against one who adds as many.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import metadata
from typing import Literal

import trio

from trio_gokugen import TaskParam, WorkRegistry, open_scheduler
from trio_gokugen.sql import open_sql_repository

from ._databases import Texts, connect, make_tables, new_file
from ._measure import Row, Scale, Side, at_least, compare
from ._turns import Stopwatch, answer, serve, turns

GROUP = 100
LEASE = 30_000_000
ENDED = "SELECT count(*) FROM gokugen_task WHERE state = 'done'"

Synchronous = Literal["full", "normal"]


def noop_works() -> WorkRegistry:
    works = WorkRegistry()

    @works.register
    async def noop() -> None:
        pass

    return works


def ours(count: int, *, synchronous: Synchronous) -> None:
    async def run() -> float:
        with new_file() as path:
            url = f"sqlite:///{path}"
            async with (
                open_sql_repository(url, synchronous=synchronous) as repository,
                open_scheduler(noop_works(), repository, max_workers=GROUP) as scheduler,
            ):
                with Stopwatch() as watch:
                    now = datetime.now(UTC)
                    await scheduler.add_tasks(
                        TaskParam(work_id="noop", scheduled_at=now) for _ in range(count)
                    )
                    await scheduler.drain()
            connection = connect(path, synchronous)
            assert connection.execute(ENDED).fetchone() == (count,)
            connection.close()
        return watch.seconds

    for _ in turns():
        answer(trio.run(run))


def bare(count: int, *, synchronous: Synchronous) -> None:
    for _ in turns():
        with new_file() as path:
            texts = Texts(make_tables(f"sqlite:///{path}"))
            connection = connect(path, synchronous)
            with Stopwatch() as watch:
                bare_lives(connection, texts, count)
            assert connection.execute(ENDED).fetchone() == (count,)
            connection.close()
        answer(watch.seconds)


def noop() -> None:
    pass


def microseconds() -> int:
    return time.time_ns() // 1000


def bare_lives(connection: sqlite3.Connection, texts: Texts, count: int) -> None:
    now = microseconds()
    zeros = dict.fromkeys(("priority", "attempt", "interruptions", "at_most_once"), 0)
    common = {"work_id": "noop", "pool": "", "state": "scheduled", **zeros}
    common |= {"scheduled_at": now, "created_at": now, "param": "{}", "meta": "{}"}
    _, *rest = texts.add.with_(**common)  # but for the id
    new = [(f"{number:036}", *rest) for number in range(count)]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(texts.add.text, new)
    connection.execute("COMMIT")
    run: list[Sequence[object]] = []
    while True:
        connection.execute("BEGIN IMMEDIATE")
        bare_record(connection, texts, run)
        run = bare_claim(connection, texts)
        connection.execute("COMMIT")
        if not run:
            return
        for _ in run:
            noop()


def bare_claim(connection: sqlite3.Connection, texts: Texts) -> list[Sequence[object]]:
    now = microseconds()
    due = texts.claim.with_(named="", work="noop", at=now, limit=GROUP)
    rows = connection.execute(texts.claim.text, due).fetchall()
    if rows:
        numbers = json.dumps([row[0] for row in rows])
        claim = texts.claim_rows.with_(
            rows=numbers, once="[]", at=now, name="1", lease_until=now + LEASE
        )
        connection.execute(texts.claim_rows.text, claim)
    return rows


def bare_record(
    connection: sqlite3.Connection, texts: Texts, run: Sequence[Sequence[object]]
) -> None:
    if not run:
        return
    now = microseconds()
    done = texts.end_runs.with_(
        ids=json.dumps([row[2] for row in run]),
        run_attempt=1,
        name="1",
        more=0,
        state="done",
        done_at=now,
        ended_at=now,
    )
    assert len(connection.execute(texts.end_runs.text, done).fetchall()) == len(run)


def add(callers: int, count: int) -> None:
    """Each of the callers adds its share, one by one; none is due."""

    async def run() -> float:
        with new_file() as path:
            async with (
                open_sql_repository(f"sqlite:///{path}") as repository,
                open_scheduler(noop_works(), repository) as scheduler,
            ):
                moment = datetime.now(UTC) + timedelta(days=1)
                numbers = itertools.count()

                async def caller() -> None:
                    while next(numbers) < count:
                        await scheduler.add_task("noop", at=moment)

                with Stopwatch() as watch:
                    async with trio.open_nursery() as nursery:
                        for _ in range(callers):
                            nursery.start_soon(caller)
                assert await repository.count_pending() == {"noop": count}
        return watch.seconds

    for _ in turns():
        answer(trio.run(run))


def measure(scale: Scale) -> Iterator[Row]:
    count = scale(5_000, quick=300)
    pair = compare(
        partial(Side, "sqlite", "ours_full", count),
        partial(Side, "sqlite", "bare_full", count),
        repeats=scale(11, quick=2),
    )
    yield at_least(0.2, lives("full"), "bare `sqlite3`, groups of 100", pair.speed)
    count = scale(1_000, quick=200)
    pair = compare(
        partial(Side, "sqlite", "add", 100, count),
        partial(Side, "sqlite", "add", 1, count),
        repeats=scale(7, quick=1),
    )
    yield at_least(
        4, "SQLite, FULL: `add_task` by 100 callers at a time", "by 1 caller", pair.speed
    )


def measure_huey(scale: Scale) -> Iterator[Row]:
    version = installed("huey")
    for synchronous, fsync, bound, full in (
        ("normal", False, 1, 4_000),
        ("full", True, 4, 1_000),
    ):
        against = f"huey {version}, `SqliteHuey`, 4 threads, `fsync={fsync}`, no results"
        if version is None:
            yield Row(lives(synchronous), against, "is not installed")
            continue
        count = scale(full, quick=200)
        pair = compare(
            partial(Side, "sqlite", f"ours_{synchronous}", count),
            partial(Side, "_huey", f"fsync_{fsync}".lower(), count),
            repeats=scale(9, quick=1),
        )
        yield at_least(bound, lives(synchronous), against, pair.speed)


def measure_apscheduler(scale: Scale) -> Iterator[Row]:
    version = installed("apscheduler")
    against = f"APScheduler {version}, `SQLAlchemyDataStore` on SQLite, asyncio"
    if version is None or installed("aiosqlite") is None:
        yield Row(lives("full"), against, "is not installed")
        return
    count = scale(500, quick=100)
    pair = compare(
        partial(Side, "sqlite", "ours_full", count),
        partial(Side, "_apscheduler4_sql", "added", count),
        repeats=scale(7, quick=1),
    )
    yield at_least(40, lives("full"), against, pair.speed)


def lives(synchronous: str) -> str:
    return f"SQLite, {synchronous.upper()}: no-op tasks added, claimed, run and recorded"


def installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    serve(
        {
            "ours_full": partial(ours, synchronous="full"),
            "ours_normal": partial(ours, synchronous="normal"),
            "bare_full": partial(bare, synchronous="full"),
            "add": add,
        }
    )
