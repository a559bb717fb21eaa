"""GPUs by UUID, verdicts on them, quarantine, and the attempts that died of a GPU's fault

An old program goes on beside it: it does not know `held_back` and may still start work on a node with a bad GPU.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("held_back", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "gpus",
        sa.Column("gpu_uuid", sa.String(length=80), nullable=False),
        sa.Column("node", sa.String(length=253), nullable=False),
        sa.Column("gpu_class", sa.String(length=63), nullable=False),
        sa.Column("model", sa.String(length=200), nullable=False),
        sa.Column("serial", sa.String(length=200), nullable=False),
        sa.Column("pci_bus_id", sa.String(length=200), nullable=False),
        sa.Column("driver", sa.String(length=200), nullable=False),
        sa.Column("first_seen_ms", sa.BigInteger(), nullable=True),
        sa.Column("last_seen_ms", sa.BigInteger(), nullable=True),
        sa.Column("health", sa.String(length=20), nullable=True),
        sa.Column("health_since_ms", sa.BigInteger(), nullable=True),
        sa.Column("rule", sa.String(length=40), nullable=False),
        sa.Column("withdrawn", sa.Boolean(), nullable=False),
        sa.Column("registered", sa.Boolean(), nullable=False),
        sa.Column("asset_number", sa.String(length=60), nullable=False),
        sa.Column("site", sa.String(length=60), nullable=False),
        sa.Column("expected_serial", sa.String(length=200), nullable=False),
        sa.Column("expected_node", sa.String(length=253), nullable=False),
        sa.Column("quarantine", sa.String(length=10), nullable=False),
        sa.Column("quarantined_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("quarantined_by", sa.String(length=120), nullable=False),
        sa.Column("quarantine_reason", sa.String(length=500), nullable=False),
        sa.Column("withheld_verdict", sa.String(length=60), nullable=True),
        sa.CheckConstraint("quarantine IN ('','agent','operator')", name=op.f("ck_gpus_quarantine")),
        sa.CheckConstraint(
            "health IN ('healthy','degraded','unhealthy','lost')", name=op.f("ck_gpus_health")
        ),
        sa.CheckConstraint(
            "(quarantine = '') = (quarantined_at_ms IS NULL)", name=op.f("ck_gpus_quarantine_has_time")
        ),
        sa.CheckConstraint(
            "(first_seen_ms IS NULL) = (last_seen_ms IS NULL)", name=op.f("ck_gpus_seen_has_both_times")
        ),
        sa.PrimaryKeyConstraint("gpu_uuid", name=op.f("pk_gpus")),
    )
    op.create_index(op.f("ix_gpus_node"), "gpus", ["node"])
    op.create_index(op.f("ix_gpus_quarantine"), "gpus", ["quarantine"])
    op.create_table(
        "gpu_verdicts",
        sa.Column("id", sa.String(length=60), nullable=False),
        sa.Column("gpu_uuid", sa.String(length=80), nullable=False),
        sa.Column("node", sa.String(length=253), nullable=False),
        sa.Column("health", sa.String(length=20), nullable=False),
        sa.Column("rule", sa.String(length=40), nullable=False),
        sa.Column("xid", sa.Integer(), nullable=True),
        sa.Column("fault", sa.Boolean(), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.String(length=200), nullable=False),
        sa.Column("holders", sa.Text(), nullable=False),
        sa.Column("received_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('recorded','quarantined','withheld','observed')",
            name=op.f("ck_gpu_verdicts_outcome"),
        ),
        sa.ForeignKeyConstraint(["gpu_uuid"], ["gpus.gpu_uuid"], name=op.f("fk_gpu_verdicts_gpu_uuid_gpus")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gpu_verdicts")),
    )
    op.create_index(
        op.f("ix_gpu_verdicts_gpu_uuid_received_at_ms"), "gpu_verdicts", ["gpu_uuid", "received_at_ms"]
    )
    op.create_table(
        "gpu_policy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gpu_policy")),
    )
    op.execute("INSERT INTO gpu_policy (id, document) VALUES (1, '{}')")
    op.create_table(
        "gpu_faults",
        sa.Column("job_id", sa.String(length=60), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("verdict_id", sa.String(length=60), nullable=False),
        sa.Column("gpu_uuid", sa.String(length=80), nullable=False),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.String(length=20), nullable=False),
        sa.CheckConstraint(
            "outcome IN ('open','none','requeued','ended')", name=op.f("ck_gpu_faults_outcome")
        ),
        sa.ForeignKeyConstraint(
            ["job_id", "attempt"],
            ["attempts.job_id", "attempts.attempt"],
            name=op.f("fk_gpu_faults_job_id_attempt_attempts"),
        ),
        sa.ForeignKeyConstraint(
            ["verdict_id"], ["gpu_verdicts.id"], name=op.f("fk_gpu_faults_verdict_id_gpu_verdicts")
        ),
        sa.PrimaryKeyConstraint("job_id", "attempt", "verdict_id", name=op.f("pk_gpu_faults")),
    )
    op.create_index(op.f("ix_gpu_faults_outcome"), "gpu_faults", ["outcome"])


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")
