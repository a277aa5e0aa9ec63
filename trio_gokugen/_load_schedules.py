"""Schedules that are written in a file."""

from __future__ import annotations

import operator
import os
from pathlib import Path
from typing import TypeAlias

from ._crontab import Crontab
from ._errors import InvalidSchedulesError, on_one_line
from ._schedule import Schedule

LARGEST = 1_000_000
"""Bytes of a file."""

_Found: TypeAlias = tuple[list[Schedule], list[tuple[int, str]]]


def load_schedules(path: str | os.PathLike[str]) -> tuple[Schedule, ...]:
    """The schedules that are written in a file, for `add_schedules` and for `plan`.

    A file whose name ends in ``.toml`` is TOML, and any other a crontab. Both are told of
    in the documentation, under appointed times. The same file gives the same schedules:
    their `created_at` is a moment of 1970, and becomes that at which they are added.

    Reads the file in this thread, without a checkpoint.

    Raises:
      InvalidSchedulesError: with all that is wrong in the file, line by line.
      OSError: the file cannot be read.
      TypeError: `path` is no path.
    """
    with Path(path).open("rb") as file:
        found = file.read(LARGEST + 1)
    schedules, errors = _read(found, Path(path).suffix.lower() == ".toml")
    if errors:
        told = [(line, on_one_line(reason)) for line, reason in errors]
        raise InvalidSchedulesError(
            os.fspath(path), tuple(sorted(told, key=operator.itemgetter(0)))
        )
    return tuple(schedules)


def _read(found: bytes, is_toml: bool) -> _Found:  # noqa: FBT001 (private, of two kinds)
    if len(found) > LARGEST:
        return [], [(1, f"the file is larger than {LARGEST} bytes: make several of it")]
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = found.count(b"\n", 0, error.start) + 1
        return [], [(line, f"is not UTF-8: there is a byte 0x{found[error.start]:02x}")]
    if is_toml:
        # tomllib takes long to import, and is not always wanted.
        from ._schedules_toml import SchedulesTOML  # noqa: PLC0415 (see above)

        toml = SchedulesTOML(text)
        return toml.schedules, toml.errors
    crontab = Crontab(text)
    return crontab.schedules, crontab.errors
