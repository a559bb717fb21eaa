"""A decision on a saved state in words and numbers: who is where in the queue and why, and what there is to give."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from quota.schemas.scheduling import BookedRoom, GrantObject, JobObject, NodeObject, Reservation, WaitReason
from quota.schemas.snapshots import SchedulerState
from quota.schemas.values import GpuUs, Instant, Numbers, Reply
from scheduler.explain import explain
from scheduler.snapshots.decision import Decision
from scheduler.translate import booked_room_of, reservation_of


class QueuedJob(Reply):
    """A job that goes on waiting."""

    place: int
    """1 is served first."""
    job_id: str
    organization_id: str
    grant_id: str | None
    gpu_class: str
    gpus_per_pod: int
    pods: int
    walltime_ms: int
    submitted_at: Instant
    code: WaitReason
    numbers: Numbers
    why: str
    """The same as one English line."""


class StartingJob(Reply):
    """A job that would start at this moment."""

    job_id: str
    organization_id: str
    grant_id: str
    cluster: str
    gpu_class: str
    gpus_by_node: dict[str, int]
    cost_gpu_us: GpuUs
    """What would be held for it."""


class StoppedJob(Reply):
    """A job that would be told at this moment that it is stopped for another."""

    job_id: str
    for_job: str
    stop_at: Instant


class RankedGrant(Reply):
    """A grant within its term, and how far it is behind the pace it needs."""

    grant_id: str
    program_id: str
    organizations: tuple[str, ...]
    lag_ms: int
    """Positive is behind."""
    granted_gpu_us: GpuUs
    used_gpu_us: GpuUs
    held_gpu_us: GpuUs
    elapsed_thousandths: int
    """How much of its term is over."""
    waiting_jobs: int
    """Of its organizations."""


class Room(Reply):
    """GPUs of one class in one cluster."""

    cluster: str
    gpu_class: str
    total: int
    used: int
    foreign: int
    free: int
    """On nodes that take jobs."""
    unavailable: int
    """Free, but on nodes that take none."""
    empty_nodes: int
    """Nodes that take jobs and have none."""


class Compared(Reply):
    """What the hub showed last, beside what is decided on the state."""

    cycle: int
    at: Instant
    jobs: int
    """That wait in both."""
    other_order: int
    """Of these, how many stand elsewhere among them."""
    other_reason: int
    """Of these, how many wait for something else, the numbers beside it aside."""


class Explanation(Reply):
    """What would be decided on a saved state, and why."""

    taken_at: Instant
    running_jobs: int
    queue: tuple[QueuedJob, ...]
    starts: tuple[StartingJob, ...]
    stops: tuple[StoppedJob, ...]
    grants: tuple[RankedGrant, ...]
    """Those furthest behind first."""
    reservations: tuple[Reservation, ...]
    booked: tuple[BookedRoom, ...]
    """Where the room of bookings is, and what of it is short."""
    room: tuple[Room, ...]
    shown: Compared | None


def explained(state: SchedulerState, decision: Decision) -> Explanation:
    """Everything about one decision."""
    jobs = {item.job.id: item.job for item in state.items if item.job is not None}
    grants = [item.grant for item in state.items if item.grant is not None]
    nodes = [item.node for item in state.items if item.node is not None]
    queue = _queue(state, decision, jobs)
    return Explanation(
        taken_at=state.taken_at,
        running_jobs=sum(job.attempt > 0 and job.state != "queued" for job in jobs.values()),
        queue=queue,
        starts=tuple(
            StartingJob(
                job_id=start.job_id,
                organization_id=jobs[start.job_id].organization_id,
                grant_id=start.grant_id,
                cluster=start.cluster,
                gpu_class=start.pods[0].gpu_class,
                gpus_by_node=_summed((pod.node, pod.count) for pod in start.pods),
                cost_gpu_us=start.cost_gpu_us,
            )
            for start in decision.plan.starts
        ),
        stops=tuple(
            StoppedJob(job_id=stop.job_id, for_job=stop.for_job, stop_at=stop.stop_at_ms)
            for stop in decision.plan.stops
        ),
        grants=_grants(grants, decision, Counter(job.organization_id for job in queue)),
        reservations=tuple(map(reservation_of, decision.plan.reservations)),
        booked=tuple(map(booked_room_of, decision.plan.booked)),
        room=_room(nodes),
        shown=_compared(state, queue),
    )


def _queue(state: SchedulerState, decision: Decision, jobs: Mapping[str, JobObject]) -> tuple[QueuedJob, ...]:
    told = decision.waiting(state)
    queue = []
    for place, job_id in enumerate(decision.plan.order, 1):
        job, why = jobs[job_id], told[job_id]
        queue.append(
            QueuedJob(
                place=place,
                job_id=job_id,
                organization_id=job.organization_id,
                grant_id=job.grant_id,
                gpu_class=job.gpu_class,
                gpus_per_pod=job.gpus_per_pod,
                pods=job.pods,
                walltime_ms=job.walltime_ms,
                submitted_at=job.submitted_at,
                code=why.code,
                numbers=why.numbers,
                why=explain(why),
            )
        )
    return tuple(queue)


def _grants(
    grants: Iterable[GrantObject], decision: Decision, waiting: Mapping[str, int]
) -> tuple[RankedGrant, ...]:
    ranked = []
    for grant in grants:
        pace = decision.plan.paces.get(grant.id)
        if pace is None:
            continue
        # the last account of each path is the grant's own; of several paths it is the same one
        own = {path.accounts[-1].id: path.accounts[-1] for path in grant.paths if path.accounts}.values()
        parties = tuple(sorted({path.organization_id for path in grant.paths})) or (grant.organization_id,)
        ranked.append(
            RankedGrant(
                grant_id=grant.id,
                program_id=grant.program_id,
                organizations=parties,
                lag_ms=pace.lag_ms,
                granted_gpu_us=sum(account.granted_gpu_us for account in own),
                used_gpu_us=sum(account.used_gpu_us for account in own),
                held_gpu_us=sum(account.held_gpu_us for account in own),
                elapsed_thousandths=(
                    1000 * (decision.now_ms - grant.starts_at) // max(1, grant.ends_at - grant.starts_at)
                ),
                waiting_jobs=sum(waiting.get(party, 0) for party in parties),
            )
        )
    return tuple(sorted(ranked, key=lambda grant: (-grant.lag_ms, grant.grant_id)))


def _room(nodes: Iterable[NodeObject]) -> tuple[Room, ...]:
    counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for node in nodes:
        for each in node.capacities:
            free = max(0, each.total - each.foreign - each.used)
            counts[node.cluster, each.gpu_class].update(
                total=each.total,
                used=each.used,
                foreign=each.foreign,
                free=free if node.schedulable else 0,
                unavailable=0 if node.schedulable else free,
                empty_nodes=int(node.schedulable and free == each.total > 0),
            )
    return tuple(
        Room(
            cluster=cluster,
            gpu_class=gpu_class,
            total=found["total"],
            used=found["used"],
            foreign=found["foreign"],
            free=found["free"],
            unavailable=found["unavailable"],
            empty_nodes=found["empty_nodes"],
        )
        for (cluster, gpu_class), found in sorted(counts.items())
    )


def _compared(state: SchedulerState, queue: Iterable[QueuedJob]) -> Compared | None:
    shown = state.shown
    if shown is None:
        return None
    mine = {job.job_id: job for job in queue}
    theirs = [job_id for job_id in shown.order if job_id in mine and job_id in shown.reasons]
    both = set(theirs)
    here = [job_id for job_id in mine if job_id in both]
    return Compared(
        cycle=shown.cycle,
        at=shown.at,
        jobs=len(here),
        other_order=sum(a != b for a, b in zip(here, theirs, strict=True)),
        other_reason=sum(mine[job_id].code is not shown.reasons[job_id].code for job_id in here),
    )


def _summed(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name, count in pairs:
        counts[name] += count
    return dict(counts)
