"""What a running scheduler keeps in mind: runs under way, who waits for them, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import attrs
import trio

from ._errors import SchedulerNotRunningError, StopReason
from ._task import Task, TaskState


@attrs.define(eq=False)
class Waiter:
    """Somebody who waits for a task to end."""

    task_id: str
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


class Ledger:
    """Changed by the loops between two checkpoints, so always of one piece."""

    def __init__(self) -> None:
        self.runs: dict[str, Task] = {}
        """Claimed, and not recorded as ended yet."""

        self.unreported: set[str] = set()
        """Of these, the ones whose result has not come in."""

        self.stopped_early: dict[str, StopReason] = {}
        """Of these, the ones to be stopped that the dispatcher does not know yet."""

        self.counts: Counter[str] = Counter()
        self.unknown_works: dict[str, int] = {}
        self.version = 0
        """Grows with every batch that was written."""

        self._waiters: dict[str, list[Waiter]] = {}
        self._watchers = trio.lowlevel.ParkingLot()

    # -- runs -------------------------------------------------------------------------

    def claimed(self, tasks: Iterable[Task]) -> None:
        """These are to be run."""
        for task in tasks:
            self.runs[task.id] = task
            self.unreported.add(task.id)
            self.counts["dispatched"] += 1

    def reported(self, run: Task) -> None:
        """A result has come in."""
        self.unreported.discard(run.id)
        if not self.unreported:
            self._watchers.unpark_all()

    def recorded(self, run: Task) -> None:
        """The result is in the store, or is never going to be."""
        if self.runs.get(run.id) is run:
            del self.runs[run.id]
        self.unreported.discard(run.id)
        self.stopped_early.pop(run.id, None)

    def batch_written(self) -> None:
        """Have everybody look who waits for a condition."""
        self.version += 1
        self._watchers.unpark_all()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that the ledger tells is true. Maybe not a checkpoint."""
        while not condition():
            await self._watchers.park()

    # -- ends -------------------------------------------------------------------------

    def ended(self, task: Task) -> None:
        """The task has ended: count it, and tell who waits."""
        self.counts[task.state.value] += 1
        for waiter in self._waiters.pop(task.id, ()):
            waiter.settle(task)

    def watch(self, task_id: str) -> Waiter:
        """Begin to wait for the task's end. To be undone by `unwatch`."""
        waiter = Waiter(task_id)
        self._waiters.setdefault(task_id, []).append(waiter)
        return waiter

    def unwatch(self, waiter: Waiter) -> None:
        waiters = self._waiters.get(waiter.task_id, [])
        if waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[waiter.task_id]

    def give_up(self, task_id: str, error: Exception) -> None:
        """The end of this task cannot be known: tell who waits for it why."""
        for waiter in self._waiters.pop(task_id, ()):
            waiter.settle(None, error)

    def close(self) -> None:
        """The scheduler has stopped: answer everybody."""
        for task_id in list(self._waiters):
            self.give_up(task_id, SchedulerNotRunningError())
        self._watchers.unpark_all()

    def count(self, state: TaskState) -> int:
        """How many tasks have come to this ended state."""
        return self.counts[state.value]
