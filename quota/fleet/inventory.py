"""The inventory of GPUs: what agents see, what operators registered, and the findings where the two differ.

Rows of agents carry the time at which the GPU was read. Of two the later counts, so a row may come twice, late or
never: the next one says how the GPU is now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from quota.audit import service as audit
from quota.clock import instant_text
from quota.db import Database, Tx
from quota.door import page
from quota.errors import NotFound
from quota.fleet import quarantine
from quota.fleet.gpu_rules import inventory_state
from quota.fleet.gpu_tables import gpu_verdicts, gpus
from quota.fleet.quarantine import seen_after_ms
from quota.schemas.gpus import (
    BAD,
    Gpu,
    GpuDetails,
    GpuHealth,
    GpuList,
    GpuRow,
    Inventory,
    InventoryReply,
    InventoryState,
    StoredVerdict,
)
from quota.schemas.identity import Caller

VERDICTS_SHOWN = 50
_SAID = ("node", "gpu_class", "model", "serial", "pci_bus_id", "driver", "withdrawn")
_REGISTERED = ("registered", "asset_number", "site", "expected_serial", "expected_node")
_NEVER_SEEN: dict[str, Any] = {
    "node": "",
    "gpu_class": "",
    "model": "",
    "serial": "",
    "pci_bus_id": "",
    "driver": "",
    "first_seen_ms": None,
    "last_seen_ms": None,
    "health": None,
    "health_since_ms": None,
    "rule": "",
    "withdrawn": False,
    "registered": False,
    "asset_number": "",
    "site": "",
    "expected_serial": "",
    "expected_node": "",
    "quarantine": "",
    "quarantined_at_ms": None,
    "quarantined_by": "",
    "quarantine_reason": "",
    "withheld_verdict": None,
}


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a delivery's rows."""

    newer: int
    conflicts: int


def store_rows(tx: Tx, rows: Sequence[GpuRow]) -> Taken:
    """Take over what agents read, where it is newer than what is known; GPUs found well again are let back.

    A GPU that another node reported lately stays that node's: the row is a finding.
    """
    known = _known(tx.connection, {row.gpu_uuid for row in rows})
    after_ms = seen_after_ms(tx.connection, tx.now_ms, tx.speed)
    same: dict[int, list[str]] = {}
    moved: set[str] = set()
    newer: list[GpuRow] = []
    conflicts = 0
    # in the order of ids, so that two deliveries never wait for each other in a circle
    for row in sorted(rows, key=lambda row: (row.gpu_uuid, row.observed_at)):
        before = known.get(row.gpu_uuid)
        seen_ms = min(row.observed_at, tx.now_ms)
        if before is not None and is_elsewhere(before, row.node, after_ms):
            conflicts += 1
            find_claim(tx, before, row.node)
            continue
        if before is not None and before.last_seen_ms is not None and before.last_seen_ms >= seen_ms:
            continue
        newer.append(row)
        if before is not None and before.last_seen_ms is not None and _says_the_same(before, row):
            same.setdefault(seen_ms, []).append(row.gpu_uuid)
            continue
        moved |= {row.node} | ({before.node} if before is not None else set())
        known[row.gpu_uuid] = _store_row(tx, before, row, seen_ms)
    for seen_ms, uuids in sorted(same.items()):
        for start in range(0, len(uuids), 500):
            part = gpus.c.gpu_uuid.in_(uuids[start : start + 500])
            tx.connection.execute(update(gpus).where(part).values(last_seen_ms=seen_ms))
    _let_back(tx, newer, known)
    if moved:
        bad = select(gpus.c.node).where(gpus.c.quarantine != "", gpus.c.node.in_(sorted(moved))).distinct()
        concerned = list(tx.connection.execute(bad).scalars())
        quarantine.judge_nodes(tx, names=concerned)
    return Taken(len(newer), conflicts)


def is_elsewhere(row: Row[Any], node: str, after_ms: int) -> bool:
    """Whether another node reported the GPU lately: nobody can claim what another node has."""
    return bool(row.node not in ("", node) and (row.last_seen_ms or 0) >= after_ms)


def find_claim(tx: Tx, row: Row[Any], node: str) -> None:
    """Two nodes say that they have the same GPU."""
    audit.find(tx, "gpu_claimed_twice", row.gpu_uuid, f"reported by {node} while {row.node} has it")


def _known(connection: Connection, uuids: Iterable[str]) -> dict[str, Row[Any]]:
    wanted = sorted(uuids)
    found: dict[str, Row[Any]] = {}
    for start in range(0, len(wanted), 500):
        part = select(gpus).where(gpus.c.gpu_uuid.in_(wanted[start : start + 500]))
        found |= {row.gpu_uuid: row for row in connection.execute(part)}
    return found


def _says_the_same(before: Row[Any], row: GpuRow) -> bool:
    return before.health == row.health.value and all(
        getattr(before, name) == getattr(row, name) for name in _SAID
    )


def _store_row(tx: Tx, before: Row[Any] | None, row: GpuRow, seen_ms: int) -> Row[Any]:
    values: dict[str, Any] = {name: getattr(row, name) for name in _SAID}
    values |= {"last_seen_ms": seen_ms}
    if before is None or before.first_seen_ms is None:
        values["first_seen_ms"] = seen_ms
    if before is None or before.health != row.health.value:
        values |= {"health": row.health.value, "health_since_ms": seen_ms}
        if row.health is GpuHealth.HEALTHY:
            values["rule"] = ""
    if before is None:
        tx.connection.execute(insert(gpus), _NEVER_SEEN | {"gpu_uuid": row.gpu_uuid} | values)
    else:
        tx.connection.execute(update(gpus).where(gpus.c.gpu_uuid == row.gpu_uuid).values(values))
    after = tx.connection.execute(select(gpus).where(gpus.c.gpu_uuid == row.gpu_uuid)).one()
    _find_differences(tx, after)
    return after


def _let_back(tx: Tx, rows: Sequence[GpuRow], known: dict[str, Row[Any]]) -> None:
    for row in sorted(rows, key=lambda row: row.gpu_uuid):
        now = known.get(row.gpu_uuid)
        well = row.proven and row.health not in BAD
        taken = now is not None and (now.quarantine == quarantine.AGENT or now.withheld_verdict is not None)
        # a row that was read before the verdict knows nothing of it
        if well and taken and now is not None and row.observed_at >= (now.quarantined_at_ms or 0):
            quarantine.release_by_agent(tx, row.gpu_uuid, f"{row.health.value} again, says {row.node}")


def register(tx: Tx, caller: Caller, body: Inventory) -> InventoryReply:
    """Take over lines of the inventory; the same again changes nothing, and what is not named stays as it is."""
    known = _known(tx.connection, {line.gpu_uuid for line in body.gpus})
    changed = 0
    for line in sorted(body.gpus, key=lambda line: line.gpu_uuid):
        before = known.get(line.gpu_uuid)
        wanted: dict[str, Any] = {
            "registered": line.expected,
            "asset_number": line.asset_number,
            "site": line.site,
            "expected_serial": line.serial,
            "expected_node": line.node,
        }
        if before is not None and all(getattr(before, name) == wanted[name] for name in _REGISTERED):
            continue
        changed += 1
        if before is None:
            known_of_it = {"gpu_class": line.gpu_class, "model": line.model}
            tx.connection.execute(
                insert(gpus), _NEVER_SEEN | {"gpu_uuid": line.gpu_uuid} | wanted | known_of_it
            )
        else:
            tx.connection.execute(update(gpus).where(gpus.c.gpu_uuid == line.gpu_uuid).values(wanted))
        after = tx.connection.execute(select(gpus).where(gpus.c.gpu_uuid == line.gpu_uuid)).one()
        known[line.gpu_uuid] = after
        states = None if before is None else {name: getattr(before, name) for name in _REGISTERED}
        audit.record(
            tx, caller, "gpu.register", line.gpu_uuid, reason=body.reason, before=states, after=wanted
        )
        _find_differences(tx, after)
    return InventoryReply(changed=changed, unchanged=len(body.gpus) - changed)


def _find_differences(tx: Tx, row: Row[Any]) -> None:
    for name, expected, seen in (
        ("serial", row.expected_serial, row.serial),
        ("node", row.expected_node, row.node),
    ):
        if row.registered and expected and seen and expected != seen:
            audit.find(
                tx, "gpu_differs", row.gpu_uuid, f"{name} is {seen}, the inventory says {expected}",
                {"expected": expected, "seen": seen},
            )  # fmt: skip


def list_gpus(
    connection: Connection,
    now_ms: int,
    speed: int,
    after: str | None,
    limit: int,
    node: str | None = None,
    site: str | None = None,
    inventory: InventoryState | None = None,
    *,
    quarantined: bool | None = None,
) -> GpuList:
    """GPUs in order of UUID; those of one node, one site, one state of the inventory, in quarantine or not."""
    since_ms = seen_after_ms(connection, now_ms, speed)
    statement = select(gpus).order_by(gpus.c.gpu_uuid).limit(limit + 1)
    if after is not None:
        statement = statement.where(gpus.c.gpu_uuid > after)
    if node is not None:
        statement = statement.where(gpus.c.node == node)
    if site is not None:
        statement = statement.where(gpus.c.site == site)
    if quarantined is not None:
        statement = statement.where((gpus.c.quarantine != "") == quarantined)
    if inventory is not None:
        registered = inventory in (InventoryState.EXPECTED, InventoryState.VANISHED)
        seen = gpus.c.last_seen_ms.is_not(None) & (gpus.c.last_seen_ms >= since_ms)
        wanted = inventory in (InventoryState.EXPECTED, InventoryState.UNKNOWN)
        statement = statement.where(gpus.c.registered.is_(registered), seen if wanted else ~seen)
    rows, following = page(connection.execute(statement).all(), limit, lambda row: row.gpu_uuid)
    return GpuList(items=tuple(_gpu(row, since_ms) for row in rows), next=following)


def read_gpu(connection: Connection, now_ms: int, speed: int, gpu_uuid: str) -> GpuDetails:
    """One GPU with its latest verdicts. Raises NotFound."""
    row = connection.execute(select(gpus).where(gpus.c.gpu_uuid == gpu_uuid)).one_or_none()
    if row is None:
        raise NotFound("there is no GPU {gpu_uuid}", gpu_uuid=gpu_uuid)
    found = connection.execute(
        select(gpu_verdicts)
        .where(gpu_verdicts.c.gpu_uuid == gpu_uuid)
        .order_by(gpu_verdicts.c.received_at_ms.desc(), gpu_verdicts.c.at_ms.desc(), gpu_verdicts.c.id.desc())
        .limit(VERDICTS_SHOWN)
    )
    verdicts = tuple(
        StoredVerdict(
            id=each.id,
            gpu_uuid=each.gpu_uuid,
            node=each.node,
            health=each.health,
            rule=each.rule,
            xid=each.xid,
            fault=each.fault,
            since=each.since_ms,
            at=each.at_ms,
            detail=each.detail,
            received_at=each.received_at_ms,
            outcome=each.outcome,
        )
        for each in found
    )
    return GpuDetails(gpu=_gpu(row, seen_after_ms(connection, now_ms, speed)), verdicts=verdicts)


def find_strays(database: Database) -> int:
    """Findings for GPUs that vanished, and for unknown ones once there is an inventory; nodes are judged anew.

    One finding per disappearance, named by when the GPU was seen last. Answers how many are new.
    """
    clock = database.clock
    with database.read() as connection:
        since_ms = seen_after_ms(connection, clock.now_ms(), clock.speed)
        rows = connection.execute(select(gpus).order_by(gpus.c.gpu_uuid)).all()
    has_inventory = any(row.registered for row in rows)
    states = {row.gpu_uuid: _state(row, since_ms) for row in rows}
    strays = [
        row
        for row in rows
        if states[row.gpu_uuid] is InventoryState.VANISHED
        or (has_inventory and states[row.gpu_uuid] is InventoryState.UNKNOWN)
    ]
    database.write(lambda tx: quarantine.judge_nodes(tx))
    return sum(database.write_each(strays, lambda tx, row: _find_stray(tx, row, states[row.gpu_uuid])))


def _find_stray(tx: Tx, row: Row[Any], state: InventoryState) -> bool:
    numbers: dict[str, int | str] = {
        "node": row.node or row.expected_node,
        "asset_number": row.asset_number,
        "serial": row.serial or row.expected_serial,
    }
    if state is InventoryState.UNKNOWN:
        return audit.find(
            tx, "gpu_unknown", row.gpu_uuid, f"seen on {row.node}, not in the inventory", numbers
        )
    seen = "never seen" if row.last_seen_ms is None else f"last seen at {instant_text(row.last_seen_ms)}"
    return audit.find(tx, "gpu_vanished", row.gpu_uuid, seen, numbers)


def _state(row: Row[Any], since_ms: int) -> InventoryState:
    return inventory_state(registered=row.registered, last_seen_ms=row.last_seen_ms, seen_after_ms=since_ms)


def _gpu(row: Row[Any], since_ms: int) -> Gpu:
    return Gpu(
        gpu_uuid=row.gpu_uuid,
        serial=row.serial or row.expected_serial,
        asset_number=row.asset_number,
        site=row.site,
        node=row.node or row.expected_node,
        gpu_class=row.gpu_class,
        model=row.model,
        pci_bus_id=row.pci_bus_id,
        driver=row.driver,
        registered=row.registered,
        inventory=_state(row, since_ms),
        health=None if row.health is None else GpuHealth(row.health),
        health_since=row.health_since_ms,
        rule=row.rule,
        withdrawn=row.withdrawn,
        quarantine=row.quarantine,
        quarantined_at=row.quarantined_at_ms,
        quarantined_by=row.quarantined_by,
        quarantine_reason=row.quarantine_reason,
        withheld=row.withheld_verdict is not None,
        first_seen=row.first_seen_ms,
        last_seen=row.last_seen_ms,
        etag=quarantine.tag_of(row),
    )
