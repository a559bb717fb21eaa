"""Many jobs at once, page by page: newest first, by the filters that firms and operators ask with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, or_, select

from quota.door import page
from quota.jobs.choices import accepts
from quota.jobs.tables import attempts, jobs
from quota.jobs.views import job_views
from quota.queue import Queue
from quota.schemas.identity import Caller, Role
from quota.schemas.jobs import JobPage
from quota.schemas.scheduling import JobState


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs; what is None does not matter."""

    state: JobState | None = None
    organization_id: str | None = None
    grant_id: str | None = None
    """Jobs that asked for this grant, and jobs of which an attempt ran on it."""
    gpu_class: str | None = None
    """Jobs that accept this class."""
    submitted_from_ms: int | None = None
    submitted_until_ms: int | None = None
    """Before this time, not at it: two periods that meet have no job in common."""


def list_jobs(
    connection: Connection, caller: Caller, queue: Queue, wanted: JobFilter, after: str | None, limit: int
) -> JobPage:
    """Jobs, newest first, from the one after `after`; a member sees its organization's."""
    statement = _filtered(wanted).order_by(jobs.c.id.desc()).limit(limit + 1)
    if caller.role is Role.MEMBER:
        statement = statement.where(jobs.c.organization_id == caller.organization_id)
    if after is not None:
        statement = statement.where(jobs.c.id < after)
    rows, following = page(connection.execute(statement).all(), limit, lambda row: row.id)
    return JobPage(items=tuple(job_views(connection, caller, list(rows), queue)), next=following)


def _filtered(wanted: JobFilter) -> Select[Any]:
    statement: Select[Any] = select(jobs)
    if wanted.state is not None:
        statement = statement.where(jobs.c.state == wanted.state.value)
    if wanted.organization_id is not None:
        statement = statement.where(jobs.c.organization_id == wanted.organization_id)
    if wanted.grant_id is not None:
        ran = select(attempts.c.job_id).where(attempts.c.grant_id == wanted.grant_id)
        statement = statement.where(or_(jobs.c.grant_id == wanted.grant_id, jobs.c.id.in_(ran)))
    if wanted.gpu_class is not None:
        statement = statement.where(accepts(wanted.gpu_class))
    if wanted.submitted_from_ms is not None:
        statement = statement.where(jobs.c.submitted_at_ms >= wanted.submitted_from_ms)
    if wanted.submitted_until_ms is not None:
        statement = statement.where(jobs.c.submitted_at_ms < wanted.submitted_until_ms)
    return statement
