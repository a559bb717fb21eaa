"""What the simulated cluster is at one moment: nodes, their GPUs, objects and their pods."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from scheduler.simulator.behavior import Behavior
from scheduler.simulator.events import EndReason, ObjectCreated, PodSpec
from scheduler.simulator.load import Load


class PodPhase(StrEnum):
    """What the cluster says about a pod."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"


class ObjectPhase(StrEnum):
    """What the cluster says about an object as a whole."""

    PENDING = "pending"
    RUNNING = "running"
    SUSPENDED = "suspended"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Occupancy:
    """One pod's stay on a GPU; `until_ms` is None while it lasts."""

    name: str
    job_id: str
    attempt: int
    pod_index: int
    since_ms: int
    load: Load
    until_ms: int | None = None


@dataclass(slots=True)
class Trouble:
    """What a device shows that is not well."""

    xids: dict[int, tuple[int, int]] = field(default_factory=dict)
    """How often each XID came, and when last; they stay after the device was mended."""
    lost: bool = False
    recovery_action: int = 0


@dataclass(slots=True)
class Gpu:
    """A device, who is on it now and who was on it lately."""

    gpu_uuid: str
    gpu_class: str
    current: Occupancy | None = None
    past: deque[Occupancy] = field(default_factory=deque)
    trouble: Trouble | None = None
    withdrawn: bool = False
    """Its node found it broken and gives it to nobody."""


@dataclass(slots=True)
class Pool:
    """The devices of one class on one node."""

    gpus: list[Gpu]
    foreign: int = 0
    used: int = 0
    waiting: list[tuple[int, int, str]] = field(default_factory=list, compare=False)
    """Pods that could start if GPUs were free, as (order of creation, index, name). Follows from the rest."""

    @property
    def total(self) -> int:
        """How many devices the node offers."""
        return sum(not gpu.withdrawn for gpu in self.gpus)

    @property
    def free(self) -> int:
        """How many devices a pod could get now."""
        idle = sum(gpu.current is None and not gpu.withdrawn for gpu in self.gpus)
        return max(0, idle - self.foreign)

    def take(self, count: int) -> tuple[str, ...]:
        """The ids of the first `count` free devices."""
        assert 0 < count <= self.free, "only what is free can be taken"
        free = (gpu.gpu_uuid for gpu in self.gpus if gpu.current is None and not gpu.withdrawn)
        return tuple(next(free) for _ in range(count))


@dataclass(slots=True)
class Node:
    """A machine. While it is lost its pods are dead, but the cluster may not know it yet."""

    node: str
    gpus: dict[str, Gpu]
    pools: dict[str, Pool]
    booted_ms: int
    rack: str = ""
    boots: int = 1
    lost_ms: int | None = None
    notice_ms: int | None = None
    noticed: bool = False
    hidden: list[tuple[str, int]] = field(default_factory=list)
    """Pods (name, index) that died with the node and are not yet known to be dead."""


@dataclass(slots=True)
class Pod:
    """One pod: what it wants, what happened to it, and (`due_*`) how it will end if nothing intervenes."""

    spec: PodSpec
    started_ms: int | None = None
    ended_ms: int | None = None
    exit_code: int | None = None
    reason: EndReason | None = None
    gpu_uuids: tuple[str, ...] = ()
    due_ms: int | None = None
    due_exit_code: int | None = None
    due_reason: EndReason | None = None
    hidden: bool = False
    """It died with its node and the cluster does not know it yet."""

    @property
    def pending(self) -> bool:
        """It has not started and still may."""
        return self.started_ms is None and self.ended_ms is None

    @property
    def running(self) -> bool:
        """It holds its GPUs."""
        return self.started_ms is not None and self.ended_ms is None

    @property
    def over(self) -> bool:
        """It is known to have ended."""
        return self.ended_ms is not None and not self.hidden


@dataclass(slots=True)
class ClusterObject:
    """One attempt of a job, or a tombstone that keeps its name taken."""

    created: ObjectCreated
    order: int
    version: int
    behavior: Behavior
    suspended: bool
    abandoned: bool
    pods: dict[int, Pod]

    def siblings_of(self, index: int) -> Iterator[Pod]:
        """The other pods of the gang."""
        return (pod for other, pod in self.pods.items() if other != index)


def pod_phase(pod: Pod, node: Node | None) -> PodPhase:
    """What the cluster says about a pod: a pod on a silent node seems to run until the silence is noticed."""
    if pod.hidden:
        assert node is not None, "a pod can only die with a node that exists"
        return PodPhase.UNKNOWN if node.noticed else PodPhase.RUNNING
    if pod.ended_ms is not None:
        return PodPhase.SUCCEEDED if pod.exit_code == 0 else PodPhase.FAILED
    return PodPhase.PENDING if pod.started_ms is None else PodPhase.RUNNING


def object_phase(suspended: bool, phases: list[PodPhase]) -> ObjectPhase:
    """What the cluster says about an object whose pods are in these phases."""
    if PodPhase.UNKNOWN in phases:
        return ObjectPhase.UNKNOWN
    if PodPhase.RUNNING not in phases and PodPhase.PENDING not in phases:
        return ObjectPhase.ENDED
    if suspended:
        return ObjectPhase.SUSPENDED
    return ObjectPhase.PENDING if PodPhase.PENDING in phases else ObjectPhase.RUNNING
