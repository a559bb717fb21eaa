"""Series of who holds what where: they say what the tables say, and end with what they describe."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from quota.clock import HOUR_MS, day_start_ms
from quota.holding_metrics import holding_families
from quota.reports import reconciliation
from tests.builders import DAY_MS, Hub, a_hub

Values = dict[tuple[str, ...], float]


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    made.take_lease()
    yield made
    made.close()


def series(hub: Hub) -> dict[str, Values]:
    """Values by label values in the order of their names."""
    with hub.database.read() as connection:
        made = list(holding_families(connection))
    return {
        family.name: {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for sample in family.samples
        }
        for family in made
    }


def test_an_attempt_has_a_series_with_its_gpus_until_they_are_free(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    job = hub.submit(gpus_per_pod=2, pods=2, walltime_s=3600)
    assert series(hub)["hub_quota_attempt_gpus"] == {}
    hub.run(job, grant, "n0", "n0")
    key = ("1", "h100", grant.id, job.id, "alpha", grant.program_id)
    assert series(hub)["hub_quota_attempt_gpus"] == {key: 4}
    hub.clock.advance(HOUR_MS // 2)
    hub.finish(job)
    assert series(hub)["hub_quota_attempt_gpus"] == {}


def test_nodes_tell_what_is_used_and_whether_they_take_jobs(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    hub.run(hub.submit(gpus_per_pod=3, walltime_s=3600), grant, "n0")
    before = series(hub)
    nodes = {node for _, node in before["hub_quota_node_open"]}
    assert before["hub_quota_node_open"] == {("sim", node): 1 for node in nodes}
    assert before["hub_quota_node_gpus"]["sim", "h100", "n0", "used"] == 3
    totals = {key: value for key, value in before["hub_quota_node_gpus"].items() if key[3] == "total"}
    assert {key[2] for key in totals} == nodes
    with hub.database.engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET cordoned = true WHERE node = 'n0'"))
    after = series(hub)["hub_quota_node_open"]
    assert {node for (_, node), value in after.items() if not value} == {"n0"}
    with hub.database.engine.begin() as connection:
        connection.execute(text("UPDATE nodes SET cordoned = false, held_back = true WHERE node = 'n0'"))
    assert series(hub)["hub_quota_node_open"] == after


def test_the_last_day_compared_is_told_as_the_comparison_says(hub: Hub) -> None:
    assert series(hub)["hub_quota_reconciled_gpu_seconds"] == {}
    grant = hub.award("alpha", "100")
    job = hub.submit(walltime_s=2 * 3600)
    hub.run(job, grant)
    hub.clock.advance(2 * HOUR_MS)
    hub.finish(job)
    hub.clock.set(day_start_ms("2026-11-22") + 2 * DAY_MS)
    reconciliation.reconcile(hub.database, "2026-11-23")
    (before,) = reconciliation.reconcile(hub.database, "2026-11-22")
    found = series(hub)
    assert found["hub_quota_reconciled_day_timestamp_seconds"] == {
        ("sim",): day_start_ms("2026-11-23") / 1000
    }
    assert set(found["hub_quota_reconciled_gpu_seconds"].values()) == {0}
    with hub.database.engine.begin() as connection:
        connection.execute(text("DELETE FROM reconciliations WHERE day = '2026-11-23'"))
    found = series(hub)
    assert found["hub_quota_reconciled_gpu_seconds"] == {
        ("sim", "ledger"): before.ledger_gpu_ms / 1000,
        ("sim", "cluster"): before.cluster_gpu_ms / 1000,
        ("sim", "observed"): 0,
        ("sim", "busy"): 0,
    }
    assert before.ledger_gpu_ms == 2 * HOUR_MS
    assert found["hub_quota_reconciliation_differences"] == {("sim",): before.differences}
    assert before.differences > 0
