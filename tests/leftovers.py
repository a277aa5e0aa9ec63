"""What a test may leave behind: no process, no thread, no open file, no temporary file."""

from __future__ import annotations

import gc
import os
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

_others: set[int] = set()
"""The processes that were here before the test: a server of other tests', and its own."""


def children() -> set[int]:
    """The processes below this one, but for those of other tests, and for one more.

    `multiprocessing` starts a process that tracks shared memory and the like, together
    with the first that it spawns, and that ends with the program. Nothing of ours is in it.
    """
    tracker: Any = vars(resource_tracker)["_resource_tracker"]
    found: set[int] = set()
    for child in psutil.Process().children():
        if child.pid not in {tracker._pid, *_others}:
            found |= {child.pid, *(each.pid for each in below(child))}
    return found


def below(process: psutil.Process) -> list[psutil.Process]:
    """All processes below another, which may end meanwhile."""
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def threads() -> set[str]:
    """The threads at work. Trio keeps idle ones for a while, to be used again."""
    names = {thread.name for thread in threading.enumerate()}
    return {name for name in names if not name.startswith("Trio thread ")}


def files() -> dict[str, str]:
    """The open files, pipes and sockets, by their numbers."""
    gc.collect()
    found: dict[str, str] = {}
    for each in os.listdir("/proc/self/fd"):  # noqa: PTH208 (what it lists with is gone then)
        try:
            found[each] = os.readlink(f"/proc/self/fd/{each}")  # noqa: PTH115
        except FileNotFoundError:
            continue
    return found


def use_for_temporary(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have temporary files be made in a directory, here and in what is started."""
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", str(directory))


SOON = 10.0
"""Real seconds, in which a process has noticed that its program has ended."""


def adopted(directory: Path) -> list[psutil.Process]:
    """The processes that were started with this directory, whoever has adopted them."""
    found: list[psutil.Process] = []
    for each in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if each.environ().get("TMPDIR") == str(directory):
                found.append(each)
    return found


@contextmanager
def nothing_left(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Fail unless what there is after the block was there before it."""
    # It has a pipe of its own, and stays.
    resource_tracker.ensure_running()
    directory.mkdir()
    use_for_temporary(directory, monkeypatch)
    _others.clear()
    _others.update(children())
    before = children(), threads(), files()
    yield
    after = children(), threads(), files()
    for now, then in zip(after, before, strict=True):
        assert now == then, f"{now} instead of {then}"
    _, left = psutil.wait_procs(adopted(directory), timeout=SOON)
    assert left == []
    assert list(directory.iterdir()) == []
