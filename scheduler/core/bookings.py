"""Where the room of coming bookings is, and what of it their own jobs use.

A booking keeps the nodes that it has; it moves only when a node is lost, an attempt runs into its time, or another
node has the room that it lacks. Its time is [from, until); what others must leave for it is the view of `booked.py`.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from scheduler.core.backfill import Place
from scheduler.core.fit import Shelf
from scheduler.core.model import Attempt, BookedRoom, Booking
from scheduler.core.policy import DAY_MS
from scheduler.core.profile import (
    NEVER_MS,
    OVERDUE_MS,
    Interval,
    Taken,
    earliest,
    least_free,
)
from scheduler.core.state import Knowledge

HORIZON_MS = 28 * DAY_MS
"""Bookings that begin within it, or within the walltime of a waiting job, have their room laid out."""


@dataclass(slots=True)
class Laid:
    """A booking with its room in one cycle."""

    booking: Booking
    room: BookedRoom
    used: dict[str, int] = field(default_factory=dict)
    """By node: GPUs that its own attempts have of it now."""
    later: dict[str, int] = field(default_factory=dict)
    """By node: GPUs of it that are not free all its time."""
    own: dict[str, list[Interval]] = field(default_factory=dict)
    """By node: what its own attempts take of it until when, as negative intervals."""

    @property
    def place(self) -> Place:
        return self.booking.gpu_class, self.room.cluster

    def is_open(self, now_ms: int) -> bool:
        """Whether its jobs may use it now."""
        return self.booking.from_ms <= now_ms and not self.room.released

    def take(self, node: str, gpus: int, now_ms: int, ends_ms: int) -> Interval:
        """One of its own runs has these GPUs now; returns what that takes of it."""
        interval = now_ms, min(ends_ms, self.booking.until_ms), -gpus
        self.used[node] = self.used.get(node, 0) + gpus
        self.own.setdefault(node, []).append(interval)
        return interval

    def intervals(self, node: str) -> list[Interval]:
        """What it takes of a node besides what its own attempts have."""
        gpus = self.room.gpus_by_node.get(node, 0)
        whole = (self.booking.from_ms, self.booking.until_ms, gpus)
        return [whole, *self.own.get(node, ())] if gpus else []

    def firm(self, node: str) -> list[Interval]:
        """The same, but only what is free all its time."""
        left = self.room.gpus_by_node.get(node, 0) - self.later.get(node, 0)
        found = [(self.booking.from_ms, self.booking.until_ms, left)]
        for begin_ms, end_ms, gpus in self.own.get(node, ()):
            found.append((begin_ms, end_ms, -min(-gpus, left)))
            left = max(0, left + gpus)
        return found


def lay_out(known: Knowledge) -> list[Laid]:
    """The bookings that are not over and begin within the horizon, the first to begin first.

    Brings `known.booked` up to date.
    """
    bookings = _near(known)
    layout = _Layout(known)
    own = _own_attempts(known, bookings) if bookings and bookings[0].from_ms <= known.now_ms else {}
    # who was whole stays so: a booking that is short of something takes nothing from it
    short = {id for id, room in known.booked.items() if room.short_gpus}
    laid = [_laid(known, each, own) for each in sorted(bookings, key=lambda each: each.id in short)]
    for each in laid:
        if not each.room.released:
            layout.confirm(each)
    laid.sort(key=lambda each: (each.booking.from_ms, each.booking.id))
    for each in laid:
        if not each.room.released:
            layout.complete(each)
    known.booked = {each.booking.id: each.room for each in sorted(laid, key=lambda each: each.booking.id)}
    return laid


def _near(known: Knowledge) -> list[Booking]:
    """Who has room keeps it; a job that waits must see every booking that begins within its walltime."""
    policy, now_ms = known.policy, known.now_ms
    longest_ms = max((shape.span_ms for shape in known.by_shape), default=0)
    horizon_ms = now_ms + max(HORIZON_MS, longest_ms) + policy.booking_lead_ms
    return sorted(
        (
            booking
            for booking in known.bookings.values()
            if now_ms < booking.until_ms and (booking.from_ms < horizon_ms or booking.id in known.booked)
        ),
        key=lambda booking: (booking.from_ms, booking.id),
    )


def _laid(known: Knowledge, booking: Booking, own: Mapping[str, Sequence["_Use"]]) -> Laid:
    """The booking with the room that it had, what is used of it, and whether it is anybody's by now."""
    room = known.booked.get(booking.id)
    if room is None or not _agrees(room, booking):
        room = BookedRoom(booking.id, booking.cluster or "", {})
    laid = Laid(booking, room)
    for use in own.get(booking.organization_id, ()):
        _count(laid, use, known.policy.booking_over_ms, known.now_ms)
    policy, now_ms = known.policy, known.now_ms
    used = room.used or bool(laid.used)
    late = not booking.hold and now_ms >= booking.from_ms + policy.booking_unused_ms
    if room.released or (late and not used):
        laid.room = BookedRoom(booking.id, room.cluster, {}, released=True)
    else:
        laid.room = replace(room, used=used, short_gpus=0)
    return laid


def _agrees(room: BookedRoom, booking: Booking) -> bool:
    """Whether the booking is still as it was when this room was found."""
    return booking.cluster in (None, room.cluster) and sum(room.gpus_by_node.values()) <= booking.gpus


# --- its own attempts -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Use:
    """An attempt that could be in booked room, with what of it no booking has counted yet."""

    attempt: Attempt
    gpus_by_place: dict[tuple[str, str], int]


def may_use(booking: Booking, grant_id: str, from_ms: int, walltime_ms: int, over_ms: int) -> bool:
    """Whether a run of its organization may be in its room: it begins in its time and hardly outlasts it."""
    inside = booking.from_ms <= from_ms and from_ms + walltime_ms <= booking.until_ms + over_ms
    return inside and booking.grant_id in (None, grant_id)


def _own_attempts(known: Knowledge, bookings: Sequence[Booking]) -> dict[str, list[_Use]]:
    """By organization with an open booking: the attempts that began since its first one did."""
    since: dict[str, int] = {}
    for booking in bookings:
        if booking.from_ms <= known.now_ms:
            since.setdefault(booking.organization_id, booking.from_ms)
    found = defaultdict[str, list[_Use]](list)
    first_ms = min(since.values())
    for attempt in known.attempts.all():
        if attempt.claimed_at_ms < first_ms or not attempt.capacity_held:
            continue
        job = known.jobs.get(attempt.job_id)
        if job is None or attempt.claimed_at_ms < since.get(job.organization_id, NEVER_MS):
            continue
        gpus = defaultdict[tuple[str, str], int](int)
        for pod in attempt.pods:
            gpus[pod.gpu_class, pod.node] += pod.count
        found[job.organization_id].append(_Use(attempt, gpus))
    for uses in found.values():
        uses.sort(key=lambda use: (use.attempt.claimed_at_ms, use.attempt.id))
    return found


def _count(laid: Laid, use: _Use, over_ms: int, now_ms: int) -> None:
    """Count an attempt as one in this room, as far as there is room on its nodes."""
    booking, attempt, begun_ms = laid.booking, use.attempt, use.attempt.claimed_at_ms
    walltime_ms = attempt.walltime_ms
    if walltime_ms is None:
        walltime_ms = (attempt.ends_at_ms or booking.until_ms) - begun_ms
    inside = may_use(booking, attempt.grant_id, begun_ms, walltime_ms, over_ms)
    if attempt.cluster != laid.room.cluster or not inside:
        return
    ends_ms = NEVER_MS if attempt.ends_at_ms is None else max(attempt.ends_at_ms, now_ms + OVERDUE_MS)
    for node, gpus in laid.room.gpus_by_node.items():
        key = booking.gpu_class, node
        count = min(use.gpus_by_place.get(key, 0), gpus - laid.used.get(node, 0))
        if count > 0:
            use.gpus_by_place[key] -= count
            laid.take(node, count, now_ms, ends_ms)


# --- where it is ------------------------------------------------------------------------------------


class _Layout:
    """What the bookings laid out so far take of the nodes."""

    def __init__(self, known: Knowledge) -> None:
        self._known = known
        self._kept: dict[Place, dict[str, list[Interval]]] = defaultdict(lambda: defaultdict(list))

    def confirm(self, laid: Laid) -> None:
        """Keep what is still there on the nodes that it had; where it is not, what its own attempts have."""
        parts: dict[str, int] = {}
        for node, gpus in laid.room.gpus_by_node.items():
            least = self._least(laid.booking, laid.room.cluster, node, laid.intervals(node))
            if least >= 0 and gpus % laid.booking.gpus_per_pod == 0:
                parts[node] = gpus
            elif laid.used.get(node):
                parts[node] = laid.later[node] = laid.used[node]
        laid.room = replace(laid.room, gpus_by_node=parts)
        self._keep(laid, parts)

    def complete(self, laid: Laid) -> None:
        """Find what it lacks: room that is free all its time, else the room that comes free first."""
        booking, room = laid.booking, laid.room
        missing, short = booking.gpus - sum(room.gpus_by_node.values()), sum(laid.later.values())
        laid.room = replace(room, short_gpus=missing + short)
        pods = missing // booking.gpus_per_pod
        if not pods:
            return
        best = _Found(room.cluster)
        for cluster in self._clusters(laid):
            found = self._find(booking, cluster, pods)
            if (found.pods, len(found.free)) > (best.pods, len(best.free)):
                best = found
        parts = dict(room.gpus_by_node)
        for node in (*best.free, *best.later):
            parts[node] = parts.get(node, 0) + booking.gpus_per_pod
        short += missing - len(best.free) * booking.gpus_per_pod
        for node in best.later:
            laid.later[node] = laid.later.get(node, 0) + booking.gpus_per_pod
        laid.room = replace(room, cluster=best.cluster, gpus_by_node=parts, short_gpus=short)
        self._drop(laid, room.gpus_by_node)
        self._keep(laid, parts)

    def _clusters(self, laid: Laid) -> Sequence[str]:
        if laid.room.gpus_by_node:
            return (laid.room.cluster,)
        booking = laid.booking
        known = self._known.fleet.open.get(booking.gpu_class, {})
        return (booking.cluster,) if booking.cluster is not None else sorted(known)

    def _find(self, booking: Booking, cluster: str, pods: int) -> "_Found":
        """The fullest nodes first, so that whole ones stay whole."""
        size, shelf, found = booking.gpus_per_pod, self._shelf(booking, cluster), _Found(cluster)
        if shelf is None or shelf.holding(size) == 0:
            return found
        names = sorted(shelf.nodes)
        for free, name in sorted((self._least(booking, cluster, name, ()), name) for name in names):
            found.free += [name] * min(pods - len(found.free), max(0, free) // size)
        if len(found.free) < pods:
            later = [slot for name in names for slot in self._later(booking, cluster, name, found.free)]
            found.later = [name for _, name in sorted(later)[: pods - len(found.free)]]
        return found

    def _later(
        self, booking: Booking, cluster: str, name: str, chosen: Sequence[str]
    ) -> Iterator[tuple[int, str]]:
        """(moment, node) of every pod for which the node has the GPUs, though not yet free when it begins."""
        known, size, place = self._known, booking.gpus_per_pod, (booking.gpu_class, cluster)
        node = known.fleet.node(f"{cluster}/{name}")
        assert node, f"{cluster}/{name} is on a shelf and unknown"
        capacity = node.capacities[booking.gpu_class]
        here = (booking.from_ms, booking.until_ms, chosen.count(name) * size)
        taken = Taken([*self._kept[place].get(name, ()), here])
        from_ms = max(booking.from_ms, known.now_ms)
        most = capacity.total - capacity.foreign - _peak(taken, from_ms, booking.until_ms)
        profile = known.profiles[place].nodes[name]
        for count in range(1, max(0, most) // size + 1):
            yield earliest(profile, taken, count * size, 1, from_ms, known.now_ms), name

    def _least(self, booking: Booking, cluster: str, name: str, mine: Sequence[Interval]) -> int:
        """The fewest GPUs free on a node in its time, `mine` counted as taken; -1 where there is no such node."""
        known, place = self._known, (booking.gpu_class, cluster)
        shelf, profile = self._shelf(booking, cluster), known.profiles.get(place)
        if shelf is None or profile is None or name not in shelf.nodes:
            return -1
        taken = Taken([*self._kept[place].get(name, ()), *mine])
        from_ms = max(booking.from_ms, known.now_ms)
        return least_free(profile.nodes[name], taken, from_ms, booking.until_ms, known.now_ms)

    def _shelf(self, booking: Booking, cluster: str) -> Shelf | None:
        return self._known.fleet.open.get(booking.gpu_class, {}).get(cluster)

    def _keep(self, laid: Laid, nodes: Mapping[str, int]) -> None:
        for node in nodes:
            self._kept[laid.place][node] += laid.intervals(node)

    def _drop(self, laid: Laid, parts: Mapping[str, int]) -> None:
        """Take back what `_keep` noted of these parts."""
        booking = laid.booking
        for node, gpus in parts.items():
            noted = self._kept[laid.place][node]
            for interval in ((booking.from_ms, booking.until_ms, gpus), *laid.own.get(node, ())):
                noted.remove(interval)


@dataclass(slots=True)
class _Found:
    """Nodes of one cluster, one for each pod: those that are free all the time, and those that come free."""

    cluster: str
    free: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)

    @property
    def pods(self) -> int:
        return len(self.free) + len(self.later)


def _peak(taken: Taken, from_ms: int, to_ms: int) -> int:
    """The most that is taken at any moment of [from, to)."""
    begin, end = bisect_right(taken.times, from_ms), bisect_left(taken.times, to_ms)
    return max(taken.levels[begin : end + 1])
