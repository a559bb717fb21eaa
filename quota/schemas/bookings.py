"""Room booked in advance: once, or by a weekly timetable in Seoul's time."""

from __future__ import annotations

import re
from datetime import date
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from quota.schemas.values import (
    ClassId,
    Flag,
    Id,
    Instant,
    Name,
    Reason,
    Reply,
    Request,
    ShortId,
    Slug,
    wrong,
)

LONGEST_OCCURRENCE_MS = 31 * 86_400_000
MOST_OCCURRENCES = 400
MOST_DAYS = 400
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Weekday(StrEnum):
    """A day of the week, Monday first."""

    MONDAY = "mon"
    TUESDAY = "tue"
    WEDNESDAY = "wed"
    THURSDAY = "thu"
    FRIDAY = "fri"
    SATURDAY = "sat"
    SUNDAY = "sun"


def _parse_day(value: object) -> date:
    if isinstance(value, date):
        return value
    try:
        day = date.fromisoformat(value) if isinstance(value, str) and _DAY.fullmatch(value) else None
    except ValueError:
        day = None
    if day is None or not 1971 <= day.year <= 9998:
        raise wrong("a day is a date such as 2027-03-02")
    return day


Day = Annotated[
    date,
    BeforeValidator(_parse_day),
    PlainSerializer(date.isoformat, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date", "examples": ["2027-03-02"]}),
]
"""A day of Seoul's calendar."""
TimeOfDay = Annotated[str, Field(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$", examples=["10:00"])]
"""Hours and minutes on Seoul's clocks."""


class Timetable(Request):
    """The same hours on some days of each week, from a first to a last day. Seoul's time (UTC+9)."""

    weekdays: Annotated[tuple[Weekday, ...], Field(min_length=1, max_length=7)]
    begins: TimeOfDay
    ends: TimeOfDay
    first_day: Day
    last_day: Day
    """Included."""
    without: Annotated[tuple[Day, ...], Field(max_length=MOST_OCCURRENCES)] = ()
    """Days on which there is none, such as holidays."""

    @model_validator(mode="after")
    def _runs_forward(self) -> Timetable:
        if self.ends <= self.begins:
            raise wrong(
                "ends {ends} must be later on the day than begins {begins}",
                ends=self.ends,
                begins=self.begins,
            )
        if self.last_day < self.first_day:
            raise wrong(
                "last_day {last_day} must not lie before first_day {first_day}",
                last_day=self.last_day.isoformat(),
                first_day=self.first_day.isoformat(),
            )
        if (self.last_day - self.first_day).days >= MOST_DAYS:
            raise wrong("a timetable spans at most {days} days", days=MOST_DAYS)
        return self


class NewBooking(Request):
    """Promise GPUs to an organization: `pods` times `gpus_per_pod` of a class, either once or by a timetable."""

    organization_id: Slug
    name: Name
    gpu_class: ClassId
    gpus_per_pod: Annotated[int, Field(strict=True, ge=1, le=1024)]
    """On one node together."""
    pods: Annotated[int, Field(strict=True, ge=1, le=4096)]
    cluster: Id | None = None
    """null: whichever cluster has the room. Always one."""
    grant_id: Id | None = None
    """Only jobs that draw on this grant use the room; null: all jobs of the organization."""
    hold: Flag = False
    """Keep the room though nobody uses it; else it is released some minutes after its begin."""
    starts_at: Instant | None = None
    ends_at: Instant | None = None
    timetable: Timetable | None = None
    reason: Reason

    @model_validator(mode="after")
    def _once_or_weekly(self) -> NewBooking:
        once = self.starts_at is not None and self.ends_at is not None
        neither = self.starts_at is None and self.ends_at is None
        if not (once and self.timetable is None) and not (neither and self.timetable is not None):
            raise wrong("a booking has either starts_at and ends_at, or a timetable")
        if self.starts_at is not None and self.ends_at is not None:
            if self.ends_at <= self.starts_at:
                raise wrong("ends_at must be later than starts_at")
            if self.ends_at - self.starts_at > LONGEST_OCCURRENCE_MS:
                raise wrong(
                    "a booking lasts at most {days} days at a time", days=LONGEST_OCCURRENCE_MS // 86_400_000
                )
        return self


class OccurrenceRoom(Reply):
    """Where the room of an occurrence is, as the scheduler said last."""

    cluster: str
    gpus: int
    """GPUs on nodes that are named."""
    short_gpus: int
    """So many will not be free from its begin on: what runs into it was there before it, or nodes were lost."""
    used: bool
    released: bool
    """Nobody came: the room is anybody's until its end."""


class Occurrence(Reply):
    """One time of a booking."""

    id: str
    starts_at: Instant
    ends_at: Instant
    cancelled_at: Instant | None
    room: OccurrenceRoom | None = None
    """null: not laid out yet, over or cancelled."""


class Booking(Reply):
    """A booking with its occurrences in the order of time."""

    id: str
    organization_id: str
    name: str
    gpu_class: str
    gpus_per_pod: int
    pods: int
    cluster: str | None
    grant_id: str | None
    hold: bool
    timetable: Timetable | None
    created_at: Instant
    occurrences: tuple[Occurrence, ...]


class BookingList(Reply):
    """Bookings in order of id; pass `next` as `after` for the following page."""

    items: tuple[Booking, ...]
    next: str | None = None


class BookingCancellation(Request):
    """Cancel single occurrences, or, with none named, all that are not over."""

    occurrences: Annotated[tuple[ShortId, ...], Field(max_length=MOST_OCCURRENCES)] = ()
    reason: Reason
