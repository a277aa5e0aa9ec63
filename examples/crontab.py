"""What runs again and again is written in files: one in TOML, the other a crontab.

What their schedules will do is told by `python -m trio_gokugen plan schedules.toml`.
"""

import sys
from pathlib import Path

import trio

from trio_gokugen import (
    InvalidSchedulesError,
    WorkRegistry,
    load_schedules,
    open_scheduler,
)

HERE = Path(__file__).parent

works = WorkRegistry()


@works.register
async def back_up(to: str) -> None:
    print(f"backed up to {to}")


@works.register
async def send_bills() -> None:
    print("sent the bills")


@works.register
async def poll() -> None:
    print("looked around")


async def main() -> None:
    try:
        schedules = [
            *load_schedules(HERE / "schedules.toml"),
            *load_schedules(HERE / "schedules.crontab"),
        ]
    except InvalidSchedulesError as error:
        sys.exit(str(error))  # all that is wrong in the file, line by line
    async with open_scheduler(works) as scheduler:
        for schedule in await scheduler.add_schedules(schedules):
            print(f"{schedule.id}: {schedule.trigger.explain()}")
        task = await scheduler.trigger_schedule("weekly")
        await scheduler.wait(task.id)


if __name__ == "__main__":
    trio.run(main)
