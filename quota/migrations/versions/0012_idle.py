"""Idle rules: activity of running attempts, what was found, warnings, exemptions; the kind of a job; an end reason

An old program goes on beside it: it stores evidence without what a row gained, so activity of that time is not
measured, and nobody is stopped for it. It does not know the new reason to stop, so end it before the rules may stop.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_ENDS = (
    "'succeeded','failed','cancelled','time_limit','preempted','node_failed','abandoned'"
    ",'grant_ended','requeued','idle_reclaimed'"
)
_STOPS = "'cancelled','time_limit','preempted','abandoned','grant_ended','requeued','idle_reclaimed'"


def upgrade() -> None:
    _reasons()
    for column in (
        sa.Column("before_busy_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("before_observed_ms", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("before_received_at_ms", sa.BigInteger(), nullable=True),
    ):
        op.add_column("evidence", column)
    _tables()
    op.execute("INSERT INTO idle_policy (id, version, document, changed_at_ms) VALUES (1, 1, '{}', 0)")


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")


def _reasons() -> None:
    """SQLite copies the tables for that (foreign keys are off meanwhile)."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(
            sa.Column("kind", sa.String(length=20), server_default=sa.text("'batch'"), nullable=False)
        )
        jobs.create_check_constraint(op.f("ck_jobs_kind"), "kind IN ('batch','interactive')")
        jobs.drop_constraint(op.f("ck_jobs_end_reason"), type_="check")
        jobs.create_check_constraint(op.f("ck_jobs_end_reason"), f"end_reason IN ({_ENDS})")
    with op.batch_alter_table("attempts") as attempts:
        for name, reasons in (("end_reason", _ENDS), ("stop_reason", _STOPS), ("stop_asked", _STOPS)):
            attempts.drop_constraint(op.f(f"ck_attempts_{name}"), type_="check")
            attempts.create_check_constraint(op.f(f"ck_attempts_{name}"), f"{name} IN ({reasons})")


def _tables() -> None:
    op.create_table(
        "idle_activity",
        sa.Column("job_id", sa.String(length=60), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("gpu_uuid", sa.String(length=80), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), nullable=False),
        sa.Column("busy_ms", sa.BigInteger(), nullable=False),
        sa.Column("observed_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("busy_ms >= 0 AND observed_ms >= 0", name=op.f("ck_idle_activity_not_negative")),
        sa.PrimaryKeyConstraint("job_id", "attempt", "gpu_uuid", "from_ms", name=op.f("pk_idle_activity")),
    )
    op.create_index(op.f("ix_idle_activity_from_ms"), "idle_activity", ["from_ms"])
    op.create_table(
        "idle_found",
        sa.Column("job_id", sa.String(length=60), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("idle_since_ms", sa.BigInteger(), nullable=True),
        sa.Column("rule", sa.String(length=20), nullable=True),
        sa.Column("stop_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("worked_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("idle_gpus", sa.Integer(), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("utilization_thousandths", sa.Integer(), nullable=True),
        sa.Column("through_ms", sa.BigInteger(), nullable=True),
        sa.Column("exempt_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("changed_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("pk_idle_found")),
    )
    op.create_table(
        "idle_warnings",
        sa.Column("job_id", sa.String(length=60), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("idle_since_ms", sa.BigInteger(), nullable=False),
        sa.Column("rule", sa.String(length=20), nullable=False),
        sa.Column("stop_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("withdrawn_at_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("step IN (1, 2)", name=op.f("ck_idle_warnings_step")),
        sa.PrimaryKeyConstraint("job_id", "attempt", "number", name=op.f("pk_idle_warnings")),
    )
    op.create_table(
        "idle_policy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_idle_policy")),
    )
    op.create_table(
        "idle_exemptions",
        sa.Column("id", sa.String(length=60), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("subject", sa.String(length=60), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=200), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "kind IN ('job','organization','program','grant')", name=op.f("ck_idle_exemptions_kind")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_idle_exemptions")),
    )
