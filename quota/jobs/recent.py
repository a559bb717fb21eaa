"""Jobs of late, as forecasts need them: what they asked for, when, and how long they ran."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, select

from quota.jobs.tables import attempts, jobs
from quota.schemas.forecasts import RecentJob, RecentJobs
from quota.schemas.scheduling import Topology

LONGEST_PAST = 20_000
OWN_ENDS = frozenset({"succeeded", "failed", "cancelled", "time_limit"})
"""Ends that say how long a job runs; the others say what happened to it."""


def recent_jobs(connection: Connection, limit: int) -> RecentJobs:
    """The newest jobs, newest first, at most `limit`, whatever their age: a hub of few jobs learns from older ones.

    Opportunistic ones apart, of the same time and as many at most.
    """
    found = _newest(connection, limit, jobs.c.program_id.is_(None))
    since = jobs.c.id >= found[-1].id if len(found) == limit else jobs.c.id > ""
    spare = _newest(connection, limit, and_(jobs.c.program_id.is_not(None), since))
    return RecentJobs(items=tuple(map(_recent, found)), opportunistic=tuple(map(_recent, spare)))


def _newest(connection: Connection, limit: int, which: ColumnElement[bool]) -> list[Row[Any]]:
    first = and_(attempts.c.job_id == jobs.c.id, attempts.c.attempt == 1, jobs.c.attempt == 1)
    statement = (
        select(jobs, attempts.c.last_started_at_ms, attempts.c.ended_at_ms.label("attempt_ended_at_ms"))
        .join(attempts, first, isouter=True)
        .where(which)
        .order_by(jobs.c.id.desc())
        .limit(limit)
    )
    return list(connection.execute(statement))


def _recent(row: Row[Any]) -> RecentJob:
    ran_ms = None
    if row.end_reason in OWN_ENDS and row.last_started_at_ms is not None:
        ran_ms = max(0, (row.attempt_ended_at_ms or row.ended_at_ms) - row.last_started_at_ms)
    return RecentJob(
        organization_id=row.organization_id,
        grant_id=row.grant_id,
        gpu_class=row.gpu_class,
        gpus_per_pod=row.gpus_per_pod,
        pods=row.pods,
        walltime_ms=row.walltime_ms,
        restartable=row.restartable,
        submitted_at=row.submitted_at_ms,
        ran_ms=ran_ms,
        fallback_classes=tuple(json.loads(row.fallback_classes)),
        topology=Topology(row.topology),
        program_id=row.program_id,
    )
