"""Commands as plain data: what a mapping, or a table of a TOML file, says about one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import attrs

from ._command import Command
from ._errors import InvalidCommandError, InvalidTaskError, shown
from ._interval import seconds_or_duration
from ._retry import Retry, Wait, exponential, fixed

T = TypeVar("T")

_KEYS = tuple(field.name for field in attrs.fields(Command) if field.init)


def command_from_data(
    data: Mapping[str, Any],
) -> tuple[Command | None, list[tuple[str, str]]]:
    """The command; or none, and all that is wrong: fields and reasons."""
    errors: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    for key, value in data.items():
        try:
            values[key] = _checked(key, value)
        except (InvalidCommandError, InvalidTaskError) as error:
            errors.append((error.field, error.reason))
    if "argv" not in data:
        errors.append(("argv", "is missing: it is the program, with its arguments"))
    if errors:
        return None, errors
    try:
        return Command(**values), []
    except InvalidCommandError as error:
        return None, [(error.field, error.reason)]


def _checked(key: str, value: Any) -> Any:
    """A value that is of use by itself."""
    if key not in _KEYS:
        raise InvalidCommandError(str(key), _unknown(_KEYS))
    read = _READERS[key](value, key) if key in _READERS else value
    tried: dict[str, Any] = {"argv": ["any"], "success": (), key: read}
    Command(**tried)
    return read


def _unknown(known: tuple[str, ...]) -> str:
    return f"is not known: there are {', '.join(known)}"


def _retry(value: object, field: str) -> Retry | None:
    if value is None or isinstance(value, Retry):
        return value
    if isinstance(value, Mapping):
        given = _read(
            value, field, {"max_attempts": None, "wait": _wait, "jitter": _LENGTH}
        )
        return _made(Retry, given, field)
    if isinstance(value, int):
        return _made(Retry, {"max_attempts": value}, field)
    raise InvalidCommandError(
        field,
        "must be a number of attempts, or a table, as {max_attempts = 3, wait = '10s'},"
        f" not {shown(value)}",
    )


def _wait(value: object, field: str) -> Wait:
    if not isinstance(value, Mapping):
        return _made(fixed, {"seconds": seconds_or_duration(value, field)}, field)
    readers = {"first": _LENGTH, "factor": None, "longest": _LENGTH}
    return _made(exponential, _read(value, field, readers), field)


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


def _made(make: Callable[..., T], given: Mapping[str, Any], field: str) -> T:
    """What is made of values, each of which may be refused."""
    try:
        return make(**given)
    except InvalidTaskError as error:
        # What is written without a key of its own has none in an error.
        where = f"{field}.{error.field}" if error.field in _NAMED else field
        raise InvalidCommandError(where, error.reason) from None


_NAMED = {"max_attempts", "jitter", "first", "factor", "longest"}
_LENGTH = seconds_or_duration
_READERS: Mapping[str, Callable[[Any, str], Any]] = {
    "timeout": seconds_or_duration,
    "grace": seconds_or_duration,
    "retry": _retry,
}
"""What makes of a value the one that a command has, or refuses it."""
