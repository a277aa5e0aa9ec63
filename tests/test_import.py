import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import trio_gokugen
from trio_gokugen import abc

DEPENDENCIES = "trio, attrs, outcome, cronsim"

# What is promised to users, beside what is exported for those who build parts.
PROMISED = {
    "AlreadyCancelledError",
    "AlreadyDispatchedError",
    "AlreadyDoneError",
    "ChainHooks",
    "Cron",
    "GokugenError",
    "HeapRepository",
    "HookAction",
    "Interval",
    "InvalidTaskError",
    "InvalidTriggerError",
    "LoopHooks",
    "NotDispatchedError",
    "PartialHooks",
    "PassThroughHooks",
    "RepositoryError",
    "Scheduler",
    "SchedulerAlreadyRunningError",
    "SchedulerNotRunningError",
    "SystemClock",
    "Task",
    "TaskExistsError",
    "TaskNotFoundError",
    "TaskParam",
    "TaskQuery",
    "TaskState",
    "TrioClock",
    "WorkNotFoundError",
    "WorkRegistry",
    "WorkerPoolDispatcher",
    "current_task",
    "open_scheduler",
}
SEAMS = {
    "Clock",
    "Dispatcher",
    "LoopHooks",
    "RepositoryLike",
    "TaskRepository",
    "TimerLike",
    "WorkRegistry",
}
MODULES = [trio_gokugen, abc]
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda each: each.__name__)


def run(program: str) -> str:
    """What a fresh interpreter prints, which has the package compiled, as it has others."""
    compiled = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=compiled,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def imported(program: str) -> set[str]:
    """The modules that a fresh interpreter has after running this."""
    return set(run(f"{program}\nimport sys\nprint(*sys.modules)").split())


# -- what is there ------------------------------------------------------------------


@every_module
def test_all_that_is_listed_is_there(module: ModuleType) -> None:
    """
    Every name in `__all__` is there, and once.
    """
    listed = list(module.__all__)
    assert len(listed) == len(set(listed))
    for name in listed:
        assert getattr(module, name) is not None


@every_module
def test_all_that_is_there_is_listed(module: ModuleType) -> None:
    """
    Every public class and function that a module makes, or that the package exports, is
    listed.
    """
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, ModuleType)
        and getattr(value, "__module__", "").startswith(module.__name__)
    }
    assert public <= set(module.__all__)


def test_what_is_promised_is_there() -> None:
    """
    What users are promised can be imported from `trio_gokugen`, the seams from its `abc`.
    """
    assert set(trio_gokugen.__all__) >= PROMISED
    assert set(abc.__all__) >= SEAMS


@every_module
def test_a_star_imports_what_is_listed(module: ModuleType) -> None:
    """
    A star import gives what is listed, and nothing else.
    """
    program = f"from {module.__name__} import *\nprint(*dir())"
    given = {name for name in run(program).split() if not name.startswith("__")}
    assert given == set(module.__all__)


def test_what_is_exported_has_words() -> None:
    """
    Every class and function that users import has a docstring.
    """
    for name in trio_gokugen.__all__:
        value = getattr(trio_gokugen, name)
        if isinstance(value, type) or callable(value):
            assert value.__doc__, name


def test_the_package_is_typed() -> None:
    """
    Type checkers are told that the package has types.
    """
    assert trio_gokugen.__file__ is not None
    assert (Path(trio_gokugen.__file__).parent / "py.typed").exists()


def test_the_version_is_that_of_the_project() -> None:
    """
    `__version__` is the version that is installed.
    """
    program = "import importlib.metadata as m; print(m.version('trio_gokugen'))"
    assert run(program).strip() == trio_gokugen.__version__


# -- what it brings along -----------------------------------------------------------


def test_the_import_brings_little_along() -> None:
    """
    Importing the package imports nothing but itself, what the core depends on, and small
    parts of the standard library: no extra, and nothing that is for tests.
    """
    before = imported(f"import {DEPENDENCIES}")
    brought = imported("import trio_gokugen") - before
    foreign = {name for name in brought if name.partition(".")[0] != "trio_gokugen"}
    assert {name.partition(".")[0] for name in foreign} <= sys.stdlib_module_names
    assert "trio_gokugen.testing" not in brought
    assert "trio_gokugen.sql" not in brought
    assert "trio.testing" not in before | brought
    heavy = {"asyncio", "sqlite3", "multiprocessing", "unittest", "zoneinfo", "http"}
    assert foreign.isdisjoint(heavy)
    assert len(foreign) <= 15


def test_the_import_changes_nothing() -> None:
    """
    Importing the package sets up no logging, and starts no thread.
    """
    program = """
import logging, threading
import trio_gokugen
print(logging.getLogger().handlers, logging.getLogger("trio_gokugen").handlers)
print(threading.active_count())
"""
    assert run(program).splitlines() == ["[] []", "1"]


def test_the_import_is_fast() -> None:
    """
    Importing the package takes at most as long again as what it depends on.
    """
    program = """
from time import process_time
start = process_time()  # and not the time that others take, who are at work beside it
import {}
print(process_time() - start)
"""

    def seconds(modules: str) -> float:
        return float(run(program.format(modules)))

    # Interleaved, so that whatever else the machine is at strikes both alike; more often
    # where it is at so much that a core is slower in one of them all the time.
    ours = theirs = math.inf
    for number in range(20):
        ours = min(ours, seconds(f"{DEPENDENCIES}, trio_gokugen"))
        theirs = min(theirs, seconds(DEPENDENCIES))
        if number >= 4 and ours / theirs <= 2:
            break
    assert ours / theirs <= 2
