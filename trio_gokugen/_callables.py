"""What kind of function a callable is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine, seen through partials and objects."""
    while isinstance(function, functools.partial):
        function = function.func
    call = type(function).__call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def check_async(function: Callable[..., Any], name: str) -> None:
    """Raise a `TypeError` that names the argument, unless it is an async function."""
    if not callable(function) or not is_async(function):
        raise TypeError(f"{name}: must be an async function, not {function!r}")
