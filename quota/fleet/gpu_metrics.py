"""The series of the GPUs' inventory, health and quarantine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy import Connection, select

from quota.fleet.gpu_rules import inventory_state
from quota.fleet.gpu_tables import gpus
from quota.fleet.quarantine import policy_document, seen_after_ms
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
    yield _family(
        "hub_quota_inventory_gpus", "GPUs by what the inventory says.", "state", inventory, InventoryState
    )
    yield _family(
        "hub_quota_health_gpus", "GPUs by health as their agents last said.", "state", health, GpuHealth
    )
    yield _family(
        "hub_quota_quarantined_gpus",
        "GPUs out of use, by who took them.",
        "by",
        quarantined,
        ("agent", "operator"),
    )
    document = policy_document(connection, now_ms, speed)
    for name, text, value in (
        ("most", "GPUs that verdicts may take out of use.", document.most_gpus),
        (
            "taken",
            "GPUs that nobody can get because of verdicts, closed nodes whole.",
            document.out_of_use_gpus,
        ),
        (
            "withheld",
            "GPUs that a verdict would have taken, for an operator to decide.",
            document.withheld_gpus,
        ),
    ):
        yield GaugeMetricFamily(f"hub_quota_gpu_breaker_{name}_gpus", text, value)


def _family(
    name: str, text: str, label: str, counted: Counter[str], states: Iterable[str]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for state in states:
        family.add_metric([str(state)], counted[str(state)])
    return family
