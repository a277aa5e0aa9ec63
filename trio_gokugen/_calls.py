"""What the calls of a scheduler have in common: it must run, and know what is named."""

from __future__ import annotations

from collections.abc import Mapping

from ._engine import Engine
from ._errors import InvalidTaskError, SchedulerNotRunningError, WorkNotFoundError
from ._json import JSON
from .abc import Dispatcher, TaskRepository, WorkRegistry


class Calls:
    """See above."""

    _works: WorkRegistry
    _repository: TaskRepository
    _dispatcher: Dispatcher
    _engine: Engine | None

    def _running(self) -> Engine:
        if self._engine is None or self._engine.ended.is_set():
            raise SchedulerNotRunningError
        return self._engine

    def _check(
        self, work_id: str, param: Mapping[str, JSON], index: int | None = None
    ) -> None:
        try:
            self._works.get(work_id).check_param(param)
        except WorkNotFoundError:
            raise WorkNotFoundError(work_id, index) from None
        except InvalidTaskError as error:
            raise InvalidTaskError(error.field, error.reason, index) from None

    def _check_condition(self, name: str | None) -> None:
        if name is not None:
            self._works.get_condition(name)
