"""Tasks that are tried again, snoozed and discarded, in memory and in databases."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from databases import engine_of, opened
from sqlalchemy import text
from support import Bench, TroubledRepository, noon, open_bench, stored

from trio_gokugen import (
    Discard,
    HeapRepository,
    InvalidTaskError,
    KeyExistsError,
    NotRunningHereError,
    PartialHooks,
    Progress,
    RepositoryError,
    Retry,
    Scheduler,
    Snooze,
    Task,
    TaskExistsError,
    TaskParam,
    TaskQuery,
    TaskState,
    autojump_held,
    current_task,
    exponential,
    fixed,
)
from trio_gokugen.abc import CancelTask, Operation, RetryTask
from trio_gokugen.sql import open_sql_repository

pytestmark = pytest.mark.tables


def failing(bench: Bench, errors: Sequence[BaseException | None], **how: Any) -> None:
    """Register ``flaky``, each of whose runs ends in the next of these ways."""
    left = list(errors)

    async def flaky() -> None:
        await bench.note()
        error = left.pop(0)
        if error is not None:
            raise error

    bench.works.register("flaky", flaky, **how)


async def test_what_fails_is_tried_again(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    A task whose work fails runs again after each wait, until it is done.
    """
    async with opened(url) as (scheduler, bench):
        errors = [ValueError("one"), OSError("two"), None]
        failing(bench, errors, retry=Retry(3, wait=exponential(10)))
        await scheduler.add_task("flaky", after=5, id="a")
        task = await scheduler.wait("a")
        counts = scheduler.statistics()
    assert bench.log == [("a", 5), ("a", 15), ("a", 35)]
    assert (task.state, task.err, task.attempt) == (TaskState.DONE, None, 3)
    assert task.retries == 2
    assert [(each.attempt, each.at) for each in task.errors] == [
        (1, noon(5)),
        (2, noon(15)),
    ]
    assert [each.err.split("\n")[0] for each in task.errors] == [
        "ValueError: one",
        "OSError: two",
    ]
    assert (counts.retried, counts.failed, counts.done, counts.reverted) == (2, 0, 1, 0)


async def test_the_last_attempt_is_the_end(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    After its last attempt a task has failed, with the error of that.
    """
    async with opened(url) as (scheduler, bench):
        errors = [ValueError("one"), ValueError("two")]
        failing(bench, errors, retry=Retry(2, wait=fixed(10)))
        await scheduler.add_task("flaky", after=0, id="a")
        task = await scheduler.wait("a")
    assert bench.log == [("a", 0), ("a", 10)]
    assert (task.state, task.attempt, task.retries) == (TaskState.FAILED, 2, 1)
    assert task.err is not None
    assert task.err.startswith("ValueError: two\n")
    assert [each.err.split("\n")[0] for each in task.errors] == ["ValueError: one"]


async def test_a_task_has_a_policy_of_its_own(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    The policy of a task counts, and not that of its work; others have that of the work.
    """
    async with opened(url) as (scheduler, bench):
        errors = [ValueError()] * 5
        failing(bench, errors, retry=Retry(2, wait=fixed(10)))
        await scheduler.add_task("flaky", after=0, id="a", retry=Retry(3, wait=fixed(1)))
        await scheduler.wait("a")
        [task] = await scheduler.add_tasks(
            [TaskParam(work_id="flaky", scheduled_at=noon(), id="b")]
        )
        await scheduler.wait(task.id)
    assert bench.log == [("a", 0), ("a", 1), ("a", 2), ("b", 2), ("b", 12)]


async def test_a_snooze_is_no_attempt(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    A task whose work is not ready runs later, and nothing of that is counted as failed.
    """
    async with opened(url) as (scheduler, bench):
        errors = [Snooze(7), Snooze(at=noon(60)), ValueError("no"), Snooze(1), None]
        failing(bench, errors, retry=Retry(2, wait=fixed(10)))
        await scheduler.add_task("flaky", after=0, id="a")
        task = await scheduler.wait("a")
    assert bench.log == [("a", 0), ("a", 7), ("a", 60), ("a", 70), ("a", 71)]
    assert (task.state, task.attempt, task.retries) == (TaskState.DONE, 5, 1)
    assert [each.attempt for each in task.errors] == [3]


async def test_what_is_discarded_is_not_tried_again(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    A work that gives up ends its task, which says why, whatever its policy.
    """

    async def give_up() -> None:
        await bench.note()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise Discard("no such customer")

    async with opened(url) as (scheduler, bench):
        bench.works.register("give up", give_up, retry=Retry())
        await scheduler.add_task("give up", after=0, id="a")
        task = await scheduler.wait("a")
    assert bench.log == [("a", 0)]
    assert (task.state, task.retries, task.errors) == (TaskState.FAILED, 0, ())
    assert task.err is not None
    assert task.err.startswith("Discard: no such customer\n")


async def test_a_work_says_when_to_try_again(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    `Retry.after` is a failed attempt whose wait the work knows, for as many as may fail.
    """
    async with opened(url) as (scheduler, bench):
        errors = [Retry.after(3), Retry.after(4), Retry.after(5)]
        failing(bench, errors, retry=Retry(3, wait=fixed(100)))
        await scheduler.add_task("flaky", after=0, id="a")
        task = await scheduler.wait("a")
    assert bench.log == [("a", 0), ("a", 3), ("a", 7)]
    assert (task.state, task.retries) == (TaskState.FAILED, 2)


async def test_without_a_policy_a_work_may_try_for_ever(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If nothing says how often, `Retry.after` is heeded each time; other errors are the end.
    """
    async with open_bench() as (scheduler, bench):
        failing(bench, [Retry.after(3600)] * 100 + [ValueError("no")])
        await scheduler.add_task("flaky", after=0, id="a")
        task = await scheduler.wait("a")
    assert (len(bench.log), trio.current_time()) == (101, 360_000)
    assert (task.state, task.retries, len(task.errors)) == (TaskState.FAILED, 100, 10)


async def test_other_errors_are_the_end(autojump_clock: trio.testing.MockClock) -> None:
    """
    An error that the policy does not name ends the task at once.
    """
    async with open_bench() as (scheduler, bench):
        retry = Retry(3, wait=fixed(1), retry_on=OSError)
        failing(bench, [ConnectionError(), ValueError("no")], retry=retry)
        await scheduler.add_task("flaky", after=0, id="a")
        task = await scheduler.wait("a")
    assert bench.log == [("a", 0), ("a", 1)]
    assert (task.state, task.retries) == (TaskState.FAILED, 1)


async def test_a_timeout_is_an_attempt(autojump_clock: trio.testing.MockClock) -> None:
    """
    An attempt that takes too long has failed like any other.
    """
    async with open_bench() as (scheduler, bench):
        retry = Retry(2, wait=fixed(10))
        bench.works.register("slow", bench.sleep, timeout=5, retry=retry)
        await scheduler.add_task("slow", after=0, id="a")
        task = await scheduler.wait("a")
    assert bench.starts == [("a", 0), ("a", 15)]
    assert task.err is not None
    assert task.err.startswith("WorkTimeoutError")


async def test_no_attempt_comes_after_the_deadline(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    If a deadline comes before the next attempt, the task fails now, and says so.
    """
    async with opened(url) as (scheduler, bench):
        errors = [ValueError("one"), ValueError("two"), Snooze(20)]
        failing(bench, errors, retry=Retry(5, wait=fixed(10)))
        await scheduler.add_task("flaky", after=0, id="a", deadline=noon(20))
        task = await scheduler.wait("a")
        assert trio.current_time() == 10
        await scheduler.add_task("flaky", after=0, id="b", deadline=noon(30))
        snoozed = await scheduler.wait("b")
        assert trio.current_time() == 10
    assert bench.log == [("a", 0), ("a", 10), ("b", 10)]
    assert (task.state, task.retries) == (TaskState.FAILED, 1)
    assert task.err is not None
    assert task.err.startswith("ValueError: two\n")
    assert task.err.endswith("not tried again: its deadline would have passed by then")
    assert snoozed.state is TaskState.FAILED
    assert snoozed.err is not None
    assert snoozed.err.startswith("Snooze: for 0:00:20\n")


async def test_a_run_past_its_deadline_is_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What its deadline has cancelled is not tried again.
    """
    async with open_bench() as (scheduler, bench):
        bench.works.register("slow", bench.sleep, retry=Retry(2, wait=fixed(10)))
        await scheduler.add_task("slow", after=0, id="a", deadline=noon(20))
        task = await scheduler.wait("a")
    assert bench.starts == [("a", 0)]
    assert task.state is TaskState.FAILED
    assert task.err is not None
    assert task.err.startswith("DeadlineExceededError")


@pytest.mark.parametrize(
    "how",
    [
        {"wait": lambda failed: 1 / (failed - 1)},
        {"wait": lambda failed: "soon"},
        {"retry_on": lambda error: error.args[5]},
    ],
    ids=["wait raises", "wait is no length", "retry_on raises"],
)
async def test_a_policy_that_fails_is_told(
    autojump_clock: trio.testing.MockClock, how: dict[str, Any]
) -> None:
    """
    If the functions of a policy fail, the task has failed, and tells both errors.
    """
    async with open_bench() as (scheduler, bench):
        failing(bench, [ValueError("one")], retry=Retry(3, **how))
        await scheduler.add_task("flaky", after=0, id="a")
        task = await scheduler.wait("a")
    assert task.state is TaskState.FAILED
    assert task.err is not None
    assert task.err.startswith("ValueError: one\n")
    assert "and its Retry failed, too: " in task.err


async def test_an_attempt_beyond_all_time_is_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What would be tried again after the year 9999, or slept until then, fails now.
    """
    retry = Retry(None, wait=fixed(3600 * 24 * 36_000))
    async with open_bench() as (scheduler, bench):
        failing(bench, [ValueError()] * 82, retry=retry)
        await scheduler.add_task("flaky", after=0, id="a")
        task = await scheduler.wait("a")
    assert len(bench.log) == 81
    assert task.state is TaskState.FAILED
    assert task.scheduled_at.year > 9800


async def test_a_policy_with_functions_is_for_works(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A policy that cannot be stored is refused with a task, at the call.
    """
    async with open_bench() as (scheduler, _):
        policies: list[Any] = [
            Retry(wait=lambda failed: failed),
            Retry(retry_on=lambda error: True),
            "3",
        ]
        for retry in policies:
            with pytest.raises(InvalidTaskError) as caught:
                await scheduler.add_task("note", after=0, retry=retry)
            assert caught.value.field == "retry"
        assert await scheduler.find() == []


def test_a_work_has_a_policy_or_none() -> None:
    """
    What is no policy is refused as the work is registered.
    """
    bench = Bench()
    wrong: Any = "yes"
    with pytest.raises(TypeError, match="retry: must be a Retry"):
        bench.works.register("bad", bench.note, retry=wrong)
    with pytest.raises(TypeError, match="retain: must be a bool"):
        bench.works.register("bad", bench.note, retain=wrong)
    assert "bad" not in bench.works.work_ids


class OddSnooze(Snooze):
    def __init__(self) -> None:  # and nothing of what a Snooze has
        Exception.__init__(self)


class OddDict(dict[str, Any]):
    def items(self) -> Any:
        raise OSError("no items")


async def test_an_odd_outcome_harms_its_task_only(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    What cannot be looked at, of what a work returns or raises, fails its task only.
    """

    async def snooze() -> None:
        raise OddSnooze

    async def give() -> Any:
        return OddDict(a=1)

    async with opened(url) as (scheduler, bench):
        bench.works.register("snooze", snooze)
        bench.works.register("give", give, retain=True)
        tasks = [await scheduler.add_task(name, after=0) for name in ("snooze", "give")]
        await scheduler.add_task("note", after=0, id="other")
        ended = [await scheduler.wait(task.id) for task in tasks]
        assert (await scheduler.wait("other")).state is TaskState.DONE
    assert [task.state for task in ended] == [TaskState.FAILED] * 2
    heads = [(task.err or "").split("\n")[0] for task in ended]
    assert heads[0].startswith("its outcome cannot be told: AttributeError: ")
    assert heads[1] == "its outcome cannot be told: OSError: no items"


# -- what else may happen meanwhile -------------------------------------------------------


async def test_what_waits_to_be_tried_again_is_a_task_like_others(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    Between two attempts a task can be changed, postponed and cancelled.
    """
    async with opened(url) as (scheduler, bench):
        failing(bench, [ValueError()] * 3, retry=Retry(9, wait=fixed(10)))
        await scheduler.add_task("flaky", after=0, id="a")
        await trio.sleep(5)
        assert await scheduler.update("a", scheduled_at=noon(60), priority=3)
        await trio.sleep(60)
        assert await scheduler.cancel("a")
        task = await scheduler.wait("a")
    assert bench.log == [("a", 0), ("a", 60)]
    assert (task.state, task.retries, task.priority) == (TaskState.CANCELLED, 2, 3)


async def test_an_interruption_is_no_failed_attempt(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    A run that a shutdown cuts short is not counted, and its errors are kept.
    """
    if url is None:
        repository: Any = HeapRepository()
        for seconds in (15, 5):
            async with open_bench(repository, grace=0) as (scheduler, bench):
                await _run_for(scheduler, bench, seconds)
        task = await repository.get("a")
    else:
        for seconds in (15, 5):
            async with opened(url, grace=0) as (scheduler, bench):
                await _run_for(scheduler, bench, seconds)
        async with opened(url, recover="leave") as (scheduler, _):
            task = await scheduler.get("a")
    assert (task.attempt, task.interruptions, task.retries) == (3, 2, 1)
    assert len(task.errors) == 1


async def _run_for(scheduler: Scheduler, bench: Bench, seconds: float) -> None:
    async def flaky() -> None:
        if current_task().attempt == 1:
            raise ValueError
        await trio.sleep_forever()

    bench.works.register("flaky", flaky, retry=Retry(2, wait=fixed(10)))
    if not await scheduler.find():
        await scheduler.add_task("flaky", after=0, id="a")
    await trio.sleep(seconds)


async def test_drain_waits_for_all_attempts(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    As long as a task is to be tried again, there is something to do.
    """
    async with opened(url) as (scheduler, bench):
        failing(bench, [ValueError(), None], retry=Retry(2, wait=fixed(100)))
        await scheduler.add_task("flaky", after=0, id="a")
        await scheduler.drain()
    assert bench.log == [("a", 0), ("a", 100)]


async def test_hooks_see_every_attempt(autojump_clock: trio.testing.MockClock) -> None:
    """
    `on_update` is told of each retry, and `on_task_done` of the end only.
    """
    seen: list[tuple[str, TaskState, int]] = []

    async def on_update(operation: Operation, task: Task) -> None:
        seen.append((type(operation).__name__, task.state, task.retries))

    async def on_task_done(task: Task) -> None:
        seen.append(("done", task.state, task.retries))

    hooks = PartialHooks(on_update=on_update, on_task_done=on_task_done)
    async with open_bench(hooks=hooks) as (scheduler, bench):
        failing(bench, [ValueError(), Snooze(1), None], retry=Retry(2, wait=fixed(1)))
        await scheduler.add_task("flaky", after=0, id="a")
        await scheduler.wait("a")
    assert seen == [
        ("AddTasks", TaskState.SCHEDULED, 0),
        ("RetryTask", TaskState.SCHEDULED, 1),
        ("RetryTask", TaskState.SCHEDULED, 1),
        ("EndTask", TaskState.DONE, 1),
        ("done", TaskState.DONE, 1),
    ]


async def test_interrupt_wins_over_a_retry(autojump_clock: trio.testing.MockClock) -> None:
    """
    A task that is interrupted just as its run has failed is cancelled, and not tried again.
    """
    repository = TroubledRepository()

    async def delay(operations: Sequence[Operation]) -> None:
        if any(isinstance(each, RetryTask) for each in operations):
            await trio.sleep(1)

    repository.before_apply = delay
    async with open_bench(repository) as (scheduler, bench):
        failing(bench, [ValueError("one"), None], retry=Retry(2, wait=fixed(10)))
        await scheduler.add_task("flaky", after=0, id="a")
        await trio.sleep(0.5)  # it has failed, which is being written
        task = await scheduler.interrupt("a")
        assert task.state is TaskState.CANCELLED
        assert trio.current_time() == 1
        await trio.sleep(60)
    assert bench.log == [("a", 0)]
    assert task.retries == 1


async def test_interrupt_follows_a_task_that_is_tried_again_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If the next attempt has begun before the interruption came, it is that which ends.
    """
    repository = TroubledRepository()

    async def delay(operations: Sequence[Operation]) -> None:
        if any(isinstance(each, RetryTask) for each in operations):
            await trio.sleep(1)

    async def flaky() -> None:
        await bench.note()
        if current_task().attempt == 1:
            raise ValueError
        await trio.sleep_forever()

    repository.before_apply = delay
    async with open_bench(repository) as (scheduler, bench):
        bench.works.register("flaky", flaky, retry=Retry(2, wait=fixed(0)))
        await scheduler.add_task("flaky", after=0, id="a")
        await trio.sleep(0.5)
        task = await scheduler.interrupt("a")
    assert task.state is TaskState.CANCELLED
    assert [what for what, _ in bench.log] in (["a"], ["a", "a"])


async def test_a_store_that_fails_is_told_the_same_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A retry that could not be written is written later, and counted once.
    """
    repository = TroubledRepository()
    troubles = [OSError("disk full"), OSError("disk full")]

    async def fail(operations: Sequence[Operation]) -> None:
        if any(isinstance(each, RetryTask) for each in operations) and troubles:
            raise troubles.pop()

    async def again(operations: Any, error: Exception, action: Any) -> Any:
        await trio.sleep(3)
        return type(action).RETRY

    repository.before_apply = fail
    hooks = PartialHooks(on_update_error=again)
    async with open_bench(repository, hooks=hooks) as (scheduler, bench):
        failing(bench, [ValueError("one"), None], retry=Retry(2, wait=fixed(10)))
        await scheduler.add_task("flaky", after=0, id="a")
        task = await scheduler.wait("a")
    assert bench.log == [("a", 0), ("a", 16)]
    assert (task.attempt, task.retries) == (2, 1)


async def test_what_another_has_taken_cannot_be_interrupted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If the next attempt of what was to be interrupted runs elsewhere, that is told.
    """
    repository = TroubledRepository()

    async def trouble(operations: Sequence[Operation]) -> None:
        if any(isinstance(each, RetryTask) for each in operations):
            await trio.sleep(1)
        if any(isinstance(each, CancelTask) for each in operations):
            repository.before_apply = None
            await repository.mark_dispatched("a", noon(1))  # as another would

    repository.before_apply = trouble
    async with open_bench(repository, recover="leave") as (scheduler, bench):
        failing(bench, [ValueError()], retry=Retry(2, wait=fixed(0)))
        await scheduler.add_task("flaky", after=0, id="a")
        await trio.sleep(0.5)
        with pytest.raises(NotRunningHereError):
            await scheduler.interrupt("a")
    assert bench.ids() == ["a"]


# -- keys -------------------------------------------------------------------------------


async def test_a_key_debounces(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    However often it is added anew, a task with a key runs once, when things are calm.
    """
    async with opened(url) as (scheduler, bench):
        tasks = []
        for _ in range(5):
            task = await scheduler.add_task(
                "note", after=10, key="index", if_exists="replace"
            )
            tasks.append(task)
            await trio.sleep(3)
        await scheduler.drain()
        counts = scheduler.statistics()
    assert len({task.id for task in tasks}) == 1
    assert bench.log == [(tasks[0].id, 22)]
    assert (counts.added, counts.done) == (1, 1)


async def test_what_is_replaced_begins_anew(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    What a key stood for before has failed, not what it stands for now.
    """
    async with opened(url) as (scheduler, bench):
        failing(bench, [ValueError(), ValueError(), None])

        async def told() -> None:
            await scheduler.progress(0.9)
            raise ValueError

        bench.works.register("told", told, retry=Retry(2, wait=fixed(10)))
        await scheduler.add_task("told", after=0, key="k", id="a")
        await trio.sleep(5)
        retry = Retry(3, wait=fixed(1))
        task = await scheduler.add_task(
            "flaky", after=1, key="k", if_exists="replace", retry=retry
        )
        assert await scheduler.get("a") == task
        ended = await scheduler.wait("a")
    assert (task.id, task.retries, task.errors, task.progress) == ("a", 0, (), None)
    assert (ended.state, ended.retries) == (TaskState.DONE, 2)


async def test_a_damaged_task_keeps_its_key(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A key whose task cannot be read is refused, in whatever way, until that has failed.
    """
    file = tmp_path / "tasks.db"
    async with open_sql_repository(f"sqlite:///{file}") as repository:
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_task("note", after=60, key="k", id="bad")
            with closing(sqlite3.connect(file, isolation_level=None)) as connection:
                connection.execute("UPDATE gokugen_task SET param = '{'")
            words: list[Any] = ["raise", "return", "replace"]
            for word in words:
                with pytest.raises(KeyExistsError) as caught:
                    await scheduler.add_task("note", after=0, key="k", if_exists=word)
                assert caught.value.task_id == "bad"
            await trio.sleep(61)
            task = await scheduler.add_task("note", after=0, key="k")
            assert (await scheduler.wait(task.id)).state is TaskState.DONE


async def test_keys_and_schedules_are_looked_for_together(
    autojump_clock: trio.testing.MockClock, database_url: str
) -> None:
    """
    What is found by keys and schedules has one of the keys and is of one of the schedules,
    whether it is pending or has ended.
    """
    how: dict[str, dict[str, Any]] = {
        "done": {"state": TaskState.DONE, "done_at": noon()},
        "pending": {},
    }
    async with open_sql_repository(database_url) as repository:
        for state, fields in how.items():
            await repository.add(
                [
                    stored(
                        f"{state} {key} {schedule}", key=key, schedule_id=schedule, **fields
                    )
                    for key, schedule in [("k", "s"), ("l", "t"), (None, "s"), ("m", None)]
                ]
            )
        for states, found in [
            (None, ["done k s", "pending k s"]),
            ({TaskState.DONE}, ["done k s"]),
            ({TaskState.SCHEDULED}, ["pending k s"]),
        ]:
            query = TaskQuery(keys={"k", "m"}, schedule_ids={"s", "u"}, states=states)
            assert [task.id for task in await repository.find(query)] == found


@pytest.mark.parametrize("word", ["raise", "return", "replace"])
async def test_a_key_is_waited_for_that_another_adds(
    autojump_clock: trio.testing.MockClock, postgresql_url: str, word: Any
) -> None:
    """
    While somebody's transaction adds a task of a key, no other has it; once it is
    committed, it is there: so it is one task, whoever adds it.
    """
    added, seen = threading.Event(), threading.Event()

    def transact() -> None:
        with engine_of(postgresql_url) as engine, engine.begin() as connection:
            repository.add_task_in(connection, "note", after=60, key="k", id="theirs")
            added.set()
            assert seen.wait(20)

    def waits() -> bool:
        query = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        with engine_of(postgresql_url) as engine, engine.begin() as connection:
            return bool(connection.execute(query).scalar_one())

    async def commit_once_it_is_waited_for() -> None:
        while not await trio.to_thread.run_sync(waits):
            await trio.lowlevel.checkpoint()
        seen.set()

    async with open_sql_repository(postgresql_url) as repository:
        with autojump_held():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, transact)
                await trio.to_thread.run_sync(added.wait)
                nursery.start_soon(commit_once_it_is_waited_for)
                ours = stored("ours", seconds=5, key="k")
                if word == "raise":
                    with pytest.raises(KeyExistsError):
                        await repository.add([ours])
                else:
                    answer = await repository.add([ours], word)
                    assert [task.id for task in answer.tasks] == ["theirs"]
        tasks = await repository.find(TaskQuery(keys={"k"}))
    assert [task.id for task in tasks] == ["theirs"]
    assert (tasks[0].scheduled_at == noon(5)) is (word == "replace")


async def test_the_timer_follows_what_is_replaced(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    A task that is replaced by an earlier one runs at that time.
    """
    async with opened(url) as (scheduler, bench):
        await scheduler.add_task("note", after=100, key="k", id="a")
        await trio.sleep(1)
        await scheduler.add_task("note", after=10, key="k", if_exists="replace")
        await scheduler.wait("a")
    assert bench.log == [("a", 11)]


async def test_the_timer_sees_that_what_is_replaced_goes_first(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    A task that is replaced by one that is earlier than all others runs at that time.
    """
    async with opened(url) as (scheduler, bench):
        await scheduler.add_task("note", after=50, id="first")
        await scheduler.add_task("note", after=100, key="k", id="a")
        await trio.sleep(1)
        await scheduler.add_task("note", after=10, key="k", if_exists="replace")
        await scheduler.wait("a")
    assert bench.log == [("a", 11)]


async def test_many_are_added_by_their_keys(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    Of many tasks those are added whose keys are free, and the others returned.
    """
    params = [
        TaskParam(work_id="note", scheduled_at=noon(n), key=f"k{n % 3}", id=f"t{n}")
        for n in range(6)
    ]
    async with opened(url) as (scheduler, bench):
        await scheduler.add_tasks(params[2:3])
        tasks = await scheduler.add_tasks(params, if_exists="return")
        await scheduler.drain()
        counts = scheduler.statistics()
    assert [task.id for task in tasks] == ["t0", "t1", "t2", "t0", "t1", "t2"]
    assert bench.ids() == ["t0", "t1", "t2"]
    assert counts.added == 3


async def test_a_wrong_word_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    """
    What `if_exists` does not know is refused by name, and nothing added.
    """
    wrong: Any = "update"
    async with open_bench() as (scheduler, _):
        with pytest.raises(InvalidTaskError, match="if_exists: must be"):
            await scheduler.add_task("note", after=0, key="k", if_exists=wrong)
        with pytest.raises(InvalidTaskError, match="if_exists: must be"):
            await scheduler.add_tasks([], if_exists=wrong)
        with pytest.raises(InvalidTaskError, match="if_exists: is of no use without a key"):
            await scheduler.add_task("note", after=0, if_exists="return")
        with pytest.raises(InvalidTaskError) as caught:
            await scheduler.add_task("note", after=0, key="")
        assert caught.value.field == "key"
        assert await scheduler.find() == []


async def test_hooks_see_what_is_replaced(autojump_clock: trio.testing.MockClock) -> None:
    """
    `on_update` is told of tasks that were added and replaced, not of those returned.
    """
    seen: list[tuple[str, int]] = []

    async def on_update(operation: Operation, task: Task) -> None:
        seen.append((task.id, task.priority))

    async with open_bench(hooks=PartialHooks(on_update=on_update)) as (scheduler, _):
        for priority, word in enumerate(("raise", "return", "replace")):
            choice: Any = word
            await scheduler.add_task(
                "note", after=9, key="k", id=word, priority=priority, if_exists=choice
            )
    assert seen == [("raise", 0), ("raise", 2)]


# -- results and progress ---------------------------------------------------------------


async def test_what_a_work_returns_is_kept(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    With `retain` the value is the result of the task, and without it there is none.
    """

    async def answer() -> Any:
        return {"rows": (1, 2.5, None), "ok": True}

    async with opened(url) as (scheduler, bench):
        bench.works.register("kept", answer, retain=True)
        bench.works.register("dropped", answer)
        for name in ("kept", "dropped"):
            await scheduler.add_task(name, after=0, id=name)
            await scheduler.wait(name)
        kept, dropped = [await scheduler.get(name) for name in ("kept", "dropped")]
    assert kept.result == {"rows": [1, 2.5, None], "ok": True}
    assert dropped.result is None


@pytest.mark.parametrize(
    ("value", "why"),
    [
        pytest.param(object(), "result: cannot be JSON", id="no json"),
        pytest.param(float("nan"), "result: must be a finite number", id="nan"),
        pytest.param({"a": [{1: 2}]}, "result.a[0]: has a key", id="a key"),
        pytest.param("x" * 65_535, "more than 65536 bytes as JSON", id="too big"),
        pytest.param(["é"] * 20_000, "more than 65536 bytes as JSON", id="long"),
        pytest.param([["é" * 20_000] * 2], "more than 65536 bytes", id="in UTF-8"),
        pytest.param([*range(100_000)], "more than 65536 bytes", id="many"),
    ],
)
async def test_a_result_that_cannot_be_kept_is_a_failure(
    autojump_clock: trio.testing.MockClock, value: Any, why: str
) -> None:
    """
    What is no JSON, or too much of it, ends the task as failed, and it is not tried again.
    """

    async def answer() -> Any:
        return value

    async with open_bench() as (scheduler, bench):
        bench.works.register("answer", answer, retain=True, retry=Retry())
        await scheduler.add_task("answer", after=0, id="a")
        task = await scheduler.wait("a")
    assert (task.state, task.attempt, task.result) == (TaskState.FAILED, 1, None)
    assert task.err is not None
    assert task.err.startswith("what the work returned cannot be kept: ")
    assert why in task.err


async def test_what_cannot_be_kept_is_told_so_that_it_can_be(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    However odd the keys of a result, why it cannot be kept can be, in every store.
    """
    answers = [{"a\0": float("nan")}, {"x" * 60_000: float("nan")}]

    async def answer() -> Any:
        return answers.pop()

    async with opened(url) as (scheduler, bench):
        bench.works.register("answer", answer, retain=True)
        for task_id in "ab":
            await scheduler.add_task("answer", after=0, id=task_id)
            task = await scheduler.wait(task_id)
            assert task.state is TaskState.FAILED
            assert len(task.err or "") < 1_200
            assert Task.from_json(task.to_json()) == task


async def test_the_largest_result_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    """
    So many bytes of JSON are kept, and not one more.
    """

    async def answer() -> Any:
        return "x" * (65_536 - 2)

    async with open_bench() as (scheduler, bench):
        bench.works.register("answer", answer, retain=True)
        await scheduler.add_task("answer", after=0, id="a")
        task = await scheduler.wait("a")
    assert task.state is TaskState.DONE
    assert len(json.dumps(task.result)) == 65_536


async def test_progress_is_seen_by_others(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    What a work tells of its progress is seen at once, and by its next attempt.
    """
    found: list[Progress | None] = []

    async def copy() -> None:
        found.append(current_task().progress)
        await scheduler.progress(0.25)
        await trio.sleep(10)
        await scheduler.progress(0.5, "half")
        await trio.sleep(10)
        if current_task().attempt == 1:
            raise ValueError

    async with opened(url) as (scheduler, bench):
        bench.works.register("copy", copy, retry=Retry(2, wait=fixed(10)))
        await scheduler.add_task("copy", after=0, id="a")
        await trio.sleep(5)
        early = (await scheduler.get("a")).progress
        await trio.sleep(10)
        half = (await scheduler.get("a")).progress
        task = await scheduler.wait("a")
    assert early == Progress(fraction=0.25, at=noon(0))
    assert half == Progress(fraction=0.5, note="half", at=noon(10))
    assert found == [None, half]
    assert task.progress == Progress(fraction=0.5, note="half", at=noon(40))


async def test_progress_from_a_thread(
    autojump_clock: trio.testing.MockClock, url: str | None
) -> None:
    """
    A work in a thread tells its progress, too.
    """

    def copy() -> None:
        trio.from_thread.run(scheduler.progress, 1)

    async with opened(url) as (scheduler, bench):
        bench.works.register("copy", copy)
        await scheduler.add_task("copy", after=0, id="a")
        task = await scheduler.wait("a")
    assert task.progress == Progress(fraction=1, at=noon())


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((1.5,), "fraction"),
        ((-0.1,), "fraction"),
        ((float("nan"),), "fraction"),
        ((True,), "fraction"),
        (("half",), "fraction"),
        ((0.5, 3), "note"),
        ((0.5, "x" * 1_001), "note"),
        ((0.5, "\0"), "note"),
    ],
    ids=["more", "less", "nan", "bool", "text", "number", "long", "nul"],
)
async def test_bad_progress_is_refused(
    autojump_clock: trio.testing.MockClock, arguments: tuple[Any, ...], field: str
) -> None:
    """
    What is no progress is refused by the name of the argument, and nothing noted.
    """

    async def copy() -> None:
        with pytest.raises(InvalidTaskError) as caught:
            await scheduler.progress(*arguments)
        assert caught.value.field == field

    async with open_bench() as (scheduler, bench):
        bench.works.register("copy", copy)
        await scheduler.add_task("copy", after=0, id="a")
        task = await scheduler.wait("a")
    assert (task.state, task.progress) == (TaskState.DONE, None)


async def test_progress_is_for_works(autojump_clock: trio.testing.MockClock) -> None:
    """
    Outside of a work there is nothing that could come along.
    """
    async with open_bench() as (scheduler, _):
        with pytest.raises(RuntimeError, match="for use inside a work"):
            await scheduler.progress(0.5)


async def test_what_is_only_returned_is_not_held(
    autojump_clock: trio.testing.MockClock, postgresql_url: str
) -> None:
    """
    A transaction that was given a running task, as that has its key, keeps no one waiting.
    """

    async def hold() -> None:
        await trio.to_thread.run_sync(transact)

    def transact() -> None:
        with engine_of(postgresql_url) as engine, engine.begin() as connection:
            task = repository.add_task_in(
                connection, "sleep", after=0, key="k", if_exists="return"
            )
            assert task.state is TaskState.DISPATCHED
            trio.from_thread.run(scheduler.interrupt, "a")

    async with open_sql_repository(postgresql_url) as repository:
        async with open_bench(repository) as (scheduler, _):
            await scheduler.add_task("sleep", after=0, key="k", id="a")
            await trio.sleep(1)
            with autojump_held():
                await hold()
            assert (await scheduler.get("a")).state is TaskState.CANCELLED


async def test_what_cannot_be_seen_is_taken(
    autojump_clock: trio.testing.MockClock, postgresql_url: str
) -> None:
    """
    In a transaction that sees the database as it was, an id taken since is refused, too.
    """

    def transact() -> None:
        with engine_of(postgresql_url) as engine:
            isolated = engine.execution_options(isolation_level="REPEATABLE READ")
            with isolated.begin() as connection:
                connection.execute(text("SELECT count(*) FROM gokugen_task"))
                trio.from_thread.run(repository.add, [stored("a", seconds=60)])
                with pytest.raises(TaskExistsError, match="'a'"):
                    repository.add_task_in(connection, "note", after=5, id="a")
                trio.from_thread.run(repository.add, [stored("k", seconds=60, key="k")])
                with pytest.raises(RepositoryError, match="begin yours anew"):
                    repository.add_task_in(connection, "note", after=5, key="k")
                repository.add_task_in(connection, "note", after=5, id="b")

    async with open_sql_repository(postgresql_url) as repository:
        with autojump_held():
            await trio.to_thread.run_sync(transact)
        assert (await repository.get("b")).id == "b"


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
async def test_keys_count_in_ones_own_transaction(
    autojump_clock: trio.testing.MockClock, where: str, request: pytest.FixtureRequest
) -> None:
    """
    A task that is added in a transaction of one's own has its key, its policy, and no twin.
    """
    url: str = request.getfixturevalue(f"{where}_url")

    def add(connection: Any) -> list[Task]:
        first = repository.add_task_in(
            connection, "flaky", after=5, key="k", id="a", retry=Retry(2, wait=fixed(7))
        )
        with pytest.raises(KeyExistsError) as caught:
            repository.add_task_in(connection, "flaky", after=5, key="k", id="b")
        assert (caught.value.key, caught.value.task_id) == ("k", "a")
        again = repository.add_task_in(
            connection, "flaky", after=9, key="k", if_exists="return"
        )
        moved = repository.add_task_in(
            connection, "flaky", after=3, key="k", if_exists="replace", retry=first.retry
        )
        return [first, again, moved]

    def transact() -> list[Task]:
        with engine_of(url) as engine, engine.begin() as connection:
            return add(connection)

    async with open_sql_repository(url) as repository:
        async with open_bench(repository) as (scheduler, bench):
            failing(bench, [ValueError(), None])
            with autojump_held():
                first, again, moved = await trio.to_thread.run_sync(transact)
            task = await scheduler.wait("a")
    assert first == again
    assert (moved.id, moved.scheduled_at) == ("a", noon(3))
    assert bench.log == [("a", 3), ("a", 10)]
    assert task.retries == 1
