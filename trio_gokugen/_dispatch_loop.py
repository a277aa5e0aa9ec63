"""Brings due tasks to workers: as many as are free, and not before one is free.

What is to run is chosen at the last moment, by a claim that the update loop carries out
between the other changes: so a cancel, an update or a postponement that was answered
before always wins, and one that comes after is told that it is too late.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import cast

import attrs
import trio

from ._describe import brief
from ._errors import SchedulerNotRunningError, WorkNotFoundError
from ._hooks import decision
from ._ledger import Ledger
from ._observers import Observers
from ._task import Task
from ._update_loop import UpdateLoop
from .abc import (
    ANY_TASK,
    Claimed,
    ClaimTasks,
    Dispatcher,
    FetchErrors,
    Free,
    HookAction,
    LoopHooks,
    OfPools,
    PoolErrors,
    Start,
    TaskFilter,
    TaskRepository,
    WorkRegistry,
)

logger = logging.getLogger("trio_gokugen.dispatch")

IGNORED_PAUSE = 1.0
"""Seconds before another look, after an error that a hook has ignored."""

WITHHELD_PAUSE = 0.05
"""Seconds, the longest before another look at a due task that somebody else holds."""

MANY = 1_000
"""So many filters are remembered at most."""

LOOK_FOR_UNKNOWN = 30.0
"""Seconds, how often stored tasks of unknown works and pools are looked for."""

LOOK_FOR_NEW = 10.0
"""Seconds, how often it is looked whether works have been registered, by who sleeps."""


@attrs.frozen
class _Withheld:
    """A first task that is due and cannot be had: another may be claiming it."""

    task_id: str
    pause: float
    """Seconds before the next look at it."""


@attrs.frozen
class _Asleep:
    """What somebody in `wait_until_due` waits for."""

    only: TaskFilter
    work_ids: frozenset[str]
    """The works that were known as it went to sleep."""


class DispatchLoop:
    """See above. A dispatcher may fetch for several filters at a time."""

    def __init__(
        self,
        works: WorkRegistry,
        repository: TaskRepository,
        dispatcher: Dispatcher,
        hooks: LoopHooks,
        observers: Observers,
        ledger: Ledger,
        updates: UpdateLoop,
    ) -> None:
        self._works = works
        self._repository = repository
        self._dispatcher = dispatcher
        self._hooks = hooks
        self._observers = observers
        self._ledger = ledger
        self._updates = updates
        self._likely_more: set[TaskFilter] = set()
        """For these the last claim has left nobody free."""

        self._withheld: dict[TaskFilter, _Withheld] = {}
        self._filter = ANY_TASK
        self._unnamed = ANY_TASK
        self._sleepers: dict[trio.CancelScope, _Asleep] = {}
        self._refused = False
        self._decided: list[Exception] = []
        """The errors that are to end the scheduler."""

        self._look_at = -math.inf
        self._scope = trio.CancelScope()
        self._call = trio.CancelScope()
        """Around the calls of `dispatch`. Cancelled, it is for the present one only."""

        self._beside: dict[trio.CancelScope, None] = {}
        """Around what goes on beside it."""

        self._ended = trio.Event()

    @trio.lowlevel.enable_ki_protection
    async def run(self, nursery: trio.Nursery) -> None:
        """Dispatch until stopped or cancelled."""
        self._nursery = nursery
        try:
            with self._scope:
                while True:
                    await self._dispatch()
        finally:
            self._ended.set()

    async def stop(self) -> None:
        """Start nothing more. Returns once a claim that is under way is through."""
        self._scope.cancel()
        for scope in self._beside:
            scope.cancel()
        await self._ended.wait()

    @trio.lowlevel.enable_ki_protection
    async def _run_beside(self, function: Callable[[], Awaitable[None]]) -> None:
        """Do what no dispatch waits for, until stopped."""
        ends = -math.inf if self._scope.cancel_called else math.inf
        with trio.CancelScope(deadline=ends) as scope:
            self._beside[scope] = None
            try:
                await function()
            finally:
                del self._beside[scope]

    async def _dispatch(self) -> None:
        try:
            # One for many calls: to open a scope costs as much as half a task.
            with trio.CancelScope() as self._call:
                while not self._call.cancel_called:
                    await self._dispatcher.dispatch(self._fetch)
        except Exception as error:  # noqa: BLE001 (the hooks decide what it means)
            errors = _apart(error)
            for each in errors:
                if any(_holds(each, decided) for decided in self._decided):
                    raise _with_others(each, errors) from each.__cause__
            if self._refused:
                # The update loop refuses a claim only as it ends, and the nursery with
                # it: what is to come is a cancellation.
                await trio.sleep_forever()
            first = _with_others(errors[0], errors)
            if isinstance(error, PoolErrors):
                # The other pools fetch while the hook decides about these.
                asking = partial(self._decide_beside, first, error.go_on)
                self._nursery.start_soon(self._run_beside, asking)
                return
            await self._decide(self._hooks.on_dispatch_error, first)

    async def _count(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """The scheduled tasks, by work and by the pool that they name."""
        while True:
            try:
                by_work = await self._repository.count_pending()
                return by_work, await self._repository.count_pools()
            except Exception as error:  # noqa: BLE001 (the hooks decide what it means)
                await self._decide(self._hooks.on_get_next_error, error)

    async def _decide_beside(self, error: Exception, go_on: Callable[[], None]) -> None:
        await self._wanted(self._hooks.on_dispatch_error, error)
        go_on()

    async def _fetch(self, free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
        """What dispatchers get their tasks by; see `Fetch`."""
        # After a claim that left nobody free there is likely more that is due: ask for
        # it, rather than when it is due.
        first = None if only in self._likely_more else await self._wait_until_due(only)
        self._likely_more.discard(only)
        limit = 0

        def claim(now: datetime) -> ClaimTasks:
            nonlocal limit
            limit = free()
            return ClaimTasks(limit, now, self._known(only))

        self._updates.queue.claim_expected = False
        try:
            claimed: Claimed = await self._updates.queue.ask(claim, start)
        except SchedulerNotRunningError:
            self._refused = True
            raise
        likely_more = 0 < limit <= len(claimed.tasks)
        if likely_more:
            if len(self._likely_more) > MANY:
                self._likely_more.clear()  # of filters that nobody asks by any more
            self._likely_more.add(only)
        # Where a write costs much, the next claim is worth waiting for.
        shared = self._repository.lease < math.inf
        self._updates.queue.claim_expected = shared and likely_more
        # An occurrence that is not to run is there still, for a later moment.
        found = claimed.tasks or claimed.expired or claimed.made
        if first is not None and not limit:
            # Nobody is free, though somebody was as this was called: who stands in front
            # of the dispatcher holds back, and can say in `dispatch` until when.
            self._call.cancel()
        elif first is not None and not found:
            await self._wait_for(first, only)
        elif self._withheld:
            self._withheld.pop(only, None)
        return len(claimed.tasks)

    async def _wait_for(self, first: Task, only: TaskFilter) -> None:
        """Pause, longer each time, for a due task that could not be had and is still there.

        Whoever holds it is about to commit, or to roll back, of which nobody tells.
        """
        withheld = self._withheld.get(only)
        if withheld is None or withheld.task_id != first.id:
            self._withheld[only] = _Withheld(first.id, WITHHELD_PAUSE / 50)
            return
        longer = min(2 * withheld.pause, WITHHELD_PAUSE)
        self._withheld[only] = _Withheld(first.id, longer)
        await trio.sleep(withheld.pause)

    def _known(self, only: TaskFilter) -> TaskFilter:
        work_ids = self._works.work_ids
        if self._filter.work_ids is not work_ids:
            once = frozenset(each for each in work_ids if self._at_most_once(each))
            self._filter = TaskFilter(work_ids, once)
            # Who has no pools leaves tasks that name one to others.
            self._unnamed = TaskFilter(work_ids, once, pools=OfPools())
        if only is ANY_TASK:
            return self._unnamed
        return (self._unnamed if only.pools is None else self._filter) & only

    def _at_most_once(self, work_id: str) -> bool:
        try:
            return self._works.get(work_id).at_most_once
        except WorkNotFoundError:
            return False  # gone since: its tasks will fail, and not be lost

    async def _wait_until_due(self, only: TaskFilter) -> Task | None:
        """Return the first task when it is due, or none if there may be one."""
        while True:
            try:
                task = await self._sleep(only)
            except Exception as error:  # noqa: BLE001 (the hooks decide what it means)
                await self._decide(self._hooks.on_get_next_error, error)
            else:
                if task is not None:
                    self._observers.tell("on_get_next", task)
                return task

    async def _sleep(self, only: TaskFilter) -> Task | None:
        """Sleep until a task is due and return it, or until somebody wakes us."""
        # Others may have added tasks of works that are registered here since, or of works
        # and pools that are not here at all: nobody tells.
        shared = self._repository.poll < math.inf
        while True:
            if trio.current_time() >= self._look_at:
                self._look_at = math.inf  # not again before this look has ended
                self._nursery.start_soon(self._run_beside, self._look_for_unknown)
            known = self._works.work_ids
            until = trio.current_time() + LOOK_FOR_NEW if shared else math.inf
            scope = trio.CancelScope(deadline=until)
            self._sleepers[scope] = _Asleep(only, known)
            try:
                with scope:
                    return await self._repository.wait_until_due(self._known(only))
            finally:
                del self._sleepers[scope]
            if trio.current_time() < until or self._works.work_ids is not known:
                return None

    def claim_now(self, work_id: str) -> None:
        """Claim without a look before: somebody knows that a task of the work is due.

        One that names no pool.
        """
        if work_id in self._works.work_ids:
            for scope, asleep in self._sleepers.items():
                works = asleep.only.unnamed
                # One that sleeps by the works of then may want this one, too.
                is_stale = asleep.work_ids is not self._works.work_ids
                if works is None or work_id in works or is_stale:
                    scope.cancel()

    def notice_new_works(self) -> None:
        """If works have been registered since, have their tasks waited for, too.

        To be called once there may be a task of theirs.
        """
        for scope, asleep in self._sleepers.items():
            if asleep.work_ids is not self._works.work_ids:
                scope.cancel()

    async def _look_for_unknown(self) -> None:
        """Count tasks whose work or pool is not here, and say so.

        Another version of the program has left them, or they are for another scheduler.
        """
        by_work, by_pool = await self._count()
        self._look_at = trio.current_time() + LOOK_FOR_UNKNOWN
        works = _without(by_work, self._works.work_ids)
        pools = _without(by_pool, self._dispatcher.statistics().pools)
        for work_id in works.keys() - self._ledger.unknown_works.keys():
            logger.warning(
                "%d tasks are left scheduled, as no work is registered as %r",
                works[work_id],
                work_id,
            )
        for pool in pools.keys() - self._ledger.unknown_pools.keys():
            logger.warning(
                "%d tasks are left scheduled, as the dispatcher has no pool %r: they wait"
                " for a scheduler that has it",
                pools[pool],
                pool,
            )
        self._ledger.unknown_works, self._ledger.unknown_pools = works, pools
        # Who registers works once the scheduler runs may be later than its first look.
        self.notice_new_works()

    async def _decide(
        self,
        hook: Callable[[Exception, HookAction], Awaitable[HookAction]],
        error: Exception,
    ) -> None:
        """Return when the loop is to look again, or raise the error."""
        if await self._wanted(hook, error) is HookAction.IGNORE:
            await trio.sleep(IGNORED_PAUSE)
        else:
            # A hook that has not waited must not keep everybody else from running.
            await trio.lowlevel.checkpoint()

    async def _wanted(
        self,
        hook: Callable[[Exception, HookAction], Awaitable[HookAction]],
        error: Exception,
    ) -> HookAction:
        """What a hook decides, unless that is to raise the error."""
        try:
            action = await decision(hook, error=error)
        except Exception as its_own:
            self._decided.append(its_own)
            raise
        if action is HookAction.RAISE:
            self._decided.append(error)
            raise error
        return action


def _without(counts: Mapping[str, int], known: frozenset[str]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name not in known}


def _holds(error: Exception, wanted: Exception) -> bool:
    """Whether it is the other error, or a group that has it somewhere."""
    if isinstance(error, ExceptionGroup):
        group = cast("ExceptionGroup[Exception]", error)
        return any(_holds(each, wanted) for each in group.exceptions)
    return error is wanted


def _apart(error: Exception) -> list[Exception]:
    """An error, or those of several fetches, each once."""
    if not isinstance(error, FetchErrors):
        return [error]
    found: list[Exception] = []
    for each in itertools.chain.from_iterable(map(_apart, error.exceptions)):
        # One may be there twice, if one write had the claims of several pools.
        if not any(each is other for other in found):
            found.append(each)
    return found


def _with_others(error: Exception, errors: Sequence[Exception]) -> Exception:
    """The error, with the others in its notes."""
    for other in errors:
        note = brief(f"and another pool: {type(other).__name__}: {other}")
        if other is not error and note not in getattr(error, "__notes__", ()):
            error.add_note(note)
    return error
