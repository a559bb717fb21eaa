"""Freezing an organization, and sending a job back into the queue: shown first, then done, on both databases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from quota.audit.tables import audit
from quota.errors import NotFound, WrongState
from quota.jobs import switches
from quota.jobs.tables import attempts, jobs
from quota.schemas.jobs import Job
from quota.schemas.scheduling import EndReason, JobState, StopReason
from quota.schemas.switches import FreezeChange, FreezeReply, RequeueReply, RequeueRequest
from tests.builders import GPU_HOUR_US, HOUR_MS, OPERATOR, Hub, a_hub, ended, started
from tests.property.ledger.ledger_checks import violations


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


def _freeze(hub: Hub, organization: str = "alpha", *, dry: bool = False, **fields: Any) -> FreezeReply:
    body = FreezeChange.model_validate({"frozen": True, "reason": "unpaid bill"} | fields)
    do = hub.database.preview if dry else hub.database.write
    return do(lambda tx: switches.freeze(tx, OPERATOR, organization, body))


def _requeue(hub: Hub, job: Job, *, dry: bool = False) -> RequeueReply:
    body = RequeueRequest(reason="the rack moves")
    do = hub.database.preview if dry else hub.database.write
    return do(lambda tx: switches.requeue(tx, OPERATOR, job.id, body, hub.queue))


def _audited(hub: Hub, action: str) -> list[Any]:
    return hub.rows(audit, action=action)


# --- freeze ---------------------------------------------------------------------------------------------


def test_a_dry_freeze_tells_what_the_freeze_then_does_and_leaves_no_trace(hub: Hub) -> None:
    grant = hub.award()
    hub.award("beta")
    running, waiting, other = hub.submit(gpus_per_pod=2), hub.submit(), hub.submit("beta")
    hub.run(running, grant)
    before = hub.contents()
    told = _freeze(hub, dry=True, stop_running=True)
    assert hub.contents() == before
    done = _freeze(hub, stop_running=True)
    assert told == done
    assert done.organization.frozen
    assert (done.reach.waiting.count, done.reach.waiting.ids) == (1, (waiting.id,))
    assert (done.reach.running.count, done.reach.running.ids) == (1, (f"{running.id}-1",))
    assert done.reach.held_gpu_us == 2 * GPU_HOUR_US
    assert (done.stopped.count, done.stopped.ids) == (1, (running.id,))
    assert hub.job(other.id).cancel_requested_at is None


def test_a_frozen_organization_starts_nothing_and_what_it_runs_goes_on(hub: Hub) -> None:
    grant = hub.award()
    running, waiting = hub.submit(), hub.submit()
    hub.run(running, grant)
    _freeze(hub)
    refused = hub.try_start(waiting, grant)
    assert (refused.outcome, refused.code) == ("refused", "not_schedulable")
    assert "alpha" in refused.detail
    assert hub.job(running.id).cancel_requested_at is None
    hub.clock.advance(HOUR_MS // 2)
    hub.finish(running)
    assert hub.job(running.id).end_reason is EndReason.SUCCEEDED
    _freeze(hub, frozen=False)
    assert hub.try_start(waiting, grant).outcome == "accepted"


def test_what_a_freeze_stops_ends_as_cancelled_with_the_freezes_reason_in_the_audit(hub: Hub) -> None:
    grant = hub.award()
    starting, running = hub.submit(), hub.submit(restartable=True)
    hub.start(starting, grant)
    hub.run(running, grant)
    _freeze(hub, stop_running=True)
    rows = _audited(hub, "job.cancel")
    assert {row.subject: row.reason for row in rows} == dict.fromkeys(
        (starting.id, running.id), "unpaid bill"
    )
    hub.stop(running)
    hub.report(ended(running, hub.now, exit_code=143, reason="failed"))
    assert hub.job(running.id).end_reason is EndReason.CANCELLED


def test_the_same_state_again_writes_nothing(hub: Hub) -> None:
    hub.award()
    hub.submit()
    assert not _freeze(hub, frozen=False).changed
    assert _freeze(hub).changed
    before = hub.contents()
    assert not _freeze(hub).changed
    assert not _freeze(hub, stop_running=True).changed
    assert hub.contents() == before


def test_stopping_can_follow_a_freeze_that_let_jobs_run(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    hub.run(job, grant)
    _freeze(hub)
    done = _freeze(hub, stop_running=True)
    assert done.changed
    assert done.stopped.ids == (job.id,)
    row = _audited(hub, "organization.freeze")[-1]
    assert json.loads(row.before) == {"frozen": True}
    assert json.loads(row.detail) == {"cancelled_jobs": 1}


def test_a_freeze_is_audited_with_both_states_and_shown_in_the_feed(hub: Hub) -> None:
    _, items = hub.snapshot()
    assert items["organization", "alpha"].organization.frozen is False  # type: ignore[union-attr]
    _freeze(hub)
    _, items = hub.snapshot()
    assert items["organization", "alpha"].organization.frozen is True  # type: ignore[union-attr]
    [row] = _audited(hub, "organization.freeze")
    assert (row.actor, row.subject, row.reason) == ("operator", "alpha", "unpaid bill")
    assert (json.loads(row.before), json.loads(row.after)) == ({"frozen": False}, {"frozen": True})


def test_freezing_nobody_is_refused_and_changes_nothing(hub: Hub) -> None:
    before = hub.contents()
    for dry in (True, False):
        with pytest.raises(NotFound):
            _freeze(hub, "nobody", dry=dry)
    assert hub.contents() == before


def test_more_than_twenty_are_counted_and_the_first_twenty_named(hub: Hub) -> None:
    hub.award(hours="1000")
    made = sorted(hub.submit().id for _ in range(23))
    reach = _freeze(hub, dry=True).reach
    assert reach.waiting.count == 23
    assert list(reach.waiting.ids) == made[:20]


# --- requeue --------------------------------------------------------------------------------------------


def test_a_dry_requeue_tells_the_lost_work_and_leaves_no_trace(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(gpus_per_pod=2, walltime_s=7200, checkpoint_interval_s=1500)
    hub.run(job, grant)
    start = hub.now
    hub.clock.advance(HOUR_MS)
    before = hub.contents()
    told = _requeue(hub, job, dry=True)
    assert hub.contents() == before
    assert told.lost.since == start + 2 * 1500_000
    assert told.lost.milliseconds == HOUR_MS - 2 * 1500_000
    assert told.lost.gpu_us == told.lost.milliseconds * 2 * 1000
    assert told.charged_gpu_us == 2 * GPU_HOUR_US
    assert _requeue(hub, job) == told
    assert hub.attempt(job.id).stop_asked == StopReason.REQUEUED.value


def test_without_checkpoints_all_work_since_the_start_is_lost(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(walltime_s=7200)
    hub.run(job, grant)
    start = hub.now
    hub.clock.advance(HOUR_MS)
    assert _requeue(hub, job, dry=True).lost.since == start


def test_a_job_that_only_starts_loses_nothing(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    hub.start(job, grant)
    told = _requeue(hub, job)
    assert (told.lost.since, told.lost.gpu_us, told.charged_gpu_us) == (None, 0, 0)


def test_a_requeued_job_waits_again_and_what_it_used_stays_charged(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(walltime_s=7200)
    hub.run(job, grant)
    hub.clock.advance(HOUR_MS)
    charged = _requeue(hub, job).charged_gpu_us
    stopped = hub.stop(job, StopReason.REQUEUED)
    assert stopped.outcome == "accepted", stopped
    hub.report(ended(job, hub.now, exit_code=143, reason="failed"))
    now = hub.job(job.id)
    assert now.state is JobState.QUEUED
    assert now.attempts[0].end_reason is EndReason.REQUEUED
    assert now.charged_gpu_us == charged == GPU_HOUR_US
    assert hub.start(job, grant) == 2


def test_asking_for_a_requeue_twice_is_asking_once(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    hub.run(job, grant)
    assert _requeue(hub, job).changed
    before = hub.contents()
    assert not _requeue(hub, job).changed
    assert hub.contents() == before


@pytest.mark.parametrize("state", ["queued", "stopping", "ended", "cancelled", "grant ended"])
def test_only_a_placed_job_that_would_wait_again_can_be_sent_back(hub: Hub, state: str) -> None:
    grant = hub.award()
    job = hub.submit()
    if state != "queued":
        hub.start(job, grant)
        hub.report(started(job, hub.now, hub.now))
    if state == "stopping":
        hub.cancel(job.id)
        hub.stop(job)
    if state == "ended":
        hub.finish(job)
    if state == "cancelled":
        hub.cancel(job.id)
    if state == "grant ended":
        said = {"stop_asked": StopReason.GRANT_ENDED.value}
        hub.database.write(lambda tx: tx.connection.execute(attempts.update().values(said)))
    before = hub.contents()
    for dry in (True, False):
        with pytest.raises(WrongState):
            _requeue(hub, job, dry=dry)
    assert hub.contents() == before


def test_a_requeue_is_audited_with_its_reason_and_shows_the_attempt_in_the_feed(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    hub.run(job, grant)
    _requeue(hub, job)
    [row] = _audited(hub, "attempt.ask_stop")
    assert (row.actor, row.subject, row.reason) == ("operator", job.id, "the rack moves")
    _, items = hub.snapshot()
    assert items["attempt", f"{job.id}-1"].attempt.stop_asked is StopReason.REQUEUED  # type: ignore[union-attr]
    with hub.database.read() as connection:
        assert connection.execute(select(jobs.c.state)).scalar_one() == JobState.RUNNING.value
