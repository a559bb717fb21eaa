"""A policy of the core as the hub's document of how it shares: the inverse of `translate.policy_of`."""

from __future__ import annotations

from dataclasses import asdict

from quota.schemas.fair_share import FairShare, Lane, Preemption, Ranking, Taper
from scheduler.core import policy as core
from scheduler.core.policy import HOUR_MS


def fair_share_of(policy: core.Policy) -> FairShare:
    """How a hub shares that follows this policy. Shares are rounded to thousandths."""
    return FairShare(
        ranking=Ranking(policy.ranking.value),
        lag_bound_thousandths=round(policy.lag_bound_share * 1000),
        idle_lag_thousandths=round(policy.idle_lag_share * 1000),
        floor_thousandths=round(policy.floor_share * 1000),
        floor_lag_ms=policy.floor_lag_ms,
        hold_share_thousandths=round(policy.hold_share * 1000),
        gang_first_gpus=policy.gang_first_gpus,
        larger_gangs_first=policy.larger_gangs_first,
        reservations=policy.reservations,
        reservations_per_organization=policy.reservations_per_organization,
        reservation_gpus=policy.reservation_gpus,
        promise_gpus=policy.promise_gpus,
        promises_per_organization=policy.promises_per_organization,
        lane=None if policy.lane is None else _lane_of(policy.lane),
        preemption=None if policy.preemption is None else Preemption(**asdict(policy.preemption)),
        booking_lead_ms=policy.booking_lead_ms,
        booking_over_ms=policy.booking_over_ms,
        booking_unused_ms=policy.booking_unused_ms,
        opportunistic_notice_ms=policy.opportunistic_notice_ms,
    )


def _lane_of(lane: core.Lane) -> Lane:
    return Lane(
        gpus=lane.gpus,
        area_gpu_h=lane.area_gpu_ms // HOUR_MS,
        tapers=tuple(
            Taper(walltime_ms=walltime_ms, spare_thousandths=round(spare * 1000))
            for walltime_ms, spare in lane.tapers
        ),
        delivery_weight_thousandths=round(lane.delivery_weight * 1000),
    )
