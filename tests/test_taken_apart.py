"""Errors of other processes, as they are sent and put together."""

from __future__ import annotations

import pickle
import sys
from datetime import UTC, datetime, time, timedelta, timezone
from fractions import Fraction
from types import ModuleType
from typing import Any
from zoneinfo import ZoneInfo

import process_works
import pytest
from process_works import OwnError, Raised

from trio_gokugen import (
    Discard,
    ForeignError,
    Retry,
)
from trio_gokugen._taken_apart import DEEPEST, LARGEST, put_together, taken_apart


@pytest.mark.parametrize("which", Raised.whole)
def test_exceptions_are_put_together(which: str) -> None:
    """
    An exception that was taken apart is the same when it is put together, but for a note.
    """
    error = Raised.whole[which]
    back = put_together(taken_apart(error))
    assert type(back) is type(error)
    assert [repr(each) for each in back.args] == [repr(each) for each in error.args]
    own = {k: v for k, v in vars(error).items() if k != "__notes__"}
    assert {k: v for k, v in vars(back).items() if k != "__notes__"} == own
    assert str(back) == str(error)


def test_what_is_added_to_an_exception_stays() -> None:
    """
    An exception has its notes, and its attributes, when it comes back.
    """
    error = process_works.OwnError("noted")
    error.add_note("look here")
    error.code = 8
    back: Any = put_together(taken_apart(error))
    assert back.code == 8
    assert back.__notes__[0] == "look here"


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2030, 1, 1, 9, tzinfo=ZoneInfo("Asia/Tokyo")),
        datetime(2030, 1, 1, 9, tzinfo=timezone(timedelta(hours=9))),
        datetime(2030, 1, 1, 9),
        time(9, tzinfo=UTC),
        time(9, tzinfo=ZoneInfo("Asia/Tokyo")),
        datetime(2030, 1, 1, 9, tzinfo=timezone(timedelta(hours=9), "x" * 1_000_000)),
    ],
    ids=["zone", "offset", "naive", "UTC", "time", "named"],
)
def test_moments_come_back_as_moments(moment: datetime | time) -> None:
    """
    A moment of any time zone is the same moment when it comes back, but for what the zone
    is called.
    """
    apart = taken_apart(process_works.OwnError("t", moment))
    assert len(pickle.dumps(apart)) < LARGEST
    assert "zoneinfo" not in repr(apart[2])
    back = put_together(apart)
    assert back.args[1].utcoffset() == moment.utcoffset()
    # Of a time in a zone nobody knows the offset without a day.
    known = moment.utcoffset() is not None
    assert back.args[1] == (moment if known else moment.replace(tzinfo=None))


@pytest.mark.parametrize("which", Raised.lost)
def test_what_cannot_be_put_together(which: str) -> None:
    """
    In the place of an exception that cannot be made anew is one that tells of it.
    """
    error, why = Raised.lost[which]
    back = put_together(taken_apart(error))
    assert isinstance(back, ForeignError)
    assert back.kinds[0] == f"{type(error).__module__}.{type(error).__qualname__}"
    assert back.kinds[-1] == "builtins.object"
    assert back.text == str(error)
    assert why in back.why


def test_what_is_in_a_group_comes_back_for_itself() -> None:
    """
    Of a group comes back what can, and a `Retry` that names all that is in it wants it.
    """
    lost = process_works.UnmakeableError(1, 2)
    error = BaseExceptionGroup(
        "g", [ValueError(1), ExceptionGroup("inner", [lost]), SystemExit(3)]
    )
    error.add_note("look here")
    back = put_together(taken_apart(error))
    # There is nothing left in it that would have to leave the program.
    assert type(back) is ExceptionGroup
    assert back.message == "g"
    assert back.__notes__[0] == "look here"
    plain, inner, left = back.exceptions
    assert repr(plain) == "ValueError(1)"
    assert isinstance(inner, ExceptionGroup)
    assert isinstance(left, ForeignError)
    assert str(left) == (
        "builtins.SystemExit: 3"
        " (which could not come back: it would end this program, and not its run only)"
    )
    assert Retry(retry_on=process_works.UnmakeableError).wants(inner)
    assert not Retry(retry_on=process_works.UnmakeableError).wants(back)


class OddError(BaseException):
    """Found by its name, and made with nothing: but it is no `Exception`."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, OddError])
def test_what_would_leave_the_program_is_of_its_run_only(
    kind: type[BaseException],
) -> None:
    """
    What is no `Exception` ends its own process at most: another comes in its place, also
    for what is in a group.
    """
    back = put_together(taken_apart(kind()))
    assert isinstance(back, ForeignError)
    assert back.why == "it would end this program, and not its run only"
    group = put_together(taken_apart(BaseExceptionGroup("g", [kind(), ValueError(1)])))
    assert type(group) is ExceptionGroup
    assert [type(each) for each in group.exceptions] == [ForeignError, ValueError]


def test_what_is_an_exception_there_only_is_none_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    If a class is no `Exception` here, as in another version of its module, another comes
    in the place of what was one there.
    """
    apart = taken_apart(OwnError("code"))
    other = type("OwnError", (BaseException,), {"__module__": OwnError.__module__})
    monkeypatch.setattr(process_works, "OwnError", other)
    back = put_together(apart)
    assert isinstance(back, ForeignError)
    assert back.why == "it came out as something else"


def test_a_group_that_nests_too_deep_comes_back_in_part() -> None:
    """
    Of groups in groups come back so many as there may be, and then the text of what is in.
    """
    error: Any = ValueError("inmost")
    for _ in range(DEEPEST + 5):
        error = ExceptionGroup("one more", [error])
    back: Any = put_together(taken_apart(error))
    for _ in range(DEEPEST + 1):
        [back] = back.exceptions
    assert isinstance(back, ForeignError)
    assert "nests too deep" in back.why


def noted_at_length() -> Exception:
    error = ValueError("noted")
    error.add_note("x" * BIG)
    return error


class WordyError(Exception):
    """Made with nothing, and yet it tells much."""

    def __str__(self) -> str:
        return "x" * 1_000


BIG = 1_000_000
LARGE: dict[str, BaseException] = {
    "text": OwnError("x" * BIG),
    "bytes": OwnError("b", b"x" * BIG),
    "number": OwnError("n", 1 << (8 * BIG)),
    "fraction": OwnError("f", Fraction(1, 1 << (8 * BIG))),
    "list": OwnError("l", list(range(BIG // 10))),
    "group": ExceptionGroup("g", [ValueError("x" * (BIG // 10)) for _ in range(20)]),
    "moments": OwnError("m", [datetime(2030, 1, 1)] * (BIG // 300)),
    "containers": OwnError("c", [[] for _ in range(BIG // 300)]),
    "class": OwnError("c", type("C" * BIG, (), {})),
    "told": ExceptionGroup("g", [WordyError() for _ in range(BIG // 1_000)]),
    "many": ExceptionGroup("g", [ValueError(n) for n in range(BIG // 100)]),
    "wish": Discard("x" * BIG),
    "note": noted_at_length(),
}


@pytest.mark.parametrize("which", LARGE)
def test_no_error_is_sent_that_is_too_large(which: str) -> None:
    """
    However large an error is, what is sent of it is not, and it is told as far as can be.
    """
    apart = taken_apart(LARGE[which])
    assert len(pickle.dumps(apart)) < 2 * LARGEST
    back = put_together(apart)
    if which == "wish":
        assert isinstance(back, Discard)
        return
    assert isinstance(back, ForeignError)
    assert back.why == f"it was made with more than {LARGEST} bytes"
    assert len(back.text) <= 1_000


def test_nothing_is_imported_for_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An error whose class is in a module that the program has not imported is told in its
    place; and a module that would import something when it is asked is not asked.
    """
    apart = taken_apart(process_works.OwnError("own"))
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "process_works")
        back = put_together(apart)
        assert "process_works" not in sys.modules
    assert isinstance(back, ForeignError)
    assert "LookupError: process_works is not imported here" in back.why
    assert Retry(retry_on=process_works.OwnError).wants(back)

    def lazy(name: str) -> Any:
        raise AssertionError(name)

    module = ModuleType("process_works")
    vars(module)["__getattr__"] = lazy
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "process_works", module)
        back = put_together(apart)
    assert isinstance(back, ForeignError)
    assert "KeyError" in back.why


def test_a_class_may_have_any_name() -> None:
    """
    An error whose class has a name that is too long is told by the beginning of that.
    """
    error = type("X" * BIG, (ValueError,), {})("no luck")
    back = put_together(taken_apart(error))
    assert isinstance(back, ForeignError)
    assert len(back.kinds[0]) == 1_000
    assert back.kinds[1] == "builtins.ValueError"
    assert back.text == "no luck"
