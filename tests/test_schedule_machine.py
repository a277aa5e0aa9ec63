"""A state machine: whatever is done to schedules, a scheduler goes on as `plan` says.

The rules write a script, which is played at the end, in virtual time. Before time passes,
it is planned what is to run and what is not, from the schedules as they then stand; once it
has passed, exactly that must have happened. How schedules stand after each change is told
by a model that looks at their moments one by one.

No two things race: whatever is due at a moment has run before anything else is done then.
Where a wall clock is set, a scheduler notices as it next looks at it. This clock has that
done at every half minute of Trio's, so that it is known when: until then, it is as if no
scheduler ran.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from operator import or_
from typing import Any, TypeAlias, cast

import attrs
import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from trio_gokugen import (
    At,
    Cron,
    Dropped,
    HeapRepository,
    Interval,
    InvalidTaskError,
    Late,
    PartialHooks,
    Planned,
    Schedule,
    ScheduleNotFoundError,
    Scheduler,
    Task,
    TaskState,
    TrioClock,
    WorkRegistry,
    current_task,
    open_scheduler,
    plan,
)
from trio_gokugen.abc import Trigger

# Others run the same lines; with coverage it would take twice as long.
pytestmark = pytest.mark.uncovered

LOOK = 30.0
"""Seconds from one look at the clock to the next."""

TICK = timedelta(microseconds=1)

# In Berlin, clocks are set half an hour later: forward, and back.
EPOCHS = datetime(2030, 3, 31, 0, 30, tzinfo=UTC), datetime(2030, 10, 27, 0, 30, tzinfo=UTC)
IDS = "a", "b"

Fields: TypeAlias = dict[str, Any]
Run: TypeAlias = tuple[str, datetime | None, datetime]
"""Of which schedule, or of which task if that is beside the plan; nominal and real time."""


def seconds(length: float) -> timedelta:
    return timedelta(seconds=length)


@attrs.define(eq=False)
class SetClock:
    """A wall clock, which is looked at whenever Trio's clock shows a full half minute."""

    trio_clock: TrioClock

    @property
    def max_sleep(self) -> float:
        return next_look() - trio.current_time()

    def now(self) -> datetime:
        return self.trio_clock.now()

    def deadline_for(self, moment: datetime) -> float:
        return self.trio_clock.deadline_for(moment)

    def set(self, by: timedelta) -> None:
        assert self.trio_clock.epoch is not None
        self.trio_clock = TrioClock(self.trio_clock.epoch + by, 0.0)


def next_look() -> float:
    return (trio.current_time() // LOOK + 1) * LOOK


@attrs.define
class Happened:
    """What has happened, or is to happen. What runs beside the plan is told by its id."""

    runs: list[Run] = attrs.field(factory=list[Run])
    failed: list[Run] = attrs.field(factory=list[Run])
    """What has not run, as it was past its deadline."""

    dropped: list[tuple[str, datetime]] = attrs.field(factory=list[tuple[str, datetime]])

    def sorted(self) -> Happened:
        return Happened(*(sorted(each, key=str) for each in attrs.astuple(self)))


# -- the model ------------------------------------------------------------------------


def first(schedule: Schedule, at: datetime) -> datetime | None:
    """The first moment of a schedule that begins then."""
    anchor = getattr(schedule.trigger, "anchor", None)
    return anchor if anchor is not None and anchor > at else schedule.following(at)


def changed(schedule: Schedule, fields: Fields, at: datetime) -> Schedule:
    """A schedule that is said to be like this."""
    new = attrs.evolve(schedule, **fields)
    timing = (new.trigger, new.after) != (schedule.trigger, schedule.after)
    if timing or (new.next_at is None and (new != schedule or not new.paused)):
        return attrs.evolve(new, next_at=first(new, max(at, new.last_at or at)))
    return new


def resumed(
    schedule: Schedule, at: datetime, *, catch_up: bool
) -> tuple[Schedule, list[datetime]]:
    """A schedule that is paused no more, and what is dropped."""
    dropped: list[datetime] = []
    following = schedule.next_at if schedule.paused else None
    while following is not None and schedule.due(following) <= at and not catch_up:
        dropped.append(following)
        following = schedule.following(at if schedule.after == "end" else following)
    new = attrs.evolve(schedule, paused=False, dropped=schedule.dropped + len(dropped))
    return (attrs.evolve(new, next_at=following) if dropped else new), dropped


def lived(schedule: Schedule, mine: Sequence[Planned], up_at: datetime) -> Schedule:
    """A schedule that has done as planned."""
    if not mine:
        return schedule
    last = max(mine, key=lambda each: each.nominal_at)
    taken = [each for each in mine if each.runs_at or is_failed(each)]
    # What is merged with another is dropped as that is taken, which counts.
    chosen = taken[-1] if last.outcome == "merged" else last
    ends = schedule.after == "end"
    return attrs.evolve(
        schedule,
        runs=schedule.runs + sum(each.runs_at is not None for each in mine),
        dropped=schedule.dropped + len(mine) - len(taken),
        last_at=chosen.nominal_at,
        next_at=schedule.following(max(last.due_at, up_at) if ends else last.nominal_at),
    )


def is_failed(planned: Planned) -> bool:
    return planned.why.startswith("DeadlineExceededError")


# -- the real thing, and the model beside it ------------------------------------------

Act: TypeAlias = Callable[..., Awaitable[None]]
Script: TypeAlias = list[tuple[Act, float]]
"""What is done with a play, and how long it is to live after that."""


@attrs.define
class Play:
    """A scheduler, and what is known of it."""

    epoch: datetime
    clock: SetClock = attrs.field(init=False)
    works: WorkRegistry = attrs.field(factory=WorkRegistry)
    repository: HeapRepository = attrs.field(factory=HeapRepository)
    scheduler: Scheduler = attrs.field(init=False)
    stack: AsyncExitStack = attrs.field(factory=AsyncExitStack)
    model: dict[str, Schedule] = attrs.field(factory=dict[str, Schedule])
    beside: dict[str, Task] = attrs.field(factory=dict[str, Task])
    """What is out of the plan, by id: it was postponed, or told to run."""

    looks_at: float | None = None
    """When the clock is looked at, on Trio's, if it was set since."""

    happened: Happened = attrs.field(factory=Happened)
    told: list[Dropped] = attrs.field(factory=list[Dropped])

    async def play(self, script: Script) -> None:
        self.clock = SetClock(TrioClock(self.epoch, 0.0))
        self.works.register("note", self.note)
        async with self.stack:
            await self.start()
            for act, length in script:
                await act(self)
                await self.live(await self.scheduler.find_schedules(), length)
                self.check()

    async def start(self) -> None:
        scheduler = open_scheduler(
            self.works,
            self.repository,
            max_workers=1_000,
            clock=self.clock,
            hooks=PartialHooks(on_task_done=self.on_task_done, on_dropped=self.on_dropped),
        )
        self.scheduler = await self.stack.enter_async_context(scheduler)

    @property
    def now(self) -> datetime:
        return self.clock.now()

    @property
    def up_at(self) -> datetime:
        """From when on the scheduler does what is due by the clock."""
        if self.looks_at is None:
            return self.now
        return self.now + seconds(self.looks_at - trio.current_time())

    async def note(self) -> None:
        task = current_task()
        assert task.dispatched_at == self.now
        self.happened.runs.append(self.run_of(task, self.now))

    async def on_task_done(self, task: Task) -> None:
        assert task.done_at is not None
        if task.state is TaskState.FAILED:
            self.happened.failed.append(self.run_of(task, task.done_at))

    async def on_dropped(self, dropped: Dropped) -> None:
        self.told.append(dropped)

    def run_of(self, task: Task, at: datetime) -> Run:
        who = task.id if task.id in self.beside else task.schedule_id
        return who or "", task.nominal_at, at

    # -- time passes --------------------------------------------------------------------

    async def live(
        self,
        schedules: Sequence[Schedule],
        length: float = 0.0,
        dropped: Sequence[tuple[str, datetime]] = (),
    ) -> None:
        """Let time pass, and compare what happens with what is planned.

        Args:
          schedules: As they stand.
          length: So many seconds.
          dropped: What was dropped just before.
        """
        expected = self.expected(schedules, self.now + seconds(length))
        expected.dropped += dropped
        if length:
            await trio.sleep_until(trio.current_time() + length)
        await trio.testing.wait_all_tasks_blocked()
        if self.looks_at is not None and self.looks_at <= trio.current_time():
            self.looks_at = None
        self.compare(expected)

    def expected(self, schedules: Sequence[Schedule], until: datetime) -> Happened:
        """What is to happen until that moment, and at it; and the model goes on."""
        up_at = self.up_at
        # In a plan, a schedule that has ended before it could begin would begin anew.
        begun = [each for each in schedules if each.next_at or each.last_at]
        # A plan does not tell of what was missed before its start: so it starts there.
        start = min([up_at, *(each.next_at for each in begun if each.next_at)])
        planned = plan(begun, start, max(start, until + TICK), downtime=[(start, up_at)])
        expected = Happened()
        for each in planned:
            if each.runs_at is not None:
                assert each.outcome == ("late" if each.runs_at > each.due_at else "runs")
                expected.runs.append((each.schedule_id, each.nominal_at, each.runs_at))
            elif is_failed(each):
                at = max(each.due_at, up_at)
                expected.failed.append((each.schedule_id, each.nominal_at, at))
            else:
                expected.dropped.append((each.schedule_id, each.nominal_at))
        for task in self.beside.values():
            at = max(task.scheduled_at, up_at)
            if at <= until:
                failed = task.deadline is not None and task.deadline <= at
                what = expected.failed if failed else expected.runs
                what.append((task.id, task.nominal_at, at))
        for schedule_id, schedule in self.model.items():
            mine = [each for each in planned if each.schedule_id == schedule_id]
            self.model[schedule_id] = lived(schedule, mine, up_at)
        return expected

    def compare(self, expected: Happened) -> None:
        for dropped in self.told:
            assert dropped.reason == "late"
            each_of = [*self.each_of(dropped)]
            assert dropped.count == len(each_of)
            self.happened.dropped += each_of
        assert self.happened.sorted() == expected.sorted()
        for run in (*expected.runs, *expected.failed):
            self.beside.pop(run[0], None)
        self.happened, self.told = Happened(), []

    def each_of(self, dropped: Dropped) -> Iterator[tuple[str, datetime]]:
        schedule = self.model[dropped.schedule_id]
        nominal: datetime | None = dropped.first
        while nominal is not None and nominal <= dropped.last:
            yield schedule.id, nominal
            nominal = schedule.following(nominal)

    # -- what is done -------------------------------------------------------------------

    async def add(self, schedule_id: str, fields: Fields, paused: bool) -> None:
        """Add a schedule; or have one that is there be like this."""
        await self.scheduler.add_schedule(
            schedule_id, work_id="note", paused=paused, **fields
        )
        now, known = self.now, self.model.get(schedule_id)
        if known is None:
            new = Schedule(
                id=schedule_id, work_id="note", paused=paused, created_at=now, **fields
            )
            new = attrs.evolve(new, next_at=first(new, now))
        else:
            new = changed(known, fields, now)
        await self.follow(schedule_id, new)

    async def add_again(self) -> None:
        """Say of all schedules what is so already."""
        for schedule_id in [*self.model]:
            definition = self.model[schedule_id].definition
            await self.scheduler.add_schedule(schedule_id, **definition)
            known = self.model[schedule_id]
            await self.follow(schedule_id, changed(known, {}, self.now))

    async def update(self, schedule_id: str, fields: Fields) -> None:
        known = await self.known(
            schedule_id, self.scheduler.update_schedule(schedule_id, **fields)
        )
        if known is not None:
            await self.follow(schedule_id, changed(known[0], fields, self.now))

    async def pause(self, schedule_id: str) -> None:
        known = await self.known(schedule_id, self.scheduler.pause_schedule(schedule_id))
        if known is not None:
            schedule, answer = known
            assert answer is not schedule.paused
            await self.follow(schedule_id, attrs.evolve(schedule, paused=True))

    async def resume(self, schedule_id: str, catch_up: bool) -> None:
        call = self.scheduler.resume_schedule(schedule_id, catch_up=catch_up)
        known = await self.known(schedule_id, call)
        if known is not None:
            schedule, answer = known
            assert answer is schedule.paused
            new, dropped = resumed(schedule, self.now, catch_up=catch_up)
            await self.follow(schedule_id, new, dropped)

    async def trigger(self, schedule_id: str) -> None:
        known = await self.known(schedule_id, self.scheduler.trigger_schedule(schedule_id))
        if known is not None:
            schedule, task = known
            assert (task.nominal_at, task.scheduled_at) == (None, self.now)
            await self.follow(schedule_id, schedule, beside=task)

    async def remove(self, schedule_id: str) -> None:
        there = await self.scheduler.remove_schedule(schedule_id)
        assert there is (schedule_id in self.model)
        await self.follow(schedule_id, None)

    async def cancel(self, schedule_id: str, number: int) -> None:
        """Cancel the next occurrence, or one that was postponed."""
        for task in self.pending_of(schedule_id)[number : number + 1]:
            assert await self.scheduler.cancel(task.id)
            schedule = self.left(task)
            self.beside.pop(task.id, None)
            await self.follow(schedule_id, schedule)

    async def postpone(
        self, schedule_id: str, number: int, by: timedelta, keeps_deadline: bool
    ) -> None:
        """Move the next occurrence, or one that was moved before."""
        for task in self.pending_of(schedule_id)[number : number + 1]:
            at = task.scheduled_at + by
            fields: Fields = {} if keeps_deadline else {"deadline": None}
            call = self.scheduler.update(task.id, scheduled_at=at, **fields)
            if keeps_deadline and task.deadline is not None and at >= task.deadline:
                with pytest.raises(InvalidTaskError):
                    await call
                continue
            assert await call
            moved = attrs.evolve(task, scheduled_at=at, **fields)
            await self.follow(schedule_id, self.left(task), beside=moved)

    async def set_clock(self, by: timedelta) -> None:
        """Set the clock while the scheduler runs."""
        if self.looks_at is None:
            self.looks_at = next_look()
            head = await self.repository.get_next()
            if head is not None:  # slept for, by the clock as it was
                left = (head.scheduled_at - self.now).total_seconds()
                self.looks_at = min(self.looks_at, trio.current_time() + left)
        self.clock.set(by)

    async def rest(self, length: float, by: timedelta) -> None:
        """Stop the scheduler, let time pass, set the clock, and start it again."""
        schedules = await self.scheduler.find_schedules()
        await self.stack.aclose()
        await trio.sleep(length)
        self.clock.set(by)
        self.looks_at = None
        expected = self.expected(schedules, self.now)
        await self.start()
        await trio.testing.wait_all_tasks_blocked()
        self.compare(expected)

    # -- what that changes --------------------------------------------------------------

    async def known(
        self, schedule_id: str, call: Awaitable[Any]
    ) -> tuple[Schedule, Any] | None:
        """The schedule as it stood, and the answer; none if there is no such schedule."""
        schedule = self.model.get(schedule_id)
        if schedule is not None:
            return schedule, await call
        with pytest.raises(ScheduleNotFoundError):
            await call
        return None

    async def follow(
        self,
        schedule_id: str,
        schedule: Schedule | None,
        dropped: Sequence[datetime] = (),
        beside: Task | None = None,
    ) -> None:
        """A change has left a schedule so, and dropped something; what is due then runs."""
        self.looks_at = None  # whoever sleeps has looked again
        self.model.pop(schedule_id, None)
        if schedule is not None:
            self.model[schedule_id] = schedule
        if beside is not None:
            self.beside[beside.id] = beside
        # At once, before anything can run.
        schedules = self.repository.store.schedules()
        self.check()
        await self.live(schedules, dropped=[(schedule_id, each) for each in dropped])

    def pending_of(self, schedule_id: str) -> list[Task]:
        """What is pending of a schedule, its next occurrence being the first."""
        pending = [each for each in self.pending() if each.schedule_id == schedule_id]
        return sorted(pending, key=lambda task: (task.id in self.beside, task.id))

    def pending(self) -> list[Task]:
        tasks = self.repository.store.snapshot()
        return [task for task in tasks if task.state is TaskState.SCHEDULED]

    def left(self, task: Task) -> Schedule | None:
        """The schedule of a task that has left the plan, if it was in it."""
        schedule = self.model.get(task.schedule_id or "")
        if schedule is None or task.id in self.beside:
            return schedule
        nominal = schedule.next_at
        assert nominal is not None
        assert task.nominal_at == nominal
        following = schedule.following(nominal)
        return attrs.evolve(schedule, last_at=nominal, next_at=following)

    def check(self) -> None:
        """Schedules and what is pending are as the model has them."""
        schedules = self.repository.store.schedules()
        for schedule in schedules:
            known = self.model[schedule.id]
            assert schedule == attrs.evolve(known, pending_id=schedule.pending_id)
            ended = schedule.paused or schedule.next_at is None
            assert (schedule.pending_id is None) is ended
        assert [each.id for each in schedules] == sorted(self.model)
        heads = {each.pending_id: each for each in schedules if each.pending_id}
        for task in self.pending():
            if task.id not in heads:
                assert task == self.beside[task.id]
                continue
            schedule = heads.pop(task.id)
            assert task.nominal_at is not None
            assert task.nominal_at == schedule.next_at
            assert task.scheduled_at == schedule.due(task.nominal_at)
        assert not heads


# -- the script -----------------------------------------------------------------------


def moments(epoch: datetime) -> st.SearchStrategy[datetime]:
    return st.integers(-100, 3_000).map(lambda n: epoch + seconds(n))


def triggers(epoch: datetime) -> st.SearchStrategy[Trigger]:
    anchored = partial(Interval, 45)
    return st.one_of(
        st.builds(Interval, st.sampled_from([20, 90, 37.25])),
        st.builds(lambda moment: anchored(anchor=moment), moments(epoch)),
        st.sampled_from(
            [
                Cron("* * * * *"),
                Cron("*/20 * * * * *"),
                Cron("10,15 */2 * * * *"),
                Cron("0,20,50 1,2,3 * * *", "Europe/Berlin"),
                Cron("*/7 * * * *", "Europe/Berlin"),
                Cron("30 2,3 * * *", "Europe/Berlin", dst="match"),
            ]
        ),
        st.builds(At, st.lists(moments(epoch), min_size=1, max_size=5)),
    )


def timings(epoch: datetime) -> st.SearchStrategy[Fields]:
    """A trigger, and whether it counts from ends, which only an interval can."""
    return triggers(epoch).flatmap(
        lambda trigger: st.fixed_dictionaries(
            {
                "trigger": st.just(trigger),
                "after": st.sampled_from(["start", "start", "end"])
                if isinstance(trigger, Interval)
                else st.just("start"),
            }
        )
    )


lates = st.builds(
    Late,
    window=st.sampled_from([None, None, 0, 0.5, 7, 60, 1000]),
    run=st.sampled_from(["latest", "earliest", "all", "none"]),
    limit=st.sampled_from([1, 2, 4, 100]),
)
options: Mapping[str, st.SearchStrategy[Any]] = {
    "late": lates,
    "jitter": st.sampled_from([0, 0, 0.25, 5, 100]).map(seconds),
    "overlap": st.sampled_from(["skip", "queue", "allow", "replace"]),
    "deadline_after": st.sampled_from([None, None, seconds(3), seconds(50)]),
}


def definitions(epoch: datetime) -> st.SearchStrategy[Fields]:
    return st.builds(or_, timings(epoch), st.fixed_dictionaries({**options}))


def changes(epoch: datetime) -> st.SearchStrategy[Fields]:
    timing = st.just(Fields()) | timings(epoch)
    return st.builds(or_, timing, st.fixed_dictionaries({}, optional={**options}))


ids = st.sampled_from(IDS)
numbers = st.integers(0, 2)
lengths = st.sampled_from([0, 0.25, 300, 1_000]) | st.integers(0, 200)
steps = st.integers(-150, 150) | st.sampled_from([-3_600, -1_000, 0.5, 1_000, 3_600])


@cache
def acts(epoch: datetime) -> st.SearchStrategy[Act]:
    return st.one_of(
        act(Play.add_again),
        act(Play.pause, schedule_id=ids),
        act(Play.resume, schedule_id=ids, catch_up=st.booleans()),
        act(Play.update, schedule_id=ids, fields=changes(epoch)),
        act(Play.cancel, schedule_id=ids, number=numbers),
        act(
            Play.postpone,
            schedule_id=ids,
            number=numbers,
            by=st.integers(-60, 400).filter(bool).map(seconds),
            keeps_deadline=st.booleans(),
        ),
        act(Play.trigger, schedule_id=ids),
        act(Play.set_clock, by=steps.map(seconds)),
        act(Play.rest, length=lengths, by=(st.just(0) | steps).map(seconds)),
        act(Play.add, schedule_id=ids, fields=definitions(epoch), paused=st.booleans()),
        act(Play.remove, schedule_id=ids),
    )


def act(method: Act, **given: st.SearchStrategy[Any]) -> st.SearchStrategy[Act]:
    return st.builds(partial, st.just(method), **given)


beginnings = st.sampled_from(EPOCHS).flatmap(
    lambda epoch: st.tuples(
        st.just(epoch), st.lists(definitions(epoch), min_size=1, max_size=2)
    )
)
# What is drawn later depends on that.
any_act = st.runner().flatmap(lambda machine: acts(cast("ScheduleMachine", machine).epoch))


class ScheduleMachine(RuleBasedStateMachine):
    """Writes the script."""

    def __init__(self) -> None:
        super().__init__()
        self.script: Script = []
        self.epoch: datetime = EPOCHS[0]

    @initialize(begin=beginnings)
    def begin(self, begin: tuple[datetime, list[Fields]]) -> None:
        self.epoch, found = begin
        for schedule_id, fields in zip(IDS, found, strict=False):
            add = partial(Play.add, schedule_id=schedule_id, fields=fields, paused=False)
            self.script.append((add, 0))

    @rule(act=any_act, then=lengths)
    def do(self, act: Act, then: float) -> None:
        self.script.append((act, then))

    def teardown(self) -> None:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(Play(self.epoch).play, self.script, clock=clock)


TestScheduleMachine = ScheduleMachine.TestCase
TestScheduleMachine.settings = settings(
    max_examples=100,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
