"""What the settings make of a trace: spread, rotated, compressed; gangs in pods; grants in proportion."""

from __future__ import annotations

import pytest

from scheduler.replay.settings import arrange, demand_gpu_s, gang, grants_gpu_s
from tests.unit.replay.replay_world import a_job, a_pool

DAY_S = 86_400


@pytest.mark.parametrize(
    ("gpus", "per_node", "made"),
    [
        (1, 8, (1, 1)),
        (8, 8, (1, 8)),
        (64, 8, (8, 8)),
        (12, 8, (2, 6)),
        (20, 8, (4, 5)),
        (13, 8, (13, 1)),
        (6, 100, (1, 6)),
    ],
)
def test_a_gang_is_made_of_equal_pods_as_wide_as_a_node_allows(
    gpus: int, per_node: int, made: tuple[int, int]
) -> None:
    assert gang(gpus, per_node) == made


@pytest.mark.parametrize("gpus", range(1, 130))
def test_a_gang_has_exactly_the_gpus_and_no_pod_wider_than_a_node(gpus: int) -> None:
    pods, gpus_per_pod = gang(gpus, 8)
    assert pods * gpus_per_pod == gpus
    assert gpus_per_pod <= 8
    if gpus % 8 == 0 or gpus < 8:
        assert pods == -(-gpus // 8)


def test_load_compresses_submissions_and_the_term() -> None:
    settings = a_pool(days=10, load=2.0)
    played = arrange([a_job("a", 100), a_job("b", 201)], settings)
    assert [(job.id, job.submit_s) for job in played] == [("a", 50), ("b", 100)]
    assert settings.term_s == 5 * DAY_S


def test_a_seed_turns_each_organization_round_within_the_term() -> None:
    jobs = [a_job(f"{o}{i}", i * 1000, organization=o) for o in ("x", "y") for i in range(50)]
    settings = a_pool(days=1, seed=7)
    played = arrange(sorted(jobs, key=lambda job: job.submit_s), settings)
    assert arrange(jobs, settings) == played, "the same seed gives the same trace"
    assert played != arrange(jobs, a_pool(days=1, seed=8))
    turns = set()
    for organization in ("x", "y"):
        submits = {job.id: job.submit_s for job in played if job.organization == organization}
        offsets = {(submits[f"{organization}{i}"] - i * 1000) % DAY_S for i in range(50)}
        assert len(offsets) == 1, "gaps inside an organization are kept"
        turns |= offsets
    assert len(turns) == 2
    assert [job.submit_s for job in played] == sorted(job.submit_s for job in played)


def test_jobs_after_the_term_are_not_folded_into_it() -> None:
    jobs = [a_job("a", 0), a_job("b", 3 * DAY_S)]
    played = {job.id: job.submit_s for job in arrange(jobs, a_pool(days=1, seed=1))}
    assert (played["b"] - played["a"]) % (3 * DAY_S + 1) == 3 * DAY_S


def test_jobs_are_spread_over_organizations() -> None:
    jobs = [a_job(f"j{i:03d}") for i in range(200)]
    played = arrange(jobs, a_pool(organizations=3))
    assert {job.organization for job in played} == {"org-1", "org-2", "org-3"}
    assert [job.id for job in played] == [job.id for job in jobs]


def test_grants_share_the_capacity_of_the_term_by_demand() -> None:
    jobs = [a_job("a", gpus=2, run_s=300, organization="x"), a_job("b", run_s=200, organization="y")]
    assert demand_gpu_s(jobs) == {"x": 600, "y": 200}
    assert grants_gpu_s(jobs, a_pool(gpus=4, days=1)) == {"x": 3 * DAY_S, "y": DAY_S}


def test_what_would_run_beyond_the_limit_is_no_demand() -> None:
    assert demand_gpu_s([a_job(run_s=5000, limit_s=3600)]) == {"o": 3600}
