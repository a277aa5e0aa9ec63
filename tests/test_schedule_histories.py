"""Whatever becomes of a schedule, each of its moments comes once: by no rule of ours."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from random import Random
from typing import Any

import attrs
import pytest
from support import NOON, noon

from trio_gokugen import (
    Dropped,
    HeapRepository,
    Interval,
    Late,
    Schedule,
    Task,
    TaskQuery,
    TaskState,
    TaskUpdate,
)
from trio_gokugen._schedule import (
    PauseSchedule,
    PutSchedule,
    ResumeSchedule,
    ScheduleChanged,
    ScheduleUpdate,
    TriggerSchedule,
    UpdateSchedule,
)
from trio_gokugen.abc import ChangeSchedule

EVERY = timedelta(seconds=10)


@attrs.define
class History:
    """A schedule, what is done to it by chance, and what is told of its moments."""

    random: Random
    repository: HeapRepository = attrs.field(factory=HeapRepository)
    seconds: float = 0.0
    moments: list[datetime] = attrs.field(factory=list[datetime])
    """Those that ran, or were cancelled or postponed, or were told not to run."""

    counted: int = 0
    """How many more were counted as not run, but told to nobody."""

    known: set[str] = attrs.field(factory=set[str])
    """The tasks that had a part in that."""

    @property
    def now(self) -> datetime:
        return noon(self.seconds)

    def options(self) -> dict[str, Any]:
        choose = self.random.choice
        return {
            "overlap": choose(["skip", "queue", "allow", "replace"]),
            "late": Late(
                window=choose([None, None, 5, 25]),
                run=choose(["latest", "earliest", "all", "all", "none"]),
                limit=choose([1, 2, 100]),
            ),
            "deadline_after": choose([None, None, timedelta(seconds=17)]),
            "jitter": timedelta(seconds=choose([0, 0, 4])),
        }

    async def begin(self) -> None:
        schedule = Schedule(
            id="s", trigger=Interval(EVERY), work_id="w", created_at=NOON, **self.options()
        )
        await self.change(PutSchedule(schedule, NOON))

    async def step(self) -> None:
        """Do something, some time later."""
        self.seconds += self.random.choice([0, 0, 1, 4, 9, 15, 70])
        acts: list[Callable[[], Awaitable[Any]]] = [self.claim, self.end] * 2
        acts += [self.touch, self.turn]
        act = self.random.choice(acts)
        before = await self.dropped()
        await act()
        if act == self.touch:  # whose answers are about tasks
            self.counted += await self.dropped() - before

    async def dropped(self) -> int:
        return (await self.repository.get_schedule("s")).dropped

    async def turn(self) -> None:
        """Change the schedule, but not its moments."""
        at, choose = self.now, self.random.choice
        changes: list[ChangeSchedule] = [
            PauseSchedule("s", at),
            ResumeSchedule("s", at, choose([False, True])),
            ResumeSchedule("s", at, choose([False, True])),
            TriggerSchedule("s", at),
            UpdateSchedule("s", ScheduleUpdate(**self.options()), at),
        ]
        await self.change(choose(changes))

    async def change(self, change: ChangeSchedule) -> None:
        changed: ScheduleChanged = await self.repository.change_schedule(change)
        self.drop(changed.dropped)

    async def claim(self, limit: int | None = None) -> bool:
        claimed = await self.repository.claim(
            limit or self.random.choice([1, 2, 50]), self.now
        )
        for task in (*claimed.tasks, *claimed.expired):
            self.note(task)
        self.drop(claimed.dropped)
        return bool(claimed.tasks or claimed.expired)

    async def end(self) -> None:
        """End a run, somehow."""
        runs = await self.repository.find(TaskQuery(states={TaskState.DISPATCHED}))
        if not runs:
            return
        run = self.random.choice(runs)
        how = self.random.choice(["done", "failed", "cancelled", "reverted"])
        if how == "cancelled":
            await self.repository.mark_cancelled(run, self.now)
        elif how == "reverted":
            await self.repository.revert(run)
        else:
            await self.repository.mark_done(run, self.now, None if how == "done" else how)

    async def touch(self) -> None:
        """Cancel or postpone what is pending, or dispatch it by its id."""
        tasks = await self.repository.find(TaskQuery(states={TaskState.SCHEDULED}))
        if not tasks:
            return
        task = self.random.choice(tasks)
        what = self.random.choice(["cancel", "postpone", "dispatch"])
        if what == "cancel":
            await self.repository.cancel(task.id, self.now)
        elif what == "postpone":
            at = task.scheduled_at + timedelta(seconds=self.random.choice([1, 33]))
            update = TaskUpdate(scheduled_at=at, deadline=None)
            await self.repository.update(task.id, update)
        elif task.scheduled_at <= self.now:
            task = await self.repository.mark_dispatched(task.id, self.now)
        else:
            return
        self.note(task)

    async def finish(self) -> datetime:
        """Let nothing be under way; return the last moment of all that there were."""
        await self.change(ResumeSchedule("s", self.now, catch_up=True))
        for _ in range(1_000):
            query = TaskQuery(states={TaskState.DISPATCHED})
            for run in await self.repository.find(query):
                await self.repository.mark_done(run, self.now)
            if not await self.claim(50):
                break
        else:
            raise AssertionError("it comes to no end")
        # What was skipped is told with the next one.
        [head] = [
            task
            for task in await self.repository.find(TaskQuery(states={TaskState.SCHEDULED}))
            if task.id not in self.known
        ]
        self.seconds = (head.scheduled_at - NOON).total_seconds()
        await self.claim(50)
        last = (await self.repository.get_schedule("s")).last_at
        assert last is not None
        return last

    def note(self, task: Task) -> None:
        if task.id not in self.known and task.nominal_at is not None:
            self.moments.append(task.nominal_at)
        self.known.add(task.id)

    def drop(self, dropped: list[Dropped]) -> None:
        for each in dropped:
            passed = (each.last - each.first) // EVERY + 1
            assert each.count == passed
            self.moments += [each.first + n * EVERY for n in range(passed)]


@pytest.mark.parametrize("seed", range(10))
async def test_each_moment_comes_once(seed: int) -> None:
    """
    Each moment of a schedule runs, or is cancelled or postponed, or is told, or at least
    counted, not to run: exactly one of these, and once.
    """
    for number in range(40):
        history = History(Random(1000 * seed + number))
        await history.begin()
        for _ in range(40):
            await history.step()
        last = await history.finish()
        expected = [NOON + n * EVERY for n in range(1, (last - NOON) // EVERY + 1)]
        moments = set(history.moments)
        assert len(moments) == len(history.moments), number
        assert moments <= {*expected}, number
        assert len(moments) + history.counted == len(expected), number
