"""What people order through the API reaches the clusters: pauses, caps, a requeue, more time. Real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from quota.schemas.job_changes import JobExtension
from quota.schemas.scheduling import EndReason, JobState, Waiting, WaitReason
from quota.schemas.switches import GrantEdit, PlacementChange, RequeueRequest
from tests.integration.scheduler.scheduler_processes import Hub, check_against_journal, open_hub, pods, until

HOUR_US = 3_600_000_000
LONG = {"simulate.gpuhub/duration_s": "999999", "simulate.gpuhub/stop_s": "0.2"}


def wait_for_reason(hub: Hub, job_id: str, code: WaitReason) -> Waiting:
    """Why it waits, as soon as it is this."""

    def told() -> bool:
        waiting = hub.operator.read_job(job_id).waiting
        return waiting is not None and waiting.code is code

    until(told, f"{job_id} waits as {code}")
    waiting = hub.operator.read_job(job_id).waiting
    assert waiting is not None
    return waiting


@pytest.mark.e2e
def test_pauses_and_caps_hold_jobs_back_and_a_requeued_job_starts_again(tmp_path: Path) -> None:
    with open_hub(tmp_path) as hub:
        hub.start_scheduler()
        first = hub.submit(annotations=LONG)
        hub.wait_for(first, JobState.RUNNING)
        hub.operator.pause_hub(PlacementChange(paused=True, reason="works on the cooling"))
        second = hub.submit(gpus_per_pod=2, annotations=LONG)
        told = wait_for_reason(hub, second, WaitReason.PLACEMENT_PAUSED)
        assert told.numbers == {"what": "hub", "name": ""}
        hub.operator.edit_grant(hub.grant.id, GrantEdit(max_gpus=2, reason="share the machine"))
        hub.operator.pause_hub(PlacementChange(paused=False, reason="done"))
        told = wait_for_reason(hub, second, WaitReason.GRANT_CAP)
        assert told.numbers == {"grant": hub.grant.id, "cap": 2, "in_use": 1, "needed": 2}
        hub.operator.requeue_job(first, RequeueRequest(reason="a driver must be replaced"))
        until(lambda: hub.operator.read_job(first).attempt == 2, "a second attempt")
        hub.wait_for(first, JobState.RUNNING)
        ended = hub.operator.read_job(first).attempts[0]
        assert ended.end_reason is EndReason.REQUEUED
        hub.operator.edit_grant(hub.grant.id, GrantEdit(max_gpus=3, reason="enough for both"))
        hub.wait_for(second, JobState.RUNNING)
        for job_id in (first, second):
            hub.operator.cancel_job(job_id)
            check_against_journal(hub, hub.wait_for(job_id, JobState.ENDED))
        assert len(pods(hub, "pod_started", f"{first}-1")) == 1


@pytest.mark.e2e
def test_extended_job_runs_to_its_new_limit_and_no_longer(tmp_path: Path) -> None:
    with open_hub(tmp_path, speed=360) as hub:
        hub.start_scheduler()
        job_id = hub.submit(walltime_s=3600, annotations=LONG)
        hub.wait_for(job_id, JobState.RUNNING)
        hub.operator.extend_job(job_id, JobExtension(walltime_s=1800, reason="two more epochs"))
        job = hub.wait_for(job_id, JobState.ENDED, timeout_s=60)
        assert job.end_reason is EndReason.TIME_LIMIT
        assert job.charged_gpu_us == HOUR_US * 3 // 2
        check_against_journal(hub, job)
        assert hub.operator.list_findings().items == ()
