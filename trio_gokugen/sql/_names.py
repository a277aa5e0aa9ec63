"""Who works on a database: each scheduler under a name that no other living one has.

A name must be free again as soon as its holder has ended, in whatever way: so it is held
by something that goes with the process. On SQLite that is an operating system's lock on a
file beside the database, on PostgreSQL an advisory lock of a session.
"""

from __future__ import annotations

import os
import socket
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

import trio
from filelock import FileLock, Timeout
from sqlalchemy import Engine

from trio_gokugen._errors import RepositoryError, shown
from trio_gokugen._json import name as checked_name

from ._errors import NameTakenError
from ._failures import failures, given_back

LONGEST = 100
"""Characters of a name: it becomes part of the name of a file."""


_FILE = "SELECT file FROM pragma_database_list WHERE name = 'main'"


Told: TypeAlias = tuple[str, datetime]
"""Of which work a task has become pending, and for what moment."""


class HeldName(ABC):
    """A name, as long as it is held."""

    name: str

    @abstractmethod
    def release(self) -> None:
        """Let others have it."""

    async def listen(self, changed: Callable[[Told | None], None], patience: float) -> None:
        """Call `changed` whenever the database says that another has changed what is next.

        Until cancelled.

        Args:
          changed: Called with what has been told, if it is of one work, or with none. Must
            not block.
          patience: Seconds that a server may take to notice that a lost connection is
            gone, and to let go of the name.

        Raises:
          NameTakenError: somebody else had taken the name meanwhile.
        """
        await trio.sleep_forever()


def checked(name: str) -> str:
    """The name, if it can be one."""
    checked_name(name, "name")
    if len(quote(name, safe="")) > LONGEST:
        raise ValueError(
            f"name: must not be longer than {LONGEST} letters, of which those beyond ASCII"
            f" count as several, not {shown(name)}"
        )
    return name


def unique() -> str:
    """A name that nobody else has, or will have."""
    return f"{socket.gethostname()[:30]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class LockedFile(HeldName):
    """A name held by a lock on a file."""

    def __init__(self, name: str, lock: FileLock | None) -> None:
        self.name = name
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()


def hold_in_file(engine: Engine, name: str | None) -> LockedFile:
    """Hold a name on a SQLite database: the given one, or the first that is free.

    So a program that is the only one on its database has the same name at every start,
    and takes up at once what it had left running.

    Raises:
      NameTakenError: if the given one is not free.
      RepositoryError: if the database fails, or no file can be made beside it.
    """
    # The URL may call the file in many ways, and SQLite knows which one it is.
    with failures("taking a name"), given_back(engine.connect()) as connection:
        database = connection.exec_driver_sql(_FILE).scalar_one()
    if not database:
        return LockedFile(name or "1", None)  # in memory, where nobody else has it
    if name is not None:
        return _lock(database, name)
    number = 1
    while True:
        try:
            return _lock(database, str(number))
        except NameTakenError:
            number += 1


def _lock(database: str, name: str) -> LockedFile:
    path = Path(f"{Path(database).resolve()}.{quote(name, safe='')}.lock")
    # Not of this thread: it may be released by another.
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise NameTakenError(name) from None
    except OSError as error:
        raise RepositoryError(f"taking a name failed: {path}: {error}") from error
    return LockedFile(name, lock)
