"""All that is done in one transaction: a batch of operations, or one of the other calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import outcome

from trio_gokugen._task import Task
from trio_gokugen.abc import (
    ANY_TASK,
    ClaimTasks,
    DeleteEnded,
    OnSchedule,
    Operation,
    RecoverAction,
    Renewed,
    TaskFilter,
)

from . import _claims, _deletions, _leases, _scheduling
from ._changes import Changes
from ._ongoing import Ongoing
from ._order import concerns_schedules, lock_ahead


class Transaction:
    """What is done within a transaction that another begins, and ends."""

    def __init__(self, ongoing: Ongoing, *, careful: bool = False) -> None:
        """Work in a transaction.

        Args:
          ongoing: The transaction, which may write.
          careful: Look whether ids are taken before they are used.
        """
        self.ongoing = ongoing
        self._careful = careful

    def apply(self, operations: Sequence[Operation]) -> list[outcome.Outcome[Any]]:
        """Carry out operations one after the other."""
        ongoing = self.ongoing
        locks = ongoing.dialect.locks_rows
        if locks and len(operations) > 1 and concerns_schedules(operations):
            lock_ahead(ongoing, operations)
            locks = False
        outcomes: list[outcome.Outcome[Any]] = []
        for group in _groups(operations):
            later = operations[len(outcomes) :]
            if not isinstance(group[0], OnSchedule):
                later = later[len(group) :]
            ongoing.ahead = partial(lock_ahead, ongoing, later) if locks and later else None
            outcomes += self._carry_out(group)
        return outcomes

    def _carry_out(self, group: Sequence[Operation]) -> list[outcome.Outcome[Any]]:
        """Carry out operations of one kind."""
        match group[0]:
            case ClaimTasks() as operation:
                return [outcome.Value(_claims.claim(self.ongoing, operation))]
            case DeleteEnded() as operation:
                return [outcome.Value(_deletions.delete_ended(self.ongoing, operation))]
            case OnSchedule():
                changes = [each.change for each in group if isinstance(each, OnSchedule)]
                return _scheduling.change_schedules(self.ongoing, changes)
            case _:
                return Changes(self.ongoing, careful=self._careful).carry_out(group)

    def first(self, only: TaskFilter) -> Task | None:
        """The first pending task."""
        return _claims.first(self.ongoing, only)

    def recover(self, action: RecoverAction, at: datetime, only: TaskFilter) -> list[Task]:
        """Recover what was left by who had our name, and what others have let go."""
        return _leases.recover(self.ongoing, self.ongoing.say.left, action, at, only)

    def renew(self, runs: Sequence[Task], action: RecoverAction, at: datetime) -> Renewed:
        """Renew the leases of runs, and recover what others have let go."""
        lost = _leases.renew(self.ongoing, runs, at)
        expired = self.ongoing.say.expired
        return Renewed(lost, _leases.recover(self.ongoing, expired, action, at, ANY_TASK))

    def delete_surplus(self, keep: int, limit: int) -> list[str]:
        """Delete at most `limit` ended tasks, oldest end first, so that `keep` are left."""
        return _deletions.delete_surplus(self.ongoing, keep, limit)


def _groups(operations: Iterable[Operation]) -> Iterator[list[Operation]]:
    """Operations that can be carried out together: those that name tasks, or schedules."""
    group: list[Operation] = []
    for operation in operations:
        if group and not _together(group[0], operation):
            yield group
            group = []
        group.append(operation)
    if group:
        yield group


def _together(one: Operation, other: Operation) -> bool:
    if isinstance(one, ClaimTasks | DeleteEnded) or isinstance(
        other, ClaimTasks | DeleteEnded
    ):
        return False
    return isinstance(one, OnSchedule) is isinstance(other, OnSchedule)
