"""Schedules: works that run again and again, on virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from stores import ListStore
from support import NOON, Bench, noon, open_bench

from trio_gokugen import (
    At,
    Cron,
    Dropped,
    HeapRepository,
    Interval,
    InvalidTaskError,
    InvalidTriggerError,
    Late,
    NoSchedulesError,
    PartialHooks,
    Schedule,
    ScheduleNotFoundError,
    Scheduler,
    Task,
    TaskQuery,
    TaskState,
    TimedRepository,
    TrioClock,
    WorkNotFoundError,
    current_task,
)
from trio_gokugen._schedule import PutSchedule
from trio_gokugen.abc import OnSchedule, Operation


def times(bench: Bench) -> list[float]:
    """When works have started."""
    return [when for _, when in bench.starts]


async def pending(scheduler: Scheduler) -> list[Task]:
    return await scheduler.find(TaskQuery(states={TaskState.SCHEDULED}))


# -- overlap --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlap", "starts", "cancelled", "dropped"),
    [
        ("skip", [10, 40, 70], [], [(20, 30), (50, 60)]),
        ("queue", [10, 35, 60], [], [(30, 30), (50, 60)]),
        ("allow", [10, 20, 30, 40, 50, 60, 70], [], []),
        ("replace", [10, 20, 30, 40, 50, 60, 70], [20, 30, 40, 50, 60, 70], []),
    ],
)
async def test_overlap(
    autojump_clock: trio.testing.MockClock,
    overlap: Any,
    starts: list[float],
    cancelled: list[float],
    dropped: list[Any],
) -> None:
    """
    What falls due while the one before runs is skipped, waits, runs beside it, or takes
    its place.
    """
    told: list[Dropped] = []

    async def note(what: Dropped) -> None:
        told.append(what)

    hooks = PartialHooks(on_dropped=note)
    async with open_bench(hooks=hooks, grace=0) as (scheduler, bench):
        await scheduler.add_schedule(
            "s", Interval(10), "sleep", {"seconds": 25}, overlap=overlap
        )
        await trio.sleep(75)
        schedule = await scheduler.get_schedule("s")
        assert schedule.runs == len(starts)
        assert schedule.dropped == sum(each.count for each in told)
        ends = [when for what, when in bench.log if what.endswith("cancelled")]
        assert ends == cancelled
    assert times(bench) == starts
    assert [(each.first, each.last) for each in told] == [
        (noon(first), noon(last)) for first, last in dropped
    ]
    assert {each.reason for each in told} <= {"overlap"}


async def test_what_is_replaced_ends_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Who waits for a run that is replaced is told that it was cancelled, without a warning.
    """
    async with open_bench(grace=0) as (scheduler, _):
        await scheduler.add_schedule("s", Interval(10), "sleep", overlap="replace")
        [task] = await pending(scheduler)
        ended = await scheduler.wait(task.id)
        assert (trio.current_time(), ended.state) == (20.0, TaskState.CANCELLED)
        assert ended.cancelled_at == noon(20)
        await trio.testing.wait_all_tasks_blocked()
        statistics = scheduler.statistics()
        assert (statistics.cancelled, statistics.running) == (1, 1)


async def test_an_interval_from_the_end(autojump_clock: trio.testing.MockClock) -> None:
    """
    With `after="end"` the next occurrence is so long after the end of the one before.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule(
            "s", Interval(10), "sleep", {"seconds": 3.5}, after="end"
        )
        await trio.sleep(40)
    assert times(bench) == [10.0, 23.5, 37.0]


async def test_one_waits_for_the_end(autojump_clock: trio.testing.MockClock) -> None:
    """
    What waits for the end of the one before starts right then, and the next in time.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule(
            "s", Interval(10), "sleep", {"seconds": 15}, overlap="queue"
        )
        await trio.sleep(32)
        assert (await scheduler.get_schedule("s")).dropped == 0
    assert times(bench) == [10.0, 25.0]


async def test_what_waits_is_not_late(autojump_clock: trio.testing.MockClock) -> None:
    """
    An occurrence that has waited for the one before is not dropped as late.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule(
            "s",
            Interval(10),
            "sleep",
            {"seconds": 18},
            overlap="queue",
            late=Late(run="none"),
        )
        await trio.sleep(50)
    assert times(bench) == [10.0, 28.0, 46.0]


# -- late -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "runs", "dropped"),
    [
        (Late(), [(55, 50)], 4),
        (Late(run="earliest"), [(55, 10)], 4),
        (Late(run="all"), [(55, 10), (55, 20), (55, 30), (55, 40), (55, 50)], 0),
        (Late(run="all", limit=2), [(55, 40), (55, 50)], 3),
        (Late(run="none"), [], 5),
        (Late(run="none", window=5), [(55, 50)], 4),
        (Late(window=4), [], 5),
        (Late(window=25, run="earliest"), [(55, 30)], 4),
        (Late(window=timedelta(seconds=25), run="all"), [(55, 30), (55, 40), (55, 50)], 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("overlap", ["skip", "allow"])
async def test_late(
    autojump_clock: trio.testing.MockClock,
    late: Late,
    runs: list[tuple[float, float]],
    dropped: int,
    overlap: Any,
) -> None:
    """
    Of what has passed while every worker was busy, some run, and the others are counted.
    """
    ran: list[tuple[datetime | None, datetime | None]] = []

    async def note(task: Task) -> None:
        if task.schedule_id is not None:
            ran.append((task.dispatched_at, task.nominal_at))

    hooks = PartialHooks(on_dispatch=note)
    async with open_bench(hooks=hooks, max_workers=1) as (scheduler, _):
        await scheduler.add_schedule("s", Interval(10), "note", late=late, overlap=overlap)
        await scheduler.add_task("sleep", {"seconds": 50}, after=5)
        await trio.sleep(65)
        assert (await scheduler.get_schedule("s")).dropped == dropped
    expected = [(noon(at), noon(nominal)) for at, nominal in [*runs, (60, 60)]]
    assert ran == expected


class Counting(Interval):
    """Counts how often it is asked."""

    asked = 0

    def next_after(self, moment: datetime) -> datetime | None:
        type(self).asked += 1
        return super().next_after(moment)


@pytest.mark.parametrize("run", ["latest", "earliest", "all", "none"])
@pytest.mark.parametrize("window", [None, 2.5], ids=["any lateness", "window"])
@pytest.mark.parametrize("jitter", [0, 0.5])
async def test_a_gap_of_centuries(
    autojump_clock: trio.testing.MockClock, run: Any, window: float | None, jitter: float
) -> None:
    """
    However long nothing ran, few moments are looked at, and few tasks are made.
    """
    repository = HeapRepository()
    schedule = Schedule(
        id="s",
        trigger=Counting(1),
        work_id="note",
        created_at=NOON,
        late=Late(run=run, window=window, limit=5),
        jitter=jitter,
        overlap="allow",
    )
    await repository.change_schedule(PutSchedule(schedule, NOON))
    Counting.asked = 0
    later = datetime(2200, 1, 1, tzinfo=UTC) + timedelta(seconds=0.9)
    claimed = await repository.claim(1000, later)
    assert len(claimed.tasks) <= 5
    assert Counting.asked < 10_000
    dropped = sum(each.count for each in claimed.dropped)
    passed = (later - NOON) // timedelta(seconds=1)
    assert dropped + len(claimed.tasks) == passed
    found = await repository.find(TaskQuery())
    assert len(found) == len(claimed.tasks) + 1
    [head] = [task for task in found if task.state is TaskState.SCHEDULED]
    assert head.nominal_at == datetime(2200, 1, 1, 0, 0, 1, tzinfo=UTC)
    if run in {"latest", "all"}:
        assert claimed.tasks[-1].nominal_at == datetime(2200, 1, 1, tzinfo=UTC)


async def test_a_long_gap_of_what_cannot_be_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Of a cron job that has missed very many, at least a thousand are counted.
    """
    repository = HeapRepository()
    schedule = Schedule(id="s", trigger=Cron("* * * * *"), work_id="note", created_at=NOON)
    await repository.change_schedule(PutSchedule(schedule, NOON))
    claimed = await repository.claim(1, noon(86_400 * 365))
    [dropped] = claimed.dropped
    assert (dropped.count, dropped.first) == (1000, noon(60))
    assert dropped.last == noon(86_400 * 365 - 60)
    assert claimed.tasks[0].nominal_at == noon(86_400 * 365)


@pytest.mark.parametrize("seconds", [600, 1000])
async def test_a_gap_of_microseconds(
    autojump_clock: trio.testing.MockClock, seconds: int
) -> None:
    """
    Moments that are as near to each other as can be are found one by one.
    """
    repository = HeapRepository()
    trigger = Interval(timedelta(microseconds=1))
    schedule = Schedule(id="s", trigger=trigger, work_id="note", created_at=NOON)
    await repository.change_schedule(PutSchedule(schedule, NOON))
    claimed = await repository.claim(1, noon(seconds))
    assert claimed.tasks[0].nominal_at == noon(seconds)
    assert claimed.dropped[0].count == 1_000_000 * seconds - 1


async def test_many_that_have_no_next_one(autojump_clock: trio.testing.MockClock) -> None:
    """
    If thousands are missed, and none is to come, the schedule has come to its end.
    """
    repository = HeapRepository()
    trigger = At([noon(n) for n in range(1, 1500)])
    schedule = Schedule(
        id="s", trigger=trigger, work_id="note", created_at=NOON, late=Late(run="none")
    )
    await repository.change_schedule(PutSchedule(schedule, NOON))
    claimed = await repository.claim(1, noon(10_000))
    [ended] = claimed.expired
    assert ended.state is TaskState.CANCELLED
    assert claimed.dropped[0].count == 1000
    assert (await repository.get_schedule("s")).next_at is None


async def test_a_deadline_that_never_comes(autojump_clock: trio.testing.MockClock) -> None:
    """
    A deadline beyond the last moment there is is none.
    """
    repository = HeapRepository()
    last = datetime(9999, 12, 31, tzinfo=UTC)
    schedule = Schedule(
        id="s", trigger=At([last]), work_id="note", created_at=NOON, deadline_after=1e6
    )
    changed = await repository.change_schedule(PutSchedule(schedule, NOON))
    assert changed.made is not None
    assert (changed.made.scheduled_at, changed.made.deadline) == (last, None)


async def test_a_schedule_goes_on_after_a_restart(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What a program has missed while it was down is late; declared anew, it is the same.
    """
    repository = HeapRepository()
    for down, starts in (0, [10.0, 20.0, 30.0]), (27, [62.0, 70.0, 80.0]):
        await trio.sleep(down)
        async with open_bench(repository) as (scheduler, bench):
            await scheduler.add_schedule("s", Interval(10), "note")
            await trio.sleep(35 if not down else 25)
        assert times(bench) == starts


async def test_a_run_that_was_cut_short_runs_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A run that a shutdown has interrupted is not lost, nor is the occurrence after it.
    """
    repository = HeapRepository()
    async with open_bench(repository, grace=0) as (scheduler, bench):
        await scheduler.add_schedule("s", Interval(10), "sleep", {"seconds": 4})
        await trio.sleep(12)
    async with open_bench(repository) as (scheduler, second):
        await trio.sleep(20)
        [first, _] = await scheduler.find(TaskQuery(states={TaskState.DONE}))
        assert (first.nominal_at, first.attempt) == (noon(10), 2)
    assert [*times(bench), *times(second)] == [10.0, 12.0, 20.0, 30.0]


async def test_a_run_that_was_cut_short_and_is_too_late(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A run that a shutdown has interrupted fails if its deadline has passed by the time that
    it could go on, and the next occurrence is made.
    """
    repository = HeapRepository()
    async with open_bench(repository, grace=0) as (scheduler, bench):
        await scheduler.add_schedule(
            "s", Interval(10), "sleep", {"seconds": 4}, deadline_after=3
        )
        await trio.sleep(12)
    await trio.sleep(5)
    async with open_bench(repository) as (scheduler, second):
        await trio.sleep(6)
        [failed] = await scheduler.find(TaskQuery(states={TaskState.FAILED}))
        assert failed.nominal_at == noon(10)
    assert [*times(bench), *times(second)] == [10.0, 20.0]


async def test_whoever_sleeps_hears_of_the_next_occurrence(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A claim that makes an occurrence wakes those who wait for a task.
    """
    repository = HeapRepository()
    repository.start_timer(TrioClock(NOON, 0.0))
    schedule = Schedule(
        id="s", trigger=Interval(10), work_id="note", created_at=NOON, overlap="allow"
    )
    await repository.change_schedule(PutSchedule(schedule, NOON))
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            task = await repository.wait_until_due()
            assert (trio.current_time(), task.nominal_at) == (20.0, noon(20))

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await repository.claim(1, noon(10))
    repository.stop_timer()


# -- what users say -------------------------------------------------------------------


async def test_a_schedule_is_declared_at_every_start(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Added again it stays as it is; differing, it is changed; its pause and counters stay.
    """
    async with open_bench() as (scheduler, bench):
        first = await scheduler.add_schedule("s", Interval(10), "note", jitter=0)
        assert await scheduler.add_schedule("s", Interval("10s"), "note") == first
        await trio.sleep(25)
        await scheduler.pause_schedule("s")
        changed = await scheduler.add_schedule("s", Interval(30), "note")
        assert (changed.paused, changed.runs, changed.trigger) == (True, 2, Interval(30))
        assert changed.next_at == noon(30)
        await scheduler.resume_schedule("s")
        await trio.sleep(40)
        assert [each.id for each in await scheduler.find_schedules()] == ["s"]
    assert times(bench) == [10.0, 20.0, 30.0, 60.0]


async def test_a_schedule_is_changed_while_it_runs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A schedule that is changed while an occurrence runs goes on as changed after it.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule("s", Interval(10), "sleep", {"seconds": 7})
        await trio.sleep(12)
        changed = await scheduler.update_schedule("s", trigger=Interval(5), priority=4)
        assert (changed.next_at, changed.pending_id) == (noon(15), None)
        await trio.sleep(6)
        [task] = await pending(scheduler)
        assert (task.nominal_at, task.priority) == (noon(20), 4)
        await scheduler.pause_schedule("s")
        await trio.sleep(20)
    assert times(bench) == [10.0]


@pytest.mark.parametrize(
    ("catch_up", "starts"), [(False, [10.0, 50.0]), (True, [10.0, 45.0, 50.0])]
)
async def test_a_pause(
    autojump_clock: trio.testing.MockClock, catch_up: bool, starts: list[float]
) -> None:
    """
    Nothing runs during a pause; after it, what fell into it is late, if that is wished.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule("s", Interval(10), "note")
        await trio.sleep(15)
        [task] = await pending(scheduler)
        assert await scheduler.pause_schedule("s")
        assert (await scheduler.wait(task.id)).state is TaskState.CANCELLED
        await trio.sleep(30)
        assert await scheduler.resume_schedule("s", catch_up=catch_up)
        await trio.sleep(6)
        schedule = await scheduler.get_schedule("s")
        assert schedule.dropped == (2 if catch_up else 3)
    assert times(bench) == starts


async def test_a_schedule_is_resumed_before_its_run_has_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A pause that begins and ends while an occurrence runs makes no second next one.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule("s", Interval(10), "sleep", {"seconds": 14})
        await trio.sleep(12)
        await scheduler.pause_schedule("s")
        await trio.sleep(10)
        await scheduler.resume_schedule("s")
        assert await pending(scheduler) == []
        await trio.sleep(10)
        await scheduler.pause_schedule("s")
        await trio.sleep(20)
        assert await pending(scheduler) == []
    assert times(bench) == [10.0, 30.0]


async def test_a_pause_of_what_counts_from_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Resumed, an interval that counts from ends counts from now, if its time has passed.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule("s", Interval(10), "note", after="end")
        await trio.sleep(15)
        await scheduler.pause_schedule("s")
        await trio.sleep(30)
        await scheduler.resume_schedule("s")
        await trio.sleep(12)
        assert (await scheduler.get_schedule("s")).dropped == 1
    assert times(bench) == [10.0, 55.0]


async def test_a_new_schedule_may_be_paused(autojump_clock: trio.testing.MockClock) -> None:
    """
    A schedule that is added paused does nothing before it is resumed.
    """
    async with open_bench() as (scheduler, bench):
        schedule = await scheduler.add_schedule("s", Interval(10), "note", paused=True)
        assert (schedule.next_at, schedule.pending_id) == (noon(10), None)
        await trio.sleep(25)
        await scheduler.resume_schedule("s")
        await trio.sleep(10)
    assert times(bench) == [30.0]


async def test_a_schedule_is_triggered(autojump_clock: trio.testing.MockClock) -> None:
    """
    Told to, its work runs at once, whatever runs of it, and the plan stays.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule("s", Interval(10), "sleep", {"seconds": 8})
        await trio.sleep(12)
        task = await scheduler.trigger_schedule("s")
        assert (task.schedule_id, task.nominal_at) == ("s", None)
        await trio.sleep(10)
    assert times(bench) == [10.0, 12.0, 20.0]


async def test_one_occurrence_is_cancelled_or_postponed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Cancelled, one occurrence is skipped; postponed, it runs later, and the next in time.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule("s", Interval(10), "note")
        [task] = await pending(scheduler)
        assert await scheduler.cancel(task.id)
        [task] = await pending(scheduler)
        assert task.nominal_at == noon(20)
        assert await scheduler.update(task.id, scheduled_at=noon(34))
        await trio.sleep(45)
    assert times(bench) == [30.0, 34.0, 40.0]


async def test_a_removed_schedule(autojump_clock: trio.testing.MockClock) -> None:
    """
    Removed, a schedule is gone, with what was pending; what runs of it goes on.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule("s", Interval(10), "sleep", overlap="allow")
        await trio.sleep(15)
        assert await scheduler.remove_schedule("s")
        assert not await scheduler.remove_schedule("s")
        assert await scheduler.find_schedules() == []
        for call in (
            scheduler.get_schedule,
            scheduler.pause_schedule,
            scheduler.resume_schedule,
            scheduler.trigger_schedule,
            scheduler.update_schedule,
        ):
            with pytest.raises(ScheduleNotFoundError, match="no schedule 's'"):
                await call("s")
        await scheduler.drain()
        assert trio.current_time() == 70.0
    assert times(bench) == [10.0]


async def test_an_occurrence_knows_its_schedule(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Inside of the work the current task tells the schedule, and the moment that it meant.
    """
    seen: list[Task] = []
    async with open_bench() as (scheduler, bench):

        async def look() -> None:
            seen.append(current_task())

        bench.works.register("look", look)
        await scheduler.add_schedule(
            "s", Interval(10), "look", jitter=5, meta={"m": 1}, deadline_after=4
        )
        await trio.sleep(20)
    [task] = seen
    assert (task.schedule_id, task.nominal_at, task.meta) == ("s", noon(10), {"m": 1})
    assert task.deadline == task.scheduled_at + timedelta(seconds=4)
    assert noon(10) < task.scheduled_at < noon(15)


async def test_an_occurrence_past_its_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An occurrence that no worker took in time fails, and the next one is there.
    """
    async with open_bench(max_workers=1) as (scheduler, bench):
        await scheduler.add_schedule("s", Interval(20), "note", deadline_after=3)
        await scheduler.add_task("sleep", {"seconds": 10}, after=15)
        await trio.sleep(45)
        [failed] = await scheduler.find(TaskQuery(states={TaskState.FAILED}))
        assert failed.nominal_at == noon(20)
        assert (await scheduler.get_schedule("s")).runs == 1
    assert times(bench) == [15.0, 40.0]


async def test_a_schedule_without_a_moment_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A schedule whose moments are over stays, with its counters; and one that had none.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule("s", At([noon(5), noon(7)]), "note")
        past = await scheduler.add_schedule("past", At([noon(-1)]), "note")
        assert (past.next_at, past.pending_id) == (None, None)
        await trio.sleep(10)
        schedule = await scheduler.get_schedule("s")
        assert (schedule.next_at, schedule.runs) == (None, 2)
        await scheduler.drain()
        await scheduler.update_schedule("past", trigger=At([noon(12)]))
        await trio.sleep(10)
    assert times(bench) == [5.0, 7.0, 12.0]


async def test_a_nightly_job_while_the_clocks_are_set(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A nightly job runs once each night, also when its hour is left out, or comes twice.
    """
    spring = datetime(2030, 3, 29, 12, tzinfo=UTC)
    ran: list[datetime | None] = []

    async def note(task: Task) -> None:
        ran.append(task.dispatched_at)

    hooks = PartialHooks(on_dispatch=note)
    async with open_bench(clock=TrioClock(spring, 0), hooks=hooks) as (scheduler, _):
        await scheduler.add_schedule("s", Cron("30 2 * * *", tz="Europe/Berlin"), "note")
        await trio.sleep(4 * 86_400)
    assert [each and each.isoformat()[5:16] for each in ran] == [
        "03-30T01:30",
        "03-31T01:00",  # 02:30 does not exist
        "04-01T00:30",
        "04-02T00:30",
    ]


# -- jitter ---------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", [0.000001, 3, 10, 1000])
def test_jitter(jitter: float) -> None:
    """
    Each occurrence is shifted by a part that is always the same, and before the next one.
    """
    schedule = Schedule(
        id="s", trigger=Interval(10), work_id="w", created_at=NOON, jitter=jitter
    )
    dues = [schedule.due(noon(10 * n)) for n in range(100)]
    assert dues == [attrs.evolve(schedule).due(noon(10 * n)) for n in range(100)]
    shifts = [due - noon(10 * n) for n, due in enumerate(dues)]
    room = timedelta(seconds=min(jitter, 10))
    assert all(timedelta(0) <= shift < room for shift in shifts)
    if jitter >= 3:
        assert len(set(shifts)) == 100
        mean = sum(shifts, timedelta(0)) / 100
        assert abs(mean / room - 0.5) < 0.1
    other = attrs.evolve(schedule, id="t", jitter=timedelta(seconds=3))
    assert other.due(NOON) != attrs.evolve(other, id="s").due(NOON)


def test_jitter_at_the_end_of_time() -> None:
    """
    Where there is no later moment, an occurrence is not shifted.
    """
    last = datetime.max.replace(tzinfo=UTC)
    schedule = Schedule(
        id="s", trigger=At([last]), work_id="w", created_at=NOON, jitter=timedelta(9)
    )
    assert schedule.due(last) == last
    after_end = Schedule(
        id="s", trigger=Interval(10), work_id="w", created_at=NOON, after="end"
    )
    assert after_end.following(last) is None


# -- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"id": ""}, InvalidTaskError, "id"),
        ({"id": 3}, InvalidTaskError, "id"),
        ({"trigger": "@daily"}, InvalidTriggerError, "trigger"),
        ({"trigger": Interval}, InvalidTriggerError, "trigger"),
        ({"work_id": len}, InvalidTaskError, "work_id"),
        ({"param": [1]}, InvalidTaskError, "param"),
        ({"param": {"unknown": 1}}, InvalidTaskError, "param"),
        ({"meta": {1: 2}}, InvalidTaskError, "meta"),
        ({"priority": 0.5}, InvalidTaskError, "priority"),
        ({"deadline_after": 0}, InvalidTaskError, "deadline_after"),
        ({"deadline_after": -1}, InvalidTaskError, "deadline_after"),
        ({"deadline_after": "1h"}, InvalidTaskError, "deadline_after"),
        ({"jitter": -1}, InvalidTaskError, "jitter"),
        ({"jitter": True}, InvalidTaskError, "jitter"),
        ({"jitter": float("inf")}, InvalidTaskError, "jitter"),
        ({"late": "latest"}, InvalidTaskError, "late"),
        ({"overlap": "maybe"}, InvalidTaskError, "overlap"),
        ({"overlap": ["skip"]}, InvalidTaskError, "overlap"),
        ({"after": "now"}, InvalidTaskError, "after"),
        ({"after": "end", "trigger": Cron("@daily")}, InvalidTaskError, "after"),
        ({"when": len}, InvalidTaskError, "when"),
        ({"paused": 1}, InvalidTaskError, "paused"),
    ],
    ids=str,
)
async def test_bad_input(
    autojump_clock: trio.testing.MockClock,
    options: dict[str, Any],
    error: type[Exception],
    field: str,
) -> None:
    """
    What cannot be is refused at the call, by name, and nothing is kept.
    """
    async with open_bench() as (scheduler, _):
        given: dict[str, Any] = {"id": "s", "trigger": Interval(1), "work_id": "note"}
        with pytest.raises(error) as caught:
            await scheduler.add_schedule(**{**given, **options})
        assert getattr(caught.value, "field", None) == field
        assert await scheduler.find_schedules() == []
        schedule = await scheduler.add_schedule(**given)
        if field not in {"id", "paused"}:
            value = {each: options[each] for each in options}
            if value.get("work_id") is not len:
                with pytest.raises(error):
                    await scheduler.update_schedule("s", **value)
        assert await scheduler.find_schedules() == [schedule]


async def test_one_id_in_place_of_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Who gives a task or a schedule, and not the id that is wanted, is told which it is.
    """
    async with open_bench() as (scheduler, _):
        schedule = await scheduler.add_schedule("s", Interval(1), "note")
        assert schedule.pending_id is not None
        task = await scheduler.get(schedule.pending_id)

        async def tell(call: Callable[[Any], Awaitable[object]], given: Any) -> str:
            with pytest.raises(InvalidTaskError) as caught:
                await call(given)
            return str(caught.value)

        wait, pause = scheduler.wait, scheduler.pause_schedule
        of_a_task = "task_id: must be the id of a task: give "
        assert await tell(wait, task) == of_a_task + "task.id"
        assert await tell(wait, schedule) == of_a_task + "schedule.pending_id"
        of_a_schedule = "id: must be the id of a schedule: give "
        assert await tell(pause, schedule) == of_a_schedule + "schedule.id"
        assert await tell(pause, task) == of_a_schedule + "task.schedule_id"
        assert await scheduler.find_schedules() == [schedule]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"window": -1}, "window"),
        ({"window": "1h"}, "window"),
        ({"run": "some"}, "run"),
        ({"limit": 0}, "limit"),
        ({"limit": True}, "limit"),
    ],
    ids=str,
)
def test_bad_lateness(options: dict[str, Any], field: str) -> None:
    """
    What becomes of late occurrences is checked when it is said.
    """
    with pytest.raises(InvalidTaskError) as caught:
        Late(**options)
    assert caught.value.field == field


async def test_unknown_works_and_ids(autojump_clock: trio.testing.MockClock) -> None:
    """
    A work that is not registered, or an id that is none, is refused.
    """
    async with open_bench() as (scheduler, _):
        with pytest.raises(WorkNotFoundError):
            await scheduler.add_schedule("s", Interval(1), "unknown")
        schedule = await scheduler.add_schedule("s", Interval(1), "note")
        with pytest.raises(WorkNotFoundError):
            await scheduler.update_schedule("s", work_id="unknown")
        as_id: Any = schedule
        with pytest.raises(InvalidTaskError, match=r"^id: .* give schedule\.id$"):
            await scheduler.get_schedule(as_id)
        yes: Any = "yes"
        with pytest.raises(InvalidTaskError, match="catch_up: must be a bool"):
            await scheduler.resume_schedule("s", catch_up=yes)


async def test_a_repository_without_schedules(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A repository that keeps tasks only says so.
    """
    make: Callable[[], Any] = ListStore
    async with open_bench(TimedRepository(make())) as (scheduler, _):
        with pytest.raises(NoSchedulesError, match="keeps no schedules"):
            await scheduler.add_schedule("s", Interval(1), "note")
        with pytest.raises(NoSchedulesError):
            await scheduler.get_schedule("s")
        assert await scheduler.find_schedules() == []


async def test_pages_of_schedules(autojump_clock: trio.testing.MockClock) -> None:
    """
    Schedules are found by id, in pages if there are many.
    """
    async with open_bench() as (scheduler, _):
        for each in "cab":
            await scheduler.add_schedule(each, Interval(100), "note")
        first = await scheduler.find_schedules(limit=2)
        assert [each.id for each in first] == ["a", "b"]
        [last] = await scheduler.find_schedules(limit=2, after="b")
        assert last.id == "c"


# -- what hooks are told --------------------------------------------------------------


class Watching(PartialHooks):
    """Keeps what it is told of changes, and of ends."""

    def __init__(self) -> None:
        self.updates: list[tuple[str, str]] = []
        self.ended: list[str] = []
        super().__init__(on_update=self.note, on_task_done=self.note_end)

    async def note(self, operation: Operation, task: Task) -> None:
        what: object = operation
        if isinstance(operation, OnSchedule):
            what = operation.change
        self.updates.append((type(what).__name__, task.state.value))

    async def note_end(self, task: Task) -> None:
        self.ended.append(task.state.value)


async def test_hooks_are_told_of_schedules(autojump_clock: trio.testing.MockClock) -> None:
    """
    A change of a schedule is told for each of its tasks that it has changed or made; and
    what was told to run now counts as added.
    """
    hooks = Watching()
    async with open_bench(hooks=hooks) as (scheduler, _):
        await scheduler.add_schedule("s", Interval(10), "note")
        await scheduler.add_schedule("s", Interval(10), "note")
        await scheduler.update_schedule("s", priority=1)
        await scheduler.pause_schedule("s")
        await scheduler.resume_schedule("s")
        assert scheduler.statistics().added == 0
        await scheduler.trigger_schedule("s")
        await scheduler.remove_schedule("s")
        assert scheduler.statistics().added == 1
        await scheduler.drain()
    assert hooks.updates == [
        ("PutSchedule", "scheduled"),
        ("UpdateSchedule", "scheduled"),
        ("PauseSchedule", "cancelled"),
        ("ResumeSchedule", "scheduled"),
        ("TriggerSchedule", "scheduled"),
        ("RemoveSchedule", "cancelled"),
        ("EndTask", "done"),
    ]
    assert hooks.ended == ["done"]


async def test_what_has_not_run_is_not_told_as_a_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An occurrence that is cancelled, as its time has passed and none is to come, is not told
    as a run that is over; one that has failed, since its deadline has passed, is.
    """
    hooks = Watching()
    repository = HeapRepository()
    once = At([noon(10)])
    dropped = Schedule(
        id="s", trigger=once, work_id="note", created_at=NOON, late=Late(run="none")
    )
    failed = Schedule(
        id="t", trigger=once, work_id="note", created_at=NOON, deadline_after=1
    )
    for schedule in dropped, failed:
        await repository.change_schedule(PutSchedule(schedule, NOON))
    await trio.sleep(20)
    async with open_bench(repository, hooks=hooks) as (scheduler, _):
        await scheduler.drain()
        assert scheduler.statistics().cancelled == 1
    assert hooks.ended == ["failed"]
