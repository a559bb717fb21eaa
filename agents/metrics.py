"""What Prometheus may know of the agent: fresh families at every scrape, so a series ends with its job.

Names are those of the hub's list; seconds are business seconds. A value that is not known has no series.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from operator import attrgetter

from prometheus_client.metrics_core import Metric

from agents import families
from agents.detail_metrics import detail_families
from agents.model import NS_PER_MS, GpuReading, GpuState, Measured, NodeReading
from agents.outbox import Spool
from agents.outbox_file import OutboxBroken, OutboxUnwritable
from agents.series import Book, Labels, Series

COLLECT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class View:
    """What the last cycle saw; replaced as a whole, never changed."""

    readings: tuple[NodeReading, ...] = ()
    states: Mapping[str, GpuState] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    """The latest known mean utilization (0-1) by GPU."""


@dataclass(slots=True)
class Counts:
    """What the loop counts about itself; each field is written by one thread only."""

    view: View = View()
    collect_success: bool = False
    collected_at_wall_ms: int | None = None
    collect_durations: list[int] = field(default_factory=lambda: [0] * (len(COLLECT_BUCKETS_S) + 1))
    collect_duration_sum_s: float = 0.0
    collect_failures: int = 0
    store_failures: int = 0
    stored: bool = True
    """Whether the last cycle reached the disk."""
    reports_sent: int = 0
    reports_failed: int = 0
    records_sent: int = 0
    records_unknown: int = 0
    records_refused: int = 0

    def collected(self, duration_s: float) -> None:
        """Count one cycle that took `duration_s`."""
        self.collect_durations[bisect_left(COLLECT_BUCKETS_S, duration_s)] += 1
        self.collect_duration_sum_s += duration_s


class AgentCollector:
    """Turns the counts into families when Prometheus asks; keeps only how labels are written. Thread-safe."""

    def __init__(
        self, counts: Counts, spool: Callable[[], Spool], more: Callable[[], Iterable[Metric]] = tuple
    ) -> None:
        """`more` are the reader's own families."""
        self._counts = counts
        self._spool = spool
        self._more = more
        self._version = version("gpuhub")
        self._book, self._turn = Book(), threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """All families of this moment."""
        view = self._counts.view
        with self._turn:
            seen = [
                *_devices(view, self._book),
                *_measured(view, self._book),
                *_workloads(view, self._book),
                *detail_families(view.readings, self._book),
            ]
            self._book.turn_page()
        yield from seen
        yield from self._more()
        yield families.BUILD.info({"version": self._version})
        yield from _agent(self._counts)
        try:
            yield from _spooled(self._spool())
        except (OutboxUnwritable, OutboxBroken):
            # The other series are wanted most when the disk is in trouble.
            return


_FIGURES = {
    "memory_total_bytes": families.MEMORY_TOTAL,
    "memory_used_bytes": families.MEMORY_USED,
    "power_watts": families.POWER,
    "temperature_celsius": families.TEMPERATURE,
}
"""By attribute of GpuReading."""


def _devices(view: View, book: Book) -> Iterator[Series]:
    described = Series(families.DEVICE)
    up, devices = Series(families.UP), Series(families.DEVICES)
    ratio, allocated = Series(families.UTILIZATION), Series(families.ALLOCATED)
    figures = [(attrgetter(name), Series(family)) for name, family in _FIGURES.items()]
    seen = set()
    for reading in view.readings:
        held = _held(reading)
        cut_up = {gpu.detail.parent_uuid for gpu in reading.gpus if gpu.detail}
        whole = [gpu for gpu in reading.gpus if gpu.up and not (gpu.detail and gpu.detail.parent_uuid)]
        devices.add(book.labels(families.DEVICES.labels, (reading.node,)), len(whole))
        for gpu in reading.gpus:
            seen.add(gpu.gpu_uuid)
            labels = book.labels(families.GPU, (reading.node, gpu.gpu_uuid))
            described.add(_described(reading, gpu, book), 1.0)
            up.add(labels, gpu.up)
            # A GPU cut into MIG devices is held by nobody: they are.
            if (reading.workloads_known or gpu.gpu_uuid in held) and gpu.gpu_uuid not in cut_up:
                allocated.add(labels, gpu.gpu_uuid in held)
            if gpu.up:
                ratio.add(labels, view.ratios.get(gpu.gpu_uuid))
            for figure, series in figures:
                series.add(labels, figure(gpu))
    for state in view.states.values():
        # A MIG device that is gone was taken apart on purpose; one that cannot be read is in its reading.
        if state.gpu_uuid not in seen and not state.gpu_uuid.startswith("MIG-"):
            up.add(book.labels(families.GPU, (state.node, state.gpu_uuid)), 0)
    yield from (described, up, devices, ratio, allocated, *(series for _, series in figures))


def _held(reading: NodeReading) -> set[str]:
    """The GPUs that somebody holds, the hub's job or not."""
    present = {holding.gpu_uuid for holding in reading.holdings if holding.until_ms is None}
    return present | {gpu.gpu_uuid for gpu in reading.gpus if gpu.workload is not None}


def _described(reading: NodeReading, gpu: GpuReading, book: Book) -> Labels:
    names, values = families.DEVICE.labels, (reading.node, gpu.gpu_uuid, gpu.gpu_class, gpu.model[:128])
    if gpu.detail is not None:
        known = [(name, value) for name in families.DEVICE.optional if (value := getattr(gpu.detail, name))]
        names, values = (*names, *(name for name, _ in known)), (*values, *(value for _, value in known))
    return book.labels(names, values)


def _measured(view: View, book: Book) -> Iterator[Series]:
    busy, observed = Series(families.BUSY), Series(families.OBSERVED)
    nobodys = Series(families.UNATTRIBUTED_BUSY)
    told = {gpu.gpu_uuid for reading in view.readings if reading.workloads_known for gpu in reading.gpus}
    for state in view.states.values():
        labels = book.labels(families.GPU, (state.node, state.gpu_uuid))
        busy.add(labels, _busy_s(state.device.busy_ns))
        observed.add(labels, state.device.observed_ms / 1000)
        if state.gpu_uuid in told:
            nobodys.add(labels, _busy_s(state.device.busy_ns - state.attributed_ns))
    yield from (busy, observed, nobodys)


def _workloads(view: View, book: Book) -> Iterator[Series]:
    busy, observed = Series(families.WORKLOAD_BUSY), Series(families.WORKLOAD_OBSERVED)
    held = Series(families.ALLOCATION)
    for reading in view.readings:
        for gpu in reading.gpus:
            if gpu.workload is not None and not reading.holdings:
                alone = gpu.workload
                whose = (alone.job_id, str(alone.attempt), str(alone.pod_index))
                place = (reading.node, gpu.gpu_uuid)
                held.add(book.labels(families.ALLOCATION.labels, (*place, *whose, "", "")), 1.0)
            state = view.states.get(gpu.gpu_uuid)
            for job_id, attempt, measured in () if state is None else _under(gpu, state):
                labels = book.labels(families.WORKLOAD, (reading.node, gpu.gpu_uuid, job_id, str(attempt)))
                busy.add(labels, _busy_s(measured.busy_ns))
                observed.add(labels, measured.observed_ms / 1000)
        for holding in reading.holdings:
            if holding.until_ms is None:
                part = (str(holding.attempt), str(holding.pod_index)) if holding.job_id else ("", "")
                held_gpu = (reading.node, holding.gpu_uuid, holding.job_id)
                where = (holding.namespace[:128], holding.pod[:128])
                held.add(book.labels(families.ALLOCATION.labels, (*held_gpu, *part, *where)), 1.0)
    yield from (busy, observed, held)


def _under(gpu: GpuReading, state: GpuState) -> Iterator[tuple[str, int, Measured]]:
    """(job, attempt, what was measured under it) of those that hold the GPU now."""
    if gpu.workload is not None and state.job_id == gpu.workload.job_id:
        yield state.job_id, state.attempt, state.workload
    for job_id, attempt, measured in state.sharers:
        if (job_id, attempt) in gpu.sharers:
            yield job_id, attempt, measured


def _agent(counts: Counts) -> Iterator[Metric]:
    yield families.COLLECT_SUCCESS.gauge(counts.collect_success)
    yield _collect_durations(counts)
    if counts.collected_at_wall_ms is not None:
        yield families.LAST_COLLECT.gauge(counts.collected_at_wall_ms / 1000)
    for family, value in (
        (families.COLLECT_FAILURES, counts.collect_failures),
        (families.STORE_FAILURES, counts.store_failures),
        (families.REPORTS_SENT, counts.reports_sent),
        (families.REPORTS_FAILED, counts.reports_failed),
        (families.RECORDS_SENT, counts.records_sent),
        (families.RECORDS_UNKNOWN, counts.records_unknown),
        (families.RECORDS_REFUSED, counts.records_refused),
    ):
        yield family.counter(value)


def _collect_durations(counts: Counts) -> Metric:
    total = 0
    buckets = []
    bounds = (*map(str, COLLECT_BUCKETS_S), "+Inf")
    for bound, number in zip(bounds, counts.collect_durations, strict=True):
        total += number
        buckets.append((bound, float(total)))
    made = families.COLLECT_DURATION.histogram()
    made.add_metric((), buckets, counts.collect_duration_sum_s)
    return made


def _spooled(spool: Spool) -> Iterator[Metric]:
    yield families.SPOOL_RECORDS.gauge(spool.records)
    yield families.RECORDS_DROPPED.counter(spool.dropped)
    if spool.oldest_wall_ms is not None:
        yield families.SPOOL_OLDEST.gauge(spool.oldest_wall_ms / 1000)


def _busy_s(busy_ns: int) -> float:
    return busy_ns / (NS_PER_MS * 1000)
