"""The numbers that a cycle follows, chosen by people and changed without a release."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TypedDict

MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


class Ranking(StrEnum):
    """By what organizations, and the jobs in them, take turns."""

    GRANT = "grant"
    """Who is furthest behind the pace of its grant goes first; ties by decayed usage."""
    DECAY = "decay"
    """Who used least of late for what it was granted goes first."""
    FIFO = "fifo"
    """Who waits longest goes first."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Which small short jobs pass reservations, and how far a grant may be spent while they do.

    Source: facts/scheduling.md 2.9, policy R, rule 1.
    """

    gpus: int = 8
    """A job in the lane has at most so many."""
    area_gpu_ms: int = 96 * HOUR_MS
    """Its GPUs x walltime are at most so much."""
    tapers: tuple[tuple[int, float], ...] = (
        (HOUR_MS, 1.0),
        (4 * HOUR_MS, 1.0),
        (12 * HOUR_MS, -0.05),
        (24 * HOUR_MS, -0.12),
        (72 * HOUR_MS, -0.15),
    )
    """(walltime, z): a job of at most this walltime passes while less than (1 + z) of its grant is spent."""
    delivery_weight: float = 0.0
    """How much more it tapers, per share that the organization furthest behind is behind (beta)."""


@dataclass(frozen=True, slots=True)
class Preemption:
    """Who may be stopped for whom.

    Source: facts/scheduling.md 2.9, policy R, rule 2; notice, cooldown and the daily limit are the hub's.
    """

    gang_gpus: int = 32
    """Only for a job of at least so many GPUs."""
    gangs: int = 4
    """For at most so many jobs of an organization at a time."""
    gangs_at_once: int = 8
    """In the whole hub: others are stopped for at most so many jobs at a time."""
    victim_gpus: int = 8
    """Only jobs of at most so many GPUs are stopped."""
    lead_ms: int = DAY_MS
    """The victim's organization is at least so much less behind than the preemptor's."""
    protected_ms: int = HOUR_MS
    """No attempt is stopped before it ran so long."""
    cooldown_ms: int = 8 * HOUR_MS
    """Nor a job that was preempted so recently."""
    times_per_day: int = 1
    """Nor one that was preempted so often within 24 hours; never more than 3."""
    notice_ms: int = 10 * MINUTE_MS
    """How long before it is stopped a victim is told."""
    checkpoint_ms: int = HOUR_MS
    """How often a job is taken to save its work: what it did since then is lost."""
    restart_ms: int = 10 * MINUTE_MS
    """What a start after a preemption costs each of its GPUs."""


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What a programme is entitled to beside its grants."""

    program_id: str
    weight_thousandths: int = 1000
    """What its lag counts in the order; see `ranks.weighed`."""
    reserved_thousandths: int = 0
    """While it keeps less than this part of the pool, its jobs go before everybody else's; 0: they never do."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How the core weighs history, lag, room and silence. Business milliseconds throughout."""

    half_life_ms: int = 7 * DAY_MS
    """Usage counts half after this time. It only breaks ties between equal lags."""
    lag_bound_share: float = 0.10
    """A grant is ranked as at most this share of its term behind or ahead of its pace."""
    idle_lag_share: float = 0.0
    """A grant of which no job waits falls behind by at most this share of its term, so that who sleeps until the
    end does not push the others aside."""
    floor_share: float = 0.0
    """An organization on its pace goes first while it runs less than this share of what it ran of late, or of what
    its pace needs if that is less: who wakes late does not push aside those who kept theirs. 0: nobody does."""
    floor_lag_ms: int = DAY_MS
    """On its pace is who is at most so much ahead of it."""
    hold_share: float = 1.0
    """How much of what running jobs may still use counts as spent: 1 all of their holds, 0 what they used."""
    cluster_unseen_ms: int = 60_000
    """A cluster not seen for longer receives nothing. 60 s of wall time, so scale it by the clock's speed."""
    placement_paused: bool = False
    """Whether people let nothing start anywhere."""
    walltime_step_ms: int = 60_000
    """The walltime that would fit a grant is told in whole steps, so that it does not change every cycle."""
    ranking: Ranking = Ranking.GRANT
    gang_first_gpus: int = 0
    """Inside a grant, jobs of at least so many GPUs go first; 0: by submission only."""
    larger_gangs_first: bool = False
    """Among those, whether the larger ones go first, instead of whoever was submitted first."""
    reservations: int = 0
    """How many jobs that do not fit may keep their earliest hole; 0: whatever fits may pass."""
    reservations_per_organization: int = 4
    reservation_gpus: int = 8
    """Only a job of at least so many GPUs may keep a hole."""
    promise_gpus: int = 0
    """Only a job of at least so many GPUs keeps its place while its grant is behind; others find one anew."""
    promises_per_organization: int = 100
    """So many of an organization's jobs keep theirs."""
    lane: Lane | None = None
    preemption: Preemption | None = None
    booking_lead_ms: int = 15 * MINUTE_MS
    """Others are out of booked room so long before it begins: a start may take a while, and so may an end."""
    booking_over_ms: int = 5 * MINUTE_MS
    """A job in booked room may end so long after it, if nothing is booked there next."""
    booking_unused_ms: int = 15 * MINUTE_MS
    """Booked room that nobody used so long after its begin is anybody's, unless the booking is to be held."""
    organization_pool_thousandths: int = 1000
    """An organization keeps at most this part of the pool, all GPUs of the nodes that take jobs; 1000: any."""
    organization_pool_from_gpus: int = 0
    """A smaller pool is not divided in this way."""
    entitlements: tuple[Entitlement, ...] = ()
    """Of the programmes that weigh more or less than others, or have a part of the pool reserved."""
    opportunistic_notice_ms: int = MINUTE_MS
    """How long before it is stopped an opportunistic job is told that somebody is entitled to its GPUs."""
    organization_weights: tuple[tuple[str, int], ...] = ()
    """(organization, thousandths): what its lag counts in the order; see `ranks.weighed`. Of the others 1000."""


class _Grant(TypedDict):
    lag_bound_share: float
    idle_lag_share: float
    hold_share: float


class _Easy(TypedDict):
    reservations: int
    reservations_per_organization: int
    reservation_gpus: int


_GRANT = _Grant(lag_bound_share=1.0, idle_lag_share=1.0, hold_share=0.0)
_EASY = _Easy(reservations=1, reservations_per_organization=1, reservation_gpus=1)

PRESETS: Mapping[str, Policy] = MappingProxyType(
    {
        "fifo-skip": Policy(ranking=Ranking.FIFO),
        "decay-skip": Policy(ranking=Ranking.DECAY),
        "decay-easy": Policy(ranking=Ranking.DECAY, **_EASY),
        "grant-skip": Policy(**_GRANT),
        "grant-easy": Policy(**_GRANT, **_EASY),
        "gpuhub": Policy(
            lag_bound_share=1.0,
            idle_lag_share=1.0,
            floor_share=0.6,
            hold_share=0.3,
            gang_first_gpus=32,
            reservations=8,
            promise_gpus=32,
            promises_per_organization=1,
            lane=Lane(),
            preemption=Preemption(),
        ),
    }
)
"""Policies to compare; `gpuhub` is the hub's own."""
