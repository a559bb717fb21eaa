"""The hub's pool: all GPUs of its nodes, which organizations share."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select

from quota.fleet.tables import node_capacity, nodes
from quota.prepared import Prepared

_SUMS = select(
    func.coalesce(func.sum(node_capacity.c.total), 0).label("gpus"),
    func.coalesce(func.max(node_capacity.c.total), 0).label("largest"),
)
_ALL = Prepared(_SUMS)
_OPEN = Prepared(
    _SUMS.join(
        nodes, and_(nodes.c.cluster == node_capacity.c.cluster, nodes.c.node == node_capacity.c.node)
    ).where(nodes.c.schedulable.is_(True), nodes.c.cordoned.is_(False), nodes.c.held_back.is_(False))
)


@dataclass(frozen=True, slots=True)
class Pool:
    """GPUs of every class, a MIG profile counted as one, and the most that one node has of one class."""

    gpus: int
    largest: int

    def part(self, thousandths: int) -> int:
        """How many GPUs a part of it is, rounded up; never less than a job on one node could take."""
        return max(-(-self.gpus * thousandths // 1000), self.largest)


def open_pool(connection: Connection) -> Pool:
    """Of the nodes that take jobs now."""
    row = _OPEN.one(connection)
    return Pool(int(row.gpus), int(row.largest))


def whole_pool(connection: Connection) -> Pool:
    """Of all nodes: what a job may hope for though some are cordoned or down now."""
    row = _ALL.one(connection)
    return Pool(int(row.gpus), int(row.largest))
