"""A scheduler that lost its memory goes on from the snapshot: lags, cooldowns, and room that is kept for a gang."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from crash_workload import verdict
from hub_processes import Hub, a_hub, until

from quota.client import QuotaClient, ServiceProblem
from quota.schemas.jobs import JobSubmission
from quota.schemas.scheduling import (
    DecisionBatch,
    DecisionReply,
    JobState,
    LeaseReply,
    LeaseRequest,
    StopItem,
    StopReason,
    WaitReason,
)

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.timeout(300)]

NODES = 3
NODE_GPUS = 8


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with a_hub(tmp_path / "hub", lease_ttl_s=2.0) as hub:
        yield hub


def test_a_cooldown_is_kept(hub: Hub) -> None:
    with hub.client("alpha") as firm:
        job_id = submit(firm, "slow to start", runs_s=60, start_s=3000)
        until(lambda: firm.read_job(job_id).state is JobState.STARTING, "the attempt is placed")
        without_scheduler(hub)
        decide(hub, stop(hub, job_id, StopReason.ABANDONED))
        hub.programs["scheduler"].comes_back = True
        until(lambda: not_before(hub, job_id), "the attempt was abandoned and waits for its next one")
        not_before_ms = not_before(hub, job_id)
        hub.kill("scheduler")
        until(lambda: reason(firm, job_id) is WaitReason.COOLDOWN, "the next scheduler knows of the cooldown")
        until(lambda: firm.read_job(job_id).attempt == 2, "the next attempt")
    (claimed_at,) = hub.ask("SELECT claimed_at_ms FROM attempts WHERE job_id = ? AND attempt = 2", job_id)[0]
    assert claimed_at >= not_before_ms
    verdict(hub)


def test_a_grant_stays_as_far_behind_as_it_was(hub: Hub) -> None:
    with hub.client("beta") as others, hub.client("alpha") as firm:
        filling = [submit(others, f"fills {n}", gpus=NODE_GPUS, runs_s=50_000) for n in range(NODES)]
        until(lambda: {others.read_job(id).state for id in filling} == {JobState.RUNNING}, "all is taken")
        first = submit(firm, "waits long", runs_s=60)
        since_ms = firm.read_job(first).submitted_at
        until(lambda: hub.clock.now_ms() > since_ms + 2_000_000, "the grant fell behind")
        firm.cancel_job(first)
        second = submit(firm, "waits now", runs_s=60)
        until(lambda: reason(firm, second) is not WaitReason.NEW, "it is in the ranking")
        without_scheduler(hub)
        lag_ms, as_of_ms = pace(hub)
        hub.programs["scheduler"].comes_back = True
        until(lambda: pace(hub)[1] > as_of_ms, "the next scheduler tells paces")
        later_lag_ms, later_ms = pace(hub)
        waited_ms = later_ms - firm.read_job(second).submitted_at
        assert later_lag_ms >= lag_ms > 1_500_000
        assert later_lag_ms >= waited_ms + 1_000_000, "more than its present job has waited"
        for job_id in filling:
            others.cancel_job(job_id)
    verdict(hub)


def test_room_stays_kept_for_the_gang_that_others_stop_for(hub: Hub) -> None:
    with hub.client("beta") as others, hub.client("alpha") as firm, hub.client("gamma") as third:
        comes_again = partial(submit, others, gpus=NODE_GPUS, runs_s=50_000, restartable=True)
        quick = comes_again("stops at once", stop_s=0)
        slow = comes_again("stops late", stop_s=3000, grace_s=3600)
        stays = submit(others, "stays", gpus=NODE_GPUS, runs_s=50_000)
        placed = (quick, slow, stays)
        until(lambda: {others.read_job(id).state for id in placed} == {JobState.RUNNING}, "all is taken")
        without_scheduler(hub)
        gang = submit(firm, "gang", gpus=NODE_GPUS, pods=2, runs_s=60)
        small = submit(third, "would fit first", gpus=NODE_GPUS, runs_s=60)
        stops = [stop(hub, job_id, StopReason.PREEMPTED, gang, 3_600_000) for job_id in (quick, slow)]
        decide(hub, *stops)
        hub.programs["scheduler"].comes_back = True
        until(lambda: others.read_job(quick).state is JobState.QUEUED, "one node is free")
        others.cancel_job(quick)
        hub.kill("scheduler")
        until(lambda: reason(third, small) is WaitReason.ROOM_RESERVED, "the free node is kept")
        until(lambda: firm.read_job(gang).attempt == 1, "the gang is placed")
        assert third.read_job(small).attempt == 0
        for job_id in (slow, stays):
            others.cancel_job(job_id)
    verdict(hub)
    assert dict(hub.ask("SELECT job_id, MIN(claimed_at_ms) FROM attempts GROUP BY 1"))[gang] < max(
        at for (at,) in hub.ask("SELECT claimed_at_ms FROM attempts WHERE job_id = ?", small)
    )


def submit(
    firm: QuotaClient,
    name: str,
    *,
    runs_s: int,
    gpus: int = 1,
    pods: int = 1,
    restartable: bool = False,
    **words: int,
) -> str:
    """Submit a job; answers its id."""
    grace_s = words.pop("grace_s", 30)
    notes = {f"simulate.gpuhub/{key}": str(value) for key, value in (words | {"duration_s": runs_s}).items()}
    body = JobSubmission(
        name=name,
        gpu_class="h100",
        gpus_per_pod=gpus,
        pods=pods,
        walltime_s=max(3600, 2 * runs_s),
        grace_s=grace_s,
        restartable=restartable,
        annotations=notes,
    )
    return firm.submit_job(body, name).id


def without_scheduler(hub: Hub) -> None:
    """Kill the scheduler, and let it be dead."""
    hub.programs["scheduler"].comes_back = False
    hub.kill("scheduler")
    until(lambda: not hub.programs["scheduler"].alive, "the scheduler is dead")


def stop(hub: Hub, job_id: str, why: StopReason, for_job: str | None = None, grace_ms: int = 0) -> StopItem:
    """A stop of a job's first attempt, now."""
    now_ms = hub.clock.now_ms()
    return StopItem(job_id=job_id, attempt=1, reason=why, stop_at=now_ms, grace_ms=grace_ms, for_job=for_job)


def decide(hub: Hub, *items: StopItem) -> None:
    """Lead for one batch of decisions, by hand."""
    leases: list[LeaseReply] = []

    def taken() -> bool:
        try:
            leases.append(client.take_lease(LeaseRequest(holder="by-hand", instance="by-hand-1")))
        except ServiceProblem as problem:
            if problem.code != "lease_held":
                raise
        return bool(leases)

    with QuotaClient(hub.url("quota"), hub.tokens["scheduler"]) as client:
        until(taken, "the dead scheduler's lease has run out")
        batch = DecisionBatch(
            epoch=leases[0].epoch,
            stream="decisions",
            seq=leases[0].streams["decisions"] + 1,
            items=items,
        )
        reply: DecisionReply = client.send_decisions(batch.model_dump_json().encode())
    assert [result.outcome for result in reply.results] == ["accepted"] * len(items)


def reason(firm: QuotaClient, job_id: str) -> WaitReason | None:
    """Why a job waits."""
    waiting = firm.read_job(job_id).waiting
    return None if waiting is None else waiting.code


def not_before(hub: Hub, job_id: str) -> int:
    """The end of a job's cooldown, 0 if there is none."""
    return int(hub.ask("SELECT COALESCE(not_before_ms, 0) FROM jobs WHERE id = ?", job_id)[0][0])


def pace(hub: Hub) -> tuple[int, int]:
    """The lag of alpha's grant as quota keeps it, and of when it is."""
    lag_ms, as_of_ms = hub.ask(
        "SELECT COALESCE(pace_lag_ms, 0), COALESCE(pace_as_of_ms, 0) FROM grants WHERE organization_id = 'alpha'"
    )[0]
    return int(lag_ms), int(as_of_ms)
