"""The queue as the scheduler has it: the waiting jobs in order, with why they wait."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quota.schemas.scheduling.objects import BookedRoom, Pace, Reservation
from quota.schemas.scheduling.states import WaitReason
from quota.schemas.values import Id, Instant, Numbers, Reply, Request, Sequence


class Waiting(Request):
    """Why a job waits: a code and the numbers behind it."""

    code: WaitReason
    numbers: Numbers = Field(default_factory=dict)


class RankingDocument(Request):
    """The waiting jobs in order, the reasons that changed since `base_cycle`, and each grant's pace."""

    epoch: Sequence
    cycle: Sequence
    base_cycle: Sequence | None = None
    """The cycle that `reasons` and `paces` are changes to; null: they are complete."""
    at: Instant
    order: Annotated[tuple[Id, ...], Field(max_length=200_000)]
    reasons: dict[str, Waiting]
    paces: dict[str, Pace] = Field(default_factory=dict)
    reservations: Annotated[tuple[Reservation, ...], Field(max_length=1000)] = ()
    """All room that is promised, in the order in which it was; always complete."""
    booked: Annotated[tuple[BookedRoom, ...], Field(max_length=20_000)] = ()
    """Where the room of coming bookings is; always complete."""


class RankingReply(Reply):
    """The cycle that the service now shows."""

    cycle: int
    seq: int
