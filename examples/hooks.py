"""Hooks: what a program sees of its scheduler, and how it outlives a store that is down.

The store is one in memory, which fails for a while because it is told to. The scheduler
waits for it to come back; no task is lost, and none runs twice.
"""

import logging
import sys
from collections.abc import Sequence

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
from trio_gokugen.testing import FaultyRepository

works = WorkRegistry()


@works.register
async def back_up(what: str) -> None:
    print(f"work:      backs up {what}, attempt {current_task().attempt}")


async def show_dispatch(task: Task) -> None:
    print(f"hook:      {task.param['what']} is {task.state.value}")


async def show_write_error(
    operations: Sequence[Operation], error: Exception, action: HookAction
) -> HookAction:
    names = ", ".join(type(operation).__name__ for operation in operations)
    print(f"hook:      {names} not written: {action.value}")
    return action  # as `BackoffHooks` has decided, which is asked first


async def show_end(task: Task) -> None:
    print(f"listener:  {task.param['what']} is {task.state.value}")


async def main() -> None:
    repository = FaultyRepository(HeapRepository())
    hooks = ChainHooks(
        BackoffHooks(initial=0.05, longest=0.2),
        PartialHooks(on_dispatch=show_dispatch, on_update_error=show_write_error),
    )
    async with open_scheduler(works, repository, hooks=hooks) as scheduler:
        scheduler.add_on_task_done(show_end)

        async def add_music() -> None:
            await scheduler.add_task("back_up", {"what": "music"}, after=0)
            print("caller:    music was added, at last")

        mail = await scheduler.add_task("back_up", {"what": "mail"}, after=0)
        await scheduler.add_task("back_up", {"what": "photos"}, after=0.5)
        await scheduler.wait(mail.id)
        await trio.sleep(0.1)

        print("--- the store is down: photos fall due, and a caller adds music ---")
        outage = repository.fail("apply", store_is_down, times=None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(add_music)
            await trio.sleep(0.8)
            print("--- the store is back ---")
            repository.heal(outage)

        await scheduler.drain()
        counts = scheduler.statistics()
    print(f"{counts.done} done, {counts.failed} failed, {counts.reverted} reverted")


def store_is_down() -> RepositoryError:
    return RepositoryError("the store is down")


class OneLine(logging.Formatter):
    """Leaves out the traceback."""

    def formatException(self, ei: object) -> str:  # noqa: ARG002, N802 (logging's)
        return ""


if __name__ == "__main__":
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(OneLine("log:       %(message)s"))
    logging.basicConfig(handlers=[handler])
    trio.run(main)
