"""The real agent reads the real simulated cluster: what arrives is what the pods did."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quota.clock import wall_ms
from tests.integration.agents.agent_stubs import Stubs, a_process
from tests.unit.agents.agent_world import HOUR_MS, START_MS, Gpus

SPEED = 600
"""Ten business minutes in a wall second."""

pytestmark = pytest.mark.e2e


@pytest.fixture
def clock() -> str:
    return f"{START_MS},{wall_ms()},{SPEED}"


@pytest.fixture
def cluster(tmp_path: Path, clock: str) -> Iterator[str]:
    """A simulated cluster with two nodes of two GPUs; its address."""
    arguments = ("--data-dir", str(tmp_path / "cluster"), "--port", "0", "--nodes", "sim-[0-1]:h100=2")
    with a_process("-m", "scheduler.simulator", *arguments, "--clock", clock, "--speedy") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield line[line.index("http") :].split()[0]


def call(url: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def start_job(cluster: str, job_id: str, node: str, duration_s: int, load: str) -> None:
    body = {
        "name": f"{job_id}-1",
        "job_id": job_id,
        "attempt": 1,
        "spec_hash": "00",
        "walltime_ms": 10 * HOUR_MS,
        "grace_ms": 1000,
        "pods": [{"index": 0, "node": node, "gpu_class": "h100", "count": 2}],
        "annotations": {"simulate.gpuhub/duration_s": str(duration_s), "simulate.gpuhub/load": load},
    }
    call(f"{cluster}/v1/objects", body)


def test_evidence_of_a_job_is_what_its_pod_did(cluster: str, clock: str, tmp_path: Path) -> None:
    arguments = ("--outbox", str(tmp_path / "outbox.sqlite3"), "--clock", clock, "--port", "0")
    with Stubs(Gpus({}), START_MS) as stubs:
        doors = ("--quota-url", stubs.url, "--cluster-url", cluster, "--send-interval-s", "0.1")

        def observed_ms(job: str) -> int:
            return sum(ms for (job_id, _), (_, ms) in stubs.service.totals().items() if job_id == job)

        with a_process("-m", "agents.cli", "run", *doors, *arguments) as agent:
            assert agent.stderr is not None
            exposition = f"http://127.0.0.1:{json.loads(agent.stderr.readline())['port']}"
            # An idle job shows when the agent has begun to measure; the other is then seen from its start.
            start_job(cluster, "job-idle", "sim-0", 36_000, "idle")
            stubs.wait_for(lambda: observed_ms("job-idle") > 0)
            start_job(cluster, "job-busy", "sim-1", 3_000, "steady:0.8")
            stubs.wait_for(lambda: observed_ms("job-busy") > 0)
            metrics = call(f"{exposition}/metrics")
            assert call(f"{exposition}/-/ready") == "ready\n"
            stubs.wait_for(lambda: observed_ms("job-busy") == 2 * 3_000_000)
            agent.send_signal(signal.SIGTERM)
            agent.communicate(timeout=30)
            assert agent.returncode == 0
    samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
    assert "job-idle" in {sample.labels.get("job_id") for sample in samples}
    busy = [row for row in stubs.service.rows.values() if row.job_id == "job-busy"]
    assert {row.node for row in busy} == {"sim-1"}
    assert len({row.gpu_uuid for row in busy}) == 2
    # A ratio has six decimals, so 300 samples may be off by 1.5 ms; each row drops a part of a millisecond.
    assert abs(sum(row.busy_ms for row in busy) - 2 * 2_400_000) <= len(busy) + 4
    idle = [row for row in stubs.service.rows.values() if row.job_id == "job-idle"]
    assert all(row.busy_ms == 0 < row.observed_ms for row in idle)
