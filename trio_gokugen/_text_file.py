"""Files that users write: small, and UTF-8. What is wrong in one is told with its line."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from ._errors import on_one_line

LARGEST = 1_000_000
"""Bytes of a file."""

Fault: TypeAlias = tuple[int, str]
"""A line, counted from 1, and what is wrong there."""


def read_text(path: str | os.PathLike[str]) -> tuple[str, list[Fault]]:
    """The text of a file, or why it is none.

    Raises:
      OSError: the file cannot be read.
      TypeError: `path` is no path.
    """
    with Path(path).open("rb") as file:
        found = file.read(LARGEST + 1)
    if len(found) > LARGEST:
        return "", [(1, f"the file is larger than {LARGEST} bytes: make several of it")]
    try:
        return found.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        return "", [(line, f"is not UTF-8: there is a byte 0x{found[error.start]:02x}")]


def in_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """By line, each of them on one."""
    told = [(line, on_one_line(reason)) for line, reason in faults]
    return tuple(sorted(told, key=operator.itemgetter(0)))
