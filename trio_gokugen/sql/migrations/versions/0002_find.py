"""The index of `find` without pending tasks, which are found by their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for index in "pending", "find":
        op.drop_index(f"gokugen_task_{index}", "gokugen_task")
    moment: list[str | sa.TextClause] = ["scheduled_at", sa.text("priority DESC")]
    last: list[str | sa.TextClause] = ["created_at", "id"]
    indices: list[tuple[str, list[str | sa.TextClause], str]] = [
        ("pending", ["work_id", *moment, "sequence", *last], "state = 'scheduled'"),
        ("find", [*moment, *last], "state <> 'scheduled'"),
    ]
    for index, columns, where in indices:
        condition = sa.text(where)
        op.create_index(
            f"gokugen_task_{index}",
            "gokugen_task",
            columns,
            sqlite_where=condition,
            postgresql_where=condition,
        )
