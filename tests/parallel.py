"""What is to be said where several processes share the tests."""

from __future__ import annotations

import os

import pytest

SHARED = "PYTEST_XDIST_WORKER" in os.environ

# Coverage is taken of the processes that run tests, but not of what they start: of that
# everything is tested within, too, and what is killed would leave half a record.
if SHARED:
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of what is long: they aren't waited for at the end."""
    if SHARED:
        items.sort(key=order)


def order(item: pytest.Item) -> list[bool]:
    """First what is marked as long, then what may be: a page has a block that is."""
    unmarked = [item.get_closest_marker(mark) is None for mark in ("long", "uncovered")]
    return [*unmarked, item.path.suffix != ".md"]
