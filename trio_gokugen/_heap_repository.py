"""Tasks in memory: a dict to find them by id, heaps to find the next.

An entry, once made, never changes: `(scheduled_at, -priority, sequence, version, task)` is
at the same time what the heap sorts and what the dict holds. The sequence is the task's
place among the oldest; the version tells its entries apart, so that two are never equal and
the tasks themselves are never compared. Whatever happens to a task makes a
new entry for the dict: a heap's entry is alive while the dict holds that very one.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import outcome
import trio

from . import _recurrence, _schedule_changes, _transitions
from ._dump import read_file, write_file
from ._errors import (
    InvalidTriggerError,
    ScheduleExistsError,
    ScheduleNotFoundError,
    TaskExistsError,
    TaskNotFoundError,
    shown,
)
from ._heaps import Entry, Heap, Heaps
from ._ids import IdMaker
from ._query import TaskQuery, find_order
from ._recurrence import Step
from ._repository import BulkRepository, recover_runs
from ._schedule import FoundSchedules, Schedule, ScheduleChanged, copied
from ._task import Task, TaskState
from ._timer import TimedRepository
from .abc import (
    ANY_TASK,
    Added,
    AddTasks,
    CancelRun,
    CancelTask,
    Claimed,
    ClaimTasks,
    DeleteEnded,
    DispatchTask,
    EndTask,
    NoteProgress,
    OnSchedule,
    Operation,
    RecoverAction,
    RetryTask,
    RevertTask,
    TaskFilter,
    UpdateTask,
)

_SCHEDULED = TaskState.SCHEDULED
_DISPATCHED = TaskState.DISPATCHED

_SLICE = 2000
"""So many tasks are looked at before other Trio tasks get a turn, a few milliseconds."""


class HeapStore(BulkRepository):
    """A `RepositoryLike` in memory, without a timer. Every change is one step.

    Ended tasks are kept up to `keep_ended`, then forgotten, oldest end first: in the order
    in which their ends were recorded, whatever the clock was set to meanwhile.
    """

    def __init__(self, keep_ended: int = 10_000) -> None:
        if isinstance(keep_ended, bool) or not isinstance(keep_ended, int):
            raise TypeError(f"keep_ended must be an int, not {shown(keep_ended)}")
        if keep_ended < 0:
            raise ValueError(f"keep_ended must not be negative, not {shown(keep_ended)}")
        self._keep_ended = keep_ended
        self._entries: dict[str, Entry] = {}
        self._heaps = Heaps(self._entries)
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._sequence = itertools.count()
        self._carry_out: dict[type[Operation], Callable[[Any], Any]] = {
            AddTasks: self._add,
            UpdateTask: self._update,
            CancelTask: self._cancel,
            DispatchTask: self._dispatch,
            ClaimTasks: self._claim,
            EndTask: self._end,
            RetryTask: self._retry,
            NoteProgress: self._note_progress,
            RevertTask: self._revert,
            CancelRun: self._cancel_run,
            DeleteEnded: self._delete_ended,
            OnSchedule: self._change_schedule,
        }
        self._keys: dict[str, str] = {}
        """By key, the task that has it and has not ended."""

        self._schedules: dict[str, Schedule] = {}
        """Nobody else has these: they may change in place, and who asks gets copies."""

        self._runs: dict[str, tuple[str, ...]] = {}
        """By schedule, the tasks of it that are dispatched."""

        self._make_id = IdMaker()

    # -- reading ----------------------------------------------------------------------

    async def get(self, task_id: str) -> Task:
        await trio.lowlevel.checkpoint()
        return self._entry(task_id)[4]

    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        await trio.lowlevel.checkpoint()
        first = self._heaps.look(only, _SLICE)
        while self._heaps.cut_short:
            await trio.lowlevel.checkpoint()
            first = self._heaps.look(only, _SLICE)
        return None if first is None else first[4]

    async def find(
        self, query: TaskQuery, limit: int | None = None, after: Task | None = None
    ) -> list[Task]:
        await trio.lowlevel.checkpoint()
        start = None if after is None else find_order(after)
        # Snapshots do not change, so a list of them may be looked through at leisure.
        tasks = [entry[4] for entry in self._entries.values()]
        found: list[Task] = []
        for first in range(0, len(tasks), _SLICE):
            if first:
                await trio.lowlevel.checkpoint()
            found += [
                task
                for task in tasks[first : first + _SLICE]
                if query.matches(task) and (start is None or find_order(task) > start)
            ]
            if limit is not None:
                found = heapq.nsmallest(limit, found, key=find_order)
        return found if limit is not None else sorted(found, key=find_order)

    async def count_pending(self) -> Mapping[str, int]:
        await trio.lowlevel.checkpoint()
        pending: dict[str, int] = {}
        for heap in self._heaps:
            pending[heap.work_id] = pending.get(heap.work_id, 0) + heap.living
        return pending

    async def count_pools(self) -> Mapping[str, int]:
        await trio.lowlevel.checkpoint()
        pools: dict[str, int] = {}
        for heap in self._heaps:
            if heap.pool is not None:
                pools[heap.pool] = pools.get(heap.pool, 0) + heap.living
        return pools

    async def get_schedule(self, schedule_id: str) -> Schedule:
        await trio.lowlevel.checkpoint()
        try:
            return copied(self._schedules[schedule_id])
        except KeyError:
            raise ScheduleNotFoundError(schedule_id) from None

    async def find_schedules(
        self, limit: int | None = None, after: str | None = None
    ) -> FoundSchedules:
        await trio.lowlevel.checkpoint()
        ids = sorted(each for each in self._schedules if after is None or each > after)
        return FoundSchedules(copied(self._schedules[each]) for each in ids[:limit])

    def snapshot(self) -> list[Task]:
        """All tasks in the order they were added."""
        return [entry[4] for entry in sorted(self._entries.values(), key=_by_age)]

    def schedules(self) -> list[Schedule]:
        """All schedules by id."""
        return [copied(self._schedules[each]) for each in sorted(self._schedules)]

    # -- changing ---------------------------------------------------------------------

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        await trio.lowlevel.checkpoint()
        # No checkpoint below, so all of it is one step.
        outcomes: list[outcome.Outcome[Any]] = []
        for operation in operations:
            try:
                outcomes.append(outcome.Value(self._carry_out[type(operation)](operation)))
            except Exception as error:  # noqa: BLE001 (it is the outcome)
                outcomes.append(outcome.Error(error))
        return outcomes

    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        tasks = [entry[4] for entry in self._entries.values()]
        orphans = [t for t in tasks if t.state is _DISPATCHED and only.accepts(t)]
        return await recover_runs(self, orphans, action, at)

    def _add(self, operation: AddTasks) -> Added:
        new: set[str] = set()
        for task in operation.tasks:
            if task.key is not None:
                return self._add_by_key(operation)
            if task.id in self._entries or task.id in new:
                raise TaskExistsError(task.id)
            new.add(task.id)
        self._put_new(operation.tasks)
        return Added(operation.tasks, [], operation.tasks)

    def _add_by_key(self, operation: AddTasks) -> Added:
        entries = self._entries
        added = _transitions.added(
            operation.tasks, operation.if_exists, entries.__contains__, self._holder_of
        )
        for task in added.changed:
            entry = entries[task.id]
            self._put(task, entry[2], entry[3] + 1)
            self._heaps.bury(entry)
        self._put_new(added.new)
        for task in added.new:
            if task.key is not None and not task.state.ended:
                self._keys[task.key] = task.id
        return added

    def _holder_of(self, key: str) -> Task | None:
        task_id = self._keys.get(key)
        return None if task_id is None else self._entries[task_id][4]

    def _put_new(self, tasks: Sequence[Task]) -> None:
        ended: list[str] = []
        for task in tasks:
            self._put(task, next(self._sequence), 0)
            if task.schedule_id is not None:
                self._note_run(task)
            if task.state.ended:
                ended.append(task.id)
        if ended:
            self._keep_in_order(ended)

    def _update(self, operation: UpdateTask) -> tuple[Task, bool]:
        entry = self._entry(operation.task_id)
        task = _transitions.updated(entry[4], operation.update)
        if task is entry[4]:
            return task, False
        self._put(task, entry[2], entry[3] + 1)
        self._heaps.bury(entry)
        if task.schedule_id is not None:
            self._follow(task, operation.at)
        return task, True

    def _cancel(self, operation: CancelTask) -> tuple[Task, bool]:
        entry = self._entry(operation.task_id)
        task = _transitions.cancelled(entry[4], operation.at)
        if task is entry[4]:
            return task, False
        self._replace(entry, task)
        self._heaps.bury(entry)
        self._keep(task.id)
        if task.schedule_id is not None:
            self._follow(task)
        return task, True

    def _dispatch(self, operation: DispatchTask) -> Task:
        entry = self._entry(operation.task_id)
        once = operation.at_most_once
        task = _transitions.dispatched(entry[4], operation.at, at_most_once=once)
        self._replace(entry, task)
        self._heaps.bury(entry)
        if task.state.ended:
            self._keep(task.id)
        if task.schedule_id is not None:
            self._follow(task)
        return task

    def _claim(self, operation: ClaimTasks) -> Claimed:
        at, limit, once = operation.at, operation.limit, operation.only.at_most_once
        only = operation.only.counting()
        rooms = only.rooms
        claimed = Claimed([], [])
        tasks, expired = claimed.tasks, claimed.expired
        if limit < 1:
            return claimed
        due = self._heaps.take(only, at, _SLICE)
        try:
            for entry, heap in due:
                at_most_once = heap.work_id in once
                if entry[4].schedule_id is None:
                    task = _transitions.dispatched(entry[4], at, at_most_once=at_most_once)
                    self._replace(entry, task)
                else:
                    task = self._take(entry, heap, at, claimed, at_most_once=at_most_once)
                if task.state is _DISPATCHED:
                    tasks.append(task)
                    if rooms:
                        only.take(task)
                elif task.state is not _SCHEDULED:
                    expired.append(task)
                    self._keep(task.id)
                if len(tasks) >= limit or len(expired) >= _SLICE:
                    break
        finally:
            # At once: an error would keep it open for as long as somebody has that.
            due.close()
        return claimed

    def _end(self, operation: EndTask) -> Task:
        entry = self._entry(operation.run.id)
        task = _transitions.ended(
            entry[4], operation.run, operation.at, operation.err, operation.result
        )
        self._replace(entry, task)
        self._keep(task.id)
        if task.schedule_id is not None:
            self._follow(task)
        return task

    def _revert(self, operation: RevertTask) -> Task:
        entry = self._entry(operation.run.id)
        task = _transitions.reverted(entry[4], operation.run)
        self._put(task, entry[2], entry[3] + 1)
        if task.schedule_id is not None:
            self._note_run(task)
        return task

    def _retry(self, operation: RetryTask) -> Task:
        entry = self._entry(operation.run.id)
        task = _transitions.retried(
            entry[4], operation.run, operation.at, operation.scheduled_at, operation.err
        )
        self._put(task, entry[2], entry[3] + 1)
        if task.schedule_id is not None:
            self._note_run(task)
        return task

    def _note_progress(self, operation: NoteProgress) -> Task:
        entry = self._entry(operation.run.id)
        task = _transitions.progressed(entry[4], operation.run, operation.progress)
        self._replace(entry, task)
        return task

    def _cancel_run(self, operation: CancelRun) -> Task:
        entry = self._entry(operation.run.id)
        task = _transitions.interrupted(entry[4], operation.run, operation.at)
        self._replace(entry, task)
        self._keep(task.id)
        if task.schedule_id is not None:
            self._follow(task)
        return task

    def _delete_ended(self, operation: DeleteEnded) -> list[str]:
        states, before, limit = operation.states, operation.before, operation.limit
        ended = (self._entries[task_id][4] for task_id in self._ended)
        found = (
            task.id
            for task in ended
            if task.state in states and (before is None or _end(task) < before)
        )
        # All that can be counted is not more than an index can be.
        deleted = list(itertools.islice(found, limit and min(limit, sys.maxsize)))
        for task_id in deleted:
            del self._ended[task_id], self._entries[task_id]
        return deleted

    # -- schedules --------------------------------------------------------------------

    def _change_schedule(self, operation: OnSchedule) -> ScheduleChanged:
        change = operation.change
        schedule = self._schedules.get(change.schedule_id)
        head = None if schedule is None else self._entries.get(schedule.pending_id or "")
        if head is not None and head[4].state is not _SCHEDULED:
            head = None
        head_task = None if head is None else head[4]
        run = None if schedule is None else self._run_of(schedule)
        step = _schedule_changes.change(schedule, head_task, change, self._make_id, run)
        if step is None:
            there = None if schedule is None else copied(schedule)
            return ScheduleChanged(there, changed=False)
        if step.task is not None and head is not None:
            self._move(head, step.task)
            self._heaps.bury(head)
            if step.task.state is not _SCHEDULED:
                self._keep(step.task.id)
        if step.schedule is None:
            del self._schedules[change.schedule_id]
        self._keep_step(step)
        return ScheduleChanged(
            None if step.schedule is None else copied(step.schedule),
            changed=True,
            task=step.task,
            made=step.successor,
            dropped=[*step.dropped],
        )

    def _run_of(self, schedule: Schedule) -> Task | None:
        """What a schedule waits for, or else its last run."""
        if schedule.awaited_id is not None:
            entry = self._entries.get(schedule.awaited_id)
            return None if entry is None else entry[4]
        runs = self._runs.get(schedule.id, ())
        return _schedule_changes.last_of(self._entries[each][4] for each in runs)

    def check_new(self, schedules: Sequence[Schedule]) -> None:
        """Raise a `ScheduleExistsError` if one of them is there already."""
        for schedule in schedules:
            if schedule.id in self._schedules:
                raise ScheduleExistsError(schedule.id)

    def put_schedules(self, schedules: Sequence[Schedule]) -> None:
        """Keep schedules as they stand, whose tasks are there."""
        self._schedules |= {schedule.id: schedule for schedule in schedules}

    def _take(
        self,
        entry: Entry,
        heap: Heap,
        at: datetime,
        claimed: Claimed,
        *,
        at_most_once: bool,
    ) -> Task:
        """Take a due task of a schedule, whose entry has left the heap."""
        task = entry[4]
        schedule = self._schedules.get(task.schedule_id or "")
        if schedule is None:  # removed since
            task = _transitions.dispatched(task, at, at_most_once=at_most_once)
            self._replace(entry, task)
            self._note_run(task)
            return task
        try:
            taken = _recurrence.take_simply(schedule, task, at, at_most_once=at_most_once)
        except InvalidTriggerError as error:
            step = _recurrence.failed(schedule, task, at, error)
        else:
            if taken is not None:
                self._replace(entry, taken)
                self._note_run(taken)
                return taken
            step = _recurrence.take(
                schedule, task, at, self._make_id, at_most_once=at_most_once
            )
        assert step.task is not None
        task = step.task
        self._move(entry, task)
        self._keep_step(step)
        for next_ in task, step.successor:
            if next_ is None or next_.state is not _SCHEDULED:
                continue
            claimed.made.append(next_)
            if heap.lanes or (next_.pool, next_.work_id) != (heap.pool, heap.work_id):
                # It may be in another heap, if a user has changed the one before; or, with
                # limits, among those of another value.
                self._heaps.look_again()
        claimed.dropped += step.dropped
        if _recurrence.replaces(schedule, task):
            claimed.replace(self._cancel_runs(schedule.id, at))
        self._note_run(task)
        return task

    def _cancel_runs(self, schedule_id: str, at: datetime) -> list[Task]:
        """Cancel all that runs of a schedule."""
        cancelled: list[Task] = []
        for task_id in self._runs.pop(schedule_id, ()):
            entry = self._entries[task_id]
            task = _transitions.interrupted(entry[4], entry[4], at)
            self._replace(entry, task)
            self._keep(task.id)
            cancelled.append(task)
        return cancelled

    def _move(self, entry: Entry, task: Task) -> None:
        """Hold a task of a schedule in place of a pending one that is in no heap."""
        if task.state is _SCHEDULED:
            self._put(task, entry[2], entry[3] + 1)
        else:
            self._replace(entry, task)

    def _follow(self, task: Task, at: datetime | None = None) -> None:
        """Have the schedule of a task follow what became of it, then."""
        self._note_run(task)
        schedule = self._schedules.get(task.schedule_id or "")
        if schedule is None:
            return
        successor = _recurrence.follow_simply(schedule, task, self._make_id)
        if successor is not None:
            self._put(successor, next(self._sequence), 0)
        else:
            self._keep_step(_recurrence.follow(schedule, task, self._make_id, at))

    def _keep_step(self, step: Step | None) -> None:
        if step is None:
            return
        if step.schedule is not None:
            self._schedules[step.schedule.id] = step.schedule
        if step.successor is not None:
            self._put(step.successor, next(self._sequence), 0)

    def _note_run(self, task: Task) -> None:
        """Keep in mind which tasks of a schedule run."""
        schedule_id, task_id = task.schedule_id, task.id
        assert schedule_id is not None
        # Most have one at most, and a tuple is made faster than a dict.
        runs = self._runs.pop(schedule_id, ())
        if task.state is _DISPATCHED:
            self._runs[schedule_id] = (*runs, task_id) if runs else (task_id,)
        elif runs and runs != (task_id,):
            self._runs[schedule_id] = tuple(each for each in runs if each != task_id)

    # -- entries ----------------------------------------------------------------------

    def _entry(self, task_id: str) -> Entry:
        try:
            return self._entries[task_id]
        except KeyError:
            raise TaskNotFoundError(task_id) from None

    def _put(self, task: Task, sequence: int, version: int) -> None:
        """Hold a task, pending or not; its place among the oldest is `sequence`."""
        entry = (task.scheduled_at, -task.priority, sequence, version, task)
        self._entries[task.id] = entry
        if task.state is _SCHEDULED:
            self._heaps.put(entry)

    def _replace(self, entry: Entry, task: Task) -> None:
        """Hold a task that is not pending in place of what was there."""
        at, order, sequence, version, _ = entry
        self._entries[task.id] = (at, order, sequence, version, task)

    def _keep(self, task_id: str) -> None:
        """Keep an ended task for a while, and forget the oldest of too many."""
        self._ended[task_id] = None
        if self._keys:
            key = self._entries[task_id][4].key
            if key is not None and self._keys.get(key) == task_id:
                del self._keys[key]
        if len(self._ended) > self._keep_ended:
            oldest, _ = self._ended.popitem(last=False)
            del self._entries[oldest]

    def _keep_in_order(self, task_ids: Sequence[str]) -> None:
        """Keep tasks that had ended before they came here, in their place by age."""
        new = sorted(task_ids, key=self._end_of)
        last = next(reversed(self._ended), None)
        if last is not None and self._end_of(new[0]) < self._end_of(last):
            new = sorted((*self._ended, *new), key=self._end_of)
            self._ended.clear()
        for task_id in new:
            self._keep(task_id)

    def _end_of(self, task_id: str) -> datetime:
        return _end(self._entries[task_id][4])


def _by_age(entry: Entry) -> int:
    return entry[2]


def _end(task: Task) -> datetime:
    ended_at = task.ended_at
    # A task from elsewhere may say that it has ended, but not when.
    return task.created_at if ended_at is None else ended_at


class HeapRepository(TimedRepository[HeapStore]):
    """Tasks in memory, and the timer that watches them.

    The next task is found in O(log n); ended tasks are kept up to `keep_ended`, and then
    forgotten, oldest end first. What must outlive the program can be dumped to a file.
    """

    def __init__(self, keep_ended: int = 10_000) -> None:
        super().__init__(HeapStore(keep_ended))

    async def dump(self, path: str | Path) -> None:
        """Write schedules and tasks to a file, one a line as JSON.

        Tasks are in the order in which they were added. The file is replaced as a whole:
        after a crash it is the old one or the new.
        Cancellation waits for the file, which is then written or as it was.

        Raises:
          OSError: if it cannot be written; what was there stays.
          InvalidTriggerError: a trigger of somebody's own could not be read again.
        """
        schedules = self.store.schedules()
        await write_file(Path(path), schedules, self.store.snapshot())

    async def load(self, path: str | Path) -> None:
        """Add the schedules and tasks of a dumped file, in the states they had.

        Call it before the scheduler runs, which then recovers those that were
        dispatched. Either all are loaded or none.

        Raises:
          DamagedFileError: if a line is neither a schedule nor a task.
          TaskExistsError, ScheduleExistsError: if an id is there already.
          OSError: if the file cannot be read.
        """
        schedules, tasks = await read_file(Path(path))
        self.store.check_new(schedules)
        await self.add(tasks)
        self.store.put_schedules(schedules)
