"""Hooks: what a program sees of its scheduler, and how it outlives a store that is down.

The store here is one in memory that fails when it is told to. The scheduler waits for it
to come back, and no task is lost, nor run twice.
"""

import logging
from collections.abc import Sequence
from typing import Any

import outcome
import trio

from trio_gokugen import (
    BackoffHooks,
    ChainHooks,
    HeapRepository,
    HookAction,
    PartialHooks,
    RepositoryError,
    Task,
    WorkRegistry,
    current_task,
    open_scheduler,
)
from trio_gokugen.abc import Operation

works = WorkRegistry()


@works.register
async def back_up(what: str) -> None:
    print(f"work:     {what}, attempt {current_task().attempt}")


class FailingRepository(HeapRepository):
    """A store in memory that can be down."""

    down = False

    async def apply(
        self, operations: Sequence[Operation]
    ) -> Sequence[outcome.Outcome[Any]]:
        if self.down:
            raise RepositoryError("the store is down")
        return await super().apply(operations)


async def saw_dispatch(task: Task) -> None:
    print(f"hook:     {task.param['what']} is {task.state.value}")


async def saw_error(
    operations: Sequence[Operation], error: Exception, action: HookAction
) -> HookAction:
    names = ", ".join(type(operation).__name__ for operation in operations)
    print(f"hook:     {names} failed: {action.value}")
    return action  # leave it as decided by the hooks before


async def saw_end(task: Task) -> None:
    print(f"listener: {task.param['what']} is {task.state.value}")


async def main() -> None:
    hooks = ChainHooks(
        BackoffHooks(initial=0.05, longest=0.2),
        PartialHooks(on_dispatch=saw_dispatch, on_update_error=saw_error),
    )
    repository = FailingRepository()
    async with open_scheduler(works, repository, hooks=hooks) as scheduler:
        scheduler.add_on_task_done(saw_end)
        for number, what in enumerate(("mail", "photos", "music")):
            await scheduler.add_task("back_up", {"what": what}, after=number / 4)
        await trio.sleep(0.15)
        print("          -- the store goes down --")
        repository.down = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.cancel, "nothing")
        await trio.sleep(0.5)
        print("          -- the store is back --")
        repository.down = False
        await scheduler.drain()
    counts = scheduler.statistics()


if __name__ == "__main__":
    logging.basicConfig(format="log:      %(message)s")
    trio.run(main)
