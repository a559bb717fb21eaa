"""Attempts that died of a GPU's fault: queued again, given back up to the cap, once, with the verdict as evidence.

Every test ends with the ledger's invariants; both databases.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import pytest

from quota import tasks
from quota.audit.tables import audit, findings
from quota.dispatch import gpu_reports
from quota.dispatch.evidence import deliver as deliver_evidence
from quota.jobs import faults
from quota.jobs.fault_tables import gpu_faults
from quota.ledger.tables import transfers
from quota.schemas.gpus import GpuReport, GpuVerdict
from quota.schemas.jobs import Job
from quota.schemas.programs import Grant
from quota.schemas.usage import EvidenceBatch, EvidenceRow
from tests.builders import HOUR_MS, MINUTE_MS, Hub, ended, lost
from tests.integration.quota.gpu_world import AGENT, a_row, a_seen_hub, a_verdict, held, ran, tell

MINUTE_US = 60_000_000
GPU = "GPU-n0-0"


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    with a_seen_hub(database_url) as made:
        yield made


@pytest.fixture
def grant(hub: Hub) -> Grant:
    return hub.award(hours="100")


def _strike(hub: Hub, job: Job, **fields: object) -> GpuVerdict:
    """The agent says that the job's GPU broke now."""
    verdict = a_verdict(hub, GPU, holders=held((job, 1)), **fields)
    tell(hub, [a_row(hub, GPU, health="unhealthy", proven=False)], [verdict])
    return verdict


def _die(hub: Hub, job: Job) -> None:
    hub.finish(job, exit_code=139)


def _refunds(hub: Hub, job: Job) -> list[tuple[int, str, str]]:
    return [
        (row.ends_at_ms - row.starts_at_ms, row.refund_kind, row.evidence)
        for row in hub.rows(transfers, type="refund", job_id=job.id)
    ]


@pytest.mark.parametrize("first", ["verdict", "end"])
def test_what_died_of_a_bad_gpu_waits_again_and_its_time_is_given_back(
    hub: Hub, grant: Grant, first: str
) -> None:
    job = ran(hub, grant)
    if first == "verdict":
        verdict = _strike(hub, job)
        _die(hub, job)
    else:
        _die(hub, job)
        assert (hub.job(job.id).state, hub.job(job.id).end_reason) == ("ended", "failed")
        hub.clock.advance(20_000)
        verdict = _strike(hub, job, since=hub.now - 20_000, at=hub.now - 20_000)
    now = hub.job(job.id)
    assert (now.state, now.end_reason) == ("queued", None)
    assert (now.attempts[0].end_reason, hub.attempt(job.id).detail) == (
        "node_failed", f"gpu-verdict:{verdict.id}",
    )  # fmt: skip
    refunds = _refunds(hub, job)
    assert [entry[:2] for entry in refunds] == [(30 * MINUTE_MS, "fault")]
    assert refunds[0][2].startswith(f"gpu-verdict:{verdict.id}")
    assert hub.grant(grant.id).used_gpu_us == 0
    assert [row.outcome for row in hub.rows(gpu_faults)] == ["requeued"]
    _, items = hub.snapshot()
    assert items["job", job.id].job is not None
    assert hub.start(job, grant, "n1") == 2


def test_every_order_and_repetition_gives_the_same_end(hub: Hub, grant: Grant) -> None:
    """Of a fault that leaves the GPU in use, so that every order has the same node."""
    for order in permutations(["end", "verdict", "task", "again"]):
        job = ran(hub, grant, minutes=1)
        verdict = a_verdict(hub, GPU, holders=held((job, 1)), health="degraded", rule="xid_contained", xid=94)
        steps = {
            "end": lambda job=job: _die(hub, job),
            "verdict": lambda verdict=verdict: tell(hub, verdicts=[verdict]),
            "task": lambda: faults.settle_due(hub.database),
            "again": lambda verdict=verdict: tell(hub, verdicts=[verdict]),
        }
        for step in (*order, "task"):
            steps[step]()
        assert (hub.job(job.id).state, len(_refunds(hub, job))) == ("queued", 1), order
        assert [row.outcome for row in hub.rows(gpu_faults, job_id=job.id)] == ["requeued"], order
        hub.cancel(job.id)
    assert hub.grant(grant.id).used_gpu_us == 0


def test_a_death_between_the_two_steps_is_made_up_for_by_the_task(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant)
    _die(hub, job)
    report = GpuReport(verdicts=(a_verdict(hub, GPU, holders=held((job, 1))),))
    hub.database.write(lambda tx: gpu_reports.store(tx, AGENT, report))
    assert hub.job(job.id).state == "ended"
    (task,) = [task for task in tasks.TASKS if task.name == "gpus.watch"]
    assert tasks.run_due(hub.database, task) == "1 faults, 0 GPUs, 0 stops"
    assert hub.job(job.id).state == "queued"
    assert faults.settle_due(hub.database) == 0


def test_the_refund_ends_at_the_cap_of_the_policy(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant, minutes=6 * 60)
    _die(hub, job)
    _strike(hub, job)
    assert sum(entry[0] for entry in _refunds(hub, job)) == 4 * HOUR_MS
    assert hub.grant(grant.id).used_gpu_us == 120 * MINUTE_US


def test_only_the_time_since_the_last_checkpoint_is_given_back(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant, minutes=25, checkpoint_interval_s=600)
    _die(hub, job)
    _strike(hub, job)
    assert [entry[0] for entry in _refunds(hub, job)] == [5 * MINUTE_MS]


def test_two_verdicts_on_one_attempt_are_given_back_once(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant)
    first, second = (a_verdict(hub, GPU, holders=held((job, 1)), xid=xid) for xid in (48, 79))
    _die(hub, job)
    tell(hub, verdicts=[first])
    tell(hub, verdicts=[second])
    assert len(_refunds(hub, job)) == 1
    assert hub.job(job.id).attempt == 1
    assert sorted(row.outcome for row in hub.rows(gpu_faults)) == ["ended", "requeued"]


def test_a_job_that_may_not_run_again_ends_with_the_fault_as_its_reason(hub: Hub, grant: Grant) -> None:
    early, late = ran(hub, grant, restartable=False), ran(hub, grant, restartable=False)
    _strike(hub, early)
    _die(hub, early)
    _die(hub, late)
    _strike(hub, late)
    for job in (early, late):
        assert (hub.job(job.id).state, hub.job(job.id).end_reason) == ("ended", "node_failed")
        assert len(_refunds(hub, job)) == 1


@pytest.mark.parametrize(
    ("fields", "exit_code"),
    [
        ({}, 0),
        ({"fault": False, "rule": "throttled", "health": "degraded", "xid": None}, 139),
        ({"at": -11, "since": -11}, 139),
        ({"at": 5, "since": 5}, 139),
    ],
    ids=["it succeeded", "nothing dies of that", "it ended long after", "it ended long before"],
)
def test_what_did_not_die_of_the_fault_is_left_as_it_was(
    hub: Hub, grant: Grant, fields: dict[str, object], exit_code: int
) -> None:
    job = ran(hub, grant)
    hub.finish(job, exit_code=exit_code)
    before = hub.job(job.id)
    ended_ms = hub.now
    hub.clock.advance(10 * MINUTE_MS)
    moved = {
        name: ended_ms + int(str(fields[name])) * MINUTE_MS for name in ("at", "since") if name in fields
    }
    _strike(hub, job, **{"at": ended_ms, "since": ended_ms} | fields | moved)
    assert hub.job(job.id).model_dump() == before.model_dump()
    assert _refunds(hub, job) == []


def test_who_was_cancelled_stays_cancelled(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant)
    hub.cancel(job.id)
    _strike(hub, job)
    _die(hub, job)
    assert (hub.job(job.id).state, hub.job(job.id).end_reason) == ("ended", "cancelled")
    assert _refunds(hub, job) == []


def test_after_an_hour_a_job_stays_ended_and_only_the_refund_is_made(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant)
    ended_ms = hub.now
    _die(hub, job)
    hub.clock.advance(61 * MINUTE_MS)
    _strike(hub, job, at=ended_ms, since=ended_ms)
    assert (hub.job(job.id).state, hub.job(job.id).end_reason) == ("ended", "node_failed")
    assert len(_refunds(hub, job)) == 1


def test_evidence_names_the_holder_where_the_agent_cannot(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant)
    measured = EvidenceRow(
        job_id=job.id,
        attempt=1,
        gpu_uuid=GPU,
        gpu_class="h100",
        node="n0",
        hour=hub.now - hub.now % HOUR_MS,
        agent_epoch="an-epoch",
        seq=1,
        busy_ms=1,
        observed_ms=2,
    )
    hub.database.write(lambda tx: deliver_evidence(tx, AGENT, EvidenceBatch(rows=(measured,))))
    _die(hub, job)
    tell(hub, verdicts=[a_verdict(hub, GPU)])
    assert hub.job(job.id).state == "queued"


def test_an_attempt_that_was_never_placed_there_gets_nothing(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant)
    _die(hub, job)
    tell(hub, verdicts=[a_verdict(hub, "GPU-n1-0", "n1", holders=held((job, 1)))])
    assert (hub.job(job.id).end_reason, _refunds(hub, job)) == ("failed", [])
    assert [row.subject for row in hub.rows(findings, code="verdict_of_unknown_attempt")] == [f"{job.id}-1"]


def test_a_verdict_that_says_it_may_have_been_any_time_covers_the_last_hour_only(
    hub: Hub, grant: Grant
) -> None:
    job = ran(hub, grant)
    _die(hub, job)
    hub.clock.advance(62 * MINUTE_MS)
    _strike(hub, job, since=0, at=hub.now)
    assert (hub.job(job.id).end_reason, _refunds(hub, job)) == ("failed", [])


def test_a_lost_node_is_given_back_as_ever_and_not_twice(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant)
    hub.report(lost(job, hub.now))
    assert len(_refunds(hub, job)) == 1
    _strike(hub, job)
    assert len(_refunds(hub, job)) == 1
    assert [row.outcome for row in hub.rows(gpu_faults)] == ["ended"]


def test_an_unsettled_attempt_is_given_back_with_its_last_slice(hub: Hub, grant: Grant) -> None:
    """The cluster's watermark stands still: the verdict is there before anything was charged."""
    job = ran(hub, grant)
    hub.report(ended(job, hub.now, exit_code=139, reason="failed"), through=hub.now - 20 * MINUTE_MS)
    verdict = _strike(hub, job)
    assert (hub.job(job.id).state, _refunds(hub, job)) == ("queued", [])
    hub.report()
    assert [entry[0] for entry in _refunds(hub, job)] == [30 * MINUTE_MS]
    assert _refunds(hub, job)[0][2].startswith(f"gpu-verdict:{verdict.id}, report:")


def test_the_audit_trail_tells_why(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant)
    _die(hub, job)
    verdict = _strike(hub, job)
    (row,) = hub.rows(audit, action="attempt.gpu_fault")
    assert (row.subject, row.reason) == (job.id, f"gpu-verdict:{verdict.id}")
