"""What an agent costs its node: a real agent and its collector on a fake driver of 8 GPUs and a fake kubelet.

`cpu` is processor time of both processes per second of wall time, `rss` their resident memory at the end, `scrape` the
fastest of many answers of /metrics with 8 GPUs cut into 7 MIG devices each, every one of them held by a job.
"""

from __future__ import annotations

import os
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.fakekubelet.kubelet import FakeKubelet
from tests.fakekubelet.messages import FakePod
from tests.fakekubelet.node import FakeNode
from tests.fakenvml.build import FakeDriver, an_h100, build
from tests.integration.agents.agent_stubs import Stubs
from tests.integration.agents.nvml_agent import NvmlAgent, an_nvml_agent
from tests.unit.agents.agent_world import START_MS, Gpus
from tests.unit.agents.pods_world import GPU, SPACE, pod_of

GPUS, SLICES = 8, 7
CYCLE_S = 2.0
WARM_S, MEASURED_S = 20.0, 60.0
SCRAPES = 100
PERIOD_US = 166_667
"""A sixth of a second: what data centre GPUs sample at."""


def run() -> list[dict[str, Any]]:
    """Both worlds, one after the other."""
    with tempfile.TemporaryDirectory() as base:
        library = build(Path(base) / "lib")
        with _agent(library, Path(base) / "whole", _whole) as agent:
            cpu, rss = _cost(agent)
        with _agent(library, Path(base) / "cut", _cut) as agent:
            scrape = _scrape(agent)
    return [
        _row("cpu", cpu, "cores", 0.01),
        _row("rss", rss, "MiB", 60.0),
        _row("scrape", scrape, "s", 0.005),
    ]


def _row(metric: str, value: float, unit: str, limit: float) -> dict[str, Any]:
    return {
        "bench": "agent",
        "metric": metric,
        "value": value,
        "unit": unit,
        "limit": limit,
        "ratio": value / limit,
    }


def _whole(driver: FakeDriver) -> list[str]:
    driver.gpus = [an_h100(number, period_us=PERIOD_US) for number in range(GPUS)]
    return [str(gpu["uuid"]) for gpu in driver.gpus]


def _cut(driver: FakeDriver) -> list[str]:
    driver.gpus = [an_h100(number, mig_mode=1, gpm_support=1) for number in range(GPUS)]
    for number in range(GPUS):
        for place in range(SLICES):
            driver.migs[number, place] = {
                "uuid": f"MIG-{number:08}-0000-0000-0000-{place:012}",
                "name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
                "memory_total": 10 << 30,
                "memory_used": 1 << 30,
                "gi": place + 1,
                "gpm": 50,
                "gpm_sm": 25,
            }
    return [str(facts["uuid"]) for facts in driver.migs.values()]


@contextmanager
def _agent(library: Path, folder: Path, cut: Any) -> Iterator[NvmlAgent]:
    """An agent with the rhythm that it is judged by, whose GPUs are all held by jobs."""
    folder.mkdir()
    driver = FakeDriver(folder / "state")
    uuids = cut(driver)
    driver.write()
    node = FakeNode(folder / "node")
    with FakeKubelet(folder / "kubelet.sock") as kubelet, Stubs(Gpus({}), START_MS) as stubs:
        kubelet.pods = [FakePod(SPACE, pod_of(f"job-{n}"), {GPU: [uuid]}) for n, uuid in enumerate(uuids)]
        for pod in kubelet.pods:
            node.pod(pod.namespace, pod.name)
        settings = {
            "nvml_cycle_s": CYCLE_S,
            "nvml_deadline_s": 10,
            "sample_interval_s": 10,
            "send_interval_s": 60,
            "pods_socket": kubelet.socket,
            "pods_interval_s": 3,
            "pods_cgroups": node.cgroups,
            "pods_proc": node.proc,
            "pods_logs": node.logs,
        }
        with an_nvml_agent(driver, library, folder, quota_url=stubs.url, **settings) as agent:
            agent.wait_for(
                lambda series: len(series.get("hub_gpu_workload_busy_seconds_total", ())) == len(uuids), 90
            )
            yield agent


def _cost(agent: NvmlAgent) -> tuple[float, float]:
    """(cores, MiB) of the agent and its collector; one scrape every 15 s belongs to it."""
    time.sleep(WARM_S)
    pids = [agent.process.pid, *_children(agent.process.pid)]
    assert len(pids) == 2, pids
    before_s, began_s = _processor_s(pids), time.monotonic()
    while time.monotonic() < began_s + MEASURED_S:
        agent.ask("/metrics")
        time.sleep(15)
    cores = (_processor_s(pids) - before_s) / (time.monotonic() - began_s)
    return cores, sum(_resident_mib(pid) for pid in pids)


def _scrape(agent: NvmlAgent) -> float:
    url = f"http://127.0.0.1:{agent.logged('agent_started')[0]['port']}/metrics"
    taken = []
    for _ in range(SCRAPES):
        began_s = time.perf_counter()
        with urllib.request.urlopen(url, timeout=10) as answer:
            body = answer.read()
        taken.append(time.perf_counter() - began_s)
        time.sleep(0.05)
    assert body.count(b"hub_gpu_up{") == GPUS * (1 + SLICES)
    return min(taken)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sorted({int(child) for task in tasks for child in (task / "children").read_text().split()})


def _processor_s(pids: list[int]) -> float:
    """User and system time, threads that ended included."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))
