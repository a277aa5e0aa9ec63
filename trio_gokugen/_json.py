"""JSON values as tasks hold them: checked, copied, and the same in every store.

What is refused is what some store would change or choke on: a NaN, a key that is not a
string, text that cannot be encoded, a NUL, an integer beyond 64 bits. It is refused when
the task is made, so that a task which exists can be kept anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

from ._errors import InvalidTaskError, shown

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

MAX_DEPTH = 100
"""How deep lists and objects may nest: far more than data, far less than the stack."""


LONGEST_NAME = 1_000
"""Bytes of an id: what every store can find by its index."""

LONGEST_POOL = 500
"""Bytes of the name of a pool: PostgreSQL has it in one index with two others, and a row of
that has no more than 2,704."""


def text(value: object, field: str) -> str:
    """A string every store can keep, or an `InvalidTaskError` that names the field."""
    if type(value) is str and value.isascii() and "\0" not in value:
        return value
    if not isinstance(value, str):
        raise InvalidTaskError(field, f"must be a string, not {a_value(value)}")
    if "\0" in value:
        raise InvalidTaskError(field, "must not contain a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidTaskError(
                field, f"has a lone surrogate at position {error.start}"
            ) from None
    # A member of a string enumeration becomes the string that it is.
    return value if type(value) is str else str.__str__(value)


def name(value: object, field: str) -> str:
    """An id: a string that is not empty."""
    return _name(value, field, LONGEST_NAME)


def _name(value: object, field: str, longest: int) -> str:
    checked = text(value, field)
    if not checked:
        raise InvalidTaskError(field, "must not be empty")
    if len(checked) > longest / 4 and len(checked.encode()) > longest:
        raise InvalidTaskError(field, f"must not be longer than {longest} bytes")
    return checked


def name_or_none(value: object, field: str) -> str | None:
    """An id, where there need be none."""
    return None if value is None else name(value, field)


def pool_name(value: object, field: str) -> str:
    """The name of a pool."""
    return _name(value, field, LONGEST_POOL)


def pool_or_none(value: object, field: str) -> str | None:
    """The name of a pool, where there need be none."""
    return None if value is None else pool_name(value, field)


def int64(value: object, field: str) -> int:
    """An integer of at most 64 bits; a `bool` is not one."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTaskError(field, f"must be an int, not {a_value(value)}")
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise InvalidTaskError(field, "must fit in 64 bits")
    return number


def count(value: object, field: str) -> int:
    """A number of things."""
    checked = int64(value, field)
    if checked < 0:
        raise InvalidTaskError(field, "must not be negative")
    return checked


def truth(value: object, field: str) -> bool:
    """A `bool`, and nothing that only counts as one."""
    if not isinstance(value, bool):
        raise InvalidTaskError(field, f"must be a bool, not {a_value(value)}")
    return value


def json_object(value: object, field: str) -> dict[str, JSON]:
    """A private copy of a JSON object; `None` is the empty one.

    Raises:
      InvalidTaskError: if it is no JSON object, or cannot be kept by every store; the
        error's `field` is the path to the culprit, ``param.rows[3]`` say.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidTaskError(field, f"must be a JSON object, not {a_value(value)}")
    return _copied_object(cast("Mapping[object, object]", value), field, 1)


def json_value(value: object, field: str) -> JSON:
    """A private copy of any JSON value. Raises what `json_object` does."""
    return _copied(value, field, 0)


def _copied_object(
    value: Mapping[object, object], path: str, depth: int
) -> dict[str, JSON]:
    if depth > MAX_DEPTH:
        raise InvalidTaskError(path, f"nests deeper than {MAX_DEPTH} levels")
    copy: dict[str, JSON] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise InvalidTaskError(path, f"has a key that is not a string: {shown(key)}")
        checked = text(key, f"{path} key")
        copy[checked] = _copied(item, f"{path}.{key}", depth)
    return copy


def _copied(value: object, path: str, depth: int) -> JSON:
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return text(value, path)
    if isinstance(value, int):
        return int64(value, path)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidTaskError(path, f"must be a finite number, not {value}")
        return float(value)
    if isinstance(value, Mapping):
        return _copied_object(cast("Mapping[object, object]", value), path, depth + 1)
    if isinstance(value, list | tuple):
        if depth >= MAX_DEPTH:
            raise InvalidTaskError(path, f"nests deeper than {MAX_DEPTH} levels")
        return [
            _copied(item, f"{path}[{index}]", depth + 1)
            for index, item in enumerate(cast("Sequence[object]", value))
        ]
    raise InvalidTaskError(path, f"cannot be JSON: {a_value(value)}")


def is_larger(value: object, most: int) -> bool:
    """Whether it surely has more bytes as JSON: however many, few items are looked at."""
    left, rest = most, [value]
    while rest and left >= 0:
        item = rest.pop()
        left -= 1  # less than it has, with what is around it
        if isinstance(item, str | list | tuple | Mapping):
            left -= len(cast("Sequence[object]", item))
        if left < 0 or isinstance(item, str):
            continue
        if isinstance(item, Mapping):
            rest += cast("Mapping[object, object]", item).keys()
            rest += cast("Mapping[object, object]", item).values()
        elif isinstance(item, list | tuple):
            rest += cast("Sequence[object]", item)
    return left < 0


def fresh(value: Mapping[str, JSON]) -> dict[str, JSON]:
    """A copy of a checked object that shares no list or object with it."""
    if not value:
        return {}
    return {
        key: _fresh_item(item) if isinstance(item, list | dict) else item
        for key, item in value.items()
    }


def _fresh_item(value: JSON) -> JSON:
    if isinstance(value, list):
        return [_fresh_item(item) for item in value]
    return fresh(value) if isinstance(value, dict) else value


def same(one: JSON, other: JSON) -> bool:
    """Equality as JSON has it: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) is isinstance(other, bool) and one == other


def a_value(value: object) -> str:
    """A value as a message has it that must not tell what it is."""
    return f"a value of type {type(value).__name__}"
