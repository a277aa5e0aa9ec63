"""Pools of which one fails, or of which somebody else holds back what they fetch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing
from support import NOON, TroubledRepository, at
from test_pools import FailsAtTheEnd, failing_claims, note_works

from trio_gokugen import (
    HeapRepository,
    KeyLimit,
    PartialHooks,
    Pool,
    PoolsDispatcher,
    Rate,
    Scheduler,
    SchedulerAlreadyRunningError,
    Task,
    TrioClock,
    WorkerPoolDispatcher,
    WorkRegistry,
    open_scheduler,
)
from trio_gokugen.abc import (
    ANY_TASK,
    Clock,
    Dispatcher,
    DispatcherStatistics,
    Fetch,
    FetchErrors,
    Free,
    HookAction,
    PoolErrors,
    ResultChannel,
    Start,
    StopReason,
    TaskFilter,
)
from trio_gokugen.abc import WorkRegistry as AnyRegistry
from trio_gokugen.testing import check_dispatcher

Decide = Callable[[], Awaitable[HookAction]]


def answer(action: HookAction, seconds: float = 0) -> tuple[PartialHooks, list[Any]]:
    """Hooks that decide so after a while, and note what they are asked, and when."""
    asked: list[Any] = []

    async def decide(error: Exception, _: HookAction) -> HookAction:
        asked.append((str(error), trio.current_time()))
        await trio.sleep(seconds)
        return action

    return PartialHooks(on_dispatch_error=decide), asked


class Failing(WorkerPoolDispatcher):
    """Fails so many times."""

    times = 5

    async def dispatch(self, fetch: Fetch) -> None:
        await trio.lowlevel.checkpoint()
        if self.times:
            self.times -= 1
            raise OSError("out of order")
        await super().dispatch(fetch)


@pytest.mark.parametrize("action", [HookAction.RETRY, HookAction.IGNORE])
@pytest.mark.parametrize("seconds", [0, 5])
async def test_others_go_on_beside_a_pool_that_fails(
    autojump_clock: trio.testing.MockClock, action: HookAction, seconds: float
) -> None:
    """
    While a hook decides about a pool whose dispatcher has failed, and after, the others
    start on time what is due for them; that pool is asked again a while after the decision,
    twice as long each time, and anew once it has succeeded.
    """
    works, log = note_works(["bad", "good", "other"])
    bad = Failing(works)
    dispatcher = PoolsDispatcher(
        works, {"bad": Pool(bad, works=["bad"]), "good": Pool(1, works=["good"])}
    )
    hooks, asked = answer(action, seconds)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works, dispatcher=dispatcher, hooks=hooks, clock=clock
    ) as scheduler:
        names = "good", "other"
        due = [n / 8 for n in range(400)]
        await scheduler.add_tasks(
            [at(when, f"{name}{when}", name) for name in names for when in due]
            + [at(0, "bad", "bad")]
        )
        await scheduler.drain()
        pauses = [0.05, 0.1, 0.2, 0.4, 0.8]
        failed_at = [0.0]
        for pause in pauses:
            failed_at.append(failed_at[-1] + seconds + pause)
        assert asked == [("out of order", when) for when in failed_at[:5]]
        assert sorted(log) == sorted(
            [(f"{name}{when}", when) for when in due for name in names]
            + [("bad", failed_at[5])]
        )
        bad.times = 1
        dispatcher.pause("bad")
        dispatcher.resume("bad")
        await scheduler.add_task("bad", after=0)
        before = trio.current_time()
        await scheduler.drain()
        assert trio.current_time() == before + seconds + 0.05


async def test_the_scheduler_ends_by_it_unless_a_hook_decides_otherwise(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    By default what a pool's dispatcher raises leaves the scheduler.
    """
    works, _ = note_works(["bad", "good"])
    dispatcher = PoolsDispatcher(works, {"bad": Pool(Failing(works), works=["bad"])})
    with pytest.RaisesGroup(
        pytest.RaisesExc(OSError, match="out of order"), flatten_subgroups=True
    ):
        await Scheduler(works, HeapRepository(), dispatcher).run()


@pytest.mark.parametrize("first", ["a", "b"])
async def test_a_decision_to_raise_is_not_lost_beside_another(
    autojump_clock: trio.testing.MockClock, first: str
) -> None:
    """
    If a hook has decided that the error of one pool ends the scheduler, that ends by it,
    also if another fails in the same moment, for which it would go on.
    """

    class At(WorkerPoolDispatcher):
        async def dispatch(self, fetch: Fetch) -> None:
            await trio.sleep(self.max_workers)
            raise OSError("a" if self.max_workers == 3 else "b")

    works, _ = note_works(["a", "b"])
    dispatcher = PoolsDispatcher(
        works,
        {"a": Pool(At(works, 3), works=["a"]), "b": Pool(At(works, 4), works=["b"])},
    )
    asked: list[str] = []

    async def decide(error: Exception, _: HookAction) -> HookAction:
        asked.append(str(error))
        if str(error) == first:
            await trio.sleep_until(4 if first == "a" else 5)
            return HookAction.RAISE
        return HookAction.RETRY

    hooks = PartialHooks(on_dispatch_error=decide)
    scheduler = Scheduler(works, HeapRepository(), dispatcher, hooks=hooks)
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match=first), flatten_subgroups=True):
        await scheduler.run()
    assert first in asked


def test_errors_that_come_in_no_group() -> None:
    """
    Where nurseries let out a single error as it is, a pool that fails goes on all the same.
    """

    async def main() -> None:
        works, log = note_works(["bad"])
        dispatcher = PoolsDispatcher(works, {"bad": Pool(Failing(works), works=["bad"])})
        hooks, asked = answer(HookAction.RETRY)
        async with open_scheduler(works, dispatcher=dispatcher, hooks=hooks) as scheduler:
            task = await scheduler.add_task("bad", after=0)
            with trio.move_on_after(5):
                await scheduler.drain()
            await scheduler.stop(0)
        assert len(asked) == 5
        assert log == [(task.id, 1.55)]

    clock = trio.testing.MockClock(autojump_threshold=0)
    with pytest.warns(trio.TrioDeprecationWarning):
        trio.run(main, clock=clock, strict_exception_groups=False)


async def test_a_stop_does_not_wait_for_a_decision(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A scheduler that is stopped asks no more about a pool, and it may be started again: then
    the pool is asked at once.
    """
    works, log = note_works(["bad"])
    bad = Failing(works)
    bad.times = 1
    dispatcher = PoolsDispatcher(works, {"bad": Pool(bad, works=["bad"])})
    hooks, asked = answer(HookAction.RETRY, 1000)
    async with open_scheduler(works, dispatcher=dispatcher, hooks=hooks) as scheduler:
        await scheduler.add_task("bad", after=0)
        await trio.sleep(5)
    assert trio.current_time() == 5
    assert asked == [("out of order", 0.0)]
    async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
        task = await scheduler.add_task("bad", after=0)
        await scheduler.drain()
    assert log == [(task.id, 5.0)]


async def test_who_fails_on_the_way_out_is_told_without_delay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A pool that fails as the scheduler stops is told to the hooks, which cannot wait then.
    """

    works, _ = note_works(["bad"])
    pool = Pool(FailsAtTheEnd(works), works=["bad"])
    hooks, asked = answer(HookAction.RETRY, 1000)
    async with open_scheduler(
        works, dispatcher=PoolsDispatcher(works, {"p": pool}), hooks=hooks
    ):
        await trio.sleep(5)
    assert trio.current_time() == 5
    assert asked == [("too late", 5.0)]


async def test_pools_in_a_pool_go_on_beside_one_that_fails(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    So do those in the same pool of pools, and those beside that.
    """
    works, log = note_works(["bad", "good", "other"])
    inner = PoolsDispatcher(
        works,
        {
            "bad": Pool(Failing(works), works=["bad"]),
            "worse": Pool(Failing(works), works=["worse"]),
        },
    )
    dispatcher = PoolsDispatcher(
        works, {"inner": Pool(inner, works=["bad", "good", "worse"])}
    )
    hooks, asked = answer(HookAction.RETRY, 5)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works, dispatcher=dispatcher, hooks=hooks, clock=clock
    ) as scheduler:
        due = [float(n) for n in range(40)]
        await scheduler.add_tasks(
            [at(when, f"{name}{when}", name) for name in ("good", "other") for when in due]
            + [at(0, "bad", "bad")]
        )
        await scheduler.drain()
    assert sorted(log) == sorted(
        [(f"{name}{when}", when) for when in due for name in ("good", "other")]
        + [("bad", 5 * 5 + 1.55)]
    )
    assert len(asked) >= 5


@pytest.mark.parametrize("depth", [0, 1])
async def test_a_pool_that_fails_together_with_the_store(
    autojump_clock: trio.testing.MockClock, depth: int
) -> None:
    """
    If a pool fails in the same moment as the store, a hook is asked once, and all wait for
    its answer, also those around it.
    """
    moment = trio.Event()

    class FailsThen(WorkerPoolDispatcher):
        async def dispatch(self, fetch: Fetch) -> None:
            await moment.wait()
            if trio.current_time() < 5:
                raise OSError("beside it")
            await super().dispatch(fetch)

    works, log = note_works(["bad", "good"])
    repository, errors = failing_claims(1)
    failing = repository.before_apply
    assert failing is not None

    async def fail(operations: Any) -> None:
        await moment.wait()
        await failing(operations)

    dispatcher = PoolsDispatcher(works, {"bad": Pool(FailsThen(works), works=["bad"])})
    for _ in range(depth):
        dispatcher = PoolsDispatcher(
            works, {"aside": Pool(1, works=["aside"])}, default=Pool(dispatcher)
        )
    hooks, asked = answer(HookAction.RETRY, 5)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works, repository, dispatcher, hooks=hooks, clock=clock
    ) as scheduler:
        await repository.store.add([])
        await scheduler.add_tasks([at(0, "bad", "bad"), at(0, "good", "good")])
        repository.before_apply = fail
        await trio.testing.wait_all_tasks_blocked()
        moment.set()
        await scheduler.drain()
    assert len(errors) == 1
    assert len(asked) == 1
    assert sorted(log) == [("bad", 5.0), ("good", 5.0)]


@pytest.mark.parametrize("depth", [0, 1])
async def test_fetches_that_fail_together_are_of_the_store(
    autojump_clock: trio.testing.MockClock, depth: int
) -> None:
    """
    If the fetches of several pools fail together, however deep these are, that was the
    store: all errors are told, and each pool fetches at once when it is asked to again.
    """
    errors: list[Exception] = []
    fetched: list[TaskFilter] = []

    async def fails(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
        await trio.lowlevel.cancel_shielded_checkpoint()  # each of them, as it has begun
        errors.append(OSError(f"out of order {len(errors)}"))
        raise errors[-1]

    async def fetches(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
        fetched.append(only)
        return await trio.sleep_forever()

    works, _ = note_works(["a", "b"])
    pools = {name: Pool(1, works=[name]) for name in ("a", "b")}
    dispatcher = PoolsDispatcher(works, pools)
    for _ in range(depth):
        dispatcher = PoolsDispatcher(
            works, {"aside": Pool(1, works=["aside"])}, default=Pool(dispatcher)
        )
    results, _ = trio.open_memory_channel[Any](0)
    async with trio.open_nursery() as nursery:
        await dispatcher.start(nursery, results, TrioClock(NOON, 0.0))
        with pytest.raises(FetchErrors) as caught:
            await dispatcher.dispatch(fails)
        assert type(caught.value) is FetchErrors
        told = [*leaves(caught.value)]
        assert len(told) == 3 + depth
        assert {*map(id, told)} == {*map(id, errors)}

        nursery.start_soon(dispatcher.dispatch, fetches)
        await trio.testing.wait_all_tasks_blocked()
        assert len(fetched) == 3 + depth
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


def leaves(error: Exception) -> Iterator[Exception]:
    """The errors in groups, however deep."""
    if isinstance(error, ExceptionGroup):
        for each in cast("ExceptionGroup[Exception]", error).exceptions:
            yield from leaves(each)
    else:
        yield error


class Unopened(WorkerPoolDispatcher):
    """Cannot be started so many times, each of which takes a while."""

    times = 3
    opened = 0
    starts = 0

    async def start(
        self, nursery: trio.Nursery, results: ResultChannel, clock: Clock
    ) -> None:
        assert self.starts == self.opened, "it is being started"
        self.starts += 1
        await trio.sleep(1)
        self.opened += 1
        if self.opened <= self.times:
            raise OSError("cannot connect")
        await super().start(nursery, results, clock)


async def test_a_pool_that_is_added_and_cannot_start(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A pool that is added and whose dispatcher does not start is as one that fails: the
    others go on, and it is tried again, later each time.
    """
    works, log = note_works(["new", "good"])
    dispatcher = PoolsDispatcher(works, {"good": Pool(2, works=["good"])})
    hooks, asked = answer(HookAction.RETRY)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works, dispatcher=dispatcher, hooks=hooks, clock=clock
    ) as scheduler:
        await scheduler.add_tasks([at(n, f"{n}", "good") for n in range(9)])
        await trio.sleep(1.5)
        dispatcher.add("new", Pool(Unopened(works), works=["new"]))
        await scheduler.add_task("new", after=0, id="new")
        await scheduler.drain()
    assert asked == [("cannot connect", when) for when in (2.5, 3.55, 4.65)]
    assert log == sorted(
        [*[(f"{n}", float(n)) for n in range(9)], ("new", 4.65 + 0.2 + 1)],
        key=lambda each: each[1],
    )


async def test_pools_in_a_pool_that_is_added_and_cannot_start(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Of pools in a pool those that have started stay so, and only the others are tried again,
    until all have; from then on it is taken.
    """
    works, log = note_works(["first", "new", "last"])
    inner = PoolsDispatcher(
        works,
        {
            "first": Pool(1, works=["first"]),
            "new": Pool(Unopened(works), works=["new"]),
            "last": Pool(1, works=["last"]),
        },
    )
    dispatcher = PoolsDispatcher(works)
    hooks, asked = answer(HookAction.RETRY)
    async with open_scheduler(works, dispatcher=dispatcher, hooks=hooks) as scheduler:
        names = "first", "new", "last"
        dispatcher.add("inner", Pool(inner, works=names))
        for name in names:
            await scheduler.add_task(name, after=0, id=name)
        await trio.sleep(1.02)
        with pytest.raises(SchedulerAlreadyRunningError):
            await Scheduler(works, HeapRepository(), inner).run()
        with trio.fail_after(100):
            await scheduler.drain()
        with pytest.raises(SchedulerAlreadyRunningError):
            await Scheduler(works, HeapRepository(), inner).run()
    assert asked == [("cannot connect", when) for when in (1.0, 2.05, 3.15)]
    assert sorted(log) == [(name, 3.15 + 0.2 + 1) for name in sorted(names)]
    async with open_scheduler(works, dispatcher=inner) as scheduler:
        await scheduler.add_task("new", after=0, id="again")
        await scheduler.drain()
    assert log[-1] == ("again", 5.35)


async def test_a_start_is_not_cancelled_by_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A dispatcher that takes its time to start does so once, however often another pool fails
    meanwhile; and if it fails while nobody waits for it, that is told.
    """
    works, log = note_works(["new", "bad"])
    dispatcher = PoolsDispatcher(works, {"bad": Pool(Failing(works), works=["bad"])})
    hooks, asked = answer(HookAction.RETRY)
    new = Unopened(works)
    new.times = 1
    async with open_scheduler(works, dispatcher=dispatcher, hooks=hooks) as scheduler:
        dispatcher.add("new", Pool(new, works=["new"]))
        await scheduler.add_task("new", after=0, id="new")
        await trio.sleep(0.5)
        dispatcher.pause("new")
        await trio.sleep(5)
        assert new.starts == 1
        dispatcher.resume("new")
        await scheduler.drain()
    assert asked[-1] == ("cannot connect", 5.5)
    assert log == [("new", 6.55)]
    assert new.starts == 2


async def test_tasks_are_counted_beside_the_dispatch(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    However long it takes to count tasks of unknown works and pools, nothing waits for it;
    and they are not counted twice at a time.
    """
    works, log = note_works(["good"])
    repository = TroubledRepository()
    counts: list[float] = []

    async def take_long() -> None:
        counts.append(trio.current_time())
        await trio.sleep(45)

    repository.before_count = take_long
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works, repository, PoolsDispatcher(works, {"p": Pool(1)}), clock=clock
    ) as scheduler:
        await scheduler.add_tasks([at(n * 10, f"{n}", "good") for n in range(20)])
        await scheduler.drain()
        before = trio.current_time()
    assert trio.current_time() == before  # a stop does not wait for it, either
    assert log == [(f"{n}", n * 10.0) for n in range(20)]
    assert counts == [0.0, 80.0, 160.0]


async def test_counting_that_fails_may_end_the_scheduler(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If tasks cannot be counted, hooks decide: by default that ends the scheduler.
    """

    class Uncountable(HeapRepository):
        async def count_pools(self) -> Mapping[str, int]:
            await trio.lowlevel.checkpoint()
            raise OSError("cannot count")

    works = WorkRegistry()
    with pytest.RaisesGroup(
        pytest.RaisesExc(OSError, match="cannot count"), flatten_subgroups=True
    ):
        await Scheduler(works, Uncountable(), WorkerPoolDispatcher(works)).run()


class InFront:
    """Stands in front of a dispatcher, and hands on what it is asked."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher

    async def start(
        self, nursery: trio.Nursery, results: ResultChannel, clock: Clock
    ) -> None:
        await self.dispatcher.start(nursery, results, clock)

    async def dispatch(self, fetch: Fetch) -> None:
        await self.dispatcher.dispatch(fetch)

    def cancel(self, run: Task, reason: StopReason) -> bool:
        return self.dispatcher.cancel(run, reason)

    def statistics(self) -> DispatcherStatistics:
        return self.dispatcher.statistics()


class Gate(InFront):
    """Starts nothing while it is closed."""

    how = "nobody free"
    fetched = 0

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__(dispatcher)
        self.opened = trio.Event()
        self.opened.set()

    async def dispatch(self, fetch: Fetch) -> None:
        await self.opened.wait()

        async def fetch_if_open(free: Free, start: Start, only: TaskFilter) -> int:
            def count() -> int:
                there = free()
                return there if self.opened.is_set() else 0

            self.fetched += 1
            if self.how == "at once" and not self.opened.is_set():
                return 0
            return await fetch(count, start, only)

        await self.dispatcher.dispatch(cast("Fetch", fetch_if_open))


@pytest.mark.parametrize("pools", [0, 2])
async def test_who_stands_in_front_may_hold_back(
    autojump_clock: trio.testing.MockClock, pools: int
) -> None:
    """
    A dispatcher in front of pools that says that nobody is free, as a task is due, is
    called anew, so that it can wait: meanwhile nothing goes on, and nothing is late after.
    """
    works, log = note_works(["w0", "w1"], seconds=10)
    inner = PoolsDispatcher(
        works, {f"p{n}": Pool(1, works=[f"w{n}"]) for n in range(pools)}
    )
    gate = Gate(inner)
    repository = TroubledRepository()
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(works, repository, dispatcher=gate, clock=clock) as scheduler:
        await scheduler.add_tasks(
            [at(when, f"{n}at{when}", f"w{n}") for n in (0, 1) for when in (0, 7)]
        )
        await trio.sleep(5)
        gate.opened = trio.Event()
        await trio.sleep(6)
        repository.batches.clear()
        fetched = gate.fetched
        await trio.sleep(1000)
        assert repository.batches == []
        assert gate.fetched == fetched
        gate.opened.set()
        await scheduler.drain()
    assert sorted(log) == [
        ("0at0", 0.0),
        ("0at7", 1011.0),
        ("1at0", 0.0),
        ("1at7", 1011.0),
    ]


async def test_who_says_at_once_that_there_is_nothing_stops_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    One in front that comes back at once, without having fetched, does not keep the rest of
    the program from running.
    """
    works, log = note_works(["w0"])
    gate = Gate(PoolsDispatcher(works, {"p": Pool(1, works=["w0"])}))
    gate.how = "at once"
    gate.opened = trio.Event()
    async with trio.open_nursery() as nursery:
        await gate.start(nursery, trio.open_memory_channel[Any](9)[0], TrioClock(NOON))
        gate.opened.set()

        async def fetch(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
            gate.opened = trio.Event()
            await trio.lowlevel.checkpoint()
            return 0

        nursery.start_soon(gate.dispatch, fetch)
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert gate.fetched > 10
        nursery.cancel_scope.cancel()
    assert log == []


class OneFetch(InFront):
    """Comes back when one has fetched, as the suite expects, and has the workers of one."""

    async def dispatch(self, fetch: Fetch) -> None:
        with trio.CancelScope() as scope:

            async def fetch_once(free: Free, start: Start, only: TaskFilter) -> int:
                number = await fetch(free, start, only)
                scope.cancel()
                await trio.lowlevel.checkpoint_if_cancelled()
                return number

            await self.dispatcher.dispatch(cast("Fetch", fetch_once))

    def statistics(self) -> DispatcherStatistics:
        now = self.dispatcher.statistics()
        return attrs.evolve(now, max_workers=now.max_workers - 1)


def test_what_is_left_of_the_errors_of_pools_is_of_their_kind() -> None:
    """
    A part of a `FetchErrors` is one, and a part of a `PoolErrors` has what lets the pools
    go on, however deep, and however it was taken.
    """

    def go_on() -> None: ...

    def go_on_inside() -> None: ...

    fetches = FetchErrors("of fetches", [OSError("a"), KeyError("b")])
    inner = PoolErrors("inside", [OSError("c"), KeyError("d")])
    inner.go_on = go_on_inside
    outer = PoolErrors("outside", [OSError("e"), KeyError("f"), inner, fetches])
    outer.go_on = go_on
    parts: list[Any] = [*outer.split(OSError), outer.subgroup(OSError)]
    try:
        try:
            raise outer
        except* OSError as handled:
            parts.append(handled)
    except PoolErrors as rest:
        parts.append(rest)
    assert len(parts) == 5
    for part in parts:
        assert type(part) is PoolErrors
        assert (part.message, part.go_on) == ("outside", go_on)
        error, inside, of_fetches = part.exceptions
        assert not isinstance(error, ExceptionGroup)
        assert type(inside) is PoolErrors
        assert (inside.message, inside.go_on) == ("inside", go_on_inside)
        assert type(of_fetches) is FetchErrors
        assert of_fetches.message == "of fetches"


class Forgiving(InFront):
    """Asks nobody about a `KeyError`."""

    async def dispatch(self, fetch: Fetch) -> None:
        try:
            await self.dispatcher.dispatch(fetch)
        except PoolErrors as errors:
            rest = errors.split(KeyError)[1]
            if rest is None:
                errors.go_on()  # as nobody is asked
            else:
                raise rest from None


class Fails(WorkerPoolDispatcher):
    """By these errors, also if it is cancelled meanwhile, as another has failed."""

    def __init__(self, works: AnyRegistry, errors: list[Exception]) -> None:
        super().__init__(works)
        self.errors = errors

    async def dispatch(self, fetch: Fetch) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()
        if self.errors:
            raise self.errors.pop(0)
        await super().dispatch(fetch)


async def test_who_handles_some_errors_of_pools_leaves_the_others_as_they_were(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If one in front handles the errors of some pools, the hooks are asked about the others
    beside the dispatch; then all that have failed go on.
    """
    works, log = note_works(["bad", "missing", "good"])
    missing = [KeyError("one"), KeyError("two")]
    pools = {
        "bad": Pool(Fails(works, [OSError("out of order")]), works=["bad"]),
        "missing": Pool(Fails(works, [*missing]), works=["missing"]),
    }
    front = Forgiving(PoolsDispatcher(works, pools))
    hooks, asked = answer(HookAction.RETRY, 5)
    clock = TrioClock(NOON, 0.0)
    async with open_scheduler(
        works, dispatcher=front, hooks=hooks, clock=clock
    ) as scheduler:
        names = "bad", "missing", "good"
        await scheduler.add_tasks([at(1, name, name) for name in names])
        with trio.fail_after(60):
            await scheduler.drain()
    assert asked == [("out of order", 0.0)]
    assert log == [("good", 1.0), ("bad", 5.05), ("missing", 5.05 + 0.1)]


@pytest.mark.parametrize("kind", ["plain", "limited", "nested"])
async def test_several_pools_keep_what_a_dispatcher_promises(
    autojump_clock: trio.testing.MockClock, kind: str
) -> None:
    """
    Beside another pool, a pool keeps the promises of a dispatcher; one in front has
    `dispatch` return.
    """

    def open_dispatcher(works: AnyRegistry, size: int) -> OneFetch:
        default = Pool(size)
        if kind == "limited":
            rate = Rate(100_000, per=1)
            default = Pool(size, limits=[KeyLimit(50, meta="of")], rate=rate)
        elif kind == "nested":
            default = Pool(OneFetch(PoolsDispatcher(works, aside("b"), default=size)))
        return OneFetch(PoolsDispatcher(works, aside("a"), default=default))

    def aside(name: str) -> dict[str, Pool]:
        return {name: Pool(1, paused=True)}

    # Who waits for a worker there is a pool, and not the task that the suite cancels.
    skip = {"a_cancelled_wait_for_a_worker_leaves_nothing"}
    await check_dispatcher(open_dispatcher, skip=skip)
