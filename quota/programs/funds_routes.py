"""HTTP door of what programmes pay opportunistic jobs from."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quota.door import HubRoute, IfMatch, access, caller_of, hub_of, tagged
from quota.programs import funds
from quota.schemas.funds import Fund, FundPut
from quota.schemas.identity import Role, Scope
from quota.schemas.values import Id

router = APIRouter(tags=["programs"], route_class=HubRoute)


@router.get(
    "/v1/programs/{program_id}/opportunistic",
    operation_id="read_fund",
    response_model=Fund,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.GRANTS_READ),
)
def read_fund(request: Request, program_id: Id) -> Response:
    """What a programme pays opportunistic jobs from (operators, auditors). 404 while it never paid for any."""
    with hub_of(request).database.read() as connection:
        found = funds.read_fund(connection, program_id)
    return tagged(found, found.etag)


@router.put(
    "/v1/programs/{program_id}/opportunistic",
    operation_id="put_fund",
    response_model=Fund,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def put_fund(request: Request, program_id: Id, body: FundPut, if_match: IfMatch = None) -> Response:
    """Let a programme pay for opportunistic jobs, from so many hours of its budget; or no longer (operators).

    409 `insufficient_balance` with what its budget has, or what of the account is in use, 412 `precondition_failed`.
    """
    caller = caller_of(request)
    stored = hub_of(request).database.write(lambda tx: funds.put_fund(tx, caller, program_id, body, if_match))
    return tagged(stored, stored.etag)
