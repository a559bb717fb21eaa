"""HTTP door of the caps: the hub's, an organization's own, and a programme's."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quota.door import HubRoute, IfMatch, access, caller_of, hub_of, tagged
from quota.identity import caps
from quota.identity import service as identity
from quota.jobs import organization_caps
from quota.programs import caps as programs
from quota.schemas.caps import (
    CapsDocument,
    CapsPut,
    OrganizationCapsDocument,
    OrganizationCapsPut,
    ProgramCapsDocument,
    ProgramCapsPut,
)
from quota.schemas.identity import Role, Scope
from quota.schemas.values import Id, Slug

router = APIRouter(tags=["operators' switches"], route_class=HubRoute)


@router.get(
    "/v1/caps",
    operation_id="read_caps",
    response_model=CapsDocument,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.FLEET_READ),
)
def read_caps(request: Request) -> Response:
    """The hub's caps with their ETag: an organization's part of the pool, a job's size and walltime, jobs that wait
    (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        found = caps.read_caps(connection)
    return tagged(found, found.etag)


@router.put(
    "/v1/caps",
    operation_id="put_caps",
    response_model=CapsDocument,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def put_caps(request: Request, body: CapsPut, if_match: IfMatch = None) -> Response:
    """Change the hub's caps (operators); what it does not name is the default. Nothing that runs is stopped. 412."""
    caller = caller_of(request)
    stored = hub_of(request).database.write(lambda tx: caps.put_caps(tx, caller, body, if_match))
    return tagged(stored, stored.etag)


@router.get(
    "/v1/organizations/{organization_id}/caps",
    operation_id="read_organization_caps",
    response_model=OrganizationCapsDocument,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, Role.MEMBER, scope=Scope.IDENTITY_READ),
)
def read_organization_caps(request: Request, organization_id: Slug) -> Response:
    """An organization's own caps with their ETag, those in effect, those of its programmes, and how far they are
    reached; a member may read its own."""
    hub = hub_of(request)
    with hub.database.read() as connection:
        identity.show_organization(connection, caller_of(request), organization_id)
        found = organization_caps.show_caps(connection, organization_id, hub.clock.now_ms())
    return tagged(found, found.etag)


@router.put(
    "/v1/organizations/{organization_id}/caps",
    operation_id="put_organization_caps",
    response_model=OrganizationCapsDocument,
    openapi_extra=access(Role.OPERATOR, scope=Scope.IDENTITY_WRITE),
)
def put_organization_caps(
    request: Request, organization_id: Slug, body: OrganizationCapsPut, if_match: IfMatch = None
) -> Response:
    """Change an organization's own caps (operators); what it does not name is the hub's. Nothing that runs is stopped;
    a job that is larger than a lowered cap waits. 412."""
    caller = caller_of(request)
    stored = hub_of(request).database.write(
        lambda tx: organization_caps.put_caps(tx, caller, organization_id, body, if_match)
    )
    return tagged(stored, stored.etag)


@router.get(
    "/v1/programs/{program_id}/caps",
    operation_id="read_program_caps",
    response_model=ProgramCapsDocument,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.GRANTS_READ),
)
def read_program_caps(request: Request, program_id: Id) -> Response:
    """A programme's caps on jobs with their ETag (operators, auditors); members see them in their organization's."""
    with hub_of(request).database.read() as connection:
        found = programs.read_caps(connection, program_id)
    return tagged(found, found.etag)


@router.put(
    "/v1/programs/{program_id}/caps",
    operation_id="put_program_caps",
    response_model=ProgramCapsDocument,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def put_program_caps(
    request: Request, program_id: Id, body: ProgramCapsPut, if_match: IfMatch = None
) -> Response:
    """Change a programme's caps on jobs (operators); what it does not name is none. Jobs that wait or run stay. 412."""
    caller = caller_of(request)
    stored = hub_of(request).database.write(
        lambda tx: programs.put_caps(tx, caller, program_id, body, if_match)
    )
    return tagged(stored, stored.etag)
