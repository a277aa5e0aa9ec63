import copy
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from strategies import moments, names, tasks, texts

from trio_gokugen import (
    UNCHANGED,
    AlreadyCancelledError,
    AlreadyDispatchedError,
    AlreadyDoneError,
    InvalidTaskError,
    LostRunError,
    NotDispatchedError,
    NotDueError,
    RefusedError,
    Task,
    TaskState,
    TaskUpdate,
)
from trio_gokugen import _transitions as transitions
from trio_gokugen._transitions import Action
from trio_gokugen.abc import DeleteEnded

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
TICK = timedelta(microseconds=1)
SCHEDULED, DISPATCHED = TaskState.SCHEDULED, TaskState.DISPATCHED
CANCELLED, DONE, FAILED = TaskState.CANCELLED, TaskState.DONE, TaskState.FAILED


def a_task(**values: Any) -> Task:
    needed: dict[str, Any] = {
        "id": "t1",
        "work_id": "greet",
        "scheduled_at": NOON,
        "created_at": NOON,
        "attempt": 3,
        "interruptions": 1,
    }
    return Task(**needed | values)


def the_run(task: Task) -> Task:
    """The snapshot that the task's present run was given."""
    return attrs.evolve(task, state=DISPATCHED)


ACTIONS: dict[Action, Callable[[Task], Task]] = {
    Action.UPDATE: lambda task: transitions.updated(task, TaskUpdate(priority=5)),
    Action.CANCEL: lambda task: transitions.cancelled(task, NOON),
    Action.DISPATCH: lambda task: transitions.dispatched(task, NOON),
    Action.END: lambda task: transitions.ended(task, the_run(task), NOON, None),
    Action.REVERT: lambda task: transitions.reverted(task, the_run(task)),
    Action.INTERRUPT: lambda task: transitions.interrupted(task, the_run(task), NOON),
}

# What each action makes of a task in each state, or how it is refused.
TABLE: dict[Action, dict[TaskState, TaskState | type[RefusedError]]] = {
    Action.UPDATE: {
        SCHEDULED: SCHEDULED,
        DISPATCHED: AlreadyDispatchedError,
        CANCELLED: AlreadyCancelledError,
        DONE: AlreadyDoneError,
        FAILED: AlreadyDoneError,
    },
    Action.CANCEL: {
        SCHEDULED: CANCELLED,
        DISPATCHED: AlreadyDispatchedError,
        CANCELLED: CANCELLED,
        DONE: AlreadyDoneError,
        FAILED: AlreadyDoneError,
    },
    Action.DISPATCH: {
        SCHEDULED: DISPATCHED,
        DISPATCHED: AlreadyDispatchedError,
        CANCELLED: AlreadyCancelledError,
        DONE: AlreadyDoneError,
        FAILED: AlreadyDoneError,
    },
    Action.END: {
        SCHEDULED: NotDispatchedError,
        DISPATCHED: DONE,
        CANCELLED: AlreadyCancelledError,
        DONE: AlreadyDoneError,
        FAILED: AlreadyDoneError,
    },
    Action.REVERT: {
        SCHEDULED: NotDispatchedError,
        DISPATCHED: SCHEDULED,
        CANCELLED: AlreadyCancelledError,
        DONE: AlreadyDoneError,
        FAILED: AlreadyDoneError,
    },
    Action.INTERRUPT: {
        SCHEDULED: NotDispatchedError,
        DISPATCHED: CANCELLED,
        CANCELLED: AlreadyCancelledError,
        DONE: AlreadyDoneError,
        FAILED: AlreadyDoneError,
    },
}
cells = [(action, state, TABLE[action][state]) for action in Action for state in TaskState]


def differences(before: Task, after: Task) -> dict[str, Any]:
    """The fields of `after` that are not as they were."""
    return {
        field.name: getattr(after, field.name)
        for field in attrs.fields(Task)
        if getattr(before, field.name) != getattr(after, field.name)
    }


@pytest.mark.parametrize(
    ("action", "state", "expected"),
    cells,
    ids=[f"{action.value}-{state.value}" for action, state, _ in cells],
)
def test_the_table_of_transitions(
    action: Action, state: TaskState, expected: TaskState | type[RefusedError]
) -> None:
    """
    Each action, asked for in each state, does or is refused what the table says.
    """
    task = a_task(state=state)
    if isinstance(expected, TaskState):
        transitions.check(task, action)
        assert ACTIONS[action](task).state is expected
        return
    with pytest.raises(RefusedError) as caught:
        ACTIONS[action](task)
    assert type(caught.value) is expected
    assert caught.value.args == ("t1",)
    with pytest.raises(expected):
        transitions.check(task, action)


@pytest.mark.uncovered
@settings(max_examples=40)
@given(tasks(), st.sampled_from(Action))
def test_nothing_that_may_happen_changes_a_snapshot(task: Task, action: Action) -> None:
    """
    Whatever is done to a task, the snapshot that was there before stays as it was.
    """
    before = copy.deepcopy(task)
    with suppress(RefusedError, InvalidTaskError):
        ACTIONS[action](task)
    assert task == before


# -- dispatch -----------------------------------------------------------------------


@pytest.mark.parametrize("late", [0, 1, 10**15], ids=str)
def test_a_due_task_is_dispatched(late: int) -> None:
    """
    A task is dispatched at its appointed time or later, and the attempt is counted.
    """
    task, now = a_task(), NOON + late * TICK
    assert differences(task, transitions.dispatched(task, now)) == {
        "state": DISPATCHED,
        "dispatched_at": now,
        "attempt": 4,
    }


@pytest.mark.parametrize("early", [1, 10**15], ids=str)
def test_a_task_that_is_not_due_is_not_dispatched(early: int) -> None:
    """
    A task is not dispatched before its appointed time, be it by a microsecond.
    """
    with pytest.raises(NotDueError) as caught:
        transitions.dispatched(a_task(deadline=NOON + TICK), NOON - early * TICK)
    assert caught.value.task_id == "t1"


def test_a_task_before_its_deadline_is_dispatched() -> None:
    """
    A task is dispatched up to the last microsecond before its deadline.
    """
    task = a_task(deadline=NOON + 5 * TICK)
    assert transitions.dispatched(task, NOON + 4 * TICK).state is DISPATCHED


@pytest.mark.parametrize("late", [0, 1, 10**15], ids=str)
def test_a_task_past_its_deadline_fails(late: int) -> None:
    """
    A task whose deadline has come fails in place of being dispatched, and says why.
    """
    task = a_task(deadline=NOON + TICK)
    now = NOON + TICK + late * TICK
    assert differences(task, transitions.dispatched(task, now)) == {
        "state": FAILED,
        "done_at": now,
        "err": (
            "DeadlineExceededError: the deadline 2024-02-29T12:00:00.000001+00:00 has"
            " passed: the work was not started"
        ),
    }


# -- how a run ends -----------------------------------------------------------------


@settings(max_examples=30)
@given(tasks(), moments, st.none() | texts)
@example(a_task(), NOON, "")
def test_the_end_of_a_run(task: Task, at: datetime, err: str | None) -> None:
    """
    A run ends its task as done, or as failed if there is an `err`, even an empty one.
    """
    run = attrs.evolve(task, state=DISPATCHED, err=None, done_at=None)
    after = transitions.ended(run, run, at, err)
    expected: dict[str, Any] = {"state": DONE, "done_at": at}
    if err is not None:
        expected |= {"state": FAILED, "err": err}
    assert differences(run, after) == expected


@settings(max_examples=30)
@given(tasks(), moments)
def test_an_interruption_cancels_the_task(task: Task, at: datetime) -> None:
    """
    An interrupted run leaves its task cancelled, and nothing else about it changed.
    """
    run = attrs.evolve(task, state=DISPATCHED, cancelled_at=None)
    assert differences(run, transitions.interrupted(run, run, at)) == {
        "state": CANCELLED,
        "cancelled_at": at,
    }


def test_a_reverted_task_counts_the_interruption() -> None:
    """
    A reverted task is scheduled as before; that its run was interrupted is counted, and
    the attempt with it.
    """
    run = a_task(state=DISPATCHED, dispatched_at=NOON)
    assert differences(run, transitions.reverted(run, run)) == {
        "state": SCHEDULED,
        "interruptions": 2,
    }


@pytest.mark.parametrize("attempt", [0, 2, 4], ids=str)
@pytest.mark.parametrize("action", ["end", "fail", "revert", "interrupt"])
def test_a_run_that_has_lost_its_task_is_refused(action: str, attempt: int) -> None:
    """
    What a run has to say about a task that has been dispatched anew is refused.
    """
    task = a_task(state=DISPATCHED)
    run = a_task(state=DISPATCHED, attempt=attempt)
    with pytest.raises(LostRunError) as caught:
        match action:
            case "end":
                transitions.ended(task, run, NOON, None)
            case "fail":
                transitions.ended(task, run, NOON, "ValueError: no")
            case "revert":
                transitions.reverted(task, run)
            case _:
                transitions.interrupted(task, run, NOON)
    assert (caught.value.task_id, caught.value.attempt) == ("t1", attempt)


def test_a_run_outlives_no_second_dispatch() -> None:
    """
    A run that was interrupted is refused after the task's next run has begun, though
    the task is with a worker again; the next run is not.
    """
    first = transitions.dispatched(a_task(), NOON)
    again = transitions.dispatched(transitions.reverted(first, first), NOON)
    with pytest.raises(LostRunError):
        transitions.ended(again, first, NOON, None)
    assert transitions.ended(again, again, NOON, None).state is DONE


# -- update and cancel --------------------------------------------------------------


@settings(max_examples=30)
@given(tasks(), names, st.integers(-5, 5))
def test_an_update_changes_what_it_says(task: Task, work_id: str, priority: int) -> None:
    """
    An update changes the fields it gives, and no other.
    """
    scheduled = attrs.evolve(task, state=SCHEDULED)
    update = TaskUpdate(work_id=work_id, priority=priority, param={"a": 1})
    after = transitions.updated(scheduled, update)
    assert differences(scheduled, after) == update.changes(scheduled)
    assert after.work_id == work_id
    assert after.priority == priority


@settings(max_examples=30)
@given(tasks())
def test_an_update_of_nothing_gives_the_same_task(task: Task) -> None:
    """
    An update that would change nothing gives back the very same task.
    """
    scheduled = attrs.evolve(task, state=SCHEDULED)
    same = TaskUpdate(scheduled_at=scheduled.scheduled_at, meta=scheduled.meta)
    for update in (TaskUpdate(), same):
        assert transitions.updated(scheduled, update) is scheduled


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"deadline": 0}, False),
        ({"deadline": -1}, False),
        ({"deadline": 1}, True),
        ({"deadline": None}, True),
        ({"scheduled_at": 10}, False),
        ({"scheduled_at": 11}, False),
        ({"scheduled_at": 9}, True),
        ({"scheduled_at": 11, "deadline": 12}, True),
        ({"scheduled_at": 12, "deadline": 12}, False),
        ({"scheduled_at": 11, "deadline": None}, True),
        ({"scheduled_at": -5, "deadline": -4}, True),
    ],
    ids=str,
)
def test_a_deadline_stays_after_the_appointed_time(
    changes: dict[str, int | None], allowed: bool
) -> None:
    """
    An update that would leave the deadline not after the appointed time is refused,
    whichever of the two it changes.
    """
    task = a_task(deadline=NOON + 10 * TICK)
    given_values: dict[str, Any] = {
        field: None if ticks is None else NOON + ticks * TICK
        for field, ticks in changes.items()
    }
    update = TaskUpdate(**given_values)
    if allowed:
        assert differences(task, transitions.updated(task, update)) == given_values
        return
    with pytest.raises(InvalidTaskError) as caught:
        transitions.updated(task, update)
    assert caught.value.field == "deadline"


@pytest.mark.parametrize("state", [DISPATCHED, CANCELLED, DONE, FAILED], ids=str)
@pytest.mark.parametrize("priority", [UNCHANGED, 0, 1], ids=str)
def test_an_update_that_comes_too_late_is_refused_even_if_it_is_empty(
    state: TaskState, priority: Any
) -> None:
    """
    An update of a task that is not scheduled any more is refused, even an empty one.
    """
    with pytest.raises(RefusedError):
        transitions.updated(a_task(state=state), TaskUpdate(priority=priority))


@settings(max_examples=30)
@given(tasks(), moments, moments)
def test_a_task_is_cancelled_once(task: Task, at: datetime, later: datetime) -> None:
    """
    Cancelling marks when; cancelling again gives back the very same task.
    """
    assume(at != task.cancelled_at)
    scheduled = attrs.evolve(task, state=SCHEDULED)
    after = transitions.cancelled(scheduled, at)
    assert differences(scheduled, after) == {"state": CANCELLED, "cancelled_at": at}
    assert transitions.cancelled(after, later) is after


# -- delete -------------------------------------------------------------------------


def test_only_ended_tasks_are_deleted() -> None:
    """
    Tasks that have ended can be deleted, by any of their states; others never.
    """
    assert DeleteEnded().states == {CANCELLED, DONE, FAILED}
    for state in TaskState:
        if state.ended:
            assert DeleteEnded(states=[state]).states == {state}
            continue
        for states in ([state], {state, DONE}, (DONE, state)):
            with pytest.raises(InvalidTaskError) as caught:
                DeleteEnded(states=states)
            assert caught.value.field == "states"


def test_a_deletion_may_be_of_another_zone() -> None:
    """
    A deletion may be limited by a moment of any time zone.
    """
    there = NOON.astimezone(timezone(timedelta(hours=-14)))
    assert DeleteEnded(before=there).before == NOON


WRONG: dict[str, dict[str, Any]] = {
    "one state": {"states": DONE},
    "text": {"states": "done"},
    "values": {"states": ["done"]},
    "lists": {"states": [["done"]]},
    "none": {"states": None},
    "naive": {"before": datetime(2024, 2, 29, 12)},
    "timestamp": {"before": 1709208000.0},
    "words": {"before": "yesterday"},
}


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG.keys())
def test_a_deletion_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    """
    A deletion by what is no set of states, or no moment, is refused as it is made, by
    the name of the field.
    """
    with pytest.raises(InvalidTaskError) as caught:
        DeleteEnded(**values)
    assert [caught.value.field] == list(values)
