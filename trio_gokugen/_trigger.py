"""Triggers: what they promise, and what those of this library have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from datetime import datetime
from typing import Protocol, runtime_checkable

from ._json import JSON


@runtime_checkable
class Trigger(Protocol):
    """A rule that gives moments: a pure value, which answers the same for ever."""

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment that is later, in UTC; or none.

        It is the same for all moments from the given one until the one that is answered.
        """
        ...

    def explain(self) -> str:
        """What it means, in words."""
        ...

    def to_data(self) -> dict[str, JSON]:
        """The trigger as JSON values."""
        ...


class BaseTrigger(ABC):
    """A rule that gives moments: a pure value, the same for ever."""

    __slots__ = ()

    @abstractmethod
    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment that is later, in UTC; or none."""

    @abstractmethod
    def explain(self) -> str:
        """What it means, in words."""

    @abstractmethod
    def to_data(self) -> dict[str, JSON]:
        """The trigger as JSON values; `trigger_from_data` makes it of them again."""

    def to_json(self) -> str:
        """The trigger as JSON; `trigger_from_json` makes it of that again."""
        return json.dumps(self.to_data(), ensure_ascii=False)


def not_later(moment: datetime, found: datetime) -> str:
    """What is wrong with a trigger that gives no later moment."""
    return f"next_after({moment.isoformat()}) is not later: {found.isoformat()}"
