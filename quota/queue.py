"""What readers may ask about waiting jobs; the stored ranking and forecast answer it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection

from quota.schemas.bookings import OccurrenceRoom
from quota.schemas.forecasts import JobEta, NewcomerItem
from quota.schemas.scheduling import BookedRoom, Waiting, WaitReason


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job stands among those that the ranking knows; 1 = next."""

    position: int
    of: int
    own_position: int
    """Among the jobs of its organization."""
    own_of: int


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

    def opportunistic_notice_ms(self, connection: Connection) -> int:
        """How long before it is stopped an opportunistic job is told."""
        ...

    def booking_lead_ms(self, connection: Connection) -> int:
        """How long before a booking begins others must be out of its room."""
        ...

    def place(self, job_id: str) -> Place | None:
        """Place in the hub's queue and in its organization's; None if unranked."""
        ...

    def eta(self, job_id: str) -> JobEta | None:
        """When a job is likely to start; None if the last forecast does not say."""
        ...

    def foretold_at_ms(self) -> int | None:
        """The moment that the last forecast was made for; None if there never was one."""
        ...

    def newcomers(self, organization_id: str) -> Sequence[NewcomerItem]:
        """What the last forecast says of jobs that the organization may submit, the closest likenesses first."""
        ...

    def code(self, job_id: str) -> WaitReason | None:
        """The code alone of why a job waits, or None if no cycle has said."""
        ...

    def waiting(self, job_id: str) -> Waiting | None:
        """Why a job waits, or None if no cycle has said."""
        ...
