"""Bookings and when they are."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, String, Table, Text

from quota.db import metadata

bookings = Table(
    "bookings",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("organization_id", String(40), ForeignKey("organizations.id"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("gpu_class", String(63), ForeignKey("gpu_classes.id"), nullable=False),
    Column("gpus_per_pod", Integer, nullable=False),
    Column("pods", Integer, nullable=False),
    Column("cluster", String(40), ForeignKey("clusters.id")),
    Column("grant_id", String(60), ForeignKey("grants.id")),
    Column("hold", Boolean, nullable=False),
    # a Timetable as JSON, for people: the occurrences are what counts
    Column("timetable", Text),
    Column("created_at_ms", BigInteger, nullable=False),
)

occurrences = Table(
    "booking_occurrences",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("booking_id", String(60), ForeignKey("bookings.id"), nullable=False, index=True),
    Column("starts_at_ms", BigInteger, nullable=False),
    Column("ends_at_ms", BigInteger, nullable=False),
    Column("cancelled_at_ms", BigInteger),
)
Index(None, occurrences.c.ends_at_ms)
