"""When a timetable is, and what is free to book."""

from __future__ import annotations

from datetime import date

import pytest
from pydantic import ValidationError

from quota.bookings.rules import Span, Wish, pods_free, spans_of
from quota.clock import HOUR_MS, instant_ms
from quota.schemas.bookings import NewBooking, Timetable, Weekday

DAY = {
    "organization_id": "alpha",
    "name": "a",
    "gpu_class": "h100",
    "gpus_per_pod": 1,
    "pods": 1,
    "reason": "r",
}
WEEKLY = {
    "weekdays": ["tue", "thu"],
    "begins": "10:00",
    "ends": "13:00",
    "first_day": "2027-03-01",
    "last_day": "2027-03-11",
}


def a_wish(
    id: str = "", size: int = 1, pods: int = 1, at: tuple[int, int] = (0, 1), cluster: str | None = None
) -> Wish:
    return Wish(id, Span(at[0] * HOUR_MS, at[1] * HOUR_MS), size, pods, cluster)


def test_a_timetable_is_in_seouls_time_and_leaves_holidays_out() -> None:
    table = Timetable.model_validate(WEEKLY | {"without": ["2027-03-04"]})
    assert spans_of(table) == [
        Span(instant_ms(f"2027-03-{day}T01:00:00Z"), instant_ms(f"2027-03-{day}T04:00:00Z"))
        for day in ("02", "09", "11")
    ]


def test_its_first_and_last_day_count_and_may_be_the_same() -> None:
    day = {"weekdays": ["tue"], "first_day": "2027-03-02", "last_day": "2027-03-02"}
    assert len(spans_of(Timetable.model_validate(WEEKLY | day))) == 1
    assert spans_of(Timetable.model_validate(WEEKLY | day | {"weekdays": ["mon"]})) == []


def test_the_hours_around_midnight_are_of_the_day_in_seoul() -> None:
    night = {"weekdays": ["mon"], "begins": "00:00", "ends": "08:30"}
    (span,) = spans_of(Timetable.model_validate(WEEKLY | night | {"last_day": "2027-03-01"}))
    assert span == Span(instant_ms("2027-02-28T15:00:00Z"), instant_ms("2027-02-28T23:30:00Z"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ends": "10:00"}, "ends 10:00 must be later"),
        ({"last_day": "2027-02-28"}, "last_day 2027-02-28 must not lie before"),
        ({"last_day": "2029-01-01"}, "at most 400 days"),
        ({"first_day": "2027-02-29"}, "a day is a date such as"),
        ({"first_day": "20270301xx"}, "a day is a date such as"),
        ({"first_day": 3}, "a day is a date such as"),
        ({"begins": "24:00"}, "pattern"),
        ({"weekdays": []}, "at least 1"),
    ],
)
def test_a_wrong_timetable_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Timetable.model_validate(WEEKLY | changed)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({}, "either starts_at and ends_at, or a timetable"),
        ({"starts_at": "2027-03-02T01:00:00Z"}, "either"),
        ({"starts_at": "2027-03-02T01:00:00Z", "ends_at": "2027-03-02T01:00:00Z"}, "later than starts_at"),
        ({"starts_at": "2027-03-02T01:00:00Z", "ends_at": "2027-05-02T01:00:00Z"}, "at most 31 days"),
        (
            {"starts_at": "2027-03-02T01:00:00Z", "ends_at": "2027-03-02T02:00:00Z", "timetable": WEEKLY},
            "either",
        ),
    ],
)
def test_a_booking_is_once_or_weekly(times: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NewBooking.model_validate(DAY | times)


def test_days_travel_as_text() -> None:
    table = Timetable.model_validate(WEEKLY)
    assert (table.first_day, table.weekdays) == (date(2027, 3, 1), (Weekday.TUESDAY, Weekday.THURSDAY))
    assert Timetable.model_validate_json(table.model_dump_json()) == table


def test_pods_are_whole_on_a_node() -> None:
    nodes = {"c1": [8, 6], "c2": [4]}
    assert pods_free(nodes, [], a_wish(size=4, pods=9)) == 3
    assert pods_free(nodes, [], a_wish(size=3, pods=9)) == 4
    assert pods_free(nodes, [], a_wish(size=4, pods=9, cluster="c2")) == 1
    assert pods_free(nodes, [], a_wish(size=4, pods=2)) == 2  # no more than were asked for
    assert pods_free(nodes, [], a_wish(cluster="c9")) == 0
    assert pods_free({}, [], a_wish()) == 0


def test_only_what_overlaps_counts_and_only_at_once() -> None:
    nodes = {"c1": [8]}
    before, after = a_wish("a", 8, at=(0, 2)), a_wish("b", 8, at=(4, 6))
    assert pods_free(nodes, [before, after], a_wish(size=8, at=(2, 4))) == 1
    assert pods_free(nodes, [before, after], a_wish(size=8, at=(2, 5))) == 0
    # one after the other on the same GPUs: at no moment more than four
    halves = [a_wish("a", 4, at=(0, 2)), a_wish("b", 4, at=(2, 4))]
    assert pods_free(nodes, halves, a_wish(size=4, pods=2, at=(0, 4))) == 1


def test_others_keep_to_their_nodes_for_all_their_time() -> None:
    """Two halves of two nodes are taken: a whole node is left only where both lie on the same."""
    nodes = {"c1": [8, 8]}
    others = [a_wish("a", 4, at=(0, 4)), a_wish("b", 4, at=(0, 4))]
    assert pods_free(nodes, others, a_wish(size=8, at=(0, 4))) == 1
    assert pods_free(nodes, [*others, a_wish("c", 2, at=(3, 5))], a_wish(size=8, at=(0, 4))) == 0


def test_others_of_one_cluster_leave_the_other_alone() -> None:
    nodes = {"c1": [8], "c2": [8]}
    assert pods_free(nodes, [a_wish("a", 8, cluster="c1")], a_wish(size=8)) == 1
    assert pods_free(nodes, [a_wish("a", 8, cluster="c1")], a_wish(size=8, cluster="c1")) == 0
    # one that may be anywhere is where it fits whole
    assert pods_free(nodes, [a_wish("a", 8, cluster="c1"), a_wish("b", 8)], a_wish(size=8)) == 0
