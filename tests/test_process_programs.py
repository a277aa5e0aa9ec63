"""Whole programs with works in processes: how they begin, and what is left as they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Generator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from leftovers import nothing_left

PATIENCE = 60.0
"""Seconds of real time after which something that has not come never will."""


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Nothing is left after any of these tests."""
    with nothing_left(tmp_path / "temporary", monkeypatch):
        yield


SCRIPT = """
import os, signal, sys, threading
from pathlib import Path
import trio
from trio_gokugen import *

works = WorkRegistry()

class Mine(Exception): ...

@works.register(process=True, retain=True)
def tell(what):
    if what == "error":
        raise Mine("of the script")
    return os.path.basename(__file__), __name__

@works.register(process=True)
def spin(started):
    Path(started).write_text("x")
    while True:
        pass

def crash():
    # An error in a task, or in what it has Trio call, would cancel all in good order.
    type(trio.lowlevel.current_clock()).deadline_to_sleep_time = lambda *_: 1 / 0

async def run(work_id, **param):
    async with open_scheduler(works) as scheduler:
        task = await scheduler.add_task(work_id, param, after=0)
        return await scheduler.wait(task.id)
"""


def write_script(directory: Path, rest: str, name: str = "script.py") -> Path:
    path = directory / name
    path.write_text(SCRIPT + textwrap.dedent(rest))
    return path


def run_program(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("how", ["script", "module"])
def test_a_script_may_have_its_works_in_itself(tmp_path: Path, how: str) -> None:
    """
    Functions and errors of the program's own file are found in its processes, and back.
    """
    rest = """
    if __name__ == "__main__":
        print(trio.run(lambda: run("tell", what="name")).result)
        print(trio.run(lambda: run("tell", what="error")).err.splitlines()[0])
    """
    path = write_script(tmp_path, rest)
    arguments: tuple[str | Path, ...] = (path,) if how == "script" else ("-m", "script")
    done = run_program(*arguments, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout == "['script.py', '__mp_main__']\nMine: of the script\n"


def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    """
    A script that would run itself anew in each process does not, and says what to do.
    """
    rest = """
    print("begins", __name__)
    print(trio.run(lambda: run("tell", what="name")).err)
    """
    done = run_program(write_script(tmp_path, rest), cwd=tmp_path)
    assert "RuntimeError: this process was started to run works" in done.stderr
    assert 'put its trio.run under if __name__ == "__main__":' in done.stderr
    assert done.stdout.startswith("begins __main")
    err = done.stdout.partition("WorkerDiedError")[2]
    assert "exit code 1" in err
    assert 'A script must call trio.run under if __name__ == "__main__":' in err


@pytest.mark.parametrize("how", ["-c", "package", "directory"])
def test_what_is_no_file_is_told_so(tmp_path: Path, how: str) -> None:
    """
    A program that another process cannot import is told to put the function elsewhere.
    """
    package = tmp_path / "package"
    package.mkdir()
    write_script(package, "", "__main__.py")
    programs: dict[str, tuple[str | Path, ...]] = {
        "-c": ("-c", SCRIPT),
        "package": ("-m", "package"),
        "directory": (package,),
    }
    done = run_program(*programs[how], cwd=tmp_path)
    assert done.stderr.splitlines()[-1].startswith("TypeError: function: it is in the pro")
    assert "put the function into a module" in done.stderr


def test_without_the_extra(tmp_path: Path) -> None:
    """
    Without trio-parallel a work in a process is refused as it is registered, and it is
    told what to install; with it, it is not imported before a work runs.
    """
    program = """
import sys, process_works
import trio_gokugen
assert "trio_parallel" not in sys.modules
assert "multiprocessing" not in sys.modules
import importlib.util
there = importlib.util.find_spec
sys.modules["trio_gokugen._work_registry"].find_spec = lambda name: None
try:
    trio_gokugen.WorkRegistry().register("x", process_works.where, process=True)
except ImportError as error:
    print(error.name, error)
trio_gokugen.WorkRegistry().register("x", process_works.where)
"""
    done = run_program("-c", program, cwd=Path(__file__).parent)
    assert done.stderr == ""
    assert done.stdout == (
        "trio_parallel process=True needs trio-parallel:"
        ' pip install "trio_gokugen[process]"\n'
    )


@pytest.mark.parametrize("which", ["SIGINT", "SIGTERM"])
def test_a_signal_does_not_reach_a_process_that_starts(tmp_path: Path, which: str) -> None:
    """
    A signal that comes while a process imports what it needs is the scheduler's affair.
    """
    rest = f"""
    if __name__ == "__main__":
        print(trio.run(lambda: run("tell", what="name")).state.value)
    else:
        signal.raise_signal(signal.{which})
    """
    done = run_program(write_script(tmp_path, rest), cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout == "done\n"


def test_a_sigterm_for_all_processes(tmp_path: Path) -> None:
    """
    A SIGTERM that all processes of a program get, as from systemd, ends no work: a program
    that stops its scheduler then lets works end, in the grace that it gives them.
    """
    rest = """
    @works.register(process=True, retain=True)
    def hold(started, go):
        Path(started).write_text("x")
        Path(go).read_text()
        return os.getpid()

    async def main(started, go):
        repository = HeapRepository()
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with open_scheduler(works, repository) as scheduler:
                param = {"started": started, "go": go}
                await scheduler.add_task("hold", param, after=0, id="a")
                async for _ in signals:
                    print("stopping", flush=True)
                    break
        print((await repository.get("a")).state.value, flush=True)

    if __name__ == "__main__":
        trio.run(main, *sys.argv[1:])
    """
    pipes = [tmp_path / "started", tmp_path / "go"]
    for pipe in pipes:
        os.mkfifo(pipe)
    with subprocess.Popen(
        [sys.executable, write_script(tmp_path, rest), *pipes],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        assert pipes[0].read_text() == "x"
        busy = psutil.Process(program.pid).children(recursive=True)
        os.killpg(program.pid, signal.SIGTERM)
        assert program.stdout is not None
        assert program.stdout.readline() == "stopping\n"
        pipes[1].write_text("go")
        stdout, stderr = program.communicate(timeout=PATIENCE)
    assert (stdout, stderr) == ("done\n", "")
    assert not psutil.wait_procs(busy, timeout=PATIENCE)[1]


def test_a_program_whose_trio_crashes_leaves_nothing(tmp_path: Path) -> None:
    """
    A process that is busy when Trio itself crashes is killed, and not waited for.
    """
    rest = """
    async def main(started):
        async with open_scheduler(works) as scheduler:
            await scheduler.add_task("spin", {"started": started}, after=0)
            await trio.to_thread.run_sync(Path(started).read_text)
            print(*(each.pid for each in multiprocessing.active_children()), flush=True)
            crash()
            await trio.sleep_forever()

    if __name__ == "__main__":
        import multiprocessing
        try:
            trio.run(main, sys.argv[1])
        except trio.TrioInternalError:
            print("crashed")
    """
    started = tmp_path / "started"
    os.mkfifo(started)
    done = run_program(write_script(tmp_path, rest), started, cwd=tmp_path)
    process, crashed = done.stdout.split()
    assert crashed == "crashed"
    assert not psutil.pid_exists(int(process))


def test_a_program_that_keeps_its_crash_ends(tmp_path: Path) -> None:
    """
    An idle process is killed as its program ends, too, if what is left of a crash of Trio
    keeps it from being let go.
    """
    rest = """
    async def main():
        async with open_scheduler(works) as scheduler:
            task = await scheduler.add_task("tell", {"what": "name"}, after=0)
            await scheduler.wait(task.id)
            print(*(each.pid for each in multiprocessing.active_children()), flush=True)
            crash()
            await trio.sleep_forever()

    if __name__ == "__main__":
        import multiprocessing
        try:
            trio.run(main)
        except trio.TrioInternalError as error:
            kept = error
            print("crashed")
    """
    done = run_program(write_script(tmp_path, rest), cwd=tmp_path)
    process, crashed = done.stdout.split()
    assert crashed == "crashed"
    assert not psutil.pid_exists(int(process))


RESTORED = """
import os, signal, sys
# What a shell runs in the background ignores it.
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


INTERRUPTED = """
    if __name__ == "__main__":
        try:
            trio.run(main, sys.argv[1])
        except* KeyboardInterrupt:
            print("interrupted")
"""


def at_a_terminal(*arguments: Path) -> subprocess.Popen[str]:
    """Start a program that a Ctrl-C interrupts, with all processes that it starts."""
    return subprocess.Popen(
        [sys.executable, "-c", RESTORED, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_ctrl_c_at_a_terminal(tmp_path: Path) -> None:
    """
    Of a Ctrl-C that all processes get only the program itself tells, no process is left,
    and the task is put back.
    """
    rest = """
    async def main(started):
        repository = HeapRepository()
        try:
            async with open_scheduler(works, repository) as scheduler:
                await scheduler.add_task("spin", {"started": started}, after=0, id="a")
                await trio.sleep_forever()
        finally:
            print((await repository.get("a")).state.value, flush=True)
    """
    started = tmp_path / "started"
    os.mkfifo(started)
    program = at_a_terminal(write_script(tmp_path, rest + INTERRUPTED), started)
    assert started.read_text() == "x"
    busy = psutil.Process(program.pid).children(recursive=True)
    assert len(busy) == 2  # and the one of multiprocessing's own
    os.killpg(program.pid, signal.SIGINT)
    stdout, stderr = program.communicate(timeout=PATIENCE)
    assert stderr == ""
    assert stdout == "scheduled\ninterrupted\n"
    assert not psutil.wait_procs(busy, timeout=PATIENCE)[1]


def test_processes_end_with_a_program_that_is_killed(tmp_path: Path) -> None:
    """
    The idle processes of a program that was killed end by themselves.
    """
    rest = """
    async def main():
        async with open_scheduler(works) as scheduler:
            task = await scheduler.add_task("tell", {"what": "name"}, after=0)
            await scheduler.wait(task.id)
            print("idle", flush=True)
            await trio.sleep_forever()

    if __name__ == "__main__":
        trio.run(main)
    """
    program = subprocess.Popen(
        [sys.executable, write_script(tmp_path, rest)], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "idle\n"
    idle = psutil.Process(program.pid).children(recursive=True)
    assert len(idle) == 2  # and the one of multiprocessing's own
    program.kill()
    program.communicate(timeout=PATIENCE)
    assert not psutil.wait_procs(idle, timeout=PATIENCE)[1]


def test_a_process_whose_program_was_killed_ends_by_a_sigterm(tmp_path: Path) -> None:
    """
    A process that is busy when its program is killed can be ended by a SIGTERM.
    """
    rest = """
    async def main(started):
        async with open_scheduler(works) as scheduler:
            await scheduler.add_task("spin", {"started": started}, after=0)
            await trio.sleep_forever()

    if __name__ == "__main__":
        trio.run(main, sys.argv[1])
    """
    started = tmp_path / "started"
    os.mkfifo(started)
    with subprocess.Popen(
        [sys.executable, write_script(tmp_path, rest), started]
    ) as program:
        assert started.read_text() == "x"
        busy = psutil.Process(program.pid).children(recursive=True)
        program.kill()
        program.wait(PATIENCE)
    for process in busy:
        process.terminate()  # of which that of multiprocessing's own takes no notice
    assert not psutil.wait_procs(busy, timeout=PATIENCE)[1]


def test_a_ctrl_c_at_a_terminal_with_a_pool_of_processes(tmp_path: Path) -> None:
    """
    Processes of an executor that ignore a Ctrl-C, as the documentation has them do, leave
    it to the program: no task fails, and what has not run is put back.
    """
    (tmp_path / "pool_works.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "from trio_gokugen import WorkRegistry, current_task\n"
        "works = WorkRegistry()\n"
        "@works.register\n"
        "def nap(began):\n"
        "    Path(began, current_task().id).touch()\n"
        "    time.sleep(1)\n"
    )
    rest = """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    import pool_works

    async def main(began):
        repository = HeapRepository()
        spawn = multiprocessing.get_context("spawn")
        ignore = {"initializer": signal.signal}
        ignore["initargs"] = signal.SIGINT, signal.SIG_IGN
        try:
            with ProcessPoolExecutor(2, mp_context=spawn, **ignore) as pool:
                dispatcher = ExecutorDispatcher("pool_works:works", pool)
                async with open_scheduler(
                    pool_works.works, repository, dispatcher
                ) as scheduler:
                    for number in range(8):
                        await scheduler.add_task("nap", {"began": began}, after=0)
                    await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                tasks = await repository.find(TaskQuery())
            print(*sorted({task.state.value for task in tasks}), flush=True)
            print([task.err for task in tasks if task.err is not None])
    """
    began = tmp_path / "began"
    began.mkdir()
    program = at_a_terminal(write_script(tmp_path, rest + INTERRUPTED), began)
    late = time.monotonic() + PATIENCE
    while len(list(began.iterdir())) < 2:  # so both processes are ready
        assert time.monotonic() < late
        time.sleep(0.01)
    os.killpg(program.pid, signal.SIGINT)
    stdout, stderr = program.communicate(timeout=PATIENCE)
    assert stderr == ""
    assert stdout == "done scheduled\n[]\ninterrupted\n"
