"""Jobs as firms submit and read them."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from quota.schemas.forecasts import JobEta
from quota.schemas.idle import IdleWarning, JobIdle, JobKind
from quota.schemas.scheduling import EndReason, JobState, PodPlacement, StopReason, Topology, Waiting
from quota.schemas.values import ClassId, GpuHoursOut, GpuUs, Id, Instant, Name, Reply, Request, Slug, wrong

BIGGEST_WALLTIME_S = 30 * 24 * 3600
MOST_CLASSES = 4

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
    gpu_classes: Annotated[
        tuple[ClassId, ...], Field(max_length=MOST_CLASSES, exclude_if=lambda classes: not classes)
    ] = ()
    """Every class that it accepts, in order of preference, `gpu_class` first; none: that one only. All pods of an
    attempt get GPUs of one class, and its cost is by that class's rate."""
    gpus_per_pod: Annotated[int, Field(strict=True, ge=1, le=1024)] = 1
    pods: Annotated[int, Field(strict=True, ge=1, le=4096)] = 1
    topology: Annotated[Topology, Field(exclude_if=lambda topology: topology is Topology.ANY)] = Topology.ANY
    """How its pods lie to each other; for a single pod it says nothing."""
    kind: Annotated[JobKind, Field(exclude_if=lambda kind: kind is JobKind.BATCH)] = JobKind.BATCH
    """What the idle rules take it for."""
    walltime_s: Annotated[int, Field(strict=True, ge=1, le=BIGGEST_WALLTIME_S)]
    grace_s: Annotated[int, Field(strict=True, ge=0, le=3600)] = 30
    """How long the job may take to stop when asked."""
    grant_id: Id | None = None
    """The grant that pays; default: the earliest-ending one that can."""
    opportunistic: Annotated[bool, Field(strict=True, exclude_if=lambda asked: not asked)] = False
    """Run it on GPUs that nobody else could use, paid from a programme's account instead of a grant. It starts last,
    and is stopped, within its grace, as soon as somebody is entitled to its GPUs."""
    program_id: Annotated[Slug | None, Field(exclude_if=lambda program: program is None)] = None
    """Of an opportunistic job the programme that pays; default: of those that pay for its organization's jobs the one
    that has most left for that."""
    restartable: Annotated[bool, Field(strict=True)] = False
    """Queue it again when a node fails under it."""
    checkpoint_interval_s: Annotated[int, Field(strict=True, ge=1, le=BIGGEST_WALLTIME_S)] | None = None
    image: ShortText = ""
    command: Annotated[tuple[ShortText, ...], Field(max_length=100)] = ()
    environment: Environment = Field(default_factory=dict)
    annotations: Annotations = Field(default_factory=dict)
    organization_id: Id | None = None
    """Only for operators who submit for an organization."""

    @model_validator(mode="after")
    def _prefers_its_class(self) -> JobSubmission:
        if len(set(self.gpu_classes)) < len(self.gpu_classes):
            twice = next(name for name in self.gpu_classes if self.gpu_classes.count(name) > 1)
            raise wrong("gpu_classes names {gpu_class} twice", gpu_class=twice)
        if self.gpu_classes and self.gpu_classes[0] != self.gpu_class:
            raise wrong("gpu_classes begins with gpu_class, {gpu_class}", gpu_class=self.gpu_class)
        return self

    @model_validator(mode="after")
    def _is_paid_once(self) -> JobSubmission:
        if self.opportunistic and self.grant_id is not None:
            raise wrong(
                "an opportunistic job is paid by a programme: program_id, and not grant_id, may name it"
            )
        if self.program_id is not None and not self.opportunistic:
            raise wrong("program_id is for opportunistic jobs: grant_id names the grant that pays")
        return self

    @property
    def accepted_classes(self) -> tuple[str, ...]:
        """Every class that it accepts, the preferred one first."""
        return self.gpu_classes or (self.gpu_class,)


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
    end_text: str | None = None
    """Why it ended, as a sentence in the language of the request."""
    stop_text: str | None = None
    """Why and when it is stopped; null once it ended."""


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
    gpu_classes: tuple[str, ...] = ()
    """Every class that it accepts, in order of preference, `gpu_class` first."""
    gpus_per_pod: int
    pods: int
    topology: Topology = Topology.ANY
    kind: JobKind = JobKind.BATCH
    walltime_s: int
    grace_s: int
    grant_id: str | None
    program_id: str | None = None
    """Of an opportunistic job the programme that pays; null: a grant does."""
    opportunistic: bool = False
    """Whether it runs on what is idle, and is stopped as soon as somebody is entitled to its GPUs."""
    restartable: bool
    submitted_at: Instant
    ended_at: Instant | None
    cancel_requested_at: Instant | None
    cost_limit_gpu_us: GpuUs
    """What is held at most: once it started, what was; before, the cost on the dearest class that it accepts."""
    cost_limit_gpu_hours: GpuHoursOut
    attempt: int
    waiting: Waiting | None
    """Why it waits, with numbers; null once it does not."""
    waiting_text: str | None = None
    """The same as a sentence, in the language of the request."""
    position: int | None
    """Place in the hub's queue, 1 = next; null once it does not wait."""
    queue_length: int | None = None
    """How many jobs are ranked in the hub."""
    own_position: int | None = None
    """Place among the waiting jobs of its organization."""
    own_queue_length: int | None = None
    place_text: str | None = None
    """The four numbers before as a sentence, in the language of the request."""
    end_text: str | None = None
    """Why it ended, as a sentence in the language of the request."""
    eta: JobEta | None = None
    """When it is likely to start; null once it does not wait, and while nobody can say."""
    idle: JobIdle | None = None
    """What the idle rules found of the attempt that runs; null: nothing yet, or none runs."""
    idle_text: str | None = None
    """The same as a sentence, where there is something to do about it, in the language of the request."""
    charged_gpu_us: GpuUs
    """Settled less refunded, over all attempts."""
    charged_gpu_hours: GpuHoursOut


class JobDetail(Job):
    """A job with its attempts, and what the agents measured."""

    attempts: tuple[Attempt, ...]
    measured: tuple[MeasuredGpu, ...]
    idle_warnings: tuple[IdleWarning, ...] = ()
    """All that were ever recorded of it, in order."""


class JobPage(Reply):
    """Jobs, newest first; pass `next` as `after` for the following page."""

    items: tuple[Job, ...]
    next: str | None
