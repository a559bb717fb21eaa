"""What jobs of late were like, and jobs to come drawn from them: how long they run of their walltime, who submits what.

Nobody knows how long a job will run or what is submitted next. Both are drawn from the past: a run from the shares of
their walltime that like jobs used, a day of submissions from a whole past day of each organization.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random

from scheduler.core.model import Job, Topology
from scheduler.core.policy import DAY_MS, HOUR_MS

ENOUGH_RUNS = 10
"""So many like runs are taken to say something; with fewer, less alike ones are asked."""
DAYS_OF_ARRIVALS = 7
LENGTHS_MS = (HOUR_MS, 4 * HOUR_MS, 12 * HOUR_MS, 24 * HOUR_MS, 72 * HOUR_MS)
WIDTHS = (1, 4, 8, 32)
"""Jobs are alike whose walltime and GPUs lie between the same two of these."""

Likeness = tuple[str | None, int | None, int | None]


@dataclass(frozen=True, slots=True)
class Past:
    """A job that was submitted, or ended, lately."""

    organization_id: str
    grant_id: str | None
    gpu_class: str
    gpus_per_pod: int
    pods: int
    walltime_ms: int
    restartable: bool
    submitted_at_ms: int
    ran_ms: int | None
    """How long it ran until it ended by itself, was cancelled or reached its walltime; None: it has not."""
    fallbacks: tuple[str, ...] = ()
    """Further classes that it accepted."""
    topology: Topology = Topology.ANY
    program_id: str = ""
    """The programme whose fund pays for an opportunistic job; "": it was none."""

    @property
    def gpus(self) -> int:
        """How many it took in all."""
        return self.gpus_per_pod * self.pods


class Habits:
    """Draws from the past. Every draw is the caller's `rng`'s; the same draws give the same answers."""

    def __init__(self, past: Iterable[Past], now_ms: int) -> None:
        self._now_ms = now_ms
        shares: dict[Likeness, list[float]] = defaultdict(list)
        self._submitted: dict[str, list[Past]] = defaultdict(list)
        first_ms = now_ms
        for each in past:
            if each.ran_ms is not None and each.walltime_ms > 0:
                share = min(1.0, each.ran_ms / each.walltime_ms)
                for likeness in _likenesses(each.organization_id, each.gpus, each.walltime_ms):
                    shares[likeness].append(share)
            if now_ms - DAYS_OF_ARRIVALS * DAY_MS < each.submitted_at_ms <= now_ms:
                self._submitted[each.organization_id].append(each)
                first_ms = min(first_ms, each.submitted_at_ms)
        self._shares: Mapping[Likeness, list[float]] = {key: sorted(found) for key, found in shares.items()}
        # a hub that began today has one day to draw from, and knows only a part of it
        self._days = max(1, min(DAYS_OF_ARRIVALS, -(-(now_ms - first_ms) // DAY_MS)))

    def run_ms(self, rng: Random, job: Job, ran_ms: int = 0) -> int:
        """How long a job runs in all, given that it has run for `ran_ms` already; its walltime if nobody can say."""
        since = ran_ms / max(1, job.walltime_ms)
        for likeness in _likenesses(job.organization_id, job.gpus, job.walltime_ms):
            shares = self._shares.get(likeness, [])
            longer = bisect_right(shares, since) if ran_ms else 0
            if len(shares) - longer >= ENOUGH_RUNS:
                return int(job.walltime_ms * shares[rng.randrange(longer, len(shares))])
        return job.walltime_ms

    def mean_run_ms(self, job: Job) -> int:
        """What a job that has not started is expected to run."""
        for likeness in _likenesses(job.organization_id, job.gpus, job.walltime_ms):
            shares = self._shares.get(likeness, [])
            if len(shares) >= ENOUGH_RUNS:
                return int(job.walltime_ms * sum(shares) / len(shares))
        return job.walltime_ms

    def arrivals(self, rng: Random, horizon_ms: int) -> tuple[list[Job], dict[str, int]]:
        """Jobs to come within the horizon, in order, and how long each will run.

        Each organization submits on each day what it did on one of its last days, drawn anew, at the same times.
        """
        jobs: list[Job] = []
        runs_ms: dict[str, int] = {}
        for organization_id, submitted in sorted(self._submitted.items()):
            for day in range(-(-horizon_ms // DAY_MS)):
                back = rng.randrange(1, self._days + 1)
                for number, each in enumerate(submitted):
                    at_ms = each.submitted_at_ms + back * DAY_MS
                    if not self._now_ms < at_ms <= self._now_ms + DAY_MS:
                        continue
                    at_ms += day * DAY_MS
                    if at_ms > self._now_ms + horizon_ms:
                        continue
                    job = _to_come(f"~{organization_id}.{day}.{number}", each, at_ms)
                    jobs.append(job)
                    runs_ms[job.id] = self.run_ms(rng, job) if each.ran_ms is None else each.ran_ms
        return sorted(jobs, key=lambda job: (job.submitted_at_ms, job.id)), runs_ms


def _to_come(id: str, past: Past, at_ms: int) -> Job:
    return Job(
        id=id,
        organization_id=past.organization_id,
        grant_id=past.grant_id,
        gpu_class=past.gpu_class,
        gpus_per_pod=past.gpus_per_pod,
        pods=past.pods,
        walltime_ms=past.walltime_ms,
        submitted_at_ms=at_ms,
        restartable=past.restartable,
        fallbacks=past.fallbacks,
        topology=past.topology,
        program_id=past.program_id,
    )


def _likenesses(organization_id: str, gpus: int, walltime_ms: int) -> Iterator[Likeness]:
    """From the most alike to anything."""
    length = sum(walltime_ms > bound for bound in LENGTHS_MS)
    width = sum(gpus > bound for bound in WIDTHS)
    yield organization_id, length, width
    yield organization_id, length, None
    yield None, length, None
    yield organization_id, None, None
    yield None, None, None
