"""Clusters, GPU classes and nodes as people read them: one, or page by page in the order of their ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, select, tuple_

from quota.door import etag, page
from quota.errors import NotFound
from quota.fleet.tables import clusters, gpu_classes, node_capacity, nodes, rates
from quota.schemas.fleet import (
    Cluster,
    ClusterList,
    GpuClass,
    GpuClassList,
    Node,
    NodeCapacity,
    NodeList,
)

_CLASSES = select(gpu_classes.c.id, gpu_classes.c.name, gpu_classes.c.rate_id, rates).join(
    rates, rates.c.id == gpu_classes.c.rate_id
)


def list_clusters(connection: Connection, after: str | None, limit: int) -> ClusterList:
    """Clusters in order of id."""
    statement = select(clusters).order_by(clusters.c.id).limit(limit + 1)
    if after is not None:
        statement = statement.where(clusters.c.id > after)
    rows, following = page(connection.execute(statement).all(), limit, lambda row: row.id)
    return ClusterList(items=tuple(_cluster(row) for row in rows), next=following)


def read_cluster(connection: Connection, cluster_id: str) -> Cluster:
    """One cluster. Raises NotFound."""
    row = connection.execute(select(clusters).where(clusters.c.id == cluster_id)).one_or_none()
    if row is None:
        raise NotFound("there is no cluster {cluster}", cluster=cluster_id)
    return _cluster(row)


def list_gpu_classes(connection: Connection, after: str | None, limit: int) -> GpuClassList:
    """GPU classes with their present rates, in order of id."""
    statement = _CLASSES.order_by(gpu_classes.c.id).limit(limit + 1)
    if after is not None:
        statement = statement.where(gpu_classes.c.id > after)
    rows, following = page(connection.execute(statement).all(), limit, lambda row: row.id)
    return GpuClassList(items=tuple(_gpu_class(row) for row in rows), next=following)


def read_gpu_class(connection: Connection, class_id: str) -> GpuClass:
    """One GPU class with its present rate. Raises NotFound."""
    row = connection.execute(_CLASSES.where(gpu_classes.c.id == class_id)).one_or_none()
    if row is None:
        raise NotFound("there is no GPU class {gpu_class}", gpu_class=class_id)
    return _gpu_class(row)


def list_nodes(
    connection: Connection, after: str | None = None, limit: int = 1000, cluster: str | None = None
) -> NodeList:
    """Nodes with their capacity, in order of cluster and name; `after` is `<cluster>/<node>`."""
    statement = select(nodes).order_by(nodes.c.cluster, nodes.c.node).limit(limit + 1)
    if cluster is not None:
        statement = statement.where(nodes.c.cluster == cluster)
    if after is not None:
        last_cluster, _, last_node = after.partition("/")
        statement = statement.where(tuple_(nodes.c.cluster, nodes.c.node) > tuple_(last_cluster, last_node))
    rows, following = page(
        connection.execute(statement).all(), limit, lambda row: f"{row.cluster}/{row.node}"
    )
    return NodeList(items=_nodes(connection, rows), next=following)


def read_node(connection: Connection, cluster: str, node: str, *, lock: bool = False) -> Node:
    """One node; `lock` keeps others from changing it until the transaction ends. Raises NotFound."""
    statement: Select[Any] = select(nodes).where(nodes.c.cluster == cluster, nodes.c.node == node)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    if row is None:
        raise NotFound("there is no node {node} on cluster {cluster}", node=node, cluster=cluster)
    return _nodes(connection, [row])[0]


def _nodes(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[Node, ...]:
    """The nodes of one page, which lie between its first and last in the order of the key."""
    if not rows:
        return ()
    key = tuple_(node_capacity.c.cluster, node_capacity.c.node)
    statement = (
        select(node_capacity)
        .where(key >= tuple_(rows[0].cluster, rows[0].node), key <= tuple_(rows[-1].cluster, rows[-1].node))
        .order_by(node_capacity.c.gpu_class)
    )
    capacities: dict[tuple[str, str], list[NodeCapacity]] = defaultdict(list)
    for row in connection.execute(statement):
        capacities[(row.cluster, row.node)].append(
            NodeCapacity(gpu_class=row.gpu_class, total=row.total, foreign=row.foreign_used, used=row.used)
        )
    return tuple(
        Node(
            cluster=row.cluster,
            node=row.node,
            schedulable=row.schedulable,
            cordoned=row.cordoned,
            rack=row.rack,
            held_back=row.held_back,
            capacities=tuple(capacities[(row.cluster, row.node)]),
            etag=etag(row.cluster, row.node, row.cordoned),
        )
        for row in rows
    )


def _cluster(row: Row[Any]) -> Cluster:
    return Cluster(id=row.id, kind=row.kind, paused=row.paused, observed_through=row.observed_through_ms)


def _gpu_class(row: Row[Any]) -> GpuClass:
    return GpuClass(
        id=row.id,
        name=row.name,
        rate_id=row.rate_id,
        rate_thousandths=row.rate_thousandths,
        price_krw=row.price_krw,
        valid_from=row.valid_from_ms,
        etag=etag(row.id, row.name, row.rate_id),
    )
