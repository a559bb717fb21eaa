"""Whom a switch touches: waiting jobs, attempts that have their GPUs, and what those hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, false, func, select, tuple_

from quota.fleet.tables import clusters, node_capacity, nodes
from quota.jobs.choices import Unit, accepts, classes_of, unit_of
from quota.jobs.tables import attempts, jobs, placements
from quota.ledger.tables import holds
from quota.schemas.scheduling import JobState, Topology
from quota.schemas.switches import SHOWN_IDS, Affected, Reach

_WAITS = jobs.c.state == JobState.QUEUED.value
_SHAPE = (jobs.c.gpu_class, jobs.c.fallback_classes, jobs.c.topology, jobs.c.gpus_per_pod, jobs.c.pods)

Shape = tuple[str, str, str, int, int]
"""GPU class, the further ones that it accepts as they are stored, topology, GPUs per pod, pods."""
Totals = dict[str, dict[tuple[str, str | None], list[int]]]
"""GPUs of nodes, by class, by cluster and rack."""


def of_organization(connection: Connection, organization_id: str) -> Reach:
    """Everything of one organization."""
    mine = jobs.c.organization_id == organization_id
    return _reach(connection, mine, attempts.c.organization_id == organization_id)


def of_hub(connection: Connection) -> Reach:
    """Everything that waits or runs."""
    return _reach(connection, _WAITS, attempts.c.capacity_held.is_(True))


def of_class(connection: Connection, gpu_class: str) -> Reach:
    """What runs on a GPU class, and the waiting jobs that accept it."""
    running = holds.c.gpu_class == gpu_class
    return _reach(connection, accepts(gpu_class), running)


def of_cluster(connection: Connection, cluster: str) -> Reach:
    """What runs on a cluster, and the waiting jobs that fit on no other open one, even were it empty."""
    shut_out = _shut_out(connection, cluster, None)
    return _reach(connection, _has_shape(shut_out), attempts.c.cluster == cluster)


def of_node(connection: Connection, cluster: str, node: str) -> Reach:
    """What runs on a node, and the waiting jobs that fit nowhere without it, even were all else empty."""
    here = (
        select(placements.c.job_id)
        .where(
            placements.c.job_id == attempts.c.job_id,
            placements.c.attempt == attempts.c.attempt,
            placements.c.cluster == cluster,
            placements.c.node == node,
        )
        .exists()
    )
    shut_out = _shut_out(connection, cluster, node)
    return _reach(connection, _has_shape(shut_out), and_(attempts.c.cluster == cluster, here))


def jobs_affected(connection: Connection, *conditions: ColumnElement[bool]) -> Affected:
    """The jobs that meet all conditions."""
    count = connection.execute(select(func.count()).select_from(jobs).where(*conditions)).scalar_one()
    ids = select(jobs.c.id).where(*conditions).order_by(jobs.c.id).limit(SHOWN_IDS)
    return Affected(count=count, ids=tuple(connection.execute(ids).scalars()))


def attempts_affected(connection: Connection, *conditions: ColumnElement[bool]) -> Affected:
    """The attempts that have their GPUs and meet all conditions, which may ask of their holds too."""
    chosen = _holding(*conditions).subquery()
    count = connection.execute(select(func.count()).select_from(chosen)).scalar_one()
    first = select(chosen).order_by(chosen.c.job_id, chosen.c.attempt).limit(SHOWN_IDS)
    ids = tuple(f"{row.job_id}-{row.attempt}" for row in connection.execute(first))
    return Affected(count=count, ids=ids)


def _reach(connection: Connection, waiting: ColumnElement[bool], running: ColumnElement[bool]) -> Reach:
    chosen = _holding(running).subquery()
    # SUM(BIGINT) is NUMERIC on PostgreSQL
    held = int(connection.execute(select(func.coalesce(func.sum(chosen.c.held), 0))).scalar_one())
    return Reach(
        waiting=jobs_affected(connection, _WAITS, waiting),
        running=attempts_affected(connection, running),
        held_gpu_us=held,
        held_gpu_hours=held,
    )


def _holding(*conditions: ColumnElement[bool]) -> Any:
    held = holds.c.amount_gpu_us - holds.c.settled_gpu_us - holds.c.released_gpu_us
    return (
        select(attempts.c.job_id, attempts.c.attempt, held.label("held"))
        .join(holds, holds.c.id == attempts.c.hold_id)
        .where(attempts.c.capacity_held.is_(True), *conditions)
    )


def _has_shape(shapes: Sequence[Shape]) -> ColumnElement[bool]:
    if not shapes:
        return false()
    return tuple_(*_SHAPE).in_(shapes)


def _shut_out(connection: Connection, cluster: str, node: str | None) -> list[Shape]:
    """The shapes of waiting jobs that need this cluster, or this node of it, even if all GPUs were free."""
    rest: Totals = defaultdict(lambda: defaultdict(list))
    whole: Totals = defaultdict(lambda: defaultdict(list))
    for row in connection.execute(_totals(cluster, node)):
        whole[row.gpu_class][row.cluster, row.rack].append(row.total)
        if row.cluster != cluster or node not in (None, row.node):
            rest[row.gpu_class][row.cluster, row.rack].append(row.total)
    found = []
    for row in connection.execute(select(*_SHAPE).where(_WAITS).distinct()):
        unit, classes = unit_of(Topology(row.topology), row.gpus_per_pod, row.pods), classes_of(row)
        if any(_fits(name, unit, whole) for name in classes) and not any(
            _fits(name, unit, rest) for name in classes
        ):
            shape = (row.gpu_class, row.fallback_classes, row.topology, row.gpus_per_pod, row.pods)
            found.append(shape)
    return sorted(found)


def _totals(cluster: str, node: str | None) -> Any:
    """GPUs of the nodes that take jobs, the named cluster or node counted as open."""
    at_cluster = clusters.c.id == cluster
    at_node = and_(at_cluster, nodes.c.node == node) if node is not None else false()
    return (
        select(
            node_capacity.c.cluster,
            node_capacity.c.node,
            node_capacity.c.gpu_class,
            node_capacity.c.total,
            nodes.c.rack,
        )
        .join(nodes, and_(nodes.c.cluster == node_capacity.c.cluster, nodes.c.node == node_capacity.c.node))
        .join(clusters, clusters.c.id == nodes.c.cluster)
        .where(
            node_capacity.c.total > 0,
            nodes.c.schedulable.is_(True),
            clusters.c.paused.is_(False) | (at_cluster if node is None else false()),
            nodes.c.cordoned.is_(False) | at_node,
            nodes.c.held_back.is_(False) | at_node,
        )
    )


def _fits(gpu_class: str, unit: Unit, totals: Totals) -> bool:
    """Whether a cluster, or one of its racks if that is asked for, could hold it were it empty."""
    pods: dict[tuple[str, str | None], int] = defaultdict(int)
    for (cluster, rack), found in totals.get(gpu_class, {}).items():
        if rack is not None or not unit.in_rack:
            where = cluster, rack if unit.in_rack else None
            pods[where] += sum(total // unit.gpus_per_pod for total in found)
    return max(pods.values(), default=0) >= unit.pods
