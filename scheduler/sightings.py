"""Attempt beside cluster object: what it means, and what has to be reported of it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, assert_never

from quota.schemas.scheduling import (
    AttemptObject,
    EndedItem,
    FreedItem,
    JobState,
    LostItem,
    PendingItem,
    StartedItem,
)
from scheduler.clusters.port import ObjectStatus, PodPhase, PodStatus
from scheduler.specs import spec_of
from scheduler.views import ClusterView

HASHES_KEPT = 50_000

EndedReason = Literal["completed", "failed", "stopped", "node_lost", "never_started"]
AttemptReport = StartedItem | PendingItem | EndedItem | LostItem | FreedItem


_NOT_ITS_OWN = ("node_lost", "evicted", "gang_failed", "vanished")
"""The cluster took its pods away: with their node, for something else, or by hand. When a pod of the gang failed by
itself, that one is the cause, and `gang_failed` says of the others only that they followed."""


_TOLD = ("oom_killed", "evicted", "node_lost", "deadline_exceeded", "vanished")
"""Ends of a pod about which its exit code says nothing."""


class Sighting(StrEnum):
    """What a cluster shows under an attempt's name."""

    UNSEEN = "unseen"
    """Nothing can be said: no complete observation yet."""
    ABSENT = "absent"
    """Not there, and as far as known it never was."""
    VANISHED = "vanished"
    """It was there, and somebody took it away: its pods are gone."""
    ACTIVE = "active"
    """Pods run, or may still start."""
    LOST = "lost"
    """A pod's node is lost."""
    OVER = "over"
    """No pod runs and none will ever start."""


@dataclass(frozen=True, slots=True)
class GangTimes:
    """When a gang ran: its first container's start, its last one's (if all started), its last end."""

    first_started_ms: int | None
    last_started_ms: int | None
    ended_ms: int | None


def sight(attempt: AttemptObject, view: ClusterView, margin_ms: int) -> Sighting:
    """Compare an attempt with a view. `margin_ms`: how much later than a start a view disproves it."""
    seen = view.objects.get(attempt.id)
    if seen is not None:
        return _sight_object(attempt, seen)
    if not view.complete:
        return Sighting.UNSEEN
    if attempt.id in view.gone:
        return Sighting.VANISHED
    proof_ms = attempt.first_started_at if attempt.ended_at is None else attempt.ended_at
    if proof_ms is None:
        return Sighting.ABSENT
    return Sighting.VANISHED if view.through_ms > proof_ms + margin_ms else Sighting.UNSEEN


def is_foreign(attempt: AttemptObject, seen: ObjectStatus, view: ClusterView) -> bool:
    """Whether the attempt's name is taken by an object with another specification: never by its own."""
    if attempt.first_started_at is not None or seen.abandoned:
        return False
    expected = view.expected_hashes.get(attempt.id)
    if expected is None:
        if len(view.expected_hashes) >= HASHES_KEPT:
            view.expected_hashes.clear()
        # asked several times in every cycle while it starts
        expected = view.expected_hashes[attempt.id] = spec_of(attempt).spec_hash()
    return seen.spec_hash != expected


def report_of(
    attempt: AttemptObject, view: ClusterView, margin_ms: int, *, tombstone: bool = False
) -> AttemptReport | None:
    """What quota must be told of this attempt, or None when it knows.

    `tombstone`: the cluster answered a start with the name's tombstone, so the attempt never runs.
    """
    sighting = sight(attempt, view, margin_ms)
    seen = view.objects.get(attempt.id)
    match attempt.state:
        case JobState.STARTING | JobState.RUNNING | JobState.STOPPING:
            if tombstone and seen is None:
                return _ended(attempt, None, view.through_ms)
            if seen is not None and is_foreign(attempt, seen, view):
                over = attempt.state is JobState.STOPPING and sighting is Sighting.OVER
                return _ended(attempt, replace(seen, pods=()), view.through_ms) if over else None
            # the first look without it is when a vanished object's pods had surely ended
            return _report_open(attempt, seen, sighting, view.gone.get(attempt.id, view.through_ms))
        case JobState.ENDED:
            free = sighting in (Sighting.VANISHED, Sighting.OVER)
            if attempt.capacity_held and free:
                ended = None if seen is None else gang_times(attempt, seen.pods).ended_ms
                return FreedItem(job_id=attempt.job_id, attempt=attempt.attempt, ended_at=ended)
            return None
        case JobState.QUEUED:
            return None
    assert_never(attempt.state)


def gang_times(attempt: AttemptObject, pods: tuple[PodStatus, ...]) -> GangTimes:
    """The gang's times from its pods; what quota knows already fills in for pods that are no longer shown."""
    started = {pod.index: pod.started_ms for pod in pods if pod.started_ms is not None}
    # a pod that never started occupied nothing, whenever it was given up
    ran = [pod for pod in pods if pod.started_ms is not None] or pods
    ended = [pod.ended_ms for pod in ran if pod.ended_ms is not None]
    first, last = attempt.first_started_at, attempt.last_started_at
    if started:
        first = min(started.values()) if first is None else first
    if last is None and all(pod.index in started for pod in attempt.pods):
        last = max(started.values())
    return GangTimes(first, last, max(ended, default=None))


def _sight_object(attempt: AttemptObject, seen: ObjectStatus) -> Sighting:
    phases = {pod.phase for pod in seen.pods}
    if PodPhase.UNKNOWN in phases:
        return Sighting.LOST
    if PodPhase.RUNNING in phases:
        return Sighting.ACTIVE
    if not seen.settled:
        return Sighting.ACTIVE
    if seen.suspended:
        return Sighting.OVER
    everyone_seen = {pod.index for pod in seen.pods} >= {pod.index for pod in attempt.pods}
    if PodPhase.PENDING in phases or not everyone_seen:
        return Sighting.ACTIVE
    return Sighting.OVER


def _report_open(
    attempt: AttemptObject, seen: ObjectStatus | None, sighting: Sighting, gone_ms: int
) -> AttemptReport | None:
    match sighting:
        case Sighting.UNSEEN | Sighting.ABSENT:
            return None
        case Sighting.ACTIVE:
            assert seen is not None
            return _started(attempt, seen) or _pending(attempt, seen)
        case Sighting.LOST:
            assert seen is not None
            return _lost(attempt, seen)
        case Sighting.OVER | Sighting.VANISHED:
            return _ended(attempt, seen, gone_ms)
    assert_never(sighting)


def _started(attempt: AttemptObject, seen: ObjectStatus) -> StartedItem | None:
    times = gang_times(attempt, seen.pods)
    if times.first_started_ms is None:
        return None
    if attempt.first_started_at is not None and (
        attempt.last_started_at is not None or times.last_started_ms is None
    ):
        return None
    return StartedItem(
        job_id=attempt.job_id,
        attempt=attempt.attempt,
        first_started_at=times.first_started_ms,
        last_started_at=times.last_started_ms,
    )


def _pending(attempt: AttemptObject, seen: ObjectStatus) -> PendingItem | None:
    """Why pods do not start, where the cluster says it and quota has not heard it."""
    detail = _words(pod for pod in seen.pods if pod.phase is PodPhase.PENDING)
    if attempt.state is not JobState.STARTING or detail is None or detail == attempt.detail:
        return None
    return PendingItem(job_id=attempt.job_id, attempt=attempt.attempt, detail=detail)


def _words(pods: Iterable[PodStatus]) -> str | None:
    """The first pod with something to say."""
    return next((f"pod {pod.index}: {pod.reason}"[:200] for pod in pods if pod.reason), None)


def _lost(attempt: AttemptObject, seen: ObjectStatus) -> LostItem:
    times = gang_times(attempt, seen.pods)
    moments = [times.first_started_ms, times.last_started_ms, times.ended_ms]
    moments += [pod.last_seen_ms for pod in seen.pods]
    return LostItem(
        job_id=attempt.job_id,
        attempt=attempt.attempt,
        first_started_at=times.first_started_ms,
        last_started_at=times.last_started_ms,
        last_seen_at=max((moment for moment in moments if moment is not None), default=seen.created_ms),
    )


def _ended(attempt: AttemptObject, seen: ObjectStatus | None, gone_ms: int) -> EndedItem:
    pods = () if seen is None else seen.pods
    times = gang_times(attempt, pods)
    suspended = attempt.stop is not None if seen is None else seen.suspended
    return EndedItem(
        job_id=attempt.job_id,
        attempt=attempt.attempt,
        first_started_at=times.first_started_ms,
        last_started_at=times.last_started_ms,
        # a pod that nobody saw to end has ended by the first look without it; a watermark may lie before the claim
        ended_at=max(gone_ms, attempt.claimed_at) if times.ended_ms is None else times.ended_ms,
        exit_code=_exit_code(attempt, pods),
        reason=_ended_reason(attempt, pods, times, suspended=suspended, vanished=seen is None),
        detail=_words(pod for pod in _failed(pods) if pod.reason in _TOLD),
    )


def _ended_reason(
    attempt: AttemptObject,
    pods: tuple[PodStatus, ...],
    times: GangTimes,
    *,
    suspended: bool,
    vanished: bool,
) -> EndedReason:
    if _all_succeeded(attempt, pods):
        return "completed"
    failed = _failed(pods)
    cause = failed[0].reason if failed else None
    if cause in _NOT_ITS_OWN:
        return "node_lost"
    if times.first_started_ms is None:
        return "never_started"
    if cause == "stopped" or (suspended and cause is None):
        return "stopped"
    # somebody took the object away, and how its pods ended with it
    return "node_lost" if vanished else "failed"


def _failed(pods: tuple[PodStatus, ...]) -> list[PodStatus]:
    """The failed pods, the cause first."""
    return sorted(
        (pod for pod in pods if pod.phase is PodPhase.FAILED),
        key=lambda pod: (pod.ended_ms or 0, pod.reason == "gang_failed", pod.index),
    )


def _exit_code(attempt: AttemptObject, pods: tuple[PodStatus, ...]) -> int | None:
    if _all_succeeded(attempt, pods):
        return 0
    in_order = sorted(pods, key=lambda pod: (pod.ended_ms or 0, pod.index))
    code = next((pod.exit_code for pod in in_order if pod.exit_code), None)
    return code if code is None or -1 <= code <= 255 else -1


def _all_succeeded(attempt: AttemptObject, pods: tuple[PodStatus, ...]) -> bool:
    succeeded = {pod.index for pod in pods if pod.phase is PodPhase.SUCCEEDED}
    return succeeded >= {pod.index for pod in attempt.pods}
