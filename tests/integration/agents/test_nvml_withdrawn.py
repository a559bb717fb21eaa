"""What the kubelet withdrew reaches the scheduler: real agent, collector, gRPC server and quota service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from quota.fleet.gpu_tables import gpus
from tests import databases
from tests.builders import an_api, node_reports
from tests.fakenvml.build import build
from tests.integration.agents.nvml_agent import Series
from tests.integration.agents.nvml_node import FIRST, GPU, NODE, SECOND, World, a_world

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with (
        an_api(databases.new_sqlite(tmp_path)) as api,
        a_world(tmp_path, build(tmp_path / "nvml"), api) as made,
    ):
        yield made


def test_a_bad_gpu_that_the_kubelet_withdrew_leaves_its_node_open_for_the_others(world: World) -> None:
    """The driver's event, the kubelet's answer, the agent, the service and what it tells the scheduler."""
    hub = world.api.hub
    hub.report(nodes=node_reports({NODE: {"h100": 2}}))
    world.kubelet.offered = {GPU: [FIRST, SECOND]}

    def gone(series: Series) -> dict[str, float]:
        return {uuid: value for (uuid, _), value in series.get("hub_gpu_withdrawn", {}).items()}

    def node() -> tuple[bool, int]:
        # as the scheduler sees it; of two rows the later counts, so the service's time has to go on
        hub.clock.advance(100)
        _, items = hub.snapshot()
        found = items["node", f"sim/{NODE}"].node
        assert found is not None
        return found.schedulable, found.capacities[0].total

    with world.agent() as agent:
        agent.wait_for(lambda series: gone(series) == {FIRST: 0, SECOND: 0})
        world.driver.events.append((0, 0x8, 79))
        world.driver.write()
        agent.wait_for(lambda _: node() == (False, 2))
        # the device plugin has seen it, too, and the kubelet's node says so a little later
        world.kubelet.offered = {GPU: [SECOND]}
        agent.wait_for(lambda series: gone(series) == {FIRST: 1, SECOND: 0})
        agent.wait_for(lambda _: node() == (False, 2) and hub.row(gpus, gpu_uuid=FIRST).withdrawn)
        hub.report(nodes=node_reports({NODE: {"h100": 1}}))
        assert node() == (True, 1)
        job, _ = world.start(SECOND)
        agent.wait_for(lambda _: world.seen_ms(job, SECOND) > 300)
        # the plugin was restarted and calls everything healthy: the node closes before its total has changed
        world.kubelet.offered = {GPU: [FIRST, SECOND]}
        agent.wait_for(lambda _: node() == (False, 1))
        world.kubelet.offered = {GPU: [SECOND]}
        agent.wait_for(lambda _: node() == (True, 1))
        # a kubelet that does not answer this any more: nobody knows
        world.kubelet.refuse_offered = grpc.StatusCode.UNIMPLEMENTED
        agent.wait_for(
            lambda series: ("unimplemented",) in series.get("hub_agent_pods_offered_failures_total", {})
        )
        agent.wait_for(lambda _: node() == (False, 1), timeout_s=90)
        assert gone(agent.series()) == {}
        assert agent.end() == 0
