"""Works on a Dask cluster, where one machine is not enough.

Needs the extra ``dask``, here and on the cluster: its scheduler and its workers import this
module.

What runs on a cluster is a run, and never runs twice: Dask by itself would run a task
again whose worker was lost, or whose result was. A plugin on its scheduler sees to it that
such a run fails, and this library's own rules say whether there is another attempt.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeAlias, cast

import trio

from ._autojump import autojump_held
from ._errors import ExecutorLostError, WorkLostError, shown
from ._executor_calls import Landed, call_by_path, resolve, stop
from ._in_flight import MAX_IN_FLIGHT, Flight, InFlightDispatcher
from ._limits import at_least_one
from ._task import Progress, progress_from_data
from .abc import Dispatcher

if find_spec("distributed") is None:
    raise ModuleNotFoundError(
        'trio_gokugen.dask needs Dask: pip install "trio_gokugen[dask]"'
    )

import distributed

DaskKey: TypeAlias = tuple[str, str, str]
"""What a run is called on the cluster: ours, which attempt of which task, which of all."""

__all__ = ["DaskDispatcher", "open_dask_dispatcher"]

NAME = "trio_gokugen"
WITHDRAWN = "withdrawn before it had begun"

LARGEST_GRAPH = 1_000_000
"""Characters of tasks that are sent at a time: Dask warns of graphs that are too large."""

LONGEST_LEAVE = 10.0
"""Seconds that the loop of a client may take to let go of a dispatcher."""

LONGEST_TELLING = 10.0
"""Seconds that the cluster may take to hear what is to be stopped."""

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 8.0
"""Seconds before the cluster is told again to stop what has not ended: it may have been on
its way to a worker."""


# -- on the cluster -----------------------------------------------------------------


def call_on_worker(text: str) -> Landed:
    """Run a work. All it needs is one text: Dask takes others for keys of its own."""
    mark, topic, path, task, spent = json.loads(text)
    worker = cast("Any", distributed.get_worker())  # works run in a context without it

    def tell(progress: Progress) -> None:
        worker.log_event(topic, [mark, progress.to_data()])

    return call_by_path(mark, path, task, spent, tell)


def stop_on_worker(marks: Iterable[str]) -> None:
    """Cancel async works that run here, and have none of the others begin."""
    for mark in marks:
        stop(mark)


def withdraw(marks: Iterable[str], client: str, dask_scheduler: Any) -> None:
    """On the scheduler: let go what no worker has been given."""
    given = frozenset(marks)
    waiting = [
        key
        for key, task in dask_scheduler.tasks.items()
        if _is_ours(key) and key[2] in given and task.state in _NOT_GIVEN
    ]
    dask_scheduler.stimulus_cancel(
        keys=waiting, client=client, force=False, reason=WITHDRAWN, msg=""
    )


_NOT_GIVEN = frozenset({"released", "waiting", "queued", "no-worker"})


def refuse() -> None:
    """Is called in place of a work that was called before."""
    raise WorkLostError("its worker has left the cluster")


class OneRun(distributed.SchedulerPlugin):
    """Has each task of ours be given to workers once, and no more."""

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self._scheduler: Any = None

    async def start(self, scheduler: Any) -> None:
        """Be on this scheduler from now on."""
        self._scheduler = scheduler

    def update_graph(self, scheduler: Any, *, tasks: Iterable[Any], **_: Any) -> None:
        """New tasks are here: the first worker that dies is one too many."""
        for key in filter(_is_ours, tasks):
            task = scheduler.tasks[key]
            task.suspicious = max(task.suspicious, scheduler.allowed_failures)

    def transition(self, key: Any, start: str, finish: str, *_: Any, **__: Any) -> None:
        """A worker has had a task: if it is given to another, that one calls nothing."""
        if start == "processing" and finish in {"memory", "released"} and _is_ours(key):
            task = self._scheduler.tasks[key]
            if task.run_spec is not None:
                task.run_spec = type(task.run_spec)(key, refuse)


def _is_ours(key: object) -> bool:
    return isinstance(key, tuple) and cast("tuple[object, ...]", key)[0] == NAME


# -- here ---------------------------------------------------------------------------


class OwnClient(distributed.Client):
    """A client that ends its loop with itself, however it ends.

    Dask's own keeps it, a thread and three files, if nobody has answered or the connection
    was lost for long: then it has closed itself, and to close it does nothing more.
    """

    def start(self, **options: Any) -> None:
        """Connect, or leave nothing behind."""
        try:
            cast("Any", super()).start(**options)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Close it, if it is not, and its loop, from any thread but the loop's."""
        try:
            # If the loop is too busy, it is left as it is.
            with suppress(TimeoutError):
                cast("Any", self).close(timeout=LONGEST_LEAVE)
        finally:
            self._loop_runner.stop()  # type: ignore[no-untyped-call]


class DaskDispatcher(InFlightDispatcher):
    """Runs works on a Dask cluster. Made by `open_dask_dispatcher`."""

    def __init__(
        self,
        works: str,
        client: Any,
        max_in_flight: int,
        reopen: Callable[[], Any] | None,
    ) -> None:
        super().__init__(works, max_in_flight)
        self._import_path = works
        self._reopen = reopen
        self._id = uuid.uuid4().hex
        self._launched = 0
        self._topic = f"{NAME}-progress-{self._id}"
        self.client: Any = client
        """Another one, once the connection was lost for long and could be made again."""

        self._guarded: str | None = None
        """The scheduler that is known to give no run to two workers."""

        self._waiting: deque[Flight] = deque()
        self._aloft_by_mark: dict[str, Flight] = {}
        """By what tells their keys apart from all others on the cluster."""

        self._stopping: set[str] = set()
        self._jobs: set[asyncio.Task[None]] = set()
        """On the client's loop."""

    # -- in Trio ----------------------------------------------------------------------

    def _free(self) -> int:
        return super()._free() if self._guarded is not None else 0

    async def _ready(self) -> None:
        """Wait until the cluster is there, if it is not, for as long as the client does."""
        while self._guarded is None:
            if self.client.status in _CLOSED:
                await self._connect_anew()
            try:
                await self._on_loop(self._guard)
            except OSError:
                # The connection was lost meanwhile, and the client has yet to notice.
                await trio.sleep(FIRST_PAUSE)
            except Exception:
                if self.client.status not in _CLOSED:
                    raise

    async def _connect_anew(self) -> None:
        if self._reopen is None:
            await trio.lowlevel.checkpoint()
            raise ExecutorLostError("the Dask client that it was given is closed")
        with autojump_held():
            await trio.to_thread.run_sync(self.client.end)
        self.client = await connected(self._reopen)

    async def _on_loop(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await a coroutine function of asyncio's on the client's loop."""
        token = trio.lowlevel.current_trio_token()
        ended = trio.Event()
        future = asyncio.run_coroutine_threadsafe(call(), self.client.loop.asyncio_loop)
        future.add_done_callback(lambda _: token.run_sync_soon(ended.set))
        try:
            with autojump_held():
                await ended.wait()
        finally:
            future.cancel()  # which calls back at once, if it has not
        future.result()

    def _launch(self, flight: Flight) -> None:
        if self.client.status in _CLOSED:
            self._guarded = None
            self._land(flight, Landed("refused"))
            return
        # A task that was deleted and added again may come to the same attempt again.
        self._launched += 1
        flight.handle = f"{self._id}-{self._launched}"
        self._waiting.append(flight)
        if len(self._waiting) == 1:  # else there is a call under way that takes all
            self.client.loop.add_callback(self._submit_waiting)

    def _stop(self, flight: Flight) -> None:
        if flight.handle is not None:
            self.client.loop.add_callback(self._stop_soon, flight.handle)

    async def wait_ready(self) -> None:
        """Return when the cluster is there, or raise an `ExecutorLostError`."""
        await self._ready()

    async def close(self) -> None:
        """Leave nothing of it on the client's loop, and wait until that has done so."""
        if self.client.status not in _CLOSED:
            # Not in the call that is waited for: that is cancelled if the loop is too busy.
            self.client.loop.add_callback(self._leave)
            await self._on_loop(self._left)

    # -- on the client's loop ---------------------------------------------------------

    def _is_connected(self) -> bool:
        client = self.client
        if client.status == "running":
            return bool(client.scheduler_info()["id"] == self._guarded)
        return False  # pragma: no cover: the connection broke in this very moment

    async def _guard(self) -> None:
        """Once connected, see to it that the scheduler gives no run to two workers."""
        while self.client.status not in {"running", *_CLOSED}:  # noqa: ASYNC110 (it tells nobody)
            await asyncio.sleep(FIRST_PAUSE / 10)
        if self.client.status in _CLOSED:
            return
        scheduler = self.client.scheduler_info()["id"]
        await self.client.register_plugin(OneRun())
        self.client.subscribe_topic(self._topic, self._hear)
        self._guarded = scheduler

    def _leave(self) -> None:
        for job in self._jobs:
            job.cancel()
        # Dask keeps the handler, and calls it with what is on its way.
        self.client.subscribe_topic(self._topic, _hear_nothing)
        self.client.unsubscribe_topic(self._topic)

    async def _left(self) -> None:
        await asyncio.gather(*self._jobs, return_exceptions=True)

    def _hear(self, event: tuple[float, Any]) -> None:
        mark, progress = event[1]
        if mark in self._aloft_by_mark:
            self._tell(self._aloft_by_mark[mark], progress_from_data(progress))

    def _begin(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    def _submit_waiting(self) -> None:
        while self._waiting:
            texts: list[str] = []
            flights: list[Flight] = []
            size = 0
            while self._waiting and size < LARGEST_GRAPH:
                flight = self._waiting.popleft()
                task = flight.run.to_json()
                path = self._import_path
                what = flight.handle, self._topic, path, task, flight.spent
                texts.append(json.dumps(what))
                flights.append(flight)
                size += len(texts[-1])
            self._aloft_by_mark.update((flight.handle, flight) for flight in flights)
            self._submit(texts, flights)

    def _submit(self, texts: Sequence[str], flights: Sequence[Flight]) -> None:
        if not self._is_connected():
            self._guarded = None
            for flight in flights:
                self._down(flight, Landed("refused"))
            return
        keys = [
            (NAME, f"{flight.run.id}-{flight.run.attempt}", flight.handle)
            for flight in flights
        ]
        try:
            futures = self.client.map(call_on_worker, texts, key=keys, pure=False)
        except Exception as error:  # noqa: BLE001 (it is the outcome)
            for flight in flights:
                self._down(flight, error)
            return
        self._begin(self._follow(dict(zip(keys, flights, strict=True)), futures))

    def _down(self, flight: Flight, landed: Landed | BaseException) -> None:
        del self._aloft_by_mark[flight.handle]
        self._land(flight, landed)

    async def _follow(self, flights: dict[DaskKey, Flight], futures: Any) -> None:
        """Take what becomes of runs, all that have ended at a time."""
        lost = WorkLostError("the Dask client was closed")
        try:
            ended = cast("Any", distributed.as_completed)(
                futures, loop=self.client.loop, raise_errors=False
            )
            del futures  # so that each is let go as soon as it has ended
            async for first in ended:
                await self._take([first, *ended.next_batch(block=False)], flights)
        except Exception as error:  # noqa: BLE001 (it is the outcome)
            # The connection broke, or the client was closed meanwhile, or it is a fault.
            lost = _not_fetched(error)
            # Before anybody hears of it, or they would run beside their retries. Once is
            # enough: what has not come to its worker yet goes with its future.
            await self._tell_to_stop([each.handle for each in flights.values()])
        finally:
            for flight in flights.values():
                each = WorkLostError(*lost.args)
                each.__cause__ = lost.__cause__
                self._down(flight, each)

    async def _take(self, batch: Sequence[Any], flights: dict[DaskKey, Flight]) -> None:
        values = await self._gather(batch)
        for number, future in enumerate(batch):
            landed = await self._landed_of(future, values.get(str(number)))
            self._down(flights.pop(future.key), landed)

    async def _gather(self, batch: Sequence[Any]) -> dict[str, Any]:
        ready = {str(n): each for n, each in enumerate(batch) if each.status == "finished"}
        if not ready:
            return {}
        try:
            gathered = self.client.gather(ready, errors="skip", asynchronous=True)
            return cast("dict[str, Any]", await gathered)
        except Exception:  # noqa: BLE001 (each is fetched by itself then, and may fail alone)
            return {}

    async def _landed_of(self, future: Any, value: Any) -> Landed | BaseException:
        if value is not None:
            return cast("Landed", value)
        try:
            return cast("Landed", await future.result())
        except Exception as error:  # noqa: BLE001 (it is the outcome)
            if future.status == "finished":
                return _not_fetched(error)
            # The client keeps the error, whose frames here would keep the future, and us.
            there = await future.traceback() if future.status == "error" else None
            return self._failed(error.with_traceback(there))

    def _failed(self, error: Exception) -> Landed | BaseException:
        """What it means for a run that Dask raises this in place of its outcome."""
        if isinstance(error, concurrent.futures.CancelledError):
            if getattr(error, "reason", None) == WITHDRAWN:
                return Landed("refused")
            self._guarded = None  # it is looked at before more is sent
            lost = WorkLostError(str(error))
            lost.__cause__ = error
            return lost
        if isinstance(error, distributed.KilledWorker):
            return WorkLostError(f"its worker died, {error.last_worker.address}")
        return error

    def _stop_soon(self, mark: str) -> None:
        self._stopping.add(mark)
        if len(self._stopping) == 1:
            self._begin(self._stop_all())

    async def _stop_all(self) -> None:
        """Tell the cluster what is to be stopped, until all of it has ended."""
        pause = FIRST_PAUSE
        known = 0
        try:
            while self._stopping:
                pause = min(2 * pause, LONGEST_PAUSE)
                if len(self._stopping) > known:
                    pause = FIRST_PAUSE
                known = len(self._stopping)
                await self._tell_to_stop(list(self._stopping))
                await asyncio.sleep(pause)
                self._stopping &= self._aloft_by_mark.keys()
        finally:
            # It may end with the loop: what is to be stopped next has another one begin.
            self._stopping.clear()

    async def _tell_to_stop(self, marks: Sequence[str]) -> None:
        client = self.client
        try:
            async with asyncio.timeout(LONGEST_TELLING):
                await client.run_on_scheduler(withdraw, marks, client.id)
                await client.run(stop_on_worker, marks, on_error="ignore")
        except (OSError, RuntimeError):
            return  # the connection is lost, or the client closed, and the runs with it


def _not_fetched(error: Exception) -> WorkLostError:
    """The outcome of a run whose own is on the cluster, and does not come."""
    lost = WorkLostError(
        f"its outcome could not be fetched, {type(error).__name__}: {error}"
    )
    lost.__cause__ = error
    return lost


def _hear_nothing(event: tuple[float, Any]) -> None:
    """In place of a dispatcher that has ended."""


_CLOSED = frozenset({"closing", "closed"})


async def connected(make: Callable[[], Any]) -> Any:
    """A client of a cluster, made in a thread, as it blocks."""
    try:
        with autojump_held():
            return await trio.to_thread.run_sync(make)
    except OSError as error:
        raise ExecutorLostError(f"the Dask cluster cannot be reached: {error}") from error


@asynccontextmanager
async def open_dask_dispatcher(
    address_or_client: Any,
    works: str,
    *,
    max_in_flight: int = MAX_IN_FLIGHT,
) -> AsyncGenerator[Dispatcher]:
    """A dispatcher whose works run on a Dask cluster.

    ::

        async with (
            open_dask_dispatcher("tcp://10.0.0.1:8786", "myapp.works:works") as dispatcher,
            open_scheduler(works, repository, dispatcher) as scheduler,
        ):
            ...

    Entering connects, and leaving ends the connection, unless it was given a client. Close
    that only after the block.

    Args:
      address_or_client: The address of the cluster's scheduler, or something of Dask's that
        has one, a `LocalCluster` for instance; or a `distributed.Client` that is not
        asynchronous.
      works: The import path of the registry, ``module:name``, which is imported here and on
        the workers.
      max_in_flight: How many runs may be on the cluster at a time, those that wait for a
        worker included.

    Raises:
      TypeError: works is no import path of a registry, or the client is asynchronous, or
        `max_in_flight` is no int.
      ValueError: works is a string, and no import path; or `max_in_flight` is below 1.
      ExecutorLostError: the cluster cannot be reached.
    """
    if not isinstance(works, str):
        raise TypeError(f"works: must be an import path, 'module:name', not {shown(works)}")
    resolve(works)  # before anything is connected
    at_least_one(max_in_flight, "max_in_flight")
    client, reopen = address_or_client, None
    if isinstance(client, distributed.Client):
        if cast("Any", client).asynchronous:
            raise TypeError("address_or_client: the client must not be asynchronous")
    else:
        reopen = partial(OwnClient, address_or_client, set_as_default=False)
        client = await connected(reopen)
    dispatcher = DaskDispatcher(works, client, max_in_flight, reopen)
    try:
        await dispatcher.wait_ready()
        yield dispatcher
    finally:
        with trio.move_on_after(LONGEST_LEAVE, shield=True):
            await dispatcher.close()
        if reopen is not None:
            with trio.CancelScope(shield=True), autojump_held():
                await trio.to_thread.run_sync(dispatcher.client.end)  # which has a limit
