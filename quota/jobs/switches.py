"""Operators' switches that touch jobs: freeze, pause, cordon, requeue. Each answers whom it touches.

Run in `Database.preview` they answer what they would do; the reply is the same but for `dry_run`. A switch that
stands as asked writes nothing: no row, no audit, nothing in the feed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match
from quota.errors import NotFound, WrongState
from quota.fleet import switches as placement
from quota.fleet import views
from quota.identity import service as identity
from quota.identity.freezing import set_frozen
from quota.jobs import reach
from quota.jobs import service as job_service
from quota.jobs.tables import attempts, jobs
from quota.ledger.rules import amount_gpu_us
from quota.ledger.tables import holds
from quota.queue import Queue
from quota.schemas.fleet import NodeChange
from quota.schemas.identity import Caller
from quota.schemas.scheduling import JobState, StopReason
from quota.schemas.switches import (
    SHOWN_IDS,
    Affected,
    FreezeChange,
    FreezeReply,
    LostWork,
    NodeReply,
    PlacementChange,
    PlacementKind,
    PlacementReply,
    PlacementSwitch,
    Reach,
    RequeueReply,
    RequeueRequest,
)

_CHUNK = 500


def freeze(tx: Tx, caller: Caller, organization_id: str, body: FreezeChange) -> FreezeReply:
    """Let an organization start nothing more, or go on; with `stop_running` cancel what it runs. Raises NotFound."""
    if body.stop_running:
        _lock_placed(tx, organization_id)
    changed = set_frozen(tx, organization_id, body.frozen)
    # after the lock: a start that passed the check just before is seen, and cancelled too
    stopped = _cancel_placed(tx, caller, organization_id, body.reason) if body.stop_running else []
    if changed or stopped:
        audit.record(
            tx,
            caller,
            "organization.freeze" if body.frozen else "organization.unfreeze",
            organization_id,
            reason=body.reason,
            detail={"cancelled_jobs": len(stopped)},
            before={"frozen": body.frozen != changed},
            after={"frozen": body.frozen},
        )
    return FreezeReply(
        dry_run=False,
        changed=changed or bool(stopped),
        organization=identity.read_organization(tx.connection, organization_id),
        reach=reach.of_organization(tx.connection, organization_id),
        stopped=Affected(count=len(stopped), ids=tuple(stopped[:SHOWN_IDS])),
    )


def pause(tx: Tx, caller: Caller, kind: PlacementKind, key: str, body: PlacementChange) -> PlacementReply:
    """Let nothing start on the hub, a cluster or a GPU class, or let it go on; what runs runs on. Raises NotFound."""
    changed = placement.set_paused(tx, caller, kind, key, body.paused, body.reason)
    switch = PlacementSwitch(kind=kind, id=key, paused=body.paused)
    if changed and body.paused:
        said = {"since": tx.now_ms, "by": caller.token_id, "reason": body.reason}
        switch = switch.model_copy(update=said)
    elif body.paused:
        switch = placement.read_switch(tx.connection, kind, key)
    return PlacementReply(dry_run=False, changed=changed, placement=switch, reach=_reach_of(tx, kind, key))


def cordon(
    tx: Tx, caller: Caller, cluster: str, node: str, body: NodeChange, if_match: str | None = None
) -> NodeReply:
    """Keep new jobs off a node, or let them on again; what runs there runs on.

    Raises NotFound, and PreconditionFailed unless `if_match` names the node's version.
    """
    check_match(if_match, views.read_node(tx.connection, cluster, node, lock=True).etag)
    changed = placement.set_cordoned(tx, caller, cluster, node, body.cordoned, body.reason)
    stands = views.read_node(tx.connection, cluster, node)
    found = reach.of_node(tx.connection, cluster, node)
    return NodeReply(**dict(stands), dry_run=False, changed=changed, reach=found)


def requeue(tx: Tx, caller: Caller, job_id: str, body: RequeueRequest, queue: Queue) -> RequeueReply:
    """Ask the scheduler to stop a placed job's attempt; the job then waits again. Raises NotFound, WrongState.

    What the attempt used stays charged: an operator's decision is no fault that the platform pays for.
    """
    job = job_service.lock_job(tx, job_id)
    if job is None:
        raise NotFound("there is no job {job_id}", job_id=job_id)
    if body.attempt is not None and body.attempt != job.attempt:
        raise WrongState(
            "attempt {attempt} of job {job_id} is not the present one, {present} is",
            attempt=body.attempt,
            job_id=job_id,
            present=job.attempt,
        )
    attempt = _placed_attempt(tx, job)
    changed = job_service.ask_stop(tx, job_id, StopReason.REQUEUED, actor=caller, why=body.reason)
    charged = _charged_until_now(tx, attempt)
    return RequeueReply(
        dry_run=False,
        changed=changed,
        job=job_service.read_job(tx.connection, caller, job_id, queue),
        attempt=attempt.attempt,
        lost=_lost_work(tx, job, attempt),
        charged_gpu_us=charged,
        charged_gpu_hours=charged,
    )


def _reach_of(tx: Tx, kind: PlacementKind, key: str) -> Reach:
    match kind:
        case "hub":
            return reach.of_hub(tx.connection)
        case "cluster":
            return reach.of_cluster(tx.connection, key)
        case "gpu_class":
            return reach.of_class(tx.connection, key)


def _lock_placed(tx: Tx, organization_id: str) -> Sequence[Row[Any, Any]]:
    """The organization's jobs that start or run and were not cancelled, in order of id.

    Jobs before their organization, as reports, starts and extensions lock them: else they wait in a circle.
    """
    return tx.connection.execute(
        select(jobs.c.id, jobs.c.state)
        .where(
            jobs.c.organization_id == organization_id,
            jobs.c.state.in_((JobState.STARTING.value, JobState.RUNNING.value)),
            jobs.c.cancel_requested_at_ms.is_(None),
        )
        .order_by(jobs.c.id)
        .with_for_update()
    ).all()


def _cancel_placed(tx: Tx, caller: Caller, organization_id: str, reason: str) -> list[str]:
    """Cancel the organization's jobs that start or run, as `cancel` does each. Answers their ids in order."""
    placed = _lock_placed(tx, organization_id)
    for start in range(0, len(placed), _CHUNK):
        part = [row.id for row in placed[start : start + _CHUNK]]
        tx.connection.execute(
            update(jobs).where(jobs.c.id.in_(part)).values(cancel_requested_at_ms=tx.now_ms)
        )
    for row in placed:
        tx.touch("job", row.id)
        audit.record(tx, caller, "job.cancel", row.id, reason=reason, detail={"state": row.state})
    return [row.id for row in placed]


def _placed_attempt(tx: Tx, job: Row[Any]) -> Row[Any]:
    """The attempt that a requeue would stop. Raises WrongState when there is none, or when its job ends with it."""
    if job.state not in (JobState.STARTING.value, JobState.RUNNING.value):
        raise WrongState(
            "job {job_id} is {state}; only one that starts or runs can be sent back",
            job_id=job.id,
            state=job.state,
        )
    if job.cancel_requested_at_ms is not None:
        raise WrongState("job {job_id} was cancelled; it ends", job_id=job.id)
    row = tx.connection.execute(
        select(attempts, holds.c.gpus, holds.c.rate_thousandths)
        .join(holds, holds.c.id == attempts.c.hold_id)
        .where(attempts.c.job_id == job.id, attempts.c.attempt == job.attempt)
    ).one()
    if row.stop_asked == StopReason.GRANT_ENDED.value:
        raise WrongState("the grant of job {job_id} has ended; it ends", job_id=job.id)
    return row


def _lost_work(tx: Tx, job: Row[Any], attempt: Row[Any]) -> LostWork:
    if attempt.last_started_at_ms is None:
        return LostWork(since=None, milliseconds=0, gpus=attempt.gpus, gpu_us=0, gpu_hours=0)
    since, every = attempt.last_started_at_ms, job.checkpoint_interval_ms
    if every:
        since += max(0, tx.now_ms - since) // every * every
    lost_ms = max(0, tx.now_ms - since)
    amount = amount_gpu_us(lost_ms, attempt.gpus, attempt.rate_thousandths)
    return LostWork(since=since, milliseconds=lost_ms, gpus=attempt.gpus, gpu_us=amount, gpu_hours=amount)


def _charged_until_now(tx: Tx, attempt: Row[Any]) -> int:
    """What the attempt comes to if it ended now: its slices may be settled later."""
    if attempt.last_started_at_ms is None:
        return 0
    ran_ms = min(max(0, tx.now_ms - attempt.last_started_at_ms), attempt.walltime_ms)
    return amount_gpu_us(ran_ms, attempt.gpus, attempt.rate_thousandths)
