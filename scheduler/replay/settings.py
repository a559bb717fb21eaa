"""What a replay is played on and how: the numbers of `gpuhub replay`, and what they make of a trace."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from scheduler.replay.traces import HOUR_S, TraceJob

DAY_S = 24 * HOUR_S


class LedgerKind(StrEnum):
    """Whether money can refuse a start."""

    SOFT = "soft"
    """Never: a grant may be overdrawn without end, and only orders."""
    HARD = "hard"
    """A job starts only if the rest of the grant can hold its GPUs x limit. Each term brings the grant anew."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything but the jobs and the policy. Seconds are virtual ones."""

    nodes: int
    """1 when GPUs are only counted."""
    gpus_per_node: int
    days: float = 60.0
    """The grants' term, in the trace's time: `load` shortens both."""
    ledger: LedgerKind = LedgerKind.SOFT
    load: float = 1.0
    seed: int | None = None
    organizations: int | None = None
    every_s: int = 0
    """Decide at multiples of this only; 0: whenever something happened."""
    until_days: float | None = None
    """Stop there, even if jobs still wait."""
    checkpoint_s: int = HOUR_S
    restart_s: int = 600

    @property
    def gpus(self) -> int:
        """All GPUs."""
        return self.nodes * self.gpus_per_node

    @property
    def term_s(self) -> int:
        """The term in the replay's time."""
        return max(1, round(self.days * DAY_S / self.load))

    @property
    def until_s(self) -> int | None:
        """When to stop."""
        return None if self.until_days is None else round(self.until_days * DAY_S)


def arrange(jobs: Sequence[TraceJob], settings: Settings) -> list[TraceJob]:
    """The jobs as they are played: spread over organizations, rotated by the seed, arriving faster by the load.

    Compressing the submit times keeps every gang whole, which thinning or repeating jobs would not.
    """
    played = list(jobs)
    if settings.organizations is not None:
        played = _spread(played, settings.organizations, settings.seed or 0)
    if settings.seed is not None:
        played = _rotated(played, round(settings.days * DAY_S), settings.seed)
    if settings.load != 1.0:
        played = [replace(job, submit_s=int(job.submit_s / settings.load)) for job in played]
    return sorted(played, key=lambda job: (job.submit_s, job.id))


def gang(gpus: int, gpus_per_node: int) -> tuple[int, int]:
    """Pods and GPUs per pod: as few equal pods as possible, none wider than a node. 20 on nodes of 8 are 4 x 5."""
    per_pod = next(size for size in range(min(gpus, gpus_per_node), 0, -1) if gpus % size == 0)
    return gpus // per_pod, per_pod


def demand_gpu_s(jobs: Sequence[TraceJob]) -> dict[str, int]:
    """GPU-seconds that each organization's jobs will run, cut at their limits; by organization, in order."""
    demand: dict[str, int] = defaultdict(int)
    for job in jobs:
        demand[job.organization] += job.gpus * min(job.run_s, job.limit_s)
    return dict(sorted(demand.items()))


def grants_gpu_s(jobs: Sequence[TraceJob], settings: Settings) -> dict[str, int]:
    """The term's whole capacity, divided in proportion to what each organization demands (facts 2.7)."""
    demand = demand_gpu_s(jobs)
    capacity, total = settings.gpus * settings.term_s, sum(demand.values())
    return {organization: capacity * mine // max(1, total) for organization, mine in demand.items()}


def _spread(jobs: Sequence[TraceJob], organizations: int, seed: int) -> list[TraceJob]:
    rng = random.Random(f"organizations-{seed}")
    width = len(str(organizations))
    return [replace(job, organization=f"org-{rng.randint(1, organizations):0{width}d}") for job in jobs]


def _rotated(jobs: Sequence[TraceJob], term_s: int, seed: int) -> list[TraceJob]:
    """Each organization's submissions turned round within the term, or the trace where that is longer."""
    span_s = max(term_s, 1 + max((job.submit_s for job in jobs), default=0))
    offsets = {
        organization: random.Random(f"{seed}-{organization}").randrange(span_s)
        for organization in sorted({job.organization for job in jobs})
    }
    return [replace(job, submit_s=(job.submit_s + offsets[job.organization]) % span_s) for job in jobs]
