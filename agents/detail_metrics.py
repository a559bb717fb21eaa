"""The series of a GPU's health and energy, from the last cycle's readings; what is not known has no series."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from agents.detail import GpuDetail
from agents.model import NodeReading

_GPU = ("node", "gpu_uuid")

_GAUGES = {
    "power_limit_watts": "Power limit enforced.",
    "sm_activity_ratio": "Share of the multiprocessors that were busy in the last cycle.",
    "compute_processes": "Compute processes on the GPU.",
    "orphan_memory_bytes": "Memory of processes that no longer exist.",
    "recovery_action": "What the driver wants done: 0 nothing, 1 GPU reset, 2 reboot, 3 drain, 4 drain and reset.",
    "row_remap_pending": "1 if a row of memory is to be replaced at the next reset.",
    "row_remap_failed": "1 if a row could not be replaced: the GPU has to be exchanged.",
    "lost": "1 if the GPU fell off the bus.",
    "utilization_supported": "1 if busy time can be measured.",
}
"""`hub_gpu_<name>` by attribute of GpuDetail."""

_COUNTERS = {
    "energy_joules": "Energy used since the agent first saw the GPU.",
    "pcie_replays": "PCIe replays since the driver was loaded.",
}


def detail_families(readings: tuple[NodeReading, ...]) -> Iterator[Metric]:
    """All families of what drivers told; none of a reader that tells no details."""
    told = [
        ((reading.node, gpu.gpu_uuid), gpu.detail)
        for reading in readings
        for gpu in reading.gpus
        if gpu.detail is not None
    ]
    if not told:
        return
    for name, text in _GAUGES.items():
        gauge = GaugeMetricFamily(f"hub_gpu_{name}", text, labels=_GPU)
        for labels, detail in told:
            _add(gauge, labels, getattr(detail, name))
        yield gauge
    for name, text in _COUNTERS.items():
        counter = CounterMetricFamily(f"hub_gpu_{name}", text, labels=_GPU)
        for labels, detail in told:
            _add(counter, labels, getattr(detail, name))
        yield counter
    yield from _by_kind(told)
    yield from _xids(told)


def _add(
    family: GaugeMetricFamily | CounterMetricFamily, labels: tuple[str, ...], value: float | None
) -> None:
    if value is not None:
        family.add_metric(labels, value)


def _by_kind(told: list[tuple[tuple[str, str], GpuDetail]]) -> Iterator[Metric]:
    ecc = CounterMetricFamily(
        "hub_gpu_ecc_errors", "Memory errors since the driver was loaded.", labels=(*_GPU, "type")
    )
    ever = GaugeMetricFamily(
        "hub_gpu_ecc_errors_lifetime", "Memory errors over the GPU's life.", labels=(*_GPU, "type")
    )
    rows = GaugeMetricFamily("hub_gpu_remapped_rows", "Rows of memory replaced.", labels=(*_GPU, "type"))
    reasons = GaugeMetricFamily(
        "hub_gpu_clocks_event_reason", "1 if this slows the GPU down now.", labels=(*_GPU, "reason")
    )
    throttled = CounterMetricFamily(
        "hub_gpu_throttle_seconds", "Time of being slowed down.", labels=(*_GPU, "reason")
    )
    events = CounterMetricFamily(
        "hub_gpu_events", "Events other than XIDs since the agent started.", labels=(*_GPU, "event")
    )
    unsupported = GaugeMetricFamily(
        "hub_gpu_unsupported", "1 for what this GPU or driver does not have.", labels=(*_GPU, "op")
    )
    for labels, detail in told:
        for family, values in (
            (ecc, detail.ecc_errors),
            (ever, detail.ecc_errors_ever),
            (rows, detail.remapped_rows),
            (reasons, detail.clocks_event_reasons or {}),
            (throttled, detail.throttled_s),
            (events, detail.events),
            (unsupported, dict.fromkeys(detail.unsupported, 1)),
        ):
            for kind, value in values.items():
                family.add_metric((*labels, kind), value)
    yield from (ecc, ever, rows, reasons, throttled, events, unsupported)


def _xids(told: list[tuple[tuple[str, str], GpuDetail]]) -> Iterator[Metric]:
    labelled = (*_GPU, "xid", "class")
    seen = CounterMetricFamily("hub_gpu_xid_events", "XIDs since the agent started.", labels=labelled)
    last = GaugeMetricFamily(
        "hub_gpu_last_xid_timestamp_seconds", "When this XID came last (wall time).", labels=labelled
    )
    for labels, detail in told:
        for xid in detail.xids:
            kind = (*labels, "other" if xid.xid < 0 else str(xid.xid), xid.xid_class)
            seen.add_metric(kind, xid.count)
            last.add_metric(kind, xid.last_wall_ms / 1000)
    yield from (seen, last)
