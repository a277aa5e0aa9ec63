"""Tasks that outlive a crash: a program is killed half-way, starts again, and finishes.

Its tasks are in a SQLite file. Run as a script, it starts itself as a first process, which
does away with itself in the middle of its work; then it goes on where that one stopped.
"""

import os
import signal
import sys
from collections.abc import Iterable
from tempfile import TemporaryDirectory

import trio

from trio_gokugen import Task, TaskQuery, WorkRegistry, current_task, open_scheduler
from trio_gokugen.sql import open_sql_repository

# Either ends a process on the spot: it can do nothing about it, nor after it.
KILL = signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL

works = WorkRegistry()


@works.register
async def mail(to: str) -> None:
    attempt = current_task().attempt
    say(f"  mails {to}, attempt {attempt}")
    if to == "bob" and attempt == 1:
        say("  is killed")
        os.kill(os.getpid(), KILL)


@works.register(at_most_once=True)
async def charge(customer: str) -> None:
    say(f"  charges {customer}'s card, which takes a while")
    await trio.sleep(60)


async def first(url: str) -> None:
    """Add the tasks, and get no further than the third."""
    say("the first process")
    async with (
        open_sql_repository(url) as repository,
        open_scheduler(works, repository) as scheduler,
    ):
        await scheduler.add_task("mail", {"to": "ann"}, after=0.4)
        await scheduler.add_task("charge", {"customer": "bob"}, after=0.8)
        await scheduler.add_task("mail", {"to": "bob"}, after=1.2)
        await scheduler.add_task("mail", {"to": "eve"}, after=2.8)
        say("  has added four tasks")
        await scheduler.drain()


async def second(url: str) -> None:
    """Run what is left."""
    say("the second process")
    async with open_sql_repository(url) as repository:
        say("  finds in the file:")
        show(await repository.find(TaskQuery()))
        async with open_scheduler(works, repository) as scheduler:
            await scheduler.drain()
            say("  has nothing left to do:")
            show(await scheduler.find())


async def main() -> None:
    with TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/tasks.db"
        died = await trio.run_process([sys.executable, __file__, url], check=False)
        assert died.returncode == (KILL if sys.platform == "win32" else -KILL)
        await second(url)


def show(tasks: Iterable[Task]) -> None:
    for task in tasks:
        [whom] = task.param.values()
        why = "" if task.err is None else f": {task.err}"
        say(f"    {task.work_id:6} {whom}  {task.state.value}{why}")


def say(text: str) -> None:
    print(text, flush=True)  # what is left in a buffer would die with the process


if __name__ == "__main__":
    trio.run(first, sys.argv[1]) if sys.argv[1:] else trio.run(main)
