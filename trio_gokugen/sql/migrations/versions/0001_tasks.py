"""The table of tasks.

Written out, and never changed again: what a database went through stays as it was,
whatever becomes of the schema.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    number = sa.BigInteger() if on_postgresql else sa.Integer()
    sequence = [sa.Identity()] if on_postgresql else []
    name = sa.Text(collation="C") if on_postgresql else sa.Text()
    moment = postgresql.TIMESTAMP(timezone=True) if on_postgresql else sa.BigInteger()
    json = sa.JSON() if on_postgresql else sa.Text()
    op.create_table(
        "gokugen_task",
        sa.Column("sequence", number, *sequence, nullable=False),
        sa.Column("id", name, nullable=False),
        sa.Column("work_id", name, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("scheduled_at", moment, nullable=False),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("deadline", moment),
        sa.Column("param", json, nullable=False),
        sa.Column("meta", json, nullable=False),
        sa.Column("err", sa.Text()),
        sa.Column("attempt", sa.BigInteger(), nullable=False),
        sa.Column("interruptions", sa.BigInteger(), nullable=False),
        sa.Column("at_most_once", sa.Integer(), nullable=False),
        sa.Column("cancelled_at", moment),
        sa.Column("dispatched_at", moment),
        sa.Column("done_at", moment),
        sa.Column("ended_at", moment),
        sa.Column("dispatched_by", sa.Text()),
        sa.Column("lease_until", moment),
        # What rows are found by: on SQLite it costs no index, elsewhere one is enough.
        sa.PrimaryKeyConstraint("id", name="gokugen_task_id")
        if on_postgresql
        else sa.PrimaryKeyConstraint("sequence"),
    )
    if not on_postgresql:
        op.create_index("gokugen_task_id", "gokugen_task", ["id"], unique=True)
    largest = sa.text("priority DESC")
    indices: list[tuple[str, list[str | sa.TextClause], str | None]] = [
        (
            "pending",
            ["work_id", "scheduled_at", largest, "sequence"],
            "state = 'scheduled'",
        ),
        ("dispatched", ["lease_until"], "state = 'dispatched'"),
        ("ended", ["ended_at", "sequence"], "ended_at IS NOT NULL"),
        ("find", ["scheduled_at", largest, "created_at", "id"], None),
    ]
    for index, columns, where in indices:
        condition = None if where is None else sa.text(where)
        op.create_index(
            f"gokugen_task_{index}",
            "gokugen_task",
            columns,
            sqlite_where=condition,
            postgresql_where=condition,
        )
