"""Jobs as firms see them: submit, read, cancel."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.errors import BadRequest, GrantCapReached, InsufficientBalance, NeverFits, NoGrant, NotFound
from quota.fleet import service as fleet
from quota.fleet.rules import Rate
from quota.identity import service as identity
from quota.idle.views import warnings_of
from quota.ids import new_id
from quota.jobs import opportunistic, organization_caps, program_caps, views
from quota.jobs.choices import stored_fallbacks, unit_of
from quota.jobs.states import check_move
from quota.jobs.tables import attempts, jobs
from quota.ledger.rules import amount_gpu_us
from quota.prepared import Prepared
from quota.programs import service as programs
from quota.queue import Queue
from quota.schemas.identity import Caller
from quota.schemas.jobs import Job, JobDetail, JobSubmission
from quota.schemas.scheduling import EndReason, JobState, StopReason
from quota.usage import service as usage

ASKED_STOPS = (
    StopReason.IDLE_RECLAIMED,
    StopReason.GPU_FAILED,
    StopReason.REQUEUED,
    StopReason.GRANT_ENDED,
)
"""Stops that the service asks for, each outweighed by the next; the scheduler may record them only then."""

_LOCK = Prepared(select(jobs).where(jobs.c.id == bindparam("job")).with_for_update())
_GIVE_UP_ROOM = Prepared(
    update(attempts)
    .where(attempts.c.stop_for_job.in_(bindparam("jobs", expanding=True)))
    .values(stop_for_job=None)
    .returning(attempts.c.job_id, attempts.c.attempt),
    lists=("jobs",),
)
_NEW_JOB = Prepared.insert(jobs, jobs.c.keys())


def submit(tx: Tx, caller: Caller, body: JobSubmission) -> Job:
    """Queue a job after checking that it could ever run and ever be paid, on one of its classes. Nothing is held yet.

    What keeps it from all of them is told of the class that it prefers.

    Raises UnknownGpuClass, NeverFits, NoGrant, InsufficientBalance, NotFound, BadRequest, JobTooLarge,
    WalltimeTooLong, QueueFull; of an opportunistic job OpportunisticOff and GrantNotActive besides.
    """
    organization_id = _organization_of(caller, body)
    costs = [
        amount_gpu_us(body.walltime_s * 1000, body.pods * body.gpus_per_pod, rate.rate_thousandths)
        for rate in read_rates(tx.connection, body)
    ]
    fund = None
    if body.opportunistic:
        identity.read_organization(tx.connection, organization_id)
        fund = opportunistic.fund_of(tx.connection, organization_id, body, tx.now_ms)
    payable = _payable(tx, organization_id) if fund is None else []
    _check_could_run(tx, organization_id, body, costs, fund)
    program_id = None if fund is None else fund.program_id
    bounds = program_caps.bounds_of(tx.connection, payable, body, program_id)
    organization_caps.check_submission(tx, organization_id, body, bounds)
    spec = {
        "image": body.image,
        "command": list(body.command),
        "environment": body.environment,
        "annotations": body.annotations,
    }
    row = {
        "id": new_id("job"),
        "name": body.name,
        "organization_id": organization_id,
        "grant_id": body.grant_id,
        "program_id": program_id,
        "gpu_class": body.gpu_class,
        "fallback_classes": stored_fallbacks(body.accepted_classes),
        "gpus_per_pod": body.gpus_per_pod,
        "pods": body.pods,
        "topology": body.topology.value,
        "kind": body.kind.value,
        "walltime_ms": body.walltime_s * 1000,
        "grace_ms": body.grace_s * 1000,
        "restartable": body.restartable,
        "checkpoint_interval_ms": body.checkpoint_interval_s and body.checkpoint_interval_s * 1000,
        "spec": json.dumps(spec, sort_keys=True),
        "submitted_by": caller.token_id,
        "submitted_at_ms": tx.now_ms,
        "state": JobState.QUEUED.value,
        "end_reason": None,
        "ended_at_ms": None,
        "attempt": 0,
        "abandonments": 0,
        "not_before_ms": None,
        "cancel_requested_at_ms": None,
    }
    _NEW_JOB.change(tx.connection, row)
    tx.touch("job", str(row["id"]))
    told = {"organization_id": organization_id}
    if fund is not None:
        told |= {"program_id": fund.program_id}
    audit.record(tx, caller, "job.submit", str(row["id"]), detail=told)
    return views.fresh_job(row, body.accepted_classes, max(costs))


def cancel(tx: Tx, caller: Caller, job_id: str, queue: Queue) -> Job:
    """A waiting job ends at once; a placed one is asked to stop. Asking twice is asking once."""
    row = lock_job(tx, job_id)
    if row is None or not identity.sees(caller, row.organization_id):
        raise NotFound("there is no job {job_id}", job_id=job_id)
    state = JobState(row.state)
    if state is not JobState.ENDED and row.cancel_requested_at_ms is None:
        values: dict[str, Any] = {"cancel_requested_at_ms": tx.now_ms}
        if state is JobState.QUEUED:
            check_move(state, JobState.ENDED, job_id)
            values |= {
                "state": JobState.ENDED.value,
                "end_reason": EndReason.CANCELLED.value,
                "ended_at_ms": tx.now_ms,
            }
            give_up_room(tx, [job_id])
        tx.connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))
        tx.touch("job", job_id)
        audit.record(tx, caller, "job.cancel", job_id, detail={"state": state.value})
    return views.job_views(tx.connection, caller, [_job_row(tx.connection, job_id)], queue)[0]


def ask_stop(
    tx: Tx, job_id: str, reason: StopReason, *, actor: str | Caller, why: str, evidence: str = ""
) -> bool:
    """Ask the scheduler to stop a job's open attempt: its grant ended, an operator sent it back, a GPU of its
    failed, or it is idle.

    False when there is nothing to ask for: no attempt is open, its stop is recorded, its job was cancelled, or
    the same or more was asked before. The end of a grant outweighs a requeue, that a GPU's fault, that idleness; a
    cancel all of them.
    """
    assert reason in ASKED_STOPS, f"nobody asks for a stop as {reason}"
    row = lock_job(tx, job_id)
    if row is None or row.state not in (JobState.STARTING.value, JobState.RUNNING.value):
        return False
    this = (attempts.c.job_id == job_id, attempts.c.attempt == row.attempt)
    before = tx.connection.execute(select(attempts.c.stop_asked).where(*this)).scalar_one()
    outweighing = {each.value for each in ASKED_STOPS[ASKED_STOPS.index(reason) :]}
    if row.cancel_requested_at_ms is not None or before in outweighing:
        return False
    tx.connection.execute(update(attempts).where(*this).values(stop_asked=reason.value))
    tx.touch("attempt", f"{job_id}-{row.attempt}")
    detail = {"attempt": row.attempt, "asked": reason.value, "asked_before": before, "evidence": evidence}
    audit.record(tx, actor, "attempt.ask_stop", job_id, reason=why, detail=detail)
    return True


def read_job(connection: Connection, caller: Caller, job_id: str, queue: Queue) -> JobDetail:
    """One job with attempts and what was measured. Another organization's is as unknown as none."""
    row = _job_row(connection, job_id)
    if not identity.sees(caller, row.organization_id):
        raise NotFound("there is no job {job_id}", job_id=job_id)
    job = views.job_views(connection, caller, [row], queue)[0]
    return JobDetail(
        **dict(job),
        attempts=views.attempts_of(connection, job_id),
        measured=usage.measured(connection, job_id),
        idle_warnings=warnings_of(connection, job_id),
    )


def give_up_room(tx: Tx, job_ids: Collection[str]) -> None:
    """These jobs started or ended: the room of the attempts that were stopped for them is kept no longer."""
    for row in _GIVE_UP_ROOM.all(tx.connection, {"jobs": list(job_ids)}):
        tx.touch("attempt", f"{row.job_id}-{row.attempt}")


def lock_job(tx: Tx, job_id: str) -> Row[Any] | None:
    """A job's row, locked until the transaction ends; None if there is none."""
    row: Row[Any] | None = _LOCK.one_or_none(tx.connection, {"job": job_id})
    return row


# --- checks at the door ---------------------------------------------------------------------------


def _organization_of(caller: Caller, body: JobSubmission) -> str:
    if caller.organization_id is not None:
        if body.organization_id not in (None, caller.organization_id):
            raise NotFound(
                "there is no organization {organization_id}",
                field="organization_id",
                organization_id=str(body.organization_id),
            )
        return caller.organization_id
    if body.organization_id is None:
        raise BadRequest("an operator names the organization to submit for", field="organization_id")
    return body.organization_id


def read_rates(connection: Connection, body: JobSubmission) -> list[Rate]:
    """The present rate of every class that the job accepts. Raises UnknownGpuClass."""
    first, *further = body.accepted_classes
    rates = [fleet.read_rate(connection, first)]
    return rates + [fleet.read_rate(connection, name, field="gpu_classes") for name in further]


def _check_could_run(
    tx: Tx, organization_id: str, body: JobSubmission, costs_gpu_us: list[int], fund: Row[Any] | None
) -> None:
    """`fund`: what pays for an opportunistic job; None: the organization's grants do."""
    first: NeverFits | GrantCapReached | InsufficientBalance | None = None
    for gpu_class, cost in zip(body.accepted_classes, costs_gpu_us, strict=True):
        try:
            _check_could_fit(tx.connection, body, gpu_class)
            if fund is None:
                _check_could_pay(tx, organization_id, body, cost)
            else:
                opportunistic.check_could_pay(fund, body, cost, tx.now_ms)
        except (NeverFits, GrantCapReached, InsufficientBalance) as error:
            first = first or error
        else:
            return
    assert first is not None, "a job without a class"
    raise first


def _check_could_fit(connection: Connection, body: JobSubmission, gpu_class: str) -> None:
    together = unit_of(body.topology, body.gpus_per_pod, body.pods)
    pods = fleet.largest_gangs(connection, gpu_class, together.gpus_per_pod, in_rack=together.in_rack)
    if pods >= together.pods:
        return
    if together.is_bound:
        raise NeverFits(
            "{needed_pods} pods of {gpus_per_pod} {gpu_class} never fit together as topology {topology} has it",
            field="topology",
            needed_pods=body.pods,
            gpus_per_pod=body.gpus_per_pod,
            gpu_class=gpu_class,
            topology=body.topology.value,
        )
    field = "gpus_per_pod" if pods == 0 else "pods"
    raise NeverFits(
        "{needed_pods} pods of {gpus_per_pod} {gpu_class} never fit: an empty cluster takes {possible_pods} such pods",
        field=field,
        needed_pods=body.pods,
        gpus_per_pod=body.gpus_per_pod,
        gpu_class=gpu_class,
        possible_pods=pods,
    )


def _check_could_pay(tx: Tx, organization_id: str, body: JobSubmission, cost_gpu_us: int) -> None:
    """Held time is not counted against the job: holds come back."""
    identity.read_organization(tx.connection, organization_id)
    rows = _payable(tx, organization_id)
    if body.grant_id is not None:
        rows = [row for row in rows if row.id == body.grant_id]
        if not rows:
            raise NotFound(
                "there is no grant {grant_id} that could pay", field="grant_id", grant_id=body.grant_id
            )
    if not rows:
        raise NoGrant(
            "{organization_id} has no grant that is running or to come", organization_id=organization_id
        )
    gpus = body.pods * body.gpus_per_pod
    caps = [row.max_gpus for row in rows if row.max_gpus is not None]
    if len(caps) == len(rows) and gpus > max(caps):
        raise GrantCapReached(
            "the job takes {needed_gpus} GPUs, its grants let it have at most {max_gpus} at once",
            needed_gpus=gpus,
            max_gpus=max(caps),
        )
    left = max(row.left_gpu_us for row in rows if row.max_gpus is None or gpus <= row.max_gpus)
    if cost_gpu_us > left:
        raise InsufficientBalance(
            "the job may cost {needed_gpu_us} GPU-us at its limit, the fullest grant has {left_gpu_us} left",
            needed_gpu_us=cost_gpu_us,
            left_gpu_us=left,
        )


def _payable(tx: Tx, organization_id: str) -> list[Row[Any]]:
    key = ("payable", organization_id)
    return tx.once(key, lambda: programs.payable_grants(tx.connection, organization_id, tx.now_ms))


def _job_row(connection: Connection, job_id: str) -> Row[Any]:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFound("there is no job {job_id}", job_id=job_id)
    return row
