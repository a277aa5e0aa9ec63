"""Works that run again and again, told so at every start of the program.

Run as a script, it stays for some seconds, and prints what runs.
"""

import trio

from trio_gokugen import (
    Cron,
    Dropped,
    Interval,
    Late,
    PartialHooks,
    WorkRegistry,
    current_task,
    open_scheduler,
)

works = WorkRegistry()


@works.register
async def report(to: str) -> None:
    task = current_task()
    meant = task.nominal_at or task.scheduled_at
    print(f"the report of {meant:%A} goes to {to}")


@works.register
async def poll(every: str) -> None:
    print(f"polled, as {every}")
    await trio.sleep(0.25)


async def tell(dropped: Dropped) -> None:
    print(f"{dropped.count} of {dropped.schedule_id} left out: {dropped.reason}")


async def main() -> None:
    hooks = PartialHooks(on_dropped=tell)
    async with open_scheduler(works, hooks=hooks) as scheduler:
        # At nine on working days, by the clocks of Berlin: half an hour late will do.
        await scheduler.add_schedule(
            "report",
            Cron("0 9 * * MON-FRI", "Europe/Berlin"),
            "report",
            {"to": "everybody"},
            late=Late(window=1800),
        )
        # It takes longer than it may: each second time is left out.
        await scheduler.add_schedule("often", Interval(0.2), "poll", {"every": "0.2 s"})
        # So long after the end of the one before.
        await scheduler.add_schedule(
            "calm", Interval(0.2), "poll", {"every": "0.2 s after the end"}, after="end"
        )
        await trio.sleep(1.5)
        # Or there would always be something left to do, and `drain` would not return.
        for schedule in await scheduler.find_schedules():
            await scheduler.pause_schedule(schedule.id)
        await scheduler.trigger_schedule("report")
        await scheduler.drain()
        for schedule in await scheduler.find_schedules():
            print(f"{schedule.id}: {schedule.trigger.explain()}")


if __name__ == "__main__":
    trio.run(main)
