"""What a cluster shows: starts, ends, losses, the watermark, charges and refunds; both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quota.audit.tables import audit, findings
from quota.dispatch.tables import streams
from quota.errors import NotFound
from quota.fleet import service as fleet
from quota.fleet.tables import clusters, node_capacity, nodes
from quota.ledger.tables import slices, transfers
from quota.schemas.fleet import NewCluster
from quota.schemas.jobs import Attempt, Job
from quota.schemas.scheduling import (
    FindingItem,
    FreedItem,
    ItemResult,
    JobState,
    PendingItem,
    ReportReply,
    StopReason,
)
from tests.builders import (
    GPU_HOUR_US,
    HOUR_MS,
    MINUTE_MS,
    OPERATOR,
    START_MS,
    Hub,
    a_hub,
    ended,
    freed,
    lost,
    node_reports,
    started,
)
from tests.property.ledger.ledger_checks import occupied_gpu_us, violations

SECOND_US = 1_000_000
"""One second on one H100."""


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


# --- started ---------------------------------------------------------------------------------------


def test_a_gang_runs_when_its_last_container_started(hub: Hub) -> None:
    job = _placed(hub, gpus_per_pod=2, pods=2)
    hub.clock.advance(5000)
    assert _outcome(hub.report(started(job, hub.now))) == "accepted"
    assert hub.job(job.id).state is JobState.STARTING
    assert _outcome(hub.report(started(job, hub.now))) == "unchanged"
    hub.clock.advance(7000)
    hub.report(started(job, START_MS + 5000, hub.now))
    row = hub.attempt(job.id)
    assert (row.state, row.first_started_at_ms, row.last_started_at_ms) == (
        "running",
        START_MS + 5000,
        hub.now,
    )
    assert _outcome(hub.report(started(job, hub.now + 1, hub.now + 1))) == "unchanged"
    assert hub.attempt(job.id) == row


def test_time_before_the_last_container_runs_is_the_platforms(hub: Hub) -> None:
    job = _placed(hub, gpus_per_pod=2, pods=2, walltime_s=600)
    hub.report(started(job, START_MS))
    hub.clock.advance(50_000)
    hub.report(started(job, START_MS, hub.now))
    hub.clock.advance(30_000)
    hub.finish(job)
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.platform_gpu_us) == (4 * 30 * SECOND_US, 4 * 50 * SECOND_US)


# --- ended -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "exit_code", "end_reason"),
    [
        ("completed", 0, "succeeded"),
        ("completed", 3, "failed"),
        ("failed", 1, "failed"),
        ("stopped", 143, "failed"),
    ],
)
def test_an_end_settles_frees_and_ends_the_job(
    hub: Hub, reason: str, exit_code: int, end_reason: str
) -> None:
    job = _running(hub, gpus_per_pod=2, walltime_s=7200)
    hub.clock.advance(90_001)
    hub.report(ended(job, hub.now, reason=reason, exit_code=exit_code))
    detail = hub.job(job.id)
    assert (detail.state, detail.end_reason, detail.ended_at) == (JobState.ENDED, end_reason, hub.now)
    assert detail.charged_gpu_us == 2 * 90_001_000
    attempt = detail.attempts[0]
    assert attempt.hold_resolved
    assert attempt.released_gpu_us == 4 * GPU_HOUR_US - 2 * 90_001_000
    assert attempt.exit_code == exit_code
    assert hub.row(node_capacity, node="n0").used == 0
    assert hub.row(audit, action="attempt.end").subject == job.id


def test_a_start_and_an_end_in_one_report_are_one_run(hub: Hub) -> None:
    job = _placed(hub)
    hub.clock.advance(60_000)
    begin = START_MS + 10_000
    reply = hub.report(started(job, begin, begin), ended(job, hub.now, first=begin, last=begin), freed(job))
    assert [result.outcome for result in reply.results] == ["accepted", "accepted", "unchanged"]
    assert hub.job(job.id).charged_gpu_us == 50 * SECOND_US


def test_an_end_alone_carries_the_whole_run(hub: Hub) -> None:
    job = _placed(hub)
    hub.clock.advance(60_000)
    hub.report(ended(job, hub.now, first=START_MS + 1000, last=START_MS + 3000))
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.platform_gpu_us) == (57 * SECOND_US, 2 * SECOND_US)


def test_an_end_reported_again_changes_nothing(hub: Hub) -> None:
    job = _running(hub)
    hub.clock.advance(60_000)
    hub.finish(job)
    before = hub.contents(streams)
    hub.clock.advance(60_000)
    reply = hub.report(ended(job, hub.now), lost(job, hub.now), freed(job), started(job, hub.now), through=0)
    assert [result.outcome for result in reply.results] == ["unchanged"] * 4
    assert hub.contents(streams) == before


def test_what_never_started_costs_nothing_and_waits_again(hub: Hub) -> None:
    job = _placed(hub, gpus_per_pod=8)
    hub.clock.advance(60_000)
    hub.report(ended(job, hub.now, reason="never_started", exit_code=None))
    detail = hub.job(job.id)
    assert (detail.state, detail.attempt, detail.charged_gpu_us) == (JobState.QUEUED, 1, 0)
    assert detail.attempts[0].released_gpu_us == 8 * GPU_HOUR_US
    assert hub.rows(slices) == []
    assert hub.row(node_capacity, node="n0").used == 0


def test_an_incomplete_gang_that_was_abandoned_costs_its_grant_nothing(hub: Hub) -> None:
    job = _placed(hub, gpus_per_pod=2, pods=2)
    hub.report(started(job, START_MS))
    hub.clock.advance(10 * MINUTE_MS)
    hub.stop(job, StopReason.ABANDONED)
    hub.clock.advance(5000)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=None))
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.platform_gpu_us) == (0, 4 * 605 * SECOND_US)
    assert (attempt.end_reason, hub.job(job.id).state) == ("abandoned", JobState.QUEUED)


def test_abandoned_starts_pause_longer_and_the_third_ends_the_job(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    for attempt, pause_s in ((1, 10), (2, 20)):
        hub.start(job, grant)
        hub.report(ended(job, hub.now, attempt=attempt, reason="never_started", exit_code=None))
        refusal = hub.try_start(job, grant)
        assert refusal.code == "wrong_state"
        hub.clock.advance(pause_s * 1000 - 1)
        assert hub.try_start(job, grant).code == "wrong_state"
        hub.clock.advance(1)
    hub.start(job, grant)
    hub.report(ended(job, hub.now, attempt=3, reason="never_started", exit_code=None))
    detail = hub.job(job.id)
    assert (detail.state, detail.end_reason) == (JobState.ENDED, "abandoned")
    assert [attempt.end_reason for attempt in detail.attempts] == ["abandoned"] * 3
    assert hub.grant(grant.id).held_gpu_us == 0


def test_a_pause_is_wall_time_under_a_faster_clock(hub: Hub) -> None:
    job = _placed(hub)
    hub.report(ended(job, hub.now, reason="never_started", exit_code=None), clock_speed=60)
    assert hub.snapshot()[1][("job", job.id)].job.not_before == hub.now + 600_000


def test_a_restartable_job_waits_again_after_a_preemption(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(restartable=True, gpus_per_pod=2)
    hub.run(job, grant)
    hub.clock.advance(60_000)
    hub.stop(job, StopReason.PREEMPTED)
    hub.clock.advance(10_000)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    detail = hub.job(job.id)
    assert (detail.state, detail.end_reason, detail.ended_at) == (JobState.QUEUED, None, None)
    assert detail.attempts[0].end_reason == "preempted"
    assert hub.snapshot()[1][("job", job.id)].job.preempted_at == (hub.now,)
    assert hub.start(job, grant) == 2
    assert hub.attempt(job.id, 2).hold_id == f"{job.id}:2:hold"


@pytest.mark.parametrize(
    ("reason", "end_reason"),
    [
        (StopReason.TIME_LIMIT, "time_limit"),
        (StopReason.CANCELLED, "cancelled"),
    ],
)
def test_a_job_that_may_not_restart_ends_with_its_stops_reason(
    hub: Hub, reason: StopReason, end_reason: str
) -> None:
    job = _running(hub)
    hub.clock.advance(job.walltime_s * 1000)
    hub.stop(job, reason)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    assert hub.job(job.id).end_reason == end_reason


def test_a_job_at_its_time_limit_does_not_restart_because_its_node_went_away(hub: Hub) -> None:
    """Succeeded, else cancelled, else the stop's reason, else lost."""
    job = _running(hub, restartable=True, walltime_s=600)
    hub.clock.advance(600_000)
    hub.stop(job, StopReason.TIME_LIMIT)
    hub.clock.advance(1000)
    hub.report(lost(job, hub.now))
    detail = hub.job(job.id)
    assert (detail.state, detail.end_reason) == (JobState.ENDED, "time_limit")


# --- the end of walltime, stops and graces -----------------------------------------------------------


def test_the_grant_pays_no_longer_than_the_held_time(hub: Hub) -> None:
    job = _running(hub, walltime_s=600, grace_s=30)
    hub.clock.advance(600_000)
    hub.stop(job, StopReason.TIME_LIMIT)
    hub.clock.advance(25_000)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.platform_gpu_us) == (600 * SECOND_US, 25 * SECOND_US)
    assert attempt.released_gpu_us == 0


def test_after_a_stop_the_grant_pays_for_its_grace_at_most(hub: Hub) -> None:
    job = _running(hub, walltime_s=3600, grace_s=30)
    hub.clock.advance(100_000)
    hub.stop(job, StopReason.CANCELLED, grace_ms=30_000)
    hub.clock.advance(95_000)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.platform_gpu_us) == (130 * SECOND_US, 65 * SECOND_US)


def test_one_hour_may_hold_platform_charged_and_platform_again(hub: Hub) -> None:
    job = _placed(hub, gpus_per_pod=1, pods=2, walltime_s=600, grace_s=0)
    hub.report(started(job, START_MS))
    hub.clock.advance(60_000)
    hub.report(started(job, START_MS, hub.now))
    hub.clock.advance(10 * MINUTE_MS)
    hub.stop(job, StopReason.TIME_LIMIT, grace_ms=0)
    hub.clock.advance(60_000)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    parts = sorted(hub.rows(slices), key=lambda row: row.starts_at_ms)
    assert [(row.payer, row.ends_at_ms - row.starts_at_ms) for row in parts] == [
        ("platform", 60_000),
        ("grant", 600_000),
        ("platform", 60_000),
    ]


# --- the watermark -----------------------------------------------------------------------------------


def test_no_slice_closes_beyond_the_watermark(hub: Hub) -> None:
    job = _running(hub, walltime_s=5 * 3600)
    hub.clock.advance(2 * HOUR_MS + 30 * MINUTE_MS)
    hub.report(through=START_MS + HOUR_MS - 1)
    assert hub.rows(slices) == []
    hub.report(through=START_MS + HOUR_MS)
    assert [row.ends_at_ms for row in hub.rows(slices)] == [START_MS + HOUR_MS]
    hub.report()
    assert max(row.ends_at_ms for row in hub.rows(slices)) == START_MS + 2 * HOUR_MS
    assert _attempt(hub, job).settled_gpu_us == 2 * GPU_HOUR_US


def test_an_end_beyond_the_watermark_settles_when_it_is_passed(hub: Hub) -> None:
    job = _running(hub)
    hub.clock.advance(60_000)
    hub.report(ended(job, hub.now), through=hub.now - 1)
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.hold_resolved) == (0, False)
    assert hub.row(node_capacity, node="n0").used == 0, "capacity is free at once"
    hub.clock.advance(1)
    hub.report(through=hub.now - 1)
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.hold_resolved) == (60 * SECOND_US, True)


def test_a_watermark_from_the_future_counts_as_now(hub: Hub) -> None:
    _running(hub, walltime_s=5 * 3600)
    hub.clock.advance(MINUTE_MS)
    hub.report(through=hub.now + 10 * HOUR_MS)
    assert hub.row(clusters).observed_through_ms == hub.now
    assert hub.rows(slices) == []


def test_a_watermark_only_grows(hub: Hub) -> None:
    hub.clock.advance(HOUR_MS)
    hub.report()
    hub.report(through=START_MS)
    assert hub.row(clusters).observed_through_ms == START_MS + HOUR_MS


def test_each_cluster_has_its_own_watermark(hub: Hub) -> None:
    hub.database.write(lambda tx: fleet.create_cluster(tx, OPERATOR, NewCluster(id="moon", kind="simulated")))
    _running(hub, walltime_s=5 * 3600)
    hub.clock.advance(2 * HOUR_MS)
    hub.report(cluster="moon")
    assert hub.rows(slices) == []


# --- later truth -------------------------------------------------------------------------------------


def test_a_loss_before_what_was_settled_is_refunded_as_a_correction(hub: Hub) -> None:
    job = _running(hub, gpus_per_pod=4, walltime_s=5 * 3600, checkpoint_interval_s=60)
    hub.clock.advance(3 * HOUR_MS)
    hub.report()
    assert _attempt(hub, job).settled_gpu_us == 12 * GPU_HOUR_US
    seen = START_MS + 90 * MINUTE_MS
    hub.report(lost(job, seen))
    refunds = [
        (row.refund_kind, row.starts_at_ms, row.ends_at_ms) for row in hub.rows(transfers, type="refund")
    ]
    assert sorted(refunds) == [
        ("correction", seen, START_MS + 2 * HOUR_MS),
        ("correction", START_MS + 2 * HOUR_MS, START_MS + 3 * HOUR_MS),
    ]
    attempt = _attempt(hub, job)
    assert attempt.settled_gpu_us - attempt.refunded_gpu_us == 4 * 90 * MINUTE_MS * 1000
    assert attempt.hold_resolved
    assert attempt.settled_gpu_us + attempt.released_gpu_us == attempt.held_gpu_us
    assert hub.job(job.id).charged_gpu_us == 6 * GPU_HOUR_US
    with hub.database.read() as connection:
        assert occupied_gpu_us(connection, job.id, 1) == 4 * 90 * MINUTE_MS * 1000


def test_platform_time_that_never_was_is_taken_back_from_the_platform(hub: Hub) -> None:
    job = _placed(hub, gpus_per_pod=2, pods=2, walltime_s=600)
    hub.report(started(job, START_MS))
    hub.clock.advance(2 * HOUR_MS)
    hub.report()
    assert _attempt(hub, job).platform_gpu_us == 8 * GPU_HOUR_US
    hub.report(lost(job, START_MS + 30 * MINUTE_MS))
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.refunded_gpu_us, attempt.platform_gpu_us) == (
        0,
        0,
        2 * GPU_HOUR_US,
    )


def test_lost_work_is_the_platforms_since_the_last_checkpoint(hub: Hub) -> None:
    job = _running(hub, gpus_per_pod=2, walltime_s=3600, checkpoint_interval_s=600)
    hub.clock.advance(25 * MINUTE_MS + 17)
    hub.report(lost(job, hub.now))
    attempt = _attempt(hub, job)
    since = 2 * (5 * MINUTE_MS + 17) * 1000
    assert (attempt.refunded_gpu_us, attempt.platform_gpu_us) == (since, since)
    assert hub.job(job.id).charged_gpu_us == 2 * 20 * MINUTE_MS * 1000


def test_work_lost_at_a_checkpoints_very_moment_is_nothing(hub: Hub) -> None:
    job = _running(hub, walltime_s=3600, checkpoint_interval_s=600)
    hub.clock.advance(20 * MINUTE_MS)
    hub.report(ended(job, hub.now, reason="node_lost", exit_code=None))
    assert _attempt(hub, job).refunded_gpu_us == 0
    assert hub.job(job.id).charged_gpu_us == 20 * MINUTE_MS * 1000


def test_at_most_four_hours_of_lost_work_are_given_back(hub: Hub) -> None:
    job = _running(hub, gpus_per_pod=2, walltime_s=10 * 3600)
    hub.clock.advance(6 * HOUR_MS)
    hub.report()
    hub.clock.advance(30 * MINUTE_MS)
    hub.report(lost(job, hub.now))
    attempt = _attempt(hub, job)
    assert attempt.refunded_gpu_us == attempt.platform_gpu_us == 2 * 4 * GPU_HOUR_US
    assert hub.job(job.id).charged_gpu_us == 2 * 2.5 * GPU_HOUR_US


def test_four_hours_are_the_limit_of_a_job_over_its_attempts(hub: Hub) -> None:
    grant = hub.award(hours="1000")
    job = hub.submit(restartable=True, walltime_s=5 * 3600)
    for attempt in (1, 2):
        hub.run(job, grant)
        hub.clock.advance(3 * HOUR_MS)
        hub.report(lost(job, hub.now, attempt=attempt), freed(job, attempt=attempt))
    given = [attempt.refunded_gpu_us for attempt in hub.job(job.id).attempts]
    assert given == [3 * GPU_HOUR_US, GPU_HOUR_US]


def test_four_hours_are_the_limit_also_when_two_attempts_settle_at_once(hub: Hub) -> None:
    grant = hub.award(hours="1000")
    job = hub.submit(restartable=True, walltime_s=5 * 3600)
    for attempt in (1, 2):
        hub.start(job, grant)
        hub.report(started(job, hub.now, hub.now, attempt=attempt), through=START_MS)
        hub.clock.advance(3 * HOUR_MS)
        hub.report(lost(job, hub.now, attempt=attempt), freed(job, attempt=attempt), through=START_MS)
    assert hub.rows(slices) == []
    hub.report()
    given = [attempt.refunded_gpu_us for attempt in hub.job(job.id).attempts]
    assert sum(given) == 4 * GPU_HOUR_US


def test_a_lost_attempt_keeps_its_capacity_until_it_is_freed(hub: Hub) -> None:
    grant = hub.award(hours="1000")
    job = hub.submit(restartable=True, gpus_per_pod=8)
    hub.run(job, grant)
    hub.clock.advance(MINUTE_MS)
    hub.report(lost(job, hub.now))
    assert hub.job(job.id).state is JobState.QUEUED
    assert hub.row(node_capacity, node="n0").used == 8
    assert ("attempt", f"{job.id}-1") in hub.snapshot()[1]
    assert hub.try_start(job, grant).code == "capacity_taken"
    assert hub.start(job, grant, "n1") == 2
    assert _outcome(hub.report(freed(job))) == "accepted"
    assert hub.row(node_capacity, node="n0").used == 0
    assert ("attempt", f"{job.id}-1") not in hub.snapshot()[1]
    assert _outcome(hub.report(freed(job))) == "unchanged"
    assert hub.job(job.id).state is JobState.STARTING, "the second attempt goes on"


def test_a_lost_attempt_whose_end_is_seen_later_is_freed_by_it(hub: Hub) -> None:
    job = _running(hub)
    hub.clock.advance(MINUTE_MS)
    hub.report(lost(job, hub.now))
    charged = hub.job(job.id).charged_gpu_us
    hub.clock.advance(MINUTE_MS)
    assert _outcome(hub.report(ended(job, hub.now))) == "accepted"
    assert hub.row(node_capacity, node="n0").used == 0
    assert (hub.job(job.id).end_reason, hub.job(job.id).charged_gpu_us) == ("node_failed", charged)


def test_what_the_cluster_says_of_a_slow_start_is_shown_and_forgotten_when_it_starts(hub: Hub) -> None:
    job = _placed(hub)
    told = PendingItem(job_id=job.id, attempt=1, detail="pod 0: ImagePullBackOff")
    assert _outcome(hub.report(told)) == "accepted"
    assert _attempt(hub, job).detail == "pod 0: ImagePullBackOff"
    assert _outcome(hub.report(told)) == "unchanged"
    hub.report(started(job, hub.now, hub.now))
    hub.clock.advance(MINUTE_MS)
    assert _outcome(hub.report(told)) == "unchanged"
    hub.report(ended(job, hub.now))
    assert _attempt(hub, job).detail is None


def test_what_the_cluster_said_of_an_attempt_that_never_started_stays(hub: Hub) -> None:
    job = _placed(hub)
    hub.report(PendingItem(job_id=job.id, attempt=1, detail="pod 0: ImagePullBackOff"))
    hub.stop(job, StopReason.ABANDONED)
    hub.report(ended(job, hub.now, exit_code=None, reason="never_started"))
    assert _attempt(hub, job).detail == "pod 0: ImagePullBackOff"


def test_what_the_cluster_says_of_an_end_is_shown(hub: Hub) -> None:
    job = _running(hub)
    hub.clock.advance(MINUTE_MS)
    said = ended(job, hub.now, exit_code=137, reason="failed")
    hub.report(said.model_copy(update={"detail": "pod 0: oom_killed"}))
    assert _attempt(hub, job).detail == "pod 0: oom_killed"


def test_the_pods_of_a_running_attempt_cannot_be_freed(hub: Hub) -> None:
    job = _running(hub)
    result = _result(hub.report(freed(job)))
    assert (result.outcome, result.code) == ("refused", "wrong_state")
    assert hub.row(node_capacity, node="n0").used == 1
    assert hub.row(findings).subject == f"{job.id}-1"


@pytest.mark.parametrize("back_min", [1, 20, 45, 89, 90, 200])
@pytest.mark.parametrize("settled", [True, False])
def test_a_true_end_before_a_loss_corrects_grant_and_platform(hub: Hub, back_min: int, settled: bool) -> None:
    """Lost at 01:30 with a checkpoint at 01:20; later the pods turn out to have ended before."""
    job = _running(hub, gpus_per_pod=2, walltime_s=5 * 3600, checkpoint_interval_s=2400)
    hub.clock.advance(90 * MINUTE_MS)
    hub.report(lost(job, hub.now), through=None if settled else START_MS)
    truth = max(START_MS, hub.now - back_min * MINUTE_MS)
    hub.clock.advance(10 * MINUTE_MS)
    hub.report(FreedItem(job_id=job.id, attempt=1, ended_at=hub.now - 10 * MINUTE_MS - back_min * MINUTE_MS))
    hub.report()
    attempt = _attempt(hub, job)
    occupied = 2 * (truth - START_MS) * 1000
    assert attempt.settled_gpu_us - attempt.refunded_gpu_us + attempt.platform_gpu_us == occupied
    assert attempt.hold_resolved
    assert hub.row(node_capacity, node="n0").used == 0
    with hub.database.read() as connection:
        assert occupied_gpu_us(connection, job.id, 1) == occupied


@pytest.mark.parametrize("settled", [True, False])
def test_a_true_end_after_a_loss_is_the_platforms_time(hub: Hub, settled: bool) -> None:
    job = _running(hub, gpus_per_pod=2, walltime_s=5 * 3600, checkpoint_interval_s=60)
    hub.clock.advance(50 * MINUTE_MS)
    hub.report(lost(job, hub.now), through=None if settled else START_MS)
    charged = hub.job(job.id).charged_gpu_us
    hub.clock.advance(3 * HOUR_MS)
    hub.report(ended(job, hub.now - 5 * MINUTE_MS), through=None if settled else START_MS)
    if settled:
        assert hub.job(job.id).charged_gpu_us == charged
    hub.clock.advance(MINUTE_MS)
    hub.report()
    attempt = _attempt(hub, job)
    assert hub.job(job.id).charged_gpu_us == 2 * 50 * MINUTE_MS * 1000
    assert attempt.platform_gpu_us == 2 * (3 * HOUR_MS - 5 * MINUTE_MS) * 1000
    before = hub.contents(streams, clusters)
    hub.report(ended(job, hub.now), freed(job))
    assert hub.contents(streams, clusters) == before
    with hub.database.read() as connection:
        assert occupied_gpu_us(connection, job.id, 1) == 2 * (225 * MINUTE_MS) * 1000


def test_work_lost_to_a_preemption_is_the_platforms(hub: Hub) -> None:
    job = _running(hub, gpus_per_pod=2, walltime_s=10 * 3600, restartable=True, checkpoint_interval_s=3600)
    hub.clock.advance(90 * MINUTE_MS)
    hub.stop(job, StopReason.PREEMPTED)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    assert hub.job(job.id).charged_gpu_us == 2 * GPU_HOUR_US
    assert _attempt(hub, job).platform_gpu_us == GPU_HOUR_US
    assert {row.refund_kind for row in hub.rows(transfers, type="refund")} == {"preempted"}


def test_a_job_that_was_cancelled_pays_also_when_its_node_goes_away(hub: Hub) -> None:
    job = _running(hub)
    hub.clock.advance(10 * MINUTE_MS)
    hub.cancel(job.id)
    hub.stop(job)
    hub.report(lost(job, hub.now))
    assert hub.job(job.id).charged_gpu_us == 600 * SECOND_US
    assert hub.rows(transfers, type="refund") == []


def test_a_lost_start_costs_nothing(hub: Hub) -> None:
    job = _placed(hub, restartable=True)
    hub.clock.advance(MINUTE_MS)
    hub.report(lost(job, hub.now))
    detail = hub.job(job.id)
    assert (detail.state, detail.charged_gpu_us) == (JobState.QUEUED, 0)
    assert detail.attempts[0].hold_resolved


# --- impossible times --------------------------------------------------------------------------------


def test_a_start_long_before_its_claim_is_a_finding_and_counts_from_the_observation(hub: Hub) -> None:
    hub.clock.advance(HOUR_MS)
    job = _placed(hub)
    claimed = hub.now
    hub.clock.advance(30_000)
    hub.report(started(job, claimed - 2001, claimed - 2001), through=claimed + 10_000)
    row = hub.attempt(job.id)
    assert (row.first_started_at_ms, row.last_started_at_ms) == (claimed + 10_000, claimed + 10_000)
    assert {finding.code for finding in hub.rows(findings)} == {"impossible_time"}


def test_two_seconds_of_a_clusters_clock_are_tolerated(hub: Hub) -> None:
    hub.clock.advance(HOUR_MS)
    job = _placed(hub)
    hub.report(started(job, hub.now - 2000, hub.now + 2000))
    row = hub.attempt(job.id)
    assert (row.first_started_at_ms, row.last_started_at_ms) == (hub.now - 2000, hub.now + 2000)
    assert hub.rows(findings) == []


def test_an_end_in_the_future_is_a_finding_and_ends_at_the_observation(hub: Hub) -> None:
    job = _running(hub, walltime_s=7200)
    hub.clock.advance(MINUTE_MS)
    hub.report(ended(job, hub.now + HOUR_MS), through=hub.now - 1000)
    assert hub.attempt(job.id).ended_at_ms == hub.now - 1000
    assert len(hub.rows(findings)) == 1
    hub.report()
    assert hub.job(job.id).charged_gpu_us == 59 * SECOND_US


def test_an_end_before_the_start_is_a_finding_and_costs_nothing(hub: Hub) -> None:
    hub.award()
    job = hub.submit()
    hub.start(job, hub.award())
    hub.clock.advance(MINUTE_MS)
    hub.report(started(job, hub.now, hub.now))
    hub.report(ended(job, START_MS + 1000))
    detail = hub.job(job.id)
    assert (detail.ended_at, detail.charged_gpu_us) == (hub.now, 0)
    assert len(hub.rows(findings)) == 1


def test_a_last_start_before_the_first_is_a_finding(hub: Hub) -> None:
    job = _placed(hub, pods=2)
    hub.clock.advance(MINUTE_MS)
    hub.report(started(job, hub.now, hub.now - 5000))
    row = hub.attempt(job.id)
    assert (row.first_started_at_ms, row.last_started_at_ms) == (hub.now, hub.now)
    assert len(hub.rows(findings)) == 1


def test_an_attempt_that_nobody_started_is_a_finding(hub: Hub) -> None:
    job = _placed(hub)
    nobody = job.model_copy(update={"id": "job-nobody"})
    reply = hub.report(started(nobody, hub.now), ended(job, hub.now, attempt=2), freed(nobody, attempt=7))
    assert [(result.outcome, result.code) for result in reply.results] == [("refused", "not_found")] * 3
    assert {row.subject for row in hub.rows(findings)} == {"job-nobody-1", f"{job.id}-2", "job-nobody-7"}


def test_another_cluster_cannot_end_an_attempt(hub: Hub) -> None:
    hub.database.write(lambda tx: fleet.create_cluster(tx, OPERATOR, NewCluster(id="moon", kind="simulated")))
    job = _running(hub)
    result = _result(hub.report(ended(job, hub.now), cluster="moon"))
    assert (result.outcome, result.code) == ("refused", "not_found")
    assert hub.job(job.id).state is JobState.RUNNING


def test_a_reported_finding_is_kept_with_its_words(hub: Hub) -> None:
    hub.report(FindingItem(job_id="job-x", attempt=0, code="foreign_object", detail="uid 7, not 8"))
    row = hub.row(findings)
    assert (row.code, row.subject, row.detail) == ("foreign_object", "job-x-0", "uid 7, not 8")


def test_a_report_of_an_unknown_cluster_is_refused(hub: Hub) -> None:
    with pytest.raises(NotFound):
        hub.report(cluster="mars")
    assert {row.stream for row in hub.rows(streams)} == {"cluster:sim"}


# --- nodes -------------------------------------------------------------------------------------------


def test_a_total_lowered_below_what_is_used_is_a_finding_not_an_error(hub: Hub) -> None:
    job = _running(hub, gpus_per_pod=6)
    hub.report(nodes=node_reports({"n0": {"h100": 4}, "n1": {"h100": 8}}))
    row = hub.row(node_capacity, node="n0")
    assert (row.total, row.used) == (4, 6)
    finding = hub.row(findings)
    assert (finding.code, finding.subject) == ("capacity_lowered", "sim/n0")
    assert "total 4" in finding.detail
    hub.report(nodes=node_reports({"n0": {"h100": 4}, "n1": {"h100": 8}}))
    assert len(hub.rows(findings)) == 1, "the same news is no new finding"
    hub.finish(job)
    assert hub.row(node_capacity, node="n0").used == 0


def test_more_foreign_use_than_is_free_is_a_finding(hub: Hub) -> None:
    _running(hub, gpus_per_pod=6)
    hub.report(nodes=node_reports({"n0": {"h100": 8}}, foreign=3))
    assert hub.row(findings).code == "capacity_lowered"


def test_a_class_that_a_node_no_longer_has_counts_zero(hub: Hub) -> None:
    hub.report(nodes=node_reports({"n0": {"a100": 8}, "n1": {"h100": 8}, "a0": {"a100": 8}}))
    totals = {(row.node, row.gpu_class): row.total for row in hub.rows(node_capacity)}
    assert totals == {("n0", "h100"): 0, ("n0", "a100"): 8, ("n1", "h100"): 8, ("a0", "a100"): 8}


def test_nodes_left_out_close_and_open_again_when_named(hub: Hub) -> None:
    hub.report(nodes=node_reports({"n0": {"h100": 8}}))
    assert {row.node for row in hub.rows(nodes) if row.schedulable} == {"n0"}
    hub.report()
    hub.report(nodes=node_reports({"n0": {"h100": 8}, "n1": {"h100": 8}}))
    assert {row.node for row in hub.rows(nodes) if row.schedulable} == {"n0", "n1"}


def test_a_node_named_twice_in_one_report_is_refused_as_such(hub: Hub) -> None:
    twice = (*node_reports({"n7": {"h100": 8}}), *node_reports({"n7": {"h100": 4}}))
    with pytest.raises(ValueError, match="n7"):
        hub.report(nodes=twice)


# --- any life of one attempt ---------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_any_life_of_an_attempt_is_settled_to_the_millisecond(
    engine: str, request: pytest.FixtureRequest
) -> None:
    """Whatever the order of starts, stops, watermarks and the end: charge + platform = occupied time."""
    hub = a_hub(str(request.getfixturevalue(f"{engine}_url")), nodes={"n0": {"h100": 1000}})
    grant = hub.award(hours="90000")

    @settings(max_examples=40, deadline=None)
    @given(
        gap=st.integers(0, 9 * MINUTE_MS),
        walltime_s=st.integers(1, 4 * 3600),
        steps=st.lists(st.integers(1, 100 * MINUTE_MS), min_size=1, max_size=5),
        stop_after=st.none() | st.integers(0, 4),
        grace_s=st.integers(0, 120),
        lag=st.integers(0, HOUR_MS),
        gone=st.booleans(),
        back=st.integers(0, 3 * HOUR_MS),
        checkpoint=st.none() | st.integers(1, 3600),
    )
    def live(
        gap: int,
        walltime_s: int,
        steps: list[int],
        stop_after: int | None,
        grace_s: int,
        lag: int,
        gone: bool,
        back: int,
        checkpoint: int | None,
    ) -> None:
        job = hub.submit(
            gpus_per_pod=2, pods=2, walltime_s=walltime_s, grace_s=grace_s, checkpoint_interval_s=checkpoint
        )
        hub.start(job, grant)
        first = hub.now
        hub.report(started(job, first))
        last = hub.clock.advance(gap)
        hub.report(started(job, first, last))
        stop_at = None
        for number, step in enumerate(steps):
            hub.clock.advance(step)
            if number == stop_after:
                hub.stop(job, StopReason.CANCELLED, grace_ms=grace_s * 1000)
                stop_at = hub.attempt(job.id).stop_at_ms
            hub.report(through=hub.now - lag)
        end = max(last, hub.now - back) if gone else hub.now
        if gone:
            hub.report(lost(job, end), freed(job), through=hub.now - lag)
        else:
            hub.report(ended(job, end), through=hub.now - lag)
        hub.report()
        until = min(end, last + walltime_s * 1000, *([] if stop_at is None else [stop_at + grace_s * 1000]))
        charged = max(0, until - last) * 4000
        attempt = _attempt(hub, job)
        fault = sum(
            row.amount_gpu_us for row in hub.rows(transfers, job_id=job.id) if row.refund_kind == "fault"
        )
        occupied = (end - first) * 4000
        assert attempt.settled_gpu_us - attempt.refunded_gpu_us == charged - fault
        assert attempt.platform_gpu_us == occupied - charged + fault
        assert attempt.hold_resolved
        assert attempt.settled_gpu_us + attempt.released_gpu_us == 4000 * 1000 * walltime_s
        with hub.database.read() as connection:
            assert occupied_gpu_us(connection, job.id, 1) == occupied
            assert violations(connection) == []

    live()
    assert hub.grant(grant.id).held_gpu_us == 0
    assert hub.row(node_capacity).used == 0
    assert not hub.rows(findings)
    hub.close()


# --- helpers -------------------------------------------------------------------------------------------


def _placed(hub: Hub, **fields: object) -> Job:
    grant = hub.award(hours="1000")
    job = hub.submit(**fields)
    hub.start(job, grant)
    return job


def _running(hub: Hub, **fields: object) -> Job:
    job = _placed(hub, **fields)
    hub.report(started(job, hub.now, hub.now))
    return job


def _attempt(hub: Hub, job: Job, number: int = 1) -> Attempt:
    return hub.job(job.id).attempts[number - 1]


def _result(reply: ReportReply) -> ItemResult:
    assert len(reply.results) == 1
    return reply.results[0]


def _outcome(reply: ReportReply) -> str:
    return _result(reply).outcome
