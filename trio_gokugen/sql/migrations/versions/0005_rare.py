"""What few tasks have: keys, retries, results and progress; and what schedules ask."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    name = sa.Text(collation="C") if on_postgresql else sa.Text()
    json = sa.JSON() if on_postgresql else sa.Text()
    op.add_column("gokugen_task", sa.Column("unique_key", name))
    op.add_column("gokugen_task", sa.Column("rare", json))
    op.add_column("gokugen_task", sa.Column("result", json))
    op.add_column("gokugen_task", sa.Column("progress", json))
    op.add_column("gokugen_schedule", sa.Column("condition", name))
    op.add_column("gokugen_schedule", sa.Column("ended_id", name))
    holds_key = sa.text("unique_key IS NOT NULL AND ended_at IS NULL")
    op.create_index(
        "gokugen_task_key",
        "gokugen_task",
        ["unique_key"],
        unique=True,
        sqlite_where=holds_key,
        postgresql_where=holds_key,
    )
    has_key = sa.text("unique_key IS NOT NULL")
    op.create_index(
        "gokugen_task_any_key",
        "gokugen_task",
        ["unique_key", "scheduled_at", sa.text("priority DESC"), "created_at", "id"],
        sqlite_where=has_key,
        postgresql_where=has_key,
    )
