"""Several processes that work on one PostgreSQL, of which one dies, and then the server."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import member
import pytest
import trio
from postgresql import Server

from trio_gokugen import Task, TaskQuery, TaskState
from trio_gokugen.sql import SQLRepository, open_sql_repository

TASKS = 6_000
PATIENCE = 120.0
LONG_DUE = datetime(2020, 1, 1, tzinfo=UTC)


def due(task_id: str, work_id: str) -> Task:
    return Task(id=task_id, work_id=work_id, scheduled_at=LONG_DUE, created_at=LONG_DUE)


@contextmanager
def running(url: str, name: str, log: Path) -> Generator[subprocess.Popen[bytes]]:
    """A process that works on the database, see `member`."""
    command = [sys.executable, member.__file__, url, name, str(log)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()  # unless it has ended in good order


@asynccontextmanager
async def opened(url: str) -> AsyncGenerator[SQLRepository]:
    async with open_sql_repository(url, name="the test") as repository:
        yield repository


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 (it comes about in other processes)
        await trio.sleep(0.02)


async def all_ended(repository: SQLRepository) -> list[Task]:
    """All tasks, once others have ended them."""
    unended = TaskQuery(states={TaskState.SCHEDULED, TaskState.DISPATCHED})
    while await repository.find(unended, 1):  # noqa: ASYNC110 (others end them)
        await trio.sleep(0.1)
    return await repository.find(TaskQuery())


@pytest.mark.long
@pytest.mark.uncovered
@pytest.mark.parametrize("members", [2, 4])
async def test_each_task_is_done_once(
    mortal_server: Server, mortal_url: str, tmp_path: Path, members: int
) -> None:
    """
    Each task is done by exactly one run, unless it was in flight when the process was
    killed that ran it, or when the server was restarted; then its attempts are counted.
    """
    log = tmp_path / "runs"
    log.touch()

    def runs() -> list[tuple[str, int, str]]:
        lines = log.read_text().split("\n")[:-1]  # the last may be half written
        fields = (line.split() for line in lines)
        return [(task_id, int(attempt), name) for task_id, attempt, name in fields]

    async with opened(mortal_url) as repository:
        await repository.add(
            [due("hang", "hang"), *(due(str(n), "nothing") for n in range(TASKS))]
        )

    with trio.fail_after(PATIENCE), ExitStack() as stack:
        processes = {
            name: stack.enter_context(running(mortal_url, name, log))
            for name in map(str, range(members))
        }
        await until(lambda: len(runs()) > TASKS // 4)
        [victim] = [name for task_id, _, name in runs() if task_id == "hang"]
        processes.pop(victim).kill()
        await until(lambda: len(runs()) > TASKS // 2)
        await trio.to_thread.run_sync(mortal_server.restart)
        async with opened(mortal_url) as repository:
            tasks = await all_ended(repository)
        for process in processes.values():
            assert process.stdin is not None
            process.stdin.close()
            assert await trio.to_thread.run_sync(process.wait) == 0

    attempts = {task.id: task.attempt for task in tasks}
    assert len(attempts) == TASKS + 1
    assert {task.state for task in tasks} == {TaskState.DONE}
    done = runs()
    # No attempt was made twice, and of each task the last one was made.
    assert max(Counter((task_id, attempt) for task_id, attempt, _ in done).values()) == 1
    last = {task_id: attempt for task_id, attempt, _ in sorted(done)}
    assert last == attempts
    # What one process had in flight when it was killed, and the others at the restart.
    again = [task_id for task_id, attempt in attempts.items() if attempt > 1]
    assert "hang" in again
    assert len(again) <= member.MAX_WORKERS * members
