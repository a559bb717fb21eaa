"""Why a job that could pay for its start finds no room. One reason, the first that binds."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from scheduler.core.fit import Fleet, Shape, Shelf
from scheduler.core.model import RACK, Cluster, Reason, WaitReason
from scheduler.core.policy import Policy


@dataclass(frozen=True, slots=True)
class Reach:
    """Which clusters and classes a cycle may use, and which it may not. Sorted ids."""

    live: tuple[str, ...]
    paused: tuple[str, ...]
    unseen: tuple[str, ...]
    hub_paused: bool = False
    classes_paused: Set[str] = frozenset()

    def open_to(self, gpu_class: str) -> tuple[str, ...]:
        """The clusters in which a job of this class may start now."""
        return () if self.hub_paused or gpu_class in self.classes_paused else self.live


def reach(
    clusters: Iterable[Cluster],
    known: Iterable[str],
    classes_paused: Set[str],
    policy: Policy,
    now_ms: int,
) -> Reach:
    """Sort the clusters; one that has nodes (`known`) but was never seen itself is unseen."""
    unseen_ms = policy.cluster_unseen_ms
    seen = {cluster.id: cluster for cluster in clusters if now_ms - cluster.last_seen_ms <= unseen_ms}
    return Reach(
        live=tuple(sorted(c.id for c in seen.values() if not c.paused)),
        paused=tuple(sorted(c.id for c in seen.values() if c.paused)),
        unseen=tuple(sorted(set(known) - set(seen))),
        hub_paused=policy.placement_paused,
        classes_paused=classes_paused,
    )


def explain(shape: Shape, fleet: Fleet, reach: Reach) -> Reason:
    """Why `shape` does not fit into what the live clusters have free now, or may not."""
    if reach.hub_paused:
        return _paused("hub", "")
    if shape.gpu_class in reach.classes_paused:
        return _paused("gpu_class", shape.gpu_class)
    look = _Look(shape, fleet)
    return _out_of_reach(look, reach) or _no_room(look, reach)


class _Look:
    """The nodes as one shape sees them, cluster by cluster."""

    def __init__(self, shape: Shape, fleet: Fleet) -> None:
        self.shape = shape
        self._opened: dict[str, Shelf] = fleet.open.get(shape.gpu_class, {})
        self._shut: dict[str, Shelf] = fleet.shut.get(shape.gpu_class, {})
        self._racks = [side.get(shape.gpu_class, {}) for side in (fleet.open_racks, fleet.shut_racks)]

    def free(self, cluster: str, *, all_nodes: bool) -> int:
        """How many pods fit together on what is free."""
        size, domains = self.shape.gpus_per_pod, self._domains(cluster, all_nodes)
        return max((sum(shelf.fitting(size) for shelf in shelves) for shelves in domains), default=0)

    def has(self, clusters: Sequence[str], *, all_nodes: bool) -> str | None:
        """The first cluster with enough free."""
        return next((c for c in clusters if self.free(c, all_nodes=all_nodes) >= self.shape.pods), None)

    def could(self, clusters: Sequence[str], *, all_nodes: bool) -> str | None:
        """The first cluster that would have enough if all its nodes were empty."""
        size, pods = self.shape.gpus_per_pod, self.shape.pods
        for cluster in clusters:
            domains = self._domains(cluster, all_nodes)
            if any(sum(shelf.holding(size) for shelf in shelves) >= pods for shelves in domains):
                return cluster
        return None

    def gpus(self, clusters: Sequence[str]) -> int:
        """Free GPUs on schedulable nodes."""
        return sum(self._opened[cluster].free for cluster in clusters if cluster in self._opened)

    def _domains(self, cluster: str, all_nodes: bool) -> list[list[Shelf]]:
        """What may hold the gang, each as the shelves of its open nodes and of the others."""
        if self.shape.within == RACK:
            of_cluster = [side.get(cluster, {}) for side in self._racks[: 1 + all_nodes]]
            names = {name for racks in of_cluster for name in racks}
            return [[racks[name] for racks in of_cluster if name in racks] for name in names]
        sides = (self._opened, self._shut) if all_nodes else (self._opened,)
        return [[side[cluster] for side in sides if cluster in side]]


def _out_of_reach(look: _Look, reach: Reach) -> Reason | None:
    """The clusters or nodes that have the room but may not be used."""
    seen = (*reach.live, *reach.paused)
    # when even empty nodes in reach would be too few, what is out of reach binds, free or not
    never = look.could(reach.live, all_nodes=False) is None
    dark = look.has(reach.unseen, all_nodes=False)
    if dark is None and look.could(seen, all_nodes=True) is None:
        dark = look.could(reach.unseen, all_nodes=True)
    if dark is not None:
        return Reason(WaitReason.CLUSTER_UNSEEN, {"cluster": dark})
    held = look.has(reach.paused, all_nodes=False)
    if held is None and never:
        held = look.could(reach.paused, all_nodes=False)
    if held is not None:
        return _paused("cluster", held)
    if look.has(seen, all_nodes=True) or (never and look.could(seen, all_nodes=True)):
        gpus = look.shape.gpus_per_pod * look.shape.pods
        return Reason(WaitReason.NODES_UNAVAILABLE, {"gpu_class": look.shape.gpu_class, "gpus": gpus})
    return None


def _no_room(look: _Look, reach: Reach) -> Reason:
    """Too few are free, or they are scattered."""
    gpu_class, size, pods, *_ = look.shape
    total = look.gpus(reach.live)
    if total < size * pods:
        return Reason(WaitReason.NO_FREE_GPU, {"gpu_class": gpu_class, "needed": size * pods, "free": total})
    most = max((look.free(cluster, all_nodes=False) for cluster in reach.live), default=0)
    numbers: dict[str, int | str] = {
        "gpu_class": gpu_class,
        "gpus_per_pod": size,
        "pods": pods,
        "pods_fit": most,
    }
    if look.shape.within:
        numbers["within"] = look.shape.within
    return Reason(WaitReason.NO_NODE_FITS, numbers)


def with_others(shape: Shape, numbers: Mapping[str, int | str]) -> Mapping[str, int | str]:
    """Of a job that accepts several classes: none of so many others lets it start either."""
    return {**numbers, "other_classes": len(shape.classes) - 1} if shape.classes else numbers


def _paused(what: str, name: str) -> Reason:
    return Reason(WaitReason.PLACEMENT_PAUSED, {"what": what, "name": name})
