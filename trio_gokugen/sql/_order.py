"""The order in which a transaction locks rows, where it locks rows: on PostgreSQL.

Tasks first, by their ids, and schedules then, by theirs. Who has locked in this order all
that he needs waits for nobody who waits for him. What operations need is known when they
come, but for what a claim will find. So before a transaction locks its first schedule, all
is locked that its other operations name, and what a claim would find now. A claim, a
renewal and a deletion step over tasks that others hold.

Who finds then that he needs something else, out of order, waits for it a moment only, and
else begins anew: see `Ongoing.hurried`.

Tasks that have no schedule cost nothing of that. Who has to do with such tasks only locks
them as he comes to them; those of one statement by their ids, but runs that end as the plan
of the statement has it.

So some circles are left. They are rare, and PostgreSQL ends each after a second, by undoing
one of the two, who begins anew. A claim waits for runs that are to be replaced while it has
tasks that it has found, which another may have named. Two batches may name the same tasks
in several groups between claims, or by ids and by keys. One may have ended runs, without
order, that another names. And users' own transactions are as they make them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trio_gokugen.abc import (
    CancelRun,
    CancelTask,
    ClaimTasks,
    DispatchTask,
    EndTask,
    NoteProgress,
    OnSchedule,
    Operation,
    RetryTask,
    RevertTask,
    UpdateTask,
)

from ._claims import schedules_ahead
from ._occurrences import hold
from ._ongoing import Ongoing, chunks


def lock_ahead(
    ongoing: Ongoing, operations: Sequence[Operation], schedule_ids: Iterable[str] = ()
) -> None:
    """Lock what operations need, as far as that is known, and schedules beside it.

    Raises:
      InTheWayError: somebody else has come to hold some of it.
    """
    changed = {
        each.change.schedule_id for each in operations if isinstance(each, OnSchedule)
    }
    found: set[str] = set()
    for operation in operations:
        if isinstance(operation, ClaimTasks):
            found |= schedules_ahead(ongoing, operation)
    schedules = {*schedule_ids, *changed, *_schedules_named(operations), *found}
    tasks = _tasks_named(operations) | _pending(ongoing, changed)
    if tasks or found:
        ongoing.lock_tasks(tasks, found)
    hold(ongoing, schedules)
    heads = {ongoing.held[each].pending_id for each in changed}
    made = {each for each in heads if each is not None} - tasks
    if made:  # since the look
        with ongoing.hurried():
            ongoing.lock_tasks(made)


def concerns_schedules(operations: Iterable[Operation]) -> bool:
    """Whether it is known that operations need schedules."""
    return any(
        isinstance(each, OnSchedule) or _schedule_named(each) is not None
        for each in operations
    )


def _schedule_named(operation: Operation) -> str | None:
    match operation:
        case EndTask() | RetryTask() | NoteProgress() | RevertTask() | CancelRun():
            return operation.run.schedule_id
        case _:
            return None


def _schedules_named(operations: Iterable[Operation]) -> set[str]:
    named = map(_schedule_named, operations)
    return {each for each in named if each is not None}


def _tasks_named(operations: Iterable[Operation]) -> set[str]:
    ids: set[str] = set()
    for operation in operations:
        match operation:
            case UpdateTask() | CancelTask() | DispatchTask():
                ids.add(operation.task_id)
            case EndTask() | RetryTask() | NoteProgress() | RevertTask() | CancelRun():
                ids.add(operation.run.id)
            case _:
                pass
    return ids


def _pending(ongoing: Ongoing, schedule_ids: Iterable[str]) -> set[str]:
    """The next occurrences of schedules, for now."""
    pending: set[str] = set()
    for chunk in chunks(sorted(schedule_ids)):
        listed = {"ids": ongoing.dialect.listed(chunk)}
        pending.update(ongoing.execute(ongoing.say.pending_of, listed).scalars())
    return pending
