"""Real agent, collector, gRPC server and quota service; only driver and kubelet are played: evidence finds its job."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from quota.usage.tables import evidence
from tests import databases
from tests.builders import Api, an_api
from tests.fakekubelet.messages import FakePod
from tests.fakenvml.build import build
from tests.integration.agents.nvml_agent import Series
from tests.integration.agents.nvml_node import FIRST, GPU, NODE, SECOND, SPACE, World, a_world

MIG = "MIG-00000000-0000-0000-0000-000000000001"

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with an_api(databases.new_sqlite(tmp_path_factory.mktemp("hub"))) as made:
        yield made


@pytest.fixture
def world(library: Path, api: Api, tmp_path: Path) -> Iterator[World]:
    with a_world(tmp_path, library, api) as made:
        yield made
        assert made.findings() == []


def unattributed(series: Series, gpu_uuid: str) -> float:
    return series.get("hub_gpu_unattributed_busy_seconds_total", {}).get((gpu_uuid, NODE), 0.0)


def allocated(series: Series) -> dict[str, float]:
    return {uuid: value for (uuid, _), value in series.get("hub_gpu_allocated", {}).items()}


def info(series: Series) -> set[tuple[str, str, str]]:
    """(GPU, job, pod) of the present holders."""
    # labels in order: attempt, gpu_uuid, job_id, node, pod_index, workload_namespace, workload_pod
    return {(labels[1], labels[2], labels[6]) for labels in series.get("hub_gpu_allocation_info", {})}


def test_evidence_of_each_gpu_arrives_for_the_job_that_holds_it(world: World) -> None:
    world.driver.gpus[0]["util"], world.driver.gpus[1]["util"] = 80, 20
    world.driver.write()
    (first, pod), (second, _) = world.start(FIRST), world.start(SECOND)
    with world.agent() as agent:
        agent.wait_for(lambda _: min(world.seen_ms(first), world.seen_ms(second, SECOND)) > 1_000)
        # The driver counts its GPUs anew: an index is nobody's name.
        world.driver.gpus.reverse()
        world.driver.write()
        before_ms = world.seen_ms(first)
        series = agent.wait_for(lambda _: world.seen_ms(first) > before_ms + 1_500)
        assert info(series) == {(FIRST, first.id, pod.name), (SECOND, second.id, world.kubelet.pods[1].name)}
        assert allocated(series) == {FIRST: 1, SECOND: 1}
        assert agent.end() == 0
    for job, gpu_uuid, ratio in ((first, FIRST, 0.8), (second, SECOND, 0.2)):
        assert world.measured(job).keys() == {gpu_uuid}
        busy_ms, observed_ms = world.measured(job)[gpu_uuid]
        assert busy_ms == pytest.approx(observed_ms * ratio, abs=3)


def test_a_pod_that_ended_is_listed_on_and_gets_nothing_more(world: World) -> None:
    job, pod = world.start(FIRST)
    with world.agent() as agent:
        agent.wait_for(lambda _: world.seen_ms(job) > 300)
        world.node.end(pod.namespace, pod.name)
        agent.wait_for(lambda series: allocated(series) == {FIRST: 0, SECOND: 0})
        world.kubelet.wait_asked()
        before_s = unattributed(agent.series(), FIRST)
        agent.wait_for(lambda series: unattributed(series, FIRST) > before_s + 0.5)
        held_ms = world.seen_ms(job)
        agent.wait_for(lambda series: unattributed(series, FIRST) > before_s + 1)
        assert world.seen_ms(job) == held_ms
        assert agent.series()["hub_agent_pods"][("ended",)] == 1


def test_a_kubelet_that_restarts_loses_no_holder(world: World) -> None:
    job, _ = world.start(FIRST)
    with world.agent() as agent:
        agent.wait_for(lambda _: world.seen_ms(job) > 300)
        before_s = unattributed(agent.series(), FIRST)
        world.kubelet.stop()
        agent.wait_for(lambda series: series["hub_agent_pods_up"] == {(): 0})
        held_ms = world.seen_ms(job)
        agent.wait_for(lambda _: world.seen_ms(job) > held_ms + 600)
        listed, world.kubelet.pods = world.kubelet.pods, []
        world.kubelet.start()
        # It knows no pods yet; their cgroups are there.
        series = agent.wait_for(lambda series: series["hub_agent_pods_up"] == {(): 1})
        assert allocated(series)[FIRST] == 1
        world.kubelet.pods = listed
        held_ms = world.seen_ms(job)
        series = agent.wait_for(lambda _: world.seen_ms(job) > held_ms + 600)
        assert unattributed(series, FIRST) == before_s
        assert series["hub_agent_pods_gap_seconds_total"][()] > 0
        assert {reason for reason, count in series["hub_agent_pods_failures_total"].items() if count} <= {
            ("absent",),
            ("broken",),
        }


def test_without_a_kubelet_nobody_is_said_to_hold_nothing(world: World) -> None:
    world.kubelet.stop()
    job, _ = world.start(FIRST)
    with world.agent() as agent:
        series = agent.wait_for(lambda series: series["hub_agent_pods_failures_total"]["absent",] > 0)
        assert "hub_gpu_allocated" not in series
        world.kubelet.start()
        agent.wait_for(lambda series: allocated(series) == {FIRST: 1, SECOND: 0})
        agent.wait_for(lambda _: world.seen_ms(job) > 300)


def test_pods_on_one_gpu_share_it_by_their_processes_and_the_rest_is_nobodys(world: World) -> None:
    (first, pod), (second, other) = world.start(f"{FIRST}::0"), world.start(f"{FIRST}::1", f"{FIRST}::2")
    world.node.process(101, pod.namespace, pod.name)
    world.node.process(102, other.namespace, other.name)
    world.node.process(103)
    # the device is busy for 80 %: of which 20, 40 and, of a process of the node's, 10
    world.driver.gpus[0] |= {
        "util": 80,
        "process_util": "101:now:20 102:now:40 103:now:10 104:now:4294967295",
    }
    world.driver.write()
    with world.agent() as agent:
        agent.wait_for(lambda _: min(world.seen_ms(first), world.seen_ms(second)) > 2_000)
        # A container starts anew: another process, even under the number of one that was the other's.
        world.node.process(105, pod.namespace, pod.name)
        world.node.process(101, other.namespace, other.name, started=900)
        world.driver.gpus[0]["process_util"] = "105:now:20 101:now:40 103:now:10"
        world.driver.write()
        held_ms = world.seen_ms(first)
        series = agent.wait_for(lambda _: world.seen_ms(first) > held_ms + 1_500)
        assert {sample[2] for sample in info(series)} == {pod.name, other.name}
        assert series["hub_agent_nvml_errors_total"][("garbage", "process_utilization")] > 0
        assert {labels[2] for labels in series["hub_gpu_workload_busy_seconds_total"]} == {
            first.id,
            second.id,
        }
        assert agent.end() == 0
    for job, ratio in ((first, 0.2), (second, 0.4)):
        busy_ms, observed_ms = world.measured(job)[FIRST]
        # the first cycle has no processes, and the switch falls into one
        assert busy_ms == pytest.approx(observed_ms * ratio, rel=0.25)
    assert unattributed(series, FIRST) > 0.1 * observed_ms / 1000


def test_each_mig_device_is_its_own(world: World) -> None:
    world.driver.gpus[1] |= {"mig_mode": 1, "gpm_support": 1}
    world.driver.migs[1, 0] = {
        "uuid": MIG,
        "name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "memory_total": 10 << 30,
        "gi": 7,
        "gpm": 25,
    }
    world.driver.write()
    job, pod = world.start(MIG)
    with world.agent() as agent:
        series = agent.wait_for(lambda _: world.seen_ms(job, MIG) > 600)
        assert allocated(series) == {FIRST: 0, MIG: 1}
        assert info(series) == {(MIG, job.id, pod.name)}
    busy_ms, observed_ms = world.measured(job)[MIG]
    assert busy_ms == pytest.approx(observed_ms / 4, abs=3)


def test_strangers_and_ids_that_name_no_gpu_give_no_evidence(world: World) -> None:
    world.kubelet.pods = [
        FakePod("default", "notebook", {GPU: [FIRST]}),
        FakePod(SPACE, "job-x-1-0-abcde", {GPU: ["nvidia0/vgpu1"]}, [("gpu.nvidia.com", "gpu-0")]),
    ]
    with world.agent() as agent:
        series = agent.wait_for(lambda series: unattributed(series, FIRST) > 0.5)
        assert allocated(series) == {FIRST: 1, SECOND: 0}
        assert info(series) == {(FIRST, "", "notebook")}
        assert series["hub_agent_pods_unknown_devices"] == {(GPU,): 1, ("gpu.nvidia.com",): 1}
        assert series["hub_agent_spool_records"] == {(): 0}
        assert series["hub_agent_records_sent_total"] == {(): 0}


def test_an_agent_that_is_killed_goes_on_without_a_hole_and_without_counting_twice(world: World) -> None:
    job, _ = world.start(FIRST)
    observed_s = 0.0
    for _ in range(3):
        with world.agent() as agent:
            before_ms = world.seen_ms(job)
            series = agent.wait_for(lambda _, before_ms=before_ms: world.seen_ms(job) > before_ms + 800)
            observed_s = series["hub_gpu_observed_seconds_total"][(FIRST, NODE)]
            agent.process.send_signal(signal.SIGKILL)
            agent.process.wait(20)
    with world.agent() as agent:
        agent.wait_for(lambda _: world.seen_ms(job) > 1_000 * observed_s)
        assert agent.end() == 0
    with world.agent() as agent:
        series = agent.wait_for(lambda series: "hub_gpu_unattributed_busy_seconds_total" in series)
        nobodys_s = unattributed(series, FIRST)
        device_s = series["hub_gpu_observed_seconds_total"][(FIRST, NODE)]
        assert agent.end() == 0
    # Everything that was measured was measured under the job, from the first moment on.
    assert nobodys_s == 0
    assert device_s * 1000 <= world.seen_ms(job)
    assert len({row.agent_epoch for row in world.api.hub.rows(evidence, job_id=job.id)}) == 1
