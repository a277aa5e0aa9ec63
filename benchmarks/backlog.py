"""Adding and claiming while many tasks are pending, and while few are, in databases.

Of those that are pending one half is due, and the other in the months to come. A turn
adds a hundred that are due, somewhere among the others, and claims the first hundred, and
does so some times. Then, outside the time, those claimed are recorded and deleted, so that
the number stays.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count, islice

import trio

from trio_gokugen import Task
from trio_gokugen.abc import AddTasks, Claimed, ClaimTasks, EndTask, OfPools, TaskFilter
from trio_gokugen.sql import SQLRepository, open_sql_repository

from ._databases import (
    execute,
    make_tables,
    new_database,
    new_file,
    remove_files,
    server,
)
from ._measure import Row, Scale, Side, at_most, compare
from ._turns import Stopwatch, answer, serve, turns
from .sqlite import microseconds

HUNDRED = 100
HALF = timedelta(days=180)
NOOP = TaskFilter(frozenset({"noop"}), pools=OfPools())

FILL = """
    INSERT INTO gokugen_task (
        id, work_id, state, scheduled_at, priority, created_at, param, meta, attempt,
        interruptions, at_most_once
    )
    SELECT {id}, 'noop', 'scheduled', {moment}, 0, {created}, '{{}}', '{{}}', 0, 0, 0
    FROM {numbers}
"""

NUMBERS = """
    WITH RECURSIVE numbers(n) AS
        (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {})
    SELECT n FROM numbers
"""


def sqlite(pending: int, rounds: int) -> None:
    with new_file() as path:
        url = f"sqlite:///{path}"
        make_tables(url)
        step = 2 * HALF // timedelta(microseconds=1) // pending
        now = microseconds()
        statement = FILL.format(
            id="printf('filled-%029d', n)",
            moment=f"{now} + (n - {pending} / 2) * {step}",
            created=now,
            numbers=f"({NUMBERS.format(pending)})",
        )
        connection = sqlite3.connect(path)
        connection.execute(statement)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        trio.run(add_and_claim, url, rounds)


def postgresql(pending: int, rounds: int) -> None:
    url = new_database()
    make_tables(url)
    step = 2 * HALF / pending
    statement = FILL.format(
        id="'filled-' || lpad(n::text, 29, '0')",
        moment=f"now() + (n - {pending} / 2) * interval '{step.total_seconds()} s'",
        created="now()",
        numbers=f"generate_series(1, {pending}) AS n",
    )
    execute(url, statement, "VACUUM ANALYZE gokugen_task", "CHECKPOINT")
    trio.run(add_and_claim, url, rounds)


async def add_and_claim(url: str, rounds: int) -> None:
    async with open_sql_repository(url) as repository:
        before = await repository.count_pending()
        tasks = due_tasks()
        for _ in turns():
            runs: list[Task] = []
            with Stopwatch() as watch:
                for _ in range(rounds):
                    runs += await one_round(repository, list(islice(tasks, HUNDRED)))
            now = datetime.now(UTC)
            await repository.apply([EndTask(run, now) for run in runs])
            await repository.delete_ended(now + HALF)
            assert len(runs) == HUNDRED * rounds
            assert await repository.count_pending() == before
            answer(watch.seconds)


async def one_round(repository: SQLRepository, new: list[Task]) -> list[Task]:
    [added] = await repository.apply([AddTasks(new)])
    added.unwrap()
    claim = ClaimTasks(HUNDRED, datetime.now(UTC), NOOP)
    [result] = await repository.apply([claim])
    claimed: Claimed = result.unwrap()
    return list(claimed.tasks)


def due_tasks() -> Iterator[Task]:
    source = random.Random(1)
    now = datetime.now(UTC)
    for number in count():
        yield Task(
            id=f"{number:036}",
            work_id="noop",
            scheduled_at=now - source.random() * HALF,
            created_at=now,
        )


def measure(scale: Scale) -> Iterator[Row]:
    many = scale(1_000_000, quick=20_000)
    rounds = scale(20, quick=2)
    for side, what in ("sqlite", "SQLite, FULL"), ("postgresql", "PostgreSQL"):
        with ExitStack() as stack:
            if side == "postgresql":
                stack.enter_context(server())
            else:
                stack.callback(remove_files)
            pair = compare(
                partial(Side, "backlog", side, many, rounds),
                partial(Side, "backlog", side, 1_000, rounds),
                repeats=scale(11, quick=2),
            )
        yield at_most(
            1.5,
            f"{what}: tasks added and claimed, with {many:,} pending",
            "with 1,000 pending",
            pair.cost,
        )


if __name__ == "__main__":
    serve({"sqlite": sqlite, "postgresql": postgresql})
