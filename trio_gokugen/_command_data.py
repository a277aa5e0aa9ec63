"""Commands as plain data: what a mapping, or a table of a TOML file, says about one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import attrs

from ._command import Command
from ._errors import InvalidCommandError, InvalidTaskError, shown
from ._interval import seconds_or_duration
from ._retry import Retry, Wait, exponential, fixed

T = TypeVar("T")

_KEYS = tuple(field.name for field in attrs.fields(Command) if field.init)
_LISTS = "inherit", "success", "discard_on", "retry_on"
_TABLES = "env", "retry"
_WRONG = InvalidCommandError, InvalidTaskError
_ANY: dict[str, Any] = {"argv": ["any"], "success": ()}
"""A command that there may be, to try a single value in."""


def command_from_data(
    data: Mapping[str, Any],
) -> tuple[Command | None, list[tuple[str, str]]]:
    """The command; or none, and all that is wrong: fields and reasons."""
    errors: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    for key, value in data.items():
        try:
            values[key] = _checked(key, value)
        except _WRONG as error:
            errors += _faults_of_parts(key, value) or [(error.field, error.reason)]
    if "argv" not in data:
        errors.append(("argv", "is missing: it is the program, with its arguments"))
    # Whether it goes together is asked of what is good, even if something else is wrong, in
    # whose place anything is. If nothing was said of success, its default counts.
    others = {key: each for key, each in _ANY.items() if key == "argv" or key in data}
    try:
        command = Command(**{**others, **values})
    except InvalidCommandError as error:
        return None, [*errors, (error.field, error.reason)]
    return (None if errors else command), errors


def _checked(key: str, value: Any) -> Any:
    """A value that is of use by itself."""
    if key not in _KEYS:
        raise InvalidCommandError(str(key), _unknown(_KEYS))
    read = _READERS[key](value, key) if key in _READERS else value
    Command(**{**_ANY, key: read})
    return read


def _faults_of_parts(key: str, value: Any) -> list[tuple[str, str]]:
    """What is wrong with the items of a list, or of a table, each by itself."""
    faults: dict[tuple[str, str], None] = {}  # each of them once
    for field, part in _parts(key, value):
        try:
            _checked(key, part)
        except _WRONG as error:
            faults[field or error.field, error.reason] = None
    return [*faults]


def _parts(key: str, value: Any) -> Iterator[tuple[str | None, Any]]:
    """Lists, or tables, of one item each; and its field, unless an error has it."""
    if key == "argv" and isinstance(value, list | tuple):
        for index, each in enumerate(cast("Sequence[object]", value)):
            yield f"argv[{index}]", ["any", each] if index else [each]
    elif key in _LISTS and isinstance(value, list | tuple):
        for each in cast("Sequence[object]", value):
            yield None, [each]
    elif key in _TABLES and isinstance(value, Mapping):
        for name, each in cast("Mapping[str, object]", value).items():
            if (key, name) == ("retry", "wait") and isinstance(each, Mapping):
                for inner, item in cast("Mapping[str, object]", each).items():
                    yield None, {name: {inner: item}}
            else:
                yield None, {name: each}


def _unknown(known: tuple[str, ...]) -> str:
    return f"is not known: there are {', '.join(known)}"


def _retry(value: object, field: str) -> Retry | None:
    if value is None or isinstance(value, Retry):
        return value
    if isinstance(value, Mapping):
        readers = {"max_attempts": None, "wait": _wait, "jitter": _LENGTH}
        return _made(Retry, _read(value, field, readers), field, is_table=True)
    if isinstance(value, int):
        return _made(Retry, {"max_attempts": value}, field, is_table=False)
    raise InvalidCommandError(
        field,
        "must be a number of attempts, or a table, as {max_attempts = 3, wait = '10s'},"
        f" not {shown(value)}",
    )


def _wait(value: object, field: str) -> Wait:
    if not isinstance(value, Mapping):
        seconds = seconds_or_duration(value, field)
        return _made(fixed, {"seconds": seconds}, field, is_table=False)
    readers = {"first": _LENGTH, "factor": None, "longest": _LENGTH}
    return _made(exponential, _read(value, field, readers), field, is_table=True)


def _read(
    value: Any, field: str, readers: Mapping[str, Callable[[Any, str], Any] | None]
) -> dict[str, Any]:
    """The values of a table."""
    found: dict[str, Any] = {}
    for key, each in cast("Mapping[str, Any]", value).items():
        if key not in readers:
            raise InvalidCommandError(f"{field}.{key}", _unknown(tuple(readers)))
        read = readers[key]
        found[key] = each if read is None else read(each, f"{field}.{key}")
    return found


def _made(
    make: Callable[..., T], given: Mapping[str, Any], field: str, *, is_table: bool
) -> T:
    """What is made of values, each of which may be refused."""
    try:
        return make(**given)
    except InvalidTaskError as error:
        # What is written without a key of its own has none in an error.
        where = f"{field}.{error.field}" if is_table else field
        raise InvalidCommandError(where, error.reason) from None


_LENGTH = seconds_or_duration
_READERS: Mapping[str, Callable[[Any, str], Any]] = {
    "timeout": seconds_or_duration,
    "grace": seconds_or_duration,
    "retry": _retry,
}
"""What makes of a value the one that a command has, or refuses it."""
