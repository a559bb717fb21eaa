"""Limit accounts, policies, seals, statements, switches, tokens with scopes, and what periodic tasks did"""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ENDS = "'succeeded','failed','cancelled','time_limit','preempted','node_failed','abandoned','grant_ended','requeued'"
_STOPS = "'cancelled','time_limit','preempted','abandoned','grant_ended','requeued'"


def upgrade() -> None:
    _reasons()
    _new_columns()
    _new_tables()
    _indexes()
    _forbid_changes()
    _first_rows()
    _stored_replies()


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")


def _reasons() -> None:
    """Two more reasons to stop and to end. SQLite copies the tables for that (foreign keys are off meanwhile)."""
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_constraint(op.f("ck_jobs_end_reason"), type_="check")
        jobs.create_check_constraint(op.f("ck_jobs_end_reason"), f"end_reason IN ({_ENDS})")
    with op.batch_alter_table("attempts") as attempts:
        attempts.add_column(sa.Column("stop_asked", sa.String(length=20), nullable=True))
        attempts.drop_constraint(op.f("ck_attempts_end_reason"), type_="check")
        attempts.drop_constraint(op.f("ck_attempts_stop_reason"), type_="check")
        attempts.create_check_constraint(op.f("ck_attempts_end_reason"), f"end_reason IN ({_ENDS})")
        attempts.create_check_constraint(op.f("ck_attempts_stop_reason"), f"stop_reason IN ({_STOPS})")
        attempts.create_check_constraint(op.f("ck_attempts_stop_asked"), f"stop_asked IN ({_STOPS})")
    with op.batch_alter_table("grants") as grants:
        grants.add_column(sa.Column("max_gpus", sa.Integer(), nullable=True))
        grants.add_column(sa.Column("policy", sa.Text(), server_default=sa.text("'{}'"), nullable=False))
        grants.add_column(sa.Column("expired_at_ms", sa.BigInteger(), nullable=True))
        grants.add_column(sa.Column("expiries", sa.Integer(), server_default=sa.text("0"), nullable=False))
        grants.add_column(sa.Column("carry_overs", sa.Integer(), server_default=sa.text("0"), nullable=False))
        grants.create_check_constraint(op.f("ck_grants_max_gpus"), "max_gpus > 0")


def _new_columns() -> None:
    """Added in place: `transfers` and `audit` keep the triggers that forbid changes."""
    for table, column in (
        ("accounts", sa.Column("label", sa.String(length=200), nullable=True)),
        ("accounts", sa.Column("position", sa.Integer(), nullable=True)),
        (
            "accounts",
            sa.Column("overdraft_thousandths", sa.Integer(), server_default=sa.text("0"), nullable=False),
        ),
        ("transfers", sa.Column("evidence", sa.String(length=500), nullable=True)),
        ("holds", sa.Column("extensions", sa.Integer(), server_default=sa.text("0"), nullable=False)),
        (
            "programs",
            sa.Column("policy_id", sa.String(40), server_default=sa.text("'default'"), nullable=False),
        ),
        ("gpu_classes", sa.Column("paused", sa.Boolean(), server_default=sa.false(), nullable=False)),
        ("tokens", sa.Column("scopes", sa.String(length=500), server_default=sa.text("''"), nullable=False)),
        ("tokens", sa.Column("last_used_at_ms", sa.BigInteger(), nullable=True)),
        ("tokens", sa.Column("replaces", sa.String(length=60), nullable=True)),
        ("audit", sa.Column("before", sa.Text(), nullable=True)),
        ("audit", sa.Column("after", sa.Text(), nullable=True)),
        ("audit", sa.Column("address", sa.String(length=64), nullable=True)),
        ("findings", sa.Column("numbers", sa.Text(), server_default=sa.text("'{}'"), nullable=False)),
    ):
        op.add_column(table, column)


def _new_tables() -> None:
    op.create_table(
        "policies",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policies")),
    )
    op.create_table(
        "hub_switches",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("placement_paused", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_switches")),
    )
    op.create_table(
        "auth_failures",
        sa.Column("source", sa.String(length=160), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("since_wall_ms", sa.BigInteger(), nullable=False),
        sa.Column("locked_until_wall_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("source", name=op.f("pk_auth_failures")),
    )
    op.create_table(
        "seals",
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("through_seq", sa.BigInteger(), nullable=False),
        sa.Column("audit_rows", sa.Integer(), nullable=False),
        sa.Column("transfers", sa.Integer(), nullable=False),
        sa.Column("previous_sha256", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_seals")),
        sa.UniqueConstraint("sha256", name=op.f("uq_seals_sha256")),
    )
    op.create_table(
        "task_runs",
        sa.Column("task", sa.String(length=60), nullable=False),
        sa.Column("period_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("done_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("result", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("task", "period_at_ms", name=op.f("pk_task_runs")),
    )
    op.create_table(
        "statements",
        sa.Column("id", sa.String(length=60), nullable=False),
        sa.Column("grant_id", sa.String(length=60), nullable=False),
        sa.Column("account_id", sa.String(length=80), nullable=False),
        sa.Column("seal", sa.BigInteger(), nullable=False),
        sa.Column("since_seal", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.String(length=10), nullable=False),
        sa.Column("language", sa.String(length=5), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("issued_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("issued_by", sa.String(length=60), nullable=False),
        sa.CheckConstraint("format IN ('json','csv','html')", name=op.f("ck_statements_format")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_statements_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_statements")),
        sa.UniqueConstraint(
            "account_id",
            "seal",
            "since_seal",
            "format",
            "language",
            name=op.f("uq_statements_account_id_seal_since_seal_format_language"),
        ),
    )
    op.create_table(
        "reconciliations",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("cluster", sa.String(length=40), nullable=False),
        sa.Column("done_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("ledger_gpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("cluster_gpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("observed_gpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("busy_gpu_ms", sa.BigInteger(), nullable=False),
        sa.Column("differences", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["cluster"], ["clusters.id"], name=op.f("fk_reconciliations_cluster")),
        sa.PrimaryKeyConstraint("day", "cluster", name=op.f("pk_reconciliations")),
    )


def _indexes() -> None:
    op.create_index("ix_accounts_organization_id", "accounts", ["organization_id"])
    op.create_index("ix_attempts_grant_id_capacity_held", "attempts", ["grant_id", "capacity_held"])
    op.create_index("ix_audit_subject", "audit", ["subject"])
    op.create_index("ix_findings_code", "findings", ["code", "id"])
    op.create_index("ix_grants_ends_at_ms", "grants", ["ends_at_ms"])
    op.create_index("ix_seals_at_ms", "seals", ["at_ms"])


def _forbid_changes() -> None:
    """Seals and issued statements are written once as well; and on PostgreSQL no table of these is emptied."""
    if op.get_bind().dialect.name == "sqlite":
        for table in ("seals", "statements"):
            for verb in ("UPDATE", "DELETE"):
                op.execute(
                    f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                    f"BEGIN SELECT RAISE(ABORT, '{table} rows are never changed'); END"
                )
        return
    for table in ("seals", "statements"):
        op.execute(
            f"CREATE TRIGGER {table}_written_once BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION hub_written_once()"
        )
    for table in ("transfers", "transfer_legs", "slices", "audit", "seals", "statements"):
        op.execute(
            f"CREATE TRIGGER {table}_never_emptied BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION hub_written_once()"
        )


def _first_rows() -> None:
    op.execute("INSERT INTO hub_switches (id, placement_paused) VALUES (1, false)")
    op.execute("INSERT INTO policies (id, version, document, changed_at_ms) VALUES ('default', 1, '{}', 0)")
    # what nobody used in time goes to its programme's account of expired hours
    op.execute(
        "INSERT INTO accounts (id, kind, program_id, released, granted_gpu_us, held_gpu_us, used_gpu_us, "
        "overdraft_gpu_us) SELECT 'expired:' || id, 'expired', id, true, 0, 0, 0, 0 FROM programs"
    )


def _stored_replies() -> None:
    """A batch of the scheduler whose reply was lost over the upgrade is sent again: its stored reply must still be one.

    Until now a grant had one path, and its own organization took it.
    """
    streams = sa.table("streams", sa.column("stream"), sa.column("reply"))
    for stream, reply in op.get_bind().execute(sa.select(streams)).all():
        document = json.loads(reply)
        for item in document.get("objects", ()):
            grant = item.get("grant")
            for path in grant["paths"] if grant else ():
                path.setdefault("organization_id", grant["organization_id"])
        text = json.dumps(document, ensure_ascii=False)
        op.execute(sa.update(streams).where(streams.c.stream == stream).values(reply=text))
