"""What Jobs, pods and nodes mean in the port's words. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.facts import JobFacts, NodeFacts, PodFacts
from scheduler.clusters.kubernetes.manifests import NodeShape
from scheduler.clusters.kubernetes.settings import ClassForm
from scheduler.clusters.port import NodeStatus, ObjectStatus, PodPhase, PodPlacement, PodStatus

_NODE_IS_GONE = ("DeletionByPodGC", "DeletionByTaintManager")

MEBIBYTE = 1024 * 1024
NOW = 2**64
"""Beyond every resource version: the pods were read after their Job."""


def object_status(
    job: JobFacts,
    pods: Iterable[PodFacts],
    gone: Iterable[PodFacts],
    nodes: Mapping[str, NodeFacts],
    lost: Collection[str] = (),
    pods_version: int = NOW,
) -> ObjectStatus:
    """A Job with its pods. `gone`: those that were seen once and are on the cluster no more; all have ended.

    `lost`: nodes that have been silent for too long; those that are not there at all are lost as well.
    `pods_version`: up to where the pods are known. A pod that is missing says nothing before the Job's own version.
    """
    pods, gone = list(pods), list(gone)
    there = {pod.index: pod for pod in pods if not is_second(pod, gone)}
    is_replaced = len(there) < len({pod.index for pod in pods})
    known = {pod.index: pod for pod in gone} | there
    shown = [_pod_status(job, pod, nodes, lost) for pod in known.values()]
    everyone = are_pods_known(job, known.keys(), pods_version)
    if job.finished_ms is not None and everyone:
        shown += [_unseen_end(job, placed) for placed in job.pods if placed.index not in known]
    return ObjectStatus(
        name=job.name,
        job_id=job.job_id,
        attempt=job.attempt,
        suspended=job.suspended,
        abandoned=job.abandoned,
        spec_hash=job.spec_hash,
        created_ms=job.created_ms,
        pods=tuple(sorted(shown, key=lambda pod: pod.index)),
        gated=len(there) == len(job.pods) and any(pod.gated for pod in there.values()),
        pods_kept=any(pod.kept for pod in there.values()),
        notified=all(pod.notified for pod in there.values() if not pod.is_over),
        walltime_ms=job.walltime_ms,
        settled=is_replaced or (everyone and _is_settled(job, there.values(), known.values())),
    )


def are_pods_known(job: JobFacts, indexes: Collection[int], pods_version: int) -> bool:
    """Whether the pods of these indexes are all that the Job has, as far as pods are known."""
    if job.is_tombstone or pods_version >= job.version:
        return True
    return all(placed.index in indexes for placed in job.pods)


def is_second(pod: PodFacts, gone: Iterable[PodFacts]) -> bool:
    """Whether a pod came after one that ran: an attempt is one run, so this is none of it.

    It takes a hand that removes the Job controller's finalizer; what the second one does is nobody's order.
    """
    return any(
        first.index == pod.index and first.uid != pod.uid and first.started_ms is not None for first in gone
    )


def _is_settled(job: JobFacts, there: Iterable[PodFacts], known: Iterable[PodFacts]) -> bool:
    """Whether it is known that no pod runs any more, and why.

    A suspended Job without pods says little by itself: pods that its controller has just made may only not be seen
    yet, and one that is about to be deleted may have run. Why a pod was deleted only its Job can tell.
    """
    if not all(pod.is_over for pod in there):
        return False
    if job.finished_ms is not None or job.is_deleted:
        return True
    if job.suspended:
        return job.is_tombstone or job.is_emptied
    unexplained = any(pod.deleting_ms is not None and pod.disruption is None for pod in known)
    return job.failed_reason is not None or not unexplained


def node_status(
    node: NodeFacts, others: Iterable[PodFacts], classes: Mapping[str, ClassForm], rack_label: str
) -> NodeStatus | None:
    """A node in bundles (a GPU with its CPU and memory) per class; None if it has no GPU of the hub's.

    `others`: pods on it that the hub does not account for.
    """
    here = classes_of(node, classes)
    if not here:
        return None
    taken: Counter[str] = Counter()
    for pod in others:
        if not pod.is_over:
            taken.update(pod.requests_milli)
    totals = {name: _bundles(node.allocatable_milli, form) for name, form in here.items()}
    foreign = {name: _foreign(node.allocatable_milli, taken, here[name], totals[name]) for name in here}
    return NodeStatus(
        node=node.name,
        ready=is_schedulable(node),
        last_seen_ms=node.heartbeat_ms,
        classes=tuple(sorted(totals.items())),
        foreign=tuple(sorted((name, used) for name, used in foreign.items() if used)),
        rack=node.labels.get(rack_label, ""),
    )


def classes_of(node: NodeFacts, classes: Mapping[str, ClassForm]) -> dict[str, ClassForm]:
    """The classes that a node has: by its labels, and by the resource that its kubelet advertises."""
    return {
        name: form
        for name, form in classes.items()
        if form.resource in node.allocatable_milli and form.labels.items() <= node.labels.items()
    }


def node_shape(node: NodeFacts, classes: Mapping[str, ClassForm]) -> NodeShape:
    """What pinning has to know of a node."""
    totals = {
        name: _bundles(node.allocatable_milli, form) for name, form in classes_of(node, classes).items()
    }
    return NodeShape(node.labels.get(names.HOSTNAME, node.name), totals)


def is_schedulable(node: NodeFacts) -> bool:
    """Whether the hub's pods may go there: its kubelet is well, nobody cordoned it, no strange taint."""
    strange = any(key != names.MANAGED_TAINT for key, _ in node.taints)
    return node.ready == "True" and not node.cordoned and not strange


def _pod_status(
    job: JobFacts, pod: PodFacts, nodes: Mapping[str, NodeFacts], lost: Collection[str]
) -> PodStatus:
    phase = _phase(pod, is_lost=bool(pod.node) and (pod.node in lost or pod.node not in nodes))
    over = phase in (PodPhase.SUCCEEDED, PodPhase.FAILED)
    placed = {place.index: place.node for place in job.pods}
    node = nodes.get(pod.node)
    return PodStatus(
        index=pod.index,
        node=pod.node or placed.get(pod.index, ""),
        phase=phase,
        started_ms=pod.started_ms,
        ended_ms=_ended_ms(pod) if over else None,
        exit_code=pod.exit_code if over else None,
        reason=_reason(job, pod, phase),
        gpu_uuids=(),
        last_seen_ms=_last_seen_ms(pod, node) if phase is PodPhase.UNKNOWN else None,
    )


def _phase(pod: PodFacts, *, is_lost: bool) -> PodPhase:
    match pod.phase:
        case "Succeeded":
            return PodPhase.SUCCEEDED
        case "Failed":
            return PodPhase.FAILED
    if is_lost:
        return PodPhase.UNKNOWN
    return PodPhase.RUNNING if pod.phase == "Running" else PodPhase.PENDING


def _ended_ms(pod: PodFacts) -> int | None:
    """When its container ended; else when it was told to, which is never later than it was gone."""
    return pod.ended_ms or pod.disrupted_ms or pod.deleting_ms


def _last_seen_ms(pod: PodFacts, node: NodeFacts | None) -> int | None:
    moments = [pod.started_ms or 0, 0 if node is None else node.heartbeat_ms]
    return max(moments) or None


def _reason(job: JobFacts, pod: PodFacts, phase: PodPhase) -> str | None:
    if phase is PodPhase.SUCCEEDED:
        return None
    if phase is not PodPhase.FAILED:
        return pod.cause
    if pod.disruption in _NODE_IS_GONE:
        return "node_lost"
    if pod.disruption is not None:
        return "evicted"
    if pod.deleting_ms is None:
        return "oom_killed" if pod.cause == "OOMKilled" else "exited"
    if job.suspended and not job.is_deleted:
        return "stopped"
    return "deadline_exceeded" if job.failed_reason == "DeadlineExceeded" else "gang_failed"


def _unseen_end(job: JobFacts, placed: PodPlacement) -> PodStatus:
    """A pod of a finished Job that nobody saw to end."""
    succeeded = placed.index in job.completed
    return PodStatus(
        index=placed.index,
        node=placed.node,
        phase=PodPhase.SUCCEEDED if succeeded else PodPhase.FAILED,
        started_ms=None,
        ended_ms=job.finished_ms,
        exit_code=0 if succeeded else None,
        reason=None if succeeded else "vanished",
        gpu_uuids=(),
        last_seen_ms=None,
    )


def _bundles(milli: Mapping[str, int], form: ClassForm) -> int:
    """How many GPUs with their CPU and memory there are in this room."""
    gpus, cpu, memory = (max(0, milli.get(key, 0)) for key in (form.resource, "cpu", "memory"))
    return min(gpus // 1000, cpu // form.cpu_milli, memory // (1000 * MEBIBYTE * form.memory_mib))


def _foreign(milli: Mapping[str, int], others: Mapping[str, int], form: ClassForm, total: int) -> int:
    """Bundles that others take: their GPUs, or GPUs that stay idle because others have the CPU or memory."""
    left = {key: amount - others.get(key, 0) for key, amount in milli.items()}
    return max(min(total, others.get(form.resource, 0) // 1000), total - _bundles(left, form))
