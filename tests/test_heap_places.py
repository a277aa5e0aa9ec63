"""What is pending in memory is where it is looked for, whatever has happened."""

from __future__ import annotations

import gc
import json
import random
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from support import NOON, noon, stored

from trio_gokugen import (
    HeapRepository,
    Interval,
    InvalidTaskError,
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
    _heap_repository,
    open_scheduler,
)
from trio_gokugen._heap_repository import HeapStore
from trio_gokugen._heaps import Heap, Heaps
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
        everything = [
            heap.entries,
            *(each for lanes in heap.lanes.values() for each in lanes.values()),
        ]
        assert all(heap.lanes.values())
        for each in everything:
            assert all(each[(n - 1) // 2] <= each[n] for n in range(1, len(each)))
        for limit, lanes in heap.lanes.items():
            for value, aside in lanes.items():
                assert {limit.value_of(entry[4]) for entry in aside} <= {value}
        held = [entry for each in everything for entry in each]
        living = [entry[4] for entry in held if entries.get(entry[4].id) is entry]
        assert (heap.living, heap.dead) == (len(living), len(held) - len(living))
        assert living
        assert {(task.pool, task.work_id) for task in living} == {(heap.pool, heap.work_id)}
        found += [task.id for task in living]
    assert sorted(found) == sorted(task.id for task in history.pending())


def check_runs(history: History) -> None:
    """Of each schedule it is known which tasks of it run, and of no other schedule."""
    running: dict[str, set[str]] = {}
    for task in history.store.snapshot():
        if task.state is TaskState.DISPATCHED and task.schedule_id is not None:
            running.setdefault(task.schedule_id, set()).add(task.id)
    assert {each: {*ids} for each, ids in history.store._runs.items()} == running


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
    pending is found, what runs is known, and a claim takes all that it can.
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
        check_runs(history)
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


FULL = KeyLimit(1, param="n")


def filled(tasks: int, values: int = 1) -> tuple[HeapStore, TaskFilter]:
    """Tasks of some values, and a filter that has no room for any of these."""
    store = HeapStore()
    for n in range(tasks):
        store._put_new([stored(str(n), param={"n": n % values})])
    room = KeyRoom(FULL, {str(value): 1 for value in range(values)})
    return store, TaskFilter(rooms=(room,))


class Aside:
    """Counts what is put aside, and how much at most between two checkpoints."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.most = 0
        put_aside = Heap.put_aside

        def counted(*arguments: Any) -> None:
            self.count += 1
            put_aside(*arguments)

        monkeypatch.setattr(Heap, "put_aside", counted)

    async def watch(self) -> None:
        before = 0
        while True:
            await trio.lowlevel.checkpoint()
            self.most = max(self.most, self.count - before)
            before = self.count


async def test_others_get_a_turn_while_many_are_put_aside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    However many tasks there are for which there is no room, a look puts only some of them
    aside at a time.
    """
    monkeypatch.setattr(_heap_repository, "_SLICE", 10)
    store, only = filled(95)
    aside = Aside(monkeypatch)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(aside.watch)
        assert await store.get_next(only) is None
        for _ in range(3):  # the watch has seen all
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert aside.count == 95
    assert aside.most <= 2 * 10  # Trio may give it two turns after each other


async def test_a_claim_puts_only_some_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A claim is one step, so it ends early if too many are in its way; what it leaves is
    taken once somebody has looked again.
    """
    monkeypatch.setattr(_heap_repository, "_SLICE", 10)
    store, only = filled(95)
    store._put_new([stored("last", param={"n": 7})])
    only.rooms[0].running.clear()
    aside = Aside(monkeypatch)

    async def claim() -> list[str]:
        [claimed] = await store.apply([ClaimTasks(5, NOON, only)])
        tasks = claimed.unwrap().tasks
        for task in tasks:
            only.take(task)
        return [task.id for task in tasks]

    assert await claim() == ["0"]
    assert aside.count == 10
    assert await claim() == []
    assert aside.count == 20
    head = await store.get_next(only)
    assert head is not None
    assert head.id == "last"
    assert aside.count == 94
    assert await claim() == ["last"]


async def test_a_claim_that_was_cut_short_takes_nothing_out_of_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    While not all are put aside that are in the way, nobody knows who is first behind them:
    so a claim does not take what another work has.
    """
    monkeypatch.setattr(_heap_repository, "_SLICE", 2)
    store, only = filled(3)
    store._put_new([stored("first", param={"n": 1})])
    store._put_new([stored("later", "other", 1, param={"n": 1})])

    async def claim() -> list[str]:
        [claimed] = await store.apply([ClaimTasks(5, noon(2), only)])
        return [task.id for task in claimed.unwrap().tasks]

    assert await claim() == []
    assert await claim() == ["first"]


async def test_a_value_that_a_claim_fills_is_left_alone() -> None:
    """
    Of those put aside by a value a claim takes as many as there is room for, and goes on
    with others.
    """
    store, only = filled(3)
    assert await store.get_next(only) is None
    store._put_new([stored("other", "other", 1, param={"n": 1})])
    only.rooms[0].running.clear()
    [claimed] = await store.apply([ClaimTasks(5, noon(2), only)])
    assert [task.id for task in claimed.unwrap().tasks] == ["0", "other"]


async def test_works_share_a_value() -> None:
    """
    Of two works whose first tasks have the same value, of which one more may run, a claim
    takes the first.
    """
    store = HeapStore()
    tasks = [stored(work, work, param={"n": 1}) for work in ("v", "w")]
    only = TaskFilter(rooms=(KeyRoom(FULL),))
    await store.apply([AddTasks(tasks)])
    [claimed] = await store.apply([ClaimTasks(5, NOON, only)])
    assert [task.id for task in claimed.unwrap().tasks] == ["v"]


async def test_occurrences_are_taken_in_order_though_one_was_put_aside() -> None:
    """
    A claim takes one occurrence after the other in the order of their times, though the
    first has a value of its own by which it was put aside, alone.
    """
    store = HeapStore()
    late = Schedule(
        id="s",
        trigger=Interval(1, anchor=NOON),
        work_id="w",
        param={"n": 1},
        overlap="allow",
        late=Late(run="all"),
        created_at=noon(-1),
    )
    other = stored("other", "other", 4)
    await store.apply([OnSchedule(PutSchedule(late, noon(-1))), AddTasks([other])])
    [first, _] = store.snapshot()
    await store.apply([UpdateTask(first.id, TaskUpdate(param={"n": 0}), noon(-1))])
    only = TaskFilter(frozenset("w"), rooms=(KeyRoom(FULL, {"0": 1}),))
    assert await store.get_next(only) is None
    [claimed] = await store.apply([ClaimTasks(4, noon(5))])
    found = [task.scheduled_at for task in claimed.unwrap().tasks]
    assert found == [noon(0), noon(1), noon(2), noon(3)]


@pytest.mark.parametrize("changed", [{"work_id": "w"}, {"pool": "p"}], ids=str)
async def test_all_heaps_are_looked_at_only_when_another_has_got_an_occurrence(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    """
    If the next occurrence is of another work or pool than the one that was taken, a claim
    looks at all works anew, once; if it is of the same, not at all.
    """
    store = HeapStore()
    every = Schedule(
        id="s",
        trigger=Interval(1, anchor=NOON),
        work_id="v",
        overlap="allow",
        late=Late(run="all"),
        created_at=noon(-1),
    )
    await store.apply([OnSchedule(PutSchedule(every, noon(-1)))])
    [first] = store.snapshot()
    await store.apply([UpdateTask(first.id, TaskUpdate(**changed), noon(-1))])
    looks: list[TaskFilter] = []
    heads = Heaps._heads

    def noted(heaps: Heaps, only: TaskFilter) -> Any:
        looks.append(only)
        return heads(heaps, only)

    monkeypatch.setattr(Heaps, "_heads", noted)
    [claimed] = await store.apply([ClaimTasks(5, noon(5))])
    found = [task.scheduled_at for task in claimed.unwrap().tasks]
    assert found == [noon(second) for second in range(5)]
    assert len(looks) == 2


class Interrupted(Interval):
    """Somebody presses Ctrl-C while it is asked."""

    def next_after(self, moment: datetime) -> datetime | None:
        raise KeyboardInterrupt


async def test_a_claim_that_has_failed_is_over() -> None:
    """
    A claim that was left half-way takes nothing out of the heaps afterwards, when its
    error is forgotten.
    """
    store = HeapStore()
    every = Schedule(
        id="s",
        trigger=Interrupted(1),
        work_id="w",
        created_at=NOON,
        next_at=NOON,
        pending_id="a",
    )
    store.put_schedules([every])
    store._put_new([stored("a", "w", schedule_id="s", nominal_at=NOON)])
    claim = ClaimTasks(1, NOON)
    with pytest.raises(KeyboardInterrupt) as caught:
        await store.apply([claim])
    for task_id in "b", "c":
        await store.apply([claim])
        await store.apply([AddTasks([stored(task_id, "w")])])
    del caught
    gc.collect()
    head = await store.get_next()
    assert head is not None
    assert head.id == "c"


async def test_what_was_put_aside_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Though so many are cancelled that the heap is made anew, nobody meets again what has
    been put aside.
    """
    store, only = filled(200, values=4)
    assert await store.get_next(only) is None
    aside = Aside(monkeypatch)
    for n in sorted(range(200), key=lambda n: n % 4):  # all of the first value first
        if n % 4 == 0 or n % 3:
            await store.apply([CancelTask(str(n), NOON)])
    [heap] = store._heaps
    assert heap.dead <= 64
    assert await store.get_next(only) is None
    assert aside.count == 0
    assert [*heap.lanes[FULL]] == ["1", "2", "3"]
    del only.rooms[0].running["2"]
    head = await store.get_next(only)
    assert head is not None
    assert head.id == "6"


async def test_full_values_are_not_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    However many values there are for which there is no room, a look is at the others.
    """
    store, only = filled(300, values=300)
    assert await store.get_next(only) is None
    visited: list[Any] = []
    first = Heaps._first

    def noted(heaps: Heaps, heap: Heap, lane: Any, only: TaskFilter) -> Any:
        visited.append(lane)
        return first(heaps, heap, lane, only)

    monkeypatch.setattr(Heaps, "_first", noted)
    assert await store.get_next(only) is None
    assert visited == [None]
    del only.rooms[0].running["7"]
    assert (await store.get_next(only)) is not None
    assert visited[1:] == [None, (FULL, "7")]


@given(st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans())
def test_values_are_json(value: Any) -> None:
    """
    Tasks are counted by their value as JSON has it.
    """
    try:
        task = stored("a", param={"n": value})
    except InvalidTaskError:
        return
    assert FULL.value_of(task) == json.dumps(value)
