"""What kind of function a callable is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from ._errors import shown


def called(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that is called in the end: behind partials, or of an object's type."""
    while isinstance(function, functools.partial | staticmethod):
        function = (
            function.func if isinstance(function, functools.partial) else function.__func__
        )
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return type(function).__call__


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine, seen through partials and objects."""
    return inspect.iscoroutinefunction(called(function))


def check_async(function: object, name: str) -> None:
    """Raise a `TypeError` that names the argument, unless it is an async function."""
    if not callable(function) or not is_async(function):
        raise TypeError(f"{name}: must be an async function, not {shown(function)}")
