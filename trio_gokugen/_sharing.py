"""What a scheduler does because others may work on the same store.

A run has its task for as long as its lease lasts. While anything runs here, all leases are
renewed together, three times in the length of one; what cannot be renewed is cancelled
while it is still ours, so that the work has ended before somebody else may take the task.
The same call recovers tasks that others have let go.

The ends of tasks that run elsewhere are looked for now and then, if somebody waits for
them.
"""

from __future__ import annotations

import logging
import math

import trio

from ._errors import StopReason, TaskNotFoundError
from ._hooks import decision
from ._ledger import Ledger
from ._observers import Observers
from ._query import TaskQuery
from ._task import RunKey, run_key
from .abc import (
    Clock,
    Dispatcher,
    HookAction,
    LoopHooks,
    RecoverAction,
    TaskRepository,
)

logger = logging.getLogger("trio_gokugen.sharing")

RENEWALS = 3
"""How often a lease is renewed in its length."""

LONGEST_PAUSE = 1 / 6
"""Part of a lease after which a renewal that failed is tried again at the latest."""

KEPT = 5 / 6
"""For this part of a lease a run goes on without renewal; it has the rest to end in."""


class Sharing:
    """See above."""

    def __init__(
        self,
        repository: TaskRepository,
        dispatcher: Dispatcher,
        clock: Clock,
        hooks: LoopHooks,
        observers: Observers,
        ledger: Ledger,
    ) -> None:
        self._repository = repository
        self._dispatcher = dispatcher
        self._clock = clock
        self._hooks = hooks
        self._observers = observers
        self._ledger = ledger
        self._lease = repository.lease
        self._lost = set[RunKey]()
        """Runs that had lost their tasks at the last renewal."""

    @trio.lowlevel.enable_ki_protection
    async def run(self, nursery: trio.Nursery, action: RecoverAction) -> None:
        """Look after leases, and after what others do, until cancelled."""
        if self._lease < math.inf:
            nursery.start_soon(self._renew_leases, action)
            nursery.start_soon(self._end_with_the_lease)
        if self._repository.poll < math.inf:
            nursery.start_soon(self._look_for_ends)

    # -- leases -----------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _renew_leases(self, action: RecoverAction) -> None:
        try:
            await self._renew_until_cancelled(action)
        except trio.Cancelled:
            # A work in a thread goes on, whoever was cancelled, and its task is ours still.
            with trio.CancelScope(shield=True):
                await self._renew_to_the_end()
            raise

    async def _renew_to_the_end(self) -> None:
        """Renew the leases of what has not ended, until it has."""
        ledger = self._ledger
        while ledger.unreported:
            with trio.move_on_after(self._lease / RENEWALS):
                await ledger.wait_until(lambda: not ledger.unreported)
            if ledger.unreported and not ledger.closed:
                runs = ledger.renewing()
                now = self._clock.now()
                try:
                    await self._repository.renew(runs, RecoverAction.LEAVE, now)
                except Exception as error:  # noqa: BLE001 (it is ending for another reason)
                    logger.warning("leases could not be renewed at the end: %s", error)

    async def _renew_until_cancelled(self, action: RecoverAction) -> None:
        pause = self._lease / RENEWALS
        while True:
            # With nothing to renew there is something to do only if there are others.
            with trio.move_on_after(max(pause, self._repository.poll)):
                await self._ledger.wait_until(lambda: bool(self._ledger.runs))
            if self._ledger.held_since < math.inf:
                await trio.sleep_until(self._ledger.held_since + pause)
            # What was let go is renewed, too, if it has not ended: better late than taken
            # by somebody else.
            if self._ledger.runs or self._repository.poll < math.inf:
                while not await self._renew(action):
                    pass

    async def _renew(self, action: RecoverAction) -> bool:
        """Renew all leases. Returns whether that is all for this time."""
        ledger = self._ledger
        runs = ledger.renewing()
        began = trio.current_time()
        try:
            renewed = await self._repository.renew(runs, action, self._clock.now())
        except Exception as error:
            # A hook that waits for the store to come back must not wait for too long.
            decided = HookAction.RETRY
            with trio.move_on_after(self._lease * LONGEST_PAUSE):
                decided = await decision(self._hooks.on_update_error, (), error=error)
            if decided is HookAction.RAISE:
                raise
            await trio.lowlevel.checkpoint()
            if decided is HookAction.RETRY:
                return False
            # Not before the pause is over again, as if it had been renewed.
            await trio.sleep(self._lease / RENEWALS)
            return True
        ledger.renewed(runs, began)
        lost = {run_key(run) for run in renewed.lost}
        for run in renewed.lost:
            # A work may take its time to end: of that nobody needs to be told again.
            if (
                self._dispatcher.cancel(run, StopReason.LOST_LEASE)
                and run_key(run) not in self._lost
            ):
                logger.warning("a run of %r has lost its task", run.id)
        self._lost = lost
        for task in renewed.recovered:
            ledger.recovered(task)
            if task.state.ended:
                self._observers.tell_done(task)
        return True

    @trio.lowlevel.enable_ki_protection
    async def _end_with_the_lease(self) -> None:
        """Cancel what runs when it could not be said in time that it does."""
        ledger = self._ledger
        while True:
            await ledger.wait_until(lambda: ledger.held_since < math.inf)
            since = ledger.held_since
            with trio.move_on_at(since + self._lease * KEPT) as lease:
                await ledger.wait_until(lambda: ledger.held_since != since)  # noqa: B023
            if lease.cancelled_caught:
                logger.warning("the leases could not be renewed: runs are cancelled")
                for run in ledger.let_go():
                    self._dispatcher.cancel(run, StopReason.LOST_LEASE)

    # -- ends of tasks that run elsewhere -----------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _look_for_ends(self) -> None:
        ledger = self._ledger
        while True:
            await ledger.wait_until(lambda: bool(ledger.awaited()))
            await trio.sleep(self._repository.poll)
            ids = ledger.awaited()
            try:
                found = await self._repository.find(TaskQuery(ids=ids)) if ids else []
            except Exception as error:  # noqa: BLE001 (the hooks decide what it means)
                await self._decide(error)
                continue
            for task in found:
                if task.state.ended:
                    ledger.tell(task)
            for task_id in ids - {task.id for task in found}:
                ledger.give_up(task_id, TaskNotFoundError(task_id))

    async def _decide(self, error: Exception) -> None:
        if await decision(self._hooks.on_get_next_error, error=error) is HookAction.RAISE:
            raise error
