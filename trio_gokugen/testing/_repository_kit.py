"""What the checks of a repository have in common: tasks, moments, states."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import attrs

from trio_gokugen._query import TaskQuery
from trio_gokugen._task import Task, TaskState
from trio_gokugen.abc import RepositoryLike, TaskRepository

from ._expect import expect_equal, refused
from ._suite import Check

OpenRepository: TypeAlias = Callable[[], AbstractAsyncContextManager[TaskRepository]]
"""Gives a context manager around a fresh, empty repository."""

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)


def moment(seconds: float) -> datetime:
    """The moment that many seconds after the epoch of all checks."""
    return EPOCH + timedelta(seconds=seconds)


def new(task_id: str, at: float = 0, **fields: Any) -> Task:
    """A task, scheduled unless a state is given."""
    fields.setdefault("work_id", "work")
    fields.setdefault("created_at", EPOCH)
    return Task(id=task_id, scheduled_at=moment(at), **fields)


class RepositoryChecks(list[Check[OpenRepository]]):
    """The checks of a module. Used as a decorator, it adds one."""

    def __call__(
        self, function: Callable[[TaskRepository], Awaitable[None]]
    ) -> Callable[[TaskRepository], Awaitable[None]]:
        """Add a check of a fresh repository."""

        @functools.wraps(function)
        async def check(open_repository: OpenRepository) -> None:
            async with open_repository() as repository:
                await function(repository)

        self.append(Check(check))
        return function

    def of_several(
        self, function: Callable[[OpenRepository], Awaitable[None]]
    ) -> Callable[[OpenRepository], Awaitable[None]]:
        """Add a check that opens repositories by itself."""
        self.append(Check(function))
        return function


# -- what a repository holds ------------------------------------------------------------


@attrs.frozen
class Contents:
    """All that a repository tells about what it holds."""

    tasks: list[Task]
    next_task: Task | None
    pending: Mapping[str, int]
    pools: Mapping[str, int]


async def contents(repository: RepositoryLike) -> Contents:
    """What the repository holds now."""
    return Contents(
        await repository.find(TaskQuery()),
        await repository.get_next(),
        _present(await repository.count_pending()),
        _present(await repository.count_pools()),
    )


def _present(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


@asynccontextmanager
async def unchanged(repository: RepositoryLike, what: str) -> AsyncGenerator[None]:
    """The block must leave the repository as it was."""
    before = await contents(repository)
    yield
    expect_equal(f"after {what}", await contents(repository), before)


@asynccontextmanager
async def refusal(
    repository: RepositoryLike, what: str, error_type: type[Exception], **fields: object
) -> AsyncGenerator[None]:
    """The block must be refused with such an error, and change nothing."""
    async with unchanged(repository, f"{what}, which was refused"):
        with refused(what, error_type, **fields):
            yield


async def expect_kept(repository: RepositoryLike, what: str, *expected: Task) -> None:
    """Each of these tasks must be kept exactly as it is here."""
    for task in expected:
        expect_equal(f"{what}, as it is kept", await repository.get(task.id), task)


# -- by lawful ways into every state ----------------------------------------------------


async def add_dispatched(repository: RepositoryLike, task_id: str, **fields: Any) -> Task:
    """Add a task and dispatch it. Returns the run."""
    task = new(task_id, **fields)
    await repository.add([task])
    return await repository.mark_dispatched(task_id, task.scheduled_at)


async def add_in_state(repository: RepositoryLike, task_id: str, state: TaskState) -> Task:
    """Add a task and bring it to a state. Returns it as it then stands."""
    if state in (TaskState.SCHEDULED, TaskState.CANCELLED):
        task = new(task_id)
        await repository.add([task])
        if state is TaskState.CANCELLED:
            task, _ = await repository.cancel(task_id, moment(3))
        return task
    run = await add_dispatched(repository, task_id)
    if state is TaskState.DISPATCHED:
        return run
    err = "it failed" if state is TaskState.FAILED else None
    return await repository.mark_done(run, moment(3), err)


async def claimed_ids(
    repository: RepositoryLike, limit: int = 1_000, at: float = 10_000
) -> list[str]:
    """The ids of the tasks that a claim gets, in order."""
    return [task.id for task in (await repository.claim(limit, moment(at))).tasks]
