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
import contextvars
import json
import logging
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

_logger = logging.getLogger("trio_gokugen.dask")

DaskKey: TypeAlias = tuple[str, str, str]
"""What a run is called on the cluster: ours, which attempt of which task, which of all."""

__all__ = ["DaskDispatcher", "open_dask_dispatcher"]

NAME = "trio_gokugen"
WITHDRAWN = "withdrawn before it had begun"
HAS_LEFT = "its worker has left the cluster"

LARGEST_GRAPH = 1_000_000
"""Characters of tasks that are sent at a time: Dask warns of graphs that are too large."""

LONGEST_LEAVE = 10.0
"""Seconds that the loop of a client may take to let go of a dispatcher."""

LONGEST_TELLING = 5.0
"""Seconds that the cluster may take to hear what is to be stopped."""

MOST_TRIES = 20
"""So often the cluster's scheduler is told what it is to do, if that fails and the client
does not say that the connection is lost."""

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
    """On the scheduler: let go what no worker has, and tell if one has had it."""
    given = frozenset(marks)
    found: dict[str, list[DaskKey]] = {WITHDRAWN: [], HAS_LEFT: []}
    for key, task in dask_scheduler.tasks.items():
        if _is_ours(key) and key[2] in given and task.state in _NOT_GIVEN:
            had = getattr(task.run_spec, "func", None) is refuse
            found[HAS_LEFT if had else WITHDRAWN].append(key)
    for reason, keys in found.items():
        if not keys:
            continue
        dask_scheduler.stimulus_cancel(
            keys=keys, client=client, force=False, reason=reason, msg=""
        )


_NOT_GIVEN = frozenset({"released", "waiting", "queued", "no-worker"})


def refuse() -> None:
    """Is called in place of a work that was called before."""
    raise WorkLostError(HAS_LEFT)


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
        # If the loop is too busy, it is left as it is, and ends once it goes on.
        with suppress(TimeoutError):
            try:
                cast("Any", self).close(timeout=LONGEST_LEAVE)
            finally:
                cast("Any", self._loop_runner).stop(LONGEST_LEAVE)

    def __del__(self) -> None:
        """Do nothing: Dask's own would close it, if its loop was too busy for that."""

    async def _reconnect(self) -> None:
        """Connect anew, or be closed. Dask's own may stumble, and be neither, for ever."""
        try:
            await super()._reconnect()
        except Exception:  # whatever it stumbles over, it would not try again
            _logger.warning("a Dask client cannot connect anew", exc_info=True)
            await self._close()


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

        self._guarded: tuple[str, Any] | None = None
        """The scheduler that is known to give no run to two workers, and the connection by
        which we hear from it."""

        self._waiting: deque[Flight] = deque()
        self._aloft_by_mark: dict[str, Flight] = {}
        """By what tells their keys apart from all others on the cluster."""

        self._stopping: set[str] = set()
        self._more_to_stop: asyncio.Event
        self._jobs: set[asyncio.Task[None]] = set()
        """On the client's loop."""

        self._has_failed = False
        """Whether the cluster was not to be reached when it was wanted last."""

        self._closed = False
        self._end: asyncio.Future[None]

    # -- in Trio ----------------------------------------------------------------------

    def _free(self) -> int:
        return super()._free() if self._guarded is not None else 0

    async def _ready(self) -> None:
        """Wait until the cluster is there, if it is not, for as long as the client does."""
        if self._has_failed:
            # It may fail at once each time, and a hook have it tried again each time.
            await trio.sleep(FIRST_PAUSE)
            self._has_failed = False
        try:
            await self._reach()
        except ExecutorLostError:
            self._has_failed = True
            raise

    async def _reach(self) -> None:
        tries, is_new = 0, False
        while self._guarded is None:
            if self._closed:
                await trio.lowlevel.checkpoint()
                raise ExecutorLostError("the block of its Dask dispatcher has ended")
            if _is_lost(self.client):
                if is_new:
                    raise ExecutorLostError("the Dask cluster was reached, and lost again")
                await self._connect_anew()
                is_new = True
                continue  # the block may have been left meanwhile
            try:
                await self._on_loop(partial(self._guard, FIRST_PAUSE if tries else 0.0))
            except Exception as error:
                tries += 1
                if _is_lost(self.client):
                    continue
                # If the connection was lost, the client may have yet to notice.
                if not isinstance(error, OSError) or tries == MOST_TRIES:
                    raise ExecutorLostError(
                        "Dask's scheduler does not take the plugin of trio_gokugen, which"
                        f" must be installed there, too: {type(error).__name__}: {error}"
                    ) from error

    async def _connect_anew(self) -> None:
        if self._reopen is None:
            await trio.lowlevel.checkpoint()
            raise ExecutorLostError(
                "the Dask client that it was given is closed, or cannot connect anew"
            )
        with autojump_held():
            await trio.to_thread.run_sync(self.client.end)
        client = await connected(self._reopen)
        if not self._closed:
            self.client = client
            return
        with trio.CancelScope(shield=True), autojump_held():
            await trio.to_thread.run_sync(client.end)  # as nobody else will

    async def _on_loop(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await a coroutine function of asyncio's on the client's loop."""
        token = trio.lowlevel.current_trio_token()
        ended = trio.Event()
        future = self._begin_there(call())
        future.add_done_callback(lambda _: token.run_sync_soon(ended.set))
        try:
            with autojump_held():
                await ended.wait()
        finally:
            future.cancel()  # which calls back at once, if it has not
        future.result()

    # Its loop has nothing of a scheduler's context, which it might keep for long.

    def _begin_there(
        self, job: Coroutine[Any, Any, None]
    ) -> concurrent.futures.Future[None]:
        begin = asyncio.run_coroutine_threadsafe
        return contextvars.Context().run(begin, job, self.client.loop.asyncio_loop)

    def _call_there(self, call: Callable[..., None], *args: object) -> None:
        contextvars.Context().run(self.client.loop.add_callback, call, *args)

    def _launch(self, flight: Flight) -> None:
        if self._closed or _is_lost(self.client):
            self._guarded = None
            self._land(flight, Landed("refused"))
            return
        # A task that was deleted and added again may come to the same attempt again.
        self._launched += 1
        flight.handle = f"{self._id}-{self._launched}"
        self._waiting.append(flight)
        if len(self._waiting) == 1:  # else there is a call under way that takes all
            self._call_there(self._submit_waiting)

    def _stop(self, flight: Flight) -> None:
        if flight.handle is not None:
            self._call_there(self._stop_soon, flight.handle)

    async def wait_ready(self) -> None:
        """Return when the cluster is there, or raise an `ExecutorLostError`."""
        await self._ready()

    async def close(self) -> None:
        """Leave nothing of it on the client's loop, and wait until that has done so.

        What still runs, as the scheduler goes on outside of the dispatcher's block, is
        stopped as far as can be, and lost.
        """
        self._closed = True
        self._guarded = None
        if _is_lost(self.client):
            return
        # Not in the call that is waited for: that is cancelled if the loop is too busy.
        self._call_there(self._leave)
        left = self._begin_there(self._left())
        # In a thread, as the limit is of real time.
        with autojump_held(), suppress(TimeoutError, concurrent.futures.CancelledError):
            await trio.to_thread.run_sync(left.result, LONGEST_LEAVE)
        left.cancel()

    # -- on the client's loop ---------------------------------------------------------

    def _is_connected(self) -> bool:
        client = self.client
        if client.status == "running":
            return self._guarded == (client.scheduler_info()["id"], client.scheduler_comm)
        return False  # pragma: no cover: the connection broke in this very moment

    async def _guard(self, pause: float) -> None:
        """Once connected, see to it that the scheduler gives no run to two workers."""
        client = self.client
        await asyncio.sleep(pause)
        if not await _is_there(client):
            return
        guarded = client.scheduler_info()["id"], client.scheduler_comm
        await client.register_plugin(OneRun())
        if self._closed:
            return  # the client is not to hear of it any more
        client.subscribe_topic(self._topic, self._hear)
        self._guarded = guarded

    def _leave(self) -> None:
        self._end = asyncio.ensure_future(self._stop_and_end())

    async def _stop_and_end(self) -> None:
        if self._aloft_by_mark:
            await self._tell_to_stop([*self._aloft_by_mark])
        jobs = [*self._jobs]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        if not _is_lost(self.client):
            # Dask keeps the handler, and calls it with what is on its way.
            self.client.subscribe_topic(self._topic, _hear_nothing)
            self.client.unsubscribe_topic(self._topic)

    async def _left(self) -> None:
        await asyncio.shield(self._end)

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
        pairs = zip(flights, futures, strict=True)
        self._begin(self._follow(dict(zip(keys, pairs, strict=True))))

    def _down(self, flight: Flight, landed: Landed | BaseException) -> None:
        del self._aloft_by_mark[flight.handle]
        self._land(flight, landed)

    async def _follow(self, aloft: dict[DaskKey, tuple[Flight, Any]]) -> None:
        """Take what becomes of runs, all that have ended at a time.

        Each future is let go as soon as it has ended.
        """
        lost = WorkLostError("the Dask client was closed, or the dispatcher's block left")
        try:
            futures = [future for _, future in aloft.values()]
            ended = cast("Any", distributed.as_completed)(
                futures, loop=self.client.loop, raise_errors=False
            )
            del futures
            async for first in ended:
                await self._take([first, *ended.next_batch(block=False)], aloft)
        except Exception as error:  # noqa: BLE001 (it is the outcome)
            # The connection broke, or the client was closed meanwhile, or it is a fault.
            lost = _not_fetched(error)
            for _, future in aloft.values():
                future.release()  # so that none begins
            # Before anybody hears of it, or they would run beside their retries.
            await self._tell_to_stop([key[2] for key in aloft])
        finally:
            for flight, _ in aloft.values():
                each = WorkLostError(*lost.args)
                each.__cause__ = lost.__cause__
                self._down(flight, each)

    async def _take(
        self, batch: Sequence[Any], aloft: dict[DaskKey, tuple[Flight, Any]]
    ) -> None:
        values = await self._gather(batch)
        cut: dict[DaskKey, Landed | BaseException] = {}
        for number, future in enumerate(batch):
            landed = await self._landed_of(future, values.get(str(number)))
            if _may_go_on(landed):
                cut[future.key] = landed
            else:
                self._down(aloft.pop(future.key)[0], landed)
        if cut:
            # Before anybody hears of it, as above.
            await self._tell_to_stop([key[2] for key in cut])
        for key, landed in cut.items():
            self._down(aloft.pop(key)[0], landed)

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
            reason = getattr(error, "reason", None)
            if reason == WITHDRAWN:
                return Landed("refused")
            if reason == HAS_LEFT:
                return WorkLostError(HAS_LEFT)
            self._guarded = None  # it is looked at before more is sent
            lost = WorkLostError(str(error))
            lost.__cause__ = error
            return lost
        if isinstance(error, distributed.KilledWorker):
            return WorkLostError(f"its worker died, {error.last_worker.address}")
        return error

    def _stop_soon(self, mark: str) -> None:
        if mark not in self._aloft_by_mark:
            return  # it has landed meanwhile
        self._stopping.add(mark)
        if len(self._stopping) == 1:
            self._more_to_stop = asyncio.Event()  # of the loop that it is now
            self._begin(self._stop_all())
        self._more_to_stop.set()

    async def _stop_all(self) -> None:
        """Tell the cluster what is to be stopped, until all of it has ended."""
        pause = FIRST_PAUSE
        try:
            while self._stopping:
                self._more_to_stop.clear()
                await self._tell_to_stop([*self._stopping])
                try:
                    async with asyncio.timeout(pause):
                        await self._more_to_stop.wait()
                    pause = FIRST_PAUSE
                except TimeoutError:
                    pause = min(2 * pause, LONGEST_PAUSE)
                self._stopping &= self._aloft_by_mark.keys()
        finally:
            # It may end with the loop: what is to be stopped next has another one begin.
            self._stopping.clear()

    async def _tell_to_stop(self, marks: Sequence[str]) -> None:
        client = self.client
        try:
            async with asyncio.timeout(LONGEST_TELLING):
                # What it hears from the scheduler as it connects anew, it may stumble over.
                if not await _is_there(client):
                    return
                await client.run_on_scheduler(withdraw, marks, client.id)
                await client.run(stop_on_worker, marks, on_error="ignore")
        except (OSError, RuntimeError):
            return  # the connection is lost, or the client closed
        except Exception:  # a fault over there must not keep others from being stopped
            _logger.exception("Dask's scheduler could not be told what is to be stopped")


def _may_go_on(landed: Landed | BaseException) -> bool:
    """Whether a run is lost that nobody has ended: the client has let go of it."""
    return isinstance(landed, WorkLostError) and isinstance(
        landed.__cause__, concurrent.futures.CancelledError
    )


def _not_fetched(error: Exception) -> WorkLostError:
    """The outcome of a run whose own is on the cluster, and does not come."""
    lost = WorkLostError(
        f"its outcome could not be fetched, {type(error).__name__}: {error}"
    )
    lost.__cause__ = error
    return lost


def _hear_nothing(event: tuple[float, Any]) -> None:
    """In place of a dispatcher that has ended."""


def _is_lost(client: Any) -> bool:
    """Whether a client is closed, or has failed as it was to connect anew."""
    # Dask's own leaves it at that then, and says no more than that it is connecting.
    hears = getattr(client, "_handle_report_task", None)
    return client.status in {"closing", "closed"} or (hears is not None and hears.done())


async def _is_there(client: Any) -> bool:
    """Wait until a client is connected, or lost: on its loop."""
    while client.status != "running" and not _is_lost(client):  # noqa: ASYNC110 (it tells nobody)
        await asyncio.sleep(FIRST_PAUSE / 10)
    return not _is_lost(client)


async def connected(make: Callable[[], Any]) -> Any:
    """A client of a cluster, made in a thread, as it blocks."""
    try:
        with autojump_held():
            return await trio.to_thread.run_sync(make)
    except (OSError, RuntimeError) as error:  # the latter of a cluster that is closed
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

    Entering connects, which is not cut short if it is cancelled, and leaving ends the
    connection, unless it was given a client. Close that only after the block.

    Args:
      address_or_client: The address of the cluster's scheduler, or something of Dask's that
        has one, a `LocalCluster` for instance; or a `distributed.Client` that is not
        asynchronous.
      works: The import path of the registry, ``module:name``, which is imported here and on
        the workers.
      max_in_flight: How many runs may be on the cluster at a time, those that wait for a
        worker included.

    Raises:
      TypeError: works is no import path of a registry, or there is no address, or the
        client is asynchronous, or `max_in_flight` is no int.
      ValueError: works is a string, and no import path; or the address cannot be one; or
        `max_in_flight` is below 1.
      ExecutorLostError: the cluster cannot be reached, or its scheduler cannot import this
        module.
    """
    if not isinstance(works, str):
        raise TypeError(f"works: must be an import path, 'module:name', not {shown(works)}")
    resolve(works)  # before anything is connected
    at_least_one(max_in_flight, "max_in_flight")
    client, reopen = address_or_client, None
    if client is None:  # by which Dask would understand a cluster of its own
        raise TypeError("address_or_client: must be an address, a cluster or a client")
    if isinstance(client, distributed.Client):
        if cast("Any", client).asynchronous:
            raise TypeError("address_or_client: the client must not be asynchronous")
    else:
        reopen = partial(OwnClient, address_or_client, set_as_default=False)
        try:
            client = await connected(reopen)
        except ValueError as error:
            raise ValueError(f"address_or_client: {error}") from error
        except TypeError as error:
            raise TypeError(f"address_or_client: {error}") from error
    dispatcher = DaskDispatcher(works, client, max_in_flight, reopen)
    try:
        await dispatcher.wait_ready()
        yield dispatcher
    finally:
        with trio.CancelScope(shield=True):
            try:
                await dispatcher.close()
            finally:
                if reopen is not None:
                    with autojump_held():
                        await trio.to_thread.run_sync(dispatcher.client.end)
