"""The whole objects that snapshot, feed and replies carry, read at one moment of the database."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from pydantic import BaseModel
from sqlalchemy import BindParameter, ColumnElement, Connection, Row, and_, bindparam, or_, select, tuple_

from quota.bookings.tables import bookings, occurrences
from quota.dispatch.policy import policy_object
from quota.fleet.tables import clusters, gpu_classes, node_capacity, nodes, rates
from quota.identity.caps import stored_caps
from quota.identity.tables import organizations
from quota.jobs.choices import classes_of
from quota.jobs.tables import attempts, jobs, placements
from quota.ledger.tables import holds
from quota.prepared import Prepared
from quota.programs.paths import account_paths, read_trees
from quota.programs.service import pace_of
from quota.programs.tables import grants
from quota.schemas.scheduling import (
    AttemptObject,
    BookingObject,
    ClusterObject,
    FeedItem,
    FeedKind,
    GpuClassObject,
    GrantObject,
    JobObject,
    JobState,
    NodeCapacityObject,
    NodeObject,
    OrganizationObject,
    PodPlacement,
    StopReason,
    StopRecord,
    Topology,
)
from quota.schemas.values import built

KINDS: tuple[FeedKind, ...] = (
    "policy",
    "cluster",
    "gpu_class",
    "node",
    "organization",
    "grant",
    "job",
    "attempt",
    "booking",
)
PREEMPTION_MEMORY_MS = 24 * 3_600_000

_IDS: BindParameter[Any] = bindparam("ids", expanding=True)
_KEYS: BindParameter[Any] = bindparam("keys", expanding=True)
"""Pairs. The first of each go by themselves as well: for pairs alone SQLite reads the whole table."""
# attempts that keep capacity, and those whose room is being kept for a job that still waits
_OPEN = or_(attempts.c.capacity_held.is_(True), attempts.c.stop_for_job.is_not(None))
_CLUSTERS = Prepared(select(clusters).where(clusters.c.id.in_(_IDS)), lists=("ids",))
_GPU_CLASSES = Prepared(
    select(gpu_classes.c.id, gpu_classes.c.rate_id, gpu_classes.c.paused, rates.c.rate_thousandths)
    .join(rates, rates.c.id == gpu_classes.c.rate_id)
    .where(gpu_classes.c.id.in_(_IDS)),
    lists=("ids",),
)
_NODES = Prepared(
    select(
        nodes,
        node_capacity.c.gpu_class,
        node_capacity.c.total,
        node_capacity.c.foreign_used,
        node_capacity.c.used,
    )
    .outerjoin(
        node_capacity, and_(node_capacity.c.cluster == nodes.c.cluster, node_capacity.c.node == nodes.c.node)
    )
    .where(
        nodes.c.cluster.in_(_IDS),
        nodes.c.node.in_(bindparam("names", expanding=True)),
        tuple_(nodes.c.cluster, nodes.c.node).in_(_KEYS),
    )
    .order_by(node_capacity.c.gpu_class),
    lists=("ids", "names", "keys"),
)
_ORGANIZATIONS = Prepared(select(organizations).where(organizations.c.id.in_(_IDS)), lists=("ids",))
_JOBS = Prepared(
    select(jobs).where(jobs.c.id.in_(_IDS), jobs.c.state != JobState.ENDED.value), lists=("ids",)
)
_PREEMPTED = Prepared(
    select(attempts.c.job_id, attempts.c.ended_at_ms).where(
        attempts.c.job_id.in_(_IDS),
        attempts.c.end_reason == "preempted",
        attempts.c.ended_at_ms > bindparam("since"),
    ),
    lists=("ids",),
)
_PODS = Prepared(
    select(placements)
    .where(placements.c.job_id.in_(_IDS), tuple_(placements.c.job_id, placements.c.attempt).in_(_KEYS))
    .order_by(placements.c.pod_index),
    lists=("ids", "keys"),
)
_ATTEMPTS = Prepared(
    select(attempts, jobs.c.spec, holds.c.amount_gpu_us)
    .join(jobs, jobs.c.id == attempts.c.job_id)
    .join(holds, holds.c.id == attempts.c.hold_id)
    .where(attempts.c.job_id.in_(_IDS), tuple_(attempts.c.job_id, attempts.c.attempt).in_(_KEYS), _OPEN),
    lists=("ids", "keys"),
)


def load(
    connection: Connection,
    wanted: Iterable[tuple[str, str]],
    seq: int,
    now_ms: int,
    gone: Collection[tuple[str, str]] = (),
) -> tuple[FeedItem, ...]:
    """The named objects as they are now, or their tombstones, in the order of kinds.

    `gone` are those that the caller's own transaction made tombstones: they are not looked for.
    """
    by_kind: dict[str, list[str]] = defaultdict(list)
    for kind, object_id in wanted:
        by_kind[kind].append(object_id)
    items: list[FeedItem] = []
    for kind in KINDS:
        if kind not in by_kind:
            continue
        ids = by_kind[kind]
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            there = [object_id for object_id in part if (kind, object_id) not in gone] if gone else part
            found = _read(connection, kind, there, now_ms) if there else {}
            items.extend(_item(kind, object_id, seq, found.get(object_id)) for object_id in part)
    return tuple(items)


def page(
    connection: Connection, kind: FeedKind, after: str, limit: int, seq: int, now_ms: int
) -> list[FeedItem]:
    """The next objects of one kind in order of id."""
    ids = _ids(connection, kind, after, limit, now_ms)
    found = _read(connection, kind, ids, now_ms)
    return [_item(kind, object_id, seq, found[object_id]) for object_id in ids if object_id in found]


def _item(kind: FeedKind, object_id: str, seq: int, found: BaseModel | None) -> FeedItem:
    if found is None:
        return built(FeedItem, kind=kind, id=object_id, seq=seq, gone=True)
    return built(FeedItem, kind=kind, id=object_id, seq=seq, gone=False, **{kind: found})


def _ids(connection: Connection, kind: FeedKind, after: str, limit: int, now_ms: int) -> list[str]:
    """Ids of what `_read` will find, so that a short page is the last one of its kind."""
    if kind == "policy":
        return ["default"] if after < "default" else []
    column: ColumnElement[str]
    condition: ColumnElement[bool]
    match kind:
        case "cluster":
            column, condition = clusters.c.id, clusters.c.id > after
        case "gpu_class":
            column, condition = gpu_classes.c.id, gpu_classes.c.id > after
        case "organization":
            column, condition = organizations.c.id, organizations.c.id > after
        case "grant":
            column, condition = grants.c.id, (grants.c.id > after) & (grants.c.ends_at_ms > now_ms)
        case "job":
            column = jobs.c.id
            condition = (jobs.c.state != JobState.ENDED.value) & (jobs.c.id > after)
        case "node":
            column = (nodes.c.cluster + "/" + nodes.c.node).label("id")
            condition = (nodes.c.cluster + "/" + nodes.c.node) > after
        case "attempt":
            return _attempt_ids(connection, after, limit)
        case "booking":
            column = occurrences.c.id
            condition = (occurrences.c.id > after) & _is_coming(now_ms)
    statement = select(column).where(condition).order_by(column).limit(limit)
    return list(connection.execute(statement).scalars())


def _attempt_ids(connection: Connection, after: str, limit: int) -> list[str]:
    after_job, _, after_number = after.rpartition("-")
    key = tuple_(attempts.c.job_id, attempts.c.attempt)
    rows = connection.execute(
        select(attempts.c.job_id, attempts.c.attempt)
        .where(_OPEN, key > (after_job, int(after_number or 0)))
        .order_by(attempts.c.job_id, attempts.c.attempt)
        .limit(limit)
    )
    return [f"{row.job_id}-{row.attempt}" for row in rows]


def _read(connection: Connection, kind: str, ids: Collection[str], now_ms: int) -> dict[str, BaseModel]:
    match kind:
        case "policy":
            return {"default": policy_object(connection)}
        case "cluster":
            return _clusters(connection, ids)
        case "gpu_class":
            return _gpu_classes(connection, ids)
        case "node":
            return _nodes(connection, ids)
        case "organization":
            return _organizations(connection, ids)
        case "grant":
            return _grants(connection, ids, now_ms)
        case "job":
            return _jobs(connection, ids, now_ms)
        case "attempt":
            return _attempts(connection, ids)
        case "booking":
            return _bookings(connection, ids, now_ms)
        case _:
            raise AssertionError(f"the feed knows no {kind}")


def _clusters(connection: Connection, ids: Collection[str]) -> dict[str, BaseModel]:
    rows = _CLUSTERS.all(connection, {"ids": ids})
    return {
        row.id: built(ClusterObject, id=row.id, paused=row.paused, observed_through=row.observed_through_ms)
        for row in rows
    }


def _gpu_classes(connection: Connection, ids: Collection[str]) -> dict[str, BaseModel]:
    rows = _GPU_CLASSES.all(connection, {"ids": ids})
    return {
        row.id: built(
            GpuClassObject,
            id=row.id,
            rate_id=row.rate_id,
            rate_thousandths=row.rate_thousandths,
            paused=row.paused,
        )
        for row in rows
    }


def _nodes(connection: Connection, ids: Collection[str]) -> dict[str, BaseModel]:
    keys = [tuple(object_id.split("/", 1)) for object_id in ids]
    by_node: dict[str, list[Row[Any]]] = defaultdict(list)
    wanted = {"ids": [key[0] for key in keys], "names": [key[1] for key in keys], "keys": keys}
    for row in _NODES.all(connection, wanted):
        by_node[f"{row.cluster}/{row.node}"].append(row)
    return {
        object_id: built(
            NodeObject,
            cluster=rows[0].cluster,
            node=rows[0].node,
            schedulable=rows[0].schedulable and not (rows[0].cordoned or rows[0].held_back),
            rack=rows[0].rack,
            capacities=tuple(
                built(
                    NodeCapacityObject,
                    gpu_class=row.gpu_class,
                    total=row.total,
                    foreign=row.foreign_used,
                    used=row.used,
                )
                for row in rows
                if row.gpu_class is not None  # a node without any
            ),
        )
        for object_id, rows in by_node.items()
    }


def _organizations(connection: Connection, ids: Collection[str]) -> dict[str, BaseModel]:
    rows = _ORGANIZATIONS.all(connection, {"ids": ids})
    return {row.id: _organization(row) for row in rows}


def _organization(row: Row[Any]) -> OrganizationObject:
    caps = stored_caps(row.caps)
    return built(
        OrganizationObject,
        id=row.id,
        frozen=row.frozen,
        decayed_usage_gpu_us=row.decayed_usage_gpu_us,
        decayed_as_of=row.decayed_as_of_ms,
        max_gpus=caps.max_gpus,
        pool_thousandths=caps.pool_thousandths,
        opportunistic_usage_gpu_us=row.opportunistic_usage_gpu_us,
        opportunistic_as_of=row.opportunistic_as_of_ms,
    )


def _grants(connection: Connection, ids: Collection[str], now_ms: int) -> dict[str, BaseModel]:
    return {
        grant_id: built(
            GrantObject,
            id=grant_id,
            program_id=tree[0].of_program,
            organization_id=tree[0].of_organization or "",
            starts_at=tree[0].starts_at_ms,
            ends_at=tree[0].ends_at_ms,
            paths=account_paths(tree[0].of_organization or "", tree),
            pace=pace_of(tree[0]),
            max_gpus=tree[0].max_gpus,
            pays=tree[0].pays is not False,
        )
        for grant_id, tree in read_trees(connection, ids).items()
        if tree[0].ends_at_ms > now_ms
    }


def _jobs(connection: Connection, ids: Collection[str], now_ms: int) -> dict[str, BaseModel]:
    rows = _JOBS.all(connection, {"ids": ids})
    preempted: dict[str, list[int]] = defaultdict(list)
    restarted = [
        row.id for row in rows if row.attempt > 1 or (row.attempt and row.state == JobState.QUEUED.value)
    ]
    if restarted:
        for row in _PREEMPTED.all(connection, {"ids": restarted, "since": now_ms - PREEMPTION_MEMORY_MS}):
            preempted[row.job_id].append(row.ended_at_ms)
    return {
        row.id: built(
            JobObject,
            id=row.id,
            organization_id=row.organization_id,
            grant_id=row.grant_id,
            program_id=row.program_id,
            gpu_class=row.gpu_class,
            gpu_classes=classes_of(row),
            gpus_per_pod=row.gpus_per_pod,
            pods=row.pods,
            topology=Topology(row.topology),
            walltime_ms=row.walltime_ms,
            grace_ms=row.grace_ms,
            restartable=row.restartable,
            submitted_at=row.submitted_at_ms,
            state=JobState(row.state),
            attempt=row.attempt,
            not_before=row.not_before_ms,
            cancel_requested_at=row.cancel_requested_at_ms,
            preempted_at=tuple(sorted(preempted[row.id])),
        )
        for row in rows
    }


def _attempts(connection: Connection, ids: Collection[str]) -> dict[str, BaseModel]:
    keys = [(object_id.rpartition("-")[0], int(object_id.rpartition("-")[2])) for object_id in ids]
    pods: dict[tuple[str, int], list[PodPlacement]] = defaultdict(list)
    rows = _ATTEMPTS.all(connection, _by_pair(keys))
    found = [(row.job_id, row.attempt) for row in rows]
    for row in _PODS.all(connection, _by_pair(found)) if found else ():
        pods[(row.job_id, row.attempt)].append(
            built(PodPlacement, index=row.pod_index, node=row.node, gpu_class=row.gpu_class, count=row.gpus)
        )
    return {
        f"{row.job_id}-{row.attempt}": _attempt(row, tuple(pods[(row.job_id, row.attempt)])) for row in rows
    }


def _is_coming(now_ms: int) -> ColumnElement[bool]:
    return and_(occurrences.c.ends_at_ms > now_ms, occurrences.c.cancelled_at_ms.is_(None))


def _bookings(connection: Connection, ids: Collection[str], now_ms: int) -> dict[str, BaseModel]:
    """The times of bookings that are neither over nor cancelled."""
    rows = connection.execute(
        select(
            occurrences.c.id.label("occurrence_id"),
            occurrences.c.starts_at_ms,
            occurrences.c.ends_at_ms,
            bookings,
        )
        .join(bookings, bookings.c.id == occurrences.c.booking_id)
        .where(occurrences.c.id.in_(ids), _is_coming(now_ms))
    )
    return {
        row.occurrence_id: built(
            BookingObject,
            id=row.occurrence_id,
            organization_id=row.organization_id,
            grant_id=row.grant_id,
            gpu_class=row.gpu_class,
            cluster=row.cluster,
            gpus_per_pod=row.gpus_per_pod,
            pods=row.pods,
            starts_at=row.starts_at_ms,
            ends_at=row.ends_at_ms,
            hold=row.hold,
        )
        for row in rows
    }


def _by_pair(keys: list[tuple[str, int]]) -> dict[str, Any]:
    return {"ids": [job_id for job_id, _ in keys], "keys": keys}


def _attempt(row: Row[Any], pods: tuple[PodPlacement, ...]) -> AttemptObject:
    stop = None
    if row.stop_reason is not None:
        stop = built(
            StopRecord,
            reason=StopReason(row.stop_reason),
            stop_at=row.stop_at_ms,
            grace_ms=row.stop_grace_ms,
            for_job=row.stop_for_job,
        )
    spec = json.loads(row.spec)
    return built(
        AttemptObject,
        id=f"{row.job_id}-{row.attempt}",
        job_id=row.job_id,
        organization_id=row.organization_id,
        attempt=row.attempt,
        state=JobState(row.state),
        cluster=row.cluster,
        pods=pods,
        grant_id=row.grant_id,
        hold_id=row.hold_id,
        cost_gpu_us=row.amount_gpu_us,
        walltime_ms=row.walltime_ms,
        grace_ms=row.grace_ms,
        claimed_at=row.claimed_at_ms,
        first_started_at=row.first_started_at_ms,
        last_started_at=row.last_started_at_ms,
        ended_at=row.ended_at_ms,
        capacity_held=row.capacity_held,
        stop=stop,
        opportunistic=row.opportunistic,
        stop_asked=None if row.stop_asked is None else StopReason(row.stop_asked),
        detail=row.detail,
        image=spec["image"],
        command=tuple(spec["command"]),
        environment=spec["environment"],
        annotations=spec["annotations"],
    )
