"""Between the words of the quota service and of the core. Pure; those of a cluster are in `specs`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

from quota.clock import Clock
from quota.schemas import fair_share
from quota.schemas import scheduling as wire
from scheduler.core import model
from scheduler.core.policy import HOUR_MS, Entitlement, Lane, Policy, Preemption, Ranking

# --- from quota to the core -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moment:
    """What only this process knows while it translates."""

    held_back: Mapping[str, int] = field(default_factory=dict)
    """Until when a job refused at its start waits."""
    spared: Collection[str] = ()
    """Jobs that quota just refused to stop for others."""
    last_seen: Mapping[str, int] = field(default_factory=dict)
    """When each cluster last answered."""
    start_limit_ms: int = 0
    """How long a start may take."""


def changes_of(items: Iterable[wire.FeedItem], clock: Clock, moment: Moment) -> list[model.Change]:
    """Feed items as changes of the core's state."""
    changes: list[model.Change] = []
    for item in items:
        change = _tombstone(item) if item.gone else _change_of(item, clock, moment)
        if change is not None:
            changes.append(change)
    return changes


def _tombstone(item: wire.FeedItem) -> model.Tombstone | None:
    match item.kind:
        case "policy":
            return None  # the last one stays in force
        case "job" | "attempt" | "grant" | "organization" | "gpu_class" | "node" | "cluster" | "booking":
            return model.Tombstone(model.Kind(item.kind), item.id)
    assert_never(item.kind)


def _change_of(item: wire.FeedItem, clock: Clock, moment: Moment) -> model.Change | None:
    match item:
        case wire.FeedItem(kind="job", job=wire.JobObject() as job):
            return job_of(job, moment.held_back.get(job.id), spared=job.id in moment.spared)
        case wire.FeedItem(kind="attempt", attempt=wire.AttemptObject() as attempt):
            return _attempt_of(attempt, moment.start_limit_ms)
        case wire.FeedItem(kind="grant", grant=wire.GrantObject() as grant):
            return _grant_of(grant)
        case wire.FeedItem(kind="organization", organization=wire.OrganizationObject() as organization):
            return model.Organization(
                organization.id,
                organization.frozen,
                organization.decayed_usage_gpu_us,
                organization.decayed_as_of,
                organization.max_gpus,
                organization.pool_thousandths,
                organization.opportunistic_usage_gpu_us,
                organization.opportunistic_as_of,
            )
        case wire.FeedItem(kind="gpu_class", gpu_class=wire.GpuClassObject() as gpu_class):
            return model.GpuClass(gpu_class.id, gpu_class.rate_thousandths, gpu_class.paused)
        case wire.FeedItem(kind="node", node=wire.NodeObject() as node):
            return _node_of(node)
        case wire.FeedItem(kind="cluster", cluster=wire.ClusterObject() as cluster):
            return cluster_of(cluster, moment.last_seen)
        case wire.FeedItem(kind="policy", policy=wire.PolicyObject() as policy):
            return policy_of(policy, clock)
        case wire.FeedItem(kind="booking", booking=wire.BookingObject() as booking):
            return _booking_of(booking)
    return None


def job_of(job: wire.JobObject, held_back_until_ms: int | None, *, spared: bool = False) -> model.Job:
    """A job; one whose start quota refused waits a moment longer than it says itself.

    One whose stop quota refused (`spared`) is not chosen again at once.
    """
    not_before_ms = job.not_before
    if held_back_until_ms is not None:
        not_before_ms = max(held_back_until_ms, not_before_ms or 0)
    return model.Job(
        id=job.id,
        organization_id=job.organization_id,
        grant_id=job.grant_id,
        gpu_class=job.gpu_class,
        gpus_per_pod=job.gpus_per_pod,
        pods=job.pods,
        walltime_ms=job.walltime_ms,
        submitted_at_ms=job.submitted_at,
        state=model.JobState(job.state),
        attempt=job.attempt,
        not_before_ms=not_before_ms,
        cancel_requested=job.cancel_requested_at is not None,
        restartable=job.restartable and not spared,
        preempted_at_ms=job.preempted_at,
        fallbacks=tuple(name for name in job.gpu_classes if name != job.gpu_class),
        topology=model.Topology(job.topology),
        program_id=job.program_id or "",
    )


def cluster_of(cluster: wire.ClusterObject, last_seen: Mapping[str, int]) -> model.Cluster:
    """A cluster; one that this process never saw was last seen at the beginning of time."""
    return model.Cluster(cluster.id, last_seen.get(cluster.id, 0), cluster.paused)


def policy_of(policy: wire.PolicyObject, clock: Clock) -> Policy:
    """The core's numbers; wall seconds become business milliseconds."""
    share = policy.fair_share
    return Policy(
        half_life_ms=policy.half_life_ms,
        lag_bound_share=share.lag_bound_thousandths / 1000,
        idle_lag_share=share.idle_lag_thousandths / 1000,
        floor_share=share.floor_thousandths / 1000,
        floor_lag_ms=share.floor_lag_ms,
        hold_share=share.hold_share_thousandths / 1000,
        cluster_unseen_ms=policy.cluster_unseen_wall_s * 1000 * clock.speed,
        placement_paused=policy.placement_paused,
        ranking=Ranking(share.ranking),
        gang_first_gpus=share.gang_first_gpus,
        larger_gangs_first=share.larger_gangs_first,
        reservations=share.reservations,
        reservations_per_organization=share.reservations_per_organization,
        reservation_gpus=share.reservation_gpus,
        promise_gpus=share.promise_gpus,
        promises_per_organization=share.promises_per_organization,
        lane=None if share.lane is None else _lane_of(share.lane),
        preemption=None if share.preemption is None else Preemption(**dict(share.preemption)),
        booking_lead_ms=share.booking_lead_ms,
        booking_over_ms=share.booking_over_ms,
        booking_unused_ms=share.booking_unused_ms,
        opportunistic_notice_ms=share.opportunistic_notice_ms,
        entitlements=tuple(
            Entitlement(id, each.weight_thousandths, each.reserved_thousandths)
            for id, each in sorted(share.programs.items())
        ),
        organization_weights=tuple(sorted(share.organization_weights.items())),
        organization_pool_thousandths=policy.organization_pool_thousandths,
        organization_pool_from_gpus=policy.organization_pool_from_gpus,
    )


def _lane_of(lane: fair_share.Lane) -> Lane:
    return Lane(
        gpus=lane.gpus,
        area_gpu_ms=lane.area_gpu_h * HOUR_MS,
        tapers=tuple((taper.walltime_ms, taper.spare_thousandths / 1000) for taper in lane.tapers),
        delivery_weight=lane.delivery_weight_thousandths / 1000,
    )


def reservations_of(kept: Iterable[wire.Reservation]) -> model.Reservations:
    """What room was promised, in the order in which it was."""
    return model.Reservations(
        tuple(
            model.Reservation(
                job_id=each.job_id,
                cluster=each.cluster,
                gpu_class=each.gpu_class,
                starts_at_ms=each.starts_at,
                gpus_by_node=each.gpus_by_node,
                made_at_ms=each.made_at,
                number=each.number,
            )
            for each in kept
        )
    )


def booked_of(kept: Iterable[wire.BookedRoom]) -> model.BookedRooms:
    """Where the room of bookings was."""
    return model.BookedRooms(
        tuple(
            model.BookedRoom(
                booking_id=each.booking_id,
                cluster=each.cluster,
                gpus_by_node=each.gpus_by_node,
                short_gpus=each.short_gpus,
                used=each.used,
                released=each.released,
            )
            for each in kept
        )
    )


def _booking_of(booking: wire.BookingObject) -> model.Booking:
    return model.Booking(
        id=booking.id,
        organization_id=booking.organization_id,
        gpu_class=booking.gpu_class,
        gpus_per_pod=booking.gpus_per_pod,
        pods=booking.pods,
        from_ms=booking.starts_at,
        until_ms=booking.ends_at,
        grant_id=booking.grant_id,
        cluster=booking.cluster,
        hold=booking.hold,
    )


def _attempt_of(attempt: wire.AttemptObject, start_limit_ms: int) -> model.Attempt:
    return model.Attempt(
        job_id=attempt.job_id,
        attempt=attempt.attempt,
        grant_id=attempt.grant_id,
        state=model.JobState(attempt.state),
        cluster=attempt.cluster,
        pods=tuple(model.PodPlacement(pod.node, pod.gpu_class, pod.count) for pod in attempt.pods),
        cost_gpu_us=attempt.cost_gpu_us,
        claimed_at_ms=attempt.claimed_at,
        stop=None if attempt.stop is None else model.Stop(attempt.stop.reason, attempt.stop.for_job),
        capacity_held=attempt.capacity_held,
        started_at_ms=attempt.last_started_at,
        ends_at_ms=_ends_at_ms(attempt, start_limit_ms),
        walltime_ms=attempt.walltime_ms,
        organization_id=attempt.organization_id,
        opportunistic=attempt.opportunistic,
    )


def _ends_at_ms(attempt: wire.AttemptObject, start_limit_ms: int) -> int | None:
    """When it ends at the latest; None for one that is lost and still keeps its GPUs."""
    if attempt.ended_at is not None:
        return None
    if attempt.stop is not None:
        return attempt.stop.stop_at + attempt.stop.grace_ms
    if attempt.last_started_at is not None:
        return attempt.last_started_at + attempt.walltime_ms
    return attempt.claimed_at + start_limit_ms + attempt.walltime_ms


def _grant_of(grant: wire.GrantObject) -> model.Grant | model.Fund:
    """A grant; one of no organization is what its programme pays opportunistic jobs from."""
    if not grant.organization_id:
        return model.Fund(
            id=grant.id,
            program_id=grant.program_id,
            account=_path_of(grant.paths[0]).accounts[-1],
            starts_at_ms=grant.starts_at,
            ends_at_ms=grant.ends_at,
            pays=grant.pays,
            max_gpus=grant.max_gpus,
        )
    return model.Grant(
        id=grant.id,
        program_id=grant.program_id,
        organization_id=grant.organization_id,
        starts_at_ms=grant.starts_at,
        ends_at_ms=grant.ends_at,
        paths=tuple(_path_of(path) for path in grant.paths),
        pace=None if grant.pace is None else _pace(grant.pace),
        max_gpus=grant.max_gpus,
    )


def _path_of(path: wire.AccountPath) -> model.Path:
    accounts = tuple(
        model.Account(
            account.id,
            account.granted_gpu_us,
            account.held_gpu_us,
            account.used_gpu_us,
            account.overdraft_gpu_us,
        )
        for account in path.accounts
    )
    return model.Path(accounts, path.organization_id)


def _node_of(node: wire.NodeObject) -> model.Node:
    return model.Node(
        node.cluster,
        node.node,
        node.schedulable,
        {
            capacity.gpu_class: model.Capacity(capacity.total, capacity.foreign, capacity.used)
            for capacity in node.capacities
        },
        node.rack or "",
    )


# --- from the core to quota -----------------------------------------------------------------------


def start_item(start: model.Start) -> wire.StartItem:
    """A start of the plan as a decision."""
    return wire.StartItem(
        job_id=start.job_id,
        attempt=start.attempt,
        grant_id=start.grant_id,
        account_path=start.account_path,
        cluster=start.cluster,
        pods=tuple(
            wire.PodPlacement(index=index, node=pod.node, gpu_class=pod.gpu_class, count=pod.count)
            for index, pod in enumerate(start.pods)
        ),
    )


def preempt_item(preempt: model.Preempt, attempt: wire.AttemptObject) -> wire.StopItem:
    """A preemption of the plan as a decision: the attempt has its whole grace."""
    return wire.StopItem(
        job_id=preempt.job_id,
        attempt=preempt.attempt,
        reason=wire.StopReason.PREEMPTED,
        stop_at=preempt.stop_at_ms,
        grace_ms=attempt.grace_ms,
        for_job=preempt.for_job,
    )


def reservation_of(reservation: model.Reservation) -> wire.Reservation:
    """Promised room as quota keeps it."""
    return wire.Reservation(
        job_id=reservation.job_id,
        cluster=reservation.cluster,
        gpu_class=reservation.gpu_class,
        starts_at=reservation.starts_at_ms,
        gpus_by_node=dict(reservation.gpus_by_node),
        made_at=reservation.made_at_ms,
        number=reservation.number,
    )


def booked_room_of(room: model.BookedRoom) -> wire.BookedRoom:
    """The room of a booking as quota keeps it."""
    return wire.BookedRoom(
        booking_id=room.booking_id,
        cluster=room.cluster,
        gpus_by_node=dict(room.gpus_by_node),
        short_gpus=room.short_gpus,
        used=room.used,
        released=room.released,
    )


def waiting_of(reason: model.Reason) -> wire.Waiting:
    """Why a job waits, for the people who ask."""
    return wire.Waiting(code=wire.WaitReason(reason.code), numbers=dict(reason.numbers))


def _pace(pace: wire.Pace) -> model.Pace:
    return model.Pace(pace.lag_ms, pace.as_of, pace.spent_gpu_us)


def pace_of(pace: model.Pace) -> wire.Pace:
    """A grant's pace as quota keeps it."""
    return wire.Pace(lag_ms=pace.lag_ms, as_of=pace.as_of_ms, spent_gpu_us=pace.spent_gpu_us)
