"""Fixtures: databases of both kinds, as real as can be."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from postgresql import Server
from sqlalchemy import Engine, create_engine, make_url
from support import Bench, open_bench

from trio_gokugen import HeapRepository, Scheduler
from trio_gokugen.sql import migrate, open_sql_repository

ENOUGH = 2**30
"""Bytes for the files of all tests that run at a time."""


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
    """One server for all tests that don't stop it: it doesn't wait for the disk."""
    with Server(fsync="off") as server:
        yield server


@pytest.fixture(scope="session")
def mortal_server() -> Generator[Server]:
    """One to be stopped, or killed, and started again: it writes as servers do."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_tables(postgresql_server: Server) -> Generator[str]:
    """The name of a database of that server that has the tables, to be copied."""
    with postgresql_server.new_database() as url:
        with engine_of(url) as engine:
            migrate(engine)
        yield str(make_url(url).database)


@pytest.fixture
def postgresql_url(
    request: pytest.FixtureRequest, postgresql_server: Server
) -> Generator[str]:
    """A database on the server: an empty one, or with tables if the test is marked so."""
    template: str | None = None
    if request.node.get_closest_marker("tables") is not None:
        template = request.getfixturevalue("postgresql_tables")
    with postgresql_server.new_database(template) as url:
        yield url


@pytest.fixture
def mortal_url(mortal_server: Server) -> Generator[str]:
    """An empty database on the server that may be stopped."""
    with mortal_server.new_database() as url:
        yield url


def in_memory() -> Path | None:
    """A directory in memory, if the system has one that is large enough."""
    directory = Path("/dev/shm")  # noqa: S108 (what is made there has a name of its own)
    if not directory.is_dir() or shutil.disk_usage(directory).free < ENOUGH:
        return None
    return directory


@pytest.fixture
def fast_path() -> Generator[Path]:
    """An empty directory, where what is written need not wait for the disk."""
    with TemporaryDirectory(prefix="gokugen-", dir=in_memory()) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that has the tables, to be copied."""
    file = tmp_path_factory.mktemp("tables") / "tasks.db"
    with engine_of(f"sqlite:///{file}") as engine:
        migrate(engine)
    return file


@pytest.fixture
def sqlite_file(request: pytest.FixtureRequest, fast_path: Path) -> Path:
    """A file that is not there yet, or one with tables if the test is marked so."""
    file = fast_path / "tasks.db"
    if request.node.get_closest_marker("tables") is not None:
        shutil.copyfile(request.getfixturevalue("sqlite_tables"), file)
    return file


@pytest.fixture
def sqlite_url(sqlite_file: Path) -> str:
    """The URL of that file."""
    return f"sqlite:///{sqlite_file}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A database of either kind: an empty one, or with tables if the test is marked so."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(params=["heap", "sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str | None:
    """Where tasks are to be kept; none for in memory."""
    if request.param == "heap":
        return None
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@asynccontextmanager
async def opened(
    url: str | None, **options: Any
) -> AsyncGenerator[tuple[Scheduler, Bench]]:
    """A scheduler and its works, whose tasks are kept there."""
    if url is None:
        async with open_bench(HeapRepository(), **options) as both:
            yield both
        return
    async with open_sql_repository(url) as repository:
        async with open_bench(repository, **options) as both:
            yield both
