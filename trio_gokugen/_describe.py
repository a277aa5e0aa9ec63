"""An exception as text for a task's `err`, bounded and fit for every store."""

from __future__ import annotations

import traceback

MAX_FRAMES = 20
MAX_MESSAGE = 1_000
MAX_LENGTH = 8_000


def describe(error: BaseException) -> str:
    """Type and message on the first line, then the traceback, innermost frames kept.

    At most 8,000 characters: of a longer text, the beginning and the end.
    """
    summary = traceback.TracebackException.from_exception(
        error, limit=-MAX_FRAMES, compact=True
    )
    head = f"{type(error).__qualname__}: {_message(error)}"
    frames = _cut("".join(summary.format()), MAX_LENGTH - MAX_MESSAGE - 100)
    return _printable(f"{_cut(head, MAX_MESSAGE)}\n\n{frames}")


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 (it is told in place of the message)
        return f"<its message raised {type(broken).__qualname__}>"


def _cut(text: str, length: int) -> str:
    if len(text) <= length:
        return text
    half = length // 2 - 25
    return f"{text[:half]}\n[{len(text) - 2 * half} characters cut]\n{text[-half:]}"


def _printable(text: str) -> str:
    """Without what a store may refuse: lone surrogates, and NUL."""
    encodable = text.encode("utf-8", "backslashreplace").decode()
    return encodable.replace("\0", "\\0")
