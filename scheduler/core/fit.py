"""Which nodes have room: a table that answers "how many pods of g GPUs fit" without looking at nodes."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from scheduler.core.model import RACK, Node

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
SPANS_MS = (
    *(minutes * MINUTE_MS for minutes in (5, 15, 30)),
    *(hours * HOUR_MS for hours in (1, 2, 3, 4, 6, 8, 12, 16, 24, 36, 48, 72, 96, 120, 168)),
)
"""Jobs are told apart by walltime in these steps only, so that few kinds of them are many jobs."""
LONGEST_MS = 10 * 365 * 24 * HOUR_MS


def span_of(walltime_ms: int) -> int:
    """The walltime, rounded up to a step: who starts by it delays no reservation."""
    at = bisect_left(SPANS_MS, walltime_ms)
    return SPANS_MS[at] if at < len(SPANS_MS) else LONGEST_MS


class Shape(NamedTuple):
    """What a job needs of the nodes; jobs of equal shape fit or fail together."""

    gpu_class: str
    gpus_per_pod: int
    pods: int
    kept_for: str = ""
    """The job's own id when room is kept for it: it alone may use that room."""
    within: str = ""
    """RACK when one rack has to hold all pods; NODE when one node has, which then count as one pod."""
    span_ms: int = 0
    """Its walltime, rounded up to one of `SPANS_MS`: how long it must not be in the way of a reservation."""
    classes: tuple[str, ...] = ()
    """All that the job accepts, in order of preference, if there are several: it has a shape for each."""

    @property
    def gpus(self) -> int:
        """How many it takes in all."""
        return self.gpus_per_pod * self.pods


FitKey = tuple[str, int, int, str, str]
"""The first five fields of a shape: who differs only in the rest fits or fails together, reservations aside."""


class Shelf:
    """The nodes of one cluster that offer one GPU class, sorted by what is free on them."""

    __slots__ = ("_fitting", "free", "nodes", "rows", "sizes")

    def __init__(self) -> None:
        self.nodes: dict[str, tuple[int, int]] = {}  # name: (free, total)
        self.rows: dict[tuple[bool, int], list[str]] = {}  # (empty, free): names in order
        self.sizes: dict[int, int] = {}  # total: number of nodes
        self.free = 0
        self._fitting: dict[int, int] = {}  # kept up to date for every size once asked

    def put(self, name: str, free: int, total: int) -> None:
        """Add a node or change it."""
        self.drop(name)
        self._enter(name, free, total)
        self.sizes[total] = self.sizes.get(total, 0) + 1

    def drop(self, name: str) -> None:
        """Forget a node; an unknown one is no matter."""
        if name not in self.nodes:
            return
        _, total = self._leave(name)
        self.sizes[total] -= 1

    def shift(self, name: str, gpus: int) -> None:
        """Give back (positive) or take (negative) GPUs of one node."""
        free, total = self._leave(name)
        assert 0 <= free + gpus <= total, f"{name}: {free} free of {total}, change {gpus}"
        self._enter(name, free + gpus, total)

    def fitting(self, gpus_per_pod: int) -> int:
        """How many pods of this size fit on what is free now."""
        count = self._fitting.get(gpus_per_pod)
        if count is None:
            count = sum(len(names) * (free // gpus_per_pod) for (_, free), names in self.rows.items())
            self._fitting[gpus_per_pod] = count
        return count

    def holding(self, gpus_per_pod: int) -> int:
        """How many pods of this size would fit if every node were empty."""
        return sum(count * (total // gpus_per_pod) for total, count in self.sizes.items())

    def _enter(self, name: str, free: int, total: int) -> None:
        self.nodes[name] = (free, total)
        insort(self.rows.setdefault((free == total, free), []), name)
        self.free += free
        for size in self._fitting:
            self._fitting[size] += free // size

    def _leave(self, name: str) -> tuple[int, int]:
        free, total = self.nodes.pop(name)
        row = self.rows[free == total, free]
        del row[bisect_left(row, name)]
        if not row:
            del self.rows[free == total, free]
        self.free -= free
        for size in self._fitting:
            self._fitting[size] -= free // size
        return free, total


Racks = dict[str, dict[str, dict[str, Shelf]]]
"""By class, cluster and rack."""


class Fleet:
    """All nodes, by class and cluster; what a cycle takes is journalled and given back by `rollback`."""

    __slots__ = ("_journal", "_nodes", "open", "open_racks", "shut", "shut_racks")

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._journal: list[tuple[Shelf, str, int]] = []
        self.open: dict[str, dict[str, Shelf]] = {}  # class: cluster: schedulable nodes
        self.shut: dict[str, dict[str, Shelf]] = {}  # class: cluster: the others
        self.open_racks: Racks = {}  # the same nodes once more, as far as their racks are known
        self.shut_racks: Racks = {}

    def put(self, node: Node) -> None:
        """Add a node or change it."""
        self.drop(node.id)
        self._nodes[node.id] = node
        side, racks = (self.open, self.open_racks) if node.schedulable else (self.shut, self.shut_racks)
        for gpu_class, capacity in node.capacities.items():
            free = max(0, capacity.total - capacity.foreign - capacity.used)
            shelf = side.setdefault(gpu_class, {}).setdefault(node.cluster, Shelf())
            shelf.put(node.node, free, capacity.total)
            if node.rack:
                of_cluster = racks.setdefault(gpu_class, {}).setdefault(node.cluster, {})
                of_cluster.setdefault(node.rack, Shelf()).put(node.node, free, capacity.total)

    def drop(self, node_id: str) -> None:
        """Forget a node; an unknown one is no matter."""
        node = self._nodes.pop(node_id, None)
        if node is None:
            return
        side, racks = (self.open, self.open_racks) if node.schedulable else (self.shut, self.shut_racks)
        for gpu_class in node.capacities:
            side[gpu_class][node.cluster].drop(node.node)
            if node.rack:
                racks[gpu_class][node.cluster][node.rack].drop(node.node)

    def node(self, node_id: str) -> Node | None:
        """A node as it was put."""
        return self._nodes.get(node_id)

    def shelves(self, gpu_class: str, clusters: Iterable[str]) -> dict[str, Shelf]:
        """The schedulable nodes of a class in these clusters."""
        by_cluster = self.open.get(gpu_class, {})
        return {cluster: by_cluster[cluster] for cluster in clusters if cluster in by_cluster}

    def domains(self, shape: Shape, clusters: Iterable[str]) -> list[tuple[str, Shelf]]:
        """Of each of these clusters what may hold the gang: all its schedulable nodes, or rack by rack."""
        if shape.within != RACK:
            return list(self.shelves(shape.gpu_class, clusters).items())
        by_cluster = self.open_racks.get(shape.gpu_class, {})
        return [(c, shelf) for c in clusters for _, shelf in sorted(by_cluster.get(c, {}).items(), key=_name)]

    def fits(self, shape: Shape, clusters: Iterable[str]) -> bool:
        """Whether all pods fit together in one of these clusters."""
        if shape.within == RACK:
            racks = self.domains(shape, clusters)
            return any(shelf.fitting(shape.gpus_per_pod) >= shape.pods for _, shelf in racks)
        by_cluster = self.open.get(shape.gpu_class, {})
        return any(
            by_cluster[cluster].fitting(shape.gpus_per_pod) >= shape.pods
            for cluster in clusters
            if cluster in by_cluster
        )

    def take(self, gpu_class: str, cluster: str, gpus_by_node: Mapping[str, int], sign: int = 1) -> None:
        """Take room until `rollback`; sign -1 gives it back."""
        shelf = self.open[gpu_class][cluster]
        for name, gpus in gpus_by_node.items():
            shelf.shift(name, -sign * gpus)
            self._journal.append((shelf, name, sign * gpus))
            if self.open_racks and (rack := self._nodes[f"{cluster}/{name}"].rack):
                shelf_of_rack = self.open_racks[gpu_class][cluster][rack]
                shelf_of_rack.shift(name, -sign * gpus)
                self._journal.append((shelf_of_rack, name, sign * gpus))

    def rollback(self) -> None:
        """Undo everything taken."""
        while self._journal:
            shelf, name, gpus = self._journal.pop()
            shelf.shift(name, gpus)


def _name(rack: tuple[str, Shelf]) -> str:
    return rack[0]
