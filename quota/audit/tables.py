"""Rows of the audit trail and of findings."""

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text, text

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
    # the subject as JSON before and after the change
    Column("before", Text),
    Column("after", Text),
    # where the request came from
    Column("address", String(64)),
)
Index("ix_audit_seq", audit.c.seq)
Index("ix_audit_subject", audit.c.subject)

seals = Table(
    "seals",
    metadata,
    Column("number", BigInteger, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    # every audit row and transfer up to this feed sequence is under this seal or an earlier one
    Column("through_seq", BigInteger, nullable=False),
    Column("audit_rows", Integer, nullable=False),
    Column("transfers", Integer, nullable=False),
    Column("previous_sha256", String(64), nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
)
Index("ix_seals_at_ms", seals.c.at_ms)

task_runs = Table(
    "task_runs",
    metadata,
    Column("task", String(60), primary_key=True),
    Column("period_at_ms", BigInteger, primary_key=True),
    Column("done_at_ms", BigInteger, nullable=False),
    Column("result", Text, nullable=False),
)

findings = Table(
    "findings",
    metadata,
    Column("id", RowId, primary_key=True, autoincrement=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("code", String(60), nullable=False),
    Column("subject", String(300), nullable=False),
    Column("detail", Text, nullable=False),
    Column("numbers", Text, nullable=False, server_default=text("'{}'")),
)
Index("ix_findings_code", findings.c.code, findings.c.id)
Index("ix_findings_subject", findings.c.subject)
