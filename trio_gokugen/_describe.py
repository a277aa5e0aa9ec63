"""An exception as text for a task's `err`, bounded and fit for every store."""

from __future__ import annotations

import traceback
from typing import cast

from ._errors import HAD_WRITTEN, DeadlineExceededError, WorkTimeoutError, printable

MAX_FRAMES = 20
MAX_MESSAGE = 1_000
MAX_LENGTH = 8_000


def describe(error: BaseException) -> str:
    """Type and message on the first line, then the traceback, innermost frames kept.

    At most 8,000 characters: of a longer text, the beginning and the end. What a command
    had written that has run out of time comes before the traceback, too.
    """
    message = f"{_message(error)}{_written(error)}"
    head = _cut(f"{type(error).__qualname__}: {message}", MAX_MESSAGE)
    return f"{head}\n\n{traceback_of(error)}"


def message_of(error: BaseException) -> str:
    """What an exception says, of a long text the beginning and the end."""
    return brief(_message(error))


def brief(text: str) -> str:
    """The beginning and the end of a text, of which a store can keep all."""
    return _cut(text, MAX_MESSAGE)


def traceback_of(error: BaseException, below: str = "") -> str:
    """The innermost frames, with the errors that had come before, bounded, too.

    Of frames that it begins with, those of the module `below` are left out.
    """
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_globals.get("__name__") == below:
            frames = frames.tb_next
        summary = traceback.TracebackException(
            type(error), error, frames, limit=-MAX_FRAMES, compact=True
        )
        text = "".join(summary.format())
    except BaseException as broken:  # noqa: BLE001 (it is told in place of the traceback)
        # Odd fields of a SyntaxError do that.
        text = f"<its traceback cannot be told: {type(broken).__qualname__}>"
    return _cut(text, MAX_LENGTH - MAX_MESSAGE - 100)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:  # noqa: BLE001 (it is told in place of the message)
        return f"<its message raised {type(broken).__qualname__}>"


def _written(error: BaseException) -> str:
    if not isinstance(error, WorkTimeoutError | DeadlineExceededError):
        return ""
    notes: object = getattr(error.__cause__, "__notes__", None)
    if not isinstance(notes, list):
        return ""
    several = [each for each in cast("list[object]", notes) if isinstance(each, str)]
    return "".join(f"\n\n{each}" for each in several if each.startswith(HAD_WRITTEN))


def _cut(text: str, length: int) -> str:
    text = printable(text).replace("\0", "\\0")  # as a store may refuse it
    if len(text) <= length:
        return text
    half = length // 2 - 25
    return f"{text[:half]}\n[{len(text) - 2 * half} characters cut]\n{text[-half:]}"
