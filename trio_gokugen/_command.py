"""What a command is: a program with its arguments, and what its end means."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import attrs

from ._command_template import Template, as_text, str_without_nul, template
from ._errors import (
    CommandFailedError,
    InvalidCommandError,
    InvalidTaskError,
    shown,
    wrong_names,
)
from ._json import JSON, a_value
from ._lengths import length
from ._program_sizes import find_excess
from ._retry import Discard, Retry
from ._run_command import Ended, Program, run_program

T = TypeVar("T")

LARGEST_LIMIT = 16 * 1024
"""Bytes of a stream that may be kept."""

LARGEST_RESULT = 60_000
"""Bytes of a result as JSON: those of a task may have a little more."""

_LARGEST_CODE = 2**32 - 1 if sys.platform == "win32" else 255

# Without this one, most programs do not start on Windows.
_ALWAYS = ("SYSTEMROOT",) if sys.platform == "win32" else ()


def _told(field: str, check: Callable[..., T], *values: object) -> T:
    """What a check of a task's fields gives, or the error that a command has."""
    try:
        return check(*values)
    except InvalidTaskError as error:
        raise InvalidCommandError(field, error.reason) from None


def _argv(value: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidCommandError(
            "argv",
            f"must be a list of arguments, which nothing splits, not {shown(value)}",
        )
    several = cast("Sequence[object]", value)
    if not several:
        raise InvalidCommandError("argv", "must have at least one item, the program")
    checked = tuple(
        str_without_nul(each, f"argv[{index}]") for index, each in enumerate(several)
    )
    if not checked[0]:
        raise InvalidCommandError("argv[0]", "must not be empty: it is the program")
    return checked


def _cwd(value: str | os.PathLike[str] | None) -> str | None:
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    checked = str_without_nul(path, "cwd")
    if not checked:
        raise InvalidCommandError("cwd", "must not be empty")
    return checked


def _env(value: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise InvalidCommandError(
            "env", f"must be names with their values, not {a_value(value)}"
        )
    # What is wrong here may be a secret, and is told without its text. So it is in stdin.
    return {
        _variable(name, "env"): str_without_nul(each, f"env.{name}")
        for name, each in cast("Mapping[object, object]", value).items()
    }


def _variable(name: object, field: str) -> str:
    checked = str_without_nul(name, field)
    if not checked or "=" in checked:
        raise InvalidCommandError(
            field,
            "has a name that cannot be that of a variable: it is empty, or has a '='",
        )
    return checked


def _inherit(value: Collection[str]) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Collection):
        raise InvalidCommandError(
            "inherit", f"must be a list of variables' names, not {a_value(value)}"
        )
    several = cast("Collection[object]", value)
    return tuple(_variable(each, "inherit") for each in several)


def _stdin(value: str | None) -> str | None:
    return None if value is None else str_without_nul(value, "stdin")


def _timeout(value: float | timedelta | None) -> float | None:
    if value is None:
        return None
    seconds = _told("timeout", length, value, "timeout").total_seconds()
    if not seconds:
        raise InvalidCommandError("timeout", "must be longer than 0 seconds")
    return seconds


def _grace(value: float | timedelta) -> float:
    return _told("grace", length, value, "grace").total_seconds()


def _retry(value: Retry | None) -> Retry | None:
    if value is not None and not isinstance(value, Retry):
        raise InvalidCommandError("retry", f"must be a Retry, not {shown(value)}")
    return value


def _at_most_once(value: bool) -> bool:  # noqa: FBT001 (a converter)
    return _bool(value, "at_most_once")


def _check_program(value: bool) -> bool:  # noqa: FBT001 (a converter)
    return _bool(value, "check_program")


def _bool(value: object, field: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidCommandError(field, f"must be a bool, not {shown(value)}")
    return value


def _output_limit(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidCommandError("output_limit", f"must be an int, not {shown(value)}")
    if not 0 <= value <= LARGEST_LIMIT:
        raise InvalidCommandError(
            "output_limit", f"must be from 0 to {LARGEST_LIMIT} bytes, not {shown(value)}"
        )
    return value


Code = int | str
"""An exit code, or the name of a signal."""


def _success(value: Collection[Code]) -> tuple[Code, ...]:
    return _codes(value, "success")


def _discard_on(value: Collection[Code]) -> tuple[Code, ...]:
    return _codes(value, "discard_on")


def _retry_on(value: Collection[Code] | None) -> tuple[Code, ...] | None:
    return None if value is None else _codes(value, "retry_on")


def _codes(value: Collection[Code], field: str) -> tuple[Code, ...]:
    if isinstance(value, str) or not isinstance(value, Collection):
        raise InvalidCommandError(
            field, f"must be a list, of exit codes and signals, not {shown(value)}"
        )
    return tuple(_code(each, field) for each in value)


def _code(value: object, field: str) -> Code:
    if isinstance(value, str) and value in signal.Signals.__members__:
        return signal.Signals[value].name
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and 0 <= cast("int", value) <= _LARGEST_CODE:
        return cast("int", value)
    raise InvalidCommandError(
        field,
        f"must be exit codes from 0 to {_LARGEST_CODE}, or names of signals such as"
        f" 'SIGTERM', not {shown(value)}",
    )


@attrs.frozen
class Command:
    """A program with its arguments, which tasks run.

    A ``{name}`` in `argv` or `stdin` is filled with the parameter of that name, and
    ``{{`` and ``}}`` are braces. What is filled in is not looked at again, and never split:
    with or without spaces, quotes or newlines, it stays within its one argument. Text is
    filled in as it is, and a number or a boolean as JSON has it. An argument that begins
    with a dash may look like an option to the program: where that takes it, write ``"--"``
    before what is filled.

    No shell is involved, unless it is the program that is named. Then do not fill its
    script, but give it arguments: ``["sh", "-c", 'ls "$1"', "sh", "{path}"]``.

    Raises:
      InvalidCommandError: names the argument that cannot be used.
    """

    argv: Sequence[str] = attrs.field(converter=_argv)
    """The program, and its arguments."""

    cwd: str | None = attrs.field(
        default=None,
        converter=_cwd,
        kw_only=True,
    )
    """The directory that it is started in; by default that of this process."""

    env: Mapping[str, str] = attrs.field(
        factory=dict[str, str], converter=_env, hash=False, kw_only=True, repr=False
    )
    """Its environment, beside what it inherits."""

    inherit: Collection[str] = attrs.field(
        default=("PATH",), converter=_inherit, kw_only=True
    )
    """The variables that it inherits from this process, if they are set: no others."""

    stdin: str | None = attrs.field(
        default=None, converter=_stdin, kw_only=True, repr=False
    )
    """What it can read, in UTF-8; nothing by default.

    Here a parameter may be anything: an object or a list is filled in as JSON, too.
    """

    timeout: float | None = attrs.field(
        default=None,
        converter=_timeout,
        kw_only=True,
    )
    """Seconds that one attempt may take; then it is stopped, and the task fails."""

    grace: float = attrs.field(
        default=10.0,
        converter=_grace,
        kw_only=True,
    )
    """Seconds from SIGTERM to SIGKILL, by a real clock, when it is stopped.

    On Windows there is none: it is killed at once, and what it has started lives on.
    """

    success: Collection[Code] = attrs.field(default=(0,), converter=_success, kw_only=True)
    """The exit codes, or names of signals that end it, which mean that it has succeeded."""

    discard_on: Collection[Code] = attrs.field(
        default=(), converter=_discard_on, kw_only=True
    )
    """Those that mean a failure which is final, whatever `retry` says."""

    retry_on: Collection[Code] | None = attrs.field(
        default=None, converter=_retry_on, kw_only=True
    )
    """Those that mean a failure which is worth another attempt, if `retry` says so.

    ``[75]`` for instance, `EX_TEMPFAIL`. By default all that are not named elsewhere; if
    some are named here, the rest are final.
    """

    retry: Retry | None = attrs.field(default=None, converter=_retry, kw_only=True)
    """Whether a task runs again if the command has failed, unless it has its own."""

    at_most_once: bool = attrs.field(default=False, converter=_at_most_once, kw_only=True)
    """What becomes of a task whose run is lost: by default it runs again, else it fails."""

    output_limit: int = attrs.field(default=4096, converter=_output_limit, kw_only=True)
    """Bytes that are kept of what it writes to stdout, and as many to stderr.

    Of more, the first half and the last is kept, and the rest counted. At most 16 KiB.
    """

    check_program: bool = attrs.field(default=True, converter=_check_program, kw_only=True)
    """Whether a task is refused if, where it is added, there is no such program, or the
    system takes no arguments that are so long.

    If false, that turns out only when it runs: for commands that run on another machine.
    """

    _arguments: tuple[Template, ...] = attrs.field(init=False, repr=False, eq=False)
    _input: Template | None = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        for fields in (
            ("success", "discard_on"),
            ("success", "retry_on"),
            ("discard_on", "retry_on"),
        ):
            one, other = (frozenset(getattr(self, field) or ()) for field in fields)
            for both in sorted(one & other, key=str):
                raise InvalidCommandError(
                    fields[1], f"has {both!r}, which is in {fields[0]}, too: choose one"
                )
        arguments = tuple(
            template(each, f"argv[{index}]") for index, each in enumerate(self.argv)
        )
        filled = None if self.stdin is None else template(self.stdin, "stdin")
        object.__setattr__(self, "_arguments", arguments)
        object.__setattr__(self, "_input", filled)

    def check_param(self, param: Mapping[str, JSON]) -> None:
        """Raise an `InvalidTaskError` unless the command can be run with that."""
        self.check_values(param)
        if self.check_program:
            argv = self._filled(param)
            self._check_found(argv[0])
            self._check_sizes(argv, param)

    def _filled(self, param: Mapping[str, JSON]) -> list[str]:
        return [each.fill(param) for each in self._arguments]

    def _check_found(self, program: str) -> None:
        field = "param" if self._arguments[0].names else "work_id"
        found = _found(program, self._environment(), self.cwd)
        if found is None:
            where = "" if _has_folder(program) else " on the command's PATH"
            hint = "; arguments are items of their own" if " " in program else ""
            raise InvalidTaskError(
                field,
                f"there is no program {shown(program)}{where}, or it may not be run{hint}",
            )
        if sys.platform == "win32" and found.lower().endswith(
            (".bat", ".cmd")
        ):  # pragma: no cover: only Windows gets here
            raise InvalidTaskError(field, f"{shown(found)} would be run by a shell")

    def _check_sizes(self, argv: Sequence[str], param: Mapping[str, JSON]) -> None:
        excess = find_excess(argv, self._environment())
        if excess is None:
            return
        places, reason = excess
        names = sorted({name for place in places for name in self._arguments[place].names})
        longest = max(names, key=lambda name: len(as_text(param[name])), default=None)
        field = "work_id" if longest is None else f"param.{longest}"
        raise InvalidTaskError(field, reason)

    def check_values(self, param: Mapping[str, JSON]) -> None:
        """Raise an `InvalidTaskError` unless the templates can be filled with that."""
        in_argv = frozenset[str]().union(*(each.names for each in self._arguments))
        in_stdin = frozenset[str]() if self._input is None else self._input.names
        missing = (in_argv | in_stdin) - param.keys()
        left_over = param.keys() - in_argv - in_stdin
        if missing or left_over:
            raise wrong_names(missing, left_over, "command")
        for name in in_argv:
            value = param[name]
            if not isinstance(value, str | int | float):
                raise InvalidTaskError(
                    f"param.{name}",
                    "must be text, a number or a boolean to be in an argument, not"
                    f" {shown(value)}",
                )
            if isinstance(value, str) and "\0" in value:
                raise InvalidTaskError(f"param.{name}", "must not contain a NUL character")

    async def run(self, param: Mapping[str, JSON]) -> dict[str, JSON]:
        """Run it, filled with that, and tell how it ended.

        Raises:
          CommandFailedError, Discard: it has ended, but not with success.
          InvalidTaskError: it cannot be filled with that.
          OSError: it could not be started.
        """
        self.check_values(param)
        program = Program(
            self._filled(param),
            self._environment(),
            self.cwd,
            None if self._input is None else self._input.fill(param),
            self.grace,
            self.output_limit,
        )
        ended = await self._ended(program)
        result = self._result(ended)
        code = _code_of(ended.returncode)
        if code in self.success:
            return result
        failed = CommandFailedError(**cast("dict[str, Any]", result))
        final = self.retry_on is not None and code not in self.retry_on
        if final or code in self.discard_on:
            raise Discard(f"{failed.ending}, which is final{failed.output}") from failed
        raise failed

    async def _ended(self, program: Program) -> Ended:
        try:
            return await run_program(program)
        except OSError as error:
            reason = self._reason(error, program)
            if reason is None:
                raise
            raise type(error)(error.errno, reason, error.filename) from None

    def _reason(self, error: OSError, program: Program) -> str | None:
        """Why it was not started, if the system does not tell by itself."""
        name = program.argv[0]
        # Of these two, it tells only by the name which one is not there.
        if error.filename == self.cwd and self.cwd not in {None, name}:
            return f"cwd: {error.strerror}"
        if error.errno == errno.ENOENT and _found(name, program.env, self.cwd):
            return "it is there, but not what is to run it, as a script's first line says"
        if error.errno == errno.ENOEXEC:
            return f"{error.strerror} (a script begins with #! and what is to run it)"
        return None

    def _environment(self) -> dict[str, str]:
        inherited = (*_ALWAYS, *self.inherit)
        found = {name: os.environ[name] for name in inherited if name in os.environ}
        return {**found, **self.env}

    def _result(self, ended: Ended) -> dict[str, JSON]:
        """How it ended, with as much output as can be kept."""
        code = _code_of(ended.returncode)
        limit = self.output_limit
        while True:
            stdout, stdout_dropped = ended.stdout.told(limit)
            stderr, stderr_dropped = ended.stderr.told(limit)
            result: dict[str, JSON] = {
                "exit_code": code if isinstance(code, int) else None,
                "signal": code if isinstance(code, str) else None,
                "stdout": stdout,
                "stdout_dropped": stdout_dropped,
                "stderr": stderr,
                "stderr_dropped": stderr_dropped,
            }
            # A byte that is no text may take six.
            if len(json.dumps(result, ensure_ascii=False).encode()) <= LARGEST_RESULT:
                return result
            limit //= 2


def _code_of(returncode: int) -> Code:
    if returncode >= 0:
        return returncode
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"  # a real-time one


def _has_folder(program: str) -> bool:
    return bool(os.path.dirname(program))  # noqa: PTH120 (of "./x" a Path has none)


def _found(program: str, env: Mapping[str, str], cwd: str | None) -> str | None:
    """The path of a program, looked for as it will be once it is started."""
    # A relative path is one from there, and so is a relative one within PATH.
    base = cwd or os.curdir
    if _has_folder(program):
        return shutil.which(_joined(base, program))
    folders = (_joined(base, each) for each in os.get_exec_path(dict(env)))
    return next(filter(None, (_found_in(each, program) for each in folders)), None)


def _found_in(folder: str, program: str) -> str | None:
    if os.pathsep in folder:  # it would be taken for several
        return shutil.which(_joined(folder, program))
    return shutil.which(program, path=folder)


def _joined(folder: str, path: str) -> str:
    # A `Path` would lose the slash at the end, by which what is a file is no program.
    return os.path.join(folder, path)  # noqa: PTH118
