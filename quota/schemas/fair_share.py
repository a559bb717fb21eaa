"""How the hub shares GPUs that several want: the numbers that operators choose and the scheduler's core follows.

Every default is the hub's own policy, `gpuhub` in `scheduler/core/policy.py`; a test compares the two.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import Annotated

from pydantic import ConfigDict, Field, field_validator

from quota.schemas.values import Instant, Reason, Reply, Request, Slug, wrong

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

PREEMPTIONS_PER_DAY = 3
"""No job is preempted more often within 24 hours, whatever a policy says."""

Gpus = Annotated[int, Field(strict=True, ge=1, le=100_000)]
Times = Annotated[int, Field(strict=True, ge=1, le=1000)]
Share = Annotated[int, Field(strict=True, ge=0, le=1000)]
Weight = Annotated[int, Field(strict=True, ge=10, le=100_000)]
UpToADay = Annotated[int, Field(strict=True, ge=0, le=DAY_MS)]
UpToAYear = Annotated[int, Field(strict=True, ge=0, le=366 * DAY_MS)]


class Ranking(StrEnum):
    """By what organizations, and the jobs in them, take turns."""

    GRANT = "grant"
    """Who is furthest behind the pace of its grant goes first."""
    DECAY = "decay"
    """Who used least of late for what it was granted goes first."""
    FIFO = "fifo"
    """Who waits longest goes first."""


class Taper(Request):
    """Up to which walltime a job passes in the lane, and how much of its grant may be spent by then."""

    walltime_ms: Annotated[int, Field(strict=True, ge=1, le=366 * DAY_MS)]
    spare_thousandths: Annotated[int, Field(strict=True, ge=-1000, le=1000)]
    """It passes while less than 1000 + so many thousandths of its grant are spent."""


class Lane(Request):
    """Which small short jobs pass reservations."""

    gpus: Gpus = 8
    """A job in the lane has at most so many."""
    area_gpu_h: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 96
    """Its GPUs x walltime in hours are at most so much."""
    tapers: Annotated[tuple[Taper, ...], Field(min_length=1, max_length=16)] = (
        Taper(walltime_ms=HOUR_MS, spare_thousandths=1000),
        Taper(walltime_ms=4 * HOUR_MS, spare_thousandths=1000),
        Taper(walltime_ms=12 * HOUR_MS, spare_thousandths=-50),
        Taper(walltime_ms=24 * HOUR_MS, spare_thousandths=-120),
        Taper(walltime_ms=72 * HOUR_MS, spare_thousandths=-150),
    )
    """By growing walltime; who asks for more than the last one is not in the lane."""
    delivery_weight_thousandths: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 0
    """How much more it tapers, per share that the organization furthest behind is behind."""

    @field_validator("tapers")
    @classmethod
    def _by_growing_walltime(cls, tapers: tuple[Taper, ...]) -> tuple[Taper, ...]:
        for before, after in pairwise(tapers):
            if after.walltime_ms <= before.walltime_ms:
                raise wrong(
                    "tapers stand by growing walltime_ms: {after_ms} must not follow {before_ms}",
                    after_ms=after.walltime_ms,
                    before_ms=before.walltime_ms,
                )
        return tapers


class Preemption(Request):
    """Who may be stopped for whom. Times are business milliseconds."""

    gang_gpus: Gpus = 32
    """Only for a job of at least so many GPUs."""
    gangs: Times = 4
    """For at most so many jobs of an organization at a time."""
    gangs_at_once: Times = 8
    """In the whole hub: others are stopped for at most so many jobs at a time."""
    victim_gpus: Gpus = 8
    """Only jobs of at most so many GPUs are stopped."""
    lead_ms: UpToAYear = DAY_MS
    """The victim's organization is at least so much less behind than the preemptor's."""
    protected_ms: UpToAYear = HOUR_MS
    """No attempt is stopped before it ran so long."""
    cooldown_ms: UpToADay = 8 * HOUR_MS
    """Nor a job that was preempted so recently."""
    times_per_day: Annotated[int, Field(strict=True, ge=1, le=PREEMPTIONS_PER_DAY)] = 1
    """Nor one that was preempted so often within 24 hours."""
    notice_ms: UpToADay = 600_000
    """How long before it is stopped a victim is told."""
    checkpoint_ms: Annotated[int, Field(strict=True, ge=1000, le=366 * DAY_MS)] = HOUR_MS
    """How often a job that does not say so itself is taken to save its work: what it did since then is lost and given
    back."""
    restart_ms: UpToADay = 600_000
    """What a start after a preemption costs each of its GPUs."""


class ProgramShare(Request):
    """What a programme is entitled to beside its grants."""

    weight_thousandths: Weight = 1000
    """What its lag counts: who weighs twice is ranked as twice as far behind its pace, or half as far ahead."""
    reserved_thousandths: Share = 0
    """While it keeps less than this part of the pool, and its jobs wait, they go before everybody else's; 0: never."""


class FairShare(Request):
    """How the hub shares GPUs that several want."""

    ranking: Ranking = Ranking.GRANT
    lag_bound_thousandths: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1000
    """A grant is ranked as at most this part of its term behind or ahead of its pace."""
    idle_lag_thousandths: Share = 1000
    """A grant of which no job waits falls behind by at most this part of its term."""
    floor_thousandths: Share = 600
    """An organization on its pace goes first while it runs less than this part of what it ran of late, or of what its
    pace needs if that is less; 0: nobody does."""
    floor_lag_ms: UpToAYear = DAY_MS
    """On its pace is who is at most so much ahead of it."""
    hold_share_thousandths: Share = 300
    """How much of what running jobs may still use counts as spent: 1000 all of their holds, 0 what they used."""
    gang_first_gpus: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 32
    """Inside a grant, jobs of at least so many GPUs go first; 0: by submission only."""
    larger_gangs_first: Annotated[bool, Field(strict=True)] = False
    """Among those, whether the larger ones go first, instead of whoever was submitted first."""
    reservations: Annotated[int, Field(strict=True, ge=0, le=1000)] = 8
    """How many jobs that do not fit may keep their earliest hole; 0: whatever fits may pass."""
    reservations_per_organization: Times = 4
    reservation_gpus: Gpus = 8
    """Only a job of at least so many GPUs may keep a hole."""
    promise_gpus: Annotated[int, Field(strict=True, ge=0, le=100_000)] = 32
    """Only a job of at least so many GPUs keeps its place while its grant is behind; others find one anew."""
    promises_per_organization: Times = 1
    """So many of an organization's jobs keep theirs."""
    lane: Lane | None = Lane()
    """null: no lane."""
    preemption: Preemption | None = Preemption()
    """null: nothing is stopped for another."""
    booking_lead_ms: UpToADay = 900_000
    """Others are out of booked room so long before it begins."""
    booking_over_ms: UpToADay = 300_000
    """A job in booked room may end so long after it, if nothing is booked there next."""
    booking_unused_ms: UpToAYear = 900_000
    """Booked room that nobody used so long after its begin is anybody's, unless the booking is to be held."""
    opportunistic_notice_ms: UpToADay = 60_000
    """How long before it is stopped an opportunistic job is told that somebody is entitled to its GPUs."""
    programs: Annotated[dict[Slug, ProgramShare], Field(max_length=1000)] = Field(default_factory=dict)
    """By programme, of those that weigh more or less than others or have a part of the pool reserved. The reserved
    parts come to 1000 thousandths at most."""
    organization_weights: Annotated[dict[Slug, Weight], Field(max_length=10_000)] = Field(
        default_factory=dict
    )
    """By organization, in thousandths, of those that weigh more or less than others: as of a programme."""

    @field_validator("programs")
    @classmethod
    def _no_more_than_there_is(cls, programs: dict[str, ProgramShare]) -> dict[str, ProgramShare]:
        reserved = sum(share.reserved_thousandths for share in programs.values())
        if reserved > 1000:
            raise wrong(
                "the reserved parts of the pool come to {reserved} thousandths; at most 1000 are possible",
                reserved=reserved,
            )
        return programs


class FairSharePut(Request):
    """Set how the hub shares, whole: what is left out is the default."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "fair_share": {"reservations": 4, "preemption": {"notice_ms": 900_000}},
                    "reason": "longer notice, as asked at the review of 3 November",
                }
            ]
        }
    )

    fair_share: FairShare
    reason: Reason


class FairShareDocument(Reply):
    """How the hub shares now, and how often that was changed."""

    version: int
    fair_share: FairShare
    changed_at: Instant
    etag: str
    """What `If-Match` takes."""
