"""Clusters, nodes, classes and the capacity that placements take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, func, insert, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.errors import AlreadyExists, CapacityTaken, NotFound, NotSchedulable, UnknownGpuClass
from quota.fleet.rules import Rate
from quota.fleet.tables import clusters, gpu_classes, hub_switches, node_capacity, nodes, rates
from quota.schemas.fleet import (
    Cluster,
    ClusterList,
    GpuClass,
    GpuClassList,
    NewCluster,
    NewGpuClass,
    Node,
    NodeCapacity,
    NodeChange,
    NodeList,
)
from quota.schemas.identity import Caller
from quota.schemas.scheduling import NodeReport, PodPlacement

_SPOT = and_(
    node_capacity.c.cluster == bindparam("in_cluster"),
    node_capacity.c.node == bindparam("on_node"),
    node_capacity.c.gpu_class == bindparam("of_class"),
)
_TAKE = (
    update(node_capacity)
    .where(
        _SPOT,
        node_capacity.c.used + bindparam("gpus") + node_capacity.c.foreign_used <= node_capacity.c.total,
    )
    .values(used=node_capacity.c.used + bindparam("gpus"))
)
_GIVE_BACK = update(node_capacity).where(_SPOT).values(used=node_capacity.c.used - bindparam("gpus"))
_RATE = (
    select(rates)
    .join(gpu_classes, gpu_classes.c.rate_id == rates.c.id)
    .where(gpu_classes.c.id == bindparam("of_class"))
)
_TOTALS = (
    select(node_capacity.c.cluster, node_capacity.c.total, func.count().label("nodes"))
    .where(node_capacity.c.gpu_class == bindparam("of_class"))
    .group_by(node_capacity.c.cluster, node_capacity.c.total)
)
_NODES = (
    select(nodes)
    .where(nodes.c.cluster == bindparam("in_cluster"), nodes.c.node.in_(bindparam("names", expanding=True)))
    .order_by(nodes.c.node)
    .with_for_update(read=True)
)
_AT = select(node_capacity).where(_SPOT)


def create_cluster(tx: Tx, caller: Caller, body: NewCluster) -> Cluster:
    """Register a cluster; its nodes come with the scheduler's reports."""
    if tx.connection.execute(select(clusters.c.id).where(clusters.c.id == body.id)).first():
        raise AlreadyExists(f"cluster {body.id} exists already", field="id")
    tx.connection.execute(
        insert(clusters), {"id": body.id, "kind": body.kind, "paused": False, "observed_through_ms": None}
    )
    tx.touch("cluster", body.id)
    audit.record(tx, caller.token_id, "cluster.create", body.id, detail={"kind": body.kind})
    return _cluster(tx.connection.execute(select(clusters).where(clusters.c.id == body.id)).one())


def list_clusters(connection: Connection) -> ClusterList:
    """All clusters in order of id."""
    return ClusterList(
        items=tuple(_cluster(row) for row in connection.execute(select(clusters).order_by(clusters.c.id)))
    )


def put_gpu_class(tx: Tx, caller: Caller, body: NewGpuClass) -> GpuClass:
    """Add a class, or give it a new rate version; holds keep the one they pinned."""
    known = tx.connection.execute(
        select(gpu_classes, rates.c.rate_thousandths, rates.c.price_krw)
        .join(rates, rates.c.id == gpu_classes.c.rate_id)
        .where(gpu_classes.c.id == body.id)
        .with_for_update(of=gpu_classes)
    ).one_or_none()
    same = known is not None and (known.rate_thousandths, known.price_krw, known.name) == (
        body.rate_thousandths,
        body.price_krw,
        body.name,
    )
    if not same:
        version = tx.connection.execute(
            select(func.count()).select_from(rates).where(rates.c.gpu_class == body.id)
        ).scalar_one()
        rate_id = f"{body.id}@{version + 1}"
        tx.connection.execute(
            insert(rates),
            {
                "id": rate_id,
                "gpu_class": body.id,
                "rate_thousandths": body.rate_thousandths,
                "price_krw": body.price_krw,
                "valid_from_ms": tx.now_ms,
            },
        )
        values = {"name": body.name, "rate_id": rate_id}
        if known is None:
            tx.connection.execute(insert(gpu_classes), values | {"id": body.id})
        else:
            tx.connection.execute(update(gpu_classes).where(gpu_classes.c.id == body.id).values(**values))
        tx.touch("gpu_class", body.id)
        audit.record(tx, caller.token_id, "gpu_class.put", body.id, detail=body.model_dump())
    return next(item for item in list_gpu_classes(tx.connection).items if item.id == body.id)


def list_gpu_classes(connection: Connection) -> GpuClassList:
    """All classes with their present rates, in order of id."""
    rows = connection.execute(
        select(gpu_classes.c.id, gpu_classes.c.name, gpu_classes.c.rate_id, rates)
        .join(rates, rates.c.id == gpu_classes.c.rate_id)
        .order_by(gpu_classes.c.id)
    )
    return GpuClassList(
        items=tuple(
            GpuClass(
                id=row.id,
                name=row.name,
                rate_id=row.rate_id,
                rate_thousandths=row.rate_thousandths,
                price_krw=row.price_krw,
                valid_from=row.valid_from_ms,
            )
            for row in rows
        )
    )


def read_rate(connection: Connection, gpu_class: str) -> Rate:
    """The present rate of a class. Raises UnknownGpuClass with the classes there are."""
    row = connection.execute(_RATE, {"of_class": gpu_class}).one_or_none()
    if row is None:
        known = connection.execute(select(gpu_classes.c.id).order_by(gpu_classes.c.id)).scalars().all()
        listed = ", ".join(known) or "none yet"
        raise UnknownGpuClass(f"the hub has no GPU class {gpu_class!r}; it has: {listed}", field="gpu_class")
    return Rate(row.id, row.gpu_class, row.rate_thousandths, row.price_krw)


def largest_gangs(connection: Connection, gpu_class: str, gpus_per_pod: int) -> int:
    """How many pods of this size the emptiest imaginable cluster could run at once."""
    rows = connection.execute(_TOTALS, {"of_class": gpu_class})
    pods: dict[str, int] = defaultdict(int)
    for row in rows:
        pods[row.cluster] += row.nodes * (row.total // gpus_per_pod)
    return max(pods.values(), default=0)


def list_nodes(connection: Connection) -> NodeList:
    """All nodes with their capacity."""
    capacities: dict[tuple[str, str], list[NodeCapacity]] = defaultdict(list)
    for row in connection.execute(select(node_capacity).order_by(node_capacity.c.gpu_class)):
        capacities[(row.cluster, row.node)].append(
            NodeCapacity(gpu_class=row.gpu_class, total=row.total, foreign=row.foreign_used, used=row.used)
        )
    rows = connection.execute(select(nodes).order_by(nodes.c.cluster, nodes.c.node))
    return NodeList(
        items=tuple(
            Node(
                cluster=row.cluster,
                node=row.node,
                schedulable=row.schedulable,
                cordoned=row.cordoned,
                capacities=tuple(capacities[(row.cluster, row.node)]),
            )
            for row in rows
        )
    )


def change_node(tx: Tx, caller: Caller, cluster: str, node: str, body: NodeChange) -> Node:
    """Keep new jobs off a node, or let them on again."""
    changed = tx.connection.execute(
        update(nodes).where(nodes.c.cluster == cluster, nodes.c.node == node).values(cordoned=body.cordoned)
    ).rowcount
    if not changed:
        raise NotFound(f"there is no node {node} on cluster {cluster}")
    tx.touch("node", f"{cluster}/{node}")
    action = "node.cordon" if body.cordoned else "node.uncordon"
    audit.record(tx, caller.token_id, action, f"{cluster}/{node}", reason=body.reason)
    return next(
        item for item in list_nodes(tx.connection).items if (item.cluster, item.node) == (cluster, node)
    )


def take_capacity(tx: Tx, cluster: str, pods: Iterable[PodPlacement]) -> None:
    """Take GPUs on the nodes of one placement: `used + n + foreign <= total` on each, or none at all.

    Raises CapacityTaken with numbers, NotSchedulable for a paused cluster or closed node.
    """
    needed = _per_node(pods)
    _must_be_open(tx, cluster, {node for node, _ in needed})
    for (node, gpu_class), count in sorted(needed.items()):
        spot: dict[str, Any] = {"in_cluster": cluster, "on_node": node, "of_class": gpu_class}
        if not tx.connection.execute(_TAKE, spot | {"gpus": count}).rowcount:
            row = tx.connection.execute(_AT, spot).one_or_none()
            free = 0 if row is None else row.total - row.foreign_used - row.used
            raise CapacityTaken(
                f"{node} has {free} free {gpu_class}, {count} are needed", node=node, needed=count, free=free
            )
        tx.touch("node", f"{cluster}/{node}")


def give_back_capacity(tx: Tx, cluster: str, pods: Iterable[PodPlacement]) -> None:
    """Free the GPUs of one placement."""
    for (node, gpu_class), count in sorted(_per_node(pods).items()):
        spot: dict[str, Any] = {"in_cluster": cluster, "on_node": node, "of_class": gpu_class}
        freed = tx.connection.execute(_GIVE_BACK, spot | {"gpus": count}).rowcount
        assert freed == 1, "capacity is given back where it was taken"
        tx.touch("node", f"{cluster}/{node}")


def store_nodes(tx: Tx, cluster: str, reported: Iterable[NodeReport]) -> None:
    """Take over what a cluster says of its nodes; a node left out takes no new jobs."""
    known = {row.node: row for row in tx.connection.execute(select(nodes).where(nodes.c.cluster == cluster))}
    stored: dict[tuple[str, str], Row[Any]] = {
        (row.node, row.gpu_class): row
        for row in tx.connection.execute(select(node_capacity).where(node_capacity.c.cluster == cluster))
    }
    seen = set()
    for report in reported:
        seen.add(report.node)
        _store_node(tx, cluster, report, known.get(report.node))
        _store_classes(tx, cluster, report, stored)
    gone = {name for name, row in known.items() if name not in seen and row.schedulable}
    left = {node for node, gpu_class in stored if node not in seen and stored[(node, gpu_class)].total}
    for name in sorted(gone | left):
        _close_node(tx, cluster, name)


def _close_node(tx: Tx, cluster: str, name: str) -> None:
    """A node that its cluster names no more takes no jobs and counts for nothing; what is taken on it stays taken."""
    tx.connection.execute(
        update(nodes).where(nodes.c.cluster == cluster, nodes.c.node == name).values(schedulable=False)
    )
    tx.connection.execute(
        update(node_capacity)
        .where(node_capacity.c.cluster == cluster, node_capacity.c.node == name)
        .values(total=0, foreign_used=0)
    )
    tx.touch("node", f"{cluster}/{name}")


def advance_watermark(tx: Tx, cluster: str, observed_through_ms: int) -> None:
    """Everything on the cluster up to this time has been reported; it only grows."""
    tx.connection.execute(
        update(clusters)
        .where(
            clusters.c.id == cluster,
            func.coalesce(clusters.c.observed_through_ms, -1) < observed_through_ms,
        )
        .values(observed_through_ms=observed_through_ms)
    )


def _store_node(tx: Tx, cluster: str, report: NodeReport, row: Row[Any] | None) -> None:
    if row is None:
        tx.connection.execute(
            insert(nodes),
            {"cluster": cluster, "node": report.node, "schedulable": report.schedulable, "cordoned": False},
        )
    elif row.schedulable != report.schedulable:
        tx.connection.execute(
            update(nodes)
            .where(nodes.c.cluster == cluster, nodes.c.node == report.node)
            .values(schedulable=report.schedulable)
        )
    else:
        return
    tx.touch("node", f"{cluster}/{report.node}")


def _store_classes(tx: Tx, cluster: str, report: NodeReport, stored: dict[tuple[str, str], Row[Any]]) -> None:
    reported = {item.gpu_class: (item.total, item.foreign) for item in report.classes}
    for node, gpu_class in stored:
        if node == report.node:
            reported.setdefault(gpu_class, (0, 0))
    for gpu_class, (total, foreign) in sorted(reported.items()):
        row = stored.get((report.node, gpu_class))
        if row is not None and (row.total, row.foreign_used) == (total, foreign):
            continue
        if row is None:
            spot = {"cluster": cluster, "node": report.node, "gpu_class": gpu_class}
            tx.connection.execute(
                insert(node_capacity), spot | {"total": total, "foreign_used": foreign, "used": 0}
            )
        else:
            tx.connection.execute(
                update(node_capacity)
                .where(
                    node_capacity.c.cluster == cluster,
                    node_capacity.c.node == report.node,
                    node_capacity.c.gpu_class == gpu_class,
                )
                .values(total=total, foreign_used=foreign)
            )
            if row.used > total - foreign:
                detail = f"{gpu_class}: total {total}, foreign {foreign}, given by the hub {row.used}"
                audit.find(tx, "capacity_lowered", f"{cluster}/{report.node}", detail)
        tx.touch("node", f"{cluster}/{report.node}")


def _must_be_open(tx: Tx, cluster: str, names: set[str]) -> None:
    """Lock the nodes against being closed until this transaction ends, so that an answered cordon holds."""
    paused = select(clusters.c.paused).where(clusters.c.id == cluster)
    if tx.once(("paused", cluster), lambda: tx.connection.execute(paused).scalar_one_or_none()) is not False:
        raise NotSchedulable(f"cluster {cluster} takes no jobs now")
    opened: dict[str, bool] = tx.once(("open nodes", cluster), dict)
    new = sorted(names - opened.keys())
    for start in range(0, len(new), 500):
        part = new[start : start + 500]
        opened |= dict.fromkeys(part, False)
        for row in tx.connection.execute(_NODES, {"in_cluster": cluster, "names": part}):
            opened[row.node] = row.schedulable and not row.cordoned
    closed = sorted(name for name in names if not opened[name])
    if closed:
        raise NotSchedulable(f"{', '.join(closed)} on {cluster} takes no jobs now", node=closed[0])


def _per_node(pods: Iterable[PodPlacement]) -> dict[tuple[str, str], int]:
    needed: dict[tuple[str, str], int] = defaultdict(int)
    for pod in pods:
        needed[(pod.node, pod.gpu_class)] += pod.count
    return needed


def _cluster(row: Row[Any]) -> Cluster:
    return Cluster(id=row.id, kind=row.kind, paused=row.paused, observed_through=row.observed_through_ms)


def placement_paused(connection: Connection) -> bool:
    """Whether operators let no job start anywhere."""
    return bool(connection.execute(select(hub_switches.c.placement_paused)).scalar_one())
