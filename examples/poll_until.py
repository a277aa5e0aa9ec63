"""Poll until something is so, and only while it is worth it: conditions of schedules.

Run as a script, it takes a few seconds, and prints what is asked and done.
"""

import trio

from trio_gokugen import (
    Answer,
    Interval,
    Schedule,
    Snooze,
    Task,
    WorkRegistry,
    current_scheduler,
    open_scheduler,
)

works = WorkRegistry()
answers = ["not yet", "not yet", "here it is"]


@works.register(retain=True)
async def look_for_the_parcel() -> str:
    return answers.pop(0)


@works.condition
async def until_it_is_here(schedule: Schedule, last: Task | None) -> Answer:
    print(
        f"asked: last time it was {last.result!r}" if last else "asked for the first time"
    )
    if last is not None and last.result == "here it is":
        return Answer.STOP
    return Answer.RUN


@works.register
async def ring_the_bell() -> None:
    print("the bell rings")


@works.condition
async def once_there_is_a_parcel(schedule: Schedule, last: Task | None) -> Answer | Snooze:
    if last is not None:
        return Answer.STOP
    looking = await current_scheduler().get_schedule("parcel")
    return Answer.RUN if looking.paused else Snooze(0.2)


async def main() -> None:
    async with open_scheduler(works) as scheduler:
        await scheduler.add_schedule(
            "parcel", Interval(0.3), "look_for_the_parcel", when="until_it_is_here"
        )
        await scheduler.add_schedule(
            "bell", Interval(0.1), "ring_the_bell", when="once_there_is_a_parcel"
        )
        # Both schedules stop by themselves: nothing is left to do then.
        await scheduler.drain()
        for schedule in await scheduler.find_schedules():
            print(f"{schedule.id}: {'stopped' if schedule.paused else 'goes on'}")


if __name__ == "__main__":
    trio.run(main)
