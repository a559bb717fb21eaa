"""Where a gang goes, and which room is kept for a job that others are being stopped for."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.core.fit import Fleet, Shape, Shelf
from scheduler.core.model import NODE, RACK, Attempt, Job, PodPlacement, Topology

Limits = Mapping[str, Mapping[str, int]]
"""By cluster and node: how many of its free GPUs may be used at most."""


@dataclass(frozen=True, slots=True)
class Room:
    """GPUs of one class on nodes of one cluster."""

    gpu_class: str
    cluster: str
    gpus_by_node: Mapping[str, int]


def choose_room(
    shape: Shape, topology: Topology, fleet: Fleet, clusters: Iterable[str], limits: Limits | None = None
) -> Room | None:
    """Room for all pods, lying to each other as the job prefers if there is such room."""
    clusters = tuple(clusters)
    for wish in wishes_of(shape, topology):
        room = place(wish, fleet.domains(wish, clusters), limits)
        if room:
            return room
    return place(shape, fleet.domains(shape, clusters), limits, spread=topology is Topology.SPREAD)


def wishes_of(shape: Shape, topology: Topology) -> list[Shape]:
    """What the gang prefers, the most wanted first."""
    wishes = list[Shape]()
    if shape.pods == 1:
        return wishes
    if topology is Topology.PREFER_SAME_NODE:
        wishes.append(shape._replace(gpus_per_pod=shape.gpus, pods=1, within=NODE))
    if topology in (Topology.PREFER_SAME_NODE, Topology.PREFER_SAME_RACK):
        wishes.append(shape._replace(within=RACK))
    return wishes


def place(
    shape: Shape, domains: Iterable[tuple[str, Shelf]], limits: Limits | None = None, *, spread: bool = False
) -> Room | None:
    """Room for all pods in the domain (cluster or rack) where they break the fewest empty nodes and leave the least.

    `spread`: where the fullest of their nodes has the fewest of them, before that.
    """
    best: tuple[tuple[int, int, int, str], Room] | None = None
    for cluster, shelf in domains:
        if shelf.fitting(shape.gpus_per_pod) < shape.pods:
            continue
        limit = (limits or {}).get(cluster, {})
        most = _evenly(shelf, shape.gpus_per_pod, shape.pods, limit) if spread else 0
        packed = _pack(shelf, shape.gpus_per_pod, shape.pods, limit, most)
        if packed is None:
            continue
        gpus_by_node, broken, leftover = packed
        key = (most, broken, leftover, cluster)
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


def keep(
    job: Job,
    classes: Iterable[str],
    attempts: Collection[Attempt],
    fleet: Fleet,
    limits_of: Callable[[Job, str], Limits],
) -> Room | None:
    """The free room that nobody but `job` may have while `attempts` stop for it, of the first of these classes.

    The job is laid out on what is free plus what is coming, victims' nodes first; what of that is free now is
    kept. Where it cannot be laid out whole, what its victims have freed already is kept. Of a node with a limit
    nothing that is coming counts.
    """
    rooms = (_keep(job.unit, gpu_class, attempts, fleet, limits_of(job, gpu_class)) for gpu_class in classes)
    return next((room for room in rooms if room), None)


def _keep(
    unit: tuple[int, int, str],
    gpu_class: str,
    attempts: Iterable[Attempt],
    fleet: Fleet,
    limits: Limits,
) -> Room | None:
    coming: dict[str, dict[str, int]] = {}
    freed: dict[str, dict[str, int]] = {}
    for attempt in attempts:
        side = coming if attempt.capacity_held else freed
        on_nodes = side.setdefault(attempt.cluster, {})
        for pod in attempt.pods:
            if pod.gpu_class == gpu_class:
                on_nodes[pod.node] = on_nodes.get(pod.node, 0) + pod.count
    named = {c: sum(coming.get(c, {}).values()) + sum(freed.get(c, {}).values()) for c in coming | freed}
    shelves = fleet.shelves(gpu_class, sorted(named, key=lambda c: (-named[c], c)))
    size, pods, within = unit
    for cluster, shelf in fleet.domains(Shape(gpu_class, size, pods, within=within), shelves):
        most = limits.get(cluster, {})
        room = _lay_out(size, pods, shelf, coming.get(cluster, {}), freed.get(cluster, {}), most)
        if room:
            return Room(gpu_class, cluster, room)
    for cluster, shelf in shelves.items():
        most = limits.get(cluster, {})
        left = {
            node: min(gpus, _free(shelf, node), most.get(node, gpus))
            for node, gpus in sorted(freed.get(cluster, {}).items())
        }
        if any(left.values()):
            return Room(gpu_class, cluster, {node: gpus for node, gpus in left.items() if gpus})
    return None


def _pack(
    shelf: Shelf, size: int, pods: int, limits: Mapping[str, int], most: int = 0
) -> tuple[dict[str, int], int, int] | None:
    """Fill the fullest node first, break an empty one last. Also returns: nodes broken, GPUs left over.

    `most`: so many pods per node and as many of one less as there have to be; 0 for as many as fit.
    """
    chosen: dict[str, int] = {}
    broken = leftover = 0
    later = 0  # pods that go onto other nodes so that none has too many
    if most:
        later = sum(min(room, most - 1) for room in _rooms(shelf, size, limits))
    for empty, free in sorted(
        (row for row in shelf.rows if row[1] >= size),
        key=lambda row: (row[0] and row[1] > size, row[1], row[0]),
    ):
        for name in shelf.rows[empty, free]:
            here = min(pods, min(free, limits[name]) // size if name in limits else free // size)
            if most:
                least = min(here, most - 1)
                later -= least
                here = min(here, most, max(least, pods - later))
            if not here:
                continue
            chosen[name] = here * size
            broken += empty and here * size < free
            leftover += free - here * size
            pods -= here
            if not pods:
                return chosen, broken, leftover
    return None


def _rooms(shelf: Shelf, size: int, limits: Mapping[str, int]) -> Iterable[int]:
    """Of each node with room: for how many pods."""
    for name, (free, _) in shelf.nodes.items():
        room = min(free, limits.get(name, free)) // size
        if room:
            yield room


def _evenly(shelf: Shelf, size: int, pods: int, limits: Mapping[str, int]) -> int:
    """The fewest pods that the fullest of the nodes must take; any number when they do not fit."""
    rooms, most = list(_rooms(shelf, size, limits)), 1
    while most < pods and sum(min(room, most) for room in rooms) < pods:
        most += 1
    return most


def _lay_out(
    size: int,
    pods: int,
    shelf: Shelf,
    coming: Mapping[str, int],
    freed: Mapping[str, int],
    most: Mapping[str, int],
) -> dict[str, int] | None:
    """What of a gang's future room in this cluster is free now; None when it would not fit."""
    nodes: Sequence[tuple[bool, int, str]] = sorted(
        (
            name not in coming and name not in freed,
            min(free, most[name]) if name in most else free + coming.get(name, 0),
            name,
        )
        for name, (free, _) in shelf.nodes.items()
    )
    room = dict[str, int]()
    for _, available, name in nodes:
        here = min(pods, available // size)
        if here:
            pods -= here
            room[name] = min(here * size, _free(shelf, name))
        if not pods:
            return room
    return None


def _free(shelf: Shelf, node: str) -> int:
    return shelf.nodes.get(node, (0, 0))[0]
