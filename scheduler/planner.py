"""Feeds the pure core with what changed and remembers, for a moment, whose start or stop quota refused."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quota.clock import Clock
from quota.schemas import scheduling as wire
from scheduler.cache import Cache
from scheduler.core import model
from scheduler.core.cycle import decide
from scheduler.core.state import State
from scheduler.ranking import Standing
from scheduler.translate import (
    Moment,
    booked_of,
    booked_room_of,
    changes_of,
    cluster_of,
    pace_of,
    reservation_of,
    reservations_of,
    waiting_of,
)
from scheduler.views import ClusterView

FIRST_PAUSE_WALL_S = 1.0
LONGEST_PAUSE_WALL_S = 60.0
SPARED_WALL_S = 60
"""A job that quota refused to stop for another is not chosen again for so long."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Quota refused a job's start; it is not proposed again before `until_ms`."""

    code: str
    detail: str
    until_ms: int
    times: int


class Planner:
    """One term's plans."""

    def __init__(
        self, cache: Cache, views: Mapping[str, ClusterView], clock: Clock, rng: random.Random
    ) -> None:
        self._cache = cache
        self._views = views
        self._clock = clock
        self._rng = rng
        self._state: State | None = None
        self._now_ms = 0
        self._promised = model.Reservations()
        self._booked = model.BookedRooms()
        self._refusals: dict[str, Refusal] = {}
        self._spared: dict[str, int] = {}
        self._seen_told: dict[str, int] = {}
        self._reasons: dict[str, tuple[model.Reason, wire.Waiting]] = {}

    def begin_with(
        self, reservations: Iterable[wire.Reservation], booked: Iterable[wire.BookedRoom] = ()
    ) -> None:
        """Room that was promised before this term, and where the bookings' was."""
        self._promised = reservations_of(reservations)
        self._booked = booked_of(booked)

    def plan(self, now_ms: int) -> model.Plan:
        """Bring the core up to date and let it decide."""
        self._now_ms = max(now_ms, self._now_ms)  # a wall clock may be set back
        self._spare_no_longer()
        items = self._cache.changes()
        promised: list[model.Change] = []
        if self._state is None:
            # a new term, or the core failed half-way: begin again with everything there is
            items, self._seen_told = self._cache.everything(), {}
            promised = [self._promised, self._booked]
        state, self._state = self._state or State(), None
        plan, self._state = decide(state, promised + self._changes(items), self._now_ms)
        self._promised = model.Reservations(plan.reservations)
        self._booked = model.BookedRooms(plan.booked)
        return plan

    def standing(self, plan: model.Plan, now_ms: int) -> Standing:
        """The queue as quota shows it; a reason that stayed keeps its object."""
        told = {job_id: self._waiting(job_id, reason, now_ms) for job_id, reason in plan.reasons.items()}
        self._reasons = {job_id: (plan.reasons[job_id], why) for job_id, why in told.items()}
        paces = {grant_id: pace_of(pace) for grant_id, pace in plan.paces.items()}
        return Standing(
            plan.order,
            told,
            paces,
            tuple(map(reservation_of, plan.reservations)),
            tuple(map(booked_room_of, plan.booked)),
        )

    def refused(self, result: wire.ItemResult) -> None:
        """Quota refused this start: let others go first for a moment."""
        before = self._refusals.get(result.job_id)
        times = 1 if before is None else before.times + 1
        pause_s = min(LONGEST_PAUSE_WALL_S, FIRST_PAUSE_WALL_S * 2 ** min(times - 1, 30))
        pause_ms = int(pause_s * (0.5 + self._rng.random() / 2) * 1000) * self._clock.speed
        until_ms = self._clock.now_ms() + pause_ms
        self._refusals[result.job_id] = Refusal(result.code, result.detail, until_ms, times)
        self._cache.repeat("job", result.job_id)

    def refused_stop(self, job_id: str) -> None:
        """Quota does not let this job be stopped for another: choose others for a while."""
        self._spared[job_id] = self._clock.now_ms() + SPARED_WALL_S * 1000 * self._clock.speed
        self._cache.repeat("job", job_id)

    def accepted(self, job_id: str) -> None:
        """Quota started this job."""
        self._refusals.pop(job_id, None)

    def forget_ended(self) -> None:
        """Drop what is remembered of jobs that are no more."""
        self._refusals = {
            job_id: refusal
            for job_id, refusal in self._refusals.items()
            if self._cache.job(job_id) is not None
        }

    def moment(self) -> Moment:
        """What only this process knows now."""
        last_seen = {name: view.seen_ms for name, view in self._views.items() if view.seen_ms is not None}
        held_back = {job_id: refusal.until_ms for job_id, refusal in self._refusals.items()}
        policy = self._cache.policy()
        start_limit_ms = 0 if policy is None else policy.start_limit_wall_s * 1000 * self._clock.speed
        return Moment(held_back, frozenset(self._spared), last_seen, start_limit_ms)

    def _changes(self, items: list[wire.FeedItem]) -> list[model.Change]:
        moment = self.moment()
        last_seen = moment.last_seen
        changes = changes_of(items, self._clock, moment)
        for name, seen_ms in last_seen.items():
            cluster = self._cache.cluster(name)
            if cluster is not None and self._seen_told.get(name) != seen_ms:
                self._seen_told[name] = seen_ms
                changes.append(cluster_of(cluster, last_seen))
        return changes

    def _spare_no_longer(self) -> None:
        over = [job_id for job_id, until_ms in self._spared.items() if self._now_ms >= until_ms]
        for job_id in over:
            del self._spared[job_id]
            self._cache.repeat("job", job_id)

    def _waiting(self, job_id: str, reason: model.Reason, now_ms: int) -> wire.Waiting:
        refusal = self._refusals.get(job_id)
        if refusal is None or reason.code is not model.WaitReason.COOLDOWN or now_ms >= refusal.until_ms:
            before = self._reasons.get(job_id)
            return before[1] if before is not None and before[0] is reason else waiting_of(reason)
        # what quota answered to its start says more than the pause that follows from it
        return wire.Waiting(
            code=wire.WaitReason.START_REFUSED,
            numbers={"code": refusal.code, "until_ms": refusal.until_ms, "times": refusal.times},
        )
