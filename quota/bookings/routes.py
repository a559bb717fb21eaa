"""HTTP door of the bookings room."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quota.bookings import service
from quota.door import (
    PAGE,
    READERS,
    After,
    HubRoute,
    IdempotencyKey,
    Limit,
    access,
    answer,
    caller_of,
    hub_of,
)
from quota.identity.idempotency import once
from quota.schemas.bookings import Booking, BookingCancellation, BookingList, NewBooking
from quota.schemas.identity import Role, Scope
from quota.schemas.values import Id

router = APIRouter(tags=["bookings"], route_class=HubRoute)


@router.post(
    "/v1/bookings",
    operation_id="create_booking",
    status_code=201,
    response_model=Booking,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def create_booking(request: Request, body: NewBooking, key: IdempotencyKey = None) -> Response:
    """Promise GPUs to an organization, once or weekly (operators); the scheduler keeps the room.

    409 `booking_exceeds_capacity` with what is free, 422 `unknown_gpu_class`, 404 `not_found` (organization,
    cluster, grant).
    """
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(
            tx, caller, key, "create_booking", body, Booking, lambda: service.create_booking(tx, caller, body)
        )
    )
    return answer(made, 201)


@router.get(
    "/v1/bookings",
    operation_id="list_bookings",
    response_model=BookingList,
    openapi_extra=access(*READERS, scope=Scope.FLEET_READ),
)
def list_bookings(
    request: Request, organization_id: Id | None = None, after: After = None, limit: Limit = PAGE
) -> Response:
    """Bookings with their times, in order of id; a member sees its organization's."""
    hub, caller = hub_of(request), caller_of(request)
    with hub.database.read() as connection:
        found = service.list_bookings(
            connection, caller, hub.queue, organization_id=organization_id, after=after, limit=limit
        )
    return answer(found)


@router.get(
    "/v1/bookings/{booking_id}",
    operation_id="read_booking",
    response_model=Booking,
    openapi_extra=access(*READERS, scope=Scope.FLEET_READ),
)
def read_booking(request: Request, booking_id: Id) -> Response:
    """One booking, with where the room of its coming times is."""
    hub, caller = hub_of(request), caller_of(request)
    with hub.database.read() as connection:
        return answer(service.read_booking(connection, caller, booking_id, hub.queue))


@router.post(
    "/v1/bookings/{booking_id}/cancel",
    operation_id="cancel_booking",
    response_model=Booking,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def cancel_booking(request: Request, booking_id: Id, body: BookingCancellation) -> Response:
    """Cancel single times of a booking, or all that are not over (operators). Again changes nothing."""
    hub, caller = hub_of(request), caller_of(request)
    done = hub.database.write(lambda tx: service.cancel_booking(tx, caller, booking_id, body, hub.queue))
    return answer(done)
