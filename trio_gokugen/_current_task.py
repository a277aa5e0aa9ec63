"""The task whose work is running."""

from __future__ import annotations

from contextvars import ContextVar

from ._task import Task

running: ContextVar[Task] = ContextVar("trio_gokugen_current_task")
"""Set by dispatchers, in the context of each run."""


def current_task() -> Task:
    """The task whose work calls this, as it was dispatched.

    Works in the tasks and threads that a work starts, too.

    Raises:
      RuntimeError: outside of a work.
    """
    try:
        return running.get()
    except LookupError:
        raise RuntimeError("current_task() is for use inside a work") from None
