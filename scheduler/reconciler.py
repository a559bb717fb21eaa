"""Compares what quota recorded with what the clusters show: what to stop, and what to do there.

`stop_of`, `action_of` and `leftovers_of` are pure; `Reconciler` adds the memory of what was asked a moment
ago, so that a slow answer is not asked for again at every tick. Forgetting that memory is harmless.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from quota.clock import Clock
from quota.schemas.scheduling import (
    AttemptObject,
    JobObject,
    JobState,
    PolicyObject,
    StopItem,
    StopReason,
    StopRecord,
)
from scheduler.actions import (
    AcknowledgeObject,
    Action,
    DeleteObject,
    Done,
    ExtendObject,
    Hands,
    NotifyObject,
    PlaceObject,
    StartObject,
    StopObject,
)
from scheduler.backoff import Backoffs
from scheduler.cache import Cache
from scheduler.clusters.port import ObjectStatus, PodPhase, StartOutcome
from scheduler.sightings import Sighting, is_foreign, sight
from scheduler.specs import spec_of, stop_spec_of, stranger_of
from scheduler.views import ClusterView

DAY_MS = 86_400_000

SWEEP_WALL_S = 5.0
"""Old tombstones and strange objects are looked for this often."""

ASK_AGAIN_WALL_S = 5.0
"""A stop that was answered, but does not show in the attempt, is asked for again after this."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """The times that reconciling follows, in business milliseconds."""

    start_limit_ms: int
    """A gang not fully running this long after its claim is abandoned."""
    margin_ms: int
    """How much later than an event a view must be to disprove it."""
    unknown_grace_ms: int
    """How long an object may be unknown to quota before it is a finding and is stopped."""
    keep_ms: int
    """How long the object of an ended attempt stays as the tombstone that refuses a late start."""

    @classmethod
    def from_policy(cls, policy: PolicyObject, clock: Clock, start_limit_s: float | None = None) -> Limits:
        """Wall seconds in business milliseconds; a tombstone outlives every call that may be under way."""
        wall_s_ms = 1000 * clock.speed
        hub_s = policy.start_limit_wall_s
        return cls(
            start_limit_ms=round((hub_s if start_limit_s is None else min(hub_s, start_limit_s)) * wall_s_ms),
            margin_ms=5 * wall_s_ms,
            unknown_grace_ms=60 * wall_s_ms,
            keep_ms=max(DAY_MS, 120 * wall_s_ms),
        )


ActionKey = tuple[str, str, str]


def stop_of(
    attempt: AttemptObject, job: JobObject | None, now_ms: int, limits: Limits, *, conflict: bool
) -> StopItem | None:
    """The stop that an attempt has come to need, if any."""
    if attempt.state not in (JobState.STARTING, JobState.RUNNING):
        return None
    if job is not None and job.cancel_requested_at is not None:
        return _stop(attempt, StopReason.CANCELLED, now_ms, attempt.grace_ms)
    if attempt.stop_asked is not None:
        return _stop(attempt, attempt.stop_asked, now_ms, attempt.grace_ms)
    if attempt.last_started_at is None:
        if conflict or now_ms >= attempt.claimed_at + limits.start_limit_ms:
            return _stop(attempt, StopReason.ABANDONED, now_ms, 0)
        return None
    limit_ms = attempt.last_started_at + attempt.walltime_ms
    if now_ms >= limit_ms:
        return _stop(attempt, StopReason.TIME_LIMIT, limit_ms, attempt.grace_ms)
    return None


def due_of(attempt: AttemptObject, limits: Limits, now_ms: int) -> int | None:
    """When time alone will make something due: a stop to ask for, or one announced to carry out."""
    if attempt.state is JobState.STOPPING and attempt.stop is not None:
        return attempt.stop.stop_at if attempt.stop.stop_at > now_ms else None
    if attempt.state not in (JobState.STARTING, JobState.RUNNING):
        return None
    if attempt.last_started_at is None:
        return attempt.claimed_at + limits.start_limit_ms
    return attempt.last_started_at + attempt.walltime_ms


def action_of(attempt: AttemptObject, view: ClusterView, limits: Limits, now_ms: int) -> Action | None:
    """What the cluster needs so that it shows what quota recorded."""
    sighting = sight(attempt, view, limits.margin_ms)
    if attempt.state is JobState.STARTING and sighting is Sighting.ABSENT:
        return StartObject(view.name, spec_of(attempt))
    seen = view.objects.get(attempt.id)
    if attempt.state is JobState.STOPPING and sighting is Sighting.ABSENT:
        return StopObject(view.name, stop_spec_of(attempt), abandoned=True)
    stopped = attempt.state is JobState.STOPPING or (
        # lost: whatever comes back with the node must not run on unpaid
        attempt.state is JobState.ENDED and attempt.capacity_held
    )
    live = sighting in (Sighting.ACTIVE, Sighting.LOST)
    if stopped and live and seen is not None and not seen.suspended:
        if attempt.stop is not None and now_ms < attempt.stop.stop_at:
            return _notice_of(attempt, attempt.stop, seen, view.name)
        abandoned = attempt.stop is not None and attempt.stop.reason is StopReason.ABANDONED
        return StopObject(view.name, stop_spec_of(attempt), abandoned=abandoned)
    if seen is None or is_foreign(attempt, seen, view):
        return None
    return _upkeep_of(attempt, seen, view.name)


def _notice_of(
    attempt: AttemptObject, stop: StopRecord, seen: ObjectStatus, cluster: str
) -> NotifyObject | None:
    """The stop lies ahead: the job is told, so that it can save what it has."""
    if seen.notified:
        return None
    return NotifyObject(cluster, spec_of(attempt), stop.stop_at, stop.reason.value)


def _upkeep_of(attempt: AttemptObject, seen: ObjectStatus, cluster: str) -> Action | None:
    """What an object needs that runs, or ran, as recorded."""
    match attempt.state:
        case JobState.STARTING | JobState.RUNNING if seen.gated and not seen.suspended:
            return PlaceObject(cluster, spec_of(attempt))
        case JobState.RUNNING if seen.walltime_ms is not None and seen.walltime_ms < attempt.walltime_ms:
            return ExtendObject(cluster, spec_of(attempt))
        case JobState.ENDED if seen.pods_kept and not attempt.capacity_held:
            return AcknowledgeObject(cluster, seen.name)
    return None


def leftovers_of(
    view: ClusterView, known: Callable[[str], bool], now_ms: int, limits: Limits
) -> tuple[list[str], list[ObjectStatus]]:
    """Names whose time as tombstones is over, and objects that run though quota does not know them."""
    old: list[str] = []
    strange: list[ObjectStatus] = []
    for name, seen in view.objects.items():
        if known(name):
            continue
        if any(pod.phase is PodPhase.UNKNOWN for pod in seen.pods):
            continue
        if _may_run(seen):
            if not seen.suspended and now_ms > seen.created_ms + limits.unknown_grace_ms:
                strange.append(seen)
            continue
        moments = [seen.created_ms, *(pod.ended_ms or 0 for pod in seen.pods)]
        if now_ms > max(moments) + limits.keep_ms:
            old.append(name)
    return old, strange


def _may_run(seen: ObjectStatus) -> bool:
    phases = {pod.phase for pod in seen.pods}
    if PodPhase.RUNNING in phases:
        return True
    return not seen.suspended and (not seen.pods or PodPhase.PENDING in phases)


def _stop(attempt: AttemptObject, reason: StopReason, stop_at_ms: int, grace_ms: int) -> StopItem:
    return StopItem(
        job_id=attempt.job_id,
        attempt=attempt.attempt,
        reason=reason,
        stop_at=stop_at_ms,
        grace_ms=grace_ms,
    )


class Reconciler:
    """One term's hand on the clusters."""

    def __init__(
        self,
        views: Mapping[str, ClusterView],
        hands: Hands,
        allowed: Callable[[], bool],
        clock: Clock,
        rng: random.Random,
        monotonic_s: Callable[[], float],
    ) -> None:
        """`allowed` is asked right before a cluster is touched."""
        self._views = views
        self._hands = hands
        self._allowed = allowed
        self._clock = clock
        self._monotonic_s = monotonic_s
        self._busy: set[ActionKey] = set()
        self._done_ms: dict[ActionKey, int] = {}
        self._backoffs: Backoffs[ActionKey] = Backoffs(rng, monotonic_s, first_s=0.5, longest_s=30.0)
        self._asked_s: dict[str, float] = {}
        self._strange_since_ms: dict[tuple[str, str], int] = {}
        self._conflicts: set[str] = set()
        self._swept_s = float("-inf")
        self.tombstones: set[str] = set()
        """Attempts whose start found a tombstone: they never run."""
        self.strangers: dict[tuple[str, str], ObjectStatus] = {}
        """Objects by (cluster, name) that run though quota does not know them."""

    def stops(self, cache: Cache, limits: Limits) -> list[StopItem]:
        """Stops to ask quota for now."""
        now_ms, now_s = self._clock.now_ms(), self._monotonic_s()
        items: list[StopItem] = []
        for attempt in cache.attempts():
            item = stop_of(
                attempt, cache.job(attempt.job_id), now_ms, limits, conflict=self.in_conflict(attempt)
            )
            if item is not None and now_s >= self._asked_s.get(attempt.id, float("-inf")):
                items.append(item)
        return items

    def asked(self, item: StopItem) -> None:
        """Quota has answered about this stop."""
        self._asked_s[f"{item.job_id}-{item.attempt}"] = self._monotonic_s() + ASK_AGAIN_WALL_S

    def in_conflict(self, attempt: AttemptObject) -> bool:
        """Whether another object has this attempt's name."""
        view = self._views.get(attempt.cluster)
        if attempt.id in self._conflicts or view is None:
            return attempt.id in self._conflicts
        seen = view.objects.get(attempt.id)
        return seen is not None and is_foreign(attempt, seen, view)

    def act(self, cache: Cache, limits: Limits) -> None:
        """Let the clusters do what the accepted records ask for."""
        now_ms = self._clock.now_ms()
        for attempt in cache.attempts():
            view = self._views.get(attempt.cluster)
            if view is None or self._is_being_started(attempt, view, limits):
                continue
            action = action_of(attempt, view, limits, now_ms)
            if action is not None and attempt.id not in self.tombstones:
                self._submit(action, limits)
        now_s = self._monotonic_s()
        if now_s >= self._swept_s + SWEEP_WALL_S:
            self._swept_s = now_s
            self._forget_ended(cache)
            for view in self._views.values():
                self._sweep(cache, view, limits)

    def done(self, done: Done) -> None:
        """How an action went."""
        key = done.action.key
        cluster, name, verb = key
        self._busy.discard(key)
        if done.trouble:
            pause_s = round(self._backoffs.failed(key), 1)
            log.warning(
                "action_failed",
                verb=verb,
                cluster=cluster,
                object=name,
                trouble=done.trouble,
                again_in_s=pause_s,
            )
            return
        self._backoffs.succeeded(key)
        self._done_ms[key] = self._clock.now_ms()
        if done.outcome is StartOutcome.ABANDONED:
            self.tombstones.add(name)
        if done.outcome is StartOutcome.CONFLICT:
            self._conflicts.add(name)
        outcome = "" if done.outcome is None else done.outcome.value
        log.info("action_done", verb=verb, cluster=cluster, object=name, outcome=outcome)

    def _is_being_started(self, attempt: AttemptObject, view: ClusterView, limits: Limits) -> bool:
        """Nothing to think about: of thousands that start at once most are at this point."""
        starts = attempt.state is JobState.STARTING and attempt.id not in view.objects
        return starts and self._is_under_way((view.name, attempt.id, "start"), limits)

    def _is_under_way(self, key: ActionKey, limits: Limits) -> bool:
        if key in self._busy or self._backoffs.waits(key):
            return True
        done_ms = self._done_ms.get(key)
        # done, only not seen yet
        return done_ms is not None and self._views[key[0]].through_ms <= done_ms + limits.margin_ms

    def _submit(self, action: Action, limits: Limits) -> None:
        key = action.key
        if self._is_under_way(key, limits):
            return
        self._busy.add(key)
        self._hands.submit(action, self._allowed)

    def _sweep(self, cache: Cache, view: ClusterView, limits: Limits) -> None:
        now_ms = self._clock.now_ms()
        old, strange = leftovers_of(view, lambda name: cache.attempt(name) is not None, now_ms, limits)
        for seen in view.objects.values():
            # its end is recorded: quota shows no attempt that has ended and given back its capacity
            if seen.pods_kept and not _may_run(seen) and cache.attempt(seen.name) is None:
                self._submit(AcknowledgeObject(view.name, seen.name), limits)
        for name in old:
            self._submit(DeleteObject(view.name, name), limits)
        for seen in strange:
            key = (view.name, seen.name)
            since_ms = self._strange_since_ms.setdefault(key, view.through_ms)
            # the view may be older than quota's knowledge of the end: only a later look proves that it runs
            if view.through_ms >= since_ms + limits.unknown_grace_ms:
                self.strangers[key] = seen
                self._submit(StopObject(view.name, stranger_of(seen), abandoned=False), limits)

    def _forget_ended(self, cache: Cache) -> None:
        known = {attempt.id for attempt in cache.attempts()}
        self._done_ms = {key: at for key, at in self._done_ms.items() if key[1] in known or key in self._busy}
        self._backoffs.retain(lambda key: key[1] in known or key in self._busy)
        self._asked_s = {name: at for name, at in self._asked_s.items() if name in known}
        self.tombstones &= known
        self._conflicts &= known
