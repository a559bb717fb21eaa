"""Quota service, cluster and agent die before and after the moment that makes a step last, five times each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_workload import BRISK, Crowd, verdict
from hub_processes import Hub, Shelf, a_hub, until

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.timeout(300)]

DEATHS = 5
CONTAINED = 94
"""An XID after which the GPU goes on."""
OPERATIONS = (
    *("send_decisions", "send_reports", "put_ranking", "take_lease"),
    *("submit_job", "cancel_job", "deliver_evidence"),
)
EVENTS = ("object_created", "object_suspended", "pod_started", "pod_ended")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with Shelf(tmp_path_factory) as shelf:
        yield shelf


@pytest.fixture
def hub(shelf: Shelf) -> Iterator[Hub]:
    with shelf.lend() as hub:
        yield hub


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("point", ["before_commit", "after_commit"])
def test_quota_dies_at(point: str, operation: str, hub: Hub) -> None:
    dies_at("quota", f"{point}.{operation}:2", hub)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("point", ["before_journal", "after_journal"])
def test_cluster_dies_at(point: str, event: str, hub: Hub) -> None:
    dies_at("cluster", f"{point}.{event}:2", hub)


@pytest.mark.parametrize("point", ["before_send", "after_send"])
def test_agent_dies_at(point: str, hub: Hub) -> None:
    dies_at("agent", f"{point}:2", hub)


@pytest.mark.parametrize("point", ["before_verdicts", "sent_verdicts", "after_verdicts"])
def test_agent_dies_at_a_delivery_of_verdicts(point: str, tmp_path: Path) -> None:
    """Every sign that the cluster showed becomes one verdict, however often the agent dies with it in its hands."""
    with a_hub(tmp_path / "hub", hold_down_s=24 * 3600) as hub:
        devices = [
            (event["node"], gpu["gpu_uuid"])
            for event in hub.events()
            if event["event"] == "node_added"
            for gpu in event["gpus"]
        ]
        until(lambda: hub.ask("SELECT COUNT(*) FROM gpus") == [(len(devices),)], "the inventory is whole")
        with Crowd(hub, point, kinds=BRISK, pause_s=(0.05, 0.3)) as crowd:
            half = len(devices) // 2
            strike(hub, devices[:half])
            hub.crash("agent", f"{point}:1", DEATHS)
            strike(hub, devices[half:])
            counted = "SELECT COUNT(DISTINCT gpu_uuid) FROM gpu_verdicts"
            until(lambda: hub.ask(counted) == [(len(devices),)], "every sign has its verdict")
        verdict(hub, crowd)
        found = hub.ask("SELECT gpu_uuid, rule, xid FROM gpu_verdicts ORDER BY gpu_uuid")
        assert found == sorted((uuid, "xid_contained", CONTAINED) for _, uuid in devices)


def strike(hub: Hub, devices: list[tuple[str, str]]) -> None:
    """An XID on each, which leaves all of them in use."""
    for node, uuid in devices:
        hub.plant(fault="break_gpu", node=node, gpu_uuid=uuid, xid=CONTAINED, kills=False)


def test_cluster_dies_in_the_middle_of_a_line(hub: Hub) -> None:
    program = hub.programs["cluster"]
    with Crowd(hub, "torn", kinds=BRISK, pause_s=(0.05, 0.3)) as crowd:
        for _ in range(DEATHS):
            time.sleep(0.5)
            program.comes_back = False
            hub.kill("cluster")
            hub.tear_journal()
            program.start()
        program.comes_back = True
    verdict(hub, crowd)


def dies_at(name: str, crash_at: str, hub: Hub) -> None:
    with Crowd(hub, crash_at, kinds=BRISK, pause_s=(0.05, 0.3)) as crowd:
        hub.crash(name, crash_at, DEATHS)
    verdict(hub, crowd)
