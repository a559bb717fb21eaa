"""A reader with collector and kubelet, and an agent's sampling, at full speed: prints their memory.

`CYCLES WARM FOLDER`; the folder has the kubelet's socket and the node's folders.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from agents.gpus.nvml import wire
from agents.gpus.nvml.reader import NvmlReader
from agents.gpus.nvml.supervisor import Timing
from agents.gpus.port import ReaderUnavailable
from agents.loop import Sampler
from agents.metrics import AgentCollector, Counts
from agents.outbox import open_outbox
from agents.pods.cgroups import Node
from agents.pods.tracker import KubeletSettings, PodTracker
from quota.clock import Clock


def resident_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def main(cycles: str, warm: str, folder: str) -> None:
    base = Path(folder)
    outbox = open_outbox(base / "outbox.sqlite3")
    node = Node(base / "node" / "cgroup", base / "node" / "proc", base / "node" / "pods")
    tracker = PodTracker(KubeletSettings(base / "kubelet.sock", 0.02), Clock(), outbox, node)
    reader = NvmlReader(Clock(), "gpu-07", Timing(cycle_s=0.001), pods=tracker)
    counts = Counts()
    sampler = Sampler(reader, outbox, Clock(), counts, (reader.node,))
    collector = AgentCollector(counts, outbox.spool, reader.metrics)
    seen = 0
    take = reader._take

    def count(cycle: wire.Cycle) -> None:
        nonlocal seen
        take(cycle)
        seen += 1

    reader._supervisor._take = count
    reader.start()
    for target in (int(warm), int(cycles)):
        while seen < target:
            time.sleep(0.1)
            try:
                sampler.sample_once()
            except ReaderUnavailable:
                continue
            families = list(collector.collect())
        pid = reader._supervisor.pid
        assert pid is not None
        print(
            json.dumps({"cycles": seen, "agent": resident_kib(os.getpid()), "collector": resident_kib(pid)})
        )
    series = {family.name: len(family.samples) for family in families}
    assert reader._supervisor.restarts == {}, reader._supervisor.restarts
    print(json.dumps(series))
    reader.close()
    outbox.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
