"""Where in a TOML file a key is said: `tomllib` does not tell.

Only where one statement ends and the next begins is found here, by its strings, comments
and brackets. What a statement is about, in whatever way its key is written, `tomllib`
says of that statement alone.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, cast

Path: TypeAlias = tuple[str, ...]
"""A key within a table within a table."""

DEEPEST = 8
"""So long are the paths that are looked for. A dotted key may have a million parts."""

# Each way to go on begins with another letter, so that nothing is tried twice. Possessive
# quantifiers would say the same, but those of Python 3.11.2 miss what is there.
_TOKEN = re.compile(
    r'''
    """ [^"\\]* (?: (?: \\. | "(?!"") ) [^"\\]* )* "{3,5}
    | \'\'\' [^']* (?: '(?!\'\') [^']* )* '{3,5}
    | " [^"\\\n]* (?: \\. [^"\\\n]* )* "
    | ' [^'\n]* '
    | \# [^\n]*
    | [\[\]{}\n]
    ''',
    re.VERBOSE | re.DOTALL,
)
_DEPTH = {"[": 1, "{": 1, "]": -1, "}": -1}


def statements(text: str) -> Iterator[tuple[int, str]]:
    """Each statement of a TOML file, with its line, counted from 1."""
    depth = begin = 0
    line = 1
    for token in _TOKEN.finditer(text):
        depth += _DEPTH.get(token[0], 0)
        if token[0] == "\n" and depth == 0:
            yield line, text[begin : token.end()]
            line += text.count("\n", begin, token.end())
            begin = token.end()
    yield line, text[begin:]


def lines_of(text: str) -> dict[Path, int]:
    """The line of each key in a TOML file that `tomllib` can read.

    It is that on which the statement begins which says it: for a key within an inline
    table, that of the inline table.
    """
    lines: dict[Path, int] = {}
    table: Path = ()
    for line, statement in statements(text):
        said = read(statement) or {}
        if statement.lstrip().startswith("["):
            table = _deepest(said)
            said = {}
        for end in range(1, len(table) + 1):
            lines.setdefault(table[:end], line)
        _note(lines, table, said, line)
    return lines


def read(statement: str) -> dict[str, Any] | None:
    """What a single statement says; none if that cannot be read.

    Even of a file that can be read: it may be too deep for one who stands deeper himself.
    """
    try:
        return tomllib.loads(statement)
    except (ValueError, RecursionError):
        return None


def _deepest(said: dict[str, Any]) -> Path:
    """The table that a heading is about: of a list of tables, too."""
    path: list[str] = []
    while said and len(path) < DEEPEST:
        [key] = said
        path.append(key)
        inner: object = said[key]
        table = cast("list[object]", inner)[0] if isinstance(inner, list) else inner
        said = cast("dict[str, Any]", table)
    return tuple(path)


def _note(lines: dict[Path, int], above: Path, said: object, line: int) -> None:
    if len(above) >= DEEPEST or not isinstance(said, Mapping):
        return
    for key, value in cast("Mapping[str, object]", said).items():
        path = (*above, key)
        lines.setdefault(path, line)
        _note(lines, path, value, line)
