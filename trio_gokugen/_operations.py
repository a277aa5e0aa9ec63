"""Changes to a repository, as data.

The update loop takes all that is waiting as one batch, and a repository that can makes
one transaction of it: so what is wanted must be a value, not a call. Each operation
stands for the method of `RepositoryLike` of the same meaning, and knows how to be
carried out by calling it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import attrs

from ._errors import InvalidTaskError
from ._json import JSON
from ._key_limits import KeyRoom
from ._query import TaskQuery
from ._schedule import ChangeSchedule, Dropped, ScheduleChanged
from ._task import ENDED, Progress, Task, TaskState, TaskUpdate, as_utc_or_none
from ._transitions import Added

if TYPE_CHECKING:
    from .abc import RepositoryLike


class RecoverAction(enum.Enum):
    """What becomes of tasks found dispatched with nobody running them."""

    REVERT = "revert"
    """Back to scheduled: they run again."""

    FAIL = "fail"
    """Ended as failed: for work that must not run twice."""

    LEAVE = "leave"
    """Left as they are, for somebody else to decide."""


@attrs.frozen
class OfPools:
    """Which tasks are for somebody, by the pools that they name."""

    names: frozenset[str] = frozenset()
    """Tasks that name one of these pools."""

    works: frozenset[str] | None = None
    """And those that name none, if they are of these works; `None` for any."""

    def accepts(self, task: Task) -> bool:
        """Whether it is for them."""
        if task.pool is not None:
            return task.pool in self.names
        return self.works is None or task.work_id in self.works

    def __and__(self, other: OfPools) -> OfPools:
        return OfPools(self.names & other.names, _both(self.works, other.works))


_Some = TypeVar("_Some", frozenset[str], OfPools)


def _both(one: _Some | None, other: _Some | None) -> _Some | None:
    """What both want, where none wants all."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


@attrs.frozen(cache_hash=True)
class TaskFilter:
    """Which pending tasks somebody is ready to take."""

    work_ids: frozenset[str] | None = None
    """Only tasks of these works; `None` for any."""

    at_most_once: frozenset[str] = frozenset()
    """Of these works, an attempt that is lost must not be repeated."""

    rooms: tuple[KeyRoom, ...] = ()
    """Only tasks for which each of these has room; it changes as runs begin and end."""

    pools: OfPools | None = None
    """Only tasks that are for these pools; `None` for any."""

    @property
    def unnamed(self) -> frozenset[str] | None:
        """The works of which those tasks are taken that name no pool; `None` for any."""
        works = None if self.pools is None else self.pools.works
        return self.work_ids if works is None else _both(self.work_ids, works)

    def accepts(self, task: Task) -> bool:
        """Whether somebody is ready to take the task, now."""
        if self.work_ids is not None and task.work_id not in self.work_ids:
            return False
        if self.pools is not None and not self.pools.accepts(task):
            return False
        return not self.rooms or all(room.admits(task) for room in self.rooms)

    def counting(self) -> TaskFilter:
        """A filter that counts on by itself what a claim takes; see `take`."""
        if not self.rooms:
            return self
        return attrs.evolve(self, rooms=tuple(room.copy() for room in self.rooms))

    def take(self, task: Task) -> None:
        """Count a task that is taken: there is less room now for the next."""
        for room in self.rooms:
            room.begin(task)

    def __and__(self, other: TaskFilter) -> TaskFilter:
        pools = _both(self.pools, other.pools)
        work_ids = _both(self.work_ids, other.work_ids)
        once = self.at_most_once | other.at_most_once
        return TaskFilter(work_ids, once, self.rooms + other.rooms, pools)


ANY_TASK = TaskFilter()


@attrs.define
class Renewed:
    """What the renewal of leases found."""

    lost: list[Task]
    """Those of the runs that have lost their task."""

    recovered: list[Task]
    """Tasks whose run had let its lease expire, as they now stand."""


@attrs.define
class Claimed:
    """What a claim found."""

    tasks: list[Task]
    """Dispatched, in the order they are to start."""

    expired: list[Task]
    """Ended instead of dispatched: failed, past their deadline.

    Or cancelled: occurrences that are not to run, of schedules that have no more.
    """

    made: list[Task] = attrs.field(factory=list[Task])
    """Next occurrences of schedules, now pending."""

    replaced: list[Task] = attrs.field(factory=list[Task])
    """Runs whose place the next occurrences of their schedules take: cancelled.

    They may go on until they are told so; their tasks have ended.
    """

    dropped: list[Dropped] = attrs.field(factory=list[Dropped])
    """Occurrences of schedules that do not run."""

    def replace(self, runs: Sequence[Task]) -> None:
        """Note runs that were cancelled, among them maybe some of this very claim."""
        ended = {run.id for run in runs}
        mine = {task.id for task in self.tasks if task.id in ended}
        if mine:
            self.tasks[:] = [task for task in self.tasks if task.id not in mine]
        for run in runs:
            (self.expired if run.id in mine else self.replaced).append(run)


IfExists: TypeAlias = Literal["raise", "return", "replace"]
"""What becomes of a new task, if another of its key has not ended."""


@attrs.define(eq=False)
class AddTasks:
    """Keep new tasks: all of them or, if one is refused, none."""

    tasks: Sequence[Task]
    if_exists: IfExists = "raise"

    async def carry_out(self, repository: RepositoryLike) -> Added:
        return await repository.add(self.tasks, self.if_exists)


@attrs.define(eq=False)
class UpdateTask:
    """Change a scheduled task."""

    task_id: str
    update: TaskUpdate
    at: datetime | None = None
    """When that is asked for. If it postpones an occurrence, the next one is made then."""

    async def carry_out(self, repository: RepositoryLike) -> tuple[Task, bool]:
        return await repository.update(self.task_id, self.update)


@attrs.define(eq=False)
class CancelTask:
    """Cancel a scheduled task."""

    task_id: str
    at: datetime

    async def carry_out(self, repository: RepositoryLike) -> tuple[Task, bool]:
        return await repository.cancel(self.task_id, self.at)


@attrs.define(eq=False)
class DispatchTask:
    """Mark one due task dispatched."""

    task_id: str
    at: datetime
    at_most_once: bool = False

    async def carry_out(self, repository: RepositoryLike) -> Task:
        return await repository.mark_dispatched(
            self.task_id, self.at, at_most_once=self.at_most_once
        )


@attrs.define(eq=False)
class ClaimTasks:
    """Mark the first due tasks dispatched, in the order of dispatch."""

    limit: int
    at: datetime
    only: TaskFilter = ANY_TASK

    async def carry_out(self, repository: RepositoryLike) -> Claimed:
        return await repository.claim(self.limit, self.at, self.only)


@attrs.define(eq=False)
class EndTask:
    """Record how a run ended: done, or failed if there is an `err`."""

    run: Task
    at: datetime
    err: str | None = None
    result: JSON = None

    async def carry_out(self, repository: RepositoryLike) -> Task:
        return await repository.mark_done(self.run, self.at, self.err, self.result)


@attrs.define(eq=False)
class RetryTask:
    """Have a run's task run again, later. The run has failed, if there is an `err`."""

    run: Task
    at: datetime
    scheduled_at: datetime
    err: str | None = None

    async def carry_out(self, repository: RepositoryLike) -> Task:
        return await repository.retry(self.run, self.at, self.scheduled_at, self.err)


@attrs.define(eq=False)
class NoteProgress:
    """Record how far a run has come."""

    run: Task
    progress: Progress

    async def carry_out(self, repository: RepositoryLike) -> Task:
        return await repository.note_progress(self.run, self.progress)


@attrs.define(eq=False)
class RevertTask:
    """Put an interrupted run's task back to scheduled."""

    run: Task

    async def carry_out(self, repository: RepositoryLike) -> Task:
        return await repository.revert(self.run)


@attrs.define(eq=False)
class CancelRun:
    """Record that a run was interrupted and its task with it."""

    run: Task
    at: datetime

    async def carry_out(self, repository: RepositoryLike) -> Task:
        return await repository.mark_cancelled(self.run, self.at)


@attrs.define(eq=False)
class DeleteEnded:
    """Forget ended tasks, oldest end first."""

    before: datetime | None = None
    """Only tasks that ended earlier than this."""

    states: Collection[TaskState] = ENDED
    limit: int | None = None

    def __attrs_post_init__(self) -> None:
        self.before = as_utc_or_none(self.before, "before")
        # A query is as particular about its states, and takes any collection of them.
        states = TaskQuery(states=self.states).states
        if states is None or not ENDED.issuperset(states):
            raise InvalidTaskError("states", "only tasks that have ended can be deleted")
        self.states = states

    async def carry_out(self, repository: RepositoryLike) -> list[str]:
        return await repository.delete_ended(self.before, self.states, self.limit)


@attrs.define(eq=False)
class OnSchedule:
    """Add, change or remove a schedule."""

    change: ChangeSchedule

    async def carry_out(self, repository: RepositoryLike) -> ScheduleChanged:
        return await repository.change_schedule(self.change)


Operation: TypeAlias = (
    AddTasks
    | UpdateTask
    | CancelTask
    | DispatchTask
    | ClaimTasks
    | EndTask
    | RetryTask
    | NoteProgress
    | RevertTask
    | CancelRun
    | DeleteEnded
    | OnSchedule
)

Free: TypeAlias = Callable[[], int]
"""How many workers are free at the moment of the call."""

Start: TypeAlias = Callable[[Task], None]
"""Begins the run of a task that has just been recorded as dispatched."""
