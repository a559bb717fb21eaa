"""Bookings: made if there is room, told to the scheduler, shown with where their room is, cancelled, audited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from quota.audit.tables import audit
from quota.bookings import service
from quota.bookings.tables import bookings
from quota.clock import instant_ms, instant_text
from quota.dispatch import feed
from quota.dispatch.ranking import put_ranking
from quota.errors import (
    BadRequest,
    BookingExceedsCapacity,
    CapacityTaken,
    HubError,
    NotFound,
    UnknownGpuClass,
)
from quota.jobs import extending
from quota.schemas.bookings import Booking, BookingCancellation, NewBooking
from quota.schemas.job_changes import JobExtension
from quota.schemas.jobs import Job
from quota.schemas.scheduling import BookedRoom, RankingDocument
from tests.builders import (
    DAY_MS,
    HOUR_MS,
    OPERATOR,
    START_MS,
    Api,
    Hub,
    a_hub,
    a_member,
    a_problem,
    an_api,
    node_reports,
)

TIMETABLE = {
    "weekdays": ["mon", "wed"],
    "begins": "10:00",
    "ends": "13:00",
    "first_day": "2026-11-30",
    "last_day": "2026-12-09",
}


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    made.report(nodes=node_reports({"n0": {"h100": 8}, "n1": {"h100": 8}}))
    yield made
    made.close()


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        yield made


def a_body(hub: Hub, from_h: int = 1, until_h: int = 4, **changed: Any) -> NewBooking:
    times: dict[str, Any] = {"starts_at": hub.now + from_h * HOUR_MS, "ends_at": hub.now + until_h * HOUR_MS}
    if "timetable" in changed:
        times = {}
    fields: dict[str, Any] = {
        "organization_id": "alpha",
        "name": "a class",
        "gpu_class": "h100",
        "gpus_per_pod": 4,
        "pods": 2,
        "reason": "a test",
    }
    return NewBooking.model_validate(fields | times | changed)


def book(hub: Hub, **changed: Any) -> Booking:
    body = a_body(hub, **changed)
    return hub.database.write(lambda tx: service.create_booking(tx, OPERATOR, body))


def cancel(hub: Hub, booking: Booking, *occurrences: str) -> Booking:
    body = BookingCancellation(occurrences=occurrences, reason="a test")
    return hub.database.write(lambda tx: service.cancel_booking(tx, OPERATOR, booking.id, body, hub.queue))


def refused(hub: Hub, kind: type[HubError], **changed: Any) -> HubError:
    before = hub.contents()
    with pytest.raises(kind) as caught:
        book(hub, **changed)
    assert hub.contents() == before
    return caught.value


def test_a_booking_is_kept_audited_and_told_in_the_feed(hub: Hub) -> None:
    grant = hub.award()
    cursor, _ = hub.snapshot()
    made = book(hub, grant_id=grant.id, cluster="sim", hold=True)
    (time,) = made.occurrences
    assert (time.starts_at, time.ends_at) == (hub.now + HOUR_MS, hub.now + 4 * HOUR_MS)
    (item,) = feed.read_feed(hub.database, cursor, 100).items
    assert (item.kind, item.id) == ("booking", time.id)
    told = item.booking
    assert told is not None
    assert (told.organization_id, told.grant_id, told.cluster, told.hold) == ("alpha", grant.id, "sim", True)
    assert (told.gpu_class, told.gpus_per_pod, told.pods) == ("h100", 4, 2)
    assert (told.starts_at, told.ends_at) == (time.starts_at, time.ends_at)
    assert hub.snapshot()[1]["booking", time.id].booking == told
    row = hub.row(audit, action="booking.create")
    assert (row.subject, row.reason) == (made.id, "a test")
    assert json.loads(row.detail)["occurrences"] == 1


def test_a_timetable_becomes_its_times(hub: Hub) -> None:
    made = book(hub, timetable=TIMETABLE | {"without": ["2026-12-07"]})
    starts = [instant_text(each.starts_at) for each in made.occurrences]
    assert starts == [f"2026-{day}T01:00:00.000Z" for day in ("11-30", "12-02", "12-09")]
    told = [id for kind, id in hub.snapshot()[1] if kind == "booking"]
    assert sorted(told) == sorted(each.id for each in made.occurrences)


def test_a_booking_charges_and_holds_nothing(hub: Hub) -> None:
    grant = hub.award()
    before = hub.grant(grant.id)
    book(hub, grant_id=grant.id)
    assert hub.grant(grant.id) == before


def test_more_than_is_free_is_refused_with_what_is(hub: Hub) -> None:
    book(hub, pods=3)
    fault = refused(hub, BookingExceedsCapacity, organization_id="beta", pods=2, from_h=3, until_h=6)
    assert (fault.numbers["free_pods"], fault.numbers["needed_pods"]) == (1, 2)
    assert fault.numbers["starts_at_ms"] == hub.now + 3 * HOUR_MS
    book(hub, organization_id="beta", pods=1, from_h=3, until_h=6)
    refused(hub, BookingExceedsCapacity, organization_id="beta", pods=1, gpus_per_pod=1, from_h=3, until_h=4)
    book(hub, organization_id="beta", pods=3, from_h=6, until_h=7)


def test_one_time_too_many_refuses_the_whole_timetable(hub: Hub) -> None:
    holiday = instant_ms("2026-12-02T03:00:00Z")
    book(hub, pods=4, starts_at=holiday, ends_at=holiday + HOUR_MS)
    fault = refused(hub, BookingExceedsCapacity, timetable=TIMETABLE)
    assert fault.numbers["starts_at_ms"] == instant_ms("2026-12-02T01:00:00Z")
    book(hub, timetable=TIMETABLE | {"without": ["2026-12-02"]})


def test_nodes_that_take_no_jobs_and_what_others_use_do_not_count(hub: Hub) -> None:
    hub.report(nodes=node_reports({"n0": {"h100": 8}, "n1": {"h100": 8}}, foreign=1))
    assert refused(hub, BookingExceedsCapacity, pods=3).numbers["free_pods"] == 2
    hub.report(nodes=node_reports({"n0": {"h100": 8}}))
    assert refused(hub, BookingExceedsCapacity, pods=3).numbers["free_pods"] == 2


def test_cancelled_times_are_free_again(hub: Hub) -> None:
    whole = {"pods": 4, "timetable": TIMETABLE}
    made = book(hub, **whole)
    first, second, *rest = made.occurrences
    done = cancel(hub, made, second.id)
    assert [each.cancelled_at for each in done.occurrences] == [None, hub.now, *[None] * len(rest)]
    row = hub.row(audit, action="booking.cancel")
    assert json.loads(row.detail) == {"occurrences": [second.id]}
    book(hub, pods=4, starts_at=second.starts_at, ends_at=second.ends_at)
    refused(hub, BookingExceedsCapacity, pods=4, starts_at=first.starts_at, ends_at=first.ends_at)
    assert ("booking", second.id) not in hub.snapshot()[1]


def test_a_cancelled_time_is_gone_in_the_feed_and_once_only(hub: Hub) -> None:
    made = book(hub)
    cursor, _ = hub.snapshot()
    cancel(hub, made)
    (item,) = feed.read_feed(hub.database, cursor, 100).items
    assert (item.kind, item.id, item.gone) == ("booking", made.occurrences[0].id, True)
    before = hub.contents()
    assert cancel(hub, made).occurrences[0].cancelled_at == hub.now
    assert hub.contents() == before


def test_what_is_over_is_neither_told_nor_cancelled(hub: Hub) -> None:
    made = book(hub)
    (time,) = made.occurrences
    hub.clock.advance(3 * HOUR_MS)
    assert ("booking", time.id) in hub.snapshot()[1]  # it lasts another hour
    hub.clock.advance(HOUR_MS)
    assert ("booking", time.id) not in hub.snapshot()[1]
    with pytest.raises(BadRequest, match=r"is over since 2026-"):
        cancel(hub, made, time.id)
    assert cancel(hub, made).occurrences[0].cancelled_at is None


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        (BadRequest, {"from_h": -1}, "begins in the future"),
        (BadRequest, {"timetable": TIMETABLE | {"last_day": "2026-11-30", "weekdays": ["sun"]}}, "no day"),
        (
            BadRequest,
            {"timetable": TIMETABLE | {"first_day": "2026-11-16"}},
            "would have begun at 2026-11-16",
        ),
        (UnknownGpuClass, {"gpu_class": "b200"}, "no GPU class b200"),
        (NotFound, {"organization_id": "nobody"}, "no organization nobody"),
        (NotFound, {"cluster": "sim-9"}, "no cluster sim-9"),
        (NotFound, {"grant_id": "grant-x"}, "has no grant grant-x"),
    ],
)
def test_what_cannot_be_is_refused(
    hub: Hub, kind: type[HubError], changed: dict[str, Any], message: str
) -> None:
    assert message in refused(hub, kind, **changed).detail


def test_a_grant_must_be_its_organizations_and_last_until_the_end(hub: Hub) -> None:
    short, others = hub.award("alpha", ends_at=hub.now + 3 * HOUR_MS), hub.award("beta")
    assert "not for all of this booking" in refused(hub, BadRequest, grant_id=short.id).detail
    assert "has no grant" in refused(hub, NotFound, grant_id=others.id).detail
    book(hub, grant_id=short.id, until_h=3)


def test_an_occurrence_of_another_booking_is_not_found(hub: Hub) -> None:
    one, other = book(hub, pods=1), book(hub, pods=1)
    with pytest.raises(NotFound, match="has no occurrence"):
        cancel(hub, one, other.occurrences[0].id)
    with pytest.raises(NotFound, match="no booking booking-x"):
        hub.database.write(
            lambda tx: service.cancel_booking(
                tx, OPERATOR, "booking-x", BookingCancellation(reason="r"), hub.queue
            )
        )


def test_where_the_room_is_comes_back_with_the_snapshot_and_is_shown(hub: Hub) -> None:
    made = book(hub)
    (time,) = made.occurrences
    room = BookedRoom(booking_id=time.id, cluster="sim", gpus_by_node={"n0": 8}, short_gpus=4, used=True)
    document = RankingDocument(epoch=hub.epoch, cycle=1, at=hub.now, order=(), reasons={}, booked=(room,))
    hub.database.write(lambda tx: put_ranking(tx, document))
    assert feed.read_snapshot(hub.database, None, 1).booked == (room,)
    with hub.database.read() as connection:
        (shown,) = service.read_booking(connection, a_member("alpha"), made.id, hub.queue).occurrences
        with pytest.raises(NotFound):
            service.read_booking(connection, a_member("beta"), made.id, hub.queue)
    assert shown.room is not None
    assert (shown.room.cluster, shown.room.gpus, shown.room.short_gpus) == ("sim", 8, 4)
    assert (shown.room.used, shown.room.released) == (True, False)


def run_for(hub: Hub, node: str, gpus: int, walltime_s: int, firm: str = "beta") -> Job:
    """A job that runs on a node from now on."""
    grant = hub.award(firm, "1000")
    job = hub.submit(firm, gpus_per_pod=gpus, walltime_s=walltime_s)
    hub.run(job, grant, node)
    return job


def extend(hub: Hub, job: Job, walltime_s: int) -> int:
    """Ask for more time, as over HTTP; answers how much more would still fit."""
    body = JobExtension(walltime_s=walltime_s, reason="a test")
    done = hub.database.preview(lambda tx: extending.extend(tx, OPERATOR, job.id, body, hub.queue))
    return done.fitting_walltime_s


def lay_out(hub: Hub, booking: Booking, gpus_by_node: dict[str, int], cycle: int = 1) -> None:
    (time,) = booking.occurrences
    room = BookedRoom(booking_id=time.id, cluster="sim", gpus_by_node=gpus_by_node)
    document = RankingDocument(epoch=hub.epoch, cycle=cycle, at=hub.now, order=(), reasons={}, booked=(room,))
    hub.database.write(lambda tx: put_ranking(tx, document))


def test_a_job_is_not_extended_into_booked_room(hub: Hub) -> None:
    job = run_for(hub, "n0", 4, 3600)
    made = book(hub, gpus_per_pod=8, pods=1, from_h=2)
    lay_out(hub, made, {"n0": 8})
    assert extend(hub, job, 2700) == 0  # up to a quarter of an hour before
    with pytest.raises(CapacityTaken, match="booked from 2026-11-22T01:45") as caught:
        extend(hub, job, 2701)
    assert caught.value.numbers["fitting_walltime_s"] == 2700
    cancel(hub, made)
    extend(hub, job, 3 * 3600)


def test_a_job_is_extended_beside_booked_room_unless_others_need_the_rest(hub: Hub) -> None:
    job = run_for(hub, "n0", 4, 3600)
    lay_out(hub, book(hub, gpus_per_pod=4, pods=1, from_h=2), {"n0": 4})
    extend(hub, job, 3 * 3600)
    run_for(hub, "n0", 2, 4 * 3600, "gamma")
    with pytest.raises(CapacityTaken):
        extend(hub, job, 3 * 3600)


def test_a_job_in_its_own_room_is_extended_up_to_the_next_booking(hub: Hub) -> None:
    made = book(hub, gpus_per_pod=8, pods=1, from_h=0, until_h=2)
    lay_out(hub, made, {"n0": 8})
    job = run_for(hub, "n0", 8, 3600, "alpha")
    extend(hub, job, 3 * 3600)
    other = book(hub, gpus_per_pod=8, pods=1, from_h=3, until_h=4, organization_id="beta")
    lay_out(hub, other, {"n0": 8}, cycle=2)
    assert extend(hub, job, 3600) == 2700


def test_two_bookings_at_once_do_not_share_a_gpu(hub: Hub) -> None:
    """The second waits for the first, and then sees it."""
    bodies = [a_body(hub, organization_id=firm, pods=3) for firm in ("alpha", "beta")]

    def made(number: int) -> str:
        try:
            return hub.database.write(lambda tx: service.create_booking(tx, OPERATOR, bodies[number])).id
        except BookingExceedsCapacity as fault:
            return fault.code

    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(made, range(2)))
    assert sorted(each == "booking_exceeds_capacity" for each in answers) == [False, True]
    assert len(hub.rows(bookings)) == 1


def test_over_http_with_a_key_and_page_by_page(api: Api) -> None:
    api.hub.report(nodes=node_reports({"n0": {"h100": 8}}))
    bodies = [a_body(api.hub, pods=1, gpus_per_pod=1, organization_id=firm) for firm in ("alpha", "beta")]
    first = api.operator.create_booking(bodies[0], key="once")
    assert api.operator.create_booking(bodies[0], key="once") == first
    second = api.operator.create_booking(bodies[1])
    assert {each.id for each in api.auditor.list_bookings().items} == {first.id, second.id}
    assert [each.id for each in api.operator.list_bookings(organization_id="beta").items] == [second.id]
    page = api.operator.list_bookings(limit=1)
    assert page.next is not None
    assert len(api.operator.list_bookings(after=page.next).items) == 1
    assert api.operator.read_booking(first.id) == first
    done = api.operator.cancel_booking(first.id, BookingCancellation(reason="ill"))
    assert done.occurrences[0].cancelled_at == api.hub.now
    with a_problem("booking_exceeds_capacity", 409):
        api.operator.create_booking(a_body(api.hub, pods=9, gpus_per_pod=1))


def test_the_clock_of_these_tests() -> None:
    assert instant_text(START_MS).startswith("2026-11-22")
    assert instant_ms("2026-11-30T01:00:00Z") > START_MS + DAY_MS
