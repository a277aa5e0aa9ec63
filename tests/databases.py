"""Fixtures: databases of both kinds, as real as can be."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from postgresql import Server


@pytest.fixture(scope="session")
def postgresql_server() -> Generator[Server]:
    """One server for all tests; who stops it must start it again."""
    with Server() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: Server) -> Generator[str]:
    """An empty database on the server."""
    with postgresql_server.new_database() as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A file that is not there yet."""
    return f"sqlite:///{tmp_path / 'tasks.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty database of either kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
