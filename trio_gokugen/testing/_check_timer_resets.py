"""Checks: the timer hears of every change that moves the first pending task.

Each change is made while somebody sleeps, and again at every checkpoint of somebody who
is just about to: a change that lands while the next task is being read must not be lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import trio

from trio_gokugen._task import TaskState, TaskUpdate
from trio_gokugen.abc import (
    AddTasks,
    CancelTask,
    RecoverAction,
    TaskFilter,
    TaskRepository,
    UpdateTask,
)

from ._expect import expect_equal
from ._repository_kit import EPOCH, OpenRepository, RepositoryChecks, moment, new
from ._timer_kit import expect_time, timed, waiting
from ._yields import at_yield

checks = RepositoryChecks()

_Change: TypeAlias = Callable[[TaskRepository], Awaitable[Any]]

_ONLY = TaskFilter(frozenset({"work"}))
_RUN = new("run", 5, state=TaskState.DISPATCHED, attempt=1, dispatched_at=EPOCH)
_HEAD_DUE = 20.0
_TASKS = [
    new("head", _HEAD_DUE),
    new("next", 40),
    new("foreign", 8, work_id="foreign"),
    new("ended", state=TaskState.DONE, done_at=EPOCH),
    _RUN,
]


async def _expect_heard(
    open_repository: OpenRepository, change: _Change, task_id: str, due: float
) -> None:
    """After the change, whoever waits is told of this task when it is due."""
    async with open_repository() as repository:
        await repository.add(_TASKS)
        with timed(repository) as clock:
            async with waiting(repository, clock, _ONLY) as waiter:
                await change(repository)
                await waiter.expect_return(task_id, due)
    number = 0
    changed = True
    while changed:
        number += 1
        async with open_repository() as repository:
            await repository.add(_TASKS)
            changed = await _wait_and_change(repository, number, change, (task_id, due))


async def _wait_and_change(
    repository: TaskRepository, number: int, change: _Change, expected: tuple[str, float]
) -> bool:
    """Wait, with the change made as the wait comes to that checkpoint.

    Returns:
      Whether there was such a checkpoint before the timer's first sleep was over.
    """
    reached = trio.Event()
    changed = False

    async def change_when_reached() -> None:
        nonlocal changed
        await reached.wait()
        changed = trio.current_time() < began + _HEAD_DUE
        await change(repository)

    began = trio.current_time()
    with timed(repository) as clock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change_when_reached)
            with at_yield(number, reached.set):
                task = await repository.wait_until_due(_ONLY)
            told_at = clock.now()
            nursery.cancel_scope.cancel()
    if changed:
        task_id, due = expected
        what = f"after a change at checkpoint {number} of the wait, the timer told of"
        expect_equal(what, task.id, task_id)
        expect_time(f"{what} {task.id}", told_at, due)
    return changed


async def _expect_silence(open_repository: OpenRepository, change: _Change) -> None:
    """After the change nothing is pending, and the timer must not wake any more."""
    async with open_repository() as repository:
        await repository.add([new("head", _HEAD_DUE)])
        with timed(repository) as clock:
            async with waiting(repository, clock, _ONLY) as waiter:
                await change(repository)
                await waiter.expect_idle()


def _moved(task_id: str, at: float) -> _Change:
    update = TaskUpdate(scheduled_at=moment(at))
    return lambda repository: repository.update(task_id, update)


@checks.of_several
async def the_timer_hears_of_an_add(open_repository: OpenRepository) -> None:
    """A task added before the first is told of when it is due."""
    await _expect_heard(open_repository, lambda r: r.add([new("a", 6)]), "a", 6)
    many = [new("a", 90), new("b", 6), new("c", 7)]
    await _expect_heard(open_repository, lambda r: r.add(many), "b", 6)
    await _expect_heard(open_repository, lambda r: r.add([new("a", 30)]), "head", 20)


@checks
async def the_timer_hears_of_the_first_task(repository: TaskRepository) -> None:
    """A task added where nothing was pending is told of, after earlier ones have gone."""
    with timed(repository) as clock:
        for at in (10, 30):
            async with waiting(repository, clock) as waiter:
                await repository.add([new(f"t{at}", at)])
                await waiter.expect_return(f"t{at}", at)
            await repository.claim(1, clock.now())


@checks
async def the_timer_hears_of_an_overdue_task(repository: TaskRepository) -> None:
    """A task added after its time is told of at once."""
    await repository.add([new("late", 50)])
    with timed(repository) as clock:
        async with waiting(repository, clock) as waiter:
            await repository.add([new("overdue", -9)])
            await waiter.expect_return("overdue", 1)


@checks.of_several
async def the_timer_hears_of_an_advance(open_repository: OpenRepository) -> None:
    """A task moved ahead is told of at its new time, the first or another."""
    await _expect_heard(open_repository, _moved("next", 6), "next", 6)
    await _expect_heard(open_repository, _moved("head", 6), "head", 6)


@checks.of_several
async def the_timer_hears_of_a_postponement(open_repository: OpenRepository) -> None:
    """The first task, if it is postponed, is not told of at its old time."""
    await _expect_heard(open_repository, _moved("head", 30), "head", 30)
    await _expect_heard(open_repository, _moved("head", 60), "next", 40)


@checks.of_several
async def the_timer_hears_of_a_change_of_work(open_repository: OpenRepository) -> None:
    """A task that passes the filter since an update is told of; one that leaves is not."""
    await _expect_heard(
        open_repository,
        lambda r: r.update("foreign", TaskUpdate(work_id="work")),
        "foreign",
        8,
    )
    leave = TaskUpdate(work_id="foreign")
    await _expect_heard(open_repository, lambda r: r.update("head", leave), "next", 40)
    await _expect_silence(open_repository, lambda r: r.update("head", leave))


@checks.of_several
async def the_timer_hears_of_a_cancel(open_repository: OpenRepository) -> None:
    """A cancelled task is not told of, nor is the timer woken for it."""
    await _expect_heard(open_repository, lambda r: r.cancel("head", EPOCH), "next", 40)
    await _expect_silence(open_repository, lambda r: r.cancel("head", EPOCH))


@checks.of_several
async def the_timer_hears_of_a_dispatch(open_repository: OpenRepository) -> None:
    """A dispatched task is not told of, nor is the timer woken for it."""
    changes: list[_Change] = [
        lambda r: r.mark_dispatched("head", moment(20)),
        lambda r: r.claim(1, moment(20), _ONLY),
    ]
    for change in changes:
        await _expect_heard(open_repository, change, "next", 40)
        await _expect_silence(open_repository, change)


@checks.of_several
async def the_timer_hears_of_an_expiry(open_repository: OpenRepository) -> None:
    """A task that has expired is not told of, nor is the timer woken for it."""

    async def expire(repository: TaskRepository) -> None:
        await repository.update("head", TaskUpdate(deadline=moment(21)))
        await trio.sleep(1)  # the timer has heard of this, and sleeps again
        await repository.claim(1, moment(21), _ONLY)

    await _expect_heard(open_repository, expire, "next", 40)
    await _expect_silence(open_repository, expire)


@checks.of_several
async def the_timer_hears_of_a_revert(open_repository: OpenRepository) -> None:
    """A task that is put back is told of when it is due."""
    await _expect_heard(open_repository, lambda r: r.revert(_RUN), "run", 5)


@checks.of_several
async def the_timer_hears_of_a_recovery(open_repository: OpenRepository) -> None:
    """A recovered task is told of when it is due."""
    await _expect_heard(
        open_repository, lambda r: r.recover(RecoverAction.REVERT, EPOCH), "run", 5
    )


@checks.of_several
async def the_timer_outlasts_what_moves_nothing(open_repository: OpenRepository) -> None:
    """Ending, failing and deleting tasks that are not pending delays nobody."""

    async def change(repository: TaskRepository) -> None:
        await repository.mark_done(_RUN, EPOCH)
        await repository.cancel("next", EPOCH)
        await repository.delete_ended()
        await repository.recover(RecoverAction.FAIL, EPOCH)

    await _expect_heard(open_repository, change, "head", 20)


@checks.of_several
async def the_timer_hears_of_a_batch(open_repository: OpenRepository) -> None:
    """Changes made in a batch are heard of like single ones."""
    earlier = UpdateTask("next", TaskUpdate(scheduled_at=moment(7)))
    await _expect_heard(
        open_repository,
        lambda r: r.apply([CancelTask("head", EPOCH), earlier]),
        "next",
        7,
    )
    await _expect_heard(
        open_repository,
        lambda r: r.apply([AddTasks([new("head")]), AddTasks([new("a", 6)])]),
        "a",
        6,
    )
    cancel = CancelTask("head", EPOCH)
    await _expect_silence(open_repository, lambda r: r.apply([cancel]))
