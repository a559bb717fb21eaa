"""HTTP door of forecasts: the scheduler reads the recent past and publishes when jobs are likely to start."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from quota.dispatch import forecasts
from quota.door import HubRoute, RawRoute, access, answer, hub_of, parse, raw_body
from quota.jobs.recent import LONGEST_PAST, recent_jobs
from quota.schemas.forecasts import ForecastDocument, ForecastReply, RecentJobs
from quota.schemas.identity import Role, Scope

router = APIRouter(tags=["programs' doors"], route_class=HubRoute)
busy = APIRouter(tags=["programs' doors"], route_class=RawRoute)

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ForecastDocument"}}},
    }
}


@busy.put(
    "/v1/scheduler/forecast",
    operation_id="put_forecast",
    response_model=ForecastReply,
    openapi_extra=_BODY | access(Role.SCHEDULER, scope=Scope.SCHEDULER),
)
def put_forecast(request: Request, raw: Annotated[bytes, Depends(raw_body)]) -> Response:
    """When waiting jobs are likely to start; may come gzipped. A later forecast stays. 409 `stale_epoch`."""
    document = parse(ForecastDocument, raw)
    return answer(hub_of(request).database.write(lambda tx: forecasts.put_forecast(tx, document)))


@router.get(
    "/v1/scheduler/recent-jobs",
    operation_id="read_recent_jobs",
    response_model=RecentJobs,
    openapi_extra=access(Role.SCHEDULER, scope=Scope.SCHEDULER),
)
def read_recent_jobs(
    request: Request, limit: Annotated[int, Query(ge=1, le=LONGEST_PAST)] = LONGEST_PAST
) -> Response:
    """The newest jobs: what forecasts draw runs and submissions from."""
    with hub_of(request).database.read() as connection:
        return answer(recent_jobs(connection, limit))
