"""What many tests of the scheduler begin with."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import outcome
import trio

from trio_gokugen import (
    HeapRepository,
    Scheduler,
    Task,
    TaskParam,
    TrioClock,
    WorkRegistry,
    current_task,
    open_scheduler,
)
from trio_gokugen.abc import ANY_TASK, Operation, RecoverAction, TaskFilter

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


def noon(seconds: float = 0) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def same_everywhere(value: object) -> str:
    """A value as part of a test's id, which is the same in every process: no address."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))[:80]


PATIENCE = 30.0
"""Seconds of real time after which something that has not come never will."""


@contextmanager
def bounded() -> Generator[None]:
    """Cancel the block, and fail, if it takes too long in real time.

    A mock clock may stand still. What a shield keeps is for pytest's own time-out to end.
    """
    token = trio.lowlevel.current_trio_token()
    with trio.CancelScope() as scope:
        timer = threading.Timer(PATIENCE, token.run_sync_soon, [scope.cancel])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
    assert not scope.cancel_called, "it took too long"


@attrs.define
class Bench:
    """A registry with a few works, and what they have done, on Trio's time."""

    works: WorkRegistry = attrs.field(factory=WorkRegistry)
    log: list[tuple[str, float]] = attrs.field(factory=list[tuple[str, float]])
    """(what, when): "id" as a run starts, "id done" and "id cancelled" as it ends."""

    def __attrs_post_init__(self) -> None:
        for function in (self.note, self.sleep, self.fail, self.stubborn):
            self.works.register(function.__name__, function)

    @property
    def starts(self) -> list[tuple[str, float]]:
        return [(what, when) for what, when in self.log if " " not in what]

    def ids(self) -> list[str]:
        return [what for what, _ in self.starts]

    def _say(self, what: str = "") -> None:
        self.log.append((current_task().id + what, trio.current_time()))

    async def note(self) -> None:
        self._say()

    async def sleep(self, seconds: float = 60) -> None:
        self._say()
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self._say(" cancelled")
            raise
        self._say(" done")

    async def fail(self, message: str = "boom") -> None:
        self._say()
        raise ValueError(message)

    async def stubborn(self, seconds: float = 60) -> None:
        """Takes its time, whoever cancels it."""
        self._say()
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)
        self._say(" done")


@asynccontextmanager
async def open_bench(
    repository: Any = None, **options: Any
) -> AsyncGenerator[tuple[Scheduler, Bench]]:
    """A scheduler whose clock shows noon at Trio's 0, and a bench of works."""
    bench = Bench()
    options.setdefault("clock", TrioClock(NOON, 0.0))
    async with open_scheduler(bench.works, repository, **options) as scheduler:
        yield scheduler, bench


def at(seconds: float, task_id: str, work_id: str = "note", **fields: Any) -> TaskParam:
    """A task of this id, so many seconds after noon."""
    return TaskParam(id=task_id, work_id=work_id, scheduled_at=noon(seconds), **fields)


def stored(task_id: str, work_id: str = "note", seconds: float = 0, **fields: Any) -> Task:
    """A task as a repository has it."""
    fields.setdefault("created_at", NOON)
    return Task(id=task_id, work_id=work_id, scheduled_at=noon(seconds), **fields)


class TroubledRepository(HeapRepository):
    """Runs a coroutine before, or instead of, what it is told to do."""

    def __init__(self) -> None:
        super().__init__()
        self.before_apply: Callable[[Sequence[Operation]], Awaitable[None]] | None = None
        self.before_wait: Callable[[], Awaitable[None]] | None = None
        self.before_recover: Callable[[], Awaitable[None]] | None = None
        self.before_count: Callable[[], Awaitable[None]] | None = None
        self.before_count_pools: Callable[[], Awaitable[None]] | None = None
        self.batches: list[list[Operation]] = []

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        if self.before_apply is not None:
            await self.before_apply(operations)
        self.batches.append(list(operations))
        return await super().apply(operations)

    async def wait_until_due(self, only: TaskFilter = ANY_TASK) -> Task:
        if self.before_wait is not None:
            await self.before_wait()
        return await super().wait_until_due(only)

    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        if self.before_recover is not None:
            await self.before_recover()
        return await super().recover(action, at, only)

    async def count_pending(self) -> Any:
        if self.before_count is not None:
            await self.before_count()
        return await super().count_pending()

    async def count_pools(self) -> Any:
        if self.before_count_pools is not None:
            await self.before_count_pools()
        return await super().count_pools()
