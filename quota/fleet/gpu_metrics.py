"""The series of the GPUs' inventory, health and quarantine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import Metric
from sqlalchemy import Connection, select

from quota import families
from quota.fleet.gpu_rules import inventory_state
from quota.fleet.gpu_tables import gpus
from quota.fleet.quarantine import policy_document, seen_after_ms
from quota.fleet.tables import clusters, node_capacity
from quota.schemas.gpus import GpuHealth, InventoryState


def gpu_families(connection: Connection, now_ms: int, speed: int) -> Iterable[Metric]:
    """All families; every state has a series, so that a 0 is seen as one."""
    since_ms = seen_after_ms(connection, now_ms, speed)
    inventory: Counter[str] = Counter()
    health: Counter[str] = Counter()
    quarantined: Counter[str] = Counter()
    chosen = select(gpus.c.registered, gpus.c.last_seen_ms, gpus.c.health, gpus.c.quarantine)
    for row in connection.execute(chosen):
        state = inventory_state(
            registered=row.registered, last_seen_ms=row.last_seen_ms, seen_after_ms=since_ms
        )
        inventory[state.value] += 1
        health[row.health or ""] += 1
        quarantined[row.quarantine] += 1
    yield families.INVENTORY_GPUS.gauge_of(_of(InventoryState, inventory))
    yield families.HEALTH_GPUS.gauge_of(_of(GpuHealth, health))
    yield families.QUARANTINED_GPUS.gauge_of(_of(("agent", "operator"), quarantined))
    yield families.NODES_STALE.gauge_of(_stale(connection, since_ms))
    document = policy_document(connection, now_ms, speed)
    yield families.BREAKER_MOST.gauge(document.most_gpus)
    yield families.BREAKER_TAKEN.gauge(document.out_of_use_gpus)
    yield families.BREAKER_WITHHELD.gauge(document.withheld_gpus)


def _stale(connection: Connection, since_ms: int) -> dict[tuple[str], float]:
    """Nodes with GPUs that nobody has told of since then, by cluster."""
    told = select(gpus.c.node).where(gpus.c.last_seen_ms >= since_ms).distinct()
    heard = set(connection.execute(told).scalars())
    found: dict[tuple[str], float] = dict.fromkeys(
        ((name,) for name in connection.execute(select(clusters.c.id)).scalars()), 0.0
    )
    there = select(node_capacity.c.cluster, node_capacity.c.node).where(node_capacity.c.total > 0).distinct()
    for row in connection.execute(there):
        found[row.cluster,] += row.node not in heard
    return found


def _of(states: Iterable[str], counted: Counter[str]) -> dict[tuple[str], float]:
    return {(str(state),): counted[str(state)] for state in states}
