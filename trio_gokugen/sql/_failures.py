"""A database's errors, as those of a repository."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from trio_gokugen._errors import RepositoryError

from ._errors import NotADatabaseError

FAILURES = (SQLAlchemyError, sqlite3.Error)
"""What is raised if something goes wrong with the database."""


_ADVICE = {
    sqlite3.SQLITE_CANTOPEN: ": is its directory there, and may it be written to?",
    sqlite3.SQLITE_CORRUPT: (
        ": restore the file from a backup, or get what can be read by the command .recover"
        " of sqlite3"
    ),
}


@contextmanager
def given_back(connection: Connection) -> Generator[Connection]:
    """Give a connection back at the end; if that fails, what was done on it is done."""
    try:
        yield connection
    finally:
        with suppress(*FAILURES):
            connection.close()


@contextmanager
def failures(what: str, let: type[Exception] | None = None) -> Generator[None]:
    """Turn what goes wrong with the database into a `RepositoryError`, with its cause.

    But `let` errors of that kind through.
    """
    try:
        yield
    except FAILURES as error:
        if let is not None and isinstance(error, let):
            raise
        raise as_failure(what, error) from error


def as_failure(what: str, error: Exception) -> RepositoryError:
    """What happened, and while doing what."""
    original = error.orig if isinstance(error, DBAPIError) and error.orig else error
    kind = type(original).__name__
    text = str(original).strip() or kind
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None:
        code &= 0xFF  # the rest says more than is needed
        text += _ADVICE.get(code, "")
    if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return NotADatabaseError(f"{what} failed: {text}")
    return RepositoryError(f"{what} failed: {kind}: {text}")
