"""The switches that let nothing start: on the hub, on a cluster, on a GPU class, on a node.

A start locks each switch it depends on against being thrown until it is committed, and a switch waits for the
starts that passed it. So once a pause is answered, no start is accepted any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Select, Table, bindparam, select, update

from quota.audit import service as audit
from quota.audit.tables import audit as audit_rows
from quota.db import Tx
from quota.errors import NotFound, NotSchedulable
from quota.fleet.tables import clusters, gpu_classes, hub_switches, nodes
from quota.prepared import Prepared
from quota.schemas.identity import Caller
from quota.schemas.switches import PlacementKind, PlacementList, PlacementSwitch

HUB = "hub"
"""The id of the one hub's switch."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a kind's switches are stored, and which object shows them in the feed."""

    table: Table
    paused: Column[Any]

    def read(self) -> Select[Any]:
        return select(self.paused).where(self.table.c.id == bindparam("row"))


_PLACES: dict[PlacementKind, _Place] = {
    "hub": _Place(hub_switches, hub_switches.c.placement_paused),
    "cluster": _Place(clusters, clusters.c.paused),
    "gpu_class": _Place(gpu_classes, gpu_classes.c.paused),
}
_READ = {kind: Prepared(place.read()) for kind, place in _PLACES.items()}
_THROW = {kind: Prepared(place.read().with_for_update()) for kind, place in _PLACES.items()}
# FOR KEY SHARE: a report may move the watermark on the same row meanwhile, a switch may not
_RELY_ON = {
    kind: Prepared(place.read().with_for_update(read=True, key_share=True)) for kind, place in _PLACES.items()
}
_LAST_PAUSE = (
    select(audit_rows.c.at_ms, audit_rows.c.actor, audit_rows.c.reason)
    .where(audit_rows.c.subject == bindparam("of_subject"), audit_rows.c.action == bindparam("of_action"))
    .order_by(audit_rows.c.id.desc())
    .limit(1)
)


def set_paused(tx: Tx, caller: Caller, kind: PlacementKind, key: str, paused: bool, reason: str) -> bool:
    """Throw one switch; False if it stands so already. Raises NotFound."""
    before = _state(tx.connection, _THROW, kind, key)
    if before == paused:
        return False
    place = _PLACES[kind]
    tx.connection.execute(
        update(place.table).where(place.table.c.id == _row(kind, key)).values({place.paused.name: paused})
    )
    tx.touch(*(("policy", "default") if kind == "hub" else (kind, key)))
    states = {"before": {"paused": before}, "after": {"paused": paused}}
    audit.record(tx, caller, _action(kind, paused), key, reason=reason, **states)
    return True


def set_cordoned(tx: Tx, caller: Caller, cluster: str, node: str, cordoned: bool, reason: str) -> bool:
    """Keep new jobs off a node, or let them on again; False if it stands so already. Raises NotFound."""
    here = (nodes.c.cluster == cluster, nodes.c.node == node)
    before = tx.connection.execute(
        select(nodes.c.cordoned).where(*here).with_for_update()
    ).scalar_one_or_none()
    if before is None:
        raise NotFound("there is no node {node} on cluster {cluster}", node=node, cluster=cluster)
    if before == cordoned:
        return False
    tx.connection.execute(update(nodes).where(*here).values(cordoned=cordoned))
    subject = f"{cluster}/{node}"
    tx.touch("node", subject)
    action = "node.cordon" if cordoned else "node.uncordon"
    states = {"before": {"cordoned": before}, "after": {"cordoned": cordoned}}
    audit.record(tx, caller, action, subject, reason=reason, **states)
    return True


def list_switches(connection: Connection) -> PlacementList:
    """Every switch: the hub's, the clusters', the classes'; a paused one with since when, by whom and why."""
    items = [read_switch(connection, "hub", HUB)]
    kinds: tuple[PlacementKind, ...] = ("cluster", "gpu_class")
    for kind in kinds:
        ids = select(_PLACES[kind].table.c.id).order_by(_PLACES[kind].table.c.id)
        items += [read_switch(connection, kind, key) for key in connection.execute(ids).scalars().all()]
    return PlacementList(items=tuple(items))


def read_switch(connection: Connection, kind: PlacementKind, key: str) -> PlacementSwitch:
    """One switch. Raises NotFound."""
    if not _state(connection, _READ, kind, key):
        return PlacementSwitch(kind=kind, id=key, paused=False)
    last = {"of_subject": key, "of_action": _action(kind, True)}
    row = connection.execute(_LAST_PAUSE, last).one_or_none()
    if row is None:  # its audit row is inserted when the transaction is published
        return PlacementSwitch(kind=kind, id=key, paused=True)
    return PlacementSwitch(kind=kind, id=key, paused=True, since=row.at_ms, by=row.actor, reason=row.reason)


def check_open(tx: Tx, cluster: str, classes: Iterable[str]) -> None:
    """Raise NotSchedulable, naming what is paused; else nothing of it can be paused until `tx` is committed."""
    wanted: list[tuple[PlacementKind, str]] = [("hub", HUB), ("cluster", cluster)]
    wanted += [("gpu_class", name) for name in sorted(set(classes))]
    for kind, key in wanted:
        if _paused_for_good(tx, kind, key):
            raise NotSchedulable("placement is paused on {kind} {id}", kind=kind, id=key)


def _paused_for_good(tx: Tx, kind: PlacementKind, key: str) -> bool:
    """As it stays until the transaction ends; what is not there takes no jobs."""
    try:
        return tx.once(("paused", kind, key), lambda: _state(tx.connection, _RELY_ON, kind, key))
    except NotFound as error:
        raise NotSchedulable("there is no {kind} {id}", kind=kind, id=key) from error


def _state(
    connection: Connection, statements: dict[PlacementKind, Prepared], kind: PlacementKind, key: str
) -> bool:
    known = kind != "hub" or key == HUB
    row = statements[kind].one_or_none(connection, {"row": _row(kind, key)}) if known else None
    if row is None:
        raise NotFound("there is no {kind} {id}", kind=kind, id=key)
    return bool(row[0])


def _row(kind: PlacementKind, key: str) -> int | str:
    return 1 if kind == "hub" else key


def _action(kind: PlacementKind, paused: bool) -> str:
    return f"{kind}.{'pause' if paused else 'resume'}"
