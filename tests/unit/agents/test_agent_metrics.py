"""/metrics parses, says what the GPUs do, and forgets jobs that ended."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agents.exposition import make_app
from agents.metrics import AgentCollector
from agents.outbox import Outbox, Spool, open_outbox
from agents.outbox_file import OutboxUnwritable
from tests.unit.agents.agent_world import START_MS, Agent, Gpu, Gpus, Hold, Service, an_agent, steady

MINUTE_MS = 60_000


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = open_outbox(tmp_path / "outbox.sqlite3")
    yield opened
    opened.close()


def get(agent: Agent, path: str, alive: bool = True) -> tuple[str, str]:
    """Ask the agent's door without a socket: (status, body)."""
    app = make_app(AgentCollector(agent.counts, agent.outbox.spool), agent.counts, lambda: alive)
    environ: dict[str, object] = {"PATH_INFO": path, "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    statuses: list[str] = []
    body = b"".join(app(environ, lambda status, headers: statuses.append(status)))
    return statuses[0], body.decode()


def scrape(agent: Agent) -> dict[str, dict[tuple[str, ...], float]]:
    """Samples by name, then by label values in order of label name."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(get(agent, "/metrics")[1]):
        for sample in family.samples:
            values = tuple(value for _, value in sorted(sample.labels.items()))
            found.setdefault(sample.name, {})[values] = sample.value
    return found


def a_world() -> Gpus:
    samples = steady(0.5, START_MS - MINUTE_MS, START_MS + 60 * MINUTE_MS)
    return Gpus(
        {
            "GPU-1": Gpu(samples, [Hold("job-1", START_MS, START_MS + 10 * MINUTE_MS)]),
            "GPU-2": Gpu(samples, node="sim-1"),
        }
    )


def after(agent: Agent, world: Gpus, minutes: int) -> dict[str, dict[tuple[str, ...], float]]:
    world.now_ms += minutes * MINUTE_MS
    agent.sampler.sample_once()
    return scrape(agent)


def test_a_running_job_has_its_series(outbox: Outbox) -> None:
    world = a_world()
    agent = an_agent(outbox, world, Service())
    agent.sampler.sample_once()
    found = after(agent, world, 4)
    # Labels in order of name: attempt, gpu_uuid, job_id, node.
    assert found["hub_gpu_workload_busy_seconds_total"] == {("1", "GPU-1", "job-1", "sim-0"): 120.0}
    assert found["hub_gpu_workload_observed_seconds_total"] == {("1", "GPU-1", "job-1", "sim-0"): 240.0}
    assert found["hub_gpu_allocated"] == {("GPU-1", "sim-0"): 1.0, ("GPU-2", "sim-1"): 0.0}
    assert found["hub_gpu_busy_seconds_total"] == {("GPU-1", "sim-0"): 120.0, ("GPU-2", "sim-1"): 120.0}
    assert found["hub_gpu_observed_seconds_total"][("GPU-2", "sim-1")] == 240.0
    assert found["hub_gpu_utilization_ratio"][("GPU-1", "sim-0")] == 0.5
    assert found["hub_gpu_device_info"][("h100", "GPU-1", "NVIDIA H100", "sim-0")] == 1.0
    assert found["hub_gpu_devices"] == {("sim-0",): 1.0, ("sim-1",): 1.0}
    assert found["hub_gpu_power_watts"][("GPU-1", "sim-0")] == 300.5


def test_a_jobs_series_end_with_the_job(outbox: Outbox) -> None:
    world = a_world()
    agent = an_agent(outbox, world, Service())
    agent.sampler.sample_once()
    assert "job-1" in str(after(agent, world, 4))
    ended = after(agent, world, 8)
    assert "job-1" not in str(ended)
    assert ended["hub_gpu_allocated"][("GPU-1", "sim-0")] == 0.0


def test_a_restart_goes_on_with_the_counters(outbox: Outbox) -> None:
    world = a_world()
    agent = an_agent(outbox, world, Service())
    agent.sampler.sample_once()
    after(agent, world, 2)
    found = after(an_agent(outbox, world, Service()), world, 2)
    assert found["hub_gpu_workload_busy_seconds_total"] == {("1", "GPU-1", "job-1", "sim-0"): 120.0}
    assert found["hub_gpu_busy_seconds_total"][("GPU-1", "sim-0")] == 120.0


def test_a_lost_nodes_gpus_are_down_and_their_figures_gone(outbox: Outbox) -> None:
    world = a_world()
    agent = an_agent(outbox, world, Service())
    agent.sampler.sample_once()
    world.lost = {"sim-0"}
    found = after(agent, world, 2)
    assert found["hub_gpu_up"] == {("GPU-2", "sim-1"): 1.0, ("GPU-1", "sim-0"): 0.0}
    for name in (
        "hub_gpu_power_watts",
        "hub_gpu_allocated",
        "hub_gpu_utilization_ratio",
        "hub_gpu_memory_used_bytes",
    ):
        assert list(found[name]) == [("GPU-2", "sim-1")]
    assert "hub_gpu_workload_busy_seconds_total" not in found


def test_the_agent_tells_of_itself(outbox: Outbox) -> None:
    world, service = a_world(), Service()
    agent = an_agent(outbox, world, service)
    nothing = scrape(agent)
    assert nothing["hub_agent_collect_success"] == {(): 0.0}
    assert "hub_agent_last_collect_timestamp_seconds" not in nothing
    agent.sampler.sample_once()
    waiting = after(agent, world, 2)
    assert waiting["hub_agent_collect_success"] == {(): 1.0}
    assert waiting["hub_agent_collect_duration_seconds_count"] == {(): 2.0}
    assert waiting["hub_agent_spool_records"] == {(): 1.0}
    assert waiting["hub_agent_spool_oldest_timestamp_seconds"][()] > 0
    agent.deliverer.deliver_once()
    sent = scrape(agent)
    assert sent["hub_agent_reports_sent_total"] == {(): 1.0}
    assert sent["hub_agent_reports_failed_total"] == {(): 0.0}
    assert sent["hub_agent_records_sent_total"] == {(): 1.0}
    assert sent["hub_agent_spool_records"] == {(): 0.0}
    assert "hub_agent_spool_oldest_timestamp_seconds" not in sent
    assert len(sent["hub_agent_build_info"]) == 1


def test_trouble_with_the_disk_leaves_the_other_series(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = an_agent(outbox, a_world(), Service())
    agent.sampler.sample_once()

    def no_disk() -> Spool:
        raise OutboxUnwritable("disk I/O error")

    monkeypatch.setattr(outbox, "spool", no_disk)
    found = scrape(agent)
    assert "hub_agent_spool_records" not in found
    assert found["hub_gpu_up"][("GPU-1", "sim-0")] == 1.0


def test_a_thousand_short_jobs_leave_no_series_behind(outbox: Outbox) -> None:
    world = a_world()
    world.gpus["GPU-1"].holds = [
        Hold(f"job-{n}", START_MS + n * 3_000, START_MS + (n + 1) * 3_000) for n in range(1_000)
    ]
    agent = an_agent(outbox, world, Service())
    sizes = set()
    for _ in range(20):
        found = after(agent, world, 2)
        sizes.add(sum(len(samples) for samples in found.values()))
    assert max(sizes) - min(sizes) <= 3


def test_ready_says_why_not(outbox: Outbox) -> None:
    world = a_world()
    agent = an_agent(outbox, world, Service())
    assert get(agent, "/-/ready") == ("503 Service Unavailable", "no GPU was read in the last cycle\n")
    agent.sampler.sample_once()
    assert get(agent, "/-/ready") == ("200 OK", "ready\n")
    agent.counts.stored = False
    assert get(agent, "/-/ready")[1] == "the outbox cannot be written; see the disk\n"


def test_healthy_until_the_loop_has_ended(outbox: Outbox) -> None:
    agent = an_agent(outbox, a_world(), Service())
    assert get(agent, "/-/healthy") == ("200 OK", "ok\n")
    assert get(agent, "/-/healthy", alive=False)[0] == "503 Service Unavailable"
    assert get(agent, "/else")[0] == "404 Not Found"
