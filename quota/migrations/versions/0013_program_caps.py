"""Caps of programmes; what forecasts say of jobs that are not submitted yet

An old program goes on beside it: it keeps to no caps of programmes; forecasts that it stores leave the column null, and
quotes then tell no ETA.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    caps = sa.Column("caps", sa.Text(), server_default=sa.text("'{}'"), nullable=False)
    op.add_column("programs", caps)
    op.add_column("forecast", sa.Column("newcomers", sa.LargeBinary(), nullable=True))


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")
