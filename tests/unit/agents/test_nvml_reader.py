"""What the reader makes of the collector's lines: counters that only grow, no stale value, no GPU hidden by another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.gpus.nvml import wire
from agents.gpus.nvml.known import MOST_SAMPLES, MOST_XIDS, Meter
from agents.gpus.nvml.processes import Orphans, sees_all_processes
from agents.gpus.nvml.reader import NvmlReader
from agents.gpus.port import ReaderUnavailable
from agents.loop import Sampler
from agents.metrics import AgentCollector, Counts
from agents.model import GpuReading
from agents.outbox import Outbox, open_outbox
from quota.clock import Clock
from tests.unit.agents.nvml_world import a_cycle, a_gpu, a_mig_device, a_reader


@pytest.fixture
def reader() -> NvmlReader:
    return a_reader()


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    opened = open_outbox(tmp_path / "outbox.sqlite3")
    yield opened
    opened.close()


def gpus_of(reader: NvmlReader, after_ms: int = 0) -> dict[str, GpuReading]:
    return {gpu.gpu_uuid: gpu for gpu in reader.read_all(after_ms)[0].gpus}


def at_seconds(reader: NvmlReader) -> list[float]:
    """The reader's monotonic time, for the test to set; 13 s after a line its figures are stale."""
    seconds = [0.0]
    reader._monotonic = lambda: seconds[0]
    return seconds


def samples(*moments_us: int) -> list[tuple[int, float]]:
    return [(at_us, 0.5) for at_us in moments_us]


def test_nothing_is_said_before_the_collector_has_spoken(reader: NvmlReader) -> None:
    with pytest.raises(ReaderUnavailable, match="NVML: starting"):
        reader.read_all(0)


def test_another_node_is_not_this_agents(reader: NvmlReader) -> None:
    reader._take(a_cycle(a_gpu()))
    with pytest.raises(ReaderUnavailable, match="gpu-07, not of gpu-08"):
        reader.read("gpu-08", 0)
    assert [gpu.gpu_uuid for gpu in reader.read("gpu-07", 0).gpus] == ["GPU-0"]


def test_who_holds_a_gpu_is_not_known_without_a_kubelet(reader: NvmlReader) -> None:
    reader._take(a_cycle(a_gpu()))
    assert not reader.read_all(0)[0].workloads_known


def test_samples_are_told_again_as_often_as_asked_and_never_twice_over(reader: NvmlReader) -> None:
    now_us = time.time_ns() // 1000
    old = samples(now_us - 3_000_000, now_us - 2_000_000)
    reader._take(a_cycle(a_gpu(samples_us=old)))
    # A new collector reads the driver's buffer from its beginning.
    reader._take(a_cycle(a_gpu(samples_us=[*old, (now_us - 1_000_000, 0.5)])))
    for _ in range(2):
        assert [at_ms for at_ms, _ in gpus_of(reader)["GPU-0"].samples] == [
            (now_us - back_us) // 1000 for back_us in (3_000_000, 2_000_000, 1_000_000)
        ]
    # The oldest of them are left out, but for 13 s in which a GPU that was read late catches up.
    assert len(gpus_of(reader, (now_us - 2_000_000) // 1000 + 13_000)["GPU-0"].samples) == 1


def test_a_gpu_that_is_read_late_loses_nothing(outbox: Outbox) -> None:
    start_ms = 1_800_000_000_000
    now_ms = [start_ms]

    class At(Clock):
        def now_ms(self) -> int:
            return now_ms[0]

    reader = a_reader(At(), lambda: now_ms[0] / 1000)
    sampler = Sampler(reader, outbox, At(), Counts(), ("gpu-07",))
    buffer: list[tuple[int, float]] = []
    for _ in range(12):
        buffer += samples(*((now_ms[0] + n * 100) * 1000 for n in range(1, 11)))
        now_ms[0] += 1_000
        # GPU-1 answers only every fourth time, with all that its driver has kept.
        late = [a_gpu(1, samples_us=buffer[-40:])] if (now_ms[0] - start_ms) % 4_000 == 0 else []
        reader._take(a_cycle(a_gpu(0, samples_us=buffer[-10:]), *late))
        sampler.sample_once()
    observed_ms = {uuid: state.device.observed_ms for uuid, state in outbox.states().items()}
    assert observed_ms == {"GPU-0": 11_000, "GPU-1": 8_000}


def test_samples_that_were_asked_for_are_kept_for_a_while(reader: NvmlReader) -> None:
    now_ms = time.time_ns() // 1_000_000
    moments_ms = range(now_ms - 600_000, now_ms, 1_000)
    reader._take(a_cycle(a_gpu(samples_us=samples(*(at_ms * 1000 for at_ms in moments_ms)))))
    assert len(gpus_of(reader)["GPU-0"].samples) == 600
    last_ms = moments_ms[-1]
    told = gpus_of(reader, last_ms)["GPU-0"].samples
    assert gpus_of(reader, last_ms)["GPU-0"].samples == told != []
    assert 15 <= len(reader._known["GPU-0"].samples) <= 15 + 13 + 1
    assert len(gpus_of(reader, last_ms - 10_000)["GPU-0"].samples) == 10 + 13


def test_the_memory_for_samples_is_bounded(reader: NvmlReader) -> None:
    first_us = time.time_ns() // 1000 - 100_000_000
    for n in range(0, 3 * MOST_SAMPLES, 1_000):
        told = samples(*range(first_us + n * 1_000, first_us + (n + 1_000) * 1_000, 1_000))
        reader._take(a_cycle(a_gpu(samples_us=told)))
    assert len(gpus_of(reader)["GPU-0"].samples) == MOST_SAMPLES


def test_a_gpu_that_is_not_read_goes_down_and_its_figures_go(reader: NvmlReader) -> None:
    seconds = at_seconds(reader)
    reader._take(a_cycle(a_gpu(0), a_gpu(1)))
    seconds[0] = 13.0
    assert all(gpu.up for gpu in gpus_of(reader).values())
    seconds[0] = 13.1
    with pytest.raises(ReaderUnavailable):
        reader.read_all(0)
    reader._take(a_cycle(a_gpu(1)))
    found = gpus_of(reader)
    assert {uuid: gpu.up for uuid, gpu in found.items()} == {"GPU-0": False, "GPU-1": True}
    assert (found["GPU-0"].power_watts, found["GPU-0"].memory_used_bytes) == (None, None)
    assert found["GPU-1"].power_watts == 300.5


def test_a_lost_gpu_is_down_at_once_and_keeps_its_counters(reader: NvmlReader) -> None:
    event = wire.Event("GPU-0", 1_700_000_000_000_000, 8, 79)
    reader._take(a_cycle(a_gpu(0), a_gpu(1), events=[event]))
    reader._take(a_cycle(wire.Gpu(0, "GPU-0", errors={"handle": 15}, lost=True), a_gpu(1)))
    found = gpus_of(reader)
    lost = found["GPU-0"]
    assert lost.detail is not None
    assert (lost.up, lost.detail.lost, lost.power_watts, lost.model) == (
        False,
        True,
        None,
        "NVIDIA H100 80GB HBM3",
    )
    assert [(xid.xid, xid.xid_class, xid.count) for xid in lost.detail.xids] == [(79, "hardware", 1)]
    assert found["GPU-1"].up
    reader._take(a_cycle(a_gpu(0), a_gpu(1)))
    assert gpus_of(reader)["GPU-0"].up


def test_a_uuid_alone_is_no_life_sign(reader: NvmlReader) -> None:
    reader._take(a_cycle(wire.Gpu(0, "GPU-0", name="NVIDIA H100", errors={"memory": 999, "power": 999})))
    assert not gpus_of(reader)["GPU-0"].up


def test_a_gpu_without_a_name_in_this_life_is_only_expected(reader: NvmlReader) -> None:
    reader._take(a_cycle(a_gpu(0), wire.Gpu(1, "", errors={"handle": 15}, lost=True)))
    assert list(gpus_of(reader)) == ["GPU-0"]
    series = {sample.name: sample.value for family in reader.metrics() for sample in family.samples}
    assert series["hub_gpu_devices_expected"] == 2


@pytest.mark.parametrize(
    ("readings", "total"),
    [
        ((5_000,), 0),
        ((5_000, 5_100, 5_100), 100),
        ((5_000, 5_100, 30, 50), 150),
        ((5_000, None, 5_250), 250),
        ((0, 0), 0),
        ((7, 0, 0, 3), 3),
    ],
)
def test_a_counter_grows_by_what_was_seen_and_survives_resets(
    readings: tuple[int | None, ...], total: int
) -> None:
    meter = Meter()
    for reading in readings:
        meter.read(reading)
    assert meter.total == total


def test_a_missing_energy_counter_is_no_series(reader: NvmlReader) -> None:
    reader._take(a_cycle(a_gpu(0, energy_mj=None, unsupported=["energy"]), a_gpu(1)))
    reader._take(a_cycle(a_gpu(0, energy_mj=None, unsupported=["energy"]), a_gpu(1, energy_mj=5_002_500)))
    energy = {uuid: gpu.detail and gpu.detail.energy_joules for uuid, gpu in gpus_of(reader).items()}
    assert energy == {"GPU-0": None, "GPU-1": 2.5}


def test_every_xid_counts_also_the_second_equal_one(reader: NvmlReader) -> None:
    events = [wire.Event("GPU-0", 1_000_000 * n, 8, xid) for n, xid in enumerate((13, 79, 13), 1)]
    reader._take(a_cycle(a_gpu(), events=events))
    detail = gpus_of(reader)["GPU-0"].detail
    assert detail is not None
    assert {(xid.xid, xid.count, xid.last_wall_ms) for xid in detail.xids} == {(13, 2, 3_000), (79, 1, 2_000)}


def test_a_storm_of_different_xids_stays_bounded_and_none_is_dropped(reader: NvmlReader) -> None:
    events = [wire.Event("GPU-0", n, 8, n) for n in range(1_000)]
    reader._take(
        a_cycle(a_gpu(), events=[*events, wire.Event("GPU-0", 1, 0x8000, 1), wire.Event("", 1, 8, 1)])
    )
    detail = gpus_of(reader)["GPU-0"].detail
    assert detail is not None
    assert len(detail.xids) == MOST_XIDS + 1
    assert sum(xid.count for xid in detail.xids) == 1_000
    assert detail.events == {"gpu_recovery_action": 1}


def test_mig_devices_come_and_go_with_their_uuids(reader: NvmlReader) -> None:
    seconds = at_seconds(reader)
    parent = a_gpu(0, mig=True)
    reader._take(a_cycle(parent, a_mig_device("MIG-1"), a_mig_device("MIG-2")))
    found = gpus_of(reader)
    assert {uuid: gpu.gpu_class for uuid, gpu in found.items()} == {
        "GPU-0": "h100",
        "MIG-1": "h100-1g.10gb",
        "MIG-2": "h100-1g.10gb",
    }
    assert [uuid for uuid, gpu in found.items() if gpu.detail and gpu.detail.utilization_supported] == [
        "MIG-1",
        "MIG-2",
    ]
    reader._take(a_cycle(parent, a_mig_device("MIG-3")))
    assert list(gpus_of(reader)) == ["GPU-0", "MIG-3"]
    # When the GPU cannot be asked for them, they are down and not forgotten.
    seconds[0] += 13.1
    reader._take(a_cycle(parent._replace(errors={"mig_count": 999})))
    assert {uuid: gpu.up for uuid, gpu in gpus_of(reader).items()} == {"GPU-0": True, "MIG-3": False}


def test_mig_without_gpm_says_that_its_use_cannot_be_measured(reader: NvmlReader) -> None:
    device = a_mig_device()._replace(gpm=False, unsupported=["gpm", "samples"])
    reader._take(a_cycle(a_gpu(0, mig=True), device))
    detail = gpus_of(reader)["MIG-1"].detail
    assert detail is not None
    assert not detail.utilization_supported


def test_one_error_is_logged_once_and_counted_always(reader: NvmlReader) -> None:
    for _ in range(3):
        reader._take(a_cycle(a_gpu(0, errors={"power": 4}), system_errors={"count": 999}))
    counted = {
        tuple(sample.labels.values()): sample.value
        for family in reader.metrics()
        for sample in family.samples
        if sample.name == "hub_agent_nvml_errors_total"
    }
    assert counted == {("power", "no_permission"): 3, ("count", "unknown"): 3}
    assert reader._known["GPU-0"].logged == {("power", 4)}


def test_memory_of_dead_processes_counts_when_they_stay_dead() -> None:
    alive = {1, 2}
    orphans = Orphans(alive.__contains__)
    listed = [(1, 100), (2, None), (3, 1_000), (4, None)]
    assert orphans.bytes_of(listed) == 0
    assert orphans.bytes_of(listed) == 1_000
    assert orphans.bytes_of([(1, 100)]) == 0
    alive.clear()
    assert orphans.bytes_of([(1, 100)]) == 0
    assert orphans.bytes_of([(1, 100)]) == 100


def test_no_memory_is_called_orphaned_where_not_all_processes_can_be_seen(tmp_path: Path) -> None:
    link = tmp_path / "pid"
    link.symlink_to("pid:[4026532000]")
    assert not sees_all_processes(link)
    assert not sees_all_processes(tmp_path / "none")
    link.unlink()
    link.symlink_to("pid:[4026531836]")
    assert sees_all_processes(link)


def test_health_reaches_the_metrics_and_unknowns_have_no_series(reader: NvmlReader, outbox: Outbox) -> None:
    sick = a_gpu(
        1,
        ecc={"corrected": 7, "uncorrected": 1, "uncorrected_ever": 4},
        remapped_rows=(1, 2, 1, 0),
        clocks_event_reasons=0x40 | 0x1,
        throttled_ns={"hw_thermal_slowdown": 4_000_000_000},
        recovery_action=1,
    )
    worse = sick._replace(throttled_ns={"hw_thermal_slowdown": 5_500_000_000})
    reader._take(a_cycle(a_gpu(0), sick))
    reader._take(a_cycle(a_gpu(0), worse, events=[wire.Event("GPU-1", 5_000_000, 8, 48)]))
    counts = Counts()
    Sampler(reader, outbox, Clock(), counts, ("gpu-07",)).sample_once()
    collector = AgentCollector(counts, outbox.spool, reader.metrics)
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in collector.collect():
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "node"}
            found.setdefault(sample.name, {})[tuple(labels.values())] = sample.value
    assert found["hub_gpu_ecc_errors_total"] == {("GPU-1", "corrected"): 7, ("GPU-1", "uncorrected"): 1}
    assert found["hub_gpu_ecc_errors_lifetime"] == {("GPU-1", "uncorrected"): 4}
    assert found["hub_gpu_remapped_rows"] == {("GPU-1", "correctable"): 1, ("GPU-1", "uncorrectable"): 2}
    assert (found["hub_gpu_row_remap_pending"], found["hub_gpu_row_remap_failed"]) == (
        {("GPU-1",): 1},
        {("GPU-1",): 0},
    )
    assert {name for (_, name), value in found["hub_gpu_clocks_event_reason"].items() if value} == {
        "hw_thermal_slowdown"
    }
    assert found["hub_gpu_throttle_seconds_total"] == {("GPU-1", "hw_thermal_slowdown"): 1.5}
    assert found["hub_gpu_recovery_action"] == {("GPU-1",): 1}
    assert found["hub_gpu_xid_events_total"] == {("GPU-1", "48", "hardware"): 1}
    assert found["hub_gpu_last_xid_timestamp_seconds"] == {("GPU-1", "48", "hardware"): 5}
    assert found["hub_gpu_energy_joules_total"] == {("GPU-0",): 0, ("GPU-1",): 0}
    assert "hub_gpu_pcie_replays_total" not in found
    # Nobody is said to hold nothing.
    assert "hub_gpu_allocated" not in found


def test_readings_while_lines_come_in_are_whole(reader: NvmlReader) -> None:
    stop = threading.Event()

    def tell() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            reader._take(a_cycle(a_gpu(0, samples_us=samples(n)), a_gpu(n % 3 + 1)))

    thread = threading.Thread(target=tell)
    thread.start()
    try:
        until_s = time.monotonic() + 0.5
        while time.monotonic() < until_s:
            try:
                assert set(gpus_of(reader)) <= {f"GPU-{n}" for n in range(4)}
            except ReaderUnavailable:
                continue
            list(reader.metrics())
    finally:
        stop.set()
        thread.join()
