"""The checkers of bookings find what is planted."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest

from scheduler.core.cycle import decide
from scheduler.core.model import (
    BookedRoom,
    Booking,
    Change,
    Job,
    Kind,
    Node,
    Plan,
    PodPlacement,
    Reason,
    Reservation,
    Start,
    WaitReason,
)
from scheduler.core.policy import MINUTE_MS, Policy
from scheduler.core.state import State
from tests.property.core.core_bookings import BookedHub, booking_faults, change
from tests.unit.core.core_world import (
    HOUR_MS,
    NOW_MS,
    a_class,
    a_cluster,
    a_grant,
    a_job,
    a_node,
    an_organization,
)

CLASS = Booking("class", "o1", "h100", 4, 2, NOW_MS + 2 * HOUR_MS, NOW_MS + 5 * HOUR_MS)


def a_hub(booking: Booking, *changes: Change) -> BookedHub:
    hub = BookedHub(Random(0), Policy(), now_ms=NOW_MS)
    for each in (hub.policy, a_class(), a_cluster(), a_node("n1"), a_node("n2"), booking, *changes):
        hub.put(each)
    for id in ("o1", "o2"):
        hub.put(an_organization(id))
        hub.put(a_grant(id))
    return hub


def decided(hub: BookedHub) -> Plan:
    return decide(State(), hub.snapshot(), hub.now_ms)[0]


def coming() -> tuple[BookedHub, Plan]:
    """The class begins in two hours on n1; `short` may run until then, `long` only beside it, `huge` nowhere."""
    hub = a_hub(
        CLASS,
        a_job("short", "o2", gpus=8, hours=1),
        a_job("long", "o2", gpus=8, hours=8),
        a_job("huge", "o2", gpus=8, pods=2, hours=8),
    )
    return hub, decided(hub)


def open_now() -> tuple[BookedHub, Plan]:
    """The class began: `seat` is in its room, `other` beside it, `late` waits."""
    hub = a_hub(
        change(CLASS, from_ms=NOW_MS, until_ms=NOW_MS + 3 * HOUR_MS),
        a_job("seat", "o1", gpus=4, hours=1),
        a_job("other", "o2", gpus=8, hours=1),
        a_job("late", "o2", gpus=4, hours=1, submitted=NOW_MS),
    )
    return hub, decided(hub)


def unused() -> tuple[BookedHub, Plan]:
    """The class began 20 minutes ago, and nobody came."""
    hub = a_hub(change(CLASS, from_ms=NOW_MS - 20 * MINUTE_MS))
    return hub, decided(hub)


@pytest.mark.parametrize("scene", [coming, open_now, unused])
def test_the_plans_are_good_as_they_are(scene: Callable[[], tuple[BookedHub, Plan]]) -> None:
    assert booking_faults(*scene(), plain=True) == []


def test_the_scenes_are_what_they_say() -> None:
    _, plan = coming()
    assert {start.job_id for start in plan.starts} == {"short", "long"}
    assert plan.reasons["huge"].code is WaitReason.NO_FREE_GPU
    _, plan = open_now()
    assert {start.job_id for start in plan.starts} == {"seat", "other"}
    assert plan.reasons["late"].code is WaitReason.BEHIND_IN_ORDER  # beside the booking nothing is left
    assert unused()[1].booked == (BookedRoom("class", "", {}, released=True),)


def said(hub: BookedHub, plan: Plan) -> str:
    return "; ".join(booking_faults(hub, plan, plain=True))


def room_of(plan: Plan) -> BookedRoom:
    (room,) = plan.booked
    return room


def moved(start: Start, node: str) -> Start:
    return replace(start, pods=tuple(PodPlacement(node, pod.gpu_class, pod.count) for pod in start.pods))


def test_a_job_that_runs_into_the_class_is_found() -> None:
    hub, plan = coming()
    other = {"n1": "n2", "n2": "n1"}
    planted = replace(plan, starts=tuple(moved(each, other[each.pods[0].node]) for each in plan.starts))
    assert "long is in booked room" in said(hub, planted)


def test_a_job_that_ends_in_the_last_quarter_of_an_hour_before_is_found() -> None:
    hub, plan = coming()
    short = hub.world[Kind.JOB, "short"]
    assert isinstance(short, Job)
    hub.put(replace(short, walltime_ms=2 * HOUR_MS - 15 * MINUTE_MS))
    assert "short is in booked room" not in said(hub, plan)
    hub.put(replace(short, walltime_ms=2 * HOUR_MS - 15 * MINUTE_MS + 1))
    assert "short is in booked room" in said(hub, plan)


def test_another_organization_in_the_room_is_found() -> None:
    hub, plan = open_now()
    (node,) = room_of(plan).gpus_by_node
    pods = (PodPlacement(node, "h100", 4),)
    late = Start("late", 1, "g-o2", ("a-g-o2",), "c1", pods, 4 * HOUR_MS * 1000)
    planted = replace(plan, starts=(*plan.starts, late), reasons={}, order=())
    assert "late is in booked room" in said(hub, planted)


def test_an_own_job_left_out_is_found() -> None:
    hub, plan = open_now()
    starts = tuple(each for each in plan.starts if each.job_id != "seat")
    planted = replace(
        plan,
        starts=starts,
        order=("seat", *plan.order),
        reasons={**plan.reasons, "seat": plan.reasons["late"]},
    )
    assert "seat waits beside its booked room" in said(hub, planted)


def test_a_job_kept_out_for_nothing_is_found() -> None:
    hub, plan = coming()
    starts = tuple(each for each in plan.starts if each.job_id != "short")
    booked = Reason(WaitReason.BOOKED, {})
    planted = replace(
        plan, starts=starts, order=("short", *plan.order), reasons={**plan.reasons, "short": booked}
    )
    assert "short would be in no booking's way" in said(hub, planted)
    none = Reason(WaitReason.NO_FREE_GPU, {})
    assert "short waits beside room" in said(hub, replace(planted, reasons={**plan.reasons, "short": none}))
    far = {**plan.reasons, "huge": booked}
    assert "huge would not fit without bookings" in said(hub, replace(plan, reasons=far))


@pytest.mark.parametrize(
    ("room", "fault"),
    [
        (BookedRoom("class", "c1", {"n1": 4}), "not whole"),
        (BookedRoom("class", "c1", {"n1": 8, "n2": 4}), "too large"),
        (BookedRoom("class", "c1", {"n1": 6, "n2": 2}), "pods do not fit"),
        (BookedRoom("class", "c1", {"n1": 8}, released=True), "released and kept"),
        (BookedRoom("class", "c1", {}, released=True), "released:"),
    ],
)
def test_a_wrong_room_is_found(room: BookedRoom, fault: str) -> None:
    hub, plan = coming()
    assert fault in said(hub, replace(plan, booked=(room,)))


def test_no_room_and_two_rooms_are_found() -> None:
    hub, plan = coming()
    assert "no room for class" in said(hub, replace(plan, booked=()))
    assert "2 rooms for class" in said(hub, replace(plan, booked=(*plan.booked, *plan.booked)))


def test_a_room_in_another_cluster_than_asked_is_found() -> None:
    hub, plan = coming()
    hub.put(change(CLASS, cluster="c2"))
    assert "in another cluster" in said(hub, plan)


def test_a_room_on_a_lost_node_and_one_that_will_not_be_there_are_found() -> None:
    hub, plan = coming()
    (node,) = room_of(plan).gpus_by_node
    there = hub.world[Kind.NODE, f"c1/{node}"]
    assert isinstance(there, Node)
    hub.put(replace(there, schedulable=False))
    assert "on a lost node" in said(hub, plan)
    hub.put(a_node(node, foreign=1))
    assert "not there at" in said(hub, replace(plan, starts=()))


def test_a_room_lost_for_no_reason_is_found() -> None:
    hub, plan = coming()
    hub.carry_out(replace(plan, starts=()))
    short = replace(room_of(plan), short_gpus=4)
    assert "lost:" in said(hub, replace(plan, booked=(short,)))
    hub.disturbed = True
    assert "lost:" not in said(hub, replace(plan, booked=(short,)))


def test_room_that_is_not_released_and_room_forgotten_to_be_used_are_found() -> None:
    hub, plan = unused()
    kept = BookedRoom("class", "c1", {"n1": 8})
    assert "not released" in said(hub, replace(plan, booked=(kept,)))
    assert "released" not in said(hub, replace(plan, booked=(replace(kept, used=True),)))
    hub.booked = (replace(kept, used=True),)
    assert "forgot that it was used" in said(hub, replace(plan, booked=(kept,)))
    assert "released:" in said(hub, plan)


def test_a_reservation_in_booked_room_is_found() -> None:
    hub, plan = coming()
    (node,) = room_of(plan).gpus_by_node
    seat = Reservation("huge", "c1", "h100", NOW_MS + HOUR_MS, {node: 8}, NOW_MS, 0)
    assert "reserved in booked room" in said(hub, replace(plan, reservations=(seat,)))
