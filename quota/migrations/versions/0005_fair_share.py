"""How the hub shares GPUs, the room promised to waiting jobs, and what a preemption is taken to lose

An old program goes on beside it: it reads and writes the columns that it knows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "fair_share",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fair_share")),
    )
    op.execute("INSERT INTO fair_share (id, version, document, changed_at_ms) VALUES (1, 1, '{}', 0)")
    reservations = sa.Column("reservations", sa.Text(), server_default=sa.text("'[]'"), nullable=False)
    op.add_column("ranking", reservations)
    op.add_column("attempts", sa.Column("stop_checkpoint_ms", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")
