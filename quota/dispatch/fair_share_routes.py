"""HTTP door of how the hub shares GPUs that several want."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quota.dispatch import fair_share
from quota.door import HubRoute, IfMatch, access, caller_of, hub_of, tagged
from quota.schemas.fair_share import FairShareDocument, FairSharePut
from quota.schemas.identity import Role, Scope

router = APIRouter(tags=["operators' switches"], route_class=HubRoute)


@router.get(
    "/v1/fair-share",
    operation_id="read_fair_share",
    response_model=FairShareDocument,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.FLEET_READ),
)
def read_fair_share(request: Request) -> Response:
    """Order, reservations, lane and preemption, with the ETag (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        found = fair_share.read_fair_share(connection)
    return tagged(found, found.etag)


@router.put(
    "/v1/fair-share",
    operation_id="put_fair_share",
    response_model=FairShareDocument,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def put_fair_share(request: Request, body: FairSharePut, if_match: IfMatch = None) -> Response:
    """Change how the hub shares (operators); what it does not name is the default. The next cycle follows it. 412."""
    caller = caller_of(request)
    stored = hub_of(request).database.write(lambda tx: fair_share.put_fair_share(tx, caller, body, if_match))
    return tagged(stored, stored.etag)
