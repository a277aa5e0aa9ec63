"""Leases: who has a task, until when, and what several schedulers owe each other."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import attrs
import outcome
import pytest
import trio
import trio.testing
from sqlalchemy import event
from support import NOON, Bench, at, noon, open_bench, stored

from trio_gokugen import (
    HookAction,
    Interval,
    PartialHooks,
    PassThroughHooks,
    RepositoryError,
    Scheduler,
    SchedulerNotRunningError,
    StopReason,
    Task,
    TaskNotFoundError,
    TaskParam,
    TaskQuery,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    WorkRegistry,
    WorkStoppedError,
    current_task,
    open_scheduler,
)
from trio_gokugen._ledger import Ledger
from trio_gokugen._repository import RECOVERED
from trio_gokugen.abc import (
    ClaimTasks,
    Clock,
    EndTask,
    Operation,
    RecoverAction,
    ResultChannel,
    RevertTask,
    TaskFilter,
    TaskRepository,
    TaskResult,
)
from trio_gokugen.sql import SQLRepository, open_sql_repository
from trio_gokugen.testing import Call, FaultyRepository

pytestmark = pytest.mark.tables

FOR_EVER = 10_000.0


@attrs.define
class Patient(PassThroughHooks):
    """Ignores what goes wrong with the store, and keeps it."""

    action: HookAction = HookAction.IGNORE
    errors: list[tuple[Sequence[Operation], Exception]] = attrs.field(
        factory=list[tuple[Sequence[Operation], Exception]]
    )

    async def on_update_error(
        self, operations: Sequence[Operation], error: Exception, action: HookAction
    ) -> HookAction:
        self.errors.append((operations, error))
        return self.action


class OpenDispatcher(WorkerPoolDispatcher):
    """Shows the results that it sends."""

    def __init__(self, works: WorkRegistry) -> None:
        super().__init__(works)
        self.sent: list[TaskResult] = []

    async def start(
        self, nursery: trio.Nursery, results: ResultChannel, clock: Clock
    ) -> None:
        sent = self.sent

        class Channel:
            def send_nowait(self, value: TaskResult, /) -> None:
                sent.append(value)
                results.send_nowait(value)

        await super().start(nursery, Channel(), clock)

    def stops(self) -> list[tuple[int, StopReason]]:
        """The attempts that were stopped, and why."""
        return [
            (result.run.attempt, result.outcome.error.reason)
            for result in self.sent
            if isinstance(result.outcome, outcome.Error)
            and isinstance(result.outcome.error, WorkStoppedError)
        ]


@asynccontextmanager
async def open_watched(
    repository: TaskRepository, **options: Any
) -> AsyncGenerator[tuple[Scheduler, Bench, OpenDispatcher]]:
    """A scheduler, its works, and what its dispatcher tells it."""
    bench = Bench()
    dispatcher = OpenDispatcher(bench.works)
    async with open_scheduler(
        bench.works, repository, dispatcher, clock=TrioClock(NOON, 0.0), **options
    ) as scheduler:
        yield scheduler, bench, dispatcher


@asynccontextmanager
async def opened(url: str, name: str, **options: Any) -> AsyncGenerator[SQLRepository]:
    """A repository that need not outlive a power cut."""
    options.setdefault("lease", 30)
    options.setdefault("poll", FOR_EVER)
    async with open_sql_repository(
        url, name=name, synchronous="off", **options
    ) as repository:
        yield repository


@asynccontextmanager
async def in_memory(**options: Any) -> AsyncGenerator[FaultyRepository]:
    """A store of its own, with a lease of half a minute, which fails when told to."""
    async with opened("sqlite://", "me", **options) as repository:
        yield FaultyRepository(repository)


def renewals(repository: FaultyRepository) -> list[float]:
    """When leases were renewed."""
    return [call.at for call in repository.calls if call.method == "renew"]


async def take_over(other: SQLRepository, task_id: str = "a") -> Task:
    """Claim a task that another runs, as if its lease were over."""
    await other.recover(RecoverAction.REVERT, noon(FOR_EVER))
    [task] = (await other.claim(1, noon(FOR_EVER))).tasks
    assert task.id == task_id
    return task


def reverts(call: Call) -> bool:
    """Whether it puts a task back."""
    return any(isinstance(each, RevertTask) for each in call.operations)


async def left_by(url: str, name: str, *tasks: Task, once: bool = False) -> None:
    """Have a scheduler of this name die in the middle of its tasks."""
    only = TaskFilter(None, frozenset({"note", "sleep"} if once else ()))
    async with opened(url, name) as repository:
        await repository.add(tasks)
        claimed = await repository.claim(len(tasks), noon(), only)
        assert len(claimed.tasks) == len(tasks)


# -- renewals -------------------------------------------------------------------------


async def test_leases_are_renewed_three_times_in_their_length(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    While a work runs, its lease is renewed whenever a third of it is over.
    """
    async with in_memory() as repository, open_bench(repository) as (scheduler, _):
        await scheduler.add_tasks([at(5, "a", "sleep", param={"seconds": 95})])
        await scheduler.wait("a")

        assert trio.current_time() == 100
        assert renewals(repository) == [15, 25, 35, 45, 55, 65, 75, 85, 95]


async def test_nothing_is_renewed_while_nothing_runs(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A scheduler that is alone on its store does not write to it for leases of nothing.
    """
    async with in_memory(poll=None) as repository, open_bench(repository) as (scheduler, _):
        await trio.sleep(1000)
        await scheduler.add_task("sleep", {"seconds": 5}, after=0)
        await trio.sleep(1000)

    assert renewals(repository) == []


async def test_one_statement_renews_all(autojump_clock: trio.testing.MockClock) -> None:
    """
    The leases of all that runs are renewed by one statement.
    """
    statements: list[str] = []
    async with opened("sqlite://", "me") as repository:

        def note(*execution: Any) -> None:
            statements.append(execution[2])

        async with open_bench(repository, max_workers=50) as (scheduler, _):
            await scheduler.add_tasks(
                [at(0, str(n), "sleep", param={"seconds": 15}) for n in range(50)]
            )
            await trio.sleep(9)
            event.listen(repository.store.engine, "before_cursor_execute", note)
            await trio.sleep(2)
            event.remove(repository.store.engine, "before_cursor_execute", note)

    assert [each.split()[0] for each in statements if "SELECT" not in each.split()] == [
        "BEGIN",
        "UPDATE",
        "COMMIT",
    ]


async def test_a_run_that_starts_later_is_renewed_with_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Each renewal is of all that runs then, and the next comes a third of a lease later.
    """
    async with in_memory() as repository, open_bench(repository) as (scheduler, _):
        await scheduler.add_tasks(
            [
                at(0, "a", "sleep", param={"seconds": 35}),
                at(15, "b", "sleep", param={"seconds": 40}),
            ]
        )
        await scheduler.wait("b")

    runs = [c.arguments["runs"] for c in repository.calls if c.method == "renew"]
    assert renewals(repository) == [10, 20, 30, 40, 50]
    assert [[run.id for run in each] for each in runs] == [
        ["a"],
        ["a", "b"],
        ["a", "b"],
        ["b"],
        ["b"],
    ]


# -- leases that cannot be renewed ----------------------------------------------------


async def test_a_lease_that_cannot_be_renewed_cancels_the_work(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If renewals fail, a work is cancelled before its lease is over, and runs again.
    """
    async with (
        in_memory() as repository,
        open_watched(repository, hooks=Patient()) as (scheduler, bench, dispatcher),
    ):
        fault = repository.fail("renew", times=None)
        await scheduler.add_tasks([at(0, "a", "sleep", param={"seconds": 100})])
        await trio.sleep(26)
        repository.heal(fault)
        task = await scheduler.wait("a")

    assert bench.log == [("a", 0), ("a cancelled", 25), ("a", 25), ("a done", 125)]
    assert dispatcher.stops() == [(1, StopReason.LOST_LEASE)]
    assert (task.state, task.attempt, task.interruptions) == (TaskState.DONE, 2, 1)


async def test_nobody_else_gets_the_task_before_the_work_has_ended(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    When somebody else may take a task, the work that has lost its lease has ended.
    """
    async with (
        opened(sqlite_url, "me") as mine,
        opened(sqlite_url, "other", poll=0.5) as others,
        open_bench(FaultyRepository(mine), hooks=Patient()) as (scheduler, bench),
    ):
        repository = scheduler._repository
        assert isinstance(repository, FaultyRepository)
        await scheduler.add_tasks([at(0, "a", "sleep", param={"seconds": 100})])
        await trio.sleep(1)
        repository.fail("renew", times=None)
        repository.fail("apply", when=reverts)
        async with open_bench(others, clock=TrioClock(NOON, 0.0)) as (other, elsewhere):
            task = await other.wait("a")

    assert bench.log == [("a", 0), ("a cancelled", 25)]
    # It has begun at 1, and looks whenever a third of a lease is over.
    assert elsewhere.log == [("a", 31), ("a done", 131)]
    assert (task.state, task.attempt) == (TaskState.DONE, 2)


async def test_what_must_not_be_repeated_fails_with_its_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An `at_most_once` work whose lease could not be renewed fails, and says why.
    """
    async with (
        in_memory() as repository,
        open_bench(repository, hooks=Patient()) as (
            scheduler,
            bench,
        ),
    ):
        bench.works.register("once", bench.sleep, at_most_once=True)
        repository.fail("renew", times=None)
        await scheduler.add_tasks([at(0, "a", "once")])
        task = await scheduler.wait("a")

    assert bench.log == [("a", 0), ("a cancelled", 25)]
    assert (task.state, task.attempt, task.done_at) == (TaskState.FAILED, 1, noon(25))
    assert task.err is not None
    assert "the work was stopped by lost lease" in task.err


async def test_a_renewal_that_hangs_cancels_the_work_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work is cancelled in time, too, if the store does not answer; and an answer that
    comes late is none about the runs that have begun since.
    """
    async with (
        in_memory() as repository,
        open_watched(repository) as (scheduler, bench, dispatcher),
    ):
        repository.delay("renew", 100)
        await scheduler.add_tasks([at(0, "a", "sleep", param={"seconds": 35})])
        task = await scheduler.wait("a")

    starts = [when for _, when in bench.starts]
    assert starts == [0, 25, 50, 75, 100]
    assert dispatcher.stops() == [(n, StopReason.LOST_LEASE) for n in (1, 2, 3, 4)]
    assert (task.state, task.done_at) == (TaskState.DONE, noon(135))
    # The one that hung is followed by the next as soon as that is due.
    assert renewals(repository) == [10, 110, 120, 130]


async def test_a_renewal_that_comes_back_just_in_time_saves_the_work(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A renewal that was tried again until it succeeded keeps the work running.
    """

    async def again(
        operations: Sequence[Operation], error: Exception, action: HookAction
    ) -> HookAction:
        await trio.sleep(4)
        return HookAction.RETRY

    async with (
        in_memory() as repository,
        open_bench(repository, hooks=PartialHooks(on_update_error=again)) as (
            scheduler,
            bench,
        ),
    ):
        repository.fail("renew", times=2)
        await scheduler.add_tasks([at(0, "a", "sleep", param={"seconds": 40})])
        await scheduler.wait("a")

    assert renewals(repository) == [10, 14, 18, 28, 38]
    assert bench.log == [("a", 0), ("a done", 40)]


async def test_a_work_that_does_not_end_with_its_lease_gets_it_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A cancelled work that takes its time to end keeps others from its task as soon as the
    store works again.
    """
    async with (
        in_memory() as repository,
        open_bench(repository, hooks=Patient()) as (scheduler, bench),
    ):
        repository.fail("renew", times=2)
        await scheduler.add_tasks([at(0, "a", "stubborn", param={"seconds": 55})])
        await scheduler.wait("a")

    assert bench.log == [("a", 0), ("a done", 55)]
    assert renewals(repository) == [10, 20, 30, 40, 50]


async def test_a_lease_counts_from_before_its_claim(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If the answer to a claim comes late, the work has the less time.
    """
    async with (
        in_memory() as repository,
        open_bench(repository, hooks=Patient()) as (scheduler, bench),
    ):
        repository.fail("renew", times=None)
        await scheduler.add_tasks([at(3, "a", "sleep"), at(15, "b", "sleep")])
        repository.delay("apply", 8, after=True, when=lambda call: trio.current_time() == 3)
        await trio.sleep(28.5)

    assert bench.log[:2] == [("a", 11), ("b", 15)]
    assert sorted(bench.log[2:4]) == [("a cancelled", 28), ("b cancelled", 28)]


async def test_a_renewal_says_nothing_of_a_claim_under_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A claim that was begun before a renewal, and answered while that went on, is leased
    since it was begun.
    """
    ledger = Ledger()
    first, second = stored("a", attempt=1), stored("b", attempt=1)
    ledger.claimed([first], 0)
    runs = ledger.renewing()
    ledger.claimed([second], 9)
    ledger.renewed(runs, 10)
    assert ledger.held_since == 9

    assert ledger.renewing() == [first, second]
    ledger.renewed([first, second], 20)
    assert ledger.held_since == 20


@pytest.mark.parametrize("action", HookAction)
async def test_hooks_decide_about_renewals_that_fail(
    autojump_clock: trio.testing.MockClock, action: HookAction
) -> None:
    """
    A hook is told of a renewal that fails, as of an error about no operations, and
    decides whether it is tried again at once, a third of a lease later, or never.
    """
    hooks = Patient(action)
    error = RepositoryError("no")
    log: list[tuple[str, float]] = []
    repository: FaultyRepository | None = None

    async def run() -> None:
        nonlocal log, repository
        async with in_memory() as repository:
            repository.fail("renew", error)
            async with open_bench(repository, hooks=hooks) as (scheduler, bench):
                log = bench.log
                await scheduler.add_tasks([at(0, "a", "sleep", param={"seconds": 25})])
                await scheduler.wait("a")

    if action is HookAction.RAISE:
        # The scheduler's, and who waited.
        with pytest.RaisesGroup(
            pytest.RaisesGroup(pytest.RaisesExc(check=lambda raised: raised is error)),
            SchedulerNotRunningError,
        ):
            await run()
    else:
        await run()
    assert repository is not None
    assert hooks.errors == [((), error)]
    last, calls = {
        HookAction.RAISE: (("a cancelled", 10), [10]),
        HookAction.IGNORE: (("a done", 25), [10, 20]),
        HookAction.RETRY: (("a done", 25), [10, 10, 20]),
    }[action]
    assert log == [("a", 0), last]
    assert renewals(repository) == calls


# -- leases that are lost -------------------------------------------------------------


async def test_a_run_that_has_lost_its_task_is_cancelled(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    A run whose task somebody else has taken is cancelled at the next renewal, and leaves
    no trace in the task.
    """
    async with (
        opened(sqlite_url, "me") as mine,
        opened(sqlite_url, "other") as others,
        open_watched(mine) as (scheduler, bench, dispatcher),
    ):
        await scheduler.add_tasks([at(0, "a", "sleep")])
        await trio.sleep(5)
        taken = await take_over(others)
        await trio.sleep(20)

        assert bench.log == [("a", 0), ("a cancelled", 10)]
        assert dispatcher.stops() == [(1, StopReason.LOST_LEASE)]
        assert await scheduler.get("a") == taken
        assert taken.attempt == 2
        assert scheduler.statistics().running == 0


async def test_it_is_told_once_that_a_run_has_lost_its_task(
    autojump_clock: trio.testing.MockClock,
    sqlite_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    Of a work that goes on, though it was cancelled, no warning comes with each renewal.
    """
    async with opened(sqlite_url, "me") as mine, open_bench(mine) as (scheduler, bench):
        await scheduler.add_schedule(
            "s", Interval(100), "stubborn", {"seconds": 95}, overlap="replace"
        )
        await trio.sleep(150)
        await scheduler.update_schedule("s", trigger=Interval(20))
        await trio.sleep(100)
        running = len(bench.starts)
        assert running == len({task_id for task_id, _ in bench.starts})
        await scheduler.remove_schedule("s")
        await scheduler.drain()
        told = [each for each in caplog.messages if each.endswith("has lost its task")]
        assert len(told) == len(set(told)) == running - 1


async def test_leases_at_the_end_of_time(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    In the last seconds of the year 9999, too, tasks run, and their leases are renewed.
    """
    almost = datetime(9999, 12, 31, 23, 59, 45, tzinfo=UTC)
    async with (
        opened(sqlite_url, "me") as mine,
        open_bench(mine, clock=TrioClock(almost, 0.0)) as (scheduler, bench),
    ):
        await scheduler.add_schedule(
            "s", Interval(10), "sleep", {"seconds": 40}, overlap="allow"
        )
        await scheduler.drain()
        states = {task.state for task in await scheduler.find(TaskQuery())}
    assert (bench.starts, states) == ([(bench.ids()[0], 5.0)], {TaskState.DONE})


async def test_a_result_without_a_lease_is_refused(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    What a run reports whose task somebody else has taken is refused, though it has the
    newest attempt but one.
    """
    async with (
        opened(sqlite_url, "me") as mine,
        opened(sqlite_url, "other") as others,
        open_bench(mine) as (scheduler, bench),
    ):
        await scheduler.add_tasks([at(0, "a", "sleep", param={"seconds": 7})])
        await trio.sleep(5)
        taken = await take_over(others)
        await trio.sleep(20)

        assert bench.log == [("a", 0), ("a done", 7)]
        assert await scheduler.get("a") == taken
        assert scheduler.statistics().done == 0
        done = await others.mark_done(taken, noon(26))
        assert await scheduler.wait("a") == done


@pytest.mark.parametrize(
    ("seconds", "end"), [(7, ("a done", 7)), (60, ("a cancelled", 10))]
)
async def test_runs_are_told_apart_by_name(
    autojump_clock: trio.testing.MockClock,
    sqlite_url: str,
    seconds: float,
    end: tuple[str, float],
) -> None:
    """
    A run of the same attempt under another name is somebody else's: neither its lease is
    renewed, nor the result recorded, of one that has no task any more.
    """
    async with (
        opened(sqlite_url, "me") as mine,
        opened(sqlite_url, "other") as others,
        open_bench(mine) as (scheduler, bench),
    ):
        await scheduler.add_tasks([at(0, "a", "sleep", param={"seconds": seconds})])
        await trio.sleep(5)
        await others.recover(RecoverAction.FAIL, noon(FOR_EVER))
        await others.delete_ended()
        await others.add([stored("a", "sleep")])
        [taken] = (await others.claim(1, noon(FOR_EVER))).tasks
        await trio.sleep(6)

        assert bench.log == [("a", 0), end]
        assert taken.attempt == 1
        assert await scheduler.get("a") == taken


# -- leases of others -----------------------------------------------------------------


async def test_ones_own_tasks_are_recovered_at_once(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    A scheduler that starts again under its name takes up at once what it had left.
    """
    await left_by(sqlite_url, "me", stored("a"))
    async with (
        opened(sqlite_url, "me") as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        task = await scheduler.wait("a")

    assert bench.log == [("a", 0)]
    assert (task.attempt, task.interruptions) == (2, 1)


async def test_those_of_the_living_are_left_alone(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    What others run is not touched until their lease is over; then it is recovered, within
    a third of a lease.
    """
    await left_by(sqlite_url, "other", stored("a"))
    async with (
        opened(sqlite_url, "me", poll=1) as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await trio.sleep(35)
        assert bench.log == []
        task = await scheduler.wait("a")

    assert bench.log == [("a", 40)]
    assert (task.attempt, task.interruptions) == (2, 1)


async def test_expired_leases_are_recovered_at_the_start(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    A scheduler that starts takes what others have let go before.
    """
    await left_by(sqlite_url, "other", stored("a"))
    await trio.sleep(100)
    async with (
        opened(sqlite_url, "me") as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await scheduler.wait("a")

    assert bench.log == [("a", 100)]


async def test_expired_leases_are_recovered_by_who_is_busy(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    Who renews leases of its own recovers at the same time what others have let go.
    """
    await left_by(sqlite_url, "other", stored("a"))
    async with (
        opened(sqlite_url, "me") as repository,
        open_bench(repository) as (scheduler, bench),
    ):
        await scheduler.add_tasks([at(5, "b", "sleep", param={"seconds": 40})])
        await scheduler.wait("a")
        assert scheduler.statistics().reverted == 1

    assert bench.log[:2] == [("b", 5), ("a", 35)]


@pytest.mark.parametrize("recover", ["revert", "fail"])
async def test_what_must_not_be_repeated_fails_when_it_is_recovered(
    autojump_clock: trio.testing.MockClock, sqlite_url: str, recover: str
) -> None:
    """
    A task of others that must not be repeated fails when their lease is over, as any does
    under ``recover="fail"``, and who listens is told.
    """
    await left_by(sqlite_url, "other", stored("a"), once=recover == "revert")
    told: list[Task] = []

    async def listen(task: Task) -> None:
        told.append(task)

    async with (
        # Not at the moment of a renewal: then who waits may be told first of the two.
        opened(sqlite_url, "me", poll=7) as repository,
        open_bench(repository, recover=recover) as (scheduler, bench),
    ):
        scheduler.add_on_task_done(listen)
        task = await scheduler.wait("a")
        assert scheduler.statistics().failed == 1

    assert bench.log == []
    assert told == [task]
    assert (task.state, task.err, task.done_at) == (TaskState.FAILED, RECOVERED, noon(40))


async def test_what_is_to_be_left_is_left(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    With ``recover="leave"`` nobody's tasks are touched, however old.
    """
    await left_by(sqlite_url, "me", stored("a"))
    await left_by(sqlite_url, "other", stored("b"))
    async with (
        opened(sqlite_url, "me", poll=1) as repository,
        open_bench(repository, recover="leave") as (scheduler, bench),
    ):
        await trio.sleep(1000)
        states = {task.state for task in await scheduler.find()}

    assert bench.log == []
    assert states == {TaskState.DISPATCHED}


# -- what others do -------------------------------------------------------------------


async def test_who_waits_hears_of_ends_elsewhere(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    Who waits for a task that ends in another scheduler is told at the next look.
    """
    async with (
        opened(sqlite_url, "me", poll=1) as mine,
        opened(sqlite_url, "other", poll=1) as others,
        open_bench(mine) as (scheduler, _),
    ):
        await scheduler.add_tasks([at(0, "a", "sleep", param={"seconds": 5.5})])
        async with open_scheduler(WorkRegistry(), others) as waiting:
            task = await waiting.wait("a")

            assert trio.current_time() == 6
            assert task == await scheduler.get("a")
    assert task.state is TaskState.DONE


async def test_who_waits_hears_of_deletions_elsewhere(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    Who waits for a task that another scheduler has forgotten is told it is not there.
    """
    async with (
        opened(sqlite_url, "me", poll=1) as mine,
        opened(sqlite_url, "other", poll=1) as others,
        open_scheduler(WorkRegistry(), mine) as scheduler,
        trio.open_nursery() as nursery,
    ):
        await others.add([stored("a", seconds=100)])

        async def wait() -> None:
            with pytest.raises(TaskNotFoundError):
                await scheduler.wait("a")

        nursery.start_soon(wait)
        await trio.sleep(0.5)
        await others.cancel("a", noon(0.5))
        await others.delete_ended()
        await trio.sleep(1)
        assert not nursery.child_tasks


async def test_errors_of_looks_at_others_are_for_the_hooks(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    A hook is told that ends elsewhere could not be looked for, and who waits goes on.
    """
    errors: list[Exception] = []

    async def ignore(error: Exception, action: HookAction) -> HookAction:
        errors.append(error)
        return HookAction.IGNORE

    async with opened(sqlite_url, "me", poll=1) as mine:
        repository = FaultyRepository(mine)
        async with open_bench(repository, hooks=PartialHooks(on_get_next_error=ignore)) as (
            scheduler,
            _,
        ):
            await mine.add([stored("a", "unknown", seconds=100)])
            repository.fail("find", times=2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scheduler.wait, "a")
                await trio.sleep(0.5)
                await mine.cancel("a", noon(0.5))
            assert trio.current_time() == 3
    assert [str(error) for error in errors] == ["a fault was injected here"] * 2


async def test_drain_hears_of_ends_elsewhere(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    `drain` returns soon after another scheduler has ended what was pending.
    """
    async with (
        opened(sqlite_url, "me", lease=FOR_EVER, poll=1) as mine,
        opened(sqlite_url, "other", lease=FOR_EVER, poll=1) as others,
        open_bench(mine) as (scheduler, bench),
        open_bench(others) as (other, elsewhere),
    ):
        # The other's timer knows nothing of the task before it looks again, at 11.
        await trio.sleep(10.25)
        await scheduler.add_tasks([at(10.5, "a")])
        await other.drain()
        assert 10.5 < trio.current_time() <= 11.5
    assert len(bench.log) + len(elsewhere.log) == 1


async def test_drain_waits_for_what_runs_elsewhere(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    `drain` waits for tasks that other schedulers run.
    """
    async with (
        opened(sqlite_url, "me", poll=1) as mine,
        opened(sqlite_url, "other", poll=1) as others,
        open_bench(mine) as (scheduler, _),
        open_bench(others) as (other, _),
    ):
        # When both sleep, the one that adds a task is the one that knows of it.
        await trio.sleep(0.25)
        await scheduler.add_tasks([at(0, "a", "sleep", param={"seconds": 9})])
        await trio.sleep(0.25)
        await other.drain()
        assert trio.current_time() == 0.5 + 511 / 512 + 8


async def test_drain_does_not_wait_for_what_is_left(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    `drain` does not wait for tasks that nobody runs, and that are to be left so.
    """
    await left_by(sqlite_url, "me", stored("a"))
    async with (
        opened(sqlite_url, "me", poll=1) as mine,
        open_bench(mine, recover="leave") as (scheduler, _),
    ):
        await scheduler.drain()
        assert trio.current_time() == 0


# -- a long time ----------------------------------------------------------------------


@pytest.mark.uncovered
async def test_a_month_on_a_sqlite_file(
    autojump_clock: trio.testing.MockClock, sqlite_url: str
) -> None:
    """
    Each of 10,000 tasks over 30 days starts at the very moment it is scheduled for, though
    the store works in threads.
    """
    source = random.Random(30)
    clock = TrioClock(NOON, 0.0)
    works = WorkRegistry()
    lateness: list[float] = []

    @works.register("note")
    async def note() -> None:
        due = current_task().scheduled_at
        lateness.append((clock.now() - due).total_seconds())

    # Ten for each, as a store in threads takes a millisecond for every step.
    moments = [source.randrange(30 * 24 * 3600) for _ in range(1000)] * 10
    async with (
        opened(sqlite_url, "me", poll=None) as repository,
        open_scheduler(works, repository, max_workers=20, clock=clock) as scheduler,
    ):
        await scheduler.add_tasks(
            [TaskParam(work_id="note", scheduled_at=noon(seconds)) for seconds in moments]
        )
        await trio.sleep_until(max(moments) + 1)

    assert lateness == [0.0] * 10_000


# -- what a write costs -----------------------------------------------------------------


async def test_a_claim_is_written_with_the_results_that_made_room_for_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    As long as more is due than there are workers, each claim but the first shares its
    transaction with the results before it, whose turn in Trio's loop ever comes first.
    """
    works = WorkRegistry()

    @works.register
    async def note() -> None:
        pass

    batches: list[Sequence[Operation]] = []
    async with open_sql_repository("sqlite://") as repository:
        apply = repository.store.apply

        async def count(operations: Sequence[Operation]) -> Any:
            batches.append(operations)
            return await apply(operations)

        repository.store.apply = count  # type: ignore[method-assign]  # watched
        await repository.add([stored(str(number)) for number in range(1_000)])
        batches.clear()
        async with open_scheduler(works, repository, max_workers=10) as scheduler:
            await scheduler.drain()
    first, *full = batches[:100]
    assert [type(each) for each in first] == [ClaimTasks]
    for batch in full:
        assert Counter(map(type, batch)) == {EndTask: 10, ClaimTasks: 1}
