"""The further GPU classes that a job accepts

An old program goes on beside it: it submits jobs without any, and starts none on them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    fallbacks = sa.Column("fallback_classes", sa.String(300), server_default=sa.text("'[]'"), nullable=False)
    op.add_column("jobs", fallbacks)


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")
