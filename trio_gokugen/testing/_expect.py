"""What checks are written with: they say in words what is not as promised.

No ``assert``: ``python -O`` leaves them out, and a suite must not pass by not looking.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import attrs

_SHOWN = 500
"""Characters of a value that a message shows."""


def expect(condition: object, otherwise: str) -> None:
    """Raise an `AssertionError` that says `otherwise` unless the condition holds."""
    if not condition:
        raise AssertionError(otherwise)


def expect_equal(what: str, actual: object, expected: object) -> None:
    """Raise an `AssertionError` that shows where they differ unless they are equal."""
    if actual != expected:
        where, one, other = _first_difference(what, actual, expected)
        raise AssertionError(f"{where}: {_shown(one)}, where {_shown(other)} is right")


def expect_error(
    what: str, error: object, error_type: type[BaseException], **fields: object
) -> None:
    """Raise an `AssertionError` unless it is an error of the type, with the fields."""
    expect(
        isinstance(error, error_type),
        f"{what}: {error!r}, where {error_type.__name__} was expected",
    )
    for name, expected in fields.items():
        expect_equal(f"{what}: {name} of {error!r}", getattr(error, name), expected)


@contextmanager
def refused(
    what: str, error_type: type[BaseException], **fields: object
) -> Generator[None]:
    """The block must raise such an error, with these values in its fields."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 (whether it is the right one is seen next)
        expect_error(what, error, error_type, **fields)
    else:
        raise AssertionError(f"{what} was not refused with {error_type.__name__}")


def _first_difference(
    path: str, actual: object, expected: object
) -> tuple[str, object, object]:
    """The innermost part in which two values differ."""
    ours, theirs = _parts(actual), _parts(expected)
    if type(actual) is type(expected) and ours.keys() == theirs.keys():
        for step, part in ours.items():
            if part != theirs[step]:
                return _first_difference(path + step, part, theirs[step])
    return path, actual, expected


def _parts(value: object) -> dict[str, object]:
    """The parts of a value, by what one writes to get at them."""
    if attrs.has(type(value)):
        names = [field.name for field in attrs.fields(cast("Any", type(value)))]
        return {f".{name}": getattr(value, name) for name in names}
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        return {f"[{key!r}]": part for key, part in items}
    if isinstance(value, list):
        return {
            f"[{index}]": part for index, part in enumerate(cast("list[object]", value))
        }
    return {}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
