"""Programmes and grants; their balances are accounts of the ledger."""

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
    text,
)

from quota.db import metadata

programs = Table(
    "programs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("account_id", String(80), ForeignKey("accounts.id"), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    # the policy that its new grants take a copy of
    Column("policy_id", String(40), nullable=False, server_default=text("'default'")),
    # ProgramCaps as JSON; what it does not name is no cap
    Column("caps", Text, nullable=False, server_default=text("'{}'")),
)

policies = Table(
    "policies",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("version", Integer, nullable=False),
    # a GrantPolicy as JSON
    Column("document", Text, nullable=False),
    Column("changed_at_ms", BigInteger, nullable=False),
)

grants = Table(
    "grants",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("program_id", String(40), ForeignKey("programs.id"), nullable=False),
    # null: the programme's own, from which it pays opportunistic jobs
    Column("organization_id", String(40), ForeignKey("organizations.id")),
    Column("account_id", String(80), ForeignKey("accounts.id"), nullable=False),
    Column("starts_at_ms", BigInteger, nullable=False),
    Column("ends_at_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("pace_lag_ms", BigInteger),
    Column("pace_as_of_ms", BigInteger),
    Column("pace_spent_gpu_us", BigInteger),
    # GPUs that attempts on this grant may keep at once
    Column("max_gpus", Integer),
    # the GrantPolicy it was awarded under, as JSON; a later change of the programme's policy changes nothing here
    Column("policy", Text, nullable=False, server_default=text("'{}'")),
    # when its free remainder expired
    Column("expired_at_ms", BigInteger),
    # how many EXPIRE transfers took from it, and how many TRANSFERs carried that over: the next ones' numbers
    Column("expiries", Integer, nullable=False, server_default=text("0")),
    Column("carry_overs", Integer, nullable=False, server_default=text("0")),
    CheckConstraint("max_gpus > 0", name="max_gpus"),
    CheckConstraint("ends_at_ms > starts_at_ms", name="term"),
)
Index("ix_grants_organization_id", grants.c.organization_id)
Index("ix_grants_ends_at_ms", grants.c.ends_at_ms)

opportunistic_funds = Table(
    "opportunistic_funds",
    metadata,
    Column("program_id", String(40), ForeignKey("programs.id"), primary_key=True),
    # the present one: a fund that ended is followed by another grant
    Column("grant_id", String(60), ForeignKey("grants.id"), nullable=False),
    Column("pays", Boolean, nullable=False),
    Column("job_walltime_ms", BigInteger, nullable=False),
    Column("job_grace_ms", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("changed_at_ms", BigInteger, nullable=False),
)
Index("ix_opportunistic_funds_grant_id", opportunistic_funds.c.grant_id)
