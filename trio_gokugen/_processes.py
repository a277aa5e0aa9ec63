"""The processes of one dispatcher, on trio-parallel. Needs the extra ``process``.

A process is spawned when there is none idle, so it shares nothing with the program, and
serves many runs, one after the other. One whose run is cancelled is killed.

trio-parallel pickles what goes through its pipes. Here these are the name of the function
and the task as JSON values, and back a JSON value, or what `_taken_apart` makes of an
exception: values of Python's own, of which none can fail to be read, or run any code then.

A new process is first given nothing to do. What goes wrong until it can do that is told
apart from what goes wrong in a work, which has not begun by then.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from multiprocessing import resource_tracker
from typing import Any, cast

import outcome
import trio_parallel as untyped  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

from ._autojump import autojump_held
from ._callables import check_address
from ._errors import WorkerDiedError
from ._process_work import SIGNALS, Answer, be_ready, begin, to_send
from ._process_work import run as run_there
from ._results import Unkept
from ._taken_apart import put_together
from ._task import Task
from .abc import Work

trio_parallel: Any = untyped

GRACE = 5.0
"""Seconds that idle processes get to end, when all do, before they are killed."""

_IDLE = 600.0
"""Seconds after which an idle process ends by itself."""


class Processes:
    """See above."""

    def __init__(self) -> None:
        self._opened: AbstractAsyncContextManager[Any] | None = None
        self._context: Any = None

    async def make_ready(self) -> None:
        """Return once a process is idle, for a `call` that comes before a checkpoint.

        Raises:
          WorkerDiedError: if it does not get so far.
        """
        if self._opened is None:
            # Has no checkpoint: nobody else comes in between.
            opened = trio_parallel.open_worker_context(
                idle_timeout=_IDLE, init=begin, grace_period=GRACE
            )
            self._context = await opened.__aenter__()
            self._opened = opened
            _start_quietly(self._context)
        if self._context.statistics().idle_workers:
            return
        try:
            await self._run(be_ready)
        except trio_parallel.BrokenWorkerError as broken:
            died = _died(broken)
            died.add_note(
                "It had not begun with the work: what it wrote to stderr says why. A script"
                ' must call trio.run under if __name__ == "__main__":, as each process'
                " imports it."
            )
            raise died from None

    async def call(self, work: Work, run: Task) -> outcome.Outcome[Any]:
        """What a work returned or raised over there.

        If it is cancelled, the process is killed at once, and has ended before this raises.
        """
        module, path = check_address(work.function)
        try:
            answer: Answer = await self._run(
                run_there, module, path, to_send(run), work.retain
            )
        except trio_parallel.BrokenWorkerError as broken:
            return outcome.Error(_died(broken))
        how, what = answer
        if how == "value":
            return outcome.Value(what)
        if how == "unkept":
            return outcome.Value(Unkept(what))
        return outcome.Error(put_together(what))

    async def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        with autojump_held():
            return await self._context.run_sync(
                function,
                *args,
                kill_on_cancel=True,
                limiter=nullcontext(),  # the dispatcher's has let it through
            )

    async def aclose(self) -> None:
        """Return once all processes have ended. To be called when no work runs any more."""
        if self._opened is None:
            return
        # It complains of idle ones that were killed, or did not end in time: they have now.
        with autojump_held(), suppress(trio_parallel.BrokenWorkerError):
            await self._opened.__aexit__(None, None, None)
        # One that was killed may not have been joined, and keeps its pipes: this joins it.
        multiprocessing.active_children()


def _died(broken: BaseException) -> WorkerDiedError:
    # The last argument is the process, says the documentation.
    return WorkerDiedError(broken.args[-1].exitcode)


# -- signals --------------------------------------------------------------------------
#
# A terminal sends a Ctrl-C to all processes of the program, a service manager a SIGTERM,
# and it is the scheduler which is to decide what becomes of works. Processes take no notice
# of either, but only once they have come so far: before, they would die, with a traceback.
# So they are started with the signals blocked, by a thread that has blocked them.
# Trio-parallel has no place for that.


def _start_quietly(context: Any) -> None:
    own = cast("dict[str, Any]", vars(context))
    there = hasattr(signal, "pthread_sigmask") and "_worker_class" in own
    if there:  # pragma: no branch: not on Windows, nor with what trio-parallel may become
        own["_worker_class"] = functools.partial(_with_quiet_start, own["_worker_class"])


def _with_quiet_start(make: Callable[..., Any], *args: Any) -> Any:
    worker = make(*args)
    worker.proc.start = functools.partial(_start_blocked, worker.proc)
    return worker


def _start_blocked(process: Any) -> None:
    """Start a process, in whose place a thread calls this."""
    del process.start  # what was put in front of its own
    # The first start does this, too, and lets the signals in again after it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _started.add(process)


_started: weakref.WeakSet[Any] = weakref.WeakSet()


def kill_left(program: int) -> None:
    """Kill what is left when the program ends, if Trio itself has crashed.

    `multiprocessing` would send it a SIGTERM, and then wait for it.
    """
    if os.getpid() == program:  # and not a process that it has forked off
        for process in set(multiprocessing.active_children()) & set(_started):
            process.kill()


# Comes before what `multiprocessing` has registered: the last comes first.
atexit.register(kill_left, os.getpid())
