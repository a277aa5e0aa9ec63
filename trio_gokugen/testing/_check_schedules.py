"""Checks: of a schedule there is always the one next occurrence, whatever happens.

A repository that keeps no schedules says so, and has nothing to check here.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from random import Random
from typing import Any, cast

import attrs

from trio_gokugen._calendar_interval import CalendarInterval
from trio_gokugen._cron import Cron
from trio_gokugen._errors import (
    GokugenError,
    InvalidTaskError,
    InvalidTriggerError,
    NoSchedulesError,
    ScheduleNotFoundError,
)
from trio_gokugen._heap_repository import HeapRepository
from trio_gokugen._interval import Interval
from trio_gokugen._query import TaskQuery
from trio_gokugen._repository import recovery
from trio_gokugen._schedule import (
    ChangeSchedule,
    Dropped,
    Late,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    ResumeSchedule,
    Schedule,
    ScheduleUpdate,
    TriggerSchedule,
    UpdateSchedule,
)
from trio_gokugen._task import Task, TaskState, TaskUpdate
from trio_gokugen._triggers import At, Both, Either, Except
from trio_gokugen.abc import (
    RecoverAction,
    RepositoryLike,
    TaskFilter,
    TaskRepository,
    UpdateTask,
)

from ._expect import expect, expect_equal, refused
from ._repository_kit import EPOCH, RepositoryChecks, moment, new

checks = RepositoryChecks()

_S = TaskState


def _check(
    function: Callable[[TaskRepository], Awaitable[None]],
) -> Callable[[TaskRepository], Awaitable[None]]:
    """Add a check for repositories that keep schedules."""

    @functools.wraps(function)
    async def check(repository: TaskRepository) -> None:
        try:
            await repository.get_schedule("none")
        except NoSchedulesError:
            return
        except ScheduleNotFoundError:
            await function(repository)

    return checks(check)


def _every(seconds: float, **fields: Any) -> Schedule:
    fields = {"id": "s", "work_id": "work", "created_at": EPOCH, **fields}
    return Schedule(trigger=Interval(seconds), **fields)


async def _put(repository: RepositoryLike, *schedules: Schedule) -> None:
    for schedule in schedules:
        await repository.change_schedule(PutSchedule(schedule, EPOCH))


async def _pending(repository: RepositoryLike) -> list[Task]:
    return await repository.find(TaskQuery(states={_S.SCHEDULED}))


async def _nominal_times(repository: RepositoryLike) -> list[float | None]:
    return [
        None if each.nominal_at is None else (each.nominal_at - EPOCH).total_seconds()
        for each in await _pending(repository)
    ]


async def _expect_pending(
    repository: RepositoryLike, what: str, *expected: float | None
) -> None:
    expect_equal(f"pending {what}", await _nominal_times(repository), [*expected])


async def _claim(repository: RepositoryLike, at: float) -> Task:
    claimed = await repository.claim(1, moment(at))
    expect_equal(f"how many are claimed at {at}", len(claimed.tasks), 1)
    return claimed.tasks[0]


# -- one thing after the other ----------------------------------------------------------


@_check
async def an_occurrence_is_a_task(repository: TaskRepository) -> None:
    """With a schedule its next occurrence is there, a task like any other."""
    schedule = _every(
        10,
        param={"k": [1]},
        meta={"m": "x"},
        priority=3,
        deadline_after=timedelta(seconds=4),
    )
    change = PutSchedule(schedule, moment(3))
    changed = await repository.change_schedule(change)
    [task] = await _pending(repository)
    expected = Task(
        id=task.id,
        work_id="work",
        param={"k": [1]},
        meta={"m": "x"},
        priority=3,
        scheduled_at=moment(10),
        created_at=moment(3),
        deadline=moment(14),
        schedule_id="s",
        nominal_at=moment(10),
    )
    expect_equal("the next occurrence", task, expected)
    expect_equal("what was made", changed.made, task)
    expect_equal("what is next", await repository.get_next(), task)
    found = await repository.get_schedule("s")
    expect_equal("the schedule, as told", changed.schedule, found)
    expected_schedule = attrs.evolve(schedule, next_at=moment(10), pending_id=task.id)
    expect_equal("the schedule", found, expected_schedule)


@_check
async def schedules_are_kept_losslessly(repository: TaskRepository) -> None:
    """Every kind of schedule comes back as it was given, and in the order of ids."""
    days = Except(Cron("0 9 * * MON-FRI", tz="Europe/Berlin"), {EPOCH.date()}, "UTC")
    triggers = [
        Cron("*/5 * * * * *", dst="match"),
        Interval("1h30m", anchor=moment(0.000001)),
        CalendarInterval(months=1, at="03:00", tz="Asia/Tokyo", start="2000-01-31"),
        At([moment(1), moment(0.5)]),
        Either(days, At([moment(5)])),
        Both(Cron("0 * * * *"), Cron("* 3 * * *")),
    ]
    schedules = [
        _every(1, id=f"s{n}", late=Late(window=0.5 * n, run="all", limit=n + 1))
        for n in range(len(triggers))
    ]
    expected = [
        attrs.evolve(
            schedule,
            trigger=trigger,
            jitter=timedelta(microseconds=n),
            overlap="allow",
            when=None if n % 2 else f"condition {n}",
        )
        for n, (schedule, trigger) in enumerate(zip(schedules, triggers, strict=True))
    ]
    await _put(repository, *reversed(expected))
    found = await repository.find_schedules()
    expect_equal("definitions", [_said(s) for s in found], [_said(s) for s in expected])
    for schedule in found:
        expect_equal("one", await repository.get_schedule(schedule.id), schedule)
    page = await repository.find_schedules(2, after="s1")
    expect_equal("a page", [each.id for each in page], ["s2", "s3"])


def _said(schedule: Schedule) -> dict[str, Any]:
    return {"id": schedule.id, "created_at": schedule.created_at, **schedule.definition}


@_check
async def the_next_is_made_by_the_claim(repository: TaskRepository) -> None:
    """Whoever takes an occurrence makes the next one, if that may run beside it."""
    await _put(repository, _every(10, overlap="allow"))
    claimed = await repository.claim(9, moment(10))
    expect_equal("claimed", [t.nominal_at for t in claimed.tasks], [moment(10)])
    expect_equal("made", [t.nominal_at for t in claimed.made], [moment(20)])
    await _expect_pending(repository, "after a claim", 20)
    await repository.mark_done(claimed.tasks[0], moment(11))
    await _expect_pending(repository, "after an end", 20)
    schedule = await repository.get_schedule("s")
    expect_equal("runs", (schedule.runs, schedule.last_at), (1, moment(10)))


@_check
async def the_next_waits_for_the_end(repository: TaskRepository) -> None:
    """If occurrences must not overlap, the next one is made by the end, whichever."""
    await _put(repository, _every(10))
    run = await _claim(repository, 10)
    await _expect_pending(repository, "while it runs")
    await repository.mark_done(run, moment(25))
    await _expect_pending(repository, "after it is done", 30)
    await repository.mark_cancelled(await _claim(repository, 30), moment(31))
    await _expect_pending(repository, "after it was interrupted", 40)
    await repository.mark_done(await _claim(repository, 40), moment(41), "no luck")
    await _expect_pending(repository, "after it has failed", 50)
    await repository.revert(await _claim(repository, 50))
    await _expect_pending(repository, "after it was put back", 50)
    run = await _claim(repository, 52)
    expect_equal("its attempt", run.attempt, 2)
    await repository.revert(run)
    await repository.cancel(run.id, moment(53))
    await _expect_pending(repository, "after it was put back and cancelled", 60)
    schedule = await repository.get_schedule("s")
    expect_equal("the schedule", (schedule.runs, schedule.dropped), (4, 1))


@_check
async def a_lost_run_has_a_next_one(repository: TaskRepository) -> None:
    """A run that is recovered as failed has ended: the next occurrence is made."""
    await _put(repository, _every(10))
    run = await repository.mark_dispatched((await _pending(repository))[0].id, moment(10))
    await _expect_pending(repository, "after it was dispatched by its id", 20)
    expect_equal("runs", (await repository.get_schedule("s")).runs, 1)
    [head] = await _pending(repository)
    expect_equal("when the next one was made", head.created_at, moment(10))
    await repository.mark_done(run, moment(11))
    run = await _claim(repository, 20)
    [lost] = recovery([run], RecoverAction.FAIL, moment(22))
    [result] = await repository.apply([lost])
    result.unwrap()
    await _expect_pending(repository, "after the lost run", 30)


@_check
async def an_interval_counts_from_the_end(repository: TaskRepository) -> None:
    """With `after="end"` an interval is counted from the end of each occurrence."""
    await _put(repository, _every(10, after="end"))
    await repository.mark_done(await _claim(repository, 10), moment(13))
    await _expect_pending(repository, "after the first", 23)


@_check
async def what_is_cancelled_is_skipped(repository: TaskRepository) -> None:
    """An occurrence that is cancelled or postponed leaves the plan to the next one."""
    await _put(repository, _every(10))
    [task] = await _pending(repository)
    await repository.cancel(task.id, moment(1))
    await _expect_pending(repository, "after the cancellation", 20)
    [task] = await _pending(repository)
    await repository.update(task.id, TaskUpdate(param={"k": 1}))
    await _expect_pending(repository, "after another change", 20)
    await repository.update(task.id, TaskUpdate(scheduled_at=moment(45)))
    await _expect_pending(repository, "after the postponement", 30, 20)
    run = await _claim(repository, 30)
    await repository.mark_done(run, moment(31))
    await _expect_pending(repository, "after the one between", 40, 20)


@_check
async def what_is_postponed_leaves_its_place(repository: TaskRepository) -> None:
    """The occurrence after one that is postponed is made at the moment of that."""
    await _put(repository, _every(10))
    [task] = await _pending(repository)
    postpone = UpdateTask(task.id, TaskUpdate(scheduled_at=moment(45)), moment(5))
    [result] = await repository.apply([postpone])
    result.unwrap()
    found = [(each.scheduled_at, each.created_at) for each in await _pending(repository)]
    expected = [(moment(20), moment(5)), (moment(45), EPOCH)]
    expect_equal("what is pending, and when it was made", found, expected)


@_check
async def what_is_late_is_merged(repository: TaskRepository) -> None:
    """Of occurrences whose time has passed the latest runs, and the others are told."""
    await _put(repository, _every(10))
    [task] = await _pending(repository)
    claimed = await repository.claim(1, moment(45))
    [run] = claimed.tasks
    expect_equal("what runs", (run.id, run.nominal_at), (task.id, moment(40)))
    dropped = Dropped(
        schedule_id="s", reason="late", count=3, first=moment(10), last=moment(30)
    )
    expect_equal("what is dropped", claimed.dropped, [dropped])
    expect_equal("the run, as it is kept", await repository.get(run.id), run)
    await repository.mark_done(run, moment(46))
    await _expect_pending(repository, "after it", 50)
    expect_equal("dropped", (await repository.get_schedule("s")).dropped, 3)


@_check
async def what_is_too_late_moves(repository: TaskRepository) -> None:
    """If none of those that have passed is to run, the task is for the next moment."""
    await _put(repository, _every(10, late=Late(run="none")))
    [task] = await _pending(repository)
    claimed = await repository.claim(1, moment(25))
    expect_equal("what runs", claimed.tasks, [])
    moved = await repository.get(task.id)
    expect_equal("when it is due", moved.scheduled_at, moment(30))
    expect_equal("what is due", await repository.get_next(), moved)
    expect_equal("what was made", claimed.made, [moved])
    run = await _claim(repository, 30)
    expect_equal("what runs then", run.id, task.id)


@_check
async def an_occurrence_may_have_another_work(repository: TaskRepository) -> None:
    """An occurrence whose work was changed has a next one, of the work of the schedule."""
    await _put(repository, _every(10, overlap="allow", late=Late(run="all")))
    [task] = await _pending(repository)
    await repository.update(task.id, TaskUpdate(work_id="other"))
    others = [new(f"x{n}", 85 + n) for n in range(3)]
    await repository.add(others)
    claimed: list[Task] = []
    while runs := (await repository.claim(2, moment(100))).tasks:
        claimed += runs
    found = sorted((run.scheduled_at, run.work_id) for run in claimed)
    expected = [(moment(10 * n), "other" if n == 1 else "work") for n in range(1, 11)]
    expected += [(other.scheduled_at, other.work_id) for other in others]
    expect_equal("what has run", found, sorted(expected))
    await _expect_pending(repository, "after all of them", 110)


@_check
async def a_schedule_ends(repository: TaskRepository) -> None:
    """Once a schedule has no moment left, nothing of it is pending."""
    at = attrs.evolve(_every(1, late=Late(run="none")), trigger=At([moment(1)]))
    await _put(repository, attrs.evolve(at, id="a"), at)
    claimed = await repository.claim(1, moment(1))
    expect_equal("how many run", len(claimed.tasks), 1)
    await repository.mark_done(claimed.tasks[0], moment(2))
    claimed = await repository.claim(1, moment(5))
    expect_equal("how many have ended", [t.state for t in claimed.expired], [_S.CANCELLED])
    await _expect_pending(repository, "after the ends")
    expect_equal("next", [s.next_at for s in await repository.find_schedules()], [None] * 2)


@_check
async def the_next_may_replace_the_one_before(repository: TaskRepository) -> None:
    """With `overlap="replace"` whatever runs of the schedule ends cancelled."""
    await _put(repository, _every(10, overlap="replace"), _every(10, id="other"))
    first = [task.id for task in (await repository.claim(2, moment(10))).tasks]
    claimed = await repository.claim(2, moment(20))
    expect_equal("how many run", [t.schedule_id for t in claimed.tasks], ["s"])
    [replaced] = claimed.replaced
    expect_equal(
        "what is replaced", (replaced.id in first, replaced.schedule_id), (True, "s")
    )
    expect_equal("it, as it is kept", await repository.get(replaced.id), replaced)
    expect_equal("its state", replaced.state, _S.CANCELLED)
    running = await repository.find(TaskQuery(states={_S.DISPATCHED}))
    expect_equal("how many are running", len(running), 2)
    # One that was postponed, and is taken by the same claim, has no time to run.
    [postponed] = await _pending(repository)
    await repository.update(postponed.id, TaskUpdate(scheduled_at=moment(39)))
    claimed = await repository.claim(2, moment(40))
    expect_equal("what runs", [t.nominal_at for t in claimed.tasks], [moment(40)])
    ended = {task.id: task.state for task in claimed.expired}
    expect_equal("what has ended", ended, {postponed.id: _S.CANCELLED})
    state = (await repository.get(postponed.id)).state
    expect_equal("it, as it is kept", state, _S.CANCELLED)


@_check
async def a_schedule_is_paused_and_resumed(repository: TaskRepository) -> None:
    """Nothing of a paused schedule is pending; resumed, it catches up only if told so."""
    await _put(repository, _every(10))
    for catch_up, nominal in (False, 40), (True, 40):
        changed = await repository.change_schedule(PauseSchedule("s", moment(5)))
        assert changed.task is not None
        expect_equal("the task", await repository.get(changed.task.id), changed.task)
        expect_equal("its state", changed.task.state, _S.CANCELLED)
        await _expect_pending(repository, "while it is paused")
        again = await repository.change_schedule(PauseSchedule("s", moment(6)))
        expect(not again.changed, "what is paused was paused again")
        at = moment(35 if not catch_up else 85)
        resume = ResumeSchedule("s", at, catch_up)
        resumed = await repository.change_schedule(resume)
        expect(resumed.changed, "what is paused was not resumed")
        await _expect_pending(repository, "after it", nominal)
        again = await repository.change_schedule(resume)
        expect(not again.changed, "what is not paused was resumed")


@_check
async def a_schedule_is_removed(repository: TaskRepository) -> None:
    """With a schedule its next occurrence goes; what runs is a task like any other."""
    await _put(repository, _every(10, overlap="allow"), _every(7, id="t"))
    run = await _claim(repository, 10)
    changed = await repository.change_schedule(RemoveSchedule(run.schedule_id or "", EPOCH))
    assert changed.task is not None or run.schedule_id == "t"
    expect_equal("the schedule", changed.schedule, None)
    with refused("the schedule", ScheduleNotFoundError, schedule_id=run.schedule_id):
        await repository.get_schedule(run.schedule_id or "")
    left = [each.id for each in await repository.find_schedules()]
    expect_equal("what is left", {*left, run.schedule_id}, {"s", "t"})
    expect_equal("how many are pending", len(await _pending(repository)), 1)
    await repository.mark_done(run, moment(11))
    expect_equal("how many are pending then", len(await _pending(repository)), 1)
    gone = await repository.change_schedule(RemoveSchedule("gone", EPOCH))
    expect(not gone.changed, "what is not there was removed")


@_check
async def a_schedule_is_changed(repository: TaskRepository) -> None:
    """A schedule that is put again is changed, with its next occurrence, if it differs."""
    await _put(repository, _every(10))
    [task] = await _pending(repository)
    same = await repository.change_schedule(PutSchedule(_every(10), moment(1)))
    expect(not same.changed, "it was changed to be the same")
    other = _every(7, work_id="other", param={"k": 1}, priority=1)
    changed = await repository.change_schedule(PutSchedule(other, moment(8)))
    expect(changed.changed, "it was not changed to be another")
    [moved] = await _pending(repository)
    fields = (moved.id, moved.work_id, moved.param, moved.priority, moved.nominal_at)
    expected = (task.id, "other", {"k": 1}, 1, other.trigger.next_after(moment(8)))
    expect_equal("the next occurrence", fields, expected)
    update = ScheduleUpdate(trigger=Interval(20), jitter=2.0)
    changed = await repository.change_schedule(UpdateSchedule("s", update, moment(8)))
    expect_equal("as told", changed.schedule, await repository.get_schedule("s"))
    await _expect_pending(repository, "after the update", 20)
    expect_equal("its work", (await _pending(repository))[0].work_id, "other")


@_check
async def a_schedule_begins_to_wait(repository: TaskRepository) -> None:
    """Changed not to overlap while it runs, a schedule waits for its last run to end."""
    await _put(repository, _every(10, overlap="allow"))
    runs = [await _claim(repository, at) for at in (10, 20)]
    await repository.change_schedule(TriggerSchedule("s", moment(21)))
    await _claim(repository, 21)
    update = ScheduleUpdate(overlap="skip")
    changed = await repository.change_schedule(UpdateSchedule("s", update, moment(25)))
    assert changed.task is not None
    expect_equal("the next one", changed.task.state, _S.CANCELLED)
    expect_equal("it, as it is kept", await repository.get(changed.task.id), changed.task)
    await _expect_pending(repository, "while it runs")
    await repository.mark_done(runs[0], moment(26))
    await _expect_pending(repository, "after the run before")
    await repository.mark_done(runs[1], moment(35))
    await _expect_pending(repository, "after the last run", 40)


@_check
async def a_schedule_is_triggered(repository: TaskRepository) -> None:
    """What is told to run now runs beside the plan."""
    await _put(repository, _every(10, deadline_after=timedelta(seconds=5)))
    changed = await repository.change_schedule(TriggerSchedule("s", moment(3)))
    assert changed.made is not None
    expect_equal("its deadline", changed.made.deadline, moment(8))
    await _expect_pending(repository, "beside it", None, 10)
    run = await _claim(repository, 3)
    expect_equal("what runs", run.id, changed.made.id)
    await repository.mark_done(run, moment(4))
    await _expect_pending(repository, "after it", 10)
    for change in (
        TriggerSchedule("gone", EPOCH),
        PauseSchedule("gone", EPOCH),
        ResumeSchedule("gone", EPOCH),
        UpdateSchedule("gone", ScheduleUpdate(), EPOCH),
    ):
        with refused(f"{change}", ScheduleNotFoundError, schedule_id="gone"):
            await repository.change_schedule(change)
    update = ScheduleUpdate(after="end", trigger=Cron("@daily"))
    with refused("what cannot be", InvalidTaskError, field="after"):
        await repository.change_schedule(UpdateSchedule("s", update, EPOCH))
    with refused("no trigger", InvalidTriggerError, field="trigger"):
        no_trigger: Any = "daily"
        ScheduleUpdate(trigger=no_trigger)


# -- everything, in any order -----------------------------------------------------------


@_check
async def schedules_go_on_whatever_happens(repository: TaskRepository) -> None:
    """In any order of changes, claims and ends all is as it is in memory."""
    for seed in range(8):
        both = _Both(repository, Random(seed), f"{seed} ")
        for _ in range(60):
            await both.step()


@attrs.define
class _Both:
    """Does the same to two repositories, and expects the same of them."""

    repository: TaskRepository
    random: Random
    prefix: str
    other: TaskRepository = attrs.field(factory=HeapRepository)
    now: float = 0.0

    async def step(self) -> None:
        """Do something."""
        random = self.random
        self.now += random.choice([0, 1, 5, 12, 40])
        act = random.choice([self._change, self._claim, self._end, self._end, self._touch])
        await act()
        expect_equal(
            f"after {act.__name__}",
            await _seen(self.repository, self.prefix),
            await _seen(self.other, self.prefix),
        )

    async def _change(self) -> None:
        schedule_id = self.prefix + self.random.choice("ab")
        at = moment(self.now)
        schedule = _every(
            self.random.choice([5, 10, 11]),
            id=schedule_id,
            created_at=at,
            work_id=self.prefix,
            jitter=timedelta(seconds=self.random.choice([0, 0, 3])),
            overlap=self.random.choice(["skip", "queue", "allow", "replace"]),
            after=self.random.choice(["start", "start", "start", "end"]),
            deadline_after=self.random.choice([None, None, timedelta(seconds=8)]),
            late=Late(
                window=self.random.choice([None, 0, 15]),
                run=self.random.choice(["latest", "earliest", "all", "none"]),
                limit=self.random.choice([1, 3]),
            ),
            paused=self.random.choice([False, False, False, True]),
        )
        changes: list[ChangeSchedule] = [
            PutSchedule(schedule, at),
            PutSchedule(schedule, at),
            PauseSchedule(schedule_id, at),
            ResumeSchedule(schedule_id, at, self.random.choice([False, True])),
            TriggerSchedule(schedule_id, at),
            RemoveSchedule(schedule_id, at),
        ]
        change = self.random.choice(changes)
        await self._same(lambda repository: repository.change_schedule(change))

    async def _claim(self) -> None:
        limit = self.random.choice([1, 1_000])  # in between, any of those due may come
        only = TaskFilter(frozenset({self.prefix}))
        await self._same(lambda r: r.claim(limit, moment(self.now), only))

    async def _end(self) -> None:
        run = await self._one(_S.DISPATCHED)
        how = self.random.choice(["done", "failed", "cancelled", "reverted"])
        if run is None:
            return
        at = moment(self.now)
        for repository, task in run:
            if how == "cancelled":
                await repository.mark_cancelled(task, at)
            elif how == "reverted":
                await repository.revert(task)
            else:
                await repository.mark_done(task, at, None if how == "done" else "no luck")

    async def _touch(self) -> None:
        found = await self._one(_S.SCHEDULED)
        postpone = self.random.choice([None, None, 3, 30])
        if found is None:
            return
        for repository, task in found:
            if postpone is None:
                await repository.cancel(task.id, moment(self.now))
            else:
                at = task.scheduled_at + timedelta(seconds=postpone)
                update = TaskUpdate(scheduled_at=at, deadline=None)
                await repository.update(task.id, update)

    async def _one(self, state: TaskState) -> list[tuple[TaskRepository, Task]] | None:
        """The same task of both; chosen by anything but its id."""
        query = TaskQuery(states={state}, work_ids={self.prefix})
        found = [
            (repository, sorted(await repository.find(query), key=_without_id))
            for repository in (self.repository, self.other)
        ]
        count = len(found[0][1])
        if not count:
            return None
        index = self.random.randrange(count)
        return [(repository, tasks[index]) for repository, tasks in found]

    async def _same(self, do: Callable[[TaskRepository], Awaitable[Any]]) -> None:
        results: list[Any] = []
        for repository in self.repository, self.other:
            try:
                result = await do(repository)
            except GokugenError as error:
                results.append(repr(error))
            else:
                results.append(_told(result))
        expect_equal("what is told", results[0], results[1])


def _without_id(task: Task) -> str:
    return attrs.evolve(task, id="-").to_json()


def _told(result: Any) -> Any:
    """A result without the ids of tasks."""
    told: dict[str, Any] = {}
    values: dict[str, object] = attrs.asdict(result, recurse=False)
    for field, value in values.items():
        many = cast("list[object]", value) if isinstance(value, list) else [value]
        # Equals may come in any order, as they are told apart by their age only.
        told[field] = sorted(map(_text_of, many))
    return told


def _text_of(value: object) -> str:
    if isinstance(value, Task):
        return _without_id(value)
    return repr(_plainly(value) if isinstance(value, Schedule) else value)


def _plainly(schedule: Schedule) -> Schedule:
    return attrs.evolve(
        schedule,
        pending_id=schedule.pending_id and "-",
        awaited_id=schedule.awaited_id and "-",
    )


async def _seen(
    repository: TaskRepository, prefix: str
) -> tuple[list[str], list[Schedule]]:
    tasks = await repository.find(TaskQuery(work_ids={prefix}))
    schedules = await repository.find_schedules()
    mine = [_plainly(each) for each in schedules if each.id.startswith(prefix)]
    return sorted(map(_without_id, tasks)), mine
