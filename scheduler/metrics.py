"""What Prometheus reads: counters kept by the loop, gauges computed at the scrape from its last picture."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from quota.schemas.scheduling import StopReason
from scheduler import families

CYCLE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
FORECAST_BUCKETS_S = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0)
VERBS = ("start", "place", "notify", "extend", "stop", "acknowledge", "delete")
OUTCOMES = ("done", "failed")
"""What clusters are asked to do, and how it goes."""
WAIT_BUCKETS_S = (10, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400, 259200, 604800)


@dataclass(frozen=True, slots=True)
class QueueKey:
    """Jobs of one organization that wait for the same kind of thing."""

    organization: str
    status: str
    """`active` lacks only room, `blocked` waits for a person or a grant, `held` for a moment in time."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What organizations keep of the hub now, and what they should; each by organization."""

    gpus: Mapping[str, int] = field(default_factory=dict)
    """GPUs that its jobs keep."""
    fair: Mapping[str, float] = field(default_factory=dict)
    """The pace of its running grants, of that of all (0-1); their sum is 1."""
    used: Mapping[str, float] = field(default_factory=dict)
    """What is kept on its grants, of what is kept on all (0-1); their sum is 1 while anything runs, else 0."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The hub as the leader sees it at one moment."""

    jobs: Mapping[QueueKey, int] = field(default_factory=dict)
    gpus_requested: Mapping[QueueKey, int] = field(default_factory=dict)
    oldest_ms: Mapping[QueueKey, int] = field(default_factory=dict)
    """Submission of the job that waits longest."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    gpus: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """By (gpu_class, state)."""
    booked: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """GPUs booked within the horizon, by (gpu_class, `kept` or `short`)."""
    seen_ms: Mapping[str, int] = field(default_factory=dict)
    """When each cluster last answered."""
    shares: Shares = field(default_factory=Shares)


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


NO_WAITS = Tally(WAIT_BUCKETS_S)


class Metrics(Collector):
    """Counts for the loop and shows for the scraper; safe to use from both threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leader = False
        self._picture = Picture()
        self._decisions: Counter[str] = Counter()
        self._stops: Counter[str] = Counter()
        self._admitted = 0
        # Prometheus sees no increase in a series that appears with its first event
        self._actions: Counter[tuple[str, str]] = Counter(dict.fromkeys(product(VERBS, OUTCOMES), 0))
        self._quota_errors = 0
        self._forecasts = Tally(FORECAST_BUCKETS_S)
        self._forecast_errors = 0
        self._foretold_ms: int | None = None
        self._feed_seq: int | None = None
        self._cycles = Tally(CYCLE_BUCKETS_S)
        self._waits: dict[str, Tally] = {}
        self._starts: Counter[str] = Counter()
        self._waited_ms: Counter[str] = Counter()
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
                self._feed_seq = None
            self._leader = leader

    def show(self, picture: Picture) -> None:
        """The hub as it is now."""
        with self._lock:
            self._picture = picture

    def fed(self, seq: int) -> None:
        """The feed of the quota service was read up to here."""
        with self._lock:
            self._feed_seq = seq

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

    def admitted(self, organization: str, gpu_class: str, waited_s: float) -> None:
        """A job was started after waiting this long (business time)."""
        with self._lock:
            self._admitted += 1
            self._starts[organization] += 1
            self._waited_ms[organization] += round(waited_s * 1000)
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
            made = [*self._counters(), *self._histograms(), *self._gauges()]
        return iter(made)

    def _counters(self) -> Iterator[Metric]:
        outcomes = ("started", "stopped", "unchanged", "refused")
        yield families.DECISIONS.counter_of({(outcome,): self._decisions[outcome] for outcome in outcomes})
        yield families.STOPS.counter_of({(reason.value,): self._stops[reason.value] for reason in StopReason})
        yield families.ADMITTED.counter(self._admitted)
        # who has a grant has a series before his first job starts: nobody sees an increase in one that begins at 1
        known = {*self._starts, *self._picture.shares.fair}
        yield families.ORGANIZATION_STARTS.counter_of({(name,): self._starts[name] for name in known})
        waited_s = {(name,): self._waited_ms[name] / 1000 for name in known}
        yield families.ORGANIZATION_WAIT.counter_of(waited_s)
        yield families.ACTIONS.counter_of(self._actions)
        yield families.QUOTA_ERRORS.counter(self._quota_errors)
        yield families.FORECAST_FAILURES.counter(self._forecast_errors)

    def _histograms(self) -> Iterator[Metric]:
        cycles = families.CYCLE_DURATION.histogram()
        cycles.add_metric((), *self._cycles.buckets())
        waits = families.QUEUE_WAIT.histogram()
        for gpu_class in sorted({*self._waits, *(name for name, _ in self._picture.gpus)}):
            waits.add_metric([gpu_class], *self._waits.get(gpu_class, NO_WAITS).buckets())
        forecasts = families.FORECAST_DURATION.histogram()
        forecasts.add_metric((), *self._forecasts.buckets())
        yield from (cycles, waits, forecasts)

    def _gauges(self) -> Iterator[Metric]:
        picture = self._picture
        yield families.BUILD.info({"version": version("gpuhub")})
        yield families.LEADER.gauge(float(self._leader))
        if self._feed_seq is not None:
            yield families.FEED_SEQ.gauge(self._feed_seq)
        yield families.QUEUE_JOBS.gauge_of(_by_queue(picture.jobs))
        yield families.QUEUE_GPUS.gauge_of(_by_queue(picture.gpus_requested))
        oldest_s = {key: at_ms / 1000 for key, at_ms in picture.oldest_ms.items()}
        yield families.QUEUE_OLDEST.gauge_of(_by_queue(oldest_s))
        yield families.UNSCHEDULABLE.gauge_of(_by_one(picture.reasons))
        yield families.GPUS.gauge_of(picture.gpus)
        yield families.ORGANIZATION_GPUS.gauge_of(_by_one(picture.shares.gpus))
        yield families.FAIR_SHARE.gauge_of(_by_one(picture.shares.fair))
        yield families.USAGE.gauge_of(_by_one(picture.shares.used))
        if self._foretold_ms is not None:
            yield families.FORECAST_AT.gauge(self._foretold_ms / 1000)
        yield families.BOOKED.gauge_of(picture.booked)
        seen_s = {cluster: at_ms / 1000 for cluster, at_ms in picture.seen_ms.items()}
        yield families.CLUSTER_SEEN.gauge_of(_by_one(seen_s))


def _by_queue(values: Mapping[QueueKey, float]) -> dict[tuple[str, ...], float]:
    return {(key.organization, key.status): value for key, value in values.items()}


def _by_one(values: Mapping[str, float]) -> dict[tuple[str, ...], float]:
    return {(key,): value for key, value in values.items()}
