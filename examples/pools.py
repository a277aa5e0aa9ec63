"""Pools: reports that take long, and mails that go out meanwhile.

    python examples/pools.py

Two reports are written at a time. Mails have workers of their own: at most four start in
any second, and of the same person at most one is under way.
"""

import trio

from trio_gokugen import (
    KeyLimit,
    Pool,
    PoolsDispatcher,
    Rate,
    WorkRegistry,
    current_task,
    open_scheduler,
)

works = WorkRegistry()


@works.register
async def report(month: str) -> None:
    say(f"report of {month}")
    await trio.sleep(1.5)


@works.register
async def mail(to: str) -> None:
    say(f"mail to {to}")
    await trio.sleep(0.4)


def say(what: str) -> None:
    task = current_task()
    assert task.dispatched_at is not None
    late = (task.dispatched_at - task.scheduled_at).total_seconds()
    print(f"{what:16} started {late:.1f} s after it was due", flush=True)


async def main() -> None:
    dispatcher = PoolsDispatcher(
        works,
        {
            "reports": Pool(2, works={"report"}),
            "mail": Pool(
                10, works={"mail"}, rate=Rate(4, per=1), limits=[KeyLimit(1, param="to")]
            ),
        },
    )
    async with open_scheduler(works, dispatcher=dispatcher) as scheduler:
        for n, month in enumerate(["May", "June", "July", "August"]):
            await scheduler.add_task("report", {"month": month}, id=f"r{n}", after=0)
        for n, to in enumerate(["ann", "ann", "bob", "cleo", "dan", "eve"]):
            await scheduler.add_task("mail", {"to": to}, id=f"m{n}", after=0.1)
        await scheduler.drain()


if __name__ == "__main__":
    trio.run(main)
