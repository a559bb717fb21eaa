"""Reports of a cluster: what runs, what ended, what was lost; the watermark that lets slices close."""

from __future__ import annotations

from typing import Any, Literal, assert_never

from sqlalchemy import Row, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.dispatch import lease, objects, streams
from quota.dispatch.policy import ABANDONMENTS_LIMIT, COOLDOWN_WALL_S
from quota.errors import NotFound
from quota.fleet import service as fleet
from quota.fleet.tables import clusters
from quota.jobs import service as job_service
from quota.jobs import settlement
from quota.jobs.states import AttemptEnd, End, Requeue, after_attempt
from quota.jobs.tables import attempts, jobs
from quota.schemas.scheduling import (
    EndedItem,
    FindingItem,
    FreedItem,
    ItemResult,
    JobState,
    LostItem,
    ReportBatch,
    ReportItem,
    ReportReply,
    StartedItem,
    StopReason,
)

TOLERANCE_MS = 2000
"""A cluster's time may lie this much before the claim or after now (its clock, not ours)."""

Outcome = Literal["accepted", "unchanged", "refused"]


def report(tx: Tx, batch: ReportBatch, body: bytes, clock_speed: int) -> ReportReply:
    """Take over what a cluster shows, then close slices up to its watermark.

    Raises StaleEpoch, StaleSequence, NotFound for an unknown cluster.
    """
    lease.check_epoch(tx, batch.epoch)
    stored = streams.replayed(tx, batch.stream, batch.seq, body, ReportReply)
    if stored is not None:
        return stored
    if tx.connection.execute(select(clusters.c.id).where(clusters.c.id == batch.cluster)).first() is None:
        raise NotFound(f"there is no cluster {batch.cluster}", field="cluster")
    if batch.nodes is not None:
        fleet.store_nodes(tx, batch.cluster, batch.nodes)
    results = tuple(_item(tx, batch, item, clock_speed) for item in batch.items)
    # a watermark from the future would close slices that are not over
    through = min(batch.observed_through, tx.now_ms)
    fleet.advance_watermark(tx, batch.cluster, through)
    settlement.settle_cluster(tx, batch.cluster, through)
    seq = tx.publish() or 0
    reply = ReportReply(
        stream=batch.stream,
        stream_seq=batch.seq,
        seq=seq,
        results=results,
        objects=objects.load(tx.connection, tx.touched, seq, tx.now_ms) if seq else (),
    )
    streams.remember(tx, batch.stream, batch.seq, body, reply)
    return reply


def _item(tx: Tx, batch: ReportBatch, item: ReportItem, clock_speed: int) -> ItemResult:
    if isinstance(item, FindingItem):
        audit.find(tx, item.code, f"{item.job_id}-{item.attempt}", item.detail)
        return _result(item, "accepted")
    job = job_service.lock_job(tx, item.job_id)
    row = tx.connection.execute(
        select(attempts)
        .where(attempts.c.job_id == item.job_id, attempts.c.attempt == item.attempt)
        .with_for_update()
    ).one_or_none()
    if job is None or row is None or row.cluster != batch.cluster:
        audit.find(
            tx, "unknown_attempt", f"{item.job_id}-{item.attempt}", f"reported {item.kind} by {batch.cluster}"
        )
        return _result(item, "refused", "not_found")
    match item:
        case StartedItem():
            return _result(item, _started(tx, job, row, item, batch.observed_through))
        case EndedItem():
            return _result(item, _ended(tx, job, row, item, batch.observed_through, clock_speed))
        case LostItem():
            return _result(item, _lost(tx, job, row, item, batch.observed_through, clock_speed))
        case FreedItem():
            return _result(item, _freed(tx, row))
        case _:
            assert_never(item)


def _started(tx: Tx, job: Row[Any], row: Row[Any], item: StartedItem, observed_ms: int) -> Outcome:
    if row.state == JobState.ENDED.value or row.last_started_at_ms is not None:
        return "unchanged"
    first, last = _start_times(tx, row, item.first_started_at, item.last_started_at, observed_ms)
    if (first, last) == (row.first_started_at_ms, row.last_started_at_ms):
        return "unchanged"
    values: dict[str, Any] = {"first_started_at_ms": first, "last_started_at_ms": last}
    if last is not None and row.state == JobState.STARTING.value:
        values["state"] = JobState.RUNNING.value
        tx.connection.execute(update(jobs).where(jobs.c.id == job.id).values(state=JobState.RUNNING.value))
        tx.touch("job", job.id)
    _change(tx, row, values)
    return "accepted"


def _ended(
    tx: Tx, job: Row[Any], row: Row[Any], item: EndedItem, observed_ms: int, clock_speed: int
) -> Outcome:
    if row.state == JobState.ENDED.value:
        # an attempt reported lost whose pods are now known to be gone
        return _freed(tx, row)
    first, last, ended = _times(tx, row, item, item.ended_at, observed_ms)
    started = first is not None
    end = AttemptEnd(
        succeeded=started and item.reason == "completed" and item.exit_code == 0,
        started=started,
        lost=item.reason == "node_lost",
        stop_reason=None if row.stop_reason is None else StopReason(row.stop_reason),
    )
    _end(tx, job, row, end, first, last, ended, item.exit_code, clock_speed)
    _freed(tx, row)
    return "accepted"


def _lost(
    tx: Tx, job: Row[Any], row: Row[Any], item: LostItem, observed_ms: int, clock_speed: int
) -> Outcome:
    if row.state == JobState.ENDED.value:
        return "unchanged"
    first, last, ended = _times(tx, row, item, item.last_seen_at, observed_ms)
    reason = None if row.stop_reason is None else StopReason(row.stop_reason)
    end = AttemptEnd(succeeded=False, started=first is not None, lost=True, stop_reason=reason)
    _end(tx, job, row, end, first, last, ended, None, clock_speed)
    return "accepted"


def _freed(tx: Tx, row: Row[Any]) -> Outcome:
    if not row.capacity_held:
        return "unchanged"
    pods = job_service.read_placements(tx.connection, row.job_id)[row.attempt]
    fleet.give_back_capacity(tx, row.cluster, pods)
    _change(tx, row, {"capacity_held": False})
    return "accepted"


def _end(
    tx: Tx,
    job: Row[Any],
    row: Row[Any],
    end: AttemptEnd,
    first: int | None,
    last: int | None,
    ended: int,
    exit_code: int | None,
    clock_speed: int,
) -> None:
    """Record the attempt's end, take back what was settled after it, and move the job on."""
    verdict = after_attempt(
        end,
        cancel_requested=job.cancel_requested_at_ms is not None,
        restartable=job.restartable,
        attempt=row.attempt,
        abandonments=job.abandonments,
        limit=ABANDONMENTS_LIMIT,
    )
    settlement.correct_after(tx, row, ended if first is not None else 0)
    _change(
        tx,
        row,
        {
            "state": JobState.ENDED.value,
            "first_started_at_ms": first,
            "last_started_at_ms": last,
            "ended_at_ms": ended,
            "exit_code": exit_code,
            "end_reason": verdict.reason.value,
            "lost": end.lost,
        },
    )
    # the slices up to this end close with the watermark, at the end of this report
    values: dict[str, Any]
    match verdict:
        case End(reason=reason):
            values = {"state": JobState.ENDED.value, "end_reason": reason.value, "ended_at_ms": ended}
        case Requeue(reason=reason, abandoned=abandoned):
            pause_ms = COOLDOWN_WALL_S * 1000 * 2**job.abandonments * clock_speed if abandoned else 0
            values = {
                "state": JobState.QUEUED.value,
                "not_before_ms": tx.now_ms + pause_ms if pause_ms else None,
                "abandonments": job.abandonments + (1 if abandoned else 0),
            }
        case _:
            assert_never(verdict)
    tx.connection.execute(update(jobs).where(jobs.c.id == job.id).values(**values))
    tx.touch("job", job.id)
    detail: dict[str, object] = {
        "attempt": row.attempt,
        "end_reason": verdict.reason.value,
        "exit_code": exit_code,
        "requeued": isinstance(verdict, Requeue),
    }
    audit.record(tx, "scheduler", "attempt.end", job.id, detail=detail)


def _times(
    tx: Tx, row: Row[Any], item: EndedItem | LostItem, ended_ms: int, observed_ms: int
) -> tuple[int | None, int | None, int]:
    """The attempt's times, each made possible: ordered, after the claim, not in the future."""
    first, last = row.first_started_at_ms, row.last_started_at_ms
    if last is None and item.first_started_at is not None:
        first, last = _start_times(tx, row, item.first_started_at, item.last_started_at, observed_ms)
    ended = _possible(tx, row, "ended_at", ended_ms, observed_ms)
    latest_start = max(last or 0, first or 0)
    if ended < latest_start:
        subject = f"{row.job_id}-{row.attempt}"
        audit.find(tx, "impossible_time", subject, f"ended_at {ended} before the last start {latest_start}")
        ended = latest_start
    return first, last, ended


def _start_times(
    tx: Tx, row: Row[Any], first_ms: int, last_ms: int | None, observed_ms: int
) -> tuple[int, int | None]:
    first = row.first_started_at_ms
    if first is None:
        first = _possible(tx, row, "first_started_at", first_ms, observed_ms)
    if last_ms is None:
        return first, None
    last = _possible(tx, row, "last_started_at", last_ms, observed_ms)
    if last < first:
        subject = f"{row.job_id}-{row.attempt}"
        audit.find(tx, "impossible_time", subject, f"last_started_at {last} before the first start {first}")
        last = first
    return first, last


def _possible(tx: Tx, row: Row[Any], name: str, moment_ms: int, observed_ms: int) -> int:
    """The cluster's time if it lies in [claim - 2 s, now + 2 s], else the observation's, with a finding."""
    if row.claimed_at_ms - TOLERANCE_MS <= moment_ms <= tx.now_ms + TOLERANCE_MS:
        return moment_ms
    observed: int = min(max(observed_ms, row.claimed_at_ms), tx.now_ms)
    detail = f"{name} {moment_ms} is outside [{row.claimed_at_ms} - 2 s, {tx.now_ms} + 2 s]; {observed} used"
    audit.find(tx, "impossible_time", f"{row.job_id}-{row.attempt}", detail)
    return observed


def _change(tx: Tx, row: Row[Any], values: dict[str, Any]) -> None:
    tx.connection.execute(
        update(attempts)
        .where(attempts.c.job_id == row.job_id, attempts.c.attempt == row.attempt)
        .values(**values)
    )
    tx.touch("attempt", f"{row.job_id}-{row.attempt}")


def _result(item: ReportItem, outcome: Outcome, code: str = "") -> ItemResult:
    return ItemResult(job_id=item.job_id, attempt=item.attempt, outcome=outcome, code=code)
