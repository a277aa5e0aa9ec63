"""Programs as works: what they are given, what they give back, and how they are stopped."""

from __future__ import annotations

import errno
import functools
import gc
import itertools
import json
import logging
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import (
    Callable,
    Generator,
    Mapping,
    Sequence,
)
from datetime import timedelta
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from leftovers import nothing_left
from processes import IGNORE, WAIT, Shop, hear, result_of, run_one, stop_all
from support import NOON, stored
from trio.testing import MockClock

from trio_gokugen import (
    Command,
    CommandFailedError,
    CommandRegistry,
    ConditionNotFoundError,
    Discard,
    HeapRepository,
    Interval,
    InvalidCommandError,
    InvalidCommandsError,
    InvalidTaskError,
    Retry,
    Schedule,
    TaskState,
    TrioClock,
    WorkExistsError,
    WorkNotFoundError,
    autojump_held,
    exponential,
    fixed,
    load_commands,
    load_schedules,
    open_scheduler,
)
from trio_gokugen import _process_session as process_session
from trio_gokugen import _run_command as run_command
from trio_gokugen import _session_watcher as session_watcher
from trio_gokugen._command import LARGEST_LIMIT
from trio_gokugen._results import LONGEST_RESULT
from trio_gokugen._run_command import Output

ECHO = "import json, sys; print(json.dumps(sys.argv[1:]))"
COPY = "import json, sys; print(json.dumps(sys.stdin.buffer.read().decode()))"
ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"
EXIT = "import sys; sys.exit(int(sys.argv[1]))"
NAMES = "abcdefgh"


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Shop]:
    shop = Shop(tmp_path)
    with nothing_left(tmp_path / "temporary", monkeypatch), shop.leaving_nothing():
        yield shop


def stdout_of(task: Any) -> Any:
    """What a program has printed as JSON."""
    return json.loads(result_of(task)["stdout"])


# -- what it is given -----------------------------------------------------------------


async def test_the_result_tells_how_it_ended(autojump_clock: MockClock, shop: Shop) -> None:
    """
    The result of a command has its exit code, what it has written, and how much of that
    was dropped.
    """
    command = shop.python("import sys; print('out'); print('err', file=sys.stderr)")
    assert result_of(await run_one(command)) == {
        "exit_code": 0,
        "signal": None,
        "stdout": "out\n",
        "stdout_dropped": 0,
        "stderr": "err\n",
        "stderr_dropped": 0,
    }


def model(pieces: list[str | tuple[str]], values: Mapping[str, str]) -> tuple[str, str]:
    """A template of literal text and names, and what it is once it is filled."""
    written = [
        each.replace("{", "{{").replace("}", "}}")
        if isinstance(each, str)
        else f"{{{each[0]}}}"
        for each in pieces
    ]
    return "".join(written), "".join(
        each if isinstance(each, str) else values[each[0]] for each in pieces
    )


argument_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20
)
hostile_text = st.sampled_from(
    ["", " ", "{a}", "{{", "}", "{b", "'", '"', "a b", "-rf", "--", "\n", "$(id)", "; id"]
)
values = st.fixed_dictionaries(dict.fromkeys(NAMES, argument_text | hostile_text))
pieces = st.lists(
    argument_text | hostile_text | st.sampled_from(NAMES).map(lambda name: (name,)),
    max_size=4,
)


@pytest.mark.uncovered
@settings(max_examples=40)
@given(st.lists(pieces, max_size=8), values, pieces)
def test_whatever_is_filled_in_ends_as_one_argument(
    tmp_path_factory: pytest.TempPathFactory,
    templates: list[list[str | tuple[str]]],
    filled: dict[str, str],
    stdin: list[str | tuple[str]],
) -> None:
    """
    A program has as many arguments as its template, and in each of them, and in stdin, the
    values are to the letter, whatever they are.
    """
    shop = Shop(tmp_path_factory.mktemp("shop"))
    arguments = [model(each, filled) for each in templates]
    written, expected = model(stdin, filled)
    command = shop.python(
        "import json, sys\n"
        "print(json.dumps([sys.argv[1:], sys.stdin.buffer.read().decode()]))",
        *(template for template, _ in arguments),
        stdin=written,
        output_limit=LARGEST_LIMIT,
    )
    used = {
        each[0] for part in (*templates, stdin) for each in part if isinstance(each, tuple)
    }
    param = {name: value for name, value in filled.items() if name in used}

    async def main() -> Any:
        return stdout_of(await run_one(command, param))

    with shop.leaving_nothing():
        seen = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert seen == [[text for _, text in arguments], expected]


@pytest.mark.parametrize(
    ("value", "argument"),
    [
        ("plain", "plain"),
        (12, "12"),
        (-0.5, "-0.5"),
        (1e22, "1e+22"),
        (True, "true"),
        (False, "false"),
        (2**63 - 1, "9223372036854775807"),
        ("null", "null"),
    ],
)
async def test_numbers_and_booleans_are_json(
    autojump_clock: MockClock, shop: Shop, value: Any, argument: str
) -> None:
    """
    A number or a boolean stands in an argument as JSON writes it, and text as it is.
    """
    command = shop.python(ECHO, "{a}", "<{a}{a}>")
    ended = await run_one(command, {"a": value})
    assert stdout_of(ended) == [argument, f"<{argument}{argument}>"]


async def test_braces_are_written_twice(autojump_clock: MockClock, shop: Shop) -> None:
    """
    Two braces are one, and what is filled in is not looked at again.
    """
    command = shop.python(ECHO, "{{a}}", "{{{a}}}", "}}{{")
    assert stdout_of(await run_one(command, {"a": "{a}{{"})) == [
        "{a}",
        "{{a}{{}",
        "}{",
    ]


async def test_without_stdin_there_is_nothing_to_read(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    A program that reads comes to the end at once, unless it is given something.
    """
    assert stdout_of(await run_one(shop.python(COPY))) == ""
    assert stdout_of(await run_one(shop.python(COPY, stdin=""))) == ""


async def test_stdin_takes_any_value(autojump_clock: MockClock, shop: Shop) -> None:
    """
    What is read is a template, too: text in UTF-8, and any other value as JSON.
    """
    command = shop.python(COPY, stdin='{{"of": {who}, "is": {what}}}\n{text}')
    what = {"list": [1, None, True], "größe": "5 µ"}
    ended = await run_one(command, {"who": 7, "what": what, "text": "ünd\n'so'"})
    first, _, rest = stdout_of(ended).partition("\n")
    assert json.loads(first) == {"of": 7, "is": what}
    assert "größe" in first
    assert rest == "ünd\n'so'"


async def test_much_is_read(autojump_clock: MockClock, shop: Shop) -> None:
    """
    What a program is given may be larger than a pipe, while it writes as much.
    """
    command = shop.python(
        "import sys\n"
        "while data := sys.stdin.buffer.read(65536):\n"
        "    sys.stdout.buffer.write(data)",
        stdin="{text}",
    )
    result = result_of(await run_one(command, {"text": "x" * 3_000_000}))
    assert result["stdout_dropped"] == 3_000_000 - 4096


async def test_the_environment_is_what_was_said(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A program sees the variables it is given and those that it inherits by name, of which
    some may not be set, and no other.
    """
    monkeypatch.setenv("GOKUGEN_SECRET", "s3cret")
    monkeypatch.setenv("GOKUGEN_COLOUR", "red")
    monkeypatch.setenv("GOKUGEN_SHAPE", "round")
    monkeypatch.delenv("GOKUGEN_UNSET", raising=False)
    command = shop.python(
        ENVIRONMENT,
        env={"GOKUGEN_COLOUR": "blue", "GOKUGEN_EMPTY": "", "GOKUGEN_BRACES": "{a} $HOME"},
        inherit=["GOKUGEN_COLOUR", "GOKUGEN_SHAPE", "GOKUGEN_UNSET"],
    )
    seen = stdout_of(await run_one(command))
    seen.pop("LC_CTYPE", None)  # Python's own, where there is none
    assert seen == {
        "GOKUGEN_COLOUR": "blue",
        "GOKUGEN_SHAPE": "round",
        "GOKUGEN_EMPTY": "",
        "GOKUGEN_BRACES": "{a} $HOME",
        "GOKUGEN_TEST": shop.token,
    }
    command = shop.python(ENVIRONMENT)
    assert stdout_of(await run_one(command))["PATH"] == os.environ["PATH"]
    monkeypatch.setenv("PATH", f"/nowhere:{os.environ['PATH']}")
    assert stdout_of(await run_one(command))["PATH"].startswith("/nowhere:")


async def test_it_runs_where_it_is_to(
    autojump_clock: MockClock, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A program runs in its `cwd`; without one, where this process is by then.
    """
    folder = tmp_path / "{braces} are themselves"
    folder.mkdir()
    source = "import json, os; print(json.dumps(os.getcwd()))"
    assert stdout_of(await run_one(shop.python(source, cwd=folder))) == str(folder)
    command = shop.python(source)
    monkeypatch.chdir(folder)
    assert stdout_of(await run_one(command)) == str(folder)


async def test_it_has_a_session_of_its_own(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A command leads a session and a process group: no Ctrl-C of our terminal reaches it.
    """
    source = (
        "import json, os; print(json.dumps([os.getpid(), os.getpgid(0), os.getsid(0)]))"
    )
    pid, group, session = stdout_of(await run_one(shop.python(source)))
    assert pid == group == session


# -- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "field", "reason"),
    [
        ("ls -l", "argv", "must be a list of arguments, which nothing splits, not 'ls -l'"),
        ([], "argv", "must have at least one item, the program"),
        ([""], "argv[0]", "must not be empty: it is the program"),
        (["ls", 1], "argv[1]", "must be a string, not a value of type int"),
        (["ls", "a\0b"], "argv[1]", "must not contain a NUL character"),
        (["ls", "\ud800"], "argv[1]", "has a lone surrogate at position 0"),
        (["ls", "{"], "argv[1]", "has a single { at position 0"),
        (["ls", "a}b"], "argv[1]", "has a single } at position 1"),
        (["ls", "{a"], "argv[1]", "has a single { at position 0"),
        (["ls", "{{a}"], "argv[1]", "has a single } at position 3"),
        (["ls", "{a{b}}"], "argv[1]", "has a single { at position 0"),
        (["ls", "{}"], "argv[1]", "has no name in the braces at position 0"),
        (["ls", "{0}"], "argv[1]", "has no name in the braces at position 0"),
        (["ls", "{a.b}"], "argv[1]", "has no name in the braces at position 0"),
        (["ls", "{a[0]}"], "argv[1]", "has no name in the braces at position 0"),
        (["ls", "{a!r}"], "argv[1]", "has no name in the braces at position 0"),
        (["ls", "{a:>9}"], "argv[1]", "has no name in the braces at position 0"),
        (["ls", "{ a }"], "argv[1]", "has no name in the braces at position 0"),
    ],
)
def test_what_is_no_template_is_refused(argv: Any, field: str, reason: str) -> None:
    """
    Arguments that are none, and placeholders that are more than a name, are refused as the
    command is made.
    """
    with pytest.raises(InvalidCommandError) as caught:
        Command(argv)
    assert caught.value.field == field
    assert caught.value.reason.startswith(reason)
    assert caught.value.work_id is None


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("cwd", 1, "must be a string, not a value of type int"),
        ("cwd", "", "must not be empty"),
        ("cwd", "a\0", "must not contain a NUL character"),
        ("env", ["A=b"], "must be names with their values, not a value of type"),
        ("env", {"A=": "b"}, "has a name that cannot be that of a variable"),
        ("env", {"": "b"}, "has a name that cannot be that of a variable"),
        ("env", {1: "b"}, "must be a string, not a value of type int"),
        ("env", {"A\0": "b"}, "must not contain a NUL character"),
        ("inherit", "PATH", "must be a list of variables' names, not a value of"),
        ("inherit", 1, "must be a list of variables' names, not a value of"),
        ("inherit", [1], "must be a string, not a value of type int"),
        ("inherit", ["A=b"], "has a name that cannot be that of a variable"),
        ("stdin", b"a", "must be a string, not a value of type bytes"),
        ("stdin", "{a.b}", "has no name in the braces at position 0"),
        ("stdin", "a\0", "must not contain a NUL character"),
        ("timeout", "1h", "must be a timedelta or a number of seconds, not '1h'"),
        ("timeout", -1, "must not be negative, not -1"),
        ("timeout", 0, "must be longer than 0 seconds"),
        ("grace", None, "must be a timedelta or a number of seconds, not None"),
        ("grace", -0.5, "must not be negative, not -0.5"),
        ("grace", math.inf, "must be a timedelta or a number of seconds, not inf"),
        ("success", 0, "must be a list, of exit codes and signals, not 0"),
        ("success", "SIGTERM", "must be a list, of exit codes and signals, not 'SIGTERM'"),
        ("success", [256], "must be exit codes from 0 to 255, or names of signals"),
        ("success", [-9], "must be exit codes from 0 to 255, or names of signals"),
        ("success", [True], "must be exit codes from 0 to 255, or names of signals"),
        ("discard_on", ["TERM"], "must be exit codes from 0 to 255, or names of signals"),
        ("discard_on", [3, 0], "has 0, which is in success, too: choose one"),
        ("retry_on", [0.0], "must be exit codes from 0 to 255, or names of signals"),
        ("retry_on", [0], "has 0, which is in success, too: choose one"),
        ("retry", 3, "must be a Retry, not 3"),
        ("at_most_once", 1, "must be a bool, not 1"),
        ("check_program", 0, "must be a bool, not 0"),
        ("output_limit", -1, "must be from 0 to 16384 bytes, not -1"),
        ("output_limit", 16385, "must be from 0 to 16384 bytes, not 16385"),
        ("output_limit", True, "must be an int, not True"),
        ("output_limit", 1.5, "must be an int, not 1.5"),
    ],
)
def test_what_a_field_cannot_be(field: str, value: Any, reason: str) -> None:
    """
    A field that cannot be used is refused as the command is made, and told by its name.
    """
    values: dict[str, Any] = {field: value}
    with pytest.raises(InvalidCommandError) as caught:
        Command(["ls"], **values)
    assert caught.value.field == field
    assert caught.value.reason.startswith(reason)


SECRET = "hunter2"  # noqa: S105 (that of these tests)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("env", f"TOKEN={SECRET}"),
        ("env", [f"TOKEN={SECRET}"]),
        ("env", {f"TOKEN={SECRET}": ""}),
        ("env", {f"TOKEN{SECRET}\0": ""}),
        ("env", {"TOKEN": [SECRET]}),
        ("env", {"TOKEN": f"{SECRET}\0"}),
        ("env", {"TOKEN": f"{SECRET}\ud800"}),
        ("inherit", f"TOKEN={SECRET}"),
        ("inherit", [f"TOKEN={SECRET}"]),
        ("stdin", [SECRET]),
        ("stdin", {"password": SECRET}),
        ("stdin", SECRET.encode()),
        ("stdin", f"{SECRET}\0"),
        ("stdin", f"{SECRET}\ud800"),
        ("stdin", f"{SECRET}{{"),
        ("stdin", f"}}{SECRET}"),
        ("stdin", f"{{{SECRET}!}}"),
        ("stdin", f'{{"password": "{SECRET}"}}'),
    ],
    ids=itertools.count(),
)
def test_no_secret_is_told(field: str, value: Any) -> None:
    """
    What is wrong with the environment or with stdin is told without its text, whoever asks.
    """
    data: dict[str, Any] = {"argv": ["ls"], field: value}
    makers: Sequence[Callable[[], object]] = [
        lambda: Command(**data),
        lambda: CommandRegistry({"x": data}),
        lambda: CommandRegistry().register("x", data),
    ]
    for make in makers:
        with pytest.raises(InvalidCommandError) as caught:
            make()
        assert caught.value.field.partition(".")[0] == field
        assert SECRET not in "".join(traceback.format_exception(caught.value))


async def test_what_is_no_registry_is_told() -> None:
    """
    Who gives a file's name in place of its commands, or commands in place of a registry, is
    told what to give, and no secret.
    """
    none: list[Any] = ["commands.toml", [{"env": {"TOKEN": SECRET}}]]
    for wrong in none:
        with pytest.raises(InvalidCommandError) as caught:
            CommandRegistry(wrong)
        assert str(caught.value) == (
            "commands: must be commands by name, as load_commands gives them, not a value"
            f" of type {type(wrong).__name__}"
        )
    commands: Any = {"c": {"env": {"TOKEN": SECRET}}}
    with pytest.raises(TypeError) as refused:
        async with open_scheduler(commands):
            pass
    assert str(refused.value) == (
        "works: must be a registry of works, not a mapping: of commands, make a"
        " CommandRegistry"
    )


def test_no_secret_is_told_of_what_is_no_command() -> None:
    """
    Nor is anything told of what is given in the place of a command.
    """
    wrong: Any = [("env", {"TOKEN": SECRET})]
    with pytest.raises(InvalidCommandError) as caught:
        CommandRegistry({"x": wrong})
    assert SECRET not in str(caught.value)


def test_a_code_means_one_thing() -> None:
    """
    An exit code, or a signal, cannot be both final and worth another attempt.
    """
    with pytest.raises(
        InvalidCommandError, match=r"^retry_on: has 'SIGKILL', .*discard_on"
    ):
        Command(["ls"], discard_on=[1, "SIGKILL"], retry_on=["SIGKILL", 2])
    # Of two names that a signal has, either is meant.
    with pytest.raises(InvalidCommandError, match=r"^retry_on: has 'SIGABRT'"):
        Command(["ls"], discard_on=["SIGABRT"], retry_on=["SIGIOT"])
    assert Command(["ls"], success=["SIGIOT"]).success == ("SIGABRT",)


def test_what_a_command_is_by_default() -> None:
    """
    What is not said of a command is as the documentation has it.
    """
    command = Command(["true"])
    assert attrs.asdict(command, filter=lambda field, _: field.init) == {
        "argv": ("true",),
        "cwd": None,
        "env": {},
        "inherit": ("PATH",),
        "stdin": None,
        "timeout": None,
        "grace": 10.0,
        "success": (0,),
        "discard_on": (),
        "retry_on": None,
        "retry": None,
        "at_most_once": False,
        "output_limit": 4096,
        "check_program": True,
    }


def test_a_command_is_a_value() -> None:
    """
    Two commands that say the same are equal, and a command tells what it is.
    """
    fields: dict[str, Any] = {
        "argv": ("ls", "--", "{path}"),
        "cwd": "/",
        "env": {"A": "b"},
        "inherit": ("PATH", "HOME"),
        "stdin": "{path}",
        "timeout": 60.0,
        "grace": 1.5,
        "success": (0, "SIGTERM"),
        "discard_on": (1,),
        "retry_on": (75,),
        "retry": Retry(3),
        "at_most_once": True,
        "output_limit": 100,
        "check_program": False,
    }
    lists: dict[str, Any] = {
        **fields,
        "argv": ["ls", "--", "{path}"],
        "cwd": Path("/"),
        "success": [0, "SIGTERM"],
        "timeout": timedelta(minutes=1),
        "grace": timedelta(seconds=1.5),
    }
    command = Command(**fields)
    assert command == Command(**lists)
    assert hash(command) == hash(Command(**lists))
    assert {name: getattr(command, name) for name in fields} == fields
    told = {name: f"{name}={value!r}" in repr(command) for name, value in fields.items()}
    # What may have secrets is not told.
    assert told == {name: name not in {"env", "stdin"} for name in fields}
    for name in fields:
        other: dict[str, Any] = {**fields, "argv": ("ls", "{path}")}
        if name != "argv":
            other = {each: value for each, value in fields.items() if each != name}
        assert command != Command(**other)


@pytest.mark.parametrize(
    ("param", "field", "reason"),
    [
        ({}, "param", "lacks 'a', 'b'"),
        ({"b": 1}, "param", "lacks 'a'"),
        ({"a": 1}, "param", "lacks 'b'"),
        (
            {"b": 1, "A": 1},
            "param",
            "lacks 'a', and has 'A', which the command does not take",
        ),
        (
            {"a": 1, "b": 1, "c": 1, "": 2},
            "param",
            "has '', 'c', which the command does not take",
        ),
        ({"a": [1], "b": 1}, "param.a", "must be text, a number or a boolean to be in an"),
        (
            {"a": {"x": 1}, "b": 1},
            "param.a",
            "must be text, a number or a boolean to be in",
        ),
        ({"a": None, "b": 1}, "param.a", "must be text, a number or a boolean to be in an"),
        ({"a": "x\0y", "b": 1}, "param.a", "must not contain a NUL character"),
    ],
)
async def test_what_cannot_be_filled_is_refused(
    autojump_clock: MockClock, param: Any, field: str, reason: str
) -> None:
    """
    A task or a schedule whose `param` lacks a placeholder or has more, a value that is no
    argument, or a NUL in one, is refused when it is added.
    """
    works = CommandRegistry({"command": Command(["echo", "{a}"], stdin="{b}{a}")})
    async with open_scheduler(works) as scheduler:
        for add in (
            functools.partial(scheduler.add_task, "command", param, after=0),
            functools.partial(scheduler.add_schedule, "s", Interval(60), "command", param),
        ):
            with pytest.raises(InvalidTaskError) as caught:
                await add()
            assert caught.value.field == field
            assert caught.value.reason.startswith(reason)
        assert await scheduler.find_schedules() == []
    with pytest.raises(InvalidTaskError) as caught:
        await works.get("command").function(**param)
    assert caught.value.field == field


async def test_a_parameter_may_have_any_name(autojump_clock: MockClock, shop: Shop) -> None:
    """
    No name of a parameter gets in the way of the library's own.
    """
    names = ["self", "param", "command", "program", "работа", "class"]
    command = shop.python(ECHO, *(f"{{{name}}}" for name in names))
    ended = await run_one(command, {name: name for name in names})
    assert stdout_of(ended) == names


async def test_what_was_stored_may_not_fit_any_more(autojump_clock: MockClock) -> None:
    """
    A stored task that the command cannot be filled with has failed, and says why.
    """
    repository = HeapRepository()
    await repository.add([stored("old", "command", param={"of": "before"})])
    works = CommandRegistry({"command": Command(["true"])})
    async with open_scheduler(works, repository, clock=TrioClock(NOON)) as scheduler:
        ended = await scheduler.wait("old")
    assert ended.state is TaskState.FAILED
    assert ended.err is not None
    assert ended.err.startswith(
        "InvalidTaskError: param: has 'of', which the command does not take"
    )


# -- the program ----------------------------------------------------------------------


def program(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho {path.parent.name}\n")
    path.chmod(mode)
    return path


async def refused(command: Command, param: Any = None) -> InvalidTaskError:
    async with open_scheduler(CommandRegistry({"command": command})) as scheduler:
        with pytest.raises(InvalidTaskError) as caught:
            await scheduler.add_task("command", param, after=0)
    return caught.value


async def test_a_program_that_does_not_exist_is_refused(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """
    A task is refused whose program does not exist, or cannot be run.
    """
    nowhere = str(tmp_path / "nowhere")
    assert str(await refused(Command(["no-such-program"]))) == (
        "work_id: there is no program 'no-such-program' on the command's PATH,"
        " or it may not be run"
    )
    for path in (nowhere, str(program(tmp_path / "a" / "plain", 0o644)), str(tmp_path)):
        error = await refused(Command([path, "-x"]))
        assert error.field == "work_id"
        assert error.reason.startswith("there is no program ")
        assert "PATH" not in error.reason
    assert str(await refused(Command(["ls -l"]))) == (
        "work_id: there is no program 'ls -l' on the command's PATH, or it may not be run;"
        " arguments are items of their own"
    )
    chosen = Command(["{program}"])
    for name in ("no-such-program", "", nowhere):
        assert (await refused(chosen, {"program": name})).field == "param"


async def test_the_program_is_looked_for_where_it_will_be(
    autojump_clock: MockClock,
    shop: Shop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    A program is found on the command's own PATH, and a relative path is one from its cwd:
    when the task is added as when it runs.
    """
    ours, its = tmp_path / "ours", tmp_path / "its"
    for folder in (ours, its):
        program(folder / "tool")
        program(folder / "sub" / "inner")
    program(ours / "only-ours")
    program(its / "only-its")
    monkeypatch.setenv("PATH", f"{ours}:{os.environ['PATH']}")
    path = {"PATH": f"{its}:{os.environ['PATH'].partition(':')[2]}"}
    monkeypatch.chdir(ours)

    async def prints(*argv: str, **fields: Any) -> str:
        result = result_of(await run_one(shop.command(*argv, **fields)))
        return str(result["stdout"])

    assert await prints("tool") == "ours\n"
    assert await prints("tool", env=path) == "its\n"
    assert await prints("tool", env={"PATH": ".:/bin"}, cwd=its) == "its\n"
    assert await prints("tool", env={"PATH": ":/bin"}, cwd="../its") == "its\n"
    assert await prints("./tool", cwd=its) == "its\n"
    assert await prints("./tool") == "ours\n"
    assert await prints("sub/inner", cwd=its) == "sub\n"
    await refused(shop.command("only-ours", env=path))
    await refused(shop.command("only-its"))
    await refused(shop.command("./only-ours", cwd=its))
    await refused(shop.command("tool", inherit=()))
    assert await prints("true", inherit=()) == ""  # where the system has its own
    program(tmp_path / "with:colon" / "sub" / "tool")
    path = {"PATH": "sub:/bin"}
    assert await prints("tool", env=path, cwd=tmp_path / "with:colon") == "sub\n"
    await refused(shop.command(f"{its}/tool/"))


def test_a_program_is_looked_for_though_our_directory_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If our own working directory was removed, a program with a path of its own is found, and
    one that would be in the directory is refused.
    """
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    Command(["true"]).check_param({})
    Command(["/bin/true"]).check_param({})
    with pytest.raises(InvalidTaskError, match="there is no program"):
        Command(["./true"]).check_param({})


async def test_a_program_may_be_elsewhere(
    autojump_clock: MockClock, shop: Shop, tmp_path: Path
) -> None:
    """
    Without `check_program` a task or a schedule is added whose program does not exist here
    and now, and the program is looked for when it runs; what it is filled with is checked.
    """
    path = tmp_path / "later" / "tool"
    works = CommandRegistry(
        {
            "later": shop.command(str(path), "{a}", check_program=False),
            "chosen": shop.command("{program}", check_program=False),
        }
    )
    async with open_scheduler(works, clock=TrioClock(NOON)) as scheduler:
        never = await scheduler.add_task("later", {"a": 1}, after=0)
        ended = await scheduler.wait(never.id)
        assert ended.state is TaskState.FAILED
        assert ended.err is not None
        assert ended.err.startswith("FileNotFoundError: ")
        chosen = await scheduler.add_task("chosen", {"program": str(path)}, after=60)
        await scheduler.add_schedule("s", Interval(60), "later", {"a": 1}, paused=True)
        with pytest.raises(InvalidTaskError, match="lacks 'a'"):
            await scheduler.add_task("later", after=60)
        program(path)
        assert result_of(await scheduler.wait(chosen.id))["stdout"] == "later\n"


# -- how it ends ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "attempts", "error"),
    [
        ({}, 0, 1, None),
        ({}, 1, 3, "CommandFailedError: the command exited with code 1"),
        ({}, 75, 3, "CommandFailedError: the command exited with code 75"),
        ({"success": [0, 1]}, 1, 1, None),
        ({"success": [1]}, 0, 3, "CommandFailedError: the command exited with code 0"),
        (
            {"discard_on": [2, 64]},
            64,
            1,
            "Discard: the command exited with code 64, which is final",
        ),
        (
            {"discard_on": [2, 64]},
            1,
            3,
            "CommandFailedError: the command exited with code 1",
        ),
        (
            {"retry_on": [75]},
            75,
            3,
            "CommandFailedError: the command exited with code 75",
        ),
        (
            {"retry_on": [75]},
            1,
            1,
            "Discard: the command exited with code 1, which is final",
        ),
        ({"retry_on": []}, 1, 1, "Discard: the command exited with code 1, which is final"),
        (
            {"retry": Retry(2, retry_on=CommandFailedError)},
            1,
            2,
            "CommandFailedError: the command exited with code 1",
        ),
        (
            {"retry": Retry(2, retry_on=OSError)},
            1,
            1,
            "CommandFailedError: the command exited with code 1",
        ),
        ({"retry": None}, 75, 1, "CommandFailedError: the command exited with code 75"),
        (
            {"retry": None, "retry_on": [75]},
            75,
            1,
            "CommandFailedError: the command exited with code 75",
        ),
    ],
)
async def test_what_an_exit_code_means(
    autojump_clock: MockClock,
    shop: Shop,
    fields: dict[str, Any],
    code: int,
    attempts: int,
    error: str | None,
) -> None:
    """
    0 is success, and everything else a failure that `retry` decides about, unless the
    command says otherwise.
    """
    command = shop.python(EXIT, "{code}", **{"retry": Retry(3), **fields})
    ended = await run_one(command, {"code": code})
    assert ended.attempt == attempts
    if error is None:
        assert ended.state is TaskState.DONE
        assert result_of(ended)["exit_code"] == code
    else:
        assert ended.state is TaskState.FAILED
        assert ended.err is not None
        assert ended.err.partition("\n")[0] == error


async def test_a_signal_may_mean_success(autojump_clock: MockClock, shop: Shop) -> None:
    """
    Signals have their meaning by name, and the result tells which it was.
    """
    source = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    ended = await run_one(shop.python(source, success=["SIGTERM"]))
    result = result_of(ended)
    assert (result["exit_code"], result["signal"]) == (None, "SIGTERM")
    ended = await run_one(shop.python(source, retry=Retry(2), discard_on=["SIGTERM"]))
    assert ended.attempt == 1
    assert ended.err is not None
    assert ended.err.startswith("Discard: the command was ended by SIGTERM, which is final")


async def test_the_task_may_have_a_retry_of_its_own(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    A task that has a `Retry` is tried again by that, for what the command says is worth it.
    """
    command = shop.python(EXIT, "{code}", retry_on=[75])
    again = Retry(4, wait=fixed(1))
    assert (await run_one(command, {"code": 75}, retry=again)).attempt == 4
    assert (await run_one(command, {"code": 1}, retry=again)).attempt == 1


async def test_the_error_tells_what_was_written(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    The `err` of a task whose command has failed has the first and the last that it has
    written, and is bounded.
    """
    source = """
        import sys
        for name, file in ("out", sys.stdout), ("err", sys.stderr):
            print(f"first {name}", "x" * 1_000_000, f"last {name}", file=file)
        sys.exit(3)
    """
    for fields in ({}, {"discard_on": [3]}, {"output_limit": LARGEST_LIMIT}):
        ended = await run_one(shop.python(source, **fields))
        assert ended.err is not None
        assert len(ended.err) <= 8_000
        assert "the command exited with code 3" in ended.err
        assert "first out" in ended.err
        assert "last err" in ended.err
    ended = await run_one(shop.python(source, output_limit=1000))
    assert ended.err is not None
    for words in ("first out", "last out", "first err", "last err"):
        assert words in ended.err
    assert "[999020 bytes dropped]" in ended.err


async def test_the_error_has_fields(autojump_clock: MockClock, shop: Shop) -> None:
    """
    Who calls the work finds in the error what the result would have had.
    """
    command = shop.python(
        "import sys; print('é' * 9); print('b', file=sys.stderr); sys.exit(9)",
        output_limit=10,
        discard_on=[8],
    )
    with pytest.raises(CommandFailedError) as caught:
        await command.run({})
    assert caught.value.exit_code == 9
    assert caught.value.stdout == "éé\n[10 bytes dropped]\néé\n"
    assert caught.value.stdout_dropped == 10
    assert caught.value.stderr == "b\n"
    with pytest.raises(Discard) as discarded:
        await shop.python(EXIT, "8", discard_on=[8]).run({})
    assert isinstance(discarded.value.__cause__, CommandFailedError)


# -- what it writes -------------------------------------------------------------------


@pytest.mark.uncovered
@given(
    st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.binary(max_size=60),
    st.integers(0, 40),
    st.lists(st.integers(1, 20), max_size=5),
    st.integers(0, 40),
)
def test_what_is_kept_and_what_is_dropped_is_all(
    data: bytes, limit: int, sizes: list[int], told: int
) -> None:
    """
    Of output the first and the last bytes are kept, at most as many as may be, and each
    byte is told or counted, however it came.
    """
    output = Output(limit)
    rest = data
    for size in sizes:
        output.add(rest[:size])
        rest = rest[size:]
    output.add(rest)
    told = min(told, limit)
    text, dropped = output.told(told)
    if len(data) <= told:
        assert (text, dropped) == (plain(data), 0)
        return
    first, _, last = text.partition(f"\n[{dropped} bytes dropped]\n")
    kept = len(data) - dropped
    assert max(0, told - 6) <= kept <= told
    # Some split of what is kept gives both, and no character is torn that was whole.
    assert any(
        first == plain(data[:begin]) and last == plain(data[len(data) - kept + begin :])
        for begin in range(kept + 1)
    )


def plain(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace").replace("\0", "\\0")


def test_what_others_have_taken_back_is_not_waited_for() -> None:
    """
    If a pipe is empty by the time that it is read, that is nothing, and no error.
    """
    read, write = os.pipe()
    os.set_blocking(read, False)
    output = Output(100)
    assert run_command._read(read, output) == 0
    os.write(write, b"x")
    assert run_command._read(read, output) == 1
    assert output.told(100)[0] == "x"
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("byte", [0x80, 0xFF, 0x00, 0xE2])
def test_what_is_no_text_is_not_trimmed_away(byte: int) -> None:
    """
    Of bytes that are no text at all as many are told as of any others, but for the few at a
    cut that could have been a part of a character.
    """
    output = Output(20)
    output.add(bytes([byte]) * 100)
    text, dropped = output.told(20)
    assert 80 <= dropped <= 83
    assert text.count(plain(bytes([byte]))) == 100 - dropped


@given(st.text(min_size=1, max_size=60), st.integers(0, 100))
def test_no_character_is_torn(text: str, limit: int) -> None:
    """
    Where text is cut, there are whole characters on both sides.
    """
    output = Output(limit)
    output.add(text.encode("utf-8", "ignore"))
    told, dropped = output.told(limit)
    first, _, last = told.partition(f"\n[{dropped} bytes dropped]\n")
    shown = text.encode("utf-8", "ignore").decode().replace("\0", "\\0")
    assert shown.startswith(first)
    assert shown.endswith(last)


@pytest.mark.parametrize(
    ("limit", "size", "kept"),
    [(10, 9, 9), (10, 10, 10), (10, 11, 10), (1, 3, 1), (0, 3, 0), (0, 0, 0), (11, 99, 11)],
)
async def test_as_much_is_kept_as_was_said(
    autojump_clock: MockClock, shop: Shop, limit: int, size: int, kept: int
) -> None:
    """
    Up to the limit all is kept, and of more as much as the limit, half of it from the end.
    """
    digits = "".join(str(n % 10) for n in range(size))
    command = shop.python(
        "import sys; sys.stdout.write(sys.argv[1])", digits, output_limit=limit
    )
    result = result_of(await run_one(command))
    assert result["stdout_dropped"] == size - kept
    if size <= limit:
        assert result["stdout"] == digits
        return
    first, last = digits[: limit // 2], digits[size - (limit - limit // 2) :]
    assert result["stdout"] == f"{first}\n[{size - kept} bytes dropped]\n{last}"


@pytest.mark.parametrize("byte", [1, 0, 255, 34, 65])
async def test_a_result_can_always_be_kept(
    autojump_clock: MockClock, shop: Shop, byte: int
) -> None:
    """
    However long its output is as JSON, a command that has succeeded is done: less of it is
    kept then.
    """
    command = shop.python(
        "import sys\n"
        "for file in sys.stdout, sys.stderr:\n"
        f"    file.buffer.write(bytes([{byte}]) * 100_000)",
        output_limit=LARGEST_LIMIT,
    )
    result = result_of(await run_one(command))
    size = len(json.dumps(result, ensure_ascii=False).encode())
    assert LONGEST_RESULT / 4 < size <= LONGEST_RESULT
    for name in ("stdout", "stderr"):
        assert 0 < 100_000 - result[f"{name}_dropped"] <= LARGEST_LIMIT


@pytest.mark.parametrize("program", ["true", "/dev/null/nope"])
async def test_a_cwd_that_is_gone_is_told(
    autojump_clock: MockClock, tmp_path: Path, program: str
) -> None:
    """
    If it is the command's `cwd` that does not exist, its run says so.
    """
    gone = str(tmp_path / "gone")
    command = Command([program], cwd=gone, check_program=False)
    works = CommandRegistry({"w": command})
    async with open_scheduler(works) as scheduler:
        task = await scheduler.add_task("w", after=0)
        ended = await scheduler.wait(task.id)
    assert ended.err is not None
    first = ended.err.partition("\n")[0]
    assert first == f"FileNotFoundError: [Errno 2] cwd: No such file or directory: {gone!r}"


async def test_a_program_that_cannot_be_started_is_told(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """
    If it is the program that cannot be started, its run does not speak of the `cwd`.
    """
    command = Command([str(tmp_path)], cwd=str(tmp_path), check_program=False)
    works = CommandRegistry({"w": command})
    async with open_scheduler(works) as scheduler:
        task = await scheduler.add_task("w", after=0)
        ended = await scheduler.wait(task.id)
    assert ended.err is not None
    assert ended.err.startswith("PermissionError: [Errno 13] Permission denied: ")


NOT_RUN = (
    "FileNotFoundError: [Errno 2] it is there, but not what is to run it, as a script's"
    " first line says: './script'"
)
NO_FIRST_LINE = (
    "OSError: [Errno 8] Exec format error (a script begins with #! and what is to run it):"
    " './script'"
)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("#!/no/such/shell\necho hello\n", NOT_RUN),
        ("#!/bin/sh\r\necho hello\r\n", NOT_RUN),
        ("echo hello\n", NO_FIRST_LINE),
    ],
    ids=["no such shell", "lines of Windows", "no first line"],
)
async def test_a_script_that_nothing_runs_is_told(
    autojump_clock: MockClock, shop: Shop, script: str, told: str
) -> None:
    """
    A script whose interpreter does not exist, or is not named, has failed, and the error
    says that it is not the script which is missing.
    """
    path = shop.folder / "script"
    path.write_text(script, newline="")
    path.chmod(0o755)
    ended = await run_one(shop.command("./script", cwd=shop.folder))
    assert ended.err is not None
    assert ended.err.partition("\n")[0] == told


# -- how it is stopped ----------------------------------------------------------------


async def test_a_timeout_stops_it(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A command that takes longer than its timeout is stopped, and the error has what it had
    written, on its way out, too, before all the traceback.
    """
    fifo = shop.fifo()
    works = CommandRegistry({"w": shop.python(WAIT, str(fifo), timeout=60)})
    async with open_scheduler(works, clock=TrioClock(NOON)) as scheduler:
        task = await scheduler.add_task("w", after=0)
        await hear(fifo)
        autojump_clock.jump(60)
        ended = await scheduler.wait(task.id)
    assert ended.state is TaskState.FAILED
    assert ended.err is not None
    assert ended.err.startswith(
        "WorkTimeoutError: the work was cancelled after its timeout"
    )
    told = ended.err.partition("Traceback")[0]
    assert "\n\nthe command had written:\nhere" in told
    assert "leaving" in told


async def test_an_interruption_stops_it(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A command that is interrupted is stopped, and its task is cancelled.
    """
    fifo = shop.fifo()
    works = CommandRegistry({"w": shop.python(WAIT, str(fifo))})
    async with open_scheduler(works, clock=TrioClock(NOON)) as scheduler:
        task = await scheduler.add_task("w", after=0)
        await hear(fifo)
        await scheduler.interrupt(task.id)
        ended = await scheduler.wait(task.id)
    assert ended.state is TaskState.CANCELLED


async def test_a_shutdown_stops_it(autojump_clock: MockClock, shop: Shop) -> None:
    """
    A command that runs as the scheduler ends is stopped, and its task goes back, to run
    again; or has failed if it must not.
    """
    for at_most_once, state in ((False, TaskState.SCHEDULED), (True, TaskState.FAILED)):
        fifo = shop.fifo()
        command = shop.python(WAIT, str(fifo), at_most_once=at_most_once)
        repository = HeapRepository()
        works = CommandRegistry({"w": command})
        async with open_scheduler(
            works, repository, clock=TrioClock(NOON), grace=0
        ) as scheduler:
            task = await scheduler.add_task("w", after=0)
            await hear(fifo)
        assert (await repository.get(task.id)).state is state


async def test_it_has_its_grace(autojump_clock: MockClock, shop: Shop) -> None:
    """
    What is stopped may take its time, and what it writes meanwhile is read, even if it is
    more than a pipe holds.
    """
    fifo, end = shop.fifo(), shop.folder / "end"
    command = shop.python(
        """
        import signal, sys, time
        def leave(*_):
            time.sleep(0.1)
            for _ in range(100):
                sys.stdout.write("x" * 10_000)
                sys.stderr.write("x" * 10_000)
            open(sys.argv[2], "w").write("came to its end")
            sys.exit()
        signal.signal(signal.SIGTERM, leave)
        open(sys.argv[1], "w").write("ready")
        while True:
            signal.pause()
        """,
        str(fifo),
        str(end),
        grace=60,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(command.run, {})
        await hear(fifo)
        nursery.cancel_scope.cancel()
    assert end.read_text() == "came to its end"


@pytest.mark.parametrize("grace", [0, 0.2])
async def test_after_its_grace_it_is_killed(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    """
    What ignores that it is to stop is killed, once its grace is over and not before.
    """
    fifo = shop.fifo()
    steps: list[object] = []

    async def wait(
        leader: trio.Process, seconds: float, *signals: signal.Signals
    ) -> session_watcher.Waited:
        steps.append(("to others", *signals))
        waited = await session_watcher.wait_for_end(leader, seconds, *signals)
        steps.append((seconds, waited.has_ended))
        return waited

    def send(process: trio.Process, *signals: signal.Signals) -> bool:
        steps.extend(signals)
        return send_(process, *signals)

    send_ = process_session.send
    monkeypatch.setattr(process_session, "send", send)
    monkeypatch.setattr(run_command, "wait_for_end", wait)
    await stop_all([shop.python(IGNORE, str(fifo), grace=grace)], [fifo])
    assert steps == [
        *(signal.SIGTERM, signal.SIGCONT, ("to others", signal.SIGTERM, signal.SIGCONT)),
        *((grace, False), signal.SIGKILL, ("to others", signal.SIGKILL)),
        (run_command.AFTER_KILL, True),
    ]


async def test_the_grace_is_counted_by_a_real_clock(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A group that does not end is waited for until the system's clock says that it is enough,
    whatever Trio's does: looked at once a while, and at its end.
    """
    seen: list[float] = []
    now = 1000.0

    def monotonic() -> float:
        return now

    def living(groups: dict[int, int]) -> dict[int, int]:
        nonlocal now
        seen.append(now)
        now += 0.04
        return groups

    monkeypatch.setattr(session_watcher, "time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(process_session, "living", living)
    with autojump_held():
        leader: Any = SimpleNamespace(pid=7, poll=lambda: None)
        assert not (await session_watcher.wait_for_end(leader, 0.1)).has_ended
    assert seen == pytest.approx([1000, 1000.04, 1000.08, 1000.12])
    assert trio.current_time() == 0


async def test_the_mock_clock_stands_still_meanwhile(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    While a command runs, and while it is stopped, no virtual time passes.
    """
    slow = shop.python("import time; time.sleep(0.1)")
    fifo = shop.fifo()
    waiting = shop.python(WAIT, str(fifo))

    async def tick() -> None:
        await trio.sleep(1)
        raise AssertionError("time has passed")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await slow.run({})
        async with trio.open_nursery() as inner:
            inner.start_soon(waiting.run, {})
            await hear(fifo)
            inner.cancel_scope.cancel()
        assert trio.current_time() == 0
        nursery.cancel_scope.cancel()
    assert autojump_clock.autojump_threshold == 0


async def test_what_was_cancelled_before_does_not_start(
    autojump_clock: MockClock, shop: Shop
) -> None:
    """
    A command that is cancelled before it was started does not start.
    """
    marker = shop.folder / "marker"
    with trio.CancelScope() as scope:
        scope.cancel()
        await shop.python("import sys; open(sys.argv[1], 'w')", str(marker)).run({})
    assert scope.cancelled_caught
    assert not marker.exists()


async def test_what_may_not_be_signalled_is_waited_for(
    autojump_clock: MockClock,
    shop: Shop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    A program of another user, which we may not stop, is waited for, and that is logged.
    """
    ready, leave = shop.fifo(), shop.fifo()
    command = shop.python(
        "import sys; open(sys.argv[1], 'w').write('x'); open(sys.argv[2]).read()",
        str(ready),
        str(leave),
        grace=0,
    )
    tried: list[int] = []

    def refuse(_: int, number: int) -> None:
        tried.append(number)
        if number == signal.SIGKILL:
            leave.write_text("leave")
        raise PermissionError(errno.EPERM, "not yours")

    monkeypatch.setattr(os, "killpg", refuse)
    with caplog.at_level(logging.WARNING, logger="trio_gokugen.commands"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(command.run, {})
            await hear(ready)
            nursery.cancel_scope.cancel()
    assert signal.SIGKILL in tried
    assert caplog.records[0].getMessage().endswith("waiting for its end")


class AtLine:
    """Sends this process a SIGINT before the k-th line of the running of a command."""

    def __init__(self, line: int) -> None:
        self.line = line
        self.count = 0

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            self.count += 1
            if self.count == self.line:
                signal.raise_signal(signal.SIGINT)
        return self.trace


def is_interrupt(error: BaseException) -> bool:
    """Whether it is a `KeyboardInterrupt`, maybe in groups."""
    if isinstance(error, BaseExceptionGroup):
        group: BaseExceptionGroup[BaseException] = error
        return all(map(is_interrupt, group.exceptions))
    return isinstance(error, KeyboardInterrupt)


FILES = {run_command.__file__, process_session.__file__, session_watcher.__file__}


@pytest.fixture
def sigint() -> Generator[None]:
    """A SIGINT is a `KeyboardInterrupt`, also in what a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.uncovered
@pytest.mark.long
@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("stdin", [None, "x"])
def test_a_keyboard_interrupt_at_any_line_leaves_nothing(
    shop: Shop, stdin: str | None
) -> None:
    """
    Whenever Ctrl-C comes, what was started is ended before it leaves.
    """
    command = shop.python("print('here')", stdin=stdin)

    async def main(interrupt: AtLine) -> None:
        sys.settrace(interrupt.trace)
        try:
            await command.run({})
        finally:
            sys.settrace(None)

    previous = sys.gettrace()
    line = 0
    while True:
        line += 1
        interrupt = AtLine(line)
        try:
            trio.run(main, interrupt)
        except BaseException as error:
            if not is_interrupt(error):
                raise
            assert not shop.running(), line
        finally:
            sys.settrace(previous)
        if interrupt.count < line:
            break
    assert line > 50
    gc.collect()  # what hung on the errors


@pytest.mark.uncovered
@pytest.mark.usefixtures("sigint")
def test_a_keyboard_interrupt_while_it_is_stopped(shop: Shop) -> None:
    """
    Whenever Ctrl-C comes while a command that was cancelled is stopped, it is sent all the
    signals, and leaves no sooner and no later.
    """
    source = """
        import signal, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(sys.argv[1], "w").write("ready")
        signal.sigtimedwait([signal.SIGUSR1], 30)
    """

    async def main(interrupt: AtLine) -> None:
        fifo = shop.fifo()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shop.python(source, str(fifo), grace=0).run, {})
            await hear(fifo)
            sys.settrace(interrupt.trace)
            nursery.cancel_scope.cancel()

    previous = sys.gettrace()
    for line in range(1, 30):
        interrupt = AtLine(line)
        began = time.monotonic()
        try:
            with pytest.raises(BaseException) as caught:  # noqa: PT011 (or in groups)
                trio.run(main, interrupt)
        finally:
            sys.settrace(previous)
        assert is_interrupt(caught.value)
        assert time.monotonic() - began < 20, line
    gc.collect()  # what hung on the errors


async def test_where_there_are_no_groups(
    autojump_clock: MockClock, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    On a system without groups of processes, as Windows, a command runs all the same, and
    is stopped as Trio does it.
    """
    monkeypatch.setattr(run_command, "_POSIX", False)
    command = shop.python(COPY, stdin="{text}", output_limit=10)
    result = result_of(await run_one(command, {"text": "x" * 100}))
    assert result["stdout"] == '"xxxx\n[93 bytes dropped]\nxxx"\n'
    fifo = shop.fifo()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shop.python(WAIT, str(fifo)).run, {})
        await hear(fifo)
        nursery.cancel_scope.cancel()


# -- the registry ---------------------------------------------------------------------


def test_a_registry_has_what_is_registered() -> None:
    """
    Commands are works, by name, and new names are a new set of them.
    """
    works = CommandRegistry()
    none = works.work_ids
    assert none == set()
    again = Retry(2)
    works.register(
        "a", Command(["true"], timeout=timedelta(seconds=5), retry=again, at_most_once=True)
    )
    assert works.work_ids == {"a"}
    assert works.work_ids is works.work_ids
    assert works.work_ids is not none
    works.register("b", {"argv": ["true"]})
    assert works.work_ids == {"a", "b"}
    work = works.get("a")
    assert (work.work_id, work.timeout, work.retry, work.at_most_once) == (
        "a",
        5,
        again,
        True,
    )
    assert work.retain
    assert not work.in_thread
    with pytest.raises(WorkNotFoundError, match="'c'"):
        works.get("c")
    with pytest.raises(WorkExistsError, match="'a'"):
        works.register("a", Command(["false"]))
    with pytest.raises(InvalidTaskError, match=r"^work_id: must not be empty"):
        works.register("", Command(["false"]))
    with pytest.raises(ConditionNotFoundError, match="'tide'"):
        works.get_condition("tide")
    assert works.condition_names == set()


def test_a_mapping_may_say_what_a_command_is() -> None:
    """
    A registry takes commands as plain data, whose first fault is told with its name.
    """
    works = CommandRegistry(
        {
            "one": Command(["true"]),
            "other": {"argv": ["true"], "timeout": "1m30s", "retry": 3},
            "made": {"argv": ["true"], "retry": Retry(4), "grace": timedelta(minutes=1)},
            "none": {"argv": ["true"], "retry": None, "timeout": None},
            "discards": {"argv": ["true"], "success": [1], "discard_on": [0]},
            "retries": {"argv": ["true"], "success": [1], "retry_on": [0]},
        }
    )
    assert works.work_ids == {"one", "other", "made", "none", "discards", "retries"}
    assert works.get("made").retry == Retry(4)
    assert works.get("none").retry is None
    assert works.get("none").timeout is None
    assert works.get("other").timeout == 90
    assert works.get("other").retry == Retry(3)
    for data, message in (
        ({"argv": "true"}, "command 'x': argv: must be a list of arguments"),
        ({}, "command 'x': argv: is missing: it is the program"),
        ({"argv": ["true"], "shell": True}, "command 'x': shell: is not known: there are"),
        ({"argv": ["true"], 1: True}, "command 'x': 1: is not known: there are argv, cwd,"),
        (["true"], "command 'x': command: must be a Command or a mapping, not a value of"),
    ):
        wrong: Any = data
        with pytest.raises(InvalidCommandError) as caught:
            CommandRegistry({"x": wrong})
        assert str(caught.value).startswith(message)


# -- files ----------------------------------------------------------------------------

EVERYTHING = """\
[commands.backup]
argv = ["rsync", "-a", "--", "{source}", "/safe"]
cwd = "/"
env = {RSYNC_RSH = "ssh"}
inherit = ["PATH", "HOME"]
stdin = "{source}"
timeout = "1h30m"
grace = 2.5
success = [0, 24]
discard_on = [1, "SIGKILL"]
retry_on = [75]
retry = {max_attempts = 4, wait = {first = "10s", factor = 3, longest = "1h"}, jitter = 5}
at_most_once = true
output_limit = 100
check_program = false

[commands."clean up"]
argv = ["rm", "-rf", "/tmp/cache"]
retry = 3
timeout = 60
grace = "1m30s"

[commands.poll]
argv = ["poll"]
retry.max_attempts = 2
retry.wait = "90s"

[commands.plain]
argv = ["true"]

[schedules.nightly]
work_id = "backup"
param = {source = "/home"}
cron = "30 2 * * *"
"""


def load(folder: Path, text: str | bytes) -> dict[str, Command]:
    path = folder / "commands.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_commands(path)


def test_all_that_a_table_may_say(tmp_path: Path) -> None:
    """
    Every field of a command can be written in TOML, in a file that may have schedules.
    """
    assert load(tmp_path, EVERYTHING) == {
        "backup": Command(
            ["rsync", "-a", "--", "{source}", "/safe"],
            cwd="/",
            env={"RSYNC_RSH": "ssh"},
            inherit=["PATH", "HOME"],
            stdin="{source}",
            timeout=5400,
            grace=2.5,
            success=[0, 24],
            discard_on=[1, "SIGKILL"],
            retry_on=[75],
            retry=Retry(4, wait=exponential(10, factor=3, longest=3600), jitter=5),
            at_most_once=True,
            output_limit=100,
            check_program=False,
        ),
        "clean up": Command(
            ["rm", "-rf", "/tmp/cache"],  # noqa: S108 (never run)
            retry=Retry(3),
            timeout=60,
            grace=90,
        ),
        "poll": Command(["poll"], retry=Retry(2, wait=fixed(90))),
        "plain": Command(["true"]),
    }
    [nightly] = load_schedules(tmp_path / "commands.toml")
    assert isinstance(nightly, Schedule)
    assert nightly.work_id == "backup"
    assert CommandRegistry(load_commands(tmp_path / "commands.toml")).work_ids == {
        "backup",
        "clean up",
        "poll",
        "plain",
    }


FAULTS = """\
[commands.a]
argv = "ls -l"
timeout = "soon"
shell = true

[commands.b]
argv = ["ls", "{a.b}"]
env = {"A=" = "b"}
retry = {max_attempts = 0}
grace = -1

[commands.c]
cwd = "/"
retry = "often"

[commands.d]
argv = ["ls"]
retry.wait = {first = "1s", faktor = 2}

[commands.e]
argv = ["ls"]
retry.wait = "often"

[commands.f]
argv = ["ls"]
success = [0, 1]
discard_on = [1]

[commands.""]
argv = ["ls"]
retry.attempts = 3

[commands.g]
argv = [
  "ls",
  "{"
]
retry.wait.factor = 0.5

[commands]
h = "ls"

[jobs]
"""


def test_all_faults_are_told_with_their_lines(tmp_path: Path) -> None:
    """
    All that is wrong in a file is told, each with its line, and nothing of it is used.
    """
    with pytest.raises(InvalidCommandsError) as caught:
        load(tmp_path, FAULTS)
    assert caught.value.path == str(tmp_path / "commands.toml")
    expected = [
        (2, "command 'a': argv: must be a list of arguments, which nothing splits"),
        (3, "command 'a': timeout: must be seconds, or text like '1h30m', not 'soon'"),
        (4, "command 'a': shell: is not known: there are argv, cwd, env, inherit, stdin"),
        (7, "command 'b': argv[1]: has no name in the braces at position 0, and a"),
        (8, "command 'b': env: has a name that cannot be that of a variable"),
        (9, "command 'b': retry.max_attempts: must be at least 1, not 0"),
        (10, "command 'b': grace: must not be negative, not -1"),
        (12, "command 'c': argv: is missing: it is the program, with its arguments"),
        (14, "command 'c': retry: must be a number of attempts, or a table"),
        (18, "command 'd': retry.wait.faktor: is not known: there are first, factor,"),
        (22, "command 'e': retry.wait: must be seconds, or text like '1h30m'"),
        (27, "command 'f': discard_on: has 1, which is in success, too"),
        (29, "command '': work_id: must not be empty"),
        (31, "command '': retry.attempts: is not known: there are max_attempts, wait"),
        (34, "command 'g': argv[1]: has a single {"),
        (38, "command 'g': retry.wait.factor: must be a number from 1 on, not 0.5"),
        (41, "command 'h': must be a table, [commands.NAME]"),
        (43, "'jobs' is not known: all is within [schedules.NAME] or"),
    ]
    found = [*caught.value.errors]
    assert [line for line, _ in found] == [line for line, _ in expected]
    for (_, reason), (_, begin) in zip(found, expected, strict=True):
        assert reason.startswith(begin)


FAULTS_OF_VALUES = """\
[commands.a]
argv = ["", "{", "ls", "{}", 7]
env = {A = 1, "B=" = "x", C = "x"}
inherit = ["", "A=B", "PATH", 5]
success = [0, 999, "SIGFOO"]
discard_on = [3, 4]
retry_on = [3]

[commands.a.retry]
max_attempts = 0
jiter = 2
wait = {first = "x", factor = 0.5, longest = "1h"}

[commands.b]
argv = ["ls"]
retry = 0
"""


def test_all_faults_of_a_value_are_told(tmp_path: Path) -> None:
    """
    All that is wrong within a list or a table is told; and what does not go together, even
    if something else is wrong.
    """
    with pytest.raises(InvalidCommandsError) as caught:
        load(tmp_path, FAULTS_OF_VALUES)
    codes = "must be exit codes from 0 to 255, or names of signals such as 'SIGTERM', not"
    brace = (
        "has a single { at position 0: a placeholder is a name in braces, {name}, and a"
        " brace itself is written twice"
    )
    nameless = (
        "has no name in the braces at position 0, and a placeholder is the name of a"
        " parameter alone, as {name}; a brace itself is written twice"
    )
    variable = "has a name that cannot be that of a variable: it is empty, or has a '='"
    assert [(line, reason.partition("': ")[2]) for line, reason in caught.value.errors] == [
        (2, "argv[0]: must not be empty: it is the program"),
        (2, f"argv[1]: {brace}"),
        (2, f"argv[3]: {nameless}"),
        (2, "argv[4]: must be a string, not a value of type int"),
        (3, "env.A: must be a string, not a value of type int"),
        (3, f"env: {variable}"),
        (4, f"inherit: {variable}"),
        (4, "inherit: must be a string, not a value of type int"),
        (5, f"success: {codes} 999"),
        (5, f"success: {codes} 'SIGFOO'"),
        (7, "retry_on: has 3, which is in discard_on, too: choose one"),
        (10, "retry.max_attempts: must be at least 1, not 0"),
        (11, "retry.jiter: is not known: there are max_attempts, wait, jitter"),
        (12, "retry.wait.first: must be seconds, or text like '1h30m', not 'x'"),
        (12, "retry.wait.factor: must be a number from 1 on, not 0.5"),
        (16, "retry: must be at least 1, not 0"),
    ]


SECRETS = f"""\
[commands.a]
argv = ["ls"]
env = "TOKEN={SECRET}"
stdin = ["{SECRET}"]

[commands.b]
argv = ["ls"]
env = ["TOKEN={SECRET}"]
stdin = "{{{{{SECRET}}}"
inherit = ["TOKEN={SECRET}"]

[commands.c]
argv = ["ls"]
env."TOKEN={SECRET}" = ""
stdin = '{{"password": "{SECRET}"}}'

[commands.d]
argv = ["ls"]
stdin = "{SECRET}\\u0000"

[commands.d.env]
TOKEN = ["{SECRET}"]
OTHER = "x"

[commands]
e = "{SECRET}"
f = [{{env = "{SECRET}"}}]
"""


def test_no_secret_of_a_file_is_told(tmp_path: Path) -> None:
    """
    All that is wrong in a file is told without the text of an environment or of stdin.
    """
    with pytest.raises(InvalidCommandsError) as caught:
        load(tmp_path, SECRETS)
    assert [line for line, _ in caught.value.errors] == [
        *(3, 4, 8, 9, 10, 14, 15, 19, 22, 26, 27)
    ]
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("[commands.a]\nargv = [\n", 3, "is not TOML: "),
        (b"[commands.a]\n\nargv = ['\xff']", 3, "is not UTF-8: there is a byte 0xff"),
        ("#" * 1_000_001, 1, "the file is larger than 1000000 bytes: make several of it"),
        ("commands = 1", 1, "commands: must be tables, [commands.NAME]"),
    ],
    ids=["toml", "utf-8", "large", "no tables"],
)
def test_what_is_no_file_of_commands(
    tmp_path: Path, text: str | bytes, line: int, reason: str
) -> None:
    """
    A file that cannot be read as TOML is refused, and it is told where and why.
    """
    with pytest.raises(InvalidCommandsError) as caught:
        load(tmp_path, text)
    [(found, told)] = caught.value.errors
    assert found == line
    assert told.startswith(reason)


def test_a_file_may_have_no_commands(tmp_path: Path) -> None:
    """
    A file without commands has none, and one that is not there is an error of the system.
    """
    assert load(tmp_path, "") == {}
    with pytest.raises(FileNotFoundError):
        load_commands(tmp_path / "nowhere.toml")
