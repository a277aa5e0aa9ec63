"""Most occurrences are simple: what is done with them in short is as at length."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import noon

from trio_gokugen import (
    Cron,
    HeapRepository,
    Interval,
    InvalidTriggerError,
    Late,
    Schedule,
    Task,
    TaskState,
)
from trio_gokugen._recurrence import failed, follow, follow_simply, take, take_simply
from trio_gokugen._schedule import PauseSchedule, PutSchedule, copied
from trio_gokugen._task import evolve

EVERY = timedelta(seconds=10)
SIMPLE = Schedule(
    id="s",
    trigger=Interval(EVERY),
    work_id="w",
    created_at=noon(0),
    next_at=noon(10),
    pending_id="next",
)
AWAITING = attrs.evolve(SIMPLE, pending_id=None, awaited_id="next", runs=1)
PENDING = evolve(
    SIMPLE.like, {"id": "next", "nominal_at": noon(10), "scheduled_at": noon(10)}
)
DONE = evolve(
    PENDING,
    {
        "state": TaskState.DONE,
        "attempt": 1,
        "dispatched_at": noon(11),
        "done_at": noon(9),
    },
)


def new_id(moment: datetime) -> str:
    return f"made at {moment.isoformat()}"


def taken_alike(schedule: Schedule, task: Task, at: datetime) -> bool:
    """Whether an occurrence is taken simply. If so, it is as at length."""
    mine = copied(schedule)
    taken = take_simply(mine, task, at, at_most_once=True)
    step = take(schedule, task, at, new_id, at_most_once=True)
    if taken is None:
        assert mine == schedule
        return False
    assert (mine, taken) == (step.schedule, step.task)
    assert step.successor is None
    assert not step.dropped
    return True


def followed_alike(schedule: Schedule, task: Task) -> bool:
    """Whether the end of an occurrence is simple. If so, it is as at length."""
    mine = copied(schedule)
    successor = follow_simply(mine, task, new_id)
    step = follow(schedule, task, new_id)
    if successor is None:
        assert mine == schedule
        return False
    assert step is not None
    assert (mine, successor) == (step.schedule, step.successor)
    assert step.task is None
    assert not step.dropped
    return True


def rare(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * 4 + [*others])


definitions = st.fixed_dictionaries(
    {
        "trigger": st.sampled_from([Interval(EVERY), Cron("* * * * *"), Interval(25)]),
        "overlap": rare("skip", "queue", "allow", "replace"),
        "late": rare(Late(), Late(window=5), Late(run="none"), Late(run="all")),
        "jitter": rare(timedelta(0), timedelta(seconds=4)),
        "deadline_after": rare(None, timedelta(seconds=100)),
        "when": rare(None, "asked"),
        "pool": rare(None, "pool"),
        "priority": st.integers(-1, 1),
        "param": rare({}, {"a": 1}),
        "paused": rare(False, True),
        "queued_at": rare(None, noon(11)),
        "skipped_from": rare(None, noon(0)),
    }
)
seconds = st.integers(10, 30)


@given(definitions, rare("next", None, "other"), seconds)
def test_an_occurrence_is_taken_alike(
    fields: dict[str, Any], pending_id: str | None, second: int
) -> None:
    """
    What is taken simply is taken as it would have been at length, and so is its schedule.
    """
    schedule = attrs.evolve(SIMPLE, **fields, pending_id=pending_id)
    taken_alike(schedule, PENDING, noon(second))


@given(definitions, rare("next", None, "other"), st.integers(-5, 25), st.booleans())
def test_an_end_is_followed_alike(
    fields: dict[str, Any], awaited_id: str | None, second: int, fails: bool
) -> None:
    """
    What follows simply on an end is what would have followed at length.
    """
    schedule = attrs.evolve(AWAITING, **fields, awaited_id=awaited_id)
    state = TaskState.FAILED if fails else TaskState.DONE
    followed_alike(schedule, evolve(DONE, {"state": state, "done_at": noon(second)}))


@pytest.mark.parametrize("overlap", ["skip", "queue"])
@pytest.mark.parametrize("trigger", [Interval(EVERY), Cron("* * * * *")], ids=str)
def test_most_are_simple(overlap: Any, trigger: Any) -> None:
    """
    An occurrence of a schedule of which no more is said than what is usual is taken
    simply, and so is its end.
    """
    schedule = attrs.evolve(SIMPLE, trigger=trigger, overlap=overlap)
    assert taken_alike(schedule, PENDING, noon(11))
    schedule = attrs.evolve(AWAITING, trigger=trigger, overlap=overlap)
    assert followed_alike(schedule, DONE)


@pytest.mark.parametrize(
    "said",
    [
        {"overlap": "allow"},
        {"overlap": "replace"},
        {"after": "end"},
        {"jitter": 4},
        {"deadline_after": 100},
        {"late": Late(window=5)},
        {"late": Late(run="none")},
        {"when": "asked"},
    ],
    ids=str,
)
def test_a_schedule_that_is_not_so_simple(said: dict[str, Any]) -> None:
    """
    Nothing is done in short with the occurrences of a schedule of which more is said than
    what is usual.
    """
    assert not taken_alike(attrs.evolve(SIMPLE, **said), PENDING, noon(11))
    assert not followed_alike(attrs.evolve(AWAITING, **said), DONE)


def test_a_schedule_is_made_of_its_fields() -> None:
    """
    A schedule can be made anew of the fields that attrs tells: whether it is simple is none
    of them, and comes from those.
    """
    for schedule in SIMPLE, attrs.evolve(SIMPLE, jitter=1):
        again = Schedule(**attrs.asdict(schedule, recurse=False))
        assert again == schedule
        assert again.is_simple is schedule.is_simple
    assert not schedule.is_simple


@pytest.mark.parametrize(
    "changes",
    [
        {"nominal_at": None},
        {"deadline": noon(11)},
        {"deadline": noon(99)},
        {"when": "asked"},
    ],
    ids=str,
)
def test_a_task_that_is_not_so_simple(changes: dict[str, Any]) -> None:
    """
    A task is not taken simply if it has no nominal time, or a deadline or a condition that
    its schedule knows nothing of.
    """
    assert not taken_alike(SIMPLE, evolve(PENDING, changes), noon(11))


@pytest.mark.parametrize(
    "changes",
    [
        {"state": TaskState.CANCELLED, "done_at": None, "cancelled_at": noon(9)},
        {"state": TaskState.SCHEDULED},
    ],
    ids=str,
)
def test_what_has_not_run_to_its_end_is_not_followed_simply(
    changes: dict[str, Any],
) -> None:
    """
    The end of an awaited task is not simple if it was cancelled, nor is it one if the task
    was scheduled again.
    """
    assert not followed_alike(AWAITING, evolve(DONE, changes))


def test_the_last_occurrence_is_taken_simply() -> None:
    """
    The last occurrence of all is taken simply, and after its end there is none.
    """
    never = attrs.evolve(SIMPLE, trigger=Interval(timedelta(days=36_500)))
    last = datetime.max.replace(tzinfo=noon(0).tzinfo) - timedelta(days=1)
    never = attrs.evolve(never, next_at=last)
    task = evolve(PENDING, {"nominal_at": last})
    assert taken_alike(never, task, noon(11))
    assert not followed_alike(attrs.evolve(AWAITING, next_at=None), DONE)


class Broken(Interval):
    def next_after(self, moment: datetime) -> datetime | None:
        raise ZeroDivisionError


def test_a_trigger_fails_alike() -> None:
    """
    A trigger that fails is asked once, and what becomes of the schedule and the task is
    told by `failed`.
    """
    schedule = attrs.evolve(SIMPLE, trigger=Broken(EVERY))
    mine = copied(schedule)
    with pytest.raises(InvalidTriggerError) as caught:
        take_simply(mine, PENDING, noon(11), at_most_once=False)
    assert mine == schedule
    step = take(schedule, PENDING, noon(11), new_id, at_most_once=False)
    assert failed(schedule, PENDING, noon(11), caught.value) == step


async def test_a_schedule_that_was_read_stays_as_it_was() -> None:
    """
    A schedule that the repository in memory was given, or has given, does not change with
    what becomes of it later.
    """
    repository = HeapRepository()
    given = attrs.evolve(SIMPLE, next_at=None, pending_id=None)
    put = await repository.change_schedule(PutSchedule(given, noon(0)))
    again = await repository.change_schedule(PutSchedule(given, noon(0)))
    assert put.changed
    assert not again.changed
    read = [given, put.schedule, again.schedule, *repository.store.schedules()]
    read += [await repository.get_schedule("s"), *await repository.find_schedules()]
    assert len(read) == 6
    before = [attrs.asdict(schedule, recurse=False) for schedule in read if schedule]

    claimed = await repository.claim(1, noon(11))
    assert (await repository.get_schedule("s")).runs == 1
    await repository.mark_done(claimed.tasks[0], noon(12))
    paused = await repository.change_schedule(PauseSchedule("s", noon(13)))
    assert paused.changed

    after = [attrs.asdict(schedule, recurse=False) for schedule in read if schedule]
    assert after == before
