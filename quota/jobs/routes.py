"""HTTP door of the jobs room."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from quota.db import Tx
from quota.door import (
    READERS,
    After,
    HubRoute,
    IdempotencyKey,
    access,
    caller_of,
    hub_of,
    language_of,
    spoken,
)
from quota.identity.idempotency import once
from quota.jobs import service
from quota.jobs.lists import JobFilter
from quota.jobs.lists import list_jobs as list_page
from quota.jobs.quoting import quote
from quota.jobs.telling import Teller
from quota.schemas.identity import Role, Scope
from quota.schemas.jobs import Job, JobDetail, JobPage, JobSubmission
from quota.schemas.quotes import Quote
from quota.schemas.scheduling import JobState
from quota.schemas.values import ClassId, Id, Instant

router = APIRouter(tags=["jobs"], route_class=HubRoute)


@router.post(
    "/v1/jobs",
    operation_id="submit_job",
    status_code=201,
    response_model=Job,
    responses={200: {"model": Quote, "description": "With `dry_run`: a quote; nothing was stored."}},
    openapi_extra=access(Role.MEMBER, Role.OPERATOR, scope=Scope.JOBS_WRITE),
)
def submit_job(
    request: Request,
    body: JobSubmission,
    key: IdempotencyKey = None,
    dry_run: Annotated[bool, Query(description="Answer a quote, and store nothing.")] = False,
) -> Response:
    """Queue a job. Nothing is held before it starts. With `dry_run=true` 200 and a quote: what it would cost, who
    would pay, when it could start; what a submission would be refused for, the quote is refused for too.

    409 `insufficient_balance` (what is left, what was needed), 409 `no_grant`, 422 `unknown_gpu_class`,
    422 `never_fits`, 422 `job_too_large`, 422 `walltime_too_long`, 422 `idempotency_key_reused`, 409 `grant_cap`,
    409 `queue_full`, 404 `not_found` for a grant, programme or organization. Of an opportunistic job also
    409 `opportunistic_off` and 409 `grant_not_active`: what its programme pays from ends before the job would.
    """
    caller = caller_of(request)
    hub = hub_of(request)

    def submit(tx: Tx) -> Job:
        return once(tx, caller, key, "submit_job", body, Job, lambda: service.submit(tx, caller, body))

    language = language_of(request)
    if not dry_run:
        # what is kept for the key has no sentences: who repeats it may read another language
        made = hub.database.write(submit)
        return spoken(Teller(None, language, hub.clock.now_ms()).job(made), language, 201)
    would_be = hub.database.preview(submit)
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
        found = quote(connection, would_be.organization_id, body, hub.queue, hub.clock)
        return spoken(Teller(connection, language, hub.clock.now_ms()).quote(found), language)


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
    grant_id: Id | None = None,
    gpu_class: ClassId | None = None,
    submitted_from: Instant | None = None,
    submitted_until: Instant | None = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=200, description="How many items a page has at most.")] = 50,
) -> Response:
    """Jobs, newest first, each with why it waits; a member sees its organization's. Sentences are in the language of
    Accept-Language, English or Korean.

    `grant_id` finds jobs that asked for the grant or ran on it; `submitted_until` itself is not within the period.
    """
    caller = caller_of(request)
    hub = hub_of(request)
    wanted = JobFilter(state, organization_id, grant_id, gpu_class, submitted_from, submitted_until)
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
        page = list_page(connection, caller, hub.queue, wanted, after, limit)
        language = language_of(request)
        told = Teller(connection, language, hub.clock.now_ms()).jobs(page.items)
        return spoken(page.model_copy(update={"items": told}), language)


@router.get(
    "/v1/jobs/{job_id}",
    operation_id="read_job",
    response_model=JobDetail,
    openapi_extra=access(*READERS, scope=Scope.JOBS_READ),
)
def read_job(request: Request, job_id: Id) -> Response:
    """One job with its attempts, its charge and what the agents measured.

    While it waits, `waiting_text` says why and `place_text` where it stands, in the language of Accept-Language.
    """
    caller = caller_of(request)
    hub = hub_of(request)
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
        found = service.read_job(connection, caller, job_id, hub.queue)
        language = language_of(request)
        return spoken(Teller(connection, language, hub.clock.now_ms()).job(found), language)


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
    language = language_of(request)
    done = hub.database.write(lambda tx: service.cancel(tx, caller, job_id, hub.queue))
    return spoken(Teller(None, language, hub.clock.now_ms()).job(done), language)
