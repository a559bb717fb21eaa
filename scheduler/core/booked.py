"""One cycle's view of booked room: what others must leave of the nodes.

Nobody passes a booking, neither in the lane nor a gang that others stop for.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import pairwise

from scheduler.core.backfill import Horizon, Place
from scheduler.core.bookings import Laid, lay_out
from scheduler.core.fit import Shape
from scheduler.core.model import Reason, WaitReason
from scheduler.core.profile import Interval, Taken
from scheduler.core.state import Knowledge


class Booked:
    """The bookings of a cycle with their room, as the horizon shows them to everybody else."""

    def __init__(self, known: Knowledge, horizon: Horizon) -> None:
        self.laid = lay_out(known)
        self._horizon, self._now_ms, self._lead_ms = horizon, known.now_ms, known.policy.booking_lead_ms
        on_nodes = defaultdict[Place, dict[str, list[Laid]]](lambda: defaultdict(list))
        for each in self.laid:
            for node in each.room.gpus_by_node:
                on_nodes[each.place][node].append(each)
        self._on: Mapping[Place, Mapping[str, Sequence[Laid]]] = on_nodes
        for place, nodes in on_nodes.items():
            for node in nodes:
                self._show(place, node)

    def take(self, laid: Laid, node: str, gpus: int, walltime_ms: int) -> None:
        """A pick of this cycle is in this room."""
        laid.take(node, gpus, self._now_ms, self._now_ms + walltime_ms)
        self._show(laid.place, node)

    def beside(self, laid: Laid, node: str) -> list[Interval]:
        """What is whole of other bookings on one of its nodes: who is short of something waits for it."""
        others = (each for each in self._on[laid.place][node] if each is not laid)
        return [interval for each in others for interval in each.firm(node)]

    def is_booked(self, place: Place, node: str, until_ms: int) -> bool:
        """Whether room on this node is kept for a booking before then."""
        on_node = self._on.get(place, {}).get(node, ())
        return any(each.booking.from_ms - self._lead_ms < until_ms for each in on_node)

    def reason(self, shape: Shape, clusters: Container[str]) -> Reason:
        """Which booking keeps such a job out: the first to begin within its walltime. Not whose it is."""
        until_ms = self._now_ms + shape.span_ms + self._lead_ms
        first = next(
            each.booking
            for each in self.laid
            if each.room.gpus_by_node
            and each.booking.gpu_class == shape.gpu_class
            and each.room.cluster in clusters
            and each.booking.from_ms < until_ms
        )
        return Reason(
            WaitReason.BOOKED, {"gpu_class": first.gpu_class, "from_ms": first.from_ms, "gpus": first.gpus}
        )

    def _show(self, place: Place, node: str) -> None:
        on_node = self._on[place][node]
        whole = [
            (each.booking.from_ms, each.booking.until_ms, each.room.gpus_by_node[node]) for each in on_node
        ]
        own = [interval for each in on_node for interval in each.own.get(node, ())]
        self._horizon.book(place, node, ahead(whole, self._lead_ms) + own)


def ahead(intervals: Iterable[Interval], lead_ms: int) -> list[Interval]:
    """The most that is taken within the next `lead_ms`, as intervals: who leaves that is out in time.

    Where one booking follows another on the same GPUs this is less than each begun so much sooner.
    """
    taken = Taken(intervals)
    steps = list(zip(taken.levels[1:], taken.times, taken.times[1:], strict=False))
    times = sorted({*taken.times, *(at_ms - lead_ms for at_ms in taken.times)})
    found = list[Interval]()
    for at_ms, next_ms in pairwise(times):
        most = max(
            (level for level, begin, end in steps if begin <= at_ms + lead_ms and end > at_ms), default=0
        )
        if most:
            found.append((at_ms, next_ms, most))
    return found
