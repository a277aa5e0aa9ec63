"""A batch of operations, in one transaction.

Between two claims, all tasks that the operations name are read by one statement; what
becomes of them is decided in Python, by the same table that every repository asks; and
what has changed is written by one statement for each kind of change. So a batch of a
hundred costs hardly more round trips than one.

An id that is taken is found out by trying: only if the database refuses the new rows, all
is undone, and the batch begun anew with a look first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, TypeAlias

import attrs
import outcome
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    delete,
    literal,
    select,
    tuple_,
)

from trio_gokugen import _transitions
from trio_gokugen._errors import REFUSALS, LostRunError, TaskExistsError, TaskNotFoundError
from trio_gokugen._repository import recovery
from trio_gokugen._task import Task, TaskState
from trio_gokugen.abc import (
    ANY_TASK,
    AddTasks,
    CancelRun,
    CancelTask,
    Claimed,
    ClaimTasks,
    DeleteEnded,
    DispatchTask,
    EndTask,
    Operation,
    RecoverAction,
    Renewed,
    RevertTask,
    TaskFilter,
    UpdateTask,
)

from ._dialects import Dialect
from ._rows import END, end_of, is_unreadable, life_of, plan_of, task_of
from ._schema import EPOCH, TASK, Moment
from ._statements import Statements

CHUNK = 1_000
"""So many rows go into one statement."""

LAST = datetime.max.replace(tzinfo=UTC)

_MANY = 2**62


class LookFirstError(Exception):
    """An id is taken: the batch is to be begun anew, carefully."""


_End: TypeAlias = tuple[int, Task, Task]
"""The number of an operation, the run that it ends, and what becomes of the task."""


@attrs.define(eq=False)
class _Entry:
    """A task that a batch is about."""

    task: Task
    stored: Task | None
    """As the database has it; none if it is new."""

    sequence: int | None
    owner: str | None
    replanned: bool = False


class Transaction:
    """What is done within a transaction that another begins, and ends."""

    def __init__(
        self,
        connection: Connection,
        dialect: Dialect,
        statements: Statements,
        name: str,
        lease: timedelta,
        *,
        careful: bool = False,
    ) -> None:
        """Work on a connection.

        Args:
          connection: In a transaction that may write.
          dialect: How its database is spoken to.
          statements: What is said to it.
          name: Who it is that runs what is claimed.
          lease: For how long.
          careful: Look whether ids are taken before they are used.
        """
        self._connection = connection
        self._dialect = dialect
        self._statements = statements
        self._name = name
        self._lease = lease
        self._careful = careful
        self._entries: dict[str, _Entry] = {}
        self.appeared: dict[str, datetime] = {}
        """By work, the first moment for which a task has become pending."""

        self.seal: str | None = None
        """What to ask for, if nobody knows whether it was committed; see `Dialect.seal`."""

    def apply(self, operations: Sequence[Operation]) -> list[outcome.Outcome[Any]]:
        """Carry out operations one after the other."""
        outcomes: list[outcome.Outcome[Any]] = []
        start = 0
        for index, operation in enumerate(operations):
            if isinstance(operation, ClaimTasks | DeleteEnded):
                outcomes += self._change(operations[start:index])
                outcomes.append(self._carry_out_alone(operation))
                start = index + 1
        outcomes += self._change(operations[start:])
        return outcomes

    def _carry_out_alone(self, operation: ClaimTasks | DeleteEnded) -> outcome.Value[Any]:
        if isinstance(operation, ClaimTasks):
            return outcome.Value(self._claim(operation))
        return outcome.Value(self._delete_ended(operation))

    # -- what is about tasks that are named ---------------------------------------------

    def _change(self, operations: Sequence[Operation]) -> list[outcome.Outcome[Any]]:
        if not operations:
            return []
        self._entries = {}
        ended = self._end_runs(operations)
        self._read(each for index, each in enumerate(operations) if index not in ended)
        outcomes: list[outcome.Outcome[Any]] = []
        for index, operation in enumerate(operations):
            try:
                task = ended.get(index) or self._carry_out(operation)
                outcomes.append(outcome.Value(task))
            except REFUSALS as error:
                outcomes.append(outcome.Error(error))
        self._write()
        return outcomes

    def _end_runs(self, operations: Sequence[Operation]) -> dict[int, Task]:
        """End the runs that have their tasks, without reading these.

        For of a dispatched task nothing else changes: as it was claimed, so it stands.

        Returns:
          The tasks, by the number of the operation. What is not among them is to be looked
          at: what did not end well, for one, and what several operations are about.
        """
        if self._careful:
            return {}
        alone = _named_once(operations)
        alike: dict[tuple[Any, ...], dict[str, _End]] = {}
        for index, operation in enumerate(operations):
            if not isinstance(operation, EndTask | RevertTask | CancelRun):
                continue
            run = operation.run
            if run.id in alone and run.state is TaskState.DISPATCHED:
                task = _after(operation, run)
                if task.err is None:
                    how = task.state, task.done_at, task.cancelled_at, run.attempt
                    alike.setdefault(how, {})[run.id] = index, run, task
        ended: dict[int, Task] = {}
        for ends in alike.values():
            for chunk in _chunks(sorted(ends)):
                ended |= self._end_alike({each: ends[each] for each in chunk})
        return ended

    def _end_alike(self, ends: Mapping[str, _End]) -> Iterator[tuple[int, Task]]:
        """End runs that end in the same way, by the id of their tasks."""
        _, run, task = next(iter(ends.values()))
        parameters = {
            "ids": self._dialect.listed(ends),
            "name": self._name,
            "run_attempt": run.attempt,
            "more": task.interruptions - run.interruptions,
            **end_of(task),
        }
        rows = self._connection.execute(self._statements.end_runs, parameters)
        for task_id, created_at, self.seal in rows:
            index, run, task = ends[task_id]
            if created_at != run.created_at:
                raise LookFirstError  # it is another task of this id, and all is undone
            if task.state is TaskState.SCHEDULED:
                self._note_pending(task)
            yield index, task

    def _read(self, operations: Iterable[Operation]) -> None:
        ids: set[str] = set()
        for operation in operations:
            match operation:
                case AddTasks(tasks=tasks):
                    if self._careful:
                        ids.update(task.id for task in tasks)
                case UpdateTask() | CancelTask() | DispatchTask():
                    ids.add(operation.task_id)
                case EndTask() | RevertTask() | CancelRun():
                    ids.add(operation.run.id)
                case _:
                    raise TypeError(f"not an operation on tasks: {operation!r}")
        # In the same order everywhere, or two who lock many would wait for each other.
        for chunk in _chunks(sorted(ids)):
            parameters = {"ids": self._dialect.listed(chunk)}
            for row in self._connection.execute(self._statements.read, parameters):
                self._note(row)

    def _note(self, row: Row[Any]) -> None:
        task = task_of(row)
        self._entries[task.id] = _Entry(task, task, row.sequence, row.dispatched_by)

    def _carry_out(self, operation: Operation) -> Any:
        match operation:
            case AddTasks(tasks=tasks):
                return self._add(tasks)
            case UpdateTask() | CancelTask() | DispatchTask():
                return self._change_scheduled(operation)
            case EndTask() | RevertTask() | CancelRun():
                return self._end_run(operation)
            case _:
                raise TypeError(f"not an operation on tasks: {operation!r}")

    def _add(self, tasks: Sequence[Task]) -> None:
        new: dict[str, _Entry] = {}
        for task in tasks:
            if task.id in self._entries or task.id in new:
                if not self._careful:
                    raise LookFirstError  # an id before this one may be taken, too
                raise TaskExistsError(task.id)
            running = task.state is TaskState.DISPATCHED
            new[task.id] = _Entry(task, None, None, self._name if running else None)
        self._entries |= new

    def _entry(self, task_id: str) -> _Entry:
        try:
            return self._entries[task_id]
        except KeyError:
            raise TaskNotFoundError(task_id) from None

    def _change_scheduled(
        self, operation: UpdateTask | CancelTask | DispatchTask
    ) -> tuple[Task, bool] | Task:
        entry = self._entry(operation.task_id)
        before = entry.task
        match operation:
            case UpdateTask(update=update):
                entry.task = _transitions.updated(before, update)
                entry.replanned |= entry.task is not before
            case CancelTask(at=at):
                entry.task = _transitions.cancelled(before, at)
            case _:
                at, once = operation.at, operation.at_most_once
                entry.task = _transitions.dispatched(before, at, at_most_once=once)
                entry.owner = self._name
                return entry.task
        return entry.task, entry.task is not before

    def _end_run(self, operation: EndTask | RevertTask | CancelRun) -> Task:
        run = operation.run
        entry = self._entry(run.id)
        task = _after(operation, entry.task)
        if entry.owner != self._name:
            raise LostRunError(run.id, run.attempt)
        entry.task = task
        return task

    # -- writing it -------------------------------------------------------------------

    def _write(self) -> None:
        new: list[_Entry] = []
        ended: list[_Entry] = []
        changed: list[_Entry] = []
        for entry in self._entries.values():
            if entry.task is entry.stored:
                continue
            if entry.task.state is TaskState.SCHEDULED:
                self._note_pending(entry.task)
            if entry.stored is None:
                new.append(entry)
            elif entry.replanned or entry.task.attempt != entry.stored.attempt:
                changed.append(entry)
            else:
                ended.append(entry)
        # Rows are made as they are written: there may be very many.
        for chunk in _chunks(new):
            rows = [self._new_row(entry) for entry in chunk]
            self._connection.execute(self._statements.add, rows)
        for chunk in _chunks(changed):
            self._write_changed(chunk)
        for chunk in _chunks(ended):
            self._write_ended(chunk)

    def _write_changed(self, entries: Sequence[_Entry]) -> None:
        """Write whatever may have changed, task by task."""
        rows = [
            {"row": each.sequence, **life_of(each.task), **plan_of(each.task)}
            for each in entries
        ]
        self._connection.execute(self._statements.change, rows)
        for entry in entries:
            at = entry.task.dispatched_at
            if entry.task.state is TaskState.DISPATCHED and at is not None:
                lease = self._dialect.leased(at, self._lease)
                row = {"row": entry.sequence, "name": self._name, **lease}
                self._connection.execute(self._statements.take, row)

    def _write_ended(self, entries: Sequence[_Entry]) -> None:
        """Write how runs and tasks have ended: those that did alike, by one statement."""
        alike: dict[tuple[Any, ...], list[int | None]] = {}
        for entry in entries:
            assert entry.stored is not None
            more = entry.task.interruptions - entry.stored.interruptions
            how = (more, *end_of(entry.task).values())
            alike.setdefault(how, []).append(entry.sequence)
        self._connection.execute(
            self._statements.end,
            [
                {
                    "more": more,
                    **dict(zip(END, end, strict=True)),
                    "rows": self._dialect.listed(rows),
                }
                for (more, *end), rows in alike.items()
            ],
        )

    def _new_row(self, entry: _Entry) -> dict[str, Any]:
        task = entry.task
        # Nobody knows how long what was added as running has been: it is over.
        running = task.state is TaskState.DISPATCHED
        return {
            "id": task.id,
            "created_at": task.created_at,
            **plan_of(task),
            **life_of(task),
            "dispatched_by": entry.owner,
            "lease_until": task.scheduled_at if running else None,
        }

    def _note_pending(self, task: Task) -> None:
        first = self.appeared.get(task.work_id)
        if first is None or task.scheduled_at < first:
            self.appeared[task.work_id] = task.scheduled_at

    # -- claims -----------------------------------------------------------------------

    def _claim(self, operation: ClaimTasks) -> Claimed:
        at, only = operation.at, operation.only
        claimed: list[Task] = []
        expired: list[Task] = []
        # So many that are past their deadline are enough for one transaction.
        while len(claimed) < operation.limit and len(expired) < CHUNK:
            limit = min(operation.limit - len(claimed), CHUNK)
            how = {
                "name": self._name,
                "once": self._dialect.listed(sorted(only.at_most_once)),
                **self._dialect.leased(at, self._lease),
            }
            say = self._statements
            rows = self._due(say.claim_of_one_work, say.claim, only, at, limit, how)
            to_claim: list[int] = []
            failed: dict[int, Task] = {}
            for row in rows:
                number, seal = row[0], row[-1]
                task = task_of(row)
                if is_unreadable(row, task):
                    failed[number] = attrs.evolve(task, done_at=at)
                    continue
                once = task.work_id in only.at_most_once
                task = _transitions.dispatched(task, at, at_most_once=once)
                if task.state is not TaskState.DISPATCHED:
                    failed[number] = task
                    continue
                claimed.append(task)
                if seal is None:
                    to_claim.append(number)
                else:
                    self.seal = seal
            if to_claim:
                rows_to_claim = {"rows": self._dialect.listed(to_claim), "at": at}
                self._connection.execute(say.claim_rows, how | rows_to_claim)
            self._fail(failed)
            expired += failed.values()
            if len(rows) < limit:
                break
        return Claimed(claimed, expired)

    def next(self, only: TaskFilter) -> Row[Any] | None:
        """The row of the next task."""
        say = self._statements
        rows = self._due(say.head, say.heads, only, LAST, 1, {})
        return rows[0] if rows else None

    def _due(
        self,
        of_one_work: Select[Any],
        of_many: Select[Any],
        only: TaskFilter,
        at: datetime,
        limit: int,
        how: Mapping[str, Any],
    ) -> Sequence[Row[Any]]:
        """The rows of the first pending tasks until a moment, by one of two statements."""
        works = self._works(only)
        if not works:
            return []
        parameters: dict[str, Any] = {"at": at, "limit": limit, **how}
        if len(works) == 1:
            parameters["work"] = works[0]
            return self._connection.execute(of_one_work, parameters).all()
        parameters["works"] = self._dialect.listed(works)
        return self._connection.execute(of_many, parameters).all()

    def _works(self, only: TaskFilter) -> list[str]:
        """The works that a filter accepts and that may have pending tasks."""
        if only.work_ids is not None:
            return sorted(only.work_ids)
        works = self._connection.scalars(self._statements.pending_works)
        return [each for each in works if isinstance(each, str)]  # others are damaged

    def _fail(self, tasks: Mapping[int, Task]) -> None:
        """Write that tasks have failed, by row, and leave the rest of the rows as it is."""
        rows = [
            {"row": row, "err": task.err, "done_at": task.done_at}
            for row, task in tasks.items()
        ]
        if rows:
            self._connection.execute(self._statements.fail, rows)

    # -- ended tasks ------------------------------------------------------------------

    def _delete_ended(self, operation: DeleteEnded) -> list[str]:
        left = _MANY if operation.limit is None else min(operation.limit, _MANY)
        states = [state.value for state in operation.states]
        which: ColumnElement[bool] = TASK.c.state.in_(states)
        if operation.before is not None:
            which = and_(which, TASK.c.ended_at < operation.before)
        deleted: list[str] = []
        while left:
            limit = min(left, CHUNK)
            chunk = self._delete(which, limit)
            deleted += chunk
            left -= len(chunk)
            if len(chunk) < limit:
                break
        return deleted

    def _delete(self, which: ColumnElement[bool], limit: int) -> list[str]:
        """Delete the first of these ended tasks; return their ids, oldest end first."""
        oldest = (
            select(TASK.c.sequence)
            .where(TASK.c.ended_at.is_not(None), which)
            .order_by(TASK.c.ended_at, TASK.c.sequence)
            .limit(limit)
        )
        oldest = self._dialect.locked(oldest, skip=True)
        statement = (
            delete(TASK)
            .where(TASK.c.sequence.in_(oldest.scalar_subquery()))
            .returning(TASK.c.ended_at, TASK.c.sequence, TASK.c.id)
        )
        rows = [tuple(row) for row in self._connection.execute(statement)]
        rows.sort(key=_by_end)
        return [task_id for _, _, task_id in rows]

    def delete_surplus(self, keep: int, limit: int) -> list[str]:
        """Delete at most `limit` ended tasks, oldest end first, so that `keep` are left."""
        newest = select(TASK.c.ended_at, TASK.c.sequence).where(
            TASK.c.ended_at.is_not(None)
        )
        newest = newest.order_by(TASK.c.ended_at.desc(), TASK.c.sequence.desc())
        last = self._connection.execute(newest.offset(keep).limit(1)).one_or_none()
        if last is None:
            return []
        surplus = tuple_(TASK.c.ended_at, TASK.c.sequence) <= tuple_(
            literal(last[0], Moment), literal(last[1], BigInteger)
        )
        return self._delete(surplus, limit)

    # -- leases -----------------------------------------------------------------------

    def renew(self, runs: Sequence[Task], action: RecoverAction, at: datetime) -> Renewed:
        """Renew the leases of runs, and recover what others have let go."""
        ours: set[tuple[str, int, datetime]] = set()
        for chunk in _chunks(sorted(run.id for run in runs)):
            parameters = {
                "ids": self._dialect.listed(chunk),
                "name": self._name,
                **self._dialect.leased(at, self._lease),
            }
            rows = self._connection.execute(self._statements.renew, parameters)
            ours.update(tuple(row) for row in rows)
        lost = [r for r in runs if (r.id, r.attempt, r.created_at) not in ours]
        return Renewed(lost, self._recover(self._statements.expired, action, at))

    def recover(self, action: RecoverAction, at: datetime, only: TaskFilter) -> list[Task]:
        """Recover what was left by who had our name, and what others have let go."""
        return self._recover(self._statements.left, action, at, only)

    def _recover(
        self,
        statement: Select[Any],
        action: RecoverAction,
        at: datetime,
        only: TaskFilter = ANY_TASK,
    ) -> list[Task]:
        if action is RecoverAction.LEAVE:
            return []
        self._entries = {}
        orphans: list[Task] = []
        failed: dict[int, Task] = {}
        for row in self._connection.execute(statement, {"at": at, "name": self._name}):
            task = task_of(row)
            if not only.accepts(task):
                continue
            if is_unreadable(row, task):
                failed[row.sequence] = attrs.evolve(task, done_at=at)
                continue
            self._entries[task.id] = _Entry(task, task, row.sequence, self._name)
            orphans.append(task)
        self._fail(failed)
        recovered = [self._carry_out(each) for each in recovery(orphans, action, at)]
        self._write()
        return [*failed.values(), *recovered]


def _after(operation: EndTask | RevertTask | CancelRun, task: Task) -> Task:
    """The task, once its run has ended so."""
    match operation:
        case EndTask(run=run, at=at, err=err):
            return _transitions.ended(task, run, at, err)
        case RevertTask(run=run):
            return _transitions.reverted(task, run)
        case CancelRun(run=run, at=at):
            return _transitions.interrupted(task, run, at)


def _named_once(operations: Iterable[Operation]) -> set[str]:
    """The ids that one operation is about, and no other."""
    once: set[str] = set()
    more: set[str] = set()
    for operation in operations:
        match operation:
            case UpdateTask() | CancelTask() | DispatchTask():
                task_id = operation.task_id
            case EndTask() | RevertTask() | CancelRun():
                task_id = operation.run.id
            case _:
                continue  # what is running can't be added, nor deleted
        (more if task_id in once else once).add(task_id)
    return once - more


def _by_end(row: tuple[Any, ...]) -> tuple[datetime, int]:
    ended_at, sequence, _ = row
    return (ended_at if isinstance(ended_at, datetime) else EPOCH), sequence


def _chunks(items: Collection[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
