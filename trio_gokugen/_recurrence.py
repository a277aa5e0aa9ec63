"""What becomes of schedules and their occurrences: in one place, for every repository.

Each function takes a schedule as it stands, and returns a step: the schedule as it will
stand, and what becomes of tasks. Of a schedule there is one pending task at most that is
its next occurrence; when this is taken, cancelled or postponed, or when it has ended, as
the schedule has it, the one after is made. Nothing here grows with the time that has
passed: who looks for the last of many moments halves the time between, and what cannot be
counted quickly is counted up to a thousand.

    a task                            by       the next occurrence
    ------------------------------    -----    ----------------------------------------
    is taken, and runs                take     is made; or by `ended`, if it waits
    is taken, and is too late         take     is the same task, moved; or made, if it
                                               has failed by its deadline
    has ended, and was waited for     ended    is made: what fell due meanwhile is
                                               skipped, or is what is queued
    is cancelled, postponed, or       left     is made
    dispatched by its id
    is any other of the schedule      -        stays

Of most, nothing is late and nothing waits. With these `take_simply` and `follow_simply` do
the same as `take` and `follow`, for who has a schedule of its own to be changed in place:
to copy it, and to ask for all that might be, costs as much as the rest of a task's life.

What users say to a schedule is in `_schedule_changes`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal, TypeAlias

import attrs

from . import _transitions
from ._errors import InvalidTriggerError
from ._interval import Interval
from ._lengths import TICK, later
from ._schedule import (
    Dropped,
    Schedule,
    evolved,
)
from ._task import Task, TaskState, evolve, made_of

logger = logging.getLogger("trio_gokugen.schedules")

NewId: TypeAlias = Callable[[datetime], str]
"""Makes the id of a task that is made at a moment."""

MOST_COUNTED = 1_000
"""Of what is dropped, so many are counted one by one."""

_WALK = 64
"""After so many steps it is quicker to halve."""

_NONE: dict[str, Any] = {}


@attrs.define
class Step:
    """What becomes of a schedule and its tasks."""

    schedule: Schedule | None
    """None if it is removed."""

    task: Task | None = None
    """The task it was about, or the next occurrence as it was, as it will stand."""

    successor: Task | None = None
    """A new task, which is the next occurrence."""

    dropped: Sequence[Dropped] = ()


# -- an occurrence is taken -----------------------------------------------------------


def take(
    schedule: Schedule, task: Task, at: datetime, new_id: NewId, *, at_most_once: bool
) -> Step:
    """A pending task of the schedule is due, and a worker free.

    The task is dispatched, or failed as its deadline has passed; or it is not to run: then
    it is pending for a later moment, or cancelled, as there is none. If the trigger fails,
    the task does, too.
    """
    try:
        return _take(schedule, task, at, new_id, at_most_once=at_most_once)
    except InvalidTriggerError as error:
        return failed(schedule, task, at, error)


def failed(
    schedule: Schedule, task: Task, at: datetime, error: InvalidTriggerError
) -> Step:
    """The trigger has failed as a task of the schedule was taken, which has failed, too."""
    changes = {"state": TaskState.FAILED, "done_at": at, "err": _told(error)}
    return Step(_given_up(schedule, error), evolve(task, changes))


def _not_the_same() -> InvalidTriggerError:
    """A moment that has passed is none of its trigger any more."""
    what = "does not answer the same each time that it is asked, as a pure value does"
    return InvalidTriggerError("trigger", what)


def _told(error: InvalidTriggerError) -> str:
    return f"{type(error).__name__}: {error}"


def _given_up(schedule: Schedule, error: InvalidTriggerError) -> Schedule:
    """A schedule whose trigger, which is somebody's own, has failed: it has ended."""
    logger.error("schedule %r ends: %s", schedule.id, error, exc_info=error)
    return evolved(schedule, {"next_at": None, "pending_id": None, "awaited_id": None})


def _take(
    schedule: Schedule, task: Task, at: datetime, new_id: NewId, *, at_most_once: bool
) -> Step:
    first = task.nominal_at
    if task.id != schedule.pending_id or first is None:
        return _take_beside(schedule, task, at, new_id, at_most_once=at_most_once)
    waited = schedule.queued_at is not None or schedule.skipped_from is not None
    if waited and _is_queued(schedule) and not _is_in_time(schedule, first, at):
        schedule = evolved(schedule, {"queued_at": None})  # it is late now, as any other
    choice = _choose(schedule, first, at)
    chosen, following = choice.chosen, choice.following
    dropped: list[Dropped] = []
    changes: dict[str, Any] = {"last_at": chosen}
    if waited or chosen is not first or choice.more is not None:
        dropped = what_is_dropped(schedule, first, choice)
        changes |= counted(schedule, dropped)
    if chosen is None:
        changes["last_at"] = dropped[-1].last
        step = moved(evolved(schedule, changes), task, following, at)
        return Step(step.schedule, step.task, None, dropped)
    if chosen != first:
        task = _merged(schedule, task, chosen, at)
    task = _transitions.dispatched(
        _conditioned(schedule, task), at, at_most_once=at_most_once
    )
    if task.state is TaskState.DISPATCHED:
        changes["runs"] = schedule.runs + 1
        if schedule.waits_for_end:
            changes |= {"next_at": following, "pending_id": None, "awaited_id": task.id}
            changes |= _late_until(schedule, following, at)
            return Step(evolved(schedule, changes), task, None, dropped)
    if _catches_up(schedule):
        changes |= _late_until(schedule, following, at)
    if following is None and schedule.after == "end":
        following = schedule.following(at)
    step = planned(schedule, following, at, new_id, changes)
    return Step(step.schedule, task, step.successor, dropped)


_TIMES = "nominal_at", "scheduled_at", "deadline"


def _merged(schedule: Schedule, task: Task, chosen: datetime, at: datetime) -> Task:
    """The task as that of another moment that has passed."""
    merged = occurrence(schedule, chosen, task.id, task.created_at)
    if merged.scheduled_at > at:
        raise _not_the_same()
    return evolve(task, {field: getattr(merged, field) for field in _TIMES})


def take_simply(
    schedule: Schedule, task: Task, at: datetime, *, at_most_once: bool
) -> Task | None:
    """What `take` does with most occurrences, at a third of the cost.

    The schedule is changed in place, so it must be nobody else's. None, and no change, if
    it is not so simple.

    Returns:
      The task, dispatched. The next occurrence is made when it has ended.

    Raises:
      InvalidTriggerError: see `failed`.
    """
    first = task.nominal_at
    if (
        not schedule.is_simple
        or first is None
        or schedule.pending_id != task.id
        or schedule.queued_at is not None
        or schedule.skipped_from is not None
        or task.deadline is not None
        or task.when is not None
    ):
        return None
    following = schedule.next_after(first)
    if following is not None and following <= at:
        return None  # it is late, and the last of several may run
    taken = _transitions.dispatched(task, at, at_most_once=at_most_once)
    fields = schedule.__dict__
    fields["last_at"] = first
    fields["next_at"] = following
    fields["runs"] += 1
    fields["pending_id"] = None
    fields["awaited_id"] = task.id
    return taken


def _take_beside(
    schedule: Schedule, task: Task, at: datetime, new_id: NewId, *, at_most_once: bool
) -> Step:
    """A task of the schedule that is not the next occurrence."""
    task = _transitions.dispatched(task, at, at_most_once=at_most_once)
    schedule = _noted(schedule, task)
    step = ended(schedule, task, at, new_id) if task.state.ended else None
    if step is None:
        return Step(schedule, task)
    return Step(step.schedule, task, step.successor)


def _conditioned(schedule: Schedule, task: Task) -> Task:
    """The task, with the condition of its schedule: who made it may have known of none."""
    if task.when == schedule.when:
        return task
    return evolve(task, {"when": schedule.when})


def _is_queued(schedule: Schedule) -> bool:
    """Whether the next occurrence has waited for the end of the one before."""
    return schedule.queued_at is not None and schedule.overlap == "queue"


def _catches_up(schedule: Schedule) -> bool:
    """Whether those that were late as one was taken run one after the other."""
    return schedule.queued_at is not None and schedule.overlap == "skip"


def _late_until(
    schedule: Schedule, following: datetime | None, at: datetime
) -> dict[str, Any]:
    """What changes if the next one was late already as the first of them was taken.

    It has not fallen due while that runs, and what does so is not late.
    """
    if following is None or following > at:
        return _NONE
    if _catches_up(schedule):
        at = schedule.queued_at or at
    return {"queued_at": at} if has_passed(schedule, following, at) else {}


def replaces(schedule: Schedule, taken: Task) -> bool:
    """Whether what was taken takes the place of all that runs of the schedule.

    Args:
      schedule: As it stood before.
      taken: A task of it, as `take` has left it.
    """
    return (
        schedule.overlap == "replace"
        and taken.state is TaskState.DISPATCHED
        and taken.id == schedule.pending_id
    )


@attrs.define
class Choice:
    """Which of the occurrences whose time has passed runs."""

    chosen: datetime | None
    following: datetime | None
    """The next one then."""

    more: datetime | None = None
    """The first of those between the two, which don't run."""


def _choose(schedule: Schedule, first: datetime, at: datetime) -> Choice:
    in_time = _is_in_time(schedule, first, at)
    if schedule.after == "end":
        return Choice(first, None) if in_time else Choice(None, schedule.following(at))
    following, until = schedule.following(first), schedule.queued_at or at
    if _is_queued(schedule):
        return _choose_queued(schedule, first, following, until)
    if not has_passed(schedule, following, until):
        return Choice(first if in_time else None, following)
    if in_time and schedule.late.run == "all" and _catches_up(schedule):
        return Choice(first, following)  # of the few that were chosen before
    return _choose_of_several(schedule, first, at, until, in_time=in_time)


def _choose_of_several(
    schedule: Schedule, first: datetime, at: datetime, until: datetime, *, in_time: bool
) -> Choice:
    """Of those that have passed until then."""
    last = latest(schedule, first, until)
    following = schedule.following(last)
    if not _is_in_time(schedule, last, at):
        return Choice(None, following)
    run_all = schedule.late.run == "all"
    # Where each replaces the one before, the last one is all that would be left.
    if schedule.late.run in {"latest", "none"} or (
        run_all and schedule.overlap == "replace"
    ):
        return Choice(last, following)
    earliest = first if in_time else _first_in_time(schedule, first, at)
    if run_all:
        chosen = _first_of_few(schedule, earliest, last)
        return Choice(chosen, schedule.following(chosen))
    more = None if earliest == last else schedule.following(earliest)
    return Choice(earliest, following, more)


def _choose_queued(
    schedule: Schedule, first: datetime, following: datetime | None, waited: datetime
) -> Choice:
    """What has waited runs, and nothing that fell due while it did."""
    if not has_passed(schedule, following, waited):
        return Choice(first, following)
    last = latest(schedule, first, waited)
    return Choice(first, schedule.following(last), following)


def _is_in_time(schedule: Schedule, nominal: datetime, at: datetime) -> bool:
    tolerance = schedule.late.tolerance
    if tolerance is None:
        return True
    since = schedule.due(nominal)
    if _is_queued(schedule) and schedule.queued_at is not None:
        since = max(since, schedule.queued_at)
    return at - since <= tolerance


def has_passed(schedule: Schedule, nominal: datetime | None, at: datetime) -> bool:
    # What is due is not before what is meant; and jitter takes a while to be told.
    return nominal is not None and nominal <= at and schedule.due(nominal) <= at


def latest(schedule: Schedule, first: datetime, at: datetime) -> datetime:
    """The last of those that have passed, of which `first` is one."""
    known: tuple[datetime | None, datetime] = schedule.__dict__.get(
        "_latest", (None, first)
    )
    until, last = known
    if until != at or last < first:
        last = _last(schedule, first, at, schedule.due, _WALK)
        # It is asked for again with each of those that run then.
        schedule.__dict__["_latest"] = at, last
    return last


def _last(
    schedule: Schedule,
    first: datetime,
    until: datetime,
    time_of: Callable[[datetime], datetime],
    walk: int = 0,
) -> datetime:
    """The last nominal time whose time is not later, of which `first` is one."""
    last = first
    for _ in range(walk):
        following = schedule.following(last)
        if following is None or time_of(following) > until:
            return last
        last = following
    too_late = until  # and whatever comes after it
    while too_late - last > TICK:
        middle = last + (too_late - last) // 2
        following = schedule.following(middle)
        if following is not None and time_of(following) <= until:
            last = following
        else:
            too_late = middle
    following = schedule.following(last)
    if following is not None and time_of(following) <= until:
        return following
    return last


def _nominal(moment: datetime) -> datetime:
    return moment


def _first_in_time(schedule: Schedule, first: datetime, at: datetime) -> datetime:
    """The first that is in time, if `first` is not, and there is one."""
    assert schedule.late.tolerance is not None
    too_late = latest(schedule, first, at - schedule.late.tolerance - TICK)
    following = schedule.following(too_late)
    if following is None:
        raise _not_the_same()
    return following


def _first_of_few(schedule: Schedule, earliest: datetime, last: datetime) -> datetime:
    """The first of the last few, up to the limit, from `earliest` to `last`."""
    limit = schedule.late.limit
    known: tuple[datetime | None, datetime, int]
    known = schedule.__dict__.get("_few", (None, last, 0))
    known_last, first, count = known
    if known_last != last or (count < limit and first > earliest):
        few = _last_few(schedule, earliest, last, limit)
        first, count = few[0], len(few)
        # As above: of the few that were found, those that are left are looked for next.
        schedule.__dict__["_few"] = last, first, count
    return max(first, earliest)


def _last_few(
    schedule: Schedule, earliest: datetime, last: datetime, limit: int
) -> list[datetime]:
    """The last nominal times from `earliest` to `last`, up to the limit.

    They are looked for in one span of time after another, from the end. Each is double as
    long as the one before; or half, if that has far too many.
    """
    few, low, span = [last], last, TICK
    while low > earliest and len(few) < limit:
        start = max(low - span, earliest)
        found = _between(schedule, start, low, 2 * limit)
        if found is None:
            span = (low - start) // 2
            continue
        few[:0] = found
        low, span = start, min(2 * span, last - earliest)
    return few[-limit:]


def _between(
    schedule: Schedule, start: datetime, end: datetime, most: int
) -> list[datetime] | None:
    """The nominal times from `start` on and before `end`; none if they are too many."""
    found: list[datetime] = []
    following = schedule.following(start - TICK)
    while following is not None and following < end:
        if len(found) == most:
            return None
        found.append(following)
        following = schedule.following(following)
    return found


# -- what is dropped ------------------------------------------------------------------


def what_is_dropped(schedule: Schedule, first: datetime, choice: Choice) -> list[Dropped]:
    """What does not run, of what was to run before the next occurrence."""
    why: Literal["late", "overlap"] = "overlap" if _is_queued(schedule) else "late"
    found = uncounted(schedule)
    if choice.chosen is None:
        # Of what is counted from ends there is but one at a time.
        until = first + TICK if schedule.after == "end" else choice.following
        found.append(_counted(schedule, why, first, until))
    elif choice.chosen > first:
        found.append(_counted(schedule, why, first, choice.chosen))
    if choice.more is not None:
        found.append(_counted(schedule, why, choice.more, choice.following))
    return found


def counted(schedule: Schedule, dropped: Sequence[Dropped]) -> dict[str, Any]:
    """The fields of a schedule that change, if these are all that was to be counted."""
    if not dropped and schedule.queued_at is None:
        return _NONE
    count = schedule.dropped + sum(each.count for each in dropped)
    return {"dropped": count, "queued_at": None, "skipped_from": None}


def uncounted(schedule: Schedule) -> list[Dropped]:
    """What was skipped while a run went on, which is counted with the next one."""
    first = schedule.skipped_from
    if first is None:
        return []
    try:
        return [_counted(schedule, "overlap", first, schedule.next_at)]
    except InvalidTriggerError:
        # At least this one. Who wants to be rid of a trigger that fails must get there.
        one = Dropped(
            schedule_id=schedule.id, reason="overlap", count=1, first=first, last=first
        )
        return [one]


def _counted(
    schedule: Schedule,
    reason: Literal["late", "overlap"],
    first: datetime,
    until: datetime | None,
) -> Dropped:
    """All from a nominal time until another, which is none of them."""
    count, last = 1, first
    while count < MOST_COUNTED:
        following = schedule.following(last)
        if following is None or (until is not None and following >= until):
            break
        count, last = count + 1, following
    else:
        if until is not None:
            last = _last(schedule, last, until - TICK, _nominal)
        if isinstance(schedule.trigger, Interval):
            count = (last - first) // schedule.trigger.every + 1
    return Dropped(
        schedule_id=schedule.id, reason=reason, count=count, first=first, last=last
    )


# -- the next occurrence --------------------------------------------------------------


def planned(
    schedule: Schedule,
    nominal: datetime | None,
    at: datetime,
    new_id: NewId,
    changes: dict[str, Any] = _NONE,
) -> Step:
    """This one is to be the next; with other changes of the schedule."""
    if nominal is None or schedule.paused:
        changes = {**changes, "next_at": nominal, "pending_id": None}
        return Step(evolved(schedule, changes))
    task = occurrence(schedule, nominal, new_id(at), at)
    changes = {**changes, "next_at": nominal, "pending_id": task.id}
    return Step(evolved(schedule, changes), None, task)


def occurrence(
    schedule: Schedule, nominal: datetime, task_id: str, created_at: datetime
) -> Task:
    due = schedule.due(nominal)
    return evolve(
        schedule.like,
        {
            "id": task_id,
            "nominal_at": nominal,
            "scheduled_at": due,
            "deadline": deadline_of(schedule, due),
            "created_at": created_at,
        },
    )


def deadline_of(schedule: Schedule, due: datetime) -> datetime | None:
    """The deadline of an occurrence that is to start then."""
    after = schedule.deadline_after
    return None if after is None else later(due, after)


def moved(schedule: Schedule, task: Task, nominal: datetime | None, at: datetime) -> Step:
    """The task that is the next occurrence is that of another moment; or of none."""
    if nominal is None:
        schedule = evolved(schedule, {"next_at": None, "pending_id": None})
        return Step(schedule, _transitions.cancelled(task, at))
    schedule = evolved(schedule, {"next_at": nominal, "pending_id": task.id})
    return Step(schedule, occurrence(schedule, nominal, task.id, task.created_at))


def left(schedule: Schedule, task_id: str, at: datetime, new_id: NewId) -> Step | None:
    """A task is taken out of the plan. None if it was not the next occurrence."""
    nominal = schedule.next_at
    if schedule.pending_id != task_id or nominal is None:
        return None
    following, dropped = schedule.following(nominal), uncounted(schedule)
    if schedule.queued_at is not None and _is_queued(schedule):
        choice = _choose_queued(schedule, nominal, following, schedule.queued_at)
        following, dropped = choice.following, what_is_dropped(schedule, nominal, choice)
    changes = {"last_at": nominal, **counted(schedule, dropped)}
    if _catches_up(schedule):
        changes |= _late_until(schedule, following, at)
    return planned(schedule, following, at, new_id, changes)


def follow_simply(schedule: Schedule, task: Task, new_id: NewId) -> Task | None:
    """What `follow` does with the ends of most occurrences, at a third of the cost.

    The schedule is changed in place, so it must be nobody else's. None, and no change, if
    it is not so simple.

    Returns:
      The next occurrence.
    """
    nominal, at = schedule.next_at, task.done_at
    if (
        not schedule.is_simple
        or nominal is None
        or at is None
        or nominal <= at
        or schedule.awaited_id != task.id
        or schedule.queued_at is not None
        or schedule.paused
        or not task.state.ended
    ):
        return None
    task_id = new_id(at)
    fields = schedule.__dict__
    fields["pending_id"] = task_id
    fields["awaited_id"] = None
    changed = schedule.like.__dict__.copy()
    changed["id"] = task_id
    changed["nominal_at"] = changed["scheduled_at"] = nominal
    changed["created_at"] = at
    return made_of(changed)


def follow(
    schedule: Schedule, task: Task, new_id: NewId, at: datetime | None = None
) -> Step | None:
    """A task of it was changed, or has ended. None if that does not change the plan.

    Args:
      schedule: As it stands.
      task: As it was left.
      new_id: Makes ids.
      at: When it was changed, if the task does not say so itself.
    """
    if task.state is TaskState.DISPATCHED:
        at = task.dispatched_at
    noted = _noted(schedule, task)
    try:
        step = _follow(noted, task, task.ended_at or at or task.created_at, new_id)
    except InvalidTriggerError as error:
        return Step(_given_up(noted, error))
    return Step(noted) if step is None and noted is not schedule else step


_RAN = TaskState.DONE, TaskState.FAILED


def _noted(schedule: Schedule, task: Task) -> Schedule:
    """The schedule, which knows its last run that was done or has failed."""
    if schedule.when is None or task.state not in _RAN or not task.attempt:
        return schedule
    return evolved(schedule, {"ended_id": task.id})


def _follow(schedule: Schedule, task: Task, at: datetime, new_id: NewId) -> Step | None:
    if task.state.ended and task.id == schedule.awaited_id:
        return ended(schedule, task, at, new_id)
    if task.state is TaskState.SCHEDULED:
        nominal = task.nominal_at
        if nominal is not None and task.scheduled_at == schedule.due(nominal):
            return None  # not postponed
    if task.state is TaskState.DISPATCHED and task.id == schedule.pending_id:
        schedule = evolved(schedule, {"runs": schedule.runs + 1})
    return left(schedule, task.id, at, new_id)


def ended(schedule: Schedule, task: Task, at: datetime, new_id: NewId) -> Step | None:
    """A task has ended. None if the next occurrence has not waited for it."""
    if schedule.awaited_id != task.id:
        return None
    changes: dict[str, Any] = {"awaited_id": None}
    if schedule.after == "end":
        return planned(schedule, schedule.following(at), at, new_id, changes)
    following = schedule.next_at
    if schedule.queued_at is not None:
        if not _catches_up(schedule):
            changes["queued_at"] = None  # it was late before
    elif following is not None and has_passed(schedule, following, at):
        if schedule.overlap == "queue":
            changes["queued_at"] = at
        else:
            skipped = following
            following = schedule.following(latest(schedule, following, at))
            if following is None:
                count = _counted(schedule, "overlap", skipped, None).count
                changes["dropped"] = schedule.dropped + count
            else:
                changes["skipped_from"] = skipped
    return planned(schedule, following, at, new_id, changes)
