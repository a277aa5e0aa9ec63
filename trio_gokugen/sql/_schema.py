"""The tables.

A moment is a `timestamptz` on PostgreSQL, and on SQLite, which has no such type, an
integer of microseconds since 1970. `param` and `meta` are kept as JSON to the letter.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from typing import cast as cast_

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    Dialect,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    cast,
    text,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from trio_gokugen._lengths import TICK

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Damaged:
    """In place of a value that cannot be read."""


class Moment(TypeDecorator[datetime]):
    """A moment in UTC, to the microsecond."""

    impl = BigInteger  # type: ignore[mutable-override]  # as SQLAlchemy has it
    cache_ok = True  # type: ignore[mutable-override]

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True))
        return dialect.type_descriptor(BigInteger())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return (value - EPOCH) // TICK

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        # In place of `process_result_value`, to which this is one more call for each value.
        return _moment


def _moment(value: Any) -> Any:
    if value is None:
        return None
    try:
        if type(value) is int:
            return EPOCH + timedelta(microseconds=value)
        if isinstance(value, datetime):
            return value if value.tzinfo is UTC else value.astimezone(UTC)
    except OverflowError:
        pass
    return Damaged()


class JSONObject(TypeDecorator[dict[str, Any]]):
    """A JSON object. One that cannot be read is `Damaged`, and spoils no other row."""

    impl = Text  # type: ignore[mutable-override]
    cache_ok = True  # type: ignore[mutable-override]

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            # Not JSONB, which makes of 1e22 an integer, and of that what no task may hold.
            return dialect.type_descriptor(JSON())
        return dialect.type_descriptor(Text())

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        # As text, or psycopg would read it, slower and less carefully.
        return type_coerce(cast(column, Text), self)

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if dialect.name == "postgresql":
            return value
        return as_json(value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        return _object


class JSONValue(JSONObject):
    """Any JSON value, or nothing. One that cannot be read is `Damaged`."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(JSON(none_as_null=True))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        return _value


def _value(value: Any) -> Any:
    return None if value is None else _object(value)


def _object(value: Any) -> Any:
    if value == "{}":
        return {}
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return Damaged()


def as_json(value: Any) -> str:
    """JSON as it is stored, where it is stored as text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) if value else "{}"


class Base(DeclarativeBase):
    """The tables of this library."""

    metadata: ClassVar[MetaData] = MetaData()


# In SQLite an INTEGER PRIMARY KEY is the row's own number; a BIGINT would be an index.
_Number = BigInteger().with_variant(Integer(), "sqlite")
# Ids are sorted as Python sorts them, whatever the language of the database.
_Id = Text().with_variant(Text(collation="C"), "postgresql")


class TaskRow(Base):
    """A task, as `trio_gokugen.Task` has it, and who runs it."""

    __tablename__ = "gokugen_task"

    # On PostgreSQL the primary key is another: see the migrations, which make the tables.
    sequence: Mapped[int] = mapped_column(_Number, primary_key=True)
    """Its place among the oldest."""

    id: Mapped[str] = mapped_column(_Id)
    work_id: Mapped[str] = mapped_column(_Id)
    pool: Mapped[str] = mapped_column(_Id, server_default="")
    """The pool that it names; empty if it names none, which no index would find as null."""

    state: Mapped[str] = mapped_column(Text)
    scheduled_at: Mapped[datetime] = mapped_column(Moment)
    priority: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(Moment)
    deadline: Mapped[datetime | None] = mapped_column(Moment)
    param: Mapped[dict[str, Any]] = mapped_column(JSONObject)
    meta: Mapped[dict[str, Any]] = mapped_column(JSONObject)
    err: Mapped[str | None] = mapped_column(Text)
    attempt: Mapped[int] = mapped_column(BigInteger)
    interruptions: Mapped[int] = mapped_column(BigInteger)
    at_most_once: Mapped[int] = mapped_column(Integer)
    """0 or 1."""

    cancelled_at: Mapped[datetime | None] = mapped_column(Moment)
    dispatched_at: Mapped[datetime | None] = mapped_column(Moment)
    done_at: Mapped[datetime | None] = mapped_column(Moment)

    ended_at: Mapped[datetime | None] = mapped_column(Moment)
    """When it ended, in whatever state."""

    dispatched_by: Mapped[str | None] = mapped_column(Text)
    """The name of the scheduler that runs it, or ran it last."""

    lease_until: Mapped[datetime | None] = mapped_column(Moment)
    """While it is dispatched: until when it is left to that scheduler."""

    schedule_id: Mapped[str | None] = mapped_column(_Id)
    nominal_at: Mapped[datetime | None] = mapped_column(Moment)

    # What few tasks have. One has another name than the field, which is a word of SQL.
    unique_key: Mapped[str | None] = mapped_column(_Id)
    rare: Mapped[dict[str, Any] | None] = mapped_column(JSONValue)
    """Its ``retry``, ``retries``, ``errors`` and ``when``, if it has one of them."""

    result: Mapped[Any | None] = mapped_column(JSONValue)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONValue)

    # What the ORM finds rows by has an index everywhere: see `Dialect.key`.
    __mapper_args__: Any = {"primary_key": [id]}  # noqa: RUF012 (as the base has it)


TASK = cast_("Table", TaskRow.__table__)

Index("gokugen_task_id", TaskRow.id, unique=True)
_pending = text("state = 'scheduled'")
Index(
    "gokugen_task_pending",
    TaskRow.pool,
    TaskRow.work_id,
    TaskRow.scheduled_at,
    TaskRow.priority.desc(),
    TaskRow.sequence,
    # For `find`, whose order has these among tasks of one moment.
    TaskRow.created_at,
    TaskRow.id,
    sqlite_where=_pending,
    postgresql_where=_pending,
)
_dispatched = text("state = 'dispatched'")
Index(
    "gokugen_task_dispatched",
    TaskRow.lease_until,
    sqlite_where=_dispatched,
    postgresql_where=_dispatched,
)
_ended = text("ended_at IS NOT NULL")
Index(
    "gokugen_task_ended",
    TaskRow.ended_at,
    TaskRow.sequence,
    sqlite_where=_ended,
    postgresql_where=_ended,
)
_of_schedule = text("schedule_id IS NOT NULL")
Index(
    "gokugen_task_schedule",
    TaskRow.schedule_id,
    TaskRow.ended_at,
    sqlite_where=_of_schedule,
    postgresql_where=_of_schedule,
)
_holds_key = text("unique_key IS NOT NULL AND ended_at IS NULL")
Index(
    "gokugen_task_key",
    TaskRow.unique_key,
    unique=True,
    sqlite_where=_holds_key,
    postgresql_where=_holds_key,
)
_has_key = text("unique_key IS NOT NULL")
Index(
    "gokugen_task_any_key",
    TaskRow.unique_key,
    TaskRow.scheduled_at,
    TaskRow.priority.desc(),
    TaskRow.created_at,
    TaskRow.id,
    sqlite_where=_has_key,
    postgresql_where=_has_key,
)
Index(
    "gokugen_task_of_schedule",
    TaskRow.schedule_id,
    TaskRow.scheduled_at,
    TaskRow.priority.desc(),
    TaskRow.created_at,
    TaskRow.id,
    sqlite_where=_of_schedule,
    postgresql_where=_of_schedule,
)
# Of pending tasks there may be many, at moments far apart: each added would cost a page of
# this, too.
_not_pending = text("state <> 'scheduled'")
Index(
    "gokugen_task_find",
    TaskRow.scheduled_at,
    TaskRow.priority.desc(),
    TaskRow.created_at,
    TaskRow.id,
    sqlite_where=_not_pending,
    postgresql_where=_not_pending,
)


class Span(TypeDecorator[timedelta]):
    """A length of time, as microseconds."""

    impl = BigInteger  # type: ignore[mutable-override]  # as SQLAlchemy has it
    cache_ok = True  # type: ignore[mutable-override]

    def process_bind_param(self, value: timedelta | None, dialect: Dialect) -> Any:
        return None if value is None else value // TICK

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        if value is None:
            return None
        # SQLite has a type for each value: 1e400 is infinite there.
        return timedelta(microseconds=value) if type(value) is int else Damaged()


class ScheduleRow(Base):
    """A schedule, as `trio_gokugen.Schedule` has it."""

    __tablename__ = "gokugen_schedule"

    id: Mapped[str] = mapped_column(_Id, primary_key=True)
    # Some of these have other names than the fields, which are words of SQL.
    rule: Mapped[dict[str, Any]] = mapped_column(JSONObject)
    """The trigger."""

    work_id: Mapped[str] = mapped_column(_Id)
    param: Mapped[dict[str, Any]] = mapped_column(JSONObject)
    meta: Mapped[dict[str, Any]] = mapped_column(JSONObject)
    priority: Mapped[int] = mapped_column(BigInteger)
    deadline_after: Mapped[timedelta | None] = mapped_column(Span)
    jitter: Mapped[timedelta] = mapped_column(Span)
    late: Mapped[dict[str, Any]] = mapped_column(JSONObject)
    overlap: Mapped[str] = mapped_column(Text)
    counted_from: Mapped[str] = mapped_column(Text)
    """What is called ``after`` elsewhere."""

    condition: Mapped[str | None] = mapped_column(_Id)
    """What is called ``when`` elsewhere."""

    pool: Mapped[str | None] = mapped_column(_Id)
    paused: Mapped[int] = mapped_column(Integer)
    """0 or 1."""

    created_at: Mapped[datetime] = mapped_column(Moment)
    next_at: Mapped[datetime | None] = mapped_column(Moment)
    last_at: Mapped[datetime | None] = mapped_column(Moment)
    runs: Mapped[int] = mapped_column(BigInteger)
    dropped: Mapped[int] = mapped_column(BigInteger)
    pending_id: Mapped[str | None] = mapped_column(_Id)
    awaited_id: Mapped[str | None] = mapped_column(_Id)
    queued_at: Mapped[datetime | None] = mapped_column(Moment)
    skipped_from: Mapped[datetime | None] = mapped_column(Moment)
    ended_id: Mapped[str | None] = mapped_column(_Id)


SCHEDULE = cast_("Table", ScheduleRow.__table__)
