"""A reason to stop an attempt: a GPU that it holds is lost or hangs; indexes for metrics of what has ended

An old scheduler that goes on beside it does not know the reason, so update it first.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_STOPS = (
    "'cancelled','time_limit','preempted','abandoned','grant_ended','requeued','idle_reclaimed','gpu_failed'"
)
_WASTED = "'abandoned','failed','node_failed','preempted','requeued'"


def upgrade() -> None:
    """SQLite copies the table for that (foreign keys are off meanwhile)."""
    with op.batch_alter_table("attempts") as attempts:
        for name in ("stop_reason", "stop_asked"):
            attempts.drop_constraint(op.f(f"ck_attempts_{name}"), type_="check")
            attempts.create_check_constraint(op.f(f"ck_attempts_{name}"), f"{name} IN ({_STOPS})")
    for table, name, where in (
        ("jobs", "ix_jobs_end_reason", "end_reason IS NOT NULL"),
        ("attempts", "ix_attempts_wasted", f"end_reason IN ({_WASTED})"),
    ):
        condition = sa.text(where)
        op.create_index(op.f(name), table, ["end_reason"], sqlite_where=condition, postgresql_where=condition)


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")
