"""Exemptions from the idle rules: made and ended by operators, with a reason, for a while."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, Row, insert, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import page
from quota.errors import BadRequest, NotFound
from quota.identity.tables import organizations
from quota.idle.tables import exemptions, found
from quota.idle.views import job_idle
from quota.ids import new_id
from quota.jobs.tables import attempts, jobs
from quota.programs.tables import grants, programs
from quota.schemas.identity import Caller
from quota.schemas.idle import (
    Exemption,
    ExemptionEnd,
    ExemptionKind,
    ExemptionList,
    IdleJob,
    IdleJobList,
    IdleState,
    NewExemption,
)

_SUBJECTS: dict[ExemptionKind, Column[str]] = {
    ExemptionKind.JOB: jobs.c.id,
    ExemptionKind.ORGANIZATION: organizations.c.id,
    ExemptionKind.PROGRAM: programs.c.id,
    ExemptionKind.GRANT: grants.c.id,
}


def create(tx: Tx, caller: Caller, body: NewExemption) -> Exemption:
    """Keep jobs from being warned and stopped; the next judgement withdraws what was warned. Raises NotFound,
    BadRequest for one that is over already.
    """
    column = _SUBJECTS[body.kind]
    if tx.connection.execute(select(column).where(column == body.subject)).first() is None:
        raise NotFound("there is no {kind} {id}", field="subject", kind=body.kind.value, id=body.subject)
    if body.expires_at <= tx.now_ms:
        raise BadRequest("an exemption ends in the future", field="expires_at")
    row = {
        "id": new_id("exemption"),
        "kind": body.kind.value,
        "subject": body.subject,
        "reason": body.reason,
        "created_at_ms": tx.now_ms,
        "created_by": caller.token_id,
        "expires_at_ms": body.expires_at,
    }
    tx.connection.execute(insert(exemptions), row)
    named = body.model_dump(mode="json", exclude={"reason"})
    audit.record(tx, caller, "idle_exemption.create", str(row["id"]), reason=body.reason, after=named)
    return read(tx.connection, str(row["id"]))


def end(tx: Tx, caller: Caller, exemption_id: str, body: ExemptionEnd) -> Exemption:
    """End an exemption before its time; again changes nothing. Raises NotFound."""
    row = tx.connection.execute(
        select(exemptions).where(exemptions.c.id == exemption_id).with_for_update()
    ).one_or_none()
    if row is None:
        raise _unknown(exemption_id)
    if row.ended_at_ms is None and row.expires_at_ms > tx.now_ms:
        this = exemptions.c.id == exemption_id
        tx.connection.execute(update(exemptions).where(this).values(ended_at_ms=tx.now_ms))
        audit.record(tx, caller, "idle_exemption.end", exemption_id, reason=body.reason)
    return read(tx.connection, exemption_id)


def read(connection: Connection, exemption_id: str) -> Exemption:
    """One exemption. Raises NotFound."""
    row = connection.execute(select(exemptions).where(exemptions.c.id == exemption_id)).one_or_none()
    if row is None:
        raise _unknown(exemption_id)
    return _exemption(row)


def list_exemptions(connection: Connection, after: str | None, limit: int) -> ExemptionList:
    """Exemptions, newest first, those that are over included."""
    statement = select(exemptions).order_by(exemptions.c.id.desc()).limit(limit + 1)
    if after is not None:
        statement = statement.where(exemptions.c.id < after)
    rows, following = page(connection.execute(statement).all(), limit, lambda row: row.id)
    return ExemptionList(items=tuple(_exemption(row) for row in rows), next=following)


def list_idle(connection: Connection, after: str | None, limit: int) -> IdleJobList:
    """Running attempts that are not simply active, in order of job."""
    statement = (
        select(found, attempts.c.organization_id, attempts.c.grant_id)
        .join(attempts, (attempts.c.job_id == found.c.job_id) & (attempts.c.attempt == found.c.attempt))
        .where(found.c.state != IdleState.ACTIVE.value, attempts.c.state.in_(("running", "stopping")))
        .order_by(found.c.job_id)
        .limit(limit + 1)
    )
    if after is not None:
        statement = statement.where(found.c.job_id > after)
    rows, following = page(connection.execute(statement).all(), limit, lambda row: row.job_id)
    items = tuple(
        IdleJob(
            **dict(job_idle(row)),
            job_id=row.job_id,
            attempt=row.attempt,
            organization_id=row.organization_id,
            grant_id=row.grant_id,
        )
        for row in rows
    )
    return IdleJobList(items=items, next=following)


def _unknown(exemption_id: str) -> NotFound:
    return NotFound("there is no exemption {exemption_id}", exemption_id=exemption_id)


def _exemption(row: Row[Any]) -> Exemption:
    return Exemption(
        id=row.id,
        kind=ExemptionKind(row.kind),
        subject=row.subject,
        reason=row.reason,
        created_at=row.created_at_ms,
        created_by=row.created_by,
        expires_at=row.expires_at_ms,
        ended_at=row.ended_at_ms,
    )
