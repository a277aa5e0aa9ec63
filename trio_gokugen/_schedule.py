"""Schedules: rules by which a work runs again and again. Knows nothing of Trio."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast, get_args

import attrs

from ._errors import InvalidTaskError, InvalidTriggerError, RefusedError, shown
from ._interval import Interval
from ._json import JSON, count, int64, json_object, name, name_or_none, pool_or_none, truth
from ._lengths import TICK, later, length
from ._lengths import jitter as as_jitter
from ._task import (
    UNCHANGED,
    Maybe,
    Task,
    as_utc,
    as_utc_or_none,
    empty,
    evolve,
    keep,
    setter_of_fields,
)
from ._trigger import Trigger, not_later

Catch: TypeAlias = Literal["latest", "earliest", "all", "none"]
Overlap: TypeAlias = Literal["skip", "queue", "allow", "replace"]
After: TypeAlias = Literal["start", "end"]

MOST_LATE = 1_000
"""So many occurrences that have passed can run."""

ON_TIME = timedelta(seconds=1)
"""What starts so late is on time, if nothing late is to run."""

_FRACTIONS = 2**64
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
_BLANK = Task(id="blank", work_id="blank", scheduled_at=_LONG_AGO, created_at=_LONG_AGO)


def _window(value: float | timedelta | None) -> timedelta | None:
    return None if value is None else length(value, "window")


def _deadline_after(value: float | timedelta | None) -> timedelta | None:
    return None if value is None else length(value, "deadline_after")


def _positive(value: int, field: str) -> int:
    if int64(value, field) < 1:
        raise InvalidTaskError(field, "must be at least 1")
    return value


def _limit(value: int, field: str) -> int:
    if _positive(value, field) > MOST_LATE:
        raise InvalidTaskError(field, f"must be at most {MOST_LATE}, not {shown(value)}")
    return value


def one_of(value: object, kind: Any, field: str) -> None:
    """Raise an `InvalidTaskError` for what is none of some words."""
    words: tuple[str, ...] = get_args(kind)
    if not isinstance(value, str) or value not in words:
        known = ", ".join(map(repr, words))
        raise InvalidTaskError(field, f"must be one of {known}, not {shown(value)}")


@attrs.frozen(kw_only=True)
class Late:
    """What becomes of occurrences whose time has passed.

    The program was down, or every worker busy. What is dropped is counted, and told to the
    hook `on_dropped`.

    Raises:
      InvalidTaskError: names the argument that cannot be used.
    """

    window: timedelta | None = attrs.field(default=None, converter=_window)
    """What is later than this does not run; `None` for any lateness. Or in seconds."""

    run: Catch = "latest"
    """Of several that have passed: the last one, the first, each, or none.

    With ``"none"``, one that is no later than `window`, or a second, is on time.
    """

    limit: int = 100
    """With ``"all"``: at most so many, the last ones. Not more than 1,000."""

    def __attrs_post_init__(self) -> None:
        one_of(self.run, Catch, "run")
        keep(self, "limit", _limit)

    @property
    def tolerance(self) -> timedelta | None:
        """What is later than this does not run."""
        return ON_TIME if self.window is None and self.run == "none" else self.window

    def to_data(self) -> dict[str, JSON]:
        """It as JSON values; the window in seconds."""
        window = None if self.window is None else self.window.total_seconds()
        return {"window": window, "run": self.run, "limit": self.limit}


@attrs.frozen(kw_only=True)
class Dropped:
    """Occurrences of a schedule that do not run."""

    schedule_id: str
    reason: Literal["late", "overlap"]
    count: int
    """How many; of more than a thousand, at least so many."""

    first: datetime
    """The nominal time of the first of them."""

    last: datetime


_Asked: TypeAlias = tuple[tuple[datetime, datetime | None], ...]


# A plain dict inside, not slots: a copy with changes is made with each occurrence.
@attrs.frozen(kw_only=True, slots=False)
class Schedule:
    """A rule by which a work runs again and again, as it stood when it was read."""

    id: str
    trigger: Trigger
    """When it runs: the nominal times of its occurrences."""

    work_id: str
    param: Mapping[str, JSON] = attrs.field(factory=empty, hash=False)
    meta: Mapping[str, JSON] = attrs.field(factory=empty, hash=False)
    priority: int = 0

    deadline_after: timedelta | None = attrs.field(default=None, converter=_deadline_after)
    """So long after it was to start, an occurrence must not start, and is cancelled."""

    jitter: timedelta = attrs.field(default=timedelta(0), converter=as_jitter)
    """Each occurrence starts by a part of this later than its nominal time.

    The part is the same whenever it is asked for, and never reaches the next one.
    """

    late: Late = Late()
    overlap: Overlap = "skip"
    """What becomes of an occurrence that falls due while the one before runs.

    It is skipped; or waits for the end, one at a time; or runs beside the other; or
    replaces it, which is cancelled.
    """

    after: After = "start"
    """Whether an interval is counted from occurrence to occurrence, or from their ends."""

    when: str | None = None
    """The condition that is asked before an occurrence runs."""

    pool: str | None = None
    """The pool its occurrences run in; by default the one that is for their work."""

    paused: bool = False

    created_at: datetime
    next_at: datetime | None = None
    """The nominal time of the next occurrence; none if there is none any more."""

    last_at: datetime | None = None
    """The nominal time of the last occurrence that ran, or was cancelled or postponed.

    If all that had passed were dropped, it is that of the last of them.
    """

    runs: int = 0
    """How many occurrences of its plan have been dispatched.

    Neither those that were postponed, nor those that were told to run now.
    """

    dropped: int = 0
    """How many were not, as their time had passed, or the one before was running."""

    pending_id: str | None = None
    """The id of the task that is the next occurrence."""

    awaited_id: str | None = None
    """The id of the task whose end the next occurrence waits for."""

    queued_at: datetime | None = None
    """Until when the next occurrence has waited for the one before to end.

    Or, where it does not wait: when it began to catch up on those that are late.
    """

    skipped_from: datetime | None = None
    """The nominal time of the first that fell due while the one before was running."""

    ended_id: str | None = None
    """With a condition: the id of its last run that was done or has failed."""

    def __attrs_post_init__(self) -> None:
        for field, check in _CHECKS.items():
            keep(self, field, check)
        for field, words in ("overlap", Overlap), ("after", After):
            one_of(getattr(self, field), words, field)
        if not isinstance(self.late, Late):
            raise InvalidTaskError(
                "late", f"must be a Late, as Late(run='none'), not {shown(self.late)}"
            )
        if self.after == "end" and not isinstance(self.trigger, Interval):
            raise InvalidTaskError("after", "'end' is for an Interval only")
        if self.deadline_after == timedelta(0):
            raise InvalidTaskError("deadline_after", "must be more than nothing")
        _ = self.is_simple  # told now, as it is asked for with each occurrence

    @property
    def definition(self) -> dict[str, Any]:
        """What its user has said, by field."""
        return {field: getattr(self, field) for field in DEFINITION}

    @property
    def waits_for_end(self) -> bool:
        """Whether the next occurrence is made when the one before has ended."""
        return self.after == "end" or self.overlap in {"skip", "queue"}

    @cached_property
    def is_simple(self) -> bool:
        """Whether an occurrence just runs when it is due, and the next waits for its end.

        At its nominal time, however late, with no deadline and no condition.
        """
        # Nothing but its definition counts: so copies that are `evolved` have it, too.
        return (
            self.after == "start"
            and self.waits_for_end
            and not self.jitter
            and self.deadline_after is None
            and self.late.tolerance is None
            and self.when is None
        )

    @cached_property
    def like(self) -> Task:
        """What all its occurrences have in common, as a task."""
        common = {
            "schedule_id": self.id,
            "work_id": self.work_id,
            "param": self.param,
            "meta": self.meta,
            "priority": self.priority,
        }
        rare = {"when": self.when, "pool": self.pool}
        common |= {field: value for field, value in rare.items() if value is not None}
        return evolve(_BLANK, common)

    # -- its moments --------------------------------------------------------------------

    def following(self, moment: datetime) -> datetime | None:
        """The first nominal time after the moment."""
        if self.after == "end":
            try:
                return moment + cast("Interval", self.trigger).every
            except OverflowError:
                return None
        if not self.jitter:
            return self.next_after(moment)
        asked: _Asked = self.__dict__.get("_asked", ())
        for asked_for, found in asked:
            if asked_for == moment:
                return found
        found = self.next_after(moment)
        # A trigger is a pure value, and with jitter each of its moments is asked for again
        # and again, as no occurrence may reach the next one.
        self.__dict__["_asked"] = (moment, found), *asked[:1]
        return found

    def next_after(self, moment: datetime) -> datetime | None:
        """What the trigger, which may be somebody's own, answers: checked.

        Raises:
          InvalidTriggerError: it fails, or gives what is no later moment.
        """
        try:
            found = self.trigger.next_after(moment)
            if found is None:
                return None
            if type(found) is not datetime or found.tzinfo is not UTC:
                found = as_utc(found, "moment")
        except Exception as error:
            what = f"next_after({moment.isoformat()}) has failed: {shown(error)}"
            raise InvalidTriggerError("trigger", what) from error
        if found <= moment:
            raise InvalidTriggerError("trigger", not_later(moment, found))
        return found

    def due(self, nominal: datetime) -> datetime:
        """When an occurrence is to start: its nominal time and its jitter."""
        if not self.jitter:
            return nominal
        following = self.following(nominal)
        room = self.jitter if following is None else min(self.jitter, following - nominal)
        seed = f"{self.id}\n{nominal.isoformat()}".encode()
        part = int.from_bytes(hashlib.sha256(seed).digest()[:8], "big")
        return later(nominal, room // TICK * part // _FRACTIONS * TICK) or nominal


class FoundSchedules(list[Schedule]):
    """Schedules, and beside them those that are there, too, but cannot be read."""

    def __init__(self, schedules: Iterable[Schedule] = ()) -> None:
        super().__init__(schedules)
        self.unreadable: dict[str, RefusedError] = {}
        """By id, what `get_schedule` would raise."""


_set_fields = setter_of_fields(Schedule)


def evolved(schedule: Schedule, changes: dict[str, Any]) -> Schedule:
    """The schedule with some fields changed, taken on trust; nothing of its definition.

    What is remembered of that beside the fields is copied, too.
    """
    new = object.__new__(Schedule)
    _set_fields(new, schedule.__dict__ | changes)
    return new


def copied(schedule: Schedule) -> Schedule:
    """A schedule of its own that is the same."""
    return evolved(schedule, {})


DEFINITION = (
    "trigger",
    "work_id",
    "param",
    "meta",
    "priority",
    "deadline_after",
    "jitter",
    "late",
    "overlap",
    "after",
    "when",
    "pool",
)
"""The fields that a user says, and may change."""


def _trigger(value: object, field: str) -> object:
    if isinstance(value, type) or not isinstance(value, Trigger):
        raise InvalidTriggerError(
            field, f"{shown(value)} is not a trigger: make one, as Cron('0 9 * * *')"
        )
    return value


_CHECKS: dict[str, Any] = {
    "id": name,
    "trigger": _trigger,
    "work_id": name,
    "param": json_object,
    "meta": json_object,
    "priority": int64,
    "when": name_or_none,
    "pool": pool_or_none,
    "paused": truth,
    "created_at": as_utc,
    "next_at": as_utc_or_none,
    "last_at": as_utc_or_none,
    "runs": count,
    "dropped": count,
    "pending_id": name_or_none,
    "awaited_id": name_or_none,
    "queued_at": as_utc_or_none,
    "skipped_from": as_utc_or_none,
    "ended_id": name_or_none,
}


@attrs.frozen(kw_only=True)
class ScheduleUpdate:
    """What is to change of a schedule. A field left `UNCHANGED` stays as it is."""

    trigger: Maybe[Trigger] = UNCHANGED
    work_id: Maybe[str] = UNCHANGED
    param: Maybe[Mapping[str, JSON] | None] = attrs.field(default=UNCHANGED, hash=False)
    meta: Maybe[Mapping[str, JSON] | None] = attrs.field(default=UNCHANGED, hash=False)
    priority: Maybe[int] = UNCHANGED
    deadline_after: Maybe[timedelta | float | None] = UNCHANGED
    jitter: Maybe[timedelta | float] = UNCHANGED
    late: Maybe[Late] = UNCHANGED
    overlap: Maybe[Overlap] = UNCHANGED
    after: Maybe[After] = UNCHANGED
    when: Maybe[str | None] = UNCHANGED
    pool: Maybe[str | None] = UNCHANGED

    def __attrs_post_init__(self) -> None:
        if self.trigger is not UNCHANGED:
            _trigger(self.trigger, "trigger")

    def changed(self, schedule: Schedule) -> Schedule:
        """The schedule with the changes; checked.

        Raises:
          InvalidTaskError, InvalidTriggerError: a value cannot be used.
        """
        given = {
            field: value
            for field in DEFINITION
            if (value := getattr(self, field)) is not UNCHANGED
        }
        return attrs.evolve(schedule, **given)


# -- what users say, as data ----------------------------------------------------------


@attrs.define(eq=False)
class PutSchedule:
    """Keep a schedule; or, if there is one of its id, have that changed to be like it."""

    schedule: Schedule
    at: datetime

    @property
    def schedule_id(self) -> str:
        return self.schedule.id


@attrs.define(eq=False)
class UpdateSchedule:
    """Change what is said of a schedule."""

    schedule_id: str
    update: ScheduleUpdate
    at: datetime


@attrs.define(eq=False)
class PauseSchedule:
    """Let nothing of a schedule run until it is resumed, but for what runs already."""

    schedule_id: str
    at: datetime


@attrs.define(eq=False)
class ResumeSchedule:
    """Let a schedule that was paused run again."""

    schedule_id: str
    at: datetime
    catch_up: bool = False
    """Whether what fell into the pause is late; otherwise it is dropped."""


@attrs.define(eq=False)
class TriggerSchedule:
    """Have the work of a schedule run now, beside its plan."""

    schedule_id: str
    at: datetime


@attrs.define(eq=False)
class RemoveSchedule:
    """Forget a schedule, and cancel its next occurrence."""

    schedule_id: str
    at: datetime


ChangeSchedule: TypeAlias = (
    PutSchedule
    | UpdateSchedule
    | PauseSchedule
    | ResumeSchedule
    | TriggerSchedule
    | RemoveSchedule
)


@attrs.define
class ScheduleChanged:
    """What a change of a schedule has led to."""

    schedule: Schedule | None
    """As it now stands; none if it was removed."""

    changed: bool
    """Whether it has changed anything."""

    task: Task | None = None
    """The task that was to be its next occurrence, if that has changed, or ended."""

    made: Task | None = None
    """A new task."""

    dropped: list[Dropped] = attrs.field(factory=list[Dropped])
