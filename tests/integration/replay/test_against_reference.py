"""The replay of the product's core starts every job when the independent count-only simulator does.

Exactly so under `grant-skip`. `fifo-skip` coincides where the simulator is told that all jobs are one
organization's: it ranks organizations by their oldest job and serves each to the end, the core goes by job.
`decay-skip` does not coincide: the core counts what is held, the simulator the usage of what still runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from scheduler.core.policy import PRESETS, Policy
from scheduler.replay.engine import replay
from scheduler.replay.figures import figures_of
from scheduler.replay.history import History
from scheduler.replay.settings import DAY_S, HOUR_S, Settings, arrange
from scheduler.replay.traces import TraceJob, read_trace
from tests.oracle import replay_reference as reference

SEEDS = range(61)
DAYS = 30
needs_trace = pytest.mark.skipif(
    not reference.TRACE.is_file(),
    reason=f"the ms-itp trace is absent: nothing at {reference.TRACE}, so no figure was checked",
)


def a_trace(seed: int) -> tuple[list[TraceJob], int]:
    """100 to 200 jobs of 3 to 5 organizations within days, on 16 to 64 GPUs that are too few for them.

    Each begins with one job on the empty pool: who has used nothing at all is told apart by other rules.
    """
    rng = Random(seed)
    gpus, firms = rng.choice((16, 24, 32, 64)), rng.randrange(3, 6)
    jobs = [
        TraceJob(f"o{firm}:{firm:04d}", f"o{firm}", 1 + firm, 1, 900 + 7 * firm, HOUR_S)
        for firm in range(firms)
    ]
    at_s = 100
    for number in range(rng.randrange(100, 201) - firms):
        at_s += rng.choice((1, 60, 600, 1800))
        firm, run_s = (
            rng.randrange(firms),
            rng.choice((60, HOUR_S, 5 * HOUR_S, 20 * HOUR_S)) + rng.randrange(1000),
        )
        wide = rng.choice((1, 1, 1, 2, 4, 8, 8, gpus // 2, gpus))
        limit_s = reference.limit_of(run_s)
        jobs.append(TraceJob(f"o{firm}:{firms + number:04d}", f"o{firm}", at_s, wide, run_s, limit_s))
    return jobs, gpus


def counted(gpus: int) -> Settings:
    return Settings(nodes=1, gpus_per_node=gpus, days=DAYS)


def theirs(
    jobs: Sequence[TraceJob], gpus: int, policy: reference.Policy, firms: bool = True
) -> reference.Result:
    """What the simulator makes of it, looking at the whole queue as the core does."""
    orgs = sorted({job.organization for job in jobs})
    told = [
        reference.Job(i, orgs.index(j.organization) if firms else 0, j.submit_s, j.run_s, j.gpus, j.limit_s)
        for i, j in enumerate(jobs)
    ]
    return reference.simulate(told, gpus, replace(policy, look_ahead=0), horizon_s=DAYS * DAY_S)


def ours(jobs: Sequence[TraceJob], gpus: int, policy: Policy) -> History:
    settings = counted(gpus)
    return replay("compared", policy, arrange(jobs, settings), settings)


def starts(history: History) -> list[int | None]:
    return [record.first_start_s for record in history.records]


@pytest.mark.parametrize("seed", SEEDS)
def test_every_job_first_starts_when_the_reference_says(seed: int) -> None:
    jobs, gpus = a_trace(seed)
    jobs = arrange(jobs, counted(gpus))
    by_grant = theirs(jobs, gpus, reference.POLICIES["grant-skip"])
    assert starts(ours(jobs, gpus, PRESETS["grant-skip"])) == by_grant.first_start
    by_age = theirs(jobs, gpus, reference.POLICIES["fifo-skip"], firms=False)
    assert starts(ours(jobs, gpus, PRESETS["fifo-skip"])) == by_age.first_start
    waited = [start - job.submit_s for start, job in zip(by_grant.first_start, jobs, strict=True)]
    assert max(waited) > HOUR_S, "nobody waited, so nothing was compared"
    assert by_grant.first_start != by_age.first_start, "the order did not matter"


@pytest.mark.parametrize("seed", SEEDS[:20])
def test_the_whole_policy_does_all_the_work_on_no_more_gpus(seed: int) -> None:
    jobs, gpus = a_trace(seed)
    jobs = arrange(jobs, counted(gpus))
    policy = PRESETS["gpuhub"]
    assert policy.preemption
    eager = replace(policy, preemption=replace(policy.preemption, gang_gpus=16, lead_ms=HOUR_S * 1000))
    history, result = ours(jobs, gpus, eager), theirs(jobs, gpus, reference.R)
    assert busiest(history) <= gpus
    useful: Counter[str] = Counter()
    for stretch in history.stretches:
        useful[stretch.organization] += stretch.gpus * (stretch.end_s - stretch.begin_s) * stretch.useful
    assert list(history.demand_gpu_s.values()) == result.demand
    assert [useful[firm] for firm in history.demand_gpu_s] == result.demand
    for record in history.records:
        assert record.first_start_s is not None
        assert record.end_s is not None
        assert record.submit_s <= record.first_start_s <= record.end_s - record.run_s
    shared = sum(result.demand) / gpus
    assert figures_of(history).makespan_h * HOUR_S >= shared


def busiest(history: History) -> int:
    """The most GPUs that were occupied at once."""
    steps: Counter[int] = Counter()
    for stretch in history.stretches:
        steps[stretch.begin_s] += stretch.gpus
        steps[stretch.end_s] -= stretch.gpus
    most = here = 0
    for at_s in sorted(steps):
        here += steps[at_s]
        most = max(most, here)
    return most


def test_a_wrong_start_would_be_seen() -> None:
    jobs, gpus = a_trace(1)
    jobs = arrange(jobs, counted(gpus))
    expected = theirs(jobs, gpus, reference.POLICIES["grant-skip"]).first_start
    held = replace(PRESETS["grant-skip"], hold_share=1.0)
    assert starts(ours(jobs, gpus, held)) != expected
    assert starts(ours(jobs, gpus, PRESETS["decay-skip"])) != expected


@needs_trace
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_whole_trace_on_1000_gpus_gives_the_same_figures() -> None:
    settings = Settings(nodes=1, gpus_per_node=1000)
    jobs = arrange(read_trace(reference.TRACE), settings)
    figures = figures_of(replay("grant-skip", PRESETS["grant-skip"], jobs, settings))
    row = reference.simulate(
        reference.read_trace(), 1000, replace(reference.POLICIES["grant-skip"], look_ahead=0)
    ).row()
    mine = [figures.worst_ratio, *(figures.waits[name].mean_h for name in ("all", "<=4", ">=32"))]
    assert mine == pytest.approx([row["worst"], row["wait"], row["small"], row["large"]], rel=2e-3)
    assert mine == pytest.approx([0.3872, 5.755, 2.709, 265.7], rel=2e-3)
