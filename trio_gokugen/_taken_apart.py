"""An exception as plain values, and put together again: how it leaves a process.

Not pickled: what cannot be read at the other end would take the whole answer with it. Here
each end may fail for itself, and the text is there in any case. What an exception is made
with must be plain: numbers, text, moments, lists of these, classes, other exceptions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeAlias, cast
from uuid import UUID

from ._callables import find
from ._describe import MAX_MESSAGE, describe, traceback_of
from ._errors import ForeignError

Parts: TypeAlias = tuple[Any, ...]
"""Of nothing but values of Python's own, whatever an exception was made of."""

_PLAIN: frozenset[type] = frozenset(
    (
        *(type(None), bool, int, float, complex, str, bytes),
        *(date, timedelta, Decimal, Fraction, UUID),
    )
)
_CONTAINERS: dict[type, str] = {
    kind: kind.__name__ for kind in (tuple, list, set, frozenset, dict)
}
_MAKERS: dict[str, Callable[..., Any]] = {name: kind for kind, name in _CONTAINERS.items()}
DEEPEST = 20
"""How deep what an exception is made with may nest."""


class _CannotError(Exception):
    """A value is not plain."""


def taken_apart(error: BaseException) -> Parts:
    """An exception as plain values, with its traceback as text."""
    kinds = tuple(".".join(_names(kind)) for kind in type(error).__mro__)
    told = describe(error).partition("\n\n")[0].partition(": ")[2]
    parts: Parts | None = None
    why = ""
    try:
        parts = _parts(error, 0)
    except _CannotError as cannot:
        why = str(cannot)
    except Exception as broken:  # noqa: BLE001 (its own `__reduce__`, which is told)
        why = f"it cannot be taken apart: {_short(broken)}"
    return kinds, told, traceback_of(error), parts, why


def put_together(apart: Parts) -> BaseException:
    """The exception that `taken_apart` was given, or a `ForeignError` in its place."""
    kinds, told, frames, parts, why = apart
    error: BaseException | None = None
    if parts is not None:
        try:
            error = _made(parts)
            if ".".join(_names(type(error))) != kinds[0]:
                error, why = None, "it came out as something else"
        except Exception as broken:  # noqa: BLE001 (it is told in place of the error)
            error, why = None, f"it cannot be put together: {_short(broken)}"
    note = f"In its process:\n{frames}"
    if error is not None:
        try:
            error.add_note(note)
        except Exception as broken:  # noqa: BLE001 (of a frozen class)
            error, why = None, f"it takes no note: {_short(broken)}"
    if error is None:
        error = ForeignError(kinds, told, why)
        error.add_note(note)
    return error


def _short(error: BaseException) -> str:
    return describe(error).partition("\n\n")[0][:MAX_MESSAGE]


# -- apart ----------------------------------------------------------------------------


def _parts(error: BaseException, depth: int) -> Parts:
    make, args, *rest = cast("Sequence[Any]", error.__reduce_ex__(4))
    state = rest[0] if rest else None
    if any(each is not None for each in rest[1:]):
        raise _CannotError("it is a container, too")
    return (
        *_place(make),
        [_plain(each, depth) for each in args],
        _plain(state, depth),
    )


def _names(thing: Any) -> tuple[str, str]:
    """By which the other end finds a class or a function."""
    module: str = thing.__module__
    # As `multiprocessing` calls the program's own module where it is imported.
    return "__main__" if module == "__mp_main__" else module, thing.__qualname__


def _place(thing: Any) -> tuple[str, str]:
    module, path = _names(thing)
    if "<" in path:
        raise _CannotError(f"{path} is not found by its name")
    return module, path


def _plain(value: object, depth: int) -> Parts:
    kind = type(value)
    if depth > DEEPEST:
        raise _CannotError("what it was made with nests too deep")
    if kind in _PLAIN:
        return "value", value
    if kind is datetime or kind is time:
        return "value", _at_fixed_offset(cast("datetime | time", value))
    if kind in _CONTAINERS:
        return _CONTAINERS[kind], _plain_items(cast("Iterable[object]", value), depth + 1)
    if isinstance(value, type):
        return ("found", *_place(value))
    if isinstance(value, BaseException):
        return ("error", *_parts(value, depth + 1))
    raise _CannotError(f"it was made with a value of type {kind.__qualname__}")


def _plain_items(value: Iterable[object], depth: int) -> list[Parts]:
    items = cast("Any", value).items() if isinstance(value, Mapping) else value
    return [_plain(each, depth) for each in items]


def _at_fixed_offset(moment: datetime | time) -> datetime | time:
    """The same moment, whose time zone is none of a class of somebody's own."""
    if moment.tzinfo is None or type(moment.tzinfo) is timezone:
        return moment
    offset = moment.utcoffset()
    return moment.replace(tzinfo=None if offset is None else timezone(offset))


# -- together -------------------------------------------------------------------------


def _made(parts: Parts) -> BaseException:
    module, path, args, state = parts
    make = cast("Callable[..., Any]", find(module, path))
    error = make(*(_value(each) for each in args))
    if not isinstance(error, BaseException):
        raise TypeError(f"{module}.{path} gave no exception")
    attributes = _value(state)
    if attributes is not None:
        error.__setstate__(attributes)
    return error


def _value(parts: Parts) -> Any:
    how, *rest = parts
    if how == "value":
        return rest[0]
    if how == "found":
        return find(*rest)
    if how == "error":
        return _made(tuple(rest))
    return _MAKERS[how](_value(each) for each in rest[0])
