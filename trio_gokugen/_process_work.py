"""What is called in a process, to run a work there.

Over there its module is imported, and the function found by its name: nothing of the
program's state is there. What comes in and goes out is made of Python's own values only.
"""

from __future__ import annotations

import contextvars
import inspect
import signal
from datetime import datetime
from typing import Any, Literal, TypeAlias

from ._callables import find
from ._current_task import running
from ._json import fresh
from ._results import Unkept, to_keep
from ._retry import bare, wish
from ._taken_apart import Parts, taken_apart
from ._task import MOMENTS, Task, TaskState, made_of

Sent: TypeAlias = dict[str, Any] | str
"""A task as it is sent: its fields as JSON values, or all of it as JSON text."""

Answer: TypeAlias = tuple[Literal["value", "unkept", "error", "exit"], Any]
"""A JSON value, why it cannot be one, an exception taken apart, or an exit code."""


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


def begin() -> None:
    """Do what a new process must do first, which ignores a Ctrl-C by now."""
    if hasattr(signal, "pthread_sigmask"):  # pragma: no branch: not on Windows
        # It was blocked until here, and must not be for what a work starts.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def be_ready() -> None:
    """Do nothing: a process that has done it runs, and has imported what it must."""


def run(module: str, path: str, sent: Sent) -> Answer:
    """Call the function that has this name with the task's `param`. Raises nothing."""
    try:
        value = contextvars.copy_context().run(_call, module, path, sent)
    except SystemExit as end:
        return "exit", _exit_code(end)
    except BaseException as error:  # noqa: BLE001 (it is the outcome)
        return "error", _error(error)
    if value is None:
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


def _error(error: BaseException) -> Parts:
    # Who reads it wants to know where the work was, and not how it came to be called.
    while error.__traceback__ is not None and (
        error.__traceback__.tb_frame.f_globals.get("__name__") == __name__
    ):
        error.__traceback__ = error.__traceback__.tb_next
    apart = taken_apart(error)
    wanted = wish(error)
    if apart[3] is None and wanted is not None:
        return taken_apart(bare(wanted))  # what it says matters, not what is put on it
    return apart


def _exit_code(end: SystemExit) -> int:
    if end.code is None:
        return 0
    return end.code if isinstance(end.code, int) else 1
