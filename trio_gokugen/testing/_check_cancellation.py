"""Checks: a cancelled call has taken effect and returns, or has changed nothing.

Each method is called once for every checkpoint that it has, and cancelled there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias, cast

import attrs
import outcome
import trio.testing

from trio_gokugen._query import TaskQuery
from trio_gokugen._task import TaskState, TaskUpdate
from trio_gokugen.abc import (
    AddTasks,
    CancelTask,
    ClaimTasks,
    EndTask,
    RecoverAction,
    RevertTask,
    TaskRepository,
    UpdateTask,
)

from ._expect import expect, expect_equal
from ._repository_kit import (
    EPOCH,
    Contents,
    OpenRepository,
    RepositoryChecks,
    contents,
    moment,
    new,
)
from ._walk import comparable_error
from ._yields import cancelled_at

checks = RepositoryChecks()

_Call: TypeAlias = Callable[[TaskRepository], Awaitable[Any]]

_RUN = new("run", state=TaskState.DISPATCHED, attempt=1, dispatched_at=EPOCH)
_TASKS = [
    new("a"),
    new("b", 1, deadline=moment(2)),
    new("c", 60),
    _RUN,
    attrs.evolve(_RUN, id="other run", interruptions=2),
    new("ended", state=TaskState.DONE, done_at=EPOCH),
]

_CHANGES: Mapping[str, _Call] = {
    "add": lambda r: r.add([new("new", -5), new("newer", 5)]),
    "update": lambda r: r.update("a", TaskUpdate(scheduled_at=moment(90))),
    "cancel": lambda r: r.cancel("a", moment(5)),
    "mark_dispatched": lambda r: r.mark_dispatched("a", moment(5)),
    "claim": lambda r: r.claim(5, moment(5)),
    "mark_done": lambda r: r.mark_done(_RUN, moment(5)),
    "mark_cancelled": lambda r: r.mark_cancelled(_RUN, moment(5)),
    "revert": lambda r: r.revert(_RUN),
    "recover": lambda r: r.recover(RecoverAction.REVERT, moment(5)),
    "recover, failing": lambda r: r.recover(RecoverAction.FAIL, moment(5)),
    "renew": lambda r: r.renew([_RUN], RecoverAction.REVERT, moment(-5)),
    "delete_ended": lambda r: r.delete_ended(),
    "apply": lambda r: r.apply(
        [
            AddTasks([new("new", -5)]),
            CancelTask("c", moment(5)),
            UpdateTask("a", TaskUpdate(priority=3)),
            UpdateTask("run", TaskUpdate(priority=3)),
            ClaimTasks(2, moment(5)),
            EndTask(_RUN, moment(5), "no luck"),
            RevertTask(_TASKS[4]),
        ]
    ),
}
_READS: Mapping[str, _Call] = {
    "get": lambda r: r.get("a"),
    "get_next": lambda r: r.get_next(),
    "find": lambda r: r.find(TaskQuery(states={TaskState.SCHEDULED}), limit=2),
    "count_pending": lambda r: r.count_pending(),
    "count_pools": lambda r: r.count_pools(),
    "recover, leaving": lambda r: r.recover(RecoverAction.LEAVE, moment(5)),
}


def _plain(value: Any) -> Any:
    """A result to compare with that of the same call on another repository."""
    if isinstance(value, outcome.Error):
        return comparable_error(value.error)
    if isinstance(value, list | tuple):
        return [_plain(each) for each in cast("list[Any]", value)]
    return value


@checks.of_several
async def every_method_is_a_checkpoint(open_repository: OpenRepository) -> None:
    """Every call that succeeds yields to other Trio tasks, and can be cancelled."""
    for name, call in {**_CHANGES, **_READS}.items():
        async with open_repository() as repository:
            await repository.add(_TASKS)
            try:
                with trio.testing.assert_checkpoints():
                    await call(repository)
            except AssertionError:
                raise AssertionError(f"{name} is not a checkpoint") from None


@checks.of_several
async def a_cancelled_call_changes_nothing(open_repository: OpenRepository) -> None:
    """A call in a scope that is cancelled before raises `Cancelled`, without effect."""
    for name, call in {**_CHANGES, **_READS}.items():
        async with open_repository() as repository:
            await repository.add(_TASKS)
            before = await contents(repository)
            attempt = await cancelled_at(0, lambda: call(repository))  # noqa: B023
            expect(attempt.result is None, f"{name} ended with {attempt.result}")
            after = await contents(repository)
            expect_equal(f"after {name}, cancelled", after, before)


async def _effect(
    open_repository: OpenRepository, call: _Call
) -> tuple[Contents, outcome.Outcome[Any], Contents]:
    """What there is before the call, what comes of it, and what is there after it."""
    async with open_repository() as repository:
        await repository.add(_TASKS)
        before = await contents(repository)
        result = await outcome.acapture(call, repository)
        return before, result, await contents(repository)


async def _expect_atomic(open_repository: OpenRepository, name: str, call: _Call) -> None:
    """Cancel the call at its first checkpoint, its second, until it has no more."""
    before, result, after = await _effect(open_repository, call)
    expected = _plain(result.unwrap())
    number = 0
    was_cancelled = True
    while was_cancelled:
        number += 1
        async with open_repository() as repository:
            await repository.add(_TASKS)
            attempt = await cancelled_at(number, lambda: call(repository))
            now = await contents(repository)
        what = f"{name}, cancelled at its checkpoint {number},"
        if attempt.result is None:
            expect_equal(f"{what} raised Cancelled; after it", now, before)
        else:
            actual = _plain(attempt.result.value)
            expect_equal(f"{what} returned", actual, expected)
            expect_equal(f"{what} returned; after it", now, after)
        was_cancelled = attempt.was_cancelled


@checks.of_several
async def changes_are_atomic(open_repository: OpenRepository) -> None:
    """Cancelled at whatever point, a change takes effect and returns, or does nothing."""
    for name, call in _CHANGES.items():
        await _expect_atomic(open_repository, name, call)


@checks.of_several
async def reads_can_be_cancelled(open_repository: OpenRepository) -> None:
    """Cancelled at whatever point, a read returns what is there, or does nothing."""
    for name, call in _READS.items():
        await _expect_atomic(open_repository, name, call)


@checks.of_several
async def a_cancelled_change_can_be_repeated(open_repository: OpenRepository) -> None:
    """After a call that was cancelled, the same call works as if it were the first."""
    for name, call in _CHANGES.items():
        _, result, after = await _effect(open_repository, call)
        async with open_repository() as repository:
            await repository.add(_TASKS)
            cancelled = await cancelled_at(1, lambda: call(repository))  # noqa: B023
            if cancelled.result is None:
                again = await call(repository)
                what = f"{name}, once more,"
                expect_equal(f"{what} returned", _plain(again), _plain(result.unwrap()))
            expect_equal(f"after {name}", await contents(repository), after)
