"""What idle rules need to remember: activity of running attempts, what was found of them, warnings, exemptions."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, String, Table, Text, text

from quota.db import metadata

# of running attempts only, and no longer than the longest span: the evidence itself is kept elsewhere
activity = Table(
    "idle_activity",
    metadata,
    Column("job_id", String(60), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("gpu_uuid", String(80), primary_key=True),
    Column("from_ms", BigInteger, primary_key=True),
    Column("busy_ms", BigInteger, nullable=False),
    Column("observed_ms", BigInteger, nullable=False),
    CheckConstraint("busy_ms >= 0 AND observed_ms >= 0", name="not_negative"),
)
Index("ix_idle_activity_from_ms", activity.c.from_ms)

found = Table(
    "idle_found",
    metadata,
    Column("job_id", String(60), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("state", String(20), nullable=False),
    Column("idle_since_ms", BigInteger),
    Column("rule", String(20)),
    Column("stop_at_ms", BigInteger),
    Column("worked_at_ms", BigInteger),
    Column("idle_gpus", Integer, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("utilization_thousandths", Integer),
    Column("through_ms", BigInteger),
    Column("exempt_until_ms", BigInteger),
    Column("changed_at_ms", BigInteger, nullable=False),
)

warnings = Table(
    "idle_warnings",
    metadata,
    Column("job_id", String(60), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("step", Integer, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("idle_since_ms", BigInteger, nullable=False),
    Column("rule", String(20), nullable=False),
    Column("stop_at_ms", BigInteger),
    Column("withdrawn_at_ms", BigInteger),
    CheckConstraint("step IN (1, 2)", name="step"),
)

policy = Table(
    "idle_policy",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("document", Text, nullable=False, server_default=text("'{}'")),
    Column("changed_at_ms", BigInteger, nullable=False),
)

exemptions = Table(
    "idle_exemptions",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("subject", String(60), nullable=False),
    Column("reason", String(500), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("created_by", String(200), nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("ended_at_ms", BigInteger),
    CheckConstraint("kind IN ('job','organization','program','grant')", name="kind"),
)
