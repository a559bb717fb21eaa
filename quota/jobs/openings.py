"""When a GPU class has room, and what of it is paused or unseen: for quotes, which ask it of each class."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, select

from quota.clock import Clock
from quota.fleet.tables import clusters, gpu_classes, hub_switches, node_capacity, nodes
from quota.jobs.outlook import (
    CLUSTER_UNSEEN_WALL_S,
    START_LIMIT_WALL_S,
    Ask,
    Occupied,
    Place,
    Times,
    room_at_ms,
)
from quota.jobs.tables import attempts, placements
from quota.schemas.scheduling import JobState, Waiting, WaitReason

_OPEN_NODES = (
    select(node_capacity, nodes.c.rack, clusters.c.paused, clusters.c.observed_through_ms)
    .join(nodes, and_(nodes.c.cluster == node_capacity.c.cluster, nodes.c.node == node_capacity.c.node))
    .join(clusters, clusters.c.id == nodes.c.cluster)
    .where(
        node_capacity.c.gpu_class == bindparam("of_class"),
        nodes.c.schedulable.is_(True),
        nodes.c.cordoned.is_(False),
        nodes.c.held_back.is_(False),
    )
)
_OCCUPIED = (
    select(attempts, placements.c.node, placements.c.gpus, nodes.c.rack)
    .join(
        placements,
        and_(placements.c.job_id == attempts.c.job_id, placements.c.attempt == attempts.c.attempt),
    )
    .join(nodes, and_(nodes.c.cluster == placements.c.cluster, nodes.c.node == placements.c.node))
    .where(attempts.c.capacity_held.is_(True), placements.c.gpu_class == bindparam("of_class"))
)


class FleetView:
    """The nodes that a class's jobs may use now, and what occupies them."""

    def __init__(
        self, connection: Connection, gpu_class: str, clock: Clock, now_ms: int, leave_ms: int | None = None
    ) -> None:
        """`leave_ms`: the notice of opportunistic attempts that would leave for the one who asks; None: none would."""
        self._connection, self.gpu_class = connection, gpu_class
        self._leave_ms = leave_ms
        self._speed, self._now_ms = clock.speed, now_ms
        self._free: dict[Place, int] = {}
        self._paused: dict[str, dict[Place, int]] = defaultdict(dict)
        self._unseen: dict[str, dict[Place, int]] = defaultdict(dict)
        seen_since = now_ms - CLUSTER_UNSEEN_WALL_S * 1000 * clock.speed
        for row in connection.execute(_OPEN_NODES, {"of_class": gpu_class}):
            target = self._free
            if row.paused:
                target = self._paused[row.cluster]
            elif row.observed_through_ms is None or row.observed_through_ms < seen_since:
                target = self._unseen[row.cluster]
            target[(row.cluster, row.node, row.rack)] = row.total - row.foreign_used - row.used

    def room_at_ms(self, ask: Ask) -> int | None:
        """Now, or when running attempts must have made room."""
        if room_at_ms(ask, self._free, (), self._now_ms) is not None:
            return self._now_ms
        start_limit_ms = START_LIMIT_WALL_S * 1000 * self._speed
        rows = self._connection.execute(_OCCUPIED, {"of_class": self.gpu_class})
        occupied = [
            Occupied(
                (row.cluster, row.node, row.rack),
                row.gpus,
                self._until_ms(row, start_limit_ms),
            )
            for row in rows
        ]
        return room_at_ms(ask, self._free, occupied, self._now_ms)

    def _until_ms(self, row: Row[Any], start_limit_ms: int) -> int | None:
        until_ms = _times(row).until_ms(start_limit_ms, self._now_ms)
        if until_ms is None or self._leave_ms is None or not row.opportunistic:
            return until_ms
        return min(until_ms, self._now_ms + self._leave_ms + int(row.grace_ms))

    def closed(self, ask: Ask) -> Waiting | None:
        """What is paused or unseen of what the job would start on."""
        switches = select(hub_switches.c.placement_paused)
        if self._connection.execute(switches).scalar_one():
            return _paused("hub", "")
        class_paused = select(gpu_classes.c.paused).where(gpu_classes.c.id == self.gpu_class)
        if self._connection.execute(class_paused).scalar_one():
            return _paused("gpu_class", self.gpu_class)
        if room_at_ms(ask, self._free, (), self._now_ms) is not None:
            return None
        for cluster, free in sorted(self._unseen.items()):
            if room_at_ms(ask, free, (), self._now_ms) is not None:
                return Waiting(code=WaitReason.CLUSTER_UNSEEN, numbers={"cluster": cluster})
        for cluster, free in sorted(self._paused.items()):
            if room_at_ms(ask, free, (), self._now_ms) is not None:
                return _paused("cluster", cluster)
        return None


def _paused(what: str, name: str) -> Waiting:
    return Waiting(code=WaitReason.PLACEMENT_PAUSED, numbers={"what": what, "name": name})


def _times(row: Row[Any]) -> Times:
    stopped = None if row.stop_at_ms is None else row.stop_at_ms + (row.stop_grace_ms or 0)
    return Times(
        claimed_ms=row.claimed_at_ms,
        last_started_ms=row.last_started_at_ms,
        walltime_ms=row.walltime_ms,
        grace_ms=row.grace_ms,
        stop_ends_ms=stopped,
        ended=row.state == JobState.ENDED.value,
    )
