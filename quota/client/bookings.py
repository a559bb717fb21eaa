"""Calls about room booked in advance."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.schemas import bookings


class BookingCalls(Transport):
    """Calls about room booked in advance."""

    def create_booking(self, body: bookings.NewBooking, key: str | None = None) -> bookings.Booking:
        """Promise GPUs to an organization, once or weekly."""
        return self._send("POST", "/v1/bookings", body, bookings.Booking, key)

    def list_bookings(
        self, after: str | None = None, limit: int | None = None, organization_id: str | None = None
    ) -> bookings.BookingList:
        """Bookings with their times, in order of id; see `every` for all of them."""
        reply = bookings.BookingList
        return self._get("/v1/bookings", reply, after=after, limit=limit, organization_id=organization_id)

    def read_booking(self, booking_id: str) -> bookings.Booking:
        """One booking, with where the room of its coming times is."""
        return self._get(f"/v1/bookings/{booking_id}", bookings.Booking)

    def cancel_booking(self, booking_id: str, body: bookings.BookingCancellation) -> bookings.Booking:
        """Cancel single times of a booking, or all that are not over."""
        return self._send("POST", f"/v1/bookings/{booking_id}/cancel", body, bookings.Booking)
