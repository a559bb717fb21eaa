"""Jobs as firms see them: submit, read, list, cancel."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.errors import BadRequest, InsufficientBalance, NeverFits, NoGrant, NotFound
from quota.fleet import service as fleet
from quota.fleet.rules import Rate
from quota.identity import service as identity
from quota.ids import new_id
from quota.jobs.states import check_move
from quota.jobs.tables import attempts, jobs, placements
from quota.ledger.rules import amount_gpu_us
from quota.ledger.tables import holds
from quota.programs import service as programs
from quota.queue import Queue
from quota.schemas.identity import Caller, Role
from quota.schemas.jobs import Attempt, Job, JobDetail, JobPage, JobSubmission
from quota.schemas.scheduling import EndReason, JobState, PodPlacement, StopReason, Waiting, WaitReason
from quota.usage import service as usage

TOLD_TEXTS = frozenset({"gpu_class", "grant_id", "grant", "until", "starts_at", "ends_at"})
"""Texts of a wait reason that a tenant may read; others could name somebody else. Numbers are all told."""

_LOCK = select(jobs).where(jobs.c.id == bindparam("job")).with_for_update()
_GIVE_UP_ROOM = (
    update(attempts)
    .where(attempts.c.stop_for_job.in_(bindparam("jobs", expanding=True)))
    .values(stop_for_job=None)
    .returning(attempts.c.job_id, attempts.c.attempt)
)
_NEW_JOB = insert(jobs)
_PODS = select(placements).where(placements.c.job_id == bindparam("job")).order_by(placements.c.pod_index)


def submit(tx: Tx, caller: Caller, body: JobSubmission) -> Job:
    """Queue a job after checking that it could ever run and ever be paid. Nothing is held yet.

    Raises UnknownGpuClass, NeverFits, NoGrant, InsufficientBalance, NotFound, BadRequest.
    """
    organization_id = _organization_of(caller, body)
    rate = fleet.read_rate(tx.connection, body.gpu_class)
    _check_could_fit(tx.connection, body)
    cost = amount_gpu_us(body.walltime_s * 1000, body.pods * body.gpus_per_pod, rate.rate_thousandths)
    _check_could_pay(tx, organization_id, body, cost)
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
        "gpu_class": body.gpu_class,
        "gpus_per_pod": body.gpus_per_pod,
        "pods": body.pods,
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
    tx.connection.execute(_NEW_JOB, row)
    tx.touch("job", str(row["id"]))
    audit.record(
        tx, caller.token_id, "job.submit", str(row["id"]), detail={"organization_id": organization_id}
    )
    return _fresh_job(row, rate, cost)


def cancel(tx: Tx, caller: Caller, job_id: str, queue: Queue) -> Job:
    """A waiting job ends at once; a placed one is asked to stop. Asking twice is asking once."""
    row = lock_job(tx, job_id)
    if row is None or not identity.sees(caller, row.organization_id):
        raise NotFound(f"there is no job {job_id}")
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
        audit.record(tx, caller.token_id, "job.cancel", job_id, detail={"state": state.value})
    return _views(tx.connection, caller, [_job_row(tx.connection, job_id)], queue)[0]


def read_job(connection: Connection, caller: Caller, job_id: str, queue: Queue) -> JobDetail:
    """One job with attempts and what was measured. Another organization's is as unknown as none."""
    row = _job_row(connection, job_id)
    if not identity.sees(caller, row.organization_id):
        raise NotFound(f"there is no job {job_id}")
    job = _views(connection, caller, [row], queue)[0]
    return JobDetail(
        **dict(job), attempts=_attempts(connection, job_id), measured=usage.measured(connection, job_id)
    )


def list_jobs(
    connection: Connection,
    caller: Caller,
    queue: Queue,
    *,
    state: JobState | None,
    organization_id: str | None,
    before: str | None,
    limit: int,
) -> JobPage:
    """Jobs, newest first; a member sees its organization's."""
    statement = select(jobs).order_by(jobs.c.id.desc()).limit(limit + 1)
    if caller.role is Role.MEMBER:
        statement = statement.where(jobs.c.organization_id == caller.organization_id)
    if organization_id is not None:
        statement = statement.where(jobs.c.organization_id == organization_id)
    if state is not None:
        statement = statement.where(jobs.c.state == state.value)
    if before is not None:
        statement = statement.where(jobs.c.id < before)
    rows = connection.execute(statement).all()
    items = tuple(_views(connection, caller, list(rows[:limit]), queue))
    return JobPage(items=items, next=items[-1].id if len(rows) > limit else None)


def give_up_room(tx: Tx, job_ids: Collection[str]) -> None:
    """These jobs started or ended: the room of the attempts that were stopped for them is kept no longer."""
    for row in tx.connection.execute(_GIVE_UP_ROOM, {"jobs": list(job_ids)}).all():
        tx.touch("attempt", f"{row.job_id}-{row.attempt}")


def lock_job(tx: Tx, job_id: str) -> Row[Any] | None:
    """A job's row, locked until the transaction ends; None if there is none."""
    return tx.connection.execute(_LOCK, {"job": job_id}).one_or_none()


# --- checks at the door ---------------------------------------------------------------------------


def _organization_of(caller: Caller, body: JobSubmission) -> str:
    if caller.organization_id is not None:
        if body.organization_id not in (None, caller.organization_id):
            raise NotFound(f"there is no organization {body.organization_id}", field="organization_id")
        return caller.organization_id
    if body.organization_id is None:
        raise BadRequest("an operator names the organization to submit for", field="organization_id")
    return body.organization_id


def _check_could_fit(connection: Connection, body: JobSubmission) -> None:
    pods = fleet.largest_gangs(connection, body.gpu_class, body.gpus_per_pod)
    if pods >= body.pods:
        return
    field = "gpus_per_pod" if pods == 0 else "pods"
    raise NeverFits(
        f"{body.pods} pods of {body.gpus_per_pod} {body.gpu_class} never fit: an empty cluster takes {pods} such pods",
        field=field,
        needed_pods=body.pods,
        possible_pods=pods,
    )


def _check_could_pay(tx: Tx, organization_id: str, body: JobSubmission, cost_gpu_us: int) -> None:
    """Held time is not counted against the job: holds come back."""
    identity.read_organization(tx.connection, organization_id)
    rows = programs.payable_grants(tx.connection, organization_id, tx.now_ms)
    if body.grant_id is not None:
        rows = [row for row in rows if row.id == body.grant_id]
        if not rows:
            raise NotFound(f"there is no grant {body.grant_id} that could pay", field="grant_id")
    if not rows:
        raise NoGrant(f"{organization_id} has no grant that is running or to come")
    left = max(row.granted_gpu_us + row.overdraft_gpu_us - row.used_gpu_us for row in rows)
    if cost_gpu_us > left:
        raise InsufficientBalance(
            f"the job may cost {cost_gpu_us} GPU-us at its limit, the fullest grant has {left} left",
            needed_gpu_us=cost_gpu_us,
            left_gpu_us=left,
        )


# --- views ----------------------------------------------------------------------------------------


def _job_row(connection: Connection, job_id: str) -> Row[Any]:
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return row


def _views(connection: Connection, caller: Caller, rows: list[Row[Any]], queue: Queue) -> list[Job]:
    charged: dict[str, int] = {}
    limits: dict[str, int] = {}
    if rows:
        ids = [row.id for row in rows]
        statement = (
            select(
                holds.c.job_id,
                func.sum(holds.c.settled_gpu_us - holds.c.refunded_gpu_us).label("charged"),
                func.max(holds.c.amount_gpu_us).label("amount"),
            )
            .where(holds.c.job_id.in_(ids))
            .group_by(holds.c.job_id)
        )
        for total in connection.execute(statement):
            charged[total.job_id] = int(total.charged)
            limits[total.job_id] = int(total.amount)
    rates = {name: fleet.read_rate(connection, name) for name in {row.gpu_class for row in rows}}
    return [
        _job(
            row,
            rates[row.gpu_class],
            _why(caller, row, queue),
            queue.position(row.id),
            charged.get(row.id, 0),
            limits.get(row.id),
        )
        for row in rows
    ]


def _why(caller: Caller, row: Row[Any], queue: Queue) -> Waiting | None:
    """Why a queued job waits. A tenant is not told the names of another's jobs or organizations."""
    if row.state != JobState.QUEUED.value:
        return None
    waiting = queue.waiting(row.id) or Waiting(code=WaitReason.NEW)
    if caller.role is not Role.MEMBER:
        return waiting
    told = {
        name: value for name, value in waiting.numbers.items() if isinstance(value, int) or name in TOLD_TEXTS
    }
    return waiting.model_copy(update={"numbers": told})


def _job(
    row: Row[Any], rate: Rate, waiting: Waiting | None, position: int | None, charged: int, limit: int | None
) -> Job:
    cost = limit
    if cost is None:
        cost = amount_gpu_us(row.walltime_ms, row.pods * row.gpus_per_pod, rate.rate_thousandths)
    return Job(
        id=row.id,
        name=row.name,
        organization_id=row.organization_id,
        state=JobState(row.state),
        end_reason=None if row.end_reason is None else EndReason(row.end_reason),
        gpu_class=row.gpu_class,
        gpus_per_pod=row.gpus_per_pod,
        pods=row.pods,
        walltime_s=row.walltime_ms // 1000,
        grace_s=row.grace_ms // 1000,
        grant_id=row.grant_id,
        restartable=row.restartable,
        submitted_at=row.submitted_at_ms,
        ended_at=row.ended_at_ms,
        cancel_requested_at=row.cancel_requested_at_ms,
        cost_limit_gpu_us=cost,
        cost_limit_gpu_hours=cost,
        attempt=row.attempt,
        waiting=waiting,
        position=None if waiting is None else position,
        charged_gpu_us=charged,
        charged_gpu_hours=charged,
    )


def _fresh_job(row: dict[str, Any], rate: Rate, cost: int) -> Job:
    return Job(
        **{
            name: row[name]
            for name in (
                "id",
                "name",
                "organization_id",
                "gpu_class",
                "gpus_per_pod",
                "pods",
                "grant_id",
                "restartable",
            )
        },
        state=JobState.QUEUED,
        end_reason=None,
        walltime_s=row["walltime_ms"] // 1000,
        grace_s=row["grace_ms"] // 1000,
        submitted_at=row["submitted_at_ms"],
        ended_at=None,
        cancel_requested_at=None,
        cost_limit_gpu_us=cost,
        cost_limit_gpu_hours=cost,
        attempt=0,
        waiting=Waiting(code=WaitReason.NEW),
        position=None,
        charged_gpu_us=0,
        charged_gpu_hours=0,
    )


def _attempts(connection: Connection, job_id: str) -> tuple[Attempt, ...]:
    rows = connection.execute(
        select(attempts, holds.c.amount_gpu_us, holds.c.settled_gpu_us, holds.c.refunded_gpu_us)
        .add_columns(holds.c.released_gpu_us, holds.c.platform_gpu_us, holds.c.resolved)
        .join(holds, holds.c.id == attempts.c.hold_id)
        .where(attempts.c.job_id == job_id)
        .order_by(attempts.c.attempt)
    ).all()
    pods = read_placements(connection, job_id)
    return tuple(_attempt(row, pods.get(row.attempt, ())) for row in rows)


def read_placements(connection: Connection, job_id: str) -> dict[int, tuple[PodPlacement, ...]]:
    """The placements of a job's attempts, by attempt."""
    found: dict[int, list[PodPlacement]] = {}
    for row in connection.execute(_PODS, {"job": job_id}):
        pod = PodPlacement(index=row.pod_index, node=row.node, gpu_class=row.gpu_class, count=row.gpus)
        found.setdefault(row.attempt, []).append(pod)
    return {attempt: tuple(pods) for attempt, pods in found.items()}


def _attempt(row: Row[Any], pods: tuple[PodPlacement, ...]) -> Attempt:
    return Attempt(
        attempt=row.attempt,
        state=JobState(row.state),
        cluster=row.cluster,
        pods=pods,
        grant_id=row.grant_id,
        hold_id=row.hold_id,
        held_gpu_us=row.amount_gpu_us,
        settled_gpu_us=row.settled_gpu_us,
        refunded_gpu_us=row.refunded_gpu_us,
        released_gpu_us=row.released_gpu_us,
        platform_gpu_us=row.platform_gpu_us,
        hold_resolved=row.resolved,
        claimed_at=row.claimed_at_ms,
        first_started_at=row.first_started_at_ms,
        last_started_at=row.last_started_at_ms,
        ended_at=row.ended_at_ms,
        exit_code=row.exit_code,
        end_reason=None if row.end_reason is None else EndReason(row.end_reason),
        stop_reason=None if row.stop_reason is None else StopReason(row.stop_reason),
        stop_at=row.stop_at_ms,
    )
