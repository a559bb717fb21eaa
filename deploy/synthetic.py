"""A made-up trace with the shape of real ones, the same for the same seed.

- Organizations `org-01` … `org-08` with Zipf weights (1, 1/2, 1/3, …): a few ask for most.
- Widths: 1 GPU 70 %, 2 8 %, 4 8 %, 8 10 %, 16 2 %, 32 1.5 %, 64 0.5 %, none wider than half the cluster.
- Run times: log-normal, median 30 min, sigma 1.6, at least 1 min, at most 7 days; wider jobs run longer
  (median x width^0.25).
- Arrivals: Poisson, with a day that swings by +-60 % and peaks at 15:00; as many as offer 1.1 times the
  cluster's GPU time, the run times cut at the window's end.
"""

from __future__ import annotations

import math
import random

from deploy.traces import LONGEST_H
from scheduler.replay.settings import DAY_S
from scheduler.replay.traces import HOUR_S, TraceJob, limit_of

ORGANIZATIONS = 8
WIDTHS = ((1, 0.70), (2, 0.08), (4, 0.08), (8, 0.10), (16, 0.02), (32, 0.015), (64, 0.005))
MEDIAN_S = 1800
SIGMA = 1.6
LONGEST_S = 7 * DAY_S
LOAD = 1.1
SWING = 0.6


def synthetic_trace(seed: int, start_day: int, hours: float, gpus: int) -> list[TraceJob]:
    """Jobs for a window of a cluster with so many GPUs, in order of submission."""
    rng = random.Random(seed)
    first_s, length_s = start_day * DAY_S, hours * HOUR_S
    weights = [1 / rank for rank in range(1, ORGANIZATIONS + 1)]
    jobs: list[TraceJob] = []
    offered_gpu_s = 0.0
    while offered_gpu_s < LOAD * gpus * length_s:
        after_s = _arrival_s(rng, length_s)
        width = _width(rng, gpus)
        run_s = _run_s(rng, width)
        name = f"org-{rng.choices(range(1, ORGANIZATIONS + 1), weights)[0]:02d}"
        limit_s = limit_of(run_s, LONGEST_H)
        id = f"synthetic:{seed}:{len(jobs)}"
        jobs.append(TraceJob(id, name, first_s + int(after_s), width, run_s, limit_s))
        offered_gpu_s += width * min(run_s, length_s - after_s)
    return sorted(jobs, key=lambda job: (job.submit_s, job.id))


def _arrival_s(rng: random.Random, length_s: float) -> float:
    # Given their number, the arrivals of a Poisson process are independent draws from its intensity.
    while True:
        at_s = rng.uniform(0, length_s)
        intensity = 1 + SWING * math.cos(2 * math.pi * (at_s / DAY_S - 15 / 24))
        if rng.uniform(0, 1 + SWING) < intensity:
            return at_s


def _width(rng: random.Random, gpus: int) -> int:
    possible = [(width, weight) for width, weight in WIDTHS if width <= max(gpus // 2, 1)]
    return rng.choices([width for width, _ in possible], [weight for _, weight in possible])[0]


def _run_s(rng: random.Random, width: int) -> int:
    median_s = MEDIAN_S * width**0.25
    return int(min(max(rng.lognormvariate(math.log(median_s), SIGMA), 60), LONGEST_S))
