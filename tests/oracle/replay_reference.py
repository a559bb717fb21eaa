"""A plain count-only replay of a job trace under the scheduling policies of facts/scheduling.md 2.7 and 2.9.

It imports nothing of the project, so that the product's core can be compared with it: same jobs, same start
times.  GPUs are only counted, there are no nodes.  All times are whole seconds, all amounts GPU seconds.

    python -m tests.oracle.replay_reference --gpus 1000 --policy R
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import math
import tarfile
import time
from bisect import bisect_left, bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np

HOUR = 3600
DAY = 24 * HOUR
TERM = 60 * DAY
LIMITS = tuple(hours * HOUR for hours in (1, 4, 12, 24, 72, 168))
TRACE = Path(__file__).parents[3] / "shared/traces/ms-itp-elasticflow/raw-traces.tar.gz"

# GPUs and limit: waiting jobs of one organisation and one shape differ only in their age
Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Job:
    """One job; `id` is its index in the list of jobs, which is ordered by submission."""

    id: int
    org: int
    submit: int
    duration: int
    gpus: int
    limit: int


@dataclass(frozen=True, slots=True)
class Policy:
    """The knobs of one policy; the named ones are in POLICIES."""

    # organisations in ascending ... "fifo": submission of the oldest waiting job, "decay": usage with a
    # half-life / grant, "grant": usage / grant
    order: str = "grant"
    look_ahead: int = 0  # only the oldest so many jobs of each organisation are looked at (0: all)
    gangs_first: int = 0  # inside an organisation jobs of so many GPUs go first (0: by submission alone)
    half_life: int = 7 * DAY
    # reservations
    reservations: int = 0
    reservations_per_org: int = 1 << 30
    reserve_min_gpus: int = 1
    sticky: bool = False  # a reservation, once made, is seated before all later ones until its job starts
    sticky_gpus: int = 0  # only jobs of so many GPUs are
    sticky_per_org: int = 1 << 30  # at most so many of one organisation
    # lane: rows of (limit at most, z), () is no lane
    lane: tuple[tuple[int, float], ...] = ()
    lane_gpus: int = 8
    lane_area: int = 96 * HOUR
    beta: float = 0.0
    # preemption
    preempt_min_gpus: int = 0  # 0: never
    preempt_first: int = 4
    victim_gpus: int = 8
    victim_lag: int = 24 * HOUR
    victim_age: int = HOUR
    checkpoint: int = HOUR
    restart: int = 600
    notice: int = 0  # seconds victims run on before their GPUs are free
    notice_saves: bool = False  # they write a checkpoint at the end of them
    preempt_idle: bool = True  # such a gang that needs no victims starts past the reservations too
    # accounting
    holds: float = 0.0  # part of what running jobs hold beyond what they have used that counts as used
    lane_holds: bool = True  # ... in the lane too
    clip: float = 0.0  # bound on the pace lag as a part of the term, ties by decayed usage (0: none)
    hard: bool = False  # a job starts only if the rest of the grant can hold its whole limit
    hard_holds: bool = True  # ... beside what running jobs hold (else beside what is used)
    tick: int = 0  # decide only at multiples of so many seconds (0: at every event)


_LANE = ((1 * HOUR, 0.10), (4 * HOUR, 0.05), (12 * HOUR, -0.05), (24 * HOUR, -0.10))
R = Policy(
    gangs_first=32,
    reservations=8,
    reservations_per_org=4,
    reserve_min_gpus=8,
    lane=_LANE,
    preempt_min_gpus=32,
)
PROMISE = dataclasses.replace(
    R, sticky=True, sticky_gpus=32, sticky_per_org=1, clip=0.10, tick=60, notice=600
)
POLICIES = {
    "fifo-skip": Policy(order="fifo", look_ahead=50),
    "decay-skip": Policy(order="decay", look_ahead=50),
    "decay-easy": Policy(order="decay", look_ahead=50, reservations=1),
    "grant-skip": Policy(look_ahead=50),
    "grant-easy": Policy(look_ahead=50, reservations=1),
    "R": R,
    "R-beta1": dataclasses.replace(R, beta=1.0),
    "R-nopreempt": dataclasses.replace(R, preempt_min_gpus=0),
    "R-hard": dataclasses.replace(R, hard=True, hard_holds=False),
    # R as a product can keep it: promises to gangs stand, lag bounded, one decision a minute, notice for victims
    "R-promise": PROMISE,
    "R-promise-hard": dataclasses.replace(PROMISE, hard=True),
}


@dataclass(slots=True)
class Run:
    """One execution of a job, from one start to its end or its preemption."""

    job: Job
    start: int
    overhead: int  # seconds of restart at its beginning, which are no useful work
    end: int  # when it really ends
    planned: int  # when its limit ends
    held: int  # GPU seconds its limit stands for
    doomed: Claim | None = None  # has been given notice of its preemption


@dataclass(slots=True)
class Claim:
    """GPUs being gathered for a gang whose victims have been given notice."""

    until: int
    gang: int
    have: int
    victims: list[Run]


@dataclass(slots=True)
class Org:
    """What one organisation was granted, used, runs and waits for."""

    grant: int
    used: int = 0  # useful GPU time up to now; the lost part of preempted runs is refunded
    ended: int = 0  # the same, of finished runs only
    rate: int = 0  # GPUs it runs on now
    held: int = 0  # GPU seconds its running jobs hold
    decayed: float = 0.0
    waiting: dict[Shape, list[int]] = field(default_factory=dict)  # per shape the ids, oldest first
    queue: list[int] = field(default_factory=list)  # all of them, oldest first
    running: dict[int, Run] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """What came of a replay; the arrays have one entry per job or per organisation."""

    jobs: Sequence[Job]
    gpus: int
    horizon: int
    grants: list[int]
    demand: list[int]
    delivered: list[int]  # useful GPU time per organisation at the horizon
    busy: int  # GPU time used for anything at the horizon
    first_start: list[int]
    starts: list[list[int]]
    requeued: list[int]  # seconds waited after a preemption
    preemptions: int

    def row(self) -> dict[str, float]:
        """The columns of the table of facts 2.9."""
        gpus = np.array([job.gpus for job in self.jobs])
        org = np.array([job.org for job in self.jobs])
        wait = (np.array(self.first_start) - np.array([job.submit for job in self.jobs])) / HOUR
        again = np.array(self.requeued) / HOUR
        share = np.array(self.delivered) / np.minimum(self.grants, self.demand)
        small, large = gpus <= 4, gpus >= 32
        room = self.gpus * self.horizon
        return {
            "worst": float(share.min()),
            "best": float(share.max()),
            "jain": float(share.sum() ** 2 / (share.size * (share**2).sum())),
            "wait": float(wait.mean()),
            "small": float(wait[small].mean()) if small.any() else 0.0,
            "large": float(wait[large].mean()) if large.any() else 0.0,
            "large_p99": float(np.percentile(wait[large], 99)) if large.any() else 0.0,
            "worst_org": max(float(wait[org == i].mean()) for i in np.unique(org)),
            "useful": sum(self.delivered) / room,
            "util": self.busy / room,
            "preemptions": self.preemptions,
            "wait_with_requeue": float((wait + again).mean()),
            "small_with_requeue": float((wait + again)[small].mean()) if small.any() else 0.0,
        }


def limit_of(duration: int) -> int:
    """The run time rounded up to one of LIMITS; a longer job's limit is its run time."""
    at = bisect_left(LIMITS, duration)
    return LIMITS[at] if at < len(LIMITS) else duration


def read_trace(path: Path = TRACE) -> list[Job]:
    """The jobs of all clusters of the archive, each cluster one organisation, in order of submission."""
    rows: list[tuple[int, int, int, int]] = []
    with tarfile.open(path) as archive:
        members = sorted(member.name for member in archive.getmembers() if member.name.endswith(".csv"))
        for org, name in enumerate(members):
            content = archive.extractfile(name)
            assert content is not None
            for line in content.read().decode().splitlines()[1:]:
                _, submit, duration, gpus = line.split(",")
                rows.append((int(submit), org, int(duration), int(gpus)))
    rows.sort(key=lambda row: row[:2])
    return [Job(i, org, submit, d, gpus, limit_of(d)) for i, (submit, org, d, gpus) in enumerate(rows)]


def proportional_grants(jobs: Sequence[Job], gpus: int, horizon: int) -> list[int]:
    """The whole capacity of the term, divided in proportion to what each organisation demands."""
    demand = demand_of(jobs)
    return [gpus * horizon * mine // sum(demand) for mine in demand]


def demand_of(jobs: Sequence[Job]) -> list[int]:
    """GPU seconds demanded per organisation."""
    demand = [0] * (1 + max(job.org for job in jobs))
    for job in jobs:
        demand[job.org] += job.gpus * job.duration
    return demand


class Profile:
    """How many GPUs are free at each later time: running jobs end at their limits, reservations take away.

    Without the reservations that number only grows, so that it is enough to look at the times at which a
    reservation begins to know the least of an interval.
    """

    def __init__(self, now: int, free: int, ends: Sequence[int], gpus: Sequence[int]) -> None:
        self.now = now
        self.ends = ends
        self.seats: list[tuple[int, int, int]] = []  # (from, to, GPUs)
        self.per_org: defaultdict[int, int] = defaultdict(int)  # how many of them
        self.renew(free, gpus)

    def renew(self, free: int, gpus: Sequence[int]) -> None:
        """Take in what has started since."""
        self.total = list(accumulate(gpus, initial=free))  # total[i]: free after the first i ends

    def seat(self, when: int, org: int, shape: Shape) -> None:
        """Reserve."""
        self.seats.append((when, when + shape[1], shape[0]))
        self.per_org[org] += 1

    def free_at(self, when: int) -> int:
        """GPUs free at one time."""
        taken = sum(gpus for begin, end, gpus in self.seats if begin <= when < end)
        return self.total[bisect_right(self.ends, when)] - taken

    def obstacle(self, when: int, gpus: int, limit: int) -> int | None:
        """The last time within [when, when + limit) at which the job has no room, or None if it fits."""
        times = [begin for begin, _, _ in self.seats if when < begin < when + limit]
        return max((at for at in (when, *times) if self.free_at(at) < gpus), default=None)

    def hole(self, gpus: int, limit: int) -> int:
        """The earliest time from which the job fits over its whole limit."""
        when = self.now
        while (at := self.obstacle(when, gpus, limit)) is not None:
            when = self._grows(at, gpus)
        return when

    def _grows(self, after: int, gpus: int) -> int:
        """The first time after `after` at which so many GPUs are free."""
        steps = sorted({after, *(end for _, end, _ in self.seats if end > after)})
        steps += [begin for begin, _, _ in self.seats if begin > after]
        steps.sort()
        for at, following in zip(steps, [*steps[1:], None], strict=True):
            taken = sum(g for begin, end, g in self.seats if begin <= at < end)
            index = bisect_left(self.total, gpus + taken)  # ends needed without the reservations
            if index == len(self.total):
                continue
            when = max(at, self.ends[index - 1]) if index else at
            if when > after and (following is None or when < following):
                return when
        raise AssertionError("a job larger than the pool")


class Simulator:
    """State of one replay.  Each method of the second half is one step of a decision."""

    def __init__(
        self, jobs: Sequence[Job], gpus: int, policy: Policy, horizon: int, grants: Sequence[int]
    ) -> None:
        self.jobs = jobs
        self.gpus = gpus
        self.policy = policy
        self.horizon = horizon
        self.orgs = [Org(grant) for grant in grants]
        self.now = 0
        self.free = gpus
        self.ends: list[tuple[int, int]] = []  # heap of (end, job), stale entries included
        self.planned: list[tuple[int, int]] = []  # sorted (end of the limit, job) of running jobs ...
        self.planned_ends: list[int] = []  # ... the same times, and the GPUs, side by side
        self.planned_gpus: list[int] = []
        self.runs: dict[int, Run] = {}
        self.left: dict[int, int] = {}  # seconds of work a preempted job has left
        self.limits = [job.limit for job in jobs]  # the limit of what is left
        self.overhead = [0] * len(jobs)
        self.queued_at = [job.submit for job in jobs]
        self.requeued = [0] * len(jobs)
        self.starts: list[list[int]] = [[] for _ in jobs]
        self.unstarted = len(jobs)
        self.preemptions = 0
        self.busy = 0
        self.at_horizon: tuple[list[int], int] | None = None
        self.reserved: list[int] = []  # sticky reservations, in the order in which they were made
        self.claims: list[Claim] = []
        self.term_used = [0] * len(grants)  # used before the present term (hard ledger only)

    # -- time ------------------------------------------------------------------------------------------

    def replay(self) -> None:
        """Go from event to event until every job has started."""
        arrivals = iter(self.jobs)
        arrival = next(arrivals, None)
        tick = self.policy.tick
        due: int | None = None
        while self.unstarted or self.claims:
            times = [
                when for when in (due, arrival and arrival.submit, self.ends and self.ends[0][0]) if when
            ]
            times += [claim.until for claim in self.claims]
            self._advance(min(times))
            changed = False
            while arrival is not None and arrival.submit <= self.now:
                self._queue(arrival.id)
                arrival = next(arrivals, None)
                changed = True
            while self.ends and self.ends[0][0] <= self.now:
                end, id_ = heapq.heappop(self.ends)
                run = self.runs.get(id_)
                if run is not None and run.end == end:
                    self._stop(run)
                    changed = True
            changed = self._settle() or changed
            if tick and changed and due is None:
                due = -(-self.now // tick) * tick
            if due == self.now or (changed and not tick):
                due = None
                self._decide()

    def _advance(self, to: int) -> None:
        if self.at_horizon is None and to >= self.horizon:
            self._accrue(self.horizon)
            self.at_horizon = [org.used for org in self.orgs], self.busy
            if self.policy.hard:  # a new term with the same grants, else nobody could start any more
                self.term_used = [org.used for org in self.orgs]
        self._accrue(to)

    def _accrue(self, to: int) -> None:
        span = to - self.now
        keep = 0.5 ** (span / self.policy.half_life)
        for org in self.orgs:
            org.used += org.rate * span
            self.busy += org.rate * span
            org.decayed = org.decayed * keep + org.rate * (1 - keep) * self.policy.half_life / math.log(2)
        self.now = to

    # -- transitions -----------------------------------------------------------------------------------

    def _queue(self, id_: int) -> None:
        job = self.jobs[id_]
        self.queued_at[id_] = self.now
        org = self.orgs[job.org]
        insort(org.waiting.setdefault((job.gpus, self.limits[id_]), []), id_)
        insort(org.queue, id_)

    def _unqueue(self, id_: int) -> None:
        job = self.jobs[id_]
        org, shape = self.orgs[job.org], (job.gpus, self.limits[id_])
        ids = org.waiting[shape]
        del ids[bisect_left(ids, id_)]
        if not ids:
            del org.waiting[shape]
        del org.queue[bisect_left(org.queue, id_)]
        if id_ in self.reserved:
            self.reserved.remove(id_)

    def _start(self, id_: int) -> None:
        """Let a waiting job run now."""
        self._unqueue(id_)
        self._launch(id_)

    def _launch(self, id_: int) -> None:
        job, org = self.jobs[id_], self.orgs[self.jobs[id_].org]
        if self.starts[id_]:
            self.requeued[id_] += self.now - self.queued_at[id_]
        else:
            self.unstarted -= 1
        self.starts[id_].append(self.now)
        overhead = self.overhead[id_]
        end = self.now + overhead + self.left.get(id_, job.duration)
        run = Run(job, self.now, overhead, end, self.now + self.limits[id_], job.gpus * self.limits[id_])
        self.runs[id_] = org.running[id_] = run
        org.used -= overhead * job.gpus
        org.rate += job.gpus
        org.held += run.held
        self.free -= job.gpus
        assert self.free >= 0
        heapq.heappush(self.ends, (end, id_))
        self._plan(run.planned, id_, job.gpus)

    def _stop(self, run: Run) -> None:
        """Take a run off its GPUs, because it is done or preempted."""
        job, org = run.job, self.orgs[run.job.org]
        del self.runs[job.id], org.running[job.id]
        org.rate -= job.gpus
        org.held -= run.held
        org.ended += (self.now - run.start - run.overhead) * job.gpus
        if run.doomed:
            run.doomed.have += job.gpus
            run.doomed.victims.remove(run)
        else:
            self.free += job.gpus
            self._unplan(run.planned, job.id)

    def _plan(self, end: int, id_: int, gpus: int) -> None:
        """Expect so many GPUs to come free at one time."""
        at = bisect_left(self.planned, (end, id_))
        self.planned.insert(at, (end, id_))
        self.planned_ends.insert(at, end)
        self.planned_gpus.insert(at, gpus)

    def _unplan(self, end: int, id_: int) -> None:
        at = bisect_left(self.planned, (end, id_))
        del self.planned[at], self.planned_ends[at], self.planned_gpus[at]

    def _lost(self, run: Run) -> int:
        """Seconds of work since the last checkpoint."""
        return max(0, self.now - run.start - run.overhead) % self.policy.checkpoint

    def _preempt(self, run: Run) -> None:
        """Stop a run, refund what is lost, and queue what is left of the job at its old place."""
        self._stop(run)
        job = run.job
        lost = 0 if run.doomed and self.policy.notice_saves else self._lost(run)
        org = self.orgs[job.org]
        org.used -= lost * job.gpus
        org.ended -= lost * job.gpus
        saved = max(0, self.now - run.start - run.overhead - lost)
        self.left[job.id] = self.left.get(job.id, job.duration) - saved
        self.limits[job.id] += self.policy.restart - run.overhead - saved
        self.overhead[job.id] = self.policy.restart
        self.preemptions += 1
        self._queue(job.id)

    # -- order -----------------------------------------------------------------------------------------

    def _spent(self, index: int) -> int:
        """What counts as used of the present term's grant."""
        org = self.orgs[index]
        beyond = org.ended + org.held - org.used
        return org.used + round(self.policy.holds * beyond) - self.term_used[index]

    def _elapsed(self) -> float:
        return min(1.0, self.now / self.horizon)

    def _lags(self) -> list[float]:
        """Per organisation how far behind pace it is, in seconds of the term."""
        bound = self.policy.clip or math.inf
        behind = [self._elapsed() - self._spent(i) / max(1, org.grant) for i, org in enumerate(self.orgs)]
        return [max(-bound, min(bound, part)) * self.horizon for part in behind]

    def _order(self, lags: Sequence[float]) -> list[int]:
        """The organisations with waiting jobs, the one to be served first in front."""
        some = [i for i, org in enumerate(self.orgs) if org.queue]
        decayed = [org.decayed / max(1, org.grant) for org in self.orgs]
        if self.policy.order == "fifo":
            return sorted(some, key=lambda i: self.orgs[i].queue[0])
        if self.policy.order == "decay":
            return sorted(some, key=lambda i: (decayed[i], i))
        return sorted(some, key=lambda i: (-lags[i], decayed[i] if self.policy.clip else 0.0, i))

    def _affordable(self, org: int, shape: Shape) -> bool:
        """Under a hard ledger: can the rest of the grant hold it?"""
        if not self.policy.hard:
            return True
        mine = self.orgs[org]
        spent = mine.ended + mine.held if self.policy.hard_holds else mine.used
        spent -= self.term_used[org]
        return spent + shape[0] * shape[1] <= mine.grant

    # -- decisions -------------------------------------------------------------------------------------

    def _decide(self) -> None:
        lags = self._lags()
        order = self._order(lags)
        if self.policy.lane:
            self._lane(order, lags)
        if self.policy.preempt_min_gpus:
            self._gangs(order, lags)
        self._main(order)

    def _lane(self, order: Sequence[int], lags: Sequence[float]) -> None:
        """Start short, small jobs past all reservations while their organisation is not too far ahead."""
        policy = self.policy
        behind = max((lags[i] / self.horizon for i in order), default=0.0)
        slack = policy.beta * max(0.0, behind)
        for i in order:
            if not self.free:
                return
            org = self.orgs[i]
            heads: list[tuple[int, Shape, float]] = []  # (id, shape, most that may be used)
            for shape, ids in org.waiting.items():
                gpus, limit = shape
                if gpus > self.free or gpus > policy.lane_gpus or gpus * limit > policy.lane_area:
                    continue
                z = next((z for longest, z in policy.lane if limit <= longest), None)
                if z is not None:
                    factor = 1 + z - slack
                    heads.append((ids[0], shape, (min(1.0, factor) if policy.hard else factor) * org.grant))
            heapq.heapify(heads)
            while heads:
                id_, shape, most = heapq.heappop(heads)
                spent = self._spent(i) if policy.lane_holds else org.used - self.term_used[i]
                if shape[0] <= self.free and spent < most and self._affordable(i, shape):
                    self._start(id_)
                    if shape in org.waiting:
                        heapq.heappush(heads, (org.waiting[shape][0], shape, most))

    def _gangs(self, order: Sequence[int], lags: Sequence[float]) -> None:
        """Make room for the large gangs of organisations behind pace."""
        policy = self.policy
        for i in order:
            if lags[i] <= 0:
                continue
            waiting = self.orgs[i].waiting
            gangs = [ids for shape, ids in waiting.items() if shape[0] >= policy.preempt_min_gpus]
            for id_ in sorted(id_ for ids in gangs for id_ in ids)[: policy.preempt_first]:
                job = self.jobs[id_]
                if not self._affordable(i, (job.gpus, self.limits[id_])):
                    continue
                if job.gpus <= self.free:
                    if policy.preempt_idle:
                        self._start(id_)
                    continue
                victims = self._victims(i, job.gpus - self.free, lags)
                if victims is None:
                    continue
                if policy.notice:
                    self._give_notice(id_, victims)
                    continue
                for run in victims:
                    self._preempt(run)
                self._start(id_)

    def _victims(self, org: int, need: int, lags: Sequence[float]) -> list[Run] | None:
        """Runs that free so many GPUs at the least loss, or None."""
        policy = self.policy
        at_most = lags[org] - policy.victim_lag
        losers = [mine for j, mine in enumerate(self.orgs) if j != org and lags[j] <= at_most]
        if sum(mine.rate for mine in losers) < need:
            return None
        candidates = [
            run
            for mine in losers
            for run in mine.running.values()
            if run.job.gpus <= policy.victim_gpus
            and self.now - run.start >= policy.victim_age
            and not run.doomed
            and not self.overhead[run.job.id]
        ]
        if sum(run.job.gpus for run in candidates) < need:
            return None
        candidates.sort(key=lambda run: (self._lost(run), run.job.id))
        chosen: list[Run] = []
        got = 0
        for run in candidates:
            if got >= need:
                break
            chosen.append(run)
            got += run.job.gpus
        for run in sorted(chosen, key=lambda run: (-self._lost(run) * run.job.gpus, run.job.id)):
            if got - run.job.gpus >= need:
                chosen.remove(run)
                got -= run.job.gpus
        return chosen

    def _give_notice(self, gang: int, victims: list[Run]) -> None:
        """Hold what is free for the gang now, and its victims' GPUs when their notice is over."""
        self._unqueue(gang)
        job = self.jobs[gang]
        claim = Claim(self.now + self.policy.notice, gang, min(self.free, job.gpus), victims)
        self.free -= claim.have
        self.claims.append(claim)
        for run in victims:
            run.doomed = claim
            self._unplan(run.planned, run.job.id)
        spare = claim.have + sum(run.job.gpus for run in victims) - job.gpus
        self._plan(claim.until + self.limits[gang], gang, job.gpus)
        self._plan(claim.until, gang, spare)

    def _settle(self) -> bool:
        """Start the gangs whose victims are gone, at the latest when their notice is over."""
        settled = [claim for claim in self.claims if claim.until <= self.now or not claim.victims]
        for claim in settled:
            for run in list(claim.victims):
                self._preempt(run)
            self._unplan(claim.until + self.limits[claim.gang], claim.gang)
            self._unplan(claim.until, claim.gang)
            self.claims.remove(claim)
            self.free += claim.have
            self._launch(claim.gang)
        return bool(settled)

    def _main(self, order: Sequence[int]) -> None:
        """In order start what fits beside the reservations; what is large enough and does not, reserves."""
        smallest = min((shape[0] for org in self.orgs for shape in org.waiting), default=0)
        if not smallest or (smallest > self.free and not self.policy.sticky):
            return  # nothing can start, and reservations of this decision bind no other
        profile = self._profile()
        self._reseat(profile)
        for i in order:
            self._serve(i, profile)

    def _reseat(self, profile: Profile) -> None:
        """Seat the sticky reservations, first made first; a job whose turn has come starts."""
        for id_ in list(self.reserved):
            job = self.jobs[id_]
            shape = job.gpus, self.limits[id_]
            when = profile.hole(*shape)
            if when == self.now and self._affordable(job.org, shape):
                self._start(id_)
                self._renew(profile)
            else:
                profile.seat(when, job.org, shape)

    def _serve(self, i: int, profile: Profile) -> None:
        """Go once through the waiting jobs of one organisation."""
        policy, org = self.policy, self.orgs[i]
        kept = set(self.reserved)
        newest = org.queue[min(policy.look_ahead or len(org.queue), len(org.queue)) - 1] if org.queue else -1
        heads: list[tuple[bool, int, int, Shape]] = []  # (no gang, id, its place, shape)
        for shape, ids in org.waiting.items():
            if ids[0] <= newest and (shape[0] <= self.free or self._may_reserve(i, shape, profile)):
                heads.append((shape[0] < policy.gangs_first, ids[0], 0, shape))
        heapq.heapify(heads)
        while heads:
            small, id_, place, shape = heapq.heappop(heads)
            ids = org.waiting[shape]
            if id_ in kept:
                place += 1
            elif self._affordable(i, shape) and self._fits(profile, shape):
                self._start(id_)
                self._renew(profile)
            elif self._affordable(i, shape) and self._may_reserve(i, shape, profile):
                profile.seat(profile.hole(*shape), i, shape)
                place += 1
                self._promise(id_)
            else:
                continue  # nor can any younger job of this shape
            if place < len(ids) and ids[place] <= newest:
                heapq.heappush(heads, (small, ids[place], place, shape))

    def _may_reserve(self, i: int, shape: Shape, profile: Profile) -> bool:
        policy = self.policy
        return (
            shape[0] >= policy.reserve_min_gpus
            and len(profile.seats) < policy.reservations
            and profile.per_org[i] < policy.reservations_per_org
        )

    def _promise(self, id_: int) -> None:
        """Keep a reservation for later decisions too, if it is of the kind that is kept."""
        policy, job = self.policy, self.jobs[id_]
        mine = sum(self.jobs[other].org == job.org for other in self.reserved)
        if policy.sticky and job.gpus >= policy.sticky_gpus and mine < policy.sticky_per_org:
            self.reserved.append(id_)

    def _fits(self, profile: Profile, shape: Shape) -> bool:
        """Can a job of this shape start now without touching a reservation?"""
        return shape[0] <= self.free and (not profile.seats or profile.obstacle(self.now, *shape) is None)

    def _profile(self) -> Profile:
        return Profile(self.now, self.free, self.planned_ends, self.planned_gpus)

    def _renew(self, profile: Profile) -> None:
        if self.policy.reservations:
            profile.renew(self.free, self.planned_gpus)


def simulate(
    jobs: Sequence[Job],
    gpus: int,
    policy: Policy | str,
    *,
    horizon_s: int = TERM,
    grants: Sequence[int] | None = None,
) -> Result:
    """Replay the jobs until every one has started; `grants` are in GPU seconds, one per organisation."""
    given = list(grants) if grants is not None else proportional_grants(jobs, gpus, horizon_s)
    rules = POLICIES[policy] if isinstance(policy, str) else policy
    simulator = Simulator(jobs, gpus, rules, horizon_s, given)
    simulator.replay()
    if simulator.at_horizon is None:
        simulator._advance(horizon_s)
    assert simulator.at_horizon is not None
    delivered, busy = simulator.at_horizon
    return Result(
        jobs=jobs,
        gpus=gpus,
        horizon=horizon_s,
        grants=given,
        demand=demand_of(jobs),
        delivered=delivered,
        busy=busy,
        first_start=[starts[0] for starts in simulator.starts],
        starts=simulator.starts,
        requeued=simulator.requeued,
        preemptions=simulator.preemptions,
    )


def main() -> None:
    """Print one row of the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--policy", choices=sorted(POLICIES), default="R")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE", help="change one knob")
    args = parser.parse_args()
    policy = POLICIES[args.policy]
    for change in args.set:
        knob, _, value = change.partition("=")
        kind = type(getattr(policy, knob))
        policy = dataclasses.replace(policy, **{knob: value == "1" if kind is bool else kind(value)})
    began = time.perf_counter()
    row = simulate(read_trace(), args.gpus, policy).row()
    shown = " ".join(f"{name}={value:.4g}" for name, value in row.items())
    print(
        f"{args.policy} {' '.join(args.set)} gpus={args.gpus} {shown} seconds={time.perf_counter() - began:.0f}"
    )


if __name__ == "__main__":
    main()
