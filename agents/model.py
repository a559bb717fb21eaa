"""What every room of the agent speaks of: readings, totals, and the door that evidence goes through.

Times are business milliseconds since 1970. What a reader could not learn is None, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, NamedTuple, Protocol

from pydantic import Field

from agents.detail import GpuDetail
from quota.schemas.usage import EvidenceBatch, EvidenceReply, GpuUuid
from quota.schemas.values import ClassId, Id, NodeName

NS_PER_MS = 1_000_000

Moment = Annotated[int, Field(ge=0)]
Attempt = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(allow_inf_nan=False)]
Figure = Annotated[float, Field(allow_inf_nan=False)]

Sample = tuple[Moment, Ratio]
"""When it was taken (ms), and the mean utilization (0-1) since the sample before it."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The pod that holds a GPU now."""

    job_id: Id
    attempt: Attempt
    pod_index: int
    since_ms: Moment


@dataclass(frozen=True, slots=True)
class PastWorkload:
    """A pod that held a GPU until `until_ms`."""

    gpu_uuid: GpuUuid
    job_id: Id
    attempt: Attempt
    pod_index: int
    since_ms: Moment
    until_ms: Moment


@dataclass(frozen=True, slots=True)
class Holding:
    """One pod's hold of one GPU, as lists of pods showed it; several at once only of a GPU cut into replicas."""

    gpu_uuid: GpuUuid
    job_id: str
    """Empty for a pod that is not the hub's."""
    attempt: int
    pod_index: int
    since_ms: Moment
    until_ms: Moment | None = None
    """None: it goes on."""
    replica: bool = False
    """Whether others may hold the same GPU at the same time."""
    namespace: str = ""
    pod: str = ""
    uid: str = ""
    """The pod's, as far as it is known."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Which part of a GPU's busy time between two reads went to which attempt."""

    since_ms: Moment
    until_ms: Moment
    ppm: dict[tuple[str, int], int]
    """Millionths of the busy time by (job, attempt), a million together at most; what lacks is nobody's."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU as its driver shows it, with the samples newer than what was asked after."""

    gpu_uuid: GpuUuid
    gpu_class: ClassId
    model: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    power_watts: Figure | None = None
    temperature_celsius: Figure | None = None
    workload: Workload | None = None
    samples: list[Sample] = field(default_factory=list)
    up: bool = True
    """Whether the driver can read the GPU now; if not, its figures are None and older samples may still be told."""
    sample_period_ms: int | None = None
    """How often this GPU is sampled, where the reader knows better than for all."""
    detail: GpuDetail | None = None
    """What else the driver says; None from a reader that does not tell."""
    sharers: tuple[tuple[str, int], ...] = ()
    """(job, attempt) of those that share the GPU now; then `workload` is None."""
    shares: list[Shares] = field(default_factory=list)
    """How a shared GPU's busy time is divided: oldest first, without overlap."""


@dataclass(frozen=True, slots=True)
class NodeReading:
    """All GPUs of one node at `now_ms`, and the workloads that ended after the moment asked for."""

    now_ms: Moment
    node: NodeName
    boot_id: str
    gpus: tuple[GpuReading, ...]
    past: tuple[PastWorkload, ...] = ()
    workloads_known: bool = True
    """Whether the reader knows who holds the GPUs; if not, no workload does not mean that nobody does."""
    holdings: tuple[Holding, ...] = ()
    """Every pod's hold that reaches behind the moment asked for; who tells these tells no `past`."""


class Span(NamedTuple):
    """The time that one attempt held a GPU: from `since_ms` up to, not including, `until_ms`."""

    since_ms: int
    until_ms: int
    job_id: str
    attempt: int
    shared: bool = False
    """Whether others held the GPU at the same time, so that only its processes tell who kept it busy."""


class RowKey(NamedTuple):
    """What an evidence row is about; `hour_ms` is the hour's start."""

    job_id: str
    attempt: int
    gpu_uuid: str
    hour_ms: int


class Measured(NamedTuple):
    """Nanoseconds of full use within milliseconds of observation: exact integers that only add."""

    busy_ns: int = 0
    observed_ms: int = 0

    def plus(self, other: Measured) -> Measured:
        """Both together."""
        return Measured(self.busy_ns + other.busy_ns, self.observed_ms + other.observed_ms)


NOTHING = Measured()


@dataclass(frozen=True, slots=True)
class GpuState:
    """How far one GPU has been measured; stored in the same transaction as what was measured."""

    gpu_uuid: str
    gpu_class: str
    node: str
    last_seen_ms: int
    """The newest sample that was counted (or the start, for a GPU never seen before)."""
    gaps_ms: tuple[int, ...]
    """The latest distances between samples, oldest first; their median is the GPU's sample period."""
    device: Measured = NOTHING
    """Everything measured on this GPU, whoever held it."""
    job_id: str = ""
    attempt: int = 0
    workload: Measured = NOTHING
    """What was measured under the attempt that held the GPU last; empty `job_id` for nobody."""
    sharers: tuple[tuple[str, int, Measured], ...] = ()
    """(job, attempt, what was measured under it) of those that share the GPU now; then nobody holds it alone."""
    attributed_ns: int = 0
    """The part of the device's busy time that went to attempts."""
    runs: tuple[tuple[int, int], ...] = ()
    """The latest stretches (from, until; ms) that were counted, oldest first: a clock may be set back into them."""


class EvidenceDoor(Protocol):
    """Where evidence is delivered; `agents.quota_door.QuotaDoor` is one."""

    def deliver_evidence(self, body: EvidenceBatch, /) -> EvidenceReply:
        """Deliver cumulative rows. Delivering the same rows again changes nothing.

        Raises `quota.refusals.ServiceUnavailable` (what happened is unknown) or `ServiceProblem` (refused).
        """
