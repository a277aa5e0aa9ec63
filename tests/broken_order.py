"""Stores that do a thing wrong, each another: who goes first, and who is found."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs
from broken import breaks
from stores import ListStore

from trio_gokugen import UNCHANGED, Task, TaskQuery, TaskState, TaskUpdate
from trio_gokugen._query import find_order
from trio_gokugen.abc import ANY_TASK, ENDED, Claimed, RecoverAction, TaskFilter

# -- who goes first -------------------------------------------------------------------


@breaks("the_earliest_goes_first", "the_first_of_many_is_found")
class LargestPriorityFirst(ListStore):
    def place(self, task: Task) -> Any:
        return -task.priority, task.id


@breaks("then_the_largest_priority")
class SmallestPriorityFirst(ListStore):
    def place(self, task: Task) -> Any:
        return task.scheduled_at, task.priority


@breaks("then_the_oldest")
class OldestByCreatedAt(ListStore):
    def place(self, task: Task) -> Any:
        return task.scheduled_at, -task.priority, task.created_at


@breaks("then_the_oldest")
class OldestById(ListStore):
    def place(self, task: Task) -> Any:
        return task.scheduled_at, -task.priority, task.id


@breaks("the_order_is_one_for_all_works")
class WorkAfterWork(ListStore):
    def place(self, task: Task) -> Any:
        return task.work_id, task.scheduled_at, -task.priority


@breaks("a_claim_is_in_order")
class ClaimsInNoOrder(ListStore):
    async def claim(self, limit: int, at: datetime, only: TaskFilter = ANY_TASK) -> Claimed:
        claimed = await super().claim(limit, at, only)
        return Claimed(sorted(claimed.tasks, key=lambda t: t.id), claimed.expired)


@breaks("an_update_moves_the_task", "the_first_of_many_is_found")
class SortsWhatIsAdded(ListStore):
    """By a key that is taken once."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, Any] = {}

    def do_add(self, tasks: Sequence[Task]) -> None:
        super().do_add(tasks)
        self.keys |= {task.id: super(SortsWhatIsAdded, self).place(task) for task in tasks}

    def place(self, task: Task) -> Any:
        return self.keys[task.id]


class Forgetful(ListStore):
    def to_the_end(self, task: Task) -> Task:
        del self.tasks[task.id]
        return self.put(task)


@breaks("an_update_keeps_the_place", "a_long_history_is_as_of_a_list")
class UpdatedAreYoung(Forgetful):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        task, changed = super().do_update(task_id, update)
        return self.to_the_end(task), changed


@breaks("a_revert_keeps_the_place", "a_history_of_batches_is_as_of_a_list")
class RevertedAreYoung(Forgetful):
    def do_revert(self, run: Task) -> Task:
        return self.to_the_end(super().do_revert(run))


@breaks("recovery_keeps_the_place")
class RecoveredAreYoung(Forgetful):
    async def recover(
        self, action: RecoverAction, at: datetime, only: TaskFilter = ANY_TASK
    ) -> list[Task]:
        return [self.to_the_end(t) for t in await super().recover(action, at, only)]


@breaks("get_next_tells_due_or_not")
class TellsOfTheNextOnce(ListStore):
    def __init__(self) -> None:
        super().__init__()
        self.told: Task | None = None

    async def get_next(self, only: TaskFilter = ANY_TASK) -> Task | None:
        task = await super().get_next(only)
        told, self.told = self.told, task
        return None if task is told else task


@breaks("get_next_respects_the_filter", "claim_respects_the_filter")
class TakesNoWorksForAny(ListStore):
    def pending(self, only: TaskFilter) -> list[Task]:
        return super().pending(only if only.work_ids else ANY_TASK)


@breaks("claim_respects_the_pools", "a_task_changes_its_pool")
class KnowsNoPools(ListStore):
    def pending(self, only: TaskFilter) -> list[Task]:
        return super().pending(attrs.evolve(only, pools=None))


@breaks("claim_respects_the_pools")
class TakesNamedByTheirWork(ListStore):
    """A task of a work that is for these pools, too, if it names another."""

    def pending(self, only: TaskFilter) -> list[Task]:
        works = None if only.pools is None else only.pools.works
        mine = {task.id for task in super().pending(only)}
        return [
            task
            for task in super().pending(attrs.evolve(only, pools=None))
            if task.id in mine or (works is not None and task.work_id in works)
        ]


@breaks("a_task_changes_its_pool")
class KeepsThePool(ListStore):
    def do_update(self, task_id: str, update: TaskUpdate) -> tuple[Task, bool]:
        return super().do_update(task_id, attrs.evolve(update, pool=UNCHANGED))


@breaks("claim_respects_the_rooms")
class CountsOnlyWhatRan(ListStore):
    async def claim(self, limit: int, at: datetime, only: TaskFilter = ANY_TASK) -> Claimed:
        claimed = Claimed([], [])
        for task in [each for each in self.pending(only) if each.scheduled_at <= at][
            :limit
        ]:
            taken = await self.mark_dispatched(task.id, at)
            ended = taken.state is not TaskState.DISPATCHED
            (claimed.expired if ended else claimed.tasks).append(taken)
        return claimed


@breaks("claim_respects_the_rooms", "claim_respects_several_rooms")
class StopsWhereThereIsNoRoom(ListStore):
    def pending(self, only: TaskFilter) -> list[Task]:
        tasks = super().pending(attrs.evolve(only, rooms=()))
        return tasks if not tasks or only.accepts(tasks[0]) else []


@breaks("claim_respects_several_rooms")
class KnowsOneRoom(ListStore):
    def pending(self, only: TaskFilter) -> list[Task]:
        return super().pending(attrs.evolve(only, rooms=only.rooms[:1]))


@breaks("update_does_not_duplicate")
class LeavesStaleEntries(ListStore):
    """A queue of entries in which a task is found wherever it once was."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Any, str]] = []

    def put(self, task: Task) -> Task:
        if task.state is TaskState.SCHEDULED:
            self.entries.append((self.place(task), task.id))
        return super().put(task)

    def pending(self, only: TaskFilter) -> list[Task]:
        tasks = [self.tasks[task_id] for _, task_id in sorted(self.entries)]
        return [t for t in tasks if t.state is TaskState.SCHEDULED and only.accepts(t)]

    def do_dispatch(self, task_id: str, at: datetime) -> Task:
        task = attrs.evolve(self.find_one(task_id), scheduled_at=at)
        return self.put(attrs.evolve(task, state=TaskState.DISPATCHED))


# -- claims ---------------------------------------------------------------------------


@breaks("claim_takes_only_what_is_due")
class ClaimsASecondEarly(ListStore):
    async def claim(self, limit: int, at: datetime, only: TaskFilter = ANY_TASK) -> Claimed:
        return await super().claim(limit, at.replace(microsecond=1), only)


@breaks("claim_respects_the_limit")
class ClaimsOneAtLeast(ListStore):
    async def claim(self, limit: int, at: datetime, only: TaskFilter = ANY_TASK) -> Claimed:
        return await super().claim(max(limit, 1), at, only)


@breaks("expired_tasks_take_no_place")
class CountsTheExpired(ListStore):
    async def claim(self, limit: int, at: datetime, only: TaskFilter = ANY_TASK) -> Claimed:
        claimed = Claimed([], [])
        for _ in range(limit):
            one = await super().claim(1, at, only)
            claimed.tasks.extend(one.tasks)
            claimed.expired.extend(one.expired)
            limit -= len(one.expired)
        extra = claimed.tasks[max(limit, 0) :]
        for run in extra:
            await self.revert(run)
        return Claimed(claimed.tasks[: max(limit, 0)], claimed.expired)


@breaks("claim_sees_the_last_change")
class ClaimsWhatItReadBefore(ListStore):
    def __init__(self) -> None:
        super().__init__()
        self.added: dict[str, Task] = {}

    def put(self, task: Task) -> Task:
        self.added.setdefault(task.id, task)
        return super().put(task)

    def do_dispatch(self, task_id: str, at: datetime) -> Task:
        task = super().do_dispatch(task_id, at)
        return self.put(attrs.evolve(task, param=self.added[task_id].param))


# -- finding --------------------------------------------------------------------------


class Searching(ListStore):
    """Finds by a changed query."""

    def changed(self, query: TaskQuery) -> TaskQuery:
        return query

    def do_find(
        self, query: TaskQuery, limit: int | None, after: Task | None
    ) -> list[Task]:
        return super().do_find(self.changed(query), limit, after)


@breaks("find_by_states")
class TakesNoStatesForAny(Searching):
    def changed(self, query: TaskQuery) -> TaskQuery:
        return attrs.evolve(query, states=query.states or None)


@breaks("find_by_ids")
class FindsAllIfNoIdIsGiven(Searching):
    def changed(self, query: TaskQuery) -> TaskQuery:
        return attrs.evolve(query, ids=query.ids or None)


@breaks("find_by_schedule_ids")
class FindsTasksOfAnySchedule(Searching):
    def changed(self, query: TaskQuery) -> TaskQuery:
        return attrs.evolve(query, schedule_ids=None)


@breaks("find_by_pools")
class FindsTasksOfAnyPool(Searching):
    def changed(self, query: TaskQuery) -> TaskQuery:
        return attrs.evolve(query, pools=None)


@breaks("find_by_work_ids")
class FindsWorksInAnyCase(Searching):
    def changed(self, query: TaskQuery) -> TaskQuery:
        work_ids = set(query.work_ids or ())
        more = {w.upper() for w in work_ids} | {w.lower() for w in work_ids}
        return attrs.evolve(query, work_ids=None if query.work_ids is None else more)


def _a_tick_later(moments: Any) -> Any:
    if moments is None or moments[1] is None:
        return moments
    return moments[0], moments[1] + timedelta(microseconds=1)


@breaks("find_by_scheduled_at")
class IncludesTheEnd(Searching):
    def changed(self, query: TaskQuery) -> TaskQuery:
        return attrs.evolve(query, scheduled_at=_a_tick_later(query.scheduled_at))


@breaks("find_by_other_moments")
class TakesAnOpenRangeForAny(Searching):
    def changed(self, query: TaskQuery) -> TaskQuery:
        deadline = None if query.deadline == (None, None) else query.deadline
        return attrs.evolve(query, deadline=deadline)


@breaks("find_by_priority")
class TakesPriorityForALeast(Searching):
    def changed(self, query: TaskQuery) -> TaskQuery:
        if isinstance(query.priority, int):
            return attrs.evolve(query, priority=(query.priority, None))
        return query


@breaks("find_by_several_fields")
class ForgetsAField(Searching):
    def changed(self, query: TaskQuery) -> TaskQuery:
        if query.states is not None and query.work_ids is not None:
            return attrs.evolve(query, work_ids=None)
        return query


@breaks("any_search_finds_what_matches")
class ForgetsTheWorksOfWhatIsPending(ListStore):
    def do_find(
        self, query: TaskQuery, limit: int | None, after: Task | None
    ) -> list[Task]:
        states = frozenset(TaskState) if query.states is None else query.states
        found = super().do_find(attrs.evolve(query, states=ENDED & {*states}), limit, after)
        pending = attrs.evolve(query, states={*states} - ENDED, work_ids=None)
        found += super().do_find(pending, limit, after)
        return sorted(found, key=find_order)[:limit]


@breaks("find_by_meta")
class ComparesMetaAsPythonDoes(ListStore):
    def do_find(
        self, query: TaskQuery, limit: int | None, after: Task | None
    ) -> list[Task]:
        found = super().do_find(attrs.evolve(query, meta={}), None, after)
        wanted = query.meta.items()
        return [t for t in found if all(t.meta.get(k) == v for k, v in wanted)][:limit]


@breaks("find_finds_everything_in_order")
class SortsIdsInAnyCase(ListStore):
    def do_find(
        self, query: TaskQuery, limit: int | None, after: Task | None
    ) -> list[Task]:
        found = super().do_find(query, limit, after)
        return sorted(found, key=lambda t: (*find_order(t)[:3], t.id.lower()))


@breaks("find_gives_whole_tasks")
class LeavesOutParam(ListStore):
    def do_find(
        self, query: TaskQuery, limit: int | None, after: Task | None
    ) -> list[Task]:
        found = super().do_find(query, limit, after)
        return [attrs.evolve(task, param={}) for task in found]


@breaks("find_respects_the_limit")
class FindsAllForNone(ListStore):
    def do_find(
        self, query: TaskQuery, limit: int | None, after: Task | None
    ) -> list[Task]:
        return super().do_find(query, limit or None, after)


@breaks("find_respects_the_limit")
class LimitsBeforeItFilters(ListStore):
    def do_find(
        self, query: TaskQuery, limit: int | None, after: Task | None
    ) -> list[Task]:
        found = super().do_find(TaskQuery(), limit, after)
        return [task for task in found if query.matches(task)]


@breaks("pages_are_complete")
class PagesByTheMomentAlone(ListStore):
    def do_find(
        self, query: TaskQuery, limit: int | None, after: Task | None
    ) -> list[Task]:
        found = super().do_find(query, None, None)
        if after is not None:
            found = [t for t in found if t.scheduled_at > after.scheduled_at]
        return found[:limit]


@breaks("a_page_follows_a_task_that_is_gone")
class LooksForTheTaskBefore(ListStore):
    def do_find(
        self, query: TaskQuery, limit: int | None, after: Task | None
    ) -> list[Task]:
        found = super().do_find(query, None, None)
        ids = [task.id for task in found]
        if after is not None and after.id in ids:
            found = found[ids.index(after.id) + 1 :]
        return found[:limit]
