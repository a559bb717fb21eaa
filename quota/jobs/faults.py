"""Attempts that died of a GPU's fault: given back what they lost, up to the cap, and queued again if they may be.

A verdict opens a fault for each attempt that held the GPU. It is settled once, when the attempt has ended: either with
the end itself (`dies_of`), or later, when the verdict came after the end. Then the job may have been told as failed
already; within an hour it waits again, after that it stays ended and only the refund is made. An attempt that ended
long after the fault, or well, or because somebody stopped it, did not die of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Row, and_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from quota.audit import service as audit
from quota.clock import HOUR_MS
from quota.db import Database, Tx
from quota.fleet.gpu_tables import gpu_verdicts
from quota.jobs import settlement
from quota.jobs.fault_tables import gpu_faults
from quota.jobs.service import lock_job
from quota.jobs.states import RESTARTS_LIMIT
from quota.jobs.tables import attempts, jobs
from quota.schemas.gpus import GpuVerdict
from quota.schemas.scheduling import EndReason, JobState

BEFORE_MS = 30_000
"""A program may be seen to end this much before the sign is dated: two clocks, and one-second times."""
AFTER_MS = 600_000
"""It may take this long to die: until it looks at its GPU again."""
REVIVED_MS = HOUR_MS
"""So long after its end, in wall time, a job may be queued again; later somebody has reacted to the failure."""
GONE = ("hangs", "lost")
"""Rules of agents by which nothing can compute on a GPU any more; what still runs with it only waits."""
MOST_SPAN_MS = HOUR_MS
"""A verdict may leave open for so long when its sign came; an agent that saw nothing for longer knows too little."""

_OPEN = (
    select(gpu_faults)
    .where(gpu_faults.c.outcome == "open")
    .order_by(gpu_faults.c.job_id, gpu_faults.c.attempt, gpu_faults.c.verdict_id)
)


def note(tx: Tx, verdict: GpuVerdict, holders: Iterable[tuple[str, int]]) -> None:
    """Open a fault for each attempt that held the GPU; noting it again changes nothing."""
    rows = [
        {
            "job_id": job_id,
            "attempt": attempt,
            "verdict_id": verdict.id,
            "gpu_uuid": verdict.gpu_uuid,
            "since_ms": max(verdict.since, verdict.at - MOST_SPAN_MS),
            "at_ms": verdict.at,
            "outcome": "open",
        }
        for job_id, attempt in sorted(holders)
    ]
    if rows:
        make = sqlite.insert if tx.dialect == "sqlite" else postgresql.insert
        tx.connection.execute(make(gpu_faults).values(rows).on_conflict_do_nothing())


def dies_of(tx: Tx, job_id: str, attempt: int, ended_ms: int) -> str | None:
    """The verdict whose fault an attempt that fails at `ended_ms` died of; None if none is known yet."""
    found = tx.connection.execute(_OPEN.where(*_of(job_id, attempt)))
    return next((row.verdict_id for row in found if _fits(row, ended_ms)), None)


def stopped_for(tx: Tx, job_id: str, attempt: int) -> str | None:
    """The verdict for whose sake an attempt was asked to stop: the first that says its GPU is lost or hangs."""
    statement = _OPEN.join(gpu_verdicts, gpu_verdicts.c.id == gpu_faults.c.verdict_id).where(
        *_of(job_id, attempt), gpu_verdicts.c.rule.in_(GONE)
    )
    rows = tx.connection.execute(statement).all()
    return min(rows, key=lambda row: (row.at_ms, row.verdict_id)).verdict_id if rows else None


def close(tx: Tx, job_id: str, attempt: int, ended_ms: int, outcome: str, said: str | None = None) -> None:
    """An attempt ended: its open faults are settled, those that do not fit its end as none of its death.

    `said`: the detail of its end; the verdict that it names fits, however late the end came.
    """
    for row in tx.connection.execute(_OPEN.where(*_of(job_id, attempt))).all():
        this = (*_of(job_id, attempt), gpu_faults.c.verdict_id == row.verdict_id)
        settled = outcome if told(row.verdict_id) == said or _fits(row, ended_ms) else "none"
        tx.connection.execute(update(gpu_faults).where(*this).values(outcome=settled))


def settle_due(database: Database, verdict_ids: Collection[str] | None = None) -> int:
    """Settle the open faults of attempts that have ended, each attempt in a transaction of its own.

    Of these verdicts, or of all. Run it as often as you like. Answers how many attempts had died of one.
    """
    ended = and_(attempts.c.job_id == gpu_faults.c.job_id, attempts.c.attempt == gpu_faults.c.attempt)
    statement = (
        select(gpu_faults.c.job_id, gpu_faults.c.attempt)
        .join(attempts, ended)
        .where(gpu_faults.c.outcome == "open", attempts.c.state == JobState.ENDED.value)
        .distinct()
        .order_by(gpu_faults.c.job_id, gpu_faults.c.attempt)
    )
    if verdict_ids is not None:
        statement = statement.where(gpu_faults.c.verdict_id.in_(sorted(verdict_ids)))
    with database.read() as connection:
        due = connection.execute(statement).all()
    return sum(database.write_each(due, lambda tx, row: settle(tx, row.job_id, row.attempt)))


def settle(tx: Tx, job_id: str, attempt: int) -> bool:
    """Settle the faults of one attempt that has ended; False if it did not die of one, or was settled before."""
    job = lock_job(tx, job_id)
    this = (attempts.c.job_id == job_id, attempts.c.attempt == attempt)
    row = tx.connection.execute(select(attempts).where(*this).with_for_update()).one_or_none()
    if job is None or row is None or row.state != JobState.ENDED.value:
        return False
    verdict_id = dies_of(tx, job_id, attempt, row.ended_at_ms)
    if verdict_id is None or row.end_reason != EndReason.FAILED.value:
        # a lost node, or an end that this fault was known at, was given back with the end
        outcome = "ended" if row.end_reason == EndReason.NODE_FAILED.value else "none"
        close(tx, job_id, attempt, row.ended_at_ms, outcome)
        return False
    values = {"end_reason": EndReason.NODE_FAILED.value, "detail": told(verdict_id)}
    tx.connection.execute(update(attempts).where(*this).values(values))
    revived = _revive(tx, job, row)
    close(tx, job_id, attempt, row.ended_at_ms, "requeued" if revived else "ended")
    refunded = 0
    if row.settled:
        # else the refund comes with the slices that are still to close
        now = tx.connection.execute(select(attempts).where(*this)).one()
        refunded = settlement.refund_fault(tx, now, told(verdict_id))
    tx.touch("attempt", f"{job_id}-{attempt}")
    tx.touch("job", job_id)
    detail: dict[str, object] = {
        "attempt": attempt,
        "verdict": verdict_id,
        "requeued": revived,
        "refunded_gpu_us": str(refunded),
    }
    audit.record(tx, "hub", "attempt.gpu_fault", job_id, reason=told(verdict_id), detail=detail)
    return True


def told(verdict_id: str) -> str:
    """How a verdict is named as evidence."""
    return f"{settlement.GPU_VERDICT}{verdict_id}"


def _revive(tx: Tx, job: Row[Any], row: Row[Any]) -> bool:
    """Queue a job again whose last attempt died of a fault; else name the fault as its end's reason."""
    last = job.state == JobState.ENDED.value and job.attempt == row.attempt
    if not last or job.end_reason != EndReason.FAILED.value:
        return False
    may = (
        job.restartable
        and row.attempt < RESTARTS_LIMIT
        and job.cancel_requested_at_ms is None
        and tx.now_ms - row.ended_at_ms <= REVIVED_MS * tx.speed
    )
    values: dict[str, Any] = {"end_reason": EndReason.NODE_FAILED.value}
    if may:
        values = {
            "state": JobState.QUEUED.value,
            "end_reason": None,
            "ended_at_ms": None,
            "not_before_ms": None,
        }
    tx.connection.execute(update(jobs).where(jobs.c.id == job.id).values(values))
    return bool(may)


def _of(job_id: str, attempt: int) -> tuple[Any, Any]:
    return gpu_faults.c.job_id == job_id, gpu_faults.c.attempt == attempt


def _fits(row: Row[Any], ended_ms: int) -> bool:
    return bool(row.since_ms - BEFORE_MS <= ended_ms <= row.at_ms + AFTER_MS)
