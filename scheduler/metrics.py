"""What Prometheus reads: counters kept by the loop, gauges computed at the scrape from its last picture."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from quota.schemas.scheduling import StopReason

CYCLE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
FORECAST_BUCKETS_S = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)
WAIT_BUCKETS_S = (10, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400, 259200, 604800)


@dataclass(frozen=True, slots=True)
class QueueKey:
    """Jobs of one organization that wait for the same kind of thing."""

    organization: str
    status: str
    """`active` lacks only room, `blocked` waits for a person or a grant, `held` for a moment in time."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The hub as the leader sees it at one moment."""

    jobs: Mapping[QueueKey, int] = field(default_factory=dict)
    gpus_requested: Mapping[QueueKey, int] = field(default_factory=dict)
    oldest_ms: Mapping[str, int] = field(default_factory=dict)
    """Submission of the job that waits longest, by organization."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    gpus: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By (gpu_class, state)."""
    booked: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """GPUs booked within the horizon, by (gpu_class, `kept` or `short`)."""
    seen_ms: Mapping[str, int] = field(default_factory=dict)
    """When each cluster last answered."""


class Tally:
    """A histogram: how many values fell under each bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative buckets with their bounds as text, and the sum."""
        total, buckets = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(total)))
        return buckets, self._sum


class Metrics(Collector):
    """Counts for the loop and shows for the scraper; safe to use from both threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leader = False
        self._picture = Picture()
        self._decisions: Counter[str] = Counter()
        self._stops: Counter[str] = Counter()
        self._admitted = 0
        self._actions: Counter[tuple[str, str]] = Counter()
        self._quota_errors = 0
        self._forecasts = Tally(FORECAST_BUCKETS_S)
        self._forecast_errors = 0
        self._foretold_ms: int | None = None
        self._cycles = Tally(CYCLE_BUCKETS_S)
        self._waits: dict[str, Tally] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)

    def lead(self, leader: bool) -> None:
        """Whether this process leads; a standby shows no queue."""
        with self._lock:
            if not leader:
                self._picture = Picture()
                self._foretold_ms = None
            self._leader = leader

    def show(self, picture: Picture) -> None:
        """The hub as it is now."""
        with self._lock:
            self._picture = picture

    def cycle(self, duration_s: float) -> None:
        """One cycle of the loop took this long."""
        with self._lock:
            self._cycles.add(duration_s)

    def decided(self, outcome: str) -> None:
        """Quota answered a decision: `started`, `stopped`, `unchanged` or `refused`."""
        with self._lock:
            self._decisions[outcome] += 1

    def stopped(self, reason: str) -> None:
        """Quota recorded a stop for this reason."""
        with self._lock:
            self._stops[reason] += 1

    def admitted(self, gpu_class: str, waited_s: float) -> None:
        """A job was started after waiting this long (business time)."""
        with self._lock:
            self._admitted += 1
            self._waits.setdefault(gpu_class, Tally(WAIT_BUCKETS_S)).add(waited_s)

    def acted(self, verb: str, outcome: str) -> None:
        """A cluster was asked to start, stop or delete."""
        with self._lock:
            self._actions[verb, outcome] += 1

    def quota_failed(self) -> None:
        """The quota service did not answer."""
        with self._lock:
            self._quota_errors += 1

    def foretold(self, as_of_ms: int, duration_s: float) -> None:
        """A forecast from this moment was published, after so long."""
        with self._lock:
            self._foretold_ms = as_of_ms
            self._forecasts.add(duration_s)

    def forecast_failed(self) -> None:
        """A forecast came to nothing."""
        with self._lock:
            self._forecast_errors += 1

    def collect(self) -> Iterator[Metric]:
        """Fresh families: a label value that is no more leaves no series behind."""
        with self._lock:
            families = [*self._counters(), *self._histograms(), *self._gauges()]
        return iter(families)

    def _counters(self) -> Iterator[Metric]:
        decisions = CounterMetricFamily(
            "hub_sched_decisions", "Decisions answered by the quota service.", labels=["outcome"]
        )
        for outcome in ("started", "stopped", "unchanged", "refused"):
            decisions.add_metric([outcome], self._decisions[outcome])
        yield decisions
        stops = CounterMetricFamily(
            "hub_sched_stops", "Stops recorded by the quota service.", labels=["reason"]
        )
        for reason in StopReason:
            stops.add_metric([reason.value], self._stops[reason.value])
        yield stops
        yield CounterMetricFamily("hub_sched_admitted_jobs", "Jobs started.", value=self._admitted)
        actions = CounterMetricFamily(
            "hub_sched_cluster_actions",
            "Starts, stops and deletions on clusters.",
            labels=["verb", "outcome"],
        )
        for (verb, outcome), count in sorted(self._actions.items()):
            actions.add_metric([verb, outcome], count)
        yield actions
        yield CounterMetricFamily(
            "hub_sched_quota_errors", "Calls that the quota service did not answer.", value=self._quota_errors
        )

        yield CounterMetricFamily(
            "hub_sched_forecast_failures", "Forecasts that came to nothing.", value=self._forecast_errors
        )

    def _histograms(self) -> Iterator[Metric]:
        buckets, total = self._cycles.buckets()
        yield HistogramMetricFamily(
            "hub_sched_cycle_duration_seconds", "Wall time of one cycle.", buckets=buckets, sum_value=total
        )
        waits = HistogramMetricFamily(
            "hub_sched_queue_wait_seconds",
            "From submission to the start's decision (business time).",
            labels=["gpu_class"],
        )
        for gpu_class, tally in sorted(self._waits.items()):
            buckets, total = tally.buckets()
            waits.add_metric([gpu_class], buckets, total)
        yield waits
        buckets, total = self._forecasts.buckets()
        yield HistogramMetricFamily(
            "hub_sched_forecast_duration_seconds",
            "Wall time of a forecast, from the question to its publication.",
            buckets=buckets,
            sum_value=total,
        )

    def _gauges(self) -> Iterator[Metric]:
        picture = self._picture
        yield GaugeMetricFamily(
            "hub_sched_leader", "1 if this process holds the scheduler lease.", value=float(self._leader)
        )
        yield _by_queue("hub_sched_queue_jobs", "Waiting jobs.", picture.jobs)
        yield _by_queue("hub_sched_queue_gpus_requested", "GPUs asked for.", picture.gpus_requested)
        yield _by(
            "hub_sched_queue_oldest_timestamp_seconds",
            "Submission of the job that waits longest.",
            ["organization"],
            {(organization,): at_ms / 1000 for organization, at_ms in picture.oldest_ms.items()},
        )
        yield _by(
            "hub_sched_unschedulable_jobs",
            "Waiting jobs by what keeps them waiting.",
            ["reason"],
            {(reason,): count for reason, count in picture.reasons.items()},
        )
        yield _by("hub_sched_gpus", "GPUs by what they do.", ["gpu_class", "state"], picture.gpus)
        if self._foretold_ms is not None:
            yield GaugeMetricFamily(
                "hub_sched_forecast_timestamp_seconds",
                "The moment that the last published forecast was made for (business time): its age is now less this.",
                value=self._foretold_ms / 1000,
            )
        yield _by(
            "hub_sched_booked_gpus",
            "GPUs of bookings that come or are on: whose room is kept, and that will not be free in time.",
            ["gpu_class", "state"],
            picture.booked,
        )
        yield _by(
            "hub_sched_cluster_seen_timestamp_seconds",
            "When the cluster last answered (business time).",
            ["cluster"],
            {(cluster,): at_ms / 1000 for cluster, at_ms in picture.seen_ms.items()},
        )


def _by_queue(name: str, text: str, values: Mapping[QueueKey, int]) -> GaugeMetricFamily:
    return _by(
        name,
        text,
        ["organization", "status"],
        {(key.organization, key.status): count for key, count in values.items()},
    )


def _by(
    name: str,
    text: str,
    labels: Sequence[str],
    values: Mapping[tuple[str, str], float] | Mapping[tuple[str], float],
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in sorted(values.items()):
        family.add_metric(label_values, value)
    return family
