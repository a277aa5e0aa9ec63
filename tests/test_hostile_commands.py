"""Programs that do what they can to outlive, to flood, to block or to escape."""

from __future__ import annotations

import bisect
import errno
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import psutil  # type: ignore[import-untyped]
import pytest
import trio
import trio.testing
from leftovers import nothing_left
from processes import Shop, gone, hear, result_of, run_one
from support import NOON
from trio.testing import MockClock

from trio_gokugen import (
    Command,
    CommandFailedError,
    CommandRegistry,
    InvalidTaskError,
    Retry,
    TaskState,
    TrioClock,
    autojump_held,
    fixed,
    open_scheduler,
)
from trio_gokugen import _session_watcher as session_watcher
from trio_gokugen._json import JSON
from trio_gokugen._run_command import Output, Program, _Run

LONG = 60.0
"""Seconds of grace that nobody in these tests comes to need."""


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Shop]:
    shop = Shop(tmp_path)
    with nothing_left(tmp_path / "temporary", monkeypatch), shop.leaving_nothing():
        yield shop


async def stop_once_heard(command: Any, fifo: Path) -> str:
    """Run a command, and cancel it as soon as it has told something."""
    heard = ""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(command.run, {})
        heard = await hear(fifo)
        nursery.cancel_scope.cancel()
    return heard


# -- those that stay ------------------------------------------------------------------


async def test_it_ignores_sigterm(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A program, and a child of it, that ignore every signal they can are gone once the
    command was stopped.
    """
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, signal, sys
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        child = os.fork()
        if child:
            open(sys.argv[1], "w").write(f"{os.getpid()} {child}")
        while True:
            signal.pause()
        """,
        str(fifo),
        grace=0.05,
    )
    for pid in (await stop_once_heard(command, fifo)).split():
        assert gone(int(pid))


OWN_GROUP = """
    import os, signal, sys
    if not os.fork():
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[1], "w").write("ready")
        while True:
            signal.pause()
    {end}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is in a session")
@pytest.mark.parametrize("how", ["timeout", "jobs", "python"])
async def test_a_grandchild_makes_a_group_of_its_own(
    autojump_clock: MockClock, shop: Shop, how: str
) -> None:
    """
    What a command has started in another group of its session is stopped with it: by a
    SIGTERM, or by a SIGKILL if it ignores that.
    """
    fifo = shop.fifo()
    inner = 'timeout 3333 sh -c "echo > $1; sleep 3333"; :'
    commands = {
        "timeout": ("sh", "-c", inner),
        "jobs": ("bash", "-c", "set -m; (echo > $1; sleep 3333) & wait"),
    }
    if how == "python":
        source = OWN_GROUP.replace("{end}", "signal.pause()")
        command = shop.python(source, str(fifo), grace=0.05)
    else:
        command = shop.command(*commands[how], how, str(fifo), grace=LONG)
    await stop_once_heard(command, fifo)
    assert shop.running() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is in a session")
async def test_what_it_leaves_is_in_two_groups(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    If a program that exits by itself leaves somebody in its group, all in its session are
    stopped; if that has nobody else, another group stays.
    """
    fifo = shop.fifo()
    leaves = "open(sys.argv[1]).read() and (os.fork() or signal.pause())"
    command = shop.python(OWN_GROUP.replace("{end}", leaves), str(fifo), grace=0.05)
    result_of(await run_one(command))
    assert shop.running() == []
    fifo = shop.fifo()
    command = shop.python(
        OWN_GROUP.replace("{end}", "open(sys.argv[1]).read()"), str(fifo), grace=0.05
    )
    result_of(await run_one(command))
    [left] = shop.running()
    shop.left_on_purpose.append(left.pid)


async def test_it_leaves_a_child_that_holds_its_output(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    A program that has ended has ended, though a child of it holds its output open: the
    child is stopped, and what both have written is kept.
    """
    command = shop.python(
        """
        import os, signal, sys
        read, write = os.pipe()
        child = os.fork()
        if not child:
            print("the child is here", flush=True)
            os.write(write, b"x")
            while True:
                signal.pause()
        os.read(read, 1)
        print(child, flush=True)
        """,
        grace=LONG,
    )
    result = result_of(await run_one(command))
    assert result["exit_code"] == 0
    first, child = result["stdout"].splitlines()
    assert first == "the child is here"
    assert gone(int(child))


async def test_it_leaves_a_child_that_will_not_go(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A child that a program leaves, and that does not go when it gets its SIGTERM, is killed
    as soon as the grace is over.
    """
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, signal, sys
        def stay(*_):
            open(sys.argv[1], "w").write(str(os.getpid()))
        read, write = os.pipe()
        if not os.fork():
            signal.signal(signal.SIGTERM, stay)
            os.write(write, b"x")
            while True:
                signal.pause()
        os.read(read, 1)
        """,
        str(fifo),
        grace=LONG,
    )
    skipped = 0.0
    monkeypatch.setattr(
        session_watcher,
        "time",
        SimpleNamespace(monotonic=lambda: time.monotonic() + skipped),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(command.run, {})
        child = int(await hear(fifo))
        assert child in {each.pid for each in shop.running()}
        skipped = LONG
    assert gone(child)


async def test_what_is_left_is_ended_whoever_cancels(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    A cancellation that comes just as a program has ended does not spare what it has left.
    """
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, signal, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = os.fork()
        if child:
            open(sys.argv[1], "w").write(str(child))
            os._exit(0)
        while True:
            signal.pause()
        """,
        str(fifo),
    )
    program = Program(command.argv, command.env, None, None, 0.05, 0)
    process = await trio.lowlevel.open_process(
        program.argv, env=program.env, start_new_session=True
    )
    child = int(await hear(fifo))
    with autojump_held():
        await process.wait()
        with trio.CancelScope() as scope:
            scope.cancel()
            await _Run(program, -1, -1)._stop(process)
    assert gone(child)


async def test_a_child_has_its_grace_though_its_parent_is_gone(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    What is stopped is the whole group: a child may come to its end, after its parent has.
    """
    fifo, end = shop.fifo(), shop.folder / "end"
    command = shop.python(
        """
        import os, signal, sys, time
        def leave(*_):
            time.sleep(0.2)
            open(sys.argv[2], "w").write("came to its end")
            os._exit(0)
        if not os.fork():
            signal.signal(signal.SIGTERM, leave)
            open(sys.argv[1], "w").write("ready")
        while True:
            signal.pause()
        """,
        str(fifo),
        str(end),
        grace=LONG,
    )
    await stop_once_heard(command, fifo)
    assert end.read_text() == "came to its end"


async def test_it_forks_and_forks(autojump_clock: MockClock, shop: Shop) -> None:
    """
    Of a program with many descendants, in generations, none is left.
    """
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, signal, sys
        for _ in range(5):
            os.fork()
        if os.getpgid(0) == os.getpid():
            open(sys.argv[1], "w").write("ready")
        while True:
            signal.pause()
        """,
        str(fifo),
        grace=LONG,
    )
    await stop_once_heard(command, fifo)
    assert not shop.running()


ESCAPE = """
    import os, signal, sys, time
    child = os.fork()
    if not child:
        os.setsid()
        os.write(1, b"I am out\\n")
        open(sys.argv[2], "w").write(str(os.getpid()))
        open(sys.argv[1], "w").close()
        {then}
    open(sys.argv[1]).read()
    print("and I am done")
"""


@pytest.mark.parametrize(
    "then",
    ["while True: signal.pause()", "while True: os.write(1, b'x' * 10_000)"],
    ids=["silent", "writing"],
)
async def test_a_child_escapes_with_its_output(
    autojump_clock: MockClock, shop: Shop, then: str
) -> None:
    """
    A child that makes a session of its own, and holds or floods the output, is out of
    reach; but nobody waits for it.
    """
    fifo = shop.fifo()
    pid_file = shop.folder / "pid"
    command = shop.python(ESCAPE.format(then=then), str(fifo), str(pid_file))
    result = result_of(await run_one(command))
    assert result["exit_code"] == 0
    assert result["stdout"].startswith("I am out\n")
    shop.left_on_purpose.append(int(pid_file.read_text()))


async def test_an_escaped_child_does_not_hold_up_the_end(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    Nor is it waited for when the command is cancelled.
    """
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, signal, sys
        child = os.fork()
        if child:
            open(sys.argv[1], "w").write(str(child))
        else:
            os.setsid()
        while True:
            signal.pause()
        """,
        str(fifo),
        stdin="x" * 1_000_000,
        grace=LONG,
    )
    shop.left_on_purpose.append(int(await stop_once_heard(command, fifo)))


async def test_it_stops_itself(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A program that was stopped, as by Ctrl-Z, sees its SIGTERM, and has its grace.
    """
    fifo, end = shop.fifo(), shop.folder / "end"
    command = shop.python(
        """
        import os, signal, sys
        def leave(*_):
            open(sys.argv[2], "w").write("came to its end")
            sys.exit()
        signal.signal(signal.SIGTERM, leave)
        open(sys.argv[1], "w").write("ready")
        os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            signal.pause()
        """,
        str(fifo),
        str(end),
        grace=LONG,
    )
    await stop_once_heard(command, fifo)
    assert end.read_text() == "came to its end"


async def test_it_stops_itself_for_good(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A program that ignores SIGTERM, and stops itself whenever it goes on, is killed.
    """
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, signal, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[1], "w").write("ready")
        while True:
            os.kill(os.getpid(), signal.SIGSTOP)
        """,
        str(fifo),
        grace=0.05,
    )
    await stop_once_heard(command, fifo)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere this is not told apart")
async def test_its_main_thread_ends_before_it(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    A program whose main thread has ended, and which looks like a zombie, has its grace as
    long as another thread of it goes on.
    """
    fifo, end = shop.fifo(), shop.folder / "end"
    command = shop.python(
        """
        import ctypes, os, signal, sys, threading, time
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        def leave():
            open(sys.argv[1], "w").write("ready")
            signal.sigwait({signal.SIGTERM})
            time.sleep(0.2)
            open(sys.argv[2], "w").write("came to its end")
            os._exit(0)
        threading.Thread(target=leave).start()
        ctypes.CDLL(None).pthread_exit(None)
        """,
        str(fifo),
        str(end),
        grace=LONG,
    )
    await stop_once_heard(command, fifo)
    assert end.read_text() == "came to its end"


async def test_it_forks_twice(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A grandchild whose parent has gone, as of a daemon, is stopped with its group if it has
    not left that: when the command is cancelled, and when it has ended.
    """
    source = """
        import os, signal, sys
        read, write = os.pipe()
        if not os.fork():
            if not os.fork():
                os.write(write, str(os.getpid()).encode())
                while True:
                    signal.pause()
            os._exit(0)
        os.wait()
        pid = os.read(read, 20).decode()
        if len(sys.argv) > 1:
            open(sys.argv[1], "w").write(pid)
            while True:
                signal.pause()
        print(pid)
    """
    fifo = shop.fifo()
    pid = await stop_once_heard(shop.python(source, str(fifo), grace=LONG), fifo)
    assert gone(int(pid))
    result = result_of(await run_one(shop.python(source, grace=LONG)))
    assert gone(int(result["stdout"]))


class AtStep(trio.abc.Instrument):
    """Cancels a scope before the k-th step that any task takes."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self.left = step
        self.scope = scope

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.left -= 1
        if self.left == 0:
            self.scope.cancel()


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "stdin"),
    [
        ("exit 0", None),
        ("cat; exit 0", "x"),
        ("trap '' TERM; sleep 1000 & exit 0", None),
        ("exec >&-; exec 2>&-; sleep 1000 & exit 1", "x" * 1_000_000),
    ],
    ids=["plain", "stdin", "child stays", "child holds stdin"],
)
async def test_a_cancellation_at_any_step_leaves_nothing(
    autojump_clock: MockClock, shop: Shop, script: str, stdin: str | None
) -> None:
    """
    Whenever it is cancelled, a command has either ended as it would have, or is cancelled,
    and then nothing of it is left.
    """
    command = shop.command("sh", "-c", script, stdin=stdin, success=[0, 1], grace=0.02)
    step = 0
    while True:
        step += 1
        scope = trio.CancelScope()
        instrument = AtStep(step, scope)
        trio.lowlevel.add_instrument(instrument)
        with scope:
            await command.run({})
        trio.lowlevel.remove_instrument(instrument)
        assert not shop.running(), step
        if instrument.left > 0:
            break
    assert step > 3


async def test_many_are_stopped_at_once(autojump_clock: MockClock, shop: Shop) -> None:
    """
    Many commands are stopped side by side: each has its SIGTERM before the grace of any
    other is over.
    """
    ready, told = [shop.fifo() for _ in range(8)], [shop.fifo() for _ in range(8)]
    source = """
        import os, signal, sys
        def tell(*_):
            open(sys.argv[2], "w").write(str(os.getpid()))
        signal.signal(signal.SIGTERM, tell)
        open(sys.argv[1], "w").write("ready")
        while True:
            signal.pause()
    """
    works = CommandRegistry(
        {
            str(index): shop.python(source, *map(str, fifos), grace=LONG)
            for index, fifos in enumerate(zip(ready, told, strict=True))
        }
    )
    pids: list[int] = []

    async def kill_all() -> None:
        """Once all have been told to go, and none has gone."""
        with trio.CancelScope(shield=True):
            pids.extend([int(await hear(fifo)) for fifo in told])
        assert set(pids) <= {each.pid for each in shop.running()}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    async with trio.open_nursery() as nursery:
        async with open_scheduler(works, clock=TrioClock(NOON), grace=0) as scheduler:
            for work_id in works.work_ids:
                await scheduler.add_task(work_id, after=0)
            for fifo in ready:
                await hear(fifo)
            nursery.start_soon(kill_all)
    assert len(pids) == 8


# -- those that flood, or talk nonsense -----------------------------------------------


async def test_it_writes_100_megabytes(autojump_clock: MockClock, shop: Shop) -> None:
    """
    Of 100 MB on both streams at once, the first and the last are kept, the rest counted.
    """
    command = shop.python(
        """
        import os
        os.write(1, b"first out ")
        os.write(2, b"first err ")
        for _ in range(50):
            for file in 1, 2:
                left = 1_000_000
                while left:
                    left -= os.write(file, b"x" * left)
        os.write(1, b" last out")
        os.write(2, b" last err")
        """
    )
    result = result_of(await run_one(command))
    for name in ("out", "err"):
        text = result[f"std{name}"]
        dropped = 50_000_000 + len(f"first {name} last {name}") + 1 - 4096
        assert result[f"std{name}_dropped"] == dropped
        assert text.startswith(f"first {name} x")
        assert f"x\n[{dropped} bytes dropped]\nx" in text
        assert text.endswith(f"x last {name}")


def test_what_is_dropped_is_not_kept() -> None:
    """
    However much is written, no more than the limit is in memory, and what comes at once.
    """
    output = Output(4096)
    data = b"x" * 65_536
    tracemalloc.start()
    try:
        for _ in range(2_000):
            output.add(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 65_536
    assert output.told(4096)[1] == 2_000 * 65_536 - 4096


async def test_it_writes_for_ever(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A program that never ends to write is stopped like any other.
    """
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, sys
        open(sys.argv[1], "w").write("ready")
        while True:
            os.write(1, b"x" * 65536)
        """,
        str(fifo),
        grace=LONG,
    )
    await stop_once_heard(command, fifo)


async def read_at_its_end(command: Command, ready: Path, go: Path) -> Any:
    """The result of a command whose pipes are not read before it has ended."""
    results: list[Any] = []

    async def run() -> None:
        results.append(await command.run({}))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        pid = int(await hear(ready))
        go.write_text("go")
        assert gone(pid)  # nobody else runs here, and reads, before that
    [result] = results
    return result


async def test_it_makes_its_pipe_larger(autojump_clock: MockClock, shop: Shop) -> None:
    """
    However much a program has left in a pipe as it ended, all of it is taken.
    """
    ready, go = shop.fifo(), shop.fifo()
    command = shop.python(
        """
        import fcntl, os, sys
        for file in 1, 2:
            fcntl.fcntl(file, fcntl.F_SETPIPE_SZ, 1 << 20)
        open(sys.argv[1], "w").write(str(os.getpid()))
        open(sys.argv[2]).read()
        for file in 1, 2:
            os.write(file, b"x" * 1_000_000)
        os._exit(0)
        """,
        str(ready),
        str(go),
    )
    result = await read_at_its_end(command, ready, go)
    assert result["stdout_dropped"] == result["stderr_dropped"] == 1_000_000 - 4096


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such pipes")
async def test_it_writes_in_packets(autojump_clock: MockClock, shop: Shop) -> None:
    """
    However a program has written, all that is left in its pipe is taken.
    """
    ready, go = shop.fifo(), shop.fifo()
    command = shop.python(
        """
        import fcntl, os, sys
        fcntl.fcntl(1, fcntl.F_SETFL, fcntl.fcntl(1, fcntl.F_GETFL) | os.O_DIRECT)
        open(sys.argv[1], "w").write(str(os.getpid()))
        open(sys.argv[2]).read()
        for _ in range(10):
            os.write(1, b"line\\n")
        os._exit(0)
        """,
        str(ready),
        str(go),
    )
    result = await read_at_its_end(command, ready, go)
    assert result["stdout"] == "line\n" * 10
    assert result["stdout_dropped"] == 0


async def test_it_writes_nonsense(autojump_clock: MockClock, shop: Shop) -> None:
    """
    What is not UTF-8 is told as an escape, and so is a NUL.
    """
    command = shop.python(
        """
        import os
        os.write(1, b"\\xff\\xfe caf\\xe9 \\xed\\xa0\\x80 \\x00 \\xc3\\xa9 \\x1b[31m ")
        os.write(1, b"\\xe2\\x82")
        """
    )
    result = result_of(await run_one(command))
    assert result["stdout"] == (
        "\\xff\\xfe caf\\xe9 \\xed\\xa0\\x80 \\0 é \x1b[31m \\xe2\\x82"
    )
    assert result["stdout_dropped"] == 0
    ended = await run_one(shop.command("sh", "-c", r"printf '\377\000\033'; exit 3"))
    assert ended.err is not None
    assert "stdout:\n\\xff\\0\x1b" in ended.err


# -- those that end in an odd way -----------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGSEGV, "SIGSEGV"),
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGPIPE, "SIGPIPE"),
        (signal.SIGRTMIN + 1, f"signal {signal.SIGRTMIN + 1}"),
    ],
)
async def test_it_exits_by_a_signal(
    autojump_clock: MockClock, shop: Shop, number: int, name: str
) -> None:
    """
    A program that a signal has ended has failed, and it is told which.
    """
    command = shop.python(
        """
        import os, resource, signal, sys
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = int(sys.argv[1])
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        print("so far", flush=True)
        os.kill(os.getpid(), number)
        signal.pause()
        """,
        str(int(number)),
    )
    ended = await run_one(command)
    assert ended.state is TaskState.FAILED
    assert ended.err is not None
    assert ended.err.startswith(
        f"CommandFailedError: the command was ended by {name}\n\nstdout:\nso far\n"
    )


async def test_it_is_killed_from_outside(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A program that somebody else has killed has failed, is tried again if it is to be, and
    what it has left is stopped.
    """
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, signal, sys
        child = os.fork()
        if child:
            open(sys.argv[1], "w").write(f"{os.getpid()} {child}")
        while True:
            signal.pause()
        """,
        str(fifo),
        retry=Retry(2, wait=fixed(0)),
        grace=LONG,
    )
    works = CommandRegistry({"command": command})
    async with open_scheduler(works, clock=TrioClock(NOON)) as scheduler:
        task = await scheduler.add_task("command", after=0)
        for _ in range(2):
            pid, child = map(int, (await hear(fifo)).split())
            os.kill(pid, signal.SIGKILL)
            with autojump_held():
                assert await trio.to_thread.run_sync(gone, child)
        ended = await scheduler.wait(task.id)
    assert ended.state is TaskState.FAILED
    assert ended.attempt == 2
    assert ended.err is not None
    assert ended.err.startswith("CommandFailedError: the command was ended by SIGKILL")


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_it_closes_stdin_early(
    autojump_clock: MockClock, shop: Shop, size: int
) -> None:
    """
    A program need not read what it is given.
    """
    for source in (
        "import os; os.close(0); print('done')",
        "print('done')",
        "import os; os.read(0, 5); os.close(0); print('done')",
    ):
        command = shop.python(source, stdin="{text}")
        result = result_of(await run_one(command, {"text": "x" * size}))
        assert result["stdout"] == "done\n"


async def test_a_child_holds_stdin(autojump_clock: MockClock, shop: Shop) -> None:
    """
    Nor is it waited for who holds it, and does not read.
    """
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, signal, sys
        child = os.fork()
        if not child:
            os.setsid()
            os.close(1)
            os.close(2)
            open(sys.argv[1], "w").close()
            while True:
                signal.pause()
        open(sys.argv[1]).read()
        print(child)
        """,
        str(fifo),
        stdin="{text}",
    )
    result = result_of(await run_one(command, {"text": "x" * 1_000_000}))
    shop.left_on_purpose.append(int(result["stdout"]))


async def test_it_closes_its_output_and_goes_on(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    A program whose output has ended has not ended itself: it is waited for, or stopped.
    """
    end = shop.folder / "end"
    command = shop.python(
        """
        import os, sys, time
        for file in 0, 1, 2:
            os.close(file)
        time.sleep(0.1)
        open(sys.argv[1], "w").write("came to its end")
        os._exit(0)
        """,
        str(end),
    )
    result_of(await run_one(command))
    assert end.read_text() == "came to its end"
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, signal, sys
        os.closerange(0, 3)
        open(sys.argv[1], "w").write("ready")
        while True:
            signal.pause()
        """,
        str(fifo),
        grace=LONG,
    )
    await stop_once_heard(command, fifo)


# -- what vanishes --------------------------------------------------------------------


async def test_its_cwd_vanishes(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A command whose directory is gone by the time it is due has failed, and says which; and
    one whose directory goes while it runs goes on.
    """
    folder = shop.folder / "cwd"
    folder.mkdir()
    works = CommandRegistry(
        {
            "after": shop.command("true", cwd=folder),
            "with stdin": shop.command("true", cwd=folder, stdin="x"),
            "meanwhile": shop.python(
                "import os, sys; os.rmdir(sys.argv[1]); print('done')",
                str(folder),
                cwd=folder,
            ),
        }
    )
    async with open_scheduler(works, clock=TrioClock(NOON)) as scheduler:
        late = [
            await scheduler.add_task(work_id, after=1)
            for work_id in ("after", "with stdin")
        ]
        soon = await scheduler.add_task("meanwhile", after=0)
        assert result_of(await scheduler.wait(soon.id))["stdout"] == "done\n"
        for task in late:
            ended = await scheduler.wait(task.id)
            assert ended.state is TaskState.FAILED
            assert ended.err is not None
            assert ended.err.startswith("FileNotFoundError: ")
            assert str(folder) in ended.err.partition("\n")[0]


async def test_its_program_vanishes(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A command whose program is gone by the time it is due, or is none, has failed, and is
    tried again if it is to be.
    """
    program = shop.folder / "program"
    shutil.copy(str(shutil.which("true")), program)
    no_program = shop.folder / "none"
    no_program.write_bytes(b"\x00\x01nonsense")
    no_program.chmod(0o755)
    works = CommandRegistry(
        {
            "gone": shop.command(str(program), retry=Retry(2)),
            "none": shop.command(str(no_program)),
        }
    )
    async with open_scheduler(works, clock=TrioClock(NOON)) as scheduler:
        task = await scheduler.add_task("gone", after=1)
        program.unlink()
        ended = await scheduler.wait(task.id)
        assert (ended.state, ended.attempt) == (TaskState.FAILED, 2)
        assert ended.err is not None
        assert ended.err.startswith("FileNotFoundError: ")
        task = await scheduler.add_task("none", after=0)
        ended = await scheduler.wait(task.id)
        assert ended.err is not None
        assert ended.err.startswith("OSError: [Errno 8] Exec format error")


async def test_its_program_is_replaced(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A command whose program is replaced while it runs goes on as it was, and the next run
    is that of the new one; while the program is being written there is none.
    """
    fifo, leave, tool = shop.fifo(), shop.fifo(), shop.folder / "tool"
    cat = shutil.which("cat")
    assert cat is not None
    shutil.copy(cat, tool)
    works = CommandRegistry(
        {
            "old": shop.command(str(tool), str(fifo), str(leave)),
            "new": shop.command(str(tool)),
        }
    )
    async with open_scheduler(works, clock=TrioClock(NOON)) as scheduler:
        old = await scheduler.add_task("old", after=0)
        with autojump_held():
            await trio.to_thread.run_sync(fifo.write_text, "still ")
        new = shop.folder / "new"
        new.write_text("#!/bin/sh\necho new\n")
        new.chmod(0o755)
        new.replace(tool)
        task = await scheduler.add_task("new", after=0)
        assert result_of(await scheduler.wait(task.id))["stdout"] == "new\n"
        with tool.open("a"):
            task = await scheduler.add_task("new", after=0)
            ended = await scheduler.wait(task.id)
        assert ended.err is not None
        assert ended.err.startswith("OSError: [Errno 26] Text file busy")
        with autojump_held():
            await trio.to_thread.run_sync(leave.write_text, "here")
        assert result_of(await scheduler.wait(old.id))["stdout"] == "still here"


@contextmanager
def files_left(number: int) -> Generator[None]:
    """Only so many files can be opened."""
    used = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208 (numbers)
    free = (each for each in itertools.count() if each not in used)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (next(itertools.islice(free, number, None)), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def unless_too_many_are_open(command: Command) -> Any:
    """What the command gives; nothing if the system says that too many files are open."""
    try:
        return await command.run({})
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        return None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such limits")
@pytest.mark.parametrize("stdin", [None, "x" * 100_000], ids=["plain", "stdin"])
async def test_no_file_can_be_opened(
    autojump_clock: MockClock, shop: Shop, stdin: str | None
) -> None:
    """
    However many files may still be opened, a command either ends as it would have or says
    that there are too many, and leaves nothing open.
    """
    command = shop.command("sh", "-c", "cat; sleep 1000 & exit 0", stdin=stdin)
    await command.run({})  # Trio has started what it needs
    await trio.testing.wait_all_tasks_blocked()
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (numbers)
    done: Any = None
    number = -1
    while done is None:
        number += 1
        with files_left(number):
            done = await unless_too_many_are_open(command)
        await trio.testing.wait_all_tasks_blocked()
        assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208 (numbers)
        assert not shop.running()
    assert done["stdout_dropped"] == max(0, len(stdin or "") - 4096)
    assert number > 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such limits")
async def test_no_file_can_be_opened_any_more(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    A command is stopped as ever if there are too many open files by then to look at it.
    """
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, signal, sys
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            open(sys.argv[1], "w").write(str(os.getpid()))
        while True:
            signal.pause()
        """,
        str(fifo),
        grace=0.2,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(command.run, {})
        child = int(await hear(fifo))
        nursery.cancel_scope.cancel()
        with files_left(0), trio.CancelScope(shield=True):
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()
    assert gone(child)


async def test_an_argument_is_too_long_for_the_system(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    What the system refuses to start has failed, with what the system says.
    """
    command = shop.command("true", "{a}", check_program=False)
    ended = await run_one(command, {"a": "x" * 10_000_000})
    assert ended.err is not None
    assert ended.err.startswith("OSError: [Errno 7] Argument list too long")


TRUE = str(shutil.which("true"))
MANY = [f"a{number}" for number in range(70)]


def in_one(shop: Shop, text: str) -> tuple[Command, dict[str, JSON]]:
    return shop.command(TRUE, "{no}", "--option={yes}{no}"), {"yes": text, "no": False}


def in_a_variable(shop: Shop, text: str) -> tuple[Command, dict[str, JSON]]:
    return shop.command(TRUE, "{no}", env={"LONG": text}), {"no": False}


def as_it_stands(shop: Shop, text: str) -> tuple[Command, dict[str, JSON]]:
    return shop.command(TRUE, text, "{no}"), {"no": False}


def in_many(shop: Shop, text: str) -> tuple[Command, dict[str, JSON]]:
    each = len(text) // len(MANY) + 1
    command = shop.command(TRUE, *(f"{{{name}}}" for name in MANY), env={"A": "ü"})
    return command, {
        name: text[index * each : (index + 1) * each] for index, name in enumerate(MANY)
    }


def in_all(shop: Shop, text: str) -> tuple[Command, dict[str, JSON]]:
    each = len(text) // len(MANY) + 1
    variables = {
        name: text[index * each : (index + 1) * each] for index, name in enumerate(MANY)
    }
    return shop.command(TRUE, env=variables), {}


@pytest.fixture(params=["as it is", "low", "as high as can be"])
def stack(request: pytest.FixtureRequest) -> Generator[None]:
    """What the stack may take, by which the system limits the arguments, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    given = {"as it is": soft, "low": 2**21, "as high as can be": hard}
    resource.setrlimit(resource.RLIMIT_STACK, (given[request.param], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


@pytest.mark.parametrize("letter", ["x", "ü"])
@pytest.mark.parametrize(
    ("made", "field", "what"),
    [
        (in_one, "param.yes", "argv[2]"),
        (in_a_variable, "work_id", "the variable LONG"),
        (as_it_stands, "work_id", "argv[1]"),
        (in_many, "param.a0", "the arguments and the variables"),
        (in_all, "work_id", "the arguments and the variables"),
    ],
)
@pytest.mark.usefixtures("stack")
async def test_what_is_too_long_for_the_system_is_refused(
    autojump_clock: MockClock, shop: Shop, made: Any, field: str, what: str, letter: str
) -> None:
    """
    A task is refused whose arguments the system would not take, to the byte: the longest
    that are accepted are run.
    """

    def refusal(length: int) -> InvalidTaskError | None:
        command, param = made(shop, letter * length)
        try:
            command.check_param(param)
        except InvalidTaskError as error:
            return error
        return None

    first = bisect.bisect(range(7_000_000), False, key=lambda n: refusal(n) is not None)
    command, param = made(shop, letter * (first - 1))
    await command.run(param)
    command, param = made(shop, letter * first)
    with pytest.raises(OSError, match="Argument list too long"):
        await command.run(param)
    error = refusal(first)
    assert error is not None
    assert error.field == field
    assert error.reason.startswith(f"{what} would be ")
    assert error.reason.endswith(": have the program read from stdin what is long")
    attrs.evolve(command, check_program=False).check_param(param)


# -- what is injected -----------------------------------------------------------------

INJECTED = [
    "; touch pwned",
    "&& touch pwned",
    "| touch pwned",
    "$(touch pwned)",
    "`touch pwned`",
    "\ntouch pwned\n",
    "'; touch pwned; '",
    '"; touch pwned; "',
    "\\'; touch pwned #",
    "${IFS}touch${IFS}pwned",
    "> pwned",
    "*",
    "~",
    "$HOME",
    "%PATH%",
    "-rf",
    "--output=pwned",
    "--",
    "-",
    "",
    " ",
    "a b  c",
    "\t\r\n\x0b\x1b[2J",
    "{a}",
    "{a.__class__}",
    "{{a}}",
    "%s%n",
    "\u202edwp",
    "ü\U0001f600",
    "\x7f",
]

TELL = """
    import json, os, sys
    print(json.dumps([sys.argv[1:], sys.stdin.buffer.read().decode(),
                      os.environ.get("VALUE"), os.getcwd()]))
"""


@pytest.mark.parametrize("text", INJECTED, ids=[ascii(text) for text in INJECTED])
async def test_nothing_can_be_injected(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """
    In whatever field it stands, text is text: it starts nothing, and is the same at the
    other end.
    """
    monkeypatch.chdir(shop.folder)
    folder = shop.folder / f"in {text.replace('/', '')}"
    folder.mkdir()
    command = shop.python(
        TELL,
        "--",
        "{a}",
        "{a}-{a}",
        "--option={a}",
        text.replace("{", "{{").replace("}", "}}"),
        stdin="{a}",
        env={"VALUE": text},
        cwd=folder,
    )
    ended = await run_one(command, {"a": text})
    assert json.loads(result_of(ended)["stdout"]) == [
        ["--", text, f"{text}-{text}", f"--option={text}", text],
        text,
        text,
        str(folder),
    ]
    assert not [*shop.folder.rglob("pwned")]


@pytest.mark.parametrize("text", INJECTED, ids=[ascii(text) for text in INJECTED])
async def test_a_name_is_a_name(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """
    A program, and a work, may have any name: it is that one which runs.
    """
    monkeypatch.chdir(shop.folder)
    name = f"tool {text.replace('/', '')}"
    path = shop.folder / name
    path.write_text("#!/bin/sh\necho it is me\n")
    path.chmod(0o755)
    works = CommandRegistry({name: shop.command("{program}")})
    async with open_scheduler(works, clock=TrioClock(NOON)) as scheduler:
        task = await scheduler.add_task(name, {"program": str(path)}, after=0)
        ended = await scheduler.wait(task.id)
    assert result_of(ended)["stdout"] == "it is me\n"
    assert not [*shop.folder.rglob("pwned")]


async def test_after_a_double_dash_a_dash_is_a_dash(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    With ``--`` in the template, what begins with a dash is no option to a program that
    knows it; without, it may be.
    """
    monkeypatch.chdir(shop.folder)
    (shop.folder / "-n").write_text("text\n")
    safe, unsafe = shop.command("cat", "--", "{name}"), shop.command("cat", "{name}")
    assert result_of(await run_one(safe, {"name": "-n"}))["stdout"] == "text\n"
    assert result_of(await run_one(unsafe, {"name": "-n"}))["stdout"] == ""


async def test_a_shell_has_its_arguments_beside_its_script(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A script that takes what is filled in as arguments is as safe as any program.
    """
    monkeypatch.chdir(shop.folder)
    command = shop.command("sh", "-c", 'printf %s "$1" | cat', "sh", "{text}")
    for text in INJECTED:
        assert result_of(await run_one(command, {"text": text}))["stdout"] == text
    assert not [*shop.folder.rglob("pwned")]


# -- whose children they are ----------------------------------------------------------

FIRST_PROCESS = """
    import ctypes, sys
    import psutil, trio
    from trio_gokugen import CommandRegistry, open_scheduler

    PR_SET_CHILD_SUBREAPER = 36
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    works = CommandRegistry({
        "left": {
            "argv": ["sh", "-c", "sleep 60 & timeout 60 sleep 60 & exit 0"],
            "grace": 60,
        },
        "stopped": {
            "argv": ["sh", "-c", "sleep 60 & timeout 60 sleep 60 & echo > ready; sleep 60"],
            "cwd": sys.argv[1],
            "grace": 60,
        },
        "mixed": {
            "argv": ["sh", "-c", "(exit 0) & (sh -c 'exit 1' &) ; exit 0"],
            "grace": 60,
        },
    })

    async def main():
        async with open_scheduler(works) as scheduler:
            for work_id in "left", "mixed":
                task = await scheduler.add_task(work_id, after=0)
                await scheduler.wait(task.id)
            task = await scheduler.add_task("stopped", after=0)
            while not await trio.Path(sys.argv[1], "ready").exists():
                await trio.sleep(0.01)
            await scheduler.interrupt(task.id)
            await scheduler.wait(task.id)

    trio.run(main)
    print([each.name() for each in psutil.Process().children(recursive=True)])
"""


KILLED = """
    import sys
    import trio
    from trio_gokugen import Command

    trio.run(Command(sys.argv[2:], env={"GOKUGEN_TEST": sys.argv[1]}).run, {})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="flock is of Linux")
def test_what_is_killed_leaves_its_command(shop: Shop) -> None:
    """
    A command goes on whose own process was killed; another run of it waits for its end if
    it holds a lock, as the documentation has it.
    """
    fifo = shop.fifo()
    lock = ["flock", "--nonblock", "--conflict-exit-code=75", "--no-fork"]
    lock.append(str(shop.folder / "lock"))
    source = [sys.executable, "-c", textwrap.dedent(KILLED), shop.token]
    script = 'sleep 1000 & echo $$ > "$1"; wait'
    again = shop.command(*lock, "echo", "mine")

    with subprocess.Popen([*source, *lock, "sh", "-c", script, "sh", str(fifo)]) as killed:
        left = psutil.Process(int(fifo.read_text()))
        killed.kill()
    assert left.is_running()
    with pytest.raises(CommandFailedError, match="exited with code 75"):
        trio.run(again.run, {})
    for each in shop.running():
        each.kill()
        assert gone(each.pid)
    assert trio.run(again.run, {})["stdout"] == "mine\n"


HOPPER = """
import ctypes, psutil, sys, trio
from trio_gokugen import Command

PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
source = '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os._exit(0)
end = time.monotonic() + 20
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    time.sleep(0.0005)
'''
for _ in range(10):
    trio.run(Command([sys.executable, "-I", "-S", "-c", source], grace=0.1).run, {})
    print(*psutil.Process().children(recursive=True), end="")
"""


@pytest.mark.long
@pytest.mark.uncovered
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such processes")
def test_who_hops_from_process_to_process_is_waited_for() -> None:
    """
    A program that is a new process again and again, so that no look sees it, is killed, and
    has ended by the end of the command.
    """
    done = subprocess.run(
        [sys.executable, "-c", HOPPER],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such processes")
def test_the_first_process_of_a_container_keeps_no_zombies(shop: Shop) -> None:
    """
    A process that inherits orphans, as the first one of a container does, has none of a
    command's when that has ended, dead or alive.
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FIRST_PROCESS), str(shop.folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "[]\n"
