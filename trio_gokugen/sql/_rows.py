"""Tasks as rows, and rows as tasks."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from trio_gokugen._errors import InvalidTaskError
from trio_gokugen._json import JSON, json_value, name
from trio_gokugen._retry import retry_from_data
from trio_gokugen._task import (
    Task,
    TaskState,
    errors_from_data,
    errors_to_data,
    evolve,
    made_of,
    progress_from_data,
)

from ._schema import EPOCH, TASK

FIELDS = (
    "id",
    "work_id",
    "param",
    "meta",
    "priority",
    "state",
    "err",
    "attempt",
    "interruptions",
    "at_most_once",
    "scheduled_at",
    "created_at",
    "deadline",
    "cancelled_at",
    "dispatched_at",
    "done_at",
    "schedule_id",
    "nominal_at",
)
"""The fields of a task, each a column."""

RARE = "unique_key", "rare", "result", "progress", "pool"
"""Columns of what few tasks have, and are read apart."""

COLUMNS = [
    TASK.c.sequence,
    TASK.c.dispatched_by,
    *(TASK.c[each] for each in (*FIELDS, *RARE)),
]
"""What is read of a row."""

_FLAGS = {0: False, 1: True}
_STATES = {state.value: state for state in TaskState}
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "work_id": (str,),
    "param": (dict,),
    "meta": (dict,),
    "priority": (int,),
    "state": (TaskState,),
    "err": (str, type(None)),
    "attempt": (int,),
    "interruptions": (int,),
    "at_most_once": (bool,),
    "scheduled_at": (datetime,),
    "created_at": (datetime,),
    **dict.fromkeys(
        ("deadline", "cancelled_at", "dispatched_at", "done_at", "nominal_at"),
        (datetime, type(None)),
    ),
    "schedule_id": (str, type(None)),
}
_readable: set[tuple[type, ...]] = set()
"""The types of the fields of tasks that could be read."""

_BLANK = Task(id="blank", work_id="blank", scheduled_at=EPOCH, created_at=EPOCH)


def task_of(row: Row[Any]) -> Task:
    """The task of a row that begins with `COLUMNS`. One that can't be read has failed."""
    values: tuple[Any, ...] = row[2:]
    # As in `FIELDS`; said one by one, it takes a third less than to go through the names.
    fields: dict[str, Any] = {
        "id": values[0],
        "work_id": values[1],
        "param": values[2],
        "meta": values[3],
        "priority": values[4],
        "state": _STATES.get(values[5]),
        "err": values[6],
        "attempt": values[7],
        "interruptions": values[8],
        "at_most_once": _FLAGS.get(values[9]),
        "scheduled_at": values[10],
        "created_at": values[11],
        "deadline": values[12],
        "cancelled_at": values[13],
        "dispatched_at": values[14],
        "done_at": values[15],
        "schedule_id": values[16],
        "nominal_at": values[17],
    }
    # There are few ways for all to be as it should: asked of each value, it takes longer.
    types = tuple(map(type, fields.values()))
    if types not in _readable:
        if any(type(value) not in _TYPES[field] for field, value in fields.items()):
            return _unreadable(fields)
        _readable.add(types)
    rare = values[_COMMON:_ALL]
    if rare == _NOTHING_RARE:
        return made_of(fields)
    for column, value, nothing in zip(RARE, rare, _NOTHING_RARE, strict=True):
        if value == nothing:
            continue
        try:
            fields |= _READ[column](value)
        except InvalidTaskError:
            return _failed(fields, column)
    return made_of(fields)


_COMMON = len(FIELDS)
_ALL = _COMMON + len(RARE)
_NOTHING_RARE = (None, None, None, None, "")


def _key(value: Any) -> dict[str, Any]:
    return {"key": name(value, "key")}


def _result(value: Any) -> dict[str, Any]:
    return {"result": json_value(value, "result")}


def _progress(value: Any) -> dict[str, Any]:
    return {"progress": progress_from_data(value)}


def _pool(value: Any) -> dict[str, Any]:
    return {"pool": name(value, "pool")}


def _said_in(rare: Any) -> dict[str, Any]:
    """What `_rare` has made a column of."""
    try:
        retry, retries, when = rare["retry"], rare["retries"], rare["when"]
        errors = errors_from_data(rare["errors"])
    except (TypeError, KeyError):
        raise InvalidTaskError("rare", "is not what was written") from None
    if type(retries) is not int or not 0 <= retries < 2**63:
        raise InvalidTaskError("rare", "is not what was written")
    when = None if when is None else name(when, "when")
    retry = None if retry is None else retry_from_data(retry)
    said = {"retry": retry, "retries": retries, "errors": errors, "when": when}
    return {field: value for field, value in said.items() if value}


_READ: dict[str, Callable[[Any], dict[str, Any]]] = {
    "unique_key": _key,
    "rare": _said_in,
    "result": _result,
    "progress": _progress,
    "pool": _pool,
}
"""What makes fields of a column that few tasks have, or an `InvalidTaskError`."""


def _rare(task: Task) -> JSON:
    """What few tasks have, as it is stored; nothing for others."""
    if not (task.retry or task.retries or task.errors or task.when):
        return None
    return {
        "retry": None if task.retry is None else task.retry.to_data(),
        "retries": task.retries,
        "errors": errors_to_data(task.errors),
        "when": task.when,
    }


def is_unreadable(row: Row[Any], task: Task) -> bool:
    """Whether the task is what was made of a row that cannot be read."""
    return task.state is TaskState.FAILED and row.state != TaskState.FAILED.value


def _unreadable(fields: dict[str, Any]) -> Task:
    """What can be told of a task that cannot be read: it has failed."""
    return _failed(
        fields, *(f for f, value in fields.items() if type(value) not in _TYPES[f])
    )


def _failed(fields: dict[str, Any], *damaged: str) -> Task:
    good = {f: value for f, value in fields.items() if f not in damaged}
    ended_at = good.get("done_at") or good.get("created_at", EPOCH)
    err = f"the stored task cannot be read: {', '.join(damaged)} is damaged"
    failed = {"state": TaskState.FAILED, "err": err, "done_at": ended_at}
    return evolve(_BLANK, good | failed)


def plan_of(task: Task) -> dict[str, Any]:
    """The columns that an update changes."""
    return {
        "work_id": task.work_id,
        "scheduled_at": task.scheduled_at,
        "priority": task.priority,
        "deadline": task.deadline,
        "param": task.param,
        "meta": task.meta,
        "nominal_at": task.nominal_at,
        "rare": _rare(task),
        "pool": task.pool or "",
    }


def new_row(task: Task, owner: str | None) -> dict[str, Any]:
    """All columns of a new row."""
    # Nobody knows how long what was added as running has been: its lease is over.
    running = task.state is TaskState.DISPATCHED
    return {
        "id": task.id,
        "created_at": task.created_at,
        "schedule_id": task.schedule_id,
        **plan_of(task),
        **life_of(task),
        "dispatched_by": owner,
        "lease_until": task.scheduled_at if running else None,
        "unique_key": task.key,
        **progress_of(task),
    }


def with_progress(task: Task, stored: Any) -> Task:
    """The task, with what is stored of how far it has come, if that can be read."""
    try:
        return evolve(task, {"progress": progress_from_data(stored)})
    except InvalidTaskError:
        return task


def progress_of(task: Task) -> dict[str, Any]:
    """The column that says how far a run has come."""
    return {"progress": None if task.progress is None else task.progress.to_data()}


def end_of(task: Task) -> dict[str, Any]:
    """The columns that the end of a run, or of a task, changes."""
    return {
        "state": task.state.value,
        "err": task.err,
        "cancelled_at": task.cancelled_at,
        "done_at": task.done_at,
        "ended_at": (task.ended_at or task.created_at) if task.state.ended else None,
        "result": task.result,
    }


def life_of(task: Task) -> dict[str, Any]:
    """The columns that say where a task is in its life, but for who runs it."""
    return {
        **end_of(task),
        "attempt": task.attempt,
        "interruptions": task.interruptions,
        "at_most_once": int(task.at_most_once),
        "dispatched_at": task.dispatched_at,
    }


END = tuple(end_of(_BLANK))
LIFE = tuple(life_of(_BLANK))
PLAN = tuple(plan_of(_BLANK))
