"""HTTP door of what changes budgets and grants; each can be asked with `?dry_run=true` first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from quota.db import Tx
from quota.door import (
    PAGE,
    READERS,
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
from quota.ledger.reading import TransferFilter
from quota.ledger.reading import list_transfers as read_transfers
from quota.programs import awards, changes, endings, policies, service
from quota.schemas.identity import Caller, Role, Scope
from quota.schemas.ledger import TransferType
from quota.schemas.policies import PolicyDocument, PolicyList, PolicyPut
from quota.schemas.programs import (
    Adjustment,
    CarryOver,
    Grant,
    GrantCut,
    GrantMove,
    GrantTransfer,
    Program,
    ProgramChange,
    TopUp,
)
from quota.schemas.transfers import TransferPage
from quota.schemas.values import Id, Instant, Slug

R = TypeVar("R", bound=BaseModel)

router = APIRouter(tags=["programs"], route_class=HubRoute)

WRITERS = access(Role.OPERATOR, scope=Scope.GRANTS_WRITE)
DryRun = Annotated[bool, Query(description="Answer what it would do, with status 200, and do nothing.")]


@router.get(
    "/v1/programs/{program_id}",
    operation_id="read_program",
    response_model=Program,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.GRANTS_READ),
)
def read_program(request: Request, program_id: Id) -> Response:
    """One programme with its ETag (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        found = service.read_program(connection, program_id)
    return tagged(found, service.tag_of_program(found))


@router.patch(
    "/v1/programs/{program_id}",
    operation_id="change_program",
    response_model=Program,
    openapi_extra=WRITERS,
)
def change_program(
    request: Request, program_id: Id, body: ProgramChange, if_match: IfMatch = None
) -> Response:
    """Rename a programme, or give it another policy for grants awarded from now on (operators). 412."""
    caller = caller_of(request)
    changed = hub_of(request).database.write(
        lambda tx: awards.change_program(tx, caller, program_id, body, if_match)
    )
    return tagged(changed, service.tag_of_program(changed))


@router.post(
    "/v1/programs/{program_id}/adjustments",
    operation_id="adjust_program",
    status_code=201,
    response_model=Program,
    openapi_extra=WRITERS,
)
def adjust_program(
    request: Request,
    program_id: Id,
    body: Adjustment,
    dry_run: DryRun = False,
    key: IdempotencyKey = None,
) -> Response:
    """Correct a programme's budget on evidence (operators); less at most by what it has not awarded.

    409 `insufficient_balance` with what that is.
    """
    return _done(
        request,
        f"adjust_program {program_id}",
        body,
        Program,
        lambda tx, caller: changes.adjust_program(tx, caller, program_id, body),
        key,
        dry_run,
    )


@router.post(
    "/v1/grants/{grant_id}/top-ups",
    operation_id="top_up_grant",
    status_code=201,
    response_model=Grant,
    openapi_extra=WRITERS,
)
def top_up_grant(
    request: Request, grant_id: Id, body: TopUp, dry_run: DryRun = False, key: IdempotencyKey = None
) -> Response:
    """Add hours of the programme's budget to a grant, and to one of its tranches (operators).

    409 `insufficient_balance` with what the budget has, 409 `grant_not_active` once it has ended.
    """
    return _done(
        request,
        f"top_up_grant {grant_id}",
        body,
        Grant,
        lambda tx, caller: changes.top_up(tx, caller, grant_id, body),
        key,
        dry_run,
    )


@router.post(
    "/v1/grants/{grant_id}/cuts",
    operation_id="cut_grant",
    status_code=201,
    response_model=Grant,
    openapi_extra=WRITERS,
)
def cut_grant(
    request: Request, grant_id: Id, body: GrantCut, dry_run: DryRun = False, key: IdempotencyKey = None
) -> Response:
    """Take free hours back (operators): at most what is neither used, held nor promised to shares and tranches.

    More is refused with 409 `insufficient_balance` and what is possible; nothing is taken later by itself.
    """
    return _done(
        request,
        f"cut_grant {grant_id}",
        body,
        Grant,
        lambda tx, caller: changes.cut(tx, caller, grant_id, body),
        key,
        dry_run,
    )


@router.post(
    "/v1/grants/{grant_id}/transfers",
    operation_id="transfer_hours",
    status_code=201,
    response_model=GrantMove,
    openapi_extra=WRITERS,
)
def transfer_hours(
    request: Request,
    grant_id: Id,
    body: GrantTransfer,
    dry_run: DryRun = False,
    key: IdempotencyKey = None,
) -> Response:
    """Move free hours to another grant of the same programme (operators).

    409 `insufficient_balance` with what is possible, as for cuts; 409 `grant_not_active` for one that has ended.
    """
    return _done(
        request,
        f"transfer_hours {grant_id}",
        body,
        GrantMove,
        lambda tx, caller: changes.transfer(tx, caller, grant_id, body),
        key,
        dry_run,
    )


@router.post(
    "/v1/grants/{grant_id}/adjustments",
    operation_id="adjust_grant",
    status_code=201,
    response_model=Grant,
    openapi_extra=WRITERS,
)
def adjust_grant(
    request: Request, grant_id: Id, body: Adjustment, dry_run: DryRun = False, key: IdempotencyKey = None
) -> Response:
    """Correct what a grant was given, on evidence (operators); never below used + held + its limit accounts.

    409 `insufficient_balance` with what is possible, 409 `grant_not_active` once it has ended.
    """
    return _done(
        request,
        f"adjust_grant {grant_id}",
        body,
        Grant,
        lambda tx, caller: changes.adjust_grant(tx, caller, grant_id, body),
        key,
        dry_run,
    )


@router.post(
    "/v1/grants/{grant_id}/carry-over",
    operation_id="carry_over_hours",
    status_code=201,
    response_model=GrantMove,
    openapi_extra=WRITERS,
)
def carry_over_hours(
    request: Request, grant_id: Id, body: CarryOver, dry_run: DryRun = False, key: IdempotencyKey = None
) -> Response:
    """Give expired hours of this grant to a grant of the same programme that has not ended (operators).

    At most the policy's part of what expired, less what was carried over before; else 409 `insufficient_balance`
    with what is possible. 409 `grant_not_active` for a receiver that has ended.
    """
    return _done(
        request,
        f"carry_over_hours {grant_id}",
        body,
        GrantMove,
        lambda tx, caller: endings.carry_over(tx, caller, grant_id, body),
        key,
        dry_run,
    )


@router.get(
    "/v1/transfers",
    operation_id="list_transfers",
    response_model=TransferPage,
    openapi_extra=access(*READERS, scope=Scope.GRANTS_READ),
)
def list_transfers(
    request: Request,
    account_id: Id | None = None,
    grant_id: Id | None = None,
    job_id: Id | None = None,
    type: TransferType | None = None,
    since: Instant | None = None,
    until: Instant | None = None,
    after: After = None,
    limit: Limit = PAGE,
) -> Response:
    """The ledger's transfers with legs, actor, reason, evidence and arithmetic, oldest first.

    `since` and `until` bound the time, half open. A member sees what touched its organization's accounts, and
    of that only these accounts' legs. 404 `not_found` (account, grant).
    """
    wanted = TransferFilter(account_id, grant_id, job_id, type, since, until)
    with hub_of(request).database.read() as connection:
        return answer(read_transfers(connection, caller_of(request), wanted, after, limit))


@router.get(
    "/v1/policies",
    operation_id="list_policies",
    response_model=PolicyList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.GRANTS_READ),
)
def list_policies(request: Request, after: After = None, limit: Limit = PAGE) -> Response:
    """Policies in order of id (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(policies.list_policies(connection, after, limit))


@router.get(
    "/v1/policies/{policy_id}",
    operation_id="read_policy",
    response_model=PolicyDocument,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.GRANTS_READ),
)
def read_policy(request: Request, policy_id: Id) -> Response:
    """One policy with its ETag (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        found = policies.read_policy(connection, policy_id)
    return tagged(found, policies.tag_of(found))


@router.put(
    "/v1/policies/{policy_id}",
    operation_id="put_policy",
    response_model=PolicyDocument,
    openapi_extra=WRITERS,
)
def put_policy(request: Request, policy_id: Slug, body: PolicyPut, if_match: IfMatch = None) -> Response:
    """Make or change a policy (operators); what it does not name is the default. Grants keep what they have. 412."""
    caller = caller_of(request)
    stored = hub_of(request).database.write(
        lambda tx: policies.put_policy(tx, caller, policy_id, body, if_match)
    )
    return tagged(stored, policies.tag_of(stored))


def _done(
    request: Request,
    operation: str,
    body: BaseModel,
    reply: type[R],
    work: Callable[[Tx, Caller], R],
    key: str | None,
    dry_run: bool,
) -> Response:
    caller, database = caller_of(request), hub_of(request).database
    if dry_run:
        return answer(database.preview(lambda tx: work(tx, caller)))
    made = database.write(lambda tx: once(tx, caller, key, operation, body, reply, lambda: work(tx, caller)))
    return answer(made, 201)
