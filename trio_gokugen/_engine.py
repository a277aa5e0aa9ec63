"""One run of a scheduler: a nursery with its loops and workers, and how it ends.

There are two ways to end. *Stopped*: nothing new is dispatched, running work has some
time to end by itself, then it is cancelled; all that happened is recorded, and seen by
the hooks. *Cancelled*, from outside or by an error of one of the loops: everything is
cancelled at once; what became of the running work is recorded all the same, in a last
write that is shielded, and limited in time.
"""

from __future__ import annotations

from typing import Literal

import trio

from ._dispatch_loop import DispatchLoop
from ._errors import SchedulerAlreadyRunningError, StopReason
from ._hooks import PassThroughHooks, decision
from ._ledger import Ledger
from ._observers import Observers
from ._sharing import Sharing
from ._update_loop import RECORD_LIMIT, UpdateLoop
from .abc import (
    Clock,
    Dispatcher,
    HookAction,
    Listener,
    LoopHooks,
    RecoverAction,
    TaskRepository,
    WorkRegistry,
)


class Engine:
    """See above."""

    def __init__(
        self,
        works: WorkRegistry,
        repository: TaskRepository,
        dispatcher: Dispatcher,
        hooks: LoopHooks | None,
        listeners: list[Listener],
        clock: Clock,
    ) -> None:
        deciding = PassThroughHooks() if hooks is None else hooks
        self.clock = clock
        self.ledger = Ledger()
        self.observers = Observers(hooks, listeners)
        self.updates = UpdateLoop(
            works, repository, clock, deciding, self.observers, self.ledger, dispatcher
        )
        self.dispatches = DispatchLoop(
            works,
            repository,
            dispatcher,
            deciding,
            self.observers,
            self.ledger,
            self.updates,
        )
        self._sharing = Sharing(
            repository, dispatcher, clock, deciding, self.observers, self.ledger
        )
        self._stopping = False
        self.ended = trio.Event()
        self._repository = repository
        self._dispatcher = dispatcher
        self._hooks = deciding
        self._scope = trio.CancelScope()
        self._grace = trio.CancelScope()
        self._last_look = trio.CancelScope()
        self._waiting_hooks = 0
        self._nursery: trio.Nursery | None = None
        """Where the loops run; none before all of them do."""

    async def run(self, recover: RecoverAction, task_status: trio.TaskStatus[None]) -> None:
        """Recover what was left running, then run the loops until stopped or cancelled."""
        try:
            self._repository.start_timer(self.clock)
        except BaseException:
            self.ended.set()
            raise
        try:
            try:
                with self._scope:
                    await self._run_loops(recover, task_status)
            except BaseException as error:
                await self._finish_after(error)
                raise
            try:
                await self.updates.finish()
            except BaseException as error:  # noqa: BLE001 (it leaves, in a group)
                raise BaseExceptionGroup("the scheduler has stopped", [error]) from None
        finally:
            self.ended.set()
            self._repository.stop_timer()
        if self._nursery is None:
            task_status.started()  # it was stopped before: whoever waits may go on

    async def _run_loops(
        self, recover: RecoverAction, task_status: trio.TaskStatus[None]
    ) -> None:
        refusal: SchedulerAlreadyRunningError | None = None
        async with trio.open_nursery() as nursery:
            try:
                await self._dispatcher.start(nursery, self.updates, self.clock)
            except SchedulerAlreadyRunningError as error:
                refusal = error
                nursery.cancel_scope.cancel()
            else:
                nursery.start_soon(self.updates.run, nursery)
                nursery.start_soon(self.observers.run)
                nursery.start_soon(self._repository.serve, self.dispatches.claim_now)
                await self._recover(recover)
                await self._sharing.run(nursery, recover)
                # Last: nothing is dispatched before it is known what was running.
                nursery.start_soon(self.dispatches.run, nursery)
                self._nursery = nursery
                task_status.started()
        assert refusal is not None, "the loops don't end by themselves"
        raise refusal  # out here, as it is, and not in a group

    async def stop(self, grace: float) -> None:
        """End in good order, giving running work `grace` seconds. Returns at the end.

        In a task of its own, as the one who asks may be a work, which will be cancelled.
        """
        if self._nursery is None:
            self._scope.cancel()
        elif not self._nursery.child_tasks:
            pass  # the loops have ended, for another reason
        elif self._stopping:
            self._grace.deadline = min(self._grace.deadline, trio.current_time() + grace)
            self._last_look.deadline = min(self._last_look.deadline, self._looks_end())
        else:
            self._grace.deadline = trio.current_time() + grace
            self._nursery.start_soon(self._end_in_order)
        self._stopping = True
        if self._called_by_hook():
            await self._wait_as_a_hook()
        else:
            await self.ended.wait()

    def _called_by_hook(self) -> bool:
        """Whether a hook's call is under way until this task, or a child of it, returns."""
        hooks = {self.observers.trio_task, *self.updates.deciding}
        task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        while task is not None and task not in hooks:
            task = None if task.parent_nursery is None else task.parent_nursery.parent_task
        return task is not None

    async def _wait_as_a_hook(self) -> None:
        """Wait for the end, which does not wait long for hooks that wait for it."""
        self._waiting_hooks += 1
        self._last_look.deadline = self._looks_end()
        self.ledger.noted()
        try:
            await self.ended.wait()
        finally:
            self._waiting_hooks -= 1
            self._last_look.deadline = self._looks_end()

    @trio.lowlevel.enable_ki_protection
    async def _end_in_order(self) -> None:
        ledger = self.ledger
        with self._grace:
            await self.dispatches.stop()
            await ledger.wait_until(self._is_through)
        self.updates.start_nothing()
        for run in tuple(ledger.runs.values()):
            self._dispatcher.cancel(run, StopReason.SHUTDOWN)
        # However long it takes: nothing outlives the nursery.
        await ledger.wait_until(lambda: not ledger.unreported)
        # From here on it is only about writing, which may fail for ever.
        with trio.move_on_after(RECORD_LIMIT):
            await ledger.wait_until(self._is_through)
        self._last_look.deadline = self._looks_end()
        with self._last_look:
            await self.observers.wait_seen_all()
        self._scope.cancel()

    def _is_through(self) -> bool:
        """Whether all is recorded, but for what a hook has to decide that waits for us."""
        ledger = self.ledger
        return not ledger.runs or bool(self._waiting_hooks and not ledger.unreported)

    def _looks_end(self) -> float:
        """Until when hooks may look, if all that they are to see has happened."""
        limit = trio.current_time() + RECORD_LIMIT
        # One that waits for the end keeps the others back, and may do so for ever.
        return limit if self._waiting_hooks else max(self._grace.deadline, limit)

    @property
    def state(self) -> Literal["running", "stopping", "stopped"]:
        """Where it is in its life."""
        if self.ended.is_set():
            return "stopped"
        return "stopping" if self._stopping else "running"

    async def _recover(self, recover: RecoverAction) -> None:
        while True:
            try:
                recovered = await self._repository.recover(recover, self.clock.now())
            except Exception as error:
                action = await decision(self._hooks.on_update_error, (), error=error)
                if action is HookAction.RETRY:
                    await trio.lowlevel.checkpoint()
                    continue
                if action is not HookAction.IGNORE:
                    raise
                return
            for task in recovered:
                self.ledger.recorded(task, task)
                if task.state.ended:
                    self.observers.tell_done(task)
            return

    async def _finish_after(self, error: BaseException) -> None:
        try:
            await self.updates.finish()
        except BaseException as second:  # noqa: BLE001 (both leave, in a group)
            # Cancelled or not: a cancel scope takes its own out of the group.
            raise BaseExceptionGroup(
                "the scheduler failed, and then to record what was left",
                [error, second],
            ) from None
