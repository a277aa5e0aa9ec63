"""Pending tasks in large numbers, and what a program without the library would hold."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice

import attrs

from trio_gokugen import HeapRepository, Task

DAY = timedelta(days=1)
YEAR = 365 * DAY
CHUNK = 10_000


def moments(seed: int, since: datetime, span: timedelta = YEAR) -> Iterator[datetime]:
    """Moments spread at random over a span, without an end."""
    source = random.Random(seed)
    microseconds = span // timedelta(microseconds=1)
    while True:
        yield since + timedelta(microseconds=source.randrange(microseconds))


def ids(count: int) -> Iterator[str]:
    return (f"task-{number}" for number in range(count))


def tomorrow() -> datetime:
    return datetime.now(UTC) + DAY


def task(task_id: str, moment: datetime) -> Task:
    return Task(
        id=task_id, work_id="work", scheduled_at=moment, created_at=datetime.now(UTC)
    )


async def fill(repository: HeapRepository, count: int, since: datetime) -> None:
    """Add tasks that are pending for some moment of a year."""
    tasks = map(task, ids(count), moments(1, since))
    while chunk := list(islice(tasks, CHUNK)):
        await repository.add(chunk)


@attrs.define(kw_only=True)
class PlainTask:
    """A task as a program would keep it that does everything by hand."""

    id: str
    work_id: str
    scheduled_at: datetime
    created_at: datetime
    param: Mapping[str, object] = attrs.field(factory=dict)
    meta: Mapping[str, object] = attrs.field(factory=dict)
    priority: int = 0
    state: str = "scheduled"
    err: str | None = None
    attempt: int = 0
    interruptions: int = 0
    deadline: datetime | None = None
    cancelled_at: datetime | None = None
    dispatched_at: datetime | None = None
    done_at: datetime | None = None


def plain_task(task_id: str, moment: datetime) -> PlainTask:
    return PlainTask(
        id=task_id, work_id="work", scheduled_at=moment, created_at=datetime.now(UTC)
    )
