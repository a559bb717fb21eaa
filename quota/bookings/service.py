"""Bookings: made if the nodes have the room beside all others, read, cancelled; the scheduler keeps the room."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from quota.audit import service as audit
from quota.bookings.rules import Span, Wish, pods_free, spans_of
from quota.bookings.tables import bookings, occurrences
from quota.db import Tx
from quota.door import page
from quota.errors import BadRequest, BookingExceedsCapacity, NotFound
from quota.fleet.service import read_rate
from quota.fleet.tables import clusters, gpu_classes, node_capacity, nodes
from quota.identity.service import read_organization, sees
from quota.ids import new_id
from quota.programs.service import payable_grants
from quota.queue import Queue
from quota.schemas.bookings import (
    MOST_OCCURRENCES,
    Booking,
    BookingCancellation,
    BookingList,
    NewBooking,
    Occurrence,
    Timetable,
)
from quota.schemas.identity import Caller, Role

_OTHERS = (
    select(occurrences, bookings.c.gpus_per_pod, bookings.c.pods, bookings.c.cluster)
    .join(bookings, bookings.c.id == occurrences.c.booking_id)
    .where(occurrences.c.cancelled_at_ms.is_(None))
)


def create_booking(tx: Tx, caller: Caller, body: NewBooking) -> Booking:
    """Book room, whole or not at all.

    Raises BadRequest for times that cannot be or a grant that is not there for all of them, NotFound,
    UnknownGpuClass, and BookingExceedsCapacity with what is free.
    """
    spans = _spans(body, tx.now_ms)
    # two bookings of one class are made one after the other: each sees the other's room
    tx.connection.execute(
        select(gpu_classes.c.id).where(gpu_classes.c.id == body.gpu_class).with_for_update()
    )
    read_rate(tx.connection, body.gpu_class)
    read_organization(tx.connection, body.organization_id)
    if body.cluster is not None:
        _check_cluster(tx.connection, body.cluster)
    if body.grant_id is not None:
        _check_grant(tx, body.organization_id, body.grant_id, spans)
    _check_capacity(tx.connection, body, spans)
    booking_id = new_id("booking")
    timetable = body.timetable
    values = {
        "id": booking_id,
        **body.model_dump(include={"organization_id", "name", "gpu_class", "gpus_per_pod", "pods"}),
        **body.model_dump(include={"cluster", "grant_id", "hold"}),
        "timetable": None if timetable is None else timetable.model_dump_json(),
        "created_at_ms": tx.now_ms,
    }
    tx.connection.execute(insert(bookings), values)
    rows = [
        {
            "id": f"{booking_id}-{number}",
            "booking_id": booking_id,
            "starts_at_ms": span.starts_at_ms,
            "ends_at_ms": span.ends_at_ms,
            "cancelled_at_ms": None,
        }
        for number, span in enumerate(spans, 1)
    ]
    tx.connection.execute(insert(occurrences), rows)
    for row in rows:
        tx.touch("booking", str(row["id"]))
    detail = body.model_dump(mode="json", exclude={"reason"}) | {"occurrences": len(spans)}
    audit.record(tx, caller, "booking.create", booking_id, reason=body.reason, detail=detail)
    return _read(tx.connection, [booking_id])[0]


def cancel_booking(
    tx: Tx, caller: Caller, booking_id: str, body: BookingCancellation, queue: Queue
) -> Booking:
    """Cancel what is not over: the named occurrences, else all. What runs in their room runs on.

    Raises NotFound, also for an occurrence that is not this booking's; BadRequest for one that is over.
    """
    found = tx.connection.execute(
        select(bookings.c.id).where(bookings.c.id == booking_id).with_for_update()
    ).first()
    if found is None:
        raise _unknown(booking_id)
    rows = {row.id: row for row in _occurrences(tx.connection, [booking_id])}
    for wanted in body.occurrences:
        _check_coming(rows.get(wanted), wanted, booking_id, tx.now_ms)
    ids = [
        row.id
        for row in rows.values()
        if row.cancelled_at_ms is None
        and row.ends_at_ms > tx.now_ms
        and (not body.occurrences or row.id in body.occurrences)
    ]
    if ids:
        tx.connection.execute(
            update(occurrences).where(occurrences.c.id.in_(ids)).values(cancelled_at_ms=tx.now_ms)
        )
        for each in ids:
            tx.touch("booking", each)
        detail = {"occurrences": ids}
        audit.record(tx, caller, "booking.cancel", booking_id, reason=body.reason, detail=detail)
    return _read(tx.connection, [booking_id], queue)[0]


def read_booking(connection: Connection, caller: Caller, booking_id: str, queue: Queue) -> Booking:
    """One booking; another organization's is as unknown as one that never was. Raises NotFound."""
    found = _read(connection, [booking_id], queue)
    if not found or not sees(caller, found[0].organization_id):
        raise _unknown(booking_id)
    return found[0]


def list_bookings(
    connection: Connection,
    caller: Caller,
    queue: Queue,
    *,
    organization_id: str | None,
    after: str | None,
    limit: int,
) -> BookingList:
    """Bookings in order of id; a member sees its organization's."""
    statement = select(bookings.c.id).order_by(bookings.c.id).limit(limit + 1)
    if caller.role is Role.MEMBER:
        statement = statement.where(bookings.c.organization_id == caller.organization_id)
    if organization_id is not None:
        statement = statement.where(bookings.c.organization_id == organization_id)
    if after is not None:
        statement = statement.where(bookings.c.id > after)
    rows, following = page(connection.execute(statement).all(), limit, lambda row: row.id)
    return BookingList(items=_read(connection, [row.id for row in rows], queue), next=following)


# --- what may be booked -----------------------------------------------------------------------------


def _spans(body: NewBooking, now_ms: int) -> list[Span]:
    if body.timetable is None:
        assert body.starts_at is not None
        assert body.ends_at is not None
        spans, field = [Span(body.starts_at, body.ends_at)], "starts_at"
    else:
        spans, field = spans_of(body.timetable), "timetable"
    if not spans:
        raise BadRequest(
            "the timetable has no day: no such weekday lies between its first and last", field=field
        )
    if len(spans) > MOST_OCCURRENCES:
        raise BadRequest(
            "the timetable has {count} times, at most {most} can be booked at once",
            field=field,
            count=len(spans),
            most=MOST_OCCURRENCES,
        )
    if spans[0].starts_at_ms < now_ms:
        raise BadRequest(
            "a booking begins in the future; this one would have begun at {starts_at_ms}",
            field=field,
            starts_at_ms=spans[0].starts_at_ms,
        )
    return spans


def _check_cluster(connection: Connection, cluster: str) -> None:
    if connection.execute(select(clusters.c.id).where(clusters.c.id == cluster)).first() is None:
        raise NotFound("there is no cluster {cluster}", field="cluster", cluster=cluster)


def _check_grant(tx: Tx, organization_id: str, grant_id: str, spans: Sequence[Span]) -> None:
    grants = {row.id: row for row in payable_grants(tx.connection, organization_id, tx.now_ms)}
    grant = grants.get(grant_id)
    if grant is None:
        raise NotFound(
            "organization {organization_id} has no grant {grant_id} to draw on",
            field="grant_id",
            organization_id=organization_id,
            grant_id=grant_id,
        )
    if spans[0].starts_at_ms < grant.starts_at_ms or spans[-1].ends_at_ms > grant.ends_at_ms:
        raise BadRequest(
            "grant {grant_id} runs from {starts_at_ms} until {ends_at_ms}, not for all of this booking",
            field="grant_id",
            grant_id=grant_id,
            starts_at_ms=grant.starts_at_ms,
            ends_at_ms=grant.ends_at_ms,
        )


def _check_capacity(connection: Connection, body: NewBooking, spans: Sequence[Span]) -> None:
    """Beside the other bookings of the class, whoever's they are, every occurrence has its pods."""
    by_cluster = _nodes(connection, body.gpu_class)
    others = _others(connection, body.gpu_class, spans)
    for span in spans:
        wish = Wish("", span, body.gpus_per_pod, body.pods, body.cluster)
        near = [other for other in others if other.span.overlaps(span)]
        free = pods_free(by_cluster, near, wish)
        if free < body.pods:
            raise BookingExceedsCapacity(
                "from {starts_at_ms} until {ends_at_ms} {free_pods} pods of {gpus_per_pod} {gpu_class} are free to "
                "book in one cluster, {needed_pods} were asked for",
                field="pods",
                starts_at_ms=span.starts_at_ms,
                ends_at_ms=span.ends_at_ms,
                free_pods=free,
                gpus_per_pod=body.gpus_per_pod,
                gpu_class=body.gpu_class,
                needed_pods=body.pods,
            )


def _nodes(connection: Connection, gpu_class: str) -> dict[str, list[int]]:
    """GPUs that are the hub's on each node that takes jobs, by cluster."""
    rows = connection.execute(
        select(nodes.c.cluster, node_capacity.c.total, node_capacity.c.foreign_used)
        .join(
            node_capacity,
            (node_capacity.c.cluster == nodes.c.cluster) & (node_capacity.c.node == nodes.c.node),
        )
        .where(
            node_capacity.c.gpu_class == gpu_class, nodes.c.schedulable, ~nodes.c.cordoned, ~nodes.c.held_back
        )
        .order_by(nodes.c.cluster, nodes.c.node)
    )
    found: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        found[row.cluster].append(max(0, row.total - row.foreign_used))
    return found


def _others(connection: Connection, gpu_class: str, spans: Sequence[Span]) -> list[Wish]:
    rows = connection.execute(
        _OTHERS.where(
            bookings.c.gpu_class == gpu_class,
            occurrences.c.ends_at_ms > spans[0].starts_at_ms,
            occurrences.c.starts_at_ms < spans[-1].ends_at_ms,
        )
    )
    return [
        Wish(row.id, Span(row.starts_at_ms, row.ends_at_ms), row.gpus_per_pod, row.pods, row.cluster)
        for row in rows
    ]


def _check_coming(row: Row[Any] | None, wanted: str, booking_id: str, now_ms: int) -> None:
    if row is None:
        raise NotFound(
            "booking {booking_id} has no occurrence {occurrence_id}",
            field="occurrences",
            booking_id=booking_id,
            occurrence_id=wanted,
        )
    if row.ends_at_ms <= now_ms:
        raise BadRequest(
            "occurrence {occurrence_id} is over since {ends_at_ms}",
            field="occurrences",
            occurrence_id=wanted,
            ends_at_ms=row.ends_at_ms,
        )


def _unknown(booking_id: str) -> NotFound:
    return NotFound("there is no booking {booking_id}", booking_id=booking_id)


# --- as others read them ----------------------------------------------------------------------------


def _read(connection: Connection, ids: Sequence[str], queue: Queue | None = None) -> tuple[Booking, ...]:
    if not ids:
        return ()
    if queue is not None:
        queue.refresh(connection)
    rows = connection.execute(select(bookings).where(bookings.c.id.in_(ids)).order_by(bookings.c.id)).all()
    times: dict[str, list[Occurrence]] = defaultdict(list)
    for row in _occurrences(connection, ids):
        room = None if queue is None or row.cancelled_at_ms is not None else queue.booked(row.id)
        times[row.booking_id].append(
            Occurrence(
                id=row.id,
                starts_at=row.starts_at_ms,
                ends_at=row.ends_at_ms,
                cancelled_at=row.cancelled_at_ms,
                room=room,
            )
        )
    return tuple(
        Booking(
            id=row.id,
            organization_id=row.organization_id,
            name=row.name,
            gpu_class=row.gpu_class,
            gpus_per_pod=row.gpus_per_pod,
            pods=row.pods,
            cluster=row.cluster,
            grant_id=row.grant_id,
            hold=row.hold,
            timetable=None if row.timetable is None else Timetable.model_validate(json.loads(row.timetable)),
            created_at=row.created_at_ms,
            occurrences=tuple(times[row.id]),
        )
        for row in rows
    )


def _occurrences(connection: Connection, booking_ids: Iterable[str]) -> Sequence[Row[Any]]:
    statement = select(occurrences).where(occurrences.c.booking_id.in_(booking_ids))
    return connection.execute(statement.order_by(occurrences.c.starts_at_ms, occurrences.c.id)).all()
