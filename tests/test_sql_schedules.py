"""Schedules in databases: none of their occurrences is lost, or made twice."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import victim
from databases import engine_of
from sqlalchemy import event, text
from support import NOON, Bench, noon, open_bench, stored
from test_sql_kills import KILLED, Killer, killer

from trio_gokugen import (
    Cron,
    Interval,
    InvalidTriggerError,
    Late,
    Schedule,
    Scheduler,
    TaskQuery,
    TaskState,
    autojump_held,
    current_task,
    open_scheduler,
    plan,
)
from trio_gokugen._schedule import (
    ChangeSchedule,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    ResumeSchedule,
    ScheduleUpdate,
    UpdateSchedule,
)
from trio_gokugen._task import TaskUpdate
from trio_gokugen._trigger import BaseTrigger
from trio_gokugen.abc import OnSchedule
from trio_gokugen.sql import (
    DamagedScheduleError,
    SQLRepository,
    UnknownScheduleError,
    open_sql_repository,
)

__all__ = ["killer"]

pytestmark = pytest.mark.tables

TICK = 20_000
"""Microseconds between the occurrences of the victims."""


# -- killed ---------------------------------------------------------------------------


def check(directory: Path) -> int:
    """Each moment has had its one run, or was dropped, and counted; return how many."""
    with closing(sqlite3.connect(directory / "tasks.db")) as connection:
        [schedule] = connection.execute(
            "SELECT overlap, runs, dropped, created_at, last_at, next_at,"
            " pending_id, awaited_id FROM gokugen_schedule"
        )
        overlap, runs, dropped, created_at, last_at, next_at, *tasks = schedule
        assert tasks == [None, None]
        assert dropped == 0 or overlap == "skip"
        rows = connection.execute("SELECT nominal_at, state FROM gokugen_task").fetchall()
    done = sorted(at for at, state in rows if state == "done" and at is not None)
    assert {state for _, state in rows} <= {"done", "cancelled"}
    moments = range(done[0], last_at + 1, TICK)
    assert set(done) <= set(moments)
    assert runs == len(done) == len(set(done))
    # On a busy machine some are dropped before the first that runs, or after the last.
    others = (done[0] - created_at) // TICK + (next_at - last_at) // TICK - 1
    assert 0 <= dropped - (len(moments) - runs) <= others
    return len(done)


def killed_at(killer: Killer, directory: Path, number: int, spot: str, nth: int) -> bool:
    """Kill a program at a spot, if it comes there so often, and let another end it."""
    directory.mkdir()
    url, log = f"sqlite:///{directory / 'tasks.db'}", str(directory / "log")
    killer.start(victim.Order(url, log, "schedule", number, spot, nth))
    killed = killer.wait() == KILLED
    killer.start(victim.Order(url, log, "schedule's end", number))
    assert killer.wait() == 0
    assert check(directory) >= 2
    return killed


@pytest.mark.uncovered
@pytest.mark.parametrize("number", [1, 2], ids=["skip", "allow"])
@pytest.mark.parametrize(
    ("spot", "step"),
    [("before commit", 2), ("after commit", 2), ("after a statement", 9)],
)
def test_killed(killer: Killer, fast_path: Path, number: int, spot: str, step: int) -> None:
    """
    Killed between any two statements, a program loses no occurrence of a schedule, and
    makes none twice.
    """
    kills = 0
    while killed_at(killer, fast_path / str(kills), number, spot, 1 + kills * step):
        kills += 1
    # On a busy machine what would be several commits is fewer.
    assert kills >= 3


# -- several schedulers ---------------------------------------------------------------


async def test_two_schedulers_on_one_server(postgresql_url: str) -> None:
    """
    Of two schedulers that both declare a schedule exactly one runs each occurrence.
    """
    ran: Counter[datetime] = Counter()

    async def tick() -> None:
        nominal = current_task().nominal_at
        assert nominal is not None
        ran[nominal] += 1

    async with AsyncExitStack() as stack:
        schedulers: list[Scheduler] = []
        for _ in range(2):
            repository = await stack.enter_async_context(
                open_sql_repository(postgresql_url)
            )
            bench = Bench()
            bench.works.register("tick", tick)
            schedulers.append(
                await stack.enter_async_context(open_scheduler(bench.works, repository))
            )
        async with trio.open_nursery() as nursery:
            for scheduler in schedulers:
                nursery.start_soon(_declare, scheduler)
        await trio.sleep(0.5)
        await schedulers[0].pause_schedule("s")
        await schedulers[1].drain()
        schedule = await schedulers[1].get_schedule("s")
    assert set(ran.values()) == {1}
    moments = sorted(ran)
    assert len(moments) == schedule.runs >= 10
    assert schedule.dropped == 0
    step = timedelta(milliseconds=25)
    assert moments == [moments[0] + n * step for n in range(len(moments))]


async def _declare(scheduler: Scheduler) -> None:
    late = Late(run="all", limit=1_000)
    await scheduler.add_schedule("s", Interval(0.025), "tick", late=late, overlap="allow")


async def test_a_run_of_another_scheduler_is_replaced(postgresql_url: str) -> None:
    """
    An occurrence replaces the one before even if another scheduler runs that.
    """
    started, stopped = trio.Event(), trio.Event()

    async def linger() -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            stopped.set()

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(
            open_sql_repository(postgresql_url, lease=1.5)
        )
        second = await stack.enter_async_context(
            open_sql_repository(postgresql_url, lease=1.5)
        )
        bench = Bench()
        bench.works.register("linger", linger)
        one = await stack.enter_async_context(open_scheduler(bench.works, first))
        await one.add_schedule("s", Interval("1h"), "linger", overlap="replace")
        [head] = await one.find(TaskQuery(states={TaskState.SCHEDULED}))
        now = datetime.now(UTC)
        # Both occurrences are due: the second scheduler takes the later one.
        await one.update(head.id, scheduled_at=now)
        await started.wait()
        claimed = await second.claim(1, now + timedelta(hours=2))
        [replaced] = claimed.replaced
        assert replaced.id == head.id
        with trio.fail_after(10):
            ended = await one.wait(head.id)
            await stopped.wait()
        assert ended.state is TaskState.CANCELLED


# -- as they are kept -----------------------------------------------------------------


class OwnTrigger(BaseTrigger):
    """A trigger of somebody's own."""

    def next_after(self, moment: datetime) -> datetime | None:
        return moment + timedelta(seconds=1)

    def explain(self) -> str:
        return "a second later"

    def to_data(self) -> Any:
        return {"own": 1}


async def test_a_trigger_of_ones_own(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    A trigger that could not be read again is refused, added or put into a schedule.
    """
    async with (
        open_sql_repository(sqlite_url) as repository,
        open_bench(repository) as (scheduler, _),
    ):
        with pytest.raises(InvalidTriggerError, match="cannot be kept outside"):
            await scheduler.add_schedule("s", OwnTrigger(), "note")
        await scheduler.add_schedule("s", Cron("@daily"), "note")
        with pytest.raises(InvalidTriggerError, match="cannot be kept outside"):
            await scheduler.update_schedule("s", trigger=OwnTrigger())


KNOWN = '{"every": "10s", "anchor": null}'
MOON = '{"moon": "full"}'
UNKNOWN = [
    '{"moon": "full"}',
    '{"cron": "@daily", "tz": "Mars/Olympus"}',
    '{"every": "10", "twice": true}',
    '{"either": [{"every": "10s"}, {"moon": "full"}]}',
    '{"except": [], "of": {"cron": "@daily", "tz": "Mars/Olympus"}, "tz": "UTC"}',
]


@pytest.mark.parametrize("rule", UNKNOWN)
async def test_a_schedule_that_is_not_known(
    autojump_clock: trio.testing.MockClock,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    rule: str,
) -> None:
    """
    What is due of a schedule that is not known here is left, and told once; others go on;
    and once it is known, it goes on, too.
    """
    async with (
        open_sql_repository(database_url, poll=5) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await scheduler.add_schedule("s", Interval(10), "note")
        await scheduler.add_schedule("other", Interval(150), "note")
        for found in rule, KNOWN:
            rule_is(repository, found)
            if found == KNOWN:
                break
            await trio.sleep(155)
            for call in scheduler.get_schedule, scheduler.pause_schedule:
                with pytest.raises(UnknownScheduleError, match="is not known to this"):
                    await call("s")
        assert [when for _, when in bench.starts] == [150.0]
        await trio.sleep(60)
        [first, *_] = [
            task
            for task in await scheduler.find(TaskQuery(states={TaskState.DONE}))
            if task.schedule_id == "s"
        ]
        assert (first.attempt, first.dispatched_at) == (1, noon(190))
        assert (await scheduler.get_schedule("s")).dropped == 18
    told = [each for each in caplog.records if "is not known" in each.getMessage()]
    assert len(told) == 1


async def test_what_one_does_not_know_another_runs_on_time(database_url: str) -> None:
    """
    An occurrence of a schedule that one program does not know is taken by another in time,
    and by nobody twice.
    """
    async with (
        open_sql_repository(database_url) as old,
        open_sql_repository(database_url) as new,
    ):
        schedule = Schedule(id="s", trigger=Interval(10), work_id="w", created_at=NOON)
        await old.change_schedule(PutSchedule(schedule, NOON))
        await old.add([stored(str(n), "w", 5 + n) for n in range(3)])
        rule_is(old, MOON)
        found = [task.id for _ in range(3) for task in (await old.claim(1, noon(20))).tasks]
        assert found == ["0", "1", "2"]
        assert (await old.claim(9, noon(20))).tasks == []
        assert await old.get_next() is None
        rule_is(old, KNOWN)
        [run] = (await new.claim(1, noon(20))).tasks
        assert (run.nominal_at, run.attempt) == (noon(20), 1)
        # Removed, and added again, it is known at once.
        await old.change_schedule(RemoveSchedule("s", noon(21)))
        await old.change_schedule(PutSchedule(schedule, noon(21)))
        [run] = (await old.claim(1, noon(30))).tasks
        assert run.nominal_at == noon(30)


async def test_a_damaged_schedule(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    A schedule that nobody can read fails its next occurrence, which says why; others go on;
    and it can be removed, and added again.
    """
    async with (
        open_sql_repository(database_url) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await scheduler.add_schedule("s", Interval(10), "note")
        await scheduler.add_schedule("other", Interval(15), "note")
        value = "9e18" if database_url.startswith("sqlite") else "'infinity'"
        say(repository, f"UPDATE gokugen_schedule SET created_at = {value} WHERE id = 's'")  # noqa: S608 (of a test)
        [head, _] = await scheduler.find(TaskQuery(states={TaskState.SCHEDULED}))
        ended = await scheduler.wait(head.id)
        assert ended.state is TaskState.FAILED
        assert (ended.err or "").startswith("DamagedScheduleError: the stored schedule 's'")
        await trio.sleep(10)
        assert [when for _, when in bench.starts] == [15.0]
        for call in scheduler.get_schedule, scheduler.pause_schedule:
            with pytest.raises(DamagedScheduleError, match="remove it, and add it again"):
                await call("s")
        assert await scheduler.remove_schedule("s")
        schedule = await scheduler.add_schedule("s", Interval(10), "note")
        assert schedule.next_at == noon(30)


def rule_is(repository: SQLRepository, rule: str, which: str = "id = 's'") -> None:
    """Have something else stored as the trigger of a schedule."""
    cast = "" if str(repository.store.engine.url).startswith("sqlite") else "::json"
    with repository.store.engine.begin() as connection:
        connection.exec_driver_sql(
            f"UPDATE gokugen_schedule SET rule = '{rule}'{cast} WHERE {which}"  # noqa: S608 (of a test)
        )


def say(repository: SQLRepository, statement: str, **values: Any) -> None:
    """Say something to the database of a repository."""
    with repository.store.engine.begin() as connection:
        connection.execute(text(statement), values)


async def test_what_is_removed_unread(database_url: str) -> None:
    """
    With a schedule that cannot be read its next occurrence goes, too.
    """
    async with open_sql_repository(database_url) as repository:
        schedule = Schedule(id="s", trigger=Interval(1), work_id="w", created_at=NOON)
        await repository.change_schedule(PutSchedule(schedule, NOON))
        rule_is(repository, MOON)
        changed = await repository.change_schedule(RemoveSchedule("s", NOON))
        assert changed.task is not None
        assert changed.task.state is TaskState.CANCELLED
        assert await repository.find(TaskQuery()) == [changed.task]
        assert await repository.find_schedules() == []


async def test_a_run_that_is_gone(sqlite_url: str) -> None:
    """
    A schedule whose run somebody has deleted goes on once it is added again.
    """
    async with open_sql_repository(sqlite_url) as repository:
        schedule = Schedule(id="s", trigger=Interval(10), work_id="w", created_at=NOON)
        await repository.change_schedule(PutSchedule(schedule, NOON))
        await repository.claim(1, noon(10))
        say(repository, "DELETE FROM gokugen_task")
        changed = await repository.change_schedule(PutSchedule(schedule, noon(12)))
        assert changed.made is not None
        assert changed.made.nominal_at == noon(20)


@pytest.mark.parametrize("change", ["add", "update", "pause"])
@pytest.mark.parametrize("param", ["{}", "[1]"], ids=["whole", "damaged"])
async def test_a_run_that_has_ended_unseen(
    database_url: str, change: str, param: str
) -> None:
    """
    A schedule that could not be read as the run it waits for ended goes on once it is
    readable, and added again, or changed, or paused and resumed; and no sooner than the run
    has ended.
    """
    async with open_sql_repository(database_url) as repository:
        schedule = Schedule(id="s", trigger=Interval(10), work_id="w", created_at=NOON)
        other = ScheduleUpdate(meta={"other": 1})

        async def touch(at: datetime) -> None:
            changes: dict[str, list[ChangeSchedule]] = {
                "add": [PutSchedule(schedule, at)],
                "update": [UpdateSchedule("s", other, at)],
                "pause": [PauseSchedule("s", at), ResumeSchedule("s", at, catch_up=True)],
            }
            for each in changes[change]:
                await repository.change_schedule(each)

        await repository.change_schedule(PutSchedule(schedule, NOON))
        [run] = (await repository.claim(1, noon(10))).tasks
        damage = "UPDATE gokugen_task SET param = CAST(:param AS JSON)"
        if database_url.startswith("sqlite"):
            damage = "UPDATE gokugen_task SET param = :param"
        say(repository, damage, param=param)
        await touch(noon(11))
        assert (await repository.get_schedule("s")).awaited_id == run.id
        rule_is(repository, MOON)
        await repository.mark_done(run, noon(25))
        rule_is(repository, KNOWN)
        await touch(noon(26))
        pending = await repository.find(TaskQuery(states={TaskState.SCHEDULED}))
        [first] = (await repository.claim(9, noon(30))).tasks
        assert len(pending) == 1
        assert first.nominal_at == noon(30)
        assert first.attempt == 1


DEEP = '{"either": [' * 400 + "5" + "]}" * 400
DAMAGED = [
    *(("rule", rule) for rule in ("[1]", "{}", "null", '{"cron": 5}', '{"at": [5]}', DEEP)),
    ("rule", '{"cron": "@daily", "tz": 5}'),
    ("rule", '{"cron": "soon", "tz": "UTC"}'),
    ("rule", '{"either": [{"every": "10s"}, 5]}'),
    ("rule", '{"every": 1e400}'),
    ("rule", '{"except": [[1]], "of": {"every": "1s"}}'),
    ("rule", '{"except": []}'),
    ("param", "null"),
    ("late", "null"),
    ("late", "[1]"),
    ("late", '{"unknown": 1}'),
    ("late", '{"limit": "few"}'),
    ("overlap", "maybe"),
    ("jitter", -5),
    ("jitter", 2**63 - 1),
    ("deadline_after", 0),
    ("runs", -1),
    ("dropped", 2**63 - 1),
    ("paused", 7),
]
OF_A_WRONG_TYPE = [
    ("runs", "abc"),
    ("dropped", b"\xff"),
    ("jitter", "short"),
    ("jitter", 1.5),
    ("jitter", float("inf")),
    ("deadline_after", float("inf")),
    ("priority", "high"),
    ("paused", "yes"),
    ("created_at", "now"),
    ("work_id", b"\xff"),
    ("pending_id", b"\xff"),
    ("overlap", b"\xff"),
]


def damage(repository: SQLRepository, column: str, value: object) -> None:
    """Have something else stored in the row of the schedule ``s``."""
    found = ":value"
    if column in {"rule", "late", "param"} and "sqlite" not in str(
        repository.store.engine.url
    ):
        found = "CAST(:value AS JSON)"
    say(
        repository,
        f"UPDATE gokugen_schedule SET {column} = {found} WHERE id = 's'",  # noqa: S608 (of a test)
        value=value,
    )


async def _fails(repository: SQLRepository, column: str, value: object) -> None:
    """Check what becomes of a schedule that is damaged."""
    for schedule_id in "s", "t":
        schedule = Schedule(
            id=schedule_id, trigger=Interval(10), work_id="w", created_at=NOON
        )
        await repository.change_schedule(PutSchedule(schedule, NOON))
    damage(repository, column, value)
    found = await repository.find_schedules()
    assert [each.id for each in found] == ["t"]
    assert isinstance(found.unreadable["s"], DamagedScheduleError)
    with pytest.raises(DamagedScheduleError):
        await repository.get_schedule("s")
    claimed = await repository.claim(9, noon(10))
    assert [task.schedule_id for task in claimed.tasks] == ["t"]
    [failed] = claimed.expired
    assert (failed.err or "").startswith("DamagedScheduleError: the stored schedule 's'")
    await repository.change_schedule(RemoveSchedule("s", noon(11)))
    assert [each.id for each in await repository.find_schedules()] == ["t"]


@pytest.mark.parametrize(("column", "value"), DAMAGED, ids=lambda each: str(each)[:40])
async def test_what_was_never_written_is_damaged(
    database_url: str, column: str, value: object
) -> None:
    """
    A schedule with a value that nobody has written there is damaged, and not one that
    others may know: its next occurrence fails, and others go on.
    """
    async with open_sql_repository(database_url) as repository:
        await _fails(repository, column, value)


@pytest.mark.parametrize(("column", "value"), OF_A_WRONG_TYPE, ids=str)
async def test_a_value_of_a_wrong_type(sqlite_url: str, column: str, value: object) -> None:
    """
    SQLite may have a value of any type in a column: where it is wrong, the schedule is
    damaged.
    """
    async with open_sql_repository(sqlite_url) as repository:
        await _fails(repository, column, value)


async def test_an_id_of_a_wrong_type(sqlite_url: str) -> None:
    """
    A schedule whose id is none is told of as far as it can be told, and spoils no other.
    """
    async with open_sql_repository(sqlite_url) as repository:
        for schedule_id in "s", "t":
            schedule = Schedule(
                id=schedule_id, trigger=Interval(10), work_id="w", created_at=NOON
            )
            await repository.change_schedule(PutSchedule(schedule, NOON))
        damage(repository, "id", b"\xff")
        found = await repository.find_schedules()
        assert [each.id for each in found] == ["t"]
        [why] = found.unreadable.values()
        assert str(why) == str(DamagedScheduleError(r"b'\xff'", "id is damaged"))


async def test_more_than_a_database_can_count(database_url: str) -> None:
    """
    However many schedules are asked for at most, those that are there are found.
    """
    async with open_sql_repository(database_url) as repository:
        schedule = Schedule(id="s", trigger=Interval(1), work_id="w", created_at=NOON)
        await repository.change_schedule(PutSchedule(schedule, NOON))
        found = await repository.find_schedules(2**70)
        assert [each.id for each in found] == ["s"]


async def test_schedules_of_which_some_cannot_be_read(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    A schedule that cannot be read spoils no other: these are found, page by page, and it is
    told why it is not.
    """
    async with (
        open_sql_repository(database_url) as repository,
        open_bench(repository) as (scheduler, _),
    ):
        for schedule_id in "abcdef":
            await scheduler.add_schedule(schedule_id, Interval(10), "note", paused=True)
        rule_is(repository, MOON, "id <> 'c'")
        rule_is(repository, KNOWN, "id = 'f'")
        found = await scheduler.find_schedules()
        assert [each.id for each in found] == ["c", "f"]
        assert [*found.unreadable] == ["a", "b", "d", "e"]
        for schedule_id, why in found.unreadable.items():
            with pytest.raises(UnknownScheduleError) as caught:
                await scheduler.get_schedule(schedule_id)
            assert str(caught.value) == str(why)
        pages: list[list[str]] = []
        last: str | None = None
        while page := await scheduler.find_schedules(limit=1, after=last):
            pages.append([each.id for each in page] + [*page.unreadable])
            last = page[-1].id
        assert pages == [["c", "a", "b"], ["f", "d", "e"]]
        assert len(plan(found, NOON, noon(20))) == 0


async def test_a_damaged_occurrence(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    An occurrence that cannot be read fails, and the next one is made.
    """
    async with (
        open_sql_repository(sqlite_url) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await scheduler.add_schedule("s", Interval(10), "note")
        with repository.store.engine.begin() as connection:
            connection.execute(text("UPDATE gokugen_task SET param = '[1]'"))
        await trio.sleep(25)
        [failed] = await scheduler.find(TaskQuery(states={TaskState.FAILED}))
        assert "param is damaged" in (failed.err or "")
    assert [when for _, when in bench.starts] == [20.0]


async def test_a_damaged_occurrence_beside_one_that_is_postponed(
    database_url: str,
) -> None:
    """
    If the next occurrence cannot be read, and one that was postponed is taken by the same
    claim, the schedule goes on.
    """
    async with open_sql_repository(database_url) as repository:
        schedule = Schedule(
            id="s", trigger=Interval(10), work_id="w", created_at=NOON, overlap="allow"
        )
        made = (await repository.change_schedule(PutSchedule(schedule, NOON))).made
        assert made is not None
        later = TaskUpdate(scheduled_at=noon(25))
        await repository.update(made.id, later)
        damaged = (await repository.get_schedule("s")).pending_id
        cast = "" if database_url.startswith("sqlite") else "::json"
        say(
            repository,
            f"UPDATE gokugen_task SET param = '[1]'{cast} WHERE id = :id",  # noqa: S608 (of a test)
            id=damaged,
        )
        claimed = await repository.claim(9, noon(26))
        assert [task.id for task in claimed.expired] == [damaged]
        assert [task.nominal_at for task in claimed.tasks] == [noon(10)]
        after = await repository.get_schedule("s")
        assert after.next_at == noon(30)
        assert after.pending_id is not None
        assert (await repository.get(after.pending_id)).state is TaskState.SCHEDULED


async def test_the_next_occurrence_is_gone(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    If somebody has deleted the row of the next occurrence, a schedule that is changed goes
    on.
    """
    async with (
        open_sql_repository(sqlite_url) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await scheduler.add_schedule("s", Interval(10), "note")
        with repository.store.engine.begin() as connection:
            connection.execute(text("DELETE FROM gokugen_task"))
        await scheduler.update_schedule("s", priority=1)
        await trio.sleep(15)
    assert [when for _, when in bench.starts] == [10.0]


async def test_schedules_that_are_unchanged(database_url: str) -> None:
    """
    To add schedules that are there already takes as few statements for many as for one;
    to add or change many, too.
    """

    def puts(many: int, priority: int = 0) -> list[OnSchedule]:
        schedules = [
            Schedule(
                id=str(number),
                trigger=Interval(10),
                work_id="w",
                priority=priority,
                created_at=NOON,
            )
            for number in range(many)
        ]
        return [OnSchedule(PutSchedule(schedule, noon(1))) for schedule in schedules]

    async with open_sql_repository(database_url) as repository:
        said: list[str] = []

        @event.listens_for(repository.store.engine, "before_cursor_execute")
        def note(*args: Any) -> None:
            said.append(args[2])

        async def count(operations: list[OnSchedule]) -> int:
            said.clear()
            for each in await repository.apply(operations):
                each.unwrap()
            return len(said)

        await repository.apply(puts(1))
        await repository.apply(puts(2))  # one is new
        few = await count(puts(2))
        assert await count(puts(500)) <= few + 3
        assert await count(puts(500)) == few
        assert not any("INSERT" in each or "UPDATE gokugen" in each for each in said)
        assert await count(puts(500, priority=1)) <= few + 3
        found = await repository.find(TaskQuery(states={TaskState.SCHEDULED}))
        assert [task.priority for task in found] == [1] * 500


async def test_in_the_users_own_transaction(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    An occurrence that is cancelled in a transaction of the user's makes the next one there.
    """
    async with (
        open_sql_repository(database_url) as repository,
        open_bench(repository) as (scheduler, _),
    ):
        await scheduler.add_schedule("s", Interval(10), "note")
        [head] = await scheduler.find()

        def cancel() -> None:
            with engine_of(database_url) as engine, engine.begin() as connection:
                assert repository.cancel_in(connection, head.id)

        with autojump_held():
            await trio.to_thread.run_sync(cancel)
        tasks = await scheduler.find()
        assert [(each.nominal_at, each.state.value) for each in tasks] == [
            (noon(10), "cancelled"),
            (noon(20), "scheduled"),
        ]


async def test_a_pause_that_comes_between(
    autojump_clock: trio.testing.MockClock, postgresql_url: str
) -> None:
    """
    If the next occurrence is taken just as a schedule is about to be paused, it is the one
    after that is cancelled.
    """
    async with (
        open_sql_repository(postgresql_url) as repository,
        open_sql_repository(postgresql_url) as other,
    ):
        schedule = Schedule(
            id="s", trigger=Interval(10), work_id="w", created_at=NOON, overlap="allow"
        )
        await repository.change_schedule(PutSchedule(schedule, NOON))
        looked, taken = threading.Event(), threading.Event()

        @event.listens_for(repository.store.engine, "after_cursor_execute")
        def wait(*args: Any) -> None:
            if "SELECT gokugen_schedule.pending_id" in args[2] and not looked.is_set():
                looked.set()
                taken.wait(60)

        changes: list[Any] = []

        async def pause() -> None:
            changed = await repository.change_schedule(PauseSchedule("s", noon(10)))
            changes.append(changed.task)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pause)
            with autojump_held():
                await trio.to_thread.run_sync(looked.wait, 60)
            claimed = await other.claim(1, noon(10))
            taken.set()
    [run] = claimed.tasks
    assert run.nominal_at == noon(10)
    assert [task.nominal_at for task in changes] == [noon(20)]


async def test_a_run_ends_as_it_is_replaced(postgresql_url: str) -> None:
    """
    A claim that replaces a run and the end of that run do not wait for each other.
    """
    failed: list[str] = []
    async with (
        open_sql_repository(postgresql_url) as ending,
        open_sql_repository(postgresql_url) as claiming,
    ):
        schedule = Schedule(
            id="s", trigger=Interval(10), work_id="w", created_at=NOON, overlap="replace"
        )
        await ending.change_schedule(PutSchedule(schedule, NOON))
        [run] = (await ending.claim(1, noon(10))).tasks
        has_run, claim_waits = threading.Event(), threading.Event()

        @event.listens_for(ending.store.engine, "after_cursor_execute")
        def wait(*args: Any) -> None:
            if "UPDATE gokugen_task SET state" in args[2] and not has_run.is_set():
                has_run.set()
                claim_waits.wait(60)

        for repository in ending, claiming:

            @event.listens_for(repository.store.engine, "handle_error")
            def note(context: Any) -> None:
                failed.append(str(context.original_exception))

        async def end() -> None:
            await ending.mark_done(run, noon(19))

        def look() -> None:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            with engine_of(postgresql_url) as engine, engine.connect() as connection:
                while not connection.execute(text(waiting)).scalar():
                    connection.rollback()
            claim_waits.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            await trio.to_thread.run_sync(has_run.wait, 60)
            nursery.start_soon(trio.to_thread.run_sync, look)
            claimed = await claiming.claim(1, noon(20))
        assert [task.nominal_at for task in claimed.tasks] == [noon(20)]
        assert claimed.replaced == []
        assert (await ending.get(run.id)).state is TaskState.DONE
    assert failed == []
