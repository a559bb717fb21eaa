"""`/metrics` of the quota service: families made from the database's state at scrape time."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select

from quota import families
from quota.audit.tables import findings, seals
from quota.clock import Clock
from quota.db import Database, head
from quota.dispatch.tables import scheduler_lease
from quota.ended_metrics import ended_families
from quota.fleet.gpu_metrics import gpu_families
from quota.fleet.tables import clusters, node_capacity, nodes
from quota.holding_metrics import holding_families
from quota.idle.tables import found as idle_found
from quota.idle.tables import warnings as idle_warnings
from quota.jobs.tables import attempts, jobs
from quota.ledger.tables import accounts, holds
from quota.programs.tables import grants
from quota.schemas.idle import IdleState

REFERENCE_SECOND_GPU_US = 1_000_000
UNENDED = ("queued", "starting", "running", "stopping")
KNOWN_FINDINGS = (
    "balance_differs_from_transfers",
    "capacity_lowered",
    "cluster_behind",
    "day_not_settled",
    "evidence_beyond_run",
    "evidence_of_unknown_attempt",
    "freed_before_its_end",
    "gpu_claimed_twice",
    "gpu_differs",
    "gpu_only_observed",
    "gpu_quarantine_withheld",
    "gpu_unknown",
    "gpu_vanished",
    "idle_not_measured",
    "impossible_time",
    "ledger_differs_from_cluster",
    "name_conflict",
    "object_vanished",
    "statement_changed",
    "unknown_attempt",
    "unknown_object",
    "unobserved_time",
    "verdict_of_unknown_attempt",
    "verdict_on_unknown_gpu",
)
"""They have a series before there is any: Prometheus sees no increase in one that appears with a first finding."""


class HubCollector(Collector):
    """Reads one moment of the database per scrape; no series outlives what it describes."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        """All families of the service."""
        yield families.BUILD.info({"version": version("gpuhub")})
        with self._database.read() as connection:
            now_ms = self._clock.now_ms()
            yield families.BUSINESS_TIME.gauge(now_ms / 1000)
            yield from _grant_families(connection)
            yield from _job_families(connection)
            yield from _fleet_families(connection, now_ms)
            yield from gpu_families(connection, now_ms, self._clock.speed)
            yield from _idle_families(connection)
            yield from ended_families(connection)
            yield from _service_families(connection)
            yield from holding_families(connection)

    def describe(self) -> Iterable[Metric]:
        """Nothing: families are made at scrape time."""
        return []


def _grant_families(connection: Connection) -> Iterable[Metric]:
    granted, held, used = (
        families.GRANT_LIMIT.gauge(),
        families.GRANT_HELD.gauge(),
        families.GRANT_USED.gauge(),
    )
    start, end, lag = (
        families.GRANT_START.gauge(),
        families.GRANT_END.gauge(),
        families.GRANT_PACE_LAG.gauge(),
    )
    rows = connection.execute(
        select(grants, accounts.c.granted_gpu_us, accounts.c.held_gpu_us, accounts.c.used_gpu_us).join(
            accounts, accounts.c.id == grants.c.account_id
        )
    )
    for row in rows:
        names = [row.organization_id or "", row.program_id, row.id]
        granted.add_metric(names, row.granted_gpu_us / REFERENCE_SECOND_GPU_US)
        held.add_metric(names, row.held_gpu_us / REFERENCE_SECOND_GPU_US)
        used.add_metric(names, row.used_gpu_us / REFERENCE_SECOND_GPU_US)
        start.add_metric(names, row.starts_at_ms / 1000)
        end.add_metric(names, row.ends_at_ms / 1000)
        if row.pace_lag_ms is not None:
            lag.add_metric(names, row.pace_lag_ms / 1000)
    yield from (granted, held, used, start, end, lag)
    platform = connection.execute(
        select(accounts.c.used_gpu_us).where(accounts.c.kind == "platform")
    ).scalars()
    yield families.PLATFORM.counter(sum(platform) / REFERENCE_SECOND_GPU_US)


def _job_families(connection: Connection) -> Iterable[Metric]:
    family = families.JOBS.gauge()
    # those that have ended are most of the table, and the index by state spares them
    rows = connection.execute(
        select(jobs.c.organization_id, jobs.c.state, func.count().label("jobs"))
        .where(jobs.c.state.in_(UNENDED))
        .group_by(jobs.c.organization_id, jobs.c.state)
    )
    for row in rows:
        family.add_metric([row.organization_id, row.state], row.jobs)
    yield family
    oldest = families.QUEUE_OLDEST.gauge()
    queued = connection.execute(
        select(jobs.c.organization_id, func.min(jobs.c.submitted_at_ms).label("oldest_ms"))
        .where(jobs.c.state == "queued")
        .group_by(jobs.c.organization_id)
    )
    for row in queued:
        oldest.add_metric([row.organization_id], row.oldest_ms / 1000)
    yield oldest
    unresolved = connection.execute(
        select(func.count()).select_from(holds).where(holds.c.resolved.is_(False))
    ).scalar_one()
    yield families.HOLDS_UNRESOLVED.gauge(unresolved)
    unsettled = families.ATTEMPTS_UNSETTLED.gauge()
    waiting = connection.execute(
        select(attempts.c.cluster, func.count().label("attempts"))
        .where(attempts.c.settled.is_(False))
        .group_by(attempts.c.cluster)
    )
    for row in waiting:
        unsettled.add_metric([row.cluster], row.attempts)
    yield unsettled


def _fleet_families(connection: Connection, now_ms: int) -> Iterable[Metric]:
    family = families.GPUS.gauge()
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
    count = func.count().label("nodes")
    held = (nodes.c.cluster, nodes.c.schedulable, nodes.c.cordoned, nodes.c.held_back)
    counted: dict[tuple[str, ...], float] = {}
    for row in connection.execute(select(*held, count).group_by(*held)):
        state = "open" if row.schedulable else "closed"
        state = "cordoned" if row.cordoned else "held_back" if row.held_back else state
        counted[row.cluster, state] = counted.get((row.cluster, state), 0) + row.nodes
    yield families.NODES.gauge_of(counted)
    lag = families.LEDGER_LAG.gauge()
    for row in connection.execute(select(clusters).where(clusters.c.observed_through_ms.is_not(None))):
        lag.add_metric([row.id], max(0, now_ms - row.observed_through_ms) / 1000)
    yield lag


def _service_families(connection: Connection) -> Iterable[Metric]:
    yield families.FEED_HEAD.gauge(head(connection))
    expires_ms = connection.execute(select(scheduler_lease.c.expires_wall_ms)).scalar()
    if expires_ms is not None:
        yield families.LEASE_EXPIRES.gauge(expires_ms / 1000)
    sealed_ms = connection.execute(select(seals.c.at_ms).order_by(seals.c.number.desc()).limit(1)).scalar()
    if sealed_ms is not None:
        yield families.SEAL.gauge(sealed_ms / 1000)
    found = connection.execute(
        select(findings.c.code, func.count().label("findings")).group_by(findings.c.code)
    )
    counted = dict.fromkeys(KNOWN_FINDINGS, 0) | {row.code: int(row.findings) for row in found}
    yield families.FINDINGS.counter_of({(code,): count for code, count in counted.items()})


def _idle_families(connection: Connection) -> Iterable[Metric]:
    gpus = dict.fromkeys((state.value for state in IdleState if state is not IdleState.ACTIVE), 0)
    for row in connection.execute(select(idle_found.c.state, idle_found.c.gpus, idle_found.c.idle_gpus)):
        if row.state in gpus:
            gpus[row.state] += row.idle_gpus if row.state == IdleState.PARTLY_IDLE else row.gpus
    yield families.IDLE_GPUS.gauge_of({(state,): count for state, count in gpus.items()})
    given = connection.execute(
        select(idle_warnings.c.step, func.count().label("many")).group_by(idle_warnings.c.step)
    )
    warned = {1: 0, 2: 0} | {row.step: row.many for row in given}
    yield families.IDLE_WARNINGS.counter_of({(str(step),): count for step, count in warned.items()})
    asked = select(func.count()).select_from(attempts).where(attempts.c.stop_asked == "idle_reclaimed")
    yield families.IDLE_STOPS.counter(connection.execute(asked).scalar_one())
