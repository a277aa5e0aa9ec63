"""An index of the tasks of a schedule, in the order in which they are found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    condition = sa.text("schedule_id IS NOT NULL")
    op.create_index(
        "gokugen_task_of_schedule",
        "gokugen_task",
        ["schedule_id", "scheduled_at", sa.text("priority DESC"), "created_at", "id"],
        sqlite_where=condition,
        postgresql_where=condition,
    )
