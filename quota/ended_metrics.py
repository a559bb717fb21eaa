"""Series of what has ended: jobs by how, and the time of attempts whose work has to be done again.

They are gauges, although they mostly grow: a job that failed may wait again when a verdict on its GPU comes, and a
lost attempt's end may be known better later. Prometheus would take a counter that goes down for one that began anew.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from sqlalchemy import Connection, func, select

from quota import families
from quota.jobs.tables import WASTED, attempts, jobs
from quota.ledger.tables import holds
from quota.schemas.scheduling import EndReason

_US_PER_SECOND = 1_000_000


def ended_families(connection: Connection) -> Iterable[Metric]:
    """Each reason has a series, so that a 0 is seen as one. Both are read by indexes made for them."""
    ended = {(reason.value,): 0.0 for reason in EndReason}
    rows = connection.execute(
        select(jobs.c.end_reason, func.count().label("many"))
        .where(jobs.c.end_reason.is_not(None))
        .group_by(jobs.c.end_reason)
    )
    ended |= {(row.end_reason,): row.many for row in rows}
    yield families.ENDED_JOBS.gauge_of(ended)
    # milliseconds x GPUs x thousandths: microseconds of the reference GPU
    amount = (
        (attempts.c.ended_at_ms - attempts.c.first_started_at_ms) * holds.c.gpus * holds.c.rate_thousandths
    )
    wasted = {(reason,): 0.0 for reason in WASTED}
    sums = connection.execute(
        select(attempts.c.end_reason, func.sum(amount).label("gpu_us"))
        .join(holds, holds.c.id == attempts.c.hold_id)
        .where(attempts.c.end_reason.in_(WASTED), attempts.c.first_started_at_ms.is_not(None))
        .group_by(attempts.c.end_reason)
    )
    wasted |= {(row.end_reason,): int(row.gpu_us) / _US_PER_SECOND for row in sums}
    yield families.WASTED.gauge_of(wasted)
