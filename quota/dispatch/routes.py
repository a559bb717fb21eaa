"""HTTP door for the other programs: the scheduler's contract and the agents' evidence."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from quota.db import head
from quota.dispatch import decisions, feed, lease, ranking, reports
from quota.dispatch.evidence import deliver
from quota.dispatch.gpu_reports import deliver as deliver_gpus
from quota.door import Hub, HubRoute, RawRoute, access, answer, caller_of, hub_of, parse, raw_body, said
from quota.schemas.gpus import GpuReport, GpuReportReply
from quota.schemas.identity import Role, Scope
from quota.schemas.scheduling import (
    DecisionBatch,
    DecisionReply,
    FeedPage,
    LeaseReply,
    LeaseRequest,
    RankingDocument,
    RankingReply,
    ReportBatch,
    ReportReply,
    SnapshotPage,
)
from quota.schemas.usage import EvidenceBatch, EvidenceReply
from quota.schemas.values import RowNumber

router = APIRouter(tags=["programs' doors"], route_class=HubRoute)
busy = APIRouter(tags=["programs' doors"], route_class=RawRoute)
"""Of batches: their bodies are parsed here, and kept as they came."""

PageToken = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9|/_.:-]{0,400}$")]
Raw = Annotated[bytes, Depends(raw_body)]
HINT_POLL_S = 0.02
"""How often a long poll looks whether this process itself committed something."""


def _takes(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.put(
    "/v1/scheduler/lease",
    operation_id="take_lease",
    response_model=LeaseReply,
    openapi_extra=access(Role.SCHEDULER, scope=Scope.SCHEDULER),
)
def take_lease(request: Request, body: LeaseRequest) -> Response:
    """Take or renew the scheduler lease; every new process start gets a greater epoch.

    409 `lease_held`, 409 `stale_epoch`.
    """
    hub = hub_of(request)
    return answer(hub.database.write(lambda tx: lease.take_lease(tx, body, hub.settings.lease_ttl_s)))


@router.get(
    "/v1/scheduler/snapshot",
    operation_id="read_snapshot",
    response_model=SnapshotPage,
    openapi_extra=access(Role.SCHEDULER, scope=Scope.SCHEDULER),
)
def read_snapshot(
    request: Request, after: PageToken = None, limit: Annotated[int, Query(ge=1, le=20_000)] = 5000
) -> Response:
    """Everything the scheduler needs, page by page; apply the feed from `cursor` on top."""
    return answer(feed.read_snapshot(hub_of(request).database, after, limit))


@router.get(
    "/v1/scheduler/feed",
    operation_id="follow_feed",
    response_model=FeedPage,
    openapi_extra=access(Role.SCHEDULER, scope=Scope.SCHEDULER),
)
async def follow_feed(
    request: Request,
    after: Annotated[RowNumber, Query()],
    wait: Annotated[float, Query(ge=0, le=60)] = 25,
    limit: Annotated[int, Query(ge=1, le=20_000)] = 2000,
) -> Response:
    """What changed since a cursor; waits up to `wait` seconds for something. 410 `cursor_expired`."""
    hub = hub_of(request)
    deadline = time.monotonic() + wait
    while True:
        page = await run_in_threadpool(feed.read_feed, hub.database, after, limit)
        over = time.monotonic() >= deadline or hub.stopping.is_set()
        if page.items or over or await request.is_disconnected():
            return answer(page)
        after = page.cursor  # past what moved the head and changed no object
        await _until_moved(hub, after, deadline)


async def _until_moved(hub: Hub, after: int, deadline: float) -> None:
    """Hold no session: look at this process's own commits often, at the database's head now and then."""
    look_at = time.monotonic() + hub.settings.feed_poll_s
    while time.monotonic() < deadline and hub.database.head_hint <= after and not hub.stopping.is_set():
        await asyncio.sleep(HINT_POLL_S)
        if time.monotonic() >= look_at:
            look_at = time.monotonic() + hub.settings.feed_poll_s
            if await run_in_threadpool(_head, hub) > after:
                return


def _head(hub: Hub) -> int:
    with hub.database.read() as connection:
        return head(connection)


@busy.post(
    "/v1/scheduler/decisions",
    operation_id="send_decisions",
    response_model=DecisionReply,
    openapi_extra=_takes(DecisionBatch) | access(Role.SCHEDULER, scope=Scope.SCHEDULER),
)
def send_decisions(request: Request, raw: Raw) -> Response:
    """Starts and stops of one cycle, one savepoint each. 409 `stale_epoch`, 409 `stale_sequence`."""
    batch = parse(DecisionBatch, raw)
    return said(hub_of(request).database.write(lambda tx: decisions.decide(tx, batch, raw)).text)


@busy.post(
    "/v1/scheduler/reports",
    operation_id="send_reports",
    response_model=ReportReply,
    openapi_extra=_takes(ReportBatch) | access(Role.SCHEDULER, scope=Scope.SCHEDULER),
)
def send_reports(request: Request, raw: Raw) -> Response:
    """What one cluster shows, up to `observed_through`.

    409 `stale_epoch`, 409 `stale_sequence`, 404 `not_found` for an unknown cluster.
    """
    batch = parse(ReportBatch, raw)
    hub = hub_of(request)
    return said(hub.database.write(lambda tx: reports.report(tx, batch, raw, hub.clock.speed)).text)


@busy.put(
    "/v1/scheduler/ranking",
    operation_id="put_ranking",
    response_model=RankingReply,
    openapi_extra=_takes(RankingDocument) | access(Role.SCHEDULER, scope=Scope.SCHEDULER),
)
def put_ranking(request: Request, raw: Raw) -> Response:
    """The waiting jobs in order, with the reasons that changed; may come gzipped.

    409 `ranking_base_unknown`, 409 `stale_epoch`.
    """
    document = parse(RankingDocument, raw)
    return answer(hub_of(request).database.write(lambda tx: ranking.put_ranking(tx, document)))


@busy.post(
    "/v1/usage/evidence",
    operation_id="deliver_evidence",
    response_model=EvidenceReply,
    openapi_extra=_takes(EvidenceBatch) | access(Role.AGENT, scope=Scope.EVIDENCE_WRITE),
)
def deliver_evidence(request: Request, raw: Raw) -> Response:
    """Cumulative evidence rows of agents; sending them again changes nothing. May come gzipped."""
    caller = caller_of(request)
    batch = parse(EvidenceBatch, raw)
    return answer(hub_of(request).database.write(lambda tx: deliver(tx, caller, batch)))


@busy.post(
    "/v1/gpu-reports",
    operation_id="report_gpus",
    response_model=GpuReportReply,
    openapi_extra=_takes(GpuReport) | access(Role.AGENT, scope=Scope.EVIDENCE_WRITE),
)
def report_gpus(request: Request, raw: Raw) -> Response:
    """How an agent's GPUs are, and its verdicts on them; sending them again changes nothing."""
    caller = caller_of(request)
    report = parse(GpuReport, raw)
    return answer(deliver_gpus(hub_of(request).database, caller, report))
