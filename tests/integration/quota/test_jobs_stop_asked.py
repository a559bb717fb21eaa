"""Stops that the service asks for: a grant's end, an operator's requeue; both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quota.audit.tables import audit
from quota.ledger.tables import transfers
from quota.schemas.jobs import Job
from quota.schemas.programs import Grant
from quota.schemas.scheduling import EndReason, JobState, StopItem, StopReason
from tests.builders import GPU_HOUR_US, MINUTE_MS, Hub, a_hub, ended, lost, started
from tests.property.ledger.ledger_checks import violations

REQUEUED, GRANT_ENDED = StopReason.REQUEUED, StopReason.GRANT_ENDED


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


@pytest.fixture
def grant(hub: Hub) -> Grant:
    return hub.award()


@pytest.fixture
def job(hub: Hub, grant: Grant) -> Job:
    """Not restartable, running for ten minutes."""
    made = hub.submit()
    hub.run(made, grant)
    hub.clock.advance(10 * MINUTE_MS)
    return made


def _asked(hub: Hub, job: Job) -> str | None:
    asked: str | None = hub.attempt(job.id).stop_asked
    return asked


def test_an_asked_stop_shows_in_the_feed_and_in_the_audit(hub: Hub, job: Job) -> None:
    assert hub.ask_stop(job, REQUEUED)
    _, shown = hub.snapshot()
    attempt = shown[("attempt", f"{job.id}-1")].attempt
    assert attempt is not None
    assert (attempt.stop_asked, attempt.state) == (REQUEUED, JobState.RUNNING)
    row = hub.row(audit, action="attempt.ask_stop")
    assert (row.actor, row.subject, row.reason) == ("operator", job.id, "a test")
    assert '"evidence": "paper:1"' in row.detail


def test_asking_again_changes_nothing(hub: Hub, job: Job) -> None:
    assert hub.ask_stop(job, REQUEUED)
    before = hub.contents()
    assert not hub.ask_stop(job, REQUEUED)
    assert hub.contents() == before


def test_the_end_of_a_grant_outweighs_a_requeue(hub: Hub, job: Job) -> None:
    assert hub.ask_stop(job, REQUEUED)
    assert hub.ask_stop(job, GRANT_ENDED)
    assert not hub.ask_stop(job, REQUEUED)
    assert _asked(hub, job) == "grant_ended"


def test_there_is_nothing_to_ask_of_what_waits_stops_ends_or_is_cancelled(hub: Hub, grant: Grant) -> None:
    waiting, stopping, over, cancelled = (hub.submit() for _ in range(4))
    for job in (stopping, over, cancelled):
        hub.run(job, grant)
    hub.stop(stopping, StopReason.CANCELLED)
    hub.finish(over)
    hub.cancel(cancelled.id)
    before = hub.contents()
    assert not any(hub.ask_stop(job, REQUEUED) for job in (waiting, stopping, over, cancelled))
    assert hub.contents() == before


@pytest.mark.parametrize("reason", [REQUEUED, GRANT_ENDED])
def test_a_stop_of_the_services_kinds_is_refused_unless_it_was_asked_for(
    hub: Hub, job: Job, reason: StopReason
) -> None:
    refused = hub.stop(job, reason)
    assert (refused.outcome, refused.code) == ("refused", "wrong_state")
    assert hub.job(job.id).state == JobState.RUNNING
    hub.ask_stop(job, reason)
    assert hub.stop(job, reason).outcome == "accepted"


def test_a_requeued_job_waits_again_whether_it_is_restartable_or_not(
    hub: Hub, grant: Grant, job: Job
) -> None:
    hub.ask_stop(job, REQUEUED)
    hub.stop(job, REQUEUED)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    detail = hub.job(job.id)
    assert (detail.state, detail.attempts[0].end_reason) == (JobState.QUEUED, EndReason.REQUEUED)
    assert detail.attempts[0].settled_gpu_us == GPU_HOUR_US // 6
    assert detail.attempts[0].hold_resolved
    assert hub.rows(transfers, type="refund") == [], "who sent it back decides of refunds"
    assert hub.run(job, grant, "n1") == 2
    assert hub.attempt(job.id, 2).stop_asked is None


def test_a_requeue_that_its_node_comes_before_is_a_fault_and_waits_again(hub: Hub, job: Job) -> None:
    """An operator drains a node that then dies: the job would not restart by itself."""
    hub.ask_stop(job, REQUEUED)
    hub.report(lost(job, hub.now))
    detail = hub.job(job.id)
    assert (detail.state, detail.attempts[0].end_reason) == (JobState.QUEUED, EndReason.NODE_FAILED)
    assert detail.charged_gpu_us == 0


def test_a_job_that_ends_by_itself_is_not_sent_back(hub: Hub, job: Job) -> None:
    hub.ask_stop(job, REQUEUED)
    hub.report(ended(job, hub.now, exit_code=1, reason="failed"))
    assert hub.job(job.id).end_reason == EndReason.FAILED


@pytest.mark.parametrize("recorded", [False, True])
def test_a_later_cancel_wins(hub: Hub, job: Job, recorded: bool) -> None:
    hub.ask_stop(job, REQUEUED)
    if recorded:
        hub.stop(job, REQUEUED)
    hub.cancel(job.id)
    hub.stop(job, StopReason.CANCELLED)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    assert hub.job(job.id).end_reason == EndReason.CANCELLED


def test_the_end_of_a_grant_ends_the_job(hub: Hub, grant: Grant) -> None:
    job = hub.submit(restartable=True)
    hub.run(job, grant)
    hub.ask_stop(job, GRANT_ENDED)
    hub.stop(job, GRANT_ENDED)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    assert (hub.job(job.id).state, hub.job(job.id).end_reason) == (JobState.ENDED, EndReason.GRANT_ENDED)


def test_a_start_and_its_stop_may_stand_in_one_batch(hub: Hub, grant: Grant) -> None:
    """Cancelled between the plan and its sending: the claim is made and stopped at once, in this order only."""
    job, other = hub.submit(), hub.submit()
    stop = StopItem(job_id=job.id, attempt=1, reason="cancelled", stop_at=hub.now, grace_ms=0)
    early = stop.model_copy(update={"job_id": other.id})
    reply = hub.decide(hub.start_item(job, grant), stop, early, hub.start_item(other, grant, "n1"))
    assert [result.outcome for result in reply.results] == ["accepted", "accepted", "refused", "accepted"]
    assert [hub.attempt(name.id).state for name in (job, other)] == ["stopping", "starting"]
    hub.report(ended(job, hub.now, reason="never_started", exit_code=None), started(other, hub.now, hub.now))
    assert hub.job(job.id).end_reason == EndReason.CANCELLED
    assert hub.grant(grant.id).held_gpu_us == GPU_HOUR_US
