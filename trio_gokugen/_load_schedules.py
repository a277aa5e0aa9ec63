"""Schedules that are written in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from ._crontab import Crontab
from ._errors import InvalidSchedulesError
from ._schedule import Schedule
from ._text_file import Fault, in_order, read_text

_Found: TypeAlias = tuple[list[Schedule], list[Fault]]


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
    text, errors = read_text(path)
    schedules: list[Schedule] = []
    if not errors:
        schedules, errors = _read(text, Path(path).suffix.lower() == ".toml")
    if errors:
        raise InvalidSchedulesError(os.fspath(path), in_order(errors))
    return tuple(schedules)


def _read(text: str, is_toml: bool) -> _Found:  # noqa: FBT001 (private, of two kinds)
    if is_toml:
        # tomllib takes long to import, and is not always wanted.
        from ._schedules_toml import SchedulesTOML  # noqa: PLC0415 (see above)

        toml = SchedulesTOML(text)
        return toml.schedules, toml.errors
    crontab = Crontab(text)
    return crontab.schedules, crontab.errors
