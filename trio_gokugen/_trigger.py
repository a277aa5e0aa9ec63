"""What all triggers of this library have in common."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from datetime import datetime

from ._json import JSON


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
