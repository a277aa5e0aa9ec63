"""All that is done in one transaction: a batch of operations, or one of the other calls."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import outcome

from trio_gokugen._errors import REFUSALS
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
        outcomes: list[outcome.Outcome[Any]] = []
        named: list[Operation] = []  # which name their tasks, and are carried out together
        for operation in operations:
            if not isinstance(operation, ClaimTasks | DeleteEnded | OnSchedule):
                named.append(operation)
                continue
            outcomes += self._change(named)
            named = []
            try:
                outcomes.append(outcome.Value(self._carry_out(operation)))
            except REFUSALS as error:
                outcomes.append(outcome.Error(error))
        outcomes += self._change(named)
        return outcomes

    def _carry_out(self, operation: ClaimTasks | DeleteEnded | OnSchedule) -> Any:
        if isinstance(operation, ClaimTasks):
            return _claims.claim(self.ongoing, operation)
        if isinstance(operation, OnSchedule):
            return _scheduling.change_schedule(self.ongoing, operation)
        return _deletions.delete_ended(self.ongoing, operation)

    def _change(self, operations: Sequence[Operation]) -> list[outcome.Outcome[Any]]:
        if not operations:
            return []
        return Changes(self.ongoing, careful=self._careful).carry_out(operations)

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
