"""The one queue that leads to the only writer.

Callers put requests and wait for the answer; workers put results and do not wait. The
update loop takes all that is there as one batch.

Whether a caller's cancellation changes anything is decided by one thing: has the request
been taken? One that waits is withdrawn. One that was taken is on its way into the store,
so its caller stays until the answer is known, as it does in a thread that cannot be
abandoned.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import attrs
import outcome
import trio

from ._errors import SchedulerNotRunningError
from .abc import Operation, Start, TaskResult


class _Stage(enum.Enum):
    WAITING = enum.auto()
    TAKEN = enum.auto()
    SETTLED = enum.auto()


@attrs.define(eq=False)
class Request:
    """An operation, and the Trio task that waits for its outcome."""

    make: Callable[[datetime], Operation]
    """Makes the operation at the last moment, as the batch is taken; is told when."""

    start: Start | None = None
    """For a claim: what to do with each task, in the step in which it is settled."""

    laid_down: Callable[[], None] | None = None
    """Called if it could not be carried out, and waits for a hook's decision."""

    _trio_task: trio.lowlevel.Task = attrs.field(factory=trio.lowlevel.current_task)
    _stage: _Stage = _Stage.WAITING
    _raise_cancel: trio.lowlevel.RaiseCancelT | None = None
    """Raises the caller's cancellation, which came while the request was taken."""

    async def answer(self) -> Any:
        """Wait until it is settled; if cancelled while it waits, withdraw it."""

        def abort(raise_cancel: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            if self._stage is _Stage.WAITING:
                self._stage = _Stage.SETTLED
                return trio.lowlevel.Abort.SUCCEEDED
            self._raise_cancel = raise_cancel
            return trio.lowlevel.Abort.FAILED

        return await trio.lowlevel.wait_task_rescheduled(abort)

    def take(self) -> bool:
        """Take it for a batch, unless it was withdrawn."""
        if self._stage is _Stage.SETTLED:
            return False
        self._stage = _Stage.TAKEN
        return True

    def lay_down(self) -> None:
        """It could not be carried out, and waits again: a cancelled caller may leave."""
        if self._stage is _Stage.TAKEN:
            self._stage = _Stage.WAITING
            if self.laid_down is not None:
                self.laid_down()
            if self._raise_cancel is not None:
                self.settle(outcome.capture(self._raise_cancel))

    def settle(self, result: outcome.Outcome[Any]) -> None:
        """Answer the caller."""
        if self._stage is not _Stage.SETTLED:
            self._stage = _Stage.SETTLED
            trio.lowlevel.reschedule(self._trio_task, result)

    def refuse(self) -> None:
        """Answer that the scheduler has stopped, nothing having been changed."""
        self.settle(outcome.Error(SchedulerNotRunningError()))


Item: TypeAlias = Request | TaskResult
_NOT_YET = outcome.Value(None)


class UpdateQueue:
    """What waits for the update loop."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._loop: trio.lowlevel.Task | None = None
        self._closed = False
        self.claim_expected = False
        """Whether there will be a claim as soon as a worker is free."""

    def __len__(self) -> int:
        return len(self._items)

    @trio.lowlevel.enable_ki_protection
    async def ask(
        self,
        make: Callable[[datetime], Operation],
        start: Start | None = None,
        laid_down: Callable[[], None] | None = None,
    ) -> Any:
        """Have an operation carried out, and return its result or raise its error.

        A checkpoint. Cancelled before the operation is taken, it withdraws it; later
        the cancellation waits for the answer.
        """
        if self._closed:
            raise SchedulerNotRunningError
        request = Request(make, start, laid_down)
        self._items.append(request)
        if self._loop is not None:
            self._wake()
        return await request.answer()

    @trio.lowlevel.enable_ki_protection
    async def ask_all(
        self, makes: Sequence[Callable[[datetime], Operation]]
    ) -> list[outcome.Outcome[Any]]:
        """Have operations carried out in one batch, and return what became of each.

        A checkpoint. Cancelled before the batch is taken, it withdraws them all; later the
        cancellation waits for the answers.
        """
        outcomes: list[outcome.Outcome[Any]] = [_NOT_YET] * len(makes)

        @trio.lowlevel.enable_ki_protection
        async def wait(
            index: int,
            *,
            task_status: trio.TaskStatus[Request] = trio.TASK_STATUS_IGNORED,
        ) -> None:
            request = Request(makes[index])
            task_status.started(request)
            try:
                outcomes[index] = outcome.Value(await request.answer())
            except Exception as error:  # noqa: BLE001 (it is the outcome)
                outcomes[index] = outcome.Error(error)

        if not makes:
            await trio.lowlevel.checkpoint()
        async with trio.open_nursery() as nursery:
            # `start` returns when all of them wait for their answers, which may come now.
            requests = [await nursery.start(wait, index) for index in range(len(makes))]
            if self._closed:
                for request in requests:
                    request.refuse()
            else:
                self._items += requests  # in one step, so that one batch has them all
                if self._loop is not None:
                    self._wake()
        return outcomes

    def send_nowait(self, value: TaskResult, /) -> None:
        """Put a result. Closed or not, none is lost."""
        self._items.append(value)
        if self._loop is not None:
            self._wake()

    def put_back(self, items: Sequence[Item]) -> None:
        """Put items in front again, that were taken and not written."""
        self._items[:0] = items
        if self._loop is not None:
            self._wake()

    async def take_all(self) -> list[Item]:
        """All that waits, in order of arrival, once there is something."""
        if not self._items:
            self._loop = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self._loop = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        if self.claim_expected:
            # Maybe by the result that has come. Whose turn is first is left to chance, and
            # a claim that came too late would need a write of its own.
            await trio.lowlevel.checkpoint()
        items, self._items = self._items, []
        return items

    def close(self) -> list[TaskResult]:
        """Refuse whoever waits and whoever comes; return the results left over."""
        self._closed = True
        items, self._items = self._items, []
        results: list[TaskResult] = []
        for item in items:
            if isinstance(item, Request):
                item.refuse()
            else:
                results.append(item)
        return results

    def _wake(self) -> None:
        assert self._loop is not None
        trio.lowlevel.reschedule(self._loop)
        self._loop = None
