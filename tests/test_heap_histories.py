"""The repository in memory, after any history, against a plain list."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import outcome
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from trio_gokugen import (
    HeapStore,
    Task,
    TaskQuery,
    TaskState,
    TaskUpdate,
)
from trio_gokugen._query import find_order
from trio_gokugen._task import ENDED
from trio_gokugen.abc import (
    ANY_TASK,
    AddTasks,
    CancelRun,
    CancelTask,
    ClaimTasks,
    DeleteEnded,
    DispatchTask,
    EndTask,
    Operation,
    RevertTask,
    TaskFilter,
    UpdateTask,
)
from trio_gokugen.testing._model import Model
from trio_gokugen.testing._walk import comparable_error

pytestmark = pytest.mark.uncovered

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


def noon(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


ids = st.sampled_from([f"t{n}" for n in range(8)])
works = st.sampled_from(["one", "two", "three"])
pools = st.sampled_from([None, None, "p"])
seconds = st.integers(0, 4)
moments = seconds.map(noon)
priorities = st.integers(-1, 1)
filters = st.one_of(st.just(ANY_TASK), st.frozensets(works).map(TaskFilter))
deadlines = st.none() | st.integers(5, 8).map(noon)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    state = draw(st.sampled_from([TaskState.SCHEDULED] * 8 + list(TaskState)))
    return Task(
        id=draw(ids),
        work_id=draw(works),
        pool=draw(pools),
        scheduled_at=draw(moments),
        created_at=draw(moments),
        priority=draw(priorities),
        deadline=draw(deadlines),
        state=state,
        attempt=draw(st.integers(0, 2)),
        done_at=draw(st.none() | moments) if state.ended else None,
    )


updates = st.builds(
    TaskUpdate, scheduled_at=moments, priority=priorities, deadline=deadlines
) | st.one_of(
    st.builds(TaskUpdate, scheduled_at=moments),
    st.builds(TaskUpdate, priority=priorities),
    st.builds(TaskUpdate, work_id=works),
    st.builds(TaskUpdate, pool=pools),
    st.builds(TaskUpdate, param=st.dictionaries(st.sampled_from("ab"), st.integers(0, 1))),
)


class HeapMachine(RuleBasedStateMachine):
    """A heap store, and a list that must always hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.store = HeapStore()
        self.model = Model()
        self.keep_ended = 10_000
        self.runs: list[Task] = []

    @initialize(keep_ended=st.sampled_from([0, 2, 10_000]))
    def begin(self, keep_ended: int) -> None:
        self.store = HeapStore(keep_ended)
        self.keep_ended = keep_ended

    def apply(self, *operations: Operation) -> None:
        outcomes = trio.run(self.store.apply, operations)
        expected = [self.apply_to_model(operation) for operation in operations]
        for one, other in zip(outcomes, expected, strict=True):
            assert comparable(one) == comparable(other)

    def apply_to_model(self, operation: Operation) -> outcome.Outcome[Any]:
        [result] = self.model.apply([operation])
        forgotten = self.model.ends[: max(0, len(self.model.ends) - self.keep_ended)]
        self.model.ends = self.model.ends[len(forgotten) :]
        self.model.tasks = [t for t in self.model.tasks if t.id not in forgotten]
        return result

    def run_of(self, data: st.DataObject) -> Task:
        dispatched = [t for t in self.model.tasks if t.state is TaskState.DISPATCHED]
        self.runs = (self.runs + dispatched)[-20:]
        if not self.runs or data.draw(st.integers(0, 9)) == 0:
            return data.draw(tasks())
        return data.draw(st.sampled_from(dispatched or self.runs))

    @rule(new_tasks=st.lists(tasks(), max_size=4))
    def add(self, new_tasks: list[Task]) -> None:
        self.apply(AddTasks(new_tasks))

    @rule(task_id=ids, update=updates)
    def update(self, task_id: str, update: TaskUpdate) -> None:
        self.apply(UpdateTask(task_id, update))

    @rule(task_id=ids, at=moments)
    def cancel(self, task_id: str, at: datetime) -> None:
        self.apply(CancelTask(task_id, at))

    @rule(task_id=ids, at=st.integers(0, 9).map(noon))
    def dispatch(self, task_id: str, at: datetime) -> None:
        self.apply(DispatchTask(task_id, at))

    @rule(limit=st.integers(0, 4), at=st.integers(0, 9).map(noon), only=filters)
    def claim(self, limit: int, at: datetime, only: TaskFilter) -> None:
        self.apply(ClaimTasks(limit, at, only))

    @rule(data=st.data(), at=moments, err=st.sampled_from([None, "no luck"]))
    def end(self, data: st.DataObject, at: datetime, err: str | None) -> None:
        self.apply(EndTask(self.run_of(data), at, err))

    @rule(data=st.data())
    def revert(self, data: st.DataObject) -> None:
        self.apply(RevertTask(self.run_of(data)))

    @rule(data=st.data(), at=moments)
    def cancel_run(self, data: st.DataObject, at: datetime) -> None:
        self.apply(CancelRun(self.run_of(data), at))

    @rule(
        before=st.none() | moments,
        states=st.frozensets(st.sampled_from(sorted(ENDED, key=str))),
        limit=st.none() | st.integers(0, 3),
    )
    def delete(
        self, before: datetime | None, states: frozenset[TaskState], limit: int | None
    ) -> None:
        self.apply(DeleteEnded(before, states, limit))

    @rule(first=ids, second=ids, update=updates, only=filters)
    def batch(self, first: str, second: str, update: TaskUpdate, only: TaskFilter) -> None:
        self.apply(
            UpdateTask(first, update),
            CancelTask(second, NOON),
            ClaimTasks(1, noon(4), only),
            UpdateTask(second, update),
            ClaimTasks(1, noon(4), only),
        )

    @rule(only=filters)
    def look_at_the_next(self, only: TaskFilter) -> None:
        head = trio.run(self.store.get_next, only)
        assert head == next(iter(self.model.pending(only)), None)

    @rule(
        query=st.builds(
            TaskQuery,
            states=st.none() | st.frozensets(st.sampled_from(TaskState)),
            work_ids=st.none() | st.frozensets(works),
            scheduled_at=st.none() | st.tuples(moments, st.none() | moments),
        ),
        limit=st.none() | st.integers(0, 3),
        after=st.none() | tasks(),
    )
    def find(self, query: TaskQuery, limit: int | None, after: Task | None) -> None:
        found = sorted(filter(query.matches, self.model.tasks), key=find_order)
        if after is not None:
            found = [task for task in found if find_order(task) > find_order(after)]
        assert trio.run(self.store.find, query, limit, after) == found[:limit]

    @rule()
    def begin_anew(self) -> None:
        """As a dump and a load do."""
        tasks = self.store.snapshot()
        assert tasks == self.model.tasks
        self.store = HeapStore(self.keep_ended)
        self.model = Model()
        self.apply(AddTasks(tasks))

    @invariant()
    def both_hold_the_same(self) -> None:
        assert self.store.snapshot() == self.model.tasks
        pending = [t for t in self.model.tasks if t.state is TaskState.SCHEDULED]
        counts = trio.run(self.store.count_pending)
        assert sum(counts.values()) == len(pending)
        named = Counter(task.pool for task in pending if task.pool is not None)
        assert trio.run(self.store.count_pools) == named
        entries = sum(heap.living + heap.dead for heap in self.store._heaps)
        assert entries <= 2 * len(pending) + 64 * 3 * 2


def comparable(result: outcome.Outcome[Any]) -> object:
    if isinstance(result, outcome.Error):
        return comparable_error(result.error)
    return result


TestAnyHistory = HeapMachine.TestCase
TestAnyHistory.settings = settings(
    max_examples=40,
    stateful_step_count=40,
)
