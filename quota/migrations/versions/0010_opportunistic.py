"""Opportunistic jobs, and the accounts that programmes pay them from

A programme's own account is a grant of no organization. An old program goes on beside it: it sees a grant that nobody
may draw on, and its scheduler starts an opportunistic job from the organization's grants, so switch none on before all
are replaced.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("grants") as grants:
        grants.alter_column("organization_id", existing_type=sa.String(length=40), nullable=True)
    op.create_table(
        "opportunistic_funds",
        sa.Column("program_id", sa.String(length=40), nullable=False),
        sa.Column("grant_id", sa.String(length=60), nullable=False),
        sa.Column("pays", sa.Boolean(), nullable=False),
        sa.Column("job_walltime_ms", sa.BigInteger(), nullable=False),
        sa.Column("job_grace_ms", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["grant_id"], ["grants.id"], name=op.f("fk_opportunistic_funds_grant_id_grants")
        ),
        sa.ForeignKeyConstraint(
            ["program_id"], ["programs.id"], name=op.f("fk_opportunistic_funds_program_id_programs")
        ),
        sa.PrimaryKeyConstraint("program_id", name=op.f("pk_opportunistic_funds")),
    )
    op.create_index(op.f("ix_opportunistic_funds_grant_id"), "opportunistic_funds", ["grant_id"])
    # the programme whose account pays for an opportunistic job; of others null
    op.add_column("jobs", sa.Column("program_id", sa.String(length=40), nullable=True))
    no = sa.text("false")
    op.add_column("attempts", sa.Column("opportunistic", sa.Boolean(), server_default=no, nullable=False))
    zero = sa.text("0")
    usage = sa.Column("opportunistic_usage_gpu_us", sa.Float(), server_default=zero, nullable=False)
    op.add_column("organizations", usage)
    as_of = sa.Column("opportunistic_as_of_ms", sa.BigInteger(), server_default=zero, nullable=False)
    op.add_column("organizations", as_of)


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")
