"""Runs tasks at their appointed times inside a Trio program."""

from ._autojump import autojump_held
from ._calendar_interval import CalendarInterval
from ._clock import SystemClock, TrioClock
from ._cron import Cron
from ._current_task import current_task
from ._errors import (
    AlreadyCancelledError,
    AlreadyDispatchedError,
    AlreadyDoneError,
    DamagedFileError,
    DeadlineExceededError,
    GokugenError,
    InvalidTaskError,
    InvalidTriggerError,
    LeakedCancelledError,
    LostRunError,
    NotDispatchedError,
    NotDueError,
    NotRunningHereError,
    RefusedError,
    RepositoryError,
    SchedulerAlreadyRunningError,
    SchedulerNotRunningError,
    StopReason,
    TaskExistsError,
    TaskNotFoundError,
    WorkExistsError,
    WorkNotFoundError,
    WorkStoppedError,
    WorkTimeoutError,
)
from ._heap_repository import HeapRepository, HeapStore
from ._hooks import BackoffHooks, ChainHooks, PartialHooks, PassThroughHooks
from ._interval import Interval
from ._json import JSON
from ._query import TaskQuery
from ._repository import BulkRepository, SimpleRepository
from ._scheduler import Scheduler, SchedulerStatistics, open_scheduler
from ._task import UNCHANGED, Task, TaskParam, TaskState, TaskUpdate
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
    "At",
    "BackoffHooks",
    "Both",
    "BulkRepository",
    "CalendarInterval",
    "ChainHooks",
    "Cron",
    "DamagedFileError",
    "DeadlineExceededError",
    "Either",
    "Except",
    "GokugenError",
    "HeapRepository",
    "HeapStore",
    "HookAction",
    "HookTimer",
    "Interval",
    "InvalidTaskError",
    "InvalidTriggerError",
    "LeakedCancelledError",
    "LoopHooks",
    "LostRunError",
    "NotDispatchedError",
    "NotDueError",
    "NotRunningHereError",
    "PartialHooks",
    "PassThroughHooks",
    "RefusedError",
    "RepositoryError",
    "Scheduler",
    "SchedulerAlreadyRunningError",
    "SchedulerNotRunningError",
    "SchedulerStatistics",
    "SimpleRepository",
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
    "WorkNotFoundError",
    "WorkRegistry",
    "WorkStoppedError",
    "WorkTimeoutError",
    "WorkerPoolDispatcher",
    "autojump_held",
    "current_task",
    "open_scheduler",
    "trigger_from_data",
    "trigger_from_json",
]
