"""By when there is room, beside what is promised to others; worked out by hand."""

from __future__ import annotations

from dataclasses import replace

from scheduler.core.model import Attempt, Booking, Change, JobState, PodPlacement, WaitReason
from scheduler.core.policy import PRESETS
from tests.unit.core.core_world import DAY_MS, HOUR_MS, NOW_MS, a_job, a_node, plan_of

NO_FREE_GPU = WaitReason.NO_FREE_GPU
RESERVING = replace(PRESETS["grant-easy"], reservation_gpus=6)
TINY: list[Change] = [a_node("n3", gpus=1), a_job("tiny")]
"""Where nothing could start there is nothing to reserve."""
BIG = a_job("big", gpus=8, hours=5, submitted=NOW_MS - 2 * HOUR_MS)


def a_busy(node: str, hours: float, gpus: int = 8) -> Attempt:
    """It ends in so many hours at the latest."""
    return Attempt(
        f"busy-{node}", 1, "g-o1", JobState.RUNNING, "c1", (PodPlacement(node, "h100", gpus),), 0,
        NOW_MS - HOUR_MS, started_at_ms=NOW_MS - HOUR_MS, ends_at_ms=NOW_MS + int(hours * HOUR_MS),
        organization_id="o1",
    )  # fmt: skip


def told(*changes: Change, job: str = "j1") -> tuple[float, object] | None:
    """In how many hours there is room for it, and whose end makes it."""
    reason = plan_of(*changes, organizations=("o1", "o2")).reasons[job]
    assert reason.code is NO_FREE_GPU
    at_ms = reason.numbers.get("room_at_ms")
    if at_ms is None:
        return None
    return (int(at_ms) - NOW_MS) / HOUR_MS, reason.numbers.get("ending_job")


def two_nodes() -> list[Change]:
    return [a_node("n1", used=8), a_node("n2", used=8), a_busy("n1", 1), a_busy("n2", 5)]


def test_with_nothing_promised_the_first_end_that_leaves_enough_counts() -> None:
    assert told(*two_nodes(), a_job(gpus=4, hours=2)) == (1, "busy-n1")


def test_a_booking_that_begins_within_its_walltime_is_in_the_way() -> None:
    booking = Booking("b", "o2", "h100", 8, 1, NOW_MS + 2 * HOUR_MS, NOW_MS + DAY_MS)
    short, long = a_job("j1", gpus=4, hours=0.5), a_job("j2", gpus=4, hours=2)
    changes = [*two_nodes(), booking, short, long]
    assert told(*changes) == (1, "busy-n1"), "it is over before"
    # the booking lies on n1, which is free first
    assert told(*changes, job="j2") == (5, "busy-n2")


def test_where_only_a_bookings_end_makes_room_nobodys_end_is_told() -> None:
    booking = Booking("b", "o2", "h100", 8, 1, NOW_MS + 2 * HOUR_MS, NOW_MS + 4 * HOUR_MS)
    assert told(a_node("n1", used=8), a_busy("n1", 1), booking, a_job(gpus=4, hours=2)) == (4, None)


def test_a_reservation_is_in_the_way_until_it_ends() -> None:
    """`big` gets n1 in an hour and keeps it for five; n2 is free in five."""
    world: list[Change] = [*two_nodes(), RESERVING, *TINY, BIG, a_job(gpus=4, hours=2)]
    assert [each.job_id for each in plan_of(*world).reservations] == ["big"]
    assert told(*world) == (5, "busy-n2")


def test_a_gang_takes_what_is_left_beside_a_reservation() -> None:
    """Of n1's eight six are promised from the first hour on: a pod of two fits there, the other one on n2."""
    world: list[Change] = [*two_nodes(), RESERVING, *TINY, replace(BIG, gpus_per_pod=6)]
    assert told(*world, a_job(gpus=2, pods=2, hours=2)) == (5, "busy-n2")
    assert told(*world, a_job(gpus=2, pods=1, hours=2)) == (1, "busy-n1")


def test_the_end_of_one_that_is_late_stays_told() -> None:
    booking = Booking("b", "o2", "h100", 8, 1, NOW_MS + 20 * HOUR_MS, NOW_MS + 40 * HOUR_MS)
    late = [a_node("n1", used=8), a_busy("n1", -0.5)]
    assert told(*late, booking, a_job(gpus=4, hours=2)) == (-0.5, "busy-n1")
