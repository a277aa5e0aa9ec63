"""Limits by a value that tasks have: of the same customer so many run at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from json.encoder import encode_basestring_ascii
from typing import Any, Self

import attrs

from ._errors import InvalidTaskError
from ._json import name as as_name
from ._limits import at_least_one
from ._task import Task


@attrs.frozen
class KeyLimit:
    """How many may run at a time of which the same value is in `param`, or in `meta`.

    Tasks whose value is a string, a number or a boolean are counted by it; those that lack
    the name, or have null, a list or an object there, are not limited.

    Raises:
      TypeError, ValueError: names the argument that cannot be used.
    """

    limit: int
    param: str | None = attrs.field(default=None, kw_only=True)
    """The name of the value in the tasks' `param`."""

    meta: str | None = attrs.field(default=None, kw_only=True)
    """The name of the value in the tasks' `meta`. Give one of the two."""

    def __attrs_post_init__(self) -> None:
        at_least_one(self.limit, "limit")
        if (self.param is None) == (self.meta is None):
            raise InvalidTaskError("param", "must be given, or else meta, and not both")
        as_name(self.name, "param" if self.meta is None else "meta")

    @property
    def name(self) -> str:
        """The name of the value."""
        name = self.param if self.meta is None else self.meta
        assert name is not None
        return name

    def value_of(self, task: Task) -> str | None:
        """What a task is counted by, as JSON text; none if it is not limited."""
        values: Mapping[str, Any] = task.param if self.meta is None else task.meta
        value = values.get(self.name)
        # As `json.dumps` has it, which takes several times as long.
        if isinstance(value, str):
            return encode_basestring_ascii(value)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int):
            return repr(value)
        # An infinite one, which somebody else may have written, is no JSON by its repr.
        return json.dumps(value) if isinstance(value, float) else None


@attrs.define(eq=False)
class KeyRoom:
    """A limit, and how many run of each value: now, not as it was made."""

    limit: KeyLimit
    running: dict[str, int] = attrs.field(factory=dict[str, int])
    listeners: dict[Callable[[], object], None] = attrs.field(
        factory=dict[Callable[[], object], None], init=False, repr=False
    )
    """Called when there is room where there was none: whoever waits, to look again."""

    def is_full(self, value: str) -> bool:
        """Whether no more of the value may run."""
        return self.running.get(value, 0) >= self.limit.limit

    def full(self) -> list[str]:
        """The values of which no more may run, as JSON text."""
        # In one step, as it may change in another thread.
        return sorted(each for each, n in [*self.running.items()] if n >= self.limit.limit)

    def admits(self, task: Task) -> bool:
        """Whether the task may run beside those that do."""
        value = self.limit.value_of(task)
        return value is None or not self.is_full(value)

    def begin(self, task: Task) -> None:
        """Count a run."""
        value = self.limit.value_of(task)
        if value is not None:
            self.running[value] = self.running.get(value, 0) + 1

    def end(self, task: Task) -> None:
        """Count it no longer."""
        value = self.limit.value_of(task)
        if value is None:
            return
        was_full = self.is_full(value)
        left = self.running[value] - 1
        if left:
            self.running[value] = left
        else:
            del self.running[value]
        if was_full:
            for look_again in [*self.listeners]:
                look_again()

    def copy(self) -> Self:
        """One that counts on from here by itself."""
        return type(self)(self.limit, dict(self.running))
