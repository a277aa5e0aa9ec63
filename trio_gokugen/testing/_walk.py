"""A random history of a repository, and what must come of it.

Few ids, few moments and few priorities, so that things meet: ties, moves of the task that
is first, runs that have lost their task, ids that are taken.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import attrs
import outcome

from trio_gokugen._errors import InvalidTaskError
from trio_gokugen._task import Progress, Task, TaskState, TaskUpdate
from trio_gokugen.abc import (
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
    IfExists,
    KeyLimit,
    KeyRoom,
    NoteProgress,
    OfPools,
    Operation,
    RetryTask,
    RevertTask,
    TaskFilter,
    UpdateTask,
)

from ._model import Model
from ._repository_kit import EPOCH, moment, new

_WORKS = ("one", "two", "three")
_POOLS = (None, None, None, "p", "q")
_FILTERS = (
    ANY_TASK,
    TaskFilter(frozenset({"one"})),
    TaskFilter(frozenset(_WORKS[1:])),
    TaskFilter(pools=OfPools()),
    TaskFilter(pools=OfPools(frozenset({"p", "r"}), frozenset({"one"}))),
    TaskFilter(frozenset(_WORKS[:2]), pools=OfPools(frozenset({"p", "q"}), frozenset())),
)
_ERRS = (None, "no luck", "again")
_NO_RUN = new("t0", state=TaskState.DISPATCHED, attempt=1, dispatched_at=EPOCH)


class Walk:
    """A history that begins with an empty repository; the same for the same seed."""

    def __init__(self, seed: int, *, deadlines: bool) -> None:
        self.random = random.Random(seed)
        self._deadlines = deadlines
        self.steps = 0
        self._model = Model()
        self._runs: list[Task] = [_NO_RUN]

    def tasks(self) -> list[Task]:
        """All tasks as they must stand now."""
        return self._model.tasks

    def next_task(self) -> Task | None:
        """The task that must be next now."""
        return next(iter(self._model.pending(ANY_TASK)), None)

    def next_operations(self, number: int) -> list[Operation]:
        """What is to be done next."""
        return [self._operation() for _ in range(number)]

    def carry_out(self, operations: Sequence[Operation]) -> list[outcome.Outcome[Any]]:
        """Do it, and say what must come of each."""
        self.steps += len(operations)
        outcomes = self._model.apply(operations)
        for result in outcomes:
            value = result.value if isinstance(result, outcome.Value) else None
            if isinstance(value, Claimed):
                self._runs += value.tasks
            elif isinstance(value, Task) and value.state is TaskState.DISPATCHED:
                self._runs.append(value)
        return outcomes

    def comparable(self, result: outcome.Outcome[Any]) -> Any:
        """What must be equal in two outcomes of one operation."""
        match result:
            case outcome.Value(value=Claimed(tasks=tasks, expired=expired)):
                return list(tasks), comparable_tasks(expired)
            case outcome.Value(value=Added() as added):
                return [list(each) for each in (added.new, added.changed, added.tasks)]
            case outcome.Value(value=Task() as task):
                return comparable_tasks([task])
            case outcome.Value(value=list()):
                return set(result.value)  # which ended first is for another check
            case outcome.Error():
                return comparable_error(result.error)
            case _:
                return result

    def _operation(self) -> Operation:
        choose = self.random
        at = moment(self.steps / 100 + choose.random() / 100)
        task_id = f"t{choose.randrange(30)}"
        run = choose.choice(self._runs[-6:])
        # How far a claim with a small limit looks for expired tasks is left open.
        limit = 1_000 if self._deadlines else choose.randint(0, 3)
        kinds: list[tuple[int, Operation]] = [
            (6, AddTasks([self._new_task() for _ in range(choose.randint(1, 3))])),
            (3, self._add_by_key()),
            (5, UpdateTask(task_id, self._update())),
            (2, CancelTask(task_id, at)),
            (2, DispatchTask(task_id, at)),
            (4, ClaimTasks(limit, at, choose.choice((*_FILTERS, self._within())))),
            (3, EndTask(run, at, choose.choice((None, "no luck")))),
            (1, EndTask(run, at, result={"n": choose.randrange(2)})),
            (3, RevertTask(run)),
            (2, RetryTask(run, at, moment(choose.randrange(9)), choose.choice(_ERRS))),
            (2, NoteProgress(run, Progress(fraction=choose.randrange(3) / 2, at=at))),
            (1, CancelRun(run, at)),
            (2, DeleteEnded(choose.choice((None, moment(at.second))))),
        ]
        weights = [weight for weight, _ in kinds]
        return choose.choices(kinds, weights)[0][1]

    def _add_by_key(self) -> AddTasks:
        choose = self.random
        tasks = [self._new_task(key=f"k{choose.randrange(4)}") for _ in range(2)]
        if_exists = choose.choice(get_args(IfExists))
        return AddTasks([*tasks, self._new_task()], if_exists)

    def _within(self) -> TaskFilter:
        """A filter with room for so many tasks of the same numbers."""
        choose = self.random
        rooms: list[KeyRoom] = []
        for where in choose.choice((("param",), ("meta",), ("meta", "param"))):
            limit = KeyLimit(choose.randint(1, 2), **{where: "n"})
            running = {str(choose.randrange(5)): choose.randint(1, 2)}
            rooms.append(KeyRoom(limit, running))
        return attrs.evolve(choose.choice(_FILTERS), rooms=tuple(rooms))

    def _new_task(self, **fields: Any) -> Task:
        choose = self.random
        return new(
            f"t{choose.randrange(30)}",
            choose.randrange(4),
            # An id may be used again: it is by this that its tasks are told apart.
            created_at=moment(self.steps / 1_000),
            work_id=choose.choice(_WORKS),
            priority=choose.randrange(2),
            param={"n": choose.randrange(5)},
            meta={"n": choose.randrange(3)},
            pool=choose.choice(_POOLS),
            **fields,
        )

    def _update(self) -> TaskUpdate:
        choose = self.random
        changes: list[dict[str, Any]] = [
            {"scheduled_at": moment(choose.randrange(4))},
            {"priority": choose.randrange(2)},
            {"work_id": choose.choice(_WORKS)},
            {"pool": choose.choice(_POOLS)},
            {"param": {"n": choose.randrange(5)}, "meta": None},
        ]
        if self._deadlines:
            changes.append({"deadline": moment(choose.randrange(6))})
            changes.append({"deadline": None})
        return TaskUpdate(**choose.choice(changes))


def comparable_error(error: BaseException) -> object:
    """What tells that two errors are the same."""
    if isinstance(error, InvalidTaskError):
        return InvalidTaskError, error.field  # worded by whoever refuses
    return type(error), error.args


def comparable_tasks(tasks: Iterable[Task]) -> dict[str, Task]:
    """Tasks by id; how an `err` words that the deadline has passed is nobody's business."""
    return {
        task.id: attrs.evolve(task, err="deadline") if _has_expired(task) else task
        for task in tasks
    }


def _has_expired(task: Task) -> bool:
    return "deadline" in (task.err or "").lower()
