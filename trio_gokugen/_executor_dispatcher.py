"""Works run by an executor: of this process's threads, or of other processes."""

from __future__ import annotations

import concurrent.futures
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

import outcome
import trio

from ._errors import ExecutorLostError, WorkLostError, shown
from ._executor_calls import Key, Landed, call_here, stop
from ._executor_order import Order, far_order
from ._in_flight import MAX_IN_FLIGHT, Flight, InFlightDispatcher, leaves
from .abc import WorkRegistry


class ExecutorDispatcher(InFlightDispatcher):
    """Runs works in any `concurrent.futures.Executor`, thousands of them in flight.

    A run that waits in the executor takes no thread and no Trio task. The executor is the
    caller's, who shuts it down after the scheduler has ended.

    Plain functions are called, async ones are run by a `trio.run` of their own. They see
    nothing of the scheduler's context: `current_task` works, `current_scheduler` does not.

    Works in threads are called as they are registered. In other processes they are found
    by the import path of their registry, ``ExecutorDispatcher("myapp.works:works",
    pool)``, which is imported there as here.

    A run that the executor has not begun can be cancelled; so can an async work in a
    thread. Else it goes on, and has ended when its work has: done if that returns, and
    stopped if it raises.
    """

    def __init__(
        self,
        works: WorkRegistry | str,
        executor: Executor,
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        """Make a dispatcher.

        Args:
          works: The registry, or its import path, ``module:name``.
          executor: Where works run.
          max_in_flight: How many runs may be with the executor at a time, those that wait
            in its queue included.

        Raises:
          TypeError: the executor is none, or runs in other processes, and works were
            not given by their import path; or there is no registry of works.
          ValueError: works is a string, and no import path; or `max_in_flight` is below 1.
          ImportError: nothing is found by the import path.
        """
        super().__init__(works, max_in_flight)
        self._lost: BaseException | None = None
        self.executor = executor

    @property
    def executor(self) -> Executor:
        """Where works run. May be replaced: what is in flight stays with the old one."""
        return self._executor

    @executor.setter
    def executor(self, executor: Executor) -> None:
        if not isinstance(executor, Executor):
            raise TypeError(
                f"executor: must be a concurrent.futures.Executor, not {shown(executor)}"
            )
        if self._path is None and _is_far(executor):
            raise TypeError(
                "works: must be the import path of the registry, 'module:name', as"
                f" {type(executor).__name__} runs works elsewhere"
            )
        self._executor = executor
        self._lost = None

    def _free(self) -> int:
        return super()._free() if self._lost is None else 0

    async def _ready(self) -> None:
        if self._lost is not None:
            await trio.lowlevel.checkpoint()
        lost = self._lost  # or another has taken its place meanwhile
        if lost is not None:
            raise ExecutorLostError(f"{lost}") from lost

    def _launch(self, flight: Flight) -> None:
        flight.executor = self._executor
        key = self._key(flight)
        if self._path is None:
            order = Order(partial(self._call, flight, key))
        else:
            order = far_order(key, self._path, flight.run, flight.spent)
        with order.submitting:
            try:
                future = self._executor.submit(order)
                future.add_done_callback(partial(self._done, flight))
            except BaseException as error:
                if isinstance(error, RuntimeError):  # it has broken, or was shut down
                    self._lost = error
                if order.withdraw() or leaves(error):
                    if self._lost is not error:
                        raise
                    self._land(flight, Landed("refused"))
                    return
                begun = order.future()
                if begun is None:
                    why = (
                        f"its executor has refused it, but may run it all the same: {error}"
                    )
                    raise WorkLostError(why) from error
                future = begun
                future.add_done_callback(partial(self._done, flight))
        flight.handle = future

    def _call(self, flight: Flight, key: Key) -> Landed:
        """In a thread of the executor's."""
        work = self._works.get(flight.run.work_id)
        return call_here(key, work, flight.run, partial(self._tell, flight), flight.spent)

    def _done(self, flight: Flight, future: Future[Any]) -> None:
        """In whatever thread the executor calls it."""
        if future.cancelled():
            self._land(flight, Landed("refused"))
            return
        error = future.exception()
        landed = future.result() if error is None else error
        if not isinstance(landed, Landed | BaseException):
            landed = WorkLostError(f"its executor has answered {shown(landed)}")
        self._land(flight, landed)

    def _outcome(
        self, flight: Flight, landed: Landed | BaseException
    ) -> outcome.Outcome[Any]:
        if isinstance(landed, concurrent.futures.BrokenExecutor):
            # Looked at here, in Trio, where it may be replaced.
            if flight.executor is self._executor:
                self._lost = landed
            why = f"its executor has broken, {type(landed).__name__}: {landed}"
            lost = WorkLostError(why)
            lost.__cause__ = landed
            landed = lost
        return super()._outcome(flight, landed)

    def _stop(self, flight: Flight) -> None:
        future: Future[Landed] | None = flight.handle
        assert flight.executor is not None
        if future is None or _cancel(future):
            return
        if not _is_far(flight.executor):
            stop(self._key(flight))

    def _key(self, flight: Flight) -> Key:
        return f"{flight.run.id}-{flight.run.attempt}-{id(flight):x}"


_FAR = frozenset(
    {  # by name: to import them would bring multiprocessing along
        "concurrent.futures.process.ProcessPoolExecutor",
        "concurrent.futures.interpreter.InterpreterPoolExecutor",
    }
)


def _cancel(future: Future[Landed]) -> bool:
    try:
        return future.cancel()
    except Exception:  # noqa: BLE001 (of an executor that cannot: the run goes on)
        return False


def _is_far(executor: Executor) -> bool:
    """Whether it surely calls elsewhere, where a registry as it is would not come."""
    bases = type(executor).__mro__
    return any(f"{base.__module__}.{base.__qualname__}" in _FAR for base in bases)
