"""The series of a GPU's health and energy, from the last cycle's readings; what is not known has no series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter

from agents import families
from agents.detail import GpuDetail
from agents.model import NodeReading
from agents.series import Book, Labels, Series
from quota.exposition import Family

_PLAIN = {
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
    "energy_joules": families.ENERGY,
    "pcie_replays": families.PCIE_REPLAYS,
}
"""By attribute of GpuDetail."""

_BY_KIND: tuple[tuple[Family, Callable[[GpuDetail], Mapping[str, float]]], ...] = (
    (families.ECC_ERRORS, attrgetter("ecc_errors")),
    (families.ECC_ERRORS_EVER, attrgetter("ecc_errors_ever")),
    (families.REMAPPED_ROWS, attrgetter("remapped_rows")),
    (families.CLOCKS_EVENT_REASON, lambda detail: detail.clocks_event_reasons or {}),
    (families.THROTTLED, attrgetter("throttled_s")),
    (families.EVENTS, attrgetter("events")),
    (families.UNSUPPORTED, lambda detail: dict.fromkeys(detail.unsupported, 1)),
)


Told = list[tuple[tuple[str, str], Labels, GpuDetail]]
"""(node, GPU), the same as labels, and what its driver told."""


def detail_families(readings: tuple[NodeReading, ...], book: Book) -> Iterator[Series]:
    """All families of what drivers told; none of a reader that tells no details."""
    told = [
        ((reading.node, gpu.gpu_uuid), book.labels(families.GPU, (reading.node, gpu.gpu_uuid)), gpu.detail)
        for reading in readings
        for gpu in reading.gpus
        if gpu.detail is not None
    ]
    if not told:
        return
    for name, family in _PLAIN.items():
        series, figure = Series(family), attrgetter(name)
        for _, labels, detail in told:
            series.add(labels, figure(detail))
        yield series
    for family, values_of in _BY_KIND:
        yield _by_kind(Series(family), family.labels, told, values_of, book)
    yield from _xids(told, book)


def _by_kind(
    series: Series,
    names: tuple[str, ...],
    told: Told,
    values_of: Callable[[GpuDetail], Mapping[str, float]],
    book: Book,
) -> Series:
    for gpu, _, detail in told:
        for kind, value in values_of(detail).items():
            series.add(book.labels(names, (*gpu, kind)), value)
    return series


def _xids(told: Told, book: Book) -> Iterator[Series]:
    seen, last = Series(families.XID_EVENTS), Series(families.LAST_XID)
    for gpu, _, detail in told:
        for xid in detail.xids:
            kind = (*gpu, "other" if xid.xid < 0 else str(xid.xid), xid.xid_class)
            labels = book.labels(families.XID_EVENTS.labels, kind)
            seen.add(labels, xid.count)
            last.add(labels, xid.last_wall_ms / 1000)
    yield from (seen, last)
