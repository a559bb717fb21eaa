"""Jobs that go on with a GPU that is gone are stopped as if they had died of it; both databases, the ledger checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest

from agents import health_rules
from quota import tasks
from quota.audit.tables import audit
from quota.jobs import fault_stops, faults
from quota.jobs.fault_tables import gpu_faults
from quota.ledger.tables import transfers
from quota.schemas.gpus import GpuVerdict, Outcome
from quota.schemas.jobs import Job
from quota.schemas.programs import Grant
from quota.schemas.scheduling import StopReason
from tests.builders import HOUR_MS, MINUTE_MS, Hub, ended, lost
from tests.integration.quota.gpu_world import (
    a_row,
    a_seen_hub,
    a_verdict,
    break_gpu,
    change,
    held,
    policy,
    ran,
    see,
    tell,
)

GPU = "GPU-n0-0"
GONE = StopReason.GPU_FAILED


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    with a_seen_hub(database_url) as made:
        yield made


@pytest.fixture
def grant(hub: Hub) -> Grant:
    return hub.award(hours="100")


def _strike(hub: Hub, job: Job, rule: str = "hangs", **fields: object) -> GpuVerdict:
    """The agent says that the job's GPU does not answer any more."""
    health = "lost" if rule == "lost" else "unhealthy"
    verdict = a_verdict(hub, GPU, holders=held((job, 1)), rule=rule, health=health, xid=None, **fields)
    tell(hub, [a_row(hub, GPU, health=health, proven=False)], [verdict])
    return verdict


def _later(hub: Hub, minutes: float, **fields: object) -> int:
    """Time goes on, the agent says the same of the GPU, the task runs; how many stops it asked for."""
    hub.clock.advance(round(minutes * MINUTE_MS))
    tell(hub, [a_row(hub, GPU, **{"health": "unhealthy", "proven": False} | fields)])
    return fault_stops.stop_due(hub.database)


def _asked(hub: Hub, job: Job) -> str | None:
    return hub.attempt(job.id).stop_asked


def _stopped(hub: Hub, job: Job) -> None:
    hub.report(ended(job, hub.now, exit_code=137, reason="stopped"))


def _refunds(hub: Hub, job: Job) -> list[tuple[int, str, str]]:
    return [
        (row.ends_at_ms - row.starts_at_ms, row.refund_kind, row.evidence)
        for row in hub.rows(transfers, type="refund", job_id=job.id)
    ]


def test_the_rules_are_those_of_the_agents() -> None:
    assert set(faults.GONE) == {health_rules.HANGS, health_rules.LOST}
    assert all(health_rules.RULES[rule].fault for rule in faults.GONE)


@pytest.mark.parametrize("rule", faults.GONE)
def test_a_job_on_a_gpu_that_is_gone_is_stopped_waits_again_and_is_given_back(
    hub: Hub, grant: Grant, rule: str
) -> None:
    job = ran(hub, grant)
    verdict = _strike(hub, job, rule)
    assert _later(hub, 9.9) == 0
    assert _later(hub, 0.1) == 1
    assert _asked(hub, job) == "gpu_failed"
    assert _later(hub, 1) == 0, "asked once"
    assert hub.stop(job, GONE).outcome == "accepted"
    hub.clock.advance(MINUTE_MS)
    _stopped(hub, job)
    now = hub.job(job.id)
    assert (now.state, now.end_reason, now.attempts[0].end_reason) == ("queued", None, "node_failed")
    assert hub.attempt(job.id).detail == f"gpu-verdict:{verdict.id}"
    ((length, kind, evidence),) = _refunds(hub, job)
    # 41 minutes up to the stop, and its grace; what it took longer nobody was charged for
    assert (length, kind) == (41 * MINUTE_MS + 30_000, "fault")
    assert evidence.startswith(f"gpu-verdict:{verdict.id}")
    assert [row.outcome for row in hub.rows(gpu_faults)] == ["requeued"]
    assert hub.grant(grant.id).used_gpu_us == 0
    assert hub.start(job, grant, "n1") == 2
    assert faults.settle_due(hub.database) == 0
    (row,) = hub.rows(audit, action="attempt.ask_stop")
    assert (row.subject, row.actor) == (job.id, "hub")
    assert verdict.id in row.detail


def test_the_refund_ends_at_the_cap_and_at_the_checkpoint(hub: Hub, grant: Grant) -> None:
    long, marked = ran(hub, grant, 5 * 60), ran(hub, grant, 25, checkpoint_interval_s=600)
    verdict = a_verdict(hub, GPU, holders=held((long, 1), (marked, 1)), rule="lost", health="lost", xid=None)
    tell(hub, [a_row(hub, GPU, health="lost", proven=False)], [verdict])
    assert _later(hub, 10, health="lost") == 2
    for job in (long, marked):
        assert hub.stop(job, GONE).outcome == "accepted"
        _stopped(hub, job)
    assert sum(entry[0] for entry in _refunds(hub, long)) == 4 * HOUR_MS
    assert [entry[0] for entry in _refunds(hub, marked)] == [5 * MINUTE_MS]


def test_one_that_may_not_run_again_ends_with_the_fault_as_its_reason(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant, restartable=False)
    _strike(hub, job)
    _later(hub, 10)
    hub.stop(job, GONE)
    _stopped(hub, job)
    assert (hub.job(job.id).state, hub.job(job.id).end_reason) == ("ended", "node_failed")
    assert len(_refunds(hub, job)) == 1


@pytest.mark.parametrize("held_back", ["breaker", "observe_only"])
def test_what_the_circuit_breaker_withholds_stops_nobody(hub: Hub, grant: Grant, held_back: str) -> None:
    job = ran(hub, grant)
    if held_back == "breaker":
        break_gpu(hub, "GPU-n1-0", "n1")
    else:
        policy(hub, observe_only=True)
    _strike(hub, job)
    assert _later(hub, 60) == 0
    assert "withheld" in get_args(Outcome)
    change(hub, GPU, quarantined=True)
    assert fault_stops.stop_due(hub.database) == 1, "the operator takes it out of use, so its job has to go"


def test_the_wait_is_the_policys(hub: Hub, grant: Grant) -> None:
    policy(hub, stop_after_s=3600)
    job = ran(hub, grant)
    _strike(hub, job)
    assert _later(hub, 59) == 0
    assert _later(hub, 1) == 1


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"health": "healthy", "proven": True}, "lost"),
        ({"health": "degraded", "proven": False}, "hangs"),
        ({}, "xid_hardware"),
        ({}, "recovery_action"),
    ],
)
def test_a_gpu_that_came_back_or_still_computes_keeps_its_job(
    hub: Hub, grant: Grant, fields: dict[str, object], rule: str
) -> None:
    job = ran(hub, grant)
    _strike(hub, job, rule)
    assert _later(hub, 20, **fields) == 0
    assert _asked(hub, job) is None


def test_an_agent_that_fell_silent_since_stops_nobody(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant)
    _strike(hub, job)
    hub.clock.advance(11 * MINUTE_MS)
    assert fault_stops.stop_due(hub.database) == 0
    assert _later(hub, 0.1) == 1


def test_a_job_beside_it_on_the_same_node_goes_on(hub: Hub, grant: Grant) -> None:
    job, other = ran(hub, grant), ran(hub, grant, 0)
    _strike(hub, job)
    assert _later(hub, 10) == 1
    assert (_asked(hub, job), _asked(hub, other)) == ("gpu_failed", None)


@pytest.mark.parametrize("exit_code", [0, 139])
def test_one_that_ends_by_itself_before_the_stop_is_recorded(hub: Hub, grant: Grant, exit_code: int) -> None:
    job = ran(hub, grant)
    verdict = _strike(hub, job)
    _later(hub, 30)
    hub.finish(job, exit_code=exit_code)
    if exit_code == 0:
        assert (hub.job(job.id).end_reason, _refunds(hub, job)) == ("succeeded", [])
        faults.settle_due(hub.database)
        assert [row.outcome for row in hub.rows(gpu_faults)] == ["none"]
        return
    assert (hub.job(job.id).state, hub.attempt(job.id).detail) == ("queued", f"gpu-verdict:{verdict.id}")
    assert len(_refunds(hub, job)) == 1


def test_one_that_succeeds_within_its_grace_succeeded(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant)
    _strike(hub, job)
    _later(hub, 10)
    hub.stop(job, GONE)
    hub.finish(job, exit_code=0)
    assert (hub.job(job.id).end_reason, _refunds(hub, job)) == ("succeeded", [])


def test_a_cancel_and_an_operators_requeue_outweigh_it_and_it_outweighs_idleness(
    hub: Hub, grant: Grant
) -> None:
    cancelled, requeued, idle = ran(hub, grant), ran(hub, grant, 0), ran(hub, grant, 0)
    hub.ask_stop(idle, StopReason.IDLE_RECLAIMED)
    hub.ask_stop(requeued, StopReason.REQUEUED)
    hub.cancel(cancelled.id)
    verdict = a_verdict(
        hub, GPU, holders=held((cancelled, 1), (requeued, 1), (idle, 1)), rule="lost", health="lost", xid=None
    )
    tell(hub, [a_row(hub, GPU, health="lost", proven=False)], [verdict])
    assert _later(hub, 10, health="lost") == 1
    assert [_asked(hub, job) for job in (cancelled, requeued, idle)] == [None, "requeued", "gpu_failed"]
    hub.stop(cancelled, StopReason.CANCELLED)
    _stopped(hub, cancelled)
    assert (hub.job(cancelled.id).end_reason, _refunds(hub, cancelled)) == ("cancelled", [])


def test_a_node_that_is_lost_meanwhile_gives_back_once(hub: Hub, grant: Grant) -> None:
    job = ran(hub, grant)
    _strike(hub, job)
    _later(hub, 10)
    hub.report(lost(job, hub.now))
    faults.settle_due(hub.database)
    assert len(_refunds(hub, job)) == 1
    assert hub.job(job.id).state == "queued"


def test_the_task_asks_and_asks_again_after_a_death_before_the_commit(
    hub: Hub, grant: Grant, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ran(hub, grant)
    _strike(hub, job)
    hub.clock.advance(10 * MINUTE_MS)
    see(hub, "n0", 8, health="unhealthy", proven=False)
    (task,) = [task for task in tasks.TASKS if task.name == "gpus.watch"]
    asks = fault_stops.ask_stop

    def dies(*arguments: object, **named: object) -> bool:
        asks(*arguments, **named)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(fault_stops, "ask_stop", dies)
    with pytest.raises(KeyboardInterrupt):
        fault_stops.stop_due(hub.database)
    assert _asked(hub, job) is None
    monkeypatch.setattr(fault_stops, "ask_stop", asks)
    assert tasks.run_due(hub.database, task).endswith("1 stops")
    assert _asked(hub, job) == "gpu_failed"
