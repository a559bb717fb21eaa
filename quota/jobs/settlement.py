"""From an attempt's times to its charge: closes slices, resolves the hold, gives back what later truth takes away."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Row, bindparam, func, or_, select, update

from quota.db import Tx
from quota.identity.tables import organizations
from quota.jobs.charging import Times, close_slices
from quota.jobs.tables import attempts, jobs
from quota.ledger import service as ledger
from quota.ledger.tables import slices, transfers
from quota.schemas.ledger import RefundKind

ACTOR = "hub"
FAULT_REFUND_LIMIT_MS = 4 * 3_600_000
"""Most lost time given back per job after a platform fault (policy; ledger facts)."""
HALF_LIFE_MS = 7 * 24 * 3_600_000


_SETTLED = (
    update(attempts)
    .where(attempts.c.job_id == bindparam("job"), attempts.c.attempt == bindparam("number"))
    .values(settled=bindparam("final"), settled_through_ms=bindparam("through"))
)


def settle_cluster(tx: Tx, cluster: str, observed_through_ms: int) -> None:
    """Close slices of every unsettled attempt of a cluster up to its watermark."""
    hour_start = observed_through_ms - observed_through_ms % 3_600_000
    rows = tx.connection.execute(
        select(attempts)
        .where(
            attempts.c.cluster == cluster,
            attempts.c.settled.is_(False),
            or_(
                attempts.c.ended_at_ms <= observed_through_ms,
                func.coalesce(attempts.c.settled_through_ms, attempts.c.first_started_at_ms) < hour_start,
            ),
        )
        .order_by(attempts.c.job_id, attempts.c.attempt)
        .with_for_update()
    ).all()
    if not rows:
        return
    held = ledger.read_holds(tx, [row.hold_id for row in rows])
    usage: dict[str, int] = defaultdict(int)
    for row in rows:
        usage[row.organization_id] += _settle_attempt(tx, row, held[row.hold_id], observed_through_ms)
    for organization_id, amount in sorted(usage.items()):
        if amount:
            count_usage(tx, organization_id, amount)


def _settle_attempt(tx: Tx, row: Row[Any], held: ledger.Hold, observed_through_ms: int) -> int:
    """Close what can close of one attempt; answers what its grant was charged less what was given back."""
    parts, final = close_slices(_times(row), observed_through_ms)
    if not parts and not final:
        return 0
    charged = ledger.settle(tx, held, parts, actor=ACTOR) if parts else 0
    if final:
        settled = held.settled_gpu_us + charged
        ledger.release(tx, held, settled, actor=ACTOR, reason="attempt ended")
    through = parts[-1].ends_at_ms if parts else row.settled_through_ms
    tx.connection.execute(
        _SETTLED, {"job": row.job_id, "number": row.attempt, "final": final, "through": through}
    )
    given_back = _refund_lost_work(tx, row, held, parts) if final and row.lost else 0
    tx.touch("grant", row.grant_id)
    return charged - given_back


def correct_after(tx: Tx, row: Row[Any], truth_ms: int) -> None:
    """Refund what was settled after `truth_ms`: that time was never occupied."""
    if row.settled_through_ms is None or row.settled_through_ms <= truth_ms:
        return
    held = ledger.read_hold(tx, row.hold_id)
    given_back = 0
    for part in _slices(tx, row):
        if part.ends_at_ms > truth_ms:
            begin = max(part.starts_at_ms, truth_ms)
            given_back += ledger.refund(
                tx,
                held,
                part,
                begin,
                part.ends_at_ms,
                RefundKind.CORRECTION,
                actor=ACTOR,
                reason="the attempt had ended before",
            )
    if given_back:
        count_usage(tx, row.organization_id, -given_back)
    tx.touch("grant", row.grant_id)


def count_usage(tx: Tx, organization_id: str, amount_gpu_us: int) -> None:
    """Add to the organization's decayed usage: value x 2^(-dt / 7 d) + amount. Fair-share only."""
    row = tx.connection.execute(
        select(organizations.c.decayed_usage_gpu_us, organizations.c.decayed_as_of_ms)
        .where(organizations.c.id == organization_id)
        .with_for_update()
    ).one()
    age_ms = max(0, tx.now_ms - row.decayed_as_of_ms)
    usage = row.decayed_usage_gpu_us * 2.0 ** (-age_ms / HALF_LIFE_MS) + amount_gpu_us
    tx.connection.execute(
        update(organizations)
        .where(organizations.c.id == organization_id)
        .values(decayed_usage_gpu_us=max(0.0, usage), decayed_as_of_ms=tx.now_ms)
    )
    tx.touch("organization", organization_id)


def _refund_lost_work(tx: Tx, row: Row[Any], held: ledger.Hold, fresh: list[ledger.Slice]) -> int:
    """Give back the charged time whose work a platform fault destroyed; the platform pays it.

    Lost is what came after the last checkpoint mark the job declared, else all since the start; at most
    FAULT_REFUND_LIMIT_MS per job over all its attempts. `fresh` are the slices closed in this transaction.
    """
    if row.last_started_at_ms is None:
        return 0
    job = tx.connection.execute(select(jobs.c.checkpoint_interval_ms).where(jobs.c.id == row.job_id)).one()
    since = row.last_started_at_ms
    if job.checkpoint_interval_ms:
        since += max(0, row.ended_at_ms - since) // job.checkpoint_interval_ms * job.checkpoint_interval_ms
    left = FAULT_REFUND_LIMIT_MS - _refunded_ms(tx, row.job_id)
    since = max(since, row.ended_at_ms - max(0, left))
    given_back = 0
    for part in [*_slices(tx, row), *fresh]:
        begin, end = max(part.starts_at_ms, since), min(part.ends_at_ms, row.ended_at_ms)
        if part.payer == "grant" and begin < end:
            given_back += ledger.refund(
                tx, held, part, begin, end, RefundKind.FAULT, actor=ACTOR, reason="work lost with the node"
            )
    return given_back


def _times(row: Row[Any]) -> Times:
    return Times(
        first_started_ms=row.first_started_at_ms,
        last_started_ms=row.last_started_at_ms,
        ended_ms=row.ended_at_ms,
        stop_at_ms=row.stop_at_ms,
        stop_grace_ms=row.stop_grace_ms or 0,
        walltime_ms=row.walltime_ms,
        settled_through_ms=row.settled_through_ms,
    )


def _slices(tx: Tx, row: Row[Any]) -> list[ledger.Slice]:
    rows = tx.connection.execute(
        select(slices.c.starts_at_ms, slices.c.ends_at_ms, slices.c.payer)
        .where(slices.c.job_id == row.job_id, slices.c.attempt == row.attempt)
        .order_by(slices.c.starts_at_ms)
    )
    return [ledger.Slice(part.starts_at_ms, part.ends_at_ms, part.payer) for part in rows]


def _refunded_ms(tx: Tx, job_id: str) -> int:
    rows = tx.connection.execute(
        select(transfers.c.starts_at_ms, transfers.c.ends_at_ms).where(
            transfers.c.job_id == job_id,
            transfers.c.type == "refund",
            transfers.c.refund_kind != RefundKind.CORRECTION.value,
        )
    )
    found = [(row.starts_at_ms, row.ends_at_ms) for row in rows]
    # another attempt of this job may have ended in this very transaction
    for table, row in tx.deferred:
        given = row.get("refund_kind") not in (None, RefundKind.CORRECTION.value)
        if table is transfers and row["job_id"] == job_id and given:
            found.append((row["starts_at_ms"], row["ends_at_ms"]))
    return sum(ends - starts for starts, ends in found)
