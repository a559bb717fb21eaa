"""How the simulated cluster answers about its nodes and objects, as plain JSON values."""

from __future__ import annotations

from bisect import bisect_right

from scheduler.simulator.model import Model
from scheduler.simulator.state import ClusterObject, Node, Pod, PodPhase, object_phase, pod_phase

Json = dict[str, object]


def object_view(model: Model, thing: ClusterObject) -> Json:
    """An object with its pods as the cluster knows them."""
    created = thing.created
    phases = [pod_phase(pod, model.nodes.get(pod.spec.node)) for pod in thing.pods.values()]
    return {
        "name": created.name,
        "job_id": created.job_id,
        "attempt": created.attempt,
        "suspend": thing.suspended,
        "abandoned": thing.abandoned,
        "spec_hash": created.spec_hash,
        "walltime_ms": created.walltime_ms,
        "grace_ms": created.grace_ms,
        "annotations": dict(created.annotations),
        "version": thing.version,
        "created_ms": created.t,
        "phase": object_phase(thing.suspended, phases),
        "pods": [
            _pod_view(pod, phase, model.nodes.get(pod.spec.node))
            for pod, phase in zip(thing.pods.values(), phases, strict=True)
        ],
    }


def _pod_view(pod: Pod, phase: PodPhase, node: Node | None) -> Json:
    # How a pod on a silent node ended is known only when the node is back.
    known = not pod.hidden
    lost_ms = node.lost_ms if node is not None else None
    return {
        "index": pod.spec.index,
        "node": pod.spec.node,
        "gpu_class": pod.spec.gpu_class,
        "count": pod.spec.count,
        "phase": phase,
        "started_ms": pod.started_ms,
        "ended_ms": pod.ended_ms if known else None,
        "exit_code": pod.exit_code if known else None,
        "reason": pod.reason if known else None,
        "gpu_uuids": pod.gpu_uuids,
        "last_seen_ms": lost_ms if phase is PodPhase.UNKNOWN else None,
    }


def objects_view(model: Model, after: int, now_ms: int) -> Json:
    """Every object changed since version `after`, the oldest change first, and the names freed since.

    A version that this cluster has not reached belongs to another journal: the answer is complete then.
    """
    complete = after == 0 or after > model.version
    floor = 0 if complete else after
    changed: list[Json] = []
    for thing in reversed(model.objects.values()):
        if thing.version <= floor:
            break
        changed.append(object_view(model, thing))
    changed.reverse()
    return {
        "now_ms": now_ms,
        "version": model.version,
        "nodes_version": model.nodes_version,
        "complete": complete,
        "objects": changed,
        "gone": [] if complete else _gone(model, floor),
    }


def _gone(model: Model, floor: int) -> list[str]:
    first = bisect_right(model.deletions, floor, key=lambda deletion: deletion[0])
    return sorted({name for _, name in model.deletions[first:] if name not in model.objects})


def nodes_view(model: Model, now_ms: int) -> Json:
    """All nodes; one that died looks ready until its silence is noticed."""
    return {
        "now_ms": now_ms,
        "version": model.nodes_version,
        "nodes": [
            {
                "node": node.node,
                "ready": not node.noticed,
                "last_seen_ms": now_ms if node.lost_ms is None else node.lost_ms,
                "foreign": {name: pool.foreign for name, pool in node.pools.items() if pool.foreign},
                "classes": {name: pool.total for name, pool in node.pools.items()},
                "rack": node.rack,
            }
            for node in model.nodes.values()
        ],
    }
