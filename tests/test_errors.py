import copy
import inspect
import pickle
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest

from trio_gokugen import (
    AlreadyCancelledError,
    AlreadyDispatchedError,
    AlreadyDoneError,
    CommandFailedError,
    ConditionExistsError,
    ConditionNotFoundError,
    DamagedFileError,
    DeadlineExceededError,
    ExecutorLostError,
    ForeignError,
    GokugenError,
    InvalidCommandError,
    InvalidCommandsError,
    InvalidFileError,
    InvalidSchedulesError,
    InvalidTaskError,
    InvalidTriggerError,
    KeyExistsError,
    LeakedCancelledError,
    LostRunError,
    NoSchedulesError,
    NotDispatchedError,
    NotDueError,
    NotRunningHereError,
    PoolExistsError,
    PoolNotFoundError,
    RefusedError,
    RepositoryError,
    ScheduleExistsError,
    ScheduleNotFoundError,
    SchedulerAlreadyRunningError,
    SchedulerNotRunningError,
    SchedulesRefusedError,
    StopReason,
    TaskExistsError,
    TaskNotFoundError,
    WorkerDiedError,
    WorkExistsError,
    WorkLostError,
    WorkNotFoundError,
    WorkStoppedError,
    WorkTimeoutError,
    _errors,
)

EVERY = {
    "invalid": (
        InvalidTaskError("param.a", "must be an int"),
        "param.a: must be an int",
    ),
    "invalid of many": (
        InvalidTaskError("id", "must not be empty", 3),
        "task 3: id: must not be empty",
    ),
    "invalid trigger": (
        InvalidTriggerError("expression", "the minute, '61', cannot be used"),
        "expression: the minute, '61', cannot be used",
    ),
    "invalid command": (
        InvalidCommandError("argv[1]", "must be a string"),
        "argv[1]: must be a string",
    ),
    "invalid command of many": (
        InvalidCommandError("argv[1]", "must be a string", "clean"),
        "command 'clean': argv[1]: must be a string",
    ),
    "invalid commands": (
        InvalidCommandsError("commands.toml", ((2, "is too short"), (7, "is odd"))),
        "commands.toml, line 2: is too short\ncommands.toml, line 7: is odd",
    ),
    "invalid file": (
        InvalidFileError("a.toml", ((2, "is odd"),)),
        "a.toml, line 2: is odd",
    ),
    "command failed": (
        CommandFailedError(3, None, "", 0, "", 0),
        "the command exited with code 3",
    ),
    "command with output failed": (
        CommandFailedError(None, "SIGKILL", "a\n", 0, "b", 7),
        "the command was ended by SIGKILL\n\nstdout:\na\n\n\nstderr:\nb",
    ),
    "invalid schedules": (
        InvalidSchedulesError("crontab", ((2, "is too short"), (7, "is not JSON"))),
        "crontab, line 2: is too short\ncrontab, line 7: is not JSON",
    ),
    "schedules refused": (
        SchedulesRefusedError((("s1", "no work is registered as 'greet'"), ("s2", "no"))),
        "2 refused, none added:\n  's1': no work is registered as 'greet'\n  's2': no",
    ),
    "schedule refused": (
        SchedulesRefusedError((("s1", "trigger: odd"),), ("s2", "s3")),
        "1 refused, 2 added:\n  's1': trigger: odd",
    ),
    "no work": (WorkNotFoundError("greet"), "no work is registered as 'greet'"),
    "no work of many": (
        WorkNotFoundError("greet", 0),
        "task 0: no work is registered as 'greet'",
    ),
    "no pool": (PoolNotFoundError("mail"), "there is no pool 'mail'"),
    "no pool to name": (
        PoolNotFoundError("mail", ()),
        (
            "there is no pool 'mail' that a task can name: give the scheduler a"
            " PoolsDispatcher that has it"
        ),
    ),
    "no such pool": (
        PoolNotFoundError("mail", ("a", "b")),
        (
            "there is no pool 'mail' that a task can name: there are 'a', 'b'; or leave it"
            " to the work"
        ),
    ),
    "a pool twice": (PoolExistsError("mail"), "there is a pool 'mail' already"),
    "a work in two pools": (
        PoolExistsError("mail", "send"),
        "'send' is a work of the pool 'mail' already",
    ),
    "no condition": (
        ConditionNotFoundError("tide"),
        "no condition is registered as 'tide'",
    ),
    "condition exists": (
        ConditionExistsError("tide"),
        "a condition is already registered as 'tide'",
    ),
    "work exists": (
        WorkExistsError("greet"),
        "a work is already registered as 'greet'",
    ),
    "no task": (TaskNotFoundError("t1"), "there is no task 't1'"),
    "no schedule": (ScheduleNotFoundError("s1"), "there is no schedule 's1'"),
    "schedule exists": (ScheduleExistsError("s1"), "schedule 's1' exists already"),
    "no schedules": (
        NoSchedulesError(),
        "the repository keeps no schedules: use another, or add single tasks",
    ),
    "key exists": (
        KeyExistsError("k", "t1"),
        "task 't1' has the key 'k' and has not ended",
    ),
    "task exists": (TaskExistsError("t1"), "task 't1' exists already"),
    "dispatched": (
        AlreadyDispatchedError("t1"),
        (
            "task 't1' is already with a worker: wait for its end, or, to stop it,"
            " interrupt it"
        ),
    ),
    "cancelled": (AlreadyCancelledError("t1"), "task 't1' has been cancelled"),
    "done": (AlreadyDoneError("t1"), "task 't1' has already ended"),
    "not dispatched": (
        NotDispatchedError("t1"),
        "task 't1' is not with a worker: if it is scheduled, and is not to run, cancel it",
    ),
    "not due": (NotDueError("t1"), "task 't1' is not due yet"),
    "lost run": (LostRunError("t1", 2), "attempt 2 of task 't1' has lost the task"),
    "elsewhere": (
        NotRunningHereError("t1"),
        "task 't1' is not running in this scheduler",
    ),
    "damaged": (
        DamagedFileError("tasks.jsonl", 7, "is not JSON"),
        "tasks.jsonl, line 7: is not JSON",
    ),
    "not running": (
        SchedulerNotRunningError(),
        (
            "the scheduler is not running: call it within its block, async with"
            " open_scheduler(...)"
        ),
    ),
    "executor lost": (
        ExecutorLostError("it was shut down"),
        (
            "the executor takes no more work: it was shut down; a hook, on_dispatch_error,"
            " may give the dispatcher another and answer RETRY"
        ),
    ),
    "run lost": (
        WorkLostError("the cluster is gone"),
        "the run was lost: the cluster is gone",
    ),
    "running": (SchedulerAlreadyRunningError(), "the scheduler is already running"),
    "repository in use": (
        SchedulerAlreadyRunningError("repository's scheduler"),
        "the repository's scheduler is already running",
    ),
    "stopped": (
        WorkStoppedError(StopReason.SHUTDOWN),
        "the work was stopped by shutdown",
    ),
    "deadline": (
        DeadlineExceededError("2024-02-29T12:00:00+00:00", started=True),
        "the deadline 2024-02-29T12:00:00+00:00 has passed: the work was cancelled",
    ),
    "deadline before": (
        DeadlineExceededError("2024-02-29T12:00:00+00:00", started=False),
        "the deadline 2024-02-29T12:00:00+00:00 has passed: the work was not started",
    ),
    "timeout": (
        WorkTimeoutError(1.5),
        "the work was cancelled after its timeout of 1.5 s",
    ),
    "leaked": (
        LeakedCancelledError(),
        "the work leaked a cancellation that is not its caller's",
    ),
    "died": (WorkerDiedError(3), "the process of the work has ended: exit code 3"),
    "killed": (
        WorkerDiedError(-9),
        "the process of the work has ended: killed by SIGKILL",
    ),
    "killed in an unknown way": (
        WorkerDiedError(-1000),
        "the process of the work has ended: killed by signal 1000",
    ),
    "foreign": (
        ForeignError(("shop.SoldOut", "builtins.Exception"), "no tea", "it has a socket"),
        "shop.SoldOut: no tea (which could not come back: it has a socket)",
    ),
    "foreign without a text": (
        ForeignError(("shop.SoldOut",), "", "it has a socket"),
        "shop.SoldOut (which could not come back: it has a socket)",
    ),
}
every_error = pytest.mark.parametrize(
    "error", [error for error, _ in EVERY.values()], ids=EVERY.keys()
)


def fields(error: GokugenError) -> dict[str, Any]:
    kind: Any = type(error)
    return {field.name: getattr(error, field.name) for field in attrs.fields(kind)}


def pickled(protocol: int) -> Callable[[GokugenError], GokugenError]:
    def there_and_back(error: GokugenError) -> GokugenError:
        back: GokugenError = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own
        return back

    return there_and_back


COPIES: dict[str, Callable[[GokugenError], GokugenError]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle-{n}": pickled(n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
}
every_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES.keys())


def test_every_error_is_tried_here() -> None:
    """
    Every class of error that the library defines, but the bare ones, is tried below.
    """
    bare = {GokugenError, RepositoryError, RefusedError}
    defined = {
        each
        for _, each in inspect.getmembers(_errors, inspect.isclass)
        if issubclass(each, BaseException)
    }
    assert {type(error) for error, _ in EVERY.values()} == defined - bare


@pytest.mark.parametrize(("error", "shown"), EVERY.values(), ids=EVERY.keys())
def test_an_error_reads_as_a_sentence(error: GokugenError, shown: str) -> None:
    """
    An error says in plain words what is wrong, and with which task, work or field.
    """
    assert str(error) == shown
    assert traceback.format_exception_only(error) == [
        f"trio_gokugen._errors.{type(error).__name__}: {shown}\n"
    ]


@every_error
def test_an_error_shows_its_fields(error: GokugenError) -> None:
    """
    The `repr` of an error has its class and each of its fields by name.
    """
    texts = (f"{name}={value!r}" for name, value in fields(error).items())
    assert repr(error) == f"{type(error).__name__}({', '.join(texts)})"


@every_error
@every_copy
def test_an_error_survives_a_copy(
    error: GokugenError, copied: Callable[[GokugenError], GokugenError]
) -> None:
    """
    A copy of an error, by pickle too, is of its class and has its fields and its text.
    """
    other = copied(error)
    assert other is not error
    assert type(other) is type(error)
    assert fields(other) == fields(error)
    assert other.args == error.args
    assert (str(other), repr(other)) == (str(error), repr(error))


@pytest.mark.parametrize("kind", [GokugenError, RepositoryError, RefusedError])
@every_copy
def test_a_bare_error_survives_a_copy(
    kind: type[GokugenError], copied: Callable[[GokugenError], GokugenError]
) -> None:
    """
    A copy of an error that has no fields keeps its text.
    """
    other = copied(kind("disk full"))
    assert other.args == ("disk full",)
    assert repr(other) == f"{kind.__name__}('disk full')"


@every_copy
def test_notes_survive_a_copy(copied: Callable[[GokugenError], GokugenError]) -> None:
    """
    A note that was added to an error, of any class, is there in a copy.
    """
    for error, _ in EVERY.values():
        noted = copy.copy(error)
        noted.add_note("while serving a client")
        assert getattr(copied(noted), "__notes__", None) == ["while serving a client"]


@every_error
def test_an_error_stays_as_it_is(error: GokugenError) -> None:
    """
    A field of an error cannot be assigned or deleted.
    """
    for field in fields(error):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(error, field, "other")
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            delattr(error, field)


@every_error
def test_an_error_can_be_raised_like_any_other(error: GokugenError) -> None:
    """
    An error takes a cause, a context and a traceback, as it is raised and raised again.
    """

    @contextmanager
    def passed_on() -> Generator[None]:
        yield

    raised, cause = copy.copy(error), KeyError("a")
    with pytest.raises(type(error)) as caught, passed_on():
        raise raised from cause
    assert caught.value is raised
    assert raised.__cause__ is cause
    assert raised.with_traceback(None).__traceback__ is None
    with pytest.RaisesGroup(type(error)):
        raise ExceptionGroup("many", [raised])


@every_error
def test_an_error_is_itself_alone(error: GokugenError) -> None:
    """
    An error equals itself, and no copy of it; both can be put in one set.
    """
    other = copy.copy(error)
    assert error != other
    assert len({error, other, error}) == 2


@pytest.mark.parametrize(
    ("base", "derived"),
    [
        (
            RepositoryError,
            {
                RefusedError,
                ScheduleNotFoundError,
                ScheduleExistsError,
                NoSchedulesError,
                KeyExistsError,
                TaskNotFoundError,
                TaskExistsError,
                AlreadyDispatchedError,
                AlreadyCancelledError,
                AlreadyDoneError,
                NotDispatchedError,
                NotDueError,
                LostRunError,
                NotRunningHereError,
                DamagedFileError,
            },
        ),
        (
            RefusedError,
            {
                ScheduleNotFoundError,
                ScheduleExistsError,
                NoSchedulesError,
                KeyExistsError,
                TaskNotFoundError,
                TaskExistsError,
                AlreadyDispatchedError,
                AlreadyCancelledError,
                AlreadyDoneError,
                NotDispatchedError,
                NotDueError,
                LostRunError,
                NotRunningHereError,
            },
        ),
        (
            LookupError,
            {
                ScheduleNotFoundError,
                TaskNotFoundError,
                PoolNotFoundError,
                WorkNotFoundError,
                ConditionNotFoundError,
            },
        ),
        (
            ValueError,
            {
                InvalidCommandError,
                InvalidCommandsError,
                InvalidFileError,
                InvalidSchedulesError,
                InvalidTaskError,
                InvalidTriggerError,
                SchedulesRefusedError,
                PoolExistsError,
                WorkExistsError,
                ConditionExistsError,
                DamagedFileError,
            },
        ),
        (InvalidFileError, {InvalidCommandsError, InvalidSchedulesError}),
        (RuntimeError, {SchedulerNotRunningError, SchedulerAlreadyRunningError}),
        (TimeoutError, {DeadlineExceededError, WorkTimeoutError}),
        (WorkLostError, {WorkerDiedError}),
        (
            GokugenError,
            {
                RepositoryError,
                RefusedError,
                *(type(error) for error, _ in EVERY.values()),
            },
        ),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else "",
)
def test_errors_are_caught_by_what_they_have_in_common(
    base: type[Exception], derived: set[type[Exception]]
) -> None:
    """
    What is caught together is what a caller would treat alike.
    """
    defined = {
        each
        for _, each in inspect.getmembers(_errors, inspect.isclass)
        if issubclass(each, base)
    }
    assert defined - {base} == derived


@pytest.mark.parametrize(
    "error",
    [
        InvalidTaskError("\ud800", "is not a field of a task"),
        InvalidTriggerError("\ud800", "is not a field of a trigger"),
        InvalidCommandError("\ud800", "is not a field of a command", "\ud800"),
        InvalidCommandsError("commands-\udcff", ((1, "is not UTF-8"),)),
        CommandFailedError(1, None, "\ud800", 0, "", 0),
        WorkNotFoundError("\ud800"),
        TaskNotFoundError("\ud800"),
        DamagedFileError("tasks-\udcff.jsonl", 1, "is not JSON"),
        InvalidSchedulesError("crontab-\udcff", ((1, "is not UTF-8"),)),
        SchedulesRefusedError((("s", "no work is registered as '\ud800'"),)),
    ],
    ids=[
        "field",
        "trigger",
        "command",
        "commands",
        "output",
        "work",
        "task",
        "path",
        "schedules",
        "refusals",
    ],
)
def test_an_error_can_always_be_printed(error: GokugenError) -> None:
    """
    The text of an error can be encoded, whatever was wrong with the text it is about.
    """
    assert str(error).encode()
