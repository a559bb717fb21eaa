"""Which grant and path a job draws on, and what it is told when none suffices."""

import pytest

from scheduler.core.model import Account, WaitReason
from tests.unit.core.core_world import (
    DAY_MS,
    GPU_HOUR,
    HOUR_MS,
    NOW_MS,
    TERM_MS,
    a_class,
    a_grant,
    a_job,
    a_node,
    an_account,
    an_organization,
    plan_of,
    started,
)


def test_cost_is_walltime_times_gpus_times_rate() -> None:
    plan = plan_of(a_class(rate=480), a_node(gpus=8), a_node("n2"), a_job(gpus=4, pods=3, hours=2))
    assert plan.starts[0].cost_gpu_us == 2 * HOUR_MS * 12 * 480


def test_pinned_grant_is_used_even_when_another_ends_sooner() -> None:
    other = a_grant(id="sooner", ends=NOW_MS + DAY_MS)
    assert plan_of(other, a_node(), a_job(grant="g-o1")).starts[0].grant_id == "g-o1"


def test_unpinned_job_draws_on_the_grant_that_ends_first() -> None:
    other = a_grant(id="sooner", ends=NOW_MS + DAY_MS)
    assert plan_of(other, a_node(), a_job()).starts[0].grant_id == "sooner"


def test_of_grants_that_end_together_the_smallest_remainder_that_suffices_is_used() -> None:
    grants = [a_grant(id="small", hours=5), a_grant(id="middle", hours=50), a_grant(id="large", hours=500)]
    assert plan_of(*grants, a_node(), a_job(gpus=8, hours=1)).starts[0].grant_id == "middle"


def test_grant_that_ends_too_soon_for_the_walltime_is_passed_over() -> None:
    other = a_grant(id="sooner", ends=NOW_MS + HOUR_MS)
    assert plan_of(other, a_node(), a_job(hours=2)).starts[0].grant_id == "g-o1"


def test_walltime_may_end_exactly_with_the_grant() -> None:
    assert started(plan_of(a_grant(ends=NOW_MS + 2 * HOUR_MS), a_node(), a_job(hours=2))) == ["j1"]


def test_first_path_that_suffices_on_every_account_is_named() -> None:
    grant = an_account("grant", hours=100)
    tight, wide = an_account("tranche-1", hours=1), an_account("tranche-2", hours=50)
    plan = plan_of(a_grant(paths=((tight, grant), (wide, grant))), a_node(), a_job(gpus=8, hours=1))
    assert plan.starts[0].account_path == ("tranche-2", "grant")


def test_exactly_enough_is_enough() -> None:
    assert started(plan_of(a_grant(hours=8, used=4), a_node(), a_job(gpus=4, hours=1))) == ["j1"]


def test_overdraft_granted_by_policy_counts_as_left() -> None:
    account = Account("a", 4 * GPU_HOUR, overdraft_gpu_us=4 * GPU_HOUR)
    assert started(plan_of(a_grant(paths=((account,),)), a_node(), a_job(gpus=8))) == ["j1"]


def test_exhausted_grant_tells_what_is_needed_and_left() -> None:
    plan = plan_of(a_grant(hours=10, held=2, used=3), a_node(), a_job(gpus=8, hours=1))
    reason = plan.reasons["j1"]
    assert reason.code is WaitReason.GRANT_EXHAUSTED
    assert reason.numbers == {
        "grant": "g-o1",
        "account": "a-g-o1",
        "needed_gpu_us": 8 * GPU_HOUR,
        "left_gpu_us": 5 * GPU_HOUR,
    }


def test_account_that_is_short_is_named_on_the_path_with_the_most_room() -> None:
    grant, full = an_account("grant", hours=100), an_account("tranche-1", hours=50, used=50)
    paths = ((full, grant), (an_account("tranche-2", hours=7), grant))
    reason = plan_of(a_grant(paths=paths), a_node(), a_job(gpus=8, hours=1)).reasons["j1"]
    assert (reason.code, reason.numbers["account"]) == (WaitReason.GRANT_EXHAUSTED, "tranche-2")
    assert reason.numbers["left_gpu_us"] == 7 * GPU_HOUR


def test_grant_without_an_open_path_is_exhausted_and_names_no_account() -> None:
    reason = plan_of(a_grant(paths=()), a_node(), a_job(hours=1)).reasons["j1"]
    assert reason.code is WaitReason.GRANT_EXHAUSTED
    assert (reason.numbers["account"], reason.numbers["left_gpu_us"]) == ("", 0)


def test_picks_of_the_same_cycle_exhaust_a_grant() -> None:
    jobs = [a_job(f"j{i}", gpus=2, hours=1) for i in range(3)]
    plan = plan_of(a_grant(hours=5), a_node(), *jobs)
    assert started(plan) == ["j0", "j1"]
    assert plan.reasons["j2"].numbers["left_gpu_us"] == GPU_HOUR


def test_account_shared_by_two_organizations_is_not_overdrawn() -> None:
    shared = an_account("consortium", hours=3)
    grants = [a_grant(o, paths=((shared, an_account(f"a-{o}")),), used=0) for o in ("o1", "o2")]
    jobs = [a_job(f"j-{o}", o, gpus=2, hours=1) for o in ("o1", "o2")]
    plan = plan_of(an_organization("o2"), *grants, a_node(), *jobs)
    assert started(plan) == ["j-o1"]
    assert plan.reasons["j-o2"].code is WaitReason.GRANT_EXHAUSTED


def test_unpinned_jobs_move_to_the_next_grant_when_the_first_is_spent() -> None:
    grants = [a_grant(id="soon", hours=2, ends=NOW_MS + DAY_MS), a_grant(id="late", hours=2)]
    jobs = [a_job(f"j{i}", gpus=2, hours=1, submitted=NOW_MS - 10 + i) for i in range(3)]
    plan = plan_of(*grants, a_grant(hours=0), a_node(), *jobs)
    assert [(s.job_id, s.grant_id) for s in plan.starts] == [("j0", "soon"), ("j1", "late")]


def test_job_longer_than_every_grant_is_told_the_walltime_that_would_fit() -> None:
    ends = NOW_MS + 90 * 60_000 + 12_345
    reason = plan_of(a_grant(ends=ends), a_node(), a_job(hours=2)).reasons["j1"]
    assert reason.code is WaitReason.GRANT_ENDS_FIRST
    assert reason.numbers == {"grant": "g-o1", "ends_at_ms": ends, "walltime_ms": 90 * 60_000}


def test_grant_to_come_is_named_with_its_beginning() -> None:
    plan = plan_of(a_grant(starts=NOW_MS + 1, ends=NOW_MS + TERM_MS), a_node(), a_job())
    assert plan.reasons["j1"].code is WaitReason.GRANT_NOT_STARTED
    assert plan.reasons["j1"].numbers == {"grant": "g-o1", "starts_at_ms": NOW_MS + 1}


@pytest.mark.parametrize("pinned", ["g-o2", "gone"])
def test_grant_of_another_or_gone_is_no_grant(pinned: str) -> None:
    plan = plan_of(a_node(), a_job(grant=pinned), organizations=("o1", "o2"))
    assert plan.reasons["j1"].code is WaitReason.NO_GRANT


def test_ended_grant_and_unknown_organization_are_no_grant() -> None:
    plan = plan_of(a_grant(ends=NOW_MS), a_node(), a_job(), a_job("j2", "nobody"))
    assert {r.code for r in plan.reasons.values()} == {WaitReason.NO_GRANT}


def test_frozen_organization_starts_nothing() -> None:
    plan = plan_of(an_organization(frozen=True), a_node(), a_job())
    assert plan.reasons["j1"].code is WaitReason.ORGANIZATION_FROZEN


def test_cooldown_is_honoured_to_the_millisecond() -> None:
    assert started(plan_of(a_node(), a_job(not_before=NOW_MS))) == ["j1"]
    plan = plan_of(a_node(), a_job(not_before=NOW_MS + 1))
    assert plan.reasons["j1"].numbers == {"until_ms": NOW_MS + 1}


def test_unknown_class_is_nowhere_available() -> None:
    plan = plan_of(a_node(), a_job(gpu_class="b300"))
    assert plan.reasons["j1"].code is WaitReason.NODES_UNAVAILABLE
