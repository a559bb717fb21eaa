"""One term of leadership, from a taken lease until its epoch is lost; all memory of it dies with it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import structlog

from quota.client import ServiceUnavailable
from quota.clock import Clock
from quota.schemas.scheduling import (
    AttemptObject,
    DecisionItem,
    ItemResult,
    JobState,
    StartItem,
    StopItem,
    StopReason,
)
from scheduler.actions import Done, Hands
from scheduler.backoff import Backoffs
from scheduler.cache import Cache
from scheduler.core.model import Plan
from scheduler.crash import CrashPlan
from scheduler.feed import FeedNews, FeedRead, SnapshotTaken
from scheduler.forecasting import Standpoint
from scheduler.gateway import Gateway, Quota
from scheduler.lease import Lease
from scheduler.metrics import Metrics
from scheduler.picture import picture_of, shares_of
from scheduler.planner import Planner
from scheduler.ranking import RankingPublisher, Standing
from scheduler.reconciler import Limits, Reconciler, due_of
from scheduler.reporting import ClusterReporter
from scheduler.sightings import Sighting, sight
from scheduler.translate import preempt_item, start_item
from scheduler.views import ClusterView

PICTURE_WALL_S = 5.0
"""The gauges are counted anew this often: well under a scrape's period."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Intervals:
    """How often what is told, in wall seconds."""

    report_s: float = 2.0
    """A cluster's watermark alone. Slices of the ledger close only behind it."""
    ranking_s: float = 1.0
    """The ranking. Shorter shows reasons sooner and writes more."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every term of one process works with."""

    quota: Quota
    clock: Clock
    views: Mapping[str, ClusterView]
    hands: Hands
    holds: Callable[[int], bool]
    """Whether an epoch is the one held at this moment."""
    metrics: Metrics
    crash: CrashPlan = field(default_factory=CrashPlan)
    intervals: Intervals = field(default_factory=Intervals)
    start_limit_s: float | None = None
    """This process's own limit on starting, in wall seconds; never later than the hub's."""
    rng: random.Random = field(default_factory=random.Random)
    monotonic_s: Callable[[], float] = time.monotonic


class Term:
    """Leads the hub under one epoch, step by step."""

    def __init__(self, lease: Lease, around: Surroundings) -> None:
        self.epoch = lease.epoch
        self._around = around
        self._cache = Cache()
        self._gateway = Gateway(around.quota, lease.epoch, lease.streams, around.holds, around.crash)
        self._planner = Planner(self._cache, around.views, around.clock, around.rng)
        self._reconciler = Reconciler(
            around.views, around.hands, self._holds, around.clock, around.rng, around.monotonic_s
        )
        self._reporters = {
            name: ClusterReporter(view, around.intervals.report_s, around.monotonic_s)
            for name, view in around.views.items()
        }
        self._publisher = RankingPublisher(
            self._gateway, around.intervals.ranking_s, around.clock.now_ms(), around.monotonic_s
        )
        self._quiet: Backoffs[str] = Backoffs(around.rng, around.monotonic_s, first_s=0.25, longest_s=5.0)
        self._plan: Plan | None = None
        self._shown_s = float("-inf")
        self.standing = Standing()
        """The queue as last shown."""

    def take_feed(self, news: FeedNews) -> None:
        """A snapshot or a page of the feed; those of another epoch's reader are ignored."""
        if news.epoch != self.epoch:
            return
        match news:
            case SnapshotTaken(cursor=cursor, items=items, reservations=reservations, booked=booked):
                if not self._cache.loaded:  # later ones know less of what is promised than this term
                    self._planner.begin_with(reservations, booked)
                self._cache.replace(cursor, items)
            case FeedRead(cursor=cursor, items=items):
                self._cache.apply(items)
        self._around.metrics.fed(cursor)

    def take_done(self, done: Done) -> None:
        """An action on a cluster has been carried out, or not."""
        self._reconciler.done(done)

    @property
    def ready(self) -> bool:
        """The snapshot is loaded: decisions may be taken."""
        return self._cache.loaded

    def next_due_ms(self) -> int | None:
        """When time alone gives the next step something to do."""
        limits = self._limits()
        if limits is None:
            return None
        now_ms = self._around.clock.now_ms()
        dues = (due_of(attempt, limits, now_ms) for attempt in self._cache.attempts())
        return min((due_ms for due_ms in dues if due_ms is not None), default=None)

    def ranking_due_in_s(self) -> float:
        """When a change that came right after a ranking may be told, in wall seconds; 0 if it may be told now."""
        return self._publisher.due_in_s()

    def standpoint(self) -> Standpoint | None:
        """Everything that is known now, for a forecast; None before the first plan."""
        plan = self._plan
        if plan is None:
            return None
        return Standpoint(
            epoch=self.epoch,
            now_ms=self._around.clock.now_ms(),
            items=self._cache.everything(),
            moment=self._planner.moment(),
            paces=plan.paces,
            reservations=plan.reservations,
            booked=plan.booked,
        )

    def step(self) -> None:
        """One cycle; what could not be said is said by the next. Raises SteppedDown when the term is over."""
        limits = self._limits()
        if limits is None or not self._holds():
            return
        spoke = self._try(partial(self._speak, limits))
        if self._holds():
            # what quota accepted is carried out even while it does not answer
            self._reconciler.act(self._cache, limits)
        if spoke:
            self._try(self._rank)

    def _try(self, say: Callable[[], None]) -> bool:
        """Say something to quota; after silence, leave it in peace for a moment."""
        if self._quiet.waits("quota"):
            return False
        try:
            say()
        except ServiceUnavailable as trouble:
            self._around.metrics.quota_failed()
            pause_s = round(self._quiet.failed("quota"), 2)
            log.warning("quota_unavailable", trouble=str(trouble), again_in_s=pause_s)
            return False
        self._quiet.succeeded("quota")
        return True

    def _speak(self, limits: Limits) -> None:
        for answer in self._gateway.resend():
            self._cache.apply(answer.objects)
        self._report(limits)
        self._decide(limits)

    def _report(self, limits: Limits) -> None:
        attempts: dict[str, list[AttemptObject]] = {name: [] for name in self._reporters}
        for attempt in self._cache.attempts():
            if attempt.cluster in attempts:
                attempts[attempt.cluster].append(attempt)
        for name, reporter in self._reporters.items():
            if self._cache.cluster(name) is None:
                continue  # nobody has registered it with the quota service yet
            self._look_for_findings(reporter, attempts[name], limits)
            news = reporter.news(attempts[name], self._reconciler.tombstones, limits.margin_ms)
            if news is None:
                continue
            results: list[ItemResult] = []
            for answer in self._gateway.report(news):
                self._cache.apply(answer.objects)
                results.extend(answer.results)
            reporter.told(news, results)

    def _look_for_findings(
        self, reporter: ClusterReporter, attempts: Iterable[AttemptObject], limits: Limits
    ) -> None:
        for attempt in attempts:
            if attempt.state is JobState.STARTING and self._reconciler.in_conflict(attempt):
                reporter.find(
                    attempt.job_id, attempt.attempt, "name_conflict", f"{attempt.id} is another object"
                )
            elif (
                attempt.state is JobState.RUNNING
                and sight(attempt, reporter.view, limits.margin_ms) is Sighting.VANISHED
            ):
                reporter.find(
                    attempt.job_id, attempt.attempt, "object_vanished", f"{attempt.id} was taken away"
                )
        for (cluster, name), seen in self._reconciler.strangers.items():
            if cluster == reporter.view.name:
                reporter.find(
                    seen.job_id,
                    seen.attempt,
                    "unknown_object",
                    f"{name} runs, but quota knows no such attempt",
                )

    def _decide(self, limits: Limits) -> None:
        stops = self._reconciler.stops(self._cache, limits)
        plan = self._planner.plan(self._around.clock.now_ms())
        starts = (start_item(start) for start in plan.starts)
        items: list[DecisionItem] = [*stops, *self._preemptions(plan), *starts]
        results: list[ItemResult] = []
        try:
            for answer in self._gateway.decide(items):
                self._cache.apply(answer.objects)
                results.extend(answer.results)
                if len(results) < len(items):
                    # many: the hands begin with what is accepted while the rest is still being decided
                    self._reconciler.act(self._cache, limits)
        finally:
            for item, result in zip(items, results, strict=False):
                self._decided(item, result)
        self._plan = plan

    def _preemptions(self, plan: Plan) -> Iterator[StopItem]:
        """The plan's stops for others; told now, carried out when their notice is over."""
        for preempt in plan.stops:
            attempt = self._cache.attempt(f"{preempt.job_id}-{preempt.attempt}")
            if attempt is not None:
                yield preempt_item(preempt, attempt)

    def _decided(self, item: StartItem | StopItem, result: ItemResult) -> None:
        """Remember and log what quota made of one decision."""
        numbers = {
            "job": result.job_id,
            "attempt": result.attempt,
            "outcome": result.outcome,
            "code": result.code,
            "epoch": self.epoch,
        }
        metrics = self._around.metrics
        if isinstance(item, StopItem):
            if item.reason is StopReason.PREEMPTED and result.outcome == "refused":
                self._planner.refused_stop(item.job_id)
            else:
                self._reconciler.asked(item)
            metrics.decided("stopped" if result.outcome == "accepted" else result.outcome)
            if result.outcome == "accepted":
                metrics.stopped(item.reason.value)
            log.info("stop_decided", reason=item.reason.value, for_job=item.for_job, **numbers)
            return
        if result.outcome == "refused":
            self._planner.refused(result)
            metrics.decided("refused")
            log.warning("start_refused", detail=result.detail, grant=item.grant_id, **numbers)
            return
        self._planner.accepted(result.job_id)
        metrics.decided("started")
        nodes = sorted({pod.node for pod in item.pods})
        log.info("start_decided", grant=item.grant_id, cluster=item.cluster, nodes=nodes, **numbers)
        job = self._cache.job(result.job_id)
        if job is not None:
            waited_ms = max(0, self._around.clock.now_ms() - job.submitted_at)
            metrics.admitted(job.organization_id, item.pods[0].gpu_class, waited_ms / 1000)

    def _rank(self) -> None:
        if not self._publisher.due() or self._plan is None:
            return
        now_ms = self._around.clock.now_ms()
        self.standing = self._planner.standing(self._plan, now_ms)
        self._planner.forget_ended()
        self._show()
        self._publisher.publish(self.standing, now_ms)

    def _show(self) -> None:
        now_s = self._around.monotonic_s()
        if now_s < self._shown_s + PICTURE_WALL_S:
            return
        self._shown_s = now_s
        jobs = ((self._cache.job(job_id), why) for job_id, why in self.standing.reasons.items())
        waiting = [(job, why) for job, why in jobs if job is not None]
        seen_ms = {
            name: view.seen_ms for name, view in self._around.views.items() if view.seen_ms is not None
        }
        rooms = ((self._cache.booking(room.booking_id), room) for room in self.standing.booked)
        booked = [(booking, room) for booking, room in rooms if booking is not None]
        shares = shares_of(
            self._cache.grants(), self._cache.attempts(), self._cache.rates(), self._around.clock.now_ms()
        )
        self._around.metrics.show(picture_of(waiting, self._cache.nodes(), seen_ms, booked, shares))

    def _holds(self) -> bool:
        return self._around.holds(self.epoch)

    def _limits(self) -> Limits | None:
        policy = self._cache.policy() if self._cache.loaded else None
        return (
            None
            if policy is None
            else Limits.from_policy(policy, self._around.clock, self._around.start_limit_s)
        )
