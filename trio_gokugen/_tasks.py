"""What a program says to the scheduler about tasks."""

from __future__ import annotations

import math
from collections.abc import (
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from datetime import datetime, timedelta

from . import _transitions
from ._arguments import check_if_exists, check_key, check_limit, checked_id, new_param
from ._calls import Calls
from ._current_task import current_task
from ._engine import Engine
from ._errors import (
    AlreadyDispatchedError,
    InvalidTaskError,
    NotRunningHereError,
    StopReason,
    TaskNotFoundError,
    shown,
)
from ._ids import IdMaker
from ._json import JSON
from ._mutators import Mutator, mutated
from ._query import TaskQuery
from ._retry import Retry
from ._task import (
    ENDED,
    UNCHANGED,
    Maybe,
    Progress,
    Task,
    TaskParam,
    TaskState,
    TaskUpdate,
    new_task,
)
from .abc import (
    Added,
    AddTasks,
    CancelTask,
    DeleteEnded,
    IfExists,
    NoteProgress,
    UpdateTask,
)

_DELETED_AT_A_TIME = 1_000


class Tasks(Calls):
    """The part of a `Scheduler` that is about tasks. Each method is a checkpoint."""

    _make_id: IdMaker

    async def add_task(
        self,
        work_id: str,
        param: Mapping[str, JSON] | None = None,
        *,
        at: datetime | None = None,
        after: float | timedelta | None = None,
        priority: int = 0,
        deadline: datetime | None = None,
        meta: Mapping[str, JSON] | None = None,
        id: str | None = None,
        key: str | None = None,
        if_exists: IfExists = "raise",
        retry: Retry | None = None,
        pool: str | None = None,
        mutate: Mutator | None = None,
    ) -> Task:
        """Have a work run at a moment, or after some time.

        Args:
          work_id: Name of a registered work.
          param: Keyword arguments for the work, as a JSON object.
          at: Earliest moment to start: aware; one that has passed means now.
          after: Seconds from now, instead of `at`.
          priority: Among tasks due at the same moment, the larger goes first.
          deadline: Moment from which on it must not start, and is cancelled if running.
          meta: A JSON object of your own: to search by, never passed to the work.
          id: An id of your own, which makes it safe to repeat an add whose answer was
            lost: the second is a `TaskExistsError`.
          key: What makes it unique: of the tasks that have not ended, no two have the same.
          if_exists: If another has this key: ``"raise"`` a `KeyExistsError`; ``"return"``
            that one, and add none; or ``"replace"`` what is to be done and when by what is
            given here, as one does to wait until things have calmed down.
          retry: Whether it is tried again if it fails, instead of what its work says.
          pool: The pool it runs in, instead of the one that is for its work.
          mutate: Makes of the new task another, and is told the moment: what `randomised`
            gives, or a function of your own.

        Returns:
          The task as it was stored; or the one that has the key, as it is now.

        Raises:
          InvalidTaskError: a value cannot be used; `field` names it.
          WorkNotFoundError: no such work is registered.
          PoolNotFoundError: the dispatcher has no such pool.
          TaskExistsError: a task of this id is there.
          KeyExistsError: a task of this key is there that has not ended.
          AlreadyDispatchedError: that task was to be replaced, and runs already.
        """
        engine = self._running()
        now = engine.clock.now()
        new = new_param(
            now, work_id, param, at, after, priority, deadline, meta, id, key, retry, pool
        )
        check_if_exists(if_exists)
        new = mutated(new, mutate, now)
        check_key(new, if_exists)
        self._check(new.work_id, new.param)
        self._check_pools(new.pool)
        [task] = await self._add(engine, [new], if_exists)
        return task

    async def add_tasks(
        self,
        params: Iterable[TaskParam],
        *,
        if_exists: IfExists = "raise",
        mutate: Mutator | None = None,
    ) -> list[Task]:
        """Add many tasks in one go: all of them or, if one is refused, none.

        Args:
          params: What each is made from.
          if_exists: What becomes of one whose `key` another has, as in `add_task`.
          mutate: Makes of each another, before it is checked, and is told the moment:
            `run_now`, what `randomised` gives, or a function of your own.

        Returns:
          The tasks as they were stored, in the same order.

        Raises:
          InvalidTaskError, WorkNotFoundError: as `add_task`; `index` tells which.
          PoolNotFoundError: as `add_task`.
          TaskExistsError: an id is taken, or given twice.
          KeyExistsError: a key is.
          AlreadyDispatchedError: a task that was to be replaced runs already.
        """
        engine = self._running()
        if not isinstance(params, Iterable):
            raise InvalidTaskError("params", f"must be TaskParams, not {shown(params)}")
        check_if_exists(if_exists)
        now = engine.clock.now()
        new: list[TaskParam] = []
        for index, given in enumerate(params):
            if not isinstance(given, TaskParam):
                raise InvalidTaskError(
                    "params", f"must be TaskParam, not {type(given).__name__}", index
                )
            param = mutated(given, mutate, now, index)
            self._check(param.work_id, param.param, index)
            new.append(param)
        self._check_pools(*(param.pool for param in new))
        return await self._add(engine, new, if_exists)

    async def _add(
        self, engine: Engine, params: Sequence[TaskParam], if_exists: IfExists
    ) -> list[Task]:
        now = engine.clock.now()
        tasks = [
            new_task(param, self._make_id(now) if param.id is None else param.id, now)
            for param in params
        ]
        added: Added = await engine.updates.queue.ask(lambda _: AddTasks(tasks, if_exists))
        engine.dispatches.notice_new_works()
        return list(added.tasks)

    async def update(
        self,
        task_id: str,
        *,
        scheduled_at: Maybe[datetime] = UNCHANGED,
        work_id: Maybe[str] = UNCHANGED,
        param: Maybe[Mapping[str, JSON] | None] = UNCHANGED,
        priority: Maybe[int] = UNCHANGED,
        deadline: Maybe[datetime | None] = UNCHANGED,
        meta: Maybe[Mapping[str, JSON] | None] = UNCHANGED,
        pool: Maybe[str | None] = UNCHANGED,
    ) -> bool:
        """Change a task that has not been dispatched. What is not given stays.

        Returns:
          Whether anything has changed. If this returns, no worker has the task yet, and
          it will run as changed.

        Raises:
          InvalidTaskError: a value cannot be used, or does not go with the others.
          WorkNotFoundError: no such work is registered.
          PoolNotFoundError: the dispatcher has no such pool.
          TaskNotFoundError, AlreadyDispatchedError, AlreadyCancelledError,
          AlreadyDoneError: it can no longer be changed.
        """
        engine = self._running()
        task_id = checked_id(task_id)
        update = TaskUpdate(
            work_id=work_id,
            scheduled_at=scheduled_at,
            param=param,
            priority=priority,
            deadline=deadline,
            meta=meta,
            pool=pool,
        )
        if update.pool is not UNCHANGED:
            self._check_pools(update.pool)

        def operation(now: datetime) -> UpdateTask:
            return UpdateTask(task_id, update, now)

        if update.work_id is UNCHANGED and update.param is UNCHANGED:
            _, changed = await engine.updates.queue.ask(operation)
        else:
            # What is checked must still be so as it is written.
            async with self._turn("task", task_id) as end_turn:
                await self._check_update(task_id, update)
                _, changed = await engine.updates.queue.ask(operation, laid_down=end_turn)
        engine.dispatches.notice_new_works()
        return bool(changed)

    async def cancel(self, task_id: str) -> bool:
        """Keep a task from running.

        Returns:
          True if this cancelled it, False if it had been cancelled before. Either way
          it does not run.

        Raises:
          TaskNotFoundError, AlreadyDispatchedError, AlreadyDoneError: it is too late.
        """
        engine = self._running()
        task_id = checked_id(task_id)
        _, changed = await engine.updates.queue.ask(lambda now: CancelTask(task_id, now))
        return bool(changed)

    async def interrupt(self, task_id: str) -> Task:
        """Cancel a running work, and return when it has really ended.

        The work sees a cancellation at its next checkpoint, and may take its time to
        clean up; cancelling this call does not take the interruption back.

        Returns:
          The task: cancelled, or done or failed if the work had ended before it noticed.

        Raises:
          TaskNotFoundError, NotDispatchedError, AlreadyCancelledError,
          AlreadyDoneError: there is nothing to interrupt.
          NotRunningHereError: another scheduler runs it.
          LostRunError: the run had lost its task, which goes on without it.
        """
        engine = self._running()
        task_id = checked_id(task_id)
        ledger = engine.ledger
        while task_id not in ledger.runs:
            version = ledger.version
            task = await self._repository.get(task_id)
            _transitions.check(task, _transitions.Action.INTERRUPT)
            if ledger.writing:
                await ledger.wait_until_written()  # its claim, or its end, maybe
            elif version == ledger.version:
                raise NotRunningHereError(task_id)
            self._running()
        task = await self._interrupt_run(engine, ledger.runs[task_id])
        if task.state.ended:
            return task
        # It had failed before, and was to be tried again.
        try:
            await engine.updates.queue.ask(lambda now: CancelTask(task_id, now))
        except AlreadyDispatchedError:
            return await self.interrupt(task_id)
        return await self._repository.get(task_id)

    async def _interrupt_run(self, engine: Engine, run: Task) -> Task:
        waiter = engine.ledger.watch(run.id, run)
        # If the dispatcher does not know it any more, its result is on the way.
        self._dispatcher.cancel(run, StopReason.INTERRUPT)
        try:
            return await waiter.wait()
        finally:
            engine.ledger.unwatch(waiter)

    async def progress(self, fraction: float, note: str | None = None) -> None:
        """Tell from inside a work how far it has come: `get` shows it from then on.

        It stays with the task, also if that is tried again.

        Args:
          fraction: From 0 to 1.
          note: At most 1,000 characters.

        Raises:
          InvalidTaskError: a value cannot be used; `field` names it.
          RuntimeError: not called from inside a work.
          NotDispatchedError, LostRunError, AlreadyCancelledError, AlreadyDoneError: the run
            has lost its task.
        """
        engine = self._running()
        try:
            run = current_task()
        except RuntimeError:
            raise RuntimeError("progress() is for use inside a work") from None
        told = Progress(fraction=fraction, note=note, at=engine.clock.now())
        await engine.updates.queue.ask(lambda _: NoteProgress(run, told))

    async def get(self, task_id: str) -> Task:
        """The task as it stands, or a `TaskNotFoundError`."""
        self._running()
        return await self._repository.get(checked_id(task_id))

    async def find(
        self,
        query: TaskQuery | None = None,
        *,
        limit: int | None = 100,
        after: Task | None = None,
    ) -> list[Task]:
        """Tasks that match, by `scheduled_at`, largest priority, `created_at` and id.

        Args:
          query: What to look for; all tasks by default.
          limit: At most so many; `None` for all of them.
          after: The last task of the page before, to get the next page.
        """
        self._running()
        check_limit(limit)
        query = TaskQuery() if query is None else query
        if not isinstance(query, TaskQuery):
            raise TypeError(f"query: must be a TaskQuery, not {shown(query)}")
        if after is not None and not isinstance(after, Task):
            raise TypeError(f"after: must be a Task of a page before, not {shown(after)}")
        return await self._repository.find(query, limit, after)

    async def wait(self, task_id: str) -> Task:
        """Wait until the task has ended, in whatever state, and return it.

        Raises:
          TaskNotFoundError: there is no such task.
        """
        engine = self._running()
        ledger = engine.ledger
        task_id = checked_id(task_id)
        engine.dispatches.notice_new_works()
        # Wait first and read then: an end that comes in between would be missed.
        waiter = ledger.watch(task_id)
        try:
            try:
                task = await self._repository.get(task_id)
            except TaskNotFoundError:
                if waiter.ended is None:
                    raise
                return waiter.ended  # it has ended and been forgotten meanwhile
            return task if task.state.ended else await waiter.wait()
        finally:
            ledger.unwatch(waiter)

    async def delete_ended(
        self,
        *,
        before: datetime | None = None,
        states: Collection[TaskState] = ENDED,
        limit: int | None = None,
    ) -> list[str]:
        """Forget ended tasks, oldest end first.

        Many are deleted in several steps, so that nobody else waits for long; cancelled
        in between, this has deleted some of them.

        Args:
          before: Only those that ended before this moment.
          states: Only those in these states, which must be ended ones.
          limit: At most so many.

        Returns:
          The ids of exactly those that were deleted.
        """
        engine = self._running()
        check_limit(limit)
        left = math.inf if limit is None else limit
        deleted: list[str] = []
        while left:
            step = int(min(left, _DELETED_AT_A_TIME))
            some = await self._delete_some(engine, DeleteEnded(before, states, step))
            deleted += some
            left -= len(some)
            if len(some) < step:
                break
        return deleted

    async def _delete_some(self, engine: Engine, operation: DeleteEnded) -> list[str]:
        deleted: list[str] = await engine.updates.queue.ask(lambda _: operation)
        return deleted

    async def _check_update(self, task_id: str, update: TaskUpdate) -> None:
        """Check that the work will take the param.

        A task of a work that is not known here is somebody else's to check.
        """
        task = await self._repository.get(task_id)
        _transitions.check(task, _transitions.Action.UPDATE)
        param = task.param if update.param is UNCHANGED else (update.param or {})
        if update.work_id is not UNCHANGED:
            self._check(update.work_id, param)
        elif task.work_id in self._works.work_ids:
            self._check(task.work_id, param)
