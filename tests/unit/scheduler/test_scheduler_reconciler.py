"""Attempt state x what the cluster shows -> which stop is asked for, and what is done on the cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest

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
from scheduler.actions import ExtendObject, NotifyObject, PlaceObject, StartObject, StopObject
from scheduler.clusters.port import PodPhase, PodStatus
from scheduler.reconciler import Limits, action_of, due_of, leftovers_of, stop_of
from scheduler.specs import spec_of
from tests.unit.scheduler.cluster_model import a_pod, an_object
from tests.unit.scheduler.quota_objects import a_job, an_attempt
from tests.unit.scheduler.sighting_builders import (
    CLAIM,
    LOST_BEFORE,
    NOW,
    PENDING,
    RUNNING,
    SUCCEEDED,
    UNKNOWN,
    a_view,
    shown,
    started_attempt,
)

HOUR_MS = 3_600_000
LIMITS = Limits(start_limit_ms=600_000, margin_ms=5_000, unknown_grace_ms=60_000, keep_ms=24 * HOUR_MS)
CANCELLED = a_job(cancel_requested_at=NOW)


def a_stop(reason: StopReason, stop_at_ms: int, grace_ms: int = 30_000) -> StopItem:
    """What quota is asked to record."""
    return StopItem(job_id="job-1", attempt=1, reason=reason, stop_at=stop_at_ms, grace_ms=grace_ms)


HALF = an_attempt(first_started_at=CLAIM + 10)


@pytest.mark.parametrize(
    ("attempt", "job", "now_ms", "stop"),
    [
        (an_attempt(), a_job(), CLAIM + 599_999, None),
        (an_attempt(), a_job(), CLAIM + 600_000, a_stop(StopReason.ABANDONED, CLAIM + 600_000, 0)),
        (HALF, a_job(), CLAIM + 600_000, a_stop(StopReason.ABANDONED, CLAIM + 600_000, 0)),
        (an_attempt(), CANCELLED, NOW, a_stop(StopReason.CANCELLED, NOW)),
        (started_attempt(), a_job(), CLAIM + 10 + HOUR_MS - 1, None),
        (
            started_attempt(),
            a_job(),
            CLAIM + HOUR_MS + 5_000,
            a_stop(StopReason.TIME_LIMIT, CLAIM + 10 + HOUR_MS),
        ),
        (started_attempt(), CANCELLED, NOW, a_stop(StopReason.CANCELLED, NOW)),
        (started_attempt(state=JobState.STOPPING), CANCELLED, CLAIM + 2 * HOUR_MS, None),
        (LOST_BEFORE, CANCELLED, CLAIM + 2 * HOUR_MS, None),
        (started_attempt(), None, NOW, None),
        (an_attempt(stop_asked="requeued"), a_job(), NOW, a_stop(StopReason.REQUEUED, NOW)),
        (started_attempt(stop_asked="requeued"), a_job(), NOW, a_stop(StopReason.REQUEUED, NOW)),
        (started_attempt(stop_asked="grant_ended"), a_job(), NOW, a_stop(StopReason.GRANT_ENDED, NOW)),
        (started_attempt(stop_asked="idle_reclaimed"), a_job(), NOW, a_stop(StopReason.IDLE_RECLAIMED, NOW)),
        (started_attempt(stop_asked="gpu_failed"), a_job(), NOW, a_stop(StopReason.GPU_FAILED, NOW)),
        (started_attempt(stop_asked="requeued"), CANCELLED, NOW, a_stop(StopReason.CANCELLED, NOW)),
        (started_attempt(state=JobState.STOPPING, stop_asked="requeued"), a_job(), NOW, None),
        (started_attempt(walltime_ms=2 * HOUR_MS), a_job(), CLAIM + 10 + 2 * HOUR_MS - 1, None),
        (
            started_attempt(walltime_ms=2 * HOUR_MS),
            a_job(),
            CLAIM + 10 + 2 * HOUR_MS,
            a_stop(StopReason.TIME_LIMIT, CLAIM + 10 + 2 * HOUR_MS),
        ),
    ],
)
def test_stop_is_asked_for_when_it_is_due(
    attempt: AttemptObject, job: JobObject | None, now_ms: int, stop: StopItem | None
) -> None:
    assert stop_of(attempt, job, now_ms, LIMITS, conflict=False) == stop


def test_conflict_abandons_at_once() -> None:
    stop = stop_of(an_attempt(), a_job(), NOW, LIMITS, conflict=True)
    assert stop == a_stop(StopReason.ABANDONED, NOW, 0)


@pytest.mark.parametrize(
    ("attempt", "due_ms"),
    [
        (an_attempt(), CLAIM + 600_000),
        (started_attempt(), CLAIM + 10 + HOUR_MS),
        (started_attempt(walltime_ms=3 * HOUR_MS), CLAIM + 10 + 3 * HOUR_MS),
        (started_attempt(state=JobState.STOPPING), None),
    ],
)
def test_due_is_when_time_alone_asks_for_a_stop(attempt: AttemptObject, due_ms: int | None) -> None:
    assert due_of(attempt, LIMITS, NOW) == due_ms
    if due_ms is not None:
        assert stop_of(attempt, a_job(), due_ms - 1, LIMITS, conflict=False) is None
        assert stop_of(attempt, a_job(), due_ms, LIMITS, conflict=False) is not None


STOP = StopRecord(reason=StopReason.CANCELLED, stop_at=NOW, grace_ms=7_000)
NEVER_STARTED = an_attempt(state=JobState.STOPPING, stop=STOP)
STOPPING = started_attempt(state=JobState.STOPPING, stop=STOP)
ABANDONED = an_attempt(
    state=JobState.STOPPING, stop=StopRecord(reason=StopReason.ABANDONED, stop_at=NOW, grace_ms=0)
)


@pytest.mark.parametrize(
    ("attempt", "pods", "suspended", "verb", "abandoned"),
    [
        (an_attempt(), None, False, "start", None),
        (an_attempt(), (), False, None, None),
        (an_attempt(), (PENDING,), False, None, None),
        (an_attempt(), (RUNNING,), False, None, None),
        (an_attempt(), (), True, None, None),
        (started_attempt(), (RUNNING,), False, None, None),
        (started_attempt(), None, False, None, None),
        (NEVER_STARTED, None, False, "stop", True),
        (NEVER_STARTED, (PENDING,), False, "stop", False),
        (NEVER_STARTED, (), True, None, None),
        (ABANDONED, (PENDING,), False, "stop", True),
        (STOPPING, (RUNNING,), False, "stop", False),
        (STOPPING, (UNKNOWN,), False, "stop", False),
        (STOPPING, (RUNNING,), True, None, None),
        (STOPPING, (SUCCEEDED,), False, None, None),
        (LOST_BEFORE, (UNKNOWN,), False, "stop", False),
        (LOST_BEFORE, (RUNNING,), False, "stop", False),
        (LOST_BEFORE, (RUNNING,), True, None, None),
        (LOST_BEFORE, None, False, None, None),
    ],
)
def test_cluster_is_touched_only_as_recorded(
    attempt: AttemptObject,
    pods: tuple[PodStatus, ...] | None,
    suspended: bool,
    verb: str | None,
    abandoned: bool | None,
) -> None:
    view = a_view() if pods is None else a_view(shown(attempt, *pods, suspended=suspended))
    action = action_of(attempt, view, LIMITS, NOW)
    match action:
        case StartObject(spec=spec):
            assert (verb, abandoned) == ("start", None)
            assert spec == spec_of(attempt)
        case StopObject():
            assert (verb, action.abandoned) == ("stop", abandoned)
            assert action.spec.grace_ms == (attempt.stop.grace_ms if attempt.stop else attempt.grace_ms)
        case _:
            assert verb is None


ANNOUNCED = started_attempt(
    state=JobState.STOPPING,
    stop=StopRecord(reason=StopReason.PREEMPTED, stop_at=NOW + 60_000, grace_ms=7_000),
)


def test_announced_stop_is_told_to_the_job_and_carried_out_when_it_is_due() -> None:
    running = shown(ANNOUNCED, RUNNING)
    untold = a_view(replace(running, notified=False))
    told = a_view(running)
    assert action_of(ANNOUNCED, untold, LIMITS, NOW) == NotifyObject(
        "sim", spec_of(ANNOUNCED), NOW + 60_000, "preempted"
    )
    assert action_of(ANNOUNCED, told, LIMITS, NOW + 59_999) is None
    assert isinstance(action_of(ANNOUNCED, told, LIMITS, NOW + 60_000), StopObject)
    assert isinstance(action_of(ANNOUNCED, untold, LIMITS, NOW + 60_000), StopObject)
    assert due_of(ANNOUNCED, LIMITS, NOW) == NOW + 60_000
    assert due_of(ANNOUNCED, LIMITS, NOW + 60_000) is None


@pytest.mark.parametrize(
    ("attempt", "changes", "verb"),
    [
        (an_attempt(), {"gated": True}, PlaceObject),
        (started_attempt(), {"gated": True}, PlaceObject),
        (started_attempt(), {"gated": True, "suspended": True}, None),
        (started_attempt(walltime_ms=2 * HOUR_MS), {"walltime_ms": HOUR_MS}, ExtendObject),
        (started_attempt(walltime_ms=HOUR_MS), {"walltime_ms": HOUR_MS}, None),
        (started_attempt(), {"walltime_ms": None}, None),
        (STOPPING, {"pods_kept": True, "suspended": True}, None),
        (LOST_BEFORE, {"pods_kept": True, "suspended": True}, None),
    ],
)
def test_object_is_kept_as_recorded(
    attempt: AttemptObject, changes: dict[str, object], verb: type[object] | None
) -> None:
    seen = replace(shown(attempt, RUNNING), **changes)  # type: ignore[arg-type]
    action = action_of(attempt, a_view(seen), LIMITS, NOW)
    assert action is None if verb is None else isinstance(action, verb)


def test_seen_object_that_was_taken_away_is_not_started_again() -> None:
    assert action_of(an_attempt(), a_view(gone=("job-1-1",)), LIMITS, NOW) is None


DAY_OLD = NOW + 24 * HOUR_MS + 1


@pytest.mark.parametrize(
    ("pods", "suspended", "known", "now_ms", "old", "strange"),
    [
        ((SUCCEEDED,), False, False, DAY_OLD, True, False),
        ((SUCCEEDED,), False, False, NOW, False, False),
        ((SUCCEEDED,), False, True, DAY_OLD, False, False),
        ((), True, False, DAY_OLD, True, False),
        ((PENDING,), True, False, DAY_OLD, True, False),
        ((RUNNING,), False, False, DAY_OLD, False, True),
        ((RUNNING,), False, False, CLAIM + 1_000, False, False),
        ((RUNNING,), True, False, DAY_OLD, False, False),
        ((RUNNING,), False, True, DAY_OLD, False, False),
        ((UNKNOWN,), False, False, DAY_OLD, False, False),
        ((), False, False, DAY_OLD, False, True),
        ((a_pod(phase=PodPhase.PENDING),), False, False, DAY_OLD, False, True),
    ],
)
def test_leftovers_are_old_ends_and_unknown_runs(
    pods: tuple[PodStatus, ...], suspended: bool, known: bool, now_ms: int, old: bool, strange: bool
) -> None:
    seen = replace(an_object(spec_of(an_attempt()), CLAIM, pods), suspended=suspended)
    names, strangers = leftovers_of(a_view(seen), lambda _: known, now_ms, LIMITS)
    assert names == (["job-1-1"] if old else [])
    assert strangers == ([seen] if strange else [])


def test_wall_limits_are_stretched_by_the_clock_and_tombstones_outlive_late_calls() -> None:
    policy = PolicyObject(
        half_life_ms=1,
        lag_bound_thousandths=1,
        cluster_unseen_wall_s=60,
        start_limit_wall_s=600,
        abandonments_limit=3,
    )
    limits = Limits.from_policy(policy, Clock(speed=3600))
    assert limits.start_limit_ms == 600_000 * 3600
    assert limits.keep_ms == 120_000 * 3600
    assert Limits.from_policy(policy, Clock()).keep_ms == 24 * HOUR_MS
