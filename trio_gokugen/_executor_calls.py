"""What an executor calls: the work of one run, in whatever thread, process or machine.

What comes back is a `Landed`, whatever the work did: an exception that went through the
executor's own hands might not survive them. One that can be pickled, and not unpickled,
would break a process pool for everybody. From another process it holds nothing that is not
Python's own, or ours.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import importlib
import os
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, cast

import attrs
import trio

from ._conditions import scheduler
from ._current_task import running
from ._errors import LeakedCancelledError, WorkTimeoutError, not_stopped, shown
from ._json import fresh
from ._registries import is_registry
from ._results import to_keep
from ._taken_apart import taken_apart
from ._task import Progress, Task
from .abc import Work, WorkRegistry

Key: TypeAlias = str
"""What a run is called on an executor, where nothing else is called so."""

Tell: TypeAlias = Callable[[Progress], None]
"""Takes what a work tells of its progress, in the thread of the work."""

Left: TypeAlias = Literal["value", "error", "apart", "stopped", "refused"]
"""How a call has ended.

By an error, as it is or taken apart; stopped as it ran, or refused to begin, as told by
`stop`.
"""


@attrs.frozen
class Landed:
    """What a call has left, fit to be sent."""

    left: Left
    payload: Any = None
    """What the work returned or raised."""


# -- works by import path -----------------------------------------------------------


def resolve(path: str) -> WorkRegistry:
    """The registry at ``module:name``, imported.

    Raises:
      ValueError: this is no such path.
      ImportError: there is no such module, or no such name in it.
      TypeError: what is there is no registry.
    """
    module, _, name = path.partition(":")
    if not module or not name:
        raise ValueError(
            f"works: must be a registry, or its import path 'module:name', not"
            f" {shown(path)}"
        )
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ImportError(f"works: {module!r} has no {name!r}") from None
    if not is_registry(found):
        raise TypeError(f"works: {path!r} must be a registry of works, not {shown(found)}")
    return found


# -- progress -----------------------------------------------------------------------

_tell: ContextVar[Tell | None] = ContextVar("trio_gokugen_tell")


def report_progress(fraction: float, note: str | None = None) -> None:
    """Tell from inside a work that an executor runs how far it has come.

    A plain function, which does not wait: what it tells is recorded soon after, and of
    much told at once the last. Works that run in the scheduler's own Trio loop have
    `Scheduler.progress`.

    Args:
      fraction: From 0 to 1.
      note: At most 1,000 characters.

    Raises:
      InvalidTaskError: a value cannot be used; `field` names it.
      RuntimeError: not called from inside such a work, or nothing is brought back before
        the work has ended, as from a pool of processes. It says what to do instead.
    """
    told = Progress(fraction=fraction, note=note, at=datetime.now(UTC))
    try:
        tell = _tell.get()
    except LookupError:
        raise RuntimeError(f"report_progress(){_otherwise()}") from None
    if tell is None:
        raise RuntimeError(
            "report_progress(): this executor brings back nothing before the work has"
            " ended: run it in a pool of threads or on a cluster, or have it tell nothing"
        )
    tell(told)


def _otherwise() -> str:
    """Why it cannot be used here, and what can."""
    if scheduler.get(None) is None:
        if running.get(None) is None:
            return " is for use inside a work that an executor runs"
        return (
            ": a process of a WorkerPoolDispatcher brings back nothing before the work has"
            " ended: run it in a thread, or have it tell nothing"
        )
    if trio.lowlevel.in_trio_run():
        how = "await current_scheduler().progress(...)"
    else:
        how = "trio.from_thread.run(current_scheduler().progress, ...)"
    return f" is for works in executors and on Dask: here, {how}"


# -- stopping -----------------------------------------------------------------------

REMEMBERED = 10_000
"""How many runs that are not here are remembered as stopped, the latest."""

_lock = threading.Lock()
_under_way: dict[Key, tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = {}
_stopped: dict[Key, None] = {}


def _forget() -> None:
    """In a process that was forked off: no run is here, and nobody lets go of the lock."""
    global _lock  # noqa: PLW0603 (whoever has it is not here)
    _lock = threading.Lock()
    _under_way.clear()
    _stopped.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch: Windows has no fork
    os.register_at_fork(after_in_child=_forget)


def stop(key: Key) -> None:
    """Cancel an async work that runs in this process, and have none begin under the key."""
    with _lock:
        if key in _under_way:
            token, scope = _under_way[key]
            # Its loop cannot end meanwhile: it would have to take its key away first.
            token.run_sync_soon(scope.cancel)
            return
        _stopped[key] = None
        while len(_stopped) > REMEMBERED:
            del _stopped[next(iter(_stopped))]


def _is_stopped(key: Key) -> bool:
    with _lock:
        return key in _stopped


# -- the call -----------------------------------------------------------------------


def call_here(
    key: Key, work: Work, run: Task, tell: Tell | None, spent: float = 0.0
) -> Landed:
    """Call a work in this process, and come back with how it ended.

    Of its time-out it has spent these seconds before, on its condition.
    """
    try:
        # Nothing of this thread's context, and nothing of it left behind.
        return contextvars.Context().run(_call, key, work, run, tell, spent)
    finally:
        with _lock:
            _stopped.pop(key, None)


def call_by_path(
    key: Key, path: str, task: str, spent: float = 0.0, tell: Tell | None = None
) -> Landed:
    """Find a work by its registry's import path, call it, and make the end fit to send.

    What it returns is sent if it is to be kept: else nobody is going to look at it.
    """
    try:
        run = Task.from_json(task)
        work = resolve(path).get(run.work_id)
        landed = call_here(key, work, run, tell, spent)
        if landed.left == "value":
            return Landed("value", to_keep(landed.payload) if work.retain else None)
    except BaseException as error:  # noqa: BLE001 (it is the outcome)
        landed = Landed("error", error)
    if landed.left == "error":
        return Landed("apart", taken_apart(landed.payload, __name__))
    return landed


def _call(key: Key, work: Work, run: Task, tell: Tell | None, spent: float) -> Landed:
    running.set(run)
    _tell.set(tell)
    try:
        if work.in_thread or work.in_process:
            return _call_plain(key, work, run, spent)
        if not trio.lowlevel.in_trio_run():
            return _run_async(key, work, run, spent)
        # As a child sees it that was forked off by a thread in which Trio runs.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            within = contextvars.copy_context().run
            return thread.submit(within, _run_async, key, work, run, spent).result()
    except BaseException as error:  # noqa: BLE001 (it is the outcome)
        return _raised(error)


def _call_plain(key: Key, work: Work, run: Task, spent: float) -> Landed:
    if _is_stopped(key):
        return Landed("refused")
    began = time.monotonic() - spent
    try:
        return Landed("value", work.function(**fresh(run.param)))
    except Exception as error:
        if work.timeout is not None and time.monotonic() - began >= work.timeout:
            raise WorkTimeoutError(work.timeout) from error
        raise


def _run_async(key: Key, work: Work, run: Task, spent: float) -> Landed:
    return trio.run(_call_async, key, work, run, spent)


async def _call_async(key: Key, work: Work, run: Task, spent: float) -> Landed:
    token = trio.lowlevel.current_trio_token()
    until_stopped = trio.CancelScope()
    until_timeout = trio.CancelScope()
    left: BaseException | None = None
    with _lock:
        if key in _stopped:
            return Landed("refused")
        _under_way[key] = token, until_stopped
    try:
        if work.timeout is not None:
            until_timeout.deadline = trio.current_time() + work.timeout - spent
        with until_stopped, until_timeout:
            try:
                return Landed("value", await work.function(**fresh(run.param)))
            except BaseException as error:
                left = error  # it may tell where the work was, and what it had done
                raise
    except Exception as error:
        if until_timeout.cancel_called:
            raise _timed_out(work) from error
        raise
    finally:
        with _lock:
            del _under_way[key]
    if until_timeout.cancelled_caught:
        raise _timed_out(work) from left
    return Landed("stopped")


def _timed_out(work: Work) -> WorkTimeoutError:
    assert work.timeout is not None
    return WorkTimeoutError(work.timeout)


def _raised(error: BaseException) -> Landed:
    """What a work has raised, without Trio's cancellations, which are nobody's here."""
    if isinstance(error, trio.Cancelled):
        return Landed("error", LeakedCancelledError())
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        rest = group.split(trio.Cancelled)[1]
        return Landed("error", LeakedCancelledError() if rest is None else rest)
    return Landed("error", not_stopped(error))
