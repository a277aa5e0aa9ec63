"""A rival's side: procrastinate, its worker on asyncio, with psycopg.

Set up in its favour. As many jobs at a time as ours has workers, and four connections:
more were no faster, nor were fewer jobs. It does not wait for more once the queue is
empty. Ended jobs are kept, as ours are. The time is that of the worker's whole run.
"""

from __future__ import annotations

import asyncio

from procrastinate import App, PsycopgConnector

from ._databases import count_in, execute, new_database
from ._turns import Stopwatch, answer, serve, turns

CONCURRENCY = 100
CONNECTIONS = 4
ENDED = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"


def stored(
    count: int, concurrency: int = CONCURRENCY, connections: int = CONNECTIONS
) -> None:
    async def run() -> None:
        url = new_database()
        connector = PsycopgConnector(
            conninfo=url, min_size=connections, max_size=connections
        )
        app = App(connector=connector)

        @app.task(name="noop")  # type: ignore[untyped-decorator]  # not installed
        async def noop() -> None:
            pass

        async with app.open_async():
            await app.schema_manager.apply_schema_async()
            for _ in turns():
                execute(url, "TRUNCATE procrastinate_jobs RESTART IDENTITY CASCADE")
                await noop.batch_defer_async(*({} for _ in range(count)))
                execute(url, "VACUUM ANALYZE procrastinate_jobs")
                with Stopwatch() as watch:
                    await app.run_worker_async(
                        concurrency=concurrency, wait=False, install_signal_handlers=False
                    )
                assert count_in(url, ENDED) == count
                answer(watch.seconds)

    asyncio.run(run())


if __name__ == "__main__":
    serve({"stored": stored})
