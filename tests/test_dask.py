"""Works on a real Dask cluster: two workers, each a process, on the loopback interface."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import dask.config
import distributed
import executor_works
import psutil  # type: ignore[import-untyped]
import pytest
import trio
import trio.testing
from distributed.core import Status
from distributed.utils import LoopRunner
from leftovers import files, use_for_temporary
from support import NOON

from trio_gokugen import (
    ExecutorLostError,
    HeapRepository,
    HookAction,
    Interval,
    PartialHooks,
    Retry,
    Scheduler,
    SchedulerNotRunningError,
    Task,
    TaskParam,
    TaskQuery,
    TaskState,
    TrioClock,
    WorkLostError,
    autojump_held,
    fixed,
    open_scheduler,
)
from trio_gokugen._executor_calls import Landed
from trio_gokugen._in_flight import Flight
from trio_gokugen.dask import (
    MOST_TRIES,
    DaskDispatcher,
    OneRun,
    OwnClient,
    call_on_worker,
    open_dask_dispatcher,
    refuse,
    stop_on_worker,
)
from trio_gokugen.sql import open_sql_repository
from trio_gokugen.testing import SAME_PROCESS_CHECKS, check_dispatcher

WORKS = "executor_works:works"
PATIENCE = 60.0
"""Seconds, in real time, that the cluster may take."""

STAY = ("Trio thread", "Dask-Offload", "Profile", "TCP-Executor", "AsyncProcess")
"""Threads that Trio and Dask keep for the next who needs them."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[Any]:
    """Two workers for all tests, in the state in which a user finds them."""
    assert dask.config.get("distributed.scheduler.allowed-failures") == 3
    open_cluster: Any = distributed.LocalCluster
    with (
        dask.config.set(temporary_directory=str(tmp_path_factory.mktemp("dask"))),
        open_cluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as opened,
    ):
        yield opened


@pytest.fixture(autouse=True)
def nothing_left(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[None]:
    """
    A test leaves no thread, no loop, no process, no socket and no temporary file behind,
    beside the cluster's; and no task on it.
    """
    wait_until(lambda: is_whole(cluster), PATIENCE)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    use_for_temporary(temporary, monkeypatch)

    def left() -> dict[str, Any]:
        me = psutil.Process()
        return {
            # Counted: the loops of all clients, and of the cluster, have the same names.
            "threads": Counter(
                each.name
                for each in threading.enumerate()
                if not each.name.startswith(STAY)
            ),
            # By their selectors. All files would be too many: the cluster makes and ends
            # connections as it likes.
            "loops": sum("eventpoll" in name for name in files().values()),
            # Counted: whoever looks after a worker that was killed may be another one then.
            "sockets": sum(each.status == "LISTEN" for each in me.net_connections("tcp")),
            "files": {each.name for each in temporary.iterdir()},
            "processes": sum("spawn_main" in line_of(each) for each in me.children()),
            "clients": {
                name for name in cluster.scheduler.clients if name != "fire-and-forget"
            },
            "tasks": set(cluster.scheduler.tasks),
        }

    before = left()
    yield
    # A worker that was killed may be long in coming back, on a busy machine.
    wait_until(lambda: is_whole(cluster), PATIENCE)
    late = time.monotonic() + PATIENCE
    while (after := left()) != before and time.monotonic() < late:
        time.sleep(0.01)
    assert after == before


@pytest.fixture
def client(cluster: Any) -> Generator[Any]:
    """A user's client, which is to have no futures left."""
    with distributed.Client(cluster, set_as_default=False) as opened:  # type: ignore[no-untyped-call]
        yield opened
        gc.collect()
        wait_until(lambda: not opened.futures)


def line_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it has ended


def is_whole(cluster: Any) -> bool:
    """Whether all workers are there, and those who look after them, one for each."""
    # A worker that dies as it starts anew may be given up: then another is asked for.
    cluster.scale(2)
    nannies = cluster.workers.values()
    return (
        len(cluster.scheduler_info["workers"]) == 2
        and len(nannies) == 2
        and all(nanny.status.name == "running" for nanny in nannies)
    )


def wait_until(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    late = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < late
        time.sleep(0.01)


async def until(true: Callable[[], bool]) -> None:
    """Wait, in real time, and let a mock clock jump that is not held."""
    await trio.to_thread.run_sync(wait_until, true)


@asynccontextmanager
async def opened(cluster: Any, **options: Any) -> AsyncGenerator[Scheduler]:
    bound = options.pop("max_in_flight", 1_000)
    options.setdefault("clock", TrioClock(NOON, 0.0))
    async with (
        open_dask_dispatcher(cluster, WORKS, max_in_flight=bound) as dispatcher,
        open_scheduler(executor_works.works, dispatcher=dispatcher, **options) as scheduler,
    ):
        yield scheduler


def noted(file: Path) -> list[tuple[str, int]]:
    """What works have noted: which attempt, in which process."""
    if not file.exists():
        return []
    lines = [line.split() for line in file.read_text("utf-8").splitlines()]
    return [(attempt, int(process)) for attempt, process in lines]


@pytest.mark.long
async def test_the_cluster_keeps_the_promises(
    autojump_clock: trio.testing.MockClock, cluster: Any
) -> None:
    """
    A cluster passes the suite, but for what needs works to be in the same process: what
    is async can be stopped on it.
    """
    with distributed.Client(cluster, set_as_default=False) as client:  # type: ignore[no-untyped-call]
        await check_dispatcher(
            lambda _, n: open_dask_dispatcher(
                client, "trio_gokugen.testing:conformance_works", max_in_flight=n
            ),
            skip=SAME_PROCESS_CHECKS,
        )


async def test_what_a_work_leaves_comes_back(
    autojump_clock: trio.testing.MockClock, cluster: Any, tmp_path: Path
) -> None:
    """
    Results come back from the workers, and errors with where they were raised; `Snooze`,
    `Retry.after` and `Discard` do what they do here.
    """
    log = tmp_path / "log"
    async with opened(cluster) as scheduler:
        task = await scheduler.add_task("double", {"number": 21}, after=0)
        assert (await scheduler.wait(task.id)).result == 42
        task = await scheduler.add_task("turns", {"log": str(log)}, after=0)
        ended = await scheduler.wait(task.id)
        assert (ended.state, ended.attempt, ended.retries) == (TaskState.FAILED, 4, 2)
        assert 'raise Discard("enough")' in (ended.err or "")
        for work_id, retries, words in (
            ("raise_unpicklable", 1, "ForeignError: executor_works.UnpicklableError: "),
            ("raise_unreadable", 1, "ForeignError: executor_works.UnreadableError: "),
            ("leave", 0, "ForeignError: builtins.SystemExit: 3"),
            ("leave_a_nursery", 0, "ForeignError: builtins.SystemExit (which"),
            ("retain_lock", 0, "what the work returned cannot be kept"),
        ):
            task = await scheduler.add_task(work_id, after=0)
            ended = await scheduler.wait(task.id)
            assert (ended.state, ended.retries) == (TaskState.FAILED, retries)
            assert words in (ended.err or "")
    attempts = [attempt for attempt, _ in noted(log)]
    assert [attempt[-2:] for attempt in attempts] == ["-1", "-2", "-3", "-4"]


async def test_progress_comes_back(
    autojump_clock: trio.testing.MockClock, cluster: Any, tmp_path: Path
) -> None:
    """
    What a work on the cluster tells of its progress is seen while it runs, and the last
    of it is there when it has ended.
    """
    go = tmp_path / "go"
    async with opened(cluster) as scheduler:
        task = await scheduler.add_task("tell", {"until": str(go)}, after=0)
        late = time.monotonic() + PATIENCE
        while (began := (await scheduler.get(task.id)).progress) is None:
            assert time.monotonic() < late
        assert (began.fraction, began.note) == (0.25, "began")
        go.touch()
        ended = await scheduler.wait(task.id)
        assert ended.progress is not None
        assert (ended.progress.fraction, ended.progress.note) == (0.75, None)


async def test_a_work_on_the_cluster_has_what_its_condition_has_left(
    autojump_clock: trio.testing.MockClock, cluster: Any
) -> None:
    """
    A work has run out of time when its condition, here, and itself, on the cluster, have
    taken its time-out together.
    """
    async with opened(cluster) as scheduler:
        every = Interval(1e6, anchor=NOON)
        await scheduler.add_schedule("s", every, "fail_late", when="take_an_hour")
        await trio.sleep(1e6 + 3_600)
        [task] = await scheduler.find(TaskQuery(states={TaskState.FAILED}))
    assert (task.err or "").startswith("WorkTimeoutError")


# -- one attempt is one run ---------------------------------------------------------


async def test_a_run_whose_worker_is_lost_has_failed(
    autojump_clock: trio.testing.MockClock, cluster: Any, tmp_path: Path
) -> None:
    """
    A worker that is killed in the middle of a run fails that attempt, which is not run
    again on another; our own `Retry` has a second one. The cluster knows each by the id of
    the task and which attempt it is.
    """
    log, go = tmp_path / "log", tmp_path / "go"
    keys: list[Any] = []
    async with opened(cluster) as scheduler:
        param = {"began": str(log), "until": str(go)}
        retry = Retry(2, wait=fixed(1), retry_on=WorkLostError)
        task = await scheduler.add_task("wait", param, after=0, retry=retry)
        await until(lambda: len(noted(log)) == 1)
        keys += cluster.scheduler.tasks
        [(_, process)] = noted(log)
        os.kill(process, signal.SIGKILL)
        await until(lambda: len(noted(log)) == 2)
        keys += cluster.scheduler.tasks
        assert (await scheduler.get(task.id)).retries == 1
        go.touch()
        ended = await scheduler.wait(task.id)
    assert (ended.state, ended.attempt) == (TaskState.DONE, 2)
    assert "WorkLostError: the run was lost: its worker" in ended.errors[0].err
    attempts = [f"{task.id}-1", f"{task.id}-2"]
    assert [attempt for attempt, _ in noted(log)] == attempts
    assert [key[:2] for key in keys] == [("trio_gokugen", each) for each in attempts]


async def test_a_work_that_kills_its_worker_is_run_once(
    autojump_clock: trio.testing.MockClock, cluster: Any, tmp_path: Path
) -> None:
    """
    A work that ends its process has failed; without a `Retry` it is not run again.
    """
    log = tmp_path / "log"
    async with opened(cluster) as scheduler:
        task = await scheduler.add_task("die", {"file": str(log)}, after=0)
        ended = await scheduler.wait(task.id)
        assert ended.state is TaskState.FAILED
        assert (ended.err or "").startswith(
            "WorkLostError: the run was lost: its worker died"
        )
        other = await scheduler.add_task("double", {"number": 1}, after=0)
        assert (await scheduler.wait(other.id)).result == 2
    assert len(noted(log)) == 1


def test_a_result_that_is_lost_is_not_computed_again() -> None:
    """
    When a worker dies that has a result which nobody has fetched, Dask has the task run
    again: what runs then is a refusal.
    """

    @attrs.define
    class Spec:
        key: Any
        function: Any

    @attrs.define
    class State:
        run_spec: Spec | None
        suspicious: int = 0

    class FakeScheduler:
        allowed_failures = 3

        def __init__(self) -> None:
            self.tasks = {
                key: State(Spec(key, print)) for key in (("trio_gokugen", "a"), "theirs")
            }
            self.tasks["trio_gokugen", "data"] = State(None)

    fake: Any = FakeScheduler()
    plugin = OneRun()
    trio.run(plugin.start, fake)
    plugin.update_graph(fake, tasks=list(fake.tasks))
    assert [task.suspicious for task in fake.tasks.values()] == [3, 0, 3]
    for key in fake.tasks:
        plugin.transition(key, "waiting", "processing")
    assert fake.tasks["trio_gokugen", "a"].run_spec.function is print
    for key in fake.tasks:
        plugin.transition(key, "processing", "memory", stimulus_id="x")
    assert fake.tasks["trio_gokugen", "a"].run_spec.function is refuse
    assert fake.tasks["theirs"].run_spec.function is print
    with pytest.raises(WorkLostError, match="its worker has left the cluster"):
        refuse()


# -- stopping -----------------------------------------------------------------------


async def test_runs_on_the_cluster_can_be_stopped(
    autojump_clock: trio.testing.MockClock, client: Any, tmp_path: Path
) -> None:
    """
    An async work is cancelled on its worker. What no worker has begun does not begin, and
    is cancelled at once, though all workers are busy. A plain function goes on: its run has
    ended when it has.
    """
    log, go = tmp_path / "log", tmp_path / "go"
    async with opened(client) as scheduler:
        task = await scheduler.add_task("never_end", {"began": str(log)}, after=0)
        await until(lambda: len(noted(log)) == 1)
        assert (await scheduler.interrupt(task.id)).state is TaskState.CANCELLED

        param = {"began": str(log), "until": str(go)}
        busy = [await scheduler.add_task("wait", param, after=0) for _ in range(2)]
        await until(lambda: len(noted(log)) == 3)
        waits = [
            await scheduler.add_task("take_note", {"file": str(log)}, after=0)
            for _ in range(20)
        ]
        await until(lambda: scheduler.statistics().running == 22)
        ended = await scheduler.interrupt(waits[-1].id)
        assert ended.state is TaskState.CANCELLED
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.interrupt, waits[0].id)
            nursery.start_soon(scheduler.interrupt, busy[0].id)
            await until(lambda: scheduler.statistics().cancelled >= 2)
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            assert (await scheduler.get(busy[0].id)).state is TaskState.DISPATCHED
            go.touch()
        await scheduler.drain()
        assert (await scheduler.get(busy[0].id)).state is TaskState.DONE
        assert (await scheduler.get(waits[0].id)).state is not TaskState.FAILED
    begun = {attempt for attempt, _ in noted(log)}
    assert f"{waits[-1].id}-1" not in begun
    assert len(begun) >= 3 + 18


async def test_a_shutdown_puts_back_what_has_not_begun(
    autojump_clock: trio.testing.MockClock, cluster: Any, tmp_path: Path
) -> None:
    """
    When the scheduler is stopped, what no worker has begun, and what is async, goes back
    to scheduled.
    """
    log = tmp_path / "log"
    async with opened(cluster) as scheduler:
        for _ in range(30):
            await scheduler.add_task("never_end", {"began": str(log)}, after=0)
        await until(lambda: len(noted(log)) == 2)
        await scheduler.stop(grace=0)
        found = await scheduler._repository.find(TaskQuery())
    assert {task.state for task in found} == {TaskState.SCHEDULED}
    assert len(found) == 30
    assert len(noted(log)) < 10


# -- several schedulers -------------------------------------------------------------


async def test_schedulers_share_database_and_cluster(
    cluster: Any, postgresql_url: str, tmp_path: Path
) -> None:
    """
    Two schedulers on one PostgreSQL, whose works run on one cluster, run each task once.
    """
    log = tmp_path / "log"

    @asynccontextmanager
    async def member(name: str) -> AsyncGenerator[Scheduler]:
        async with (
            open_sql_repository(postgresql_url, name=name) as repository,
            open_dask_dispatcher(cluster, WORKS, max_in_flight=10) as dispatcher,
            open_scheduler(executor_works.works, repository, dispatcher) as scheduler,
        ):
            yield scheduler

    async with member("one") as one, member("two") as two:
        now = (await one.add_task("nothing", after=0)).created_at
        await one.add_tasks(
            [
                TaskParam(work_id="take_note", scheduled_at=now, param={"file": str(log)})
                for _ in range(100)
            ]
        )
        await one.drain()
        await two.drain()
        counts = [each.statistics() for each in (one, two)]
    assert sum(each.done for each in counts) == 101
    assert all(each.done > 0 for each in counts)
    runs = Counter(attempt for attempt, _ in noted(log))
    assert len(runs) == 100
    assert set(runs.values()) == {1}
    assert {attempt.rpartition("-")[2] for attempt in runs} == {"1"}


# -- a scheduler of Dask's that goes away -------------------------------------------


@attrs.define
class Processes:
    """A cluster of processes that can be killed one by one."""

    port: int
    directory: Path
    started: list[subprocess.Popen[bytes]] = attrs.field(factory=list)

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
        # Coverage would make them slow, and is lost when they are killed.
        environment = {k: v for k, v in os.environ.items() if "COV" not in k}
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *arguments],
            # What is killed leaves its temporary files behind.
            env=environment | {"PYTHONPATH": path, "TMPDIR": str(self.directory)},
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.started.append(process)
        return process

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        return self._start(
            "dask_scheduler",
            *("--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"),
            # Its web server runs all the same, and would listen to everybody.
            *("--dashboard-address", "127.0.0.1:0"),
        )

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self._start(
            "dask_worker",
            self.address,
            *("--no-nanny", "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"),
            *("--dashboard-address", "127.0.0.1:0"),
        )


@contextmanager
def processes(directory: Path) -> Generator[Processes]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    opened = Processes(port, directory)
    try:
        yield opened
    finally:
        for process in opened.started:
            process.kill()
        for process in opened.started:
            process.wait()


class Patient(PartialHooks):
    """Has the dispatcher try again, and starts what is missing."""

    def __init__(self, start: Callable[[], object]) -> None:
        self.errors: list[Exception] = []
        self.start = start

    async def on_dispatch_error(self, error: Exception, action: HookAction) -> HookAction:
        self.errors.append(error)
        if len(self.errors) == 2:
            self.start()
        await trio.sleep(0.1)
        return HookAction.RETRY


@pytest.mark.parametrize("away", ["shortly", "long"])
async def test_a_scheduler_of_dasks_may_be_killed_and_restarted(
    tmp_path: Path, away: str
) -> None:
    """
    When Dask's scheduler is killed, runs in flight have failed, and our `Retry` has them
    run again once there is another at the same address. If there is none for longer than
    Dask's client waits, the hooks are told; and as they have it tried again, it comes back.
    """
    log, go = tmp_path / "log", tmp_path / "go"
    with (
        processes(tmp_path) as cluster,
        dask.config.set(
            {"distributed.comm.timeouts.connect": "30s" if away == "shortly" else "1s"}
        ),
    ):

        def start() -> None:
            cluster.start_scheduler()
            cluster.start_worker()

        cluster.start_scheduler()
        cluster.start_worker()
        hooks = Patient(start)
        async with (
            reached(cluster.address) as dispatcher,
            open_scheduler(
                executor_works.works, dispatcher=dispatcher, hooks=hooks
            ) as scheduler,
        ):
            param = {"began": str(log), "until": str(go)}
            retry = Retry(2, wait=fixed(0.5))
            task = await scheduler.add_task("wait", param, after=0, retry=retry)
            await until(lambda: len(noted(log)) == 1)
            cluster.started[0].kill()
            cluster.started[0].wait()
            if away == "shortly":
                start()
            await until(lambda: len(noted(log)) == 2)
            go.touch()
            ended = await scheduler.wait(task.id)
            other = await scheduler.add_task("double", {"number": 4}, after=0)
            assert (await scheduler.wait(other.id)).result == 8
    assert (ended.state, ended.attempt, ended.retries) == (TaskState.DONE, 2, 1)
    assert "scheduler-connection-lost" in ended.errors[0].err
    assert [attempt for attempt, _ in noted(log)] == [f"{task.id}-1", f"{task.id}-2"]
    assert all(isinstance(error, ExecutorLostError) for error in hooks.errors)
    assert bool(hooks.errors) is (away == "long")


@pytest.mark.long
async def test_runs_can_be_stopped_after_the_cluster_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    After a connection that was lost for long, runs are stopped as before, though what the
    cluster was to be told again had not been told.
    """
    log, go = tmp_path / "log", tmp_path / "go"
    monkeypatch.setattr("trio_gokugen.dask.FIRST_PAUSE", 3.0)
    with (
        processes(tmp_path) as cluster,
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
    ):

        def start() -> None:
            cluster.start_scheduler()
            cluster.start_worker()

        start()
        hooks = Patient(start)
        async with (
            reached(cluster.address) as dispatcher,
            open_scheduler(
                executor_works.works, dispatcher=dispatcher, hooks=hooks
            ) as scheduler,
        ):
            param = {"began": str(log), "until": str(go)}
            task = await scheduler.add_task("wait", param, after=0)
            await until(lambda: len(noted(log)) == 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scheduler.interrupt, task.id)
                await until(lambda: len(inside(dispatcher)._stopping) == 1)
                cluster.started[0].kill()
                cluster.started[0].wait()
            go.touch()
            task = await scheduler.add_task("sleep", {"seconds": PATIENCE}, after=0)
            await until(lambda: scheduler.statistics().running == 1)
            ended = await scheduler.interrupt(task.id)
    assert ended.state is TaskState.CANCELLED
    assert hooks.errors


async def test_a_cluster_that_is_not_reached_keeps_nothing(cluster: Any) -> None:
    """
    A cluster object whose scheduler is not there has its loop to itself again.
    """

    class Unreachable:
        scheduler_address = "tcp://127.0.0.1:1"
        status = None
        loop = cluster.loop

    before = LoopRunner._all_loops[cluster.loop]
    with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}):
        with pytest.raises(ExecutorLostError, match="the Dask cluster cannot be reached: "):
            async with open_dask_dispatcher(Unreachable(), WORKS):
                pass
    assert LoopRunner._all_loops[cluster.loop] == before


@asynccontextmanager
async def reached(address: str) -> AsyncGenerator[Any]:
    """A dispatcher of a cluster that is about to start."""
    late = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()
        except OSError:
            assert time.monotonic() < late
            await trio.sleep(0.05)
        else:
            break
    async with open_dask_dispatcher(address, WORKS) as dispatcher:
        yield dispatcher


async def test_a_result_that_is_lost_fails_its_run(
    autojump_clock: trio.testing.MockClock,
    cluster: Any,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    When a worker dies that has a result which was not fetched, Dask has the task run again;
    but the work is not called a second time, and the attempt has failed.
    """
    log = tmp_path / "log"
    gather = client.gather

    async def gather_too_late(*args: Any, **kwargs: Any) -> Any:
        [(_, process)] = noted(log)
        os.kill(process, signal.SIGKILL)
        workers = cluster.scheduler.workers
        while any(worker.has_what for worker in workers.values()):  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)
        return await gather(*args, **kwargs)

    monkeypatch.setattr(client, "gather", gather_too_late)
    async with opened(client) as scheduler:
        task = await scheduler.add_task("take_note", {"file": str(log)}, after=0)
        ended = await scheduler.wait(task.id)
    words = "WorkLostError: the run was lost: its worker has left the cluster"
    assert (ended.err or "").startswith(words)
    assert len(noted(log)) == 1


async def test_a_scheduler_that_was_replaced_is_noticed(
    autojump_clock: trio.testing.MockClock, client: Any
) -> None:
    """
    Nothing is sent to another scheduler than the one which is known to run each attempt
    once: that one is told first.
    """
    async with (
        open_dask_dispatcher(client, WORKS) as dispatcher,
        open_scheduler(executor_works.works, dispatcher=dispatcher) as scheduler,
    ):
        await trio.testing.wait_all_tasks_blocked()
        inside(dispatcher)._guarded = "another", None
        task = await scheduler.add_task("double", {"number": 2}, after=0)
        ended = await scheduler.wait(task.id)
        assert (ended.result, ended.attempt, ended.interruptions) == (4, 2, 1)
        # What is told of runs that are not in flight is not heard.
        inside(dispatcher)._hear((0.0, ["no such run", {}]))
        inside(dispatcher)._stop(Flight(task))
        inside(dispatcher)._stop_soon("no such run")
        assert not inside(dispatcher)._stopping
        await scheduler.stop()
        inside(dispatcher)._guarded = None


def inside(dispatcher: Any) -> DaskDispatcher:
    assert isinstance(dispatcher, DaskDispatcher)
    return dispatcher


@pytest.fixture
def broken_once(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, Exception], None]:
    """Has a method of the client raise an error once."""

    def break_once(name: str, error: Exception) -> None:
        real = getattr(client, name)
        left = [error]

        def call(*args: Any, **kwargs: Any) -> Any:
            if left:
                raise left.pop()
            return real(*args, **kwargs)

        monkeypatch.setattr(client, name, call)

    return break_once


# As it is if the connection breaks, and as it is if the client is closed meanwhile.
@pytest.mark.parametrize("kind", [OSError, RuntimeError])
async def test_a_connection_that_breaks_at_the_worst_moment(
    autojump_clock: trio.testing.MockClock,
    client: Any,
    tmp_path: Path,
    broken_once: Callable[[str, Exception], None],
    caplog: pytest.LogCaptureFixture,
    kind: type[Exception],
) -> None:
    """
    Whatever is asked of the cluster when the connection breaks is asked again, or fails
    the run that it was about, and no other.
    """
    log, go = tmp_path / "log", tmp_path / "go"
    broken_once("register_plugin", OSError("broken"))
    async with opened(client) as scheduler:
        broken_once("map", ValueError("too odd"))
        task = await scheduler.add_task("double", {"number": 2}, after=0)
        ended = await scheduler.wait(task.id)
        assert (ended.err or "").startswith("ValueError: too odd")
        # Fetched with others, and then by itself.
        broken_once("gather", kind("broken"))
        task = await scheduler.add_task("double", {"number": 2}, after=0)
        assert (await scheduler.wait(task.id)).result == 4
        for name in "gather", "_gather":
            broken_once(name, kind("broken"))
        task = await scheduler.add_task("double", {"number": 2}, after=0)
        ended = await scheduler.wait(task.id)
        words = f"its outcome could not be fetched, {kind.__name__}: broken"
        assert (ended.err or "").startswith(f"WorkLostError: the run was lost: {words}")
        param = {"began": str(log), "until": str(go)}
        task = await scheduler.add_task("wait", param, after=0)
        await until(lambda: len(noted(log)) == 1)
        broken_once("run_on_scheduler", kind("broken"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.interrupt, task.id)
            await trio.lowlevel.checkpoint()
            go.touch()
        assert (await scheduler.get(task.id)).state is TaskState.DONE
    gc.collect()
    assert [each for each in caplog.records if each.name == "asyncio"] == []


def cut_connection(client: Any) -> None:
    """As if the network had: the cluster is well, and the client connects anew."""
    client.loop.add_callback(client.scheduler_comm.comm.abort)


def cancel_by_force(client: Any) -> None:
    """As somebody else may do it, who looks after the cluster."""
    client.cluster.loop.add_callback(
        client.cluster.scheduler.stimulus_cancel,
        keys=list(client.cluster.scheduler.tasks),
        client=client.id,
        force=True,
        reason="of no use",
        msg="",
    )


@pytest.mark.parametrize("let_go", [cut_connection, cancel_by_force])
async def test_what_the_client_has_let_go_of_is_not_run_beside_its_retry(
    autojump_clock: trio.testing.MockClock,
    client: Any,
    tmp_path: Path,
    let_go: Callable[[Any], None],
) -> None:
    """
    If the client's connection breaks, or somebody else cancels a run on the cluster, its
    work may go on there: an async one is stopped before the task is tried again.
    """
    log = tmp_path / "log"
    async with opened(client) as scheduler:
        retry = Retry(2, wait=fixed(1))
        param = {"began": str(log)}
        task = await scheduler.add_task("never_end", param, after=0, retry=retry)
        await until(lambda: len(noted(log)) == 1)
        let_go(client)
        await until(lambda: len(noted(log)) == 2)
        await until(lambda: sum(client.run(called_there).values()) == 1)
        ended = await scheduler.interrupt(task.id)
        assert "WorkLostError" in ended.errors[0].err
    await until(lambda: not any(client.run(called_there).values()))


async def test_progress_is_heard_after_the_connection_was_lost(
    autojump_clock: trio.testing.MockClock, cluster: Any, client: Any, tmp_path: Path
) -> None:
    """
    A connection that breaks while nothing runs is made again, and all that was heard by
    it is heard again.
    """
    go = tmp_path / "go"
    async with (
        open_dask_dispatcher(client, WORKS) as dispatcher,
        open_scheduler(executor_works.works, dispatcher=dispatcher) as scheduler,
    ):
        topic = inside(dispatcher)._topic
        await until(lambda: subscribers(cluster, topic) == {client.id})
        before = client.scheduler_comm
        cut_connection(client)
        await until(lambda: client.scheduler_comm not in {before, None})
        task = await scheduler.add_task("tell", {"until": str(go)}, after=0)
        while (await scheduler.get(task.id)).progress is None:
            await trio.to_thread.run_sync(time.sleep, 0.01)
        go.touch()
        progress = (await scheduler.wait(task.id)).progress
    assert progress is not None
    assert progress.fraction == 0.75


async def test_what_a_worker_has_had_is_not_taken_back(
    autojump_clock: trio.testing.MockClock, cluster: Any, client: Any, tmp_path: Path
) -> None:
    """
    A run whose worker was retired may still go on there. Stopped then, it has begun, though
    no worker has it: a task that is to run at most once does not run again.
    """
    log = tmp_path / "log"
    repository = HeapRepository()
    async with opened(client, repository=repository) as scheduler:
        param = {"began": str(log), "until": str(tmp_path / "never")}
        task = await scheduler.add_task("wait_once", param, after=0)
        await until(lambda: len(noted(log)) == 1)
        workers = list(cluster.scheduler.workers)
        cluster.loop.add_callback(
            cluster.scheduler.retire_workers,
            workers=workers,
            close_workers=True,
            remove=True,
        )
        await until(lambda: not cluster.scheduler.workers)
        await scheduler.stop(grace=0)
    ended = await repository.get(task.id)
    assert (ended.state, ended.attempt) == (TaskState.FAILED, 1)
    assert len(noted(log)) == 1
    os.kill(noted(log)[0][1], signal.SIGKILL)  # else it would take its time


async def test_what_is_to_be_stopped_is_told_at_once(
    autojump_clock: trio.testing.MockClock,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    However long a work takes that was stopped and goes on: what is stopped after it does
    not wait until the cluster is told of that one again.
    """
    log, go = tmp_path / "log", tmp_path / "go"
    monkeypatch.setattr("trio_gokugen.dask.FIRST_PAUSE", 3_600.0)
    async with opened(client) as scheduler, trio.open_nursery() as nursery:
        param = {"began": str(log), "until": str(go)}
        busy = [await scheduler.add_task("wait", param, after=0) for _ in range(2)]
        await until(lambda: len(noted(log)) == 2)
        queued = [await scheduler.add_task("nothing", after=0) for _ in range(10)]
        await until(lambda: scheduler.statistics().running == 12)
        nursery.start_soon(scheduler.interrupt, busy[0].id)
        await trio.testing.wait_all_tasks_blocked(0.05)
        ended = await scheduler.interrupt(queued[-1].id)
        assert ended.state is TaskState.CANCELLED
        go.touch()


async def test_an_odd_error_of_stopping_is_logged_and_it_is_tried_again(
    autojump_clock: trio.testing.MockClock,
    client: Any,
    tmp_path: Path,
    broken_once: Callable[[str, Exception], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    Whatever Dask raises as it is told to stop a run: the run is stopped a little later.
    """
    log = tmp_path / "log"
    async with opened(client) as scheduler:
        task = await scheduler.add_task("never_end", {"began": str(log)}, after=0)
        await until(lambda: len(noted(log)) == 1)
        broken_once("run_on_scheduler", AssertionError("too odd"))
        ended = await scheduler.interrupt(task.id)
    assert ended.state is TaskState.CANCELLED
    messages = [each.getMessage() for each in caplog.records if each.exc_info]
    assert messages == ["Dask's scheduler could not be told what is to be stopped"]


@pytest.mark.parametrize("how", ["cancelled", "left", "idle"])
async def test_a_block_that_is_left_before_the_scheduler_has_ended(
    cluster: Any, tmp_path: Path, how: str
) -> None:
    """
    If the dispatcher's block ends while the scheduler, in a nursery around it, has runs in
    flight, these are stopped and lost; and nothing is sent any more, nor connected anew.
    """
    log = tmp_path / "log"
    errors: list[Exception] = []

    class Hooks(PartialHooks):
        async def on_dispatch_error(
            self, error: Exception, action: HookAction
        ) -> HookAction:
            errors.append(error)
            scheduler_ended.cancel()
            return HookAction.IGNORE

    repository = HeapRepository()
    task: Task | None = None
    async with trio.open_nursery() as nursery:
        scheduler_ended = nursery.cancel_scope
        async with open_dask_dispatcher(cluster.scheduler_address, WORKS) as dispatcher:
            works = executor_works.works
            scheduler = Scheduler(works, repository, dispatcher, hooks=Hooks())
            await nursery.start(scheduler.run)
            if how != "idle":
                param = {"began": str(log)}
                retry = Retry(2, wait=fixed(0))
                task = await scheduler.add_task("never_end", param, after=0, retry=retry)
                await until(lambda: len(noted(log)) == 1)
            if how == "cancelled":
                scheduler_ended.cancel()
        if how == "idle":
            with suppress(
                SchedulerNotRunningError
            ):  # the hooks may have heard of it before
                await scheduler.add_task("nothing", after=0)
    client: Any = distributed.Client(cluster, set_as_default=False)  # type: ignore[no-untyped-call]
    with client:
        await until(lambda: not any(client.run(called_there).values()))
    if how == "cancelled":
        assert task is not None
        assert (await repository.get(task.id)).state is TaskState.SCHEDULED
    else:
        assert "the block of its Dask dispatcher has ended" in str(errors[0])
    assert len(noted(log)) == (how != "idle")


class Persistent(PartialHooks):
    """Has the dispatcher try again, at once, so many times."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.errors: list[str] = []
        self.moments: list[float] = []

    async def on_dispatch_error(self, error: Exception, action: HookAction) -> HookAction:
        self.errors.append(str(error))
        self.moments.append(trio.current_time())
        return HookAction.RETRY if len(self.errors) < self.most else HookAction.RAISE


@asynccontextmanager
async def left_first(
    target: Any, began: threading.Event, prepare: Callable[[Any], None]
) -> AsyncGenerator[DaskDispatcher]:
    """A dispatcher whose block has been left while it was about to be ready again."""
    hooks = Persistent(1)
    with pytest.RaisesGroup(
        pytest.RaisesExc(ExecutorLostError, match="the block of its Dask dispatcher"),
        flatten_subgroups=True,
    ):
        async with trio.open_nursery() as nursery:
            async with open_dask_dispatcher(target, WORKS) as dispatcher:
                works = executor_works.works
                scheduler = Scheduler(works, HeapRepository(), dispatcher, hooks=hooks)
                await nursery.start(scheduler.run)
                prepare(inside(dispatcher))
                await scheduler.add_task("nothing", after=0)
                await until(began.is_set)
            yield inside(dispatcher)


async def test_a_block_that_is_left_while_it_connects_anew_leaves_no_client(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If the dispatcher's block ends while another client is being made, that one is closed.
    """
    began, go_on = threading.Event(), threading.Event()
    real = OwnClient.start
    made: list[Any] = []

    def start(self: Any, **options: Any) -> None:
        made.append(self)
        if len(made) == 2:
            began.set()
            assert go_on.wait(PATIENCE)
        real(self, **options)

    def lose(dispatcher: DaskDispatcher) -> None:
        dispatcher.client.loop.add_callback(dispatcher.client._close)
        wait_until(lambda: dispatcher.client.status == "closed")

    monkeypatch.setattr(OwnClient, "start", start)
    async with left_first(cluster.scheduler_address, began, lose):
        go_on.set()
    assert [client.status for client in made] == ["closed", "closed"]


async def test_a_block_that_is_left_while_the_cluster_is_told_of_it_hears_nothing(
    cluster: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If the dispatcher's block ends while Dask's scheduler is about to take the plugin, a
    client of the caller's hears nothing for it after that, and does not keep it.
    """
    began, go_on = threading.Event(), threading.Event()
    real = client.register_plugin

    async def register(plugin: Any) -> None:
        began.set()
        while not go_on.is_set():  # noqa: ASYNC110 (it is set by another thread)
            await asyncio.sleep(0.005)
        await real(plugin)

    def doubt(dispatcher: DaskDispatcher) -> None:
        monkeypatch.setattr(client, "register_plugin", register)
        dispatcher._guarded = "another", None

    async with left_first(client, began, doubt) as dispatcher:
        topic, kept = dispatcher._topic, weakref.ref(dispatcher)
        del dispatcher
        go_on.set()
    gc.collect()
    assert kept() is None
    await until(lambda: not subscribers(cluster, topic))


async def test_a_client_that_stumbles_as_it_connects_anew_is_replaced(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Dask's client may fail in connecting anew, and never tries it again, nor closes: then
    there is another.
    """

    address = cluster.scheduler_address
    async with (
        open_dask_dispatcher(address, WORKS) as dispatcher,
        open_scheduler(executor_works.works, dispatcher=dispatcher) as scheduler,
    ):
        ours = inside(dispatcher).client

        async def stumble(self: object) -> None:
            raise AssertionError("not what it wanted to hear")

        monkeypatch.setattr(distributed.Client, "_reconnect", stumble)
        cut_connection(ours)
        await until(lambda: ours.status != "running")
        task = await scheduler.add_task("double", {"number": 2}, after=0)
        assert (await scheduler.wait(task.id)).result == 4
        assert inside(dispatcher).client is not ours


def called_there(dask_worker: Any) -> int:
    """On a worker: how many works are called."""
    return len(dask_worker.active_threads)


@pytest.mark.parametrize("where", ["gather", "as_completed"])
async def test_what_still_runs_is_not_run_beside_itself(
    autojump_clock: trio.testing.MockClock,
    client: Any,
    tmp_path: Path,
    broken_once: Callable[[str, Exception], None],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """
    If the outcome of a run cannot be fetched, others that were sent with it go on; and if
    none can be fetched any more, they are stopped.
    """
    log, go = tmp_path / "log", tmp_path / "go"
    async with opened(client) as scheduler:
        if where == "gather":
            for name in "gather", "_gather":
                broken_once(name, OSError("broken"))
            param = {"began": str(log), "until": str(go)}
            slow = TaskParam(work_id="wait", param=param, scheduled_at=NOON, id="slow")
        else:
            real = distributed.as_completed

            class Broken(real):  # type: ignore[misc, valid-type]
                async def __anext__(self) -> Any:
                    while not noted(log):  # noqa: ASYNC110 (a process writes it)
                        await asyncio.sleep(0.005)
                    raise OSError("broken")

            monkeypatch.setattr(distributed, "as_completed", Broken)
            param = {"began": str(log)}
            slow = TaskParam(work_id="never_end", param=param, scheduled_at=NOON, id="slow")
        quick = TaskParam(
            work_id="double", param={"number": 2}, scheduled_at=NOON, id="quick"
        )
        await scheduler.add_tasks([slow, quick])
        ended = await scheduler.wait("quick")
        assert "its outcome could not be fetched, OSError: broken" in (ended.err or "")
        if where == "gather":
            await until(lambda: len(noted(log)) == 1)
            assert (await scheduler.get("slow")).state is TaskState.DISPATCHED
            go.touch()
            assert (await scheduler.wait("slow")).state is TaskState.DONE
        else:
            ended = await scheduler.wait("slow")
            assert "its outcome could not be fetched, OSError: broken" in (ended.err or "")
    assert len(noted(log)) == 1
    await until(lambda: not any(client.run(called_there).values()))


def broken_once_two_run(log: Path) -> type[Any]:
    """What outcomes are fetched by, and raises once two works have noted their begin."""

    class Broken(distributed.as_completed):
        async def __anext__(self) -> Any:
            while len(noted(log)) < 2:  # noqa: ASYNC110 (processes write it)
                await asyncio.sleep(0.005)
            raise OSError("broken")

    return Broken


async def test_what_was_let_go_of_before_it_is_stopped_is_stopped(
    autojump_clock: trio.testing.MockClock,
    cluster: Any,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Runs whose outcomes can no longer be fetched are let go of, by which the cluster forgets
    them. If it does so before it is told to stop them, they are stopped all the same: what
    runs is cancelled, and what waits, on a worker or for one, never begins.
    """
    log = tmp_path / "log"
    real = client.run_on_scheduler
    forgotten: list[bool] = []

    async def tell_late(*args: Any) -> Any:
        while not forgotten and cluster.scheduler.tasks:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.005)
        forgotten.append(True)
        return await real(*args)

    monkeypatch.setattr(distributed, "as_completed", broken_once_two_run(log))
    monkeypatch.setattr(client, "run_on_scheduler", tell_late)
    tasks = [
        TaskParam(work_id="never_end", param={"began": str(log)}, scheduled_at=NOON)
        for _ in range(20)
    ]
    async with opened(client) as scheduler:
        for task in await scheduler.add_tasks(tasks):
            ended = await scheduler.wait(task.id)
            assert "its outcome could not be fetched, OSError: broken" in (ended.err or "")
        assert forgotten
        await until(lambda: not any(client.run(called_there).values()))
    assert len(noted(log)) == 2


async def test_a_cluster_that_does_not_hear_who_is_to_be_stopped(
    autojump_clock: trio.testing.MockClock,
    client: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Runs whose outcomes can no longer be fetched fail though the cluster does not answer:
    it is not waited for for ever. What had not begun never does.
    """
    log, go = tmp_path / "log", tmp_path / "go"

    async def never_answer(*_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(distributed, "as_completed", broken_once_two_run(log))
    monkeypatch.setattr(client, "run_on_scheduler", never_answer)
    monkeypatch.setattr("trio_gokugen.dask.LONGEST_TELLING", 0.05)
    param = {"began": str(log), "until": str(go)}
    tasks = [TaskParam(work_id="wait", param=param, scheduled_at=NOON) for _ in range(20)]
    async with opened(client) as scheduler:
        for task in await scheduler.add_tasks(tasks):
            ended = await scheduler.wait(task.id)
            assert "its outcome could not be fetched, OSError: broken" in (ended.err or "")
        await until(lambda: not client.futures)
        go.touch()
        await until(lambda: not any(client.run(called_there).values()))
    # Each of the two workers may have had one more.
    assert len(noted(log)) <= 4


async def test_a_client_that_is_closed_while_it_is_looked_at(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A client that is closed while its scheduler is told of runs is lost, and so it is
    called. Any other error of telling it is told, too, and not tried again for ever.
    """

    async def fail(plugin: object) -> None:
        tries.append(error)
        raise error

    async def fail_closed(plugin: object) -> None:
        client.status = "closing"
        raise RuntimeError("ConnectionPool is closed")

    async with open_dask_dispatcher(client, WORKS) as dispatcher:
        guard = partial(inside(dispatcher)._guard, 0.0)
        with monkeypatch.context() as patched:
            patched.setattr(client, "status", "closing")
            await inside(dispatcher)._on_loop(guard)
    monkeypatch.setattr(client, "register_plugin", fail)
    monkeypatch.setattr("trio_gokugen.dask.FIRST_PAUSE", 0.001)
    error: Exception
    for error, most in (
        (ModuleNotFoundError("No module named 'trio_gokugen'"), 1),
        (PermissionError("not to be read"), MOST_TRIES),
    ):
        tries: list[Exception] = []
        words = f"must be installed there, too: {type(error).__name__}: {error}"
        with pytest.raises(ExecutorLostError, match=words):
            async with open_dask_dispatcher(client, WORKS):
                pass
        assert len(tries) == most
    monkeypatch.setattr(client, "register_plugin", fail_closed)
    with pytest.raises(ExecutorLostError, match="is closed"):
        async with open_dask_dispatcher(client, WORKS):
            pass
    # As Dask's client stays that has stumbled over something as it connected anew.
    ended = asyncio.Future[None](loop=client.loop.asyncio_loop)
    ended.set_result(None)
    with monkeypatch.context() as patched:
        patched.setattr(client, "status", "connecting")
        patched.setattr(client, "_handle_report_task", ended)
        with pytest.raises(ExecutorLostError, match="cannot connect anew"):
            async with open_dask_dispatcher(client, WORKS):
                pass


class Closing:
    """A cluster object that is closed later."""

    status = Status.running

    def __init__(self, cluster: Any) -> None:
        self.scheduler_address = cluster.scheduler_address


async def lose_for_good(
    how: str, cluster: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> list[float]:
    """When the hooks were told, one time after the other, that a cluster is lost."""
    closing = Closing(cluster)
    targets = {"closed client": client, "closed cluster": closing}
    hooks = Persistent(5)
    messages = {
        "closed client": "the Dask client that it was given is closed",
        "closed cluster": "the Dask cluster cannot be reached: Trying to connect to an",
        "lost at once": "the Dask cluster was reached, and lost again",
    }

    def start_and_be_lost(self: Any, **options: Any) -> None:
        start(self, **options)
        lose(self)

    def lose(client: Any) -> None:
        client.loop.add_callback(client._close)
        wait_until(lambda: client.status == "closed")

    start = OwnClient.start
    with pytest.RaisesGroup(ExecutorLostError, flatten_subgroups=True):
        target = targets.get(how, cluster.scheduler_address)
        async with opened(target, hooks=hooks) as scheduler:
            if how == "lost at once":
                monkeypatch.setattr(OwnClient, "start", start_and_be_lost)
            closing.status = Status.closed
            dispatcher: Any = scheduler._dispatcher
            with autojump_held():
                await trio.to_thread.run_sync(lose, dispatcher.client)
            await scheduler.add_task("nothing", after=0)
            await trio.sleep_forever()
    assert all(messages[how] in each for each in hooks.errors)
    return [moment - hooks.moments[0] for moment in hooks.moments]


LOST = ["closed client", "closed cluster", "lost at once"]


@pytest.mark.parametrize("how", LOST)
async def test_what_fails_at_once_is_not_tried_again_at_once(
    autojump_clock: trio.testing.MockClock,
    cluster: Any,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """
    A hook that always answers `RETRY`, and does not wait, is told of a cluster that is lost
    for good four times a second.
    """
    moments = await lose_for_good(how, cluster, client, monkeypatch)
    assert moments == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("how", LOST)
async def test_what_fails_at_once_is_not_tried_again_at_once_in_real_time(
    cluster: Any, client: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """
    So it is by a real clock.
    """
    monkeypatch.setattr("trio_gokugen.dask.FIRST_PAUSE", 0.05)
    moments = await lose_for_good(how, cluster, client, monkeypatch)
    assert len(moments) == 5
    assert all(two - one >= 0.05 for one, two in pairwise(moments))


async def fail_to_tell(client: Any, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When a scheduler of Dask's was told, which never takes it, in real time."""
    tries: list[float] = []

    async def fail(plugin: object) -> None:
        tries.append(time.monotonic())
        raise OSError("broken")

    monkeypatch.setattr(client, "register_plugin", fail)
    monkeypatch.setattr("trio_gokugen.dask.FIRST_PAUSE", 0.01)
    with pytest.raises(ExecutorLostError, match="OSError: broken"):
        async with open_dask_dispatcher(client, WORKS):
            pass
    assert len(tries) == MOST_TRIES
    return tries


async def test_there_is_a_pause_before_the_scheduler_of_dasks_is_told_again(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If the connection has broken as the cluster is told of runs, and the client has yet to
    notice, it is given time for that.
    """
    tries = await fail_to_tell(client, monkeypatch)
    assert all(two - one >= 0.01 for one, two in pairwise(tries))


async def test_such_a_pause_takes_no_virtual_time(
    autojump_clock: trio.testing.MockClock, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    It is one in real time under a mock clock, too, which stands still meanwhile.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 0.001)
        tries = await fail_to_tell(client, monkeypatch)
        assert trio.current_time() == 0.0
    assert all(two - one >= 0.01 for one, two in pairwise(tries))


async def test_a_client_that_is_closed_while_nothing_runs(
    autojump_clock: trio.testing.MockClock, client: Any
) -> None:
    """
    A task that falls due after the client was closed is not started; the hooks are told.
    """
    repository = HeapRepository()
    with pytest.raises(ExceptionGroup) as caught:
        async with opened(client, repository=repository) as scheduler:
            await scheduler.add_task("nothing", after=5, id="t")
            await trio.testing.wait_all_tasks_blocked()
            with autojump_held():
                await trio.to_thread.run_sync(client.close)
            await trio.sleep_forever()
    assert caught.group_contains(ExecutorLostError, match="is closed")
    task = await repository.get("t")
    assert (task.state, task.attempt) == (TaskState.SCHEDULED, 1)


# -- whose client it is -------------------------------------------------------------


async def test_a_client_that_is_given_stays_open(
    autojump_clock: trio.testing.MockClock, cluster: Any, tmp_path: Path
) -> None:
    """
    A client of the caller's serves one dispatcher after the other, and stays open. Closed
    too early, it fails what is in flight, and nothing more is taken.
    """
    log, go = tmp_path / "log", tmp_path / "go"

    class Hooks(PartialHooks):
        async def on_dispatch_error(
            self, error: Exception, action: HookAction
        ) -> HookAction:
            errors.append(error)
            return HookAction.IGNORE

    errors: list[Exception] = []
    client: Any = distributed.Client(cluster, set_as_default=False)  # type: ignore[no-untyped-call]
    try:
        for number in range(2):
            async with opened(client) as scheduler:
                task = await scheduler.add_task("double", {"number": number}, after=0)
                assert (await scheduler.wait(task.id)).result == 2 * number
            assert client.status == "running"
        async with opened(client, hooks=Hooks()) as scheduler:
            param = {"began": str(log), "until": str(go)}
            task = await scheduler.add_task("wait", param, after=0)
            await until(lambda: len(noted(log)) == 1)
            await trio.to_thread.run_sync(client.close)
            ended = await scheduler.wait(task.id)
            assert (ended.err or "").startswith("WorkLostError: the run was lost")
            late = await scheduler.add_task("double", {"number": 1}, after=0)
            await until(lambda: bool(errors))
            assert (await scheduler.get(late.id)).state is TaskState.SCHEDULED
        assert isinstance(errors[0], ExecutorLostError)
    finally:
        go.touch()
        client.close()


async def test_a_client_that_is_given_is_left_as_it_was(
    autojump_clock: trio.testing.MockClock, cluster: Any, client: Any, tmp_path: Path
) -> None:
    """
    When the dispatcher has ended, a client of the caller's hears nothing more for it, and
    does not keep it, though a run was cancelled by somebody else on the cluster.
    """
    log, go = tmp_path / "log", tmp_path / "go"
    async with (
        open_dask_dispatcher(client, WORKS) as dispatcher,
        open_scheduler(executor_works.works, dispatcher=dispatcher) as scheduler,
    ):
        topic = inside(dispatcher)._topic
        await until(lambda: subscribers(cluster, topic) == {client.id})
        param = {"began": str(log), "until": str(go)}
        task = await scheduler.add_task("wait", param, after=0)
        await until(lambda: len(noted(log)) == 1)
        cluster.loop.add_callback(
            cluster.scheduler.stimulus_cancel,
            keys=list(cluster.scheduler.tasks),
            client=client.id,
            force=True,
            reason="of no use",
            msg="",
        )
        ended = await scheduler.wait(task.id)
        assert (ended.err or "").startswith("WorkLostError: the run was lost")
        go.touch()
    kept = weakref.ref(dispatcher)
    del dispatcher, scheduler
    await until(lambda: not subscribers(cluster, topic))
    gc.collect()
    assert kept() is None


async def test_a_loop_that_is_busy_is_not_waited_for_for_ever(
    cluster: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If the loop of the caller's client answers nothing, the block ends all the same after a
    while; and once the loop goes on, it is left as it was.
    """
    await leave_while_busy(cluster, client, monkeypatch)


async def test_a_loop_that_is_busy_is_waited_for_in_real_time(
    autojump_clock: trio.testing.MockClock,
    cluster: Any,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    So does it under a mock clock, which waits for the loop as for any other thread.
    """
    await leave_while_busy(cluster, client, monkeypatch)


async def leave_while_busy(
    cluster: Any, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_gokugen.dask.LONGEST_LEAVE", 0.1)
    go_on = threading.Event()
    try:
        async with open_dask_dispatcher(client, WORKS) as dispatcher:
            topic = inside(dispatcher)._topic
            await until(lambda: subscribers(cluster, topic) == {client.id})
            client.loop.add_callback(go_on.wait, PATIENCE)
            began = time.monotonic()
        assert time.monotonic() - began < PATIENCE / 2
    finally:
        go_on.set()
    await until(lambda: not subscribers(cluster, topic))


async def test_a_client_of_ours_whose_loop_is_busy_is_left(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If it is the loop of our own client, the block ends, too, by the error that it was left
    by; and once the loop goes on, it ends, and nothing of it stays.
    """
    monkeypatch.setattr("trio_gokugen.dask.LONGEST_LEAVE", 0.1)
    go_on = threading.Event()
    try:
        began = time.monotonic()
        with pytest.raises(ValueError, match="the user's own"):
            async with open_dask_dispatcher(cluster.scheduler_address, WORKS) as dispatcher:
                inside(dispatcher).client.loop.add_callback(go_on.wait, PATIENCE)
                raise ValueError("the user's own")
        assert time.monotonic() - began < PATIENCE / 2
    finally:
        go_on.set()


async def test_an_interrupt_as_the_block_is_left_ends_our_client(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A Ctrl-C that comes while the dispatcher is closed leaves no client behind.
    """

    async def interrupted(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DaskDispatcher, "close", interrupted)
    ours: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        async with open_dask_dispatcher(cluster.scheduler_address, WORKS) as dispatcher:
            ours.append(inside(dispatcher).client)
    assert ours[0].status == "closed"


def subscribers(cluster: Any, topic: str) -> set[str]:
    """The clients that a cluster tells what comes to a topic."""
    found: set[str] = cluster.scheduler._broker._topics[topic].subscribers
    return found


class Closed:
    """A cluster object that was closed."""

    scheduler_address = "tcp://127.0.0.1:1"
    status = Status.closed
    loop = None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        pytest.param(
            lambda: open_dask_dispatcher("tcp://127.0.0.1:1", executor_works.works),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            TypeError,
            "works: must be an import path, 'module:name', not ",
            id="registry",
        ),
        pytest.param(
            lambda: open_dask_dispatcher(
                "tcp://127.0.0.1:1", "executor_works:nothing_there"
            ),
            ImportError,
            "works: 'executor_works' has no 'nothing_there'",
            id="name",
        ),
        pytest.param(
            lambda: open_dask_dispatcher("tcp://127.0.0.1:1", WORKS, max_in_flight=0),
            ValueError,
            "max_in_flight: must be at least 1, not 0",
            id="in flight",
        ),
        pytest.param(
            lambda: open_dask_dispatcher("tcp://127.0.0.1:1", WORKS),
            ExecutorLostError,
            "the Dask cluster cannot be reached: ",
            id="address",
        ),
        pytest.param(
            lambda: open_dask_dispatcher("127.0.0.1", WORKS),
            ValueError,
            "address_or_client: missing port number in address '127.0.0.1'",
            id="port",
        ),
        pytest.param(
            lambda: open_dask_dispatcher(None, WORKS),
            TypeError,
            "address_or_client: must be an address, a cluster or a client",
            id="none",
        ),
        pytest.param(
            lambda: open_dask_dispatcher(8786, WORKS),
            TypeError,
            "address_or_client: Scheduler address must be a string or a Cluster instance",
            id="number",
        ),
        pytest.param(
            lambda: open_dask_dispatcher(Closed(), WORKS),
            ExecutorLostError,
            "the Dask cluster cannot be reached: Trying to connect to an already closed",
            id="closed",
        ),
    ],
)
async def test_what_cannot_be_opened_says_why(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    """
    A dispatcher that could not work is refused before anything is connected.
    """
    with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}):
        with pytest.raises(error, match=message):
            async with make():
                pass


async def test_an_asynchronous_client_is_refused() -> None:
    """
    A client that lives in a loop of asyncio's cannot be used from Trio, which is said.
    """

    class Asynchronous(distributed.Client):
        @property
        def asynchronous(self) -> bool:
            return True

        def __init__(self) -> None:
            pass

        def __del__(self) -> None:
            pass

    client = Asynchronous()
    with pytest.raises(TypeError, match="must not be asynchronous"):
        async with open_dask_dispatcher(client, WORKS):
            pass


def test_without_dask_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Without the extra, an import of the module says how to get it.
    """
    spec = importlib.util.find_spec("trio_gokugen.dask")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "trio_gokugen\[dask\]"'):
        spec.loader.exec_module(module)


# -- what runs on the workers, run here ---------------------------------------------


def test_what_a_worker_calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    A worker is sent one text, of which it makes the call, and whom to tell what.
    """
    events: list[Any] = []

    class Worker:
        def log_event(self, topic: str, message: Any) -> None:
            events.append((topic, message))

    monkeypatch.setattr(distributed, "get_worker", Worker)
    task = Task(
        id="t", work_id="double", param={"number": 2}, scheduled_at=NOON, created_at=NOON
    )

    def call(task: Task) -> Landed:
        return call_on_worker(json.dumps(("mark", "topic", WORKS, task.to_json(), 0.0)))

    assert call(task) == Landed("value", 4)
    stop_on_worker(["mark"])
    assert call(task) == Landed("refused")
    go = tmp_path / "go"
    go.touch()
    told = call(attrs.evolve(task, work_id="tell", param={"until": str(go)}))
    assert told == Landed("value", None)
    assert [(topic, mark) for topic, (mark, _) in events] == [("topic", "mark")] * 2
    assert [progress["fraction"] for _, (_, progress) in events] == [0.25, 0.75]
