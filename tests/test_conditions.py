"""Conditions: whether an occurrence runs, is skipped, waits, or is the last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import pytest
import trio
import trio.testing
from databases import opened
from support import NOON, Bench, noon, open_bench

from trio_gokugen import (
    Answer,
    At,
    ConditionExistsError,
    ConditionNotFoundError,
    ExecutorDispatcher,
    HeapRepository,
    HookAction,
    Interval,
    InvalidTaskError,
    NoSchedulesError,
    PartialHooks,
    Retry,
    Schedule,
    Scheduler,
    Snooze,
    Task,
    TaskQuery,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    WorkRegistry,
    current_scheduler,
    current_task,
    fixed,
    open_scheduler,
)
from trio_gokugen.abc import OnSchedule
from trio_gokugen.testing import Call, FaultyRepository

pytestmark = pytest.mark.tables


Asked: TypeAlias = list[tuple[float, TaskState | None]]


def answering(bench: Bench, answers: Sequence[Any]) -> Asked:
    """Register the condition ``says``, which gives these answers in turn."""
    asked: Asked = []
    left = list(answers)

    async def says(schedule: Schedule, last: Task | None) -> Any:
        assert schedule.id == current_task().schedule_id == "s"
        asked.append((trio.current_time(), None if last is None else last.state))
        answer = left.pop(0) if left else True
        if isinstance(answer, BaseException) and not isinstance(answer, Snooze):
            raise answer
        return answer

    bench.works.condition("says", says)
    return asked


async def every(seconds: float, scheduler: Scheduler, work_id: str, **how: Any) -> Schedule:
    return await scheduler.add_schedule(
        "s", Interval(seconds, anchor=NOON), work_id, when="says", **how
    )


def times(bench: Bench) -> list[float]:
    return [when for _, when in bench.starts]


async def test_a_condition_runs_and_skips(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    An occurrence runs if the condition says so, and is cancelled if it says no.
    """
    async with opened(url) as (scheduler, bench):
        asked = answering(bench, [True, False, Answer.SKIP, Answer.RUN])
        await every(10, scheduler, "note")
        await trio.sleep(45)
        found = await scheduler.find(TaskQuery(schedule_ids={"s"}))
    assert times(bench) == [10, 40]
    assert asked == [
        (10, None),
        (20, TaskState.DONE),
        (30, TaskState.DONE),
        (40, TaskState.DONE),
    ]
    assert [task.state.name for task in found] == [
        "DONE",
        "CANCELLED",
        "CANCELLED",
        "DONE",
        "SCHEDULED",
    ]
    assert [task.when for task in found] == ["says"] * 5


async def test_a_condition_waits(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    An occurrence waits for as long as the condition says so, and others are skipped.
    """
    async with opened(url) as (scheduler, bench):
        asked = answering(bench, [Snooze(3), Snooze(at=noon(27)), True])
        await every(10, scheduler, "note")
        await trio.sleep(35)
        schedule = await scheduler.get_schedule("s")
        found = await scheduler.find(TaskQuery(states={TaskState.DONE}))
    assert [when for when, _ in asked] == [10, 13, 27, 30]
    assert times(bench) == [27, 30]
    assert schedule.dropped == 1
    assert [(task.nominal_at, task.attempt, task.retries) for task in found] == [
        (noon(10), 3, 0),
        (noon(30), 1, 0),
    ]


async def test_a_condition_stops(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    A schedule that is told to stop is paused, until somebody resumes it.
    """
    async with opened(url) as (scheduler, bench):
        answering(bench, [True, Answer.STOP])
        await every(10, scheduler, "note")
        await scheduler.drain()
        assert trio.current_time() == 20
        stopped = await scheduler.get_schedule("s")
        assert await scheduler.resume_schedule("s")
        await trio.sleep(15)
    assert stopped.paused
    assert stopped.pending_id is None
    assert times(bench) == [10, 30]


async def test_until_it_succeeds(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    A condition that looks at the last outcome makes of an interval a poll.
    """

    async def until_done(schedule: Schedule, last: Task | None) -> Answer:
        done = last is not None and last.state is TaskState.DONE
        return Answer.STOP if done else Answer.RUN

    async def poll() -> None:
        await bench.note()
        if len(bench.log) < 4:
            raise ValueError("not yet")

    async with opened(url) as (scheduler, bench):
        bench.works.condition(until_done)
        bench.works.register("poll", poll)
        await scheduler.add_schedule("poll", Interval(10), "poll", when="until_done")
        await scheduler.drain()
        schedule = await scheduler.get_schedule("poll")
        last = await scheduler.get(schedule.ended_id or "")
    assert times(bench) == [10, 20, 30, 40]
    assert (last.state, last.done_at) == (TaskState.DONE, noon(40))


async def test_the_last_outcome_may_have_been_forgotten(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    If the last run was deleted, there is none to be told of.
    """
    async with opened(url) as (scheduler, bench):
        asked = answering(bench, [])
        await every(10, scheduler, "note")
        await trio.sleep(15)
        await scheduler.delete_ended()
        await trio.sleep(10)
    assert asked == [(10, None), (20, None)]


@pytest.mark.parametrize("overlap", ["skip", "queue", "allow", "replace"])
async def test_all_kinds_of_overlap_are_asked(
    autojump_clock: trio.testing.MockClock, overlap: Any
) -> None:
    """
    However occurrences overlap, each is asked about, and told the last outcome.
    """
    async with open_bench() as (scheduler, bench):
        asked = answering(bench, [True, False])
        await every(10, scheduler, "note", overlap=overlap)
        await trio.sleep(35)
    assert asked == [(10, None), (20, TaskState.DONE), (30, TaskState.DONE)]
    assert times(bench) == [10, 30]


async def test_what_is_triggered_is_not_asked(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    Somebody who has a schedule run now means it.
    """
    async with opened(url) as (scheduler, bench):
        asked = answering(bench, [False])
        await every(10, scheduler, "note")
        task = await scheduler.trigger_schedule("s")
        await scheduler.wait(task.id)
    assert times(bench) == [0]
    assert asked == []


async def test_a_condition_that_fails_fails_the_run(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    What a condition raises is the outcome of the run, and is tried again as that is.
    """
    async with opened(url) as (scheduler, bench):
        asked = answering(bench, [ValueError("one"), True, ValueError("two"), "yes"])
        bench.works.register(
            "work", bench.note, retry=Retry(2, wait=fixed(1), retry_on=ValueError)
        )
        await every(10, scheduler, "work")
        await trio.sleep(25)
        found = await scheduler.find(TaskQuery(states={TaskState.DONE, TaskState.FAILED}))
    assert [when for when, _ in asked] == [10, 11, 20, 21]
    assert times(bench) == [11]
    done, failed = found
    assert (done.state, done.retries) == (TaskState.DONE, 1)
    assert failed.err is not None
    assert failed.err.startswith("TypeError: the condition 'says' must answer an Answer,")


async def test_a_condition_is_bound_like_its_work(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    The time-out and the deadline of a run count for its condition, too.
    """

    async def slow(schedule: Schedule, last: Task | None) -> bool:
        await trio.sleep(60)
        return True

    async with open_bench() as (scheduler, bench):
        bench.works.condition(slow)
        bench.works.register("bounded", bench.note, timeout=5)
        await scheduler.add_schedule("a", Interval(100), "bounded", when="slow")
        await scheduler.add_schedule(
            "b", Interval(100), "note", when="slow", deadline_after=7
        )
        await trio.sleep(150)
        found = await scheduler.find(TaskQuery(states={TaskState.FAILED}))
    errors = {task.schedule_id: (task.err or "").split(":")[0] for task in found}
    assert errors == {"a": "WorkTimeoutError", "b": "DeadlineExceededError"}
    assert bench.log == []


@pytest.mark.parametrize("in_executor", [False, True])
async def test_no_work_starts_after_a_condition_that_does_not_let_go(
    autojump_clock: trio.testing.MockClock, *, in_executor: bool
) -> None:
    """
    Whatever a condition answers at last, no work starts that was cancelled meanwhile, or
    is past its deadline or its time-out.
    """

    async def stubborn(schedule: Schedule, last: Task | None) -> bool:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)
        return True

    began: list[str] = []

    def in_thread() -> None:
        began.append("work")

    async def in_trio() -> None:
        began.append("work")

    work = in_thread if in_executor else in_trio
    works = WorkRegistry()
    works.condition(stubborn)
    works.register("work", work)
    works.register("bounded", work, timeout=5)
    with ThreadPoolExecutor(1) as pool:
        dispatcher = (
            ExecutorDispatcher(works, pool) if in_executor else WorkerPoolDispatcher(works)
        )
        async with open_scheduler(
            works, None, dispatcher, clock=TrioClock(NOON, 0.0)
        ) as scheduler:
            late = await scheduler.add_schedule(
                "late", At([noon(10)]), "work", when="stubborn", deadline_after=7
            )
            slow = await scheduler.add_schedule(
                "slow", At([noon(10)]), "bounded", when="stubborn"
            )
            replaced = await scheduler.add_schedule(
                "replaced",
                At([noon(10), noon(20)]),
                "work",
                when="stubborn",
                overlap="replace",
            )
            await trio.sleep(15)
            await scheduler.drain()
            ends = [
                await scheduler.get(each.pending_id or "")
                for each in (late, slow, replaced)
            ]
    assert began == ["work"]  # of what has replaced the other
    assert [end.state for end in ends] == [
        TaskState.FAILED,
        TaskState.FAILED,
        TaskState.CANCELLED,
    ]
    assert [(end.err or "").split(":")[0] for end in ends] == [
        "DeadlineExceededError",
        "WorkTimeoutError",
        "",
    ]


async def test_a_condition_can_be_interrupted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    While its condition is asked, a run can be interrupted, and its work never runs.
    """

    async def slow(schedule: Schedule, last: Task | None) -> bool:
        await trio.sleep(60)
        return True

    async with open_bench() as (scheduler, bench):
        bench.works.condition(slow)
        schedule = await scheduler.add_schedule("a", Interval(100), "note", when="slow")
        await trio.sleep(110)
        task = await scheduler.interrupt(schedule.pending_id or "")
        assert trio.current_time() == 110
    assert task.state is TaskState.CANCELLED
    assert bench.log == []


async def test_a_schedule_may_be_removed_while_it_is_asked(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    An occurrence that waits for its schedule's condition goes with the schedule.
    """
    async with opened(url) as (scheduler, bench):
        asked = answering(bench, [Snooze(10)])
        schedule = await every(10, scheduler, "note")
        await trio.sleep(15)
        assert await scheduler.remove_schedule("s")
        await scheduler.drain()
        task = await scheduler.get(schedule.pending_id or "")
    assert task.state is TaskState.CANCELLED
    assert asked == [(10, None)]
    assert bench.log == []


async def test_a_condition_can_be_changed(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    A schedule gets a condition, another one, and none; its next occurrence has it, too.
    """
    async with opened(url) as (scheduler, bench):
        answering(bench, [False])

        async def never(schedule: Schedule, last: Task | None) -> bool:
            return False

        bench.works.condition(never)
        await every(10, scheduler, "note")
        for name in ("never", None, "says"):
            schedule = await scheduler.update_schedule("s", when=name)
            assert schedule.when == name
            task = await scheduler.get(schedule.pending_id or "")
            assert task.when == name
        with pytest.raises(ConditionNotFoundError):
            await scheduler.update_schedule("s", when="unknown")
        await trio.sleep(25)
    assert times(bench) == [20]


async def test_unknown_conditions_are_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A condition that is not registered, or is no name, is refused at the call.
    """
    async with open_bench() as (scheduler, bench):
        wrong: Any = bench.note
        with pytest.raises(ConditionNotFoundError, match="as 'says'"):
            await every(10, scheduler, "note")
        with pytest.raises(InvalidTaskError) as caught:
            await scheduler.add_schedule("s", Interval(1), "note", when=wrong)
        assert caught.value.field == "when"
        assert await scheduler.find_schedules() == []


async def test_a_condition_that_is_gone_fails_the_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A program that knows the work and not the condition says so in the task.
    """
    repository = HeapRepository()
    async with open_bench(repository) as (scheduler, bench):
        answering(bench, [])
        await every(10, scheduler, "note")
    async with open_bench(repository) as (scheduler, bench):
        await trio.sleep(15)
        [task] = await scheduler.find(TaskQuery(states={TaskState.FAILED}))
    assert task.err is not None
    assert task.err.startswith("ConditionNotFoundError: no condition is registered")


Function: TypeAlias = Callable[..., Awaitable[bool]]


async def yes(schedule: Schedule, last: Task | None) -> bool:
    return True


def test_conditions_are_registered_like_works() -> None:
    """
    With a decorator, with or without a name, or by a call; each name once.
    """
    works = WorkRegistry()
    assert works.condition(yes) is yes
    assert works.condition("other")(yes) is yes
    assert works.condition("third", yes) is yes
    assert all(works.get_condition(each) is yes for each in ("yes", "other", "third"))
    with pytest.raises(ConditionExistsError, match="'yes'"):
        works.condition(yes)
    with pytest.raises(ConditionNotFoundError, match="'fourth'"):
        works.get_condition("fourth")
    assert works.work_ids == frozenset()


def test_what_is_no_condition_is_refused() -> None:
    """
    A function that is not async, or has no name, is refused as it is registered.
    """
    works = WorkRegistry()
    wrong: list[Any] = [lambda schedule, last: True, 3]
    for each in wrong:
        with pytest.raises(TypeError, match="function: must be an async function"):
            works.condition("name", each)

    async def too_few(schedule: Schedule) -> bool:
        return True

    narrow: Any = too_few
    with pytest.raises(TypeError, match="must take two arguments"):
        works.condition(narrow)

    class Named:
        async def __call__(self, schedule: Schedule, last: Task | None) -> bool:
            return True

    with pytest.raises(TypeError, match="has no name, so give it one"):
        works.condition(Named())
    condition = Named()
    assert works.condition("named", condition) is condition


async def test_a_schedule_may_be_removed_before_it_is_stopped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A schedule that is removed while its condition says stop has stopped.
    """

    async def slow(schedule: Schedule, last: Task | None) -> Answer:
        await trio.sleep(5)
        return Answer.STOP

    async with open_bench() as (scheduler, bench):
        bench.works.condition(slow)
        schedule = await scheduler.add_schedule("s", Interval(10), "note", when="slow")
        await trio.sleep(12)
        await scheduler.remove_schedule("s")
        await scheduler.drain()
        task = await scheduler.get(schedule.pending_id or "")
    assert (task.state, trio.current_time()) == (TaskState.CANCELLED, 15)


async def test_what_is_asked_has_not_started(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work that must not be repeated has not begun while its condition is asked.
    """

    async def slow(schedule: Schedule, last: Task | None) -> bool:
        await trio.sleep(60)
        return True

    repository = HeapRepository()
    async with open_bench(repository, grace=0) as (scheduler, bench):
        bench.works.condition(slow)
        bench.works.register("once", bench.note, at_most_once=True)
        schedule = await scheduler.add_schedule("s", Interval(10), "once", when="slow")
        await trio.sleep(12)
    task = await repository.get(schedule.pending_id or "")
    assert (task.state, task.interruptions) == (TaskState.SCHEDULED, 1)


async def test_a_store_that_fails_is_asked_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If the store cannot tell of the schedule, the occurrence waits, and nothing is lost.
    """
    repository = FaultyRepository(HeapRepository())
    async with open_bench(repository) as (scheduler, bench):
        asked = answering(bench, [True])
        await every(10, scheduler, "note")
        repository.fail("get_schedule")
        await trio.sleep(15)
    assert asked == [(11, None)]
    assert times(bench) == [11]


async def test_a_store_that_fails_to_stop_is_asked_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If the store fails as the schedule is to stop, the condition is asked again, and the
    occurrence does not fail for that.
    """
    repository = FaultyRepository(HeapRepository())
    hooks = PartialHooks(on_update_error=ignoring)
    async with open_bench(repository, hooks=hooks) as (scheduler, bench):
        asked = answering(bench, [Answer.STOP, Answer.STOP])
        schedule = await every(10, scheduler, "note")
        await trio.sleep(5)
        repository.fail("apply", when=pauses)
        ended = await scheduler.wait(schedule.pending_id or "")
        assert (await scheduler.get_schedule("s")).paused
    assert ended.state is TaskState.CANCELLED
    assert asked == [(10, None), (11, None)]
    assert times(bench) == []


async def test_a_store_that_refuses_to_stop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If the store refuses to stop a schedule, the run fails with that, and is not tried for
    ever.
    """
    repository = FaultyRepository(HeapRepository())
    hooks = PartialHooks(on_update_error=ignoring)
    async with open_bench(repository, hooks=hooks) as (scheduler, bench):
        answering(bench, [Answer.STOP])
        schedule = await every(10, scheduler, "note")
        await trio.sleep(5)
        repository.fail("apply", NoSchedulesError, when=pauses)
        failed = await scheduler.wait(schedule.pending_id or "")
    assert (failed.err or "").startswith("NoSchedulesError: ")


async def ignoring(*_: object) -> HookAction:
    return HookAction.IGNORE


def pauses(call: Call) -> bool:
    return any(isinstance(each, OnSchedule) for each in call.operations)


async def test_an_answer_forgets_where_it_was_given(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A condition may answer with the same Snooze each time, and nothing grows by that.
    """
    again = Snooze(1)
    async with open_bench() as (scheduler, bench):
        answering(bench, [again] * 50)
        await every(10, scheduler, "note")
        await trio.sleep(65)
    steps, traceback = 0, again.__traceback__
    while traceback is not None:
        steps, traceback = steps + 1, traceback.tb_next
    assert 0 < steps < 10


async def test_a_schedule_that_cannot_be_asked_about(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If the store refuses to tell of the schedule, the run fails with that, and is not
    tried for ever; the next one is asked about as any other.
    """
    repository = FaultyRepository(HeapRepository())
    async with open_bench(repository) as (scheduler, bench):
        asked = answering(bench, [True])
        schedule = await every(10, scheduler, "note")
        repository.fail("get_schedule", NoSchedulesError)
        failed = await scheduler.wait(schedule.pending_id or "")
        await trio.sleep(15)
    assert failed.err is not None
    assert failed.err.startswith("NoSchedulesError: ")
    assert asked == [(20, TaskState.FAILED)]
    assert times(bench) == [20]


async def test_the_last_run_is_that_which_ended_last(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    Of runs that end in one batch the last one counts, and one that its deadline has ended.
    """

    async def work() -> None:
        await trio.sleep_until(45)
        if current_task().nominal_at == noon(10):
            raise ValueError

    async with opened(url) as (scheduler, bench):
        answering(bench, [])
        bench.works.register("work", work)
        await every(10, scheduler, "work", overlap="allow")
        await trio.sleep(49)
        schedule = await scheduler.get_schedule("s")
        ended = await scheduler.find(
            TaskQuery(states={TaskState.DONE, TaskState.FAILED}, schedule_ids={"s"})
        )
    assert len(ended) == 4
    assert schedule.ended_id in {task.id for task in ended}


async def test_a_deadline_while_it_waits_is_an_outcome(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    A run that was tried, and whose deadline came before it could be again, has failed.
    """
    async with opened(url, max_workers=1) as (scheduler, bench):
        answering(bench, [])

        async def fails() -> None:
            raise ValueError

        bench.works.register("fails", fails, retry=Retry(5, wait=fixed(5)))
        await every(60, scheduler, "fails", deadline_after=12)
        await trio.sleep(62)  # it has failed, and waits
        await scheduler.add_task("stubborn", {"seconds": 30}, after=0)
        await trio.sleep(40)
        schedule = await scheduler.get_schedule("s")
        last = await scheduler.get(schedule.ended_id or "")
    assert (last.state, last.attempt, last.nominal_at) == (TaskState.FAILED, 1, noon(60))


async def test_an_occurrence_has_the_condition_of_its_schedule(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    One that was made by a program which knew of no conditions is asked about, too.
    """
    repository = HeapRepository()
    async with open_bench(repository) as (scheduler, bench):
        asked = answering(bench, [False])
        schedule = await every(10, scheduler, "note")
        store: Any = repository.store
        entry = store._entries[schedule.pending_id]
        entry[4].__dict__.pop("when")
        await trio.sleep(15)
    assert asked == [(10, None)]
    assert bench.log == []


async def test_ctrl_c_reaches_a_condition(autojump_clock: trio.testing.MockClock) -> None:
    """
    A condition is interrupted by Ctrl-C as a work is.
    """
    protected: list[bool] = []

    async def says(schedule: Schedule, last: Task | None) -> bool:
        protected.append(trio.lowlevel.currently_ki_protected())
        return True

    async with open_bench() as (scheduler, bench):
        bench.works.condition(says)
        await every(10, scheduler, "note")
        await trio.sleep(15)
    assert protected == [False]


# -- the scheduler of a work ---------------------------------------------------------------


async def test_works_and_hooks_know_their_scheduler(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    `current_scheduler` is the one that runs what asks: a work, a thread, a hook.
    """
    found: list[Scheduler] = []

    async def work() -> None:
        found.append(current_scheduler())

    def plain() -> None:
        found.append(current_scheduler())

    async def on_task_done(task: Task) -> None:
        found.append(current_scheduler())

    works = WorkRegistry()
    works.register(work)
    works.register(plain)
    hooks = PartialHooks(on_task_done=on_task_done)
    async with open_scheduler(works, hooks=hooks) as outer:
        async with open_scheduler(works) as inner:
            for work_id in ("work", "plain"):
                await outer.add_task(work_id, after=0)
                await outer.drain()
                await inner.add_task(work_id, after=0)
                await inner.drain()
    assert found.count(outer) == 4
    assert found.count(inner) == 2


async def test_there_is_no_scheduler_outside() -> None:
    """
    Outside of a work or a hook, also while a scheduler runs, there is none.
    """
    async with open_scheduler(WorkRegistry()):
        with pytest.raises(RuntimeError, match="for use inside a work, a hook"):
            current_scheduler()
