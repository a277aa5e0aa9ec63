"""The moments of cron expressions, one after the other, in a zone that sets its clocks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from functools import partial
from zoneinfo import ZoneInfo

from cronsim import CronSim

from trio_gokugen import Cron

from ._measure import Row, Scale, Side, at_least, compare
from ._turns import Stopwatch, answer, serve, turns

ZONE = "Europe/Berlin"
START = datetime(2025, 1, 1, tzinfo=ZoneInfo(ZONE))
EXPRESSIONS = (
    "0 9 * * *",
    "*/5 * * * *",
    "30 2 * * MON-FRI",
    "0 0 1 * *",
    "15,45 8-18 * * *",
    "0 * * * *",
)


def ours(count: int) -> None:
    for _ in turns():
        with Stopwatch() as watch:
            for expression in EXPRESSIONS:
                trigger = Cron(expression, ZONE)
                moment: datetime | None = START
                for _ in range(count):
                    assert moment is not None
                    moment = trigger.next_after(moment)
        answer(watch.seconds)


def cronsim(count: int) -> None:
    for _ in turns():
        with Stopwatch() as watch:
            for expression in EXPRESSIONS:
                moments = CronSim(expression, START)
                for _ in range(count):
                    next(moments)
        answer(watch.seconds)


def apscheduler(count: int) -> None:
    from apscheduler.triggers.cron import CronTrigger  # noqa: PLC0415 (for this side only)

    for _ in turns():
        with Stopwatch() as watch:
            for expression in EXPRESSIONS:
                trigger = CronTrigger.from_crontab(expression, timezone=ZONE)
                trigger.start_time = START
                for _ in range(count):
                    trigger.next()
        answer(watch.seconds)


def measure(scale: Scale) -> Iterator[Row]:
    count, repeats = scale(2_000, quick=10), scale(9, quick=2)
    what = "`Cron.next_after` of six expressions, in Berlin"
    for bound, other, name in (
        (0.5, "cronsim", "bare cronsim"),
        (1.0, "apscheduler", "APScheduler 4.0.0a6, `CronTrigger.next`"),
    ):
        pair = compare(
            partial(Side, "triggers", "ours", count),
            partial(Side, "triggers", other, count),
            repeats=repeats,
        )
        yield at_least(bound, what, name, pair.speed)


if __name__ == "__main__":
    serve({"ours": ours, "cronsim": cronsim, "apscheduler": apscheduler})
