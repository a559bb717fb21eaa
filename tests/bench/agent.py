"""What an agent costs its node: a real agent and its collector on a fake driver of 8 GPUs and a fake kubelet.

`cpu` is processor time per second of wall time: what the kernel's scheduler has counted for both processes, in
nanoseconds, threads that have ended included, over windows of a minute that each have four scrapes and one delivery of
evidence and reports; the median window counts. `rss` is their resident memory added up at the end of the windows, `pss`
the same with each page that several processes share (the interpreter, C libraries) divided among them. `scrape` is the
fastest of many answers of /metrics with 8 GPUs cut into 7 MIG devices each, every one of them held by a job; the agent
keeps no answer: each is made anew.

The agent's code is compiled once, as an installation has it: an environment that forbids to keep compiled code
(`PYTHONDONTWRITEBYTECODE`) would have it compiled at every start, which takes 5 MiB more.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
WARM_S, WINDOW_S, WINDOWS = 30.0, 60.0, 3
SCRAPE_EVERY_S = 15.0
SCRAPES = 100
PERIOD_US = 166_667
"""A sixth of a second: what data centre GPUs sample at."""


def run() -> list[dict[str, Any]]:
    """Both worlds, one after the other."""
    with tempfile.TemporaryDirectory() as base, _compiled_once(Path(base) / "compiled"):
        library = build(Path(base) / "lib")
        with _agent(library, Path(base) / "cut", _cut) as agent:
            scrape_s = _scrape_s(agent)
        with _agent(library, Path(base) / "whole", _whole) as agent:
            cores, memory = _cost(agent)
    return [
        _row("cpu", cores, "cores", 0.01),
        _row("rss", memory["Rss"], "MiB", 60.0),
        _row("pss", memory["Pss"], "MiB", None),
        _row("scrape", scrape_s, "s", 0.005),
    ]


@contextmanager
def _compiled_once(folder: Path) -> Iterator[None]:
    with patch.dict(os.environ, {"PYTHONPYCACHEPREFIX": str(folder)}):
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        yield


def _row(metric: str, value: float, unit: str, limit: float | None) -> dict[str, Any]:
    ratio = None if limit is None else value / limit
    return {"bench": "agent", "metric": metric, "value": value, "unit": unit, "limit": limit, "ratio": ratio}


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


def _cost(agent: NvmlAgent) -> tuple[float, dict[str, float]]:
    """Cores of the agent and its collector in the median window, and their memory in MiB by the kernel's words."""
    time.sleep(WARM_S)
    pids = [agent.process.pid, *_children(agent.process.pid)]
    assert len(pids) == 2, pids
    cores = statistics.median(_window_cores(agent, pids) for _ in range(WINDOWS))
    assert [agent.process.pid, *_children(agent.process.pid)] == pids, "a collector was replaced"
    return cores, {kind: sum(_memory_mib(pid, kind) for pid in pids) for kind in ("Rss", "Pss")}


def _window_cores(agent: NvmlAgent, pids: Sequence[int]) -> float:
    before_s, began_s = sum(map(_processor_s, pids)), time.monotonic()
    while time.monotonic() < began_s + WINDOW_S:
        agent.ask("/metrics")
        time.sleep(SCRAPE_EVERY_S)
    return (sum(map(_processor_s, pids)) - before_s) / (time.monotonic() - began_s)


def _scrape_s(agent: NvmlAgent) -> float:
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


def _processor_s(pid: int) -> float:
    """User and system time of a process by its own clock (clock_getcpuclockid(3))."""
    clock = ctypes.c_int()
    refused = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    assert refused == 0, os.strerror(refused)
    return time.clock_gettime(clock.value)


def _memory_mib(pid: int, kind: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{kind}:"))
