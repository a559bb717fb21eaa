"""Jobs, their attempts, and where each attempt's pods were placed."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Table,
    Text,
    text,
)

from quota.db import metadata

STATES = "'queued','starting','running','stopping','ended'"
END_REASONS = (
    "'succeeded','failed','cancelled','time_limit','preempted','node_failed','abandoned'"
    ",'grant_ended','requeued','idle_reclaimed'"
)
STOP_REASONS = (
    "'cancelled','time_limit','preempted','abandoned','grant_ended','requeued','idle_reclaimed','gpu_failed'"
)

WASTED = ("abandoned", "failed", "node_failed", "preempted", "requeued")
"""Ends of attempts after which the work has to be done again, but for what a checkpoint saved."""

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("organization_id", String(40), ForeignKey("organizations.id"), nullable=False),
    Column("grant_id", String(60), ForeignKey("grants.id")),
    # the programme whose account pays for an opportunistic job; null: the job is none
    Column("program_id", String(40)),
    Column("gpu_class", String(63), nullable=False),
    # JSON, in order of preference: what it accepts besides gpu_class
    Column("fallback_classes", String(300), nullable=False, server_default=text("'[]'")),
    Column("gpus_per_pod", Integer, nullable=False),
    Column("pods", Integer, nullable=False),
    Column("topology", String(20), nullable=False, server_default=text("'any'")),
    Column("kind", String(20), nullable=False, server_default=text("'batch'")),
    Column("walltime_ms", BigInteger, nullable=False),
    Column("grace_ms", BigInteger, nullable=False),
    Column("restartable", Boolean, nullable=False),
    Column("checkpoint_interval_ms", BigInteger),
    Column("spec", Text, nullable=False),
    Column("submitted_by", String(60), nullable=False),
    Column("submitted_at_ms", BigInteger, nullable=False),
    Column("state", String(20), nullable=False),
    Column("end_reason", String(20)),
    Column("ended_at_ms", BigInteger),
    Column("attempt", Integer, nullable=False),
    Column("abandonments", Integer, nullable=False),
    Column("not_before_ms", BigInteger),
    Column("cancel_requested_at_ms", BigInteger),
    CheckConstraint("kind IN ('batch','interactive')", name="kind"),
    CheckConstraint(f"state IN ({STATES})", name="state"),
    CheckConstraint(f"end_reason IN ({END_REASONS})", name="end_reason"),
    CheckConstraint("(state = 'ended') = (end_reason IS NOT NULL)", name="ended_has_reason"),
)
Index("ix_jobs_organization_id_id", jobs.c.organization_id, jobs.c.id)
Index("ix_jobs_state_id", jobs.c.state, jobs.c.id)
# so that those that wait are counted at each submission without looking at others
Index(
    "ix_jobs_queued_organization_id",
    jobs.c.organization_id,
    sqlite_where=text("state = 'queued'"),
    postgresql_where=text("state = 'queued'"),
)

# those that have ended are counted by how
Index(
    "ix_jobs_end_reason",
    jobs.c.end_reason,
    sqlite_where=text("end_reason IS NOT NULL"),
    postgresql_where=text("end_reason IS NOT NULL"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", String(60), ForeignKey("jobs.id"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("organization_id", String(40), nullable=False),
    Column("state", String(20), nullable=False),
    Column("cluster", String(40), ForeignKey("clusters.id"), nullable=False),
    Column("grant_id", String(60), ForeignKey("grants.id"), nullable=False),
    Column("hold_id", String(120), ForeignKey("holds.id"), nullable=False),
    Column("walltime_ms", BigInteger, nullable=False),
    Column("grace_ms", BigInteger, nullable=False),
    Column("claimed_at_ms", BigInteger, nullable=False),
    Column("first_started_at_ms", BigInteger),
    Column("last_started_at_ms", BigInteger),
    Column("ended_at_ms", BigInteger),
    Column("exit_code", Integer),
    Column("end_reason", String(20)),
    Column("lost", Boolean, nullable=False),
    Column("stop_reason", String(20)),
    Column("stop_at_ms", BigInteger),
    Column("stop_grace_ms", BigInteger),
    Column("stop_for_job", String(60)),
    # of a preemption: how often the job is taken to save its work, as it was when the stop was decided
    Column("stop_checkpoint_ms", BigInteger),
    Column("capacity_held", Boolean, nullable=False),
    Column("settled_through_ms", BigInteger),
    Column("settled", Boolean, nullable=False),
    # why the service wants it stopped; the scheduler decides the stop
    Column("stop_asked", String(20)),
    Column("detail", String(200)),
    # a programme's account pays for it, and whoever is entitled to its GPUs gets them
    Column("opportunistic", Boolean, nullable=False, server_default=text("false")),
    CheckConstraint(f"stop_asked IN ({STOP_REASONS})", name="stop_asked"),
    CheckConstraint("state IN ('starting','running','stopping','ended')", name="state"),
    CheckConstraint(f"end_reason IN ({END_REASONS})", name="end_reason"),
    CheckConstraint(f"stop_reason IN ({STOP_REASONS})", name="stop_reason"),
    CheckConstraint("state = 'ended' OR capacity_held", name="open_keeps_capacity"),
)
Index("ix_attempts_open", attempts.c.cluster, attempts.c.settled)
Index("ix_attempts_stop_for_job", attempts.c.stop_for_job)
Index("ix_attempts_grant_id_capacity_held", attempts.c.grant_id, attempts.c.capacity_held)
Index("ix_attempts_organization_id_capacity_held", attempts.c.organization_id, attempts.c.capacity_held)
_IS_WASTED = text(f"end_reason IN ({','.join(map(repr, WASTED))})")
Index("ix_attempts_wasted", attempts.c.end_reason, sqlite_where=_IS_WASTED, postgresql_where=_IS_WASTED)
Index("ix_attempts_capacity_held", attempts.c.capacity_held, attempts.c.job_id)

placements = Table(
    "placements",
    metadata,
    Column("job_id", String(60), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("pod_index", Integer, primary_key=True),
    Column("cluster", String(40), nullable=False),
    Column("node", String(253), nullable=False),
    Column("gpu_class", String(63), nullable=False),
    Column("gpus", Integer, nullable=False),
    ForeignKeyConstraint(["job_id", "attempt"], ["attempts.job_id", "attempts.attempt"]),
    CheckConstraint("gpus > 0", name="gpus"),
)
