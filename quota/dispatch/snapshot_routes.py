"""HTTP door of the state of scheduling as one document."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from quota.dispatch import snapshots
from quota.door import HubRoute, access, caller_of, hub_of, said
from quota.schemas.identity import Role, Scope
from quota.schemas.snapshots import SchedulerState

router = APIRouter(tags=["what if"], route_class=HubRoute)


@router.get(
    "/v1/scheduler/state",
    operation_id="read_scheduler_state",
    response_model=SchedulerState,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.FLEET_READ),
)
def read_scheduler_state(
    request: Request,
    pseudonyms: Annotated[
        bool, Query(description="Numbers for the names of organizations, programmes, grants and accounts.")
    ] = False,
) -> Response:
    """Everything that decides who runs next, at one moment, for `gpuhub scheduler explain`, `gpuhub replay` and
    `gpuhub whatif` (operators, auditors).

    Jobs, attempts, grants with their balances and paces, capacity, policy, promised room, and the queue as it was last
    shown. No images, commands, environments or annotations. Who took it is in the audit trail.
    """
    hub = hub_of(request)
    state = snapshots.take_state(hub.database, hub.clock.speed, pseudonyms=pseudonyms)
    snapshots.record_taken(hub.database, caller_of(request), state)
    return said(json.dumps(state, separators=(",", ":"), ensure_ascii=False))
