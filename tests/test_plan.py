"""What is planned is what happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from support import NOON, noon, open_bench

from trio_gokugen import (
    At,
    Cron,
    Dropped,
    HeapRepository,
    Interval,
    InvalidTaskError,
    Late,
    PartialHooks,
    Plan,
    Schedule,
    Task,
    plan,
)
from trio_gokugen._schedule import PutSchedule

END = 300


def a_schedule(schedule_id: str, trigger: Any, **fields: Any) -> Schedule:
    return Schedule(
        id=schedule_id, trigger=trigger, work_id="note", created_at=NOON, **fields
    )


# -- as text --------------------------------------------------------------------------


def test_ids_do_not_steer_a_terminal() -> None:
    """
    Of an id that has more than one line, or is no text to print, a plan is a table still.
    """
    planned = plan([a_schedule("a\n\x1b[2J", Interval(60))], NOON, noon(61))
    lines = str(planned).splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("a\\n\\x1b[2J  2030-06-01 12:01:00+00:00")


def test_a_plan_is_a_table() -> None:
    """
    A plan tells of each occurrence when it starts, or why it does not.
    """
    schedules = [
        a_schedule("report", Interval(60)),
        a_schedule("poll", Interval(20), late=Late(window=30, run="all", limit=1)),
        a_schedule("shifted", At([noon(30)]), jitter=5),
        a_schedule("short", At([noon(100)]), deadline_after=10),
    ]
    planned = plan(schedules, NOON, noon(150), downtime=[(noon(70), noon(130))])
    assert str(planned) == (
        """\
schedule  nominal time               starts                            why
poll      2030-06-01 12:00:20+00:00  2030-06-01 12:00:20+00:00         runs: on time
shifted   2030-06-01 12:00:30+00:00  2030-06-01 12:00:33.719713+00:00  \
runs: shifted by 0:00:03.719713 of jitter
poll      2030-06-01 12:00:40+00:00  2030-06-01 12:00:40+00:00         runs: on time
poll      2030-06-01 12:01:00+00:00  2030-06-01 12:01:00+00:00         runs: on time
report    2030-06-01 12:01:00+00:00  2030-06-01 12:01:00+00:00         runs: on time
poll      2030-06-01 12:01:20+00:00  -                                 \
dropped: 0:00:50 late, more than 0:00:30
poll      2030-06-01 12:01:40+00:00  -                                 \
dropped: not one of the last 1
short     2030-06-01 12:01:40+00:00  -                                 \
dropped: DeadlineExceededError: the deadline 2030-06-01T12:01:50+00:00 has passed: the \
work was not started
poll      2030-06-01 12:02:00+00:00  2030-06-01 12:02:10+00:00         \
late: 0:00:10 late
report    2030-06-01 12:02:00+00:00  2030-06-01 12:02:10+00:00         \
late: 0:00:10 late
poll      2030-06-01 12:02:20+00:00  2030-06-01 12:02:20+00:00         runs: on time"""
    )


def test_what_is_merged() -> None:
    """
    Of several that have passed, those that do not run tell which one runs in their place.
    """
    [first, *_, last] = plan(
        [a_schedule("s", Interval(60))], NOON, noon(190), downtime=[(noon(1), noon(185))]
    )
    assert (first.outcome, first.runs_at) == ("merged", None)
    assert first.why == "that of 2030-06-01 12:03:00+00:00 is taken in its place"
    assert (last.outcome, last.runs_at, last.nominal_at) == ("late", noon(185), noon(180))


def test_an_empty_plan() -> None:
    """
    Where nothing runs, there is a heading only.
    """
    empty = plan([a_schedule("s", Cron("@yearly"))], NOON, noon(1))
    assert empty == ()
    assert str(empty) == "schedule  nominal time  starts  why"


def test_what_has_ended_has_no_plan() -> None:
    """
    A schedule whose moments are over, or that is paused, will do nothing.
    """
    over = a_schedule("s", At([noon(-1)]))
    assert plan([over], NOON, noon(100)) == ()
    too_late = a_schedule("s", At([noon(5)]), late=Late(run="none"))
    [dropped] = plan([too_late], NOON, noon(99), downtime=[(noon(1), noon(50))])
    assert (dropped.outcome, dropped.why) == ("dropped", "0:00:45 late, more than 0:00:01")
    paused = a_schedule("s", Interval(10), paused=True)
    assert plan([paused], NOON, noon(100)) == ()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (([1], NOON, NOON), "schedules"),
        ((5, NOON, NOON), "schedules"),
        (([], NOON, NOON, 5), "downtime"),
        (([], datetime(2030, 1, 1), NOON), "start"),
        (([], NOON, "later"), "end"),
        (([], NOON, NOON, [NOON]), "downtime"),
        (([], NOON, NOON, [(NOON, NOON, NOON)]), "downtime"),
        (([], NOON, NOON, [(NOON, 3)]), "downtime"),
        (([], NOON, NOON, [(noon(2), noon(1))]), "downtime"),
        (([], noon(1), NOON), "end"),
        (
            ([a_schedule("s", Interval(1)), a_schedule("s", Interval(2))], NOON, NOON),
            "schedules",
        ),
    ],
    ids=str,
)
def test_bad_input(arguments: Sequence[Any], field: str) -> None:
    """
    What cannot be planned is refused by name.
    """
    schedules, start, end, *downtime = arguments
    with pytest.raises(InvalidTaskError) as caught:
        plan(schedules, start, end, **({"downtime": downtime[0]} if downtime else {}))
    assert caught.value.field == field


# -- against a scheduler --------------------------------------------------------------

lates = st.builds(
    Late,
    window=st.one_of(st.none(), st.sampled_from([0, 0.5, 7, 60, 1000])),
    run=st.sampled_from(["latest", "earliest", "all", "none"]),
    limit=st.integers(1, 4),
)
triggers = st.one_of(
    st.builds(Interval, st.sampled_from([1.75, 7, 20, 90])),
    st.builds(Interval, st.just(13), anchor=st.just(noon(33.3))),
    st.sampled_from([Cron("* * * * *"), Cron("*/17 * * * * *")]),
    st.builds(
        At, st.lists(st.integers(1, END).map(noon), min_size=1, max_size=5, unique=True)
    ),
)
definitions = st.fixed_dictionaries(
    {
        "trigger": triggers,
        "late": lates,
        "jitter": st.sampled_from([0, 0.25, 5, 100]),
        "overlap": st.sampled_from(["skip", "queue", "allow", "replace"]),
        "deadline_after": st.sampled_from([None, None, 3, 50]),
    }
)
# At a moment when nothing is due, or it would be a race who comes first.
downtimes = st.lists(
    st.tuples(st.integers(0, END - 2), st.integers(1, 150)), max_size=3
).map(lambda pairs: [*_apart(sorted(pairs))])


def _apart(pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[float, float]]:
    free = 0.0
    for since, seconds in pairs:
        begins = max(since + 0.111, free)
        ends = begins + seconds
        if ends < END:
            yield begins, ends
            free = ends + 1


@attrs.define
class Seen:
    """What has happened."""

    runs: list[tuple[str, datetime | None, datetime | None]] = attrs.field(
        factory=list[Any]
    )
    dropped: list[Dropped] = attrs.field(factory=list[Dropped])

    async def on_dispatch(self, task: Task) -> None:
        self.runs.append((task.schedule_id or "", task.nominal_at, task.dispatched_at))

    async def on_dropped(self, dropped: Dropped) -> None:
        self.dropped.append(dropped)

    async def live(
        self, schedules: Sequence[Schedule], down: Sequence[tuple[float, float]]
    ) -> None:
        """Run a scheduler until the end, but for when it is down."""
        repository = HeapRepository()
        for schedule in schedules:
            await repository.change_schedule(PutSchedule(schedule, NOON))
        hooks = PartialHooks(on_dispatch=self.on_dispatch, on_dropped=self.on_dropped)
        for stop, start in [*down, (END - 0.001, 0.0)]:
            async with open_bench(repository, hooks=hooks, max_workers=1_000):
                await trio.sleep_until(stop)
            if start:
                await trio.sleep_until(start)


def expected_of(planned: Plan) -> tuple[list[Any], list[Any]]:
    """What runs, and what is dropped."""
    runs = [
        (each.schedule_id, each.nominal_at, each.runs_at)
        for each in planned
        if each.runs_at
    ]
    dropped = [
        (each.schedule_id, each.nominal_at)
        for each in planned
        if not each.runs_at and "Deadline" not in each.why
    ]
    return sorted(runs), sorted(dropped)


def each_of(schedules: Sequence[Schedule], dropped: Dropped) -> Iterator[Any]:
    """All that was dropped, one by one."""
    [schedule] = [each for each in schedules if each.id == dropped.schedule_id]
    nominal: datetime | None = dropped.first
    while nominal is not None and nominal <= dropped.last:
        yield schedule.id, nominal
        nominal = schedule.following(nominal)


@pytest.mark.uncovered
@settings(max_examples=60)
@given(st.lists(definitions, min_size=1, max_size=3), downtimes)
def test_a_scheduler_does_as_planned(
    given_: list[dict[str, Any]], down: list[tuple[float, float]]
) -> None:
    """
    A scheduler that is stopped and started again runs what the plan says, when it says
    so, and drops what it says.
    """
    schedules = [a_schedule(f"s{n}", **definition) for n, definition in enumerate(given_)]
    seen = Seen()
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(partial(seen.live, schedules, down), clock=clock)
    planned = plan(
        schedules,
        NOON,
        noon(END - 0.001),
        downtime=[(noon(since), noon(until)) for since, until in down],
    )
    runs, dropped = expected_of(planned)
    assert sorted(seen.runs, key=str) == sorted(runs, key=str)
    told = [each for what in seen.dropped for each in each_of(schedules, what)]
    assert sorted(told) == dropped
    assert sum(what.count for what in seen.dropped) == len(dropped)


# -- against an enumeration -----------------------------------------------------------


def enumerated(
    late: Late, passed: list[datetime], at: datetime, due: Any
) -> list[datetime]:
    """Which of those that have passed run, by looking at all of them."""
    tolerance = timedelta(seconds=1) if late.run == "none" else None
    tolerance = tolerance if late.window is None else late.window
    in_time = [n for n in passed if tolerance is None or at - due(n) <= tolerance]
    if late.run == "all":
        return in_time[-late.limit :]
    return in_time[:1] if late.run == "earliest" else in_time[-1:]


@pytest.mark.uncovered
@settings(max_examples=300)
@given(triggers, lates, st.sampled_from([0, 0.25, 5]), st.integers(1, 900))
def test_what_is_late_is_chosen_rightly(
    trigger: Any, late: Late, jitter: float, seconds: int
) -> None:
    """
    However many have passed, those run that a look at each of them would choose.
    """
    at = noon(seconds)
    schedule = a_schedule("s", trigger, late=late, jitter=jitter, overlap="allow")
    passed: list[datetime] = []
    nominal = trigger.next_after(NOON)
    while nominal is not None and schedule.due(nominal) <= at:
        passed.append(nominal)
        nominal = trigger.next_after(nominal)
    ran: list[datetime | None] = []

    async def claim() -> None:
        repository = HeapRepository()
        await repository.change_schedule(PutSchedule(schedule, NOON))
        claimed = await repository.claim(1_000, at)
        ran.extend(task.nominal_at for task in claimed.tasks)
        dropped = sum(each.count for each in claimed.dropped)
        assert dropped + len(claimed.tasks) == len(passed)
        assert (await repository.get_schedule("s")).next_at == nominal

    trio.run(claim)
    assert ran == enumerated(late, passed, at, schedule.due)


def test_a_plan_from_where_a_schedule_stands() -> None:
    """
    Of a schedule that has run, the plan goes on from there.
    """

    async def found() -> Schedule:
        repository = HeapRepository()
        schedule = a_schedule("s", Interval(60))
        await repository.change_schedule(PutSchedule(schedule, NOON))
        [run] = (await repository.claim(1, noon(60))).tasks
        assert plan([await repository.get_schedule("s")], noon(61), noon(121)) != ()
        await repository.mark_done(run, noon(61))
        return await repository.get_schedule("s")

    schedule = trio.run(found)
    moments = [each.runs_at for each in plan([schedule], noon(200), noon(241))]
    assert moments == [noon(200), noon(240)]


def test_a_plan_of_what_has_been_skipped() -> None:
    """
    What was skipped while a run went on is told with the next one.
    """

    async def found() -> Schedule:
        repository = HeapRepository()
        await repository.change_schedule(PutSchedule(a_schedule("s", Interval(60)), NOON))
        [run] = (await repository.claim(1, noon(60))).tasks
        await repository.mark_done(run, noon(150))
        return await repository.get_schedule("s")

    first, second = plan([trio.run(found)], noon(100), noon(200))
    assert (first.outcome, first.why) == ("dropped", "the one before ran still")
    assert (second.outcome, second.nominal_at) == ("runs", noon(180))
