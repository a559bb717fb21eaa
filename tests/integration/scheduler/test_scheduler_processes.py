"""Real processes: one job from submission to its charge, and what is left after kills at named steps."""

from __future__ import annotations

from pathlib import Path

from quota.schemas.scheduling import EndReason, JobState
from tests.integration.scheduler.scheduler_processes import open_hub


def test_job_runs_and_is_charged_what_the_journal_says(tmp_path: Path) -> None:
    with open_hub(tmp_path) as hub:
        hub.start_scheduler()
        job_id = hub.submit(gpus_per_pod=4)
        job = hub.wait_for(job_id, JobState.ENDED)
        assert job.end_reason is EndReason.SUCCEEDED, hub.log("scheduler-one")
        journal = hub.journal()
        print(journal, job)
