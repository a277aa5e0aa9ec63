"""Commands that are written in a file."""

from __future__ import annotations

import os
from typing import Any

from ._command import Command
from ._command_data import command_from_data
from ._errors import InvalidCommandsError, InvalidTaskError
from ._json import name as checked_name
from ._text_file import in_order, read_text


def load_commands(path: str | os.PathLike[str]) -> dict[str, Command]:
    """The commands that are written in a TOML file, for a `CommandRegistry`.

    A table for each, ``[commands.NAME]``, with the fields of a `Command`. Schedules may be
    in the same file, for `load_schedules`.

    Reads the file in this thread, without a checkpoint.

    Raises:
      InvalidCommandsError: with all that is wrong in the file, line by line.
      OSError: the file cannot be read.
      TypeError: `path` is no path.
    """
    # tomllib takes long to import, and is not always wanted.
    from ._toml_tables import read_tables  # noqa: PLC0415 (see above)

    commands: dict[str, Command] = {}

    def take(name: str, table: dict[str, Any]) -> list[tuple[str, str]]:
        command, errors = command_from_data(table)
        try:
            checked_name(name, "work_id")
        except InvalidTaskError as error:
            errors.append((error.field, error.reason))
        if command is not None:
            commands[name] = command
        return [(field, f"{field}: {reason}") for field, reason in errors]

    text, errors = read_text(path)
    if not errors:
        errors = read_tables(text, "command", take)
    if errors:
        raise InvalidCommandsError(os.fspath(path), in_order(errors))
    return commands
