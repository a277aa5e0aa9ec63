"""A rival's sides: huey, its tasks in a SQLite file, run by four threads.

Set up in its favour. It stores no results and runs no periodic tasks. Its threads start
just before the adding if nothing is synced, and after it if each change is: both ways
were tried, and these are the faster ones. Of a task that has run it records nothing, but
that it may not be revoked any more. With `fsync=False` it sets `synchronous` to OFF,
which syncs less than the NORMAL of ours.
"""

from __future__ import annotations

import threading
from functools import partial

from huey import SqliteHuey
from huey.consumer import Consumer
from huey.signals import SIGNAL_COMPLETE

from ._databases import new_file
from ._turns import Stopwatch, answer, serve, turns

THREADS = 4


def run_tasks(count: int, *, fsync: bool) -> None:
    for _ in turns():
        with new_file() as path:
            huey = SqliteHuey(filename=str(path), fsync=fsync, results=False)
            answer(run_on(huey, count, start_first=not fsync))


def run_on(huey: SqliteHuey, count: int, *, start_first: bool) -> float:
    left = count
    lock = threading.Lock()
    all_run = threading.Event()

    @huey.task()  # type: ignore[untyped-decorator]  # not installed
    def noop() -> None:
        pass

    @huey.signal(SIGNAL_COMPLETE)  # type: ignore[untyped-decorator]
    def completed(*_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
        if not left:
            all_run.set()

    consumer = Consumer(huey, workers=THREADS, periodic=False, check_worker_health=False)
    with Stopwatch() as watch:
        if start_first:
            consumer.start()
        for _ in range(count):
            noop()
        if not start_first:
            consumer.start()
        all_run.wait()
    assert huey.pending_count() == 0
    consumer.stop(graceful=True)
    huey.storage.close()
    return watch.seconds


if __name__ == "__main__":
    serve(
        {
            "fsync_true": partial(run_tasks, fsync=True),
            "fsync_false": partial(run_tasks, fsync=False),
        }
    )
