"""HTTP door of the audit trail and the findings, for people: filters, pages, and who read what."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from quota.audit import reading
from quota.audit import service as audit
from quota.audit.service import AuditFilter
from quota.door import HubRoute, access, answer, caller_of, hub_of
from quota.schemas.audit import AuditPage
from quota.schemas.identity import Role, Scope
from quota.schemas.usage import FindingPage
from quota.schemas.values import Instant, Reason, RowNumber, Text

router = APIRouter(tags=["audit"], route_class=HubRoute)

Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get(
    "/v1/audit",
    operation_id="list_audit",
    response_model=AuditPage,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.AUDIT_READ),
)
def list_audit(
    request: Request,
    actor: Text | None = None,
    action: Text | None = None,
    subject: Text | None = None,
    since: Annotated[Instant | None, Query(alias="from")] = None,
    until: Instant | None = None,
    after: RowNumber = 0,
    limit: Limit = 100,
    reason: Reason | None = None,
) -> Response:
    """Who did what, oldest first (operators, auditors), from `from` to before `until`.

    The trail keeps who read it too; more than 100 rows at once need a `reason`.
    """
    reading.check_reason(limit, reason)
    caller = caller_of(request)
    database = hub_of(request).database
    wanted = AuditFilter(actor, action, subject, since, until)
    with database.read() as connection:
        page = audit.list_audit(connection, after, limit, wanted, caller.token_id)
    query = {
        "actor": actor,
        "action": action,
        "subject": subject,
        "from": since,
        "until": until,
        "after": after,
        "limit": limit,
    }
    reading.record_read(database, caller, "audit", query, len(page.items), reason)
    return answer(page)


@router.get(
    "/v1/findings",
    operation_id="list_findings",
    response_model=FindingPage,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.AUDIT_READ),
)
def list_findings(
    request: Request,
    code: Text | None = None,
    subject: Text | None = None,
    after: RowNumber = 0,
    limit: Limit = 100,
) -> Response:
    """What should not be, with numbers, oldest first (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(audit.list_findings(connection, after, limit, code, subject))
