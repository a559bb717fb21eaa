"""Which running jobs are stopped for a gang whose grant is further behind: the fewest lost GPU hours that do.

Source: facts/scheduling.md 2.9, policy R, rule 2.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from scheduler.core.fit import Shape, Shelf
from scheduler.core.model import Attempt, Job
from scheduler.core.policy import DAY_MS, Preemption


@dataclass(frozen=True, slots=True)
class Victim:
    """A running attempt on one node that may be stopped, and what that loses in GPU-milliseconds."""

    attempt: Attempt
    node: str
    gpus: int
    lost_gpu_ms: int


@dataclass(frozen=True, slots=True)
class Eviction:
    """Whom to stop, and the room that the gang then takes."""

    cluster: str
    victims: tuple[Victim, ...]
    gpus_by_node: Mapping[str, int]

    @property
    def lost_gpu_ms(self) -> int:
        """What all of them lose."""
        return sum(victim.lost_gpu_ms for victim in self.victims)


def victim_of(job: Job, attempt: Attempt, gpu_class: str, rule: Preemption, now_ms: int) -> Victim | None:
    """The attempt as a victim; None if it may not be stopped now.

    Lost: what ran since its last checkpoint at the moment it is stopped, plus its restart, on all its GPUs.
    """
    nodes = {pod.node for pod in attempt.pods if pod.gpu_class == gpu_class}
    started_ms = attempt.started_at_ms
    if not job.restartable or job.gpus > rule.victim_gpus or len(nodes) != 1 or started_ms is None:
        return None
    if now_ms - started_ms < rule.protected_ms:
        return None
    recent = [at_ms for at_ms in job.preempted_at_ms if now_ms - at_ms < DAY_MS]
    if len(recent) >= rule.times_per_day or any(now_ms - at_ms < rule.cooldown_ms for at_ms in recent):
        return None
    stop_ms = now_ms + rule.notice_ms
    if attempt.ends_at_ms is not None and attempt.ends_at_ms <= stop_ms:
        return None
    return Victim(attempt, nodes.pop(), job.gpus, lost_ms(rule, stop_ms - started_ms) * job.gpus)


def lost_ms(rule: Preemption, ran_ms: int) -> int:
    """What a restartable attempt that ran so long loses: what it did since its last checkpoint, and its restart."""
    return (ran_ms % rule.checkpoint_ms if rule.checkpoint_ms else 0) + rule.restart_ms


def choose(
    shape: Shape,
    domains: Iterable[tuple[str, Shelf]],
    victims: Iterable[Victim],
    limits: Mapping[str, Mapping[str, int]],
) -> Eviction | None:
    """The cheapest eviction after which all pods fit in one domain (cluster or rack); None if none is enough.

    `limits`: by cluster and node, how many of the free GPUs may be used there at most.
    """
    by_cluster: dict[str, dict[str, list[Victim]]] = {}
    for victim in victims:
        by_cluster.setdefault(victim.attempt.cluster, {}).setdefault(victim.node, []).append(victim)
    best: Eviction | None = None
    for cluster, shelf in domains:
        on_nodes = by_cluster.get(cluster)
        found = _choose_in(cluster, shelf, shape, on_nodes, limits.get(cluster, {})) if on_nodes else None
        if found and (best is None or found.lost_gpu_ms < best.lost_gpu_ms):
            best = found
    return best


def _choose_in(
    cluster: str,
    shelf: Shelf,
    shape: Shape,
    on_nodes: Mapping[str, list[Victim]],
    limits: Mapping[str, int],
) -> Eviction | None:
    """Pod by pod where the next one costs least."""
    size = shape.gpus_per_pod
    free = {name: min(here, limits.get(name, here)) for name, (here, _) in shelf.nodes.items()}
    queues = {
        name: sorted(victims, key=lambda v: (v.lost_gpu_ms / v.gpus, v.attempt.id))
        for name, victims in on_nodes.items()
        if name in free
    }
    if _pods_at_most(free, queues, size) < shape.pods:
        return None
    pods = {name: here // size for name, here in free.items() if here >= size}
    gpus_by_node: dict[str, int] = {}
    missing = shape.pods
    for name in sorted(pods, key=lambda name: (name not in queues, free[name], name)):
        here = min(missing, pods[name])
        if here:
            gpus_by_node[name] = here * size
            missing -= here
    chosen: list[Victim] = []
    heap: list[tuple[int, str, int]] = []  # (cost of the next pod, node, victims that it takes)
    for name in queues:
        _offer(heap, name, queues[name], free[name] % size if name in pods else free[name], size)
    heapify(heap)
    over = {name: free[name] % size for name in queues}
    while missing:
        if not heap:
            return None
        _, name, count = heappop(heap)
        taken, queues[name] = queues[name][:count], queues[name][count:]
        chosen += taken
        gained = over[name] + sum(victim.gpus for victim in taken)
        here = min(missing, gained // size)
        gpus_by_node[name] = gpus_by_node.get(name, 0) + here * size
        missing -= here
        over[name] = gained - here * size
        _offer(heap, name, queues[name], over[name], size, push=True)
    return Eviction(cluster, tuple(_needed(chosen, gpus_by_node, free)), gpus_by_node)


def _offer(
    heap: list[tuple[int, str, int]],
    name: str,
    queue: list[Victim],
    over: int,
    size: int,
    *,
    push: bool = False,
) -> None:
    """What one pod more on this node would cost."""
    cost, gained = 0, over
    for count, victim in enumerate(queue, start=1):
        cost, gained = cost + victim.lost_gpu_ms, gained + victim.gpus
        if gained >= size:
            entry = cost, name, count
            if push:
                heappush(heap, entry)
            else:
                heap.append(entry)
            return


def _pods_at_most(free: Mapping[str, int], queues: Mapping[str, list[Victim]], size: int) -> int:
    return sum(
        (here + sum(victim.gpus for victim in queues.get(name, ()))) // size for name, here in free.items()
    )


def _needed(
    chosen: Iterable[Victim], gpus_by_node: Mapping[str, int], free: Mapping[str, int]
) -> list[Victim]:
    """Those without whom it would not fit: the superfluous ones go free, costliest first."""
    spare = {name: free[name] - gpus for name, gpus in gpus_by_node.items()}
    kept = list(chosen)
    for victim in kept:
        spare[victim.node] += victim.gpus
    for victim in sorted(chosen, key=lambda v: (-v.lost_gpu_ms, v.attempt.id)):
        if spare[victim.node] >= victim.gpus:
            spare[victim.node] -= victim.gpus
            kept.remove(victim)
    return kept
