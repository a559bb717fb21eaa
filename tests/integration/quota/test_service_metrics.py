"""What the quota service counts for Prometheus, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version

import pytest
from sqlalchemy import update

from quota.audit import service as audit
from quota.clock import HOUR_MS
from quota.families import FAMILIES
from quota.fleet.service import read_rate
from quota.fleet.tables import nodes
from quota.jobs.tables import attempts
from quota.metrics import HubCollector
from quota.programs.tables import grants
from quota.schemas.scheduling import EndReason
from tests.builders import START_MS, Hub, a_hub, lost, node_reports
from tests.integration.quota.gpu_world import see

DAY_MS = 24 * HOUR_MS


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


def collected(hub: Hub) -> dict[tuple[str, ...], float]:
    """Every sample by name and label values, in the order of the labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in HubCollector(hub.database, hub.clock).collect()
        for sample in family.samples
    }


def test_an_empty_hub_serves_every_family(hub: Hub) -> None:
    served = [family.name for family in HubCollector(hub.database, hub.clock).collect()]
    assert len(served) == len(set(served))
    declared = {family.name.removesuffix("_total").removesuffix("_info") for family in FAMILIES}
    assert declared - set(served) == {"hub_quota_seal_timestamp_seconds"}, "nothing is sealed yet"
    assert set(served) <= declared
    assert collected(hub)["hub_quota_build_info", version("gpuhub")] == 1


def test_grants_show_their_balance_their_term_and_their_pace(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    names = ("alpha", "ax", grant.id)
    job = hub.submit(gpus_per_pod=2, walltime_s=3600)
    hub.start(job, grant, "n0")
    seen = collected(hub)
    assert seen["hub_quota_grant_limit_gpu_seconds", *names] == 360_000
    assert seen["hub_quota_grant_held_gpu_seconds", *names] == 2 * 3600
    assert seen["hub_quota_grant_used_gpu_seconds", *names] == 0
    assert seen["hub_quota_grant_end_timestamp_seconds", *names] == grant.ends_at / 1000
    assert seen["hub_quota_grant_start_timestamp_seconds", *names] == grant.starts_at / 1000
    assert ("hub_quota_grant_pace_lag_seconds", *names) not in seen
    lag = update(grants).where(grants.c.id == grant.id).values(pace_lag_ms=-90_000)
    hub.database.write(lambda tx: tx.connection.execute(lag) and None)
    assert collected(hub)["hub_quota_grant_pace_lag_seconds", *names] == -90
    assert seen["hub_quota_business_timestamp_seconds",] == hub.now / 1000


def test_jobs_are_counted_until_they_end(hub: Hub) -> None:
    grant = hub.award("alpha", "100")
    first = hub.submit()
    hub.clock.advance(HOUR_MS)
    hub.submit()
    hub.award("beta", "10")
    hub.submit("beta")
    seen = collected(hub)
    assert seen["hub_quota_jobs", "alpha", "queued"] == 2
    assert seen["hub_quota_queue_oldest_timestamp_seconds", "alpha"] == START_MS / 1000
    assert seen["hub_quota_queue_oldest_timestamp_seconds", "beta"] == (START_MS + HOUR_MS) / 1000
    hub.run(first, grant, "n0")
    seen = collected(hub)
    assert (seen["hub_quota_jobs", "alpha", "queued"], seen["hub_quota_jobs", "alpha", "running"]) == (1, 1)
    assert seen["hub_quota_queue_oldest_timestamp_seconds", "alpha"] == (START_MS + HOUR_MS) / 1000
    assert (seen["hub_quota_holds_unresolved",], seen["hub_quota_attempts_unsettled", "sim"]) == (1, 1)
    assert seen["hub_quota_gpus", "sim", "h100", "used"] == 1
    hub.clock.advance(60_000)
    hub.finish(first)
    seen = collected(hub)
    assert not any(name == "hub_quota_jobs" and "ended" in labels for name, *labels in seen)
    assert ("hub_quota_jobs", "alpha", "running") not in seen
    assert seen["hub_quota_gpus", "sim", "h100", "used"] == 0


def test_nodes_are_counted_by_who_closed_them(hub: Hub) -> None:
    every = sum(value for (name, *_), value in collected(hub).items() if name == "hub_quota_nodes")
    cordon = update(nodes).where(nodes.c.node == "n0").values(cordoned=True)
    close = update(nodes).where(nodes.c.node.in_(["n0", "n1"])).values(schedulable=False)
    hold_back = update(nodes).where(nodes.c.node.in_(["n0", "a0"])).values(held_back=True)
    for statement in (cordon, close, hold_back):
        hub.database.write(lambda tx, statement=statement: tx.connection.execute(statement) and None)
    seen = collected(hub)
    assert seen["hub_quota_nodes", "sim", "cordoned"] == 1, "what an operator did is told first"
    assert seen["hub_quota_nodes", "sim", "closed"] == 1
    assert seen["hub_quota_nodes", "sim", "held_back"] == 1
    assert sum(value for (name, *_), value in seen.items() if name == "hub_quota_nodes") == every


def test_findings_have_a_series_before_there_is_any(hub: Hub) -> None:
    assert collected(hub)["hub_quota_findings_total", "statement_changed"] == 0
    for number in range(2):
        hub.database.write(lambda tx, n=number: audit.find(tx, "statement_changed", f"s{n}", "d"))
    hub.database.write(lambda tx: audit.find(tx, "seen_for_the_first_time", "s", "d"))
    seen = collected(hub)
    assert seen["hub_quota_findings_total", "statement_changed"] == 2
    assert seen["hub_quota_findings_total", "seen_for_the_first_time"] == 1


def test_lease_and_watermark_are_told(hub: Hub) -> None:
    seen = collected(hub)
    assert seen["hub_quota_scheduler_lease_expires_timestamp_seconds",] > 0
    hub.clock.advance(90_000)
    assert (
        collected(hub)["hub_quota_ledger_lag_seconds", "sim"]
        == seen["hub_quota_ledger_lag_seconds", "sim"] + 90
    )


def test_what_has_ended_is_counted_by_how_and_what_has_to_be_done_again_by_its_time(hub: Hub) -> None:
    seen = collected(hub)
    ended = {labels[0]: value for (name, *labels), value in seen.items() if name == "hub_quota_ended_jobs"}
    assert ended == dict.fromkeys((reason.value for reason in EndReason), 0)
    grant = hub.award(hours="100")
    done, failed = hub.submit(gpus_per_pod=2), hub.submit(gpus_per_pod=2)
    small = hub.submit(gpu_class="a100", gpus_per_pod=2, restartable=True)
    hub.run(done, grant, "n0")
    hub.run(failed, grant, "n0")
    hub.run(small, grant, "a0")
    hub.clock.advance(600_000)
    hub.finish(done)
    hub.finish(failed, exit_code=1)
    hub.report(lost(small, hub.now))
    hub.cancel(hub.submit().id)
    seen = collected(hub)
    found = {
        name: seen["hub_quota_ended_jobs", name]
        for name in ("succeeded", "failed", "cancelled", "node_failed")
    }
    assert found == {"succeeded": 1, "failed": 1, "cancelled": 1, "node_failed": 0}, (
        "the lost one waits again"
    )
    wasted = {
        labels[0]: value for (name, *labels), value in seen.items() if name == "hub_quota_wasted_gpu_seconds"
    }
    rate = seen_rate(hub, "a100")
    assert wasted == {
        "failed": 1200,
        "node_failed": 1200 * rate,
        "preempted": 0,
        "requeued": 0,
        "abandoned": 0,
    }
    # a verdict says that the failed one's GPU was to blame, and that it may run again
    moved = update(attempts).where(attempts.c.job_id == failed.id).values(end_reason="node_failed")
    hub.database.write(lambda tx: tx.connection.execute(moved) and None)
    assert collected(hub)["hub_quota_wasted_gpu_seconds", "failed"] == 0


def seen_rate(hub: Hub, gpu_class: str) -> float:
    """The class's rate against the reference GPU."""
    with hub.database.read() as connection:
        return read_rate(connection, gpu_class).rate_thousandths / 1000


def test_nodes_of_which_nobody_tells_are_stale(hub: Hub) -> None:
    every = len(hub.rows(nodes))
    assert collected(hub)["hub_quota_nodes_stale", "sim"] == every, "no agent has ever told of them"
    see(hub, "n0", 2)
    assert collected(hub)["hub_quota_nodes_stale", "sim"] == every - 1
    hub.clock.advance(599_000)
    assert collected(hub)["hub_quota_nodes_stale", "sim"] == every - 1
    see(hub, "n1", 1)
    hub.clock.advance(2_000)
    assert collected(hub)["hub_quota_nodes_stale", "sim"] == every - 1, "the one is silent, the other was not"
    hub.report(nodes=node_reports({"n0": {"h100": 0}}))
    assert collected(hub)["hub_quota_nodes_stale", "sim"] == 0, "without GPUs there is nothing to tell"
