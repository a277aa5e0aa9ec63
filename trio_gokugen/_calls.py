"""What the calls of a scheduler have in common: it must run, and know what is named."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager

import trio

from ._engine import Engine
from ._errors import (
    InvalidTaskError,
    PoolNotFoundError,
    SchedulerNotRunningError,
    WorkNotFoundError,
)
from ._json import JSON
from .abc import Dispatcher, TaskRepository, WorkRegistry


class Calls:
    """See above."""

    _works: WorkRegistry
    _repository: TaskRepository
    _dispatcher: Dispatcher
    _engine: Engine | None
    _turns: dict[tuple[str, str], trio.Event]

    def _running(self) -> Engine:
        if self._engine is None or self._engine.ended.is_set():
            raise SchedulerNotRunningError
        return self._engine

    def _check(
        self, work_id: str, param: Mapping[str, JSON], index: int | None = None
    ) -> None:
        try:
            self._works.get(work_id).check_param(param)
        except WorkNotFoundError:
            raise WorkNotFoundError(work_id, index) from None
        except InvalidTaskError as error:
            raise InvalidTaskError(error.field, error.reason, index) from None

    def _check_condition(self, name: str | None) -> None:
        if name is not None:
            self._works.get_condition(name)

    def _check_pools(self, *names: str | None) -> None:
        named = [name for name in names if name is not None]
        if not named:
            return
        pools = self._dispatcher.statistics().pools
        for name in named:
            if name not in pools:
                raise PoolNotFoundError(name, tuple(sorted(pools)))

    @asynccontextmanager
    async def _turn(self, kind: str, id: str) -> AsyncGenerator[Callable[[], None]]:
        """Let changes of a work and its param go one at a time, of a task or a schedule.

        Gives what ends the turn early: a change that waits for a hook's decision must
        not keep one from going on that the hook itself asks for.
        """
        key = kind, id
        while key in self._turns:
            await self._turns[key].wait()
        through = self._turns[key] = trio.Event()

        def end() -> None:
            if not through.is_set():
                through.set()
                del self._turns[key]

        try:
            yield end
        finally:
            end()
