"""A real hub under a scripted load, scraped by a real Prometheus: what is served is the contract, and what the rules
make of it is right.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from deploy.datadir import DataDir
from deploy.demo import ORGANIZATIONS, PROGRAM, DemoJob, seed, wait_for_nodes
from deploy.hub import Hub, running
from deploy.programs import Wish
from deploy.progress import Progress
from deploy.prometheus.contract import CONTRACTS
from quota.schemas.scheduling import JobState
from tests.fakenvml.build import FakeDriver, an_h100, build
from tests.integration.agents.nvml_agent import an_nvml_agent
from tests.kubernetes_plane import until
from tests.metric_contract import breaches, served_families
from tests.prometheus_server import Prometheus, a_prometheus, labels_of, programs

pytestmark = [pytest.mark.prometheus, pytest.mark.e2e, pytest.mark.timeout(300)]

ALPHA, BETA, GAMMA = (organization.id for organization, _ in ORGANIZATIONS)
GPU_HOURS = {organization.id: hours for organization, hours in ORGANIZATIONS}
LOAD = (
    DemoJob(ALPHA, "training", "h100", 8, walltime_s=3600, runs_s=3000, load="steady:0.75"),
    DemoJob(BETA, "notebook", "h100", 4, walltime_s=3600, runs_s=3000, load="idle"),
    DemoJob(GAMMA, "whole-node", "h100", 8, walltime_s=3600, runs_s=3000),
)
"""On two nodes of eight GPUs: one is busy, four GPUs are held idle, and a job waits for the four beside them."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A hub and who watches it."""

    hub: Hub
    prometheus: Prometheus
    jobs: dict[str, str]
    """Ids by name."""

    def metrics(self, program: str) -> str:
        """What a program serves now."""
        with urlopen(f"{self.hub.url(program)}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    wish = Wish(DataDir(folder / "hub"), nodes=("sim-[0-1]:h100=8",), sample_interval_s=1.0)
    with running(wish, Progress()) as hub:
        seed(hub, with_jobs=False)
        with hub.client() as client:
            wait_for_nodes(client, {"h100"})
            jobs = {}
            for job in LOAD:
                jobs[job.name] = ident = client.submit_job(job.submission()).id
                if job is not LOAD[-1]:
                    until(lambda ident=ident: client.read_job(ident).state, JobState.RUNNING.__eq__)
        programs_there = ("quota", "scheduler", "agent")
        targets = {name: [urlsplit(hub.url(name)).netloc] for name in programs_there}
        with a_prometheus(folder / "prometheus", targets) as prometheus:
            prometheus.await_targets()
            prometheus.await_rules()
            prometheus.await_query(
                "count(gpu:workload_utilization:ratio30m)", lambda found: set(found.values()) == {12}
            )
            prometheus.await_query('hub_sched_queue_jobs{status="active"}')
            yield Watched(hub, prometheus, jobs)


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda one: one.job)
def test_programs_serve_what_the_contract_says(watched: Watched, contract: object) -> None:
    one = next(known for known in CONTRACTS if known is contract)
    text = watched.metrics(one.job)
    assert breaches(text, one.families) == []
    if one.job != "agent":  # the readers differ in what they can tell: see below
        missing = {family.name for family in one.families} - served_families(text)
        assert missing <= MAY_BE_MISSING
    lint(text)


MAY_BE_MISSING = {
    "hub_quota_seal_timestamp_seconds",
    "hub_sched_forecast_timestamp_seconds",
    "hub_agent_spool_oldest_timestamp_seconds",
    "hub_agent_pods",
    "hub_agent_pods_last_answer_timestamp_seconds",
    "hub_agent_pods_unknown_devices",
}
"""What is not known yet: before the first seal or forecast, with nothing to deliver, while no kubelet answers."""


def lint(text: str) -> None:
    said = subprocess.run(
        (str(programs().promtool), "check", "metrics"),
        input=text,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, ""), said.stdout + said.stderr


def test_agents_of_both_readers_serve_what_the_contract_says(watched: Watched, tmp_path: Path) -> None:
    families = next(one for one in CONTRACTS if one.job == "agent").families
    simulated = watched.metrics("agent")
    driver = FakeDriver(tmp_path / "state", [an_h100(0), an_h100(1)])
    driver.write()
    library = build(tmp_path / "nvml")
    with an_nvml_agent(driver, library, tmp_path) as agent:
        agent.wait_for(lambda series: len(series.get("hub_gpu_busy_seconds_total", {})) == 2)
        real = agent.ask("/metrics")
    assert breaches(real, families) == []
    lint(real)
    served = served_families(simulated) | served_families(real)
    assert {family.name for family in families} - served <= MAY_BE_MISSING
    simulated_only = {"hub_gpu_allocated", "hub_gpu_workload_busy_seconds_total"}
    assert simulated_only <= served_families(simulated)
    assert "hub_gpu_xid_events_total" in served_families(real)


def by(prometheus: Prometheus, expression: str, label: str) -> dict[str, float]:
    return {dict(labels)[label]: value for labels, value in prometheus.query(expression).items()}


def test_grants_are_what_was_awarded(watched: Watched) -> None:
    prometheus = watched.prometheus
    granted = by(prometheus, "grant:limit:gpu_seconds", "organization")
    assert granted == {organization: hours * 3600 for organization, hours in GPU_HOURS.items()}
    assert set(by(prometheus, "grant:limit:gpu_seconds", "program")) == {PROGRAM}
    held = by(prometheus, "hub_quota_grant_held_gpu_seconds > 0", "organization")
    used = by(prometheus, "hub_quota_grant_used_gpu_seconds", "organization")
    with watched.hub.client() as client:
        walltime_s = client.read_job(watched.jobs["training"]).walltime_s
    assert set(held) == {ALPHA, BETA}
    assert 8 * walltime_s <= held[ALPHA] + used[ALPHA] <= 8 * (walltime_s + 600)
    left_s = by(prometheus, "grant:left:seconds", "organization")
    assert all(89 * 86_400 < value <= 90 * 86_400 for value in left_s.values())
    assert len(left_s) == 3


def test_fleet_and_queue_are_what_was_scripted(watched: Watched) -> None:
    prometheus = watched.prometheus
    prometheus.await_query('hub_sched_gpus{state="allocated"} == 12')
    gpus = by(prometheus, "hub_quota_gpus", "state")
    assert gpus == {"total": 16, "used": 12, "foreign": 0}
    states = by(prometheus, 'hub_sched_gpus{gpu_class="h100"}', "state")
    assert states == {"allocated": 12, "free": 4, "foreign": 0, "quarantined": 0}
    assert by(prometheus, "hub_quota_nodes", "state") == {"open": 2}
    waiting = prometheus.query("hub_sched_queue_jobs")
    assert {dict(labels)["organization"]: value for labels, value in waiting.items()} == {GAMMA: 1}
    assert by(prometheus, "hub_sched_queue_gpus_requested", "organization") == {GAMMA: 8}
    running = by(prometheus, 'hub_quota_jobs{state="running"}', "organization")
    assert running == {ALPHA: 1, BETA: 1}
    age_s = prometheus.value("hub:business_time:seconds - on () hub_sched_queue_oldest_timestamp_seconds")
    oldest_s = prometheus.value("hub_quota_queue_oldest_timestamp_seconds")
    assert 0 <= age_s < 300
    with watched.hub.client() as client:
        assert oldest_s * 1000 == client.read_job(watched.jobs["whole-node"]).submitted_at
    waits = prometheus.value('hub_sched_queue_wait_seconds_count{gpu_class="h100"}')
    assert waits == 2
    assert prometheus.value('hub_sched_queue_wait_seconds_bucket{gpu_class="h100",le="604800.0"}') == 2


def test_shares_are_those_of_grants_and_jobs(watched: Watched) -> None:
    prometheus = watched.prometheus
    every = sum(GPU_HOURS.values())
    fair = by(prometheus, "organization:fair_share:ratio", "organization")
    assert fair == pytest.approx({one: hours / every for one, hours in GPU_HOURS.items()}, rel=1e-6)
    prometheus.await_query(f'organization:usage:ratio{{organization="{BETA}"}} > 0')
    usage = by(prometheus, "organization:usage:ratio", "organization")
    assert usage == pytest.approx({ALPHA: 8 / 12, BETA: 4 / 12, GAMMA: 0})
    parts = [usage[one] / fair[one] for one in (ALPHA, BETA, GAMMA)]
    index = sum(parts) ** 2 / (3 * sum(part**2 for part in parts))
    settled = prometheus.await_query(
        "hub:fairness:jain1d", lambda found: abs(next(iter(found.values()), 0) - index) < 0.02
    )
    assert len(settled) == 1
    kept = by(prometheus, "hub_sched_organization_gpus_allocated", "organization")
    assert kept == {ALPHA: 8, BETA: 4}


def test_gpus_are_as_busy_as_their_jobs(watched: Watched) -> None:
    prometheus = watched.prometheus
    job = watched.jobs["training"]
    busy = prometheus.await_query(
        f'avg(gpu:workload_utilization:ratio30m{{job_id="{job}"}})',
        lambda found: abs(next(iter(found.values()), 0) - 0.75) < 0.01,
    )
    assert len(busy) == 1
    idle = prometheus.query("count by (job_id, attempt) (gpu:workload_utilization:ratio30m < 0.05)")
    assert idle == {labels_of({"job_id": watched.jobs["notebook"], "attempt": "1"}): 4}
    assert prometheus.value("sum(hub_gpu_allocated)") == 12
    assert prometheus.value("sum(hub_gpu_up)") == 16
    unobserved = prometheus.await_query(
        "max(gpu:unobserved:ratio1h)", lambda found: next(iter(found.values()), 1) < 0.5
    )
    assert len(unobserved) == 1
    wasted = prometheus.await_query(
        "hub:wasted_gpus:avg30m", lambda found: abs(next(iter(found.values()), 0) - (4 + 8 * 0.25)) < 0.6
    )
    assert len(wasted) == 1


def test_programs_are_seen_to_lead_to_follow_and_to_agree(watched: Watched) -> None:
    prometheus = watched.prometheus
    assert prometheus.value("hub_sched_leader") == 1
    prometheus.await_query("hub:feed_lag:transactions", lambda found: set(found.values()) == {0})
    assert prometheus.value("hub_quota_scheduler_lease_expires_timestamp_seconds - time()") > -20
    prometheus.await_query(
        "hub:business_speed:ratio1h", lambda found: abs(next(iter(found.values()), 0) - 1) < 0.05
    )
    assert prometheus.value("sum(hub_quota_findings_total)") == 0
    assert set(by(prometheus, "up", "job").values()) == {1}
    assert [alert["labels"]["alertname"] for alert in prometheus.alerts() if alert["state"] == "firing"] == []


def test_a_scheduler_that_hangs_becomes_an_alert_and_is_well_again(watched: Watched) -> None:
    """The alert only waits here (it fires after minutes), and is gone with its cause."""
    prometheus = watched.prometheus
    pending = 'ALERTS{alertname="NoSchedulerLeader",alertstate="pending"}'
    pid = watched.hub.supervisor.pids()["scheduler"]
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        prometheus.await_query(pending)
    finally:
        os.kill(pid, signal.SIGCONT)
    prometheus.await_query("hub_sched_leader == 1")
    prometheus.await_query(pending, lambda found: not found)
