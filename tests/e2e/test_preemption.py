"""A gang of a firm behind its pace takes the room of small jobs of a firm far ahead, whoever dies meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_workload import verdict
from hub_processes import Hub, a_hub, until

from quota.client import QuotaClient
from quota.schemas.fair_share import FairShare, FairSharePut, Preemption
from quota.schemas.jobs import JobSubmission
from quota.schemas.scheduling import JobState

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.timeout(300)]

NODES = 3
NODE_GPUS = 8
CHECKPOINT_MS = 900_000
GRACE_MS = 60_000
NOTICE_MS = 1_200_000
"""Two seconds of wall time."""
SHARE = FairShare(
    gang_first_gpus=16,
    reservation_gpus=16,
    preemption=Preemption(
        gang_gpus=16,
        victim_gpus=NODE_GPUS,
        lead_ms=60_000,
        protected_ms=60_000,
        notice_ms=NOTICE_MS,
        checkpoint_ms=CHECKPOINT_MS,
    ),
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with a_hub(tmp_path / "hub", lease_ttl_s=2.0) as hub:
        yield hub


def test_victims_are_told_stopped_and_given_back_what_they_lost(hub: Hub) -> None:
    small = fill(hub)
    with hub.client("alpha") as firm:
        gang = submit(firm, "gang", pods=2, runs_s=1200)
        until(lambda: len(stops(hub)) == 2, "two of them are to be stopped for the gang")
        assert {for_job for _, _, for_job in stops(hub)} == {gang}
        until(lambda: firm.read_job(gang).state is JobState.RUNNING, "the gang runs")
    judge_preemption(hub, small, gang)
    assert hub.ask("SELECT COUNT(*) FROM transfers WHERE type = 'refund'") != [(0,)]


@pytest.mark.parametrize(
    ("point", "deaths"),
    # the other victim may be suspended by then, and there is no second one to die after
    [("after_decision_sent_before_reply", 2), ("between_stop_and_suspend", 2), ("after_suspend", 1)],
)
def test_a_scheduler_that_dies_between_the_decision_and_the_stop_changes_nothing(
    hub: Hub, point: str, deaths: int
) -> None:
    small = fill(hub)
    hub.programs["scheduler"].comes_back = False
    hub.kill("scheduler")
    until(lambda: not hub.programs["scheduler"].alive, "the scheduler is dead")
    with hub.client("alpha") as firm:
        gang = submit(firm, "gang", pods=2, runs_s=1200)
    hub.programs["scheduler"].comes_back = True
    hub.crash("scheduler", f"{point}:1", deaths)
    judge_preemption(hub, small, gang)


def fill(hub: Hub) -> list[str]:
    """Let beta have every whole GPU for long enough to be ahead of its pace; answers its jobs."""
    with hub.client("operator") as operator, hub.client("beta") as firm:
        stored = operator.put_fair_share(FairSharePut(fair_share=SHARE, reason="a small hub"))
        assert stored.fair_share == SHARE
        small = [submit(firm, f"small {n}", runs_s=6000, restartable=True) for n in range(NODES)]
        until(lambda: {firm.read_job(id).state for id in small} == {JobState.RUNNING}, "all is taken")
        since_ms = hub.clock.now_ms()
        until(lambda: hub.clock.now_ms() > since_ms + 2 * CHECKPOINT_MS, "two checkpoints are saved")
    return small


def submit(firm: QuotaClient, name: str, *, runs_s: int, pods: int = 1, restartable: bool = False) -> str:
    """A job that takes whole nodes; answers its id."""
    body = JobSubmission(
        name=name,
        gpu_class="h100",
        gpus_per_pod=NODE_GPUS,
        pods=pods,
        walltime_s=4 * runs_s,
        grace_s=GRACE_MS // 1000,
        restartable=restartable,
        annotations={"simulate.gpuhub/duration_s": str(runs_s)},
    )
    return firm.submit_job(body, name).id


def stops(hub: Hub) -> list[tuple[str, int, str]]:
    """Who is stopped for whom, as long as the room is kept."""
    return [
        (job, stop_at, for_job)
        for job, stop_at, for_job in hub.ask(
            "SELECT job_id, stop_at_ms, stop_for_job FROM attempts"
            " WHERE stop_reason = 'preempted' AND stop_for_job IS NOT NULL"
        )
    ]


def judge_preemption(hub: Hub, small: list[str], gang: str) -> None:
    """The whole story, when it is over."""
    verdict(hub)
    assert hub.ask("SELECT end_reason, attempt FROM jobs WHERE id = ?", gang) == [("succeeded", 1)]
    ends = dict(hub.ask("SELECT id, end_reason FROM jobs WHERE id <> ?", gang))
    assert ends == dict.fromkeys(small, "succeeded"), "the victims came again and finished"
    victims = hub.ask(
        "SELECT job_id, last_started_at_ms, stop_at_ms, ended_at_ms, hold_id FROM attempts"
        " WHERE end_reason = 'preempted' ORDER BY job_id"
    )
    assert len(victims) == 2
    assert {attempt for (attempt,) in hub.ask("SELECT attempt FROM jobs WHERE id <> ?", gang)} == {1, 2}
    (claimed_ms,) = hub.ask("SELECT claimed_at_ms FROM attempts WHERE job_id = ?", gang)[0]
    for job, started_ms, stop_ms, ended_ms, hold in victims:
        (decided_ms,) = hub.ask("SELECT at_ms FROM audit WHERE action = 'attempt.stop' AND subject = ?", job)[
            0
        ]
        assert decided_ms + NOTICE_MS // 2 < stop_ms <= ended_ms <= claimed_ms, (
            "told well ahead, then stopped"
        )
        judge_refund(hub, job, (started_ms, stop_ms, ended_ms), hold)
    assert hub.ask("SELECT COUNT(*) FROM transfers WHERE type = 'refund' AND refund_kind <> 'preempted'") == [
        (0,)
    ]


def judge_refund(hub: Hub, job: str, times: tuple[int, int, int], hold: str) -> None:
    """What it paid for since its last checkpoint came back, once, with its evidence.

    While no scheduler lived it may have run on past its grace: that was never charged, and what it saved is saved.
    """
    started_ms, stop_ms, ended_ms = times
    saved_ms = ended_ms - (ended_ms - started_ms) % CHECKPOINT_MS
    charged_until_ms = min(ended_ms, stop_ms + GRACE_MS)
    lost_ms = max(0, charged_until_ms - saved_ms)
    refunds = hub.ask(
        "SELECT starts_at_ms, ends_at_ms, amount_gpu_us, evidence FROM transfers"
        " WHERE type = 'refund' AND job_id = ? ORDER BY starts_at_ms",
        job,
    )
    assert sum(amount for _, _, amount, _ in refunds) == lost_ms * NODE_GPUS * 1000
    if lost_ms:
        assert (refunds[0][0], refunds[-1][1]) == (saved_ms, charged_until_ms)
    assert all(said.startswith(f"stop:{job}:1 checkpoint every {CHECKPOINT_MS} ms, ") for *_, said in refunds)
    settled, refunded, platform = hub.ask(
        "SELECT settled_gpu_us, refunded_gpu_us, platform_gpu_us FROM holds WHERE id = ?", hold
    )[0]
    assert refunded == lost_ms * NODE_GPUS * 1000
    assert settled - refunded == (min(saved_ms, charged_until_ms) - started_ms) * NODE_GPUS * 1000
    assert platform >= refunded
