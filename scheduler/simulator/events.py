"""What can happen in the simulated cluster, and how each event is written in the journal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class EndReason(StrEnum):
    """Why a pod ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"
    GANG_FAILED = "gang_failed"
    NODE_LOST = "node_lost"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """One device of a node; a MIG slice is a device of its own."""

    gpu_uuid: str
    gpu_class: str


@dataclass(frozen=True, slots=True)
class PodSpec:
    """`count` GPUs of one class on one node, wanted by one pod."""

    index: int
    node: str
    gpu_class: str
    count: int


@dataclass(frozen=True, slots=True)
class NodeAdded:
    """A node joined the cluster."""

    t: int
    node: str
    gpus: tuple[GpuSpec, ...]
    rack: str = ""


@dataclass(frozen=True, slots=True)
class ObjectCreated:
    """A name was taken, by an object to run or (`suspend`) by a tombstone."""

    t: int
    name: str
    job_id: str
    attempt: int
    suspend: bool
    abandoned: bool
    spec_hash: str
    walltime_ms: int
    grace_ms: int
    pods: tuple[PodSpec, ...]
    annotations: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ObjectSuspended:
    """An object was asked to stop, or was labelled as abandoned."""

    t: int
    name: str
    abandoned: bool
    grace_ms: int


@dataclass(frozen=True, slots=True)
class ObjectDeleted:
    """A name became free again."""

    t: int
    name: str


@dataclass(frozen=True, slots=True)
class PodStarted:
    """A pod got its GPUs and runs."""

    t: int
    name: str
    job_id: str
    attempt: int
    pod_index: int
    node: str
    gpu_class: str
    gpu_uuids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PodEnded:
    """A pod that had started left its GPUs."""

    t: int
    name: str
    job_id: str
    attempt: int
    pod_index: int
    node: str
    exit_code: int | None
    reason: EndReason


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A node died; nobody notices for `silent_ms`."""

    t: int
    node: str
    silent_ms: int


@dataclass(frozen=True, slots=True)
class NodeNoticed:
    """The cluster noticed that a node is silent."""

    t: int
    node: str


@dataclass(frozen=True, slots=True)
class NodeReturned:
    """A lost node booted again, empty."""

    t: int
    node: str


@dataclass(frozen=True, slots=True)
class ForeignSet:
    """Others than the hub now use `count` GPUs of a class on a node."""

    t: int
    node: str
    gpu_class: str
    count: int


@dataclass(frozen=True, slots=True)
class GpuBroke:
    """A GPU shows an XID, or falls off the bus; what runs on it dies if `kills`."""

    t: int
    node: str
    gpu_uuid: str
    xid: int | None
    lost: bool
    recovery_action: int
    withdrawn: bool
    kills: bool


@dataclass(frozen=True, slots=True)
class GpuMended:
    """A GPU works again, and its node gives it to pods."""

    t: int
    node: str
    gpu_uuid: str


NodeEvent = NodeAdded | NodeLost | NodeNoticed | NodeReturned | ForeignSet | GpuBroke | GpuMended
ObjectEvent = ObjectCreated | ObjectSuspended | ObjectDeleted | PodStarted | PodEnded
Event = NodeEvent | ObjectEvent

_WORDS: dict[type[Event], str] = {
    NodeAdded: "node_added",
    ObjectCreated: "object_created",
    ObjectSuspended: "object_suspended",
    ObjectDeleted: "object_deleted",
    PodStarted: "pod_started",
    PodEnded: "pod_ended",
    NodeLost: "node_lost",
    NodeNoticed: "node_noticed",
    NodeReturned: "node_returned",
    ForeignSet: "foreign_set",
    GpuBroke: "gpu_broke",
    GpuMended: "gpu_mended",
}
_TYPES = {word: kind for kind, word in _WORDS.items()}


def event_word(event: Event) -> str:
    """What the journal calls this kind of event."""
    return _WORDS[type(event)]


def line_of(event: Event, n: int) -> str:
    """The event as the journal's line number `n`, without the line's end."""
    fields: dict[str, object] = {"t": event.t, "n": n, "event": _WORDS[type(event)]}
    for field in type(event).__slots__:
        fields[field] = getattr(event, field)
    if isinstance(event, ObjectCreated):
        fields["annotations"] = dict(event.annotations)
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False, default=_spec_fields)


def event_of(line: str | bytes) -> tuple[int, Event]:
    """The line number and the event of a journal line. Raises ValueError, KeyError or TypeError."""
    fields: dict[str, Any] = json.loads(line)
    n = int(fields.pop("n"))
    kind = _TYPES[fields.pop("event")]
    if "gpus" in fields:
        fields["gpus"] = tuple(GpuSpec(**gpu) for gpu in fields["gpus"])
    if "pods" in fields:
        fields["pods"] = tuple(PodSpec(**pod) for pod in fields["pods"])
    if "annotations" in fields:
        fields["annotations"] = tuple(fields["annotations"].items())
    if "gpu_uuids" in fields:
        fields["gpu_uuids"] = tuple(fields["gpu_uuids"])
    if "reason" in fields:
        fields["reason"] = EndReason(fields["reason"])
    return n, kind(**fields)


def _spec_fields(spec: object) -> dict[str, object]:
    if isinstance(spec, GpuSpec):
        return {"gpu_uuid": spec.gpu_uuid, "gpu_class": spec.gpu_class}
    assert isinstance(spec, PodSpec), "the journal holds no other nested values"
    return {"index": spec.index, "node": spec.node, "gpu_class": spec.gpu_class, "count": spec.count}
