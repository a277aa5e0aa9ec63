"""A year of many schedules on virtual time: every occurrence must be as planned."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import trio
import trio.testing

from trio_gokugen import (
    CalendarInterval,
    Cron,
    HeapRepository,
    Interval,
    PartialHooks,
    Schedule,
    Task,
    TrioClock,
    WorkRegistry,
    open_scheduler,
    plan,
)
from trio_gokugen.abc import PutSchedule, Trigger

from ._measure import Row, Scale, Side, ask_once
from ._turns import Stopwatch, answer, serve, turns

BEGIN = datetime(2029, 12, 31, 23, 59, 59, tzinfo=UTC)
DAY = timedelta(days=1)
ZONE = "Europe/Berlin"
LIMIT = 60.0
"""Seconds."""


def many(count: int) -> Iterator[Schedule]:
    """Most run each day at a full quarter of an hour in Berlin, and some each hour.

    Every tenth has jitter.
    """
    for number in range(count):
        hour, minute = number % 24, number // 24 % 4 * 15
        trigger: Trigger = Cron(f"{minute} {hour} * * *", ZONE)
        if number % 100 == 0:
            trigger = Interval("1h")
        elif number % 2:
            trigger = CalendarInterval(days=1, at=f"{hour:02}:{minute:02}", tz=ZONE)
        yield Schedule(
            id=f"s{number}",
            trigger=trigger,
            work_id="noop",
            created_at=BEGIN,
            jitter=timedelta(seconds=0 if number % 10 else 60),
        )


async def noop() -> None:
    pass


async def live(
    schedules: list[Schedule], days: int
) -> list[tuple[str, datetime, datetime]]:
    """Which occurrences run, and when."""
    works = WorkRegistry()
    works.register("noop", noop)
    repository = HeapRepository(keep_ended=0)
    for schedule in schedules:
        await repository.change_schedule(PutSchedule(schedule, BEGIN))
    ran: list[tuple[str, datetime, datetime]] = []

    async def note(task: Task) -> None:
        assert task.schedule_id is not None
        assert task.nominal_at is not None
        assert task.dispatched_at is not None
        ran.append((task.schedule_id, task.nominal_at, task.dispatched_at))

    hooks = PartialHooks(on_dispatch=note)
    clock = TrioClock(BEGIN, trio.current_time())
    async with open_scheduler(works, repository, hooks=hooks, clock=clock, grace=0):
        await trio.sleep(days * 86_400)
    return ran


def ours(count: int, days: int) -> None:
    for _ in turns():
        schedules = list(many(count))
        with Stopwatch() as watch:
            clock = trio.testing.MockClock(autojump_threshold=0)
            ran = trio.run(partial(live, schedules, days), clock=clock)
            planned = plan(schedules, BEGIN, BEGIN + days * DAY)
        assert sorted(ran) == sorted(
            (each.schedule_id, each.nominal_at, each.runs_at)
            for each in planned
            if each.runs_at is not None
        )
        assert len(ran) == len(planned)
        assert all(a[2] <= b[2] for a, b in itertools.pairwise(ran))
        answer([watch.seconds, len(ran)])


def measure(scale: Scale) -> Iterator[Row]:
    schedules, days = scale(1_000, quick=100), scale(365, quick=3)
    seconds, ran = ask_once(partial(Side, "year", "ours", schedules, days))
    yield Row(
        f"{days} days of {schedules:,} schedules on virtual time, {ran:,} occurrences,"
        " each as planned: seconds",
        "",
        f"{seconds:.0f}",
        f"<= {LIMIT:g}",
        seconds <= LIMIT,
    )


if __name__ == "__main__":
    serve({"ours": ours})
