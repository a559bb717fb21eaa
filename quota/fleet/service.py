"""Clusters, nodes, classes and the capacity that placements take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, func, insert, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match
from quota.errors import AlreadyExists, CapacityTaken, NotSchedulable, PreconditionFailed, UnknownGpuClass
from quota.fleet import quarantine
from quota.fleet.rules import Rate
from quota.fleet.switches import check_open, set_cordoned
from quota.fleet.tables import clusters, gpu_classes, hub_switches, node_capacity, nodes, rates
from quota.fleet.views import read_cluster, read_gpu_class, read_node
from quota.prepared import Prepared
from quota.schemas.fleet import Cluster, GpuClass, NewCluster, NewGpuClass, Node, NodeChange
from quota.schemas.identity import Caller
from quota.schemas.scheduling import NodeReport, PodPlacement

_SPOT = and_(
    node_capacity.c.cluster == bindparam("in_cluster"),
    node_capacity.c.node == bindparam("on_node"),
    node_capacity.c.gpu_class == bindparam("of_class"),
)
_TAKE = Prepared(
    update(node_capacity)
    .where(
        _SPOT,
        node_capacity.c.used + bindparam("gpus") + node_capacity.c.foreign_used <= node_capacity.c.total,
    )
    .values(used=node_capacity.c.used + bindparam("gpus"))
)
_GIVE_BACK = Prepared(
    update(node_capacity).where(_SPOT).values(used=node_capacity.c.used - bindparam("gpus"))
)
_RATE = Prepared(
    select(rates)
    .join(gpu_classes, gpu_classes.c.rate_id == rates.c.id)
    .where(gpu_classes.c.id == bindparam("of_class"))
)
_TOTALS = Prepared(
    select(node_capacity.c.cluster, node_capacity.c.total, func.count().label("nodes"))
    .where(node_capacity.c.gpu_class == bindparam("of_class"))
    .group_by(node_capacity.c.cluster, node_capacity.c.total)
)
_RACK_TOTALS = Prepared(
    select(node_capacity.c.cluster, nodes.c.rack, node_capacity.c.total, func.count().label("nodes"))
    .join(nodes, and_(nodes.c.cluster == node_capacity.c.cluster, nodes.c.node == node_capacity.c.node))
    .where(node_capacity.c.gpu_class == bindparam("of_class"), nodes.c.rack.is_not(None))
    .group_by(node_capacity.c.cluster, nodes.c.rack, node_capacity.c.total)
)
_NODES = Prepared(
    select(nodes.c.node, nodes.c.schedulable, nodes.c.cordoned, nodes.c.held_back)
    .where(nodes.c.cluster == bindparam("in_cluster"), nodes.c.node.in_(bindparam("names", expanding=True)))
    .order_by(nodes.c.node)
    .with_for_update(read=True),
    lists=("names",),
)
_AT = Prepared(select(node_capacity).where(_SPOT))
_WATERMARK = Prepared(
    update(clusters)
    .where(
        clusters.c.id == bindparam("in_cluster"),
        func.coalesce(clusters.c.observed_through_ms, -1) < bindparam("through"),
    )
    .values(observed_through_ms=bindparam("through"))
)
_PLACEMENT_PAUSED = Prepared(select(hub_switches.c.placement_paused))


def create_cluster(tx: Tx, caller: Caller, body: NewCluster) -> Cluster:
    """Register a cluster; its nodes come with the scheduler's reports."""
    if tx.connection.execute(select(clusters.c.id).where(clusters.c.id == body.id)).first():
        raise AlreadyExists("cluster {cluster} exists already", field="id", cluster=body.id)
    tx.connection.execute(
        insert(clusters), {"id": body.id, "kind": body.kind, "paused": False, "observed_through_ms": None}
    )
    tx.touch("cluster", body.id)
    audit.record(tx, caller.token_id, "cluster.create", body.id, detail={"kind": body.kind})
    return read_cluster(tx.connection, body.id)


def put_gpu_class(tx: Tx, caller: Caller, body: NewGpuClass, if_match: str | None = None) -> GpuClass:
    """Add a class, or give it a new rate version; holds keep the one they pinned. Raises PreconditionFailed."""
    known = tx.connection.execute(
        select(gpu_classes, rates.c.rate_thousandths, rates.c.price_krw)
        .join(rates, rates.c.id == gpu_classes.c.rate_id)
        .where(gpu_classes.c.id == body.id)
        .with_for_update(of=gpu_classes)
    ).one_or_none()
    if known is not None:
        check_match(if_match, read_gpu_class(tx.connection, body.id).etag)
    elif if_match is not None:
        raise PreconditionFailed("there is no GPU class {gpu_class} yet", gpu_class=body.id)
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
    return read_gpu_class(tx.connection, body.id)


def read_rate(connection: Connection, gpu_class: str, field: str = "gpu_class") -> Rate:
    """The present rate of a class that `field` names. Raises UnknownGpuClass with the classes there are."""
    row = _RATE.one_or_none(connection, {"of_class": gpu_class})
    if row is None:
        known = connection.execute(select(gpu_classes.c.id).order_by(gpu_classes.c.id)).scalars().all()
        listed = ", ".join(known) or "none yet"
        raise UnknownGpuClass(
            "the hub has no GPU class {gpu_class}; it has: {listed}",
            field=field,
            gpu_class=gpu_class,
            listed=listed,
        )
    return Rate(row.id, row.gpu_class, row.rate_thousandths, row.price_krw)


def largest_gangs(connection: Connection, gpu_class: str, gpus_per_pod: int, *, in_rack: bool = False) -> int:
    """How many pods of this size the emptiest imaginable cluster, or one rack of it, could run at once."""
    rows = (_RACK_TOTALS if in_rack else _TOTALS).all(connection, {"of_class": gpu_class})
    pods: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        pods[row.cluster, row.rack if in_rack else ""] += row.nodes * (row.total // gpus_per_pod)
    return max(pods.values(), default=0)


def racks_of(connection: Connection, cluster: str, names: Collection[str]) -> set[str | None]:
    """The racks of these nodes; None among them where one is not known."""
    rows = connection.execute(select(nodes.c.rack).where(nodes.c.cluster == cluster, nodes.c.node.in_(names)))
    return set(rows.scalars())


def change_node(tx: Tx, caller: Caller, cluster: str, node: str, body: NodeChange) -> Node:
    """Keep new jobs off a node, or let them on again. Raises NotFound."""
    set_cordoned(tx, caller, cluster, node, body.cordoned, body.reason)
    return read_node(tx.connection, cluster, node)


def take_capacity(tx: Tx, cluster: str, pods: Iterable[PodPlacement]) -> None:
    """Take GPUs on the nodes of one placement: `used + n + foreign <= total` on each, or none at all.

    Raises CapacityTaken with numbers, NotSchedulable for a closed node or where placement is paused.
    """
    needed = _per_node(pods)
    check_open(tx, cluster, {gpu_class for _, gpu_class in needed})
    _must_be_open(tx, cluster, {node for node, _ in needed})
    for (node, gpu_class), count in sorted(needed.items()):
        spot: dict[str, Any] = {"in_cluster": cluster, "on_node": node, "of_class": gpu_class}
        if not _TAKE.change(tx.connection, spot | {"gpus": count}):
            row = _AT.one_or_none(tx.connection, spot)
            free = 0 if row is None else row.total - row.foreign_used - row.used
            raise CapacityTaken(
                "{node} has {free} free {gpu_class}, {needed} are needed",
                node=node,
                gpu_class=gpu_class,
                needed=count,
                free=free,
            )
        tx.touch("node", f"{cluster}/{node}")


def give_back_capacity(tx: Tx, cluster: str, pods: Iterable[PodPlacement]) -> None:
    """Free the GPUs of one placement."""
    for (node, gpu_class), count in sorted(_per_node(pods).items()):
        spot: dict[str, Any] = {"in_cluster": cluster, "on_node": node, "of_class": gpu_class}
        freed = _GIVE_BACK.change(tx.connection, spot | {"gpus": count})
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
    quarantine.judge_nodes(tx, cluster)


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


def advance_watermark(tx: Tx, cluster: str, observed_through_ms: int) -> bool:
    """Everything on the cluster up to this time has been reported. False if that is no news: it only grows."""
    return _WATERMARK.change(tx.connection, {"in_cluster": cluster, "through": observed_through_ms}) == 1


def _store_node(tx: Tx, cluster: str, report: NodeReport, row: Row[Any] | None) -> None:
    said = {"schedulable": report.schedulable, "rack": report.rack}
    if row is None:
        spot = {"cluster": cluster, "node": report.node, "cordoned": False}
        tx.connection.execute(insert(nodes), spot | said)
    elif (row.schedulable, row.rack) != (report.schedulable, report.rack):
        tx.connection.execute(
            update(nodes).where(nodes.c.cluster == cluster, nodes.c.node == report.node).values(**said)
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
    # a new dict each time: a savepoint that is undone forgets the nodes whose locks went with it
    opened: dict[str, bool] = dict(tx.memo.get(("open nodes", cluster), {}))
    new = sorted(names - opened.keys())
    for start in range(0, len(new), 500):
        part = new[start : start + 500]
        opened |= dict.fromkeys(part, False)
        for row in _NODES.all(tx.connection, {"in_cluster": cluster, "names": part}):
            opened[row.node] = row.schedulable and not (row.cordoned or row.held_back)
    tx.memo[("open nodes", cluster)] = opened
    closed = sorted(name for name in names if not opened[name])
    if closed:
        raise NotSchedulable("{node} on {cluster} takes no jobs now", node=closed[0], cluster=cluster)


def _per_node(pods: Iterable[PodPlacement]) -> dict[tuple[str, str], int]:
    needed: dict[tuple[str, str], int] = defaultdict(int)
    for pod in pods:
        needed[(pod.node, pod.gpu_class)] += pod.count
    return needed


def placement_paused(connection: Connection) -> bool:
    """Whether operators let no job start anywhere."""
    return bool(_PLACEMENT_PAUSED.one(connection).placement_paused)
