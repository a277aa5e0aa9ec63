"""The examples, run as a reader would run them, and the service of one of them for real.

The code blocks of the README and the docs are run by `conftest.py`.
"""

import importlib.util
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from leftovers import nothing_left
from trio.testing import MockClock

import trio_gokugen
from trio_gokugen import Scheduler, TaskQuery, TaskState, abc, dask, sql

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

HOUR = 3600.0
WAY_OUT = 1_000_000.0
"""Seconds of virtual time after which an answer that has not come never will."""


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Nothing is left after any of these tests."""
    with nothing_left(tmp_path / "temporary", monkeypatch):
        yield


def run_script(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- the scripts --------------------------------------------------------------------


def test_hello_says_hello() -> None:
    """
    The first example greets, and tells that its task is done.
    """
    assert run_script("hello.py") == "hello trio\ngreet is done\n"


def test_hello_is_the_first_program_of_the_readme() -> None:
    """
    The README's first block of Python is `hello.py`, to the letter.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert blocks[0] == (EXAMPLES / "hello.py").read_text(encoding="utf-8")


CPU = {
    "count_primes {'below': 1000}: 168 found",
    "count_primes {'below': 10000}: 1229 found",
    "count_primes {'below': 100000}: 9592 found",
    "never_end {}: WorkTimeoutError: the work was cancelled after its timeout of 0.5 s",
    "crash {}: WorkerDiedError: the process of the work has ended: exit code 3",
}


def test_cpu_counts_primes_in_processes() -> None:
    """
    Works in processes return what they count, and one that never ends is killed, one that
    crashes fails.
    """
    lines = run_script("cpu.py").splitlines()
    assert len(lines) == len(CPU)
    assert set(lines) == CPU


def test_hooks_outlives_its_store() -> None:
    """
    While the store is down nothing is run or lost, and each task runs once.
    """
    output = run_script("hooks.py")
    before, down, after = re.split(r"^--- the store is .*\n", output, flags=re.MULTILINE)
    # The hook and the work are two Trio tasks: either may come first.
    assert sorted(before.splitlines()) == [
        "hook:      mail is dispatched",
        "listener:  mail is done",
        "work:      backs up mail, attempt 1",
    ]
    assert set(down.splitlines()) >= {"hook:      AddTasks not written: retry"}
    assert re.fullmatch(
        r"(log:       (claiming due tasks|writing changes) failed, \d+ in a row,"
        r" to be retried in [\d.e-]+ s: the store is down\n|hook:      AddTasks .*\n)+",
        down,
    )
    assert "claiming due tasks" in down
    lines = after.splitlines()
    assert lines[-1] == "3 done, 0 failed, 0 reverted"
    for line in (
        "caller:    music was added, at last",
        "work:      backs up photos, attempt 1",
        "work:      backs up music, attempt 1",
        "listener:  photos is done",
        "listener:  music is done",
    ):
        assert lines.count(line) == 1


DURABLE = """\
the first process
  has added four tasks
  mails ann, attempt 1
  charges bob's card, which takes a while
  mails bob, attempt 1
  is killed
the second process
  finds in the file:
    mail   ann  done
    charge bob  dispatched
    mail   bob  dispatched
    mail   eve  scheduled
  mails bob, attempt 2
  mails eve, attempt 1
  has nothing left to do:
    mail   ann  done
    charge bob  failed: the run was lost: its scheduler ended without recording the outcome
    mail   bob  done
    mail   eve  done
"""


def test_durable_goes_on_after_it_was_killed() -> None:
    """
    What the first process left runs in the second: again, or not at all if it must not.
    """
    assert run_script("durable.py") == DURABLE


def test_the_readme_shows_what_durable_prints() -> None:
    """
    The README has the output of `make demo`, to the letter.
    """
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert textwrap.indent(DURABLE, "    ") in readme


def test_pools_do_not_wait_for_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    """
    The example of pools: no mail waits for a report, and each limit is kept.
    """
    module = load("pools")
    trio.run(module.main, clock=MockClock(autojump_threshold=0))
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split("started ")[::-1] for line in lines) == [
        ["0.0 s after it was due", "mail to ann      "],
        ["0.0 s after it was due", "mail to bob      "],
        ["0.0 s after it was due", "mail to cleo     "],
        ["0.0 s after it was due", "mail to dan      "],
        ["0.0 s after it was due", "report of June   "],
        ["0.0 s after it was due", "report of May    "],
        ["1.0 s after it was due", "mail to ann      "],
        ["1.0 s after it was due", "mail to eve      "],
        ["1.5 s after it was due", "report of August "],
        ["1.5 s after it was due", "report of July   "],
    ]


def test_two_workers_share_the_tasks(postgresql_url: str) -> None:
    """
    Each of two processes runs some of the tasks, and every task is run by one of them.
    """
    output = run_script("two_workers.py", postgresql_url)
    lines = output.splitlines()
    assert sorted(lines[:2]) == ["worker-1 is ready", "worker-2 is ready"]
    ran: dict[str, list[int]] = {"worker-1": [], "worker-2": []}
    for line in lines[2:8]:
        match = re.fullmatch(r"(worker-[12]) shrinks picture (\d)", line)
        assert match is not None
        ran[match[1]].append(int(match[2]))
    assert all(ran.values())
    assert sorted(ran["worker-1"] + ran["worker-2"]) == [1, 2, 3, 4, 5, 6]
    assert lines[8:] == [
        *(f"{name} has run {len(n)} tasks: {sorted(n)}" for name, n in ran.items()),
        "6 of 6 are done, at the first attempt",
    ]


def test_two_workers_says_what_it_needs() -> None:
    """
    Without a database it ends at once, and says how to get one.
    """
    done = subprocess.run(
        [sys.executable, EXAMPLES / "two_workers.py"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("usage: python examples/two_workers.py postgresql://")
    assert "docker run" in done.stderr
    assert done.stdout == ""


def test_outbox_has_both_or_neither() -> None:
    """
    An order that is placed has its mail, and one that is rolled back has none.
    """
    assert run_script("outbox.py").splitlines() == [
        "ann orders 2 pencils: a row, and task 'mail'",
        "mails ann: order 1 is on its way",
        "bob orders 1000 pencils: a row, and task 'mail'",
        "bob's order is rolled back",
        "orders of: ann",
        "mails to: ann",
    ]


def test_cron_runs_again_and_again() -> None:
    """
    What is to run again runs again, and what does not run is told.
    """
    lines = run_script("cron.py").splitlines()
    assert lines.count("polled, as 0.2 s") >= 2
    assert lines.count("polled, as 0.2 s after the end") >= 2
    assert any(line.endswith("of often left out: overlap") for line in lines)
    [report] = [line for line in lines if line.startswith("the report of")]
    assert report.endswith("day goes to everybody")
    assert lines[-1] == "report: At 09:00 on Monday through Friday, Europe/Berlin"


CRONTAB = """\
nightly: At 02:30 every day, Europe/Berlin
bills: At 09:00 on Monday through Friday, UTC; but not on 2030-12-25, 2031-01-01 (UTC)
look around: Every 1m30s, counted from 1970-01-01, UTC
monthly: At 00:00 on the first day of every month, UTC
poll: Every 1h30m, counted from 1970-01-01, UTC
weekly: At 18:00 on Friday, Asia/Tokyo
backed up to the safe
"""


def test_crontab_reads_files() -> None:
    """
    The schedules of both files are added, and told in words; one is run.
    """
    assert run_script("crontab.py") == CRONTAB


COMMANDS = """\
hourly: At the start of every hour, UTC
morning: At 07:00 on Monday through Friday, Europe/Berlin
often: Every 5m, counted from 1970-01-01, UTC
hourly is done, at attempt 1
*\t.

morning is done, at attempt 1
hello $(whoami); ls, from the crontab
it is a new day
often is failed, at attempt 2
CommandFailedError: the command exited with code 75

stderr:
nobody answers

"""


def test_commands_runs_a_crontab_of_commands() -> None:
    """
    Each command of the file is run, and what it has written is told, or how it has failed.
    """
    assert re.sub(r"\d+\t\.", "*\t.", run_script("commands.py")) == COMMANDS


def test_commands_runs_a_file_until_it_is_interrupted(tmp_path: Path) -> None:
    """
    Given a file, it goes on until Ctrl-C; or says what is wrong in it.
    """
    path = tmp_path / "mine.toml"
    path.write_text(
        "[commands.tick]\nargv = ['echo', 'tick']\n"
        "[schedules.s]\nwork_id = 'tick'\nevery = 0.05\n"
    )
    arguments = [
        sys.executable,
        "-W",
        "error",
        "-u",
        str(EXAMPLES / "commands.py"),
        str(path),
    ]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert next(lines).startswith("s: Every 0.05s")
        assert [next(lines) for _ in range(6)] == [
            "s is done, at attempt 1\n",
            "tick\n",
            "\n",
        ] * 2
        process.send_signal(signal.SIGINT)
        assert [*lines][-1] == "stopped\n"
    assert process.returncode == 0
    path.write_text("[commands.tick]\nargv = 'echo tick'\n")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{path}, line 2: command 'tick': argv: must be a list")
    path.write_text(
        "[schedules.s]\nwork_id = 'tick'\nevery = 'x'\n[commands.tick]\nargv = []\n[x]\n"
    )
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [
        f"{path}, line {line}" for line in (3, 5, 6)
    ]
    path.write_text(
        "[schedules.s]\nwork_id = 'tick'\nevery = 1\n"
        "[schedules.t]\nwork_id = 'tock'\nevery = 1\n"
        "[commands.tock]\nargv = ['echo', '{what}']\n"
    )
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "2 refused, none added:\n"
        "  's': no work is registered as 'tick'\n"
        "  't': param: lacks 'what'\n"
    )


def started_commands(path: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-u", str(EXAMPLES / "commands.py"), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_commands_ends_in_good_order_by_a_sigterm(tmp_path: Path) -> None:
    """
    A SIGTERM, by which a service or a container is ended, stops what runs before the
    program ends.
    """
    path = tmp_path / "mine.toml"
    script = (
        'trap "touch stopped; exit" TERM; echo $$ > pid; mv pid started; sleep 60 & wait'
    )
    path.write_text(
        f"[commands.stay]\nargv = ['sh', '-c', '{script}']\ncwd = '{tmp_path}'\n"
        "[schedules.s]\nwork_id = 'stay'\nevery = 0.05\n"
    )
    with started_commands(path) as process:
        started = tmp_path / "started"
        late = time.monotonic() + 60
        while not started.exists():
            assert time.monotonic() < late
            time.sleep(0.01)
        process.terminate()
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert stdout.splitlines()[-1] == "stopped"
    assert (tmp_path / "stopped").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)


def test_commands_tells_what_was_written_in_time(tmp_path: Path) -> None:
    """
    Of a command that has exceeded its timeout, it prints what that had written.
    """
    path = tmp_path / "mine.toml"
    path.write_text(
        "[commands.slow]\nargv = ['sh', '-c', 'echo so far; sleep 60']\ntimeout = 0.3\n"
        "[schedules.s]\nwork_id = 'slow'\nevery = 0.05\n"
    )
    with started_commands(path) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert [next(lines).strip() for _ in range(6)] == [
            "s: Every 0.05s, counted from 1970-01-01, UTC",
            "s is failed, at attempt 1",
            "WorkTimeoutError: the work was cancelled after its timeout of 0.3 s",
            "",
            "the command had written:",
            "so far",
        ]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_plan_prints_a_table() -> None:
    """
    What is planned is printed as a table, with the reason of each line.
    """
    head, *lines = run_script("plan.py").splitlines()
    assert head.split() == ["schedule", "nominal", "time", "starts", "why"]
    outcomes = [line.split("00:00  ")[-1].split(": ")[0].split()[-1] for line in lines]
    assert outcomes == ["runs", "runs", "dropped", "late", "late", "late", "runs"]


def test_retry_fetches_in_the_end() -> None:
    """
    What fails is tried again, what sleeps is not counted, what is gone is given up.
    """
    lines = run_script("retry.py").splitlines()
    again = "today's: ConnectionError: no answer for today's, so again later"
    assert lines.count(again) == 2
    assert "tomorrow's: snoozed, so again later" in lines
    assert sorted(lines[-3:]) == [
        "gone: Discard: there is no such page, after 1 attempts",
        "today's: 7 letters, after 3 attempts",
        "tomorrow's: 10 letters, after 2 attempts",
    ]


def test_poll_until_it_is_so() -> None:
    """
    It is polled until the condition says that this is enough, and what waits for that runs.
    """
    assert run_script("poll_until.py").splitlines() == [
        "asked for the first time",
        "asked: last time it was 'not yet'",
        "asked: last time it was 'not yet'",
        "asked: last time it was 'here it is'",
        "the bell rings",
        "bell: stopped",
        "parcel: stopped",
    ]


def test_embedded_shows_a_conversation_and_ends() -> None:
    """
    Run as a script, the service serves its own client: every kind of answer is shown.
    """
    ids: dict[str, str] = {}

    def short(match: re.Match[str]) -> str:
        return ids.setdefault(match[0], f"#{len(ids) + 1}")

    output = run_script("embedded.py")
    output = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", short, output)
    first, *talk = output.splitlines()
    assert re.fullmatch(r"serving on 127\.0\.0\.1:\d+", first)
    assert talk == [
        "client:  remind 0.5 tea is ready",
        "service: scheduled #1",
        "client:  remind 0.8 the eggs are done",
        "service: scheduled #2",
        "client:  cancel #2",
        "service: cancelled #2",
        "client:  remind soon dinner",
        "service: error 'soon' is not a number of seconds",
        "service: reminder #1 tea is ready",
        "client:  cancel #1",
        "service: too late #1",
        "client:  remind 3600 an hour has passed",
        "service: scheduled #3",
        "client hangs up",
        "reminders sent: 1, cancelled: 2",
    ]


DASK_CLUSTER = """\
primes below 10000: 50%, still counting
primes below 20000: 50%, still counting
primes below 10000: 1229, at attempt 1
primes below 20000: 2262, at attempt 1
fragile: came through, at attempt 2
  attempt 1: WorkLostError: the run was lost: its worker died
"""


def test_dask_cluster_counts_and_comes_through() -> None:
    """
    Results and progress come back from a cluster's workers, and a worker that is killed in
    the middle of a task fails that attempt, which is followed by another.
    """
    lines = run_script("dask_cluster.py").splitlines()
    # Two workers are at it: either may be the first to tell.
    assert [*sorted(lines[:2]), *lines[2:]] == DASK_CLUSTER.splitlines()


def test_the_tests_of_an_example_pass_on_their_own() -> None:
    """
    `test_reminders.py` passes where there is nothing but it and pytest's setting.
    """
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            *("-p", "no:cacheprovider", "-c", os.devnull, "-o", "trio_mode=true"),
            EXAMPLES / "test_reminders.py",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def test_the_reference_has_every_public_name() -> None:
    """
    `docs/api.md` lists what can be imported from the package, its `sql` and its `dask`,
    once each: also those that `trio_gokugen.abc` has, too.
    """
    reference = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(
        r"^\.\. auto(?:class|data|exception|function):: (\S+)", reference, re.MULTILINE
    )
    extras = [f"trio_gokugen.sql.{name}" for name in sql.__all__]
    extras += [f"trio_gokugen.dask.{name}" for name in dask.__all__]
    names = [*trio_gokugen.__all__, *extras]
    assert sorted(listed) == sorted(names)
    excluded = re.search(r"abc\n +:members:\n +:exclude-members: (.*)", reference)
    assert excluded is not None
    both = {
        name
        for name in abc.__all__
        if getattr(trio_gokugen, name, None) is getattr(abc, name)
    }
    assert {*excluded[1].split(", ")} == both


# -- the reminder service, on a real loopback socket and virtual time ----------------


embedded = load("embedded")


@attrs.define(eq=False)
class Peer:
    """A client that is not made of the service's own code."""

    stream: trio.SocketStream
    received: bytes = b""

    async def say(self, line: str | bytes) -> None:
        data = line if isinstance(line, bytes) else line.encode()
        await self.stream.send_all(data + b"\n")

    async def hear(self) -> str:
        """The next line; empty at the end."""
        with trio.fail_after(WAY_OUT):
            while b"\n" not in self.received:
                chunk = await self.stream.receive_some()
                if not chunk:
                    return ""
                self.received += chunk
        line, _, self.received = self.received.partition(b"\n")
        return line.decode()

    async def ask(self, line: str | bytes) -> str:
        await self.say(line)
        return await self.hear()

    async def remind(self, seconds: float, text: str) -> str:
        word, task_id = (await self.ask(f"remind {seconds} {text}")).split()
        assert word == "scheduled"
        return task_id


@attrs.define(eq=False)
class Running:
    """The service, and who is connected."""

    _service: Any
    _streams: AsyncExitStack
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    _port: int = attrs.field(default=0, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self._scope = nursery.cancel_scope
            [listener] = await nursery.start(self._service.run)
            self._port = listener.socket.getsockname()[1]
            task_status.started()
        self._ended.set()

    async def stop(self) -> None:
        self._scope.cancel()
        await self._ended.wait()
        assert self._service.clients == {}
        assert self.scheduler.statistics().state == "stopped"

    @property
    def scheduler(self) -> Scheduler:
        scheduler: Scheduler = self._service.scheduler
        return scheduler

    async def connect(self) -> Peer:
        stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        return Peer(await self._streams.enter_async_context(stream))

    async def until_cancelled(self, count: int) -> None:
        """Wait until so many reminders have been cancelled, in a few real seconds."""
        late = time.monotonic() + 10
        while self.scheduler.statistics().cancelled < count:
            assert time.monotonic() < late
            await trio.lowlevel.checkpoint()

    async def pending(self) -> list[str]:
        """What clients are still to be reminded of."""
        query = TaskQuery(states={TaskState.SCHEDULED})
        return [str(task.param["text"]) for task in await self.scheduler.find(query)]


@asynccontextmanager
async def running_service() -> AsyncGenerator[Running]:
    async with AsyncExitStack() as streams, trio.open_nursery() as nursery:
        running = Running(embedded.ReminderService(), streams)
        await nursery.start(running.run)
        yield running
        await running.stop()


@pytest.fixture
def clock(mock_clock: MockClock) -> MockClock:
    """Stands still, while real bytes are under way. It jumps when a test says so, or
    when nothing has happened for so long that nothing is going to.
    """
    mock_clock.autojump_threshold = 10
    return mock_clock


async def test_a_reminder_comes_at_its_time_and_not_before(clock: MockClock) -> None:
    """
    A reminder is sent exactly when it is due, to who asked for it.
    """
    async with running_service() as service:
        one, other = await service.connect(), await service.connect()
        task_id = await one.remind(HOUR, "an hour has passed")
        clock.jump(HOUR - 0.001)
        # Whatever comes before this answer would have been sent before.
        assert (await one.ask("?")).startswith("error")
        clock.jump(0.001)
        assert await one.hear() == f"reminder {task_id} an hour has passed"
        assert clock.current_time() == HOUR
        assert (await other.ask("?")).startswith("error")


@pytest.mark.parametrize("seconds", ["0", "0.0", "-0", "1e-9"])
async def test_the_id_comes_before_the_reminder(clock: MockClock, seconds: str) -> None:
    """
    A reminder that is due at once does not overtake the answer that tells its id.
    """
    async with running_service() as service:
        peer = await service.connect()
        word, task_id = (await peer.ask(f"remind {seconds} now")).split()
        assert word == "scheduled"
        clock.jump(1e-6)
        assert await peer.hear() == f"reminder {task_id} now"


async def test_many_requests_in_one_packet_are_all_answered_in_order(
    clock: MockClock,
) -> None:
    """
    Lines need not arrive one by one, nor in one piece.
    """
    async with running_service() as service:
        peer = await service.connect()
        await peer.stream.send_all(b"remind 5 one\nremind 5 two\nrem")
        await peer.stream.send_all(b"ind 5 three\r\n")
        answers = [await peer.hear() for _ in range(3)]
        assert [answer.split()[0] for answer in answers] == ["scheduled"] * 3
        clock.jump(5)
        reminders = sorted([await peer.hear() for _ in range(3)])
        texts = sorted(reminder.split(maxsplit=2)[2] for reminder in reminders)
        assert texts == ["one", "three", "two"]


async def test_a_cancelled_reminder_never_comes(clock: MockClock) -> None:
    """
    After the answer `cancelled`, the reminder is not sent; cancelling again says so too.
    """
    async with running_service() as service:
        peer = await service.connect()
        cancelled = await peer.remind(5, "not this")
        kept = await peer.remind(6, "but this")
        assert await peer.ask(f"cancel {cancelled}") == f"cancelled {cancelled}"
        assert await peer.ask(f"cancel {cancelled}") == f"cancelled {cancelled}"
        clock.jump(10)
        assert await peer.hear() == f"reminder {kept} but this"


async def test_cancelling_what_was_sent_is_too_late(clock: MockClock) -> None:
    """
    A client that cancels too late is told so.
    """
    async with running_service() as service:
        peer = await service.connect()
        task_id = await peer.remind(5, "sent")
        clock.jump(5)
        assert await peer.hear() == f"reminder {task_id} sent"
        assert await peer.ask(f"cancel {task_id}") == f"too late {task_id}"


async def test_nobody_can_cancel_the_reminder_of_another(clock: MockClock) -> None:
    """
    An id that belongs to another client is as good as none.
    """
    async with running_service() as service:
        one, other = await service.connect(), await service.connect()
        task_id = await one.remind(5, "mine")
        answer = await other.ask(f"cancel {task_id}")
        assert answer == f"error you have no reminder '{task_id}'"
        clock.jump(5)
        assert await one.hear() == f"reminder {task_id} mine"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("", "error say: remind <seconds> <text>, or: cancel <id>"),
        ("hello", "error say: remind <seconds> <text>, or: cancel <id>"),
        ("REMIND 5 x", "error say: remind <seconds> <text>, or: cancel <id>"),
        ("remind", "error '' is not a number of seconds"),
        ("remind soon x", "error 'soon' is not a number of seconds"),
        ("remind 5", "error remind you of what?"),
        ("remind 5  ", "error remind you of what?"),
        ("remind -1 x", "error after: must be finite and not negative, not -1.0"),
        ("remind nan x", "error after: must be finite and not negative, not nan"),
        ("remind inf x", "error after: must be finite and not negative, not inf"),
        ("remind 1e300 x", "error after: leads beyond the year 9999"),
        ("remind 5 \0", "error param.text: must not contain a NUL character"),
        ("cancel", "error you have no reminder ''"),
        ("cancel 42", "error you have no reminder '42'"),
        ("cancel \0", "error you have no reminder '\\x00'"),
        (b"remind 5 \xff", "error lines must be UTF-8"),
    ],
)
async def test_a_bad_line_gets_a_clear_answer(
    clock: MockClock, line: str | bytes, answer: str
) -> None:
    """
    Nonsense is answered with what is wrong, stores nothing, and ends nothing.
    """
    async with running_service() as service:
        peer = await service.connect()
        assert await peer.ask(line) == answer
        assert await service.pending() == []
        task_id = await peer.remind(0, "still here")
        assert await peer.hear() == f"reminder {task_id} still here"


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_a_line_that_does_not_end_is_cut_off(clock: MockClock, end: bytes) -> None:
    """
    More than the longest line is an error that ends the connection, and that one only.
    """
    async with running_service() as service:
        peer, other = await service.connect(), await service.connect()
        await peer.stream.send_all(b"x" * (embedded.LONGEST_LINE + 1) + end)
        answer = f"error more than {embedded.LONGEST_LINE} bytes a line"
        assert [await peer.hear(), await peer.hear()] == [answer, ""]
        assert await other.remind(5, "x")


async def test_the_longest_line_is_served(clock: MockClock) -> None:
    """
    A line that is just not too long is a line like others.
    """
    async with running_service() as service:
        peer = await service.connect()
        text = "x" * (embedded.LONGEST_LINE - len("remind 5.0 "))
        task_id = await peer.remind(5.0, text)
        clock.jump(5)
        assert await peer.hear() == f"reminder {task_id} {text}"


@pytest.mark.parametrize("how", ["closes", "resets", "stops sending"])
async def test_reminders_of_who_hangs_up_are_cancelled(clock: MockClock, how: str) -> None:
    """
    However a client leaves, its reminders are cancelled, and nobody else's.
    """
    async with running_service() as service:
        peer, other = await service.connect(), await service.connect()
        await peer.remind(5, "one")
        await peer.remind(HOUR, "two")
        kept = await other.remind(HOUR, "three")
        if how == "resets":
            linger = struct.pack("ii", 1, 0)
            peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        if how == "stops sending":
            await peer.stream.send_all(b"remind 5 half a li")
            await peer.stream.send_eof()
            assert await peer.hear() == ""
        else:
            await peer.stream.aclose()
        await service.until_cancelled(2)
        assert await service.pending() == ["three"]
        clock.jump(HOUR)
        assert await other.hear() == f"reminder {kept} three"


async def test_hanging_up_as_reminders_fall_due_is_harmless(clock: MockClock) -> None:
    """
    Some reminders of a client that has left are cancelled, others come to nothing.
    """
    async with running_service() as service:
        peer, other = await service.connect(), await service.connect()
        for _ in range(150):
            await peer.remind(5, "x")
        await peer.stream.aclose()
        await service.until_cancelled(1)
        clock.jump(5)
        await service.scheduler.drain()
        counts = service.scheduler.statistics()
        assert counts.cancelled + counts.done == 150
        assert counts.done > 0
        assert counts.failed == 0
        assert await other.remind(5, "x")


async def test_a_client_that_does_not_read_is_cut_off(clock: MockClock) -> None:
    """
    Who takes nothing for as long as a line may take is disconnected; others are served.
    """
    async with running_service() as service:
        deaf, other = await service.connect(), await service.connect()
        lines = b"cancel %b\nremind 0 %b\n" % (b"x" * 900, b"x" * 900)

        async def flood() -> None:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await deaf.stream.send_all(lines * 500)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            while nursery.child_tasks:
                assert clock.current_time() < HOUR
                await trio.testing.wait_all_tasks_blocked(0.01)
                clock.jump(embedded.SEND_TIMEOUT)
        assert await other.remind(5, "x")
        assert await service.pending() == ["x"]


async def test_stopping_hangs_up_and_leaves_nothing_behind(clock: MockClock) -> None:
    """
    A service that is cancelled ends at once, whatever it was in the middle of.
    """
    async with running_service() as service:
        idle, waiting = await service.connect(), await service.connect()
        await waiting.remind(HOUR, "x")
        await waiting.say("remind 0 y")
        await service.stop()
        assert clock.current_time() == 0
        assert await idle.hear() == ""
        while await waiting.hear():
            pass  # the reminder may have been sent
        with pytest.raises(OSError, match="connect"):
            await service.connect()


async def test_works_with_a_real_clock_too() -> None:
    """
    Without a mock clock, a reminder comes no earlier than it was asked for.
    """
    async with running_service() as service:
        peer = await service.connect()
        asked_at = trio.current_time()
        task_id = await peer.remind(0.05, "x")
        assert await peer.hear() == f"reminder {task_id} x"
        assert asked_at + 0.05 <= trio.current_time() < math.inf
