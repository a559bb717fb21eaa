"""A GPU goes bad in a whole hub of real processes: verdict, quarantine, no placement, requeue, refund, recovery."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_workload import verdict
from hub_processes import Hub, a_hub, until

from quota.client import QuotaClient
from quota.schemas.jobs import JobSubmission
from quota.schemas.scheduling import JobState

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NODE_GPUS = 8
NODES = 3
HOLD_DOWN_S = 3600
"""Six seconds of wall time."""
XID = 79


@pytest.fixture
def hub(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Hub]:
    with a_hub(tmp_path / "hub", hold_down_s=request.param) as made:
        yield made


@pytest.mark.parametrize("hub", [HOLD_DOWN_S], indirect=True, ids=[""])
def test_a_gpu_goes_bad_and_comes_back(hub: Hub) -> None:
    with hub.client("alpha") as firm:
        first = submit(firm, "first", runs_s=9000)
        until(lambda: firm.read_job(first).state is JobState.RUNNING, "it runs")
        since_ms = hub.clock.now_ms()
        until(lambda: hub.clock.now_ms() > since_ms + 600_000, "it has run for ten minutes")
        node, gpu = place_of(hub, first, 1)
        hub.plant(fault="break_gpu", node=node, gpu_uuid=gpu, xid=XID)
        ((verdict_id,),) = until(lambda: quarantine_of(hub, gpu), "the GPU is in quarantine")
        until(lambda: hub.ask("SELECT 1 FROM nodes WHERE node = ? AND held_back", node), "its node is closed")
        closed_at = len(hub.events())
        until(lambda: firm.read_job(first).attempt == 2, "what died there runs elsewhere")
        ids = [submit(firm, f"more {n}", runs_s=9000) for n in range(NODES - 1)]
        until(lambda: firm.read_job(ids[0]).state is not JobState.QUEUED, "there is room for one more")
        assert quarantine_of(hub, gpu) == [(verdict_id,)]
        until(lambda: not quarantine_of(hub, gpu), "the hold-down is over")
        released_at = len(hub.events())
        until(lambda: node in nodes_started(hub, released_at), "its node gets work again")
        for job in (first, *ids):
            until(lambda job=job: firm.read_job(job).state is JobState.ENDED, f"{job} ends")
    assert node not in nodes_started(hub, closed_at, released_at)
    judge_story(hub, first, verdict_id)
    verdict(hub)


@pytest.mark.parametrize("hub", [24 * 3600], indirect=True, ids=[""])
def test_a_job_that_waits_for_a_lost_gpu_is_stopped_and_runs_elsewhere(hub: Hub) -> None:
    """Its program does not end by itself: it would hold its GPUs until its walltime is over."""
    with hub.client("alpha") as firm:
        job = submit(firm, "stuck", runs_s=9000)
        until(lambda: firm.read_job(job).state is JobState.RUNNING, "it runs")
        node, gpu = place_of(hub, job, 1)
        lost_ms = hub.clock.now_ms()
        hub.plant(fault="break_gpu", node=node, gpu_uuid=gpu, lost=True, kills=False)
        until(lambda: firm.read_job(job).attempt == 2, "it runs elsewhere")
        until(lambda: firm.read_job(job).state is JobState.ENDED, "it ends")
    ((asked, stop_ms, verdict_id),) = hub.ask(
        "SELECT stop_asked, stop_at_ms, detail FROM attempts WHERE job_id = ? AND attempt = 1", job
    )
    assert (asked, verdict_id.split(":")[0]) == ("gpu_failed", "gpu-verdict")
    assert stop_ms - lost_ms >= 600_000
    ends = hub.ask("SELECT attempt, end_reason FROM attempts WHERE job_id = ? ORDER BY attempt", job)
    assert ends == [(1, "node_failed"), (2, "succeeded")]
    refunds = hub.ask("SELECT refund_kind, evidence FROM transfers WHERE job_id = ? AND type = 'refund'", job)
    assert {kind for kind, _ in refunds} == {"fault"}
    assert all(evidence.startswith(verdict_id) for _, evidence in refunds)
    verdict(hub)


@pytest.mark.parametrize("hub", [24 * 3600], indirect=True, ids=[""])
def test_a_node_that_withdrew_its_bad_gpu_goes_on_with_the_others(hub: Hub) -> None:
    """Seven of its eight GPUs are there to be had, and no job gets the eighth."""
    (node, gpus) = next(
        (event["node"], [gpu["gpu_uuid"] for gpu in event["gpus"]])
        for event in hub.events()
        if event["event"] == "node_added" and len(event["gpus"]) == NODE_GPUS
    )
    until(lambda: hub.ask("SELECT 1 FROM gpus WHERE gpu_uuid = ?", gpus[0]), "the GPU was reported")
    hub.plant(fault="break_gpu", node=node, gpu_uuid=gpus[0], xid=XID, withdrawn=True)
    until(lambda: quarantine_of(hub, gpus[0]), "the GPU is in quarantine")
    counted = "SELECT total FROM node_capacity WHERE node = ?"
    until(lambda: hub.ask(counted, node) == [(NODE_GPUS - 1,)], "the node counts one less")
    until(lambda: not hub.ask("SELECT 1 FROM nodes WHERE node = ? AND held_back", node), "it is open")
    broken_at = len(hub.events())
    with hub.client("alpha") as firm:
        ids = [submit(firm, f"job {n}", runs_s=3000, gpus=NODE_GPUS - 1) for n in range(NODES)]
        until(
            lambda: {firm.read_job(job).state for job in ids} == {JobState.RUNNING}, "each node has its job"
        )
        used = hub.ask("SELECT used FROM node_capacity WHERE node = ?", node)
        for job in ids:
            until(lambda job=job: firm.read_job(job).state is JobState.ENDED, f"{job} ends")
    assert used == [(NODE_GPUS - 1,)]
    started = [event for event in hub.events()[broken_at:] if event["event"] == "pod_started"]
    assert {gpu for event in started for gpu in event["gpu_uuids"]} >= set(gpus[1:])
    assert not any(gpus[0] in event["gpu_uuids"] for event in started)
    assert quarantine_of(hub, gpus[0])
    verdict(hub)


@pytest.mark.parametrize("hub", [24 * 3600], indirect=True, ids=[""])
def test_a_rule_that_calls_every_gpu_bad_takes_one_node(hub: Hub) -> None:
    """10 % of 38 GPUs are 3, and the first bad GPU passes: its node closes, all others stay open."""
    devices = [
        (event["node"], gpu["gpu_uuid"])
        for event in hub.events()
        if event["event"] == "node_added"
        for gpu in event["gpus"]
    ]
    until(lambda: hub.ask("SELECT COUNT(*) FROM gpus") == [(len(devices),)], "the inventory is whole")
    for node, gpu in devices:
        hub.plant(fault="break_gpu", node=node, gpu_uuid=gpu, xid=XID, kills=False)
    counted = "SELECT COUNT(*) FROM gpu_verdicts WHERE health = 'unhealthy'"
    until(lambda: hub.ask(counted)[0][0] >= len(devices), "every GPU has a verdict")
    held = hub.ask("SELECT node FROM nodes WHERE held_back")
    assert len(held) == 1
    assert hub.ask("SELECT DISTINCT node FROM gpus WHERE quarantine <> ''") == held
    with hub.client("operator") as operator:
        policy = operator.read_gpu_policy()
    assert (
        policy.withheld_gpus
        == len(devices) - hub.ask("SELECT COUNT(*) FROM gpus WHERE quarantine <> ''")[0][0]
    )
    assert {code for code, _, _ in hub.findings()} == {"gpu_quarantine_withheld"}
    with hub.client("beta") as firm:
        job = submit(firm, "goes on", runs_s=600)
        until(lambda: firm.read_job(job).state is JobState.ENDED, "work goes on elsewhere")
    assert hub.troubles() == []


def submit(firm: QuotaClient, name: str, *, runs_s: int, gpus: int = NODE_GPUS) -> str:
    """A restartable job on one node, by default on all of it; answers its id."""
    body = JobSubmission(
        name=name,
        gpu_class="h100",
        gpus_per_pod=gpus,
        walltime_s=4 * runs_s,
        restartable=True,
        annotations={"simulate.gpuhub/duration_s": str(runs_s)},
    )
    return firm.submit_job(body, name).id


def place_of(hub: Hub, job: str, attempt: int) -> tuple[str, str]:
    """The node of an attempt's only pod, and the first of its GPUs."""
    (started,) = [
        event
        for event in hub.events()
        if event["event"] == "pod_started" and (event["job_id"], event["attempt"]) == (job, attempt)
    ]
    return started["node"], started["gpu_uuids"][0]


def quarantine_of(hub: Hub, gpu: str) -> list[tuple[Any, ...]]:
    """The verdict that holds a GPU in quarantine."""
    return hub.ask("SELECT quarantined_by FROM gpus WHERE gpu_uuid = ? AND quarantine = 'agent'", gpu)


def nodes_started(hub: Hub, since: int, until_line: int | None = None) -> set[str]:
    """Nodes on which pods started in this part of the journal."""
    part = hub.events()[since:until_line]
    return {event["node"] for event in part if event["event"] == "pod_started"}


def judge_story(hub: Hub, job: str, verdict_id: str) -> None:
    """The attempt died of the fault, its whole time came back once with the verdict as evidence."""
    assert hub.ask("SELECT rule, xid, outcome FROM gpu_verdicts WHERE id = ?", verdict_id) == [
        ("xid_hardware", XID, "quarantined")
    ]
    ends = hub.ask("SELECT attempt, end_reason FROM attempts WHERE job_id = ? ORDER BY attempt", job)
    assert ends == [(1, "node_failed"), (2, "succeeded")]
    (spent,) = hub.ask(
        "SELECT ended_at_ms - last_started_at_ms FROM attempts WHERE job_id = ? AND attempt = 1", job
    )[0]
    refunds = hub.ask(
        "SELECT ends_at_ms - starts_at_ms, refund_kind, evidence FROM transfers"
        " WHERE job_id = ? AND type = 'refund'",
        job,
    )
    assert sum(length for length, _, _ in refunds) == spent
    assert {kind for _, kind, _ in refunds} == {"fault"}
    assert all(evidence.startswith(f"gpu-verdict:{verdict_id}") for _, _, evidence in refunds)
