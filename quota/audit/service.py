"""Who did what, and what should not be: called by every room that changes something."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, and_, insert, not_, select

from quota.audit.tables import audit, findings
from quota.db import Tx
from quota.schemas.audit import AuditPage, AuditRow
from quota.schemas.identity import Caller
from quota.schemas.usage import Finding, FindingPage

_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False)
READ = "personal.read"
"""The action of a row that says who read personal data; see `quota.audit.reading`."""


def record(
    tx: Tx,
    actor: str | Caller,
    action: str,
    subject: str,
    *,
    reason: str = "",
    detail: Mapping[str, object] | None = None,
    before: Mapping[str, object] | None = None,
    after: Mapping[str, object] | None = None,
) -> None:
    """Write one audit row with this transaction's feed sequence.

    A Caller as the actor tells the address too. `before` and `after` are what the change touched of the subject,
    in JSON's types.
    """
    tx.defer(
        audit,
        {
            "at_ms": tx.now_ms,
            "actor": actor.token_id if isinstance(actor, Caller) else actor,
            "action": action,
            "subject": subject,
            "reason": reason,
            "detail": _json(detail or {}),
            "before": None if before is None else _json(before),
            "after": None if after is None else _json(after),
            "address": (actor.address[:64] or None) if isinstance(actor, Caller) else None,
        },
    )


def _json(document: Mapping[str, object]) -> str:
    return _ENCODER.encode(document)


def find(
    tx: Tx, code: str, subject: str, detail: str, numbers: Mapping[str, int | str] | None = None
) -> bool:
    """Record a finding: something that should not be, with numbers. The same one again is not recorded twice.

    Answers whether it is new.
    """
    values = {"code": code, "subject": subject[:300], "detail": detail}
    known = select(findings.c.id).filter_by(**values).limit(1)
    if tx.connection.execute(known).first() is not None:
        return False
    tx.connection.execute(insert(findings), values | {"at_ms": tx.now_ms, "numbers": _json(numbers or {})})
    return True


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which rows of the trail: everything that is given must hold. Times in business ms, half open."""

    actor: str | None = None
    action: str | None = None
    subject: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


def list_audit(
    connection: Connection, after: int, limit: int, wanted: AuditFilter | None = None, reader: str = ""
) -> AuditPage:
    """Audit rows with an id greater than `after`, oldest first.

    Reading the trail adds to it, so a page is the last one when only reads by this `reader` (a token's id)
    follow: otherwise who follows it page by page would never come to its end.
    """
    statement = _wanted(wanted or AuditFilter()).where(audit.c.id > after).order_by(audit.c.id)
    rows = connection.execute(statement.limit(limit)).all()
    items = tuple(
        AuditRow(
            id=row.id,
            at=row.at_ms,
            actor=row.actor,
            action=row.action,
            subject=row.subject,
            reason=row.reason,
            detail=json.loads(row.detail),
            before=None if row.before is None else json.loads(row.before),
            after=None if row.after is None else json.loads(row.after),
            address=row.address,
        )
        for row in rows
    )
    if len(items) < limit:
        return AuditPage(items=items, next=None)
    own_read = and_(audit.c.actor == reader, audit.c.action == READ)
    more = _wanted(wanted or AuditFilter()).where(audit.c.id > items[-1].id, not_(own_read)).limit(1)
    return AuditPage(items=items, next=items[-1].id if connection.execute(more).first() else None)


def _wanted(wanted: AuditFilter) -> Select[Any]:
    statement = select(audit)
    for name in ("actor", "action", "subject"):
        value = getattr(wanted, name)
        if value is not None:
            statement = statement.where(audit.c[name] == value)
    if wanted.since_ms is not None:
        statement = statement.where(audit.c.at_ms >= wanted.since_ms)
    if wanted.until_ms is not None:
        statement = statement.where(audit.c.at_ms < wanted.until_ms)
    return statement


def list_findings(
    connection: Connection, after: int, limit: int, code: str | None = None, subject: str | None = None
) -> FindingPage:
    """Findings with an id greater than `after`, oldest first; those of one code, of one subject."""
    statement = select(findings).where(findings.c.id > after).order_by(findings.c.id).limit(limit + 1)
    if code is not None:
        statement = statement.where(findings.c.code == code)
    if subject is not None:
        statement = statement.where(findings.c.subject == subject)
    rows = connection.execute(statement).all()
    items = tuple(
        Finding(
            id=row.id,
            at=row.at_ms,
            code=row.code,
            subject=row.subject,
            detail=row.detail,
            numbers=json.loads(row.numbers),
        )
        for row in rows[:limit]
    )
    return FindingPage(items=items, next=items[-1].id if len(rows) > limit else None)
