"""How long an attempt may go on before the GPUs that it has are booked for others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, and_, func, select

from quota.bookings.tables import bookings, occurrences
from quota.db import Tx
from quota.fleet.tables import node_capacity
from quota.jobs.tables import attempts, placements
from quota.queue import Queue
from quota.schemas.scheduling import BookedRoom

_COMING = select(occurrences, bookings.c.organization_id, bookings.c.gpu_class).join(
    bookings, bookings.c.id == occurrences.c.booking_id
)


def free_until_ms(tx: Tx, queue: Queue, row: Row[Any], ends_ms: int) -> int | None:
    """When the first booking that lacks GPUs if this attempt runs on must have them; None if none does.

    `row` is the attempt, `ends_ms` when it ends at the latest by its present limit. Where the room of bookings is,
    the scheduler's last ranking says.
    """
    mine = _gpus(tx.connection, row)
    lead_ms, rooms = queue.booking_lead_ms(tx.connection), queue.rooms(tx.connection)
    coming = tx.connection.execute(
        _COMING.where(occurrences.c.cancelled_at_ms.is_(None), occurrences.c.ends_at_ms > ends_ms).order_by(
            occurrences.c.starts_at_ms, occurrences.c.id
        )
    ).all()
    near = {
        each.id: each
        for each in coming
        if each.id in rooms
        and rooms[each.id].cluster == row.cluster
        # it may be in its own, which is not kept from it
        and (each.organization_id != row.organization_id or each.starts_at_ms > tx.now_ms)
    }
    for each in near.values():
        for (node, gpu_class), gpus in mine.items():
            if each.gpu_class == gpu_class and node in rooms[each.id].gpus_by_node:
                needed = _needed(near, rooms, node, gpu_class, each.starts_at_ms)
                if _left(tx, row, node, gpu_class, each.starts_at_ms) - gpus < needed:
                    return int(each.starts_at_ms) - lead_ms
    return None


def _gpus(connection: Connection, row: Row[Any]) -> dict[tuple[str, str], int]:
    """What the attempt has, by node and class."""
    found = connection.execute(
        select(placements.c.node, placements.c.gpu_class, func.sum(placements.c.gpus).label("gpus"))
        .where(placements.c.job_id == row.job_id, placements.c.attempt == row.attempt)
        .group_by(placements.c.node, placements.c.gpu_class)
    )
    return {(each.node, each.gpu_class): int(each.gpus) for each in found}


def _needed(
    near: Mapping[str, Row[Any]], rooms: Mapping[str, BookedRoom], node: str, gpu_class: str, at_ms: int
) -> int:
    """What is booked there then."""
    return sum(
        rooms[id].gpus_by_node.get(node, 0)
        for id, each in near.items()
        if each.gpu_class == gpu_class and each.starts_at_ms <= at_ms < each.ends_at_ms
    )


def _left(tx: Tx, row: Row[Any], node: str, gpu_class: str, at_ms: int) -> int:
    """The hub's GPUs on a node less those of other attempts that may run on until then."""
    capacity = tx.connection.execute(
        select(node_capacity).where(
            node_capacity.c.cluster == row.cluster,
            node_capacity.c.node == node,
            node_capacity.c.gpu_class == gpu_class,
        )
    ).one()
    others = tx.connection.execute(
        select(attempts, placements.c.gpus)
        .join(
            placements,
            and_(placements.c.job_id == attempts.c.job_id, placements.c.attempt == attempts.c.attempt),
        )
        .where(
            attempts.c.capacity_held,
            placements.c.cluster == row.cluster,
            placements.c.node == node,
            placements.c.gpu_class == gpu_class,
        )
    )
    taken = 0
    for each in others:
        begun_ms = tx.now_ms if each.last_started_at_ms is None else each.last_started_at_ms
        is_other = (each.job_id, each.attempt) != (row.job_id, row.attempt)
        if is_other and begun_ms + each.walltime_ms > at_ms:
            taken += each.gpus
    return int(capacity.total - capacity.foreign_used) - taken
