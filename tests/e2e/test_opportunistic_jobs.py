"""Opportunistic jobs on a full hub leave for one who is entitled, whoever dies meanwhile, and come again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_workload import verdict
from hub_processes import Hub, a_hub, until

from quota.client import QuotaClient
from quota.schemas.fair_share import FairShare, FairSharePut
from quota.schemas.funds import FundPut
from quota.schemas.jobs import JobSubmission
from quota.schemas.scheduling import JobState

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.timeout(300)]

PROGRAM = "seoul"
NODES = 3
NODE_GPUS = 8
GRACE_MS = 60_000
NOTICE_MS = 1_200_000
"""Two seconds of wall time."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with a_hub(tmp_path / "hub", lease_ttl_s=2.0) as hub:
        yield hub


@pytest.mark.parametrize("point", ["", "after_decision_sent_before_reply:1"])
def test_the_youngest_leaves_and_comes_again(hub: Hub, point: str) -> None:
    spare = fill(hub)
    with hub.client("alpha") as firm:
        if point:
            hub.programs["scheduler"].comes_back = False
            hub.kill("scheduler")
            until(lambda: not hub.programs["scheduler"].alive, "the scheduler is dead")
        mine = submit(firm, "mine", runs_s=1200)
        if point:
            hub.programs["scheduler"].comes_back = True
            hub.crash("scheduler", point, 2)
        until(lambda: firm.read_job(mine).state is JobState.RUNNING, "who is entitled runs")
    verdict(hub)
    assert hub.ask("SELECT end_reason, attempt FROM jobs WHERE id = ?", mine) == [("succeeded", 1)]
    ends = dict(hub.ask("SELECT id, end_reason FROM jobs WHERE program_id IS NOT NULL"))
    assert ends == dict.fromkeys(spare, "succeeded"), "who left came again"
    ((left, told_ms, stop_ms, ended_ms),) = hub.ask(
        "SELECT a.job_id, t.at_ms, a.stop_at_ms, a.ended_at_ms FROM attempts a"
        " JOIN audit t ON t.subject = a.job_id AND t.action = 'attempt.stop'"
        " WHERE a.end_reason = 'preempted'"
    )
    claimed = dict(hub.ask("SELECT job_id, claimed_at_ms FROM attempts WHERE attempt = 1 AND opportunistic"))
    assert left == max(spare, key=lambda job: (claimed[job], job)), "the youngest"
    ((claimed_ms,),) = hub.ask("SELECT claimed_at_ms FROM attempts WHERE job_id = ?", mine)
    assert told_ms + NOTICE_MS // 2 < stop_ms <= ended_ms <= claimed_ms
    judge_money(hub, mine)


def judge_money(hub: Hub, mine: str) -> None:
    """The programme paid for its jobs, and nothing else; the firms' grants for none of them."""
    payers = hub.ask(
        "SELECT DISTINCT g.organization_id, j.program_id FROM holds h"
        " JOIN grants g ON g.id = h.grant_id JOIN jobs j ON j.id = h.job_id"
    )
    assert sorted(payers, key=str) == [("alpha", None), (None, PROGRAM)]
    ((used, held, settled),) = hub.ask(
        "SELECT a.used_gpu_us, a.held_gpu_us, SUM(h.settled_gpu_us - h.refunded_gpu_us)"
        " FROM accounts a JOIN grants g ON g.account_id = a.id JOIN holds h ON h.grant_id = g.id"
        " WHERE g.organization_id IS NULL GROUP BY a.id"
    )
    assert (used, held) == (settled, 0)
    assert used > 0
    ((alone,),) = hub.ask("SELECT settled_gpu_us - refunded_gpu_us FROM holds WHERE job_id = ?", mine)
    assert hub.ask(
        "SELECT SUM(used_gpu_us) FROM accounts WHERE kind = 'grant' AND organization_id IS NOT NULL"
    ) == [(alone,)]


def fill(hub: Hub) -> list[str]:
    """Opportunistic jobs of beta have every whole GPU; answers them."""
    share = FairShare(opportunistic_notice_ms=NOTICE_MS)
    with hub.client("operator") as operator, hub.client("beta") as firm:
        operator.put_fair_share(FairSharePut(fair_share=share, reason="a small hub"))
        ends_at = hub.clock.now_ms() + 30 * 86_400_000
        operator.put_fund(PROGRAM, FundPut(gpu_hours="1000", ends_at=ends_at, reason="idle GPUs"))
        spare = [submit(firm, f"spare {n}", runs_s=6000, opportunistic=True) for n in range(NODES)]
        until(lambda: {firm.read_job(id).state for id in spare} == {JobState.RUNNING}, "all is taken")
    return spare


def submit(firm: QuotaClient, name: str, *, runs_s: int, opportunistic: bool = False) -> str:
    """A job that takes a whole node; answers its id."""
    body = JobSubmission(
        name=name,
        gpu_class="h100",
        gpus_per_pod=NODE_GPUS,
        walltime_s=4 * runs_s,
        grace_s=GRACE_MS // 1000,
        restartable=opportunistic,
        opportunistic=opportunistic,
        annotations={"simulate.gpuhub/duration_s": str(runs_s)},
    )
    return firm.submit_job(body, name).id
