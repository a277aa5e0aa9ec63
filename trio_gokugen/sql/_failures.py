"""A database's errors, as those of a repository."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from trio_gokugen._errors import RepositoryError

from ._errors import NotADatabaseError


@contextmanager
def failures(what: str, let: type[Exception] | None = None) -> Generator[None]:
    """Turn what goes wrong with the database into a `RepositoryError`, with its cause.

    But `let` errors of that kind through.
    """
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        if let is not None and isinstance(error, let):
            raise
        raise as_failure(what, error) from error


def as_failure(what: str, error: Exception) -> RepositoryError:
    """What happened, and while doing what."""
    original = error.orig if isinstance(error, DBAPIError) and error.orig else error
    kind = type(original).__name__
    text = str(original).strip() or kind
    code = getattr(original, "sqlite_errorcode", None)
    if code is not None and code & 0xFF in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}:
        return NotADatabaseError(f"{what} failed: {text}")
    return RepositoryError(f"{what} failed: {kind}: {text}")
