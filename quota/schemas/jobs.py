"""Jobs as firms submit and read them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from quota.schemas.forecasts import JobEta
from quota.schemas.scheduling import EndReason, JobState, PodPlacement, StopReason, Waiting
from quota.schemas.values import ClassId, GpuHoursOut, GpuUs, Id, Instant, Name, Reply, Request, wrong

BIGGEST_WALLTIME_S = 30 * 24 * 3600

ShortText = Annotated[str, Field(max_length=1000)]
Annotations = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]{1,100}$")], ShortText], Field(max_length=50)
]

DEVICE_VARIABLES = frozenset(
    {
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_MIG_CONFIG_DEVICES",
        "NVIDIA_MIG_MONITOR_DEVICES",
        "NVIDIA_IMEX_CHANNELS",
    }
)
"""Where the container runtime is told which GPUs to hand out: a job gets those that it pays for."""


def _only_own_variables(environment: dict[str, str]) -> dict[str, str]:
    for name in environment:
        if name.upper() in DEVICE_VARIABLES:
            raise wrong("{name} is not a job's to set: it says which GPUs a container sees", name=name)
    return environment


Environment = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,99}$")], ShortText],
    Field(max_length=50),
    AfterValidator(_only_own_variables),
]


class JobSubmission(Request):
    """A job: `pods` pods of `gpus_per_pod` GPUs that start together, for at most `walltime_s`."""

    name: Name
    gpu_class: ClassId
    gpus_per_pod: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    pods: Annotated[int, Field(strict=True, ge=1, le=4096)] = 1
    walltime_s: Annotated[int, Field(strict=True, ge=1, le=BIGGEST_WALLTIME_S)]
    grace_s: Annotated[int, Field(strict=True, ge=0, le=3600)] = 30
    """How long the job may take to stop when asked."""
    grant_id: Id | None = None
    """The grant that pays; default: the earliest-ending one that can."""
    restartable: Annotated[bool, Field(strict=True)] = False
    """Queue it again when a node fails under it."""
    checkpoint_interval_s: Annotated[int, Field(strict=True, ge=1, le=BIGGEST_WALLTIME_S)] | None = None
    image: ShortText = ""
    command: Annotated[tuple[ShortText, ...], Field(max_length=100)] = ()
    environment: Environment = Field(default_factory=dict)
    annotations: Annotations = Field(default_factory=dict)
    organization_id: Id | None = None
    """Only for operators who submit for an organization."""


class Extension(Reply):
    """More time that an attempt was given while it ran, and what was held for it."""

    number: int
    transfer_id: str
    at: Instant
    actor: str
    reason: str
    walltime_s: int
    held_gpu_us: GpuUs


class Attempt(Reply):
    """One try of a job on a cluster, with its charge."""

    attempt: int
    state: JobState
    cluster: str
    pods: tuple[PodPlacement, ...]
    grant_id: str
    hold_id: str
    walltime_s: int
    """Its time limit, extensions included."""
    extensions: tuple[Extension, ...] = ()
    held_gpu_us: GpuUs
    settled_gpu_us: GpuUs
    refunded_gpu_us: GpuUs
    released_gpu_us: GpuUs
    platform_gpu_us: GpuUs
    hold_resolved: bool
    claimed_at: Instant
    first_started_at: Instant | None
    last_started_at: Instant | None
    ended_at: Instant | None
    exit_code: int | None
    detail: str | None = None
    """What the cluster says of it: why its pods do not start, or how one of them ended."""
    end_reason: EndReason | None
    stop_reason: StopReason | None
    stop_at: Instant | None


class MeasuredGpu(Reply):
    """What an agent measured on one GPU of one attempt; totals over hours and agent epochs."""

    attempt: int
    node: str
    gpu_uuid: str
    busy_ms: int
    observed_ms: int


class Job(Reply):
    """A job as its organization sees it."""

    id: str
    name: str
    organization_id: str
    state: JobState
    end_reason: EndReason | None
    gpu_class: str
    gpus_per_pod: int
    pods: int
    walltime_s: int
    grace_s: int
    grant_id: str | None
    restartable: bool
    submitted_at: Instant
    ended_at: Instant | None
    cancel_requested_at: Instant | None
    cost_limit_gpu_us: GpuUs
    cost_limit_gpu_hours: GpuHoursOut
    attempt: int
    waiting: Waiting | None
    """Why it waits, with numbers; null once it does not."""
    position: int | None
    """Place in the hub's queue, 1 = next; null once it does not wait."""
    eta: JobEta | None = None
    """When it is likely to start; null once it does not wait, and while nobody can say."""
    charged_gpu_us: GpuUs
    """Settled less refunded, over all attempts."""
    charged_gpu_hours: GpuHoursOut


class JobDetail(Job):
    """A job with its attempts, and what the agents measured."""

    attempts: tuple[Attempt, ...]
    measured: tuple[MeasuredGpu, ...]


class JobPage(Reply):
    """Jobs, newest first; pass `next` as `after` for the following page."""

    items: tuple[Job, ...]
    next: str | None
