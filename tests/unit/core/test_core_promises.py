"""Reservations, lane, preemption, floor and idle lag by examples that were computed by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from scheduler.core.cycle import decide
from scheduler.core.model import (
    Attempt,
    Change,
    Job,
    JobState,
    Kind,
    Pace,
    Plan,
    PodPlacement,
    Preempt,
    Reservation,
    Reservations,
    Stop,
    Tombstone,
    WaitReason,
)
from scheduler.core.policy import MINUTE_MS, Lane, Policy, Preemption
from scheduler.core.preempt import victim_of
from scheduler.core.state import State
from tests.unit.core.core_world import (
    DAY_MS,
    HOUR_MS,
    NOW_MS,
    a_class,
    a_grant,
    a_job,
    a_node,
    a_stopping_attempt,
    a_world,
    an_organization,
    nodes_of,
    plan_of,
    started,
)

EASY = Policy(reservations=8)


def running(
    job: str, gpus: int, node: str = "n1", left_h: float = 1, ran_h: float = 1, organization: str = "o1"
) -> list[Change]:
    """A restartable job on one node that began `ran_h` ago and ends in `left_h`."""
    began_ms, ends_ms = NOW_MS - int(ran_h * HOUR_MS), NOW_MS + int(left_h * HOUR_MS)
    pods = (PodPlacement(node, "h100", gpus),)
    cost = gpus * 1000 * (ends_ms - began_ms)
    attempt = Attempt(
        job,
        1,
        f"g-{organization}",
        JobState.RUNNING,
        "c1",
        pods,
        cost,
        began_ms,
        None,
        True,
        began_ms,
        ends_ms,
    )
    its_job = a_job(job, organization, gpus, hours=ran_h + left_h, state=JobState.RUNNING, attempt=1)
    return [replace(its_job, restartable=True), attempt]


def reserved(plan: Plan) -> list[tuple[str, float, dict[str, int]]]:
    """Job, hours from NOW_MS, nodes."""
    return [(r.job_id, (r.starts_at_ms - NOW_MS) / HOUR_MS, dict(r.gpus_by_node)) for r in plan.reservations]


def named(plan: Plan, job: str) -> tuple[WaitReason, str | int | None]:
    reason = plan.reasons[job]
    return reason.code, reason.numbers.get("job")


# --- reservations -----------------------------------------------------------------------------------


def test_gang_that_does_not_fit_reserves_the_earliest_hole() -> None:
    world = [
        EASY, a_job("gang", gpus=8, pods=2, hours=10),
        a_node("n1", used=8), *running("a", 4, "n1", left_h=3), *running("b", 4, "n1", left_h=5),
        a_node("n2", used=8), *running("c", 8, "n2", left_h=2),
        a_node("n3", used=8), *running("d", 8, "n3", left_h=4),
        a_node("n4", gpus=1), a_job("tiny", submitted=NOW_MS),
    ]  # fmt: skip
    plan = plan_of(*world)
    assert started(plan) == ["tiny"]
    assert reserved(plan) == [("gang", 4, {"n2": 8, "n3": 8})]
    assert plan.reasons["gang"].code is WaitReason.RESERVED
    numbers = {"starts_at_ms": NOW_MS + 4 * HOUR_MS, "gpu_class": "h100", "needed": 16, "free": 0}
    assert plan.reasons["gang"].numbers == numbers


def two_nodes(*more: Change) -> list[Change]:
    """`big` needs both nodes, which it will have in 4 hours; 6 GPUs of n1 are free until then."""
    return [
        a_node("n1", used=2), *running("a", 2, "n1", left_h=2),
        a_node("n2", used=8), *running("b", 8, "n2", left_h=4),
        a_job("big", gpus=8, pods=2, hours=6, submitted=NOW_MS - 9 * HOUR_MS), *more,
    ]  # fmt: skip


def test_short_job_passes_and_one_that_would_run_into_the_reservation_waits() -> None:
    plan = plan_of(EASY, *two_nodes(a_job("short", gpus=3, hours=4), a_job("long", gpus=3, hours=5)))
    assert started(plan) == ["short"]
    assert reserved(plan) == [("big", 4, {"n1": 8, "n2": 8})]
    assert named(plan, "long") == (WaitReason.ROOM_RESERVED, "big")


def test_job_of_the_lane_passes_and_the_reservation_moves_behind_it() -> None:
    world = two_nodes(a_job("long", gpus=3, hours=5))
    plan = plan_of(replace(EASY, lane=Lane()), *world)
    assert started(plan) == ["long"]
    assert reserved(plan) == [("big", 5, {"n1": 8, "n2": 8})]
    # 5 h are in the row of 12 h: who has spent 95 % of his grant does not pass
    spent = {used: plan_of(replace(EASY, lane=Lane()), *world, a_grant(used=used)) for used in (9490, 9501)}
    assert started(spent[9490]) == ["long"]
    assert named(spent[9501], "long") == (WaitReason.ROOM_RESERVED, "big")
    too_large = replace(EASY, lane=Lane(area_gpu_ms=15 * HOUR_MS))
    assert started(plan_of(too_large, *world)) == []  # 5 h count as 6 h: 18 GPU hours


def a_reservation(job: str, hours: float, gpus_by_node: dict[str, int], number: int = 0) -> Reservation:
    return Reservation(
        job, "c1", "h100", NOW_MS + int(hours * HOUR_MS), gpus_by_node, NOW_MS - HOUR_MS, number
    )


def test_job_of_the_lane_that_has_a_reservation_of_its_own_passes_too() -> None:
    kept = Reservations((a_reservation("big", 4, {"n1": 8, "n2": 8}), a_reservation("six", 10, {"n1": 6}, 1)))
    six = a_job("six", gpus=6, hours=5)
    plan = plan_of(replace(EASY, lane=Lane(), reservation_gpus=6), *two_nodes(six), kept)
    assert started(plan) == ["six"]


def test_attempt_that_does_not_end_in_time_pushes_the_reservation() -> None:
    world = a_world(EASY, *two_nodes(a_job("long", gpus=3, hours=5)))
    plan, state = decide(State(), world, NOW_MS)
    assert reserved(plan) == [("big", 4, {"n1": 8, "n2": 8})]
    gone = [a_node("n1"), Tombstone(Kind.ATTEMPT, "a-1"), Tombstone(Kind.JOB, "a")]
    now_ms = NOW_MS + 4 * HOUR_MS + 1000
    plan, state = decide(state, [*gone, replace_seen(now_ms)], now_ms)
    assert started(plan) == []
    # whoever should have ended is taken to end within a minute
    assert plan.reservations[0].starts_at_ms == now_ms + MINUTE_MS
    assert named(plan, "long") == (WaitReason.ROOM_RESERVED, "big")
    ended = [a_node("n2"), Tombstone(Kind.ATTEMPT, "b-1"), Tombstone(Kind.JOB, "b")]
    assert started(decide(state, ended, now_ms + 1000)[0]) == ["big"]


def replace_seen(now_ms: int) -> Change:
    return next(
        replace(each, last_seen_ms=now_ms + DAY_MS) for each in a_world() if hasattr(each, "last_seen_ms")
    )


def test_of_two_reservations_back_to_back_both_start_though_the_first_is_late() -> None:
    jobs = [a_job("one", gpus=8, hours=1, submitted=0), a_job("two", gpus=8, hours=1, submitted=1)]
    tiny = [a_node("n2", gpus=1), a_job("tiny")]
    world = a_world(EASY, a_node("n1", used=8), *running("a", 8), *jobs, *tiny)
    plan, state = decide(State(), [*world, replace_seen(NOW_MS)], NOW_MS)
    assert reserved(plan) == [("one", 1, {"n1": 8}), ("two", 2, {"n1": 8})]
    late_ms = NOW_MS + HOUR_MS + 1000
    plan, state = decide(
        state, [a_node("n1"), Tombstone(Kind.ATTEMPT, "a-1"), Tombstone(Kind.JOB, "tiny")], late_ms
    )
    assert started(plan) == ["one"]
    assert {r.job_id: r.starts_at_ms for r in plan.reservations if r.job_id == "two"} == {
        "two": late_ms + HOUR_MS
    }
    runs = running("one", 8, left_h=2 + 1 / 3600, ran_h=-1 - 1 / 3600)
    plan, state = decide(state, [a_node("n1", used=8), *runs], late_ms + 1)
    over = [a_node("n1"), Tombstone(Kind.ATTEMPT, "one-1"), Tombstone(Kind.JOB, "one")]
    assert started(decide(state, over, late_ms + HOUR_MS)[0]) == ["two"]


def ahead(organization: str = "o1") -> Change:
    return a_grant(organization, lag_ms=-DAY_MS)


def test_job_of_a_grant_ahead_of_its_pace_that_starts_does_not_wait_as_well() -> None:
    job, kept = a_job(gpus=8), Reservations((a_reservation("j1", 1, {"n1": 8}),))
    plan = plan_of(EASY, ahead(), a_node(), job, kept)
    assert started(plan) == ["j1"]
    assert plan.order == ()
    assert plan.reasons == {}


def test_job_of_a_grant_ahead_of_its_pace_starts_though_another_took_its_reservation() -> None:
    world = [
        replace(EASY, reservations=1), ahead(), a_grant("o2", lag_ms=DAY_MS),
        a_node("n1"), a_node("n2", used=8), *running("a", 8, "n2", left_h=9, organization="o2"),
        a_job("mine", gpus=4, hours=1), a_job("big", "o2", gpus=8, pods=2),
        Reservations((a_reservation("mine", 1, {"n1": 4}),)),
    ]  # fmt: skip
    plan = plan_of(*world, organizations=("o1", "o2"))
    assert started(plan) == ["mine"]
    assert reserved(plan)[-1] == ("big", 9, {"n1": 8, "n2": 8})


def test_reservation_whose_time_has_come_takes_its_own_room_and_nobody_elses() -> None:
    kept = Reservations((a_reservation("big", 1, {"n1": 8}), a_reservation("mine", 0, {"n2": 4}, 1)))
    world = [a_node("n1"), a_node("n2", gpus=4), a_grant(lag_ms=DAY_MS), kept]
    jobs = [a_job("mine", gpus=4, hours=10), a_job("big", gpus=8)]
    plan = plan_of(replace(EASY, reservation_gpus=4), *world, *jobs)
    assert nodes_of(plan, "mine") == ["n2"]
    assert nodes_of(plan, "big") == ["n1"]  # it may start sooner than promised
    cordoned = a_node("n1", used=1)
    plan = plan_of(replace(EASY, reservation_gpus=4), cordoned, *running("s", 1), *world[1:], *jobs)
    assert started(plan) == ["mine"]
    assert ("big", 1, {"n1": 8}) in reserved(plan)


def test_reservations_on_a_node_that_is_lost_hide_no_other_node() -> None:
    world = [
        EASY, a_grant(lag_ms=DAY_MS), a_class("mig"), a_node("n9", gpu_class="mig"), a_job("tiny", gpu_class="mig"),
        a_node("n1", schedulable=False), a_node("n2", used=8), *running("b", 8, "n2", left_h=5),
        a_node("n3", used=8), *running("c", 8, "n3", left_h=1),
        a_job("one", gpus=8), a_job("two", gpus=8, pods=2),
        Reservations((a_reservation("one", 9, {"n1": 8}), a_reservation("two", 9, {"n1": 8, "n2": 8}, 1))),
    ]  # fmt: skip
    assert reserved(plan_of(*world)) == [("one", 1, {"n3": 8}), ("two", 5, {"n2": 8, "n3": 8})]


def test_who_has_room_kept_starts_in_it_and_not_in_the_way_of_a_promise() -> None:
    """Others were stopped for `mine` on k; p, which it would fill exactly, is promised to `big` in an hour."""
    world = [
        a_node("k", gpus=5), a_stopping_attempt("victim", "mine", {"k": 4}, held=False),
        a_node("p", gpus=4), a_node("q", gpus=4, used=4), *running("a", 4, "q", left_h=1),
        a_job("mine", gpus=4, hours=8), a_job("big", gpus=4, pods=2, submitted=NOW_MS - 9 * HOUR_MS),
        a_grant(lag_ms=DAY_MS),
    ]  # fmt: skip
    promise = Reservations((a_reservation("big", 1, {"p": 4, "q": 4}),))
    assert nodes_of(plan_of(EASY, *world[:-3], world[-1], world[-3]), "mine") == ["p"]
    plan = plan_of(EASY, *world, promise)
    assert nodes_of(plan, "mine") == ["k"]
    assert reserved(plan) == [("big", 1, {"p": 4, "q": 4})]


# --- preemption -------------------------------------------------------------------------------------

STOPPING = Policy(lag_bound_share=1.0, preemption=Preemption(gang_gpus=8))


def stops(*world: Change) -> Sequence[Preempt]:
    """With a gang of "o1", two days behind, that needs one node; the others are on their pace."""
    behind = [a_grant("o1", lag_ms=2 * DAY_MS), a_grant("o2"), a_job("gang", "o1", gpus=8, hours=4)]
    return plan_of(*behind, *world, organizations=("o1", "o2")).stops


def victim(job: str, gpus: int, node: str, ran_minutes: int) -> list[Change]:
    return running(job, gpus, node, left_h=9, ran_h=ran_minutes / 60, organization="o2")


def test_the_cheapest_victims_are_stopped_after_the_notice() -> None:
    # lost by then, restart included: v1 (20 + 10) min x 4, v2 (50 + 10) min x 4; v3 (10 + 10) min x 8 is less
    world = [
        a_node("n1", used=8), *victim("v1", 4, "n1", 130), *victim("v2", 4, "n1", 160),
        a_node("n2", used=8), *victim("v3", 8, "n2", 60),
    ]  # fmt: skip
    assert stops(STOPPING, *world) == (Preempt("v3", 1, "gang", NOW_MS + 10 * MINUTE_MS),)


@pytest.mark.parametrize(("ran", "lost"), [(60, 20), (110, 10), (109, 69), (160, 60)])
def test_lost_is_what_ran_since_the_last_checkpoint_and_the_restart(ran: int, lost: int) -> None:
    job, attempt = victim("v", 8, "n1", ran)
    assert isinstance(job, Job)
    assert isinstance(attempt, Attempt)
    found = victim_of(job, attempt, "h100", Preemption(), NOW_MS)
    assert found
    assert found.lost_gpu_ms == lost * MINUTE_MS * 8


def test_superfluous_victims_are_spared() -> None:
    # per GPU v1 costs less and is taken first; with v2, which alone is enough, it is not needed
    world = [a_node("n1", gpus=10, used=8), *victim("v1", 2, "n1", 60), *victim("v2", 6, "n1", 65)]
    assert [stop.job_id for stop in stops(STOPPING, *world)] == ["v2"]


@pytest.mark.parametrize(
    "changed",
    [{"lead_ms": 3 * DAY_MS}, {"protected_ms": 2 * HOUR_MS}, {"victim_gpus": 7}, {"gang_gpus": 9}],
)
def test_nobody_is_stopped_against_the_rule(changed: dict[str, int]) -> None:
    world = [a_node("n1", used=8), *victim("v", 8, "n1", 60)]
    assert stops(STOPPING, *world)
    assert STOPPING.preemption
    assert not stops(replace(STOPPING, preemption=replace(STOPPING.preemption, **changed)), *world)


def test_no_more_gangs_of_a_firm_at_a_time_than_the_rule_says() -> None:
    assert STOPPING.preemption
    one = replace(STOPPING, preemption=replace(STOPPING.preemption, gangs=1))
    nodes = [
        a_node("n1", used=8),
        *victim("v1", 8, "n1", 60),
        a_node("n2", used=8),
        *victim("v2", 8, "n2", 70),
    ]
    later = a_job("later", "o1", gpus=8, hours=4, submitted=NOW_MS)
    assert {stop.for_job for stop in stops(STOPPING, *nodes, later)} == {"gang", "later"}
    assert {stop.for_job for stop in stops(one, *nodes, later)} == {"gang"}
    job, attempt = victim("v1", 8, "n1", 60)
    assert isinstance(attempt, Attempt)
    stopped = replace(attempt, state=JobState.STOPPING, stop=Stop("preempted", "gang"))
    assert not stops(one, *nodes, job, stopped, later)


# --- who is next ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "share", "first"), [(2, 0.6, "active"), (3, 0.6, "woken"), (2, 0.0, "woken")]
)
def test_who_is_on_pace_and_runs_below_the_floor_goes_first(gpus: int, share: float, first: str) -> None:
    """ "active" ran 4 GPUs of late, its pace needs 10,000 / 2,400 = 4.17: the floor is 0.6 x 4 = 2.4 GPUs."""
    policy = Policy(lag_bound_share=1.0, hold_share=0.0, floor_share=share)
    usage = 4 * 1000 * policy.half_life_ms / math.log(2)
    world = [
        policy, an_organization("active", usage=usage), a_grant("active", held=gpus * 2),
        a_grant("woken", lag_ms=10 * DAY_MS), a_node("n1", used=gpus, gpus=gpus + 1),
        *running("r", gpus, organization="active"), a_job("a", "active"), a_job("w", "woken"),
    ]  # fmt: skip
    plan = plan_of(*world, organizations=("active", "woken"))
    assert started(plan) == [{"active": "a", "woken": "w"}[first]]


@pytest.mark.parametrize(
    ("lag_days", "waits", "after_days"),
    [(0, False, 5), (3, False, 5), (8, False, 8), (0, True, 10), (-20, False, -10), (7, True, 17)],
)
def test_lag_grows_to_the_idle_bound_while_nothing_waits(lag_days: int, waits: bool, after_days: int) -> None:
    """Ten days pass; the bound is 5 % of 100 days, that of those who wait 20 %."""
    policy = Policy(idle_lag_share=0.05, lag_bound_share=0.2)
    grant = a_grant(pace=Pace(lag_days * DAY_MS, NOW_MS - 10 * DAY_MS))
    jobs = [a_job(submitted=NOW_MS - 10 * DAY_MS)] if waits else []
    plan = plan_of(policy, grant, *jobs)
    assert plan.paces["g-o1"].lag_ms == after_days * DAY_MS


@pytest.mark.parametrize(("gang_first", "order"), [(0, ("old", "gang", "new")), (8, ("gang", "old", "new"))])
def test_large_gangs_go_first_inside_a_grant(gang_first: int, order: tuple[str, ...]) -> None:
    jobs = [a_job("old", submitted=1), a_job("gang", gpus=4, pods=2, submitted=2), a_job("new", submitted=3)]
    plan = plan_of(Policy(gang_first_gpus=gang_first), a_node(used=8), *jobs)
    assert plan.order == order
    assert started(plan_of(Policy(gang_first_gpus=gang_first), a_node(), *jobs))[0] == order[0]


@pytest.mark.parametrize(
    ("larger", "order"),
    [(False, ("four", "eight", "four-2", "one")), (True, ("eight", "four", "four-2", "one"))],
)
def test_among_the_large_the_larger_go_first_if_the_policy_says_so(
    larger: bool, order: tuple[str, ...]
) -> None:
    jobs = [
        a_job("one", submitted=1),
        a_job("four", gpus=4, submitted=2),
        a_job("eight", gpus=8, submitted=3),
        a_job("four-2", gpus=4, submitted=4),
    ]
    policy = Policy(gang_first_gpus=4, larger_gangs_first=larger)
    assert plan_of(policy, a_node(used=8), *jobs).order == order
    assert started(plan_of(policy, a_node(), *jobs))[0] == order[0]
