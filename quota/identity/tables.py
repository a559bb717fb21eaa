"""Organizations, tokens, and the answers kept for repeated requests."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    text,
)

from quota.db import metadata

organizations = Table(
    "organizations",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("frozen", Boolean, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    # fair-share only; never touches a budget
    Column("decayed_usage_gpu_us", Float, nullable=False),
    Column("decayed_as_of_ms", BigInteger, nullable=False),
    # the same of its opportunistic jobs, which take turns by it
    Column("opportunistic_usage_gpu_us", Float, nullable=False, server_default=text("0")),
    Column("opportunistic_as_of_ms", BigInteger, nullable=False, server_default=text("0")),
    # an OrganizationCaps as JSON; what it does not name is the hub's
    Column("caps", Text, nullable=False, server_default=text("'{}'")),
)

hub_caps = Table(
    "hub_caps",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("version", Integer, nullable=False),
    # a HubCaps as JSON; what it does not name is the default
    Column("document", Text, nullable=False),
    Column("changed_at_ms", BigInteger, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("role", String(20), nullable=False),
    Column("organization_id", String(40), ForeignKey("organizations.id")),
    Column("node", String(253)),
    Column("label", String(500), nullable=False),
    Column("prefix", String(20), nullable=False),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger),
    Column("revoked_at_ms", BigInteger),
    # separated by spaces; empty: everything that its role may do
    Column("scopes", String(500), nullable=False, server_default=text("''")),
    Column("last_used_at_ms", BigInteger),
    # the token that this one took over from
    Column("replaces", String(60)),
    CheckConstraint("role IN ('operator','member','auditor','scheduler','agent')", name="role"),
    CheckConstraint("role <> 'member' OR organization_id IS NOT NULL", name="member_has_organization"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("principal", String(60), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)
Index("ix_idempotency_created_at_ms", idempotency.c.created_at_ms)

auth_failures = Table(
    "auth_failures",
    metadata,
    # an address, or an address and the first characters of what was presented
    Column("source", String(160), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("since_wall_ms", BigInteger, nullable=False),
    Column("locked_until_wall_ms", BigInteger),
)
