"""HTTP door of the limits inside a grant: shares of a consortium, tranches."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from quota.db import Tx
from quota.door import (
    READERS,
    HubRoute,
    IdempotencyKey,
    IfMatch,
    access,
    answer,
    caller_of,
    hub_of,
    tagged,
)
from quota.identity.idempotency import once
from quota.programs import shares, tranches
from quota.programs.limits import read_tree
from quota.schemas.identity import Role, Scope
from quota.schemas.limits import (
    NewTranches,
    Position,
    Share,
    ShareChange,
    ShareList,
    ShareMove,
    Tranche,
    TrancheChange,
    TrancheList,
    TrancheRelease,
)
from quota.schemas.values import Id, Slug

router = APIRouter(tags=["limits"], route_class=HubRoute)

Party = Annotated[Slug, Path()]
Number = Annotated[Position, Path()]


@router.put(
    "/v1/grants/{grant_id}/shares/{organization_id}",
    operation_id="put_share",
    response_model=Share,
    openapi_extra=access(Role.OPERATOR, Role.MEMBER, scope=Scope.GRANTS_WRITE),
)
def put_share(
    request: Request, grant_id: Id, organization_id: Party, body: ShareChange, if_match: IfMatch = None
) -> Response:
    """Set what a party may use of a grant in all; 0 closes its share (operators, the grant's own organization).

    The first share divides the grant: only parties with an open share start on it from then on. Operators bring
    parties in; the grant's organization opens its own share and changes the others'. 409 `insufficient_balance`
    with what is possible, 412 `precondition_failed`.
    """
    caller = caller_of(request)

    def work(tx: Tx) -> tuple[Share, str]:
        shares.put_share(tx, caller, grant_id, organization_id, body, if_match)
        return shares.read_share(read_tree(tx.connection, grant_id), caller, organization_id)

    return tagged(*hub_of(request).database.write(work))


@router.get(
    "/v1/grants/{grant_id}/shares/{organization_id}",
    operation_id="read_share",
    response_model=Share,
    openapi_extra=access(*READERS, scope=Scope.GRANTS_READ),
)
def read_share(request: Request, grant_id: Id, organization_id: Party) -> Response:
    """A party's share of a grant, with its ETag. A party sees its own, the grant's organization all."""
    with hub_of(request).database.read() as connection:
        tree = read_tree(connection, grant_id)
        return tagged(*shares.read_share(tree, caller_of(request), organization_id))


@router.post(
    "/v1/grants/{grant_id}/share-moves",
    operation_id="move_share",
    status_code=201,
    response_model=ShareList,
    openapi_extra=access(Role.OPERATOR, Role.MEMBER, scope=Scope.GRANTS_WRITE),
)
def move_share(request: Request, grant_id: Id, body: ShareMove, key: IdempotencyKey = None) -> Response:
    """Move hours between two parties in one transfer (operators, the grant's own organization); answers both shares.

    409 `insufficient_balance` with what the giver neither used nor holds.
    """
    caller = caller_of(request)
    moved = hub_of(request).database.write(
        lambda tx: once(
            tx,
            caller,
            key,
            f"move_share {grant_id}",
            body,
            ShareList,
            lambda: shares.move_share(tx, caller, grant_id, body),
        )
    )
    return answer(moved, 201)


@router.post(
    "/v1/grants/{grant_id}/tranches",
    operation_id="open_tranches",
    status_code=201,
    response_model=TrancheList,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def open_tranches(request: Request, grant_id: Id, body: NewTranches, key: IdempotencyKey = None) -> Response:
    """Divide a grant into tranches, once (operators). All but the first stay locked until they are released.

    409 `already_exists`, 409 `insufficient_balance` with what can still be divided.
    """
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(
            tx,
            caller,
            key,
            f"open_tranches {grant_id}",
            body,
            TrancheList,
            lambda: tranches.open_tranches(tx, caller, grant_id, body),
        )
    )
    return answer(made, 201)


@router.put(
    "/v1/grants/{grant_id}/tranches/{position}",
    operation_id="put_tranche",
    response_model=Tranche,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def put_tranche(
    request: Request, grant_id: Id, position: Number, body: TrancheChange, if_match: IfMatch = None
) -> Response:
    """Set what a tranche has in all, released or not (operators). 409 `insufficient_balance` with what is possible."""
    caller = caller_of(request)

    def work(tx: Tx) -> tuple[Tranche, str]:
        changed = tranches.put_tranche(tx, caller, grant_id, position, body, if_match)
        return changed, tranches.tranche_tag(read_tree(tx.connection, grant_id).tranche(position))

    return tagged(*hub_of(request).database.write(work))


@router.post(
    "/v1/grants/{grant_id}/tranches/{position}/release",
    operation_id="release_tranche",
    status_code=201,
    response_model=TrancheList,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def release_tranche(
    request: Request, grant_id: Id, position: Number, body: TrancheRelease, key: IdempotencyKey = None
) -> Response:
    """Release the next tranche on evidence (operators); what the earlier ones have left moves into it.

    Releasing twice is releasing once. 409 `tranche_order` while an earlier one is locked.
    """
    caller = caller_of(request)
    released = hub_of(request).database.write(
        lambda tx: once(
            tx,
            caller,
            key,
            f"release_tranche {grant_id} {position}",
            body,
            TrancheList,
            lambda: tranches.release_tranche(tx, caller, grant_id, position, body),
        )
    )
    return answer(released, 201)
