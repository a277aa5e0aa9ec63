"""Many schedules added in one go: all of them or none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
import trio
import trio.testing
from faulty_driver import COMMIT, Fault, closed, faulty
from stores import ListStore
from support import TroubledRepository, noon, open_bench
from trio.testing import MockClock

from trio_gokugen import (
    HeapRepository,
    HookAction,
    Interval,
    InvalidTaskError,
    NoSchedulesError,
    PartialHooks,
    PoolNotFoundError,
    RepositoryError,
    Schedule,
    Scheduler,
    SchedulerNotRunningError,
    SchedulesRefusedError,
    TaskQuery,
    TaskState,
    TimedRepository,
)
from trio_gokugen._trigger import BaseTrigger
from trio_gokugen.abc import OnSchedule, Operation
from trio_gokugen.sql import open_sql_repository

pytestmark = pytest.mark.tables


def schedule(schedule_id: str, work_id: str = "note", **fields: Any) -> Schedule:
    fields = {"trigger": Interval(60), "created_at": noon(-1e6), **fields}
    return Schedule(id=schedule_id, work_id=work_id, **fields)


async def ids(scheduler: Scheduler) -> list[str]:
    return [each.id for each in await scheduler.find_schedules()]


# -- all of them ----------------------------------------------------------------------


async def test_many_are_added_in_one_write(autojump_clock: MockClock) -> None:
    """
    All schedules are one batch, are added as of now, and then run as each one says.
    """
    repository = TroubledRepository()
    async with open_bench(repository) as (scheduler, bench):
        await trio.sleep(5)
        wanted = [
            schedule("b", trigger=Interval(30)),
            schedule("a", "sleep", param={"seconds": 3}, priority=2, jitter=1),
            schedule("paused", paused=True),
        ]
        added = await scheduler.add_schedules(iter(wanted))
        assert [each.id for each in added] == ["b", "a", "paused"]
        assert [each.definition for each in added] == [each.definition for each in wanted]
        assert [each.created_at for each in added] == [noon(5)] * 3
        assert [each.paused for each in added] == [False, False, True]
        assert added == sorted(await scheduler.find_schedules(), key=_as_wanted)
        await trio.sleep(60)
    [batch] = [batch for batch in repository.batches if isinstance(batch[0], OnSchedule)]
    assert len(batch) == 3
    assert [when for _, when in bench.starts][:2] == [30.0, 60.0]


def _as_wanted(each: Schedule) -> int:
    return ["b", "a", "paused"].index(each.id)


async def test_to_repeat_it_changes_nothing(autojump_clock: MockClock) -> None:
    """
    Schedules that are there stay as they are, or are changed to be as they are given:
    how they stand is not what is given.
    """
    async with open_bench() as (scheduler, _):
        first = await scheduler.add_schedules([schedule("a"), schedule("b")])
        await trio.sleep(61)
        stand = await scheduler.find_schedules()
        assert [each.runs for each in stand] == [1, 1]
        assert await scheduler.add_schedules(first) == stand
        [_, changed] = await scheduler.add_schedules(
            [schedule("a"), schedule("b", trigger=Interval(7))]
        )
        assert (changed.runs, changed.next_at) == (1, noon(62))
        await scheduler.remove_schedule("a")
        [anew] = await scheduler.add_schedules(stand[:1])
        assert (anew.runs, anew.last_at, anew.next_at) == (0, None, noon(120))


async def test_several_add_at_the_same_time(autojump_clock: MockClock) -> None:
    """
    Who adds while others are being added has his own in one write, too.
    """
    repository = TroubledRepository()

    async def slow(_: Sequence[Operation]) -> None:
        await trio.sleep(1)

    repository.before_apply = slow
    async with open_bench(repository) as (scheduler, _):
        async with trio.open_nursery() as nursery:
            for pair in "ab", "bc", "de":
                nursery.start_soon(scheduler.add_schedules, [*map(schedule, pair)])
                await trio.sleep(0.25)
        assert await ids(scheduler) == [*"abcde"]
    sizes = [len(batch) for batch in repository.batches if isinstance(batch[0], OnSchedule)]
    assert sizes == [2, 4]


async def test_none_at_all(autojump_clock: MockClock) -> None:
    """
    To add no schedules is a checkpoint, and nothing else.
    """
    async with open_bench() as (scheduler, _):
        with trio.testing.assert_checkpoints():
            assert await scheduler.add_schedules([]) == []


# -- or none --------------------------------------------------------------------------


async def test_all_refusals_are_told_together(autojump_clock: MockClock) -> None:
    """
    If some cannot be added, none is, and the error names each of them and all that is wrong
    with it.
    """
    wanted = [
        schedule("good"),
        schedule("nobody's", "no such work"),
        schedule("wrong", "sleep", param={"hours": 1}),
        schedule("good", "sleep"),
        schedule("bad", "no such work", when="never", pool="gone"),
        schedule("bad", "sleep", param={"hours": 1, "seconds": 2}, pool="gone"),
    ]
    no_work = "no work is registered as 'no such work'"
    no_condition = "no condition is registered as 'never'"
    no_pool = str(PoolNotFoundError("gone", ()))
    too_much = "param: has 'hours', which the work does not take"
    async with open_bench() as (scheduler, _):
        with pytest.raises(SchedulesRefusedError) as caught:
            await scheduler.add_schedules(wanted)
        assert caught.value.refusals == (
            ("nobody's", no_work),
            ("wrong", too_much),
            ("good", "id: is given twice"),
            ("bad", f"{no_work}; {no_condition}; {no_pool}"),
            ("bad", f"id: is given twice; {too_much}; {no_pool}"),
        )
        assert str(caught.value).startswith(
            '5 refused, none added:\n  "nobody\'s": no work is registered'
        )
        assert caught.value.added == ()
        assert await ids(scheduler) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, "schedules: must be Schedules, not 7"),
        ("crontab", "schedules: must be Schedules, not 'crontab': load_schedules reads"),
        (schedule("a"), "schedules: must be Schedules, not Schedule"),
        ([schedule("a"), "b"], "schedules[1]: must be a Schedule, not 'b'"),
    ],
    ids=["number", "path", "single", "text"],
)
async def test_what_are_no_schedules(
    given: Any, message: str, autojump_clock: MockClock
) -> None:
    """
    What is not schedules is refused by name, and none is added.
    """
    async with open_bench() as (scheduler, _):
        with pytest.raises(InvalidTaskError) as caught:
            await scheduler.add_schedules(given)
        assert str(caught.value).startswith(message)
        assert await ids(scheduler) == []


async def test_a_repository_without_schedules(autojump_clock: MockClock) -> None:
    """
    A repository that keeps tasks only says so.
    """
    async with open_bench(TimedRepository(ListStore())) as (scheduler, _):
        with pytest.raises(NoSchedulesError):
            await scheduler.add_schedules([schedule("a"), schedule("b")])


async def test_a_scheduler_that_has_stopped(autojump_clock: MockClock) -> None:
    """
    A scheduler that stops meanwhile, or has stopped, adds none, and says so.
    """
    repository = HeapRepository()
    async with open_bench(repository) as (scheduler, _):
        queue = scheduler._running().updates.queue
        async with trio.open_nursery() as nursery:

            async def add() -> None:
                with pytest.raises(SchedulerNotRunningError):
                    await scheduler.add_schedules([schedule("a"), schedule("b")])

            nursery.start_soon(add)
            await trio.lowlevel.checkpoint()
            queue.close()
        await scheduler.stop()
        with pytest.raises(SchedulerNotRunningError):
            await scheduler.add_schedules([schedule("a")])
    assert await repository.find_schedules() == []


@pytest.mark.parametrize("steps", range(12))
async def test_who_is_cancelled(steps: int, autojump_clock: MockClock) -> None:
    """
    Whenever the caller is cancelled, all schedules are added or none, and who has an
    answer has them.
    """
    repository = TroubledRepository()
    answers: list[list[Schedule]] = []

    async def slow(_: Sequence[Operation]) -> None:
        await trio.sleep(1)

    repository.before_apply = slow
    async with open_bench(repository) as (scheduler, _):
        async with trio.open_nursery() as nursery:

            async def add() -> None:
                wanted = [schedule(each) for each in "abc"]
                answers.append(await scheduler.add_schedules(wanted))

            nursery.start_soon(add)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert await ids(scheduler) == (["a", "b", "c"] if answers else [])


class OddTrigger(BaseTrigger):
    """Of somebody's own: a database cannot keep it."""

    def next_after(self, moment: datetime) -> datetime | None:
        return None

    def explain(self) -> str:
        return "Never"

    def to_data(self) -> dict[str, Any]:
        return {"odd": 1}


async def test_what_the_database_refuses(database_url: str) -> None:
    """
    If the database itself refuses one, the error says so, and which are there.
    """
    async with (
        open_sql_repository(database_url) as repository,
        open_bench(repository) as (scheduler, _),
    ):
        wanted = [schedule("a"), schedule("odd", trigger=OddTrigger()), schedule("c")]
        with pytest.raises(SchedulesRefusedError) as caught:
            await scheduler.add_schedules(wanted)
        [(refused, reason)] = caught.value.refusals
        assert refused == "odd"
        assert "cannot be kept outside of memory" in reason
        assert caught.value.added == ("a", "c")
        assert await ids(scheduler) == ["a", "c"]


# -- and nothing between --------------------------------------------------------------


async def ignore(
    operations: Sequence[Operation], error: Exception, action: HookAction
) -> HookAction:
    return HookAction.IGNORE


async def added_with(url: str, fault: Fault) -> bool:
    """Add schedules with a fault; whether they are there then."""
    armed = False
    fault.counts = lambda statement: (
        armed and statement.startswith(("INSERT", "UPDATE", "DELETE", COMMIT))
    )
    hooks = PartialHooks(on_update_error=ignore)
    async with (
        open_sql_repository(url) as repository,
        open_bench(repository, hooks=hooks) as (scheduler, _),
    ):
        await trio.testing.wait_all_tasks_blocked()
        armed = True
        try:
            await scheduler.add_schedules([schedule(each) for each in "abc"])
        except RepositoryError:
            assert fault.struck_at is not None
        armed = False
        pending = await scheduler.find(TaskQuery(states={TaskState.SCHEDULED}))
        found = await ids(scheduler)
        assert [task.schedule_id for task in pending] == found
        assert found in ([], ["a", "b", "c"])
        for each in found:
            await scheduler.remove_schedule(each)
        return bool(found)


def test_a_database_that_fails_half_way(database_url: str) -> None:
    """
    Whichever statement fails as schedules are added, none of them is there.
    """
    for number in itertools.count(1):
        fault = Fault(number, closed)
        with faulty(fault):
            clock = MockClock(autojump_threshold=0)
            there = trio.run(added_with, database_url, fault, clock=clock)
        if fault.struck_at is None:
            assert there
            assert number > 3
            return
        assert not there, fault.struck_at


async def test_a_repository_that_fails(autojump_clock: MockClock) -> None:
    """
    What the repository raises that has failed comes to the caller, and none is added.
    """
    repository = TroubledRepository()
    hooks = PartialHooks(on_update_error=ignore)

    async def fail(_: Sequence[Operation]) -> None:
        raise RepositoryError("the disk is full")

    async with open_bench(repository, hooks=hooks) as (scheduler, _):
        repository.before_apply = fail
        with pytest.raises(RepositoryError, match="the disk is full"):
            await scheduler.add_schedules([schedule("a"), schedule("b")])
        repository.before_apply = None
        assert await ids(scheduler) == []
