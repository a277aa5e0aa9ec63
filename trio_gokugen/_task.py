"""Tasks, and what one makes and changes them with. Knows nothing of Trio.

A value of these classes cannot be wrong: whatever is not a moment, an id or JSON is
refused when it is made, with an error that names the field. Nothing downstream checks
again.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, TypeVar, cast

import attrs

from ._errors import InvalidTaskError, shown
from ._json import (
    JSON,
    count,
    int64,
    json_object,
    json_value,
    name,
    name_or_none,
    pool_or_none,
    same,
    text,
    truth,
)
from ._retry import Retry, retry_from_data


class TaskState(enum.Enum):
    """Where a task is in its life."""

    ended: bool
    """Whether nothing more will happen to the task."""

    SCHEDULED = "scheduled"
    DISPATCHED = "dispatched"
    CANCELLED = "cancelled"
    DONE = "done"
    FAILED = "failed"

    def __init__(self, value: str) -> None:
        self.ended = value not in {"scheduled", "dispatched"}


ENDED = frozenset(state for state in TaskState if state.ended)


class Unchanged(enum.Enum):
    """The type of `UNCHANGED`, which leaves a field of a task as it is."""

    UNCHANGED = enum.auto()

    def __repr__(self) -> str:
        return self.name


UNCHANGED: Literal[Unchanged.UNCHANGED] = Unchanged.UNCHANGED

T = TypeVar("T")
Maybe: TypeAlias = T | Literal[Unchanged.UNCHANGED]


# -- checks -------------------------------------------------------------------------


def as_utc_or_none(value: datetime | None, field: str) -> datetime | None:
    """`as_utc`, where there need be no moment."""
    return None if value is None else as_utc(value, field)


def as_utc(value: datetime, field: str) -> datetime:
    """An aware moment in UTC, or an `InvalidTaskError` that names the field."""
    if not isinstance(value, datetime):
        raise InvalidTaskError(
            field, f"must be an aware datetime, not a value of type {kind_of(value)}"
        )
    if value.tzinfo is UTC and type(value) is datetime:
        return value
    try:
        naive = value.utcoffset() is None
    except Exception as error:
        raise InvalidTaskError(field, f"has a broken time zone: {shown(error)}") from error
    if naive:
        raise InvalidTaskError(
            field, "is a naive datetime: give it a time zone, datetime.UTC for example"
        )
    try:
        utc = value.astimezone(UTC)
    except OverflowError:
        raise InvalidTaskError(
            field, "leaves the years 1 to 9999 when turned to UTC"
        ) from None
    # Of a subclass, the moment that it is: nothing else would come back from a store.
    return datetime.combine(utc.date(), utc.timetz(), UTC)


def _text_or_none(value: str | None, field: str) -> str | None:
    return None if value is None else text(value, field)


def _state(value: TaskState, field: str) -> TaskState:
    if not isinstance(value, TaskState):
        raise InvalidTaskError(
            field, f"must be a TaskState, not a value of type {kind_of(value)}"
        )
    return value


def _retry(value: object, field: str) -> Retry | None:
    """A policy that can be stored with a task."""
    if value is not None and not isinstance(value, Retry):
        raise InvalidTaskError(
            field, f"must be a Retry, not a value of type {kind_of(value)}"
        )
    if value is not None:
        value.to_data()
    return value


def _errors(value: object, field: str) -> tuple[FailedAttempt, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise InvalidTaskError(field, "must be FailedAttempts")
    found = tuple(cast("Sequence[object]", value))
    if not all(isinstance(each, FailedAttempt) for each in found):
        raise InvalidTaskError(field, "must be FailedAttempts")
    return cast("tuple[FailedAttempt, ...]", found)[-KEPT_ERRORS:]


def _progress(value: object, field: str) -> Progress | None:
    if value is not None and not isinstance(value, Progress):
        raise InvalidTaskError(
            field, f"must be a Progress, not a value of type {kind_of(value)}"
        )
    return value


def _fraction(value: float, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidTaskError(field, f"must be a number from 0 to 1, not {shown(value)}")
    return float(value)


def _note(value: str | None, field: str) -> str | None:
    note = _text_or_none(value, field)
    if note is not None and len(note) > LONGEST_NOTE:
        raise InvalidTaskError(field, f"must not be longer than {LONGEST_NOTE} characters")
    return note


_CHECKS: Mapping[str, Callable[[Any, str], object]] = {
    "id": name,
    "work_id": name,
    "schedule_id": name_or_none,
    "nominal_at": as_utc_or_none,
    "param": json_object,
    "meta": json_object,
    "priority": int64,
    "state": _state,
    "err": _text_or_none,
    "attempt": count,
    "interruptions": count,
    "at_most_once": truth,
    "scheduled_at": as_utc,
    "created_at": as_utc,
    "deadline": as_utc_or_none,
    "cancelled_at": as_utc_or_none,
    "dispatched_at": as_utc_or_none,
    "done_at": as_utc_or_none,
    "key": name_or_none,
    "when": name_or_none,
    "pool": pool_or_none,
    "retry": _retry,
    "retries": count,
    "errors": _errors,
    "result": json_value,
    "progress": _progress,
    "at": as_utc,
    "fraction": _fraction,
    "note": _note,
}
"""What makes of a value given for a field the one that is kept, or refuses it."""


def empty() -> Mapping[str, JSON]:
    return {}


def keep(instance: object, field: str, check: Callable[[Any, str], object]) -> None:
    """Have a field of a frozen instance checked, and hold what is to be kept."""
    value = getattr(instance, field)
    kept = check(value, field)
    if kept is not value:
        object.__setattr__(instance, field, kept)


def setter_of_fields(kind: type) -> Callable[[Any, dict[str, Any]], None]:
    """What gives a frozen instance, which is new, the dict of all its fields."""
    # The descriptor itself, which `object.__setattr__` would look for each time.
    setter: Callable[[Any, dict[str, Any]], None] = vars(kind)["__dict__"].__set__
    return setter


def check_deadline(scheduled_at: datetime, deadline: datetime | None) -> None:
    """Raise `InvalidTaskError` for a deadline that leaves no time to start in."""
    if deadline is not None and deadline <= scheduled_at:
        raise InvalidTaskError(
            "deadline",
            f"{deadline.isoformat()} is not after scheduled_at, {scheduled_at.isoformat()}",
        )


def kind_of(value: object) -> str:
    return type(value).__name__


# -- the classes --------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class TaskParam:
    """What a new task is made from."""

    work_id: str
    """Name the work is registered under."""

    scheduled_at: datetime
    """Earliest moment the work may start. Must be aware; kept in UTC."""

    param: Mapping[str, JSON] = attrs.field(factory=empty, hash=False)
    """What the work is called with, as keyword arguments: a JSON object."""

    priority: int = 0
    """Among tasks due at the same moment, the larger goes first. 64 bits."""

    deadline: datetime | None = None
    """Moment from which on the task must not start, and running work is cancelled."""

    meta: Mapping[str, JSON] = attrs.field(factory=empty, hash=False)
    """A JSON object of the user's own: searched, never passed to the work."""

    id: str | None = None
    """An id of the user's own, which makes a repeated add safe; otherwise a UUIDv7."""

    key: str | None = None
    """Among tasks that have not ended, no two have the same."""

    retry: Retry | None = None
    """Whether it is tried again if it fails; by default as its work says."""

    pool: str | None = None
    """The pool it runs in; by default the one that is for its work."""

    def __attrs_post_init__(self) -> None:
        for field, check in _PARAM_CHECKS:
            keep(self, field, check)
        if self.key is not None:
            keep(self, "key", _CHECKS["key"])
        if self.pool is not None:
            keep(self, "pool", _CHECKS["pool"])
        if self.retry is not None:
            keep(self, "retry", _retry)
        check_deadline(self.scheduled_at, self.deadline)


_PARAM_CHECKS = tuple(
    (field.name, _CHECKS[field.name] if field.name != "id" else name_or_none)
    for field in attrs.fields(TaskParam)
    if field.name not in {"key", "retry", "pool"}  # which few have
)


LONGEST_NOTE = 1_000
"""Characters of a note on progress."""


@attrs.frozen(kw_only=True)
class Progress:
    """How far a run has come, as its work has told."""

    fraction: float
    """From 0 to 1."""

    note: str | None = None
    """A few words."""

    at: datetime
    """When it was told."""

    def __attrs_post_init__(self) -> None:
        for field in ("fraction", "note", "at"):
            keep(self, field, _CHECKS[field])

    def to_data(self) -> dict[str, JSON]:
        """It as JSON values."""
        return {"fraction": self.fraction, "note": self.note, "at": self.at.isoformat()}


@attrs.frozen(kw_only=True)
class FailedAttempt:
    """An attempt that has failed, and after which the task was tried again."""

    attempt: int
    at: datetime
    """When it had failed."""

    err: str

    def __attrs_post_init__(self) -> None:
        for field in ("attempt", "at", "err"):
            keep(self, field, _CHECKS[field])
        if not isinstance(self.err, str):
            raise InvalidTaskError("err", "must be a string")

    def to_data(self) -> dict[str, JSON]:
        """It as JSON values."""
        return {"attempt": self.attempt, "at": self.at.isoformat(), "err": self.err}


KEPT_ERRORS = 10
"""So many failed attempts are kept with a task, the last ones."""


# A plain dict inside, not slots: a copy with changes is made twice in every task's life,
# and merging two dicts costs a tenth of what `attrs.evolve` does.
@attrs.frozen(kw_only=True, slots=False)
class Task:
    """One run of one work at its appointed time, as it stood when it was read.

    A snapshot: to change a task, ask the scheduler, and get a new snapshot back.
    """

    id: str
    """Sorts in the order the tasks were added, unless it is the user's own."""

    work_id: str
    """Name the work is registered under. Looked up once a worker is free."""

    param: Mapping[str, JSON] = attrs.field(factory=empty, hash=False)
    """What the work is called with: a private copy, read-only to the type checker."""

    meta: Mapping[str, JSON] = attrs.field(factory=empty, hash=False)
    """A JSON object of the user's own: searched, never passed to the work."""

    priority: int = 0
    """Among tasks due at the same moment, the larger goes first."""

    state: TaskState = TaskState.SCHEDULED

    err: str | None = None
    """Why a failed task failed: type, message and a bounded traceback."""

    attempt: int = 0
    """How often the task has been dispatched."""

    interruptions: int = 0
    """How many of these attempts were cut short by a shutdown or a crash."""

    at_most_once: bool = False
    """Whether the attempt, if it is lost, must not be repeated: the task fails instead."""

    scheduled_at: datetime
    """Earliest moment the work may start. Aware, in UTC."""

    created_at: datetime

    deadline: datetime | None = None
    """Moment from which on the task must not start, and running work is cancelled."""

    cancelled_at: datetime | None = None

    dispatched_at: datetime | None = None
    """When the current attempt was handed to a worker, or the last one was."""

    done_at: datetime | None = None
    """When the task ended, done or failed."""

    schedule_id: str | None = None
    """The schedule that it is a run of."""

    nominal_at: datetime | None = None
    """The moment that the schedule meant; none if it was told to run now."""

    key: str | None = None
    """Among tasks that have not ended, no two have the same."""

    retry: Retry | None = None
    """Whether it is tried again if it fails; by default as its work says."""

    retries: int = 0
    """How many attempts have failed and were followed by another."""

    errors: tuple[FailedAttempt, ...] = ()
    """Those attempts, the last ten of them."""

    result: JSON = attrs.field(default=None, hash=False)
    """What the work returned, if it is registered with `retain`."""

    progress: Progress | None = None
    """How far its work has come, as that has told last."""

    when: str | None = None
    """The condition that is asked before its work runs."""

    pool: str | None = None
    """The pool it runs in; by default the one that is for its work."""

    def __attrs_post_init__(self) -> None:
        for field in _IN_ORDER:
            keep(self, field, _CHECKS[field])
        # Not by another dict: this one shares its keys with those of other tasks.
        for field, default in _SPARSE.items():
            if self.__dict__[field] == default:
                del self.__dict__[field]
        check_deadline(self.scheduled_at, self.deadline)

    @property
    def ended_at(self) -> datetime | None:
        """When the task ended, in whatever state."""
        return self.cancelled_at if self.done_at is None else self.done_at

    def to_json(self) -> str:
        """The task as one line of JSON, moments in ISO 8601. Nothing is lost."""
        return json.dumps(
            {
                key: _plain(value)
                for key in _IN_ORDER
                if (value := getattr(self, key)) != _SPARSE.get(key, UNCHANGED)
            },
            ensure_ascii=False,
            allow_nan=False,
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, line: str) -> Task:
        """The task that `to_json` wrote.

        Raises:
          InvalidTaskError: if it is not JSON, or not a task; `field` names the culprit.
        """
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError, TypeError) as error:
            raise InvalidTaskError("task", f"is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise InvalidTaskError("task", "must be a JSON object")
        values = cast("dict[str, Any]", fields)
        if unknown := values.keys() - _FIELDS:
            raise InvalidTaskError(min(unknown), "is not a field of a task")
        if missing := _REQUIRED - values.keys():
            raise InvalidTaskError(min(missing), "is missing")
        return cls(**{key: _read(key, value) for key, value in values.items()})


_IN_ORDER = tuple(field.name for field in attrs.fields(Task))
_FIELDS = frozenset(_IN_ORDER)
_SPARSE: Mapping[str, Any] = {
    "key": None,
    "retry": None,
    "retries": 0,
    "errors": (),
    "result": None,
    "progress": None,
    "when": None,
    "pool": None,
}
"""Fields that few tasks have, and what they are if they are not there.

Held by an instance only if they are something else: other tasks have an empty place for
each, of eight bytes, and are copied as fast as without.
"""
for _field, _default in _SPARSE.items():
    setattr(Task, _field, _default)
_REQUIRED = frozenset(
    field.name for field in attrs.fields(Task) if field.default is attrs.NOTHING
)
MOMENTS = frozenset(
    (
        "scheduled_at",
        "created_at",
        "deadline",
        "cancelled_at",
        "dispatched_at",
        "done_at",
        "nominal_at",
    )
)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, TaskState):
        return value.value
    if isinstance(value, Retry | Progress | FailedAttempt):
        return value.to_data()
    if isinstance(value, tuple):
        return errors_to_data(cast("tuple[FailedAttempt, ...]", value))
    return value


def _read(key: str, value: Any) -> Any:
    if key in _NESTED and value is not None:
        return _NESTED[key](value)
    if key == "state":
        try:
            return TaskState(value)
        except (ValueError, RecursionError):
            raise InvalidTaskError(key, f"{shown(value)} is not a task's state") from None
    if (key in MOMENTS or key == "at") and value is not None:
        try:
            return datetime.fromisoformat(value)
        except (ValueError, TypeError):
            raise InvalidTaskError(key, f"{shown(value)} is not a moment") from None
    return value


def _object(value: Any, field: str, kind: type[T]) -> T:
    """What `_plain` has made of such an object."""
    try:
        return kind(**{key: _read(key, each) for key, each in value.items()})
    except InvalidTaskError as error:
        raise InvalidTaskError(f"{field}.{error.field}", error.reason) from None
    except (TypeError, AttributeError):
        raise InvalidTaskError(field, f"cannot be read: {shown(value)}") from None


def progress_from_data(value: Any) -> Progress:
    """What is stored of a `Progress`."""
    return _object(value, "progress", Progress)


def errors_to_data(errors: Sequence[FailedAttempt]) -> list[JSON]:
    """A task's `errors` as JSON values."""
    return [each.to_data() for each in errors]


def errors_from_data(value: Any) -> tuple[FailedAttempt, ...]:
    """What is stored of a task's `errors`."""
    if not isinstance(value, list):
        raise InvalidTaskError("errors", "must be a list")
    found = cast("list[object]", value)
    return tuple(_object(each, "errors", FailedAttempt) for each in found)


_NESTED: Mapping[str, Callable[[Any], Any]] = {
    "progress": progress_from_data,
    "errors": errors_from_data,
    "retry": retry_from_data,
}


_set_fields = setter_of_fields(Task)


def evolve(task: Task, changes: dict[str, Any]) -> Task:
    """The task with some fields changed, their values taken on trust.

    For values that have been checked before, on the hot path. Ten times as fast as
    `attrs.evolve`, which checks everything anew.
    """
    new = object.__new__(Task)
    _set_fields(new, task.__dict__ | changes)
    return new


def made_of(fields: dict[str, Any]) -> Task:
    """The task with these fields, which are all that it has, taken on trust.

    Where a task is changed most often, its `__dict__` is copied, changed and given to this:
    that takes a third less than `evolve`, as there is no dict of the changes.
    """
    new = object.__new__(Task)
    _set_fields(new, fields)
    return new


_BLANK = Task(
    id="blank",
    work_id="blank",
    scheduled_at=datetime(1970, 1, 1, tzinfo=UTC),
    created_at=datetime(1970, 1, 1, tzinfo=UTC),
)


RunKey: TypeAlias = tuple[str, int, datetime]


def run_key(run: Task) -> RunKey:
    """What tells a run from all others, those of another task of its id included.

    An id may be used again once its task is forgotten, and a run that had lost the task
    may go on meanwhile.
    """
    return run.id, run.attempt, run.created_at


def new_task(param: TaskParam, task_id: str, created_at: datetime) -> Task:
    """The scheduled task that `param`, checked when it was made, describes."""
    fields = _BLANK.__dict__.copy()
    fields["id"] = task_id
    fields["work_id"] = param.work_id
    fields["scheduled_at"] = param.scheduled_at
    fields["created_at"] = created_at
    # Private copies were made by `TaskParam`, but it may be used many times.
    fields["param"] = param.param
    fields["meta"] = param.meta
    fields["priority"] = param.priority
    fields["deadline"] = param.deadline
    fields["key"] = param.key
    fields["retry"] = param.retry
    fields["pool"] = param.pool
    return made_of(fields)


# A plain dict inside, which is made and looked through faster than slots.
@attrs.frozen(kw_only=True, slots=False)
class TaskUpdate:
    """What is to change of a scheduled task.

    A field left `UNCHANGED` stays as it is; `None` clears a deadline, empties `param` or
    `meta`, and leaves the pool to the work.
    """

    work_id: Maybe[str] = UNCHANGED
    scheduled_at: Maybe[datetime] = UNCHANGED
    param: Maybe[Mapping[str, JSON] | None] = attrs.field(default=UNCHANGED, hash=False)
    priority: Maybe[int] = UNCHANGED
    deadline: Maybe[datetime | None] = UNCHANGED
    meta: Maybe[Mapping[str, JSON] | None] = attrs.field(default=UNCHANGED, hash=False)
    pool: Maybe[str | None] = UNCHANGED

    def __attrs_post_init__(self) -> None:
        for field, value in self.__dict__.items():
            if value is not UNCHANGED:
                keep(self, field, _CHECKS[field])

    def changes(self, task: Task) -> dict[str, Any]:
        """The fields of `task` that would get another value, with that value."""
        return {
            field: new
            for field, new in self.__dict__.items()
            if new is not UNCHANGED and not equal(new, getattr(task, field))
        }


def equal(one: Any, other: Any) -> bool:
    """Whether two values of a field are the same: as JSON, if they are that."""
    return same(cast("JSON", one), other) if isinstance(one, dict) else bool(one == other)
