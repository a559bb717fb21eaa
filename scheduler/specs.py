"""Between the words of quota and of a cluster: what it is told of attempts, and what it tells of nodes. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError

from quota.schemas import scheduling as wire
from quota.schemas.values import ClassId, NodeName, RackName
from scheduler.clusters.port import NodeStatus, ObjectSpec, ObjectStatus
from scheduler.clusters.port import PodPlacement as ClusterPodPlacement

_NODE_NAME: TypeAdapter[str] = TypeAdapter(NodeName)
_CLASS_ID: TypeAdapter[str] = TypeAdapter(ClassId)
_RACK_NAME: TypeAdapter[str] = TypeAdapter(RackName)


def spec_of(attempt: wire.AttemptObject) -> ObjectSpec:
    """The cluster object of an attempt, as it is started: always the same for the same attempt."""
    return ObjectSpec(
        name=attempt.id,
        job_id=attempt.job_id,
        attempt=attempt.attempt,
        pods=tuple(
            ClusterPodPlacement(pod.index, pod.node, pod.gpu_class, pod.count)
            for pod in sorted(attempt.pods, key=lambda pod: pod.index)
        ),
        walltime_ms=attempt.walltime_ms,
        grace_ms=attempt.grace_ms,
        organization_id=attempt.organization_id,
        image=attempt.image,
        command=attempt.command,
        environment=tuple(sorted(attempt.environment.items())),
        annotations=tuple(sorted(attempt.annotations.items())),
    )


def stop_spec_of(attempt: wire.AttemptObject) -> ObjectSpec:
    """The same object, ending within the grace of the recorded stop."""
    spec = spec_of(attempt)
    return spec if attempt.stop is None else replace(spec, grace_ms=attempt.stop.grace_ms)


def stranger_of(seen: ObjectStatus) -> ObjectSpec:
    """Enough of a specification to stop an object that quota does not know."""
    return ObjectSpec(
        name=seen.name, job_id=seen.job_id, attempt=seen.attempt, pods=(), walltime_ms=0, grace_ms=0
    )


def node_reports(nodes: Iterable[NodeStatus]) -> tuple[tuple[wire.NodeReport, ...], tuple[str, ...]]:
    """The nodes as quota takes them, and the names of those it could not take."""
    taken: list[wire.NodeReport] = []
    left_out: list[str] = []
    for node in nodes:
        report = _node_report(node)
        if report is None:
            left_out.append(node.node)
        else:
            taken.append(report)
    return tuple(sorted(taken, key=lambda report: report.node)), tuple(left_out)


def _rack(name: str) -> str | None:
    """A name that quota would not take is no rack: the node works all the same."""
    try:
        return _RACK_NAME.validate_python(name)
    except ValidationError:
        return None


def _node_report(node: NodeStatus) -> wire.NodeReport | None:
    foreign = dict(node.foreign)
    try:
        return wire.NodeReport(
            node=_NODE_NAME.validate_python(node.node),
            schedulable=node.ready,
            classes=tuple(
                wire.ClassCount(
                    gpu_class=_CLASS_ID.validate_python(gpu_class),
                    total=total,
                    foreign=foreign.get(gpu_class, 0),
                )
                for gpu_class, total in sorted(node.classes)
            ),
            rack=_rack(node.rack),
        )
    except ValidationError:
        return None
