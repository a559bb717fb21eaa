"""Series of who holds which GPUs where, and of the last day that was compared; each ends with what it describes."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.metrics_core import Metric
from sqlalchemy import Connection, and_, func, select

from quota import families
from quota.clock import day_start_ms
from quota.fleet.tables import node_capacity, nodes
from quota.jobs.tables import attempts, placements
from quota.programs.tables import grants
from quota.reports.tables import reconciliations


def holding_families(connection: Connection) -> Iterable[Metric]:
    """All of them at one moment of the database."""
    yield _attempts(connection)
    yield from _nodes(connection)
    yield from _compared(connection)


def _attempts(connection: Connection) -> Metric:
    of_attempt = (attempts.c.job_id, attempts.c.attempt)
    rows = connection.execute(
        select(
            *of_attempt,
            attempts.c.organization_id,
            grants.c.program_id,
            attempts.c.grant_id,
            placements.c.gpu_class,
            func.sum(placements.c.gpus).label("gpus"),
        )
        .join(grants, grants.c.id == attempts.c.grant_id)
        .join(
            placements,
            and_(placements.c.job_id == attempts.c.job_id, placements.c.attempt == attempts.c.attempt),
        )
        .where(attempts.c.capacity_held)
        .group_by(
            *of_attempt,
            attempts.c.organization_id,
            grants.c.program_id,
            attempts.c.grant_id,
            placements.c.gpu_class,
        )
    )
    made = families.ATTEMPT_GPUS.gauge()
    for row in rows:
        labels = (
            row.job_id,
            str(row.attempt),
            row.organization_id,
            row.program_id,
            row.grant_id,
            row.gpu_class,
        )
        made.add_metric(labels, int(row.gpus))
    return made


def _nodes(connection: Connection) -> Iterable[Metric]:
    gpus, is_open = families.NODE_GPUS.gauge(), families.NODE_OPEN.gauge()
    for row in connection.execute(select(node_capacity)):
        for state, value in (("total", row.total), ("used", row.used), ("foreign", row.foreign_used)):
            gpus.add_metric((row.cluster, row.node, row.gpu_class, state), value)
    for row in connection.execute(select(nodes)):
        is_open.add_metric(
            (row.cluster, row.node), float(row.schedulable and not (row.cordoned or row.held_back))
        )
    yield from (gpus, is_open)


def _compared(connection: Connection) -> Iterable[Metric]:
    last = (
        select(reconciliations.c.cluster, func.max(reconciliations.c.day).label("day"))
        .group_by(reconciliations.c.cluster)
        .subquery()
    )
    rows = connection.execute(
        select(reconciliations).join(
            last, and_(last.c.cluster == reconciliations.c.cluster, last.c.day == reconciliations.c.day)
        )
    )
    gpu_seconds, day = families.RECONCILED.gauge(), families.RECONCILED_DAY.gauge()
    differences = families.RECONCILIATION_DIFFERENCES.gauge()
    for row in rows:
        for source, gpu_ms in (
            ("ledger", row.ledger_gpu_ms),
            ("cluster", row.cluster_gpu_ms),
            ("observed", row.observed_gpu_ms),
            ("busy", row.busy_gpu_ms),
        ):
            gpu_seconds.add_metric((row.cluster, source), gpu_ms / 1000)
        day.add_metric((row.cluster,), day_start_ms(row.day) / 1000)
        differences.add_metric((row.cluster,), row.differences)
    yield from (gpu_seconds, day, differences)
