"""Two processes that share the tasks of one PostgreSQL database.

    python examples/two_workers.py postgresql://user:password@host/database

It starts two workers, adds tasks once both are ready, and tells who ran what. Its ended
tasks stay in the database.
"""

import subprocess
import sys

import attrs
import trio
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

from trio_gokugen import WorkRegistry, open_scheduler
from trio_gokugen.sql import TaskRow, open_sql_repository

USAGE = """\
usage: python examples/two_workers.py postgresql://user:password@host/database

It needs a PostgreSQL server, and makes its tables in that database. One for a try:

    docker run --rm -e POSTGRES_PASSWORD=secret -p 127.0.0.1:5432:5432 postgres
    python examples/two_workers.py postgresql://postgres:secret@127.0.0.1/postgres"""
NAMES = "worker-1", "worker-2"
PICTURES = 6

works = WorkRegistry()


@works.register
async def shrink(picture: int) -> None:
    say(f"shrinks picture {picture}")
    await trio.sleep(0.5)


# -- a worker -----------------------------------------------------------------------


async def work(url: str, name: str) -> None:
    """Run tasks until told that no more will come."""
    async with (
        open_sql_repository(url, name=name) as repository,
        open_scheduler(works, repository, max_workers=1) as scheduler,
    ):
        say("is ready")
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        await scheduler.drain()


# -- who starts them ----------------------------------------------------------------


@attrs.define(eq=False)
class Worker:
    """A worker's process."""

    name: str
    ready: trio.Event = attrs.field(factory=trio.Event, init=False)
    no_more: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def run(self, url: str) -> None:
        """Start it, and pass on what it says until it ends."""
        process = await trio.lowlevel.open_process(
            [sys.executable, __file__, url, self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, process.stdout)
            await self.no_more.wait()
            await process.stdin.aclose()
        assert await process.wait() == 0

    async def _listen(self, stream: trio.abc.ReceiveStream) -> None:
        rest = b""
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                say(f"{self.name} {line.decode().strip()}")
            self.ready.set()


async def main(url: str) -> None:
    engine = create_engine(url)
    workers = [Worker(name) for name in NAMES]
    async with open_sql_repository(engine) as repository, trio.open_nursery() as nursery:

        def add_pictures() -> list[str]:
            """In one transaction: all of them are there, or none is."""
            with Session(engine) as session, session.begin():
                return [
                    repository.add_task_in(session, "shrink", {"picture": n}, after=0).id
                    for n in range(1, PICTURES + 1)
                ]

        for worker in workers:
            nursery.start_soon(worker.run, url)
        for worker in workers:
            await worker.ready.wait()
        ids = await trio.to_thread.run_sync(add_pictures)
        for worker in workers:
            worker.no_more.set()
    await trio.to_thread.run_sync(show, engine, ids)
    engine.dispose()


def show(engine: Engine, ids: list[str]) -> None:
    """Read the table, which says who ran what."""
    with Session(engine) as session:
        rows = session.scalars(select(TaskRow).where(TaskRow.id.in_(ids))).all()
    for name in NAMES:
        pictures = sorted(row.param["picture"] for row in rows if row.dispatched_by == name)
        say(f"{name} has run {len(pictures)} tasks: {pictures}")
    once = sum(row.state == "done" and row.attempt == 1 for row in rows)
    say(f"{once} of {PICTURES} are done, at the first attempt")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case [url]:
            trio.run(main, url)
        case [url, name]:
            trio.run(work, url, name)
        case _:
            sys.exit(USAGE)
