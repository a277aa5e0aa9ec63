"""What is pending in memory is where it is looked for, whatever has happened."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
import trio.testing
from support import NOON, noon

from trio_gokugen import (
    HeapRepository,
    Interval,
    KeyLimit,
    Late,
    Pool,
    PoolsDispatcher,
    Schedule,
    Task,
    TaskState,
    TaskUpdate,
    TrioClock,
    WorkRegistry,
    open_scheduler,
)
from trio_gokugen._heap_repository import HeapStore
from trio_gokugen.abc import (
    AddTasks,
    CancelRun,
    CancelTask,
    ClaimTasks,
    DispatchTask,
    EndTask,
    KeyRoom,
    OfPools,
    OnSchedule,
    Operation,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    ResumeSchedule,
    RetryTask,
    RevertTask,
    TaskFilter,
    TriggerSchedule,
    UpdateTask,
)
from trio_gokugen.testing._model import Model

LIMITS = (
    KeyLimit(1, param="n"),
    KeyLimit(2, param="n"),
    KeyLimit(1, meta="n"),
    KeyLimit(3, meta="n"),
)
POOLS = None, None, "p", "q"


class History:
    """Random operations, by a seed."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.store = HeapStore(keep_ended=self.choose.choice([5, 10_000]))
        self.now = 0.0
        self.number = 0

    def fields(self) -> dict[str, Any]:
        choose = self.choose
        return {
            "work_id": choose.choice("vw"),
            "pool": choose.choice(POOLS),
            "param": {"n": choose.randrange(4)},
            "meta": {"n": choose.randrange(3)},
            "priority": choose.randrange(2),
        }

    def filter(self) -> TaskFilter:
        choose = self.choose
        works = choose.choice([None, frozenset("v"), frozenset("vw")])
        pools = choose.choice([None, OfPools(), OfPools(frozenset("p"), frozenset("w"))])
        limits = choose.sample(LIMITS, choose.choice([0, 0, 1, 3]))
        rooms = [
            KeyRoom(limit, {str(choose.randrange(4)): choose.randint(1, 3)})
            for limit in limits
        ]
        return TaskFilter(works, rooms=tuple(rooms), pools=pools)

    def operation(self) -> Operation:
        choose = self.choose
        self.now += choose.choice([0, 0, 0.5, 1, 7])
        at = noon(self.now)
        makers = [self._add, self._schedule, self._change, self._end]
        make = choose.choices([*makers, None], [4, 3, 3, 4, 6])[0]
        operation = None if make is None else make(at)
        return operation or ClaimTasks(choose.randint(1, 8), at, self.filter())

    def _add(self, at: datetime) -> Operation:
        tasks: list[Task] = []
        for _ in range(self.choose.randint(1, 3)):
            self.number += 1
            due = noon(self.now + self.choose.randrange(6))
            deadline = self.choose.choice([None, None, noon(self.now + 8)])
            tasks.append(
                Task(
                    id=f"t{self.number}",
                    scheduled_at=due,
                    created_at=at,
                    deadline=deadline,
                    **self.fields(),
                )
            )
        return AddTasks(tasks)

    def _schedule(self, at: datetime) -> Operation:
        choose = self.choose
        schedule_id = f"s{choose.randrange(4)}"
        kinds = PauseSchedule, ResumeSchedule, TriggerSchedule, RemoveSchedule
        if choose.random() < 0.3:
            return OnSchedule(choose.choice(kinds)(schedule_id, at))
        schedule = Schedule(
            id=schedule_id,
            trigger=Interval(choose.choice([1, 2, 5]), anchor=NOON),
            overlap=choose.choice(["skip", "queue", "allow", "replace"]),
            late=Late(run=choose.choice(["all", "latest", "earliest", "none"])),
            created_at=at,
            **self.fields(),
        )
        return OnSchedule(PutSchedule(schedule, at))

    def _change(self, at: datetime) -> Operation | None:
        task = self._any(TaskState.SCHEDULED)
        if task is None:
            return None
        due = noon(self.now + self.choose.randrange(5))
        fields: dict[str, Any] = {**self.fields(), "scheduled_at": due}
        field = self.choose.choice([*fields])
        update = UpdateTask(task.id, TaskUpdate(**{field: fields[field]}), at)
        changes: list[Operation] = [update, update]
        changes += [CancelTask(task.id, at), DispatchTask(task.id, at)]
        return self.choose.choice(changes)

    def _end(self, at: datetime) -> Operation | None:
        run = self._any(TaskState.DISPATCHED)
        if run is None:
            return None
        ends: list[Operation] = [EndTask(run, at), CancelRun(run, at), RevertTask(run)]
        return self.choose.choice([*ends, RetryTask(run, at, noon(self.now + 2))])

    def _any(self, state: TaskState) -> Task | None:
        tasks = [task for task in self.store.snapshot() if task.state is state]
        return self.choose.choice(tasks) if tasks else None

    def pending(self) -> list[Task]:
        return [t for t in self.store.snapshot() if t.state is TaskState.SCHEDULED]


def check_places(history: History) -> None:
    """Each pending task is in the heap of its pool and work, and counted there, once."""
    entries = history.store._entries
    found: list[str] = []
    for heap in history.store._heaps:
        everything = [heap.entries, *heap.lanes.values()]
        for each in everything:
            assert all(each[(n - 1) // 2] <= each[n] for n in range(1, len(each)))
        for (limit, value), aside in heap.lanes.items():
            assert {limit.value_of(entry[4]) for entry in aside} <= {value}
        held = [entry for each in everything for entry in each]
        living = [entry[4] for entry in held if entries.get(entry[4].id) is entry]
        assert (heap.living, heap.dead) == (len(living), len(held) - len(living))
        assert living
        assert {(task.pool, task.work_id) for task in living} == {(heap.pool, heap.work_id)}
        found += [task.id for task in living]
    assert sorted(found) == sorted(task.id for task in history.pending())


def first_of(tasks: Sequence[Task], only: TaskFilter) -> Task | None:
    return min(
        filter(only.accepts, tasks),
        key=lambda task: (task.scheduled_at, -task.priority),
        default=None,
    )


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_happens_nothing_is_lost(seed: int) -> None:
    """
    However tasks and occurrences come, move, are put aside by limits and go: what is
    pending is found, and a claim takes all that it can.
    """
    history = History(seed)
    for _ in range(150):
        operation = history.operation()
        [result] = await history.store.apply([operation])
        if isinstance(operation, ClaimTasks):
            claimed = result.unwrap()
            assert len({task.id for task in claimed.tasks}) == len(claimed.tasks)
            if len(claimed.tasks) < operation.limit and not operation.only.rooms:
                left = first_of(history.pending(), operation.only)
                assert left is None or left.scheduled_at > operation.at
        check_places(history)
        only = history.filter()
        head, expected = (
            await history.store.get_next(only),
            first_of(history.pending(), only),
        )
        check_places(history)
        assert (head is None) == (expected is None)
        if head is not None and expected is not None:
            assert only.accepts(head)
            assert head.scheduled_at == expected.scheduled_at
            assert head.priority == expected.priority


async def test_occurrences_go_on_though_limits_have_put_some_aside(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A pool without limits takes over a work of which others had been put aside by a limit:
    none of the occurrences is lost.
    """
    works = WorkRegistry()
    ran: list[float] = []

    @works.register
    async def work(n: int, seconds: float = 0) -> None:
        ran.append(trio.current_time())
        await trio.sleep(seconds)

    dispatcher = PoolsDispatcher(works, default=Pool(5, limits=[KeyLimit(1, param="n")]))
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works, HeapRepository(), dispatcher, clock=clock, grace=0
    ) as scheduler:
        await scheduler.add_task("work", {"n": 1, "seconds": 10_000}, after=0)
        await trio.sleep(0.1)
        for n, after in (2, 1.5), (1, 1):
            await scheduler.add_task("work", {"n": n}, after=after)
        await scheduler.add_schedule(
            "s",
            Interval(5, anchor=noon(2)),
            "work",
            {"n": 1},
            overlap="allow",
            late=Late(run="all"),
        )
        await trio.sleep(0.5)
        dispatcher.pause("default")
        await scheduler.add_task("work", {"n": 1}, after=14)
        await trio.sleep(16)
        dispatcher.add("fast", Pool(40, works={"work"}))
        await trio.sleep(84)
        schedule = await scheduler.get_schedule("s")
        assert schedule.next_at == noon(102)
    assert len(ran) == 4 + 20


async def test_a_claim_is_as_a_plain_list_has_it() -> None:
    """
    Within limits, and with some that are past their deadline, the same is taken from the
    heaps as by looking through all tasks.
    """
    store, model = HeapStore(), Model()
    tasks = [
        Task(
            id=str(n),
            work_id="w",
            param={"n": n % 3},
            scheduled_at=NOON,
            created_at=NOON,
            deadline=noon(1) if n % 5 == 0 else None,
        )
        for n in range(20)
    ]
    room = KeyRoom(LIMITS[1], {"0": 1})
    operations = AddTasks(tasks), ClaimTasks(9, noon(2), TaskFilter(rooms=(room,)))
    claimed = (await store.apply(operations))[1].unwrap()
    as_planned = model.apply(operations)[1].unwrap()
    assert claimed.tasks == as_planned.tasks
    assert len(claimed.tasks) == 5
    assert claimed.expired == as_planned.expired
    assert [task.id for task in claimed.expired] == ["0", "5"]
