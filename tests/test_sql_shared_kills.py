"""Two schedulers that share a schedule on a server, of which one is killed.

By default it is killed at few of the statements by which the schedule goes a step on; with
`GOKUGEN_ALL_KILLS` in the environment at each of these, and of many others.
"""

from __future__ import annotations

import os
from collections import Counter
from datetime import timedelta
from pathlib import Path

import attrs
import pytest
import trio
import victim
from test_sql_kills import KILLED, Killer, killer

from trio_gokugen import (
    Schedule,
    Scheduler,
    Task,
    TaskQuery,
    TaskState,
    WorkRegistry,
    current_task,
    open_scheduler,
)
from trio_gokugen.sql import open_sql_repository

__all__ = ["killer"]

pytestmark = [pytest.mark.long, pytest.mark.uncovered]

LEASE = 6.0
"""Of the survivor, who must not lose what it runs, however busy the machine is."""

VICTIMS_LEASE = 0.5
"""Of the victim, so that the other soon has what was lost."""

MORE = 3
"""So many occurrences are to run after all that the victim had."""

OVERLAPS = ["allow", "skip"]
DISPATCHED = TaskQuery(states={TaskState.DISPATCHED})
ALL = bool(os.environ.get("GOKUGEN_ALL_KILLS"))

# The schedule is read; then the task, its lease and the schedule are written, and the next
# task; with "skip" this is so only at the end of a run, where the schedule is read again.
FEW = [
    ("in a step", 2),
    ("in a step", 4),
    ("in a step", 7),
    ("after a step's commit", 1),
    ("after a step's commit", 2),
    ("in the work", 1),
]
MANY = [
    *(("in a step", nth) for nth in range(1, 25)),
    *(("before a step's commit", nth) for nth in range(1, 5)),
    *(("after a step's commit", nth) for nth in range(1, 5)),
    *(("before commit", nth) for nth in range(1, 13)),
    *(("after commit", nth) for nth in range(1, 13)),
    *(("after a statement", nth) for nth in range(1, 61)),
    ("in the work", 1),
    ("before record", 1),
    ("after record", 1),
]


@attrs.define
class Survivor:
    """The other scheduler: what it runs, and how long."""

    url: str
    starts: list[tuple[str, int]] = attrs.field(factory=list[tuple[str, int]])

    async def work(self) -> None:
        run = current_task()
        self.starts.append((run.id, run.attempt))

    async def outlive(self, killer: Killer, order: victim.Order) -> None:
        """Share a schedule with a victim until that is killed, and go on."""
        works = WorkRegistry()
        works.register("work", self.work)
        async with (
            open_sql_repository(self.url, lease=LEASE, poll=0.1) as repository,
            open_scheduler(works, repository, max_workers=4) as scheduler,
        ):
            await victim.declare(scheduler, victim.SHARED, order.number)
            killer.start(order)
            assert await trio.to_thread.run_sync(killer.wait) == KILLED
            await self._go_on(scheduler)

    async def _go_on(self, scheduler: Scheduler) -> None:
        """Until all has ended that was running, and some more was run."""
        for task in await scheduler.find(DISPATCHED, limit=None):
            await scheduler.wait(task.id)
        enough = len(self.starts) + MORE
        while len(self.starts) < enough:  # noqa: ASYNC110 (it is done by the clock)
            await trio.sleep(0.02)


async def final(url: str) -> tuple[Schedule, list[Task]]:
    async with open_sql_repository(url) as repository:
        return await repository.get_schedule("s"), await repository.find(TaskQuery())


def lines_of(log: Path) -> list[tuple[str, str, int]]:
    """What the victim has noted of runs."""
    fields = [line.split() for line in log.read_text().splitlines()]
    return [(what, task_id, int(attempt)) for what, task_id, attempt in fields]


def judge_moments(schedule: Schedule, tasks: list[Task]) -> None:
    """Each moment has one task, or was dropped and counted; one is to come."""
    assert schedule.next_at is not None
    assert max(Counter(task.nominal_at for task in tasks).values()) == 1
    pending = [task for task in tasks if task.state is TaskState.SCHEDULED]
    assert [task.id for task in pending] == [schedule.pending_id]
    assert pending[0].nominal_at == schedule.next_at
    assert schedule.awaited_id is None
    done = {task.nominal_at for task in tasks if task.state is TaskState.DONE}
    assert len(tasks) == len(done) + 1
    assert schedule.runs == len(done)
    every = timedelta(seconds=victim.SHARED)
    # What was skipped before the one to come is counted with that.
    until = schedule.skipped_from or schedule.next_at
    first = min(tasks, key=lambda task: task.nominal_at or task.scheduled_at)
    assert first.nominal_at is not None
    assert first.nominal_at == schedule.following(first.created_at)
    count = (until - first.nominal_at) // every
    moments = [first.nominal_at + n * every for n in range(count)]
    assert done <= {*moments}
    assert schedule.dropped == len(moments) - len(done)
    if schedule.overlap == "allow":
        assert schedule.dropped == 0


def judge_runs(
    tasks: list[Task], starts: list[tuple[str, int]], lines: list[tuple[str, str, int]]
) -> None:
    """No attempt was made twice, and none again but what the victim had."""
    theirs = [(task_id, attempt) for what, task_id, attempt in lines if what == "start"]
    assert max(Counter([*starts, *theirs]).values()) == 1
    ended = {*starts} | {(task_id, n) for what, task_id, n in lines if what == "end"}
    for task in tasks:
        assert task.retries == 0
        if task.state is TaskState.DONE:
            assert (task.id, task.attempt) in ended
            assert task.interruptions == task.attempt - 1
            for attempt in range(1, task.attempt):
                assert (task.id, attempt) not in starts


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize(("spot", "nth"), MANY if ALL else FEW)
async def test_killed(
    killer: Killer, postgresql_url: str, tmp_path: Path, overlap: str, spot: str, nth: int
) -> None:
    """
    If one of two schedulers is killed between any two statements, the other loses no
    occurrence of the schedule that they share, makes none twice, and runs what was lost.
    """
    async with open_sql_repository(postgresql_url):
        pass  # the tables are there
    log = tmp_path / "log"
    number = OVERLAPS.index(overlap)
    order = victim.Order(
        postgresql_url, str(log), "shared", number, spot, nth, VICTIMS_LEASE
    )
    survivor = Survivor(postgresql_url)
    with trio.fail_after(victim.LIMIT):
        await survivor.outlive(killer, order)
    schedule, tasks = await final(postgresql_url)
    assert schedule.overlap == overlap
    judge_moments(schedule, tasks)
    judge_runs(tasks, survivor.starts, lines_of(log))
    if spot == "in the work":
        assert max(task.attempt for task in tasks) >= 2
