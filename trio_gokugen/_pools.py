"""Pools of workers, side by side: what is slow in one does not keep the others waiting.

Each pool fetches for itself, by a filter that names its works, and only while it has a
worker free: so whatever waits for a full pool is not looked at.

    dispatch ─┬─▶ pool "mail"     waits for a worker, for its rate, for a task ──▶ claim
              ├─▶ pool "reports"  ...
              └─▶ pool "default"  whatever work no other pool has

A task runs in the pool that it names; if it names none, in that of its work.
"""

from __future__ import annotations

import contextvars
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import cast

import attrs
import trio

from ._errors import (
    PoolExistsError,
    PoolNotFoundError,
    SchedulerAlreadyRunningError,
    StopReason,
    shown,
)
from ._json import pool_name
from ._key_limits import KeyRoom
from ._pool import Pool, PoolStatistics, Rate
from ._registries import check_works
from ._task import Task
from ._worker_pool import WorkerPoolDispatcher
from .abc import (
    ANY_TASK,
    Clock,
    Dispatcher,
    DispatcherStatistics,
    Fetch,
    FetchErrors,
    Free,
    OfPools,
    PoolErrors,
    ResultChannel,
    Start,
    TaskFilter,
    TaskResult,
    WorkRegistry,
)

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 30.0
"""Seconds before a pool is asked again whose dispatcher has failed, once a hook says so."""

DEFAULT = "default"
"""The name of the pool for the works that no other pool has, which tasks cannot name."""


@attrs.define(eq=False)
class _Opening:
    """A dispatcher that is being started."""

    ended: trio.Event = attrs.field(factory=trio.Event)
    error: Exception | None = None


@attrs.define(eq=False)
class _Lane:
    """A pool, and what it has started of late."""

    dispatcher: Dispatcher
    name: str
    works: frozenset[str] | None
    rate: Rate | None
    rooms: tuple[KeyRoom, ...]
    paused: bool
    started: bool = False
    """Whether the dispatcher is open for business."""

    opening: _Opening | None = None

    failures: int = 0
    """How often in a row its dispatcher has failed."""

    waits_until: float = -math.inf
    """On Trio's clock: until then it leaves the others in peace, having failed.

    For ever, while it is not decided what that means.
    """

    only: TaskFilter = ANY_TASK
    known: frozenset[str] | None = None
    names: frozenset[str] = frozenset()
    """The registered works, and the pools that tasks can name, of which that was made."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Around its wait for whatever it waits for now."""

    starts: deque[float] = attrs.field(factory=deque[float])
    """When the last runs have started, on Trio's clock, as far as the rate counts them."""

    def room(self) -> int | None:
        """How many may start now; none if there is no limit."""
        if self.rate is None:
            return None
        now = trio.current_time()
        while self.starts and self.starts[0] + self.rate.per <= now:
            self.starts.popleft()
        return self.rate.limit - len(self.starts)

    async def wait_for_turn(self) -> None:
        """Return when its rate lets one start, and it has waited enough after a failure."""
        if self.waits_until > trio.current_time():
            await trio.sleep_until(self.waits_until)
        while self.room() == 0:
            assert self.rate is not None
            await trio.sleep_until(self.starts[0] + self.rate.per)

    def failed(self) -> None:
        """Its dispatcher has failed: leave it alone until `ask_again`."""
        self.failures += 1
        self.waits_until = math.inf

    def ask_again(self) -> None:
        """It may go on: after a pause, each time a longer one."""
        # Counted from now, however long that was being decided.
        pause = min(FIRST_PAUSE * 2.0 ** min(self.failures - 1, 100), LONGEST_PAUSE)
        self.waits_until = trio.current_time() + pause
        self.look_again()

    def start(self, run: Task, start: Start) -> None:
        """Start a run, and count it."""
        for room in self.rooms:
            room.begin(run)
        try:
            start(run)
        except BaseException:
            self.ended(run)
            raise
        if self.rate is not None:
            self.starts.append(trio.current_time())

    def ended(self, run: Task) -> None:
        """Count it no longer by its values."""
        for room in self.rooms:
            room.end(run)

    def look_again(self) -> None:
        """What it waits for may be something else now."""
        self.scope.cancel()


@attrs.define(eq=False)
class _Counted:
    """Passes on the results of a pool with limits, and counts what ends."""

    lane: _Lane
    results: ResultChannel

    def send_nowait(self, value: TaskResult, /) -> None:
        try:
            self.lane.ended(value.run)
        finally:
            self.results.send_nowait(value)


@attrs.define(eq=False)
class _Dispatching:
    """One call of `dispatch`: a nursery where each pool fetches for itself."""

    fetch: Fetch
    nursery: trio.Nursery

    context: contextvars.Context
    """That of the scheduler, whoever adds a pool."""

    failed: list[Callable[[], None]] = attrs.field(factory=list[Callable[[], None]])
    """What lets those pools go on that have failed, by errors of their own."""

    raised: list[Exception] = attrs.field(factory=list[Exception])
    """What `fetch` has raised: that was the store, for all of them."""

    async def fetch_for_one(
        self, free: Free, start: Start, only: TaskFilter = ANY_TASK
    ) -> int:
        """Fetch, and note what that raises."""
        try:
            return await self.fetch(free, start, only)
        except Exception as error:
            self.raised.append(error)
            raise

    def feed(
        self, feeding: Callable[[str, _Dispatching], Awaitable[None]], name: str
    ) -> None:
        """Have a pool fetch."""
        start_soon = partial(self.nursery.start_soon, name=f"pool {name!r}")
        self.context.copy().run(start_soon, feeding, name, self)


class PoolsDispatcher:
    """Runs works in several pools, each with workers of its own.

    A pool that is full, paused or bound by its rate keeps no other pool waiting, however
    many tasks wait for it. Works that no pool names run in the pool ``"default"``. A task
    may name another pool than that of its work.

    ::

        dispatcher = PoolsDispatcher(
            works,
            {
                "mail": Pool(5, works={"send_mail"}, rate=Rate(100, per=60)),
                "reports": Pool(2, works={"daily", "monthly"}),
            },
        )

    Args:
      works: What tasks can name.
      pools: The pools by name.
      default: The pool for all other works, or the number of its workers.

    Raises:
      PoolExistsError: two pools name the same work, or have the same name.
      TypeError, ValueError, InvalidTaskError: names the argument that cannot be used.
    """

    def __init__(
        self,
        works: WorkRegistry,
        pools: Mapping[str, Pool] | None = None,
        *,
        default: Pool | int = 10,
    ) -> None:
        check_works(works)
        self._works = works
        self._around: PoolsDispatcher | None = None
        """Whose pools this one is in."""

        self._lanes: dict[str, _Lane] = {}
        self._dispatching: _Dispatching | None = None
        self._serving = False
        self._failed_in: trio.Nursery | None = None
        """Where it serves, but not all pools could be opened."""

        self._token: trio.lowlevel.TrioToken | None = None
        if not isinstance(default, int | Pool) or isinstance(default, bool):
            raise TypeError(f"default: must be a Pool or a number, not {shown(default)}")
        pool = default if isinstance(default, Pool) else Pool(default)
        if pool.works:
            raise ValueError(
                "default: is for the works that no other pool has, and names none"
            )
        self._put(DEFAULT, pool, None)
        if pools is not None:
            if not isinstance(pools, Mapping):
                raise TypeError(f"pools: must be Pools by name, not {shown(pools)}")
            if DEFAULT in pools:
                raise ValueError(
                    f"pools: {DEFAULT!r} is the pool for all other works: use default="
                )
            for name, each in pools.items():
                self.add(name, each)

    # -- while it runs, or before -----------------------------------------------------

    @property
    def pools(self) -> Mapping[str, PoolStatistics]:
        """The pools by name, as they stand: to be read only, `add` adds one."""
        pools = {name: _statistics(lane) for name, lane in self._lanes.items()}
        return MappingProxyType(pools)

    def add(self, name: str, pool: Pool) -> None:
        """Add a pool. What is due for it starts at once.

        Its works are no longer run by the default pool, but for what runs there now, or
        is about to.

        Raises:
          PoolExistsError: there is one of this name, here or in the pools around it or
            beside it, or another pool names one of its works.
          TypeError, ValueError, InvalidTaskError: names what cannot be used.
        """
        pool_name(name, "pools")
        if not isinstance(pool, Pool):
            raise TypeError(f"pools: {name!r} must be a Pool, not {shown(pool)}")
        if name in self._lanes:
            raise PoolExistsError(name)
        for other, lane in self._lanes.items():
            if both := sorted(pool.works & (lane.works or frozenset())):
                raise PoolExistsError(other, both[0])
        self._put(name, pool, pool.works)
        self._lanes[DEFAULT].known = None
        self._lanes[DEFAULT].look_again()
        if self._dispatching is not None:
            self._dispatching.feed(self._feed, name)

    def resize(self, name: str, workers: int) -> None:
        """Have a pool of workers run so many at a time. What runs is not disturbed.

        Raises:
          PoolNotFoundError: there is none of this name.
          TypeError: it has a dispatcher of its own, which knows its size itself.
          ValueError: it is less than 1.
        """
        dispatcher = self._lane(name).dispatcher
        if not isinstance(dispatcher, WorkerPoolDispatcher):
            raise TypeError(
                f"pool: {name!r} has a dispatcher of its own, whose size is changed there"
            )
        dispatcher.max_workers = workers

    def pause(self, name: str) -> bool:
        """Start nothing more in a pool until it is resumed. What runs goes on.

        So does what has been claimed, and is about to start.

        Returns:
          Whether it was not paused before.

        Raises:
          PoolNotFoundError: there is none of this name.
        """
        return self._set_paused(name, paused=True)

    def resume(self, name: str) -> bool:
        """Let a pool that was paused start again what is due.

        Returns:
          Whether it was paused.

        Raises:
          PoolNotFoundError: there is none of this name.
        """
        return self._set_paused(name, paused=False)

    def _set_paused(self, name: str, *, paused: bool) -> bool:
        lane = self._lane(name)
        if lane.paused == paused:
            return False
        lane.paused = paused
        lane.look_again()
        return True

    def _lane(self, name: str) -> _Lane:
        try:
            return self._lanes[name]
        except KeyError:
            raise PoolNotFoundError(name) from None

    def _put(self, name: str, pool: Pool, works: frozenset[str] | None) -> None:
        workers = pool.workers
        if isinstance(workers, int):
            workers = WorkerPoolDispatcher(self._works, workers)
        elif any(lane.dispatcher is workers for lane in self._lanes.values()):
            raise ValueError(f"workers: the pool {name!r} must have its own dispatcher")
        elif isinstance(workers, PoolsDispatcher) and (pool.rate or pool.limits):
            # Its pools fetch side by side, and each would count for itself.
            raise ValueError(
                f"workers: the pool {name!r} has pools in it: set rate and limits on these"
            )
        rooms = tuple(KeyRoom(limit) for limit in pool.limits)
        lane = _Lane(workers, name, works, pool.rate, rooms, pool.paused)
        outermost = self
        while outermost._around is not None:
            outermost = outermost._around
        # A name is that of one pool: in another, its tasks would get round a pause.
        taken = {*self._all_names(outermost._lanes.values())}  # noqa: SLF001 (of our class)
        for each in self._all_names([lane]):
            if each in taken:
                raise PoolExistsError(each)
            taken.add(each)
        if isinstance(workers, PoolsDispatcher):
            workers._around = self  # noqa: SLF001
        self._lanes[name] = lane

    @staticmethod
    def _all_names(lanes: Iterable[_Lane]) -> Iterator[str]:
        """The names of pools and of those in them, however deep, but for the default."""
        for lane in lanes:
            if lane.works is not None:
                yield lane.name
            if isinstance(lane.dispatcher, PoolsDispatcher):
                inside = lane.dispatcher._lanes.values()  # noqa: SLF001 (likewise)
                yield from PoolsDispatcher._all_names(inside)
            else:
                yield from sorted(lane.dispatcher.statistics().pools)

    # -- what the scheduler calls -----------------------------------------------------

    async def start(
        self, nursery: trio.Nursery, results: ResultChannel, clock: Clock
    ) -> None:
        """Open every pool. If one of them fails, call it again for those that are left."""
        if not self._serving:
            await self._begin(nursery, results, clock)
        elif nursery is not self._failed_in:
            raise SchedulerAlreadyRunningError("dispatcher's scheduler")
        self._failed_in = None
        try:
            for lane in [*self._lanes.values()]:
                if not lane.started:
                    await self._open(lane)
        except Exception:
            self._failed_in = nursery  # whoever is told of it may call again
            raise

    async def _begin(
        self, nursery: trio.Nursery, results: ResultChannel, clock: Clock
    ) -> None:
        self._nursery, self._results, self._clock = nursery, results, clock
        self._context = contextvars.copy_context()
        token = trio.lowlevel.current_trio_token()
        for lane in self._lanes.values():
            lane.started = False
            lane.opening = None
            lane.failures = 0
            lane.waits_until = -math.inf
            if token is not self._token:
                lane.starts.clear()  # by a clock that is no more
        self._token = token
        await nursery.start(self._serve)

    async def _serve(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Belong to the scheduler until it ends."""
        self._serving = True
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            self._serving = False

    async def _open(self, lane: _Lane) -> None:
        results = _Counted(lane, self._results) if lane.rooms else self._results
        await lane.dispatcher.start(self._nursery, results, self._clock)
        lane.started = True

    async def _opened(self, lane: _Lane) -> None:
        """Return once it is open, which is done in a task of its own.

        If another pool fails meanwhile, who waits here is cancelled; a dispatcher that is
        cancelled as it starts may refuse to be started again.
        """
        opening = lane.opening
        if opening is None:
            lane.opening = opening = _Opening()
            self._nursery.start_soon(self._open_beside, lane, opening)
        await opening.ended.wait()
        lane.opening = None
        if opening.error is not None:
            raise opening.error

    @trio.lowlevel.enable_ki_protection
    async def _open_beside(self, lane: _Lane, opening: _Opening) -> None:
        try:
            await self._open(lane)
        except Exception as error:  # noqa: BLE001 (whoever waits raises it)
            opening.error = error
        finally:
            opening.ended.set()

    async def dispatch(self, fetch: Fetch) -> None:
        """Have each pool fetch when it has a worker free.

        With one pool only it returns when that has fetched. Several go on until they are
        cancelled, or some of them fail: who waits for a task, and who reads slowly, would
        have to begin anew whenever another has fetched.

        Raises:
          PoolErrors: dispatchers of pools have failed. These are left alone until it is
            decided what that means; the others go on if it is called again.
        """
        if len(self._lanes) == 1:
            await self._fetch_once(self._lanes[DEFAULT], fetch)
            return
        failed: list[Callable[[], None]] = []
        try:
            # In groups, whatever `trio.run` was told.
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                dispatching = _Dispatching(fetch, nursery, self._context, failed)
                self._dispatching = dispatching
                for name in self._lanes:
                    dispatching.feed(self._feed, name)
                try:
                    await trio.sleep_forever()
                finally:
                    self._dispatching = None  # a pool that is added now waits for the next
        except BaseExceptionGroup as group:
            errors = group.split(trio.Cancelled)[1]
            if not isinstance(errors, ExceptionGroup):
                raise
            # If we were cancelled, too, we shall be told so again.
            several = [*cast("ExceptionGroup[Exception]", errors).exceptions]

            def go_on() -> None:
                for each in failed:
                    each()

            if len(failed) == len(several):
                pool_errors = PoolErrors("pools have failed", several)
                pool_errors.go_on = go_on
                raise pool_errors from None
            go_on()
            if len(several) > 1:
                raise FetchErrors("several pools have failed", several) from None
            raise several[0] from several[0].__cause__

    @trio.lowlevel.enable_ki_protection
    async def _feed(self, name: str, dispatching: _Dispatching) -> None:
        """Let a pool fetch, again and again."""
        lane = self._lanes[name]
        try:
            while True:
                await self._fetch_once(lane, dispatching.fetch_for_one)
        except PoolErrors as errors:
            dispatching.failed.append(errors.go_on)  # it is of several, which go on
            raise
        except FetchErrors:
            raise
        except Exception as error:
            if not any(error is each for each in dispatching.raised):
                lane.failed()
                dispatching.failed.append(lane.ask_again)
            raise

    async def _fetch_once(self, lane: _Lane, fetch: Fetch) -> None:
        with trio.CancelScope() as lane.scope:
            if lane.paused:
                await trio.sleep_forever()
            await lane.wait_for_turn()
            if not lane.started:
                await self._opened(lane)
            await lane.dispatcher.dispatch(self._fetch_for(lane, fetch))
            lane.failures = 0

    def _fetch_for(self, lane: _Lane, fetch: Fetch) -> Fetch:
        """What its dispatcher fetches by: its works only, and within the rate."""

        async def fetch_some(free: Free, start: Start, only: TaskFilter = ANY_TASK) -> int:
            def free_within_rate() -> int:
                room = lane.room()
                return free() if room is None else min(free(), room)

            mine = self._filter_of(lane)
            only = mine if only is ANY_TASK else mine & only
            if lane.rate is None and not lane.rooms:
                number = await fetch(free, start, only)
            else:
                number = await fetch(
                    free_within_rate, partial(lane.start, start=start), only
                )
            if not number:
                # Somebody in front may have said so without having waited.
                await trio.lowlevel.checkpoint()
            return number

        return fetch_some

    def _filter_of(self, lane: _Lane) -> TaskFilter:
        names, known = _names(lane), self._works.work_ids
        if lane.known is known and lane.names == names:
            return lane.only
        lane.known, lane.names = known, names
        works = lane.works
        if works is None:
            named = [each.works for each in self._lanes.values() if each.works is not None]
            works = known.difference(*named) if named else None
        lane.only = TaskFilter(rooms=lane.rooms, pools=OfPools(names, works))
        return lane.only

    def cancel(self, run: Task, reason: StopReason) -> bool:
        """Cancel a running work, in whatever pool. Its result comes when it has ended."""
        return any(lane.dispatcher.cancel(run, reason) for lane in self._lanes.values())

    def statistics(self) -> DispatcherStatistics:
        """The workers of all pools, and what they run."""
        each = [lane.dispatcher.statistics() for lane in self._lanes.values()]
        pools = [_names(lane) for lane in self._lanes.values()]
        return DispatcherStatistics(
            sum(one.max_workers for one in each),
            sum(one.running for one in each),
            frozenset[str]().union(*pools),
        )


def _names(lane: _Lane) -> frozenset[str]:
    """The names by which tasks choose a pool: its own, or those of the pools in it."""
    inside = lane.dispatcher.statistics().pools
    has_pools = inside or isinstance(lane.dispatcher, PoolsDispatcher)
    return inside if has_pools or lane.works is None else frozenset({lane.name})


def _statistics(lane: _Lane) -> PoolStatistics:
    now = lane.dispatcher.statistics()
    return PoolStatistics(
        now.max_workers,
        now.running,
        lane.paused,
        lane.rate,
        lane.works,
        tuple(room.limit for room in lane.rooms),
    )
