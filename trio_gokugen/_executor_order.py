"""What an executor is given: the call of one run, which can be taken back.

Python's own pools queue a call first, and then start a thread or a process for it. If that
fails, so does `submit`, and there is no future; but the call stays in the queue, and one of
the other threads or processes will make it, or is about to. So a call that was refused is
withdrawn: it does nothing then, unless it has begun.

A pool of processes pickles a call when it takes it from its queue, in a thread of its own.
This is when it can still be withdrawn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import attrs

from ._executor_calls import Key, Landed, call_by_path
from ._task import Task

PATIENCE = 5.0
"""Seconds that a call waits, before it is sent, to know whether it was refused.

An executor whose `submit` waits for that would wait for ever.
"""


@attrs.define(eq=False)
class Order:
    """The call of a run, in this process."""

    _call: Callable[[], Landed]
    submitting: Any = attrs.field(factory=threading.RLock, init=False)
    """A lock, to be held until it is accepted, or was refused and is withdrawn."""

    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False)
    _withdrawn: bool = attrs.field(default=False, init=False)
    _begun: bool = attrs.field(default=False, init=False)
    _landed: Landed | None = attrs.field(default=None, init=False)
    _future: Future[Landed] | None = attrs.field(default=None, init=False)

    def withdraw(self) -> bool:
        """Have it do nothing when it is made. False if it has begun."""
        with self._lock:
            self._withdrawn = not self._begun
            return self._withdrawn

    def future(self) -> Future[Landed] | None:
        """What becomes of it, once it has begun though it was refused.

        None if that cannot be known.
        """
        future: Future[Landed] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            self._future, landed = future, self._landed
        if landed is not None:
            future.set_result(landed)
        return future

    def begin(self) -> bool:
        """Note that it is made. False if it was withdrawn."""
        with self._lock:
            self._begun = not self._withdrawn
            return self._begun

    def __call__(self) -> Landed:
        """In a thread of the executor's. What has ended is not called again."""
        with self._lock:
            if self._landed is not None:
                return self._landed
        if not self.begin():
            return Landed("refused")
        try:
            landed = self._call()
        except BaseException as error:  # noqa: BLE001 (it is the outcome)
            landed = Landed("error", error)
        with self._lock:
            self._landed, future = landed, self._future
        if future is not None:
            future.set_result(landed)
        return landed

    def __reduce__(self) -> Any:
        raise TypeError(
            "works: must be the import path of the registry, 'module:name', as this"
            " executor runs works elsewhere"
        )


@attrs.define(eq=False)
class FarOrder(Order):
    """The call of a run whose work is found by the import path of its registry."""

    _arguments: tuple[Key, str, Task, float]
    _sent: bool = attrs.field(default=False, init=False)

    def future(self) -> Future[Landed] | None:
        return None if self._sent else super().future()

    def __reduce__(self) -> Any:
        """It as it is sent. In a thread of the executor's, or as it is submitted."""
        known = self.submitting.acquire(timeout=PATIENCE)
        try:
            if not self.begin():
                return partial, (Landed, "refused")
            self._sent = True
            key, path, run, spent = self._arguments
            return partial, (call_by_path, key, path, run.to_json(), spent)
        finally:
            if known:
                self.submitting.release()


def far_order(key: Key, path: str, run: Task, spent: float) -> FarOrder:
    """The order of a run whose work is found by the import path of its registry."""
    arguments = key, path, run, spent
    return FarOrder(partial(_call_far, *arguments), arguments)


def _call_far(key: Key, path: str, run: Task, spent: float) -> Landed:
    return call_by_path(key, path, run.to_json(), spent)
