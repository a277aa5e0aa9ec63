"""The pools that tasks and schedules name, by which pending tasks are found first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    name = sa.Text(collation="C") if on_postgresql else sa.Text()
    pool = sa.Column("pool", name, nullable=False, server_default="")
    op.add_column("gokugen_task", pool)
    op.add_column("gokugen_schedule", sa.Column("pool", name))
    op.drop_index("gokugen_task_pending", "gokugen_task")
    pending = sa.text("state = 'scheduled'")
    moment: list[str | sa.TextClause] = ["scheduled_at", sa.text("priority DESC")]
    op.create_index(
        "gokugen_task_pending",
        "gokugen_task",
        ["pool", "work_id", *moment, "sequence", "created_at", "id"],
        sqlite_where=pending,
        postgresql_where=pending,
    )
