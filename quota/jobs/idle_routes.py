"""HTTP door of the idle rules: the rules themselves, exemptions, and what was found."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quota.door import (
    PAGE,
    After,
    HubRoute,
    IdempotencyKey,
    IfMatch,
    Limit,
    access,
    answer,
    caller_of,
    hub_of,
    tagged,
)
from quota.identity.idempotency import once
from quota.idle import policy
from quota.jobs import exempting
from quota.schemas.identity import Role, Scope
from quota.schemas.idle import (
    Exemption,
    ExemptionEnd,
    ExemptionList,
    IdleJobList,
    IdlePolicyDocument,
    IdlePolicyPut,
    NewExemption,
)
from quota.schemas.values import Id

router = APIRouter(tags=["operators' switches"], route_class=HubRoute)


@router.get(
    "/v1/idle-policy",
    operation_id="read_idle_policy",
    response_model=IdlePolicyDocument,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.FLEET_READ),
)
def read_idle_policy(request: Request) -> Response:
    """When a job that holds GPUs without using them is warned and stopped, with the ETag (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        stored = policy.read_policy(connection)
    return tagged(stored, stored.etag)


@router.put(
    "/v1/idle-policy",
    operation_id="put_idle_policy",
    response_model=IdlePolicyDocument,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def put_idle_policy(request: Request, body: IdlePolicyPut, if_match: IfMatch = None) -> Response:
    """Change the idle rules (operators); what it does not name is the default. The next judgement follows them. 412."""
    caller = caller_of(request)
    stored = hub_of(request).database.write(lambda tx: policy.put_policy(tx, caller, body, if_match))
    return tagged(stored, stored.etag)


@router.get(
    "/v1/idle-jobs",
    operation_id="list_idle_jobs",
    response_model=IdleJobList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.JOBS_READ),
)
def list_idle_jobs(request: Request, after: After = None, limit: Limit = PAGE) -> Response:
    """Running attempts that are idle, partly idle, little used or not measured (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(exempting.list_idle(connection, after, limit))


@router.post(
    "/v1/idle-exemptions",
    operation_id="create_idle_exemption",
    status_code=201,
    response_model=Exemption,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def create_idle_exemption(request: Request, body: NewExemption, key: IdempotencyKey = None) -> Response:
    """Keep a job, or all of an organization, a programme or a grant, from the idle rules for a while (operators).

    404 `not_found` for what is not there.
    """
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(
            tx,
            caller,
            key,
            "create_idle_exemption",
            body,
            Exemption,
            lambda: exempting.create(tx, caller, body),
        )
    )
    return answer(made, 201)


@router.get(
    "/v1/idle-exemptions",
    operation_id="list_idle_exemptions",
    response_model=ExemptionList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.FLEET_READ),
)
def list_idle_exemptions(request: Request, after: After = None, limit: Limit = PAGE) -> Response:
    """Exemptions from the idle rules, newest first, those that are over included (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(exempting.list_exemptions(connection, after, limit))


@router.post(
    "/v1/idle-exemptions/{exemption_id}/end",
    operation_id="end_idle_exemption",
    response_model=Exemption,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def end_idle_exemption(request: Request, exemption_id: Id, body: ExemptionEnd) -> Response:
    """End an exemption before its time (operators). Again changes nothing."""
    caller = caller_of(request)
    return answer(hub_of(request).database.write(lambda tx: exempting.end(tx, caller, exemption_id, body)))
