"""Opening a repository: the engine, the tables, the name, and all of it closed again."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import trio
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, SingletonThreadPool, StaticPool

from trio_gokugen._autojump import autojump_held, jumping_clock
from trio_gokugen._errors import shown

from . import _names
from ._core import SQLCore
from ._engines import dialect_of
from ._migrate import check
from ._migrate import migrate as bring_up_to_date
from ._postgresql import ISOLATION, PREPARED
from ._repository import SQLRepository

Synchronous: TypeAlias = Literal["off", "normal", "full", "extra"]

T = TypeVar("T")

BUSY_TIMEOUT = 10.0
"""Seconds that SQLite waits for others who write."""

LOCK_TIMEOUT = 10
"""Seconds that PostgreSQL waits for others who have locked a row."""

LOG_LIMIT = 16 * 1024 * 1024
"""Bytes that the log of a SQLite file may keep."""

LONGEST = 365 * 24 * 3600.0
"""Seconds: the longest lease."""

_ALL = 2**62
_FOREVER = timedelta(days=365_000)

_FORMS = "must be like sqlite:///tasks.db, or postgresql://user@host/database"

_POLL = {"sqlite": 0.5, "postgresql": 5.0}


@asynccontextmanager
async def open_sql_repository(
    url: str | URL | Engine,
    *,
    name: str | None = None,
    lease: float | timedelta = 30.0,
    synchronous: Synchronous = "full",
    keep_ended: int | timedelta | None = None,
    poll: float | timedelta | None = None,
    migrate: bool = True,
) -> AsyncGenerator[SQLRepository]:
    """Tasks in a database: a SQLite file with no server, or PostgreSQL.

    ::

        async with open_sql_repository("sqlite:///tasks.db") as repository:
            async with open_scheduler(works, repository) as scheduler:
                ...

    Makes the tables, or brings them up to date. Entering and leaving are checkpoints.
    Leaving waits for a thread that is at work, and closes every connection.

    Args:
      url: ``sqlite:///tasks.db``, ``sqlite://`` for a database in memory, or
        ``postgresql://user@host/database``. Or a SQLAlchemy engine of your own, of
        pysqlite or psycopg, whose settings are left as they are.
      name: Who it is that works here. A scheduler that starts again under its name takes
        up at once what it had left running. No two may have the same at a time. By
        default, on SQLite the first number that is free; on PostgreSQL a new one each
        time.
      lease: Seconds for which a scheduler keeps what it runs without saying so again. It
        says so three times as often. If it cannot, it cancels what it runs; and if it has
        died, others take its tasks when that time is over.
      synchronous: How SQLite writes: with ``"full"`` nothing acknowledged is lost, even if
        the power fails; with ``"normal"`` only a crash of the program is outlived.
      keep_ended: How many ended tasks to keep, or for how long. All by default.
      poll: How often, in seconds, to look for what other processes have changed. By
        default every half second on SQLite, and every 5 s on PostgreSQL, where changes
        are told at once; not at all under a mock clock.
      migrate: False if the tables are made by somebody else: see `migrate`.

    Raises:
      TypeError, ValueError: an argument cannot be used; the message names it.
      NameTakenError: another scheduler of this name is at work.
      SchemaError: the tables are those of a newer version, or out of date and not to be
        changed.
      RepositoryError: the database cannot be used; the cause is attached.
    """
    wanted = None if name is None else _names.checked(name)
    lease_seconds = _seconds(lease, "lease")
    poll_seconds = None if poll is None else _seconds(poll, "poll")
    keep = _checked_keep(keep_ended)
    own = not isinstance(url, Engine)
    engine = url if isinstance(url, Engine) else _engine(url, synchronous)
    dialect_of(engine)  # refuses what is neither SQLite nor PostgreSQL
    if isinstance(engine.pool, SingletonThreadPool):
        raise ValueError(  # noqa: TRY004 (it is an engine, but not one that will do)
            "engine: a database in memory needs poolclass=StaticPool, or each thread has"
            " a database of its own"
        )
    if poll_seconds is None:
        alone = jumping_clock() is not None or isinstance(engine.pool, StaticPool)
        poll_seconds = math.inf if alone else _POLL[engine.dialect.name]

    def open_in_thread() -> _names.HeldName:
        (bring_up_to_date if migrate else check)(engine)
        if engine.dialect.name == "sqlite":
            return _names.hold_in_file(engine, wanted)
        # Needs psycopg, which need not be there for SQLite.
        from ._listener import ListeningSession  # noqa: PLC0415

        session = ListeningSession(engine, wanted or _names.unique())
        session.connect()
        return session

    held: _names.HeldName | None = None
    core: SQLCore | None = None
    try:
        held = await _in_thread(open_in_thread)
        core = SQLCore(engine, name=held.name, lease=lease_seconds)
        yield SQLRepository(core, held, poll=poll_seconds, keep_ended=keep)
    finally:
        if core is not None:
            core.close()

        def close() -> None:
            if held is not None:
                held.release()
            if own:
                engine.dispose()

        with trio.CancelScope(shield=True):
            await _in_thread(close)


async def _in_thread(function: Callable[[], T]) -> T:
    with autojump_held():
        return await trio.to_thread.run_sync(function, abandon_on_cancel=False)


# -- engines ------------------------------------------------------------------------


def _engine(url: str | URL, synchronous: Synchronous) -> Engine:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(f"url: {_FORMS}, {_instead(url)}") from None
    if synchronous not in get_args(Synchronous):
        raise ValueError(
            f"synchronous: must be one of {', '.join(get_args(Synchronous))},"
            f" not {shown(synchronous)}"
        )
    if parsed.drivername in {"sqlite", "sqlite+pysqlite"}:
        return _sqlite(parsed, synchronous)
    if parsed.drivername in {"postgresql", "postgres", "postgresql+psycopg"}:
        return _postgresql(parsed.set(drivername="postgresql+psycopg"))
    raise ValueError(f"url: {_FORMS}, not {parsed.drivername}://")


def _instead(url: object) -> str:
    """What to say of what is no URL."""
    if isinstance(url, Path):
        return f"for this path sqlite:///{url}"
    if isinstance(url, str):  # which is not told: it may have a password in it
        return "and not only a path"
    return f"not {shown(url)}"


def _sqlite(url: URL, synchronous: Synchronous) -> Engine:
    if url.host is not None:
        raise ValueError(
            f"url: a SQLite file has three slashes before its path: sqlite:///{url.host}"
        )
    arguments: dict[str, Any] = {"check_same_thread": False, "timeout": BUSY_TIMEOUT}
    if url.database in {None, "", ":memory:"}:
        engine = create_engine(
            url, poolclass=StaticPool, connect_args=arguments, hide_parameters=True
        )
    else:
        engine = create_engine(url, connect_args=arguments, hide_parameters=True)
        if url.database is not None and not url.database.startswith("file:"):
            _refuse_another_file(engine, Path(url.database).absolute())

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _: object) -> None:
        _use_wal(connection)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        # After a large transaction, the log gives back what it took.
        connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")

    return engine


def _refuse_another_file(engine: Engine, path: Path) -> None:
    """Don't go on with a file that has been deleted, as if nothing had happened.

    SQLite would write to what nobody finds again, or make a new file, without tables.
    """
    was_there = False

    @event.listens_for(engine, "do_connect")
    def look(*_: object) -> None:
        if was_there and not path.exists():
            raise sqlite3.OperationalError(
                f"{path} has been deleted, or moved: put it back"
            )

    @event.listens_for(engine, "connect")
    def note(_: object, record: ConnectionPoolEntry) -> None:
        nonlocal was_there
        record.info["file"] = _identity(path)
        was_there = True

    @event.listens_for(engine, "checkout")
    def compare(_: object, record: ConnectionPoolEntry, __: object) -> None:
        if record.info["file"] is None or record.info["file"] != _identity(path):
            raise DisconnectionError  # SQLAlchemy connects again


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _use_wal(connection: sqlite3.Connection) -> None:
    """Have the file written ahead, so that reading and writing don't wait for each other.

    Said once, the file remembers it. SQLite does not wait for a lock here.
    """
    until = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            [mode] = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > until:
                raise
            time.sleep(0.01)  # in a thread
            continue
        if mode in {"wal", "memory"}:
            return
        raise sqlite3.OperationalError(
            f"the file cannot have a write-ahead log, its journal is {mode!r}: give a plain"
            " path on a local disk"
        )


def _postgresql(url: URL) -> Engine:
    arguments = {
        "connect_timeout": 10,
        # A server that has vanished without a word is noticed within half a minute.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        # Moments may be as late as the year 9999 in UTC, and not in Tokyo; and who
        # waits for a row that somebody has locked must not wait for ever.
        "options": _options(url),
    }
    given = {
        key: value
        for key, value in arguments.items()
        if key == "options" or key not in url.query
    }
    try:
        return create_engine(
            url,
            connect_args=given,
            hide_parameters=True,
            isolation_level=ISOLATION,
            execution_options={PREPARED: True},
        )
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "PostgreSQL needs psycopg: pip install trio_gokugen[postgresql]"
        ) from error


def _options(url: URL) -> str:
    """Ours, and what the URL has, which counts if it is about the same."""
    ours = f"-c timezone=UTC -c lock_timeout={LOCK_TIMEOUT}s"
    given = url.query.get("options", ())
    return " ".join((ours, *((given,) if isinstance(given, str) else given)))


# -- arguments ----------------------------------------------------------------------


def _seconds(value: float | timedelta, argument: str) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{argument}: must be a number of seconds, not {shown(value)}")
    if not 0 < seconds <= LONGEST:
        raise ValueError(
            f"{argument}: must be positive and at most {LONGEST:.0f}, not {shown(value)}"
        )
    return float(seconds)


def _checked_keep(keep: int | timedelta | None) -> int | timedelta | None:
    if keep is None:
        return None
    if isinstance(keep, bool) or not isinstance(keep, int | timedelta):
        raise TypeError(f"keep_ended: must be an int or a timedelta, not {shown(keep)}")
    keep = min(keep, _ALL) if isinstance(keep, int) else min(keep, _FOREVER)
    if (keep < timedelta(0)) if isinstance(keep, timedelta) else keep < 0:
        raise ValueError(f"keep_ended: must not be negative, not {shown(keep)}")
    return keep
