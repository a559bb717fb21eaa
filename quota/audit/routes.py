"""HTTP door of the audit chain."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from quota.audit import seals
from quota.door import HubRoute, access, answer, hub_of
from quota.schemas.audit import SealPage
from quota.schemas.identity import Role, Scope
from quota.schemas.values import RowNumber

router = APIRouter(tags=["audit"], route_class=HubRoute)


@router.get(
    "/v1/audit/seals",
    operation_id="list_seals",
    response_model=SealPage,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.AUDIT_READ),
)
def list_seals(
    request: Request,
    after: Annotated[RowNumber, Query()] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Response:
    """The chain of seals over audit rows and transfers, oldest first (operators, auditors).

    Write the newest hash down outside the hub: nobody can then change what it covers without being found out.
    """
    with hub_of(request).database.read() as connection:
        return answer(seals.list_seals(connection, after, limit))
