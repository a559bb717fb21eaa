"""From an attempt's times to its charge: closes slices, resolves the hold, gives back what later truth takes away."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

from sqlalchemy import Row, bindparam, func, or_, select, update

from quota.db import Tx
from quota.identity.tables import organizations
from quota.jobs.charging import Times, close_slices
from quota.jobs.tables import attempts, jobs
from quota.ledger import refunds
from quota.ledger import service as ledger
from quota.ledger.rules import Hold, Slice, hour_marks
from quota.ledger.tables import slices, transfers
from quota.schemas.ledger import RefundKind

ACTOR = "hub"
FAULT_REFUND_LIMIT_MS = 4 * 3_600_000
"""Most lost time given back per job after a platform fault (policy; ledger facts)."""
_LOST_WORK = {"node_failed": RefundKind.FAULT, "preempted": RefundKind.PREEMPTED}
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


def _settle_attempt(tx: Tx, row: Row[Any], held: Hold, observed_through_ms: int) -> int:
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
    returned = _refund_lost_work(tx, row, held, parts) if final else 0
    tx.touch("grant", row.grant_id)
    return charged - returned


def correct_after(tx: Tx, row: Row[Any], truth_ms: int) -> None:
    """Refund what was settled after `truth_ms`: that time was never occupied.

    What the platform paid of it, from the start or by an earlier refund, comes back to the platform.
    """
    if row.settled_through_ms is None or row.settled_through_ms <= truth_ms:
        return
    held = ledger.read_hold(tx, row.hold_id)
    returned = 0
    for part in _slices(tx, row):
        for begin, end in _uncorrected(tx, held, part, truth_ms):
            returned += refunds.refund(
                tx,
                held,
                part,
                begin,
                end,
                RefundKind.CORRECTION,
                actor=ACTOR,
                reason="the attempt had ended before",
            )
    if returned:
        count_usage(tx, row.organization_id, -returned)
    tx.touch("grant", row.grant_id)


def _uncorrected(tx: Tx, held: Hold, part: Slice, truth_ms: int) -> list[tuple[int, int]]:
    """The stretches of a slice after `truth_ms` that were not corrected yet, cut where their payer changes."""
    begin = max(part.starts_at_ms, truth_ms)
    if begin >= part.ends_at_ms:
        return []
    known = refunds.given_back(tx, held, part)
    bounds = {bound for entry in known for bound in (entry.starts_at_ms, entry.ends_at_ms)}
    cuts = sorted({begin, part.ends_at_ms} | {bound for bound in bounds if begin < bound < part.ends_at_ms})
    corrected = [entry for entry in known if entry.kind is RefundKind.CORRECTION]
    return [
        (left, right)
        for left, right in itertools.pairwise(cuts)
        if not any(entry.starts_at_ms <= left and right <= entry.ends_at_ms for entry in corrected)
    ]


def extend_lost(tx: Tx, row: Row[Any], ended_ms: int) -> None:
    """A lost attempt's pods are known to have run longer than they were seen: the platform pays that time."""
    held = ledger.read_hold(tx, row.hold_id)
    marks = [row.ended_at_ms, *hour_marks(row.ended_at_ms, ended_ms), ended_ms]
    parts = [Slice(left, right, "platform") for left, right in itertools.pairwise(marks)]
    ledger.settle(tx, held, parts, actor=ACTOR)


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


def _refund_lost_work(tx: Tx, row: Row[Any], held: Hold, fresh: list[Slice]) -> int:
    """Give back the charged time whose work a failed node or a preemption destroyed; the platform pays it.

    Lost is what came after the last checkpoint mark the job declared, else all since the start; after a fault
    at most FAULT_REFUND_LIMIT_MS per job over all its attempts. `fresh` are the slices closed just now.
    """
    kind = _LOST_WORK.get(row.end_reason)
    if kind is None or row.last_started_at_ms is None:
        return 0
    job = tx.connection.execute(select(jobs.c.checkpoint_interval_ms).where(jobs.c.id == row.job_id)).one()
    since = row.last_started_at_ms
    if job.checkpoint_interval_ms:
        since += max(0, row.ended_at_ms - since) // job.checkpoint_interval_ms * job.checkpoint_interval_ms
    if kind is RefundKind.FAULT:
        left = FAULT_REFUND_LIMIT_MS - tx.once(("faults", row.job_id), lambda: _faults_ms(tx, row.job_id))
        since = max(since, row.ended_at_ms - max(0, left))
    returned = 0
    for part in [*_slices(tx, row), *fresh]:
        begin, end = max(part.starts_at_ms, since), min(part.ends_at_ms, row.ended_at_ms)
        if part.payer == "grant" and begin < end:
            reason = f"work lost: {row.end_reason}"
            returned += refunds.refund(tx, held, part, begin, end, kind, actor=ACTOR, reason=reason)
            if kind is RefundKind.FAULT:
                tx.memo[("faults", row.job_id)] += end - begin
    return returned


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


def _slices(tx: Tx, row: Row[Any]) -> list[Slice]:
    rows = tx.connection.execute(
        select(slices.c.starts_at_ms, slices.c.ends_at_ms, slices.c.payer)
        .where(slices.c.job_id == row.job_id, slices.c.attempt == row.attempt)
        .order_by(slices.c.starts_at_ms)
    )
    return [Slice(part.starts_at_ms, part.ends_at_ms, part.payer) for part in rows]


def _faults_ms(tx: Tx, job_id: str) -> int:
    """How much time of a job was given back after platform faults, in milliseconds."""
    rows = tx.connection.execute(
        select(transfers.c.starts_at_ms, transfers.c.ends_at_ms).where(
            transfers.c.job_id == job_id,
            transfers.c.type == "refund",
            transfers.c.refund_kind == RefundKind.FAULT.value,
        )
    )
    return sum(row.ends_at_ms - row.starts_at_ms for row in rows)
