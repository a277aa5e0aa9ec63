"""Work that fails now and then: tried again, snoozed, given up, never doubled.

Run as a script, it takes a few seconds, and prints what happens.
"""

import trio

from trio_gokugen import (
    Discard,
    PartialHooks,
    Retry,
    Snooze,
    Task,
    WorkRegistry,
    current_task,
    exponential,
    open_scheduler,
)
from trio_gokugen.abc import Operation, RetryTask

works = WorkRegistry()


@works.register(
    retry=Retry(4, wait=exponential(0.1), jitter=0.05, retry_on=OSError), retain=True
)
async def fetch(page: str) -> int:
    if page == "gone":
        raise Discard("there is no such page")
    if page == "tomorrow's":
        if current_task().attempt == 1:
            raise Snooze(0.3)
    elif current_task().attempt < 3:
        raise ConnectionError(f"no answer for {page}")
    return len(page)


async def tell(operation: Operation, task: Task) -> None:
    if isinstance(operation, RetryTask):
        why = task.errors[-1].err.splitlines()[0] if operation.err else "snoozed"
        print(f"{task.param['page']}: {why}, so again later")


async def main() -> None:
    async with open_scheduler(works, hooks=PartialHooks(on_update=tell)) as scheduler:
        for page in ("today's", "today's", "tomorrow's", "gone"):
            # Asked for twice, it is fetched once.
            await scheduler.add_task(
                "fetch", {"page": page}, after=0, key=page, if_exists="return"
            )
        await scheduler.drain()
        for task in await scheduler.find():
            how = task.err.splitlines()[0] if task.err else f"{task.result} letters"
            print(f"{task.param['page']}: {how}, after {task.attempt} attempts")


if __name__ == "__main__":
    trio.run(main)
