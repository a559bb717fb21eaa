"""Ten thousand cycles, eight hours at the usual pace, leave the memory of agent and collector where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.fakekubelet.kubelet import FakeKubelet
from tests.fakekubelet.messages import FakePod
from tests.fakekubelet.node import FakeNode
from tests.fakenvml.build import FakeDriver, an_h100, build
from tests.integration.agents.agent_stubs import ROOT

MOST_GROWTH_KIB = 3_000


def test_ten_thousand_cycles_take_no_more_memory_than_two_thousand(tmp_path: Path) -> None:
    library = build(tmp_path / "lib")
    driver = FakeDriver(
        tmp_path / "state", [an_h100(0, period_us=1_000), an_h100(1, mig_mode=1, gpm_support=1)]
    )
    # One function that always fails and one GPU that is measured by GPM: errors and pairs are made all the time.
    driver.gpus[0]["processes"] = " ".join(f"{pid}:1000" for pid in range(1, 20))
    driver.fails = [("nvmlDeviceGetPcieReplayCounter", 0, 2)]
    driver.migs[1, 0] = {"uuid": "MIG-1", "name": "MIG 1g.10gb", "gi": 1, "memory_total": 1 << 30, "gpm": 50}
    # Two jobs share the first GPU, and with every question it is another two.
    driver.gpus[0]["process_util"] = "1:now:20 2:now:30"
    driver.write()
    node = FakeNode(tmp_path / "node")
    with FakeKubelet(tmp_path / "kubelet.sock") as kubelet:
        kubelet.before_answer = lambda: change_jobs(kubelet, node)
        said = subprocess.run(
            [sys.executable, "-m", "tests.integration.agents.nvml_soak", "10000", "2000", str(tmp_path)],
            cwd=ROOT,
            env=driver.environment(library) | {"FAKE_NVML_LOG": str(tmp_path / "nvml.log")},
            capture_output=True,
            text=True,
            timeout=110,
        )
        assert kubelet.asked > 100
    assert said.returncode == 0, said.stderr
    warm, late, series = (json.loads(line) for line in said.stdout.splitlines() if line.startswith("{"))
    for process in ("agent", "collector"):
        assert late[process] - warm[process] < MOST_GROWTH_KIB, (warm, late)
    assert series["hub_gpu_up"] == 3
    assert series["hub_gpu_allocation"] == 2
    assert (tmp_path / "nvml.log").read_text() == "shutdown initialized=0 sets=0 gpm=0\n"


def change_jobs(kubelet: FakeKubelet, node: FakeNode) -> None:
    """Two new pods instead of the last ones; the processes keep their numbers."""
    for pod in kubelet.pods:
        node.end(pod.namespace, pod.name)
        node.remove_logs(pod.namespace, pod.name)
    uuid = an_h100(0)["uuid"]
    kubelet.pods = [
        FakePod("hub-acme", f"job-{kubelet.asked}{n}-1-0-abcde", {"nvidia.com/gpu": [f"{uuid}::{n}"]})
        for n in range(2)
    ]
    for pid, pod in enumerate(kubelet.pods, 1):
        node.pod(pod.namespace, pod.name)
        node.process(pid, pod.namespace, pod.name, started=kubelet.asked)
