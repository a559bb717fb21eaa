"""The numbers that the scheduler follows, as the service states them."""

from __future__ import annotations

from quota.jobs.outlook import CLUSTER_UNSEEN_WALL_S, START_LIMIT_WALL_S
from quota.schemas.scheduling import PolicyObject

ABANDONMENTS_LIMIT = 3
COOLDOWN_WALL_S = 10
"""First pause after an attempt that did not start, doubled each time."""


def policy_object(placement_paused: bool = False) -> PolicyObject:
    """The hub's default policy, and whether operators let anything start now."""
    return PolicyObject(
        placement_paused=placement_paused,
        half_life_ms=7 * 24 * 3_600_000,
        lag_bound_thousandths=100,
        cluster_unseen_wall_s=CLUSTER_UNSEEN_WALL_S,
        start_limit_wall_s=START_LIMIT_WALL_S,
        abandonments_limit=ABANDONMENTS_LIMIT,
    )
