"""What a work has returned, as it is kept on its task."""

from __future__ import annotations

import json
from typing import Any

import attrs

from ._describe import brief, describe
from ._errors import InvalidTaskError
from ._json import JSON, is_larger, json_value

LONGEST_RESULT = 64 * 1024
"""Bytes of a result that is kept, as JSON."""

_TOO_LARGE = (
    f"what the work returned cannot be kept: it has more than {LONGEST_RESULT} bytes as"
    " JSON: keep it elsewhere, and return where it is"
)


@attrs.frozen
class Unkept:
    """What stands for a value that cannot be kept."""

    why: str


def to_keep(value: Any) -> JSON | Unkept:
    """A copy of a value, if it can be kept on a task."""
    if isinstance(value, Unkept):
        return value
    # Before it is copied: to go through millions of items would make everybody wait.
    if is_larger(value, LONGEST_RESULT):
        return Unkept(_TOO_LARGE)
    try:
        kept = json_value(value, "result")
    except InvalidTaskError as error:
        return Unkept(brief(f"what the work returned cannot be kept: {error}"))
    except Exception as broken:  # noqa: BLE001 (somebody's own, which fails as it is read)
        return Unkept(f"its outcome cannot be told: {describe(broken)}")
    if len(json.dumps(kept, ensure_ascii=False).encode()) > LONGEST_RESULT:
        return Unkept(_TOO_LARGE)
    return kept
