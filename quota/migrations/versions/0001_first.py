"""The hub's first schema"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("parent_id", sa.String(length=80), nullable=True),
        sa.Column("program_id", sa.String(length=40), nullable=True),
        sa.Column("organization_id", sa.String(length=40), nullable=True),
        sa.Column("grant_id", sa.String(length=60), nullable=True),
        sa.Column("released", sa.Boolean(), nullable=False),
        sa.Column("granted_gpu_us", sa.BigInteger(), nullable=False),
        sa.Column("held_gpu_us", sa.BigInteger(), nullable=False),
        sa.Column("used_gpu_us", sa.BigInteger(), nullable=False),
        sa.Column("overdraft_gpu_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("granted_gpu_us >= 0 OR kind = 'treasury'", name=op.f("ck_accounts_granted")),
        sa.CheckConstraint(
            "held_gpu_us + used_gpu_us <= granted_gpu_us + overdraft_gpu_us OR kind IN ('treasury','platform')",
            name=op.f("ck_accounts_limit"),
        ),
        sa.CheckConstraint(
            "kind IN ('treasury','program','grant','tranche','share','platform','expired')",
            name=op.f("ck_accounts_kind"),
        ),
        sa.CheckConstraint("held_gpu_us >= 0", name=op.f("ck_accounts_held")),
        sa.CheckConstraint("used_gpu_us >= 0", name=op.f("ck_accounts_used")),
        sa.ForeignKeyConstraint(["parent_id"], ["accounts.id"], name=op.f("fk_accounts_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
    )
    with op.batch_alter_table("accounts", schema=None) as batch_op:
        batch_op.create_index("ix_accounts_grant_id", ["grant_id"], unique=False)

    op.create_table(
        "audit",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("action", sa.String(length=60), nullable=False),
        sa.Column("subject", sa.String(length=300), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index("ix_audit_seq", ["seq"], unique=False)

    op.create_table(
        "clock",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("business_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("wall_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("speed", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clock")),
    )
    op.create_table(
        "clusters",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("observed_through_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clusters")),
    )
    op.create_table(
        "evidence",
        sa.Column("job_id", sa.String(length=60), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("gpu_uuid", sa.String(length=80), nullable=False),
        sa.Column("hour_ms", sa.BigInteger(), nullable=False),
        sa.Column("agent_epoch", sa.String(length=64), nullable=False),
        sa.Column("node", sa.String(length=253), nullable=False),
        sa.Column("gpu_class", sa.String(length=63), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("busy_ms", sa.BigInteger(), nullable=False),
        sa.Column("observed_ms", sa.BigInteger(), nullable=False),
        sa.Column("received_at_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "busy_ms >= 0 AND busy_ms <= observed_ms AND observed_ms <= 3600000",
            name=op.f("ck_evidence_within_hour"),
        ),
        sa.PrimaryKeyConstraint(
            "job_id", "attempt", "gpu_uuid", "hour_ms", "agent_epoch", name=op.f("pk_evidence")
        ),
    )
    op.create_table(
        "feed",
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("id", sa.String(length=300), nullable=False),
        sa.PrimaryKeyConstraint("seq", "kind", "id", name=op.f("pk_feed")),
    )
    op.create_table(
        "feed_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("oldest", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feed_head")),
    )
    op.create_table(
        "findings",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.String(length=60), nullable=False),
        sa.Column("subject", sa.String(length=300), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_findings")),
    )
    with op.batch_alter_table("findings", schema=None) as batch_op:
        batch_op.create_index("ix_findings_subject", ["subject"], unique=False)

    op.create_table(
        "holds",
        sa.Column("id", sa.String(length=120), nullable=False),
        sa.Column("job_id", sa.String(length=60), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("grant_id", sa.String(length=60), nullable=False),
        sa.Column("amount_gpu_us", sa.BigInteger(), nullable=False),
        sa.Column("settled_gpu_us", sa.BigInteger(), nullable=False),
        sa.Column("released_gpu_us", sa.BigInteger(), nullable=False),
        sa.Column("refunded_gpu_us", sa.BigInteger(), nullable=False),
        sa.Column("platform_gpu_us", sa.BigInteger(), nullable=False),
        sa.Column("resolved", sa.Boolean(), nullable=False),
        sa.Column("gpu_class", sa.String(length=63), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("rate_id", sa.String(length=80), nullable=False),
        sa.Column("rate_thousandths", sa.Integer(), nullable=False),
        sa.Column("price_krw", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "NOT resolved OR settled_gpu_us + released_gpu_us = amount_gpu_us",
            name=op.f("ck_holds_resolved_whole"),
        ),
        sa.CheckConstraint(
            "settled_gpu_us + released_gpu_us <= amount_gpu_us", name=op.f("ck_holds_not_over")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
        sa.UniqueConstraint("job_id", "attempt", name=op.f("uq_holds_job_id_attempt")),
    )
    op.create_table(
        "idempotency",
        sa.Column("principal", sa.String(length=60), nullable=False),
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("principal", "key", name=op.f("pk_idempotency")),
    )
    with op.batch_alter_table("idempotency", schema=None) as batch_op:
        batch_op.create_index("ix_idempotency_created_at_ms", ["created_at_ms"], unique=False)

    op.create_table(
        "node_capacity",
        sa.Column("cluster", sa.String(length=40), nullable=False),
        sa.Column("node", sa.String(length=253), nullable=False),
        sa.Column("gpu_class", sa.String(length=63), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("foreign_used", sa.Integer(), nullable=False),
        sa.Column("used", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "total >= 0 AND foreign_used >= 0 AND used >= 0", name=op.f("ck_node_capacity_not_negative")
        ),
        sa.PrimaryKeyConstraint("cluster", "node", "gpu_class", name=op.f("pk_node_capacity")),
    )
    op.create_table(
        "organizations",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("frozen", sa.Boolean(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("decayed_usage_gpu_us", sa.Float(), nullable=False),
        sa.Column("decayed_as_of_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
    )
    op.create_table(
        "ranking",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("cycle", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ranking")),
    )
    op.create_table(
        "rates",
        sa.Column("id", sa.String(length=80), nullable=False),
        sa.Column("gpu_class", sa.String(length=63), nullable=False),
        sa.Column("rate_thousandths", sa.Integer(), nullable=False),
        sa.Column("price_krw", sa.Integer(), nullable=False),
        sa.Column("valid_from_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("rate_thousandths > 0 AND price_krw >= 0", name=op.f("ck_rates_positive")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rates")),
    )
    op.create_table(
        "scheduler_epoch",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scheduler_epoch")),
    )
    op.create_table(
        "scheduler_lease",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("holder", sa.String(length=200), nullable=False),
        sa.Column("instance", sa.String(length=64), nullable=False),
        sa.Column("url", sa.String(length=500), nullable=False),
        sa.Column("expires_wall_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scheduler_lease")),
    )
    op.create_table(
        "slices",
        sa.Column("id", sa.String(length=160), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.String(length=60), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("starts_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("ends_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("payer", sa.String(length=20), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.Column("gpu_class", sa.String(length=63), nullable=False),
        sa.Column("rate_id", sa.String(length=80), nullable=False),
        sa.Column("rate_thousandths", sa.Integer(), nullable=False),
        sa.Column("price_krw", sa.Integer(), nullable=False),
        sa.Column("amount_gpu_us", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("payer IN ('grant','platform')", name=op.f("ck_slices_payer")),
        sa.CheckConstraint(
            "amount_gpu_us = (ends_at_ms - starts_at_ms) * gpus * rate_thousandths",
            name=op.f("ck_slices_arithmetic"),
        ),
        sa.CheckConstraint("ends_at_ms > starts_at_ms", name=op.f("ck_slices_forward")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_slices")),
        sa.UniqueConstraint(
            "job_id", "attempt", "starts_at_ms", name=op.f("uq_slices_job_id_attempt_starts_at_ms")
        ),
    )
    op.create_table(
        "streams",
        sa.Column("stream", sa.String(length=80), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("body_sha256", sa.String(length=64), nullable=False),
        sa.Column("reply", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("stream", name=op.f("pk_streams")),
    )
    op.create_table(
        "transfers",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(length=20), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("amount_gpu_us", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.String(length=60), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("hold_id", sa.String(length=120), nullable=True),
        sa.Column("slice_id", sa.String(length=160), nullable=True),
        sa.Column("refund_of", sa.String(length=200), nullable=True),
        sa.Column("refund_kind", sa.String(length=20), nullable=True),
        sa.Column("starts_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("ends_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("gpus", sa.Integer(), nullable=True),
        sa.Column("rate_id", sa.String(length=80), nullable=True),
        sa.CheckConstraint(
            "refund_kind IN ('correction','fault','preempted')", name=op.f("ck_transfers_refund_kind")
        ),
        sa.CheckConstraint(
            "type IN ('deposit','hold','extend','settle','release','refund','transfer','pullback','expire','adjust')",
            name=op.f("ck_transfers_type"),
        ),
        sa.CheckConstraint("amount_gpu_us >= 0", name=op.f("ck_transfers_amount")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_transfers")),
    )
    with op.batch_alter_table("transfers", schema=None) as batch_op:
        batch_op.create_index("ix_transfers_job_id", ["job_id"], unique=False)
        batch_op.create_index("ix_transfers_seq", ["seq"], unique=False)

    op.create_table(
        "gpu_classes",
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("rate_id", sa.String(length=80), nullable=False),
        sa.ForeignKeyConstraint(["rate_id"], ["rates.id"], name=op.f("fk_gpu_classes_rate_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gpu_classes")),
    )
    op.create_table(
        "hold_accounts",
        sa.Column("hold_id", sa.String(length=120), nullable=False),
        sa.Column("account_id", sa.String(length=80), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_hold_accounts_account_id")),
        sa.ForeignKeyConstraint(["hold_id"], ["holds.id"], name=op.f("fk_hold_accounts_hold_id")),
        sa.PrimaryKeyConstraint("hold_id", "account_id", name=op.f("pk_hold_accounts")),
    )
    op.create_table(
        "nodes",
        sa.Column("cluster", sa.String(length=40), nullable=False),
        sa.Column("node", sa.String(length=253), nullable=False),
        sa.Column("schedulable", sa.Boolean(), nullable=False),
        sa.Column("cordoned", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["cluster"], ["clusters.id"], name=op.f("fk_nodes_cluster")),
        sa.PrimaryKeyConstraint("cluster", "node", name=op.f("pk_nodes")),
    )
    op.create_table(
        "programs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("account_id", sa.String(length=80), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_programs_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_programs")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(length=60), nullable=False),
        sa.Column("role", sa.String(length=20), nullable=False),
        sa.Column("organization_id", sa.String(length=40), nullable=True),
        sa.Column("node", sa.String(length=253), nullable=True),
        sa.Column("label", sa.String(length=500), nullable=False),
        sa.Column("prefix", sa.String(length=20), nullable=False),
        sa.Column("secret_sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "role <> 'member' OR organization_id IS NOT NULL", name=op.f("ck_tokens_member_has_organization")
        ),
        sa.CheckConstraint(
            "role IN ('operator','member','auditor','scheduler','agent')", name=op.f("ck_tokens_role")
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_tokens_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
        sa.UniqueConstraint("secret_sha256", name=op.f("uq_tokens_secret_sha256")),
    )
    op.create_table(
        "transfer_legs",
        sa.Column("transfer_id", sa.String(length=200), nullable=False),
        sa.Column("account_id", sa.String(length=80), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("d_granted", sa.BigInteger(), nullable=False),
        sa.Column("d_held", sa.BigInteger(), nullable=False),
        sa.Column("d_used", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_transfer_legs_account_id")),
        sa.ForeignKeyConstraint(["transfer_id"], ["transfers.id"], name=op.f("fk_transfer_legs_transfer_id")),
        sa.PrimaryKeyConstraint("transfer_id", "account_id", name=op.f("pk_transfer_legs")),
    )
    with op.batch_alter_table("transfer_legs", schema=None) as batch_op:
        batch_op.create_index("ix_transfer_legs_account_id_seq", ["account_id", "seq"], unique=False)

    op.create_table(
        "grants",
        sa.Column("id", sa.String(length=60), nullable=False),
        sa.Column("program_id", sa.String(length=40), nullable=False),
        sa.Column("organization_id", sa.String(length=40), nullable=False),
        sa.Column("account_id", sa.String(length=80), nullable=False),
        sa.Column("starts_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("ends_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("pace_lag_ms", sa.BigInteger(), nullable=True),
        sa.Column("pace_as_of_ms", sa.BigInteger(), nullable=True),
        sa.Column("pace_spent_gpu_us", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("ends_at_ms > starts_at_ms", name=op.f("ck_grants_term")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_grants_account_id")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_grants_organization_id")
        ),
        sa.ForeignKeyConstraint(["program_id"], ["programs.id"], name=op.f("fk_grants_program_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
    )
    with op.batch_alter_table("grants", schema=None) as batch_op:
        batch_op.create_index("ix_grants_organization_id", ["organization_id"], unique=False)

    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=60), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("organization_id", sa.String(length=40), nullable=False),
        sa.Column("grant_id", sa.String(length=60), nullable=True),
        sa.Column("gpu_class", sa.String(length=63), nullable=False),
        sa.Column("gpus_per_pod", sa.Integer(), nullable=False),
        sa.Column("pods", sa.Integer(), nullable=False),
        sa.Column("walltime_ms", sa.BigInteger(), nullable=False),
        sa.Column("grace_ms", sa.BigInteger(), nullable=False),
        sa.Column("restartable", sa.Boolean(), nullable=False),
        sa.Column("checkpoint_interval_ms", sa.BigInteger(), nullable=True),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("submitted_by", sa.String(length=60), nullable=False),
        sa.Column("submitted_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("end_reason", sa.String(length=20), nullable=True),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("abandonments", sa.Integer(), nullable=False),
        sa.Column("not_before_ms", sa.BigInteger(), nullable=True),
        sa.Column("cancel_requested_at_ms", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(state = 'ended') = (end_reason IS NOT NULL)", name=op.f("ck_jobs_ended_has_reason")
        ),
        sa.CheckConstraint(
            "end_reason IN ('succeeded','failed','cancelled','time_limit','preempted','node_failed','abandoned')",
            name=op.f("ck_jobs_end_reason"),
        ),
        sa.CheckConstraint(
            "state IN ('queued','starting','running','stopping','ended')", name=op.f("ck_jobs_state")
        ),
        sa.ForeignKeyConstraint(["grant_id"], ["grants.id"], name=op.f("fk_jobs_grant_id")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_jobs_organization_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index("ix_jobs_organization_id_id", ["organization_id", "id"], unique=False)
        batch_op.create_index("ix_jobs_state_id", ["state", "id"], unique=False)

    op.create_table(
        "attempts",
        sa.Column("job_id", sa.String(length=60), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("organization_id", sa.String(length=40), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("cluster", sa.String(length=40), nullable=False),
        sa.Column("grant_id", sa.String(length=60), nullable=False),
        sa.Column("hold_id", sa.String(length=120), nullable=False),
        sa.Column("walltime_ms", sa.BigInteger(), nullable=False),
        sa.Column("grace_ms", sa.BigInteger(), nullable=False),
        sa.Column("claimed_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("first_started_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("last_started_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("end_reason", sa.String(length=20), nullable=True),
        sa.Column("lost", sa.Boolean(), nullable=False),
        sa.Column("stop_reason", sa.String(length=20), nullable=True),
        sa.Column("stop_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("stop_grace_ms", sa.BigInteger(), nullable=True),
        sa.Column("stop_for_job", sa.String(length=60), nullable=True),
        sa.Column("capacity_held", sa.Boolean(), nullable=False),
        sa.Column("settled_through_ms", sa.BigInteger(), nullable=True),
        sa.Column("settled", sa.Boolean(), nullable=False),
        sa.CheckConstraint(
            "end_reason IN ('succeeded','failed','cancelled','time_limit','preempted','node_failed','abandoned')",
            name=op.f("ck_attempts_end_reason"),
        ),
        sa.CheckConstraint("state = 'ended' OR capacity_held", name=op.f("ck_attempts_open_keeps_capacity")),
        sa.CheckConstraint(
            "state IN ('starting','running','stopping','ended')", name=op.f("ck_attempts_state")
        ),
        sa.CheckConstraint(
            "stop_reason IN ('cancelled','time_limit','preempted','abandoned')",
            name=op.f("ck_attempts_stop_reason"),
        ),
        sa.ForeignKeyConstraint(["cluster"], ["clusters.id"], name=op.f("fk_attempts_cluster")),
        sa.ForeignKeyConstraint(["grant_id"], ["grants.id"], name=op.f("fk_attempts_grant_id")),
        sa.ForeignKeyConstraint(["hold_id"], ["holds.id"], name=op.f("fk_attempts_hold_id")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id")),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("pk_attempts")),
    )
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.create_index("ix_attempts_stop_for_job", ["stop_for_job"], unique=False)
        batch_op.create_index("ix_attempts_capacity_held", ["capacity_held", "job_id"], unique=False)
        batch_op.create_index("ix_attempts_open", ["cluster", "settled"], unique=False)

    op.create_table(
        "placements",
        sa.Column("job_id", sa.String(length=60), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("pod_index", sa.Integer(), nullable=False),
        sa.Column("cluster", sa.String(length=40), nullable=False),
        sa.Column("node", sa.String(length=253), nullable=False),
        sa.Column("gpu_class", sa.String(length=63), nullable=False),
        sa.Column("gpus", sa.Integer(), nullable=False),
        sa.CheckConstraint("gpus > 0", name=op.f("ck_placements_gpus")),
        sa.ForeignKeyConstraint(
            ["job_id", "attempt"],
            ["attempts.job_id", "attempts.attempt"],
            name=op.f("fk_placements_job_id_attempt"),
        ),
        sa.PrimaryKeyConstraint("job_id", "attempt", "pod_index", name=op.f("pk_placements")),
    )
    _forbid_changes()
    _first_rows()


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")


def _forbid_changes() -> None:
    """Transfers, legs, slices and audit rows are written once (ledger invariant I8), whoever holds the connection."""
    written_once = ("transfers", "transfer_legs", "slices", "audit")
    if op.get_bind().dialect.name == "sqlite":
        for table in written_once:
            for verb in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} rows are never changed'); END"
                )
        return
    op.execute(
        "CREATE FUNCTION hub_written_once() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% rows are never changed', TG_TABLE_NAME; END $$"
    )
    for table in written_once:
        op.execute(
            f"CREATE TRIGGER {table}_written_once BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION hub_written_once()"
        )


def _first_rows() -> None:
    op.execute("INSERT INTO feed_head (id, seq, oldest) VALUES (1, 0, 0)")
    op.execute("INSERT INTO scheduler_epoch (id, epoch) VALUES (1, 0)")
    for account in ("treasury", "platform"):
        op.execute(
            "INSERT INTO accounts (id, kind, released, granted_gpu_us, held_gpu_us, used_gpu_us, overdraft_gpu_us) "
            f"VALUES ('{account}', '{account}', true, 0, 0, 0, 0)"
        )
