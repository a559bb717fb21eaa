"""Booked room, scene by scene."""

from collections.abc import Mapping
from dataclasses import replace

from scheduler.core.cycle import decide
from scheduler.core.model import (
    Attempt,
    BookedRoom,
    BookedRooms,
    Booking,
    Change,
    Job,
    JobState,
    Kind,
    PodPlacement,
    Policy,
    Tombstone,
    WaitReason,
)
from scheduler.core.policy import MINUTE_MS, Lane, Preemption
from scheduler.core.state import State
from tests.unit.core.core_world import (
    DAY_MS,
    HOUR_MS,
    NOW_MS,
    a_grant,
    a_job,
    a_node,
    a_world,
    nodes_of,
    plan_of,
    started,
)

BOTH = ("o1", "o2")


def a_booking(
    from_h: float = 2, until_h: float = 5, gpus: int = 8, pods: int = 1, id: str = "class", **more: object
) -> Booking:
    booking = Booking(
        id, "o1", "h100", gpus, pods, NOW_MS + int(from_h * HOUR_MS), NOW_MS + int(until_h * HOUR_MS)
    )
    return replace(booking, **more)  # type: ignore[arg-type]


def running(
    job: str, on: Mapping[str, int], ends_h: float, organization: str = "o2", began_h: float = -1
) -> list[Change]:
    """A restartable job on these nodes."""
    began_ms, ends_ms = NOW_MS + int(began_h * HOUR_MS), NOW_MS + int(ends_h * HOUR_MS)
    pods = tuple(PodPlacement(node, "h100", gpus) for node, gpus in on.items())
    size = sum(on.values())
    its_job = replace(a_job(job, organization, size, hours=24, state=JobState.RUNNING), restartable=True)
    attempt = Attempt(
        job, 1, f"g-{organization}", JobState.RUNNING, "c1", pods, 0, began_ms,
        started_at_ms=began_ms, ends_at_ms=ends_ms, walltime_ms=ends_ms - began_ms,
    )  # fmt: skip
    return [its_job, attempt]


def test_a_job_passes_if_it_ends_a_quarter_of_an_hour_before() -> None:
    world = [a_node(), a_booking()]
    assert (
        started(plan_of(*world, a_job("j", "o2", hours=1.75), organizations=BOTH)) == []
    )  # rounded up to 2 h
    lead = Policy(booking_lead_ms=0)
    assert started(plan_of(*world, lead, a_job("j", "o2", hours=1.75), organizations=BOTH)) == ["j"]
    assert started(plan_of(*world, a_job("j", "o2", hours=1), organizations=BOTH)) == ["j"]


def test_who_is_kept_out_hears_of_the_first_booking_and_not_whose_it_is() -> None:
    plan = plan_of(a_node(), a_booking(gpus=4, pods=2), a_job("j", "o2", hours=3), organizations=BOTH)
    assert plan.reasons["j"].code is WaitReason.BOOKED
    assert plan.reasons["j"].numbers == {"gpu_class": "h100", "from_ms": NOW_MS + 2 * HOUR_MS, "gpus": 8}


def test_the_lane_does_not_pass_a_booking() -> None:
    job = a_job("j", "o2", hours=4)
    assert started(plan_of(a_node(), Policy(lane=Lane()), job, organizations=BOTH)) == ["j"]
    assert started(plan_of(a_node(), Policy(lane=Lane()), a_booking(), job, organizations=BOTH)) == []


def test_a_job_goes_beside_the_booked_node() -> None:
    plan = plan_of(
        a_node("n1"), a_node("n2"), a_booking(), a_job("j", "o2", gpus=8, hours=8), organizations=BOTH
    )
    (room,) = plan.booked
    (node,) = nodes_of(plan, "j")
    assert {node, *room.gpus_by_node} == {"n1", "n2"}


def test_before_its_time_its_own_jobs_are_kept_out_like_all() -> None:
    plan = plan_of(a_node(), a_booking(), a_job("j", "o1", hours=4))
    assert plan.reasons["j"].code is WaitReason.BOOKED


def test_in_its_time_its_own_jobs_start_in_it_and_others_do_not() -> None:
    jobs = [a_job(f"j{n}", "o1", gpus=4, hours=2, submitted=NOW_MS) for n in range(3)]
    plan = plan_of(a_node(), a_booking(0, 3), *jobs, a_job("other", "o2"), organizations=BOTH)
    assert started(plan) == ["j0", "j1"]
    assert plan.reasons["other"].code is not WaitReason.BOOKED  # nothing is free now, booked or not


def test_a_job_may_outlast_it_by_five_minutes() -> None:
    def starts(late_min: int, *more: Change) -> list[str]:
        job = replace(a_job("j", "o1", gpus=8), walltime_ms=3 * HOUR_MS)
        return started(plan_of(a_node(), a_booking(-late_min / 60, 3 - late_min / 60), job, *more))

    assert starts(5) == ["j"]
    assert starts(6) == []
    next_one = replace(a_booking(2.95, 6, id="next"), organization_id="o2")
    assert starts(3, next_one) == []  # the next class needs the room then
    assert starts(3, replace(next_one, from_ms=NOW_MS + 3 * HOUR_MS)) == ["j"]


def test_only_jobs_on_the_grant_that_it_names_use_it() -> None:
    grants = [a_grant("o1"), a_grant("o1", "edu")]
    jobs = [a_job("mine", "o1", gpus=4, grant="edu"), a_job("other", "o1", gpus=4, grant="g-o1")]
    plan = plan_of(a_node(), a_booking(0, 3, grant_id="edu"), *grants, *jobs)
    assert started(plan) == ["mine"]


def test_unused_room_is_released_after_a_quarter_of_an_hour_unless_held() -> None:
    job = a_job("j", "o2", gpus=8, hours=8)

    def at(minutes: int, **more: object) -> list[str]:
        booking = a_booking(-minutes / 60, 3, **more)
        return started(plan_of(a_node(), booking, job, organizations=BOTH))

    assert at(14) == []
    assert at(15) == ["j"]
    assert at(15, hold=True) == []


def test_room_that_was_used_stays_and_room_that_was_released_does_not_come_back() -> None:
    job, booking = a_job("j", "o2", gpus=8, hours=8), a_booking(-1, 3)
    used = BookedRooms((BookedRoom("class", "c1", {"n1": 8}, used=True),))
    assert started(plan_of(a_node(), booking, used, job, organizations=BOTH)) == []
    gone = BookedRooms((BookedRoom("class", "c1", {}, released=True),))
    plan = plan_of(
        a_node(), replace(booking, hold=True), gone, a_job("late", "o1", gpus=4), organizations=BOTH
    )
    assert plan.booked == gone.kept
    assert started(plan) == ["late"]  # like everybody else


def test_what_its_own_jobs_have_is_seen_as_used_and_comes_back_to_it() -> None:
    world = [a_node(used=4), a_booking(-0.1, 3), *running("seat", {"n1": 4}, 1, "o1", began_h=-0.1)]
    before = BookedRooms((BookedRoom("class", "c1", {"n1": 8}),))
    plan = plan_of(
        *world, before, a_job("other", "o2", gpus=4), a_job("mine", "o1", gpus=4), organizations=BOTH
    )
    assert plan.booked == (BookedRoom("class", "c1", {"n1": 8}, used=True),)
    assert started(plan) == ["mine"]


def test_a_booking_keeps_its_nodes_and_moves_when_one_is_lost() -> None:
    world = a_world(a_node("n1"), a_node("n2"), a_node("n3"), a_booking(gpus=8, pods=2))
    plan, state = decide(State(), world, NOW_MS)
    assert plan.booked == (BookedRoom("class", "c1", {"n1": 8, "n2": 8}),)
    plan, state = decide(state, [a_node("n0")], NOW_MS)
    assert plan.booked == (BookedRoom("class", "c1", {"n1": 8, "n2": 8}),)
    plan, state = decide(state, [a_node("n1", schedulable=False)], NOW_MS)
    assert plan.booked == (BookedRoom("class", "c1", {"n2": 8, "n0": 8}),)
    plan, _ = decide(state, [Tombstone(Kind.NODE, "c1/n0"), Tombstone(Kind.NODE, "c1/n3")], NOW_MS)
    assert plan.booked == (BookedRoom("class", "c1", {"n2": 8}, short_gpus=8),)


def test_it_is_where_nothing_runs_into_it_else_where_that_ends_first() -> None:
    busy = [a_node("n1", used=8), *running("long", {"n1": 8}, 9)]
    plan = plan_of(*busy, a_node("n2"), a_booking(), organizations=BOTH)
    assert plan.booked == (BookedRoom("class", "c1", {"n2": 8}),)
    both = [*busy, a_node("n2", used=8), *running("longer", {"n2": 8}, 10)]
    plan = plan_of(*both, a_booking(), organizations=BOTH)
    assert plan.booked == (BookedRoom("class", "c1", {"n1": 8}, short_gpus=8),)


def test_the_cluster_that_it_names_or_the_first_that_has_it_whole() -> None:
    nodes = [a_node("n1", gpus=4), a_node("n2", cluster="c2")]
    assert plan_of(*nodes, a_booking()).booked[0].cluster == "c2"
    asked = plan_of(*nodes, a_booking(gpus=4, pods=2, cluster="c1")).booked
    assert asked == (BookedRoom("class", "c1", {"n1": 4}, short_gpus=4),)


def test_nobody_is_stopped_for_a_gang_that_would_then_be_in_booked_room() -> None:
    rule = Policy(lag_bound_share=1.0, preemption=Preemption(gang_gpus=8))
    world: list[Change] = [
        rule, a_node("n1", used=8), *running("small", {"n1": 8}, 20, began_h=-2),
        a_grant("o3", lag_ms=3 * DAY_MS), a_job("gang", "o3", gpus=8, hours=4),
    ]  # fmt: skip
    organizations = ("o1", "o2", "o3")
    assert [stop.job_id for stop in plan_of(*world, organizations=organizations).stops] == ["small"]
    short = replace(a_booking(), hold=True)
    assert plan_of(*world, short, organizations=organizations).stops == ()


def test_a_reservation_goes_around_a_booking() -> None:
    policy = Policy(reservations=2)
    small = [a_node("n2", gpus=1), a_job("small", "o2")]  # while nothing at all fits, nothing is reserved
    busy = [policy, a_node("n1", used=8), *running("r", {"n1": 8}, 1), *small]
    big = a_job("big", "o2", gpus=8, hours=2)
    assert plan_of(*busy, big, organizations=BOTH).reservations[0].starts_at_ms == NOW_MS + HOUR_MS
    plan = plan_of(*busy, big, a_booking(), organizations=BOTH)
    assert plan.reservations[0].starts_at_ms == NOW_MS + 5 * HOUR_MS
    assert plan.reasons["big"].code is WaitReason.RESERVED


def test_one_class_after_the_other_blocks_no_more_than_the_larger() -> None:
    """The quarter of an hour before the second lies in the first: what is kept is not both."""
    first, second = a_booking(-1, 1, gpus=4, hold=True), a_booking(1, 3, gpus=4, id="next", hold=True)
    plan = plan_of(a_node(), first, second, a_job("j", "o2", gpus=4, hours=2), organizations=BOTH)
    assert started(plan) == ["j"]
    assert [dict(room.gpus_by_node) for room in plan.booked] == [{"n1": 4}, {"n1": 4}]


def test_a_long_job_sees_a_booking_that_is_far_away() -> None:
    far = a_booking(40 * 24, 40 * 24 + 3)
    assert plan_of(a_node(), far, organizations=BOTH).booked == ()
    term = a_grant("o2", ends=NOW_MS + 200 * DAY_MS)
    job = a_job("j", "o2", hours=41 * 24)
    plan = plan_of(a_node(), far, term, job, organizations=BOTH)
    assert plan.reasons["j"].code is WaitReason.BOOKED
    assert len(plan.booked) == 1


def test_a_cancelled_booking_and_one_that_is_over_keep_nothing() -> None:
    job = a_job("j", "o2", gpus=8, hours=8)
    plan, state = decide(State(), a_world(a_node(), a_booking(), job, organizations=BOTH), NOW_MS)
    assert started(plan) == []
    plan, state = decide(state, [Tombstone(Kind.BOOKING, "class")], NOW_MS)
    assert (started(plan), plan.booked) == (["j"], ())
    plan, _ = decide(state, [a_booking(-3, 0)], NOW_MS)
    assert (started(plan), plan.booked) == (["j"], ())


def test_the_shortest_of_equal_shapes_may_use_what_is_left_of_its_time() -> None:
    """Three hours and two and three quarters are one shape; only the second ends in time."""
    long = replace(a_job("long", "o1", gpus=4, submitted=NOW_MS - 2), walltime_ms=3 * HOUR_MS)
    fits: Job = replace(a_job("fits", "o1", gpus=4, submitted=NOW_MS - 1), walltime_ms=165 * MINUTE_MS)
    plan = plan_of(a_node(), a_booking(-0.2, 2.8, hold=True), long, fits)
    assert started(plan) == ["fits"]
