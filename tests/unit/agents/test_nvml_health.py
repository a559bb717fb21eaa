"""From a driver's lines to health: what the collector tells is what the rules judge."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from agents.gpus.nvml import wire
from agents.gpus.nvml.reader import NvmlReader
from agents.health import Timing
from agents.health_file import HealthFile
from agents.verdicts import HealthCounts, Verdicts
from quota.clock import Clock
from quota.schemas.gpus import GpuVerdict
from tests.unit.agents.nvml_world import a_cycle, a_gpu, a_mig_device, a_reader
from tests.unit.agents.pods_world import Pods


def _judged(tmp_path: Path, *cycles: wire.Cycle) -> tuple[dict[str, str], list[GpuVerdict]]:
    """Health by GPU, and the verdicts, after these lines; read after each."""
    reader: NvmlReader = a_reader()
    counts = HealthCounts()
    verdicts = Verdicts(
        HealthFile(tmp_path / "health.json"), counts, Timing(), at_wall=lambda wall_ms: wall_ms
    )
    for cycle in cycles:
        reader._take(cycle)
        verdicts.observe(reader.read_all(0))
    health = {gpu_uuid: health.value for (_, gpu_uuid), health in counts.health.items()}
    return health, list(verdicts.to_send()[1])


def _xid(gpu_uuid: str, xid: int) -> wire.Event:
    return wire.Event(gpu_uuid, time.time_ns() // 1000, 0x8, xid)


@pytest.mark.parametrize(
    ("after", "events", "rules", "health"),
    [
        (a_gpu(0), [_xid("GPU-0", 79)], ["xid_hardware"], "unhealthy"),
        (a_gpu(0), [_xid("GPU-0", 94)], ["xid_contained"], "degraded"),
        (a_gpu(0), [_xid("GPU-0", xid) for xid in (13, 31, 43, 45, 68, 109, 63, 92)], [], "healthy"),
        (a_gpu(0, recovery_action=1), [], ["recovery_action"], "unhealthy"),
        (a_gpu(0, remapped_rows=(0, 1, 1, 0)), [], ["row_remap_pending"], "degraded"),
        (a_gpu(0, remapped_rows=(0, 1, 0, 1)), [], ["row_remap_failed"], "unhealthy"),
        (a_gpu(0, ecc={"uncorrected": 3}), [], ["ecc_uncorrected"], "degraded"),
        (wire.Gpu(0, "GPU-0", errors={"handle": 15}, lost=True), [], ["lost"], "lost"),
    ],
)
def test_what_a_driver_tells_is_judged(
    tmp_path: Path, after: wire.Gpu, events: list[wire.Event], rules: list[str], health: str
) -> None:
    well = a_gpu(0, recovery_action=0, remapped_rows=(0, 0, 0, 0), ecc={"uncorrected": 2})
    judged, verdicts = _judged(tmp_path, a_cycle(well, a_gpu(1)), a_cycle(after, a_gpu(1), events=events))
    assert ([verdict.rule for verdict in verdicts], judged) == (rules, {"GPU-0": health, "GPU-1": "healthy"})


def test_an_old_driver_that_tells_little_makes_nobody_ill(tmp_path: Path) -> None:
    silent = a_gpu(0, energy_mj=None, unsupported=["ecc", "remapped_rows", "recovery_action"])
    assert _judged(tmp_path, a_cycle(silent), a_cycle(silent)) == ({"GPU-0": "healthy"}, [])


def test_mig_devices_have_no_health_of_their_own(tmp_path: Path) -> None:
    whole = a_gpu(0)._replace(mig=True)
    judged, _ = _judged(tmp_path, a_cycle(whole, a_mig_device()))
    assert judged == {"GPU-0": "healthy"}


def test_a_lost_gpu_that_the_kubelet_does_not_offer_is_withdrawn_with_its_mig_devices(tmp_path: Path) -> None:
    pods = Pods(tmp_path)
    reader = NvmlReader(Clock(), "gpu-07", pods=pods.tracker)
    cut, other = a_gpu(0, mig=True), a_gpu(1)
    parts = [a_mig_device("MIG-1"), a_mig_device("MIG-2")]

    def told() -> dict[str, bool | None]:
        pods.ask()
        (reading,) = reader.read_all(0)
        return {gpu.gpu_uuid: gpu.detail.withdrawn for gpu in reading.gpus if gpu.detail is not None}

    reader._take(a_cycle(cut, *parts, other))
    assert told() == dict.fromkeys(("GPU-0", "MIG-1", "MIG-2", "GPU-1")), "an old kubelet"
    pods.offered = ["MIG-1", "MIG-2", "GPU-1"]
    pods.at[0] += 300_000
    assert told() == dict.fromkeys(("GPU-0", "MIG-1", "MIG-2", "GPU-1"), False)
    # off the bus: the driver does not list its parts any more, and one of them is still offered
    reader._take(a_cycle(wire.Gpu(0, "GPU-0", errors={"handle": 15}, lost=True), other))
    pods.offered = ["MIG-2", "GPU-1"]
    pods.at[0] += 10_000
    assert told() == {"GPU-0": False, "MIG-1": True, "MIG-2": False, "GPU-1": False}
    pods.offered = ["GPU-1"]
    pods.at[0] += 10_000
    assert told() == {"GPU-0": True, "MIG-1": True, "MIG-2": True, "GPU-1": False}
    # an agent that starts now has never seen the parts: what it does not know may be one of them
    reader = NvmlReader(Clock(), "gpu-07", pods=pods.tracker)
    reader._take(a_cycle(wire.Gpu(0, "GPU-0", errors={"handle": 15}, lost=True), other))
    pods.offered = ["MIG-2", "GPU-1"]
    pods.at[0] += 10_000
    assert told() == {"GPU-0": None, "GPU-1": False}


def test_whether_a_bad_gpu_is_withdrawn_is_told_at_once(tmp_path: Path) -> None:
    reader = a_reader()
    verdicts = Verdicts(HealthFile(tmp_path / "f"), HealthCounts(), Timing(), at_wall=lambda wall_ms: wall_ms)

    def observe(gone: bool | None) -> bool:
        readings = reader.read_all(0)
        gpus = tuple(
            replace(gpu, detail=replace(gpu.detail, withdrawn=gone)) for gpu in readings[0].gpus if gpu.detail
        )
        verdicts.observe([replace(readings[0], gpus=gpus)])
        rows, made = verdicts.to_send() if verdicts.news.is_set() else ((), ())
        verdicts.sent(made)
        return bool(rows) and {row.withdrawn for row in rows} == {gone is True}

    reader._take(a_cycle(a_gpu(0)))
    assert not observe(False)
    assert not observe(True), "a plugin that is away is no news of a healthy GPU"
    reader._take(a_cycle(a_gpu(0), events=[_xid("GPU-0", 79)]))
    assert observe(True), "a verdict"
    assert not observe(True)
    assert observe(False)
    assert observe(True)
    assert observe(None)
    assert not observe(False), "to the service both are the same"
