"""An exception as plain values, and put together again: how it leaves a process.

Not pickled: what cannot be read at the other end would take the whole answer with it. Here
each end may fail for itself, and the text is there in any case. What an exception is made
with must be plain: numbers, text, moments, lists of these, classes, other exceptions. What
is in a group is taken apart one by one, each for itself.

It is put together in Trio's thread. So classes are looked up in modules that are imported,
and nothing is imported for it: that may take long, and runs anybody's code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from typing import Any, TypeAlias, cast

import attrs

from ._describe import MAX_MESSAGE, describe, message_of, traceback_of
from ._errors import ForeignError
from ._retry import bare, wish

Parts: TypeAlias = tuple[Any, ...]
"""Of nothing but values of Python's own, whatever an exception was made of."""

_PLAIN: frozenset[type] = frozenset(
    (
        *(type(None), bool, int, float, complex, str, bytes),
        *(date, timedelta),
    )
)
_PLAIN_TOO = (("decimal", "Decimal"), ("fractions", "Fraction"), ("uuid", "UUID"))
"""By name: to import them would take time, and nobody may have such a value."""
_CONTAINERS: dict[type, str] = {
    kind: kind.__name__ for kind in (tuple, list, set, frozenset, dict)
}
_MAKERS: dict[str, Callable[..., Any]] = {name: kind for kind, name in _CONTAINERS.items()}
_GROUPS: frozenset[type] = frozenset((BaseExceptionGroup, ExceptionGroup))

DEEPEST = 20
"""How deep what an exception is made with may nest."""

LARGEST = 128 * 1024
"""Bytes of memory, about, that all of this may take. Of texts no more is kept anyway."""


class _CannotError(Exception):
    """A value is not plain."""


@attrs.define
class _Room:
    """For all that an exception is made with. Once it was too much, nothing more fits."""

    left: int = LARGEST

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise _CannotError(f"it was made with more than {LARGEST} bytes")


def taken_apart(error: BaseException, below: str = "") -> Parts:
    """An exception as plain values, with its traceback as text. Of bounded size.

    Who reads the traceback wants to know where the work was, and not how it came to be
    called: it begins below the frames of the module that is named.
    """
    return (*_told(error, _Room(), 0), traceback_of(error, below))


def put_together(apart: Parts) -> BaseException:
    """The exception that `taken_apart` was given, or a `ForeignError` in its place.

    So always an `Exception`, which ends nothing but its run.
    """
    *told, frames = apart
    error = _together(*told)
    note = f"In its process:\n{frames}"
    try:
        error.add_note(note)
    except BaseException as broken:  # noqa: BLE001 (of a frozen class, or a worse one)
        kinds, text, _, _ = told
        error = ForeignError(kinds, text, f"it takes no note: {_short(broken)}")
        error.add_note(note)
    return error


def _short(error: BaseException) -> str:
    return describe(error).partition("\n\n")[0][:MAX_MESSAGE]


# -- apart ----------------------------------------------------------------------------


def _told(error: BaseException, room: _Room, depth: int) -> Parts:
    """The names of its class and of those above, its text, and its parts, or why not."""
    kinds = tuple(".".join(_names(kind))[:MAX_MESSAGE] for kind in type(error).__mro__)
    text = message_of(error)
    if depth:  # else it is told in any case
        room.take(len(text) + sum(map(len, kinds)))
    try:
        return kinds, text, _parts(error, room, depth), ""
    except _CannotError as cannot:
        why = str(cannot)
    except BaseException as broken:  # noqa: BLE001 (its own `__reduce__`, which is told)
        why = f"it cannot be taken apart: {_short(broken)}"
    wanted = wish(error)
    if wanted is not None:
        # What it says matters, not what is put on it.
        return _told(bare(wanted), _Room(), 0)
    return kinds, text, None, why


def _parts(error: BaseException, room: _Room, depth: int) -> Parts:
    if not isinstance(error, Exception) and type(error) not in _GROUPS:
        # A Ctrl-C among them, which was of the other process, whoever else had it, too.
        raise _CannotError("it would end this program, and not its run only")
    make, args, *rest = cast("Sequence[Any]", error.__reduce_ex__(4))
    state = rest[0] if rest else None
    if any(each is not None for each in rest[1:]):
        raise _CannotError("it is a container, too")
    if type(error) in _GROUPS:
        group = cast("BaseExceptionGroup[BaseException]", error)
        plain = [_plain(group.message, room, depth)]
        members = [("member", *_told(each, room, depth + 1)) for each in group.exceptions]
        plain.append(("list", members))
    else:
        plain = [_plain(each, room, depth) for each in args]
    return (*_place(make, room), plain, _plain(state, room, depth))


def _names(thing: Any) -> tuple[str, str]:
    """By which the other end finds a class or a function."""
    module = str(thing.__module__)
    # As `multiprocessing` calls the program's own module where it is imported.
    return "__main__" if module == "__mp_main__" else module, thing.__qualname__


def _place(thing: Any, room: _Room) -> tuple[str, str]:
    module, path = _names(thing)
    room.take(len(module) + len(path))
    if "<" in path:
        raise _CannotError(f"{path} is not found by its name")
    return module, path


def _plain(value: object, room: _Room, depth: int) -> Parts:
    kind = type(value)
    if depth > DEEPEST:
        raise _CannotError("what it was made with nests too deep")
    if kind in _PLAIN or _is_plain_too(kind):
        room.take(_size(value))
        return "value", value
    if kind is datetime or kind is time:
        moment = _at_fixed_offset(cast("datetime | time", value))
        room.take(sys.getsizeof(moment))
        return "value", moment
    if kind in _CONTAINERS:
        room.take(sys.getsizeof(value))
        items = _plain_items(cast("Iterable[object]", value), room, depth + 1)
        return _CONTAINERS[kind], items
    if isinstance(value, type):
        return ("found", *_place(value, room))
    if isinstance(value, BaseException):
        return ("error", *_parts(value, room, depth + 1))
    raise _CannotError(f"it was made with a value of type {kind.__qualname__}")


def _is_plain_too(kind: type) -> bool:
    return any(
        getattr(sys.modules.get(module), name, None) is kind for module, name in _PLAIN_TOO
    )


def _size(value: Any) -> int:
    if type(value).__name__ == "Fraction":  # whose own size is that of two references
        return sys.getsizeof(value.numerator) + sys.getsizeof(value.denominator)
    return sys.getsizeof(value)


def _plain_items(value: Iterable[object], room: _Room, depth: int) -> list[Parts]:
    items = cast("Any", value).items() if isinstance(value, Mapping) else value
    return [_plain(each, room, depth) for each in items]


def _at_fixed_offset(moment: datetime | time) -> datetime | time:
    """The same moment, whose time zone has no class of somebody's own, and no name."""
    offset = moment.utcoffset()
    return moment.replace(tzinfo=None if offset is None else timezone(offset))


# -- together -------------------------------------------------------------------------


def _together(
    kinds: tuple[str, ...], text: str, parts: Parts | None, why: str
) -> BaseException:
    if parts is not None:
        try:
            error = _made(parts)
        except BaseException as broken:  # noqa: BLE001 (it is told in place of the error)
            why = f"it cannot be put together: {_short(broken)}"
        else:
            if isinstance(error, Exception) and _is_of(error, kinds[0]):
                return error
            why = "it came out as something else"
    return ForeignError(kinds, text, why)


def _is_of(error: BaseException, kind: str) -> bool:
    # A group becomes one of exceptions only, if what is in it has become such.
    own = BaseExceptionGroup if type(error) in _GROUPS else type(error)
    return kind == ".".join(_names(type(error))) or kind == ".".join(_names(own))


def _made(parts: Parts) -> BaseException:
    module, path, args, state = parts
    make = cast("Callable[..., Any]", _found(module, path))
    error = make(*(_value(each) for each in args))
    if not isinstance(error, BaseException):
        raise TypeError(f"{module}.{path} gave no exception")
    attributes = _value(state)
    if attributes is not None:
        error.__setstate__(attributes)
    return error


def _found(module: str, path: str) -> Any:
    """What has this name in a module that is imported here."""
    if module not in sys.modules:
        raise LookupError(f"{module} is not imported here")
    first, *rest = path.split(".")
    # Not by `getattr`, as a module may import something when it is asked for a name.
    found = vars(sys.modules[module])[first]
    for part in rest:
        found = getattr(found, part)
    return found


def _value(parts: Parts) -> Any:
    how, *rest = parts
    if how == "value":
        return rest[0]
    if how == "found":
        return _found(*rest)
    if how == "error":
        return _made(tuple(rest))
    if how == "member":
        return _together(*rest)
    return _MAKERS[how](_value(each) for each in rest[0])
