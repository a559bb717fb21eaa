"""When waiting jobs will start: a band for each, from a handful of futures that are played to the end of a day.

A future draws how long everything runs and what is submitted (`habits`) and is then played by `decide` itself
(`play`). What has not started when the futures end is taken to be served on at the rate at which the jobs that wait
now were served in them, or half of what its organization's grants are entitled to, if that is more: the GPU-hours ahead
of it in its organization, over that rate.

Opportunistic jobs are foretold in futures of their own, after everybody else: nobody's ETA depends on them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random

from scheduler.ahead.habits import Habits, Past
from scheduler.ahead.newcomers import Alike, Newcomers, newcomers
from scheduler.ahead.outlook import Outlook
from scheduler.ahead.play import look_ahead
from scheduler.ahead.queues import Queues, gpus_of, paces_of
from scheduler.core.cycle import decide
from scheduler.core.model import Attempt, Change, Job, JobState, WaitReason
from scheduler.core.policy import DAY_MS, MINUTE_MS
from scheduler.core.spare import seen_by_others
from scheduler.core.state import State

ROOM = frozenset(
    {
        WaitReason.BEHIND_IN_ORDER,
        WaitReason.ROOM_RESERVED,
        WaitReason.RESERVED,
        WaitReason.BOOKED,
        WaitReason.NO_FREE_GPU,
        WaitReason.NO_NODE_FITS,
        WaitReason.COOLDOWN,
        WaitReason.NO_IDLE_GPU,
    }
)
"""What a job gets out of as others end. Of other reasons it has to be seen to get out in the futures."""


class Basis(StrEnum):
    """What an ETA rests on."""

    EXACT = "exact"
    """The job starts in most of the futures that were played."""
    RATE = "rate"
    """It is further back: what is ahead of it, over the rate at which its organization is served."""


@dataclass(frozen=True, slots=True)
class Eta:
    """When one job will start: in four of five cases between `low_ms` and `high_ms`."""

    low_ms: int
    median_ms: int
    high_ms: int
    basis: Basis


@dataclass(frozen=True, slots=True)
class Method:
    """How a forecast is made. The widths are chosen so that bands hold 80 % on real traces (tests/bench/eta.py)."""

    seed: int = 0
    futures: int = 8
    horizon_ms: int = DAY_MS
    exact_jobs: int = 500
    """So many of the first jobs in order are shown as the futures have them."""
    most_jobs: int = 2000
    """So many of the first jobs in order compete in the futures; those behind them are left out."""
    every_ms: int = 5 * MINUTE_MS
    """The futures decide so often only."""
    width_exact: float = 1.3
    width_rate: float = 1.0
    """What the futures do not know of, as natural logarithms of the wait that is left: added to each side's spread, as
    independent deviations add."""
    walltime_shrinks: bool = False
    """As in `look_ahead`."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """The ETAs of the jobs that wait at a moment; those that time alone does not help have none."""

    as_of_ms: int
    etas: Mapping[str, Eta]
    newcomers: Sequence[tuple[Alike, Eta, int]] = ()
    """For jobs that are not submitted yet, the closest likenesses first: when one that is submitted at this moment will
    start, and from how many jobs of the futures that is known."""


@dataclass(frozen=True, slots=True)
class Question:
    """What `forecast` is asked by a process of its own."""

    objects: Sequence[Change]
    now_ms: int
    past: Sequence[Past]
    method: Method


def forecast(objects: Iterable[Change], now_ms: int, past: Iterable[Past], method: Method) -> Forecast:
    """Foretell every waiting job's start from a whole snapshot (as `look_ahead` takes it) and the recent past.

    What is opportunistic, in the snapshot or in the past, changes no other job's ETA. The same arguments give the same
    answer.
    """
    objects, past = list(objects), list(past)
    ordinary = seen_by_others(objects, now_ms) if any(map(_is_spare, objects)) else objects
    habits = Habits([each for each in past if not each.program_id], now_ms)
    found = _foretell(ordinary, now_ms, habits, method, _is_ordinary, lambda job: job.organization_id)
    if any(isinstance(each, Job) and each.program_id and each.waits for each in objects):
        habits = Habits(past, now_ms)
        # whose organization used least of late goes first: they are served as one queue
        spare = _foretell(objects, now_ms, habits, method, _is_spare, lambda job: "")
        found = Forecast(now_ms, {**found.etas, **spare.etas}, (*found.newcomers, *spare.newcomers))
    return found


def _is_ordinary(job: Change) -> bool:
    return isinstance(job, Job) and not job.program_id


def _is_spare(each: Change) -> bool:
    return (isinstance(each, Attempt) and each.opportunistic) or (
        isinstance(each, Job) and each.program_id != ""
    )


def _foretell(
    objects: Sequence[Change],
    now_ms: int,
    habits: Habits,
    method: Method,
    asked: Callable[[Job], bool],
    queue_of: Callable[[Job], str],
) -> Forecast:
    """Of the jobs that are asked for alone, from futures in which all jobs of the snapshot compete."""
    plan, _ = decide(State(), objects, now_ms)
    jobs = {each.id: each for each in objects if isinstance(each, Job)}
    everybody = [*(start.job_id for start in plan.starts), *plan.order]
    order = [id for id in everybody if asked(jobs[id])]
    others = [id for id in everybody if not asked(jobs[id])]
    shown = order[: method.most_jobs]
    left_out = {*order[method.most_jobs :], *others[method.most_jobs :]}
    played = [each for each in objects if not (isinstance(each, Job) and each.id in left_out)]
    helped = [id for id in order if id not in plan.reasons or plan.reasons[id].code in ROOM]
    seen = set(shown) - set(helped)
    queues = Queues(
        [jobs[id] for id in helped], habits, gpus_of(objects), paces_of(objects, now_ms), queue_of
    )
    waits: dict[str, list[float]] = defaultdict(list)
    fresh = Newcomers(method.every_ms)
    for number in range(method.futures):
        rng = Random(f"{method.seed}-{number}")
        arrivals, runs_ms = habits.arrivals(rng, method.horizon_ms)
        soon = [job for job in newcomers(arrivals, now_ms) if asked(job)]
        awaited = [*shown, *(job.id for job in soon)]
        outlook = _future(played, awaited, now_ms, habits, arrivals, runs_ms, rng, method)
        found, beyond_ms = queues.waits_ms(outlook, method.horizon_ms)
        fresh.note(outlook, soon, beyond_ms)
        for id, wait_ms in found.items():
            waits[id].append(wait_ms)
        for id in seen:
            start_ms = outlook.jobs[id].start_ms
            # money that comes back, a grant that begins: beyond the futures nobody can say
            waits[id].append(2.0 * method.horizon_ms if start_ms is None else start_ms - now_ms)
    for id in seen:
        if _quantile(sorted(waits[id]), 0.5) >= method.horizon_ms:
            del waits[id]
    exact = set(order[: method.exact_jobs])
    return Forecast(
        now_ms,
        {id: _eta(each, now_ms, id in exact, method) for id, each in waits.items()},
        [(alike, _eta_of_newcomers(each, now_ms, method), len(each)) for alike, each in fresh.told()],
    )


def _future(
    objects: Sequence[Change],
    awaited: Sequence[str],
    now_ms: int,
    habits: Habits,
    arrivals: Sequence[Job],
    runs_ms: Mapping[str, int],
    rng: Random,
    method: Method,
) -> Outlook:
    ran_ms = {
        each.job_id: now_ms - each.started_at_ms
        for each in objects
        if isinstance(each, Attempt) and each.state is not JobState.ENDED and each.started_at_ms is not None
    }

    def run_ms(job: Job) -> int:
        known = runs_ms.get(job.id)
        return habits.run_ms(rng, job, max(0, ran_ms.get(job.id, 0))) if known is None else known

    return look_ahead(
        objects,
        now_ms,
        run_ms,
        horizon_ms=method.horizon_ms,
        arrivals=arrivals,
        awaited=awaited,
        every_ms=method.every_ms,
        walltime_shrinks=method.walltime_shrinks,
    )


def _eta(waits_ms: Sequence[float], now_ms: int, exact: bool, method: Method) -> Eta:
    waits = sorted(max(0.0, each) for each in waits_ms)
    median = _quantile(waits, 0.5)
    basis = Basis.EXACT if exact and median < method.horizon_ms else Basis.RATE
    width = method.width_exact if basis is Basis.EXACT else method.width_rate
    # a minute is as long as no wait at all: it keeps the logarithms finite
    least = max(median, MINUTE_MS)
    low = math.log(least / max(_quantile(waits, 0.1), MINUTE_MS))
    high = math.log(max(_quantile(waits, 0.9), MINUTE_MS) / least)
    return Eta(
        now_ms + min(round(median), round(least * math.exp(-math.hypot(low, width)))),
        now_ms + round(median),
        now_ms + max(round(median), round(least * math.exp(math.hypot(high, width)))),
        basis,
    )


def _eta_of_newcomers(waits_ms: Sequence[float], now_ms: int, method: Method) -> Eta:
    eta = _eta(waits_ms, now_ms, True, method)
    # unlike one that waits already, a job that is not submitted yet may well wait for nothing at all
    at_once = _quantile(sorted(waits_ms), 0.1) < MINUTE_MS
    return replace(eta, low_ms=now_ms) if at_once else eta


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest values in proportion."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
