"""What kind of function a callable is."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType
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


# -- functions as another process finds them ------------------------------------------


def address(function: Callable[..., Any]) -> tuple[str, str]:
    """The module and the qualified name by which another process finds a function.

    Raises:
      TypeError: it is not found by that, and says what to do.
    """
    module: object = getattr(function, "__module__", None)
    path: object = getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str):
        raise TypeError(_NOT_FOUND.format(shown(function), "it is an object, or a partial"))
    owner = getattr(function, "__self__", None)
    if not (owner is None or isinstance(owner, type | ModuleType)):
        raise TypeError(_NOT_FOUND.format(shown(function), "it is bound to an object"))
    if "<lambda>" in path:
        raise TypeError(_NOT_FOUND.format(shown(function), "it is a lambda"))
    if "<locals>" in path:
        raise TypeError(
            _NOT_FOUND.format(shown(function), "it is made inside of another function")
        )
    if module == "__main__":
        _check_main()
    return module, path


def check_address(function: Callable[..., Any]) -> tuple[str, str]:
    """The `address` of a function, under which this very function must be found here.

    Raises:
      TypeError: something else is found there, or nothing.
    """
    module, path = address(function)
    try:
        found = find(module, path)
    except (ImportError, AttributeError):
        raise TypeError(
            _NOT_FOUND.format(shown(function), f"there is no {path} in {module}")
        ) from None
    # A method of a class is made anew each time, and equal.
    if found is not function and found != function:
        raise TypeError(
            _NOT_FOUND.format(shown(function), f"{module}.{path} is something else")
        )
    return module, path


def find(module: str, path: str) -> Any:
    """What has this qualified name in a module. Raises what the import does."""
    found: Any = sys.modules.get(module)
    if found is None:
        found = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _check_main() -> None:
    """Whether `multiprocessing` runs the program's own module in a new process, too."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    is_file = getattr(main, "__file__", None) is not None
    if not is_file if spec is None else spec.name.rpartition(".")[2] == "__main__":
        raise TypeError(
            "function: it is in the program itself, which another process cannot import:"
            " put the function into a module"
        )


_NOT_FOUND = (
    "function: {} cannot be run in another process, where it must be found by its module"
    " and name: {}. Register a function that is defined in a module, under its own name"
)
