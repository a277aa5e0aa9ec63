import enum
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import (
    Json,
    exact,
    int64s,
    is_array,
    is_object,
    json_objects,
    json_values,
    leaves,
    tagged,
    texts,
)

from trio_gokugen import InvalidTaskError
from trio_gokugen._json import (
    MAX_DEPTH,
    fresh,
    int64,
    is_larger,
    json_object,
    name,
    same,
    text,
)

PLAIN = {type(None), bool, int, float, str, list, dict}


class Weekday(enum.StrEnum):
    MONDAY = "monday"


class Colour(str, enum.Enum):  # noqa: UP042 - the older way, which prints otherwise
    RED = "red"


class Lowest(enum.IntEnum):
    LOWEST = -(2**63)


class Scattered(int):
    """An integer that minds being compared with one number after the other."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError("looked for among all integers")

    __hash__ = int.__hash__


class Metres(float):
    pass


class Point(NamedTuple):
    x: int
    y: int


class Environment(Mapping[str, Json]):
    """A mapping that is no dict."""

    def __getitem__(self, key: str) -> Json:
        return {"HOME": "/root"}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["HOME"])

    def __len__(self) -> int:
        return 1


def containers(value: Json) -> list[object]:
    """The list or dict, and all those inside."""
    if is_object(value):
        inside = list(value.values())
    elif is_array(value):
        inside = value
    else:
        return []
    return [value, *(each for item in inside for each in containers(item))]


def nested(depth: int, *, around: Callable[[Json], Json]) -> Json:
    """A value of as many levels, counting the object at the top."""
    value: Json = None
    for _ in range(depth - 1):
        value = around(value)
    return {"a": value}


def in_list(value: Json) -> Json:
    return [value]


def in_tuple(value: Json) -> Json:
    return (value,)


def in_dict(value: Json) -> Json:
    return {"a": value}


def in_mapping(value: Json) -> Json:
    return MappingProxyType({"a": value})


around = pytest.mark.parametrize(
    "around", [in_list, in_tuple, in_dict, in_mapping], ids=lambda each: each.__name__
)

# -- what is kept -------------------------------------------------------------------


@given(json_objects)
def test_an_object_is_copied_exactly(value: dict[str, Json]) -> None:
    """
    The copy of an object equals it to the type of every number and the order of keys.
    """
    assert exact(json_object(value, "param")) == exact(value)


@given(json_objects)
def test_a_copy_shares_nothing(value: dict[str, Json]) -> None:
    """
    A copy has no list or object in common with what it was made from.
    """
    theirs = {id(each) for each in containers(value)}
    for copied in (json_object(value, "param"), fresh(value)):
        assert theirs.isdisjoint(id(each) for each in containers(copied))


@given(json_objects)
def test_a_fresh_copy_is_exact(value: dict[str, Json]) -> None:
    """
    A fresh copy equals the object to the type of every number and the order of keys.
    """
    assert exact(fresh(value)) == exact(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    cast(
        "list[tuple[Json, Json]]",
        [
            (None, {}),
            (MappingProxyType({"a": 1}), {"a": 1}),
            (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
            (Environment(), {"HOME": "/root"}),
            ({Weekday.MONDAY: Weekday.MONDAY}, {"monday": "monday"}),
            ({Colour.RED: Colour.RED}, {"red": "red"}),
            ({"at": Lowest.LOWEST}, {"at": -(2**63)}),
            ({"far": Metres(2.5)}, {"far": 2.5}),
            ({"point": Point(1, 2)}, {"point": [1, 2]}),
            (
                {"deep": [({"a": Environment()},)]},
                {"deep": [[{"a": {"HOME": "/root"}}]]},
            ),
        ],
    ),
    ids=[
        "none",
        "proxy",
        "ordered",
        "mapping",
        "strenum",
        "str-enum",
        "intenum",
        "float-subclass",
        "namedtuple",
        "inside",
    ],
)
def test_what_means_json_becomes_plain(value: Json, expected: Json) -> None:
    """
    Mappings, tuples, enumerations and subclasses become the plain types of JSON.
    """
    copied = json_object(value, "param")
    assert exact(copied) == exact(expected)
    for each in containers(copied):
        assert type(each) in PLAIN


def test_an_integer_of_a_subclass_is_not_searched_for() -> None:
    """
    An int of a subclass, an `IntEnum` say, costs no more than any other.
    """
    assert type(int64(Scattered(7), "priority")) is int
    assert exact(json_object({"a": Scattered(7)}, "param")) == exact({"a": 7})


@given(int64s)
@example(2**63 - 1)
@example(-(2**63))
def test_64_bits_are_kept(value: int) -> None:
    """
    Every integer of 64 bits is kept.
    """
    assert int64(value, "priority") == value


@given(texts)
def test_text_is_kept(value: str) -> None:
    """
    Text is kept as it is, and so is a name, unless it is empty.
    """
    assert text(value, "err") == value
    if value:
        assert name(value, "id") == value


@pytest.mark.parametrize("member", [Weekday.MONDAY, Colour.RED], ids=repr)
def test_a_string_enumeration_is_text(member: str) -> None:
    """
    A member of a string enumeration becomes the plain string that it is.
    """
    assert type(text(member, "err")) is str
    assert text(member, "err") == member.lower()


# -- what is refused ----------------------------------------------------------------

BAD_LEAVES = {
    "bytes": (b"x", "cannot be JSON: a value of type bytes"),
    "bytearray": (bytearray(b"x"), "cannot be JSON: a value of type bytearray"),
    "set": ({1}, "cannot be JSON: a value of type set"),
    "iterator": (iter([1]), "cannot be JSON: a value of type list_iterator"),
    "range": (range(3), "cannot be JSON: a value of type range"),
    "object": (object(), "cannot be JSON: a value of type object"),
    "class": (int, "cannot be JSON: a value of type type"),
    "complex": (1j, "cannot be JSON: a value of type complex"),
    "decimal": (Decimal(1), "cannot be JSON: a value of type Decimal"),
    "fraction": (Fraction(1, 2), "cannot be JSON: a value of type Fraction"),
    "datetime": (
        datetime(2024, 1, 1, tzinfo=UTC),
        "cannot be JSON: a value of type datetime",
    ),
    "date": (date(2024, 1, 1), "cannot be JSON: a value of type date"),
    "nan": (math.nan, "must be a finite number, not nan"),
    "infinity": (math.inf, "must be a finite number, not inf"),
    "minus-infinity": (-math.inf, "must be a finite number, not -inf"),
    "too-large": (2**63, "must fit in 64 bits"),
    "too-small": (-(2**63) - 1, "must fit in 64 bits"),
    "huge": (10**5000, "must fit in 64 bits"),
    "nul": ("a\0", "must not contain a NUL character"),
    "surrogate": ("ab\ud800", "has a lone surrogate at position 2"),
    "low-surrogate": ("\udfffab", "has a lone surrogate at position 0"),
}
BAD_KEYS = {
    "int": (1, "", "has a key that is not a string: 1"),
    "bool": (True, "", "has a key that is not a string: True"),
    "none": (None, "", "has a key that is not a string: None"),
    "bytes": (b"x", "", "has a key that is not a string: b'x'"),
    "tuple": (
        ("x" * 99,),
        "",
        "has a key that is not a string: ('" + "x" * 55 + "...",
    ),
    "nul": ("a\0", " key", "must not contain a NUL character"),
    "surrogate": ("ab\ud800", " key", "has a lone surrogate at position 2"),
}


@st.composite
def paths(draw: st.DrawFn) -> tuple[str, Callable[[Json], Json]]:
    """A path into an object, and what puts a value there, among others."""
    path = "param"
    steps: list[str | list[Json]] = [
        draw(texts),
        *draw(st.lists(texts | st.lists(leaves, max_size=2), max_size=6)),
    ]
    for step in steps:
        path += f".{step}" if isinstance(step, str) else f"[{len(step)}]"

    def put(value: Json) -> Json:
        for step in reversed(steps):
            value = {step: value} if isinstance(step, str) else [*step, value, None]
        return value

    return path, put


@pytest.mark.parametrize(("bad", "reason"), BAD_LEAVES.values(), ids=BAD_LEAVES.keys())
@settings(max_examples=20)
@given(where=paths())
def test_what_is_no_json_is_refused_by_its_path(
    bad: object, reason: str, where: tuple[str, Callable[[Json], Json]]
) -> None:
    """
    A value that is not JSON is refused wherever it is, and the error has the path.
    """
    path, put = where
    with pytest.raises(InvalidTaskError) as caught:
        json_object(put(bad), "param")
    assert (caught.value.field, caught.value.reason) == (path, reason)
    assert caught.value.index is None


@pytest.mark.parametrize(
    ("key", "suffix", "reason"), BAD_KEYS.values(), ids=BAD_KEYS.keys()
)
@settings(max_examples=20)
@given(where=paths())
def test_a_bad_key_is_refused_by_the_path_of_its_object(
    key: object, suffix: str, reason: str, where: tuple[str, Callable[[Json], Json]]
) -> None:
    """
    A key that is no good string is refused, and the error has its object's path.
    """
    path, put = where
    with pytest.raises(InvalidTaskError) as caught:
        json_object(put({"good": 1, key: 2}), "param")
    assert (caught.value.field, caught.value.reason) == (path + suffix, reason)


@pytest.mark.parametrize(
    "value", [[], "text", b"{}", 1, False, 0, set[str](), ()], ids=repr
)
def test_what_is_no_object_is_refused(value: object) -> None:
    """
    Anything but a mapping or `None` is refused where an object is wanted.
    """
    with pytest.raises(InvalidTaskError) as caught:
        json_object(value, "meta")
    assert str(caught.value) == (
        f"meta: must be a JSON object, not a value of type {type(value).__name__}"
    )


@around
def test_nesting_has_a_limit(around: Callable[[Json], Json]) -> None:
    """
    A hundred levels are kept, and one more is refused, of whatever they are made.
    """
    assert json_object(nested(MAX_DEPTH, around=around), "param")
    with pytest.raises(InvalidTaskError, match=r"nests deeper than 100 levels$"):
        json_object(nested(MAX_DEPTH + 1, around=around), "param")


@around
def test_nesting_beyond_reason_is_an_ordinary_refusal(
    around: Callable[[Json], Json],
) -> None:
    """
    Nesting far deeper than the stack is refused like any other bad value.
    """
    with pytest.raises(InvalidTaskError) as caught:
        json_object(nested(50_000, around=around), "param")
    assert caught.value.field.startswith("param.a")


def test_a_cycle_is_refused() -> None:
    """
    A list or an object that contains itself is refused, however it does.
    """
    a_list: list[Any] = []
    a_list += [a_list, a_list]
    a_dict: dict[str, Any] = {}
    a_dict["self"] = a_dict
    by_way_of: list[Any] = [{"back": a_list}]
    a_list.append(by_way_of)
    for cycle in (a_list, a_dict, by_way_of):
        with pytest.raises(InvalidTaskError, match=r"nests deeper than 100 levels$"):
            json_object({"a": cycle}, "param")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (True, "must be an int, not a value of type bool"),
        (1.0, "must be an int, not a value of type float"),
        ("1", "must be an int, not a value of type str"),
        (None, "must be an int, not a value of type NoneType"),
        (2**63, "must fit in 64 bits"),
        (-(2**63) - 1, "must fit in 64 bits"),
    ],
    ids=lambda each: type(each).__name__ if not isinstance(each, int) else str(each),
)
def test_what_is_no_integer_is_refused(value: object, reason: str) -> None:
    """
    Anything but an int of 64 bits is refused where one is wanted, a bool too.
    """
    with pytest.raises(InvalidTaskError) as caught:
        int64(value, "priority")
    assert (caught.value.field, caught.value.reason) == ("priority", reason)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "must be a string, not a value of type NoneType"),
        (b"x", "must be a string, not a value of type bytes"),
        (1, "must be a string, not a value of type int"),
        ("\0", "must not contain a NUL character"),
        ("\udc80", "has a lone surrogate at position 0"),
        ("\ud83d\ude00", "has a lone surrogate at position 0"),
        ("", "must not be empty"),
    ],
    ids=["none", "bytes", "int", "nul", "surrogate", "two-surrogates", "empty"],
)
def test_what_is_no_name_is_refused(value: object, reason: str) -> None:
    """
    A name is a string that every store can keep, and is not empty.
    """
    with pytest.raises(InvalidTaskError) as caught:
        name(value, "work_id")
    assert (caught.value.field, caught.value.reason) == ("work_id", reason)


# -- equality -----------------------------------------------------------------------


@st.composite
def similar_pairs(draw: st.DrawFn) -> tuple[Json, Json]:
    """Two values that differ little, if at all, and then in what Python confuses."""
    small = st.sampled_from([0, 1, 0.0, -0.0, 1.0, False, True, None, "", "1", 2**53])
    values = st.recursive(
        small,
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
        ),
        max_leaves=4,
    )
    return draw(values), draw(values)


@given(similar_pairs())
@example((2**53 + 1, 2.0**53))
@example(({"a": 1}, {"a": 1, "b": 1}))
@example(({"a": 1, "b": 2}, {"b": 2, "a": 1}))
@example(([], {}))
@example(([True], [1]))
@example(([1], [1, 1]))
def test_equality_is_that_of_json(pair: tuple[Json, Json]) -> None:
    """
    Two values are the same exactly if JSON calls them equal: 1 and 1.0, not 1 and true.
    """
    one, other = pair
    assert same(one, other) is (tagged(one) == tagged(other))
    assert same(other, one) is same(one, other)


@given(json_values)
def test_a_value_is_the_same_as_itself(value: Json) -> None:
    """
    A value is the same as a copy of it.
    """
    assert same(value, json_object({"a": value}, "param")["a"])


class Huge(list[Any]):
    """A list that nobody may go through."""

    def __len__(self) -> int:
        return 3_000_000

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError


@pytest.mark.parametrize(
    "value",
    [Huge(), {"a": [1, Huge()]}, "x" * 101, {"x" * 101: 1}, dict.fromkeys(range(99), 1)],
)
def test_what_is_too_large_is_not_gone_through(value: Any) -> None:
    """
    Of a value that is too large few items are looked at.
    """
    assert is_larger(value, 100)


@given(json_values)
def test_what_is_not_too_large_is_known(value: Any) -> None:
    """
    What is said to be larger, is: whatever it is made of.
    """
    size = len(json.dumps(value, ensure_ascii=False).encode())
    assert not is_larger(value, size)
