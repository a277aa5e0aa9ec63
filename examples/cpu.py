"""Work that needs a processor: in processes, beside a program that goes on meanwhile.

Run as a script, it takes a few seconds, and prints what happens. Needs the extra `process`.
"""

import os

import trio

from trio_gokugen import WorkerPoolDispatcher, WorkRegistry, open_scheduler

works = WorkRegistry()


# A plain function, found by its name in another process, which imports this file.
@works.register(process=True, retain=True, timeout=60)
def count_primes(below: int) -> int:
    return sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, below))


@works.register(process=True, timeout=0.5)
def never_end() -> None:
    while True:
        pass


@works.register(process=True)
def crash() -> None:
    os._exit(3)


async def main() -> None:
    dispatcher = WorkerPoolDispatcher(works, max_processes=2)
    async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
        for below in (1_000, 10_000, 100_000):
            await scheduler.add_task("count_primes", {"below": below}, after=0)
        # Its process is killed after half a second, and another takes its place.
        await scheduler.add_task("never_end", after=0)
        # A process that dies fails its own task, and nothing else.
        await scheduler.add_task("crash", after=0)
        await scheduler.drain()
        for task in await scheduler.find():
            how = task.err.splitlines()[0] if task.err else f"{task.result} found"
            print(f"{task.work_id} {dict(task.param)}: {how}")


# Each process imports this file, and must not run it.
if __name__ == "__main__":
    trio.run(main)
