"""Cancelled at every step: the scheduler, a caller, a work.

A step is what a Trio task does between two checkpoints, so "at every step k" is at every
checkpoint that the scenario passes. The order of tasks is seeded, so that a failure can be
replayed: its seed and step are the parameters of the scenario.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from support import NOON, Bench, TroubledRepository, at, noon

from trio_gokugen import (
    GokugenError,
    Scheduler,
    SchedulerNotRunningError,
    Task,
    TaskExistsError,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    open_scheduler,
)
from trio_gokugen.testing import seeded_order


@attrs.define(eq=False)
class AtStep(trio.abc.Instrument):
    """Does something before the k-th step of the tasks whose name it is told."""

    step: int
    action: Callable[[], object]
    name: str = ""
    count: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.name in task.name:
            self.count += 1
            if self.count == self.step:
                self.action()


@attrs.define(eq=False)
class Scene:
    """A busy scheduler, and what its callers were told."""

    bench: Bench = attrs.field(factory=Bench)
    repository: TroubledRepository = attrs.field(factory=TroubledRepository)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    added: set[str] = attrs.field(factory=set[str])
    cancelled: set[str] = attrs.field(factory=set[str])
    interrupted: set[str] = attrs.field(factory=set[str])
    moved: dict[str, float] = attrs.field(factory=dict[str, float])

    async def slowly(self, _: object) -> None:
        """Give everybody else a chance to come in between."""
        await trio.sleep(0.25)

    async def play(self) -> None:
        self.repository.before_apply = self.slowly
        with self.scope:
            async with open_scheduler(
                self.bench.works,
                self.repository,
                max_workers=2,
                clock=TrioClock(NOON, 0.0),
                grace=2,
            ) as scheduler:
                async with trio.open_nursery() as nursery:
                    for caller in (self.add, self.cancel, self.update, self.interrupt):
                        nursery.start_soon(caller, scheduler)
                await trio.sleep_until(20)

    async def add(self, scheduler: Scheduler) -> None:
        for params in (
            [at(1, "a", "sleep", param={"seconds": 3}), at(1, "b", "fail")],
            [at(1, "c", "sleep", param={"seconds": 99}, deadline=noon(6))],
            [at(2, "d", "sleep", param={"seconds": 99}), at(15, "e"), at(3, "f")],
        ):
            await scheduler.add_tasks(params)
            self.added.update(str(param.id) for param in params)

    async def cancel(self, scheduler: Scheduler) -> None:
        for task_id, when in (("e", 1.5), ("f", 3.0)):
            await trio.sleep_until(when)
            try:
                assert await scheduler.cancel(task_id)
            except SchedulerNotRunningError:
                return
            except GokugenError:
                continue
            self.cancelled.add(task_id)

    async def update(self, scheduler: Scheduler) -> None:
        await trio.sleep_until(0.75)
        try:
            await scheduler.update("b", scheduled_at=noon(4))
        except GokugenError:
            return
        self.moved["b"] = 4.0

    async def interrupt(self, scheduler: Scheduler) -> None:
        await trio.sleep_until(7)
        try:
            ended = await scheduler.interrupt("d")
        except GokugenError:
            return
        if ended.state is TaskState.CANCELLED:
            self.interrupted.add("d")

    def check(self) -> None:
        """What must hold after any end."""
        tasks = {task.id: task for task in self.repository.store.snapshot()}
        starts = self.bench.starts
        assert self.added <= tasks.keys()
        for task_id, task in tasks.items():
            runs = [when for what, when in starts if what == task_id]
            assert task.state is not TaskState.DISPATCHED
            assert len(runs) == task.attempt
            assert task.interruptions <= task.attempt
            assert all(noon(when) >= task.scheduled_at for when in runs)
            if task.deadline is not None:
                assert all(noon(when) < task.deadline for when in runs)
            if task.state is TaskState.SCHEDULED:
                assert task.attempt == task.interruptions
            if task_id in self.cancelled:
                assert (task.state, runs) == (TaskState.CANCELLED, [])
            if task_id in self.interrupted:
                assert (task.state, len(runs)) == (TaskState.CANCELLED, 1)
            if task_id in self.moved:
                assert all(when >= self.moved[task_id] for when in runs)

    async def go_on(self) -> None:
        """A scheduler that comes afterwards brings everything to its end."""
        self.repository.before_apply = None
        async with open_scheduler(
            self.bench.works, self.repository, clock=TrioClock(noon(20), 0.0)
        ) as scheduler:
            await scheduler.drain()
        assert all(task.state.ended for task in self.repository.store.snapshot())


def replay(
    seed: int, main: Callable[[], Awaitable[Any]], instrument: trio.abc.Instrument
) -> None:
    with seeded_order(seed):
        trio.run(
            main,
            clock=trio.testing.MockClock(autojump_threshold=0),
            instruments=[instrument],
        )


@pytest.mark.uncovered
@pytest.mark.parametrize("seed", [1, 2])
def test_the_scheduler_cancelled_at_every_step(seed: int) -> None:
    """
    At whichever step a scheduler is cancelled, every task is in one state, no run is
    lost or counted wrong, nothing that was answered is contradicted, and a scheduler
    that comes afterwards brings the rest to its end.
    """
    step, last = 0, False
    while not last:
        step += 1
        scene = Scene()
        instrument = AtStep(step, scene.scope.cancel)
        replay(seed, scene.play, instrument)
        last = instrument.count < step
        scene.check()
        trio.run(scene.go_on, clock=trio.testing.MockClock(autojump_threshold=0))
    assert step > 80


CALLS: dict[str, Callable[[Scheduler], Awaitable[object]]] = {
    "add": lambda scheduler: scheduler.add_tasks([at(5, "x"), at(6, "y")]),
    "add one": lambda scheduler: scheduler.add_task("note", after=1, id="x"),
    "update": lambda scheduler: scheduler.update("a", priority=7, scheduled_at=noon(50)),
    "update param": lambda scheduler: scheduler.update("b", param={"seconds": 3}),
    "cancel": lambda scheduler: scheduler.cancel("a"),
    "interrupt": lambda scheduler: scheduler.interrupt("r"),
    "wait": lambda scheduler: scheduler.wait("r"),
    "get": lambda scheduler: scheduler.get("a"),
    "find": lambda scheduler: scheduler.find(),
    "drain": lambda scheduler: scheduler.drain(),
    "delete": lambda scheduler: scheduler.delete_ended(),
    "stop": lambda scheduler: scheduler.stop(3),
}


@pytest.mark.uncovered
@pytest.mark.parametrize("call", CALLS)
def test_a_caller_cancelled_at_every_step(call: str) -> None:
    """
    At whichever step a caller is cancelled, its call has changed nothing or all that it
    would have, and the scheduler goes on.
    """
    ends: set[frozenset[tuple[object, ...]]] = set()

    async def play(scope: trio.CancelScope) -> None:
        bench = Bench()
        repository = TroubledRepository()
        scheduler = Scheduler(
            bench.works,
            repository,
            WorkerPoolDispatcher(bench.works),
            clock=TrioClock(NOON, 0.0),
        )

        async def caller() -> None:
            with scope:
                await CALLS[call](scheduler)

        async with trio.open_nursery() as nursery:
            await nursery.start(scheduler.run)
            await scheduler.add_tasks(
                [
                    at(0, "old"),
                    at(0, "r", "sleep", param={"seconds": 9}),
                    at(30, "a"),
                    at(30, "b", "sleep"),
                ]
            )
            await trio.sleep(0.5)
            repository.before_apply = Scene().slowly
            async with trio.open_nursery() as callers:
                callers.start_soon(caller)
            await trio.sleep(1)
            ends.add(
                frozenset(
                    (t.id, t.state, t.priority, t.scheduled_at, str(t.param))
                    for t in repository.store.snapshot()
                    if t.id != "r"  # interrupted, it may take its time
                )
            )
            if call != "stop":
                task = await scheduler.add_task("note", after=1)
                assert (await scheduler.wait(task.id)).state is TaskState.DONE
            await scheduler.stop(0)

    step, last = 0, False
    while not last:
        step += 1
        scope = trio.CancelScope()
        instrument = AtStep(step, scope.cancel, name="caller")
        replay(step, lambda scope=scope: play(scope), instrument)  # type: ignore[misc]
        last = instrument.count < step
    assert step > 1
    if call != "drain":  # it takes its time, in which the others run
        changes = call not in {"interrupt", "wait", "get", "find", "stop"}
        assert len(ends) == (2 if changes else 1)


def test_a_work_interrupted_at_every_step() -> None:
    """
    At whichever step a work is interrupted, it has started once, is never run again, and
    its task ends cancelled, or done if it had finished.
    """
    states: set[TaskState] = set()

    async def play(step: int, seen: list[int]) -> None:
        bench = Bench()
        repository = TroubledRepository()
        now = trio.Event()
        instrument = AtStep(step, now.set)
        async with (
            open_scheduler(
                bench.works, repository, clock=TrioClock(NOON, 0.0)
            ) as scheduler,
            trio.open_nursery() as nursery,
        ):

            async def interrupt() -> None:
                await now.wait()
                task: Task | None = None
                while task is None:
                    try:
                        task = await scheduler.interrupt("a")
                    except TaskExistsError:
                        raise
                    except GokugenError:
                        if (await scheduler.get("a")).state.ended:
                            return
                        await trio.sleep(0.25)

            await scheduler.add_tasks([at(1, "a", "sleep", param={"seconds": 2})])
            await trio.sleep_until(0.5)
            trio.lowlevel.add_instrument(instrument)
            repository.before_apply = Scene().slowly
            nursery.start_soon(interrupt)
            task = await scheduler.wait("a")
            states.add(task.state)
            assert bench.ids() in (["a"], [])
            assert task.attempt == 1
            assert bool(bench.ids()) or task.state is TaskState.CANCELLED
            trio.lowlevel.remove_instrument(instrument)
            seen.append(instrument.count)
            nursery.cancel_scope.cancel()

    step, steps = 0, 1
    while step < steps:
        step += 1
        seen: list[int] = []
        with seeded_order(step):
            trio.run(play, step, seen, clock=trio.testing.MockClock(autojump_threshold=0))
        [steps] = seen
    assert states == {TaskState.CANCELLED, TaskState.DONE}
    assert step > 10
