"""What a day lived through came to: waits, deliveries, utilisation; from the API and the journal."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quota.schemas.jobs import JobDetail
from quota.schemas.programs import Grant

SIZES = ((4, "1-4 GPUs"), (31, "5-31 GPUs"), (math.inf, "32+ GPUs"))


@dataclass(frozen=True, slots=True)
class Waits:
    """How long the jobs of one size class waited for their first start, in business seconds."""

    size: str
    started: int
    never_started: int
    mean_s: float
    p95_s: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """What an organization got against what its grant's term so far entitles it to; GPU-microseconds."""

    organization: str
    granted_gpu_us: int
    due_gpu_us: int
    charged_gpu_us: int

    @property
    def ratio(self) -> float:
        """Delivered / due."""
        return self.charged_gpu_us / self.due_gpu_us if self.due_gpu_us else 0.0


@dataclass(frozen=True, slots=True)
class Use:
    """How the GPUs were used in the window."""

    utilisation: float
    """GPU time under running pods / GPU time of the fleet."""
    held_idle: float
    """GPU time given to jobs whose pods did not run (yet, or any more) / GPU time given to jobs."""
    measured_busy: float | None
    """Busy / observed, as the agents measured it."""


def waits(jobs: Iterable[JobDetail]) -> list[Waits]:
    """Waits by size class."""
    started: dict[str, list[float]] = defaultdict(list)
    never: Counter[str] = Counter()
    for job in jobs:
        gpus = job.pods * job.gpus_per_pod
        size = next(name for most, name in SIZES if gpus <= most)
        first = next((a.first_started_at for a in job.attempts if a.first_started_at is not None), None)
        if first is None:
            never[size] += 1
        else:
            started[size].append((first - job.submitted_at) / 1000)
    return [
        Waits(name, len(started[name]), never[name], _mean(started[name]), percentile(started[name], 0.95))
        for _, name in SIZES
    ]


def ends(jobs: Iterable[JobDetail]) -> Counter[str]:
    """How many jobs ended for which reason."""
    return Counter("not ended" if job.end_reason is None else job.end_reason.value for job in jobs)


def deliveries(jobs: Iterable[JobDetail], grants: Iterable[Grant], until_ms: int) -> list[Delivery]:
    """What each organization got against grant x elapsed share of its term."""
    charged: Counter[str] = Counter()
    for job in jobs:
        charged[job.organization_id] += job.charged_gpu_us
    rows = []
    for grant in grants:
        term_ms, elapsed_ms = grant.ends_at - grant.starts_at, until_ms - grant.starts_at
        due = grant.granted_gpu_us * elapsed_ms // term_ms
        organization = grant.organization_id or ""
        rows.append(Delivery(organization, grant.granted_gpu_us, due, charged[organization]))
    return rows


def use(jobs: Sequence[JobDetail], journal: Path, gpus: int, first_ms: int, last_ms: int) -> Use:
    """Utilisation from the cluster's journal, held-idle from the hub's claims, busy from the agents."""
    ran_ms = running_gpu_ms(journal, first_ms, last_ms)
    held_ms = 0
    for job in jobs:
        for attempt in job.attempts:
            ended_ms = last_ms if attempt.ended_at is None else attempt.ended_at
            count = sum(pod.count for pod in attempt.pods)
            held_ms += count * _overlap_ms(attempt.claimed_at, ended_ms, first_ms, last_ms)
    busy = sum(row.busy_ms for job in jobs for row in job.measured)
    observed = sum(row.observed_ms for job in jobs for row in job.measured)
    return Use(
        utilisation=ran_ms / (gpus * (last_ms - first_ms)),
        held_idle=1 - ran_ms / held_ms if held_ms else 0.0,
        measured_busy=busy / observed if observed else None,
    )


def running_gpu_ms(journal: Path, first_ms: int, last_ms: int) -> int:
    """GPU-milliseconds under running pods between two moments, by pod_started and pod_ended."""
    started: dict[tuple[str, int], tuple[int, int]] = {}
    total = 0
    with journal.open(encoding="utf-8") as lines:
        for line in lines:
            if '"pod_' not in line or not line.endswith("\n"):
                continue
            event = json.loads(line)
            pod = (str(event["name"]), int(event["pod_index"]))
            if event["event"] == "pod_started":
                started[pod] = (int(event["t"]), len(event["gpu_uuids"]))
            elif event["event"] == "pod_ended" and pod in started:
                since_ms, gpus = started.pop(pod)
                total += gpus * _overlap_ms(since_ms, int(event["t"]), first_ms, last_ms)
    for since_ms, gpus in started.values():
        total += gpus * _overlap_ms(since_ms, last_ms, first_ms, last_ms)
    return total


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; 0 for none."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _overlap_ms(since_ms: int, until_ms: int, first_ms: int, last_ms: int) -> int:
    return max(min(until_ms, last_ms) - max(since_ms, first_ms), 0)
