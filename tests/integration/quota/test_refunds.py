"""REFUND by operators: what a stretch was charged comes back once, within the policy's cap; both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from pydantic import ValidationError
from sqlalchemy import update

from quota.audit.tables import audit
from quota.errors import NotFound, NothingToRefund, RefundCapReached
from quota.identity.tables import organizations
from quota.jobs import refunding
from quota.ledger.tables import transfers
from quota.programs.tables import grants
from quota.schemas.job_changes import JobRefund
from quota.schemas.jobs import Job
from quota.schemas.ledger import RefundKind
from quota.schemas.programs import Grant
from tests.builders import (
    GPU_HOUR_US,
    HOUR_MS,
    MINUTE_MS,
    OPERATOR,
    START_MS,
    Hub,
    a_hub,
    ended,
    lost,
    started,
)
from tests.property.ledger.ledger_checks import occupied_gpu_us, violations

MINUTE_US = 60_000_000
FAULT, PREEMPTED, CORRECTION = RefundKind.FAULT, RefundKind.PREEMPTED, RefundKind.CORRECTION


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


@pytest.fixture
def grant(hub: Hub) -> Grant:
    return hub.award(hours="100")


@pytest.fixture
def job(hub: Hub, grant: Grant) -> Job:
    """One GPU for two and a half hours, ended and settled: slices of 60, 60 and 30 minutes."""
    made = hub.submit(walltime_s=3 * 3600)
    hub.run(made, grant)
    hub.clock.advance(150 * MINUTE_MS)
    hub.finish(made)
    return made


def at(minute: int) -> int:
    return START_MS + minute * MINUTE_MS


def test_a_refund_is_one_transfer_per_slice_and_the_platform_pays_a_fault(
    hub: Hub, grant: Grant, job: Job
) -> None:
    told = hub.refund(job, at(50), at(130))
    spans = [(entry.starts_at, entry.ends_at, entry.amount_gpu_us) for entry in told.transfers]
    assert spans == [
        (at(50), at(60), 10 * MINUTE_US),
        (at(60), at(120), 60 * MINUTE_US),
        (at(120), at(130), 10 * MINUTE_US),
    ]
    assert {entry.payer for entry in told.transfers} == {"grant"}
    assert told.refunded_gpu_us == 80 * MINUTE_US
    assert told.fault_time_left_ms == 4 * HOUR_MS - 80 * MINUTE_MS
    attempt = hub.job(job.id).attempts[0]
    assert (attempt.refunded_gpu_us, attempt.platform_gpu_us) == (80 * MINUTE_US, 80 * MINUTE_US)
    assert hub.grant(grant.id).used_gpu_us == 70 * MINUTE_US
    rows = hub.rows(transfers, type="refund")
    assert {row.id for row in rows} == {entry.transfer_id for entry in told.transfers}
    assert {(row.actor, row.reason, row.evidence) for row in rows} == {("operator", "a test", "finding:1")}


def test_a_correction_costs_nobody_anything(hub: Hub, grant: Grant, job: Job) -> None:
    told = hub.refund(job, at(140), at(150), CORRECTION)
    assert told.refunded_gpu_us == 10 * MINUTE_US
    attempt = hub.job(job.id).attempts[0]
    assert (attempt.refunded_gpu_us, attempt.platform_gpu_us) == (10 * MINUTE_US, 0)
    with hub.database.read() as connection:
        assert occupied_gpu_us(connection, job.id, 1) == 140 * MINUTE_US


def test_only_what_was_charged_and_is_not_given_back_yet_comes_back(hub: Hub, grant: Grant, job: Job) -> None:
    hub.refund(job, at(10), at(30))
    told = hub.refund(job, START_MS - HOUR_MS, at(60), PREEMPTED)
    spans = [(entry.starts_at, entry.ends_at) for entry in told.transfers]
    assert spans == [(at(0), at(10)), (at(30), at(60))]
    hub.refund(job, at(0), at(1000), PREEMPTED)
    assert hub.grant(grant.id).used_gpu_us == 0
    before = hub.contents()
    for kind in (FAULT, PREEMPTED):
        with pytest.raises(NothingToRefund):
            hub.refund(job, at(0), at(150), kind)
    with pytest.raises(NothingToRefund):
        hub.refund(job, at(150), at(200), CORRECTION)
    assert hub.contents() == before


def test_a_correction_takes_back_what_the_platform_was_booked_too(hub: Hub, job: Job) -> None:
    hub.refund(job, at(0), at(30))
    told = hub.refund(job, at(20), at(40), CORRECTION)
    paid = [(entry.payer, entry.amount_gpu_us) for entry in told.transfers]
    assert paid == [("platform", 10 * MINUTE_US), ("grant", 10 * MINUTE_US)]
    assert told.refunded_gpu_us == 10 * MINUTE_US
    assert hub.job(job.id).attempts[0].platform_gpu_us == 20 * MINUTE_US
    with pytest.raises(NothingToRefund):
        hub.refund(job, at(20), at(40), CORRECTION)


def test_faults_give_back_no_more_than_the_policy_of_the_grant(hub: Hub, grant: Grant, job: Job) -> None:
    policy = update(grants).where(grants.c.id == grant.id).values(policy='{"refund_cap_ms": 3600000}')
    hub.database.write(lambda tx: tx.connection.execute(policy) and None)
    assert hub.refund(job, at(0), at(40)).fault_time_left_ms == 20 * MINUTE_MS
    before = hub.contents()
    with pytest.raises(RefundCapReached) as caught:
        hub.refund(job, at(40), at(61))
    assert caught.value.numbers["left_ms"] == 20 * MINUTE_MS
    assert caught.value.numbers["asked_ms"] == 21 * MINUTE_MS
    assert hub.contents() == before
    hub.refund(job, at(60), at(80))
    hub.refund(job, at(100), at(150), PREEMPTED)


def test_the_cap_counts_every_fault_of_the_job_over_its_attempts(hub: Hub, grant: Grant) -> None:
    job = hub.submit(walltime_s=5 * 3600, restartable=True)
    hub.run(job, grant)
    hub.clock.advance(3 * HOUR_MS)
    hub.report(lost(job, hub.now))
    hub.run(job, grant, "n1")
    hub.clock.advance(2 * HOUR_MS)
    hub.report(ended(job, hub.now, attempt=2))
    with pytest.raises(RefundCapReached) as caught:
        hub.refund(job, hub.now - 2 * HOUR_MS, hub.now, attempt=2)
    assert caught.value.numbers["left_ms"] == HOUR_MS


def test_a_fault_that_an_operator_gave_back_before_is_not_given_back_again_at_the_end(
    hub: Hub, grant: Grant
) -> None:
    """The node fails for good later: the rest of the lost time comes back, and the cap counts both."""
    job = hub.submit(walltime_s=8 * 3600)
    hub.run(job, grant)
    hub.clock.advance(5 * HOUR_MS)
    hub.report()
    hub.refund(job, at(240), at(270))
    hub.refund(job, at(290), at(295), CORRECTION)
    hub.report(lost(job, hub.now))
    faults = hub.rows(transfers, refund_kind="fault")
    assert sum(row.ends_at_ms - row.starts_at_ms for row in faults) == 4 * HOUR_MS
    assert min(row.starts_at_ms for row in faults) == at(55), "5 min of the last 4 h 5 min never were"
    attempt = hub.job(job.id).attempts[0]
    assert attempt.settled_gpu_us - attempt.refunded_gpu_us == 55 * MINUTE_US


def test_a_truth_that_comes_later_corrects_around_what_an_operator_gave_back(hub: Hub, grant: Grant) -> None:
    job = hub.submit(walltime_s=8 * 3600)
    hub.run(job, grant)
    hub.clock.advance(2 * HOUR_MS)
    hub.report()
    hub.refund(job, at(80), at(100))
    hub.refund(job, at(110), at(115), CORRECTION)
    hub.report(ended(job, at(90), exit_code=1, reason="failed"))
    with hub.database.read() as connection:
        assert occupied_gpu_us(connection, job.id, 1) == 90 * MINUTE_US
    attempt = hub.job(job.id).attempts[0]
    assert attempt.platform_gpu_us == 10 * MINUTE_US, "of the fault's 20 minutes 10 never were"
    assert attempt.settled_gpu_us - attempt.refunded_gpu_us == 80 * MINUTE_US


def test_what_is_not_settled_is_not_given_back(hub: Hub, grant: Grant) -> None:
    job = hub.submit(walltime_s=3 * 3600)
    hub.start(job, grant)
    hub.report(started(job, START_MS, START_MS))
    hub.clock.advance(90 * MINUTE_MS)
    hub.report()
    assert hub.refund(job, at(0), at(90)).refunded_gpu_us == GPU_HOUR_US


def test_a_refund_is_audited_and_lightens_fair_share(hub: Hub, job: Job) -> None:
    before = hub.row(organizations, id="alpha").decayed_usage_gpu_us
    told = hub.refund(job, at(0), at(60), evidence="report:sim:7")
    assert hub.row(organizations, id="alpha").decayed_usage_gpu_us == before - GPU_HOUR_US
    row = hub.row(audit, action="job.refund")
    assert (row.actor, row.subject, row.reason) == ("operator", job.id, "a test")
    assert '"evidence": "report:sim:7"' in row.detail
    assert told.transfers[0].transfer_id in row.detail


def test_a_preview_tells_the_transfers_and_makes_none(hub: Hub, job: Job) -> None:
    body = JobRefund(
        attempt=1, starts_at=at(0), ends_at=at(90), kind=FAULT, reason="a test", evidence="finding:1"
    )
    before = hub.contents()
    told = hub.database.preview(lambda tx: refunding.refund(tx, OPERATOR, job.id, body))
    assert hub.contents() == before
    assert told == hub.refund(job, at(0), at(90))


def test_a_refund_names_an_attempt_that_is_there_and_its_evidence(hub: Hub, job: Job) -> None:
    with pytest.raises(NotFound):
        hub.refund(job, at(0), at(1), attempt=2)
    with pytest.raises(NotFound):
        hub.refund(job.model_copy(update={"id": "job-none"}), at(0), at(1))
    with pytest.raises(ValidationError):
        hub.refund(job, at(0), at(1), evidence="")
    with pytest.raises(ValidationError):
        hub.refund(job, at(1), at(1))


def test_eight_operators_at_the_same_moment_give_back_once(database_url: str) -> None:
    hub = a_hub(database_url)
    grant = hub.award(hours="100")
    job = hub.submit(walltime_s=3 * 3600)
    hub.run(job, grant)
    hub.clock.advance(150 * MINUTE_MS)
    hub.finish(job)
    barrier = threading.Barrier(8)
    refunded: list[int] = []

    def give_back(number: int) -> None:
        barrier.wait()
        try:
            told = hub.refund(job, at(10 * number), at(10 * number + 80), PREEMPTED if number % 2 else FAULT)
            refunded.append(told.refunded_gpu_us)
        except (NothingToRefund, RefundCapReached):
            refunded.append(0)

    threads = [threading.Thread(target=give_back, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refunded) == 8
    assert sum(refunded) == 150 * MINUTE_US == hub.job(job.id).attempts[0].refunded_gpu_us
    with hub.database.read() as connection:
        assert violations(connection) == []
    hub.close()
