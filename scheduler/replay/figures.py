"""The figures of one replay, plain arithmetic on its history. Hours and GPU hours unless a name says otherwise."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.replay.history import History, Record, Stretch
from scheduler.replay.settings import DAY_S
from scheduler.replay.traces import HOUR_S

SLOWDOWN_FLOOR_S = 600

CLASSES: Mapping[str, tuple[int, int]] = {
    "1": (1, 1),
    "2-4": (2, 4),
    "5-8": (5, 8),
    "9-31": (9, 31),
    ">=32": (32, 1 << 62),
    "<=4": (1, 4),
    "all": (1, 1 << 62),
}
"""By name the least and the greatest number of GPUs. The first five part all jobs."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Of the jobs of one class: hours from submission to the first start, and the bounded slowdown."""

    jobs: int
    mean_h: float
    p95_h: float
    p99_h: float
    slowdown_mean: float
    slowdown_p95: float


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one organization got within the term, in GPU hours."""

    grant: float
    demand: float
    delivered: float
    """Useful work within the term."""
    ratio: float | None
    """delivered / min(grant, demand); None for an organization without either."""
    mean_wait_h: float


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of one policy. Everything is known: a job that never started waits until the end."""

    policy: str
    waits: Mapping[str, Waits]
    deliveries: Mapping[str, Delivery]
    worst_ratio: float
    best_ratio: float
    jain: float
    worst_wait_h: float
    """The mean wait of the organization whose jobs wait longest."""
    utilization: float
    """Useful GPU time within the term / capacity of the term."""
    occupied: float
    """The same with what was lost and paid for restarts."""
    utilization_by_day: tuple[float, ...]
    """Useful share of the capacity, day by day to the end."""
    preemptions: int
    lost: float
    used: float
    makespan_h: float
    """From the first submission to the last end."""
    mean_jct_h: float
    """Job completion time: from submission to end, of the jobs that ended."""
    jobs: int
    ended: int
    never_started: tuple[str, ...]
    unended: tuple[str, ...]
    """Started, but run at the end of the replay, or were preempted and not started again."""
    not_submitted: int
    """Jobs of the trace that would have come after the replay was cut."""
    cut_jobs: int
    cycles: int
    wall_s: float


def figures_of(history: History) -> Figures:
    """All figures of a replay."""
    came = history.records[: history.submitted]
    deliveries = _deliveries(history, came)
    ratios = [each.ratio for each in deliveries.values() if each.ratio is not None]
    ended = [record for record in came if record.end_s is not None]
    begin_s = min((record.submit_s for record in came), default=0)
    term_s, capacity = history.settings.term_s, history.settings.gpus * history.settings.term_s
    return Figures(
        policy=history.policy,
        waits={name: _waits(came, least, most, history.end_s) for name, (least, most) in CLASSES.items()},
        deliveries=deliveries,
        worst_ratio=min(ratios, default=1.0),
        best_ratio=max(ratios, default=1.0),
        jain=jain(ratios),
        worst_wait_h=max((each.mean_wait_h for each in deliveries.values()), default=0.0),
        utilization=sum(within(s, 0, term_s) for s in history.stretches if s.useful) / capacity,
        occupied=sum(within(s, 0, term_s) for s in history.stretches) / capacity,
        utilization_by_day=_by_day(history),
        preemptions=sum(record.preemptions for record in came),
        lost=sum(record.lost_gpu_s for record in came) / HOUR_S,
        used=sum(history.used_gpu_s.values()) / HOUR_S,
        makespan_h=(max((r.end_s for r in ended if r.end_s is not None), default=begin_s) - begin_s) / HOUR_S,
        mean_jct_h=mean([(r.end_s - r.submit_s) / HOUR_S for r in ended if r.end_s is not None]),
        jobs=len(came),
        ended=len(ended),
        never_started=tuple(record.id for record in came if record.first_start_s is None),
        unended=tuple(r.id for r in came if r.first_start_s is not None and r.end_s is None),
        not_submitted=len(history.records) - len(came),
        cut_jobs=history.cut_jobs,
        cycles=history.cycles,
        wall_s=history.wall_s,
    )


def wait_s(record: Record, end_s: int) -> int:
    """Seconds from submission to the first start; of a job that never started, to the end of the replay."""
    return (end_s if record.first_start_s is None else record.first_start_s) - record.submit_s


def slowdown(record: Record, end_s: int) -> float:
    """Bounded slowdown: max(1, (end - submission) / max(run time, 10 min)).

    Source: Feitelson, Rudolph, Schwiegelshohn, Sevcik, Wong, "Theory and practice in parallel job scheduling",
    JSSPP 1997, with their bound of 10 s raised to 10 min. A job that has not ended is taken to end at the replay's.
    """
    until_s = end_s if record.end_s is None else record.end_s
    return max(1.0, (until_s - record.submit_s) / max(record.run_s, SLOWDOWN_FLOOR_S))


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index (sum x)^2 / (n x sum x^2), 1 = all equal, 1/n = one has all; 1 for no values.

    Source: Jain, Chiu, Hawe, DEC-TR-301, 1984.
    """
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; 0 for no values."""
    return sum(values) / len(values) if values else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the two nearest ranks, as numpy's default does; 0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def within(stretch: Stretch, begin_s: int, end_s: int) -> int:
    """GPU-seconds of the stretch inside a span of time."""
    return stretch.gpus * max(0, min(stretch.end_s, end_s) - max(stretch.begin_s, begin_s))


def _waits(records: Iterable[Record], least: int, most: int, end_s: int) -> Waits:
    chosen = [record for record in records if least <= record.gpus <= most]
    hours = [wait_s(record, end_s) / HOUR_S for record in chosen]
    slowdowns = [slowdown(record, end_s) for record in chosen]
    return Waits(
        jobs=len(chosen),
        mean_h=mean(hours),
        p95_h=percentile(hours, 95),
        p99_h=percentile(hours, 99),
        slowdown_mean=mean(slowdowns),
        slowdown_p95=percentile(slowdowns, 95),
    )


def _deliveries(history: History, records: Iterable[Record]) -> dict[str, Delivery]:
    delivered: dict[str, int] = defaultdict(int)
    for stretch in history.stretches:
        if stretch.useful:
            delivered[stretch.organization] += within(stretch, 0, history.settings.term_s)
    waits: dict[str, list[float]] = defaultdict(list)
    for record in records:
        waits[record.organization].append(wait_s(record, history.end_s) / HOUR_S)
    found = {}
    for id, grant in history.grants_gpu_s.items():
        demand = history.demand_gpu_s[id]
        due = min(grant, demand)
        found[id] = Delivery(
            grant=grant / HOUR_S,
            demand=demand / HOUR_S,
            delivered=delivered[id] / HOUR_S,
            ratio=delivered[id] / due if due else None,
            mean_wait_h=mean(waits[id]),
        )
    return found


def _by_day(history: History) -> tuple[float, ...]:
    days = [0] * (-(-history.end_s // DAY_S))
    for stretch in history.stretches:
        if stretch.useful:
            for day in range(stretch.begin_s // DAY_S, -(-stretch.end_s // DAY_S)):
                days[day] += within(stretch, day * DAY_S, (day + 1) * DAY_S)
    last_s = history.end_s - (len(days) - 1) * DAY_S
    spans = [DAY_S] * (len(days) - 1) + [last_s] if days else []
    return tuple(useful / (history.settings.gpus * span) for useful, span in zip(days, spans, strict=True))
