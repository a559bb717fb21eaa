"""Decisions of the scheduler: start holds the cost and takes the capacity, stop is irrevocable.

What happens when the process dies: before the commit nothing was decided and the same batch is sent again;
after it the stored reply is answered again. There is nothing in between.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, bindparam, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.dispatch import lease, objects, streams
from quota.dispatch.footing import rely_on
from quota.dispatch.preemptions import check_leaving, check_preemption, taken_to_save_every_ms
from quota.errors import BadRequest, GrantNotActive, HubError, NotFound, WrongState
from quota.fleet import service as fleet
from quota.identity.freezing import check_not_frozen
from quota.jobs import opportunistic, organization_caps
from quota.jobs import service as job_service
from quota.jobs.caps import take_gpus
from quota.jobs.choices import classes_of, unit_of
from quota.jobs.states import check_move
from quota.jobs.tables import attempts, jobs, placements
from quota.ledger import holds
from quota.ledger.rules import amount_gpu_us
from quota.ledger.tables import accounts
from quota.prepared import Prepared
from quota.programs.paths import account_paths, read_trees
from quota.schemas.scheduling import (
    DecisionBatch,
    DecisionItem,
    DecisionReply,
    ItemResult,
    JobState,
    PodPlacement,
    StartItem,
    StopItem,
    StopReason,
    Topology,
)
from quota.schemas.values import built

ACTOR = "scheduler"

_CLAIM = Prepared(
    update(jobs)
    .where(jobs.c.id == bindparam("job"))
    .values(state=JobState.STARTING.value, attempt=bindparam("number"), not_before_ms=None)
)
_LOCK_ACCOUNTS = Prepared(
    select(accounts.c.id)
    .where(accounts.c.id.in_(bindparam("path", expanding=True)))
    .order_by(accounts.c.id)
    .with_for_update(),
    lists=("path",),
)
_THIS = (attempts.c.job_id == bindparam("job"), attempts.c.attempt == bindparam("number"))
_LOCK_ATTEMPT = Prepared(select(attempts).where(*_THIS).with_for_update())
_STOP = Prepared(
    update(attempts)
    .where(*_THIS)
    .values(
        state=JobState.STOPPING.value,
        stop_reason=bindparam("why"),
        stop_at_ms=bindparam("at"),
        stop_grace_ms=bindparam("grace"),
        stop_for_job=bindparam("for_job"),
        stop_checkpoint_ms=bindparam("checkpoint"),
    )
)
_NEW_ATTEMPT = Prepared.insert(
    attempts,
    (
        "job_id",
        "attempt",
        "organization_id",
        "state",
        "cluster",
        "grant_id",
        "hold_id",
        "walltime_ms",
        "grace_ms",
        "claimed_at_ms",
        "lost",
        "capacity_held",
        "settled",
        "opportunistic",
    ),
)
_STOP_JOB = Prepared(update(jobs).where(jobs.c.id == bindparam("job")).values(state=JobState.STOPPING.value))


def decide(tx: Tx, batch: DecisionBatch, body: bytes) -> streams.Answer[DecisionReply]:
    """Carry out a batch: one savepoint per item, one transaction for all, the reply stored beside its number.

    Raises StaleEpoch, StaleSequence.
    """
    lease.check_epoch(tx, batch.epoch)
    stored = streams.replayed(tx, batch.stream, batch.seq, body, DecisionReply)
    if stored is not None:
        return stored
    _lock_accounts(tx, batch)
    stopped = frozenset((item.job_id, item.attempt) for item in batch.items if isinstance(item, StopItem))
    results = tuple(_item(tx, item, stopped) for item in batch.items)
    _release_victims(tx, batch, results)
    seq = tx.publish() or 0
    reply = built(
        DecisionReply,
        stream=batch.stream,
        stream_seq=batch.seq,
        seq=seq,
        results=results,
        objects=objects.load(tx.connection, tx.touched, seq, tx.now_ms),
    )
    return streams.remember(tx, batch.stream, batch.seq, body, reply)


def _release_victims(tx: Tx, batch: DecisionBatch, results: tuple[ItemResult, ...]) -> None:
    """A job that started needs no room kept for it."""
    both = zip(batch.items, results, strict=True)
    started = [item.job_id for item, done in both if item.kind == "start" and done.outcome == "accepted"]
    if started:
        job_service.give_up_room(tx, started)


def _lock_accounts(tx: Tx, batch: DecisionBatch) -> None:
    """All accounts of the batch in id order, so that two batches never wait for each other in a circle."""
    paths = {name for item in batch.items if isinstance(item, StartItem) for name in item.account_path}
    if paths and tx.dialect != "sqlite":
        _LOCK_ACCOUNTS.all(tx.connection, {"path": sorted(paths)})


def _item(tx: Tx, item: DecisionItem, stopped: frozenset[tuple[str, int]]) -> ItemResult:
    try:
        with tx.savepoint():
            return _start(tx, item, stopped) if isinstance(item, StartItem) else _stop(tx, item)
    except HubError as error:
        return ItemResult(
            job_id=item.job_id,
            attempt=item.attempt,
            outcome="refused",
            code=error.code,
            detail=error.detail,
            numbers=error.numbers,
        )


# --- start ----------------------------------------------------------------------------------------


def _start(tx: Tx, item: StartItem, stopped: frozenset[tuple[str, int]]) -> ItemResult:
    job = _startable_job(tx, item)
    # what it is placed on is what it costs, whatever it would have liked best
    gpu_class = item.pods[0].gpu_class
    rate = tx.once(("rate", gpu_class), lambda: fleet.read_rate(tx.connection, gpu_class))
    gpus = job.pods * job.gpus_per_pod
    cost = amount_gpu_us(job.walltime_ms, gpus, rate.rate_thousandths)
    grant = _check_grant(tx, job, item)
    hold_id = holds.hold(
        tx, job.id, item.attempt, item.grant_id, item.account_path, cost, gpus, rate, actor=ACTOR
    )
    take_gpus(tx, item.grant_id, grant.max_gpus, gpus)
    if job.program_id is None:
        organization_caps.take_gpus(tx, job.organization_id, gpus)
    fleet.take_capacity(tx, item.cluster, item.pods)
    row = _attempt_row(tx, job, item, hold_id)
    if (item.job_id, item.attempt) in stopped:
        # the stop in the same batch will look for it
        _NEW_ATTEMPT.change(tx.connection, row)
    else:
        tx.defer(attempts, row)
    for pod in item.pods:
        tx.defer(placements, _placement_row(item, pod))
    _CLAIM.change(tx.connection, {"job": job.id, "number": item.attempt})
    for kind, key in (("job", job.id), ("attempt", f"{job.id}-{item.attempt}"), ("grant", item.grant_id)):
        tx.touch(kind, key)
    detail: dict[str, object] = {
        "attempt": item.attempt,
        "grant_id": item.grant_id,
        "held_gpu_us": str(cost),
        "cluster": item.cluster,
        "nodes": sorted({pod.node for pod in item.pods}),
    }
    audit.record(tx, ACTOR, "attempt.start", job.id, detail=detail)
    return built(ItemResult, job_id=job.id, attempt=item.attempt, outcome="accepted")


def _startable_job(tx: Tx, item: StartItem) -> Row[Any]:
    job = job_service.lock_job(tx, item.job_id)
    if job is None:
        raise NotFound("there is no job {job_id}", job_id=item.job_id)
    check_move(JobState(job.state), JobState.STARTING, job.id)
    if item.attempt != job.attempt + 1:
        raise WrongState(
            "the next attempt of job {job_id} is {expected}, not {attempt}",
            job_id=job.id,
            expected=job.attempt + 1,
            attempt=item.attempt,
        )
    if job.not_before_ms is not None and job.not_before_ms > tx.now_ms:
        raise WrongState(
            "job {job_id} waits for {left_ms} ms more after its last attempt",
            job_id=job.id,
            left_ms=job.not_before_ms - tx.now_ms,
        )
    gpu_class, classes = item.pods[0].gpu_class, classes_of(job)
    asked = [(gpu_class, job.gpus_per_pod)] * job.pods
    placed = [(pod.gpu_class, pod.count) for pod in item.pods]
    indexes = [pod.index for pod in item.pods]
    if gpu_class not in classes or placed != asked or indexes != list(range(job.pods)):
        raise BadRequest(
            "the placement is not {pods} pods of {gpus_per_pod} {gpu_class} in order",
            pods=job.pods,
            gpus_per_pod=job.gpus_per_pod,
            gpu_class="/".join(classes),
        )
    _check_topology(tx, job, item)
    rely_on(tx, item.cluster, gpu_class, job.organization_id)
    check_not_frozen(tx, job.organization_id)
    return job


def _check_topology(tx: Tx, job: Row[Any], item: StartItem) -> None:
    """A gang that has to be on one node or in one rack is, as the nodes are now."""
    unit = unit_of(Topology(job.topology), job.gpus_per_pod, job.pods)
    names = {pod.node for pod in item.pods}
    if not unit.is_bound or len(names) == 1:
        return
    racks = fleet.racks_of(tx.connection, item.cluster, names) if unit.in_rack else {None}
    if len(racks) > 1 or None in racks:
        raise WrongState(
            "the nodes of job {job_id} lie not as its topology {topology} has it",
            job_id=job.id,
            topology=job.topology,
        )


def _check_grant(tx: Tx, job: Row[Any], item: StartItem) -> Row[Any]:
    tree: list[Row[Any]] = tx.once(
        ("grant", item.grant_id),
        lambda: read_trees(tx.connection, [item.grant_id])[item.grant_id],
    )
    if not tree or job.grant_id not in (None, item.grant_id):
        raise NotFound("job {job_id} may not draw on grant {grant_id}", job_id=job.id, grant_id=item.grant_id)
    grant = tree[0]
    opportunistic.check_start(tx, job, item.grant_id, grant)
    if not grant.starts_at_ms <= tx.now_ms or tx.now_ms + job.walltime_ms > grant.ends_at_ms:
        fits_ms = max(0, grant.ends_at_ms - tx.now_ms)
        raise GrantNotActive(
            "the grant ends before the job would; a walltime of {fitting_walltime_ms} ms fits",
            fitting_walltime_ms=fits_ms,
            starts_in_ms=max(0, grant.starts_at_ms - tx.now_ms),
        )
    paths = tx.once(("paths", item.grant_id), lambda: _open_paths(tree))
    organization_id = job.organization_id if job.program_id is None else ""
    if (organization_id, item.account_path) not in paths:
        raise NotFound(
            "grant {grant_id} has no open account path {path}",
            grant_id=item.grant_id,
            path="/".join(item.account_path),
        )
    return grant


def _open_paths(tree: list[Row[Any]]) -> set[tuple[str, tuple[str, ...]]]:
    paths = account_paths(tree[0].of_organization or "", tree)
    return {(path.organization_id, tuple(account.id for account in path.accounts)) for path in paths}


def _placement_row(item: StartItem, pod: PodPlacement) -> dict[str, Any]:
    return {
        "job_id": item.job_id,
        "attempt": item.attempt,
        "pod_index": pod.index,
        "cluster": item.cluster,
        "node": pod.node,
        "gpu_class": pod.gpu_class,
        "gpus": pod.count,
    }


def _attempt_row(tx: Tx, job: Row[Any], item: StartItem, hold_id: str) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "attempt": item.attempt,
        "organization_id": job.organization_id,
        "state": JobState.STARTING.value,
        "cluster": item.cluster,
        "grant_id": item.grant_id,
        "hold_id": hold_id,
        "walltime_ms": job.walltime_ms,
        "grace_ms": job.grace_ms,
        "claimed_at_ms": tx.now_ms,
        "lost": False,
        "capacity_held": True,
        "settled": False,
        "opportunistic": job.program_id is not None,
    }


# --- stop -----------------------------------------------------------------------------------------


def _stop(tx: Tx, item: StopItem) -> ItemResult:
    job = job_service.lock_job(tx, item.job_id)
    this = {"job": item.job_id, "number": item.attempt}
    row = _LOCK_ATTEMPT.one_or_none(tx.connection, this)
    if job is None or row is None:
        raise NotFound(
            "there is no attempt {attempt} of job {job_id}", attempt=item.attempt, job_id=item.job_id
        )
    state = JobState(row.state)
    if state in (JobState.STOPPING, JobState.ENDED):
        return ItemResult(job_id=job.id, attempt=item.attempt, outcome="unchanged", code=state.value)
    check_move(state, JobState.STOPPING, job.id)
    _check_stop(row, item)
    detail: dict[str, object] = {"attempt": item.attempt, "stop": item.reason.value, "for_job": item.for_job}
    checkpoint_ms = None
    if item.reason is StopReason.PREEMPTED:
        (check_leaving if row.opportunistic else check_preemption)(tx, job, row, item.for_job)
        checkpoint_ms = taken_to_save_every_ms(tx, job)
        detail["checkpoint_ms"] = checkpoint_ms
    stop: dict[str, Any] = {
        "why": item.reason.value,
        # what is settled already is never taken back by a stop
        "at": max(item.stop_at, row.settled_through_ms or 0, row.claimed_at_ms),
        "grace": min(item.grace_ms, row.grace_ms),
        "for_job": item.for_job,
        "checkpoint": checkpoint_ms,
    }
    _STOP.change(tx.connection, this | stop)
    _STOP_JOB.change(tx.connection, {"job": job.id})
    tx.touch("job", job.id)
    tx.touch("attempt", f"{job.id}-{item.attempt}")
    audit.record(tx, ACTOR, "attempt.stop", job.id, detail=detail)
    return ItemResult(job_id=job.id, attempt=item.attempt, outcome="accepted")


def _check_stop(row: Row[Any], item: StopItem) -> None:
    """A stop that only the service may want must have been asked for; a time limit must be the present one."""
    if item.reason in job_service.ASKED_STOPS and row.stop_asked != item.reason.value:
        raise WrongState(
            "nobody asked to stop attempt {attempt} of {job_id} as {reason}",
            attempt=item.attempt,
            job_id=item.job_id,
            reason=item.reason.value,
        )
    if item.reason is StopReason.TIME_LIMIT and row.last_started_at_ms is not None:
        ends_ms = row.last_started_at_ms + row.walltime_ms
        # decided before the scheduler saw an extension
        if item.stop_at < ends_ms:
            raise WrongState(
                "the time of attempt {attempt} of {job_id} ends at {ends_at_ms}, not at {stop_at_ms}",
                attempt=item.attempt,
                job_id=item.job_id,
                ends_at_ms=ends_ms,
                stop_at_ms=item.stop_at,
            )
