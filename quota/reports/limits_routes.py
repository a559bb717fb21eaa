"""HTTP door of the limits of a grant as a whole: accounts of the ledger beside the GPUs that its attempts keep."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quota.door import READERS, HubRoute, access, answer, caller_of, hub_of
from quota.jobs.caps import gpus_in_use
from quota.programs import limits
from quota.schemas.identity import Scope
from quota.schemas.limits import GrantLimits
from quota.schemas.values import Id

router = APIRouter(tags=["limits"], route_class=HubRoute)


@router.get(
    "/v1/grants/{grant_id}/limits",
    operation_id="read_limits",
    response_model=GrantLimits,
    openapi_extra=access(*READERS, scope=Scope.GRANTS_READ),
)
def read_limits(request: Request, grant_id: Id) -> Response:
    """Shares, tranches and the cap of a grant with the GPUs in use.

    A party of a consortium sees its own share, and which tranches are released.
    """
    with hub_of(request).database.read() as connection:
        in_use = gpus_in_use(connection, grant_id)
        return answer(limits.read_limits(connection, caller_of(request), grant_id, in_use))
