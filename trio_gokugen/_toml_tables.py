"""Files of named tables, as [schedules.NAME]: all that is wrong in one, with its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias, cast

from ._errors import shown
from ._toml_lines import Path, lines_of, read, statements

_AT_LINE = re.compile(r"\(at line (\d+), column \d+\)$")
_ENDS_OF_KEY = {"", ".", "[", " "}
"""What comes after a key in the field of an error."""

MISSPELT = 20
"""Characters of a key that are looked at, to guess what it was to be."""

TABLES = "schedules", "commands"
"""What a file may hold tables of. Who reads one kind leaves the other alone."""

Take: TypeAlias = Callable[[str, dict[str, Any]], Iterable[tuple[str, str]]]
"""Takes the table of a name; gives fields of it, and what is wrong with them."""


def read_tables(text: str, kind: str, take: Take) -> list[tuple[int, str]]:
    """Have each table of a kind taken; gives all that is wrong, and in which line."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        return [(_line_of(error, text), f"is not TOML: {error}")]
    wrong = [*_read(data, kind, take)]
    if not wrong:
        return []
    line_of = _Lines(text)
    return [(line_of(path), message) for path, message in wrong]


def _read(data: dict[str, Any], kind: str, take: Take) -> Iterator[tuple[Path, str]]:
    """What is wrong, and where."""
    form = f"[{kind}s.NAME]"
    for key in data:
        if key not in TABLES:
            yield (key,), f"{shown(key)} is not known: {_known(key)}"
    tables = data.get(f"{kind}s", {})
    if not isinstance(tables, dict):
        yield (f"{kind}s",), f"{kind}s: must be tables, {form}"
        return
    for name, table in cast("dict[str, Any]", tables).items():
        path = f"{kind}s", name
        if not isinstance(table, dict):
            yield path, f"{kind} {shown(name)}: must be a table, {form}"
            continue
        for key, message in take(name, cast("dict[str, Any]", table)):
            yield (*path, key), f"{kind} {shown(name)}: {message}"


def _known(key: str) -> str:
    import difflib  # noqa: PLC0415 (takes a while, and only where something is wrong)

    within = " or ".join(f"[{each}.NAME]" for each in TABLES)
    likely = difflib.get_close_matches(key[:MISSPELT], TABLES, 1)
    meant = f"; is {likely[0]!r} meant?" if likely else ""
    return f"all is within {within}{meant}"


def _line_of(error: Exception, text: str) -> int:
    """The line of what keeps a text from being TOML."""
    if found := _AT_LINE.search(str(error)):
        return int(found[1])
    if isinstance(error, tomllib.TOMLDecodeError):
        return text.count("\n") + 1  # the end of the file
    cannot_be_read = (line for line, each in statements(text) if read(each) is None)
    return next(cannot_be_read, 1)


class _Lines:
    """Finds the lines of keys."""

    def __init__(self, text: str) -> None:
        self._lines = lines_of(text)
        self._within: dict[Path, list[tuple[str, int]]] = {}
        """By table, its keys: as an error has them, with dots."""

        for path, line in self._lines.items():
            keys = self._within.setdefault(path[:2], [])
            keys.append((".".join(path[2:]), line))

    def __call__(self, path: Path) -> int:
        """The line of a key, or of what it is in."""
        if path in self._lines:
            return self._lines[path]
        field = path[-1]
        found, longest = self._lines.get(path[:2], 1), 0
        for key, line in self._within.get(path[:2], []):
            ends = field[len(key) : len(key) + 1] in _ENDS_OF_KEY
            if len(key) > longest and field.startswith(key) and ends:
                found, longest = line, len(key)
        return found
