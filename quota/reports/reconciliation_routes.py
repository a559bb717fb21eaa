"""HTTP door of reconciliations."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from quota.audit import service as audit
from quota.door import HubRoute, access, answer, caller_of, hub_of
from quota.reports import reconciliation
from quota.schemas.identity import Role, Scope
from quota.schemas.reconciliation import Day, ReconcileDay, ReconciliationPage

router = APIRouter(tags=["reconciliations"], route_class=HubRoute)


@router.get(
    "/v1/reconciliations",
    operation_id="list_reconciliations",
    response_model=ReconciliationPage,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.AUDIT_READ),
)
def list_reconciliations(
    request: Request,
    before: Annotated[Day | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=366)] = 31,
) -> Response:
    """Per day and cluster: GPU time by the ledger, by the cluster and by the agents, newest day first.

    Differences are findings: `ledger_differs_from_cluster`, `day_not_settled`, `unobserved_time`,
    `evidence_beyond_run`, `balance_differs_from_transfers`, each with its numbers.
    """
    with hub_of(request).database.read() as connection:
        return answer(reconciliation.list_reconciliations(connection, before, limit))


@router.post(
    "/v1/reconciliations",
    operation_id="reconcile_day",
    response_model=ReconciliationPage,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def reconcile_day(request: Request, body: ReconcileDay) -> Response:
    """Compare a day again, for instance after agents delivered late; the day's rows are replaced (operators)."""
    database, caller = hub_of(request).database, caller_of(request)
    items = reconciliation.reconcile(database, body.day)
    database.write(lambda tx: audit.record(tx, caller, "reconciliation.repeat", body.day))
    return answer(ReconciliationPage(items=items, next=None))
