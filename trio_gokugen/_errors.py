"""Every error a caller may want to tell apart, one class per thing done differently."""

from __future__ import annotations

import copy
import enum
import signal
from collections.abc import Collection, Iterable
from typing import Any

import attrs


class GokugenError(Exception):
    """The root of everything this library raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # What an exception does by itself would try to assign the fields, which cannot
        # be assigned, and lose the notes.
        return _copied, (type(self), self.args, self.__dict__)

    def __repr__(self) -> str:
        # Made here for all: one that attrs writes for each is half of what these classes
        # take to be imported.
        kind: Any = type(self)
        if not attrs.has(kind):
            return super().__repr__()
        fields = (
            f"{each.name}={getattr(self, each.name)!r}" for each in attrs.fields(kind)
        )
        return f"{kind.__name__}({', '.join(fields)})"


def _copied(
    kind: type[GokugenError], args: tuple[object, ...], state: dict[str, object]
) -> GokugenError:
    error = kind(*args)
    error.__dict__.update(copy.copy(state))
    return error


_SHOWN = 60
"""Characters of a value in a message."""


def printable(text: str) -> str:
    """The text, with what cannot be encoded written as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def on_one_line(text: str) -> str:
    """The text with nothing in it that would end its line, or steer a terminal."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in text
    )


def shown(value: object) -> str:
    """A value as a message has it: not too long, and whatever its `repr` may do."""
    try:
        text = printable(repr(value))
    except Exception as error:  # noqa: BLE001 (digits of a huge number, or the user's own)
        return f"<{type(value).__name__}, which cannot be shown: {type(error).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def quoted(names: Iterable[str]) -> str:
    """Names as a message lists them."""
    return ", ".join(repr(each) for each in sorted(names))


# -- what is wrong with the request -------------------------------------------------


@attrs.frozen(repr=False)
class InvalidTaskError(GokugenError, ValueError):
    """A value given for a task cannot be used. Nothing was stored.

    Correct the value named by `field` and call again.
    """

    field: str
    """Which argument, or which field of the task."""

    reason: str
    """What is wrong with it, and what would be right."""

    index: int | None = None
    """Of many tasks given at once, the position of the bad one."""

    def __str__(self) -> str:
        where = self.field if self.index is None else f"task {self.index}: {self.field}"
        return printable(f"{where}: {self.reason}")


def wrong_names(
    missing: Collection[str], left_over: Collection[str], taker: str
) -> InvalidTaskError:
    """Of a `param` that has not the names which are asked for: all that is wrong."""
    reasons = [f"lacks {quoted(missing)}"] if missing else []
    if left_over:
        reasons.append(f"has {quoted(left_over)}, which the {taker} does not take")
    return InvalidTaskError("param", ", and ".join(reasons))


@attrs.frozen(repr=False)
class InvalidTriggerError(GokugenError, ValueError):
    """A value given for a trigger cannot be used.

    Correct the value named by `field` and make it again.
    """

    field: str
    """Which argument."""

    reason: str
    """What is wrong with it, and what would be right."""

    def __str__(self) -> str:
        return printable(f"{self.field}: {self.reason}")


@attrs.frozen(repr=False)
class InvalidCommandError(GokugenError, ValueError):
    """A value given for a command cannot be used.

    Correct the value named by `field` and make it again.
    """

    field: str
    """Which argument."""

    reason: str
    """What is wrong with it, and what would be right."""

    work_id: str | None = None
    """Of many commands given at once, the name of the bad one."""

    def __str__(self) -> str:
        where = "" if self.work_id is None else f"command {shown(self.work_id)}: "
        return printable(f"{where}{self.field}: {self.reason}")


@attrs.frozen(repr=False)
class WorkNotFoundError(GokugenError, LookupError):
    """No work is registered under this name. Register it, or correct the name."""

    work_id: str

    index: int | None = None
    """Of many tasks given at once, the position of the bad one."""

    def __str__(self) -> str:
        where = "" if self.index is None else f"task {self.index}: "
        return f"{where}no work is registered as {self.work_id!r}"


@attrs.frozen(repr=False)
class WorkExistsError(GokugenError, ValueError):
    """A work of this name is registered already. Choose another name."""

    work_id: str

    def __str__(self) -> str:
        return f"a work is already registered as {self.work_id!r}"


@attrs.frozen(repr=False)
class PoolNotFoundError(GokugenError, LookupError):
    """There is no pool of this name, or none that tasks can name.

    Add it, or correct the name. The pool of all other works is for tasks that name none.
    """

    pool: str

    names: tuple[str, ...] | None = None
    """Those that tasks can name, if it was for one that it was named."""

    def __str__(self) -> str:
        if self.names is None:
            return f"there is no pool {self.pool!r}"
        what = f"there is no pool {self.pool!r} that a task can name"
        if not self.names:
            return f"{what}: give the scheduler a PoolsDispatcher that has it"
        return f"{what}: there are {quoted(self.names)}; or leave it to the work"


@attrs.frozen(repr=False)
class PoolExistsError(GokugenError, ValueError):
    """There is a pool of this name already, or one that runs this work.

    Choose another name, or leave the work to the one that has it.
    """

    pool: str

    work_id: str | None = None
    """The work that two pools would run."""

    def __str__(self) -> str:
        if self.work_id is None:
            return f"there is a pool {self.pool!r} already"
        return f"{self.work_id!r} is a work of the pool {self.pool!r} already"


@attrs.frozen(repr=False)
class ConditionNotFoundError(GokugenError, LookupError):
    """No condition is registered under this name. Register it, or correct the name."""

    condition: str

    def __str__(self) -> str:
        return f"no condition is registered as {self.condition!r}"


@attrs.frozen(repr=False)
class ConditionExistsError(GokugenError, ValueError):
    """A condition of this name is registered already. Choose another name."""

    condition: str

    def __str__(self) -> str:
        return f"a condition is already registered as {self.condition!r}"


# -- what the store answers ---------------------------------------------------------


class RepositoryError(GokugenError):
    """The store failed: what was asked may not have happened.

    `__cause__` holds the store's own error, where there is one.
    """


class RefusedError(RepositoryError):
    """The store works and has refused this one request. Nothing was changed.

    A definite answer, so trying the same again is of no use.
    """


@attrs.frozen(repr=False)
class TaskNotFoundError(RefusedError, LookupError):
    """There is no such task: never added, or ended and forgotten since."""

    task_id: str

    def __str__(self) -> str:
        return f"there is no task {self.task_id!r}"


@attrs.frozen(repr=False)
class ScheduleNotFoundError(RefusedError, LookupError):
    """There is no such schedule: never added, or removed since."""

    schedule_id: str

    def __str__(self) -> str:
        return f"there is no schedule {self.schedule_id!r}"


@attrs.frozen(repr=False)
class ScheduleExistsError(RefusedError):
    """A schedule of this id is there already, where a file was to be loaded."""

    schedule_id: str

    def __str__(self) -> str:
        return f"schedule {self.schedule_id!r} exists already"


@attrs.frozen(repr=False)
class NoSchedulesError(RefusedError):
    """The repository keeps tasks only. Use a `HeapRepository`, or one in a database."""

    def __str__(self) -> str:
        return "the repository keeps no schedules: use another, or add single tasks"


@attrs.frozen(repr=False)
class KeyExistsError(RefusedError):
    """A task of this key is there that has not ended. Nothing was added.

    To have that one instead, or to change it, say so by `if_exists`.
    """

    key: str
    task_id: str
    """The task that has it."""

    def __str__(self) -> str:
        return f"task {self.task_id!r} has the key {self.key!r} and has not ended"


@attrs.frozen(repr=False)
class TaskExistsError(RefusedError):
    """A task of this id is there already. An add repeated to be safe has succeeded."""

    task_id: str

    def __str__(self) -> str:
        return f"task {self.task_id!r} exists already"


@attrs.frozen(repr=False)
class AlreadyDispatchedError(RefusedError):
    """The task is with a worker, so it can no longer be changed or cancelled.

    To stop it anyway, interrupt it.
    """

    task_id: str

    def __str__(self) -> str:
        return (
            f"task {self.task_id!r} is already with a worker: wait for its end, or, to stop"
            " it, interrupt it"
        )


@attrs.frozen(repr=False)
class AlreadyCancelledError(RefusedError):
    """The task has been cancelled. To run it after all, add it again."""

    task_id: str

    def __str__(self) -> str:
        return f"task {self.task_id!r} has been cancelled"


@attrs.frozen(repr=False)
class AlreadyDoneError(RefusedError):
    """The task has ended, done or failed. To run it again, add it again."""

    task_id: str

    def __str__(self) -> str:
        return f"task {self.task_id!r} has already ended"


@attrs.frozen(repr=False)
class NotDispatchedError(RefusedError):
    """The task is not with a worker, so there is no run to end or interrupt.

    To keep a scheduled task from running, cancel it.
    """

    task_id: str

    def __str__(self) -> str:
        return (
            f"task {self.task_id!r} is not with a worker: if it is scheduled, and is not to"
            " run, cancel it"
        )


@attrs.frozen(repr=False)
class NotDueError(RefusedError):
    """The task's appointed time has not come. Look again when it has."""

    task_id: str

    def __str__(self) -> str:
        return f"task {self.task_id!r} is not due yet"


@attrs.frozen(repr=False)
class LostRunError(RefusedError):
    """This run has lost its task: the task was taken back, and dispatched anew.

    Drop what the run has to report; a later attempt answers for the task now.
    """

    task_id: str
    attempt: int

    def __str__(self) -> str:
        return f"attempt {self.attempt} of task {self.task_id!r} has lost the task"


@attrs.frozen(repr=False)
class NotRunningHereError(RefusedError):
    """The task is with a worker, but not with one of this scheduler.

    Ask the scheduler that runs it, or recover the task if nobody does.
    """

    task_id: str

    def __str__(self) -> str:
        return f"task {self.task_id!r} is not running in this scheduler"


@attrs.frozen(repr=False)
class DamagedFileError(RepositoryError, ValueError):
    """A line of a dump is not a task. Nothing was loaded.

    Mend or remove the line, then load the file again.
    """

    path: str
    line: int
    """Counted from 1."""

    reason: str

    def __str__(self) -> str:
        return printable(f"{self.path}, line {self.line}: {self.reason}")


@attrs.frozen(repr=False)
class InvalidFileError(GokugenError, ValueError):
    """A file that a user has written cannot be used, and nothing of it was.

    It is told all that is wrong: mend these lines, then load the file again.
    """

    path: str
    errors: tuple[tuple[int, str], ...]
    """The lines, counted from 1, and what is wrong there, in the order of the lines."""

    def __str__(self) -> str:
        lines = [f"{self.path}, line {line}: {reason}" for line, reason in self.errors]
        return printable("\n".join(lines))


@attrs.frozen(repr=False)
class InvalidSchedulesError(InvalidFileError):
    """A file of schedules cannot be used, as `load_schedules` says."""


@attrs.frozen(repr=False)
class InvalidCommandsError(InvalidFileError):
    """A file of commands cannot be used, as `load_commands` says."""


@attrs.frozen(repr=False)
class SchedulesRefusedError(GokugenError, ValueError):
    """Of schedules that were to be added in one go, some are refused.

    Correct them and add all again: what is there already stays as it is.
    """

    refusals: tuple[tuple[str, str], ...]
    """The ids of all that are refused, and why."""

    added: tuple[str, ...] = ()
    """The ids of those that are there now: none, unless it was the store that refused."""

    def __str__(self) -> str:
        refused = [f"{schedule_id!r}: {reason}" for schedule_id, reason in self.refusals]
        head = f"{len(refused)} refused, {len(self.added) or 'none'} added:"
        return printable("\n  ".join([head, *refused]))


REFUSALS = (RefusedError, InvalidTaskError, InvalidTriggerError)
"""What a store may say about one operation, having changed nothing."""


# -- what the scheduler answers -----------------------------------------------------


@attrs.frozen(repr=False)
class SchedulerNotRunningError(GokugenError, RuntimeError):
    """The scheduler has not started, or has stopped. Nothing was changed.

    Make the call inside ``async with open_scheduler(...)``, or after
    ``await nursery.start(scheduler.run)``.
    """

    def __str__(self) -> str:
        return (
            "the scheduler is not running: call it within its block, async with"
            " open_scheduler(...)"
        )


@attrs.frozen(repr=False)
class SchedulerAlreadyRunningError(GokugenError, RuntimeError):
    """This scheduler, or the repository it was given, is already at work.

    Use the one that runs, or give the second a repository of its own.
    """

    what: str = "scheduler"

    def __str__(self) -> str:
        return f"the {self.what} is already running"


@attrs.frozen(repr=False)
class ExecutorLostError(GokugenError):
    """The executor takes no more work: it is broken, was shut down, or cannot be reached.

    Nothing is dispatched meanwhile. A hook, `LoopHooks.on_dispatch_error`, may give the
    dispatcher another executor and answer `HookAction.RETRY`. `__cause__` holds the
    executor's own error, where there is one.
    """

    why: str

    def __str__(self) -> str:
        return printable(
            f"the executor takes no more work: {self.why}; a hook, on_dispatch_error, may"
            " give the dispatcher another and answer RETRY"
        )


# -- why a work did not end by itself -----------------------------------------------


class StopReason(enum.Enum):
    """Who cancelled a running work."""

    INTERRUPT = "interrupt"
    """A caller asked for it; the task ends cancelled."""

    SHUTDOWN = "shutdown"
    """The scheduler is stopping; the task goes back to scheduled."""

    REPLACED = "replaced"
    """The next occurrence of its schedule has taken its place; the task ends cancelled."""

    LOST_LEASE = "lost lease"
    """The store could not be told in time that the run goes on, or has taken the task."""

    LOST_EXECUTOR = "lost executor"
    """The executor has broken, or was shut down; the task goes back to scheduled."""


@attrs.frozen(repr=False)
class WorkStoppedError(GokugenError):
    """The work was cancelled from outside while it ran."""

    reason: StopReason

    started: bool = True
    """Whether it had come to run at all."""

    def __str__(self) -> str:
        return f"the work was stopped by {self.reason.value}"


def not_stopped(error: BaseException) -> BaseException:
    """What a work has raised, which must not look as if it had been stopped."""
    if not isinstance(error, WorkStoppedError):
        return error
    disguised = RuntimeError("the work raised a WorkStoppedError, though nobody stopped it")
    disguised.__cause__ = error
    return disguised


@attrs.frozen(repr=False)
class DeadlineExceededError(GokugenError, TimeoutError):
    """The task's deadline passed, before the work started or while it ran.

    Add the task again with a later deadline if it is still worth doing.
    """

    deadline: str
    """The moment, in ISO 8601."""

    started: bool

    def __str__(self) -> str:
        how = "the work was cancelled" if self.started else "the work was not started"
        return f"the deadline {self.deadline} has passed: {how}"


@attrs.frozen(repr=False)
class WorkTimeoutError(GokugenError, TimeoutError):
    """The work ran longer than the timeout it is registered with, and was cancelled."""

    seconds: float

    def __str__(self) -> str:
        return f"the work was cancelled after its timeout of {self.seconds} s"


@attrs.frozen(repr=False)
class LeakedCancelledError(GokugenError):
    """The work let out a `trio.Cancelled` of a scope that is its own business.

    Nothing had cancelled the work; it raised an exception that it had caught
    elsewhere, or left a cancel scope open.
    """

    def __str__(self) -> str:
        return "the work leaked a cancellation that is not its caller's"


@attrs.frozen(repr=False)
class CommandFailedError(GokugenError):
    """A command has ended in a way that does not mean success.

    What it has written tells why. To have some other exit code mean success, name it in
    the command's `success`.
    """

    exit_code: int | None
    """None if a signal has ended it."""

    signal: str | None
    """The name of the signal that has, such as ``SIGKILL``."""

    stdout: str
    """What was kept of its output."""

    stdout_dropped: int
    """Bytes of it that were not."""

    stderr: str
    stderr_dropped: int

    def __str__(self) -> str:
        return printable(f"{self.ending}{self.output}")

    @property
    def ending(self) -> str:
        """How it has ended, in words."""
        if self.signal is None:
            return f"the command exited with code {self.exit_code}"
        return f"the command was ended by {self.signal}"

    @property
    def output(self) -> str:
        """What was kept, as a text may have it at its end; empty if there is none."""
        # What is wrong is told in stderr, mostly, and a text is cut in its middle.
        streams = (("stdout", self.stdout), ("stderr", self.stderr))
        return "".join(f"\n\n{name}:\n{text}" for name, text in streams if text)


HAD_WRITTEN = "the command had written:\n"
"""How the note begins that is put on what a command that is stopped is left by."""


# -- what becomes of a work elsewhere -------------------------------------------------


@attrs.frozen(repr=False)
class WorkLostError(GokugenError):
    """A run elsewhere was lost, with the process, the pool or the cluster that ran it.

    Nothing will be heard of it any more: its work may go on, or not. It counts as a failed
    attempt: with ``Retry(retry_on=WorkLostError)`` there is another after a death, whoever
    ran the work, and after no error of the work's own. `__cause__` holds the executor's
    own error, where there is one.
    """

    why: str

    def __str__(self) -> str:
        return printable(f"the run was lost: {self.why}")


def _how_ended(error: WorkerDiedError) -> str:
    code = error.exit_code
    if code is None or code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


@attrs.frozen(repr=False)
class WorkerDiedError(WorkLostError):
    """The process that ran the work has ended, and took the run with it.

    The other runs go on, and the next has another process. Look into the work, or at what
    has killed its process: the system does so if memory runs out. Tried again as after any
    failure, if there is a `Retry`.
    """

    exit_code: int | None
    """As the process left it: negative, of the signal that has killed it."""

    why: str = attrs.field(init=False, default=attrs.Factory(_how_ended, takes_self=True))

    def __str__(self) -> str:
        return f"the process of the work has ended: {self.why}"


@attrs.frozen(repr=False)
class ForeignError(GokugenError):
    """A work in another process has raised what cannot come back as it is.

    Stands for it: a `Retry` that names its class wants this, too. To get the error itself,
    define its class in a module that the program has imported, and make it with plain
    values. Of a `SystemExit`, a `KeyboardInterrupt` and the like, which would end the
    program, there is nothing else than this.
    """

    kinds: tuple[str, ...]
    """The names of its class, and of all that this is derived from."""

    text: str
    """What it says."""

    why: str
    """Why it could not come back."""

    def __str__(self) -> str:
        what = f"{self.kinds[0]}: {self.text}" if self.text else self.kinds[0]
        return printable(f"{what} (which could not come back: {self.why})")
