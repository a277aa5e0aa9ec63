"""Runs tasks at their appointed times inside a Trio program."""

from ._autojump import autojump_held
from ._calendar_interval import CalendarInterval
from ._clock import SystemClock, TrioClock
from ._command import Command
from ._command_registry import CommandRegistry
from ._conditions import Answer
from ._cron import Cron
from ._current_task import current_task
from ._errors import (
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
)
from ._executor_calls import report_progress
from ._executor_dispatcher import ExecutorDispatcher
from ._heap_repository import HeapRepository, HeapStore
from ._hooks import BackoffHooks, ChainHooks, PartialHooks, PassThroughHooks
from ._interval import Interval
from ._json import JSON
from ._key_limits import KeyLimit
from ._load_commands import load_commands
from ._load_schedules import load_schedules
from ._mutators import Mutator, randomised, run_now
from ._plan import Plan, Planned, plan
from ._pool import Pool, PoolStatistics, Rate
from ._pools import PoolsDispatcher
from ._query import TaskQuery
from ._repository import BulkRepository, SimpleRepository
from ._retry import Discard, Retry, Snooze, exponential, fixed
from ._schedule import Dropped, FoundSchedules, Late, Schedule
from ._scheduler import (
    Scheduler,
    SchedulerStatistics,
    current_scheduler,
    open_scheduler,
)
from ._task import (
    UNCHANGED,
    FailedAttempt,
    Progress,
    Task,
    TaskParam,
    TaskState,
    TaskUpdate,
)
from ._timer import HookTimer, TimedRepository
from ._triggers import At, Both, Either, Except, trigger_from_data, trigger_from_json
from ._work_registry import WorkRegistry
from ._worker_pool import WorkerPoolDispatcher
from .abc import HookAction, LoopHooks

__version__ = "0.1.0"

__all__ = [
    "JSON",
    "UNCHANGED",
    "AlreadyCancelledError",
    "AlreadyDispatchedError",
    "AlreadyDoneError",
    "Answer",
    "At",
    "BackoffHooks",
    "Both",
    "BulkRepository",
    "CalendarInterval",
    "ChainHooks",
    "Command",
    "CommandFailedError",
    "CommandRegistry",
    "ConditionExistsError",
    "ConditionNotFoundError",
    "Cron",
    "DamagedFileError",
    "DeadlineExceededError",
    "Discard",
    "Dropped",
    "Either",
    "Except",
    "ExecutorDispatcher",
    "ExecutorLostError",
    "FailedAttempt",
    "ForeignError",
    "FoundSchedules",
    "GokugenError",
    "HeapRepository",
    "HeapStore",
    "HookAction",
    "HookTimer",
    "Interval",
    "InvalidCommandError",
    "InvalidCommandsError",
    "InvalidFileError",
    "InvalidSchedulesError",
    "InvalidTaskError",
    "InvalidTriggerError",
    "KeyExistsError",
    "KeyLimit",
    "Late",
    "LeakedCancelledError",
    "LoopHooks",
    "LostRunError",
    "Mutator",
    "NoSchedulesError",
    "NotDispatchedError",
    "NotDueError",
    "NotRunningHereError",
    "PartialHooks",
    "PassThroughHooks",
    "Plan",
    "Planned",
    "Pool",
    "PoolExistsError",
    "PoolNotFoundError",
    "PoolStatistics",
    "PoolsDispatcher",
    "Progress",
    "Rate",
    "RefusedError",
    "RepositoryError",
    "Retry",
    "Schedule",
    "ScheduleExistsError",
    "ScheduleNotFoundError",
    "Scheduler",
    "SchedulerAlreadyRunningError",
    "SchedulerNotRunningError",
    "SchedulerStatistics",
    "SchedulesRefusedError",
    "SimpleRepository",
    "Snooze",
    "StopReason",
    "SystemClock",
    "Task",
    "TaskExistsError",
    "TaskNotFoundError",
    "TaskParam",
    "TaskQuery",
    "TaskState",
    "TaskUpdate",
    "TimedRepository",
    "TrioClock",
    "WorkExistsError",
    "WorkLostError",
    "WorkNotFoundError",
    "WorkRegistry",
    "WorkStoppedError",
    "WorkTimeoutError",
    "WorkerDiedError",
    "WorkerPoolDispatcher",
    "autojump_held",
    "current_scheduler",
    "current_task",
    "exponential",
    "fixed",
    "load_commands",
    "load_schedules",
    "open_scheduler",
    "plan",
    "randomised",
    "report_progress",
    "run_now",
    "trigger_from_data",
    "trigger_from_json",
]
