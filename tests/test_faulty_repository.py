"""The repository that fails when it is told to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import trio
import trio.testing

from trio_gokugen import (
    BackoffHooks,
    HeapRepository,
    RepositoryError,
    SchedulerAlreadyRunningError,
    Task,
    TaskExistsError,
    TaskNotFoundError,
    TaskQuery,
    TaskState,
    TrioClock,
    WorkRegistry,
    open_scheduler,
)
from trio_gokugen.abc import ANY_TASK, AddTasks, CancelTask, EndTask, RecoverAction
from trio_gokugen.testing import Call, FaultyRepository

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


def new(task_id: str, **fields: Any) -> Task:
    return Task(id=task_id, work_id="work", scheduled_at=NOON, created_at=NOON, **fields)


async def has(repository: FaultyRepository, task_id: str) -> bool:
    tasks = await repository.find(TaskQuery())
    return task_id in {task.id for task in tasks}


@pytest.fixture
def repository() -> FaultyRepository:
    return FaultyRepository(HeapRepository())


# -- errors ---------------------------------------------------------------------------


async def test_the_next_call_fails(repository: FaultyRepository) -> None:
    """
    By default the next call of the method fails, without effect, and only that one.
    """
    fault = repository.fail("add")
    await repository.get_next()
    with pytest.raises(RepositoryError, match="a fault was injected here"):
        await repository.add([new("a")])
    assert not await has(repository, "a")
    assert fault.happened == 1

    await repository.add([new("a")])
    assert await has(repository, "a")
    assert fault.happened == 1


@pytest.mark.parametrize("error", [OSError("disk full"), lambda: OSError("disk full")])
async def test_it_raises_what_it_is_given(repository: FaultyRepository, error: Any) -> None:
    """
    An exception is raised as it is, and a function is asked for one.
    """
    repository.fail("apply", error)
    with pytest.raises(OSError, match="disk full"):
        await repository.apply([AddTasks([new("a")])])


async def test_an_exception_type_will_do(repository: FaultyRepository) -> None:
    """
    An exception type is raised anew for each call.
    """
    repository.fail("get", OSError, times=2)
    raised: list[BaseException] = []
    for _ in range(2):
        with pytest.raises(OSError) as caught:  # noqa: PT011 (it has no message)
            await repository.get("a")
        raised.append(caught.value)
    assert raised[0] is not raised[1]


async def test_it_fails_from_the_nth_call_on(repository: FaultyRepository) -> None:
    """
    With a number it is the n-th call from now, and as many after it as asked for.
    """
    await repository.count_pending()
    repository.fail("count_pending", when=2, times=2)
    failed: list[bool] = []
    for _ in range(5):
        try:
            await repository.count_pending()
        except RepositoryError:
            failed.append(True)
        else:
            failed.append(False)
    assert failed == [False, True, True, False, False]


async def test_it_fails_until_it_is_healed(repository: FaultyRepository) -> None:
    """
    Without a limit it fails for as long as the fault is there; others stay.
    """
    fault = repository.fail("get_next", times=None)
    repository.fail("add")
    for _ in range(10):
        with pytest.raises(RepositoryError):
            await repository.get_next()
    repository.heal(fault)
    assert await repository.get_next() is None
    with pytest.raises(RepositoryError):
        await repository.add([])

    repository.fail("get_next", times=None)
    repository.fail("add", times=None)
    repository.heal()
    await repository.add([new("a")])
    assert await repository.get_next() == new("a")


async def test_a_predicate_chooses_calls(repository: FaultyRepository) -> None:
    """
    With a predicate those calls fail that satisfy it, by their operations for example.
    """

    def ends_something(call: Call) -> bool:
        return any(isinstance(operation, EndTask) for operation in call.operations)

    repository.fail("apply", when=ends_something)
    await repository.add([new("a")])
    await repository.apply([AddTasks([new("b")])])
    run = await repository.mark_dispatched("a", NOON)
    with pytest.raises(RepositoryError):
        await repository.apply([CancelTask("b", NOON), EndTask(run, NOON)])
    assert (await repository.get("b")).state is TaskState.SCHEDULED
    await repository.apply([CancelTask("b", NOON), EndTask(run, NOON)])
    assert (await repository.get("a")).state is TaskState.DONE


async def test_an_unknown_outcome(repository: FaultyRepository) -> None:
    """
    With `after` the call is carried out, and fails all the same.
    """
    repository.fail("add", OSError("connection lost"), after=True)
    with pytest.raises(OSError, match="connection lost"):
        await repository.add([new("a")])
    assert await has(repository, "a")

    repository.fail("add", OSError("connection lost"), after=True)
    with pytest.raises(TaskExistsError):  # it was refused, and nothing comes after that
        await repository.add([new("a")])


async def test_failing_is_a_checkpoint(repository: FaultyRepository) -> None:
    """
    A failing call lets others run, so that a caller who retries for ever stops nobody.
    """
    repository.fail("get_next")
    with trio.testing.assert_checkpoints(), pytest.raises(RepositoryError):
        await repository.get_next()


async def test_the_timer_may_fail_to_start(repository: FaultyRepository) -> None:
    """
    The methods that are not async fail alike, before or after they are carried out.
    """
    clock = TrioClock(NOON)
    repository.fail("start_timer")
    with pytest.raises(RepositoryError):
        repository.start_timer(clock)
    repository.start_timer(clock)
    repository.fail("stop_timer", after=True)
    with pytest.raises(RepositoryError):
        repository.stop_timer()
    repository.start_timer(clock)
    with pytest.raises(SchedulerAlreadyRunningError):
        repository.start_timer(clock)


# -- delays ---------------------------------------------------------------------------


async def test_a_call_is_delayed(
    repository: FaultyRepository, autojump_clock: trio.testing.MockClock
) -> None:
    """
    A delayed call takes effect later; cancelled before, it never does.
    """
    repository.delay("add", 5, times=2)
    with trio.move_on_after(3):
        await repository.add([new("a")])
    assert not await has(repository, "a")
    assert trio.current_time() == 3
    await repository.add([new("a")])
    assert await has(repository, "a")
    assert trio.current_time() == 8
    await repository.add([new("b")])
    assert trio.current_time() == 8


async def test_an_answer_is_delayed(
    repository: FaultyRepository, autojump_clock: trio.testing.MockClock
) -> None:
    """
    With `after` it takes effect at once, and not even a cancellation brings the answer
    earlier, or makes it none.
    """
    repository.delay(
        "cancel", 5, when=lambda call: call.arguments["task_id"] == "a", after=True
    )
    await repository.add([new("a"), new("b")])
    with trio.move_on_after(1) as scope:
        task, changed = await repository.cancel("a", NOON)
        assert task.state is TaskState.CANCELLED
        assert changed
    assert trio.current_time() == 5
    assert not scope.cancelled_caught
    await repository.cancel("b", NOON)
    assert trio.current_time() == 5


async def test_faults_add_up(
    repository: FaultyRepository, autojump_clock: trio.testing.MockClock
) -> None:
    """
    Several faults may happen to one call, in the order they were set.
    """
    repository.delay("get", 2)
    repository.delay("get", 3)
    repository.fail("get", OSError("down"))
    with pytest.raises(OSError, match="down"):
        await repository.get("a")
    assert trio.current_time() == 5
    with pytest.raises(TaskNotFoundError):
        await repository.get("a")


# -- and all the rest -----------------------------------------------------------------


async def test_calls_are_recorded(
    repository: FaultyRepository, autojump_clock: trio.testing.MockClock
) -> None:
    """
    Every call is noted, with its arguments and the time, whether or not it failed.
    """
    operations = [AddTasks([new("a")])]
    repository.fail("apply")
    with pytest.raises(RepositoryError):
        await repository.apply(operations)
    await trio.sleep(2)
    await repository.recover(RecoverAction.LEAVE, NOON)
    first, second = repository.calls
    assert (first.method, first.at) == ("apply", 0)
    assert first.operations is operations
    assert (second.method, second.at) == ("recover", 2)
    expected = {"action": RecoverAction.LEAVE, "at": NOON, "only": ANY_TASK}
    assert second.arguments == expected
    assert second.operations == ()


def test_what_makes_no_sense_is_refused(repository: FaultyRepository) -> None:
    """
    Only methods of a repository fail, and only async ones can be late.
    """
    with pytest.raises(ValueError, match="method: a repository has no 'fly'"):
        repository.fail("fly")
    with pytest.raises(ValueError, match="method: start_timer is not async"):
        repository.delay("start_timer", 1)


async def test_a_scheduler_outlives_its_faults(
    repository: FaultyRepository, autojump_clock: trio.testing.MockClock
) -> None:
    """
    A scheduler with hooks that retry does its tasks, once the repository is back.
    """
    works = WorkRegistry()
    ran: list[float] = []

    @works.register
    async def work() -> None:
        ran.append(trio.current_time())

    # Before the start: the dispatch loop may begin to wait before the block does.
    lost = repository.fail("wait_until_due", times=3)
    async with open_scheduler(works, repository, hooks=BackoffHooks()) as scheduler:
        unwritten = repository.fail(
            "apply", when=lambda call: any(isinstance(o, EndTask) for o in call.operations)
        )
        task = await scheduler.add_task("work", after=1)
        ended = await scheduler.wait(task.id)
    assert ended.state is TaskState.DONE
    assert len(ran) == 1
    assert ran[0] >= 1
    assert (lost.happened, unwritten.happened) == (3, 1)
