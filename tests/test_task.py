import copy
import enum
import json
import math
import pickle
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from strategies import (
    Json,
    exact,
    int64s,
    json_objects,
    moments,
    names,
    tagged,
    tasks,
    texts,
    zoned_moments,
)

from trio_gokugen import (
    UNCHANGED,
    FailedAttempt,
    InvalidTaskError,
    Progress,
    Retry,
    Task,
    TaskParam,
    TaskQuery,
    TaskState,
    TaskUpdate,
)
from trio_gokugen._query import find_order
from trio_gokugen._task import evolve, new_task
from trio_gokugen.abc import TaskFilter

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)
FIRST = datetime.min.replace(tzinfo=UTC)
LAST = datetime.max.replace(tzinfo=UTC)

TASK = Task(id="t1", work_id="greet", scheduled_at=NOON, created_at=NOON)
FULL = Task(
    id="t2",
    work_id="greet",
    param={"name": "trio", "rows": [1, 2.5, None, True, {"": ""}]},
    meta={"order": 7},
    priority=-3,
    state=TaskState.FAILED,
    err="ValueError: no\n\nTraceback …",
    attempt=2,
    interruptions=1,
    scheduled_at=NOON,
    created_at=NOON - SECOND,
    deadline=NOON + SECOND,
    cancelled_at=NOON + 2 * SECOND,
    dispatched_at=NOON + 3 * SECOND,
    done_at=NOON + 4 * SECOND,
    schedule_id="daily",
    nominal_at=NOON - 2 * SECOND,
)
MOMENTS = (
    "scheduled_at",
    "created_at",
    "deadline",
    "cancelled_at",
    "dispatched_at",
    "nominal_at",
    "done_at",
)


class Weekday(enum.StrEnum):
    MONDAY = "monday"


class Lowest(enum.IntEnum):
    LOWEST = -(2**63)


class Shouting(datetime):
    """A datetime of somebody's own."""

    def isoformat(self, *args: Any, **kwargs: Any) -> str:
        return super().isoformat(*args, **kwargs) + "!"


class Nowhere(tzinfo):
    """A time zone that does not say how far from UTC it is."""

    def utcoffset(self, dt: datetime | None, /) -> None:
        return None

    def dst(self, dt: datetime | None, /) -> None:
        return None

    def tzname(self, dt: datetime | None, /) -> None:
        return None


def a_param(**values: Any) -> TaskParam:
    needed: dict[str, Any] = {"work_id": "greet", "scheduled_at": NOON}
    return TaskParam(**needed | values)


def a_task(**values: Any) -> Task:
    return attrs.evolve(TASK, **values)


def an_update(**values: Any) -> TaskUpdate:
    return TaskUpdate(**values)


def a_query(**values: Any) -> TaskQuery:
    return TaskQuery(**values)


# -- moments ------------------------------------------------------------------------


@given(zoned_moments)
@example(datetime(2024, 10, 27, 1, 30, tzinfo=ZoneInfo("Europe/London")))
@example(datetime(2024, 10, 27, 1, 30, tzinfo=ZoneInfo("Europe/London"), fold=1))
@example(datetime(2024, 3, 31, 1, 30, tzinfo=ZoneInfo("Europe/London")))
@example(datetime(2024, 3, 31, 1, 30, tzinfo=ZoneInfo("Europe/London"), fold=1))
@example(datetime.min.replace(tzinfo=timezone(timedelta(hours=14))))
@example(datetime.min.replace(tzinfo=timezone(timedelta(hours=-14))))
@example(datetime.max.replace(tzinfo=timezone(timedelta(hours=14))))
@example(datetime.max.replace(tzinfo=timezone(timedelta(hours=-14))))
@example(datetime.min.replace(tzinfo=ZoneInfo("Asia/Tokyo")))
@example(datetime.max.replace(tzinfo=ZoneInfo("America/New_York")))
@example(datetime(1, 1, 1, 5, tzinfo=timezone(timedelta(seconds=18_000.000001))))
def test_a_moment_is_kept_in_utc(moment: datetime) -> None:
    """
    A moment of any time zone is kept as the same moment in UTC, to the microsecond;
    one that UTC cannot tell is refused.
    """
    offset = moment.utcoffset()
    assert offset is not None
    try:
        expected = moment.replace(tzinfo=None, fold=0) - offset
    except OverflowError:
        for make in (a_param, an_update):
            with pytest.raises(InvalidTaskError) as caught:
                make(scheduled_at=moment)
            assert str(caught.value) == (
                "scheduled_at: leaves the years 1 to 9999 when turned to UTC"
            )
        return
    for made in (a_param(scheduled_at=moment), an_update(scheduled_at=moment)):
        kept = made.scheduled_at
        assert isinstance(kept, datetime)
        assert kept.tzinfo is UTC
        assert kept.replace(tzinfo=None, fold=0) == expected
    query = a_query(done_at=(moment, moment))
    assert query.done_at == (expected.replace(tzinfo=UTC),) * 2


def moment_fields() -> list[tuple[Callable[..., object], str]]:
    return [
        (a_param, "scheduled_at"),
        (a_param, "deadline"),
        (an_update, "scheduled_at"),
        (an_update, "deadline"),
        *((a_task, field) for field in MOMENTS),
    ]


every_moment = pytest.mark.parametrize(
    ("make", "field"),
    moment_fields(),
    ids=[f"{make.__name__}-{field}" for make, field in moment_fields()],
)


@every_moment
@pytest.mark.parametrize(
    "naive",
    [
        datetime(2024, 2, 29, 13),
        FIRST.replace(tzinfo=None),
        LAST.replace(tzinfo=None),
        datetime(2024, 2, 29, 13, tzinfo=Nowhere()),
        FIRST.replace(tzinfo=Nowhere()),
    ],
    ids=["naive", "first", "last", "nowhere", "nowhere-first"],
)
def test_a_naive_moment_is_refused(
    make: Callable[..., object], field: str, naive: datetime
) -> None:
    """
    A datetime that does not say how far from UTC it is is refused, by the field's name.
    """
    with pytest.raises(InvalidTaskError) as caught:
        make(**{field: naive})
    assert str(caught.value) == (
        f"{field}: is a naive datetime: give it a time zone, datetime.UTC for example"
    )


@every_moment
@pytest.mark.parametrize(
    "value", ["2024-02-29T12:00:00+00:00", 1709208000.0, date(2024, 2, 29)], ids=repr
)
def test_what_is_no_moment_is_refused(
    make: Callable[..., object], field: str, value: object
) -> None:
    """
    Anything but a datetime is refused where a moment is wanted, by the field's name.
    """
    with pytest.raises(InvalidTaskError) as caught:
        make(**{field: value})
    assert str(caught.value) == (
        f"{field}: must be an aware datetime, not a value of type {type(value).__name__}"
    )


@pytest.mark.parametrize("make", [a_param, a_task], ids=lambda each: each.__name__)
@pytest.mark.parametrize("early", [0, 1, 10**9], ids=str)
def test_a_deadline_must_leave_time_to_start(
    make: Callable[..., object], early: int
) -> None:
    """
    A deadline at or before the appointed time is refused, one a microsecond later kept.
    """
    with pytest.raises(InvalidTaskError) as caught:
        make(deadline=NOON - timedelta(microseconds=early))
    assert caught.value.field == "deadline"
    assert "is not after scheduled_at, 2024-02-29T12:00:00+00:00" in str(caught.value)
    assert make(deadline=NOON + timedelta(microseconds=1))


# -- every other field --------------------------------------------------------------

BAD_NAMES = [None, "", 1, b"t1", "a\0b", "\ud800", ["a"]]
BAD_TEXT = [1, b"no", "a\0b", "\ud800"]
BAD_INTEGERS = [None, True, 1.0, "1", 2**63, -(2**63) - 1]
BAD_COUNTS = [*BAD_INTEGERS, -1]
BAD_OBJECTS: list[Any] = [
    [],
    "{}",
    7,
    {1: 2},
    {"a": math.nan},
    {"a": b""},
    {"a": "\ud800"},
    {"a\0": 1},
]
BAD_PAIRS = [NOON, [NOON, NOON], (NOON,), (NOON, NOON, NOON), "ab", ("a", "b")]

BAD: dict[Callable[..., object], dict[str, list[Any]]] = {
    a_param: {
        "work_id": BAD_NAMES,
        "scheduled_at": [None],
        "param": BAD_OBJECTS,
        "priority": BAD_INTEGERS,
        "meta": BAD_OBJECTS,
        "id": BAD_NAMES[1:],
        "key": BAD_NAMES[1:],
        "retry": [3, "often", Retry, Retry(wait=lambda failed: failed)],
    },
    a_task: {
        "id": BAD_NAMES,
        "work_id": BAD_NAMES,
        "param": BAD_OBJECTS,
        "meta": BAD_OBJECTS,
        "priority": BAD_INTEGERS,
        "state": [None, "done", "DONE", 1, UNCHANGED],
        "err": BAD_TEXT,
        "attempt": BAD_COUNTS,
        "interruptions": BAD_COUNTS,
        "scheduled_at": [None],
        "created_at": [None],
        "key": BAD_NAMES[1:],
        "when": BAD_NAMES[1:],
        "pool": BAD_NAMES[1:],
        "retry": [3, "often", Retry, Retry(retry_on=lambda error: True)],
        "retries": BAD_COUNTS,
        "errors": [None, 7, "none", {}, [7], [{"attempt": 1}]],
        "result": [object(), math.nan, {1: 2}],
        "progress": [0.5, {"fraction": 0.5}],
    },
    an_update: {
        "work_id": BAD_NAMES,
        "pool": BAD_NAMES[1:],
        "scheduled_at": [None],
        "param": BAD_OBJECTS,
        "priority": BAD_INTEGERS,
        "meta": BAD_OBJECTS,
    },
    a_query: {
        "states": [
            "done",
            TaskState.DONE,
            {"done"},
            [None],
            7,
            iter([TaskState.DONE]),
            [["done"]],
        ],
        "work_ids": ["greet", b"greet", {1}, [None], 7, iter(["a"]), [["a"]]],
        **{field: [*BAD_PAIRS, (datetime(2024, 1, 1), None)] for field in MOMENTS},
        "priority": ["1", 1.5, True, (1,), (1, 2, 3), [1, 2], (None, True), 2**63],
        "meta": BAD_OBJECTS,
    },
}


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        (make, field, value)
        for make, fields in BAD.items()
        for field, values in fields.items()
        for value in values
    ],
    ids=[
        f"{make.__name__}-{field}-{number}"
        for make, fields in BAD.items()
        for field, values in fields.items()
        for number, _ in enumerate(values)
    ],
)
def test_a_wrong_value_is_refused_by_its_field(
    make: Callable[..., object], field: str, value: Any
) -> None:
    """
    A value that a field cannot have is refused as it is given, and the error names the
    field, or the place inside it.
    """
    with pytest.raises(InvalidTaskError) as caught:
        make(**{field: value})
    assert caught.value.field.replace(" ", ".").split(".")[0] == field
    assert str(caught.value).startswith(f"{caught.value.field}: ")


@pytest.mark.parametrize(
    ("make", "field", "value", "kind"),
    [
        (a_param, "work_id", Weekday.MONDAY, str),
        (a_param, "id", Weekday.MONDAY, str),
        (a_param, "priority", Lowest.LOWEST, int),
        (a_task, "work_id", Weekday.MONDAY, str),
        (a_task, "id", Weekday.MONDAY, str),
        (a_task, "err", Weekday.MONDAY, str),
        (a_task, "priority", Lowest.LOWEST, int),
        (a_param, "scheduled_at", Shouting(2024, 2, 29, 11, tzinfo=UTC), datetime),
        (a_param, "deadline", Shouting.max.replace(tzinfo=UTC), datetime),
        (a_task, "done_at", Shouting.min.replace(tzinfo=UTC), datetime),
        (
            an_update,
            "scheduled_at",
            Shouting(2024, 2, 29, 11, tzinfo=ZoneInfo("Asia/Tokyo")),
            datetime,
        ),
        (an_update, "work_id", Weekday.MONDAY, str),
        (an_update, "priority", Lowest.LOWEST, int),
    ],
    ids=lambda each: each if type(each) is str else getattr(each, "__name__", ""),
)
def test_what_is_kept_is_plain(
    make: Callable[..., object], field: str, value: object, kind: type
) -> None:
    """
    A member of an enumeration is kept as the plain text or number that it is, a datetime
    of a subclass as the plain moment.
    """
    kept = getattr(make(**{field: value}), field)
    assert kept == value
    assert type(kept) is kind


def test_only_what_is_named_can_be_given() -> None:
    """
    The classes take keywords only, and refuse one that is no field.
    """
    kinds: list[Any] = [Task, TaskParam, TaskUpdate, TaskQuery]
    for kind in kinds:
        with pytest.raises(TypeError):
            kind("t1")
        with pytest.raises(TypeError):
            kind(schedule_at=NOON)


# -- snapshots ----------------------------------------------------------------------

PARAM = TaskParam(
    work_id="greet",
    scheduled_at=NOON,
    param={"rows": [1]},
    priority=1,
    deadline=NOON + SECOND,
    meta={"order": 7},
    id="t1",
)
UPDATE = TaskUpdate(param={"rows": [1]}, deadline=None)
QUERY = TaskQuery(
    states=[TaskState.DONE], work_ids={"greet"}, done_at=(NOON, None), meta={"order": 7}
)
values_of_all_classes = pytest.mark.parametrize(
    "value",
    [TASK, FULL, PARAM, UPDATE, TaskUpdate(), QUERY, TaskQuery(), TaskFilter()],
    ids=["task", "full", "param", "update", "no update", "query", "any", "filter"],
)


@values_of_all_classes
@pytest.mark.parametrize("protocol", [None, *range(pickle.HIGHEST_PROTOCOL + 1)])
def test_a_value_survives_a_copy(value: Any, protocol: int | None) -> None:
    """
    A copy, by pickle too, equals the value it was made from, and has its hash.
    """
    copies = (
        [copy.copy(value), copy.deepcopy(value), attrs.evolve(value)]
        if protocol is None
        else [pickle.loads(pickle.dumps(value, protocol))]  # noqa: S301 - our own
    )
    for other in copies:
        assert other == value
        assert hash(other) == hash(value)
        assert type(other) is type(value)
        assert repr(other) == repr(value)


@values_of_all_classes
def test_a_value_stays_as_it_is(value: Any) -> None:
    """
    No field of a value can be assigned or deleted.
    """
    for field in attrs.asdict(value):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, field, None)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            delattr(value, field)


OTHERS: dict[str, Any] = {
    "id": "t9",
    "work_id": "other",
    "param": {"a": 1},
    "meta": {"a": 1},
    "priority": 9,
    "state": TaskState.DONE,
    "err": "x",
    "attempt": 9,
    "interruptions": 9,
    "at_most_once": True,
    "schedule_id": "s9",
    **dict.fromkeys(MOMENTS, NOON + timedelta(days=1)),
    "deadline": NOON + timedelta(days=9),
    "key": "k9",
    "retry": Retry(9),
    "retries": 9,
    "errors": (FailedAttempt(attempt=9, at=NOON, err="x"),),
    "result": 9,
    "progress": Progress(fraction=0.9, at=NOON),
    "when": "x",
    "pool": "x",
}


@pytest.mark.parametrize("field", OTHERS)
def test_every_field_counts(field: str) -> None:
    """
    Two tasks that differ in one field, whichever, are not equal.
    """
    assert OTHERS.keys() == attrs.fields_dict(Task).keys()
    other = a_task(**{field: OTHERS[field]})
    assert other != TASK
    assert len({other, TASK, a_task()}) == 2
    assert getattr(other, field) == OTHERS[field]


def test_snapshots_of_different_kinds_differ() -> None:
    """
    A task does not equal anything that is no task.
    """
    others: list[object] = [PARAM, TASK.to_json(), TASK.id, None]
    assert TASK not in others
    assert len({TASK, a_task(), a_task(param={"a": 1})}) == 2


@pytest.mark.uncovered
@given(json_objects, json_objects)
def test_a_value_keeps_a_copy_of_its_own(
    param: dict[str, Json], meta: dict[str, Json]
) -> None:
    """
    What a caller does to an object after it was given changes no task.
    """
    made = [make(param=param, meta=meta) for make in (a_param, a_task, an_update)]
    query = a_query(meta=meta)
    before = exact(copy.deepcopy(param)), exact(copy.deepcopy(meta))
    for given_object in (param, meta):
        for item in list(given_object.values()):
            if isinstance(item, list | dict):
                item.clear()
        given_object["later"] = 1
    for each in made:
        assert (exact(each.param), exact(each.meta)) == before
    assert exact(query.meta) == before[1]


def test_states_say_whether_they_are_the_end() -> None:
    """
    Cancelled, done and failed tasks have ended; scheduled and dispatched ones have not.
    """
    assert {state for state in TaskState if state.ended} == {
        TaskState.CANCELLED,
        TaskState.DONE,
        TaskState.FAILED,
    }
    assert [state.value for state in TaskState] == [
        "scheduled",
        "dispatched",
        "cancelled",
        "done",
        "failed",
    ]


def test_a_task_tells_when_it_ended() -> None:
    """
    `ended_at` is when the task was done, or else cancelled, or `None`.
    """
    assert TASK.ended_at is None
    assert a_task(cancelled_at=NOON).ended_at == NOON
    assert a_task(done_at=NOON).ended_at == NOON
    assert FULL.ended_at == FULL.done_at


@pytest.mark.uncovered
@settings(max_examples=40)
@given(tasks(), names, int64s, moments)
def test_a_copy_with_changes(
    task: Task, work_id: str, priority: int, created_at: datetime
) -> None:
    """
    `evolve` gives what `attrs.evolve` gives, and leaves the task as it was.
    """
    before = copy.deepcopy(task)
    changes: dict[str, Any] = {
        "work_id": work_id,
        "priority": priority,
        "created_at": created_at,
    }
    assert evolve(task, changes) == attrs.evolve(task, **changes)
    assert hash(evolve(task, changes)) == hash(attrs.evolve(task, **changes))
    assert task == before
    assert evolve(task, {}) == task


def test_a_new_task_is_as_it_was_asked_for() -> None:
    """
    A new task has the values it is made from, and is scheduled, never yet attempted.
    """
    rare: dict[str, Any] = {"key": "k", "retry": Retry(2), "pool": "p"}
    made = new_task(attrs.evolve(PARAM, **rare), "t7", NOON - SECOND)
    assert made == Task(
        id="t7",
        work_id="greet",
        scheduled_at=NOON,
        created_at=NOON - SECOND,
        param={"rows": [1]},
        priority=1,
        deadline=NOON + SECOND,
        meta={"order": 7},
        **rare,
    )
    assert (made.state, made.attempt) == (TaskState.SCHEDULED, 0)


# -- JSON ---------------------------------------------------------------------------


@pytest.mark.uncovered
@given(tasks())
@example(FULL)
@example(a_task(scheduled_at=FIRST, created_at=FIRST, deadline=LAST))
@example(a_task(param={"n": [-0.0, 1.0, 1, True, 5e-324, 2**63 - 1]}, err=""))
@example(a_task(err="\u2028\u0085\x1c\r\n\t\x7f\ufeff😀"))
def test_json_loses_nothing(task: Task) -> None:
    """
    A task that was turned into JSON and back is the same, to the type of every number.
    """
    back = Task.from_json(task.to_json())
    assert back == task
    assert hash(back) == hash(task)
    assert exact(back.param) == exact(task.param)
    assert exact(back.meta) == exact(task.meta)
    assert back.to_json() == task.to_json()


@settings(max_examples=40)
@given(tasks())
def test_json_is_one_line_for_everybody(task: Task) -> None:
    """
    The JSON of a task is one line of UTF-8 that every reader of JSON can read.
    """
    text = task.to_json()
    assert "\n" not in text
    assert "\r" not in text
    fields = json.loads(text.encode())
    rare = {"key", "retry", "retries", "errors", "result", "progress", "when", "pool"}
    assert fields.keys() | rare == attrs.fields_dict(Task).keys()
    assert all(getattr(task, each) for each in fields.keys() & rare)
    assert fields["state"] == task.state.value
    assert datetime.fromisoformat(fields["scheduled_at"]) == task.scheduled_at


def test_json_reads_well() -> None:
    """
    The JSON of a task stays as it is: files that were written with it are read later.
    """
    assert FULL.to_json() == (
        '{"id":"t2","work_id":"greet",'
        '"param":{"name":"trio","rows":[1,2.5,null,true,{"":""}]},'
        '"meta":{"order":7},"priority":-3,"state":"failed",'
        '"err":"ValueError: no\\n\\nTraceback …","attempt":2,"interruptions":1,'
        '"at_most_once":false,'
        '"scheduled_at":"2024-02-29T12:00:00+00:00",'
        '"created_at":"2024-02-29T11:59:59+00:00",'
        '"deadline":"2024-02-29T12:00:01+00:00",'
        '"cancelled_at":"2024-02-29T12:00:02+00:00",'
        '"dispatched_at":"2024-02-29T12:00:03+00:00",'
        '"done_at":"2024-02-29T12:00:04+00:00",'
        '"schedule_id":"daily","nominal_at":"2024-02-29T11:59:58+00:00"}'
    )


def test_json_needs_no_more_than_a_task_does() -> None:
    """
    Fields that have a default may be missing; moments may be of any time zone.
    """
    text = (
        '{"id": "t1", "work_id": "greet", "created_at": "2024-02-29T12:00:00Z",'
        ' "scheduled_at": "2024-03-01T01:00:00+13:00"}'
    )
    assert Task.from_json(text) == TASK


def damaged(**values: Any) -> str:
    return json.dumps(json.loads(FULL.to_json()) | values)


BAD_JSON_MOMENTS: list[Any] = [
    "soon",
    "",
    1709208000,
    True,
    [],
    {},
    "2024-02-30T12:00:00+00:00",
]
BAD_ERROR = {"attempt": 1, "at": str(NOON), "err": None}
BAD_JSON: dict[str, list[Any]] = {
    "id": [None, "", 1, "\0", "\ud800"],
    "work_id": [None, "", 1, "\0", "\ud800"],
    "param": [[], "{}", 7, False, {"a": math.nan}, {"a": 2**63}],
    "meta": [[], "{}", 7, False, {"a": math.inf}, {"a": "\0"}],
    "priority": [None, True, 1.0, "1", 2**63, math.nan],
    "state": [None, "", "Done", "DONE", 1, [], {}, math.nan],
    "err": [1, [], "\0", "\ud800"],
    "attempt": [None, True, 1.0, "1", -1, 2**63],
    "interruptions": [None, True, 1.0, "1", -1, 2**63],
    "scheduled_at": [None, *BAD_JSON_MOMENTS, "2024-02-29T12:00:00"],
    "created_at": [None, *BAD_JSON_MOMENTS, "2024-02-29T12:00:00"],
    "deadline": [*BAD_JSON_MOMENTS, "2024-02-29T12:00:00", "2024-02-29T12:00:00Z"],
    "cancelled_at": [*BAD_JSON_MOMENTS, "0001-01-01T00:00:00+14:00"],
    "dispatched_at": [*BAD_JSON_MOMENTS, "9999-12-31T23:59:59-14:00"],
    "nominal_at": [*BAD_JSON_MOMENTS, "9999-12-31T23:59:59-14:00"],
    "schedule_id": [7, "", "nul\0"],
    "done_at": [*BAD_JSON_MOMENTS, "20240229"],
    "owner": ["me", None],
    "": [1],
    "key": [7, "", "nul\0"],
    "when": [7, ""],
    "pool": [7, "", "nul\0"],
    "retry": [7, [], {}, "often", {"max_attempts": 0}],
    "retries": [None, True, -1, 2**63],
    "errors": [None, 7, {}, "none", [7], [{}], [{"attempt": 1}], [BAD_ERROR]],
    "result": [math.nan, {"a": 2**63}, {"a": "\ud800"}],
    "progress": [7, [], {}, {"fraction": 2, "at": str(NOON)}, {"fraction": 0.5}],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in BAD_JSON.items() for value in values],
    ids=[
        f"{field}-{number}"
        for field, values in BAD_JSON.items()
        for number, _ in enumerate(values)
    ],
)
def test_a_damaged_field_is_named(field: str, value: Any) -> None:
    """
    JSON with a field that is wrong, or that tasks do not have, is refused by its name.
    """
    with pytest.raises(InvalidTaskError) as caught:
        Task.from_json(damaged(**{field: value}))
    assert caught.value.field.split(".")[0] == field


@pytest.mark.parametrize("field", ["id", "work_id", "scheduled_at", "created_at"])
def test_a_missing_field_is_named(field: str) -> None:
    """
    JSON that lacks what every task has is refused by the name of the field.
    """
    fields = json.loads(FULL.to_json())
    del fields[field]
    with pytest.raises(InvalidTaskError) as caught:
        Task.from_json(json.dumps(fields))
    assert str(caught.value) == f"{field}: is missing"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "7",
        '"task"',
        "NaN",
        "{",
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 5_000,
        "\ufeff{}",
        "{} {}",
        "\ud800",
        b"\xff\xfe\xfd",
        None,
        {},
    ],
    ids=lambda each: repr(each)[:12],
)
def test_what_is_no_task_is_refused(text: Any) -> None:
    """
    What is not JSON, or no object, is refused as a task.
    """
    with pytest.raises(InvalidTaskError) as caught:
        Task.from_json(text)
    assert caught.value.field == "task"
    assert len(str(caught.value)) < 200


def test_a_task_cut_short_is_refused() -> None:
    """
    No beginning of a task's JSON is taken for a task.
    """
    text = FULL.to_json()
    for length in range(len(text)):
        with pytest.raises(InvalidTaskError) as caught:
            Task.from_json(text[:length])
        assert caught.value.field == "task"


@pytest.mark.uncovered
@settings(max_examples=100)
@given(tasks(), st.data())
def test_damage_never_shows_as_another_error(task: Task, data: st.DataObject) -> None:
    """
    JSON with some characters exchanged is refused as an invalid task, unless it happens
    to be a task still.
    """
    text = task.to_json()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 8)))
    other = data.draw(
        texts | st.sampled_from(["null", "NaN", "-1e999", "[]", "{}", '\\ud800"', "9"])
    )
    with suppress(InvalidTaskError):
        kept = Task.from_json(text[:start] + other + text[end:])
        assert Task.from_json(kept.to_json()) == kept


# -- updates ------------------------------------------------------------------------


def test_the_sentinel_is_one_of_a_kind() -> None:
    """
    `UNCHANGED` is itself after every kind of copy, and prints as its name.
    """
    assert copy.copy(UNCHANGED) is UNCHANGED
    assert copy.deepcopy(UNCHANGED) is UNCHANGED
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(UNCHANGED, protocol)) is UNCHANGED  # noqa: S301
    assert repr(UNCHANGED) == "UNCHANGED"
    assert UNCHANGED != None  # noqa: E711 - that it is not equal is the point


@pytest.mark.uncovered
@settings(max_examples=40)
@given(tasks())
def test_an_empty_update_changes_nothing(task: Task) -> None:
    """
    An update in which nothing is given has no changes for any task.
    """
    update = TaskUpdate()
    for field in attrs.fields(TaskUpdate):
        assert getattr(update, field.name) is UNCHANGED
    assert update.changes(task) == {}


def test_none_clears() -> None:
    """
    `None` clears a deadline, and empties `param` and `meta`.
    """
    update = an_update(deadline=None, param=None, meta=None)
    assert update.changes(FULL) == {"deadline": None, "param": {}, "meta": {}}
    assert update.changes(TASK) == {}


@pytest.mark.uncovered
@settings(max_examples=60)
@given(tasks(), tasks(), st.sets(st.sampled_from(["work_id", "scheduled_at", "param"])))
@example(a_task(param={"a": 1}), a_task(param={"a": True}), {"param"})
@example(a_task(param={"a": [1]}), a_task(param={"a": [1.0]}), {"param"})
@example(a_task(meta={"a": {"b": 0}}), a_task(meta={"a": {"b": False}}), set())
def test_only_what_differs_is_changed(task: Task, other: Task, left_out: set[str]) -> None:
    """
    The changes of an update are the fields given whose values differ, as JSON has it.
    """
    names_given = [
        field.name for field in attrs.fields(TaskUpdate) if field.name not in left_out
    ]
    given_values = {name: getattr(other, name) for name in names_given}
    assert an_update(**given_values).changes(task) == {
        name: value
        for name, value in given_values.items()
        if tagged(value) != tagged(getattr(task, name))
    }
    assert an_update(**{n: getattr(task, n) for n in names_given}).changes(task) == {}


# -- queries ------------------------------------------------------------------------


@settings(max_examples=40)
@given(tasks())
def test_a_query_for_nothing_in_particular_finds_everything(task: Task) -> None:
    """
    A query in which nothing is given matches every task.
    """
    assert TaskQuery().matches(task)


def half_open(value: Any, between: tuple[Any, Any]) -> bool:
    low, high = between
    return (
        value is not None
        and (low is None or low <= value)
        and (high is None or value < high)
    )


few_moments = st.integers(0, 4).map(lambda n: NOON + n * SECOND)
moment_ranges = st.tuples(st.none() | few_moments, st.none() | few_moments)
few_objects = st.dictionaries(
    st.sampled_from("ab"), st.sampled_from([0, 1, True, 1.0, None, [1], {"a": 1}])
)


@st.composite
def similar_tasks(draw: st.DrawFn) -> Task:
    """A task of few different ones, so that queries for parts of it find some."""
    scheduled_at, deadline = draw(st.tuples(few_moments, st.none() | few_moments))
    assume(deadline is None or scheduled_at < deadline)
    return a_task(
        id=draw(st.sampled_from("abc")),
        work_id=draw(st.sampled_from("abc")),
        state=draw(st.sampled_from(TaskState)),
        priority=draw(st.integers(-1, 1)),
        meta=draw(few_objects),
        scheduled_at=scheduled_at,
        deadline=deadline,
        created_at=draw(few_moments),
        cancelled_at=draw(st.none() | few_moments),
        dispatched_at=draw(st.none() | few_moments),
        done_at=draw(st.none() | few_moments),
    )


@pytest.mark.uncovered
@settings(max_examples=200)
@given(
    similar_tasks(),
    st.fixed_dictionaries(
        {},
        optional={
            "states": st.sets(st.sampled_from(TaskState)),
            "work_ids": st.sets(st.sampled_from("abc")),
            **dict.fromkeys(MOMENTS, moment_ranges),
            "priority": st.integers(-1, 1)
            | st.tuples(
                st.none() | st.integers(-1, 2),
                st.none() | st.integers(-1, 2),
            ),
            "meta": few_objects,
        },
    ),
)
def test_a_query_finds_what_has_all_that_is_asked_for(
    task: Task, query: dict[str, Any]
) -> None:
    """
    A task is found if each field given matches: one of the states and works, a moment
    and a priority in range, low end included, and at least these entries of `meta`.
    """
    expected = True
    for field, wanted in query.items():
        if field == "states":
            expected &= task.state in wanted
        elif field == "work_ids":
            expected &= task.work_id in wanted
        elif field == "meta":
            expected &= all(
                key in task.meta and tagged(task.meta[key]) == tagged(item)
                for key, item in wanted.items()
            )
        elif isinstance(wanted, int):
            expected &= getattr(task, field) == wanted
        else:
            expected &= half_open(getattr(task, field), wanted)
    assert a_query(**query).matches(task) is expected


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({"scheduled_at": (NOON, None)}, True),
        ({"scheduled_at": (NOON + MICROSECOND, None)}, False),
        ({"scheduled_at": (None, NOON)}, False),
        ({"scheduled_at": (None, NOON + MICROSECOND)}, True),
        ({"scheduled_at": (None, None)}, True),
        ({"done_at": (None, None)}, False),
        ({"priority": 3}, True),
        ({"priority": 4}, False),
        ({"priority": (3, None)}, True),
        ({"priority": (4, None)}, False),
        ({"priority": (None, 3)}, False),
        ({"priority": (None, 4)}, True),
        ({"priority": (None, None)}, True),
        ({"meta": {}}, True),
        ({"meta": {"order": 1}}, True),
        ({"meta": {"order": 1.0}}, True),
        ({"meta": {"order": True}}, False),
        ({"meta": {"rows": [0]}}, True),
        ({"meta": {"rows": [False]}}, False),
        ({"meta": {"rows": []}}, False),
        ({"meta": {"order": 1, "other": None}}, False),
        ({"states": []}, False),
        ({"work_ids": []}, False),
    ],
    ids=str,
)
def test_the_limits_of_a_query(query: dict[str, Any], found: bool) -> None:
    """
    Of a range the low end is in and the high end is not, `None` leaves an end open; 1 and
    true are different; and in an empty collection there is nothing to be.
    """
    task = a_task(priority=3, meta={"order": 1, "rows": [0]})
    assert a_query(**query).matches(task) is found


def test_what_is_asked_for_may_come_in_any_collection() -> None:
    """
    States and work ids may be given in a list, a tuple, a set or a dict's keys.
    """
    expected = TaskQuery(states=frozenset({TaskState.DONE}), work_ids={"a"})
    for collect in (list, tuple, set, dict.fromkeys):
        query = a_query(states=collect([TaskState.DONE]), work_ids=collect(["a"]))
        assert query == expected
        assert hash(query) == hash(expected)


@settings(max_examples=40)
@given(st.lists(similar_tasks(), max_size=20))
@example([a_task(id="a", created_at=NOON + SECOND), a_task(id="b", created_at=NOON)])
@example([a_task(id="b"), a_task(id="a")])
def test_tasks_are_found_in_one_order(found: list[Task]) -> None:
    """
    Tasks are ordered by the earliest appointed time, the largest priority, the earliest
    creation and the id, so that tasks of different ids always have an order.
    """
    by_steps = sorted(found, key=lambda task: task.id)
    by_steps.sort(key=lambda task: task.created_at)
    by_steps.sort(key=lambda task: task.priority, reverse=True)
    by_steps.sort(key=lambda task: task.scheduled_at)
    assert [find_order(each) for each in sorted(found, key=find_order)] == [
        find_order(each) for each in by_steps
    ]
    for one in found:
        for other in found:
            assert (find_order(one) != find_order(other)) or one.id == other.id


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (None, None, None),
        ({"a"}, None, {"a"}),
        (None, {"a"}, {"a"}),
        ({"a", "b"}, {"b", "c"}, {"b"}),
        ({"a"}, {"b"}, set[str]()),
    ],
    ids=["any", "left", "right", "overlap", "disjoint"],
)
def test_filters_narrow_each_other(
    one: set[str] | None, other: set[str] | None, both: set[str] | None
) -> None:
    """
    Two filters together accept the tasks that either accepts alone.
    """

    def a_filter(work_ids: set[str] | None) -> TaskFilter:
        return TaskFilter(None if work_ids is None else frozenset(work_ids))

    joined = a_filter(one) & a_filter(other)
    assert joined == a_filter(both)
    for work_id in "abcd":
        task = a_task(work_id=work_id)
        assert joined.accepts(task) is (
            a_filter(one).accepts(task) and a_filter(other).accepts(task)
        )


class OddZone(tzinfo):
    def __init__(self, offset: timedelta | None) -> None:
        self.offset = offset

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        if self.offset is None:
            raise ArithmeticError("no idea")
        return self.offset

    def dst(self, dt: datetime | None) -> timedelta | None:
        return None

    def tzname(self, dt: datetime | None) -> str | None:
        return None


@pytest.mark.parametrize("zone", [OddZone(None), OddZone(timedelta(days=2))])
def test_a_broken_time_zone_is_refused(zone: tzinfo) -> None:
    """
    A moment whose time zone does not work is refused by the field it was given for.
    """
    with pytest.raises(InvalidTaskError, match=r"^deadline: has a broken time zone"):
        TaskUpdate(deadline=datetime(2030, 1, 1, tzinfo=zone))


@pytest.mark.uncovered
@pytest.mark.parametrize("field", ["state", "scheduled_at"])
@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}")])
def test_nonsense_that_nests_deeply(field: str, opens: str, closes: str) -> None:
    """
    However deep the nonsense in a line nests, as deep as JSON can just be read, too, the
    error is a clear one.
    """
    plain = json.loads(TASK.to_json())
    for depth in range(100, 1200):
        plain[field] = "@"
        line = json.dumps(plain).replace('"@"', f"{opens * depth}1{closes * depth}")
        with pytest.raises(InvalidTaskError):
            Task.from_json(line)
