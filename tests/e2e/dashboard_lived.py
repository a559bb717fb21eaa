"""What a dashboard must show at one moment, by other sources than the hub's metrics: the script, the API, the cluster.

(It holds no test itself.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dashboard_world import JOBS, RUNNING, WAITING, World

from quota.client.paging import every
from quota.schemas.jobs import JobDetail
from quota.schemas.programs import Grant

GPU_US_PER_HOUR = 3_600_000_000
WAIT_BOUNDS_S = (0, 10, 30, 60, 300, 900, 1800, 3600)
"""Between which a histogram cannot tell waits apart."""

Series = Mapping[str, object]
"""Values by what a reader sees beside them: a legend, or a table's cells."""


@dataclass(frozen=True, slots=True)
class Between:
    """Any value from `low` to `high`."""

    low: float
    high: float

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float | int) and self.low <= other <= self.high

    def __hash__(self) -> int:
        return hash((self.low, self.high))


class Loosely(dict[str, object]):
    """Further series may be there if they are 0."""


class Perhaps(dict[str, object]):
    """Any of them may be missing."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its cluster shows it."""

    uuid: str
    node: str
    gpu_class: str
    model: str
    power_watts: float
    temperature_celsius: float
    memory_used: float
    """0 to 1."""
    job_id: str
    """Empty if nobody holds it."""


@dataclass(frozen=True, slots=True)
class Lived:
    """The hub at the moment that is asked for."""

    world: World
    at_s: float
    """Wall time."""
    business_s: float
    """Business time of the last scrape before it."""
    began_s: float
    """Business time of the first scrape."""
    jobs: Mapping[str, JobDetail]
    grants: Mapping[tuple[str, str], Grant]
    statements: Mapping[tuple[str, str], int]
    """GPU-microseconds charged by each grant's statement, added up from its lines."""
    findings: Mapping[str, int]
    gpus: tuple[Gpu, ...]
    """Of the simulated cluster."""

    def stands_like(self, later: Lived) -> bool:
        """Whether nothing was charged and nothing changed in between."""
        return (
            {pair: (grant.used_gpu_us, grant.held_gpu_us) for pair, grant in self.grants.items()}
            == {pair: (grant.used_gpu_us, grant.held_gpu_us) for pair, grant in later.grants.items()}
            and {name: job.state for name, job in self.jobs.items()}
            == {name: job.state for name, job in later.jobs.items()}
            and self.findings == later.findings
            and self.reasons() == later.reasons()
        )

    # --- grants ---

    def used(self, organization: str = "", program: str = "") -> float:
        """GPU hours charged."""
        return sum(int(one.used_gpu_us) for one in self._of(organization, program)) / GPU_US_PER_HOUR

    def stated(self, organization: str) -> float:
        """GPU hours charged by the lines of the organization's statements."""
        lines = [used for (held_by, _), used in self.statements.items() if held_by == organization]
        return sum(lines) / GPU_US_PER_HOUR

    def held(self, organization: str = "", program: str = "") -> float:
        """GPU hours held."""
        return sum(int(one.held_gpu_us) for one in self._of(organization, program)) / GPU_US_PER_HOUR

    def granted(self, organization: str = "", program: str = "") -> float:
        """GPU hours granted."""
        return sum(int(one.granted_gpu_us) for one in self._of(organization, program)) / GPU_US_PER_HOUR

    def due(self, organization: str) -> float:
        """GPU hours that would be charged by now, had they been used evenly."""
        return sum(
            int(one.granted_gpu_us) / GPU_US_PER_HOUR * self.elapsed(one)
            for one in self._of(organization, "")
        )

    def elapsed(self, grant: Grant) -> float:
        """Which part of a grant's term is over."""
        return (self.business_s - grant.starts_at / 1000) / ((grant.ends_at - grant.starts_at) / 1000)

    def pace(self, organization: str, program: str) -> float:
        """GPUs charged on the mean since the grant began."""
        grant = self.grants[organization, program]
        return self.used(organization, program) * 3600 / (self.business_s - grant.starts_at / 1000)

    def platform_hours(self) -> float:
        """GPU hours that no grant pays, by the attempts."""
        attempts = [attempt for job in self.jobs.values() for attempt in job.attempts]
        return sum(int(one.platform_gpu_us) for one in attempts) / GPU_US_PER_HOUR

    def ended(self) -> Counter[str]:
        """Jobs that have ended, by how."""
        return Counter(job.end_reason.value for job in self.jobs.values() if job.end_reason is not None)

    def in_vain_hours(self) -> float:
        """GPU hours of the attempts that failed: they have the reference class."""
        ends = [
            (JOBS[name].gpus, attempt)
            for name, job in self.jobs.items()
            for attempt in job.attempts
            if attempt.end_reason is not None and attempt.end_reason.value == "failed"
        ]
        return (
            sum(gpus * ((one.ended_at or 0) - (one.first_started_at or 0)) for gpus, one in ends) / 3_600_000
        )

    def _of(self, organization: str, program: str) -> list[Grant]:
        return [
            grant
            for (held_by, within), grant in self.grants.items()
            if organization in ("", held_by) and program in ("", within)
        ]

    # --- jobs ---

    def waited_s(self, names: Iterable[str]) -> list[float]:
        """From submission to the start's decision."""
        jobs = [self.jobs[name] for name in names]
        return [(job.attempts[0].claimed_at - job.submitted_at) / 1000 for job in jobs]

    def oldest_wait_s(self, *names: str) -> float:
        """How long the oldest of these has waited."""
        return self.business_s - min(self.jobs[name].submitted_at for name in names) / 1000

    def reasons(self) -> Counter[str]:
        """Why jobs wait."""
        waiting = [self.jobs[name].waiting for name in WAITING]
        return Counter(one.code.value for one in waiting if one is not None)

    def running(self) -> dict[str, JobDetail]:
        """The jobs that hold GPUs, by name."""
        return {name: self.jobs[name] for name in RUNNING}

    def load_of(self, gpu: Gpu) -> float:
        """How busy the script lets the GPU be."""
        names = {job.id: name for name, job in self.jobs.items()}
        if not gpu.job_id:
            return 0.0
        kind, _, ratio = JOBS[names[gpu.job_id]].load.partition(":")
        return 0.0 if kind == "idle" else float(ratio)

    def gpus_of(self, name: str) -> list[Gpu]:
        """The GPUs that a job holds, as the cluster sees it."""
        return [gpu for gpu in self.gpus if gpu.job_id == self.jobs[name].id]


def look(world: World, at_s: float) -> Lived:
    """Ask everybody but Prometheus; of that only which moments it read the hub at."""
    business = "max(hub_quota_business_timestamp_seconds)"
    first = "min(min_over_time(hub_quota_business_timestamp_seconds[1h]))"
    return Lived(
        world,
        at_s,
        world.prometheus.value(business, at_s),
        world.prometheus.value(first, at_s),
        {name: world.job(name) for name in world.job_ids},
        world.grants(),
        {pair: _stated(world, grant_id) for pair, grant_id in world.grant_ids.items()},
        Counter(finding.code for finding in every(world.operator.list_findings)),
        _gpus(world),
    )


def _stated(world: World, grant_id: str) -> int:
    """What the lines of a grant's statement come to."""
    return sum(int(line.used_gpu_us) for line in world.operator.read_statement(grant_id).lines)


def _gpus(world: World) -> tuple[Gpu, ...]:
    return tuple(
        Gpu(
            gpu["gpu_uuid"],
            node,
            gpu["gpu_class"],
            gpu["model"],
            gpu["power_watts"],
            gpu["temperature_celsius"],
            gpu["memory_used_bytes"] / gpu["memory_total_bytes"],
            gpu["workload"]["job_id"] if gpu["workload"] else "",
        )
        for node, gpu in world.gpus_shown()
    )


def within_buckets(waits_s: Iterable[float], slack_s: float = 30.0) -> Between:
    """Where a quantile of these waits lies by a histogram; the scheduler counts up to `slack_s` more."""
    waited = sorted(waits_s)
    low = max(bound for bound in WAIT_BOUNDS_S if bound <= waited[0])
    high = min(bound for bound in WAIT_BOUNDS_S if bound >= waited[-1] + slack_s)
    return Between(low, high)
