"""HTTP door of the programmes room."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quota.door import (
    PAGE,
    READERS,
    After,
    HubRoute,
    IdempotencyKey,
    Limit,
    access,
    answer,
    caller_of,
    hub_of,
    tagged,
)
from quota.identity.idempotency import once
from quota.programs import awards, service
from quota.schemas.identity import Role, Scope
from quota.schemas.programs import (
    Award,
    Grant,
    GrantList,
    GrantState,
    NewProgram,
    Program,
    ProgramList,
)
from quota.schemas.values import Id

router = APIRouter(tags=["programs"], route_class=HubRoute)


@router.post(
    "/v1/programs",
    operation_id="create_program",
    status_code=201,
    response_model=Program,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def create_program(request: Request, body: NewProgram, key: IdempotencyKey = None) -> Response:
    """Open a programme and deposit its budget (operators). 404 `not_found` (policy), 409 `already_exists`."""
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(
            tx, caller, key, "create_program", body, Program, lambda: awards.create_program(tx, caller, body)
        )
    )
    return answer(made, 201)


@router.get(
    "/v1/programs",
    operation_id="list_programs",
    response_model=ProgramList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.GRANTS_READ),
)
def list_programs(request: Request, after: After = None, limit: Limit = PAGE) -> Response:
    """Programmes in order of id: budget = awarded + remaining (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(service.list_programs(connection, after, limit))


@router.post(
    "/v1/grants",
    operation_id="award_grant",
    status_code=201,
    response_model=Grant,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def award_grant(request: Request, body: Award, key: IdempotencyKey = None) -> Response:
    """Award a grant from a programme's budget (operators). 409 `insufficient_balance` with numbers, 404 `not_found`."""
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(tx, caller, key, "award_grant", body, Grant, lambda: awards.award(tx, caller, body))
    )
    return answer(made, 201)


@router.get(
    "/v1/grants",
    operation_id="list_grants",
    response_model=GrantList,
    openapi_extra=access(*READERS, scope=Scope.GRANTS_READ),
)
def list_grants(
    request: Request,
    organization_id: Id | None = None,
    program_id: Id | None = None,
    state: GrantState | None = None,
    after: After = None,
    limit: Limit = PAGE,
) -> Response:
    """Grants with balances, in order of id; a member sees its organization's."""
    caller = caller_of(request)
    hub = hub_of(request)
    with hub.database.read() as connection:
        now_ms = hub.clock.now_ms()
        found = service.list_grants(
            connection,
            caller,
            now_ms,
            organization_id,
            after,
            program_id=program_id,
            state=state,
            limit=limit,
        )
    return answer(found)


@router.get(
    "/v1/grants/{grant_id}",
    operation_id="read_grant",
    response_model=Grant,
    openapi_extra=access(*READERS, scope=Scope.GRANTS_READ),
)
def read_grant(request: Request, grant_id: Id) -> Response:
    """One grant: granted = used + held + available."""
    caller = caller_of(request)
    hub = hub_of(request)
    with hub.database.read() as connection:
        grant = service.read_grant(connection, grant_id, hub.clock.now_ms(), caller)
    return tagged(grant, service.tag_of_grant(grant))
