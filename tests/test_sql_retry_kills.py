"""What a SQLite file holds of work that fails, after its program was killed.

By default that is at the commits that add, retry and end a task, and at some statements;
with `GOKUGEN_ALL_KILLS` in the environment at each of both.
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import attrs
import flaky
import pytest
import trio
import victim
from test_sql_kills import KILLED, Killer, copy_of, killer

from trio_gokugen import Task, TaskQuery, TaskState
from trio_gokugen.sql import open_sql_repository

__all__ = ["killer"]

pytestmark = [pytest.mark.long, pytest.mark.uncovered]

ALL = bool(os.environ.get("GOKUGEN_ALL_KILLS"))
COMMITS = range(1, 99) if ALL else range(2, 99, 5)
"""The task is added, and then each time: claimed, refused a key, told twice, and ended."""

STATEMENTS = range(1, 999) if ALL else range(1, 999, 13)

KILLS = 2
"""So many programs in a row are killed: the first one, and who takes up what it left."""


@pytest.fixture
def empty(killer: Killer, fast_path: Path) -> Path:
    """A file that has its tables, so that few statements are about these."""
    path = fast_path / "empty.db"
    killer.start(victim.Order(f"sqlite:///{path}", str(fast_path / "log"), "last"))
    assert killer.wait() == 0
    return path


async def read(path: Path) -> list[Task]:
    """All tasks of a file."""
    async with open_sql_repository(f"sqlite:///{path}") as repository:
        return await repository.find(TaskQuery())


@attrs.frozen
class Line:
    """Of the log."""

    what: str
    task_id: str
    of: str
    """The number of the attempt, and what else is to be said of it."""

    @property
    def attempt(self) -> int:
        return int(self.of.split(".")[0])


@attrs.define
class Story:
    """A file, the log of who worked on it, and a judge of both."""

    killer: Killer
    directory: Path
    tasks: dict[str, Task] = attrs.field(factory=dict[str, Task])
    """As of the last look."""

    orders: int = 0
    in_flight: set[tuple[str, int]] = attrs.field(factory=set[tuple[str, int]])
    """Attempts that were at any kill so far."""

    def go_on(self, spot: str = "", nth: int = 1) -> bool:
        """Whether a program was killed when it came to a spot the nth time."""
        self.orders += 1
        url, log = f"sqlite:///{self.directory / 'tasks.db'}", str(self.directory / "log")
        self.killer.start(victim.Order(url, log, "flaky", self.orders, spot, nth))
        status = self.killer.wait()
        assert status in {0, KILLED}
        killed = status == KILLED
        self._look(killed=killed)
        return killed

    def _look(self, *, killed: bool) -> None:
        before = self.tasks
        self.tasks = {task.id: task for task in trio.run(read, copy_of(self.directory))}
        running = {
            (task.id, task.attempt)
            for task in self.tasks.values()
            if task.state is TaskState.DISPATCHED
        }
        assert killed or not running
        self.in_flight |= running
        lines = self._read_log()
        self._judge_key(lines)
        assert self.tasks.keys() <= {e.task_id for e in lines if e.what == "adding"}
        for task_id, task in self.tasks.items():
            earlier = before.get(task_id)
            if earlier is not None:
                assert task.errors[: earlier.retries] == earlier.errors
            mine = [line for line in lines if line.task_id == task_id]
            self._judge_attempts(task, mine)
            judge_errors(task, mine)
            judge_progress(task, mine)

    def _read_log(self) -> list[Line]:
        lines = (self.directory / "log").read_text().splitlines()
        fields = (line.partition(" ")[::2] for line in lines)
        return [Line(what, *rest.partition(" ")[::2]) for what, rest in fields]

    def _judge_key(self, lines: list[Line]) -> None:
        """One task at a time has the key, and runs."""
        assert "doubled" not in {line.what for line in lines}
        assert sum(not task.state.ended for task in self.tasks.values()) <= 1
        assert {task.key for task in self.tasks.values()} <= {flaky.KEY}
        started = [line.task_id for line in lines if line.what == "start"]
        one_by_one = [task_id for task_id, _ in itertools.groupby(started)]
        assert len(one_by_one) == len(set(one_by_one))

    def _judge_attempts(self, task: Task, lines: list[Line]) -> None:
        """Each attempt has failed, was cut short by a kill, or is the last one."""
        failed = [each.attempt for each in task.errors]
        cut = [n for n in range(1, task.attempt + 1) if (task.id, n) in self.in_flight]
        match task.state:
            case TaskState.DONE:
                over, last = cut, [task.attempt]
                assert task.retries == flaky.FAILURES
                assert lines[-1] == Line("end", task.id, str(task.attempt))
            case TaskState.DISPATCHED:
                over, last = cut[:-1], [task.attempt]
            case state:
                assert state is TaskState.SCHEDULED, task
                over, last = cut, []
        assert sorted([*failed, *over, *last]) == [*range(1, task.attempt + 1)]
        assert task.interruptions == len(over)

    def finish(self) -> None:
        """Let a program do what is left, in peace."""
        assert not self.go_on()
        assert self.tasks
        assert {task.state for task in self.tasks.values()} == {TaskState.DONE}


def judge_errors(task: Task, lines: list[Line]) -> None:
    """What is recorded is what has failed, and was seen by who came after."""
    failed = [each.attempt for each in task.errors]
    assert task.retries == len(failed)
    assert set(failed) <= {line.attempt for line in lines if line.what == "fail"}
    for each in task.errors:
        assert each.err.splitlines()[0] == f"OSError: attempt {each.attempt}"
    starts = [line for line in lines if line.what == "start"]
    attempts = [line.attempt for line in starts]
    assert attempts == sorted(set(attempts))
    for line in starts:
        assert line.attempt <= task.attempt
        seen = sum(attempt < line.attempt for attempt in failed)
        assert line.of == f"{line.attempt}.{seen}"


def judge_progress(task: Task, lines: list[Line]) -> None:
    """It is one that was told, and none before the last that was acknowledged."""
    telling: list[str | None] = [None]
    since = 0
    for line in lines:
        if line.what == "telling":
            telling.append(line.of)
        elif line.what == "told":
            since = telling.index(line.of)
    note = None if task.progress is None else task.progress.note
    assert note in telling[since:]


@pytest.mark.parametrize(
    ("spot", "times"),
    [
        ("before commit", COMMITS),
        ("after commit", COMMITS),
        ("after a statement", STATEMENTS),
    ],
    ids=["before commit", "after commit", "after a statement"],
)
def test_killed(
    killer: Killer, fast_path: Path, empty: Path, spot: str, times: range
) -> None:
    """
    Whenever a program is killed whose work fails, and whoever takes it up, each failure is
    recorded together with the next attempt, and counted once, and the last one succeeds.
    """
    for nth in times:
        here = fast_path / str(nth)
        here.mkdir()
        shutil.copyfile(empty, here / "tasks.db")
        story = Story(killer, here)
        killed = [story.go_on(spot, nth) for _ in range(KILLS)]
        story.finish()
        if not killed[0]:
            assert nth > times[3]  # each attempt was killed
            return
    raise AssertionError(times)
