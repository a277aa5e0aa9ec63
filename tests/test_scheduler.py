"""The scheduler's methods, with a heap and a worker pool, on virtual time."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import trio
import trio.testing
from support import NOON, Bench, at, noon, open_bench, same_everywhere, stored

from trio_gokugen import (
    AlreadyCancelledError,
    AlreadyDispatchedError,
    AlreadyDoneError,
    HeapRepository,
    InvalidTaskError,
    LostRunError,
    NotDispatchedError,
    NotRunningHereError,
    PartialHooks,
    Scheduler,
    SchedulerAlreadyRunningError,
    SchedulerNotRunningError,
    Task,
    TaskExistsError,
    TaskNotFoundError,
    TaskParam,
    TaskQuery,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    WorkNotFoundError,
    WorkRegistry,
    current_task,
    open_scheduler,
)
from trio_gokugen.abc import (
    ANY_TASK,
    Clock,
    Fetch,
    RecoverAction,
    ResultChannel,
    TaskFilter,
)

# -- when things run ------------------------------------------------------------------


async def test_a_task_runs_at_its_moment(autojump_clock: trio.testing.MockClock) -> None:
    """
    A task starts exactly when it is due, and ends done.
    """
    async with open_bench() as (scheduler, bench):
        task = await scheduler.add_task("note", at=noon(9 * 3600), id="a")
        assert task == stored("a", seconds=9 * 3600)
        ended = await scheduler.wait("a")

    assert bench.log == [("a", 9 * 3600.0)]
    assert ended == stored(
        "a",
        seconds=9 * 3600,
        state=TaskState.DONE,
        attempt=1,
        dispatched_at=noon(9 * 3600),
        done_at=noon(9 * 3600),
    )


async def test_after_counts_from_now(autojump_clock: trio.testing.MockClock) -> None:
    """
    `after` is seconds, or a timedelta, from the moment of the call.
    """
    async with open_bench() as (scheduler, bench):
        await trio.sleep(10)
        await scheduler.add_task("note", after=1.5, id="a")
        await scheduler.add_task("note", after=timedelta(minutes=1), id="b")
        await scheduler.drain()

    assert bench.log == [("a", 11.5), ("b", 70.0)]


async def test_the_past_means_now(autojump_clock: trio.testing.MockClock) -> None:
    """
    A moment that has passed is as good as the present one.
    """
    async with open_bench() as (scheduler, bench):
        await trio.sleep(10)
        await scheduler.add_task("note", at=NOON, id="a")
        await scheduler.drain()

    assert bench.log == [("a", 10.0)]


async def test_an_earlier_task_overtakes_the_one_slept_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A task that comes before the one being waited for starts first, and on time.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_task("note", at=noon(9 * 3600), id="late")
        await trio.testing.wait_all_tasks_blocked()
        await scheduler.add_task("note", at=noon(7), id="soon")
        await trio.sleep_until(10 * 3600)

    assert bench.log == [("soon", 7.0), ("late", 9 * 3600.0)]


async def test_order_among_due_tasks(autojump_clock: trio.testing.MockClock) -> None:
    """
    Of tasks that are due, the earliest goes first, then the largest priority, then the
    oldest.
    """
    async with open_bench(max_workers=1) as (scheduler, bench):
        await scheduler.add_tasks(
            [
                at(1, "plug", "sleep", param={"seconds": 10}),
                at(3, "third"),
                at(3, "fourth"),
                at(3, "second", priority=1),
                at(3, "last", priority=-1),
                at(2, "first"),
            ]
        )
        await scheduler.drain()

    assert bench.ids() == ["plug", "first", "second", "third", "fourth", "last"]
    assert {when for what, when in bench.starts if what != "plug"} == {11.0}


@pytest.mark.uncovered
async def test_a_year_of_tasks_is_on_time(autojump_clock: trio.testing.MockClock) -> None:
    """
    Ten thousand tasks over a year start to the microsecond when they are due.
    """
    async with open_bench() as (scheduler, bench):
        moments = [n * 3153.6 + n / 1_000_000 for n in range(10_000)]
        await scheduler.add_tasks([at(when, str(n)) for n, when in enumerate(moments)])
        await scheduler.drain()

    assert [noon(when) for _, when in bench.log] == [noon(when) for when in moments]


async def test_at_most_max_workers_run(autojump_clock: trio.testing.MockClock) -> None:
    """
    No more works run at a time than there are workers, and none waits for less.
    """
    async with open_bench(max_workers=3) as (scheduler, bench):
        await scheduler.add_tasks(
            [at(0, str(n), "sleep", param={"seconds": 10}) for n in range(7)]
        )
        await scheduler.drain()

    assert [when for _, when in bench.starts] == [0.0] * 3 + [10.0] * 3 + [20.0]


async def test_param_reaches_the_work_as_a_copy_of_its_own(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work that changes its arguments changes nothing of the task, nor does the caller
    who changes what it passed.
    """
    works = WorkRegistry()
    seen: list[Any] = []

    @works.register
    async def collect(items: list[int], *, name: str = "none") -> None:
        items.append(4)
        seen.append((items, name))

    async with open_scheduler(works) as scheduler:
        items = [1, 2, 3]
        task = await scheduler.add_task("collect", {"items": items}, after=1)
        items.append(99)
        ended = await scheduler.wait(task.id)

    assert seen == [([1, 2, 3, 4], "none")]
    assert ended.param == {"items": [1, 2, 3]}


async def test_sync_functions_run_in_a_thread(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A plain function runs in a thread, knows its task there, and virtual time stands
    still meanwhile.
    """
    works = WorkRegistry()
    ids: list[str] = []
    done = trio.Event()

    @works.register
    def block() -> str:
        with pytest.raises(RuntimeError):
            trio.lowlevel.current_task()
        ids.append(current_task().id)
        trio.from_thread.run_sync(done.set)
        return "text"

    async with open_scheduler(works) as scheduler:
        start = trio.current_time()
        task = await scheduler.add_task("block", after=5)
        await done.wait()
        ended = await scheduler.wait(task.id)
        assert trio.current_time() == start + 5
        assert ended.state is TaskState.DONE
    assert ids == [task.id]


async def test_current_task_outside_of_a_work(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Outside of a work there is no current task, and the error says so.
    """
    with pytest.raises(RuntimeError, match="inside a work"):
        current_task()


async def test_tasks_with_deadlines(autojump_clock: trio.testing.MockClock) -> None:
    """
    A task whose deadline passes before a worker is free never starts; one that runs is
    cancelled at its deadline; both fail, and say why.
    """
    async with open_bench(max_workers=1) as (scheduler, bench):
        await scheduler.add_tasks(
            [
                at(0, "runs", "sleep", deadline=noon(10)),
                at(1, "waits", "note", deadline=noon(10)),
                at(
                    2,
                    "early",
                    "note",
                    deadline=noon(
                        10,
                    )
                    + timedelta(microseconds=1),
                ),
            ]
        )
        runs = await scheduler.wait("runs")
        waits = await scheduler.wait("waits")
        await scheduler.wait("early")

    assert bench.log == [("runs", 0.0), ("runs cancelled", 10.0), ("early", 10.0)]
    assert (runs.state, runs.attempt, runs.done_at) == (TaskState.FAILED, 1, noon(10))
    assert (waits.state, waits.attempt, waits.done_at) == (TaskState.FAILED, 0, noon(10))
    assert runs.err is not None
    assert waits.err is not None
    assert runs.err.startswith("DeadlineExceededError: the deadline 2030-06-01T12:00:10")
    assert "the work was cancelled" in runs.err
    assert "the work was not started" in waits.err


async def test_the_timeout_of_a_work(autojump_clock: trio.testing.MockClock) -> None:
    """
    A work that runs longer than its timeout fails, and the error names the timeout.
    """
    works = WorkRegistry()

    @works.register(timeout=timedelta(seconds=5))
    async def slow() -> None:
        await trio.sleep(60)

    async with open_scheduler(works, clock=TrioClock(NOON, 0)) as scheduler:
        task = await scheduler.add_task("slow", after=1, deadline=noon(30))
        ended = await scheduler.wait(task.id)

    assert ended.done_at == noon(6)
    assert ended.err is not None
    assert ended.err.startswith("WorkTimeoutError: the work was cancelled after")


async def test_a_failing_work(autojump_clock: trio.testing.MockClock) -> None:
    """
    What a work raises ends its task as failed, with type, message and traceback.
    """
    async with open_bench() as (scheduler, _):
        await scheduler.add_task("fail", {"message": "no such user"}, after=0, id="a")
        ended = await scheduler.wait("a")

    assert ended.state is TaskState.FAILED
    assert ended.err is not None
    assert ended.err.startswith("ValueError: no such user\n")
    assert "in fail" in ended.err


async def test_many_works_and_timers_at_once_leave_nothing_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    After the block there is no Trio task more than before it.
    """
    before = trio.lowlevel.current_statistics().tasks_living
    async with open_bench(max_workers=100) as (scheduler, _):
        await scheduler.add_tasks([at(n % 7, str(n), "sleep") for n in range(300)])
        await scheduler.drain()
    assert trio.lowlevel.current_statistics().tasks_living == before


# -- add ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("at", {}),
        ("at", {"at": NOON, "after": 1}),
        ("at", {"at": datetime(2030, 1, 1)}),
        ("at", {"at": "2030-01-01"}),
        (
            "at",
            {"at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
        ),
        ("after", {"after": -1}),
        ("after", {"after": float("nan")}),
        ("after", {"after": float("inf")}),
        ("after", {"after": timedelta(-1)}),
        ("after", {"after": 1e12}),
        ("after", {"after": "1"}),
        ("after", {"after": True}),
        ("deadline", {"at": NOON, "deadline": NOON}),
        ("deadline", {"at": NOON, "deadline": datetime(2031, 1, 1)}),
        ("priority", {"at": NOON, "priority": 1.5}),
        ("priority", {"at": NOON, "priority": True}),
        ("priority", {"at": NOON, "priority": 2**63}),
        ("id", {"at": NOON, "id": 7}),
        ("id", {"at": NOON, "id": ""}),
        ("meta", {"at": NOON, "meta": [1]}),
        ("meta.x", {"at": NOON, "meta": {"x": b""}}),
        ("param", {"at": NOON, "param": {"unexpected": 1}}),
        ("param", {"at": NOON, "param": [1]}),
        ("param", {"at": NOON, "param": []}),
        ("param", {"at": NOON, "param": ""}),
        ("param", {"at": NOON, "param": {1: 2}}),
        ("param.a", {"at": NOON, "param": {"a": float("nan")}}),
        ("param.a", {"at": NOON, "param": {"a": "\ud800"}}),
    ],
)
async def test_bad_input_is_refused_at_the_call(
    autojump_clock: trio.testing.MockClock, field: str, arguments: dict[str, Any]
) -> None:
    """
    Bad input is refused with an error that names the field, and nothing is stored.
    """
    async with open_bench() as (scheduler, bench):
        with pytest.raises(InvalidTaskError) as caught:
            await scheduler.add_task("note", **arguments)
        assert caught.value.field == field
        assert field in str(caught.value)
        assert caught.value.index is None
        assert await scheduler.find() == []
    assert bench.log == []


@pytest.mark.parametrize("work_id", ["unknown", ""])
async def test_an_unknown_work_is_refused(
    autojump_clock: trio.testing.MockClock, work_id: str
) -> None:
    """
    A work that is not registered is refused as its task is added, and as it is updated.
    """
    async with open_bench() as (scheduler, _):
        expected = WorkNotFoundError if work_id else InvalidTaskError
        with pytest.raises(expected):
            await scheduler.add_task(work_id, after=1)
        task = await scheduler.add_task("note", after=1)
        with pytest.raises(expected):
            await scheduler.update(task.id, work_id=work_id)
        assert await scheduler.get(task.id) == task


async def test_param_must_fit_the_signature(autojump_clock: trio.testing.MockClock) -> None:
    """
    A param that the work cannot be called with is refused, and the error says how.
    """
    works = WorkRegistry()

    @works.register
    async def greet(name: str, *, times: int = 1) -> None: ...

    async with open_scheduler(works) as scheduler:
        with pytest.raises(InvalidTaskError, match="param: lacks 'name'"):
            await scheduler.add_task("greet", after=0)
        with pytest.raises(InvalidTaskError, match="param: has 'tiems'"):
            await scheduler.add_task("greet", {"name": "x", "tiems": 2}, after=0)
        task = await scheduler.add_task("greet", {"name": "x"}, after=1)
        with pytest.raises(InvalidTaskError, match="param: lacks 'name'"):
            await scheduler.update(task.id, param=None)
        assert await scheduler.get(task.id) == task


async def test_a_repeated_add_is_safe(autojump_clock: trio.testing.MockClock) -> None:
    """
    An id of the user's own is taken once: adding it again is refused, whatever became
    of the first.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_task("note", after=1, id="a")
        with pytest.raises(TaskExistsError) as caught:
            await scheduler.add_task("sleep", after=2, id="a")
        assert caught.value.task_id == "a"
        await scheduler.wait("a")
        with pytest.raises(TaskExistsError):
            await scheduler.add_task("note", after=0, id="a")
        await scheduler.drain()
    assert bench.ids() == ["a"]


async def test_add_tasks_is_all_or_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """
    Of a bulk add in which one is bad, none is stored, and the error says which.
    """
    async with open_bench() as (scheduler, _):
        assert await scheduler.add_tasks([]) == []
        good = [at(n, str(n)) for n in range(3)]
        with pytest.raises(WorkNotFoundError) as unknown:
            await scheduler.add_tasks([*good, at(1, "x", "unknown")])
        assert (unknown.value.work_id, unknown.value.index) == ("unknown", 3)
        with pytest.raises(InvalidTaskError) as misfit:
            await scheduler.add_tasks([good[0], at(1, "x", param={"a": 1}), good[1]])
        assert (misfit.value.field, misfit.value.index) == ("param", 1)
        with pytest.raises(InvalidTaskError) as wrong:
            await scheduler.add_tasks([*good, "task"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
        assert wrong.value.index == 3
        with pytest.raises(TaskExistsError):
            await scheduler.add_tasks([*good, good[0]])
        with pytest.raises(TaskExistsError):
            await scheduler.add_tasks([at(1, "x"), at(2, "x")])
        assert await scheduler.find() == []

        [task] = await scheduler.add_tasks(
            TaskParam(work_id="note", scheduled_at=noon(n)) for n in range(1)
        )
        assert await scheduler.get(task.id) == task


async def test_ids_sort_in_the_order_of_adding(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Ids made within one tick sort as the tasks were added.
    """
    async with open_bench() as (scheduler, _):
        one = [await scheduler.add_task("note", after=60) for _ in range(20)]
        many = await scheduler.add_tasks(
            TaskParam(work_id="note", scheduled_at=noon(60)) for _ in range(20)
        )
        ids = [task.id for task in [*one, *many]]
        assert ids == sorted(set(ids))


# -- update, cancel -------------------------------------------------------------------


async def test_update_moves_a_task(autojump_clock: trio.testing.MockClock) -> None:
    """
    An update that returned is what the task runs by: advanced, postponed, or changed.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_tasks(
            [at(100, "a"), at(50, "b"), at(70, "c", deadline=noon(71))]
        )
        await trio.testing.wait_all_tasks_blocked()
        assert await scheduler.update("a", scheduled_at=noon(10))
        assert await scheduler.update("b", scheduled_at=noon(200), priority=3)
        assert await scheduler.update(
            "c", work_id="sleep", param={"seconds": 2}, deadline=None, meta={"x": 1}
        )
        assert not await scheduler.update("c", meta={"x": 1}, deadline=None)
        assert not await scheduler.update("c")
        await scheduler.drain()
        c = await scheduler.get("c")

    assert bench.starts == [("a", 10.0), ("c", 70.0), ("b", 200.0)]
    assert (c.state, c.meta, c.deadline) == (TaskState.DONE, {"x": 1}, None)


async def test_update_checks_what_the_task_is_going_to_be(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An update is checked together with what it leaves as it is, and a bad one changes
    nothing.
    """
    async with open_bench() as (scheduler, _):
        await scheduler.add_tasks(
            [at(10, "a", deadline=noon(20)), at(10, "b", "sleep", param={"seconds": 1})]
        )
        refused: list[tuple[str, dict[str, Any]]] = [
            ("deadline", {"scheduled_at": noon(20)}),
            ("deadline", {"deadline": noon(10)}),
            ("scheduled_at", {"scheduled_at": datetime(2030, 1, 1)}),
            ("scheduled_at", {"scheduled_at": None}),
            ("priority", {"priority": None}),
            ("param", {"param": {"seconds": 1}}),
            ("meta", {"meta": 3}),
            ("work_id", {"work_id": None}),
        ]
        for field, changes in refused:
            with pytest.raises(InvalidTaskError) as caught:
                await scheduler.update("a", **changes)
            assert caught.value.field == field
        with pytest.raises(InvalidTaskError):
            await scheduler.update("b", work_id="note")
        assert await scheduler.get("a") == stored("a", seconds=10, deadline=noon(20))
        assert await scheduler.update("b", work_id="note", param=None)


async def test_a_cancelled_task_never_runs(autojump_clock: trio.testing.MockClock) -> None:
    """
    A cancel that returned is never contradicted by a run.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_tasks([at(5, "a"), at(6, "b")])
        await trio.sleep(2)
        assert await scheduler.cancel("a") is True
        assert await scheduler.cancel("a") is False
        await scheduler.drain()
        ended = await scheduler.wait("a")

    assert bench.log == [("b", 6.0)]
    assert ended == stored("a", seconds=5, state=TaskState.CANCELLED, cancelled_at=noon(2))


async def test_what_each_state_allows(autojump_clock: trio.testing.MockClock) -> None:
    """
    Each call in each state does what the table of states says.
    """
    async with open_bench() as (scheduler, _):
        await scheduler.add_tasks(
            [
                at(1, "done"),
                at(1, "failed", "fail"),
                at(1, "cancelled"),
                at(1, "dispatched", "sleep"),
                at(999, "scheduled"),
            ]
        )
        await scheduler.cancel("cancelled")
        await trio.sleep(2)

        async def refused(call: Any) -> type[BaseException]:
            with pytest.raises(Exception) as caught:  # noqa: PT011 (looked at below)
                await call
            return caught.type

        for task_id, update, cancel, interrupt in [
            ("unknown", TaskNotFoundError, TaskNotFoundError, TaskNotFoundError),
            ("done", AlreadyDoneError, AlreadyDoneError, AlreadyDoneError),
            ("failed", AlreadyDoneError, AlreadyDoneError, AlreadyDoneError),
            ("cancelled", AlreadyCancelledError, None, AlreadyCancelledError),
            ("dispatched", AlreadyDispatchedError, AlreadyDispatchedError, None),
            ("scheduled", None, None, NotDispatchedError),
        ]:
            if update is not None:
                assert await refused(scheduler.update(task_id)) is update
                assert await refused(scheduler.update(task_id, param={})) is update
                assert await refused(scheduler.update(task_id, priority=1)) is update
            if cancel is not None:
                assert await refused(scheduler.cancel(task_id)) is cancel
            if interrupt is not None:
                assert await refused(scheduler.interrupt(task_id)) is interrupt
        for call in (scheduler.get, scheduler.wait):
            assert await refused(call("unknown")) is TaskNotFoundError

        assert await scheduler.update("scheduled", priority=1) is True
        assert (await scheduler.interrupt("dispatched")).state is TaskState.CANCELLED
        assert await scheduler.cancel("scheduled") is True


# -- interrupt ------------------------------------------------------------------------


async def test_interrupt_returns_when_the_work_has_really_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An interrupted work is cancelled at once, may clean up, and only then its task is
    cancelled.
    """
    works = WorkRegistry()
    log: list[tuple[str, float]] = []

    @works.register
    async def tidy() -> None:
        try:
            await trio.sleep_forever()
        finally:
            log.append(("cancelled", trio.current_time()))
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
            log.append(("tidied", trio.current_time()))

    async with open_scheduler(works, clock=TrioClock(NOON, 0)) as scheduler:
        task = await scheduler.add_task("tidy", after=1)
        await trio.sleep(5)
        ended = await scheduler.interrupt(task.id)
        assert trio.current_time() == 8.0

    assert log == [("cancelled", 5.0), ("tidied", 8.0)]
    assert (ended.state, ended.cancelled_at, ended.attempt) == (
        TaskState.CANCELLED,
        noon(8),
        1,
    )


async def test_interrupting_twice(autojump_clock: trio.testing.MockClock) -> None:
    """
    Two who interrupt one work both get the task as it ended.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_task("sleep", after=0, id="a")
        await trio.sleep(1)
        ended: list[Task] = []

        async def interrupt() -> None:
            ended.append(await scheduler.interrupt("a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt)
            nursery.start_soon(interrupt)
        assert [task.state for task in ended] == [TaskState.CANCELLED] * 2
    assert bench.log == [("a", 0.0), ("a cancelled", 1.0)]


async def test_a_work_that_finishes_all_the_same_is_done(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Work that did not notice its interruption has been done, and its task says so.
    """
    async with open_bench() as (scheduler, _):
        await scheduler.add_task("stubborn", {"seconds": 10}, after=0, id="a")
        await trio.sleep(1)
        ended = await scheduler.interrupt("a")
        assert trio.current_time() == 10.0
    assert (ended.state, ended.err) == (TaskState.DONE, None)


async def test_an_interrupted_work_that_raises_is_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What a work raises on its way out does not turn an interruption into a failure.
    """
    works = WorkRegistry()

    @works.register
    async def rude() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ConnectionError("gone")

    async with open_scheduler(works) as scheduler:
        task = await scheduler.add_task("rude", after=0)
        await trio.sleep(1)
        ended = await scheduler.interrupt(task.id)
    assert ended.state is TaskState.CANCELLED


async def test_interrupting_a_task_that_nobody_here_runs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A task that is dispatched, but by nobody here, cannot be interrupted here.
    """
    repository = HeapRepository()
    await repository.add([stored("a", state=TaskState.DISPATCHED, attempt=1)])
    async with open_bench(repository, recover="leave") as (scheduler, _):
        with pytest.raises(NotRunningHereError):
            await scheduler.interrupt("a")


async def test_a_work_may_interrupt_another(autojump_clock: trio.testing.MockClock) -> None:
    """
    A work can use the scheduler: add, interrupt, and wait for others.
    """
    works = WorkRegistry()
    states: list[TaskState] = []

    @works.register
    async def child() -> None:
        await trio.sleep_forever()

    @works.register
    async def parent() -> None:
        task = await scheduler.add_task("child", after=0)
        await trio.sleep(1)
        states.append((await scheduler.interrupt(task.id)).state)

    async with open_scheduler(works) as scheduler:
        await scheduler.add_task("parent", after=0)
        await scheduler.drain()
    assert states == [TaskState.CANCELLED]


# -- wait, drain, find, delete --------------------------------------------------------


async def test_wait_gives_the_ended_task_in_whatever_state(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    `wait` returns for done, failed and cancelled tasks, before and after the end.
    """
    async with open_bench() as (scheduler, _):
        await scheduler.add_tasks(
            [at(1, "done"), at(2, "failed", "fail"), at(9, "cancelled")]
        )
        ended: dict[str, Task] = {}

        async def wait(task_id: str) -> None:
            ended[task_id] = await scheduler.wait(task_id)

        async with trio.open_nursery() as nursery:
            for task_id in ("done", "failed", "cancelled"):
                nursery.start_soon(wait, task_id)
                nursery.start_soon(wait, task_id)
            await trio.sleep(5)
            await scheduler.cancel("cancelled")
        assert {task_id: task.state.value for task_id, task in ended.items()} == {
            "done": "done",
            "failed": "failed",
            "cancelled": "cancelled",
        }
        for task_id, task in ended.items():
            assert await scheduler.wait(task_id) == task


async def test_wait_for_a_task_that_is_forgotten_as_it_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Who waits for a task gets it as it ended, even if the store keeps no ended tasks.
    """
    async with open_bench(HeapRepository(keep_ended=0)) as (scheduler, _):
        task = await scheduler.add_task("note", after=5)
        assert (await scheduler.wait(task.id)).state is TaskState.DONE
        with pytest.raises(TaskNotFoundError):
            await scheduler.wait(task.id)


async def test_a_cancelled_wait_leaves_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Who stops waiting is forgotten.
    """
    async with open_bench() as (scheduler, _):
        await scheduler.add_task("note", after=50, id="a")
        for call in (scheduler.wait, scheduler.interrupt):
            with trio.move_on_after(1), pytest.raises((trio.Cancelled, NotDispatchedError)):
                await call("a")
        with trio.move_on_after(1):
            await scheduler.drain()
        assert scheduler._engine is not None
        assert not scheduler._engine.ledger._waiters
        assert not scheduler._engine.ledger._watchers


async def test_one_of_two_who_wait_goes_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Who stops waiting takes nothing from another who waits for the same task.
    """
    async with open_bench() as (scheduler, _), trio.open_nursery() as nursery:
        await scheduler.add_task("note", after=50, id="a")
        nursery.start_soon(scheduler.wait, "a")
        await trio.sleep(1)
        with trio.move_on_after(1):
            await scheduler.wait("a")
        await trio.sleep(1)
    assert trio.current_time() == 50.0


async def test_what_happens_during_a_slow_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A task that ends, and is forgotten, while it is being read for `wait` is returned; and
    `drain` looks again at what has changed while it read.
    """

    class SlowReads(HeapRepository):
        async def get(self, task_id: str) -> Task:
            await trio.sleep(5)
            return await super().get(task_id)

        async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
            found = await super().get_next(only)
            await trio.sleep(5)
            return found

    async with open_bench(SlowReads(keep_ended=0)) as (scheduler, bench):
        await scheduler.add_task("note", after=2, id="a")
        assert (await scheduler.wait("a")).state is TaskState.DONE
        assert trio.current_time() == 5.0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.drain)
            await trio.sleep(2)
            await scheduler.add_task("note", after=20, id="b")
        assert bench.ids() == ["a", "b"]


async def test_drain_waits_for_pending_and_running(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    `drain` returns when nothing is pending or running, and not before.
    """
    async with open_bench() as (scheduler, _):
        await scheduler.drain()
        assert trio.current_time() == 0.0
        await scheduler.add_tasks(
            [at(5, "a", "sleep"), at(100, "b", "sleep"), at(999, "c")]
        )
        with trio.move_on_after(50):
            await scheduler.drain()
        assert trio.current_time() == 50.0
        await scheduler.cancel("c")
        await scheduler.drain()
        assert trio.current_time() == 160.0


async def test_drain_sees_the_last_task_go(autojump_clock: trio.testing.MockClock) -> None:
    """
    `drain` returns when the last pending task is cancelled, or postponed for ever no
    more.
    """
    async with open_bench() as (scheduler, _), trio.open_nursery() as nursery:
        await scheduler.add_task("note", at=datetime.max.replace(tzinfo=UTC), id="a")
        nursery.start_soon(scheduler.drain)
        await trio.sleep(5)
        assert nursery.child_tasks
        await scheduler.cancel("a")
    assert trio.current_time() == 5.0


async def test_find_by_pages(autojump_clock: trio.testing.MockClock) -> None:
    """
    `find` gives what matches in a total order, page by page.
    """
    async with open_bench() as (scheduler, _):
        await scheduler.add_tasks(
            [at(n // 3, f"{n:03}", meta={"even": n % 2 == 0}) for n in range(50)]
        )
        found: list[Task] = []
        while page := await scheduler.find(
            TaskQuery(meta={"even": True}, scheduled_at=(noon(1), None)),
            limit=4,
            after=found[-1] if found else None,
        ):
            found += page
        assert [task.id for task in found] == [f"{n:03}" for n in range(4, 50, 2)]
        assert len(await scheduler.find(limit=None)) == 50
        for limit in (0, -1):
            with pytest.raises(ValueError, match="limit"):
                await scheduler.find(limit=limit)
        with pytest.raises(TypeError, match="limit"):
            await scheduler.find(limit=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_delete_ended(autojump_clock: trio.testing.MockClock) -> None:
    """
    `delete_ended` forgets exactly the tasks that it returns.
    """
    async with open_bench() as (scheduler, _):
        await scheduler.add_tasks(
            [at(n, str(n), "note" if n % 2 else "fail") for n in range(1, 7)]
        )
        await scheduler.add_tasks([at(99, "pending")])
        await trio.sleep(10)
        assert await scheduler.delete_ended(before=noon(4), states={TaskState.DONE}) == [
            "1",
            "3",
        ]
        assert await scheduler.delete_ended(limit=2) == ["2", "4"]
        assert [task.id for task in await scheduler.find()] == ["5", "6", "pending"]
        with pytest.raises(InvalidTaskError, match="states"):
            await scheduler.delete_ended(states={TaskState.SCHEDULED})
        with pytest.raises(InvalidTaskError, match="before"):
            await scheduler.delete_ended(before=datetime(2030, 1, 1))
        with pytest.raises(ValueError, match="limit"):
            await scheduler.delete_ended(limit=0)
        assert await scheduler.delete_ended() == ["5", "6"]


# -- the pool -------------------------------------------------------------------------


async def test_the_pool_grows_and_shrinks_while_running(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    More workers start at once what waits; fewer disturb nothing that runs.
    """
    bench = Bench()
    pool = WorkerPoolDispatcher(bench.works, 1)
    async with open_scheduler(
        bench.works, HeapRepository(), pool, clock=TrioClock(NOON, 0)
    ) as scheduler:
        await scheduler.add_tasks(
            [at(0, str(n), "sleep", param={"seconds": 10}) for n in range(8)]
        )
        await trio.sleep(5)
        pool.max_workers = 4
        await trio.sleep(2)
        assert scheduler.statistics().running == 4
        pool.max_workers = 2
        assert pool.max_workers == 2
        await scheduler.drain()

    assert [when for _, when in bench.starts] == [
        0.0,
        5.0,
        5.0,
        5.0,
        15.0,
        15.0,
        25.0,
        25.0,
    ]


@pytest.mark.parametrize("value", [0, -1])
async def test_a_pool_needs_a_worker(
    autojump_clock: trio.testing.MockClock, value: int
) -> None:
    """
    A pool without workers is refused, as it is made and as it is changed.
    """
    pool = WorkerPoolDispatcher(WorkRegistry())
    with pytest.raises(ValueError, match="max_workers"):
        WorkerPoolDispatcher(WorkRegistry(), value)
    with pytest.raises(ValueError, match="max_workers"):
        pool.max_workers = value
    for wrong in (1.5, "1", True, None):
        with pytest.raises(TypeError, match="max_workers"):
            pool.max_workers = wrong  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    assert pool.max_workers == 10


# -- running and not ------------------------------------------------------------------


async def test_a_call_while_not_running_says_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Before and after it runs, a scheduler refuses every call at once.
    """
    bench = Bench()
    scheduler = Scheduler(bench.works, HeapRepository(), WorkerPoolDispatcher(bench.works))

    async def refuses_everything() -> None:
        for call in (
            scheduler.add_task("note", after=0),
            scheduler.add_tasks([]),
            scheduler.update("a"),
            scheduler.cancel("a"),
            scheduler.interrupt("a"),
            scheduler.get("a"),
            scheduler.find(),
            scheduler.wait("a"),
            scheduler.drain(),
            scheduler.delete_ended(),
        ):
            with pytest.raises(SchedulerNotRunningError):
                await call
        assert scheduler.statistics().state == "stopped"

    await refuses_everything()
    await scheduler.stop()
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        assert scheduler.statistics().state == "running"
        await scheduler.stop()
        await refuses_everything()
    await refuses_everything()
    assert scheduler.statistics().max_workers == 10


async def test_workers_are_counted_in_one_place() -> None:
    """
    A number of workers beside a dispatcher, which has its own, is refused and not ignored.
    """
    works = WorkRegistry()
    dispatcher = WorkerPoolDispatcher(works, max_workers=3)
    with pytest.raises(TypeError, match="max_workers"):
        async with open_scheduler(works, dispatcher=dispatcher, max_workers=20):
            pass
    async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
        assert scheduler.statistics().max_workers == 3


async def test_a_second_run_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    """
    A scheduler runs once at a time, and so do its repository and its dispatcher.
    """
    bench = Bench()
    repository, pool = HeapRepository(), WorkerPoolDispatcher(bench.works)
    scheduler = Scheduler(bench.works, repository, pool)
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        with pytest.raises(SchedulerAlreadyRunningError):
            await scheduler.run()
        second = Scheduler(bench.works, repository, WorkerPoolDispatcher(bench.works))
        with pytest.raises(SchedulerAlreadyRunningError, match="repository"):
            await second.run()
        third = Scheduler(bench.works, HeapRepository(), pool)
        with pytest.raises(SchedulerAlreadyRunningError, match="dispatcher"):
            await third.run()
        task = await scheduler.add_task("note", after=0)
        await scheduler.wait(task.id)
        await scheduler.stop()
    assert bench.ids() == [task.id]


async def test_a_scheduler_can_run_again(autojump_clock: trio.testing.MockClock) -> None:
    """
    One that has stopped can be run anew, and goes on with its repository's tasks.
    """
    bench = Bench()
    scheduler = Scheduler(
        bench.works,
        HeapRepository(),
        WorkerPoolDispatcher(bench.works),
        clock=TrioClock(NOON, 0),
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        await scheduler.add_tasks([at(1, "a"), at(10, "b")])
        await trio.sleep(5)
        await scheduler.stop()
        await trio.sleep(10)
        await nursery.start(scheduler.run)
        await scheduler.drain()
        await scheduler.stop()
    assert bench.log == [("a", 1.0), ("b", 15.0)]


async def test_the_automatic_clock_goes_on_in_the_same_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A scheduler opened later in the same run agrees with the first about the time.
    """
    bench = Bench()
    repository = HeapRepository()
    async with open_scheduler(bench.works, repository) as scheduler:
        await scheduler.add_task("note", after=timedelta(days=10), id="a")
        await trio.sleep(5 * 86400)
    async with open_scheduler(bench.works, repository) as scheduler:
        await scheduler.drain()
    assert bench.log == [("a", 10 * 86400.0)]


async def test_statistics(autojump_clock: trio.testing.MockClock) -> None:
    """
    The statistics count what has happened since the start, and freeze it.
    """
    async with open_bench(max_workers=7, grace=0) as (scheduler, _):
        await scheduler.add_tasks(
            [
                at(1, "a"),
                at(1, "b", "fail"),
                at(1, "c", "sleep"),
                at(1, "d", "sleep"),
                at(50, "e"),
            ]
        )
        await scheduler.cancel("e")
        await trio.sleep(2)
        await scheduler.interrupt("d")
        now = scheduler.statistics()
        assert (now.state, now.running, now.max_workers) == ("running", 1, 7)
        assert (now.added, now.dispatched, now.done, now.failed) == (5, 4, 1, 1)
        assert (now.cancelled, now.reverted, now.queued, now.unseen) == (2, 0, 0, 0)
        with pytest.raises(AttributeError):
            now.done = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def test_works_unknown_here_are_left_to_others(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A stored task whose work is not registered stays scheduled, is not claimed, is counted,
    is logged once, and keeps nobody else from running.
    """
    repository = HeapRepository()
    await repository.add([stored(f"x{n}", "other", -n) for n in range(3)])
    await repository.add([stored("a", seconds=60), stored("b", seconds=120)])
    with caplog.at_level(logging.WARNING, "trio_gokugen"):
        async with open_bench(repository) as (scheduler, bench):
            await scheduler.drain()
            assert scheduler.statistics().unknown_works == {"other": 3}
            for n in range(3):
                assert (await scheduler.get(f"x{n}")).state is TaskState.SCHEDULED
            assert await scheduler.update("x0", param={"any": "thing"})
            assert await scheduler.cancel("x1")
    assert bench.log == [("a", 60.0), ("b", 120.0)]
    assert [record.getMessage() for record in caplog.records] == [
        "3 tasks are left scheduled, as no work is registered as 'other'"
    ]


async def test_a_work_registered_while_running(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work that is registered while the scheduler runs can be used at once.
    """
    async with open_bench() as (scheduler, bench):
        with pytest.raises(WorkNotFoundError):
            await scheduler.add_task("late", after=0)
        bench.works.register("late", bench.note)
        await scheduler.add_task("late", after=5, id="a")
        await scheduler.drain()
    assert bench.log == [("a", 5.0)]


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        ("grace", -1, ValueError),
        ("grace", float("nan"), ValueError),
        ("grace", "1", TypeError),
        ("recover", "restart", ValueError),
        ("max_workers", 0, ValueError),
    ],
)
async def test_bad_options(
    autojump_clock: trio.testing.MockClock,
    argument: str,
    value: Any,
    error: type[Exception],
) -> None:
    """
    An option that makes no sense is refused, and the error names it.
    """
    with pytest.raises(error, match=argument):
        async with open_scheduler(WorkRegistry(), **{argument: value}):
            pass


async def test_a_task_that_is_moved_to_a_new_work(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work registered while the scheduler runs is known at once, for an update as well.
    """
    async with open_bench() as (scheduler, bench):
        await scheduler.add_tasks([at(100, "a")])
        await trio.sleep(1)
        bench.works.register("other", bench.note)
        assert await scheduler.update("a", work_id="other")
        await trio.sleep_until(200)
    assert bench.log == [("a", 100.0)]


async def test_a_new_work_is_noticed_by_each_who_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Of several fetches that sleep, one that has claimed since knows a new work; the others
    learn of it, too.
    """

    class Lanes(WorkerPoolDispatcher):
        async def dispatch(self, fetch: Fetch) -> None:
            async def serve(work_id: str) -> None:
                only = TaskFilter(frozenset({work_id}))
                while True:
                    await fetch(self._free, self._start_run, only)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, "note")
                nursery.start_soon(serve, "other")

    bench = Bench()
    lanes, clock = Lanes(bench.works), TrioClock(NOON, 0.0)
    async with open_scheduler(bench.works, None, lanes, clock=clock) as scheduler:
        await scheduler.add_tasks([at(10, "a")])
        await trio.sleep(1)
        bench.works.register("other", bench.note)
        await trio.sleep_until(20)
        await scheduler.add_tasks([at(30, "b", "other")])
        await trio.sleep_until(40)
    assert bench.log == [("a", 10.0), ("b", 30.0)]


async def test_interrupting_a_run_that_has_lost_its_task(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A run whose task was taken back is interrupted, and that is the answer: the attempt
    after it is not waited for.
    """
    repository = HeapRepository()
    async with open_bench(repository, max_workers=1) as (scheduler, bench):
        await scheduler.add_tasks([at(0, "a", "sleep")])
        await trio.sleep(1)
        await repository.recover(RecoverAction.REVERT, noon(1))
        with pytest.raises(LostRunError):
            await scheduler.interrupt("a")
        assert trio.current_time() == 1
        assert (await scheduler.wait("a")).attempt == 2
    assert bench.log == [("a", 0.0), ("a cancelled", 1.0), ("a", 1.0), ("a done", 61.0)]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("works", {"greet": print}),
        ("works", WorkRegistry),
        ("repository", "tasks.jsonl"),
        ("repository", HeapRepository),
        ("dispatcher", 10),
        ("clock", datetime.now),
        ("clock", TrioClock),
        ("hooks", PartialHooks),
        ("hooks", [PartialHooks()]),
    ],
    ids=same_everywhere,
)
async def test_parts_that_cannot_be_used(argument: str, value: Any) -> None:
    """
    What is no part of a scheduler is refused as it is given, by name.
    """
    arguments: dict[str, Any] = {"works": WorkRegistry(), argument: value}
    with pytest.raises(TypeError, match=f"^{argument}"):
        async with open_scheduler(**arguments):
            pass


@asynccontextmanager
async def open_store() -> AsyncGenerator[HeapRepository]:
    yield HeapRepository()


@pytest.mark.parametrize(
    ("argument", "value", "hint"),
    [
        ("repository", "sqlite:///x.db", r"sql\.open_sql_repository makes one of a URL$"),
        ("repository", open_store(), r"enter it first: async with \.\.\. as repository$"),
        (
            "hooks",
            [PartialHooks()],
            r"must be one object: ChainHooks makes one",
        ),
    ],
    ids=["a URL", "not entered", "several hooks"],
)
async def test_what_to_do_instead_is_told(argument: str, value: Any, hint: str) -> None:
    """
    What is often given in place of a part is refused with a word on what will do.
    """
    arguments: dict[str, Any] = {"works": WorkRegistry(), argument: value}
    with pytest.raises(TypeError, match=hint):
        async with open_scheduler(**arguments):
            pass


async def test_tasks_and_works_have_names(autojump_clock: trio.testing.MockClock) -> None:
    """
    A work, or a task, in place of its name is refused with a word on what will do.
    """
    async with open_bench() as (scheduler, _):
        task = await scheduler.add_task("note", after=1)
        wrong: Any = test_tasks_and_works_have_names
        with pytest.raises(InvalidTaskError, match=r"^work_id: must be the name of"):
            await scheduler.add_task(wrong, after=1)
        wrong = task
        for call in scheduler.cancel, scheduler.get, scheduler.wait, scheduler.interrupt:
            with pytest.raises(InvalidTaskError, match=r"^task_id: .* give task\.id$"):
                await call(wrong)


HUGE = 10**5000  # of more digits than Python turns into text


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda s: s.add_task("note", after=-HUGE), InvalidTaskError, "after"),
        (lambda s: s.add_task("note", after=HUGE), InvalidTaskError, "after"),
        (lambda s: s.add_task("note", {HUGE: 1}, after=1), InvalidTaskError, "param"),
        (lambda s: s.add_tasks(5), InvalidTaskError, "params"),
        (lambda s: s.find(limit=-HUGE), ValueError, "limit"),
        (lambda s: s.find(after="x"), TypeError, "after"),
        (lambda s: s.delete_ended(limit=-HUGE), ValueError, "limit"),
        (lambda s: s.stop(-HUGE), ValueError, "grace"),
    ],
    ids=["little", "much", "key", "many", "page", "cursor", "delete", "grace"],
)
async def test_odd_input_is_named(
    autojump_clock: trio.testing.MockClock,
    call: Callable[[Any], Awaitable[object]],
    error: type[Exception],
    named: str,
) -> None:
    """
    What can hardly be shown is refused by name like anything else.
    """
    async with open_bench() as (scheduler, _):
        with pytest.raises(error, match=f"^{named}"):
            await call(scheduler)


async def test_a_limit_beyond_all_bounds(autojump_clock: trio.testing.MockClock) -> None:
    """
    A limit larger than anything is no limit; a grace larger than anything has no end.
    """
    async with open_bench() as (scheduler, _):
        task = await scheduler.add_task("note", after=0)
        await scheduler.wait(task.id)
        assert await scheduler.find(limit=HUGE) == [await scheduler.get(task.id)]
        assert await scheduler.delete_ended(limit=HUGE) == [task.id]
        await scheduler.stop(HUGE)


async def test_a_start_that_is_refused_half_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A dispatcher that has started a part of itself before it is refused leaves nothing.
    """

    class Both(WorkerPoolDispatcher):
        async def start(
            self, nursery: trio.Nursery, results: ResultChannel, clock: Clock
        ) -> None:
            await super().start(nursery, results, clock)
            await taken.start(nursery, results, clock)

    works = WorkRegistry()
    taken = WorkerPoolDispatcher(works)
    async with open_scheduler(works, None, taken):
        second = Scheduler(works, HeapRepository(), Both(works))
        with trio.fail_after(1), pytest.raises(SchedulerAlreadyRunningError):
            await second.run()


@pytest.mark.parametrize("call", ["update", "drain", "wait"])
async def test_a_stored_task_whose_work_comes_later(
    autojump_clock: trio.testing.MockClock, call: str
) -> None:
    """
    A task left by another program runs once its work is registered, whatever call comes
    first.
    """
    repository = HeapRepository()
    await repository.add([stored("a", "other", 10)])
    async with open_bench(repository) as (scheduler, bench):
        await trio.sleep(1)
        bench.works.register("other", bench.note)
        if call == "update":
            assert await scheduler.update("a", priority=1)
            await trio.sleep_until(20)
        elif call == "drain":
            await scheduler.drain()
        else:
            await scheduler.wait("a")
    assert bench.log == [("a", 10.0)]


async def test_a_part_that_passes_on_to_another(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A wrapper that has what is asked for by passing on will do; what is missing is named.
    """

    class Wrapper:
        def __init__(self, wrapped: object) -> None:
            self.wrapped = wrapped

        def __getattr__(self, name: str) -> Any:
            return getattr(self.wrapped, name)

    wrapper: Any = Wrapper(HeapRepository())
    async with open_bench(wrapper) as (scheduler, bench):
        await scheduler.add_tasks([at(1, "a")])
        await scheduler.drain()
    assert bench.log == [("a", 1.0)]
    with pytest.raises(TypeError, match=r"and .* has no add"):
        async with open_bench(Wrapper(None)):
            pass
