"""HTTP door of the state of scheduling as one document, and of what would be if."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from quota.dispatch import snapshots, what_if
from quota.door import HubRoute, access, answer, caller_of, hub_of, said
from quota.schemas.identity import Role, Scope
from quota.schemas.snapshots import SchedulerState
from quota.schemas.what_if import WhatIfReply, WhatIfRequest

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


@router.post(
    "/v1/what-if",
    operation_id="ask_what_if",
    response_model=WhatIfReply,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_READ),
)
async def ask_what_if(request: Request, body: WhatIfRequest) -> Response:
    """What would become of the queue and the grants under other numbers, before anything is changed (operators).

    Both futures, as it is and as it would be, are played by the scheduler that leads, from the state of this moment
    on, and compared per organization, size of job and grant. Nothing of the hub changes. One at a time, a minute at
    most: `gpuhub whatif FILE` plays a saved state for as long as it takes.

    429 `too_many_questions`, 422 `question_too_long`, 503 `no_leader`, 503 `question_failed`.
    """
    hub = hub_of(request)
    if not hub.questions.acquire(blocking=False):
        what_if.busy()
    try:
        leader, question = await run_in_threadpool(what_if.prepare, hub.database, hub.clock.speed, body)
        limit_s = hub.settings.what_if_limit_s
        reply = await what_if.ask(leader, question, limit_s, hub.stopping, request.is_disconnected)
    finally:
        hub.questions.release()
    return answer(reply)
