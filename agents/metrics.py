"""What Prometheus may know of the agent: fresh families at every scrape, so a series ends with its job.

Names are those of the hub's list; seconds are business seconds. A value that is not known has no series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from agents.detail_metrics import detail_families
from agents.model import NS_PER_MS, GpuReading, GpuState, Measured, NodeReading
from agents.outbox import OutboxBroken, OutboxUnwritable, Spool

COLLECT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_GPU = ("node", "gpu_uuid")
_WORKLOAD = ("node", "gpu_uuid", "job_id", "attempt")


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
    info = InfoMetricFamily("hub_gpu_device", "What the GPU is.")
    up = GaugeMetricFamily("hub_gpu_up", "1 if the last cycle read the GPU, 0 if it did not.", labels=_GPU)
    devices = GaugeMetricFamily("hub_gpu_devices", "GPUs that the last cycle read.", labels=["node"])
    ratio = GaugeMetricFamily("hub_gpu_utilization_ratio", "Latest mean utilization.", labels=_GPU)
    allocated = GaugeMetricFamily("hub_gpu_allocated", "1 if a workload holds the GPU.", labels=_GPU)
    figures = {
        "memory_total_bytes": _gauge("hub_gpu_memory_total_bytes", "Memory of the GPU."),
        "memory_used_bytes": _gauge("hub_gpu_memory_used_bytes", "Memory in use."),
        "power_watts": _gauge("hub_gpu_power_watts", "Power drawn."),
        "temperature_celsius": _gauge("hub_gpu_temperature_celsius", "Temperature of the GPU."),
    }
    seen = set()
    for reading in view.readings:
        held = _held(reading)
        cut_up = {gpu.detail.parent_uuid for gpu in reading.gpus if gpu.detail}
        whole = [gpu for gpu in reading.gpus if gpu.up and not (gpu.detail and gpu.detail.parent_uuid)]
        devices.add_metric([reading.node], len(whole))
        for gpu in reading.gpus:
            seen.add(gpu.gpu_uuid)
            labels = (reading.node, gpu.gpu_uuid)
            info.add_metric(labels, _described(reading, gpu))
            up.add_metric(labels, gpu.up)
            # A GPU cut into MIG devices is held by nobody: they are.
            if (reading.workloads_known or gpu.gpu_uuid in held) and gpu.gpu_uuid not in cut_up:
                allocated.add_metric(labels, gpu.gpu_uuid in held)
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
    yield from (info, up, devices, ratio, allocated, *figures.values())


def _held(reading: NodeReading) -> set[str]:
    """The GPUs that somebody holds, the hub's job or not."""
    present = {holding.gpu_uuid for holding in reading.holdings if holding.until_ms is None}
    return present | {gpu.gpu_uuid for gpu in reading.gpus if gpu.workload is not None}


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
    busy = CounterMetricFamily("hub_gpu_busy_seconds", "Time of full use, whoever held it.", labels=_GPU)
    observed = CounterMetricFamily("hub_gpu_observed_seconds", "Time that was measured at all.", labels=_GPU)
    nobodys = CounterMetricFamily(
        "hub_gpu_unattributed_busy_seconds", "The part of it that went to no attempt of a job.", labels=_GPU
    )
    told = {gpu.gpu_uuid for reading in view.readings if reading.workloads_known for gpu in reading.gpus}
    for state in view.states.values():
        labels = (state.node, state.gpu_uuid)
        busy.add_metric(labels, _busy_s(state.device.busy_ns))
        observed.add_metric(labels, state.device.observed_ms / 1000)
        if state.gpu_uuid in told:
            nobodys.add_metric(labels, _busy_s(state.device.busy_ns - state.attributed_ns))
    yield from (busy, observed, nobodys)


def _workloads(view: View) -> Iterator[Metric]:
    busy = CounterMetricFamily(
        "hub_gpu_workload_busy_seconds", "Time of full use under the workload.", labels=_WORKLOAD
    )
    observed = CounterMetricFamily(
        "hub_gpu_workload_observed_seconds", "Measured time under the workload.", labels=_WORKLOAD
    )
    info = GaugeMetricFamily(
        "hub_gpu_allocation_info",
        "1 for every pod that holds the GPU; without a job it is not the hub's.",
        labels=(*_WORKLOAD, "pod_index", "workload_namespace", "workload_pod"),
    )
    for reading in view.readings:
        for gpu in reading.gpus:
            if gpu.workload is not None and not reading.holdings:
                held = gpu.workload
                whose = (held.job_id, str(held.attempt), str(held.pod_index))
                info.add_metric((reading.node, gpu.gpu_uuid, *whose, "", ""), 1)
            state = view.states.get(gpu.gpu_uuid)
            for job_id, attempt, measured in () if state is None else _under(gpu, state):
                labels = (reading.node, gpu.gpu_uuid, job_id, str(attempt))
                busy.add_metric(labels, _busy_s(measured.busy_ns))
                observed.add_metric(labels, measured.observed_ms / 1000)
        for holding in reading.holdings:
            if holding.until_ms is None:
                part = (str(holding.attempt), str(holding.pod_index)) if holding.job_id else ("", "")
                place = (holding.namespace[:128], holding.pod[:128])
                info.add_metric((reading.node, holding.gpu_uuid, holding.job_id, *part, *place), 1)
    yield from (busy, observed, info)


def _under(gpu: GpuReading, state: GpuState) -> Iterator[tuple[str, int, Measured]]:
    """(job, attempt, what was measured under it) of those that hold the GPU now."""
    if gpu.workload is not None and state.job_id == gpu.workload.job_id:
        yield state.job_id, state.attempt, state.workload
    for job_id, attempt, measured in state.sharers:
        if (job_id, attempt) in gpu.sharers:
            yield job_id, attempt, measured


def _agent(counts: Counts) -> Iterator[Metric]:
    yield InfoMetricFamily("hub_agent_build", "The agent's version.", {"version": version("gpuhub")})
    yield GaugeMetricFamily("hub_agent_collect_success", "1 if the last cycle read.", counts.collect_success)
    yield _collect_durations(counts)
    if counts.collected_at_wall_ms is not None:
        yield GaugeMetricFamily(
            "hub_agent_last_collect_timestamp_seconds",
            "When GPUs were last read.",
            counts.collected_at_wall_ms / 1000,
        )
    for name, text, value in (
        ("collect_failures", "Cycles, or nodes in them, that could not be read.", counts.collect_failures),
        (
            "store_failures",
            "Cycles that the disk did not take; they are kept in memory.",
            counts.store_failures,
        ),
        ("reports_sent", "Deliveries that the quota service answered.", counts.reports_sent),
        ("reports_failed", "Deliveries that failed; their rows are sent again.", counts.reports_failed),
        ("records_sent", "Evidence rows delivered.", counts.records_sent),
        (
            "records_unknown",
            "Delivered rows whose attempt the service does not know.",
            counts.records_unknown,
        ),
        (
            "records_refused",
            "Single rows that the service refused; they stay to be sent.",
            counts.records_refused,
        ),
    ):
        yield CounterMetricFamily(f"hub_agent_{name}", text, value)


def _collect_durations(counts: Counts) -> Metric:
    total = 0
    buckets = []
    bounds = (*map(str, COLLECT_BUCKETS_S), "+Inf")
    for bound, number in zip(bounds, counts.collect_durations, strict=True):
        total += number
        buckets.append((bound, float(total)))
    return HistogramMetricFamily(
        "hub_agent_collect_duration_seconds", "How long a cycle took.", buckets, counts.collect_duration_sum_s
    )


def _spooled(spool: Spool) -> Iterator[Metric]:
    yield GaugeMetricFamily("hub_agent_spool_records", "Evidence rows still to be sent.", spool.records)
    yield CounterMetricFamily(
        "hub_agent_records_dropped", "Rows that were let go unsent, for want of room.", spool.dropped
    )
    if spool.oldest_wall_ms is not None:
        yield GaugeMetricFamily(
            "hub_agent_spool_oldest_timestamp_seconds",
            "Since when the oldest of them waits.",
            spool.oldest_wall_ms / 1000,
        )


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=_GPU)


def _busy_s(busy_ns: int) -> float:
    return busy_ns / (NS_PER_MS * 1000)
