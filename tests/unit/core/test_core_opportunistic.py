"""Opportunistic jobs get what is idle, in turns, and leave before anybody else is stopped."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest

from scheduler.core.cycle import decide
from scheduler.core.leaving import fewest_cheapest, loss_of
from scheduler.core.model import (
    Account,
    Attempt,
    Booking,
    Change,
    Fund,
    Job,
    JobState,
    Kind,
    PodPlacement,
    Reason,
    Stop,
    Tombstone,
    Topology,
    WaitReason,
)
from scheduler.core.policy import MINUTE_MS, PRESETS, Policy
from scheduler.core.state import State
from tests.unit.core.core_world import (
    DAY_MS,
    GPU_HOUR,
    HOUR_MS,
    NOW_MS,
    TERM_MS,
    a_cluster,
    a_grant,
    a_job,
    a_node,
    a_world,
    an_organization,
    nodes_of,
    plan_of,
    started,
)


def a_fund(
    hours: float = 1000,
    used: float = 0,
    pays: bool = True,
    max_gpus: int | None = None,
    ends: int = TERM_MS,
    program: str = "p1",
) -> Fund:
    account = Account("grant:fund", int(hours * GPU_HOUR), 0, int(used * GPU_HOUR))
    return Fund("fund", program, account, 0, ends, pays, max_gpus)


def spare_job(
    id: str = "s1",
    organization: str = "o1",
    gpus: int = 1,
    pods: int = 1,
    hours: float = 1,
    submitted: int = 0,
) -> Job:
    job = a_job(id, organization, gpus, pods, hours, NOW_MS - HOUR_MS + submitted)
    return replace(job, program_id="p1")


def spare_attempt(
    job: str = "r1",
    on: Mapping[str, int] | None = None,
    age_ms: int = HOUR_MS,
    state: JobState = JobState.RUNNING,
    stop: Stop | None = None,
    ends_ms: int | None = None,
    organization: str = "o1",
    cost: float = 0,
) -> list[Change]:
    """A job that runs on these nodes, and its attempt."""
    pods = tuple(PodPlacement(node, "h100", gpus) for node, gpus in (on or {"n1": 8}).items())
    attempt = Attempt(
        job, 1, "fund", state, "c1", pods, int(cost * GPU_HOUR), NOW_MS - age_ms, stop,
        started_at_ms=None if state is JobState.STARTING else NOW_MS - age_ms,
        ends_at_ms=NOW_MS + DAY_MS if ends_ms is None else ends_ms,
        organization_id=organization, opportunistic=True,
    )  # fmt: skip
    running = replace(spare_job(job, organization, pods[0].count, len(pods)), state=state, attempt=1)
    return [running, attempt]


def reason_of(changes: list[Change], job: str) -> Reason:
    return plan_of(*changes).reasons[job]


# --- what is idle ---------------------------------------------------------------------------------


def test_an_opportunistic_job_gets_a_gpu_that_nobody_waits_for() -> None:
    plan = plan_of(a_node(), a_fund(), spare_job(hours=2))
    (start,) = plan.starts
    assert (start.job_id, start.grant_id, start.account_path) == ("s1", "fund", ("grant:fund",))
    assert start.cost_gpu_us == 2 * GPU_HOUR
    assert plan.paces == plan_of(a_node()).paces


def test_everybody_else_goes_first_whoever_came_before() -> None:
    late = a_job("j1", gpus=8, submitted=NOW_MS)
    plan = plan_of(a_node(), a_fund(), spare_job(), late)
    assert started(plan) == ["j1"]
    assert plan.reasons["s1"] == Reason(WaitReason.NO_IDLE_GPU, {"gpu_class": "h100", "needed": 1, "idle": 0})
    assert plan.order == ("s1",)


def test_room_promised_to_a_reservation_is_not_idle() -> None:
    busy = Attempt(
        "busy", 1, "g-o1", JobState.RUNNING, "c1", (PodPlacement("n1", "h100", 4),), 0, NOW_MS - HOUR_MS,
        started_at_ms=NOW_MS - HOUR_MS, ends_at_ms=NOW_MS + 3 * HOUR_MS, organization_id="o1",
    )  # fmt: skip
    world = [PRESETS["grant-easy"], a_node(used=4), busy, a_fund(), a_job("big", gpus=8), a_job("tiny")]
    assert started(plan_of(*world, spare_job(hours=2))) == ["tiny", "s1"]
    plan = plan_of(*world, spare_job(hours=4))
    assert started(plan) == ["tiny"]
    assert plan.reservations[0].job_id == "big"
    assert plan.reasons["s1"].code is WaitReason.NO_IDLE_GPU


def test_booked_room_is_not_idle() -> None:
    booking = Booking("b", "o2", "h100", 8, 1, NOW_MS + HOUR_MS, NOW_MS + DAY_MS)
    world = [a_node(), a_fund(), booking]
    assert started(plan_of(*world, spare_job(hours=0.5), organizations=("o1", "o2"))) == ["s1"]
    assert started(plan_of(*world, spare_job(hours=2), organizations=("o1", "o2"))) == []


def test_what_runs_opportunistically_is_counted_against_promised_room() -> None:
    """Four of eight are booked: one opportunistic job beside them is enough."""
    booking = Booking("b", "o1", "h100", 4, 1, NOW_MS + HOUR_MS, NOW_MS + DAY_MS)
    world = [a_fund(), booking, *spare_attempt(on={"n1": 4})]
    assert started(plan_of(a_node(used=4), *world, spare_job(hours=2))) == []
    assert started(plan_of(a_node(used=4), *world, spare_job(hours=0.5))) == ["s1"]


def test_they_lie_where_others_come_last() -> None:
    half = a_node("n1", used=4)
    plan = plan_of(half, a_node("n2"), a_node("n3"), a_fund(), spare_job(), spare_job("s2"))
    assert nodes_of(plan, "s1") == nodes_of(plan, "s2") == ["n3"]


def test_a_gang_starts_whole_or_not_at_all() -> None:
    world = [a_node("n1", used=6), a_node("n2", used=6), a_fund()]
    assert sorted(nodes_of(plan_of(*world, spare_job(gpus=2, pods=2)), "s1")) == ["n1", "n2"]
    plan = plan_of(*world, spare_job(gpus=2, pods=3))
    assert plan.reasons["s1"].numbers == {"gpu_class": "h100", "needed": 6, "idle": 4}


# --- who pays -------------------------------------------------------------------------------------


def test_a_spent_fund_pays_for_no_start() -> None:
    reason = reason_of([a_node(), a_fund(hours=10, used=9), spare_job(hours=2)], "s1")
    assert reason == Reason(
        WaitReason.OPPORTUNISTIC_SPENT,
        {"program": "p1", "needed_gpu_us": 2 * GPU_HOUR, "left_gpu_us": GPU_HOUR},
    )


def test_each_start_counts_before_the_next() -> None:
    plan = plan_of(a_node(), a_fund(hours=3), *(spare_job(f"s{n}", hours=2) for n in (1, 2)))
    assert started(plan) == ["s1"]
    assert plan.reasons["s2"].code is WaitReason.OPPORTUNISTIC_SPENT


def test_a_fund_that_is_switched_off_lets_nothing_start() -> None:
    for world in ([a_fund(pays=False)], [a_fund(program="p2")], [a_fund(ends=NOW_MS)], []):
        reason = reason_of([a_node(), *world, spare_job()], "s1")
        assert reason == Reason(WaitReason.OPPORTUNISTIC_OFF, {"program": "p1"})


def test_the_fund_has_to_last_as_long_as_the_job() -> None:
    reason = reason_of([a_node(), a_fund(ends=NOW_MS + HOUR_MS + 1), spare_job(hours=2)], "s1")
    assert reason == Reason(
        WaitReason.GRANT_ENDS_FIRST,
        {"grant": "fund", "ends_at_ms": NOW_MS + HOUR_MS + 1, "walltime_ms": HOUR_MS},
    )


def test_a_fund_keeps_no_more_gpus_than_its_cap() -> None:
    world = [a_node(used=2), a_fund(max_gpus=3), *spare_attempt(on={"n1": 2})]
    plan = plan_of(*world, spare_job("s1"), spare_job("s2"))
    assert started(plan) == ["s1"]
    numbers = {"program": "p1", "cap": 3, "in_use": 3, "needed": 1}
    assert plan.reasons["s2"] == Reason(WaitReason.OPPORTUNISTIC_CAP, numbers)


def test_a_grants_money_is_not_asked_for_and_its_pace_does_not_move() -> None:
    poor = a_grant(hours=0)
    assert started(plan_of(a_node(), poor, a_fund(), spare_job())) == ["s1"]


def test_frozen_organizations_and_pauses_hold_them_back() -> None:
    frozen = reason_of([a_node(), a_fund(), an_organization(frozen=True), spare_job()], "s1")
    assert frozen.code is WaitReason.ORGANIZATION_FROZEN
    paused = reason_of([a_node(), a_fund(), Policy(placement_paused=True), spare_job()], "s1")
    assert paused.code is WaitReason.PLACEMENT_PAUSED
    unseen = reason_of([a_node(), a_fund(), a_cluster(seen_ms=NOW_MS - DAY_MS), spare_job()], "s1")
    assert unseen.code is WaitReason.CLUSTER_UNSEEN
    waits = replace(spare_job(), not_before_ms=NOW_MS + 1)
    assert reason_of([a_node(), a_fund(), waits], "s1").code is WaitReason.COOLDOWN


# --- turns ----------------------------------------------------------------------------------------


def test_who_used_least_of_late_goes_first() -> None:
    used = replace(an_organization("o1"), opportunistic_usage_gpu_us=5.0, opportunistic_as_of_ms=NOW_MS)
    world = [
        a_node(gpus=1),
        a_fund(),
        used,
        an_organization("o2"),
        spare_job("s1"),
        spare_job("s2", "o2", submitted=9),
    ]
    assert started(plan_of(*world, organizations=("o1", "o2"))) == ["s2"]


def test_what_an_organization_runs_counts_and_so_does_each_pick() -> None:
    world: list[Change] = [a_node(gpus=8, used=4), a_fund(), *spare_attempt(on={"n1": 4}, cost=1)]
    world += [spare_job(f"a{n}", "o1") for n in range(4)] + [
        spare_job(f"b{n}", "o2", submitted=9) for n in range(4)
    ]
    plan = plan_of(*world, organizations=("o1", "o2"))
    assert started(plan) == ["b0", "a0", "b1", "a1"]
    assert plan.order == ("b2", "b3", "a2", "a3")


# --- who leaves -----------------------------------------------------------------------------------


def test_a_start_waits_until_opportunistic_jobs_have_left_and_they_are_told() -> None:
    plan = plan_of(a_node(used=8), a_fund(), *spare_attempt(), a_job("j1", gpus=2))
    assert started(plan) == []
    (stop,) = plan.stops
    assert (stop.job_id, stop.attempt, stop.for_job) == ("r1", 1, "j1")
    assert stop.stop_at_ms == NOW_MS + MINUTE_MS
    assert plan.reasons["j1"] == Reason(WaitReason.MAKING_ROOM, {"gpu_class": "h100", "needed": 2})
    assert plan.order == ("j1",)


def test_what_does_not_run_yet_is_stopped_at_once() -> None:
    plan = plan_of(a_node(used=8), a_fund(), *spare_attempt(state=JobState.STARTING), a_job("j1"))
    assert [stop.stop_at_ms for stop in plan.stops] == [NOW_MS]


def test_nobody_is_stopped_twice_and_the_room_that_came_free_is_the_others() -> None:
    leaving = spare_attempt(
        state=JobState.STOPPING, stop=Stop("preempted", "j1"), ends_ms=NOW_MS + MINUTE_MS, on={"n1": 8}
    )
    world = [a_fund(), a_job("j1", gpus=8), spare_job("s1")]
    plan = plan_of(a_node(used=8), *leaving, *world)
    assert (started(plan), plan.stops) == ([], ())
    assert started(plan_of(a_node(used=0), *world)) == ["j1"]


def test_the_fewest_leave_and_of_equally_few_the_youngest() -> None:
    world: list[Change] = [a_node(used=8), a_fund(), a_job("j1", gpus=2)]
    for number, (gpus, age_ms) in enumerate(((4, 5), (2, 4), (1, 3), (1, 2))):
        world += spare_attempt(f"r{number}", on={"n1": gpus}, age_ms=age_ms * HOUR_MS)
    assert [stop.job_id for stop in plan_of(*world).stops] == ["r1"]


def test_nobody_leaves_while_other_room_would_do() -> None:
    """The start would have filled the fuller node; it goes where nobody is in its way."""
    world = [a_node("n1", used=8), a_node("n2"), a_fund(), *spare_attempt(on={"n1": 2}), a_job("j1", gpus=2)]
    plan = plan_of(*world)
    assert (nodes_of(plan, "j1"), plan.stops) == (["n2"], ())


def test_no_other_room_is_cleared_while_some_is_being_cleared() -> None:
    world: list[Change] = [a_node("n1", used=8), a_node("n2", used=8), a_fund(), a_job("j1", gpus=8)]
    world += spare_attempt("r1", on={"n1": 8})
    leaving = Stop("preempted", "j1")
    world += spare_attempt(
        "r2", on={"n2": 8}, state=JobState.STOPPING, stop=leaving, ends_ms=NOW_MS + MINUTE_MS
    )
    plan = plan_of(*world)
    assert (started(plan), plan.stops) == ([], ())
    assert plan.reasons["j1"].code is WaitReason.MAKING_ROOM


def test_they_go_before_anybody_is_preempted() -> None:
    """A gang far behind, a small job of one far ahead, and an opportunistic one in the same way."""
    small = Attempt(
        "small", 1, "g-o2", JobState.RUNNING, "c1", (PodPlacement("n1", "h100", 8),), 0, NOW_MS - DAY_MS,
        started_at_ms=NOW_MS - DAY_MS, ends_at_ms=NOW_MS + DAY_MS, organization_id="o2",
    )  # fmt: skip
    world: list[Change] = [PRESETS["gpuhub"], a_fund(), small]
    world += [a_grant("o1", lag_ms=5 * DAY_MS), a_grant("o2", lag_ms=-5 * DAY_MS)]
    world += [
        replace(a_job("small", "o2", 8, hours=48, state=JobState.RUNNING, attempt=1), restartable=True),
        a_job("gang", "o1", 8, 4),
    ]
    nodes = [a_node(f"n{n}", used=8 if n in (1, 2) else 0) for n in range(1, 6)]
    plan = plan_of(*nodes, *spare_attempt(on={"n2": 8}), *world, organizations=("o1", "o2"))
    assert [stop.job_id for stop in plan.stops] == ["r1"]


def test_one_that_is_lost_or_late_is_in_nobodys_plan() -> None:
    """Its GPUs come back nobody knows when: what needs them waits as for anybody else's."""
    lost = replace(_attempt(spare_attempt()), state=JobState.ENDED, ends_at_ms=None)
    late = spare_attempt(state=JobState.STOPPING, stop=Stop("preempted", "j1"), ends_ms=NOW_MS - DAY_MS)
    for attempt in (lost, _attempt(late)):
        plan = plan_of(a_node(used=8), a_fund(), attempt, a_job("j1", gpus=8))
        assert (started(plan), plan.stops) == ([], ())
        assert plan.reasons["j1"].code is WaitReason.NO_FREE_GPU


def test_one_that_leaves_late_is_believed_for_a_while_and_then_no_more() -> None:
    leaving = spare_attempt(state=JobState.STOPPING, stop=Stop("preempted", "j1"), ends_ms=NOW_MS)
    world = a_world(a_node(used=8), a_fund(), *leaving, a_job("j1", gpus=8), a_cluster(seen_ms=1 << 60))
    plan, state = decide(State(), world, NOW_MS + MINUTE_MS)
    assert plan.reasons["j1"].code is WaitReason.MAKING_ROOM
    plan, state = decide(state, (), NOW_MS + MINUTE_MS + 1)
    assert plan.reasons["j1"].code is WaitReason.NO_FREE_GPU
    gone: list[Change] = [a_node(), Tombstone(Kind.ATTEMPT, "r1-1"), Tombstone(Kind.JOB, "r1")]
    assert started(decide(state, gone, NOW_MS + 2 * MINUTE_MS)[0]) == ["j1"]


def test_a_reservation_does_not_wait_for_their_end() -> None:
    """Eight GPUs, four of them with one who is entitled, four with one who is not and has a day to go."""
    busy = Attempt(
        "busy", 1, "g-o1", JobState.RUNNING, "c1", (PodPlacement("n1", "h100", 4),), 0, NOW_MS - HOUR_MS,
        started_at_ms=NOW_MS - HOUR_MS, ends_at_ms=NOW_MS + 3 * HOUR_MS, organization_id="o1",
    )  # fmt: skip
    world = [PRESETS["grant-easy"], a_node(used=8), busy, a_fund(), a_job("big", gpus=8), a_job("tiny")]
    (reservation,) = plan_of(*world, *spare_attempt(on={"n1": 4})).reservations
    assert reservation.starts_at_ms == NOW_MS + 3 * HOUR_MS


def test_reasons_told_again_are_not_news() -> None:
    world = a_world(a_node(used=8), a_fund(), *spare_attempt(), a_job("j1"), spare_job("s1"))
    plan, state = decide(State(), world, NOW_MS)
    assert set(plan.changed_reasons) == {"j1", "s1"}
    again, state = decide(state, (), NOW_MS + 1)
    assert dict(again.reasons) == dict(plan.reasons)
    assert again.changed_reasons == {}
    cancelled = replace(a_job("j1"), cancel_requested=True)
    plan, state = decide(state, (cancelled,), NOW_MS + 2)
    assert "j1" not in plan.reasons
    assert plan.order == ("s1",)


def test_fewest_then_cheapest_then_youngest() -> None:
    def chosen(missing: int, *there: tuple[str, int, int, int, int]) -> list[str]:
        attempts = [
            (replace(_attempt(spare_attempt(id)), claimed_at_ms=claimed_ms), gpus, (lost, times))
            for id, gpus, claimed_ms, lost, times in there
        ]
        found = fewest_cheapest(attempts, missing)
        assert found == fewest_cheapest(attempts[::-1], missing)
        return [attempt.job_id for attempt in found]

    assert chosen(0, ("a", 1, 1, 0, 0)) == []
    # the fewest, however dear
    assert chosen(2, ("a", 2, 1, 99, 9), ("b", 1, 2, 0, 0), ("c", 1, 3, 0, 0)) == ["a"]
    # of two pairs that suffice the cheaper one, although its members are older
    assert chosen(3, ("a", 2, 1, 5, 0), ("b", 2, 2, 9, 0), ("c", 1, 3, 1, 0)) == ["c", "a"]
    assert chosen(4, ("a", 2, 1, 5, 0), ("b", 2, 2, 9, 0), ("c", 1, 3, 1, 0)) == ["b", "a"]
    # equal losses: who was stopped least often, then the youngest, then by id
    assert chosen(1, ("a", 1, 5, 3, 1), ("b", 1, 9, 3, 2)) == ["a"]
    assert chosen(1, ("a", 1, 5, 3, 1), ("b", 1, 9, 3, 1)) == ["b"]
    assert chosen(1, ("a", 1, 5, 3, 1), ("b", 1, 5, 3, 1)) == ["b"]
    assert chosen(9, ("a", 2, 1, 0, 0), ("b", 2, 2, 0, 0)) == ["b", "a"]


@pytest.mark.parametrize("seed", range(200))
def test_nobody_cheaper_would_do(seed: int) -> None:
    """Against all subsets of up to seven attempts."""
    rng = Random(seed)
    there = [
        (
            replace(_attempt(spare_attempt(f"r{n}")), claimed_at_ms=rng.randrange(3)),
            rng.randint(1, 4),
            (rng.randrange(4), rng.randrange(2)),
        )
        for n in range(rng.randint(1, 7))
    ]
    missing = rng.randint(1, 8)
    enough = [
        some
        for count in range(len(there) + 1)
        for some in combinations(there, count)
        if sum(gpus for _, gpus, _ in some) >= missing
    ]
    found = fewest_cheapest(there, missing)
    if not enough:
        assert {each.id for each in found} == {each.id for each, _, _ in there}
        return

    def cost(some: Iterable[tuple[Attempt, int, tuple[int, int]]]) -> tuple[int, int, int]:
        some = list(some)
        return len(some), sum(loss[0] for _, _, loss in some), sum(loss[1] for _, _, loss in some)

    chosen = [each for each in there if each[0].id in {one.id for one in found}]
    assert cost(chosen) == min(map(cost, enough))


def test_what_a_stop_loses() -> None:
    policy, hour = PRESETS["gpuhub"], HOUR_MS
    notice, restart = policy.opportunistic_notice_ms, 10 * MINUTE_MS
    job, attempt = spare_attempt(on={"n1": 2, "n2": 2}, age_ms=5 * hour // 2)
    assert isinstance(job, Job)
    assert isinstance(attempt, Attempt)
    # comes again: half an hour and the notice since its last checkpoint, and the restart, on four GPUs
    assert loss_of(replace(job, restartable=True), attempt, policy, NOW_MS) == (
        (hour // 2 + notice + restart) * 4,
        0,
    )
    assert loss_of(job, attempt, policy, NOW_MS) == ((5 * hour // 2 + notice) * 4, 0)
    assert loss_of(job, replace(attempt, started_at_ms=None), policy, NOW_MS) == (0, 0)
    assert loss_of(job, replace(attempt, ends_at_ms=NOW_MS + notice), policy, NOW_MS) == (0, 0)
    often = replace(job, preempted_at_ms=(NOW_MS - DAY_MS, NOW_MS - DAY_MS + 1, NOW_MS - hour))
    assert loss_of(often, attempt, policy, NOW_MS)[1] == 2


def test_of_equally_few_those_leave_that_lose_least() -> None:
    """Two that come again and saved what they did up to a minute or to half an hour ago; one that would lose all."""
    world: list[Change] = [a_node(used=8), a_fund(), a_job("j1", gpus=2)]
    for name, age_ms, again in (("r0", 61, True), ("r1", 90, True), ("r2", 12, False), ("r3", 10, False)):
        job, attempt = spare_attempt(name, on={"n1": 2}, age_ms=age_ms * MINUTE_MS)
        assert isinstance(job, Job)
        world += [replace(job, restartable=again), attempt]
    # r0 loses 2 minutes and its restart, r3 eleven minutes
    assert [stop.job_id for stop in plan_of(*world).stops] == ["r3"]
    world[-1] = replace(_attempt(world[-2:]), started_at_ms=NOW_MS - 20 * MINUTE_MS)
    assert [stop.job_id for stop in plan_of(*world).stops] == ["r0"]


def test_one_whose_stop_a_gangs_made_needless_stays() -> None:
    """Six of eight are wanted on each of two nodes: on the first the single one would do, on the second only a gang."""
    world: list[Change] = [a_node("n1", used=4), a_node("n2", used=4), a_fund(), a_job("j1", gpus=6, pods=2)]
    world += spare_attempt("single", on={"n1": 2}, age_ms=HOUR_MS)
    world += spare_attempt("gang", on={"n1": 2, "n2": 4}, age_ms=2 * HOUR_MS)
    assert [stop.job_id for stop in plan_of(*world).stops] == ["gang"]


# --- how the pods of a gang lie -------------------------------------------------------------------


def laid(topology: Topology, pods: int, *nodes: Change, gpus: int = 2) -> list[str]:
    """The node of each pod of an opportunistic gang."""
    gang = replace(spare_job(gpus=gpus, pods=pods), topology=topology)
    return sorted(nodes_of(plan_of(*nodes, a_fund(), gang), "s1"))


def test_a_gang_lies_on_one_node_if_it_prefers_that_and_may_else_be_scattered() -> None:
    # the emptiest first: without a wish n2 takes the first pods
    halves = [a_node("n1", used=4), a_node("n2", used=2), a_node("n3", used=4)]
    assert laid(Topology.ANY, 4, *halves) == ["n2", "n2", "n2", "n3"]
    assert laid(Topology.PREFER_SAME_NODE, 3, *halves) == ["n2", "n2", "n2"]
    whole = [*halves, a_node("n0")]
    assert laid(Topology.PREFER_SAME_NODE, 4, *whole) == ["n0"] * 4
    assert laid(Topology.PREFER_SAME_NODE, 4, *halves) == ["n2", "n2", "n2", "n3"], "nowhere else"


def test_a_gang_lies_in_one_rack_if_it_prefers_that() -> None:
    nodes = [
        replace(a_node("n1", used=4), rack="r1"),
        replace(a_node("n2", used=5), rack="r1"),
        replace(a_node("n3", used=3), rack="r2"),
    ]
    assert laid(Topology.ANY, 3, *nodes) == ["n1", "n3", "n3"]
    for topology in (Topology.PREFER_SAME_RACK, Topology.PREFER_SAME_NODE):
        assert laid(topology, 3, *nodes) == ["n1", "n1", "n2"]
    assert laid(Topology.PREFER_SAME_RACK, 4, *nodes) == ["n1", "n1", "n3", "n3"], "no rack has so much"


def test_a_gang_that_is_spread_lies_on_distinct_nodes_where_there_are_enough() -> None:
    nodes = [a_node(f"n{n}") for n in range(3)]
    assert laid(Topology.ANY, 3, *nodes) == ["n2", "n2", "n2"]
    assert laid(Topology.SPREAD, 3, *nodes) == ["n0", "n1", "n2"]
    assert laid(Topology.SPREAD, 4, *nodes) == ["n0", "n1", "n2", "n2"]
    full = [a_node("n0", used=6), a_node("n1"), a_node("n2", used=8)]
    assert laid(Topology.SPREAD, 4, *full) == ["n0", "n1", "n1", "n1"]


def test_what_two_gangs_prefer_is_given_once() -> None:
    nodes = [a_node("n1"), a_node("n2", used=4), a_node("n3", used=4)]
    gangs = [
        replace(spare_job(id, gpus=4, pods=2, submitted=n), topology=Topology.PREFER_SAME_NODE)
        for n, id in enumerate(("s1", "s2"))
    ]
    plan = plan_of(*nodes, a_fund(), *gangs)
    assert nodes_of(plan, "s1") == ["n1", "n1"]
    assert sorted(nodes_of(plan, "s2")) == ["n2", "n3"]


def _attempt(changes: list[Change]) -> Attempt:
    attempt = changes[1]
    assert isinstance(attempt, Attempt)
    return attempt
