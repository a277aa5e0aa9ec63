"""Checks: the timer tells of the first due task, on time, and sleeps otherwise."""

from __future__ import annotations

from datetime import UTC, datetime

import trio
import trio.testing

from trio_gokugen._clock import TrioClock
from trio_gokugen._errors import SchedulerAlreadyRunningError
from trio_gokugen._task import Task, TaskUpdate
from trio_gokugen.abc import KeyLimit, KeyRoom, OfPools, TaskFilter, TaskRepository

from ._expect import expect, expect_equal, refused
from ._repository_kit import (
    EPOCH,
    OpenRepository,
    RepositoryChecks,
    contents,
    moment,
    new,
    unchanged,
)
from ._timer_kit import A_TICK, SteppedClock, expect_time, timed, waiting
from ._yields import cancelled_at

checks = RepositoryChecks()


@checks
async def the_timer_is_started_once(repository: TaskRepository) -> None:
    """A timer that was started and not stopped cannot be started again."""
    with timed(repository):
        with refused("start_timer", SchedulerAlreadyRunningError):
            repository.start_timer(TrioClock(EPOCH))
        await repository.add([new("a", 5)])
        task = await repository.wait_until_due()
        expect_equal("what the timer told of, still started", task.id, "a")


@checks
async def the_timer_can_be_stopped_twice(repository: TaskRepository) -> None:
    """Stopping is harmless, before the start and after the stop; and starts go on."""
    repository.stop_timer()
    for start in (EPOCH, moment(1_000)):
        clock = TrioClock(start)
        with timed(repository, clock):
            await repository.add([new(str(start), (start - EPOCH).total_seconds() + 9)])
            await repository.wait_until_due()
            seconds = (clock.now() - start).total_seconds()
            expect(abs(seconds - 9) < A_TICK, f"the timer took {seconds} s, and not 9")
            await repository.claim(1, clock.now())
        repository.stop_timer()


@checks
async def the_timer_tells_on_time(repository: TaskRepository) -> None:
    """The task is told of at its `scheduled_at`: not earlier, and not later."""
    seconds = [0.25, 1, 1.000001, 7, 60, 61.5, 600]
    await repository.add([new(f"t{at}", at) for at in reversed(seconds)])
    with timed(repository) as clock:
        for at in seconds:
            task = await repository.wait_until_due()
            expect_equal("what the timer told of", task.id, f"t{at}")
            expect_time(f"the timer told of {task.id}", clock.now(), at)
            await repository.claim(1, clock.now())


@checks
async def the_timer_tells_of_the_first(repository: TaskRepository) -> None:
    """Of several due tasks, the first in the order of pending tasks is told."""
    await repository.add([new("b", 2), new("a", 1, priority=-1), new("c", 1)])
    with timed(repository) as clock:
        await trio.sleep(5)
        for task_id in "cab":
            task = await repository.wait_until_due()
            expect_equal("what the timer told of", task.id, task_id)
            await repository.claim(1, clock.now())


@checks
async def the_timer_tells_of_what_is_overdue(repository: TaskRepository) -> None:
    """A task that is due before anybody waits is told at once, as it stands."""
    task = new("a", -100, param={"b": 1})
    await repository.add([task, new("z", 9)])
    with timed(repository) as clock:
        told = await repository.wait_until_due()
        expect_equal("the task", told, task)
        expect_time("the timer told of it", clock.now(), 0)


@checks
async def waiting_changes_nothing(repository: TaskRepository) -> None:
    """Who waits gets the same task again unless somebody takes it."""
    await repository.add([new("a", 3), new("b", 4)])
    with timed(repository):
        async with unchanged(repository, "waiting"):
            told = [(await repository.wait_until_due()).id for _ in range(3)]
        expect_equal("what the timer told of", told, ["a", "a", "a"])


@checks
async def waiting_is_a_checkpoint(repository: TaskRepository) -> None:
    """Waiting yields to other Trio tasks, and can be cancelled, with a task due too."""
    await repository.add([new("a", -3)])
    with timed(repository):
        with trio.testing.assert_checkpoints():
            await repository.wait_until_due()
        attempt = await cancelled_at(0, repository.wait_until_due)
        expect_equal("what a cancelled wait returned", attempt.result, None)


@checks
async def the_timer_respects_the_filter(repository: TaskRepository) -> None:
    """Only tasks of the works named in the filter are told of, due or not."""
    await repository.add([new("a", 0, work_id="one"), new("b", 5, work_id="two")])
    with timed(repository) as clock:
        two = TaskFilter(frozenset({"two", "three"}))
        async with waiting(repository, clock, two) as waiter:
            waiter.expect_asleep()
            await repository.add([new("c", 2, work_id="one")])
            await repository.add([new("d", 4, work_id="three")])
            await waiter.expect_return("d", 4)
        async with waiting(repository, clock, TaskFilter(frozenset())) as waiter:
            await trio.sleep(20)
            waiter.expect_asleep()


@checks
async def the_timer_respects_the_pools(repository: TaskRepository) -> None:
    """Who waits for the tasks of a pool is told of those, whatever their work, only."""
    await repository.add([new("a", 0), new("b", 1, pool="q"), new("c", 9, pool="p")])
    with timed(repository) as clock:
        only = TaskFilter(pools=OfPools(frozenset({"p"}), frozenset()))
        async with waiting(repository, clock, only) as waiter:
            waiter.expect_asleep()
            await repository.add([new("d", 2), new("e", 3, pool="q")])
            await repository.update("a", TaskUpdate(pool="p", scheduled_at=moment(6)))
            await waiter.expect_return("a", 6)
        async with waiting(repository, clock, TaskFilter(pools=OfPools())) as waiter:
            await waiter.expect_return("d", 6)


@checks
async def the_timer_hears_of_room(repository: TaskRepository) -> None:
    """Who waits for tasks of which no more may run is told once there is room for one."""
    tasks = [new(name, n, param={"of": "me"}) for n, name in enumerate("ab")]
    await repository.add([*tasks, new("z", 90)])
    room = KeyRoom(KeyLimit(1, param="of"), {'"me"': 1})
    with timed(repository) as clock:
        only = TaskFilter(rooms=(KeyRoom(KeyLimit(1, meta="m")), room))
        async with waiting(repository, clock, only) as waiter:
            await trio.sleep((moment(20) - clock.now()).total_seconds())
            await repository.add([new("c", 5, param={"of": "me"})])
            waiter.expect_asleep()
            room.end(tasks[0])
            await waiter.expect_return("a", 20)
        room.begin(tasks[0])
        async with waiting(repository, clock, only) as waiter:
            await waiter.expect_return("z", 90)
        expect_equal("who is still told of room", list(room.listeners), [])


@checks
async def several_may_wait(repository: TaskRepository) -> None:
    """Everybody who waits is told of the first task of the own works."""
    await repository.add([new(name, at, work_id=name) for name, at in _LATE.items()])
    with timed(repository) as clock:
        one, two = (TaskFilter(frozenset({name})) for name in _LATE)
        async with (
            waiting(repository, clock, one) as first,
            waiting(repository, clock, two) as second,
            waiting(repository, clock) as third,
        ):
            await repository.add([new("soon", 5, work_id="two")])
            await first.expect_return("one", 10)
            await second.expect_return("soon", 5)
            await third.expect_return("soon", 5)


_LATE = {"one": 10, "two": 20}


@checks
async def nothing_pending_does_not_wake(repository: TaskRepository) -> None:
    """With nothing pending the timer does not wake at all, whatever else there is."""
    run = new("run")
    await repository.add([run, new("foreign", -5, work_id="foreign")])
    await repository.mark_dispatched("run", EPOCH)
    with timed(repository) as clock:
        only = TaskFilter(frozenset({"work"}))
        async with waiting(repository, clock, only) as waiter:
            await waiter.expect_idle()


@checks
async def distant_moments_are_harmless(repository: TaskRepository) -> None:
    """A task at the end of all years is slept for like any other."""
    last = datetime.max.replace(tzinfo=UTC)
    await repository.add([Task(id="z", work_id="w", scheduled_at=last, created_at=EPOCH)])
    with timed(repository) as clock:
        async with waiting(repository, clock) as waiter:
            await trio.sleep(500)
            waiter.expect_asleep()
            await repository.add([new("a", 600)])
            await waiter.expect_return("a", 600)


@checks
async def a_clock_set_forward_is_noticed(repository: TaskRepository) -> None:
    """If the wall clock jumps ahead, the timer sees it within `max_sleep` seconds."""
    clock = SteppedClock(max_sleep=30)
    await repository.add([new("a", 5_000)])
    with timed(repository, clock):
        async with waiting(repository, clock) as waiter:
            clock.offset = 6_000
            await waiter.expect_return("a", 6_000, until=6_031)


@checks
async def a_clock_set_back_is_noticed(repository: TaskRepository) -> None:
    """If the wall clock is set back, no task is told of before its time."""
    clock = SteppedClock(max_sleep=30)
    await repository.add([new("a", 10)])
    with timed(repository, clock):
        async with waiting(repository, clock) as waiter:
            clock.offset = -100
            await waiter.expect_return("a", 10, until=40)


@checks.of_several
async def a_cancelled_wait_leaves_nothing(open_repository: OpenRepository) -> None:
    """Cancelled at whatever point, a wait changes nothing, and the timer goes on."""
    number = 0
    was_cancelled = True
    while was_cancelled:
        number += 1
        async with open_repository() as repository:
            await repository.add([new("a", 5), new("b", 9)])
            before = await contents(repository)
            with timed(repository) as clock:
                attempt = await cancelled_at(number, repository.wait_until_due)
                after = await contents(repository)
                expect_equal("after a cancelled wait", after, before)
                task = await repository.wait_until_due()
                expect_equal("what the next wait told of", task.id, "a")
                expect_time("the next wait told of it", clock.now(), 5)
        was_cancelled = attempt.was_cancelled
