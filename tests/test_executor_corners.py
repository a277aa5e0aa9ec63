"""Corners of works in executors: what comes late, what cannot be changed, what leaves."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections.abc import Generator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from concurrent.futures import ProcessPoolExecutor as Processes
from pathlib import Path
from types import ModuleType
from typing import Any

import executor_works
import pytest
import trio
import trio.testing
from leftovers import nothing_left
from support import NOON, PATIENCE, bounded

from trio_gokugen import (
    Command,
    CommandRegistry,
    Discard,
    ExecutorDispatcher,
    ExecutorLostError,
    ForeignError,
    HeapRepository,
    HookAction,
    Interval,
    PartialHooks,
    Pool,
    PoolsDispatcher,
    Retry,
    Schedule,
    Snooze,
    StopReason,
    Task,
    TaskQuery,
    TaskState,
    TrioClock,
    WorkRegistry,
    WorkStoppedError,
    _process_work,
    open_scheduler,
    report_progress,
)
from trio_gokugen import _executor_calls as calls
from trio_gokugen._executor_calls import Landed, call_by_path
from trio_gokugen._retry import bare
from trio_gokugen._taken_apart import put_together, taken_apart
from trio_gokugen.abc import Work

WORKS = "executor_works:works"


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Nothing is left after any of these tests."""
    with nothing_left(tmp_path / "temporary", monkeypatch):
        yield


async def test_progress_that_is_told_after_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A thread that a work has left behind may tell how far it is: nobody listens any more.
    """
    works = WorkRegistry()
    told = trio.Event()
    go_on = threading.Event()

    @works.register
    async def leave_a_thread() -> None:
        def later() -> None:
            go_on.wait()
            report_progress(1)
            token.run_sync_soon(told.set)

        with trio.move_on_after(0.01):
            await trio.to_thread.run_sync(later, abandon_on_cancel=True)

    token = trio.lowlevel.current_trio_token()
    with ThreadPoolExecutor(1) as pool:
        async with open_scheduler(
            works, dispatcher=ExecutorDispatcher(works, pool)
        ) as scheduler:
            task = await scheduler.add_task("leave_a_thread", after=0)
            assert (await scheduler.wait(task.id)).state is TaskState.DONE
            go_on.set()
            await told.wait()
            again = await scheduler.add_task("leave_a_thread", after=0)
            assert (await scheduler.wait(again.id)).state is TaskState.DONE


@pytest.mark.parametrize(
    ("work_id", "err", "retries"),
    [
        ("raise_frozen", "ForeignError: executor_works.FrozenError: as it is (which", 0),
        ("discard_with_more", "Discard: gone for good", 0),
    ],
)
async def test_what_is_raised_elsewhere_fails_its_task(
    autojump_clock: trio.testing.MockClock, work_id: str, err: str, retries: int
) -> None:
    """
    Whatever a work raises in another process, its task has failed, and nothing else.
    """
    spawn = multiprocessing.get_context("spawn")
    with Processes(1, mp_context=spawn) as pool:
        dispatcher = ExecutorDispatcher(WORKS, pool)
        async with open_scheduler(executor_works.works, dispatcher=dispatcher) as scheduler:
            task = await scheduler.add_task(work_id, after=0)
            ended = await scheduler.wait(task.id)
            other = await scheduler.add_task("give_much", after=0)
            assert (await scheduler.wait(other.id)).state is TaskState.DONE
    assert ended.state is TaskState.FAILED
    assert (ended.err or "").startswith(err)
    assert ended.retries == retries


class Breaking(Executor):
    """Whose futures break when they are told to."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self.futures.append(future)
        return future


async def test_a_run_that_was_stopped_stays_stopped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If its executor breaks after a run was interrupted, the task is cancelled, and has not
    failed.
    """
    works = executor_works.works
    executor = Breaking()
    async with open_scheduler(
        works,
        dispatcher=ExecutorDispatcher(works, executor),
        hooks=PartialHooks(on_dispatch_error=ignore),
    ) as scheduler:
        task = await scheduler.add_task("nothing", after=0)
        while not executor.futures:
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.interrupt, task.id)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
            executor.futures[0].set_exception(BrokenExecutor("gone"))
        assert (await scheduler.get(task.id)).state is TaskState.CANCELLED
    calls._stopped.clear()  # the call itself never comes


async def ignore(error: Exception, action: HookAction) -> HookAction:
    return HookAction.IGNORE if isinstance(error, ExecutorLostError) else action


async def test_what_breaks_late_does_not_harm_its_successor(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A broken executor may fail its futures one after the other: one that has taken its
    place is not taken for broken.
    """
    works = executor_works.works
    first = Breaking()
    asked: list[Exception] = []
    with ThreadPoolExecutor(1) as second:
        dispatcher = ExecutorDispatcher(works, first)

        async def replace(error: Exception, action: HookAction) -> HookAction:
            asked.append(error)
            dispatcher.executor = second
            return HookAction.RETRY

        async with open_scheduler(
            works,
            dispatcher=dispatcher,
            hooks=PartialHooks(on_dispatch_error=replace),
        ) as scheduler:
            tasks = [await scheduler.add_task("nothing", after=0) for _ in range(2)]
            while len(first.futures) < 2:
                await trio.lowlevel.checkpoint()
            first.futures[0].set_exception(BrokenExecutor("gone"))
            await scheduler.wait(tasks[0].id)
            last = await scheduler.add_task("nothing", after=0)
            assert (await scheduler.wait(last.id)).state is TaskState.DONE
            first.futures[1].set_exception(BrokenExecutor("gone"))
            await scheduler.wait(tasks[1].id)
            last = await scheduler.add_task("nothing", after=0)
            assert (await scheduler.wait(last.id)).state is TaskState.DONE
    assert len(asked) == 1


async def test_what_breaks_as_it_is_replaced_does_not_harm_its_successor(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An executor may break, in another thread, at the moment when another takes its place.
    """
    here = threading.current_thread()
    seen, go_on = threading.Event(), threading.Event()

    class Slow(ExecutorDispatcher):
        @property
        def _executor(self) -> Executor:
            found = self._is
            if threading.current_thread() is not here:
                seen.set()
                go_on.wait(PATIENCE)
            return found

        @_executor.setter
        def _executor(self, executor: Executor) -> None:
            self._is = executor

    works = executor_works.works
    first = Breaking()
    dispatcher = Slow(works, first)
    with ThreadPoolExecutor(1) as second:
        async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
            task = await scheduler.add_task("nothing", after=0)
            while not first.futures:
                await trio.lowlevel.checkpoint()
            broken = BrokenExecutor("gone")
            thread = threading.Thread(target=first.futures[0].set_exception, args=[broken])
            thread.start()
            while thread.is_alive() and not seen.is_set():
                thread.join(0.001)  # and Trio waits, too: it would see the first one lost
            dispatcher.executor = second
            go_on.set()
            thread.join()
            failed = await scheduler.wait(task.id)
            assert (failed.err or "").startswith(
                "WorkLostError: the run was lost: its exec"
            )
            last = await scheduler.add_task("nothing", after=0)
            assert (await scheduler.wait(last.id)).state is TaskState.DONE


async def test_one_that_is_replaced_as_its_loss_is_told_is_not_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An executor that has broken may be replaced before anybody has heard of it.
    """
    works = executor_works.works
    with ThreadPoolExecutor(1) as second:
        dispatcher = ExecutorDispatcher(works, Breaking())
        dispatcher._lost = BrokenExecutor("gone")
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(dispatcher._ready)
            await trio.lowlevel.checkpoint()  # and some of them, in any order, at theirs
            dispatcher.executor = second
        dispatcher._lost = BrokenExecutor("gone")
        with pytest.raises(ExecutorLostError, match="gone"):
            await dispatcher._ready()


async def test_async_works_of_the_executor_before_are_stopped(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    An async work in a thread is cancelled, though new runs go to other processes by now.
    """
    spawn = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(1) as near, Processes(1, mp_context=spawn) as far:
        dispatcher = ExecutorDispatcher(WORKS, near)
        works = executor_works.works
        async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
            began = tmp_path / "began"
            param: dict[str, Any] = {"seconds": PATIENCE, "began": str(began)}
            task = await scheduler.add_task("sleep", param, after=0)
            while not began.exists():
                await trio.lowlevel.checkpoint()
            dispatcher.executor = far
            assert (await scheduler.interrupt(task.id)).state is TaskState.CANCELLED


class OddError(BaseException):
    """No `Exception`."""


@pytest.mark.parametrize("begun", [False, True])
async def test_an_executor_that_leaves(
    autojump_clock: trio.testing.MockClock, begun: bool
) -> None:
    """
    What an executor raises that is no `Exception` leaves the scheduler, which ends; the
    run has failed by it.
    """

    class Leaving(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            if begun:
                fn()
            raise OddError("no more")

    works = executor_works.works
    repository = HeapRepository()
    with bounded(), pytest.RaisesGroup(OddError, flatten_subgroups=True):
        async with open_scheduler(
            works, repository, ExecutorDispatcher(works, Leaving())
        ) as scheduler:
            await scheduler.add_task("nothing", after=0, id="t")
            await trio.sleep_forever()
    ended = await repository.get("t")
    assert (ended.state, (ended.err or "").partition("\n")[0]) == (
        TaskState.FAILED,
        "OddError: no more",
    )


class Giving(Executor):
    """Whose futures hold the same, whatever the call would return."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if isinstance(self.result, BaseException):
            future.set_exception(self.result)
        else:
            future.set_result(self.result)
        return future


@pytest.mark.parametrize(
    ("result", "err"),
    [
        (None, "WorkLostError: the run was lost: its executor has answered None"),
        (Landed("apart", None), "TypeError: "),
        (WorkStoppedError(StopReason.SHUTDOWN), "RuntimeError: the work raised a WorkSto"),
    ],
    ids=["something else", "in pieces", "a stop"],
)
async def test_an_executor_that_answers_for_itself(
    autojump_clock: trio.testing.MockClock, result: Any, err: str
) -> None:
    """
    A run has failed whose executor gives something else than its call returned.
    """
    works = executor_works.works
    dispatcher = ExecutorDispatcher(works, Giving(result))
    with bounded():
        async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
            task = await scheduler.add_task("nothing", after=0)
            ended = await scheduler.wait(task.id)
    assert ended.state is TaskState.FAILED
    assert (ended.err or "").startswith(err)


@pytest.mark.parametrize("begun", [False, True])
async def test_an_executor_that_gives_no_future(
    autojump_clock: trio.testing.MockClock, begun: bool
) -> None:
    """
    A run fails whose executor gives no future, and is not called later; unless it was
    begun: then what is called is the run.
    """
    calls: list[Any] = []
    works = WorkRegistry()

    @works.register(retain=True)
    def count() -> str:
        made.append(1)
        return "called"

    made: list[int] = []

    class Forgetful(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            calls.append(fn)
            if begun:
                fn()

    with bounded():
        async with open_scheduler(
            works, dispatcher=ExecutorDispatcher(works, Forgetful())
        ) as scheduler:
            task = await scheduler.add_task("count", after=0)
            ended = await scheduler.wait(task.id)
    for call in calls:
        call()
    if begun:
        assert (ended.result, made) == ("called", [1])
        return
    assert (ended.err or "").startswith("AttributeError: ")
    assert made == []


class Twice(Executor):
    """Does everything twice: it calls, and it tells that it has."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        class Telling(Future[Any]):
            def add_done_callback(self, fn: Any) -> None:
                super().add_done_callback(fn)
                super().add_done_callback(fn)

        future = Telling()
        fn()
        future.set_result(fn())
        return future


async def test_an_executor_that_does_everything_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work is called once, and a run ends once, if its executor calls and tells twice.
    """
    works = WorkRegistry()
    calls: list[int] = []

    @works.register(retain=True)
    def count() -> int:
        calls.append(1)
        return len(calls)

    with bounded():
        async with open_scheduler(
            works, dispatcher=ExecutorDispatcher(works, Twice())
        ) as scheduler:
            for number in (1, 2):
                task = await scheduler.add_task("count", after=0)
                assert (await scheduler.wait(task.id)).result == number


async def test_runs_that_cannot_be_cancelled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    If a future cannot be cancelled, its run is waited for as the scheduler ends, and none
    begins any more.
    """

    class Stubborn(ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            def refuse() -> bool:
                raise NotImplementedError

            future = super().submit(fn, *args, **kwargs)
            vars(future)["cancel"] = refuse
            return future

    works = WorkRegistry()
    began, go_on = threading.Event(), threading.Event()
    log: list[str] = []

    @works.register
    def hold() -> None:
        log.append("begun")
        began.set()
        go_on.wait(PATIENCE)
        log.append("ended")

    repository = HeapRepository()
    with Stubborn(1) as pool:
        async with open_scheduler(
            works, repository, ExecutorDispatcher(works, pool)
        ) as scheduler:
            for each in "ab":
                await scheduler.add_task("hold", after=0, id=each)
            while not (began.is_set() and scheduler.statistics().running == 2):
                await trio.lowlevel.checkpoint()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scheduler.stop, 0)
                await trio.testing.wait_all_tasks_blocked()
                go_on.set()
        assert log == ["begun", "ended"]
    assert log == ["begun", "ended"]
    states = {each: (await repository.get(each)).state for each in "ab"}
    assert states == {"a": TaskState.DONE, "b": TaskState.SCHEDULED}


async def test_async_works_of_a_path_are_stopped_in_threads(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An async work that was found by its path is cancelled, too, if it runs in this process.
    """
    with ThreadPoolExecutor(1) as pool:
        async with open_scheduler(
            executor_works.works, dispatcher=ExecutorDispatcher(WORKS, pool)
        ) as scheduler:
            task = await scheduler.add_task("sleep", {"seconds": 1e6}, after=0)
            while not scheduler.statistics().running:
                await trio.lowlevel.checkpoint()
            assert (await scheduler.interrupt(task.id)).state is TaskState.CANCELLED


@pytest.mark.parametrize(
    ("which", "err"),
    [
        ("leaks", "LeakedCancelledError: "),
        ("several", "ExceptionGroup: "),
        ("pretends", "RuntimeError: the work raised a WorkStoppedError, though nobody"),
    ],
)
async def test_what_a_condition_raises_fails_its_task(
    autojump_clock: trio.testing.MockClock, which: str, err: str
) -> None:
    """
    A condition that leaks a cancellation, raises a group, or pretends that its run was
    stopped, fails its task and no more.
    """
    works = WorkRegistry()
    works.register("nothing", executor_works.nothing)

    @works.condition
    async def odd(schedule: Schedule, last: Task | None) -> bool:
        if which == "several":
            raise ExceptionGroup("several", [ValueError("one")])
        if which == "pretends":
            raise WorkStoppedError(StopReason.SHUTDOWN)
        leaked: BaseException | None = None
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                leaked = cancelled
        assert leaked is not None
        raise leaked

    with ThreadPoolExecutor(1) as pool, bounded():
        async with open_scheduler(
            works, dispatcher=ExecutorDispatcher(works, pool), clock=TrioClock(NOON, 0.0)
        ) as scheduler:
            await scheduler.add_schedule(
                "s", Interval(10, anchor=NOON), "nothing", when="odd"
            )
            await trio.sleep(15)
            await scheduler.remove_schedule("s")
            [failed] = await scheduler.find(TaskQuery(states={TaskState.FAILED}))
            assert (failed.err or "").startswith(err)
            task = await scheduler.add_task("nothing", after=0)
            assert (await scheduler.wait(task.id)).state is TaskState.DONE


def test_wishes_are_told_without_what_is_put_on_them() -> None:
    """
    What a work wants is known elsewhere, whatever else it has put on the exception.
    """
    run = Task(id="t", work_id="discard_with_more", scheduled_at=NOON, created_at=NOON)
    landed = call_by_path("x", WORKS, run.to_json())
    assert landed.left == "apart"
    back = put_together(landed.payload)
    assert isinstance(back, Discard)
    assert str(back) == "gone for good"
    how, what = _process_work.run(
        "executor_works", "discard_with_more", _process_work.to_send(run), retain=False
    )
    assert how == "error"
    back = put_together(what)
    assert isinstance(back, Discard)
    assert str(back) == "gone for good"
    for wished in Snooze(5), Snooze(at=NOON), Retry.after(3):
        assert vars(bare(wished)) == vars(wished)
        assert type(bare(wished)) is type(wished)


def test_a_registry_that_exits_as_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A module of works that calls `sys.exit` as it is imported fails the run, and ends no
    process.
    """
    (tmp_path / "exits_there.py").write_text("raise SystemExit('not configured')")
    monkeypatch.syspath_prepend(tmp_path)
    run = Task(id="t", work_id="nothing", scheduled_at=NOON, created_at=NOON)
    landed = call_by_path("x", "exits_there:works", run.to_json())
    assert landed.left == "apart"
    back = put_together(landed.payload)
    assert isinstance(back, ForeignError)
    assert str(back).startswith("builtins.SystemExit: not configured (which could not come")


def test_what_takes_no_note_comes_back_as_something_else() -> None:
    """
    An exception of a frozen class is told by one that takes the traceback along.
    """
    back = put_together(taken_apart(executor_works.FrozenError("as it is")))
    assert isinstance(back, ForeignError)
    assert back.text == "as it is"
    assert "it takes no note: AttributeError" in str(back)


class OneWork:
    """A registry of somebody's own."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.work_ids = frozenset({work.work_id})

    def get(self, work_id: str) -> Work:
        return self.work

    def get_condition(self, name: str) -> Any:
        raise LookupError


async def test_a_work_for_a_process_runs_where_there_is_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A work that is said to be for a process, and nothing else, is called as it is.
    """
    works = OneWork(Work("one", lambda: 1, in_process=True, retain=True))
    with ThreadPoolExecutor(1) as pool:
        async with open_scheduler(
            works, dispatcher=ExecutorDispatcher(works, pool)
        ) as scheduler:
            task = await scheduler.add_task("one", after=0)
            assert (await scheduler.wait(task.id)).result == 1


async def test_a_command_that_takes_too_long_tells_what_it_wrote(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A command in an executor that exceeds its timeout fails with what it had written.
    """
    argv = ["sh", "-c", "echo so far; sleep 60"]
    commands = CommandRegistry({"slow": Command(argv, timeout=0.2, grace=5)})
    with ThreadPoolExecutor(1) as pool:
        dispatcher = PoolsDispatcher(
            commands, default=Pool(ExecutorDispatcher(commands, pool))
        )
        async with open_scheduler(commands, dispatcher=dispatcher) as scheduler:
            task = await scheduler.add_task("slow", after=0)
            ended = await scheduler.wait(task.id)
    assert ended.state is TaskState.FAILED
    assert "WorkTimeoutError" in (ended.err or "")
    assert "so far" in (ended.err or "")


@pytest.mark.parametrize("action", [HookAction.RETRY, HookAction.IGNORE])
async def test_a_lost_executor_does_not_keep_other_pools(
    autojump_clock: trio.testing.MockClock, action: HookAction
) -> None:
    """
    While a pool has lost its executor, the others run what is due; and nothing spins.
    """
    works = executor_works.works
    with ThreadPoolExecutor(1) as lost:
        pass
    asked = 0

    async def hook(error: Exception, _: HookAction) -> HookAction:
        nonlocal asked
        asked += 1
        return action

    dispatcher = PoolsDispatcher(
        works, {"far": Pool(ExecutorDispatcher(works, lost), works={"nothing"})}
    )
    clock = TrioClock(NOON, trio.current_time())
    async with open_scheduler(
        works,
        dispatcher=dispatcher,
        clock=clock,
        hooks=PartialHooks(on_dispatch_error=hook),
        grace=0,
    ) as scheduler:
        await scheduler.add_task("nothing", after=0)
        near = [
            await scheduler.add_task("sleep", {"seconds": 1}, after=n) for n in range(20)
        ]
        for task in near:
            assert (await scheduler.wait(task.id)).state is TaskState.DONE
    assert 2 <= asked <= 20


def test_nothing_is_imported_for_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An error whose class is of a module that is not imported here comes as another, which
    says so.
    """
    module: Any = ModuleType("far_away")
    kind = type("FarError", (Exception,), {"__module__": "far_away"})
    module.FarError = kind
    with monkeypatch.context() as there:
        there.setitem(sys.modules, "far_away", module)
        told = taken_apart(kind("as it is"))
    back = put_together(told)
    assert isinstance(back, ForeignError)
    assert "far_away is not imported here" in str(back)
    assert "far_away" not in sys.modules


class Outer:
    class InnerError(Exception):
        """Of a class within another."""


def test_an_error_of_a_class_within_another_comes_back() -> None:
    """
    It is found by its qualified name.
    """
    back = put_together(taken_apart(Outer.InnerError("as it is")))
    assert type(back) is Outer.InnerError
    assert back.args == ("as it is",)


@pytest.mark.parametrize("stopped", [False, True], ids=["alone", "in a shutdown"])
async def test_a_ctrl_c_elsewhere_is_of_its_run_only(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, stopped: bool
) -> None:
    """
    A work that is left by a Ctrl-C in another process has failed, and nothing else has; if
    the scheduler is stopping by then, it was cut short by that.
    """
    repository = HeapRepository()
    began, until = tmp_path / "began", tmp_path / "until"
    spawn = multiprocessing.get_context("spawn")
    with Processes(1, mp_context=spawn) as pool, bounded():
        dispatcher = ExecutorDispatcher(WORKS, pool)
        async with (
            trio.open_nursery() as nursery,
            open_scheduler(
                executor_works.works, repository, dispatcher, grace=0
            ) as scheduler,
        ):
            task = await scheduler.add_task(
                "be_interrupted", {"began": str(began), "until": str(until)}, after=0
            )
            while not began.exists():
                await trio.lowlevel.checkpoint()
            if stopped:
                nursery.start_soon(scheduler.stop)
                [flight] = dispatcher._flights.values()
                await trio.testing.wait_all_tasks_blocked()
                assert flight.stopped is not None
            until.touch()
            if not stopped:
                await scheduler.wait(task.id)
                other = await scheduler.add_task("give_much", after=0)
                assert (await scheduler.wait(other.id)).state is TaskState.DONE
    ended = await repository.get(task.id)
    if stopped:
        assert (ended.state, ended.interruptions) == (TaskState.SCHEDULED, 1)
    else:
        assert ended.state is TaskState.FAILED
        err = ended.err or ""
        assert err.startswith("ForeignError: builtins.KeyboardInterrupt (which could not")
