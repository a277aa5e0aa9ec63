"""The repository in memory, in files: whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from trio_gokugen import (
    DamagedFileError,
    HeapRepository,
    Interval,
    InvalidTriggerError,
    Late,
    Schedule,
    ScheduleExistsError,
    Task,
    TaskExistsError,
    TaskQuery,
    TaskState,
    TrioClock,
)
from trio_gokugen._schedule import PutSchedule

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


def noon(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def new(task_id: str, at: float = 0, **fields: Any) -> Task:
    fields.setdefault("work_id", "work")
    return Task(id=task_id, scheduled_at=noon(at), created_at=NOON, **fields)


TASKS = [
    new("z", 9, priority=3, param={"刻": [1, 1.0, True, None]}, meta={"m": {}}),
    new("y", 3.000001, deadline=noon(9)),
    new("x", 3, state=TaskState.CANCELLED, cancelled_at=noon(4)),
    new("w", 3, state=TaskState.DISPATCHED, dispatched_at=noon(3), attempt=2),
    new("v", -9, state=TaskState.DONE, dispatched_at=noon(3), done_at=noon(5), attempt=1),
    new("u", 3, state=TaskState.FAILED, done_at=noon(5), err="line\nline", attempt=1),
    new("a", 3),
]


async def dumped(path: Path, tasks: Sequence[Task] = TASKS) -> HeapRepository:
    repository = HeapRepository()
    await repository.add(tasks)
    await repository.dump(path)
    return repository


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def loaded(path: Path) -> list[Task]:
    repository = HeapRepository()
    await repository.load(path)
    return repository.store.snapshot()


async def test_what_is_dumped_can_be_loaded(tmp_path: Path) -> None:
    """
    A file brings all tasks back: whole, in their states, and as old as they were.
    """
    before = await dumped(tmp_path / "tasks.jsonl")
    after = HeapRepository()
    await after.load(str(tmp_path / "tasks.jsonl"))
    assert after.store.snapshot() == before.store.snapshot() == TASKS
    texts = [task.to_json() for task in after.store.snapshot()]
    assert texts == [task.to_json() for task in TASKS]
    claimed = await after.claim(9, noon(20))
    assert [task.id for task in claimed.tasks] == ["a", "z"]
    assert [task.id for task in claimed.expired] == ["y"]
    assert await after.delete_ended(limit=1) == ["x"]


async def test_a_file_is_lines_of_json(tmp_path: Path) -> None:
    """
    A file has a task a line, in the order they were added, each a JSON object.
    """
    await dumped(tmp_path / "tasks.jsonl")
    content = (tmp_path / "tasks.jsonl").read_bytes()
    lines = content.decode().split("\n")
    assert lines.pop() == ""
    assert [Task.from_json(line) for line in lines] == TASKS
    await dumped(tmp_path / "none.jsonl", [])
    assert (tmp_path / "none.jsonl").read_bytes() == b""
    assert await loaded(tmp_path / "none.jsonl") == []


async def test_a_dump_replaces_the_file(tmp_path: Path) -> None:
    """
    Of an earlier, longer dump nothing is left.
    """
    await dumped(tmp_path / "tasks.jsonl")
    await dumped(tmp_path / "tasks.jsonl", TASKS[:1])
    assert await loaded(tmp_path / "tasks.jsonl") == TASKS[:1]
    assert names(tmp_path) == ["tasks.jsonl"]


async def test_a_dump_goes_through_links(tmp_path: Path) -> None:
    """
    Of a symbolic link, the file it leads to is replaced, and the link stays.
    """
    (tmp_path / "there").mkdir()
    link = tmp_path / "tasks.jsonl"
    link.symlink_to(Path("there", "real.jsonl"))
    for tasks in (TASKS, TASKS[:2]):
        await dumped(link, tasks)
        assert link.is_symlink()
        assert await loaded(tmp_path / "there" / "real.jsonl") == tasks
    assert names(tmp_path / "there") == ["real.jsonl"]


async def test_a_dump_keeps_the_mode(tmp_path: Path) -> None:
    """
    Who may read the file stays as it was.
    """
    path = tmp_path / "tasks.jsonl"
    await dumped(path)
    path.chmod(0o640)
    await dumped(path)
    assert path.stat().st_mode & 0o777 == 0o640


def fail(*_: object, **__: object) -> Any:
    raise OSError("injected")


def fail_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    real_open = io.open

    class Full(io.TextIOWrapper):
        def write(self, text: str, /) -> int:
            if self.tell() > 500:
                raise OSError("injected")
            return super().write(text)

    def open_on_a_full_disk(self: Path, mode: str = "r", **arguments: Any) -> Any:
        if mode == "w":
            return Full(real_open(self, "wb"), encoding="utf-8", newline="\n")
        return real_open(self, mode, **arguments)

    monkeypatch.setattr(Path, "open", open_on_a_full_disk)


STEPS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "open": lambda patch: patch.setattr(Path, "open", fail),
    "turn to JSON": lambda patch: patch.setattr(Task, "to_json", fail),
    "write": fail_to_write,
    "sync": lambda patch: patch.setattr(os, "fsync", fail),
    "copy the mode": lambda patch: patch.setattr(shutil, "copymode", fail),
    "rename": lambda patch: patch.setattr(Path, "replace", fail),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_dump_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """
    Whichever step fails, the old file stays as it was, and nothing is left beside it.
    """
    path = tmp_path / "tasks.jsonl"
    await dumped(path, TASKS[:3])
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        STEPS[step](patch)
        with pytest.raises(OSError, match="injected"):
            await dumped(path)
    assert path.read_bytes() == before
    assert names(tmp_path) == ["tasks.jsonl"]


async def test_a_directory_that_cannot_be_synced_has_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If only the last step fails, which makes the rename last, the file is the new one.
    """
    path = tmp_path / "tasks.jsonl"
    await dumped(path, TASKS[:3])
    real_fsync = os.fsync
    synced: list[int] = []

    def fail_the_second_time(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError("injected")
        real_fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_the_second_time)
        with pytest.raises(OSError, match="injected"):
            await dumped(path)
    assert await loaded(path) == TASKS
    assert names(tmp_path) == ["tasks.jsonl"]


async def test_a_dump_into_nowhere_fails(tmp_path: Path) -> None:
    """
    A directory that is not there is the system's own error.
    """
    with pytest.raises(FileNotFoundError):
        await dumped(tmp_path / "nowhere" / "tasks.jsonl")
    with pytest.raises(FileNotFoundError):
        await loaded(tmp_path / "tasks.jsonl")


GOOD = new("good").to_json().encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "is not JSON"),
        (GOOD[:-9], "is not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "is missing"),
        (b"\xff\xfe", "can't decode byte 0xff"),
        (GOOD.replace(b'"state":"scheduled"', b'"state":"asleep"'), "state: 'asleep'"),
        (GOOD.replace(b'"priority":0', b'"priority":1e400'), "priority: must be an int"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
async def test_a_damaged_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    """
    A line that is not a task is an error with its number, and nothing is loaded.
    """
    path = tmp_path / "tasks.jsonl"
    other = new("other").to_json().encode()
    path.write_bytes(b"\n".join([other, line, GOOD]))
    repository = HeapRepository()
    await repository.add([new("old")])
    with pytest.raises(DamagedFileError, match=r"tasks\.jsonl, line 2: ") as caught:
        await repository.load(path)
    assert (caught.value.line, caught.value.path) == (2, str(path))
    assert reason in caught.value.reason
    assert [task.id for task in repository.store.snapshot()] == ["old"]


async def test_an_id_that_is_taken_keeps_all_out(tmp_path: Path) -> None:
    """
    If a task of the file is there already, or twice in it, none is loaded.
    """
    path = tmp_path / "tasks.jsonl"
    await dumped(path)
    repository = HeapRepository()
    await repository.add([new("w")])
    with pytest.raises(TaskExistsError, match="'w'"):
        await repository.load(path)
    assert [task.id for task in repository.store.snapshot()] == ["w"]
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(TaskExistsError, match="'z'"):
        await loaded(path)


async def test_files_take_no_virtual_time(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """
    A mock clock does not jump while a file is written or read.
    """
    with trio.move_on_after(5):
        repository = await dumped(tmp_path / "tasks.jsonl")
        assert await loaded(tmp_path / "tasks.jsonl") == repository.store.snapshot()
    assert trio.current_time() == 0


async def test_a_cancelled_dump_is_whole_or_none(tmp_path: Path) -> None:
    """
    Cancelled before, nothing is written; cancelled meanwhile, all of it is.
    """
    path = tmp_path / "tasks.jsonl"
    with trio.CancelScope() as scope:
        scope.cancel()
        await dumped(path)
    assert names(tmp_path) == []
    repository = HeapRepository()
    await repository.add(TASKS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(repository.dump, path)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert await loaded(path) == TASKS


async def test_the_timer_hears_of_a_load(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """
    Who sleeps for a task wakes for an earlier one that is loaded.
    """
    await dumped(tmp_path / "tasks.jsonl")
    repository = HeapRepository()
    repository.start_timer(TrioClock(NOON))
    await repository.add([new("late", 100)])
    told: list[tuple[str, float]] = []

    async def wait() -> None:
        task = await repository.wait_until_due()
        told.append((task.id, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await repository.load(tmp_path / "tasks.jsonl")
    assert told == [("a", 3)]


async def test_a_directory_that_can_only_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A directory that may not be read is not synced; the file is written all the same.
    """

    system_open = os.open

    def refuse(path: str, *args: Any, **options: Any) -> int:
        # As the system does it for everybody but the superuser, who may run the tests.
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return system_open(path, *args, **options)

    repository = HeapRepository()
    await repository.add([Task(id="a", work_id="w", scheduled_at=NOON, created_at=NOON)])
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        await repository.dump(tmp_path / "tasks")
    again = HeapRepository()
    await again.load(tmp_path / "tasks")
    assert [task.id for task in await again.find(TaskQuery())] == ["a"]


async def test_links_that_go_round_in_a_circle(tmp_path: Path) -> None:
    """
    Where a path leads nowhere, dumping is refused by an `OSError`.
    """
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="symbolic links"):
        await HeapRepository().dump(tmp_path / "one")


# -- schedules --------------------------------------------------------------------------


def a_schedule(trigger: Any, schedule_id: str = "s") -> PutSchedule:
    schedule = Schedule(
        id=schedule_id,
        trigger=trigger,
        work_id="note",
        param={"刻": [1.5]},
        created_at=NOON,
        jitter=0.5,
        deadline_after=7,
        late=Late(window=20, run="all", limit=3),
        overlap="replace",
    )
    return PutSchedule(schedule, NOON)


async def test_schedules_are_dumped_with_their_tasks(tmp_path: Path) -> None:
    """
    A file brings schedules back as they stood, with their next occurrences and runs.
    """
    before = HeapRepository()
    for schedule_id in "ba":
        await before.change_schedule(a_schedule(Interval(10), schedule_id))
    await before.claim(1, noon(11))
    await before.dump(tmp_path / "file")
    after = HeapRepository()
    await after.load(tmp_path / "file")
    assert await after.find_schedules() == await before.find_schedules()
    assert after.store.snapshot() == before.store.snapshot()
    # What was running is known to run: the next occurrence takes its place.
    claimed = await after.claim(2, noon(21))
    assert len(claimed.tasks) == 2
    assert len(claimed.replaced) == 1
    with pytest.raises(ScheduleExistsError, match="schedule 'a' exists already"):
        await after.load(tmp_path / "file")


async def test_a_trigger_that_could_not_be_read_again(tmp_path: Path) -> None:
    """
    A trigger of somebody's own can be kept in memory, and not in a file, which says so.
    """

    class Own(Interval):
        pass

    repository = HeapRepository()
    await repository.change_schedule(a_schedule(Own(10)))
    with pytest.raises(InvalidTriggerError, match="cannot be kept outside of memory"):
        await repository.dump(tmp_path / "file")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"every":"10s"', '"every":"soon"'),
        ('"run":"all"', '"run":"any"'),
        ('"limit":3', '"most":3'),
        ("2030-06-01T12:00:10", "noon"),
        ('"runs":0', '"runs":0,"walks":1'),
        ('"runs":0', '"runs"'),
    ],
)
async def test_a_damaged_schedule(tmp_path: Path, old: str, new: str) -> None:
    """
    A line that is no schedule is named, and nothing is loaded.
    """
    repository = HeapRepository()
    await repository.change_schedule(a_schedule(Interval(10)))
    path = tmp_path / "file"
    await repository.dump(path)
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")
    after = HeapRepository()
    with pytest.raises(DamagedFileError) as caught:
        await after.load(path)
    assert caught.value.line == 1
    assert after.store.snapshot() == []
