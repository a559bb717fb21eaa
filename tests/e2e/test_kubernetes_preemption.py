"""On a real control plane: a gang of a firm behind its pace takes the nodes of jobs of one that is ahead."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from quota.schemas.fair_share import FairShare, FairSharePut, Preemption
from quota.schemas.scheduling import EndReason, JobState
from tests.kubernetes_hub import KubernetesHub, a_kubernetes_hub

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(300)]

NODES = 3
NODE_GPUS = 8
GANG_PODS = 2
NOTICE_MS = 4_000
SHARE = FairShare(
    gang_first_gpus=16,
    reservation_gpus=16,
    preemption=Preemption(
        gang_gpus=16, victim_gpus=NODE_GPUS, lead_ms=0, protected_ms=1_000, notice_ms=NOTICE_MS
    ),
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[KubernetesHub]:
    with a_kubernetes_hub(tmp_path / "hub", f"sim-[0-{NODES - 1}]:h100={NODE_GPUS}") as hub:
        with hub.client() as client:
            client.put_fair_share(FairSharePut(fair_share=SHARE, reason="a small hub"))
        yield hub


def test_victims_are_told_suspended_and_come_again(hub: KubernetesHub) -> None:
    small = [hub.submit(f"small-{n}", gpus=NODE_GPUS, runs_s=25, restartable=True) for n in range(NODES)]
    hub.await_state(JobState.RUNNING, *small)
    gang = hub.submit("gang", gpus=NODE_GPUS, pods=GANG_PODS, runs_s=3, firm="beta-robotics")
    hub.await_settled(gang, *small)

    first, *others = hub.read(gang).attempts
    assert not others
    assert {job.end_reason for job in map(hub.read, (gang, *small))} == {EndReason.SUCCEEDED}
    victims = [job for job in map(hub.read, small) if len(job.attempts) == 2]
    assert len(victims) == GANG_PODS, "who need not stop goes on"
    for job in victims:
        stopped, again = sorted(job.attempts, key=lambda one: one.attempt)
        assert (stopped.state, stopped.end_reason) == (JobState.ENDED, EndReason.PREEMPTED)
        assert stopped.ended_at is not None
        assert stopped.ended_at <= first.claimed_at, "the gang begins when the room is there"
        assert again.claimed_at >= first.claimed_at, "nobody takes the room that is kept"
    for job_id, decided_ms, stop_at_ms, ended_ms in _stops(hub):
        assert decided_ms + NOTICE_MS // 2 < stop_at_ms <= ended_ms, f"{job_id} was not told in time"
    assert len(_stops(hub)) == GANG_PODS
    refunded = {job_id for (job_id,) in _ask(hub, "SELECT job_id FROM transfers WHERE type = 'refund'")}
    assert refunded == {job.id for job in victims}, "what they had not saved is given back"
    assert hub.judge(final=True) == []


def _stops(hub: KubernetesHub) -> list[tuple[str, int, int, int]]:
    """Job, when its stop was decided, for when, and when it had ended."""
    return _ask(
        hub,
        "SELECT job_id, (SELECT at_ms FROM audit WHERE action = 'attempt.stop' AND subject = job_id), stop_at_ms,"
        " ended_at_ms FROM attempts WHERE end_reason = 'preempted' ORDER BY job_id",
    )


def _ask(hub: KubernetesHub, question: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{hub.database}?mode=ro", uri=True)) as connection:
        return connection.execute(question).fetchall()
