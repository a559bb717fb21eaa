"""The numbers that the scheduler follows, as the service states them."""

from __future__ import annotations

from sqlalchemy import Connection

from quota.dispatch.fair_share import read_fair_share
from quota.fleet import service as fleet
from quota.identity.caps import read_caps
from quota.jobs.outlook import CLUSTER_UNSEEN_WALL_S, START_LIMIT_WALL_S
from quota.schemas.scheduling import PolicyObject

ABANDONMENTS_LIMIT = 3
COOLDOWN_WALL_S = 10
"""First pause after an attempt that did not start, doubled each time."""


def policy_object(connection: Connection) -> PolicyObject:
    """The hub's policy, how it shares, and whether operators let anything start now."""
    share = read_fair_share(connection).fair_share
    caps = read_caps(connection).caps
    return PolicyObject(
        placement_paused=fleet.placement_paused(connection),
        half_life_ms=7 * 24 * 3_600_000,
        lag_bound_thousandths=share.lag_bound_thousandths,
        cluster_unseen_wall_s=CLUSTER_UNSEEN_WALL_S,
        start_limit_wall_s=START_LIMIT_WALL_S,
        abandonments_limit=ABANDONMENTS_LIMIT,
        fair_share=share,
        organization_pool_thousandths=caps.organization_pool_thousandths,
        organization_pool_from_gpus=caps.organization_pool_from_gpus,
    )
