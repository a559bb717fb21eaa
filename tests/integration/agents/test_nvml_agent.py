"""The real agent and the real collector on the fake driver, through everything that drivers do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakenvml.build import FakeDriver, an_h100, build
from tests.integration.agents.nvml_agent import NvmlAgent, Series, an_nvml_agent

FIRST, SECOND, THIRD = (str(an_h100(number)["uuid"]) for number in range(3))
MIG = "MIG-00000000-0000-0000-0000-000000000001"
OTHER_MIG = "MIG-00000000-0000-0000-0000-000000000002"

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


def two_gpus(folder: Path) -> FakeDriver:
    made = FakeDriver(folder / "state", [an_h100(0), an_h100(1)])
    made.write()
    return made


@pytest.fixture(scope="module")
def shared(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NvmlAgent, FakeDriver]]:
    folder = tmp_path_factory.mktemp("shared")
    driver = two_gpus(folder)
    with an_nvml_agent(driver, library, folder) as running:
        yield running, driver


@pytest.fixture
def driver(shared: tuple[NvmlAgent, FakeDriver]) -> FakeDriver:
    """The driver of `agent`, healthy again."""
    made = shared[1]
    made.gpus, made.migs, made.fails, made.delays = [an_h100(0), an_h100(1)], {}, [], []
    made.write()
    return made


@pytest.fixture
def agent(shared: tuple[NvmlAgent, FakeDriver], driver: FakeDriver) -> NvmlAgent:
    """One that several tests use, one after the other; it reads both GPUs."""
    shared[0].wait_for(both_up, 60)
    return shared[0]


@pytest.fixture
def own_driver(tmp_path: Path) -> FakeDriver:
    """For a test with an agent of its own."""
    return two_gpus(tmp_path)


def both_up(series: Series) -> bool:
    return ups(series) == {FIRST: 1, SECOND: 1}


def ups(series: Series) -> dict[str, float]:
    return {uuid: value for (uuid, _), value in series.get("hub_gpu_up", {}).items()}


def state(series: Series) -> str:
    return next(iter(series["hub_agent_nvml_state"]))[0]


def xids(series: Series, xid_class: str, uuid: str, xid: str) -> float:
    """How often; labels in order of name."""
    return series.get("hub_gpu_xid_events_total", {}).get((xid_class, uuid, "gpu-07", xid), 0)


def of(series: Series, name: str, uuid: str) -> float | None:
    """One GPU's value of a series with no further labels."""
    return series.get(name, {}).get((uuid, "gpu-07"))


def restarts(series: Series, reason: str) -> float:
    return series.get("hub_agent_nvml_restarts_total", {}).get((reason,), 0)


def observed(series: Series, uuid: str) -> float:
    return of(series, "hub_gpu_observed_seconds_total", uuid) or 0


def goes_on(agent: NvmlAgent, uuid: str, by_s: float = 0.5) -> None:
    """Wait until a GPU was observed for longer than it is now."""
    before_s = observed(agent.series(), uuid)
    agent.wait_for(lambda series: observed(series, uuid) > before_s + by_s)


def test_what_was_busy_is_measured_and_what_is_not_known_is_not_said(
    own_driver: FakeDriver, library: Path, tmp_path: Path
) -> None:
    # an agent of its own: the counters of a shared one also hold what other tests let its GPUs do
    with an_nvml_agent(own_driver, library, tmp_path) as agent:
        first = agent.wait_for(both_up)
        began_s = time.time()
        series = agent.wait_for(lambda series: observed(series, FIRST) > observed(first, FIRST) + 2)
        for uuid in (FIRST, SECOND):
            busy_s, observed_s = of(series, "hub_gpu_busy_seconds_total", uuid), observed(series, uuid)
            assert busy_s == pytest.approx(observed_s / 2)
        # Nothing was counted that has not happened: the agent began to measure no earlier than it started.
        gained_s = observed(series, FIRST) - observed(first, FIRST)
        assert gained_s <= time.time() - began_s + 0.5
        assert "hub_gpu_allocated" not in series
        assert series["hub_gpu_devices"] == {("gpu-07",): 2}
        assert of(series, "hub_gpu_power_watts", FIRST) == 350.5
        assert agent.ask("/-/ready") == "ready\n"


def test_a_restarted_agent_goes_on_with_its_counters_and_leaves_nothing_with_the_driver(
    own_driver: FakeDriver, library: Path, tmp_path: Path
) -> None:
    own_driver.gpus[1] |= {"gpm_support": 1, "gpm": 10}
    del own_driver.gpus[1]["util"]
    own_driver.write()
    with an_nvml_agent(own_driver, library, tmp_path) as agent:
        agent.wait_for(lambda series: observed(series, FIRST) > 1 and observed(series, SECOND) > 0.5)
        assert agent.end() == 0
    assert (tmp_path / "nvml.log").read_text() == "shutdown initialized=0 sets=0 gpm=0\n"
    with an_nvml_agent(own_driver, library, tmp_path) as agent:
        series = agent.wait_for(lambda series: observed(series, FIRST) > 0)
        assert observed(series, FIRST) > 1


def test_a_call_that_hangs_takes_its_gpu_down_and_no_other(
    own_driver: FakeDriver, library: Path, tmp_path: Path
) -> None:
    driver = own_driver
    with an_nvml_agent(driver, library, tmp_path, nvml_retry_s=0.8) as agent:
        agent.wait_for(both_up)
        driver.delays = [("nvmlDeviceGetPowerUsage", 0, -1)]
        driver.write()
        series = agent.wait_for(lambda series: ups(series) == {FIRST: 0, SECOND: 1})
        assert of(series, "hub_gpu_memory_used_bytes", FIRST) is None
        goes_on(agent, SECOND)
        # For the sake of the one that hangs the collector is replaced now and then; the other does not notice.
        agent.wait_for(lambda series: restarts(series, "hung") >= 1)
        goes_on(agent, SECOND)
        driver.delays = []
        driver.write()
        agent.wait_for(both_up)
        assert agent.end() == 0


def test_when_every_call_hangs_the_collector_is_replaced_and_nothing_stale_is_shown(
    agent: NvmlAgent, driver: FakeDriver
) -> None:
    driver.delays = [("*", "*", -1)]
    driver.write()
    series = agent.wait_for(lambda series: ups(series) == {FIRST: 0, SECOND: 0})
    assert "hub_gpu_power_watts" not in series
    assert series["hub_agent_collect_success"] == {(): 0}
    agent.wait_for(lambda series: restarts(series, "hung") >= 1)
    held_s = observed(agent.series(), FIRST)
    driver.delays = []
    driver.write()
    series = agent.wait_for(both_up, 60)
    goes_on(agent, FIRST)
    # The hole is unobserved, but for what the driver's own buffer remembers: 120 samples of 20 ms.
    assert observed(series, FIRST) - held_s < 10


def test_slow_calls_are_waited_for(agent: NvmlAgent, driver: FakeDriver) -> None:
    before = agent.series().get("hub_agent_nvml_restarts_total")
    driver.delays = [("nvmlDeviceGetPowerUsage", 0, 400)]
    driver.write()
    goes_on(agent, FIRST)
    series = agent.series()
    assert ups(series) == {FIRST: 1, SECOND: 1}
    assert series.get("hub_agent_nvml_restarts_total") == before


def test_an_error_of_every_call_on_one_gpu_takes_that_one_down(agent: NvmlAgent, driver: FakeDriver) -> None:
    for code in (2, 4, 15, 18, 999):
        driver.fails = [("*", 0, code)]
        driver.write()
        agent.wait_for(lambda series: ups(series) == {FIRST: 0, SECOND: 1})
        goes_on(agent, SECOND, 0.1)
        assert state(agent.series()) == "running"
        driver.fails = []
        driver.write()
        agent.wait_for(both_up)


def test_a_lost_gpu_comes_back(agent: NvmlAgent, driver: FakeDriver) -> None:
    driver.gpus[1]["lost"] = 1
    driver.events.append((1, 0x8, 79))
    driver.write()
    series = agent.wait_for(lambda series: of(series, "hub_gpu_lost", SECOND) == 1)
    assert ups(series) == {FIRST: 1, SECOND: 0}
    assert (series["hub_gpu_devices"], series["hub_gpu_devices_expected"]) == (
        {("gpu-07",): 1},
        {("gpu-07",): 2},
    )
    agent.wait_for(lambda series: xids(series, "hardware", SECOND, "79") == 1)
    assert (79, "hardware") in {(line["xid"], line["xid_class"]) for line in agent.logged("xid")}
    goes_on(agent, FIRST)
    del driver.gpus[1]["lost"]
    driver.write()
    agent.wait_for(both_up)


def test_two_equal_xids_are_two(agent: NvmlAgent, driver: FakeDriver) -> None:
    for count in (1, 2):
        driver.events.append((0, 0x8, 45))
        driver.write()
        agent.wait_for(lambda series, count=count: xids(series, "application", FIRST, "45") == count)


def test_events_that_cannot_be_waited_for_are_tried_again(agent: NvmlAgent, driver: FakeDriver) -> None:
    driver.fails = [("nvmlEventSetWait_v2", "*", 15)]
    driver.write()
    agent.wait_for(lambda series: series["hub_agent_nvml_events_up"] == {(): 0})
    assert agent.up() == {FIRST: 1, SECOND: 1}
    driver.fails = []
    driver.write()
    agent.wait_for(lambda series: series["hub_agent_nvml_events_up"] == {(): 1})


def test_a_new_driver_is_loaded_when_it_is_there(own_driver: FakeDriver, tmp_path: Path) -> None:
    driver, library = own_driver, build(tmp_path / "lib")
    with an_nvml_agent(driver, library, tmp_path) as agent:
        agent.wait_for(both_up)
        driver.driver = "580.12.01"
        driver.gpus[0]["energy_mj"] = 500
        driver.write()
        agent.wait_for(lambda series: state(series) == "lib_rm_version_mismatch")
        agent.wait_for(lambda series: ups(series) == {FIRST: 0, SECOND: 0})
        assert agent.process.poll() is None
        build(library.parent, version="580.12.01")
        series = agent.wait_for(both_up, 60)
        assert {labels[0] for labels in series["hub_gpu_device_info"]} == {"580.12.01"}
        # The driver's counter began anew at 500 mJ.
        assert of(series, "hub_gpu_energy_joules_total", FIRST) == 0.5


def test_a_missing_driver_is_said_and_used_when_it_comes(own_driver: FakeDriver, tmp_path: Path) -> None:
    missing = tmp_path / "lib" / "libnvidia-ml.so.1"
    own_driver.loaded = False
    own_driver.write()
    with an_nvml_agent(own_driver, missing, tmp_path) as agent:
        agent.wait_for(lambda series: state(series) == "library_not_found")
        assert agent.ask("/-/ready") == "no GPU was read in the last cycle\n"
        assert agent.ask("/-/healthy") == "ok\n"
        advice = [str(line["advice"]) for line in agent.logged("nvml_state")]
        assert any("libnvidia-ml.so.1 was not found" in text for text in advice)
        build(missing.parent)
        agent.wait_for(lambda series: state(series) == "driver_not_loaded", 60)
        own_driver.loaded = True
        own_driver.write()
        agent.wait_for(both_up, 60)
        assert agent.ask("/-/ready") == "ready\n"


def test_a_node_without_gpus_is_ready(own_driver: FakeDriver, library: Path, tmp_path: Path) -> None:
    own_driver.gpus = []
    own_driver.write()
    with an_nvml_agent(own_driver, library, tmp_path) as agent:
        series = agent.wait_for(lambda series: state(series) == "running")
        assert series["hub_gpu_devices_expected"] == {("gpu-07",): 0}
        agent.wait_for(lambda series: series["hub_agent_collect_success"] == {(): 1})
        assert agent.ask("/-/ready") == "ready\n"


def test_an_agent_that_lost_its_devices_ends_so_that_its_container_is_made_anew(
    own_driver: FakeDriver, library: Path, tmp_path: Path
) -> None:
    """As after `systemctl daemon-reload`, which takes the devices from a container's cgroup."""
    with an_nvml_agent(own_driver, library, tmp_path) as agent:
        agent.wait_for(both_up)
        own_driver.fails = [("*", "*", 999)]
        own_driver.write()
        assert agent.process.wait(60) == 1
        agent.log_is_whole()
        assert agent.logged("gpus_are_out_of_reach")
        assert [line["finished"] for line in agent.logged("agent_stopped")] == [True]


def test_mig_is_cut_anew_and_measured_by_gpm(agent: NvmlAgent, driver: FakeDriver) -> None:
    driver.gpus[1] |= {"mig_mode": 1, "gpm_support": 1}
    device = {"name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "memory_total": 10 << 30, "gpm": 25, "gpm_sm": 10}
    driver.migs = {
        (1, 1): device | {"uuid": MIG, "gi": 7},
        (1, 4): device | {"uuid": OTHER_MIG, "gi": 9, "gpm": 75},
    }
    driver.write()
    series = agent.wait_for(lambda series: observed(series, MIG) > 0.3 and observed(series, OTHER_MIG) > 0.3)
    assert ups(series) == {FIRST: 1, SECOND: 1, MIG: 1, OTHER_MIG: 1}
    assert series["hub_gpu_devices"] == {("gpu-07",): 2}
    for uuid, share in ((MIG, 0.25), (OTHER_MIG, 0.75)):
        assert of(series, "hub_gpu_busy_seconds_total", uuid) == pytest.approx(observed(series, uuid) * share)
        assert of(series, "hub_gpu_sm_activity_ratio", uuid) == 0.1
    supported = {uuid: value for (uuid, _), value in series["hub_gpu_utilization_supported"].items()}
    assert supported == {FIRST: 1, SECOND: 0, MIG: 1, OTHER_MIG: 1}
    assert "h100-1g.10gb" in {value for labels in series["hub_gpu_device_info"] for value in labels}
    # The slot gets another device: the same handle, another UUID, and nothing of the old one's in it.
    third = "MIG-00000000-0000-0000-0000-000000000003"
    driver.migs = {(1, 4): device | {"uuid": third, "gi": 9}}
    driver.write()
    series = agent.wait_for(lambda series: observed(series, third) > 0.3)
    assert ups(series) == {FIRST: 1, SECOND: 1, third: 1}
    assert of(series, "hub_gpu_busy_seconds_total", third) == pytest.approx(observed(series, third) / 4)
    held_s = observed(series, MIG)
    driver.gpus[1]["mig_mode"] = 0
    driver.migs = {}
    driver.write()
    series = agent.wait_for(both_up)
    goes_on(agent, SECOND)
    assert observed(agent.series(), MIG) == held_s


def test_mig_without_gpm_says_unsupported_and_counts_nothing(agent: NvmlAgent, driver: FakeDriver) -> None:
    driver.gpus[1]["mig_mode"] = 1
    uuid = "MIG-00000000-0000-0000-0000-000000000009"
    driver.migs[1, 0] = {"uuid": uuid, "name": "NVIDIA A100 MIG 1g.5gb", "memory_total": 5 << 30, "gi": 1}
    driver.write()
    agent.wait_for(lambda series: ups(series) == {FIRST: 1, SECOND: 1, uuid: 1})
    goes_on(agent, FIRST)
    series = agent.series()
    assert of(series, "hub_gpu_utilization_supported", uuid) == 0
    assert of(series, "hub_gpu_utilization_ratio", uuid) is None
    assert observed(series, uuid) == 0
    assert of(series, "hub_gpu_memory_total_bytes", uuid) == 5 << 30


def test_samples_that_stop_are_unobserved_and_not_idle(agent: NvmlAgent, driver: FakeDriver) -> None:
    agent.wait_for(lambda series: observed(series, FIRST) > 0.5)
    driver.gpus[0]["frozen_us"] = time.time_ns() // 1000
    driver.write()
    goes_on(agent, SECOND, 0.3)
    held_s = observed(agent.series(), FIRST)
    goes_on(agent, SECOND, 1.0)
    assert observed(agent.series(), FIRST) == held_s
    assert agent.up() == {FIRST: 1, SECOND: 1}


def test_a_ring_that_is_too_short_shows_as_unobserved(agent: NvmlAgent, driver: FakeDriver) -> None:
    """Ten samples of 5 ms in a cycle of 200 ms: a quarter is seen, and said to be a quarter."""
    driver.gpus[0] |= {"period_us": 5_000, "depth": 10, "util": 80}
    driver.write()
    goes_on(agent, SECOND, 0.6)
    before = agent.series()
    series = agent.wait_for(lambda series: observed(series, SECOND) > observed(before, SECOND) + 3)
    seen_s, all_s = (observed(series, uuid) - observed(before, uuid) for uuid in (FIRST, SECOND))
    assert 0.02 < seen_s / all_s < 0.4
    busy_s = [of(told, "hub_gpu_busy_seconds_total", FIRST) or 0 for told in (before, series)]
    assert busy_s[1] - busy_s[0] == pytest.approx(seen_s * 0.8)


def test_indices_that_change_places_change_nothing_else(agent: NvmlAgent, driver: FakeDriver) -> None:
    driver.gpus[0]["util"], driver.gpus[1]["util"] = 0, 100
    driver.write()
    time.sleep(0.3)
    before = agent.series()
    driver.gpus.reverse()
    driver.write()
    goes_on(agent, FIRST, 1.0)
    series = agent.series()
    gains = {
        uuid: (of(series, "hub_gpu_busy_seconds_total", uuid) or 0)
        - (of(before, "hub_gpu_busy_seconds_total", uuid) or 0)
        for uuid in (FIRST, SECOND)
    }
    assert gains[FIRST] < 0.5 < 0.9 < gains[SECOND]
    driver.gpus.reverse()
    driver.write()
    goes_on(agent, FIRST, 1.0)


def test_a_gpu_that_is_lost_when_indices_change_places_is_told_by_its_own_name(
    own_driver: FakeDriver, library: Path, tmp_path: Path
) -> None:
    with an_nvml_agent(own_driver, library, tmp_path) as agent:
        agent.wait_for(both_up)
        # the first one comes to the place of the second, and is not to be asked there
        own_driver.gpus.reverse()
        own_driver.gpus[1]["lost"] = 1
        own_driver.write()
        agent.wait_for(lambda series: of(series, "hub_gpu_lost", FIRST) == 1)
        for _ in range(3):
            goes_on(agent, SECOND, 0.4)
            series = agent.series()
            assert {uuid: of(series, "hub_gpu_lost", uuid) for uuid in (FIRST, SECOND)} == {
                FIRST: 1,
                SECOND: 0,
            }
            assert agent.up() == {FIRST: 0, SECOND: 1}
        own_driver.gpus[1]["lost"] = 0
        own_driver.write()
        agent.wait_for(both_up)


def test_a_killed_collector_is_replaced_and_a_killed_agent_leaves_none_behind(
    own_driver: FakeDriver, library: Path, tmp_path: Path
) -> None:
    with an_nvml_agent(own_driver, library, tmp_path) as agent:
        agent.wait_for(both_up)
        collector = children(agent.process.pid)
        os.kill(collector[0], signal.SIGKILL)
        agent.wait_for(lambda series: restarts(series, "ended") == 1)
        goes_on(agent, FIRST)
        second = children(agent.process.pid)
        assert len(second) == 1
        assert second != collector
        os.kill(second[0], signal.SIGSTOP)
        agent.wait_for(lambda series: restarts(series, "hung") == 1, 60)
        goes_on(agent, FIRST)
        third = children(agent.process.pid)
        agent.process.kill()
        until_s = time.monotonic() + 20
        while Path(f"/proc/{third[0]}").exists():
            assert time.monotonic() < until_s
            time.sleep(0.05)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sorted({int(child) for task in tasks for child in (task / "children").read_text().split()})
