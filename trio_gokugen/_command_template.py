"""Text with ``{placeholders}``: these are names alone, without formats or attributes.

What is filled in is never looked at again: braces in a value are braces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import attrs

from ._errors import InvalidCommandError, InvalidTaskError
from ._json import JSON, text

_PIECE = re.compile(r"(?P<escaped>\{\{|\}\})|\{(?P<name>[^{}]*)\}|(?P<brace>[{}])")


@attrs.frozen
class Template:
    """Text to be filled."""

    pieces: tuple[tuple[str, str | None], ...]
    """Text, each with the name that follows it; the last one has none."""

    @property
    def names(self) -> frozenset[str]:
        """What it is to be filled with."""
        return frozenset(name for _, name in self.pieces if name is not None)

    def fill(self, values: Mapping[str, JSON]) -> str:
        """The text, with a value in the place of each name."""
        return "".join(
            before if name is None else before + as_text(values[name])
            for before, name in self.pieces
        )


def template(value: object, field: str) -> Template:
    """Read a template.

    Raises:
      InvalidCommandError: names the field in which it stands, and tells where: the text
        itself may be a secret.
    """
    found = str_without_nul(value, field)
    pieces: list[tuple[str, str | None]] = []
    before, begin = "", 0
    for piece in _PIECE.finditer(found):
        before += found[begin : piece.start()]
        begin = piece.end()
        if piece["escaped"] is not None:
            before += piece["escaped"][0]
        elif piece["brace"] is not None:
            raise InvalidCommandError(
                field,
                f"has a single {piece['brace']} at position {piece.start()}: a placeholder"
                " is a name in braces, {name}, and a brace itself is written twice",
            )
        else:
            if not piece["name"].isidentifier():
                raise InvalidCommandError(
                    field,
                    f"has no name in the braces at position {piece.start()}, and a"
                    " placeholder is the name of a parameter alone, as {name}; a brace"
                    " itself is written twice",
                )
            pieces.append((before, piece["name"]))
            before = ""
    return Template((*pieces, (before + found[begin:], None)))


def str_without_nul(value: object, field: str) -> str:
    """A string that can be an argument of a program, or part of its environment."""
    try:
        return text(value, field)
    except InvalidTaskError as error:
        raise InvalidCommandError(field, error.reason) from None


def as_text(value: JSON) -> str:
    """A value as a program gets it: a string as it is, and everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
