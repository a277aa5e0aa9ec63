"""Until a task is claimed, its cancel, update and postponement win; afterwards not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from support import Bench, TroubledRepository, at, noon, open_bench

from trio_gokugen import (
    AlreadyDispatchedError,
    HeapRepository,
    Scheduler,
    SchedulerNotRunningError,
    TaskState,
    TrioClock,
    WorkerPoolDispatcher,
    open_scheduler,
)
from trio_gokugen.abc import ClaimTasks, Operation, UpdateTask


async def test_changes_while_it_waits_for_a_worker(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A task that is due, and waits for a worker, can still be cancelled, changed,
    postponed and re-prioritised; one that is more urgent goes first.
    """
    async with open_bench(max_workers=1) as (scheduler, bench):
        await scheduler.add_tasks(
            [
                at(0, "plug", "sleep", param={"seconds": 100}),
                at(1, "cancelled"),
                at(2, "postponed"),
                at(3, "changed"),
                at(4, "early"),
                at(4, "urgent"),
            ]
        )
        await trio.sleep(50)
        assert await scheduler.cancel("cancelled")
        assert await scheduler.update("postponed", scheduled_at=noon(200))
        assert await scheduler.update("changed", work_id="sleep", param={"seconds": 1})
        assert await scheduler.update("urgent", priority=1)
        await scheduler.add_task("note", at=noon(0.5), id="newcomer")
        await scheduler.drain()

    assert bench.starts == [
        ("plug", 0.0),
        ("newcomer", 100.0),
        ("changed", 100.0),
        ("urgent", 101.0),
        ("early", 101.0),
        ("postponed", 200.0),
    ]


async def test_a_change_in_the_batch_of_the_claim(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Changes that are in the queue together with a claim are carried out in the order they
    came: before it they win, after it they are told that it is too late.
    """
    for before in (True, False):
        bench = Bench()
        repository = TroubledRepository()
        asked = trio.Event()
        go_on = trio.Event()
        answers: list[object] = []

        async def hold(
            operations: Sequence[Operation],
            repository: TroubledRepository = repository,
            asked: trio.Event = asked,
            go_on: trio.Event = go_on,
        ) -> None:
            repository.before_apply = None
            asked.set()
            await go_on.wait()

        async def cancel(answers: list[object] = answers) -> None:
            try:
                answers.append(await scheduler.cancel("a"))
            except AlreadyDispatchedError as error:
                answers.append(error)

        async with (
            open_scheduler(
                bench.works, repository, clock=TrioClock(noon(), 0)
            ) as scheduler,
            trio.open_nursery() as nursery,
        ):
            start = trio.current_time()
            await scheduler.add_tasks([at(start + 10, "a")])
            repository.before_apply = hold
            # Something occupies the loop while the claim and the cancel come in.
            nursery.start_soon(scheduler.delete_ended)
            await asked.wait()
            if before:
                nursery.start_soon(cancel)
                await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(10)  # due: the claim waits in the queue
            await trio.testing.wait_all_tasks_blocked()
            if not before:
                nursery.start_soon(cancel)
                await trio.testing.wait_all_tasks_blocked()
            go_on.set()
            await scheduler.drain()
        assert len(answers) == 1
        if before:
            assert answers == [True]
            assert bench.log == []
        else:
            assert isinstance(answers[0], AlreadyDispatchedError)
            assert bench.log == [("a", start + 10)]
        [batch] = [
            [type(operation) for operation in operations]
            for operations in repository.batches
            if len(operations) == 2
        ]
        assert ClaimTasks in batch


@pytest.mark.parametrize("seed", range(5))
async def test_cancels_race_with_claims(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """
    Of a thousand cancels that race with the claims of their tasks, each is answered, and
    no answer is contradicted by a run.
    """
    verdicts: dict[str, bool] = {}
    async with open_bench(max_workers=7) as (scheduler, bench):

        async def cancel(task_id: str, when: float) -> None:
            await trio.sleep_until(when)
            for _ in range(seed):
                await trio.lowlevel.checkpoint()
            try:
                verdicts[task_id] = await scheduler.cancel(task_id)
            except AlreadyDispatchedError:
                verdicts[task_id] = False

        await scheduler.add_tasks(
            [at(n // 20, str(n), "sleep", param={"seconds": 1}) for n in range(200)]
        )
        async with trio.open_nursery() as nursery:
            for n in range(200):
                nursery.start_soon(cancel, str(n), float(n // 20))
        await scheduler.drain()
        states = {task.id: task.state for task in await scheduler.find(limit=None)}

    ran = set(bench.ids())
    assert len(verdicts) == 200
    for task_id, cancelled in verdicts.items():
        assert cancelled is (task_id not in ran)
        assert states[task_id] is (TaskState.CANCELLED if cancelled else TaskState.DONE)


async def test_the_head_moves_while_it_is_slept_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    Whatever happens to the task slept on, the next to run is on time.
    """

    async def nothing(scheduler: Scheduler) -> None:
        pass

    changes: dict[
        str, tuple[Callable[[Scheduler], Awaitable[Any]], list[tuple[str, float]]]
    ]
    changes = {
        "postponed": (
            lambda s: s.update("head", scheduled_at=noon(30)),
            [("next", 20.0), ("head", 30.0)],
        ),
        "advanced": (
            lambda s: s.update("head", scheduled_at=noon(7)),
            [("head", 7.0), ("next", 20.0)],
        ),
        "cancelled": (lambda s: s.cancel("head"), [("next", 20.0)]),
        "lowered": (
            lambda s: s.update("head", priority=-5, scheduled_at=noon(20)),
            [("next", 20.0), ("head", 20.0)],
        ),
        "re-worked": (
            lambda s: s.update("head", work_id="sleep"),
            [("head", 10.0), ("next", 70.0)],
        ),
        "untouched": (nothing, [("head", 10.0), ("next", 20.0)]),
    }
    for change, expected in changes.values():
        bench = Bench()
        epoch_start = trio.current_time()
        async with open_scheduler(
            bench.works, HeapRepository(), max_workers=1, clock=TrioClock(noon())
        ) as scheduler:
            await scheduler.add_tasks([at(10, "head"), at(20, "next")])
            await trio.sleep(5)
            await change(scheduler)
            await scheduler.drain()
        starts = [(what, when - epoch_start) for what, when in bench.starts]
        assert starts == expected


async def test_after_the_queue_was_empty(autojump_clock: trio.testing.MockClock) -> None:
    """
    Tasks added after everything had run wake the timer as the first ones did.
    """
    async with open_bench() as (scheduler, bench):
        for n in range(5):
            await scheduler.add_task("note", after=10, id=str(n))
            await scheduler.drain()
            await trio.sleep(100)
    assert bench.log == [(str(n), n * 110 + 10.0) for n in range(5)]


async def test_an_update_of_many_fields_is_one_change(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    An update of several fields is one operation, so nobody sees half of it.
    """
    repository = TroubledRepository()
    async with open_bench(repository) as (scheduler, _):
        await scheduler.add_tasks([at(10, "a")])
        await scheduler.update("a", scheduled_at=noon(5), priority=2, meta={"x": 1})
        updates = [
            o for batch in repository.batches for o in batch if isinstance(o, UpdateTask)
        ]
    assert len(updates) == 1


async def test_one_batch_for_all_that_waits(autojump_clock: trio.testing.MockClock) -> None:
    """
    Requests and results that wait while a batch is written are written as one batch.
    """
    repository = TroubledRepository()

    async def slow(_: Sequence[Operation]) -> None:
        repository.before_apply = None
        await trio.sleep(1)

    async with open_bench(repository) as (scheduler, _), trio.open_nursery() as nursery:
        await scheduler.add_tasks([at(100 + n, str(n)) for n in range(50)])
        repository.before_apply = slow
        nursery.start_soon(scheduler.delete_ended)
        await trio.sleep(0.5)
        for n in range(50):
            nursery.start_soon(scheduler.cancel, str(n))
        await trio.sleep(1)
        assert [len(batch) for batch in repository.batches] == [1, 1, 50]


async def test_a_request_to_a_scheduler_that_stops_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """
    A request that is still in the queue when the scheduler is cancelled is refused.
    """
    repository = TroubledRepository()
    bench = Bench()
    scheduler = Scheduler(bench.works, repository, WorkerPoolDispatcher(bench.works))

    async def hang(_: Sequence[Operation]) -> None:
        repository.before_apply = None
        await trio.sleep_forever()

    async def refused() -> None:
        with pytest.raises(SchedulerNotRunningError):
            await scheduler.add_task("note", after=0)

    async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
        await nursery.start(scheduler.run)
        repository.before_apply = hang
        for _ in range(3):
            callers.start_soon(refused)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert repository.store.snapshot() == []
