"""What a running scheduler keeps in mind: runs under way, who waits for them, counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs
import trio

from ._errors import LostRunError, SchedulerNotRunningError
from ._task import Task, TaskState, run_key


@attrs.define(eq=False)
class Waiter:
    """Somebody who waits for a task to end."""

    task_id: str
    run: Task | None = None
    """The run it waits for, if not for the task whatever becomes of that."""

    ended: Task | None = None
    error: Exception | None = None
    _event: trio.Event = attrs.field(factory=trio.Event, init=False)

    def settle(self, ended: Task | None, error: Exception | None = None) -> None:
        self.ended, self.error = ended, error
        self._event.set()

    async def wait(self) -> Task:
        """The task as it ended, or the error that keeps this from being known."""
        await self._event.wait()
        if self.error is not None:
            raise self.error
        assert self.ended is not None
        return self.ended


_SCHEDULED = TaskState.SCHEDULED
_DONE = TaskState.DONE
_FAILED = TaskState.FAILED


class Ledger:
    """Changed by the loops between two checkpoints, so always of one piece."""

    def __init__(self) -> None:
        self.runs: dict[str, Task] = {}
        """Claimed, and not recorded as ended yet."""

        self.held_since = math.inf
        """Since when, on Trio's clock, the oldest lease of these has not been renewed."""

        self._claimed_since = math.inf
        """The same of those only that were claimed since the last renewal was begun."""

        self.unreported: dict[int, Task] = {}
        """Runs whose result has not come in, by `id`: mostly it is they that come back."""

        self.added = 0
        self.dispatched = 0
        self.done = 0
        self.failed = 0
        self.cancelled = 0
        self.reverted = 0
        self.retried = 0
        self.unknown_works: dict[str, int] = {}
        self.unknown_pools: dict[str, int] = {}
        self.closed = False
        self.version = 0
        """Grows with every batch."""

        self.writing = False
        """Whether a batch is under way: the store may know what is not noted here yet."""

        self._waiters: dict[str, list[Waiter]] = {}
        self._watchers: dict[trio.Event, Callable[[], bool]] = {}

    # -- runs -------------------------------------------------------------------------

    def claimed(self, tasks: Sequence[Task], since: float) -> None:
        """These are to be run, and are leased since then."""
        if not tasks:
            return
        self.held_since = min(self.held_since, since)
        self._claimed_since = min(self._claimed_since, since)
        self.dispatched += len(tasks)
        runs, unreported = self.runs, self.unreported
        for task in tasks:
            runs[task.id] = unreported[id(task)] = task

    def reported(self, run: Task) -> None:
        """A result has come in."""
        if self.unreported.pop(id(run), None) is None:
            self._reported_by_copy(run)
        if not self.unreported:
            self._look()

    def _reported_by_copy(self, run: Task) -> None:
        """A result has come in that has a copy of its run; or it is not the first."""
        if self._is_current(run):
            known = self.unreported.pop(id(self.runs[run.id]), None)
            if known is not None:
                return
        for each in self.unreported.values():  # of the few that have lost their task
            if run_key(each) == run_key(run):
                del self.unreported[id(each)]
                break

    def recorded(self, run: Task, task: Task) -> None:
        """The result is in the store, and has left the task so."""
        self._forget(run)
        if task.state is _SCHEDULED:
            self.reverted += 1
        else:
            self.ended(task)

    def retrying(self, run: Task, task: Task) -> None:
        """The run is over, and its task scheduled for another attempt."""
        self._forget(run)
        self.retried += 1
        for waiter in self._waiters.get(run.id, ()):
            if waiter.run is not None and run_key(waiter.run) == run_key(run):
                waiter.settle(task)

    def lost(self, run: Task) -> None:
        """The result is never going to be in the store."""
        self._forget(run)

    def _is_current(self, run: Task) -> bool:
        # Of a task that was taken back and claimed anew, or added anew under its id, a
        # later run may go on already.
        known = self.runs.get(run.id)
        return known is not None and run_key(known) == run_key(run)

    def _forget(self, run: Task) -> None:
        # Mostly it is the very same, which is quick to see.
        if self.runs.get(run.id) is run or self._is_current(run):
            del self.runs[run.id]
            if not self.runs:
                self.held_since = math.inf

    def renewing(self) -> list[Task]:
        """What runs now, and is about to be renewed."""
        self._claimed_since = math.inf
        return list(self.runs.values())

    def renewed(self, runs: Sequence[Task], since: float) -> None:
        """These, of which `renewing` told, are leased since then."""
        # Not all of them run any more, if it took long; and what was claimed meanwhile is
        # leased since its own claim, which may have been begun before the renewal.
        if any(self._is_current(run) for run in runs):
            self.held_since = min(since, self._claimed_since)
        self.noted()

    def let_go(self) -> list[Task]:
        """What runs, and soon has no lease any more, unless it is renewed after all."""
        self.held_since = math.inf
        return list(self.runs.values())

    def recovered(self, task: Task) -> None:
        """Somebody's task was taken back, or ended, by this scheduler."""
        if task.state is _SCHEDULED:
            self.reverted += 1
        else:
            self.ended(task)

    def batch_written(self) -> None:
        """A batch is through: what was changed in the store has been noted here."""
        self.writing = False
        self.noted()

    def noted(self) -> None:
        """Something was noted here outside of a batch."""
        self.version += 1
        self._look()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true that is looked at after each batch.

        It was true then; it may not be any more. Not a checkpoint if it is true now.
        """
        if self.closed or condition():
            return
        event = trio.Event()
        self._watchers[event] = condition
        try:
            await event.wait()
        finally:
            del self._watchers[event]

    async def wait_until_written(self) -> None:
        """Wait for the next batch."""
        version = self.version
        await self.wait_until(lambda: self.version != version)

    def _look(self) -> None:
        # Here, and not in the tasks that wait, which would be woken for nothing.
        for event, condition in self._watchers.items():
            if condition():
                event.set()

    # -- ends -------------------------------------------------------------------------

    def ended(self, task: Task) -> None:
        """The task has ended: count it, and tell who waits."""
        if task.state is _DONE:
            self.done += 1
        elif task.state is _FAILED:
            self.failed += 1
        else:
            self.cancelled += 1
        if self._waiters:
            self.tell(task)

    def tell(self, task: Task) -> None:
        """Tell who waits for the end of a task, which has ended so."""
        for waiter in self._waiters.pop(task.id, ()):
            waiter.settle(task)

    def awaited(self) -> frozenset[str]:
        """The tasks that somebody waits for, and that do not run here."""
        return frozenset(self._waiters.keys() - self.runs.keys())

    def watch(self, task_id: str, run: Task | None = None) -> Waiter:
        """Begin to wait for the end of a task, or of a run. To be undone by `unwatch`."""
        waiter = Waiter(task_id, run)
        if self.closed:
            waiter.settle(None, SchedulerNotRunningError())
            return waiter
        self._waiters.setdefault(task_id, []).append(waiter)
        if self._watchers:
            self._look()
        return waiter

    def unwatch(self, waiter: Waiter) -> None:
        waiters = self._waiters.get(waiter.task_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[waiter.task_id]

    def tell_lost(self, run: Task) -> None:
        """Tell who waits for this run that it has lost its task, which goes on."""
        for waiter in self._waiters.get(run.id, ()):
            if waiter.run is not None and run_key(waiter.run) == run_key(run):
                waiter.settle(None, LostRunError(run.id, run.attempt))

    def give_up(self, task_id: str, error: Exception) -> None:
        """The end of this task cannot be known: tell who waits for it why."""
        for waiter in self._waiters.pop(task_id, ()):
            waiter.settle(None, error)

    def close(self) -> None:
        """The scheduler has stopped: answer everybody, and whoever comes."""
        self.closed = True
        for task_id in list(self._waiters):
            self.give_up(task_id, SchedulerNotRunningError())
        for event in self._watchers:
            event.set()
