"""HTTP door of the identity room."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from quota.audit import service as audit
from quota.door import ALL_ROLES, HubRoute, access, answer, caller_of, hub_of
from quota.identity import idempotency, service
from quota.schemas.identity import (
    AuditPage,
    Caller,
    NewOrganization,
    NewToken,
    Organization,
    OrganizationList,
    Role,
    Scope,
    Token,
    TokenList,
    TokenWithSecret,
)
from quota.schemas.usage import FindingPage
from quota.schemas.values import Id, RowNumber

router = APIRouter(tags=["identity"], route_class=HubRoute)


@router.get(
    "/v1/caller",
    operation_id="read_caller",
    response_model=Caller,
    openapi_extra=access(*ALL_ROLES, scope=None),
)
def read_caller(request: Request) -> Response:
    """Who this token speaks for."""
    return answer(caller_of(request))


@router.post(
    "/v1/organizations",
    operation_id="create_organization",
    status_code=201,
    response_model=Organization,
    openapi_extra=access(Role.OPERATOR, scope=Scope.IDENTITY_WRITE),
)
def create_organization(
    request: Request,
    body: NewOrganization,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """Register an organization (operators). 409 `already_exists`."""
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: idempotency.once(
            tx,
            caller,
            idempotency_key,
            "create_organization",
            body,
            Organization,
            lambda: service.create_organization(tx, caller, body),
        )
    )
    return answer(made, 201)


@router.get(
    "/v1/organizations",
    operation_id="list_organizations",
    response_model=OrganizationList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, Role.MEMBER, scope=Scope.IDENTITY_READ),
)
def list_organizations(request: Request) -> Response:
    """Organizations in order of id; a member sees its own."""
    caller = caller_of(request)
    with hub_of(request).database.read() as connection:
        return answer(service.list_organizations(connection, caller))


@router.post(
    "/v1/tokens",
    operation_id="create_token",
    status_code=201,
    response_model=TokenWithSecret,
    openapi_extra=access(Role.OPERATOR, scope=Scope.IDENTITY_WRITE),
)
def create_token(request: Request, body: NewToken) -> Response:
    """Make a token (operators); its secret is answered this once."""
    caller = caller_of(request)
    made = hub_of(request).database.write(lambda tx: service.create_token(tx, caller.token_id, body))
    return answer(made, 201)


@router.get(
    "/v1/tokens",
    operation_id="list_tokens",
    response_model=TokenList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.IDENTITY_READ),
)
def list_tokens(request: Request) -> Response:
    """All tokens without their secrets (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(service.list_tokens(connection))


@router.post(
    "/v1/tokens/{token_id}/revoke",
    operation_id="revoke_token",
    response_model=Token,
    openapi_extra=access(Role.OPERATOR, scope=Scope.IDENTITY_WRITE),
)
def revoke_token(request: Request, token_id: Id) -> Response:
    """End a token at once (operators)."""
    caller = caller_of(request)
    return answer(hub_of(request).database.write(lambda tx: service.revoke_token(tx, caller, token_id)))


@router.get(
    "/v1/audit",
    operation_id="list_audit",
    response_model=AuditPage,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.AUDIT_READ),
)
def list_audit(
    request: Request,
    after: Annotated[RowNumber, Query()] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """Who did what, oldest first (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(audit.list_audit(connection, after, limit))


@router.get(
    "/v1/findings",
    operation_id="list_findings",
    response_model=FindingPage,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.AUDIT_READ),
)
def list_findings(
    request: Request,
    after: Annotated[RowNumber, Query()] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """What should not be, with numbers, oldest first (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(audit.list_findings(connection, after, limit))
