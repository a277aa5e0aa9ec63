"""Names to works: what a registry of functions and one of commands have in common."""

from __future__ import annotations

from ._combined_registry import Combinable
from ._errors import WorkExistsError, WorkNotFoundError
from .abc import Work


class RegisteredWorks(Combinable):
    """Works by name, each registered once."""

    def __init__(self) -> None:
        self._works: dict[str, Work] = {}
        self._work_ids: frozenset[str] = frozenset()

    @property
    def work_ids(self) -> frozenset[str]:
        """The names registered so far."""
        return self._work_ids

    def get(self, work_id: str) -> Work:
        """The work of this name, or a `WorkNotFoundError`."""
        try:
            return self._works[work_id]
        except KeyError:
            raise WorkNotFoundError(work_id) from None

    def _put(self, work: Work) -> None:
        """Register a work, or raise a `WorkExistsError`."""
        if work.work_id in self._works:
            raise WorkExistsError(work.work_id)
        self._works[work.work_id] = work
        # Another object, by which who waits for works sees that there are more.
        self._work_ids = frozenset(self._works)
