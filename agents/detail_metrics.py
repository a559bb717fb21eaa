"""The series of a GPU's health and energy, from the last cycle's readings; what is not known has no series."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from agents import families
from agents.detail import GpuDetail
from agents.model import NodeReading

_GAUGES = {
    "power_limit_watts": families.POWER_LIMIT,
    "sm_activity_ratio": families.SM_ACTIVITY,
    "compute_processes": families.COMPUTE_PROCESSES,
    "orphan_memory_bytes": families.ORPHAN_MEMORY,
    "recovery_action": families.RECOVERY_ACTION,
    "row_remap_pending": families.ROW_REMAP_PENDING,
    "row_remap_failed": families.ROW_REMAP_FAILED,
    "lost": families.LOST,
    "withdrawn": families.WITHDRAWN,
    "utilization_supported": families.UTILIZATION_SUPPORTED,
}
"""By attribute of GpuDetail."""

_COUNTERS = {
    "energy_joules": families.ENERGY,
    "pcie_replays": families.PCIE_REPLAYS,
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
    for name, family in _GAUGES.items():
        gauge = family.gauge()
        for labels, detail in told:
            _add(gauge, labels, getattr(detail, name))
        yield gauge
    for name, family in _COUNTERS.items():
        counter = family.counter()
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
    ecc, ever = families.ECC_ERRORS.counter(), families.ECC_ERRORS_EVER.gauge()
    rows, reasons = families.REMAPPED_ROWS.gauge(), families.CLOCKS_EVENT_REASON.gauge()
    throttled, events = families.THROTTLED.counter(), families.EVENTS.counter()
    unsupported = families.UNSUPPORTED.gauge()
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
    seen, last = families.XID_EVENTS.counter(), families.LAST_XID.gauge()
    for labels, detail in told:
        for xid in detail.xids:
            kind = (*labels, "other" if xid.xid < 0 else str(xid.xid), xid.xid_class)
            seen.add_metric(kind, xid.count)
            last.add_metric(kind, xid.last_wall_ms / 1000)
    yield from (seen, last)
