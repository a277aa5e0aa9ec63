"""Schedules where several things come together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, get_args

import attrs
import pytest
import trio
import trio.testing
from support import NOON, Bench, noon, open_bench

from trio_gokugen import (
    At,
    ChainHooks,
    Cron,
    DamagedFileError,
    Dropped,
    Either,
    HeapRepository,
    Interval,
    InvalidTaskError,
    InvalidTriggerError,
    Late,
    PartialHooks,
    Schedule,
    Scheduler,
    Task,
    TaskQuery,
    TaskState,
    TaskUpdate,
    TrioClock,
    plan,
)
from trio_gokugen._schedule import Catch, PutSchedule, ScheduleUpdate, UpdateSchedule
from trio_gokugen._trigger import BaseTrigger
from trio_gokugen.sql import open_sql_repository

pytestmark = pytest.mark.tables


def times(*benches: Bench) -> list[float]:
    return [when for bench in benches for _, when in bench.starts]


async def pending(scheduler: Scheduler) -> list[Task]:
    return await scheduler.find(TaskQuery(states={TaskState.SCHEDULED}))


class Told(PartialHooks):
    """Keeps what it is told of what does not run."""

    def __init__(self) -> None:
        self.dropped: list[Dropped] = []
        super().__init__(on_dropped=self.note)

    async def note(self, dropped: Dropped) -> None:
        self.dropped.append(dropped)

    def moments(self) -> list[tuple[str, Any, Any]]:
        return [
            (each.reason, (each.first - NOON).seconds, (each.last - NOON).seconds)
            for each in self.dropped
        ]


# -- what was skipped is counted once -------------------------------------------------


async def test_a_pause_after_one_was_skipped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What was skipped before a pause is counted once, and what fell into it is, too.
    """
    told = Told()
    async with open_bench(grace=0, hooks=told) as (scheduler, _):
        await scheduler.add_schedule("s", Interval(10), "sleep", {"seconds": 15})
        await trio.sleep(12)
        await scheduler.pause_schedule("s")
        await trio.sleep(43)
        await scheduler.resume_schedule("s")
        await trio.sleep(10)
        assert (await scheduler.get_schedule("s")).dropped == 4
    assert told.moments() == [("overlap", 20, 20), ("late", 30, 50)]


async def test_what_waited_before_a_pause_may_be_late_after_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    After a pause an occurrence has not waited for a run: it may be too late.
    """
    repository = HeapRepository()
    async with open_bench(repository, grace=0) as (scheduler, bench):
        await scheduler.add_schedule(
            "s",
            Interval(10),
            "sleep",
            {"seconds": 15},
            overlap="queue",
            late=Late(window=1),
        )
        await trio.sleep(12)
        await scheduler.pause_schedule("s")
        await trio.sleep(43)
        await scheduler.resume_schedule("s")
    await trio.sleep(40)
    async with open_bench(repository, grace=0) as (scheduler, second):
        await trio.sleep(10)
    assert times(bench, second) == [10.0, 100.0]


async def test_what_is_skipped_before_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What is skipped is counted also if nothing comes after it.
    """
    async with open_bench() as (scheduler, _):
        moments = At([noon(10), noon(20)])
        await scheduler.add_schedule("s", moments, "sleep", {"seconds": 15})
        await trio.sleep(100)
        schedule = await scheduler.get_schedule("s")
        assert (schedule.dropped, schedule.next_at) == (1, None)


@pytest.mark.parametrize("overlap", ["skip", "queue"])
async def test_a_cancellation_after_one_was_skipped(
    autojump_clock: trio.testing.MockClock, overlap: Any
) -> None:
    """
    What was skipped is counted also if the one after it is cancelled.
    """
    async with open_bench(max_workers=2) as (scheduler, bench):
        await scheduler.add_schedule(
            "s", Interval(10), "sleep", {"seconds": 25}, overlap=overlap
        )
        await trio.sleep(12)
        for _ in range(2):  # one that waits finds no worker
            await scheduler.add_task("sleep", {"seconds": 26}, after=0)
        await trio.sleep(24)
        [head] = [task for task in await pending(scheduler) if task.schedule_id]
        assert await scheduler.cancel(head.id)
        schedule = await scheduler.get_schedule("s")
        skipped, cancelled = (2, 40) if overlap == "skip" else (1, 20)
        assert (schedule.dropped, head.nominal_at) == (skipped, noon(cancelled))
        assert schedule.next_at == noon(50 if overlap == "skip" else 40)
    assert times(bench)[0] == 10.0


async def test_a_change_after_one_was_skipped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What was skipped is counted, and told, also if the schedule is changed, or removed.
    """
    told = Told()
    async with open_bench(hooks=told, grace=0) as (scheduler, _):
        for schedule_id in "s", "t":
            await scheduler.add_schedule(
                schedule_id, Interval(10), "sleep", {"seconds": 25}
            )
        await trio.sleep(36)
        changed = await scheduler.update_schedule("s", trigger=Interval(7))
        assert changed.dropped == 2
        await scheduler.remove_schedule("t")
        await trio.sleep(1)
    assert told.moments() == [("overlap", 20, 30)] * 2


# -- runs that were cut short ---------------------------------------------------------


@pytest.mark.parametrize(
    ("overlap", "starts"), [("skip", [10, 35, 40]), ("queue", [10, 35, 37, 40])]
)
async def test_an_interrupted_run_has_not_ended(
    autojump_clock: trio.testing.MockClock, overlap: Any, starts: Sequence[float]
) -> None:
    """
    What falls due between an interruption and the end of the run that goes on has fallen
    due while it ran.
    """
    repository = HeapRepository()
    told = Told()
    async with open_bench(repository, grace=0) as (scheduler, bench):
        await scheduler.add_schedule(
            "s", Interval(10), "sleep", {"seconds": 2}, overlap=overlap
        )
        await trio.sleep(11)
    await trio.sleep(24)
    async with open_bench(repository, hooks=told) as (scheduler, second):
        await trio.sleep(8)
    assert times(bench, second) == starts
    skipped = (20, 30) if overlap == "skip" else (30, 30)
    assert told.moments() == [("overlap", *skipped)]


async def test_who_waits_for_what_is_replaced(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Who waits for a run that is replaced is told, though the task is not kept.
    """
    async with open_bench(HeapRepository(keep_ended=0), grace=0) as (scheduler, _):
        await scheduler.add_schedule("s", Interval(10), "sleep", overlap="replace")
        [head] = await pending(scheduler)
        ended = await scheduler.wait(head.id)
        assert (ended.state, trio.current_time()) == (TaskState.CANCELLED, 20.0)


# -- changes --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overlap", "starts"), [("replace", [10, 20, 30]), ("allow", [10, 20, 30])]
)
async def test_a_run_that_hangs_is_not_waited_for_any_more(
    autojump_clock: trio.testing.MockClock, overlap: Any, starts: Sequence[float]
) -> None:
    """
    A schedule that is not to wait for the end any more goes on at once.
    """
    async with open_bench(grace=0) as (scheduler, bench):
        await scheduler.add_schedule("s", Interval(10), "sleep", {"seconds": 500})
        await trio.sleep(12)
        await scheduler.update_schedule("s", overlap=overlap)
        await trio.sleep(23)
        running = scheduler.statistics().running
        assert running == (1 if overlap == "replace" else 3)
    assert times(bench) == starts


async def test_a_change_by_a_clock_that_is_slow() -> None:
    """
    A change that comes by another clock, or later than it was made, repeats no moment.
    """
    repository = HeapRepository()
    schedule = Schedule(
        id="s", trigger=Interval(10), work_id="w", created_at=NOON, overlap="allow"
    )
    await repository.change_schedule(PutSchedule(schedule, NOON))
    await repository.claim(1, noon(10))
    update = ScheduleUpdate(trigger=Interval(5))
    await repository.change_schedule(UpdateSchedule("s", update, noon(9.99)))
    assert (await repository.claim(1, noon(10.01))).tasks == []
    assert (await repository.get_schedule("s")).next_at == noon(15)


@pytest.mark.parametrize("after", ["start", "end"])
async def test_an_anchor_is_the_first_moment(
    autojump_clock: trio.testing.MockClock, after: Any
) -> None:
    """
    An interval that has an anchor begins there, also in a schedule that is changed.
    """
    async with open_bench() as (scheduler, _):
        first = Interval(10, anchor=noon(100))
        schedule = await scheduler.add_schedule("s", first, "note", after=after)
        assert schedule.next_at == noon(100)
        second = Interval(20, anchor=noon(90))
        schedule = await scheduler.update_schedule("s", trigger=second)
        assert schedule.next_at == noon(90)


# -- plans ----------------------------------------------------------------------------


async def test_a_plan_while_it_runs(autojump_clock: trio.testing.MockClock) -> None:
    """
    The plan of a schedule that runs goes on as if it ended right then.
    """
    async with open_bench(grace=0) as (scheduler, _):
        afters: dict[str, Any] = {"s": "start", "e": "end"}
        for schedule_id, after in afters.items():
            await scheduler.add_schedule(
                schedule_id, Interval(10), "sleep", {"seconds": 5}, after=after
            )
        await trio.sleep(12)
        schedules = await scheduler.find_schedules()
    planned = plan(schedules, noon(12), noon(35))
    assert [(each.schedule_id, each.runs_at) for each in planned] == [
        ("s", noon(20)),
        ("e", noon(22)),
        ("s", noon(30)),
        ("e", noon(32)),
    ]


def test_a_plan_tells_nothing_of_before() -> None:
    """
    However much was missed before, a plan has only what is in its time.
    """
    schedule = Schedule(
        id="s",
        trigger=Interval(1),
        work_id="w",
        created_at=NOON,
        next_at=noon(1),
        last_at=NOON,
    )
    begin = noon(300 * 86_400)
    assert len(plan([schedule], begin, begin + timedelta(seconds=3))) == 3


# -- what is too long -----------------------------------------------------------------

LONGEST = timedelta(days=36_525)
TICK = timedelta(microseconds=1)


@pytest.mark.parametrize("field", ["jitter", "deadline_after"])
@pytest.mark.parametrize("length", [LONGEST + TICK, timedelta.max])
async def test_a_length_that_is_too_long(
    autojump_clock: trio.testing.MockClock, field: str, length: timedelta
) -> None:
    """
    A length of time that could not be kept exactly is refused by name.
    """
    async with open_bench() as (scheduler, _):
        options: Any = {field: length}
        with pytest.raises(InvalidTaskError, match="must be at most 36525 days") as caught:
            await scheduler.add_schedule("s", Interval(10), "note", **options)
        assert caught.value.field == field
        with pytest.raises(InvalidTaskError, match=r"^window: must be at most 36525 days"):
            Late(window=length)


async def test_the_longest_lengths(database_url: str) -> None:
    """
    The longest lengths come back exactly.
    """
    longest = LONGEST - TICK
    async with open_sql_repository(database_url) as repository:
        schedule = Schedule(
            id="s",
            trigger=Interval(longest),
            work_id="w",
            created_at=NOON,
            deadline_after=longest,
            jitter=longest,
            late=Late(window=longest),
        )
        change = PutSchedule(schedule, NOON)
        changed = await repository.change_schedule(change)
        assert await repository.get_schedule("s") == changed.schedule
        assert not (await repository.change_schedule(change)).changed


# -- triggers of somebody's own -------------------------------------------------------


class Own(BaseTrigger):
    """Answers what it is told to."""

    def __init__(self, *answers: Any) -> None:
        self._answers = [*answers]

    def next_after(self, moment: datetime) -> datetime | None:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]  # it may be wrong

    def explain(self) -> str:
        raise NotImplementedError

    def to_data(self) -> Any:
        raise NotImplementedError


WRONG = [
    ValueError("no luck"),
    datetime(2030, 6, 1, 13),
    NOON,
    "soon",
]


@pytest.mark.parametrize("wrong", WRONG, ids=["error", "naive", "not later", "text"])
async def test_a_trigger_that_is_wrong_at_first(
    autojump_clock: trio.testing.MockClock, wrong: Any
) -> None:
    """
    A trigger that fails as a schedule is added is refused, and nothing is kept.
    """
    async with open_bench() as (scheduler, _):
        with pytest.raises(
            InvalidTriggerError, match=r"^trigger: next_after\(2030-06-01T12"
        ):
            await scheduler.add_schedule("s", Own(wrong), "note")
        assert await scheduler.find_schedules() == []
        assert await pending(scheduler) == []


@pytest.mark.parametrize("wrong", WRONG, ids=["error", "naive", "not later", "text"])
@pytest.mark.parametrize("cancels", [False, True], ids=["claim", "cancel"])
async def test_a_trigger_that_is_wrong_later(
    autojump_clock: trio.testing.MockClock, wrong: Any, *, cancels: bool
) -> None:
    """
    A trigger that fails later ends its schedule, and says so; nobody else is disturbed.
    """
    async with open_bench() as (scheduler, bench):
        schedule = await scheduler.add_schedule("s", Own(noon(10), wrong), "note")
        await scheduler.add_schedule("other", Interval(10), "note")
        assert schedule.pending_id is not None
        if cancels:
            assert await scheduler.cancel(schedule.pending_id)
        await trio.sleep(25)
        task = await scheduler.get(schedule.pending_id)
        assert task.state is (TaskState.CANCELLED if cancels else TaskState.FAILED)
        assert cancels or (task.err or "").startswith("InvalidTriggerError: trigger:")
        schedule = await scheduler.get_schedule("s")
        assert (schedule.next_at, schedule.pending_id) == (None, None)
    assert times(bench) == [10.0, 20.0]


@pytest.mark.parametrize("what", ["pause", "remove", "replace"])
async def test_a_trigger_that_has_failed_is_got_rid_of(
    autojump_clock: trio.testing.MockClock, what: str
) -> None:
    """
    Where what was skipped cannot be counted, as the trigger fails by now, its schedule can
    be paused, removed and given another one all the same.
    """
    told = Told()
    async with open_bench(hooks=told) as (scheduler, bench):
        # Taken at 10, it ends at 25: that of 20 was skipped, and that of 30 is the next.
        own = Own(noon(10), noon(20), noon(30), noon(30), ValueError("no more"))
        await scheduler.add_schedule("s", own, "sleep", {"seconds": 15})
        await trio.sleep(26)
        assert (await scheduler.get_schedule("s")).skipped_from == noon(20)
        if what == "pause":
            assert await scheduler.pause_schedule("s")
        elif what == "remove":
            assert await scheduler.remove_schedule("s")
        else:
            await scheduler.add_schedule("s", At([noon(40)]), "note")
        await scheduler.drain()
    assert times(bench) == ([10.0, 40.0] if what == "replace" else [10.0])
    [dropped] = told.dropped
    assert (dropped.count, dropped.first, dropped.last) == (1, noon(20), noon(20))


class Fickle(Own):
    """Answers otherwise each time that it is asked."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def next_after(self, moment: datetime) -> datetime | None:
        if self._random.random() < 0.1:
            return None
        return moment + timedelta(seconds=1 + 50 * self._random.random())


@pytest.mark.parametrize("run", get_args(Catch))
async def test_a_trigger_that_is_no_value(run: Catch) -> None:
    """
    A trigger that does not keep to what it has said harms nobody but its schedule.
    """
    for seed in range(200):
        repository = HeapRepository()
        schedule = Schedule(
            id="s",
            trigger=Fickle(seed),
            work_id="w",
            created_at=NOON,
            jitter=20 * (seed % 2),
            late=Late(run=run, window=60, limit=3),
            overlap="allow",
        )
        await repository.change_schedule(PutSchedule(schedule, NOON))
        for seconds in 100, 200, 1_000:
            at = noon(seconds)
            claimed = await repository.claim(1, at)
            assert all(task.scheduled_at <= at for task in claimed.tasks)
            failed = [each.err for each in claimed.expired if each.err is not None]
            assert all(err.startswith("InvalidTriggerError: trigger") for err in failed)


async def test_what_was_postponed_is_too_late() -> None:
    """
    A postponed occurrence that is past its deadline fails, and the plan stays.
    """
    repository = HeapRepository()
    schedule = Schedule(id="s", trigger=Interval(60), work_id="w", created_at=NOON)
    changed = await repository.change_schedule(PutSchedule(schedule, NOON))
    assert changed.made is not None
    later = TaskUpdate(scheduled_at=noon(70), deadline=noon(75))
    await repository.update(changed.made.id, later)
    before = await repository.get_schedule("s")
    claimed = await repository.claim(1, noon(80))
    [failed] = claimed.expired
    assert (failed.state, failed.nominal_at) == (TaskState.FAILED, noon(60))
    assert await repository.get_schedule("s") == before
    assert before.next_at == noon(120)


# -- what has stopped goes on ---------------------------------------------------------


async def loaded_without(
    path: Path, repository: HeapRepository, *states: str
) -> HeapRepository:
    """A repository loaded from the other's dump, in which some tasks are missing."""
    await repository.dump(path)
    lines = path.read_text().splitlines()
    kept = [line for line in lines if json.loads(line).get("state") not in states]
    path.write_text("\n".join(kept) + "\n")
    loaded = HeapRepository()
    await loaded.load(path)
    return loaded


@pytest.mark.parametrize("call", ["add", "update", "pause"])
async def test_the_next_occurrence_was_not_in_the_file(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, call: str
) -> None:
    """
    A schedule whose next occurrence is missing goes on once it is added again, the same, or
    changed, or paused and resumed.
    """
    before = HeapRepository()
    schedule = Schedule(id="s", trigger=Interval(10), work_id="note", created_at=NOON)
    await before.change_schedule(PutSchedule(schedule, NOON))
    repository = await loaded_without(tmp_path / "dump", before, "scheduled")
    async with open_bench(repository) as (scheduler, bench):
        if call == "add":
            added = await scheduler.add_schedule("s", Interval(10), "note")
            assert added.pending_id is not None
        elif call == "update":
            await scheduler.update_schedule("s", priority=1)
        else:
            assert await scheduler.pause_schedule("s")
            assert await scheduler.resume_schedule("s")
        await trio.sleep(25)
    assert times(bench) == [10.0, 20.0]


@pytest.mark.parametrize("after", ["start", "end"])
@pytest.mark.parametrize("call", ["add", "update", "pause"])
async def test_the_awaited_run_was_not_in_the_file(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, call: str, after: Any
) -> None:
    """
    A schedule that waits for the end of a task that is missing goes on once it is added
    again, or changed, or paused and resumed.
    """
    before = HeapRepository()
    schedule = Schedule(
        id="s", trigger=Interval(10), work_id="note", created_at=NOON, after=after
    )
    await before.change_schedule(PutSchedule(schedule, NOON))
    await before.claim(1, noon(10))
    repository = await loaded_without(tmp_path / "dump", before, "dispatched")
    await trio.sleep(15)
    async with open_bench(repository) as (scheduler, bench):
        if call == "add":
            await scheduler.add_schedule("s", Interval(10), "note", after=after)
        elif call == "update":
            await scheduler.update_schedule("s", priority=1)
        else:
            await scheduler.pause_schedule("s")
            await scheduler.resume_schedule("s")
        await trio.sleep(21)
    first = 25.0 if (call, after) == ("update", "end") else 20.0
    assert times(bench) == [first, first + 10]


async def test_an_occurrence_is_there_and_has_ended(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A schedule goes on once it is added again, though its file says that it waits for a run
    that has ended.
    """
    before = HeapRepository()
    schedule = Schedule(id="s", trigger=Interval(10), work_id="note", created_at=NOON)
    await before.change_schedule(PutSchedule(schedule, NOON))
    [run] = (await before.claim(1, noon(10))).tasks
    await before.dump(tmp_path / "dump")
    lines = (tmp_path / "dump").read_text().splitlines()
    ended = attrs.evolve(run, state=TaskState.DONE, done_at=noon(12))
    (tmp_path / "dump").write_text(f"{lines[0]}\n{ended.to_json()}\n")
    repository = HeapRepository()
    await repository.load(tmp_path / "dump")
    await repository.change_schedule(PutSchedule(schedule, noon(15)))
    [head] = await repository.find(TaskQuery(states={TaskState.SCHEDULED}))
    assert head.nominal_at == noon(20)
    # And not once more.
    changed = await repository.change_schedule(PutSchedule(schedule, noon(15)))
    assert not changed.changed


async def test_the_next_occurrence_has_ended(tmp_path: Path) -> None:
    """
    A schedule goes on once it is added again, though its file says that it has a next
    occurrence, and that has ended.
    """
    before = HeapRepository()
    schedule = Schedule(id="s", trigger=Interval(10), work_id="note", created_at=NOON)
    changed = await before.change_schedule(PutSchedule(schedule, NOON))
    assert changed.made is not None
    await before.dump(tmp_path / "dump")
    lines = (tmp_path / "dump").read_text().splitlines()
    ended = attrs.evolve(changed.made, state=TaskState.CANCELLED, cancelled_at=noon(1))
    (tmp_path / "dump").write_text(f"{lines[0]}\n{ended.to_json()}\n")
    repository = HeapRepository()
    await repository.load(tmp_path / "dump")
    changed = await repository.change_schedule(PutSchedule(schedule, noon(2)))
    assert changed.made is not None
    assert changed.made.nominal_at == noon(10)
    assert await repository.get_next() == changed.made


async def test_a_trigger_that_has_failed_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A schedule that has ended since its trigger had failed goes on once it is added again.
    """
    trigger = Own(noon(10), ValueError("no luck"), noon(20), None)
    async with open_bench() as (scheduler, bench):
        await scheduler.add_schedule("s", trigger, "note")
        await trio.sleep(15)
        assert (await scheduler.get_schedule("s")).next_at is None
        schedule = await scheduler.add_schedule("s", trigger, "note")
        assert schedule.next_at == noon(20)
        await trio.sleep(10)
    assert times(bench) == [20.0]


async def test_what_has_come_to_its_end(autojump_clock: trio.testing.MockClock) -> None:
    """
    A schedule that has no moment left stays as it is if it is added again, or changed; and
    one that waits for a run, or is paused, does too.
    """
    repository = HeapRepository()
    moments = At([noon(1)])
    async with open_bench(repository) as (scheduler, bench):
        await scheduler.add_schedule("s", moments, "sleep", {"seconds": 3})
        for schedule_id, paused in ("t", False), ("p", True):
            await scheduler.add_schedule(schedule_id, Interval(9), "sleep", paused=paused)
        for seconds in 2, 8:
            await trio.sleep(seconds)
            before = await scheduler.find_schedules()
            await scheduler.add_schedule("s", moments, "sleep", {"seconds": 3})
            for schedule_id in "t", "p":
                await scheduler.add_schedule(schedule_id, Interval(9), "sleep")
            assert await scheduler.find_schedules() == before
        assert (await scheduler.update_schedule("s", priority=1)).next_at is None
        await scheduler.interrupt((await scheduler.get_schedule("t")).awaited_id or "")
        await scheduler.pause_schedule("t")
    assert times(bench) == [1.0, 9.0]


@pytest.mark.parametrize("paused", [False, True], ids=["going on", "paused"])
async def test_a_schedule_that_is_not_to_overlap_any_more(
    autojump_clock: trio.testing.MockClock, *, paused: bool
) -> None:
    """
    A schedule that is changed not to overlap while it runs waits for the end of that run.
    """
    told = Told()
    async with open_bench(hooks=told) as (scheduler, bench):
        await scheduler.add_schedule(
            "s", Interval(10), "sleep", {"seconds": 25}, overlap="allow"
        )
        await trio.sleep(12)
        if paused:
            await scheduler.pause_schedule("s")
        await scheduler.update_schedule("s", overlap="skip")
        if paused:
            await scheduler.resume_schedule("s")
        await trio.sleep(35)
    assert times(bench) == [10.0, 40.0]
    assert told.moments() == [("overlap", 20, 30)]


# -- late, and more comes -------------------------------------------------------------


async def test_what_falls_due_while_late_ones_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What falls due while those that are late run, one after the other, is skipped, and no
    more of them run than were late as the first was taken.
    """
    repository, told = HeapRepository(), Told()
    late = Late(run="all", limit=3)
    async with open_bench(repository):
        schedule = Schedule(
            id="s",
            trigger=Interval(10),
            work_id="sleep",
            param={"seconds": 25},
            created_at=NOON,
            late=late,
        )
        await repository.change_schedule(PutSchedule(schedule, NOON))
    await trio.sleep(55)
    nominal: list[datetime | None] = []

    async def note(task: Task) -> None:
        nominal.append(task.nominal_at)

    hooks = ChainHooks(told, PartialHooks(on_dispatch=note))
    async with open_bench(repository, hooks=hooks) as (scheduler, bench):
        await trio.sleep(100)
        schedule = await scheduler.get_schedule("s")
        assert (schedule.runs, schedule.dropped) == (4, 10)
    assert times(bench) == [55.0, 80.0, 105.0, 140.0]
    assert nominal == [noon(30), noon(40), noon(50), noon(140)]
    assert told.moments() == [("late", 10, 20), ("overlap", 60, 130)]


async def test_late_ones_that_are_cancelled_or_too_late(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What falls due while late ones run is skipped also if one of these is cancelled before
    it runs, or past its deadline.
    """
    repository = HeapRepository()
    schedule = Schedule(
        id="s",
        trigger=Interval(10),
        work_id="w",
        created_at=NOON,
        late=Late(run="all"),
        deadline_after=timedelta(seconds=35),
    )
    await repository.change_schedule(PutSchedule(schedule, NOON))
    claimed = await repository.claim(1, noon(65))
    [run] = claimed.tasks
    # Those of 10, 20 and 30 are past their deadlines.
    assert [task.nominal_at for task in claimed.expired] == [noon(10), noon(20), noon(30)]
    assert run.nominal_at == noon(40)
    await repository.mark_done(run, noon(72))
    [head] = await repository.find(TaskQuery(states={TaskState.SCHEDULED}))
    assert head.nominal_at == noon(50)
    await repository.cancel(head.id, noon(73))
    claimed = await repository.claim(1, noon(74))
    [run] = claimed.tasks
    assert (run.nominal_at, claimed.dropped) == (noon(60), [])
    await repository.mark_done(run, noon(85))
    [head] = await repository.find(TaskQuery(states={TaskState.SCHEDULED}))
    assert head.nominal_at == noon(90)
    assert (await repository.get_schedule("s")).skipped_from == noon(70)


@pytest.mark.parametrize(
    ("at", "nominal", "dropped"),
    [(29, 20, []), (29.5, None, [(20, 20)]), (50.5, 50, [(20, 40)])],
)
async def test_one_that_has_waited_may_be_late(
    at: float, nominal: float | None, dropped: list[tuple[float, float]]
) -> None:
    """
    An occurrence that has waited for a run is late if nothing runs for a while then.
    """
    repository = HeapRepository()
    schedule = Schedule(
        id="s",
        trigger=Interval(10),
        work_id="w",
        created_at=NOON,
        overlap="queue",
        late=Late(window=1),
    )
    await repository.change_schedule(PutSchedule(schedule, NOON))
    [run] = (await repository.claim(1, noon(10))).tasks
    await repository.mark_done(run, noon(28))
    claimed = await repository.claim(1, noon(at))
    expected = [] if nominal is None else [noon(nominal)]
    assert [task.nominal_at for task in claimed.tasks] == expected
    assert [(each.reason, each.first, each.last) for each in claimed.dropped] == [
        ("late", noon(first), noon(last)) for first, last in dropped
    ]


async def test_one_that_waits_for_a_schedule_that_is_changed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What has waited is late as any other once its schedule is not to wait any more.
    """
    repository = HeapRepository()
    schedule = Schedule(
        id="s", trigger=Interval(10), work_id="w", created_at=NOON, overlap="queue"
    )
    await repository.change_schedule(PutSchedule(schedule, NOON))
    [run] = (await repository.claim(1, noon(10))).tasks
    await repository.mark_done(run, noon(45))
    update = ScheduleUpdate(overlap="skip", late=Late(run="all"))
    await repository.change_schedule(UpdateSchedule("s", update, noon(46)))
    claimed = await repository.claim(1, noon(55))
    assert ([each.nominal_at for each in claimed.tasks], claimed.dropped) == (
        [noon(20)],
        [],
    )


async def test_the_last_of_those_that_were_dropped() -> None:
    """
    If all that have passed are dropped, the last of them is the schedule's last.
    """
    repository = HeapRepository()
    schedule = Schedule(
        id="s", trigger=Interval(10), work_id="w", created_at=NOON, late=Late(window=1)
    )
    await repository.change_schedule(PutSchedule(schedule, NOON))
    assert (await repository.claim(1, noon(45))).tasks == []
    assert (await repository.get_schedule("s")).last_at == noon(40)


async def test_what_comes_right_after_one_was_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    However often the occurrence that is due was dropped, what comes then starts at once.
    """
    clock = TrioClock(NOON, 0.0)
    async with open_bench(clock=clock) as (scheduler, bench):
        await scheduler.add_schedule("s", Interval(60), "note", late=Late(run="none"))
        for n in range(8):
            await trio.sleep(1)
            clock.epoch = noon(70 * (n + 1))
            await scheduler.update_schedule("s", priority=n + 1)  # the clock is looked at
            await trio.testing.wait_all_tasks_blocked()
            assert (await scheduler.get_schedule("s")).dropped > n
            await scheduler.add_task("note", at=NOON, id=f"t{n}")
        await trio.sleep(1)
    assert bench.starts == [(f"t{n}", n + 1.0) for n in range(8)]


# -- many that are late ---------------------------------------------------------------


class CountingCron(Cron):
    """Counts how often it is asked."""

    asked = 0

    def next_after(self, moment: datetime) -> datetime | None:
        type(self).asked += 1
        return super().next_after(moment)


class Bursts(BaseTrigger):
    """A hundred thousand moments in the first tenth of a second of each year, and one."""

    def next_after(self, moment: datetime) -> datetime | None:
        year = datetime(moment.year, 1, 1, tzinfo=UTC)
        if moment < year + timedelta(seconds=0.1):
            return moment + TICK
        summer = datetime(moment.year, 7, 1, tzinfo=UTC)
        return summer if moment < summer else datetime(moment.year + 1, 1, 1, tzinfo=UTC)

    def explain(self) -> str:
        raise NotImplementedError

    def to_data(self) -> Any:
        raise NotImplementedError


@pytest.mark.uncovered
@pytest.mark.parametrize("overlap", ["allow", "skip"])
@pytest.mark.parametrize("expression", ["0 9 * * MON-FRI", "* * * * *", "0 0 29 2 *"])
async def test_very_many_that_are_late(
    autojump_clock: trio.testing.MockClock, expression: str, overlap: Any
) -> None:
    """
    However many run late, and after however long a gap, few moments are looked at for each.
    """
    repository = HeapRepository()
    trigger = CountingCron(expression)
    schedule = Schedule(
        id="s",
        trigger=trigger,
        work_id="w",
        created_at=NOON,
        late=Late(run="all", limit=1000),
        overlap=overlap,
    )
    await repository.change_schedule(PutSchedule(schedule, NOON))
    CountingCron.asked = 0
    then = datetime(2200, 1, 1, 12, tzinfo=UTC)
    runs: list[Task] = []
    while True:
        claimed = await repository.claim(1000, then)
        runs += claimed.tasks
        if not claimed.tasks:
            break
        for run in claimed.tasks:
            await repository.mark_done(run, then)
    assert CountingCron.asked < 10_000
    moments = [run.nominal_at for run in runs if run.nominal_at is not None]
    assert len(moments) == len(runs) == (41 if expression == "0 0 29 2 *" else 1000)
    following = [trigger.next_after(each) for each in moments]
    assert following[:-1] == moments[1:]
    assert following[-1] is not None
    assert following[-1] > then


async def test_moments_that_come_in_bursts() -> None:
    """
    The last few of those that are late are found wherever they are.
    """
    repository = HeapRepository()
    schedule = Schedule(
        id="s",
        trigger=Bursts(),
        work_id="w",
        created_at=NOON,
        late=Late(run="all", limit=100),
        overlap="allow",
    )
    await repository.change_schedule(PutSchedule(schedule, NOON))
    claimed = await repository.claim(1000, datetime(2200, 12, 31, 12, tzinfo=UTC))
    last = datetime(2200, 1, 1, microsecond=100_000, tzinfo=UTC)
    expected = [last - n * TICK for n in reversed(range(99))]
    expected.append(datetime(2200, 7, 1, tzinfo=UTC))
    assert [task.nominal_at for task in claimed.tasks] == expected


def test_a_limit_that_is_too_high() -> None:
    """
    A limit that would flood whatever runs the works is refused.
    """
    assert Late(run="all", limit=1_000).limit == 1_000
    with pytest.raises(InvalidTaskError, match="must be at most 1000, not 1001"):
        Late(run="all", limit=1_001)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("paused", "yes"),
        ("created_at", datetime(2030, 1, 1)),
        ("next_at", datetime(2030, 1, 1)),
        ("last_at", "2030-01-01"),
        ("queued_at", 7),
        ("skipped_from", datetime(2030, 1, 1)),
        ("runs", "1"),
        ("runs", -1),
        ("dropped", 1.5),
        ("pending_id", 7),
        ("awaited_id", ""),
        ("ended_id", b"x"),
    ],
)
def test_how_a_schedule_stands_is_checked(field: str, value: Any) -> None:
    """
    What a schedule is made with cannot be wrong, whatever the field.
    """
    fields: dict[str, Any] = {"trigger": Interval(1), "created_at": NOON, field: value}
    with pytest.raises(InvalidTaskError) as caught:
        Schedule(id="s", work_id="w", **fields)
    assert caught.value.field == field


async def test_a_damaged_schedule_in_a_file(tmp_path: Path) -> None:
    """
    A file in which something is wrong of how a schedule stands is refused, with the line.
    """
    file = tmp_path / "dump"
    repository = HeapRepository()
    schedule = Schedule(id="s", trigger=Interval(1), work_id="w", created_at=NOON)
    await repository.change_schedule(PutSchedule(schedule, NOON))
    await repository.dump(file)
    for old, new in [('"runs":0', '"runs":"x"'), ('"paused":false', '"paused":"no"')]:
        damaged = tmp_path / "damaged"
        damaged.write_text(file.read_text().replace(old, new))
        with pytest.raises(DamagedFileError) as caught:
            await HeapRepository().load(damaged)
        assert caught.value.line == 1


async def test_a_trigger_whose_data_fail(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, sqlite_url: str
) -> None:
    """
    A trigger of somebody's own that cannot tell what it is made of is refused where it is
    to be stored, and nothing else is disturbed.
    """
    async with open_sql_repository(sqlite_url) as repository:
        async with open_bench(repository) as (scheduler, bench):
            for trigger in Bursts(), Either(Bursts(), Interval(1)):
                with pytest.raises(InvalidTriggerError) as caught:
                    await scheduler.add_schedule("s", trigger, "note")
                assert isinstance(caught.value.__cause__, NotImplementedError)
            await scheduler.add_task("note", after=1, id="t")
            await scheduler.drain()
    assert bench.ids() == ["t"]
    heap = HeapRepository()
    schedule = Schedule(id="s", trigger=Bursts(), work_id="w", created_at=NOON)
    await heap.change_schedule(PutSchedule(schedule, NOON))
    with pytest.raises(InvalidTriggerError):
        await heap.dump(tmp_path / "dump")


async def test_the_first_of_those_that_are_late_replaces(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    With "earliest" the first of those that have passed runs, also where it would replace.
    """
    repository = HeapRepository()
    schedule = Schedule(
        id="s",
        trigger=Interval(10, anchor=NOON),
        work_id="w",
        created_at=NOON,
        late=Late(run="earliest"),
        overlap="replace",
    )
    await repository.change_schedule(PutSchedule(schedule, NOON))
    claimed = await repository.claim(9, noon(35))
    assert [task.nominal_at for task in claimed.tasks] == [noon(10)]
    assert [(each.first, each.last) for each in claimed.dropped] == [(noon(20), noon(30))]
    assert (await repository.get_schedule("s")).next_at == noon(40)


async def test_changes_of_a_schedule_are_checked_as_they_are_written(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    Of two changes at once, of the work and of the param, the one that does not go with the
    other is refused.
    """

    async def one(x: int) -> None:
        raise AssertionError

    async def other(y: int) -> None:
        raise AssertionError

    refused: list[Exception] = []
    async with open_sql_repository(sqlite_url) as repository:
        async with open_bench(repository) as (scheduler, bench):
            bench.works.register("one", one)
            bench.works.register("other", other)

            async def update(**changes: Any) -> None:
                try:
                    await scheduler.update_schedule("s", **changes)
                except InvalidTaskError as error:
                    refused.append(error)

            for number in range(20):
                await scheduler.add_schedule("s", Interval(1e6), "one", {"x": 1})
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: update(work_id="other", param={"y": 1}))
                    nursery.start_soon(lambda: update(param={"x": 2}))
                found = await scheduler.get_schedule("s")
                assert (found.work_id, found.param) == ("other", {"y": 1})
                assert len(refused) <= number + 1
    assert 0 < len(refused) < 20
