"""How to test code that schedules: weeks pass in milliseconds, and to the second.

The first part would be a module of your own, the second its tests. They need pytest,
pytest-trio, and its setting `trio_mode = true`.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import trio
from trio.testing import MockClock

from trio_gokugen import (
    AlreadyDispatchedError,
    AlreadyDoneError,
    Scheduler,
    TaskState,
    TrioClock,
    WorkRegistry,
    open_scheduler,
)

# -- the code to be tested ----------------------------------------------------------

SendMail: TypeAlias = Callable[[str, str], Awaitable[None]]

TOO_LATE = (AlreadyDispatchedError, AlreadyDoneError)


class Trials:
    """Free trials of four weeks, and the mails about them."""

    def __init__(self, send_mail: SendMail) -> None:
        self.works = WorkRegistry()
        self.works.register("mail", send_mail, timeout=60)

    async def start(self, scheduler: Scheduler, user: str) -> None:
        for weeks, text in (3, "one week left"), (4, "your trial has ended"):
            await scheduler.add_task(
                "mail",
                {"user": user, "text": text},
                after=timedelta(weeks=weeks),
                id=f"{user}, week {weeks}",
            )

    async def pay(self, scheduler: Scheduler, user: str) -> bool:
        """Whether the payment came before the end of the trial."""
        with suppress(*TOO_LATE):
            await scheduler.cancel(f"{user}, week 3")
        try:
            return await scheduler.cancel(f"{user}, week 4")
        except TOO_LATE:
            return False


# -- the tests ----------------------------------------------------------------------

WEEK = 7 * 24 * 3600.0


class MailBox:
    """Takes mails, and notes when they came."""

    def __init__(self, seconds: float = 0) -> None:
        self.seconds = seconds
        self.mails: list[tuple[float, str, str]] = []

    async def send(self, user: str, text: str) -> None:
        await trio.sleep(self.seconds)
        self.mails.append((trio.current_time(), user, text))


async def test_both_mails_come_on_time(autojump_clock: MockClock) -> None:
    box = MailBox()
    trials = Trials(box.send)
    async with open_scheduler(trials.works) as scheduler:
        await trials.start(scheduler, "ann")
        await scheduler.drain()
    assert box.mails == [
        (3 * WEEK, "ann", "one week left"),
        (4 * WEEK, "ann", "your trial has ended"),
    ]


async def test_who_pays_hears_no_more(autojump_clock: MockClock) -> None:
    box = MailBox()
    trials = Trials(box.send)
    async with open_scheduler(trials.works) as scheduler:
        await trials.start(scheduler, "ann")
        await trials.start(scheduler, "bob")
        await trio.sleep(3.5 * WEEK)
        assert await trials.pay(scheduler, "ann")
        await scheduler.drain()
    assert box.mails[2:] == [(4 * WEEK, "bob", "your trial has ended")]


async def test_a_payment_is_late_once_the_last_mail_is_on_its_way(
    autojump_clock: MockClock,
) -> None:
    trials = Trials(MailBox(seconds=10).send)
    async with open_scheduler(trials.works) as scheduler:
        await trials.start(scheduler, "ann")
        await trio.sleep(4 * WEEK + 1)
        assert not await trials.pay(scheduler, "ann")


async def test_a_mail_server_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    box = MailBox(seconds=3600)
    trials = Trials(box.send)
    async with open_scheduler(trials.works) as scheduler:
        await trials.start(scheduler, "ann")
        ended = await scheduler.wait("ann, week 3")
    assert trio.current_time() == 3 * WEEK + 60
    assert ended.state is TaskState.FAILED
    assert ended.err is not None
    assert ended.err.startswith("WorkTimeoutError")
    assert box.mails == []


async def test_the_calendar_starts_where_the_test_says(
    autojump_clock: MockClock,
) -> None:
    new_year = datetime(2031, 1, 1, tzinfo=UTC)
    box = MailBox()
    works = WorkRegistry()
    works.register("mail", box.send)
    clock = TrioClock(epoch=new_year - timedelta(seconds=10))
    async with open_scheduler(works, clock=clock) as scheduler:
        greeting = {"user": "ann", "text": "happy new year"}
        task = await scheduler.add_task("mail", greeting, at=new_year)
        ended = await scheduler.wait(task.id)
    assert ended.dispatched_at == new_year
    assert box.mails == [(10.0, "ann", "happy new year")]
