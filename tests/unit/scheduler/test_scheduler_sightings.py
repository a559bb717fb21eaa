"""Attempt state x what the cluster shows -> what is reported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quota.schemas.scheduling import (
    AttemptObject,
    EndedItem,
    FreedItem,
    JobState,
    LostItem,
    PendingItem,
    StartedItem,
)
from scheduler.clusters.port import Observation, PodPhase, PodStatus
from scheduler.sightings import Sighting, report_of, sight
from scheduler.views import ClusterView
from tests.unit.scheduler.cluster_model import a_pod
from tests.unit.scheduler.quota_objects import an_attempt
from tests.unit.scheduler.sighting_builders import (
    CLAIM,
    DEAD,
    FAILED,
    GONE_ON,
    LOST_BEFORE,
    MARGIN,
    NOW,
    PENDING,
    RUNNING,
    STARTING,
    STOP,
    STOPPED,
    STOPPING,
    SUCCEEDED,
    TWO_PODS,
    UNKNOWN,
    a_view,
    shown,
    started_attempt,
)


def ended(**changes: Any) -> EndedItem:
    """A report of the end."""
    words: dict[str, Any] = {
        "job_id": "job-1",
        "attempt": 1,
        "first_started_at": CLAIM + 10,
        "last_started_at": CLAIM + 10,
        "ended_at": CLAIM + 90,
        "exit_code": 0,
        "reason": "completed",
    }
    return EndedItem.model_validate(words | changes)


STARTED = StartedItem(job_id="job-1", attempt=1, first_started_at=CLAIM + 10, last_started_at=CLAIM + 10)
LOST = LostItem(
    job_id="job-1",
    attempt=1,
    first_started_at=CLAIM + 10,
    last_started_at=CLAIM + 10,
    last_seen_at=CLAIM + 60,
)
PULLING = replace(PENDING, reason="ImagePullBackOff")
PULLING_TOLD = PendingItem(job_id="job-1", attempt=1, detail="pod 0: ImagePullBackOff")
GREEDY = replace(FAILED, exit_code=137, reason="oom_killed")
NEVER = ended(
    first_started_at=None, last_started_at=None, ended_at=NOW, exit_code=None, reason="never_started"
)


@pytest.mark.parametrize(
    ("attempt", "pods", "suspended", "report"),
    [
        (STARTING, (), False, None),
        (STARTING, (PENDING,), False, None),
        (STARTING, (RUNNING,), False, STARTED),
        (STARTING, (SUCCEEDED,), False, ended()),
        (STARTING, (FAILED,), False, ended(ended_at=CLAIM + 80, exit_code=3, reason="failed")),
        (STARTING, (), True, NEVER),
        (STARTING, (PENDING,), True, NEVER),
        (STARTING, (UNKNOWN,), False, LOST),
        (started_attempt(), (RUNNING,), False, None),
        (started_attempt(), (SUCCEEDED,), False, ended()),
        (started_attempt(), (UNKNOWN,), False, LOST),
        (
            started_attempt(),
            (DEAD,),
            False,
            ended(ended_at=CLAIM + 60, exit_code=None, reason="node_lost", detail="pod 0: node_lost"),
        ),
        (STARTING, (PULLING,), False, PULLING_TOLD),
        (an_attempt(detail="pod 0: ImagePullBackOff"), (PULLING,), False, None),
        (an_attempt(detail="pod 0: ContainerCreating"), (PULLING,), False, PULLING_TOLD),
        (started_attempt(), (PULLING,), False, None),
        (
            started_attempt(),
            (GREEDY,),
            False,
            ended(ended_at=CLAIM + 80, exit_code=137, reason="failed", detail="pod 0: oom_killed"),
        ),
        (STOPPING, (RUNNING,), True, None),
        (STOPPING, (STOPPED,), True, ended(ended_at=CLAIM + 70, exit_code=143, reason="stopped")),
        (STOPPING, (SUCCEEDED,), True, ended()),
        (STOPPING, (FAILED,), True, ended(ended_at=CLAIM + 80, exit_code=3, reason="failed")),
        (STOPPING, (UNKNOWN,), True, LOST),
        (GONE_ON, (), True, NEVER),
        (GONE_ON, (RUNNING,), False, STARTED),
        (LOST_BEFORE, (UNKNOWN,), False, None),
        (LOST_BEFORE, (RUNNING,), False, None),
        (LOST_BEFORE, (DEAD,), False, FreedItem(job_id="job-1", attempt=1, ended_at=DEAD.ended_ms)),
        (started_attempt(state=JobState.ENDED, capacity_held=False), (DEAD,), False, None),
    ],
)
def test_report_follows_state_and_pods(
    attempt: AttemptObject, pods: tuple[PodStatus, ...], suspended: bool, report: object
) -> None:
    view = a_view(shown(attempt, *pods, suspended=suspended))
    assert report_of(attempt, view, MARGIN) == report


GANG = an_attempt(pods=TWO_PODS)
OTHER = a_pod(1, "n1", started_ms=CLAIM + 40)
OTHER_DONE = replace(OTHER, phase=PodPhase.SUCCEEDED, ended_ms=CLAIM + 95, exit_code=0)
OTHER_KILLED = replace(OTHER, phase=PodPhase.FAILED, ended_ms=CLAIM + 80, exit_code=137, reason="gang_failed")


@pytest.mark.parametrize(
    ("pods", "report"),
    [
        ((RUNNING,), STARTED.model_copy(update={"last_started_at": None})),
        ((RUNNING, a_pod(1, "n1", PodPhase.PENDING)), STARTED.model_copy(update={"last_started_at": None})),
        ((RUNNING, OTHER), STARTED.model_copy(update={"last_started_at": CLAIM + 40})),
        ((SUCCEEDED, OTHER), STARTED.model_copy(update={"last_started_at": CLAIM + 40})),
        ((SUCCEEDED, OTHER_DONE), ended(last_started_at=CLAIM + 40, ended_at=CLAIM + 95)),
        (
            (FAILED, OTHER_KILLED),
            ended(last_started_at=CLAIM + 40, ended_at=CLAIM + 80, exit_code=3, reason="failed"),
        ),
        (
            (SUCCEEDED, replace(OTHER_KILLED, reason="failed", exit_code=9)),
            ended(last_started_at=CLAIM + 40, exit_code=9, reason="failed"),
        ),
        ((UNKNOWN, OTHER), LOST.model_copy(update={"last_started_at": CLAIM + 40})),
    ],
)
def test_gang_starts_with_its_last_pod_and_ends_with_its_last_pod(
    pods: tuple[PodStatus, ...], report: object
) -> None:
    assert report_of(GANG, a_view(shown(GANG, *pods)), MARGIN) == report


def test_half_started_gang_that_was_stopped_has_no_last_start() -> None:
    stopping = GANG.model_copy(update={"state": JobState.STOPPING, "stop": STOP})
    pods = (STOPPED, a_pod(1, "n1", PodPhase.PENDING))
    report = report_of(stopping, a_view(shown(stopping, *pods, suspended=True)), MARGIN)
    assert report == ended(last_started_at=None, ended_at=CLAIM + 70, exit_code=143, reason="stopped")


def test_lost_attempt_is_never_seen_before_it_started() -> None:
    early = replace(UNKNOWN, last_seen_ms=CLAIM)
    report = report_of(STARTING, a_view(shown(STARTING, early)), MARGIN)
    assert isinstance(report, LostItem)
    assert report.last_seen_at == CLAIM + 10


def test_start_answered_with_a_tombstone_never_ran() -> None:
    assert report_of(STARTING, a_view(), MARGIN, tombstone=True) == NEVER


def test_nothing_is_concluded_from_an_incomplete_view() -> None:
    view = ClusterView("sim")
    view.take(Observation(NOW, False, (), (), None), NOW)
    assert sight(started_attempt(), view, MARGIN) is Sighting.UNSEEN
    assert report_of(started_attempt(), view, MARGIN) is None


@pytest.mark.parametrize(
    ("late_ms", "sighting"),
    [(0, Sighting.UNSEEN), (MARGIN, Sighting.UNSEEN), (MARGIN + 1, Sighting.VANISHED)],
)
def test_running_object_has_vanished_only_if_the_view_is_surely_younger(
    late_ms: int, sighting: Sighting
) -> None:
    view = a_view(through_ms=CLAIM + 10 + late_ms)
    assert sight(started_attempt(), view, MARGIN) is sighting


def test_vanished_object_ended_at_the_first_look_without_it() -> None:
    view = a_view(gone=("job-1-1",), through_ms=CLAIM + 500)
    view.take(Observation(NOW, False, (), (), None), NOW)
    report = report_of(started_attempt(), view, MARGIN)
    assert report == ended(ended_at=CLAIM + 500, exit_code=None, reason="node_lost")


def test_vanished_object_frees_a_lost_attempt() -> None:
    assert report_of(LOST_BEFORE, a_view(), MARGIN) == FreedItem(job_id="job-1", attempt=1)


def test_pods_of_a_foreign_object_are_not_the_attempts() -> None:
    foreign = replace(shown(STARTING, RUNNING), spec_hash="another")
    assert report_of(STARTING, a_view(foreign), MARGIN) is None
    stopped = replace(foreign, suspended=True, pods=(STOPPED,))
    assert report_of(GONE_ON, a_view(stopped), MARGIN) == NEVER
