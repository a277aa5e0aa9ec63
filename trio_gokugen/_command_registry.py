"""Names to commands, which tasks run as they run functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._command import Command
from ._command_data import command_from_data
from ._conditions import Condition
from ._errors import ConditionNotFoundError, InvalidCommandError
from ._json import JSON, a_value, name
from ._registered_works import RegisteredWorks
from .abc import Work


class CommandRegistry(RegisteredWorks):
    """The commands of a program, by name: registered as works, they are run as processes.

    A task's `param` fills the command's placeholders, and must have all of them, and no
    more. Its `result` tells how the command ended: ``exit_code``, or ``signal``; what it
    has written, ``stdout`` and ``stderr``; and how many bytes of that were not kept,
    ``stdout_dropped`` and ``stderr_dropped``.

    A command that is cancelled, by a timeout, a deadline, an interruption or a shutdown,
    gets a SIGTERM, together with all that it has started. After its `grace` it is killed.

    Registries are joined by ``|``, as in ``works | commands``.
    """

    def __init__(
        self, commands: Mapping[str, Command | Mapping[str, Any]] | None = None
    ) -> None:
        """Register commands.

        Args:
          commands: By name, as `register` takes them: those of a file, for instance, that
            `load_commands` has read.

        Raises:
          InvalidCommandError, InvalidTaskError: as `register`.
        """
        super().__init__()
        commands = {} if commands is None else commands
        if not isinstance(commands, Mapping):
            raise InvalidCommandError(
                "commands",
                "must be commands by name, as load_commands gives them, not"
                f" {a_value(commands)}",
            )
        for work_id, command in commands.items():
            self.register(work_id, command)

    def register(self, work_id: str, command: Command | Mapping[str, Any]) -> None:
        """Register a command.

        Args:
          work_id: The name that tasks use.
          command: It, or its fields by name. Of these, lengths of time may be text, as
            ``"1h30m"``; and `retry` a number of attempts, or a mapping: ``max_attempts``,
            ``jitter`` and ``wait``, which is a length of time or has ``first``, ``factor``
            and ``longest``.

        Raises:
          WorkExistsError: if the name is taken.
          InvalidCommandError: the command cannot be used.
          InvalidTaskError: the name cannot.
        """
        checked = name(work_id, "work_id")
        if not isinstance(command, Command):
            command = _from_mapping(checked, command)
        self._put(_work(checked, command))

    @property
    def condition_names(self) -> frozenset[str]:
        """None: commands bring no conditions."""
        return frozenset()

    def get_condition(self, name: str) -> Condition:
        """A `ConditionNotFoundError`: join it with a registry that has conditions."""
        raise ConditionNotFoundError(name)


def _from_mapping(work_id: str, data: Mapping[str, Any]) -> Command:
    if not isinstance(data, Mapping):
        raise InvalidCommandError(
            "command", f"must be a Command or a mapping, not {a_value(data)}", work_id
        )
    command, errors = command_from_data(data)
    if command is None:
        raise InvalidCommandError(*errors[0], work_id)
    return command


def _work(work_id: str, command: Command) -> Work:
    async def run(**param: JSON) -> dict[str, JSON]:
        return await command.run(param)

    return Work(
        work_id,
        run,
        timeout=command.timeout,
        at_most_once=command.at_most_once,
        retry=command.retry,
        retain=True,
        check_param=command.check_param,
    )
