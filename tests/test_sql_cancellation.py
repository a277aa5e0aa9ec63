"""Callers that are cancelled while their transaction is in its thread."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from faulty_driver import COMMIT, Fault, faulty
from support import at, open_bench

from trio_gokugen import Scheduler, Task, TaskState
from trio_gokugen.sql import open_sql_repository


@attrs.define
class Caller:
    """Somebody who calls a scheduler, and may be cancelled meanwhile."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    answered: bool = False

    async def call(self, function: Callable[[], Awaitable[object]]) -> None:
        with self.scope:
            await function()
            self.answered = True


def cancelling(caller: Caller) -> Callable[[Any, str, Callable[[], Any]], Any]:
    """What cancels a caller, and only then carries out the statement."""

    def cancel(connection: object, statement: str, do: Callable[[], Any]) -> Any:
        trio.from_thread.run_sync(caller.scope.cancel)
        return do()

    return cancel


def never(connection: object, statement: str, do: Callable[[], Any]) -> Any:
    raise AssertionError


CALLS: dict[str, Callable[[Scheduler], Awaitable[object]]] = {
    "add": lambda s: s.add_tasks([at(50, "new"), at(60, "newer")]),
    "cancel": lambda s: s.cancel("old"),
    "update": lambda s: s.update("old", priority=7),
    "update its work": lambda s: s.update("old", work_id="sleep", param={"seconds": 1}),
    "delete": lambda s: s.delete_ended(),
}


async def state(scheduler: Scheduler) -> list[Task]:
    return [attrs.evolve(task, cancelled_at=None) for task in await scheduler.find()]


@pytest.mark.uncovered
@pytest.mark.parametrize("name", CALLS)
async def test_a_caller_who_is_cancelled_at_any_statement(
    autojump_clock: trio.testing.MockClock, database_url: str, name: str
) -> None:
    """
    Whichever statement a caller is cancelled at, either it returns, and everything it
    asked for has happened, or nothing has.
    """
    call = CALLS[name]
    fault = Fault(0, never)
    with faulty(fault):
        async with (
            open_sql_repository(database_url, synchronous="off") as repository,
            open_bench(repository) as (scheduler, _),
        ):
            outcomes: set[bool] = set()
            for number in itertools.count(1):
                await repository.delete_ended()
                for task in await scheduler.find():
                    await scheduler.cancel(task.id)
                await repository.delete_ended()
                await scheduler.add_tasks([at(100, "old"), at(100, "ended")])
                await scheduler.cancel("ended")
                await trio.testing.wait_all_tasks_blocked()
                before = await state(scheduler)
                caller = Caller()
                fault.struck_at = None
                fault.strike = cancelling(caller)
                fault.number = fault.counted + number
                await caller.call(lambda: call(scheduler))
                struck = fault.struck_at is not None
                fault.number = 0
                if caller.answered:
                    assert await state(scheduler) != before
                else:
                    assert await state(scheduler) == before
                outcomes.add(caller.answered)
                if not struck:
                    break
            assert True in outcomes


@pytest.mark.parametrize("cancelled", range(3))
async def test_callers_who_share_a_commit(
    autojump_clock: trio.testing.MockClock, database_url: str, cancelled: int
) -> None:
    """
    Of callers whose changes are committed together, one who is cancelled meanwhile gets
    its answer as the others do; and all has happened.
    """
    fault = Fault(0, never, COMMIT.__eq__)
    callers = [Caller() for _ in range(3)]
    with faulty(fault):
        async with (
            open_sql_repository(database_url, synchronous="off") as repository,
            open_bench(repository) as (scheduler, bench),
        ):
            fault.strike = cancelling(callers[cancelled])
            fault.number = fault.counted + 1
            before = fault.counted
            async with trio.open_nursery() as nursery:
                for number, caller in enumerate(callers):
                    tasks = [at(number, f"{number}")]
                    nursery.start_soon(caller.call, lambda t=tasks: scheduler.add_tasks(t))
            assert fault.counted - before == 1
            assert [caller.answered for caller in callers] == [True, True, True]
            await scheduler.drain()
            assert bench.ids() == ["0", "1", "2"]


async def test_a_caller_who_is_cancelled_while_others_commit(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """
    A caller who is cancelled while the commit of others is under way, and its own change
    waits for the next, has changed nothing.
    """
    fault = Fault(0, never, COMMIT.__eq__)
    first, second, third = Caller(), Caller(), Caller()
    with faulty(fault):
        async with (
            open_sql_repository(f"sqlite:///{tmp_path}/tasks.db") as repository,
            open_bench(repository) as (scheduler, bench),
            trio.open_nursery() as nursery,
        ):

            async def ask_and_cancel() -> None:
                nursery.start_soon(second.call, lambda: scheduler.add_tasks([at(2, "b")]))
                nursery.start_soon(third.call, lambda: scheduler.add_tasks([at(3, "c")]))
                await trio.testing.wait_all_tasks_blocked()
                second.scope.cancel()

            def meanwhile(_: object, statement: str, do: Callable[[], Any]) -> Any:
                trio.from_thread.run(ask_and_cancel)
                return do()

            fault.strike, fault.number = meanwhile, fault.counted + 1
            await first.call(lambda: scheduler.add_tasks([at(1, "a")]))
            await scheduler.drain()
            assert (first.answered, second.answered, third.answered) == (True, False, True)
            assert bench.log == [("a", 1.0), ("c", 3.0)]
            assert [(t.id, t.state) for t in await scheduler.find()] == [
                ("a", TaskState.DONE),
                ("c", TaskState.DONE),
            ]
