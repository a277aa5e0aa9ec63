"""The pending tasks of a `HeapStore`, in heaps.

There is a heap for each work, or for each pool and work if tasks name a pool, since whoever
asks for the next task names the works and pools that it is for, and must not have to look
through all others.

An entry is alive exactly while the store holds that very entry. Dead ones are left where
they are, until they reach the head or outnumber the living, and the heap is made anew (lazy
deletion).
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

from ._key_limits import KeyLimit, KeyRoom
from ._operations import TaskFilter
from ._task import Task

Entry: TypeAlias = tuple[datetime, int, int, int, Task]
"""When a task is due, its priority, less than nothing, its age, its version, and itself."""

_Lane: TypeAlias = tuple[KeyLimit, str]
"""A limit, and one of the values that it counts by."""

_FEW = 64
"""Heaps with fewer dead entries are not worth making anew."""


class Heap:
    """The pending tasks of one work and pool: at least one, or the heap is not kept.

    Those that were met while there was no room for more of their value are put aside, by
    this value: so nobody meets them again before there is room.
    """

    __slots__ = ("dead", "entries", "lanes", "living", "pool", "work_id")

    def __init__(self, pool: str | None, work_id: str) -> None:
        self.pool = pool
        self.work_id = work_id
        self.entries: list[Entry] = []
        self.lanes: dict[KeyLimit, dict[str, list[Entry]]] = {}
        """By limit and value, those put aside."""

        self.living = 0
        self.dead = 0
        """How many of all these entries are alive, and how many are not."""

    def lane_of(self, task: Task) -> list[Entry]:
        """The entries put aside by the task's value, or the others if there are none."""
        for limit, lanes in self.lanes.items():
            value = limit.value_of(task)
            if value is not None and value in lanes:
                return lanes[value]
        return self.entries

    def of(self, lane: _Lane) -> list[Entry]:
        """The entries put aside by a value."""
        limit, value = lane
        return self.lanes[limit][value]

    def put_aside(self, lane: _Lane, entry: Entry) -> None:
        """Add an entry to those of its value."""
        limit, value = lane
        heapq.heappush(self.lanes.setdefault(limit, {}).setdefault(value, []), entry)

    def drop_lane(self, lane: _Lane) -> None:
        """Forget a value of which none is left aside."""
        limit, value = lane
        del self.lanes[limit][value]
        if not self.lanes[limit]:
            del self.lanes[limit]

    def open_lanes(self, rooms: Sequence[KeyRoom]) -> list[_Lane | None]:
        """The values put aside by for which there may be room, and none for the others."""
        found: list[_Lane | None] = [None]
        for limit, lanes in self.lanes.items():
            full = {each for room in rooms if room.limit == limit for each in room.full()}
            found += [(limit, value) for value in lanes if value not in full]
        return found

    def renew(self, held: Mapping[str, Entry]) -> None:
        """Make all of it anew from the living, who stay aside if they were put there."""
        self.entries = _living(self.entries, held)
        for limit, lanes in [*self.lanes.items()]:
            for value, entries in [*lanes.items()]:
                lanes[value] = _living(entries, held)
                if not lanes[value]:
                    self.drop_lane((limit, value))
        self.dead = 0


def _living(entries: list[Entry], held: Mapping[str, Entry]) -> list[Entry]:
    living = [entry for entry in entries if held.get(entry[4].id) is entry]
    heapq.heapify(living)
    return living


Head: TypeAlias = tuple[Entry, Heap, _Lane | None]
"""An entry, its heap, and by which value it was put aside, if it was."""


class Heaps:
    """All of them. An iterable of those that there are.

    Args:
      held: By id, the entries that the store holds.
    """

    def __init__(self, held: Mapping[str, Entry]) -> None:
        self._held = held
        self._unnamed: dict[str, Heap] = {}
        """By work, those of tasks that name no pool."""

        self._named: dict[str, dict[str, Heap]] = {}
        """By pool and work, those of tasks that do."""

        self._left = 0
        """So many more may be put aside in this step."""

        self.cut_short = False
        """Whether there were more to be put aside, so that not all heads are known."""

        self._look_again = False
        """Whether the heads have changed since the last one was taken."""

    def __iter__(self) -> Iterator[Heap]:
        for heaps in (self._unnamed, *self._named.values()):
            yield from heaps.values()

    def put(self, entry: Entry) -> None:
        """Add the entry of a task that is pending now."""
        task = entry[4]
        heaps = self._unnamed
        if task.pool is not None:
            heaps = self._named.setdefault(task.pool, {})
        heap = heaps.get(task.work_id)
        if heap is None:
            heap = heaps[task.work_id] = Heap(task.pool, task.work_id)
        heap.living += 1
        heapq.heappush(heap.lane_of(task) if heap.lanes else heap.entries, entry)

    def bury(self, entry: Entry) -> None:
        """Count as dead an entry that has been replaced."""
        task = entry[4]
        heaps = self._unnamed if task.pool is None else self._named[task.pool]
        heap = heaps[task.work_id]
        heap.living -= 1
        heap.dead += 1
        if not heap.living:
            self._drop(heap)
        elif heap.dead > _FEW and heap.dead > heap.living:
            heap.renew(self._held)

    def _drop(self, heap: Heap) -> None:
        """Forget a heap in which no pending task is left."""
        if heap.pool is None:
            del self._unnamed[heap.work_id]
            return
        heaps = self._named[heap.pool]
        del heaps[heap.work_id]
        if not heaps:
            del self._named[heap.pool]

    # -- who goes first -----------------------------------------------------------------

    def look(self, only: TaskFilter, most: int) -> Entry | None:
        """The first entry that the filter accepts, once so many are put aside at most."""
        self._left, self.cut_short = most, False
        heads = self._heads(only)
        return heads[0][0] if heads else None

    def take(
        self, only: TaskFilter, at: datetime, most: int
    ) -> Generator[tuple[Entry, Heap]]:
        """Take off, one after the other, the entries that are due and that it accepts.

        Each with its heap. Before the next is asked for, it must be counted by the filter,
        and not be held any more. So many are put aside at most: it ends when there are
        more, for whoever looks next to put them aside. To be closed, if not all are taken.
        """
        self._left, self.cut_short = most, False
        heads = self._heads(only)
        rooms = only.rooms
        while heads:
            entry, heap, lane = heads[0]
            if entry[0] > at or self.cut_short:
                break
            # What was taken since may have filled it.
            if not rooms or only.accepts(entry[4]):
                heapq.heappop(heap.entries if lane is None else heap.of(lane))
                heap.living -= 1
                try:
                    yield entry, heap
                finally:
                    if not heap.living:
                        self._drop(heap)
            if self._look_again:
                heads = self._heads(only)
                continue
            following = self._first(heap, lane, only)
            if following is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (following, heap, lane))

    def look_again(self) -> None:
        """Say that, since the last one was taken, what is first may have changed."""
        self._look_again = True

    def _heads(self, only: TaskFilter) -> list[Head]:
        """The first entries that the filter accepts, as a heap.

        One of each heap, and of what was put aside in it by each value.
        """
        self._look_again = False
        heads: list[Head] = []
        for heap in self._of(only):
            for lane in heap.open_lanes(only.rooms) if heap.lanes else (None,):
                entry = self._first(heap, lane, only)
                if entry is not None:
                    heads.append((entry, heap, lane))
        heapq.heapify(heads)
        return heads

    def _of(self, only: TaskFilter) -> list[Heap]:
        """The heaps of the works and pools that a filter is for."""
        found = _of_works(self._unnamed, only.unnamed)
        if self._named:
            names = self._named.keys() if only.pools is None else only.pools.names
            for name in names:
                found += _of_works(self._named.get(name, {}), only.work_ids)
        return found

    def _first(self, heap: Heap, lane: _Lane | None, only: TaskFilter) -> Entry | None:
        """The first living entry for which there is room; others are put aside."""
        if lane is None:
            entries = heap.entries
        elif _is_full(lane, only):
            return None  # nor will it be before the end of a claim
        else:
            entries = heap.of(lane)
        held, rooms = self._held, only.rooms
        while entries:
            entry = entries[0]
            if held.get(entry[4].id) is not entry:
                heapq.heappop(entries)
                heap.dead -= 1
                continue
            full = _full_lane(entry[4], only) if rooms else None
            if full is None:
                return entry
            if not self._left:
                self.cut_short = True
                return None
            self._left -= 1
            heap.put_aside(full, heapq.heappop(entries))
        if lane is not None:
            heap.drop_lane(lane)
        return None


def _of_works(heaps: Mapping[str, Heap], work_ids: frozenset[str] | None) -> list[Heap]:
    if work_ids is None:
        return [*heaps.values()]
    return [heaps[each] for each in work_ids if each in heaps]


def _is_full(lane: _Lane, only: TaskFilter) -> bool:
    limit, value = lane
    return any(room.limit == limit and room.is_full(value) for room in only.rooms)


def _full_lane(task: Task, only: TaskFilter) -> _Lane | None:
    """The limit and the value by which the filter has no room for the task."""
    for room in only.rooms:
        value = room.limit.value_of(task)
        if value is not None and room.is_full(value):
            return room.limit, value
    return None
