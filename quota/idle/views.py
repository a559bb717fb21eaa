"""What the idle rules found, as firms and operators read it: rows turned into wire types."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select

from quota.idle.tables import found, warnings
from quota.prepared import Prepared
from quota.schemas.idle import IdleState, IdleWarning, JobIdle

_FOUND = Prepared(select(found).where(found.c.job_id.in_(bindparam("jobs", expanding=True))), lists=("jobs",))
_WARNINGS = (
    select(warnings)
    .where(warnings.c.job_id == bindparam("job"))
    .order_by(warnings.c.attempt, warnings.c.number)
)


def idle_of(connection: Connection, attempts: Iterable[tuple[str, int]]) -> dict[str, JobIdle]:
    """By job, of those whose present attempt is given: what was found of it."""
    wanted = dict(attempts)
    if not wanted:
        return {}
    rows = _FOUND.all(connection, {"jobs": list(wanted)})
    return {row.job_id: job_idle(row) for row in rows if row.attempt == wanted[row.job_id]}


def job_idle(row: Row[Any]) -> JobIdle:
    """One row of `idle_found`."""
    return JobIdle(
        state=IdleState(row.state),
        since=row.idle_since_ms,
        rule=row.rule,
        stop_at=row.stop_at_ms,
        idle_gpus=row.idle_gpus,
        gpus=row.gpus,
        utilization_thousandths=row.utilization_thousandths,
        evidence_through=row.through_ms,
        exempt_until=row.exempt_until_ms,
        changed_at=row.changed_at_ms,
    )


def warnings_of(connection: Connection, job_id: str) -> tuple[IdleWarning, ...]:
    """Every warning of a job's attempts, in order."""
    return tuple(
        IdleWarning(
            attempt=row.attempt,
            number=row.number,
            step=row.step,
            at=row.at_ms,
            idle_since=row.idle_since_ms,
            rule=row.rule,
            stop_at=row.stop_at_ms,
            withdrawn_at=row.withdrawn_at_ms,
        )
        for row in connection.execute(_WARNINGS, {"job": job_id})
    )
