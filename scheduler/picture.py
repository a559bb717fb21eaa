"""Counts what the leader knows for the metrics: queue by organization, reasons, GPUs by state. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import assert_never

from quota.schemas.scheduling import (
    AttemptObject,
    BookedRoom,
    BookingObject,
    GrantObject,
    JobObject,
    NodeObject,
    Waiting,
    WaitReason,
)
from scheduler.metrics import Picture, QueueKey, Shares

DAY_MS = 86_400_000
THOUSAND = 1000
"""The rate of the reference GPU."""
NOBODY = Shares()


def picture_of(
    waiting: Iterable[tuple[JobObject, Waiting]],
    nodes: Iterable[NodeObject],
    seen_ms: Mapping[str, int],
    booked: Iterable[tuple[BookingObject, BookedRoom]] = (),
    shares: Shares = NOBODY,
) -> Picture:
    """The hub at this moment."""
    jobs: Counter[QueueKey] = Counter()
    gpus_requested: Counter[QueueKey] = Counter()
    reasons: Counter[str] = Counter()
    oldest_ms: dict[QueueKey, int] = {}
    for job, why in waiting:
        key = QueueKey(job.organization_id, status_of(why.code))
        jobs[key] += 1
        gpus_requested[key] += job.pods * job.gpus_per_pod
        reasons[why.code.value] += 1
        oldest_ms[key] = min(job.submitted_at, oldest_ms.get(key, job.submitted_at))
    return Picture(
        jobs, gpus_requested, oldest_ms, reasons, _gpus(nodes), _booked_gpus(booked), dict(seen_ms), shares
    )


def shares_of(
    grants: Iterable[GrantObject],
    attempts: Iterable[AttemptObject],
    rates: Mapping[str, int],
    now_ms: int,
) -> Shares:
    """Who keeps how much, and what his grants' pace is. `rates` by GPU class, in thousandths.

    A consortium's share and use are those of the organization that holds the grant.
    """
    known = {grant.id: grant for grant in grants}
    pace: Counter[str] = Counter()
    for grant in known.values():
        if grant.starts_at <= now_ms < grant.ends_at:
            own = {path.accounts[-1].id: path.accounts[-1] for path in grant.paths if path.accounts}
            granted = sum(account.granted_gpu_us for account in own.values())
            # in whole GPU-microseconds a day, so that shares do not depend on the order
            pace[grant.organization_id] += granted * DAY_MS // (grant.ends_at - grant.starts_at)
    gpus: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for attempt in attempts:
        if not attempt.capacity_held:
            continue
        payer = known.get(attempt.grant_id)
        for pod in attempt.pods:
            gpus[attempt.organization_id] += pod.count
            if payer is not None:
                kept[payer.organization_id] += pod.count * rates.get(pod.gpu_class, THOUSAND)
    organizations = {grant.organization_id for grant in known.values()}
    return Shares(dict(gpus), _parts(pace, organizations), _parts(kept, organizations))


def _parts(amounts: Mapping[str, int], organizations: Iterable[str]) -> dict[str, float]:
    whole = sum(amounts.values())
    return {one: amounts.get(one, 0) / whole if whole else 0.0 for one in organizations}


def status_of(code: WaitReason) -> str:
    """What kind of thing a job waits for: room, a moment, or a person."""
    match code:
        case (
            WaitReason.NEW
            | WaitReason.NO_FREE_GPU
            | WaitReason.NO_NODE_FITS
            | WaitReason.ROOM_RESERVED
            | WaitReason.RESERVED
            | WaitReason.BOOKED
            | WaitReason.BEHIND_IN_ORDER
        ):
            return "active"
        case WaitReason.COOLDOWN | WaitReason.START_REFUSED | WaitReason.GRANT_NOT_STARTED:
            return "held"
        case (
            WaitReason.GRANT_EXHAUSTED
            | WaitReason.GRANT_ENDS_FIRST
            | WaitReason.NO_GRANT
            | WaitReason.CLUSTER_UNSEEN
            | WaitReason.NODES_UNAVAILABLE
            | WaitReason.ORGANIZATION_FROZEN
            | WaitReason.PLACEMENT_PAUSED
            | WaitReason.GRANT_CAP
            | WaitReason.ORGANIZATION_CAP
        ):
            return "blocked"
    assert_never(code)


def _booked_gpus(booked: Iterable[tuple[BookingObject, BookedRoom]]) -> dict[tuple[str, str], int]:
    gpus: Counter[tuple[str, str]] = Counter()
    for booking, room in booked:
        if not room.released:
            gpus[booking.gpu_class, "kept"] += booking.pods * booking.gpus_per_pod - room.short_gpus
            gpus[booking.gpu_class, "short"] += room.short_gpus
    return dict(gpus)


def _gpus(nodes: Iterable[NodeObject]) -> dict[tuple[str, str], int]:
    gpus: Counter[tuple[str, str]] = Counter()
    for node in nodes:
        for capacity in node.capacities:
            free = max(0, capacity.total - capacity.foreign - capacity.used)
            gpus[capacity.gpu_class, "allocated"] += capacity.used
            gpus[capacity.gpu_class, "foreign"] += capacity.foreign
            gpus[capacity.gpu_class, "free"] += free if node.schedulable else 0
            gpus[capacity.gpu_class, "quarantined"] += 0 if node.schedulable else free
    return dict(gpus)
