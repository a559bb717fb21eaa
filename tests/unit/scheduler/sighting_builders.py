"""Attempts and cluster objects as the tables of the reconciler's tests name them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quota.schemas.scheduling import AttemptObject, JobState, StopReason, StopRecord
from scheduler.clusters.port import ObjectStatus, Observation, PodPhase, PodStatus
from scheduler.specs import spec_of
from scheduler.views import ClusterView
from tests.unit.scheduler.cluster_model import a_pod, an_object
from tests.unit.scheduler.quota_objects import an_attempt

CLAIM = 1_800_000_000_000
NOW = CLAIM + 100_000
MARGIN = 5_000

TWO_PODS = (
    {"index": 0, "node": "n0", "gpu_class": "h100", "count": 1},
    {"index": 1, "node": "n1", "gpu_class": "h100", "count": 1},
)
STOP = StopRecord(reason=StopReason.CANCELLED, stop_at=CLAIM + 50_000, grace_ms=30_000)

PENDING = a_pod(phase=PodPhase.PENDING)
RUNNING = a_pod(started_ms=CLAIM + 10)
SUCCEEDED = a_pod(phase=PodPhase.SUCCEEDED, started_ms=CLAIM + 10, ended_ms=CLAIM + 90, exit_code=0)
FAILED = a_pod(
    phase=PodPhase.FAILED, started_ms=CLAIM + 10, ended_ms=CLAIM + 80, exit_code=3, reason="failed"
)
STOPPED = a_pod(
    phase=PodPhase.FAILED, started_ms=CLAIM + 10, ended_ms=CLAIM + 70, exit_code=143, reason="stopped"
)
UNKNOWN = a_pod(phase=PodPhase.UNKNOWN, started_ms=CLAIM + 10, last_seen_ms=CLAIM + 60)
DEAD = a_pod(phase=PodPhase.FAILED, started_ms=CLAIM + 10, ended_ms=CLAIM + 60, reason="node_lost")


def a_view(*seen: ObjectStatus, gone: tuple[str, ...] = (), through_ms: int = NOW) -> ClusterView:
    """A complete view of a cluster with these objects."""
    view = ClusterView("sim")
    before = tuple(an_object(spec_of(an_attempt()), CLAIM, ()) for _ in gone)
    view.take(Observation(through_ms - 1, True, before, (), None), NOW)
    view.take(Observation(through_ms, True, seen, (), None), NOW)
    return view


def shown(attempt: AttemptObject, *pods: PodStatus, suspended: bool = False) -> ObjectStatus:
    """The attempt's own object with these pods."""
    return replace(an_object(spec_of(attempt), CLAIM, pods), suspended=suspended)


def started_attempt(**changes: Any) -> AttemptObject:
    """An attempt whose start quota knows."""
    times = {"first_started_at": CLAIM + 10, "last_started_at": CLAIM + 10}
    return an_attempt(**{"state": JobState.RUNNING} | times | changes)


STARTING = an_attempt()
GONE_ON = an_attempt(state=JobState.STOPPING, stop=STOP)
STOPPING = started_attempt(state=JobState.STOPPING, stop=STOP)
LOST_BEFORE = started_attempt(state=JobState.ENDED, ended_at=CLAIM + 60)
