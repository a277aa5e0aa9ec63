"""A work that fails twice before it succeeds, and what a victim does with it."""

from __future__ import annotations

from typing import Protocol

from trio_gokugen import (
    KeyExistsError,
    Retry,
    Scheduler,
    WorkRegistry,
    current_scheduler,
    current_task,
    fixed,
)

KEY = "only one"
FAILURES = 2
PARTS = 2
"""So often an attempt tells how far it has come."""


class Note(Protocol):
    """Writes a line for each id, which outlives what comes after."""

    def __call__(self, what: str, *ids: str, attempt: str = "") -> None: ...


class Flaky:
    """Notes, with an id: ``adding`` a task, and what an attempt does.

    It notes its ``start``, with its number and how many it sees to have failed; progress
    that it is ``telling``, and has ``told``; ``doubled``, if another has its key; and
    ``fail`` or ``end``.
    """

    def __init__(self, number: str, works: WorkRegistry, note: Note) -> None:
        self._number = number
        self._note = note
        retry = Retry(FAILURES + 1, wait=fixed(0))
        works.register("flaky", self.work, retry=retry)

    async def play(self, scheduler: Scheduler) -> None:
        """Have it done, by whatever task has the key."""
        task_id = f"{self._number}.flaky"
        self._note("adding", task_id)
        await scheduler.add_task("flaky", after=0, id=task_id, key=KEY, if_exists="return")
        await scheduler.drain()

    async def work(self) -> None:
        run, scheduler = current_task(), current_scheduler()
        self._note("start", run.id, attempt=f"{run.attempt}.{run.retries}")
        try:
            await scheduler.add_task("flaky", after=0, key=KEY)
        except KeyExistsError as error:
            holder = error.task_id
        else:
            holder = "another"
        if holder != run.id:
            self._note("doubled", run.id)
        for part in range(PARTS):
            told = f"{run.attempt}.{part}"
            self._note("telling", run.id, attempt=told)
            await scheduler.progress(part / PARTS, told)
            self._note("told", run.id, attempt=told)
        if run.retries < FAILURES:
            self._note("fail", run.id, attempt=str(run.attempt))
            raise OSError(f"attempt {run.attempt}")
        self._note("end", run.id, attempt=str(run.attempt))
