"""Schedules and tasks in a file of JSON lines, written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from ._autojump import autojump_held
from ._errors import DamagedFileError, InvalidTaskError, InvalidTriggerError
from ._schedule import Schedule
from ._schedule_json import BEGINNING, schedule_from_json, schedule_to_json
from ._task import Task

T = TypeVar("T")


async def write_file(
    path: Path, schedules: Sequence[Schedule], tasks: Sequence[Task]
) -> None:
    """Replace the file by one with these. Cancellation waits for the thread."""
    await _in_thread(lambda: _write(path, schedules, tasks))


async def read_file(path: Path) -> tuple[list[Schedule], list[Task]]:
    """What a file holds, or a `DamagedFileError` that names the line."""
    return await _in_thread(lambda: _read(path))


async def _in_thread(function: Callable[[], T]) -> T:
    with autojump_held():
        return await trio.to_thread.run_sync(function, abandon_on_cancel=False)


def _write(path: Path, schedules: Sequence[Schedule], tasks: Sequence[Task]) -> None:
    # Beside the file, as a rename is atomic only within one file system. Through links,
    # so that the file they lead to is replaced, and not the link.
    try:
        path = path.resolve()
    except RuntimeError as error:  # before Python 3.13, if links go round in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    # What replaces a private file must not be anybody's to read, not even for a moment.
    mode = 0o600 if path.exists() else 0o666
    try:
        temporary.touch(mode, exist_ok=False)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for schedule in schedules:
                file.write(f"{schedule_to_json(schedule)}\n")
            for task in tasks:
                file.write(f"{task.to_json()}\n")
            file.flush()
            # The rename must not reach the disk before what it gives a name to.
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make a rename last through a power failure, where directories can be synced."""
    if os.name == "nt":  # pragma: no cover: Windows has no such call
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except PermissionError:
        return  # it may be written, but not read: the file is whole all the same
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> tuple[list[Schedule], list[Task]]:
    schedules: list[Schedule] = []
    tasks: list[Task] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8")
                if text.startswith(BEGINNING):
                    schedules.append(schedule_from_json(text))
                else:
                    tasks.append(Task.from_json(text))
            except (
                InvalidTaskError,
                InvalidTriggerError,
                UnicodeDecodeError,
            ) as error:
                raise DamagedFileError(str(path), number, str(error)) from error
    return schedules, tasks
