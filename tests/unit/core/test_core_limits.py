"""What people set against starting: a cap on a grant's GPUs, and pauses of the hub, a class or a cluster."""

from dataclasses import replace

import pytest

from scheduler.core.cycle import decide
from scheduler.core.model import Change, Kind, Reason, Tombstone, WaitReason
from scheduler.core.policy import Policy
from scheduler.core.state import State
from tests.unit.core.core_world import (
    DAY_MS,
    NOW_MS,
    a_class,
    a_cluster,
    a_consortium,
    a_grant,
    a_job,
    a_node,
    a_world,
    an_attempt,
    an_organization,
    plan_of,
    started,
)

NODES = [a_node("n1"), a_node("n2")]


def capped(cap: int, in_use: int, needed: int, grant: str = "g-o1") -> Reason:
    return Reason(WaitReason.GRANT_CAP, {"grant": grant, "cap": cap, "in_use": in_use, "needed": needed})


def test_attempts_that_keep_their_gpus_count_against_the_cap() -> None:
    plan = plan_of(a_grant(max_gpus=8), an_attempt(gpus=5), *NODES, a_job(gpus=4))
    assert plan.reasons["j1"] == capped(8, 5, 4)


def test_exactly_the_cap_may_be_in_use() -> None:
    assert started(plan_of(a_grant(max_gpus=8), an_attempt(gpus=4), *NODES, a_job(gpus=4))) == ["j1"]


@pytest.mark.parametrize("free", [an_attempt(gpus=8, held=False), an_attempt(gpus=8, grant="g-o2")])
def test_attempts_that_keep_nothing_or_run_on_another_grant_do_not_count(free: Change) -> None:
    assert started(plan_of(a_grant(max_gpus=8), free, *NODES, a_job(gpus=8))) == ["j1"]


def test_starts_of_the_same_plan_count_against_the_cap() -> None:
    jobs = [a_job(f"j{i}", gpus=2, submitted=i) for i in range(4)]
    plan = plan_of(a_grant(max_gpus=5), *NODES, *jobs)
    assert started(plan) == ["j0", "j1"]
    assert plan.reasons["j2"] == capped(5, 4, 2)


def test_smaller_job_passes_one_that_the_cap_stops() -> None:
    jobs = [a_job("wide", gpus=8, submitted=0), a_job("narrow", gpus=1, submitted=1)]
    assert started(plan_of(a_grant(max_gpus=9), an_attempt(gpus=2), *NODES, *jobs)) == ["narrow"]


def test_gang_counts_with_all_its_pods() -> None:
    plan = plan_of(a_grant(max_gpus=15), *NODES, a_job(gpus=8, pods=2))
    assert plan.reasons["j1"] == capped(15, 0, 16)


def test_job_larger_than_the_cap_never_starts_on_that_grant() -> None:
    plan = plan_of(a_grant(max_gpus=2), *NODES, a_job(gpus=4))
    assert plan.reasons["j1"] == capped(2, 0, 4)
    assert plan_of(a_grant(max_gpus=0), *NODES, a_job()).reasons["j1"] == capped(0, 0, 1)


def test_cap_lowered_below_what_is_in_use_stops_only_new_starts() -> None:
    plan = plan_of(a_grant(max_gpus=2), an_attempt(gpus=8), *NODES, a_job())
    assert plan.reasons["j1"] == capped(2, 8, 1)


def test_unpinned_job_goes_to_the_next_grant_when_the_first_is_capped() -> None:
    sooner = a_grant(id="sooner", ends=NOW_MS + DAY_MS, max_gpus=2)
    jobs = [a_job(f"j{i}", gpus=2, submitted=i) for i in range(2)]
    plan = plan_of(sooner, a_grant(), *NODES, *jobs)
    assert [(s.job_id, s.grant_id) for s in plan.starts] == [("j0", "sooner"), ("j1", "g-o1")]
    pinned = a_job("j2", gpus=2, submitted=0, grant="sooner")
    assert plan_of(sooner, a_grant(), an_attempt(grant="sooner", gpus=1), *NODES, pinned).reasons[
        "j2"
    ] == capped(2, 1, 2, "sooner")


def test_cap_is_told_rather_than_a_grant_that_is_spent() -> None:
    plan = plan_of(
        a_grant(id="spent", hours=0), a_grant(max_gpus=4), an_attempt(gpus=4), *NODES, a_job(gpus=2)
    )
    assert plan.reasons["j1"] == capped(4, 4, 2)


def test_of_several_caps_the_one_nearest_to_sufficing_is_told() -> None:
    grants = [a_grant(max_gpus=6), a_grant(id="narrow", max_gpus=3), a_grant(id="full", max_gpus=8)]
    running = [an_attempt(gpus=5), an_attempt("other", "full", gpus=8)]
    plan = plan_of(*grants, *running, *NODES, a_job(gpus=4))
    assert plan.reasons["j1"] == capped(6, 5, 4)


def test_cap_of_a_consortium_is_shared_by_its_parties() -> None:
    parties = [an_organization(id) for id in ("a", "b")]
    grant = a_consortium({"a": 100, "b": 100}, max_gpus=5)
    jobs = [a_job("ja", "a", gpus=3, submitted=0), a_job("jb", "b", gpus=3, submitted=1)]
    plan = plan_of(*parties, grant, *NODES, *jobs)
    assert started(plan) == ["ja"]
    assert plan.reasons["jb"] == capped(5, 3, 3, "c")


def test_cap_of_a_consortium_is_shared_though_its_parties_share_no_account() -> None:
    parties = [an_organization(id) for id in ("a", "b")]
    grant = a_consortium({"a": 100, "b": 100}, max_gpus=5)
    alone = tuple(replace(path, accounts=path.accounts[:1]) for path in grant.paths)
    jobs = [a_job("ja", "a", gpus=3, submitted=0), a_job("jb", "b", gpus=3, submitted=1)]
    plan = plan_of(*parties, replace(grant, paths=alone), *NODES, *jobs)
    assert started(plan) == ["ja"]
    assert plan.reasons["jb"] == capped(5, 3, 3, "c")


def test_capped_jobs_stand_last_and_let_no_lag_grow() -> None:
    plan = plan_of(a_grant(max_gpus=0), a_job("wide", submitted=0), organizations=("o1", "o2"))
    assert plan.paces["g-o1"].lag_ms == 0
    order = plan_of(
        a_grant(max_gpus=0), a_job("wide", submitted=0), a_job("j2", "o2"), organizations=("o1", "o2")
    ).order
    assert order == ("j2", "wide")


def test_every_change_of_what_is_in_use_is_noticed_at_once() -> None:
    world = a_world(a_grant(max_gpus=4), an_attempt(gpus=4), *NODES, a_job(gpus=2))
    plan, state = decide(State(), world, NOW_MS)
    assert plan.reasons["j1"] == capped(4, 4, 2)
    for change, in_use in (
        (an_attempt(gpus=3), 3),
        (a_grant(max_gpus=1), 3),
        (an_attempt(gpus=1), 1),
        (an_attempt("second", gpus=2), 3),
    ):
        plan, state = decide(state, [change], NOW_MS)
        assert plan.reasons["j1"].numbers["in_use"] == in_use
    plan, state = decide(state, [a_grant(max_gpus=4)], NOW_MS)
    assert plan.reasons["j1"] == capped(4, 3, 2)
    plan, state = decide(state, [Tombstone(Kind.ATTEMPT, "second-1")], NOW_MS)
    assert started(plan) == ["j1"]
    plan, state = decide(state, [an_attempt("second", gpus=2)], NOW_MS)
    assert plan.reasons["j1"] == capped(4, 3, 2)
    plan, state = decide(state, [an_attempt("second", gpus=2, held=False)], NOW_MS)
    assert started(plan) == ["j1"]
    plan, _ = decide(state, [a_grant(max_gpus=1), a_grant()], NOW_MS)
    assert started(plan) == ["j1"]


# --- pauses ------------------------------------------------------------------------------------------


def paused(what: str, name: str) -> Reason:
    return Reason(WaitReason.PLACEMENT_PAUSED, {"what": what, "name": name})


@pytest.mark.parametrize(
    ("pause", "reason"),
    [
        (Policy(placement_paused=True), paused("hub", "")),
        (a_class(paused=True), paused("gpu_class", "h100")),
        (a_cluster(paused=True), paused("cluster", "c1")),
    ],
)
def test_nothing_starts_where_people_paused_and_everybody_is_told_what(pause: Change, reason: Reason) -> None:
    plan = plan_of(pause, *NODES, a_job())
    assert (plan.starts, plan.reasons["j1"]) == ((), reason)


def test_hub_is_told_before_the_class_and_the_class_before_the_cluster() -> None:
    everything = [a_class(paused=True), a_cluster(paused=True)]
    assert plan_of(Policy(placement_paused=True), *everything, *NODES, a_job()).reasons["j1"].numbers[
        "what"
    ] == ("hub")
    assert plan_of(*everything, *NODES, a_job()).reasons["j1"].numbers["what"] == "gpu_class"


def test_paused_class_leaves_the_others_alone() -> None:
    mig = a_node("m1", gpu_class="mig")
    plan = plan_of(a_class(paused=True), a_class("mig"), *NODES, mig, a_job("g"), a_job("m", gpu_class="mig"))
    assert started(plan) == ["m"]


def test_paused_cluster_leaves_the_others_alone() -> None:
    plan = plan_of(a_cluster(paused=True), a_cluster("c2"), *NODES, a_node(cluster="c2"), a_job())
    assert [s.cluster for s in plan.starts] == ["c2"]


def test_paused_cluster_binds_when_no_other_could_ever_hold_the_job() -> None:
    full = a_node("n1", used=8)
    small = a_node("m1", gpus=4, cluster="c2")
    plan = plan_of(a_cluster(paused=True), a_cluster("c2"), full, small, a_job(gpus=8))
    assert plan.reasons["j1"] == paused("cluster", "c1")
    other = plan_of(
        a_cluster(paused=True), a_cluster("c2"), full, a_node("m1", cluster="c2", used=8), a_job()
    )
    assert other.reasons["j1"].code is WaitReason.NO_FREE_GPU


def test_cordoned_node_of_a_paused_cluster_is_unavailable_whoever_resumes() -> None:
    plan = plan_of(a_cluster(paused=True), a_node(schedulable=False), a_job())
    assert plan.reasons["j1"].code is WaitReason.NODES_UNAVAILABLE


def test_who_could_not_pay_hears_that_first() -> None:
    plan = plan_of(Policy(placement_paused=True), a_grant(hours=0), *NODES, a_job())
    assert plan.reasons["j1"].code is WaitReason.GRANT_EXHAUSTED


def test_jobs_keep_their_order_through_a_pause_and_start_at_its_end() -> None:
    jobs = [a_job("late", submitted=2), a_job("early", submitted=1)]
    plan, state = decide(State(), a_world(Policy(placement_paused=True), a_node(gpus=1), *jobs), NOW_MS)
    assert plan.order == ("early", "late")
    plan, state = decide(state, [Policy()], NOW_MS)
    assert started(plan) == ["early"]
    plan, state = decide(state, [a_class(paused=True)], NOW_MS)
    assert plan.reasons["late"] == paused("gpu_class", "h100")
    plan, state = decide(state, [a_class(), a_cluster(paused=True)], NOW_MS)
    assert plan.reasons["late"] == paused("cluster", "c1")
    plan, state = decide(state, [a_class(paused=True), Tombstone(Kind.GPU_CLASS, "h100")], NOW_MS)
    plan, _ = decide(state, [a_class(), a_cluster()], NOW_MS)
    assert started(plan) == ["early"]
