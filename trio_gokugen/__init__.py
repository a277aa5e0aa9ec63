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
    NoSchedulesError,
    NotDispatchedError,
    NotDueError,
    NotRunningHereError,
    RefusedError,
    RepositoryError,
    ScheduleExistsError,
    ScheduleNotFoundError,
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
from ._plan import Plan, Planned, plan
from ._query import TaskQuery
from ._repository import BulkRepository, SimpleRepository
from ._schedule import Dropped, FoundSchedules, Late, Schedule
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
    "Dropped",
    "Either",
    "Except",
    "FoundSchedules",
    "GokugenError",
    "HeapRepository",
    "HeapStore",
    "HookAction",
    "HookTimer",
    "Interval",
    "InvalidTaskError",
    "InvalidTriggerError",
    "Late",
    "LeakedCancelledError",
    "LoopHooks",
    "LostRunError",
    "NoSchedulesError",
    "NotDispatchedError",
    "NotDueError",
    "NotRunningHereError",
    "PartialHooks",
    "PassThroughHooks",
    "Plan",
    "Planned",
    "RefusedError",
    "RepositoryError",
    "Schedule",
    "ScheduleExistsError",
    "ScheduleNotFoundError",
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
    "plan",
    "trigger_from_data",
    "trigger_from_json",
]
