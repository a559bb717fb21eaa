"""Reconciliation: ledger, cluster and agents agree on a good day, and every planted difference is found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from quota.audit.tables import findings
from quota.clock import HOUR_MS, day_of, day_start_ms
from quota.errors import BadRequest
from quota.reports import reconciliation
from quota.schemas.jobs import Job
from quota.schemas.programs import Grant
from quota.schemas.reconciliation import Reconciliation
from quota.schemas.usage import EvidenceRow
from quota.usage import service as usage
from tests.builders import DAY_MS, MINUTE_MS, Hub, a_hub, lost

DAY = "2026-11-22"
"""The hub's clock begins on it, at 09:00 in Seoul."""


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    made.take_lease()
    yield made
    made.close()


def _run(hub: Hub, grant: Grant, hours: int = 2, seen: float = 1.0) -> Job:
    """A job that starts on the hour and runs whole hours, of which agents see a part."""
    job = hub.submit(walltime_s=hours * 3600)
    began = hub.now
    assert began % HOUR_MS == 0
    hub.run(job, grant)
    hub.clock.advance(hours * HOUR_MS)
    hub.finish(job)
    rows = [
        EvidenceRow(
            job_id=job.id,
            attempt=1,
            gpu_uuid=f"GPU-{job.id[-6:]}",
            gpu_class="h100",
            node="n0",
            hour=began + hour * HOUR_MS,
            agent_epoch="epoch-0001",
            seq=1,
            busy_ms=int(HOUR_MS * seen) // 2,
            observed_ms=int(HOUR_MS * seen),
        )
        for hour in range(hours)
    ]
    hub.database.write(lambda tx: usage.store(tx, rows))
    return job


def _reconcile(hub: Hub, day: str = DAY) -> Reconciliation:
    hub.clock.set(max(hub.now, day_start_ms(day) + DAY_MS))
    found = reconciliation.reconcile(hub.database, day)
    assert len(found) == 1
    return found[0]


def _found(hub: Hub) -> dict[str, list[str]]:
    codes: dict[str, list[str]] = {}
    for row in hub.rows(findings):
        codes.setdefault(row.code, []).append(row.subject)
    return codes


def test_a_good_day_agrees_to_the_millisecond(hub: Hub) -> None:
    grant = hub.award()
    _run(hub, grant)
    _run(hub, grant, 1)
    found = _reconcile(hub)
    assert (found.ledger_gpu_ms, found.cluster_gpu_ms, found.observed_gpu_ms) == (3 * HOUR_MS,) * 3
    assert (found.attempts, found.busy_gpu_ms, found.differences) == (2, 3 * HOUR_MS // 2, 0)
    assert _found(hub) == {}


def test_a_job_over_midnight_in_seoul_is_cut_there(hub: Hub) -> None:
    """Midnight of Seoul is 15:00 UTC: usage between it and midnight UTC belongs to the next day."""
    grant = hub.award()
    hub.clock.set(day_start_ms("2026-11-23") - HOUR_MS)
    assert day_of(hub.now) == DAY
    _run(hub, grant, 3)
    first, second = _reconcile(hub), _reconcile(hub, "2026-11-23")
    assert (first.ledger_gpu_ms, first.cluster_gpu_ms, first.observed_gpu_ms) == (HOUR_MS,) * 3
    assert (second.ledger_gpu_ms, second.cluster_gpu_ms, second.observed_gpu_ms) == (2 * HOUR_MS,) * 3
    assert _found(hub) == {}


def test_time_that_no_agent_saw_is_a_finding_with_numbers(hub: Hub) -> None:
    job = _run(hub, hub.award(), seen=0.5)
    found = _reconcile(hub)
    assert (found.unobserved_gpu_ms, found.differences) == (HOUR_MS, 1)
    row = hub.row(findings, code="unobserved_time")
    assert row.subject == f"{job.id}-1"
    assert row.numbers == f'{{"day": "{DAY}", "expected": {2 * HOUR_MS}, "found": {HOUR_MS}}}'


def test_half_a_percent_less_is_within_what_sampling_leaves_open(hub: Hub) -> None:
    _run(hub, hub.award(), 10, seen=0.995)
    assert _reconcile(hub).differences == 0


def test_more_than_the_job_ran_is_a_finding(hub: Hub) -> None:
    """Planted: an agent that goes on counting a GPU after the job ended."""
    grant = hub.award()
    job = _run(hub, grant, 1)
    row = EvidenceRow(
        job_id=job.id,
        attempt=1,
        gpu_uuid="GPU-other",
        gpu_class="h100",
        node="n0",
        hour=hub.now,
        agent_epoch="epoch-0001",
        seq=1,
        busy_ms=0,
        observed_ms=10 * MINUTE_MS,
    )
    hub.database.write(lambda tx: usage.store(tx, [row]))
    _reconcile(hub)
    assert _found(hub) == {"evidence_beyond_run": [f"{job.id}-1"]}


def test_a_ledger_that_says_otherwise_than_the_cluster_is_found(hub: Hub) -> None:
    """Planted: somebody moved an attempt's end after it was settled."""
    job = _run(hub, hub.award())
    hub.database.write(
        lambda tx: tx.connection.execute(text("UPDATE attempts SET ended_at_ms = ended_at_ms + 1"))
    )
    found = _reconcile(hub)
    assert found.cluster_gpu_ms == found.ledger_gpu_ms + 1
    assert _found(hub) == {"ledger_differs_from_cluster": [f"{job.id}-1"]}


def test_a_balance_that_is_not_its_transfers_is_found(hub: Hub) -> None:
    grant = hub.award()
    _run(hub, grant)
    hub.database.write(
        lambda tx: tx.connection.execute(
            text("UPDATE accounts SET used_gpu_us = used_gpu_us - 1 WHERE id = :account"),
            {"account": grant.account_id},
        )
    )
    _reconcile(hub)
    assert _found(hub) == {"balance_differs_from_transfers": [f"{grant.account_id}:used"]}


def test_a_day_that_is_not_settled_yet_says_so(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(walltime_s=48 * 3600)
    hub.run(job, grant)
    hub.clock.advance(DAY_MS)
    _reconcile(hub)
    assert "day_not_settled" in _found(hub)


def test_a_loss_and_what_was_learned_later_agree(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(walltime_s=4 * 3600, restartable=False)
    hub.run(job, grant)
    hub.clock.advance(2 * HOUR_MS)
    hub.report(lost(job, hub.now - HOUR_MS))
    found = _reconcile(hub)
    assert found.ledger_gpu_ms == found.cluster_gpu_ms == HOUR_MS
    assert set(_found(hub)) <= {"unobserved_time"}


def test_comparing_a_day_again_replaces_its_row_and_doubles_no_finding(hub: Hub) -> None:
    _run(hub, hub.award(), seen=0.5)
    first = _reconcile(hub)
    hub.clock.advance(HOUR_MS)
    again = _reconcile(hub)
    assert again.done_at > first.done_at
    assert len(hub.rows(findings)) == 1
    with hub.database.read() as connection:
        page = reconciliation.list_reconciliations(connection, None, 10)
    assert page.items == (again,)


def test_a_day_that_is_not_over_is_refused(hub: Hub) -> None:
    before = hub.contents()
    with pytest.raises(BadRequest, match="not over"):
        reconciliation.reconcile(hub.database, DAY)
    assert hub.contents() == before
