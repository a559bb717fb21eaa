"""Stops for other jobs: who may be stopped, what is given back for it, and on what evidence; both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from quota.audit.tables import audit
from quota.dispatch.fair_share import put_fair_share
from quota.jobs.states import RESTARTS_LIMIT
from quota.ledger.tables import transfers
from quota.schemas.fair_share import PREEMPTIONS_PER_DAY, FairShare, FairSharePut, Preemption
from quota.schemas.jobs import Job
from quota.schemas.programs import Grant
from quota.schemas.scheduling import ItemResult, JobState, StopItem, StopReason
from tests.builders import DAY_MS, HOUR_MS, MINUTE_MS, OPERATOR, START_MS, Hub, a_hub, ended, lost

SECOND_US = 1_000_000


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


def _running(hub: Hub, **fields: Any) -> tuple[Job, Grant]:
    grant = hub.award(hours="1000")
    job = hub.submit(**({"restartable": True, "grace_s": 30, "walltime_s": 10 * 3600} | fields))
    hub.run(job, grant)
    return job, grant


def _preempt(
    hub: Hub, job: Job, for_job: str | None = None, *, attempt: int = 1, stop_at: int | None = None
) -> ItemResult:
    item = StopItem(
        job_id=job.id,
        attempt=attempt,
        reason=StopReason.PREEMPTED,
        stop_at=hub.now if stop_at is None else stop_at,
        grace_ms=30_000,
        for_job=for_job,
    )
    return hub.decide(item).results[0]


def _share(hub: Hub, preemption: Preemption | None) -> None:
    body = FairSharePut(fair_share=FairShare(preemption=preemption), reason="a test")
    hub.database.write(lambda tx: put_fair_share(tx, OPERATOR, body))


def _refund(hub: Hub) -> Any:
    return hub.row(transfers, type="refund")


# --- who may be stopped -----------------------------------------------------------------------------


def test_a_preemption_is_told_ahead_and_names_whom_the_room_is_for(hub: Hub) -> None:
    job, _ = _running(hub)
    gang = hub.submit(gpus_per_pod=8)
    hub.clock.advance(MINUTE_MS)
    assert _preempt(hub, job, gang.id, stop_at=hub.now + 10 * MINUTE_MS).outcome == "accepted"
    shown = hub.snapshot()[1][("attempt", f"{job.id}-1")].attempt
    assert (shown.state, shown.stop.reason, shown.stop.for_job) == ("stopping", "preempted", gang.id)
    assert shown.stop.stop_at == START_MS + 11 * MINUTE_MS
    assert _preempt(hub, job, gang.id).outcome == "unchanged", "saying it again is saying it once"
    (said,) = hub.rows(audit, action="attempt.stop")
    assert json.loads(said.detail)["checkpoint_ms"] == HOUR_MS


def test_who_would_not_come_again_is_not_stopped(hub: Hub) -> None:
    job, _ = _running(hub, restartable=False)
    assert _preempt(hub, job).code == "not_restartable"
    assert hub.job(job.id).state is JobState.RUNNING


def test_the_last_attempt_of_a_job_is_not_stopped(hub: Hub) -> None:
    job, grant = _running(hub)
    for number in range(1, RESTARTS_LIMIT):
        hub.report(lost(job, hub.now, attempt=number))
        hub.report(ended(job, hub.now, attempt=number))
        hub.run(job, grant)
    assert _preempt(hub, job, attempt=RESTARTS_LIMIT).code == "not_restartable"
    assert hub.job(job.id).state is JobState.RUNNING


def test_what_does_not_run_is_not_stopped_for_others(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(restartable=True)
    assert _preempt(hub, job).code == "not_found"
    hub.start(job, grant)
    assert _preempt(hub, job).code == "wrong_state"
    assert hub.job(job.id).state is JobState.STARTING


@pytest.mark.parametrize("other", ["cancelled", "running", "unknown", "itself"])
def test_nothing_is_stopped_for_a_job_that_does_not_wait(hub: Hub, other: str) -> None:
    job, grant = _running(hub)
    gang = hub.submit(gpus_per_pod=8)
    if other == "cancelled":
        hub.cancel(gang.id)
    if other == "running":
        hub.run(gang, grant, "n1")
    named = {"unknown": "job-nobody", "itself": job.id}.get(other, gang.id)
    assert _preempt(hub, job, named).code == "wrong_state"
    assert hub.job(job.id).state is JobState.RUNNING


def test_nobody_is_stopped_for_others_more_than_three_times_in_24_hours(hub: Hub) -> None:
    job, grant = _running(hub)
    for number in range(1, PREEMPTIONS_PER_DAY + 1):
        hub.clock.advance(HOUR_MS)
        assert _preempt(hub, job, attempt=number).outcome == "accepted"
        hub.report(ended(job, hub.now, attempt=number, reason="stopped", exit_code=143))
        hub.run(job, grant)
    hub.clock.advance(HOUR_MS)
    refused = _preempt(hub, job, attempt=4)
    assert (refused.outcome, refused.code) == ("refused", "preempted_too_often")
    assert refused.numbers == {"job_id": job.id, "times": 3, "most": 3}
    assert hub.job(job.id).state is JobState.RUNNING
    hub.clock.set(START_MS + HOUR_MS + DAY_MS)
    assert _preempt(hub, job, attempt=4).outcome == "accepted", "the first of them is 24 hours old"


def test_only_what_was_stopped_for_others_counts(hub: Hub) -> None:
    job, grant = _running(hub)
    for number in range(1, 5):
        hub.report(lost(job, hub.now, attempt=number))
        hub.report(ended(job, hub.now, attempt=number))
        hub.run(job, grant)
    assert hub.snapshot()[1][("job", job.id)].job.preempted_at == ()
    assert _preempt(hub, job, attempt=5).outcome == "accepted"


# --- lost work --------------------------------------------------------------------------------------


def test_work_since_the_checkpoint_that_the_policy_assumes_is_given_back_with_its_evidence(hub: Hub) -> None:
    job, grant = _running(hub, gpus_per_pod=2)
    hub.clock.advance(150 * MINUTE_MS)
    _preempt(hub, job, hub.submit(gpus_per_pod=8).id)
    hub.clock.advance(20_000)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    refund = _refund(hub)
    assert (refund.starts_at_ms, refund.ends_at_ms) == (START_MS + 2 * HOUR_MS, hub.now)
    assert refund.amount_gpu_us == 2 * (30 * 60 + 20) * SECOND_US
    assert refund.refund_kind == "preempted"
    assert refund.evidence.startswith(f"stop:{job.id}:1 checkpoint every 3600000 ms, report:sim:")
    attempt = hub.job(job.id).attempts[0]
    assert attempt.settled_gpu_us - attempt.refunded_gpu_us == 2 * 7200 * SECOND_US
    assert attempt.platform_gpu_us == refund.amount_gpu_us
    assert attempt.hold_resolved
    assert hub.grant(grant.id).used_gpu_us == 2 * 7200 * SECOND_US


def test_what_a_job_says_of_itself_outweighs_the_policy(hub: Hub) -> None:
    job, _ = _running(hub, checkpoint_interval_s=900)
    hub.clock.advance(40 * MINUTE_MS)
    _preempt(hub, job)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    assert _refund(hub).starts_at_ms == START_MS + 30 * MINUTE_MS
    assert "checkpoint every 900000 ms" in _refund(hub).evidence


@pytest.mark.parametrize("later", [None, Preemption(checkpoint_ms=1000)])
def test_a_policy_changed_after_the_stop_changes_nothing(hub: Hub, later: Preemption | None) -> None:
    _share(hub, Preemption(checkpoint_ms=10 * MINUTE_MS))
    job, _ = _running(hub)
    hub.clock.advance(25 * MINUTE_MS)
    _preempt(hub, job)
    _share(hub, later)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    assert _refund(hub).starts_at_ms == START_MS + 20 * MINUTE_MS


def test_no_more_comes_back_than_was_charged(hub: Hub) -> None:
    """It runs on for two minutes after its grace: that is the platform's already, and comes back to nobody."""
    job, _ = _running(hub, checkpoint_interval_s=600)
    hub.clock.advance(15 * MINUTE_MS)
    _preempt(hub, job)
    hub.clock.advance(2 * MINUTE_MS)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    refunds = hub.rows(transfers, type="refund")
    assert sum(row.amount_gpu_us for row in refunds) == (5 * 60 + 30) * SECOND_US
    attempt = hub.job(job.id).attempts[0]
    assert attempt.settled_gpu_us - attempt.refunded_gpu_us == 600 * SECOND_US
    assert attempt.settled_gpu_us - attempt.refunded_gpu_us + attempt.platform_gpu_us == 17 * 60 * SECOND_US


def test_who_succeeds_within_its_notice_lost_nothing(hub: Hub) -> None:
    job, _ = _running(hub)
    hub.clock.advance(10 * MINUTE_MS)
    _preempt(hub, job, stop_at=hub.now + 10 * MINUTE_MS)
    hub.clock.advance(5 * MINUTE_MS)
    hub.report(ended(job, hub.now, reason="completed", exit_code=0))
    assert hub.job(job.id).end_reason == "succeeded"
    assert hub.rows(transfers, type="refund") == []


def test_lost_work_comes_back_once_however_often_its_end_is_told(hub: Hub) -> None:
    job, _ = _running(hub)
    hub.clock.advance(150 * MINUTE_MS)
    _preempt(hub, job)
    told = ended(job, hub.now, reason="stopped", exit_code=143)
    hub.report(told, through=START_MS + 2 * HOUR_MS)
    assert hub.rows(transfers, type="refund") == [], "its last slice is open yet"
    hub.report(told)
    hub.send_report(hub.last_report)
    hub.take_lease(instance="instance-2")
    hub.clock.advance(HOUR_MS)
    hub.report(told)
    assert _refund(hub).amount_gpu_us == 30 * 60 * SECOND_US
