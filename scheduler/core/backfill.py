"""Room kept for jobs that do not fit yet, and what may start beside it without delaying it.

Conservative backfill with few reservations: facts/scheduling.md 2.6 and 2.9. A reservation moves to an earlier
moment when it can without touching another one, and to a later moment only when it must: the lane took its room,
a node was lost, or an attempt did not end in time.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scheduler.core.fit import Fleet, Shape, Shelf
from scheduler.core.model import RACK, Reservation
from scheduler.core.profile import (
    NEVER_MS,
    OVERDUE_MS,
    Interval,
    NodeProfile,
    Profile,
    Taken,
    earliest,
    least_free,
)

Place = tuple[str, str]
"""(GPU class, cluster)"""


@dataclass(frozen=True, slots=True)
class Hole:
    """Where and from when on a job has room for all its walltime."""

    starts_at_ms: int
    gpu_class: str
    cluster: str
    gpus_by_node: Mapping[str, int]


class Horizon:
    """One cycle's view of what is free when: profiles, reservations and this cycle's picks."""

    def __init__(self, profiles: Mapping[Place, Profile], fleet: Fleet, now_ms: int) -> None:
        self._profiles, self._fleet, self.now_ms = profiles, fleet, now_ms
        self.seats: dict[str, tuple[Reservation, int]] = {}  # job: (reservation, walltime_ms)
        self._picks: dict[Place, dict[str, list[Interval]]] = defaultdict(lambda: defaultdict(list))
        self._seated: dict[Place, dict[str, list[Interval]]] = defaultdict(lambda: defaultdict(list))
        self._taken: dict[Place, dict[str, Taken]] = defaultdict(dict)  # as steps, made when asked for
        self._screens: dict[Place, Screen] = {}
        self._booked: dict[Place, dict[str, list[Interval]]] = {}
        self._beside: dict[Place, dict[str, Taken]] = defaultdict(dict)  # without reservations
        self._promised: dict[Place, dict[str, Taken]] = {}
        self._bounds: dict[Place, Screen] = {}  # what bookings leave, whatever is reserved

    @property
    def is_booked(self) -> bool:
        """Whether room is kept for bookings."""
        return bool(self._booked)

    def book(self, place: Place, node: str, intervals: list[Interval]) -> None:
        """Leave so much of a node for bookings, instead of what was said before."""
        self._booked.setdefault(place, {})[node] = intervals
        self._changed(place, (node,))
        self._screens.pop(place, None)
        self._bounds.pop(place, None)

    def picked(self, place: Place, node: str) -> Sequence[Interval]:
        """What picks of this cycle take of a node."""
        return self._picks[place].get(node, ())

    def sit(self, reservation: Reservation, walltime_ms: int) -> None:
        """Keep this room."""
        self.seats[reservation.job_id] = reservation, walltime_ms
        self._seat(reservation, walltime_ms, 1)

    def rise(self, job_id: str) -> Reservation | None:
        """Keep it no longer."""
        found = self.seats.pop(job_id, None)
        if found is None:
            return None
        self._seat(*found, -1)
        return found[0]

    def pick(self, gpu_class: str, cluster: str, gpus_by_node: Mapping[str, int], walltime_ms: int) -> None:
        """This cycle gave GPUs away, from now for so long."""
        place = gpu_class, cluster
        for node, gpus in gpus_by_node.items():
            self._picks[place][node].append((self.now_ms, self.now_ms + walltime_ms, gpus))
        self._changed(place, gpus_by_node)
        for screens in (self._screens, self._bounds):
            screen = screens.get(place)
            if screen:
                screen.look_again(gpus_by_node)

    def give_back(
        self, gpu_class: str, cluster: str, gpus_by_node: Mapping[str, int], walltime_ms: int
    ) -> None:
        """Undo a pick."""
        place = gpu_class, cluster
        for node, gpus in gpus_by_node.items():
            self._picks[place][node].remove((self.now_ms, self.now_ms + walltime_ms, gpus))
        self._changed(place, gpus_by_node)
        self._screens.pop(place, None)
        self._bounds.pop(place, None)

    def profile(self, place: Place) -> Profile | None:
        """What is known of the nodes of one class in one cluster."""
        return self._profiles.get(place)

    def promised(self, place: Place) -> Mapping[str, Taken]:
        """By node of which something is: reservations, bookings, and for good what this cycle gave away."""
        found = self._promised.get(place)
        if found is None:
            by_node: dict[str, list[Interval]] = defaultdict(list)
            for node, intervals in self._picks[place].items():
                by_node[node] += [(begin, NEVER_MS, gpus) for begin, _, gpus in intervals]
            for more in (self._seated[place], self._booked.get(place, {})):
                for node, intervals in more.items():
                    by_node[node] += intervals
            found = {node: Taken(intervals) for node, intervals in by_node.items() if intervals}
            self._promised[place] = found
        return found

    def taken(self, place: Place, node: str) -> Taken:
        """What picks, reservations and bookings take of a node."""
        found = self._taken[place].get(node)
        if found is None:
            booked = self._booked.get(place, {}).get(node, ()) if self._booked else ()
            found = Taken((*self._picks[place].get(node, ()), *self._seated[place].get(node, ()), *booked))
            self._taken[place][node] = found
        return found

    def close(self) -> None:
        """The cycle is over. Screens know their horizon: without this they would be garbage for the collector."""
        self._screens.clear()
        self._bounds.clear()

    def hole(self, shape: Shape, walltime_ms: int, clusters: Iterable[str]) -> Hole | None:
        """The earliest room for all pods at once, in the first cluster that has it; None if it never comes."""
        best: Hole | None = None
        for cluster in clusters:
            shelf = self._fleet.open.get(shape.gpu_class, {}).get(cluster)
            profile = self._profiles.get((shape.gpu_class, cluster))
            if shelf is None or profile is None:
                continue
            for _, domain in self._fleet.domains(shape, (cluster,)):
                found = self._hole_in(cluster, shelf, domain, profile, shape, walltime_ms)
                if found and (best is None or found.starts_at_ms < best.starts_at_ms):
                    best = found
        return best

    def holds(self, reservation: Reservation, walltime_ms: int) -> bool:
        """Whether this room is still there at its time, all other seats in place."""
        place = reservation.gpu_class, reservation.cluster
        profile = self._profiles.get(place)
        shelf = self._fleet.open.get(reservation.gpu_class, {}).get(reservation.cluster)
        if profile is None or shelf is None or reservation.starts_at_ms < self.now_ms:
            return False
        starts_ms = reservation.starts_at_ms
        for node, gpus in reservation.gpus_by_node.items():
            known = profile.nodes.get(node)
            if known is None or node not in shelf.nodes:
                return False
            ends_ms = starts_ms + walltime_ms
            if least_free(known, self.taken(place, node), starts_ms, ends_ms, self.now_ms) < gpus:
                return False
        return True

    def screen(self, gpu_class: str, cluster: str) -> "Screen | None":
        """What reservations and bookings leave there; None while there are none."""
        place = gpu_class, cluster
        if place not in self._screens:
            seats = [seat for seat, _ in self.seats.values() if (seat.gpu_class, seat.cluster) == place]
            shelf = self._fleet.open.get(gpu_class, {}).get(cluster)
            if shelf is None or not (seats or place in self._booked):
                return None
            self._screens[place] = self._screen(place, shelf, seats, self.taken)
        return self._screens[place]

    def bound(self, gpu_class: str, cluster: str) -> "Screen | None":
        """What bookings leave there, whatever is reserved; None while there are none."""
        place = gpu_class, cluster
        shelf = self._fleet.open.get(gpu_class, {}).get(cluster)
        if place not in self._booked or shelf is None:
            return None
        if place not in self._bounds:
            self._bounds[place] = self._screen(place, shelf, (), self._taken_beside)
        return self._bounds[place]

    def bounds(self, shape: Shape, clusters: Iterable[str]) -> dict[str, Mapping[str, int]]:
        """By cluster: what bookings leave at most to a job of this span, of nodes where that is less than is free."""
        found: dict[str, Mapping[str, int]] = {}
        for cluster in clusters:
            bound = self.bound(shape.gpu_class, cluster)
            if bound:
                nodes = self._fleet.open[shape.gpu_class][cluster].nodes
                least = bound.least(shape.span_ms)
                found[cluster] = {name: gpus for name, gpus in least.items() if gpus < nodes[name][0]}
        return found

    def leaves_room(self, shape: Shape, clusters: Iterable[str]) -> bool:
        """Whether it fits now in one cluster beside what is booked within its span, reservations aside."""
        return self._allows(shape, clusters, self.bound)

    def allows(self, shape: Shape, clusters: Iterable[str]) -> bool:
        """Whether it may start now and run its whole walltime without delaying a reservation."""
        return self._allows(shape, clusters, self.screen)

    def limits(self, shape: Shape, clusters: Iterable[str]) -> dict[str, Mapping[str, int]]:
        """By cluster: what a job of this span may use at most of nodes on which room is kept."""
        found = {}
        for cluster in clusters:
            screen = self.screen(shape.gpu_class, cluster)
            if screen:
                found[cluster] = screen.least(shape.span_ms)
        return found

    def in_the_way(self, shape: Shape) -> str:
        """The job whose reservation keeps such a job out: the first to start within its span."""
        until_ms = self.now_ms + shape.span_ms
        seats = [seat for seat, _ in self.seats.values() if seat.gpu_class == shape.gpu_class]
        near = [seat for seat in seats if seat.starts_at_ms < until_ms and seat.job_id != shape.kept_for]
        return min(near or seats, key=lambda seat: (seat.starts_at_ms, seat.made_at_ms, seat.number)).job_id

    def _allows(
        self, shape: Shape, clusters: Iterable[str], screen_of: Callable[[str, str], "Screen | None"]
    ) -> bool:
        """Whether it fits now in one cluster (or rack) on what these screens leave."""
        for cluster, shelf in self._fleet.domains(shape, clusters):
            fitting = shelf.fitting(shape.gpus_per_pod)
            if fitting < shape.pods:
                continue
            screen = screen_of(shape.gpu_class, cluster)
            if screen is None:
                return True
            within = shelf.nodes if shape.within == RACK else None
            if fitting - screen.lost(shape.gpus_per_pod, shape.span_ms, within) >= shape.pods:
                return True
        return False

    def _hole_in(
        self,
        cluster: str,
        shelf: Shelf,
        domain: Shelf,
        profile: Profile,
        shape: Shape,
        walltime_ms: int,
    ) -> Hole | None:
        """On the nodes of `domain`: all those of the cluster (`shelf`), or of one rack."""
        size, now_ms = shape.gpus_per_pod, self.now_ms
        if domain.holding(size) < shape.pods:
            return None
        place = shape.gpu_class, cluster
        taken = {
            node
            for by_node in (self._picks[place], self._seated[place], self._booked.get(place, {}))
            for node, intervals in by_node.items()
            if intervals
        }
        usual: Sequence[tuple[int, str]] = ()
        if not profile.nodes.keys() <= taken:
            slots = profile.slots(size, shelf.nodes)
            usual = [slot for slot in slots if slot[1] not in taken] if taken else slots
            if domain is not shelf:
                usual = [slot for slot in usual if slot[1] in domain.nodes]
        special = [
            (name, profile.nodes[name], self.taken(place, name))
            for name in sorted(taken)
            if name in domain.nodes
        ]
        at_ms = now_ms
        while True:
            found = _first(usual, shape.pods, now_ms)
            found += _special(special, shape, walltime_ms, at_ms, now_ms)
            found.sort()
            if len(found) < shape.pods:
                return None
            then_ms = max(at_ms, found[shape.pods - 1][0])
            if then_ms == NEVER_MS:
                return None
            if then_ms == at_ms:
                break
            at_ms = then_ms
        gpus_by_node: dict[str, int] = {}
        for _, name in found[: shape.pods]:
            gpus_by_node[name] = gpus_by_node.get(name, 0) + size
        return Hole(at_ms, shape.gpu_class, cluster, gpus_by_node)

    def _seat(self, reservation: Reservation, walltime_ms: int, sign: int) -> None:
        place = reservation.gpu_class, reservation.cluster
        begin_ms, on_nodes = reservation.starts_at_ms, self._seated[place]
        for node, gpus in reservation.gpus_by_node.items():
            interval = begin_ms, begin_ms + walltime_ms, gpus
            if sign > 0:
                on_nodes[node].append(interval)
            else:
                on_nodes[node].remove(interval)
            self._taken[place].pop(node, None)
        self._screens.pop(place, None)
        self._promised.pop(place, None)

    def _taken_beside(self, place: Place, node: str) -> Taken:
        """What picks and bookings take of a node."""
        found = self._beside[place].get(node)
        if found is None:
            found = Taken((*self._picks[place].get(node, ()), *self._booked[place].get(node, ())))
            self._beside[place][node] = found
        return found

    def _changed(self, place: Place, nodes: Iterable[str]) -> None:
        self._promised.pop(place, None)
        for node in nodes:
            self._taken[place].pop(node, None)
            if self._booked:
                self._beside[place].pop(node, None)

    def _screen(
        self,
        place: Place,
        shelf: Shelf,
        seats: Sequence[Reservation],
        taken: Callable[[Place, str], Taken],
    ) -> "Screen":
        booked = self._booked.get(place, {})
        starts = {seat.starts_at_ms for seat in seats}
        starts.update(begin for each in booked.values() for begin, _, gpus in each if gpus > 0)
        nodes = {node for seat in seats for node in seat.gpus_by_node}.union(booked)
        return Screen(self.now_ms, place, shelf, self._profiles[place], sorted(starts), nodes, taken)


class Screen:
    """For the nodes of one class in one cluster on which room is kept: what is left of them, by span of time.

    `starts`: the moments at which more of it is kept than before. `taken`: all that is, node by node.
    """

    def __init__(
        self,
        now_ms: int,
        place: Place,
        shelf: Shelf,
        profile: Profile,
        starts: Sequence[int],
        nodes: Iterable[str],
        taken: Callable[[Place, str], Taken],
    ) -> None:
        self._taken, self._place, self._shelf, self._profile = taken, place, shelf, profile
        self._now_ms, self._starts = now_ms, starts
        self._nodes = sorted(node for node in nodes if node in shelf.nodes)
        self._least: dict[int, dict[str, int]] = {}  # by number of starts within the span
        self._lost: dict[tuple[int, int], int] = {}  # (pod size, that number): pods that do not fit

    def least(self, span_ms: int) -> Mapping[str, int]:
        """What stays free on each node for so long, reservations counted."""
        return self._least_in(self._begun(span_ms))

    def lost(self, size: int, span_ms: int, within: Container[str] | None = None) -> int:
        """How many pods of this size less than the free GPUs say can run for so long, on these nodes or on all."""
        begun = self._begun(span_ms)
        if within is not None:
            return self._lost_on(size, [name for name in self._nodes if name in within], begun)
        found = self._lost.get((size, begun))
        if found is None:
            found = self._lost[size, begun] = self._lost_on(size, self._nodes, begun)
        return found

    def _lost_on(self, size: int, names: Iterable[str], begun: int) -> int:
        nodes, least = self._shelf.nodes, self._least_in(begun)
        return sum(nodes[n][0] // size - min(nodes[n][0], least[n]) // size for n in names)

    def look_again(self, nodes: Iterable[str]) -> None:
        """The room on these nodes changed."""
        changed = [node for node in nodes if node in self._nodes]
        if changed:
            self._lost.clear()
            for begun, least in self._least.items():
                for name in changed:
                    least[name] = self._through(name, begun)

    def _begun(self, span_ms: int) -> int:
        return bisect_left(self._starts, self._now_ms + span_ms)

    def _least_in(self, begun: int) -> dict[str, int]:
        least = self._least.get(begun)
        if least is None:
            least = self._least[begun] = {name: self._through(name, begun) for name in self._nodes}
        return least

    def _through(self, name: str, begun: int) -> int:
        if begun == 0:
            return self._shelf.nodes[name][0]
        until_ms = self._starts[begun - 1] + 1
        taken = self._taken(self._place, name)
        return max(0, least_free(self._profile.nodes[name], taken, self._now_ms, until_ms, self._now_ms))


def moved(reservation: Reservation, hole: Hole) -> Reservation:
    """The same promise, elsewhere."""
    return replace(
        reservation,
        gpu_class=hole.gpu_class,
        cluster=hole.cluster,
        starts_at_ms=hole.starts_at_ms,
        gpus_by_node=hole.gpus_by_node,
    )


def _first(slots: Sequence[tuple[int, str]], pods: int, now_ms: int) -> list[tuple[int, str]]:
    """The first so many, none before now; what should have ended by now ends soon."""
    soon_ms = now_ms + OVERDUE_MS
    first = [(now_ms if at == 0 else at if at > now_ms else soon_ms, name) for at, name in slots[:pods]]
    if first and slots[len(first) - 1][0] < soon_ms and len(slots) > pods:
        # overdue ones are later than they stand in the list
        first = [(now_ms if at == 0 else at if at > now_ms else soon_ms, name) for at, name in slots]
        first.sort()
    return first[:pods]


def _special(
    nodes: Iterable[tuple[str, NodeProfile, Taken]], shape: Shape, span_ms: int, from_ms: int, now_ms: int
) -> list[tuple[int, str]]:
    """(moment, node) of every pod that will fit on nodes of which something is taken."""
    found = []
    for name, node, taken in nodes:
        for count in range(1, shape.pods + 1):
            at_ms = earliest(node, taken, count * shape.gpus_per_pod, span_ms, from_ms, now_ms)
            if at_ms == NEVER_MS:
                break
            found.append((at_ms, name))
    return found
