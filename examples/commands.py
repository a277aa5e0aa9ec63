"""A small crontab replacement: commands, and when they run, in a TOML file.

    python examples/commands.py FILE

It runs what is in the file until Ctrl-C. Without one, it takes `commands.toml` beside it,
and runs each of its schedules once, now.
"""

import re
import sys
from pathlib import Path

import trio

from trio_gokugen import (
    CommandRegistry,
    InvalidFileError,
    Task,
    load_commands,
    load_schedules,
    open_scheduler,
)

HERE = Path(__file__).parent


async def tell(task: Task) -> None:
    """What cron would send as a mail."""
    print(f"{task.schedule_id} is {task.state.value}, at attempt {task.attempt}")
    if task.err is not None:
        # Without the traceback, or that of a group: one has exceeded its time.
        print(re.split(r"\n\n.*Traceback", task.err, maxsplit=1)[0])
    elif isinstance(task.result, dict):
        print(task.result["stdout"])


async def main(given: Path | None) -> None:
    path = HERE / "commands.toml" if given is None else given
    try:
        commands = CommandRegistry(load_commands(path))
        schedules = load_schedules(path)
    except InvalidFileError as error:
        sys.exit(str(error))  # all that is wrong in the file, line by line
    async with open_scheduler(commands) as scheduler:
        for schedule in await scheduler.add_schedules(schedules):
            print(f"{schedule.id}: {schedule.trigger.explain()}")
        if given is not None:
            scheduler.add_on_task_done(tell)
            await trio.sleep_forever()
        for schedule in schedules:
            task = await scheduler.trigger_schedule(schedule.id)
            await tell(await scheduler.wait(task.id))


if __name__ == "__main__":
    try:
        trio.run(main, Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    except* KeyboardInterrupt:
        print("stopped")
