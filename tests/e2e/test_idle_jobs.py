"""Idle jobs of the simulated cluster are warned and stopped by the real programs, whoever dies meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_workload import verdict
from hub_processes import Hub, a_hub, until

from quota.client import QuotaClient
from quota.schemas.idle import IdlePolicy, IdlePolicyPut, JobKind
from quota.schemas.jobs import JobSubmission

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.timeout(300)]

MINUTE_MS = 60_000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with a_hub(tmp_path / "hub") as hub:
        yield hub


def test_idle_jobs_are_stopped_after_two_warnings_and_the_others_run_on(hub: Hub) -> None:
    with hub.client("operator") as operator:
        # a fifth of a second is two minutes here, and a busy machine misses some
        policy = IdlePolicy(observed_thousandths=500)
        operator.put_idle_policy(IdlePolicyPut(policy=policy, reason="a fast clock"))
    with hub.client("alpha") as firm:
        idle = submit(firm, "idle", "idle", gpus=2)
        works = submit(firm, "works", "steady:0.4", runs_s=4 * 3600)
        pauses = submit(firm, "pauses", "burst:2400:0.2", runs_s=4 * 3600, kind=JobKind.INTERACTIVE)
        forgotten = submit(firm, "forgotten", "active_then_idle:900", kind=JobKind.INTERACTIVE)
    for victim in ("quota", "scheduler", "quota"):
        until(lambda: hub.ask("SELECT COUNT(*) FROM idle_warnings")[0][0] >= 1, "somebody is warned")
        hub.kill(victim)
        until(lambda: hub.programs["quota"].alive, "it is back")
    until(lambda: ended(hub, idle) and ended(hub, forgotten), "the idle ones are over")
    verdict(hub)
    assert {ended(hub, idle), ended(hub, forgotten)} == {"idle_reclaimed"}
    assert {ended(hub, works), ended(hub, pauses)} == {"succeeded"}
    judge_stop(hub, idle, 120 * MINUTE_MS)
    judge_stop(hub, forgotten, (15 + 60) * MINUTE_MS)


def submit(
    firm: QuotaClient,
    name: str,
    load: str,
    *,
    gpus: int = 1,
    runs_s: int = 40 * 3600,
    kind: JobKind = JobKind.BATCH,
) -> str:
    """A job with this load; answers its id."""
    body = JobSubmission(
        name=name,
        gpu_class="h100",
        gpus_per_pod=gpus,
        walltime_s=48 * 3600,
        kind=kind,
        annotations={"simulate.gpuhub/duration_s": str(runs_s), "simulate.gpuhub/load": load},
    )
    return firm.submit_job(body, name).id


def ended(hub: Hub, job: str) -> str | None:
    """Why a job ended; None while it has not."""
    reason: str | None = hub.ask("SELECT end_reason FROM jobs WHERE id = ?", job)[0][0]
    return reason


def judge_stop(hub: Hub, job: str, after_ms: int) -> None:
    """Not before its time, not without its warnings, and the rest of its hold came free."""
    started, stopped, hold = hub.ask(
        "SELECT last_started_at_ms, stop_at_ms, hold_id FROM attempts WHERE job_id = ? AND stop_reason IS NOT NULL",
        job,
    )[0]
    assert stopped - started >= after_ms
    given = hub.ask("SELECT step, at_ms FROM idle_warnings WHERE job_id = ? ORDER BY number", job)
    assert [step for step, _ in given] == [1, 2]
    assert given[1][1] + 10 * MINUTE_MS <= stopped
    amount, settled, released = hub.ask(
        "SELECT amount_gpu_us, settled_gpu_us, released_gpu_us FROM holds WHERE id = ?", hold
    )[0]
    assert settled + released == amount
    assert released > 0
