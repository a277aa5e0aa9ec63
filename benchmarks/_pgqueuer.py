"""A rival's side: PgQueuer, with asyncpg and uvloop, as its own benchmark has it.

Set up in its favour. It takes and records jobs in batches of a hundred, and is told to
stop by the last job, so that it does not wait for more; the time ends when its run does,
with all written. Ended jobs are deleted, and noted in its log, as it always does.
"""

from __future__ import annotations

import asyncpg
import uvloop
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from pgqueuer.models import Job

from ._databases import count_in, execute, new_database
from ._turns import Stopwatch, answer, serve, turns

BATCH = 100
ENDED = "SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'"


def stored(count: int) -> None:
    async def run() -> None:
        url = new_database()
        connection = await asyncpg.connect(url)
        driver = AsyncpgDriver(connection)
        queries = Queries(driver)
        await queries.install()
        for _ in turns():
            execute(url, "TRUNCATE pgqueuer, pgqueuer_log RESTART IDENTITY")
            await queries.enqueue(["noop"] * count, [None] * count, [0] * count)
            execute(url, "VACUUM ANALYZE pgqueuer", "VACUUM ANALYZE pgqueuer_log")
            answer(await run_on(PgQueuer(driver), count))
            assert count_in(url, ENDED) == count
        await connection.close()

    uvloop.run(run())


async def run_on(queue: PgQueuer, count: int) -> float:
    left = count

    @queue.entrypoint("noop")  # type: ignore[untyped-decorator]  # not installed
    async def noop(_: Job) -> None:
        nonlocal left
        left -= 1
        if not left:
            queue.shutdown.set()

    with Stopwatch() as watch:
        await queue.run(batch_size=BATCH)
    return watch.seconds


if __name__ == "__main__":
    serve({"stored": stored})
