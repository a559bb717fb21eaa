"""From an attempt's times to its charge: closes slices, resolves the hold, gives back what later truth takes away."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

from sqlalchemy import Row, bindparam, func, or_, select, update

from quota.clock import HOUR_MS
from quota.db import Tx
from quota.identity.tables import organizations
from quota.jobs.charging import Times, close_slices
from quota.jobs.tables import attempts, jobs
from quota.ledger import holds, refunds, settling
from quota.ledger.rules import Hold, Slice, hour_marks
from quota.ledger.tables import slices, transfers
from quota.prepared import Prepared
from quota.programs import endings
from quota.programs.policies import policy_of
from quota.schemas.ledger import RefundKind

ACTOR = "hub"
_LOST_WORK = {"node_failed": RefundKind.FAULT, "preempted": RefundKind.PREEMPTED}
GPU_VERDICT = "gpu-verdict:"
"""What the detail of an attempt begins with that died of a GPU's fault; its verdict follows."""
HALF_LIFE_MS = 7 * 24 * HOUR_MS

_DUE = Prepared(
    select(attempts)
    .where(
        attempts.c.cluster == bindparam("on_cluster"),
        attempts.c.settled.is_(False),
        or_(
            attempts.c.ended_at_ms <= bindparam("through"),
            func.coalesce(attempts.c.settled_through_ms, attempts.c.first_started_at_ms)
            < bindparam("hour_start"),
        ),
    )
    .order_by(attempts.c.job_id, attempts.c.attempt)
    .with_for_update()
)
_SETTLED = Prepared(
    update(attempts)
    .where(attempts.c.job_id == bindparam("job"), attempts.c.attempt == bindparam("number"))
    .values(settled=bindparam("final"), settled_through_ms=bindparam("through"))
)
_SLICES = Prepared(
    select(slices.c.starts_at_ms, slices.c.ends_at_ms, slices.c.payer)
    .where(slices.c.job_id == bindparam("job"), slices.c.attempt == bindparam("number"))
    .order_by(slices.c.starts_at_ms)
)
_USAGE = Prepared(
    select(organizations.c.decayed_usage_gpu_us, organizations.c.decayed_as_of_ms)
    .where(organizations.c.id == bindparam("organization"))
    .with_for_update(key_share=True)  # a start that relies on the row does not wait for it
)
_COUNT_USAGE = Prepared(
    update(organizations)
    .where(organizations.c.id == bindparam("organization"))
    .values(decayed_usage_gpu_us=bindparam("usage"), decayed_as_of_ms=bindparam("now"))
)
_SPARE_USAGE = Prepared(
    select(
        organizations.c.opportunistic_usage_gpu_us.label("decayed_usage_gpu_us"),
        organizations.c.opportunistic_as_of_ms.label("decayed_as_of_ms"),
    )
    .where(organizations.c.id == bindparam("organization"))
    .with_for_update(key_share=True)
)
_COUNT_SPARE_USAGE = Prepared(
    update(organizations)
    .where(organizations.c.id == bindparam("organization"))
    .values(opportunistic_usage_gpu_us=bindparam("usage"), opportunistic_as_of_ms=bindparam("now"))
)
_CHECKPOINTS = Prepared(select(jobs.c.checkpoint_interval_ms).where(jobs.c.id == bindparam("job")))
_FAULTS = Prepared(
    select(transfers.c.starts_at_ms, transfers.c.ends_at_ms).where(
        transfers.c.job_id == bindparam("job"),
        transfers.c.type == "refund",
        transfers.c.refund_kind == RefundKind.FAULT.value,
    )
)


def settle_cluster(tx: Tx, cluster: str, observed_through_ms: int, evidence: str) -> None:
    """Close slices of every unsettled attempt of a cluster up to its watermark; `evidence` names what moved it."""
    hour_start = observed_through_ms - observed_through_ms % HOUR_MS
    due = {"on_cluster": cluster, "through": observed_through_ms, "hour_start": hour_start}
    rows = _DUE.all(tx.connection, due)
    if not rows:
        return
    held = holds.read_holds(tx, [row.hold_id for row in rows])
    usage: dict[tuple[str, bool], int] = defaultdict(int)
    for row in rows:
        usage[row.organization_id, row.opportunistic] += _settle_attempt(
            tx, row, held[row.hold_id], observed_through_ms, evidence
        )
    for (organization_id, opportunistic), amount in sorted(usage.items()):
        if amount:
            count_usage(tx, organization_id, amount, opportunistic=opportunistic)
    endings.sweep(tx, {row.grant_id for row in rows})


def _settle_attempt(tx: Tx, row: Row[Any], held: Hold, observed_through_ms: int, evidence: str) -> int:
    """Close what can close of one attempt; answers what its grant was charged less what was given back."""
    parts, final = close_slices(_times(row), observed_through_ms)
    if not parts and not final:
        return 0
    charged = settling.settle(tx, held, parts, actor=ACTOR, evidence=evidence) if parts else 0
    if final:
        settled = held.settled_gpu_us + charged
        settling.release(tx, held, settled, actor=ACTOR, reason="attempt ended", evidence=evidence)
    through = parts[-1].ends_at_ms if parts else row.settled_through_ms
    _SETTLED.change(
        tx.connection, {"job": row.job_id, "number": row.attempt, "final": final, "through": through}
    )
    returned = _refund_lost_work(tx, row, held, parts, evidence) if final else 0
    tx.touch("grant", row.grant_id)
    return charged - returned


def correct_after(tx: Tx, row: Row[Any], truth_ms: int, evidence: str) -> None:
    """Refund what was settled after `truth_ms`: that time was never occupied.

    What the platform paid of it, from the start or by an earlier refund, comes back to the platform.
    """
    if row.settled_through_ms is None or row.settled_through_ms <= truth_ms:
        return
    held = holds.read_hold(tx, row.hold_id)
    kind, reason = RefundKind.CORRECTION, "the attempt had ended before"
    returned = 0
    for part in slices_of(tx, row.job_id, row.attempt):
        for begin, end in refunds.refundable(tx, held, part, truth_ms, part.ends_at_ms, kind):
            returned += refunds.refund(
                tx, held, part, begin, end, kind, actor=ACTOR, reason=reason, evidence=evidence
            )
    if returned:
        count_usage(tx, row.organization_id, -returned, opportunistic=row.opportunistic)
        endings.sweep(tx, [row.grant_id])
    tx.touch("grant", row.grant_id)


def extend_lost(tx: Tx, row: Row[Any], ended_ms: int, evidence: str) -> None:
    """A lost attempt's pods are known to have run longer than they were seen: the platform pays that time.

    Slices follow each other: what is not settled yet up to where it was last seen comes first.
    """
    held = holds.read_hold(tx, row.hold_id)
    if not row.settled:
        charged = _settle_attempt(tx, row, held, row.ended_at_ms, evidence)
        if charged:
            count_usage(tx, row.organization_id, charged, opportunistic=row.opportunistic)
        endings.sweep(tx, [row.grant_id])
    marks = [row.ended_at_ms, *hour_marks(row.ended_at_ms, ended_ms), ended_ms]
    parts = [Slice(left, right, "platform") for left, right in itertools.pairwise(marks)]
    settling.settle(tx, held, parts, actor=ACTOR, evidence=evidence)


def refund_fault(tx: Tx, row: Row[Any], evidence: str) -> int:
    """Give back what a settled attempt lost by a fault that is known only now, up to the cap. Answers the amount."""
    assert row.settled, "what is not settled yet is given back when it is"
    returned = _refund_lost_work(tx, row, holds.read_hold(tx, row.hold_id), [], evidence)
    if returned:
        count_usage(tx, row.organization_id, -returned)
        endings.sweep(tx, [row.grant_id])
    tx.touch("grant", row.grant_id)
    return returned


def fault_time_left_ms(tx: Tx, job_id: str, grant_id: str) -> int:
    """How much of a job's time may still be given back after platform faults, over all its attempts."""
    return max(0, fault_cap_ms(tx, grant_id) - faults_ms(tx, job_id))


def fault_cap_ms(tx: Tx, grant_id: str) -> int:
    """Most time given back per job after platform faults, by the policy of the grant that paid."""
    return tx.once(("fault cap", grant_id), lambda: policy_of(tx.connection, grant_id).refund_cap_ms)


def faults_ms(tx: Tx, job_id: str) -> int:
    """How much time of a job was given back after platform faults, this transaction included."""
    return tx.once(("faults", job_id), lambda: _stored_faults_ms(tx, job_id))


def count_faults(tx: Tx, job_id: str, milliseconds: int) -> None:
    """Remember a fault refund that this transaction has not inserted yet."""
    tx.memo[("faults", job_id)] = faults_ms(tx, job_id) + milliseconds


def slices_of(tx: Tx, job_id: str, attempt: int) -> list[Slice]:
    """The slices of an attempt that earlier transactions settled, in order."""
    rows = _SLICES.all(tx.connection, {"job": job_id, "number": attempt})
    return [Slice(part.starts_at_ms, part.ends_at_ms, part.payer) for part in rows]


def count_usage(tx: Tx, organization_id: str, amount_gpu_us: int, *, opportunistic: bool = False) -> None:
    """Add to the organization's decayed usage: value x 2^(-dt / 7 d) + amount. Fair-share only.

    That of its opportunistic jobs is counted by itself: it costs the others no turn.
    """
    stored, count = (_SPARE_USAGE, _COUNT_SPARE_USAGE) if opportunistic else (_USAGE, _COUNT_USAGE)
    row = stored.one(tx.connection, {"organization": organization_id})
    age_ms = max(0, tx.now_ms - row.decayed_as_of_ms)
    usage = row.decayed_usage_gpu_us * 2.0 ** (-age_ms / HALF_LIFE_MS) + amount_gpu_us
    counted = {"organization": organization_id, "usage": max(0.0, usage), "now": tx.now_ms}
    count.change(tx.connection, counted)
    tx.touch("organization", organization_id)


def _refund_lost_work(tx: Tx, row: Row[Any], held: Hold, fresh: list[Slice], evidence: str) -> int:
    """Give back the charged time whose work a failed node or a preemption destroyed; the platform pays it.

    Lost is what came after the last checkpoint mark: as the job declared, else of a preemption as the policy had it
    when the stop was decided, else all since the start. After a fault the latest of it up to the cap of the job.
    `fresh` are the slices closed just now.
    """
    kind = _LOST_WORK.get(row.end_reason)
    if kind is None or row.last_started_at_ms is None:
        return 0
    since, reason = _work_lost_since(tx, row), f"work lost: {row.end_reason}"
    left = row.ended_at_ms - since
    if kind is RefundKind.PREEMPTED:
        rule = "none" if row.stop_checkpoint_ms is None else f"{row.stop_checkpoint_ms} ms"
        evidence = f"stop:{row.job_id}:{row.attempt} checkpoint every {rule}, {evidence}"
    if kind is RefundKind.FAULT:
        if (row.detail or "").startswith(GPU_VERDICT) and not evidence.startswith(GPU_VERDICT):
            evidence = f"{row.detail}, {evidence}"
        left = fault_time_left_ms(tx, row.job_id, row.grant_id)
    returned = 0
    for part in reversed([*slices_of(tx, row.job_id, row.attempt), *fresh]):
        for begin, end in reversed(refunds.refundable(tx, held, part, since, row.ended_at_ms, kind)):
            begin = max(begin, end - left)
            if begin == end:
                continue
            left -= end - begin
            if kind is RefundKind.FAULT:
                count_faults(tx, row.job_id, end - begin)
            returned += refunds.refund(
                tx, held, part, begin, end, kind, actor=ACTOR, reason=reason, evidence=evidence
            )
    return returned


def _work_lost_since(tx: Tx, row: Row[Any]) -> int:
    """The last checkpoint mark before an attempt's end, else its start."""
    start: int = row.last_started_at_ms
    every_ms: int | None = row.stop_checkpoint_ms if row.end_reason == "preempted" else None
    if every_ms is None:
        every_ms = _CHECKPOINTS.one(tx.connection, {"job": row.job_id}).checkpoint_interval_ms
    if not every_ms:
        return start
    ran_ms: int = max(0, row.ended_at_ms - start)
    return start + ran_ms - ran_ms % every_ms


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


def _stored_faults_ms(tx: Tx, job_id: str) -> int:
    rows = _FAULTS.all(tx.connection, {"job": job_id})
    return sum(row.ends_at_ms - row.starts_at_ms for row in rows)
