"""Why a job that could pay for its start finds no room. One reason, the first that binds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler.core.fit import Fleet, Shape
from scheduler.core.model import Cluster, Reason, WaitReason


@dataclass(frozen=True, slots=True)
class Reach:
    """Which clusters a cycle may use, and which it may not. Sorted ids."""

    live: tuple[str, ...]
    paused: tuple[str, ...]
    unseen: tuple[str, ...]


def reach(clusters: Iterable[Cluster], known: Iterable[str], unseen_ms: int, now_ms: int) -> Reach:
    """Sort the clusters; one that has nodes (`known`) but was never seen itself is unseen."""
    seen = {cluster.id: cluster for cluster in clusters if now_ms - cluster.last_seen_ms <= unseen_ms}
    return Reach(
        live=tuple(sorted(c.id for c in seen.values() if not c.paused)),
        paused=tuple(sorted(c.id for c in seen.values() if c.paused)),
        unseen=tuple(sorted(set(known) - set(seen))),
    )


def explain(shape: Shape, fleet: Fleet, reach: Reach) -> Reason:
    """Why `shape` does not fit into what the live clusters have free now."""
    size, pods = shape.gpus_per_pod, shape.pods
    opened, shut = fleet.open.get(shape.gpu_class, {}), fleet.shut.get(shape.gpu_class, {})

    def free(cluster: str, *, all_nodes: bool) -> int:
        sides = (opened, shut) if all_nodes else (opened,)
        return sum(side[cluster].fitting(size) for side in sides if cluster in side)

    def could(clusters: Sequence[str], *, all_nodes: bool) -> str | None:
        sides = (opened, shut) if all_nodes else (opened,)
        for cluster in clusters:
            if sum(side[cluster].holding(size) for side in sides if cluster in side) >= pods:
                return cluster
        return None

    # when even empty nodes in reach would be too few, what is out of reach binds, free or not
    never = could(reach.live, all_nodes=False) is None
    dark = next((c for c in reach.unseen if free(c, all_nodes=False) >= pods), None)
    if dark is None and could((*reach.live, *reach.paused), all_nodes=True) is None:
        dark = could(reach.unseen, all_nodes=True)
    if dark is not None:
        return Reason(WaitReason.CLUSTER_UNSEEN, {"cluster": dark})
    seen = (*reach.live, *reach.paused)
    if any(free(c, all_nodes=True) >= pods for c in seen) or (never and could(seen, all_nodes=True)):
        return Reason(WaitReason.NODES_UNAVAILABLE, {"gpu_class": shape.gpu_class, "gpus": size * pods})
    total = sum(opened[cluster].free for cluster in reach.live if cluster in opened)
    if total < size * pods:
        return Reason(
            WaitReason.NO_FREE_GPU, {"gpu_class": shape.gpu_class, "needed": size * pods, "free": total}
        )
    most = max((free(cluster, all_nodes=False) for cluster in reach.live), default=0)
    return Reason(
        WaitReason.NO_NODE_FITS,
        {"gpu_class": shape.gpu_class, "gpus_per_pod": size, "pods": pods, "pods_fit": most},
    )
