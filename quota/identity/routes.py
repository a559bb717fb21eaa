"""HTTP door of the identity room: organizations, their tokens, and the caller itself."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from quota.audit import reading
from quota.door import ALL_ROLES, HubRoute, IdempotencyKey, IfMatch, access, answer, caller_of, hub_of, tagged
from quota.identity import service, tokens
from quota.identity.idempotency import once
from quota.schemas.identity import (
    Caller,
    NewOrganization,
    NewToken,
    Organization,
    OrganizationChange,
    OrganizationKind,
    OrganizationList,
    RevokedTokens,
    Role,
    Scope,
    Token,
    TokenList,
    TokenRevocation,
    TokenRotation,
    TokenWithSecret,
)
from quota.schemas.values import Id, Reason, Slug

router = APIRouter(tags=["identity"], route_class=HubRoute)

Limit = Annotated[int, Query(ge=1, le=1000)]
AfterId = Annotated[Id | None, Query(description="Only what comes after this id; a page's `next`.")]
_READERS = (Role.OPERATOR, Role.AUDITOR, Role.MEMBER)


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
def create_organization(request: Request, body: NewOrganization, key: IdempotencyKey = None) -> Response:
    """Register an organization (operators). 409 `already_exists`."""
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(
            tx,
            caller,
            key,
            "create_organization",
            body,
            Organization,
            lambda: service.create_organization(tx, caller, body),
        )
    )
    return tagged(made, service.organization_tag(made), 201)


@router.get(
    "/v1/organizations",
    operation_id="list_organizations",
    response_model=OrganizationList,
    openapi_extra=access(*_READERS, scope=Scope.IDENTITY_READ),
)
def list_organizations(
    request: Request,
    kind: OrganizationKind | None = None,
    frozen: bool | None = None,
    after: AfterId = None,
    limit: Limit = 100,
) -> Response:
    """Organizations in order of id; a member sees its own."""
    caller = caller_of(request)
    with hub_of(request).database.read() as connection:
        page = service.list_organizations(
            connection, caller, after=after or "", limit=limit, kind=kind, frozen=frozen
        )
    return answer(page)


@router.get(
    "/v1/organizations/{organization_id}",
    operation_id="read_organization",
    response_model=Organization,
    openapi_extra=access(*_READERS, scope=Scope.IDENTITY_READ),
)
def read_organization(request: Request, organization_id: Slug) -> Response:
    """One organization with its ETag; a member may read its own."""
    with hub_of(request).database.read() as connection:
        found = service.show_organization(connection, caller_of(request), organization_id)
    return tagged(found, service.organization_tag(found))


@router.patch(
    "/v1/organizations/{organization_id}",
    operation_id="change_organization",
    response_model=Organization,
    openapi_extra=access(Role.OPERATOR, scope=Scope.IDENTITY_WRITE),
)
def change_organization(
    request: Request, organization_id: Slug, body: OrganizationChange, if_match: IfMatch = None
) -> Response:
    """Correct an organization's name or kind (operators). 412 `precondition_failed`."""
    caller = caller_of(request)
    changed = hub_of(request).database.write(
        lambda tx: service.change_organization(tx, caller, organization_id, if_match, body)
    )
    return tagged(changed, service.organization_tag(changed))


@router.post(
    "/v1/organizations/{organization_id}/revoke-tokens",
    operation_id="revoke_organization_tokens",
    response_model=RevokedTokens,
    openapi_extra=access(Role.OPERATOR, scope=Scope.IDENTITY_WRITE),
)
def revoke_organization_tokens(request: Request, organization_id: Slug, body: TokenRevocation) -> Response:
    """End all tokens of an organization at once (operators); again ends those made since."""
    caller = caller_of(request)
    ended = hub_of(request).database.write(
        lambda tx: tokens.revoke_organization_tokens(tx, caller, organization_id, body.reason)
    )
    return answer(ended)


@router.post(
    "/v1/tokens",
    operation_id="create_token",
    status_code=201,
    response_model=TokenWithSecret,
    openapi_extra=access(Role.OPERATOR, scope=Scope.IDENTITY_WRITE),
)
def create_token(request: Request, body: NewToken, key: IdempotencyKey = None) -> Response:
    """Make a token (operators); its secret is answered this once. 404 `not_found` (organization).

    The secret is stored nowhere: the same Idempotency-Key again answers 409 `secret_already_shown` with the
    token's id, so that a token whose secret was lost with the reply can be revoked or rotated.
    """
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(
            tx,
            caller,
            key,
            "create_token",
            body,
            TokenWithSecret,
            lambda: tokens.create_token(tx, caller, body),
            keep=_without_secret,
        )
    )
    return answer(made, 201)


@router.get(
    "/v1/tokens",
    operation_id="list_tokens",
    response_model=TokenList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.IDENTITY_READ),
)
def list_tokens(
    request: Request,
    role: Role | None = None,
    organization_id: Slug | None = None,
    active: bool | None = None,
    after: AfterId = None,
    limit: Limit = 100,
    reason: Reason | None = None,
) -> Response:
    """Tokens without their secrets, in order of creation (operators, auditors).

    `active` means neither revoked nor expired. Labels may name people, so the audit trail keeps who read them;
    more than 100 at once need a `reason`.
    """
    reading.check_reason(limit, reason)
    caller = caller_of(request)
    hub = hub_of(request)
    with hub.database.read() as connection:
        page = tokens.list_tokens(
            connection,
            hub.clock.now_ms(),
            after=after or "",
            limit=limit,
            role=role,
            organization_id=organization_id,
            active=active,
        )
    query = {
        "role": role,
        "organization_id": organization_id,
        "active": active,
        "after": after,
        "limit": limit,
    }
    reading.record_read(hub.database, caller, "tokens", query, len(page.items), reason)
    return answer(page)


@router.post(
    "/v1/tokens/{token_id}/rotate",
    operation_id="rotate_token",
    status_code=201,
    response_model=TokenWithSecret,
    openapi_extra=access(*ALL_ROLES, scope=None),
)
def rotate_token(request: Request, token_id: Id, body: TokenRotation, key: IdempotencyKey = None) -> Response:
    """Take a token over into a new one of the same rights; the old secret stays good for the overlap.

    Any token may rotate itself; operators may rotate all. 409 `token_ended`, 409 `already_rotated` with the
    successor. As with creation, the secret is answered once: 409 `secret_already_shown` names the lost one.
    """
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(
            tx,
            caller,
            key,
            f"rotate_token {token_id}",
            body,
            TokenWithSecret,
            lambda: tokens.rotate_token(tx, caller, token_id, body),
            keep=_without_secret,
        )
    )
    hub_of(request).throttle.hand_on(token_id, made.id)
    return answer(made, 201)


@router.post(
    "/v1/tokens/{token_id}/revoke",
    operation_id="revoke_token",
    response_model=Token,
    openapi_extra=access(Role.OPERATOR, scope=Scope.IDENTITY_WRITE),
)
def revoke_token(request: Request, token_id: Id, body: TokenRevocation | None = None) -> Response:
    """End a token at once, on every replica (operators)."""
    caller = caller_of(request)
    reason = "" if body is None else body.reason
    ended = hub_of(request).database.write(lambda tx: tokens.revoke_token(tx, caller, token_id, reason))
    return answer(ended)


def _without_secret(made: TokenWithSecret) -> dict[str, str]:
    return {"token_id": made.id}
