"""Caps of the hub and of organizations, and the indexes by which they are counted

An old program goes on beside it: it writes organizations without caps of their own, and keeps to none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hub_caps",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hub_caps")),
    )
    op.execute("INSERT INTO hub_caps (id, version, document, changed_at_ms) VALUES (1, 1, '{}', 0)")
    caps = sa.Column("caps", sa.Text(), server_default=sa.text("'{}'"), nullable=False)
    op.add_column("organizations", caps)
    op.create_index(
        "ix_jobs_queued_organization_id",
        "jobs",
        ["organization_id"],
        sqlite_where=sa.text("state = 'queued'"),
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "ix_attempts_organization_id_capacity_held", "attempts", ["organization_id", "capacity_held"]
    )


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")
