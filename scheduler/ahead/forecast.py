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
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from scheduler.ahead.habits import Habits, Past
from scheduler.ahead.outlook import Outlook
from scheduler.ahead.play import look_ahead
from scheduler.core.cycle import decide
from scheduler.core.model import Attempt, Change, GpuClass, Grant, Job, JobState, Node, WaitReason
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

PACE_SHARE = 0.5
"""An organization is taken to be served at this share of what its pace needs at least: it may wait its turn for a day,
but not for long. The rest goes to those of its jobs that come later and pass."""
LEAST_SHARE = 0.02
"""An organization that was not served at all is taken to get so much of its class's GPUs later."""

LONGEST_MS = 10 * 365 * DAY_MS


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
    etas = _etas(ordinary, now_ms, habits, method, _is_ordinary, lambda job: job.organization_id)
    if any(isinstance(each, Job) and each.program_id and each.waits for each in objects):
        habits = Habits(past, now_ms)
        # whose organization used least of late goes first: they are served as one queue
        etas |= _etas(objects, now_ms, habits, method, _is_spare, lambda job: "")
    return Forecast(now_ms, etas)


def _is_ordinary(job: Change) -> bool:
    return isinstance(job, Job) and not job.program_id


def _is_spare(each: Change) -> bool:
    return (isinstance(each, Attempt) and each.opportunistic) or (
        isinstance(each, Job) and each.program_id != ""
    )


def _etas(
    objects: Sequence[Change],
    now_ms: int,
    habits: Habits,
    method: Method,
    asked: Callable[[Job], bool],
    queue_of: Callable[[Job], str],
) -> dict[str, Eta]:
    """The ETAs of the jobs that are asked for, from futures in which all jobs of the snapshot compete."""
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
    queues = _Queues(
        [jobs[id] for id in helped], habits, _gpus_of(objects), _paces_of(objects, now_ms), queue_of
    )
    waits: dict[str, list[float]] = defaultdict(list)
    for number in range(method.futures):
        rng = Random(f"{method.seed}-{number}")
        outlook = _future(played, shown, now_ms, habits, rng, method)
        for id, wait_ms in queues.waits_ms(outlook, method.horizon_ms).items():
            waits[id].append(wait_ms)
        for id in seen:
            start_ms = outlook.jobs[id].start_ms
            # money that comes back, a grant that begins: beyond the futures nobody can say
            waits[id].append(2.0 * method.horizon_ms if start_ms is None else start_ms - now_ms)
    for id in seen:
        if _quantile(sorted(waits[id]), 0.5) >= method.horizon_ms:
            del waits[id]
    exact = set(order[: method.exact_jobs])
    return {id: _eta(found, now_ms, id in exact, method) for id, found in waits.items()}


def _future(
    objects: Sequence[Change],
    awaited: Sequence[str],
    now_ms: int,
    habits: Habits,
    rng: Random,
    method: Method,
) -> Outlook:
    ran_ms = {
        each.job_id: now_ms - each.started_at_ms
        for each in objects
        if isinstance(each, Attempt) and each.state is not JobState.ENDED and each.started_at_ms is not None
    }
    arrivals, runs_ms = habits.arrivals(rng, method.horizon_ms)

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


class _Queues:
    """The jobs that wait for room, by queue (an organization) and class, in order, with the work that each brings."""

    def __init__(
        self,
        order: Sequence[Job],
        habits: Habits,
        gpus: Mapping[str, int],
        paces: Mapping[tuple[str, str], float],
        queue_of: Callable[[Job], str],
    ) -> None:
        self._gpus, self._paces = gpus, paces
        self._queues: dict[tuple[str, str], list[tuple[Job, int]]] = defaultdict(list)
        for job in order:
            key = queue_of(job), job.gpu_class
            self._queues[key].append((job, job.gpus * habits.mean_run_ms(job)))

    def waits_ms(self, outlook: Outlook, horizon_ms: int) -> dict[str, float]:
        """How long each job waits in one future; beyond its horizon at the rate at which its queue was served."""
        waits: dict[str, float] = {}
        for (owner, gpu_class), queue in self._queues.items():
            started = {
                job.id: prospect.start_ms - outlook.now_ms
                for job, _ in queue
                if (prospect := outlook.jobs.get(job.id)) is not None and prospect.start_ms is not None
            }
            waits |= started
            served = sum(work for job, work in queue if job.id in started)
            gpus = self._gpus.get(gpu_class, 0)
            entitled = min(gpus, self._paces.get((owner, gpu_class), 0.0))
            rate = max(served / horizon_ms, entitled * PACE_SHARE, gpus * LEAST_SHARE)
            ahead = 0.0
            for job, work in queue:
                if job.id not in started and job.gpus <= gpus:
                    waits[job.id] = min(LONGEST_MS, horizon_ms + ahead / rate)
                    ahead += work
        return waits


def _gpus_of(objects: Iterable[Change]) -> dict[str, int]:
    gpus: dict[str, int] = defaultdict(int)
    for each in objects:
        if isinstance(each, Node) and each.schedulable:
            for gpu_class, capacity in each.capacities.items():
                gpus[gpu_class] += max(0, capacity.total - capacity.foreign)
    return gpus


def _paces_of(objects: Iterable[Change], now_ms: int) -> dict[tuple[str, str], float]:
    """GPUs that would use up an organization's grants by the end of their terms, by (organization, class)."""
    rates = {each.id: each.rate_thousandths for each in objects if isinstance(each, GpuClass)}
    needed: dict[str, float] = defaultdict(float)  # thousandths of the reference GPU
    for grant in objects:
        if isinstance(grant, Grant) and grant.starts_at_ms <= now_ms < grant.ends_at_ms:
            own = {path.accounts[-1].id: path.accounts[-1] for path in grant.paths if path.accounts}
            granted = sum(account.granted_gpu_us for account in own.values())
            for party in grant.parties:  # of a consortium's, to each alike
                needed[party] += granted / (grant.ends_at_ms - grant.starts_at_ms) / len(grant.parties)
    return {
        (party, gpu_class): each / rate
        for party, each in needed.items()
        for gpu_class, rate in rates.items()
        if rate > 0
    }


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


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Between the two nearest values in proportion."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
