"""HTTP door of the jobs room."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from quota.door import READERS, HubRoute, access, answer, caller_of, hub_of
from quota.identity.idempotency import once
from quota.jobs import service
from quota.schemas.identity import Role, Scope
from quota.schemas.jobs import Job, JobDetail, JobPage, JobSubmission
from quota.schemas.scheduling import JobState
from quota.schemas.values import Id

router = APIRouter(tags=["jobs"], route_class=HubRoute)


@router.post(
    "/v1/jobs",
    operation_id="submit_job",
    status_code=201,
    response_model=Job,
    openapi_extra=access(Role.MEMBER, Role.OPERATOR, scope=Scope.JOBS_WRITE),
)
def submit_job(
    request: Request,
    body: JobSubmission,
    key: Annotated[str | None, Header(alias="Idempotency-Key")] = None,
) -> Response:
    """Queue a job. Nothing is held before it starts.

    409 `insufficient_balance` (what is left, what was needed), 409 `no_grant`, 422 `unknown_gpu_class`,
    422 `never_fits`, 422 `idempotency_key_reused`.
    """
    caller = caller_of(request)
    job = hub_of(request).database.write(
        lambda tx: once(tx, caller, key, "submit_job", body, Job, lambda: service.submit(tx, caller, body))
    )
    return answer(job, 201)


@router.get(
    "/v1/jobs",
    operation_id="list_jobs",
    response_model=JobPage,
    openapi_extra=access(*READERS, scope=Scope.JOBS_READ),
)
def list_jobs(
    request: Request,
    state: JobState | None = None,
    organization_id: Id | None = None,
    before: Id | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Jobs, newest first, each with why it waits; a member sees its organization's."""
    caller = caller_of(request)
    hub = hub_of(request)
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
        page = service.list_jobs(
            connection,
            caller,
            hub.queue,
            state=state,
            organization_id=organization_id,
            before=before,
            limit=limit,
        )
    return answer(page)


@router.get(
    "/v1/jobs/{job_id}",
    operation_id="read_job",
    response_model=JobDetail,
    openapi_extra=access(*READERS, scope=Scope.JOBS_READ),
)
def read_job(request: Request, job_id: Id) -> Response:
    """One job with its attempts, its charge and what the agents measured."""
    caller = caller_of(request)
    hub = hub_of(request)
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
        return answer(service.read_job(connection, caller, job_id, hub.queue))


@router.post(
    "/v1/jobs/{job_id}/cancel",
    operation_id="cancel_job",
    response_model=Job,
    openapi_extra=access(Role.MEMBER, Role.OPERATOR, scope=Scope.JOBS_WRITE),
)
def cancel_job(request: Request, job_id: Id) -> Response:
    """Ask a job to end: a waiting one ends at once, a placed one is stopped within its grace."""
    caller = caller_of(request)
    hub = hub_of(request)
    return answer(hub.database.write(lambda tx: service.cancel(tx, caller, job_id, hub.queue)))
