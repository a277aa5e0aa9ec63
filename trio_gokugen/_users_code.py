"""Where the library's code ends and its user's begins.

A Ctrl-C may raise `KeyboardInterrupt` between any two instructions of a Trio program. In
the middle of the loops it would leave a task claimed and not started, or a caller without
an answer: so their entry points are protected by `trio.lowlevel.enable_ki_protection`, and
what the user wrote is called through here (async works, to spare a frame, by the worker
pool itself), where it may be interrupted as ever. While protected code runs, Trio keeps the
interrupt for the main task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

T = TypeVar("T")


@trio.lowlevel.disable_ki_protection
async def call(function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    """Call an async function of the user's, which a Ctrl-C may interrupt."""
    return await function(*args, **kwargs)
