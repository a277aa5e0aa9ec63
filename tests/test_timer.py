import math
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, cast

import attrs
import outcome
import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import moments
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from trio_gokugen import (
    HeapStore,
    HookTimer,
    InvalidTaskError,
    RefusedError,
    RepositoryError,
    SchedulerAlreadyRunningError,
    SystemClock,
    Task,
    TaskQuery,
    TaskState,
    TaskUpdate,
    TimedRepository,
    TrioClock,
)
from trio_gokugen.abc import ANY_TASK, Clock, Operation, RecoverAction, TaskFilter

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)
FIRST = datetime.min.replace(tzinfo=UTC)
DAY = 86400.0

Repository: TypeAlias = TimedRepository[HeapStore]
Change: TypeAlias = Callable[[Repository], Awaitable[object]]


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def a_task(task_id: str, seconds: float, **values: Any) -> Task:
    needed: dict[str, Any] = {
        "id": task_id,
        "work_id": "greet",
        "scheduled_at": at(seconds),
        "created_at": NOON,
    }
    return Task(**needed | values)


def a_run(task_id: str, seconds: float, **values: Any) -> Task:
    return a_task(task_id, seconds, state=TaskState.DISPATCHED, attempt=1, **values)


class Steps(trio.abc.Instrument):
    """Counts how often each Trio task is woken, by its name."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.of[task.name] += 1


class BlockingStore(HeapStore):
    """Reads the next task, and is slow to say so."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.gate.set()

    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        task = await super().get_next(only)
        await self.gate.wait()
        return task


class FailingStore(HeapStore):
    """Fails as often as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0
        self.failing: str | None = None

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise RepositoryError("disk full")

    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        self._fail()
        return await super().get_next(only)

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        outcomes = await super().apply(operations)
        if self.failing == "cancelled":
            await trio.sleep_forever()
        error = RepositoryError("written, but the answer was lost")
        if self.failing == "batch":
            raise error
        if self.failing == "outcome":
            return [outcome.Error(error) for _ in outcomes]
        return outcomes


class Watch:
    """Somebody who waits, and what he waited for."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, float]] = []
        self.steps = Steps()

    @property
    def wakes(self) -> int:
        return self.steps.of["watcher"]

    async def wait(self, repository: Any, only: TaskFilter = ANY_TASK) -> None:
        task = await repository.wait_until_due(only)
        self.seen.append((task.id, trio.current_time()))


@asynccontextmanager
async def watching(
    repository: Any, *, clock: Clock | None = None, only: TaskFilter = ANY_TASK
) -> AsyncGenerator[Watch]:
    """Somebody waits for the next task, who was asleep when the block began."""
    watch = Watch()
    repository.start_timer(TrioClock(NOON, start=0) if clock is None else clock)
    trio.lowlevel.add_instrument(watch.steps)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.wait, repository, only, name="watcher")
        await wait_all_tasks_blocked()
        watch.steps.of.clear()
        yield watch
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(watch.steps)
    repository.stop_timer()


async def heap(*tasks: Task) -> Repository:
    repository = TimedRepository(HeapStore())
    await repository.add(tasks)
    return repository


# -- waiting ------------------------------------------------------------------------


async def test_a_task_is_waited_for_until_it_is_due(autojump_clock: MockClock) -> None:
    """
    Waiting ends when the first task is due, to the microsecond, and gives that task.
    """
    repository = await heap(a_task("b", 7.000001), a_task("a", DAY))
    async with watching(repository) as watch:
        await trio.sleep(7)
        assert watch.seen == []
        await trio.sleep(1)
        assert watch.seen == [("b", 7.000001)]


@pytest.mark.parametrize("late", [0, 0.000001, 1, 1e9], ids=str)
async def test_a_due_task_is_not_waited_for(late: float, autojump_clock: MockClock) -> None:
    """
    A task that is due already is given at once; the wait is a checkpoint all the same.
    """
    repository = await heap(a_task("a", 0))
    repository.start_timer(TrioClock(at(late)))
    with assert_checkpoints():
        task = await repository.wait_until_due()
    assert (task.id, trio.current_time()) == ("a", 0)


async def test_the_first_of_many_is_given(autojump_clock: MockClock) -> None:
    """
    Of tasks due at the same moment the one of the largest priority is given, though it
    was added while the other was waited for.
    """
    repository = await heap(a_task("a", 10))
    async with watching(repository) as watch:
        await trio.sleep(1)
        await repository.add([a_task("b", 10, priority=1)])
        await trio.sleep(10)
        assert watch.seen == [("b", 10)]


@pytest.mark.parametrize("kind", ["trio", "wall"])
async def test_with_nothing_pending_nobody_wakes(
    kind: str, autojump_clock: MockClock
) -> None:
    """
    With nothing pending, whoever waits is not woken once in ten years.
    """
    clock = SystemClock() if kind == "wall" else None
    repository = await heap(a_run("a", 0))
    async with watching(repository, clock=clock) as watch:
        await trio.sleep(10 * 365 * DAY)
        assert watch.wakes == 0


async def test_under_trios_clock_nobody_wakes_before_the_time(
    autojump_clock: MockClock,
) -> None:
    """
    Under Trio's clock, whoever waits for a task of next year is woken then, once.
    """
    repository = await heap(a_task("a", 365 * DAY))
    async with watching(repository) as watch:
        await trio.sleep(365 * DAY - 1)
        assert watch.wakes == 0
        await trio.sleep(2)
        assert watch.seen == [("a", 365 * DAY)]
        # Woken by the deadline, and at the store's checkpoint.
        assert watch.wakes == 2


async def test_looks_at_the_wall_clock_are_few(autojump_clock: MockClock) -> None:
    """
    Under the wall clock, whoever waits for a task far ahead looks again once in
    `max_sleep` seconds, and not more often.
    """
    repository = await heap(a_task("a", 365 * DAY))
    async with watching(repository, clock=wall_clock(lambda: 0, 30)) as watch:
        await trio.sleep(3_000.5)
        assert watch.wakes == 2 * 100


async def test_what_is_not_for_us_is_not_waited_for(autojump_clock: MockClock) -> None:
    """
    A wait with a filter ends when a task that passes it is due, whatever comes before.
    """
    repository = await heap(a_task("a", 1), a_task("b", 5, work_id="other"))
    async with watching(repository, only=TaskFilter(frozenset({"other"}))) as watch:
        await trio.sleep(9)
        assert watch.seen == [("b", 5)]


async def test_many_may_wait_for_different_tasks(autojump_clock: MockClock) -> None:
    """
    Any number may wait, each for the tasks that pass a filter of its own.
    """
    repository = await heap(a_task("a", 50, work_id="a"), a_task("b", 60, work_id="b"))
    repository.start_timer(TrioClock(NOON))
    watches = {name: Watch() for name in ["a", "b", "c", "any", "ab"]}
    async with trio.open_nursery() as nursery:
        for name, watch in watches.items():
            only = ANY_TASK if name == "any" else TaskFilter(frozenset(name))
            nursery.start_soon(watch.wait, repository, only)
        await trio.sleep(10)
        await repository.add([a_task("c", 20, work_id="c")])
        await repository.update("b", TaskUpdate(scheduled_at=at(30)))
    assert {name: watch.seen for name, watch in watches.items()} == {
        "a": [("a", 50)],
        "b": [("b", 30)],
        "c": [("c", 20)],
        "any": [("c", 20)],
        "ab": [("b", 30)],
    }


# -- what resets it -----------------------------------------------------------------


def adding(*tasks: Task) -> Change:
    return lambda repository: repository.add(tasks)


def updating(task_id: str, **changes: Any) -> Change:
    return lambda repository: repository.update(task_id, TaskUpdate(**changes))


def in_one_batch(*changes: Change) -> Change:
    """All of the changes in one call of `apply`, in the order of that call."""

    class Collecting(TimedRepository[HeapStore]):
        def __init__(self, operations: list[Operation]) -> None:
            self.operations = operations

        async def apply(
            self, operations: Sequence[Operation]
        ) -> Sequence[outcome.Outcome[Any]]:
            self.operations += operations
            return [outcome.Value(None) for _ in operations]

    async def change(repository: Repository) -> None:
        operations: list[Operation] = []
        for each in changes:
            await each(Collecting(operations))
        for result in await repository.apply(operations):
            result.unwrap()

    return change


# A change of the first row's tasks made at 1 s, and what is then seen, and when.
CHANGES: dict[str, tuple[Change, tuple[str, float]]] = {
    "add before": (adding(a_task("new", 5)), ("new", 5)),
    "add due": (adding(a_task("new", 0)), ("new", 1)),
    "add after": (adding(a_task("new", 15)), ("first", 10)),
    "add many": (adding(a_task("x", 15), a_task("new", 7), a_task("y", 9)), ("new", 7)),
    "add none": (adding(), ("first", 10)),
    "add a run": (adding(a_run("new", 5)), ("first", 10)),
    "add an end": (
        adding(a_task("new", 5, state=TaskState.DONE, done_at=NOON)),
        ("first", 10),
    ),
    "first later": (updating("first", scheduled_at=at(30)), ("second", 20)),
    "first a bit later": (updating("first", scheduled_at=at(11)), ("first", 11)),
    "first earlier": (updating("first", scheduled_at=at(4)), ("first", 4)),
    "first due": (updating("first", scheduled_at=at(-4)), ("first", 1)),
    "second first": (updating("second", scheduled_at=at(5)), ("second", 5)),
    "second equal": (
        updating("second", scheduled_at=at(10), priority=1),
        ("second", 10),
    ),
    "first less urgent": (
        in_one_batch(
            updating("second", scheduled_at=at(10)), updating("first", priority=-1)
        ),
        ("second", 10),
    ),
    "other param": (updating("first", param={"a": 1}), ("first", 10)),
    "nothing": (updating("first"), ("first", 10)),
    "work of first": (updating("first", work_id="unknown"), ("second", 20)),
    "work of other": (updating("unknown", work_id="greet"), ("unknown", 3)),
    "cancel first": (lambda r: r.cancel("first", at(1)), ("second", 20)),
    "cancel second": (lambda r: r.cancel("second", at(1)), ("first", 10)),
    "dispatch first": (lambda r: r.mark_dispatched("first", at(10)), ("second", 20)),
    "dispatch late": (lambda r: r.mark_dispatched("first", at(99)), ("second", 20)),
    "claim first": (
        lambda r: r.claim(1, at(10), TaskFilter(frozenset({"greet"}))),
        ("second", 20),
    ),
    "claim expired": (
        in_one_batch(
            updating("second", priority=-1, work_id="other"),
            lambda r: r.claim(1, at(99), TaskFilter(frozenset({"greet"}))),
            updating("second", work_id="greet"),
        ),
        ("second", 20),
    ),
    "revert": (lambda r: r.revert(a_run("run", 6)), ("run", 6)),
    "recover": (lambda r: r.recover(RecoverAction.REVERT, at(1)), ("run", 6)),
    "recover none": (lambda r: r.recover(RecoverAction.FAIL, at(1)), ("first", 10)),
    "end": (lambda r: r.mark_done(a_run("run", 6), at(1)), ("first", 10)),
    "cancel run": (lambda r: r.mark_cancelled(a_run("run", 6), at(1)), ("first", 10)),
    "delete": (lambda r: r.delete_ended(), ("first", 10)),
    "cancel and add": (
        in_one_batch(lambda r: r.cancel("first", at(1)), adding(a_task("new", 8))),
        ("new", 8),
    ),
    "add and cancel": (
        in_one_batch(adding(a_task("new", 8)), lambda r: r.cancel("new", at(1))),
        ("first", 10),
    ),
}
every_change = pytest.mark.parametrize(
    ("change", "expected"), CHANGES.values(), ids=CHANGES.keys()
)


def first_row() -> list[Task]:
    return [
        a_task("first", 10, deadline=at(50)),
        a_task("second", 20),
        a_run("run", 6),
        a_task("ended", 2, state=TaskState.DONE, done_at=NOON),
        a_task("unknown", 3, work_id="unknown"),
    ]


GREET = TaskFilter(frozenset({"greet"}))


@every_change
async def test_every_change_is_heeded(
    change: Change, expected: tuple[str, float], autojump_clock: MockClock
) -> None:
    """
    Whatever happens to the tasks while one is waited for, the first is given in time.
    """
    repository = await heap(*first_row())
    async with watching(repository, only=GREET) as watch:
        await trio.sleep(1)
        await change(repository)
        await trio.sleep(50)
        assert watch.seen == [expected]


@every_change
async def test_no_change_is_lost_while_the_store_is_read(
    change: Change, expected: tuple[str, float], autojump_clock: MockClock
) -> None:
    """
    A change that is made while the timer reads which task is next, and so is missing
    from what it reads, is heeded as any other.
    """
    store = BlockingStore()
    repository = TimedRepository[HeapStore](store)
    await repository.add(first_row())
    store.gate = trio.Event()
    async with watching(repository, only=GREET) as watch:
        await trio.sleep(1)
        await change(repository)
        await wait_all_tasks_blocked()
        store.gate.set()
        await trio.sleep(50)
        assert watch.seen == [expected]


@every_change
async def test_no_change_is_lost_while_the_store_is_read_again(
    change: Change, expected: tuple[str, float], autojump_clock: MockClock
) -> None:
    """
    A change that is made while the timer looks again, because of another change, is
    heeded as any other.
    """
    store = BlockingStore()
    repository = TimedRepository[HeapStore](store)
    await repository.add([*first_row(), a_task("early", 2)])
    async with watching(repository, only=GREET) as watch:
        await trio.sleep(1)
        store.gate = trio.Event()
        await repository.cancel("early", at(1))
        await wait_all_tasks_blocked()
        await change(repository)
        await wait_all_tasks_blocked()
        store.gate.set()
        await trio.sleep(50)
        assert watch.seen == [expected]


@every_change
async def test_no_change_is_lost_while_nobody_waits(
    change: Change, expected: tuple[str, float], autojump_clock: MockClock
) -> None:
    """
    A change that is made while nobody waits, between two waits, is heeded in the next.
    """
    repository = await heap(*first_row())
    await trio.sleep(1)
    async with watching(repository, only=GREET):
        pass
    await change(repository)
    async with watching(repository, only=GREET) as watch:
        await trio.sleep(50)
        assert watch.seen == [expected]


@pytest.mark.parametrize(
    "name",
    [
        "add after",
        "add none",
        "add a run",
        "add an end",
        "cancel second",
        "end",
        "cancel run",
        "delete",
        "nothing",
    ],
)
async def test_what_does_not_matter_wakes_nobody(
    name: str, autojump_clock: MockClock
) -> None:
    """
    A change that cannot move the first task wakes nobody.
    """
    change, _ = CHANGES[name]
    repository = await heap(*first_row())
    async with watching(repository, only=GREET) as watch:
        await change(repository)
        await wait_all_tasks_blocked()
        assert watch.wakes == 0


@pytest.mark.parametrize(
    "name",
    [
        "first later",
        "work of first",
        "cancel first",
        "dispatch first",
        "dispatch late",
        "claim first",
        "claim expired",
    ],
)
@pytest.mark.parametrize("reading", [False, True], ids=["asleep", "reading"])
async def test_nobody_wakes_for_what_is_gone(
    name: str, reading: bool, autojump_clock: MockClock
) -> None:
    """
    When the first task has gone, or moved, nobody wakes at its old time.
    """
    change, _ = CHANGES[name]
    store = BlockingStore()
    repository = TimedRepository[HeapStore](store)
    await repository.add(first_row())
    if reading:
        store.gate = trio.Event()
    async with watching(repository, only=GREET) as watch:
        await change(repository)
        store.gate.set()
        await wait_all_tasks_blocked()
        woken = watch.wakes
        await trio.sleep(15)
        assert watch.wakes == woken


async def test_a_queue_that_was_empty_wakes_again(autojump_clock: MockClock) -> None:
    """
    After the queue was empty, however often, a task that is added is waited for in time.
    """
    repository = await heap()
    clock = TrioClock(NOON)
    repository.start_timer(clock)
    seen: list[tuple[str, float]] = []

    async def take() -> None:
        while True:
            task = await repository.wait_until_due()
            run = await repository.mark_dispatched(task.id, clock.now())
            await repository.mark_done(run, clock.now())
            seen.append((task.id, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        for number in range(5):
            await trio.sleep_until(100 * number)
            assert await repository.get_next() is None
            await repository.add([a_task(f"t{number}", 100 * number + 7)])
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    assert seen == [(f"t{number}", 100.0 * number + 7) for number in range(5)]


@pytest.mark.parametrize("how", ["batch", "cancelled", "outcome"])
async def test_a_change_of_unknown_outcome_is_looked_at(
    how: str, autojump_clock: MockClock
) -> None:
    """
    A change that the store made, and then failed to say so, is heeded.
    """
    store = FailingStore()
    repository = TimedRepository[HeapStore](store)
    await repository.add([a_task("late", 50)])
    async with watching(repository) as watch:
        store.failing = how
        with trio.move_on_after(1), suppress(RepositoryError):
            await repository.add([a_task("soon", 5)])
        store.failing = None
        await trio.sleep(20)
        assert watch.seen == [("soon", 5)]


async def test_what_was_changed_behind_its_back_is_seen_after_a_reset(
    autojump_clock: MockClock,
) -> None:
    """
    After `reset`, whoever waits looks again, whatever has happened to the store.
    """
    repository = await heap(a_task("late", 50))
    async with watching(repository) as watch:
        await repository.store.add([a_task("soon", 5)])
        repository.timer.reset()
        await trio.sleep(20)
        assert watch.seen == [("soon", 5)]


async def test_what_is_refused_wakes_nobody(autojump_clock: MockClock) -> None:
    """
    A change that the store refuses changes nothing, and wakes nobody.
    """
    repository = await heap(*first_row())
    refused: list[Change] = [
        adding(a_task("new", 5), a_task("first", 5)),
        updating("run", scheduled_at=at(5)),
        updating("first", scheduled_at=at(60)),
        lambda r: r.cancel("run", at(1)),
        lambda r: r.mark_dispatched("first", at(1)),
        lambda r: r.revert(a_run("first", 10)),
    ]
    async with watching(repository, only=GREET) as watch:
        for change in refused:
            with pytest.raises((RefusedError, InvalidTaskError)):
                await change(repository)
        await wait_all_tasks_blocked()
        assert watch.wakes == 0
        await trio.sleep(20)
        assert watch.seen == [("first", 10)]


steps = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.sampled_from(["add", "move", "cancel", "work", "revert", "priority"]),
        st.sampled_from("abcd"),
        st.integers(-3, 12),
    ),
    max_size=25,
)


async def change_somehow(
    repository: Repository, kind: str, task_id: str, now: datetime, ahead: int
) -> None:
    moment = now + timedelta(seconds=ahead)
    match kind:
        case "add":
            task = attrs.evolve(a_task(task_id, 0), scheduled_at=moment)
            await repository.add([task])
        case "move":
            await repository.update(task_id, TaskUpdate(scheduled_at=moment))
        case "cancel":
            await repository.cancel(task_id, now)
        case "work":
            await repository.update(task_id, TaskUpdate(work_id="other"))
        case "revert":
            await repository.revert(await repository.get(task_id))
        case _:
            await repository.update(task_id, TaskUpdate(priority=ahead))


async def take_what_is_due(repository: Repository, clock: Clock) -> None:
    while True:
        task = await repository.wait_until_due()
        assert task.scheduled_at <= clock.now()
        with suppress(RefusedError):
            await repository.mark_dispatched(task.id, clock.now())


@pytest.mark.uncovered
@settings(max_examples=150)
@given(steps, st.booleans())
@example([(0, "add", "a", 9), (1, "add", "b", 2), (0, "add", "c", 1)], True)
def test_the_timer_never_sleeps_past_the_earliest_task(
    steps: list[tuple[int, str, str, int]], slow: bool
) -> None:
    """
    Whatever happens, and in whatever order, no task is pending that is due: each has
    been given by the timer as it fell due.
    """

    async def main() -> None:
        store = BlockingStore()
        repository = TimedRepository[HeapStore](store)
        clock = TrioClock(NOON)
        repository.start_timer(clock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_what_is_due, repository, clock)
            for pause, kind, task_id, ahead in steps:
                if slow:
                    store.gate = trio.Event()
                await trio.sleep(pause)
                with suppress(RefusedError):
                    await change_somehow(repository, kind, task_id, clock.now(), ahead)
                store.gate.set()
                await wait_all_tasks_blocked()
                head = await repository.get_next()
                assert head is None or head.scheduled_at > clock.now()
            while (head := await repository.get_next()) is not None:
                await trio.sleep_until(clock.deadline_for(head.scheduled_at))
                await wait_all_tasks_blocked()
                assert await repository.get_next() != head
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


# -- a clock that is set ------------------------------------------------------------


def wall_clock(step: Callable[[], float], max_sleep: float) -> SystemClock:
    """A wall clock that goes with Trio's, but for what it has been set by."""

    def read() -> datetime:
        return at(trio.current_time() + step())

    # A cast, as `read` is unknown to pyright.
    return cast("Callable[..., SystemClock]", SystemClock)(max_sleep, read=read)


@pytest.mark.parametrize(
    ("step", "seen_at"),
    [(1_000, 120), (35, 120), (-300, 800), (-100_000, 100_500), (0, 500)],
    ids=str,
)
async def test_a_clock_that_was_set_is_noticed(
    step: float, seen_at: float, autojump_clock: MockClock
) -> None:
    """
    When the wall clock is set, whichever way, the next look notices it: a task that has
    thereby come due is given then, one that has not is given when it is.
    """
    ahead = 0.0
    repository = await heap(a_task("a", 500 if step != 35 else 150))
    async with watching(repository, clock=wall_clock(lambda: ahead, 30)) as watch:
        await trio.sleep(100)
        ahead = step
        await trio.sleep_until(200_000)
        assert watch.seen == [("a", seen_at)]


@settings(max_examples=80)
@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(-2_000, 2_000)), max_size=6),
    st.integers(-100, 2_000),
    st.sampled_from([7.0, 30.0]),
)
def test_no_step_of_the_clock_is_missed(
    steps: list[tuple[int, int]], due: int, max_sleep: float
) -> None:
    """
    However a wall clock is set, a task is never given before the clock shows its time,
    and at most `max_sleep` seconds after the clock has begun to.
    """
    # When it was set, and by how much it is ahead of Trio's clock since.
    history = [(0.0, 0.0)]

    async def main() -> float:
        repository = await heap(a_task("a", due))
        clock = wall_clock(lambda: history[-1][1], max_sleep)
        async with watching(repository, clock=clock) as watch:
            for pause, ahead in steps:
                await trio.sleep(pause)
                history.append((trio.current_time(), ahead))
            await trio.sleep(4_500)
        [(_, seen_at)] = watch.seen
        return seen_at

    seen_at = trio.run(main, clock=MockClock(autojump_threshold=0))
    # When the clock began to show that the task is due, and went on to until then.
    shown_since = math.inf
    until = seen_at
    for set_at, ahead in reversed(history):
        if set_at <= until and until + ahead >= due:
            shown_since = max(set_at, due - ahead)
            until = set_at
            if shown_since == set_at:
                continue
        elif set_at >= seen_at:
            continue  # set as the task was given, or later
        break
    assert shown_since <= seen_at <= shown_since + max_sleep


# -- far ahead, and long ago --------------------------------------------------------


@settings(max_examples=150)
@given(moments, moments, st.sampled_from([0.0, 0.1, 1e6, 2.0**33, 1e12, 1e15]))
@example(FIRST, LAST, 0.0)
@example(FIRST, LAST, 1e12)
@example(NOON, at(0.000001), 1e12)
@example(NOON, at(0.000001), 1e15)
@example(datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC), LAST, 0.1)
def test_no_moment_makes_the_timer_busy(
    epoch: datetime, moment: datetime, start: float
) -> None:
    """
    Whatever the clock shows, a task of any moment is given, not before it is due, and
    whoever waits is woken no more than a few times.
    """

    async def main() -> None:
        jumping.jump(start)
        clock = TrioClock(epoch)
        repository = await heap(attrs.evolve(a_task("a", 0), scheduled_at=moment))
        repository.start_timer(clock)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        task = await repository.wait_until_due()
        assert clock.now() >= task.scheduled_at
        assert sum(steps.of.values()) <= 10

    jumping = MockClock(autojump_threshold=0)
    trio.run(main, clock=jumping)


async def test_a_jump_beyond_the_years_gives_what_is_last(mock_clock: MockClock) -> None:
    """
    When the clock jumps beyond the year 9999, a task of its last moment is due.
    """
    repository = await heap(
        attrs.evolve(a_task("a", 0), scheduled_at=LAST), a_task("b", 10)
    )
    async with watching(repository) as watch:
        mock_clock.jump(1e12)
        await wait_all_tasks_blocked()
        assert watch.seen == [("b", 1e12)]
        await repository.cancel("b", NOON)
        assert (await repository.wait_until_due()).id == "a"
        assert trio.current_time() == 1e12


# -- failures, cancellation, start and stop -----------------------------------------


async def test_after_a_failure_it_works_again(autojump_clock: MockClock) -> None:
    """
    A failure to read the next task leaves the wait, which can be begun again.
    """
    store = FailingStore()
    repository = TimedRepository[HeapStore](store)
    await repository.add([a_task("a", 9)])
    repository.start_timer(TrioClock(NOON))
    store.failures = 3
    for _ in range(3):
        with pytest.raises(RepositoryError, match=r"^disk full$"):
            await repository.wait_until_due()
    await repository.add([a_task("b", 7)])
    task = await repository.wait_until_due()
    assert (task.id, trio.current_time()) == ("b", 7)
    assert not repository.timer.watched


async def test_a_failure_while_asleep_leaves_the_wait(autojump_clock: MockClock) -> None:
    """
    A failure to look again leaves the wait at once, and the next wait is in time.
    """
    store = FailingStore()
    repository = TimedRepository[HeapStore](store)
    await repository.add([a_task("a", 9)])
    repository.start_timer(TrioClock(NOON))
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(RepositoryError):
                await repository.wait_until_due()
            assert trio.current_time() == 2
            await repository.wait_until_due()
            assert trio.current_time() == 5

        nursery.start_soon(wait)
        await trio.sleep(2)
        store.failures = 1
        await repository.add([a_task("b", 5)])


async def test_a_wait_can_be_cancelled(autojump_clock: MockClock) -> None:
    """
    A cancelled wait ends at once, leaves nothing behind, and can be begun again.
    """
    repository = await heap(a_task("a", 100))
    repository.start_timer(TrioClock(NOON))
    for time in (3, 8):
        with trio.move_on_at(time) as scope:
            await repository.wait_until_due()
        assert scope.cancelled_caught
        assert trio.current_time() == time
        assert not repository.timer.watched
    await repository.wait_until_due()
    assert trio.current_time() == 100


async def test_a_cancelled_wait_takes_nothing(autojump_clock: MockClock) -> None:
    """
    A wait that is cancelled before it begins is cancelled, though a task is due.
    """
    repository = await heap(a_task("a", 0))
    repository.start_timer(TrioClock(NOON))
    with trio.CancelScope() as scope:
        scope.cancel()
        await repository.wait_until_due()
    assert scope.cancelled_caught


async def test_a_timer_is_started_once() -> None:
    """
    A timer that goes already is not started; one that was stopped is, by any clock.
    """
    timer = HookTimer(HeapStore())
    for epoch in (NOON, at(5)):
        timer.start_timer(TrioClock(epoch))
        with pytest.raises(SchedulerAlreadyRunningError) as caught:
            timer.start_timer(TrioClock(NOON))
        assert str(caught.value) == "the repository's scheduler is already running"
        timer.stop_timer()
        timer.stop_timer()


async def test_a_timer_that_does_not_go_cannot_be_waited_for() -> None:
    """
    Waiting is refused before the timer is started, and after it was stopped.
    """
    repository = await heap(a_task("a", 0))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the timer is not started"):
            await repository.wait_until_due()
        repository.start_timer(TrioClock(NOON))
        repository.stop_timer()


@pytest.mark.parametrize("moment", ["asleep", "nothing pending", "reading"])
async def test_whoever_waits_is_told_that_the_timer_stops(
    moment: str, autojump_clock: MockClock
) -> None:
    """
    Whoever waits when the timer is stopped is told so, whatever the timer is at.
    """
    store = BlockingStore()
    repository = TimedRepository[HeapStore](store)
    if moment != "nothing pending":
        await repository.add([a_task("a", 100)])
    if moment == "reading":
        store.gate = trio.Event()
    repository.start_timer(TrioClock(NOON))
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(RuntimeError, match="the timer is not started"):
                await repository.wait_until_due()

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        repository.stop_timer()
        await wait_all_tasks_blocked()
        store.gate.set()
    assert trio.current_time() == 0


async def test_a_timer_may_get_another_clock(autojump_clock: MockClock) -> None:
    """
    A timer that was stopped and started anew goes by its new clock.
    """
    repository = await heap(a_task("a", 100))
    repository.start_timer(TrioClock(NOON))
    with trio.move_on_after(1):
        await repository.wait_until_due()
    repository.stop_timer()
    repository.start_timer(TrioClock(at(40), start=1))
    await repository.wait_until_due()
    assert trio.current_time() == 61


# -- the rest of a repository -------------------------------------------------------


async def test_a_timed_repository_reads_its_store() -> None:
    """
    What is read from a timed repository is what its store has.
    """
    repository = await heap(*first_row())
    store = repository.store
    assert await repository.get("first") == await store.get("first")
    assert await repository.get_next() == await store.get_next()
    assert await repository.get_next(GREET) == await store.get("first")
    query = TaskQuery(states={TaskState.SCHEDULED})
    assert await repository.find(query, 2) == await store.find(query, 2)
    after = await store.get("first")
    assert await repository.find(query, None, after) == [await store.get("second")]
    assert await repository.count_pending() == {"greet": 2, "unknown": 1}
    await repository.update("second", TaskUpdate(pool="p"))
    assert await repository.count_pools() == {"p": 1}
