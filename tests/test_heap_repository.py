"""The repository in memory: its order, and its memory."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_gokugen import (
    HeapRepository,
    HeapStore,
    KeyLimit,
    Task,
    TaskNotFoundError,
    TaskQuery,
    TaskState,
    TaskUpdate,
)
from trio_gokugen._task import evolve
from trio_gokugen.abc import (
    CancelTask,
    EndTask,
    KeyRoom,
    OfPools,
    RevertTask,
    TaskFilter,
    UpdateTask,
)

if TYPE_CHECKING:
    from _typeshed import TraceFunction

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


def noon(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def new(task_id: str, at: float = 0, **fields: Any) -> Task:
    fields.setdefault("work_id", "work")
    return Task(id=task_id, scheduled_at=noon(at), created_at=NOON, **fields)


async def claimed_ids(
    repository: HeapRepository | HeapStore, limit: int = 100
) -> list[str]:
    return [task.id for task in (await repository.claim(limit, noon(1_000))).tasks]


# -- order ----------------------------------------------------------------------------


async def test_a_change_that_moves_nothing_leaves_the_order() -> None:
    """
    A task whose moment and priority an update leaves alone can be found and claimed.
    """
    store = HeapStore()
    await store.add([new(name) for name in "abc"])
    for number in range(5):
        for name in "cba":
            await store.update(name, TaskUpdate(param={"n": number}))
    head = await store.get_next()
    assert head is not None
    assert (head.id, head.param) == ("a", {"n": 4})
    assert await claimed_ids(store) == ["a", "b", "c"]


async def test_a_task_that_comes_back_leaves_the_order() -> None:
    """
    A task that was moved away and back, or dispatched and reverted, keeps its place.
    """
    store = HeapStore()
    await store.add([new(name) for name in "abc"])
    for _ in range(3):
        await store.update("a", TaskUpdate(scheduled_at=noon(50)))
        await store.update("a", TaskUpdate(scheduled_at=NOON))
        await store.revert(await store.mark_dispatched("b", NOON))
        await store.update("c", TaskUpdate(work_id="other"))
        await store.update("c", TaskUpdate(work_id="work"))
    assert await claimed_ids(store) == ["a", "b", "c"]


async def test_works_are_merged() -> None:
    """
    Tasks of several works come in one order, though each work has a heap of its own.
    """
    store = HeapStore()
    tasks = [new(f"{n:02}", n // 4, work_id="xyz"[n % 3]) for n in range(24)]
    await store.add(tasks)
    assert await claimed_ids(store, 10) == [task.id for task in tasks[:10]]
    assert await claimed_ids(store) == [task.id for task in tasks[10:]]


# -- what a look takes ------------------------------------------------------------------


@contextmanager
def instructions() -> Generator[Counter[str]]:
    """Counts the instructions of Python's that the package takes in the block."""
    counts: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _: object) -> TraceFunction | None:
        if not frame.f_globals.get("__name__", "").startswith("trio_gokugen."):
            return None
        frame.f_trace_opcodes = True
        counts[event] += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield counts
    finally:
        sys.settrace(before)


async def taken_beside(backlog: int, only: TaskFilter, **fields: Any) -> list[int]:
    """The instructions to look, and to claim, if so many others are due."""
    store = HeapStore()
    await store.add([new(f"other {n}", work_id="other", pool="q") for n in range(backlog)])
    await store.add([new(f"slow {n}", work_id="slow") for n in range(backlog)])
    await store.add([new("mine", **fields)])
    with instructions() as looking:
        first = await store.get_next(only)
    with instructions() as claiming:
        claimed = await store.claim(10, noon(0), only)
    assert first is not None
    assert [task.id for task in claimed.tasks] == ["mine"] == [first.id]
    assert looking["opcode"]
    return [looking["opcode"], claiming["opcode"]]


@pytest.mark.uncovered  # both want to trace
@pytest.mark.parametrize("pool", [None, "p"])
async def test_a_backlog_of_others_takes_nothing(pool: str | None) -> None:
    """
    However many tasks of other works and pools are due, to look for those of one pool, and
    to claim them, takes exactly as many steps as beside one.
    """
    names, works = frozenset({"p"}), frozenset({"work"})
    for only in (
        TaskFilter(pools=OfPools(names, works)),
        TaskFilter(pools=OfPools(names, works), rooms=(KeyRoom(KeyLimit(1, meta="to")),)),
    ):
        few = await taken_beside(1, only, pool=pool)
        assert await taken_beside(3_000, only, pool=pool) == few


# -- memory ---------------------------------------------------------------------------


def held(store: HeapStore) -> int:
    """How many entries the heaps hold, dead or alive."""
    return sum(heap.living + heap.dead for heap in store._heaps)


@pytest.mark.uncovered
async def test_cancelling_everything_frees_everything() -> None:
    """
    Of a hundred thousand tasks that are cancelled, the heap keeps none for later.
    """
    store = HeapStore(keep_ended=10)
    ids = [f"t{n}" for n in range(100_000)]
    one = new("one")
    await store.add(
        [evolve(one, {"id": i, "scheduled_at": noon(n % 977)}) for n, i in enumerate(ids)]
    )
    assert held(store) == 100_000
    await store.apply([CancelTask(task_id, NOON) for task_id in ids[1:]])
    assert held(store) <= 2 * 64
    assert len(store._entries) == 11
    assert await claimed_ids(store) == ["t0"]
    await store.add([new("last")])
    await store.cancel("last", NOON)
    assert not [*store._heaps]


async def test_moving_tasks_about_takes_no_memory() -> None:
    """
    However often tasks are moved, the heap holds at most as many dead as alive.
    """
    store = HeapStore()
    await store.add([new(f"t{n}", n) for n in range(500)])
    for lap in range(20):
        await store.apply(
            [
                UpdateTask(f"t{n}", TaskUpdate(scheduled_at=noon(n * 7 % 500 + lap)))
                for n in range(500)
            ]
        )
        assert held(store) <= 2 * 500 + 64
    for _ in range(50):
        claimed = await store.claim(500, noon(10_000))
        assert len(claimed.tasks) == 500
        await store.apply([RevertTask(run) for run in claimed.tasks])
    assert held(store) == 500


async def test_works_that_are_over_are_forgotten() -> None:
    """
    Nothing remains of works that have no pending tasks any more.
    """
    store = HeapStore()
    for n in range(100):
        await store.add([new(f"{n} {m}", work_id=f"w{n}") for m in range(3)])
        await store.cancel(f"{n} 0", NOON)
        await store.mark_dispatched(f"{n} 1", NOON)
        await store.update(f"{n} 2", TaskUpdate(work_id="other"))
    assert [heap.work_id for heap in store._heaps] == ["other"]
    assert dict(await store.count_pending()) == {"other": 100}


async def test_pools_that_are_over_are_forgotten() -> None:
    """
    Nothing remains of pools that no pending task names any more.
    """
    store = HeapStore()
    for n in range(100):
        await store.add([new(f"{n} {m}", pool=f"p{n}") for m in range(3)])
        await store.cancel(f"{n} 0", NOON)
        await store.mark_dispatched(f"{n} 1", NOON)
        await store.update(f"{n} 2", TaskUpdate(pool="other" if n % 2 else None))
    assert [heap.pool for heap in store._heaps] == [None, "other"]
    assert dict(await store.count_pools()) == {"other": 50}


async def test_memory_stays_flat_over_many_tasks() -> None:
    """
    Tasks that come, run and end leave no more behind than `keep_ended`.
    """
    store = HeapStore(keep_ended=100)
    for lap in range(50):
        await store.add([new(f"{lap} {n}") for n in range(200)])
        claimed = await store.claim(200, NOON)
        await store.apply([EndTask(run, noon(lap)) for run in claimed.tasks])
        assert len(store._entries) <= 100
        assert len(store._ended) <= 100
        assert held(store) == 0


async def test_the_oldest_ends_are_forgotten_first() -> None:
    """
    Beyond `keep_ended` the task that ended first is forgotten, whichever way it ended.
    """
    store = HeapStore(keep_ended=3)
    await store.add(
        [new(name, deadline=noon(5) if name == "c" else None) for name in "abcdef"]
    )
    await store.cancel("d", noon(1))
    await store.mark_done(await store.mark_dispatched("a", noon(2)), noon(2))
    await store.mark_dispatched("c", noon(9))
    assert [t.id for t in store.snapshot()] == ["a", "b", "c", "d", "e", "f"]
    await store.mark_cancelled(await store.mark_dispatched("f", noon(10)), noon(11))
    assert [t.id for t in store.snapshot()] == ["a", "b", "c", "e", "f"]
    with pytest.raises(TaskNotFoundError):
        await store.get("d")
    await store.cancel("e", noon(12))
    assert await store.delete_ended() == ["c", "f", "e"]


async def test_ended_tasks_need_not_be_kept() -> None:
    """
    With `keep_ended=0` a task is gone as it ends, and its end is still answered.
    """
    repository = HeapRepository(keep_ended=0)
    await repository.add([new("a"), new("b", state=TaskState.DONE, done_at=NOON)])
    assert [task.id for task in repository.store.snapshot()] == ["a"]
    ended = await repository.mark_done(await repository.mark_dispatched("a", NOON), NOON)
    assert ended.state is TaskState.DONE
    assert repository.store.snapshot() == []


@pytest.mark.parametrize("keep_ended", [True, 1.5, "9", None])
def test_keep_ended_must_be_an_int(keep_ended: Any) -> None:
    """
    What is not a number of tasks is refused, and named.
    """
    with pytest.raises(TypeError, match="keep_ended must be an int"):
        HeapRepository(keep_ended)


def test_keep_ended_must_not_be_negative() -> None:
    """
    A negative number of tasks is refused, and named.
    """
    with pytest.raises(ValueError, match="keep_ended must not be negative"):
        HeapRepository(-1)


async def test_looking_through_many_lets_others_run() -> None:
    """
    A search through many tasks yields now and then, and finds what was there as it began.
    """
    store = HeapStore()
    await store.add([new(f"{n:05}", n) for n in range(7_000)])
    for limit in (None, 5):
        found: list[Task] = []

        async def look(limit: int | None, found: list[Task]) -> None:
            found += await store.find(TaskQuery(), limit)

        turns = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, limit, found)
            await trio.lowlevel.checkpoint()
            while not found:
                await trio.lowlevel.checkpoint()
                turns += 1
                if turns == 2:
                    await store.cancel("06999", NOON)
        assert turns >= 3
        assert [task.id for task in found] == [f"{n:05}" for n in range(limit or 7_000)]
        assert limit or found[-1].state is TaskState.SCHEDULED


async def test_ended_tasks_are_forgotten_by_age_however_they_came() -> None:
    """
    Tasks that had ended before they were added are forgotten by when they ended, with
    those that were there.
    """

    def ended(task_id: str, seconds: float) -> Task:
        moment = NOON + timedelta(seconds=seconds)
        return Task(
            id=task_id,
            work_id="note",
            scheduled_at=NOON,
            created_at=NOON,
            state=TaskState.DONE,
            done_at=moment,
        )

    repository = HeapRepository(keep_ended=3)
    await repository.add([ended("late", 100), ended("early", 1)])
    await repository.add([ended("middle", 50)])
    assert await repository.delete_ended(limit=1) == ["early"]
    await repository.add([ended("later", 200), ended("between", 60)])
    assert {task.id for task in await repository.find(TaskQuery())} == {
        "between",
        "late",
        "later",
    }


async def test_very_many_have_expired() -> None:
    """
    However many tasks are past their deadlines, a claim ends a few thousand at most; the
    next one goes on.
    """
    repository = HeapRepository()
    late = [new(f"{n}", deadline=noon(1)) for n in range(5_000)]
    await repository.add([*late, new("last", 5)])
    sizes: list[int] = []
    while not (claimed := await repository.claim(1, noon(10))).tasks:
        sizes.append(len(claimed.expired))
    assert sizes == [2_000, 2_000]
    assert len(claimed.expired) == 1_000
    assert [task.id for task in claimed.tasks] == ["last"]
