"""Which grant would pay for a job and when there is room for it: pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quota.schemas.quotes import GrantVerdict
from quota.schemas.scheduling import WaitReason

START_LIMIT_WALL_S = 600
"""A gang not fully running in this time is abandoned."""
CLUSTER_UNSEEN_WALL_S = 60
"""Nothing is started on a cluster that was not heard of for this long."""

Place = tuple[str, str, str | None]
"""Cluster, node, the node's rack."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a job needs; the cost is that of its whole time limit."""

    pods: int
    gpus_per_pod: int
    walltime_ms: int
    cost_gpu_us: int
    in_rack: bool = False
    """Whether one rack has to hold all pods."""

    @property
    def gpus(self) -> int:
        """Of all pods."""
        return self.pods * self.gpus_per_pod


@dataclass(frozen=True, slots=True)
class Purse:
    """A grant as one organization may draw on it."""

    grant_id: str
    starts_at_ms: int
    ends_at_ms: int
    rooms_gpu_us: tuple[int, ...]
    """What each open path has neither used nor held, in the order in which paths are drawn on."""
    unused_gpu_us: int
    """What is left when all holds have come back."""
    max_gpus: int | None
    gpus_left: int | None
    share_room_gpu_us: int | None = None
    """What the organization's share of another's grant has neither used nor held; None for its own grant."""

    @property
    def remainder_gpu_us(self) -> int:
        """The most that one hold could take."""
        return max(self.rooms_gpu_us, default=0)

    @property
    def told_gpu_us(self) -> int:
        """What the organization is told is left: a party learns of its share, not of what others left of the grant."""
        left = self.remainder_gpu_us if self.share_room_gpu_us is None else self.share_room_gpu_us
        return max(0, left)

    @property
    def told_gpus_left(self) -> int | None:
        """How far the cap is, which only the grant's own organization is told."""
        return self.gpus_left if self.share_room_gpu_us is None else None


@dataclass(frozen=True, slots=True)
class Judged:
    """A purse and what it says to a job."""

    purse: Purse
    verdict: GrantVerdict
    fitting_ms: int | None
    could_ever: bool


def judge(ask: Ask, purses: Iterable[Purse], now_ms: int) -> list[Judged]:
    """All purses in the order in which they are asked: earliest end first, then smallest remainder, then id.

    Those that have not begun come last, in the order of their starts.
    """
    running = [purse for purse in purses if purse.starts_at_ms <= now_ms]
    coming = [purse for purse in purses if purse.starts_at_ms > now_ms]
    running.sort(key=lambda purse: (purse.ends_at_ms, purse.remainder_gpu_us, purse.grant_id))
    coming.sort(key=lambda purse: (purse.starts_at_ms, purse.grant_id))
    found: list[Judged] = []
    chosen = False
    for purse in (*running, *coming):
        verdict = _verdict(ask, purse, now_ms)
        if verdict is GrantVerdict.CHOSEN and chosen:
            verdict = GrantVerdict.COULD_PAY
        chosen = chosen or verdict is GrantVerdict.CHOSEN
        fitting = None if purse.starts_at_ms > now_ms else max(0, purse.ends_at_ms - now_ms)
        found.append(Judged(purse, verdict, fitting, _could_ever(ask, purse, now_ms)))
    return found


def binding(judged: Sequence[Judged]) -> tuple[WaitReason, Judged | None] | None:
    """Why no grant pays now, as the scheduler would say it: the obstacle nearest to paying. None if one pays."""
    by = {verdict: [one for one in judged if one.verdict is verdict] for verdict in GrantVerdict}
    if by[GrantVerdict.CHOSEN]:
        return None
    if by[GrantVerdict.CAPPED]:
        return WaitReason.GRANT_CAP, by[GrantVerdict.CAPPED][0]
    short = by[GrantVerdict.SHORT] + by[GrantVerdict.NO_OPEN_PATH]
    if short:
        return WaitReason.GRANT_EXHAUSTED, max(short, key=lambda one: one.purse.remainder_gpu_us)
    if by[GrantVerdict.ENDS_FIRST]:
        return WaitReason.GRANT_ENDS_FIRST, by[GrantVerdict.ENDS_FIRST][-1]
    if by[GrantVerdict.NOT_STARTED]:
        return WaitReason.GRANT_NOT_STARTED, by[GrantVerdict.NOT_STARTED][0]
    return WaitReason.NO_GRANT, None


def start_by_ms(ask: Ask, judged: Iterable[Judged]) -> int | None:
    """The last moment at which some grant could still pay for the whole limit; None if none ever can."""
    moments = [one.purse.ends_at_ms - ask.walltime_ms for one in judged if one.could_ever]
    return max(moments, default=None)


def _verdict(ask: Ask, purse: Purse, now_ms: int) -> GrantVerdict:
    if purse.starts_at_ms > now_ms:
        return GrantVerdict.NOT_STARTED
    if now_ms + ask.walltime_ms > purse.ends_at_ms:
        return GrantVerdict.ENDS_FIRST
    if not purse.rooms_gpu_us:
        return GrantVerdict.NO_OPEN_PATH
    if purse.remainder_gpu_us < ask.cost_gpu_us:
        return GrantVerdict.SHORT
    if purse.gpus_left is not None and ask.gpus > purse.gpus_left:
        return GrantVerdict.CAPPED
    return GrantVerdict.CHOSEN


def _could_ever(ask: Ask, purse: Purse, now_ms: int) -> bool:
    in_time = max(now_ms, purse.starts_at_ms) + ask.walltime_ms <= purse.ends_at_ms
    allowed = purse.max_gpus is None or ask.gpus <= purse.max_gpus
    return in_time and allowed and ask.cost_gpu_us <= purse.unused_gpu_us


# --- room -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Occupied:
    """GPUs of one open attempt on one node, and when it must have given them back; None: nobody knows."""

    place: Place
    gpus: int
    until_ms: int | None


@dataclass(frozen=True, slots=True)
class Times:
    """What bounds an open attempt's end, in business milliseconds."""

    claimed_ms: int
    last_started_ms: int | None
    walltime_ms: int
    grace_ms: int
    stop_ends_ms: int | None
    ended: bool
    """Its end is recorded and it keeps its GPUs all the same: it was lost from sight."""

    def until_ms(self, start_limit_ms: int, now_ms: int) -> int | None:
        """When its pods are gone at the latest; None if that is not known, or should have been before now."""
        if self.ended:
            return None
        started = self.claimed_ms + start_limit_ms if self.last_started_ms is None else self.last_started_ms
        limits = [started + self.walltime_ms + self.grace_ms]
        if self.stop_ends_ms is not None:
            limits.append(self.stop_ends_ms)
        return min(limits) if min(limits) >= now_ms else None


def room_at_ms(ask: Ask, free: Mapping[Place, int], occupied: Iterable[Occupied], now_ms: int) -> int | None:
    """The first moment at which a cluster, or rack, has room for all pods if nothing else starts; None: not in sight.

    `free` are the GPUs of nodes that take jobs; what is occupied on other nodes frees no room.
    """
    if ask.in_rack:
        free = {place: gpus for place, gpus in free.items() if place[2] is not None}
    spare = dict(free)  # below zero where a node lost GPUs that are in use
    fitting: dict[tuple[str, str | None], int] = defaultdict(int)
    for (cluster, _, rack), gpus in spare.items():
        fitting[cluster, rack if ask.in_rack else None] += max(0, gpus) // ask.gpus_per_pod
    if max(fitting.values(), default=0) >= ask.pods:
        return now_ms
    ends = [one for one in occupied if one.until_ms is not None and one.place in free]
    for one in sorted(ends, key=lambda one: one.until_ms or 0):
        domain, before = (one.place[0], one.place[2] if ask.in_rack else None), spare[one.place]
        spare[one.place] = after = before + one.gpus
        fitting[domain] += max(0, after) // ask.gpus_per_pod - max(0, before) // ask.gpus_per_pod
        if fitting[domain] >= ask.pods:
            return one.until_ms
    return None


def size_band(gpus: int) -> tuple[int, int]:
    """The band of job sizes that are compared: 1, 2, 3 to 4, 5 to 8, 9 to 16, … GPUs."""
    top = 1 << (gpus - 1).bit_length()
    return top // 2 + 1 if top > 1 else 1, top
