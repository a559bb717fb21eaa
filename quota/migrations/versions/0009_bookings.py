"""Bookings, when they are, and where the scheduler laid out their room

An old program goes on beside it: it knows nothing of bookings and keeps no room for them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "bookings",
        sa.Column("id", sa.String(length=60), nullable=False),
        sa.Column("organization_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("gpu_class", sa.String(length=63), nullable=False),
        sa.Column("gpus_per_pod", sa.Integer(), nullable=False),
        sa.Column("pods", sa.Integer(), nullable=False),
        sa.Column("cluster", sa.String(length=40), nullable=True),
        sa.Column("grant_id", sa.String(length=60), nullable=True),
        sa.Column("hold", sa.Boolean(), nullable=False),
        sa.Column("timetable", sa.Text(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["cluster"], ["clusters.id"], name=op.f("fk_bookings_cluster_clusters")),
        sa.ForeignKeyConstraint(
            ["gpu_class"], ["gpu_classes.id"], name=op.f("fk_bookings_gpu_class_gpu_classes")
        ),
        sa.ForeignKeyConstraint(["grant_id"], ["grants.id"], name=op.f("fk_bookings_grant_id_grants")),
        sa.ForeignKeyConstraint(
            ["organization_id"], ["organizations.id"], name=op.f("fk_bookings_organization_id_organizations")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bookings")),
    )
    op.create_table(
        "booking_occurrences",
        sa.Column("id", sa.String(length=60), nullable=False),
        sa.Column("booking_id", sa.String(length=60), nullable=False),
        sa.Column("starts_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("ends_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("cancelled_at_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["booking_id"], ["bookings.id"], name=op.f("fk_booking_occurrences_booking_id_bookings")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_booking_occurrences")),
    )
    op.create_index(op.f("ix_booking_occurrences_booking_id"), "booking_occurrences", ["booking_id"])
    op.create_index(op.f("ix_booking_occurrences_ends_at_ms"), "booking_occurrences", ["ends_at_ms"])
    booked = sa.Column("booked", sa.Text(), server_default=sa.text("'[]'"), nullable=False)
    op.add_column("ranking", booked)


def downgrade() -> None:
    raise NotImplementedError("a ledger is not taken back; restore a backup")
