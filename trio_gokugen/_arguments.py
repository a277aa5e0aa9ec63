"""What a scheduler is told, checked at the call: each refusal names the argument."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Literal, TypeAlias, get_args

from ._errors import InvalidTaskError, shown
from ._json import JSON, name
from ._retry import Retry
from ._schedule import Schedule
from ._task import Task, TaskParam, as_utc
from .abc import IfExists, RecoverAction

Recover: TypeAlias = Literal["revert", "fail", "leave"]

_IF_EXISTS = get_args(IfExists)


def new_param(
    now: datetime,
    work_id: str,
    param: Mapping[str, JSON] | None,
    at: datetime | None,
    after: float | timedelta | None,
    priority: int,
    deadline: datetime | None,
    meta: Mapping[str, JSON] | None,
    id: str | None,
    key: str | None = None,
    retry: Retry | None = None,
    pool: str | None = None,
) -> TaskParam:
    if at is None and after is None:
        raise InvalidTaskError("at", "is missing: give a moment, at, or seconds, after")
    if at is not None and after is not None:
        raise InvalidTaskError("at", "was given together with after: choose one")
    if callable(work_id):
        raise InvalidTaskError("work_id", "must be the name of a work, not the work itself")
    return TaskParam(
        work_id=work_id,
        scheduled_at=moment_after(now, after) if at is None else as_utc(at, "at"),
        param={} if param is None else param,
        priority=priority,
        deadline=deadline,
        meta={} if meta is None else meta,
        id=id,
        key=key,
        retry=retry,
        pool=pool,
    )


def moment_after(now: datetime, after: float | timedelta | None) -> datetime:
    seconds = after.total_seconds() if isinstance(after, timedelta) else after
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidTaskError("after", f"must be a number of seconds, not {shown(after)}")
    if not 0 <= seconds < math.inf:
        raise InvalidTaskError(
            "after", f"must be finite and not negative, not {shown(after)}"
        )
    try:
        return now + timedelta(seconds=seconds)
    except OverflowError:
        raise InvalidTaskError("after", "leads beyond the year 9999") from None


def check_part(part: object, protocol: type, argument: str) -> None:
    """Raise a `TypeError` that names the argument, unless it has what the Protocol asks."""
    if isinstance(part, type):
        raise TypeError(f"{argument}: must be an instance, not the class {part.__name__}")
    # Not `isinstance`, which from Python 3.12 on does not see what `__getattr__` gives.
    asked = {name for each in protocol.__mro__ for name in vars(each) if name[0] != "_"}
    if missing := sorted(name for name in asked if not hasattr(part, name)):
        raise TypeError(
            f"{argument}: must be an abc.{protocol.__name__}, and {shown(part)} has no"
            f" {missing[0]}{_hint(part, argument)}"
        )


def _hint(part: object, argument: str) -> str:
    """What is to be done instead, if that can be guessed."""
    if hasattr(part, "__aenter__"):
        return f"; enter it first: async with ... as {argument}"
    if argument == "repository" and isinstance(part, str):
        return "; trio_gokugen.sql.open_sql_repository makes one of a URL"
    return ""


def checked_id(value: object, field: str = "task_id") -> str:
    """The id of a task, if that is what the field is for, or else of a schedule."""
    wanted = "task" if field == "task_id" else "schedule"
    if isinstance(value, Task | Schedule):
        given = type(value).__name__.lower()
        other = {"task": "schedule.pending_id", "schedule": "task.schedule_id"}
        instead = f"{given}.id" if given == wanted else other[wanted]
        raise InvalidTaskError(field, f"must be the id of a {wanted}: give {instead}")
    return name(value, field)


def checked_grace(grace: float | timedelta) -> float:
    seconds = grace.total_seconds() if isinstance(grace, timedelta) else grace
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"grace: must be a number of seconds, not {shown(grace)}")
    if not seconds >= 0:
        raise ValueError(f"grace: must be 0 or more seconds, not {shown(grace)}")
    # An int may be larger than any float: that is as good as for ever.
    return float(min(seconds, sys.float_info.max)) if seconds < math.inf else math.inf


def recover_action(recover: Recover) -> RecoverAction:
    try:
        return RecoverAction(recover)
    except ValueError:
        raise ValueError(
            f"recover: must be 'revert', 'fail' or 'leave', not {shown(recover)}"
        ) from None


def check_if_exists(if_exists: IfExists) -> None:
    if not isinstance(if_exists, str) or if_exists not in _IF_EXISTS:
        raise InvalidTaskError(
            "if_exists",
            f"must be 'raise', 'return' or 'replace', not {shown(if_exists)}",
        )


def check_key(param: TaskParam, if_exists: IfExists) -> None:
    if param.key is None and if_exists != "raise":
        raise InvalidTaskError("if_exists", "is of no use without a key: give one")


def check_limit(limit: int | None) -> None:
    if limit is None:
        return
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit: must be an int, not {shown(limit)}")
    if limit < 1:
        raise ValueError(f"limit: must be at least 1, not {shown(limit)}")
