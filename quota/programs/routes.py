"""HTTP door of the programmes room."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from quota.door import READERS, HubRoute, access, answer, caller_of, hub_of
from quota.identity.idempotency import once
from quota.programs import service
from quota.programs.statement import read_statement as build_statement
from quota.schemas.identity import Role, Scope
from quota.schemas.ledger import Statement
from quota.schemas.programs import Award, Grant, GrantChange, GrantList, NewProgram, Program, ProgramList
from quota.schemas.values import Id

router = APIRouter(tags=["programs"], route_class=HubRoute)

Key = Annotated[str | None, Header(alias="Idempotency-Key")]


@router.post(
    "/v1/programs",
    operation_id="create_program",
    status_code=201,
    response_model=Program,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def create_program(request: Request, body: NewProgram, key: Key = None) -> Response:
    """Open a programme and deposit its budget (operators). 409 `already_exists`."""
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(
            tx, caller, key, "create_program", body, Program, lambda: service.create_program(tx, caller, body)
        )
    )
    return answer(made, 201)


@router.get(
    "/v1/programs",
    operation_id="list_programs",
    response_model=ProgramList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.GRANTS_READ),
)
def list_programs(request: Request) -> Response:
    """All programmes: budget = awarded + remaining (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(service.list_programs(connection))


@router.post(
    "/v1/grants",
    operation_id="award_grant",
    status_code=201,
    response_model=Grant,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def award_grant(request: Request, body: Award, key: Key = None) -> Response:
    """Award a grant from a programme's budget (operators). 409 `insufficient_balance` with numbers."""
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(tx, caller, key, "award_grant", body, Grant, lambda: service.award(tx, caller, body))
    )
    return answer(made, 201)


@router.post(
    "/v1/grants/{grant_id}/top-ups",
    operation_id="top_up_grant",
    status_code=201,
    response_model=Grant,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def top_up_grant(request: Request, grant_id: Id, body: GrantChange, key: Key = None) -> Response:
    """Add hours of the programme's budget to a grant (operators)."""
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(
            tx,
            caller,
            key,
            f"top_up_grant {grant_id}",
            body,
            Grant,
            lambda: service.top_up(tx, caller, grant_id, body),
        )
    )
    return answer(made, 201)


@router.post(
    "/v1/grants/{grant_id}/cuts",
    operation_id="cut_grant",
    status_code=201,
    response_model=Grant,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def cut_grant(request: Request, grant_id: Id, body: GrantChange, key: Key = None) -> Response:
    """Take free hours back (operators): at most what is neither used nor held, else 409 with what is possible."""
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(
            tx,
            caller,
            key,
            f"cut_grant {grant_id}",
            body,
            Grant,
            lambda: service.cut(tx, caller, grant_id, body),
        )
    )
    return answer(made, 201)


@router.get(
    "/v1/grants",
    operation_id="list_grants",
    response_model=GrantList,
    openapi_extra=access(*READERS, scope=Scope.GRANTS_READ),
)
def list_grants(request: Request, organization_id: Id | None = None, after: Id | None = None) -> Response:
    """Grants with balances; a member sees its organization's."""
    caller = caller_of(request)
    hub = hub_of(request)
    with hub.database.read() as connection:
        return answer(service.list_grants(connection, caller, hub.clock.now_ms(), organization_id, after))


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
        return answer(service.read_grant(connection, grant_id, hub.clock.now_ms(), caller))


@router.get(
    "/v1/grants/{grant_id}/statement",
    operation_id="read_statement",
    response_model=Statement,
    openapi_extra=access(*READERS, scope=Scope.GRANTS_READ),
)
def read_statement(request: Request, grant_id: Id) -> Response:
    """Every transfer of a grant with its arithmetic, and the balance they add up to."""
    caller = caller_of(request)
    hub = hub_of(request)
    with hub.database.read() as connection:
        return answer(build_statement(connection, caller, grant_id, hub.clock.now_ms()))
