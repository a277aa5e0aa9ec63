"""What will run when, known beforehand: the steps that a scheduler takes, without one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, cast

import attrs

from ._errors import InvalidTaskError, on_one_line, shown
from ._lengths import TICK
from ._recurrence import Step, ended, take
from ._schedule import Dropped, Schedule
from ._schedule_changes import first_step
from ._task import Task, TaskState, as_utc

_TAKEN = frozenset({TaskState.DISPATCHED, TaskState.FAILED})


@attrs.frozen(kw_only=True)
class Planned:
    """An occurrence of a schedule, and what becomes of it."""

    schedule_id: str
    nominal_at: datetime
    due_at: datetime
    """When it is to start: its nominal time, and its jitter."""

    runs_at: datetime | None
    """When it starts; none if it does not."""

    outcome: Literal["runs", "late", "merged", "dropped"]
    """It runs; later than it should; another one runs in its place; it does not run."""

    why: str
    """The reason, in words."""


class Plan(tuple[Planned, ...]):
    """Occurrences in the order of their moments. As text it is a table."""

    __slots__ = ()

    def __str__(self) -> str:
        head = "schedule", "nominal time", "starts", "why"
        rows = [
            (
                on_one_line(each.schedule_id),
                each.nominal_at.isoformat(" "),
                "-" if each.runs_at is None else each.runs_at.isoformat(" "),
                on_one_line(f"{each.outcome}: {each.why}"),
            )
            for each in self
        ]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True))
            for row in (head, *rows)
        ]
        return "\n".join(line.rstrip() for line in lines)


def plan(
    schedules: Iterable[Schedule],
    start: datetime,
    end: datetime,
    *,
    downtime: Iterable[tuple[datetime, datetime]] = (),
) -> Plan:
    """What schedules will have run from a moment until another, and what not, and why.

    It is what a scheduler does that has a worker for everything, and whose works take no
    time: those that do may have occurrences of their schedules skipped, or wait.

    Args:
      schedules: As `find_schedules` gives them, or made for this: then, as if they had
        been added at the start, so that what they do comes after it.
      start: The first moment.
      end: The first moment that is not of interest any more.
      downtime: From when until when no scheduler runs.

    Raises:
      InvalidTaskError: an argument cannot be used; `field` names it.
    """
    if not isinstance(schedules, Iterable):
        raise InvalidTaskError("schedules", f"must be Schedules, not {shown(schedules)}")
    if not isinstance(downtime, Iterable):
        raise InvalidTaskError("downtime", f"must be pairs, not {shown(downtime)}")
    start, end = as_utc(start, "start"), as_utc(end, "end")
    if end < start:
        raise InvalidTaskError("end", f"{end.isoformat()} is before {start.isoformat()}")
    down = sorted(_periods(downtime))
    found: list[Planned] = []
    ids: set[str] = set()
    for schedule in schedules:
        if not isinstance(schedule, Schedule):
            raise InvalidTaskError("schedules", f"must be Schedules, not {shown(schedule)}")
        if schedule.id in ids:
            raise InvalidTaskError("schedules", f"has {shown(schedule.id)} twice")
        ids.add(schedule.id)
        found += _of_one(schedule, start, end, down)
    return Plan(sorted(found, key=_order))


def _order(planned: Planned) -> tuple[datetime, datetime, str]:
    return planned.runs_at or planned.due_at, planned.nominal_at, planned.schedule_id


def _periods(
    downtime: Iterable[tuple[datetime, datetime]],
) -> Iterator[tuple[datetime, datetime]]:
    for period in downtime:
        if not isinstance(period, Sequence) or len(cast("Sequence[Any]", period)) != 2:  # noqa: PLR2004 (a pair)
            raise InvalidTaskError("downtime", "must be pairs (from, until)")
        since, until = as_utc(period[0], "downtime"), as_utc(period[1], "downtime")
        if until < since:
            raise InvalidTaskError(
                "downtime", f"ends at {until.isoformat()}, before {since.isoformat()}"
            )
        yield since, until


def _up(moment: datetime, down: Sequence[tuple[datetime, datetime]]) -> datetime:
    """The first moment from this on at which a scheduler runs."""
    for since, until in down:
        if since <= moment < until:
            moment = until
    return moment


def _of_one(
    schedule: Schedule,
    start: datetime,
    end: datetime,
    down: Sequence[tuple[datetime, datetime]],
) -> Iterator[Planned]:
    step = first_step(schedule, start, _id)
    while step.schedule is not None and (task := step.successor or step.task) is not None:
        if task.state is not TaskState.SCHEDULED:
            return
        at = _up(max(task.scheduled_at, start), down)
        if at >= end:
            return
        step = take(step.schedule, task, at, _id, at_most_once=False)
        assert step.schedule is not None
        taken = step.task
        assert taken is not None
        chosen = taken if taken.state in _TAKEN else None
        for dropped in step.dropped:
            yield from _dropped(step.schedule, dropped, chosen, start, at)
        if chosen is not None and chosen.nominal_at is not None:
            yield _ran(step.schedule, chosen, chosen.nominal_at, at)
        if taken.id == step.schedule.awaited_id:
            step = ended(step.schedule, taken, at, _id) or Step(step.schedule)


def _id(_: datetime) -> str:
    return "planned"


def _ran(schedule: Schedule, task: Task, nominal: datetime, at: datetime) -> Planned:
    due = schedule.due(nominal)
    if task.state is not TaskState.DISPATCHED:
        return Planned(
            schedule_id=schedule.id,
            nominal_at=nominal,
            due_at=due,
            runs_at=None,
            outcome="dropped",
            why=task.err or "",
        )
    late = at - due
    shift = f"shifted by {due - nominal} of jitter" if due > nominal else "on time"
    return Planned(
        schedule_id=schedule.id,
        nominal_at=nominal,
        due_at=due,
        runs_at=at,
        outcome="late" if late else "runs",
        why=f"{late} late" if late else shift,
    )


def _dropped(
    schedule: Schedule,
    dropped: Dropped,
    chosen: Task | None,
    start: datetime,
    at: datetime,
) -> Iterator[Planned]:
    nominal: datetime | None = dropped.first
    if dropped.first < start:  # what was missed before is not of interest
        nominal = schedule.following(start - TICK)
    while nominal is not None and nominal <= dropped.last:
        outcome, why = _why_dropped(schedule, dropped, chosen, at - schedule.due(nominal))
        yield Planned(
            schedule_id=schedule.id,
            nominal_at=nominal,
            due_at=schedule.due(nominal),
            runs_at=None,
            outcome=outcome,
            why=why,
        )
        nominal = schedule.following(nominal)


def _why_dropped(
    schedule: Schedule, dropped: Dropped, chosen: Task | None, late: timedelta
) -> tuple[Literal["merged", "dropped"], str]:
    tolerance = schedule.late.tolerance
    if dropped.reason == "overlap":
        return "dropped", "the one before ran still"
    if tolerance is not None and late > tolerance:
        return "dropped", f"{late} late, more than {tolerance}"
    several = schedule.late.run == "all" and schedule.overlap != "replace"
    if several or chosen is None or chosen.nominal_at is None:
        return "dropped", f"not one of the last {schedule.late.limit}"
    return "merged", f"that of {chosen.nominal_at.isoformat(' ')} is taken in its place"
