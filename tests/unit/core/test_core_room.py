"""Where jobs go, which nodes are out of reach, and what room is kept."""

import pytest

from scheduler.core.fit import Fleet, Shelf
from scheduler.core.model import Capacity, JobState, WaitReason
from tests.unit.core.core_world import (
    HOUR_MS,
    NOW_MS,
    a_class,
    a_cluster,
    a_job,
    a_node,
    a_stopping_attempt,
    nodes_of,
    plan_of,
    started,
)


def test_fullest_node_that_fits_is_filled_first() -> None:
    nodes = [a_node("n1", used=2), a_node("n2", used=5), a_node("n3", used=7)]
    assert nodes_of(plan_of(*nodes, a_job(gpus=2)), "j1") == ["n2"]


def test_whole_empty_node_is_broken_last_and_kept_for_who_needs_it() -> None:
    nodes = [a_node("empty", gpus=4), a_node("open", gpus=8, used=1)]
    assert nodes_of(plan_of(*nodes, a_job(gpus=2)), "j1") == ["open"]
    assert nodes_of(plan_of(*nodes, a_job(gpus=4)), "j1") == ["empty"]


def test_ties_go_by_node_name() -> None:
    assert nodes_of(plan_of(a_node("b"), a_node("a"), a_job()), "j1") == ["a"]


def test_pods_of_a_gang_may_share_a_node() -> None:
    assert nodes_of(plan_of(a_node("a", used=4), a_node("b", used=2), a_job(gpus=2, pods=4)), "j1") == [
        "a",
        "a",
        "b",
        "b",
    ]


def test_gang_stays_in_one_cluster_or_waits() -> None:
    nodes = [a_node("a", cluster="c1"), a_node("b", cluster="c2")]
    plan = plan_of(a_cluster("c2"), *nodes, a_job(gpus=8, pods=2))
    assert plan.starts == ()
    assert plan.reasons["j1"].code is WaitReason.NO_NODE_FITS
    assert plan.reasons["j1"].numbers == {"gpu_class": "h100", "gpus_per_pod": 8, "pods": 2, "pods_fit": 1}


def test_cluster_left_with_the_least_over_is_chosen() -> None:
    nodes = [a_node("a", used=2), a_node("b", used=4, cluster="c2")]
    plan = plan_of(a_cluster("c2"), *nodes, a_job(gpus=4))
    assert plan.starts[0].cluster == "c2"


def test_foreign_use_and_lowered_totals_leave_nothing() -> None:
    plan = plan_of(a_node("a", gpus=8, foreign=8), a_node("b", gpus=4, used=8), a_job())
    assert plan.reasons["j1"].numbers == {"gpu_class": "h100", "needed": 1, "free": 0}


def test_mig_profiles_and_whole_gpus_of_one_node_are_counted_apart() -> None:
    node = a_node(gpus=1, more={"mig": Capacity(7)})
    plan = plan_of(a_class("mig", 140), node, a_job("m", gpu_class="mig", gpus=7), a_job("g"), a_job("h"))
    assert sorted(started(plan)) == ["g", "m"]


def test_start_is_the_next_attempt_and_names_every_pod() -> None:
    start = plan_of(a_node(), a_job(gpus=2, pods=2, attempt=3)).starts[0]
    assert start.attempt == 4
    assert [(p.node, p.gpu_class, p.count) for p in start.pods] == [("n1", "h100", 2)] * 2


@pytest.mark.parametrize(
    ("job", "waits"),
    [
        (a_job(state=JobState.RUNNING), False),
        (a_job(state=JobState.ENDED), False),
        (a_job(cancel=True), False),
        (a_job(gpus=64), True),
    ],
)
def test_only_queued_jobs_without_a_cancel_request_wait(job: object, waits: bool) -> None:
    plan = plan_of(a_node(), job)  # type: ignore[arg-type]
    assert (plan.starts, plan.order, set(plan.reasons)) == ((), ("j1",) * waits, {"j1"} if waits else set())


# --- reasons for want of room ----------------------------------------------------------------------


def code_of(*changes: object) -> WaitReason:
    return plan_of(*changes).reasons["j1"].code  # type: ignore[arg-type]


def test_unseen_cluster_receives_nothing() -> None:
    assert started(plan_of(a_cluster(seen_ms=NOW_MS - 60_000), a_node(), a_job())) == ["j1"]
    plan = plan_of(a_cluster(seen_ms=NOW_MS - 60_001), a_node(), a_job())
    assert plan.reasons["j1"].code is WaitReason.CLUSTER_UNSEEN
    assert plan.reasons["j1"].numbers == {"cluster": "c1"}


def test_cluster_that_was_never_seen_binds_even_when_full() -> None:
    assert code_of(a_node(cluster="c9", used=8), a_job()) is WaitReason.CLUSTER_UNSEEN


def test_cordoned_node_is_unavailable() -> None:
    assert code_of(a_node(schedulable=False), a_job()) is WaitReason.NODES_UNAVAILABLE
    assert (
        code_of(a_node(schedulable=False), a_node("n2"), a_job(gpus=8, pods=2))
        is WaitReason.NODES_UNAVAILABLE
    )


def test_full_node_in_reach_is_plain_want_of_gpus_although_another_is_cordoned() -> None:
    nodes = [a_node("a", used=8), a_node("b", used=8, schedulable=False)]
    assert code_of(*nodes, a_job()) is WaitReason.NO_FREE_GPU


def test_scattered_room_fits_no_node() -> None:
    assert code_of(a_node("a", used=5), a_node("b", used=5), a_job(gpus=4)) is WaitReason.NO_NODE_FITS


def test_first_that_lost_its_room_to_a_pick_is_told_to_whom() -> None:
    jobs = [a_job("j0", submitted=0), a_job("j1", submitted=1), a_job("j2", submitted=2)]
    plan = plan_of(a_node(gpus=1), *jobs)
    assert started(plan) == ["j0"]
    assert plan.reasons["j1"].code is WaitReason.BEHIND_IN_ORDER
    numbers = {"position": 1, "organization": "o1", "job": "j0", "lag_thousandths": 0}
    assert plan.reasons["j1"].numbers == numbers
    assert plan.reasons["j2"].code is WaitReason.NO_FREE_GPU


# --- room kept for a job that others stop for --------------------------------------------------------

GANG = a_job("gang", gpus=8, pods=2, submitted=NOW_MS)
SMALL = a_job("small", gpus=2, submitted=0)


def test_free_room_that_a_gang_waits_to_complete_is_kept() -> None:
    nodes = [a_node("n1"), a_node("n2", used=8)]
    assert started(plan_of(*nodes, GANG, SMALL)) == ["small"]
    plan = plan_of(*nodes, a_stopping_attempt(for_job="gang", on={"n2": 8}), GANG, SMALL)
    assert plan.starts == ()
    assert plan.reasons["small"].code is WaitReason.ROOM_RESERVED
    assert plan.reasons["small"].numbers == {"job": "gang"}
    assert plan.reasons["gang"].code is WaitReason.NO_FREE_GPU


def test_room_freed_already_is_kept_while_the_rest_drains() -> None:
    victims = [
        a_stopping_attempt("v1", "gang", {"n1": 8}, held=False),
        a_stopping_attempt("v2", "gang", {"n2": 8}),
    ]
    plan = plan_of(a_node("n1"), a_node("n2", used=8), *victims, GANG, SMALL)
    assert plan.reasons["small"].code is WaitReason.ROOM_RESERVED


def test_only_the_room_needed_is_kept() -> None:
    nodes = [a_node("n1"), a_node("n2", used=8), a_node("n3", used=6)]
    plan = plan_of(*nodes, a_stopping_attempt(for_job="gang", on={"n2": 8}), GANG, SMALL)
    assert nodes_of(plan, "small") == ["n3"]


def test_gang_takes_its_room_as_soon_as_it_is_whole_though_others_stand_before_it() -> None:
    victim = a_stopping_attempt(for_job="gang", on={"n2": 8}, held=False)
    plan = plan_of(a_node("n1"), a_node("n2"), victim, GANG, SMALL)
    assert started(plan) == ["gang"]


def test_room_is_kept_through_the_gangs_cooldown() -> None:
    gang = a_job("gang", gpus=8, pods=2, not_before=NOW_MS + HOUR_MS)
    plan = plan_of(
        a_node("n1"), a_node("n2", used=8), a_stopping_attempt(for_job="gang", on={"n2": 8}), gang, SMALL
    )
    assert plan.starts == ()


@pytest.mark.parametrize(
    "gang",
    [
        a_job("gang", gpus=8, pods=2, cancel=True),
        a_job("gang", gpus=8, pods=2, state=JobState.RUNNING),
        a_job("gang", gpus=8, pods=2, hours=1e6),
    ],
)
def test_room_is_not_kept_for_a_job_that_cannot_come(gang: object) -> None:
    victim = a_stopping_attempt(for_job="gang", on={"n2": 8})
    plan = plan_of(a_node("n1"), a_node("n2", used=8), victim, gang, SMALL)  # type: ignore[arg-type]
    assert started(plan) == ["small"]


def test_freed_room_is_kept_even_when_the_gang_cannot_be_laid_out_any_more() -> None:
    victims = [a_stopping_attempt("v1", "gang", {"n1": 4, "gone": 8}, held=False)]
    plan = plan_of(a_node("n1", used=4), victims[0], GANG, SMALL)
    assert plan.reasons["small"].code is WaitReason.ROOM_RESERVED


# --- the table of nodes ------------------------------------------------------------------------------


def test_shelf_counts_pods_like_a_look_at_every_node() -> None:
    shelf = Shelf()
    for name, free in (("a", 8), ("b", 3), ("c", 0), ("d", 5)):
        shelf.put(name, free, 8)
    assert [shelf.fitting(size) for size in (1, 2, 3, 8)] == [16, 7, 4, 1]
    shelf.shift("a", -4)
    shelf.put("b", 8, 8)
    shelf.drop("d")
    assert [shelf.fitting(size) for size in (1, 2, 3, 8)] == [12, 6, 3, 1]
    assert (shelf.free, shelf.holding(8)) == (12, 3)


def test_rollback_gives_back_all_that_was_taken() -> None:
    fleet = Fleet()
    fleet.put(a_node("n1"))
    fleet.take("h100", "c1", {"n1": 5})
    fleet.take("h100", "c1", {"n1": 2}, sign=-1)
    assert fleet.open["h100"]["c1"].free == 5
    fleet.rollback()
    assert fleet.open["h100"]["c1"].nodes == {"n1": (8, 8)}


def test_taking_more_than_is_free_is_a_bug_that_shows() -> None:
    fleet = Fleet()
    fleet.put(a_node("n1", used=4))
    with pytest.raises(AssertionError, match="n1: 4 free of 8"):
        fleet.take("h100", "c1", {"n1": 5})
