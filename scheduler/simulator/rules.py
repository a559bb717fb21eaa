"""What may be asked of the simulated cluster now: each rule answers with the one event to carry out.

None means that everything is already as asked.
"""

from __future__ import annotations

from scheduler.simulator.events import (
    EndReason,
    ForeignSet,
    GpuBroke,
    GpuMended,
    NodeLost,
    NodeReturned,
    ObjectCreated,
    ObjectDeleted,
    ObjectSuspended,
    PodEnded,
)
from scheduler.simulator.model import Model, pod_ended
from scheduler.simulator.state import ClusterObject, Gpu, Node


class Refusal(Exception):
    """A caller asked for something that cannot be done; `code` is stable."""

    def __init__(self, status: int, code: str, detail: str, field: str | None = None) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.field = status, code, detail, field


class NameTaken(Exception):
    """The name exists: it is the fence."""

    def __init__(self, thing: ClusterObject) -> None:
        super().__init__(thing.created.name)
        self.thing = thing


def find_object(model: Model, name: str) -> ClusterObject:
    """The object, or Refusal."""
    thing = model.objects.get(name)
    if thing is None:
        raise Refusal(404, "unknown_object", f"no object is called {name!r}")
    return thing


def find_node(model: Model, name: str) -> Node:
    """The node, or Refusal."""
    node = model.nodes.get(name)
    if node is None:
        raise Refusal(404, "unknown_node", f"no node is called {name!r}")
    return node


def create(model: Model, wanted: ObjectCreated) -> ObjectCreated:
    """Take the name, unless it is taken: then NameTaken."""
    thing = model.objects.get(wanted.name)
    if thing is not None:
        raise NameTaken(thing)
    return wanted


def suspend(
    model: Model, now_ms: int, name: str, *, abandoned: bool, grace_ms: int
) -> ObjectSuspended | None:
    """Stop an object. The first stop decides the grace; a later one can only add the label."""
    thing = find_object(model, name)
    if thing.suspended and (thing.abandoned or not abandoned):
        return None
    return ObjectSuspended(now_ms, name, abandoned, grace_ms)


def delete(model: Model, now_ms: int, name: str) -> ObjectDeleted:
    """Forget an object of which nothing runs or could run."""
    thing = find_object(model, name)
    if not all(pod.over for pod in thing.pods.values()):
        raise Refusal(409, "pods_running", f"pods of {name!r} have not ended")
    return ObjectDeleted(now_ms, name)


def fail_pod(model: Model, now_ms: int, name: str, index: int, exit_code: int) -> PodEnded:
    """Let a running pod crash."""
    thing = find_object(model, name)
    pod = thing.pods.get(index)
    if pod is None or not pod.running:
        raise Refusal(409, "not_running", f"pod {index} of {name!r} does not run")
    return pod_ended(now_ms, thing, pod, exit_code, EndReason.FAULT)


def lose_node(model: Model, now_ms: int, name: str, silent_ms: int) -> NodeLost | None:
    """Let a node die."""
    node = find_node(model, name)
    return None if node.lost_ms is not None else NodeLost(now_ms, name, silent_ms)


def return_node(model: Model, now_ms: int, name: str) -> NodeReturned | None:
    """Let a lost node boot."""
    node = find_node(model, name)
    return None if node.lost_ms is None else NodeReturned(now_ms, name)


def break_gpu(
    model: Model,
    now_ms: int,
    name: str,
    gpu_uuid: str,
    xid: int | None,
    *,
    lost: bool,
    recovery_action: int,
    withdrawn: bool,
    kills: bool,
) -> GpuBroke:
    """Let a GPU break, once more if it is broken already."""
    _find_gpu(model, name, gpu_uuid)
    return GpuBroke(now_ms, name, gpu_uuid, xid, lost, recovery_action, withdrawn, kills)


def mend_gpu(model: Model, now_ms: int, name: str, gpu_uuid: str) -> GpuMended | None:
    """Let a GPU work again."""
    gpu = _find_gpu(model, name, gpu_uuid)
    well = not gpu.withdrawn and (
        gpu.trouble is None or not (gpu.trouble.lost or gpu.trouble.recovery_action)
    )
    return None if well else GpuMended(now_ms, name, gpu_uuid)


def _find_gpu(model: Model, name: str, gpu_uuid: str) -> Gpu:
    gpu = find_node(model, name).gpus.get(gpu_uuid)
    if gpu is None:
        raise Refusal(404, "unknown_gpu", f"node {name!r} has no GPU {gpu_uuid!r}")
    return gpu


def set_foreign(model: Model, now_ms: int, name: str, gpu_class: str, count: int) -> ForeignSet | None:
    """Let others than the hub use some of a node's GPUs."""
    pool = find_node(model, name).pools.get(gpu_class)
    if pool is None or count > len(pool.gpus):
        has = 0 if pool is None else len(pool.gpus)
        detail = f"node {name!r} has {has} GPUs of class {gpu_class!r}"
        raise Refusal(422, "invalid", detail, field="count")
    return None if pool.foreign == count else ForeignSet(now_ms, name, gpu_class, count)
