"""Adding, cancelling, re-scheduling and popping among many pending tasks.

By turns add, cancel, add, re-schedule and pop, so that their number stays. A pop takes
the first task: all are due. What is added is made beforehand, tasks here and plain
objects there; what is cancelled and re-scheduled is chosen beforehand, at random. The
operations that the repository is told are made within the time.

The repository is told a hundred at a time, by `apply`, as by the update loop; and, not
to be judged, one at a time, by its methods.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypeAlias

import outcome
import trio

from trio_gokugen import HeapRepository, RefusedError, TaskUpdate
from trio_gokugen.abc import (
    AddTasks,
    CancelTask,
    Claimed,
    ClaimTasks,
    EndTask,
    Operation,
    UpdateTask,
)

from ._measure import Row, Scale, Side, at_least, compare, unjudged
from ._pending import DAY, YEAR, PlainTask, fill, ids, moments, plain_task, task
from ._turns import Stopwatch, answer, serve, turns

Step: TypeAlias = tuple[Literal["add", "cancel", "re-schedule", "pop"], Any, Any]

BATCH = 100


def plans(
    pending: int,
    rounds: int,
    since: datetime,
    make: Callable[[str, datetime], object],
    popped: Container[str],
) -> Iterator[list[Step]]:
    """What to do in each turn: the same for every side."""
    shuffled = list(ids(pending))
    random.Random(2).shuffle(shuffled)
    targets = (task_id for task_id in shuffled if task_id not in popped)
    some = moments(3, since)
    new_ids = (f"new-{number}" for number in itertools.count())
    while True:
        yield [
            step
            for _ in range(rounds)
            for step in (
                ("add", make(next(new_ids), next(some)), None),
                ("cancel", next(targets), None),
                ("add", make(next(new_ids), next(some)), None),
                ("re-schedule", next(targets), next(some)),
                ("pop", None, None),
            )
        ]


# -- the repository -----------------------------------------------------------------


def told(pending: int, rounds: int, batch: int) -> None:
    async def run() -> None:
        repository = HeapRepository()
        since = long_ago()
        await fill(repository, pending, since)
        popped: set[str] = set()
        carry_out = in_batches if batch > 1 else one_by_one
        for _, steps in zip(
            turns(), plans(pending, rounds, since, task, popped), strict=False
        ):
            now = datetime.now(UTC)
            with Stopwatch() as watch:
                claims = await carry_out(repository, steps, now)
            answer(watch.seconds)
            runs = [run for claimed in claims for run in claimed.tasks]
            assert len(runs) == rounds
            popped.update(run.id for run in runs)
            await repository.apply([EndTask(run, now) for run in runs])

    trio.run(run)


async def in_batches(
    repository: HeapRepository, steps: Sequence[Step], now: datetime
) -> list[Claimed]:
    claims: list[Claimed] = []
    for first in range(0, len(steps), BATCH):
        operations = [operation(step, now) for step in steps[first : first + BATCH]]
        claims += [
            each.value
            for each in await repository.apply(operations)
            if isinstance(each, outcome.Value) and isinstance(each.value, Claimed)
        ]
    return claims


def operation(step: Step, now: datetime) -> Operation:
    kind, what, moment = step
    if kind == "add":
        return AddTasks([what])
    if kind == "cancel":
        return CancelTask(what, now)
    if kind == "re-schedule":
        return UpdateTask(what, TaskUpdate(scheduled_at=moment))
    return ClaimTasks(1, now)


async def one_by_one(
    repository: HeapRepository, steps: Sequence[Step], now: datetime
) -> list[Claimed]:
    claims: list[Claimed] = []
    for kind, what, moment in steps:
        with suppress(RefusedError):  # if it has just been popped
            if kind == "add":
                await repository.add([what])
            elif kind == "cancel":
                await repository.cancel(what, now)
            elif kind == "re-schedule":
                await repository.update(what, TaskUpdate(scheduled_at=moment))
            else:
                claims.append(await repository.claim(1, now))
    return claims


# -- the heap -----------------------------------------------------------------------


class LazyHeap:
    """`heapq`, a dict, and entries that are dead once the dict has another."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[datetime, int, int, PlainTask]] = {}
        self._heap: list[tuple[datetime, int, int, PlainTask]] = []
        self._sequence = itertools.count()

    def add(self, new: PlainTask) -> None:
        entry = (new.scheduled_at, -new.priority, next(self._sequence), new)
        self._entries[new.id] = entry
        heapq.heappush(self._heap, entry)

    def cancel(self, task_id: str) -> None:
        self._entries.pop(task_id, None)

    def reschedule(self, task_id: str, moment: datetime) -> None:
        old = self._entries.get(task_id)
        if old is not None:
            _, priority, sequence, plain = old
            plain.scheduled_at = moment
            entry = self._entries[task_id] = (moment, priority, sequence, plain)
            heapq.heappush(self._heap, entry)

    def pop(self) -> PlainTask:
        while True:
            entry = heapq.heappop(self._heap)
            plain = entry[3]
            if self._entries.get(plain.id) is entry:
                del self._entries[plain.id]
                return plain


def bare(pending: int, rounds: int) -> None:
    heap = LazyHeap()
    since = long_ago()
    for task_id, moment in zip(ids(pending), moments(1, since), strict=False):
        heap.add(plain_task(task_id, moment))
    popped: set[str] = set()
    for _, steps in zip(
        turns(), plans(pending, rounds, since, plain_task, popped), strict=False
    ):
        taken: list[PlainTask] = []
        with Stopwatch() as watch:
            for kind, what, moment in steps:
                if kind == "add":
                    heap.add(what)
                elif kind == "cancel":
                    heap.cancel(what)
                elif kind == "re-schedule":
                    heap.reschedule(what, moment)
                else:
                    taken.append(heap.pop())
        answer(watch.seconds)
        popped.update(plain.id for plain in taken)


# -----------------------------------------------------------------------------------


def long_ago() -> datetime:
    return datetime.now(UTC) - YEAR - DAY


def measure(scale: Scale) -> Iterator[Row]:
    pending = scale(1_000_000, quick=10_000)
    rounds = scale(4_000, quick=200)
    what = f"add, cancel, re-schedule, pop mix at {pending:,} pending"
    against = "bare lazy `heapq`"
    other = partial(Side, "mix", "bare", pending, rounds)
    batches = compare(
        partial(Side, "mix", "told", pending, rounds, BATCH),
        other,
        repeats=scale(15, quick=2),
    )
    yield at_least(0.3, f"{what}, in batches of {BATCH}", against, batches.speed)
    singles = compare(
        partial(Side, "mix", "told", pending, rounds, 1),
        other,
        repeats=scale(5, quick=2),
    )
    yield unjudged(f"{what}, in single calls", against, singles.speed)


if __name__ == "__main__":
    serve({"told": told, "bare": bare})
