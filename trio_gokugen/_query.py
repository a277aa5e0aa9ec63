"""What one looks for tasks with, checked when it is made."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sized
from datetime import datetime
from typing import Any, TypeAlias, TypeGuard, TypeVar, cast

import attrs

from ._errors import InvalidTaskError
from ._json import JSON, int64, json_object, same, text
from ._task import MOMENTS, Task, TaskState, as_utc_or_none, empty, keep, kind_of

T = TypeVar("T")

Moments: TypeAlias = tuple[datetime | None, datetime | None]
"""Since when (inclusive) and until when (exclusive); `None` leaves an end open."""


def _is_pair(value: object) -> TypeGuard[tuple[Any, Any]]:
    # `Sized`, as the elements of a plain `tuple` are unknown to type checkers.
    return isinstance(value, tuple) and len(cast("Sized", value)) == 2  # noqa: PLR2004 (a pair)


def _range(value: Moments | None, field: str) -> Moments | None:
    if value is None:
        return None
    if not _is_pair(value):
        raise InvalidTaskError(field, "must be a pair (since, until)")
    return as_utc_or_none(value[0], field), as_utc_or_none(value[1], field)


def _states(value: Collection[TaskState] | None, field: str) -> object:
    states = _elements(value, field)
    if states is not None and not all(isinstance(each, TaskState) for each in states):
        raise InvalidTaskError(field, "must hold only TaskState")
    return states


def _texts(value: Collection[str] | None, field: str) -> object:
    texts = _elements(value, field)
    return texts and frozenset(text(each, field) for each in texts)


def _elements(value: Collection[T] | None, field: str) -> frozenset[T] | None:
    if value is None:
        return None
    # Text is a collection of letters, which nobody means.
    if isinstance(value, str) or not isinstance(value, Collection):
        raise InvalidTaskError(
            field, f"must be a set, not a value of type {kind_of(value)}"
        )
    try:
        return frozenset(value)
    except TypeError as error:
        raise InvalidTaskError(field, str(error)) from None


def _priority(value: object, field: str) -> object:
    if value is None:
        return None
    if not _is_pair(value):
        return int64(value, field)
    low, high = value
    return (
        None if low is None else int64(low, field),
        None if high is None else int64(high, field),
    )


@attrs.frozen(kw_only=True)
class TaskQuery:
    """Which tasks are looked for. A field left out does not narrow the search."""

    ids: Collection[str] | None = None
    states: Collection[TaskState] | None = None
    work_ids: Collection[str] | None = None
    schedule_ids: Collection[str] | None = None
    keys: Collection[str] | None = None
    pools: Collection[str] | None = None
    """The pools that tasks name."""

    scheduled_at: Moments | None = None
    created_at: Moments | None = None
    deadline: Moments | None = None
    cancelled_at: Moments | None = None
    dispatched_at: Moments | None = None
    done_at: Moments | None = None
    nominal_at: Moments | None = None

    priority: int | tuple[int | None, int | None] | None = None
    """One value, or a pair (low, high) of which low is included and high is not.

    `None` leaves an end open.
    """

    meta: Mapping[str, JSON] = attrs.field(factory=empty, hash=False)
    """Entries that a task's `meta` must have, equal as JSON; it may have others."""

    def __attrs_post_init__(self) -> None:
        for field in _QUERIED:
            keep(self, field, _range)
        keep(self, "states", _states)
        keep(self, "ids", _texts)
        keep(self, "work_ids", _texts)
        keep(self, "schedule_ids", _texts)
        keep(self, "keys", _texts)
        keep(self, "pools", _texts)
        keep(self, "priority", _priority)
        keep(self, "meta", json_object)

    def matches(self, task: Task) -> bool:
        """Whether `task` is one of those looked for."""
        return (
            (self.ids is None or task.id in self.ids)
            and (self.states is None or task.state in self.states)
            and (self.work_ids is None or task.work_id in self.work_ids)
            and (self.schedule_ids is None or task.schedule_id in self.schedule_ids)
            and (self.keys is None or task.key in self.keys)
            and (self.pools is None or task.pool in self.pools)
            and all(
                _within(getattr(task, field), between)
                for field in _QUERIED
                if (between := getattr(self, field)) is not None
            )
            and self._matches_priority(task.priority)
            and all(
                key in task.meta and same(value, task.meta[key])
                for key, value in self.meta.items()
            )
        )

    def _matches_priority(self, priority: int) -> bool:
        if self.priority is None:
            return True
        if isinstance(self.priority, int):
            return priority == self.priority
        low, high = self.priority
        return (low is None or low <= priority) and (high is None or priority < high)


_QUERIED = tuple(field.name for field in attrs.fields(TaskQuery) if field.name in MOMENTS)


def _within(moment: datetime | None, between: Moments) -> bool:
    since, until = between
    return (
        moment is not None
        and (since is None or since <= moment)
        and (until is None or moment < until)
    )


def find_order(task: Task) -> tuple[datetime, int, datetime, str]:
    """What `find` sorts by: a total order that a snapshot alone gives, for its pages."""
    return task.scheduled_at, -task.priority, task.created_at, task.id
