"""Databases for the sides: a file on a real disk, or one of a PostgreSQL server of ours."""

from __future__ import annotations

import importlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import psycopg
from sqlalchemy import Engine, create_engine
from sqlalchemy.sql import Executable

from trio_gokugen.sql import TaskRow, migrate
from trio_gokugen.sql._engines import dialect_of
from trio_gokugen.sql._open import LOG_LIMIT
from trio_gokugen.sql._statements import Statements

FILES = Path(__file__).with_name(".tmp")
"""In the repository: the system's directory for such files may be in memory."""

SERVER = "BENCHMARKS_POSTGRESQL"
"""The environment variable that names the directory of the server's socket."""

DATABASE = "BENCHMARKS_DATABASE"
"""The one that names a database which several processes share."""

COLUMNS = tuple(TaskRow.__table__.columns.keys())[1:]
"""What a new row is written with."""


# -- SQLite -------------------------------------------------------------------------


@contextmanager
def new_file() -> Generator[Path]:
    """The path of a database that is not there yet, and is gone afterwards."""
    FILES.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=FILES))
    try:
        yield directory / "tasks.db"
    finally:
        shutil.rmtree(directory)


def remove_files() -> None:
    """Remove what sides have left that were ended while they had a file."""
    shutil.rmtree(FILES, ignore_errors=True)


def connect(path: Path, synchronous: str) -> sqlite3.Connection:
    """A connection with the settings of ours."""
    connection = sqlite3.connect(path, isolation_level=None)
    settle(connection, synchronous)
    connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")
    return connection


def settle(connection: sqlite3.Connection, synchronous: str) -> None:
    """Have a connection write as durably as ours."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")


# -- PostgreSQL ---------------------------------------------------------------------


@contextmanager
def server() -> Generator[None]:
    """A server on a real disk, with its defaults, for all sides that are started within."""
    if Path("/var/tmp").is_dir():  # noqa: S108 (what is put in there has a name of its own)
        tempfile.tempdir = "/var/tmp"  # noqa: S108
    # By name: checked as a module of this package, it would be one of the tests twice.
    with importlib.import_module("tests.postgresql").Server() as running:
        os.environ[SERVER] = running.url().partition("host=")[2]
        try:
            yield
        finally:
            del os.environ[SERVER]
            tempfile.tempdir = None


def database_url(name: str) -> str:
    return f"postgresql://postgres@/{name}?host={os.environ[SERVER]}"


def new_database() -> str:
    """The URL of an empty database of this process's own."""
    name = f"side_{os.getpid()}"
    with psycopg.connect(database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return database_url(name)


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def count_in(url: str, query: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(query.encode()).fetchone()
    assert found is not None
    return int(found[0])


# -- ours ---------------------------------------------------------------------------


def make_tables(url: str) -> Engine:
    """Make the tables; the engine is for what a bare program does not do itself."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    migrate(engine)
    engine.dispose()
    return engine


@attrs.frozen
class Text:
    """A statement as text, with what the library always says in it."""

    text: str
    _always: Mapping[str, Any]
    _order: Sequence[str] | None
    """The names of the parameters, if they are told by their place."""

    def with_(self, **parameters: Any) -> Any:
        """The parameters, with these among them, as the driver takes them."""
        values = {**self._always, **parameters}
        return values if self._order is None else [values[each] for each in self._order]


class Texts:
    """The statements that the library sends, as text."""

    def __init__(self, engine: Engine) -> None:
        statements = Statements(dialect_of(engine))

        def text(statement: Executable, keys: Iterable[str] | None = None) -> Text:
            compiled: Any = statement.compile(  # type: ignore[attr-defined]
                dialect=engine.dialect,
                column_keys=None if keys is None else [*keys],
                for_executemany=keys is not None,
            )
            return Text(str(compiled), compiled.params, compiled.positiontup)

        self.add = text(statements.add, COLUMNS)
        self.claim = text(statements.claim.of_one)
        self.claim_rows = text(statements.claim_rows)
        self.end_runs = text(statements.end_runs)
