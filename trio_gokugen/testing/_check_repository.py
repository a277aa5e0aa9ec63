"""The suite for anybody's `TaskRepository`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

from trio_gokugen.abc import TaskRepository

from . import (
    _check_adding,
    _check_batches,
    _check_cancellation,
    _check_claiming,
    _check_concurrency,
    _check_ended,
    _check_finding,
    _check_keys,
    _check_order,
    _check_retries,
    _check_runs,
    _check_schedules,
    _check_timer,
    _check_timer_resets,
    _check_transitions,
    _check_updating,
)
from ._suite import Suite

OpenTaskRepository: TypeAlias = Callable[
    [], AbstractAsyncContextManager[TaskRepository] | TaskRepository
]
"""Gives a fresh, empty repository, or a context manager around one."""

SUITE = Suite(
    "check_repository",
    [
        *_check_adding.checks,
        *_check_transitions.checks,
        *_check_updating.checks,
        *_check_order.checks,
        *_check_claiming.checks,
        *_check_runs.checks,
        *_check_retries.checks,
        *_check_keys.checks,
        *_check_ended.checks,
        *_check_finding.checks,
        *_check_schedules.checks,
        *_check_batches.checks,
        *_check_cancellation.checks,
        *_check_concurrency.checks,
        *_check_timer.checks,
        *_check_timer_resets.checks,
    ],
)

REPOSITORY_CHECKS = SUITE.names
"""The names of the checks, in the order they run."""


async def check_repository(
    open_repository: OpenTaskRepository,
    *,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
) -> None:
    """Check that a repository keeps every promise of `trio_gokugen.abc`.

    ::

        @asynccontextmanager
        async def open_repository() -> AsyncGenerator[TaskRepository]:
            async with MyRepository(...) as repository:
                yield repository

        async def test_my_repository_keeps_its_promises(autojump_clock):
            await check_repository(open_repository)

    The suite lives on virtual time: it takes an hour and sleeps for none of it. If the
    Trio run it is called in has no clock that jumps, a `trio.testing.MockClock` with an
    `autojump_threshold`, it makes a Trio run of its own, in a thread. A repository that
    works in threads must keep the clock from jumping meanwhile.

    Args:
      open_repository: Called many times, each time for a fresh, empty repository: a
        context manager around one, or simply one. Several may be open at once, and must
        not share their tasks.
      only: Names of checks, if not all of `REPOSITORY_CHECKS` are to run.
      skip: Names of checks of promises that this repository doesn't make.

    Raises:
      AssertionError: names each promise that is broken, and says how.
    """

    @asynccontextmanager
    async def opened() -> AsyncGenerator[TaskRepository]:
        repository = open_repository()
        if isinstance(repository, AbstractAsyncContextManager):
            async with repository as entered:
                yield entered
        else:
            yield repository

    await SUITE.run(opened, only, skip)
