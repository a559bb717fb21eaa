"""HTTP door of extensions and refunds; both can be asked with `?dry_run=true` first."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from quota.db import Tx
from quota.door import HubRoute, IdempotencyKey, access, answer, caller_of, hub_of
from quota.identity.idempotency import once
from quota.jobs import extending, refunding
from quota.schemas.identity import Role, Scope
from quota.schemas.job_changes import ExtendedJob, JobExtension, JobRefund, RefundedJob
from quota.schemas.values import Id

router = APIRouter(tags=["jobs"], route_class=HubRoute)

DryRun = Annotated[bool, Query(description="Answer what it would do, with status 200, and do nothing.")]


@router.post(
    "/v1/jobs/{job_id}/extensions",
    operation_id="extend_job",
    status_code=201,
    response_model=ExtendedJob,
    openapi_extra=access(Role.MEMBER, Role.OPERATOR, scope=Scope.JOBS_WRITE),
)
def extend_job(
    request: Request, job_id: Id, body: JobExtension, dry_run: DryRun = False, key: IdempotencyKey = None
) -> Response:
    """Give a job that starts or runs more time. Its cost is held first, at the rate of the attempt's hold.

    409 `insufficient_balance`, 409 `grant_not_active` and 409 `capacity_taken` (its GPUs are booked) name
    `fitting_walltime_s`, the longest extension that would be taken; 409 `wrong_state` once a stop was asked for or
    recorded, or the time is over.
    """
    caller = caller_of(request)
    hub = hub_of(request)
    database = hub.database

    def work(tx: Tx) -> ExtendedJob:
        return extending.extend(tx, caller, job_id, body, hub.queue)

    if dry_run:
        return answer(database.preview(work).model_copy(update={"dry_run": True}))
    operation = f"extend_job {job_id}"
    return answer(
        database.write(lambda tx: once(tx, caller, key, operation, body, ExtendedJob, lambda: work(tx))), 201
    )


@router.post(
    "/v1/jobs/{job_id}/refunds",
    operation_id="refund_job",
    status_code=201,
    response_model=RefundedJob,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def refund_job(
    request: Request, job_id: Id, body: JobRefund, dry_run: DryRun = False, key: IdempotencyKey = None
) -> Response:
    """Give back what a stretch of an attempt was charged, as far as it was not given back yet.

    409 `nothing_to_refund`, 409 `refund_cap_reached` (faults; what the grant's policy still allows).
    """
    caller = caller_of(request)
    database = hub_of(request).database

    def work(tx: Tx) -> RefundedJob:
        return refunding.refund(tx, caller, job_id, body)

    if dry_run:
        return answer(database.preview(work).model_copy(update={"dry_run": True}))
    operation = f"refund_job {job_id}"
    return answer(
        database.write(lambda tx: once(tx, caller, key, operation, body, RefundedJob, lambda: work(tx))), 201
    )
