"""Works in processes: real ones, of which none is left after a test."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial
from importlib.machinery import ModuleSpec
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import outcome
import process_works
import psutil  # type: ignore[import-untyped]
import pytest
import trio
import trio.testing
from leftovers import children, nothing_left
from process_works import Plain, Raised, works
from processes import eventually
from support import NOON, bounded, noon

from trio_gokugen import (
    ForeignError,
    HeapRepository,
    Interval,
    Retry,
    Scheduler,
    Task,
    TaskQuery,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    WorkRegistry,
    _callables,
    _current_task,
    _process_work,
    _processes,
    autojump_held,
    open_scheduler,
)
from trio_gokugen._describe import describe
from trio_gokugen._taken_apart import put_together
from trio_gokugen.abc import Condition, Work
from trio_gokugen.testing import SAME_PROCESS_CHECKS, check_dispatcher

PATIENCE = 60.0
"""Seconds of real time after which something that has not come never will."""


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Nothing is left after any of these tests."""
    with nothing_left(tmp_path / "temporary", monkeypatch):
        yield


@attrs.define(eq=False)
class Pool:
    """A scheduler on virtual time, and pipes by which works tell that they run."""

    scheduler: Scheduler
    dispatcher: WorkerPoolDispatcher
    repository: HeapRepository
    directory: Path

    async def run(self, work_id: str, /, **param: Any) -> Task:
        """Run a work, and return how its task has ended."""
        task = await self.scheduler.add_task(work_id, param, after=0)
        return await self.scheduler.wait(task.id)

    def pipe(self, name: str) -> str:
        path = self.directory / name
        os.mkfifo(path)
        return str(path)

    async def start(
        self, task_id: str, work_id: str, *, go: bool = False, **fields: Any
    ) -> int:
        """Start a work, and return the id of its process once it is under way."""
        started = await self.add(task_id, work_id, go=go, **fields)
        return await told(started)

    async def add(
        self, task_id: str, work_id: str, *, go: bool = False, **fields: Any
    ) -> str:
        started = self.pipe(f"{task_id}-started")
        param = {"started": started}
        if go:
            param["go"] = self.pipe(f"{task_id}-go")
        await self.scheduler.add_task(work_id, param, after=0, id=task_id, **fields)
        return started

    async def let_go(self, task_id: str) -> Task:
        """Let a work end that waits to be let go, and return its task."""
        await in_thread((self.directory / f"{task_id}-go").write_text, "go")
        return await self.scheduler.wait(task_id)


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    with autojump_held():
        return await trio.to_thread.run_sync(function, *args, abandon_on_cancel=True)


async def told(started: str) -> int:
    """The id of the process that has opened the other end."""
    return int(await in_thread(Path(started).read_text))


def pid(result: object) -> int:
    assert isinstance(result, int)
    return result


@asynccontextmanager
async def open_pool(
    directory: Path, max_workers: int = 10, **limits: Any
) -> AsyncGenerator[Pool]:
    repository = HeapRepository()
    dispatcher = WorkerPoolDispatcher(works, max_workers, **limits)
    async with open_scheduler(
        works, repository, dispatcher, clock=TrioClock(NOON, 0.0)
    ) as scheduler:
        yield Pool(scheduler, dispatcher, repository, directory)


# -- what comes and goes ----------------------------------------------------------------


async def test_works_run_in_processes_that_are_used_again(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A work runs in a process of the pool, and the next one in the same.
    """
    async with open_pool(tmp_path) as pool:
        first, second = [(await pool.run("where")).result for _ in range(2)]
        assert first == second
        assert children() == {pid(first)}
    assert children() == set()


VALUES = [None, 1.5, "刻", [1, [True, {"a": None}]], {"b": 2**63 - 1}, "x" * 60_000]


async def test_values_go_there_and_back(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A work gets the values of its task's `param`, and what it returns is the result.
    """
    async with open_pool(tmp_path) as pool:
        for value in VALUES:
            task = await pool.run("echo", value=value)
            assert (task.state, task.result) == (TaskState.DONE, value)
        assert (await pool.run("echo", value=1, self="s")).result == [1, {"self": "s"}]


async def test_param_is_a_fresh_copy(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A work may change what it is called with: its task does not see it, there nor here.
    """
    async with open_pool(tmp_path) as pool:
        task = await pool.run("change", items=[{"deep": "first"}])
        assert task.result == 2
        assert task.param == {"items": [{"deep": "first"}]}


@pytest.mark.parametrize("rare", [False, True])
async def test_the_task_is_known_there(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, rare: bool
) -> None:
    """
    `current_task()` is the task as it was dispatched, with all that a task may have.
    """
    fields: dict[str, Any] = {"meta": {"a": [1]}, "priority": 3, "deadline": noon(500)}
    if rare:
        fields |= {"key": "k", "retry": Retry(3, jitter=1)}
    async with open_pool(tmp_path) as pool:
        task = await pool.scheduler.add_task("task_there", after=0, **fields)
        ended = await pool.scheduler.wait(task.id)
    assert isinstance(ended.result, str)
    there = Task.from_json(ended.result)
    assert there.state is TaskState.DISPATCHED
    assert attrs.evolve(
        there, state=ended.state, done_at=ended.done_at, result=ended.result
    ) == (ended)


async def test_the_scheduler_is_not_there(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    `current_scheduler()` in a process says that there is none.
    """
    async with open_pool(tmp_path) as pool:
        task = await pool.run("scheduler_there")
    assert task.err is not None
    assert task.err.startswith("RuntimeError: current_scheduler(): a work in a process,")


async def test_progress_cannot_be_told_in_a_process(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A work in a process that would tell how far it is hears that it cannot.
    """
    async with open_pool(tmp_path) as pool:
        task = await pool.run("progress_there")
    assert task.err is not None
    assert task.err.startswith(
        "RuntimeError: report_progress(): a process of a WorkerPoolDispatcher brings back"
        " nothing before the work has ended"
    )


async def test_methods_of_classes_are_found(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A static method or one of a class has a name by which it is found.
    """
    async with open_pool(tmp_path) as pool:
        assert (await pool.run("static")).result == "static"
        assert (await pool.run("of_class")).result == "Plain"


UNKEPT = {
    "object": "what the work returned cannot be kept: result: cannot be JSON: a value of",
    "large": "what the work returned cannot be kept: it has more than 65536 bytes as JSON",
    "many": "what the work returned cannot be kept: it has more than 65536 bytes as JSON",
    "unreadable": "its outcome cannot be told: ArithmeticError: not for you",
}


async def test_what_cannot_be_kept(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A result that cannot be kept fails the task as it does in a thread, if it was to be
    kept; if not, nobody needs it.
    """
    async with open_pool(tmp_path) as pool:
        for what, why in UNKEPT.items():
            for work_id in ("give_to_keep", "give_in_thread"):
                task = await pool.run(work_id, what=what)
                assert task.state is TaskState.FAILED
                assert task.err is not None
                assert task.err.startswith(why)
            assert (await pool.run("give", what=what)).state is TaskState.DONE


async def test_nobody_looks_at_what_is_not_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    What a work returns that is not to be kept is not sent back.
    """
    pool = _processes.Processes()
    try:
        await pool.make_ready()
        run = Task(
            id="a", work_id="w", param={"value": 1}, scheduled_at=NOON, created_at=NOON
        )
        for work_id, sent in ("echo", 1), ("echo_in_vain", None):
            assert await pool.call(works.get(work_id), run) == outcome.Value(sent)
    finally:
        await pool.aclose()


async def test_a_coroutine_is_no_result(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A plain function that returns a coroutine has failed, and is told what to do.
    """
    async with open_pool(tmp_path) as pool:
        task = await pool.run("give", what="coroutine")
    assert task.err is not None
    assert task.err.startswith("TypeError: give returned a coroutine: register it as")


async def test_the_clock_does_not_jump_over_a_process(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    While processes start and work, no virtual time passes; nor while they end.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 86400)
        async with open_pool(tmp_path) as pool:
            for _ in range(3):
                await pool.run("nap")
            assert trio.current_time() == 0
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()


# -- what is raised ---------------------------------------------------------------------


async def test_exceptions_come_back(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    What a work raises comes back as it is, if it was made with plain values; and `err`
    tells where that was.
    """
    async with open_pool(tmp_path) as pool:
        for which, error in Raised.whole.items():
            task = await pool.run("fail", kind="whole", which=which)
            assert task.state is TaskState.FAILED
            assert task.err is not None
            assert task.err.partition("\n\n")[0] == describe(error).partition("\n\n")[0]
            assert "In its process:" in task.err
            assert 'process_works.py", line' in task.err
            assert "in fail" in task.err
            assert "_process_work.py" not in task.err


async def test_what_cannot_come_back_is_told(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    What cannot be taken apart there, or put together here, fails the task with its own
    text, and why it could not come back; and its process goes on.
    """
    async with open_pool(tmp_path) as pool:
        process = (await pool.run("where")).result
        for which, (error, why) in Raised.lost.items():
            task = await pool.run("fail", kind="lost", which=which)
            assert task.state is TaskState.FAILED
            assert task.err is not None
            head = task.err.partition("\n\n")[0]
            kind = f"{type(error).__module__}.{type(error).__qualname__}"
            text = str(error).partition(" at 0x")[0]  # there it is at another place
            assert head.startswith(f"ForeignError: {kind}: {text}")
            assert "(which could not come back: " in head
            assert why in head
            assert "in fail" in task.err
        assert (await pool.run("where")).result == process


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("sys.exit", ": 4"),
        ("sys.exit of nothing", ""),
        ("sys.exit with a text", ": no more"),
    ],
)
async def test_an_exit_fails_its_own_task_only(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, how: str, text: str
) -> None:
    """
    A work that calls `sys.exit` has failed, and its task says so; its process goes on.
    """
    async with open_pool(tmp_path) as pool:
        process = (await pool.run("where")).result
        task = await pool.run("die", how=how)
        assert task.state is TaskState.FAILED
        assert task.err is not None
        said = (
            f"ForeignError: builtins.SystemExit{text} (which could not come back: it would"
        )
        assert task.err.startswith(said)
        assert "sys.exit(" in task.err
        assert (await pool.run("where")).result == process


async def test_a_retry_knows_what_cannot_come_back(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A `Retry` wants an error that it names, though that cannot be made here.
    """
    async with open_pool(tmp_path) as pool:
        task = await pool.run("fail_only_there")
    assert (task.state, task.attempt) == (TaskState.FAILED, 2)
    assert task.err is not None
    assert "only over there (which could not come back: it cannot be put" in task.err
    assert "ArithmeticError: not here" in task.err
    assert not Retry(retry_on=OSError).wants(ForeignError(("a.B", "c.D"), "", ""))


@pytest.mark.parametrize(
    ("what", "again_at", "retries"),
    [("snooze", 30, 0), ("snooze until", 30, 0), ("after", 30, 1)],
)
async def test_wishes_are_heard(
    autojump_clock: trio.testing.MockClock,
    tmp_path: Path,
    what: str,
    again_at: float,
    retries: int,
) -> None:
    """
    `Snooze` and `Retry.after` do in a process what they do anywhere.
    """
    async with open_pool(tmp_path) as pool:
        task = await pool.run("wish", what=what)
    assert (task.state, task.result, task.retries) == (TaskState.DONE, 2, retries)
    assert task.dispatched_at == noon(again_at)


async def test_a_discarded_task_is_given_up(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    `Discard` in a process fails the task for its reason.
    """
    async with open_pool(tmp_path) as pool:
        task = await pool.run("wish", what="discard")
    assert task.state is TaskState.FAILED
    assert task.err is not None
    assert task.err.startswith("Discard: not worth it")


async def test_a_keyboard_interrupt_is_of_its_run_only(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    What is no `Exception` fails its run, and does not leave the scheduler.
    """
    async with open_pool(tmp_path) as pool:
        task = await pool.run("leave")
        assert task.state is TaskState.FAILED
        assert (task.err or "").startswith(
            "ForeignError: builtins.KeyboardInterrupt (which"
        )
        assert (await pool.run("echo")).state is TaskState.DONE


# -- what dies --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "told_as"),
    [
        ("exit", "exit code 3"),
        ("segfault", "killed by SIGSEGV"),
        ("killed", "killed by SIGKILL"),
    ],
)
async def test_a_process_that_dies_fails_its_own_task_only(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, how: str, told_as: str
) -> None:
    """
    The run whose process dies fails, and says how that died; others go on, and new ones
    run.
    """
    async with open_pool(tmp_path, max_processes=2) as pool:
        other = await pool.start("other", "hold", go=True)
        task = await pool.run("die", how=how)
        assert task.state is TaskState.FAILED
        assert task.err is not None
        said = f"WorkerDiedError: the process of the work has ended: {told_as}"
        assert task.err.splitlines()[0] == said
        assert (await pool.run("where")).result != other
        assert (await pool.let_go("other")).result == other


async def test_a_process_may_be_killed_from_outside(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A run whose process is killed fails; one killed while it is idle harms nobody.
    """
    async with open_pool(tmp_path) as pool:
        busy = await pool.start("busy", "spin")
        os.kill(busy, signal.SIGKILL)
        task = await pool.scheduler.wait("busy")
        assert task.err is not None
        assert "killed by SIGKILL" in task.err
        for _ in range(3):
            idle = pid((await pool.run("where")).result)
            os.kill(idle, signal.SIGKILL)
            # Until it has ended, and is still the pool's to ask what became of it.
            await in_thread(os.waitid, os.P_PID, idle, os.WEXITED | os.WNOWAIT)
            assert (await pool.run("where")).result != idle
        os.kill(pid((await pool.run("where")).result), signal.SIGKILL)


async def test_a_death_is_tried_again_as_any_failure(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    With a `Retry`, a task whose process has died has another attempt, in another process.
    """
    async with open_pool(tmp_path) as pool:
        task = await pool.run("die_at_first")
    assert (task.state, task.result, task.attempt) == (TaskState.DONE, 2, 2)
    assert "exit code 3" in task.errors[0].err


async def test_a_process_that_does_not_end_is_killed_at_the_end(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    An idle process that something keeps alive is killed when the scheduler ends.
    """
    monkeypatch.setattr("trio_gokugen._processes.GRACE", 0.1)
    async with open_pool(tmp_path) as pool:
        await pool.run("stay")
        assert len(children()) == 1
    assert children() == set()


async def test_a_process_that_dies_as_it_starts_is_told(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If a process does not come so far as to run a work, its task fails, and is told that.
    """
    async with open_pool(tmp_path) as pool:
        with monkeypatch.context() as patch:
            patch.setattr("trio_gokugen._processes.be_ready", process_works.die_at_once)
            task = await pool.run("where")
        assert task.err is not None
        assert "exit code 5" in task.err.splitlines()[0]
        assert "It had not begun with the work" in task.err
        assert (await pool.run("where")).state is TaskState.DONE


async def test_what_was_not_opened_can_be_closed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A pool of processes in which nothing has run has nothing to close.
    """
    await _processes.Processes().aclose()


async def test_only_the_program_itself_kills_what_is_left(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A process that the program has forked off, and that ends as programs do, kills nothing.
    """
    async with open_pool(tmp_path) as pool:
        process = pid((await pool.run("where")).result)
        _processes.kill_left(os.getpid() + 1)
        assert (await pool.run("where")).result == process
        _processes.kill_left(os.getpid())
        with bounded():
            await in_thread(os.waitid, os.P_PID, process, os.WEXITED | os.WNOWAIT)


# -- what is stopped --------------------------------------------------------------------


async def test_an_interrupted_work_is_killed_at_once(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A work that never looks up ends when it is interrupted: its process is gone, the others
    are not, and the pool is whole.
    """
    async with open_pool(tmp_path, 2, max_processes=2) as pool:
        other = await pool.start("other", "hold", go=True)
        for number in range(2):
            process = await pool.start(f"t{number}", "spin")
            task = await pool.scheduler.interrupt(f"t{number}")
            assert task.state is TaskState.CANCELLED
            assert children() == {other}
            assert not psutil.pid_exists(process)
        assert pool.dispatcher.statistics().running == 1
        assert (await pool.run("where")).state is TaskState.DONE
        assert (await pool.let_go("other")).result == other


async def test_processes_that_are_killed_leave_no_file_open(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    Of a process that was killed, at work or as it starts, or has died, nothing stays open,
    not even until the garbage is collected.
    """

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (as many as there are)

    async with open_pool(tmp_path) as pool:
        await pool.start("first", "spin")
        await pool.scheduler.interrupt("first")
        gc.collect()
        gc.disable()
        try:
            before = count()
            for number in range(2):
                await pool.start(f"t{number}", "spin")
                await pool.scheduler.interrupt(f"t{number}")
                await pool.run("die", how="exit")
                task = await pool.scheduler.add_task("where", after=0)
                while not pool.dispatcher.statistics().running:
                    await trio.lowlevel.checkpoint()
                await trio.testing.wait_all_tasks_blocked()
                await pool.scheduler.interrupt(task.id)
            # The thread that has started one may be about to let go of it.
            assert eventually(lambda: count() == before)
        finally:
            gc.enable()


@pytest.mark.parametrize("how", ["program", "fork"])
@pytest.mark.parametrize("then", ["spin", "die"])
async def test_what_a_process_has_started_is_not_waited_for(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, how: str, then: str
) -> None:
    """
    A process that is killed, or dies, has ended when it has, whatever it has started
    stays.
    """
    async with open_pool(tmp_path) as pool:
        started = pool.pipe("started")
        param = {"started": started, "how": how, "then": then}
        began = time.monotonic()
        await pool.scheduler.add_task("leave_behind", param, after=0, id="t")
        left = await told(started)
        if then == "spin":
            task = await pool.scheduler.interrupt("t")
            assert task.state is TaskState.CANCELLED
        else:
            task = await pool.scheduler.wait("t")
            assert "exit code 3" in (task.err or "")
        took = time.monotonic() - began
        os.kill(left, signal.SIGKILL)
    assert took < process_works.STAYS


async def test_a_fork_that_comes_back_from_a_work(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    What a work forks off may use `multiprocessing`; and if it returns from the work, that
    is no answer, and it ends.
    """
    async with open_pool(tmp_path) as pool:
        assert (await pool.run("fork_that_comes_back")).result == [True]
        assert (await pool.run("where")).state is TaskState.DONE


async def test_a_work_past_its_deadline_is_killed(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    At its task's deadline a work ends, however busy it is, and the task says so.
    """
    async with open_pool(tmp_path) as pool:
        process = await pool.start("late", "spin", deadline=noon(10))
        autojump_clock.jump(10)
        task = await pool.scheduler.wait("late")
        assert not psutil.pid_exists(process)
        assert (await pool.run("where")).state is TaskState.DONE
    assert task.state is TaskState.FAILED
    assert task.err is not None
    assert task.err.startswith("DeadlineExceededError")
    assert "the work was cancelled" in task.err.splitlines()[0]


async def test_a_work_past_its_timeout_is_killed(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    After its time-out a work ends, and the task says so.
    """
    async with open_pool(tmp_path) as pool:
        process = await pool.start("slow", "spin_in_time")
        autojump_clock.jump(5)
        task = await pool.scheduler.wait("slow")
        assert not psutil.pid_exists(process)
    assert task.state is TaskState.FAILED
    assert task.err is not None
    assert task.err.startswith("WorkTimeoutError")


def raised_if(condition: bool) -> AbstractContextManager[Any]:
    if condition:
        return pytest.RaisesGroup(ArithmeticError, flatten_subgroups=True)
    return nullcontext()


@pytest.mark.parametrize("how", ["stop", "cancelled", "error"])
@pytest.mark.parametrize("work_id", ["spin", "spin_once"])
async def test_no_process_outlives_the_scheduler(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, how: str, work_id: str
) -> None:
    """
    However a scheduler ends, its processes have ended, idle or busy; the task runs again,
    unless it must not.
    """
    repository = HeapRepository()
    with trio.CancelScope() as scope, raised_if(how == "error"):
        async with open_pool(tmp_path, max_processes=2) as pool:
            repository = pool.repository
            # Two at the same time: one of the two processes is idle then.
            await pool.start("other", "hold", go=True)
            await pool.start("task", work_id)
            await pool.let_go("other")
            assert len(children()) == 2
            if how == "stop":
                await pool.scheduler.stop(grace=0)
                assert children() == set()
            elif how == "cancelled":
                scope.cancel()
                await trio.sleep_forever()
            else:
                raise ArithmeticError
    assert children() == set()
    task = await repository.get("task")
    once = work_id == "spin_once"
    assert task.state is (TaskState.FAILED if once else TaskState.SCHEDULED)


async def test_a_dispatcher_may_be_used_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    The next scheduler of the same dispatcher has processes of its own.
    """
    dispatcher = WorkerPoolDispatcher(works)
    seen: list[Any] = []
    for _ in range(2):
        async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
            task = await scheduler.add_task("where", after=0)
            seen.append((await scheduler.wait(task.id)).result)
            assert children() == {seen[-1]}
        assert children() == set()
    assert len(set(seen)) == 2


async def test_signals_in_a_process(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A process takes no notice of a Ctrl-C nor of a SIGTERM, which are not blocked for what a
    work starts, and end that.
    """
    async with open_pool(tmp_path) as pool:
        assert (await pool.run("signals")).result == ["True", "False", "False"]
        assert (await pool.run("end_a_program")).result == -signal.SIGTERM
        assert (await pool.run("end_a_fork")).result == -signal.SIGTERM
    both = {signal.SIGINT, signal.SIGTERM}
    assert not both & signal.pthread_sigmask(signal.SIG_BLOCK, ())


# -- whose turn it is -------------------------------------------------------------------


async def test_so_many_processes_at_a_time(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    No more processes than `max_processes` are at work; other works do not wait for them.
    """
    async with open_pool(tmp_path, 4, max_processes=2) as pool:
        at_work = {await pool.start(each, "hold", go=True) for each in ("a", "b")}
        third = await pool.add("c", "hold", go=True)
        await trio.testing.wait_all_tasks_blocked()
        assert children() == at_work
        assert pool.dispatcher.statistics().running == 3
        assert (await pool.run("give_in_thread", what="large")).state is TaskState.FAILED
        ended = await pool.let_go("a")
        assert await told(third) == ended.result
        for each in ("b", "c"):
            await pool.let_go(each)


async def test_who_is_cancelled_before_its_turn_never_starts(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A work that waits for its turn and is interrupted, or past its deadline, or has to go
    with the scheduler, has not started: it may run again, though it must not twice.
    """
    async with open_pool(tmp_path, 4, max_processes=1) as pool:
        process = await pool.start("first", "hold", go=True)
        await pool.add("interrupted", "hold_once", go=True)
        await pool.add("late", "hold", go=True, deadline=noon(10))
        await pool.add("shut down", "hold_once", go=True)
        await trio.testing.wait_all_tasks_blocked()
        assert (await pool.scheduler.interrupt("interrupted")).state is TaskState.CANCELLED
        autojump_clock.jump(10)
        late = await pool.scheduler.wait("late")
        assert late.err is not None
        assert late.err.splitlines()[0].endswith("the work was not started")
        assert children() == {process}
        await pool.scheduler.stop(grace=0)
    waiting = await pool.repository.get("shut down")
    assert (waiting.state, waiting.interruptions) == (TaskState.SCHEDULED, 1)


async def test_the_time_out_begins_with_the_work(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    While a work waits for its turn its time-out does not run; it runs from then on.
    """
    async with open_pool(tmp_path, max_processes=1) as pool:
        await pool.start("first", "hold", go=True)
        waiting = dict[str, str]()
        for each, work_id in ("second", "hold_in_time"), ("third", "spin_in_time"):
            waiting[each] = await pool.add(each, work_id, go=each == "second")
            await trio.testing.wait_all_tasks_blocked()  # so they are in this order
        autojump_clock.jump(1_000)
        await trio.testing.wait_all_tasks_blocked()
        await pool.let_go("first")
        await told(waiting["second"])
        autojump_clock.jump(4)
        second = await pool.let_go("second")
        assert second.state is TaskState.DONE
        await told(waiting["third"])
        autojump_clock.jump(5)
        third = await pool.scheduler.wait("third")
        assert third.err is not None
        assert third.err.startswith("WorkTimeoutError")


async def test_a_deadline_during_a_condition_has_started_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A run whose deadline passes while its condition is asked was not started, says its task.
    """
    registry = WorkRegistry()
    registry.register("where", process_works.where, process=True)

    @registry.condition
    async def slow(*_: Any) -> bool:
        await trio.sleep_forever()
        return True

    async with open_scheduler(registry, clock=TrioClock(NOON, 0.0)) as scheduler:
        await scheduler.add_schedule(
            "s", Interval(100), "where", when="slow", deadline_after=10
        )
        await trio.sleep(120)
        [task] = await scheduler.find(TaskQuery(states={TaskState.FAILED}))
    assert task.err is not None
    assert task.err.splitlines()[0].endswith("the work was not started")


async def test_two_pools_share_no_process(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    Each pool has its own processes, and its own limit of them.
    """
    async with open_pool(tmp_path, max_processes=1) as one:
        held = await one.start("a", "hold", go=True)
        async with open_pool(tmp_path, max_processes=1) as other:
            assert (await other.run("where")).result != held
        assert children() == {held}
        await one.let_go("a")


async def test_the_number_of_processes_is_changed_while_it_runs(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    More processes begin to work as soon as they may.
    """
    async with open_pool(tmp_path, 4, max_processes=1) as pool:
        assert pool.dispatcher.max_processes == 1
        first = await pool.start("a", "hold", go=True)
        waiting = await pool.add("b", "hold", go=True)
        await trio.testing.wait_all_tasks_blocked()
        pool.dispatcher.max_processes = 2
        assert await told(waiting) != first
        with pytest.raises(ValueError, match="max_processes: must be at least 1"):
            pool.dispatcher.max_processes = 0
        for each in ("a", "b"):
            await pool.let_go(each)


@pytest.mark.parametrize("argument", ["max_processes", "max_threads", "max_workers"])
@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (True, TypeError), (1.5, TypeError)]
)
def test_limits_are_checked(argument: str, value: Any, error: type[Exception]) -> None:
    """
    A limit is a number from 1 on.
    """
    with pytest.raises(error, match=f"^{argument}: must be a"):
        WorkerPoolDispatcher(works, **{argument: value})


# -- over there, seen from within -------------------------------------------------------


def called_there(path: str, /, *, retain: bool = True, **param: Any) -> Any:
    """What a process would answer to such a task."""
    run = Task(
        id="a",
        work_id="w",
        param=param,
        scheduled_at=NOON,
        created_at=NOON,
        state=TaskState.DISPATCHED,
        attempt=1,
    )
    return _process_work.run(
        "process_works", path, _process_work.to_send(run), retain=retain
    )


def test_a_value_is_answered() -> None:
    """
    The answer to a task is the value, as JSON has it, or why there is none.
    """
    assert called_there("echo") == ("value", None)
    assert called_there("echo", value=(1, 2)) == ("value", [1, 2])
    assert called_there("echo", value=1, retain=False) == ("value", None)
    kind, why = called_there("give", what="object")
    assert kind == "unkept"
    assert "cannot be JSON" in why


def test_an_error_is_answered() -> None:
    """
    The answer to a task may be an error.
    """
    kind, apart = called_there("give", what="coroutine")
    assert kind == "error"
    assert repr(put_together(apart)) == repr(
        TypeError("give returned a coroutine: register it as an async function")
    )
    with pytest.raises(LookupError):
        _current_task.running.get()


def test_progress_told_there_is_answered_by_an_error() -> None:
    """
    The answer of a work that would tell how far it is says what to do instead.
    """
    kind, apart = called_there("progress_there")
    assert kind == "error"
    assert str(put_together(apart)) == (
        "report_progress(): a process of a WorkerPoolDispatcher brings back nothing before"
        " the work has ended: run it in a thread, or have it tell nothing"
    )


def test_a_task_with_all_that_there_may_be_is_sent() -> None:
    """
    A task that was sent is the same when it is received.
    """
    bare = Task(id="a", work_id="w", scheduled_at=NOON, created_at=NOON, key="k")
    for task in (bare, attrs.evolve(bare, retry=Retry())):
        assert _process_work._received(_process_work.to_send(task)) == task
    assert _process_work.to_send(bare)["state"] == "scheduled"  # type: ignore[index]  # pyright: ignore[reportArgumentType]


def test_a_new_process_lets_signals_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What is blocked while a process starts is not, once it has begun.
    """
    monkeypatch.setattr(_process_work, "given_pipes", list)
    both = {signal.SIGINT, signal.SIGTERM}
    handler = signal.getsignal(signal.SIGTERM)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, both)
    try:
        _process_work.begin()
        assert not both & signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGTERM, handler)
    assert _process_work.be_ready() is None  # type: ignore[func-returns-value]


def test_a_new_process_keeps_its_pipes_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What a process is given is inherited by nothing that it starts; in what it forks off
    there is nothing in its place, but for what `multiprocessing` needs.
    """
    forked: list[Callable[[], None]] = []

    def register(*, after_in_child: Callable[[], None]) -> None:
        forked.append(after_in_child)

    there, here = os.pipe()
    file = os.open(os.devnull, os.O_WRONLY)
    for each in (here, file):
        os.set_inheritable(each, True)
    pipes = _process_work.given_pipes()
    assert here in pipes
    assert not {0, 1, 2, there, file} & {*pipes}
    tracker = resource_tracker.getfd()
    assert tracker is not None
    monkeypatch.setattr(os, "register_at_fork", register)
    monkeypatch.setattr(_process_work, "given_pipes", lambda: [here, tracker])
    _process_work.keep_pipes()
    assert not os.get_inheritable(here)
    [let_go] = forked
    let_go()
    assert os.read(there, 1) == b""
    assert _process_work._is_pipe(tracker)
    for each in (there, here, file):
        os.close(each)


def test_where_nobody_tells_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where the system does not tell what a process was given, it begins all the same.
    """

    def refuse(_: str) -> list[str]:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        _process_work.keep_pipes()


@pytest.mark.parametrize(
    ("ours", "program", "ends"),
    [
        (True, True, False),
        (True, False, True),
        (True, None, True),
        (False, True, True),
    ],
)
def test_who_ends_by_a_sigterm(
    monkeypatch: pytest.MonkeyPatch, ours: bool, program: bool | None, ends: bool
) -> None:
    """
    A process ends by a SIGTERM if its program has ended, or a work has forked it off.
    """

    class Program:
        def is_alive(self) -> bool:
            return program is True

    raised: list[Any] = []
    parent = None if program is None else Program()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setattr(signal, "signal", lambda *args: raised.append(args))
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    process = os.getpid() if ours else 0
    _process_work.end_if_orphaned(process, signal.SIGTERM, None)
    assert raised == ([(signal.SIGTERM, signal.SIG_DFL), signal.SIGTERM] if ends else [])


async def test_a_scheduler_is_not_opened_while_a_process_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    A program that is run again in a process that it has started is stopped there.
    """
    process = multiprocessing.current_process()
    monkeypatch.setattr(process, "_inheriting", True, raising=False)
    with pytest.RaisesGroup(
        pytest.RaisesExc(RuntimeError, match="put its trio.run under if __name__"),
        flatten_subgroups=True,
    ):
        async with open_scheduler(works):
            pass


# -- what can be registered -------------------------------------------------------------


async def asynchronous() -> None: ...


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (asynchronous, "is async, and a process runs plain functions: leave out process"),
        (lambda: None, "it is a lambda"),
        (partial(process_works.echo, value=1), "it is an object, or a partial"),
        (Plain().method, "it is bound to an object"),
        (Plain(), "it is an object, or a partial"),
        (process_works.found_elsewhere, "process_works.hidden is something else"),
        (process_works.local_error.__class__, "there is no function in builtins"),
    ],
    ids=["async", "lambda", "partial", "method", "object", "hidden", "missing"],
)
def test_what_is_not_found_there_is_refused(function: Any, why: str) -> None:
    """
    What another process does not find by its name is refused, and it is told why.
    """
    with pytest.raises(TypeError, match=f"^function: .*{why}"):
        WorkRegistry().register("work", function, process=True)


def test_a_function_within_a_function_is_refused() -> None:
    """
    A function that is made inside of another is refused as it is decorated.
    """
    registry = WorkRegistry()
    with pytest.raises(TypeError, match=r"made inside of another .* defined in a module"):

        @registry.register(process=True)
        def inside() -> None: ...

    assert registry.work_ids == frozenset()


async def test_a_function_that_was_replaced_is_not_called(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A task whose function is not the one of that name any more fails, and says so.
    """
    async with open_pool(tmp_path) as pool:
        task = await pool.run("wrapped_afterwards")
    assert task.err is not None
    head = task.err.splitlines()[0]
    assert "process_works.wrapped_afterwards is something else" in head


def test_the_work_says_where_it_runs() -> None:
    """
    A work in a process is told from one in a thread, and can be called in one.
    """
    work = works.get("where")
    assert (work.in_process, work.in_thread) == (True, True)
    assert not works.get("give_in_thread").in_process
    with pytest.raises(TypeError, match="process: must be a bool"):
        works.register("x", process_works.where, process=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("spec", "file", "found"),
    [
        (None, "script.py", True),
        (None, None, False),
        ("package.module", "x", True),
        ("package.__main__", "x", False),
        ("__main__", "x", False),
    ],
)
def test_functions_of_the_program_itself(
    monkeypatch: pytest.MonkeyPatch, spec: str | None, file: str | None, found: bool
) -> None:
    """
    A function of the program's own file is taken if that is run in new processes, too.
    """
    main = ModuleType("__main__")
    main.__spec__ = None if spec is None else ModuleSpec(spec, None)
    main.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", main)

    def of_main() -> None: ...

    of_main.__module__, of_main.__qualname__ = "__main__", "of_main"
    vars(main)["of_main"] = of_main
    registry = WorkRegistry()
    if found:
        registry.register("x", of_main, process=True)
    else:
        with pytest.raises(TypeError, match="put the function into a module"):
            registry.register("x", of_main, process=True)


def test_the_extra_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without trio-parallel a work in a process is refused as it is registered.
    """
    monkeypatch.setattr("trio_gokugen._work_registry.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install .trio_gokugen\[process\]"):
        WorkRegistry().register("x", process_works.where, process=True)


def test_a_module_is_imported_to_find_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    What is in a module that nobody has imported is found, too.
    """
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert _callables.find("colorsys", "rgb_to_hsv").__name__ == "rgb_to_hsv"


# -- conformance ------------------------------------------------------------------------


class InProcesses:
    """A registry whose plain functions run in processes."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry
        self.work_ids: frozenset[str] = registry.work_ids

    def get(self, work_id: str) -> Work:
        work: Work = self._registry.get(work_id)
        return attrs.evolve(work, in_process=work.in_thread)

    def get_condition(self, name: str) -> Condition:
        condition: Condition = self._registry.get_condition(name)
        return condition


@pytest.mark.long
async def test_processes_keep_the_promises_of_a_dispatcher(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    The suite for dispatchers passes with its plain functions in processes.
    """
    seen: list[str] = []

    class Watched(InProcesses):
        def get(self, work_id: str) -> Work:
            work = super().get(work_id)
            seen.append(work_id)
            return work

    await check_dispatcher(
        lambda registry, max_workers: WorkerPoolDispatcher(Watched(registry), max_workers),
        skip=SAME_PROCESS_CHECKS,
    )
    assert {"plain_echo", "plain_fail", "plain_leave", "plain_set_variable"} <= set(seen)
