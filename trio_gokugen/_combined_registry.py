"""Registries joined to one: ``works | commands``."""

from __future__ import annotations

from typing import Any, cast

from ._conditions import Condition
from ._errors import (
    ConditionExistsError,
    ConditionNotFoundError,
    WorkExistsError,
    WorkNotFoundError,
)
from .abc import Work, WorkRegistry

_ASKED = "work_ids", "get", "get_condition"


class Combinable:
    """A registry that can be joined with others by ``|``."""

    def __or__(self, other: WorkRegistry) -> CombinedRegistry:
        """This registry and another as one, which has the works of both.

        Works that are registered with either later are in it, too. If both come to have a
        work or a condition of one name that way, it is that of the left one.

        Raises:
          WorkExistsError, ConditionExistsError: both have one of this name.
        """
        return _joined(self, other)

    def __ror__(self, other: WorkRegistry) -> CombinedRegistry:
        """Another registry and this one, as above."""
        return _joined(other, self)


class CombinedRegistry(Combinable):
    """Several registries as one: what ``works | commands`` gives.

    Whatever is registered with a part is here at once. Of what two parts have under one
    name, that of the first counts.
    """

    def __init__(self, *parts: WorkRegistry) -> None:
        """Join these, the first of which counts most.

        Raises:
          WorkExistsError, ConditionExistsError: two of them have one of this name.
        """
        self.parts: tuple[WorkRegistry, ...] = _flat(parts)
        self._seen: tuple[frozenset[str], ...] = ()
        """What the parts had when it was looked last: the very objects."""

        self._work_ids: frozenset[str] = frozenset()
        _check_apart(self.parts)

    @property
    def work_ids(self) -> frozenset[str]:
        """The names that are registered with any of the parts."""
        seen = tuple(part.work_ids for part in self.parts)
        if not _are_same(seen, self._seen):
            self._seen = seen
            names = frozenset[str]().union(*seen)
            # A loop may sleep by the old one: the same names are the same object.
            if names != self._work_ids:
                self._work_ids = names
        return self._work_ids

    def get(self, work_id: str) -> Work:
        """The work of this name, or a `WorkNotFoundError`."""
        for part in self.parts:
            if work_id in part.work_ids:
                return part.get(work_id)
        raise WorkNotFoundError(work_id)

    @property
    def condition_names(self) -> frozenset[str]:
        """The names of the conditions that the parts tell of."""
        return frozenset[str]().union(*map(_condition_names, self.parts))

    def get_condition(self, name: str) -> Condition:
        """The condition of this name, or a `ConditionNotFoundError`."""
        for part in self.parts:
            try:
                return part.get_condition(name)
            except ConditionNotFoundError:
                continue
        raise ConditionNotFoundError(name)


def _joined(left: Any, right: Any) -> CombinedRegistry:
    for each in (left, right):
        if isinstance(each, type) or not all(hasattr(each, name) for name in _ASKED):
            return cast("CombinedRegistry", NotImplemented)
    return CombinedRegistry(left, right)


def _flat(parts: tuple[WorkRegistry, ...]) -> tuple[WorkRegistry, ...]:
    """The parts, and those of parts that are joined themselves; each of them once."""
    found: dict[int, WorkRegistry] = {}
    for part in parts:
        for each in part.parts if isinstance(part, CombinedRegistry) else (part,):
            found.setdefault(id(each), each)
    return tuple(found.values())


def _check_apart(parts: tuple[WorkRegistry, ...]) -> None:
    work_ids: set[str] = set()
    conditions: set[str] = set()
    for part in parts:
        if both := work_ids & part.work_ids:
            raise WorkExistsError(min(both))
        names = _condition_names(part)
        if both := conditions & names:
            raise ConditionExistsError(min(both))
        work_ids |= part.work_ids
        conditions |= names


def _condition_names(part: WorkRegistry) -> frozenset[str]:
    """The conditions of a part; none if it does not tell, which the Protocol permits."""
    return cast("frozenset[str]", getattr(part, "condition_names", frozenset[str]()))


def _are_same(some: tuple[object, ...], others: tuple[object, ...]) -> bool:
    return len(some) == len(others) and all(map(_is, some, others))


def _is(one: object, other: object) -> bool:
    return one is other
