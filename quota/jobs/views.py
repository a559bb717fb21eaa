"""Jobs and attempts as their organizations read them: rows turned into wire types."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, select

from quota.fleet import service as fleet
from quota.fleet.rules import Rate
from quota.idle.views import idle_of
from quota.jobs.choices import classes_of
from quota.jobs.tables import attempts, jobs, placements
from quota.ledger.rules import amount_gpu_us
from quota.ledger.tables import accounts, holds, transfers
from quota.queue import Place, Queue
from quota.schemas.forecasts import JobEta
from quota.schemas.identity import Caller, Role
from quota.schemas.idle import JobKind
from quota.schemas.jobs import Attempt, Extension, Job
from quota.schemas.ledger import TransferType
from quota.schemas.scheduling import (
    EndReason,
    JobState,
    PodPlacement,
    StopReason,
    Topology,
    Waiting,
    WaitReason,
)

TOLD_TEXTS = frozenset(
    {"gpu_class", "within", "grant_id", "grant", "program", "until", "starts_at", "ends_at", "what", "code"}
)
"""Texts of a wait reason that a tenant may read; others could name somebody else."""
JOB_TEXTS = frozenset({"job", "ending_job"})
"""Texts that name a job: a tenant reads them of its own jobs."""
OTHERS_NUMBERS = frozenset({"lag_thousandths"})
"""Numbers about the organization that a wait reason names: a tenant reads them of its own."""
SUMS = frozenset({"in_use", "left_gpu_us"})
"""Sums over all who draw on a grant or a programme, unless they are of a party's own share."""
_EXTENSIONS = (
    select(transfers, holds.c.rate_thousandths)
    .join(holds, holds.c.id == transfers.c.hold_id)
    .where(transfers.c.job_id == bindparam("job"), transfers.c.type == TransferType.EXTEND.value)
    .order_by(transfers.c.seq, transfers.c.position)
)
_HAS_GPUS = frozenset({JobState.RUNNING.value, JobState.STOPPING.value})
_PODS = select(placements).where(placements.c.job_id == bindparam("job")).order_by(placements.c.pod_index)


def job_views(connection: Connection, caller: Caller, rows: list[Row[Any]], queue: Queue) -> list[Job]:
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
    accepted = {row.id: classes_of(row) for row in rows}
    named = {name for classes in accepted.values() for name in classes}
    rates = {name: fleet.read_rate(connection, name) for name in named}
    reasons = _reasons(connection, caller, rows, queue)
    idle = idle_of(connection, ((row.id, row.attempt) for row in rows if row.state in _HAS_GPUS))
    return [
        _job(
            row,
            accepted[row.id],
            [rates[name] for name in accepted[row.id]],
            reasons.get(row.id),
            queue.place(row.id),
            queue.eta(row.id),
            charged.get(row.id, 0),
            limits.get(row.id),
        ).model_copy(update={"idle": idle.get(row.id)})
        for row in rows
    ]


def _reasons(
    connection: Connection, caller: Caller, rows: list[Row[Any]], queue: Queue
) -> dict[str, Waiting]:
    """Why each queued job waits. A tenant is told no name of another's jobs or organizations, and no sum over them."""
    reasons = {
        row.id: queue.waiting(row.id) or Waiting(code=WaitReason.NEW)
        for row in rows
        if row.state == JobState.QUEUED.value
    }
    if caller.role is not Role.MEMBER:
        return reasons
    own = _own_accounts(connection, caller, {waiting.numbers.get("grant") for waiting in reasons.values()})
    own |= _own_jobs(
        connection, caller, {waiting.numbers.get(name) for waiting in reasons.values() for name in JOB_TEXTS}
    )
    own |= {str(caller.organization_id)}
    return {
        job_id: waiting.model_copy(update={"numbers": _told(waiting, own)})
        for job_id, waiting in reasons.items()
    }


def _told(waiting: Waiting, own: Collection[object]) -> dict[str, int | str]:
    """Without what others do. `own` are the caller's organization, jobs, grants and its shares' accounts."""
    numbers = waiting.numbers
    # a programme's own account is drawn on by opportunistic jobs of everybody
    of_others = "grant" in numbers and not {numbers["grant"], numbers.get("account")} & set(own)
    summed = of_others or "program" in numbers
    hidden = SUMS if summed else frozenset()
    if numbers.get("organization") not in own:
        hidden |= OTHERS_NUMBERS
    texts = set(TOLD_TEXTS)
    texts |= {name for name in (*JOB_TEXTS, "organization") if numbers.get(name) in own}
    if numbers.get("what") == "gpu_class":
        texts.add("name")
    return {
        name: value
        for name, value in numbers.items()
        if name not in hidden and (isinstance(value, int) or name in texts)
    }


def _own_accounts(connection: Connection, caller: Caller, grant_ids: Collection[object]) -> frozenset[str]:
    """Of these grants the caller's own, and the accounts of its shares in the others."""
    mine = select(accounts.c.kind, accounts.c.id, accounts.c.grant_id).where(
        accounts.c.organization_id == caller.organization_id,
        accounts.c.kind.in_(("grant", "share")),
        accounts.c.grant_id.in_([grant_id for grant_id in grant_ids if grant_id is not None]),
    )
    return frozenset(row.grant_id if row.kind == "grant" else row.id for row in connection.execute(mine))


def _own_jobs(connection: Connection, caller: Caller, job_ids: Collection[object]) -> frozenset[str]:
    """Of these jobs the caller's own."""
    named = [job_id for job_id in job_ids if job_id is not None]
    if not named:
        return frozenset()
    mine = select(jobs.c.id).where(jobs.c.organization_id == caller.organization_id, jobs.c.id.in_(named))
    return frozenset(connection.execute(mine).scalars())


def _job(
    row: Row[Any],
    accepted: tuple[str, ...],
    rates: list[Rate],
    waiting: Waiting | None,
    place: Place | None,
    eta: JobEta | None,
    charged: int,
    limit: int | None,
) -> Job:
    place = None if waiting is None else place
    cost = limit
    if cost is None or (waiting is not None and len(rates) > 1):
        # the next attempt may be on a dearer class than the last one
        dearest = max(rate.rate_thousandths for rate in rates)
        cost = max(limit or 0, amount_gpu_us(row.walltime_ms, row.pods * row.gpus_per_pod, dearest))
    return Job(
        id=row.id,
        name=row.name,
        organization_id=row.organization_id,
        state=JobState(row.state),
        end_reason=None if row.end_reason is None else EndReason(row.end_reason),
        gpu_class=row.gpu_class,
        gpu_classes=accepted,
        gpus_per_pod=row.gpus_per_pod,
        pods=row.pods,
        topology=Topology(row.topology),
        kind=JobKind(row.kind),
        walltime_s=row.walltime_ms // 1000,
        grace_s=row.grace_ms // 1000,
        grant_id=row.grant_id,
        program_id=row.program_id,
        opportunistic=row.program_id is not None,
        restartable=row.restartable,
        submitted_at=row.submitted_at_ms,
        ended_at=row.ended_at_ms,
        cancel_requested_at=row.cancel_requested_at_ms,
        cost_limit_gpu_us=cost,
        cost_limit_gpu_hours=cost,
        attempt=row.attempt,
        waiting=waiting,
        position=None if place is None else place.position,
        queue_length=None if place is None else place.of,
        own_position=None if place is None else place.own_position,
        own_queue_length=None if place is None else place.own_of,
        eta=None if waiting is None else eta,
        charged_gpu_us=charged,
        charged_gpu_hours=charged,
    )


def fresh_job(row: dict[str, Any], accepted: tuple[str, ...], cost: int) -> Job:
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
                "topology",
                "kind",
                "grant_id",
                "program_id",
                "restartable",
            )
        },
        opportunistic=row["program_id"] is not None,
        gpu_classes=accepted,
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


def attempts_of(connection: Connection, job_id: str) -> tuple[Attempt, ...]:
    extensions = _extensions(connection, job_id)
    rows = connection.execute(
        select(attempts, holds.c.amount_gpu_us, holds.c.settled_gpu_us, holds.c.refunded_gpu_us)
        .add_columns(holds.c.released_gpu_us, holds.c.platform_gpu_us, holds.c.resolved)
        .join(holds, holds.c.id == attempts.c.hold_id)
        .where(attempts.c.job_id == job_id)
        .order_by(attempts.c.attempt)
    ).all()
    pods = _placements(connection, job_id)
    return tuple(
        _attempt(row, pods.get(row.attempt, ()), tuple(extensions.get(row.attempt, ()))) for row in rows
    )


def _placements(connection: Connection, job_id: str) -> dict[int, tuple[PodPlacement, ...]]:
    """The placements of a job's attempts, by attempt."""
    found: dict[int, list[PodPlacement]] = {}
    for row in connection.execute(_PODS, {"job": job_id}):
        pod = PodPlacement(index=row.pod_index, node=row.node, gpu_class=row.gpu_class, count=row.gpus)
        found.setdefault(row.attempt, []).append(pod)
    return {attempt: tuple(pods) for attempt, pods in found.items()}


def _extensions(connection: Connection, job_id: str) -> dict[int, list[Extension]]:
    found: dict[int, list[Extension]] = {}
    for row in connection.execute(_EXTENSIONS, {"job": job_id}):
        earlier = found.setdefault(row.attempt, [])
        extension = Extension(
            number=len(earlier) + 1,
            transfer_id=row.id,
            at=row.at_ms,
            actor=row.actor,
            reason=row.reason,
            walltime_s=row.amount_gpu_us // (row.gpus * row.rate_thousandths * 1000),
            held_gpu_us=row.amount_gpu_us,
        )
        earlier.append(extension)
    return found


def _attempt(row: Row[Any], pods: tuple[PodPlacement, ...], extensions: tuple[Extension, ...]) -> Attempt:
    return Attempt(
        attempt=row.attempt,
        state=JobState(row.state),
        cluster=row.cluster,
        pods=pods,
        grant_id=row.grant_id,
        hold_id=row.hold_id,
        walltime_s=row.walltime_ms // 1000,
        extensions=extensions,
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
        detail=row.detail,
        end_reason=None if row.end_reason is None else EndReason(row.end_reason),
        stop_reason=None if row.stop_reason is None else StopReason(row.stop_reason),
        stop_at=row.stop_at_ms,
    )
