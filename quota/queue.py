"""What readers may ask about waiting jobs; the stored ranking answers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from sqlalchemy import Connection

from quota.schemas.bookings import OccurrenceRoom
from quota.schemas.scheduling import BookedRoom, Waiting, WaitReason


class Queue(Protocol):
    """The hub's queue as the latest ranking shows it."""

    def refresh(self, connection: Connection) -> None:
        """Take over the stored ranking if it is a newer one."""
        ...

    def ranked_at_ms(self) -> int | None:
        """When the queue was ranked; None if never."""
        ...

    def position(self, job_id: str) -> int | None:
        """Place in the hub's queue, 1 = next; None if unranked."""
        ...

    def booked(self, occurrence_id: str) -> OccurrenceRoom | None:
        """Where the room of one time of a booking is; None if no cycle has said."""
        ...

    def rooms(self, connection: Connection) -> Mapping[str, BookedRoom]:
        """Where the room of the coming times of bookings is, by their ids."""
        ...

    def booking_lead_ms(self, connection: Connection) -> int:
        """How long before a booking begins others must be out of its room."""
        ...

    def code(self, job_id: str) -> WaitReason | None:
        """The code alone of why a job waits, or None if no cycle has said."""
        ...

    def waiting(self, job_id: str) -> Waiting | None:
        """Why a job waits, or None if no cycle has said."""
        ...
