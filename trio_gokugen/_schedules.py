"""What a program says to the scheduler about schedules."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import outcome

from ._arguments import check_limit, checked_id
from ._calls import Calls
from ._errors import (
    REFUSALS,
    ConditionNotFoundError,
    InvalidTaskError,
    NoSchedulesError,
    PoolNotFoundError,
    SchedulesRefusedError,
    WorkNotFoundError,
    shown,
)
from ._json import JSON
from ._schedule import (
    After,
    ChangeSchedule,
    FoundSchedules,
    Late,
    Overlap,
    PauseSchedule,
    PutSchedule,
    RemoveSchedule,
    ResumeSchedule,
    Schedule,
    ScheduleChanged,
    ScheduleUpdate,
    TriggerSchedule,
    UpdateSchedule,
)
from ._task import UNCHANGED, Maybe, Task
from ._trigger import Trigger
from .abc import OnSchedule


class Schedules(Calls):
    """The part of a `Scheduler` that is about schedules. Each method is a checkpoint."""

    async def add_schedule(
        self,
        id: str,
        trigger: Trigger,
        work_id: str,
        param: Mapping[str, JSON] | None = None,
        *,
        priority: int = 0,
        meta: Mapping[str, JSON] | None = None,
        deadline_after: float | timedelta | None = None,
        jitter: float | timedelta = 0,
        late: Late | None = None,
        overlap: Overlap = "skip",
        after: After = "start",
        when: str | None = None,
        pool: str | None = None,
        paused: bool = False,
    ) -> Schedule:
        """Have a work run again and again.

        If there is a schedule of this id already, it is changed to be like this, or left
        alone if it is: so a program may say at every start what it wants. Its counters, and
        whether it is paused, stay. One that has stopped before its end goes on.

        Args:
          id: A name of your own.
          trigger: When: a `Cron`, an `Interval` or another trigger.
          work_id: Name of a registered work.
          param: Keyword arguments for the work, as a JSON object.
          priority: Of each occurrence, among tasks that are due at the same moment.
          meta: A JSON object of your own, which each occurrence has, too.
          deadline_after: Seconds after its time from which on an occurrence must not start,
            and is cancelled if running.
          jitter: Each occurrence starts by a part of these seconds later than the trigger
            says, the same part for the same occurrence, and before the next one.
          late: What becomes of occurrences whose time has passed; by default the latest of
            them runs, however late it is.
          overlap: What becomes of an occurrence that falls due while the one before runs:
            ``"skip"`` it; ``"queue"`` it, one at a time; ``"allow"`` it to run beside the
            other; or let it ``"replace"`` the other, which is cancelled.
          after: ``"end"``: an interval is counted from the end of each occurrence.
          when: Name of a registered condition, which is asked before an occurrence runs.
          pool: The pool occurrences run in, instead of the one that is for their work.
          paused: A new schedule does nothing before it is resumed.

        Returns:
          The schedule as it stands.

        Raises:
          InvalidTaskError, InvalidTriggerError: a value cannot be used; `field` names it.
          WorkNotFoundError, ConditionNotFoundError: no such one is registered.
          PoolNotFoundError: the dispatcher has no such pool.
          NoSchedulesError: the repository keeps none.
        """
        engine = self._running()
        if callable(work_id):
            raise InvalidTaskError(
                "work_id", "must be the name of a work, not the work itself"
            )
        if callable(when):
            raise InvalidTaskError(
                "when", "must be the name of a condition, not the condition itself"
            )
        schedule = Schedule(
            id=id,
            trigger=trigger,
            work_id=work_id,
            param={} if param is None else param,
            meta={} if meta is None else meta,
            priority=priority,
            deadline_after=deadline_after,
            jitter=jitter,
            late=Late() if late is None else late,
            overlap=overlap,
            after=after,
            when=when,
            pool=pool,
            paused=paused,
            created_at=engine.clock.now(),
        )
        self._check(schedule.work_id, schedule.param)
        self._check_condition(schedule.when)
        self._check_pools(schedule.pool)
        return _there(await self._say(lambda now: PutSchedule(schedule, now)))

    async def add_schedules(self, schedules: Iterable[Schedule]) -> list[Schedule]:
        """Have works run again and again: each as `add_schedule` does it, in one go.

        For what `load_schedules` gives, or schedules that you have made. What they say
        counts, and not how they stand. Each is checked before the first one is added, and
        if one is refused, none is added.

        All are written in one batch: a repository that fails half-way, `HeapRepository` or
        one in a database, has added none of them, and a program that is killed meanwhile
        has added all of them or none. It is safe to repeat.

        Returns:
          The schedules as they stand, in the same order.

        Raises:
          SchedulesRefusedError: a work is not registered, or does not take the param; an id
            is given twice. It names all that is refused, and all that is wrong with each.
            If it was the database that refused some, whose trigger it cannot keep, the
            others are there.
          InvalidTaskError: `schedules` are none.
          NoSchedulesError: the repository keeps none.
        """
        engine = self._running()
        wanted = _fresh(schedules, engine.clock.now())
        if refusals := tuple(self._refusals(wanted)):
            raise SchedulesRefusedError(refusals)
        outcomes = await engine.updates.queue.ask_all([_putting(each) for each in wanted])
        engine.dispatches.notice_new_works()
        return _added(wanted, outcomes)

    async def update_schedule(
        self,
        id: str,
        *,
        trigger: Maybe[Trigger] = UNCHANGED,
        work_id: Maybe[str] = UNCHANGED,
        param: Maybe[Mapping[str, JSON] | None] = UNCHANGED,
        priority: Maybe[int] = UNCHANGED,
        meta: Maybe[Mapping[str, JSON] | None] = UNCHANGED,
        deadline_after: Maybe[float | timedelta | None] = UNCHANGED,
        jitter: Maybe[float | timedelta] = UNCHANGED,
        late: Maybe[Late] = UNCHANGED,
        overlap: Maybe[Overlap] = UNCHANGED,
        after: Maybe[After] = UNCHANGED,
        when: Maybe[str | None] = UNCHANGED,
        pool: Maybe[str | None] = UNCHANGED,
    ) -> Schedule:
        """Change a schedule, and its next occurrence. What is not given stays.

        What runs goes on as it is.

        Raises:
          InvalidTaskError, InvalidTriggerError: a value cannot be used; `field` names it.
          WorkNotFoundError, ConditionNotFoundError: no such one is registered.
          PoolNotFoundError: the dispatcher has no such pool.
          ScheduleNotFoundError: there is no such schedule.
        """
        self._running()
        schedule_id = checked_id(id, "id")
        update = ScheduleUpdate(
            trigger=trigger,
            work_id=work_id,
            param=param,
            meta=meta,
            priority=priority,
            deadline_after=deadline_after,
            jitter=jitter,
            late=late,
            overlap=overlap,
            after=after,
            when=when,
            pool=pool,
        )

        def said(now: datetime) -> UpdateSchedule:
            return UpdateSchedule(schedule_id, update, now)

        # What is checked must still be so as it is written.
        async with self._turn("schedule", schedule_id) as end_turn:
            before = await self._repository.get_schedule(schedule_id)
            new = update.changed(before)
            if (new.work_id, new.param) != (before.work_id, before.param):
                self._check(new.work_id, new.param)
            if new.when != before.when:
                self._check_condition(new.when)
            if new.pool != before.pool:
                self._check_pools(new.pool)
            return _there(await self._say(said, end_turn))

    async def remove_schedule(self, id: str) -> bool:
        """Forget a schedule, and cancel its next occurrence. What runs goes on.

        Returns:
          Whether it was there.
        """
        schedule_id = checked_id(id, "id")
        change = await self._say(lambda now: RemoveSchedule(schedule_id, now))
        return change.changed

    async def pause_schedule(self, id: str) -> bool:
        """Let no occurrence run until it is resumed. What runs goes on.

        The next occurrence is cancelled as a task; its moment is kept.

        Returns:
          Whether this paused it: False if it was paused before.

        Raises:
          ScheduleNotFoundError: there is no such schedule.
        """
        schedule_id = checked_id(id, "id")
        return (await self._say(lambda now: PauseSchedule(schedule_id, now))).changed

    async def resume_schedule(self, id: str, *, catch_up: bool = False) -> bool:
        """Let a paused schedule run again.

        Args:
          id: Its name.
          catch_up: What fell into the pause is late, and `Schedule.late` says what becomes
            of it. Otherwise it is dropped, and the next moment from now on is next.

        Returns:
          Whether this resumed it: False if it was not paused.

        Raises:
          ScheduleNotFoundError: there is no such schedule.
        """
        schedule_id = checked_id(id, "id")
        if not isinstance(catch_up, bool):
            raise InvalidTaskError("catch_up", f"must be a bool, not {shown(catch_up)}")
        change = await self._say(lambda now: ResumeSchedule(schedule_id, now, catch_up))
        return change.changed

    async def trigger_schedule(self, id: str) -> Task:
        """Have the work of a schedule run now, whatever runs of it, and its plan unchanged.

        Returns:
          The task; it has no nominal time.

        Raises:
          ScheduleNotFoundError: there is no such schedule.
        """
        schedule_id = checked_id(id, "id")
        change = await self._say(lambda now: TriggerSchedule(schedule_id, now))
        assert change.made is not None
        return change.made

    async def get_schedule(self, id: str) -> Schedule:
        """The schedule as it stands, or a `ScheduleNotFoundError`."""
        self._running()
        return await self._repository.get_schedule(checked_id(id, "id"))

    async def find_schedules(
        self, *, limit: int | None = None, after: str | None = None
    ) -> FoundSchedules:
        """All schedules, by id; or a page of them.

        One that cannot be read spoils no other: it is not among them, and `unreadable` of
        what is returned tells why, by its id.

        Args:
          limit: At most so many; `None` for all of them.
          after: The id of the last schedule of the page before.
        """
        self._running()
        check_limit(limit)
        after = None if after is None else checked_id(after, "after")
        return await self._repository.find_schedules(limit, after)

    def _refusals(self, wanted: Iterable[Schedule]) -> Iterator[tuple[str, str]]:
        """The ids of schedules that cannot be added together, and all the reasons."""
        seen: set[str] = set()
        for schedule in wanted:
            reasons = ["id: is given twice"] if schedule.id in seen else []
            seen.add(schedule.id)
            for check in (
                functools.partial(self._check, schedule.work_id, schedule.param),
                functools.partial(self._check_condition, schedule.when),
                functools.partial(self._check_pools, schedule.pool),
            ):
                try:
                    check()
                except (
                    InvalidTaskError,
                    WorkNotFoundError,
                    ConditionNotFoundError,
                    PoolNotFoundError,
                ) as error:
                    reasons.append(str(error))
            if reasons:
                yield schedule.id, "; ".join(reasons)

    async def _say(
        self,
        make: Callable[[datetime], ChangeSchedule],
        laid_down: Callable[[], None] | None = None,
    ) -> ScheduleChanged:
        """Have a schedule changed."""
        engine = self._running()
        changed: ScheduleChanged = await engine.updates.queue.ask(
            lambda now: OnSchedule(make(now)), laid_down=laid_down
        )
        engine.dispatches.notice_new_works()
        return changed


def _fresh(schedules: Iterable[Schedule], now: datetime) -> list[Schedule]:
    """Schedules that say the same, and begin now."""
    if not isinstance(schedules, Iterable) or isinstance(schedules, str):
        raise InvalidTaskError(
            "schedules",
            f"must be Schedules, not {shown(schedules)}: load_schedules reads a file",
        )
    fresh: list[Schedule] = []
    for index, each in enumerate(schedules):
        if not isinstance(each, Schedule):
            field = f"schedules[{index}]"
            raise InvalidTaskError(field, f"must be a Schedule, not {shown(each)}")
        fresh.append(
            Schedule(id=each.id, paused=each.paused, created_at=now, **each.definition)
        )
    return fresh


def _putting(schedule: Schedule) -> Callable[[datetime], OnSchedule]:
    return lambda now: OnSchedule(PutSchedule(schedule, now))


def _added(
    wanted: Sequence[Schedule], outcomes: Sequence[outcome.Outcome[ScheduleChanged]]
) -> list[Schedule]:
    """The schedules as they stand, if none was refused."""
    added: list[Schedule] = []
    refusals: list[tuple[str, str]] = []
    for schedule, result in zip(wanted, outcomes, strict=True):
        if isinstance(result, outcome.Value):
            added.append(_there(result.value))
            continue
        assert isinstance(result, outcome.Error)
        if not isinstance(result.error, REFUSALS) or isinstance(
            result.error, NoSchedulesError
        ):
            raise result.error  # that of all of them
        refusals.append((schedule.id, str(result.error)))
    if refusals:
        raise SchedulesRefusedError(tuple(refusals), tuple(each.id for each in added))
    return added


def _there(changed: ScheduleChanged) -> Schedule:
    assert changed.schedule is not None
    return changed.schedule
