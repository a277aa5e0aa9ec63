"""What is called in a process, to run a work there.

Over there its module is imported, and the function found by its name: nothing of the
program's state is there. What comes in and goes out is made of Python's own values only.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import multiprocessing
import os
import signal
import stat
from contextlib import suppress
from datetime import datetime
from multiprocessing import resource_tracker
from typing import Any, Literal, TypeAlias

from ._callables import find
from ._current_task import running
from ._json import fresh
from ._results import Unkept, to_keep
from ._taken_apart import taken_apart
from ._task import MOMENTS, Task, TaskState, made_of

Sent: TypeAlias = dict[str, Any] | str
"""A task as it is sent: its fields as JSON values, or all of it as JSON text."""

Answer: TypeAlias = tuple[Literal["value", "unkept", "error"], Any]
"""A JSON value, why it cannot be one, or an exception taken apart."""


def to_send(run: Task) -> Sent:
    """A task as it is sent."""
    fields = vars(run).copy()
    if fields.keys() & _OF_CLASSES:
        return run.to_json()
    # Much faster than all of it as JSON; and moments as text, than to pickle them.
    for field in MOMENTS:
        if fields[field] is not None:
            fields[field] = fields[field].isoformat()
    fields["state"] = run.state.value
    return fields


_OF_CLASSES = frozenset(("retry", "errors", "progress"))


def _received(sent: Sent) -> Task:
    if isinstance(sent, str):
        return Task.from_json(sent)
    for field in MOMENTS:
        if sent[field] is not None:
            sent[field] = datetime.fromisoformat(sent[field])
    sent["state"] = TaskState(sent["state"])
    return made_of(sent)


SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
"""What all processes of a program may get together, and only the program itself answers."""


def begin() -> None:
    """Do what a new process must do first, which ignores a Ctrl-C by now."""
    # Not ignored: what a work starts would ignore it, too, and could not be ended by it.
    signal.signal(signal.SIGTERM, functools.partial(end_if_orphaned, os.getpid()))
    if hasattr(signal, "pthread_sigmask"):  # pragma: no branch: not on Windows
        # They were blocked until here, and must not be for what a work starts.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    keep_pipes()


def keep_pipes() -> None:
    """Have nothing that a work starts hold the pipes to the program open.

    By their closing the program knows that this process has ended. They were made to be
    inherited by this process, and would be by what it starts, too.
    """
    pipes = given_pipes()
    if not pipes:
        return  # as on Windows
    for pipe in pipes:
        os.set_inheritable(pipe, False)  # noqa: FBT003 (it has no name)
    # What is forked off may use `multiprocessing`, and needs this one: it leads to a
    # process of that, for which nobody waits here.
    tracker = resource_tracker.getfd()
    ours = [pipe for pipe in pipes if pipe != tracker]
    os.register_at_fork(after_in_child=functools.partial(_let_go, ours))


def given_pipes() -> list[int]:
    """The pipes that whatever a process starts would have, too, but for the usual three.

    Those that it was given itself; and any that its modules have made to be inherited.
    """
    try:
        numbers = os.listdir("/dev/fd")  # noqa: PTH208 (what is open, and not the paths)
    except OSError:  # Windows has none, where nothing is inherited
        return []
    found: list[int] = []
    for number in map(int, numbers):
        with suppress(OSError):  # what it was listed by is closed
            if number > _STDERR and os.get_inheritable(number) and _is_pipe(number):
                found.append(number)
    return found


_STDERR = 2


def _is_pipe(number: int) -> bool:
    return stat.S_ISFIFO(os.fstat(number).st_mode)


def _let_go(pipes: list[int]) -> None:
    """In a process that was forked off: have nothing in their places.

    They are not closed, as the objects that they belong to would close their numbers again,
    which may be other files' by then. A fork that comes back from its work is not heard,
    and ends.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for pipe in pipes:
        os.dup2(nothing, pipe, inheritable=False)
    os.close(nothing)


def end_if_orphaned(process: int, signum: int, _: object) -> None:
    """End by this signal, unless there is a program to decide what becomes of works.

    A process that a work has forked off ends by it in any case.
    """
    program = multiprocessing.parent_process()
    if os.getpid() != process or program is None or not program.is_alive():
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)


def be_ready() -> None:
    """Do nothing: a process that has done it runs, and has imported what it must."""


def run(module: str, path: str, sent: Sent, retain: bool) -> Answer:  # noqa: FBT001 (it is sent by its place)
    """Call the function that has this name with the task's `param`. Raises nothing.

    What it returns is sent back if it is to be kept: else nobody is going to look at it.
    """
    try:
        value = contextvars.copy_context().run(_call, module, path, sent)
    except BaseException as error:  # noqa: BLE001 (it is the outcome)
        return "error", taken_apart(error, __name__)
    if not retain:
        return "value", None
    kept = to_keep(value)
    return ("unkept", kept.why) if isinstance(kept, Unkept) else ("value", kept)


def _call(module: str, path: str, sent: Sent) -> Any:
    task = _received(sent)
    running.set(task)
    value = find(module, path)(**fresh(task.param))
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError(f"{path} returned a coroutine: register it as an async function")
    return value
