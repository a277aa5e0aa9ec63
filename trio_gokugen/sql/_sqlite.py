"""How SQLite is spoken to: one file, one writer."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from typing import cast as cast_

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Engine,
    FromClause,
    LargeBinary,
    Select,
    Text,
    Update,
    bindparam,
    case,
    cast,
    column,
    func,
    literal,
    null,
    select,
    type_coerce,
)
from sqlalchemy.exc import InvalidRequestError, OperationalError
from sqlalchemy.types import TypeEngine

from trio_gokugen._json import JSON, same
from trio_gokugen._lengths import later

from ._dialects import AT, Dialect, Lane
from ._failures import FAILURES
from ._rows import COLUMNS
from ._schema import TASK, Damaged, Moment

_END = datetime.max.replace(tzinfo=UTC)


def _text(data: bytes) -> Any:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Damaged()


def _item_of(text: ColumnElement[str], name: str) -> ColumnElement[str]:
    """A value that is no list or object, found by looking at each of them."""
    item, kind = column("value", Text), column("type", Text)
    each = func.json_each(text).table_valued(column("key", Text), item, kind, name="item")
    written = case(
        (kind.in_(["true", "false"]), kind),
        (kind.not_in(["array", "object"]), func.json_quote(item)),
    )
    return select(written).where(each.c.key == name).limit(1).scalar_subquery()


_LEGACY = -1
"""What `autocommit` is unless it was set, which can be done from Python 3.12 on."""


def _driver(connection: Connection) -> sqlite3.Connection:
    """What transactions are begun and ended on."""
    driver = cast_("sqlite3.Connection", connection.connection.driver_connection)
    if getattr(driver, "autocommit", _LEGACY) != _LEGACY:
        raise InvalidRequestError(
            "the engine's connections have autocommit set: leave that to us"
        )
    return driver


class SQLite(Dialect):
    """One file, one writer."""

    locks_rows = False
    key: ClassVar[ColumnElement[Any]] = TASK.c.sequence

    def prepared(self, engine: Engine) -> Engine:
        return engine.execution_options(isolation_level="AUTOCOMMIT")

    def begin(self, connection: Connection) -> None:
        connection.begin()  # for SQLAlchemy; the database is told below
        driver = _driver(connection)
        if driver.in_transaction:
            driver.rollback()  # begun by a listener of the user's own engine
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def commit(self, connection: Connection) -> None:
        connection.exec_driver_sql("COMMIT")

    def roll_back(self, connection: Connection) -> None:
        with suppress(*FAILURES):
            driver = connection.connection.driver_connection
            assert driver is not None
            driver.rollback()

    def seal(
        self, connection: Connection, appeared: Mapping[Lane, datetime], sender: str
    ) -> str | None:
        return None  # it is in this process that a commit succeeds, or does not

    def has_committed(self, connection: Connection, seal: str) -> bool | None:
        raise NotImplementedError  # pragma: no cover: there is no seal to ask for

    def was_unreadable(self, error: Exception) -> bool:
        # There is no code for it: it is Python that says so.
        return isinstance(error, OperationalError) and "UTF-8" in str(error.orig)

    @contextmanager
    def read_with_care(self, connection: Connection) -> Generator[None]:
        driver = connection.connection.driver_connection
        assert driver is not None
        before = driver.text_factory
        driver.text_factory = _text
        try:
            yield
        finally:
            driver.text_factory = before

    @contextmanager
    def part_of(self, connection: Connection) -> Generator[None]:
        driver = _driver(connection)
        if driver.in_transaction:
            yield  # a statement that fails undoes nothing but itself
            return
        # It would be begun by the first change only, and before that others could change
        # what has been read.
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            driver.rollback()
            raise
        if driver.isolation_level is None:
            driver.commit()  # as it does after each statement

    def notify(self, connection: Connection, appeared: Mapping[Lane, datetime]) -> bool:
        return False

    def lock_schema(self, connection: Connection) -> None:
        pass  # whoever writes has locked the whole file

    def among(self, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
        return column.in_(select(self.rows_of(name, column.type).c.value))

    def is_one_of(self, keys: Select[Any] | CompoundSelect[Any]) -> ColumnElement[bool]:
        return self.key.in_(keys)

    def listed(self, values: Collection[Any]) -> Any:
        return json.dumps(list(values), ensure_ascii=False)

    def rows_of(self, name: str, type_: TypeEngine[Any]) -> FromClause:
        values = column("value", type_)
        return func.json_each(bindparam(name, type_=Text)).table_valued(values, name=name)

    def listed_lanes(self, lanes: Collection[Lane]) -> dict[str, Any]:
        return {"lanes": json.dumps([*lanes], ensure_ascii=False)}

    def lanes(self) -> FromClause:
        value = column("value", Text)
        each = func.json_each(bindparam("lanes", type_=Text)).table_valued(value)
        pool, work_id = (func.json_extract(each.c.value, f"$[{n}]") for n in range(2))
        return select(pool.label("pool"), work_id.label("work_id")).subquery("lanes")

    def of_each(self, values: FromClause, first: Select[Any]) -> Select[Any]:
        each = TASK.alias("each")
        keys = first.with_only_columns(self.key).correlate(values)
        columns = (each.c[column.name] for column in COLUMNS)
        found = values.join(each, each.c.sequence.in_(keys))
        return select(*columns).select_from(found)

    @property
    def stamp(self) -> ColumnElement[Any]:
        return null()

    def claiming(self, heads: Select[Any], claim: Update) -> Select[Any]:
        return heads.add_columns(self.stamp)  # another statement costs hardly anything

    def locked(self, statement: Select[Any], *, skip: bool = False) -> Select[Any]:
        return statement  # whoever writes has locked the whole file

    @property
    def lease_end(self) -> ColumnElement[datetime]:
        return bindparam("lease_until", type_=Moment)

    def leased(self, at: datetime, lease: timedelta) -> dict[str, Any]:
        return {"lease_until": later(at, lease) or _END}

    @property
    def now(self) -> ColumnElement[datetime]:
        return AT

    def value_of(self, values: ColumnElement[Any], name: str) -> ColumnElement[str]:
        text = type_coerce(values, Text)
        # Names are compared as they are written, so with their escapes.
        path = literal(f"$.{json.dumps(name, ensure_ascii=False)}")
        found: ColumnElement[str] = type_coerce(text.op("->")(path), Text)
        if '"' in name:  # for which a path has no escape
            found = _item_of(text, name)
        return case((func.json_valid(text) == 1, found))

    def has_meta(
        self, connection: Connection, wanted: Mapping[str, JSON]
    ) -> ColumnElement[bool]:
        def has(meta: bytes) -> bool:
            try:
                found: object = json.loads(meta)
            except (TypeError, ValueError, RecursionError):
                return False
            if not isinstance(found, dict):
                return False
            entries = cast_("dict[str, JSON]", found)
            return all(k in entries and same(v, entries[k]) for k, v in wanted.items())

        driver = connection.connection.driver_connection
        assert driver is not None
        driver.create_function("gokugen_has_meta", 1, has, deterministic=True)
        return func.gokugen_has_meta(cast(TASK.c.meta, LargeBinary)) == 1
