"""What is kept how long. The ledger, the audit trail and its seals are never deleted by this program.

Access records must be kept for one to two years, subsidy papers for five: both are parts of sealed or immutable rows
and stay. What may go: raw evidence after five years, what people wrote on dead tokens, and records of periodic tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import and_, delete, func, or_, select, tuple_, update

from quota.audit import service as audit
from quota.audit.tables import task_runs
from quota.clock import HOUR_MS
from quota.db import Database, Tx
from quota.identity.tables import tokens
from quota.usage.tables import evidence

DAY_MS = 24 * HOUR_MS
EVIDENCE_DAYS = 1826
"""Five years, as papers of a subsidy."""
PERSONAL_DAYS = 730
"""Two years, as access records of a large system; the law's floor is one."""
TASK_RUN_DAYS = 35
_BATCH = 5000
_KEY = (
    evidence.c.job_id,
    evidence.c.attempt,
    evidence.c.gpu_uuid,
    evidence.c.hour_ms,
    evidence.c.agent_epoch,
)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """How many rows went, or lost what was personal."""

    evidence_rows: int
    token_labels: int
    task_runs: int


def forget(
    database: Database, evidence_days: int = EVIDENCE_DAYS, personal_days: int = PERSONAL_DAYS
) -> Forgotten:
    """Delete and blank what is past its time, in short transactions; what one run leaves the next one takes."""
    now_ms = database.clock.now_ms()
    rows = 0
    while gone := database.write(lambda tx: _old_evidence(tx, now_ms - evidence_days * DAY_MS)):
        rows += gone
    labels = database.write(lambda tx: _dead_labels(tx, now_ms - personal_days * DAY_MS))
    runs = database.write(lambda tx: _old_runs(tx, now_ms - TASK_RUN_DAYS * DAY_MS))
    return Forgotten(rows, labels, runs)


def _old_evidence(tx: Tx, before_ms: int) -> int:
    keys = select(*_KEY).where(evidence.c.hour_ms < before_ms).limit(_BATCH)
    found = [tuple(row) for row in tx.connection.execute(keys)]
    for start in range(0, len(found), 500):
        tx.connection.execute(delete(evidence).where(tuple_(*_KEY).in_(found[start : start + 500])))
    if found:
        audit.record(tx, "hub", "retention.evidence", "evidence", detail={"rows": len(found)})
    return len(found)


def _dead_labels(tx: Tx, before_ms: int) -> int:
    """A label may name a person; a token that ended this long ago needs none."""
    dead = or_(tokens.c.revoked_at_ms < before_ms, tokens.c.expires_at_ms < before_ms)
    blanked = tx.connection.execute(update(tokens).where(and_(dead, tokens.c.label != "")).values(label=""))
    if blanked.rowcount:
        audit.record(tx, "hub", "retention.token_labels", "tokens", detail={"rows": blanked.rowcount})
    return blanked.rowcount


def _old_runs(tx: Tx, before_ms: int) -> int:
    """The newest run of each task stays, however old: it says when the task last ran."""
    newest = (
        select(task_runs.c.task, func.max(task_runs.c.period_at_ms).label("period")).group_by(
            task_runs.c.task
        )
    ).subquery()
    kept = select(newest.c.task, newest.c.period)
    old = and_(
        task_runs.c.period_at_ms < before_ms,
        tuple_(task_runs.c.task, task_runs.c.period_at_ms).not_in(kept),
    )
    return tx.connection.execute(delete(task_runs).where(old)).rowcount
