"""What the reconciler asks of a cluster; implementations are the simulated cluster and Kubernetes.

Times are business milliseconds since 1970 as the cluster itself recorded them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from scheduler.clusters.logs import ClusterUnavailable, LogRequest, LogStream

__all__ = [
    "Cluster",
    "ClusterUnavailable",
    "NodeStatus",
    "ObjectSpec",
    "ObjectStatus",
    "Observation",
    "PodPhase",
    "PodPlacement",
    "PodStatus",
    "StartOutcome",
    "StartRefused",
]


class StartRefused(Exception):
    """The cluster answered that it will not start this object now; it may be tried again."""


class PodPhase(StrEnum):
    """Where one pod is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """Its node is lost: nobody can say whether it still runs."""


class StartOutcome(StrEnum):
    """What a start found under the attempt's name."""

    CREATED = "created"
    ADOPTED = "adopted"
    """The same object was there already: an earlier call did it."""
    ABANDONED = "abandoned"
    """A tombstone holds the name: this attempt never runs."""
    CONFLICT = "conflict"
    """The name is taken by an object with another spec: a finding."""


@dataclass(frozen=True, slots=True)
class PodPlacement:
    """`count` GPUs of one class on one node for the pod with this index."""

    index: int
    node: str
    gpu_class: str
    count: int


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """One attempt of a job as a cluster object; its name is its identity and its fence."""

    name: str
    job_id: str
    attempt: int
    pods: tuple[PodPlacement, ...]
    walltime_ms: int
    """As it was at the start. It may be extended since: the scheduler ends attempts, a cluster only has a net."""
    grace_ms: int
    organization_id: str = ""
    image: str = ""
    command: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    annotations: tuple[tuple[str, str], ...] = ()

    def spec_hash(self) -> str:
        """SHA-256 over everything that decides what runs where; equal hash = same object.

        The limits are left out: they may be extended while the object lives, and it stays the same object.
        """
        pods = sorted(self.pods, key=lambda pod: pod.index)
        identity = {
            "name": self.name,
            "job_id": self.job_id,
            "attempt": self.attempt,
            "pods": [[pod.index, pod.node, pod.gpu_class, pod.count] for pod in pods],
            "organization_id": self.organization_id,
            "image": self.image,
            "command": self.command,
            "environment": sorted(self.environment),
            "annotations": sorted(self.annotations),
        }
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PodStatus:
    """One pod as last seen."""

    index: int
    node: str
    phase: PodPhase
    started_ms: int | None
    ended_ms: int | None
    exit_code: int | None
    reason: str | None
    gpu_uuids: tuple[str, ...]
    last_seen_ms: int | None
    """For an UNKNOWN pod: the last moment its node was known to live."""


@dataclass(frozen=True, slots=True)
class ObjectStatus:
    """One object as last seen."""

    name: str
    job_id: str
    attempt: int
    suspended: bool
    abandoned: bool
    spec_hash: str
    created_ms: int
    pods: tuple[PodStatus, ...]
    """Empty for a tombstone."""
    gated: bool = False
    """All its pods are there, and some wait to be told their node: `place`."""
    pods_kept: bool = False
    """Pods that ended are kept readable until `acknowledge`."""
    settled: bool = True
    """Without running pods it is over. False while the cluster may still show one that ran, or why it was ended."""
    notified: bool = True
    """Its pods know when they will be stopped, or the cluster has no way to tell them."""
    walltime_ms: int | None = None
    """How long it may run by the cluster's own net; None if the cluster has none."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node: GPUs per class in all, those used by others than the hub, and whether it takes pods."""

    node: str
    ready: bool
    last_seen_ms: int
    classes: tuple[tuple[str, int], ...]
    foreign: tuple[tuple[str, int], ...]
    rack: str = ""
    """Nodes with the same one share a rack; "" where none is known."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What changed since the previous observation.

    `complete` says that `objects` is everything there is (the first observation, or after the cluster
    could not say what changed); then an object not listed does not exist.
    `through_ms`: every event up to this time is contained in this or an earlier observation; it only grows.
    """

    through_ms: int
    complete: bool
    objects: tuple[ObjectStatus, ...]
    gone: tuple[str, ...]
    nodes: tuple[NodeStatus, ...] | None
    """All nodes when they changed or were asked for the first time, else None."""


class Cluster(Protocol):
    """A place where attempts run. All methods may raise ClusterUnavailable."""

    @property
    def name(self) -> str:
        """The cluster's id in the quota service."""
        ...

    def observe(self, wait_s: float) -> Observation:
        """Everything that changed since the last call; waits up to `wait_s` wall seconds for a change."""
        ...

    def forget_observations(self) -> None:
        """Let the next `observe` be complete again."""
        ...

    def get(self, name: str) -> ObjectStatus | None:
        """One object now, or None if the name is free."""
        ...

    def start(self, spec: ObjectSpec) -> StartOutcome:
        """Create the object unless its name is taken. Starting what already runs does nothing.

        Raises StartRefused when the cluster declines.
        """
        ...

    def stop(self, spec: ObjectSpec, *, abandoned: bool) -> bool:
        """Suspend the object: its pods end within `spec.grace_ms`, and the name stays taken.

        A name that does not exist yet is created suspended, so that a late start finds a tombstone.
        Stopping twice is stopping once. False: the place where it could be is not there (any more), so nothing
        is, and nothing can be started.
        """
        ...

    def place(self, spec: ObjectSpec) -> None:
        """Tell the pods of a gated object their nodes and let them in. Again does nothing."""
        ...

    def extend(self, spec: ObjectSpec) -> None:
        """Let the cluster's own net allow `spec.walltime_ms`."""
        ...

    def notify(self, spec: ObjectSpec, stop_at_ms: int, reason: str) -> None:
        """Tell the pods of a running object when it will be stopped, and why. Again does nothing."""
        ...

    def acknowledge(self, name: str) -> None:
        """The end of this object's pods is recorded: what kept them readable may go. Again does nothing."""
        ...

    def delete(self, name: str) -> bool:
        """Forget an ended object or a tombstone. False while its pods run; True if it is gone."""
        ...

    def logs(self, name: str, pod_index: int, request: LogRequest) -> LogStream:
        """Open the log of one pod of an object; the caller reads it in a `with` block.

        Raises NoLogs when there is none.
        """
        ...
