"""A program that is killed: it adds, cancels and runs tasks kept in a database.

It imports everything once, and then forks for each order that it reads: so a new victim
is at work within milliseconds. An order is a line of JSON, the fields of `Order`. The
answer to the next line, ``kill`` or ``wait``, is how the fork ended.

What a victim does goes to a log that is written through to the disk: ``adding``, ``add``
and ``cancel`` with an id, the last two as soon as they are acknowledged; ``start``,
``end`` and ``cut``, by a cancellation, with an id and the number of the attempt.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import attrs
import sqlalchemy
import trio
from flaky import Flaky
from sqlalchemy import Connection, event

from trio_gokugen import (
    Interval,
    Late,
    RefusedError,
    Scheduler,
    TaskParam,
    TaskQuery,
    TaskState,
    WorkerPoolDispatcher,
    WorkRegistry,
    current_task,
    open_scheduler,
)
from trio_gokugen._engine import Engine
from trio_gokugen._update_loop import UpdateLoop
from trio_gokugen.sql import _migrate, _open, open_sql_repository
from trio_gokugen.sql._names import LockedFile
from trio_gokugen.sql._occurrences import Schedules
from trio_gokugen.sql._ongoing import Ongoing
from trio_gokugen.sql._postgresql import PostgreSQL
from trio_gokugen.sql._sqlite import SQLite
from trio_gokugen.sql._statements import statements

for module in (
    "alembic.command",
    "alembic.config",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
):
    importlib.import_module(module)  # takes its time, which no fork needs then

LIMIT = 60
"""Seconds after which a victim that nobody has killed is stuck."""

BULK = 4
"""Tasks that are added at once, all or none."""

SHARED = 0.05
"""Seconds between the occurrences that two schedulers share."""

SPOTS: list[tuple[str, Any, str]] = [
    ("commit", SQLite, "commit"),
    ("commit", PostgreSQL, "commit"),
    ("start", WorkerPoolDispatcher, "_start_run"),
    ("record", UpdateLoop, "send_nowait"),
    ("stop", Engine, "stop"),
    ("cancelling works", UpdateLoop, "start_nothing"),
    ("last write", UpdateLoop, "finish"),
    ("release", LockedFile, "release"),
    ("dispose", sqlalchemy.Engine, "dispose"),
    ("migrate", _open, "bring_up_to_date"),
]
"""Functions before and after which it can be told to die."""


@attrs.frozen
class Order:
    """What a victim is to do."""

    url: str
    log: str
    play: str
    number: int = 0
    """Of the order: ids begin with it, and it seeds what is random."""

    spot: str = ""
    """Where to die: in any of the places given to `Victim.pass_by`, if at all."""

    nth: int = 1
    """When it comes there for so manieth a time."""

    lease: float = 30.0


async def declare(scheduler: Scheduler, every: float, number: int) -> None:
    """A schedule of which none is dropped as it is late."""
    await scheduler.add_schedule(
        "s",
        Interval(every),
        "work",
        late=Late(run="all", limit=1_000),
        overlap="skip" if number % 2 else "allow",
    )


class Victim:
    """Carries out one order, in a process of its own."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._random = random.Random(order.number)
        self._passed = 0
        self._stepping: list[Connection] = []
        """In whose transactions schedules go a step on."""

        self._log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._started: dict[str, trio.Event] = {}
        self.works = WorkRegistry()
        self.works.register("work", self.work)
        self.works.register("once", self.work, at_most_once=True)
        self.works.register("thread", self.thread)
        self.works.register("stay", self.stay)
        self.works.register("stay once", self.stay, at_most_once=True)
        self._flaky = Flaky(str(order.number), self.works, self.note)

    def note(self, what: str, *ids: str, attempt: str = "") -> None:
        """Write a line for each id: after a kill all are there, or none."""
        lines = [f"{what} {task_id} {attempt}".rstrip() for task_id in ids]
        os.write(self._log, "".join(f"{line}\n" for line in lines).encode())
        os.fsync(self._log)

    # -- dying ------------------------------------------------------------------------

    def pass_by(self, spot: str) -> None:
        """Die, if this is the time and the place."""
        if spot == self._order.spot:
            self._passed += 1
            if self._passed == self._order.nth:
                os.kill(os.getpid(), signal.SIGKILL)

    def patch(self) -> None:
        """Lead past the spots in the library."""
        self._patch_steps()  # innermost: at a commit, all of the spots are right beside it
        for spot, owner, function in SPOTS:
            setattr(owner, function, self._led_past(spot, getattr(owner, function)))
        event.listen(
            sqlalchemy.Engine,
            "after_cursor_execute",
            lambda *_: self.pass_by("after a statement"),
        )
        upgrade = _migrate._upgrade

        def watched_upgrade(connection: Connection) -> None:
            def watch(*_: object) -> None:
                self.pass_by("in a migration")

            event.listen(connection, "after_cursor_execute", watch)
            upgrade(connection)
            event.remove(connection, "after_cursor_execute", watch)  # before the commit

        _migrate._upgrade = watched_upgrade

    def _patch_steps(self) -> None:
        """Lead past what is said in transactions that take a schedule a step on."""
        read, commit = Schedules.__init__, PostgreSQL.commit

        def watched_read(
            schedules: Schedules, ongoing: Ongoing, schedule_ids: Iterable[str]
        ) -> None:
            ids = [*schedule_ids]
            if ids:
                self._stepping.append(ongoing.connection)
            read(schedules, ongoing, ids)

        def watched_commit(dialect: PostgreSQL, connection: Connection) -> None:
            if connection not in self._stepping:
                commit(dialect, connection)
                return
            self.pass_by("before a step's commit")
            commit(dialect, connection)
            self.pass_by("after a step's commit")
            self._stepping = [each for each in self._stepping if each is not connection]

        def watch(connection: Connection, *_: object) -> None:
            if connection in self._stepping:
                self.pass_by("in a step")

        for owner, function, watched in (
            (Schedules, "__init__", watched_read),
            (PostgreSQL, "commit", watched_commit),
        ):
            setattr(owner, function, watched)
        event.listen(sqlalchemy.Engine, "after_cursor_execute", watch)

    def _led_past(self, spot: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def led(*args: Any, **kwargs: Any) -> Any:
            self.pass_by(f"before {spot}")
            result = function(*args, **kwargs)
            self.pass_by(f"after {spot}")
            return result

        return led

    # -- works ------------------------------------------------------------------------

    def _note_run(self, what: str) -> None:
        run = current_task()
        self.note(what, run.id, attempt=str(run.attempt))

    async def work(self, seconds: float = 0) -> None:
        self._note_run("start")
        self.pass_by("in the work")
        await trio.sleep(seconds)
        self._note_run("end")

    def thread(self, seconds: float = 0) -> None:
        self._note_run("start")
        self.pass_by("in the work")
        time.sleep(seconds)
        self._note_run("end")

    async def stay(self) -> None:
        """Does not end where it is to be stopped, unless it is cancelled."""
        self._note_run("start")
        run = current_task()
        self._started.setdefault(run.id, trio.Event()).set()
        if self._order.play == "stopped":
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                self._note_run("cut")
                self.pass_by("in a work that is cancelled")
                raise
        self._note_run("end")

    # -- tasks ------------------------------------------------------------------------

    async def _add(
        self, scheduler: Scheduler, name: str, work: str, seconds: float, after: float
    ) -> str:
        task_id = f"{self._order.number}.{name}"
        param = {} if work.startswith("stay") else {"seconds": seconds}
        self.note("adding", task_id)
        await scheduler.add_task(work, param, after=after, id=task_id)
        self.note("add", task_id)
        return task_id

    async def _add_bulk(self, scheduler: Scheduler, name: str) -> None:
        ids = [f"{self._order.number}.{name}.bulk.{each}" for each in range(BULK)]
        self.note("adding", *ids)
        now = datetime.now(UTC)
        await scheduler.add_tasks(
            TaskParam(id=task_id, work_id="work", scheduled_at=now) for task_id in ids
        )
        self.note("add", *ids)

    async def _cancel(self, scheduler: Scheduler, task_id: str) -> None:
        with suppress(RefusedError):  # it may have started
            if await scheduler.cancel(task_id):
                self.note("cancel", task_id)

    # -- plays ------------------------------------------------------------------------

    async def play(self) -> None:
        """Carry out the order."""
        order = self._order
        async with open_sql_repository(
            order.url, name="victim", synchronous="full", lease=order.lease
        ) as repository:
            stopped = order.play == "stopped"
            async with open_scheduler(
                self.works,
                repository,
                max_workers=2 if stopped else 4,
                grace=0 if stopped else LIMIT,
            ) as scheduler:
                plays = {
                    "busy": self.busy,
                    "short": self.short,
                    "stopped": self.stopped,
                    "last": self.last,
                    "schedule": self.schedule,
                    "schedule's end": self.end_schedule,
                    "shared": self.share,
                    "flaky": self._flaky.play,
                }
                await plays[order.play](scheduler)

    async def busy(self, scheduler: Scheduler) -> None:
        """Many at once, who add and cancel."""
        async with trio.open_nursery() as nursery:
            for client in range(3):
                nursery.start_soon(self._be_busy, scheduler, client)
        if self._random.random() < 0.5:
            await scheduler.drain()

    async def _be_busy(self, scheduler: Scheduler, client: int) -> None:
        if self._random.random() < 0.3:
            await self._add_bulk(scheduler, str(client))
        for number in range(2):
            work = self._random.choice(["work", "work", "once", "thread"])
            seconds = self._random.choice([0, 0.002, 0.01])
            after = self._random.choice([0, 0, 0.003, 0.02])
            task_id = await self._add(scheduler, f"{client}.{number}", work, seconds, after)
            if self._random.random() < 0.4:
                await trio.sleep(after * self._random.random())
                await self._cancel(scheduler, task_id)

    async def short(self, scheduler: Scheduler) -> None:
        """One thing after the other."""
        await self._add(scheduler, "work", "work", 0.001, 0)
        await self._add(scheduler, "once", "once", 0.001, 0)
        await self._add(scheduler, "later", "thread", 0, 0.03)
        await self._cancel(
            scheduler, await self._add(scheduler, "cancelled", "work", 0, 60)
        )
        await self._add_bulk(scheduler, "many")
        await scheduler.drain()

    async def stopped(self, scheduler: Scheduler) -> None:
        """Stopped while all workers run what will not end by itself, and a task waits."""
        for name, work in (("stays", "stay"), ("stays-once", "stay once")):
            task_id = await self._add(scheduler, name, work, 0, 0)
            await self._started.setdefault(task_id, trio.Event()).wait()
        await self._add(scheduler, "waits", "work", 0, 0)

    async def schedule(self, scheduler: Scheduler) -> None:
        """A schedule, of which nothing is dropped, for some time."""
        await declare(scheduler, 0.02, self._order.number)
        await trio.sleep(0.07)
        while (await scheduler.get_schedule("s")).runs < 2:  # noqa: ASYNC110 (others run it)
            await trio.sleep(0.01)
        await scheduler.pause_schedule("s")
        await scheduler.drain()

    async def end_schedule(self, scheduler: Scheduler) -> None:
        """The same schedule, once more."""
        with suppress(RefusedError):  # it may not have been added
            await scheduler.resume_schedule("s", catch_up=True)
            await scheduler.trigger_schedule("s")
        await self.schedule(scheduler)

    async def share(self, scheduler: Scheduler) -> None:
        """A schedule that others run as well, until it is killed."""
        await declare(scheduler, SHARED, self._order.number)
        await trio.sleep_forever()

    async def last(self, scheduler: Scheduler) -> None:
        """All that is left, at once."""
        pending = TaskQuery(states=frozenset({TaskState.SCHEDULED}))
        for task in await scheduler.find(pending, limit=None):
            with suppress(RefusedError):  # it may have started
                await scheduler.update(task.id, scheduled_at=datetime.now(UTC))
        await scheduler.drain()


def fork(order: Order) -> int:
    """Have an order carried out by a new process, and return its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(LIMIT)
        victim = Victim(order)
        victim.patch()
        trio.run(victim.play)
    except BaseException:  # noqa: BLE001 (nothing of this process may go on)
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def obey(lines: Iterable[str]) -> None:
    """Carry out orders until there are no more."""
    # What is here now is the same in all forks: none looks through it, or copies it.
    statements(SQLite)
    statements(PostgreSQL)
    gc.collect()
    gc.freeze()
    pid = 0
    for line in lines:
        if line.startswith("{"):
            pid = fork(Order(**json.loads(line)))
            continue
        if line == "kill\n":
            # Not waited for yet, so nobody else can have its number.
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        pid = 0
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
    if pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    obey(sys.stdin)
