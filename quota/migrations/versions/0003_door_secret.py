"""The secret that opens the door of the scheduler that leads

An old program goes on beside it: it reads and writes the columns that it knows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    secret = sa.Column("door_secret", sa.String(length=64), server_default=sa.text("''"), nullable=False)
    op.add_column("scheduler_lease", secret)


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")
