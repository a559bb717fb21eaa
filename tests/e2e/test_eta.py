"""Jobs that wait are told when they will start, by real processes; the word outlives the scheduler that gave it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_processes import Hub, a_hub, until

from quota.client import QuotaClient
from quota.schemas.forecasts import EtaBasis
from quota.schemas.jobs import JobSubmission
from quota.schemas.scheduling import JobState

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.timeout(300)]

NODES = 3
WALLTIME_S = 36_000


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with a_hub(tmp_path / "hub", lease_ttl_s=2.0, forecast_interval_s=1.0) as hub:
        yield hub


def submit(firm: QuotaClient, name: str) -> str:
    """A job that takes a whole node; answers its id."""
    body = JobSubmission(
        name=name,
        gpu_class="h100",
        gpus_per_pod=8,
        walltime_s=WALLTIME_S,
        annotations={"simulate.gpuhub/duration_s": str(WALLTIME_S)},
    )
    return firm.submit_job(body, name).id


def test_a_waiting_job_is_told_when_it_will_start_also_while_nobody_leads(hub: Hub) -> None:
    with hub.client("beta") as firm:
        running = [submit(firm, f"runs {n}") for n in range(NODES)]
        until(lambda: {firm.read_job(id).state for id in running} == {JobState.RUNNING}, "all is taken")
        job = submit(firm, "waits")
        until(lambda: firm.read_job(job).eta is not None, "somebody says when it will start")
        eta = firm.read_job(job).eta
        assert eta is not None
        first_free_ms = min(firm.read_job(id).attempts[0].last_started_at or 0 for id in running)
        first_free_ms += WALLTIME_S * 1000
        # nothing has ended yet, so that all are taken to run to their limits
        assert abs(eta.median - first_free_ms) <= 600_000
        assert eta.as_of < eta.low < eta.median < eta.high
        assert eta.basis is EtaBasis.EXACT
        assert {firm.read_job(id).eta for id in running} == {None}
        hub.programs["scheduler"].comes_back = False
        hub.kill("scheduler")
        until(lambda: not hub.programs["scheduler"].alive, "the scheduler is dead")
        assert firm.read_job(job).eta is not None
        hub.programs["scheduler"].comes_back = True
        kept = firm.read_job(job).eta
        assert kept is not None
        until(lambda: (now := firm.read_job(job).eta) is not None and now.as_of > kept.as_of, "told again")
