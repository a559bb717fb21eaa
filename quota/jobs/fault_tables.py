"""Which attempts may have died of a GPU's fault, and what became of it."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Table,
)

from quota.db import metadata

gpu_faults = Table(
    "gpu_faults",
    metadata,
    Column("job_id", String(60), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("verdict_id", String(60), ForeignKey("gpu_verdicts.id"), primary_key=True),
    Column("gpu_uuid", String(80), nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    # open: the attempt has not ended; none: it did not die of it
    Column("outcome", String(20), nullable=False),
    ForeignKeyConstraint(["job_id", "attempt"], ["attempts.job_id", "attempts.attempt"]),
    CheckConstraint("outcome IN ('open','none','requeued','ended')", name="outcome"),
)
Index("ix_gpu_faults_outcome", gpu_faults.c.outcome)
