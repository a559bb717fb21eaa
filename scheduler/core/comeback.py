"""By when running attempts have made room for a shape, beside what is promised to others. For the reasons."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from scheduler.core.backfill import Horizon, Place
from scheduler.core.fit import LONGEST_MS, Fleet, Shape
from scheduler.core.profile import NEVER_MS, NodeProfile, Profile, Taken, earliest

Moment = tuple[int, str]
"""(when at the latest, the attempt that ends then; "" where it is the end of what was promised)"""


@dataclass(frozen=True, slots=True)
class _Ground:
    """What pods of one size find in one cluster, whatever their walltime."""

    profile: Profile
    usual: Sequence[tuple[int, str]]
    """(moment, node) of the first pods on nodes of which nothing is promised."""
    latest_ms: int
    """By then all of them are there, if they alone are enough."""
    near: Sequence[tuple[str, NodeProfile, Taken, int]]
    """Nodes of which something is promised and that could have room before, and for how many pods by then."""


class Comeback:
    """A cycle's answers, once nothing more is picked or promised in it."""

    def __init__(self, horizon: Horizon, fleet: Fleet) -> None:
        self._horizon, self._fleet = horizon, fleet
        self._grounds: dict[tuple[Place, int, int], _Ground | None] = {}

    def depends_on_span(self, shape: Shape, clusters: Collection[str]) -> bool:
        """Whether jobs that run longer are told another moment: later or the same, so the two ends of it say that."""
        grounds = [self._ground(shape, cluster) for cluster in clusters]
        if not any(ground.near for ground in grounds if ground):
            return False
        longest = shape._replace(span_ms=LONGEST_MS)
        return self.room_back(shape._replace(span_ms=0), clusters) != self.room_back(longest, clusters)

    def room_back(self, shape: Shape, clusters: Iterable[str]) -> Moment | None:
        """When enough is free in one cluster for the shape's span, reservations and bookings counted.

        What this cycle gave away is taken to be gone for good. A moment may lie in the past, when an attempt has not
        ended in time. None: not in sight, or there is room now.
        """
        found = [
            _room_back(ground, shape, self._horizon.now_ms)
            for cluster in clusters
            if (ground := self._ground(shape, cluster)) is not None
        ]
        return min((each for each in found if each), default=None)

    def _ground(self, shape: Shape, cluster: str) -> _Ground | None:
        place = shape.gpu_class, cluster
        key = place, shape.gpus_per_pod, shape.pods
        if key not in self._grounds:
            self._grounds[key] = self._look(place, shape.gpus_per_pod, shape.pods)
        return self._grounds[key]

    def _look(self, place: Place, size: int, pods: int) -> _Ground | None:
        gpu_class, cluster = place
        shelf = self._fleet.open.get(gpu_class, {}).get(cluster)
        profile = self._horizon.profile(place)
        if shelf is None or profile is None or shelf.holding(size) < pods:
            return None
        promised = self._horizon.promised(place)
        usual: list[tuple[int, str]] = []
        for slot in profile.slots(size, shelf.nodes):
            if len(usual) == pods:
                break
            if slot[1] not in promised:
                usual.append(slot)
        latest_ms = usual[-1][0] if len(usual) == pods else NEVER_MS - 1
        near = []
        for name, taken in promised.items():
            node = profile.nodes.get(
                name
            )  # none of a node that is gone, of which something may still be promised
            if node and name in shelf.nodes and node.when(size, 0) <= latest_ms:
                count = next((n for n in range(1, pods) if node.when((n + 1) * size, 0) > latest_ms), pods)
                near.append((name, node, taken, count))
        return _Ground(profile, usual, latest_ms, near)


def _room_back(ground: _Ground, shape: Shape, now_ms: int) -> Moment | None:
    pods, at_ms = shape.pods, now_ms
    while True:
        found = list(ground.usual)
        for name, node, taken, count in ground.near:
            found += _pods_on(name, node, taken, count, shape, at_ms, ground.latest_ms, now_ms)
        found.sort()
        if len(found) < pods or not found[pods - 1][0]:
            return None
        then_ms = found[pods - 1][0]
        if then_ms <= at_ms:
            break
        if not ground.near:
            at_ms = then_ms
            break
        # what is promised from a moment on may have been free until then
        at_ms = then_ms
    moment_ms = then_ms if at_ms == now_ms else at_ms
    # pods that fit at the end of all may have been there before: one of these nodes knows whose end it is
    ending = [ground.profile.nodes[name].ending_at(moment_ms) for _, name in found[:pods]]
    return moment_ms, min((attempt for attempt in ending if attempt), default="")


def _pods_on(
    name: str,
    node: NodeProfile,
    taken: Taken,
    most: int,
    shape: Shape,
    from_ms: int,
    latest_ms: int,
    now_ms: int,
) -> Iterable[tuple[int, str]]:
    """(moment, node) of every pod that fits on a node of which something is promised, from a moment on."""
    for count in range(1, most + 1):
        gpus = count * shape.gpus_per_pod
        # by the clock of the walltimes: who is late has ended, so that no moment moves with the clock
        at_ms = earliest(node, taken, gpus, shape.span_ms, from_ms, 0)
        if at_ms > latest_ms and at_ms > now_ms:
            return
        yield (node.when(gpus + taken.at(now_ms), 0) if at_ms <= now_ms else at_ms), name
