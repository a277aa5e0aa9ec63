"""Sessions and groups of processes: who is in them, how they end, and who is told."""

from __future__ import annotations

import builtins
import errno
import itertools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import (
    Collection,
    Generator,
    Mapping,
)
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from leftovers import nothing_left
from processes import (
    IGNORE,
    WAIT,
    Shop,
    eventually,
    gone,
    hear,
    result_of,
    run_one,
    stop_all,
)
from trio.testing import MockClock

from trio_gokugen import _process_session as process_session
from trio_gokugen import _run_command as run_command
from trio_gokugen import _session_watcher as session_watcher


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Shop]:
    shop = Shop(tmp_path)
    with nothing_left(tmp_path / "temporary", monkeypatch), shop.leaving_nothing():
        yield shop


async def test_a_number_that_is_used_again_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    If a process that was waited for has a number that another one has now, its session is
    no more, and that of the other gets no signal.
    """

    class Gone:
        pid = os.getpid()
        args = ("gone",)

        def poll(self) -> int:
            return 0

    def kill(*_: Any) -> None:
        raise AssertionError("a stranger was sent a signal")

    monkeypatch.setattr(os, "killpg", kill)
    monkeypatch.setattr(os, "waitpid", kill)
    gone: Any = Gone()
    assert not process_session.send(gone, signal.SIGTERM)
    assert (await session_watcher.wait_for_end(gone, 60, signal.SIGTERM)).has_ended
    process_session.reap(gone, [])


def fake_processes(
    monkeypatch: pytest.MonkeyPatch, folder: Path, processes: Mapping[int, tuple[str, int]]
) -> None:
    """Have the system tell of these: their states, "" for who has gone, and sessions."""
    (folder / "self").mkdir()
    (folder / "self" / "stat").touch()
    for pid, (state, session) in processes.items():
        (folder / str(pid)).mkdir()
        if state:
            stat = f"{pid} (a) Z 1) {state} 1 {pid} {session} {'0 ' * 13}1 0 0"
            (folder / str(pid) / "stat").write_text(stat)

    def getsid(pid: int) -> int:
        state, session = processes[pid]
        if not state:
            raise ProcessLookupError
        return session

    monkeypatch.setattr(os, "getsid", getsid)
    monkeypatch.setattr(process_session, "_PROC", folder)


def fake_groups(monkeypatch: pytest.MonkeyPatch, groups: Collection[int]) -> None:
    """Have the system say that there are these groups, and of one that it is not ours."""

    def killpg(group: int, number: int) -> None:
        assert number == 0
        if group not in groups:
            raise ProcessLookupError
        if group == 77:
            raise PermissionError

    monkeypatch.setattr(os, "killpg", killpg)


def test_what_the_system_tells_of_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A session lives if it has a member that has not ended, whatever its name and its group;
    and for as long as its first group is there, if its members are not told of.
    """
    fake_processes(
        monkeypatch,
        tmp_path,
        {
            11: ("Z", 77),
            12: ("S", 77),
            13: ("R", 77),
            14: ("X", 88),
            88: ("Z", 88),
            15: ("", 88),
            90: ("T", 90),
            16: ("D", 91),
            92: ("S", 40),  # whoever has the number of a leader that has gone
        },
    )
    fake_groups(monkeypatch, {77, 88, 90, 91, 99})
    alive = process_session.living({each: each for each in (77, 88, 90, 91, 92, 99, 100)})
    assert alive in (
        {77: 12, 90: 90, 91: 16, 99: 99},
        {77: 13, 90: 90, 91: 16, 99: 99},
    )


def test_who_was_found_alive_is_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    As long as a member that was found alive is, no other process is looked at.
    """
    fake_processes(monkeypatch, tmp_path, {77: ("Z", 77), 12: ("S", 77), 88: ("R", 88)})
    fake_groups(monkeypatch, {77, 88})
    looks = count_looks(monkeypatch)
    found = process_session.living({77: 77, 88: 88})
    assert found == {77: 12, 88: 88}
    assert len(looks) == 1
    assert process_session.living(found) == found
    assert len(looks) == 1


def count_looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each time that all processes of the system are listed."""
    looks: list[str] = []
    listdir: Any = os.listdir

    def noting(path: Any = ".") -> Any:
        if str(path) == str(process_session._PROC):
            looks.append(threading.current_thread().name)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", noting)
    return looks


@pytest.mark.parametrize("failing", ["listdir", "open"])
def test_who_cannot_be_looked_at_may_be_alive(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failing: str,
) -> None:
    """
    If there is no file descriptor left to look at processes by, a session lives for as long
    as its first group is there.
    """
    fake_processes(monkeypatch, tmp_path, {77: ("Z", 77), 12: ("Z", 77)})
    fake_groups(monkeypatch, {77})

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    assert process_session.living({77: 77}) == {}
    with monkeypatch.context() as patched:
        patched.setattr(os if failing == "listdir" else builtins, failing, fail)
        assert process_session.living({77: 77, 88: 88}) == {77: 77}
    said = [record.getMessage() for record in caplog.records]
    if failing == "listdir":
        assert said == [
            "processes cannot be looked at: [Errno 24] Too many open files",
        ]


def test_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """
    On a system that does not tell of processes a session lives for as long as its first
    group is there.
    """
    monkeypatch.setattr(process_session, "_PROC", tmp_path)
    fake_groups(monkeypatch, {77, 88})
    assert process_session.living({77: 77, 88: 12, 99: 99}) == {77: 77, 88: 12}


CHILD_IGNORES = """
    import os, signal, sys
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[1], "w").write("ready")
    while True:
        signal.pause()
"""


@pytest.mark.parametrize(
    ("source", "most"), [(IGNORE, 4), (CHILD_IGNORES, 6)], ids=["leader", "child"]
)
async def test_one_look_serves_all(
    autojump_clock: MockClock,
    shop: Shop,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    most: int,
) -> None:
    """
    While commands that ignore that they are to stop are waited for, all processes of the
    system are looked at only to send a signal, or once somebody has ended, and never in
    Trio's thread, nor by two at a time.
    """
    fifos = [shop.fifo() for _ in range(5)]
    commands = [shop.python(source, str(fifo), grace=1) for fifo in fifos]
    looks = count_looks(monkeypatch)
    looking = threading.Lock()
    living = process_session.living

    def alone(groups: Mapping[int, int]) -> dict[int, int]:
        assert looking.acquire(blocking=False)
        try:
            assert threading.current_thread() is not threading.main_thread()
            return living(groups)
        finally:
            looking.release()

    monkeypatch.setattr(process_session, "living", alone)
    await stop_all(commands, fifos)
    assert len(looks) <= most * len(commands)


def test_who_comes_later_is_looked_at_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Those who wait are looked at together, as far as it is soon their turn; who comes later
    has the others looked at no more often. Each time the pause is longer, up to a limit,
    and none goes on for longer than was said. Signals are sent once.
    """
    now = 0.0
    looked_at: list[tuple[set[int], float]] = []

    def living(groups: dict[int, int]) -> dict[int, int]:
        looked_at.append(({*groups}, now))
        return groups

    monkeypatch.setattr(session_watcher, "time", SimpleNamespace(monotonic=lambda: now))

    def send(sessions: dict[int, object]) -> dict[int, set[int]]:
        sent.append(sessions)
        return {session: {session + 10} for session in sessions}

    sent: list[dict[int, object]] = []
    monkeypatch.setattr(process_session, "living", living)
    monkeypatch.setattr(process_session, "send_to_others", send)
    watcher = session_watcher._Watcher()
    old = session_watcher._Waiting(1, 1000, 0, [signal.SIGTERM])
    second = session_watcher._Waiting(2, 1000, session_watcher.SHORTEST_PAUSE / 8)
    for _ in range(9):
        assert not watcher._look([old, second])
        now = old.look_at
    assert [groups for groups, _ in looked_at] == [{1, 2}] * 9
    moments = [moment for _, moment in looked_at]
    pauses = [round(b - a, 6) for a, b in itertools.pairwise(moments)]
    assert pauses == [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.05, 0.05]
    assert sent == [{1: [signal.SIGTERM]}]
    assert old.others == {11}
    old.look_at = second.look_at = now + session_watcher.LONGEST_PAUSE * 3 / 4
    new = session_watcher._Waiting(3, now + 0.0001, now)
    assert not watcher._look([old, second, new])
    assert looked_at[-1] == ({3}, now)
    now = new.look_at
    assert now == new.until
    assert watcher._look([new]) == {new}


def test_between_its_looks_the_watcher_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Until it is somebody's turn the watcher waits for others to come, and for no longer.
    """
    waits: list[float] = []

    class Event:
        is_set = True

        def wait(self, seconds: float) -> None:
            waits.append(seconds)

        def clear(self) -> None:
            self.is_set = False

    monkeypatch.setattr(session_watcher, "time", SimpleNamespace(monotonic=lambda: 5.0))
    monkeypatch.setattr(process_session, "living", lambda groups: groups)
    watcher = session_watcher._Watcher()
    event = Event()
    monkeypatch.setattr(watcher, "_has_more", event)
    watcher._look(
        [session_watcher._Waiting(1, 100, 8), session_watcher._Waiting(2, 100, 7)]
    )
    assert not event.is_set
    watcher._look([session_watcher._Waiting(1, 100, 4)])
    assert waits == [2, 0]


async def test_who_comes_later_does_not_wait_for_the_others_turn(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Who comes while nobody else's turn is near is looked at at once.
    """
    watcher = session_watcher._Watcher()
    waits = trio.Event()
    look = session_watcher._Watcher._look

    def noting(self: Any, waiting: list[Any]) -> set[Any]:
        trio.from_thread.run_sync(waits.set)
        return look(self, waiting)

    def living(groups: Mapping[int, int]) -> dict[int, int]:
        return {group: group for group in groups if group != 1}

    monkeypatch.setattr(session_watcher._Watcher, "_look", noting)
    monkeypatch.setattr(process_session, "living", living)
    never = time.monotonic() + 1e6
    other = session_watcher._Waiting(1, never, never)
    watcher._waiting.append(other)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watcher._watch)
        await waits.wait()
        assert not (await watcher.wait(2, 0, ())).has_ended
        assert not other.over.is_set()
        other.look_at = 0
        waited = await watcher.wait(1, 0, ())  # has the other one looked at, too
        assert waited.has_ended
        await other.over.wait()


async def test_busy_threads_keep_no_command_from_its_end(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What is stopped is watched, though the program has all of its threads at work.
    """
    run_sync = trio.to_thread.run_sync
    looks: list[trio.CapacityLimiter] = []

    async def noting(function: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(function, "__name__", "") == "_look":
            looks.append(kwargs["limiter"])
        return await run_sync(function, *args, **kwargs)

    monkeypatch.setattr(trio.to_thread, "run_sync", noting)
    fifo = shop.fifo()
    await stop_all([shop.python(IGNORE, str(fifo), grace=0)], [fifo])
    assert looks
    assert {each.total_tokens for each in looks} == {math.inf}


async def test_all_pipes_have_one_reader(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    However many commands run at a time, one task reads what they write.
    """
    made: list[object] = []
    init = run_command._Reader.__init__

    def noting(self: Any) -> None:
        made.append(self)
        init(self)

    monkeypatch.setattr(run_command._Reader, "__init__", noting)
    fifos = [shop.fifo() for _ in range(3)]
    await stop_all([shop.python(WAIT, str(fifo)) for fifo in fifos], fifos)
    assert len(made) == 1


async def no_thread(*_: Any, **__: Any) -> Any:
    """In the place of `trio.to_thread.run_sync`."""
    raise RuntimeError("can't start new thread")


async def test_who_waits_together_fails_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If there is no thread to wait in, each of those who wait gets an error of its own, to
    which it adds what its own command has written; and nobody waits any more.
    """

    errors: list[RuntimeError] = []

    async def wait(session: int) -> None:
        with pytest.raises(RuntimeError, match="can't start new thread") as caught:
            await watcher.wait(session, 60, ())
        errors.append(caught.value)

    watcher = session_watcher._Watcher()
    with monkeypatch.context() as patched:
        patched.setattr(trio.to_thread, "run_sync", no_thread)
        async with trio.open_nursery() as nursery:
            for session in range(3):
                nursery.start_soon(wait, session)
    assert len({*map(id, errors)}) == 3
    assert len({id(error.__cause__) for error in errors}) == 1
    monkeypatch.setattr(process_session, "living", lambda sessions: {})
    assert (await watcher.wait(1, 60, ())).has_ended


def test_what_runs_as_the_trio_run_ends_is_stopped(shop: Shop) -> None:
    """
    A command of a system task, which is cancelled as the Trio run ends, is waited for.
    """
    fifo = shop.fifo()
    command = shop.python(IGNORE, str(fifo), grace=0.05)

    async def main() -> None:
        trio.lowlevel.spawn_system_task(command.run, {})
        await hear(fifo)

    trio.run(main)
    assert not shop.running()


def test_what_cannot_be_read_from_is_not_waited_for(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If the system will not watch a pipe, the command fails, and the Trio run comes to its
    end.
    """

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_command._Reader, "add", fail)
    with pytest.raises(OSError, match="No space left"):
        trio.run(shop.command("true").run, {})


async def test_who_was_not_seen_is_killed(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A child that was born as the members of its group were looked at, and not seen, is
    killed: nothing is left of a command that has ended.
    """
    command = shop.python(
        """
        import os, signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = os.fork()
        if not child:
            while True:
                signal.pause()
        print(child, flush=True)
        """,
        grace=1e8,
    )

    def blind(sessions: AbstractSet[int]) -> tuple[dict[int, int], set[int]]:
        return {}, {*sessions}

    monkeypatch.setattr(process_session, "_members", blind)
    child = int(result_of(await run_one(command))["stdout"])
    assert gone(child)


async def test_without_a_thread_it_is_killed(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If there is no thread to wait for its end in, what is stopped is killed, and it is told
    why; and the next is waited for again.
    """
    fifo, again = shop.fifo(), shop.fifo()
    command = shop.python(IGNORE, str(fifo), grace=1e8)

    with pytest.RaisesGroup(
        pytest.RaisesExc(RuntimeError, match="can't start new thread"),
        flatten_subgroups=True,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(command.run, {})
            await hear(fifo)
            monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
            nursery.cancel_scope.cancel()
    monkeypatch.undo()
    assert not shop.running()
    await stop_all([shop.python(IGNORE, str(again), grace=0)], [again])


def test_those_who_have_become_ours_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Of a session whose leader has ended, all in its groups that have ended are waited for,
    one by one; but none of a group whose number is a stranger's by now.
    """
    waited: list[int] = []
    left = [11, 12]
    ended = {30: [31, 32], 40: [41], 50: [51]}
    sessions = {31: 10, 32: 10, 41: 41, 51: 10}

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        waited.append(pid)
        if pid > 0:
            ended[pid // 10 * 10].remove(pid)
            return pid, 0
        assert pid == -10
        return (left.pop(0), 0) if left else (0, 0)

    def waitid(kind: int, group: int, options: int) -> Any:
        assert kind == os.P_PGID
        assert options == os.WEXITED | os.WNOHANG | os.WNOWAIT
        if group == 20:
            raise ChildProcessError
        return SimpleNamespace(si_pid=ended[group][0]) if ended[group] else None

    leader: Any = SimpleNamespace(pid=10, poll=lambda: 0)
    monkeypatch.setattr(process_session, "_is_used", lambda pid: False)
    monkeypatch.setattr(os, "waitpid", waitpid)
    monkeypatch.setattr(os, "waitid", waitid)
    monkeypatch.setattr(os, "getsid", sessions.__getitem__)
    process_session.reap(leader, [20, 30, 40, 50])
    assert waited == [-10, -10, -10, 31, 32, 51]


async def test_who_does_not_end_though_killed_is_told(
    autojump_clock: MockClock,
    shop: Shop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    What is not seen to end after a SIGKILL, as the system keeps it, is left, and told of.
    """
    monkeypatch.setattr(run_command, "AFTER_KILL", 0)
    monkeypatch.setattr(process_session, "living", dict)
    fifo = shop.fifo()
    await stop_all([shop.python(IGNORE, str(fifo), grace=0)], [fifo])
    [record] = caplog.records
    assert "does not end, though it was killed" in record.getMessage()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is in a session")
async def test_without_a_thread_other_groups_are_killed(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If there is no thread to wait in, nothing is left in other groups of a session, either.
    """
    fifo = shop.fifo()
    command = shop.python(
        """
        import os, signal, sys
        if not os.fork():
            os.setpgid(0, 0)
            open(sys.argv[1], "w").write("ready")
        while True:
            signal.pause()
        """,
        str(fifo),
        grace=1e8,
    )

    with pytest.RaisesGroup(RuntimeError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(command.run, {})
            await hear(fifo)
            monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)
            nursery.cancel_scope.cancel()
    monkeypatch.undo()
    assert eventually(lambda: not shop.running())


def test_who_cannot_be_listed_is_sent_signals_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    While processes cannot be listed, signals for other groups are kept; and whoever may not
    be sent one is told of.
    """
    sent: list[tuple[int, int]] = []

    def killpg(group: int, number: int) -> None:
        if number:
            sent.append((group, number))
            raise PermissionError

    monkeypatch.setattr(os, "killpg", killpg)
    watcher = session_watcher._Watcher()
    waiting = session_watcher._Waiting(77, math.inf, 0, [signal.SIGTERM])
    monkeypatch.setattr(process_session, "_PROC", tmp_path)
    watcher._look([waiting])
    assert waiting.signals
    fake_processes(monkeypatch, tmp_path, {77: ("S", 77), 12: ("S", 77), 13: ("S", 99)})
    monkeypatch.setattr(os, "getpgid", lambda pid: pid)
    waiting.look_at = 0
    watcher._look([waiting])
    assert sent == [(12, signal.SIGTERM)]
    assert not waiting.signals
    assert "12 may not be sent a signal" in caplog.text


def test_a_system_may_list_processes_and_tell_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Where processes are listed, but not their states, a session lives for as long as its
    first group is there.
    """
    fake_processes(monkeypatch, tmp_path, {77: ("S", 77), 12: ("S", 77)})
    for pid in "self", "77", "12":
        (tmp_path / pid / "stat").unlink()
    fake_groups(monkeypatch, {77})
    assert process_session.living({77: 77, 88: 88}) == {77: 77}


async def test_without_proc_it_works_as_well(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Where the system does not list its processes, what is stopped is stopped all the same.
    """
    monkeypatch.setattr(process_session, "_PROC", shop.folder / "nowhere")
    fifo = shop.fifo()
    command = shop.python(WAIT, str(fifo))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(command.run, {})
        await hear(fifo)
        nursery.cancel_scope.cancel()


def test_a_process_that_goes_as_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A process that ends while all are looked at is left out.
    """

    def ended(pid: int) -> int:
        raise ProcessLookupError(pid)

    monkeypatch.setattr(os, "getsid", ended)
    session = 2**30  # nobody has it
    assert process_session.send_to_others({session: [signal.SIGTERM]}) == {session: set()}
