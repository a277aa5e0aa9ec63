"""The suite for anybody's `Dispatcher`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias

from trio_gokugen.abc import Dispatcher, WorkRegistry

from . import _check_outcomes, _check_stopping, _check_workers, _dispatcher_kit
from ._suite import Suite

OpenAnyDispatcher: TypeAlias = Callable[
    [WorkRegistry, int], AbstractAsyncContextManager[Dispatcher] | Dispatcher
]
"""Gives a fresh dispatcher for these works, of that size, or a context manager."""

SUITE = Suite(
    "check_dispatcher",
    [*_check_workers.checks, *_check_outcomes.checks, *_check_stopping.checks],
)

DISPATCHER_CHECKS = SUITE.names
"""The names of the checks, in the order they run."""

SAME_PROCESS_CHECKS = frozenset(_dispatcher_kit.SAME_PROCESS_CHECKS)
"""Those that need works to share memory and clock with the suite.

To be skipped by a dispatcher whose works run elsewhere, in real time.
"""

STOPPING_CHECKS = frozenset(_dispatcher_kit.STOPPING_CHECKS)
"""Those that need running work to be stopped.

To be skipped by a dispatcher whose executor cannot do that.
"""


async def check_dispatcher(
    open_dispatcher: OpenAnyDispatcher,
    *,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
) -> None:
    """Check that a dispatcher keeps every promise of `trio_gokugen.abc`.

    ::

        async def test_my_dispatcher_keeps_its_promises(autojump_clock):
            await check_dispatcher(MyDispatcher)

        async def test_my_process_pool_keeps_its_promises(autojump_clock):
            await check_dispatcher(
                lambda works, max_workers: MyProcessPool(works, workers=max_workers),
                skip=SAME_PROCESS_CHECKS,
            )

    The works it is given are functions of a module, so they can be imported by name in
    another process. The suite lives on virtual time, like `check_repository`. A
    dispatcher whose works run in threads or processes must keep the clock from jumping
    meanwhile.

    Args:
      open_dispatcher: Called many times with a registry of works and the number of
        workers, each time for a fresh dispatcher: a context manager around one, or
        simply one. It is started by the suite.
      only: Names of checks, if not all of `DISPATCHER_CHECKS` are to run.
      skip: Names of checks of promises that this dispatcher doesn't make: for works
        that run in another process `SAME_PROCESS_CHECKS`, for works that cannot be
        stopped `STOPPING_CHECKS`.

    Raises:
      AssertionError: names each promise that is broken, and says how.
    """

    @asynccontextmanager
    async def opened(works: WorkRegistry, max_workers: int) -> AsyncGenerator[Dispatcher]:
        dispatcher = open_dispatcher(works, max_workers)
        if isinstance(dispatcher, AbstractAsyncContextManager):
            async with dispatcher as entered:
                yield entered
        else:
            yield dispatcher

    await SUITE.run(opened, only, skip)
