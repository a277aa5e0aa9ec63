"""Schedules, and the tasks that are their occurrences."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    name = sa.Text(collation="C") if on_postgresql else sa.Text()
    moment = postgresql.TIMESTAMP(timezone=True) if on_postgresql else sa.BigInteger()
    json = sa.JSON() if on_postgresql else sa.Text()
    op.add_column("gokugen_task", sa.Column("schedule_id", name))
    op.add_column("gokugen_task", sa.Column("nominal_at", moment))
    condition = sa.text("schedule_id IS NOT NULL")
    op.create_index(
        "gokugen_task_schedule",
        "gokugen_task",
        ["schedule_id", "ended_at"],
        sqlite_where=condition,
        postgresql_where=condition,
    )
    op.create_table(
        "gokugen_schedule",
        sa.Column("id", name, nullable=False),
        sa.Column("rule", json, nullable=False),
        sa.Column("work_id", name, nullable=False),
        sa.Column("param", json, nullable=False),
        sa.Column("meta", json, nullable=False),
        sa.Column("priority", sa.BigInteger(), nullable=False),
        sa.Column("deadline_after", sa.BigInteger()),
        sa.Column("jitter", sa.BigInteger(), nullable=False),
        sa.Column("late", json, nullable=False),
        sa.Column("overlap", sa.Text(), nullable=False),
        sa.Column("counted_from", sa.Text(), nullable=False),
        sa.Column("paused", sa.Integer(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("next_at", moment),
        sa.Column("last_at", moment),
        sa.Column("runs", sa.BigInteger(), nullable=False),
        sa.Column("dropped", sa.BigInteger(), nullable=False),
        sa.Column("pending_id", name),
        sa.Column("awaited_id", name),
        sa.Column("queued_at", moment),
        sa.Column("skipped_from", moment),
        sa.PrimaryKeyConstraint("id", name="gokugen_schedule_id"),
    )
