"""How the result of a run is recorded, and what becomes of its task.

A result is turned into the operation that records it by a pure function: it is made anew
if the store could not write it, and must be the same then, but for the time.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import outcome

from ._conditions import Skipped
from ._describe import brief, describe
from ._errors import (
    DeadlineExceededError,
    StopReason,
    WorkNotFoundError,
    WorkStoppedError,
)
from ._lengths import later
from ._results import Unkept, to_keep
from ._retry import Discard, RetryAfter, Snooze, wish
from ._task import Task
from .abc import (
    CancelRun,
    EndTask,
    Operation,
    RetryTask,
    RevertTask,
    Work,
    WorkRegistry,
)


def recording(
    run: Task, ended: outcome.Outcome[Any], works: WorkRegistry, now: datetime
) -> Operation:
    """How it is recorded that a run has ended so."""
    try:
        return _recording(run, ended, works, now)
    except Exception as broken:  # noqa: BLE001 (it is told in the task)
        # A value, an error, or a policy of somebody's own that fails when it is looked at.
        return EndTask(run, now, f"its outcome cannot be told: {describe(broken)}")


def _recording(
    run: Task, ended: outcome.Outcome[Any], works: WorkRegistry, now: datetime
) -> Operation:
    if isinstance(ended, outcome.Value):
        try:
            retain = works.get(run.work_id).retain
        except WorkNotFoundError:
            retain = False
        return _retaining(run, now, ended.value) if retain else EndTask(run, now)
    assert isinstance(ended, outcome.Error)
    error = ended.error
    if not isinstance(error, WorkStoppedError):
        return _after_failure(run, now, error, works)
    if error.reason in {StopReason.INTERRUPT, StopReason.REPLACED}:
        return CancelRun(run, now)
    if run.at_most_once and error.started:
        return EndTask(run, now, describe(error))
    return RevertTask(run)


def _work_of(run: Task, works: WorkRegistry) -> Work | None:
    try:
        return works.get(run.work_id)
    except WorkNotFoundError:
        return None


def _retaining(run: Task, now: datetime, value: Any) -> EndTask:
    kept = to_keep(value)
    if isinstance(kept, Unkept):
        return EndTask(run, now, kept.why)
    return EndTask(run, now, result=kept)


def _after_failure(
    run: Task, now: datetime, error: BaseException, works: WorkRegistry
) -> Operation:
    wanted = wish(error)
    if isinstance(error, Skipped):
        return CancelRun(run, now)
    if isinstance(wanted, Snooze):
        return _snoozing(run, now, wanted)
    if isinstance(wanted, Discard):
        return EndTask(run, now, describe(wanted))
    err = describe(error)
    try:
        wait = _wait(run, error, works, wanted)
    except Exception as broken:  # noqa: BLE001 (it is told beside the failure)
        return EndTask(run, now, f"{err}\n\nand its Retry failed, too: {describe(broken)}")
    if wait is None:
        return EndTask(run, now, err)
    return _trying_again(run, now, wait, err)


def _trying_again(run: Task, now: datetime, wait: timedelta, err: str) -> Operation:
    again_at = later(now, wait)
    if again_at is None or _is_too_late(run, again_at):
        why = "not tried again: its deadline would have passed by then"
        return EndTask(run, now, f"{err}\n\n{why}")
    return RetryTask(run, now, again_at, brief(err))


def _wait(
    run: Task, error: BaseException, works: WorkRegistry, wanted: RetryAfter | None
) -> timedelta | None:
    """How long until the next attempt; none if there is to be none."""
    work = _work_of(run, works)
    retry = run.retry if run.retry is not None or work is None else work.retry
    failed = run.retries + 1
    most = None if retry is None else retry.max_attempts
    if most is not None and failed >= most:
        return None
    if wanted is not None:
        return wanted.wait
    if retry is None or isinstance(error, DeadlineExceededError):
        return None
    return retry.delay(run.id, failed) if retry.wants(error) else None


def _snoozing(run: Task, now: datetime, snooze: Snooze) -> Operation:
    at = snooze.at
    if at is None:
        assert snooze.wait is not None
        at = later(now, snooze.wait)
    if at is None or _is_too_late(run, at):
        return EndTask(run, now, f"{describe(snooze)}\n\nits deadline comes before that")
    return RetryTask(run, now, at)


def _is_too_late(run: Task, at: datetime) -> bool:
    return run.deadline is not None and at >= run.deadline
