"""GPUs by UUID, the verdicts on them, and what verdicts may do by themselves."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
)

from quota.db import metadata

gpus = Table(
    "gpus",
    metadata,
    Column("gpu_uuid", String(80), primary_key=True),
    # as its agent last read it; empty: never seen
    Column("node", String(253), nullable=False),
    Column("gpu_class", String(63), nullable=False),
    Column("model", String(200), nullable=False),
    Column("serial", String(200), nullable=False),
    Column("pci_bus_id", String(200), nullable=False),
    Column("driver", String(200), nullable=False),
    Column("first_seen_ms", BigInteger),
    Column("last_seen_ms", BigInteger),
    Column("health", String(20)),
    Column("health_since_ms", BigInteger),
    Column("rule", String(40), nullable=False),
    Column("withdrawn", Boolean, nullable=False),
    # what operators registered
    Column("registered", Boolean, nullable=False),
    Column("asset_number", String(60), nullable=False),
    Column("site", String(60), nullable=False),
    Column("expected_serial", String(200), nullable=False),
    Column("expected_node", String(253), nullable=False),
    # who took it out of use: '', 'agent' or 'operator'
    Column("quarantine", String(10), nullable=False),
    Column("quarantined_at_ms", BigInteger),
    Column("quarantined_by", String(120), nullable=False),
    Column("quarantine_reason", String(500), nullable=False),
    # the verdict that would have taken it out of use, had it been let
    Column("withheld_verdict", String(60)),
    CheckConstraint("quarantine IN ('','agent','operator')", name="quarantine"),
    CheckConstraint("health IN ('healthy','degraded','unhealthy','lost')", name="health"),
    CheckConstraint("(quarantine = '') = (quarantined_at_ms IS NULL)", name="quarantine_has_time"),
    CheckConstraint("(first_seen_ms IS NULL) = (last_seen_ms IS NULL)", name="seen_has_both_times"),
)
Index("ix_gpus_node", gpus.c.node)
Index("ix_gpus_quarantine", gpus.c.quarantine)

gpu_verdicts = Table(
    "gpu_verdicts",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("gpu_uuid", String(80), ForeignKey("gpus.gpu_uuid"), nullable=False),
    Column("node", String(253), nullable=False),
    Column("health", String(20), nullable=False),
    Column("rule", String(40), nullable=False),
    Column("xid", Integer),
    Column("fault", Boolean, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("detail", String(200), nullable=False),
    # JSON: [[job, attempt], …] as the agent named them
    Column("holders", Text, nullable=False),
    Column("received_at_ms", BigInteger, nullable=False),
    Column("outcome", String(20), nullable=False),
    CheckConstraint("outcome IN ('recorded','quarantined','withheld','observed')", name="outcome"),
)
Index("ix_gpu_verdicts_gpu_uuid_received_at_ms", gpu_verdicts.c.gpu_uuid, gpu_verdicts.c.received_at_ms)

gpu_policy = Table(
    "gpu_policy",
    metadata,
    # one row; whoever takes a GPU out of use or lets it back locks it first, so that two never both find room
    Column("id", Integer, primary_key=True),
    Column("document", Text, nullable=False),
    Column("changed_at_ms", BigInteger),
)
