"""Ten thousand jobs come and go on one node: what the agent shows of them is what runs now, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.gpus.nvml import wire
from agents.gpus.nvml.reader import NvmlReader
from agents.loop import Deliverer, Sampler
from agents.metrics import AgentCollector, Counts
from agents.outbox import Outbox, open_outbox
from agents.pods.cgroups import Process
from agents.pods.tracker import KubeletSettings, PodTracker
from tests.fakekubelet.messages import FakePod, response
from tests.unit.agents.agent_world import Service
from tests.unit.agents.nvml_world import a_cycle, a_gpu
from tests.unit.agents.pods_world import GPU, SPACE, HandClock, pod_of

JOBS = 10_000
GPUS, REPLICAS = 8, 7
HELD = GPUS * REPLICAS
PER_GPU, PER_HOLD, PER_AGENT = 45, 8, 80
"""The budget in series: of each GPU, of each job on each GPU, and of the agent itself."""


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = open_outbox(tmp_path / "outbox.sqlite3")
    opened._connection.execute("PRAGMA synchronous = OFF")
    yield opened
    opened.close()


def a_talkative_gpu(number: int, at_ms: int, busy: list[tuple[int, float]]) -> wire.Gpu:
    """One of which everything is known."""
    reasons = ("sw_power_cap", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
    return a_gpu(
        number,
        power_limit_mw=700_000,
        sm_activity=0.5,
        ecc=dict.fromkeys(("corrected", "uncorrected", "corrected_ever", "uncorrected_ever"), 1),
        remapped_rows=(0, 0, 0, 0),
        clocks_event_reasons=0,
        throttled_ns=dict.fromkeys(reasons, 1),
        recovery_action=0,
        pcie_replays=0,
        processes=busy,
        samples_us=[((at_ms - back_ms) * 1000, 0.5) for back_ms in range(2_500, -1, -500)],
        process_use=wire.ProcessUse((at_ms - 3_000) * 1000, at_ms * 1000, busy),
    )


class Folders:
    """The node's folders without a disk; `pids` are the processes, one of each pod."""

    def __init__(self) -> None:
        self.running: dict[int, FakePod] = {}
        self.started = 0

    def living(self) -> frozenset[str]:
        return frozenset(pod.name for pod in self.running.values())

    def uids(self) -> dict[tuple[str, str], frozenset[str]]:
        return {(pod.namespace, pod.name): frozenset({pod.name}) for pod in self.running.values()}

    def process(self, pid: int) -> Process | None:
        # numbers of processes come again, with another start
        return Process(pid, self.started) if pid in self.running else None

    def pod_of(self, pid: int) -> str | None:
        return self.running[pid].name


def test_ten_thousand_jobs_keep_the_budget_of_series(outbox: Outbox) -> None:
    at, folders, listed = [1_000_000], Folders(), list[FakePod]()
    clock = HandClock(at)
    tracker = PodTracker(
        KubeletSettings(), clock, outbox, folders, lambda *_: response(listed), lambda: at[0] / 1000
    )
    reader = NvmlReader(clock, "gpu-07", monotonic=lambda: at[0] / 1000, pods=tracker)
    counts, service = Counts(), Service()
    sampler = Sampler(reader, outbox, clock, counts, ("gpu-07",))
    deliverer = Deliverer(service, outbox, counts)
    collector = AgentCollector(counts, outbox.spool, reader.metrics)
    shown = Counter[int]()
    for started in range(0, JOBS, HELD):
        listed[:] = [
            FakePod(SPACE, pod_of(f"job-{started + n}"), {GPU: [f"GPU-{n % GPUS}::{n // GPUS}"]})
            for n in range(HELD)
        ]
        folders.running, folders.started = dict(enumerate(listed, 100)), started
        for _ in range(2):
            at[0] += 3_000
            tracker.ask_once()
            busy = [[(100 + n, 5.0) for n in range(number, HELD, GPUS)] for number in range(GPUS)]
            reader._take(a_cycle(*(a_talkative_gpu(n, at[0], busy[n]) for n in range(GPUS))))
            sampler.sample_once()
        deliverer.deliver_once()
        if started % (10 * HELD) == 0 or started + HELD >= JOBS:
            series = [sample for family in collector.collect() for sample in family.samples]
            jobs = {sample.labels["job_id"] for sample in series if "job_id" in sample.labels}
            assert jobs == {f"job-{n}" for n in range(started, started + HELD)}
            assert all(len(value) <= 128 for sample in series for value in sample.labels.values())
            assert len(series) <= GPUS * PER_GPU + HELD * PER_HOLD + PER_AGENT
            shown[len(series)] += 1
    # The first look had nothing behind it; all others, the last after ten thousand jobs, show as many series.
    assert len(shown) <= 2, shown
    # those that ended wait until the slowest GPU could have told of them
    assert len(tracker.view.holdings) <= 6 * HELD
    assert len(outbox.holdings()) <= 6 * HELD
    assert {row.job_id for row in service.rows.values()} == {f"job-{n}" for n in range(started + HELD)}
    # every job did the same for as long
    parts = Counter((row.busy_ms, row.observed_ms) for row in service.rows.values())
    assert {observed_ms for _, observed_ms in parts} <= {3_000, 6_000}
    assert min(busy_ms for busy_ms, _ in parts) > 0
