"""`/metrics` of the quota service: families made from the database's state at scrape time."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select

from quota.audit.tables import findings
from quota.clock import Clock
from quota.db import Database, head
from quota.fleet.tables import clusters, node_capacity
from quota.jobs.tables import jobs
from quota.ledger.tables import accounts, holds
from quota.programs.tables import grants

REFERENCE_SECOND_GPU_US = 1_000_000


class HubCollector(Collector):
    """Reads one moment of the database per scrape; no series outlives what it describes."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        """All families of the service."""
        with self._database.read() as connection:
            yield from _grant_families(connection)
            yield from _job_families(connection)
            yield from _fleet_families(connection, self._clock.now_ms())
            yield GaugeMetricFamily(
                "hub_quota_feed_head", "Sequence of the last transaction in the feed.", head(connection)
            )
            count = connection.execute(select(func.count()).select_from(findings)).scalar_one()
            yield CounterMetricFamily(
                "hub_quota_findings", "Things that should not be, ever recorded.", count
            )

    def describe(self) -> Iterable[Metric]:
        """Nothing: families are made at scrape time."""
        return []


def _grant_families(connection: Connection) -> Iterable[Metric]:
    labels = ["organization", "program", "grant_id"]
    families = {
        "granted": GaugeMetricFamily(
            "hub_quota_grant_limit_gpu_seconds", "Reference GPU seconds granted.", labels=labels
        ),
        "held": GaugeMetricFamily(
            "hub_quota_grant_held_gpu_seconds", "Reference GPU seconds held now.", labels=labels
        ),
        "used": GaugeMetricFamily(
            "hub_quota_grant_used_gpu_seconds", "Reference GPU seconds used.", labels=labels
        ),
        "start": GaugeMetricFamily(
            "hub_quota_grant_start_timestamp_seconds", "Start of the grant's term.", labels=labels
        ),
        "end": GaugeMetricFamily(
            "hub_quota_grant_end_timestamp_seconds", "End of the grant's term.", labels=labels
        ),
    }
    rows = connection.execute(
        select(grants, accounts.c.granted_gpu_us, accounts.c.held_gpu_us, accounts.c.used_gpu_us).join(
            accounts, accounts.c.id == grants.c.account_id
        )
    )
    for row in rows:
        names = [row.organization_id or "", row.program_id, row.id]
        families["granted"].add_metric(names, row.granted_gpu_us / REFERENCE_SECOND_GPU_US)
        families["held"].add_metric(names, row.held_gpu_us / REFERENCE_SECOND_GPU_US)
        families["used"].add_metric(names, row.used_gpu_us / REFERENCE_SECOND_GPU_US)
        families["start"].add_metric(names, row.starts_at_ms / 1000)
        families["end"].add_metric(names, row.ends_at_ms / 1000)
    yield from families.values()
    platform = connection.execute(
        select(accounts.c.used_gpu_us).where(accounts.c.kind == "platform")
    ).scalars()
    yield CounterMetricFamily(
        "hub_quota_platform_gpu_seconds",
        "Reference GPU seconds that no grant pays.",
        sum(platform) / REFERENCE_SECOND_GPU_US,
    )


def _job_families(connection: Connection) -> Iterable[Metric]:
    family = GaugeMetricFamily(
        "hub_quota_jobs", "Jobs by organization and state.", labels=["organization", "state"]
    )
    rows = connection.execute(
        select(jobs.c.organization_id, jobs.c.state, func.count().label("jobs")).group_by(
            jobs.c.organization_id, jobs.c.state
        )
    )
    for row in rows:
        family.add_metric([row.organization_id, row.state], row.jobs)
    yield family
    unresolved = connection.execute(
        select(func.count()).select_from(holds).where(holds.c.resolved.is_(False))
    ).scalar_one()
    yield GaugeMetricFamily(
        "hub_quota_holds_unresolved", "Holds that are neither settled nor released.", unresolved
    )


def _fleet_families(connection: Connection, now_ms: int) -> Iterable[Metric]:
    labels = ["cluster", "gpu_class", "state"]
    family = GaugeMetricFamily(
        "hub_quota_gpus", "GPUs by class: total, used by the hub, used by others.", labels=labels
    )
    rows = connection.execute(
        select(
            node_capacity.c.cluster,
            node_capacity.c.gpu_class,
            func.sum(node_capacity.c.total).label("total"),
            func.sum(node_capacity.c.used).label("used"),
            func.sum(node_capacity.c.foreign_used).label("other"),
        ).group_by(node_capacity.c.cluster, node_capacity.c.gpu_class)
    )
    for row in rows:
        for state, value in (("total", row.total), ("used", row.used), ("foreign", row.other)):
            family.add_metric([row.cluster, row.gpu_class, state], int(value))
    yield family
    lag = GaugeMetricFamily(
        "hub_quota_ledger_lag_seconds", "Business time since the cluster's watermark.", labels=["cluster"]
    )
    for row in connection.execute(select(clusters).where(clusters.c.observed_through_ms.is_not(None))):
        lag.add_metric([row.id], max(0, now_ms - row.observed_through_ms) / 1000)
    yield lag
