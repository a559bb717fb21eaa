"""Accounts, immutable transfers with their legs, holds and slices.

A balance is the sum of an account's legs; the columns on `accounts` repeat it so that one conditional UPDATE decides.
"""

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
    UniqueConstraint,
    text,
)

from quota.db import metadata

TRANSFER_TYPES = (
    "'deposit','hold','extend','settle','release','refund','transfer','pullback','expire','adjust'"
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("parent_id", String(80), ForeignKey("accounts.id")),
    Column("program_id", String(40)),
    Column("organization_id", String(40)),
    Column("grant_id", String(60)),
    Column("released", Boolean, nullable=False),
    Column("granted_gpu_us", BigInteger, nullable=False),
    Column("held_gpu_us", BigInteger, nullable=False),
    Column("used_gpu_us", BigInteger, nullable=False),
    Column("overdraft_gpu_us", BigInteger, nullable=False),
    # overdraft = granted x this / 1000, kept with every change of what is granted
    Column("overdraft_thousandths", Integer, nullable=False, server_default=text("0")),
    # for people: which milestone a tranche waits for
    Column("label", String(200)),
    # the order in which tranches are released and drawn on
    Column("position", Integer),
    CheckConstraint(
        "kind IN ('treasury','program','grant','tranche','share','platform','expired')", name="kind"
    ),
    CheckConstraint("held_gpu_us >= 0", name="held"),
    CheckConstraint("used_gpu_us >= 0", name="used"),
    CheckConstraint("granted_gpu_us >= 0 OR kind = 'treasury'", name="granted"),
    CheckConstraint(
        "held_gpu_us + used_gpu_us <= granted_gpu_us + overdraft_gpu_us OR kind IN ('treasury','platform')",
        name="limit",
    ),
)
Index("ix_accounts_grant_id", accounts.c.grant_id)
Index("ix_accounts_organization_id", accounts.c.organization_id)

transfers = Table(
    "transfers",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    # the order within one transaction
    Column("position", Integer, nullable=False),
    Column("type", String(20), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("reason", String(500), nullable=False),
    Column("amount_gpu_us", BigInteger, nullable=False),
    Column("job_id", String(60)),
    Column("attempt", Integer),
    Column("hold_id", String(120)),
    Column("slice_id", String(160)),
    Column("refund_of", String(200)),
    Column("refund_kind", String(20)),
    # the time a settle charges or a refund gives back
    Column("starts_at_ms", BigInteger),
    Column("ends_at_ms", BigInteger),
    Column("gpus", Integer),
    Column("rate_id", String(80)),
    # what it rests on: a finding, a report, a signed paper and its hash
    Column("evidence", String(500)),
    CheckConstraint(f"type IN ({TRANSFER_TYPES})", name="type"),
    CheckConstraint("amount_gpu_us >= 0", name="amount"),
    CheckConstraint("refund_kind IN ('correction','fault','preempted')", name="refund_kind"),
)
Index("ix_transfers_job_id", transfers.c.job_id)
Index("ix_transfers_seq", transfers.c.seq)

transfer_legs = Table(
    "transfer_legs",
    metadata,
    Column("transfer_id", String(200), ForeignKey("transfers.id"), primary_key=True),
    Column("account_id", String(80), ForeignKey("accounts.id"), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("d_granted", BigInteger, nullable=False),
    Column("d_held", BigInteger, nullable=False),
    Column("d_used", BigInteger, nullable=False),
)
Index("ix_transfer_legs_account_id_seq", transfer_legs.c.account_id, transfer_legs.c.seq)

holds = Table(
    "holds",
    metadata,
    Column("id", String(120), primary_key=True),
    Column("job_id", String(60), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("grant_id", String(60), nullable=False),
    Column("amount_gpu_us", BigInteger, nullable=False),
    Column("settled_gpu_us", BigInteger, nullable=False),
    Column("released_gpu_us", BigInteger, nullable=False),
    Column("refunded_gpu_us", BigInteger, nullable=False),
    Column("platform_gpu_us", BigInteger, nullable=False),
    Column("resolved", Boolean, nullable=False),
    Column("gpu_class", String(63), nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("rate_id", String(80), nullable=False),
    Column("rate_thousandths", Integer, nullable=False),
    Column("price_krw", Integer, nullable=False),
    Column("extensions", Integer, nullable=False, server_default=text("0")),
    UniqueConstraint("job_id", "attempt"),
    CheckConstraint("settled_gpu_us + released_gpu_us <= amount_gpu_us", name="not_over"),
    CheckConstraint(
        "NOT resolved OR settled_gpu_us + released_gpu_us = amount_gpu_us", name="resolved_whole"
    ),
)

hold_accounts = Table(
    "hold_accounts",
    metadata,
    Column("hold_id", String(120), primary_key=True),
    Column("account_id", String(80), ForeignKey("accounts.id"), primary_key=True),
    ForeignKeyConstraint(["hold_id"], ["holds.id"]),
)

slices = Table(
    "slices",
    metadata,
    Column("id", String(160), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("job_id", String(60), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("starts_at_ms", BigInteger, nullable=False),
    Column("ends_at_ms", BigInteger, nullable=False),
    Column("payer", String(20), nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("gpu_class", String(63), nullable=False),
    Column("rate_id", String(80), nullable=False),
    Column("rate_thousandths", Integer, nullable=False),
    Column("price_krw", Integer, nullable=False),
    Column("amount_gpu_us", BigInteger, nullable=False),
    UniqueConstraint("job_id", "attempt", "starts_at_ms"),
    CheckConstraint("ends_at_ms > starts_at_ms", name="forward"),
    CheckConstraint("payer IN ('grant','platform')", name="payer"),
    CheckConstraint(
        "amount_gpu_us = (ends_at_ms - starts_at_ms) * gpus * rate_thousandths", name="arithmetic"
    ),
)

statements = Table(
    "statements",
    metadata,
    Column("id", String(60), primary_key=True),
    Column("grant_id", String(60), nullable=False),
    # the grant's account, or a party's share of it
    Column("account_id", String(80), ForeignKey("accounts.id"), nullable=False),
    # the audit seal that the statement stands at, and the one that its opening balance stands at
    Column("seal", BigInteger, nullable=False),
    Column("since_seal", BigInteger, nullable=False),
    Column("format", String(10), nullable=False),
    Column("language", String(5), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("issued_at_ms", BigInteger, nullable=False),
    Column("issued_by", String(60), nullable=False),
    UniqueConstraint("account_id", "seal", "since_seal", "format", "language"),
    CheckConstraint("format IN ('json','csv','html')", name="format"),
)
