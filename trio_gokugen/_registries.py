"""What is asked of a registry of works, whoever has written it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from ._errors import shown
from .abc import WorkRegistry


def is_registry(value: object) -> TypeGuard[WorkRegistry]:
    """Whether it has what is asked of a registry here."""
    methods = "get", "get_condition"
    return not isinstance(value, type) and all(
        callable(getattr(value, method, None)) for method in methods
    )


def check_works(works: object) -> None:
    """Raise a `TypeError` unless it has what is asked of a registry."""
    if is_registry(works):
        return
    if isinstance(works, Mapping):  # whose text may have secrets
        raise TypeError(
            "works: must be a registry of works, not a mapping: of commands, make a"
            " CommandRegistry"
        )
    raise TypeError(f"works: must be a registry of works, not {shown(works)}")
