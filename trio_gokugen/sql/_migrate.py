"""Brings a database's tables up to date.

Two programs may open a new database at the same moment. Alembic alone would have both
make the tables: so whoever migrates holds a lock of the database, and looks again once it
has it. And Alembic is told what to do through a global of its module, which two threads
must not set at once.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from sqlalchemy import Column, Connection, Engine, MetaData, Table, Text, inspect, select

from ._engines import dialect_of
from ._errors import SchemaError
from ._failures import failures, given_back

logger = logging.getLogger("trio_gokugen.sql")

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
"""All there have been, oldest first."""

_VERSION = Table("gokugen_version", MetaData(), Column("version_num", Text))
_MIGRATIONS = Path(__file__).parent / "migrations"
_alembic = threading.Lock()


def migrate(engine: Engine) -> None:
    """Make the tables, or bring them up to date: in one transaction, all or nothing.

    May be called by many threads and processes at once. Blocks, so not for Trio's own
    thread.

    Raises:
      SchemaError: if the tables are of a newer version of this library.
      RepositoryError: if the database fails.
    """
    dialect = dialect_of(engine)
    with failures(f"opening {_place(engine)}"):
        if revision(engine) == REVISIONS[-1]:
            return  # without the lock, nor Alembic, which takes its time to import
        with _alembic, dialect.transaction(dialect.prepared(engine)) as connection:
            dialect.lock_schema(connection)
            found = _revision(connection)
            if found != REVISIONS[-1]:
                logger.info("bringing the tables from %s to %s", found, REVISIONS[-1])
                _upgrade(connection)


def check(engine: Engine) -> None:
    """Raise a `SchemaError` unless the tables are up to date."""
    with failures(f"opening {_place(engine)}"):
        found = revision(engine)
    if found != REVISIONS[-1]:
        what = "has no tables of trio_gokugen" if found is None else "has older tables"
        raise SchemaError(
            found,
            f"the database {what}: call trio_gokugen.sql.migrate(engine) once, or open it"
            " with migrate=True",
        )


def revision(engine: Engine) -> str | None:
    """Of what revision the tables are, if there are any; refuses what is not known."""
    with given_back(engine.connect()) as connection:
        return _revision(connection)


def _place(engine: Engine) -> str:
    if engine.dialect.name == "sqlite":
        return engine.url.database or "a database in memory"
    # Without the query, which may hold a password, too.
    return engine.url.set(query={}).render_as_string(hide_password=True)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_VERSION.name):
        return None
    found = connection.scalars(select(_VERSION.c.version_num)).one_or_none()
    if found is not None and found not in REVISIONS:
        raise SchemaError(
            found,
            f"the database's tables are of revision {found!r}, made by a newer version of"
            f" trio_gokugen; this one knows up to {REVISIONS[-1]!r}: upgrade it",
        )
    return found


def _upgrade(connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415 (slow to import, and seldom needed)
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    config.attributes["version_table"] = _VERSION.name
    command.upgrade(config, "head")
