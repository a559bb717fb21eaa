"""HTTP door of jobs' logs."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from quota.dispatch import logs
from quota.door import HubRoute, access, caller_of, hub_of
from quota.i18n import choose
from quota.schemas.identity import Role, Scope
from quota.schemas.values import Id

router = APIRouter(tags=["jobs"], route_class=HubRoute)

MOST_LINES = 100_000
LONGEST_AGO_S = 366 * 24 * 3600
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "What the pod wrote, as it wrote it. A last line that begins with `[gpuhub]` says that there "
        "is more: `cut` (too many bytes), `over` (read for too long), `broken off` (scheduler, cluster or service "
        "stopped answering).",
        "content": {logs.MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/v1/jobs/{job_id}/logs",
    operation_id="read_job_logs",
    response_class=StreamingResponse,
    responses=_TEXT,
    openapi_extra=access(Role.MEMBER, Role.OPERATOR, scope=Scope.JOBS_READ),
)
async def read_job_logs(
    request: Request,
    job_id: Id,
    attempt: Annotated[int | None, Query(ge=1, le=1_000_000, description="Default: the latest.")] = None,
    pod: Annotated[int, Query(ge=0, le=4095, description="Its number in the gang.")] = 0,
    tail_lines: Annotated[int, Query(ge=0, le=MOST_LINES, description="The last so many lines.")] = 1000,
    since_s: Annotated[
        int | None,
        Query(ge=1, le=LONGEST_AGO_S, description="Only what was written in the last so many seconds."),
    ] = None,
    follow: Annotated[bool, Query(description="Go on with what is written until the pod ends.")] = False,
    timestamps: Annotated[bool, Query(description="Begin each line with its time.")] = False,
) -> Response:
    """What a job's pod wrote, as text. Members read their organization's, operators everybody's, auditors nothing: a
    log is the firm's own, and no hours can be told from it. Who read it is in the audit trail.

    At most 10 MiB and 10 minutes in one answer, and a few at once per token. Logs live as long as their pods: a day
    after the end, and not beyond a stop.

    409 `logs_not_started`, 410 `logs_gone`, 429 `too_many_logs`, 503 `no_leader`, 503 `cluster_unreachable`.
    """
    hub, caller = hub_of(request), caller_of(request)
    wanted, leader = await run_in_threadpool(
        logs.find,
        hub.database,
        caller,
        job_id,
        attempt,
        pod,
        tail_lines=tail_lines,
        since_s=since_s,
        follow=follow,
        timestamps=timestamps,
    )
    seat = hub.throttle.first_of(caller.token_id)
    hub.seats.take(seat)
    log = None
    try:
        log = await logs.open_log(leader, wanted, hub.settings)
        await run_in_threadpool(logs.record_read, hub.database, caller, wanted)
    except BaseException:
        if log is not None:
            await log.close()
        hub.seats.give_back(seat)
        raise
    language = choose(",".join(request.headers.getlist("Accept-Language")))
    return logs.LogAnswer(log, hub.settings, hub.stopping, language, partial(hub.seats.give_back, seat))
