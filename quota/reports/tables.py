"""What was compared and reported, per day and cluster."""

from sqlalchemy import BigInteger, Column, ForeignKey, Integer, String, Table

from quota.db import metadata

reconciliations = Table(
    "reconciliations",
    metadata,
    # a day of Asia/Seoul: 2026-11-22
    Column("day", String(10), primary_key=True),
    Column("cluster", String(40), ForeignKey("clusters.id"), primary_key=True),
    Column("done_at_ms", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    # GPU milliseconds of that day by the ledger's slices, by the cluster's times, and as agents observed them
    Column("ledger_gpu_ms", BigInteger, nullable=False),
    Column("cluster_gpu_ms", BigInteger, nullable=False),
    Column("observed_gpu_ms", BigInteger, nullable=False),
    Column("busy_gpu_ms", BigInteger, nullable=False),
    Column("differences", Integer, nullable=False),
)
