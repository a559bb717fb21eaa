"""Bookings in a look ahead: their room is kept, given to whom it is for, and anybody's when nobody came."""

from __future__ import annotations

from scheduler.ahead.forecast import Method, forecast
from scheduler.core.model import BookedRoom, BookedRooms, Booking, Organization
from tests.unit.ahead.test_ahead_live import HOUR_MS, NOW_MS, a_grant, a_hub, a_job, ahead, start_h


def a_booking(from_h: float = 1, until_h: float = 4, hold: bool = True, organization: str = "o2") -> Booking:
    from_ms, until_ms = NOW_MS + int(from_h * HOUR_MS), NOW_MS + int(until_h * HOUR_MS)
    return Booking("b1", organization, "h100", 4, 1, from_ms, until_ms, hold=hold)


def test_a_job_waits_for_the_end_of_a_booking_and_no_longer() -> None:
    assert start_h(ahead(a_hub(a_job()))) == 0
    assert start_h(ahead(a_hub(a_job(), a_booking()))) == 4


def test_room_that_nobody_comes_for_is_anybodys_a_quarter_of_an_hour_later() -> None:
    assert start_h(ahead(a_hub(a_job(), a_booking(hold=False)))) == 1.25


def test_its_own_jobs_start_when_it_begins() -> None:
    own = ahead(a_hub(a_job(hours=3), a_booking(organization="o1")))
    assert start_h(own) == 1


def test_room_that_was_used_by_now_is_still_kept() -> None:
    objects = a_hub(a_job(), a_booking(-1, hold=False), Organization("o2"), a_grant("g2", organization="o2"))
    assert start_h(ahead(objects)) == 0, "nobody came"
    used = BookedRooms((BookedRoom("b1", "c1", {"n1": 4}, used=True),))
    assert start_h(ahead([*objects, used])) == 4


def test_a_job_that_a_booking_keeps_out_has_an_eta() -> None:
    found = forecast(a_hub(a_job(), a_booking()), NOW_MS, (), Method())
    assert found.etas["j1"].median_ms == NOW_MS + 4 * HOUR_MS
