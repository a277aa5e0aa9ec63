"""Where deliberately broken repositories are listed, by the promise that they break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from trio_gokugen import HeapStore, HookTimer, TimedRepository
from trio_gokugen.abc import TaskRepository

C = TypeVar("C", bound=type[Any])

BROKEN: list[tuple[str, Callable[[], TaskRepository]]] = []
"""The name of a check, and what makes a repository that it must find broken."""


def breaks(*names: str) -> Callable[[C], C]:
    """List a class of stores, or of repositories, as broken in these promises."""

    def list_it(broken: C) -> C:
        def make() -> TaskRepository:
            made = broken()
            has_timer = hasattr(made, "wait_until_due")
            repository: TaskRepository = made if has_timer else TimedRepository(made)
            return repository

        make.__name__ = broken.__name__
        BROKEN.extend((name, make) for name in names)
        return broken

    return list_it


def times_badly(
    *names: str, store_type: type[HeapStore] = HeapStore
) -> Callable[[type[HookTimer]], type[HookTimer]]:
    """List a class of timers as broken in these promises."""

    def list_it(broken: type[HookTimer]) -> type[HookTimer]:
        def make() -> TaskRepository:
            repository = TimedRepository(store_type())
            repository.timer = broken(repository.store)
            return repository

        make.__name__ = broken.__name__
        BROKEN.extend((name, make) for name in names)
        return broken

    return list_it
