"""Evidence rows: cumulative busy and observed milliseconds per attempt, GPU, hour and agent epoch."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Integer, String, Table, text

from quota.db import metadata

evidence = Table(
    "evidence",
    metadata,
    Column("job_id", String(60), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("gpu_uuid", String(80), primary_key=True),
    Column("hour_ms", BigInteger, primary_key=True),
    Column("agent_epoch", String(64), primary_key=True),
    Column("node", String(253), nullable=False),
    Column("gpu_class", String(63), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("busy_ms", BigInteger, nullable=False),
    Column("observed_ms", BigInteger, nullable=False),
    Column("received_at_ms", BigInteger, nullable=False),
    # of the row that this one replaced: what it gained is known by the difference
    Column("before_busy_ms", BigInteger, nullable=False, server_default=text("0")),
    Column("before_observed_ms", BigInteger, nullable=False, server_default=text("0")),
    Column("before_received_at_ms", BigInteger),
    CheckConstraint("busy_ms >= 0 AND busy_ms <= observed_ms AND observed_ms <= 3600000", name="within_hour"),
)
