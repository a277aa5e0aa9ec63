"""Which way of speaking goes with an engine."""

from __future__ import annotations

from sqlalchemy import Engine

from ._dialects import Dialect
from ._postgresql import PostgreSQL
from ._sqlite import SQLite


def dialect_of(engine: Engine) -> Dialect:
    """How the database of an engine is spoken to.

    Raises:
      ValueError: if it is neither SQLite nor PostgreSQL by psycopg.
    """
    driver = f"{engine.dialect.name}+{engine.dialect.driver}"
    if driver == "sqlite+pysqlite":
        return SQLite()
    if driver == "postgresql+psycopg":
        return PostgreSQL()
    raise ValueError(
        f"engine: must be of sqlite+pysqlite or postgresql+psycopg, not of {driver}"
    )
