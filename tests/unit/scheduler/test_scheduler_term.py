"""A whole term over models of both neighbours: what a job meets from its submission to its end."""

from __future__ import annotations

from quota.schemas.scheduling import EndReason, JobState
from tests.unit.scheduler.scheduler_world import World


def a_leading_world() -> World:
    """Nodes are reported, nothing waits."""
    world = World()
    world.boot()
    world.rounds(3)
    return world


def test_job_starts_runs_and_ends() -> None:
    world = a_leading_world()
    world.quota.submit("job-1")
    world.rounds(3)
    assert world.cluster.runs == {"job-1-1": 1}
    world.rounds(4)
    attempt = world.quota.attempt("job-1-1")
    assert attempt is not None
    assert attempt.state is JobState.RUNNING
    world.rounds(4, pass_ms=20_000)
    assert world.quota.job_ends == {"job-1": EndReason.SUCCEEDED}
    assert world.quota.used() == 0
    assert world.quota.breaches == []
