"""Programmes and grants; their balances are accounts of the ledger."""

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, String, Table

from quota.db import metadata

programs = Table(
    "programs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("account_id", String(80), ForeignKey("accounts.id"), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)

grants = Table(
    "grants",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("program_id", String(40), ForeignKey("programs.id"), nullable=False),
    Column("organization_id", String(40), ForeignKey("organizations.id"), nullable=False),
    Column("account_id", String(80), ForeignKey("accounts.id"), nullable=False),
    Column("starts_at_ms", BigInteger, nullable=False),
    Column("ends_at_ms", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("pace_lag_ms", BigInteger),
    Column("pace_as_of_ms", BigInteger),
    Column("pace_spent_gpu_us", BigInteger),
    CheckConstraint("ends_at_ms > starts_at_ms", name="term"),
)
Index("ix_grants_organization_id", grants.c.organization_id)
