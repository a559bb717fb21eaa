"""What came of a replay: one record per job, the stretches of useful work, and what was counted on the way."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.replay.settings import Settings


@dataclass(frozen=True, slots=True)
class Record:
    """One job's life. Virtual seconds; what has not happened by the end of the replay is None."""

    id: str
    organization: str
    gpus: int
    submit_s: int
    run_s: int
    """Its work, without what was lost and paid for restarts; cut at the limit."""
    first_start_s: int | None
    end_s: int | None
    preemptions: int
    lost_gpu_s: int
    """Occupied for nothing: work since the last checkpoint before a preemption, and restarts."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """GPUs of one organization, occupied for useful work (or not) from one moment to another."""

    organization: str
    gpus: int
    begin_s: int
    end_s: int
    useful: bool


@dataclass(frozen=True, slots=True)
class History:
    """One policy's replay. Everything occupied lies in `stretches`; no two of them share a GPU."""

    policy: str
    settings: Settings
    records: tuple[Record, ...]
    """Of all jobs, in order of submission."""
    submitted: int
    """How many of them came before the end."""
    stretches: tuple[Stretch, ...]
    grants_gpu_s: dict[str, int]
    demand_gpu_s: dict[str, int]
    used_gpu_s: dict[str, int]
    """What the ledger charged by the end. Work of jobs that still run then is not in it."""
    end_s: int
    """When the replay ended: all work done, or cut."""
    cut_jobs: int
    """How many jobs ran into their limit, so that less than their run time was played."""
    cycles: int
    wall_s: float
