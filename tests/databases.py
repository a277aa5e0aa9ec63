"""Fixtures: databases of both kinds, as real as can be."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from postgresql import Server
from sqlalchemy import Engine, create_engine


def url_for_engine(url: str) -> str:
    """The URL of a database as SQLAlchemy takes it."""
    return url.replace("postgresql:", "postgresql+psycopg:")


@contextmanager
def engine_of(url: str) -> Generator[Engine]:
    """An engine for a database, with no connection left at the end."""
    engine = create_engine(url_for_engine(url))
    try:
        yield engine
    finally:
        engine.dispose()


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
