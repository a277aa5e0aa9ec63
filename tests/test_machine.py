"""A state machine: what the scheduler does must equal a model that is easy to believe.

The rules write a script, which is played at the end, in virtual time, against a model
that knows nothing of loops, timers or workers. Moments are chosen so that no two things
of different kinds happen at once: works take a multiple of 1/8 s, and deadlines fall on
odd multiples of 1/16 s. All of these are exact as floats and as microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, cast

import attrs
import hypothesis.strategies as st
import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, multiple, rule
from support import NOON, Bench, noon

from trio_gokugen import (
    AlreadyCancelledError,
    AlreadyDispatchedError,
    AlreadyDoneError,
    HeapRepository,
    InvalidTaskError,
    NotDispatchedError,
    Pool,
    PoolsDispatcher,
    Scheduler,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    WorkRegistry,
)
from trio_gokugen.abc import Dispatcher

pytestmark = pytest.mark.uncovered

WORKERS = 2

SCHEDULED, DISPATCHED = TaskState.SCHEDULED, TaskState.DISPATCHED
CANCELLED, DONE, FAILED = TaskState.CANCELLED, TaskState.DONE, TaskState.FAILED

Refusal = type[Exception]


@attrs.define
class Modelled:
    """A task of the model."""

    id: str
    scheduled_at: float
    priority: int
    deadline: float
    age: int
    work: str
    seconds: float
    state: TaskState = SCHEDULED
    attempt: int = 0
    interruptions: int = 0
    ends_at: float = math.inf

    def order(self) -> tuple[float, int, int]:
        return self.scheduled_at, -self.priority, self.age


@attrs.define
class Model:
    """What is to happen, said as plainly as possible."""

    now: float = 0.0
    running: bool = True
    tasks: dict[str, Modelled] = attrs.field(factory=dict[str, Modelled])
    starts: list[tuple[str, float]] = attrs.field(factory=list[tuple[str, float]])

    def of(self, state: TaskState) -> list[Modelled]:
        return [task for task in self.tasks.values() if task.state is state]

    def settle(self) -> None:
        """Do all that is to be done at the present moment."""
        for task in self.of(DISPATCHED):
            if task.ends_at <= self.now:
                late = task.ends_at == task.deadline
                task.state = FAILED if late or task.work == "fail" else DONE
        while self.running and len(self.of(DISPATCHED)) < WORKERS:
            due = [task for task in self.of(SCHEDULED) if task.scheduled_at <= self.now]
            if not due:
                return
            task = min(due, key=Modelled.order)
            if task.deadline <= self.now:
                task.state = FAILED
                continue
            task.state = DISPATCHED
            task.attempt += 1
            self.starts.append((task.id, self.now))
            seconds = task.seconds if task.work == "sleep" else 0.0
            task.ends_at = min(self.now + seconds, task.deadline)
            if seconds == 0.0:
                task.state = FAILED if task.work == "fail" else DONE

    def advance(self, until: float) -> None:
        self.settle()
        while True:
            events = [task.ends_at for task in self.of(DISPATCHED)]
            events += [
                t.scheduled_at for t in self.of(SCHEDULED) if t.scheduled_at > self.now
            ]
            following = min(events, default=math.inf)
            if following > until:
                break
            self.now = following
            self.settle()
        self.now = until

    def refusal(self, task_id: str) -> Refusal | None:
        """Why a change of the task is refused, if it is."""
        return {
            SCHEDULED: None,
            DISPATCHED: AlreadyDispatchedError,
            CANCELLED: AlreadyCancelledError,
            DONE: AlreadyDoneError,
            FAILED: AlreadyDoneError,
        }[self.tasks[task_id].state]


@attrs.define
class Play:
    """The real thing, and the model beside it."""

    make: Callable[[WorkRegistry], Dispatcher]
    bench: Bench = attrs.field(factory=Bench)
    repository: HeapRepository = attrs.field(factory=HeapRepository)
    model: Model = attrs.field(factory=Model)
    scheduler: Scheduler = attrs.field(init=False)
    nursery: trio.Nursery = attrs.field(init=False)

    async def play(self, script: list[Callable[[Play], Awaitable[None]]]) -> None:
        self.scheduler = Scheduler(
            self.bench.works,
            self.repository,
            self.make(self.bench.works),
            clock=TrioClock(NOON, 0.0),
            grace=0,
        )
        async with trio.open_nursery() as self.nursery:
            await self.nursery.start(self.scheduler.run)
            for step in script:
                await step(self)
                await trio.testing.wait_all_tasks_blocked()
                self.model.settle()
                await self.check()
            await self.scheduler.stop()

    async def check(self) -> None:
        real = {task.id: task for task in self.repository.store.snapshot()}
        assert real.keys() == self.model.tasks.keys()
        for task_id, expected in self.model.tasks.items():
            task = real[task_id]
            assert (task.id, task.state, task.attempt, task.interruptions) == (
                expected.id,
                expected.state,
                expected.attempt,
                expected.interruptions,
            )
            assert (task.err is None) is (task.state is not FAILED)
        assert sorted(self.bench.starts) == sorted(self.model.starts)
        if self.model.running:
            statistics = self.scheduler.statistics()
            assert statistics.running == len(self.model.of(DISPATCHED))

    async def refused(self, refusal: Refusal | None, call: Awaitable[Any]) -> bool:
        """Make the call; say whether it was refused, as it must be."""
        try:
            await call
        except Exception as error:
            if type(error) is not refusal:
                raise
            return True
        assert refusal is None
        return False


sixteenths = st.integers(0, 60).map(lambda n: n + 1 / 16)
seconds = st.integers(0, 20).map(lambda n: n + 1 / 8)
moments = st.integers(0, 60).map(float)
works = st.sampled_from(["note", "sleep", "sleep", "sleep", "fail"])
priorities = st.integers(-1, 1)


class SchedulerMachine(RuleBasedStateMachine):
    """Writes the script."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        self.script: list[Callable[[Play], Awaitable[None]]] = []
        self.count = 0
        self.up = True

    @rule(
        target=ids,
        work=works,
        duration=seconds,
        ahead=moments,
        priority=priorities,
        patience=st.none() | sixteenths,
    )
    def add(
        self,
        work: str,
        duration: float,
        ahead: float,
        priority: int,
        patience: float | None,
    ) -> Any:
        if not self.up:
            return cast("Any", multiple())
        task_id = f"t{self.count}"
        age = self.count
        self.count += 1

        async def step(play: Play) -> None:
            scheduled_at = math.floor(play.model.now) + ahead
            deadline = math.inf if patience is None else scheduled_at + patience
            await play.scheduler.add_task(
                work,
                {"seconds": duration} if work == "sleep" else None,
                at=noon(scheduled_at),
                priority=priority,
                deadline=None if patience is None else noon(deadline),
                id=task_id,
            )
            play.model.tasks[task_id] = Modelled(
                task_id, scheduled_at, priority, deadline, age, work, duration
            )

        self.script.append(step)
        return task_id

    @rule(task_id=ids, ahead=st.none() | moments, priority=st.none() | priorities)
    def update(self, task_id: str, ahead: float | None, priority: int | None) -> None:
        if not self.up:
            return

        async def step(play: Play) -> None:
            task = play.model.tasks[task_id]
            changes: dict[str, Any] = {}
            scheduled_at = task.scheduled_at
            if ahead is not None:
                scheduled_at = math.floor(play.model.now) + ahead
                changes["scheduled_at"] = noon(scheduled_at)
            if priority is not None:
                changes["priority"] = priority
            refusal = play.model.refusal(task_id)
            if refusal is None and scheduled_at >= task.deadline:
                refusal = InvalidTaskError
            if not await play.refused(refusal, play.scheduler.update(task_id, **changes)):
                task.scheduled_at = scheduled_at
                task.priority = task.priority if priority is None else priority

        self.script.append(step)

    @rule(task_id=ids)
    def cancel(self, task_id: str) -> None:
        if not self.up:
            return

        async def step(play: Play) -> None:
            refusal = play.model.refusal(task_id)
            if refusal is AlreadyCancelledError:
                assert await play.scheduler.cancel(task_id) is False
            elif not await play.refused(refusal, play.scheduler.cancel(task_id)):
                play.model.tasks[task_id].state = CANCELLED

        self.script.append(step)

    @rule(task_id=ids)
    def interrupt(self, task_id: str) -> None:
        if not self.up:
            return

        async def step(play: Play) -> None:
            refusal = play.model.refusal(task_id)
            if refusal is None:
                refusal = NotDispatchedError
            elif refusal is AlreadyDispatchedError:
                refusal = None
            if not await play.refused(refusal, play.scheduler.interrupt(task_id)):
                play.model.tasks[task_id].state = CANCELLED

        self.script.append(step)

    @rule(by=st.integers(0, 640).map(lambda n: n / 16))
    def advance(self, by: float) -> None:
        async def step(play: Play) -> None:
            play.model.advance(play.model.now + by)
            await trio.sleep_until(play.model.now)

        self.script.append(step)

    @rule()
    def stop(self) -> None:
        if not self.up:
            return
        self.up = False

        async def step(play: Play) -> None:
            await play.scheduler.stop()
            play.model.running = False
            for task in play.model.of(DISPATCHED):
                task.state = SCHEDULED
                task.interruptions += 1

        self.script.append(step)

    @rule()
    def start(self) -> None:
        if self.up:
            return
        self.up = True

        async def step(play: Play) -> None:
            await play.nursery.start(play.scheduler.run)
            play.model.running = True

        self.script.append(step)

    def dispatcher(self, works: WorkRegistry) -> Dispatcher:
        return WorkerPoolDispatcher(works, WORKERS)

    def teardown(self) -> None:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(Play(self.dispatcher).play, self.script, clock=clock)


class PoolsMachine(SchedulerMachine):
    """The same in a pool, beside one that has nothing to do."""

    def dispatcher(self, works: WorkRegistry) -> Dispatcher:
        return PoolsDispatcher(works, {"idle": Pool(1, works={"idle"})}, default=WORKERS)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
)
TestPoolsMachine = PoolsMachine.TestCase
TestPoolsMachine.settings = settings(
    max_examples=100,
    stateful_step_count=40,
)
