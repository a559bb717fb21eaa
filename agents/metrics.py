"""What Prometheus may know of the agent: fresh families at every scrape, so a series ends with its job.

Names are those of the hub's list; seconds are business seconds. A value that is not known has no series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from prometheus_client.metrics_core import Metric

from agents import families
from agents.detail_metrics import detail_families
from agents.model import NS_PER_MS, GpuReading, GpuState, NodeReading
from agents.outbox import OutboxBroken, OutboxUnwritable, Spool

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
    """Turns the counts into families when Prometheus asks; holds nothing of its own."""

    def __init__(
        self, counts: Counts, spool: Callable[[], Spool], more: Callable[[], Iterable[Metric]] = tuple
    ) -> None:
        """`more` are the reader's own families."""
        self._counts = counts
        self._spool = spool
        self._more = more

    def collect(self) -> Iterator[Metric]:
        """All families of this moment."""
        view = self._counts.view
        yield from _devices(view)
        yield from _measured(view)
        yield from _workloads(view)
        yield from detail_families(view.readings)
        yield from self._more()
        yield from _agent(self._counts)
        try:
            yield from _spooled(self._spool())
        except (OutboxUnwritable, OutboxBroken):
            # The other series are wanted most when the disk is in trouble.
            return


def _devices(view: View) -> Iterator[Metric]:
    described: list[dict[str, str]] = []
    up, devices = families.UP.gauge(), families.DEVICES.gauge()
    ratio, allocated = families.UTILIZATION.gauge(), families.ALLOCATED.gauge()
    figures = {
        "memory_total_bytes": families.MEMORY_TOTAL.gauge(),
        "memory_used_bytes": families.MEMORY_USED.gauge(),
        "power_watts": families.POWER.gauge(),
        "temperature_celsius": families.TEMPERATURE.gauge(),
    }
    seen = set()
    for reading in view.readings:
        whole = [gpu for gpu in reading.gpus if gpu.up and not (gpu.detail and gpu.detail.parent_uuid)]
        devices.add_metric([reading.node], len(whole))
        for gpu in reading.gpus:
            seen.add(gpu.gpu_uuid)
            labels = (reading.node, gpu.gpu_uuid)
            described.append(_described(reading, gpu))
            up.add_metric(labels, gpu.up)
            if reading.workloads_known:
                allocated.add_metric(labels, gpu.workload is not None)
            if gpu.up and gpu.gpu_uuid in view.ratios:
                ratio.add_metric(labels, view.ratios[gpu.gpu_uuid])
            for name, family in figures.items():
                value: float | None = getattr(gpu, name)
                if value is not None:
                    family.add_metric(labels, value)
    for state in view.states.values():
        # A MIG device that is gone was taken apart on purpose; one that cannot be read is in its reading.
        if state.gpu_uuid not in seen and not state.gpu_uuid.startswith("MIG-"):
            up.add_metric((state.node, state.gpu_uuid), 0)
    yield families.DEVICE.info(*described)
    yield from (up, devices, ratio, allocated, *figures.values())


def _described(reading: NodeReading, gpu: GpuReading) -> dict[str, str]:
    described = {
        "node": reading.node,
        "gpu_uuid": gpu.gpu_uuid,
        "gpu_class": gpu.gpu_class,
        "model": gpu.model[:128],
    }
    if gpu.detail is not None:
        known = ("serial", "pci_bus_id", "driver", "parent_uuid")
        described |= {name: value for name in known if (value := getattr(gpu.detail, name))}
    return described


def _measured(view: View) -> Iterator[Metric]:
    busy, observed = families.BUSY.counter(), families.OBSERVED.counter()
    for state in view.states.values():
        labels = (state.node, state.gpu_uuid)
        busy.add_metric(labels, _busy_s(state.device.busy_ns))
        observed.add_metric(labels, state.device.observed_ms / 1000)
    yield from (busy, observed)


def _workloads(view: View) -> Iterator[Metric]:
    busy, observed = families.WORKLOAD_BUSY.counter(), families.WORKLOAD_OBSERVED.counter()
    for reading in view.readings:
        for gpu in reading.gpus:
            state = view.states.get(gpu.gpu_uuid)
            if gpu.workload is None or state is None or state.job_id != gpu.workload.job_id:
                continue
            labels = (reading.node, gpu.gpu_uuid, state.job_id, str(state.attempt))
            busy.add_metric(labels, _busy_s(state.workload.busy_ns))
            observed.add_metric(labels, state.workload.observed_ms / 1000)
    yield from (busy, observed)


def _agent(counts: Counts) -> Iterator[Metric]:
    yield families.BUILD.info({"version": version("gpuhub")})
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
    if spool.oldest_wall_ms is not None:
        yield families.SPOOL_OLDEST.gauge(spool.oldest_wall_ms / 1000)


def _busy_s(busy_ns: int) -> float:
    return busy_ns / (NS_PER_MS * 1000)
