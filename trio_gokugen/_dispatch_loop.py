"""Brings due tasks to workers: as many as are free, and not before one is free.

What is to run is chosen at the last moment, by a claim that the update loop carries out
between the other changes: so a cancel, an update or a postponement that was answered
before always wins, and one that comes after is told that it is too late.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta

import outcome
import trio

from ._errors import SchedulerNotRunningError, WorkStoppedError
from ._ledger import Ledger
from ._observers import Observers
from ._task import Task
from ._update_loop import UpdateLoop
from .abc import (
    ANY_TASK,
    ClaimTasks,
    Clock,
    Dispatcher,
    Free,
    HookAction,
    LoopHooks,
    TaskFilter,
    TaskRepository,
    TaskResult,
    WorkRegistry,
)

logger = logging.getLogger("trio_gokugen.dispatch")

IGNORED_PAUSE = 1.0
"""Seconds before another look, after an error that a hook has ignored."""

LOOK_FOR_UNKNOWN = timedelta(seconds=30)
"""How often stored tasks of unknown works are looked for."""


class DispatchLoop:
    """See above."""

    def __init__(
        self,
        works: WorkRegistry,
        repository: TaskRepository,
        dispatcher: Dispatcher,
        clock: Clock,
        hooks: LoopHooks,
        observers: Observers,
        ledger: Ledger,
        updates: UpdateLoop,
    ) -> None:
        self._works = works
        self._repository = repository
        self._dispatcher = dispatcher
        self._clock = clock
        self._hooks = hooks
        self._observers = observers
        self._ledger = ledger
        self._updates = updates
        self._decided: Exception | None = None
        self._look_at: datetime | None = None
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Dispatch until stopped or cancelled."""
        try:
            with self._scope:
                while True:
                    await self._dispatch()
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Start nothing more. Returns once what was being claimed has been started."""
        self._scope.cancel()
        await self._ended.wait()

    async def _dispatch(self) -> None:
        try:
            await self._dispatcher.dispatch(self._fetch)
        except SchedulerNotRunningError:
            # The update loop has refused a claim, which it does only as it ends, and
            # the nursery with it: what is to come is a cancellation.
            await trio.sleep_forever()
        except Exception as error:
            if error is self._decided:
                raise
            await self._decide(self._hooks.on_dispatch_error, error)

    async def _fetch(self, free: Free, only: TaskFilter = ANY_TASK) -> Sequence[Task]:
        """What dispatchers get their tasks by; see `Fetch`."""
        await self._wait_until_due(only)
        known = self._known(only)
        claimed = await self._updates.queue.ask(
            lambda now: ClaimTasks(free(), now, known), is_claim=True
        )
        tasks: list[Task] = []
        for task in claimed.tasks:
            reason = self._ledger.stopped_early.get(task.id)
            if reason is None:
                tasks.append(task)
                self._observers.tell("on_dispatch", task)
            else:
                stopped = outcome.Error(WorkStoppedError(reason))
                self._updates.send_nowait(TaskResult(task, stopped))
        return tasks

    def _known(self, only: TaskFilter) -> TaskFilter:
        return TaskFilter(self._works.work_ids) & only

    async def _wait_until_due(self, only: TaskFilter) -> None:
        while True:
            try:
                await self._look_for_unknown_works()
                task = await self._repository.wait_until_due(self._known(only))
            except Exception as error:
                await self._decide(self._hooks.on_get_next_error, error)
            else:
                self._observers.tell("on_get_next", task)
                return

    async def _look_for_unknown_works(self) -> None:
        """Count tasks that another version of the program must have left, and say so."""
        now = self._clock.now()
        if self._look_at is not None and now < self._look_at:
            return
        pending = await self._repository.count_pending()
        self._look_at = self._clock.now() + LOOK_FOR_UNKNOWN
        known = self._works.work_ids
        unknown = {w: count for w, count in pending.items() if w not in known}
        for work_id in unknown.keys() - self._ledger.unknown_works.keys():
            logger.warning(
                "%d tasks are left scheduled, as no work is registered as %r",
                unknown[work_id],
                work_id,
            )
        self._ledger.unknown_works = unknown

    async def _decide(
        self, hook: Callable[[Exception, HookAction], Awaitable[HookAction]], error: Exception
    ) -> None:
        """Return if the loop is to look again, or raise the error."""
        action = await hook(error, HookAction.RAISE)
        if action is HookAction.RETRY:
            return
        if action is not HookAction.IGNORE:
            self._decided = error
            raise error
        await trio.sleep(IGNORED_PAUSE)
