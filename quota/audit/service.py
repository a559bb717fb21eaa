"""Who did what, and what should not be: called by every room that changes something."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sqlalchemy import Connection, insert, select

from quota.audit.tables import audit, findings
from quota.db import Tx
from quota.schemas.identity import AuditPage, AuditRow
from quota.schemas.usage import Finding, FindingPage


def record(
    tx: Tx,
    actor: str,
    action: str,
    subject: str,
    *,
    reason: str = "",
    detail: Mapping[str, object] | None = None,
) -> None:
    """Write one audit row with this transaction's feed sequence."""
    tx.defer(
        audit,
        {
            "at_ms": tx.now_ms,
            "actor": actor,
            "action": action,
            "subject": subject,
            "reason": reason,
            "detail": json.dumps(detail or {}, sort_keys=True, ensure_ascii=False),
        },
    )


def find(tx: Tx, code: str, subject: str, detail: str) -> None:
    """Record a finding: something that should not be, with numbers. The same one again is not recorded twice."""
    values = {"code": code, "subject": subject[:300], "detail": detail}
    known = select(findings.c.id).filter_by(**values).limit(1)
    if tx.connection.execute(known).first() is None:
        tx.connection.execute(insert(findings), values | {"at_ms": tx.now_ms})


def list_audit(connection: Connection, after: int, limit: int) -> AuditPage:
    """Audit rows with an id greater than `after`, oldest first."""
    rows = connection.execute(
        select(audit).where(audit.c.id > after).order_by(audit.c.id).limit(limit + 1)
    ).all()
    items = tuple(
        AuditRow(
            id=row.id,
            at=row.at_ms,
            actor=row.actor,
            action=row.action,
            subject=row.subject,
            reason=row.reason,
            detail=json.loads(row.detail),
        )
        for row in rows[:limit]
    )
    return AuditPage(items=items, next=items[-1].id if len(rows) > limit else None)


def list_findings(connection: Connection, after: int, limit: int) -> FindingPage:
    """Findings with an id greater than `after`, oldest first."""
    statement = select(findings).where(findings.c.id > after).order_by(findings.c.id).limit(limit + 1)
    rows = connection.execute(statement).all()
    items = tuple(
        Finding(id=row.id, at=row.at_ms, code=row.code, subject=row.subject, detail=row.detail)
        for row in rows[:limit]
    )
    return FindingPage(items=items, next=items[-1].id if len(rows) > limit else None)
