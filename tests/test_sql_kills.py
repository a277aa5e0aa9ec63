"""What a SQLite file holds after its program was killed, at any moment.

What a program has written is there when only the program is killed, whether or not it had
come to the disk: so the files may be in memory.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

import attrs
import pytest
import victim

# Of those who are killed no coverage is taken anyway.
pytestmark = [pytest.mark.long, pytest.mark.uncovered]

KILLS = 200 if os.environ.get("GOKUGEN_ALL_KILLS") else 80
"""At random moments."""
KILLED = -signal.SIGKILL


class Killer:
    """Starts victims, see there, and ends them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, victim.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # With its orders at an end it kills its last victim, and ends.
        self._process.communicate()
        assert self._process.returncode == 0

    def start(self, order: victim.Order) -> None:
        self._say(json.dumps(attrs.asdict(order)))

    def kill(self) -> int:
        return self._ask("kill")

    def wait(self) -> int:
        return self._ask("wait")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()

    def _ask(self, line: str) -> int:
        self._say(line)
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


@pytest.fixture(scope="module")
def killer() -> Generator[Killer]:
    with Killer() as killer:
        yield killer


def copy_of(directory: Path) -> Path:
    """A copy of the file, to be looked at: to repair it is up to the victims."""
    for suffix in ("", "-wal", "-journal"):
        original = directory / f"tasks.db{suffix}"
        copied = directory / f"copy.db{suffix}"
        copied.unlink(missing_ok=True)
        if original.exists():
            shutil.copyfile(original, copied)
    return directory / "copy.db"


@attrs.frozen
class Row:
    """What the file has of a task."""

    work_id: str
    state: str
    attempt: int
    interruptions: int


@attrs.define
class Story:
    """A file, the log of who worked on it, and a judge of both.

    A *run* is an id and the number of an attempt. A run is *in flight* at a kill if the
    file has its claim, and not its end.
    """

    killer: Killer
    directory: Path
    rows: dict[str, Row] = attrs.field(factory=dict[str, Row])
    """As of the last look."""

    tables: list[tuple[str]] = attrs.field(factory=list[tuple[str]])
    """And indexes, then."""

    orders: int = 0
    kills: int = 0
    adding: set[str] = attrs.field(factory=set[str])
    added: set[str] = attrs.field(factory=set[str])
    cancelled: set[str] = attrs.field(factory=set[str])
    starts: set[tuple[str, int]] = attrs.field(factory=set[tuple[str, int]])
    ends: set[tuple[str, int]] = attrs.field(factory=set[tuple[str, int]])
    cuts: set[tuple[str, int]] = attrs.field(factory=set[tuple[str, int]])
    """Runs cancelled by a shutdown that did not wait for them."""

    in_flight: set[tuple[str, int]] = attrs.field(factory=set[tuple[str, int]])
    """At any kill so far."""

    _read: int = 0

    def __attrs_post_init__(self) -> None:
        self.directory.mkdir()
        self.log.touch()

    @property
    def log(self) -> Path:
        return self.directory / "log"

    # -- what happens -----------------------------------------------------------------

    def start(self, play: str, spot: str = "", nth: int = 1) -> None:
        self.orders += 1
        url = f"sqlite:///{self.directory / 'tasks.db'}"
        order = victim.Order(url, str(self.log), play, self.orders, spot, nth)
        self.killer.start(order)

    def kill(self, play: str, seconds: float) -> bool:
        """Whether a play was cut short by a kill after so many seconds."""
        self.start(play)
        time.sleep(seconds)
        return self._ended(self.killer.kill())

    def kill_at(self, play: str, spot: str, nth: int) -> bool:
        """Whether a play was cut short when it came to a spot the nth time."""
        self.start(play, spot, nth)
        return self._ended(self.killer.wait())

    def go_on(self, play: str) -> None:
        """Let a play take its course."""
        self.start(play)
        assert not self._ended(self.killer.wait())

    def _ended(self, status: int) -> bool:
        assert status in {0, KILLED}
        killed = status == KILLED
        self.kills += killed
        self._look(killed=killed)
        return killed

    # -- what is to be seen -----------------------------------------------------------

    def _look(self, *, killed: bool) -> None:
        before, self.rows = self.rows, self._read_file()
        for task_id, row in before.items():
            if row.state in {"done", "failed", "cancelled"}:
                assert self.rows[task_id] == row, task_id
        self._read_log()
        assert self.added <= self.rows.keys() <= self.adding
        bulks = [each.split(".bulk.")[0] for each in self.rows if ".bulk." in each]
        for bulk in set(bulks):
            assert bulks.count(bulk) == victim.BULK, bulk
        running = {
            (task_id, row.attempt)
            for task_id, row in self.rows.items()
            if row.state == "dispatched"
        }
        assert killed or not running
        self.in_flight |= running
        for task_id, row in self.rows.items():
            if before.get(task_id) != row:
                self._judge(task_id, row)
        for task_id in self.cancelled:
            assert self.rows[task_id].state == "cancelled", task_id

    def _read_log(self) -> None:
        """What was done since the last look, line by line."""
        with self.log.open() as log:
            log.seek(self._read)
            lines = log.read().splitlines()
            self._read = log.tell()
        for line in lines:
            what, task_id, *rest = line.split(" ")
            if not rest:
                ids = {
                    "adding": self.adding,
                    "add": self.added,
                    "cancel": self.cancelled,
                }
                ids[what].add(task_id)
                continue
            run = task_id, int(rest[0])
            if what == "start":
                self._judge_start(*run)
            else:
                assert run in self.starts, line
            runs = {"start": self.starts, "end": self.ends, "cut": self.cuts}[what]
            assert run not in runs, line
            runs.add(run)

    def _judge_start(self, task_id: str, attempt: int) -> None:
        assert task_id not in self.cancelled, task_id
        # The claim was in the file before, and nothing else has claimed it since.
        assert self.rows[task_id].attempt == attempt, task_id
        if attempt > 1:
            assert (task_id, attempt - 1) in self.in_flight | self.cuts, task_id

    def _judge(self, task_id: str, row: Row) -> None:
        runs = [(task_id, attempt) for attempt in range(1, row.attempt + 1)]
        lost = [run for run in runs if run in self.in_flight or run in self.cuts]
        for run in runs:
            # A worker may not have come to begin, but then there was a kill.
            assert run in self.starts or run in self.in_flight, run
        once = row.work_id in {"once", "stay once"}
        assert len(runs) <= 1 or not once, task_id
        over = runs  # what runs now is in flight, and never to be heard of again
        match row.state:
            case "done":
                assert runs[-1] in self.ends, task_id
                over = runs[:-1]
            case "failed":
                assert once, task_id
            case "cancelled":
                assert not runs, task_id
            case "scheduled":
                assert not (once and runs), task_id
            case state:
                assert state == "dispatched", task_id
        assert lost == over, task_id
        reverted = len(runs) if row.state == "scheduled" else max(0, len(runs) - 1)
        assert row.interruptions == reverted, task_id

    def _read_file(self) -> dict[str, Row]:
        with closing(sqlite3.connect(copy_of(self.directory))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            self.tables = connection.execute("SELECT name FROM sqlite_schema").fetchall()
            if not self.tables:
                return {}
            rows = connection.execute(
                "SELECT id, work_id, state, attempt, interruptions FROM gokugen_task"
            )
            return {task_id: Row(*rest) for task_id, *rest in rows}

    def finish(self) -> None:
        """Let a victim do what is left, in peace: then every task has ended."""
        self.go_on("last")
        for task_id, row in self.rows.items():
            assert row.state in {"done", "failed", "cancelled"}, task_id


def kills_at(killer: Killer, directory: Path, play: str, spot: str) -> int:
    """Kill at the first time that a play comes to a spot, the second, and so on.

    Each time with a new file, on which another goes on afterwards.

    Returns:
      How often it comes there.
    """
    directory.mkdir()
    for nth in itertools.count(1):
        story = Story(killer, directory / str(nth))
        killed = story.kill_at(play, spot, nth)
        story.finish()
        if not killed:
            return nth - 1
    raise AssertionError


def test_at_random_moments(killer: Killer, fast_path: Path) -> None:
    """
    Killed many times at random moments, a program loses no task that was acknowledged, runs
    none that was cancelled, and runs again exactly what was in flight at a kill.
    """
    story = Story(killer, fast_path / "story")
    # Moments so short that chance may miss them: these are met first.
    assert story.kill_at("short", "before start", 1)
    assert story.kill_at("short", "in the work", 1)
    story.go_on("short")
    usual: list[float] = []
    for _ in range(5):
        began = time.monotonic()
        story.go_on("busy")
        usual.append(time.monotonic() - began)
    while story.kills < KILLS:
        story.kill("busy", random.uniform(0, median(usual)))
    story.finish()

    assert story.added
    assert story.cancelled
    assert {attempt for _, attempt in story.starts} >= {1, 2}
    # Killed between the claim and the start, and in the work.
    assert story.in_flight - story.starts
    assert (story.in_flight & story.starts) - story.ends


@pytest.mark.parametrize("play", ["short", "stopped"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_at_each_commit(killer: Killer, fast_path: Path, play: str, when: str) -> None:
    """
    Nothing is amiss if a program is killed before or after any of its commits, of which
    the first makes the tables, and the last one is in the shutdown.
    """
    assert kills_at(killer, fast_path / "stories", play, f"{when} commit") >= 8


@pytest.mark.parametrize(
    ("play", "spot", "times"),
    [
        # "short" runs seven tasks, "stopped" two, which it leaves by a cancellation.
        ("short", "before start", 7),
        ("short", "after start", 7),
        ("short", "in the work", 7),
        ("short", "before record", 7),
        ("short", "after record", 7),
        ("stopped", "before stop", 1),
        ("stopped", "before cancelling works", 1),
        ("stopped", "after cancelling works", 1),
        ("stopped", "in a work that is cancelled", 2),
        ("stopped", "before record", 2),
        ("stopped", "after record", 2),
        ("stopped", "before last write", 1),
        ("stopped", "before release", 1),
        ("stopped", "after release", 1),
        ("stopped", "before dispose", 1),
        ("stopped", "after dispose", 1),
        ("short", "before migrate", 1),
        ("short", "after migrate", 1),
    ],
)
def test_at_each_step(
    killer: Killer, fast_path: Path, play: str, spot: str, times: int
) -> None:
    """
    Nothing is amiss if a program is killed between the claim of a task and its start, in
    the work, between its end and its record, at any step of the shutdown, or right before
    or after the tables are made.
    """
    assert kills_at(killer, fast_path / "stories", play, spot) == times


def test_in_a_migration(killer: Killer, fast_path: Path) -> None:
    """
    Killed after any statement that makes the tables, a program leaves none of them.
    """
    directory = fast_path / "stories"
    directory.mkdir()
    for nth in itertools.count(1):
        story = Story(killer, directory / str(nth))
        if not story.kill_at("short", "in a migration", nth):
            assert nth > 8  # two tables, five indexes, and the version
            break
        assert story.tables == []
        story.finish()
        assert story.tables != []
