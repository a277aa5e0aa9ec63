"""A small crontab replacement: commands, and when they run, in a TOML file.

    python examples/commands.py FILE

It runs what is in the file until Ctrl-C, or a SIGTERM. Without one, it takes
`commands.toml` beside it, and runs each of its schedules once, now.
"""

import re
import signal
import sys
from collections.abc import AsyncIterable, Sequence
from pathlib import Path

import trio

from trio_gokugen import (
    CommandRegistry,
    InvalidFileError,
    Schedule,
    SchedulesRefusedError,
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


async def stop_at(signals: AsyncIterable[int], scope: trio.CancelScope) -> None:
    """End in good order, as by Ctrl-C: else Python ends at once, and commands go on."""
    async for _ in signals:
        print("stopped")
        scope.cancel()


async def main(given: Path | None) -> str | None:
    """Run what is in the file. Gives all that is wrong in it, if anything is."""
    path = HERE / "commands.toml" if given is None else given
    commands = CommandRegistry()
    schedules: tuple[Schedule, ...] = ()
    wrong: set[tuple[int, str]] = set()
    try:
        commands = CommandRegistry(load_commands(path))
    except InvalidFileError as error:
        wrong.update(error.errors)
    try:
        schedules = load_schedules(path)
    except InvalidFileError as error:
        wrong.update(error.errors)
    if wrong:  # all that is, line by line
        return "\n".join(f"{path}, line {line}: {why}" for line, why in sorted(wrong))
    refused: str | None = None
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_at, signals, nursery.cancel_scope)
            refused = await run(commands, schedules, for_ever=given is not None)
            nursery.cancel_scope.cancel()
    return refused


async def run(
    commands: CommandRegistry, schedules: Sequence[Schedule], *, for_ever: bool
) -> str | None:
    async with open_scheduler(commands) as scheduler:
        try:
            added = await scheduler.add_schedules(schedules)
        except SchedulesRefusedError as error:
            return str(error)  # a command is not in the file, say, or its program not here
        for schedule in added:
            print(f"{schedule.id}: {schedule.trigger.explain()}")
        if for_ever:
            scheduler.add_on_task_done(tell)
            await trio.sleep_forever()
        for schedule in schedules:
            task = await scheduler.trigger_schedule(schedule.id)
            await tell(await scheduler.wait(task.id))
    return None


if __name__ == "__main__":
    wrong: str | None = None
    try:
        wrong = trio.run(main, Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    except* KeyboardInterrupt:
        print("stopped")
    sys.exit(wrong)
