"""One test per row of the ledger's table of corner cases that concerns jobs; its name names the row. Both databases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from quota.audit.tables import findings
from quota.errors import InsufficientBalance
from quota.fleet import service as fleet
from quota.jobs.tables import attempts
from quota.ledger.tables import holds, slices, transfers
from quota.schemas.fleet import NewGpuClass
from quota.schemas.jobs import Attempt, Job
from quota.schemas.ledger import RefundKind
from quota.schemas.scheduling import JobState, StopReason
from quota.schemas.usage import EvidenceBatch, EvidenceRow
from quota.usage import service as usage
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
from tests.property.ledger.ledger_checks import violations

MINUTE_US = 60_000_000
"""One minute on one H100."""


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


def _running(hub: Hub, **fields: Any) -> Job:
    grant = hub.award(hours="1000")
    job = hub.submit(**fields)
    hub.run(job, grant)
    return job


def _attempt(hub: Hub, job: Job, number: int = 1) -> Attempt:
    return hub.job(job.id).attempts[number - 1]


def test_corner_case_which_grant_pays_an_attempt_draws_on_one_grant(hub: Hub) -> None:
    """The service takes the grant that the start names, whole, though two together have more than either."""
    first, second = hub.award(hours="3"), hub.award(hours="5")
    job = hub.submit(gpus_per_pod=4)
    refusal = hub.try_start(job, first)
    assert (refusal.code, refusal.numbers["left_gpu_us"]) == ("insufficient_balance", 3 * GPU_HOUR_US)
    hub.start(job, second)
    assert hub.row(holds).grant_id == second.id
    assert (hub.grant(first.id).held_gpu_us, hub.grant(second.id).held_gpu_us) == (0, 4 * GPU_HOUR_US)


def test_corner_case_which_grant_pays_a_job_that_names_one_draws_on_no_other(hub: Hub) -> None:
    first, second = hub.award(), hub.award()
    job = hub.submit(grant_id=second.id)
    assert hub.try_start(job, first).code == "not_found"
    assert hub.start(job, second) == 1


def test_corner_case_submission_counts_what_is_used_and_not_what_is_held(hub: Hub) -> None:
    grant = hub.award(hours="10")
    running = hub.submit(gpus_per_pod=8)
    hub.run(running, grant)
    assert hub.grant(grant.id).held_gpu_us == 8 * GPU_HOUR_US
    hub.submit(gpus_per_pod=8)
    hub.clock.advance(HOUR_MS)
    hub.finish(running)
    with pytest.raises(InsufficientBalance) as caught:
        hub.submit(gpus_per_pod=8)
    assert caught.value.numbers == {"needed_gpu_us": 8 * GPU_HOUR_US, "left_gpu_us": 2 * GPU_HOUR_US}


def test_corner_case_start_needs_the_cost_beside_what_is_held(hub: Hub) -> None:
    grant = hub.award(hours="10")
    one, two = hub.submit(gpus_per_pod=6), hub.submit(gpus_per_pod=5)
    hub.start(one, grant)
    refusal = hub.try_start(two, grant, "n1")
    assert (refusal.outcome, refusal.code) == ("refused", "insufficient_balance")
    assert refusal.numbers["needed_gpu_us"] == 5 * GPU_HOUR_US
    assert refusal.numbers["left_gpu_us"] == 4 * GPU_HOUR_US


def test_corner_case_start_that_its_grant_ends_before_names_the_walltime_that_fits(hub: Hub) -> None:
    grant = hub.award(ends_at=START_MS + 90 * MINUTE_MS)
    fits, too_long = hub.submit(walltime_s=90 * 60), hub.submit(walltime_s=90 * 60 + 1)
    refusal = hub.try_start(too_long, grant)
    assert (refusal.code, refusal.numbers["fitting_walltime_ms"]) == ("grant_not_active", 90 * MINUTE_MS)
    assert hub.start(fits, grant) == 1


def test_corner_case_hold_id_names_the_attempt_and_resolves_by_the_jobs_own_moves_only(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(restartable=True)
    hub.start(job, grant)
    hub.clock.advance(30 * 24 * HOUR_MS)
    hub.report()
    assert [row.resolved for row in hub.rows(holds)] == [False], "no clock ends a hold"
    hub.stop(job, StopReason.ABANDONED)
    hub.report(ended(job, hub.now, reason="never_started", exit_code=None))
    hub.clock.advance(MINUTE_MS)
    hub.start(job, grant)
    resolved = {row.id: row.resolved for row in hub.rows(holds)}
    assert resolved == {f"{job.id}:1:hold": True, f"{job.id}:2:hold": False}


def test_corner_case_stop_takes_time_the_grant_pays_to_its_grace_and_the_platform_the_rest(hub: Hub) -> None:
    job = _running(hub, grace_s=30)
    hub.clock.advance(10 * MINUTE_MS)
    hub.stop(job, StopReason.CANCELLED)
    hub.clock.advance(90_000)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.platform_gpu_us) == (10 * MINUTE_US + MINUTE_US // 2, MINUTE_US)


def test_corner_case_stop_takes_time_but_never_past_the_held_time(hub: Hub) -> None:
    job = _running(hub, walltime_s=600, grace_s=30)
    hub.clock.advance(600_000)
    hub.stop(job, StopReason.TIME_LIMIT)
    hub.clock.advance(20_000)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.platform_gpu_us) == (10 * MINUTE_US, MINUTE_US // 3)


@pytest.mark.parametrize("interval_s", [None, 15 * 60])
@pytest.mark.parametrize("why", ["preempted", "fault"])
def test_corner_case_lost_work_is_refunded_since_the_last_checkpoint_mark(
    hub: Hub, interval_s: int | None, why: str
) -> None:
    """40 minutes ran: all of them are lost, or the 10 since the second mark of 15."""
    job = _running(hub, checkpoint_interval_s=interval_s, grace_s=0, restartable=True)
    hub.clock.advance(40 * MINUTE_MS)
    if why == "preempted":
        hub.stop(job, StopReason.PREEMPTED, grace_ms=0)
        hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    else:
        hub.report(lost(job, hub.now))
    refund = hub.row(transfers, type="refund")
    assert (refund.refund_kind, refund.ends_at_ms) == (why, hub.now)
    assert refund.starts_at_ms == START_MS + (30 * MINUTE_MS if interval_s else 0)
    attempt = _attempt(hub, job)
    assert attempt.refunded_gpu_us == attempt.platform_gpu_us == refund.amount_gpu_us


def test_corner_case_image_pull_costs_the_grant_nothing_before_the_last_container_runs(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(pods=2)
    hub.start(job, grant)
    hub.report(started(job, hub.now))
    hub.clock.advance(8 * MINUTE_MS)
    hub.report(started(job, START_MS, hub.now))
    hub.clock.advance(10 * MINUTE_MS)
    hub.finish(job)
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.platform_gpu_us) == (20 * MINUTE_US, 16 * MINUTE_US)


def test_corner_case_gang_incomplete_is_abandoned_at_no_charge_and_waits_again(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(pods=2)
    hub.start(job, grant)
    hub.report(started(job, hub.now))
    hub.clock.advance(10 * MINUTE_MS)
    hub.stop(job, StopReason.ABANDONED, grace_ms=0)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=None))
    attempt = _attempt(hub, job)
    assert (attempt.settled_gpu_us, attempt.released_gpu_us) == (0, 2 * GPU_HOUR_US)
    assert (hub.job(job.id).state, hub.grant(grant.id).used_gpu_us) == (JobState.QUEUED, 0)


def test_corner_case_scheduler_or_cluster_unseen_no_slice_closes_beyond_the_watermark(hub: Hub) -> None:
    job = _running(hub, walltime_s=6 * 3600)
    hub.clock.advance(4 * HOUR_MS)
    hub.report(through=START_MS + 2 * HOUR_MS + 5 * MINUTE_MS)
    assert max(row.ends_at_ms for row in hub.rows(slices)) == START_MS + 2 * HOUR_MS
    hub.report()
    assert _attempt(hub, job).settled_gpu_us == 4 * GPU_HOUR_US


def test_corner_case_later_truth_is_a_refund_and_edits_nothing(hub: Hub) -> None:
    job = _running(hub, walltime_s=3 * 3600)
    hub.clock.advance(HOUR_MS + MINUTE_MS)
    hub.report()
    before = [tuple(row) for row in hub.rows(transfers)]
    hub.report(lost(job, START_MS + 50 * MINUTE_MS))
    now = [tuple(row) for row in hub.rows(transfers)]
    assert set(before) < set(now)
    correction = hub.row(transfers, refund_kind="correction")
    span = (correction.starts_at_ms, correction.ends_at_ms)
    assert span == (START_MS + 50 * MINUTE_MS, START_MS + HOUR_MS)


def test_corner_case_times_that_cannot_be_are_findings_and_the_observation_counts(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit()
    hub.start(job, grant)
    hub.clock.advance(MINUTE_MS)
    hub.report(started(job, START_MS - 2001, START_MS + MINUTE_MS + 2000))
    row = hub.attempt(job.id)
    assert (row.first_started_at_ms, row.last_started_at_ms) == (hub.now, hub.now + 2000)
    assert [finding.code for finding in hub.rows(findings)] == ["impossible_time"]


def test_corner_case_rate_changes_wait_for_the_next_attempt(hub: Hub) -> None:
    job = _running(hub, restartable=True)
    body = NewGpuClass(id="h100", name="H100", rate_thousandths=3000, price_krw=9000)
    hub.database.write(lambda tx: fleet.put_gpu_class(tx, OPERATOR, body))
    hub.clock.advance(10 * MINUTE_MS)
    hub.extend(job, 60)
    hub.stop(job, StopReason.PREEMPTED)
    hub.report(ended(job, hub.now, reason="stopped", exit_code=143))
    assert _attempt(hub, job).held_gpu_us == 61 * MINUTE_US
    hub.start(job, next(iter(_grants(hub))), "n1")
    assert _attempt(hub, job, 2).held_gpu_us == 3 * 61 * MINUTE_US


def test_corner_case_platform_fault_gives_back_at_most_four_hours_with_its_evidence(hub: Hub) -> None:
    job = _running(hub, walltime_s=8 * 3600)
    hub.clock.advance(6 * HOUR_MS)
    hub.report(lost(job, hub.now))
    faults = hub.rows(transfers, refund_kind=RefundKind.FAULT.value)
    assert sum(row.amount_gpu_us for row in faults) == 4 * GPU_HOUR_US
    assert min(row.starts_at_ms for row in faults) == START_MS + 2 * HOUR_MS, "the latest four"
    assert {row.evidence for row in faults} == {f"report:sim:{hub.sequences['cluster:sim']}"}


def test_corner_case_evidence_one_row_per_gpu_hour_and_agent_epoch_and_only_newer_ones(hub: Hub) -> None:
    job = _running(hub)
    hour_ms = hub.now - hub.now % HOUR_MS

    def told(epoch: str, seq: int, busy_ms: int) -> int:
        row = EvidenceRow(
            job_id=job.id,
            attempt=1,
            gpu_uuid="GPU-1",
            gpu_class="h100",
            node="n0",
            hour=hour_ms,
            agent_epoch=f"epoch-{epoch}",
            seq=seq,
            busy_ms=busy_ms,
            observed_ms=60_000,
        )
        batch = EvidenceBatch(rows=(row,))
        return len(hub.database.write(lambda tx: usage.store(tx, list(batch.rows))))

    assert [told("one", 2, 500), told("one", 2, 700), told("one", 1, 900), told("two", 1, 30)] == [1, 0, 0, 1]
    [measured] = hub.job(job.id).measured
    assert (measured.busy_ms, measured.observed_ms) == (530, 120_000)


def test_corner_case_evidence_every_charge_names_the_report_that_allowed_it(hub: Hub) -> None:
    """Settled by one report, corrected and released by the next."""
    job = _running(hub, walltime_s=3 * 3600)
    hub.clock.advance(HOUR_MS + MINUTE_MS)
    first = hub.report().stream_seq
    second = hub.report(lost(job, START_MS + 50 * MINUTE_MS)).stream_seq
    told = {(row.type, row.refund_kind): row.evidence for row in hub.rows(transfers, job_id=job.id)}
    assert told == {
        ("hold", None): None,
        ("settle", None): f"report:sim:{first}",
        ("refund", "correction"): f"report:sim:{second}",
        ("refund", "fault"): f"report:sim:{second}",
        ("release", None): f"report:sim:{second}",
    }


def _grants(hub: Hub) -> list[Any]:
    return [hub.grant(row.grant_id) for row in hub.rows(attempts)]
