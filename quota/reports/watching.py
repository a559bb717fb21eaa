"""Clusters that fell silent: slices wait for them, and people should know it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, func, select

from quota.audit import service as audit
from quota.clock import instant_text
from quota.db import Database, Tx
from quota.fleet.tables import clusters
from quota.jobs.tables import attempts

BEHIND_WALL_MS = 15 * 60_000
"""How long a watermark may stand still before it is a finding. Wall time, as all that waits for other programs."""


def find_behind(database: Database) -> int:
    """Record a finding for every cluster with unsettled attempts that nobody reported of for 15 minutes.

    One finding per outage, named by the last time that was reported. Answers how many are new.
    """
    clock = database.clock
    before_ms = clock.now_ms() - BEHIND_WALL_MS * clock.speed
    with database.read() as connection:
        behind = connection.execute(
            select(clusters.c.id, clusters.c.observed_through_ms, func.count().label("waiting"))
            .join(attempts, attempts.c.cluster == clusters.c.id)
            .where(
                attempts.c.settled.is_(False),
                attempts.c.claimed_at_ms < before_ms,
                func.coalesce(clusters.c.observed_through_ms, 0) < before_ms,
            )
            .group_by(clusters.c.id, clusters.c.observed_through_ms)
        ).all()
    return sum(database.write_each(behind, _find))


def _find(tx: Tx, row: Row[Any]) -> bool:
    since = "the beginning" if row.observed_through_ms is None else instant_text(row.observed_through_ms)
    detail = f"nothing was reported since {since}; its slices wait"
    numbers = {"since": since, "unsettled_attempts": row.waiting}
    return audit.find(tx, "cluster_behind", row.id, detail, numbers)
