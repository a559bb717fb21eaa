"""Where a gang goes, and which room is kept for a job that others are being stopped for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.core.fit import Fleet, Shape, Shelf
from scheduler.core.model import Attempt, Job, PodPlacement

Limits = Mapping[str, Mapping[str, int]]
"""By cluster and node: how many of its free GPUs may be used at most."""


@dataclass(frozen=True, slots=True)
class Room:
    """GPUs of one class on nodes of one cluster."""

    gpu_class: str
    cluster: str
    gpus_by_node: Mapping[str, int]


def place(shape: Shape, shelves: Mapping[str, Shelf], limits: Limits | None = None) -> Room | None:
    """Room for all pods in the cluster where they break the fewest empty nodes and leave the least over."""
    best: tuple[tuple[int, int, str], Room] | None = None
    for cluster, shelf in shelves.items():
        if shelf.fitting(shape.gpus_per_pod) < shape.pods:
            continue
        packed = _pack(shelf, shape.gpus_per_pod, shape.pods, (limits or {}).get(cluster, {}))
        if packed is None:
            continue
        gpus_by_node, broken, leftover = packed
        key = (broken, leftover, cluster)
        if best is None or key < best[0]:
            best = key, Room(shape.gpu_class, cluster, gpus_by_node)
    return best[1] if best else None


def pods_of(room: Room, gpus_per_pod: int) -> tuple[PodPlacement, ...]:
    """One placement per pod, in the order in which the nodes were filled."""
    return tuple(
        PodPlacement(node, room.gpu_class, gpus_per_pod)
        for node, gpus in room.gpus_by_node.items()
        for _ in range(gpus // gpus_per_pod)
    )


def keep(job: Job, attempts: Iterable[Attempt], fleet: Fleet, limits: Limits) -> Room | None:
    """The free room that nobody but `job` may have while `attempts` stop for it.

    The job is laid out on what is free plus what is coming, victims' nodes first; what of that is free now is
    kept. Where it cannot be laid out whole, what its victims have freed already is kept. Of a node with a limit
    nothing that is coming counts.
    """
    coming: dict[str, dict[str, int]] = {}
    freed: dict[str, dict[str, int]] = {}
    for attempt in attempts:
        side = coming if attempt.capacity_held else freed
        on_nodes = side.setdefault(attempt.cluster, {})
        for pod in attempt.pods:
            if pod.gpu_class == job.gpu_class:
                on_nodes[pod.node] = on_nodes.get(pod.node, 0) + pod.count
    named = {c: sum(coming.get(c, {}).values()) + sum(freed.get(c, {}).values()) for c in coming | freed}
    shelves = fleet.shelves(job.gpu_class, sorted(named, key=lambda c: (-named[c], c)))
    for cluster, shelf in shelves.items():
        room = _lay_out(job, shelf, coming.get(cluster, {}), freed.get(cluster, {}), limits.get(cluster, {}))
        if room:
            return Room(job.gpu_class, cluster, room)
    for cluster, shelf in shelves.items():
        most = limits.get(cluster, {})
        left = {
            node: min(gpus, _free(shelf, node), most.get(node, gpus))
            for node, gpus in sorted(freed.get(cluster, {}).items())
        }
        if any(left.values()):
            return Room(job.gpu_class, cluster, {node: gpus for node, gpus in left.items() if gpus})
    return None


def _pack(
    shelf: Shelf, size: int, pods: int, limits: Mapping[str, int]
) -> tuple[dict[str, int], int, int] | None:
    """Fill the fullest node first, break an empty one last. Also returns: nodes broken, GPUs left over."""
    chosen: dict[str, int] = {}
    broken = leftover = 0
    for empty, free in sorted(
        (row for row in shelf.rows if row[1] >= size),
        key=lambda row: (row[0] and row[1] > size, row[1], row[0]),
    ):
        for name in shelf.rows[empty, free]:
            here = min(pods, min(free, limits[name]) // size if name in limits else free // size)
            if not here:
                continue
            chosen[name] = here * size
            broken += empty and here * size < free
            leftover += free - here * size
            pods -= here
            if not pods:
                return chosen, broken, leftover
    return None


def _lay_out(
    job: Job, shelf: Shelf, coming: Mapping[str, int], freed: Mapping[str, int], most: Mapping[str, int]
) -> dict[str, int] | None:
    """What of the job's future room in this cluster is free now; None when it would not fit."""
    nodes: Sequence[tuple[bool, int, str]] = sorted(
        (
            name not in coming and name not in freed,
            min(free, most[name]) if name in most else free + coming.get(name, 0),
            name,
        )
        for name, (free, _) in shelf.nodes.items()
    )
    pods, room = job.pods, dict[str, int]()
    for _, available, name in nodes:
        here = min(pods, available // job.gpus_per_pod)
        if here:
            pods -= here
            room[name] = min(here * job.gpus_per_pod, _free(shelf, name))
        if not pods:
            return room
    return None


def _free(shelf: Shelf, node: str) -> int:
    return shelf.nodes.get(node, (0, 0))[0]
