"""Builders for the replay's tests: a job, a pool, and who started when. (It holds no test itself.)"""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.core.policy import PRESETS, Policy
from scheduler.replay.engine import replay
from scheduler.replay.history import History, Record, Stretch
from scheduler.replay.settings import LedgerKind, Settings
from scheduler.replay.traces import TraceJob

HOUR_S = 3600


def a_job(
    id: str = "a",
    submit_s: int = 0,
    gpus: int = 1,
    run_s: int = 100,
    limit_s: int = 3600,
    organization: str = "o",
) -> TraceJob:
    return TraceJob(id, organization, submit_s, gpus, run_s, limit_s)


def a_pool(
    gpus: int = 4,
    nodes: int = 1,
    days: float = 1.0,
    ledger: LedgerKind = LedgerKind.SOFT,
    load: float = 1.0,
    seed: int | None = None,
    organizations: int | None = None,
    every_s: int = 0,
    until_days: float | None = None,
) -> Settings:
    """So many GPUs on each node."""
    return Settings(nodes, gpus, days, ledger, load, seed, organizations, every_s, until_days)


def play(
    jobs: Sequence[TraceJob], settings: Settings | None = None, policy: str | Policy = "fifo-skip"
) -> History:
    chosen = PRESETS[policy] if isinstance(policy, str) else policy
    return replay("test", chosen, jobs, settings or a_pool())


def starts(history: History) -> dict[str, int | None]:
    return {record.id: record.first_start_s for record in history.records}


def ends(history: History) -> dict[str, int | None]:
    return {record.id: record.end_s for record in history.records}


def useful_gpu_s(history: History) -> int:
    return sum(_gpu_s(stretch) for stretch in history.stretches if stretch.useful)


def occupied_gpu_s(history: History) -> int:
    return sum(_gpu_s(stretch) for stretch in history.stretches)


def most_at_once(history: History) -> int:
    """The most GPUs occupied at any moment."""
    steps = sorted(
        step for s in history.stretches for step in ((s.end_s, 0, -s.gpus), (s.begin_s, 1, s.gpus))
    )
    used = most = 0
    for _, _, change in steps:
        used += change
        most = max(most, used)
    return most


def a_record(
    id: str = "a",
    submit_s: int = 0,
    start_s: int | None = 0,
    end_s: int | None = 100,
    gpus: int = 1,
    run_s: int = 100,
    organization: str = "o",
    preemptions: int = 0,
    lost_gpu_s: int = 0,
) -> Record:
    return Record(id, organization, gpus, submit_s, run_s, start_s, end_s, preemptions, lost_gpu_s)


def a_history(
    records: Sequence[Record] = (),
    stretches: Sequence[Stretch] = (),
    grants_gpu_s: dict[str, int] | None = None,
    demand_gpu_s: dict[str, int] | None = None,
    settings: Settings | None = None,
    end_s: int = 86_400,
    submitted: int | None = None,
) -> History:
    return History(
        policy="p",
        settings=settings or a_pool(),
        records=tuple(records),
        submitted=len(records) if submitted is None else submitted,
        stretches=tuple(stretches),
        grants_gpu_s=grants_gpu_s or {},
        demand_gpu_s=demand_gpu_s or {},
        used_gpu_s={},
        end_s=end_s,
        cut_jobs=0,
        cycles=0,
        wall_s=0.0,
    )


def _gpu_s(stretch: Stretch) -> int:
    return stretch.gpus * (stretch.end_s - stretch.begin_s)
