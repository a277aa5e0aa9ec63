import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_gokugen import InvalidTaskError
from trio_gokugen._describe import describe

LENGTH = 8_000


E = TypeVar("E", bound=BaseException)


class SilentError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class WordlessError(Exception):
    def __str__(self) -> str:
        return cast("str", 7)


class LeavingError(Exception):
    def __str__(self) -> str:
        raise SystemExit


class EndlessError(Exception):
    def __str__(self) -> str:
        return str(self)


class Outer:
    class InnerError(Exception):
        pass


def raised(error: E) -> E:
    """The error, with a traceback."""
    with suppress(BaseException):
        raise error
    return error


def recursed(depth: int) -> None:
    if depth == 0:
        raise ValueError("bottom")
    recursed(depth - 1)


def at_the_end_of_the_stack() -> BaseException:
    def down() -> None:
        down()

    try:
        down()
    except RecursionError as error:
        return error
    raise AssertionError


def deep_down() -> BaseException:
    try:
        recursed(500)
    except ValueError as error:
        return error
    raise AssertionError


def many_causes() -> BaseException:
    error = ValueError("first")
    for number in range(1_000):
        following = raised(ValueError(f"number {number}"))
        following.__cause__ = error
        error = following
    return error


def its_own_cause() -> BaseException:
    error = raised(ValueError("round"))
    error.__cause__ = raised(KeyError("and round"))
    error.__cause__.__cause__ = error
    return error


def groups_in_groups() -> BaseException:
    group = ExceptionGroup[Exception]("group", [ValueError("inside")])
    for _ in range(1_000):
        group = ExceptionGroup("group", [group])
    return group


def noted() -> BaseException:
    error = ValueError("x")
    for number in range(10_000):
        error.add_note(f"note {number}")
    return error


def wrong_notes() -> BaseException:
    error, notes = ValueError("x"), [SilentError(), 7, LeavingError()]
    error.__notes__ = cast("list[str]", notes)
    return raised(error)


def odd(
    kind: Callable[..., BaseException], *args: Any, **fields: Any
) -> Callable[[], BaseException]:
    """What makes an error of fields that its class would not expect."""
    return lambda: kind(*args, **fields)


ODD: dict[str, Callable[[], BaseException]] = {
    "empty": ValueError,
    "multi-line": lambda: ValueError("one\ntwo\r\nthree"),
    "huge": lambda: ValueError("x" * 10_000_000),
    "huge name": lambda: type("X" * 100_000, (Exception,), {})("y" * 100_000),
    "surrogates": lambda: ValueError("\ud800" * 100_000),
    "nul": lambda: ValueError("\0" * 100_000),
    "arguments": lambda: ValueError(*range(10_000)),
    "says nothing": SilentError,
    "says no text": WordlessError,
    "leaves": LeavingError,
    "never stops": EndlessError,
    "stack": at_the_end_of_the_stack,
    "deep": deep_down,
    "causes": many_causes,
    "own cause": its_own_cause,
    "wide group": lambda: ExceptionGroup("many", [ValueError(n) for n in range(9_999)]),
    "deep group": groups_in_groups,
    "notes": noted,
    "wrong notes": wrong_notes,
    "syntax": lambda: SyntaxError("no", ("file", 1, 2, "text", 1, 3)),
    "syntax without text": lambda: SyntaxError("no", ("file", None, None, None)),
    "syntax of no text": odd(SyntaxError, "no", ("file", 1, 1, 7)),
    "syntax of bytes": odd(SyntaxError, "no", ("file", 1, 1, b"text")),
    "syntax at no place": odd(SyntaxError, "no", ("file", 1, "x", "text")),
    "attribute": lambda: AttributeError("no", name="a", obj=object()),
    "attribute of no name": odd(AttributeError, "no", name=7, obj=object()),
    "name": lambda: NameError("no", name="prnt"),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff" * 10_000, 0, 9_999, "no"),
    "os": lambda: FileNotFoundError(2, "No such file", "\udcff"),
    "interrupt": KeyboardInterrupt,
    "exit": lambda: SystemExit("\ud800"),
    "base group": lambda: BaseExceptionGroup("many", [KeyboardInterrupt()]),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_every_error_can_be_told(make: Callable[[], BaseException]) -> None:
    """
    Whatever a work raises is told in text that every store can keep, of at most 8,000
    characters, and that begins with the type.
    """
    error = make()
    for each in (error, raised(error)):
        told = describe(each)
        assert type(told) is str
        assert len(told) <= LENGTH
        assert json.loads(json.dumps(told)) == told
        assert told.encode().decode() == told
        assert "\0" not in told
        assert told.startswith(type(error).__qualname__[:100])


@given(st.text(st.characters(exclude_categories=[]), max_size=3_000))
@example("\ud800" * 2_000)
@example("\0" * 2_000)
def test_every_message_can_be_told(message: str) -> None:
    """
    A message of whatever characters is told in at most 8,000 that can be encoded.
    """
    told = describe(raised(ValueError(message)))
    assert len(told) <= LENGTH
    assert told.encode()
    assert "\0" not in told


def test_the_first_line_is_type_and_message() -> None:
    """
    The first line has the type, with the class it is in, and the message; the rest is
    the traceback.
    """
    first, empty, *rest = describe(raised(Outer.InnerError("no luck"))).splitlines()
    assert (first, empty) == ("Outer.InnerError: no luck", "")
    assert rest[0] == "Traceback (most recent call last):"
    assert rest[-1].endswith("Outer.InnerError: no luck")
    assert any("raise error" in line for line in rest)


def test_a_short_error_is_told_in_full() -> None:
    """
    An error that was never raised is told by its type and its message alone.
    """
    assert describe(ValueError("no")) == "ValueError: no\n\nValueError: no\n"
    assert describe(InvalidTaskError("id", "must not be empty")).startswith(
        "InvalidTaskError: id: must not be empty\n\n"
    )


def test_a_message_that_cannot_be_had_is_replaced() -> None:
    """
    In place of a message that raises an error stands which one.
    """
    told = describe(SilentError())
    assert told.startswith("SilentError: <its message raised ValueError>\n\n")
    told = describe(WordlessError())
    assert told.startswith("WordlessError: <its message raised TypeError>\n\n")


def test_of_a_long_message_both_ends_are_told() -> None:
    """
    Of a message that is too long, the beginning and the end are told, and how much is
    cut.
    """
    told = describe(ValueError("begin" + "x" * 5_000 + "end"))
    head, _ = told.split("\n\n", 1)
    assert len(head) <= 1_000
    first, cut, last = head.splitlines()
    assert first.startswith("ValueError: beginx")
    assert last.endswith("xend")
    kept = len(first) + len(last)
    total = len("ValueError: begin") + 5_000 + len("end")
    assert cut == f"[{total - kept} characters cut]"


def test_of_a_deep_traceback_the_innermost_frames_are_told() -> None:
    """
    Of a deep traceback, the frames where it was raised are told, in full.
    """
    told = describe(deep_down())
    assert 'raise ValueError("bottom")' in told
    assert "in deep_down" not in told
    assert "characters cut" not in told


def test_causes_are_told() -> None:
    """
    The error's cause is told with it, the cause first.
    """
    error = raised(ValueError("effect"))
    error.__cause__ = raised(KeyError("cause"))
    told = describe(error)
    assert told.startswith("ValueError: effect\n\nTraceback")
    assert told.index("KeyError: 'cause'") < told.index("direct cause of")


def test_all_of_a_group_is_told() -> None:
    """
    Each error of a group is told, with its own traceback.
    """
    told = describe(
        ExceptionGroup("two", [raised(ValueError("one")), raised(KeyError("other"))])
    )
    assert told.startswith("ExceptionGroup: two (2 sub-exceptions)\n\n")
    assert "ValueError: one" in told
    assert "KeyError: 'other'" in told
