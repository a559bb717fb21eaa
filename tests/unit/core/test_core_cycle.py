"""What a cycle promises its caller: states, changes, tombstones, and reasons that stay quiet."""

from dataclasses import replace

import pytest

from scheduler.core.cycle import decide
from scheduler.core.model import JobState, Kind, Plan, Tombstone, WaitReason
from scheduler.core.policy import Policy
from scheduler.core.state import State
from tests.unit.core.core_world import (
    HOUR_MS,
    NOW_MS,
    a_class,
    a_cluster,
    a_grant,
    a_job,
    a_node,
    a_stopping_attempt,
    a_world,
    an_organization,
    started,
)


def begun(*changes: object) -> tuple[Plan, State]:
    return decide(State(), a_world(*changes), NOW_MS)  # type: ignore[arg-type]


def test_empty_hub_gives_an_empty_plan() -> None:
    plan, _ = decide(State(), [], NOW_MS)
    assert plan == Plan((), {}, (), {})


def test_used_state_refuses_to_be_used_again() -> None:
    state = State()
    decide(state, [], NOW_MS)
    with pytest.raises(ValueError, match="used already"):
        decide(state, [], NOW_MS)


def test_time_does_not_run_backwards() -> None:
    _, state = begun()
    with pytest.raises(AssertionError, match="backwards"):
        decide(state, [], NOW_MS - 1)


def test_earlier_plan_is_untouched_by_later_cycles() -> None:
    plan, state = begun(a_job(gpus=8))
    before = repr(plan)
    decide(state, [a_node()], NOW_MS + 1)
    assert repr(plan) == before


def test_starts_are_not_remembered_until_they_come_back() -> None:
    plan, state = begun(a_node(), a_job(gpus=8))
    again, state = decide(state, [], NOW_MS)
    assert again.starts == plan.starts
    last, _ = decide(state, [a_job(gpus=8, state=JobState.STARTING), a_node(used=8)], NOW_MS)
    assert (last.starts, last.order) == ((), ())


def test_quiet_cycle_changes_no_reason() -> None:
    plan, state = begun(
        a_job(gpus=8), a_job("j2", gpus=64, hours=1000), a_job("j3", not_before=NOW_MS + HOUR_MS)
    )
    assert plan.changed_reasons == plan.reasons
    assert set(plan.reasons) == {"j1", "j2", "j3"}
    later, _ = decide(state, [a_cluster(seen_ms=NOW_MS + 5000)], NOW_MS + 5000)
    assert later.changed_reasons == {}
    assert later.reasons == plan.reasons


def test_reason_changes_are_told_once() -> None:
    plan, state = begun(a_node(gpus=8, used=7), a_job(gpus=2))
    assert plan.reasons["j1"].numbers["free"] == 1
    plan, state = decide(state, [a_node(gpus=8, used=8)], NOW_MS)
    assert plan.changed_reasons["j1"].numbers["free"] == 0
    plan, _ = decide(state, [], NOW_MS)
    assert plan.changed_reasons == {}


def test_told_to_be_behind_for_one_cycle_only() -> None:
    jobs = [a_job("j0", submitted=0), a_job("j1", submitted=1)]
    plan, state = begun(a_node(gpus=1), *jobs)
    assert plan.reasons["j1"].code is WaitReason.BEHIND_IN_ORDER
    plan, state = decide(state, [], NOW_MS)  # refused: the same again, nothing new to tell
    assert (started(plan), plan.changed_reasons) == (["j0"], {})
    plan, _ = decide(state, [replace(jobs[0], state=JobState.STARTING), a_node(gpus=1, used=1)], NOW_MS)
    assert plan.reasons["j1"].code is WaitReason.NO_FREE_GPU
    assert set(plan.changed_reasons) == {"j1"}


def test_refused_job_hears_the_reason_that_its_like_heard_before() -> None:
    jobs = [a_job("j0", submitted=0), a_job("j1", submitted=1, hours=2), a_job("j2", submitted=2)]
    plan, state = begun(a_node(gpus=1), *jobs)
    assert plan.reasons["j2"].code is WaitReason.NO_FREE_GPU
    plan, _ = decide(state, [a_node(gpus=1, foreign=1)], NOW_MS)
    assert {reason.code for reason in plan.reasons.values()} == {WaitReason.NO_FREE_GPU}
    assert set(plan.changed_reasons) == {"j0", "j1"}


def test_jobs_thaw_and_grants_begin_without_any_change() -> None:
    job = a_job(not_before=NOW_MS + 10)
    plan, state = begun(a_node(), job, a_grant(starts=NOW_MS + 20))
    assert plan.reasons["j1"].code is WaitReason.COOLDOWN
    plan, state = decide(state, [], NOW_MS + 10)
    assert plan.reasons["j1"].code is WaitReason.GRANT_NOT_STARTED
    plan, _ = decide(state, [], NOW_MS + 20)
    assert started(plan) == ["j1"]


def test_walltime_stops_fitting_when_the_moment_passes() -> None:
    plan, state = begun(a_job(gpus=8, hours=1), a_grant(ends=NOW_MS + HOUR_MS))
    assert plan.reasons["j1"].code is WaitReason.NO_FREE_GPU
    plan, state = decide(state, [a_node()], NOW_MS + 1)
    assert plan.reasons["j1"].numbers["walltime_ms"] == HOUR_MS - 60_000
    plan, state = decide(state, [], NOW_MS + 60_000)
    assert plan.changed_reasons == {}
    plan, _ = decide(state, [], NOW_MS + 60_001)
    assert plan.changed_reasons["j1"].numbers["walltime_ms"] == HOUR_MS - 120_000


@pytest.mark.parametrize(
    ("gone", "code"),
    [
        (Tombstone(Kind.NODE, "c1/n1"), WaitReason.NO_FREE_GPU),
        (Tombstone(Kind.CLUSTER, "c1"), WaitReason.CLUSTER_UNSEEN),
        (Tombstone(Kind.GPU_CLASS, "h100"), WaitReason.NODES_UNAVAILABLE),
        (Tombstone(Kind.GRANT, "g-o1"), WaitReason.NO_GRANT),
        (Tombstone(Kind.ORGANIZATION, "o1"), WaitReason.NO_GRANT),
    ],
)
def test_what_is_buried_is_missed(gone: Tombstone, code: WaitReason) -> None:
    plan, _ = begun(a_node(), a_job(), gone)
    assert plan.reasons["j1"].code is code


def test_buried_job_waits_no_more_and_burying_twice_is_no_matter() -> None:
    _, state = begun(a_job(), a_job("j2", not_before=NOW_MS + 1))
    gone = [Tombstone(Kind.JOB, "j1"), Tombstone(Kind.JOB, "j2"), Tombstone(Kind.JOB, "j2")]
    gone += [Tombstone(kind, "never-was") for kind in Kind]
    plan, _ = decide(state, gone, NOW_MS)
    assert (plan.order, plan.reasons) == ((), {})


def test_job_may_change_everything_but_its_id() -> None:
    world = [an_organization("o2"), a_grant("o2"), a_node(), a_job(gpus=64)]
    _, state = begun(*world)
    plan, _ = decide(state, [a_job(organization="o2", gpus=8, submitted=5)], NOW_MS)
    assert [(s.job_id, s.grant_id) for s in plan.starts] == [("j1", "g-o2")]


def test_room_is_kept_from_the_cycle_in_which_a_stop_appears() -> None:
    gang, small = a_job("gang", gpus=8, pods=2), a_job("small", gpus=1)
    _, state = begun(a_node("n1", used=8), a_node("n2", used=8), gang, small)
    stop = a_stopping_attempt(for_job="gang", on={"n1": 8})
    other = a_stopping_attempt("other", "gang", on={"n2": 8})
    plan, state = decide(state, [stop, other, a_node("n1")], NOW_MS)
    assert plan.reasons["small"].code is WaitReason.ROOM_RESERVED
    buried = [Tombstone(Kind.ATTEMPT, stop.id), Tombstone(Kind.ATTEMPT, other.id)]
    plan, _ = decide(state, buried, NOW_MS)
    assert started(plan) == ["small"]


def test_policy_and_rates_apply_from_the_cycle_they_arrive_in() -> None:
    _, state = begun(a_node(gpus=1), a_job(gpus=1, hours=8), a_grant(hours=8), a_job("j2", gpus=64))
    plan, state = decide(state, [a_class(rate=1001)], NOW_MS)
    assert plan.reasons["j1"].code is WaitReason.GRANT_EXHAUSTED
    plan, _ = decide(state, [a_class(), Policy(cluster_unseen_ms=10)], NOW_MS + 11)
    assert plan.reasons["j1"].code is WaitReason.CLUSTER_UNSEEN
