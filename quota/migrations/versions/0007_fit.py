"""What a job accepts: further GPU classes, how its pods lie to each other; and the racks of nodes

An old program goes on beside it: it submits jobs that accept one class and lie anywhere.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    fallbacks = sa.Column("fallback_classes", sa.String(300), server_default=sa.text("'[]'"), nullable=False)
    op.add_column("jobs", fallbacks)
    topology = sa.Column("topology", sa.String(20), server_default=sa.text("'any'"), nullable=False)
    op.add_column("jobs", topology)
    op.add_column("nodes", sa.Column("rack", sa.String(63), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")
