"""Rows of the audit trail and of findings."""

from sqlalchemy import BigInteger, Column, Index, String, Table, Text

from quota.db import RowId, metadata

audit = Table(
    "audit",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("seq", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("action", String(60), nullable=False),
    Column("subject", String(300), nullable=False),
    Column("reason", String(500), nullable=False),
    Column("detail", Text, nullable=False),
)
Index("ix_audit_seq", audit.c.seq)

findings = Table(
    "findings",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("code", String(60), nullable=False),
    Column("subject", String(300), nullable=False),
    Column("detail", Text, nullable=False),
)
Index("ix_findings_subject", findings.c.subject)
