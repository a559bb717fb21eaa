"""How many GPUs one organization may keep at once: its own cap and its share of the pool."""

from dataclasses import replace

import pytest

from scheduler.core.cycle import decide
from scheduler.core.model import (
    Attempt,
    Capacity,
    Change,
    JobState,
    Kind,
    Node,
    Plan,
    Reason,
    Tombstone,
    WaitReason,
)
from scheduler.core.policy import Lane, Policy, Preemption
from scheduler.core.state import State
from tests.unit.core.core_world import (
    DAY_MS,
    HOUR_MS,
    NOW_MS,
    a_consortium,
    a_grant,
    a_job,
    a_node,
    a_stopping_attempt,
    a_world,
    an_attempt,
    an_organization,
    plan_of,
    started,
)

NODES = [a_node("n1"), a_node("n2")]
POOL_OF_40 = [a_node(f"n{i}") for i in range(5)]
A_FIFTH = Policy(organization_pool_thousandths=200)


def capped(cap: int, in_use: int, needed: int, organization: str = "o1") -> Reason:
    numbers: dict[str, int | str] = {
        "organization": organization,
        "cap": cap,
        "in_use": in_use,
        "needed": needed,
    }
    return Reason(WaitReason.ORGANIZATION_CAP, numbers)


def test_attempts_of_the_organization_count_whatever_grant_pays() -> None:
    running = [an_attempt(gpus=3), an_attempt("other", "g-elsewhere", gpus=2)]
    plan = plan_of(an_organization(max_gpus=8), *running, *NODES, a_job(gpus=4))
    assert plan.reasons["j1"] == capped(8, 5, 4)


def test_exactly_the_cap_may_be_in_use() -> None:
    assert started(plan_of(an_organization(max_gpus=8), an_attempt(gpus=4), *NODES, a_job(gpus=4))) == ["j1"]


@pytest.mark.parametrize("free", [an_attempt(gpus=8, held=False), an_attempt(gpus=8, organization="o2")])
def test_attempts_that_keep_nothing_or_are_anothers_do_not_count(free: Change) -> None:
    assert started(plan_of(an_organization(max_gpus=8), free, *NODES, a_job(gpus=8))) == ["j1"]


def test_starts_of_the_same_plan_count_on_whatever_grant() -> None:
    grants = [a_grant(id="first", ends=NOW_MS + DAY_MS), a_grant(id="second")]
    jobs = [a_job(f"j{i}", gpus=2, submitted=i, grant=("first", "second")[i % 2]) for i in range(4)]
    plan = plan_of(an_organization(max_gpus=5), *grants, *NODES, *jobs)
    assert started(plan) == ["j0", "j1"]
    assert [plan.reasons[id] for id in ("j2", "j3")] == [capped(5, 4, 2), capped(5, 4, 2)]


def test_smaller_job_passes_one_that_the_cap_stops_and_another_organization_is_not_held_back() -> None:
    jobs = [a_job("wide", gpus=8, submitted=0), a_job("narrow", submitted=1), a_job("others", "o2", gpus=8)]
    plan = plan_of(an_organization(max_gpus=9), an_attempt(gpus=2), *NODES, *jobs, organizations=("o1", "o2"))
    assert sorted(started(plan)) == ["narrow", "others"]


def test_cap_lowered_below_what_is_in_use_stops_only_new_starts() -> None:
    plan = plan_of(an_organization(max_gpus=2), an_attempt(gpus=8), *NODES, a_job())
    assert (plan.reasons["j1"], plan.stops) == (capped(2, 8, 1), ())


def test_money_and_the_grants_cap_are_told_first() -> None:
    nothing = an_organization(max_gpus=0)
    assert (
        plan_of(nothing, a_grant(hours=0), *NODES, a_job()).reasons["j1"].code is WaitReason.GRANT_EXHAUSTED
    )
    assert plan_of(nothing, a_grant(max_gpus=0), *NODES, a_job()).reasons["j1"].code is WaitReason.GRANT_CAP
    assert plan_of(nothing, *NODES, a_job()).reasons["j1"] == capped(0, 0, 1)


def test_party_of_a_consortium_is_held_back_by_its_own_cap_alone() -> None:
    parties = [an_organization("a", max_gpus=2), an_organization("b")]
    jobs = [a_job("ja", "a", gpus=3, submitted=0), a_job("jb", "b", gpus=3, submitted=1)]
    plan = plan_of(*parties, a_consortium({"a": 100, "b": 100}), *NODES, *jobs)
    assert started(plan) == ["jb"]
    assert plan.reasons["ja"] == capped(2, 0, 3, "a")


def test_capped_jobs_stand_last_and_keep_no_reservation() -> None:
    policy = Policy(reservations=2, reservation_gpus=1)
    full = [a_node("n1", used=8), an_attempt("r", gpus=8, organization="o2")]
    jobs = [a_job("mine", gpus=8, submitted=0), a_job("others", "o2", submitted=1)]
    plan = plan_of(policy, an_organization(max_gpus=4), *full, *jobs, organizations=("o1", "o2"))
    assert plan.order == ("others", "mine")
    assert "mine" not in {each.job_id for each in plan.reservations}


def test_lane_is_no_way_around_the_cap() -> None:
    jobs = [a_job(f"j{i}", hours=0.5, submitted=i) for i in range(5)]
    plan = plan_of(Policy(lane=Lane()), an_organization(max_gpus=2), *NODES, *jobs)
    assert started(plan) == ["j0", "j1"]
    assert plan.reasons["j2"] == capped(2, 2, 1)


# --- the share of the pool ---------------------------------------------------------------------------


def first_refused(*changes: Change) -> int:
    """How many GPUs a world lets one organization take, by jobs of one GPU."""
    jobs = [a_job(f"j{i:02}", submitted=i) for i in range(60)]
    return len(started(plan_of(*changes, *jobs)))


def test_organization_keeps_at_most_its_share_of_the_pool_rounded_up() -> None:
    assert first_refused(A_FIFTH, *POOL_OF_40) == 8
    assert first_refused(A_FIFTH, *POOL_OF_40, a_node("n6", gpus=4)) == 9
    assert first_refused(*POOL_OF_40) == 40


def test_share_is_never_less_than_the_largest_node_that_takes_jobs_has_of_one_class() -> None:
    small = [a_node(f"n{i}", gpus=2) for i in range(5)]
    assert first_refused(A_FIFTH, *small) == 2
    assert first_refused(A_FIFTH, *small, a_node("big", gpus=8)) == 8
    assert first_refused(A_FIFTH, *small, a_node("big", gpus=8, schedulable=False)) == 2
    assert first_refused(A_FIFTH, *small, a_node("mixed", gpus=4, more={"mig": Capacity(7)})) == 7


def test_small_pool_is_not_divided() -> None:
    policy = replace(A_FIFTH, organization_pool_from_gpus=41)
    assert first_refused(policy, *POOL_OF_40) == 40
    assert first_refused(policy, *POOL_OF_40, a_node("n6", gpus=1)) == 9


def test_where_no_node_takes_jobs_that_is_told_and_no_cap() -> None:
    down = [replace(node, schedulable=False) for node in POOL_OF_40]
    assert plan_of(A_FIFTH, *down, a_job()).reasons["j1"].code is WaitReason.NODES_UNAVAILABLE


def test_organization_may_have_another_share_or_none_or_a_lower_cap() -> None:
    assert first_refused(A_FIFTH, an_organization(pool=500), *POOL_OF_40) == 20
    assert first_refused(A_FIFTH, an_organization(pool=1000), *POOL_OF_40) == 40
    assert first_refused(A_FIFTH, an_organization(pool=1000, max_gpus=30), *POOL_OF_40) == 30
    assert first_refused(A_FIFTH, an_organization(max_gpus=3), *POOL_OF_40) == 3
    assert first_refused(A_FIFTH, an_organization(max_gpus=30), *POOL_OF_40) == 8
    assert first_refused(an_organization(pool=200), *POOL_OF_40) == 8


def test_every_change_of_cap_pool_and_use_is_noticed_at_once() -> None:
    world = a_world(A_FIFTH, *POOL_OF_40, an_attempt(gpus=8), a_job(gpus=2))
    plan, state = decide(State(), world, NOW_MS)
    assert plan.reasons["j1"] == capped(8, 8, 2)
    for change, expected in (
        (a_node("n6", gpus=1), capped(9, 8, 2)),
        (Tombstone(Kind.NODE, "c1/n6"), capped(8, 8, 2)),
        (an_attempt(gpus=7), capped(8, 7, 2)),
        (an_organization(max_gpus=5), capped(5, 7, 2)),
        (an_attempt("second", gpus=1, organization="o2"), capped(5, 7, 2)),
        (an_attempt("second", gpus=1), capped(5, 8, 2)),
        (an_organization(), capped(8, 8, 2)),
        (Tombstone(Kind.ATTEMPT, "second-1"), capped(8, 7, 2)),
        (a_node("n4", schedulable=False), capped(8, 7, 2)),
    ):
        plan, state = decide(state, [change], NOW_MS)
        assert plan.reasons["j1"] == expected, change
    for change in (Policy(), an_organization(pool=1000), a_node("n6", gpus=99), an_attempt(gpus=6)):
        plan, state = decide(state, [change], NOW_MS)
        assert started(plan) == ["j1"], change
        undone: list[Change] = [A_FIFTH, an_organization(), Tombstone(Kind.NODE, "c1/n6"), an_attempt(gpus=7)]
        plan, state = decide(state, undone, NOW_MS)
        assert plan.reasons["j1"] == capped(8, 7, 2), change


def test_pool_that_grows_into_being_divided_is_noticed() -> None:
    policy = replace(A_FIFTH, organization_pool_from_gpus=41)
    full = [a_node(f"n{i}", used=8) for i in range(5)]
    two = [a_grant(id="g1"), a_grant(id="g2", ends=NOW_MS + 10 * DAY_MS)]
    plan, state = decide(State(), a_world(policy, *two, *full, an_attempt(gpus=9), a_job()), NOW_MS)
    assert plan.reasons["j1"].code is WaitReason.NO_FREE_GPU
    plan, _ = decide(state, [a_node("n6", gpus=4)], NOW_MS)
    assert plan.reasons["j1"] == capped(9, 9, 1)


# --- nobody is stopped for who may not start ---------------------------------------------------------

RULE = Preemption(gang_gpus=8, lead_ms=1)


def busy(*nodes: str) -> list[Change]:
    """Nodes full of restartable jobs of "o2"."""
    found: list[Change] = []
    for node in nodes:
        job = replace(a_job(f"r-{node}", "o2", gpus=8, hours=24, state=JobState.RUNNING), restartable=True)
        attempt = an_attempt(job.id, "g-o2", gpus=8, organization="o2")
        pods = (replace(attempt.pods[0], node=node),)
        times = {"started_at_ms": NOW_MS - 2 * HOUR_MS, "ends_at_ms": NOW_MS + 22 * HOUR_MS}
        found += [a_node(node, used=8), job, replace(attempt, pods=pods, **times)]  # type: ignore[arg-type]
    return found


def preempting(*changes: Change) -> Plan:
    policy = Policy(lag_bound_share=1.0, preemption=RULE)
    ahead = a_grant("o2", lag_ms=-DAY_MS)
    return plan_of(policy, a_grant(lag_ms=3 * DAY_MS), ahead, *changes, organizations=("o1", "o2"))


def test_nobody_is_stopped_for_an_organization_at_its_cap() -> None:
    gang = a_job("gang", gpus=8)
    assert {stop.for_job for stop in preempting(*busy("n1"), gang, an_organization(max_gpus=8)).stops} == {
        "gang"
    }
    plan = preempting(*busy("n1"), gang, an_organization(max_gpus=8), an_attempt(gpus=1))
    assert (plan.stops, plan.reasons["gang"]) == ((), capped(8, 1, 8))


def test_others_are_stopped_for_as_many_gangs_as_the_cap_lets_start() -> None:
    gangs = [a_job("first", gpus=8, submitted=0), a_job("second", gpus=8, submitted=1)]
    plan = preempting(*busy("n1", "n2"), *gangs, an_organization(max_gpus=15))
    assert {stop.for_job for stop in plan.stops} == {"first"}
    assert plan.reasons["second"] == capped(15, 8, 8)
    both = preempting(*busy("n1", "n2"), *gangs, an_organization(max_gpus=16))
    assert {stop.for_job for stop in both.stops} == {"first", "second"}


def clearing(gang: str, node: str) -> tuple[Node, Attempt]:
    return a_node(node, used=8), a_stopping_attempt(f"victim-{gang}", gang, {node: 8})


def test_what_is_cleared_for_a_gang_counts_as_in_use_for_the_others_of_its_organization() -> None:
    gang, small = a_job("gang", gpus=8, submitted=5), a_job("small", gpus=2, submitted=0)
    plan = plan_of(an_organization(max_gpus=9), *clearing("gang", "n1"), a_node("n2"), gang, small)
    assert started(plan) == ["gang"]  # into n2, which is kept for it
    no_room = plan_of(an_organization(max_gpus=9), *clearing("gang", "n1"), a_node("n2", gpus=4), gang, small)
    assert started(no_room) == []
    assert no_room.reasons["small"] == capped(9, 8, 2)
    assert no_room.reasons["gang"].code is WaitReason.NO_FREE_GPU
    wider = plan_of(an_organization(max_gpus=10), *clearing("gang", "n1"), a_node("n2", gpus=4), gang, small)
    assert started(wider) == ["small"]


def test_gang_that_the_cap_keeps_out_claims_nothing() -> None:
    gang, small = a_job("gang", gpus=8), a_job("small", gpus=2)
    plan = plan_of(an_organization(max_gpus=7), *clearing("gang", "n1"), a_node("n2", gpus=4), gang, small)
    assert started(plan) == ["small"]
    assert plan.reasons["gang"] == capped(7, 2, 8)


def test_of_two_gangs_for_which_others_stop_the_cap_lets_the_older_one_go() -> None:
    gangs = [a_job("old", gpus=8, submitted=0), a_job("new", gpus=8, submitted=1)]
    world = [*clearing("old", "n1"), *clearing("new", "n2"), a_node("n3", gpus=4), *gangs]
    plan = plan_of(an_organization(max_gpus=15), *world)
    assert plan.reasons["old"].code is WaitReason.NO_FREE_GPU
    assert plan.reasons["new"] == capped(15, 8, 8)


def test_what_comes_to_be_in_use_counts_for_the_next_pick_also_where_it_changed_no_verdict() -> None:
    jobs = [a_job(f"j{i}", gpus=4, submitted=i) for i in range(2)]
    _, state = decide(State(), a_world(an_organization(max_gpus=8), *jobs), NOW_MS)
    plan, _ = decide(state, [an_attempt(gpus=3), *NODES], NOW_MS + 1)
    assert started(plan) == ["j0"]
    assert plan.reasons["j1"] == capped(8, 7, 4)
