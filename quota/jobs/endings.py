"""Attempts that would outlive a grant whose policy is `stop_at_end`: told before, asked to stop at its end.

Called by a periodic task. The scheduler records the stop; until then the attempt runs and is charged as usual.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from quota.audit import service as audit
from quota.audit.tables import findings
from quota.clock import instant_text
from quota.db import Database, Tx
from quota.jobs.service import ask_stop
from quota.jobs.tables import attempts
from quota.programs.policies import read_document
from quota.programs.tables import grants
from quota.schemas.policies import GrantPolicy, WhenGrantEnds
from quota.schemas.scheduling import JobState, StopReason

HUB = "hub"
NOTICE = "grant_ends_soon"
LONGEST_NOTICE_MS = 30 * 24 * 3_600_000

_OPEN = (
    select(
        attempts.c.job_id,
        attempts.c.attempt,
        attempts.c.grant_id,
        grants.c.ends_at_ms,
        grants.c.policy,
        # an attempt that has not started could run its whole walltime from now on
        (
            func.coalesce(attempts.c.last_started_at_ms, attempts.c.claimed_at_ms) + attempts.c.walltime_ms
        ).label("could_run_until_ms"),
    )
    .join(grants, grants.c.id == attempts.c.grant_id)
    .where(
        attempts.c.capacity_held.is_(True),
        attempts.c.state.in_((JobState.STARTING.value, JobState.RUNNING.value)),
    )
)


def stop_due(database: Database) -> int:
    """Tell and stop what is due, each attempt in a transaction of its own. Answers how many were told or asked.

    Run it as often as you like: each is told once per end of its grant, and asked once. One that fails keeps no
    other from its turn; the failures are raised together at the end.
    """
    now_ms = database.clock.now_ms()
    with database.read() as connection:
        due = [row for row in _open(connection, now_ms) if _step(row, now_ms)]
    return sum(database.write_each(due, lambda tx, row: _act(tx, row.job_id, row.attempt)))


def _open(connection: Connection, now_ms: int) -> list[Row[Any]]:
    soon = grants.c.ends_at_ms <= now_ms + LONGEST_NOTICE_MS
    return list(connection.execute(_OPEN.where(soon).order_by(attempts.c.job_id)))


def _step(row: Any, now_ms: int) -> str:
    """What is due for an attempt: nothing, `tell` or `stop`."""
    policy: GrantPolicy = read_document(row.policy)
    if policy.when_grant_ends is not WhenGrantEnds.STOP_AT_END:
        return ""
    if row.ends_at_ms <= now_ms:
        return "stop"
    tells = row.ends_at_ms - policy.stop_notice_s * 1000 <= now_ms < row.could_run_until_ms
    return "tell" if tells and row.could_run_until_ms > row.ends_at_ms else ""


def _act(tx: Tx, job_id: str, attempt: int) -> bool:
    """Judge once more in the transaction: the attempt may have ended and the grant's end may have been moved."""
    this = (attempts.c.job_id == job_id, attempts.c.attempt == attempt)
    row = tx.connection.execute(_OPEN.where(*this)).one_or_none()
    step = "" if row is None else _step(row, tx.now_ms)
    if row is None or not step:
        return False
    ends_at = instant_text(row.ends_at_ms)
    if step == "stop":
        why = f"grant {row.grant_id} ended at {ends_at}"
        return ask_stop(tx, job_id, StopReason.GRANT_ENDED, actor=HUB, why=why, evidence=row.grant_id)
    subject, detail = f"{job_id}-{attempt}", f"grant {row.grant_id} ends at {ends_at}; it is stopped then"
    known = select(findings.c.id).filter_by(code=NOTICE, subject=subject, detail=detail)
    if tx.connection.execute(known).first() is not None:
        return False
    tx.connection.execute(
        insert(findings), {"at_ms": tx.now_ms, "code": NOTICE, "subject": subject, "detail": detail}
    )
    audit.record(
        tx,
        HUB,
        "attempt.notice",
        job_id,
        reason=f"grant {row.grant_id} ends at {ends_at}",
        detail={"attempt": attempt, "grant_id": row.grant_id, "ends_at": ends_at},
    )
    return True
